r"""Displaced values: what a model's own forward pass meets in place of tensors, so that differences are propagated.

As a dual number carries a derivative, a :class:`Moved` carries the finite difference of its value, over the scale s:
whatever function of PyTorch is called with it answers by a rule of :mod:`nntk.propagation.rules`, without a
subtraction that loses digits. The value itself is computed once, in float64, and kept for all displacements.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from nntk.kernels.philox import split_seed, unit_displacements
from nntk.kernels.philox.reference import displacements

T = TypeVar("T")
Rule = Callable[..., Any]

RULES: dict[Any, Rule] = {}
"""What a function does to displaced values: called as the function is, with the pass before its arguments."""
COMPOSED: dict[Any, Rule] = {}
"""Functions in terms of others, called as the function is."""
QUERIES: set[Any] = set()
"""Functions whose answer the displacement does not change, such as shapes."""
IN_PLACE: dict[Any, Any] = {}
"""The function that each of these is, in place."""
WRITES: set[Any] = set()
"""Functions that write into their first argument."""


def called(*names: str) -> Iterator[Any]:
    """All that PyTorch calls so: functions and methods."""
    for name in names:
        for place in (torch, torch.nn.functional, Tensor, torch._C._nn, torch.special):
            if (found := getattr(place, name, None)) is not None:
                yield found


def rule(*names: str, also: Sequence[Any] = ()) -> Callable[[Rule], Rule]:
    """Enter the rule of every function of these names."""
    return partial(_enter, RULES, [*called(*names), *also])


def composed(*names: str) -> Callable[[Rule], Rule]:
    """Enter a function in terms of others."""
    return partial(_enter, COMPOSED, [*called(*names)])


def _enter(table: dict[Any, Rule], keys: Iterable[Any], made: Rule) -> Rule:
    table.update(dict.fromkeys(keys, made))
    return made


class NoRule(Exception):
    """A function of displaced values has no rule; no TypeError, which operators of Python would not let through."""


@dataclass(eq=False)
class Group:
    """Displacements whose noise is made together, where it is small enough to be held."""

    rows: Tensor
    """Their numbers, [G]."""
    seed: int
    directions: str
    dtype: torch.dtype
    shapes: Mapping[int, tuple[int, ...]]
    """Of the parameters that move, by ordinal."""
    holds: bool
    """Whether the displacements of all of them are held."""

    def noise(self, ordinal: int, shape: Sequence[int], some: slice) -> Tensor:
        """Unit displacements of a parameter, [m, *shape], of some of the group."""
        if self.holds:
            return self._held[ordinal][some]
        return unit_displacements(self.rows[some], ordinal, shape, self.seed, self.directions, self.dtype)

    @cached_property
    def _held(self) -> dict[int, Tensor]:
        if self.rows.device.type == "cpu":
            # Small parameters are made together: one by one they would cost a call each.
            return displacements(self.directions, self.rows, self.shapes, split_seed(self.seed), self.dtype)
        return {
            ordinal: unit_displacements(self.rows, ordinal, shape, self.seed, self.directions, self.dtype)
            for ordinal, shape in self.shapes.items()
        }


@dataclass(eq=False)
class Pass:
    """One evaluation of some displacements at some inputs."""

    group: Group
    some: slice
    """Which of the group."""
    scales: Tensor
    """Their scales s, [M], in the dtype of the differences."""
    halves: int
    """2 for antithetic pairs."""
    max_bytes: int
    kept: list[tuple[Any, Any]] = field(default_factory=list)
    """What does not depend on the displacements, in the order in which it is asked for: the same in every pass."""
    position: int = 0
    sizes: list[int] = field(default_factory=list)
    """Numbers of each difference that was made, in order."""

    @property
    def rows(self) -> Tensor:
        """Numbers of the displacements, [M]."""
        return self.group.rows[self.some]

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the differences."""
        return self.scales.dtype

    @property
    def lanes(self) -> tuple[int, int]:
        """Leading axes of every difference: displacements, and halves of them."""
        return len(self.scales), self.halves

    @cached_property
    def signs(self) -> Tensor:
        """[halves]: +1, and -1 for the mirrored half."""
        return torch.tensor([1.0, -1.0][: self.halves], dtype=self.dtype, device=self.scales.device)

    def scale(self, dims: int) -> Tensor:
        """The scales, to go with differences whose value has so many axes."""
        return self.scales.view(-1, *[1] * (dims + 1))

    def once(self, make: Callable[[], T], what: Any = None) -> T:
        """What ``make`` gives, made in the first pass alone; ``what`` it is, or where it is asked for, is checked."""
        what = getattr(make, "__code__", None) if what is None else what
        if self.position == len(self.kept):
            self.kept.append((what, make()))
        kept, found = self.kept[self.position]
        if kept != what:
            raise NoRule("model does not call the same functions at every evaluation.")
        self.position += 1
        return cast(T, found)

    def single(self, operand: Any) -> Any:
        """An operand in the dtype of the differences; what is no floating tensor as it is."""
        if isinstance(operand, Moved):
            return operand.single
        if isinstance(operand, Tensor) and operand.is_floating_point():
            return self.once(lambda: operand.to(self.dtype))
        return operand

    def result(self, value: Any, unit: Any) -> Any:
        """A tensor, or several, with the differences that go with them."""
        if isinstance(value, Tensor):
            return Moved.of(self, value, unit.expand(*self.lanes, *value.shape))
        return type(value)(self.result(*pair) for pair in zip(value, unit, strict=True))

    def still(self, value: Any) -> Any:
        """Tensors that no displacement moves; anything else as it is."""
        return tree_map(lambda leaf: Moved.of(self, leaf) if isinstance(leaf, Tensor) else leaf, value)


