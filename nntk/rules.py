r"""What functions of PyTorch do to displaced values: the difference of f's value, over s, without cancellation.

With values a, b and unit differences da, db, so that the displaced values are a + s da and b + s db:

* a linear function gives f(da), a product da b + (a + s da) db;
* an affine layer, or a convolution by its unfolded inputs, is the layer step of :mod:`nntk.kernels.perturb`;
* an activation has the form of its class; a norm or attention is composed of the above.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from nntk.activations import activate
from nntk.kernels.perturb import activations as functions
from nntk.kernels.perturb import affine_differences
from nntk.kernels.philox import split_seed
from nntk.kernels.philox.reference import Slab, alignment, unit_slabs
from nntk.moved import COMPOSED, IN_PLACE, QUERIES, RULES, Moved, NoRule, Pass, Rule, plain

Unary = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Unit difference of a function, from z, dz and s."""


def _called(*names: str) -> Iterator[Any]:
    """All that PyTorch calls so: functions and methods."""
    for name in names:
        for place in (torch, F, Tensor, torch._C._nn, torch.special):
            if (found := getattr(place, name, None)) is not None:
                yield found


def _rule(*names: str, also: Sequence[Any] = ()) -> Callable[[Rule], Rule]:
    """The rule of every function of these names."""

    def enter(rule: Rule) -> Rule:
        RULES.update(dict.fromkeys([*_called(*names), *also], rule))
        return rule

    return enter


def _composed(*names: str) -> Callable[[Rule], Rule]:
    def enter(rule: Rule) -> Rule:
        COMPOSED.update(dict.fromkeys(_called(*names), rule))
        return rule

    return enter


def _moves(operand: Any) -> bool:
    return isinstance(operand, Moved) and operand.moves


# Linear functions.


def _linear(function: Any) -> Rule:
    """The rule of a function that is linear in its tensors together; what does not move counts as zero."""

    def rule(at: Pass, *arguments: Any, **options: Any) -> Any:
        value = at.once(lambda: function(*plain(arguments), **plain(options)))
        leaves, tree = tree_flatten((arguments, options))
        moving = [place for place, leaf in enumerate(leaves) if _moves(leaf)]
        units = [leaves[place].unit.flatten(0, 1) for place in moving]

        def unit(*parts: Tensor) -> Any:
            filled = [_zero(at, leaf) for leaf in leaves]
            for place, part in zip(moving, parts, strict=True):
                filled[place] = part
            given, named = tree_unflatten(filled, tree)
            return (Tensor.reshape if function is Tensor.view else function)(*given, **named)

        made = torch.vmap(unit)(*units)
        for place in moving:
            leaves[place].shared = True
        return _shared(at.result(value, _lanes(at, made)))

    return rule


def _zero(at: Pass, leaf: Any) -> Any:
    if not isinstance(leaf, Tensor):
        return leaf
    value = plain(leaf)
    if not value.is_floating_point():
        return value
    return torch.zeros((), dtype=at.dtype, device=value.device).expand(value.shape)


def _lanes(at: Pass, made: Any) -> Any:
    if isinstance(made, Tensor):
        return made.unflatten(0, at.lanes)
    return type(made)(_lanes(at, part) for part in made)


def _shared(made: Any) -> Any:
    for part in made if isinstance(made, tuple | list) else (made,):
        part.shared = True
    return made


_LINEAR = (
    "reshape", "view", "flatten", "unflatten", "transpose", "swapaxes", "permute", "movedim", "squeeze", "unsqueeze",
    "expand", "expand_as", "broadcast_to", "repeat", "repeat_interleave", "tile", "cat", "concat", "stack", "chunk",
    "split", "unbind", "narrow", "select", "roll", "flip", "contiguous", "clone", "detach", "alpha_dropout", "dropout",
    "dropout1d", "dropout2d", "dropout3d", "feature_alpha_dropout", "neg", "mean", "sum", "cumsum", "diagonal", "tril",
    "triu", "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d",
    "adaptive_avg_pool3d", "pixel_shuffle", "pixel_unshuffle", "interpolate", "unfold", "index_select", "gather",
    "__getitem__", "t",
)  # fmt: skip
for _function in _called(*_LINEAR):
    RULES[_function] = _linear(_function)
