"""Kernels by products with vectors: backward derivatives give gradients, forward ones their products with Jacobians."""

from functools import partial

import torch
from torch import Tensor
from torch.func import vjp

from nntk.kernels.slices import slices
from nntk.local.agreement import fixed_weights, require_agreement
from nntk.local.evaluation import Evaluation, Parameters
from nntk.local.jacobian import Blocks
from nntk.local.memory import BlockSizes
from nntk.local.reverse_mode import weighted_gradient
from nntk.models.data.inputs import Batch, map_tensors


def vector_product_blocks(
    evaluation: Evaluation, x1: Batch, x2: Batch | None, outputs: str, num_outputs: int, sizes: BlockSizes
) -> Blocks:
    """Compute columns Theta e: the gradient of one output at one input, times the Jacobian at the rows' inputs.

    Args:
        evaluation: The model.
        x1: Inputs of the rows.
        x2: Inputs of the columns; None for the symmetric kernel of ``x1``.
        outputs: Treatment of the outputs.
        num_outputs: Number C of outputs.
        sizes: Sizes of blocks.

    Yields:
        Places in the kernel, and what is added there.

    Raises:
        Disagreement: If sums of entries are not those of products of plain gradients: at the first inputs, at the last
            inputs of the first block, and over all of them.
    """
    columns_x = x1 if x2 is None else x2
    comparison = _Comparison(evaluation, x1, x2, num_outputs, sizes)
    for columns in slices(len(columns_x), sizes.columns):
        for chosen in slices(num_outputs, sizes.outputs):
            gradients = _gradients(evaluation, columns_x[columns], num_outputs, chosen)
            for rows in slices(len(x1), sizes.rows):
                products = _products(evaluation, x1[rows], gradients)
                comparison.add(products, rows, columns, chosen)
                place = (rows, columns) if outputs in ("trace", "mean") else (rows, columns, Ellipsis, chosen)
                yield place, _reduce(products, outputs, chosen)
    comparison.finish()


def _gradients(evaluation: Evaluation, x2: Batch, num_outputs: int, chosen: slice) -> Parameters:
    """Return the gradients of some outputs k at the inputs of columns, by name, [n2, k, ...]."""
    parameters = evaluation.parameters

    def gradient(x: Batch, e: Tensor) -> Parameters:
        pull_back = vjp(
            lambda replaced: evaluation.outputs(replaced, map_tensors(lambda tensor: tensor[None], x))[0], parameters
        )[1]
        result: Parameters = pull_back(e)[0]
        return result

    basis = torch.eye(num_outputs, dtype=evaluation.view.dtype, device=evaluation.view.device)[chosen]
    with torch.enable_grad():
        gradients: Parameters = torch.vmap(torch.vmap(gradient, (None, 0)), (0, None))(x2, basis)
    return {name: part.detach() for name, part in gradients.items()}


def _products(evaluation: Evaluation, x1: Batch, gradients: Parameters) -> Tensor:
    """Return the products of gradients with the Jacobian at the inputs of rows, [n2, k, n1, C]."""
    with torch.enable_grad():
        products: Tensor = torch.vmap(torch.vmap(partial(evaluation.derivative, x1)))(gradients)
    return products.detach()


def _reduce(products: Tensor, outputs: str, chosen: slice) -> Tensor:
    """Return what some outputs k of the columns add to a block of the kernel: [n1, n2], or with axes of outputs."""
    if outputs == "full":
        return products.permute(2, 0, 3, 1)
    diagonal = products[..., chosen].diagonal(dim1=1, dim2=3).transpose(0, 1)
    return {"diagonal": diagonal, "trace": diagonal.sum(2), "mean": diagonal.sum(2) / products.shape[3]}[outputs]


class _Comparison:
    """Comparison of sums of products with products of gradients by plain autograd.

    Args:
        evaluation: The model.
        x1: Inputs of the rows.
        x2: Inputs of the columns; None for those of the rows.
        num_outputs: Number C of outputs.
        sizes: Sizes of blocks.
    """

    def __init__(
        self, evaluation: Evaluation, x1: Batch, x2: Batch | None, num_outputs: int, sizes: BlockSizes
    ) -> None:
        self._evaluation, self._x1, self._x2, self._sizes = evaluation, x1, x2, sizes
        like = torch.empty(0, dtype=evaluation.view.dtype, device=evaluation.view.device)
        self._weights = fixed_weights(max(len(x1), 0 if x2 is None else len(x2)), num_outputs, like)
        self._total = like.new_zeros((), dtype=torch.float64)

    def add(self, products: Tensor, rows: slice, columns: slice, chosen: slice) -> None:
        """Add a block of products [n2, k, n1, C] to the sum; compare entries at the corners of the first block."""
        self._total += self._weighted_sum(products, rows, columns, chosen)
        if rows.start == columns.start == chosen.start == 0:
            last_row, last_column = products.shape[2] - 1, products.shape[0] - 1
            self._compare_corner(products, 0, 0, chosen, "the first input")
            if last_row or last_column:
                self._compare_corner(products, last_row, last_column, chosen, "the last input of a block")

    def finish(self) -> None:
        """Compare the sum over all entries."""
        if len(self._x1) and (self._x2 is None or len(self._x2)):
            left = self._gradient(self._x1, self._weights)
            self._require(self._total, left, left if self._x2 is None else self._gradient(self._x2, self._weights))

    def _weighted_sum(self, products: Tensor, rows: slice, columns: slice, chosen: slice) -> Tensor:
        right, left = self._weights[columns, chosen].flatten(), self._weights[rows].flatten()
        return right.double() @ (products.flatten(2).flatten(0, 1) @ left).double()

    def _compare_corner(self, products: Tensor, row: int, column: int, chosen: slice, where: str) -> None:
        corner = products[column : column + 1, :, row : row + 1]
        actual = self._weighted_sum(corner, slice(row, row + 1), slice(column, column + 1), chosen)
        left = self._gradient(self._x1[row : row + 1], self._weights[row : row + 1])
        if self._x2 is None and row == column and products.shape[1] == products.shape[3]:
            right = left
        else:
            counted = torch.zeros_like(self._weights[column : column + 1])
            counted[:, chosen] = self._weights[column : column + 1, chosen]
            right = self._gradient((self._x1 if self._x2 is None else self._x2)[column : column + 1], counted)
        self._require(actual, left, right, where)

    def _gradient(self, x: Batch, weights: Tensor) -> Tensor:
        """Return the weighted gradient of some inputs, from blocks that an evaluation has room for."""
        blocks = slices(len(x), max(self._sizes.rows, self._sizes.columns))
        return sum(
            (weighted_gradient(self._evaluation, x[block], weights[block]) for block in blocks),
            start=weights.new_zeros(()),
        )

    def _require(self, actual: Tensor, left: Tensor, right: Tensor, where: str = "all inputs") -> None:
        left, right = left.double(), right.double()
        scale = float(left.norm() * right.norm())
        require_agreement(actual, left @ right, self._evaluation.tolerance, where, scale)