class Moved(Tensor):
    """A value of a model, in float64, and its unit difference.

    Attributes:
        at: The pass that it belongs to.
        ordinal: Of a whole parameter that moves, its number in the stream; else None.
    """

    at: Pass
    ordinal: int | None
    _unit: Tensor | None
    _single: Tensor | None
    shared: bool
    """Whether another value has the same memory."""

    @staticmethod
    def of(
        at: Pass, value: Tensor, unit: Tensor | None = None, ordinal: int | None = None, single: Tensor | None = None
    ) -> "Moved":
        """A value with its difference, [M, halves, *shape]; of a parameter its ordinal, and what it is in its dtype."""
        made = value.as_subclass(Moved)
        made.at, made._unit, made.ordinal, made._single, made.shared = at, unit, ordinal, single, ordinal is not None
        if unit is not None:
            at.sizes.append(unit.numel())
        return made

    @property
    def moves(self) -> bool:
        """Whether it depends on the displacement."""
        return self._unit is not None or self.ordinal is not None

    @property
    def unit(self) -> Tensor:
        """Its difference over the scale, [M, halves, *shape]; that of a parameter is made when it is asked for."""
        if self._unit is None:
            assert self.ordinal is not None, "the caller knows that it moves"
            at, shape = self.at, plain(self).shape
            noise = at.group.noise(self.ordinal, shape, at.some)
            self._unit = noise[:, None] * at.signs.view(-1, *[1] * len(shape))
            at.sizes.append(self._unit.numel())
        return self._unit

    @property
    def single(self) -> Tensor:
        """The value in the dtype of the differences, or as it is where that is no floating one."""
        if self._single is None:
            value = plain(self)
            self._single = self.at.once(lambda: value.to(self.at.dtype)) if value.is_floating_point() else value
        return self._single

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        options = options or {}
        if function in QUERIES:
            with torch._C.DisableTorchFunctionSubclass():
                return function(*arguments, **options)
        values = list(_values((*arguments, *options.values())))
        at, moving = values[0].at, any(value.moves for value in values)
        if any(value.at is not at for value in values):
            raise NoRule("model keeps values of one evaluation for another.")
        if function in WRITES or options.get("inplace") or options.get("out") is not None:
            return _write(function, arguments, options, moving)
        if not moving:
            with torch._C.DisableTorchFunctionSubclass():
                made = at.once(lambda: function(*plain(arguments), **plain(options)), function)
                return _noted(values, at.still(made))
        try:
            if function in COMPOSED:
                return COMPOSED[function](*arguments, **options)
            if function in RULES:
                with torch._C.DisableTorchFunctionSubclass():
                    return _noted(values, RULES[function](at, *arguments, **options))
        except TypeError as wrong:
            raise NoRule(f"model calls {_name(function)} with arguments that its rule does not take.") from wrong
        raise NoRule(f"model calls {_name(function)}, which has no rule for displaced values.")


