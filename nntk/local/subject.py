"""The model of a local NTK: checked, and evaluated in the dtype of the kernel."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from nntk.kernels import checks
from nntk.local.evaluation import Evaluation, differentiable_inputs
from nntk.local.memory import Problem
from nntk.models.black_box import BlackBox, Function
from nntk.models.checks import check_evaluation_mode, check_inputs, check_parameters
from nntk.models.data.inputs import Batch, cast_floating, map_tensors
from nntk.models.data.outputs import Output, OutputChoice
from nntk.models.general import GeneralModel
from nntk.models.isolation.wrappers import refuse_compiled, unwrap
from nntk.models.mlp import Mlp
from nntk.models.module import view_module
from nntk.models.recognise import recognise
from nntk.models.view import FindingsByStructure, ModelView, check_model, view_model

Parameters = Sequence[str] | Mapping[str, Tensor] | None
"""Names of parameters that count, of a module; or the tensors of a function, by name."""

_FINDINGS: WeakKeyDictionary[object, dict[object, FindingsByStructure]] = WeakKeyDictionary()
"""What earlier calls found out about each model that still exists, so that only the first call probes it."""


@dataclass(frozen=True)
class Subject:
    """Model of a local NTK, as it is now.

    Attributes:
        model: The module without wrappers, or the function.
        parameters: Names of the parameters that count, or the tensors of a function.
        view: The view that inputs are checked against, in the model's own dtype.
        dtype: Floating dtype that the kernel is computed in.
        choose: Chooses the tensor that counts among what the model returns.
    """

    model: nn.Module | Function
    parameters: Parameters
    view: ModelView
    dtype: torch.dtype
    choose: OutputChoice

    @classmethod
    def of(
        cls, model: nn.Module | Function, parameters: Parameters, dtype: torch.dtype | None, output: Output = None
    ) -> "Subject":
        """Check a model, and return it as it is now.

        Args:
            model: A module, or a function ``f(parameters, x)``.
            parameters: Names of the parameters that count, or patterns of them; the tensors of a function by name.
            dtype: Dtype of the kernel; None for that of the parameters.
            output: Choice among what the model returns, as for :func:`nntk.local_ntk`.

        Returns:
            The subject.

        Raises:
            ValueError: If a layer is in training mode, a parameter is not finite, none counts, or a name fits none.
            TypeError: If the model has no gradient by its kind, or an argument has the wrong type.
        """
        if dtype is not None and dtype not in checks.FLOATS:
            raise TypeError(f"dtype must be torch.float32, torch.float64 or None, got {dtype!r}.")
        if isinstance(model, BlackBox):
            raise TypeError("model must be one that autograd can differentiate, got a BlackBox; use nntk.NonlocalNTK.")
        if not isinstance(model, nn.Module) and parameters is None:
            raise TypeError(
                "model must be a torch.nn.Module, or a function f(parameters, x) with its tensors as parameters; "
                f"got {type(model).__name__} without parameters."
            )
        check_model(model, parameters, "auto", "auto", None)
        model = unwrap(model)
        if isinstance(model, nn.Module):
            refuse_compiled(model)
            check_evaluation_mode(model)
            if parameters is None and not any(parameter.requires_grad for parameter in model.parameters()):
                raise ValueError("model must have a parameter with requires_grad=True, got none.")
            check_parameters(model)
        choose = OutputChoice(output)
        view = view_model(model, parameters, findings=_findings(model, parameters, output), choose=choose)
        return cls(model, parameters, view, view.dtype if dtype is None else dtype, choose)

    @cached_property
    def general(self) -> GeneralModel:
        """View of the model's tensors by name, in the dtype of the kernel."""
        view = self.view
        if not isinstance(view, GeneralModel):
            assert isinstance(self.model, nn.Module), "only a module is an MLP"
            view = view_module(self.model, list(view.names.values()), choose=self.choose)
        if view.dtype == self.dtype:
            return view
        # Frozen parts in half precision are evaluated in their own dtype.
        constants = {
            name: tensor.to(self.dtype) if tensor.is_floating_point() and not view.halves else tensor
            for name, tensor in view.constants.items()
        }
        displaced = {index: parameter.to(self.dtype) for index, parameter in view.displaced.items()}
        return replace(view, displaced=displaced, constants=constants)

    @cached_property
    def evaluation(self) -> Evaluation:
        """Outputs and gradients of the model, in the dtype of the kernel."""
        widens = self.dtype.itemsize > self.view.dtype.itemsize
        return Evaluation.of(self.model, self.general, self.choose, widens)

    @property
    def has_structure(self) -> bool:
        """True if the model is an MLP whose layers do not share parameters."""
        return isinstance(self.view, Mlp) and not self.view.is_tied

    def mlp(self) -> Mlp:
        """Return the model as an MLP, in the dtype of the kernel.

        Raises:
            NotRecognised: If it is none; the message names the layer.
            TypeError: If it is a function.
            ValueError: If an output is chosen.
        """
        if isinstance(self.view, Mlp):
            mlp = self.view
        else:
            if self.choose.output is not None:
                raise ValueError(
                    "output must be None for method='structured', whose model returns one tensor; got "
                    f"{self.choose.output!r}."
                )
            if not isinstance(self.model, nn.Module):
                raise TypeError("model must be a torch.nn.Module for method='structured', got a function.")
            mlp = recognise(self.model, None if isinstance(self.parameters, Mapping) else self.parameters)
        if mlp.dtype == self.dtype:
            return mlp
        cast = (
            replace(
                layer,
                weight=layer.weight.to(self.dtype),
                bias=None if layer.bias is None else layer.bias.to(self.dtype),
            )
            for layer in mlp.layers
        )
        return replace(mlp, layers=tuple(cast))

    def inputs(self, name: str, x: Batch) -> Batch:
        """Check inputs, and return them in the dtype of the kernel; a new kind of them probes a model that is no MLP.

        Args:
            name: Name of the argument, for messages.
            x: Inputs, [N, ...].

        Returns:
            The inputs, detached.

        Raises:
            ValueError: If they do not fit the model or are not finite.
            TypeError: If they have another dtype than the model.
        """
        if isinstance(self.view, GeneralModel):
            x = self.view.inputs(name, x)
        elif isinstance(x, Tensor):
            check_inputs(name, x, self.view.dtype, self.view.device)
            x = x.detach()
        else:
            raise TypeError(f"{name} must be one tensor for an nn.Sequential of Linear layers, got {x!r}.")
        return cast_floating(differentiable_inputs(x), self.dtype)

    def problem(self, x1: Batch, x2: Batch | None, outputs: str) -> Problem:
        """Return what the memory of a kernel depends on, by an evaluation at one of the inputs.

        Args:
            x1: Inputs of the rows, as :meth:`inputs` returns them.
            x2: Inputs of the columns; None for those of the rows.
            outputs: Treatment of the outputs.

        Returns:
            The problem.

        Raises:
            ValueError: If the model fails at the input.
            TypeError: If it does not return a real tensor with a row for each input.
        """
        empty = map_tensors(lambda tensor: tensor.new_zeros(1, *tensor.shape[1:]), x1)
        filled = next((x for x in (x1, x2) if x is not None and len(x)), empty)
        try:
            num_outputs, activations = self.evaluation.size_up(filled[:1])
        except TypeError:
            raise
        except Exception as error:  # A model may raise anything.
            raise ValueError(
                f"model must be evaluable at these inputs, but fails: {type(error).__name__}: {error}"
            ) from error
        return self.problem_of(x1, x2, outputs, num_outputs, activations)

    def problem_of(self, x1: Batch, x2: Batch | None, outputs: str, num_outputs: int, activations: int) -> Problem:
        """Return the same, given the number of outputs and the bytes of an evaluation of one input."""
        return Problem(
            rows=len(x1),
            columns=len(x1 if x2 is None else x2),
            outputs=num_outputs,
            axes={"diagonal": 1, "full": 2}.get(outputs, 0),
            parameters=self.view.num_params,
            activations=activations,
            dtype=self.dtype,
        )


@contextmanager
def plain_gradients(device: torch.device) -> Iterator[None]:
    """Compute in the dtypes that are given, and with tensors that can be differentiated, whatever the caller's modes.

    Tensors that are made in inference mode cannot be differentiated.
    """
    with torch.autocast(device.type, enabled=False), torch.inference_mode(False), torch.no_grad():
        yield


def _findings(model: object, parameters: Parameters, output: Output) -> FindingsByStructure:
    """Return what is known of a model; a choice of parameters and of the output has findings of its own."""
    if callable(output):  # It may be another one at each call.
        return {}
    try:
        key = output, parameters if parameters is None else tuple(parameters)
        return _FINDINGS.setdefault(model, {}).setdefault(key, {})
    except TypeError:  # Some callables cannot be referred to weakly.
        return {}
