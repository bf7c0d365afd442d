"""Memory: what is to be known in later conversations, found by its words or by what it means.

    memory = Memory(runtime, embedder=OpenAIEmbedder(model="text-embedding-3-small"))
    await memory.add("Prefers tea to coffee.", owner="ann")
    await memory.remember(session)                                  # the messages of a session, each once
    hits = await memory.search("what does she drink?", owner="ann")
    prompt = await memory.context("what does she drink?", owner="ann", max_tokens=500)

It is an actor of its own for each name. What it stores is durable when a call returns.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, get_args

from msgspec.structs import replace

from .archive import Archive
from .embedder import Embedder
from .errors import EmbedderMismatch
from .host import Runtime
from .ids import new_id
from .limits import (
    check_agent_name,
    check_count,
    check_metadata,
    check_owner,
    check_session_id,
    json_copy,
)
from .long_work import work_through
from .memory_messages import (
    AddMemories,
    CountMemories,
    DeleteMemories,
    FindMemories,
    ForgetMemories,
    Made,
    ReadMark,
)
from .memory_records import MEMORY_KIND, MemoryHit, MemoryMode, MemoryRecord, MemorySource, RememberedMark
from .memory_shelf import Wish
from .message import ROLES, Message, Role
from .session import Session
from .session_records import SessionHead
from .text_index import indexed_words
from .tokens import TokenCounter, TokenEstimate
from .vector_table import unit_vector

__all__ = ["Memory"]

TEXT_CHARACTERS_MAX = 16_000
"""Of one memory: some 4 000 tokens, of the 8 192 that most embedders take. A memory is to be found, not a document."""

LIMIT_MAX = 1_000

PIECE = 64
"""Messages that `remember` stores in one commit, with one request to the embedder."""

SAID: tuple[Role, ...] = ("user", "assistant")


class Memory:
    """The memories of one name, shared by all that use the name. It holds nothing itself: make it anew as you like.

    Args:
        runtime: where it is stored.
        name: 1 to 200 bytes. All owners of a name share its room and its embedder; a search may be for one owner's.
        embedder: gives texts their vectors; None: what is added has none, and is found by its words alone.

    A name holds 100 000 memories and 128 MiB of text. While it is in use all of it is in memory: of a text its length
    and some 1.5 KB, and 4 bytes for each number of its vector. Loading takes some 40 us a memory.
    """

    def __init__(self, runtime: Runtime, name: str = "default", *, embedder: Embedder | None = None) -> None:
        if not isinstance(runtime, Runtime):  # pyright: ignore[reportUnnecessaryIsInstance] -- given by the user
            raise TypeError(f"a memory is kept by a runtime: Memory(runtime), not Memory({runtime!r})")
        self.name: str = check_agent_name(name, what="memory name")
        self._runtime = runtime
        self._embedder = embedder
        self._ref = runtime.actor(MEMORY_KIND, self.name)

    def __repr__(self) -> str:
        return f"Memory({self.name!r})"

    async def add(
        self,
        text: str,
        *,
        metadata: Mapping[str, Any] | None = None,
        session_id: str | None = None,
        owner: str | None = None,
    ) -> str:
        """Store a text, at most 16 000 characters; its id, once it is durable.

        Args:
            metadata: JSON of at most 64 KiB, that comes back with it.
            session_id: the session that it comes from, by which `forget` finds it.
            owner: whose it is.

        Raises:
            TypeError, ValueError: an argument is no good.
            TooLarge: the memory is full.
            EmbedderMismatch: another embedder has made the vectors that are there.
            ModelError: the embedder's server gave no vector.
            Nothing was stored, in all cases.
        """
        now_ms = self._runtime.wall_ms()
        record = MemoryRecord(
            id=new_id("mem", now_ms),
            text=_checked_text(text),
            at_ms=now_ms,
            metadata=check_metadata(metadata if metadata is not None else {}),
            owner=check_owner(owner),
            source=MemorySource(check_session_id(session_id)) if session_id is not None else None,
        )
        await self._store([record])
        return record.id

    async def remember(self, session: Session, *, roles: Iterable[Role] = SAID) -> int:
        """Store what was said in a session and is not stored yet; how many messages that were.

        Each message is stored once, however often and by how many this is called, also after a crash in its middle:
        how far it came is stored with the messages, for all roles. What has no text is left out; of a longer one the
        first 16 000 characters are kept. A message that is taken out of history later stays here.

        Args:
            roles: whose messages, of "user", "assistant", "tool", "system", "developer".

        Raises:
            UnknownSession: there is none.
            and all that `add` raises; what comes before is stored.
        """
        wanted = _checked_roles(roles)
        if not isinstance(session, Session):  # pyright: ignore[reportUnnecessaryIsInstance] -- given by the user
            raise TypeError(f"what is remembered is a Session, not {session!r}: Session(runtime, {session!r})")
        if session.runtime is not self._runtime:
            raise ValueError(f"session {session.id!r} is of another runtime than this memory")
        head = await session.head()
        mark = await self._ref.ask(ReadMark(session.id))
        after = mark.seq if mark is not None and mark.created_at_ms == head.created_at_ms else 0
        stored = 0
        while after < head.last_seq:
            last = min(after + PIECE, head.last_seq)
            messages: list[Message] = []
            await work_through(self._runtime.store, self._read(head, after + 1, last, messages))
            records = [_record_of(message, head) for message in messages if message.role in wanted]
            reached = RememberedMark(head.id, head.created_at_ms, last)
            stored += await self._store([record for record in records if record.text.strip()], mark=reached)
            after = last
        return stored

    async def search(
        self, query: str, *, limit: int = 10, owner: str | None = None, mode: MemoryMode | None = None
    ) -> list[MemoryHit]:
        """What fits the query best, the best first, and the latest first among equals.

        Args:
            query: at most 16 000 characters.
            limit: 1 to 1000.
            owner: only what is this owner's. Other owners' texts change neither what is found nor its scores.
            mode: "text": what shares words with the query, by BM25. "semantic": the nearest by the embedder's vectors,
                however far they are. "both": both lists as one. None: "both" where there is an embedder, else "text".

        Raises:
            TypeError, ValueError: an argument is no good, or there is no embedder for this mode.
            EmbedderMismatch, ModelError: as `add`.

        Cost: by words some 1 us for each memory that has one of them; by meaning 0.5 us a memory with numpy (extra
            `memory`) and 60 us without, with 1 536 dimensions; in a worker thread.
        """
        limit = check_count(limit, what="limit", maximum=LIMIT_MAX)
        text = _checked_text(query, what="query")
        mode = mode if mode is not None else "text" if self._embedder is None else "both"
        if mode not in get_args(MemoryMode):
            raise ValueError(f"mode is one of {', '.join(get_args(MemoryMode))}, not {mode!r}")
        if mode == "text" and not indexed_words(text):
            return []
        wish, made = Wish(text, mode, limit, check_owner(owner)), None
        if mode != "text":
            if self._embedder is None:
                raise ValueError(f'mode={mode!r} needs an embedder: Memory(runtime, embedder=...), or use mode="text"')
            (vector,), made = await self._embed(self._embedder, [text])
            wish = replace(wish, vector=vector)
        hits = await self._ref.ask(FindMemories(wish, made))
        # Theirs to change: what the actor has in memory stays as it is.
        return [replace(hit, metadata=json_copy(hit.metadata, "metadata")) for hit in hits]

    async def context(
        self,
        query: str,
        *,
        max_tokens: int = 1_000,
        limit: int = 20,
        owner: str | None = None,
        mode: MemoryMode | None = None,
        counter: TokenCounter | None = None,
    ) -> str:
        """What fits the query, as text for a prompt: a line for each memory, the best first; "" where nothing does.

        Args:
            max_tokens: what the text has at most, as `counter` counts. A memory that does not fit is left out.
            limit, owner, mode: as of `search`.
            counter: None: an estimate (TokenEstimate).

        Raises: as `search`.
        """
        max_tokens = check_count(max_tokens, what="max_tokens")
        counter = counter if counter is not None else TokenEstimate()
        text = ""
        for hit in await self.search(query, limit=limit, owner=owner, mode=mode):
            longer = text + ("\n" if text else "") + _line(hit)
            if counter.count(longer) <= max_tokens:
                text = longer
        return text

    async def delete(self, id: str) -> bool:
        """Delete one, durably; whether it was there. `remember` does not bring it back."""
        if not isinstance(id, str):  # pyright: ignore[reportUnnecessaryIsInstance] -- given by the user
            raise TypeError(f"an id is a string, as `add` gives it, not {id!r}")
        return await self._ref.ask(DeleteMemories(id))

    async def forget(self, *, session_id: str | None = None, owner: str | None = None) -> int:
        """Delete all that comes from a session, or is an owner's (given both, what is both), durably; how many.

        Also the note how far a session was remembered, where only a session is given: a later `remember` of it begins
        anew. Deleting a session deletes nothing here.
        """
        if session_id is None and owner is None:
            raise TypeError("whose memories? give session_id=... or owner=...")
        session_id = check_session_id(session_id) if session_id is not None else None
        return await self._ref.ask(ForgetMemories(session_id, check_owner(owner)))

    async def count(self, *, owner: str | None = None) -> int:
        """How many there are, or how many of an owner."""
        return await self._ref.ask(CountMemories(check_owner(owner)))

    def _read(self, head: SessionHead, first: int, last: int, messages: list[Message]) -> Iterator[None]:
        messages += Archive(self._runtime.store).messages_between(head.id, first, last, removed=head.removed)
        yield

    async def _store(self, records: list[MemoryRecord], *, mark: RememberedMark | None = None) -> int:
        made: Made | None = None
        if self._embedder is not None and records:
            vectors, made = await self._embed(self._embedder, [record.text for record in records])
            records = [replace(record, vector=vector) for record, vector in zip(records, vectors, strict=True)]
        return await self._ref.ask(AddMemories(tuple(records), made, mark))

    async def _embed(self, embedder: Embedder, texts: Sequence[str]) -> tuple[list[bytes], Made]:
        """Vectors of these texts, checked. Outside of the actor, which others need meanwhile."""
        name = check_agent_name(embedder.name, what="embedder's name")
        try:
            given = await embedder.embed(texts)
        finally:
            self._runtime.note_use(embedder)
        if len(given) != len(texts):
            raise EmbedderMismatch(f"embedder {name!r} gave {len(given)} vectors for {len(texts)} texts")
        dimensions = {len(vector) for vector in given}
        if len(dimensions) != 1:
            raise EmbedderMismatch(f"embedder {name!r} gave vectors of different dimensions: {sorted(dimensions)}")
        try:
            return [unit_vector(vector) for vector in given], Made(name, dimensions.pop())
        except ValueError as error:
            raise EmbedderMismatch(f"embedder {name!r} gave {error}") from None


def _checked_text(text: object, what: str = "text") -> str:
    if not isinstance(text, str):
        raise TypeError(f"{what} must be a string, not {text!r}")
    if not text.strip():
        raise ValueError(f"{what} is empty: there is nothing to remember or to find in it")
    if len(text) > TEXT_CHARACTERS_MAX:
        raise ValueError(
            f"{what} has {len(text)} characters, more than the {TEXT_CHARACTERS_MAX} of one memory: split it"
        )
    return str(json_copy(text, what))


def _checked_roles(roles: Iterable[Role]) -> frozenset[str]:
    wanted = frozenset([roles] if isinstance(roles, str) else roles)
    if not wanted or not wanted <= set(ROLES):
        raise ValueError(f"roles are some of {', '.join(ROLES)}, not {sorted(wanted)}")
    return wanted


def _record_of(message: Message, head: SessionHead) -> MemoryRecord:
    return MemoryRecord(
        id=new_id("mem", message.created_at_ms),
        text=message.text[:TEXT_CHARACTERS_MAX],
        at_ms=message.created_at_ms,
        owner=head.owner,
        source=MemorySource(head.id, message.seq, message.role, message.author),
    )


def _line(hit: MemoryHit) -> str:
    """The memory in one line, so that none can look like several."""
    said = " ".join(hit.text.split())
    speaker = (hit.source.author or hit.source.role) if hit.source is not None else None
    return f"- {speaker}: {said}" if speaker else f"- {said}"
