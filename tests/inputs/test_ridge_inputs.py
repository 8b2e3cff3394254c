"""Ridge regression on inputs of several tensors, and on streams of pairs."""

import numpy as np
import pytest
import torch
from conftest import inputs, mlp
from masked_models import Classifier, tokens
from sklearn.linear_model import Ridge
from torch.utils.data import DataLoader, TensorDataset

from nntk import Inputs, KernelRidge, KernelRidgeClassifier, NonlocalNTK, Stream

X, Y = inputs(60, 3), inputs(60, 2, seed=3)
SMALL = {"samples": 16, "max_memory": 2**20, "alpha": 1.0}


@pytest.mark.parametrize("samples", [16, 96], ids=["primal", "dual"])
def test_a_stream_of_pairs_has_the_fit_of_arrays(samples):
    """And that of scikit-learn on the features of the kernel, for any size of batches."""
    model, settings = mlp(3, 12, 1), {**SMALL, "samples": samples}
    expected = KernelRidge(model, **settings).fit(X.numpy(), Y.numpy())
    features = NonlocalNTK(model, samples=samples).features(X).double().numpy()
    reference = features @ Ridge(1.0, fit_intercept=False).fit(features, Y.double() - Y.double().mean(0)).coef_.T
    for size in (7, 60):
        fit = KernelRidge(model, **settings).fit(DataLoader(TensorDataset(X, Y), size))
        np.testing.assert_allclose(fit.predict(X.numpy()), expected.predict(X.numpy()), rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(fit.predict(X.numpy()), reference + Y.mean(0).numpy(), rtol=1e-2, atol=1e-3)
        assert fit.predict(Stream([X[:4], X[4:9]])).shape == (9, 2)
        assert fit.score(DataLoader(TensorDataset(X, Y), 8), Y.numpy()) == pytest.approx(
            expected.score(X.numpy(), Y.numpy()), abs=1e-4
        )


def test_leave_one_out_reads_the_stream_again():
    """The ridge of least leave-one-out error is that of arrays."""
    model = mlp(3, 12, 1)
    stream = KernelRidge(model, samples=16).fit(Stream([(X[:50], Y[:50, 0]), (X[50:], Y[50:, 0])], targets=True))
    held = KernelRidge(model, samples=16).fit(X.numpy(), Y[:, 0].numpy())
    assert stream.alpha_ == pytest.approx(held.alpha_)
    assert stream.predict(X.numpy()).shape == (60,)


def test_texts_with_masks():
    """A mapping, a tuple, arrays in a mapping, and a stream with labels under a key have one fit."""
    x, model = tokens(40), Classifier()
    y = x["input_ids"][:, 0].double()
    expected = KernelRidge(model, **SMALL).fit(x, y).predict(x)
    arrays = {name: tensor.numpy() for name, tensor in x.items()}
    batches = [
        {**{name: tensor[part] for name, tensor in x.items()}, "labels": y[part]} for part in torch.arange(40).split(9)
    ]
    for form in (arrays, (x["input_ids"], x["attention_mask"]), Inputs(**x)):
        np.testing.assert_allclose(KernelRidge(model, **SMALL).fit(form, y.numpy()).predict(form), expected, rtol=1e-4)
    fit = KernelRidge(model, **SMALL, output="logits").fit(Stream(batches, "labels"))
    np.testing.assert_allclose(fit.predict(x), expected, rtol=1e-3)
    classes = (y > 5).numpy()
    classifier = KernelRidgeClassifier(model, **SMALL).fit(x, classes)
    assert classifier.score(x, classes) > 0.7
    assert classifier.score(x, classes) == KernelRidgeClassifier(model, **SMALL).fit(
        Stream([({k: t[p] for k, t in x.items()}, torch.tensor(classes)[p]) for p in torch.arange(40).split(9)], True)
    ).score(x, classes)


@pytest.mark.parametrize(
    ("x", "y", "text"),
    [
        (tokens(5), None, "y must be the targets, unless X is a stream"),
        (Stream([X]), None, "y must be the targets, unless X is a stream of pairs"),
        (tokens(5), np.ones(4), "y must have a row for each of 5 inputs, got 4"),
        (DataLoader(TensorDataset(X, Y), 8, shuffle=True), None, "use shuffle=False"),
        ({"x": X, "m": X[:3]}, np.ones(60), r"X\['x'\] has 60 rows, but X\['m'\] has 3"),
        (tokens(5), np.full(5, np.nan), "NaN"),
    ],
)
def test_errors_of_training_data(x, y, text):
    """The message names the argument."""
    with pytest.raises(ValueError, match=text):
        KernelRidge(Classifier(), **SMALL).fit(x, y)


def test_a_builder_needs_vectors():
    """A network is built from the number of features of a vector; of texts there is none."""
    with pytest.raises(ValueError, match="model must be an nn.Module for inputs that are no vectors"):
        KernelRidge(samples=8).fit(tokens(5), np.arange(5.0))
    assert KernelRidge(**SMALL).fit(DataLoader(TensorDataset(X, Y[:, 0]), 8)).predict(X.numpy()).shape == (60,)
