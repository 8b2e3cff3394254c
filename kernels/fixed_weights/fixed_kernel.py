"""The fixed kernels rho of the nonlocal gradient: laws of the length of a displacement, and their parameters."""

import math
from dataclasses import KW_ONLY, dataclass, fields

from torch import Tensor

from nntk.kernels import checks
from nntk.kernels.fixed_weights import laws
from nntk.kernels.fixed_weights.laws import LAWS

_HINTS = {
    "gamma": "gamma is the length scale of the displacements, e.g. 0.1.",
    "horizon": "Displacements are no longer than the horizon.",
    "cutoff": "r^(-d-order) is not integrable at 0: displacements are no shorter than a cutoff > 0.",
    "order": "r^(-d-order) is not integrable at infinity for an order <= 0; draws of one below 0.2 overflow.",
}
_LIMITS = {"gamma": (1e-30, 1e30), "horizon": (1e-30, 1e30), "cutoff": (1e-30, 1e30), "order": (0.2, 1e6)}


@dataclass(frozen=True, repr=False)
class FixedKernel:
    r"""A radial fixed kernel :math:`\rho(\delta)`, of the same scale for all d coordinates.

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
        gamma: Length scale, in parameter units, in [1e-30, 1e30]. None for that of the NonlocalNTK that has the kernel.
        horizon: Radius of the ball; None for :math:`\gamma \sqrt{d / 2}`, the typical length of the gaussian.
        order: Order s > 0 of the power, in [0.2, 1e6]; power needs it.
        cutoff: Least length of the power; None for :math:`\gamma \sqrt{d / 2}`.
        proposal: Another fixed kernel to draw displacements from. Where it is zero, rho is cut off without a word: a
            ball as proposal of a gaussian gives the gaussian within the ball.

    Raises:
        ValueError: If the name is unknown, a parameter is out of range, missing or belongs to another law, two set the
            same length, or the proposal has a proposal.
        TypeError: If a parameter is no number or the proposal no fixed kernel.

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
        checks.choice("name", self.name, tuple(LAWS))
        allowed = LAWS[self.name].parameters
        for parameter, (least, most) in _LIMITS.items():
            value = getattr(self, parameter)
            if value is None:
                continue
            if parameter not in allowed:
                raise ValueError(
                    f"{parameter} is no parameter of {self.name!r}, which takes {', '.join(allowed)}; got {value!r}."
                )
            number = checks.positive_float(parameter, value, least, most, _HINTS[parameter])
            object.__setattr__(self, parameter, number)
        own = "horizon" if self.name == "ball" else "cutoff"
        if self.gamma is not None and getattr(self, own) is not None:
            raise ValueError(
                f"gamma and {own} both set the size of {self.name!r}; give one of them, not {self.gamma:g} and "
                f"{getattr(self, own):g}."
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
        given = {field.name: getattr(self, field.name) for field in fields(self)[1:]}
        settings = [f"{name}={value!r}" for name, value in given.items() if value is not None]
        return f"FixedKernel({', '.join([repr(self.name), *settings])})"

    @property
    def drawn_from(self) -> "FixedKernel":
        """The kernel that displacements are drawn from: the proposal, or this one."""
        return self.proposal or self

    def scale(self, num_params: int, gamma: float | None = None) -> float:
        """The length that the law is made of: gamma, horizon or cutoff.

        Args:
            num_params: Number d of displaced parameters.
            gamma: Length scale where the kernel has none of its own.

        Returns:
            The length, in parameter units.

        Raises:
            ValueError: If there is no gamma at all, or a number is out of range.
            TypeError: If ``num_params`` is no integer, or gamma no number.
        """
        checks.integer("num_params", num_params, 1)
        own = self.horizon if self.name == "ball" else self.cutoff
        if own is not None:
            return own
        given = gamma if self.gamma is None else self.gamma
        if given is None:
            raise ValueError(f"gamma must be given, here or to {self!r}; got None. {_HINTS['gamma']}")
        size = checks.positive_float("gamma", given, *_LIMITS["gamma"], _HINTS["gamma"])
        return size * math.sqrt(num_params / 2) if self.name in ("ball", "power") else size

    def steepness(self, num_params: int) -> float:
        """What multiplies the law's profile in its log density, see :data:`nntk.kernels.fixed_weights.laws.LAWS`."""
        if self.name == "exponential":
            return math.sqrt(num_params)
        if self.name == "cauchy":
            return (num_params + 1) / 2
        return (num_params + (self.order or 0)) / 2 if self.name == "power" else 1.0

    def radius(self, uniform1: Tensor, uniform2: Tensor, num_params: int, gamma: float | None = None) -> Tensor:
        r"""Lengths of this law (not of its proposal) by inversion of its distribution.

        ============= ==================================================================================
        gaussian      :math:`\gamma \sqrt{g_{d/2}(u_1)}`, :math:`g_a` the gamma quantile of shape a
        exponential   :math:`\gamma\, g_d(u_1) / \sqrt d`
        cauchy        :math:`\gamma \sqrt{g_{d/2}(u_1) / g_{1/2}(u_2)}`
        ball          horizon :math:`u_1^{1/d}`
        power         cutoff :math:`u_1^{-1/s}`
        ============= ==================================================================================

        Args:
            uniform1: Uniform numbers in (0, 1), float64.
            uniform2: As many more.
            num_params: Number d of displaced parameters.
            gamma: Length scale where the kernel has none of its own.

        Returns:
            Lengths, float64, of the shape of the uniform numbers.

        Raises:
            ValueError: If there is no gamma at all, or a number is out of range.
            TypeError: If ``num_params`` is no integer, or gamma no number.
        """
        scale = self.scale(num_params, gamma)
        return scale * LAWS[self.name].draw(uniform1, uniform2, num_params, self.order or 0.0)

    def log_density(self, squared_lengths: Tensor, num_params: int, gamma: float | None = None) -> Tensor:
        r"""The logarithm of the density :math:`\rho` (not of the proposal's), up to a constant.

        Args:
            squared_lengths: :math:`|\delta_m|^2`, [M], float64. A length within 1e-6 of a horizon or a cutoff, relative
                to it, counts as inside.
            num_params: Number d of displaced parameters.
            gamma: Length scale where the kernel has none of its own.

        Returns:
            [M], float64; minus infinity beyond the horizon or below the cutoff.

        Raises:
            ValueError: If there is no gamma at all, or a number is out of range.
            TypeError: If ``num_params`` is no integer, or gamma no number.
        """
        scale = self.scale(num_params, gamma)
        return laws.log_density(squared_lengths, self.name, scale, self.steepness(num_params))
