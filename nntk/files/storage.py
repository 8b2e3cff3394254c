"""Kernels and differences on disk, with all that reproduces them; what belongs to another model is refused."""

import hashlib
import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from nntk.attention import Attention
from nntk.kernel import NonlocalNTK
from nntk.kernels import checks
from nntk.kernels.fixed_weights import FixedKernel
from nntk.kernels.philox import STREAM_VERSION
from nntk.models.general import BlackBox
from nntk.models.mlp import moved_names

SCHEMA = 2
"""Version of the metadata."""


class MismatchError(ValueError):
    """A file of another kernel: what differs, there and here."""


def save(path: str | Path, kernel: NonlocalNTK, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors that a kernel gave as safetensors, with the settings and the model that they are of.

    Args:
        path: The file; it is replaced as a whole.
        kernel: The kernel.
        tensors: What to keep, by name: kernel matrices, differences, inputs.

    Raises:
        TypeError: If something is no tensor.
        ValueError: If ``tensors`` is empty.
        ImportError: If safetensors is not installed.
        OSError: If the file cannot be written.

    Example:
        >>> import tempfile
        >>> kernel, x = NonlocalNTK(nn.Linear(3, 1), samples=8), torch.randn(4, 3)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(f"{folder}/k.safetensors", kernel, {"K": kernel(x)})
        ...     torch.equal(load(f"{folder}/k.safetensors", kernel)["K"], kernel(x))
        True
    """
    safetensors = _safetensors("save")
    if not tensors:
        raise ValueError("tensors must hold something to keep, got none.")
    for name, tensor in tensors.items():
        checks.tensor(name, tensor)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.tmp")
    metadata = {"nntk": json.dumps(described(kernel), sort_keys=True)}
    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        safetensors.torch.save_file(held, partial, metadata)
    except safetensors.SafetensorError as wrong:
        raise OSError(f"path {path} must be one that can be written: {wrong}") from wrong
    partial.replace(path)


def load(path: str | Path, kernel: NonlocalNTK) -> dict[str, Tensor]:
    """Read what :func:`save` wrote for the same kernel.

    Args:
        path: The file.
        kernel: The kernel: of the same settings, model and random stream.

    Returns:
        The tensors by name, on the CPU.

    Raises:
        MismatchError: If the file is of another kernel, or of none.
        ImportError: If safetensors is not installed.
        OSError: If the file cannot be read.
    """
    safetensors = _safetensors("load")
    try:
        opened = safetensors.safe_open(path, framework="pt")
    except safetensors.SafetensorError as wrong:
        raise MismatchError(f"{path} must be a file that nntk.save wrote, but is no safetensors: {wrong}.") from wrong
    with opened as file:
        found, here = json.loads((file.metadata() or {}).get("nntk", "null")), described(kernel)
        if found is None:
            raise MismatchError(f"{path} must be a file that nntk.save wrote; its metadata say nothing of a kernel.")
        differing = [
            f"{name} is {found.get(name)!r} there and {here.get(name)!r} here"
            for name in sorted({*found, *here})
            if found.get(name) != here.get(name)
        ]
        if differing:
            raise MismatchError(f"{path} is of another kernel: {'; '.join(differing)}.")
        return {name: file.get_tensor(name) for name in file.keys()}


def _safetensors(name: str) -> Any:
    """The library that reads and writes the files."""
    try:
        import_module("safetensors.torch")
        return import_module("safetensors")
    except ImportError as wrong:
        raise ImportError(f"nntk.{name} needs safetensors: pip install 'nntk[store]' ({wrong})") from wrong


def described(kernel: NonlocalNTK) -> dict[str, Any]:
    """What the numbers of a kernel depend on: the stream's version, all settings, and a hash of the model's tensors."""
    settings = {
        name: value
        for name, value in vars(kernel).items()
        if name not in ("model", "parameters", "max_memory", "weights")
    }
    model = kernel.model
    moved = moved_names(model, cast("Any", kernel.parameters)) if isinstance(model, nn.Module) else None
    return {
        "schema": SCHEMA,
        "stream_version": STREAM_VERSION,
        "model": _fingerprint(kernel),
        "parameters": moved,
        "weights": _weights(kernel.weights),
        **settings,
    }


def _weights(weights: FixedKernel | Attention) -> str:
    """What the weights are, in words that are the same in every process."""
    if not isinstance(weights, Attention):
        return repr(weights)
    score = weights.score
    named = score if isinstance(score, str) else f"{score.__module__}.{score.__qualname__}"
    projection = hash_of({"query": weights.projection[0], "key": weights.projection[1]}) if weights.projection else None
    settings = (weights.on, named, weights.temperature, weights.dim, projection, weights.prior, weights.kernel)
    return f"Attention{settings!r}"


def _fingerprint(kernel: NonlocalNTK) -> str:
    """Hash of all tensors of the model; its code has none."""
    model = kernel.model
    if isinstance(model, nn.Module):
        tensors: Mapping[str, Tensor] = model.state_dict()
    elif isinstance(model, BlackBox):
        tensors = {"parameters": model.vector}
    else:
        assert isinstance(kernel.parameters, Mapping), "those of a callable"
        tensors = kernel.parameters
    return hash_of(tensors)


def hash_of(tensors: Mapping[str, Tensor]) -> str:
    """Hash of names, dtypes, shapes and bytes."""
    found = hashlib.sha256()
    for name, tensor in tensors.items():
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
