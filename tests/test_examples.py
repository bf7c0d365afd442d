"""Each program in examples/ runs as a user would run it, twice on one store, against a fake server over real HTTP."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio.from_thread
import pytest
from database_servers import shared_postgres

from callboard.testing import Body, FakeUpstream, Script, ScriptStep, answer, refuse

EXAMPLES = Path(__file__).parent.parent / "examples"
PROGRAMS = sorted(EXAMPLES.glob("*.py"))

pytestmark = pytest.mark.skipif(not EXAMPLES.is_dir(), reason="the tests run without the repository around them")


def asked(body: Body) -> str:
    """The latest message of the user's own; a run adds some of its own where an answer was wrong."""
    texts: list[str] = [message["content"] for message in body["messages"] if message["role"] == "user"]
    return next(text for text in reversed(texts) if not text.startswith("Your answer"))


def was_refused(body: Body) -> bool:
    return str(body["messages"][-1]["content"]).startswith("Your answer")


def as_triage(body: Body) -> ScriptStep:
    """What a model might say to structured_output.py: in words around the JSON, wrong at first, and not at all."""
    text = asked(body)
    if "Order 88" in text:
        ticket = '{"subject": "Late birthday present", "order": 88, "urgency": 4, "mood": "upset"}'
        return f"Here you are:\n```json\n{ticket}\n```"
    if "ask Dana" in text:
        return '{"value": ["Your address?", "Your number?"]}' if was_refused(body) else '{"value": "Your address?"}'
    return "Roses are red"


def as_slow_waiter(body: Body) -> ScriptStep:
    """Takes its time, as a model does: others get a word in."""
    return answer(f"{asked(body)} Very well.", delay_s=0.3)


def as_clerk(body: Body) -> ScriptStep:
    roles: list[str] = [message["role"] for message in body["messages"]]
    results = roles[::-1][: roles[::-1].index("user")].count("tool")
    if not results:
        return answer(tool_calls=[("in_stock", {"article": article}) for article in ("lamp", "chair", "sofa")])
    if results == 3:
        return answer(tool_calls=[("reserve", {"article": "lamp"})])
    return "I put a lamp aside."


def as_refunds(body: Body) -> ScriptStep:
    if body["messages"][-1]["role"] == "tool":
        return f"It is {body['messages'][-1]['content']}."
    return answer(tool_calls=[("refund", {"order": "A-17", "cents": 1_250})])


def as_two_models(body: Body) -> ScriptStep:
    if body["model"] != "fake":
        return refuse(503, "overloaded")
    return f"max_tokens {body['max_tokens']}, temperature {body['temperature']}"


def as_waiter(body: Body) -> ScriptStep:
    if body["messages"][-1]["role"] == "tool":
        return f"{body['messages'][0]['content']} Here is {body['messages'][-1]['content']}."
    return answer(tool_calls=[("order", {"article": "tea"})])


def as_support(body: Body) -> ScriptStep:
    if body["messages"][-1]["role"] == "tool":
        return str(body["messages"][-1]["content"])
    return answer(tool_calls=[("order_status", {"order": 88})])


def as_researcher(body: Body) -> ScriptStep:
    roles: list[str] = [message["role"] for message in body["messages"]]
    pages = roles[::-1][: roles[::-1].index("user")].count("tool")
    if asked(body) == "Say hello.":
        return answer("Hello.", usage={"prompt_tokens": 10, "completion_tokens": 5})
    if pages == 3:
        return answer("It hangs behind the stage.", usage={"prompt_tokens": 100, "completion_tokens": 20})
    word = ["callboard", "theatre", "stage"][pages]
    return answer(tool_calls=[("look_up", {"word": word})], usage={"prompt_tokens": 100, "completion_tokens": 20})


def as_courier(body: Body) -> ScriptStep:
    if body["messages"][-1]["role"] == "tool":
        return f"{body['messages'][-1]['content']}."
    return answer(tool_calls=[("find_order", {"order": "A-17"})])


