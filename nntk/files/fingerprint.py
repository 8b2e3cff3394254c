"""Fingerprint of a kernel: everything that its numbers depend on, as far as it can be known."""

import hashlib
from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor, nn

from nntk.attention import Attention
from nntk.files.description import Describer, all_tensors
from nntk.files.hashing import hash_tensors
from nntk.kernel import NonlocalNTK
from nntk.kernels.fixed_weights import FixedKernel
from nntk.kernels.philox import STREAM_VERSION
from nntk.local.kernel import LocalNTK
from nntk.models.black_box import BlackBox
from nntk.models.selection import displaced_names

SCHEMA = 3
"""Version of the fingerprint's keys and values. Versions 1 and 2 held neither the architecture nor all buffers."""

_SETTINGS = (
    "gamma", "samples", "directions", "antithetic", "estimator", "normalization", "outputs", "propagation",
    "precision", "draws", "seed",
)  # fmt: skip
"""Settings of a kernel that are numbers, names or None. The budget of memory is left out: it changes no result."""


def fingerprint(kernel: NonlocalNTK | LocalNTK) -> dict[str, Any]:
    """Describe everything that the numbers of a kernel depend on.

    Of a module that is its architecture (the types of the layers, their settings and attributes, hooks, and the code of
    layers that PyTorch does not define), its parameters, and all its buffers. Of a function or a black box it is the
    name and the text of the function, the values that it closes over, the global values and functions that it names,
    and the parameters. Comments, layout and documentation of the code do not count, nor does the Python module that
    holds it. What cannot be known: data that code reads from files, from the environment, or from objects of other
    libraries; the versions of libraries; and code without a source, which is told apart by its bytecode.

    Args:
        kernel: The kernel.

    Returns:
        Version of the fingerprint and of the random stream, hashes of the architecture and of the tensors, names of the
        displaced parameters (None unless the model is a module), weights of the displacements, and the settings by
        their names; of a local NTK the treatment of the outputs and the dtype. All values have the same JSON in every
        process.
    """
    model = kernel.model
    names = displaced_names(model, cast("Any", kernel.parameters)) if isinstance(model, nn.Module) else None
    described = {
        "schema": SCHEMA,
        "stream_version": STREAM_VERSION,
        "architecture": _describe_architecture(model),
        "model": hash_tensors(_model_tensors(kernel)),
        "parameters": names,
        # Files of kernels without a choice among outputs stay valid.
        **({} if kernel.output is None else {"output": _describe_output(kernel.output)}),
    }
    if isinstance(kernel, LocalNTK):
        # The method is left out: all of them give the same kernel, to rounding.
        return {**described, "local": True, "outputs": kernel.outputs, "dtype": str(kernel.dtype)}
    return {
        **described,
        "weights": _describe_weights(kernel.weights),
        **{name: getattr(kernel, name) for name in _SETTINGS},
    }


def _describe_architecture(model: Any) -> str:
    """Return the kind of a model with the hash of its architecture."""
    describer = Describer()
    if isinstance(model, nn.Module):
        return f"{type(model).__qualname__} {_hash(describer.module(model))}"
    if isinstance(model, BlackBox):
        function = f"{describer.value(model.function)} {model.points} {type(model.parameters).__name__}"
        return f"BlackBox {_hash(function)}"
    return f"{getattr(model, '__qualname__', type(model).__qualname__)} {_hash(describer.value(model))}"


def _model_tensors(kernel: NonlocalNTK | LocalNTK) -> Mapping[str, Tensor]:
    """Return all tensors of the kernel's model by name."""
    model = kernel.model
    if isinstance(model, nn.Module):
        return all_tensors(model)
    if isinstance(model, BlackBox):
        return {"parameters": model.vector}
    assert isinstance(kernel.parameters, Mapping), "parameters of a callable map names to tensors"
    return kernel.parameters


def _describe_output(output: Any) -> str:
    """Describe the choice among outputs by a text that is the same in every process."""
    return _hash(Describer().value(output)) if callable(output) else repr(output)


def _describe_weights(weights: FixedKernel | Attention) -> str:
    """Describe the weights by a text that is the same in every process."""
    if not isinstance(weights, Attention):
        return repr(weights)
    score = weights.score
    if not isinstance(score, str):
        name = f"{score.__module__}.{getattr(score, '__qualname__', type(score).__qualname__)}"
        score = f"{name} {_hash(Describer().value(score))}"
    projection = weights.projection
    digest = hash_tensors({"query": projection[0], "key": projection[1]}) if projection else None
    settings = (weights.on, score, weights.temperature, weights.dim, digest, weights.prior, weights.kernel)
    return f"Attention{settings!r}"


def _hash(text: str) -> str:
    """Hash a text to 32 hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]
