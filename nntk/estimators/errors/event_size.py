"""Size of an event of a kernel in which few events were seen, from displacements that are longer."""

from dataclasses import replace

import torch

from nntk.differences.route import unit_differences
from nntk.displacements import displacements_of
from nntk.estimators.weighted import joint_inputs
from nntk.models.data.inputs import Batch
from nntk.models.view import ModelView
from nntk.settings import KernelSettings

_SAMPLES = 64
_FACTOR = 4.0
_STEPS = 12
"""Displacements are up to four to the power of twelve, or 1.7e7, times as long."""


def event_size(settings: KernelSettings, model: ModelView, x1: Batch, x2: Batch | None) -> float:
    r"""Return the size of an event of the energy form for one displacement of weight one.

    Displacements are lengthened fourfold until some output changes, and once more. An event is a jump, whose size does
    not depend on the length of the displacement that crosses it: an output that changes by :math:`\Delta` contributes
    :math:`d\,\Delta^2 / |\delta_m|^2` at the length :math:`|\delta_m|` of the kernel's own displacements.

    Args:
        settings: Settings of the kernel.
        model: View of the model.
        x1: Inputs of the rows, [N1, ...].
        x2: Inputs of the columns, [N2, ...]; None for a symmetric kernel.

    Returns:
        The largest of these contributions; inf if no output changed.
    """
    displacements = displacements_of(settings, model, range(min(_SAMPLES, settings.samples)))
    request, x, largest = displacements.request(displacements.indices, "none"), joint_inputs(x1, x2), 0.0
    d = 1 / model.num_params if settings.normalization == "paper" else model.num_params
    for step in range(1, _STEPS + 1):
        factor, was_found = _FACTOR**step, largest > 0
        unit, norms = unit_differences(model, x, replace(request, scales=request.scales * factor))
        squares = (unit.double() * factor).square()
        per_output = squares if settings.outputs in ("diagonal", "full") else squares.sum(2, keepdim=True)
        sizes = per_output * (d / norms)[:, None, None] / (unit.shape[2] if settings.outputs == "mean" else 1)
        if not bool(torch.isfinite(sizes).all()):
            break
        largest = max(largest, float(sizes.amax())) if sizes.numel() else largest
        if was_found:
            break
    return largest if largest > 0 else float("inf")
