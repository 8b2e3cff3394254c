"""Kernels of fixed weights in the configurations that they are launched with, for ``nntk-bench resources``."""

from nntk.kernels.ahead_of_time import Case, Signature, Work
from nntk.kernels.fixed_weights.triton import config, kernel

PAIRS = (
    ("gaussian", "gaussian"),
    ("exponential", "gaussian"),
    ("cauchy", "gaussian"),
    ("ball", "gaussian"),
    ("gaussian", "cauchy"),
    ("power", "cauchy"),
)
"""Distributions and proposals: every distribution once, and the most expensive logarithms together."""

_DENSITIES = ("inverse", "steepness", "proposal_inverse", "proposal_steepness")


def cases(arch: str) -> list[Case]:
    """Return the cases of one architecture."""
    return [case for distribution, proposal in PAIRS for case in _passes(distribution, proposal)]


def _passes(distribution: str, proposal: str) -> list[Case]:
    size = config.pick(2**24)
    lengths: dict[str, Signature] = {"squared_lengths": "*fp64:16", "count": "i32"}
    lengths |= dict.fromkeys(_DENSITIES, "fp64")
    constants = {"DISTRIBUTION": distribution, "PROPOSAL": proposal, "BLOCK": size.block}
    return [
        Case(
            f"reduce_weights {distribution} from {proposal}",
            kernel.reduce_weights,
            {"partials": "*fp64:16", **lengths},
            constants,
            num_warps=size.num_warps,
            loops=(Work(),),
            options=config.OPTIONS,
        ),
        Case(
            f"write_weights {distribution} from {proposal}",
            kernel.write_weights,
            {"weights": "*fp64:16", "statistics": "*fp64:16", "partials": "*fp64:16", **lengths},
            {**constants, "PARTS": config.PROGRAMS},
            num_warps=size.num_warps,
            loops=(Work(),),
            options=config.OPTIONS,
        ),
    ]
