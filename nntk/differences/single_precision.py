r"""Whether evaluation in float32 is precise enough: its error in the kernel, measured beside the Monte-Carlo error.

.. math::
    \frac{|K_{32} - K_{64}|}{|K_{64}|} < \min\left(\frac{1}{10} \sqrt{\frac{2}{M C}},\ 10^{-3}\right),

where both kernels are those of a few displacements at a few inputs, by evaluations in float32 and in float64. A model
that cannot be evaluated in float64 is compared with itself after its parameters were changed by a rounding.

In a model that jumps, rounding carries a few numbers across a jump, too few to be met at a few inputs. Their part e of
the differences is measured where it is common: with parameters that were changed by many roundings, since the number of
those that are carried across, and with it :math:`e^2`, is proportional to the rounding. Those of different
displacements are independent, so that the kernel's error is :math:`e \sqrt{2 / M}` at most, and what is asked is

.. math::
    e \sqrt{C} < \frac{1}{10}, \qquad e^2 = \frac{r}{R} \left(e_R^2 + \frac{3}{n}\right), \qquad
    e_R^2 = \frac{|D(\theta (1 \pm R \varepsilon)) - D(\theta)|^2}{|D(\theta)|^2} < \frac{1}{2},

where the second term is the rule of three: what happened in none of n differences happens in fewer than 3 / n of them,
with 95 % confidence.
"""

import logging
import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from nntk.differences.copies import copy_differences
from nntk.differences.digits import changed_by_rounding, loses_digits
from nntk.differences.request import DifferenceRequest
from nntk.models.data.inputs import Batch
from nntk.models.general import GeneralModel
from nntk.models.isolation.findings import Float32Errors, input_kind
from nntk.models.observe import Observe

_log = logging.getLogger("nntk")

_LARGEST_ERROR = 1e-3
"""Largest error, however few displacements there are: from here on differences are said to have lost digits."""
_LARGEST_SHARE = 0.1
"""Largest error, relative to the Monte-Carlo error."""
_SAMPLES = 8
"""Displacements of the comparison."""
_ROUNDINGS, _MANY_ROUNDINGS = 4, 1024
"""Relative errors of an evaluation, in units of float32's rounding: r, for which it is taken, and R, at which the
numbers that are carried across jumps are counted."""
_SATURATED = 0.5
"""Share of squared differences that changed by many roundings, from which on it is not proportional to the rounding."""
_JUMPS = {
    "sign", "sgn", "signbit", "copysign", "heaviside", "round", "floor", "ceil", "trunc", "frac", "floor_divide",
    "remainder", "fmod", "ge", "gt", "le", "lt", "eq", "ne", "argmax", "argmin", "argsort", "topk", "sort", "kthvalue",
    "median", "mode", "max", "min", "searchsorted", "bucketize", "fake_quantize_per_tensor_affine_cachemask",
    "fake_quantize_per_channel_affine_cachemask", "quantize_per_tensor", "quantize_per_channel", "histc", "bernoulli",
    "hardshrink", "threshold", "nonzero", "_local_scalar_dense",
}  # fmt: skip
"""Operators of PyTorch that jump, or choose; the last one gives a number to Python, which may branch."""
_INPUTS = 8
"""Inputs of the comparison: the first ones, so that a larger batch is evaluated in the same way."""


def float32_suffices(model: GeneralModel, x: Batch, request: DifferenceRequest) -> bool:
    """Return True if displaced copies may be evaluated in float32; this is measured once for a kind of input.

    Args:
        model: The model.
        x: Inputs, as the model's ``inputs`` returns them.
        request: The displacements.
    """
    if model.dtype != torch.float32 or model.is_opaque or model.draws or request.precision != "auto":
        return False
    if not len(x) or not len(request.sample_ids):
        return False
    # The first displacements of a kernel decide for all: its route does not change from chunk to chunk.
    key = (input_kind(x), request.pairs == "none")
    if key not in model.findings.float32_errors:
        few = replace(
            request, sample_ids=request.sample_ids[:_SAMPLES], scales=request.scales[:_SAMPLES], max_memory=None,
            pairs="odd" if request.members == 2 else "none",
        )  # fmt: skip
        model.findings.float32_errors[key] = _measure(model, x[:_INPUTS], few)
    found = model.findings.float32_errors[key]
    error = min(_LARGEST_ERROR, _LARGEST_SHARE * math.sqrt(2 / (request.samples * found.outputs)))
    return found.kernel < error and found.jumps < _LARGEST_SHARE


