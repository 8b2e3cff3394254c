"""Tasks of tuning: the choices of the kernels at typical shapes, and the call in which each is timed."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch

from nntk.bench.suites.op_arguments import ArgumentMakers
from nntk.bench.suites.ops import OpCase
from nntk.kernels.activations import Relu
from nntk.kernels.perturb.triton import config as tiles
from nntk.kernels.tuning import Key, Tunable, rounded, tunables

TUNABLES = tunables()
"""Every choice that can be measured, by name."""
WIDTHS = (1024, 256, 4096, 64)
"""Widths of layers; the most common first, since a budget may end before all are tuned."""
INPUTS = (1024, 256, 2048, 64)
"""Numbers of inputs N. With antithetic pairs a hidden layer has two columns an input; beyond 2048 all are alike."""
MATRIX_ROWS = (4096, 1024, 256)
"""Numbers of rows of kernel matrices."""
_MULTIPLY_ADDS = 2.0**40
"""Work of one timed call: a few milliseconds of a large card."""
_MAX_DIFFERENCES = 2**30
"""Largest number of values in the differences of one call."""

ForcedChoice = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Task:
    """One choice at one key.

    Attributes:
        tunable: The choice.
        key: Values that the choice depends on.
        case: The op that uses the choice, at a shape where it decides the time.
        forced: Choices that are forced meanwhile, so that the op uses this one.
    """

    tunable: Tunable[Any]
    key: Key
    case: OpCase
    forced: Sequence[ForcedChoice] = ()

    @property
    def name(self) -> str:
        """Name of the task for readers."""
        parts = (f"{axis} {part}" for axis, part in zip(self.tunable.axes, self.key, strict=True))
        return f"{self.tunable.name}: {', '.join(parts)}"


def tasks(device: torch.device) -> list[Task]:
    """Return every task, the most common first.

    Args:
        device: Device of the calls.

    Returns:
        The tasks; paths of layers come after the steps that they choose from.
    """
    makers = ArgumentMakers(device)
    return [*_steps(makers), *_paths(makers), *_rank_updates(makers), *_pairs(makers)]


def select_tasks(choices: Sequence[str], shape: str, device: torch.device) -> list[Task]:
    """Select tasks by choice and shape.

    Args:
        choices: Names of choices; empty for all.
        shape: Text that a task's name must contain; empty for any.
        device: Device of the calls.

    Returns:
        The tasks, in their order.

    Raises:
        ValueError: If there is no such choice or shape; the message lists the known ones.
    """
    for name in choices:
        if name not in TUNABLES:
            raise ValueError(f"CHOICE must be one of {', '.join(TUNABLES)}; got {name!r}")
    named = [task for task in tasks(device) if not choices or task.tunable.name in choices]
    selected = [task for task in named if shape in task.name]
    if not selected:
        raise ValueError(f"--shape must be part of a name such as {named[0].name!r}; got {shape!r}")
    return selected


def _shapes() -> Iterator[tuple[int, int]]:
    """Yield widths and numbers of inputs, the common before the rare."""
    pairs = [(width, inputs) for width in WIDTHS for inputs in INPUTS]
    yield from sorted(pairs, key=lambda pair: WIDTHS.index(pair[0]) + INPUTS.index(pair[1]))


def _network(makers: ArgumentMakers, source: str, precision: str, width: int, inputs: int) -> OpCase:
    """Return a case of two layers of equal width; the second has all products of a hidden layer, the first has half."""
    # Five products a displacement: two for each member of the pair in the second layer, one in the first.
    work = 5.0 * width * width * inputs
    rows = int(max(16, min(4096, _MULTIPLY_ADDS / work, _MAX_DIFFERENCES / (2 * inputs * width))))
    arguments = makers.network((width,) * 3, inputs, rows, source, precision, Relu(), 2**34)
    return OpCase(
        "mlp_differences", f"{source} {precision} M={rows} N={inputs} {width}-{width}-{width}", arguments, precision
    )


def _steps(makers: ArgumentMakers) -> Iterator[Task]:
    step, path = TUNABLES["layer_step"], TUNABLES["layer_path"]
    for precision in ("bf16", "tf32", "fp32"):
        for width, inputs in _shapes():
            for source in tiles.GENERATED:
                key = (source, precision, width, width, 2 * inputs)
                # In layer 0 both members of a pair share their columns, so that its key differs from this one.
                in_registers = [
                    _forced(path, (*rounded(key[:4]), columns, first), tiles.Path("step"))
                    for columns, first in ((inputs, True), (2 * inputs, False))
                ]
                yield Task(step, rounded(key), _network(makers, source, precision, width, inputs), in_registers)
            if precision == "bf16":
                yield from _steps_from_memory(makers, width, inputs)


def _steps_from_memory(makers: ArgumentMakers, width: int, inputs: int) -> Iterator[Task]:
    """Yield the tiles of the paths that read noise from memory, where the family of the noise makes no difference."""
    step, path = TUNABLES["layer_step"], TUNABLES["layer_path"]
    for chosen in ("staged", "stacked"):
        forced = [
            _forced(path, (*rounded(("gaussian", "bf16", width, width)), columns, first), tiles.Path(taken))
            for columns, first, taken in ((inputs, True, "staged"), (2 * inputs, False, chosen))
        ]
        key = (chosen, "bf16", width, width, 2 * inputs)
        yield Task(step, rounded(key), _network(makers, "gaussian", "bf16", width, inputs), forced)


def _paths(makers: ArgumentMakers) -> Iterator[Task]:
    path = TUNABLES["layer_path"]
    for width, inputs in _shapes():
        for source in tiles.GENERATED:
            for first in (False, True):
                key = (source, "bf16", width, width, inputs if first else 2 * inputs, first)
                yield Task(path, rounded(key), _network(makers, source, "bf16", width, inputs))


def _forced(tunable: Tunable[Any], key: Key, config: Any) -> ForcedChoice:
    return lambda: tunable.forced(key, config)


def _rank_updates(makers: ArgumentMakers) -> Iterator[Task]:
    tunable = TUNABLES["rank_update"]
    for rows in MATRIX_ROWS:
        case = OpCase("energy", f"trace M=8192 N={rows} C=1", makers.energy(8192, rows, 1, "trace"))
        yield Task(tunable, (rows, rows, True, "rows", 1), case)


def _pairs(makers: ArgumentMakers) -> Iterator[Task]:
    tunable = TUNABLES["layer_pair"]
    for rows in MATRIX_ROWS:
        case = OpCase("structured_ntk", f"trace N={rows} 1024-1024-1024-1", makers.local((1024, 1024, 1024, 1), rows))
        yield Task(tunable, (rows, rows, 1, True, True), case)
