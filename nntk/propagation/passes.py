"""Propagation of differences through any model whose functions have rules, chunk by chunk."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from nntk.kernels.perturb.config import CACHE
from nntk.kernels.philox.slabs import TILE
from nntk.models.request import Request
from nntk.propagation.rules import Group, Moved, NoRule, Pass, Watch

if TYPE_CHECKING:
    from nntk.models.general import General

_LEAST_BYTES = 2**20


def propagate(model: "General", x: Tensor, request: Request) -> Tensor:
    r"""Unit differences of a model's outputs by rules of difference propagation.

    Args:
        model: The model.
        x: Inputs, [N, ...], floating ones in float64.
        request: The displacements.

    Returns:
        [M, halves, N, C], in the dtype of the scales.

    Raises:
        NoRule: If the model calls a function that has no rule.
    """
    rows, parts = request.rows, []
    cut = _Plan.of(model, x, request)
    for inputs in x.split(cut.inputs) if len(x) else [x]:
        kept: list[tuple[Any, Any]] = []
        made: list[Tensor] = []
        for place in _pieces(len(rows), cut.group):
            group = _group(model, request, place, cut.holds)
            passes = (_pass(request, group, place.start, some, kept) for some in _pieces(len(group.rows), cut.rows))
            made += [evaluate(model, inputs, at) for at in passes]
        parts.append(torch.cat(made))
    return torch.cat(parts, dim=2)


def _group(model: "General", request: Request, some: slice, holds: bool) -> Group:
    """Some of the displacements, whose noise is held or not."""
    shapes = {ordinal: tuple(parameter.shape) for ordinal, parameter in model.displaced.items()}
    return Group(request.rows[some], request.seed, request.directions, request.scales.dtype, shapes, holds)


def _pass(request: Request, group: Group, start: int, some: slice, kept: list[tuple[Any, Any]]) -> Pass:
    """One evaluation of some of a group that starts somewhere, given what earlier ones at the same inputs kept."""
    scales = request.scales[start + some.start : start + some.stop]
    return Pass(group, some, scales, request.halves, max(_LEAST_BYTES, request.max_bytes // 4), kept)


def evaluate(model: "General", x: Tensor, at: Pass) -> Tensor:
    """Unit differences of one pass.

    Returns:
        [M, halves, N, C].

    Raises:
        NoRule: If the model calls a function that has no rule, or its outputs do not depend on what moves.
    """
    values, ordinals = model.tensors(torch.float64), {name: ordinal for ordinal, name in model.names.items()}
    given: dict[str, Tensor] = {}
    for name, value in values.items():
        ordinal = ordinals.get(name)
        single = model.rest[name] if ordinal is None else model.displaced[ordinal]
        # Anew in each pass: to another the noise belongs.
        given[name] = Moved.of(at, value, None, ordinal, single if single.dtype == at.dtype else None)
    inputs = Moved.of(at, x)
    inputs.shared, kept = True, len(at.kept)
    with Watch(), torch.compiler.set_stance("force_eager"):
        out = model.evaluate(given, inputs)
    if kept and not kept == len(at.kept) == at.position:
        raise NoRule("model does not call the same functions at every evaluation.")
    if not isinstance(out, Moved) or not out.moves or len(out) != len(x):
        raise NoRule("model must return a tensor with a row for each input, which what moves has part in.")
    unit = out.unit
    return unit.flatten(3) if unit.dim() > 3 else unit[..., None]


@dataclass(frozen=True)
class _Plan:
    """How many inputs and displacements make a pass, and of how many displacements noise is made together."""

    inputs: int
    rows: int
    group: int
    holds: bool

    @classmethod
    def of(cls, model: "General", x: Tensor, request: Request) -> "_Plan":
        """By what one input and two inputs make at one displacement: displacements of weights are no more for two."""
        one, two = (_trial(model, x[:n], request) for n in (1, 2))
        if len(x) < 2 or len(one.sizes) != len(two.sizes):
            two = _Trial([2 * size for size in one.sizes], 2 * one.kept)
        each = [max(0, b - a) for a, b in zip(one.sizes, two.sizes, strict=True)]
        fixed = [max(0, a - e) for a, e in zip(one.sizes, each, strict=True)]
        # A quarter of the budget for what is kept, one for noise; half for differences, which want to stay in a cache.
        budget, itemsize, cached = request.max_bytes, request.scales.itemsize, 4 * CACHE * request.halves
        inputs = min(
            len(x),
            (budget // 4 - 2 * one.kept + two.kept) // max(1, two.kept - one.kept),
            (budget // 2 // itemsize - sum(fixed)) // max(1, sum(each)),
            cached // max([1, *each]),
        )
        inputs = max(1, inputs)
        made = [inputs * e + f for e, f in zip(each, fixed, strict=True)]
        rows = min(cached // max([1, *made]), budget // 2 // itemsize // max(1, sum(made)))
        rows = max(1, min(len(request.rows), rows))
        d = sum(parameter.numel() for parameter in model.displaced.values())
        group = min(4 * TILE, budget // 4 // itemsize) // d
        return cls(inputs, rows, max(rows, group // rows * rows), group >= rows)


@dataclass(frozen=True)
class _Trial:
    """What a pass of one displacement makes."""

    sizes: list[int]
    """Numbers of each difference."""
    kept: int
    """Bytes of what is kept."""


def _trial(model: "General", x: Tensor, request: Request) -> _Trial:
    at = _pass(request, _group(model, request, slice(0, 1), holds=False), 0, slice(0, 1), [])
    evaluate(model, x, at)
    return _Trial(at.sizes, sum(leaf.nbytes for leaf in tree_leaves(at.kept) if isinstance(leaf, Tensor)))


def _pieces(length: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, length)) for start in range(0, length, size))
