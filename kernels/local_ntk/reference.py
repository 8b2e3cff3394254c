r"""Structured NTK of an MLP in plain torch: the definition, the CPU backend and the tests' oracle.

With the inputs :math:`h_l` of layer l, and the derivative :math:`B_l = \partial f / \partial z_l` of the outputs by its
pre-activations, the gradient by a weight is the outer product :math:`B_l \otimes h_l`, so that

.. math::
    \Theta_{nn'}^{cc'} = \sum_l \bigl(\langle h_l(x_n), h_l(x_{n'}) \rangle + 1\bigr)
        \sum_j B_l^{c j}(x_n)\, B_l^{c' j}(x_{n'}),

where the 1 stands for the bias. No gradient is ever formed: memory is O(N^2) instead of O(N d).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nntk.kernels.activations import decode
from nntk.kernels.assemble.reference import mirror
from nntk.kernels.mlp import Layer
from nntk.kernels.slices import slices

_MIN_BLOCK = 512
"""Minimum number of rows of a block of a symmetric kernel, a quarter of the maximum: smaller products are slower."""


@dataclass(frozen=True)
class Term:
    """Contribution of one layer to the kernel of N1 inputs against N2.

    Attributes:
        weight: True if the weight of the layer is a parameter, so that products of its inputs count.
        bias: True if the bias is a parameter, which adds one to each of these products.
        h1: Inputs of the layer at the rows, [N1, K].
        b1: Derivatives of the outputs by the pre-activations of the layer at the rows, [N1, C, H].
        h2: Inputs of the layer at the columns, [N2, K].
        b2: Derivatives at the columns, [N2, C, H].
    """

    weight: bool
    bias: bool
    h1: Tensor
    b1: Tensor
    h2: Tensor
    b2: Tensor


def decode_layers(
    weights: list[Tensor],
    biases: list[Tensor | None],
    activations: list[str],
    activation_parameters: list[float],
    weight_ordinals: list[int],
    bias_ordinals: list[int],
) -> list[Layer]:
    """Build layers from the arguments of the op; a parameter with an ordinal below zero is a constant."""
    return [
        Layer(weight, bias, activation, None if w < 0 else w, None if b < 0 or bias is None else b)
        for weight, bias, activation, w, b in zip(
            weights, biases, decode(activations, activation_parameters), weight_ordinals, bias_ordinals, strict=True
        )
    ]


def new_kernel(x1: Tensor, x2: Tensor | None, weights: Sequence[Tensor], outputs: str) -> Tensor:
    """Allocate the kernel without writing it: [N1, N2], with axes [C] or [C, C] for separate outputs."""
    axes = {"diagonal": 1, "full": 2}.get(outputs, 0)
    return x1.new_empty(len(x1), len(x1 if x2 is None else x2), *[len(weights[-1])] * axes)


def passes(layers: Sequence[Layer], x: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return for each layer its inputs h [N, K] and the derivatives B [N, C, H] of the outputs, by both passes."""
    h, forward = x, []
    for layer in layers:
        z = torch.nn.functional.linear(h, layer.weight, layer.bias)
        forward.append((h, layer.activation.derivative(z)))
        h = layer.activation.value(z)
    eye = torch.eye(h.shape[1], dtype=x.dtype, device=x.device)
    b = eye * forward[-1][1][:, None, :]
    backward = [b]
    for layer, (_, slope) in zip(reversed(layers[1:]), reversed(forward[:-1]), strict=True):
        b = torch.matmul(b, layer.weight) * slope[:, None, :]
        backward.append(b)
    return [(h, b) for (h, _), b in zip(forward, reversed(backward), strict=True)]


def terms(layers: Sequence[Layer], x1: Tensor, x2: Tensor | None) -> list[Term]:
    """Return the terms of all layers with parameters; without ``x2``, rows and columns share the passes of ``x1``."""
    passes1 = passes(layers, x1)
    passes2 = passes1 if x2 is None else passes(layers, x2)
    return [
        Term(layer.weight_ordinal is not None, layer.bias_ordinal is not None, h1, b1, h2, b2)
        for layer, (h1, b1), (h2, b2) in zip(layers, passes1, passes2, strict=True)
        if layer.weight_ordinal is not None or layer.bias_ordinal is not None
    ]


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
    """Compute the kernel block by block: the op ``nntk::structured_ntk``; one triangle is enough if it is symmetric."""
    layers = decode_layers(weights, biases, activations, activation_parameters, weight_ordinals, bias_ordinals)
    kernel, parts = new_kernel(x1, x2, weights, outputs), terms(layers, x1, x2)
    # Blocks of an eighth of the rows save seven sixteenths of the work; smaller blocks add overhead.
    rows_per_input = len(weights[-1]) if outputs == "full" else 1
    largest = 4 * _MIN_BLOCK // rows_per_input
    size = max(1, largest if x2 is not None else max(_MIN_BLOCK // rows_per_input, min(largest, len(kernel) // 8)))
    for rows in slices(len(kernel), size):
        for columns in slices(kernel.shape[1] if x2 is not None else rows.stop, size):
            block = _block(parts, rows, columns, outputs)
            kernel[rows, columns] = mirror(block) if x2 is None and rows == columns else block
            if x2 is None and columns.stop <= rows.start:
                swapped = block.transpose(0, 1)
                kernel[columns, rows] = swapped.transpose(2, 3) if outputs == "full" else swapped
    return kernel


def _block(parts: Sequence[Term], rows: slice, columns: slice, outputs: str) -> Tensor:
    """Compute the block of the kernel at rows [n] and columns [m], summed over layers."""
    total: Tensor | None = None
    for term in parts:
        block = _products(term.b1[rows], term.b2[columns], outputs)
        if term.weight:
            h1, h2 = term.h1[rows], term.h2[columns].T
            inputs = torch.addmm(h1.new_ones(1), h1, h2) if term.bias else h1 @ h2
            factor = inputs[:, None, :, None] if outputs == "full" else inputs
            total = block.mul_(factor) if total is None else total.addcmul_(block, factor)
        else:
            total = block if total is None else total.add_(block)
    assert total is not None, "the op checks that there is a parameter"
    if outputs == "mean":
        total /= parts[0].b1.shape[1]
    return total.permute({"diagonal": (1, 2, 0), "full": (0, 2, 1, 3)}.get(outputs, (0, 1)))


def _products(b1: Tensor, b2: Tensor, outputs: str) -> Tensor:
    """Multiply derivatives [n, C, H] and [m, C, H]: [n, m], for ``diagonal`` [C, n, m], for ``full`` [n, C, m, C]."""
    if outputs == "full":
        products = b1.flatten(0, 1) @ b2.flatten(0, 1).T
        return products.view(*b1.shape[:2], *b2.shape[:2])
    if outputs == "diagonal":
        return torch.bmm(b1.transpose(0, 1), b2.permute(1, 2, 0))
    return b1.flatten(1) @ b2.flatten(1).T
