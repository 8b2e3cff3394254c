"""Process groups of the same ranks, which all kernels that are shared among these ranks use together.

A group of PyTorch has threads and connections of its own, and making one takes a rendezvous: a program that shares one
kernel after another has as many groups as one that shares a single kernel.
"""

from collections.abc import Callable, Hashable
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
    dist.all_gather_object(found, (own, timeout in kept), group=group)
    if not all(is_kept for _, is_kept in found):
        # PyTorch names a new group by its ranks and by the number of groups that a process has: ranks of which some are
        # in other groups as well would wait for each other under different names.
        for _ in range(max(number for number, _ in found) - own):
            dist.new_group([dist.get_rank()], backend="gloo", use_local_synchronization=True)
        kept[timeout] = tuple(dist.new_group(ranks, timeout, "gloo", use_local_synchronization=True) for _ in range(2))
    return kept[timeout]


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
