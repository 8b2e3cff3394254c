"""The ordinary (local) NTK by three methods: what the nonlocal kernel tends to, and what it is measured against."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.func import jacrev, jvp, vjp

from nntk.kernels import checks
from nntk.kernels.assemble import OUTPUTS
from nntk.kernels.assemble.reference import contract, mirror
from nntk.kernels.local_ntk import structured_ntk
from nntk.kernels.perturb import DEFAULT_BYTES
from nntk.models.functional import call
from nntk.models.mlp import check_evaluation_mode, check_inputs, check_parameters, recognise

METHODS = ("auto", "structured", "jacobian", "vector-products")

Parameters = dict[str, Tensor]
Forward = Callable[[Parameters, Tensor], Tensor]
"""Outputs [N, C] of a batch, given the parameters that require a gradient."""


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
    r"""Empirical NTK :math:`\Theta_{nn'}^{cc'} = \langle \nabla_\theta f_c(x_n), \nabla_\theta f_{c'}(x_{n'}) \rangle`.

    Args:
        model: The model. ``"structured"`` needs an MLP (see :func:`nntk.models.mlp.recognise`), the other methods any
            module that treats the inputs of a batch separately and that torch.func can differentiate. Only parameters
            that require a gradient count; none is modified.
        x1: The rows' inputs, [N1, ...], float32 or float64 like the parameters, or integers (tokens).
        x2: The columns' inputs, [N2, ...]; None for the symmetric kernel of ``x1``.
        outputs: ``"trace"`` or ``"mean"`` over the outputs, ``"diagonal"`` or ``"full"``.
        method: ``"structured"`` sums products of layer inputs and back-propagated derivatives, O(N^2) memory;
            ``"jacobian"`` contracts Jacobians [N, C, d] in blocks; ``"vector-products"`` makes a column at a time by
            a backward and a forward derivative; ``"auto"`` takes the first for an MLP, else the second.
        max_memory: Bytes for Jacobians or columns, at least 2**20; None for 128 MiB. One input's Jacobian, C d
            numbers, is the least the last two methods work with. The activations of forward derivatives come on top.

    Returns:
        [N1, N2], with axes [C] or [C, C] appended for ``"diagonal"`` and ``"full"``; exactly symmetric without ``x2``.

    Raises:
        ValueError: If a name is unknown, a number out of range, inputs do not fit or are not finite, a layer is in
            training mode or mixes the inputs of a batch, a parameter is not finite, none requires a gradient,
            ``"structured"`` is asked of layers that share parameters, or the kernel is not finite.
        TypeError: If the model is no module, an argument has the wrong type, dtypes do not fit, the model returns no
            tensor [N, ...], or ``"structured"`` is asked of a model that is no MLP.

    Example:
        >>> x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        >>> local_ntk(nn.Linear(2, 1), x)  # <x, x'> + 1
        tensor([[ 6., 12.],
                [12., 26.]])
    """
    checks.choice("outputs", outputs, OUTPUTS)
    checks.choice("method", method, METHODS)
    budget = DEFAULT_BYTES if max_memory is None else checks.integer("max_memory", max_memory, 2**20)
    parameters = _check_model(model)
    first = next(iter(parameters.values()))
    for name, x in (("x1", x1), ("x2", x2)):
        if x is not None:
            checks.tensor(name, x)
            # Tokens are integers, of which an MLP takes none.
            tokens = not x.is_floating_point() and method != "structured" and not _is_mlp(model)
            check_inputs(name, x, x.dtype if tokens else first.dtype, first.device)
    if method == "auto":
        method = "structured" if _is_structured(model, x1) else "jacobian"
    with torch.autocast(first.device.type, enabled=False):
        kernel = _kernel(model, parameters, x1, x2, outputs, method, budget)
    checks.finite("the kernel, from the model's gradients,", kernel)
    return kernel


def _kernel(
    model: nn.Module,
    parameters: Parameters,
    x1: Tensor,
    x2: Tensor | None,
    outputs: str,
    method: str,
    budget: int,
) -> Tensor:
    """The kernel by one method, of arguments that were checked."""
    if method == "structured":
        mlp = recognise(model)
        return structured_ntk(mlp.layers, mlp.inputs("x1", x1), None if x2 is None else mlp.inputs("x2", x2), outputs)

    def forward(displaced: Parameters, x: Tensor) -> Tensor:
        out = call(model, displaced, x)
        if not isinstance(out, Tensor) or out.dim() == 0 or len(out) != len(x):
            given = f"shape {tuple(out.shape)}" if isinstance(out, Tensor) else type(out).__name__
            raise TypeError(f"model must return a tensor with a row for each of {len(x)} inputs, got {given}.")
        return out.reshape(len(x), -1)

    num_outputs = forward(parameters, x1.new_zeros(1, *x1.shape[1:])).shape[1]
    num_params = sum(parameter.numel() for parameter in parameters.values())
    chunk = max(1, budget // (4 * num_outputs * num_params * x1.element_size()))
    blocks = _jacobian_blocks if method == "jacobian" else _vector_product_blocks
    other = x1 if x2 is None else x2
    axes = {"trace": 0, "mean": 0, "diagonal": 1, "full": 2}[outputs]
    kernel = x1.new_zeros(len(x1), len(other), *[num_outputs] * axes)
    for rows, columns, block in blocks(forward, parameters, x1, other, outputs, chunk, x2 is None):
        kernel[rows, columns] = block
    return mirror(kernel) if x2 is None else kernel


Blocks = Iterator[tuple[slice, slice, Tensor]]


def _jacobian_blocks(
    forward: Forward, parameters: Parameters, x1: Tensor, x2: Tensor, outputs: str, chunk: int, symmetric: bool
) -> Blocks:
    """Blocks J(x1) J(x2)^T; those above the diagonal are left out where the kernel is symmetric."""

    def jacobian(x: Tensor) -> Tensor:
        """[d, n, C]."""

        def single(displaced: Parameters, one: Tensor) -> Tensor:
            return forward(displaced, one[None])[0]

        parts = torch.vmap(jacrev(single), (None, 0))(parameters, x).values()
        return torch.cat([part.flatten(2) for part in parts], dim=2).permute(2, 0, 1)

    for rows in _pieces(len(x1), chunk):
        j1 = jacobian(x1[rows])
        for columns in _pieces(rows.stop if symmetric else len(x2), chunk):
            j2 = j1 if symmetric and columns == rows else jacobian(x2[columns])
            yield rows, columns, contract(j1, j2, outputs)


def _vector_product_blocks(
    forward: Forward, parameters: Parameters, x1: Tensor, x2: Tensor, outputs: str, chunk: int, symmetric: bool
) -> Blocks:
    """Columns Theta e: the gradient of one output at one input, then its product with the Jacobian at all of x1."""

    def column(x: Tensor, e: Tensor) -> Tensor:
        pull = vjp(lambda displaced: forward(displaced, x[None])[0], parameters)[1]
        pushed = jvp(lambda displaced: forward(displaced, x1), (parameters,), pull(e))[1]
        assert isinstance(pushed, Tensor)
        return pushed

    if not len(x1):
        return
    eye = torch.eye(forward(parameters, x1[:1]).shape[1], dtype=x1.dtype, device=x1.device)
    for columns in _pieces(len(x2), chunk):
        products = torch.vmap(torch.vmap(column, (None, 0)), (0, None))(x2[columns], eye)
        yield slice(None), columns, _select(products.permute(2, 0, 3, 1), outputs)


def _select(full: Tensor, outputs: str) -> Tensor:
    """The outputs asked for, of a full block [N1, N2, C, C]."""
    if outputs == "full":
        return full
    diagonal = torch.diagonal(full, dim1=2, dim2=3)
    return {"diagonal": diagonal, "trace": diagonal.sum(2), "mean": diagonal.mean(2)}[outputs]


def _check_model(model: nn.Module) -> Parameters:
    """The parameters that require a gradient, detached; raises where the model cannot have an NTK."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}.")
    check_evaluation_mode(model)
    check_parameters(model)
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not parameters:
        raise ValueError("model must have a parameter with requires_grad=True, got none.")
    return parameters


def _is_structured(model: nn.Module, x: Tensor) -> bool:
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


def _pieces(length: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, length)) for start in range(0, length, size))
