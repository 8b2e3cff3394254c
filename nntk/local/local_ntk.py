"""The ordinary (local) NTK by three methods: the limit of the nonlocal kernel, and the reference of its accuracy."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.func import jacrev, jvp, vjp

from nntk.kernels import checks
from nntk.kernels.assemble import OUTPUTS
from nntk.kernels.assemble.reference import contract, mirror
from nntk.kernels.local_ntk import structured_ntk
from nntk.kernels.perturb.config import default_bytes
from nntk.kernels.slices import slices
from nntk.models.checks import check_evaluation_mode, check_inputs, check_parameters
from nntk.models.functional import call
from nntk.models.recognise import recognise

METHODS = ("auto", "structured", "jacobian", "vector-products")

Parameters = dict[str, Tensor]
"""Parameters that require a gradient, by name."""
Forward = Callable[[Parameters, Tensor], Tensor]
"""Function from parameters and inputs [N, ...] to outputs [N, C]."""
Blocks = Iterator[tuple[slice, slice, Tensor]]
"""Rows and columns of blocks of a kernel, and the blocks."""


@torch.no_grad()
def local_ntk(
    model: nn.Module,
    x1: Tensor,
    x2: Tensor | None = None,
    *,
    outputs: str = "trace",
    method: str = "auto",
    max_memory: int | None = None,
) -> Tensor:
    r"""Compute the empirical NTK of a module from its gradients.

    .. math::
        \Theta_{nn'}^{cc'} = \langle \nabla_\theta f_c(x_n), \nabla_\theta f_{c'}(x_{n'}) \rangle

    Args:
        model: The model. ``"structured"`` needs an MLP (see :func:`nntk.models.recognise.recognise`). The other methods
            take any module that treats the inputs of a batch separately and that torch.func can differentiate. Only
            parameters that require a gradient count; none is modified.
        x1: Inputs of the rows, [N1, ...], float32 or float64 like the parameters, or integers (tokens).
        x2: Inputs of the columns, [N2, ...]; None for the symmetric kernel of ``x1``.
        outputs: Treatment of C outputs: ``"trace"`` or ``"mean"`` over them, ``"diagonal"`` or ``"full"``.
        method: ``"structured"`` sums products of layer inputs and back-propagated derivatives in O(N^2) memory;
            ``"jacobian"`` contracts Jacobians [N, C, d] in blocks; ``"vector-products"`` computes columns by a backward
            and a forward derivative; ``"auto"`` chooses the first for an MLP, else the second.
        max_memory: Budget in bytes for Jacobians or columns, at least 2**20; None for 128 MiB, on a GPU 256 MiB. The
            last two methods hold at least the Jacobian of one input, C d numbers. The activations of forward
            derivatives come on top.

    Returns:
        [N1, N2], with axes [C] or [C, C] appended for ``"diagonal"`` and ``"full"``; exactly symmetric without ``x2``.

    Raises:
        ValueError: If a name is unknown, a number out of range, inputs do not fit or are not finite, a layer is in
            training mode or mixes the inputs of a batch, a parameter is not finite, none requires a gradient,
            ``"structured"`` is chosen for layers that share parameters, or the kernel is not finite.
        TypeError: If the model is no module, an argument has the wrong type, dtypes do not fit, the model returns no
            tensor [N, ...], or ``"structured"`` is chosen for a model that is no MLP.

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
    parameters = _check_model(model)
    first = next(iter(parameters.values()))
    budget = default_bytes(first.device) if max_memory is None else max_memory
    for name, x in (("x1", x1), ("x2", x2)):
        if x is not None:
            checks.tensor(name, x)
            # Tokens are integers, which an MLP does not accept.
            are_tokens = not x.is_floating_point() and method != "structured" and not _is_mlp(model)
            check_inputs(name, x, x.dtype if are_tokens else first.dtype, first.device)
    if method == "auto":
        method = "structured" if _has_structured_form(model, x1) else "jacobian"
    with torch.autocast(first.device.type, enabled=False):
        if method == "structured":
            mlp = recognise(model)
            second = None if x2 is None else mlp.inputs("x2", x2)
            kernel = structured_ntk(mlp.layers, mlp.inputs("x1", x1), second, outputs)
        else:
            kernel = _ntk_in_blocks(model, parameters, x1, x2, outputs, method, budget)
    checks.finite("the kernel, from the model's gradients,", kernel)
    return kernel


