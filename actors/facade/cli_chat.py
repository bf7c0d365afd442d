"""`callboard chat`: a person types, an agent answers as the pieces arrive, and the session keeps both.

The person is read in the main thread and the runtime runs in a thread of its own: reading a line blocks, and Ctrl-C
must be able to stop an answer without ending the chat. A stopped or failed turn leaves the history as it was.
"""

import contextlib
from collections.abc import Callable, Generator
from pathlib import Path

import anyio.from_thread
from msgspec import Struct
from rich.console import Console
from rich.text import Text

from callboard import Agent, OpenAIChat, Reply, Runtime, Session
from callboard.actors.model import Delta
from callboard.actors.reply import AttemptFailed
from callboard.store.errors import CallboardError

from .cli_key import master_key
from .cli_tables import printable

__all__ = ["ChatOptions", "chat"]

QUIT = "/quit"


class ChatOptions(Struct, frozen=True):
    """What the command line says; None leaves it to OPENAI_BASE_URL, OPENAI_MODEL."""

    store: Path
    session_id: str
    agent: str
    instructions: str
    base_url: str | None = None
    model: str | None = None


def chat(options: ChatOptions, console: Console, read_line: Callable[[], str]) -> bool:
    """Chat until `read_line` gives "" or "/quit" or raises EOFError. Whatever was answered by then is stored.

    Returns:
        False where the last turn failed; one that was stopped did not.

    Raises:
        CallboardError, ValueError: the chat could not begin. An error of one turn is printed, and the chat goes on.
    """
    well = True
    with _open_chat(options, console) as ask:
        while (line := _read(read_line)) not in ("", QUIT):
            well = ask(line)
    return well


def _read(read_line: Callable[[], str]) -> str:
    try:
        return read_line().strip()
    except EOFError:
        return QUIT


@contextlib.contextmanager
def _open_chat(options: ChatOptions, console: Console) -> Generator[Callable[[str], bool]]:
    model = OpenAIChat(base_url=options.base_url, model=options.model)
    with (
        anyio.from_thread.start_blocking_portal(backend="trio") as portal,
        portal.wrap_async_context_manager(Runtime(options.store, master_key=master_key())) as runtime,
    ):
        session = Session(runtime, options.session_id)
        agent = Agent(options.agent, instructions=options.instructions, model=model, session=session)
        _greet(console, options, portal.call(session.message_count))

        def ask(text: str) -> bool:
            future = portal.start_task_soon(_answer, agent, text, console)
            try:
                reply = future.result()
            except KeyboardInterrupt:
                future.cancel()
                console.print(Text("\n[stopped: nothing of this turn is kept]", "yellow"))
            except CallboardError as error:
                console.print(Text(f"\n{printable(str(error))}", "red"))
                return False
            else:
                console.print(Text(f"\n[{reply.usage.total_tokens} tokens]", "dim"))
            return True

        yield ask


def _greet(console: Console, options: ChatOptions, message_count: int) -> None:
    history = f"{message_count} messages so far" if message_count else "new"
    console.print(
        Text(f"session {options.session_id} ({history}) in {options.store} · an empty line or {QUIT} ends", "dim")
    )


async def _answer(agent: Agent, text: str, console: Console) -> Reply:
    console.print(Text(f"{printable(agent.name)}: ", "bold green"), end="")
    async with agent.stream(text) as stream:
        async for event in stream:
            if isinstance(event, Delta) and event.kind == "text":
                console.print(Text(printable(event.text)), end="", soft_wrap=True)
            elif isinstance(event, AttemptFailed):
                console.print(Text(f"\n[{printable(event.reason)}; trying again in {event.delay_s:.1f} s]", "yellow"))
        return stream.reply
