"""Making of a kernel from differences: chunk by chunk, all at once where every pair counts, or in groups.

:class:`nntk.NonlocalNTK` says what is wanted, and checks it; here it is done.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nntk.displacements.attention import Attention
from nntk.displacements.displacements import Displacements
from nntk.estimators.estimate import LEAST_GROUPS, Means, Tally
from nntk.estimators.gram_products import gram_products
from nntk.estimators.inner_products import Differences, join_differences, tell_of_differences
from nntk.estimators.jackknife import Energy, Jackknife, join_energies, tell_of_energies
from nntk.estimators.memory import MemoryPlan, free_bytes
from nntk.kernels.assemble import (
    StreamingSum,
    assemble,
    assemble_by_gradients,
    attended_energy,
    displacement_gram,
    inner_product_route,
)
from nntk.kernels.attention import AttentionState, attend
from nntk.kernels.fixed_weights import FixedKernel
from nntk.kernels.perturb import DEFAULT_BYTES
from nntk.kernels.perturb.config import default_bytes
from nntk.models.general import General
from nntk.models.mlp import Mlp
from nntk.models.request import Request

if TYPE_CHECKING:
    from nntk.kernel import NonlocalNTK

Model = Mlp | General


@dataclass(frozen=True)
class Evaluation:
    """A kernel's settings, and its model as it is now."""

    kernel: "NonlocalNTK"
    model: Model

    def plan(self, x1: Tensor, x2: Tensor | None) -> MemoryPlan:
        """What the kernel takes of memory."""
        outputs, columns = self.model.num_outputs(x1), len(x1 if x2 is None else x2)
        entry = {"trace": 1, "mean": 1, "diagonal": outputs, "full": outputs**2}[self.kernel.outputs]
        joint = len(x1) + (0 if x2 is None else columns)
        row = self.row_bytes(joint, outputs)
        at_once = (
            self.kernel.samples if self.kernel.estimator != "energy" else min(self.kernel.samples, self.at_once(row))
        )
        held = row * at_once
        if self.kernel.estimator != "energy":
            shape = (
                self.kernel.samples,
                (len(x1), joint - len(x1)),
                outputs,
                self.model.num_params,
                self.kernel.outputs == "full",
            )
            by_gram = inner_product_route(*shape) != "gradients"
            held += 8 * (self.kernel.samples**2 if by_gram else joint * outputs * self.model.num_params)
        return MemoryPlan(
            result=len(x1) * columns * entry * self.model.dtype.itemsize,
            held=held,
            temporary=self.kernel.max_memory or default_bytes(self.model.device),
            displacements=at_once,
            samples=self.kernel.samples,
            free=free_bytes(self.model.device),
        )

    def energy(self, drawn: Displacements, x1: Tensor, x2: Tensor | None) -> Tensor:
        """The energy form with weights of the displacements alone: a sum over chunks of them."""
        # The columns' inputs ride along: one pass, one generation of the noise.
        joint, weights = x1 if x2 is None else torch.cat((x1, x2)), drawn.row_weights
        kernel: Tensor | None = None
        for rows in self.pieces(drawn, joint):
            unit, norms = self.unit_differences(drawn, joint, rows, "odd" if self.kernel.antithetic else "none")
            part = assemble(
                unit[:, : len(x1)],
                weights[rows],
                norms,
                drawn.model.num_params,
                d2=None if x2 is None else unit[:, len(x1) :],
                normalization=self.kernel.normalization,
                outputs=self.kernel.outputs,
            )
            kernel = part if kernel is None else kernel.add_(part)
        assert kernel is not None, "there is at least one sample"
        return kernel

    def attended_energy(self, drawn: Displacements, x1: Tensor, x2: Tensor | None, keys: Tensor | None) -> StreamingSum:
        """The energy form under attention on outputs: chunks add up before the softmax's sums are known."""
        total = StreamingSum()
        for rows in self.pieces(drawn, x1 if x2 is None else torch.cat((x1, x2))):
            first, second, norms = self.attend(drawn, x1, x2, keys, rows)
            part = attended_energy(
                first, second, norms, drawn.model.num_params, self.kernel.normalization, self.kernel.outputs
            )
            total.add(part, first.statistics, None if second is None else second.statistics)
        for statistics in (total.statistics1, total.statistics2):
            if statistics is not None:
                drawn.warn_of(statistics)
        return total

    def keys(self, x1: Tensor, x2: Tensor | None) -> Tensor | None:
        """Outputs at the unmoved parameters, of the lines' and of the entries' inputs, where scores need them."""
        if not isinstance(self.kernel.weights, Attention) or self.kernel.weights.score != "dot":
            return None
        return self.model.outputs(x1 if x2 is None else torch.cat((x1, x2)))

    def attend(
        self, drawn: Displacements, x1: Tensor, x2: Tensor | None, keys: Tensor | None, places: Tensor
    ) -> tuple[AttentionState, AttentionState | None, Tensor]:
        """Differences under attention at the lines' and the entries' inputs, and the squared norms."""
        attention, joint = self.kernel.weights, x1 if x2 is None else torch.cat((x1, x2))
        assert isinstance(attention, Attention), "the caller looked"
        own = callable(attention.score)
        pairs = "none" if not self.kernel.antithetic else "odd" if own else "both"
        unit, norms = self.unit_differences(drawn, joint, places, pairs)
        priors, factors = drawn.priors[places], attention.factors(drawn.scales[places], unit.shape[-1])
        numbers = range(int(drawn.rows[places[0]]), int(drawn.rows[places[-1]]) + 1)

        def at(x: Tensor, place: slice) -> AttentionState:
            given = attention.given(x, numbers, self.kernel.antithetic) if own else None
            score = "given" if callable(attention.score) else attention.score
            return attend(unit[..., place, :], score, priors, factors, None if keys is None else keys[place], given)

        first = at(x1, slice(0, len(x1)))
        return first, None if x2 is None else at(x2, slice(len(x1), None)), norms

    def inner_product(self, x1: Tensor, x2: Tensor | None) -> Tensor:
        """The plugin or the unbiased form: all displacements at once, since every pair of them counts."""
        drawn = self.displacements()
        d1, d2, weights1, weights2, norms = self.everything(drawn, x1, x2)
        inputs = (len(x1), 0 if x2 is None else len(x2))
        route = inner_product_route(
            self.kernel.samples, inputs, d1.shape[-1], self.model.num_params, self.kernel.outputs == "full"
        )
        options: dict[str, Any] = {
            "d2": d2,
            "weights2": weights2,
            "estimator": self.kernel.estimator,
            "normalization": self.kernel.normalization,
            "outputs": self.kernel.outputs,
        }
        stream = (self.model.displaced, drawn.rows, self.kernel.seed, self.kernel.directions)
        if route == "gradients":
            return assemble_by_gradients(d1, weights1, norms, *stream, **options)
        return assemble(d1, weights1, norms, self.model.num_params, gram=displacement_gram(*stream), **options)

    def everything(
        self, drawn: Displacements, x1: Tensor, x2: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None, Tensor]:
        """All unit differences and weights at the lines' and the entries' inputs, and the squared norms."""
        if drawn.by_input:
            first, second, norms = self.attend(drawn, x1, x2, self.keys(x1, x2), drawn.places)
            for attended in (first, second):
                if attended is not None:
                    drawn.warn_of(attended.statistics)
            if second is None:
                return first.difference(), None, first.weights(), None, norms
            return first.difference(), second.difference(), first.weights(), second.weights(), norms
        joint, weights = x1 if x2 is None else torch.cat((x1, x2)), drawn.row_weights
        unit, norms = self.unit_differences(drawn, joint, drawn.places, "odd" if self.kernel.antithetic else "none")
        return unit[:, : len(x1)], None if x2 is None else unit[:, len(x1) :], weights, None, norms

    def tally(self, x1: Tensor, x2: Tensor | None) -> Tally:
        """Groups of displacements, and how a kernel and its error follow from them."""
        size, symmetric = max(1, self.kernel.samples // LEAST_GROUPS), x2 is None
        if self.kernel.estimator == "energy":
            make = functools.partial(self.group_energy, x1, x2, self.keys(x1, x2))
            if isinstance(self.kernel.weights, FixedKernel) and self.kernel.weights.proposal is None:
                return Means(lambda rows: make(rows).kernel, size)
            return Jackknife(make, join_energies, functools.partial(tell_of_energies, symmetric=symmetric), size)
        joint = x1 if x2 is None else torch.cat((x1, x2))
        stream = (
            self.model.displaced,
            self.kernel.seed,
            self.kernel.directions,
            self.kernel.max_memory or DEFAULT_BYTES,
        )
        tell = functools.partial(
            tell_of_differences,
            products=lambda numbers, rows, size: gram_products(numbers, rows, size, *stream),
            lines=len(x1),
            symmetric=symmetric,
            factor=1 if self.kernel.normalization == "paper" else self.model.num_params,
            unbiased=self.kernel.estimator == "unbiased",
            outputs=self.kernel.outputs,
        )
        make_differences = functools.partial(self.group_differences, joint, self.keys(joint, None))
        # A look multiplies all displacements anew: there are fewer of them.
        return Jackknife(make_differences, join_differences, tell, size, growth=1.5)

    def group_energy(
        self, x1: Tensor, x2: Tensor | None, keys: Tensor | None, rows: range
    ) -> Energy:  # fmt: skip
        """The energy form of some displacements alone, and what they weigh among others."""
        drawn = self.displacements(rows, partial=True)
        if drawn.by_input:
            total = self.attended_energy(drawn, x1, x2, keys)
            made = [statistics for statistics in (total.statistics1, total.statistics2) if statistics is not None]
            kernel, statistics = total.result(), drawn.among_all(torch.cat(made, 1))
        else:
            kernel, statistics = self.energy(drawn, x1, x2), drawn.row_statistics
        return Energy(kernel, statistics)

    def group_differences(self, x: Tensor, keys: Tensor | None, rows: range) -> Differences:
        """Some displacements' differences and weights, and what they weigh among others."""
        drawn = self.displacements(rows, partial=True)
        if drawn.by_input:
            attended, _, norms = self.attend(drawn, x, None, keys, drawn.places)
            unit, weights, statistics = attended.difference(), attended.weights(), drawn.among_all(attended.statistics)
        else:
            unit, _, weights, _, norms = self.everything(drawn, x, None)
            weights, statistics = weights[:, None], drawn.row_statistics
        return Differences(unit, weights, norms, drawn.rows, statistics)

    def displacements(self, rows: range | None = None, partial: bool = False) -> Displacements:
        """All displacements, or some; ``partial`` for a group of several that are weighed together."""
        kernel, model, numbers = self.kernel, self.model, rows or range(self.kernel.samples)
        made = torch.arange(numbers.start, numbers.stop, device=model.device)
        if partial and isinstance(model, General):
            # Draws of a stochastic model are a group's own, so that the scatter of groups is theirs too.
            model = model.with_draws(numbers.start)
        return Displacements(
            model, kernel.weights, kernel.gamma, made, kernel.seed, kernel.directions, kernel.antithetic, partial
        )

    def unit_differences(self, drawn: Displacements, x: Tensor, places: Tensor, pairs: str) -> tuple[Tensor, Tensor]:
        """Unit differences of some displacements, and the squared norms of the unit displacements."""
        kernel = self.kernel
        request = Request(
            drawn.rows[places], drawn.scales[places], kernel.seed, kernel.directions, pairs, kernel.propagation,
            kernel.precision, kernel.max_memory, kernel.samples,
        )  # fmt: skip
        return drawn.model.unit_differences(x, request)

    def pieces(self, drawn: Displacements, x: Tensor) -> Sequence[Tensor]:
        """Places of the displacements to assemble together, as the budget allows."""
        return torch.split(drawn.places, self.at_once(self.row_bytes(len(x), self.model.num_outputs(x))))

    def at_once(self, row_bytes: int) -> int:
        """Displacements to assemble together, each of so many bytes."""
        return max(64, (self.kernel.max_memory or DEFAULT_BYTES) // row_bytes)

    def row_bytes(self, number: int, outputs: int) -> int:
        """Bytes of a displacement at some inputs while the kernel is assembled."""
        # Four copies: the differences, and the features that assembly makes of them. Under attention twice, for pairs,
        # and what is made of scores in float64: those of both halves, three times over, and the weight.
        attends = isinstance(self.kernel.weights, Attention) and self.kernel.weights.by_input
        return max(1, number) * ((8 if attends else 4) * outputs * self.model.dtype.itemsize + (56 if attends else 0))