for _attribute in ("T", "mT"):
    _function = getattr(Tensor, _attribute).__get__
    RULES[_function] = _linear(_function)


@_rule("pad")
def _pad(at: Pass, x: Any, pad: Any, mode: str = "constant", value: float | None = None) -> Any:
    made = _linear(F.pad)(at, x, pad, mode)
    if value:
        made = at.result(at.once(lambda: F.pad(plain(x), pad, mode, value)), made.unit)
    return made


@_rule("masked_fill")
def _masked_fill(at: Pass, x: Any, mask: Any, value: Any) -> Any:
    made = at.once(lambda: torch.masked_fill(plain(x), plain(mask), plain(value)))
    return at.result(made, torch.masked_fill(x.unit, plain(mask), 0.0))


@_rule("where")
def _where(at: Pass, condition: Any, a: Any, b: Any) -> Any:
    if _moves(condition):
        raise NoRule("model chooses by a condition on displaced values.")
    value = at.once(lambda: torch.where(plain(condition), plain(a), plain(b)))
    return at.result(value, torch.where(plain(condition), *(_aligned(at, part, value.dim()) for part in (a, b))))


@_rule("to", "type_as", "float", "double")
def _cast(at: Pass, x: Any, *arguments: Any, **options: Any) -> Any:
    """Values stay as precise as they are."""
    given = [part for part in (*arguments, *options.values()) if isinstance(part, torch.dtype | torch.device | str)]
    if any(isinstance(part, torch.dtype) and part not in (torch.float32, torch.float64) for part in given):
        raise NoRule("model rounds displaced values.")
    return x


# Sums and products.


def _aligned(at: Pass, operand: Any, dims: int) -> Any:
    """The difference of an operand, with axes as for a value of so many; zero for what does not move."""
    if not _moves(operand):
        return torch.zeros((), dtype=at.dtype, device=at.rows.device)
    unit = operand.unit
    return unit.reshape(*at.lanes, *[1] * (dims + 2 - unit.dim()), *unit.shape[2:])


def _sum(at: Pass, function: Any, a: Any, b: Any, factor_a: float, factor_b: float) -> Any:
    value = at.once(lambda: function(plain(a), plain(b)))
    first, second = (_aligned(at, part, value.dim()) for part in (a, b))
    if not _moves(b):
        return at.result(value, first if factor_a == 1 else first * factor_a)
    if not _moves(a):
        return at.result(value, second if factor_b == 1 else second * factor_b)
    return at.result(value, (first if factor_a == 1 else first * factor_a).add(second, alpha=factor_b))


@_rule("add")
def _add(at: Pass, a: Any, b: Any, *, alpha: float = 1) -> Any:
    return _sum(at, lambda x, y: x + alpha * y, a, b, 1, alpha)


@_rule("sub", "subtract")
def _sub(at: Pass, a: Any, b: Any, *, alpha: float = 1) -> Any:
    return _sum(at, lambda x, y: x - alpha * y, a, b, 1, -alpha)


@_rule("rsub", "__rsub__")
def _rsub(at: Pass, a: Any, b: Any) -> Any:
    return _sum(at, lambda x, y: y - x, a, b, -1, 1)


@_rule("mul", "multiply")
def _mul(at: Pass, a: Any, b: Any) -> Any:
    value = at.once(lambda: plain(a) * plain(b))
    first, second = at.single(a), at.single(b)
    if not _moves(a):
        a, b, first, second = b, a, second, first
    da = _aligned(at, a, value.dim())
    if not _moves(b):
        return at.result(value, da * second)
    moved = torch.addcmul(first, da, at.scale(value.dim()))
    return at.result(value, torch.addcmul(da * second, moved, _aligned(at, b, value.dim())))


@_rule("div", "divide", "true_divide")
def _div(at: Pass, a: Any, b: Any) -> Any:
    value = at.once(lambda: plain(a) / plain(b))
    da, below = _aligned(at, a, value.dim()), at.single(b)
    if not _moves(b):
        return at.result(value, da / below)
    quotient, db = at.once(lambda: value.to(at.dtype)), _aligned(at, b, value.dim())
    return at.result(value, (da - quotient * db) / torch.addcmul(below, db, at.scale(value.dim())))


