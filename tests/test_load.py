"""benchmarks/load.py as a user would run it, for a moment; and what it must find is found: each planted by itself."""

import subprocess
import sys
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from callboard import Agent, Message, ModelAnswer, ModelRequest, Runtime, Session, ToolCall
from callboard.actors.archive import Archive
from callboard.testing import ScriptedModel, model_answer

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
if not BENCHMARKS.is_dir():
    pytest.skip("the tests run without the repository around them", allow_module_level=True)

from load_figures import Latencies, Sample, Series, judge_memory  # noqa: E402 - a module of a folder that may be absent
from load_ledger import Ledger  # noqa: E402
from load_plan import AckLine, ErrorLine, Plan, answer_to, conversation, question, session_name, turn_of  # noqa: E402
from load_plot import plot  # noqa: E402

PLAN = Plan(sessions=2, turns=4, agents=1)

# The ledger: what it must find ----------------------------------------------------------------------------------------


def say(request: ModelRequest) -> ModelAnswer:
    """The model's part in what `load_plan` says."""
    last = next(place for place in reversed(range(len(request.messages))) if request.messages[place].role == "user")
    asked = turn_of(request.messages[last].text)
    assert asked is not None
    said = [each for each in conversation(*asked) if each[0] == "assistant"]
    _, text, _, calls = said[sum(message.role == "assistant" for message in request.messages[last:])]
    return model_answer(text, tool_calls=[ToolCall(id, "lookup", arguments) for id, arguments in calls])


async def lookup(topic: str) -> str:
    await anyio.lowlevel.checkpoint()
    return f"facts on {topic}"


@asynccontextmanager
async def open_agent(store: Path) -> AsyncGenerator[tuple[Agent, Session]]:
    async with Runtime(store, durability="async") as runtime:
        yield (
            Agent("Clerk 0", model=ScriptedModel(say), runtime=runtime, tools=[lookup]),
            Session(runtime, session_name(1)),
        )


async def talk(store: Path, turns: list[int]) -> list[AckLine]:
    """These turns of session 1, in this order; their acknowledgements."""
    async with open_agent(store) as (agent, session):
        runs = [(turn, (await agent.chat(question(1, turn), session=session)).run_id) for turn in turns]
    return [AckLine(1, turn, run_id, 1.0) for turn, run_id in runs]


def checked(store: Path, lines: list[AckLine | ErrorLine], *, ledger: Ledger | None = None) -> dict[str, int]:
    """What the ledger finds at fault."""
    ledger = ledger or Ledger(PLAN)
    for line in lines:
        ledger.note(line)
    with Archive.open(store) as archive:
        ledger.check(archive)
        ledger.recount(archive, closed=True)
    return {str(kind): count for kind, count in ledger.faults.items()}


async def test_a_store_with_all_that_was_acknowledged_is_at_fault_in_nothing(tmp_path: Path) -> None:
    ledger = Ledger(PLAN)

    first = checked(tmp_path, [*await talk(tmp_path, [1, 2])], ledger=ledger)
    second = checked(tmp_path, [*await talk(tmp_path, [3, 4])], ledger=ledger)

    assert first == second == {}
    assert (ledger.acknowledged, ledger.turns, ledger.sessions) == (4, 4, 1)


async def test_an_acknowledged_turn_that_is_not_there_is_lost(tmp_path: Path) -> None:
    lines = await talk(tmp_path, [1, 3])

    assert checked(tmp_path, [*lines, AckLine(1, 2, "run-x", 1.0)]) == {"lost": 1}
    assert checked(tmp_path, [*lines, AckLine(1, 4, "run-x", 1.0)]) == {"lost": 1}
    assert checked(tmp_path, [*lines, AckLine(0, 1, "run-x", 1.0)]) == {"lost": 1}


async def test_a_turn_that_was_there_once_and_is_gone_is_lost(tmp_path: Path) -> None:
    ledger = Ledger(PLAN)
    assert checked(tmp_path / "a", [*await talk(tmp_path / "a", [1, 2, 3])], ledger=ledger) == {}

    shorter = await talk(tmp_path / "b", [1, 2])

    assert shorter
    assert checked(tmp_path / "b", [], ledger=ledger)["lost"] > 0


async def test_a_turn_that_is_there_twice_is_doubled_and_one_behind_a_later_one_reordered(tmp_path: Path) -> None:
    doubled = checked(tmp_path / "a", [*await talk(tmp_path / "a", [1, 2, 2])])
    reordered = checked(tmp_path / "b", [*await talk(tmp_path / "b", [1, 3, 2])])

    assert doubled["doubled"] > 0
    assert reordered["reordered"] > 0


