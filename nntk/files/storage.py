"""Tensors of a kernel in safetensors files, with the kernel's fingerprint; files of another kernel are refused."""

import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor

from nntk.files.fingerprint import fingerprint
from nntk.kernel import NonlocalNTK
from nntk.kernels import checks


class MismatchError(ValueError):
    """Error for a file that belongs to another kernel, or to none; the message says what differs."""


def save(path: str | Path, kernel: NonlocalNTK, tensors: Mapping[str, Tensor]) -> None:
    """Write results of a kernel to a safetensors file, with the kernel's fingerprint as metadata.

    Args:
        path: The file; an existing one is replaced as a whole.
        kernel: The kernel.
        tensors: Results by name: kernel matrices, differences, inputs.

    Raises:
        TypeError: If a result is no tensor.
        ValueError: If ``tensors`` is empty.
        ImportError: If safetensors is not installed.
        OSError: If the file cannot be written.

    Example:
        >>> import tempfile, torch
        >>> kernel, x = NonlocalNTK(torch.nn.Linear(3, 1), samples=8), torch.randn(4, 3)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(f"{folder}/k.safetensors", kernel, {"K": kernel(x)})
        ...     torch.equal(load(f"{folder}/k.safetensors", kernel)["K"], kernel(x))
        True
    """
    safetensors = _import_safetensors("save")
    if not tensors:
        raise ValueError("tensors must hold something to keep, got none.")
    for name, tensor in tensors.items():
        checks.tensor(name, tensor)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.tmp")
    metadata = {"nntk": json.dumps(fingerprint(kernel), sort_keys=True)}
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        safetensors.torch.save_file(on_cpu, partial, metadata)
    except safetensors.SafetensorError as error:
        raise OSError(f"path {path} must be one that can be written: {error}") from error
    partial.replace(path)


def load(path: str | Path, kernel: NonlocalNTK) -> dict[str, Tensor]:
    """Read results that :func:`save` wrote for the same kernel.

    Args:
        path: The file.
        kernel: Kernel with the same settings, model and random stream.

    Returns:
        The tensors by name, on the CPU.

    Raises:
        MismatchError: If the file belongs to another kernel, or to none.
        ImportError: If safetensors is not installed.
        OSError: If the file cannot be read.
    """
    safetensors = _import_safetensors("load")
    try:
        opened = safetensors.safe_open(path, framework="pt")
    except safetensors.SafetensorError as error:
        raise MismatchError(f"{path} must be a file that nntk.save wrote, but is no safetensors: {error}.") from error
    with opened as file:
        saved = json.loads((file.metadata() or {}).get("nntk", "null"))
        if saved is None:
            raise MismatchError(f"{path} must be a file that nntk.save wrote; its metadata describe no kernel.")
        _check_fingerprint(path, saved, fingerprint(kernel))
        return {name: file.get_tensor(name) for name in file.keys()}


def _check_fingerprint(path: str | Path, saved: Mapping[str, Any], present: Mapping[str, Any]) -> None:
    """Check that the fingerprint in a file is that of the present kernel."""
    differences = [
        f"{name} is {saved.get(name)!r} there and {present.get(name)!r} here"
        for name in sorted({*saved, *present})
        if saved.get(name) != present.get(name)
    ]
    if differences:
        raise MismatchError(f"{path} is of another kernel: {'; '.join(differences)}.")


def _import_safetensors(function: str) -> Any:
    """Import the library that reads and writes the files, for a public function of this name."""
    try:
        import_module("safetensors.torch")
        return import_module("safetensors")
    except ImportError as error:
        raise ImportError(f"nntk.{function} needs safetensors: pip install 'nntk[store]' ({error})") from error
