"""Evaluation under other rounding errors, which shows what of a result is rounding."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

_ROUNDINGS = 4
"""Rounding errors of the dtype by which results are changed at most."""


class OtherRounding(TorchDispatchMode):
    """Context in which the result of every operator is changed by a few rounding errors, up or down.

    This is random arithmetic as J. Vignes' CESTAC method uses it: digits that differ between such evaluations are
    rounding errors.

    Args:
        seed: Seed of the changes.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.generator = torch.Generator().manual_seed(seed)

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), options: dict[str, Any] | None = None
    ) -> Any:
        result = function(*arguments, **(options or {}))
        # A view must keep its memory, and a function in place its argument.
        if function.is_view or function._schema.is_mutable:
            return result
        return tree_map(self._changed, result)

    def _changed(self, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.is_floating_point() or leaf.layout != torch.strided:
            return leaf
        signs = torch.randint(-_ROUNDINGS, _ROUNDINGS + 1, leaf.shape, generator=self.generator).to(leaf)
        # Zero stays zero, and so do infinities.
        return torch.where(leaf.isfinite(), leaf + leaf * signs * torch.finfo(leaf.dtype).eps, leaf)
