"""Propagation of differences through any model whose functions have rules, chunk by chunk."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from nntk import rules as rules  # Imported to be entered.
from nntk.kernels.perturb.config import CACHE
from nntk.moved import Moved, NoRule, Pass

_LEAST_BYTES = 2**20


class Evaluated(Protocol):
    """What is known of a model here; :class:`nntk.general.General` is one."""

    evaluate: Callable[[Any, Tensor], Any]
    displaced: dict[int, Tensor]
    names: dict[int, str]
    rest: Mapping[str, Tensor]

    def tensors(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """All tensors of the model by name, floating ones in a dtype."""
        ...


@dataclass(frozen=True)
class Displacing:
    """Which displacements, and what may be used."""

    rows: Tensor
    """Their numbers, [M]."""
    scales: Tensor
    """Their scales, [M], in the model's dtype."""
    seed: int
    directions: str
    halves: int
    max_bytes: int

    def pass_of(self, some: slice, kept: list[Any]) -> Pass:
        """One evaluation of some of them, given what earlier ones at the same inputs kept."""
        budget = max(_LEAST_BYTES, self.max_bytes // 4)
        return Pass(self.rows[some], self.scales[some], self.seed, self.directions, self.halves, budget, kept)


def propagate(model: Evaluated, x: Tensor, displacing: Displacing) -> Tensor:
    r"""Unit differences of a model's outputs by rules of difference propagation.

    Args:
        model: The model.
        x: Inputs, [N, ...], floating ones in float64.
        displacing: The displacements.

    Returns:
        [M, halves, N, C], in the dtype of the scales.

    Raises:
        NoRule: If the model calls a function that has no rule.
    """
    rows, parts = displacing.rows, []
    cut = _Plan.of(model, x, displacing)
    for inputs in x.split(cut.inputs) if len(x) else [x]:
        kept: list[Any] = []
        chunks = _pieces(len(rows), cut.rows)
        parts.append(torch.cat([evaluate(model, inputs, displacing.pass_of(some, kept)) for some in chunks]))
    return torch.cat(parts, dim=2)


def evaluate(model: Evaluated, x: Tensor, at: Pass) -> Tensor:
    """Unit differences of one pass, [M, halves, N, C].

    Raises:
        NoRule: If the model calls a function that has no rule, or its outputs do not depend on what moves.
    """
    values, ordinals = model.tensors(torch.float64), {name: ordinal for ordinal, name in model.names.items()}
    given: dict[str, Tensor] = {}
    for name, value in values.items():
        ordinal = ordinals.get(name)
        single = model.rest[name] if ordinal is None else model.displaced[ordinal]
        # Anew in each pass: to another the noise belongs.
        given[name] = Moved.of(at, value, None, ordinal, single)
    inputs = Moved.of(at, x)
    inputs.shared = True
    out = model.evaluate(given, inputs)
    if not isinstance(out, Moved) or not out.moves or len(out) != len(x):
        raise NoRule("model must return a tensor with a row for each input, which what moves has part in.")
    unit = out.unit
    return unit.flatten(3) if unit.dim() > 3 else unit[..., None]


@dataclass(frozen=True)
class _Plan:
    """How many inputs and displacements make a pass."""

    inputs: int
    rows: int

    @classmethod
    def of(cls, model: Evaluated, x: Tensor, displacing: Displacing) -> "_Plan":
        """By what one input at one displacement makes: a quarter of the budget for what is kept, half for differences.

        Each pass makes its noise anew, so that it wants many inputs; differences want to stay in a core's cache.
        """
        trial = displacing.pass_of(slice(0, 1), [])
        evaluate(model, x[:1], trial)
        kept = sum(leaf.nbytes for leaf in tree_leaves(trial.kept) if isinstance(leaf, Tensor))
        itemsize = displacing.scales.itemsize
        columns = min(4 * CACHE // max(1, trial.widest), displacing.max_bytes // 2 // max(1, trial.made * itemsize))
        columns *= trial.halves
        inputs = max(1, min(len(x), displacing.max_bytes // 4 // max(1, kept), columns // trial.halves))
        return cls(inputs, max(1, columns // (trial.halves * inputs)))


def _pieces(length: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, length)) for start in range(0, length, size))
