r"""Structured NTK of an MLP, in plain torch.

With the inputs :math:`h_l` of layer l, and the derivative :math:`B_l = \partial f / \partial z_l` of the outputs by its
pre-activations, the gradient by a weight is the outer product :math:`B_l \otimes h_l`, so that

.. math::
    \Theta_{nn'}^{cc'} = \sum_l \bigl(\langle h_l(x_n), h_l(x_{n'}) \rangle + 1\bigr)
        \sum_j B_l^{c j}(x_n)\, B_l^{c' j}(x_{n'}),

the 1 standing for the bias. No gradient is ever formed: O(N^2) numbers instead of O(N d).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from nntk.kernels.assemble.reference import contract, mirror
from nntk.kernels.mlp import Layer


def passes(layers: Sequence[Layer], x: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Forward and backward pass: for each layer its inputs h [N, K] and derivatives B, units first, [H, N, C]."""
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
    return [(h, b.permute(2, 0, 1)) for (h, _), b in zip(forward, reversed(backward), strict=True)]


def structured_ntk(layers: Sequence[Layer], x1: Tensor, x2: Tensor | None, outputs: str) -> Tensor:
    """The sum over layers above; ``x2=None`` means the symmetric kernel. Tied weights are not covered."""
    passes1 = passes(layers, x1)
    passes2 = passes1 if x2 is None else passes(layers, x2)
    total: Tensor | None = None
    for layer, (h1, b1), (h2, b2) in zip(layers, passes1, passes2, strict=True):
        if layer.weight_ordinal is None and layer.bias_ordinal is None:
            continue
        inputs = h1 @ h2.T if layer.weight_ordinal is not None else h1.new_zeros(len(h1), len(h2))
        if layer.bias_ordinal is not None:
            inputs += 1
        term = contract(b1, b2, outputs)
        term *= inputs.view(*inputs.shape, *[1] * (term.dim() - 2))
        total = term if total is None else total.add_(term)
    assert total is not None, "at least one parameter moves"
    return mirror(total) if x2 is None else total
