"""Ordinary (local) NTK of an MLP from its structure: the strongest local baseline."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from nntk.kernels import checks, mlp
from nntk.kernels.activations import encode
from nntk.kernels.assemble import OUTPUTS
from nntk.kernels.dispatch import register
from nntk.kernels.local_ntk import cost, reference
from nntk.kernels.mlp import Layer

__all__ = ["structured_ntk"]


def _fake(x1: Tensor, x2: Tensor | None, weights: list[Tensor], *others: Any) -> Tensor:
    return reference.new_kernel(x1, x2, weights, others[-1])


_op = register(
    "structured_ntk(Tensor x1, Tensor? x2, Tensor[] weights, Tensor?[] biases, str[] activations,"
    " float[] activation_parameters, int[] weight_ordinals, int[] bias_ordinals, str outputs) -> Tensor",
    reference.structured_ntk,
    cost.structured_ntk,
    _fake,
    launcher="nntk.kernels.local_ntk.triton.launch",
)


def structured_ntk(layers: Sequence[Layer], x1: Tensor, x2: Tensor | None = None, outputs: str = "trace") -> Tensor:
    r"""Compute the NTK of an MLP, :math:`\sum_l (H_l H_l^T + 1) \circ (B_l B_l^T)`, without forming a gradient.

    Rows of :math:`H_l` are the inputs of layer l, and rows of :math:`B_l` the derivatives of the outputs by its
    pre-activations. The 1 stands for the bias.

    Args:
        layers: Layers of the MLP; parameters without an ordinal are constants.
        x1: Inputs of the rows, [N1, K], float32 or float64.
        x2: Inputs of the columns, [N2, K]; None for the symmetric kernel of ``x1``.
        outputs: Treatment of outputs, ``"trace"``, ``"mean"``, ``"diagonal"`` or ``"full"``.

    Returns:
        [N1, N2] in the dtype of ``x1``, with axes [C] or [C, C] appended for ``"diagonal"`` and ``"full"``; exactly
        symmetric without ``x2``.

    Raises:
        ValueError: If there are no layers, shapes, devices or names do not fit, a parameter serves two layers, no
            parameter has an ordinal, or an ordinal is out of range.
        TypeError: If dtypes do not fit, or an ordinal is not an integer.

    Example:
        >>> import torch
        >>> layer = Layer(torch.ones(1, 2), torch.zeros(1), weight_ordinal=0, bias_ordinal=1)
        >>> structured_ntk([layer], torch.tensor([[1.0, 2.0], [3.0, 4.0]]))  # <x, x'> + 1
        tensor([[ 6., 12.],
                [12., 26.]])
    """
    mlp.check(layers, x1)
    if x2 is not None:
        mlp.check(layers, x2)
    checks.choice("outputs", outputs, OUTPUTS)
    if not mlp.displaced(layers):
        raise ValueError("layers must have at least one parameter with an ordinal, got only constants.")
    if mlp.is_tied(layers):
        raise ValueError(
            f"layers must not share parameters for the structured NTK, got {mlp.shared_ordinals(layers)}; "
            "use method='jacobian'."
        )
    names, parameters = encode([layer.activation for layer in layers])
    return _op(
        x1,
        x2,
        [layer.weight for layer in layers],
        [layer.bias for layer in layers],
        names,
        parameters,
        [-1 if layer.weight_ordinal is None else layer.weight_ordinal for layer in layers],
        [-1 if layer.bias_ordinal is None else layer.bias_ordinal for layer in layers],
        outputs,
    )
