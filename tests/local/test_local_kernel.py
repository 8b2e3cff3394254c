"""LocalNTK: operator, features, diagonal, parameters, functions and files against explicit Jacobians in float64."""

import logging

import numpy as np
import pytest
import torch
from conftest import inputs, mlp, relative_error
from torch import nn

import nntk
from nntk import KernelOperator, LocalNTK, NonlocalNTK, local_ntk, write_kernel
from nntk.files.storage import MismatchError
from nntk.kernels.philox import unit_displacements

X = inputs(13, 4, torch.float64)


def normed():
    """Build a network that is no MLP, in float64."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 9), nn.Tanh(), nn.LayerNorm(9), nn.Linear(9, 3)).double()


def jacobian(model, x, parameters=None):
    """Compute the Jacobian by one backward pass for each output, [N, C, d]."""
    parameters = list(model.parameters()) if parameters is None else parameters
    rows = [
        torch.cat([g.flatten() for g in torch.autograd.grad(output, parameters, retain_graph=True)])
        for output in model(x).flatten()
    ]
    return torch.stack(rows).view(len(x), -1, len(rows[0]))


def matrix(rows, outputs):
    """Return the kernel matrix of Jacobians: N x N, or NC x NC."""
    if outputs == "full":
        return rows.flatten(0, 1) @ rows.flatten(0, 1).T
    return rows.flatten(1) @ rows.flatten(1).T / (rows.shape[1] if outputs == "mean" else 1)


@pytest.mark.parametrize("outputs", ["trace", "mean", "full"])
@pytest.mark.parametrize("build", [normed, lambda: mlp(4, 9, 3, dtype=torch.float64)], ids=["normed", "mlp"])
def test_the_operator_has_the_results_of_the_matrix(build, outputs):
    """Products, solutions, eigenvalues and the diagonal, also where vectors and inputs are taken in small blocks."""
    model = build()
    k = matrix(jacobian(model, X), outputs)
    size = len(k)
    y = torch.randn(size, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    operator = LocalNTK(model, outputs=outputs).operator(X)
    assert operator.shape == (size, size)
    torch.testing.assert_close(operator @ y, k @ y, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(operator @ y[:, 0], k @ y[:, 0], rtol=1e-10, atol=1e-10)
    solution = torch.linalg.solve(k + 2.0 * torch.eye(size), y)
    assert relative_error(operator.solve(y, 2.0), solution) < 1e-8
    for number in (3, size):  # By Lanczos iteration, and by the matrix of all products.
        values, vectors = operator.eigsh(number)
        assert relative_error(values, torch.linalg.eigvalsh(k).flip(0)[:number]) < 1e-10
        assert relative_error(k @ vectors[:, :3], vectors[:, :3] * values[:3]) < 1e-7
    torch.testing.assert_close(operator.diagonal(), k.diagonal(), rtol=1e-10, atol=1e-10)
    assert operator.trace() == pytest.approx(float(k.trace()), rel=1e-10)
    scipy = operator.to_scipy()
    np.testing.assert_allclose(scipy @ y.numpy(), (k @ y).numpy(), rtol=1e-10, atol=1e-10)
    blocked = LocalNTK(model, outputs=outputs).operator(X)
    blocked._products._vectors, blocked._products._rows = 2, 5
    torch.testing.assert_close(blocked @ y, k @ y, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("outputs", ["trace", "mean", "diagonal", "full"])
def test_the_diagonal_is_that_of_the_kernel(outputs):
    """For MLPs by their structure, for other models by Jacobians; also of no input, and of inputs with more axes."""
    flattened = nn.Sequential(nn.Flatten(), *mlp(4, 9, 3, dtype=torch.float64))
    for model, x in ((normed(), X), (mlp(4, 9, 3, dtype=torch.float64), X), (flattened, X.view(-1, 2, 2))):
        kernel = LocalNTK(model, outputs=outputs)
        whole = kernel(x)
        expected = torch.stack([whole[n, n] for n in range(len(x))])
        torch.testing.assert_close(kernel.diagonal(x), expected, rtol=1e-10, atol=1e-10)
        assert kernel.diagonal(x[:0]).shape == (0, *expected.shape[1:])


def test_features_are_jacobians():
    """A(x1) A(x2)^T is the kernel; the mean over outputs divides by their root."""
    model = normed()
    rows = jacobian(model, X)
    torch.testing.assert_close(LocalNTK(model).features(X), rows.flatten(1), rtol=1e-10, atol=1e-10)
    mean = LocalNTK(model, outputs="mean").features(X)
    torch.testing.assert_close(mean @ mean.T, matrix(rows, "mean"), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("directions", ["gaussian", "rademacher", "flipout(2)", "lowrank(1)"])
def test_a_sketch_multiplies_the_jacobian_by_the_displacements(directions):
    """It is J E / sqrt(R) with the unit displacements of the random stream, of every family."""
    model, size, seed = normed(), 6, 5
    shapes = [tuple(parameter.shape) for parameter in model.parameters()]
    ids = torch.arange(size)
    noise = [unit_displacements(ids, i, shape, seed, directions, torch.float64) for i, shape in enumerate(shapes)]
    vectors = torch.cat([part.flatten(1) for part in noise], dim=1)
    expected = torch.einsum("ncd,rd->nrc", jacobian(model, X), vectors).flatten(1) / size**0.5
    features = LocalNTK(model).features(X, sketch=size, seed=seed, directions=directions)
    torch.testing.assert_close(features, expected, rtol=1e-10, atol=1e-10)


def test_sketches_are_unbiased():
    """The mean kernel of 64 sketches is within four standard errors, which their spread states, at 99 % of entries."""
    model, x = normed(), X[:5]
    rows = jacobian(model, x)
    exact = matrix(rows, "trace")
    sketches = [LocalNTK(model).features(x, sketch=32, seed=seed) for seed in range(64)]
    kernels = torch.stack([a @ a.T for a in sketches])
    score = (kernels.mean(0) - exact).abs() / (kernels.std(0) / len(kernels) ** 0.5)
    assert float((score < 4).double().mean()) >= 0.99
    # The error of one sketch is what theory predicts for displacements, within a factor of 1.5.
    full = LocalNTK(model, outputs="full")(x)
    predicted = nntk.monte_carlo_error(full, samples=32, num_params=rows.shape[2], outputs="trace")
    measured = float((kernels - exact).square().sum((1, 2)).mean().sqrt())
    assert measured / predicted == pytest.approx(1, rel=0.5)


def test_a_sketch_is_the_limit_of_the_nonlocal_kernel():
    """As gamma falls, the differences of the same displacements are the sketch, to the order of gamma squared."""
    model, size, gamma = normed(), 16, 1e-4
    kernel = NonlocalNTK(model, gamma=gamma, samples=size, seed=3)
    scaled = kernel.differences(X).transpose(0, 1).flatten(1) / (gamma / 2**0.5) / size**0.5
    assert relative_error(LocalNTK(model).features(X, sketch=size, seed=3), scaled) < 1e-7


def test_the_operator_of_a_sketch_solves_the_regression():
    """KernelOperator takes the features of a sketch as those of any kernel."""
    kernel, y = LocalNTK(normed()), X[:, 0]

    def features(x):
        return kernel.features(x, sketch=8)

    operator = KernelOperator(features, lambda x: features(x) @ features(x).T, X, max_bytes=2**20)
    a = features(X)
    expected = torch.linalg.solve(a @ a.T + 0.5 * torch.eye(len(X)), y)
    assert relative_error(operator.solve(y, 0.5), expected) < 1e-8


def test_no_inputs_have_an_empty_operator():
    """Products, solutions, features and the trace of no inputs are empty, or zero."""
    kernel, empty = LocalNTK(normed()), X[:0]
    operator, nothing = kernel.operator(empty), torch.zeros(0, dtype=torch.float64)
    assert operator.shape == (0, 0) and operator.trace() == 0.0
    assert (operator @ nothing).shape == operator.solve(nothing, 1.0).shape == (0,)
    assert operator.solve(torch.zeros(0, 2), 1.0).shape == (0, 2)
    assert kernel.features(empty, sketch=3).shape == (0, 9)


def test_parameters_are_chosen_by_patterns():
    """Kernels of complementary patterns add up, whether or not the parameters require a gradient."""
    model = normed()
    whole = local_ntk(model, X)
    parts = [LocalNTK(model, parameters=names) for names in (["0.*"], ["2.weight", "2.bias", "3.*"])]
    torch.testing.assert_close(parts[0](X) + parts[1](X), whole, rtol=1e-10, atol=1e-10)
    y = X[:, :2]
    torch.testing.assert_close(sum(part.operator(X) @ y for part in parts), whole @ y, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(sum(part.diagonal(X) for part in parts), whole.diagonal(), rtol=1e-10, atol=1e-10)
    assert sum(part.num_params for part in parts) == sum(parameter.numel() for parameter in model.parameters())
    model.requires_grad_(False)
    torch.testing.assert_close(LocalNTK(model, parameters=["*"])(X), whole, rtol=1e-10, atol=1e-10)
    head = mlp(4, 9, 3, dtype=torch.float64)
    rows = jacobian(head, X, list(head[2].parameters()))
    structured = local_ntk(head, X, parameters=["2.*"], method="structured")
    torch.testing.assert_close(structured, matrix(rows, "trace"), rtol=1e-10, atol=1e-10)


def test_adapters_have_a_kernel_of_their_own():
    """The kernel of low-rank adapters on frozen layers is that of the adapters' gradients alone."""

    class Adapted(nn.Module):
        def __init__(self):
            super().__init__()
            self.base = nn.Linear(4, 6).requires_grad_(False)
            self.lora_a, self.lora_b = nn.Parameter(torch.randn(2, 4)), nn.Parameter(torch.randn(6, 2))

        def forward(self, x):
            return (self.base(x) + x @ self.lora_a.T @ self.lora_b.T).tanh()

    torch.manual_seed(0)
    model = Adapted().double()
    rows = jacobian(model, X, [model.lora_a, model.lora_b])
    for kernel in (LocalNTK(model), LocalNTK(model, parameters=["*lora_*"])):
        torch.testing.assert_close(kernel(X), matrix(rows, "trace"), rtol=1e-10, atol=1e-10)


