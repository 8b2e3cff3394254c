"""Repeated calls: the bits, the memory and the conditions of recordings, with kernels interpreted or on a card."""

import functools
import gc
import random
import threading
import weakref
from types import SimpleNamespace

import pytest
import torch
from conftest import inputs, mlp
from triton_device import DEVICE, Allocated, kernel_arguments, without_kernels

from nntk.kernels import tuning
from nntk.kernels.gpu import launches, recorder
from nntk.kernels.gpu.ready import Ready
from nntk.kernels.gpu.recorder import NotRecordable, Recorded, record, tensors_of
from nntk.kernels.perturb.triton import chunks, launch

PATHS = {
    "gaussian": ("step", "stationary", "staged", "stacked", "fused"),
    "rademacher": ("step", "staged", "stacked", "fused"),
    "flipout(3)": ("step",),
    "lowrank(1)": ("step",),
    "lowrank(2)": ("step",),
}
ROUTES = [(family, path) for family, paths in PATHS.items() for path in paths]
PAIRS, ACTIVATIONS = ("odd", "none", "both"), ("relu", "gelu")
CASES = [(*route, PAIRS[n % 3], ACTIVATIONS[n % 2]) for n, route in enumerate(ROUTES)]

pytestmark = pytest.mark.usefixtures("poisoned_memory")


