"""The ordinary (local) NTK of an MLP from its structure: the strongest local baseline."""

from collections.abc import Sequence

from torch import Tensor

from nntk.kernels import checks, mlp
from nntk.kernels.assemble import OUTPUTS
from nntk.kernels.local_ntk import reference
from nntk.kernels.mlp import Layer

__all__ = ["structured_ntk"]


def structured_ntk(layers: Sequence[Layer], x1: Tensor, x2: Tensor | None = None, outputs: str = "trace") -> Tensor:
    r"""NTK of an MLP, :math:`\sum_l (H_l H_l^T + 1) \circ (B_l B_l^T)`, without forming a gradient.

    Args:
        layers: The MLP; parameters without an ordinal count as constants.
        x1: The rows' inputs, [N1, K], float32 or float64.
        x2: The columns' inputs, [N2, K]; None for the symmetric kernel of ``x1``.
        outputs: ``"trace"``, ``"mean"``, ``"diagonal"`` or ``"full"``.

    Returns:
        [N1, N2], with axes [C] or [C, C] appended for ``"diagonal"`` and ``"full"``; exactly symmetric without ``x2``.

    Raises:
        ValueError: If shapes, devices or names do not fit, a parameter serves two layers, or none moves.
        TypeError: If dtypes do not fit.
    """
    mlp.check(layers, x1)
    if x2 is not None:
        mlp.check(layers, x2)
    checks.choice("outputs", outputs, OUTPUTS)
    if not mlp.displaced(layers):
        raise ValueError("layers must have at least one parameter that moves, got only fixed ones.")
    if mlp.is_tied(layers):
        raise ValueError("layers must not share parameters for the structured NTK; use method='jacobian'.")
    return reference.structured_ntk(layers, x1, x2, outputs)
