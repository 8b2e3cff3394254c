r"""Digits that are left of a difference which is computed by subtraction, predicted by a second evaluation.

The parameters are changed by one unit of rounding, which changes no exact difference that anyone could tell, but all
rounding errors of the evaluation:

.. math::
    \text{error} \approx \frac{|D(\theta (1 \pm \varepsilon)) - D(\theta)|}{|D(\theta)|}.

The displacement itself is rounded as well, as :math:`(\theta + \delta) - \theta` shows.
"""

import warnings
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from nntk.differences.request import DifferenceRequest
from nntk.kernels.fixed_weights.softmax import users_level
from nntk.kernels.philox import unit_displacements
from nntk.models.data.inputs import Batch
from nntk.models.general import GeneralModel, Tensors
from nntk.models.isolation.findings import input_kind

_NEGLIGIBLE = 1e-9
"""Rounding of the parameters relative to the scale, below which differences keep more digits than anyone needs."""
_WARNED, _REFUSED = 1e-3, 0.1
"""Relative errors of differences from which on a warning is given, or an error is raised."""
_FEW = 4


class RoundingWarning(UserWarning):
    """Warning that differences have lost digits by subtraction; the message states the relative error."""


def check_digits(
    model: GeneralModel,
    base: Tensors,
    x: Batch,
    request: DifferenceRequest,
    differences_at: Callable[[Tensors, Batch, DifferenceRequest], Tensor],
) -> None:
    """Predict the relative rounding error of differences, and warn of it or refuse.

    Args:
        model: The model.
        base: Its displaced parameters by name, in the dtype of the evaluation.
        x: Inputs, [N, ...], in that dtype.
        request: The displacements.
        differences_at: Function from parameters, inputs and displacements to unit differences.

    Raises:
        ValueError: If less than one digit is left.
    """
    if not len(x) or not len(request.sample_ids):
        return
    dtype, scale = next(iter(base.values())).dtype, float(request.scales.min())
    eps = max(torch.finfo(dtype).eps, model.findings.eps)
    if not loses_digits(base, request, eps):
        return
    key = (input_kind(x), dtype, scale, request.pairs == "none")
    if key not in model.findings.digits:
        few = replace(request, sample_ids=request.sample_ids[:_FEW], scales=request.scales[:_FEW])
        inputs = x[torch.linspace(0, len(x) - 1, min(_FEW, len(x))).round().long().to(x.device)]
        differences = [differences_at(at, inputs, few) for at in (base, changed_by_rounding(base, eps))]
        model.findings.digits[key] = max(_relative_error(*differences), _displacement_error(model, base, few))
    _judge(model.findings.digits[key], scale, dtype, is_intended=eps > torch.finfo(torch.float32).eps)


def loses_digits(base: Tensors, request: DifferenceRequest, eps: float = 0.0) -> bool:
    """Return True if rounding of the displaced parameters leaves fewer than nine digits of a displacement.

    Args:
        base: Displaced parameters by name, in the dtype of the evaluation.
        request: The displacements.
        eps: Relative rounding error within the model, where it is larger than that of the dtype.
    """
    eps = max(eps, torch.finfo(next(iter(base.values())).dtype).eps)
    size = max(float(parameter.abs().max()) for parameter in base.values())
    return not eps * size < _NEGLIGIBLE * float(request.scales.min())


def changed_by_rounding(base: Tensors, eps: float) -> Tensors:
    """Return parameters times 1 + eps and 1 - eps in turn."""
    return {
        name: p * (1 + eps * (1 - 2 * (torch.arange(p.numel(), device=p.device) % 2))).view(p.shape).to(p.dtype)
        for name, p in base.items()
    }


def _relative_error(first: Tensor, second: Tensor) -> float:
    size = float(first.double().norm())
    return float((second.double() - first.double()).norm()) / size if size else 0.0


def _displacement_error(model: GeneralModel, base: Tensors, request: DifferenceRequest) -> float:
    """Return the relative error of the first displacement after it was added to the parameters."""
    errors, sizes = [], []
    for index, name in model.names.items():
        p = base[name]
        stream = (request.seed, request.directions, p.dtype)
        step = request.scales[0].to(p.dtype) * unit_displacements(request.sample_ids[:1], index, p.shape, *stream)[0]
        errors.append(((p + step) - p - step).norm())
        sizes.append(step.norm())
    return float(torch.stack(errors).norm() / torch.stack(sizes).norm())


def _judge(error: float, scale: float, dtype: torch.dtype, is_intended: bool) -> None:
    text = (
        f"differences at displaced copies of the parameters have a relative rounding error of about {error:.1g}, in "
        f"{dtype} at displacements of {scale:.1g} per coordinate"
    )
    remedy = "use a larger gamma" + (", or precision='auto' for float64." if dtype == torch.float32 else ".")
    # A model that rounds to half precision is a step function by intention, and its differences are what they are.
    if not error <= _REFUSED and not is_intended:
        raise ValueError(f"gamma must leave digits of the differences, but {text}; {remedy}")
    if not error <= _WARNED:
        warnings.warn(f"{text}; {remedy}", RoundingWarning, stacklevel=users_level())
