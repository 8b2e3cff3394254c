"""Streams of batches: inputs that are read anew at each pass, for more of them than memory has room for."""

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler

from nntk.files.hashing import hash_tensors
from nntk.models.data.inputs import (
    Batch,
    Inputs,
    InputValue,
    as_batch,
    bytes_of,
    concatenate,
    identity,
    map_tensors,
    named_tensors,
)
from nntk.models.isolation.findings import input_kind

_HELD = (Tensor, Inputs, Mapping, tuple, list, str, bytes, np.ndarray)
"""Types of values that are iterable and no streams."""


@dataclass(frozen=True)
class _Survey:
    """What a first pass showed.

    Attributes:
        digests: Number of inputs, and hash, of each batch.
        first: The first input, [1, ...].
        batch_bytes: Bytes of the largest batch.
        targets: Targets of all inputs, [N, ...]; None for a stream without targets.
    """

    digests: tuple[tuple[int, str], ...]
    first: Batch
    batch_bytes: int
    targets: Tensor | None

    @property
    def rows(self) -> int:
        """Number N of inputs."""
        return sum(rows for rows, _ in self.digests)


class Stream:
    """Inputs in batches, of which only a few are held at a time.

    A call of a kernel makes several passes over the batches. The first one counts them and keeps a checksum of each;
    every later pass is compared with it, so that a stream which shuffles, augments or ends early is refused. A
    ``torch.utils.data.DataLoader``, or any other iterable, stands for ``Stream(batches)`` where a stream is accepted.

    Args:
        batches: Iterable that begins anew at each pass, such as a DataLoader without ``shuffle``. A batch is a tensor,
            a mapping, :class:`nntk.Inputs`, or a tuple or list of positional arguments. Batches on another device are
            moved to that of the model.
        targets: True if batches are pairs of inputs and targets; the key of the targets, such as ``"labels"``, if they
            are a part of a mapping; False if there are none. A kernel leaves targets aside.

    Raises:
        ValueError: If a DataLoader shuffles.
        TypeError: If ``batches`` can be read once only, such as a generator, or is no iterable.

    Example:
        >>> stream = Stream([(torch.zeros(2, 3), torch.tensor([1, 0])), (torch.ones(1, 3), torch.tensor([1]))], True)
        >>> len(stream), stream.targets.tolist()
        (3, [1, 0, 1])
    """

    def __init__(self, batches: Iterable[Any], targets: bool | str = False) -> None:
        if not isinstance(batches, Iterable) or isinstance(batches, Tensor | Mapping | str):
            raise TypeError(f"batches must be an iterable of batches, got {type(batches).__name__}.")
        if isinstance(batches, Iterator):
            raise TypeError(
                f"batches must be an iterable that begins anew at each pass, got {type(batches).__name__}, which can "
                "be read once; give a DataLoader, a list, or an object whose __iter__ makes a new iterator."
            )
        if isinstance(batches, DataLoader) and any(isinstance(s, RandomSampler) for s in _samplers(batches)):
            raise ValueError("batches must be the same at every pass, but the DataLoader shuffles; use shuffle=False.")
        if not isinstance(targets, bool | str):
            raise TypeError(f"targets must be True, False or a key, got {targets!r} ({type(targets).__name__}).")
        self.batches, self._targets = batches, targets
        self._device: torch.device | None = None

    def __len__(self) -> int:
        return self._survey.rows

    def __repr__(self) -> str:
        return f"Stream of {type(self.batches).__name__}"

    @property
    def targets(self) -> Tensor | None:
        """Targets of all inputs, [N, ...], on the CPU; None for a stream without targets."""
        return self._survey.targets

    def to(self, device: torch.device) -> "Stream":
        """Return the same stream with its batches on a device."""
        moved = copy.copy(self)
        moved._device = device
        return moved

    @property
    def first(self) -> Batch:
        """The first input, [1, ...]."""
        return self._moved(self._survey.first)

    def _moved(self, x: Batch) -> Batch:
        device = self._device
        return x.detach() if device is None else map_tensors(lambda tensor: tensor.detach().to(device), x)

    @property
    def batch_bytes(self) -> int:
        """Bytes of the largest batch."""
        return self._survey.batch_bytes

    @property
    def digest(self) -> str:
        """Hash of all inputs and of how they are batched."""
        names = {f"{rows} {digest}": torch.empty(0) for rows, digest in enumerate(map(repr, self._survey.digests))}
        return hash_tensors(names)

    @cached_property
    def _survey(self) -> _Survey:
        digests, targets, first, largest = [], [], None, 0
        for batch, labels in self._read():
            digests.append((len(batch), hash_tensors(identity("x", batch))))
            largest = max(largest, bytes_of(batch))
            if labels is not None:
                targets.append(torch.as_tensor(labels).detach().cpu())
            if first is None and len(batch):
                first = map_tensors(lambda tensor: tensor[:1].detach().clone(), batch)
        if first is None:
            raise ValueError("batches must hold an input at least, got none.")
        return _Survey(tuple(digests), first, largest, torch.cat(targets) if targets else None)

    def blocks(self, size: int, one_kind: bool = False) -> Iterator[tuple[slice, Batch]]:
        """Read the inputs in blocks of a size of its own, whatever the size of the batches.

        Args:
            size: Number of inputs of a block. One that would hold inputs of several shapes, such as texts that are
                padded to the length of each batch, ends where the shape changes.
            one_kind: Inputs of several shapes are refused.

        Yields:
            The place of a block among the inputs, and the block.

        Raises:
            ValueError: If the pass differs from the first one, or there are inputs of several shapes where they must
                have one.
        """
        held: Batch | None = None
        start = 0
        for batch in self._checked():
            moved = self._moved(batch)
            if held is not None and input_kind(held) == input_kind(moved):
                held = concatenate((held, moved)) if len(held) else moved
            else:
                if held is not None and one_kind:
                    raise ValueError(
                        "batches must hold inputs of one shape for a matrix in tiles, but one has "
                        f"{_shapes(held)} and another one {_shapes(moved)}; pad them alike."
                    )
                if held is not None and len(held):
                    yield slice(start, start + len(held)), held
                    start += len(held)
                held = moved
            while len(held) >= size:
                yield slice(start, start + size), held[:size]
                held, start = map_tensors(lambda tensor: tensor[size:].clone(), held), start + size
        if held is not None and len(held):
            yield slice(start, start + len(held)), held

    def _checked(self) -> Iterator[Batch]:
        """Yield the batches of a pass, each compared with that of the first one."""
        digests, count = self._survey.digests, 0
        for batch, _ in self._read():
            if count == len(digests) or digests[count] != (len(batch), hash_tensors(identity("x", batch))):
                raise ValueError(
                    f"batches must be the same at every pass, but batch {count} is another one than in the first pass; "
                    "turn shuffling and random augmentation off."
                )
            yield batch
            count += 1
        if count < len(digests):
            raise ValueError(
                f"batches must be the same at every pass, but there were {count}, and {len(digests)} in the first pass."
            )

    def _read(self) -> Iterator[tuple[Batch, Any]]:
        """Yield inputs and targets of each batch."""
        # A DataLoader draws a seed for its workers, by which the caller's random numbers must not change.
        state = torch.get_rng_state()
        iterator = iter(self.batches)
        torch.set_rng_state(state)
        for number, batch in enumerate(iterator):
            given, labels = self._separate(number, batch)
            yield as_batch(f"batch {number}", tuple(given) if isinstance(given, list) else given), labels

    def _separate(self, number: int, batch: Any) -> tuple[Any, Any]:
        """Return the inputs and the targets of a batch."""
        if self._targets is False:
            return batch, None
        if self._targets is True:
            if isinstance(batch, tuple | list) and len(batch) == 2:
                return batch[0], batch[1]
            raise TypeError(f"batch {number} must be a pair of inputs and targets, got {_outline(batch)}.")
        if isinstance(batch, Mapping) and self._targets in batch:
            return {key: value for key, value in batch.items() if key != self._targets}, batch[self._targets]
        raise TypeError(f"batch {number} must be a mapping with targets {self._targets!r}, got {_outline(batch)}.")


