"""Common modules and functional calls in small models: which ones propagate by rules, and which fall to copies.

``python tests/contract/survey.py [pattern]`` prints a line for each one that has no rule, or whose differences are
wrong, and a summary; ``--all`` prints the others too.
"""

import argparse
import re
import warnings

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, prune, rnn

from nntk import NonlocalNTK
from nntk.models.recognise import NotRecognised

MODULES, CALLS = {}, {}
"""What is surveyed by name: the shape of an input's displaced values, and a module or a function of them."""
LENGTHS = (5, 2, 4, 1)


def modules(shape, entries):
    """Enter modules that act on displaced values of a shape, each with a name or with its class as its name."""
    for make in entries:
        text = re.sub(r"\s+", " ", make if isinstance(make, str) else make.__name__)
        MODULES[f"{text} on {len(shape)} axes"] = (shape, make)


def calls(shape, entries):
    """Enter functions that are called with displaced values of a shape."""
    for name, function in entries.items():
        CALLS[name] = (shape, function)


def parametrized(make):
    """Return functions that make a linear layer and a convolution with a parametrised weight."""
    return {
        f"{make.__name__} of linear": lambda: make(nn.Linear(6, 6)),
        f"{make.__name__} of conv": lambda: nn.Sequential(nn.Unflatten(1, (6, 1)), make(nn.Conv1d(6, 4, 1))),
    }


