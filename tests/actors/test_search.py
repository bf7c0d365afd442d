"""Words are found whatever their case and form; what edits removed is not; cursors give each hit once."""

import unicodedata
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeAlias, cast

import anyio
import pytest
from hypothesis import given, settings, strategies as st

from callboard import Message, Runtime, SearchPage, Session, SessionManager
from callboard.actors.message import Part
from callboard.actors.search import EXCERPT_CHARACTERS, Wanted, excerpt_of, folded
from callboard.actors.session_records import stream_of
from callboard.store import Batch, LmdbStore, MemoryStore

ODD: Any = 3
"""What a careless caller gives."""

Run: TypeAlias = Callable[[Callable[[], Awaitable[None]]], None]

TEXTS = st.text(st.sampled_from("abAB ßẞſIİıéÉe\u0301ﬁ①２ｱﾞｶ가\u1100\u1161\u11a8中文…,\n"), max_size=40)


def found(words: str, text: str) -> bool:
    return Wanted.of(words).matches(Message(role="user", content=text))


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("BILLING", "about billing"),
        ("issue billing", "a Billing issue"),
        ("bill", "billing"),
        ("straße", "STRASSE 5"),
        ("STRASSE", "Straße 5"),
        ("café", "CAFE\u0301"),
        ("office", "oﬃce"),
        ("12", "①② or １２"),
        ("カガ", "ｶｶﾞ"),
        ("各", "\u1100\u1161\u11a8 各"),
        ("\u1100\u1161\u11a8", "각"),
        ("文本", "这是中文文本"),
        ("мир", "МИР"),
        ("τέλος", "ΤΈΛΟΣ"),
    ],
)
def test_words_are_found_whatever_their_case_and_form(words: str, text: str) -> None:
    assert found(words, text)
    assert not found(f"{words} nowhere", text)


@given(TEXTS, TEXTS)
def test_case_and_form_of_words_and_text_make_no_difference(words: str, text: str) -> None:
    if not folded(words).split():
        return
    expected = found(words, text)

    assert found(words, unicodedata.normalize("NFD", text)) == expected
    assert found(unicodedata.normalize("NFKD", words), text) == expected
    assert folded(folded(text)) == folded(text)


