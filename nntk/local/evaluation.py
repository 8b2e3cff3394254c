"""A model as the local NTK evaluates it: outputs and gradients at copies of its tensors, in plain autograd."""

import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import jvp
from torch.utils._pytree import tree_leaves

from nntk.local.agreement import tolerance_of
from nntk.models.black_box import Function
from nntk.models.data.inputs import Batch, call_with, map_tensors
from nntk.models.data.outputs import OutputChoice
from nntk.models.general import GeneralModel, as_matrix
from nntk.models.isolation.epsilon import ModelEpsilon
from nntk.models.isolation.evaluation import ModuleEvaluation, eager
from nntk.models.isolation.float64_casts import Float64Casts
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


class _AppliedFunction:
    """The same of a function f(parameters, x)."""

    def __init__(self, function: Function) -> None:
        self._function = function

    def __call__(self, tensors: Mapping[str, Tensor], job: tuple[Batch, Callable[[Any], Tensor], Any]) -> Tensor:
        """Return ``then(outputs)``, as a module that is applied does."""
        x, then, context = job
        parameters = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
        with eager(), context:
            outputs = call_with(self._function, x, parameters)
        return then(outputs)


@dataclass(frozen=True)
class Evaluation:
    """Function from the parameters that count, and inputs, to outputs; the model and the inputs stay as they are.

    Attributes:
        view: The model's tensors, and what is known of the model.
        apply_module: Evaluates the module, and then a function of its outputs.
        is_recurrent: A layer of the module is recurrent.
        choose: Chooses the tensor that counts among what the model returns.
        widens: The view is a copy in float64 of a model in float32.
    """

    view: GeneralModel
    apply_module: Callable[[Mapping[str, Tensor], Any], Tensor]
    is_recurrent: bool
    choose: OutputChoice
    widens: bool = False

    @classmethod
    def of(
        cls, model: nn.Module | Function, view: GeneralModel, choose: OutputChoice, widens: bool = False
    ) -> "Evaluation":
        """Return the evaluation of a module, or of a function, given its view and the choice among its outputs."""
        if not isinstance(model, nn.Module):
            return cls(view, _AppliedFunction(model), False, choose, widens)
        is_recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
        apply = ModuleEvaluation(_AppliedModule(model), view.findings)
        return cls(view, apply, is_recurrent, choose, widens)

    @property
    def parameters(self) -> Parameters:
        """Parameters that count, by name, detached."""
        return {name: differentiable(self.view.displaced[index]) for index, name in self.view.names.items()}

    @property
    def tolerance(self) -> float:
        """Relative difference that rounding explains, in the dtype that the model computes in."""
        rounds = self.view.findings.names_float32 and not self.widens
        dtype = torch.float32 if rounds else self.view.dtype
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

    def derivative(self, x: Batch, direction: Parameters) -> Tensor:
        """Return the derivative of the outputs along a direction of the parameters, [n, C], in forward mode."""
        _load_forward_mode()
        result: Tensor = jvp(lambda replaced: self.outputs(replaced, x), (self.parameters,), (direction,))[1]
        return result

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
        with ExitStack() as modes:
            if self.is_recurrent:  # cuDNN's recurrent layers have a backward pass in training mode alone.
                modes.enter_context(torch.backends.cudnn.flags(enabled=False))
            if self.widens and self.view.findings.names_float32:
                modes.enter_context(Float64Casts())
            if self.widens and self.view.findings.leaves_epsilon:
                modes.enter_context(ModelEpsilon(torch.float32))
            return self.apply_module(tensors, job)

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


@cache
def _load_forward_mode() -> None:
    """Let PyTorch load its rules of forward mode, without a warning that it gives itself.

    They are written in TorchScript, which PyTorch deprecates from 2.15 on. A user could do nothing about it.
    """
    with warnings.catch_warnings(), forward_ad.dual_level():
        warnings.filterwarnings("ignore", ".torch.jit", FutureWarning)
        forward_ad.make_dual(torch.zeros(()), torch.zeros(()))


def differentiable(tensor: Tensor) -> Tensor:
    """Return a tensor that autograd accepts: a copy of one that was made in inference mode, else the tensor itself."""
    return tensor.clone() if tensor.is_inference() else tensor


def differentiable_inputs(x: Batch) -> Batch:
    """Return inputs that autograd accepts; see :func:`differentiable`."""
    return map_tensors(differentiable, x)
