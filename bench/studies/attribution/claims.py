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
            lds(RELU, NONLOCAL) - lds(RELU, TRAK), -0.08, 0.08, ".3f",
        ),
    ]  # fmt: skip
    for units, name in ((SIGN, "sign network"), (QUANTISED, "4-bit network")):
        claims += [
            Claim(
                f"{units}: NNTK",
                f"On the {name} nonlocal features have an LDS of {{}}.",
                lds(units, NONLOCAL), 0.05, 0.9, ".3f",
            ),
            Claim(
                f"{units}: NNTK less autograd",
                "Less that of TRAK with the gradients of autograd, which sees the last layer alone, it is {};",
                lds(units, NONLOCAL) - lds(units, HEAD), -0.3, 0.3, ".3f",
            ),
            Claim(
                f"{units}: NNTK less straight-through",
                "less that of TRAK with straight-through gradients {};",
                lds(units, NONLOCAL) - lds(units, SURROGATE), -0.3, 0.3, ".3f",
            ),
            Claim(
                f"{units}: NNTK less float twin",
                "and less that of TRAK of relu networks that were trained on the same digits {}.",
                lds(units, NONLOCAL) - lds(units, TWIN), -0.3, 0.3, ".3f",
            ),
        ]  # fmt: skip
    return claims