ONE, TWO, THREE, FOUR = (6,), (7, 6), (4, 8, 8), (2, 4, 6, 6)
UNITS = (
    "nn.ELU()", "nn.CELU(0.5)", "nn.SELU()", "nn.GELU()", "nn.GELU('tanh')", "nn.GLU()", "nn.Hardshrink(0.1)",
    "nn.Hardsigmoid()", "nn.Hardswish()", "nn.Hardtanh()", "nn.LeakyReLU()", "nn.LogSigmoid()", "nn.LogSoftmax(-1)",
    "nn.Mish()", "nn.PReLU()", "nn.ReLU()", "nn.ReLU6()", "nn.RReLU()", "nn.SiLU()", "nn.Sigmoid()", "nn.Softmax(-1)",
    "nn.Softmax2d()", "nn.Softmin(-1)", "nn.Softplus()", "nn.Softplus(2.0, 10.0)", "nn.Softshrink()", "nn.Softsign()",
    "nn.Tanh()", "nn.Tanhshrink()", "nn.Threshold(0.1, 0.0)", "nn.Threshold(0.1, 20.0)", "nn.Identity()",
    "nn.ReLU(inplace=True)", "nn.ELU(inplace=True)", "nn.SiLU(inplace=True)", "nn.Hardswish(inplace=True)",
    "nn.Threshold(0.1, 0.1, inplace=True)", "nn.Mish(inplace=True)", "nn.Dropout()", "nn.Dropout2d()",
    "nn.Dropout3d()", "nn.AlphaDropout()", "nn.FeatureAlphaDropout()", "nn.Dropout(inplace=True)",
)  # fmt: skip
modules(THREE, UNITS)
modules(
    ONE,
    (
        "nn.Linear(6, 3)", "nn.LazyLinear(3)", "nn.LayerNorm(6)", "nn.RMSNorm(6)", "nn.RMSNorm(6, eps=1e-6)",
        "nn.BatchNorm1d(6)", "nn.GroupNorm(2, 6)", "nn.Unflatten(1, (2, 3))", "nn.LSTMCell(6, 4)", "nn.GRUCell(6, 4)",
        "nn.RNNCell(6, 4)", "nn.RNNCell(6, 4, nonlinearity='relu')",
    ),
)  # fmt: skip
modules(
    TWO,
    (
        "nn.Conv1d(7, 4, 3, padding=1)", "nn.Conv1d(7, 4, 2, padding='same')", "nn.Conv1d(7, 7, 3, groups=7)",
        "nn.Conv1d(7, 4, 3, padding=1, padding_mode='reflect')", "nn.ConvTranspose1d(7, 4, 3, 2, 1, 1)",
        "nn.LazyConv1d(3, 2)", "nn.MaxPool1d(2)", "nn.AvgPool1d(2, ceil_mode=True)", "nn.LPPool1d(2.0, 2)",
        "nn.AdaptiveAvgPool1d(4)", "nn.AdaptiveMaxPool1d(4)", "nn.BatchNorm1d(7)", "nn.InstanceNorm1d(7)",
        "nn.InstanceNorm1d(7, affine=True, track_running_stats=True)", "nn.LayerNorm((7, 6))",
        "nn.LSTM(6, 4, batch_first=True)", "nn.LSTM(6, 4, 2, bidirectional=True, batch_first=True, proj_size=3)",
        "nn.GRU(6, 4, batch_first=True)", "nn.RNN(6, 4, batch_first=True)", "nn.ReflectionPad1d(1)",
        "nn.ReplicationPad1d(1)", "nn.ZeroPad1d(1)", "nn.ConstantPad1d(1, 2.0)", "nn.CircularPad1d(1)",
        "nn.TransformerEncoderLayer(6, 2, 8, batch_first=True)",
        "nn.TransformerEncoderLayer(6, 2, 8, batch_first=True, norm_first=True, activation='gelu')",
        "nn.Upsample(scale_factor=2)", "nn.Upsample(scale_factor=2, mode='linear')", "nn.Flatten()",
        "nn.ChannelShuffle(7)",
    ),
)  # fmt: skip
modules(
    THREE,
    (
        "nn.Conv2d(4, 3, 3)", "nn.Conv2d(4, 4, 3, 2, 1, 2, 4)", "nn.Conv2d(4, 3, 2, padding='same')",
        "nn.Conv2d(4, 3, 3, padding=1, padding_mode='circular')", "nn.ConvTranspose2d(4, 3, 3, 2)",
        "nn.LazyConv2d(3, 2)",
        "nn.MaxPool2d(3, 2, 1)", "nn.MaxPool2d(2, ceil_mode=True)", "nn.AvgPool2d(3, 2, 1, count_include_pad=False)",
        "nn.LPPool2d(2.0, 2)", "nn.AdaptiveAvgPool2d((3, None))", "nn.AdaptiveMaxPool2d(3)", "nn.BatchNorm2d(4)",
        "nn.InstanceNorm2d(4, affine=True)", "nn.GroupNorm(2, 4)", "nn.LocalResponseNorm(2)", "nn.CrossMapLRN2d(2)",
        "nn.PixelShuffle(2)", "nn.PixelUnshuffle(2)", "nn.ChannelShuffle(2)", "nn.Upsample(scale_factor=2)",
        "nn.UpsamplingBilinear2d(scale_factor=2)", "nn.UpsamplingNearest2d(scale_factor=2)",
        "nn.Upsample(scale_factor=1.5, mode='bicubic')", "nn.ReflectionPad2d(1)", "nn.ReplicationPad2d(1)",
        "nn.ZeroPad2d(1)", "nn.CircularPad2d(1)", "nn.Unfold(2)", "nn.PReLU(4)", "nn.Flatten(2)",
    ),
)  # fmt: skip
modules(
    FOUR,
    (
        "nn.Conv3d(2, 3, 2)", "nn.ConvTranspose3d(2, 3, 2)", "nn.MaxPool3d(2)", "nn.MaxPool3d(2, ceil_mode=True)",
        "nn.AvgPool3d(2)", "nn.LPPool3d(2.0, 2)", "nn.AdaptiveAvgPool3d(2)", "nn.AdaptiveMaxPool3d(2)",
        "nn.BatchNorm3d(2)", "nn.InstanceNorm3d(2)", "nn.ReplicationPad3d(1)", "nn.ReflectionPad3d(1)",
        "nn.Upsample(scale_factor=2, mode='trilinear')",
    ),
)  # fmt: skip
for _name, _make in {
    **parametrized(parametrizations.weight_norm),
    **parametrized(parametrizations.spectral_norm),
    **parametrized(parametrizations.orthogonal),
    **parametrized(nn.utils.spectral_norm),
    "orthogonal by cayley": lambda: parametrizations.orthogonal(nn.Linear(6, 6), orthogonal_map="cayley"),
    "orthogonal by householder": lambda: parametrizations.orthogonal(nn.Linear(6, 4), orthogonal_map="householder"),
    "orthogonal of a wide weight": lambda: parametrizations.orthogonal(nn.Linear(6, 4)),
    "orthogonal without a base": lambda: parametrizations.orthogonal(nn.Linear(6, 6), use_trivialization=False),
    "pruned": lambda: prune.l1_unstructured(nn.Linear(6, 6), "weight", 0.4),
}.items():
    MODULES[_name] = (ONE, _make)


def packed(layer):
    """Return a function of sequences that are packed by their lengths, one layer and padded again."""

    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = eval(layer)

        def forward(self, h):
            lengths = torch.tensor(LENGTHS[: len(h)])
            parts = rnn.pack_padded_sequence(h, lengths, batch_first=True, enforce_sorted=False)
            outputs, states = self.layer(parts)
            padded, _ = rnn.pad_packed_sequence(outputs, batch_first=True, total_length=7)
            last = states[0] if isinstance(states, tuple) else states
            return torch.cat((padded.flatten(1), last.transpose(0, 1).flatten(1)), 1)

    return Packed


