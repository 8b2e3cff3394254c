"""Products of a precision for any function of PyTorch: rounded operands, sums in float32."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import RLock

import torch
from torch import Tensor

from nntk.kernels.perturb.reference import ROUNDINGS

_SWITCHES = RLock()
"""Held while PyTorch's switches are set, which all threads share."""


@dataclass(frozen=True)
class Products:
    """Products whose operands are rounded as :mod:`nntk.kernels.perturb.reference` rounds them.

    On a GPU a product runs at the precision of its operands, and nothing is rounded twice: TF32 holds what was rounded
    to TF32 or to bfloat16. The matrix products of bfloat16 run as such, with results in float32. Other functions, such
    as convolutions, would return bfloat16, and so they run in TF32. A CPU multiplies the rounded numbers in float32.

    Attributes:
        precision: ``"fp32"`` (operands are not rounded), ``"tf32"`` or ``"bf16"``.
    """

    precision: str = "fp32"

    @property
    def rounds(self) -> bool:
        """True if operands are rounded."""
        return self.precision != "fp32"

    def round(self, operand: Tensor) -> Tensor:
        """Round an operand, or the real and the imaginary part of a complex one; float64 is never rounded."""
        if operand.dtype == torch.complex64:
            return torch.view_as_complex(self.round(torch.view_as_real(operand.resolve_conj())))
        return ROUNDINGS[self.precision](operand) if operand.dtype == torch.float32 else operand

    def matmul(self, a: Tensor, b: Tensor) -> Tensor:
        """Multiply stacks of matrices, [..., n, K] and [..., K, H], that are rounded operands."""
        if self.precision == "bf16" and a.device.type == "cuda" and a.dtype == b.dtype == torch.float32:
            return _multiply_bfloat16(a, b)
        with self.switched(a.device):
            return a @ b

    def multiply(self, function: Callable[..., Tensor], *operands: Tensor) -> Tensor:
        """Return a function of PyTorch that is linear in each of its rounded operands."""
        with self.switched(operands[0].device):
            return function(*operands)

    @contextmanager
    def switched(self, device: torch.device) -> Iterator[None]:
        """Let a GPU multiply float32 at this precision, whatever PyTorch's switches say, and restore them afterwards.

        The switches belong to the process: until they are restored, products of other threads follow them too.
        """
        if device.type != "cuda":
            yield
            return
        # At run time this module is an object with further attributes.
        convolutions = torch.backends.cudnn.conv  # type: ignore[attr-defined]
        switches, setting = (torch.backends.cuda.matmul, convolutions), "tf32" if self.rounds else "ieee"
        with _SWITCHES:
            before = [switch.fp32_precision for switch in switches]
            try:
                for switch in switches:
                    switch.fp32_precision = setting
                yield
            finally:
                for switch, value in zip(switches, before, strict=True):
                    switch.fp32_precision = value


def _multiply_bfloat16(a: Tensor, b: Tensor) -> Tensor:
    """Multiply stacks of float32 matrices that bfloat16 holds, as bfloat16 with sums and results in float32."""
    left, right = a.to(torch.bfloat16), b.to(torch.bfloat16)
    if right.dim() == 2:
        rows = torch.mm(left.reshape(-1, left.shape[-1]), right, out_dtype=torch.float32)
        return rows.view(*left.shape[:-1], right.shape[1])
    stack = torch.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    left, right = (part.expand(*stack, *part.shape[-2:]).reshape(-1, *part.shape[-2:]) for part in (left, right))
    products: Tensor = torch.bmm(left, right, out_dtype=torch.float32)
    return products.view(*stack, *products.shape[1:])
