"""The perturbation kernels against float64 on the same displacements, in every family, path, activation and precision.

Without a GPU they run in Triton's interpreter, a program at a time, where float16 stands for bfloat16.
"""

import copy
import functools
import itertools
import math
from types import SimpleNamespace

import pytest
import torch
import triton
import triton.language as tl
from conftest import ACTIVATIONS as MODULES
from conftest import JUMPS, covering, inputs, mlp, plain_torch, relative_error
from triton_device import DEVICE, SEED, Allocated, NoKernel, Operators, kernel_differences, without_kernels

from nntk.bench.machine_code.cases import perturb as cases
from nntk.kernels import dispatch, target, tuning
from nntk.kernels.activations import ACTIVATIONS, encode
from nntk.kernels.mlp import Layer
from nntk.kernels.perturb import config, definition, mlp_differences
from nntk.kernels.perturb.noise import FORMED_UNITS
from nntk.kernels.perturb.reference import ROUNDINGS, round_to_tf32
from nntk.kernels.perturb.reference import displacement_products as reference_products
from nntk.kernels.perturb.triton import chunks, group, kernel, launch
from nntk.kernels.perturb.triton import config as tiles
from nntk.kernels.perturb.triton.activations import difference
from nntk.kernels.perturb.triton.operands import LaunchContext, as_operand, operand_rows, pad_rows
from nntk.kernels.perturb.triton.unperturbed import UnperturbedPass
from nntk.kernels.philox import parse
from nntk.kernels.philox import reference as stream
from nntk.kernels.philox.triton import launch as philox
from nntk.kernels.target import input_precision
from nntk.models.functional import call
from nntk.models.recognise import recognise

ROUTES = [
    *(("gaussian", path) for path in tiles.PATHS),
    *(("rademacher", path) for path in tiles.PATHS if path != "stationary"),
    *((family, "step") for family in ("flipout(3)", "lowrank(2)")),
]
MODELS = ("relu", "tanh", "gelu", "sign", "quantise")
# Every route in each precision, and every activation with each family, path and precision: a third of the product.
CASES = covering(
    [
        (family, path, precision, activation)
        for activation in MODELS
        for precision in ("bf16", "fp32")
        for family, path in reversed(ROUTES)
    ],
    (0, 1, 2),
    (0, 3),
    (1, 3),
    (2, 3),
)
# Widths, inputs, displacements: ones, odd numbers, more than a tile, one output and ten.
SHAPES = (((130, 17, 3, 10), 17, 2), ((3, 130, 1), 1, 3), ((1, 3, 17), 130, 1), ((17, 3, 1), 3, 2))
# Of low rank, layers of few units are formed: here a hidden one is not.
LOWRANK_SHAPES = (*SHAPES, ((3, 17, 70, 3), 17, 2))
FUSED_SHAPES = (((17, 3, 17, 10), 17, 2), ((1, 17, 3, 1), 130, 1), ((3, 1, 3, 10), 1, 3), ((17, 3, 1), 3, 2))
SCALE = 0.05

pytestmark = pytest.mark.usefixtures("poisoned_memory")


def rows(number):
    """Row numbers with both ends of their range, of all three of flipout's bases but not in their order."""
    return torch.tensor([7, 2**32 - 1, 2**31, 0, 3, *range(100, 112)])[:number]


def against_the_reference(directions):
    """Tolerance between the kernels and the reference, whose normals may differ by a rounding in rare samples."""
    return 1e-3 if DEVICE == "cuda" and directions.partition("(")[0] in ("gaussian", "lowrank") else 1e-6


@functools.cache
def float64_case(widths, number, samples, activation, directions, by_kernels):
    """A model, its inputs, and its odd unit differences in float64 by plain evaluation at the displaced parameters.

    The displacements are the kernels' or the reference's: normals agree to a rounding, not to the bit.
    """
    model, x = mlp(*widths, activation=activation), inputs(number, widths[0])
    double = copy.deepcopy(model).double()
    parameters = dict(double.named_parameters())
    make, device = (philox.unit_displacements, DEVICE) if by_kernels else (stream.unit_displacements, "cpu")
    noise = {
        name: make(rows(samples).to(device), ordinal, list(parameter.shape), SEED, 0, directions, torch.float64).cpu()
        for ordinal, (name, parameter) in enumerate(parameters.items())
    }
    s = float(torch.tensor(SCALE))
    with torch.no_grad():
        outputs = [
            [call(double, {name: parameters[name] + sign * s * noise[name][m] for name in noise}, x.double())
             for m in range(samples)]
            for sign in (1, -1)
        ]  # fmt: skip
    plus, minus = (torch.stack(half) for half in outputs)
    return model, x, (plus - minus) / (2 * s)


def reference(model, x, samples, directions, precision):
    """The same by the reference in plain torch."""
    model = model.cpu()
    scales = torch.full((samples,), SCALE)
    layers = recognise(model).layers
    with plain_torch():
        return mlp_differences(x, layers, rows(samples), scales, SEED, directions, precision=precision,
                               propagation="difference")[0]  # fmt: skip


