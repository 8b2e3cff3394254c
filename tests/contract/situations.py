"""Bases and situations: what researchers do inside of a model, each in several kinds of model."""

import contextlib
import random
import threading
import warnings
from collections import deque

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, prune

from nntk.activations import Sign

RIGHT, EITHER = "right", "right or refused"
RANDOM, BATCH, REFUSED = "^refused.*(draws=|random)", "^refused.*(one by one|batch|separately)", "refused"
"""Expected verdicts; a refusal contains one of the words that follow."""

INPUTS = torch.randn(6, 5, generator=torch.Generator().manual_seed(5))
INPUTS[3] *= 3  # In the middle, one input is unlike the first and the last.


class LastState(nn.Module):
    """LSTM over the features of an input, as a sequence."""

    def __init__(self):
        super().__init__()
        self.layer = nn.LSTM(1, 6, batch_first=True)

    def forward(self, x):
        return self.layer(x[..., None])[0][:, -1]


BASES = {
    "tanh": lambda: (nn.Sequential(nn.Linear(5, 6), nn.Tanh()), nn.Linear(6, 2)),
    "norm": lambda: (
        nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.LayerNorm(6)),
        nn.Sequential(nn.GELU(), nn.Linear(6, 2)),
    ),
    "sign": lambda: (nn.Linear(5, 6), nn.Sequential(Sign(), nn.Linear(6, 2))),
    "conv": lambda: (
        nn.Sequential(nn.Unflatten(1, (1, 5)), nn.Conv1d(1, 2, 3), nn.SiLU(), nn.Flatten()),
        nn.Linear(6, 2),
    ),
    "lstm": lambda: (LastState(), nn.Linear(6, 2)),
    "erf": lambda: (nn.Sequential(nn.Linear(5, 6)), Function(lambda m, h: m.last(torch.erf(h)), last=nn.Linear(6, 2))),
}
"""Functions that make a front from [N, 5] to [N, 6] and a back from [N, 6] to [N, 2]."""


class Function(nn.Module):
    """A function of the module and its input, with parts that the function uses."""

    def __init__(self, function, **parts):
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.function(self, x)


class Between(nn.Module):
    """Front, a situation in the middle, and back."""

    def __init__(self, front, back, middle, prepare=None, before=None):
        super().__init__()
        self.front, self.back, self.middle, self.before = front, back, middle, before
        if prepare is not None:
            prepare(self)

    def forward(self, x):
        if self.before is not None:
            x = self.before(self, x)
        takes_inputs = getattr(self.middle, "takes_inputs", False)
        return self.back(self.middle(self, self.front(x), *([x] if takes_inputs else [])))


SITUATIONS = {}
"""By name: the expected verdict, and a function from the name of a base to a model and its inputs."""


def make_base(base):
    """Return the front and the back of a base, with seeded weights, in evaluation mode."""
    torch.manual_seed(11)
    front, back = BASES[base]()
    return front.eval(), back.eval()


def situation(name, expected, middle=None, prepare=None, before=None, x=INPUTS, training=False, wrap=None):
    """Enter a situation: something in the middle, before, or around the model."""

    def make(base):
        model = Between(*make_base(base), middle or (lambda m, h: h), prepare, before).train(training)
        return (model if wrap is None else wrap(model)), x.clone()

    assert name not in SITUATIONS, name
    SITUATIONS[name] = expected, make


def counted(m):
    m.register_buffer("count", torch.zeros(()))


def with_mean(m):
    m.register_buffer("mean", torch.linspace(-1, 1, 6))


def with_attribute(**values):
    return lambda m: [setattr(m, name, value() if callable(value) else value) for name, value in values.items()]


def first_then(first, then):
    """Run a statement for its effect, and return a value."""
    return then


# In place, and state ------------------------------------------------------------------------------------------------
def halves_input(m, x):
    x.mul_(0.5)
    return x


def zeroes_column(m, x):
    x[:, 0] = 0
    return x


def counts(m, h):
    m.count += 1
    return h


def multiplies_by_count(m, h):
    m.count += 1
    return h * m.count


def moves_mean_afterwards(m, h):
    out = h - m.mean
    with torch.no_grad():
        m.mean.mul_(0.9).add_(0.1 * h.detach().mean(0))
    return out


def moves_mean_before(m, h):
    with torch.no_grad():
        m.mean.mul_(0.9).add_(0.1 * h.detach().mean(0))
    return h - m.mean


