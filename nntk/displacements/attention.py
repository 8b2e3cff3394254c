"""Attention over displacements: how a kernel's weights follow from scores of the displaced model."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

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

    This project's definitions; the law of displacements stays symmetric, as the nonlocal gradient requires: of an
    antithetic pair both displaced models take part in the softmax, and the pair has the sum of their weights.

    * On **outputs** the query is f(x) at the parameters, the keys are f(x) at the displaced parameters, and the weights
      depend on the input: ``"dot"`` scores :math:`\langle f(x), D_m(x) \rangle / \sqrt C`, ``"distance"``
      :math:`-|D_m(x)|^2 / 2`, with D the difference (what all displacements share cancels).
    * On **parameters** the query is :math:`\Pi \theta`, the keys are :math:`\Pi (\theta + \delta_m)`, with a random
      projection to ``dim`` dimensions: :math:`\langle \Pi \theta, \Pi \delta_m \rangle / \sqrt k` or
      :math:`-|\Pi \delta_m|^2 / 2`.
    * A **callable** scores as it likes.

    Args:
        on: ``"outputs"`` or ``"parameters"``.
        score: ``"dot"``, ``"distance"``, or (on outputs) a function of the inputs [N, K] (as the first
            layer takes them, flattened) and a range of m that
            returns scores [m, N], or [2, m, N] for both halves of antithetic pairs. It must treat each input and each
            m by itself: chunks of both are asked for.
        temperature: :math:`\tau > 0`; equal weights as it rises, the best score's displacement alone as it falls.
        dim: Number k of projections, on parameters; 16 by default.
        projection: In place of a random one, on parameters: matrices (W_Q, W_K), [k, d] each, which multiply the
            displaced parameters flattened in registration order.
        prior: Whether log weights of the fixed kernel count; they are all equal unless it has a proposal.
        kernel: The fixed kernel that displacements are drawn from.

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
        """Whether weights depend on the input."""
        return self.on == "outputs"

    def factors(self, scales: Tensor, outputs: int) -> Tensor:
        """What scores of unit differences are multiplied by: scale and temperature, [M], float64."""
        scales = scales.double()
        if self.score == "dot":
            return scales / (math.sqrt(outputs) * self.temperature)
        if self.score == "distance":
            return scales.square() / self.temperature
        return torch.full_like(scales, 1 / self.temperature)

    def given(self, x: Tensor, rows: range, antithetic: bool) -> Tensor:
        """Scores of a callable: of pairs the temperature times the log of the sum over both halves.

        Args:
            x: Inputs, [N, K].
            rows: Which displacements.
            antithetic: Whether these are pairs.

        Returns:
            [m, N], float64: only differences count, of scores of any size.

        Raises:
            ValueError: If the callable returns another shape, scores on another device than the inputs, or one that is
                NaN or infinite.
            TypeError: If it returns no floating tensor.
        """
        assert callable(self.score), "the caller looked"
        made = self.score(x, rows)
        shape = (len(rows), len(x))
        if not isinstance(made, Tensor) or not made.is_floating_point():
            kind = made.dtype if isinstance(made, Tensor) else type(made).__name__
            raise TypeError(f"score must return a floating tensor, got {kind}.")
        if made.shape != shape and not (antithetic and made.shape == (2, *shape)):
            also = f", or {(2, *shape)} for both halves of the pairs" if antithetic else ""
            raise ValueError(f"score must return scores of shape {shape}{also}; got {tuple(made.shape)}.")
        if made.device != x.device:
            raise ValueError(f"score must return scores on {x.device} like the inputs, got {made.device}.")
        checks.finite("the scores that score returned", made)
        made = made.double()
        if made.dim() == 3:
            scaled = made / self.temperature
            made = torch.logaddexp(scaled[0], scaled[1]) * self.temperature
        return made

    def on_parameters(
        self, parameters: dict[int, Tensor], rows: Tensor, scales: Tensor, seed: int, directions: str, antithetic: bool
    ) -> Tensor:
        """Scores on parameters over the temperature: of pairs the log of the sum over both halves.

        Args:
            parameters: The displaced parameters by ordinal.
            rows: Numbers of the displacements, [M].
            scales: Their scales, [M].
            seed: Seed of the stream.
            directions: Family of the unit displacements.
            antithetic: Whether these are pairs.

        Returns:
            [M], float64.

        Raises:
            ValueError: If a given projection does not fit the parameters.
        """
        if self.projection is None:
            assert self.dim is not None, "set where there is no projection"
            query = project_parameters(parameters, seed, self.dim)
            own = torch.zeros_like(query)
            moved = project_displacements(parameters, rows, seed, self.dim, directions)
        else:
            theta = torch.cat([parameter.detach().flatten() for parameter in parameters.values()]).double()
            to_query, to_key = (matrix.to(theta.device).double() for matrix in self.projection)
            if to_query.shape[1] != len(theta):
                raise ValueError(
                    f"projection must have {len(theta)} columns, one a parameter; got {to_query.shape[1]}."
                )
            query, moved = to_query @ theta, multiply_displacements(parameters, rows, seed, to_key, directions)
            own = query - to_key @ theta
        moved = moved * scales.double()[:, None]
        if self.score == "dot":
            odd, even = moved @ query / len(query) ** 0.5, moved.new_zeros(())
        else:
            # The distance of query and key is |own - moved|; what does not depend on m is left out.
            odd, even = moved @ own, moved.square().sum(1) / -2
        plus, minus = ((even + odd) / self.temperature, (even - odd) / self.temperature)
        return torch.logaddexp(plus, minus) if antithetic else plus


def _check_matrices(projection: object) -> None:
    """Check a pair (W_Q, W_K).

    Raises:
        TypeError: If it is no pair of tensors.
        ValueError: If they are no matrices of one shape, are empty, or hold NaN or infinity.
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
