"""The ordinary (local) NTK of any model: the limit of the nonlocal kernel, and the reference of its accuracy."""

import logging
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from nntk.kernels import checks
from nntk.kernels.assemble import OUTPUTS
from nntk.kernels.assemble.reference import mirror
from nntk.kernels.local_ntk import structured_ntk
from nntk.kernels.perturb.config import default_bytes
from nntk.local.agreement import Disagreement
from nntk.local.evaluation import Evaluation, differentiable, differentiable_inputs
from nntk.local.jacobian import check_jacobian, jacobian_blocks, transformed_jacobian
from nntk.local.memory import BlockSizes, Problem, plan, require_room
from nntk.local.reverse_mode import ReverseJacobian
from nntk.local.vector_products import vector_product_blocks
from nntk.models.checks import check_evaluation_mode, check_inputs, check_parameters
from nntk.models.data.inputs import Batch, InputValue, as_batch, map_tensors
from nntk.models.data.outputs import Output, OutputChoice
from nntk.models.general import GeneralModel
from nntk.models.isolation.wrappers import refuse_compiled, unwrap
from nntk.models.mlp import Mlp
from nntk.models.module import view_module
from nntk.models.recognise import recognise
from nntk.models.view import FindingsByStructure, ModelView, view_model

METHODS = ("auto", "structured", "jacobian", "vector-products", "reverse")

_FINDINGS: WeakKeyDictionary[nn.Module, dict[Any, FindingsByStructure]] = WeakKeyDictionary()
"""What earlier calls found out about each model that still exists, so that only the first call probes it."""

_log = logging.getLogger("nntk")


@torch.no_grad()
def local_ntk(
    model: nn.Module,
    x1: InputValue,
    x2: InputValue | None = None,
    *,
    outputs: str = "trace",
    output: Output = None,
    method: str = "auto",
    max_memory: int | None = None,
) -> Tensor:
    r"""Compute the empirical NTK of a module from its gradients.

    .. math::
        \Theta_{nn'}^{cc'} = \langle \nabla_\theta f_c(x_n), \nabla_\theta f_{c'}(x_{n'}) \rangle

    The contract: the kernel is that of :math:`f(x_n; \theta)` for each input by itself, with the gradients of
    ``torch.autograd.grad``; the same call gives the same bits; the module with its ``.grad`` fields, the inputs and the
    global generators are afterwards as before. Otherwise an error says in one sentence what is not supported. Any
    module that can be trained has a local NTK, by ``"reverse"`` if by no other method.

    ``"jacobian"`` and ``"vector-products"`` use ``torch.func``, which differentiates some functions wrongly and others
    not at all. Each call holds their results against plain backward passes: weighted sums over the outputs at the first
    and the last input of a block, and sums over inputs across all blocks. They must agree to a relative 1e-4 in
    float32 (5e-3 on a GPU, where convolutions may round to TF32) and 1e-8 in float64.

    Args:
        model: The model. ``"structured"`` needs an MLP (see :func:`nntk.models.recognise.recognise`). The other methods
            take any module that treats the inputs of a batch separately. Only parameters that require a gradient
            count; none is modified. A parameter that the outputs do not depend on adds zero.
        x1: Inputs of the rows, [N1, ...], in the dtype of the parameters, float32 or float64; or tensors that are not
            floating, such as tokens, images of bytes and masks, if the model accepts them. Several tensors are a tuple
            or a mapping, evaluated as ``model(*x1)`` or ``model(**x1)``, or :class:`nntk.Inputs`.
        x2: Inputs of the columns, [N2, ...]; None for the symmetric kernel of ``x1``.
        outputs: Treatment of C outputs: ``"trace"`` or ``"mean"`` over them, ``"diagonal"`` or ``"full"``.
        output: Choice among several outputs: a key or attribute, an index, or a function of what the model returns. By
            default a tensor as it is, and ``"logits"`` of a mapping or a dataclass that has it.
        method: ``"structured"`` sums products of layer inputs and back-propagated derivatives in O(N^2) memory;
            ``"jacobian"`` contracts Jacobians [N, C, d] in blocks; ``"vector-products"`` computes columns by a backward
            and a forward derivative; ``"reverse"`` contracts Jacobians that plain autograd computes an input at a time.
            ``"auto"`` chooses the first for an MLP, else the second, and the last one where ``torch.func`` fails or
            does not agree; the reason is logged by the logger ``"nntk"`` at level INFO.
        max_memory: Budget in bytes for Jacobians or columns, at least 2**20; None for the default of
            :class:`nntk.NonlocalNTK`: 128 MiB, on a GPU a fortieth of its memory. ``"jacobian"`` and ``"reverse"`` hold
            at least the Jacobian of one input, C d numbers, and ``"vector-products"`` the gradient of one output; its
            activations take up to eight times the budget.

    Returns:
        [N1, N2] in the dtype of the parameters, with axes [C] or [C, C] appended for ``"diagonal"`` and ``"full"``;
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
    model = _checked(model)
    choose = OutputChoice(output)
    # What is known of a model depends on the output that counts; a function may be another one at each call.
    known = {} if callable(output) else _FINDINGS.setdefault(model, {}).setdefault(output, {})
    view = view_model(model, None, findings=known, choose=choose)
    rows, columns = as_batch("x1", x1), None if x2 is None else as_batch("x2", x2)
    budget = default_bytes(view.device) if max_memory is None else max_memory
    # Tensors that are made in inference mode cannot be differentiated.
    with torch.autocast(view.device.type, enabled=False), torch.inference_mode(False), torch.no_grad():
        if method == "structured" and output is not None:
            raise ValueError(
                f"output must be None for method='structured', whose model returns one tensor; got {output!r}."
            )
        if method == "structured" or method == "auto" and _has_structured_form(view, rows):
            kernel = _structured(recognise(model), rows, columns, outputs)
        else:
            kernel = _by_gradients(model, view, choose, rows, columns, outputs, method, budget)
    checks.finite("the kernel, from the model's gradients,", kernel)
    return kernel


def _checked(model: nn.Module) -> nn.Module:
    """Check that the model has an NTK, and return it without wrappers."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}.")
    model = unwrap(model)
    refuse_compiled(model)
    check_evaluation_mode(model)
    check_parameters(model)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError("model must have a parameter with requires_grad=True, got none.")
    return model


