"""The ordinary (local) NTK of any model: the limit of the nonlocal kernel, and the reference of its accuracy."""

import logging
from functools import partial

import torch
from torch import Tensor, nn

from nntk.kernels import checks
from nntk.kernels.assemble import OUTPUTS
from nntk.kernels.assemble.reference import mirror
from nntk.kernels.local_ntk import structured_ntk
from nntk.kernels.perturb.config import default_bytes
from nntk.local.agreement import failure_of
from nntk.local.evaluation import Evaluation
from nntk.local.jacobian import check_jacobian, jacobian_blocks, transformed_jacobian
from nntk.local.memory import BlockSizes, Problem, plan, require_room
from nntk.local.reverse_mode import ReverseJacobian, reverse_errors
from nntk.local.subject import Parameters, Subject, plain_gradients
from nntk.local.vector_products import vector_product_blocks
from nntk.models.black_box import Function
from nntk.models.data.inputs import Batch, InputValue, as_batch
from nntk.models.data.outputs import Output
from nntk.models.mlp import Mlp

METHODS = ("auto", "structured", "jacobian", "vector-products", "reverse")

_log = logging.getLogger("nntk")


@torch.no_grad()
def local_ntk(
    model: nn.Module | Function,
    x1: InputValue,
    x2: InputValue | None = None,
    *,
    parameters: Parameters = None,
    outputs: str = "trace",
    output: Output = None,
    method: str = "auto",
    dtype: torch.dtype | None = None,
    max_memory: int | None = None,
) -> Tensor:
    r"""Compute the empirical NTK of a model from its gradients.

    .. math::
        \Theta_{nn'}^{cc'} = \langle \nabla_\theta f_c(x_n), \nabla_\theta f_{c'}(x_{n'}) \rangle

    The contract: the kernel is that of :math:`f(x_n; \theta)` for each input by itself, with the gradients of
    ``torch.autograd.grad``; the same call gives the same bits; the module with its ``.grad`` fields, the inputs and the
    global generators are afterwards as before. Otherwise an error says in one sentence what is not supported. Any
    module that can be trained has a local NTK, by ``"reverse"`` if by no other method. :class:`nntk.LocalNTK` has the
    same kernel as an operator, by its features, and its diagonal alone.

    ``"jacobian"`` and ``"vector-products"`` use ``torch.func``, which differentiates some functions wrongly and others
    not at all. Each call holds their results against plain backward passes: weighted sums over the outputs at the first
    and the last input of a block, and sums over inputs across all blocks. They must agree to a relative 1e-4 in
    float32 (5e-3 on a GPU, where convolutions may round to TF32) and 1e-8 in float64.

    Args:
        model: The model. ``"structured"`` needs an MLP (see :func:`nntk.models.recognise.recognise`). The other methods
            take any module that treats the inputs of a batch separately, or a function ``f(parameters, x)``. No
            parameter is modified. A parameter that the outputs do not depend on adds zero.
        x1: Inputs of the rows, [N1, ...], in the dtype of the parameters, float32 or float64; or tensors that are not
            floating, such as tokens, images of bytes and masks, if the model accepts them. Several tensors are a tuple
            or a mapping, evaluated as ``model(*x1)`` or ``model(**x1)``, or :class:`nntk.Inputs`.
        x2: Inputs of the columns, [N2, ...]; None for the symmetric kernel of ``x1``.
        parameters: For a module, names of the parameters that count, or patterns such as ``"head.*"``; by default all
            that require a gradient. For a function, all its tensors by name.
        outputs: Treatment of C outputs: ``"trace"`` or ``"mean"`` over them, ``"diagonal"`` or ``"full"``.
        output: Choice among several outputs: a key or attribute, an index, or a function of what the model returns. By
            default a tensor as it is, and ``"logits"`` of a mapping or a dataclass that has it.
        method: ``"structured"`` sums products of layer inputs and back-propagated derivatives in O(N^2) memory;
            ``"jacobian"`` contracts Jacobians [N, C, d] in blocks; ``"vector-products"`` computes columns by a backward
            and a forward derivative; ``"reverse"`` contracts Jacobians that plain autograd computes an input at a time.
            ``"auto"`` chooses the first for an MLP, else the second, and the last one where ``torch.func`` fails or
            does not agree; the reason is logged by the logger ``"nntk"`` at level INFO.
        dtype: Dtype of the computation and of the kernel; None for that of the parameters. ``torch.float64`` gives the
            kernel of a model in float32 to double precision.
        max_memory: Budget in bytes for Jacobians or columns, at least 2**20; None for the default of
            :class:`nntk.NonlocalNTK`: 128 MiB, on a GPU a fortieth of its memory. ``"jacobian"`` and ``"reverse"`` hold
            at least the Jacobian of one input, C d numbers, and ``"vector-products"`` the gradient of one output; its
            activations take up to eight times the budget.

    Returns:
        [N1, N2] in ``dtype``, with axes [C] or [C, C] appended for ``"diagonal"`` and ``"full"``;
        exactly symmetric without ``x2``.

    Raises:
        ValueError: If a name is unknown, a number out of range, inputs do not fit or are not finite, a layer is in
            training mode, the model draws random numbers or mixes the inputs of a batch, a parameter is not finite,
            none requires a gradient, ``"structured"`` is chosen for layers that share parameters, ``torch.func`` fails
            or is wrong for a chosen method, or the kernel is not finite.
        TypeError: If the model is no module or a compiled one, an argument has the wrong type, dtypes do not fit, the
            model returns no real tensor [N, ...], or ``"structured"`` is chosen for a model that is no MLP.
        MemoryError: If the kernel and what makes it do not fit in the free memory; this is seen before any work.

    Example:
        >>> x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        >>> local_ntk(nn.Linear(2, 1), x)  # <x, x'> + 1
        tensor([[ 6., 12.],
                [12., 26.]])
    """
    checks.choice("outputs", outputs, OUTPUTS)
    checks.choice("method", method, METHODS)
    if max_memory is not None:
        checks.integer("max_memory", max_memory, 2**20)
    subject = Subject.of(model, parameters, dtype, output)
    rows, columns = as_batch("x1", x1), None if x2 is None else as_batch("x2", x2)
    budget = default_bytes(subject.view.device) if max_memory is None else max_memory
    with plain_gradients(subject.view.device):
        if is_structured(subject, rows, method):
            kernel = _structured(subject, rows, columns, outputs)
        else:
            kernel = _by_gradients(subject, rows, columns, outputs, method, budget)
    checks.finite("the kernel, from the model's gradients,", kernel)
    return kernel