def without_flips(made, expected, may_flip):
    """Both without the inputs at which a unit fell across a jump: some, and in low precision only."""
    # Five per cent of a typical difference: more than rounding to bfloat16 does, less than one unit of seventeen.
    flips = ((made - expected).abs() > 0.05 * expected.abs().mean()).any(-1) & may_flip
    # About one in 2^8 of forty units does it, in one evaluation or its mirror image.
    assert flips.sum() <= 0.25 * flips.numel() + 1, f"{int(flips.sum())} of {flips.numel()} across a jump"
    return made[~flips], expected[~flips]


def shapes(directions, path, precision):
    """The shapes at which a path applies: in the interpreter all, on a card those that its registers hold."""
    arch = target.target_of(torch.device(DEVICE)).arch
    if path == "fused":
        widest = tiles.fused_width(directions, precision, arch)
        result = [shape for shape in FUSED_SHAPES if max(shape[0]) <= widest]
    else:
        result = [
            (widths, *rest) for widths, *rest in (LOWRANK_SHAPES if "lowrank" in directions else SHAPES)
            if all(tiles.applies(path, directions, precision, width, arch) for width in widths[:-1])
        ]  # fmt: skip
    if not result:
        pytest.skip(f"{arch} has no {path} path in {precision}")
    return result


@pytest.fixture
def rounded_as_here(monkeypatch):
    """The reference rounds as the kernels do: the interpreter has float16, of three bits more, for bfloat16."""
    if DEVICE == "cpu":
        monkeypatch.setitem(ROUNDINGS, "bf16", lambda x: x.half().to(x.dtype))


def check(activation, directions, path, precision):
    """The kernels' error is at most twice the reference's at every shape."""
    may_flip = torch.tensor(activation in JUMPS and precision != "fp32")
    for widths, number, samples in shapes(directions, path, precision):
        case = (widths, number, samples, activation, directions)
        model, x, expected = float64_case(*case, by_kernels=True)
        result, norms = kernel_differences(
            model, x, rows(samples), torch.full((samples,), SCALE), directions, precision=precision, path=path
        )
        assert result.isfinite().all() and norms.isfinite().all()
        by_reference = reference(model, x, samples, directions, precision)
        same = without_flips(by_reference, float64_case(*case, by_kernels=False)[2], may_flip)
        allowed, error = relative_error(*same), relative_error(*without_flips(result.cpu(), expected, may_flip))
        # A few numbers may all happen to be rounded well: float32's own precision is always granted.
        assert error <= 2 * max(allowed, torch.finfo(torch.float32).eps), f"{widths}: reference {allowed:.1e}"


@pytest.mark.parametrize(("directions", "path", "precision", "activation"), CASES)
@pytest.mark.usefixtures("rounded_as_here")
def test_difference_against_float64(directions, path, precision, activation):
    """Every family, path and kind of activation, at ones, odd numbers and more than a tile."""
    check(activation, directions, path, precision)


@pytest.mark.parametrize(("directions", "path"), ROUTES)
def test_tf32_rounds_every_operand(directions, path):
    """Those of all layers, to the nearest and before the product: D is the reference's, which rounds just so.

    The interpreter multiplies in float32 whatever is asked: what is not rounded where it is written shows here.
    """
    # On a card some paths take layers of up to 64 units; low rank forms those.
    widths = (40, 70, 66, 3) if path == "step" else (40, 60, 50, 3)
    model, x, samples, u = mlp(*widths), inputs(20, 40), 3, 2.0**-11
    result = kernel_differences(
        model, x, rows(samples), torch.full((samples,), SCALE), directions, precision="tf32", path=path
    )[0].cpu()
    by_reference = {p: reference(model, x, samples, directions, p) for p in ("fp32", "tf32")}
    # One operand in ten thousand may round the other way.
    assert relative_error(result, by_reference["tf32"]) < max(0.1 * u, against_the_reference(directions))
    if against_the_reference(directions) < u:
        assert relative_error(result, by_reference["fp32"]) > 0.2 * u


@triton.jit
def write_operands(out, x, BLOCK: tl.constexpr):
    """Numbers as operands of products of TF32."""
    i = tl.arange(0, BLOCK)
    tl.store(out + i, kernel.round_operand(tl.load(x + i), tl.float32, "tf32"))


def test_operands_of_tf32_are_rounded_as_the_reference_rounds():
    """To the bit, and their low 13 bits are zero; ties, overflow, infinities and the NaN of all ones among them."""
    odd = [0.0, -0.0, math.inf, -math.inf, 1 + 2.0**-11, 1 + 3 * 2.0**-11, -2 + 2.0**-11, 3.4028234e38, 1e-40]
    x = torch.cat([torch.tensor(odd), inputs(1015, 1)[:, 0] * 10.0 ** torch.arange(-30, 28).repeat(18)[:1015]])
    x = torch.cat([x[:1022], torch.tensor([0x7FFFFFFF, -1], dtype=torch.int32).view(torch.float32)])
    out = torch.empty_like(x, device=DEVICE)
    write_operands[(1,)](out, x.to(DEVICE), len(x))
    result = out.cpu()
    assert torch.equal(result[:-2], round_to_tf32(x)[:-2]) and result[-2:].isnan().all()
    assert not (result[:-2].view(torch.int32) & 0x1FFF).any()


