"""Rows of direct launches with kernels interpreted at addresses, and the memory that their buffers share."""

import ctypes
import dataclasses
import random
from types import SimpleNamespace

import pytest
import torch
from conftest import FAMILIES
from test_recordings import ROUTES, call_of, equal
from triton.tools.tensor_descriptor import TensorDescriptor
from triton_device import DEVICE, Allocated, without_kernels

from nntk.kernels.gpu import launches, recorder
from nntk.kernels.gpu.launches import Launch
from nntk.kernels.gpu.recorder import record, tensors_of
from nntk.kernels.gpu.rows import LaunchRow, in_rows, share_memory
from nntk.kernels.gpu.scratch import ALIGNMENT, Buffer, placed
from nntk.kernels.gpu.steps import Address, LaunchStep, OperatorStep, View
from nntk.kernels.perturb.triton import chunks, launch

pytestmark = pytest.mark.usefixtures("poisoned_memory")


def at(address, like):
    """What is at an address, as a tensor of the sizes, strides and dtype of another."""
    numbers = 1 + sum((size - 1) * stride for size, stride in zip(like.shape, like.stride(), strict=True))
    if not like.numel():
        return torch.empty_like(like)
    memory = (ctypes.c_char * (numbers * like.element_size())).from_address(address)
    return torch.frombuffer(memory, dtype=like.dtype).as_strided(like.shape, like.stride())


class Interpreted:
    """Stands for a compiled kernel that is called with addresses: the interpreter runs it on what is there."""

    def __init__(self, launch, arguments):
        """``arguments`` are those of the recorded launch, whose layouts are known."""
        self._launch, self._like, self.prepared = launch, list(arguments), 0

    def prepare(self, programs, arguments):
        """The launch with some arguments."""
        self.prepared += 1
        given = [self._tensor(argument, like) for argument, like in zip(arguments, self._like, strict=True)]
        return lambda stream: self._launch.kernel[programs,](*given, **self._launch.options)

    @staticmethod
    def _tensor(argument, like):
        if isinstance(like, TensorDescriptor):
            base = at(argument.base.data_ptr(), like.base)
            return TensorDescriptor(base, argument.shape, argument.strides, argument.block_shape)
        return at(argument, like) if isinstance(like, torch.Tensor) else argument


@pytest.fixture
def direct(monkeypatch):
    """Launches are recorded as those of compiled kernels, which are called with addresses."""
    if DEVICE == "cuda":
        pytest.skip("the interpreter stands for a card; test_recordings.py repeats calls on a real one")
    launched = recorder._Recorder.launched

    def with_kernel(self, launch, arguments):
        launched(self, dataclasses.replace(launch, ready=Interpreted(launch, arguments)), arguments)

    monkeypatch.setattr(recorder._Recorder, "launched", with_kernel)
    monkeypatch.setattr(launches, "current_stream", lambda: 0)


@pytest.mark.parametrize(("family", "path"), ROUTES)
def test_launches_at_addresses_have_the_bits_of_the_call(family, path, direct, monkeypatch):
    """Of other tensors and of the same ones, whose launches are kept; buffers share memory that was full of NaN."""
    monkeypatch.setattr(launch, "plan_chunks", lambda *_: chunks.ChunkPlan(2, 2, 3, 0))
    function = launch.mlp_differences.plain
    first, other = (call_of(family, path, seed, 4, activation="gelu", size=3) for seed in (0, 1))
    result, recording = record(function, first)
    expected = function(*other)
    assert equal(recording(tensors_of(other)), expected) and equal(recording(tensors_of(other)), expected)
    assert equal(recording(tensors_of(first)), result)


