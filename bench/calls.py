"""Every op with small arguments, in each of its forms: for tests of the ops, and for what a call costs the host."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nntk.kernels.assemble import OUTPUTS
from nntk.kernels.perturb.activations import encode
from nntk.models import recognise

ROWS, INPUTS, OUTPUT_WIDTH, WIDTH = 5, 4, 3, 6
_KEY = (1, 2**32 - 1)

Call = tuple[str, tuple[Any, ...]]
"""The name of an op of ``torch.ops.nntk``, and its arguments."""


def calls(device: torch.device | str = "cpu") -> list[Call]:
    """Every op, some in several forms; the numbers are the same each time.

    Args:
        device: Where the tensors are.

    Returns:
        Names and arguments, by name.
    """
    made = [*_stream(), *_weights(), *_evaluation(), *_assembly(), *_local()]
    return sorted(((name, _placed(arguments, torch.device(device))) for name, arguments in made), key=lambda c: c[0])


def _placed(argument: Any, device: torch.device) -> Any:
    if isinstance(argument, list | tuple):
        return type(argument)(_placed(part, device) for part in argument)
    return argument.to(device) if isinstance(argument, Tensor) else argument


def _random(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(dtype)


def _displacements(directions: str = "gaussian") -> tuple[Any, ...]:
    """What ops that make noise take: parameters, ordinals, rows, key, family."""
    return ([torch.zeros(4, 5), torch.zeros(4)], [0, 1], torch.arange(ROWS), *_KEY, directions)


def _network(dtype: torch.dtype) -> tuple[Any, ...]:
    """An MLP as schemas carry it: weights, biases, activations and their parameters."""
    model = nn.Sequential(nn.Linear(WIDTH, 7), nn.Tanh(), nn.Linear(7, OUTPUT_WIDTH))
    for number, parameter in enumerate(model.parameters()):
        parameter.data = _random(*parameter.shape, dtype=dtype) / (number + 2)
    layers = recognise(model).layers
    tensors = [layer.weight for layer in layers], [layer.bias for layer in layers]
    return (*tensors, *encode([layer.activation for layer in layers]), [0, 2], [1, 3])


def _stream() -> Sequence[Call]:
    rows = torch.arange(ROWS)
    return [
        ("unit_displacements", (rows, 0, [4, 5], *_KEY, "gaussian", torch.float64)),
        ("unit_displacements", (rows, 0, [4, 5], *_KEY, "flipout(2)", torch.float64)),
        ("squared_norms", _displacements()),
        ("squared_norms", _displacements("lowrank(2)")),
        ("displacement_gram", _displacements()),
        ("displacement_gram", _displacements("lowrank(2)")),
        ("project_displacements", (*_displacements(), 3)),
        ("multiply_displacements", (*_displacements("rademacher"), torch.ones(2, 24))),
    ]


def _softmax() -> tuple[Tensor, Tensor, Tensor]:
    """Log weights and factors of rows, and statistics of inputs."""
    positive = 1 + _random(INPUTS).square()
    return _random(ROWS), _random(ROWS).abs(), torch.stack((_random(INPUTS), positive, positive))


def _weights() -> Sequence[Call]:
    priors, factors, statistics = _softmax()
    pairs, keys = _random(2, ROWS, INPUTS, 1), _random(INPUTS, 1)
    return [
        ("radii", (torch.arange(ROWS), *_KEY, "cauchy", 10, 0.1, 0.0)),
        ("radial_weights", (_random(ROWS).square(), "cauchy", [0.1, 5.5], "power", [1e-3, 6.0])),
        ("attention_scores", (_random(ROWS, INPUTS, OUTPUT_WIDTH), _random(INPUTS, OUTPUT_WIDTH), "dot")),
        ("attention_statistics", (pairs, keys, priors, factors, "dot")),
        ("attention_weights", (pairs, keys, priors, factors, statistics, "dot")),
    ]


def _evaluation() -> Sequence[Call]:
    x, scales = _random(INPUTS, WIDTH, dtype=torch.float32), torch.full((ROWS,), 0.1)
    common = (x, *_network(torch.float32), torch.arange(ROWS), scales, *_KEY, "gaussian")
    forms = (("none", "difference", "tf32"), ("odd", "direct", "fp32"), ("both", "difference", "fp32"))
    return [("mlp_differences", (*common, *form, 2**20)) for form in forms]


def _assembly() -> Sequence[Call]:
    d, other, pairs, keys = _random(ROWS, INPUTS, OUTPUT_WIDTH), _random(ROWS, 2, OUTPUT_WIDTH), *_pairs()
    alpha, norms, gram = torch.softmax(_random(ROWS), 0), 1 + _random(ROWS).square(), _random(ROWS, ROWS)
    priors, factors, statistics = _softmax()
    largest = statistics[0]
    found: list[Call] = [
        ("energy", (d, None, norms, "weights", _random(ROWS, INPUTS).abs(), *(None,) * 7, "trace")),
        ("energy", (pairs, pairs, norms, "dot", None, None, keys, keys, priors, factors, largest, largest, "trace")),
        ("nonlocal_gradients", (d, alpha, norms, *_displacements())),
        ("energy_product", (d, None, alpha, alpha, norms, _random(INPUTS, 2))),
    ]
    for d2 in (None, other):
        for mode in OUTPUTS:
            found += [
                ("energy", (d, d2, norms, "rows", *(None,) * 8, mode)),
                ("inner_product", (d, d2, alpha, None, norms, gram, 24, True, mode)),
                ("inner_product_of_gradients", (d, d2, alpha, None, norms, *_displacements(), True, mode)),
            ]
    return found


def _pairs() -> tuple[Tensor, Tensor]:
    """Both halves of the differences of one output, and its keys."""
    return _random(2, ROWS, INPUTS, 1), _random(INPUTS, 1)


def _local() -> Sequence[Call]:
    return [
        ("structured_ntk", (_random(INPUTS, WIDTH, dtype=dtype), other, *_network(dtype), mode))
        for dtype, other in ((torch.float32, None), (torch.float64, _random(3, WIDTH)))
        for mode in OUTPUTS
    ]