def float64_decides_jumps(model: GeneralModel, x: Batch, request: DifferenceRequest) -> bool:
    """Return True if displaced copies in float64 decide the jumps of a model, of any floating dtype.

    They are the definition of the kernel, and on a CPU they cost as much as rules or less, as long as a subtraction
    leaves nine digits. A black box and a stochastic model have no rules anyway.

    Args:
        model: The model.
        x: Inputs, as the model's ``inputs`` returns them.
        request: The displacements.
    """
    if model.device.type != "cpu" or model.is_opaque or model.draws or not len(x) or not len(request.sample_ids):
        return False
    if request.precision != "auto" and model.dtype != torch.float64:
        return False
    if not model_jumps(model, x):
        return False
    return not loses_digits(model.parameters(torch.float64), request, model.findings.eps)


def model_jumps(model: GeneralModel, x: Batch) -> bool:
    """Return True if the model computes something that jumps; looked for once, at the first of the inputs ``x``."""
    if model.findings.jumps is None:
        model.findings.jumps = _jumps(model, x[:_INPUTS])
    found: bool = model.findings.jumps
    return found


def _measure(model: GeneralModel, x: Batch, request: DifferenceRequest) -> Float32Errors:
    """Return the errors of evaluation in float32, at some displacements and inputs."""
    single, eps = replace(request, precision="fp32"), torch.finfo(torch.float32).eps
    model.findings.jumps = _jumps(model, x)
    base, exact_request = model.parameters(torch.float64), request
    try:
        exact = copy_differences(model, x, request, is_measured=True)
    except TypeError:
        base, exact_request = model.parameters(torch.float32), single
        exact = copy_differences(model, x, single, is_measured=True, base=changed_by_rounding(base, eps))
    differences = copy_differences(model, x, single, is_measured=True)
    outputs = exact.shape[2]
    kernels = (torch.tensordot(d.double(), d.double(), dims=([0, 2], [0, 2])) for d in (differences, exact))
    error, jumps = _relative_error(*kernels), 0.0
    if model.findings.jumps:
        changed = changed_by_rounding(base, _MANY_ROUNDINGS * eps)
        moved = _relative_error(copy_differences(model, x, exact_request, is_measured=True, base=changed), exact) ** 2
        share = moved + 3 / exact[:, :, 0].numel()
        jumps = math.sqrt(outputs * share * _ROUNDINGS / _MANY_ROUNDINGS) if moved < _SATURATED else math.inf
    _log.info(
        "In float32, displaced copies have an error of %.1g in the kernel; numbers on the wrong side of a jump add "
        "%.1g of its Monte-Carlo error at most.",
        error,
        jumps,
    )
    return Float32Errors(error, jumps, outputs)


def _relative_error(values: Tensor, exact: Tensor) -> float:
    """Return the relative error, infinity where it may be any."""
    size = float(exact.double().norm())
    return float((values.double() - exact.double()).norm()) / size if size else math.inf


def _jumps(model: GeneralModel, x: Batch) -> bool:
    """Return True if the model computes something that jumps: a rounding may then carry a number across a jump.

    Rules decide such numbers exactly.
    """
    found = False

    def look(function: Any, arguments: tuple[Any, ...], options: dict[str, Any], result: Any) -> None:
        nonlocal found
        name = function.name().removeprefix("aten::").partition(".")[0].rstrip("_")
        is_floating = any(isinstance(leaf, Tensor) and leaf.is_floating_point() for leaf in tree_leaves(arguments))
        to_integers = name == "_to_copy" and not result.is_floating_point()
        found = found or (is_floating and (name in _JUMPS or to_integers))

    with Observe(look):
        model.outputs_at(model.parameters(model.dtype), x)
    return found