def _samplers(loader: DataLoader[Any]) -> tuple[object, object]:
    return loader.sampler, getattr(loader.batch_sampler, "sampler", None)


def _shapes(x: Batch) -> str:
    return ", ".join(f"{name.removeprefix('x')}{tuple(t.shape[1:])}" for name, t in named_tensors("x", x))


def _outline(batch: Any) -> str:
    keys = f" with {', '.join(map(repr, batch))}" if isinstance(batch, Mapping) else ""
    size = f" of {len(batch)}" if isinstance(batch, tuple | list) else ""
    return f"{type(batch).__name__}{keys}{size}"


Source = Batch | Stream
"""Inputs that are held, or a stream of them."""
SourceValue = InputValue | Stream | Iterable[Any]
"""The same as callers give it: a DataLoader, or any other iterable of batches, is a stream."""


def as_source(name: str, x: Any, targets: bool = False) -> Source:
    """Return inputs in the form of the library, or the stream that a DataLoader or another iterable stands for.

    Args:
        name: Name of the argument, for messages.
        x: Inputs as callers give them.
        targets: An iterable holds pairs of inputs and targets.

    Raises:
        ValueError: If a DataLoader shuffles, or inputs do not fit together.
        TypeError: If ``x`` is neither inputs nor an iterable that can be read more than once.
    """
    if isinstance(x, Stream):
        return x
    if isinstance(x, Iterable) and not isinstance(x, _HELD):
        return Stream(x, targets)
    return as_batch(name, x)


def blocks_of(x: Source, size: int, one_kind: bool = False) -> Iterator[tuple[slice, Batch]]:
    """Yield inputs in blocks of a size, each with its place; see :meth:`Stream.blocks`."""
    if isinstance(x, Stream):
        yield from x.blocks(size, one_kind)
        return
    for start in range(0, len(x), size):
        place = slice(start, min(start + size, len(x)))
        yield place, x[place]


def example_of(x: Source) -> Batch:
    """Return some of the inputs: all that are held, or the first one of a stream."""
    return x.first if isinstance(x, Stream) else x


def identity_of(name: str, x: Source) -> dict[str, Tensor]:
    """Return what tells inputs apart: their tensors by name, or one name that has the hash of a stream."""
    return {f"{name} of a stream {x.digest}": torch.empty(0)} if isinstance(x, Stream) else identity(name, x)
