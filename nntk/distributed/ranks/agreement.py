"""Agreement of ranks: before and after each piece of work every rank reports, and all of them go on or none does.

A rank that raised an error, holds something else than the others, ended, or stopped answering ends the call on every
rank, with one message that names it. Reports travel by gloo on the CPU, whatever carries the numbers.
"""

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nntk.distributed.ranks import groups

_BYTES = 2**14
"""Size of a report: of a fixed size, so that all of them are received at once."""
_LONGEST = 200
"""Longest text of a fact; a longer one is replaced by its hash."""


class RankError(RuntimeError):
    """Error of a group of ranks, which every rank raises; the message says which rank caused it, and how.

    Attributes:
        ranks: Numbers of the ranks that caused it; empty where they are not known.
    """

    def __init__(self, message: str, ranks: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.ranks = tuple(ranks)


class Agreement:
    """Exchange of reports between all ranks of a group. Making one is a collective call.

    Args:
        group: The group of ranks.
        timeout: Longest time that the others wait for a rank. Rank 0 waits for half of it, so that its verdict arrives
            within it.

    Attributes:
        rank: Number of this rank in the group.
        size: Number of ranks.
        seconds: Time that this rank has waited for the others.
    """

    def __init__(self, group: dist.ProcessGroup, timeout: timedelta) -> None:
        self.rank, self.size, self.timeout, self.seconds = (
            dist.get_rank(group),
            dist.get_world_size(group),
            timeout,
            0.0,
        )
        self._group, self._failure = group, ""
        if self.size > 1:
            self._reports, self._verdicts = groups.reports_and_verdicts(group, timeout)

    def exchange(
        self, facts: Mapping[str, Any] | None = None, value: Any = None, error: BaseException | None = None
    ) -> list[Any]:
        """Compare facts with those of all ranks, and collect a value of each.

        Args:
            facts: What must be the same on every rank that has a fact of this name.
            value: Small value that JSON can hold.
            error: Error of this rank, which ends the call on all of them.

        Returns:
            The values of all ranks, in their order.

        Raises:
            RankError: If a rank has an error, another fact, or does not answer in time.
            BaseException: The error of this rank, if all ranks have the same.
        """
        if self._failure:
            raise RankError(f"{self._failure} Start all ranks again.")
        report = {
            "facts": {name: _short(fact) for name, fact in (facts or {}).items()},
            "value": value,
            "error": None if error is None else f"{type(error).__name__}: {error}"[:1500],
        }
        start = time.perf_counter()
        try:
            verdict = self._judged(report)
        except BaseException:  # An interrupt leaves reports on their way.
            groups.forget(self._group)
            raise
        self.seconds += time.perf_counter() - start
        if verdict["lost"]:
            self._failure = verdict["message"]
            groups.forget(self._group)
        if error is not None and verdict["common"]:
            raise error
        if verdict["message"]:
            raise RankError(verdict["message"], verdict["ranks"]) from error
        values: list[Any] = verdict["values"]
        return values

    @contextmanager
    def together(self, work: str) -> Iterator[None]:
        """Do a piece of work on every rank: an error on one of them is an error on all.

        Args:
            work: What the block does, as a clause after "while", for the message.

        Yields:
            Nothing.

        Raises:
            RankError: If a rank raised an error or does not answer.
            BaseException: The error of this rank, if all ranks have the same.
        """
        try:
            yield
        except Exception as error:
            self.exchange({"step": work}, error=error)
            raise
        self.exchange({"step": work})

    def lost(self, error: Exception) -> None:
        """Raise the error that names the lost rank, after a connection broke or nothing arrived on it.

        Args:
            error: Error of PyTorch.

        Raises:
            RankError: Always.
        """
        try:
            self.exchange(error=error)
        except RankError as found:
            if found.ranks and self._failure:
                raise found from error
        groups.forget(self._group)
        self._failure = f"A rank ended or stopped answering while numbers were exchanged ({_first_line(error)})."
        raise RankError(self._failure) from error

    def _judged(self, report: dict[str, Any]) -> dict[str, Any]:
        """Return the verdict over the reports of all ranks."""
        if self.size == 1:
            return _judge([report])
        return self._send(report) if self.rank else self._collect(report)

    def _collect(self, report: dict[str, Any]) -> dict[str, Any]:
        """Receive the reports of the other ranks on rank 0, and send the verdict to all that answered."""
        buffers = [torch.zeros(_BYTES, dtype=torch.uint8) for _ in range(1, self.size)]
        reports: list[dict[str, Any] | None] = [report]
        works: list[Any] = []
        reasons: dict[int, str] = {}
        for rank, buffer in enumerate(buffers, 1):
            try:
                works.append(dist.irecv(buffer, group=self._reports, group_src=rank))
            except RuntimeError as error:
                works.append(None)
                reasons[rank] = _first_line(error)
        deadline = time.monotonic() + self.timeout.total_seconds() / 2
        for rank, (work, buffer) in enumerate(zip(works, buffers, strict=True), 1):
            try:
                if work is not None:
                    work.wait(timedelta(seconds=max(0.001, deadline - time.monotonic())))
            except RuntimeError as error:
                reasons[rank] = _first_line(error)
            # What arrived before a connection was closed counts.
            reports.append(_decode(buffer))
        verdict = _judge(reports, reasons, self.timeout.total_seconds() / 2)
        message = _encode(verdict, None)
        for rank in range(1, self.size):
            if reports[rank] is not None:
                try:
                    dist.send(torch.tensor([len(message)]), group=self._verdicts, group_dst=rank)
                    dist.send(message, group=self._verdicts, group_dst=rank)
                except RuntimeError:
                    continue  # It ended after its report: the next exchange finds that out.
        return verdict

    def _send(self, report: dict[str, Any]) -> dict[str, Any]:
        """Send the report of another rank to rank 0, and return its verdict."""
        try:
            dist.send(_encode(report, _BYTES), group=self._reports, group_dst=0)
            length = torch.zeros(1, dtype=torch.int64)
            self._receive(length)
            buffer = torch.zeros(int(length), dtype=torch.uint8)
            self._receive(buffer)
        except RuntimeError as error:
            what = (
                "ended"
                if _was_closed(str(error))
                else f"did not answer within {self.timeout.total_seconds():g} seconds"
            )
            message = f"Rank 0 {what}, so that all ranks end."
            return {"message": message, "ranks": [0], "lost": True, "common": False, "values": []}
        verdict = _decode(buffer)
        assert verdict is not None, "rank 0 sends a verdict"
        return verdict

    def _receive(self, buffer: Tensor) -> None:
        """Receive a part of the verdict of rank 0."""
        work = dist.irecv(buffer, group=self._verdicts, group_src=0)
        assert work is not None, "this rank is of the group"
        work.wait(self.timeout)


def _judge(
    reports: Sequence[dict[str, Any] | None], reasons: Mapping[int, str] | None = None, seconds: float = 0
) -> dict[str, Any]:
    """Return the verdict over the reports of all ranks; None stands for a rank that did not answer."""
    lost = [rank for rank, report in enumerate(reports) if report is None]
    given = {rank: report for rank, report in enumerate(reports) if report is not None}
    failed = [rank for rank, report in given.items() if report["error"]]
    message, ranks, common = "", lost or failed, False
    if lost:
        known = {rank: (reasons or {}).get(rank, "") for rank in lost}
        closed = [rank for rank, reason in known.items() if _was_closed(reason)]
        ranks = closed or lost
        what = "ended" if closed else f"did not answer within {seconds:g} seconds"
        message = f"{_named(ranks)} {what}, so that all ranks end."
    elif failed:
        first = given[failed[0]]
        step = first["facts"].get("step", "")
        message = f"{_named(failed)} failed{f' while {step}' if step else ''}: {first['error']}"
        common = len(failed) == len(reports) and all(report["error"] == first["error"] for report in given.values())
    else:
        message, ranks = _difference(given)
    values = [report["value"] for report in given.values()]
    return {"message": message, "ranks": ranks, "lost": bool(lost), "common": common, "values": values}


def _difference(reports: Mapping[int, dict[str, Any]]) -> tuple[str, list[int]]:
    """Return a message about the facts in which ranks differ, and these ranks; an empty one where there are none."""
    reference: dict[str, tuple[int, Any]] = {}
    found: dict[str, tuple[int, Any, list[int], Any]] = {}
    for rank, report in reports.items():
        for name, fact in report["facts"].items():
            first, expected = reference.setdefault(name, (rank, fact))
            if fact != expected:
                found.setdefault(name, (first, expected, [], fact))[2].append(rank)
    parts = [
        f"{_named(ranks).lower()} {'have' if len(ranks) > 1 else 'has'} another {name} than rank {first}: "
        f"{fact!r}, not {expected!r}"
        for name, (first, expected, ranks, fact) in found.items()
    ]
    if not parts:
        return "", []
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}.", sorted({rank for _, _, ranks, _ in found.values() for rank in ranks})


