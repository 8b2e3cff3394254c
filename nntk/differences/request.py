"""Request for differences: which displacements of a kernel, and how they are to be evaluated."""

from dataclasses import dataclass

from torch import Tensor

from nntk.kernels.perturb.config import default_bytes


@dataclass(frozen=True)
class DifferenceRequest:
    """Displacements of a kernel, with the settings that their evaluation depends on.

    Attributes:
        sample_ids: Numbers m of the displacements in the random stream, [M].
        scales: Scales s_m, [M], in the model's dtype.
        seed: Seed of the stream.
        directions: Family of the unit displacements.
        pairs: ``"none"`` for one-sided differences, ``"odd"`` for the odd part of antithetic pairs, ``"both"`` for the
            differences of both members of the pairs.
        propagation: ``"difference"``, ``"direct"`` or ``"auto"``.
        precision: Precision of products, or ``"auto"``.
        max_memory: Budget of temporary memory in bytes; None for the device's default.
        samples: Number of displacements of the whole kernel.
    """

    sample_ids: Tensor
    scales: Tensor
    seed: int
    directions: str
    pairs: str
    propagation: str
    precision: str
    max_memory: int | None
    samples: int

    @property
    def members(self) -> int:
        """Evaluations of a displacement: 2 for an antithetic pair, else 1."""
        return 1 if self.pairs == "none" else 2

    @property
    def max_bytes(self) -> int:
        """Budget of temporary memory in bytes."""
        return default_bytes(self.sample_ids.device) if self.max_memory is None else self.max_memory
