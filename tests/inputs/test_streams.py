"""Streams of batches: the kernel is that of all inputs together, and few of them are held."""

import numpy as np
import pytest
import torch
from conftest import inputs, mlp, relative_error
from masked_models import Classifier, tokens
from torch.utils.data import DataLoader, TensorDataset
from triton_device import Allocated

from nntk import Attention, NonlocalNTK, Stream, write_kernel

SETTINGS = {
    "energy": {},
    "mean": {"outputs": "mean", "normalization": "paper"},
    "attention": {"weights": Attention(temperature=0.5)},
    "diagonal": {"outputs": "diagonal"},
    "full": {"outputs": "full"},
    "unbiased": {"estimator": "unbiased", "samples": 64},
    "plugin": {"estimator": "plugin", "samples": 64},
}


def loader(x, size, **options):
    """A DataLoader of one tensor."""
    return DataLoader(TensorDataset(x), size, **options)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_stream_has_the_kernel_of_its_inputs(settings):
    """With rows and columns held in parts, symmetric and not, with a tensor on one side."""
    kernel = NonlocalNTK(mlp(3, 12, 2), **{"samples": 1024, "max_memory": 2**20, **settings})
    x, y = inputs(70, 3), inputs(9, 3, seed=2)
    K = kernel(loader(x, 16))
    assert K.dtype == torch.float32
    assert relative_error(K, kernel(x)) < 1e-5
    assert torch.equal(K, K.permute(1, 0, *range(K.dim() - 1, 1, -1)))
    for rows, columns in ((loader(x, 16), loader(y, 4)), (loader(x, 16), y), (x, loader(y, 4))):
        assert relative_error(kernel(rows, columns), kernel(x, y)) < 1e-5


def test_the_size_of_batches_changes_no_bit():
    """Blocks have a size of their own, whatever the batches."""
    kernel, x = NonlocalNTK(mlp(3, 12, 2), samples=512, max_memory=2**20), inputs(70, 3)
    first = kernel(loader(x, 1))
    for size in (7, 16, 70, 100):
        assert torch.equal(kernel(loader(x, size)), first)
    assert torch.equal(kernel(Stream([x[:3], x[3:40], (x[40:],)])), first)


@pytest.mark.parametrize("number", [40, 90], ids=["wide", "narrow"])
def test_operators_of_streams(number):
    """Products, solutions, eigenvalues and predictions, where there are more features than inputs or fewer."""
    kernel, x, v = NonlocalNTK(mlp(3, 12, 1), samples=64, max_memory=2**20), inputs(number, 3), torch.ones(number)
    streamed, held = kernel.operator(loader(x, 16)), kernel.operator(x)
    assert streamed.shape == (number, number)
    assert relative_error(streamed @ v, held @ v) < 1e-5
    assert relative_error(streamed.solve(v, 1.0), held.solve(v, 1.0)) < 1e-4
    assert relative_error(streamed.eigvalsh(5), held.eigvalsh(5)) < 1e-5
    assert relative_error(streamed.diagonal(), held.diagonal()) < 1e-5
    w = torch.ones(64)
    assert relative_error(streamed.expand(w, loader(x[:9], 4)), held.expand(w, x[:9])) < 1e-5


def batches(number=12, widths=(5,)):
    """Batches of tokens in the manner of Hugging Face, with labels, padded to different lengths."""
    x = tokens(number)
    parts = torch.arange(number).split(4)
    return [
        {**{name: tensor[part, : widths[i % len(widths)]] for name, tensor in x.items()}, "labels": part}
        for i, part in enumerate(parts)
    ]


def test_batches_of_several_tensors_with_labels():
    """A key holds the labels; a kernel leaves them aside."""
    kernel, x = NonlocalNTK(Classifier(), samples=32), tokens(12)
    stream = Stream(batches(), targets="labels")
    assert relative_error(kernel(stream), kernel(x)) < 1e-5
    assert stream.targets.tolist() == list(range(12))
    pairs = DataLoader(TensorDataset(x["input_ids"], x["attention_mask"]), 5)
    assert relative_error(kernel(pairs), kernel(x)) < 1e-5


def test_batches_may_be_padded_to_different_lengths():
    """Features of each batch need no other: what is masked does not count."""
    kernel, x = NonlocalNTK(Classifier(), samples=32), tokens(12)
    x["attention_mask"][:, 4] = 0
    x["attention_mask"][:, 0] = 1
    parts = torch.arange(12).split(4)
    cut = [{name: tensor[part, : 4 + i % 2] for name, tensor in x.items()} for i, part in enumerate(parts)]
    assert relative_error(kernel(Stream(cut)), kernel(x)) < 1e-5


class Counted:
    """Batches that are made when they are read, and never held together."""

    def __init__(self, number, size, width):
        self.number, self.size, self.width = number, size, width

    def __iter__(self):
        for start in range(self.number):
            yield inputs(self.size, self.width, seed=start)


