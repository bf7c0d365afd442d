"""A process that edits sessions is killed: each edit that was acknowledged is there, and none is half there."""

import random
import subprocess
import sys
from pathlib import Path

import pytest

from callboard import Message, Runtime, Session
from callboard.actors.archive import Archive
from callboard.actors.session_check import check_sessions
from callboard.store import LmdbStore

CHILD = """
import sys
import trio
sys.path.insert(0, sys.argv[1])
from test_edit_kill import edit
trio.run(edit, sys.argv[2], int(sys.argv[3]))
"""

OPS = 4_000
"""More than the child comes to before it is killed."""


def ops_of(seed: int) -> list[tuple[str, int]]:
    """What the child does, known to both."""
    chance = random.Random(seed)
    kinds = chance.choices(["append", "pop", "rewind", "fork"], weights=[6, 3, 1, 1], k=OPS)
    return [(kind, chance.randint(1, 3)) for kind in kinds]


def after(ops: list[tuple[str, int]]) -> tuple[list[int], int, int]:
    """The places that are visible after these, how many were given, and how many forks there are."""
    visible: list[int] = []
    said = forks = 0
    for kind, number in ops:
        if kind == "append":
            visible += range(said + 1, said + number + 1)
            said += number
        elif kind == "pop":
            visible = visible[:-number]
        elif kind == "rewind":
            visible = [place for place in visible if place <= said - 3 * number]
        elif visible:
            forks += 1
    return visible, said, forks


async def edit(path: str, seed: int) -> None:
    """The child: says a number for each thing that it has done."""
    async with Runtime(path) as runtime:
        session = Session(runtime, "s")
        said = forks = 0
        for done, (kind, number) in enumerate(ops_of(seed), 1):
            if kind == "append":
                await session.add_messages([Message(role="user", content="x" * 50) for _ in range(number)])
                said += number
            elif kind == "pop":
                await session.pop(number)
            elif kind == "rewind":
                await session.rewind(max(0, said - 3 * number))
            elif await session.messages(limit=1):
                forks += 1
                await session.fork(f"fork-{forks}")
            print(done, flush=True)


def killed_after(path: Path, seed: int, lines: int) -> int:
    """Run the child, kill it when it has done so many things; how many it has acknowledged."""
    command = [sys.executable, "-c", CHILD, str(Path(__file__).parent), str(path), str(seed)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        acknowledged = 0
        for line in child.stdout:
            acknowledged = int(line)
            if acknowledged == lines:
                child.kill()
    assert acknowledged >= lines, "the child ended by itself"
    return acknowledged


@pytest.mark.parametrize(("seed", "lines"), [(1, 7), (2, 150)])
def test_acknowledged_edits_and_forks_survive_a_kill(tmp_path: Path, seed: int, lines: int) -> None:
    acknowledged = killed_after(tmp_path, seed, lines)

    store = LmdbStore(tmp_path)
    try:
        archive, ops = Archive(store), ops_of(seed)
        assert list(check_sessions(store)) == []
        head = archive.head("s")
        found = (
            [message.seq for message in archive.messages("s")],
            head.last_seq if head is not None else 0,
            len(store.streams()) - 1,
        )
        assert found in (after(ops[:acknowledged]), after(ops[: acknowledged + 1]))  # the last one may not be answered
        assert [message.seq for message in archive.audit("s").messages] == list(range(1, found[1] + 1))
        for stream in store.streams():
            fork = archive.messages(stream.removeprefix("session:"))
            assert stream == "session:s" or [message.seq for message in fork] == list(range(1, len(fork) + 1)) != []
    finally:
        store.close()
