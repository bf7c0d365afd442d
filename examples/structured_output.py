"""Answers as values: a mail becomes a Ticket, checked before the program sees it; a wrong one goes back to the model.

With a model server: OPENAI_BASE_URL=http://127.0.0.1:8080/v1 OPENAI_MODEL=... python examples/structured_output.py
"""

import sys
from typing import Annotated, Literal

import trio
from msgspec import Meta, Struct

from callboard import Agent, BadOutput, OpenAIChat, OutputRepair, RunFailed, Runtime, Session

MAIL = "Order 88 was to come on Monday. It is Thursday, and my daughter's birthday is on Saturday! Dana Fox"


class Ticket(Struct):
    """What a customer wants."""

    subject: Annotated[str, Meta(max_length=80)]
    order: int | None
    urgency: Annotated[int, Meta(ge=1, le=5, description="5 is the most urgent")]
    mood: Literal["pleased", "neutral", "upset"] = "neutral"


async def main(path: str) -> None:
    async with Runtime(path) as runtime:
        session = Session(runtime, "mail-4711")
        agent = Agent("Triage", instructions="Sort the mail.", model=OpenAIChat(), session=session, output=Ticket)

        reply = await agent.chat(MAIL)
        ticket = reply.output  # a Ticket, for type checkers too
        print(f"{ticket.subject}: order {ticket.order}, urgency {ticket.urgency}, {ticket.mood}")

        # Another form for one answer; it need not be an object. The stream says when an answer was no good.
        async with agent.stream("What should we ask Dana?", output=list[str]) as stream:
            async for event in stream:
                if isinstance(event, OutputRepair):
                    print(f"asked again: {event.problem}")
        for question in stream.reply.output:
            print("-", question)

        try:
            await agent.chat("Write a poem instead.")
        except RunFailed as failed:
            if not isinstance(failed.__cause__, BadOutput):
                raise
            print(f"no ticket: {failed.__cause__.problem}")

        print(f"{await session.message_count()} messages, of which none was a wrong answer")


if __name__ == "__main__":
    trio.run(main, sys.argv[1] if len(sys.argv) > 1 else "support.lmdb")
