"""Sessions in a PostgreSQL database instead of a directory: as plain calls, and with an agent on the same storage.

Run it with `pip install 'callboard[postgres]'`, a database and a model server:
DATABASE_URL=postgresql://user:password@host/database OPENAI_BASE_URL=... python examples/postgres_storage.py
"""

import os

import trio

from callboard import Agent, OpenAIChat, Session, create_postgres_session_storage


async def main(dsn: str) -> None:
    async with create_postgres_session_storage(dsn) as storage:
        await storage.create_session("user-123", metadata={"plan": "pro"}, owner="john")
        await storage.add_message("user-123", "user", "My name is John and I need help with billing")
        await storage.add_messages(
            "user-123",
            [
                {"role": "assistant", "content": "Hello John, what is wrong?"},
                {"role": "user", "content": "Invoice 88 came twice."},
            ],
        )

        agent = Agent("Support", model=OpenAIChat(), session=Session(storage.runtime, "user-123"))
        reply = await agent.chat("What was my issue again?")
        print(reply.text)

        for message in await storage.get_messages("user-123", limit=2):
            print(f"{message.seq:3} {message.author or message.role}: {message.text}")


if __name__ == "__main__":
    trio.run(main, os.environ["DATABASE_URL"])
