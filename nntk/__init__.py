"""Nonlocal neural tangent kernels: finite, randomly displaced parameter differences instead of gradients.

The main entry points are :class:`NonlocalNTK` and :func:`local_ntk`; :class:`FixedKernel` and :class:`Attention` say
what displacements weigh, :mod:`nntk.activations` holds sign, step,
quantise and sawtooth as modules, :mod:`nntk.kernels` the batched operations underneath.
"""

from importlib.metadata import version

from nntk import activations
from nntk.attention import Attention
from nntk.general import BlackBox
from nntk.kernels.fixed_weights import EffectiveSampleWarning, FixedKernel
from nntk.local_ntk import local_ntk
from nntk.monte_carlo import monte_carlo_error
from nntk.nonlocal_ntk import NonlocalNTK

__all__ = [
    "Attention",
    "BlackBox",
    "EffectiveSampleWarning",
    "FixedKernel",
    "NonlocalNTK",
    "activations",
    "local_ntk",
    "monte_carlo_error",
]
__version__ = version("nntk")
