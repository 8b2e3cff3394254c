"""Differences of activations of CPU tensors: compiled where there is a kernel, else in plain torch."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
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


@dataclass(frozen=True, eq=False)
class RowScales:
    """Divisors of differences, as compiled kernels take them: one a row, which is a member of a displacement.

    Attributes:
        steps: Divisors, [M members].
        inverses: Their reciprocals, [M members].
        are_compiled: True if compiled kernels take them: normal numbers in float32 on a CPU.
    """

    steps: NDArray[Any]
    inverses: NDArray[Any]
    are_compiled: bool

    @classmethod
    def of(cls, s: Tensor, members: int) -> "RowScales | None":
        """Return the divisors ``s``, M of them in any shape, for some members each; None for those of a GPU."""
        if s.device.type != "cpu":
            return None
        steps = s.flatten().repeat_interleave(members)
        are_compiled = (
            s.dtype == torch.float32 and s.numel() > 0 and cpu.serves() and bool(s.min() >= torch.finfo(s.dtype).tiny)
        )
        return cls(steps.numpy(), steps.reciprocal().numpy(), are_compiled)


def difference(activation: Activation, state: State, dz: Tensor, s: Tensor, rows: RowScales | None = None) -> Tensor:
    r"""Return :math:`[\varphi(z + s\,dz) - \varphi(z)] / s`, in one pass where a kernel is compiled for it.

    Args:
        activation: The activation.
        state: Its state of the unperturbed z, tensors of the shape of z.
        dz: Differences of z divided by s, [M, members, *shape].
        s: Divisors, [M, 1, ...], which broadcast against ``dz``.
        rows: The same divisors as rows, where they are known.

    Returns:
        The differences, of the shape of ``dz``.
    """
    rows = RowScales.of(s, dz.shape[1]) if rows is None else rows
    if activation.name not in COMPILED or rows is None or not _is_float32(state[0], dz, rows):
        return activation.difference(state, dz, s)
    from nntk.kernels.cpu.smooth import ROWS  # Importing it imports Numba.

    kernel, result = ROWS[activation.name], torch.empty(dz.shape, dtype=dz.dtype)
    z, changes, out = state[0].contiguous().view(-1).numpy(), _rows(dz), _rows(result)

    def fill(some: slice, part: slice) -> None:
        kernel(z[part], changes[some, part], rows.steps[some], rows.inverses[some], out[some, part])

    _fill_tiles(fill, *changes.shape)
    return result


def product_difference(a: Tensor, b: Tensor, da: Tensor, db: Tensor, rows: RowScales | None) -> Tensor | None:
    r"""Return the difference :math:`da\, b + (a + s\, da)\, db` of a product in one pass.

    Args:
        a: Unperturbed values.
        b: Unperturbed values of the other factor.
        da: Differences of a divided by s, [M, members, *shape].
        db: Differences of b divided by s.
        rows: Divisors.

    Returns:
        The differences, [M, members, *shape]. None where no kernel is compiled for such operands: those of another
        shape or layout than each other.
    """
    if rows is None or not _is_float32(a, da, rows) or a.shape != b.shape or da.shape != db.shape:
        return None
    if b.dtype != a.dtype or db.dtype != da.dtype or not all(part.is_contiguous() for part in (a, b, da, db)):
        return None
    from nntk.kernels.cpu.products import product_rows

    result = torch.empty(da.shape, dtype=da.dtype)
    first, second, out = a.view(-1).numpy(), b.view(-1).numpy(), _rows(result)
    change_a, change_b = _rows(da), _rows(db)

    def fill(some: slice, part: slice) -> None:
        operands = first[part], second[part], change_a[some, part], change_b[some, part]
        product_rows(*operands, rows.steps[some], out[some, part])

    _fill_tiles(fill, *out.shape)
    return result


def scaled_difference(
    a: Tensor, da: Tensor, slope: Tensor, db: Tensor, dc: Tensor, rows: RowScales | None
) -> Tensor | None:
    r"""Return :math:`da\, b' + a\, db + dc` in one pass, where b and c are numbers for each channel.

    Args:
        a: Unperturbed values, [N, C, ...].
        da: Their differences, [M, members, N, C, ...].
        slope: Displaced factors b', [M, members, C].
        db: Differences of the factors, [M, members, C].
        dc: Differences of the summands, [M, members, C].
        rows: Divisors.

    Returns:
        The differences, of the shape of ``da``. None where no kernel is compiled for such operands.
    """
    if rows is None or not _is_float32(a, da, rows) or not (a.is_contiguous() and da.is_contiguous()):
        return None
    from nntk.kernels.cpu.products import scaled_rows

    n, channels = a.shape[:2]
    result = torch.empty(da.shape, dtype=da.dtype)
    values, changes, out = a.view(n, channels, -1).numpy(), _rows(da, n, channels), _rows(result, n, channels)
    factor, step, summand = (part.reshape(len(out), channels).contiguous().numpy() for part in (slope, db, dc))

    def fill(some: slice) -> None:
        scaled_rows(values, changes[some], factor[some], step[some], summand[some], out[some])

    _fill_rows(fill, len(out), a.numel())
    return result


def step_difference(
    z: Tensor, dz: Tensor, height: Tensor, rows: RowScales | None
) -> tuple[Tensor, Tensor, Tensor] | None:
    r"""Return the difference of the unit step times a height, and how near its values come to the jump.

    Args:
        z: Unperturbed values, none of them -0, [N, ...].
        dz: Differences of z divided by s, [M, members, N, ...].
        height: Heights of the jump over s, [M, 1, ...].
        rows: Divisors, powers of two.

    Returns:
        The differences, of the shape of ``dz``; the least size of displaced values z + s dz, and the largest of the
        changes s dz, of each input, [M, members, N]. None where no kernel is compiled for such operands.
    """
    if rows is None or not _is_float32(z, dz, rows) or z.dim() < 2:
        return None
    from nntk.kernels.cpu.steps import step_rows

    inputs = len(z)
    result, (least, most) = torch.empty(dz.shape, dtype=dz.dtype), dz.new_empty(2, len(rows.steps), inputs)
    values, changes, out = z.reshape(inputs, -1).numpy(), _rows(dz, inputs), _rows(result, inputs)
    heights = height.flatten().repeat_interleave(dz.shape[1]).numpy()
    sizes = least.numpy(), most.numpy()

    def fill(some: slice) -> None:
        step_rows(values, changes[some], rows.steps[some], heights[some], out[some], *(size[some] for size in sizes))

    _fill_rows(fill, len(out), z.numel())
    return result, least.view(*dz.shape[:3]), most.view(*dz.shape[:3])


def _fill_rows(fill: Callable[[slice], None], rows: int, width: int) -> None:
    """Fill rows of a width, some at a time, on all lanes if there are many."""
    tasks = list(slices(rows, max(1, TASK // width)))
    if len(tasks) > _FEW_TASKS:
        lanes.run(tasks, lambda: fill, len(tasks), products=False)
    else:
        for task in tasks:
            fill(task)


def _fill_tiles(fill: Callable[[slice, slice], None], rows: int, width: int) -> None:
    """Fill tiles of rows of a width, on all lanes if there are many."""
    for part in slices(width, TASK):
        _fill_rows(partial(_fill_part, fill, part), rows, part.stop - part.start)


def _fill_part(fill: Callable[[slice, slice], None], part: slice, some: slice) -> None:
    fill(some, part)


def _rows(tensor: Tensor, *shape: int) -> NDArray[Any]:
    """Return an array [M members, *shape, numbers] that shares the tensor's memory if that is contiguous."""
    rows: NDArray[Any] = tensor.contiguous().view(tensor.shape[0] * tensor.shape[1], *shape, -1).numpy()
    return rows


def _is_float32(z: Tensor, dz: Tensor, rows: RowScales) -> bool:
    """Return True for operands that compiled kernels take."""
    return (
        rows.are_compiled
        and z.dtype == dz.dtype == torch.float32
        and dz.numel() > 0
        and z.shape == dz.shape[2:]
        and len(rows.steps) == dz.shape[0] * dz.shape[1]
    )
