"""Inputs of several tensors: the kernel is that of the same model with one tensor, and of float64."""

from collections import UserDict

import numpy as np
import pytest
import torch
from conftest import inputs, mlp, relative_error
from masked_models import Classifier, Packed, packed, tokens
from torch import nn
from torch.func import functional_call

import nntk
from nntk import BlackBox, Inputs, NonlocalNTK, local_ntk

ROUTES = {
    "float32 copies": {},
    "float64 copies": {"propagation": "direct"},
    "rules": {"propagation": "difference", "gamma": 1e-6},
    "plugin": {"estimator": "plugin"},
    "attention": {"weights": nntk.Attention(temperature=0.5), "antithetic": False},
    "diagonal": {"outputs": "diagonal", "directions": "rademacher"},
}


def kernels(unit=torch.tanh, **settings):
    """The kernel of the classifier of several tensors, and that of the same model of one."""
    model, settings = Classifier(unit), {"samples": 24, **settings}
    return NonlocalNTK(model, **settings), NonlocalNTK(Packed(model), **settings)


@pytest.mark.parametrize("settings", ROUTES.values(), ids=ROUTES)
def test_several_tensors_have_the_kernel_of_one(settings):
    """Bit for bit, by every route, symmetric and not, with differences, plans and weights."""
    several, single = kernels(**settings)
    x, y = tokens(), tokens(4, seed=1)
    assert torch.equal(several(x), single(packed(x)))
    assert torch.equal(several(x, y), single(packed(x), packed(y)))
    assert torch.equal(several.differences(x), single.differences(packed(x)))
    assert several.plan(x).route == single.plan(packed(x)).route
    assert torch.equal(several.diagonal(x), single.diagonal(packed(x)))
    if several.settings.attends_to_outputs:
        assert torch.equal(several.displacement_weights(x), single.displacement_weights(packed(x)))


def test_all_methods_take_several_tensors():
    """Features, gradients, operators and estimates are those of one tensor."""
    (several, single), x, y = kernels(), tokens(), tokens(4, seed=1)
    assert torch.equal(several.features(x), single.features(packed(x)))
    assert torch.equal(several.jacobian(x), single.jacobian(packed(x)))
    operators = several.operator(x), single.operator(packed(x))
    assert torch.equal(operators[0] @ torch.ones(7), operators[1] @ torch.ones(7))
    weights = torch.ones(operators[0].num_features)
    assert torch.equal(operators[0].expand(weights, y), operators[1].expand(weights, packed(y)))
    estimates = several.estimate(x, rtol=0.5), single.estimate(packed(x), rtol=0.5)
    assert torch.equal(estimates[0].kernel, estimates[1].kernel)
    assert torch.equal(estimates[0].standard_error, estimates[1].standard_error)


@pytest.mark.parametrize("settings", [{}, {"propagation": "difference"}], ids=["auto", "rules"])
@pytest.mark.parametrize("unit", [torch.tanh, nntk.activations.Sign()], ids=["tanh", "sign"])
def test_differences_are_those_of_float64(unit, settings):
    """The mean of outputs at displaced parameters, one displacement after another, with masks as inputs."""
    kernel, x = kernels(unit, **settings)[0], tokens()
    model = kernel.model.double()
    expected = []
    base = dict(model.named_parameters())
    displacements = [NonlocalNTK(Classifier(unit), samples=24).displacements(m) for m in range(24)]
    for displacement in displacements:
        members = [
            functional_call(model, {n: p + sign * displacement[n].double() for n, p in base.items()}, (), x).logits
            for sign in (1, -1)
        ]
        expected.append((members[0] - members[1]).detach() / 2)
    model.float()
    assert relative_error(kernel.differences(x), torch.stack(expected)) < 2e-5


def test_a_masked_token_does_not_count():
    """The kernel does not depend on what stands behind a mask, and it does on what stands before it."""
    kernel, x = kernels()[0], tokens()
    other = {**x, "input_ids": torch.where(x["attention_mask"] == 0, 3, x["input_ids"])}
    assert torch.equal(kernel(x), kernel(other))
    assert not torch.equal(kernel(x), kernel({**x, "attention_mask": torch.ones_like(x["attention_mask"])}))


