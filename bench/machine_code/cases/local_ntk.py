"""The kernel of this op in the configurations that it ships with, for ``nntk-bench resources``."""

from collections.abc import Iterator

from nntk.kernels.ahead_of_time import Case, Product, Signature, Work
from nntk.kernels.local_ntk.triton import config, kernel
from nntk.kernels.perturb.triton.config import input_precision

_MANY, _FEW = 8192, 64
"""Lines that fill the largest tiles, and lines that take the small ones."""


def cases(arch: str) -> list[Case]:
    """The cases of one architecture: a layer between others, the last one, and the products of a layer's inputs."""
    return [*_layers(arch), *(_gram(arch, lines) for lines in (_MANY, _FEW))]


def _layers(arch: str) -> Iterator[Case]:
    for outputs in ("trace", "mean", "diagonal", "full"):
        for lines in (_MANY, _FEW):
            yield layer_pair(arch, outputs, lines, symmetric=True, last=True)
    yield layer_pair(arch, "trace", _MANY, symmetric=True, last=False)
    for outputs in ("trace", "full"):
        yield layer_pair(arch, outputs, _MANY, symmetric=False, last=True)


def layer_pair(arch: str, outputs: str, lines: int, symmetric: bool, last: bool) -> Case:
    """A layer whose weight and bias move, behind another, with the tiles that it takes for so many lines."""
    form = "fused" if config.is_fused(10, outputs) else "given"
    name = f"layer_pair {outputs} {form} {'symmetric' if symmetric else 'cross'} {'last' if last else 'inner'} {lines}"
    return _case(name, arch, form, outputs, lines, symmetric, last)


def _gram(arch: str, lines: int) -> Case:
    return _case(f"layer_pair inputs {lines}", arch, "plain", "trace", lines, True, False)


def _case(name: str, arch: str, form: str, outputs: str, lines: int, symmetric: bool, last: bool) -> Case:
    cut = config.pick(lines, lines, 1, symmetric, form == "fused", arch)
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
        "BI": cut.block_i,
        "BJ": cut.block_j,
        "BK": cut.block_k,
        "PART": cut.part,
    }
    if form == "fused":
        signature |= {"h1": "*fp32:16", "h2": "*fp32:16", "k": "i32:16"}
    else:
        constants |= {"h1": None, "h2": None, "k": 0}
    if form == "given":
        signature["gram"] = "*fp32:16"
    else:
        constants["gram"] = None
    product = Product(cut.block_i, cut.block_j, cut.block_k, "tf32" if arch.startswith("sm_") else "fp32")
    # A product of float32 is three on tensor cores.
    work = Work(products=(product,) * (3 if product.operand == "tf32" else 1))
    return Case(
        name,
        kernel.layer_pair,
        signature,
        constants,
        num_warps=cut.num_warps,
        num_stages=cut.num_stages,
        loops=(work,) * (2 if form == "fused" else 1),
        tensor_bound=form != "plain" and lines == _MANY,
    )
