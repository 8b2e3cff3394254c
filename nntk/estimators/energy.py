r"""Energy estimator :math:`K = d \sum_m \alpha_m D_m(x) D_m(x') / |\delta_m|^2`, summed chunk by chunk."""

from torch import Tensor

from nntk.displacements import Displacements
from nntk.estimators.weighted import attend_to_outputs, chunks, joint_inputs, query_outputs
from nntk.kernels.assemble import StreamingSum, assemble, attended_energy
from nntk.models.data.inputs import Batch


def energy(displacements: Displacements, x1: Batch, x2: Batch | None) -> Tensor:
    """Return the energy form of the kernel.

    Args:
        displacements: The displacements.
        x1: Inputs of the rows, [N1, ...].
        x2: Inputs of the columns, [N2, ...]; None for a symmetric kernel.

    Returns:
        [N1, N2] with the axes of the outputs, in the model's dtype.
    """
    if displacements.settings.attends_to_outputs:
        return attention_energy(displacements, x1, x2, query_outputs(displacements, x1, x2)).result()
    settings, joint, weights = displacements.settings, joint_inputs(x1, x2), displacements.sample_weights
    kernel: Tensor | None = None
    for indices in chunks(displacements, joint):
        unit, norms = displacements.unit_differences(joint, indices, displacements.pairs)
        part = assemble(
            unit[:, : len(x1)],
            weights[indices],
            norms,
            displacements.model.num_params,
            d2=None if x2 is None else unit[:, len(x1) :],
            normalization=settings.normalization,
            outputs=settings.outputs,
        )
        kernel = part if kernel is None else kernel.add_(part)
    assert kernel is not None, "there is at least one sample"
    return kernel


def attention_energy(displacements: Displacements, x1: Batch, x2: Batch | None, queries: Tensor | None) -> StreamingSum:
    """Return the energy form under attention on outputs, whose chunks add up before the softmax's sums are known.

    Args:
        displacements: The displacements.
        x1: Inputs of the rows.
        x2: Inputs of the columns; None for a symmetric kernel.
        queries: Outputs from :func:`nntk.estimators.weighted.query_outputs`.

    Returns:
        The sum: its ``result()`` is the kernel, its statistics are those of the softmax.
    """
    settings, total = displacements.settings, StreamingSum()
    for indices in chunks(displacements, joint_inputs(x1, x2)):
        first, second, norms = attend_to_outputs(displacements, x1, x2, queries, indices)
        part = attended_energy(
            first, second, norms, displacements.model.num_params, settings.normalization, settings.outputs
        )
        total.add(part, first.statistics, None if second is None else second.statistics)
    for statistics in (total.statistics1, total.statistics2):
        if statistics is not None:
            displacements.warn_if_few_effective(statistics)
    return total