@pytest.mark.parametrize("directions", FAMILIES)
@pytest.mark.parametrize(("blocks", "activation"), [(1, "relu"), (2, "relu"), (3, "gelu"), (3, "sawtooth")])
def test_a_repeated_call_holds_no_more_memory(directions, blocks, activation, direct, monkeypatch):
    """But for a hundredth for alignment, also where operators of PyTorch compute activations between the launches."""
    monkeypatch.setattr(launch, "plan_chunks", lambda *_: chunks.ChunkPlan(258 // blocks, 16, 64, 0))
    without_kernels(monkeypatch)
    function = launch.mlp_differences.plain
    call = call_of(directions, samples=128, activation=activation, size=258)
    with Allocated() as plain:
        function(*call)
    recording = record(function, call)[1]
    with Allocated() as repeated:
        recording(tensors_of(call))
    assert 0 < repeated.peak <= 1.01 * plain.peak


def random_buffers(choice):
    """Buffers of some sizes, which are needed for some steps."""
    ranges = [sorted((choice.randrange(40), choice.randrange(40))) for _ in range(choice.randrange(30))]
    return [Buffer(choice.choice((0, 1, 512, 513, 5000, 10**6)), *steps) for steps in ranges]


def test_buffers_that_are_needed_together_do_not_overlap():
    """They are aligned, and take no more than all of them; buffers one after another take no more than the largest."""
    for seed in range(300):
        buffers = random_buffers(random.Random(seed))
        places, total = placed(buffers)
        parts = list(zip(buffers, places, strict=True))
        for number, (one, start) in enumerate(parts):
            assert start % ALIGNMENT == 0 and start + one.size <= total
            for other, begin in parts[:number]:
                together = one.first <= other.last and other.first <= one.last
                assert not together or start >= begin + other.size or begin >= start + one.size
        assert total <= sum(-(-one.size // ALIGNMENT) * ALIGNMENT for one in buffers)
    assert placed([Buffer(5000, step, step) for step in range(9)]) == ([0] * 9, 5120)
    assert placed([]) == ([], 0)


class Kept:
    """Stands for a compiled kernel; it keeps what it was prepared and launched with."""

    def __init__(self):
        """Nothing yet."""
        self.prepared, self.launched = [], []

    def prepare(self, programs, arguments):
        """The launch with some arguments."""
        self.prepared.append(arguments)
        return lambda stream: self.launched.append((programs, *arguments, stream))


def launch_of(*slots, ready=None):
    """A direct launch with the tensors in some slots, at eight bytes behind their beginnings."""
    addresses = [Address(place, View(slot, ((1,), (1,)), 2, False), slot, 8, None) for place, slot in enumerate(slots)]
    launched = Launch(None, 3, {}, None, ready or Kept())
    return LaunchStep(uses=set(slots), launch=launched, arguments=[None] * len(slots), addresses=addresses)


def tensor_at(address):
    """What a row asks of a tensor."""
    return SimpleNamespace(data_ptr=lambda: address)


def test_only_launches_whose_tensors_moved_are_prepared_again():
    """Each gets the addresses and the stream of the moment."""
    steps = [launch_of(0, 2), launch_of(1), launch_of(2)]
    (row,) = in_rows(steps)
    prepared = []
    for slots in ((100, 200, 300), (100, 200, 300), (100, 250, 300), (100, 250, 350), (100, 200, 300)):
        row.run([*map(tensor_at, slots)], 7)
        prepared.append([len(step.launch.ready.prepared) for step in steps])
        expected = [(3, slots[0] + 8, slots[2] + 8, 7), (3, slots[1] + 8, 7), (3, slots[2] + 8, 7)]
        assert [step.launch.ready.launched[-1] for step in steps] == expected
    assert prepared == [[1, 1, 1], [1, 1, 1], [1, 2, 1], [2, 2, 2], [3, 3, 3]]
    row.forget()
    row.run([*map(tensor_at, slots)], 7)
    assert [len(step.launch.ready.prepared) for step in steps] == [4, 4, 4]


def memory_step(slot, size=8):
    """An operator that makes memory."""
    options = {"dtype": torch.float32, "device": torch.device("cpu")}
    return OperatorStep(
        makes=[slot], is_needed=False, function=torch.empty_strided, arguments=[(size,), (1,)], options=options,
        memory=4 * size,
    )  # fmt: skip


def operator_step(uses, makes=()):
    """An operator that computes something."""
    return OperatorStep(uses=set(uses), makes=list(makes), function=torch.neg, arguments=[], options={})


def test_buffers_of_launches_alone_share_memory():
    """Those that begin and end between the same operators; not what an operator uses, nor what the call returns."""
    steps = [
        memory_step(1), launch_of(0, 1), memory_step(2), memory_step(3), launch_of(1, 2), memory_step(4),
        launch_of(2, 3), memory_step(7), launch_of(7), memory_step(8), launch_of(7, 8), operator_step([3], [5]),
        launch_of(5, 4), memory_step(6), launch_of(6, 4), launch_of(8),
    ]  # fmt: skip
    joined = in_rows(share_memory(steps, {4}, 9))
    kinds = ["memory" if getattr(step, "memory", None) else type(step).__name__ for step in joined]
    row, memory, operator = "LaunchRow", "memory", "OperatorStep"
    assert kinds == [memory, row, memory, row, memory, row, memory, row, operator, row, memory, row]
    assert [step.makes for step in joined if step.makes] == [[9], [3], [4], [10], [5], [11]]
    launched = [step for row in joined if isinstance(row, LaunchRow) for step in row.launches]
    assert [step.uses for step in launched] == [{0, 9}, {9}, {9, 3}, {9}, {9, 10}, {5, 4}, {11, 4}, {10}]
    places = {one.view.slot: one.offset - 8 for step in launched for one in step.addresses if one.slot == 9}
    # The buffers of slots 1 and 2 are needed together, and that of slot 7 after both.
    assert places == {1: 0, 2: ALIGNMENT, 7: 0}
    assert joined[0].arguments == [(2 * ALIGNMENT,), (1,)] and joined[0].options["dtype"] == torch.uint8
