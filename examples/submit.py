"""Requests that are accepted now and answered by and by, each once, however often it is sent.

Run it with a model server: OPENAI_BASE_URL=http://127.0.0.1:8080/v1 OPENAI_MODEL=... python examples/submit.py
"""

import asyncio
import sys

from callboard import Agent, KeyReused, OpenAIChat, Runtime, Session


async def main(path: str) -> None:
    async with Runtime(path) as runtime:
        session = Session(runtime, "reports")
        writer = Agent("Writer", instructions="One sentence.", model=OpenAIChat(), session=session)

        # As a web server would: the request has an id, and may come twice. Run twice, this program asks the model once.
        submissions = [await writer.submit("A report on tides", key="request-1") for _ in range(2)]
        assert submissions[0].run_id == submissions[1].run_id
        print("accepted:", await submissions[0].status())

        # As a worker, or a page that is loaded later, would: by the run's id.
        reply = await writer.submission(submissions[0].run_id).wait()
        print("answered:", reply.text)

        again = await writer.chat("A report on tides", key="request-1")
        print("the same answer:", again.text == reply.text, "and", await session.message_count(), "messages")
        try:
            await writer.chat("A report on winds", key="request-1")
        except KeyReused:
            print("refused: the key stands for another request")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "support.lmdb"))
