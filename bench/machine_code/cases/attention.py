"""Kernels of attention in the configurations that they are launched with, for ``nntk-bench resources``."""

from collections.abc import Iterator
from typing import Any

import triton.language as tl

from nntk.kernels.ahead_of_time import Case, Product, Signature, Work
from nntk.kernels.attention.triton import config, kernel

_VALUES: dict[str, Signature] = {
    "values": "*fp32:16",
    "priors": "*fp32:16",
    "factors": "*fp32:16",
    "num_inputs": "i32:16",
}
_STREAM: dict[str, Signature] = {"sample_ids": "*i64", "key0": "i32", "key1": "i32", "ordinal": "i32"}


def cases(arch: str) -> list[Case]:
    """Return the cases of one architecture."""
    return [*_passes(), *_scores(arch), *_projections(arch)]


def _passes() -> Iterator[Case]:
    """Yield both passes over the values, for each score and for antithetic pairs."""
    block_m, block_n = config.TILE
    for score, members in (("dot", 2), ("distance", 1), ("given", 1), ("given", 2)):
        keys: dict[str, Signature] = {"keys": "*fp32:16"} if score == "dot" else {}
        constants = {"SCORE": score, "MEMBERS": members, "BM": block_m, "BN": block_n}
        constants |= {} if keys else {"keys": None}
        common = {**_VALUES, **keys, "num_samples": "i32", "out": "*fp32:16"}
        name = f"{score}{' pairs' if members == 2 else ''}"
        yield Case(
            f"statistics {name}",
            kernel.statistics,
            {**common, "samples_per_split": "i32:16"},
            constants,
            loops=(Work(),),
            options=config.OPTIONS,
        )
        yield Case(
            f"weights {name}",
            kernel.weights,
            {**common, "shifts": "*fp32:16", "normalisers": "*fp32:16"},
            constants,
            options=config.OPTIONS,
        )


def _scores(arch: str) -> Iterator[Case]:
    for score in ("dot", "distance"):
        block_s, block_c = config.scores_tile(10, arch)
        signature: dict[str, Signature] = {"d": "*fp32:16", "out": "*fp32:16"}
        signature |= {"num_scores": "i32", "num_inputs": "i32", "outputs": "i32"}
        constants: dict[str, Any] = {"SCORE": score, "BS": block_s, "BC": block_c}
        if score == "dot":
            signature["keys"] = "*fp32:16"
        else:
            constants["keys"] = None
        yield Case(f"scores {score}", kernel.scores, signature, constants, loops=(Work(),), options=config.OPTIONS)


def _projections(arch: str) -> Iterator[Case]:
    block_m, block_j, block_k = config.PROJECT_TILE
    sizes: dict[str, Signature] = {name: "i32" for name in ("num_samples", "height", "width", "dim", "splits")}
    for signs in (False, True):
        work = Work(
            normals=(block_j if signs else block_m + block_j) * block_k,
            signs=block_m * block_k if signs else 0,
            products=(Product(block_m, block_j, block_k),),
        )
        yield Case(
            f"project {'signs' if signs else 'normals'}",
            kernel.project,
            {**_STREAM, **sizes, "out": "*fp32:16"},
            {"SIGNS": signs, "PRECISION": "ieee", "DTYPE": tl.bfloat16, "PTX": arch.startswith("sm_"), "WIDE": False}
            | {"BM": block_m, "BJ": block_j, "BK": block_k},
            loops=(work,),
            options=config.OPTIONS,
        )