def _named(ranks: Sequence[int]) -> str:
    return f"Rank {ranks[0]}" if len(ranks) == 1 else f"Ranks {', '.join(map(str, ranks))}"


def _was_closed(reason: str) -> bool:
    """Return whether a connection broke because the process at its other end is gone."""
    return any(words in reason for words in ("closed by peer", "reset by peer", "Broken pipe", "refused"))


def _short(fact: Any) -> Any:
    text = json.dumps(fact, sort_keys=True, default=str)
    return json.loads(text) if len(text) <= _LONGEST else hashlib.sha256(text.encode()).hexdigest()[:16]


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0].rpartition("] ")[2][:200]


def _encode(content: Mapping[str, Any], size: int | None) -> Tensor:
    """Return content as bytes, behind their number; padded to a size where one is given."""
    text = json.dumps(content).encode()
    data = len(text).to_bytes(8, "little") + text
    if size is not None and len(data) > size:
        raise ValueError(f"a report must have at most {size} bytes, got {len(data)}.")
    return torch.frombuffer(bytearray(data.ljust(size or 0, b"\0")), dtype=torch.uint8)


def _decode(buffer: Tensor) -> dict[str, Any] | None:
    """Return the content of a buffer; None if nothing was received."""
    data = buffer.numpy().tobytes()
    length = int.from_bytes(data[:8], "little")
    if not length or 8 + length > len(data):
        return None
    try:
        content = json.loads(data[8 : 8 + length])
    except ValueError:
        return None
    return content if isinstance(content, dict) else None
