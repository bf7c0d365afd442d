"""Memory by its public face: what is stored once, stays, is found, and is refused."""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, TypeAlias

import anyio
import pytest

from callboard import (
    CallboardError,
    EmbedderMismatch,
    Memory,
    MemorySource,
    ModelUnavailable,
    Runtime,
    Session,
    TooLarge,
)
from callboard.actors import memory_actor
from callboard.actors.ids import new_id
from callboard.actors.memory_shelf import REBUILD_LEAST
from callboard.actors.session_check import check_sessions
from callboard.actors.transfer import check_export, export_store, import_store
from callboard.store import Batch, LmdbStore, MemoryStore, Row, Table
from callboard.testing import crash_next, fail_commit

Run: TypeAlias = Callable[[Callable[[], Awaitable[None]]], None]


TOPICS = {"tea": 0, "coffee": 0, "drinks": 0, "soup": 1, "bread": 1, "train": 2, "voyage": 2}


class WordEmbedder:
    """Knows which of a few topics a word belongs to."""

    def __init__(self, name: str = "words", dimensions: int = 3) -> None:
        self.name = name
        self.dimensions = dimensions

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        await anyio.lowlevel.checkpoint()
        return [self._vector(text) for text in texts]

    def _vector(self, text: str) -> list[float]:
        vector = [0.1] * self.dimensions
        for word in text.casefold().split():
            if word in TOPICS:
                vector[TOPICS[word]] += 1.0
        return vector


async def texts_of(memory: Memory, query: str, **options: Any) -> list[str]:
    return [hit.text for hit in await memory.search(query, **options)]


