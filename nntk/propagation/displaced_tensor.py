r"""Displaced tensors: the values that a model's own forward pass computes with, so that differences are propagated.

A dual number carries a derivative. A :class:`DisplacedTensor` carries a finite difference over its scale s instead. A
function of PyTorch that is called with one applies its rule (:mod:`nntk.propagation.rules`), without a subtraction that
loses digits. The value itself is computed once, in float64, and serves all displacements.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from nntk.propagation.context import PropagationContext
from nntk.propagation.registry import (
    COMPLEX,
    COMPOSED,
    DISCRETE,
    IN_PLACE,
    QUERIES,
    RULES,
    WRITES,
    NoRule,
    function_name,
    positional,
    without_dtype,
)

T = TypeVar("T")

_SMALLEST_SUM = 2.0**13
"""Smallest share that may be left of a displaced value a + s da, in epsilons: a thousandth in float32."""
_SMALLEST_ROOT = 2.0**11
"""The same of the root of a sum of squares, whose terms may cancel, but not the sum."""
_WIDE = {torch.float32: torch.float64, torch.complex64: torch.complex128}
"""Dtypes of new tensors that displaced values are written to, and those that hold them."""


class DisplacedTensor(Tensor):
    """A value of a model in float64, together with its unit difference.

    A displaced tensor without a difference is a value that no displacement changes. A displaced tensor has no memory of
    its own: the value is in an attribute. Code that gets below PyTorch's override protocol, such as scripted code,
    finds no numbers that it could compute with, and ``__torch_dispatch__`` refuses it.

    Attributes:
        ctx: Context of the evaluation that the value belongs to.
        param_index: Index in the random stream, if the value is a whole displaced parameter; else None.
        shares_memory: True if another value has the same memory.
    """

    ctx: PropagationContext
    param_index: int | None
    shares_memory: bool
    _value: Tensor
    _tangent: Tensor | None
    _multiple: tuple[Tensor, float] | None
    _rounded_primal: Tensor | None
    _displaced: Callable[[], Tensor] | None

    @staticmethod
    def create(
        ctx: PropagationContext,
        value: Tensor,
        tangent: Tensor | None = None,
        param_index: int | None = None,
        rounded: Tensor | None = None,
        displaced: Callable[[], Tensor] | None = None,
    ) -> "DisplacedTensor":
        """Create a displaced tensor.

        Args:
            ctx: Context of the evaluation.
            value: The unperturbed value.
            tangent: The unit difference, [M, members, *shape]; None for a parameter, or for a value without one.
            param_index: Index in the random stream, for a displaced parameter.
            rounded: The value in the dtype of the differences, where it is known.
            displaced: Function that computes the displaced value without cancellation, where there is one.

        Returns:
            The displaced tensor.
        """
        tensor: DisplacedTensor = Tensor._make_wrapper_subclass(
            DisplacedTensor, value.shape, dtype=value.dtype, device=value.device, storage_size=0
        )
        torch._C._set_throw_on_mutable_data_ptr(tensor)  # Else code that asks for memory would get a null pointer.
        tensor._value, tensor._displaced, tensor._multiple = value, displaced, None
        tensor.ctx, tensor._tangent, tensor.param_index, tensor._rounded_primal = ctx, tangent, param_index, rounded
        tensor.shares_memory = param_index is not None
        if tangent is not None:
            ctx.tangent_sizes.append(tangent.numel())
        return tensor

    @property
    def is_displaced(self) -> bool:
        """True if the value depends on the displacement."""
        return self._tangent is not None or self._multiple is not None or self.param_index is not None

    @property
    def is_discrete(self) -> bool:
        """True for booleans and integers that depend on the displacement."""
        return self.is_displaced and not (self._value.is_floating_point() or self._value.is_complex())

    @property
    def tangent(self) -> Tensor:
        """Unit difference, [M, members, *shape]; for a parameter it is generated at the first use."""
        if self._tangent is None and self._multiple is not None:
            self._tangent = torch.mul(*self._multiple)
            self.ctx.tangent_sizes.append(self._tangent.numel())
        if self._tangent is None:
            assert self.param_index is not None, "only displaced values have a difference"
            ctx, shape = self.ctx, primal(self).shape
            noise = ctx.group.noise(self.param_index, shape, ctx.chunk)
            self._tangent = noise[:, None] * ctx.broadcast_factors(len(shape))
            ctx.tangent_sizes.append(self._tangent.numel())
        return self._tangent

    @property
    def multiple(self) -> tuple[Tensor, float]:
        """Tensor and number whose product is the unit difference: a sum multiplies and adds in one pass."""
        return (self.tangent, 1.0) if self._multiple is None else self._multiple

    @property
    def rounded_primal(self) -> Tensor:
        """Unperturbed value in the dtype of the differences; values that are not floating keep their dtype."""
        if self._rounded_primal is None:
            self._rounded_primal = _rounded(self.ctx, primal(self))
        return self._rounded_primal

    @property
    def displaced(self) -> Tensor:
        """Displaced value a + s da, [M, members, *shape]; free of cancellation for sums of squares and the like."""
        if self._displaced is not None:
            return self._displaced()
        return torch.addcmul(self.rounded_primal, self.tangent, self.ctx.broadcast_scales(primal(self).dim()))

    @property
    def keeps_digits(self) -> bool:
        """True if the displaced value is computed without cancellation."""
        return self._displaced is not None

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        options = options or {}
        if function in QUERIES:
            with torch._C.DisableTorchFunctionSubclass():
                return function(*map(primal, arguments), **options)
        operands = list(_displaced_tensors((*arguments, *options.values())))
        try:
            return _apply(function, operands, arguments, options)
        except NoRule as error:
            # A model that catches the exception must not go on with something else.
            operands[0].ctx.refusal = error
            raise

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, function: Any, types: Any, arguments: Any = (), options: Any = None
    ) -> NoReturn:
        error = NoRule(
            f"model calls {function} on displaced values where no rule can be applied, for example in scripted code or "
            "where it removes the class of a tensor."
        )
        for leaf in tree_leaves((arguments, options)):
            if isinstance(leaf, DisplacedTensor):
                leaf.ctx.refusal = error
        raise error


def _apply(function: Any, operands: list[DisplacedTensor], arguments: Any, options: Any) -> Any:
    """Return the result of a function of displaced tensors, which are listed as ``operands``."""
    ctx, displaced = operands[0].ctx, any(operand.is_displaced for operand in operands)
    if any(operand.ctx is not ctx for operand in operands):
        raise NoRule("model keeps values of one evaluation for another, whose displacements differ.")
    if function in WRITES or options.get("inplace") or options.get("out") is not None:
        return _write(function, arguments, options, displaced)
    if not displaced:
        with torch._C.DisableTorchFunctionSubclass():
            result = ctx.cached(lambda: function(*primal(arguments), **primal(options)), function)
            return _mark_shared_memory(operands, constant(ctx, result))
    arguments, options = positional(arguments, options)
    is_discrete = any(operand.is_discrete for operand in operands)
    is_complex = any(operand.is_displaced and primal(operand).is_complex() for operand in operands)
    rules = COMPLEX if is_complex else DISCRETE if is_discrete else RULES
    options = options if is_discrete or is_complex else without_dtype(function, arguments, options)
    try:
        if function in COMPOSED and rules is RULES:
            return COMPOSED[function](*arguments, **options)
        if function in rules:
            with torch._C.DisableTorchFunctionSubclass():
                return _mark_shared_memory(operands, rules[function](ctx, *arguments, **options))
    except TypeError as error:
        raise NoRule(
            f"model calls {function_name(function)} with arguments that its rule does not support: {error}."
        ) from error
    kind = "complex values" if is_complex else "booleans or integers" if is_discrete else "values"
    raise NoRule(f"model calls {function_name(function)}, which has no rule for displaced {kind}.")


def is_displaced(operand: Any) -> bool:
    """Return True if an argument of a function depends on the displacement."""
    return isinstance(operand, DisplacedTensor) and operand.is_displaced


def primal(tree: T) -> T:
    """Return the arguments with the unperturbed values alone, as plain tensors; lists and dictionaries too."""
    if isinstance(tree, DisplacedTensor):
        return tree._value  # type: ignore[return-value]
    if isinstance(tree, Tensor):
        return tree
    values: T = tree_map(lambda leaf: leaf._value if isinstance(leaf, DisplacedTensor) else leaf, tree)
    return values


def rounded_primal(ctx: PropagationContext, operand: Any) -> Any:
    """Return an operand's unperturbed value in the dtype of the differences; anything but a floating tensor as is."""
    if isinstance(operand, DisplacedTensor):
        return operand.rounded_primal
    # The model may write to a plain tensor later.
    return _rounded(ctx, operand, copy=True) if isinstance(operand, Tensor) else operand


