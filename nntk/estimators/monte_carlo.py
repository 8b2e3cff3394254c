"""Monte-Carlo error of the energy estimator, predicted from the NTK."""

import math

import torch
from torch import Tensor

from nntk.kernels import checks


def monte_carlo_error(ntk: Tensor, samples: int, num_params: int, outputs: str = "full") -> float:
    r"""Root-mean-square Frobenius error of the energy estimator for a smooth model as gamma tends to 0.

    With :math:`\Theta_{nn'}^{cc'}` the NTK, :math:`T = \sum_n \Theta_{nn}`, isotropic displacements in d dimensions
    and equal weights 1 / M (for random signs up to a relative 1 / d),

    .. math::
        E\,|\hat K - K|_F^2 = \frac{d\,(A + B) - 2\,|K|_F^2}{(d + 2)\,M},

    where :math:`A = (\mathrm{tr}\,T)^2`, :math:`B = |\Theta|_F^2` for ``"full"``, and :math:`A = \sum_{cc'} T_{cc'}^2`,
    :math:`B = \sum_{nn'cc'} \Theta_{nn'}^{cc'} \Theta_{nn'}^{c'c}` for ``"trace"``. For one output both are
    :math:`(d\,\mathrm{tr}(K)^2 + (d - 2) |K|_F^2) / ((d + 2) M)`, and ``"diagonal"`` adds that over the outputs.

    Args:
        ntk: The full NTK at one set of inputs, [N, N, C, C], as from ``local_ntk(..., outputs="full")``; or [N, N]
            for one output.
        samples: Number M of displacements, >= 1 (pairs, if antithetic).
        num_params: Number d of displaced parameters.
        outputs: Which kernel the error is of: ``"trace"``, ``"mean"``, ``"diagonal"`` or ``"full"``.

    Returns:
        The error in units of the kernel; divide by its Frobenius norm for the relative one.

    Raises:
        ValueError: If ``ntk`` has another shape or is not finite, a number is out of range, or the name unknown.
        TypeError: If ``ntk`` is no tensor, or a number no integer.

    Example:
        >>> round(monte_carlo_error(torch.eye(2), samples=6, num_params=10**9), 6)  # sqrt((2**2 + 2) / 6)
        1.0
    """
    checks.choice("outputs", outputs, ("trace", "mean", "diagonal", "full"))
    checks.integer("samples", samples, 1)
    checks.integer("num_params", num_params, 1)
    checks.tensor("ntk", ntk)
    checks.finite("ntk", ntk)
    theta = ntk[:, :, None, None] if ntk.dim() == 2 else ntk
    if theta.dim() != 4 or theta.shape[0] != theta.shape[1] or theta.shape[2] != theta.shape[3]:
        raise ValueError(f"ntk must have shape [N, N, C, C] or [N, N], got {tuple(ntk.shape)}.")
    theta = theta.double()
    d, c = num_params, theta.shape[2]
    total = torch.einsum("nncd->cd", theta)
    if outputs == "diagonal":
        kernel = torch.einsum("nmcc->nmc", theta)
        a, b = total.diagonal().square().sum(), kernel.square().sum()
    elif outputs == "full":
        kernel = theta
        a, b = total.trace().square(), theta.square().sum()
    else:
        kernel = torch.einsum("nmcc->nm", theta)
        a, b = total.square().sum(), torch.einsum("nmcd,nmdc->", theta, theta)
    error = math.sqrt(max(0.0, float(d * (a + b) - 2 * kernel.square().sum()) / ((d + 2) * samples)))
    return error / c if outputs == "mean" else error
