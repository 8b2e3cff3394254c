"""A model as the local NTK evaluates it: outputs and gradients at copies of its tensors, in plain autograd."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from nntk.local.agreement import tolerance_of
from nntk.models.data.inputs import Batch, call_with, map_tensors
from nntk.models.data.outputs import OutputChoice
from nntk.models.general import GeneralModel, as_matrix
from nntk.models.isolation.evaluation import ModuleEvaluation
from nntk.models.observe import Observe

Parameters = dict[str, Tensor]
"""Parameters that count, by name."""


class _AppliedModule(nn.Module):
    """Module that applies a function to the outputs of another one, while its parameters are still replaced.

    A block of ``torch.utils.checkpoint`` is evaluated again in the backward pass, which therefore must end before the
    parameters are put back.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, job: tuple[Batch, Callable[[Any], Tensor], AbstractContextManager[Any]]) -> Tensor:
        """Return ``then(outputs)`` for a job of inputs, the function ``then``, and a context of the forward pass."""
        x, then, context = job
        with context:
            outputs = call_with(self.model, x)
        return then(outputs)


@dataclass(frozen=True)
class Evaluation:
    """Function from the parameters that count, and inputs, to outputs; the model and the inputs stay as they are.

    Attributes:
        view: The model's tensors, and what is known of the model.
        apply_module: Evaluates the module, and then a function of its outputs.
        is_recurrent: A layer of the module is recurrent.
        choose: Chooses the tensor that counts among what the module returns.
    """

    view: GeneralModel
    apply_module: ModuleEvaluation
    is_recurrent: bool
    choose: OutputChoice

    @classmethod
    def of(cls, model: nn.Module, view: GeneralModel, choose: OutputChoice) -> "Evaluation":
        """Return the evaluation of a module, given its view and the choice among its outputs."""
        is_recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
        return cls(view, ModuleEvaluation(_AppliedModule(model), view.findings), is_recurrent, choose)

    @property
    def parameters(self) -> Parameters:
        """Parameters that count, by name, detached."""
        return {name: differentiable(self.view.displaced[index]) for index, name in self.view.names.items()}

    @property
    def tolerance(self) -> float:
        """Relative difference that rounding explains, in the dtype that the model computes in."""
        dtype = torch.float32 if self.view.findings.names_float32 else self.view.dtype
        return tolerance_of(dtype, self.view.device)

    def outputs(self, parameters: Parameters, x: Batch) -> Tensor:
        """Return the outputs at some parameters.

        Args:
            parameters: Values of the parameters that count, by name.
            x: Inputs, [n, ...].

        Returns:
            [n, C] in the dtype of the parameters.

        Raises:
            TypeError: If the model returns no real tensor with a row for each input.
        """
        return self.apply(parameters, x, lambda outputs: outputs)

    def apply(
        self,
        parameters: Parameters,
        x: Batch,
        then: Callable[[Tensor], Tensor],
        context: AbstractContextManager[Any] | None = None,
    ) -> Tensor:
        """Return a function of the outputs, applied while the parameters are in the module; see :meth:`outputs`.

        Args:
            parameters: Values of the parameters that count, by name.
            x: Inputs, [n, ...].
            then: Function of the outputs [n, C].
            context: Context of the forward pass.
        """
        written, copies_all = self.view.written, self.view.findings.keeps_state
        tensors = {
            f"model.{name}": tensor.clone() if copies_all or name in written else differentiable(tensor)
            for name, tensor in {**self.view.originals, **parameters}.items()
        }
        job = (x.clone(), lambda outputs: then(self._as_matrix(self.choose(outputs), x)), context or nullcontext())
        # cuDNN's recurrent layers have a backward pass in training mode alone.
        with torch.backends.cudnn.flags(enabled=False) if self.is_recurrent else nullcontext():
            result: Tensor = self.apply_module(tensors, cast(Tensor, job))
        return result

    def _as_matrix(self, outputs: Any, x: Batch) -> Tensor:
        matrix = as_matrix(outputs, x)
        if matrix.is_complex():
            raise TypeError(
                f"model must return real outputs, got {outputs.dtype}; return torch.view_as_real(outputs) instead."
            )
        return matrix.to(self.view.dtype)

    def size_up(self, x: Batch) -> tuple[int, int]:
        """Evaluate the model at one input, to learn how much an evaluation holds.

        Args:
            x: The input, [1, ...].

        Returns:
            Number C of outputs, and bytes of the results of all operators of the forward pass.
        """
        total = 0

        def add(function: Any, arguments: Any, options: Any, result: Any) -> None:
            nonlocal total
            # A view, or a tensor that is written to, takes no further memory.
            if not any(value.alias_info for value in function._schema.returns):
                total += sum(leaf.numel() * leaf.itemsize for leaf in tree_leaves(result) if isinstance(leaf, Tensor))

        with torch.enable_grad():
            outputs = self.apply(self.parameters, x, lambda outputs: outputs, Observe(add))
        return outputs.shape[1], total


def differentiable(tensor: Tensor) -> Tensor:
    """Return a tensor that autograd accepts: a copy of one that was made in inference mode, else the tensor itself."""
    return tensor.clone() if tensor.is_inference() else tensor


def differentiable_inputs(x: Batch) -> Batch:
    """Return inputs that autograd accepts; see :func:`differentiable`."""
    return map_tensors(differentiable, x)
