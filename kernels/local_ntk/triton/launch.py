"""Structured NTK on a GPU: both passes by torch's own products, then one launch a layer, or two.

In modes ``diagonal`` and ``full`` the products of a layer's inputs, [N1, N2], are the same for all outputs: a launch of
their own makes them once.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from nntk.kernels.local_ntk import reference
from nntk.kernels.local_ntk.triton import config, kernel
from nntk.kernels.perturb.triton.config import input_precision
from nntk.kernels.target import Target, target_of

_ROWS: dict[str, Callable[[Tensor], Tensor]] = {
    "trace": lambda b: b.flatten(1),
    "mean": lambda b: b.flatten(1),
    "diagonal": lambda b: b.transpose(0, 1).flatten(0, 1),
    "full": lambda b: b.flatten(0, 1),
}
"""Derivatives [N, C, H] as rows whose products a mode sums: N, C N and N C of them."""


@dataclass(frozen=True)
class _Call:
    """What all launches of one call share."""

    n1: int
    n2: int
    num_outputs: int
    outputs: str
    symmetric: bool
    target: Target

    def add(
        self,
        out: Tensor,
        inputs: tuple[Tensor, Tensor] | None,
        gram: Tensor | None,
        derivatives: tuple[Tensor, Tensor],
        bias: bool,
        first: bool,
        last: bool,
    ) -> None:
        """Add products of the rows of ``derivatives`` times those of ``inputs``, or times ``gram``, to ``out``."""
        apart, copies = self.num_outputs if self.outputs == "full" else 1, 1
        if self.outputs == "diagonal":
            copies = self.num_outputs
        size = self.n1 * apart, self.n2 * apart
        cut = config.pick_on(self.target, *size, copies, self.symmetric, inputs is not None)
        h1, h2 = inputs or (None, None)
        b1, b2 = derivatives
        kernel.layer_pair[(cut.programs(*size, self.symmetric) * copies,)](
            h1, h2, gram, b1, b2, out, 0 if h1 is None else h1.shape[1], b1.shape[1],
            self.n1, self.n2, self.num_outputs,
            bias, not first, last, self.symmetric, self.outputs, input_precision("fp32", self.target.arch),
            cut.block_i, cut.block_j, cut.block_k, cut.part, num_warps=cut.num_warps, num_stages=cut.num_stages,
        )  # fmt: skip

    def gram(self, h1: Tensor, h2: Tensor) -> Tensor:
        """Products of rows, [N1, N2]; of a symmetric one what is above the diagonal is not written."""
        made = h1.new_empty(self.n1, self.n2)
        plain = _Call(self.n1, self.n2, 1, "trace", self.symmetric, self.target)
        plain.add(made, None, None, (h1, h2), bias=False, first=True, last=False)
        return made


def structured_ntk(
    x1: Tensor,
    x2: Tensor | None,
    weights: list[Tensor],
    biases: list[Tensor | None],
    activations: list[str],
    activation_parameters: list[float],
    weight_ordinals: list[int],
    bias_ordinals: list[int],
    outputs: str,
) -> Tensor:
    """The op ``nntk::structured_ntk`` for CUDA tensors; float64 goes to the reference."""
    network = (weights, biases, activations, activation_parameters, weight_ordinals, bias_ordinals)
    if x1.dtype != torch.float32:
        return reference.structured_ntk(x1, x2, *network, outputs)
    out = reference.new_kernel(x1, x2, weights, outputs)
    if not out.numel():
        return out
    terms = reference.terms(reference.decoded(*network), x1, x2)
    call = _Call(out.shape[0], out.shape[1], len(weights[-1]), outputs, x2 is None, target_of(x1.device))
    for number, term in enumerate(terms):
        inputs = _pair(term.h1, term.h2) if term.weight else None
        gram = None
        if inputs is not None and not config.is_fused(call.num_outputs, outputs):
            gram = call.gram(*inputs)
            inputs = None
        derivatives = _pair(term.b1, term.b2, _ROWS[outputs])
        call.add(out, inputs, gram, derivatives, term.bias, number == 0, number + 1 == len(terms))
    return out


def _pair(
    one: Tensor, other: Tensor, rows: Callable[[Tensor], Tensor] = lambda matrix: matrix
) -> tuple[Tensor, Tensor]:
    """Rows of two matrices as the kernel reads them; made once where both are one."""
    made = _padded(rows(one))
    return made, made if other is one else _padded(rows(other))


def _padded(matrix: Tensor) -> Tensor:
    """Rows padded by zeros to whole steps; the matrix itself where it has such already."""
    lines, width = matrix.shape
    length = -(-width // config.STEP) * config.STEP
    if length == width:
        return matrix.contiguous()
    out = matrix.new_zeros(lines, length)
    out[:, :width] = matrix
    return out
