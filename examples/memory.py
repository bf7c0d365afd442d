"""Memory: what was said in one session is known in another, found by its words and by what it means.

Run it with a model server that has both chats and embeddings:
OPENAI_BASE_URL=http://127.0.0.1:8080/v1 OPENAI_MODEL=... EMBEDDING_MODEL=... python examples/memory.py
"""

import os
import sys

import trio

from callboard import Agent, Memory, OpenAIChat, OpenAIEmbedder, Runtime, Session


async def main(path: str) -> None:
    async with Runtime(path) as runtime:
        embedder = OpenAIEmbedder(model=os.environ.get("EMBEDDING_MODEL", "text-embedding-3-small"))
        memory = Memory(runtime, embedder=embedder)
        agent = Agent("Support Agent", model=OpenAIChat(), runtime=runtime)

        monday = Session(runtime, "monday", owner="ann")
        await agent.chat("My scooter's brake squeaks when it rains", session=monday)
        await memory.add("Ann has the gold plan.", owner="ann")
        print("remembered:", await memory.remember(monday))  # each message once: a second call adds nothing
        print("again:", await memory.remember(monday))

        question = "Is anything wrong with the brake?"
        for hit in await memory.search(question, owner="ann", limit=1):
            print("found:", hit.text)
        known = await memory.context(question, owner="ann", max_tokens=200)
        friday = Session(runtime, "friday", owner="ann")
        mechanic = Agent("Mechanic", instructions=f"What you know:\n{known}", model=OpenAIChat(), session=friday)
        print((await mechanic.chat(question)).text)


if __name__ == "__main__":
    trio.run(main, sys.argv[1] if len(sys.argv) > 1 else "support.lmdb")
