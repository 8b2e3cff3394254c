"""Both products of a layer in one loop, over stacked operands: against float64, against two loops, and its memory."""

import copy

import pytest
import torch
from conftest import inputs, mlp, relative_error
from triton_device import DEVICE, SEED, Allocated, kernel_differences, without_kernels

from nntk.kernels.perturb.triton import chunks, config, launch
from nntk.kernels.philox.triton import launch as philox
from nntk.models.functional import call

# Widths, inputs, displacements: ones, odd numbers, more than a tile of units and of terms, two stacked layers.
SHAPES = [((3, 130, 17, 10), 17, 3), ((5, 17, 131, 1), 33, 2), ((1, 1, 3), 1, 1)]
SCALES = torch.tensor([0.05, 0.31, 1e-3])

pytestmark = pytest.mark.usefixtures("poisoned_memory")


def evaluated(widths, number, samples, directions, pairs, precision="fp32", path="stacked", **options):
    """Unit differences of a network with gelu at displacements of different scales."""
    return kernel_differences(
        mlp(*widths, activation="gelu"), inputs(number, widths[0]), torch.arange(7, 7 + samples), SCALES[:samples],
        directions, pairs, precision, path, **options,
    )[0].cpu()  # fmt: skip


def in_float64(widths, number, samples, directions, pairs):
    """The same by plain evaluation in float64 at the kernels' displacements."""
    model, x = copy.deepcopy(mlp(*widths, activation="gelu")).double(), inputs(number, widths[0]).double()
    parameters, ids = dict(model.named_parameters()), torch.arange(7, 7 + samples).to(DEVICE)
    noise = {
        name: philox.unit_displacements(ids, ordinal, list(value.shape), SEED, 0, directions, torch.float64).cpu()
        for ordinal, (name, value) in enumerate(parameters.items())
    }

    def at(m, s):
        return call(model, {name: value + s * noise[name][m] for name, value in parameters.items()}, x)

    scales = SCALES[:samples].double().tolist()
    with torch.no_grad():
        members = torch.stack([
            torch.stack([(at(m, sign * s) - at(m, 0.0)) / s for m, s in enumerate(scales)]) for sign in (1, -1)
        ])  # fmt: skip
    return {"none": members[0], "odd": (members[0] - members[1]) / 2, "both": members}[pairs]


@pytest.fixture
def launched(monkeypatch):
    """Names of the layers' kernels that were launched, in order."""
    names, repeated = [], launch.LayerSteps.__call__

    def record(self, *group):
        names.extend("stacked" if step.path == "stacked" else step.source for step in self._steps)
        return repeated(self, *group)

    monkeypatch.setattr(launch.LayerSteps, "__call__", record)
    return names


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("pairs", ["none", "odd", "both"])
@pytest.mark.parametrize("directions", config.GENERATED)
def test_one_loop_against_float64_and_two_loops(directions, pairs, shape, launched):
    """The sums have the same terms in the same order: the bits of two loops, and the digits of float32."""
    result = evaluated(*shape, directions, pairs)
    assert launched == ["staged"] + ["stacked"] * (len(shape[0]) - 2), "layer 0 has one product"
    assert relative_error(result, in_float64(*shape, directions, pairs)) < 2e-6
    two_loops = evaluated(*shape, directions, pairs, path="staged")
    if DEVICE == "cpu":
        assert torch.equal(result, two_loops)
    else:  # Tiles differ between the paths on some cards.
        assert relative_error(result, two_loops) < 2e-6


@pytest.mark.parametrize("precision", ["bf16", "tf32"])
@pytest.mark.parametrize("directions", config.GENERATED)
def test_operands_of_lower_precision_are_the_same(directions, precision):
    """What two loops read is what one loop reads, in several chunks, the last of which is not full."""
    shape = ((20, 40, 70, 3), 9, 3)
    results = [evaluated(*shape, directions, "odd", precision, path, max_bytes=2**16) for path in ("stacked", "staged")]
    assert relative_error(*results) <= (0.0 if DEVICE == "cpu" else 2e-6)


@pytest.mark.parametrize("shapes", [[(0, 0), (2, 32), (3, 48)], [(1, 1)], [(5, 7), (0, 0), (3, 100), (70, 33), (2, 1)]])
def test_weights_in_front_of_the_noise_do_not_overlap(shapes):
    """Each is whole rows before the noise, which is at the same place for all layers, and ends before the next."""
    rows, end = chunks.noise_rows(shapes), 0
    for (height, width), row in zip(shapes, rows, strict=True):
        if height:
            start = row * philox.padded(width)
            assert start - height * philox.padded(width) >= end, "counted from the noise to the front"
            end = start
        else:
            assert row == 0


@pytest.mark.parametrize(
    ("widths", "number", "samples", "budget"),
    [
        ((1024, 1024, 1024, 10), 20, 50, 2**25),
        ((256, 512, 512, 10), 2000, 50, 2**24),
        ((256, 256, 1000), 20, 200, 2**23),
        ((64, 100, 300, 50, 10), 40, 500, 2**22),
    ],
)
@pytest.mark.parametrize("directions", config.GENERATED)
def test_the_budget_holds_the_weights_in_front_of_the_noise(directions, widths, number, samples, budget, monkeypatch):
    """All tensors at once, the copies of weights among them: the budget and the outputs; kernels do not run."""
    without_kernels(monkeypatch)
    monkeypatch.setattr(launch, "squared_norms", lambda *_: None)  # On a CPU the reference's.
    model = mlp(*widths, activation="relu")
    with Allocated() as allocated:
        kernel_differences(model, inputs(number, widths[0]), torch.arange(samples), torch.full((samples,), 0.1),
                           directions, precision="bf16", path="stacked", max_bytes=budget)  # fmt: skip
    outputs = 4 * samples * number * widths[-1]
    assert allocated.peak <= budget + outputs, f"{(allocated.peak - outputs) / budget:.2f} of the budget"


def test_a_measurement_chooses_one_loop(launched):
    """The rule never does. Where the copies of both weights take too much of the budget, there are two loops."""
    shape, key = ((5, 140, 140, 140, 3), 3, 1), ("gaussian", "fp32", 140, 140, 6, False)
    evaluated(*shape, "gaussian", "odd", path=None)
    assert "stacked" not in launched
    launched.clear()
    with config.LAYER_PATH.forced(key, config.Path("stacked")):
        evaluated(*shape, "gaussian", "odd", path=None)
        # A copy takes 80,640 bytes, and a quarter of the budget is there for them.
        evaluated(*shape, "gaussian", "odd", path=None, max_bytes=400_000)
    assert launched[1:3] == ["stacked"] * 2 and launched[5:7] == ["staged"] * 2


def test_only_generated_noise_is_stacked():
    """Flipout's bases and the factors of low rank are no matrices of a displacement; a frozen layer has no noise."""
    with pytest.raises(ValueError, match="path 'stacked' does not apply to flipout"):
        evaluated((3, 4, 2), 2, 2, "flipout(2)", "odd")
    model = mlp(3, 20, 10, 2)
    model[2].weight.requires_grad_(False)
    result = kernel_differences(model, inputs(4, 3), torch.arange(2), SCALES[:2], "gaussian", path="stacked")[0]
    expected = kernel_differences(model, inputs(4, 3), torch.arange(2), SCALES[:2], "gaussian", path="step")[0]
    assert relative_error(result.cpu(), expected.cpu()) < 2e-6
