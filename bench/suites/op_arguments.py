"""Arguments of every op: small ones, in each form of the op, and makers of large ones for timing."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nntk.kernels.activations import Activation, Relu, encode
from nntk.kernels.assemble import OUTPUTS
from nntk.models.recognise import recognise

_KEY = (1, 2**32 - 1)

Call = tuple[str, tuple[Any, ...]]
"""Name of an op of ``torch.ops.nntk``, and its arguments."""

Maker = Callable[[int], tuple[Any, ...]]
"""Function that makes the arguments of an op from a seed: the same shapes, other values for another seed."""


def small_calls(device: torch.device | str = "cpu", size: int = 1) -> list[Call]:
    """Return calls of every op with small arguments, in each form of the op; the values are the same each time.

    Args:
        device: Device of the tensors.
        size: Factor by which every axis is longer than in the smallest call.

    Returns:
        Names and arguments, sorted by name.
    """
    small = _SmallArguments(size)
    calls = [*small.stream(), *small.weights(), *small.evaluation(), *small.assembly(), *small.local()]
    placed = ((name, _on_device(arguments, torch.device(device))) for name, arguments in calls)
    return sorted(placed, key=lambda call: call[0])


def _on_device(argument: Any, device: torch.device) -> Any:
    if isinstance(argument, list | tuple):
        return type(argument)(_on_device(part, device) for part in argument)
    return argument.to(device) if isinstance(argument, Tensor) else argument


def _random(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(dtype)


class _SmallArguments:
    """Arguments with short axes, times a size: samples M, inputs N, outputs C, features K."""

    def __init__(self, size: int) -> None:
        self.m, self.n, self.c, self.k = 5 * size, 4 * size, 3 * size, 6 * size
        self.parameters = [torch.zeros(4 * size, 5 * size), torch.zeros(4 * size)]
        self.d, self.other = _random(self.m, self.n, self.c), _random(self.m, 2, self.c)
        self.pairs, self.keys = _random(2, self.m, self.n, 1), _random(self.n, 1)
        # A softmax uses log weights and factors of the samples, and statistics of the inputs.
        self.priors, self.factors = _random(self.m), _random(self.m).abs()
        self.statistics = torch.stack((_random(self.n), *[1 + _random(self.n).square()] * 2))
        self.alpha, self.norms = torch.softmax(_random(self.m), 0), 1 + _random(self.m).square()

    def displacements(self, directions: str = "gaussian") -> tuple[Any, ...]:
        """Return the arguments of ops that generate noise: parameters, their indices, sample numbers, key, family."""
        return (self.parameters, [0, 1], torch.arange(self.m), *_KEY, directions)

    def network(self, dtype: torch.dtype) -> tuple[Any, ...]:
        """Return an MLP in the form of the ops: weights, biases, activations and their coefficients, indices."""
        model = nn.Sequential(nn.Linear(self.k, 7), nn.Tanh(), nn.Linear(7, self.c))
        for index, parameter in enumerate(model.parameters()):
            parameter.data = _random(*parameter.shape, dtype=dtype) / (index + 2)
        layers = recognise(model).layers
        tensors = [layer.weight for layer in layers], [layer.bias for layer in layers]
        return (*tensors, *encode([layer.activation for layer in layers]), [0, 2], [1, 3])

    def stream(self) -> Sequence[Call]:
        """Return calls for displacements, their norms and their products."""
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
        """Return calls for fixed weights and attention."""
        softmax = (self.pairs, self.keys, self.priors, self.factors)
        return [
            ("radii", (torch.arange(self.m), *_KEY, "cauchy", 10, 0.1, 0.0)),
            ("radial_weights", (self.norms, "cauchy", [0.1, 5.5], "power", [1e-3, 6.0])),
            ("attention_scores", (self.d, _random(self.n, self.c), "dot")),
            ("attention_statistics", (*softmax, "dot")),
            ("attention_weights", (*softmax, self.statistics, "dot")),
        ]

    def evaluation(self) -> Sequence[Call]:
        """Return calls for differences of an MLP, in both forms and several families, and for displacement products."""
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
        """Return calls for kernels by every estimator, in every mode, symmetric and not."""
        gram, (largest1, largest2) = _random(self.m, self.m), (self.statistics[0].clone() for _ in range(2))
        dot = (None, None, self.keys, self.keys.clone(), self.priors, self.factors, largest1, largest2)
        d, alpha, norms = self.d, self.alpha, self.norms
        num_params = sum(parameter.numel() for parameter in self.parameters)
        calls: list[Call] = [
            ("energy", (d, None, norms, "weights", _random(self.m, self.n).abs(), *(None,) * 7, "trace")),
            ("energy", (self.pairs, self.pairs.clone(), norms, "dot", *dot, "trace")),
            ("nonlocal_gradients", (d, alpha, norms, *self.displacements())),
        ]
        for d2 in (None, self.other):
            for mode in OUTPUTS:
                calls += [
                    ("energy", (d, d2, norms, "rows", *(None,) * 8, mode)),
                    ("inner_product", (d, d2, alpha, None, norms, gram, num_params, True, mode)),
                    ("inner_product_of_gradients", (d, d2, alpha, None, norms, *self.displacements(), True, mode)),
                ]
        return calls

    def local(self) -> Sequence[Call]:
        """Return calls for the structured NTK, in every mode, symmetric and not."""
        cases = ((torch.float32, None), (torch.float64, _random(3, self.k)))
        return [
            ("structured_ntk", (_random(self.n, self.k, dtype=dtype), other, *self.network(dtype), mode))
            for dtype, other in cases
            for mode in OUTPUTS
        ]


class ArgumentMakers:
    """Makers of an op's arguments on a device, one method for each op or group of ops."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.parameters = [torch.zeros(256, 64, device=device), torch.zeros(256, device=device)]

    def _normal(self, seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        generator = torch.Generator(self.device).manual_seed(seed)
        return torch.randn(*shape, generator=generator, device=self.device).to(dtype)

    def _rows(self, count: int) -> Tensor:
        return torch.arange(count, device=self.device)

    def _stream(self, seed: int, rows: int, directions: str, width: int = 256) -> tuple[Any, ...]:
        parameters = [torch.empty(256, width, device=self.device)]
        return (parameters, [0], self._rows(rows), seed, 0, directions)

    def unit(self, rows: int, directions: str) -> Maker:
        """Return a maker for ``unit_displacements`` of a matrix 256 x 256; ``rows`` is the number of samples."""
        return lambda seed: (self._rows(rows), 0, [256, 256], seed, 0, directions, torch.float32)

    def stream(self, rows: int, directions: str, *rest: int) -> Maker:
        """Return a maker for an op that generates noise of a matrix 256 x 256; ``rows`` is the number of samples."""
        return lambda seed: (*self._stream(seed, rows, directions), *rest)

    def network(
        self,
        widths: Sequence[int],
        inputs: int,
        rows: int,
        directions: str,
        precision: str,
        last: Activation | None = None,
        max_bytes: int = 2**28,
    ) -> Maker:
        """Return a maker for ``mlp_differences``: relu between layers of these widths, ``last`` after them."""

        def make(seed: int) -> tuple[Any, ...]:
            x, scales = self._normal(seed, inputs, widths[0]), torch.full((rows,), 0.01, device=self.device)
            stream = (self._rows(rows), scales, seed, 0, directions)
            return (x, *self._layers(widths, last), *stream, "odd", "difference", precision, max_bytes)

        return make

    def _layers(self, widths: Sequence[int], last: Activation | None = None) -> tuple[Any, ...]:
        pairs = list(zip(widths, widths[1:], strict=False))
        weights = [self._normal(7, height, width) * (2 / width) ** 0.5 for width, height in pairs]
        biases = [torch.zeros(height, device=self.device) for _, height in pairs]
        names, coefficients = encode([*[Relu()] * (len(pairs) - 1), last or Activation()])
        indices = [2 * layer for layer in range(len(pairs))]
        return (weights, biases, names, coefficients, indices, [index + 1 for index in indices])

    def products(self, rows: int, operands: int, width: int, height: int, directions: str) -> Maker:
        """Return a maker for ``displacement_products``; ``operands`` is the number of vectors for each displacement."""
        return lambda seed: (
            self._normal(seed, rows, operands, width), height, 0, self._rows(rows), seed, 0, directions, 2**28,
        )  # fmt: skip

    def local(self, widths: Sequence[int], inputs: int) -> Maker:
        """Return a maker for ``structured_ntk`` of a network of these widths."""
        return lambda seed: (self._normal(seed, inputs, widths[0]), None, *self._layers(widths), "trace")

    def radii(self, count: int) -> Maker:
        """Return a maker for ``radii``."""
        return lambda seed: (self._rows(count), seed, 0, "cauchy", 1000, 0.1, 0.0)

    def radial(self, count: int) -> Maker:
        """Return a maker for ``radial_weights``."""
        laws = ("gaussian", [1.0, 1.0], "cauchy", [1.0, 50.5])
        return lambda seed: (50 + self._normal(seed, count, dtype=torch.float64).abs(), *laws)

    def scores(self, m: int, n: int, c: int) -> Maker:
        """Return a maker for ``attention_scores``."""
        return lambda seed: (self._normal(seed, m, n, c), self._normal(seed + 1, n, c), "dot")

    def softmax(self, m: int, n: int, statistics: bool = False) -> Maker:
        """Return a maker for ``attention_statistics``, or for ``attention_weights``, which also uses ``statistics``."""

        def make(seed: int) -> tuple[Any, ...]:
            values, keys = self._normal(seed, 2, m, n, 1), self._normal(seed + 1, n, 1)
            rows = torch.zeros(m, device=self.device), torch.full((m,), 0.5, device=self.device)
            if not statistics:
                return (values, keys, *rows, "dot")
            computed = torch.ops.nntk.attention_statistics(values, keys, *rows, "dot")
            return (values, keys, *rows, computed, "dot")

        return make

    def energy(self, m: int, n: int, c: int, mode: str) -> Maker:
        """Return a maker for ``energy``, symmetric, with one weight a sample."""
        scales = torch.ones(m, device=self.device, dtype=torch.float64)
        return lambda seed: (self._normal(seed, m, n, c), None, scales, "rows", *(None,) * 8, mode)

    def inner(self, m: int, n: int) -> Maker:
        """Return a maker for ``inner_product``."""
        ones = torch.ones(m, device=self.device, dtype=torch.float64)
        gram = self._normal(5, m, m, dtype=torch.float64)
        return lambda seed: (self._normal(seed, m, n, 1), None, ones / m, None, ones, gram, 1000, True, "trace")

    def gradients(self, m: int, n: int) -> Maker:
        """Return a maker for ``nonlocal_gradients``."""
        ones = torch.ones(m, device=self.device, dtype=torch.float64)
        return lambda seed: (
            self._normal(seed, m, n, 1), ones / m, ones, self.parameters, [0, 1], self._rows(m), seed, 0, "gaussian",
        )  # fmt: skip
