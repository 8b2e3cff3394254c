"""Kernel of the structured NTK in the configurations that it is launched with, for ``nntk-bench resources``."""

from collections.abc import Iterator

from nntk.kernels.ahead_of_time import Case, Product, Signature, Work
from nntk.kernels.local_ntk.triton import config, kernel
from nntk.kernels.target import input_precision

_LARGE, _SMALL = 8192, 64
"""Matrix sizes for the largest tiles and for the small ones."""


def cases(arch: str) -> list[Case]:
    """Return the cases of one architecture: an inner layer, the last layer, and products of the inputs."""
    return [*_layers(arch), *(_gram(arch, size) for size in (_LARGE, _SMALL))]


def _layers(arch: str) -> Iterator[Case]:
    for outputs in ("trace", "mean", "diagonal", "full"):
        for size in (_LARGE, _SMALL):
            yield layer_pair(arch, outputs, size, symmetric=True, last=True)
    yield layer_pair(arch, "trace", _LARGE, symmetric=True, last=False)
    for outputs in ("trace", "full"):
        yield layer_pair(arch, outputs, _LARGE, symmetric=False, last=True)
        yield layer_pair(arch, outputs, _LARGE, symmetric=outputs == "trace", last=True, wide=True)


def layer_pair(arch: str, outputs: str, size: int, symmetric: bool, last: bool, wide: bool = False) -> Case:
    """Return a layer after another, with weight and bias as parameters and the tiles for a matrix of ``size``."""
    form = "fused" if config.is_fused(10, outputs) else "given"
    name = f"layer_pair {outputs} {form} {'symmetric' if symmetric else 'cross'} {'last' if last else 'inner'} {size}"
    return _case(f"{name}{' wide' if wide else ''}", arch, form, outputs, size, symmetric, last, wide)


def _gram(arch: str, size: int) -> Case:
    return _case(f"layer_pair inputs {size}", arch, "plain", "trace", size, True, False)


def _case(
    name: str, arch: str, form: str, outputs: str, size: int, symmetric: bool, last: bool, wide: bool = False
) -> Case:
    tiles = config.pick(size, size, 1, symmetric, form == "fused", arch, wide)
    signature: dict[str, Signature] = {
        "b1": "*fp32:16",
        "b2": "*fp32:16",
        "out": "*fp32:16",
        "width": "i32:16",
        "n1": "i32",
        "n2": "i32",
        "outputs": "i32",
    }
    constants = {
        "BIAS": form != "plain",
        "ADD": form != "plain",
        "LAST": last,
        "SYMMETRIC": symmetric,
        "OUTPUTS": outputs,
        "PRECISION": input_precision("fp32", arch),
        "WIDE": wide,
        "BI": tiles.block_i,
        "BJ": tiles.block_j,
        "BK": tiles.block_k,
        "PART": tiles.part,
    }
    if form == "fused":
        signature |= {"h1": "*fp32:16", "h2": "*fp32:16", "k": "i32:16"}
    else:
        constants |= {"h1": None, "h2": None, "k": 0}
    if form == "given":
        signature["gram"] = "*fp32:16"
    else:
        constants["gram"] = None
    product = Product(tiles.block_i, tiles.block_j, tiles.block_k, "tf32" if arch.startswith("sm_") else "fp32")
    # A product of float32 is three products on tensor cores.
    work = Work(products=(product,) * (3 if product.operand == "tf32" else 1))
    return Case(
        name,
        kernel.layer_pair,
        signature,
        constants,
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
        loops=(work,) * (2 if form == "fused" else 1),
        tensor_bound=form != "plain" and size == _LARGE,
        options=config.OPTIONS,
    )
