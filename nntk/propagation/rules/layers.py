"""Layers with weights that move: the layer step d W^T + (h + s d) E^T + e, of which a convolution is one too."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import repeat
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nntk.kernels.perturb import displacement_products
from nntk.kernels.philox import split_seed
from nntk.kernels.philox.reference import unit_slabs
from nntk.kernels.philox.slabs import Slab, alignment
from nntk.propagation.displaced_tensor import Moved, NoRule, Pass, moves, plain, rule


@rule("linear")
def _affine(at: Pass, x: Any, weight: Any, bias: Any = None) -> Any:
    if plain(weight).dim() != 2:
        raise NoRule("model has a linear layer whose weight is a vector.")
    value = at.once(lambda: F.linear(*plain((x, weight, bias))))
    made = x.unit @ at.single(weight).T if moves(x) else None
    if moves(weight):
        width = plain(weight).shape[1]
        if made is None:
            moved = _by_noise(at, weight, at.single(x).reshape(-1, width))
        else:
            moved = _by_noise(at, weight, _signed(at, x).reshape(*at.lanes, -1, width))
        made = _total(made, moved.view(*at.lanes, *value.shape))
    return _biased(at, value, made, bias, (-1,))


def _signed(at: Pass, x: Moved) -> Tensor:
    """The displaced value h + s d, with the sign that displacements have in its half: [M, halves, *shape]."""
    dims = x.unit.dim() - 2
    signs = at.signs.view(-1, *[1] * dims)
    return torch.addcmul(signs * x.single, x.unit, at.scale(dims) * signs)


def _by_noise(at: Pass, weight: Moved, q: Tensor) -> Tensor:
    """Products with the displacement of a weight, [M, halves, n, H].

    Args:
        at: The pass.
        weight: The weight, [H, ...].
        q: Displaced values with their signs, [M, halves, n, K], or unmoved ones, [n, K].

    Returns:
        The products.
    """
    shared, signs = q.dim() == 2, at.signs.view(-1, 1, 1)
    if weight.ordinal is None:
        # The difference of a weight that is computed from displaced ones has its signs in it.
        e: Tensor = weight.unit.flatten(3).mT
        return q @ e if shared else (q * signs) @ e
    shape, lines = plain(weight).shape, q if shared else q.flatten(1, 2)
    if at.group.holds:
        made = lines @ at.group.noise(weight.ordinal, shape, at.some).flatten(2).mT
    else:
        stream = (at.rows, at.group.seed, at.group.directions)
        made = displacement_products(lines, shape[0], weight.ordinal, *stream, at.max_bytes)
    return made[:, None] * signs if shared else made.unflatten(1, q.shape[1:3])


def _total(made: Tensor | None, part: Tensor) -> Tensor:
    return part if made is None else made.add_(part)


def _biased(at: Pass, value: Tensor, made: Tensor | None, bias: Any, shape: tuple[int, ...]) -> Any:
    """The result, with the difference of a bias that has this shape at the end of the value's."""
    if moves(bias):
        e = bias.unit.view(*at.lanes, *[1] * (value.dim() - len(shape)), *shape)
        made = e if made is None else made.add_(e)
    assert made is not None, "something moves"
    return at.result(value, made)


