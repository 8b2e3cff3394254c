"""Plugin and unbiased estimators: inner products of nonlocal gradients, in which every pair of displacements counts."""

from typing import Any

from torch import Tensor

from nntk.displacements import Displacements
from nntk.estimators.weighted import all_differences
from nntk.kernels.assemble import assemble, assemble_by_gradients, displacement_gram, inner_product_route
from nntk.models.data.inputs import Batch


def inner_product(displacements: Displacements, x1: Batch, x2: Batch | None) -> Tensor:
    r"""Return the plugin or the unbiased form, :math:`\langle G f(x), G f(x') \rangle`.

    All differences are held at once. The sum over pairs of displacements goes by their Gram matrix [M, M] or by the
    gradients [N, C, d], whichever is cheaper.

    Args:
        displacements: The displacements.
        x1: Inputs of the rows, [N1, ...].
        x2: Inputs of the columns, [N2, ...]; None for a symmetric kernel.

    Returns:
        [N1, N2] with the axes of the outputs, in the model's dtype.
    """
    settings, model = displacements.settings, displacements.model
    d1, d2, weights1, weights2, norms = all_differences(displacements, x1, x2)
    inputs = (len(x1), 0 if x2 is None else len(x2))
    route = inner_product_route(settings.samples, inputs, d1.shape[-1], model.num_params, settings.outputs == "full")
    options: dict[str, Any] = {
        "d2": d2,
        "weights2": weights2,
        "estimator": settings.estimator,
        "normalization": settings.normalization,
        "outputs": settings.outputs,
    }
    stream = (model.displaced, displacements.sample_ids, settings.seed, settings.directions)
    if route == "gradients":
        return assemble_by_gradients(d1, weights1, norms, *stream, **options)
    return assemble(d1, weights1, norms, model.num_params, gram=displacement_gram(*stream), **options)