@_rule("__rdiv__", "__rtruediv__")
def _rdiv(at: Pass, a: Any, b: Any) -> Any:
    return _div(at, b, a)


@_rule("matmul", "bmm", "mm", "__matmul__")
def _matmul(at: Pass, a: Any, b: Any) -> Any:
    return _bilinear(at, torch.matmul, a, b)


@_rule("einsum")
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
    if not _moves(b):
        made = torch.vmap(lambda da: function(da, second))(a.unit.flatten(0, 1))
    elif not _moves(a):
        made = torch.vmap(lambda db: function(first, db))(b.unit.flatten(0, 1))
    else:
        made = torch.vmap(lambda da, db, s: function(da, second) + function(first + s * da, db))(
            a.unit.flatten(0, 1), b.unit.flatten(0, 1), lane
        )
    return at.result(value, _lanes(at, made))


# Functions of one value, elementwise.


def _activation(at: Pass, function: Any, form: functions.Activation, z: Any, *arguments: Any, **options: Any) -> Any:
    inside = plain(z)
    value = at.once(lambda: function(inside, *arguments, **options))
    state = at.once(lambda: form.state(inside, at.dtype))
    return at.result(value, form.difference(state, z.unit, at.scale(inside.dim())))


@_rule(also=[activate])
def _activate(at: Pass, z: Any, function: functions.Activation) -> Any:
    return _activation(at, function.value, function, z)


_FORMS: dict[str, functions.Activation] = {
    "relu": functions.Relu(),
    "tanh": functions.Tanh(),
    "sigmoid": functions.Sigmoid(),
    "silu": functions.Silu(),
    "sin": functions.Sin(),
    "abs": functions.LeakyRelu(-1.0),
}
for _name, _form in _FORMS.items():

    @_rule(_name)
    def _simple(at: Pass, z: Any, inplace: bool = False, *, form: Any = _form, name: str = _name) -> Any:
        return _activation(at, getattr(F if name == "silu" else torch, name), form, z)


@_rule("gelu")
def _gelu(at: Pass, z: Any, *, approximate: str = "none") -> Any:
    form = functions.Gelu() if approximate == "none" else functions.GeluTanh()
    return _activation(at, F.gelu, form, z, approximate=approximate)


@_rule("leaky_relu")
def _leaky_relu(at: Pass, z: Any, negative_slope: float = 0.01, inplace: bool = False) -> Any:
    return _activation(at, F.leaky_relu, functions.LeakyRelu(negative_slope), z, negative_slope)


@_rule("softplus")
def _softplus(at: Pass, z: Any, beta: float = 1, threshold: float = 20) -> Any:
    return _activation(at, F.softplus, functions.Softplus(beta), z, beta, threshold)


def _between(low: float | None, high: float | None) -> Callable[[Tensor, Tensor, Tensor, Pass], Tensor]:
    """z cut off at both ends is low + relu(z - low) - relu(z - high)."""
    relu = functions.Relu()

    def unit(z: Tensor, dz: Tensor, s: Tensor, at: Pass) -> Tensor:
        made = dz
        if low is not None:
            made = relu.difference(at.once(lambda: relu.state(z - low, at.dtype)), dz, s)
        if high is not None:
            made = made - relu.difference(at.once(lambda: relu.state(z - high, at.dtype)), dz, s)
        return made

    return unit


@_rule("clamp", "clip", "hardtanh", "clamp_min", "clamp_max")
def _clamp(at: Pass, z: Any, min: Any = None, max: Any = None, inplace: bool = False, **options: Any) -> Any:
    low, high = options.get("min_val", min), options.get("max_val", max)
    if any(isinstance(end, Tensor) for end in (low, high)) or (low is None and high is None):
        raise NoRule("model clamps displaced values at tensors.")
    inside = plain(z)
    value = at.once(lambda: torch.clamp(inside, low, high))
    return at.result(value, _between(low, high)(inside, z.unit, at.scale(inside.dim()), at))


@_rule("relu6")
def _relu6(at: Pass, z: Any, inplace: bool = False) -> Any:
    return _clamp(at, z, 0.0, 6.0, inplace)


