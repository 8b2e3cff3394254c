"""Kernels from Jacobians in blocks of inputs, and Jacobians by ``torch.func`` or by plain backward passes."""

import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.func import jacrev

from nntk.estimators.memory import check_room
from nntk.kernels.assemble.reference import contract
from nntk.kernels.local_ntk import structured_ntk
from nntk.kernels.slices import slices
from nntk.local.agreement import failure_of, fixed_weights, require_agreement
from nntk.local.evaluation import Evaluation, Parameters
from nntk.local.memory import plan, require_room
from nntk.local.reverse_mode import ReverseJacobian, reverse_errors, weighted_gradient
from nntk.local.subject import Subject
from nntk.models.data.inputs import Batch, map_tensors

_log = logging.getLogger("nntk")

_STRUCTURED_BLOCK = 32
"""Inputs of a block of which the structured method computes all entries, for those on the diagonal."""

Jacobian = Callable[[Batch], Tensor]
"""Function from inputs [n, ...] to Jacobians [n, C, d]."""
Check = Callable[[Tensor, Batch], None]
"""Check of Jacobians [n, C, d] at inputs [n, ...]."""
Blocks = Iterator[tuple[tuple[Any, ...], Tensor]]
"""Indices of blocks of a kernel, and what is added there."""


def jacobian_blocks(
    jacobian: Jacobian, check: Check, x1: Batch, x2: Batch | None, outputs: str, block_size: int
) -> Blocks:
    """Compute blocks J(x1) J(x2)^T; a symmetric kernel has no blocks above the diagonal.

    Args:
        jacobian: The Jacobians of some inputs.
        check: Called once for the Jacobians of each block of inputs.
        x1: Inputs of the rows.
        x2: Inputs of the columns; None for the symmetric kernel of ``x1``.
        outputs: Treatment of the outputs.
        block_size: Number of inputs of a block.

    Yields:
        Places in the kernel, and what is added there.
    """

    def compute(x: Batch, is_new: bool) -> Tensor:
        jacobians = jacobian(x)
        if is_new:
            check(jacobians, x)
        return jacobians.permute(2, 0, 1)

    columns_x = x1 if x2 is None else x2
    for rows in slices(len(x1), block_size):
        j1 = compute(x1[rows], is_new=True)
        for columns in slices(rows.stop if x2 is None else len(columns_x), block_size):
            is_diagonal = x2 is None and columns == rows
            j2 = j1 if is_diagonal else compute(columns_x[columns], is_new=x2 is not None and rows.start == 0)
            block = contract(j1, j2, outputs)
            del j2  # Its memory serves the next one.
            yield (rows, columns), block
        del j1


def transformed_jacobian(evaluation: Evaluation, chunk_size: int | None, x: Batch) -> Tensor:
    """Return the Jacobians of a model by ``torch.func``.

    Args:
        evaluation: The model.
        chunk_size: Number of outputs that are differentiated at once; None for all.
        x: Inputs, [n, ...], n at least 1.

    Returns:
        [n, C, d].
    """
    parameters = evaluation.parameters

    def outputs_of_one(replaced: Parameters, single: Batch) -> Tensor:
        return evaluation.outputs(replaced, map_tensors(lambda tensor: tensor[None], single))[0]

    # The transforms give wrong derivatives of some functions, such as the determinant, where gradients are disabled.
    with torch.enable_grad():
        by_parameter = torch.vmap(jacrev(outputs_of_one, chunk_size=chunk_size), (None, 0))(parameters, x)
    num_outputs = next(iter(by_parameter.values())).shape[1]
    parts = [by_parameter[name].reshape(len(x), num_outputs, p.numel()) for name, p in parameters.items()]
    return torch.cat(parts, dim=2).detach()


def check_jacobian(evaluation: Evaluation, jacobians: Tensor, x: Batch) -> None:
    """Hold the Jacobians of a block against plain autograd.

    Args:
        evaluation: The model.
        jacobians: Jacobians, [n, C, d].
        x: Inputs, [n, ...].

    Raises:
        Disagreement: If a weighted sum over the outputs differs at the first or the last input, or one over inputs
            spread over the block.
    """
    weights = fixed_weights(jacobians.shape[0], jacobians.shape[1], jacobians)
    for rows, where in _compared(len(x)):
        actual = weights[rows].flatten() @ jacobians[rows].flatten(0, 1)
        expected = weighted_gradient(evaluation, x[rows], weights[rows])
        require_agreement(actual, expected, evaluation.tolerance, where)


