"""Recurrent layers and their cells, one step of time after another."""

from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any

import torch
import torch.nn.functional as F

from nntk.propagation.registry import NoRule, composed
from nntk.propagation.rules.composed.packed import packed_layers

State = tuple[Any, ...]
"""Hidden state of a cell, [N, H], and for a cell with memory that memory."""
Step = Callable[[Any, Any, State], State]
"""Function from the projected inputs of a step, the projected hidden state, and the state, to the next state."""


def _lstm_step(inputs: Any, hidden: Any, state: State) -> State:
    gate_in, gate_forget, change, gate_out = (inputs + hidden).chunk(4, -1)
    memory = torch.sigmoid(gate_forget) * state[1] + torch.sigmoid(gate_in) * torch.tanh(change)
    return torch.sigmoid(gate_out) * torch.tanh(memory), memory


def _gru_step(inputs: Any, hidden: Any, state: State) -> State:
    parts = zip(inputs.chunk(3, -1), hidden.chunk(3, -1), strict=True)
    (reset_x, reset_h), (update_x, update_h), (new_x, new_h) = parts
    new = torch.tanh(new_x + torch.sigmoid(reset_x + reset_h) * new_h)
    return (new + torch.sigmoid(update_x + update_h) * (state[0] - new),)


def _rnn_step(inputs: Any, hidden: Any, state: State, activation: Callable[[Any], Any]) -> State:
    return (activation(inputs + hidden),)


_STEPS: dict[str, Step] = {
    "lstm": _lstm_step,
    "gru": _gru_step,
    "rnn_tanh": partial(_rnn_step, activation=torch.tanh),
    "rnn_relu": partial(_rnn_step, activation=torch.relu),
}


def _run(step: Step, x: Any, state: State, weights: Any, has_biases: bool) -> tuple[Any, State]:
    """Return the hidden states of one layer in one direction, [T, N, H], and the last state.

    Args:
        step: The cell.
        x: Inputs in the order of the steps, [T, N, K].
        state: The first state.
        weights: Weights of the inputs and of the hidden state; then biases, if any; then the projection, if any.
        has_biases: True if there are biases.

    Returns:
        The hidden states, and the last state.
    """
    weight_x, weight_h, *rest = weights
    bias_x, bias_h = rest[:2] if has_biases else (None, None)
    projection, outputs = rest[2 * has_biases :], []
    for inputs in F.linear(x, weight_x, bias_x).unbind(0):
        hidden, *memory = step(inputs, F.linear(state[0], weight_h, bias_h), state)
        state = (F.linear(hidden, projection[0]) if projection else hidden, *memory)
        outputs.append(state[0])
    return torch.stack(outputs), state


def _layers(
    x: Any, states: State, weights: Any, has_biases: bool, layers: int, dropout: float, training: bool,
    bidirectional: bool, batch_first: bool = False, *, step: Step,
) -> Any:  # fmt: skip
    """Return the outputs of a recurrent network and its last states, each [layers x directions, N, H]."""
    if dropout and training:
        raise NoRule("model calls a recurrent layer with dropout.")
    has_batch = x.dim() == 3
    h = x if has_batch else x.unsqueeze(1)
    if batch_first and has_batch:
        h = h.transpose(0, 1)
    directions = 2 if bidirectional else 1
    num_weights, numbers, last = len(weights) // (layers * directions), count(), []
    for _ in range(layers):
        outputs = []
        for backward in (False, True)[:directions]:
            number = next(numbers)
            first = tuple(part[number] if has_batch else part[number].unsqueeze(0) for part in states)
            chosen = weights[number * num_weights : (number + 1) * num_weights]
            output, state = _run(step, h.flip(0) if backward else h, first, chosen, has_biases)
            outputs.append(output.flip(0) if backward else output)
            last.append(state)
        h = torch.cat(outputs, -1)
    if batch_first and has_batch:
        h = h.transpose(0, 1)
    final = [torch.stack(parts) for parts in zip(*last, strict=True)]
    return (h, *final) if has_batch else (h.squeeze(1), *(part.squeeze(1) for part in final))


def _cell(
    x: Any, state: Any, weight_x: Any, weight_h: Any, bias_x: Any = None, bias_h: Any = None, *, step: Step
) -> Any:
    """Return the next state of a cell: a tensor, or a pair for a cell with memory."""
    states = tuple(state) if isinstance(state, tuple | list) else (state,)
    result = step(F.linear(x, weight_x, bias_x), F.linear(states[0], weight_h, bias_h), states)
    return result if len(result) > 1 else result[0]


def _with_states(x: Any, states: Any, *arguments: Any, step: Step, **options: Any) -> Any:
    """Return the result of :func:`_layers`, whose states may be one tensor; packed sequences come with their sizes."""
    if isinstance(states, torch.Tensor) and not states.is_floating_point():
        return packed_layers(x, states, *arguments, step=step, **options)
    parts = tuple(states) if isinstance(states, list | tuple) else (states,)
    return _layers(x, parts, *arguments, step=step, **options)


for _name, _step in _STEPS.items():
    composed(_name)(partial(_with_states, step=_step))
    composed(f"{_name}_cell")(partial(_cell, step=_step))
