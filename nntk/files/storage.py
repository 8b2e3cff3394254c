"""Tensors of a kernel in safetensors files, with the kernel's fingerprint; files of another kernel are refused."""

import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from nntk.files.fingerprint import SCHEMA, fingerprint
from nntk.files.output import replacing
from nntk.files.paths import file_to_replace
from nntk.kernel import NonlocalNTK
from nntk.kernels import checks


class MismatchError(ValueError):
    """Error for a file that belongs to another kernel, or to none; the message says what differs."""


def save(path: str | Path, kernel: NonlocalNTK, tensors: Mapping[str, Tensor]) -> None:
    """Write results of a kernel to a safetensors file, with the kernel's fingerprint as metadata.

    Views and tensors that share memory are kept as tensors of their own.

    Args:
        path: The file; an existing one is replaced as a whole, with its mode and owner. A symbolic link stays, and the
            file that it leads to is replaced. A pipe, a terminal or any other device is refused.
        kernel: The kernel.
        tensors: Results by name: kernel matrices, differences, inputs, labels. They may be empty, have no axes, and be
            of any dtype that safetensors knows: floating, integers, booleans and complex64.

    Raises:
        TypeError: If ``tensors`` is no mapping, a result is no dense tensor, has another dtype, or its name is no text.
        ValueError: If ``tensors`` is empty, a tensor is on the meta device, or the name is ``"__metadata__"``.
        ImportError: If safetensors is not installed.
        OSError: If the path is neither a regular file nor new, or the file cannot be written.

    Example:
        >>> import tempfile, torch
        >>> kernel, x = NonlocalNTK(torch.nn.Linear(3, 1), samples=8), torch.randn(4, 3)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(f"{folder}/k.safetensors", kernel, {"K": kernel(x)})
        ...     torch.equal(load(f"{folder}/k.safetensors", kernel)["K"], kernel(x))
        True
    """
    safetensors = _import_safetensors("save")
    if not isinstance(tensors, Mapping):
        raise TypeError(f"tensors must map names to tensors, such as {{'K': kernel(x)}}, got {type(tensors).__name__}.")
    if not tensors:
        raise ValueError("tensors must hold something to keep, got none.")
    for name, tensor in tensors.items():
        _check_tensor(name, tensor)
    file_to_replace(path, "path", "since a safetensors file is read in any order")
    metadata = {"nntk": json.dumps(fingerprint(kernel), sort_keys=True)}
    try:
        with replacing(path, "path") as partial:
            safetensors.torch.save_file(_separate(tensors), partial, metadata)
    except safetensors.SafetensorError as error:
        raise OSError(f"path {path} must be one that can be written: {error}") from error


def load(path: str | Path, kernel: NonlocalNTK) -> dict[str, Tensor]:
    """Read results that :func:`save` wrote for the same kernel.

    The kernels are the same if they have the same settings, weights, displaced parameters and random stream, and their
    models the same architecture, parameters and buffers. The architecture is the types of the layers with their
    settings, attributes and hooks, and the code of layers that PyTorch does not define. Of a function or a black box it
    is the text of the function, with the values that it closes over and the global ones that it names. Comments,
    layout, and the Python module that holds the code do not count. What code reads from files, from the environment or
    from objects of other libraries cannot be known, nor can the versions of libraries. Code without a source is told
    apart by its bytecode, which depends on the version of Python. Files of versions of nntk that did not yet record
    all of this are refused.

    Args:
        path: The file.
        kernel: Kernel with the same settings, model and random stream.

    Returns:
        The tensors by name, on the CPU.

    Raises:
        MismatchError: If the file belongs to another kernel, to another version of nntk, or to none.
        ImportError: If safetensors is not installed.
        OSError: If the file cannot be read.
    """
    safetensors = _import_safetensors("load")
    try:
        opened = safetensors.safe_open(path, framework="pt")
    except safetensors.SafetensorError as error:
        raise MismatchError(f"{path} must be a file that nntk.save wrote, but is no safetensors: {error}.") from error
    with opened as file:
        saved = _parse((file.metadata() or {}).get("nntk", ""))
        if saved is None:
            raise MismatchError(f"{path} must be a file that nntk.save wrote; its metadata describe no kernel.")
        if saved.get("schema") != SCHEMA:
            refuse_schema(path, saved.get("schema"), "Save it again, or read the tensors alone by safetensors")
        _check_fingerprint(path, saved, fingerprint(kernel))
        return {name: file.get_tensor(name) for name in file.keys()}


def refuse_schema(path: str | Path, schema: object, remedy: str) -> NoReturn:
    """Refuse a file whose fingerprint is of another version of nntk.

    Args:
        path: The file.
        schema: Version of its fingerprint.
        remedy: What a user can do, as the beginning of a sentence.

    Raises:
        MismatchError: Always.
    """
    is_earlier = isinstance(schema, int) and schema < SCHEMA
    kind = "an earlier version of nntk, which did not record all that a kernel depends on" if is_earlier else ""
    raise MismatchError(
        f"{path} was written by {kind or 'another version of nntk'} (schema {schema!r}, not {SCHEMA}). {remedy}, or "
        "use the version of nntk that wrote it."
    )


def _parse(text: str) -> dict[str, Any] | None:
    """Return the fingerprint in a file; None if there is none."""
    try:
        saved = json.loads(text)
    except ValueError:
        return None
    return saved if isinstance(saved, dict) else None


def _check_tensor(name: object, tensor: Tensor) -> None:
    """Check that safetensors can hold a tensor under this name."""
    if not isinstance(name, str):
        raise TypeError(f"tensors must have texts as names, got {name!r} ({type(name).__name__}).")
    if name == "__metadata__":
        raise ValueError("tensors must not be named '__metadata__', which safetensors keeps for itself; rename it.")
    checks.tensor(name, tensor)
    if tensor.is_meta:
        raise ValueError(f"{name} must hold numbers, but is on the meta device.")
    if tensor.is_quantized or tensor.dtype == torch.complex128:
        remedy = f"{name}.dequantize()" if tensor.is_quantized else f"torch.view_as_real({name})"
        raise TypeError(f"{name} must be floating, integers, booleans or complex64, got {tensor.dtype}; use {remedy}.")


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors on the CPU in row-major order, none of which shares memory with another."""
    result: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
        storage = plain.untyped_storage()
        if storage.nbytes() != plain.nbytes or storage.data_ptr() in seen:
            plain = plain.clone()
        seen.add(plain.untyped_storage().data_ptr())
        result[name] = plain
    return result


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
