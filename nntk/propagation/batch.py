"""The displacements for which differences are computed."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class DisplacementBatch:
    """Displacements of a model, and the budget for their differences.

    Attributes:
        sample_ids: Numbers m of the displacements in the random stream, [M], int64.
        scales: Scales s_m of the displacements, [M], in the dtype of the differences.
        seed: Seed of the random stream.
        directions: Name of the family of unit displacements.
        members: Number of evaluations of a displacement: 1, or 2 for the plus and minus members of an antithetic pair.
        max_bytes: Budget of temporary memory, in bytes.
        precision: Precision to which operands of float32 products are rounded: ``"fp32"``, ``"tf32"`` or ``"bf16"``.
    """

    sample_ids: Tensor
    scales: Tensor
    seed: int
    directions: str
    members: int
    max_bytes: int
    precision: str = "fp32"
