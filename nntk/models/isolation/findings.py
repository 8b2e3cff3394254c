"""What earlier calls found out about a model."""

from dataclasses import dataclass, field
from typing import Any

from nntk.models.data.inputs import Batch, Inputs, named_tensors

InputKind = tuple[Any, ...]
"""Dtype and shape of one input: a model treats inputs of one kind alike."""


@dataclass(frozen=True)
class Float32Errors:
    """Errors of displaced copies in float32.

    Attributes:
        kernel: Relative error of the kernel of a few displacements.
        jumps: Error by numbers that rounding carries across a jump, relative to the Monte-Carlo error.
        outputs: Number of outputs of the model.
    """

    kernel: float
    jumps: float
    outputs: int


@dataclass(eq=False)
class Findings:
    """What earlier calls found out about a model, mostly by the kind of their inputs.

    All views of a model in one kernel share it; a model whose layers or settings were changed has another one.

    Attributes:
        obstacles: Outcomes of trials of difference propagation: empty where it worked, else the reason why it did not.
        probed: Kinds of inputs at which the model was probed, each with the number of inputs, up to two.
        keeps_state: A forward pass changes attributes, parameters or buffers of the model.
        names_float32: A forward pass computes values in float32 when it is given float64.
        leaves_epsilon: A norm of the model leaves its epsilon to PyTorch.
        eps: Relative rounding error of the floating dtype with the fewest digits that values are computed in.
        digits: Relative rounding errors of differences at displaced copies, by kind of input, scale and precision.
        float32_errors: Errors of displaced copies in float32, by kind of input.
        jumps: Evaluating the model computes something that jumps; None where nothing is known of it.
        rule_trials: Sizes of differences that trials of propagation showed, by kind of input and displacements.
        copy_plans: Plans of evaluations at displaced copies, by kind of input, dtype and budget.
        reported: Topics of messages that the log has once for a model.
        prefixes: Names of frozen layers whose results no displacement changes, by kind of input.
    """

    obstacles: dict[InputKind, str] = field(default_factory=dict)
    probed: set[tuple[InputKind, int]] = field(default_factory=set)
    keeps_state: bool = False
    names_float32: bool = False
    leaves_epsilon: bool = False
    eps: float = 0.0
    digits: dict[tuple[Any, ...], float] = field(default_factory=dict)
    float32_errors: dict[tuple[Any, ...], Float32Errors] = field(default_factory=dict)
    jumps: bool | None = None
    rule_trials: dict[Any, Any] = field(default_factory=dict)
    copy_plans: dict[tuple[Any, ...], Any] = field(default_factory=dict)
    reported: set[str] = field(default_factory=set)
    prefixes: dict[InputKind, tuple[str, ...]] = field(default_factory=dict)


def input_kind(x: Batch) -> InputKind:
    """Return the kind of some inputs [N, ...]; of several tensors, with their names and the constants beside them."""
    if isinstance(x, Inputs):
        return *((name, t.dtype, *t.shape[1:]) for name, t in named_tensors("", x)), *map(repr, x.constants)
    return (x.dtype, *x.shape[1:])
