"""Experiments: named questions to a card, each with what is expected, which is recorded before anything is measured.

An experiment changes one thing about the design's evaluations, and times the changed call in turn with the unchanged
one. Its figure is the speed-up. What is expected follows from two times: that of the card, and that of the host.
"""

import importlib
import importlib.util
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

import nntk
from nntk.bench.card import trace
from nntk.bench.card.plan import Context, LeftOutError, Rows, Step, Unit
from nntk.bench.card.speeds import FAMILIES, differences, measured_roofs, workload
from nntk.bench.measure import data, timing
from nntk.bench.networks import ResNet
from nntk.bench.results.schema import Row
from nntk.kernels import tuning
from nntk.kernels.perturb.config import default_bytes
from nntk.kernels.philox.directions import parse

_ROUNDS = 5
BUDGETS = (2**28, 2**30, 2**31, 2**32)
"""Budgets of temporary memory, in bytes."""
CHUNKS = (2, 4, 9, 40)
"""Displacements of a chunk. With nine, the last wave of an H200's 132 multiprocessors is more than half empty."""

_HOST_A_CHUNK = {"gaussian": 316e-6, "rademacher": 135e-6, "flipout(8)": 367e-6, "lowrank(1)": 261e-6}
"""Seconds of the host for each chunk of the design's evaluations, where every launch goes through Triton: measured by a
driver that launches nothing."""
_HOST_A_KEPT_CHUNK = {"gaussian": 10e-6, "rademacher": 5e-6, "flipout(8)": 10e-6, "lowrank(1)": 8e-6}
"""The same in a repeated call: 1.6 us for each launch, measured in the same way; nothing else is counted."""
_DEVICE = {"gaussian": 26.4e-3, "rademacher": 25.8e-3, "flipout(8)": 20.5e-3, "lowrank(1)": 13.5e-3}
"""Seconds of the card for the design's evaluations: an H200's kernels as they were timed, kernels/perturb/HISTORY.md.
That of flipout was not: it is predicted, with the second-level cache."""
_RATE = 790e12
"""Products a second of that card; those of another card scale the times."""


@dataclass(frozen=True)
class Variant:
    """One side of an experiment.

    Attributes:
        name: Name.
        call: Function to time, of the number of the round.
        changed: What is changed meanwhile.
    """

    name: str
    call: timing.Case
    changed: Callable[[], AbstractContextManager[Any]] = nullcontext

    def __call__(self, number: int) -> object:
        """Make the call with the change."""
        with self.changed():
            return self.call(number)


def _measure(variants: Sequence[Variant], context: Context, about: str) -> Rows:
    """Time variants in turn, and yield the speed-up of each over the first."""
    times = timing.side_by_side({variant.name: variant for variant in variants}, _ROUNDS, context.device)
    base = times[variants[0].name]
    yield {"case": f"{about}: {variants[0].name}", "time_s": base.median, "samples_s": list(base.samples)}
    for variant in variants[1:]:
        taken = times[variant.name]
        yield {
            "case": f"{about}: {variant.name}", "speed_up": taken.ratio_to(base), "time_s": taken.median,
            "samples_s": list(taken.samples),
        }  # fmt: skip


def _device_seconds(family: str, context: Context) -> float:
    """Return the seconds of the card's kernels for a family, as an H200's scaled by the rate of products."""
    rate = measured_roofs(context).get("bf16", _RATE) if context.on_card else _RATE
    return _DEVICE[family] * _RATE / rate


def _host_seconds(family: str, chunk_count: float) -> float:
    """Return the seconds of the host for a number of chunks."""
    return chunk_count * (_HOST_A_KEPT_CHUNK if has_kept_launches() else _HOST_A_CHUNK)[family]


def has_kept_launches() -> bool:
    """Return True if launches are kept over the chunks of a call, so that Triton binds none of them again."""
    try:
        return importlib.util.find_spec("nntk.kernels.gpu.launches") is not None
    except ModuleNotFoundError:  # The folder of such a module is not there either.
        return False