def unperturbed(precision):
    """Layers of odd widths whose weights lie in memory in odd ways, with every kind of activation, and their pass."""
    generator = torch.Generator().manual_seed(3)
    widths, kinds = (70, 33, 65, 5, 40, 3), ("relu", "gelu", "sign", "quantise", "identity")
    weights = [torch.randn(2 * height, width + 3, generator=generator) for width, height in itertools.pairwise(widths)]
    weights = [one[::2, 1:-2] if number % 2 else one[::2, 3:].T.contiguous().T for number, one in enumerate(weights)]
    biases = [torch.randn(3 * height, generator=generator)[::3] for height in widths[1:]]
    layers = [
        Layer(weight.to(DEVICE), None if kind == "sign" else bias.to(DEVICE), ACTIVATIONS[kind](), 2 * n, 2 * n + 1)
        for n, (weight, bias, kind) in enumerate(zip(weights, biases, kinds, strict=True))
    ]
    card, x = target.target_of(torch.device(DEVICE)), inputs(37, 70).to(DEVICE)
    # Temporaries are so few that the inputs are taken in several batches.
    budget = chunks.TEMPORARY_DIVISOR * 48 * (70 + 33) * 10
    operands = [operand_rows(layer.weight, precision, card) for layer in layers[1:]]
    context = LaunchContext(layers, operands, parse("lowrank(2)"), (1, 2), "none", precision, card, None, budget)
    return layers, x, context, UnperturbedPass.evaluate(context, x, fills_weights=True)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize(
    ("precision", "has_products"), [("fp32", True), ("tf32", True), ("bf16", True), ("bf16", False)]
)
def test_the_unperturbed_pass_is_float64_rounded_once(precision, has_products, monkeypatch):
    """States, values and operands of each layer, with zeros where rows are padded; with products and with sums."""
    monkeypatch.setattr(target.Target, "has_float64_products", has_products)
    layers, x, context, base_pass = unperturbed(precision)
    h = x.double()
    for number, layer in enumerate(layers):
        hidden, operand = base_pass.hidden[number], base_pass.operands[number]
        assert torch.equal(hidden[:, : h.shape[1]], h.float()) and not hidden[:, h.shape[1] :].any()
        assert torch.equal(operand, pad_rows(as_operand(hidden, precision, context.target)))
        if number > 0:
            weight = pad_rows(as_operand(layer.weight, precision, context.target))
            assert torch.equal(context.weight_operands[number - 1], weight)
        z = torch.nn.functional.linear(h, layer.weight.double(), None if layer.bias is None else layer.bias.double())
        expected = layer.activation.state(z, torch.float32)
        for kept, part in zip(base_pass.states[number], expected, strict=True):
            assert torch.equal(kept[:, : part.shape[1]], part) and not kept[:, part.shape[1] :].any()
        h = layer.activation.value(z)


def test_pre_activations_that_underflow_keep_their_side_of_a_jump():
    """They become the smallest normal number of their sign; zero stays zero."""
    z = torch.tensor([[1e-46, -1e-46, 7e-46, -7e-46, 8e-46, 0.0, -0.0, 3e-44]], dtype=torch.float64)
    x, scale = torch.ones(1, 1), 2.0**-80
    # Products of two float32 are exact in float64.
    layer = Layer((z / scale).float().T.to(DEVICE), activation=ACTIVATIONS["sign"]())
    first = Layer(torch.full((1, 1), scale, device=DEVICE), activation=ACTIVATIONS["identity"]())
    card = target.target_of(torch.device(DEVICE))
    context = LaunchContext([first, layer], [], parse("gaussian"), (1, 2), "none", "fp32", card, None, 2**27)
    state = UnperturbedPass.evaluate(context, x.to(DEVICE)).states[1][0][0, :8].cpu()
    exact = (z / scale).float().double() * scale
    tiny = torch.finfo(torch.float32).tiny
    assert state[:4].tolist() == [tiny, -tiny, tiny, -tiny] and torch.equal(state[4:], exact[0, 4:].float())


@triton.jit
def write_differences(out, a, b, dz, s, p0, p1, ACTIVATION: tl.constexpr, PTX: tl.constexpr, BLOCK: tl.constexpr):
    """Differences of an activation."""
    i, scale = tl.arange(0, BLOCK), tl.load(s)
    result = difference(tl.load(a + i), tl.load(b + i), tl.load(dz + i), scale, 1.0 / scale, p0, p1, ACTIVATION, PTX)
    tl.store(out + i, result)