@given(st.text(st.sampled_from("ab ß中éﬁ"), max_size=400), st.text(st.sampled_from("ab ß中éﬁ"), max_size=400))
def test_an_excerpt_is_short_and_shows_a_word_that_was_found(before: str, behind: str) -> None:
    text = f"{before}needle{behind}"
    excerpt = excerpt_of(text, "needle")

    assert "needle" in excerpt
    assert len(excerpt) <= EXCERPT_CHARACTERS + 2
    assert excerpt.strip("…") in " ".join(text.split())
    assert excerpt.startswith("…") == (len(before) > EXCERPT_CHARACTERS // 3)


def test_an_excerpt_of_a_text_whose_folding_is_of_another_length_shows_the_word() -> None:
    assert "Nadel" in excerpt_of("ﬃ" * 300 + " Nadel", "nadel")
    assert "Nadel" in excerpt_of("e\u0301\u0323" * 300 + " Nadel", "nadel")
    assert "Nadel" in excerpt_of("각" * 300 + " Nadel", "nadel")
    assert "Nadel" in excerpt_of("\u1100\u1161\u11a8ｶﾞ" * 100 + " Nadel", "nadel")


def seqs_of(page: SearchPage) -> list[int]:
    return [hit.message.seq for hit in page.hits]


def test_a_session_is_searched_by_words_role_and_author_the_latest_first(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            parts: list[Part] = [{"type": "text", "text": "in a part: billing"}]
            await session.add_message("user", "My Billing issue", author="ann")
            await session.add_message("assistant", "What about billing?", author="Agent")
            await session.add_message("user", "nothing")
            await session.add_message("user", parts)

            page = await session.search("billing")
            assert (seqs_of(page), page.cursor) == ([4, 2, 1], None)
            assert [hit.session_id for hit in page.hits] == ["s"] * 3
            assert page.hits[2].excerpt == "My Billing issue"
            assert seqs_of(await session.search("issue BILLING my")) == [1]
            assert seqs_of(await session.search("billing", role="assistant")) == [2]
            assert seqs_of(await session.search("billing", author="ann")) == [1]
            assert seqs_of(await session.search("billing", role="tool")) == []
            assert seqs_of(await Session(runtime, "nobody").search("billing")) == []

    run(body)


def test_what_edits_removed_is_not_found(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            await session.add_messages([Message(role="user", content=f"word {n}") for n in range(5)])
            await session.pop(2)
            await session.add_message("user", "the last word")

            assert seqs_of(await session.search("word")) == [6, 3, 2, 1]
            await session.clear()
            assert seqs_of(await session.search("word")) == []
            assert (await SessionManager(runtime).search("word")).hits == []

    run(body)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.booleans(), max_size=150), st.integers(1, 20), st.sets(st.integers(1, 150), max_size=3))
def test_pages_of_hits_are_all_hits_once_while_others_append(has: list[bool], limit: int, cuts: set[int]) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session = Session(runtime, "s")
            expected: list[int] = []
            for number, wanted in enumerate(has, 1):
                await session.add_message("user", "a word" if wanted else "nothing")
                expected += [number] * wanted
                if number in cuts and len(expected) > 1:
                    await session.pop()
                    expected = [seq for seq in expected if seq != number]
            page = await session.search("word", limit=limit)
            hits = seqs_of(page)
            while page.cursor is not None:
                assert len(page.hits) == limit
                await session.add_message("user", "one more word")
                page = await session.search("word", limit=limit, cursor=page.cursor)
                hits += seqs_of(page)

            assert hits == expected[::-1]

    anyio.run(body, backend="trio")


async def make_sessions(runtime: Runtime) -> None:
    for number in range(6):
        session = Session(
            runtime, f"s{number}", owner="ann" if number % 2 else "bob", tags=("t",) if number > 2 else ()
        )
        await session.add_messages([Message(role="user", content=f"word {n}") for n in range(3)])
        await anyio.sleep(0.002)  # the order of sessions is that of their milliseconds


def ids_of(page: SearchPage) -> list[str]:
    return [f"{hit.session_id}/{hit.message.seq}" for hit in page.hits]


def test_all_sessions_are_searched_the_last_changed_first(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            manager = SessionManager(runtime)
            await make_sessions(runtime)

            everywhere = [f"s{number}/{seq}" for number in range(5, -1, -1) for seq in (3, 2, 1)]
            assert ids_of(await manager.search("word")) == everywhere
            assert ids_of(await manager.search("word 1", owner="ann")) == ["s5/2", "s3/2", "s1/2"]
            assert ids_of(await manager.search("word 1", tag="t")) == ["s5/2", "s4/2", "s3/2"]
            assert ids_of(await manager.search("word 1", owner="bob", tag="t")) == ["s4/2"]
            assert ids_of(await manager.search("word", role="tool")) == []
            assert ids_of(await manager.search("word", owner="nobody")) == []

    run(body)


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 18, 19])
@pytest.mark.parametrize("filters", [{}, {"owner": "ann"}, {"tag": "t"}, {"owner": "ann", "tag": "t"}])
def test_pages_over_sessions_give_each_hit_once_while_sessions_change(
    run: Run, limit: int, filters: dict[str, Any]
) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            manager = SessionManager(runtime)
            await make_sessions(runtime)
            expected = ids_of(await manager.search("word", limit=100, **filters))
            page = await manager.search("word", limit=limit, **filters)
            ids = ids_of(page)
            while page.cursor is not None:
                # The session that it is in the middle of goes to the front, with a new hit.
                await Session(runtime, page.hits[-1].session_id).add_message("user", "a late word")
                page = await manager.search("word", limit=limit, cursor=page.cursor, **filters)
                ids += ids_of(page)

            assert ids == expected

    run(body)


