"""The process that writes for a ProcessStore, and what goes over the socket between the two.

Each message is its length as u64, little-endian, and msgpack. One call at a time: the answer comes before the next
call. The process ends when its socket does, so it never outlives its owner, however that ended; what it had not been
asked to commit is not there, and what it had is in the log. Signals that are meant for the owner do not end it.
"""

import os
import signal
import socket
import struct
import time
from collections.abc import Callable
from typing import Any, Literal

import msgspec
from msgspec import Struct

from . import errors
from .batch import Batch
from .contract import StoreStatistics
from .errors import StoreError, StoreLocked
from .lmdb_store import LmdbStore

__all__ = ["Answer", "Call", "Fault", "WriterOptions", "fault_of", "receive", "send"]

LOCKED_WAIT_S = 2.0
"""The writer of an owner that was killed a moment ago needs some milliseconds to see it."""

_LENGTH = struct.Struct("<Q")


class WriterOptions(Struct, frozen=True):
    """How the writer opens its store; see LmdbStore."""

    path: str
    durability: Literal["sync", "async"]
    map_size_bytes: int
    log_bytes_max: int


class Call(Struct, frozen=True, array_like=True):
    """What is asked of the writer. `batches` is for "commit" alone."""

    verb: Literal["commit", "claim", "statistics", "checkpoint", "close"]
    batches: list[Batch] = []


class Fault(Struct, frozen=True, array_like=True):
    """An error of the store's: its class, its text, its fields."""

    kind: str
    message: str
    fields: dict[str, Any]

    def error(self) -> StoreError:
        """The error again, as it was raised."""
        found = getattr(errors, self.kind, StoreError)
        error: StoreError = found.__new__(found)
        Exception.__init__(error, self.message)
        error.__dict__.update({"uncertain": False, **self.fields})
        return error


class Answer(Struct, frozen=True, omit_defaults=True):
    """What came of a call: `fault` where it raised, else the field of its verb."""

    fault: Fault | None = None
    refusals: list[Fault | None] = []
    owner: int = 0
    statistics: StoreStatistics | None = None


def fault_of(error: StoreError) -> Fault:
    return Fault(type(error).__name__, str(error), dict(error.__dict__))


def send(connection: socket.socket, message: Struct) -> None:
    """Send one message. OSError where the other side is gone."""
    buffer = bytearray(_LENGTH.size)
    _encoder.encode_into(message, buffer, _LENGTH.size)
    _LENGTH.pack_into(buffer, 0, len(buffer) - _LENGTH.size)
    connection.sendall(buffer)


def receive(connection: socket.socket) -> bytearray:
    """The next message, still encoded. EOFError where the other side is gone, OSError as from sockets."""
    (size,) = _LENGTH.unpack(_receive_exactly(connection, _LENGTH.size))
    return _receive_exactly(connection, size)


def _receive_exactly(connection: socket.socket, size: int) -> bytearray:
    data = bytearray(size)
    view = memoryview(data)
    at = 0
    while at < size:
        count = connection.recv_into(view[at:])
        if not count:
            raise EOFError("the other side is gone")
        at += count
    return data


_encoder = msgspec.msgpack.Encoder()
_calls: msgspec.msgpack.Decoder[Call] = msgspec.msgpack.Decoder(Call)


class Writer:
    """The child's side: one store, served call by call."""

    def __init__(self, store: LmdbStore) -> None:
        self._store = store
        self._verbs: dict[str, Callable[[Call], Answer]] = {
            "commit": self._commit,
            "claim": lambda _: Answer(owner=store.claim()),
            "statistics": lambda _: Answer(statistics=store.statistics()),
            "checkpoint": self._checkpoint,
            "close": self._close,
        }

    def answer(self, call: Call) -> Answer:
        try:
            return self._verbs[call.verb](call)
        except StoreError as error:
            return Answer(fault=fault_of(error))

    def _commit(self, call: Call) -> Answer:
        answers = self._store.commit(call.batches)
        return Answer(refusals=[None if error is None else fault_of(error) for error in answers])

    def _checkpoint(self, _call: Call) -> Answer:
        self._store.checkpoint()
        return Answer()

    def _close(self, _call: Call) -> Answer:
        self._store.close()
        return Answer()


def open_store(options: WriterOptions) -> LmdbStore:
    """The store, as soon as a writer that is about to end has given it up. Raises as LmdbStore does."""
    deadline_s = time.monotonic() + LOCKED_WAIT_S
    while True:
        try:
            return LmdbStore(
                options.path,
                durability=options.durability,
                map_size_bytes=options.map_size_bytes,
                log_bytes_max=options.log_bytes_max,
            )
        except StoreLocked:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.02)


def main(descriptor: int) -> None:
    """Serve until the socket ends."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    connection = socket.socket(fileno=descriptor)
    try:
        options = msgspec.msgpack.decode(receive(connection), type=WriterOptions)
        try:
            writer = Writer(open_store(options))
        except StoreError as error:
            send(connection, Answer(fault=fault_of(error)))
            return
        send(connection, Answer())
        while True:
            send(connection, writer.answer(_calls.decode(receive(connection))))
    except (EOFError, OSError):
        os._exit(0)  # no checkpoint: whoever opens the store next waits for us, and has the log