_COMPARED = 32
"""Most inputs of a block that are compared in one sum: reading more of the Jacobians would cost time."""


def _compared(num_inputs: int) -> list[tuple[slice, str]]:
    """Return the inputs of a block at which it is held against plain autograd, each with their description."""
    single = [(slice(0, 1), "the first input"), (slice(num_inputs - 1, num_inputs), "the last input")]
    step = -(-num_inputs // _COMPARED)
    return single[:num_inputs] + ([(slice(0, None, step), "inputs across a block")] if num_inputs > 1 else [])


def jacobian_rows(subject: Subject, x: Batch, max_bytes: int) -> Iterator[tuple[slice, Tensor]]:
    """Compute the Jacobians at some inputs.

    Args:
        subject: The model.
        x: Inputs, [N, ...], as the subject returns them.
        max_bytes: Budget for Jacobians in bytes.

    Yields:
        The block's place among the inputs, and its Jacobians, [n, C, d].

    Raises:
        ValueError: If autograd cannot differentiate the model, or it cannot be evaluated at the inputs.
        TypeError: If the model returns no real tensor with a row for each input.
        MemoryError: If the Jacobian of one input does not fit in the free memory.
    """
    evaluation, problem = subject.evaluation, subject.problem(x, x[:0], "trace")
    sizes = plan(problem, "jacobian", max_bytes)
    require_room(problem, "jacobian", sizes, subject.view.device)
    chunk_size = sizes.outputs if sizes.outputs < problem.outputs else None
    reverse = None
    for block in slices(len(x), sizes.rows):
        rows = None
        if reverse is None:
            try:
                rows = transformed_jacobian(evaluation, chunk_size, x[block])
                check_jacobian(evaluation, rows, x[block])
            except Exception as error:  # The transforms may raise anything; plain passes say what is wrong.
                if isinstance(error, torch.OutOfMemoryError | MemoryError):
                    raise
                _log.info("Jacobians are computed by backward passes, one by one, because %s.", failure_of(error))
                rows, reverse = None, ReverseJacobian(evaluation, plan(problem, "reverse", max_bytes).outputs)
        if reverse is not None:
            with reverse_errors():
                rows = reverse(x[block])
        assert rows is not None, "one of the two methods gave them"
        yield block, rows


def kernel_diagonal(subject: Subject, x: Batch, outputs: str, max_bytes: int) -> Tensor:
    """Return the kernel of each input with itself.

    Args:
        subject: The model.
        x: Inputs, [N, ...], as the subject returns them; a matrix for an MLP.
        outputs: Treatment of the outputs.
        max_bytes: Budget for Jacobians in bytes.

    Returns:
        [N] in the dtype of the kernel, with axes [C] or [C, C] appended for ``"diagonal"`` and ``"full"``.
    """
    if subject.has_structure and isinstance(x, Tensor) and x.dim() == 2 and len(x):
        layers, blocks = subject.mlp().layers, slices(len(x), _STRUCTURED_BLOCK)
        kernels = (structured_ntk(layers, x[block], None, outputs) for block in blocks)
        return torch.cat([kernel.diagonal(dim1=0, dim2=1).movedim(-1, 0) for kernel in kernels])
    num_outputs = subject.problem(x, x[:0], "trace").outputs
    axes = [num_outputs] * {"diagonal": 1, "full": 2}.get(outputs, 0)
    result = torch.empty(len(x), *axes, dtype=subject.dtype, device=x.device)
    for block, rows in jacobian_rows(subject, x, max_bytes):
        if outputs == "full":
            result[block] = rows @ rows.transpose(1, 2)
        else:
            squares = rows.square().sum(2)
            result[block] = {"diagonal": squares, "trace": squares.sum(1), "mean": squares.mean(1)}[outputs]
    return result


def jacobian_features(subject: Subject, x: Batch, max_bytes: int) -> Tensor:
    """Return the Jacobians at all inputs as features, [N, C d]."""
    num_outputs = subject.problem(x, x[:0], "trace").outputs
    width = num_outputs * subject.view.num_params
    size = len(x) * width * subject.dtype.itemsize
    check_room("The features", size, subject.view.device, "A sketch needs less: features(x, sketch=1024).")
    result = torch.empty(len(x), width, dtype=subject.dtype, device=x.device)
    for block, rows in jacobian_rows(subject, x, max_bytes):
        result[block] = rows.flatten(1)
    return result