def replaces_buffer(m, h):
    m.mean = m.mean * 0.5 + 1
    return h - m.mean


def caches(m, h):
    m.last = h
    return h


def caches_in_list(m, h):
    m.seen.append(h.detach())
    return h


def caches_in_dict(m, h):
    m.seen[len(m.seen)] = h
    return h


def keeps_state(m, h):
    h = h + 0.5 * m.state
    m.state = h.detach().mean()
    return h


def counts_in_attribute(m, h):
    m.calls += 1
    return h * m.calls


def clamps_parameter(m, h):
    with torch.no_grad():
        m.scale.clamp_(-0.3, 0.3)
    return h * m.scale


def with_scale(m):
    m.scale = nn.Parameter(torch.linspace(-1, 1, 6))


def memoises(m, h):
    if m.table is None:
        m.table = torch.linspace(0, 1, 6, dtype=h.dtype)
    return h + m.table


def memoises_result(m, h):
    key = tuple(h.shape)
    if key not in m.seen:
        m.seen[key] = torch.tanh(h)
    return m.seen[key] + h


def switches_mode(m, h):
    m.eval()
    return h


situation("in-place on inputs", RIGHT, before=halves_input)
situation("in-place on a column of the inputs", RIGHT, before=zeroes_column)
situation("in-place on a view of the inputs", RIGHT, before=lambda m, x: x.view(-1).clamp_(-1, 1).view(x.shape))
situation("in-place through numpy", EITHER, before=lambda m, x: first_then(x.numpy().__imul__(0.5), x))
situation("in-place on hidden values", RIGHT, lambda m, h: h.mul_(2).add_(1))
situation("in-place by out=", EITHER, lambda m, h: torch.mul(h, 2, out=torch.empty_like(h)))
situation("written by index", RIGHT, lambda m, h: first_then(h.__setitem__((slice(None), 0), 1.0), h))
situation("buffer counter", RIGHT, counts, counted)
situation("buffer counter in the output", EITHER, multiplies_by_count, counted)
situation("running statistics afterwards", EITHER, moves_mean_afterwards, with_mean)
situation("running statistics before use", BATCH, moves_mean_before, with_mean)
situation("replaces a buffer", EITHER, replaces_buffer, with_mean)
situation(
    "non-persistent buffer", RIGHT, counts, lambda m: m.register_buffer("count", torch.zeros(()), persistent=False)
)
situation("cached activation", RIGHT, caches, with_attribute(last=None))
situation("list cache", RIGHT, caches_in_list, with_attribute(seen=list))
situation("dictionary cache", RIGHT, caches_in_dict, with_attribute(seen=dict))
situation("queue cache", RIGHT, caches_in_list, with_attribute(seen=lambda: deque(maxlen=2)))
situation("state in an attribute", EITHER, keeps_state, with_attribute(state=0.0))
situation("state in a tensor attribute", EITHER, keeps_state, with_attribute(state=lambda: torch.tensor(1.0)))
situation("counter in an attribute, in the output", EITHER, counts_in_attribute, with_attribute(calls=0))
situation("clamps a parameter in place", EITHER, clamps_parameter, with_scale)
situation("table made at the first call", RIGHT, memoises, with_attribute(table=None))
situation("results memoised by shape", EITHER, memoises_result, with_attribute(seen=dict))
situation("switches to evaluation mode", EITHER, switches_mode, training=True)
situation("holds a lock", RIGHT, prepare=with_attribute(lock=threading.Lock))
situation("holds an open generator", RIGHT, prepare=with_attribute(numbers=lambda: (i for i in range(3))))
situation("holds a tensor with a history", RIGHT, prepare=with_attribute(held=lambda: nn.Parameter(torch.ones(3)) * 2))
situation(
    "holds a module outside of modules",
    EITHER,
    lambda m, h: m.hidden[0](h),
    with_attribute(hidden=lambda: [nn.Linear(6, 6)]),
)


# Parametrised weights ------------------------------------------------------------------------------------------------
def wrap_linear(change):
    """Return a preparation that changes a linear layer between front and back."""

    def prepare(m):
        torch.manual_seed(3)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            m.extra = change(nn.Linear(6, 6))

    return prepare


def prune_it(layer):
    prune.l1_unstructured(layer, "weight", 0.5)
    return layer