def is_structured(subject: Subject, x: Batch, method: str) -> bool:
    """Return True if a method computes the kernel of inputs from the structure of an MLP."""
    if method == "auto" and isinstance(subject.view, Mlp):
        return subject.has_structure and isinstance(x, Tensor) and (subject.view.flattens or x.dim() == 2)
    return method == "structured"


def _structured(subject: Subject, x1: Batch, x2: Batch | None, outputs: str) -> Tensor:
    """Compute the kernel of an MLP by its structure."""
    mlp = subject.mlp()
    rows, columns = structured_inputs(subject, "x1", x1), None if x2 is None else structured_inputs(subject, "x2", x2)
    problem = structured_problem(subject, mlp, rows, columns, outputs)
    require_room(problem, "structured", plan(problem, "structured", 0), mlp.device)
    return structured_ntk(mlp.layers, rows, columns, outputs)


def structured_inputs(subject: Subject, name: str, x: Batch) -> Tensor:
    """Return checked inputs of an MLP as a matrix, in the dtype of the kernel."""
    view = subject.view if isinstance(subject.view, Mlp) else subject.mlp()
    return view.inputs(name, x).to(subject.dtype)


def structured_problem(subject: Subject, mlp: Mlp, x1: Tensor, x2: Tensor | None, outputs: str) -> Problem:
    """Return what the memory of the structured method depends on."""
    num_outputs = mlp.num_outputs(x1)
    widths = sum(layer.weight.shape[0] for layer in mlp.layers)
    activations = widths * (num_outputs + 4) * mlp.dtype.itemsize
    return subject.problem_of(x1, x2, outputs, num_outputs, activations)


def _by_gradients(subject: Subject, x1: Batch, x2: Batch | None, outputs: str, method: str, budget: int) -> Tensor:
    """Compute the kernel by a method for any model; ``"auto"`` tries the Jacobian first."""
    with torch.enable_grad():  # A forward pass may itself compute a gradient.
        x1 = subject.inputs("x1", x1)
        x2 = None if x2 is None else subject.inputs("x2", x2)
    problem, evaluation = subject.problem(x1, x2, outputs), subject.evaluation
    chosen = "jacobian" if method == "auto" else method
    sizes = plan(problem, chosen, budget)
    require_room(problem, chosen, sizes, subject.view.device)
    if chosen == "reverse":
        return _assemble_in_reverse(evaluation, problem, x1, x2, outputs, sizes)
    try:
        return _assemble(evaluation, problem, x1, x2, outputs, chosen, sizes)
    except Exception as error:  # The transforms may raise anything; what the model itself raises is raised again below.
        if isinstance(error, torch.OutOfMemoryError | MemoryError):
            raise
        reason = failure_of(error)
        if method != "auto":
            raise ValueError(
                f"method={method!r} does not give the NTK of this model, because {reason}; use method='auto' or "
                "method='reverse'."
            ) from error
        _log.info("The local NTK is computed by method='reverse', an input at a time, because %s.", reason)
    return _assemble_in_reverse(evaluation, problem, x1, x2, outputs, plan(problem, "reverse", budget))


def _assemble_in_reverse(
    evaluation: Evaluation, problem: Problem, x1: Batch, x2: Batch | None, outputs: str, sizes: BlockSizes
) -> Tensor:
    """Compute the kernel by plain backward passes, the last resort: what they cannot differentiate has no NTK."""
    with reverse_errors():
        return _assemble(evaluation, problem, x1, x2, outputs, "reverse", sizes)


def _assemble(
    evaluation: Evaluation,
    problem: Problem,
    x1: Batch,
    x2: Batch | None,
    outputs: str,
    method: str,
    sizes: BlockSizes,
) -> Tensor:
    """Compute the kernel in blocks."""
    if method == "vector-products":
        blocks = vector_product_blocks(evaluation, x1, x2, outputs, problem.outputs, sizes)
    elif method == "jacobian":
        chunk_size = sizes.outputs if sizes.outputs < problem.outputs else None
        jacobian, check = partial(transformed_jacobian, evaluation, chunk_size), partial(check_jacobian, evaluation)
        blocks = jacobian_blocks(jacobian, check, x1, x2, outputs, sizes.rows)
    else:
        blocks = jacobian_blocks(
            ReverseJacobian(evaluation, sizes.outputs), lambda *_: None, x1, x2, outputs, sizes.rows
        )
    axes = [problem.outputs] * problem.axes
    kernel = torch.zeros(problem.rows, problem.columns, *axes, dtype=problem.dtype, device=x1.device)
    for place, block in blocks:
        kernel[place] += block
    return mirror(kernel) if x2 is None else kernel