def as_diarist(body: Body) -> ScriptStep:
    """What a model might say to window.py."""
    messages = body["messages"]
    if messages[0]["content"].startswith("You condense"):
        return "Each day three parcels more came than the day before, and three on day 1."
    told = next((message["content"] for message in messages if message["content"].startswith("[Summary")), "")
    return "Three." if "three on day 1" in told else "Noted."


def last_of(body: Body) -> str:
    """What the agent of this request reads last: "a question", "a hand-over", or a tool's result."""
    last = body["messages"][-1]
    if last["role"] != "tool":
        return "a question"
    return "a hand-over" if "is asked to go on" in last["content"] else str(last["content"])


def as_support_team(body: Body) -> ScriptStep:
    agent, last = body["messages"][0]["content"], last_of(body)
    if agent == "Hear what Dana Fox wants.":
        return answer(tool_calls=[("transfer_to_billing", {"message": "invoice 88"})])
    if agent == "Mend bills." and last == "a hand-over":
        return answer(tool_calls=[("find_invoice", {"number": 88})])
    return "Within three days." if last == "a question" else "I send 40 EUR back."


def as_research_team(body: Body) -> ScriptStep:
    agent, last = body["messages"][0]["content"], last_of(body)
    if agent.startswith("Search"):
        tool = "search_notes" if agent == "Search notes." else "search_papers"
        return answer(tool_calls=[(tool, {"word": "callboard"})]) if last == "a question" else f"I have {last}"
    if agent.startswith("Write"):
        return "It hangs behind." if last == "a hand-over" else answer(tool_calls=[("transfer_to_checker", {})])
    if last == "a hand-over":
        return answer(tool_calls=[("count_words", {"text": "It hangs behind the stage."})])
    return answer(tool_calls=[("transfer_to_writer", {"message": f"{last} words: too many"})])


def as_repairs(body: Body) -> ScriptStep:
    results = sum(message["role"] == "tool" for message in body["messages"])
    if results == 2:
        return "Ordered, and the courier comes."
    return answer(tool_calls=[(("order", "book_courier")[results], {"part": 7})])


SCRIPTS: dict[str, Callable[[Body], ScriptStep]] = {
    "approval": as_refunds,
    "budget": as_researcher,
    "crash_and_resume": as_repairs,
    "fallback": as_two_models,
    "otel": as_support,
    "research_team": as_research_team,
    "state": as_waiter,
    "structured_output": as_triage,
    "team_support": as_support_team,
    "tools": as_clerk,
    "tracing": as_courier,
    "turns": as_slow_waiter,
    "window": as_diarist,
}
"""What the server says; to the others it echoes."""