def closes_over_itself(m):
    m.extra = nn.Linear(6, 6)
    m.call = lambda h: torch.tanh(m.extra(h))


def hooks_another_layer(m):
    m.extra, m.other = nn.Linear(6, 6), nn.Linear(6, 6)
    m.extra.register_forward_hook(lambda layer, inputs, outputs: m.other(outputs))


def keeps_bound_method(m):
    m.extra = nn.Linear(6, 6)
    m.call = m.extra.forward


def refers_to_parent(m):
    m.extra, m.other = nn.Linear(6, 6), nn.Linear(6, 6)
    m.extra.parent = [m]


def use_extra(m, h):
    return m.extra(h)


situation("weight_norm, legacy", RIGHT, use_extra, wrap_linear(lambda layer: nn.utils.weight_norm(layer)))
situation("weight_norm", RIGHT, use_extra, wrap_linear(parametrizations.weight_norm))
situation("spectral_norm, legacy, evaluating", RIGHT, use_extra, wrap_linear(nn.utils.spectral_norm))
situation("spectral_norm, legacy, training", EITHER, use_extra, wrap_linear(nn.utils.spectral_norm), training=True)
situation("spectral_norm, training", EITHER, use_extra, wrap_linear(parametrizations.spectral_norm), training=True)
situation("orthogonal", RIGHT, use_extra, wrap_linear(parametrizations.orthogonal))
situation("pruned", RIGHT, use_extra, wrap_linear(prune_it))
situation(
    "forward hook",
    RIGHT,
    use_extra,
    wrap_linear(lambda v: first_then(v.register_forward_hook(lambda m, i, o: o * 2), v)),
)
situation(
    "forward pre-hook",
    RIGHT,
    use_extra,
    wrap_linear(lambda v: first_then(v.register_forward_pre_hook(lambda m, i: (i[0] + 1,)), v)),
)
situation(
    "backward hook",
    RIGHT,
    use_extra,
    wrap_linear(lambda v: first_then(v.register_full_backward_hook(lambda m, i, o: None), v)),
)
situation(
    "parameter hook", EITHER, use_extra, wrap_linear(lambda v: first_then(v.weight.register_hook(lambda g: g), v))
)
situation("closure over the model", EITHER, lambda m, h: m.call(h), closes_over_itself)
situation("hook that calls another layer", EITHER, use_extra, hooks_another_layer)
situation("bound method as an attribute", RIGHT, lambda m, h: m.call(h), keeps_bound_method)
situation("reference to the parent", RIGHT, lambda m, h: m.extra.parent[0].other(h), refers_to_parent)
situation("frozen layer", RIGHT, use_extra, wrap_linear(lambda v: v.requires_grad_(False)))


# Hidden randomness ---------------------------------------------------------------------------------------------------
def training_only(layer):
    return lambda m: setattr(m, "extra", layer())


class Seeded:
    """A generator of its own, which a copy shares."""

    def __init__(self):
        self.generator = torch.Generator().manual_seed(0)


def rarely(m, h):
    return h * (1 + (torch.rand(()) < 0.02))


situation("dropout of the functional interface", RANDOM, lambda m, h: F.dropout(h, 0.5))
situation("dropout layer in training", RANDOM, use_extra, training_only(lambda: nn.Dropout(0.5)), training=True)
situation("alpha dropout", RANDOM, lambda m, h: F.alpha_dropout(h, 0.3, training=True))
situation("feature dropout", RANDOM, lambda m, h: F.dropout1d(h[:, :, None], 0.4)[..., 0])
situation(
    "dropout in attention",
    RANDOM,
    lambda m, h: F.scaled_dot_product_attention(
        h[:, None], h[:, :, None].expand(-1, -1, 6), h[:, :, None].expand(-1, -1, 6), dropout_p=0.3
    )[:, 0],
)


def attends(m, h):
    parts = h.view(-1, 3, 2)
    return m.extra(parts, parts, parts)[0].flatten(1)


