"""Probe of a model at a few inputs: does it draw random numbers, mix the inputs of a batch, or keep state?"""

import random
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from nntk.models.isolation.evaluation import ModuleEvaluation
from nntk.models.isolation.findings import Findings
from nntk.models.isolation.float64_casts import Float64Casts
from nntk.models.isolation.generators import seeded
from nntk.models.observe import Observe

_FEW = 4
"""Most inputs of a probe."""
_SLACK = 1e4
"""Rounding errors by which outputs may differ when the same input stands in another batch."""
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

Tensors = dict[str, Tensor]


class Probed(Protocol):
    """A model as the probe evaluates it.

    Attributes:
        evaluate: Function from all tensors by name, and inputs, to outputs.
        findings: What is known of the model.
        is_stochastic: The model is evaluated under given seeds.
        is_opaque: The model is no code of PyTorch's.
        dtype: Dtype of the parameters.
        device: Device of the parameters.
    """

    evaluate: Callable[..., Tensor]
    findings: Findings

    @property
    def is_stochastic(self) -> bool: ...  # noqa: D102
    @property
    def is_opaque(self) -> bool: ...  # noqa: D102
    @property
    def dtype(self) -> torch.dtype: ...  # noqa: D102
    @property
    def device(self) -> torch.device: ...  # noqa: D102
    def tensors(self, dtype: torch.dtype) -> Tensors: ...  # noqa: D102
    def matrix_at(self, tensors: Tensors, x: Tensor) -> Tensor: ...  # noqa: D102


def probe(model: Probed, x: Tensor) -> None:
    """Evaluate a model at a few of its inputs, and record in its findings what a forward pass does besides.

    The model is evaluated some ten times, at four inputs or fewer. Its own tensors, the inputs and the global
    generators stay as they are.

    Args:
        model: The model.
        x: Inputs, [N, ...], N at least 1.

    Raises:
        ValueError: If the model draws random numbers although it is not evaluated under seeds, does not repeat, mixes
            the inputs of a batch, or cannot be evaluated at these inputs.
        TypeError: If the model does not return a tensor with a row for each input.
    """
    positions = torch.linspace(0, len(x) - 1, min(_FEW, len(x))).round().long()
    few = x[positions.to(x.device)].clone()
    first = _first_pass(model, few, seed=1)
    findings = model.findings
    findings.names_float32 = findings.names_float32 or first.names_float32
    findings.eps = max(findings.eps, torch.finfo(first.lowest).eps)
    second = _observe(model, few, first.dtype, first.names_float32, seed=2)
    _refuse_randomness(model, first, second)
    if not findings.keeps_state:
        findings.keeps_state = second.writes or _changes_module(model, few, first)
    if len(few) > 1 and not model.is_stochastic:
        _refuse_mixing(model, few, first)


@dataclass(frozen=True)
class _Pass:
    """What one evaluation showed.

    Attributes:
        outputs: The outputs, [n, C].
        dtype: Dtype of the parameters and inputs.
        names_float32: float32 was taken for float64.
        lowest: Floating dtype with the fewest digits that values were computed in.
        random_operator: Name of an operator that drew random numbers; empty if there was none.
        writes: Parameters, buffers or inputs were changed.
    """

    outputs: Tensor
    dtype: torch.dtype
    names_float32: bool
    lowest: torch.dtype
    random_operator: str
    writes: bool


def _first_pass(model: Probed, few: Tensor, seed: int) -> _Pass:
    """Evaluate in float64 if the model allows it, with float64 in place of float32 if it names that; else as it is."""
    done, failure = None, None
    for dtype, names_float32 in ((torch.float64, False), (torch.float64, True), (model.dtype, False)):
        try:
            result = _observe(model, few, dtype, names_float32, seed)
        except Exception as error:  # A model may raise anything; the last error is the one that counts.
            failure = error
            continue
        if dtype != torch.float64 or names_float32 or result.lowest != torch.float32:
            return result if done is None or result.dtype == torch.float64 else done
        done = result
    if done is not None:
        return done
    if isinstance(failure, TypeError) and "row for each" in str(failure):
        raise failure
    raise ValueError(
        f"model must be evaluable at these inputs, but fails: {type(failure).__name__}: {failure}"
    ) from failure


def _observe(model: Probed, few: Tensor, dtype: torch.dtype, names_float32: bool, seed: int) -> _Pass:
    """Evaluate a model once, with the global generators at a seed."""
    tensors = {name: tensor.clone() for name, tensor in model.tensors(dtype).items()}
    x = few.to(dtype) if few.is_floating_point() else few.clone()
    given = {**{name: tensor.clone() for name, tensor in tensors.items()}, "": x.clone()}
    with seeded(seed, model.device):
        watch, before = _Watch(model.device, dtype), _python_states()
        with Observe(watch), Float64Casts() if names_float32 else nullcontext():
            outputs = model.matrix_at(tensors, x).clone()
        if _python_states() != before:
            watch.random_operator = watch.random_operator or "Python's or NumPy's generator"
    writes = any(not _same(value, given[name]) for name, value in {**tensors, "": x}.items())
    return _Pass(outputs, dtype, names_float32, watch.lowest, watch.random_operator, writes)


