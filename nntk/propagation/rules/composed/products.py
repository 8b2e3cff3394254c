"""Sums of products, and products of many factors."""

from functools import reduce
from typing import Any

import torch

from nntk.propagation.registry import COMPOSED, NoRule, composed


@composed("addmm", "baddbmm", "addmv")
def _add_product(x: Any, a: Any, b: Any, *, beta: float = 1.0, alpha: float = 1.0) -> Any:
    return x * beta + (a @ b) * alpha


@composed("addcmul")
def _addcmul(x: Any, a: Any, b: Any, *, value: float = 1.0) -> Any:
    return x + (a * b) * value


@composed("addcdiv")
def _addcdiv(x: Any, a: Any, b: Any, *, value: float = 1.0) -> Any:
    return x + (a / b) * value


@composed("addr")
def _addr(x: Any, a: Any, b: Any, *, beta: float = 1.0, alpha: float = 1.0) -> Any:
    return x * beta + torch.outer(a, b) * alpha


@composed("lerp")
def _lerp(a: Any, b: Any, weight: Any) -> Any:
    return a + (b - a) * weight


@composed("bilinear")
def _bilinear(a: Any, b: Any, weight: Any, bias: Any = None) -> Any:
    product = torch.einsum("...oj,...j->...o", torch.einsum("...i,oij->...oj", a, weight), b)
    return product if bias is None else product + bias


@composed("prod")
def _prod(x: Any, dim: int | None = None, keepdim: bool = False) -> Any:
    """Multiply both halves of an axis until one factor is left."""
    if dim is None:
        x, dim = x.flatten(), 0
    if not x.shape[dim]:
        raise NoRule("model calls prod over an axis without entries, which has no rule.")
    while (length := x.shape[dim]) > 1:
        half = length // 2
        product = x.narrow(dim, 0, half) * x.narrow(dim, half, half)
        x = torch.cat((product, x.narrow(dim, 2 * half, 1)), dim) if length % 2 else product
    return x * 1 if keepdim else x.squeeze(dim)


@composed("matrix_power")
def _matrix_power(x: Any, n: int) -> Any:
    """Multiply repeated squares of a matrix, for an exponent of at least one."""
    if n < 1:
        raise NoRule("model calls matrix_power with an exponent below one, which has no rule.")
    half = _matrix_power(x, n // 2) if n > 1 else None
    if half is None:
        return x * 1
    return x @ (half @ half) if n % 2 else half @ half


def _vecdot(a: Any, b: Any, *, dim: int = -1) -> Any:
    return (a * b).sum(dim)


def _multi_dot(tensors: Any) -> Any:
    return reduce(torch.matmul, tensors)


COMPOSED[torch.linalg.vecdot] = _vecdot
COMPOSED[torch.linalg.multi_dot] = _multi_dot
COMPOSED[torch.linalg.matrix_power] = _matrix_power
COMPOSED[torch.linalg.matmul] = torch.matmul
