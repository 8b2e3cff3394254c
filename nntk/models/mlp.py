"""View of a multilayer perceptron (MLP): its affine layers with their activations, for the fused paths."""

from dataclasses import dataclass

import torch
from torch import Tensor

from nntk.kernels import mlp
from nntk.kernels.mlp import Layer
from nntk.kernels.philox.slabs import TILE
from nntk.models.checks import check_inputs
from nntk.models.data.inputs import Batch, InputValue, as_batch


@dataclass(frozen=True)
class Mlp:
    """View of a module that is an MLP; see :func:`nntk.models.recognise.recognise`.

    Attributes:
        layers: Affine layers with their activations; their tensors are views of the module's parameters.
        names: Names of the displaced parameters in the module, by their number in the random stream.
        flattens: The module flattens inputs of more than two axes first.
    """

    layers: tuple[Layer, ...]
    names: dict[int, str]
    flattens: bool

    @property
    def displaced(self) -> dict[int, Tensor]:
        """Displaced parameters by their number in the random stream, tied ones once."""
        return mlp.displaced(self.layers)

    @property
    def is_tied(self) -> bool:
        """True if a displaced parameter is used by more than one layer."""
        return mlp.is_tied(self.layers)

    @property
    def num_params(self) -> int:
        """Number d of displaced parameters."""
        return sum(parameter.numel() for parameter in self.displaced.values())

    def num_outputs(self, x: Batch) -> int:
        """Return the number C of outputs, which does not depend on the inputs ``x``."""
        return self.layers[-1].weight.shape[0]

    @property
    def dtype(self) -> torch.dtype:
        """Floating dtype of the parameters."""
        return self.layers[0].weight.dtype

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return self.layers[0].weight.device

    def outputs(self, x: Batch) -> Tensor:
        """Return the outputs [N, C] at the unperturbed parameters, in their dtype, for checked inputs [N, K]."""
        assert isinstance(x, Tensor), "inputs() returned a matrix"
        # The pass holds every layer in float64, so it takes a block of inputs at a time.
        blocks = torch.split(x, max(1, TILE // sum(layer.weight.shape[0] for layer in self.layers)))
        return torch.cat([mlp.unperturbed(self.layers, block)[1] for block in blocks]).to(x.dtype)

    def inputs(self, name: str, x: InputValue) -> Tensor:
        """Check inputs against the model and return them as a matrix.

        Args:
            name: Name of the argument, for messages.
            x: Inputs, [N, K], or [N, ...] if the module flattens.

        Returns:
            [N, K], detached.

        Raises:
            ValueError: If the shape or the device does not fit, or an entry is not finite.
            TypeError: If ``x`` is not a tensor or has another dtype than the model.
        """
        x = as_batch(name, x)
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} must be one tensor for an nn.Sequential of Linear layers, got {x!r}.")
        check_inputs(name, x, self.dtype, self.device)
        width = self.layers[0].weight.shape[1]
        if self.flattens and x.dim() > 2:
            x = x.flatten(1)
        if x.dim() != 2 or x.shape[1] != width:
            flattened = " (flattened from its second axis on)" if self.flattens else ""
            raise ValueError(
                f"{name} must have shape [N, {width}]{flattened}, as the model's first layer; got {tuple(x.shape)}."
            )
        return x.detach()