def _rounded(ctx: PropagationContext, value: Tensor, copy: bool = False) -> Tensor:
    """Return a floating or complex tensor with the precision of the differences; any other one as it is."""
    if not (value.is_floating_point() or value.is_complex()):
        return value
    return ctx.cached(lambda: value.to(ctx.dtype.to_complex() if value.is_complex() else ctx.dtype, copy=copy))


def displaced_with_digits(ctx: PropagationContext, z: DisplacedTensor) -> Tensor:
    """Return displaced values for a function that needs the digits of a small argument, [M, members, *shape].

    The displacements where a value has lost its digits are noted in the context.

    Args:
        ctx: Context of the evaluation.
        z: Displaced tensor.

    Returns:
        The displaced values.
    """
    displaced, epsilon = z.displaced, torch.finfo(ctx.dtype).eps
    smallest = (_SMALLEST_ROOT * epsilon) ** 2 if z.keeps_digits else _SMALLEST_SUM * epsilon
    ctx.doubts.meet_sensitive(displaced, z.rounded_primal, smallest, zero_is_exact=z.keeps_digits)
    return displaced


def with_tangent(
    ctx: PropagationContext, value: Any, tangent: Any, displaced: Callable[[], Tensor] | None = None
) -> Any:
    """Return the result of a rule.

    Args:
        ctx: Context of the evaluation.
        value: The unperturbed result: a tensor, or a tuple or list of tensors.
        tangent: The unit difference, [M, members, *shape] or broadcastable to it; for a tuple or list, one for each.
        displaced: Function that computes the displaced value [M, members, *shape] of a tensor without cancellation.

    Returns:
        A displaced tensor, or a tuple or list of them.
    """
    if isinstance(value, Tensor):
        expanded = tangent.expand(*ctx.leading_shape, *value.shape)
        return DisplacedTensor.create(ctx, value, expanded, displaced=displaced)
    return type(value)(with_tangent(ctx, *pair) for pair in zip(value, tangent, strict=True))


