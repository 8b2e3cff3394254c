"""Every op with small arguments, in each of its forms: for tests of the ops, and for what a call costs the host."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nntk.kernels.activations import encode
from nntk.kernels.assemble import OUTPUTS
from nntk.models.recognise import recognise

_KEY = (1, 2**32 - 1)

Call = tuple[str, tuple[Any, ...]]
"""The name of an op of ``torch.ops.nntk``, and its arguments."""


def calls(device: torch.device | str = "cpu", size: int = 1) -> list[Call]:
    """Every op, some in several forms; the numbers are the same each time.

    Args:
        device: Where the tensors are.
        size: How many times larger than the smallest every axis is.

    Returns:
        Names and arguments, by name.
    """
    small = _Small(size)
    made = [*small.stream(), *small.weights(), *small.evaluation(), *small.assembly(), *small.local()]
    return sorted(((name, _placed(arguments, torch.device(device))) for name, arguments in made), key=lambda c: c[0])


def _placed(argument: Any, device: torch.device) -> Any:
    if isinstance(argument, list | tuple):
        return type(argument)(_placed(part, device) for part in argument)
    return argument.to(device) if isinstance(argument, Tensor) else argument


def _random(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(dtype)


class _Small:
    """Arguments whose axes are a few numbers, times a size: rows M, inputs N, outputs C, features K."""

    def __init__(self, size: int) -> None:
        self.m, self.n, self.c, self.k = 5 * size, 4 * size, 3 * size, 6 * size
        self.parameters = [torch.zeros(4 * size, 5 * size), torch.zeros(4 * size)]
        self.d, self.other = _random(self.m, self.n, self.c), _random(self.m, 2, self.c)
        self.pairs, self.keys = _random(2, self.m, self.n, 1), _random(self.n, 1)
        # Of a softmax: log weights and factors of rows, statistics of inputs.
        self.priors, self.factors = _random(self.m), _random(self.m).abs()
        self.statistics = torch.stack((_random(self.n), *[1 + _random(self.n).square()] * 2))
        self.alpha, self.norms = torch.softmax(_random(self.m), 0), 1 + _random(self.m).square()

    def displacements(self, directions: str = "gaussian") -> tuple[Any, ...]:
        """What ops that make noise take: parameters, ordinals, rows, key, family."""
        return (self.parameters, [0, 1], torch.arange(self.m), *_KEY, directions)

    def network(self, dtype: torch.dtype) -> tuple[Any, ...]:
        """An MLP as schemas carry it: weights, biases, activations and their parameters, ordinals."""
        model = nn.Sequential(nn.Linear(self.k, 7), nn.Tanh(), nn.Linear(7, self.c))
        for number, parameter in enumerate(model.parameters()):
            parameter.data = _random(*parameter.shape, dtype=dtype) / (number + 2)
        layers = recognise(model).layers
        tensors = [layer.weight for layer in layers], [layer.bias for layer in layers]
        return (*tensors, *encode([layer.activation for layer in layers]), [0, 2], [1, 3])

    def stream(self) -> Sequence[Call]:
        """Displacements, their norms and products."""
        unit, shape = (torch.arange(self.m), 0), list(self.parameters[0].shape)
        matrix = torch.ones(2, sum(parameter.numel() for parameter in self.parameters))
        return [
            *(
                ("unit_displacements", (*unit, shape, *_KEY, directions, torch.float64))
                for directions in ("gaussian", "flipout(2)", "lowrank(2)")
            ),
            ("squared_norms", self.displacements()),
            ("squared_norms", self.displacements("lowrank(2)")),
            ("displacement_gram", self.displacements()),
            ("displacement_gram", self.displacements("lowrank(1)")),
            ("project_displacements", (*self.displacements(), 3)),
            ("multiply_displacements", (*self.displacements("rademacher"), matrix)),
        ]

    def weights(self) -> Sequence[Call]:
        """Fixed kernels and attention."""
        softmax = (self.pairs, self.keys, self.priors, self.factors)
        return [
            ("radii", (torch.arange(self.m), *_KEY, "cauchy", 10, 0.1, 0.0)),
            ("radial_weights", (self.norms, "cauchy", [0.1, 5.5], "power", [1e-3, 6.0])),
            ("attention_scores", (self.d, _random(self.n, self.c), "dot")),
            ("attention_statistics", (*softmax, "dot")),
            ("attention_weights", (*softmax, self.statistics, "dot")),
        ]

    def evaluation(self) -> Sequence[Call]:
        """Differences of an MLP, in both forms and of some families; products with displacements."""
        x, scales = _random(self.n, self.k, dtype=torch.float32), torch.full((self.m,), 0.1)
        common = (x, *self.network(torch.float32), torch.arange(self.m), scales, *_KEY)
        forms = (
            ("gaussian", "none", "difference", "tf32"),
            ("gaussian", "odd", "direct", "fp32"),
            ("flipout(1)", "odd", "direct", "fp32"),
            ("lowrank(2)", "both", "difference", "fp32"),
            ("gaussian", "both", "difference", "fp32"),
        )
        rows, shared = torch.arange(self.m), x.double()
        products = [(shared, "gaussian"), (shared.expand(self.m, -1, -1).clone(), "lowrank(2)")]
        return [
            *(("mlp_differences", (*common, *form, 2**20)) for form in forms),
            *(("displacement_products", (q, 7, 0, rows, *_KEY, family, 2**20)) for q, family in products),
        ]

    def assembly(self) -> Sequence[Call]:
        """Kernels by every estimator, in every mode, symmetric and not."""
        gram, (largest1, largest2) = _random(self.m, self.m), (self.statistics[0].clone() for _ in range(2))
        dot = (None, None, self.keys, self.keys.clone(), self.priors, self.factors, largest1, largest2)
        d, alpha, norms = self.d, self.alpha, self.norms
        num_params = sum(parameter.numel() for parameter in self.parameters)
        found: list[Call] = [
            ("energy", (d, None, norms, "weights", _random(self.m, self.n).abs(), *(None,) * 7, "trace")),
            ("energy", (self.pairs, self.pairs.clone(), norms, "dot", *dot, "trace")),
            ("nonlocal_gradients", (d, alpha, norms, *self.displacements())),
        ]
        for d2 in (None, self.other):
            for mode in OUTPUTS:
                found += [
                    ("energy", (d, d2, norms, "rows", *(None,) * 8, mode)),
                    ("inner_product", (d, d2, alpha, None, norms, gram, num_params, True, mode)),
                    ("inner_product_of_gradients", (d, d2, alpha, None, norms, *self.displacements(), True, mode)),
                ]
        return found

    def local(self) -> Sequence[Call]:
        """The structured NTK, in every mode, symmetric and not."""
        cases = ((torch.float32, None), (torch.float64, _random(3, self.k)))
        return [
            ("structured_ntk", (_random(self.n, self.k, dtype=dtype), other, *self.network(dtype), mode))
            for dtype, other in cases
            for mode in OUTPUTS
        ]