FIRST_LINES: dict[str, list[str]] = {
    "events": [
        "   1  user: I am back, and nobody was reading.",
        "   2  Support is running",
        "      Support types 'echo:'",
        "      Support types ' My'",
        "      Support types ' order'",
        "      Support types ' 88'",
        "      Support types ' has'",
        "      Support types ' not'",
        "      Support types ' arrived.'",
        "   3  user: My order 88 has not arrived.",
        "   4  Support: echo: My order 88 has not arrived.",
        "   5  Support is completed",
    ],
    "approval": ['refund({"order":"A-17","cents":1250}) waits for an approval; run me again'],
    "budget": [
        "stopped: the budget of 2 model calls is spent (2); history has 1 message",
        "It hangs behind the stage. (4 model calls, $0.000720)",
        "Dan has nothing left to spend: 3 calls, $0.000090",
        "research: Researcher failed, the budget of 2 model calls is spent (2)",
    ],
    "crash_and_resume": [
        "ordering part 7",
        "the first process has ended by signal 9",
        "the run was interrupted: the process ended before the run did",
        "booking a courier for part 7",
        "Ordered, and the courier comes.",
    ],
    "editing": [
        "2 messages taken out, 4 left",
        "it began with: Which town should I see in Flanders?",
        "trip, message 1: Which town should I see in Flanders?",
        "trip-by-night, message 1: Which town should I see in Flanders?",
        "1 Which town should I see in Flanders?",
        "2 echo: Which town should I see in Flanders?",
        "3 And by train?  (taken out: too vague)",
        "4 echo: And by train?  (taken out: too vague)",
        "5 And by train from Brussels?  (taken out: pop)",
        "6 echo: And by train from Brussels?  (taken out: pop)",
    ],
    "fallback": [
        "Are you there? max_tokens 200, temperature 0.2",
        "Still? max_tokens 200, temperature 0.2",
        "large-model-of-another-house|fake: completed after 1 attempt",
        "large-model-of-another-house|fake: completed after 1 attempt",
    ],
    "fastapi_app": [
        "echo: My invoice is wrong.",
        "echo: What was wrong?",
        "at the same time: 200 409",
        "latest: user: Question 1 assistant: echo: Question 1",
    ],
    "openai_agents_session": [
        "echo: I live in Lisbon.",
        "echo: Where do I live?",
        "4 items, of which the last is by assistant",
    ],
    "postgres_storage": [
        "echo: What was my issue again?",
        "  4 user: What was my issue again?",
        "  5 Support: echo: What was my issue again?",
    ],
    "quickstart": ["echo: What was my issue again?", "4 messages are stored"],
    "research_team": [
        'Notes found: I have ["A board behind the stage, where the company reads what was posted."]',
        'Papers found: I have ["First attested in the 1880s."]',
        "Writer -> Checker -> Writer (done)",
        "It hangs behind.",
        "8 model calls of 20",
        "  user: What is a callboard?",
        '  Notes: I have ["A board behind the stage, where the company reads what was posted."]',
        '  Papers: I have ["First attested in the 1880s."]',
        "  Writer: Checker is asked to go on.",
        "  Checker: 5",
        "  Checker: Writer is asked to go on.",
        "  Writer: It hangs behind.",
    ],
    "sessions": [
        "Dana's: case-1, case-2",
        "last: Which line?",
        "for a model: 2 messages",
        "case-1: echo: The second one.",
        "case-2: echo: Am I on plan pro?",
        "no session: echo: Ping",
        "deleted: True",
    ],
    "state": [
        "You serve in the garden. Offer lemon tart. Here is one tea for the garden.",
        "session: {'cart': ['tea']}",
        "user: {'usual': 'tea'}",
        "orders in all: 1",
    ],
    "submit": [
        "accepted: running",
        "answered: echo: A report on tides",
        "the same answer: True and 2 messages",
        "refused: the key stands for another request",
    ],
    "structured_output": [
        "Late birthday present: order 88, urgency 4, upset",
        "asked again: Expected `array`, got `str` - at `$.value`",
        "- Your address?",
        "- Your number?",
        "no ticket: it holds no JSON",
        "4 messages, of which none was a wrong answer",
    ],
    "team_support": [
        "> Invoice 88 is wrong.",
        "[Desk] transfer_to_billing: Billing is asked to go on.",
        "[Billing] find_invoice: Invoice 88 of Dana Fox: 40 EUR, paid twice.",
        "I send 40 EUR back.",
        "  by Desk, then Billing",
        "> Thank you. And when will I have the money?",
        "Within three days.",
        "  by Billing",
        "Desk: completed, 1 model calls",
        "Billing: completed, 2 model calls",
        "Billing: completed, 1 model calls",
    ],
    "tools": [
        "in_stock: 3",
        "in_stock: 0",
        "in_stock: failed: Error: in_stock failed: KeyError: 'sofa'",
        "reserve: 1 x lamp put aside for Dana Fox",
        "I put a lamp aside.",
        "put aside: 1 x lamp",
    ],
    "trio_program": [
        "dana: My order 88 is late. -> echo: My order 88 is late.",
        "dana: Which order was it? -> echo: Which order was it?",
        "noor: Hello -> echo: Hello",
    ],
    "tracing": [
        "A-17 is on its way.",
        "  model fake ok",
        "    tool find_order ok",
        "      custom database ok {'rows': 1}",
        "      custom carrier ok",
        "  model fake ok",
        "Nightly report: completed",
        "  custom report ok {'pages': 1}",
        "    custom read history ok {'rows': 4}",
        "answered for the first time",
    ],
    "memory": [
        "remembered: 2",
        "again: 0",
        "found: My scooter's brake squeaks when it rains",
        "echo: Is anything wrong with the brake?",
    ],
    "turns": [
        "'A table for two,' was queued",
        "'by the window.' was queued",
        "'Hello!' was answered in turn 1",
        "'by the window.' was merged",
        "'A table for two,' was answered in turn 2",
        "'by the window.' was answered in turn 2",
        "7 messages before the last one",
        "stopped: a newer input stopped it",
        "No, just the soup.",
    ],
    "window": [
        "shown: 12 of 20 messages, from message 9 on",
        "in 120 tokens: 12 messages, the first of them by the user",
        "Three.",
        "kept: all 22 messages",
    ],
}
"""What they print when they run first, in any order of the lines of tools that run side by side."""