def constant(ctx: PropagationContext, value: Any) -> Any:
    """Return a result that no displacement changes: its tensors without differences, anything else as it is."""
    return tree_map(lambda leaf: DisplacedTensor.create(ctx, leaf) if isinstance(leaf, Tensor) else leaf, value)


def _displaced_tensors(arguments: Iterable[Any]) -> Iterator[DisplacedTensor]:
    """Yield the displaced tensors among arguments, and in lists and tuples of them."""
    # A general tree walk would take longer than many a function.
    for argument in arguments:
        if isinstance(argument, DisplacedTensor):
            yield argument
        elif isinstance(argument, tuple | list):
            yield from _displaced_tensors(argument)


def _mark_shared_memory(operands: Sequence[DisplacedTensor], result: T) -> T:
    """Return the result of a function, after marking the operands that it shares memory with."""
    for part in _displaced_tensors((result,)):
        for operand in operands:
            if operand is not part and torch._C._is_alias_of(operand._value, part._value):  # type: ignore[attr-defined]
                operand.shares_memory = part.shares_memory = True
    return result


def _hold_displaced_values(ctx: PropagationContext, target: Tensor, name: str) -> None:
    """Make a displaced tensor of a plain one, which the model has made in this evaluation and has no view of."""
    storage = target.untyped_storage()
    # One use is that of the tensor, and another one that of the variable.
    is_shared = torch._C._storage_Use_Count(storage._cdata) > 2
    is_rounded = target.is_floating_point() and target.dtype not in (torch.float32, torch.float64)
    if storage._cdata not in ctx.new_storages or is_shared or is_rounded:
        raise NoRule(
            f"model calls {name} with displaced values on a tensor that is viewed, or not new, or not precise."
        )
    del storage
    value = target.double() if target.dtype == torch.float32 else target.clone()
    torch.utils.swap_tensors(target, DisplacedTensor.create(ctx, value))


def _snapshot(tensor: DisplacedTensor) -> DisplacedTensor:
    """Return a copy that keeps what a tensor is, also when the tensor is written to."""
    # The result of a function may compute its displaced value later, from that of the argument.
    copy = DisplacedTensor.create(
        tensor.ctx, tensor._value, rounded=tensor._rounded_primal, displaced=tensor._displaced
    )
    copy._tangent, copy._multiple = tensor._tangent, tensor._multiple
    return copy


def _write(function: Any, arguments: Any, options: Any, displaced: bool) -> Any:
    """Call a function that writes; on displaced values, compute out of place and replace the first argument."""
    target = arguments[0]
    other_options = {name: option for name, option in options.items() if name not in ("inplace", "out")}
    out = options.get("out")
    if not displaced and not any(
        isinstance(leaf, DisplacedTensor) for leaf in tree_leaves(target if out is None else out)
    ):
        # A tensor that the model has just made is new in every evaluation, and so it is written in every evaluation.
        with torch._C.DisableTorchFunctionSubclass():
            return function(*primal(arguments), **primal(options))
    name = function_name(function)
    if out is not None or not (function in IN_PLACE or options.get("inplace")):
        raise NoRule(f"model calls {name}, which writes into values and has no rule.")
    if not isinstance(target, DisplacedTensor):
        _hold_displaced_values(next(_displaced_tensors((*arguments, *options.values()))).ctx, target, name)
    if target.shares_memory:
        if primal(IN_PLACE.get(function, function)(*arguments, **other_options)) is primal(target):
            return target  # Dropout in evaluation mode writes nothing.
        raise NoRule(f"model calls {name} in place on a parameter, a view, or a value that a view was taken of.")
    before = _snapshot(target)
    arguments = [before if argument is target else argument for argument in arguments]
    result = IN_PLACE.get(function, function)(*arguments, **other_options)
    if not isinstance(result, DisplacedTensor) or primal(result).shape != primal(target).shape:
        raise NoRule(f"model calls {name} in place, with a result of another shape or without a difference.")
    if len({(part.is_floating_point(), part.is_complex()) for part in primal((result, target))}) > 1:
        raise NoRule(f"model calls {name} in place, with a result of another kind of number.")
    target._value, target._displaced = result._value, result._displaced
    target._tangent, target._multiple = result._tangent, result._multiple
    target._rounded_primal = result._rounded_primal
    target.shares_memory = result.shares_memory
    return target
