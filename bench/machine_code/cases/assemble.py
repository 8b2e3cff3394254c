"""Every kernel of this op in the configurations that it ships with, for ``nntk-bench resources``."""

from collections.abc import Iterator
from typing import Any

from nntk.kernels.ahead_of_time import Case, Product, Signature, Work
from nntk.kernels.assemble.triton import config, kernel
from nntk.kernels.perturb.triton.config import input_precision

_WEIGHTINGS = (("rows", 1), ("weights", 1), ("dot", 2), ("distance", 1), ("given", 2))


def cases(arch: str) -> list[Case]:
    """The cases of one architecture: every way to a weight, every mode of output, large and small tiles."""
    found = [rank_update(arch, weighting, halves, "trace", True, 4096) for weighting, halves in _WEIGHTINGS]
    found.append(rank_update(arch, "rows", 1, "trace", True, 4096, one_output=True))
    found += [rank_update(arch, "rows", 1, outputs, True, 4096) for outputs in ("diagonal", "full")]
    found += [rank_update(arch, "given", 2, outputs, False, 4096) for outputs in ("diagonal", "full")]
    found += [rank_update(arch, weighting, halves, "trace", False, 256) for weighting, halves in _WEIGHTINGS[::2]]
    return found


def rank_update(
    arch: str, weighting: str, halves: int, outputs: str, symmetric: bool, lines: int, one_output: bool = False
) -> Case:
    """The rank update by one way to a weight and one mode of outputs, with the tiles for so many lines."""
    cut = config.tiles(lines, lines, symmetric, weighting, halves, 132, arch)
    signature = {name: kind for name, kind in _arguments(weighting)}
    # Triton makes an integer of 1 a constant: of one output, terms are displacements and nothing is divided.
    single = {"outputs": 1} if one_output else {}
    for name in single:
        del signature[name]
    constants: dict[str, Any] = {
        name: None for name in kernel.rank_update.arg_names if name.islower() and name not in signature
    }
    constants |= single
    constants |= {"WEIGHTING": weighting, "HALVES": halves, "SYMMETRIC": symmetric, "OUTPUTS": outputs}
    constants |= {
        "PRECISION": input_precision("fp32", arch),
        "BI": cut.block,
        "BJ": cut.block,
        "BK": cut.block_k,
        "PARTS": cut.parts,
    }
    product = Product(cut.block, cut.block, cut.block_k, "tf32" if arch.startswith("sm_") else "fp32")
    pairs = " pairs" if halves == 2 else ""
    shape = f"{'triangle' if symmetric else 'all'} {cut.block} x {cut.block}"
    return Case(
        f"rank_update {weighting}{pairs} {outputs}{' of one' if one_output else ''} {shape}",
        kernel.rank_update,
        signature,
        constants,
        num_warps=cut.num_warps,
        num_stages=cut.num_stages,
        loops=(Work(products=(product,) * (3 if arch.startswith("sm_") else 1)),),
    )


def _arguments(weighting: str) -> Iterator[tuple[str, Signature]]:
    for name in ("d1", "d2", "roots", "out"):
        yield name, "*fp32:16"
    for name in ("num_rows", "n1", "n2", "outputs"):
        yield name, "i32"
    if weighting in ("weights", "given"):
        yield from (("values1", "*fp32:16"), ("values2", "*fp32:16"))
    if weighting == "dot":
        yield from (("keys1", "*fp32:16"), ("keys2", "*fp32:16"))
    if weighting not in ("rows", "weights"):
        for name in ("priors", "factors", "shifts1", "shifts2"):
            yield name, "*fp32:16"
