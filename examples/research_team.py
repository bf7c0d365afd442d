"""A research team: some look things up side by side, each with its own tools; one writes, and hands over to be checked.

Run it with a model server: OPENAI_BASE_URL=http://127.0.0.1:8080/v1 OPENAI_MODEL=... python examples/research_team.py
"""

import sys

import trio

from callboard import GO_ON, Agent, Budget, Handoff, OpenAIChat, Parallel, Runtime, Session, Spending, Team, TeamFailed

NOTES = {"callboard": "A board behind the stage, where the company reads what was posted.", "prompt": "1550, in Basel."}
PAPERS = {"callboard": "First attested in the 1880s."}


def search_notes(word: str) -> list[str]:
    """Search the notes."""
    return [note for key, note in NOTES.items() if key in word.lower()]


def search_papers(word: str) -> list[str]:
    """Search the papers."""
    return [paper for key, paper in PAPERS.items() if key in word.lower()]


def count_words(text: str) -> int:
    """Count the words of a text."""
    return len(text.split())


async def main(path: str) -> None:
    async with Runtime(path) as runtime:
        model = OpenAIChat()
        session = Session(runtime, "research-4711")
        notes = Agent("Notes", model=model, runtime=runtime, instructions="Search notes.", tools=[search_notes])
        papers = Agent("Papers", model=model, runtime=runtime, instructions="Search papers.", tools=[search_papers])
        writer = Agent("Writer", model=model, runtime=runtime, instructions="Write, then have it checked.")
        checker = Agent("Checker", model=model, runtime=runtime, instructions="Check it.", tools=[count_words])

        # Each works in a fork of the session; what they find becomes history together. Who fails is left out.
        research = Team([notes, papers], session=session, flow=Parallel(on_failure="skip"))
        writing = Team([writer, checker], session=session, flow=Handoff(writer, sticky=False), turns_max=6)
        spending = Spending(Budget(model_calls=20, seconds=300))  # for both teams together

        try:
            found = await research.chat("What is a callboard?", spending=spending)
            for agent, reply in found.by_agent.items():
                print(f"{agent} found: {reply.text}")
            article = await writing.chat(GO_ON, spending=spending)  # no input: it goes on from what was found
        except TeamFailed as failed:
            print(f"{failed.agent} failed, and {len(failed.turns) - 1} turns stand: {failed.__cause__}")
            return
        print(" -> ".join(turn.agent for turn in article.turns), f"({article.stopped_by})")
        print(article.text)
        print(f"{spending.model_calls} model calls of 20")

        for message in await session.messages(limit=10):
            if message.text:
                print(f"  {message.author or message.role}: {message.text}")


if __name__ == "__main__":
    trio.run(main, sys.argv[1] if len(sys.argv) > 1 else "support.lmdb")
