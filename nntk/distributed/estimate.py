"""Error bars over ranks: each rank computes groups of displacements of its own, and hands them to all."""

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from nntk.displacements import remedy
from nntk.distributed.inputs import SharedInputs
from nntk.distributed.ranks.mesh import Mesh
from nntk.estimators.errors.build import error_estimator
from nntk.estimators.errors.estimate import Estimate, estimate
from nntk.estimators.errors.groups import GroupMeans
from nntk.estimators.errors.jackknife import Jackknife
from nntk.kernels.fixed_weights import warn_if_few
from nntk.settings import KernelSettings


class SharedGroups:
    """Groups of displacements that ranks compute side by side: as many of them at a time as there are ranks.

    The groups, and all that is computed from them, are those of one process.

    Args:
        mesh: The mesh, of which each rank holds all inputs.
        make: Returns the group of a range of displacements: a tensor, or a dataclass of tensors.
    """

    def __init__(self, mesh: Mesh, make: Callable[[range], Any]) -> None:
        self._mesh, self._make = mesh, make
        self._first, self._length, self._own = 0, 0, None

    def __call__(self, sample_ids: range) -> Any:
        """Return the group of a range of displacements; all ranks ask for the same."""
        length = len(sample_ids)
        owner = (sample_ids.start - self._first) // max(1, self._length)
        if length != self._length or owner >= self._mesh.size:
            self._first, self._length, owner = sample_ids.start, length, 0
            own = sample_ids.start + self._mesh.rank * length
            with self._mesh.agreement.together("evaluating a group of displacements"):
                self._own = self._make(range(own, own + length))
        return self._hand_out(self._own, owner)

    def _hand_out(self, group: Any, owner: int) -> Any:
        if isinstance(group, Tensor):
            buffer = group if owner == self._mesh.rank else torch.empty_like(group)
            return self._mesh.everyone.broadcast(buffer.clone(), owner)
        assert is_dataclass(group) and not isinstance(group, type), "a group is a tensor or consists of them"
        return replace(group, **{part.name: self._hand_out(getattr(group, part.name), owner) for part in fields(group)})


def shared_estimate(
    mesh: Mesh,
    settings: KernelSettings,
    inputs: SharedInputs,
    rtol: float,
    max_samples: int,
    progress: Callable[[Estimate], None] | None,
) -> Estimate:
    """Return the kernel of the inputs of all ranks with error bars, on every rank.

    Args:
        mesh: The mesh.
        settings: Settings of the kernel.
        inputs: Inputs that the ranks agreed on.
        rtol: Relative error of the matrix that ends the estimate.
        max_samples: Number of displacements that ends the estimate.
        progress: Receives the estimate at each error check, on every rank.

    Returns:
        The estimate.
    """
    x1, x2 = (None if x is None else torch.cat(mesh.inputs.gather(x)) for x in (inputs.x1, inputs.x2))
    assert x1 is not None, "there are rows"
    with mesh.agreement.together("preparing an estimate"):
        errors = error_estimator(settings, inputs.view, x1, x2)
    assert isinstance(errors, GroupMeans | Jackknife), "both draw groups by make"
    errors.make = SharedGroups(mesh, errors.make)
    result = estimate(errors, inputs.view.dtype, settings.members, rtol, max_samples, progress)
    warn_if_few(result.effective_samples, result.samples, remedy(settings.weights))
    return result
