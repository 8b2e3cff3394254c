"""Probe of a model at a few inputs: what does a forward pass besides?

Each evaluation is of a fresh private copy, with copies of all tensors, so that nothing of the user's is changed. The
probe looks for random numbers, for outputs that depend on other inputs, for state that one evaluation leaves to the
next, for parameters that are read past the copy, and for values in float32.
"""

import random
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from nntk.models.data.inputs import Batch, cast_floating, concatenate, named_tensors, stack_of
from nntk.models.isolation.epsilon import ModelEpsilon
from nntk.models.isolation.evaluation import ModuleEvaluation
from nntk.models.isolation.findings import Findings
from nntk.models.isolation.float64_casts import Float64Casts
from nntk.models.isolation.generators import seeded
from nntk.models.isolation.rounding import OtherRounding
from nntk.models.isolation.watch import Watch
from nntk.models.observe import Observe

_FEW = 4
"""Most inputs of a probe."""
_MANY, _BYTES = 64, 2**27
"""Most inputs of the one larger batch, and most bytes that its evaluation may take."""
_SLACK = 1e4
"""Rounding errors by which outputs may differ when the same input stands in another batch."""

Tensors = dict[str, Tensor]


class Probed(Protocol):
    """A model as the probe evaluates it.

    Attributes:
        names: Names of the displaced parameters.
        evaluate: Function from all tensors by name, and inputs, to outputs.
        findings: What is known of the model.
        is_stochastic: The model is evaluated under given seeds.
        is_opaque: The model is no code of PyTorch's.
        dtype: Dtype of the parameters.
        device: Device of the parameters.
        halves: Dtypes in half precision of frozen parameters.
    """

    @property
    def names(self) -> dict[int, str]:
        """Names of the displaced parameters."""
        ...

    @property
    def evaluate(self) -> Callable[..., Any]:
        """Evaluates the model at tensors and inputs."""
        ...

    @property
    def findings(self) -> Findings:
        """What earlier calls found out."""
        ...

    @property
    def is_stochastic(self) -> bool:
        """True if the model is evaluated under seeds."""
        ...

    @property
    def is_opaque(self) -> bool:
        """True if nothing is known of the computation."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Floating dtype of the parameters."""
        ...

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        ...

    @property
    def halves(self) -> frozenset[torch.dtype]:
        """Dtypes in half precision of frozen parameters."""
        ...

    def tensors(self, dtype: torch.dtype) -> Tensors:
        """Return all tensors by name, floating ones in a dtype."""
        ...

    def displaced_storages(self) -> set[int]:
        """Return the addresses of the memory of the displaced parameters."""
        ...

    def matrix_at(self, tensors: Tensors, x: Batch) -> Tensor:
        """Return outputs as a matrix, at all tensors by name."""
        ...