def device_difference(name, z, dz, s):
    """[phi(z + s dz) - phi(z)] / s on the device, and its float64 value."""
    activation = recognise(torch.nn.Sequential(torch.nn.Linear(1, 1), MODULES[name]())).layers[0].activation
    state = [part.to(DEVICE) for part in activation.state(z, torch.float32)]
    p0, p1 = encode([activation])[1]
    out = torch.empty(len(z), device=DEVICE)
    ptx = target.target_of(out.device).ptx
    write_differences[(1,)](
        out, state[0], state[-1], dz.to(DEVICE), torch.tensor([s], device=DEVICE), p0, p1, name, ptx, len(z)
    )
    exact = activation.difference(activation.state(z, torch.float64), dz.double(), torch.tensor(s).double())
    return out.cpu(), exact


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("name", sorted(set(ACTIVATIONS) - {"sign", "step"}))
def test_what_is_not_a_number_stays_so(name):
    """A displacement that overflowed does not come back finite; only sign and step see it as below zero."""
    dz = torch.tensor([math.nan, 1.0] * 8)
    result, _ = device_difference(name, torch.linspace(-3, 3, 16, dtype=torch.float64), dz, 0.1)
    assert torch.equal(result.isnan(), dz.isnan())


@pytest.mark.parametrize("s", [1e-3, 1.0])
@pytest.mark.parametrize("name", ["gelu", "gelu_tanh", "silu"])
def test_left_tails_keep_their_digits(name, s):
    """Tiny values such as z Phi(z) are right to 1e-5 of themselves, down to z = -6."""
    z, dz = -3 - inputs(1024, 1, torch.float64)[:, 0].abs().clamp(max=3), inputs(1024, 1, seed=2)[:, 0]
    result, exact = device_difference(name, z, dz.clamp(-1, 1), s)
    assert ((result - exact).abs() <= 1e-5 * exact.abs() + 1e-30).float().mean() > 0.99


@pytest.mark.parametrize("activation", sorted(set(ACTIVATIONS) - {*MODELS, "identity"}))
def test_the_other_activations(activation):
    """Each difference formula on the device."""
    check(activation, "rademacher", "step", "fp32")


def network_with_ties(activation, magnitude=1.0):
    """A middle layer of signs times a magnitude that is not displaced; the inputs are signs too."""
    model, x = mlp(8, 32, 32, 1, activation=activation), inputs(5, 8).sign()
    with torch.no_grad():
        model[2].weight.sign_().mul_(magnitude)
        model[4].weight.sign_()
    model[2].bias = None
    model[2].weight.requires_grad_(False)
    return model, x


def check_ties(model, x, directions, precision, path):
    """Every entry of D is that of the float64 definition on the reference's displacements."""
    number, scales = rows(2), torch.tensor([0.3, 0.7])
    result = kernel_differences(model, x, number, scales, directions, "both", precision=precision, path=path)[0].cpu()
    layers = recognise(model.cpu()).layers
    expected, _ = definition.mlp_differences(x, layers, number, scales, SEED, directions, "both")
    tolerance = max(1e-5, against_the_reference(directions))
    torch.testing.assert_close(result.double(), expected, rtol=tolerance, atol=tolerance * float(expected.abs().mean()))


@pytest.mark.parametrize(("directions", "path"), ROUTES)
def test_sums_of_signs_stay_exact(directions, path):
    """Pre-activations of binary layers that are exactly zero take the side of zero, in each path.

    Signs are operands of 16 bits, and so is noise; the product of low rank's factors is not.
    """
    precision = "bf16" if directions == "rademacher" else "fp32"
    check_ties(*network_with_ties("step" if path == "staged" else "sign"), directions, precision, path)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_ties_of_rounded_sums_are_left_to_the_reference(precision):
    """Tenths of two magnitudes have no exact sums: the kernels do not evaluate them unless a path is forced."""
    check_ties(*network_with_ties("sign", torch.tensor([0.1, 0.3]).repeat(16)), "gaussian", precision, path=None)


def test_binary_weights_of_any_magnitude_are_exact():
    """A sign sees the sum of signs whatever their common magnitude is."""
    check_ties(*network_with_ties("sign", 0.1), "gaussian", "fp32", path="fused")


@triton.jit
def write_split_scales(sigma, rho, scales, BLOCK: tl.constexpr):
    """Powers of two and mantissas."""
    i = tl.arange(0, BLOCK)
    first, second = kernel._split_scale(tl.load(scales + i))
    tl.store(sigma + i, first)
    tl.store(rho + i, second)


def test_scales_are_split_exactly():
    """A power of two times a number in [1, 2), over all scales that are allowed."""
    scales = torch.cat([torch.logspace(-30, 30, 60), torch.tensor([1.0, 2.0, 0.5, 1.9999999])]).to(DEVICE)
    sigma, rho = torch.empty_like(scales), torch.empty_like(scales)
    write_split_scales[(1,)](sigma, rho, scales, len(scales))
    assert torch.equal(sigma * rho, scales) and (torch.frexp(sigma).mantissa == 0.5).all()
    assert ((rho >= 1) & (rho < 2)).all()


OTHER_TILES = {
    "step": [tiles.Tiles(*block, num_warps=4, num_stages=1, parts=2) for block in ((32, 16, 32), (64, 32, 64))],
    "stationary": [tiles.Tiles(*block, num_warps=4, num_stages=1, parts=1) for block in ((32, 16, 32), (64, 32, 64))],
    "fused": [tiles.FusedTiles(32, 16, 8, 4), tiles.FusedTiles(64, 64, 16, 4)],
}


