"""Sessions by hand: found, listed and deleted, history written and read, metadata that agents see, a session per call.

Run it with a model server: OPENAI_BASE_URL=http://127.0.0.1:8080/v1 OPENAI_MODEL=... python examples/sessions.py
"""

import sys

import trio

from callboard import Agent, InstructionContext, OpenAIChat, Runtime, SessionManager


def greet(context: InstructionContext) -> str:
    return f"You are talking to {context.metadata['customer']}. Be brief."


async def main(path: str) -> None:
    async with Runtime(path) as runtime:
        manager = SessionManager(runtime)
        session = await manager.get_or_create("case-1", owner="dana", tags=["billing"], metadata={"customer": "Dana"})
        await manager.get_or_create("case-2", owner="dana", metadata={"customer": "Dana", "plan": "pro"})
        page = await manager.list(owner="dana", limit=10)
        print("Dana's:", ", ".join(sorted(head.id for head in page.sessions)))

        # History by hand, without a model.
        if not await session.message_count():
            await session.add_message("user", "The invoice is wrong.")
            await session.add_messages([{"role": "assistant", "content": "Which line?"}])
        latest = await session.messages(limit=2)
        print("last:", latest[-1].text)
        print("for a model:", len(await session.messages_for_llm()), "messages")

        # Instructions that depend on the session; a session for one call.
        await session.update_metadata({"mood": "upset", "plan": None})
        agent = Agent("Clerk", instructions=greet, model=OpenAIChat(), runtime=runtime)
        other = await manager.get("case-2")
        print("case-1:", (await agent.chat("The second one.", session=session)).text)
        print("case-2:", (await agent.chat("Am I on plan pro?", session=other)).text)

        # A list of messages, and no session at all: nothing is stored.
        reply = await agent_without_session(runtime).chat([{"role": "user", "content": "Ping"}])
        print("no session:", reply.text)
        print("deleted:", await manager.delete("case-2"))


def agent_without_session(runtime: Runtime) -> Agent:
    return Agent("Echo", model=OpenAIChat(), runtime=runtime)


if __name__ == "__main__":
    trio.run(main, sys.argv[1] if len(sys.argv) > 1 else "support.lmdb")