for _layer in (
    "nn.LSTM(6, 4, batch_first=True)",
    "nn.LSTM(6, 4, 2, bidirectional=True, batch_first=True)",
    "nn.GRU(6, 4, batch_first=True, bidirectional=True)",
    "nn.RNN(6, 4, batch_first=True)",
    "nn.RNN(6, 4, 2, nonlinearity='relu', batch_first=True)",
):
    MODULES[f"packed sequences in {_layer}"] = (TWO, packed(_layer))


class Bag(nn.Module):
    """Bags of tokens, weighted by displaced values or not, in one of the forms of ``nn.EmbeddingBag``."""

    def __init__(self, *, weighted=False, offsets=False, **options):
        """Create the table of ten rows."""
        super().__init__()
        self.table = nn.EmbeddingBag(10, 4, include_last_offset=offsets == "last", **options)
        self.weighted, self.offsets = weighted, offsets

    def forward(self, h):
        """Return bags, of the first three displaced values and of tokens that depend on nothing."""
        tokens = torch.tensor([[1, 4, 4], [0, 2, 9], [3, 3, 3], [1, 2, 0]])[: len(h)]
        weights = h[:, :3] if self.weighted else None
        if not self.offsets:
            return self.table(tokens, per_sample_weights=weights) + h[:, :4]
        offsets = torch.arange(0, 3 * len(h) + (self.offsets == "last"), 3)
        weights = None if weights is None else weights.reshape(-1)
        return self.table(tokens.reshape(-1), offsets, weights) + h[:, :4]


for _mode in ("sum", "mean", "max"):
    for _offsets in (False, True, "last"):
        for _padding in (None, 4):
            MODULES[f"bags, {_mode}, offsets {_offsets}, padding {_padding}"] = (
                ONE,
                lambda mode=_mode, offsets=_offsets, padding=_padding: Bag(
                    mode=mode, offsets=offsets, padding_idx=padding
                ),
            )
for _offsets in (False, True, "last"):
    MODULES[f"bags, weighted, offsets {_offsets}"] = (
        ONE,
        lambda offsets=_offsets: Bag(mode="sum", offsets=offsets, weighted=True),
    )


class OfTwo(nn.Module):
    """A module of two displaced arguments."""

    def __init__(self, module, *, second=None):
        """Keep the module, and the function that makes its second argument of the first."""
        super().__init__()
        self.module, self.second = module, second or (lambda h: h.flip(-1))

    def forward(self, h):
        """Return the module's result."""
        result = self.module(h, self.second(h))
        return result if isinstance(result, torch.Tensor) else result[0]


for _name, _make in {
    "nn.Bilinear": lambda: OfTwo(nn.Bilinear(6, 6, 4)),
    "nn.CosineSimilarity": lambda: OfTwo(nn.CosineSimilarity(-1)),
    "nn.PairwiseDistance": lambda: OfTwo(nn.PairwiseDistance()),
    "nn.TransformerDecoderLayer": lambda: OfTwo(nn.TransformerDecoderLayer(6, 2, 8, batch_first=True)),
    "nn.Transformer": lambda: OfTwo(nn.Transformer(6, 2, 1, 1, 8, batch_first=True)),
    "nn.MultiheadAttention": lambda: (
        OfTwo(nn.MultiheadAttention(6, 2, batch_first=True), second=lambda h: h) and Self()
    ),
    "nn.AdaptiveLogSoftmaxWithLoss": lambda: Adaptive(),
}.items():
    MODULES[_name] = (ONE if "Bilinear" in _name or "Adaptive" in _name else TWO, _make)


class Self(nn.Module):
    """Self-attention with a mask and padding."""

    def __init__(self):
        """Create the layer, of width six."""
        super().__init__()
        self.layer = nn.MultiheadAttention(6, 2, batch_first=True)

    def forward(self, h):
        """Return outputs and weights."""
        padding = torch.arange(h.shape[1]) > torch.tensor(LENGTHS)[: len(h), None]
        values, weights = self.layer(h, h, h, key_padding_mask=padding)
        return torch.cat((values.flatten(1), weights.flatten(1)), 1)


class Adaptive(nn.Module):
    """The logarithms of an adaptive softmax."""

    def __init__(self):
        """Create the layer, of width six."""
        super().__init__()
        self.layer = nn.AdaptiveLogSoftmaxWithLoss(6, 12, [4, 8])

    def forward(self, h):
        """Return logarithms of probabilities."""
        return self.layer.log_prob(h)


FIXED = torch.linspace(-1, 1, 6, dtype=torch.float64)
MASK = torch.tensor([True, False, True, True, False, True])


