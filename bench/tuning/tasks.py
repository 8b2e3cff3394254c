"""What is tuned: the choices of the kernels at the shapes that users have, and the call that each is timed in."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch

from nntk.bench.suites.op_arguments import ArgumentMakers
from nntk.bench.suites.ops import OpCase
from nntk.kernels.perturb.activations import Relu
from nntk.kernels.perturb.triton import config as tiles
from nntk.kernels.tuning import Key, Tunable, rounded, tunables

WIDTHS = (1024, 256, 4096, 64)
"""Of layers; the commonest first, since a budget may end before all are tuned."""
INPUTS = (1024, 256, 2048, 64)
"""Numbers N, of which a hidden layer has two columns each for antithetic pairs; beyond 2048 all are alike."""
LINES = (4096, 1024, 256)
"""Of kernel matrices."""
_MULTIPLY_ADDS = 2.0**40
"""Work of one timed call: some milliseconds of a large card."""
_MOST_NUMBERS = 2**30
"""Numbers of the differences in one call."""

Forced = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Task:
    """One choice at one key.

    Attributes:
        tunable: What is chosen.
        key: What it depends on.
        case: The op that takes it, at a shape where the choice decides the time.
        given: Choices that are forced meanwhile, so that the op asks for this one.
    """

    tunable: Tunable[Any]
    key: Key
    case: OpCase
    given: Sequence[Forced] = ()

    @property
    def name(self) -> str:
        """What a reader calls it."""
        parts = (f"{axis} {part}" for axis, part in zip(self.tunable.axes, self.key, strict=True))
        return f"{self.tunable.name}: {', '.join(parts)}"


def tasks(device: torch.device) -> list[Task]:
    """Every task, the ones that most users meet first.

    Args:
        device: Where the calls work.

    Returns:
        The tasks; paths of layers come behind the steps that they choose from.
    """
    made = ArgumentMakers(device)
    return [*_steps(made), *_paths(made), *_rank_updates(made), *_pairs(made)]


def wanted(choices: Sequence[str], shape: str, device: torch.device) -> list[Task]:
    """Some of the tasks.

    Args:
        choices: Names of choices; empty for all.
        shape: Text that a task's name must contain; empty for any.
        device: Where the calls work.

    Returns:
        The tasks, in their order.

    Raises:
        ValueError: If there is no such choice or shape; the message lists what there is.
    """
    for name in choices:
        if name not in tunables():
            raise ValueError(f"CHOICE must be one of {', '.join(tunables())}; got {name!r}")
    named = [task for task in tasks(device) if not choices or task.tunable.name in choices]
    found = [task for task in named if shape in task.name]
    if not found:
        raise ValueError(f"--shape must be part of a name such as {named[0].name!r}; got {shape!r}")
    return found


def _shapes() -> Iterator[tuple[int, int]]:
    """Widths and inputs, the common before the rare."""
    pairs = [(width, inputs) for width in WIDTHS for inputs in INPUTS]
    yield from sorted(pairs, key=lambda pair: WIDTHS.index(pair[0]) + INPUTS.index(pair[1]))


def _network(made: ArgumentMakers, source: str, precision: str, width: int, inputs: int) -> OpCase:
    """Two layers of equal width: the second has all of a hidden layer's products, the first half of them."""
    # Two products of two halves behind the first layer, one before.
    each = 5.0 * width * width * inputs
    rows = int(max(16, min(4096, _MULTIPLY_ADDS / each, _MOST_NUMBERS / (2 * inputs * width))))
    arguments = made.network((width,) * 3, inputs, rows, source, precision, Relu(), 2**34)
    return OpCase(
        "mlp_differences", f"{source} {precision} M={rows} N={inputs} {width}-{width}-{width}", arguments, precision
    )


def _steps(made: ArgumentMakers) -> Iterator[Task]:
    step, path = (tunables()[name] for name in ("layer_step", "layer_path"))
    for precision in ("bf16", "tf32", "fp32"):
        for width, inputs in _shapes():
            for source in tiles.GENERATED:
                key = (source, precision, width, width, 2 * inputs)
                # Layer 0, where halves share their columns, has a key of its own, and no say in this one.
                in_registers = [
                    _forced(path, (*rounded(key[:4]), columns, first), tiles.Path("step"))
                    for columns, first in ((inputs, True), (2 * inputs, False))
                ]
                yield Task(step, rounded(key), _network(made, source, precision, width, inputs), in_registers)


def _paths(made: ArgumentMakers) -> Iterator[Task]:
    path = tunables()["layer_path"]
    for width, inputs in _shapes():
        for source in tiles.GENERATED:
            for first in (False, True):
                key = (source, "bf16", width, width, inputs if first else 2 * inputs, first)
                yield Task(path, rounded(key), _network(made, source, "bf16", width, inputs))


def _forced(tunable: Tunable[Any], key: Key, config: Any) -> Forced:
    return lambda: tunable.forced(key, config)


def _rank_updates(made: ArgumentMakers) -> Iterator[Task]:
    tunable = tunables()["rank_update"]
    for lines in LINES:
        case = OpCase("energy", f"trace M=8192 N={lines} C=1", made.energy(8192, lines, 1, "trace"))
        yield Task(tunable, (lines, lines, True, "rows", 1), case)


def _pairs(made: ArgumentMakers) -> Iterator[Task]:
    tunable = tunables()["layer_pair"]
    for lines in LINES:
        case = OpCase("structured_ntk", f"trace N={lines} 1024-1024-1024-1", made.local((1024, 1024, 1024, 1), lines))
        yield Task(tunable, (lines, lines, 1, True, True), case)
