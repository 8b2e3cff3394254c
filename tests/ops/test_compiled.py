"""Compiled CPU kernels: the reference's numbers, by vector instructions, whatever threads and processes do."""

import multiprocessing
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import pytest
import torch
from conftest import ACTIVATIONS, JUMPS, inputs, mlp, relative_error
from llvmlite import binding
from torch.utils.data import DataLoader, Dataset

from nntk import NonlocalNTK
from nntk.kernels import activations, cpu
from nntk.kernels.cpu import lanes, smooth
from nntk.kernels.cpu.elementwise import COMPILED, RowScales, difference, product_difference, scaled_difference
from nntk.kernels.fixed_weights import squared_norms
from nntk.kernels.perturb import reference
from nntk.kernels.perturb.cpu import launch
from nntk.kernels.perturb.cpu.config import plan_lanes
from nntk.kernels.philox import noise, unit_displacements
from nntk.kernels.philox.cpu import kernel
from nntk.kernels.philox.cpu import noise as compiled_noise
from nntk.kernels.philox.integers import BASE, LEFT
from nntk.kernels.philox.slabs import Slab
from nntk.kernels.philox.source import source_of
from nntk.models.recognise import recognise

KEY = (0x299F31D0, 0xA4093822)


SLABS = [
    Slab.whole(0, (1,)),
    Slab.whole(2**32 - 1, (301,)),
    Slab(3, (1000,), 128, 777),
    Slab.whole(1, (1, 1), LEFT),
    Slab.whole(5, (7, 3), BASE),
    Slab.whole(6, (9, 33)),
    Slab(7, (40, 300), 8, 29, BASE),
    Slab.whole(8, (6, 2, 3, 3)),
    Slab.whole(9, (3, 5000)),
    # The low half of the block number overflows within these rows.
    Slab(10, (2**31, 16), 2**30 - 300, 2**30 + 100),
    Slab(11, (2**36, 32), 2**34 - 300, 2**34 + 100),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_signs_are_those_of_the_reference(dtype):
    """Bit for bit, for every layout, purpose and start."""
    samples = torch.tensor([0, 5, 2**32 - 1])
    for slab in SLABS:
        (expected,) = noise.signs(samples, [slab], KEY, dtype)
        (result,) = compiled_noise.signs(samples, [slab], KEY, dtype)
        assert result.dtype == dtype and torch.equal(result, expected), slab


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_normals_are_those_of_the_reference_but_for_one_rounding(dtype):
    """At most one unit of bfloat16, and that in fewer than one of 2000 numbers."""
    samples, different, total = torch.tensor([0, 5, 2**32 - 1]), 0, 0
    for slab in SLABS:
        (expected,) = noise.normals(samples, [slab], KEY, dtype)
        (result,) = compiled_noise.normals(samples, [slab], KEY, dtype)
        error, unit = (result - expected).double().abs(), 2.0**-7 * expected.double().abs()
        assert (error <= unit.clamp(min=1e-3 * 2.0**-7)).all(), slab
        different, total = different + int((error > 0).sum()), total + error.numel()
    assert different <= total / 2000


def test_every_radius_and_angle_is_within_one_rounding():
    """The extremes of both words, where the radius is zero or largest and sine and cosine vanish."""

    @numba.njit
    def pairs(words, angles, out):
        for i in range(len(words)):
            out[i] = kernel._normal_pair(words[i], angles[i])

    edges = [0, 1, 2, 2**31 - 1, 2**31, 2**31 + 1, 2**32 - 2**8, 2**32 - 1]
    angles = edges + [quarter * 2**29 + step for quarter in range(8) for step in (-1, 0, 1) if quarter or step >= 0]
    words = np.array([(w, a) for w in edges for a in angles], dtype=np.uint32)
    out = np.empty(len(words), dtype=np.uint32)
    pairs(words[:, 0].copy(), words[:, 1].copy(), out)
    result = torch.from_numpy(np.stack((out << 16, out & 0xFFFF0000), 1).view(np.float32).copy()).double()
    u = words[:, 0].astype(np.float64) * 2.0**-32 + 2.0**-33
    radius, angle = np.sqrt(-2 * np.log(u)), 2 * np.pi * 2.0**-32 * words[:, 1].astype(np.float64)
    exact = torch.from_numpy(np.stack((radius * np.cos(angle), radius * np.sin(angle)), 1))
    # u is rounded to float32: near one, the radius has an error of 2^-12.
    assert ((result - exact).abs() <= 2.0**-8 * exact.abs() + 5e-4).all()


WORD, WIDE, INTEGER = numba.uint32, numba.uint64, numba.int64


@pytest.mark.parametrize(
    ("function", "signature", "instruction", "number"),
    [
        (kernel.fill_words, (WIDE, INTEGER, *[WIDE] * 5, WORD[:, ::1]), "vpmuludq", 16),
        (kernel.fill_pairs, (WORD[:, ::1], INTEGER, WORD[::1], WORD[::1]), "vfmadd|vfnmadd", 16),
    ],
    ids=["words", "normals"],
)
def test_the_stream_is_made_by_vector_instructions(function, signature, instruction, number):
    """Vectors of 256 bits at least, and no call: the scalar form is four times as slow."""
    assert_vectorised(function, signature, instruction, number)


@pytest.mark.parametrize("name", [name for name in smooth.ROWS if name != "relu"])
def test_activations_are_computed_by_vector_instructions(name):
    """Exponentials and the normal distribution function are polynomials."""
    row, rows = numba.float32[::1], numba.float32[:, :]
    assert_vectorised(smooth.ROWS[name], (row, rows, row, row, rows), "vfmadd|vfnmadd", 16)


def assert_vectorised(function, signature, instruction, number):
    """Assert that a kernel has so many instructions on vectors, and calls none of the functions of the C library."""
    features = binding.get_host_cpu_features()
    if not (features.get("avx2") and features.get("fma")):
        pytest.skip("the CPU has no vectors of 256 bits")
    again = numba.njit(nogil=True, error_model="numpy")(function.py_func)
    again.compile(signature)
    (assembly,) = again.inspect_asm().values()
    assert len(re.findall(rf"({instruction})\w*\s.*[yz]mm", assembly)) >= number
    assert not re.findall(r"call\w*\s+\S*(log|exp|erf|sin|cos|sqrt)", assembly)


ROWS = [activations.ACTIVATIONS[name]() for name in COMPILED]


@pytest.mark.parametrize("activation", ROWS, ids=lambda activation: activation.name)
@pytest.mark.parametrize("exponent", [3, 0, -2, -7, -20, -70])
def test_differences_of_activations_are_those_of_float64(activation, exponent):
    """Within 2e-7 of the norm and 1e-6 of the size of each argument, from large changes to vanishing ones."""
    z, dz = 2 * torch.randn(5, 1000), torch.randn(3, 2, 5, 1000)
    z[0, :6] = torch.tensor([0.0, -0.0, 1e-30, -1e-30, 30.0, -30.0])
    dz[0, 0, 1, :4] = torch.tensor([0.0, 20.0, -50.0, 1e-30])
    s = torch.tensor([1.0, 2.0, 0.5]).mul(2.0**exponent).view(3, 1, 1, 1)
    exact = activation.difference((z.double(),), dz.double(), s.double())
    result = difference(activation, (z,), dz, s)
    assert relative_error(result, exact) < 2e-7
    assert ((result - exact).abs() <= 1e-6 * (dz.double().abs() + exact.abs()).clamp(min=1e-16)).all()


@pytest.mark.parametrize("activation", ROWS, ids=lambda activation: activation.name)
def test_differences_of_activations_take_any_layout_and_keep_nan(activation):
    """Strided and expanded operands, many and no numbers, and NaN, which stays where it is."""
    s = torch.full((2, 1, 1, 1), 0.125)
    for shape in ((2, 1, 3, 5), (2, 2, 300, 400), (2, 1, 0, 5)):
        z, dz = torch.randn(shape[:1:-1]).T, torch.randn(shape[::-1]).permute(3, 2, 1, 0)
        torch.testing.assert_close(difference(activation, (z,), dz, s), activation.difference((z,), dz, s))
    dz = torch.zeros(2, 1, 1, 5).index_fill(3, torch.tensor([3]), torch.nan)
    assert difference(activation, (torch.ones(1, 5),), dz, s).isnan().nonzero()[:, 3].tolist() == [3, 3]
    assert difference(activation, (torch.full((1, 5), torch.nan),), torch.ones(2, 1, 1, 5), s).isnan().all()


@pytest.mark.parametrize("exponent", [0, -20, -70])
def test_differences_of_products_are_those_of_float64(exponent):
    """The difference da b + (a + s da) db, and da b' + a db + dc for each channel, in tiles of any size."""
    for shape in ((3, 4, 5), (40, 7, 500)):
        a, b, da, db = (torch.randn(*part, *shape) for part in ((), (), (2, 2), (2, 2)))
        s = torch.tensor([1.0, 0.5]).mul(2.0**exponent)
        rows, wide = RowScales.of(s, 2), s.double().view(2, 1, 1, 1, 1)
        exact = da.double() * b + (a.double() + wide * da) * db
        assert relative_error(product_difference(a, b, da, db, rows), exact) < 2e-7
        slope, step, summand = (torch.randn(2, 2, shape[1]) for _ in range(3))
        numbers = (part.double().view(2, 2, 1, -1, 1) for part in (slope, step, summand))
        factor, change, offset = numbers
        exact = da * factor + a * change + offset
        assert relative_error(scaled_difference(a, da, slope, step, summand, rows), exact) < 2e-7


def test_products_of_other_layouts_are_left_to_torch():
    """Operands that broadcast, are strided or in float64 have no compiled kernel."""
    a, da, rows = torch.randn(3, 4), torch.randn(2, 1, 3, 4), RowScales.of(torch.ones(2), 1)
    assert product_difference(a, a[:1], da, da, rows) is None
    assert product_difference(a, a, da, da.mT.contiguous().mT, rows) is None
    assert product_difference(a.double(), a.double(), da.double(), da.double(), rows) is None
    assert product_difference(a, a, da, da, RowScales.of(torch.full((2,), 1e-40), 1)) is None


def arguments(x, model, directions, pairs="odd", propagation="difference", gamma=1e-2, samples=11, budget=2**27):
    """Arguments of the op for an MLP, with scales that differ."""
    from nntk.kernels.activations import encode

    layers = recognise(model).layers
    names, parameters = encode([layer.activation for layer in layers])
    scales = gamma * (1 + 0.1 * torch.arange(samples))
    return (
        x, [layer.weight for layer in layers], [layer.bias for layer in layers], names, parameters,
        [layer.weight_ordinal for layer in layers],
        [-1 if layer.bias_ordinal is None else layer.bias_ordinal for layer in layers],
        torch.arange(samples) + 3, scales, *KEY, directions, pairs, propagation, "fp32", budget,
    )  # fmt: skip


def test_squared_norms_are_those_of_the_displacements():
    """Without the displacements themselves; samples that are shared out otherwise have the same bits."""
    parameters = {3: torch.zeros(40, 300), 0: torch.zeros(7), 5: torch.zeros(3, 2, 5), 6: torch.zeros(0, 4)}
    samples = torch.arange(300)
    norms = squared_norms(parameters, samples, 9)
    units = [unit_displacements(samples, o, p.shape, 9, dtype=torch.float64).flatten(1) for o, p in parameters.items()]
    torch.testing.assert_close(norms, torch.cat(units, 1).square().sum(1), rtol=1e-13, atol=0)
    assert torch.equal(squared_norms(parameters, samples[100:103], 9), norms[100:103])


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_differences_are_those_of_the_reference(name, directions, propagation):
    """With the same noise: each activation, family and form, pairs or not, in small tiles, with and without bias."""
    source = source_of(torch.device("cpu"))
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        for bias, pairs, budget in ((True, "odd", 2**20), (False, "both", 2**27), (True, "none", 2**21)):
            model = mlp(20, 300, 130, 3, activation=name, dtype=dtype, bias=bias)
            call = arguments(inputs(150, 20, dtype), model, directions, pairs, propagation, 0.1, budget=budget)
            d, norms = launch.mlp_differences(*call)
            expected, expected_norms = reference.mlp_differences(*call, source=source)
            # Rounding carries few units across a jump, more of them in direct evaluation.
            limit = 0.02 if name in JUMPS and dtype == torch.float32 else tolerance
            assert d.shape == expected.shape and relative_error(d, expected) < limit
            torch.testing.assert_close(norms, expected_norms, rtol=1e-12, atol=0)


def test_threads_do_not_change_a_bit(directions):
    """One thread, two or three: the tiles and the products of each are the same."""
    model, x = mlp(33, 256, 64, 3, activation="relu"), inputs(300, 33)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        kernel_of_threads = NonlocalNTK(model, samples=40, directions=directions, propagation="difference")
        results.append(kernel_of_threads.differences(x))
    assert all(torch.equal(result, results[0]) for result in results[1:])


def small_kernel():
    """A kernel of a small network, and inputs."""
    return NonlocalNTK(mlp(8, 32, 2, activation="relu"), samples=32, gamma=0.1), inputs(20, 8)


def test_several_python_threads_may_call_at_once():
    """They share the lanes; results are those of one call after the other."""
    torch.set_num_threads(2)
    nonlocal_ntk, x = small_kernel()
    expected = nonlocal_ntk.differences(x)
    with ThreadPoolExecutor(4) as pool:
        for result in pool.map(lambda _: nonlocal_ntk.differences(x), range(24)):
            assert torch.equal(result, expected)


def test_lanes_leave_the_callers_threads_alone():
    """Products in a lane use one thread; elsewhere PyTorch's number is what it was."""
    torch.set_num_threads(3)
    seen = []
    lanes.run(range(12), lambda: lambda _: seen.append(torch.get_num_threads()), 12, products=True)
    assert seen == [1] * 12 and torch.get_num_threads() == 3
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == 3


def test_an_error_in_a_lane_reaches_the_caller():
    """No further task begins, and the lanes serve the next call."""
    torch.set_num_threads(2)
    begun = []

    def work(number):
        begun.append(number)
        if number == 3:
            raise ValueError("task 3")

    with pytest.raises(ValueError, match="task 3"):
        lanes.run(range(1000), lambda: work, 2, products=True)
    count = len(begun)
    assert count < 1000
    lanes.run(range(5), lambda: begun.append, 2, products=True)
    assert len(begun) == count + 5


def _child(queue, expected):
    nonlocal_ntk, x = small_kernel()
    queue.put(bool(torch.equal(nonlocal_ntk.differences(x), expected)))


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_a_forked_process_has_lanes_of_its_own():
    """A copy of the pool without its threads would wait for ever."""
    torch.set_num_threads(2)
    nonlocal_ntk, x = small_kernel()
    expected = nonlocal_ntk.differences(x)
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    process = context.Process(target=_child, args=(queue, expected))
    process.start()
    process.join(60)
    assert process.exitcode == 0 and queue.get()


class Differences(Dataset):
    """Items computed by compiled kernels."""

    def __len__(self):
        """Return the number of items."""
        return 4

    def __getitem__(self, index):
        """Return the differences at one input."""
        nonlocal_ntk, x = small_kernel()
        return nonlocal_ntk.differences(x[index : index + 1])


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_workers_of_a_data_loader_compute_the_same():
    """They are forked, and PyTorch gives each one thread."""
    torch.set_num_threads(2)
    expected = torch.stack([Differences()[index] for index in range(4)])
    loaded = torch.cat(list(DataLoader(Differences(), batch_size=1, num_workers=2, multiprocessing_context="fork")))
    assert relative_error(loaded, expected) < 1e-6


@pytest.mark.parametrize("cache", [2**18, 2**20, 2**22])
def test_lanes_fit_the_budget(cache, directions):
    """A lane takes half of the budget at most, unless one input and four rows of a weight need more."""
    for widths in ((64, 256, 256, 1), (8, 8, 8), (784, 1024, 1024, 10), (3072, 4096, 10), (10, 1)):
        for number, samples, members in ((1, 1, 1), (300, 128, 2), (10**6, 10**5, 2)):
            for budget in (2**20, 2**24, 2**27):
                plan = plan_lanes(number, samples, widths, members, "(" in directions, 4, budget, cache)
                smallest = 4 * 4 * (8 * max(widths) + 3 * members * max(widths) * 64)
                assert plan.lane_numbers * 4 <= max(budget / 2, smallest)
                assert 1 <= plan.tile_inputs <= plan.block_inputs <= number and 1 <= plan.task_samples <= samples


WITHOUT = """
import logging, sys
logging.basicConfig(format="%(message)s")
{block}
import torch, nntk
assert "numba" not in sys.modules and "llvmlite" not in sys.modules
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1))
kernel = nntk.NonlocalNTK(model, samples=8, directions="rademacher")
for _ in range(2):
    print(float(kernel(torch.ones(2, 3)).sum()))
print("numba" in sys.modules)
"""


MISSING = """
import importlib.util
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "numba" else find_spec(name, *rest)
"""


@pytest.mark.parametrize("how", ["installed", "missing", "disabled"])
def test_without_numba_plain_torch_serves_and_says_so_once(how):
    """Import costs nothing either way; one log line says what is missed."""
    block = (
        "import importlib.util as u; f = u.find_spec; u.find_spec = lambda n, *a: None if n == 'numba' else f(n, *a)"
    )
    script = WITHOUT.format(block=block if how == "missing" else "")
    environment = {**os.environ, **({"NUMBA_DISABLE_JIT": "1"} if how == "disabled" else {})}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    first, second, loaded = done.stdout.split()
    assert first == second and loaded == str(how == "installed")
    assert done.stderr.count("plain torch") == (how != "installed")


def test_a_folder_that_cannot_be_written_costs_only_time():
    """Kernels are compiled in each process, and a log line says what to do."""
    script = (
        "import logging; logging.basicConfig(format='%(message)s'); from numba.core import caching; "
        "(getattr(caching, 'CacheImpl', 0) or caching._CacheImpl)._locator_classes = []; import torch; "
        "from nntk.kernels.philox import unit_displacements; "
        "print(unit_displacements(torch.arange(2), 0, (3,), 0, 'rademacher').abs().sum())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "tensor(6.)\n" and "set NUMBA_CACHE_DIR" in done.stderr


def test_the_cpu_is_served():
    """The tests of the ops run the compiled kernels."""
    assert cpu.serves()