_UNARY: dict[str, Unary] = {
    "exp": lambda z, dz, s: z.exp() * torch.expm1(s * dz) / s,
    "log": lambda z, dz, s: torch.log1p(s * dz / z) / s,
    "sqrt": lambda z, dz, s: dz / ((z + s * dz).sqrt() + z.sqrt()),
    "rsqrt": lambda z, dz, s: -dz * _rsqrt_slope(z.rsqrt(), (z + s * dz).rsqrt()),
    "square": lambda z, dz, s: dz * (2 * z + s * dz),
    "reciprocal": lambda z, dz, s: -dz / (z * (z + s * dz)),
}


def _rsqrt_slope(r: Tensor, moved: Tensor) -> Tensor:
    return (r * moved).square() / (r + moved)


def _unary(at: Pass, name: str, z: Any) -> Any:
    inside = plain(z)
    value = at.once(lambda: getattr(torch, name)(inside))
    return at.result(value, _UNARY[name](z.single, z.unit, at.scale(inside.dim())))


for _name in _UNARY:

    @_rule(_name)
    def _by_name(at: Pass, z: Any, *, name: str = _name) -> Any:
        return _unary(at, name, z)


_POWERS = {2: "square", 0.5: "sqrt", -0.5: "rsqrt", -1: "reciprocal"}


@_rule("pow", "__pow__")
def _pow(at: Pass, z: Any, exponent: Any) -> Any:
    if isinstance(exponent, Tensor) or exponent not in _POWERS:
        raise NoRule(f"model raises displaced values to the power {exponent}.")
    return _unary(at, _POWERS[exponent], z)


# Softmax, and the largest of several.


@_rule("softmax")
def _softmax(at: Pass, z: Any, dim: int, *arguments: Any, **options: Any) -> Any:
    r"""With u = s dz, less its largest: p (expm1(u) - t) / (1 + t) / s, where t is the mean of expm1(u) under p."""
    value = at.once(lambda: torch.softmax(plain(z), dim))
    p, s, axis = at.once(lambda: value.to(at.dtype)), at.scale(value.dim()), _axis(value, dim)
    u = torch.where(p > 0, s * z.unit, -torch.inf)
    rise = torch.expm1(u - u.amax(axis, keepdim=True))
    mean = (p * rise).sum(axis, keepdim=True)
    return at.result(value, p * (rise - mean) / ((1 + mean) * s))


@_rule("log_softmax")
def _log_softmax(at: Pass, z: Any, dim: int, *arguments: Any, **options: Any) -> Any:
    value = at.once(lambda: torch.log_softmax(plain(z), dim))
    p, s, axis = at.once(lambda: value.exp().to(at.dtype)), at.scale(value.dim()), _axis(value, dim)
    u = s * z.unit
    u = u - u.amax(axis, keepdim=True)
    return at.result(value, (u - torch.log1p((p * torch.expm1(u)).sum(axis, keepdim=True))) / s)


def _axis(value: Tensor, dim: int) -> int:
    """The same axis of a difference."""
    return dim % value.dim() - value.dim()


@_rule("amax")
def _amax(at: Pass, z: Any, dim: Any = (), keepdim: bool = False) -> Any:
    inside = plain(z)
    value = at.once(lambda: inside.amax(dim, keepdim))
    axes = tuple(_axis(inside, d) for d in ((dim,) if isinstance(dim, int) else dim or range(inside.dim())))
    below = at.once(lambda: (inside - inside.amax(axes, keepdim=True)).to(at.dtype))
    return at.result(value, (below / at.scale(inside.dim()) + z.unit).amax(axes, keepdim))


# Layers.


@_rule("linear")
def _affine_layer(at: Pass, x: Any, weight: Any, bias: Any = None) -> Any:
    value = at.once(lambda: F.linear(*plain((x, weight, bias))))
    h = at.single(x)
    moves = _moves(x)
    unit = x.unit.flatten(2, -2) if moves and h.dim() > 1 else x.unit[:, :, None] if moves else None
    made = _step(at, h.reshape(-1, h.shape[-1]), unit, weight, bias)
    return at.result(value, made.view(*at.lanes, *value.shape))


