r"""Features A with :math:`K(x, x') = A(x) A(x')^\top`, and the nonlocal gradients that are features of plugin."""

from torch import Tensor

from nntk.displacements import Displacements
from nntk.estimators.weighted import all_differences
from nntk.kernels import checks
from nntk.kernels.assemble import nonlocal_gradients
from nntk.models.data.inputs import Batch


def gradients(displacements: Displacements, x: Batch) -> Tensor:
    r"""Return the nonlocal gradients :math:`G f(x) = d \sum_m \alpha_m(x) D_m(x)\, \delta_m / |\delta_m|^2`.

    Args:
        displacements: All displacements of the kernel.
        x: Inputs, [N, ...].

    Returns:
        [N, C, d] in the model's dtype; divided by d for the paper's normalisation.

    Raises:
        ValueError: If a gradient is not finite.
    """
    settings, model = displacements.settings, displacements.model
    unit, _, weights, _, norms = all_differences(displacements, x, None)
    result = nonlocal_gradients(
        unit, weights, norms, model.displaced, displacements.sample_ids, settings.seed, settings.directions
    )
    checks.finite("the nonlocal gradients", result)
    return result / model.num_params if settings.normalization == "paper" else result


def features(displacements: Displacements, x: Batch) -> Tensor:
    r"""Return features: :math:`A_{n,mc} = \sqrt{d\,\alpha_m(x_n)}\, D_{mnc} / |\delta_m|`, or gradients for plugin.

    Args:
        displacements: All displacements of the kernel.
        x: Inputs, [N, ...].

    Returns:
        [N, F] in the model's dtype: F = M C for energy, C d for plugin.

    Raises:
        ValueError: If a feature is not finite.
    """
    settings, model = displacements.settings, displacements.model
    if settings.estimator == "plugin":
        result = gradients(displacements, x).flatten(1)
        return result / model.num_outputs(x) ** 0.5 if settings.outputs == "mean" else result
    unit, _, weights, _, norms = all_differences(displacements, x, None)
    weights = weights if weights.dim() == 2 else weights[:, None]
    roots = (weights * (model.num_params / norms)[:, None]).sqrt().to(unit.dtype)
    if settings.outputs == "mean":
        roots = roots / unit.shape[-1] ** 0.5
    if settings.normalization == "paper":
        roots = roots / model.num_params
    result = unit.mul_(roots[:, :, None]).transpose(0, 1).flatten(1)
    checks.finite("the features, from the model's outputs at displaced parameters,", result)
    return result
