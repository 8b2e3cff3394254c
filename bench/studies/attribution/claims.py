"""Attribution: claims that follow from the rows."""

from collections.abc import Sequence

import numpy as np

from nntk.bench.studies.analysis.claims import Claim
from nntk.bench.studies.analysis.rows import Rows
from nntk.bench.studies.attribution.experiment import HEAD, NONLOCAL, QUANTISED, RELU, SIGN, SURROGATE, TRAK, TWIN


def assemble_claims(rows: Rows) -> Sequence[Claim]:
    """Return the claims of the study with their values, one for each seed."""
    scores = rows.where(table="scores")

    def lds(units: str, method: str) -> np.ndarray:
        return scores.values("lds", units=units, method=method)

    claims = [
        Claim(
            "relu: TRAK",
            "On the relu network, TRAK with exact gradients has an LDS of {};",
            lds(RELU, TRAK), 0.1, 0.9, ".3f",
        ),
        Claim(
            "relu: NNTK less TRAK",
            "that of nonlocal features of as many displacements, less that of TRAK, is {}.",
            lds(RELU, NONLOCAL) - lds(RELU, TRAK), -0.03, 0.03, ".3f",
        ),
    ]  # fmt: skip
    for units, name in ((SIGN, "sign network"), (QUANTISED, "4-bit network")):
        claims += [
            Claim(
                f"{units}: NNTK",
                f"On the {name} nonlocal features have an LDS of {{}}:",
                lds(units, NONLOCAL), 0.1, 0.9, ".3f",
            ),
            Claim(
                f"{units}: NNTK less autograd",
                "{} more than TRAK with the gradients of autograd, which sees the last layer alone,",
                lds(units, NONLOCAL) - lds(units, HEAD), -0.02, 0.2, ".3f",
            ),
            Claim(
                f"{units}: NNTK less straight-through",
                "and {} more than TRAK with straight-through gradients.",
                lds(units, NONLOCAL) - lds(units, SURROGATE), 0.0, 0.2, ".3f",
            ),
        ]  # fmt: skip
    claims += [
        Claim(
            "sign: float twin less NNTK",
            "**Where it loses:** TRAK of relu networks that were trained on the same digits attributes the sign "
            "network better, by {};",
            lds(SIGN, TWIN) - lds(SIGN, NONLOCAL), 0.0, 0.2, ".3f",
        ),
        Claim(
            "4 bits: NNTK less float twin",
            "with 4-bit units the nonlocal features of the network itself are better, by {}.",
            lds(QUANTISED, NONLOCAL) - lds(QUANTISED, TWIN), 0.0, 0.2, ".3f",
        ),
    ]  # fmt: skip
    return claims
