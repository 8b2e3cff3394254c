"""Choice of the error estimator of a kernel, by its estimator and weights."""

import functools

import torch
from torch import Tensor

from nntk.displacements import displacements_of
from nntk.estimators.energy import attention_energy, energy
from nntk.estimators.errors.event_size import event_size
from nntk.estimators.errors.gram_products import gram_products
from nntk.estimators.errors.groups import LEAST_GROUPS, ErrorEstimator, GroupMeans
from nntk.estimators.errors.jackknife import EnergyGroup, Jackknife, jackknife_energy, join_energies
from nntk.estimators.errors.jackknife_inner import DifferenceGroup, jackknife_inner, join_differences
from nntk.estimators.weighted import all_differences, attend_to_outputs, joint_inputs, query_outputs
from nntk.kernels.fixed_weights import FixedKernel
from nntk.models.data.inputs import Batch
from nntk.models.view import ModelView
from nntk.settings import KernelSettings


def error_estimator(
    settings: KernelSettings, model: ModelView, x1: Batch, x2: Batch | None, keep_replicates: bool = False
) -> ErrorEstimator:
    """Return the error estimator of a kernel, without groups.

    Energy without weights is a mean over groups, and their scatter is its error. The error of any other kernel, and of
    one whose replicates are kept, is that of a jackknife over groups.

    Args:
        settings: Settings of the kernel.
        model: View of the model.
        x1: Inputs of the rows, [N1, ...].
        x2: Inputs of the columns, [N2, ...]; None for a symmetric kernel.
        keep_replicates: Keep the kernels without one group each.

    Returns:
        The error estimator.
    """
    size, symmetric = max(1, settings.samples // LEAST_GROUPS), x2 is None
    first = displacements_of(settings, model)
    # Found once, and only if some entry rests on too few events.
    find_size = functools.cache(functools.partial(event_size, settings, model, x1, x2))
    if settings.estimator == "energy":
        make = functools.partial(energy_group, settings, model, x1, x2, query_outputs(first, x1, x2))
        if isinstance(settings.weights, FixedKernel) and settings.weights.proposal is None and not keep_replicates:
            return GroupMeans(lambda sample_ids: make(sample_ids).kernel, size, symmetric, find_size)
        combine_energies = functools.partial(
            jackknife_energy, symmetric=symmetric, event_size=find_size, keep_replicates=keep_replicates
        )
        return Jackknife(make, join_energies, combine_energies, size)
    joint = joint_inputs(x1, x2)
    stream = (model.displaced, settings.seed, settings.directions, settings.budget(model.device))
    combine = functools.partial(
        jackknife_inner,
        products=lambda coefficients, sample_ids, group_size, squared_norms: gram_products(
            coefficients, sample_ids, group_size, *stream, squared_norms
        ),
        rows=len(x1),
        symmetric=symmetric,
        num_params=model.num_params,
        factor=1 if settings.normalization == "paper" else model.num_params,
        unbiased=settings.estimator == "unbiased",
        outputs=settings.outputs,
        event_size=find_size,
        keep_replicates=keep_replicates,
    )
    make_group = functools.partial(difference_group, settings, model, joint, query_outputs(first, joint, None))
    # An error check multiplies all displacements again, so that fewer checks are made.
    return Jackknife(make_group, join_differences, combine, size, growth=1.5)


def energy_group(
    settings: KernelSettings,
    model: ModelView,
    x1: Batch,
    x2: Batch | None,
    queries: Tensor | None,
    sample_ids: range,
) -> EnergyGroup:
    """Return the energy form of a group of displacements alone, with its statistics among all."""
    displacements = displacements_of(settings, model, sample_ids, is_group=True)
    if not settings.attends_to_outputs:
        return EnergyGroup(energy(displacements, x1, x2), displacements.sample_statistics)
    total = attention_energy(displacements, x1, x2, queries)
    statistics = [part for part in (total.statistics1, total.statistics2) if part is not None]
    return EnergyGroup(total.result(), displacements.on_stream_scale(torch.cat(statistics, 1)))


def difference_group(
    settings: KernelSettings, model: ModelView, x: Batch, queries: Tensor | None, sample_ids: range
) -> DifferenceGroup:
    """Return the differences and weights of a group of displacements, with its statistics among all."""
    displacements = displacements_of(settings, model, sample_ids, is_group=True)
    if settings.attends_to_outputs:
        state, _, norms = attend_to_outputs(displacements, x, None, queries, displacements.indices)
        unit, weights = state.difference(), state.weights()
        statistics = displacements.on_stream_scale(state.statistics)
    else:
        unit, _, weights, _, norms = all_differences(displacements, x, None)
        weights, statistics = weights[:, None], displacements.sample_statistics
    return DifferenceGroup(unit, weights, norms, displacements.sample_ids, statistics)
