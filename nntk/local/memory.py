"""Memory of the local NTK: the sizes of blocks, the bytes that they take, and the refusal of what does not fit."""

from dataclasses import dataclass

import torch

from nntk.estimators.memory import check_room, format_bytes, free_bytes

_ARRAYS = 4
"""Arrays of C d numbers that are held for each input of a block: Jacobians, their parts, and copies for products."""
_VECTORS = 8
"""Vectors of d numbers beside them: parameters, copies of them, and gradients of the comparison."""
_ACTIVATIONS = 8
"""Budgets that the activations of forward derivatives may take, for whole products without pieces."""
_KERNELS = 4
"""Matrices of a kernel's size: the kernel, its mirrored copy, and the copies that both are made from."""


@dataclass(frozen=True)
class Problem:
    """What the memory of a local NTK depends on.

    Attributes:
        rows: Number N1 of inputs.
        columns: Number N2 of inputs.
        outputs: Number C of outputs.
        axes: Number of axes [C] of an entry of the kernel: 0, 1 or 2.
        parameters: Number d of parameters that count.
        activations: Bytes of the results of all operators, for one input.
        dtype: Dtype of the kernel.
    """

    rows: int
    columns: int
    outputs: int
    axes: int
    parameters: int
    activations: int
    dtype: torch.dtype

    @property
    def kernel_bytes(self) -> int:
        """Bytes of the kernel."""
        entry: int = self.outputs**self.axes
        return self.rows * self.columns * entry * self.dtype.itemsize

    @property
    def gradient_bytes(self) -> int:
        """Bytes of the gradient of one output at one input."""
        return self.parameters * self.dtype.itemsize


@dataclass(frozen=True)
class BlockSizes:
    """Sizes of blocks, and the bytes that a call takes with them.

    Attributes:
        rows: Number of inputs of the rows of a block.
        columns: Number of inputs of the columns of a block.
        outputs: Number of outputs whose gradients are computed at once.
        total: Bytes of the kernel and of all that makes it: an upper bound.
    """

    rows: int
    columns: int
    outputs: int
    total: int


@dataclass(frozen=True)
class LocalPlan:
    """Method and memory of a local NTK; ``print(kernel.plan(x))`` shows both.

    Attributes:
        method: ``"structured"``, ``"jacobian"``, ``"vector-products"`` or ``"reverse"``.
        rows: Number of inputs of the rows of a block.
        columns: Number of inputs of the columns of a block.
        outputs: Number of outputs whose gradients are computed at once.
        result: Bytes of the kernel.
        total: Bytes of the kernel and of all that makes it: an upper bound.
        free: Free memory of the device in bytes; None where it is not known.
    """

    method: str
    rows: int
    columns: int
    outputs: int
    result: int
    total: int
    free: int | None

    @classmethod
    def of(cls, method: str, problem: Problem, sizes: BlockSizes, device: torch.device) -> "LocalPlan":
        """Return the plan of a method with its sizes of blocks."""
        blocks = sizes.rows, sizes.columns, sizes.outputs
        return cls(method, *blocks, problem.kernel_bytes, sizes.total, free_bytes(device))

    def __str__(self) -> str:
        free = "" if self.free is None else f" of {format_bytes(self.free)} that are free"
        return (
            f"{format_bytes(self.total)}{free}, of which the kernel takes {format_bytes(self.result)}; "
            f"by {self.method}, in blocks of {self.rows} x {self.columns} inputs and {self.outputs} outputs"
        )


def plan(problem: Problem, method: str, budget: int) -> BlockSizes:
    """Choose the sizes of blocks.

    Args:
        problem: What the memory depends on.
        method: ``"structured"``, ``"jacobian"``, ``"reverse"`` or ``"vector-products"``.
        budget: Bytes for Jacobians or columns.

    Returns:
        The sizes.
    """
    gradient, activations, outputs = problem.gradient_bytes, problem.activations, problem.outputs
    fixed = _KERNELS * problem.kernel_bytes + _VECTORS * gradient
    if method == "structured":
        inputs = problem.rows + problem.columns
        return BlockSizes(problem.rows, problem.columns, outputs, fixed + inputs * activations)
    if method == "vector-products":
        chosen = max(1, min(outputs, budget // max(1, _ARRAYS * gradient)))
        columns = max(1, budget // max(1, _ARRAYS * chosen * gradient))
        columns = min(columns, max(1, problem.columns))
        rows = max(1, _ACTIVATIONS * budget // max(1, columns * chosen * activations))
        rows = min(rows, max(1, problem.rows))
        products = _ARRAYS * rows * columns * chosen * outputs * problem.dtype.itemsize
        evaluation = activations * (2 * rows + columns) + chosen * columns * activations * (rows + 1) + products
        return BlockSizes(rows, columns, chosen, fixed + _ARRAYS * chosen * columns * gradient + evaluation)
    chosen = max(1, min(outputs, budget // max(1, activations)))
    per_input = _ARRAYS * outputs * gradient + (activations * (1 + chosen) if method == "jacobian" else 0)
    size = max(1, min(budget // max(1, per_input), max(problem.rows, problem.columns)))
    single = activations * (1 + max(size, chosen)) + (_ARRAYS * outputs * gradient if method == "reverse" else 0)
    return BlockSizes(size, size, chosen, fixed + size * per_input + single)


def require_room(problem: Problem, method: str, sizes: BlockSizes, device: torch.device) -> None:
    """Check that a call fits in the free memory, before any work.

    Raises:
        MemoryError: If it does not; the message says what would fit.
    """
    remedies = ["fewer inputs at a time"]
    if method == "structured":
        remedies += ["another treatment of the outputs (outputs='trace')"] if problem.axes else []
    else:
        remedies += ["method='structured' for an MLP"]
        remedies += ["method='vector-products'"] if method != "vector-products" and problem.outputs > 1 else []
        remedies += ["fewer parameters (parameters=[...] chooses them)"]
    advice = (
        f"Less memory is needed for {', '.join(remedies[:-1])}, or {remedies[-1]}."
        if remedies[1:]
        else (f"Less memory is needed for {remedies[0]}.")
    )
    check_room(f"The kernel and what makes it by method={method!r}", sizes.total, device, advice)