def _step(at: Pass, h: Tensor, unit: Tensor | None, weight: Any, bias: Any) -> Tensor:
    """The layer step: [M, halves, n, H] of inputs [n, K] and their differences."""
    at.count(0 if unit is None else 2 * unit.numel())
    single = at.single(weight)
    if _moves(weight) and weight.ordinal is None:
        made = _product(at, h, unit, weight)
    else:
        ordinal = weight.ordinal if isinstance(weight, Moved) else None
        made = affine_differences(
            h, unit, single.flatten(1), None, ordinal, None, at.rows, at.scales, at.seed, at.directions, at.halves,
            at.max_bytes,
        )  # fmt: skip
    if _moves(bias):
        made += bias.unit[:, :, None]
    return made


def _product(at: Pass, h: Tensor, unit: Tensor | None, weight: Moved) -> Tensor:
    """The same of a weight that is computed from displaced ones."""
    e = weight.unit.flatten(3).mT
    if unit is None:
        return h @ e
    return unit @ weight.single.flatten(1).T + torch.addcmul(h, unit, at.scale(2)) @ e


@_rule("conv1d", "conv2d")
def _convolution(
    at: Pass, x: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1,
) -> Any:  # fmt: skip
    r"""The layer step of all patches, [n P, C k k]; one axis is two, the first of length one."""
    dims = plain(weight).dim() - 2
    if groups != 1:
        raise NoRule("model has a convolution in groups.")
    if plain(x).dim() != dims + 2:
        raise NoRule("model convolves inputs without a batch axis.")
    convolve = F.conv1d if dims == 1 else F.conv2d
    value = at.once(lambda: convolve(*plain((x, weight, bias)), stride, padding, dilation))
    kernel = tuple(plain(weight).shape[2:])
    spread = _each(dilation, dims)
    window = _Window(kernel, _each(stride, dims), _padding(padding, kernel, spread), spread)
    h = at.once(lambda: window.rows(plain(x).to(at.dtype)))
    unit = None
    if _moves(x):
        unit = window.rows(x.unit.flatten(0, 2)).view(*at.lanes, *h.shape)
    made = _step(at, h, unit, weight, bias)
    n, channels, *size = value.shape
    return at.result(value, made.view(*at.lanes, n, *size, channels).movedim(-1, 3))


class _Window:
    """What a layer sees at each of its places."""

    def __init__(self, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]):
        lift = (0,) if len(kernel) == 1 else ()
        one = (1,) if len(kernel) == 1 else ()
        self.sizes = {
            "kernel_size": (*one, *kernel), "stride": (*one, *stride), "padding": (*lift, *padding),
            "dilation": (*one, *dilation),
        }  # fmt: skip

    def columns(self, x: Tensor) -> Tensor:
        """[n, C k, P], of [n, C, ...]."""
        return F.unfold(x if x.dim() == 4 else x[:, :, None], **self.sizes)

    def rows(self, x: Tensor) -> Tensor:
        """[n P, C k], of [n, C, ...]."""
        return self.columns(x).transpose(1, 2).flatten(0, 1)


