"""Real data of the suites: scikit-learn's bundled 8x8 digits, and their ridge classification by a kernel."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nntk.linalg.ridge import solve

TRAINING = 1000
"""Number of training inputs, of 1797 digits."""
RIDGE = 0.1
"""Ridge of the classification, as a fraction of the mean diagonal of the training kernel."""


@dataclass(frozen=True)
class Digits:
    """The 1797 digits in a shuffled order; the first ``TRAINING`` are for training.

    Attributes:
        images: Pixels, [1797, 64], float32, in [0, 1].
        labels: Classes, [1797], int64.
    """

    images: Tensor
    labels: Tensor


def load(seed: int, device: torch.device) -> Digits:
    """Load the digits, shuffled by ``seed``.

    Args:
        seed: Seed of the order.
        device: Device of the tensors.

    Returns:
        The digits.
    """
    # Imported here because it takes a second, which --help must not wait for.
    from sklearn.datasets import load_digits

    data, target = load_digits(return_X_y=True)
    order = torch.randperm(len(target), generator=torch.Generator().manual_seed(seed))
    images = torch.from_numpy(data)[order].float().div_(16)
    return Digits(images.to(device), torch.from_numpy(target)[order].to(device))


def he_network(
    widths: tuple[int, ...], activation: type[nn.Module], seed: int, device: torch.device, biases: float = 0.0
) -> nn.Sequential:
    """Build an untrained MLP with normal weights of variance 2 / fan-in and no activation at the end.

    Args:
        widths: Widths of inputs, hidden layers and outputs.
        activation: Class of the hidden units.
        seed: Seed of the weights.
        device: Device of the weights.
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
    """Return the fraction of held-out labels that kernel ridge regression on one-hot targets predicts.

    Args:
        kernel: Kernel of all inputs, training inputs first, [N, N].
        labels: Classes, [N], int64.
        ridge: The ridge, as a fraction of the mean diagonal of the training kernel.
        training: Number of training inputs.

    Returns:
        The accuracy, in [0, 1].
    """
    kernel = kernel.double()
    known, targets = kernel[:training, :training], nn.functional.one_hot(labels[:training]).double()
    weights = solve(known, ridge * float(known.diagonal().mean()), targets)
    predictions = (kernel[training:, :training] @ weights).argmax(1)
    return float((predictions == labels[training:]).double().mean())
