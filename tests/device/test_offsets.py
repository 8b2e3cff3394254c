"""Tensors of more than 2^31 numbers, by their addresses: chosen programs run in the interpreter, on empty memory.

A launcher sees tensors without memory (device ``meta``), and its launch is kept. Each tensor then gets a range of
addresses that takes memory only where it is touched, and one program runs. Whatever it touches must belong to a tensor.
"""

import math
import mmap

import pytest
import torch
import triton
import triton.language as tl
from triton.runtime import interpreter
from triton.tools.tensor_descriptor import TensorDescriptor
from triton_device import DEVICE

from nntk.kernels import offsets
from nntk.kernels.activations import Activation, encode
from nntk.kernels.assemble.triton import kernel as assemble
from nntk.kernels.assemble.triton import launch as assemble_launch
from nntk.kernels.attention.triton import kernel as attention
from nntk.kernels.attention.triton import launch as attention_launch
from nntk.kernels.local_ntk.triton import kernel as local_ntk
from nntk.kernels.local_ntk.triton import launch as local_ntk_launch
from nntk.kernels.mlp import Layer
from nntk.kernels.perturb.triton import chunks
from nntk.kernels.perturb.triton import kernel as perturb
from nntk.kernels.perturb.triton.group import PreparedGroup
from nntk.kernels.perturb.triton.layers import LayerSteps
from nntk.kernels.perturb.triton.operands import LaunchContext
from nntk.kernels.perturb.triton.unperturbed import UnperturbedPass
from nntk.kernels.philox import integers, noise, parse
from nntk.kernels.philox.triton import kernel as stream
from nntk.kernels.philox.triton import launch as philox
from nntk.kernels.target import Target

pytestmark = pytest.mark.skipif(DEVICE == "cuda", reason="chosen programs run in the interpreter alone")

NO_RESERVE = 0x4000
"""The flag MAP_NORESERVE of Linux, which Python names from version 3.13 on."""