class Watch(TorchFunctionMode):
    """Sees what would lose differences, or digits of them, without calling a rule."""

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        if torch._C._functorch.peek_interpreter_stack() is not None:
            raise NoRule("model transforms functions by torch.func, and what these are given has no rules.")
        if torch.is_autocast_enabled("cuda") or torch.is_autocast_enabled("cpu"):
            raise NoRule("model rounds values by autocast.")
        if function is torch.tensor and any(moves(leaf) for leaf in tree_leaves(arguments)):
            raise NoRule("model makes tensors of displaced values, by torch.tensor.")
        return function(*arguments, **(options or {}))


def moves(operand: Any) -> bool:
    """Whether an argument of a function depends on the displacement."""
    return isinstance(operand, Moved) and operand.moves


def plain(tree: T) -> T:
    """The values alone, of everything in a tree of arguments."""
    made: T = tree_map(lambda leaf: leaf.as_subclass(Tensor) if isinstance(leaf, Moved) else leaf, tree)
    return made


def _values(arguments: Iterable[Any]) -> Iterator[Moved]:
    """Those among arguments, and in lists of them; trees would take longer than many a function."""
    for argument in arguments:
        if isinstance(argument, Moved):
            yield argument
        elif isinstance(argument, tuple | list):
            yield from _values(argument)


def _noted(values: Sequence[Moved], made: T) -> T:
    """What was made of some values, after noting which of them it shares memory with."""
    for part in _values((made,)):
        memory = part.untyped_storage().data_ptr()
        for value in values:
            if value is not part and value.untyped_storage().data_ptr() == memory:
                value.shared = part.shared = True
    return made


def _write(function: Any, arguments: Any, options: Any, moving: bool) -> Any:
    """What the function gives takes the place of its first argument, if nothing else has the same memory."""
    target = arguments[0]
    others = {name: given for name, given in options.items() if name not in ("inplace", "out")}
    out = options.get("out")
    if not moving and not any(isinstance(leaf, Moved) for leaf in tree_leaves(target if out is None else out)):
        # What is not of the pass is written to in every pass.
        with torch._C.DisableTorchFunctionSubclass():
            return function(*plain(arguments), **plain(options))
    if out is not None or not (function in IN_PLACE or options.get("inplace")):
        raise NoRule(f"model calls {_name(function)}, which writes into values.")
    if not isinstance(target, Moved) or target.shared:
        raise NoRule(f"model calls {_name(function)} in place on a parameter, a view, or what a view was taken of.")
    made = IN_PLACE.get(function, function)(*arguments, **others)
    with torch._C.DisableTorchFunctionSubclass():
        if not isinstance(made, Moved) or made.shape != target.shape:
            raise NoRule(f"model calls {_name(function)} in place, to another shape.")
        target.set_(made.untyped_storage(), made.storage_offset(), made.shape, made.stride())
    target._unit, target._single, target.shared = made._unit, made._single, made.shared
    return target


def _name(function: Any) -> str:
    return str(getattr(function, "__qualname__", function))