def test_forms_of_the_same_inputs():
    """A mapping, a tuple, keywords, positions, and both together are one call of the model."""
    kernel, x = kernels()[0], tokens()
    ids, mask = x["input_ids"], x["attention_mask"]
    expected = kernel(x)
    reordered = {"attention_mask": mask, "input_ids": ids}
    forms = [UserDict(x), (ids, mask), reordered, Inputs(ids, mask), Inputs(ids, attention_mask=mask), Inputs(**x)]
    for form in [*forms, Inputs(ids, mask, scale=None)]:
        assert torch.equal(kernel(form), expected)
    assert torch.equal(kernel(x, reordered), kernel(x, x))
    plain = NonlocalNTK(mlp(3, 8, 1), samples=8)
    assert torch.equal(plain((inputs(4, 3),)), plain(inputs(4, 3)))


def test_a_number_for_each_input_is_an_input():
    """A tensor [N] of several is accepted; K scales with it in each argument."""
    kernel, x = kernels(propagation="difference")[0], tokens()
    scale = torch.linspace(0.5, 2, 7)
    assert relative_error(kernel({**x, "scale": scale}), kernel(x) * scale[:, None] * scale) < 1e-5


def test_a_model_of_a_dictionary_has_it_as_its_argument():
    """Inputs({...}) hands the dictionary on as it is, and nested values are sliced too."""

    class OfDictionary(nn.Linear):
        def forward(self, batch):
            return super().forward(batch["x"] * batch["both"][1])

    model, x = OfDictionary(3, 1), inputs(6, 3)
    nested = Inputs({"x": x, "both": [x, torch.full((6, 3), 2.0)]})
    kernel = NonlocalNTK(model, samples=16, propagation="direct")
    plain = nn.Linear(3, 1)
    plain.load_state_dict(model.state_dict())
    assert relative_error(kernel(nested), NonlocalNTK(plain, samples=16)(2 * x)) < 1e-5


def test_functions_and_black_boxes_take_several_tensors():
    """f(parameters, a, b), f(parameters, a=, b=), and NumPy arrays."""
    a, b, w = inputs(5, 3), inputs(5, 3, seed=2), inputs(3, 2, seed=3)
    expected = NonlocalNTK(lambda p, x: (x @ p["w"]).tanh(), parameters={"w": w}, samples=16)(a * b)
    kernel = NonlocalNTK(lambda p, a, b: ((a * b) @ p["w"]).tanh(), parameters={"w": w}, samples=16)
    for form in ((a, b), {"a": a, "b": b}, Inputs(a, b=b)):
        assert relative_error(kernel(form), expected) < 1e-5
    theta = w.double().flatten().numpy()
    box = BlackBox(lambda theta, a, b: np.tanh((a * b) @ theta.reshape(3, 2)), theta)
    single = BlackBox(lambda theta, x: np.tanh(x @ theta.reshape(3, 2)), theta)
    a, b = a.double(), b.double()
    assert relative_error(NonlocalNTK(box, samples=8)({"a": a, "b": b}), NonlocalNTK(single, samples=8)(a * b)) < 1e-9


def test_draws_seed_models_of_several_tensors():
    """A module by the global generators; a function by its last argument, or the keyword seed."""
    a, b, w = inputs(5, 3), inputs(5, 3, seed=2), inputs(3, 1, seed=3)

    def noisy(parameters, a, b, seed):
        generator = torch.Generator().manual_seed(seed)
        return (a * b + torch.randn(3, generator=generator).to(a)) @ parameters["w"]

    kernel = NonlocalNTK(noisy, parameters={"w": w}, samples=8, draws=3)
    assert torch.equal(kernel((a, b)), kernel({"a": a, "b": b}))
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 1)).train()
    expected = NonlocalNTK(model, samples=8, draws=3)(a)
    assert torch.equal(NonlocalNTK(model, samples=8, draws=3)({"input": a}), expected)


