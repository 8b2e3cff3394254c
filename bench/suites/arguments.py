"""Arguments of the ops for timing: functions that make them from a number, other values of one shape each time."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from nntk.kernels.activations import Activation, Relu, encode


class Arguments:
    """Makers of arguments on a device."""

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

    def unit(self, rows: int, directions: str) -> Callable[[int], tuple[Any, ...]]:
        """Of ``unit_displacements``: so many rows of a matrix 256 x 256."""
        return lambda seed: (self._rows(rows), 0, [256, 256], seed, 0, directions, torch.float32)

    def stream(self, rows: int, directions: str, *rest: int) -> Callable[[int], tuple[Any, ...]]:
        """Of an op that makes noise: a matrix 256 x 256 at so many rows."""
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
    ) -> Callable[[int], tuple[Any, ...]]:
        """Of ``mlp_differences``: relu between layers of these widths, and ``last`` behind them."""

        def make(seed: int) -> tuple[Any, ...]:
            x, scales = self._normal(seed, inputs, widths[0]), torch.full((rows,), 0.01, device=self.device)
            stream = (self._rows(rows), scales, seed, 0, directions)
            return (x, *self._layers(widths, last), *stream, "odd", "difference", precision, max_bytes)

        return make

    def _layers(self, widths: Sequence[int], last: Activation | None = None) -> tuple[Any, ...]:
        pairs = list(zip(widths, widths[1:], strict=False))
        weights = [self._normal(7, height, width) * (2 / width) ** 0.5 for width, height in pairs]
        biases = [torch.zeros(height, device=self.device) for _, height in pairs]
        names, numbers = encode([*[Relu()] * (len(pairs) - 1), last or Activation()])
        ordinals = [2 * number for number in range(len(pairs))]
        return (weights, biases, names, numbers, ordinals, [ordinal + 1 for ordinal in ordinals])

    def products(
        self, rows: int, lines: int, width: int, height: int, directions: str
    ) -> Callable[[int], tuple[Any, ...]]:
        """Of ``displacement_products``: so many lines of operands for each displacement."""
        return lambda seed: (
            self._normal(seed, rows, lines, width), height, 0, self._rows(rows), seed, 0, directions, 2**28,
        )  # fmt: skip

    def local(self, widths: Sequence[int], inputs: int) -> Callable[[int], tuple[Any, ...]]:
        """Of ``structured_ntk``, for a network of these widths."""
        return lambda seed: (self._normal(seed, inputs, widths[0]), None, *self._layers(widths), "trace")

    def radii(self, count: int) -> Callable[[int], tuple[Any, ...]]:
        """Of ``radii``."""
        return lambda seed: (self._rows(count), seed, 0, "cauchy", 1000, 0.1, 0.0)

    def radial(self, count: int) -> Callable[[int], tuple[Any, ...]]:
        """Of ``radial_weights``."""
        laws = ("gaussian", [1.0, 1.0], "cauchy", [1.0, 50.5])
        return lambda seed: (50 + self._normal(seed, count, dtype=torch.float64).abs(), *laws)

    def scores(self, m: int, n: int, c: int) -> Callable[[int], tuple[Any, ...]]:
        """Of ``attention_scores``."""
        return lambda seed: (self._normal(seed, m, n, c), self._normal(seed + 1, n, c), "dot")

    def softmax(self, m: int, n: int, statistics: bool = False) -> Callable[[int], tuple[Any, ...]]:
        """Of ``attention_statistics``, or of ``attention_weights``, which takes those."""

        def make(seed: int) -> tuple[Any, ...]:
            values, keys = self._normal(seed, 2, m, n, 1), self._normal(seed + 1, n, 1)
            rows = torch.zeros(m, device=self.device), torch.full((m,), 0.5, device=self.device)
            if not statistics:
                return (values, keys, *rows, "dot")
            found = torch.ops.nntk.attention_statistics(values, keys, *rows, "dot")
            return (values, keys, *rows, found, "dot")

        return make

    def energy(self, m: int, n: int, c: int, mode: str) -> Callable[[int], tuple[Any, ...]]:
        """Of ``energy``, symmetric, with weights of rows."""
        scales = torch.ones(m, device=self.device, dtype=torch.float64)
        return lambda seed: (self._normal(seed, m, n, c), None, scales, "rows", *(None,) * 8, mode)

    def inner(self, m: int, n: int) -> Callable[[int], tuple[Any, ...]]:
        """Of ``inner_product``."""
        ones = torch.ones(m, device=self.device, dtype=torch.float64)
        gram = self._normal(5, m, m, dtype=torch.float64)
        return lambda seed: (self._normal(seed, m, n, 1), None, ones / m, None, ones, gram, 1000, True, "trace")

    def gradients(self, m: int, n: int) -> Callable[[int], tuple[Any, ...]]:
        """Of ``nonlocal_gradients``."""
        ones = torch.ones(m, device=self.device, dtype=torch.float64)
        return lambda seed: (
            self._normal(seed, m, n, 1), ones / m, ones, self.parameters, [0, 1], self._rows(m), seed, 0, "gaussian",
        )  # fmt: skip
