"""Commands under ``torchrun``: the group of ranks, of which one prints, and an error that ends all of them."""

import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
import typer
from rich.console import Console

from nntk.bench.cli.options import CommandError, one_line_errors
from nntk.bench.results import tables
from nntk.distributed import RankError
from nntk.distributed.ranks.agreement import Agreement

_PATIENCE = timedelta(seconds=10)
"""Time for which the other ranks wait for the message of rank 0, before the end of one makes torchrun end all."""


@dataclass(frozen=True)
class Ranks:
    """This rank among those of a command.

    Attributes:
        rank: Number of this rank; 0 without torchrun.
        size: Number of ranks; 1 without torchrun.
        device: Device of this rank.
        agreement: Agreement of the ranks; None without torchrun.
    """

    rank: int
    size: int
    device: torch.device
    agreement: Agreement | None = None

    @property
    def console(self) -> Console:
        """Console for what a user reads, which rank 0 alone writes."""
        return tables.standard_console() if self.rank == 0 else Console(quiet=True)

    def together(self, work: str) -> AbstractContextManager[None]:
        """Do a piece of work, named as a clause after "while": an error on one rank ends the command on all."""
        return nullcontext() if self.agreement is None else self.agreement.together(work)


def number_of_ranks() -> int:
    """Return how many ranks torchrun started: the variable WORLD_SIZE, 1 without it."""
    text = os.environ.get("WORLD_SIZE", "1")
    if not text.isdecimal():
        raise CommandError(f"WORLD_SIZE: must be a number of ranks, as torchrun sets it, got {text!r}")
    return int(text)


@contextmanager
def ranks_of_command(program: str, device: torch.device, timeout: float) -> Iterator[Ranks]:
    """Join the ranks that torchrun started, if these are several; otherwise this process is alone.

    Args:
        program: Name of the program, for messages.
        device: Value of ``--device``: ``cuda`` is the device of number LOCAL_RANK.
        timeout: Longest time, in seconds, that ranks wait for another one.

    Yields:
        This rank.

    Raises:
        CommandError: If this process is alone and the block raises one, or the ranks cannot be joined.
        Exit: If ranks raise an error, after one of them printed it.
    """
    if number_of_ranks() < 2:
        yield Ranks(0, 1, device)
        return
    device, limit = _device_of_rank(device), timedelta(seconds=timeout)
    is_new = not dist.is_initialized()
    if is_new:
        with one_line_errors(ValueError, RuntimeError, prefix="torch.distributed: "):
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=limit)
    whole = dist.group.WORLD
    assert whole is not None, "the process group was initialised"
    rank = dist.get_rank()
    try:
        with one_line_errors(RankError):
            yield Ranks(rank, dist.get_world_size(), device, Agreement(whole, limit))
    except CommandError as error:
        _print_once(rank, f"{program}: error: {error}")
        raise typer.Exit(2) from error
    if is_new:
        dist.destroy_process_group()


def _device_of_rank(device: torch.device) -> torch.device:
    """Return the device of this rank: for CUDA, that of its number on this machine."""
    if device.type != "cuda":
        return device
    if ":" in str(device):
        raise CommandError(f"argument --device: must be cpu or cuda under torchrun, got '{device}'")
    local, there = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if local >= there:
        raise CommandError(f"argument --device: rank {local} of this machine has no GPU: PyTorch sees {there}")
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


def _print_once(rank: int, message: str) -> None:
    """Print a message by rank 0, or by rank 1 if that one is gone; the others wait until it is printed."""
    store, printed = dist.distributed_c10d._get_default_store(), "nntk: the message is printed"
    if rank:
        try:
            store.wait([printed], _PATIENCE)
            return
        except RuntimeError:
            if rank > 1:
                return
    print(message, file=sys.stderr, flush=True)
    try:
        store.set(printed, "1")
    except RuntimeError:
        pass  # The process that kept the store is gone.