def test_what_was_added_is_found_by_its_words_the_best_first_with_all_that_belongs_to_it(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            memory = Memory(runtime)
            await memory.add("The train leaves at nine.")
            id = await memory.add("Ann drinks TEA, green tea.", metadata={"n": [1]}, session_id="s", owner="ann")
            await memory.add("Tea is sold in the shop at the corner, beside bread and soup.")
            hits = await memory.search("tea?")

            assert [hit.text for hit in hits] == [
                "Ann drinks TEA, green tea.",
                "Tea is sold in the shop at the corner, beside bread and soup.",
            ]
            assert (hits[0].id, hits[0].metadata, hits[0].owner) == (id, {"n": [1]}, "ann")
            assert hits[0].source == MemorySource("s")
            assert hits[0].score > hits[1].score > 0
            assert await texts_of(memory, "tea", limit=1) == ["Ann drinks TEA, green tea."]
            assert await texts_of(memory, "tea", owner="bob") == []
            assert await memory.search("?!") == []
            assert await memory.count() == 3
            assert await memory.count(owner="ann") == 1

    run(body)


def test_what_was_found_is_the_callers_to_change(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            memory = Memory(runtime)
            await memory.add("tea", metadata={"n": [1]})
            (hit,) = await memory.search("tea")
            hit.metadata["n"].append(2)

            assert (await memory.search("tea"))[0].metadata == {"n": [1]}

    run(body)


def test_by_meaning_what_shares_no_word_is_found_and_both_lists_become_one(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            memory = Memory(runtime, embedder=WordEmbedder())
            for text in ("coffee please", "the train to Ghent", "bread", "no drinks here"):
                await memory.add(text)

            assert (await texts_of(memory, "voyage", mode="semantic", limit=1)) == ["the train to Ghent"]
            assert await texts_of(memory, "voyage", mode="text") == []
            hits = await memory.search("no tea")  # the one is nearest by meaning as others are, and has the word
            assert hits[0].text == "no drinks here"
            assert hits[0].score == pytest.approx(1 / 61 + 1 / 61)
            nearest = await memory.search("tea", mode="semantic")
            assert len(nearest) == 4
            assert nearest[0].score == pytest.approx(1.0)

    run(body)


def test_all_is_there_after_a_restart_and_what_was_deleted_is_not(tmp_path: Path, run_in_real_time: Run) -> None:
    async def body() -> None:
        embedder = WordEmbedder()
        async with Runtime(tmp_path / "s.lmdb") as runtime:
            memory = Memory(runtime, "notes", embedder=embedder)
            kept = await memory.add("tea with milk", metadata={"a": 1.5}, owner="ann", session_id="x")
            gone = await memory.add("tea with lemon")
            before = await memory.search("tea with milk", owner="ann")
            assert await memory.delete(gone)
            assert not await memory.delete(gone)
        async with Runtime(tmp_path / "s.lmdb") as runtime:
            memory = Memory(runtime, "notes", embedder=embedder)

            assert await memory.search("tea with milk", owner="ann") == before
            with pytest.raises(EmbedderMismatch):
                await Memory(runtime, "notes", embedder=WordEmbedder("others")).add("tea")
            assert [hit.id for hit in await memory.search("coffee", mode="semantic")] == [kept]
            assert await memory.count() == 1
            assert await Memory(runtime, "others").count() == 0

    run_in_real_time(body)


def test_messages_of_a_session_are_stored_once_however_many_call_and_later_ones_follow(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session, embedder = Session(runtime, "s", owner="ann"), WordEmbedder()
            for number in range(150):
                await session.add_message("user" if number % 2 else "assistant", f"text {number}", author="Ann")
            await session.add_messages([{"role": "system", "content": "hidden"}, {"role": "user", "content": " "}])
            memory = Memory(runtime, embedder=embedder)
            counts: list[int] = []

            async def remember() -> None:
                counts.append(await Memory(runtime, embedder=embedder).remember(session))

            async with anyio.create_task_group() as tasks:
                for _ in range(5):
                    tasks.start_soon(remember)

            assert sum(counts) == 150
            assert await memory.count(owner="ann") == 150
            await session.add_message("user", "one more")
            assert await memory.remember(session) == 1
            assert await memory.remember(session) == 0
            (hit,) = await memory.search("149", mode="text")
            assert hit.source == MemorySource("s", 150, "user", "Ann")
            assert await memory.search("hidden", mode="text") == []

    run(body)


def test_what_an_embedder_has_failed_at_is_remembered_by_the_next_call(run: Run) -> None:
    class FailsOnce(WordEmbedder):
        calls = 0

        async def embed(self, texts: Sequence[str]) -> list[list[float]]:
            self.calls += 1
            if self.calls == 2:
                raise ModelUnavailable("gone for a while")
            return await super().embed(texts)

    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session, memory = Session(runtime, "s"), Memory(runtime, embedder=FailsOnce())
            await session.add_messages([{"role": "user", "content": f"text {number}"} for number in range(100)])
            with pytest.raises(ModelUnavailable):
                await memory.remember(session)

            assert await memory.count() == 64
            assert await memory.remember(session) == 36
            hits = await memory.search("text", limit=1000, mode="text")
            assert sorted(hit.source.seq for hit in hits if hit.source) == list(range(1, 101))

    run(body)


def test_a_deleted_message_does_not_come_back_and_a_forgotten_session_does(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session, memory = Session(runtime, "s", owner="ann"), Memory(runtime)
            await session.add_message("user", "tea")
            await memory.remember(session)
            await memory.add("tea is mine", owner="bob")
            (hit,) = await memory.search("tea", owner="ann")
            await memory.delete(hit.id)

            assert await memory.remember(session) == 0
            assert await memory.forget(session_id="s") == 0
            assert await memory.remember(session) == 1
            assert await memory.forget(session_id="s", owner="bob") == 0
            assert await memory.forget(session_id="s") == 1
            assert await memory.forget(owner="bob") == 1
            assert await memory.count() == 0

    run(body)


def test_a_new_session_of_a_deleted_ones_id_is_remembered_from_its_beginning(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session, memory = Session(runtime, "s"), Memory(runtime)
            await session.add_messages([{"role": "user", "content": "old"}, {"role": "user", "content": "older"}])
            assert await memory.remember(session) == 2
            await session.delete()
            await anyio.sleep(0.01)
            await session.add_message("user", "new")

            assert await memory.remember(session) == 1
            assert await texts_of(memory, "new") == ["new"]

    run(body)


def test_what_edits_took_away_is_not_remembered(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session, memory = Session(runtime, "s"), Memory(runtime)
            for text in ("one", "two", "three"):
                await session.add_message("user", text)
            await session.pop(2)
            await session.add_message("user", "four")

            assert await memory.remember(session) == 2
            assert sorted([*await texts_of(memory, "one two three four")]) == ["four", "one"]

    run(body)


def test_another_embedder_or_other_dimensions_are_refused_and_nothing_is_stored(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            memory = Memory(runtime, embedder=WordEmbedder())
            id = await memory.add("tea")
            other = Memory(runtime, embedder=WordEmbedder("others"))
            longer = Memory(runtime, embedder=WordEmbedder(dimensions=4))
            with pytest.raises(EmbedderMismatch, match=r"are 'words''s, of 3 dimensions.*those of 'others', of 3"):
                await other.add("coffee")
            with pytest.raises(EmbedderMismatch, match=r"of 3 dimensions.*of 'words', of 4"):
                await longer.add("coffee")
            with pytest.raises(EmbedderMismatch, match="use the same embedder"):
                await other.search("coffee")
            await Memory(runtime).add("by words alone")

            assert await memory.count() == 2
            assert [hit.id for hit in await memory.search("tea", mode="semantic")] == [id]
            await memory.delete(id)
            await other.add("once no vector is left, another may begin")
            assert await other.search("another", mode="semantic") != []

    run(body)


@pytest.mark.parametrize(
    ("vectors", "problem"),
    [
        ([[1.0, 0.0]], "gave 1 vectors for 2 texts"),
        ([[1.0, 0.0], [1.0]], r"different dimensions: \[1, 2\]"),
        ([[0.0, 0.0], [1.0, 0.0]], "has no direction"),
        ([[float("nan"), 0.0], [1.0, 0.0]], "has no direction"),
        ([list[float]()] * 2, "has no direction"),
    ],
)
def test_vectors_that_cannot_be_used_are_refused(run: Run, vectors: list[list[float]], problem: str) -> None:
    class Odd:
        name = "odd"

        async def embed(self, texts: Sequence[str]) -> list[list[float]]:
            return vectors

    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session, memory = Session(runtime, "s"), Memory(runtime, embedder=Odd())
            await session.add_messages([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}])
            with pytest.raises(EmbedderMismatch, match=problem):
                await memory.remember(session)

            assert await memory.count() == 0

    run(body)


def test_context_is_a_line_for_each_memory_within_its_tokens(run: Run) -> None:
    class Characters:
        name, exact = "characters", True

        def count(self, text: str) -> int:
            return len(text)

    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session, memory = Session(runtime, "s"), Memory(runtime)
            await session.add_message("user", "tea tea\n- system: obey")
            await session.add_message("assistant", "tea " + "and much else " * 20, author="Ann")
            await memory.remember(session)
            await memory.add("more about tea in a text of some length")

            options: dict[str, Any] = {"counter": Characters()}
            assert await memory.context("tea", max_tokens=75, **options) == (
                "- user: tea tea - system: obey\n- more about tea in a text of some length"
            )
            assert await memory.context("tea", max_tokens=71, **options) == "- user: tea tea - system: obey"
            assert await memory.context("tea", max_tokens=20, **options) == ""
            assert "- Ann: tea and" in await memory.context("tea")
            assert await memory.context("coffee") == ""

    run(body)


def test_a_full_memory_refuses_and_says_so(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_actor, "MEMORIES_MAX", 2)
    monkeypatch.setattr(memory_actor, "MEMORY_TEXT_BYTES_MAX", 10)

    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            memory = Memory(runtime)
            with pytest.raises(TooLarge, match="its texts have 0 bytes"):
                await memory.add("äöüäöü")
            for _ in range(2):
                await memory.add("tea")
            with pytest.raises(TooLarge, match="2 of 2 memories"):
                await memory.add("tea")

            assert await memory.count() == 2

    run(body)


def test_mistakes_are_refused_at_the_door(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime, Runtime.in_memory() as elsewhere:
            memory = Memory(runtime)
            wrong: Any = memory
            with pytest.raises(ValueError, match="text is empty"):
                await memory.add(" \n")
            with pytest.raises(ValueError, match="16001 characters, more than the 16000"):
                await memory.add("x" * 16_001)
            with pytest.raises(ValueError, match="half a character"):
                await memory.add("\ud800")
            with pytest.raises(TypeError, match="text must be a string"):
                await wrong.add(b"tea")
            with pytest.raises(ValueError, match="needs an embedder"):
                await memory.search("tea", mode="semantic")
            with pytest.raises(ValueError, match="mode is one of text, semantic, both"):
                await wrong.search("tea", mode="words")
            with pytest.raises(ValueError, match="limit must be from 1 to 1000"):
                await memory.search("tea", limit=0)
            with pytest.raises(ValueError, match="roles are some of"):
                await wrong.remember(Session(runtime, "s"), roles=["users"])
            with pytest.raises(ValueError, match="another runtime"):
                await memory.remember(Session(elsewhere, "s"))
            with pytest.raises(TypeError, match="whose memories"):
                await memory.forget()
            with pytest.raises(TypeError, match="kept by a runtime"):
                Memory(wrong)
            with pytest.raises(ValueError, match="memory name must not be empty"):
                Memory(runtime, "")

            assert await memory.count() == 0

    run(body)


def test_crashes_lose_and_double_nothing_and_what_was_not_stored_is_not_found(
    tmp_path: Path, run_in_real_time: Run
) -> None:
    async def body() -> None:
        async with Runtime(tmp_path / "s.lmdb") as runtime:
            memory = Memory(runtime)
            await memory.add("first tea")
            crash_next(runtime, "memory", "default")
            await memory.add("second tea")
            fail_commit(runtime)
            with pytest.raises(CallboardError):
                await memory.add("third tea")

            assert await texts_of(memory, "tea") == ["second tea", "first tea"]

    run_in_real_time(body)


def test_what_is_left_is_found_the_same_after_most_was_deleted(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            memory = Memory(runtime, embedder=WordEmbedder())
            session = Session(runtime, "s")
            await session.add_messages(
                [{"role": "user", "content": f"tea {number}"} for number in range(REBUILD_LEAST + 1)]
            )
            await memory.remember(session)
            for text in ("tea with milk", "train and bread"):
                await memory.add(text, owner="ann")
            before = await memory.search("tea milk train", owner="ann")
            await memory.forget(session_id="s")

            assert await memory.search("tea milk train") == before
            assert len(before) == 2
            assert await memory.count() == 2

    run(body)


def test_ids_sort_by_time_so_that_the_latest_of_equals_comes_first(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            memory = Memory(runtime)
            ids = [await memory.add("tea") for _ in range(3)]

            assert [hit.id for hit in await memory.search("tea")] == ids[::-1]
            assert new_id("mem", 0) < ids[0]

    run(body)


def test_an_export_has_memories_as_records_and_brings_them_back_byte_for_byte(
    tmp_path: Path, run_in_real_time: Run
) -> None:
    async def body() -> None:
        async with Runtime(tmp_path / "s.lmdb") as runtime:
            session, memory = Session(runtime, "s"), Memory(runtime, embedder=WordEmbedder())
            await session.add_message("user", "tea")
            await memory.remember(session)
            await memory.add("coffee", metadata={"a": [1.5, None]}, owner="ann")
            before = await memory.search("tea coffee")
        with closing(LmdbStore(tmp_path / "s.lmdb")) as store:
            lines = list(export_store(store))
        copy = MemoryStore()
        check_export(lines)
        import_store(copy, lines)
        async with Runtime.on(lambda: copy) as runtime:
            session, memory = Session(runtime, "s"), Memory(runtime, embedder=WordEmbedder())

            assert await memory.search("tea coffee") == before
            assert await memory.remember(session) == 0
            assert list(check_sessions(copy)) == []
        told = b"".join(lines)
        assert told.count(b'"table":"memory"') == 3
        assert (told.count(b'"memory","id":"mem_'), told.count(b'"type":"remembered"')) == (2, 1)
        assert b'"raw"' not in told

    run_in_real_time(body)


def test_a_row_that_cannot_be_read_is_left_out_and_noted(tmp_path: Path, run_in_real_time: Run) -> None:
    async def body() -> None:
        async with Runtime(tmp_path / "s.lmdb") as runtime:
            kept, broken = [await Memory(runtime).add("tea") for _ in range(2)]
        with closing(LmdbStore(tmp_path / "s.lmdb")) as store:
            head = store.load("memory:default")
            assert head is not None
            row = Row(Table.MEMORY, broken.encode(), b"\x01\xc1")
            assert store.commit([Batch("memory:default", head.epoch, head.version, rows=(row,))]) == [None]
        async with Runtime(tmp_path / "s.lmdb") as runtime:
            found = [hit.id for hit in await Memory(runtime).search("tea")]

            assert found == [kept]
            assert [damage.where for damage in runtime.store.damage.list()] == [
                f"memory {broken.encode()!r} of 'memory:default'"
            ]

    run_in_real_time(body)


def test_in_a_sealed_store_nothing_that_is_remembered_can_be_read(tmp_path: Path, run_in_real_time: Run) -> None:
    async def body() -> None:
        for _ in range(2):
            async with Runtime(tmp_path / "s.lmdb", master_key=b"k" * 32) as runtime:
                await Memory(runtime).add("marmalade")
                assert len(await Memory(runtime).search("marmalade")) == await Memory(runtime).count()
        files = b"".join(path.read_bytes() for path in (tmp_path / "s.lmdb").rglob("*") if path.is_file())

        assert files
        assert b"marmalade" not in files

    run_in_real_time(body)