async def test_a_turn_whose_caller_was_told_that_it_failed_is_a_ghost(tmp_path: Path) -> None:
    first, _ = await talk(tmp_path, [1, 2])

    assert checked(tmp_path, [first, ErrorLine("failed", 1, 2, "RunFailed")]) == {"ghost": 1}
    assert checked(tmp_path, [first, ErrorLine("unknown", 1, 2, "Unknown")]) == {}


async def test_a_caller_who_got_no_answer_or_a_wrong_one_is_told_of(tmp_path: Path) -> None:
    lines = await talk(tmp_path, [1])

    assert checked(tmp_path, [*lines, ErrorLine("hung", 1, 2, "no answer")]) == {"hung": 1}
    assert checked(tmp_path, [*lines, ErrorLine("wrong", 1, 2, "Roses are red")]) == {"wrong": 1}


def cut_answer(messages: list[Message]) -> list[Message]:
    return messages[:-1]


def cut_tool_messages(messages: list[Message]) -> list[Message]:
    return [message for message in messages if message.role == "user" or (message.content and message.role != "tool")]


def swap(messages: list[Message]) -> list[Message]:
    return [messages[0], *reversed(messages[1:])]


@pytest.mark.parametrize("spoil", [cut_answer, cut_tool_messages, swap, list])
async def test_a_turn_that_is_not_whole_or_has_no_completed_run_is_half(
    tmp_path: Path, spoil: Callable[[list[Message]], list[Message]]
) -> None:
    lines = await talk(tmp_path / "a", [4])
    with Archive.open(tmp_path / "a") as archive:
        messages = archive.messages(session_name(1))
    async with open_agent(tmp_path / "b") as (_, session):
        await session.add_messages(spoil(messages))

    assert checked(tmp_path / "a", [*lines]) == {}
    assert checked(tmp_path / "b", [*lines])["half"] > 0


async def test_a_turn_by_another_run_than_was_acknowledged_is_half(tmp_path: Path) -> None:
    (line,) = await talk(tmp_path, [1])

    assert checked(tmp_path, [msgspec.structs.replace(line, run_id="run-x")]) == {"half": 1}


# The figures ----------------------------------------------------------------------------------------------------------


def samples(megabytes: Iterator[float]) -> list[Sample]:
    return [Sample(float(age), int(value * 2**20), 0) for age, value in enumerate(megabytes)]


def test_memory_that_rises_once_it_is_warm_grows_and_that_which_rises_before_does_not() -> None:
    warming = judge_memory(samples(min(age, 60.0) + age % 7 for age in range(300)), warm_s=60)
    leaking = judge_memory(samples(100 + age / 10 + age % 7 for age in range(300)), warm_s=60)
    short = judge_memory(samples(100.0 + age for age in range(100)), warm_s=60)

    assert not warming.grows
    assert warming.judged_s > 200
    assert leaking.grows
    assert leaking.slope_mb_per_h == pytest.approx(360, rel=0.05)
    assert (short.judged_s, short.grows) == (0.0, False)


def test_percentiles_are_right_within_a_hundredth() -> None:
    latencies = Latencies()
    for took_ms in range(1, 10_001):
        latencies.add(took_ms / 10)

    record = latencies.as_record()

    assert record["p50"] == pytest.approx(500, rel=0.011)
    assert record["p99.9"] == pytest.approx(999, rel=0.011)
    assert record["max"] == 1000


def test_a_long_run_is_kept_in_a_bounded_number_of_moments() -> None:
    series = Series()

    for second in range(10_000):
        series.at(second).latencies.add(1.0)

    moments = list(series)
    assert len(moments) <= 1_200
    assert sum(moment.latencies.count for _, moment in moments) == 10_000
    assert "<svg" in plot(series, title="a < b")


# The whole ------------------------------------------------------------------------------------------------------------


def test_a_moment_of_load_with_kills_and_faults_on_both_backends_passes(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "load.py"), "--backend", "both", "--faults", "--prefill", "30"]
    sizes = ["--minutes", "0.05", "--calm-minutes", "0.02", "--kills-every-s", "1", "--store-faults-every-s", "0.5"]
    users = ["--sessions", "20", "--think-s", "0.2", "--server-s", "0.005", "--plot", str(tmp_path / "plot.svg")]

    done = subprocess.run([*command, *sizes, *users], capture_output=True, text=True, timeout=300)

    assert done.returncode == 0, done.stderr
    record: dict[str, Any] = msgspec.json.decode(done.stdout)
    assert record["problems"] == []
    assert record["acknowledged"] > 20
    assert record["kills"] >= 1
    assert (tmp_path / "plot.svg").read_text().endswith("</svg>\n")
    assert answer_to(1, 1) != answer_to(1, 2)