small_attention = training_only(lambda: nn.MultiheadAttention(2, 1, 0.4, batch_first=True))
situation("dropout in multi-head attention", RANDOM, attends, small_attention, training=True)
situation(
    "dropout in LSTM",
    RANDOM,
    lambda m, h: m.extra(h[..., None])[0].sum(-1),
    training_only(lambda: nn.LSTM(1, 2, 2, batch_first=True, dropout=0.5)),
    training=True,
)
situation("rrelu in training", RANDOM, use_extra, training_only(nn.RReLU), training=True)
situation("gumbel softmax", RANDOM, lambda m, h: F.gumbel_softmax(h, hard=True))
situation("randn_like", RANDOM, lambda m, h: h + 0.1 * torch.randn_like(h))
situation("small noise", RANDOM, lambda m, h: h + 1e-5 * torch.randn_like(h))
situation("bernoulli", RANDOM, lambda m, h: torch.bernoulli(torch.sigmoid(h)))
situation("multinomial", RANDOM, lambda m, h: h * torch.multinomial(torch.softmax(h, -1), 1))
situation("normal_ in place", RANDOM, lambda m, h: h + torch.empty_like(h).normal_())
situation(
    "reparametrised sample", RANDOM, lambda m, h: torch.distributions.Normal(h, 1.0, validate_args=False).rsample()
)
situation("random permutation", RANDOM, lambda m, h: h[:, torch.randperm(6)])
situation("rare randomness", RANDOM, rarely)
situation("depth by torch", RANDOM, lambda m, h: h if torch.rand(()) < 0.5 else 2 * h)
situation("depth by numpy", RANDOM, lambda m, h: h if np.random.rand() < 0.5 else 2 * h)
situation("depth by python", RANDOM, lambda m, h: h if random.random() < 0.5 else 2 * h)
situation(
    "generator of its own",
    EITHER,
    lambda m, h: h + torch.randn(6, generator=m.own.generator),
    with_attribute(own=Seeded),
)
situation(
    "generator as an attribute",
    EITHER,
    lambda m, h: h + torch.randn(6, generator=m.own),
    with_attribute(own=lambda: torch.Generator().manual_seed(0)),
)
situation(
    "new generator with a fixed seed",
    RIGHT,
    lambda m, h: h + torch.randn(6, generator=torch.Generator().manual_seed(0)),
)
situation(
    "numpy's default_rng", REFUSED, lambda m, h: h + torch.as_tensor(np.random.default_rng().normal(size=6)).to(h)
)
situation("numbers drawn but not used", EITHER, lambda m, h: first_then(torch.rand(3), h))
situation("seeds the global generator", EITHER, lambda m, h: first_then(torch.manual_seed(0), h + torch.randn(6)))
situation("dropout layer in evaluation", RIGHT, use_extra, training_only(lambda: nn.Dropout(0.5)))


# Batches that mix ----------------------------------------------------------------------------------------------------
def large_batches_only(m, h):
    return h - h.mean(0) if len(h) > 4 else h


def last_to_first(m, h):
    return torch.cat((h[:1] + 0.1 * h[-1:] * (len(h) > 1), h[1:]))


def beyond_a_threshold(m, h):
    top = h.abs().max()
    return torch.where(top > 0.5, h / top, h)


def scale_by_batch(m, h):
    s = 127 / h.abs().max().clamp(min=1e-5)
    return (h * s).round() / s


