"""Every kernel of the random stream in the configurations that it ships with, for ``nntk-bench resources``."""

from collections.abc import Iterator

import triton.language as tl

from nntk.kernels.ahead_of_time import Case, Signature, Work
from nntk.kernels.philox.integers import DISPLACEMENT
from nntk.kernels.philox.triton import kernel, launch

_SAMPLES: dict[str, Signature] = {"sample_ids": "*i64", "key0": "i32", "key1": "i32"}
_STREAM = _SAMPLES | {"ordinal": "i32"}


def cases(arch: str) -> list[Case]:
    """List the cases of one architecture."""
    return [*_matrices(arch), *_vectors(arch), *_factors(arch), _words(), *_squares(arch)]


def _matrices(arch: str) -> Iterator[Case]:
    for signs in (False, True):
        block_h, block_k = launch.SIGNS_TILE if signs else launch.NORMALS_TILE
        for operand, kind in (("bf16", tl.bfloat16), ("fp32", tl.float32)):
            numbers = block_h * block_k
            yield Case(
                f"write_noise {'signs' if signs else 'normals'} {operand}",
                kernel.write_noise,
                {
                    "out": f"*{operand}:16",
                    "stride_out_m": "i32:16",
                    "stride_out_h": "i32:16",
                    "columns": "i32:16",
                    **_STREAM,
                }
                | {"start": "i32", "height": "i32", "width": "i32"},
                {"SIGNS": signs, "PURPOSE": DISPLACEMENT, "DTYPE": kind, "PTX": arch.startswith("sm_"), "WIDE": False}
                | {"BH": block_h, "BK": block_k},
                once=Work(signs=numbers) if signs else Work(normals=numbers),
                options=launch.OPTIONS,
            )


def _vectors(arch: str) -> Iterator[Case]:
    # As many as the code of one launch may have: vectors of eight layers.
    block, several = launch.VECTOR_BLOCK, ("i32",) * launch.VECTORS
    for signs in (False, True):
        yield Case(
            f"write_vectors {'signs' if signs else 'normals'}",
            kernel.write_vectors,
            {"out": "*fp32:16", "samples": "i32", "start": "i32", **_SAMPLES}
            | {"ordinals": several, "lengths": several},
            {"SIGNS": signs, "PURPOSES": (DISPLACEMENT,) * launch.VECTORS, "PTX": arch.startswith("sm_")}
            | {"BLOCK": block},
            once=Work(signs=launch.VECTORS * block) if signs else Work(normals=launch.VECTORS * block),
            options=launch.OPTIONS,
        )


def _factors(arch: str) -> Iterator[Case]:
    # A layer step reads factors of 16 rows at least; what is multiplied out has one row.
    for operand, rows in (("bf16", (16, 16, 1)), ("fp32", (16, 16, 1)), ("bf16", (16,)), ("fp32", (1,))):
        several = ("i32",) * len(rows)
        yield Case(
            f"write_rank_one {operand} {' '.join(map(str, rows))}",
            kernel.write_rank_one,
            {"out": f"*{operand}:16", "scales": "*fp64", "samples": "i32", "start": "i32", **_SAMPLES}
            | {"ordinals": several, "heights": several, "widths": several},
            {"ROWS": rows, "PTX": arch.startswith("sm_"), "BLOCK": launch.FACTOR_BLOCK},
            loops=(Work(normals=launch.FACTOR_BLOCK),) * 2 * len(rows),
            options=launch.OPTIONS,
        )


def _words() -> Case:
    return Case(
        "write_words",
        kernel.write_words,
        {"out": "*i32:16", **_STREAM, "blocks": "i32"},
        {"PURPOSE": DISPLACEMENT, "BLOCK": launch.WORDS_BLOCK},
        once=Work(signs=128 * launch.WORDS_BLOCK),
        options=launch.OPTIONS,
    )


def _squares(arch: str) -> Iterator[Case]:
    # Parameters of eight layers. Those of which all blocks are full have a loop of their own, and so have padded ones.
    several = ("i32",) * launch.VECTORS
    for vectors, matrices, wide in ((False, False, False), (True, True, False), (True, True, True)):
        kinds = 1 + vectors + matrices
        yield Case(
            f"sum_squares{' padded' if vectors else ''}{' wide' if wide else ''}",
            kernel.sum_squares,
            {"out": "*fp32", "stride_out_m": "i32", **_SAMPLES}
            | dict.fromkeys(("ordinals", "heights", "widths", "shares"), several),
            {"HAS_VECTORS": vectors, "HAS_MATRICES": matrices, "PTX": arch.startswith("sm_"), "WIDE": wide}
            | {"COUNT": launch.VECTORS, "BLOCK": launch.SQUARES_BLOCK},
            loops=(Work(normals=4 * launch.SQUARES_BLOCK),) * kinds,
            options=launch.OPTIONS,
        )
