"""Attribution to training data: against the formula with exact gradients, and against leaving examples out."""

import copy

import numpy as np
import pytest
import scipy.stats
import torch
from conftest import inputs, mlp
from torch import nn

import nntk
from nntk import NonlocalNTK, attribution_scores, linear_datamodeling_score
from nntk.learning.attribution import output_features


def margins(model, x, labels):
    """Return log p / (1 - p) of the labels, by its definition."""
    p = model(x).softmax(1)[torch.arange(len(x)), labels]
    return torch.log(p / (1 - p))


def gradients(model, x, labels):
    """Return the gradients of the margins, one backward pass each, [N, d]."""
    rows = [torch.autograd.grad(margins(model, x[n : n + 1], labels[n : n + 1])[0], list(model.parameters()))
            for n in range(len(x))]  # fmt: skip
    return torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])


@pytest.mark.parametrize("antithetic", [True, False])
def test_features_are_projected_gradients_of_the_margin(antithetic):
    """At a small gamma: of length sqrt(d / M) times the cosine with each displacement."""
    model, x, labels = mlp(4, 6, 3, dtype=torch.float64), inputs(5, 4, torch.float64), torch.tensor([0, 2, 1, 1, 0])
    kernel = NonlocalNTK(model, gamma=1e-6, samples=7, antithetic=antithetic)
    features, outputs = output_features(kernel, x, labels)
    deltas = torch.stack([torch.cat([p.flatten() for p in kernel.displacements(m).values()]) for m in range(7)])
    expected = gradients(model, x, labels) @ (deltas / deltas.norm(dim=1, keepdim=True)).T
    torch.testing.assert_close(features, expected * (kernel.num_params / 7) ** 0.5, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(outputs, margins(model, x, labels).detach())


@pytest.mark.parametrize("samples", [30, 4], ids=["dual", "primal"])
def test_scores_are_traks_formula_on_these_features(samples):
    """By NumPy, for two models, of which each factor is averaged, in blocks of inputs as at once."""
    x, new = inputs(9, 4), inputs(3, 4, seed=5)
    labels, new_labels = torch.arange(9) % 3, torch.tensor([2, 0, 1])
    kernels = [NonlocalNTK(mlp(4, 6, 3, activation="sign", seed=seed), samples=samples, seed=seed) for seed in (0, 1)]
    influence, slopes = np.zeros((3, 9)), np.zeros(9)
    for kernel in kernels:
        a, b = (output_features(kernel, *part)[0].numpy() for part in ((x, labels), (new, new_labels)))
        value = 0.2 * (a**2).sum(1).mean()
        influence += b @ np.linalg.inv(a.T @ a + value * np.eye(samples)) @ a.T / 2
        p = kernel.model(x).softmax(1)[torch.arange(9), labels].detach().double().numpy()
        slopes += (1 - p) / 2
    scores = attribution_scores(kernels, x, labels, new, new_labels, alpha=0.2)
    np.testing.assert_allclose(scores, influence * slopes, rtol=1e-5, atol=1e-9)
    small = [NonlocalNTK(k.model, samples=samples, seed=k.seed, max_memory=2**20) for k in kernels]
    torch.testing.assert_close(attribution_scores(small, x, labels, new, new_labels, alpha=0.2), scores)


def test_scores_of_a_linear_regression_are_what_leaving_out_does():
    """With the exact ridge minimum, the score over one minus the leverage is the change of the prediction."""
    x, y, new = (
        inputs(12, 3, torch.float64),
        inputs(12, 1, torch.float64, seed=3)[:, 0],
        inputs(4, 3, torch.float64, seed=4),
    )
    value = 2.0
    model = nn.Linear(3, 1, bias=False, dtype=torch.float64)

    def solve(keep):
        return torch.linalg.solve(x[keep].T @ x[keep] + value * torch.eye(3), x[keep].T @ y[keep])

    everything = torch.ones(12, dtype=torch.bool)
    with torch.no_grad():
        model.weight.copy_(solve(everything)[None])
    kernel = NonlocalNTK(model, samples=4000, gamma=1.0, directions="rademacher")
    alpha = value / float(x.square().sum(1).mean())
    scores = attribution_scores(kernel, x, y, new, alpha=alpha)
    inverse = torch.linalg.inv(x.T @ x + value * torch.eye(3))
    leverages = torch.einsum("ni,ij,nj->n", x, inverse, x)
    for n in range(12):
        keep = everything.clone()
        keep[n] = False
        change = new @ (solve(everything) - solve(keep))
        torch.testing.assert_close(scores[:, n] / (1 - leverages[n]), change, rtol=0.1, atol=0.03)


def test_one_logit_and_two_have_the_same_scores():
    """A classifier with one logit is that with the logits zero and f."""
    one = mlp(3, 5, 1, dtype=torch.float64)

    def two(parameters, x):
        value = torch.func.functional_call(one, parameters, (x,))
        return torch.cat((torch.zeros_like(value), value), 1)

    x, labels = inputs(8, 3, torch.float64), torch.arange(8) % 2
    single = NonlocalNTK(one, samples=16)
    double = NonlocalNTK(two, samples=16, parameters=dict(one.named_parameters()))
    torch.testing.assert_close(
        attribution_scores(single, x, labels, x, labels),
        attribution_scores(double, x, labels, x, labels), rtol=1e-6, atol=1e-9,
    )  # fmt: skip


def test_a_sign_network_is_attributed_beyond_its_last_layer():
    """A copy of a test example with its label is among the highest scores, one with a wrong label among the lowest."""
    x, new = inputs(40, 6), inputs(5, 6, seed=9)
    labels, new_labels = (x[:, 0] > 0).long(), (new[:, 0] > 0).long()
    x[:5], labels[:5] = new, new_labels
    x[5:10], labels[5:10] = new, 1 - new_labels
    model = mlp(6, 32, 2, activation="sign")
    before = copy.deepcopy(model.state_dict())
    scores = attribution_scores(NonlocalNTK(model, gamma=0.3, samples=512), x, labels, new, new_labels)
    ranks = scores.argsort(1).argsort(1)
    assert (ranks.diagonal() >= 37).all() and (ranks[:, 5:10].diagonal() <= 2).all()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    head = NonlocalNTK(model, gamma=0.3, samples=512, parameters=["0.*"])
    assert bool(attribution_scores(head, x, labels, new, new_labels).any())


def test_the_datamodeling_score_is_spearmans_correlation():
    """SciPy's, for each output, ties included; scores that say nothing have zero."""
    generator = torch.Generator().manual_seed(0)
    scores, subsets = torch.randn(4, 10, generator=generator), torch.rand(12, 10, generator=generator) < 0.5
    outputs = (subsets.double() @ scores.double().T).round() + torch.randn(12, 4, generator=generator).round()
    found = linear_datamodeling_score(scores, subsets, outputs)
    sums = subsets.double() @ scores.double().T
    expected = [scipy.stats.spearmanr(sums[:, n], outputs[:, n]).statistic for n in range(4)]
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert not linear_datamodeling_score(torch.zeros(4, 10), subsets, outputs).any()


X, LABELS = torch.eye(4), torch.tensor([0, 1, 2, 0])


def attribute(kernels=None, x=X, targets=LABELS, new=X, new_targets=LABELS, **settings):
    """Call with arguments that fit but for those given."""
    model = NonlocalNTK(mlp(4, 3), samples=8) if kernels is None else kernels
    return attribution_scores(model, x, targets, new, new_targets, **settings)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: attribute([]), ValueError, "kernels must hold a kernel at least, got none"),
        (lambda: attribute(mlp(4, 3)), TypeError, "kernels must be NonlocalNTK, got Sequential"),
        (lambda: attribute(NonlocalNTK(mlp(4, 3), estimator="plugin")), ValueError, "energy' .* got 'plugin'"),
        (lambda: attribute(NonlocalNTK(mlp(4, 3), weights=nntk.Attention())), ValueError, "weights that ignore"),
        (lambda: attribute(targets=LABELS[:3]), ValueError, r"targets must have shape \[4\], got \(3,\)"),
        (lambda: attribute(targets=LABELS + 1), ValueError, "targets must be labels from 0 to 2, got 1 to 3"),
        (lambda: attribute(new_targets=None), ValueError, "new_targets must be given for a classifier, got None"),
        (lambda: attribute(targets=LABELS.float()), ValueError, "new_targets must be None for a regression"),
        (lambda: attribute(targets=LABELS.float(), new_targets=None), ValueError, "integer labels for a model with 3"),
        (lambda: attribute(alpha=0.0), ValueError, "alpha must be between"),
        (lambda: attribute(x=X * 0, new=X * 0, kernels=NonlocalNTK(nn.Linear(4, 3, bias=False), samples=4)), ValueError,
         "change an output, got differences of zero alone"),
        (lambda: linear_datamodeling_score(X, X, X), TypeError, "subsets must be booleans, got torch.float32"),
        (lambda: linear_datamodeling_score(X, X[:1] > 0, X), ValueError, r"subsets must have shape \[S, 4\], S > 1"),
        (lambda: linear_datamodeling_score(X, X > 0, X[:3]), ValueError, r"outputs must have shape \(4, 4\)"),
        (lambda: linear_datamodeling_score(X[0], X > 0, X), ValueError, r"scores must have two axes, got \(4,\)"),
    ],
)  # fmt: skip
def test_data_that_cannot_be_attributed_are_errors(call, error, message):
    """The message names the argument, the value given and what is allowed."""
    with pytest.raises(error, match=message):
        call()