@rule("conv1d", "conv2d", "conv3d")
def _convolution(
    at: Pass, x: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1,
) -> Any:  # fmt: skip
    dims, settings = plain(weight).dim() - 2, {"stride": stride, "padding": padding, "dilation": dilation}
    convolve = partial(getattr(F, f"conv{dims}d"), groups=groups, **settings)
    if dims < 3 and groups == 1 and unfolds(plain(weight).device):
        return _convolved(at, x, weight, bias, convolve, lambda value: _unfolded(at, x, weight, value, **settings))
    return _convolved(at, x, weight, bias, convolve)


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def _transposed_convolution(at: Pass, x: Any, weight: Any, bias: Any = None, *settings: Any, **named: Any) -> Any:
    def convolve(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        made: Tensor = getattr(F, f"conv_transpose{weight.dim() - 2}d")(x, weight, bias, *settings, **named)
        return made

    return _convolved(at, x, weight, bias, convolve)


def _convolved(
    at: Pass, x: Any, weight: Any, bias: Any, convolve: Callable[..., Tensor],
    by_weight: Callable[[Tensor], Tensor] | None = None,
) -> Any:  # fmt: skip
    """A layer of any kind of convolution; what the weight's displacement adds, given the value, is made in turn."""
    dims = plain(weight).dim()
    if plain(x).dim() != dims:
        raise NoRule("model convolves inputs without a batch axis.")
    value = at.once(lambda: convolve(*plain((x, weight, bias))))
    made = None
    if moves(x):
        made = convolve(x.unit.flatten(0, 2), at.single(weight)).unflatten(0, x.unit.shape[:3])
    if moves(weight):
        made = _total(made, by_weight(value) if by_weight else _in_turn(at, x, weight, convolve))
    return _biased(at, value, made, bias, (-1, *[1] * (dims - 2)))


def unfolds(device: torch.device) -> bool:
    """Whether a convolution is made of products with patches, or for one displacement after another."""
    # A GPU wants few launches, and the layer step makes its noise where it is used; on a CPU patches take nine times
    # the memory traffic, and a convolution is fast by itself.
    return device.type != "cpu"


def _unfolded(at: Pass, x: Any, weight: Moved, value: Tensor, stride: Any, padding: Any, dilation: Any) -> Tensor:
    """All patches [n P, C k] at once, by the layer step."""
    window = Window.of(tuple(plain(weight).shape[2:]), stride, padding, dilation)
    if moves(x):
        q = window.patches(_signed(at, x).flatten(0, 2)).unflatten(0, (*at.lanes, -1))
        at.sizes.append(q.numel())
    else:
        q = at.once(lambda: window.patches(plain(x).to(at.dtype)))
    n, channels, *size = value.shape
    made: Tensor = _by_noise(at, weight, q).view(*at.lanes, n, *size, channels).movedim(-1, 3)
    return made


def _in_turn(at: Pass, x: Any, weight: Moved, convolve: Callable[..., Tensor]) -> Tensor:
    """The weight's displacements one after another, each as a weight."""
    if weight.ordinal is None:
        # Halves of a weight that is computed from displaced ones are not mirror images.
        return _half_by_half(at, x, weight.unit, convolve)
    noise = at.group.noise(weight.ordinal, plain(weight).shape, at.some)
    if not moves(x):
        h = at.single(x)
        made = torch.stack([convolve(h, one) for one in noise])
        return made[:, None] * at.signs.view(-1, *[1] * (made.dim() - 1))
    q = _signed(at, x).flatten(1, 2)
    made = torch.stack([convolve(*pair) for pair in zip(q, noise, strict=True)])
    return made.view(*at.lanes, -1, *made.shape[2:])


def _half_by_half(at: Pass, x: Any, units: Tensor, convolve: Callable[..., Tensor]) -> Tensor:
    """The same with a weight for each half, [M, halves, *shape]."""
    if moves(x):
        q = _signed(at, x) * at.signs.view(-1, *[1] * (x.unit.dim() - 2))
        pairs = zip(q.flatten(0, 1), units.flatten(0, 1), strict=True)
    else:
        h = at.single(x)
        pairs = zip(repeat(h), units.flatten(0, 1), strict=False)
    made: Tensor = torch.stack([convolve(*pair) for pair in pairs]).unflatten(0, at.lanes)
    return made


class Window:
    """What a layer sees at each of its places."""

    def __init__(
        self, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
    ) -> None:
        # One axis is two, the first of length one.
        flat = len(kernel) == 1
        self.sizes = {
            "kernel_size": (1, *kernel) if flat else tuple(kernel),
            "stride": (1, *stride) if flat else tuple(stride),
            "padding": (0, *padding) if flat else tuple(padding),
            "dilation": (1, *dilation) if flat else tuple(dilation),
        }

    @classmethod
    def of(cls, kernel: Sequence[int], stride: Any, padding: Any, dilation: Any) -> "Window":
        """The window of a layer, as PyTorch names its settings."""
        dims, spread = len(kernel), each(dilation, len(kernel))
        if isinstance(padding, str):
            total = [d * (k - 1) if padding == "same" else 0 for k, d in zip(kernel, spread, strict=True)]
            if any(length % 2 for length in total):
                raise NoRule("model pads a convolution on one side.")
            padding = [length // 2 for length in total]
        return cls(kernel, each(stride, dims), each(padding, dims), spread)

    def columns(self, x: Tensor) -> Tensor:
        """[n, C k, P], of [n, C, ...]."""
        return F.unfold(x if x.dim() == 4 else x[:, :, None], **self.sizes)

    def patches(self, x: Tensor) -> Tensor:
        """[n P, C k], of [n, C, ...]."""
        return self.columns(x).transpose(1, 2).flatten(0, 1)


def each(given: Any, dims: int) -> tuple[int, ...]:
    """A setting for each axis."""
    return (given,) * dims if isinstance(given, int) else tuple(given) * (dims // len(given))


def _max_pool(
    at: Pass, x: Any, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
    ceil_mode: bool = False, return_indices: bool = False, *, dims: int,
) -> Any:  # fmt: skip
    """The largest over a window of: how far below the largest it is, over s, plus its difference."""
    inside = plain(x)
    if ceil_mode or return_indices or inside.dim() != dims + 2:
        raise NoRule("model pools with indices, rounded up, or without a batch axis.")
    pool = F.max_pool1d if dims == 1 else F.max_pool2d
    value = at.once(lambda: pool(inside, kernel_size, stride, padding, dilation))
    window = Window.of(each(kernel_size, dims), stride or kernel_size, 0, dilation)
    around = [length for pad in reversed(each(padding, dims)) for length in (pad, pad)]

    def seen(t: Tensor, outside: float) -> Any:
        """[..., C, k, P]."""
        return window.columns(F.pad(t, around, value=outside)).unflatten(1, (value.shape[1], -1))

    def gap() -> Tensor:
        # What is outside is far below, but finite, so that no infinity meets a zero of the unfolding.
        values: Tensor = seen(inside, torch.finfo(at.dtype).min / 4)
        return (values - values.amax(2, keepdim=True)).to(at.dtype)

    below = at.once(gap)
    units = seen(x.unit.flatten(0, 2), 0.0).view(*at.lanes, *below.shape)
    at.sizes.append(units.numel())
    return at.result(value, (below / at.scale(4) + units).amax(4).view(*at.lanes, *value.shape))


for _dims in (1, 2):
    rule(f"max_pool{_dims}d")(partial(_max_pool, dims=_dims))


@rule("embedding")
def _embedding(at: Pass, tokens: Any, weight: Any, padding_idx: Any = None, max_norm: Any = None, **rest: Any) -> Any:
    """Of the weight's displacement, the lines that are looked up alone."""
    if max_norm is not None or moves(tokens):
        raise NoRule("model has an embedding with max_norm, or of displaced values.")
    numbers = plain(tokens)
    value = at.once(lambda: F.embedding(numbers, plain(weight)))
    if weight.ordinal is None or at.group.holds:
        return at.result(value, weight.unit[:, :, numbers])
    shape = tuple(plain(weight).shape)
    align = alignment(shape)
    lines, place = at.once(lambda: torch.unique(numbers.div(align, rounding_mode="floor"), return_inverse=True))
    slabs = [Slab(weight.ordinal, shape, n * align, min(n * align + align, shape[0])) for n in lines.tolist()]
    made = unit_slabs(at.group.directions, at.rows, slabs, split_seed(at.group.seed), at.dtype)
    table = torch.cat([F.pad(slab, (0, 0, 0, align - slab.shape[1])) for slab in made], 1)
    units = table[:, place * align + numbers % align]
    return at.result(value, units[:, None] * at.signs.view(-1, *[1] * value.dim()))