def test_memory_is_held_to_its_plan():
    """The inputs take many times the budget; what is allocated stays within the plan."""
    kernel = NonlocalNTK(mlp(2**13, 2, 1), samples=8, directions="rademacher", max_memory=2**20)
    stream = Stream(Counted(64, 4, 2**13))
    total = len(stream) * 2**13 * 4
    plan = kernel.plan(stream)
    with torch.no_grad(), Allocated() as allocated:
        kernel(stream)
    assert allocated.peak <= plan.total
    assert plan.total < total / 2 and plan.result == 4 * len(stream) ** 2
    with torch.no_grad(), Allocated() as allocated:
        kernel.operator(stream) @ torch.ones(len(stream))
    assert allocated.peak <= plan.total


def test_a_pass_leaves_random_numbers_alone():
    """A DataLoader draws a seed for its workers; the caller's generator stays as it is."""
    kernel, x = NonlocalNTK(mlp(3, 4, 1), samples=8), inputs(9, 3)
    before = torch.get_rng_state()
    kernel(loader(x, 4))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("tile", [None, 16])
def test_matrices_of_streams_in_files(tile, tmp_path):
    """write_kernel reads a stream tile by tile, resumes it, and tells another stream apart."""
    kernel, x, y = NonlocalNTK(mlp(3, 8, 1), samples=32), inputs(40, 3), inputs(7, 3, seed=2)
    path = tmp_path / "k.npy"
    matrix = torch.tensor(np.array(write_kernel(path, kernel, loader(x, 9), tile=tile)))
    assert relative_error(matrix, kernel(x)) < 1e-5
    calls = []
    write_kernel(path, kernel, loader(x, 9), tile=tile, progress=lambda *done: calls.append(done))
    assert calls == []
    cross = write_kernel(tmp_path / "c.npy", kernel, loader(x, 9), y, tile=tile)
    assert relative_error(torch.tensor(np.array(cross)), kernel(x, y)) < 1e-5
    with pytest.raises(ValueError, match="another inputs"):
        write_kernel(path, kernel, loader(x + 1, 9), tile=tile)


class Changes:
    """Batches that change from pass to pass."""

    def __init__(self, change):
        self.passes, self.change = 0, change

    def __iter__(self):
        self.passes += 1
        x = inputs(12, 3)
        return iter([x[:6], x[6:]] if self.passes == 1 else self.change(x))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda x: [x[:6], x[6:].flip(0)], "batch 1 is another one than in the first pass"),
        (lambda x: [x[:6]], "there were 1, and 2 in the first pass"),
        (lambda x: [x[:6], x[6:], x[:6]], "batch 2 is another one"),
        (lambda x: [x[:5], x[5:]], "batch 0 is another one"),
    ],
    ids=["shuffled", "short", "long", "other batches"],
)
def test_every_pass_must_equal_the_first(change, text):
    """A stream that shuffles by itself, ends early or goes on is found by checksums."""
    kernel = NonlocalNTK(mlp(3, 4, 1), samples=8)
    for call in (kernel, lambda x: kernel.operator(x) @ torch.ones(12)):
        with pytest.raises(ValueError, match=text):
            call(Changes(change))


KERNEL = NonlocalNTK(mlp(3, 4, 1), samples=8)
X = inputs(6, 3)
ERRORS = {
    "shuffle": (lambda: KERNEL(loader(X, 2, shuffle=True)), ValueError, "the DataLoader shuffles; use shuffle=False"),
    "generator": (lambda: KERNEL(x for x in [X]), TypeError, "got generator, which can be read once"),
    "no batches": (lambda: KERNEL(Stream([])), ValueError, "batches must hold an input at least"),
    "a tensor": (lambda: Stream(X), TypeError, "batches must be an iterable of batches, got Tensor"),
    "targets": (lambda: Stream([X], targets=3), TypeError, "targets must be True, False or a key, got 3"),
    "no pairs": (lambda: KERNEL(Stream([X], targets=True)), TypeError, "batch 0 must be a pair .* got Tensor"),
    "no key": (lambda: KERNEL(Stream([{"x": X}], "y")), TypeError, "mapping with targets 'y', got dict with 'x'"),
    "bad rows": (lambda: KERNEL(Stream([X, (X, X[:2])])), ValueError, r"batch 1\[1\] has 2 rows, but batch 1\[0\]"),
    "bad batch": (lambda: KERNEL(Stream([3.0])), TypeError, "batch 0 must be a torch.Tensor, got float"),
    "one call": (lambda: KERNEL.features(loader(X, 2)), TypeError, "x must be a torch.Tensor, got DataLoader"),
}


@pytest.mark.parametrize(("call", "error", "text"), ERRORS.values(), ids=ERRORS)
def test_errors_come_before_work(call, error, text):
    """Each message says what stands in the way, and where."""
    with pytest.raises(error, match=text):
        call()


def test_a_matrix_in_tiles_needs_inputs_of_one_shape(tmp_path):
    """Texts that are padded to different lengths do not stand in one tile."""
    kernel = NonlocalNTK(Classifier(), samples=8)
    with pytest.raises(ValueError, match=r"\['input_ids'\]\(5,\).*pad them alike"):
        write_kernel(tmp_path / "k.npy", kernel, Stream(batches(widths=(5, 4)), "labels"))
