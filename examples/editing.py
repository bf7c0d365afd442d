"""Editing a conversation: another answer, a fork, pages, search; and the audit of what was taken out.

Run it with a model server: OPENAI_BASE_URL=http://127.0.0.1:8080/v1 OPENAI_MODEL=... python examples/editing.py
"""

import sys

import trio

from callboard import Agent, OpenAIChat, Runtime, Session, SessionManager


async def main(path: str) -> None:
    async with Runtime(path) as runtime:
        manager = SessionManager(runtime)
        for id in ("trip", "trip-by-night"):  # of an earlier run of this program
            await manager.delete(id)
        session = Session(runtime, "trip", owner="dana")
        guide = Agent("Guide", instructions="One sentence.", model=OpenAIChat(), session=session)

        await guide.chat("Which town should I see in Flanders?")
        reply = await guide.chat("And by train?")

        # Another try at the last answer: what the run wrote is taken out, and the question asked anew.
        taken = await session.rewind(before_run=reply.run_id, by="dana", reason="too vague")
        await guide.chat("And by train from Brussels?")
        print(f"{taken} messages taken out, {await session.message_count()} left")

        # Two ways to go on from one place.
        fork = await session.fork("trip-by-night", at_seq=2, metadata={"of": "trip"})
        await guide.chat("And by night?", session=fork)
        await session.pop(2)

        page = await session.page(limit=1)
        while page.older is not None:
            page = await session.page(limit=1, cursor=page.older)
        print("it began with:", page.messages[0].text)

        for hit in (await manager.search("FLANDERS town", owner="dana", role="user")).hits:
            print(f"{hit.session_id}, message {hit.message.seq}: {hit.excerpt}")

        audit = await session.audit()
        for message in audit.messages:
            edit = audit.removed_by(message)
            print(f"{message.seq} {message.text}" + (f"  (taken out: {edit.reason or edit.kind})" if edit else ""))


if __name__ == "__main__":
    trio.run(main, sys.argv[1] if len(sys.argv) > 1 else "support.lmdb")
