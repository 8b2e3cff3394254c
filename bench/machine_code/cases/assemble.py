"""Kernels of assembly in the configurations that they are launched with, for ``nntk-bench resources``."""

from collections.abc import Iterator
from typing import Any

from nntk.kernels.ahead_of_time import Case, Product, Signature, Work
from nntk.kernels.assemble.triton import config, kernel
from nntk.kernels.target import input_precision

_WEIGHTINGS = (("rows", 1), ("weights", 1), ("dot", 2), ("distance", 1), ("given", 2))


def cases(arch: str) -> list[Case]:
    """Return the cases of one architecture: all kinds of weights, all modes of output, large and small tiles."""
    listed = [rank_update(arch, weighting, members, "trace", True, 4096) for weighting, members in _WEIGHTINGS]
    listed.append(rank_update(arch, "rows", 1, "trace", True, 4096, one_output=True))
    listed += [rank_update(arch, "rows", 1, outputs, True, 4096) for outputs in ("diagonal", "full")]
    listed += [rank_update(arch, "given", 2, outputs, False, 4096) for outputs in ("diagonal", "full")]
    listed += [rank_update(arch, weighting, members, "trace", False, 256) for weighting, members in _WEIGHTINGS[::2]]
    listed += [rank_update(arch, "rows", 1, "trace", symmetric, 4096, wide=True) for symmetric in (True, False)]
    return listed


def rank_update(
    arch: str,
    weighting: str,
    members: int,
    outputs: str,
    symmetric: bool,
    size: int,
    one_output: bool = False,
    wide: bool = False,
) -> Case:
    """Return the rank update for one kind of weights and one mode of outputs, with the tiles for ``size`` rows."""
    tiles = config.tiles(size, size, symmetric, weighting, members, 132, arch, wide)
    signature = {name: kind for name, kind in _arguments(weighting)}
    # Triton turns an integer 1 into a constant: with one output, terms are displacements and nothing is divided.
    single = {"outputs": 1} if one_output else {}
    for name in single:
        del signature[name]
    constants: dict[str, Any] = {
        name: None for name in kernel.rank_update.arg_names if name.islower() and name not in signature
    }
    constants |= single
    constants |= {"WEIGHTING": weighting, "MEMBERS": members, "SYMMETRIC": symmetric, "OUTPUTS": outputs}
    constants |= {
        "PRECISION": input_precision("fp32", arch),
        "WIDE": wide,
        "BI": tiles.block,
        "BJ": tiles.block,
        "BK": tiles.block_k,
        "PARTS": tiles.parts,
    }
    product = Product(tiles.block, tiles.block, tiles.block_k, "tf32" if arch.startswith("sm_") else "fp32")
    pairs = " pairs" if members == 2 else ""
    shape = f"{'triangle' if symmetric else 'all'} {tiles.block} x {tiles.block}{' wide' if wide else ''}"
    return Case(
        f"rank_update {weighting}{pairs} {outputs}{' of one' if one_output else ''} {shape}",
        kernel.rank_update,
        signature,
        constants,
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
        loops=(Work(products=(product,) * (3 if arch.startswith("sm_") else 1)),),
        options=config.OPTIONS,
    )


def _arguments(weighting: str) -> Iterator[tuple[str, Signature]]:
    for name in ("d1", "d2", "roots", "out"):
        yield name, "*fp32:16"
    for name in ("num_samples", "n1", "n2", "outputs"):
        yield name, "i32"
    if weighting in ("weights", "given"):
        yield from (("values1", "*fp32:16"), ("values2", "*fp32:16"))
    if weighting == "dot":
        yield from (("keys1", "*fp32:16"), ("keys2", "*fp32:16"))
    if weighting not in ("rows", "weights"):
        for name in ("priors", "factors", "shifts1", "shifts2"):
            yield name, "*fp32:16"
