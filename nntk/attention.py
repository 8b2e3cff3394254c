"""Attention over displacements: weights of a kernel from scores of the displaced model."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from nntk.kernels import checks
from nntk.kernels.attention import multiply_displacements, project_displacements, project_parameters
from nntk.kernels.fixed_weights import FixedKernel

ON = ("outputs", "parameters")
SCORES = ("dot", "distance")
DIM = 16

CustomScore = Callable[[Tensor, range], Tensor]


@dataclass(frozen=True, eq=False)
class Attention:
    r"""Softmax attention over displacements: :math:`\alpha_m \propto \exp(\text{prior}_m + \text{score}_m / \tau)`.

    The definitions are this project's own. The distribution of displacements stays symmetric, as the nonlocal gradient
    requires: both members of an antithetic pair take part in the softmax, and the pair has the sum of their weights.

    * On **outputs** the query is f(x) at the unperturbed parameters, the keys are f(x) at the displaced parameters, and
      the weights depend on the input. With D the difference, the score ``"dot"`` is
      :math:`\langle f(x), D_m(x) \rangle / \sqrt C` and ``"distance"`` is :math:`-|D_m(x)|^2 / 2` (terms that all
      displacements share cancel).
    * On **parameters** the query is :math:`\Pi \theta`, the keys are :math:`\Pi (\theta + \delta_m)`, with a random
      projection to ``dim`` dimensions: :math:`\langle \Pi \theta, \Pi \delta_m \rangle / \sqrt k` or
      :math:`-|\Pi \delta_m|^2 / 2`.
    * A **callable** gives scores of the user's own.

    Args:
        on: ``"outputs"`` or ``"parameters"``.
        score: ``"dot"``, ``"distance"``, or (on outputs) a function of the inputs [N, K] (flattened, as the first layer
            takes them) and a range of m. It returns scores [m, N], or [2, m, N] for both members of antithetic pairs.
            It must treat each input and each m by itself, because it is called for chunks of both.
        temperature: :math:`\tau > 0`. Weights become equal as it rises; as it falls, the best score takes all.
        dim: Number k of projections, for attention on parameters; 16 by default.
        projection: Matrices (W_Q, W_K), [k, d] each, in place of the random projection of attention on parameters. They
            multiply the displaced parameters, flattened in registration order.
        prior: Add the log weights of the fixed kernel; they are all equal unless it has a proposal.
        kernel: Fixed kernel that displacements are drawn from.

    Raises:
        ValueError: If a name is unknown, a number out of range, or arguments exclude each other.
        TypeError: If an argument has the wrong type.

    Example:
        >>> Attention(on="parameters", temperature=0.5).dim
        16
    """

    on: str = "outputs"
    score: str | CustomScore = "dot"
    temperature: float = 1.0
    dim: int | None = None
    projection: tuple[Tensor, Tensor] | None = field(default=None, repr=False)
    prior: bool = True
    kernel: FixedKernel = field(default_factory=FixedKernel)

    def __post_init__(self) -> None:
        checks.choice("on", self.on, ON)
        if not callable(self.score):
            checks.choice("score", self.score, SCORES)
        elif self.on != "outputs":
            raise ValueError("on must be 'outputs' for a score of your own, got 'parameters'.")
        hint = "Weights become equal as it rises; the best score takes all as it falls."
        object.__setattr__(
            self, "temperature", checks.positive_float("temperature", self.temperature, 1e-30, 1e30, hint)
        )
        checks.boolean("prior", self.prior)
        if not isinstance(self.kernel, FixedKernel):
            raise TypeError(f"kernel must be a FixedKernel, got {type(self.kernel).__name__}.")
        self._check_projection()

    def _check_projection(self) -> None:
        if self.on == "outputs":
            for name in ("dim", "projection"):
                if (value := getattr(self, name)) is not None:
                    given = value if name == "dim" else type(value).__name__
                    raise ValueError(
                        f"{name} must be None for attention on outputs, which projects nothing; got {given}."
                    )
        elif self.projection is None:
            object.__setattr__(self, "dim", checks.integer("dim", DIM if self.dim is None else self.dim, 1, 2**16))
        elif self.dim is not None:
            raise ValueError(
                f"dim must be None where projection is given, which has a dimension of its own; got {self.dim}."
            )
        else:
            _check_matrices(self.projection)

    @property
    def by_input(self) -> bool:
        """True if weights depend on the input."""
        return self.on == "outputs"

    def score_factors(self, scales: Tensor, outputs: int) -> Tensor:
        r"""Return the factors of scores of unit differences: scale over temperature, :math:`s_m / (\sqrt C \tau)`.

        Args:
            scales: Scales s_m of the displacements, [M].
            outputs: Number C of outputs.

        Returns:
            [M], float64; the square of the scale enters a distance, and no scale the scores of a callable.
        """
        scales = scales.double()
        if self.score == "dot":
            return scales / (math.sqrt(outputs) * self.temperature)
        if self.score == "distance":
            return scales.square() / self.temperature
        return torch.full_like(scales, 1 / self.temperature)

    def custom_scores(self, x: Any, sample_ids: range, antithetic: bool) -> Tensor:
        """Return the scores of a callable; for antithetic pairs, those of their total weight.

        Args:
            x: Inputs, [N, K], or :class:`nntk.Inputs` where they are several tensors.
            sample_ids: Numbers m of the displacements.
            antithetic: The displacements are antithetic pairs. A pair's score is the temperature times the logarithm
                of the sum of exponentials over its members.

        Returns:
            [m, N], float64.

        Raises:
            ValueError: If the callable returns another shape, scores on another device than the inputs, or a score that
                is NaN or infinite.
            TypeError: If it does not return a floating tensor.
        """
        assert callable(self.score), "the caller checked"
        scores = self.score(x, sample_ids)
        shape = (len(sample_ids), len(x))
        if not isinstance(scores, Tensor) or not scores.is_floating_point():
            kind = scores.dtype if isinstance(scores, Tensor) else type(scores).__name__
            raise TypeError(f"score must return a floating tensor, got {kind}.")
        if scores.shape != shape and not (antithetic and scores.shape == (2, *shape)):
            both = f", or {(2, *shape)} for both members of the pairs" if antithetic else ""
            raise ValueError(f"score must return scores of shape {shape}{both}; got {tuple(scores.shape)}.")
        if scores.device != x.device:
            raise ValueError(f"score must return scores on {x.device} like the inputs, got {scores.device}.")
        checks.finite("the scores that score returned", scores)
        scores = scores.double()
        if scores.dim() == 3:
            scaled = scores / self.temperature
            scores = torch.logaddexp(scaled[0], scaled[1]) * self.temperature
        return scores

    def parameter_scores(
        self,
        parameters: dict[int, Tensor],
        sample_ids: Tensor,
        scales: Tensor,
        seed: int,
        directions: str,
        antithetic: bool,
    ) -> Tensor:
        """Return the scores on parameters over the temperature; for antithetic pairs, those of their total weight.

        Args:
            parameters: Displaced parameters by their number in the random stream.
            sample_ids: Numbers m of the displacements, [M].
            scales: Scales s_m, [M].
            seed: Seed of the stream.
            directions: Family of the unit displacements.
            antithetic: The displacements are antithetic pairs.

        Returns:
            [M], float64.

        Raises:
            ValueError: If the projection does not fit the parameters.
        """
        if self.projection is None:
            assert self.dim is not None, "set where there is no projection"
            query = project_parameters(parameters, seed, self.dim)
            query_minus_key = torch.zeros_like(query)
            projected = project_displacements(parameters, sample_ids, seed, self.dim, directions)
        else:
            theta = torch.cat([parameter.detach().flatten() for parameter in parameters.values()]).double()
            to_query, to_key = (matrix.to(theta.device).double() for matrix in self.projection)
            if to_query.shape[1] != len(theta):
                raise ValueError(
                    f"projection must have {len(theta)} columns, one a parameter; got {to_query.shape[1]}."
                )
            query = to_query @ theta
            projected = multiply_displacements(parameters, sample_ids, seed, to_key, directions)
            query_minus_key = query - to_key @ theta
        projected = projected * scales.double()[:, None]
        if self.score == "dot":
            odd, even = projected @ query / len(query) ** 0.5, projected.new_zeros(())
        else:
            # The distance of query and key is |query_minus_key - projected|; its part that does not depend on m
            # cancels in the softmax.
            odd, even = projected @ query_minus_key, projected.square().sum(1) / -2
        plus, minus = ((even + odd) / self.temperature, (even - odd) / self.temperature)
        return torch.logaddexp(plus, minus) if antithetic else plus


def _check_matrices(projection: object) -> None:
    """Check a pair (W_Q, W_K).

    Raises:
        TypeError: If it is not a pair of tensors.
        ValueError: If they are not matrices of one shape, are empty, or hold NaN or infinity.
    """
    if not isinstance(projection, tuple | list) or len(projection) != 2:
        raise TypeError(
            f"projection must be a pair of tensors (W_Q, W_K), [k, d] each; got {type(projection).__name__}."
        )
    for matrix in projection:
        checks.tensor("a matrix of projection", matrix)
    query, key = projection
    if query.shape != key.shape or query.dim() != 2 or not query.numel():
        raise ValueError(
            f"projection must be two matrices [k, d], got shapes {tuple(query.shape)} and {tuple(key.shape)}."
        )
    checks.finite("W_Q of projection", query)
    checks.finite("W_K of projection", key)
