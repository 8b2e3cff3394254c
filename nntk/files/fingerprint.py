"""Fingerprint of a kernel: the settings and the hash of the model that its numbers depend on."""

import hashlib
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from nntk.attention import Attention
from nntk.kernel import NonlocalNTK
from nntk.kernels.fixed_weights import FixedKernel
from nntk.kernels.philox import STREAM_VERSION
from nntk.models.black_box import BlackBox
from nntk.models.selection import displaced_names

SCHEMA = 2
"""Version of the fingerprint's keys and values."""

_SETTINGS = (
    "gamma", "samples", "directions", "antithetic", "estimator", "normalization", "outputs", "propagation",
    "precision", "draws", "seed",
)  # fmt: skip
"""Settings of a kernel that are numbers, names or None. The budget of memory is left out: it changes no result."""


def fingerprint(kernel: NonlocalNTK) -> dict[str, Any]:
    """Describe everything that the numbers of a kernel depend on, but for the code of its model.

    Args:
        kernel: The kernel.

    Returns:
        Version of the fingerprint and of the random stream, hash of the model's tensors, names of the displaced
        parameters (None unless the model is a module), weights of the displacements, and the settings by their names.
        All values have the same JSON in every process.
    """
    model = kernel.model
    names = displaced_names(model, cast("Any", kernel.parameters)) if isinstance(model, nn.Module) else None
    return {
        "schema": SCHEMA,
        "stream_version": STREAM_VERSION,
        "model": hash_tensors(_model_tensors(kernel)),
        "parameters": names,
        "weights": _describe_weights(kernel.weights),
        **{name: getattr(kernel, name) for name in _SETTINGS},
    }


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Hash tensors by their names, dtypes, shapes and bytes.

    Args:
        tensors: Tensors by name, on any device.

    Returns:
        SHA-256 in hexadecimal digits.
    """
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _model_tensors(kernel: NonlocalNTK) -> Mapping[str, Tensor]:
    """Return all tensors of the kernel's model by name."""
    model = kernel.model
    if isinstance(model, nn.Module):
        return model.state_dict()
    if isinstance(model, BlackBox):
        return {"parameters": model.vector}
    assert isinstance(kernel.parameters, Mapping), "parameters of a callable map names to tensors"
    return kernel.parameters


def _describe_weights(weights: FixedKernel | Attention) -> str:
    """Describe the weights by a text that is the same in every process."""
    if not isinstance(weights, Attention):
        return repr(weights)
    score = weights.score
    score_name = score if isinstance(score, str) else f"{score.__module__}.{score.__qualname__}"
    projection = weights.projection
    digest = hash_tensors({"query": projection[0], "key": projection[1]}) if projection else None
    settings = (weights.on, score_name, weights.temperature, weights.dim, digest, weights.prior, weights.kernel)
    return f"Attention{settings!r}"
