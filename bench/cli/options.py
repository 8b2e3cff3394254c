"""Values of options: each parser says what is allowed, and each option that several commands share is defined once."""

import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import replace
from typing import Annotated, Any

import torch
import typer

from nntk.files.output import Output
from nntk.files.paths import OutputPathError


class CommandError(Exception):
    """Message of a command that cannot do its work; the command line prints it in one line and exits with status 2."""


@contextmanager
def one_line_errors(*kinds: type[Exception], prefix: str = "") -> Iterator[None]:
    """Turn errors whose messages are written for users into a ``CommandError``.

    Args:
        *kinds: Classes of these errors.
        prefix: Text in front of the message, for instance the name of the argument.

    Yields:
        Nothing.

    Raises:
        CommandError: If the block raises one of these errors.
        BrokenPipeError: If a reader has closed its pipe, which is no error of the user's.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except kinds as error:
        raise CommandError(f"{prefix}{error}") from error


@contextmanager
def errors_by_argument(arguments: Mapping[str, str]) -> Iterator[None]:
    """Let errors about arguments of the library name those of the command instead, without remedies in Python.

    Args:
        arguments: Arguments of the command by the names that the library gives them.

    Yields:
        Nothing.

    Raises:
        CommandError: If the message of a ``ValueError`` or ``TypeError`` in the block begins with one of the names.
        ValueError: Any other one of the block.
        TypeError: Likewise.
    """
    try:
        yield
    except (ValueError, TypeError) as error:
        name, _, reason = str(error).partition(" ")
        if name not in arguments:
            raise
        reason = reason.partition(f"; use {name}.to")[0].rstrip(".")
        reason = re.sub(r"(?<=\blike )\w+", lambda word: arguments.get(word[0], word[0]), reason)
        raise CommandError(f"argument {arguments[name]}: {reason}") from error


@contextmanager
def printing_beside(output: Output | None) -> Iterator[Output | None]:
    """Print everything to standard error while an output is standard output, so that it holds one document alone.

    Args:
        output: The output; nothing is changed for any other one, and for None.

    Yields:
        The output, for the block to write to.
    """
    if output is None or not output.is_standard:
        yield output
        return
    with ExitStack() as stack:
        # Standard error may be closed.
        errors = sys.stderr or stack.enter_context(open(os.devnull, "w"))
        stack.enter_context(redirect_stdout(errors))
        if output.descriptor is None:
            yield output
            return
        # Libraries and the processes that compile print to the descriptor.
        kept = os.dup(output.descriptor)
        stack.callback(os.close, kept)
        stack.callback(os.dup2, kept, output.descriptor)
        os.dup2(errors.fileno(), output.descriptor)
        yield replace(output, descriptor=kept)


def manual(text: str) -> str:
    r"""Mark the paragraphs of a help text that are lists, so that their line breaks stay.

    Args:
        text: Paragraphs, separated by empty lines. A list begins with its first indented line, or with the one line
            above it; longer text above it becomes a paragraph of its own.

    Returns:
        The text with the mark ``\b`` in front of each list.
    """
    spaced = re.sub("\n+Exit status", "\n\nExit status", text.strip("\n"))
    return "\n\n".join(_marked(part.split("\n")) for part in spaced.split("\n\n"))


def _marked(lines: list[str]) -> str:
    indented = [index for index, line in enumerate(lines) if line.startswith("  ")]
    if not indented:
        return "\n".join(lines)
    start = indented[0] if indented[0] > 1 else 0
    listed = "\n".join(["\b", *lines[start:]])
    return "\n".join([*lines[:start], "", listed]) if start else listed


def one_of(names: Iterable[str]) -> Callable[[Any], str]:
    """Return a parser that accepts one of the names."""
    allowed = tuple(names)

    def parse(value: Any) -> str:
        if value not in allowed:
            raise typer.BadParameter(f"must be one of {', '.join(allowed)}; got {value!r}")
        return str(value)

    return parse


def parse_output(option: str) -> Callable[[Any], Output]:
    """Return a parser of the path of an option, which is checked before any work."""

    def parse(value: Any) -> Output:
        with one_line_errors(OutputPathError):
            return Output.at(str(value), f"argument {option}:")

    return parse


def parse_seed(value: Any) -> int:
    """Return a seed, an integer in [0, 2**32)."""
    text = str(value)
    if not text.isdecimal() or int(text) >= 2**32:
        raise typer.BadParameter(f"must be an integer in [0, 2**32), got {text!r}")
    return int(text)


def parse_threads(value: Any) -> int:
    """Return a number of threads, at most the number of available cores."""
    text, cores = str(value), len(os.sched_getaffinity(0))
    if not text.isdecimal() or not 1 <= int(text) <= cores:
        raise typer.BadParameter(f"must be an integer from 1 to {cores}, the available cores; got {text!r}")
    return int(text)


def parse_device(value: Any) -> torch.device:
    """Return a device that exists on this machine."""
    text = str(value)
    if not re.fullmatch(r"cpu|cuda(:[0-9]{1,4})?", text):
        raise typer.BadParameter(f"must be cpu, cuda or cuda:N, got {text!r}")
    if text != "cpu" and int(text.partition(":")[2] or 0) >= torch.cuda.device_count():
        raise typer.BadParameter(f"{text!r} is not there: PyTorch sees {torch.cuda.device_count()} CUDA devices")
    return torch.device(text)


_UNITS = {"": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}


def parse_bytes(value: Any) -> int:
    """Return a number of bytes: an integer, or a number with KiB, MiB, GiB or TiB."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?([kmgt]ib)?", str(value).strip().lower())
    if not match:
        raise typer.BadParameter(f"must be a number of bytes such as 1000000 or 2GiB, got {str(value)!r}")
    return int(float(match[1]) * _UNITS[match[2] or ""])


def number_in(low: float, high: float, description: str) -> Callable[[Any], float]:
    """Return a parser of numbers above ``low`` and up to ``high``; the description names them in the message."""

    def parse(value: Any) -> float:
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not low < number <= high:
            raise typer.BadParameter(f"must be {description}, got {str(value)!r}")
        return number

    return parse


Device = Annotated[
    torch.device,
    typer.Option(parser=parse_device, metavar="NAME", help="cpu, cuda or cuda:N (default: cpu)", show_default=False),
]
Seed = Annotated[
    int,
    typer.Option(parser=parse_seed, metavar="N", help="seed of the first replicate (default: 0)", show_default=False),
]
Threads = Annotated[
    int | None,
    typer.Option(parser=parse_threads, metavar="N", help="CPU threads of PyTorch (default: PyTorch's choice)"),
]
JsonOutput = Annotated[
    Output | None,
    typer.Option(
        "--json",
        parser=parse_output("--json"),
        metavar="PATH",
        help="write the result as JSON to this file or pipe; - is standard output, and tables go to standard error",
    ),
]
CPU = torch.device("cpu")
