"""The root of callboard's errors, and what a store can raise.

CallboardError
├─ Rejected, Failed, Unknown     callboard.runtime.errors: what became of a request
├─ StoreError                    here: what became of state
│  ├─ Fenced                     a newer owner has written: this one never can again
│  ├─ Conflict                   the state is not the version that the batch was built on
│  ├─ Corrupt                    bytes on disk that are not a record of ours
│  ├─ NewerFormat                written by a newer callboard
│  ├─ OlderFormat                written by an older one: to be migrated
│  ├─ StoreFull                  no space: nothing of the transaction was stored
│  ├─ StoreLocked                another process writes to this directory
│  ├─ StoreUnavailable           the directory or the disk does not answer as it should
│  └─ WrongKey                   sealed with another master key, or the one is missing, or needless
└─ ModelError, InvalidTransition, ...  callboard.actors.errors: conversations and models
"""

__all__ = [
    "CallboardError",
    "Conflict",
    "Corrupt",
    "Fenced",
    "NewerFormat",
    "OlderFormat",
    "StoreError",
    "StoreFull",
    "StoreLocked",
    "StoreUnavailable",
    "WrongKey",
]


class CallboardError(Exception):
    """Everything that callboard raises for faults of operation. Programmers' mistakes are TypeError or ValueError."""


class StoreError(CallboardError):
    """The store could not do what was asked.

    `uncertain` is True where the transaction may have reached the disk all the same.
    """

    def __init__(self, message: str, *, uncertain: bool = False) -> None:
        super().__init__(message)
        self.uncertain = uncertain


class Fenced(StoreError):
    """Nothing was stored: the stream was written under a newer epoch, so its writer has been replaced."""

    def __init__(self, stream: str, *, epoch: int, stored_epoch: int) -> None:
        super().__init__(f"{stream!r} is owned by epoch {stored_epoch}; a batch of epoch {epoch} is refused")
        self.stream = stream
        self.epoch = epoch
        self.stored_epoch = stored_epoch


class Conflict(StoreError):
    """Nothing was stored: the stream is not at the version that the batch was built on."""

    def __init__(self, stream: str, *, version: int, stored_version: int) -> None:
        super().__init__(f"{stream!r} is at version {stored_version}; the batch was built on {version}")
        self.stream = stream
        self.version = version
        self.stored_version = stored_version


class Corrupt(StoreError):
    """A record cannot be read. `where` names it; nothing was changed."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(f"the record {where} cannot be read: {reason}")
        self.where = where
        self.reason = reason


class NewerFormat(StoreError):
    """Written by a newer callboard than this one. Nothing was changed; upgrade callboard to read it."""


class OlderFormat(StoreError):
    """Written by an older callboard, in a format that has to be migrated first. Nothing was changed."""


class StoreFull(StoreError):
    """No space left on the disk (or the map's limit is reached). Nothing of the transaction was stored."""


class StoreLocked(StoreError):
    """Another process has this store open for writing.

    Attributes:
        pid: that process, or None where it cannot be told.
        state: "stopped" where it is stopped (SIGSTOP, Ctrl-Z), "not seen from here" where no process here has this
            number (it may be in another container), else "".
        server: of a store on a database server: the writer, as the server knows it; else "".
    """

    def __init__(self, path: str, *, pid: int | None, state: str = "", server: str = "") -> None:
        owner = f"process {pid}" if pid is not None else "another process"
        advice = "stop it, or use another directory (reading from other processes is fine)"
        if server:
            owner, advice = server, "stop that one, or give this one a store of its own"
        if state == "stopped":
            owner += ", which is stopped but alive"
            advice = f"let it go on (kill -CONT {pid}) or end it (kill -KILL {pid}), or use another directory"
        elif state == "not seen from here":
            owner += ", which is not seen from here (perhaps of another container or user)"
        super().__init__(f"the store {path!r} is open for writing in {owner}: {advice}")
        self.path = path
        self.pid = pid
        self.state = state
        self.server = server


class StoreUnavailable(StoreError):
    """The directory or the disk does not answer as it should."""


class WrongKey(StoreError):
    """The store is sealed with another master key than was given, or with one and none was given, or not at all.

    Nothing was read of it, and nothing changed.
    """