def _ntk_in_blocks(
    model: nn.Module,
    parameters: Parameters,
    x1: Tensor,
    x2: Tensor | None,
    outputs: str,
    method: str,
    budget: int,
) -> Tensor:
    """Compute the kernel in blocks by a method for any module, from arguments that were checked."""

    def forward(replaced: Parameters, x: Tensor) -> Tensor:
        out = call(model, replaced, x)
        if not isinstance(out, Tensor) or out.dim() == 0 or len(out) != len(x):
            description = f"shape {tuple(out.shape)}" if isinstance(out, Tensor) else type(out).__name__
            raise TypeError(f"model must return a tensor with a row for each of {len(x)} inputs, got {description}.")
        return out.reshape(len(x), -1)

    num_outputs = forward(parameters, x1.new_zeros(1, *x1.shape[1:])).shape[1]
    num_params = sum(parameter.numel() for parameter in parameters.values())
    # Four arrays of C d numbers are held for each input of a block.
    block_size = max(1, budget // (4 * num_outputs * num_params * x1.element_size()))
    compute_blocks = _jacobian_blocks if method == "jacobian" else _vector_product_blocks
    columns_x = x1 if x2 is None else x2
    axes = {"trace": 0, "mean": 0, "diagonal": 1, "full": 2}[outputs]
    kernel = x1.new_zeros(len(x1), len(columns_x), *[num_outputs] * axes)
    for rows, columns, block in compute_blocks(forward, parameters, x1, columns_x, outputs, block_size, x2 is None):
        kernel[rows, columns] = block
    return mirror(kernel) if x2 is None else kernel


def _jacobian_blocks(
    forward: Forward, parameters: Parameters, x1: Tensor, x2: Tensor, outputs: str, block_size: int, symmetric: bool
) -> Blocks:
    """Compute blocks J(x1) J(x2)^T; a symmetric kernel has no blocks above the diagonal."""

    def jacobian(x: Tensor) -> Tensor:
        """Return the Jacobians of a block of inputs, [d, n, C]."""

        def outputs_of_one(replaced: Parameters, single: Tensor) -> Tensor:
            return forward(replaced, single[None])[0]

        by_parameter = torch.vmap(jacrev(outputs_of_one), (None, 0))(parameters, x).values()
        return torch.cat([part.flatten(2) for part in by_parameter], dim=2).permute(2, 0, 1)

    for rows in slices(len(x1), block_size):
        j1 = jacobian(x1[rows])
        for columns in slices(rows.stop if symmetric else len(x2), block_size):
            j2 = j1 if symmetric and columns == rows else jacobian(x2[columns])
            yield rows, columns, contract(j1, j2, outputs)


def _vector_product_blocks(
    forward: Forward, parameters: Parameters, x1: Tensor, x2: Tensor, outputs: str, block_size: int, symmetric: bool
) -> Blocks:
    """Compute columns Theta e: the gradient of one output at one input, times the Jacobian at all of x1."""

    def column(x: Tensor, e: Tensor) -> Tensor:
        pull_back = vjp(lambda replaced: forward(replaced, x[None])[0], parameters)[1]
        product = jvp(lambda replaced: forward(replaced, x1), (parameters,), pull_back(e))[1]
        assert isinstance(product, Tensor)
        return product

    if not len(x1):
        return
    eye = torch.eye(forward(parameters, x1[:1]).shape[1], dtype=x1.dtype, device=x1.device)
    for columns in slices(len(x2), block_size):
        products = torch.vmap(torch.vmap(column, (None, 0)), (0, None))(x2[columns], eye)
        yield slice(None), columns, _reduce_outputs(products.permute(2, 0, 3, 1), outputs)


def _reduce_outputs(full: Tensor, outputs: str) -> Tensor:
    """Reduce a block [N1, N2, C, C] to the chosen treatment of the outputs."""
    if outputs == "full":
        return full
    diagonal = torch.diagonal(full, dim1=2, dim2=3)
    return {"diagonal": diagonal, "trace": diagonal.sum(2), "mean": diagonal.mean(2)}[outputs]


def _check_model(model: nn.Module) -> Parameters:
    """Check that the model has an NTK, and return its parameters that require a gradient, detached."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}.")
    check_evaluation_mode(model)
    check_parameters(model)
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not parameters:
        raise ValueError("model must have a parameter with requires_grad=True, got none.")
    return parameters


def _has_structured_form(model: nn.Module, x: Tensor) -> bool:
    if not _is_mlp(model):
        return False
    mlp = recognise(model)
    return not mlp.is_tied and (mlp.flattens or x.dim() == 2)


def _is_mlp(model: nn.Module) -> bool:
    try:
        recognise(model)
    except TypeError:
        return False
    return True
