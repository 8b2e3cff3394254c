"""Mesh of ranks: which rank evaluates which displacements at which inputs, and how ranks exchange numbers."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nntk.distributed.ranks.agreement import Agreement
from nntk.distributed.ranks.groups import rows_and_columns
from nntk.kernels import checks


@dataclass
class Traffic:
    """Numbers that a rank has exchanged with others.

    Attributes:
        seconds: Time in which numbers were exchanged.
        bytes: Bytes that this rank sent, by the least that the operations need: for a sum of b bytes over P ranks
            2 b (P - 1) / P.
    """

    seconds: float = 0.0
    bytes: int = 0


class Axis:
    """Ranks along one axis of a mesh.

    Args:
        group: Their group; None for one rank alone.
        agreement: Agreement of all ranks, which finds out who ended where an exchange fails.
        traffic: Where exchanged numbers are counted.

    Attributes:
        size: Number of ranks.
        index: Position of this rank.
    """

    def __init__(self, group: dist.ProcessGroup | None, agreement: Agreement, traffic: Traffic) -> None:
        self._group, self._agreement, self._traffic = group, agreement, traffic
        self.size = 1 if group is None else dist.get_world_size(group)
        self.index = 0 if group is None else dist.get_rank(group)

    def part(self, total: int) -> range:
        """Return the numbers of ``range(total)`` that belong to this rank: consecutive ones, about as many for each."""
        return part(total, self.size, self.index)

    def sum(self, tensor: Tensor, overwrite: bool = False) -> Tensor:
        """Return the sum of tensors of one shape over the ranks, in float64; all ranks get the same bits.

        Args:
            tensor: What this rank adds.
            overwrite: The tensor may be overwritten, so that no copy is needed.

        Returns:
            The sum.
        """
        total = tensor.double() if tensor.dtype != torch.float64 or overwrite else tensor.clone()
        if self.size > 1 and total.numel():
            total = total.contiguous()
            with self._exchange(2 * total.nbytes * (self.size - 1) // self.size):
                dist.all_reduce(total, group=self._group)
        return total

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """Return the tensors of all ranks, which may differ in the length of their first axis."""
        if self.size == 1:
            return [tensor]
        lengths = [torch.zeros(1, dtype=torch.int64, device=tensor.device) for _ in range(self.size)]
        with self._exchange(8):
            dist.all_gather(lengths, torch.tensor([len(tensor)], device=tensor.device), group=self._group)
        longest = max(map(int, lengths))
        padded = tensor.new_zeros(longest, *tensor.shape[1:])
        padded[: len(tensor)] = tensor
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        if padded.numel():
            with self._exchange(padded.nbytes * (self.size - 1)):
                dist.all_gather(parts, padded, group=self._group)
        return [part[: int(length)] for part, length in zip(parts, lengths, strict=True)]

    def swap(self, tensor: Tensor, target: int, source: int, shape: Sequence[int]) -> Tensor:
        """Send a tensor to one rank, and return the tensor of a given shape that another rank sends here.

        Args:
            tensor: What is sent.
            target: Position of the rank that gets it.
            source: Position of the rank that sends.
            shape: Shape of what arrives, in the dtype of ``tensor``.

        Returns:
            What arrived.
        """
        received = tensor.new_empty(*shape)
        operations = []
        if tensor.numel():
            operations.append(dist.P2POp(dist.isend, tensor.contiguous(), group=self._group, group_peer=target))
        if received.numel():
            operations.append(dist.P2POp(dist.irecv, received, group=self._group, group_peer=source))
        if operations:
            with self._exchange(tensor.nbytes):
                for work in dist.batch_isend_irecv(operations):
                    work.wait()
        return received

    def transpose(self, blocks: Tensor) -> Tensor:
        """Send block k to rank k, and return the blocks that all ranks send here, [P, ...] like ``blocks``."""
        if self.size == 1:
            return blocks
        received = torch.empty_like(blocks)
        if blocks.numel():
            with self._exchange(blocks.nbytes * (self.size - 1) // self.size):
                dist.all_to_all_single(received, blocks.contiguous(), group=self._group)
        return received

    def broadcast(self, tensor: Tensor, source: int) -> Tensor:
        """Return the tensor of one rank, which gives it; the others give one of the same shape to be overwritten."""
        if self.size > 1 and tensor.numel():
            tensor = tensor.contiguous()
            with self._exchange(tensor.nbytes if self.index == source else 0):
                dist.broadcast(tensor, group=self._group, group_src=source)
        return tensor

    @contextmanager
    def _exchange(self, size: int) -> Iterator[None]:
        """Count an exchange; where it fails, find out which rank ended."""
        start = time.perf_counter()
        try:
            yield
        except RuntimeError as error:
            self._agreement.lost(error)
        self._traffic.seconds += time.perf_counter() - start
        self._traffic.bytes += size


class Mesh:
    """Ranks in R rows and S columns: ranks of a row have the same displacements, ranks of a column the same inputs.

    Args:
        over: ``"displacements"``, R x 1 ranks; ``"inputs"``, 1 x S ranks; or the pair (R, S).
        group: Group of ranks; None for all of them.
        timeout: Longest time that ranks wait for another one; None for the timeout of the group.
        device: Device of the numbers.

    Attributes:
        shape: Numbers R and S.
        device: Device of the numbers.
        rank: Number of this rank.
        agreement: Agreement of all ranks.
        traffic: What this rank has exchanged.
        displacements: Axis along which displacements differ and inputs are the same.
        inputs: Axis along which inputs differ and displacements are the same.
        everyone: All ranks as one axis.

    Raises:
        ValueError: If ``over`` fits no mesh of the ranks, or a backend does not fit the device.
        RuntimeError: If the process group was not initialised.
    """

    def __init__(
        self,
        over: str | tuple[int, int],
        group: dist.ProcessGroup | None,
        timeout: timedelta | float | None,
        device: torch.device,
    ) -> None:
        if not dist.is_available() or not dist.is_initialized():
            raise RuntimeError(
                "torch.distributed must be initialised before a kernel is shared: start the program by torchrun, and "
                "call torch.distributed.init_process_group."
            )
        whole = dist.group.WORLD if group is None else group
        assert whole is not None, "the process group was initialised"
        size = dist.get_world_size(whole)
        self.shape, self.device = _shape(over, size, group is not None), device
        check_backend(whole, device)
        self.agreement, self.traffic = Agreement(whole, _timeout(whole, timeout)), Traffic()
        self.rank = self.agreement.rank
        groups: list[dist.ProcessGroup | None] = [whole if n == size and size > 1 else None for n in self.shape]
        if 1 not in self.shape:
            groups = list(rows_and_columns(device, self.shape, lambda is_kept: self.agreement.exchange(value=is_kept)))
        self.displacements, self.inputs, self.everyone = (
            Axis(axis, self.agreement, self.traffic) for axis in (*groups, whole if size > 1 else None)
        )
        # NCCL connects all ranks of a group at its first exchange, in which none may be missing.
        for axis in (self.displacements, self.inputs, self.everyone):
            axis.sum(torch.zeros(1, device=device))

    @property
    def size(self) -> int:
        """Number of ranks."""
        return self.agreement.size


def part(total: int, size: int, index: int) -> range:
    """Return one of several consecutive parts of ``range(total)``, which differ in length by one at most.

    Args:
        total: Length of the range.
        size: Number of parts.
        index: Which part.

    Returns:
        The part.

    Example:
        >>> [part(5, 3, index) for index in range(3)]
        [range(0, 1), range(1, 3), range(3, 5)]
    """
    return range(total * index // size, total * (index + 1) // size)


def check_backend(group: dist.ProcessGroup, device: torch.device) -> None:
    """Check that a group exchanges tensors of a device.

    Args:
        group: The group.
        device: The device.

    Raises:
        ValueError: If it does not.
    """
    backend = dist.get_backend(group)
    if backend == "nccl" and device.type != "cuda" or backend == "gloo" and device.type == "cuda":
        need = "nccl" if device.type == "cuda" else "gloo"
        raise ValueError(
            f"group must have a backend for {device.type} tensors, such as {need!r}, got {backend!r}; use "
            f"init_process_group({need!r}), or move the model."
        )


def _shape(over: object, size: int, is_subgroup: bool) -> tuple[int, int]:
    if over == "displacements":
        return size, 1
    if over == "inputs":
        return 1, size
    if not isinstance(over, tuple) or len(over) != 2:
        raise ValueError(f"over must be 'displacements', 'inputs' or a pair (rows, columns) of ranks, got {over!r}.")
    rows, columns = (checks.integer(f"over[{index}]", number, 1) for index, number in enumerate(over))
    if rows * columns != size:
        raise ValueError(f"over must have a product of {size}, the number of ranks, got {over!r}.")
    if is_subgroup and 1 not in (rows, columns):
        raise ValueError(f"group must be None for a mesh of {rows} x {columns} ranks, which is one of all ranks.")
    return rows, columns


def _timeout(group: dist.ProcessGroup, timeout: timedelta | float | None) -> timedelta:
    """Return the timeout as given, or that of the group."""
    if isinstance(timeout, timedelta):
        timeout = timeout.total_seconds()
    if timeout is not None:
        return timedelta(seconds=checks.positive_float("timeout", timeout, 1e-1, 1e7, "It is in seconds."))
    for device in group._device_types:
        options: Any = getattr(group._get_backend(device), "options", None)
        found = getattr(options, "_timeout", None)
        if isinstance(found, timedelta):
            return found
    return dist.distributed_c10d.default_pg_timeout
