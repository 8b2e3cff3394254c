"""The kernel of checked inputs, and that of streams of inputs, which is assembled in tiles."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nntk.displacements import Displacements
from nntk.estimators.energy import energy
from nntk.estimators.features import features
from nntk.estimators.inner_product import inner_product
from nntk.estimators.memory import check_room
from nntk.estimators.plan import MemoryPlan, Plan, memory_plan, plan
from nntk.estimators.rank_plan import RankPlan, Rates, rank_plan
from nntk.estimators.weighted import bytes_per_displacement
from nntk.kernels import checks
from nntk.kernels.assemble.reference import mirror
from nntk.models.data.inputs import Batch, bytes_of, concatenate
from nntk.models.data.streams import Source, Stream, blocks_of, example_of

_log = logging.getLogger("nntk")

_ADVICE = (
    "kernel.operator(x) has its products, solutions and spectra without the matrix, nntk.write_kernel(path, kernel, x) "
    "writes it to a file tile by tile, estimator='energy' holds the differences of few displacements at a time, and a "
    "smaller max_memory leaves less to the evaluation; kernel.plan(x) says what takes how much."
)
_CHUNK = 64
"""Displacements whose differences a tile must have room for."""


def assemble_kernel(displacements: Displacements, x1: Source, x2: Source | None) -> Tensor:
    """Return the kernel of checked inputs, if it fits in the memory that is free.

    Args:
        displacements: All displacements of the kernel.
        x1: Inputs of the rows, or a stream of them.
        x2: Inputs of the columns; None for a symmetric kernel.

    Returns:
        [N1, N2] with the axes of the outputs, in the model's dtype.

    Raises:
        ValueError: If the kernel is not finite, or a stream is not the same at every pass.
        MemoryError: If the kernel does not fit in the memory that is free.
    """
    if isinstance(x1, Stream) or isinstance(x2, Stream):
        return _of_streams(displacements, x1, x2)
    memory = memory_plan(displacements, x1, x2)
    _check_room(displacements, memory)
    estimator = energy if displacements.settings.estimator == "energy" else inner_product
    kernel = estimator(displacements, x1, x2)
    checks.finite("the kernel, from the model's outputs at displaced parameters,", kernel)
    return kernel


def kernel_plan(displacements: Displacements, x1: Source, x2: Source | None) -> Plan:
    """Return memory and route of a kernel, as :meth:`nntk.NonlocalNTK.plan` does, for streams too."""
    if not (isinstance(x1, Stream) or isinstance(x2, Stream)):
        return plan(displacements, x1, x2)
    sizes = _StreamSizes.of(displacements, x1, x2)
    route = plan(displacements, example_of(x1)[:1], None, sizes.largest_evaluation(x1, x2))
    return replace(route, **vars(_memory(displacements, x1, x2, sizes)))


def shared_plan(
    displacements: Displacements, x1: Source, x2: Source | None, ranks: int, over: str, rates: Rates
) -> RankPlan:
    """Return time and memory of a rank, as :meth:`nntk.NonlocalNTK.plan` does for several of them."""
    if isinstance(x1, Stream) or isinstance(x2, Stream):
        raise ValueError("x1 must not be a stream in a plan over ranks, each of which must know its inputs.")
    return rank_plan(displacements, x1, x2, ranks, over, rates)


def _check_room(displacements: Displacements, memory: MemoryPlan) -> None:
    _log.info("%s", memory)
    check_room("The kernel and what makes it", memory.total, displacements.model.device, _ADVICE)


@dataclass(frozen=True)
class _StreamSizes:
    """Numbers of inputs that are held at a time.

    Attributes:
        by_features: The kernel is a product of features, which each input needs once in a pass; else tiles of it are
            computed from inputs of rows and columns together.
        rows: Number of inputs of the rows whose features, or which themselves, are held during a pass over the columns.
        block: Number of inputs that are evaluated at a time.
        outputs: Number C of outputs.
    """

    by_features: bool
    rows: int
    block: int
    outputs: int

    @classmethod
    def of(cls, displacements: Displacements, x1: Source, x2: Source | None) -> "_StreamSizes":
        """Return the sizes that the budget allows: a half for what is held, a half for what is evaluated."""
        settings, model, example = displacements.settings, displacements.model, example_of(x1)[:1]
        outputs = model.num_outputs(model.inputs("x1", example))
        half = settings.budget(model.device) // 2
        # Copies of an input in float64.
        per_input = 8 * bytes_of(example)
        if settings.estimator == "energy" and settings.outputs in ("trace", "mean"):
            feature_bytes = settings.samples * outputs * model.dtype.itemsize
            block = max(1, half // (4 * feature_bytes + per_input))
            return cls(True, max(1, half // feature_bytes // block) * block, block, outputs)
        # Rows and columns of a tile are evaluated together.
        chunk = settings.samples if settings.estimator != "energy" else _CHUNK
        rows = max(1, half // (2 * (chunk * bytes_per_displacement(displacements, 1, outputs) + per_input)))
        return cls(False, rows, rows, outputs)

    def largest_evaluation(self, x1: Source, x2: Source | None) -> int:
        """Return the largest number of inputs that are evaluated together."""
        columns = len(x1 if x2 is None else x2)
        if self.by_features:
            return min(self.block, max(len(x1), columns))
        # A symmetric kernel of one tile has no columns of its own.
        rows = min(self.rows, len(x1))
        return rows if x2 is None and rows == len(x1) else rows + min(self.block, columns)


def _memory(displacements: Displacements, x1: Source, x2: Source | None, sizes: _StreamSizes) -> MemoryPlan:
    """Return the memory that a kernel of streams takes."""
    settings, example = displacements.settings, displacements.model.inputs("x1", example_of(x1)[:1])
    single, columns = memory_plan(displacements, example, None), x1 if x2 is None else x2
    entries = {"diagonal": sizes.outputs, "full": sizes.outputs**2}.get(settings.outputs, 1)
    entry_bytes = entries * displacements.model.dtype.itemsize
    rows, block = min(sizes.rows, len(x1)), min(sizes.block, len(columns))
    # A pass over the rows and one over the columns each hold a block, with the batch that it is joined with, and both.
    batch = max(x.batch_bytes for x in (x1, columns) if isinstance(x, Stream))
    held = 2 * (2 * (block * bytes_of(example) + batch) + batch)
    if sizes.by_features:
        held += settings.samples * sizes.outputs * displacements.model.dtype.itemsize * (rows + 4 * block)
    else:
        chunk = settings.samples if settings.estimator != "energy" else min(_CHUNK, settings.samples)
        held += (
            single.held
            + rows * bytes_of(example)
            + chunk * bytes_per_displacement(displacements, rows + block, sizes.outputs)
        )
    return replace(
        single,
        result=len(x1) * len(columns) * entry_bytes,
        sums=3 * rows * block * entry_bytes,
        copies=single.copies + 32 * bytes_of(example) * block,
        held=held,
    )


def _of_streams(displacements: Displacements, x1: Source, x2: Source | None) -> Tensor:
    """Return the kernel in tiles: for each part of the rows that is held, one pass over the columns."""
    settings, model = displacements.settings, displacements.model
    sizes = _StreamSizes.of(displacements, x1, x2)
    _check_room(displacements, _memory(displacements, x1, x2, sizes))
    columns = x1 if x2 is None else x2
    axes = {"diagonal": (sizes.outputs,), "full": (sizes.outputs, sizes.outputs)}.get(settings.outputs, ())
    kernel = torch.empty(len(x1), len(columns), *axes, dtype=model.dtype, device=model.device)

    def prepared(block: Batch) -> Batch:
        inputs = model.inputs("x1", block)
        return features(displacements, inputs) if sizes.by_features else inputs

    def tile(rows: Batch, cols: Batch, is_diagonal: bool) -> Tensor:
        if isinstance(rows, Tensor) and isinstance(cols, Tensor) and sizes.by_features:
            product = rows @ cols.mT
            return mirror(product) if is_diagonal else product
        return assemble_kernel(displacements, rows, None if is_diagonal else cols)

    for row_place, rows in _held_rows(x1, sizes, prepared):
        if x2 is None:
            kernel[row_place, row_place] = tile(rows, rows, True)
        for place, block in blocks_of(columns, sizes.block):
            if x2 is None and place.start >= row_place.start:
                break
            part = tile(rows, prepared(block), False)
            kernel[row_place, place] = part
            if x2 is None:
                kernel[place, row_place] = part.permute(1, 0, *range(part.dim() - 1, 1, -1))
    checks.finite("the kernel, from the model's outputs at displaced parameters,", kernel)
    return kernel


def _held_rows(x: Source, sizes: _StreamSizes, prepare: Callable[[Batch], Batch]) -> Iterator[tuple[slice, Batch]]:
    """Yield features, or inputs, of as many rows as are held at a time, with their places; they are of whole blocks."""
    start, parts = 0, list[Batch]()
    for place, block in blocks_of(x, sizes.block):
        parts.append(prepare(block))
        if place.stop - start >= sizes.rows or place.stop == len(x) or not sizes.by_features:
            joined = concatenate(parts)
            parts.clear()
            yield slice(start, place.stop), joined
            start = place.stop
