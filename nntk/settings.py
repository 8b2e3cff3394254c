"""Settings of a nonlocal kernel: one frozen value that is checked once and handed on."""

from dataclasses import dataclass

import torch

from nntk.attention import Attention
from nntk.kernels import checks
from nntk.kernels.assemble import ESTIMATORS, NORMALIZATIONS, OUTPUTS
from nntk.kernels.fixed_weights import FixedKernel
from nntk.kernels.perturb import PRECISIONS, PROPAGATION
from nntk.kernels.perturb.config import default_bytes
from nntk.kernels.philox import parse, split_seed

_GAMMA_HINT = "gamma is the length scale of the displacements, e.g. 0.1; the kernel tends to the NTK as it falls."
_SAMPLES_HINT = "Each sample is one displacement theta + delta_m; a thousand give about 5 % error."


@dataclass(frozen=True)
class KernelSettings:
    """Settings of :class:`nntk.NonlocalNTK`, which documents them.

    Raises:
        ValueError: If a number is out of range, a name unknown, or settings exclude each other.
        TypeError: If a setting has the wrong type.
    """

    gamma: float
    samples: int
    directions: str
    antithetic: bool
    weights: FixedKernel | Attention
    estimator: str
    normalization: str
    outputs: str
    propagation: str
    precision: str
    draws: int | None
    seed: int
    max_memory: int | None

    def __post_init__(self) -> None:
        # A frozen value can be normalised through its dictionary alone.
        normalised = vars(self)
        normalised["gamma"] = checks.positive_float("gamma", self.gamma, 1e-30, 1e30, _GAMMA_HINT)
        normalised["samples"] = checks.integer("samples", self.samples, 1, 2**32, _SAMPLES_HINT)
        normalised["directions"] = str(parse(self.directions))
        checks.boolean("antithetic", self.antithetic)
        if not isinstance(self.weights, FixedKernel | Attention):
            raise TypeError(
                "weights must be a FixedKernel or an Attention, such as nntk.FixedKernel('gaussian'), "
                f"got {self.weights!r} ({type(self.weights).__name__})."
            )
        checks.choice("estimator", self.estimator, ESTIMATORS)
        checks.choice("normalization", self.normalization, NORMALIZATIONS)
        checks.choice("outputs", self.outputs, OUTPUTS)
        checks.choice("propagation", self.propagation, PROPAGATION)
        checks.choice("precision", self.precision, PRECISIONS)
        if self.draws is not None:
            normalised["draws"] = checks.integer("draws", self.draws, 1, 2**20)
        split_seed(self.seed)
        if self.max_memory is not None:
            normalised["max_memory"] = checks.integer("max_memory", self.max_memory, 2**20)
        if self.estimator == "unbiased" and self.samples < 2:
            raise ValueError(f"samples must be at least 2 for the unbiased estimator, got {self.samples}.")

    @property
    def members(self) -> int:
        """Evaluations of a displacement: 2 for an antithetic pair, else 1."""
        return 2 if self.antithetic else 1

    @property
    def attends_to_outputs(self) -> bool:
        """True if weights depend on the input."""
        return isinstance(self.weights, Attention) and self.weights.by_input

    def budget(self, device: torch.device) -> int:
        """Return the budget of temporary memory on a device, in bytes."""
        return default_bytes(device) if self.max_memory is None else self.max_memory

    def check_features(self) -> None:
        """Check that the kernel has features.

        Raises:
            ValueError: If the estimator is unbiased, or the outputs are neither traced nor averaged.
        """
        if self.estimator == "unbiased":
            raise ValueError(
                "estimator must be 'energy' or 'plugin' to have features, got 'unbiased': unbiased kernels are "
                "indefinite."
            )
        if self.outputs not in ("trace", "mean"):
            raise ValueError(f"outputs must be 'trace' or 'mean' to have features, got {self.outputs!r}.")


class SettingsOfKernel:
    """Read-only attributes of a kernel, one for each of its settings.

    Attributes:
        settings: The settings as one frozen value.
    """

    settings: KernelSettings

    @property
    def gamma(self) -> float:
        """Length scale of the displacements, in parameter units."""
        return self.settings.gamma

    @property
    def samples(self) -> int:
        """Number M of displacements."""
        return self.settings.samples

    @property
    def directions(self) -> str:
        """Family of the unit displacements."""
        return self.settings.directions

    @property
    def antithetic(self) -> bool:
        """True if a difference is the odd part of an antithetic pair."""
        return self.settings.antithetic

    @property
    def weights(self) -> FixedKernel | Attention:
        """Fixed kernel or attention that weighs the displacements."""
        return self.settings.weights

    @property
    def estimator(self) -> str:
        """``"energy"``, ``"plugin"`` or ``"unbiased"``."""
        return self.settings.estimator

    @property
    def normalization(self) -> str:
        """``"gradient"`` or ``"paper"``."""
        return self.settings.normalization

    @property
    def outputs(self) -> str:
        """``"trace"``, ``"mean"``, ``"diagonal"`` or ``"full"``."""
        return self.settings.outputs

    @property
    def propagation(self) -> str:
        """``"difference"``, ``"direct"`` or ``"auto"``."""
        return self.settings.propagation

    @property
    def precision(self) -> str:
        """Precision of the operands of float32 products."""
        return self.settings.precision

    @property
    def draws(self) -> int | None:
        """Number of draws of a stochastic model; None for a deterministic one."""
        return self.settings.draws

    @property
    def seed(self) -> int:
        """Seed of the displacements and of the draws."""
        return self.settings.seed

    @property
    def max_memory(self) -> int | None:
        """Budget of temporary memory in bytes; None for the device's default."""
        return self.settings.max_memory

    @property
    def evaluations(self) -> int:
        """Displaced evaluations of the model for each input: an antithetic sample counts two."""
        return self.settings.samples * self.settings.members
