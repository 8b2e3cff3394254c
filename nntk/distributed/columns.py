r"""Features of a kernel whose columns are spread over ranks: of energy by displacements, of plugin by parameters."""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from nntk.displacements import Displacements
from nntk.distributed.assembly import Assembly
from nntk.distributed.inputs import SharedInputs
from nntk.distributed.ranks.dealing import Deal
from nntk.distributed.ranks.mesh import Mesh
from nntk.estimators.features import features
from nntk.kernels.slices import slices
from nntk.models.isolation.evaluation import plain_arithmetic
from nntk.settings import KernelSettings

Block = tuple[slice, list[Tensor]]
"""Place of a block of this rank's inputs, and its features in the columns of this rank, [n, F_r] for each round."""


class FeatureColumns:
    """Columns of the features A [N, F] that belong to this rank, at the inputs of this rank.

    Args:
        mesh: The mesh.
        settings: Settings of the kernel, which has features.
        inputs: Inputs that the ranks agreed on.
        deterministic: Cut fixed chunks, and add in a fixed order.

    Attributes:
        total: Number F of features.
        parts: Columns of this rank, for each round.
        block_size: Number of inputs whose features are held together.
    """

    def __init__(self, mesh: Mesh, settings: KernelSettings, inputs: SharedInputs, deterministic: bool) -> None:
        self.mesh, self.settings, self.inputs = mesh, settings, inputs
        outputs = inputs.outputs
        if settings.estimator == "plugin":
            self.total = inputs.view.num_params * outputs
            self._deal = Deal(mesh.displacements, self.total, deterministic)
            self.parts = self._deal.parts
        else:
            self.total = settings.samples * outputs
            self._deal = Deal(mesh.displacements, settings.samples, deterministic)
            self.parts = [range(part.start * outputs, part.stop * outputs) for part in self._deal.parts]
        # Differences, features and float64 copies of a block take at most four times 8 bytes for each feature. Of
        # plugin every rank has whole gradients before it keeps a part.
        held = self.total if settings.estimator == "plugin" else sum(map(len, self.parts))
        own = max(1, settings.budget(inputs.view.device) // (32 * max(1, held)))
        self.block_size = min(mesh.agreement.exchange({"step": "preparing features"}, own))
        self._kept: list[Block] | None = None

    def blocks(self, x: SharedInputs | None = None) -> Iterable[Block]:
        """Return the features in float64, one block of inputs at a time; those of one block are kept.

        Args:
            x: Inputs that the ranks agreed on; those of the features by default.
        """
        if x is not None:
            return self._evaluate(x)
        if self._kept is not None:
            return self._kept
        if max(self.inputs.rows) <= self.block_size:
            self._kept = list(self._evaluate(self.inputs))
            return self._kept
        return self._evaluate(self.inputs)

    @plain_arithmetic()
    def own(self) -> Tensor:
        """Return all features of this rank, [N, F_r] in float64, in the order of its columns."""
        blocks = [torch.cat(parts, 1) for _, parts in self.blocks()]
        return torch.cat(blocks)

    def gather(self, parts: Iterable[Tensor]) -> Tensor:
        """Return weights of all features, [F, ...], from those of the columns of each rank, for each round."""
        return self._deal.gather(parts)

    def cut(self, weights: Tensor) -> list[Tensor]:
        """Return the weights of this rank's columns, for each round, of those of all features."""
        return [weights[part.start : part.stop] for part in self.parts]

    @plain_arithmetic()
    def project(self, vectors: Tensor) -> list[Tensor]:
        """Return products of the transposed features of this rank's columns with vectors, for each round.

        Args:
            vectors: This rank's part of v, [N] or [N, R], float64.

        Returns:
            [F_r] or [F_r, R], float64, summed over all inputs.
        """
        totals = [vectors.new_zeros(len(part), *vectors.shape[1:]) for part in self.parts]
        for block, pieces in self.blocks():
            for total, a in zip(totals, pieces, strict=True):
                total += a.T @ vectors[block]
        return [self.mesh.inputs.sum(total) for total in totals]

    @plain_arithmetic()
    def expand(self, weights: Sequence[Tensor], x: SharedInputs | None = None) -> Tensor:
        """Return products of the features with weights, [N] or [N, R], summed over all columns.

        Args:
            weights: Weights of this rank's columns, [F_r] or [F_r, R], for each round.
            x: Inputs that the ranks agreed on; those of the features by default.
        """
        count = len((self.inputs if x is None else x).x1)
        results = [part.new_zeros(count, *part.shape[1:]) for part in weights]
        for block, pieces in self.blocks(x):
            for result, a, part in zip(results, pieces, weights, strict=True):
                result[block] = a @ part
        return self._deal.sum(results)

    @plain_arithmetic()
    def diagonal(self) -> Tensor:
        """Return this rank's part of the diagonal of the kernel, [N], float64."""
        results = [self.inputs.x1.new_zeros(len(self.inputs.x1), dtype=torch.float64) for _ in self.parts]
        for block, pieces in self.blocks():
            for result, a in zip(results, pieces, strict=True):
                result[block] = a.square().sum(1)
        return self._deal.sum(results)

    @plain_arithmetic()
    def of_all(self, x: Tensor) -> Tensor:
        """Return the features of all columns at some inputs, [n, F] float64; nothing is exchanged."""
        view = self.inputs.view
        if not len(x):
            return torch.zeros(0, self.total, dtype=torch.float64, device=view.device)
        return features(Displacements(self.settings, view, range(self.settings.samples)), x).double()

    def _evaluate(self, inputs: SharedInputs) -> Iterator[Block]:
        assembly = Assembly(self.mesh, self.settings, inputs, self._deal.deterministic)
        # All ranks take as many steps; the last blocks of some are empty.
        for block in slices(max(1, *inputs.rows), self.block_size):
            yield (
                block,
                self._plugin(assembly, block)
                if self.settings.estimator == "plugin"
                else [part.transpose(0, 1).flatten(1).double() / self._root for part in assembly.features(block)],
            )

    def _plugin(self, assembly: Assembly, block: slice) -> list[Tensor]:
        _, coefficients, _ = assembly.weighted_differences(block)
        gradients = torch.cat(list(assembly.gradient_slabs(coefficients)), 2).flatten(1) / self._root
        return [gradients[:, part.start : part.stop].contiguous() for part in self.parts]

    @property
    def _root(self) -> float:
        return float(self.inputs.outputs) ** 0.5 if self.settings.outputs == "mean" else 1.0
