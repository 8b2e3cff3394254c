"""View of any model that is not an MLP: its tensors by name, and a function that evaluates it at others."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from nntk.kernels.philox.slabs import TILE
from nntk.models.checks import check_general_inputs
from nntk.models.data.inputs import Batch, InputValue, as_batch, cast_floating, coefficients
from nntk.models.data.outputs import outline
from nntk.models.draws import Draws
from nntk.models.frozen.promotion import HALVES
from nntk.models.isolation.epsilon import ModelEpsilon
from nntk.models.isolation.evaluation import ModuleEvaluation
from nntk.models.isolation.findings import Findings, InputKind, input_kind
from nntk.models.isolation.float64_casts import Float64Casts
from nntk.models.isolation.probe import probe

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class GeneralModel:
    """View of a module, a function or a black box.

    Attributes:
        evaluate: Returns outputs [N, ...], given all tensors of the model by name and inputs of their dtype; a
            stochastic model is given a seed as well. It may write to what it is given.
        displaced: Displaced parameters by their number in the random stream.
        names: Names of the displaced parameters by their number in the random stream.
        constants: Tensors that are not displaced, by name.
        is_opaque: Nothing is known of the computation: the model is evaluated at one displacement after another.
        draws: Draws that a stochastic model is averaged over.
        written: Names of the tensors that an evaluation may write to: buffers. If the model keeps state, all are.
        findings: What earlier calls found out about the model, shared by all views of it in one kernel.
        failures: Reasons why propagation failed after a trial had worked, in this view alone: the result of a later
            call must not depend on the inputs of an earlier one.
    """

    evaluate: Callable[..., Any]
    displaced: dict[int, Tensor]
    names: dict[int, str]
    constants: Tensors = field(default_factory=dict)
    is_opaque: bool = False
    draws: Draws | None = None
    written: frozenset[str] = frozenset()
    findings: Findings = field(default_factory=Findings, repr=False)
    failures: dict[InputKind, str] = field(default_factory=dict, init=False, repr=False)
    _tensors_by_dtype: dict[torch.dtype, Tensors] = field(default_factory=dict, init=False, repr=False)

    @property
    def num_params(self) -> int:
        """Number d of displaced parameters."""
        return sum(parameter.numel() for parameter in self.displaced.values())

    @property
    def dtype(self) -> torch.dtype:
        """Floating dtype of the parameters and of results."""
        return next(iter(self.displaced.values())).dtype

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return next(iter(self.displaced.values())).device

    @property
    def is_stochastic(self) -> bool:
        """True if the model is evaluated under seeds."""
        return self.draws is not None

    @cached_property
    def halves(self) -> frozenset[torch.dtype]:
        """Dtypes in half precision of frozen parameters; where there are any, no frozen tensor is cast."""
        frozen = (tensor.dtype for name, tensor in self.constants.items() if name not in self.written)
        return frozenset(dtype for dtype in frozen if dtype in HALVES)

    @property
    def originals(self) -> Tensors:
        """All tensors of the model by name, in their own dtype."""
        return {**self.constants, **{self.names[index]: parameter for index, parameter in self.displaced.items()}}

    def with_draws(self, group_start: int) -> "GeneralModel":
        """Return the same model under the draws of a group of displacements; a model without draws stays the same.

        Args:
            group_start: Stream number of the first displacement of the group.
        """
        if self.draws is None:
            return self
        return replace(self, draws=replace(self.draws, first=group_start * self.draws.count))

    def inputs(self, name: str, x: InputValue) -> Batch:
        """Check inputs against the model; inputs of a new kind are those of a first evaluation, which probes the model.

        Args:
            name: Name of the argument, for messages.
            x: Inputs, [N, ...], one tensor or several (:class:`nntk.Inputs`); tensors that are not floating, such as
                tokens, are accepted as they are.

        Returns:
            The inputs, detached.

        Raises:
            ValueError: If the device does not fit, an entry is not finite, or tensors have different numbers of rows.
            TypeError: If ``x`` is nothing that holds tensors, has another floating dtype than the model, or the model
                does not return a row for each input.
        """
        batch = as_batch(name, x)
        check_general_inputs(name, batch, self.dtype, self.device, self.halves)
        batch, kind = batch.detach(), (input_kind(batch), min(2, len(batch)))
        if len(batch) and kind not in self.findings.probed:
            probe(self, batch)
            self.findings.probed.add(kind)
        return batch

    def outputs(self, x: Batch) -> Tensor:
        """Return the outputs [N, C] at the unperturbed parameters, in their dtype, computed in float64."""
        parameters = self.parameters(torch.float64)
        # With draws, the noise of an input depends on its place in the batch.
        size = max(1, TILE // max(1, coefficients(x[:1]))) if self.draws is None else max(1, len(x))
        blocks = [self.outputs_at(parameters, cast_floating(block, torch.float64)) for block in x.split(size)]
        return torch.cat(blocks).to(self.dtype)

    def num_outputs(self, x: Batch) -> int:
        """Return the number C of outputs, by an evaluation at the first of the inputs ``x``."""
        return self.outputs_at(self.parameters(self.dtype), x[:1]).shape[1]

    def outputs_at(self, parameters: Tensors, x: Batch) -> Tensor:
        """Return outputs as a matrix, [N, C], at other values of the displaced parameters.

        Args:
            parameters: Values of the displaced parameters by name, all in the dtype to compute in.
            x: Inputs, [N, ...], floating ones in that dtype.

        Returns:
            Outputs, or their mean over the draws of a stochastic model.

        Raises:
            TypeError: If the model does not return a tensor with a row for each input.
        """
        dtype = next(iter(parameters.values())).dtype
        tensors, keeps_state = {**self.tensors(dtype), **parameters}, self.findings.keeps_state

        def evaluate(*seed: int) -> Tensor:
            copies = {name: t.clone() if keeps_state or name in self.written else t for name, t in tensors.items()}
            return as_matrix(self.evaluate(copies, x.clone(), *seed), x)

        with ExitStack() as modes:
            if self.findings.names_float32 and dtype == torch.float64:
                modes.enter_context(Float64Casts())
            if self.findings.leaves_epsilon and dtype != self.dtype:
                modes.enter_context(ModelEpsilon(self.dtype))
            return evaluate() if self.draws is None else self.draws.mean(evaluate)

    def remember_prefix(self, x: Batch, max_bytes: int) -> None:
        """Let frozen layers that no displacement reaches keep their results for later evaluations of this view.

        Args:
            x: Inputs, [N, ...], in the dtype of an evaluation; the first one shows which layers these are.
            max_bytes: Bytes that the results may take.
        """
        if self.draws is not None or not self.constants or not isinstance(self.evaluate, ModuleEvaluation):
            return

        def trials() -> list[tuple[Tensors, Batch]]:
            tensors = self.tensors(self.dtype)
            generator = torch.Generator().manual_seed(0)
            moved = {}
            for name in self.names.values():
                p = tensors[name]
                noise = torch.randn(p.shape, generator=generator, dtype=p.dtype).to(p.device)
                moved[name] = p + (0.05 + p.abs().mean()) * noise
            few = cast_floating(x[:1], self.dtype)
            return [({k: t.clone() for k, t in {**tensors, **new}.items()}, few.clone()) for new in ({}, moved)]

        self.evaluate.remember_prefix(set(self.names.values()), input_kind(x), max_bytes, trials)

    def displaced_storages(self) -> set[int]:
        """Return the addresses of the memory of the displaced parameters."""
        return {parameter.untyped_storage().data_ptr() for parameter in self.displaced.values() if parameter.numel()}

    def matrix_at(self, tensors: Tensors, x: Batch) -> Tensor:
        """Return outputs as a matrix, [N, C], at all tensors of the model by name, which the evaluation may write to.

        A stochastic model is evaluated at its first draw alone.
        """
        return as_matrix(self.evaluate(tensors, x, *([] if self.draws is None else [next(iter(self.draws))])), x)

    def tensors(self, dtype: torch.dtype) -> Tensors:
        """Return all tensors of the model by name, floating ones in a dtype; every call returns the same tensors."""
        if dtype not in self._tensors_by_dtype:
            kept = self.constants.keys() if self.halves else ()
            self._tensors_by_dtype[dtype] = {
                name: tensor.to(dtype) if tensor.is_floating_point() and name not in kept else tensor
                for name, tensor in self.originals.items()
            }
        return self._tensors_by_dtype[dtype]

    def parameters(self, dtype: torch.dtype) -> Tensors:
        """Return the displaced parameters by name, unperturbed, in a dtype."""
        return {name: self.tensors(dtype)[name] for name in self.names.values()}


def as_matrix(outputs: Any, x: Batch) -> Tensor:
    """Return what a model returned as a matrix, [N, C].

    Args:
        outputs: The outputs.
        x: Inputs, [N, ...].

    Raises:
        TypeError: If they are no tensor with a row for each input.
    """
    if not isinstance(outputs, Tensor) or outputs.dim() == 0 or len(outputs) != len(x):
        actual = f"shape {tuple(outputs.shape)}" if isinstance(outputs, Tensor) else outline(outputs)
        remedy = "" if isinstance(outputs, Tensor) else "; output= chooses among several outputs"
        raise TypeError(f"model must return a tensor with a row for each of {len(x)} inputs, got {actual}{remedy}.")
    return outputs.flatten(1) if outputs.dim() > 1 else outputs[:, None]