def probe(model: Probed, x: Batch) -> None:
    """Evaluate a model at a few of its inputs, and record in its findings what a forward pass does besides.

    The model is evaluated some twenty times, mostly at four inputs or fewer.

    Args:
        model: The model.
        x: Inputs, [N, ...], N at least 1.

    Raises:
        ValueError: If the model draws random numbers although it is not evaluated under seeds, does not repeat, mixes
            the inputs of a batch, reads parameters that cannot be displaced, or cannot be evaluated at these inputs.
        TypeError: If the model does not return a tensor with a row for each input.
    """
    findings = model.findings
    kept_state = findings.keeps_state
    # Until the probe is over, nothing that one evaluation leaves behind may reach another one.
    findings.keeps_state = True
    few = _spread(x, _FEW)
    first = _first_pass(model, few)
    second = _observe(model, few, replace(first.way, seed=2))
    _refuse_randomness(model, first, second)
    if first.reads_originals:
        raise ValueError(
            "model must read its parameters from itself, but a closure, a hook or a global name of it refers to the "
            "original ones, which are not displaced; refer to them as self.name."
        )
    if len(x) > 1 and not model.is_stochastic:
        many = _spread(x, max(_FEW, min(_MANY, _BYTES * len(few) // max(1, first.bytes))))
        for way in (first.way, replace(first.way, is_displaced=True)):
            _refuse_mixing(model, few, many, way)
    findings.names_float32 = findings.names_float32 or first.way.names_float32
    findings.eps = max(findings.eps, torch.finfo(first.lowest_displaced).eps)
    findings.keeps_state = kept_state or second.writes or _changes_module(model, few, first.way)


def _spread(x: Batch, count: int) -> Batch:
    """Return that many inputs, or all, from the first to the last."""
    return x[torch.linspace(0, len(x) - 1, min(count, len(x))).round().long().to(x.device)].clone()


@dataclass(frozen=True)
class _Way:
    """Way of an evaluation.

    Attributes:
        dtype: Dtype of parameters and inputs.
        names_float32: float64 takes the place of float32 where the model names it.
        is_displaced: The parameters are displaced, by about their own size.
        other_rounding: The results of operators are changed by a few rounding errors.
        seed: Seed of the global generators.
    """

    dtype: torch.dtype
    names_float32: bool = False
    is_displaced: bool = False
    other_rounding: bool = False
    seed: int = 1


@dataclass(frozen=True)
class _Pass:
    """What one evaluation showed.

    Attributes:
        way: How the model was evaluated.
        outputs: The outputs, [n, C].
        lowest: Floating dtype with the fewest digits that values were computed in.
        lowest_displaced: The same of values that displaced parameters change, where frozen ones are in half precision.
        random_operator: Name of an operator that drew random numbers; empty if there was none.
        reads_originals: The model's own parameters were read, not those that were given.
        bytes: Bytes of all tensors that were made.
        writes: Parameters, buffers or inputs were changed.
    """

    way: _Way
    outputs: Tensor
    lowest: torch.dtype
    lowest_displaced: torch.dtype
    random_operator: str
    reads_originals: bool
    bytes: int
    writes: bool


def _first_pass(model: Probed, few: Batch) -> _Pass:
    """Evaluate in float64 if the model allows it, with float64 in place of float32 if it names that; else as it is."""
    done, failure = None, None
    for way in (_Way(torch.float64), _Way(torch.float64, names_float32=True), _Way(model.dtype)):
        try:
            result = _observe(model, few, way)
        except Exception as error:  # A model may raise anything; the last error is the one that counts.
            failure = error
            continue
        if way.dtype != torch.float64 or way.names_float32 or result.lowest_displaced != torch.float32:
            return result if done is None or result.way.dtype == torch.float64 else done
        done = result
    if done is not None:
        return done
    if isinstance(failure, TypeError) and "row for each" in str(failure):
        raise failure
    raise ValueError(
        f"model must be evaluable at these inputs, but fails: {type(failure).__name__}: {failure}"
    ) from failure


def _observe(model: Probed, x: Batch, way: _Way) -> _Pass:
    """Evaluate a model once."""
    tensors, x = _arguments(model, x, way)
    given = {name: tensor.clone() for name, tensor in (*tensors.items(), *named_tensors("", x))}
    with seeded(way.seed, model.device):
        watch, before = Watch(model, way.dtype, tensors), _python_states()
        epsilon = ModelEpsilon(model.dtype)
        with ExitStack() as modes:
            for mode in (Observe(watch), epsilon):
                modes.enter_context(mode)
            if way.names_float32:
                modes.enter_context(Float64Casts())
            if way.other_rounding:
                modes.enter_context(OtherRounding(way.seed))
            outputs = model.matrix_at(tensors, x).clone()
        model.findings.leaves_epsilon |= epsilon.was_used
        if _python_states() != before:
            watch.random_operator = watch.random_operator or "Python's or NumPy's generator"
    writes = any(not _same(value, given[name]) for name, value in (*tensors.items(), *named_tensors("", x)))
    return _Pass(
        way, outputs, watch.lowest, watch.lowest_displaced, watch.random_operator, watch.reads_originals, watch.bytes,
        writes,
    )  # fmt: skip


def _arguments(model: Probed, x: Batch, way: _Way) -> tuple[Tensors, Batch]:
    """Return copies of all tensors of a model, and of inputs."""
    tensors = {name: tensor.clone() for name, tensor in model.tensors(way.dtype).items()}
    if way.is_displaced:
        generator = torch.Generator().manual_seed(0)
        for name in model.names.values():
            p = tensors[name]
            size = p.square().mean().sqrt() if p.numel() else 1.0
            p += (0.5 * size + 0.05) * torch.randn(p.shape, generator=generator, dtype=p.dtype).to(p.device)
    return tensors, cast_floating(x, way.dtype).clone()


def _python_states() -> tuple[Any, ...]:
    """Return the states of Python's and NumPy's generators, which can be compared."""
    name, keys, *position = np.random.get_state()
    return random.getstate(), name, np.asarray(keys).tobytes(), *position


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())


def _changes_module(model: Probed, few: Batch, way: _Way) -> bool:
    if not isinstance(model.evaluate, ModuleEvaluation):
        return False
    with Float64Casts() if way.names_float32 else nullcontext():
        return model.evaluate.changes_module(*_arguments(model, few, way), *([1] if model.is_stochastic else []))


def _refuse_randomness(model: Probed, first: _Pass, second: _Pass) -> None:
    repeats = not _differing_rows(first.outputs, second.outputs, first.lowest).any()
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


def _refuse_mixing(model: Probed, few: Batch, many: Batch, way: _Way) -> None:
    """Compare each input's outputs with those that it has alone, in the reversed batch, and in a larger batch."""

    def observe(x: Batch) -> _Pass:
        try:
            return _observe(model, x, way)
        except Exception as error:
            raise ValueError(
                f"model must treat the inputs of a batch one by one, but fails for {len(x)} of {len(many)} inputs: "
                f"{type(error).__name__}: {error}"
            ) from error

    def outputs_beside_itself(n: int) -> Tensor:
        return observe(stack_of(few[n : n + 1], len(few))).outputs[n : n + 1]

    together = observe(few)

    def differing(outputs: Tensor, rows: slice = slice(None)) -> Tensor:
        return _differing_rows(together.outputs[rows], outputs, together.lowest)

    suspects = differing(torch.cat([observe(one).outputs for one in few.split(1)]))
    suspects |= differing(observe(_reversed(few)).outputs.flip(0))
    if len(many) > len(few):
        suspects |= differing(observe(_beside(few, many)).outputs[: len(few)])
    # Copies of one input compete for the same parts of a model, such as an expert of limited capacity.
    suspects[-1:] |= differing(outputs_beside_itself(len(few) - 1), slice(-1, None))
    if not suspects.any():
        return
    # In a batch of the same size, at the same position, rounding is the same: what differs depends on other inputs.
    mixing = differing(torch.cat([outputs_beside_itself(n) for n in range(len(few))])).any()
    if not mixing:
        # Rounding differs from one batch size to another. It carries a value across a jump where it meets one: there
        # other rounding errors in a batch of this size do the same.
        for seed in range(1, 11):
            suspects &= ~differing(_observe(model, few, replace(way, other_rounding=True, seed=seed)).outputs)
    if mixing or suspects.any():
        which = "the other inputs of the batch" if mixing else "its place in the batch, or on the size of the batch"
        raise ValueError(
            f"model must treat the inputs of a batch one by one, with the batch as first axis, but the outputs at an "
            f"input depend on {which}."
        )


def _reversed(x: Batch) -> Batch:
    """Return the inputs from the last to the first."""
    return x[torch.arange(len(x) - 1, -1, -1, device=x.device)]


def _beside(few: Batch, many: Batch) -> Batch:
    """Return a batch that begins with the few inputs, and goes on with many."""
    return concatenate((few, many[len(few) :]))


def _differing_rows(first: Tensor, second: Tensor, lowest: torch.dtype) -> Tensor:
    """Return the rows that differ by more than rounding in a dtype, [n]."""
    a, b = torch.nan_to_num(first.double()), torch.nan_to_num(second.double())
    tolerance = min(0.1, _SLACK * torch.finfo(lowest).eps) * torch.maximum(a.norm(dim=1), b.norm(dim=1))
    differs: Tensor = (a - b).norm(dim=1) > tolerance
    return differs