def chunk_count(family: str, budget: int) -> int:
    """Return the number of chunks of the design's evaluations."""
    plan = _plan(family, budget)
    return int(-(-1024 // plan.chunk_samples) * -(-1024 // plan.block_inputs))


def _plan(family: str, budget: int) -> Any:
    from nntk.kernels.perturb.triton import chunks  # which needs Triton

    staged = chunks.matrix_bytes(1024, 1024, 2) if family == "gaussian" else 0
    return chunks.plan_chunks((784, 1024, 1024, 10), 1024, 1024, 2, 2, budget, parse(family), staged_bytes=staged)


def _expect(about: str, name: str, speed_up: float, because: str) -> Row:
    return {"case": f"{about}: {name}", "predicted": speed_up, "because": because}


# Budgets of temporary memory.


def _budgets(family: str, context: Context) -> Rows:
    # A rehearsal's budgets are as small as its network.
    shift = 0 if context.on_card else 8
    variants = [Variant(_power(budget), differences(context, family, budget >> shift)) for budget in BUDGETS]
    yield from _measure([Variant("default", differences(context, family)), *variants], context, family)


def _expected_of_budgets(family: str, context: Context) -> list[Row]:
    device, base = _device_seconds(family, context), chunk_count(family, default_bytes(context.device))
    longest = max(device, _host_seconds(family, base))
    rows = []
    for budget in BUDGETS:
        count = chunk_count(family, budget)
        host = _host_seconds(family, count)
        because = f"{count} chunks for {base}: {1e3 * host:.1f} ms of the host beside {1e3 * device:.1f} of the card"
        rows.append(_expect(family, _power(budget), longest / max(device, host), because))
    return rows


def _power(number: int) -> str:
    return f"2^{number.bit_length() - 1}"


# Share of the time in which the card has nothing to do.


def _idle(family: str, context: Context) -> Rows:
    for name, budget in _idle_budgets(context).items():
        call = differences(context, family, budget)
        spans = trace.spans_of(partial(call, 1), context.device)
        if not spans:
            raise LeftOutError("the profiler saw no kernel: the system may not permit it")
        busy = sum(span.duration for span in spans)
        yield {"case": f"{family}: {name}", "idle_share": trace.idle_share(spans), "time_s": busy, "form": "percent"}


def _idle_budgets(context: Context) -> dict[str, int]:
    return {"idle at the default budget": default_bytes(context.device), "idle at 2^28": 2**28}


def _expected_of_idle(family: str, context: Context) -> list[Row]:
    device, rows = _device_seconds(family, context), []
    for name, budget in _idle_budgets(context).items():
        count = chunk_count(family, budget)
        host = _host_seconds(family, count)
        because = f"{count} chunks: {1e3 * host:.1f} ms of the host beside {1e3 * device:.1f} of the card"
        rows.append(_expect(family, name, 1 - device / max(device, host), because) | {"form": "percent"})
    return rows


# Chunks of a given number of displacements.


@contextmanager
def _chunks_of(samples: int) -> Iterator[None]:
    """Let every chunk have this many displacements, whatever the budget allows."""
    launch: Any = importlib.import_module("nntk.kernels.perturb.triton.launch")
    planned = launch.plan_chunks

    def plan(*arguments: Any, **options: Any) -> Any:
        found = planned(*arguments, **options)
        groups = max(1, found.group_samples // samples)
        return replace(found, chunk_samples=samples, group_samples=groups * samples)

    with _replaced(launch, "plan_chunks", plan):
        yield


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    tuning.revise()
    try:
        yield
    finally:
        setattr(owner, name, before)
        tuning.revise()


def _chunk_sizes(family: str, context: Context) -> Rows:
    call = differences(context, family, 2**32 if context.on_card else None)
    variants = [Variant(str(samples), call, partial(_chunks_of, samples)) for samples in CHUNKS]
    yield from _measure([Variant("by 4 GiB", call), *variants], context, family)


def _expected_of_chunks(family: str, context: Context) -> list[Row]:
    device, base = _device_seconds(family, context), chunk_count(family, 2**32)
    longest = max(device, _host_seconds(family, base))
    rows = []
    for samples in CHUNKS:
        host = _host_seconds(family, 1024 / samples)
        # A hidden layer has 64 programs of 128 x 256 for each displacement, or 128 of half the size, two at a time.
        waves = 64 * samples / 132
        loss = math.ceil(waves) / waves
        because = f"{math.ceil(waves)} waves for {waves:.2f}; {1e3 * host:.1f} ms of the host"
        rows.append(_expect(family, str(samples), longest / max(device * loss, host), because))
    return rows


# Launches kept over the chunks of a call, and limits of registers.


@contextmanager
def launched_by_triton(limit: int | None = None) -> Iterator[None]:
    """Let every launch go through Triton's own binding; hidden steps with a limit of registers, if one is given."""
    from triton.runtime.jit import JITFunction

    run = JITFunction.run

    def bind(self: Any, *arguments: Any, **options: Any) -> Any:
        if limit is not None and getattr(self, "__name__", "") == "layer_step" and not _is_first(self, arguments):
            options["maxnreg"] = limit
        return run(self, *arguments, **options)

    with _replaced(JITFunction, "run", bind):
        yield


def _is_first(kernel: Any, arguments: Sequence[Any]) -> bool:
    """Return True for the step of layer 0, whose registers no limit fits."""
    place = list(kernel.arg_names).index("FIRST")
    return bool(arguments[place]) if place < len(arguments) else True


def _kept_launches(family: str, context: Context) -> Rows:
    call = differences(context, family, 2**28 if context.on_card else None)
    variants = [Variant("kept", call), Variant("bound by Triton", call, launched_by_triton)]
    yield from _measure(variants, context, family)


def _expected_of_kept_launches(family: str, context: Context) -> list[Row]:
    if not has_kept_launches():
        raise LeftOutError("this version keeps no launches")
    device, count = _device_seconds(family, context), chunk_count(family, 2**28)
    kept, bound = (max(device, count * host[family]) for host in (_HOST_A_KEPT_CHUNK, _HOST_A_CHUNK))
    micros = [f"{1e6 * host[family]:.0f}" for host in (_HOST_A_CHUNK, _HOST_A_KEPT_CHUNK)]
    because = f"{count} chunks of {micros[0]} us of the host, {micros[1]} if they are kept"
    return [_expect(family, "bound by Triton", kept / bound, because)]


def _registers(context: Context) -> Rows:
    widths = tuple(layer.in_features for layer in workload(context)[0].modules() if isinstance(layer, nn.Linear))
    network = data.he_network(
        (*widths, 10 if context.on_card else 3), nn.GELU, context.seed, context.device, biases=0.1
    )
    call = differences(context, "gaussian", network=network)
    variants = [
        Variant("as compiled", call, launched_by_triton),
        Variant("128 registers", call, partial(launched_by_triton, 128)),
    ]
    yield from _measure(variants, context, "gelu, gaussian")


def _expected_of_registers(context: Context) -> list[Row]:
    because = "two programs a multiprocessor: epilogues, a sixth of the time, run beside the other's products"
    return [_expect("gelu, gaussian", "128 registers", 1.15, because)]


# Noise in memory, and both products of a layer in one loop.


@contextmanager
def _on_path(path: str) -> Iterator[None]:
    """Let every layer that can take a path take it."""
    from nntk.kernels.perturb.triton import config

    chosen = config.choose_path_on

    def choose(target: Any, source: str, precision: str, width: int, *rest: Any) -> str:
        if config.applies(path, source, precision, width, target.arch):
            return path
        return chosen(target, source, precision, width, *rest)

    with _replaced(config, "choose_path_on", choose):
        yield


@contextmanager
def _wide_tiles() -> Iterator[None]:
    """Let the layers that sum in one loop have tiles of twice as many columns, with four stages."""
    from nntk.kernels.perturb.triton import config

    chosen = config.step_tiles_on

    def choose(target: Any, source: str, *rest: Any) -> Any:
        tiles = chosen(target, source, *rest)
        if source != "stacked":
            return tiles
        return replace(tiles, block_n=2 * tiles.block_n, num_stages=4, parts=2 * tiles.parts)

    with _on_path("stacked"), _replaced(config, "step_tiles_on", choose):
        yield


_ONE_LOOP: Mapping[str, Callable[[], AbstractContextManager[Any]]] = {
    "two loops": partial(_on_path, "staged"),
    "one loop": partial(_on_path, "stacked"),
    "one loop, 256 columns": _wide_tiles,
}


def _one_loop(family: str, context: Context) -> Rows:
    call = differences(context, family)
    variants = [Variant(name, call, changed) for name, changed in _ONE_LOOP.items()]
    yield from _measure(variants, context, family)


def _expected_of_one_loop(family: str, context: Context) -> list[Row]:
    because = "a tile multiplies for 16,384 clocks, and waits some 800 for its first loads once instead of twice"
    wide = "an H200 took 7.05 ms for a chunk with 256 columns in two loops, 6.61 with 128; one loop makes up for it"
    return [
        _expect(family, "one loop", (16_384 + 2 * 800) / (16_384 + 800), because),
        _expect(family, "one loop, 256 columns", 1.0, wide),
    ]


# Signs whose noise is written to memory.


def _staged_signs(context: Context) -> Rows:
    call = differences(context, "rademacher")
    variants = [Variant("in registers", call), Variant("staged", call, partial(_on_path, "staged"))]
    yield from _measure(variants, context, "rademacher")


def _expected_of_staged_signs(context: Context) -> list[Row]:
    because = "an H200 took 6.56 ms for a chunk staged, 6.46 in registers"
    return [_expect("rademacher", "staged", 6.46 / 6.56, because)]


# Rules with half of the budget.


def _rules(context: Context) -> Rows:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(context.seed)
        model = ResNet(nn.ReLU).to(context.device).eval()
    inputs, samples = (256, 64) if context.on_card else (2, 2)
    x = torch.randn(inputs, 3, 16, 16, generator=torch.Generator().manual_seed(context.seed)).to(context.device)
    budget = default_bytes(context.device)

    def call(max_memory: int, number: int) -> object:
        kernel = nntk.NonlocalNTK(
            model, gamma=1e-4, samples=samples, propagation="difference", seed=number, max_memory=max_memory
        )
        return kernel.differences(x)

    variants = [Variant("default", partial(call, budget)), Variant("half", partial(call, budget // 2))]
    yield from _measure(variants, context, "ResNet by rules")


def _expected_of_rules(context: Context) -> list[Row]:
    return [_expect("ResNet by rules", "half", 0.95, "twice as many passes, of kernels that still fill the card")]


@dataclass(frozen=True)
class Experiment:
    """Named question.

    Attributes:
        name: Name.
        question: What it decides.
        run: Function that measures; of a family and the context, or of the context alone.
        expect: Function that states what is expected, of the same arguments.
        families: Families that it is made for; empty where it has its own.
        estimate: Seconds of each on a card.
    """

    name: str
    question: str
    run: Callable[..., Rows]
    expect: Callable[..., Sequence[Row]]
    families: tuple[str, ...] = ()
    estimate: float = 6.0

    def units(self) -> Iterator[Unit]:
        """Yield a unit for each family."""
        if not self.families:
            yield Unit(self.name, self.run, self.estimate, 1.0, self.expect)
        for family in self.families:
            run, expect = partial(self.run, family), partial(self.expect, family)
            yield Unit(f"{self.name}, {family}", run, self.estimate, 1.0, expect)


EXPERIMENTS: Mapping[str, Experiment] = {
    experiment.name: experiment
    for experiment in (
        Experiment("budget", "is the host or the card the limit?", _budgets, _expected_of_budgets, FAMILIES),
        Experiment("idle", "does the card wait for the host?", _idle, _expected_of_idle, FAMILIES, 4.0),
        Experiment("kept launches", "what does binding cost?", _kept_launches, _expected_of_kept_launches, FAMILIES),
        Experiment("one loop", "do two loops drain the pipe?", _one_loop, _expected_of_one_loop,
                   ("gaussian", "rademacher")),
        Experiment("staged signs", "do signs wait for the noise?", _staged_signs, _expected_of_staged_signs),
        Experiment("maxnreg", "do two programs hide epilogues?", _registers, _expected_of_registers),
        Experiment("chunks", "does the last wave or the cache matter?", _chunk_sizes, _expected_of_chunks,
                   ("gaussian", "rademacher")),
        Experiment("rules", "do rules need their whole budget?", _rules, _expected_of_rules, estimate=30.0),
    )
}  # fmt: skip
"""Experiments by name, in the order in which they are made."""


def step() -> Step:
    """Return the step of all experiments."""
    units = tuple(unit for experiment in EXPERIMENTS.values() for unit in experiment.units())
    return Step("experiments", "questions to the card, each with what is expected", units)