def _has_structured_form(view: ModelView, x: Batch) -> bool:
    return isinstance(view, Mlp) and not view.is_tied and isinstance(x, Tensor) and (view.flattens or x.dim() == 2)


def _structured(mlp: Mlp, x1: Batch, x2: Batch | None, outputs: str) -> Tensor:
    """Compute the kernel of an MLP by its structure."""
    rows, columns = mlp.inputs("x1", x1), None if x2 is None else mlp.inputs("x2", x2)
    num_outputs = mlp.num_outputs(rows)
    widths = sum(layer.weight.shape[0] for layer in mlp.layers)
    held = widths * (num_outputs + 4) * mlp.dtype.itemsize
    problem = _problem(rows, columns, outputs, num_outputs, mlp, activations=held)
    require_room(problem, "structured", plan(problem, "structured", 0), mlp.device)
    return structured_ntk(mlp.layers, rows, columns, outputs)


def _problem(x1: Batch, x2: Batch | None, outputs: str, num_outputs: int, view: ModelView, activations: int) -> Problem:
    return Problem(
        rows=len(x1),
        columns=len(x1 if x2 is None else x2),
        outputs=num_outputs,
        axes={"diagonal": 1, "full": 2}.get(outputs, 0),
        parameters=view.num_params,
        activations=activations,
        dtype=view.dtype,
    )


def _by_gradients(
    model: nn.Module,
    view: ModelView,
    choose: OutputChoice,
    x1: Batch,
    x2: Batch | None,
    outputs: str,
    method: str,
    budget: int,
) -> Tensor:
    """Compute the kernel by a method for any module; ``"auto"`` tries the Jacobian first."""
    general = view_module(
        model, None, findings=view.findings if isinstance(view, GeneralModel) else None, choose=choose
    )
    with torch.enable_grad():  # A forward pass may itself compute a gradient.
        x1 = _inputs(view, general, "x1", x1)
        x2 = None if x2 is None else _inputs(view, general, "x2", x2)
    evaluation = Evaluation.of(model, general, choose)
    empty = map_tensors(lambda tensor: tensor.new_zeros(1, *tensor.shape[1:]), x1)
    filled = next((x for x in (x1, x2) if x is not None and len(x)), empty)
    num_outputs, activations = _size_up(evaluation, filled[:1])
    problem = _problem(x1, x2, outputs, num_outputs, general, activations)
    chosen = "jacobian" if method == "auto" else method
    sizes = plan(problem, chosen, budget)
    require_room(problem, chosen, sizes, general.device)
    if chosen == "reverse":
        return _assemble_in_reverse(evaluation, problem, x1, x2, outputs, sizes)
    try:
        return _assemble(evaluation, problem, x1, x2, outputs, chosen, sizes)
    except Exception as error:  # The transforms may raise anything; what the model itself raises is raised again below.
        if isinstance(error, torch.OutOfMemoryError | MemoryError):
            raise
        reason = _reason(error)
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
    try:
        return _assemble(evaluation, problem, x1, x2, outputs, "reverse", sizes)
    except (RuntimeError, NotImplementedError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        # PyTorch's text on functions in place is a page on its insides.
        reason = str(error).replace("aten::", "")
        if "inplace" in reason:
            reason = "a function in place changes what the gradient needs"
        raise ValueError(
            f"model must be differentiable for its local NTK, but PyTorch's autograd fails: {reason.rstrip('.')}; "
            "nntk.NonlocalNTK needs no gradient."
        ) from error


def _inputs(view: ModelView, general: GeneralModel, name: str, x: Batch) -> Batch:
    """Return checked inputs, at which the model is probed unless it is an MLP."""
    if isinstance(view, GeneralModel):
        return differentiable_inputs(view.inputs(name, x))
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be one tensor for an nn.Sequential of Linear layers, got {x!r}.")
    check_inputs(name, x, general.dtype, general.device)
    return differentiable(x.detach())


def _size_up(evaluation: Evaluation, single: Batch) -> tuple[int, int]:
    """Return the number of outputs, and bytes of an evaluation, of one input [1, ...]."""
    try:
        return evaluation.size_up(single)
    except TypeError:
        raise
    except Exception as error:  # A model may raise anything.
        raise ValueError(
            f"model must be evaluable at these inputs, but fails: {type(error).__name__}: {error}"
        ) from error


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


def _reason(error: Exception) -> str:
    """Return why a method failed, as a part of a sentence."""
    if isinstance(error, Disagreement):
        return str(error)
    lines = str(error).strip().splitlines()
    return f"torch.func raised {type(error).__name__}" + (f" ({lines[0].strip().rstrip('.')})" if lines else "")
