"""Products of operands of several dtypes, where a frozen backbone is in half precision and what moves is not."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

HALVES = (torch.float16, torch.bfloat16)
"""Dtypes in half precision."""

_PRODUCTS = {
    F.linear, F.bilinear, F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d,
    torch.conv1d, torch.conv2d, torch.conv3d, torch.matmul, Tensor.matmul, Tensor.__matmul__, Tensor.__rmatmul__,
    torch.mm, Tensor.mm, torch.bmm, Tensor.bmm, torch.addmm, Tensor.addmm, torch.baddbmm, Tensor.baddbmm, torch.mv,
    Tensor.mv, torch.dot, Tensor.dot, torch.einsum, torch.tensordot, F.scaled_dot_product_attention,
    F.multi_head_attention_forward,
}  # fmt: skip
"""Functions of PyTorch that refuse operands of several dtypes."""
_NORMS = {F.layer_norm, F.group_norm, F.batch_norm, F.rms_norm, torch.layer_norm, torch.group_norm, torch.batch_norm}
"""Functions that accept half precision with wider weights, and refuse other mixtures."""


class Promotion(TorchFunctionMode):
    """Context in which products of operands of several floating dtypes are computed in the widest of them.

    The parameters that are displaced are evaluated in float32 or float64. What PyTorch would compute in half precision
    without them, it computes so here.
    """

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        options = options or {}
        if function in _PRODUCTS or function in _NORMS:
            dtypes = {leaf.dtype for leaf in tree_leaves((arguments, options)) if _is_floating(leaf)}
            keeps_half = function in _NORMS and arguments[0].dtype in HALVES
            if len(dtypes) > 1 and not keeps_half:
                widest = max(dtypes, key=lambda dtype: (torch.finfo(dtype).bits, -torch.finfo(dtype).eps))
                arguments, options = tree_map(
                    lambda leaf: leaf.to(widest) if _is_floating(leaf) and leaf.dtype != widest else leaf,
                    (arguments, options),
                )
        return function(*arguments, **options)


def _is_floating(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()
