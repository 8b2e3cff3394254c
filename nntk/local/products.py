"""Products with the Jacobian of a model, which is never formed: gradients of weighted outputs, and derivatives."""

import logging
from functools import partial

import torch
from torch import Tensor

from nntk.estimators.memory import check_room
from nntk.kernels.slices import slices
from nntk.local.agreement import failure_of, fixed_weights, require_agreement
from nntk.local.evaluation import Evaluation, Parameters
from nntk.local.reverse_mode import ReverseJacobian, reverse_errors, weighted_gradients
from nntk.local.subject import Subject
from nntk.models.data.inputs import Batch

_log = logging.getLogger("nntk")

_ARRAYS = 6
"""Vectors of d numbers that are held for each tangent: its sum in float64, and copies of it by parameter."""
_MOST_VECTORS = 64
"""Most tangents that are pushed forward together; more of them take no less time each."""


class JacobianProducts:
    r"""Products with the Jacobian J of the outputs at N inputs, [N C, d], in blocks of inputs.

    The transposed product is that of plain backward passes. The other one is that of forward derivatives. It is held
    against backward passes by a weighted sum, :math:`w^\top (J g) = (J^\top w)^\top g`, at the first input and over all
    of them. Where ``torch.func`` fails or disagrees, it is computed from Jacobians by backward passes instead, an input
    at a time.

    Args:
        subject: The model.
        x: Inputs, [N, ...], as the subject returns them.
        max_bytes: Budget of temporary memory in bytes.

    Attributes:
        num_outputs: Number C of outputs.

    Raises:
        ValueError: If the model cannot be evaluated at the inputs.
        TypeError: If it returns no real tensor with a row for each input.
        MemoryError: If the gradient of one output does not fit in the free memory.
    """

    def __init__(self, subject: Subject, x: Batch, max_bytes: int) -> None:
        self._evaluation, self._x = subject.evaluation, x
        problem = subject.problem(x, None, "trace")
        self.num_outputs = problem.outputs
        gradient, activations = 8 * problem.parameters, max(1, problem.activations)
        check_room(
            "A product with the local NTK", _ARRAYS * gradient + 4 * activations, subject.view.device,
            "Fewer parameters need less memory: parameters=[...] chooses them.",
        )  # fmt: skip
        self._vectors = max(1, min(_MOST_VECTORS, max_bytes // (2 * _ARRAYS * gradient)))
        self._rows = max(1, max_bytes // (4 * activations * (1 + self._vectors)))
        self._jacobian_rows = max(1, max_bytes // (4 * problem.outputs * gradient))
        self._is_forward = True
        self._checks: tuple[Tensor, Tensor] | None = None

    @property
    def vectors(self) -> int:
        """Number of vectors that the budget has room for together."""
        return self._vectors

    def pull_back(self, weights: Tensor) -> Tensor:
        r"""Return the gradients of weighted outputs, :math:`g_k = \sum_{nc} w_{knc} \nabla_\theta f_c(x_n)`.

        Args:
            weights: The weights w, [K, N, C].

        Returns:
            [K, d], float64.

        Raises:
            ValueError: If autograd cannot differentiate the model.
        """
        dtype = self._evaluation.view.dtype
        total = weights.new_zeros(len(weights), self._evaluation.view.num_params, dtype=torch.float64)
        with reverse_errors():
            for block in slices(len(self._x), self._rows):
                total += weighted_gradients(self._evaluation, self._x[block], weights[:, block].to(dtype))
        return total

    def push_forward(self, tangents: Tensor) -> Tensor:
        r"""Return the directional derivatives, :math:`p_{knc} = \langle \nabla_\theta f_c(x_n), g_k \rangle`.

        Args:
            tangents: The vectors g, [K, d].

        Returns:
            [K, N, C], float64.

        Raises:
            ValueError: If autograd cannot differentiate the model.
        """
        if self._is_forward:
            try:
                products = self._forward(tangents)
                self._compare(products, tangents)
                return products
            except (
                Exception
            ) as error:  # The transforms may raise anything; what the model raises is raised again below.
                if isinstance(error, torch.OutOfMemoryError | MemoryError):
                    raise
                self._is_forward = False
                _log.info("Products take Jacobians by backward passes, one by one, because %s.", failure_of(error))
        return self._from_jacobians(tangents)

    def _forward(self, tangents: Tensor) -> Tensor:
        evaluation, x = self._evaluation, self._x
        directions = _by_parameter(evaluation.parameters, tangents.to(evaluation.view.dtype))
        products = tangents.new_empty(len(tangents), len(x), self.num_outputs, dtype=torch.float64)
        for block in slices(len(x), self._rows):
            products[:, block] = _derivatives(evaluation, x[block], directions)
        return products

    def _from_jacobians(self, tangents: Tensor) -> Tensor:
        jacobian = ReverseJacobian(self._evaluation, self.num_outputs)
        products = tangents.new_empty(len(tangents), len(self._x), self.num_outputs, dtype=torch.float64)
        with reverse_errors():
            for block in slices(len(self._x), self._jacobian_rows):
                rows = jacobian(self._x[block]).double()
                products[:, block] = torch.einsum("ncd,kd->knc", rows, tangents.double())
        return products

    def _compare(self, products: Tensor, tangents: Tensor) -> None:
        """Hold weighted sums of products against plain gradients, which are computed once for all products."""
        weights = fixed_weights(len(self._x), self.num_outputs, products)
        if self._checks is None:
            first = torch.zeros_like(weights)
            first[:1] = weights[:1]
            both = self.pull_back(torch.stack((first, weights)))
            self._checks = both[0], both[1]
        tangents, inputs = tangents.double(), (slice(0, 1), slice(None))
        for gradient, rows, where in zip(self._checks, inputs, ("the first input", "all inputs"), strict=True):
            actual = torch.einsum("knc,nc->k", products[:, rows], weights[rows])
            scale = float(gradient.norm() * tangents.norm())
            require_agreement(actual, tangents @ gradient, self._evaluation.tolerance, where, scale)


def _by_parameter(parameters: Parameters, vectors: Tensor) -> Parameters:
    """Return vectors [K, d] as tensors [K, ...] by the names of the parameters."""
    parts = vectors.split([parameter.numel() for parameter in parameters.values()], dim=1)
    return {
        name: part.reshape(len(vectors), *parameter.shape)
        for (name, parameter), part in zip(parameters.items(), parts, strict=True)
    }


def _derivatives(evaluation: Evaluation, x: Batch, directions: Parameters) -> Tensor:
    """Return the derivatives of the outputs along some directions, [K, n, C]."""
    with torch.enable_grad():
        derivatives: Tensor = torch.vmap(partial(evaluation.derivative, x))(directions)
    return derivatives.detach()
