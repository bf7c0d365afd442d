"""What every command of the command line has: where it prints, and how it says what went wrong.

What goes wrong is one clear line on standard error and exit code 1. A reader that closes the pipe
(`callboard show x | head -1`) has seen enough: that is no error, so the command ends with 0, as ripgrep and fd do, and
`set -o pipefail` stays usable. Dying of SIGPIPE, as cat does, is no choice for a program that has sockets too.
"""

import contextlib
import os
import sys
from collections.abc import Callable, Coroutine, Generator
from pathlib import Path
from typing import Annotated, Any

import anyio
import msgspec
import typer
from rich.console import Console

from callboard.store.errors import CallboardError

from .cli_tables import printable
from .first_error import first_error

__all__ = ["STORE", "JsonOption", "StoreOption", "console", "one_clear_line", "print_json", "run_async"]

_INTERRUPTED = 130
"""The exit code of a program that Ctrl-C ended: 128 + SIGINT, as shells have it."""

_PIPE_COLUMNS = 200

StoreOption = Annotated[
    Path,
    typer.Option(
        "--store",
        envvar="CALLBOARD_STORE",
        help="Directory of the store; the key of a sealed one is read from CALLBOARD_MASTER_KEY.",
        show_default=True,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="JSON instead of a table.")]

STORE = Path("callboard.lmdb")


class _PipeConsole(Console):
    def on_broken_pipe(self) -> None:
        raise BrokenPipeError  # rich would exit with 1 here; `one_clear_line` knows better


def console() -> Console:
    """Rich takes 80 columns where it writes to no terminal, and would break ids in two; a pipe has no columns."""
    wide = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    return _PipeConsole(highlight=False, width=_PIPE_COLUMNS if wide else None)


def print_json(value: object) -> None:
    """One line of JSON."""
    typer.echo(msgspec.json.encode(value))


@contextlib.contextmanager
def one_clear_line() -> Generator[None]:
    """Errors that people can do something about end the command with one line and code 1."""
    try:
        yield
    except BrokenPipeError:
        # What is still buffered goes nowhere: the interpreter would complain that it cannot flush it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(0) from None
    # ValueError: what the library's doors say about an id, an owner, a URL; OSError: about a file named by the user;
    # ModuleNotFoundError: which extra a sealed store needs.
    except (CallboardError, ValueError, OSError, ModuleNotFoundError) as error:
        typer.echo(f"callboard: {printable(str(error))}", err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        typer.echo("callboard: stopped", err=True)
        raise typer.Exit(_INTERRUPTED) from None


def run_async(function: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run it under trio. Of the errors that task groups gathered, the first is raised: people get one clear line."""
    try:
        anyio.run(function, backend="trio")
    except BaseExceptionGroup as group:
        raise first_error(group) from None
