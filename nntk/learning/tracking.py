"""The kernel along training: how far it moves, and towards what."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from nntk.kernel import NonlocalNTK
from nntk.kernels import checks


@dataclass(frozen=True)
class KernelRecord:
    r"""The kernel :math:`K_t` at a step of training, beside the first one recorded, :math:`K_0`.

    Attributes:
        step: The step.
        trace: Sum of the diagonal.
        effective_rank: :math:`(\sum \lambda)^2 / \sum \lambda^2`, 1 for a single direction.
        eigenvalues: The largest ones, the largest first.
        similarity: :math:`\langle K_0, K_t \rangle / (|K_0|_F\,|K_t|_F)`, in [0, 1], whatever their scales.
        change: :math:`|K_t - K_0|_F / |K_0|_F`; below 1e-7 it is rounding.
        alignment: :math:`\langle y, K_t y \rangle / (|K_t|_F\,|y y^\top|_F)`, in [0, 1]; None without targets.
    """

    step: int
    trace: float
    effective_rank: float
    eigenvalues: tuple[float, ...]
    similarity: float
    change: float
    alignment: float | None


class KernelTracker:
    """Records of a kernel while its model is trained: whether features are learnt, or training is lazy.

    The displacements are those of the kernel's seed, the same at every record: what changes between records is the
    model, not the Monte-Carlo error. Recording leaves the model and PyTorch's random numbers as they are, and training
    goes on as it would have; layers in training mode are in evaluation mode meanwhile. The first kernel is kept as
    :meth:`nntk.KernelOperator.root`, of [N, min(N, F)] numbers.

    Args:
        kernel: The kernel of the model that is trained, in place; it has features.
        x: Inputs that the kernel is watched at, [N, ...], a few hundred say; they are copied.
        targets: Their targets, [N] or [N, T], centred or signs of classes, for ``alignment``.
        top: Number of the largest eigenvalues to record; all if there are fewer.

    Attributes:
        records: The records so far, :class:`KernelRecord`, in their order.

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

    def __init__(self, kernel: NonlocalNTK, x: Tensor, targets: Tensor | None = None, *, top: int = 5) -> None:
        if not isinstance(kernel, NonlocalNTK):
            raise TypeError(f"kernel must be a NonlocalNTK, got {type(kernel).__name__}.")
        checks.tensor("x", x)
        self.kernel, self.x, self.top = kernel, x.detach().clone(), checks.integer("top", top, 1)
        self.targets = None if targets is None else _checked(targets, len(x))
        self.records: list[KernelRecord] = []
        self._root: Tensor | None = None
        with _evaluation_mode(kernel.model):
            kernel.operator(self.x)  # It knows whether kernel and inputs will do.

    def record(self, step: int) -> KernelRecord:
        """Record the kernel as it is now.

        Args:
            step: The step of training, at least 0, that the record is to bear.

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
            made = KernelRecord(
                step,
                trace=float(operator.matrix.trace()),
                effective_rank=operator.effective_rank(),
                eigenvalues=tuple(operator.eigvalsh(min(self.top, len(operator.matrix))).tolist()),
                similarity=similarity,
                change=float((1 + ratio.square() - 2 * similarity * ratio).clamp(min=0).sqrt()),
                alignment=None if self.targets is None else operator.alignment(self.targets),
            )
        self.records.append(made)
        return made

    def table(self) -> dict[str, list[Any]]:
        """The records as columns by name, for plots and data frames; a row of ``"eigenvalues"`` is a tuple."""
        return {
            column.name: [getattr(record, column.name) for record in self.records] for column in fields(KernelRecord)
        }


def _checked(targets: Tensor, number: int) -> Tensor:
    """Targets that fit the inputs, copied."""
    checks.tensor("targets", targets)
    if targets.dim() not in (1, 2) or len(targets) != number:
        raise ValueError(f"targets must have shape [{number}] or [{number}, T], got {tuple(targets.shape)}.")
    checks.finite("targets", targets)
    return targets.detach().clone()


@contextmanager
def _evaluation_mode(model: object) -> Iterator[None]:
    """Every layer in evaluation mode, and afterwards as it was."""
    layers = list(model.modules()) if isinstance(model, nn.Module) else []
    modes = [layer.training for layer in layers]
    try:
        # Layer by layer: a train() of a model's own may do more, and eval() does not know what it was.
        for layer in layers:
            layer.training = False
        yield
    finally:
        for layer, mode in zip(layers, modes, strict=True):
            layer.training = mode
