"""Launcher of the structured NTK on a GPU: both passes by products of torch, then one or two launches for each layer.

In modes ``diagonal`` and ``full`` the products of the inputs of a layer, [N1, N2], are the same for all outputs: a
separate launch computes them once.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from nntk.kernels.assemble.triton.launch import has_wide_tiles
from nntk.kernels.local_ntk import reference
from nntk.kernels.local_ntk.triton import config, kernel
from nntk.kernels.offsets import is_wide
from nntk.kernels.target import Target, input_precision, target_of

_ROWS: dict[str, Callable[[Tensor], Tensor]] = {
    "trace": lambda b: b.flatten(1),
    "mean": lambda b: b.flatten(1),
    "diagonal": lambda b: b.transpose(0, 1).flatten(0, 1),
    "full": lambda b: b.flatten(0, 1),
}
"""Functions from derivatives [N, C, H] to the matrix whose row products a mode sums, with N, C N or N C rows."""


@dataclass(frozen=True)
class _KernelMatrix:
    """Shape and mode of a kernel matrix, shared by all launches of a matrix.

    Attributes:
        n1: Number of inputs of the rows.
        n2: Number of inputs of the columns.
        num_outputs: Number C of outputs.
        outputs: Mode of output.
        symmetric: True if rows and columns are the same.
        target: Device.
    """

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
        """Add products of the rows of ``derivatives``, times those of ``inputs`` or times ``gram``, to ``out``."""
        rows_per_input, copies = self.num_outputs if self.outputs == "full" else 1, 1
        if self.outputs == "diagonal":
            copies = self.num_outputs
        shape = self.n1 * rows_per_input, self.n2 * rows_per_input
        wide = has_wide_tiles(self.n2, self.num_outputs, self.outputs)
        tiles = config.pick_on(self.target, *shape, copies, self.symmetric, inputs is not None, wide)
        h1, h2 = inputs or (None, None)
        b1, b2 = derivatives
        kernel.layer_pair[(tiles.programs(*shape, self.symmetric) * copies,)](
            h1, h2, gram, b1, b2, out, 0 if h1 is None else h1.shape[1], b1.shape[1],
            self.n1, self.n2, self.num_outputs,
            bias, not first, last, self.symmetric, self.outputs, input_precision("fp32", self.target.arch), wide,
            tiles.block_i, tiles.block_j, tiles.block_k, tiles.part,
            num_warps=tiles.num_warps, num_stages=tiles.num_stages, **config.OPTIONS,
        )  # fmt: skip

    def gram(self, h1: Tensor, h2: Tensor) -> Tensor:
        """Compute products of rows, [N1, N2]; entries above the diagonal of a symmetric one are not written."""
        products = h1.new_empty(self.n1, self.n2)
        matrix = _KernelMatrix(self.n1, self.n2, 1, "trace", self.symmetric, self.target)
        matrix.add(products, None, None, (h1, h2), bias=False, first=True, last=False)
        return products


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
    """Compute the kernel layer by layer: the op ``nntk::structured_ntk`` for CUDA tensors of float32."""
    network = (weights, biases, activations, activation_parameters, weight_ordinals, bias_ordinals)
    largest = max(len(x1), 0 if x2 is None else len(x2)) * len(weights[-1])
    # Rows and columns are counted in 32 bits.
    if x1.dtype != torch.float32 or is_wide(largest):
        return reference.structured_ntk(x1, x2, *network, outputs)
    out = reference.new_kernel(x1, x2, weights, outputs)
    if not out.numel():
        return out
    terms = reference.terms(reference.decode_layers(*network), x1, x2)
    matrix = _KernelMatrix(out.shape[0], out.shape[1], len(weights[-1]), outputs, x2 is None, target_of(x1.device))
    for index, term in enumerate(terms):
        inputs = _pair(term.h1, term.h2) if term.weight else None
        gram = None
        if inputs is not None and not config.is_fused(matrix.num_outputs, outputs):
            gram = matrix.gram(*inputs)
            inputs = None
        derivatives = _pair(term.b1, term.b2, _ROWS[outputs])
        matrix.add(out, inputs, gram, derivatives, term.bias, index == 0, index + 1 == len(terms))
    return out


def _pair(
    first: Tensor, second: Tensor, to_rows: Callable[[Tensor], Tensor] = lambda matrix: matrix
) -> tuple[Tensor, Tensor]:
    """Return two matrices in the layout of the kernel; one tensor if both are the same."""
    rows1 = _padded(to_rows(first))
    return rows1, rows1 if second is first else _padded(to_rows(second))


def _padded(matrix: Tensor) -> Tensor:
    """Return the matrix with rows padded by zeros to whole steps, or itself if no padding is needed."""
    rows, width = matrix.shape
    length = -(-width // config.STEP) * config.STEP
    if length == width:
        return matrix.contiguous()
    out = matrix.new_zeros(rows, length)
    out[:, :width] = matrix
    return out
