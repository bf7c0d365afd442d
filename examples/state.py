"""State: what turns keep for each other, in one session, for one user, and for the whole app.

Run it with a model server: OPENAI_BASE_URL=http://127.0.0.1:8080/v1 OPENAI_MODEL=... python examples/state.py
"""

import sys

import trio

from callboard import Agent, AppState, OpenAIChat, Runtime, Session, Template, ToolContext


async def order(article: str, context: ToolContext) -> str:
    """Order an article for the table."""
    # Three dicts of JSON values. What is changed in them commits with the turn, or not at all.
    context.session_state.setdefault("cart", []).append(article)
    context.user_state["usual"] = article
    # Of all the tables that order at this moment, each counts.
    context.app_state.increment("orders")
    return f"one {article} for the {context.metadata['table']['room']}"


async def main(path: str) -> None:
    async with Runtime(path) as runtime:
        app = AppState(runtime)
        await app.update({"special": "lemon tart"})
        # An owner's state is shared by all sessions of the same owner.
        session = Session(runtime, "table-7", owner="dana", metadata={"table": {"room": "garden", "seats": 4}})
        waiter = Agent(
            "Waiter",
            instructions=Template("You serve in the ${table.room}. Offer ${app_state.special}."),
            model=OpenAIChat(),
            session=session,
            tools=[order],
        )
        reply = await waiter.chat("A tea, please.")
        print(reply.text)
        print("session:", await session.state.get())
        print("user:", await session.user_state.get())
        print("orders in all:", (await app.get())["orders"])


if __name__ == "__main__":
    trio.run(main, sys.argv[1] if len(sys.argv) > 1 else "support.lmdb")
