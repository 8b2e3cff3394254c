"""Real data of the suites: scikit-learn's bundled 8x8 digits, and their ridge classification by a kernel."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

TRAINING = 1000
RIDGE = 0.1


@dataclass(frozen=True)
class Digits:
    """Digits, 1797 in a shuffled order; the first ``TRAINING`` are for training."""

    images: Tensor
    """[1797, 64], float32, in [0, 1]."""
    labels: Tensor
    """[1797], int64."""


def load(seed: int, device: torch.device) -> Digits:
    """Load the digits, shuffled by ``seed``."""
    from sklearn.datasets import load_digits  # a slow import, which --help does not need

    data, target = load_digits(return_X_y=True)
    order = torch.randperm(len(target), generator=torch.Generator().manual_seed(seed))
    images = torch.from_numpy(data)[order].float().div_(16)
    return Digits(images.to(device), torch.from_numpy(target)[order].to(device))


def he_network(
    widths: tuple[int, ...], activation: type[nn.Module], seed: int, device: torch.device, biases: float = 0.0
) -> nn.Sequential:
    """Make an untrained MLP: normal weights of variance 2 / fan-in, no activation at the end.

    Args:
        widths: Widths of inputs, hidden layers and outputs.
        activation: Class of the hidden units.
        seed: Seed of the weights.
        device: Device of the network.
        biases: Standard deviation of the biases, which are normal too.

    Returns:
        The network, in float32 and evaluation mode.
    """
    generator = torch.Generator().manual_seed(seed)
    modules: list[nn.Module] = []
    for fan_in, fan_out in zip(widths[:-1], widths[1:], strict=True):
        layer = nn.Linear(fan_in, fan_out)
        with torch.no_grad():
            layer.weight.normal_(0, (2 / fan_in) ** 0.5, generator=generator)
            layer.bias.zero_()
            if biases:
                layer.bias.normal_(0, biases, generator=generator)
        modules += [layer, activation()]
    return nn.Sequential(*modules[:-1]).to(device).eval()


def held_out_accuracy(kernel: Tensor, labels: Tensor, ridge: float = RIDGE, training: int = TRAINING) -> float:
    """Return the accuracy of kernel ridge regression on one-hot targets at held-out inputs.

    Args:
        kernel: Kernel of all inputs, training inputs first, [N, N].
        labels: Classes, [N], int64.
        ridge: Ridge, as a fraction of the mean diagonal of the training kernel.
        training: Number of training inputs.

    Returns:
        The fraction of right labels, in [0, 1].
    """
    kernel = kernel.double()
    fit = kernel[:training, :training].clone()
    fit.diagonal().add_(ridge * fit.diagonal().mean())
    targets = nn.functional.one_hot(labels[:training]).double()
    # LU instead of Cholesky: an estimated kernel may be singular within rounding.
    predictions = (kernel[training:, :training] @ torch.linalg.solve(fit, targets)).argmax(1)
    return float((predictions == labels[training:]).double().mean())
