"""callboard in a FastAPI app: one runtime for the life of the app, a session for each user, answers whole or streamed.

    uvicorn --app-dir examples fastapi_app:app      serves it; STORE names the store
    python examples/fastapi_app.py support.lmdb     asks it a few questions, without a server

With a model server: OPENAI_BASE_URL=http://127.0.0.1:8080/v1 OPENAI_MODEL=...
"""

import asyncio
import os
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import httpx
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse

from callboard import Agent, Busy, Delta, OpenAIChat, RunFailed, Runtime, Session


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
    # Leaving the block lets turns under way finish: a restart of the server cuts nobody off.
    async with Runtime(os.environ.get("STORE", "support.lmdb")) as runtime:
        app.state.runtime = runtime
        app.state.agent = Agent("Support", instructions="Be brief.", model=OpenAIChat(), runtime=runtime)
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/users/{user}/chat")
async def chat(user: str, question: str, request: Request) -> dict[str, str]:
    agent: Agent = request.app.state.agent
    # One turn after the other in a session; a second question at the same time is refused, with 409.
    reply = await agent.chat(question, session=session_of(request, user), overlap="reject")
    return {"answer": reply.text, "run": reply.run_id}


@app.post("/users/{user}/stream")
async def stream(user: str, question: str, request: Request) -> StreamingResponse:
    agent: Agent = request.app.state.agent

    async def pieces() -> AsyncGenerator[str]:
        # Where the browser goes away, the block is left, and the run is cancelled.
        async with agent.stream(question, session=session_of(request, user)) as events:
            async for event in events:
                if isinstance(event, Delta) and event.kind == "text":
                    yield event.text

    return StreamingResponse(pieces(), media_type="text/plain")


@app.get("/users/{user}/messages")
async def messages(user: str, request: Request, limit: int = 50) -> list[dict[str, str]]:
    latest = await session_of(request, user).messages(limit=limit)
    return [{"role": message.role, "text": message.text} for message in latest]


@app.exception_handler(Busy)
async def busy(_request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"error": str(error)}, status_code=409)


@app.exception_handler(RunFailed)
async def failed(_request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"error": str(error)}, status_code=502)


def session_of(request: Request, user: str) -> Session:
    return Session(request.app.state.runtime, f"user-{user}", owner=user)


async def main() -> None:
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://app") as client,
    ):
        first = await client.post("/users/dana/chat", params={"question": "My invoice is wrong."})
        print(first.json()["answer"])
        second = await client.post("/users/dana/stream", params={"question": "What was wrong?"})
        print(second.text)
        both = [client.post("/users/dana/chat", params={"question": f"Question {number}"}) for number in (1, 2)]
        print("at the same time:", *sorted(response.status_code for response in await asyncio.gather(*both)))
        history = await client.get("/users/dana/messages", params={"limit": 2})
        print("latest:", *[f"{message['role']}: {message['text']}" for message in history.json()])


if __name__ == "__main__":
    if len(sys.argv) > 1:
        os.environ["STORE"] = sys.argv[1]
    asyncio.run(main())