time_first = training_only(lambda: nn.TransformerEncoderLayer(6, 2, 8))
situation("batch statistics by hand", BATCH, lambda m, h: (h - h.mean(0)) / (h.std(0, correction=0) + 1e-3))
situation("softmax over dim 0", BATCH, lambda m, h: h.softmax(0))
situation("time-first transformer layer", BATCH, lambda m, h: m.extra(h[:, None])[:, 0], time_first)
situation("time-first LSTM", BATCH, lambda m, h: m.extra(h[:, None])[0][:, 0], training_only(lambda: nn.LSTM(6, 6)))
situation("normalised by the batch's largest", BATCH, lambda m, h: h / h.abs().max())
situation("divided by the batch size", BATCH, lambda m, h: h / len(h))
situation("sum over the batch", BATCH, lambda m, h: h + 0.1 * h.sum(0))
situation("cumulative sum over the batch", BATCH, lambda m, h: h.cumsum(0))
situation("rolled over the batch", BATCH, lambda m, h: h + torch.roll(h, 1, 0))
situation("sorted over the batch", BATCH, lambda m, h: h.sort(0).values)
situation("flipped over the batch", BATCH, lambda m, h: h.flip(0))
situation("place in the batch", BATCH, lambda m, h: h + torch.arange(len(h), dtype=h.dtype)[:, None])
situation("last input to the first", BATCH, last_to_first)
situation("large batches only", BATCH, large_batches_only)
situation("beyond a threshold of the batch", BATCH, beyond_a_threshold)
situation("normalised over dim 0", BATCH, lambda m, h: F.normalize(h, dim=0))
situation("threshold at the batch's median", BATCH, lambda m, h: h * (h > h.median()))
situation("scale of quantisation by the batch", BATCH, scale_by_batch)
situation("batch norm in training", BATCH, lambda m, h: F.batch_norm(h, None, None, training=True))
situation(
    "batch norm without statistics",
    BATCH,
    use_extra,
    training_only(lambda: nn.BatchNorm1d(6, track_running_stats=False)),
)
situation("branch by the batch's mean", BATCH, lambda m, h: h if h.mean() > 0 else 2 * h)
situation("similarities within the batch", REFUSED, lambda m, h: h @ (h.T @ h))
situation("one row for the batch", REFUSED, lambda m, h: h.mean(0, keepdim=True))
situation("row by row in a loop", RIGHT, lambda m, h: torch.stack([2 * row for row in h]))
situation("sorted and put back", RIGHT, lambda m, h: h[h[:, 0].argsort()][h[:, 0].argsort().argsort()])
situation("folded into the batch", RIGHT, lambda m, h: h.reshape(-1, 3).softmax(-1).reshape(-1, 6))
situation("softmax of each input", RIGHT, lambda m, h: h.softmax(-1))
situation("group norm", RIGHT, lambda m, h: F.group_norm(h, 2))
situation(
    "batch-first attention",
    RIGHT,
    lambda m, h: m.extra(h.view(-1, 3, 2))[:, 0].repeat(1, 3),
    training_only(lambda: nn.TransformerEncoderLayer(2, 1, 4, batch_first=True)),
)
situation("batch norm in evaluation", RIGHT, use_extra, training_only(lambda: nn.BatchNorm1d(6)))