@pytest.fixture
def serve() -> Iterator[Callable[[Script], str]]:
    """Starts a fake server with a script; gives its URL."""
    with contextlib.ExitStack() as stack:
        portal = stack.enter_context(anyio.from_thread.start_blocking_portal())
        yield lambda script: stack.enter_context(portal.wrap_async_context_manager(FakeUpstream(script))).url


def run_twice(program: Path, url: str, folder: Path) -> list[list[str]]:
    """What it prints, line by line."""
    environment = {**os.environ, "OPENAI_BASE_URL": url, "OPENAI_MODEL": "fake"}
    command = [sys.executable, "-W", "error", str(program), "store.lmdb"]
    printed: list[list[str]] = []
    for _ in range(2):
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        printed.append(done.stdout.splitlines())
    return printed


@pytest.mark.parametrize("program", PROGRAMS, ids=[program.stem for program in PROGRAMS])
def test_the_example_runs_twice_on_one_store(
    program: Path, serve: Callable[[Script], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = serve(SCRIPTS.get(program.stem, ()))
    if program.stem == "postgres_storage":
        monkeypatch.setenv("DATABASE_URL", shared_postgres().dsn)

    first, second = run_twice(program, url, tmp_path)

    assert first
    assert second
    if program.stem in FIRST_LINES:
        assert sorted(first) == sorted(FIRST_LINES[program.stem])


def test_a_reader_of_events_goes_on_where_it_was_in_another_process(
    serve: Callable[[Script], str], tmp_path: Path
) -> None:
    _, second = run_twice(EXAMPLES / "events.py", serve(()), tmp_path)

    lasting = [line.split()[0] for line in second if not line.startswith("     ")]
    assert lasting == ["6", "7", "8", "9", "10"]


def test_an_observed_example_shows_its_spans_logs_and_metrics(serve: Callable[[Script], str], tmp_path: Path) -> None:
    first, _ = run_twice(EXAMPLES / "otel.py", serve(as_support), tmp_path)

    spans = [line.split(",")[0] for line in first if line.startswith("span")]
    assert spans == [
        "span chat fake",
        "span execute_tool order_status",
        "span chat fake",
        "span invoke_agent Support",
        "span GET /chat",
    ]
    logged = [json.loads(line) for line in first if line.startswith("{")]
    assert {"looked up an order", "run started", "run completed", "tool called"} <= {line["message"] for line in logged}
    assert {line["session_id"] for line in logged if line["logger"] in ("shop", "callboard.run")} == {"case-4711"}
    assert "gen_ai.client.token.usage" in first[-1]


def test_the_sessions_of_an_example_outlive_it(serve: Callable[[Script], str], tmp_path: Path) -> None:
    first, second = run_twice(EXAMPLES / "shared_session.py", serve(()), tmp_path)

    assert len(second) > len(first)


def test_the_state_of_an_example_is_there_in_another_process(serve: Callable[[Script], str], tmp_path: Path) -> None:
    _, second = run_twice(EXAMPLES / "state.py", serve(as_waiter), tmp_path)

    assert second[1:] == [
        "session: {'cart': ['tea', 'tea']}",
        "user: {'usual': 'tea'}",
        "orders in all: 2",
    ]


def test_the_approval_of_an_example_comes_in_another_process(serve: Callable[[Script], str], tmp_path: Path) -> None:
    _, second = run_twice(EXAMPLES / "approval.py", serve(as_refunds), tmp_path)

    assert second[0].startswith("paying 1250 cents for A-17")
    assert second[1] == "It is paid."
    assert len(second) == 6
