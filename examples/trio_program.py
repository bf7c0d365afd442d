"""callboard in a trio program: callers over a socket, a nursery of one's own, an orderly end at Ctrl-C or a deadline.

It serves lines on a port: "user: question", and answers each with a line. Here it asks itself; with --serve it goes on.

Run it with a model server: OPENAI_BASE_URL=http://127.0.0.1:8080/v1 OPENAI_MODEL=... python examples/trio_program.py
"""

import sys
from functools import partial

import trio

from callboard import Agent, CallboardError, OpenAIChat, Runtime, Session


class Desk:
    """What answers a connection."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._agent = Agent("Desk", instructions="One line.", model=OpenAIChat(), runtime=runtime)

    async def serve(self, stream: trio.SocketStream) -> None:
        rest = b""
        async for data in stream:
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                await stream.send_all(await self._answer(line.decode()) + b"\n")

    async def _answer(self, line: str) -> bytes:
        user, _, question = line.partition(": ")
        try:
            with trio.move_on_after(30) as limit:
                # Cut off by the deadline, or because the caller has gone, the turn leaves no trace in history.
                reply = await self._agent.chat(question, session=Session(self._runtime, f"user-{user}"))
                return reply.text.encode()
        except CallboardError as error:
            return f"sorry: {error}".encode()
        assert limit.cancelled_caught
        return b"sorry: that took too long"


async def ask(port: int, line: str) -> str:
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(line.encode() + b"\n")
        return (await stream.receive_some()).decode().strip()


async def main(path: str) -> None:
    async with Runtime(path) as runtime, trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, Desk(runtime).serve, 0, host="127.0.0.1"))
        port = listeners[0].socket.getsockname()[1]
        if "--serve" in sys.argv:
            print(f"listening on port {port}; Ctrl-C ends it")
            return
        for line in ("dana: My order 88 is late.", "dana: Which order was it?", "noor: Hello"):
            print(f"{line} -> {await ask(port, line)}")
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main, sys.argv[1] if len(sys.argv) > 1 else "support.lmdb")
