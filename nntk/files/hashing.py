"""Hashes of tensors: the same on every device and in every process."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Hash tensors by their names, dtypes, shapes and bytes.

    Args:
        tensors: Tensors by name, on any device, of any dtype and layout. A tensor on the meta device has no bytes.

    Returns:
        SHA-256 in hexadecimal digits.
    """
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(f"{len(name)} {name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(_bytes(tensor.detach()))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    """Return the numbers of a tensor in row-major order, without a copy where they lie like this on the CPU."""
    if tensor.is_meta:
        return memoryview(b"")
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    plain = tensor.cpu().resolve_conj().resolve_neg().contiguous()
    return plain.view(-1).view(torch.uint8).numpy().data
