"""``nntk-bench``: the command line, assembled from one module for each command."""

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated, Any

import typer

import nntk
from nntk.bench.cli import compare, predict, profile, report, resources, roofline, run, study, tune
from nntk.bench.cli.gpu import card, warm_up
from nntk.bench.cli.kernels import compare_kernels, kernel
from nntk.bench.cli.options import CommandError, manual

# Newer releases of typer have click's exceptions under names of their own; Python 3.10 has an older one, and click.
UsageError: type[Exception] = getattr(typer, "TyperException", None) or import_module("click").ClickException
"""Base class of typer's errors of usage."""

COMMANDS = {
    "run": run,
    "compare": compare,
    "report": report,
    "roofline": roofline,
    "profile": profile,
    "resources": resources,
    "predict": predict,
    "tune": tune,
    "warm-up": warm_up,
    "card": card,
    "study": study,
    "kernel": kernel,
    "compare-kernels": compare_kernels,
}
"""Modules of the commands: each has ``command``, its ``SUMMARY`` of one line, its ``HELP`` and its ``EPILOG``."""

# Plain text: its lines stay as they are in a terminal, in a pager and in a log.
app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 120}


def _show_version(requested: bool) -> None:
    if requested:
        typer.echo(f"nntk {nntk.__version__}")
        raise typer.Exit()


@app.callback(
    help="Measure the throughput and accuracy of nonlocal neural tangent kernels, side by side with autograd.",
    epilog=manual(run.EPILOG),
    context_settings=_SETTINGS,
    subcommand_metavar="COMMAND [ARGS]...",
)
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    """Hold the options that come before a command."""


for _name, _module in COMMANDS.items():
    app.command(
        _name,
        help=manual(_module.HELP),
        short_help=_module.SUMMARY,
        epilog=manual(_module.EPILOG),
        context_settings=_SETTINGS,
    )(_module.command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Words after the program's name; those of the process by default.

    Returns:
        The exit status: 0, a status that the command's help explains, 2 after wrong usage, 130 after Ctrl-C, 141 if the
        reader of a pipe closed it, as of programs that the signal SIGPIPE ends.

    Raises:
        SystemExit: If typer ends the program for another reason.
    """
    streams = sys.stdout, sys.stderr
    try:
        status = _status(arguments)
        if sys.stdout:
            sys.stdout.flush()
        return status
    except BrokenPipeError:
        pass
    except SystemExit as end:
        # So typer ends after a broken pipe, with streams in place of the process's.
        if not isinstance(end.__context__, BrokenPipeError):
            raise
    sys.stdout, sys.stderr = streams
    _close_broken_pipes()
    return 141


def _status(arguments: Sequence[str] | None) -> int:
    """Run the command line up to the last line of its output."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    name = words[0] if words and words[0] in COMMANDS else ""
    program = f"nntk-bench {name}".rstrip()
    try:
        status = typer.main.get_command(app).main(words, prog_name="nntk-bench", standalone_mode=False)
    except UsageError as error:
        print(f"{program}: error: {_usage_message(error, name)} (see {program} --help)", file=sys.stderr)
        return 2
    except CommandError as error:
        print(f"{program}: error: {error}", file=sys.stderr)
        return 2
    except (typer.Abort, KeyboardInterrupt):
        return 130
    return int(status or 0)


def _close_broken_pipes() -> None:
    """Drop what the streams still hold for a reader that is gone: Python would try once more at its end."""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


def _usage_message(error: Any, command: str) -> str:
    """Name the argument and what is wrong with it; without a command, name the commands."""
    parameter = getattr(error, "param", None)
    if parameter is not None:
        name = max(parameter.opts, key=len) if parameter.param_type_name == "option" else parameter.metavar
        return f"argument {name}: {error.message or 'is required'}"
    message = error.format_message().rstrip(".")
    return message if command else f"{message}; the commands are {', '.join(COMMANDS)}"


if __name__ == "__main__":
    sys.exit(main())