def _each(given: Any, dims: int) -> tuple[int, ...]:
    return (given,) * dims if isinstance(given, int) else tuple(given) * (dims // len(tuple(given)))


def _padding(padding: Any, kernel: Sequence[int], dilation: Sequence[int]) -> tuple[int, ...]:
    if not isinstance(padding, str):
        return _each(padding, len(kernel))
    total = [d * (k - 1) if padding == "same" else 0 for k, d in zip(kernel, dilation, strict=True)]
    if any(length % 2 for length in total):
        raise NoRule("model pads a convolution on one side.")
    return tuple(length // 2 for length in total)


@_rule("max_pool1d", "max_pool2d", also=[F.max_pool1d, F.max_pool2d])
def _max_pool(
    at: Pass, x: Any, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
    ceil_mode: bool = False, return_indices: bool = False,
) -> Any:  # fmt: skip
    """The largest of what is below the largest, over s, plus its difference."""
    inside = plain(x)
    dims = 1 if inside.dim() == 3 else 2
    if ceil_mode or return_indices or inside.dim() != dims + 2:
        raise NoRule("model pools with indices, rounded up or without a batch axis.")
    pool = F.max_pool1d if dims == 1 else F.max_pool2d
    value = at.once(lambda: pool(inside, kernel_size, stride, padding, dilation))
    kernel, pads = _each(kernel_size, dims), _each(padding, dims)
    still = tuple(0 for _ in pads)
    window = _Window(kernel, _each(stride or kernel_size, dims), still, _each(dilation, dims))
    around = [length for pad in reversed(pads) for length in (pad, pad)]
    n, channels = value.shape[:2]

    def seen(t: Tensor, outside: float) -> Tensor:
        """[..., n, C, k, P]."""
        return window.columns(F.pad(t, around, value=outside)).unflatten(1, (channels, -1))

    def gap() -> Tensor:
        # Far below, but finite, so that no infinity meets a zero of unfold's.
        values = seen(inside, torch.finfo(at.dtype).min / 4)
        return (values - values.amax(2, keepdim=True)).to(at.dtype)

    below = at.once(gap)
    units = seen(x.unit.flatten(0, 2), 0.0).view(*at.lanes, *below.shape)
    at.count(units.numel())
    return at.result(value, (below / at.scale(4) + units).amax(4).view(*at.lanes, *value.shape))


@_rule("embedding")
def _embedding(at: Pass, tokens: Any, weight: Any, padding_idx: Any = None, max_norm: Any = None, **rest: Any) -> Any:
    """Of the weight's displacement, the lines that are looked up alone."""
    if max_norm is not None or _moves(tokens):
        raise NoRule("model has an embedding with max_norm, or of displaced values.")
    numbers = plain(tokens)
    value = at.once(lambda: F.embedding(numbers, plain(weight)))
    if weight.ordinal is None:
        return at.result(value, weight.unit[:, :, numbers])
    shape = tuple(plain(weight).shape)
    align = alignment(shape)
    lines, place = at.once(lambda: torch.unique(numbers.div(align, rounding_mode="floor"), return_inverse=True))
    slabs = [Slab(weight.ordinal, shape, n * align, min(n * align + align, shape[0])) for n in lines.tolist()]
    made = unit_slabs(at.directions, at.rows, slabs, split_seed(at.seed), at.dtype)
    table = torch.cat([F.pad(slab, (0, 0, 0, align - slab.shape[1])) for slab in made], 1)
    units = table[:, place * align + numbers % align]
    return at.result(value, units[:, None] * at.signs.view(-1, *[1] * value.dim()))


# Compositions.


@_composed("layer_norm")
def _layer_norm(x: Any, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Any:
    axes = tuple(range(-len(shape), 0))
    return _scaled(_centred(x, axes, eps), weight, bias)


@_composed("rms_norm")
def _rms_norm(x: Any, shape: Any, weight: Any = None, eps: float | None = None) -> Any:
    axes = tuple(range(-len(shape), 0))
    least = torch.finfo(x.dtype).eps if eps is None else eps
    return _scaled(x * torch.rsqrt(torch.square(x).mean(axes, keepdim=True) + least), weight, None)


@_composed("group_norm")
def _group_norm(x: Any, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Any:
    n, channels, *size = x.shape
    parts = x.reshape(n, groups, -1)
    return _by_channel(_centred(parts, (-1,), eps).reshape(n, channels, *size), weight, bias, channels)


@_composed("batch_norm")
def _batch_norm(
    x: Any, mean: Any, variance: Any, weight: Any = None, bias: Any = None, training: bool = False,
    momentum: float = 0.1, eps: float = 1e-5,
) -> Any:  # fmt: skip
    if training or mean is None:
        raise NoRule("model takes the statistics of the batch.")
    shape = (1, -1, *[1] * (x.dim() - 2))
    scale = torch.rsqrt(variance + eps).reshape(shape)
    return _by_channel((x - mean.reshape(shape)) * scale, weight, bias, x.shape[1])


def _centred(x: Any, axes: tuple[int, ...], eps: float) -> Any:
    centred = x - x.mean(axes, keepdim=True)
    return centred * torch.rsqrt(torch.square(centred).mean(axes, keepdim=True) + eps)


def _scaled(x: Any, weight: Any, bias: Any) -> Any:
    scaled = x if weight is None else x * weight
    return scaled if bias is None else scaled + bias


def _by_channel(x: Any, weight: Any, bias: Any, channels: int) -> Any:
    shape = (1, channels, *[1] * (x.dim() - 2))
    return _scaled(x, *(None if part is None else part.reshape(shape) for part in (weight, bias)))


@_composed("scaled_dot_product_attention")
def _attention(
    query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: float = 0.0, is_causal: bool = False,
    scale: float | None = None, enable_gqa: bool = False,
) -> Any:  # fmt: skip
    if dropout_p or enable_gqa:
        raise NoRule("model has attention with dropout or grouped queries.")
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    return torch.softmax(_masked(scores, attn_mask, keep=True), -1) @ value


def _masked(scores: Any, mask: Any, keep: bool) -> Any:
    """Scores under a mask: added, or of those to keep or to leave out."""
    if mask is None:
        return scores
    if mask.dtype != torch.bool:
        return scores + mask
    return scores.masked_fill(~mask if keep else mask, -torch.inf)


@_composed("multi_head_attention_forward")
def _multi_head_attention(
    query: Any, key: Any, value: Any, width: int, heads: int, in_weight: Any, in_bias: Any, bias_k: Any, bias_v: Any,
    add_zero_attn: bool, dropout_p: float, out_weight: Any, out_bias: Any, training: bool = True,
    key_padding_mask: Any = None, need_weights: bool = True, attn_mask: Any = None,
    use_separate_proj_weight: bool = False, q_proj_weight: Any = None, k_proj_weight: Any = None,
    v_proj_weight: Any = None, static_k: Any = None, static_v: Any = None, average_attn_weights: bool = True,
    is_causal: bool = False,
) -> Any:  # fmt: skip
    rare = (bias_k, bias_v, static_k, static_v, key_padding_mask)
    if any(part is not None for part in rare) or add_zero_attn or query.dim() != 3 or (training and dropout_p):
        raise NoRule("model has attention with dropout, padding, or keys and values of its own.")
    if query is key and key is value and not use_separate_proj_weight:
        parts = F.linear(query, in_weight, in_bias).chunk(3, -1)
    else:
        weights = (q_proj_weight, k_proj_weight, v_proj_weight) if use_separate_proj_weight else in_weight.chunk(3)
        biases = (None,) * 3 if in_bias is None else in_bias.chunk(3)
        parts = tuple(map(F.linear, (query, key, value), weights, biases))
    length, n = query.shape[:2]
    # [length, n, width] by heads: [n, heads, length, width / heads].
    q, k, v = (part.reshape(part.shape[0], n, heads, -1).permute(1, 2, 0, 3) for part in parts)
    scores = _masked(q @ k.mT * q.shape[-1] ** -0.5, _by_head(attn_mask, n, heads), keep=False)
    weights = torch.softmax(scores, -1)
    mixed = (weights @ v).permute(2, 0, 1, 3).reshape(length, n, -1)
    out = F.linear(mixed, out_weight, out_bias)
    if not need_weights:
        return out, None
    return out, weights.mean(1) if average_attn_weights else weights


def _by_head(mask: Any, n: int, heads: int) -> Any:
    return mask if mask is None or mask.dim() == 2 else mask.reshape(n, heads, *mask.shape[1:])


_QUERIES = (
    "size", "dim", "ndimension", "numel", "stride", "__len__", "is_floating_point", "is_complex", "is_contiguous",
    "new_zeros", "new_ones", "new_full", "new_empty", "zeros_like", "ones_like", "empty_like",
)  # fmt: skip
_ATTRIBUTES = (
    "shape", "dtype", "device", "ndim", "layout", "requires_grad", "grad_fn", "is_leaf", "is_cpu", "is_cuda",
    "is_meta", "is_mps", "is_xpu", "is_nested", "is_sparse", "is_quantized",
)  # fmt: skip
QUERIES.update(_called(*_QUERIES))
QUERIES.update(getattr(Tensor, name).__get__ for name in _ATTRIBUTES if hasattr(Tensor, name))
for _name in ("add", "sub", "mul", "div", "relu", "tanh", "sigmoid", "masked_fill", "clamp", "neg", "exp", "sqrt"):
    for _function in _called(f"{_name}_", f"__i{_name}__"):
        IN_PLACE[_function] = getattr(torch, _name)
