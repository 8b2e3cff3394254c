"""Kernels over a mesh of ranks: each estimator as sums over the displacements of every rank."""

from collections.abc import Iterator
from functools import partial, reduce

import torch
from torch import Tensor

from nntk.distributed.evaluation import RankEvaluation, RelativeDifferences, check_weights, factors_within
from nntk.distributed.inputs import SharedInputs
from nntk.distributed.ranks.dealing import Deal
from nntk.distributed.ranks.mesh import Mesh
from nntk.distributed.sums import DiagonalSums, TileSums
from nntk.estimators.memory import check_room
from nntk.kernels import checks
from nntk.kernels.assemble import StreamingSum, nonlocal_gradients
from nntk.kernels.assemble.reference import gradient_weights, mirror
from nntk.kernels.fixed_weights import merge
from nntk.settings import KernelSettings

_ADVICE = (
    "Take over='inputs' with fewer inputs on each rank, nntk.distributed.write_kernel, or the operator of the kernel."
)


class Assembly:
    """Assembly of one kernel on all ranks.

    Args:
        mesh: The mesh.
        settings: Settings of the kernel.
        inputs: Inputs that the ranks agreed on.
        deterministic: Cut displacements into fixed chunks, and add in a fixed order.
        x: Inputs of this rank; those of rows and columns together by default.

    Attributes:
        deal: Displacements of each rank.
        evaluations: Evaluations of this rank's displacements, one for each round of the deal.
    """

    def __init__(
        self, mesh: Mesh, settings: KernelSettings, inputs: SharedInputs, deterministic: bool, x: Tensor | None = None
    ) -> None:
        self.mesh, self.settings, self.inputs = mesh, settings, inputs
        self.deal = Deal(mesh.displacements, settings.samples, deterministic)
        joint = inputs.joint if x is None else x
        with mesh.agreement.together("evaluating the model"):
            self.evaluations = [
                RankEvaluation(settings, inputs.view, joint, numbers, inputs.outputs) for numbers in self.deal.parts
            ]

    def rows(self) -> Tensor:
        """Return the rows of the kernel that belong to the inputs of this rank.

        Returns:
            [N1, N2] with the axes of the outputs, in the model's dtype; N2 counts the inputs of all columns of the
            mesh.
        """
        settings, inputs = self.settings, self.inputs
        with self.mesh.agreement.together("looking for memory"):
            entries = {"diagonal": inputs.outputs, "full": inputs.outputs**2}.get(settings.outputs, 1)
            columns = sum(inputs.rows if inputs.columns is None else inputs.columns)
            size = 3 * 8 * len(inputs.x1) * columns * entries
            check_room("The rows of the kernel and what makes them", size, inputs.view.device, _ADVICE)
        if settings.estimator != "energy":
            return self._inner_product(*(self._tiles(name) for name in (settings.outputs, settings.outputs, "trace")))
        if self.deal.deterministic:
            return self._energy_in_order()
        return self._energy(self._tiles(settings.outputs))

    def diagonal(self) -> Tensor:
        """Return the kernel of each input of this rank with itself, [N] with the axes of the outputs."""
        outputs = self.settings.outputs
        if self.settings.estimator != "energy":
            return self._inner_product(DiagonalSums(outputs), DiagonalSums(outputs), DiagonalSums("trace"))
        if not self.deal.deterministic:
            return self._energy(DiagonalSums(outputs))
        one = torch.ones(1, dtype=torch.float64, device=self.inputs.view.device)
        parts = []
        for features in self.features():
            sums = DiagonalSums(outputs)
            sums.add(features)
            parts.append(sums.finish(one, lambda total: total))
        return self._finite(self.deal.sum(parts))

    def features(self, x: slice = slice(None)) -> list[Tensor]:
        """Return the features of this rank's displacements at some of its inputs, [m, n, C], for each round.

        Only energy has features of single displacements. They are in the model's dtype.
        """
        with self.mesh.agreement.together("evaluating displacements"):
            differences = [each.at(each.displacements.indices, x) for each in self.evaluations]
        scales = self._factors([part.statistics for part in differences])
        d = self.inputs.view.num_params
        return [
            part.features(self.settings, d).mul_(scale.to(part.unit.dtype)[:, None])
            for part, scale in zip(differences, scales, strict=True)
        ]

    def gradient_slabs(self, coefficients: list[Tensor]) -> Iterator[Tensor]:
        """Yield the nonlocal gradients of all displacements, [n, C, p] float64, for one parameter after another.

        Args:
            coefficients: Coefficients of this rank's displacements, [m, n, C] float64, for each round.
        """
        inputs, settings = self.inputs, self.settings
        count, outputs = coefficients[0].shape[1:]
        with self.mesh.agreement.together("looking for memory"):
            largest = max(parameter.numel() for parameter in inputs.view.displaced.values())
            size = 3 * 8 * count * outputs * largest
            advice = "Take estimator='energy', or over='inputs' with fewer inputs on each rank."
            check_room("The nonlocal gradients of the largest parameter", size, inputs.view.device, advice)
        for index, parameter in inputs.view.displaced.items():

            def gradients_of_round(
                a: Tensor, evaluation: RankEvaluation, index: int = index, parameter: Tensor = parameter
            ) -> Tensor:
                with self.mesh.agreement.together("multiplying displacements"):
                    if not len(a) or not count:
                        return a.new_zeros(count, outputs, parameter.numel())
                    ones, ids = a.new_ones(len(a)), evaluation.displacements.sample_ids
                    return nonlocal_gradients(
                        a, ones / parameter.numel(), ones, {index: parameter}, ids, settings.seed, settings.directions
                    )

            pairs = zip(coefficients, self.evaluations, strict=True)
            yield self.deal.sum(gradients_of_round(a, evaluation) for a, evaluation in pairs)

    def weighted_differences(
        self, x: slice = slice(None)
    ) -> tuple[list[RelativeDifferences], list[Tensor], list[Tensor]]:
        r"""Return the differences of this rank, with coefficients and weights among all displacements, for each round.

        Returns:
            The differences; coefficients :math:`a_m = d\,\alpha_m D_m / |E_m|^2`, [m, n, C], float64; and weights
            :math:`\alpha_m`, [m, n] or [m, 1], float64.
        """
        settings = self.settings
        with self.mesh.agreement.together("evaluating displacements"):
            differences = [each.at(each.displacements.indices, x) for each in self.evaluations]
        scales = self._factors([part.statistics for part in differences])
        weights = [part.weights * scale.square() for part, scale in zip(differences, scales, strict=True)]
        if settings.estimator == "unbiased":
            with self.mesh.agreement.together("weighing displacements"):
                _check_concentration(weights)
        factor = 1 if settings.normalization == "paper" else self.inputs.view.num_params
        coefficients = [
            gradient_weights(part.unit, alpha, part.squared_norms, factor)
            for part, alpha in zip(differences, weights, strict=True)
        ]
        return differences, coefficients, weights

    def _tiles(self, outputs: str) -> TileSums:
        return TileSums(self.mesh.inputs, self.inputs.rows, self.inputs.columns, outputs)

    def _factors(self, statistics: list[Tensor]) -> list[Tensor]:
        """Return the factors of this rank's features, [J] for each round, from their statistics, [3, J]."""
        merged = reduce(merge, (part[0] for part in self.deal.gather_each(part[None] for part in statistics)))
        with self.mesh.agreement.together("weighing displacements"):
            check_weights(self.settings, merged)
        return [factors_within(part, merged) for part in statistics]

    def _energy(self, sums: TileSums | DiagonalSums) -> Tensor:
        r"""Return :math:`\sum_r c_r(x) c_r(x') \sum_{m \in r} A_m(x) A_m(x')`, with the features of each rank."""
        (evaluation,), agreement, attends = self.evaluations, self.mesh.agreement, self.settings.attends_to_outputs
        chunks = list(torch.split(evaluation.displacements.indices, self.inputs.chunk))
        # All ranks take as many steps, where some have a displacement more than others.
        longest = -(-self.settings.samples // self.mesh.displacements.size)
        chunks += [evaluation.displacements.indices[:0]] * (-(-longest // self.inputs.chunk) - len(chunks))
        # Where features are passed on after each chunk, ranks agree before that; else once after all chunks.
        if isinstance(sums, TileSums) and self.mesh.inputs.size > 1:
            for indices in chunks:
                with agreement.together("evaluating displacements"):
                    features, statistics = self._features_of(evaluation, indices)
                sums.add(features, statistics if attends else None)
        else:
            with agreement.together("evaluating displacements"):
                for indices in chunks:
                    features, statistics = self._features_of(evaluation, indices)
                    sums.add(features, statistics if attends else None)
        (scale,) = self._factors([statistics if sums.statistics is None else sums.statistics])
        return self._finite(sums.finish(scale, partial(self.mesh.displacements.sum, overwrite=True)))

    def _features_of(self, evaluation: RankEvaluation, indices: Tensor) -> tuple[Tensor, Tensor]:
        differences = evaluation.at(indices)
        return differences.features(self.settings, self.inputs.view.num_params), differences.statistics

    def _energy_in_order(self) -> Tensor:
        """Return the energy form, whose fixed chunks are added in their order."""
        count, symmetric = len(self.inputs.x1), self.inputs.x2 is None
        columns = slice(0 if symmetric else count, None)
        total, width = StreamingSum(), len(self.inputs.joint)
        block = self.deal.block(count)
        for evaluation in self.evaluations:
            with self.mesh.agreement.together("evaluating displacements"):
                features, statistics = self._features_of(evaluation, evaluation.displacements.indices)
                sums = self._tiles(self.settings.outputs)
                sums.add(features)
                one = torch.ones(1, dtype=torch.float64, device=features.device)
                tile = sums.finish(one, lambda part: part).to(features.dtype)
            statistics = statistics.expand(3, width).contiguous()
            every = [part[0] for part in self.deal.gather_each([statistics[None]])]
            for rows, of_part in zip(self.deal.blocks_of_rows(tile), every, strict=True):
                # Rows that fill up the last block belong to no input.
                own = _padded(of_part[:, :count][:, block], len(rows))
                total.add(rows.clone(), own, of_part[:, columns].clone())
        assert total.statistics2 is not None, "there is a round"
        merged = total.statistics2
        with self.mesh.agreement.together("weighing displacements"):
            check_weights(self.settings, merged)
        kernel = self.deal.rows_of_blocks(total.result(), count)
        return self._finite(mirror(kernel) if symmetric else kernel)

    def _inner_product(
        self, sums: TileSums | DiagonalSums, pairs: TileSums | DiagonalSums, weights: TileSums | DiagonalSums
    ) -> Tensor:
        r"""Return plugin or unbiased by the nonlocal gradients, one parameter tensor after another.

        A rank computes what its displacements contribute to the gradients at its inputs. Their sum over ranks is
        exchanged, N C numbers for each parameter, and each rank multiplies a part of the parameters. For unbiased, the
        pairs of a displacement with itself are subtracted.
        """
        differences, coefficients, alphas = self.weighted_differences()
        one = torch.ones(1, dtype=torch.float64, device=self.inputs.view.device)
        whole, axis = self.deal.deterministic, self.mesh.displacements
        for gradients in self.gradient_slabs(coefficients):
            part = range(gradients.shape[2]) if whole else axis.part(gradients.shape[2])
            sums.add(gradients[:, :, part.start : part.stop].permute(2, 0, 1).contiguous())
        total = sums.finish(one, (lambda tile: tile) if whole else axis.sum)
        if self.settings.estimator == "plugin":
            return self._finite(total)
        same_terms, weight_terms = [], []
        for part_of, a, alpha in zip(differences, coefficients, alphas, strict=True):
            same, weight = pairs.fresh(), weights.fresh()
            same.add(a * part_of.squared_norms.sqrt()[:, None, None])
            weight.add(alpha.expand(len(a), a.shape[1])[:, :, None].contiguous())
            same_terms.append(same.finish(one, lambda tile: tile))
            weight_terms.append(weight.finish(one, lambda tile: tile))
        divisor = 1 - self.deal.sum(weight_terms)
        total = total - self.deal.sum(same_terms)
        return self._finite(total / divisor.view(*divisor.shape, *[1] * (total.dim() - divisor.dim())))

    def _finite(self, kernel: Tensor) -> Tensor:
        """Return the kernel in the model's dtype, if it is finite on every rank."""
        with self.mesh.agreement.together("checking the kernel"):
            checks.finite("the kernel, from the model's outputs at displaced parameters,", kernel)
        return kernel.to(self.inputs.view.dtype)


def _padded(values: Tensor, length: int) -> Tensor:
    """Return statistics [3, n] with further columns, those of inputs at which one displacement has all the weight."""
    missing = length - values.shape[1]
    return torch.cat((values, values.new_tensor([[0.0], [1.0], [1.0]]).expand(3, missing)), 1) if missing else values


def _check_concentration(weights: list[Tensor]) -> None:
    largest = max((float(alpha.max()) for alpha in weights if alpha.numel()), default=0.0)
    if largest > 0.5:
        raise ValueError(
            f"estimator must be 'energy' or 'plugin' on several ranks where one displacement has a weight of "
            f"{largest:.3g}, more than half of all; got 'unbiased', which would lose its digits. Raise the temperature "
            "of the attention, take more samples, or compute the kernel on one rank by nntk.NonlocalNTK."
        )