@pytest.mark.parametrize(
    ("method", "outputs"), [("auto", "trace"), ("jacobian", "full"), ("reverse", "trace"), ("vector-products", "full")]
)
def test_local_ntk_is_that_of_plain_gradients(method, outputs):
    """Every method, symmetric and not, against torch.autograd.grad at one input after another."""
    model, x, y = Classifier().double(), tokens(), tokens(4, seed=1)

    def gradients(batch):
        rows = []
        for n in range(len(batch["input_ids"])):
            logits = model(**{name: tensor[n : n + 1] for name, tensor in batch.items()}).logits[0]
            for one in logits:
                parts = torch.autograd.grad(one, model.parameters(), retain_graph=True)
                rows.append(torch.cat([part.flatten() for part in parts]))
        return torch.stack(rows).view(-1, 3, sum(p.numel() for p in model.parameters()))

    full = torch.einsum("ncd,med->nmce", gradients(x), gradients(y))
    expected = full if outputs == "full" else torch.einsum("nmcc->nm", full)
    assert relative_error(local_ntk(model, x, y, method=method, outputs=outputs), expected) < 1e-10
    assert torch.equal(local_ntk(model, x, method=method), local_ntk(model, x, method=method).T)


def test_the_nonlocal_kernel_tends_to_the_local_one():
    """At a small gamma, within the Monte-Carlo error."""
    x = tokens()
    kernel, ntk = NonlocalNTK(Classifier(), gamma=1e-4, samples=2048), local_ntk(Classifier(), x, outputs="full")
    error = nntk.monte_carlo_error(ntk, 2048, kernel.num_params, "trace")
    assert float((kernel(x) - local_ntk(Classifier(), x)).norm()) < 3 * error


@pytest.mark.parametrize("tile", [None, 3])
def test_kernels_in_files(tile, tmp_path):
    """write_kernel takes several tensors, resumes them, and tells other masks, constants and outputs apart."""
    (kernel, _), x = kernels(), tokens()
    path = tmp_path / "k.npy"
    matrix = torch.tensor(np.array(nntk.write_kernel(path, kernel, x, tile=tile)))
    assert relative_error(matrix, kernel(x)) < 1e-5
    again = nntk.write_kernel(path, kernel, dict(reversed(x.items())), tile=tile)
    assert torch.equal(torch.tensor(np.array(again)), matrix)
    for other in ({**x, "attention_mask": torch.ones_like(x["attention_mask"])}, {**x, "scale": None}):
        with pytest.raises(nntk.files.storage.MismatchError, match="inputs"):
            nntk.write_kernel(path, kernel, other, tile=tile)
    chosen = NonlocalNTK(kernel.model, samples=24, output="logits")
    with pytest.raises(nntk.files.storage.MismatchError, match="output"):
        nntk.write_kernel(path, chosen, x, tile=tile)


def test_tracker_records_several_tensors():
    """KernelTracker holds the inputs in any form."""
    kernel, x = kernels()[0], tokens()
    record = nntk.KernelTracker(kernel, x).record(0)
    assert record.trace == pytest.approx(float(kernel(x).trace()), rel=1e-5)


def test_inputs_cannot_be_changed_and_are_not_changed():
    """Inputs are frozen; a model that writes to its mask has no effect on the caller's tensors."""

    class Writes(Classifier):
        def forward(self, input_ids, attention_mask):
            attention_mask[:, 1:] = 0
            return super().forward(input_ids, attention_mask)

    x = tokens()
    given = {name: tensor.clone() for name, tensor in x.items()}
    first = {**x, "attention_mask": torch.zeros_like(x["attention_mask"])}
    first["attention_mask"][:, 0] = 1
    assert relative_error(NonlocalNTK(Writes(), samples=8)(x), NonlocalNTK(Classifier(), samples=8)(first)) < 1e-5
    assert all(torch.equal(x[name], given[name]) for name in x)
    with pytest.raises(AttributeError, match="cannot be changed"):
        Inputs(**x).extra = 1


