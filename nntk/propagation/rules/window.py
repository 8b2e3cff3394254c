"""Windows that convolutions and pools slide over their inputs, and the unfolding of inputs by them."""

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from nntk.propagation.registry import NoRule


class Window:
    """The window of a convolution or a pool over one or two axes.

    Args:
        kernel: Lengths of the window, one an axis.
        stride: Steps between its positions.
        padding: Entries added on both sides of the input.
        dilation: Distances between the entries of the window.
    """

    def __init__(
        self, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
    ) -> None:
        # A window over one axis is one over two, of which the first has the length one.
        one_axis = len(kernel) == 1
        self.sizes = {
            "kernel_size": (1, *kernel) if one_axis else tuple(kernel),
            "stride": (1, *stride) if one_axis else tuple(stride),
            "padding": (0, *padding) if one_axis else tuple(padding),
            "dilation": (1, *dilation) if one_axis else tuple(dilation),
        }

    @classmethod
    def from_settings(cls, kernel: Sequence[int], stride: Any, padding: Any, dilation: Any) -> "Window":
        """Return the window of a layer whose settings are given as PyTorch's layers accept them.

        Args:
            kernel: Lengths of the window, one an axis.
            stride: Steps: one number, or one an axis.
            padding: Entries added on both sides: one number, one an axis, ``"same"`` or ``"valid"``.
            dilation: Distances: one number, or one an axis.

        Returns:
            The window.

        Raises:
            NoRule: If ``"same"`` needs more padding on one side than on the other.
        """
        dims, dilations = len(kernel), per_axis(dilation, len(kernel))
        if isinstance(padding, str):
            totals = [d * (k - 1) if padding == "same" else 0 for k, d in zip(kernel, dilations, strict=True)]
            if any(total % 2 for total in totals):
                raise NoRule("model pads a convolution on one side more than on the other, which cannot be unfolded.")
            padding = [total // 2 for total in totals]
        return cls(kernel, per_axis(stride, dims), per_axis(padding, dims), dilations)

    def columns(self, x: Tensor) -> Tensor:
        """Unfold [n, C, ...] to [n, C k, P]: the k entries of the window at each of P positions."""
        return F.unfold(x if x.dim() == 4 else x[:, :, None], **self.sizes)

    def patches(self, x: Tensor) -> Tensor:
        """Unfold [n, C, ...] to [n P, C k]: a row for each position of the window."""
        return self.columns(x).transpose(1, 2).flatten(0, 1)


def per_axis(setting: Any, dims: int) -> tuple[int, ...]:
    """Return a setting for each axis, from one number or a sequence."""
    return (setting,) * dims if isinstance(setting, int) else tuple(setting) * (dims // len(setting))