def test_a_session_that_was_deleted_meanwhile_is_passed_over(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            manager = SessionManager(runtime)
            await make_sessions(runtime)
            page = await manager.search("word", limit=2)
            await manager.delete("s5")
            await manager.delete("s3")
            rest = await manager.search("word", limit=100, cursor=page.cursor)

            assert ids_of(rest) == [f"s{number}/{seq}" for number in (4, 2, 1, 0) for seq in (3, 2, 1)]

    run(body)


def test_a_session_that_cannot_be_read_does_not_hide_the_others(run: Run) -> None:
    async def body() -> None:
        store = MemoryStore()
        async with Runtime.on(lambda: store) as runtime:
            await make_sessions(runtime)
        left = store.reopened()
        stored = left.load(stream_of("s4"))
        assert stored is not None
        assert left.commit([Batch(stream_of("s4"), stored.epoch, stored.version, b"\x01lost")]) == [None]
        async with Runtime.on(lambda: left) as runtime:
            assert ids_of(await SessionManager(runtime).search("word 0")) == ["s5/1", "s3/1", "s2/1", "s1/1", "s0/1"]
            assert [each.where for each in left.damage.list()] == ["head of session 's4'"]

    run(body)


def test_the_loop_goes_on_while_a_large_store_is_searched(run_in_real_time: Run, tmp_path: Path) -> None:
    async def body() -> None:
        async with Runtime.on(lambda: LmdbStore(tmp_path)) as runtime:
            session = Session(runtime, "s")
            await session.add_messages([Message(role="user", content=f"text ä {n} " * 20) for n in range(12_000)])
            turns, waiting = 0, True
            page = SearchPage([], None)

            async def count() -> None:
                nonlocal turns
                while waiting:
                    await anyio.lowlevel.checkpoint()
                    turns += 1

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(count)
                page = await SessionManager(runtime).search("ä 11999")
                waiting = False

            assert seqs_of(page) == [12_000]
            assert turns > 20  # nobody but this task had the loop

    run_in_real_time(body)


def test_a_search_that_is_cancelled_ends(run_in_real_time: Run, tmp_path: Path) -> None:
    async def body() -> None:
        async with Runtime.on(lambda: LmdbStore(tmp_path)) as runtime:
            session = Session(runtime, "s")
            await session.add_messages([Message(role="user", content="ä" * 2_000) for _ in range(2_000)])
            with anyio.move_on_after(0.0) as scope:
                await session.search("nothing")

            assert scope.cancelled_caught
            assert (await session.search("nothing", limit=1)).hits == []

    run_in_real_time(body)


def test_what_makes_no_sense_is_refused(run: Run) -> None:
    async def body() -> None:
        async with Runtime.in_memory() as runtime:
            session, manager = Session(runtime, "s"), SessionManager(runtime)
            await make_sessions(runtime)
            wrong: list[tuple[type[Exception], str, Callable[[], Awaitable[SearchPage]]]] = [
                (ValueError, "no words", lambda: session.search("  ")),
                (TypeError, "a string, not int", lambda: session.search(ODD)),
                (ValueError, "1001 characters", lambda: session.search("x" * 1001)),
                (ValueError, "role is one of", lambda: session.search("x", role=cast("Any", "robot"))),
                (ValueError, "author", lambda: session.search("x", author="")),
                (ValueError, "limit must be from 1 to 1000", lambda: session.search("x", limit=0)),
                (TypeError, "cursor must be a string", lambda: session.search("x", cursor=ODD)),
                (ValueError, "owner", lambda: manager.search("x", owner="")),
                (ValueError, "tag", lambda: manager.search("x", tag="")),
            ]
            for error, words, call in wrong:
                with pytest.raises(error, match=words):
                    await call()

            cursor = (await manager.search("word", limit=1)).cursor
            assert cursor is not None
            others: list[Callable[[], Awaitable[SearchPage]]] = [
                lambda: manager.search("other", cursor=cursor),
                lambda: manager.search("word", owner="ann", cursor=cursor),
                lambda: manager.search("word", role="user", cursor=cursor),
                lambda: session.search("word", cursor=cursor),
                lambda: manager.search("word", cursor=cursor[:-8]),
                lambda: manager.search("word", cursor="?"),
            ]
            for call in others:
                with pytest.raises(ValueError, match="is no cursor of this"):
                    await call()

    run(body)
