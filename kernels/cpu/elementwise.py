"""Differences of activations of CPU tensors: compiled where there is a kernel, else in plain torch."""

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from nntk.kernels import cpu
from nntk.kernels.activations import Activation, State
from nntk.kernels.cpu import lanes
from nntk.kernels.slices import slices

COMPILED = ("relu", "tanh", "sigmoid", "silu", "gelu", "gelu_tanh")
"""Names of the activations that are compiled, for float32."""
TASK = 1 << 17
"""Numbers of a task, which take about a tenth of a millisecond."""
_FEW_TASKS = 4
"""Tasks that are done on the caller's thread: to wake others would take as long."""


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
    scales, inverses = steps.numpy(), steps.reciprocal().numpy()

    def fill(task: tuple[slice, slice]) -> None:
        some, part = task
        kernel(z[part], rows[some, part], scales[some], inverses[some], out[some, part])

    height, width = max(1, TASK // z.size), min(z.size, TASK)
    tasks = [(some, part) for some in slices(len(rows), height) for part in slices(z.size, width)]
    if len(tasks) > _FEW_TASKS:
        lanes.run(tasks, lambda: fill, len(tasks), products=False)
    else:
        for task in tasks:
            fill(task)
    return result


def step_difference(z: Tensor, dz: Tensor, s: Tensor, height: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    r"""Return the difference of the unit step times a height, and how near its values come to the jump.

    Args:
        z: Unperturbed values, none of them -0, [N, ...].
        dz: Differences of z divided by s, [M, members, N, ...].
        s: Divisors, powers of two, [M, 1, ...].
        height: Heights of the jump over s, of the shape of ``s``.

    Returns:
        The differences, of the shape of ``dz``; the least size of displaced values z + s dz, and the largest of the
        changes s dz, of each input, [M, members, N]. None where no kernel is compiled for such operands.
    """
    if not _is_float32(z, dz, s) or z.dim() < 2:
        return None
    from nntk.kernels.cpu.steps import step_rows

    rows, inputs = dz.shape[0] * dz.shape[1], len(z)
    result, (least, most) = torch.empty(dz.shape, dtype=dz.dtype), dz.new_empty(2, rows, inputs)
    values, changes, out = z.reshape(inputs, -1).numpy(), _rows(dz, inputs), _rows(result, inputs)
    scales, heights = (part.flatten().repeat_interleave(dz.shape[1]).numpy() for part in (s, height))

    def fill(some: slice) -> None:
        step_rows(
            values, changes[some], scales[some], heights[some], out[some], least.numpy()[some], most.numpy()[some]
        )

    tasks = list(slices(rows, max(1, TASK // z.numel())))
    if len(tasks) > _FEW_TASKS:
        lanes.run(tasks, lambda: fill, len(tasks), products=False)
    else:
        for task in tasks:
            fill(task)
    return result, least.view(*dz.shape[:3]), most.view(*dz.shape[:3])


def _rows(tensor: Tensor, *shape: int) -> NDArray[Any]:
    """Return an array [M members, *shape, numbers] that shares the tensor's memory if that is contiguous."""
    rows: NDArray[Any] = tensor.contiguous().view(tensor.shape[0] * tensor.shape[1], *shape, -1).numpy()
    return rows


def _is_compiled(activation: Activation, state: State, dz: Tensor, s: Tensor) -> bool:
    """Return True if there is a kernel for an activation and its operands."""
    return activation.name in COMPILED and _is_float32(state[0], dz, s)


def _is_float32(z: Tensor, dz: Tensor, s: Tensor) -> bool:
    """Return True for operands that compiled kernels take."""
    return (
        dz.device.type == "cpu"
        and z.dtype == dz.dtype == s.dtype == torch.float32
        and dz.numel() > 0
        and z.shape == dz.shape[2:]
        and s.numel() == len(dz) == s.shape[0]
        and cpu.serves()
        and bool(s.min() >= torch.finfo(s.dtype).tiny)
    )
