"""Minimum work of the structured NTK; see nntk.kernels.cost."""

from torch import Tensor

from nntk.kernels.assemble.cost import pairs
from nntk.kernels.cost import Cost, read


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
) -> Cost:
    """Count both passes of every input and, for each layer, the products of its inputs and of its derivatives."""
    c, n2 = len(weights[-1]), None if x2 is None else len(x2)
    forward = sum(weight.numel() for weight in weights)
    backward = c * sum(weight.numel() for weight in weights[1:])
    flops = 2.0 * (len(x1) + (n2 or 0)) * (forward + backward)
    for weight, weight_ordinal, bias_ordinal in zip(weights, weight_ordinals, bias_ordinals, strict=True):
        height, width = weight.shape
        if weight_ordinal >= 0:
            flops += 2.0 * width * pairs(len(x1), n2, 1, "trace")
        if weight_ordinal >= 0 or bias_ordinal >= 0:
            flops += 2.0 * height * pairs(len(x1), n2, c, outputs)
    return Cost(flops, read(x1, x2, weights, biases))