def call_of(family="gaussian", path=None, seed=0, samples=7, pairs="odd", activation="relu", size=5):
    """Arguments of the op; another seed gives other weights, inputs, displacements and scales."""
    model = mlp(20, 20 if path == "fused" else 70, 3, activation=activation, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    scales = 0.05 + 0.1 * torch.rand(samples, generator=generator)
    ids = torch.randperm(max(50, samples), generator=generator)[:samples]
    return kernel_arguments(model, inputs(size, 20, seed=seed), ids, scales, family, pairs=pairs, path=path)


def equal(results, expected):
    """Whether all bits are."""
    return all(torch.equal(result, one) for result, one in zip(results, expected, strict=True))


@pytest.mark.parametrize(("family", "path", "pairs", "activation"), CASES)
def test_a_repeated_call_has_the_bits_of_the_call(family, path, pairs, activation, monkeypatch):
    """With other numbers in every tensor, in chunks and groups of which the last are shorter."""
    monkeypatch.setattr(launch, "plan_chunks", lambda *_: chunks.ChunkPlan(3, 2, 4, 0))
    function = launch.mlp_differences.plain
    first, other = (call_of(family, path, seed, 5, pairs, activation, size=3) for seed in (0, 1))
    result, recording = record(function, first)
    expected = function(*other)
    assert not equal(result, expected)
    assert equal(recording(tensors_of(other)), expected) and equal(recording(tensors_of(first)), result)


@pytest.mark.parametrize("blocks", [1, 2])
def test_a_repeated_call_holds_no_more_memory(blocks, monkeypatch):
    """Buffers end after their last use, those of an input block before the next; results do not."""
    without_kernels(monkeypatch)
    monkeypatch.setattr(launch, "plan_chunks", lambda *_: chunks.ChunkPlan(64 // blocks, 4, 8, 0))
    function, call = launch.mlp_differences.plain, call_of(samples=16, size=64)
    with Allocated() as plain:
        function(*call)
    recording = record(function, call)[1]
    with Allocated() as repeated:
        recording(tensors_of(call))
    assert 0 < repeated.peak <= plain.peak


def test_displacement_products_are_repeated():
    """Of operands for each displacement and of shared ones."""
    function = launch.displacement_products.plain
    for shape in ((5, 20), (7, 5, 20)):
        for family in ("gaussian", "flipout(3)", "lowrank(1)"):
            first, other = (
                (
                    torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE),
                    17,
                    3,
                    torch.arange(seed, 7 + seed, device=DEVICE),
                    1,
                    2,
                    family,
                    2**24,
                )
                for seed in (0, 1)
            )
            recording = record(function, first)[1]
            assert torch.equal(recording(tensors_of(other)), function(*other)), (shape, family)


@pytest.fixture
def direct(monkeypatch):
    """Calls are recorded as where compiled kernels are launched directly."""
    monkeypatch.setattr(launches, "are_direct", lambda: True)


class Counted:
    """A function whose own calls are counted."""

    def __init__(self, function):
        """None yet."""
        self.calls, self._function = 0, function

    def __call__(self, *arguments):
        """Call it."""
        self.calls += 1
        return self._function(*arguments)


def test_the_third_call_of_a_signature_is_repeated(direct):
    """A change of shape, strides, alignment, dtype, setting or configuration makes another signature."""
    counted = Counted(lambda x, factor: (x * factor).sum(1))
    function, x = Recorded(counted), torch.arange(64.0).view(8, 8)
    for number, calls in enumerate((1, 2, 2, 2)):
        assert torch.equal(function(x + number, 3.0), ((x + number) * 3.0).sum(1)) and counted.calls == calls
    for change in ((x[:4], 3.0), (x.T, 3.0), (x.flatten()[1:57].view(7, 8), 3.0), (x.double(), 3.0), (x, 2.0)):
        before = counted.calls
        assert torch.equal(function(*change), (change[0] * change[1]).sum(1)) and counted.calls == before + 1
    tuning.revise()
    before = counted.calls
    function(x, 3.0)
    assert counted.calls == before + 1


NOT_RECORDABLE = {
    "a number is read": lambda x: x * float(x.sum()),
    "a condition is read": lambda x: x if bool((x > 0).all()) else -x,
    "a result has as many entries as numbers say": lambda x: x[x > 0],
    "a tensor comes from elsewhere": lambda x: x + ELSEWHERE,
    "a tensor is seen in another dtype": lambda x: x.view(torch.int32) + 1,
}
ELSEWHERE = torch.ones(8, 8)


@pytest.mark.parametrize("why", NOT_RECORDABLE)
def test_calls_that_depend_on_numbers_are_made_each_time(why, direct):
    """The results are right whatever the numbers are."""
    plain, function = NOT_RECORDABLE[why], Recorded(NOT_RECORDABLE[why])
    for x in (torch.ones(8, 8), -torch.ones(8, 8), torch.arange(-5.0, 59).view(8, 8), torch.zeros(8, 8)):
        assert torch.equal(function(x), plain(x))
    with pytest.raises(NotRecordable):
        record(plain, (torch.ones(8, 8),))


def test_inputs_may_share_memory_if_they_do_not_overlap(direct):
    """As parameters that are parts of one vector do; the next ones need not. Others are not recorded."""
    flat, counted = torch.arange(48.0), Counted(lambda a, b: (a[1:] - b[:-1], a * 2, b.view(4, 4).T.contiguous()))
    function = Recorded(counted)
    for a, b in [(flat[16:32], flat[:16])] * 2 + [
        (flat[:16], flat[32:]),
        (flat[:16], flat[:16].clone()),
        (flat[:16],) * 2,
    ]:
        assert equal(function(a, b), (a[1:] - b[:-1], a * 2, b.view(4, 4).T))
    assert counted.calls == 2
    for a, b in ((flat[:16],) * 2, (flat[:16], flat[4:20])):
        with pytest.raises(NotRecordable):
            record(lambda a, b: (a[6:] - b[:-6], a * 2), (a, b))


def test_views_and_writes_are_repeated(direct):
    """Of what is given and of what is made: slices, steps, transposes and expanded axes; results may be views."""

    def plain(x, y):
        made = torch.zeros(2, 8, 8)
        made[0].T.copy_(x)
        made[1, ::2] = y[None, :].expand(4, 8)
        made[:, 1:3].mul_(2)
        return made[1].T, made.sum(0)[:, 2:4], torch.cat([x, y[None]], 0)

    function = Recorded(plain)
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        x, y = torch.randn(8, 8, generator=generator), torch.randn(8, generator=generator)
        assert equal(function(x, y), plain(x, y))


STEPS = (
    lambda a, b: a + 1.5,
    lambda a, b: a.T if a.dim() == 2 else a[1:],
    lambda a, b: torch.empty(a.shape).copy_(a),
    lambda a, b: torch.empty_like(a).zero_().add_(a),
    lambda a, b: torch.cat([a.flatten(), b.flatten()]),
    lambda a, b: a.double().float(),
    lambda a, b: a.flatten()[::2],
    lambda a, b: a.flatten()[None].expand(3, -1),
    lambda a, b: a.flatten().unfold(0, 2, 1) if a.numel() > 1 else a,
    lambda a, b: a.flatten().split(max(1, a.numel() // 2))[-1],
    lambda a, b: torch.zeros(a.numel() + 3)[1:-2].copy_(a.flatten()),
    lambda a, b: a.contiguous().clone().view(-1)[-2:].mul_(2),
    lambda a, b: a.flatten().sort(stable=True)[0].cumsum(0),
    lambda a, b: a.flatten().index_select(0, torch.arange(a.numel()).flip(0)),
    lambda a, b: torch.where(a > 0, a, -a),
)


def random_program(seed):
    """A function that makes tensors of tensors, forgets some of these, and returns the last ones."""

    def program(*given):
        choice, pool = random.Random(seed), [*given, given[0].T]
        for _ in range(choice.randint(3, 25)):
            made = choice.choice(STEPS)(choice.choice(pool), choice.choice(pool))
            pool += [made] if 0 < made.numel() < 4000 else []
            if choice.random() < 0.3:
                pool.pop(choice.randrange(len(pool)))
        return tuple(pool[-3:])

    return program


def test_random_programs_are_repeated():
    """Views of views, of what is forgotten, and of results; writes to parts; strides of results included."""
    for seed in range(200):
        program, generator = random_program(seed), torch.Generator().manual_seed(seed)
        first, other = (
            [torch.randn(shape, generator=generator)[..., 1:] for shape in ((5, 4), (7,), (3, 8))] for _ in range(2)
        )
        _, recording = record(program, first)
        for tensors in (other, first):
            results, expected = recording(tensors), program(*tensors)
            assert equal(results, expected), seed
            assert [one.stride() for one in results] == [one.stride() for one in expected], seed


def test_recordings_hold_no_tensors(direct):
    """Neither those that were given nor those that were made."""
    function, made = Recorded(lambda x: (x * 2).cumsum(0)), []
    for _ in range(3):
        x = torch.ones(1000)
        made += [weakref.ref(x), weakref.ref(function(x))]
        del x
    gc.collect()
    assert [one() for one in made] == [None] * 6


def test_recordings_are_few(direct, monkeypatch):
    """Those repeated least recently make room for others, and a call of too many steps is made each time."""
    monkeypatch.setattr(recorder, "_MOST_STEPS", 10)
    counted = Counted(lambda x, steps: functools.reduce(lambda y, _: y + 1, range(steps), x))
    function, x = Recorded(counted), torch.arange(3.0)

    def calls(steps, times):
        before = counted.calls
        for _ in range(times):
            assert torch.equal(function(x, steps), x + steps)
        return counted.calls - before

    assert calls(6, 4) == 2 and calls(4, 4) == 2  # Ten steps.
    assert calls(6, 1) == 0 and calls(3, 4) == 2  # That of four steps is forgotten.
    assert calls(4, 4) == 2 and calls(6, 1) == 1  # So are those of six and of three.
    assert calls(11, 4) == 5  # The second call is made again, since it is not recordable.


def in_c(launched):
    """A function in C, which has no closure, that adds its arguments to a list."""
    return functools.partial(lambda kept, *given, **_: kept.append(given), launched)


def without_attributes(launched):
    """A launcher of another kind."""
    return lambda *arguments: launched.append(arguments)


class Launcher:
    """Stands for Triton's launcher, which hands the arguments of a launch to a function in C."""

    global_scratch_size = profile_scratch_size = 0

    def __init__(self, launched, named=()):
        """Launches are added to a list; some versions may pass more arguments, by name."""
        self.launch, self._named = in_c(launched), dict(named)

    def __call__(self, *arguments):
        """Launch."""
        self.launch(*arguments, **self._named)


@pytest.mark.parametrize("kind", ["known", "named", "other", "with scratch"])
def test_launchers_that_are_not_known_are_called_as_ever(kind):
    """Each prepared launch has its own grid and arguments, and the stream of the moment."""
    launched = []
    run = Launcher(launched, {"more": 1} if kind == "named" else ())
    if kind == "with scratch":
        run.global_scratch_size = 16
    if kind == "other":
        run = without_attributes(launched)
    source = SimpleNamespace(signature={0: "*fp32", 1: "i32"})
    compiled = SimpleNamespace(run=run, function=7, packed_metadata=(), metadata=SimpleNamespace(), src=source)
    ready = Ready(compiled)
    first, second = ready.prepare(5, [1024, 3]), ready.prepare(6, [2048, 4])
    assert launched == []
    for submit, stream in ((first, 11), (second, 12), (first, 13)):
        submit(stream)
    grids = [(5, 1, 1, 11), (6, 1, 1, 12), (5, 1, 1, 13)]
    assert [tuple(one[:5]) for one in launched] == [(*grid, 7) for grid in grids]
    assert [tuple(one[-2:]) for one in launched] == [(1024, 3), (2048, 4), (1024, 3)]


def test_threads_share_recordings(direct):
    """Each has its own tensors."""
    function, wrong = Recorded(lambda x: torch.cat([x, x * 2]).cumsum(0)), []

    def work(number):
        for step in range(50):
            x = torch.full((100,), float(100 * number + step))
            if not torch.equal(function(x), torch.cat([x, x * 2]).cumsum(0)):
                wrong.append((number, step))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
