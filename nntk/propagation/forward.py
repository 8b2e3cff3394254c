"""One evaluation of a model on displaced tensors."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nntk.models.data.inputs import Batch, map_tensors
from nntk.propagation.context import PropagationContext
from nntk.propagation.displaced_tensor import DisplacedTensor
from nntk.propagation.guard import UnsupportedOpGuard
from nntk.propagation.registry import NoRule


@dataclass(frozen=True)
class DisplacedForward:
    """A forward pass, and the tensors that it is evaluated at.

    Attributes:
        forward: Function from all tensors of the model by name, and inputs, to outputs.
        tensors: All tensors of the model by name, floating ones in float64.
        originals: The same tensors in their own dtype.
        param_indices: Indices of the displaced parameters in the random stream, by name.
    """

    forward: Callable[[dict[str, Tensor], Batch], Any]
    tensors: Mapping[str, Tensor]
    originals: Mapping[str, Tensor]
    param_indices: Mapping[str, int]

    @property
    def param_shapes(self) -> dict[int, tuple[int, ...]]:
        """Shapes of the displaced parameters, by their index in the random stream."""
        return {index: tuple(self.originals[name].shape) for name, index in self.param_indices.items()}

    @property
    def num_params(self) -> int:
        """Number d of displaced parameters."""
        return sum(self.originals[name].numel() for name in self.param_indices)

    def unit_differences(self, x: Batch, ctx: PropagationContext) -> Tensor:
        """Compute unit differences of the outputs for one chunk of displacements at one input block.

        Args:
            x: Inputs, [N, ...], floating ones in float64.
            ctx: Context of the evaluation.

        Returns:
            The differences, [M, members, N, C].

        Raises:
            NoRule: If the model calls a function that has no rule, or its outputs do not depend on the displacements.
        """
        # The displaced tensors are rebuilt for each evaluation, because their noise belongs to its context.
        parameters: dict[str, Tensor] = {}
        for name, value in self.tensors.items():
            original = self.originals[name]
            rounded = original if original.dtype == ctx.dtype else None
            parameters[name] = DisplacedTensor.create(ctx, value, None, self.param_indices.get(name), rounded)
        inputs, num_cached = map_tensors(lambda tensor: _constant_input(ctx, tensor), x), len(ctx.cache)
        with _no_random_numbers(x.device):
            try:
                with UnsupportedOpGuard(ctx), torch.compiler.set_stance("force_eager"):
                    outputs = self.forward(parameters, inputs)
            except Exception as error:
                # An interpreter of scripted code reports the refusal in its own words.
                if isinstance(error, NoRule):
                    raise
                if ctx.refusal is not None:
                    raise ctx.refusal from error
                if "data pointer" in str(error):
                    raise NoRule("model reads the memory of displaced values.") from error
                raise
        if ctx.refusal is not None:
            raise ctx.refusal
        if num_cached and not num_cached == len(ctx.cache) == ctx.cache_position:
            raise NoRule(
                "model does not call the same functions at every evaluation, so that cached values do not fit."
            )
        if not isinstance(outputs, DisplacedTensor) or not outputs.is_displaced or len(outputs) != len(x):
            raise NoRule(
                "model must return a tensor that has a row for each input and depends on displaced parameters."
            )
        if outputs.is_complex():
            raise NoRule("model must return real numbers, not complex ones.")
        tangent = outputs.tangent / ctx.mantissas.view(-1, *[1] * (outputs.tangent.dim() - 1))
        return tangent.flatten(3) if tangent.dim() > 3 else tangent[..., None]


def _constant_input(ctx: PropagationContext, tensor: Tensor) -> DisplacedTensor:
    """Return a tensor of the inputs, which belong to the caller: a function that writes to it makes a new one."""
    displaced = DisplacedTensor.create(ctx, tensor)
    displaced.shares_memory = True
    return displaced


@contextmanager
def _no_random_numbers(device: torch.device) -> Iterator[None]:
    """Restore the global generators afterwards, and raise NoRule if random numbers were drawn from one of them."""
    generators = [torch.default_generator]
    if device.type == "cuda":
        generators.append(torch.cuda.default_generators[device.index])
    states = [generator.get_state() for generator in generators]
    try:
        yield
    finally:
        changed = [
            pair for pair in zip(generators, states, strict=True) if not torch.equal(pair[0].get_state(), pair[1])
        ]
        for generator, state in changed:
            generator.set_state(state)
    if changed:
        raise NoRule("model draws random numbers.")
