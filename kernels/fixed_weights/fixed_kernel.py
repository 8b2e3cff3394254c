"""Fixed kernels rho of the nonlocal gradient: radial distributions of displacements, with their parameters."""

import math
from dataclasses import KW_ONLY, dataclass, fields

from torch import Tensor

from nntk.kernels import checks
from nntk.kernels.fixed_weights import distributions
from nntk.kernels.fixed_weights.distributions import DISTRIBUTIONS

_HINTS = {
    "gamma": "gamma is the length scale of the displacements, e.g. 0.1.",
    "horizon": "Displacements are no longer than the horizon.",
    "cutoff": "r^(-d-order) is not integrable at 0: displacements are no shorter than a cutoff > 0.",
    "order": "r^(-d-order) is not integrable at infinity for an order <= 0; draws of one below 0.2 overflow.",
}
_LIMITS = {"gamma": (1e-30, 1e30), "horizon": (1e-30, 1e30), "cutoff": (1e-30, 1e30), "order": (0.2, 1e6)}


@dataclass(frozen=True, repr=False)
class FixedKernel:
    r"""Radial fixed kernel :math:`\rho(\delta)`, with the same scale for all d coordinates.

    With :math:`r = |\delta|`, up to a constant:

    ============= =============================================================================================
    gaussian      :math:`e^{-r^2 / \gamma^2}`, a standard deviation of :math:`\gamma / \sqrt 2` a coordinate
    exponential   :math:`e^{-\sqrt d\, r / \gamma}`
    cauchy        :math:`(1 + r^2 / \gamma^2)^{-(d + 1) / 2}`
    ball          1 for :math:`r \le` ``horizon``
    power         :math:`r^{-d - s}` for :math:`r \ge` ``cutoff``, s the ``order``
    ============= =============================================================================================

    Displacements are drawn from the kernel itself, with equal weights; or from a ``proposal`` q, with weights that are
    the softmax of :math:`\ln \rho - \ln q`. In many dimensions such weights are worth little unless q is very near
    rho: README.md beside this file has figures.

    Args:
        name: ``"gaussian"``, ``"exponential"``, ``"cauchy"``, ``"ball"`` or ``"power"``.
        gamma: Length scale, in parameter units, in [1e-30, 1e30]. None means the gamma of the NonlocalNTK that uses the
            kernel.
        horizon: Radius of the ball; None means :math:`\gamma \sqrt{d / 2}`, the typical length of the gaussian.
        order: Order s > 0 of the power, in [0.2, 1e6]; required for power.
        cutoff: Minimum length of the power; None means :math:`\gamma \sqrt{d / 2}`.
        proposal: Fixed kernel to draw displacements from instead. Where it is zero, rho is cut off without a warning:
            a ball as proposal of a gaussian gives the gaussian within the ball.

    Raises:
        ValueError: If the name is unknown, a parameter is out of range, missing or belongs to another kernel, two
            parameters set the same length, or the proposal has a proposal.
        TypeError: If a parameter is not a number or the proposal is not a fixed kernel.

    Example:
        >>> FixedKernel("power", order=1.5, cutoff=0.01)
        FixedKernel('power', order=1.5, cutoff=0.01)
    """

    name: str = "gaussian"
    _: KW_ONLY
    gamma: float | None = None
    horizon: float | None = None
    order: float | None = None
    cutoff: float | None = None
    proposal: "FixedKernel | None" = None

    def __post_init__(self) -> None:
        checks.choice("name", self.name, tuple(DISTRIBUTIONS))
        allowed = DISTRIBUTIONS[self.name].parameters
        for parameter, (minimum, maximum) in _LIMITS.items():
            value = getattr(self, parameter)
            if value is None:
                continue
            if parameter not in allowed:
                raise ValueError(
                    f"{parameter} is no parameter of {self.name!r}, which takes {', '.join(allowed)}; got {value!r}."
                )
            number = checks.positive_float(parameter, value, minimum, maximum, _HINTS[parameter])
            object.__setattr__(self, parameter, number)
        edge = "horizon" if self.name == "ball" else "cutoff"
        if self.gamma is not None and getattr(self, edge) is not None:
            raise ValueError(
                f"gamma and {edge} both set the size of {self.name!r}; give one of them, not {self.gamma:g} and "
                f"{getattr(self, edge):g}."
            )
        if self.name == "power" and self.order is None:
            raise ValueError(f"order must be given for 'power', e.g. order=1; got None. {_HINTS['order']}")
        if self.proposal is not None:
            self._check_proposal(self.proposal)

    @staticmethod
    def _check_proposal(proposal: object) -> None:
        if not isinstance(proposal, FixedKernel):
            raise TypeError(f"proposal must be a FixedKernel or None, got {type(proposal).__name__}.")
        if proposal.proposal is not None:
            raise ValueError(
                f"proposal must have no proposal of its own, as displacements are drawn from it; got {proposal!r}."
            )

    def __repr__(self) -> str:
        values = {field.name: getattr(self, field.name) for field in fields(self)[1:]}
        settings = [f"{name}={value!r}" for name, value in values.items() if value is not None]
        return f"FixedKernel({', '.join([repr(self.name), *settings])})"

    @property
    def drawn_from(self) -> "FixedKernel":
        """Kernel that displacements are drawn from: the proposal, or this kernel without one."""
        return self.proposal or self

    def scale(self, num_params: int, gamma: float | None = None) -> float:
        """Return the length scale of the distribution: gamma, horizon or cutoff.

        Args:
            num_params: Number d of displaced parameters.
            gamma: Length scale, used if the kernel has no gamma.

        Returns:
            The length, in parameter units.

        Raises:
            ValueError: If gamma is given neither here nor to the kernel, or a number is out of range.
            TypeError: If ``num_params`` is not an integer, or gamma is not a number.
        """
        checks.integer("num_params", num_params, 1)
        edge = self.horizon if self.name == "ball" else self.cutoff
        if edge is not None:
            return edge
        length = gamma if self.gamma is None else self.gamma
        if length is None:
            raise ValueError(f"gamma must be given, here or to {self!r}; got None. {_HINTS['gamma']}")
        size = checks.positive_float("gamma", length, *_LIMITS["gamma"], _HINTS["gamma"])
        return size * math.sqrt(num_params / 2) if self.name in ("ball", "power") else size

    def steepness(self, num_params: int) -> float:
        """Return the factor of the profile in the log density; see :mod:`nntk.kernels.fixed_weights.distributions`."""
        if self.name == "exponential":
            return math.sqrt(num_params)
        if self.name == "cauchy":
            return (num_params + 1) / 2
        return (num_params + (self.order or 0)) / 2 if self.name == "power" else 1.0

    def radius(self, uniform1: Tensor, uniform2: Tensor, num_params: int, gamma: float | None = None) -> Tensor:
        r"""Return lengths drawn from this kernel (not from its proposal), by inversion of their distribution.

        ============= ==================================================================================
        gaussian      :math:`\gamma \sqrt{g_{d/2}(u_1)}`, :math:`g_a` the gamma quantile of shape a
        exponential   :math:`\gamma\, g_d(u_1) / \sqrt d`
        cauchy        :math:`\gamma \sqrt{g_{d/2}(u_1) / g_{1/2}(u_2)}`
        ball          horizon :math:`u_1^{1/d}`
        power         cutoff :math:`u_1^{-1/s}`
        ============= ==================================================================================

        Args:
            uniform1: Uniform numbers in (0, 1), float64.
            uniform2: Further uniform numbers, of the same shape.
            num_params: Number d of displaced parameters.
            gamma: Length scale, used if the kernel has no gamma.

        Returns:
            Lengths in parameter units, float64, of the shape of the uniform numbers.

        Raises:
            ValueError: If gamma is given neither here nor to the kernel, or a number is out of range.
            TypeError: If ``num_params`` is not an integer, or gamma is not a number.
        """
        scale = self.scale(num_params, gamma)
        return scale * DISTRIBUTIONS[self.name].draw(uniform1, uniform2, num_params, self.order or 0.0)

    def log_density(self, squared_lengths: Tensor, num_params: int, gamma: float | None = None) -> Tensor:
        r"""Return the logarithm of the density :math:`\rho` (not of the proposal), up to a constant.

        Args:
            squared_lengths: Squared lengths :math:`|\delta_m|^2`, [M], float64. A length within 1e-6 of a horizon or a
                cutoff, relative to it, counts as inside.
            num_params: Number d of displaced parameters.
            gamma: Length scale, used if the kernel has no gamma.

        Returns:
            [M], float64; minus infinity beyond the horizon or below the cutoff.

        Raises:
            ValueError: If gamma is given neither here nor to the kernel, or a number is out of range.
            TypeError: If ``num_params`` is not an integer, or gamma is not a number.
        """
        scale = self.scale(num_params, gamma)
        return distributions.log_density(squared_lengths, self.name, scale, self.steepness(num_params))