def test_a_function_has_the_kernel_of_the_module_that_it_is():
    """f(parameters, x) with its tensors gives kernel, operator, diagonal and features of the same module."""
    model = normed()
    tensors = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def function(parameters, x):
        return torch.func.functional_call(model, parameters, (x,))

    kernel, expected = LocalNTK(function, parameters=tensors), LocalNTK(model)
    torch.testing.assert_close(kernel(X), expected(X), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(local_ntk(function, X, parameters=tensors, method="reverse"), expected(X))
    torch.testing.assert_close(kernel.operator(X) @ X, expected(X) @ X, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(kernel.diagonal(X), expected.diagonal(X), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(kernel.features(X), expected.features(X), rtol=1e-10, atol=1e-10)
    assert all(tensor.grad is None and not tensor.requires_grad for tensor in tensors.values())


@pytest.mark.parametrize("build", [normed, lambda: mlp(4, 9, 3)], ids=["normed", "mlp"])
def test_float64_is_the_reference_of_a_model_in_float32(build):
    """dtype=torch.float64 gives the kernel of the float32 parameters to double precision; the model stays as it is."""
    model = build().float()
    rows = jacobian(build().float().double(), X.float().double())
    for method in ("auto", "jacobian", "reverse", "vector-products"):
        kernel = local_ntk(model, X.float(), dtype=torch.float64, method=method)
        torch.testing.assert_close(kernel, matrix(rows, "trace"), rtol=1e-10, atol=1e-10)
    reference = LocalNTK(model, dtype=torch.float64)
    torch.testing.assert_close(reference.features(X.float()), rows.flatten(1), rtol=1e-10, atol=1e-10)
    assert reference.dtype == torch.float64 and all(p.dtype == torch.float32 for p in model.parameters())


def test_a_norm_in_float32_is_widened_too():
    """A model that names float32 in its forward pass is computed in float64 throughout, with its own epsilon."""

    class Rms(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.norm = nn.Linear(4, 6), nn.RMSNorm(6)

        def forward(self, x):
            return self.norm(self.first(x).float())

    class Wide(Rms):
        def forward(self, x):
            return nn.functional.rms_norm(self.first(x), (6,), self.norm.weight, torch.finfo(torch.float32).eps)

    torch.manual_seed(0)
    model, wide = Rms(), Wide().double()
    wide.load_state_dict(model.state_dict())
    expected = matrix(jacobian(wide, X.float().double()), "trace")
    torch.testing.assert_close(local_ntk(model, X.float(), dtype=torch.float64), expected, rtol=1e-9, atol=1e-9)
    kernel = LocalNTK(model, dtype=torch.float64)
    torch.testing.assert_close(kernel.operator(X.float()) @ X, expected @ X, rtol=1e-9, atol=1e-9)


def test_products_fall_back_to_backward_passes(caplog):
    """Where forward derivatives are wrong (in a no_grad block), the comparison sees it, and Jacobians take over."""

    class Detached(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x):
            hidden = self.first(x)
            with torch.no_grad():
                scale = hidden.abs().amax(1, keepdim=True)
            return self.second(hidden / scale)

    torch.manual_seed(0)
    model = Detached().double()
    k = matrix(jacobian(model, X), "trace")
    with caplog.at_level(logging.INFO, logger="nntk"):
        torch.testing.assert_close(LocalNTK(model).operator(X) @ X, k @ X, rtol=1e-10, atol=1e-10)
    assert any("Products take Jacobians by backward passes" in message for message in caplog.messages)


def test_a_matrix_in_a_file_is_the_kernel(tmp_path):
    """Tiles of a local NTK resume like those of any kernel, and another model's file is refused."""
    model = normed()
    kernel, path = LocalNTK(model), tmp_path / "k.npy"
    written = torch.tensor(np.array(write_kernel(path, kernel, X, tile=5)))
    torch.testing.assert_close(written, kernel(X), rtol=1e-10, atol=1e-10)
    assert torch.equal(torch.tensor(np.array(write_kernel(path, kernel, X, tile=5))), written)
    for other in (LocalNTK(model, parameters=["0.*"]), LocalNTK(model, outputs="mean"), NonlocalNTK(model, samples=8)):
        with pytest.raises(MismatchError):
            write_kernel(path, other, X, tile=5)


def test_plans_state_the_method():
    """An MLP has structure, other models Jacobians; the kernel's bytes are exact."""
    plan = LocalNTK(mlp(4, 9, 3, dtype=torch.float64), outputs="full").plan(X, X[:5])
    assert plan.method == "structured" and plan.result == 13 * 5 * 9 * 8 < plan.total and "by structured" in str(plan)
    assert LocalNTK(normed()).plan(X).method == "jacobian"
    assert LocalNTK(normed(), method="vector-products").plan(X).method == "vector-products"


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: LocalNTK(normed(), parameters=["head.*"]), ValueError, "parameters must fit names of the model"),
        (lambda: LocalNTK(normed(), parameters={"w": X}), TypeError, "parameters must be names for an nn.Module"),
        (
            lambda: LocalNTK(lambda p, x: x),
            TypeError,
            r"f\(parameters, x\) with its tensors as parameters; got function",
        ),
        (
            lambda: LocalNTK(nntk.BlackBox(lambda v, x: x, np.zeros(2))),
            TypeError,
            "that autograd can differentiate, got a BlackBox; use nntk.NonlocalNTK",
        ),
        (lambda: LocalNTK(normed(), dtype=torch.float16), TypeError, "dtype must be torch.float32, torch.float64 or"),
        (lambda: LocalNTK(normed(), outputs="sum"), ValueError, "outputs must be one of"),
        (lambda: LocalNTK(normed(), method="exact"), ValueError, "method must be one of"),
        (lambda: LocalNTK(normed(), outputs="diagonal").operator(X), ValueError, "'full' for an operator, got 'diag"),
        (lambda: LocalNTK(normed(), outputs="full").features(X), ValueError, "outputs must be 'trace' or 'mean' to"),
        (lambda: LocalNTK(normed()).features(X, sketch=0), ValueError, "sketch must be at least 1, got 0"),
        (lambda: LocalNTK(normed()).features(X, sketch=8, seed=-1), ValueError, "seed must be"),
        (lambda: LocalNTK(normed()).operator(X.float()), TypeError, "x must be torch.float64 like the model's"),
        (lambda: LocalNTK(normed()).operator(X) @ X[:4], ValueError, r"vectors must have shape \[13\] or"),
        (lambda: LocalNTK(normed()).operator(X).solve(X, 0.0), ValueError, "alpha must be"),
        (
            lambda: LocalNTK(normed()).operator(X).solve(X, 1e-9, rtol=1e-15, max_iterations=2),
            ArithmeticError,
            "conjugate gradients did not reach a relative residual of 1e-15 in 2 iterations for alpha=1e-09",
        ),
        (lambda: LocalNTK(normed()).operator(X).eigsh(14), ValueError, "k must be at most 13, got 14"),
    ],
)
def test_bad_arguments_are_named(call, error, message):
    """Each error names the argument, the value and the allowed values."""
    with pytest.raises(error, match=message):
        call()


def test_several_inputs_and_a_chosen_output():
    """Tokens with a mask, and a dictionary of outputs, have the kernel of the function of one tensor that they are."""

    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.head = nn.Embedding(10, 4), nn.Linear(4, 2)

        def forward(self, tokens, mask):
            pooled = (self.embedding(tokens) * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
            return {"pooled": pooled, "scores": self.head(pooled.tanh())}

    torch.manual_seed(0)
    model = Masked().double()
    x = {"tokens": torch.randint(0, 10, (6, 5)), "mask": torch.ones(6, 5, dtype=torch.int64)}
    x["mask"][2:, 3:] = 0
    tokens, mask = x.values()
    rows = jacobian(lambda tokens: model(tokens, mask)["scores"], tokens, list(model.parameters()))
    kernel = LocalNTK(model, output="scores")
    expected = matrix(rows, "trace")
    torch.testing.assert_close(kernel(x), expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(kernel.operator(x) @ expected, expected @ expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(kernel.diagonal(x), expected.diagonal(), rtol=1e-10, atol=1e-10)
    a = kernel.features(x)
    torch.testing.assert_close(a @ a.T, expected, rtol=1e-10, atol=1e-10)
    assert kernel.features(x, sketch=3).shape == (6, 6) and kernel.plan(x).method == "jacobian"