def fixed(h, *shape):
    """Return numbers that depend on nothing, in the dtype of values."""
    return torch.linspace(-1, 1, torch.Size(shape).numel(), dtype=h.dtype).reshape(shape)


calls(
    ONE,
    {
        "cumprod": lambda h: h.cumprod(-1),
        "logcumsumexp": lambda h: h.logcumsumexp(-1),
        "cummax": lambda h: h.cummax(-1)[0],
        "cummin": lambda h: h.cummin(-1)[0],
        "atan2": lambda h: torch.atan2(h, h.flip(-1)),
        "asinh": torch.asinh,
        "acosh": lambda h: torch.acosh(1.2 + h.square()),
        "sinc": torch.sinc,
        "lgamma": lambda h: torch.lgamma(h.abs() + 0.4),
        "digamma": lambda h: torch.digamma(h.abs() + 0.4),
        "erfinv": lambda h: torch.erfinv(0.9 * h.tanh()),
        "xlogy": lambda h: torch.xlogy(h.abs(), h.abs() + 0.1),
        "ldexp": lambda h: torch.ldexp(h, torch.tensor(2)),
        "copysign": lambda h: torch.copysign(h, h.flip(-1)),
        "fmod": lambda h: torch.fmod(h, 0.7),
        "remainder": lambda h: h % 0.7,
        "floor_divide": lambda h: h // 0.7,
        "div floor": lambda h: torch.div(h, 0.7, rounding_mode="floor"),
        "i0": torch.i0,
        "deg2rad": torch.deg2rad,
        "rad2deg": torch.rad2deg,
        "nan_to_num": torch.nan_to_num,
        "isnan": lambda h: torch.where(torch.isnan(h), 0.0, h),
        "isfinite": lambda h: h * h.isfinite(),
        "isinf branch": lambda h: h.clamp(-5, 5) if torch.isinf(h).any() else h,
        "hardshrink": F.hardshrink,
        "threshold": lambda h: F.threshold(h, 0.1, 20.0),
        "ntxent": lambda h: F.normalize(h, dim=-1) @ F.normalize(h, dim=-1).mT,
        "mask index": lambda h: h[:, MASK],
        "masked_select": lambda h: h.masked_select(MASK).reshape(len(h), -1),
        "mask write": lambda h: masked(h),
        "masked_scatter": lambda h: h.masked_scatter(MASK, h * 2),
        "index_fill": lambda h: h.index_fill(1, torch.tensor([1, 3]), 0.5),
        "index_put": lambda h: h.clone().index_put((torch.arange(len(h)), torch.arange(len(h))), h[:, 0]),
        "index_put add": lambda h: h.index_put(
            (torch.zeros(len(h), dtype=torch.long), torch.arange(len(h))), h[:, 0] * 0, accumulate=True
        ),
        "put_along": lambda h: h.scatter(1, torch.tensor([[1]]).expand(len(h), 1), h[:, :1]),
        "aminmax": lambda h: torch.stack(torch.aminmax(h, dim=-1), -1),
        "median": lambda h: h.median(-1)[0],
        "nanmedian": lambda h: h.nanmedian(-1)[0],
        "kthvalue": lambda h: h.kthvalue(2, -1)[0],
        "mode": lambda h: h.round().mode(-1)[0] + h[:, 0],
        "quantile": lambda h: h.quantile(0.3, -1),
        "quantiles": lambda h: h.quantile(torch.tensor([0.2, 0.5], dtype=h.dtype), -1).T,
        "std_mean": lambda h: torch.stack(torch.std_mean(h, -1), -1),
        "cov": lambda h: (
            torch.cov(h[:, :, None].flatten(1)[:, :6].T @ h * 0 + torch.diag_embed(h)[0]) * 0 + h[:, :, None]
        ),
        "trapezoid": lambda h: torch.trapezoid(h, dim=-1),
        "dist": lambda h: torch.stack([torch.dist(a, FIXED.to(h)) for a in h]),
        "mse": lambda h: F.mse_loss(h, fixed(h, 6).expand_as(h), reduction="none"),
        "l1": lambda h: F.l1_loss(h, fixed(h, 6).expand_as(h), reduction="none"),
        "huber": lambda h: F.huber_loss(h, fixed(h, 6).expand_as(h), reduction="none"),
        "smooth l1": lambda h: F.smooth_l1_loss(h, fixed(h, 6).expand_as(h), reduction="none"),
        "cross entropy": lambda h: F.cross_entropy(h, torch.arange(len(h)), reduction="none"),
        "smoothed cross entropy": lambda h: F.cross_entropy(
            h, torch.arange(len(h)), reduction="none", label_smoothing=0.1
        ),
        "cross entropy of probabilities": lambda h: F.cross_entropy(h, h.softmax(-1), reduction="none"),
        "nll": lambda h: F.nll_loss(h.log_softmax(-1), torch.arange(len(h)), reduction="none"),
        "bce": lambda h: F.binary_cross_entropy_with_logits(h, fixed(h, 6).abs().expand_as(h), reduction="none"),
        "bce of probabilities": lambda h: F.binary_cross_entropy(
            h.sigmoid(), fixed(h, 6).abs().expand_as(h), reduction="none"
        ),
        "kl": lambda h: F.kl_div(h.log_softmax(-1), fixed(h, 6).abs().expand_as(h), reduction="none"),
        "gaussian nll": lambda h: F.gaussian_nll_loss(h, fixed(h, 6).expand_as(h), h.square() + 0.1, reduction="none"),
        "poisson nll": lambda h: F.poisson_nll_loss(h, fixed(h, 6).abs().expand_as(h), reduction="none"),
        "hinge": lambda h: F.hinge_embedding_loss(h, fixed(h, 6).sign().expand_as(h), reduction="none"),
        "soft margin": lambda h: F.soft_margin_loss(h, fixed(h, 6).sign().expand_as(h), reduction="none"),
        "triplet": lambda h: F.triplet_margin_loss(h, h.flip(-1), h.roll(1, -1), reduction="none"),
        "cosine loss": lambda h: F.cosine_embedding_loss(h, h.flip(-1), torch.ones(len(h)), reduction="none"),
        "margin": lambda h: F.multi_margin_loss(h, torch.arange(len(h)), reduction="none"),
        "fft": lambda h: torch.view_as_real(torch.fft.fft(h)).flatten(1),
        "rfft": lambda h: torch.fft.rfft(h).abs(),
        "irfft": lambda h: torch.fft.irfft(torch.fft.rfft(h) * torch.fft.rfft(fixed(h, 6)), n=6),
        "complex weight": lambda h: (
            (torch.view_as_complex(h.reshape(-1, 3, 2)) * torch.view_as_complex(fixed(h, 3, 2))).real
        ),
        "complex": lambda h: torch.view_as_real(torch.exp(1j * h)).flatten(1),
        "polar": lambda h: torch.polar(h[:, :3].abs(), h[:, 3:]).imag,
        "torch.complex": lambda h: torch.complex(h[:, :3], h[:, 3:]).abs(),
        "angle": lambda h: torch.fft.rfft(h).angle(),
        "conj": lambda h: (torch.fft.fft(h) * torch.fft.fft(h).conj()).real,
        "rope": lambda h: torch.view_as_real(
            torch.view_as_complex(h.reshape(len(h), 3, 2)) * torch.polar(torch.ones(3, dtype=h.dtype), fixed(h, 3))
        ).flatten(1),
        "hadamard": lambda h: torch.stack((h[..., ::2] + h[..., 1::2], h[..., ::2] - h[..., 1::2]), -1),
        "bucketize": lambda h: torch.bucketize(h, fixed(h, 5)).to(h.dtype),
        "searchsorted": lambda h: torch.searchsorted(fixed(h, 5), h).to(h.dtype),
        "to long": lambda h: (h * 3).long().to(h.dtype),
        "one_hot": lambda h: F.one_hot(h.argmax(-1), 6).to(h.dtype),
        "any": lambda h: (h > 0).any(-1).to(h.dtype),
        "all": lambda h: (h > -1).all(-1).to(h.dtype) + h[:, 0],
        "any of values": lambda h: h.relu().any(-1).to(h.dtype),
        "count_nonzero": lambda h: torch.count_nonzero(h.relu(), -1).to(h.dtype),
        "isclose": lambda h: torch.isclose(h, h + 1).to(h.dtype) + h,
        "allclose": lambda h: h if torch.allclose(h, h) else 2 * h,
        "branch on a mask": lambda h: h * 2 if bool((h > 1e3).any()) else h,
        "meshgrid": lambda h: torch.stack(torch.meshgrid(h[0], h[0], indexing="ij")).sum() * 0 + h,
        "vander": lambda h: torch.vander(h[0])[:1] * 0 + h,
        "multi_dot": lambda h: h @ torch.linalg.multi_dot((torch.eye(6, dtype=h.dtype), fixed(h, 6, 6))),
        "diag_embed": torch.diag_embed,
        "tril_indices": lambda h: torch.einsum("bi,bj->bij", h, h)[
            :, torch.tril_indices(6, 6)[0], torch.tril_indices(6, 6)[1]
        ],
        "outer sum": lambda h: h[:, :, None] + h[:, None],
        "einsum of three": lambda h: torch.einsum("...i,...j,ij->...i", h, h, fixed(h, 6, 6)),
        "einsum diagonal": lambda h: torch.einsum("bii->bi", h[:, :, None] * h[:, None]),
        "einsum repeated": lambda h: torch.einsum("bii,bi->b", h[:, :, None] * h[:, None], h),
        "einsum sublists": lambda h: torch.einsum(h, [0, 1], h, [0, 1], [0]),
        "einsum of four": lambda h: torch.einsum("bi,bi,bj,bj->b", h, h, h, h),
        "roll": lambda h: h.roll((1, 2), (1, 1)),
        "flip": lambda h: h.flip(-1),
        "unfold": lambda h: h.unfold(-1, 3, 1),
        "as_strided": lambda h: torch.as_strided(h.contiguous(), (len(h), 3), (6, 1)),
        "expand": lambda h: h[:, None].expand(-1, 3, -1),
        "take_along": lambda h: h.take_along_dim(h.argsort(-1), -1),
        "gumbel hard": lambda h: F.one_hot(h.argmax(-1), 6) * h.softmax(-1),
        "sparsemax": lambda h: sparsemax(h),
        "entmax": lambda h: (h.softmax(-1) * h.log_softmax(-1)).sum(-1),
        "addbmm": lambda h: torch.addbmm(h[0], h[:, :, None], h[:, None])[:1] * 0 + h,
        "pdist": lambda h: F.pdist(h)[:1] * 0 + h,
        "cdist": lambda h: torch.cdist(h, fixed(h, 5, 6)),
        "cdist by products": lambda h: torch.cdist(h, fixed(h, 5, 6), compute_mode="use_mm_for_euclid_dist"),
        "cdist p1": lambda h: torch.cdist(h, fixed(h, 5, 6), p=1.0),
        "cosine": lambda h: F.cosine_similarity(h[:, None], fixed(h, 5, 6), -1),
        "renorm": lambda h: torch.renorm(h, 2, 0, 1.0),
        "softplus low": lambda h: F.softplus(h, 1, 1),
        "signbit": lambda h: torch.signbit(h).to(h.dtype),
        "new_tensor": lambda h: h + h.new_tensor([1.0]),
        "fill_": lambda h: h + torch.empty_like(h).fill_(2.0),
        "zero_": lambda h: h + h.clone().zero_(),
        "nonzero of a constant": lambda h: h[:, MASK.nonzero()[:, 0]],
        "logsumexp of axes": lambda h: h.reshape(-1, 2, 3).logsumexp((1, 2)),
        "gradient": lambda h: torch.gradient(h, dim=-1)[0],
        "unique": lambda h: h + len(torch.unique(MASK)),
        "cartesian": lambda h: torch.combinations(FIXED.to(h), 2).sum() * h,
    },
)
calls(
    TWO,
    {
        "solve": lambda h: torch.linalg.solve(torch.eye(7, dtype=h.dtype) + 0.1 * h @ h.mT, h),
        "inverse": lambda h: torch.linalg.inv(torch.eye(7, dtype=h.dtype) + h @ h.mT),
        "slogdet": lambda h: torch.linalg.slogdet(torch.eye(7, dtype=h.dtype) + h @ h.mT)[1],
        "det": lambda h: torch.det(torch.eye(7, dtype=h.dtype) + h @ h.mT),
        "logdet": lambda h: torch.logdet(torch.eye(7, dtype=h.dtype) + h @ h.mT),
        "matrix_exp": lambda h: torch.matrix_exp(0.3 * (h @ h.mT).tanh()),
        "cholesky": lambda h: torch.linalg.cholesky(torch.eye(7, dtype=h.dtype) + h @ h.mT),
        "eigvalsh": lambda h: torch.linalg.eigvalsh(h @ h.mT),
        "pinv": lambda h: torch.linalg.pinv(h),
        "triangular": lambda h: torch.linalg.solve_triangular(
            (h @ h.mT).tril() + 2 * torch.eye(7, dtype=h.dtype), h, upper=False
        ),
        "cholesky_solve": lambda h: torch.cholesky_solve(h, (h @ h.mT).tril() + 2 * torch.eye(7, dtype=h.dtype)),
        "svd": lambda h: torch.linalg.svdvals(h),
        "nuclear": lambda h: torch.linalg.matrix_norm(h, "nuc"),
        "matrix_norm 1": lambda h: torch.linalg.matrix_norm(h, 1),
        "qr": lambda h: torch.linalg.qr(h)[1],
        "householder": lambda h: torch.linalg.householder_product(h, 0.5 * h[:, 0].tanh()),
        "addcmul_": lambda h: h.clone().addcmul_(h, h),
        "baddbmm": lambda h: torch.baddbmm(h @ h.mT, h, h.mT),
        "sdpa gqa": lambda h: F.scaled_dot_product_attention(
            h[:, None, :, :2].repeat(1, 4, 1, 1),
            h[:, None, :, 2:4].repeat(1, 2, 1, 1),
            h[:, None, :, 4:].repeat(1, 2, 1, 1),
            enable_gqa=True,
        ),
        "scatter mean": lambda h: torch.zeros(len(h), 3, 6, dtype=h.dtype).scatter_reduce(
            1, torch.tensor([0, 1, 2, 0, 1, 2, 0])[None, :, None].expand(len(h), 7, 6), h, "mean", include_self=False
        ),
        "scatter amax": lambda h: torch.zeros(len(h), 3, 6, dtype=h.dtype).scatter_reduce(
            1, torch.tensor([0, 1, 2, 0, 1, 2, 0])[None, :, None].expand(len(h), 7, 6), h, "amax", include_self=False
        ),
        "scatter amax self": lambda h: torch.zeros(len(h), 3, 6, dtype=h.dtype).scatter_reduce(
            1, torch.tensor([0, 1, 2, 0, 1, 2, 0])[None, :, None].expand(len(h), 7, 6), h, "amax"
        ),
        "scatter_add": lambda h: torch.zeros(len(h), 3, 6, dtype=h.dtype).scatter_add_(
            1, torch.tensor([0, 1, 2, 0, 1, 2, 0])[None, :, None].expand(len(h), 7, 6), h
        ),
        "index_reduce": lambda h: h.index_reduce(1, torch.tensor([0, 1, 1]), h[:, :3], "amax"),
        "segment_reduce": lambda h: torch.segment_reduce(h[0, :, 0], "sum", lengths=torch.tensor([3, 4])).sum() + h,
        "index_add_": lambda h: torch.zeros(len(h), 3, 6, dtype=h.dtype).index_add_(
            1, torch.tensor([0, 1, 2, 0, 1, 2, 0]), h
        ),
        "fold": lambda h: F.fold(h[:, :4, :4], (3, 3), 2),
        "pad reflect": lambda h: F.pad(h, (2, 1), mode="reflect"),
        "pad circular": lambda h: F.pad(h, (2, 1), mode="circular"),
        "lp_pool1d": lambda h: F.lp_pool1d(h.abs(), 2.0, 2),
        "sequence pad": lambda h: rnn.pad_sequence([h[0, :3], h[0]], batch_first=True).sum() * 0 + h,
        "writes by position": lambda h: positions(h),
        "gather time": lambda h: h.gather(1, torch.tensor([1, 0, 3])[: len(h), None, None].expand(-1, 1, 6)),
        "tensor_split": lambda h: torch.cat(h.tensor_split(3, 1)[::-1], 1),
        "linear attention": lambda h: F.elu(h) @ ((F.elu(h) + 1).mT @ h),
        "median time": lambda h: h.median(1).values,
        "sort time": lambda h: h.sort(1).values,
        "state space": lambda h: scan(h),
        "ctc": lambda h: F.ctc_loss(
            h.log_softmax(-1).transpose(0, 1),
            torch.ones(len(h), 2, dtype=torch.long),
            torch.full((len(h),), 7),
            torch.full((len(h),), 2),
            reduction="none",
        ),
    },
)
calls(
    THREE,
    {
        "grid_sample": lambda h: F.grid_sample(
            h,
            F.affine_grid(
                torch.eye(2, 3, dtype=h.dtype)[None].expand(len(h), -1, -1) * 0.8, list(h.shape), align_corners=False
            ),
            align_corners=False,
        ),
        "displaced grid": lambda h: F.grid_sample(h, h[:, :2].movedim(1, -1).tanh(), align_corners=False),
        "max_unpool": lambda h: F.max_unpool2d(*F.max_pool2d(h, 2, return_indices=True), 2),
        "max_pool indices": lambda h: F.max_pool2d(h, 2, return_indices=True)[0],
        "lp_pool2d": lambda h: F.lp_pool2d(h.abs(), 3.0, 2),
        "unfold": lambda h: F.unfold(h, 2),
        "area": lambda h: F.interpolate(h, size=(3, 3), mode="area"),
        "antialias": lambda h: F.interpolate(h, size=(3, 3), mode="bilinear", antialias=True),
        "nearest exact": lambda h: F.interpolate(h, size=(3, 5), mode="nearest-exact"),
        "fft2": lambda h: torch.fft.ifft2(torch.fft.fft2(h) * 0.5).real,
        "rfft2": lambda h: torch.fft.irfft2(torch.fft.rfft2(h, norm="ortho"), s=(8, 8), norm="ortho"),
        "channels_last": lambda h: h.to(memory_format=torch.channels_last) * 2,
        "contiguous": lambda h: h.contiguous(memory_format=torch.channels_last),
        "deform": lambda h: h.roll((1, 2), (2, 3)),
        "window partition": lambda h: (
            h.view(len(h), 4, 2, 4, 2, 4).permute(0, 2, 4, 3, 5, 1).reshape(len(h), -1, 16, 4)
        ),
        "drop path": lambda h: h * 1.0,
        "stochastic depth": lambda h: F.dropout2d(h, 0.5, False),
    },
)


