"""Fourier transforms, of whole signals and of windows of them."""

from typing import Any

import torch

from nntk.propagation.context import PropagationContext
from nntk.propagation.displaced_tensor import is_displaced, primal, rounded_primal, with_tangent
from nntk.propagation.registry import COMPLEX, RULES, NoRule, Rule
from nntk.propagation.rules.linear import linear_rule, split_leading_axis

_TRANSFORMS = (
    "fft", "ifft", "rfft", "irfft", "hfft", "ihfft", "fft2", "ifft2", "rfft2", "irfft2", "hfft2", "ihfft2", "fftn",
    "ifftn", "rfftn", "irfftn", "hfftn", "ihfftn", "fftshift", "ifftshift",
)  # fmt: skip
for _name in _TRANSFORMS:
    _function = getattr(torch.fft, _name)
    RULES[_function] = COMPLEX[_function] = linear_rule(_function)


def _windowed_rule(function: Any) -> Rule:
    """Return the rule of a transform of windows, which is linear in the signal alone."""

    def apply(ctx: PropagationContext, x: Any, *arguments: Any, **options: Any) -> Any:
        if any(is_displaced(leaf) for leaf in (*arguments, *options.values())):
            raise NoRule("model transforms a signal under a displaced window, which has no rule.")
        value = ctx.cached(lambda: function(primal(x), *primal(arguments), **primal(options)), function)
        rest = [rounded_primal(ctx, leaf) for leaf in arguments]
        others = {name: rounded_primal(ctx, leaf) for name, leaf in options.items()}
        # A transform of windows has no rule for further axes.
        tangent = torch.stack([function(dx, *rest, **others) for dx in x.tangent.flatten(0, 1)])
        return with_tangent(ctx, value, split_leading_axis(ctx, tangent))

    return apply


for _function in (torch.stft, torch.Tensor.stft):
    RULES[_function] = COMPLEX[_function] = _windowed_rule(torch.stft)
for _function in (torch.istft, torch.Tensor.istft):
    RULES[_function] = COMPLEX[_function] = _windowed_rule(torch.istft)
