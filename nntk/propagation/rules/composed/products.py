"""Sums of products, and products of many factors."""

from typing import Any

import torch

from nntk.propagation.registry import NoRule, composed


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
