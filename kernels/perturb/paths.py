"""Paths that a GPU takes through the layers of an MLP, known before an evaluation begins.

The choice is that of the launch, which this file calls: see "Path of a layer on a GPU" in README.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from nntk.kernels.mlp import Layer
from nntk.kernels.perturb.exactness import with_integer_rows
from nntk.kernels.philox.directions import parse
from nntk.kernels.target import Target, obstacle_of, target_of


@dataclass(frozen=True)
class LayerPaths:
    """Path of each layer of an MLP on a GPU.

    Attributes:
        names: One name a layer: ``"step"``, ``"stationary"``, ``"staged"``, ``"stacked"``, or ``"fused"`` for all
            layers together; ``"reference"`` for all layers where plain torch serves the GPU. Empty on a CPU.
        obstacle: Why plain torch serves the GPU; empty where the kernels do, and on a CPU.
    """

    names: tuple[str, ...] = ()
    obstacle: str = ""


def layer_paths(
    layers: Sequence[Layer],
    num_inputs: int,
    directions: str,
    pairs: str,
    propagation: str,
    precision: str,
    max_bytes: int,
    target: Target | None = None,
) -> LayerPaths:
    """Return the path that ``mlp_differences`` takes for each layer on a GPU, without evaluating or launching anything.

    The number of displacements does not matter: it only decides how many chunks there are. Numbers of the weights are
    read only where the evaluation reads them too, in networks that jump, to learn whether ties are exact.

    Args:
        layers: The MLP.
        num_inputs: Number N of inputs that are evaluated together.
        directions: Family of the unit displacements.
        pairs: ``"none"``, ``"odd"`` or ``"both"``.
        propagation: ``"difference"`` or ``"direct"``; ``"auto"`` has been resolved.
        precision: ``"fp32"``, ``"tf32"`` or ``"bf16"``; ``"auto"`` has been resolved.
        max_bytes: Budget of temporary memory.
        target: Card whose paths are returned, which need not be there; None for the device of the weights.

    Returns:
        The paths.

    Example:
        >>> import torch
        >>> layers = [Layer(torch.zeros(1024, 784), weight_ordinal=0), Layer(torch.zeros(10, 1024), weight_ordinal=1)]
        >>> layer_paths(layers, 1024, "gaussian", "odd", "difference", "bf16", 2**27)  # The weights are on a CPU.
        LayerPaths(names=(), obstacle='')
    """
    if target is None:
        device = layers[0].weight.device
        if device.type != "cuda":
            return LayerPaths()
        if obstacle := obstacle_of(device):
            return _reference(layers, obstacle)
        target = target_of(device)
    # Imported here because Triton need not be installed where the reference serves.
    from nntk.kernels.perturb.triton.launch import network_obstacle, network_paths
    from nntk.kernels.perturb.triton.operands import LaunchContext

    layers, widths = with_integer_rows(layers), [layers[0].weight.shape[1], *(len(layer.weight) for layer in layers)]
    dtype = layers[0].weight.dtype
    if obstacle := network_obstacle(layers, widths, dtype, propagation, precision, directions, None):
        return _reference(layers, obstacle)
    # No choice depends on the operands or on the seed.
    context = LaunchContext(layers, [], parse(directions), (0, 0), pairs, precision, target, None, max_bytes)
    return LayerPaths(tuple(network_paths(context, num_inputs)))


def _reference(layers: Sequence[Layer], obstacle: str) -> LayerPaths:
    return LayerPaths(("reference",) * len(layers), obstacle)
