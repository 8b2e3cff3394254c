"""Settings that the launches of one evaluation share, and the operands that its kernels read from memory.

Third file to read, after config.py and chunks.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from nntk.kernels.activations import encode
from nntk.kernels.mlp import Layer
from nntk.kernels.perturb.reference import ROUNDINGS
from nntk.kernels.perturb.triton import config
from nntk.kernels.perturb.triton.chunks import TEMPORARY_DIVISOR
from nntk.kernels.philox.directions import Directions
from nntk.kernels.philox.triton import launch as philox
from nntk.kernels.target import Target, input_precision

_ALIGNMENT = 16
"""Bytes to whose multiples descriptors and wide loads require addresses to be aligned."""


@dataclass(frozen=True)
class LaunchContext:
    """Settings that all launches of one evaluation share."""

    layers: Sequence[Layer]
    weight_operands: list[Tensor]
    """Weights of the layers behind the first as operands of products, [H, padded(K)]. The unperturbed pass of the first
    inputs fills those that are not the weights themselves."""
    directions: Directions
    key: philox.Key
    """Low and high 32 bits of the seed."""
    pairs: str
    precision: str
    target: Target
    forced_path: str | None
    """Path that every layer must take, one of ``config.PATHS``; None leaves the choice to the cost model."""
    max_bytes: int
    """Budget of temporary memory."""

    @cached_property
    def members(self) -> int:
        """Number of evaluations of a displacement: 2 for an antithetic pair, else 1."""
        return 1 if self.pairs == "none" else 2

    @cached_property
    def temporary_bytes(self) -> int:
        """Bytes reserved for temporaries."""
        return self.max_bytes // TEMPORARY_DIVISOR

    @cached_property
    def dtype(self) -> torch.dtype:
        """Dtype of the operands of products."""
        return operand_dtype(self.precision, self.target)

    @cached_property
    def triton_dtype(self) -> tl.dtype:
        """Dtype of the operands of products, as Triton names it."""
        return philox.triton_type(self.dtype)

    @cached_property
    def input_precision(self) -> str:
        """Precision of products, as Triton names it."""
        return input_precision(self.precision, self.target.arch)

    @cached_property
    def widths(self) -> list[int]:
        """Widths of the network, inputs and outputs included."""
        return [self.layers[0].weight.shape[1], *(layer.weight.shape[0] for layer in self.layers)]

    def noise_source(self, layer: Layer) -> str:
        """Return the family of the noise of a layer, ``"none"`` where its weight is not displaced."""
        return "none" if layer.weight_ordinal is None else self.directions.name

    def fused_tiles(self) -> config.FusedTiles | None:
        """Choose or refuse the fused path.

        Returns:
            Its tiles; None where another path is taken.

        Raises:
            ValueError: If the path is forced and does not apply.
        """
        source, arch = self.directions.name, self.target.arch
        if self.forced_path not in (None, "fused"):
            return None
        names = [layer.activation.name for layer in self.layers]
        tiles = config.fused_tiles(source, self.precision, self.widths, names, arch)
        if tiles is None and self.forced_path == "fused":
            widest = config.fused_width(source, self.precision, arch)
            raise ValueError(
                f"path 'fused' does not apply to {source} in {self.precision} on {arch} with widths {self.widths} and "
                f"activations {names}: it requires two to {config.FUSED_LAYERS} layers of widths up to {widest}, "
                "without an activation at the end."
            )
        return tiles


def operand_dtype(precision: str, target: Target) -> torch.dtype:
    """Return the dtype of the operands of products."""
    if precision != "bf16":
        return torch.float32
    # The interpreter has no bfloat16, so float16 replaces it there.
    return torch.bfloat16 if target.arch != "interpreter" else torch.float16


def as_operand(matrix: Tensor, precision: str, target: Target) -> Tensor:
    """Return float32 numbers as an operand of a product, rounded to its precision."""
    # Tensor cores drop the bits that TF32 does not have, so these are rounded off here. Conversion to bfloat16 rounds.
    rounded = ROUNDINGS[precision](matrix) if precision == "tf32" else matrix
    return rounded.to(operand_dtype(precision, target))


def operand_rows(matrix: Tensor, precision: str, target: Target) -> Tensor:
    """Return what holds a matrix as an operand, with padded rows: itself if it does, else rows to be filled."""
    if precision == "fp32" and _has_padded_rows(matrix):
        return matrix
    shape, dtype = (matrix.shape[0], philox.padded(matrix.shape[1])), operand_dtype(precision, target)
    return torch.empty(shape, dtype=dtype, device=matrix.device)


def _has_padded_rows(matrix: Tensor) -> bool:
    """Return True if the rows of a matrix lie as descriptors and wide stores require."""
    return matrix.shape[1] % 16 == 0 and matrix.is_contiguous() and matrix.data_ptr() % _ALIGNMENT == 0


def pad_rows(matrix: Tensor) -> Tensor:
    """Return a matrix whose rows are padded by zeros, as descriptors and wide stores require: itself if it is one."""
    if _has_padded_rows(matrix):
        return matrix
    out = matrix.new_zeros(matrix.shape[0], philox.padded(matrix.shape[1]))
    out[:, : matrix.shape[1]] = matrix
    return out


def tensor_descriptor(tensor: Tensor, width: int, block: tuple[int, ...]) -> TensorDescriptor:
    """Describe a tensor to the kernels, which read it in blocks and get zeros beyond its shape.

    Args:
        tensor: The tensor, with padded rows, [..., padded(width)].
        width: Numbers of a row without padding.
        block: Shape of a block. With two sizes the tensor is read as a matrix.

    Returns:
        The descriptor.
    """
    tensor = tensor.view(-1, tensor.shape[-1]) if len(block) == 2 else tensor
    return TensorDescriptor(tensor, [*tensor.shape[:-1], width], list(tensor.stride()), list(block))


def activation_parameters(layers: Sequence[Layer]) -> tuple[float, ...]:
    """Return the parameters of the activations, two a layer, as numbers, so that no copy to the device is made."""
    return tuple(encode([layer.activation for layer in layers])[1])
