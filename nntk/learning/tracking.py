"""Tracking of a kernel along training: how far it changes, and whether towards the targets."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from nntk.kernel import NonlocalNTK
from nntk.kernels import checks
from nntk.linalg.vectors import check_real
from nntk.models.data.inputs import InputValue, as_batch


@dataclass(frozen=True)
class KernelRecord:
    r"""Record of the kernel :math:`K_t` at a step t of training, compared with the first one recorded, :math:`K_0`.

    Attributes:
        step: Step of training.
        trace: Sum of the diagonal.
        effective_rank: :math:`(\sum \lambda)^2 / \sum \lambda^2`, 1 for a single direction.
        eigenvalues: Largest eigenvalues, the largest first.
        similarity: Alignment with the first kernel, :math:`\langle K_0, K_t \rangle / (|K_0|_F\,|K_t|_F)`, in [0, 1];
            it ignores their scales.
        change: Relative change :math:`|K_t - K_0|_F / |K_0|_F`; below 1e-7 it is rounding.
        alignment: Alignment with the targets, :math:`\langle y, K_t y \rangle / (|K_t|_F\,|y y^\top|_F)`, in [0, 1];
            None without targets.
    """

    step: int
    trace: float
    effective_rank: float
    eigenvalues: tuple[float, ...]
    similarity: float
    change: float
    alignment: float | None


class KernelTracker:
    """Records of a kernel while its model is trained, which show whether features are learnt or training is lazy.

    The displacements of all records are the same, those of the kernel's seed: between records only the model changes,
    not the Monte-Carlo error. Recording changes neither the model nor PyTorch's random numbers, so that training
    continues as it would without records; layers in training mode are in evaluation mode during a record. The first
    kernel is kept as :meth:`nntk.KernelOperator.root`, which has [N, min(N, F)] numbers.

    Args:
        kernel: Kernel of the model that is trained in place; it has features.
        x: Inputs at which the kernel is recorded, as for a call; for example a few hundred; they are copied.
        targets: Targets of the inputs, [N] or [N, T], of any real dtype, centred or signs of classes, for
            ``alignment``.
        top: Number of largest eigenvalues to record; all if there are fewer.

    Attributes:
        records: Records so far, :class:`KernelRecord`, in their order.

    Raises:
        ValueError: If the kernel has no features, the inputs do not fit its model, targets do not fit the inputs or are
            not finite, or ``top`` is below 1.
        TypeError: If an argument has the wrong type.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 1))
        >>> tracker = KernelTracker(NonlocalNTK(model, samples=64), torch.randn(20, 3))
        >>> first = tracker.record(0)
        >>> with torch.no_grad():
        ...     _ = model[0].weight.mul_(3)  # a step of training
        >>> second = tracker.record(1)
        >>> round(first.similarity, 6), first.change < 1e-6, second.similarity < 0.999, second.change > 0.1
        (1.0, True, True, True)
    """

    def __init__(self, kernel: NonlocalNTK, x: InputValue, targets: Tensor | None = None, *, top: int = 5) -> None:
        if not isinstance(kernel, NonlocalNTK):
            raise TypeError(f"kernel must be a NonlocalNTK, got {type(kernel).__name__}.")
        self.kernel, self.x, self.top = kernel, as_batch("x", x).detach().clone(), checks.integer("top", top, 1)
        self.targets = None if targets is None else _check_targets(targets, len(self.x))
        self.records: list[KernelRecord] = []
        self._root: Tensor | None = None
        with _evaluation_mode(kernel.model):
            kernel.operator(self.x)  # It checks the kernel and the inputs.

    def record(self, step: int) -> KernelRecord:
        """Record the kernel as it is now.

        Args:
            step: Step of training, at least 0, for the record.

        Returns:
            The record, the last of ``records``.

        Raises:
            ValueError: If ``step`` is negative, or a parameter or an output of the model is not finite.
            TypeError: If ``step`` is no integer.
        """
        step = checks.integer("step", step, 0)
        with _evaluation_mode(self.kernel.model), torch.no_grad():
            operator = self.kernel.operator(self.x)
            norm = operator.matrix.norm()
            if self._root is None:
                self._root, self._norm = operator.root(), norm
            similarity, ratio = operator.alignment(self._root), norm / self._norm
            record = KernelRecord(
                step,
                trace=float(operator.matrix.trace()),
                effective_rank=operator.effective_rank(),
                eigenvalues=tuple(operator.eigvalsh(min(self.top, len(operator.matrix))).tolist()),
                similarity=similarity,
                change=float((1 + ratio.square() - 2 * similarity * ratio).clamp(min=0).sqrt()),
                alignment=None if self.targets is None else operator.alignment(self.targets),
            )
        self.records.append(record)
        return record

    def table(self) -> dict[str, list[Any]]:
        """Return the records as columns by name, for plots and data frames; a row of ``"eigenvalues"`` is a tuple."""
        return {
            column.name: [getattr(record, column.name) for record in self.records] for column in fields(KernelRecord)
        }


def _check_targets(targets: Tensor, number: int) -> Tensor:
    """Check that targets fit this number of inputs, and copy them."""
    checks.tensor("targets", targets)
    if targets.dim() not in (1, 2) or len(targets) != number:
        raise ValueError(f"targets must have shape [{number}] or [{number}, T], got {tuple(targets.shape)}.")
    check_real("targets", targets)
    return targets.detach().clone()


@contextmanager
def _evaluation_mode(model: object) -> Iterator[None]:
    """Set every layer to evaluation mode, and restore its mode afterwards."""
    layers = list(model.modules()) if isinstance(model, nn.Module) else []
    modes = [layer.training for layer in layers]
    try:
        # Layer by layer, because a model's train() may do more, and eval() forgets the modes of the layers.
        for layer in layers:
            layer.training = False
        yield
    finally:
        for layer, mode in zip(layers, modes, strict=True):
            layer.training = mode