def empty_memory(shape, dtype):
    """Return a tensor of zeros of any size; only pages that are touched take memory."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NO_RESERVE
    memory = mmap.mmap(-1, max(1, math.prod(shape)) * dtype.itemsize, flags=flags)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype, count=math.prod(shape)).view(shape)


class Launch:
    """Launch that was kept: a kernel, the number of its programs, and its arguments by name with memory behind them."""

    def __init__(self, kernel, grid, arguments):
        """Give each tensor without memory its range of addresses."""
        self.kernel, (self.programs,) = kernel, grid
        ranges = {
            id(part): empty_memory(part.shape, part.dtype)
            for part in arguments if isinstance(part, torch.Tensor) and part.is_meta
        }  # fmt: skip
        self.arguments = {
            name: ranges.get(id(part), part) for name, part in zip(kernel.arg_names, arguments, strict=True)
        }

    def __getitem__(self, name):
        """Return an argument."""
        return self.arguments[name]

    def run(self, program, monkeypatch):
        """Run one program; return the numbers of the elements that it wrote in each argument."""
        tensors = (part.base if isinstance(part, TensorDescriptor) else part for part in self.arguments.values())
        storages = [part.untyped_storage() for part in tensors if isinstance(part, torch.Tensor)]
        ends = [(storage.data_ptr(), storage.data_ptr() + storage.nbytes()) for storage in storages]
        written = []
        builder = interpreter.interpreter_builder
        load, store = builder.create_masked_load, builder.create_masked_store

        def check(pointers, mask):
            touched = torch.from_numpy(pointers.data[mask.data].astype("int64"))
            inside = sum(((touched >= first) & (touched < end)).int() for first, end in ends)
            assert (inside >= 1).all(), f"program {program} leaves its tensors"
            return touched

        def load_inside(pointers, mask, *rest, **options):
            check(pointers, mask)
            return load(pointers, mask, *rest, **options)

        def store_inside(pointers, value, mask, *rest):
            written.append(check(pointers, mask).flatten())
            return store(pointers, value, mask, *rest)

        with monkeypatch.context() as patch:
            patch.setattr(builder, "create_masked_load", load_inside)
            patch.setattr(builder, "create_masked_store", store_inside)
            patch.setattr(builder, "set_grid_idx", lambda *_: setattr(builder, "grid_idx", (program, 0, 0)))
            # The memory is the CPU's: there is nothing to copy back.
            patch.setattr(interpreter.GridExecutor, "_restore_args_dev", lambda *_: None)
            self.kernel[(1,)](*self.arguments.values())
        addresses = torch.cat(written)
        return {
            name: (addresses[(addresses >= part.data_ptr()) & (addresses < part.data_ptr() + part.nbytes)]
                   - part.data_ptr()) // part.element_size()
            for name, part in self.arguments.items() if isinstance(part, torch.Tensor)
        }  # fmt: skip


@pytest.fixture
def kept(monkeypatch):
    """Return a function that keeps the launches of a kernel in a list."""

    def keep(module, name):
        launches, kernel = [], getattr(module, name)

        class Kept:
            def __getitem__(self, grid):
                return lambda *arguments, **options: launches.append(Launch(kernel, grid, arguments))

        monkeypatch.setattr(module, name, Kept())
        return launches

    return keep


def meta(*shape, dtype=torch.float32):
    """Return a tensor that has a shape and no memory."""
    return torch.empty(*shape, dtype=dtype, device="meta")


def launch_structured(n1, n2, num_outputs, outputs):
    """Launch the structured NTK of one layer for so many inputs; n2 is None for a symmetric kernel."""
    x1, x2 = meta(n1, 1), None if n2 is None else meta(n2, 1)
    tensors = [meta(num_outputs, 1)], [meta(num_outputs)]
    local_ntk_launch.structured_ntk(x1, x2, *tensors, *encode([Activation()]), [0], [1], outputs)


COLUMNS = 128 * 132_813
"""Columns of which 128 rows have more than 2^31 entries."""


def check_tile(launch, written, rows, columns, expected, mirrored=False):
    """A tile has its values at its places, and nothing else is written."""
    out = launch["out"]
    assert torch.equal(out[rows, columns], expected)
    places = torch.arange(rows.start, rows.stop)[:, None] * out.shape[1] + torch.arange(columns.start, columns.stop)
    assert written["out"].unique().numel() == places.numel() * (2 if mirrored else 1)
    assert torch.isin(places.flatten(), written["out"]).all()


def test_rows_of_the_structured_ntk_beyond_32_bits(kept, monkeypatch):
    """The last tile of [128, 17 million] lies behind 2^31 numbers, and so do the offsets inside of it."""
    launches = kept(local_ntk, "layer_pair")
    launch_structured(128, COLUMNS, 1, "trace")
    (launch,) = launches
    rows, columns = slice(0, 128), slice(COLUMNS - 64, COLUMNS)
    launch["b1"][:, 0], launch["b2"][columns, 0] = torch.arange(128.0), torch.arange(1.0, 65.0)
    written = launch.run(launch.programs - 1, monkeypatch)
    check_tile(launch, written, rows, columns, torch.arange(128.0)[:, None] * torch.arange(1.0, 65.0))


def test_layers_add_to_rows_beyond_32_bits(kept, monkeypatch):
    """A layer reads what earlier layers wrote, and products of inputs, at the same places."""
    launches, (n1, n2) = kept(local_ntk, "layer_pair"), (64, 2**23 + 64)
    launch_structured(n1, n2, 2, "full")
    gram, layer = launches
    rows, columns = slice(0, 64), slice(n2 - 32, n2)
    gram["b1"][:, 0], gram["b2"][columns, 0] = torch.arange(64.0), 2.0
    gram.run(gram.programs - 2, monkeypatch)  # The last program has only columns beyond the last.
    assert torch.equal(gram["out"][rows, columns], 2 * torch.arange(64.0)[:, None].expand(64, 32))
    layer.arguments |= {"gram": gram["out"], "ADD": True}
    layer["out"][:, columns], layer["b1"][:, 0] = 0.5, 1.0
    layer["b2"].view(n2, 2, -1)[columns, 1, 0] = 1.0
    written = layer.run(layer.programs - 1, monkeypatch)
    expected = torch.full((64, 32, 2, 2), 0.5)
    expected[..., 1] += (2 * torch.arange(64.0) + 1)[:, None, None]
    assert torch.equal(layer["out"][:, columns], expected)
    assert written["out"].unique().numel() == 64 * 32 * 4


def test_outputs_and_mirror_images_beyond_32_bits(kept, monkeypatch):
    """One of 66,200 outputs of a symmetric kernel of 256 inputs; its mirror image lies as far apart."""
    launches, outputs = kept(local_ntk, "layer_pair"), 66_200
    launch_structured(256, None, outputs, "diagonal")
    layer = launches[-1]
    last, program = outputs - 1, 3 * outputs + outputs - 1
    b = layer["b1"].view(outputs, 256, -1)
    b[last, :, 0] = torch.arange(1.0, 257.0)
    layer["gram"].fill_(1.0)
    written = layer.run(program, monkeypatch)
    out, expected = layer["out"][..., last], 2 * torch.outer(torch.arange(129.0, 257.0), torch.arange(65.0, 129.0))
    assert torch.equal(out[128:, 64:128], expected) and torch.equal(out[64:128, 128:], expected.T)
    assert written["out"].unique().numel() == 2 * 128 * 64


@pytest.mark.parametrize(("outputs", "n2", "c"), [("trace", COLUMNS, 1), ("diagonal", 2**20, 150)])
def test_rows_of_the_energy_beyond_32_bits(kept, monkeypatch, outputs, n2, c):
    """Rows of the result, and of the differences that a step loads: seventeen displacements of 2^20 inputs."""
    launches = kept(assemble, "rank_update")
    assemble_launch.energy(
        meta(17, 64, c), meta(17, n2, c), meta(17, dtype=torch.float64), "rows", *[None] * 8, outputs
    )
    (launch,) = launches
    columns = slice(n2 - 64, n2)
    launch["roots"][:17], launch["d1"][:, :, -1], launch["d2"][:, columns, -1] = 1.0, 1.0, 1.0
    launch["d2"][15, columns, -1] = 3.0
    written = launch.run(launch.programs - 1, monkeypatch)
    assert (launch["out"].view(64, n2, -1)[:, columns, -1] == 19).all()
    assert written["out"].unique().numel() == 64 * 64


@triton.jit
def write_tiles(out, programs, BLOCK: tl.constexpr):
    """Tiles of a triangle by the number of the program."""
    k = tl.arange(0, BLOCK)
    i, j = assemble.tile_of(tl.load(programs + k), 1, True)
    tl.store(out + 2 * k, i)
    tl.store(out + 2 * k + 1, j)


def test_every_tile_of_the_largest_triangle_is_found():
    """Up to the largest grid, where twice the number of tiles exceeds 32 bits."""
    last = [0, 1, 2, 2**30 - 1, 2**30, 2**31 - 2, 2**31 - 1]
    rows = [46_340, 46_341, 65_534, 65_535]
    programs = [*last, *(i * (i + 1) // 2 + extra for i in rows for extra in (-1, 0))]
    out = torch.empty(16, 2, dtype=torch.int32)
    padded = torch.tensor([*programs, *[0] * (16 - len(programs))], dtype=torch.int32)
    write_tiles[(1,)](out, padded, 16)
    for program, (i, j) in zip(programs, out.tolist(), strict=False):
        assert i * (i + 1) // 2 + j == program and 0 <= j <= i


def test_statistics_of_many_inputs(kept, monkeypatch):
    """Three values for each of 2^30 inputs: the third lies behind 2^31 numbers."""
    launches, number = kept(attention, "statistics"), 2**30 + 128
    attention_launch.attention_statistics(meta(2, number, 1), None, meta(2), meta(2), "given")
    (launch,) = launches
    launch["values"][:, -128:] = 2.0
    launch["factors"].fill_(0.5)
    written = launch.run(launch.programs - 1, monkeypatch)
    assert torch.equal(launch["out"][-1, :, -1], torch.tensor([1.0, 2.0, 2.0]))
    assert written["out"].unique().numel() == 3 * 128


def test_statistics_and_weights_of_many_displacements(kept, monkeypatch):
    """More than 2^31 displacements: the last of them have their own priors."""
    statistics, weights = kept(attention, "statistics"), kept(attention, "weights")
    number, processors = 2**31 + 512, 2**20
    monkeypatch.setattr(attention_launch, "target_of", lambda device: Target("interpreter", processors))
    vectors = meta(number), meta(number)
    attention_launch.attention_statistics(meta(number, 1, 1), None, *vectors, "given")
    attention_launch.attention_weights(meta(number, 1, 1), None, *vectors, meta(3, 1, dtype=torch.float64), "given")
    (first,), (second,) = statistics, weights
    for launch in (first, second):
        launch["priors"][-1] = 3.0
    first.run(first.programs - 1, monkeypatch)
    assert first["out"][-1, 0, 0] == 3.0
    second["normalisers"].fill_(1.0)
    written = second.run(second.programs - 1, monkeypatch)
    assert second["out"][-1, 0] == torch.tensor(3.0).exp() and (second["out"][-16:-1] == 1.0).all()
    assert written["out"].tolist() == list(range(number - 16, number))


def test_projections_of_many_segments(kept, monkeypatch):
    """A matrix of 2^32 segments of columns: a program takes each 2^30th of them, which are four."""
    launches, products = kept(attention, "project"), []
    monkeypatch.setattr(attention_launch.config, "project_splits", lambda *_: 2**30)
    samples = torch.zeros(1, dtype=torch.int64, device="meta")
    attention_launch._project_matrix(samples, 0, 2**26, 2**12, 1, (1, 2), False)
    (launch,) = launches
    dot = interpreter.interpreter_builder.create_dot
    monkeypatch.setattr(
        interpreter.interpreter_builder, "create_dot", lambda *operands: (products.append(1), dot(*operands))[1]
    )
    written = launch.run(launch.programs - 1, monkeypatch)
    assert written["out"].tolist() == [2**30 - 1] and launch["out"].view(-1)[-1] != 0 and len(products) == 4


def test_noise_of_rows_beyond_32_bits():
    """Rows on both sides of 2^31 are those that a slab beginning there has."""
    sample_ids, out = torch.tensor([3]), [torch.empty(1, rows, 16) for rows in (128, 64)]
    for part, start in zip(out, (2**31 - 64, 2**31), strict=True):
        philox.write_matrix(part, sample_ids, 0, 16, (1, 2), False, integers.DISPLACEMENT, start)
    assert torch.equal(out[0][:, 64:], out[1])


def test_squares_of_a_long_vector(kept, monkeypatch):
    """The one normal behind 2^31 counts, and the three that follow it in its block do not."""
    launches, key = kept(stream, "sum_squares"), (1, 2)
    philox.squared_norms([meta(2**31 + 1)], [0], torch.zeros(1, dtype=torch.int64, device="meta"), *key, "gaussian")
    (launch,) = launches
    last, splits = 2**29 // philox.SQUARES_BLOCK, (launch["shares"][0] - 3) // 2
    launch.run(last % splits, monkeypatch)
    tiles = torch.arange(last % splits, last, splits)[:, None] * philox.SQUARES_BLOCK
    blocks = torch.cat([(tiles + torch.arange(philox.SQUARES_BLOCK)).flatten(), torch.tensor([2**29])])
    words = integers.stream_words(torch.tensor([0]), blocks, torch.tensor([0]), key)
    squares = torch.cat([noise.box_muller(*words[:2]), noise.box_muller(*words[2:])], -1)[0].bfloat16().double() ** 2
    squares[-1, 1:] = 0
    torch.testing.assert_close(launch["out"][0, last % splits].double(), squares.sum(), rtol=1e-6, atol=0)


def test_both_steps_make_the_same_noise_beyond_32_bits(kept, monkeypatch):
    """Blocks of noise behind 2^32: the weight-stationary step generates those of the layer step."""
    launches = {"stationary": kept(perturb, "stationary_step"), "step": kept(perturb, "layer_step")}
    height, x, one = 2**28 + 64, torch.ones(1, 64), torch.ones(1)
    layer = Layer(torch.zeros(()).expand(height, 64), weight_ordinal=0)
    target = philox.target_of(torch.device("cpu"))
    results = []
    for path, kept_launches in launches.items():
        context = LaunchContext([layer], [], parse("gaussian"), (1, 2), "none", "fp32", target, path, 2**27)
        group = PreparedGroup.prepare(context, torch.tensor([7]), one, 1)
        out = meta(1, 1, height)
        LayerSteps(context, UnperturbedPass(1, [(one,)], [], [x]), 1, [path])(group, out)
        (launch,) = kept_launches
        launch.run(launch.programs - 1, monkeypatch)
        results.append(launch["outputs"][0, 0, -64:].clone())
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)
    assert results[0].abs().min() > 0


def test_buffers_of_a_chunk_have_short_offsets():
    """Offsets inside of a chunk have 32 bits: its buffers stay below 2^31 numbers, whatever the budget."""
    for directions, widths, rank in (("lowrank(64)", (16, 16), 64), ("gaussian", (2, 2**20, 1), 1)):
        plan = chunks.plan_chunks(widths, 1, 10**9, 2, 4, 2**45, parse(directions))
        assert plan.chunk_samples * max(rank, plan.block_inputs * 2 * max(widths)) < 2**31
    assert chunks.has_short_offsets((1, 2**29), 2) and not chunks.has_short_offsets((1, 2**29 + 1), 2)


def test_numbers_of_32_bits():
    """The largest of int32 is not wide."""
    assert not offsets.is_wide(2**31 - 1) and offsets.is_wide(2**31)