class Mixes(Classifier):
    """A model whose mask reaches the whole batch."""

    def forward(self, input_ids, attention_mask):
        """Multiply by the mean of all masks."""
        return super().forward(input_ids, attention_mask).logits * attention_mask.double().mean().to(torch.float32)


class Random(Classifier):
    """A model that draws numbers."""

    def forward(self, input_ids, attention_mask):
        """Add noise."""
        logits = super().forward(input_ids, attention_mask).logits
        return logits + torch.rand_like(logits)


@pytest.mark.parametrize("make", [lambda m: NonlocalNTK(m, samples=8), lambda m: lambda x: local_ntk(m, x)])
@pytest.mark.parametrize(("model", "text"), [(Mixes, "one by one"), (Random, "random numbers")])
def test_the_probe_sees_models_of_several_tensors(model, text, make):
    """Mixed batches and random numbers are refused, as with one tensor."""
    with pytest.raises(ValueError, match=text):
        make(model())(tokens())


X = tokens()
IDS, MASK = X["input_ids"], X["attention_mask"]
BAD_INPUTS = {
    "rows": ({"a": IDS, "b": MASK[:5]}, ValueError, r"x1\['b'\] has 5 rows, but x1\['a'\] has 7"),
    "rows of a tuple": ((IDS, MASK[:5]), ValueError, r"x1\[1\] has 5 rows, but x1\[0\] has 7"),
    "no tensor": ({"input_ids": None}, ValueError, "x1 must hold a tensor at least, got input_ids"),
    "empty": ((), ValueError, "x1 must hold a tensor at least"),
    "an array": ({**X, "scale": np.ones(7)}, TypeError, r"x1\['scale'\] must be a torch.Tensor, got ndarray"),
    "another dtype": ({**X, "scale": torch.ones(7).double()}, TypeError, r"x1\['scale'\] must be torch.float32"),
    "not finite": ({**X, "scale": torch.full((7,), torch.nan)}, ValueError, r"x1\['scale'\] must be finite"),
    "no axis": ({**X, "scale": torch.tensor(1.0)}, ValueError, r"x1\['scale'\] must have a row for each input"),
    "no names": ({1: IDS}, TypeError, "x1 must have texts as keys"),
    "sparse": ({**X, "scale": torch.eye(7).to_sparse()}, TypeError, r"x1\['scale'\] must be a dense tensor"),
    "a missing argument": ({"input_ids": IDS}, ValueError, "missing 1 required positional argument"),
}


def test_a_list_is_no_inputs():
    """A list may be several tensors or several batches: the message says how each is written."""
    with pytest.raises(TypeError, match=r"x1 must be a torch.Tensor, got list; .* a tuple, .* and batches nntk.Stream"):
        NonlocalNTK(Classifier(), samples=4)([IDS, MASK])


@pytest.mark.parametrize(("x", "error", "text"), BAD_INPUTS.values(), ids=BAD_INPUTS)
def test_errors_name_the_tensor(x, error, text):
    """Both kernels refuse inputs that do not fit, and say which tensor does not."""
    with pytest.raises(error, match=text):
        NonlocalNTK(Classifier(), samples=4)(x)
    with pytest.raises(error, match=text):
        local_ntk(Classifier(), x)


def test_rows_and_columns_have_the_same_tensors():
    """A mask in one and none in the other is refused; an MLP has one tensor."""
    with pytest.raises(ValueError, match="same tensors by the same names"):
        NonlocalNTK(Classifier(), samples=4)(X, {**X, "scale": torch.ones(7)})
    x = inputs(4, 3)
    for call in (NonlocalNTK(mlp(3, 4, 1), samples=4), lambda x: local_ntk(mlp(3, 4, 1), x)):
        with pytest.raises(TypeError, match="x1 must be one tensor for an nn.Sequential"):
            call((x, x))
