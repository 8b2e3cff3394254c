"""Differences of activations of CPU tensors: compiled where there is a kernel, else in plain torch."""

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from nntk.kernels import cpu
from nntk.kernels.activations import Activation, State
from nntk.kernels.cpu import lanes

COMPILED = ("relu", "tanh", "sigmoid", "silu", "gelu", "gelu_tanh")
"""Names of the activations that are compiled, for float32."""
_TASK = 1 << 16
"""Numbers of a task."""


def difference(activation: Activation, state: State, dz: Tensor, s: Tensor) -> Tensor:
    r"""Return :math:`[\varphi(z + s\,dz) - \varphi(z)] / s`, in one pass where a kernel is compiled for it.

    Args:
        activation: The activation.
        state: Its state of the unperturbed z, tensors of the shape of z.
        dz: Differences of z divided by s, [M, members, *shape].
        s: Divisors, [M, 1, ...], which broadcast against ``dz``.

    Returns:
        The differences, of the shape of ``dz``.
    """
    if not _is_compiled(activation, state, dz, s):
        return activation.difference(state, dz, s)
    from nntk.kernels.cpu.smooth import ROWS  # Importing it imports Numba.

    kernel, members = ROWS[activation.name], dz.shape[1]
    steps = s.flatten().repeat_interleave(members)
    result = torch.empty(dz.shape, dtype=dz.dtype)
    z, rows, out = state[0].contiguous().view(-1).numpy(), _rows(dz), _rows(result)
    scales, inverses = steps.numpy(), (1 / steps).numpy()

    def fill(task: tuple[int, slice]) -> None:
        row, part = task
        kernel(z[part], rows[row, part], scales[row], inverses[row], out[row, part])

    length = max(1, z.size)
    parts = [slice(start, min(start + _TASK, z.size)) for start in range(0, length, _TASK)]
    tasks = [(row, part) for row in range(len(rows)) for part in parts]
    if dz.numel() <= _TASK:
        for task in tasks:
            fill(task)
    else:
        lanes.run(tasks, lambda: fill, len(tasks), products=False)
    return result


def _rows(tensor: Tensor) -> NDArray[Any]:
    """Return an array [M members, numbers] that shares the tensor's memory if that is contiguous."""
    rows: NDArray[Any] = tensor.contiguous().view(tensor.shape[0] * tensor.shape[1], -1).numpy()
    return rows


def _is_compiled(activation: Activation, state: State, dz: Tensor, s: Tensor) -> bool:
    """Return True if there is a kernel for an activation and its operands."""
    return (
        activation.name in COMPILED
        and dz.device.type == "cpu"
        and dz.dtype == s.dtype == torch.float32
        and dz.numel() > 0
        and state[0].shape == dz.shape[2:]
        and s.numel() == len(dz) == s.shape[0]
        and cpu.serves()
        and bool(s.min() >= torch.finfo(s.dtype).tiny)
    )
