"""What the kernels of one evaluation read: the settings that its chunks share, and their operands in memory."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from nntk.kernels.mlp import Layer, unperturbed
from nntk.kernels.perturb.activations import encode
from nntk.kernels.perturb.reference import ROUNDINGS
from nntk.kernels.perturb.triton import config as tiles
from nntk.kernels.perturb.triton.chunks import IN_THE_MAKING, pieces
from nntk.kernels.philox.directions import Directions
from nntk.kernels.philox.triton import launch as philox
from nntk.kernels.target import Target


@dataclass(frozen=True)
class Call:
    """What all chunks of one call share."""

    layers: Sequence[Layer]
    weights: list[Tensor]
    """Weights of the layers behind the first as operands of the products, [H, padded(K)]; made once for all chunks."""
    directions: Directions
    key: philox.Key
    pairs: str
    precision: str
    target: Target
    path: str | None
    """Forces one of ``tiles.PATHS``, an error where it does not apply; None leaves the choice to the cost model."""
    max_bytes: int
    """The budget of temporary memory."""

    @property
    def halves(self) -> int:
        """Evaluations of a displacement."""
        return 1 if self.pairs == "none" else 2

    @property
    def piece_bytes(self) -> int:
        """What may be taken at once by what is made piece by piece."""
        return self.max_bytes // IN_THE_MAKING

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the products' operands."""
        return operand_dtype(self.precision, self.target)

    @property
    def element(self) -> tl.dtype:
        """The same for Triton."""
        return philox.triton_type(self.dtype)

    @property
    def input_precision(self) -> str:
        """What Triton calls the precision of a product."""
        return tiles.input_precision(self.precision, self.target.arch)

    @property
    def widths(self) -> list[int]:
        """Widths of the network, inputs and outputs included."""
        return [self.layers[0].weight.shape[1], *(layer.weight.shape[0] for layer in self.layers)]

    def source(self, layer: Layer) -> str:
        """Family of a layer's noise, ``"none"`` where its weight stays."""
        return "none" if layer.weight_ordinal is None else self.directions.name

    def fused(self) -> tiles.Fused | None:
        """Choose or refuse the fused path.

        Returns:
            Its tiles, None where it is not taken.

        Raises:
            ValueError: If it is forced and does not apply.
        """
        source, arch = self.directions.name, self.target.arch
        if self.path not in (None, "fused"):
            return None
        names = [layer.activation.name for layer in self.layers]
        cut = tiles.fused_tiles(source, self.precision, self.widths, names, arch)
        if cut is None and self.path == "fused":
            widest = tiles.fused_width(source, self.precision, arch)
            raise ValueError(
                f"path 'fused' does not apply to {source} in {self.precision} on {arch} with widths {self.widths} and "
                f"activations {names}: it takes two to {tiles.FUSED_LAYERS} layers of widths up to {widest}, "
                "without an activation at the end."
            )
        return cut


@dataclass(frozen=True)
class Unmoved:
    """The unperturbed pass of some inputs, made in float64 and rounded once; rows padded to 16 units."""

    num_inputs: int
    states: list[tuple[Tensor, ...]]
    """What each activation keeps of z, [N, padded(H)] each, float32."""
    hidden: list[Tensor]
    """Inputs of each layer, [N, padded(K)], float32."""
    operands: list[Tensor | None]
    """The same as operands of the products: of the first layer, and of those whose displacements multiply h and d
    apart."""

    @classmethod
    def of(cls, call: Call, x: Tensor) -> "Unmoved":
        """The pass of some inputs, in pieces: in float64 a unit takes some 64 bytes on its way."""

        def empty(width: int) -> Tensor:
            return torch.zeros(len(x), philox.padded(width), device=x.device)

        hidden = [empty(width) for width in call.widths[:-1]]
        states = [tuple(empty(len(layer.weight)) for _ in range(layer.activation.state_parts)) for layer in call.layers]
        for some in pieces(len(x), max(1, call.piece_bytes // (64 * sum(call.widths)))):
            passed, _ = unperturbed(call.layers, x[some])
            for layer, (h, z), inputs, state in zip(call.layers, passed, hidden, states, strict=True):
                inputs[some, : h.shape[1]] = h
                for whole, part in zip(state, layer.activation.state(z, torch.float32), strict=True):
                    whole[some, : z.shape[1]] = part
        apart = call.directions.name == "lowrank"
        operands = [
            as_operand(h, call.precision, call.target) if apart or number == 0 else None
            for number, h in enumerate(hidden)
        ]
        return cls(len(x), states, hidden, operands)


def operand_dtype(precision: str, target: Target) -> torch.dtype:
    """Dtype of the products' operands."""
    if precision != "bf16":
        return torch.float32
    # The interpreter has no bfloat16: float16 stands for it there.
    return torch.bfloat16 if target.arch != "interpreter" else torch.float16


def as_operand(matrix: Tensor, precision: str, target: Target) -> Tensor:
    """Float32 numbers as an operand of a product, rounded to its precision."""
    # Tensor cores drop what float32 has beyond TF32; the conversion to bfloat16 rounds by itself.
    rounded = ROUNDINGS[precision](matrix) if precision == "tf32" else matrix
    return rounded.to(operand_dtype(precision, target))


def pad(matrix: Tensor) -> Tensor:
    """A copy with rows padded by zeros, as descriptors and wide stores want."""
    out = matrix.new_zeros(matrix.shape[0], philox.padded(matrix.shape[1]))
    out[:, : matrix.shape[1]] = matrix
    return out


def described(lines: Tensor, width: int, block: tuple[int, ...]) -> TensorDescriptor:
    """A descriptor of lines of ``width``, in tiles of ``block``: a matrix where it has two sizes; zero beyond."""
    tensor = lines.view(-1, lines.shape[-1]) if len(block) == 2 else lines
    return TensorDescriptor(tensor, [*tensor.shape[:-1], width], list(tensor.stride()), list(block))


def parameters(layers: Sequence[Layer]) -> tuple[float, ...]:
    """The activations' own parameters, two a layer; numbers, so that nothing is copied to the device."""
    return tuple(encode([layer.activation for layer in layers])[1])