@pytest.mark.parametrize(("directions", "path"), ROUTES)
def test_chunks_tiles_and_order_do_not_matter(directions, path, monkeypatch):
    """The same D, to rounding, for small budgets, other tiles, slabs of noise, in any order; the same bits twice."""
    if DEVICE == "cuda" and path in ("stationary", "fused"):
        pytest.skip("these tiles are for the interpreter: products of four warps have 64 rows at least")
    model, x, samples = mlp(17, 30, 2), inputs(5, 17), 3
    number, scales = rows(samples), torch.full((samples,), SCALE)

    def run(chosen=slice(None), **settings):
        chosen_rows = number[chosen], scales[chosen]
        return kernel_differences(model, x, *chosen_rows, directions, "both", path=path, **settings)[0].cpu()

    whole = run()
    assert torch.equal(whole, run())
    assert relative_error(run([2, 1]), whole[:, [2, 1]]) < 1e-6
    for budget, pieces in ((24576 if path == "fused" else 16384, 2), (256, 1)):
        plan = chunks.plan_chunks((17, 30, 2), len(x), samples, 2, 4, budget, parse(directions), path == "fused")
        assert plan.block_inputs == pieces and (pieces > 1 or plan.chunk_samples == 1)
        assert relative_error(run(max_bytes=budget), whole) < 1e-6
    for other in OTHER_TILES.get(path, OTHER_TILES["step"]):
        name = f"{path}_tiles" if path in OTHER_TILES else "step_tiles"
        monkeypatch.setattr(tiles, name, lambda *_, other=other: other)
        assert relative_error(run(), whole) < 1e-6


@pytest.mark.parametrize(("directions", "path"), [("gaussian", "step"), ("rademacher", "staged"), *ROUTES[-2:]])
def test_groups_of_chunks_are_those_evaluated_at_once(directions, path, monkeypatch):
    """Two pieces of the inputs, groups of two chunks, the last chunk and the last group smaller: D of one chunk."""
    model, x, samples = mlp(17, 70, 30, 2, activation="quantise"), inputs(5, 17), 7
    number, scales = torch.tensor([11, 4, 9, 5, 30, 8, 3]), torch.linspace(0.01, 0.1, samples)
    whole = kernel_differences(model, x, number, scales, directions, "both", path=path)[0]
    plan = chunks.ChunkPlan(block_inputs=3, chunk_samples=2, group_samples=4, buffer_bytes=0)
    monkeypatch.setattr(launch, "plan_chunks", lambda *_: plan)
    assert relative_error(kernel_differences(model, x, number, scales, directions, "both", path=path)[0], whole) < 1e-6


def test_a_forced_path_that_does_not_apply_is_an_error():
    """Nothing else is taken for it; a layer whose weight stays has no noise, and any path."""
    scales = torch.full((2,), SCALE)

    def run(path, directions="gaussian", widths=(3, 4, 2)):
        return kernel_differences(mlp(*widths), inputs(2, widths[0]), rows(2), scales, directions, path=path)

    with pytest.raises(ValueError, match=r"path 'fused' does not apply .*two to 4 layers of widths up to (64|128)"):
        run("fused", widths=(3, 129, 2))
    with pytest.raises(ValueError, match="path 'fused' does not apply"):
        run("fused", "lowrank(2)")
    with pytest.raises(ValueError, match="path 'stationary' does not apply to gaussian in fp32 with 257 inputs"):
        run("stationary", widths=(257, 4, 2))
    with pytest.raises(ValueError, match="path 'staged' does not apply to flipout"):
        run("staged", "flipout(3)")
    frozen = mlp(257, 4, 2)
    frozen[0].weight.requires_grad_(False)
    assert kernel_differences(frozen, inputs(2, 257), rows(2), scales, "gaussian", path="staged")[0].isfinite().all()


