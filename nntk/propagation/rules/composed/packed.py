"""Sequences of several lengths: packing, recurrent layers on what is packed, and padding."""

from typing import Any

import torch
import torch.nn.functional as F

from nntk.propagation.displaced_tensor import is_displaced
from nntk.propagation.registry import COMPOSED, NoRule


def _pack(x: Any, lengths: Any, batch_first: bool) -> Any:
    """Return the steps of sequences, those of the first step first, and the number of sequences at each step."""
    if is_displaced(lengths):
        raise NoRule("model packs sequences by displaced lengths, which has no rule.")
    steps = torch.arange(int(lengths.max()))
    present = steps[:, None] < lengths.cpu()
    times, numbers = present.nonzero().unbind(1)
    times, numbers = times.to(x.device), numbers.to(x.device)
    return (x[numbers, times] if batch_first else x[times, numbers]), present.sum(1)


def _pad(data: Any, batch_sizes: Any, batch_first: bool, padding_value: float, total_length: int) -> Any:
    """Return sequences of the same length from their packed steps, and their lengths."""
    sizes = batch_sizes.tolist()
    length, count = max(total_length, len(sizes)), sizes[0]
    present = torch.arange(count) < batch_sizes[:, None]
    times, numbers = present.nonzero().unbind(1)
    positions = (numbers * length + times if batch_first else times * count + numbers).to(data.device)
    filled = torch.full((count * length, *data.shape[1:]), padding_value, dtype=data.dtype, device=data.device)
    padded = torch.index_copy(filled, 0, positions, data)
    shape = (count, length) if batch_first else (length, count)
    return padded.reshape(*shape, *data.shape[1:]), present.sum(0)


def _run(step: Any, data: Any, sizes: list[int], state: Any, weights: Any, has_biases: bool, backward: bool) -> Any:
    """Return the packed hidden states of one layer in one direction, and the last state of each sequence.

    Args:
        step: The cell.
        data: Packed inputs, [sum of sizes, K].
        sizes: Numbers of sequences at each step, which never grow.
        state: The first states of all sequences, each [N, H].
        weights: Weights of the inputs and of the hidden state; then biases, if any; then the projection, if any.
        has_biases: True if there are biases.
        backward: True to begin with the last step of each sequence.

    Returns:
        The hidden states, and the last state.
    """
    weight_x, weight_h, *rest = weights
    bias_x, bias_h = rest[:2] if has_biases else (None, None)
    projection, inputs = rest[2 * has_biases :], F.linear(data, weight_x, bias_x).split(sizes)
    times, outputs = range(len(sizes)), [data] * len(sizes)
    for t in reversed(times) if backward else times:
        # Sequences that have ended, or that have not begun, keep their state.
        now, others = (tuple(part[place] for part in state) for place in (slice(sizes[t]), slice(sizes[t], None)))
        hidden, *memory = step(inputs[t], F.linear(now[0], weight_h, bias_h), now)
        now = (F.linear(hidden, projection[0]) if projection else hidden, *memory)
        outputs[t] = now[0]
        state = tuple(torch.cat(pair) if len(pair[1]) else pair[0] for pair in zip(now, others, strict=True))
    return torch.cat(outputs), state


def packed_layers(
    data: Any, batch_sizes: Any, states: Any, weights: Any, has_biases: bool, layers: int, dropout: float,
    training: bool, bidirectional: bool, *, step: Any,
) -> Any:  # fmt: skip
    """Return the packed outputs of a recurrent network, and its last states, each [layers x directions, N, H].

    Args:
        data: Packed inputs, [sum of sizes, K].
        batch_sizes: Number of sequences at each step.
        states: The first states: a tensor, or a pair for a cell with memory.
        weights: Weights of all layers and directions.
        has_biases: True if there are biases.
        layers: Number of layers.
        dropout: Probability of dropout between layers, which must be zero in training.
        training: True in training.
        bidirectional: True if there are two directions.
        step: The cell.

    Returns:
        The outputs, and each of the last states.

    Raises:
        NoRule: If the lengths are displaced, or dropout is active.
    """
    if is_displaced(batch_sizes) or (dropout and training):
        raise NoRule("model calls a recurrent layer with dropout, or on sequences of displaced lengths.")
    firsts = tuple(states) if isinstance(states, tuple | list) else (states,)
    directions, sizes, last = 2 if bidirectional else 1, batch_sizes.tolist(), []
    num_weights = len(weights) // (layers * directions)
    for layer in range(layers):
        outputs = []
        for direction in range(directions):
            number = layer * directions + direction
            chosen = weights[number * num_weights : (number + 1) * num_weights]
            first = tuple(part[number] for part in firsts)
            output, state = _run(step, data, sizes, first, chosen, has_biases, bool(direction))
            outputs.append(output)
            last.append(state)
        data = torch.cat(outputs, -1)
    return (data, *(torch.stack(parts) for parts in zip(*last, strict=True)))


COMPOSED[torch._pack_padded_sequence] = _pack
COMPOSED[torch._pad_packed_sequence] = _pad
