"""Nonlocal neural tangent kernels: finite, randomly displaced parameter differences instead of gradients.

Begin with :class:`NonlocalNTK`, the nonlocal kernel of any model, and :class:`LocalNTK`, the ordinary one, which
:func:`local_ntk` computes in one call.
:class:`FixedKernel` and :class:`Attention` choose the weights of displacements. :class:`KernelRidge` fits data,
:class:`GPyTorchKernel` serves gaussian processes, :class:`GradientFlow` and :class:`CrossEntropyFlow` predict training,
:class:`KernelTracker` records the kernel along training, and :class:`NonlocalGradientDescent` trains without gradients.
:func:`compare` says how alike two kernels are, and :func:`attribution_scores` which training examples an output owes
to. :func:`save`, :func:`load` and :func:`write_kernel` handle files. :func:`warm_up` compiles what a first call needs.
:mod:`nntk.activations` holds sign, step, quantise and sawtooth as modules, :mod:`nntk.kernels` the batched
operations, and :mod:`nntk.distributed` the same kernels over a group of ranks.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

from nntk import activations
from nntk.attention import Attention
from nntk.differences.digits import RoundingWarning
from nntk.estimators.errors.estimate import Estimate
from nntk.estimators.monte_carlo import monte_carlo_error
from nntk.files.matrix_file import write_kernel
from nntk.files.storage import load, save
from nntk.kernel import NonlocalNTK
from nntk.kernels.fixed_weights import EffectiveSampleWarning, FixedKernel
from nntk.learning.attribution import attribution_scores, linear_datamodeling_score
from nntk.learning.cross_entropy import CrossEntropyFlow
from nntk.learning.descent import NonlocalGradientDescent
from nntk.learning.gradient_flow import FlowEnsemble, GradientFlow
from nntk.learning.tracking import KernelRecord, KernelTracker
from nntk.linalg.comparison import KernelComparison, Statistic, compare
from nntk.linalg.operator import KernelOperator
from nntk.local.kernel import LocalNTK
from nntk.local.local_ntk import local_ntk
from nntk.local.operator import LocalNTKOperator
from nntk.models.black_box import BlackBox
from nntk.models.data.inputs import Inputs
from nntk.models.data.streams import Stream
from nntk.preparation import warm_up

if TYPE_CHECKING:
    from nntk import distributed as distributed
    from nntk.learning.gaussian_process import GPyTorchKernel
    from nntk.learning.regression import KernelRidge, KernelRidgeClassifier

__all__ = [
    "Attention",
    "BlackBox",
    "CrossEntropyFlow",
    "EffectiveSampleWarning",
    "Estimate",
    "FixedKernel",
    "FlowEnsemble",
    "GPyTorchKernel",
    "GradientFlow",
    "Inputs",
    "KernelComparison",
    "KernelOperator",
    "KernelRecord",
    "KernelRidge",
    "KernelRidgeClassifier",
    "KernelTracker",
    "LocalNTK",
    "LocalNTKOperator",
    "NonlocalGradientDescent",
    "NonlocalNTK",
    "RoundingWarning",
    "Statistic",
    "Stream",
    "activations",
    "attribution_scores",
    "compare",
    "linear_datamodeling_score",
    "load",
    "local_ntk",
    "monte_carlo_error",
    "save",
    "warm_up",
    "write_kernel",
]


_ON_DEMAND = {
    "GPyTorchKernel": ("learning.gaussian_process", "gpytorch", "gp"),
    "KernelRidge": ("learning.regression", "scikit-learn", "learn"),
    "KernelRidgeClassifier": ("learning.regression", "scikit-learn", "learn"),
}
"""Names that need another library: their module, the library, and the extra that installs it."""


def __getattr__(name: str) -> object:
    """Import a name that needs scikit-learn or gpytorch, or the kernels over ranks, on its first use."""
    if name == "distributed":
        return import_module("nntk.distributed")
    if name not in _ON_DEMAND:
        raise AttributeError(f"module 'nntk' has no attribute {name!r}")
    module, library, extra = _ON_DEMAND[name]
    try:
        value: object = getattr(import_module(f"nntk.{module}"), name)
    except ImportError as error:
        raise ImportError(f"nntk.{name} needs {library}: pip install 'nntk[{extra}]' ({error})") from error
    return value


__version__ = version("nntk")