# Compiled, scripted, wrapped, stripped -------------------------------------------------------------------------------
class Scriptable(nn.Module):
    """A small module that TorchScript understands."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.layer(h))


def scripted_function():
    def double(h: torch.Tensor) -> torch.Tensor:
        return h * 2 + torch.tanh(h)

    return torch.jit.script(double)


class Own(torch.Tensor):
    """A subclass of tensors."""


class Cube(torch.autograd.Function):
    """A custom function in the old form."""

    @staticmethod
    def forward(ctx, h):
        ctx.save_for_backward(h)
        return h**3

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 3 * ctx.saved_tensors[0] ** 2


class CubeInTwo(torch.autograd.Function):
    """A custom function in the new form."""

    @staticmethod
    def forward(h):
        return h**3

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 3 * ctx.saved_tensors[0] ** 2


def in_middle(function):
    """Apply a function to rows of a large input only, so that a trial at the first and last does not meet it."""

    def middle(m, h, x):
        large = x.abs().amax(-1, keepdim=True) > 4
        return torch.where(large, function(h), h) if bool(large.any()) else h

    middle.takes_inputs = True
    return middle


def without_function(h):
    with torch._C.DisableTorchFunctionSubclass():
        return torch.tanh(h)


def set_strip(h):
    return torch.empty_like(h).set_(h.detach().clone())


def without_grad(m, h):
    with torch.no_grad():
        return h.tanh()


def inference(m, h):
    with torch.inference_mode():
        return h.tanh().clone()


def scripted(make):
    def prepare(m):
        torch.manual_seed(3)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            m.extra = make()

    return prepare


def quiet(function):
    def wrap(model):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return function(model)

    return wrap


situation("scripted function", EITHER, use_extra, scripted(scripted_function))
situation("scripted submodule", EITHER, use_extra, scripted(lambda: torch.jit.script(Scriptable())))
situation("traced submodule", EITHER, use_extra, scripted(lambda: torch.jit.trace(Scriptable(), torch.randn(2, 6))))
situation("scripted submodule in the middle only", EITHER, in_middle(lambda h: SCRIPTED(h)))
situation("traced whole", EITHER, wrap=quiet(lambda model: torch.jit.trace(model, INPUTS, check_trace=False)))
situation("exported whole", EITHER, wrap=quiet(lambda model: torch.export.export(model, (INPUTS,)).module()))
situation("DataParallel", RIGHT, wrap=lambda model: nn.DataParallel(model))
situation("compiled whole", EITHER, wrap=quiet(lambda model: torch.compile(model, backend="eager")))
situation("compiled submodule", EITHER, use_extra, scripted(lambda: torch.compile(Scriptable(), backend="eager")))
situation("symbolically traced (torch.fx)", EITHER, wrap=quiet(torch.fx.symbolic_trace))
situation("vmap inside", EITHER, lambda m, h: torch.vmap(torch.tanh)(h))
situation("as_subclass", EITHER, lambda m, h: torch.tanh(h.as_subclass(Own)).as_subclass(torch.Tensor))
situation("_make_subclass", EITHER, lambda m, h: torch.Tensor._make_subclass(torch.Tensor, h) * 2)
situation("DisableTorchFunctionSubclass", EITHER, lambda m, h: without_function(h))
situation("set_", EITHER, lambda m, h: set_strip(h))
situation("data", EITHER, lambda m, h: h.data * 2)
situation("detach", EITHER, lambda m, h: h.detach() * 2)
situation("half detached", EITHER, lambda m, h: h + h.detach().sign())
situation("through numpy", EITHER, lambda m, h: torch.from_numpy(np.tanh(h.detach().numpy())).to(h.dtype))
situation("through a list", EITHER, lambda m, h: torch.tensor(h.tolist(), dtype=h.dtype))
situation("through DLPack", EITHER, lambda m, h: torch.from_dlpack(h.detach()) * 2)
situation("as_tensor", EITHER, lambda m, h: torch.as_tensor(h) * 2)
situation("nested tensors", EITHER, lambda m, h: torch.nested.as_nested_tensor(list(h)).to_padded_tensor(0.0))
situation(
    "stripped in the middle only", EITHER, in_middle(lambda h: torch.tanh(h.as_subclass(Own)).as_subclass(torch.Tensor))
)
situation("detached in the middle only", EITHER, in_middle(lambda h: 3 * h.detach()))
situation("no rule in the middle only", RIGHT, in_middle(lambda h: torch.igamma(torch.ones_like(h), h.sigmoid())))
situation("no_grad inside", EITHER, without_grad)
situation("inference_mode inside", EITHER, inference)
situation("custom function, old form", RIGHT, lambda m, h: Cube.apply(h))
situation("custom function, new form", RIGHT, lambda m, h: CubeInTwo.apply(h))
situation("item in a condition", EITHER, lambda m, h: torch.stack([row if row[0].item() > 0 else 2 * row for row in h]))
situation("boolean indexing", RIGHT, lambda m, h: first_then(h.__setitem__(h < 0, 0.0), h))
situation("boolean selection and scatter", RIGHT, lambda m, h: h.masked_scatter(h > 0, h[h > 0] * 2))
SCRIPTED = scripted_function()


# Precisions ----------------------------------------------------------------------------------------------------------
def normed_in_float32(m, h):
    f = h.to(torch.float32)
    return (f * torch.rsqrt(f.square().mean(-1, keepdim=True) + 1e-6)).to(h.dtype)


def autocast_inside(m, h):
    with torch.autocast("cpu", torch.bfloat16):
        return m.extra(h).to(h.dtype)


situation("float32 casts inside", EITHER, normed_in_float32)
situation("float() inside", EITHER, lambda m, h: torch.tanh(h.float()).type_as(h))
situation("half inside", EITHER, lambda m, h: torch.tanh(h.half()).to(h.dtype))
situation("bfloat16 inside", EITHER, lambda m, h: torch.tanh(h.bfloat16()).to(h.dtype))
situation(
    "returns float32 always",
    EITHER,
    lambda m, h: h,
    wrap=lambda model: Function(lambda m, x: m.model(x).float(), model=model),
)
situation("autocast inside", EITHER, autocast_inside, training_only(lambda: nn.Linear(6, 6)))
situation("double inside", RIGHT, lambda m, h: torch.tanh(h.double()).to(h.dtype))
situation("tensors of the default dtype inside", RIGHT, lambda m, h: torch.cat((h, torch.ones(len(h), 1)), 1)[:, :6])
situation("products with tensors of the default dtype", EITHER, lambda m, h: h @ torch.eye(6))
situation(
    "float32 buffers as attributes", EITHER, lambda m, h: h @ m.matrix, with_attribute(matrix=lambda: torch.eye(6))
)
situation("integers of values", RIGHT, lambda m, h: (4 * h).long().to(h.dtype) / 4)
situation(
    "set_default_dtype inside", EITHER, lambda m, h: h + torch.zeros(6, dtype=torch.get_default_dtype()).to(h.dtype)
)


# Inputs --------------------------------------------------------------------------------------------------------------
def embedded(m):
    torch.manual_seed(2)
    m.table = nn.Embedding(9, 5)


TOKENS = torch.tensor([[1], [5], [0], [8], [3], [2]])
situation("tokens", RIGHT, prepare=embedded, before=lambda m, x: m.table(x[:, 0]), x=TOKENS)
situation("tokens of int32", RIGHT, prepare=embedded, before=lambda m, x: m.table(x[:, 0]), x=TOKENS.int())
situation("tokens of a vector", EITHER, prepare=embedded, before=lambda m, x: m.table(x), x=TOKENS[:, 0])
situation(
    "integers as numbers",
    EITHER,
    before=lambda m, x: x.to(m.back.state_dict()[next(iter(m.back.state_dict()))].dtype),
    x=(3 * INPUTS).long(),
)
situation("boolean inputs", EITHER, before=lambda m, x: x.to(next(m.parameters()).dtype), x=INPUTS > 0)
situation(
    "bytes, an image",
    EITHER,
    before=lambda m, x: x.to(next(m.parameters()).dtype) / 255,
    x=(INPUTS.abs() * 80).to(torch.uint8),
)
situation("half inputs", EITHER, before=lambda m, x: x.to(next(m.parameters()).dtype), x=INPUTS.half())
situation(
    "double inputs for a float32 model", EITHER, before=lambda m, x: x.to(next(m.parameters()).dtype), x=INPUTS.double()
)
situation("inputs that are not contiguous", RIGHT, x=INPUTS.T.contiguous().T)
situation("inputs that repeat", RIGHT, x=INPUTS[[0, 1, 0, 1, 1]])
situation("one input", RIGHT, x=INPUTS[:1])


def needs_two(m, x):
    if len(x) < 2:
        raise RuntimeError("two inputs are needed")
    return x


# Other returns and structure -----------------------------------------------------------------------------------------
def returns(change):
    return lambda model: Function(lambda m, x: change(m.model(x)), model=model)


situation("returns a tuple", REFUSED, wrap=returns(lambda y: (y, y)))
situation("returns a dictionary", REFUSED, wrap=returns(lambda y: {"y": y}))  # "logits" would be chosen
situation("returns None", REFUSED, wrap=returns(lambda y: None))
situation("returns integers", EITHER, wrap=returns(lambda y: y.argmax(-1)))
situation("returns complex numbers", EITHER, wrap=returns(lambda y: torch.fft.fft(y)))
situation("returns its transpose", REFUSED, wrap=returns(lambda y: y.T))
situation("returns a subclass", EITHER, wrap=returns(lambda y: y.as_subclass(Own)))
situation("returns a vector", RIGHT, wrap=returns(lambda y: y[:, 0]))
situation("returns an image", RIGHT, wrap=returns(lambda y: y[:, :, None].expand(-1, 2, 3)))
situation(
    "returns the parameters' norm",
    RIGHT,
    wrap=lambda model: Function(lambda m, x: m.model(x) * sum(p.square().sum() for p in m.parameters()), model=model),
)
situation("fails for one input", REFUSED, before=needs_two)
situation(
    "parameters in a list",
    RIGHT,
    lambda m, h: sum(h * p for p in m.many),
    lambda m: setattr(m, "many", nn.ParameterList(torch.randn(6) for _ in range(3))),
)
situation(
    "one module in two places",
    RIGHT,
    lambda m, h: m.one(m.two(h)),
    lambda m: [setattr(m, "one", nn.Linear(6, 6)), setattr(m, "two", m.one)],
)
situation("suppresses errors", EITHER, lambda m, h: suppressed(h))
situation("isinstance and type checks", EITHER, lambda m, h: 2 * h if type(h) is torch.Tensor else h)
situation(
    "reads sizes and strides", RIGHT, lambda m, h: h.as_strided((len(h), 6), (h.stride(0), h.stride(1))) * h.stride(1)
)


def suppressed(h):
    with contextlib.suppress(Exception):
        return h.tanh()
    return h