def _python_states() -> tuple[Any, ...]:
    """Return the states of Python's and NumPy's generators, which can be compared."""
    name, keys, *position = np.random.get_state()
    return random.getstate(), name, np.asarray(keys).tobytes(), *position


class _Watch:
    """Observer of operators: which of them draw random numbers, and in which dtypes they compute."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.lowest, self.random_operator = device, dtype, ""
        self._state = self._generator_state()

    def _generator_state(self) -> Tensor:
        return torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else torch.get_rng_state()

    def __call__(self, function: Any, arguments: tuple[Any, ...], options: dict[str, Any], result: Any) -> None:
        """Look at an operator that was run."""
        if isinstance(result, Tensor) and result.dtype in _FLOATS[_FLOATS.index(self.lowest) + 1 :]:
            self.lowest = result.dtype
        # Operators with this tag may draw from the global generator; a dropout with probability zero does not.
        if torch.Tag.nondeterministic_seeded in function.tags and not self.random_operator:
            state = self._generator_state()
            if not torch.equal(state, self._state):
                self.random_operator = str(function)
            self._state = state


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())


def _changes_module(model: Probed, few: Tensor, first: _Pass) -> bool:
    if not isinstance(model.evaluate, ModuleEvaluation):
        return False
    tensors = {name: tensor.clone() for name, tensor in model.tensors(first.dtype).items()}
    x = few.to(first.dtype) if few.is_floating_point() else few.clone()
    with Float64Casts() if first.names_float32 else nullcontext():
        return model.evaluate.changes_module(tensors, x, *([1] if model.is_stochastic else []))


def _refuse_randomness(model: Probed, first: _Pass, second: _Pass) -> None:
    repeats = not _differing_rows(first, second.outputs).any()
    if model.is_stochastic:
        if not repeats:
            raise ValueError(
                "model must return the same outputs under the same seed, but two evaluations differ; it may have a "
                "generator of its own, which draws= does not seed."
            )
        return
    operator = first.random_operator
    if operator or not repeats:
        what = f"it draws random numbers ({operator})" if operator else "two evaluations differ"
        raise ValueError(
            f"model must return the same outputs at every evaluation, but {what}; turn its noise off (model.eval(), a "
            "probability of zero), or take its mean over draws of the noise: draws=16."
        )


def _refuse_mixing(model: Probed, few: Tensor, first: _Pass) -> None:
    """Compare each input's outputs with those that it has alone, and in the reversed batch."""

    def outputs(x: Tensor) -> Tensor:
        return _observe(model, x, first.dtype, first.names_float32, seed=1).outputs

    def outputs_beside_itself(n: int) -> Tensor:
        return outputs(few[n : n + 1].expand_as(few).contiguous())[n : n + 1]

    last = len(few) - 1
    alone = torch.cat([outputs(one) for one in few.split(1)])
    suspects = _differing_rows(first, alone) | _differing_rows(first, outputs(few.flip(0)).flip(0))
    # Copies of one input compete for the same parts of a model, such as an expert of limited capacity.
    suspects[last:] |= _differing_rows(first, outputs_beside_itself(last), last)
    if not suspects.any():
        return
    # In a batch of the same size, at the same position, rounding is the same: what differs depends on other inputs.
    # Rounding alone carries a few outputs across a jump, where a position or a batch size changes most of them.
    mixing = _differing_rows(first, torch.cat([outputs_beside_itself(n) for n in range(len(few))])).any()
    if mixing or 2 * int(suspects.sum()) > len(few):
        which = "the other inputs of the batch" if mixing else "its place in the batch, or on the size of the batch"
        raise ValueError(
            f"model must treat the inputs of a batch one by one, with the batch as first axis, but the outputs at an "
            f"input depend on {which}."
        )


def _differing_rows(first: _Pass, others: Tensor, start: int = 0) -> Tensor:
    """Return the rows, from one of them on, that differ by more than rounding, [n]."""
    a, b = (torch.nan_to_num(outputs.double()) for outputs in (first.outputs[start:], others))
    eps = torch.finfo(first.lowest).eps
    tolerance = min(0.1, _SLACK * eps) * torch.maximum(a.norm(dim=1), b.norm(dim=1))
    return (a - b).norm(dim=1) > tolerance
