"""Networks of the studies: relu, tanh, sign and 4-bit units, at initialisation, in float64."""

import torch
from torch import nn

import nntk
from nntk.bench.measure import data

ACTIVATIONS = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "sign": nntk.activations.Sign,
    "4 bits": nntk.activations.Quantise,
}
"""Activations of hidden units; the last has 16 levels from -1 to 1."""


def network(units: str, widths: tuple[int, ...], seed: int, device: torch.device, biases: float = 0.5) -> nn.Sequential:
    """Build an untrained MLP: normal weights of variance 2 / fan-in, normal biases, no activation at the end.

    It is in float64, so that rounding in sums does not affect the figures of a study.

    Args:
        units: Name in ``ACTIVATIONS``.
        widths: Widths of inputs, hidden layers and outputs.
        seed: Seed of the weights.
        device: Device of the weights.
        biases: Standard deviation of the biases, which spread kinks and jumps over one-dimensional inputs.

    Returns:
        The network.
    """
    return data.he_network(widths, ACTIVATIONS[units], seed, device, biases).double()
