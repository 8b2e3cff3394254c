"""Functions that are linear in a displaced value, sums and products: f(da), da + db, da b + (a + s da) db."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from nntk.propagation.displaced_tensor import RULES, NoRule, Pass, Rule, called, moves, plain, rule


def _linear(function: Any, indexed: bool = True) -> Rule:
    """The rule of a function that is linear in its tensors together; what does not move counts as zero.

    Args:
        function: The function.
        indexed: Whether integers among its tensors are indices.

    Returns:
        The rule.
    """

    def apply(at: Pass, *arguments: Any, **options: Any) -> Any:
        value = at.once(lambda: function(*plain(arguments), **plain(options)), function)
        leaves, tree = tree_flatten((arguments, options))
        moving = [place for place, leaf in enumerate(leaves) if moves(leaf)]
        units = [leaves[place].unit.flatten(0, 1) for place in moving]

        def unit(*parts: Tensor) -> Any:
            filled = [_zero(at, leaf, indexed) for leaf in leaves]
            for place, part in zip(moving, parts, strict=True):
                filled[place] = part
            given, named = tree_unflatten(filled, tree)
            return (Tensor.reshape if function is Tensor.view else function)(*given, **named)

        return at.result(value, _lanes(at, torch.vmap(unit)(*units)))

    return apply


def _zero(at: Pass, leaf: Any, indexed: bool) -> Any:
    if not isinstance(leaf, Tensor):
        return leaf
    value = plain(leaf)
    if indexed and not value.is_floating_point():
        return value
    return torch.zeros((), dtype=at.dtype, device=value.device).expand(value.shape)


def _lanes(at: Pass, made: Any) -> Any:
    if isinstance(made, Tensor):
        return made.unflatten(0, at.lanes)
    return type(made)(_lanes(at, part) for part in made)


_LINEAR = (
    "reshape", "view", "flatten", "unflatten", "transpose", "swapaxes", "permute", "movedim", "squeeze", "unsqueeze",
    "expand", "expand_as", "view_as", "reshape_as", "broadcast_to", "repeat", "repeat_interleave", "tile", "chunk",
    "split", "unbind", "narrow", "select", "roll", "flip", "contiguous", "clone", "detach", "neg", "mean", "sum",
    "cumsum", "diagonal", "tril", "triu", "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d",
    "adaptive_avg_pool2d", "adaptive_avg_pool3d", "pixel_shuffle", "pixel_unshuffle", "interpolate", "unfold",
    "index_select", "gather", "__getitem__", "t",
)  # fmt: skip
for _function in called(*_LINEAR):
    RULES[_function] = _linear(_function)
for _function in called("cat", "concat", "stack"):
    RULES[_function] = _linear(_function, indexed=False)
for _attribute in ("T", "mT"):
    _function = getattr(Tensor, _attribute).__get__
    RULES[_function] = _linear(_function)


@rule("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout")
def _dropout(at: Pass, x: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
    if training and p:
        raise NoRule("model drops values at random.")
    return x


@rule("pad")
def _pad(at: Pass, x: Any, pad: Any, mode: str = "constant", value: float | None = None) -> Any:
    made = _linear(F.pad)(at, x, pad, mode)
    if value:
        made = at.result(at.once(lambda: F.pad(plain(x), pad, mode, value)), made.unit)
    return made


@rule("masked_fill")
def _masked_fill(at: Pass, x: Any, mask: Any, value: Any) -> Any:
    made = at.once(lambda: torch.masked_fill(plain(x), plain(mask), plain(value)))
    return _chosen(at, made, mask, value, x)


@rule(also=[torch.where])
def _where(at: Pass, condition: Any, a: Any, b: Any) -> Any:
    value = at.once(lambda: torch.where(plain(condition), plain(a), plain(b)))
    return _chosen(at, value, condition, a, b)


@rule(also=[Tensor.where])
def _method_where(at: Pass, a: Any, condition: Any, b: Any) -> Any:
    return _where(at, condition, a, b)


def _chosen(at: Pass, value: Tensor, condition: Any, a: Any, b: Any) -> Any:
    return at.result(value, torch.where(plain(condition), *(_aligned(at, part, value.dim()) for part in (a, b))))


@rule("to", "type_as", "float", "double")
def _cast(at: Pass, x: Any, *arguments: Any, **options: Any) -> Any:
    """Values stay as precise as they are."""
    given = [*arguments, *options.values()]
    if not moves(x):
        # To what a displaced value is.
        return at.still(at.once(lambda: plain(x).to(*plain(arguments), **plain(options))))
    kinds = [part.dtype if isinstance(part, Tensor) else part for part in given]
    if any(isinstance(kind, torch.dtype) and kind not in (torch.float32, torch.float64) for kind in kinds):
        raise NoRule("model rounds displaced values.")
    x.shared = True
    return x


def _aligned(at: Pass, operand: Any, dims: int) -> Any:
    """The difference of an operand, with axes as for a value of so many; zero for what does not move."""
    if not moves(operand):
        return torch.zeros((), dtype=at.dtype, device=at.rows.device)
    unit = operand.unit
    return unit.reshape(*at.lanes, *[1] * (dims + 2 - unit.dim()), *unit.shape[2:])


def _sum(at: Pass, function: Any, a: Any, b: Any, factor_a: float, factor_b: float) -> Any:
    value = at.once(lambda: function(plain(a), plain(b)))
    first, second = (_aligned(at, part, value.dim()) for part in (a, b))
    if not moves(b):
        return at.result(value, first if factor_a == 1 else first * factor_a)
    if not moves(a):
        return at.result(value, second if factor_b == 1 else second * factor_b)
    return at.result(value, (first if factor_a == 1 else first * factor_a).add(second, alpha=factor_b))


@rule("add")
def _add(at: Pass, a: Any, b: Any, *, alpha: float = 1) -> Any:
    return _sum(at, lambda x, y: x + alpha * y, a, b, 1, alpha)


@rule("sub", "subtract")
def _sub(at: Pass, a: Any, b: Any, *, alpha: float = 1) -> Any:
    return _sum(at, lambda x, y: x - alpha * y, a, b, 1, -alpha)


@rule("rsub", "__rsub__")
def _rsub(at: Pass, a: Any, b: Any) -> Any:
    return _sum(at, lambda x, y: y - x, a, b, -1, 1)


@rule("mul", "multiply")
def _mul(at: Pass, a: Any, b: Any) -> Any:
    value = at.once(lambda: plain(a) * plain(b))
    first, second = at.single(a), at.single(b)
    if not moves(a):
        a, b, first, second = b, a, second, first
    da = _aligned(at, a, value.dim())
    if not moves(b):
        return at.result(value, da * second)
    moved = torch.addcmul(first, da, at.scale(value.dim()))
    return at.result(value, torch.addcmul(da * second, moved, _aligned(at, b, value.dim())))


@rule("div", "divide", "true_divide")
def _div(at: Pass, a: Any, b: Any) -> Any:
    value = at.once(lambda: plain(a) / plain(b))
    da, below = _aligned(at, a, value.dim()), at.single(b)
    if not moves(b):
        return at.result(value, da / below)
    quotient, db = at.once(lambda: value.to(at.dtype)), _aligned(at, b, value.dim())
    return at.result(value, (da - quotient * db) / torch.addcmul(below, db, at.scale(value.dim())))


@rule("__rdiv__", "__rtruediv__")
def _rdiv(at: Pass, a: Any, b: Any) -> Any:
    return _div(at, b, a)


@rule("matmul", "bmm", "mm", "mv", "dot", "vdot", "__matmul__")
def _matmul(at: Pass, a: Any, b: Any) -> Any:
    return _bilinear(at, torch.matmul, a, b)


@rule("einsum")
def _einsum(at: Pass, equation: str, *operands: Any) -> Any:
    if len(operands) == 1 and isinstance(operands[0], tuple | list):
        operands = tuple(operands[0])
    if len(operands) == 1:
        return _linear(torch.einsum)(at, equation, *operands)
    if len(operands) != 2:
        raise NoRule("model calls einsum of more than two displaced values.")
    return _bilinear(at, lambda a, b: torch.einsum(equation, a, b), *operands)


def _bilinear(at: Pass, function: Any, a: Any, b: Any) -> Any:
    """A function linear in each of two operands: f(da, b) + f(a + s da, db)."""
    value = at.once(lambda: function(plain(a), plain(b)))
    first, second, lane = at.single(a), at.single(b), at.scales.repeat_interleave(at.halves)
    if not moves(b):
        made = torch.vmap(lambda da: function(da, second))(a.unit.flatten(0, 1))
    elif not moves(a):
        made = torch.vmap(lambda db: function(first, db))(b.unit.flatten(0, 1))
    else:
        made = torch.vmap(lambda da, db, s: function(da, second) + function(first + s * da, db))(
            a.unit.flatten(0, 1), b.unit.flatten(0, 1), lane
        )
    return at.result(value, _lanes(at, made))
