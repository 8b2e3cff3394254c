"""Process groups of the same ranks, which all kernels that are shared among these ranks use together.

A group of PyTorch has threads and connections of its own, and making one takes a rendezvous: a program that shares one
kernel after another has as many groups as one that shares a single kernel.
"""

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

_kept: WeakKeyDictionary[dist.ProcessGroup, dict[Hashable, tuple[dist.ProcessGroup, ...]]] = WeakKeyDictionary()
"""Groups by the group of all their ranks, and by what they are for. They end with that group."""


def reports_and_verdicts(group: dist.ProcessGroup, timeout: timedelta) -> tuple[dist.ProcessGroup, ...]:
    """Return two groups of gloo for reports and verdicts. This is a collective call.

    gloo closes all connections of a group where one timed out, so that the verdict has a group of its own.

    Args:
        group: Group of the ranks.
        timeout: Timeout of both groups.

    Returns:
        The groups.
    """
    ranks, own = dist.get_process_group_ranks(group), len(dist.distributed_c10d._world.pg_names)
    kept = _kept.setdefault(group, {})
    found: list[Any] = [None] * len(ranks)
    dist.all_gather_object(found, (own, timeout in kept, _named.number), group=group)
    if not all(is_kept for _, is_kept, _ in found):
        numbers, first = [number for number, _, _ in found], max(number for _, _, number in found)
        # Before 2.15 PyTorch names a new group by its ranks and by the number of groups that a process has: ranks of
        # which some are in other groups as well would wait for each other under different names.
        with _named.from_number(first):
            for _ in range(max(numbers) - own):
                dist.new_group([dist.get_rank()], backend="gloo", use_local_synchronization=True)
        with _named.from_number(first + max(numbers) - min(numbers)):
            kept[timeout] = tuple(
                dist.new_group(ranks, timeout, "gloo", use_local_synchronization=True) for _ in range(2)
            )
    return kept[timeout]


class _Names:
    """Numbers in the names of groups of some ranks, apart from those of other groups.

    From 2.15 on PyTorch names a group by the number of groups that a process has made. Ranks that make one which others
    do not take part in would later name groups of all ranks in another way than these, and wait for them.

    Attributes:
        number: Number in the name of the next group.
    """

    def __init__(self) -> None:
        self.number = 10**9

    @contextmanager
    def from_number(self, number: int) -> Iterator[None]:
        """Let PyTorch count from a number inside, and from where it was afterwards."""
        world: Any = dist.distributed_c10d._world
        before, world.group_count = world.group_count, number
        try:
            yield
        finally:
            self.number, world.group_count = world.group_count, before


_named = _Names()


def rows_and_columns(
    device: torch.device, shape: tuple[int, int], exchange: Callable[[bool], list[bool]]
) -> tuple[dist.ProcessGroup, ...]:
    """Return the group of this rank's column and that of its row, in a mesh of all ranks. This is a collective call.

    Args:
        device: Device of the numbers that the groups exchange.
        shape: Numbers of rows and of columns.
        exchange: Function that collects a value of each rank.

    Returns:
        The groups.
    """
    whole = dist.group.WORLD
    assert whole is not None, "the process group was initialised"
    kept, key = _kept.setdefault(whole, {}), (device.type, shape)
    if not all(exchange(key in kept)):
        names = ("displacements", "inputs")
        mesh = init_device_mesh(device.type, shape, mesh_dim_names=names)
        kept[key] = tuple(mesh.get_group(name) for name in names)
    return kept[key]


def forget(group: dist.ProcessGroup) -> None:
    """Let the next kernel that is shared among these ranks make new groups, after a connection broke.

    Args:
        group: Group of the ranks.
    """
    _kept.pop(group, None)