def masked(h):
    """Write where a fixed mask holds."""
    out = h.clone()
    out[:, MASK] = out[:, ~MASK].repeat(1, 2)
    return out


def sparsemax(h):
    """Return the projection on the simplex."""
    values, _ = h.sort(-1, descending=True)
    sums, k = values.cumsum(-1) - 1, torch.arange(1, 7, dtype=h.dtype)
    size = (k * values > sums).sum(-1, keepdim=True)
    return (h - sums.gather(-1, size - 1) / size.to(h.dtype)).clamp(min=0)


def positions(h):
    """Write positions one after another."""
    out = torch.empty_like(h)
    for t in range(h.shape[1]):
        out[:, t] = h[:, t] * (t + 1)
    return out


def scan(h):
    """Return the states of a selective recurrence."""
    state, states = torch.zeros_like(h[:, 0]), []
    for part in h.unbind(1):
        state = torch.exp(-F.softplus(part)) * state + part
        states.append(state)
    return torch.stack(states, 1)


class Around(nn.Module):
    """A linear layer, and what is surveyed on its displaced outputs."""

    def __init__(self, shape, what):
        """Create the layer, for inputs of width five."""
        super().__init__()
        self.shape = shape
        self.first = nn.Linear(5, torch.Size(shape).numel())
        self.what = what

    def forward(self, x):
        """Return outputs [N, C]."""
        result = self.what(self.first(x).view(len(x), *self.shape) * 1)  # A view must not be written to.
        while not isinstance(result, torch.Tensor):
            result = result[0]
        return result.reshape(len(x), -1)


