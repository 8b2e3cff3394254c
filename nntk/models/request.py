"""What differences are asked for: of which displacements, and by what means."""

from dataclasses import dataclass

from torch import Tensor

from nntk.kernels.perturb.config import default_bytes


@dataclass(frozen=True)
class Request:
    """Some displacements of a kernel, and its settings that an evaluation goes by.

    Attributes:
        rows: Numbers m of the displacements in the stream, [M].
        scales: Their scales s, [M], in the model's dtype.
        seed: Seed of the stream.
        directions: Family of the unit displacements.
        pairs: ``"none"``, ``"odd"`` or ``"both"`` halves of antithetic pairs.
        propagation: ``"difference"``, ``"direct"`` or ``"auto"``.
        precision: Of the products, or ``"auto"``.
        max_memory: Bytes of temporary memory; None for the device's default.
        samples: Number of displacements of the whole kernel.
    """

    rows: Tensor
    scales: Tensor
    seed: int
    directions: str
    pairs: str
    propagation: str
    precision: str
    max_memory: int | None
    samples: int

    @property
    def halves(self) -> int:
        """Evaluations of a displacement."""
        return 1 if self.pairs == "none" else 2

    @property
    def max_bytes(self) -> int:
        """Bytes of temporary memory."""
        return default_bytes(self.rows.device) if self.max_memory is None else self.max_memory