@pytest.mark.parametrize("path", ["step", "fused"])
def test_halves_and_scales(path):
    """Halves make the odd part; each row has its own scale; one-sided differences are the first half."""
    model, x = mlp(5, 20, 2), inputs(6, 5)
    number, scales = torch.arange(3), torch.tensor([1e-3, 0.1, 1e-30])

    def run(pairs):
        return kernel_differences(model, x, number, scales, "gaussian", pairs, path=path)[0].cpu()

    plus, minus = run("both")
    torch.testing.assert_close((plus - minus) / 2, run("odd"), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(plus, run("none"), rtol=1e-5, atol=1e-6)
    expected = mlp_differences(x, recognise(model.cpu()).layers, number, scales, SEED, propagation="difference")[0]
    assert relative_error(run("odd"), expected) < against_the_reference("gaussian")


@pytest.mark.parametrize("directions", ["gaussian", "flipout(3)", "lowrank(1)"])
@pytest.mark.parametrize("frozen", [("0.weight",), ("2.weight", "2.bias"), ("0.bias", "4.weight")])
def test_frozen_and_tied_parameters(directions, frozen):
    """Parameters that stay are not displaced; a tensor that serves two layers moves once. Non-contiguous inputs."""
    model, x = mlp(6, 6, 6, 3), inputs(6, 8).T
    model[2].weight = model[0].weight
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    model, number, scales = model.cpu(), torch.arange(4), torch.full((4,), SCALE)
    layers = recognise(model).layers
    expected = mlp_differences(x, layers, number, scales, SEED, directions, propagation="difference")
    result = kernel_differences(model, x, number, scales, directions)
    tolerance = against_the_reference(directions)
    assert relative_error(result[0].cpu(), expected[0]) < tolerance
    torch.testing.assert_close(result[1].cpu(), expected[1], rtol=tolerance, atol=0)


@pytest.mark.parametrize(
    ("shape", "height"), [((5, 19, 37), 21), ((19, 37), 21), ((5, 1, 1), 21), ((5, 70, 5), 70), ((70, 5), 70)]
)
def test_products_with_displacements(shape, height, directions):
    """The layer step without a weight, of operands of their own and of shared ones, whole and in chunks."""
    q = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    arguments = (height, 3, rows(5), SEED, 0, directions)
    expected = reference_products(q.double(), *arguments, 2**27)
    # Chunks of the displacements: with operands for each of them, and with shared ones.
    for budget in (2**27, 2**12) if shape in ((5, 1, 1), (19, 37)) else (2**27,):
        at = [part.to(DEVICE) if isinstance(part, torch.Tensor) else part for part in arguments]
        result = launch.displacement_products(q.to(DEVICE), *at, budget)
        assert relative_error(result.cpu(), expected) < against_the_reference(directions)


@pytest.mark.parametrize(("number", "samples"), [(0, 3), (4, 0), (0, 0)])
def test_nothing_to_do(number, samples):
    """No inputs or no displacements: empty differences, and the norms all the same."""
    result, norms = kernel_differences(
        mlp(3, 4, 2), inputs(number, 3), torch.arange(samples), torch.full((samples,), SCALE), "gaussian"
    )
    assert result.shape == (samples, number, 2) and norms.shape == (samples,) and norms.isfinite().all()


def test_buffers_do_not_grow_with_samples_or_parameters():
    """At d = 10^6 and N = 1024, buffers of a chunk stay below 256 MB whatever M is, and every row is taken once."""
    widths = (784, 1024, 1024, 10)
    assert sum(a * b for a, b in zip(widths, widths[1:], strict=False)) > 1.8e6
    for samples in (64, 4096):
        plan = chunks.plan_chunks(widths, 1024, samples, 2, 2, 2**28, parse("gaussian"), staged_bytes=2 * 1024 * 1024)
        assert plan.buffer_bytes <= 2**28
        assert plan.block_inputs == 1024 and plan.chunk_samples >= min(samples, 9), "a chunk fills the card"
        assert plan.chunk_samples <= samples
        assert plan.group_samples >= min(samples, 8 * plan.chunk_samples)
        assert plan.group_samples % plan.chunk_samples == 0


@pytest.mark.parametrize("number", [1, 50, 10**5])
@pytest.mark.parametrize("directions", ["gaussian", "flipout(1)", "flipout(1024)", "lowrank(1)", "lowrank(64)"])
def test_plans_hold_the_noise_too(directions, number):
    """Bases and factors are part of the budget, and a larger one holds as many displacements or more."""
    family, columns_before = parse(directions), 0
    for budget in (2**25, 2**26, 2**28):
        operands = 1 if family.name == "lowrank" else 2  # d, and q.
        plan = chunks.plan_chunks((784, 1024, 1024, 10), number, 10**4, 2, 2, budget, family)
        bases = min(family.count, plan.chunk_samples) * 2 * 2**20 if family.name == "flipout" else 0
        factors = plan.group_samples * max(16, family.count) * 2 * (784 + 3 * 1024) if family.name == "lowrank" else 0
        assert plan.buffer_bytes >= bases + factors + plan.chunk_samples * plan.block_inputs * operands * 2 * 2 * 2048
        assert plan.buffer_bytes <= budget * 15 / 16
        assert plan.chunk_samples * plan.block_inputs >= columns_before
        columns_before = plan.chunk_samples * plan.block_inputs


@pytest.mark.parametrize(
    ("directions", "widths", "number", "samples", "budget"),
    [
        *((one, (1024, 1024, 1024, 10), 20, 50, 2**24)
          for one in ("gaussian", "flipout(3)", "flipout(1024)", "lowrank(1)", "lowrank(64)")),
        *((one, (1024, 1024, 1024, 10), 1, 4096, 2**26)
          for one in ("gaussian", "rademacher", "flipout(3)", "lowrank(1)")),
        # Several pieces of the inputs; several groups; a weight that is large in float64; one of two units.
        *((one, (256, 512, 512, 10), 2000, 50, 2**24) for one in ("gaussian", "flipout(3)", "lowrank(1)")),
        *((one, (256, 256, 1000), 20, 200, 2**23) for one in ("gaussian", "flipout(3)", "lowrank(1)")),
        ("rademacher", (2048, 2048, 2048, 10), 8, 8, 2**25),
        ("flipout(3)", (2, 200, 1), 20, 2000, 2**20),
    ],
)  # fmt: skip
def test_memory_stays_within_the_budget(directions, widths, number, samples, budget, monkeypatch):
    """All tensors at once, of every family: the budget, the outputs and the order; kernels do not run."""
    without_kernels(monkeypatch)
    if directions == "gaussian":
        monkeypatch.setattr(launch, "squared_norms", lambda *_: None)  # On a CPU the reference's.
    model = mlp(*widths, activation="relu")
    with Allocated() as allocated:
        kernel_differences(model, inputs(number, widths[0]), torch.arange(samples), torch.full((samples,), SCALE),
                           directions, precision="bf16", max_bytes=budget)  # fmt: skip
    outputs = 4 * samples * number * widths[-1]
    assert allocated.peak <= budget + outputs, f"{(allocated.peak - outputs) / budget:.2f} of the budget"


@pytest.mark.usefixtures("poisoned_memory")
def test_bases_of_a_chunk_stand_once_each():
    """Sorted by base, whatever their order was; places left over are empty, and each row finds its own base."""
    rows = torch.tensor([8, 16, 2**32 - 7, 9, 3])
    for samples, count, size in ((5, 8, 5), (5, 8, 3), (5, 8, 1), (5, 2, 2), (5, 1, 5), (700, 8, 300), (700, 300, 8)):
        ids = rows if samples == 5 else torch.randperm(2**20, generator=torch.Generator().manual_seed(1))[:samples]
        ids = ids[torch.argsort(ids % count, stable=True)].to(DEVICE)
        bases = group.FlipoutBases.assign(ids, count, size)
        base_ids, slots = bases.base_ids.cpu(), bases.slots.cpu()
        assert base_ids.shape == (-(-samples // size), min(count, size)) and slots.shape == (samples,)
        chunk = torch.arange(samples) // size
        assert torch.equal(base_ids[chunk, slots.long()], ids.cpu() % count)
        for number, row in enumerate(base_ids):
            assert sorted(row[row >= 0].tolist()) == torch.unique(ids.cpu()[chunk == number] % count).tolist()
            assert (row >= -1).all()


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("together", [True, False])
def test_displacements_are_sorted_by_base(together, monkeypatch):
    """Those of a base keep their order, whether one launch sorts them or PyTorch; scales follow."""
    if not together:
        monkeypatch.setattr(group, "SORTED_TOGETHER", 0)
    for samples, bases in ((1, 3), (5, 8), (128, 2), (129, 4), (300, 7), (700, 300), (40, 1)):
        generator = torch.Generator().manual_seed(samples)
        ids = torch.randint(0, 2**32, (samples,), generator=generator).to(DEVICE)
        scales = torch.rand(samples, generator=generator).to(DEVICE)
        context = SimpleNamespace(directions=parse(f"flipout({bases})"))
        order, sorted_ids, sorted_scales = group.sort_by_base(context, ids, scales)
        assert torch.equal(order, torch.argsort(ids % bases, stable=True))
        assert torch.equal(sorted_ids, ids[order]) and torch.equal(sorted_scales, scales[order])


def test_nothing_is_copied_from_the_host(monkeypatch):
    """No path makes a tensor of Python numbers: such a copy waits for the device, and a graph cannot capture it."""
    without_kernels(monkeypatch)
    monkeypatch.setattr(launch, "squared_norms", lambda *_: None)  # On a CPU the reference's.
    monkeypatch.setattr(torch, "tensor", None)
    monkeypatch.setattr(torch, "as_tensor", None)
    model, x = mlp(20, 30, 3, activation="quantise"), inputs(9, 20)
    for directions, path in ROUTES:
        scales = torch.full((3,), SCALE)
        kernel_differences(model, x, torch.arange(3), scales, directions, precision="bf16", path=path)


@pytest.mark.parametrize(
    ("directions", "kernels"), [("gaussian", 6), ("rademacher", 3), ("flipout(8)", 6), ("lowrank(1)", 5)]
)
def test_a_chunk_launches_its_own_kernels_and_no_more(directions, kernels, monkeypatch):
    """Three layers take steps, noise in memory and projections. All other work is done once for a group."""
    without_kernels(monkeypatch)
    monkeypatch.setattr(launch, "squared_norms", lambda *_: None)  # On a CPU the reference's.
    model, x = mlp(70, 100, 100, 10, activation="relu"), inputs(600, 70)
    launched = []
    monkeypatch.setattr(NoKernel, "__getitem__", lambda self, grid: lambda *_, **__: launched.append(grid))

    def count(samples):
        monkeypatch.setattr(launch, "plan_chunks", lambda *_: chunks.ChunkPlan(600, 2, samples, 0))
        launched.clear()
        with Operators() as operators:
            kernel_differences(model, x, torch.arange(samples), torch.full((samples,), SCALE), directions,
                               precision="bf16", path="staged" if directions == "gaussian" else "step")  # fmt: skip
        return len(launched), operators.called

    (few, before), (many, after) = count(4), count(14)
    assert many - few == 5 * kernels
    views = {"slice.Tensor", "split.Tensor", "view.default", "select.int"}
    assert {name.removeprefix("aten.") for name in after - before} <= views


@pytest.mark.parametrize("arch", ["sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120", "gfx942"])
def test_every_tile_is_judged(arch):
    """A case of nntk-bench resources is of the tile that a layer takes, or needs as much; every form is compiled."""
    judged = {}
    for case in cases.cases(arch):
        if case.kernel in (kernel.layer_step, kernel.stacked_step):
            sizes = (case.constants[name] for name in ("BH", "BN", "BK"))
            cut = tiles.Tiles(*sizes, case.num_warps, case.num_stages, case.constants["PARTS"])
            source, precision = case.name.removeprefix("layer_step ").replace("_step", "").split()[:2]
            judged.setdefault((source.partition("(")[0], precision), set()).add(cut)
    for (source, precision), compiled in judged.items():
        # Flipout's base goes through registers, where its signs are.
        form = judged["gaussian" if source in (*tiles.GENERATED, "flipout") else "none", precision]
        for width, height, columns in itertools.product((32, 1024), *[(1, 64, 65, 128, 129, 256, 257, 5000)] * 2):
            if source == "formed" and height > FORMED_UNITS:
                continue
            cut = tiles.step_tiles("staged" if source == "formed" else source, precision, width, height, columns, arch)
            assert any(cases.bounds(source, other, cut) for other in compiled)
            same = (one for one in compiled | form if (one.block_h, one.block_n) == (cut.block_h, cut.block_n))
            assert any(one.num_warps == cut.num_warps for one in same)


@pytest.mark.parametrize(
    "arch", ["sm_70", "sm_75", "sm_80", "sm_86", "sm_120", "gfx90a", "gfx942", "gfx950", "gfx1100"]
)
def test_other_cards_take_the_references(arch, monkeypatch, caplog):
    """Below capability 8.0, and on AMD's other cards, which have no products of TF32: and auto rounds nothing there.

    One line of the log says so, however often it happens.
    """
    dispatch.report_slow_path.cache_clear()
    served, cuda = arch in ("sm_80", "sm_86", "sm_120", "gfx942"), torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(target, "target_of", lambda device: target.Target(arch))
    result = dispatch._implementation("mlp_differences", reference, "nntk.kernels.perturb.triton.launch", cuda)
    assert result is (launch.mlp_differences if served else reference)
    relu = recognise(mlp(64, 64, 1, activation="relu")).layers
    assert config.choose_precision(relu, 64, torch.float32, cuda) == ("bf16" if served else "fp32")
    lines = [record.getMessage() for record in caplog.records if record.name == "nntk"]
    assert len(lines) == (not served) and all(arch in line and "Plain torch" in line for line in lines)


def test_precisions_of_products():
    """Only TF32 is called so; operands of 16 bits have but one product, and AMD none of three parts."""
    assert [input_precision(p, "sm_90") for p in ("bf16", "tf32", "fp32")] == ["ieee", "tf32", "tf32x3"]
    assert [input_precision(p, "gfx942") for p in ("bf16", "tf32", "fp32")] == ["ieee", "tf32", "ieee"]


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
def test_peak_memory_on_the_gpu():
    """At M = 4096 and d = 10^6 the extra memory is the outputs and 256 MB."""
    model, x = mlp(256, 1000, 700, 1).cuda(), inputs(256, 256).cuda()
    layers, number = recognise(model).layers, torch.arange(4096, device="cuda")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    scales = torch.full((4096,), SCALE, device="cuda")
    result = mlp_differences(x, layers, number, scales, SEED, max_bytes=2**28)[0]
    assert torch.cuda.max_memory_allocated() - before <= result.nbytes + 2**28


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
def test_the_dispatcher_takes_the_kernels(monkeypatch):
    """The public op on CUDA tensors runs the Triton path."""
    called = []
    tuning.revise()  # No earlier call is repeated.
    evaluate = launch.evaluate_fused
    monkeypatch.setattr(launch, "evaluate_fused", lambda *a: (called.append(1), evaluate(*a)))
    model = mlp(3, 8, 1).cuda()
    scales = torch.full((2,), SCALE, device="cuda")
    mlp_differences(inputs(4, 3).cuda(), recognise(model).layers, torch.arange(2, device="cuda"), scales, SEED)
    assert called


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
@pytest.mark.parametrize("widths", [(20, 64, 1), (20, 300, 1)])
@pytest.mark.parametrize("directions", ["gaussian", "flipout(3)", "lowrank(2)"])
def test_a_graph_captures_the_evaluation(directions, widths):
    """Nothing waits for the device, and nothing is copied from the host."""
    layers, x = recognise(mlp(*widths).cuda()).layers, inputs(9, widths[0]).cuda()
    number, scales = torch.arange(5, device="cuda"), torch.full((5,), SCALE, device="cuda")

    def run():
        return mlp_differences(x, layers, number, scales, SEED, directions)[0]

    expected = run()
    for _ in range(2):  # The call that is recorded, and one that is repeated.
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = run()
        graph.replay()
        assert torch.equal(result, expected)
