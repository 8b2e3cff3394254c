r"""Definition of the unit differences of an MLP, in a few lines of plain torch. Begin to read here.

The parameters :math:`\theta` are displaced by :math:`\delta_m = s_m E_m`, with the scale :math:`s_m` and the unit
displacement :math:`E_m` from the random stream. The unit differences of the plus and minus members of the antithetic
pair, and their odd part, are

.. math::
    \frac{D^\pm_{mn}}{s_m} = \frac{f(x_n; \theta \pm s_m E_m) - f(x_n; \theta)}{s_m}, \qquad
    \frac{D_{mn}}{s_m} = \frac{D^+_{mn} - D^-_{mn}}{2 s_m}.

Everything is in float64, and one displacement is evaluated after another. reference.py computes the same quantities
fast, and accurately at every scale.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from nntk.kernels.mlp import Layer, displaced
from nntk.kernels.philox import unit_displacements


def forward(x: Tensor, layers: Sequence[Layer], step: float, unit: dict[int, Tensor]) -> Tensor:
    """Evaluate the MLP at the parameters theta + step E, where ``unit`` holds E by ordinal: [N, K] to [N, C]."""

    def parameter(value: Tensor, ordinal: int | None) -> Tensor:
        return value.double() if ordinal is None else value.double() + step * unit[ordinal]

    h = x.double()
    for layer in layers:
        z = h @ parameter(layer.weight, layer.weight_ordinal).T
        if layer.bias is not None:
            z = z + parameter(layer.bias, layer.bias_ordinal)
        h = layer.activation.value(z)
    return h


def mlp_differences(
    x: Tensor,
    layers: Sequence[Layer],
    sample_ids: Tensor,
    scales: Tensor,
    seed: int,
    directions: str = "gaussian",
    pairs: str = "odd",
) -> tuple[Tensor, Tensor]:
    """Evaluate the definition; arguments and results are those of :func:`nntk.kernels.perturb.mlp_differences`.

    Returns:
        Unit differences, [M, N, C], or [2, M, N, C] for ``pairs="both"``, and the squared norms of the unit
        displacements, [M]; both float64.

    Example:
        >>> layer = Layer(torch.zeros(1, 2), weight_ordinal=0)
        >>> d, norms = mlp_differences(torch.eye(2), [layer], torch.arange(3), torch.full((3,), 0.1), seed=0)
        >>> d.shape, bool((d.square().sum((1, 2)) - norms).abs().max() < 1e-12)  # f(x) = w x at unit inputs: E
        (torch.Size([3, 2, 1]), True)
    """
    plus, minus, norms = [], [], []
    for m, s in zip(sample_ids.split(1), scales.double().tolist(), strict=True):
        unit = {
            ordinal: unit_displacements(m, ordinal, tensor.shape, seed, directions, torch.float64)[0]
            for ordinal, tensor in displaced(layers).items()
        }
        base = forward(x, layers, 0.0, unit)
        plus.append((forward(x, layers, s, unit) - base) / s)
        minus.append((forward(x, layers, -s, unit) - base) / s)
        norms.append(sum(float(tensor.square().sum()) for tensor in unit.values()))
    one_sided = torch.stack([torch.stack(plus), torch.stack(minus)])
    results = {"none": one_sided[0], "odd": (one_sided[0] - one_sided[1]) / 2, "both": one_sided}
    return results[pairs], torch.tensor(norms, dtype=torch.float64)