def judge(shape, what, gammas=(1e-1, 1e-4)):
    """Return a verdict on a module or function: "rules", the reason why it has none, or that its differences are wrong.

    Args:
        shape: Shape of the displaced values of an input.
        what: A function; or the text of a module, or a function that makes one.
        gammas: Length scales at which rules are compared with plain evaluation in float64.
    """
    torch.manual_seed(0)
    model, x = Around(shape, what).eval(), torch.randn(3, 5)
    with warnings.catch_warnings(action="ignore"), torch.no_grad():
        try:
            model(x)  # Lazy modules get their shapes.
        except Exception as error:
            return f"not a model: {error}"
        for gamma in gammas:
            options = {"gamma": gamma, "samples": 4}
            try:
                expected = NonlocalNTK(model, propagation="direct", **options).differences(x)
            except Exception as error:
                return f"refused: {error}"
            try:
                found = NonlocalNTK(model, propagation="difference", **options).differences(x)
            except NotRecognised as error:
                return f"copies: {error}"
            except Exception as error:
                return f"failed: {type(error).__name__}: {error}"
            error = float((found - expected).norm() / expected.norm().clamp(min=1e-30))
            if not error < (1e-5 if gamma > 1e-2 else 1e-4):
                return f"WRONG: error {error:.1e} at gamma {gamma:.0e}"
    return "rules"


def entries(pattern=""):
    """Yield the name, the shape and the module or function of what is surveyed and matches a regular expression."""
    for name, (shape, make) in MODULES.items():
        if re.search(pattern, name):
            torch.manual_seed(1)
            yield name, shape, eval(make) if isinstance(make, str) else make()
    for name, (shape, function) in CALLS.items():
        if re.search(pattern, name):
            yield name, shape, function


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pattern", nargs="?", default="", help="regular expression of names")
    parser.add_argument("--all", action="store_true", help="print what has rules, too")
    options, verdicts = parser.parse_args(), []
    with warnings.catch_warnings(action="ignore"):
        for name, shape, what in entries(options.pattern):
            verdicts.append(judge(shape, what))
            if options.all or verdicts[-1] != "rules":
                print(f"{name}: {verdicts[-1]}", flush=True)
    print(f"{verdicts.count('rules')} of {len(verdicts)} propagate by rules.")
