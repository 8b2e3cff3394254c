"""The networks of benchmarks and studies: their values, in both precisions and stacked, and what autograd sees."""

import pytest
import torch
from torch import nn

import nntk
from nntk.bench.networks import BinaryCnn, LongShortTermMemory, Mixture, ResNet, SpikingNetwork, Transformer

HARD = {
    "spiking": (SpikingNetwork, (64,), {"head"}),
    "binary": (BinaryCnn, (1, 8, 8), {"head"}),
    "mixture": (Mixture, (64,), {"experts"}),
}
SMOOTH = {
    "LSTM": (LongShortTermMemory, (8, 8)),
    "ResNet": (lambda: ResNet(nn.ReLU), (3, 8, 8)),
    "transformer": (lambda: Transformer(nntk.activations.Sign), None),
}
every_hard_network = pytest.mark.parametrize("name", HARD)
both_precisions = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def network(make, dtype=torch.float64, **options):
    """Return a network that depends on nothing but its class."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make(**options).to(dtype).eval()


def inputs(shape, dtype=torch.float64):
    """Return six inputs; None is the shape of tokens."""
    generator = torch.Generator().manual_seed(1)
    if shape is None:
        return torch.randint(0, 1000, (6, 24), generator=generator)
    return torch.rand(6, *shape, generator=generator, dtype=torch.float64).to(dtype)


@both_precisions
@every_hard_network
def test_a_surrogate_changes_the_gradient_alone(name, dtype):
    """The outputs are the same to the bit, and the gradients of the parameters are not."""
    make, shape, _ = HARD[name]
    x = inputs(shape, dtype)
    hard, smooth = (network(make, dtype, surrogate=surrogate) for surrogate in (None, 1.0))
    assert torch.equal(hard(x), smooth(x)) and hard(x).dtype == dtype
    kernels = [nntk.local_ntk(model, x) for model in (hard, smooth)]
    assert not torch.allclose(*kernels)


@every_hard_network
def test_autograd_sees_what_is_behind_the_last_jump(name):
    """Every parameter in front of it has a gradient of zero, but by a surrogate."""
    make, shape, seen = HARD[name]
    for surrogate in (None, 1.0):
        model = network(make, surrogate=surrogate)
        model(inputs(shape)).square().sum().backward()
        for parameter_name, parameter in model.named_parameters():
            has_gradient = parameter.grad is not None and bool((parameter.grad != 0).any())
            # Experts that no input was sent to have no gradient.
            expected = surrogate is not None or parameter_name.split(".")[0] in seen
            assert has_gradient == expected or "experts" in parameter_name


@both_precisions
@pytest.mark.parametrize("name", [*HARD, "spiking, surrogate", "binary, surrogate", "mixture, surrogate", *SMOOTH])
def test_stacked_parameters_give_the_values_of_each(name, dtype):
    """As torch.func.vmap evaluates them, in the precision of the parameters."""
    base, _, surrogate = name.partition(", ")
    make, shape, *_ = HARD.get(base) or SMOOTH[base]
    options = {"surrogate": 1.0} if surrogate else {}
    model, x = network(make, dtype, **options), inputs(shape, dtype)
    generator = torch.Generator().manual_seed(2)
    stacked = {
        key: parameter.detach() + 0.1 * torch.randn(3, *parameter.shape, generator=generator, dtype=dtype)
        for key, parameter in model.named_parameters()
    }
    result = torch.vmap(lambda parameters: torch.func.functional_call(model, parameters, (x,)))(stacked)
    single = [
        torch.func.functional_call(model, {key: value[number] for key, value in stacked.items()}, (x,))
        for number in range(3)
    ]
    torch.testing.assert_close(result, torch.stack(single))
    assert result.dtype == dtype and not torch.equal(result[0], result[1])


@every_hard_network
def test_surrogate_gradients_are_the_same_by_both_transforms(name):
    """The NTK by torch.func is that by plain reverse mode."""
    make, shape, _ = HARD[name]
    model, x = network(make, surrogate=0.5), inputs(shape)
    kernels = [nntk.local_ntk(model, x, method=method) for method in ("jacobian", "reverse")]
    torch.testing.assert_close(*kernels)


def test_a_spiking_unit_fires_as_often_as_its_current_demands():
    """Without decay, a constant current of a quarter fires every fourth step."""
    model = network(SpikingNetwork, inputs=1, widths=(1, 1), outputs=1, steps=8, decay=1.0)
    with torch.no_grad():
        for layer, weight in ((model.first, 0.25), (model.second, 1.0), (model.head, 1.0)):
            layer.weight.fill_(weight)
            layer.bias.zero_()
    assert model(torch.ones(1, 1, dtype=torch.float64)).item() == 2 / 8


def test_the_mixture_is_the_chosen_expert():
    """Each output is that of one expert, and more than one of them is chosen."""
    model, x = network(Mixture), inputs((64,)) * torch.linspace(-3, 3, 6, dtype=torch.float64)[:, None]
    choice = model.router(x).argmax(1)
    expected = torch.stack([model.experts[expert](one) for expert, one in zip(choice.tolist(), x, strict=True)])
    torch.testing.assert_close(model(x), expected)
    assert len(set(choice.tolist())) > 1


def test_the_long_short_term_memory_is_that_of_torch():
    """With the weights of an nn.LSTM it has the same states."""
    model, x = network(LongShortTermMemory), inputs((8, 8))
    lstm = network(lambda: nn.LSTM(8, 64, batch_first=True))
    with torch.no_grad():
        for layer, ending in ((model.inputs, "ih_l0"), (model.recurrent, "hh_l0")):
            layer.weight.copy_(getattr(lstm, f"weight_{ending}"))
            layer.bias.copy_(getattr(lstm, f"bias_{ending}"))
    torch.testing.assert_close(model(x), model.head(lstm(x)[0][:, -1]))
