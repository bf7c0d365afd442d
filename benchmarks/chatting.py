"""Turns as a program has them: callers that chat, each in sessions of its own, and what must then be stored."""

from collections import Counter
from pathlib import Path

from closed_loop import Caller

from callboard import Agent, Delta, Runtime, Session
from callboard.actors.archive import Archive

__all__ = ["Chatting"]


class Chatting:
    """The turns of all callers.

    Args:
        question: the input of every turn.
        answer: what the model answers.
        turns: of a session, until its caller takes a new one.

    Attributes:
        begun, answered: how many turns, by session.
    """

    def __init__(self, runtime: Runtime, *, question: str, answer: str, turns: int) -> None:
        self._runtime = runtime
        self._question = question
        self._answer = answer
        self._turns = turns
        self.begun: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self._made = 0

    def caller(self, agent: Agent, *, streamed: bool = False) -> Caller:
        session = self._fresh()

        async def call() -> None:
            reply = await agent.chat(self._question, session=session)
            assert reply.text == self._answer

        async def call_streamed() -> None:
            pieces: list[str] = []
            async with agent.stream(self._question, session=session) as stream:
                async for event in stream:
                    if isinstance(event, Delta):
                        pieces.append(event.text)
            assert "".join(pieces) == self._answer == stream.reply.text

        turn = call_streamed if streamed else call

        async def call_in_session() -> None:
            nonlocal session
            if self.begun[session.id] == self._turns:
                session = self._fresh()
            self.begun[session.id] += 1
            await turn()
            self.answered[session.id] += 1

        return call_in_session

    def _fresh(self) -> Session:
        self._made += 1
        return Session(self._runtime, f"session-{self._made}")

    def check(self, store: Path) -> None:
        """Every turn that was answered is in the store, whole and once, and nothing else is. The runtime is closed.

        A turn that was cancelled is not there, or is there whole: its commit was on its way.
        """
        with Archive.open(store) as archive:
            assert archive.with_open_runs() == []
            for session, begun in self.begun.items():
                runs = list(archive.runs(session)) if archive.head(session) is not None else []
                turns = sum(run.status == "completed" for run in runs)
                assert self.answered[session] <= turns <= begun, f"{session}: {turns}, not {self.answered[session]}"
                assert {run.status for run in runs} <= {"completed", "cancelled"}, f"{session}: {runs}"
                said = [message.text for message in archive.messages(session)]
                assert said == [self._question, self._answer] * turns, session
