"""Opens a store as its owner has it: plain, or sealed with a master key."""

import os
from typing import Literal

from .contract import Store
from .errors import WrongKey
from .lmdb_store import LmdbStore
from .master_key import MasterKey
from .process_store import ProcessStore
from .sealed_store import KEYRING_STREAM, SealedStore

__all__ = ["open_store", "unlocked"]


def open_store(
    path: str | os.PathLike[str],
    *,
    master_key: bytes | str | MasterKey | None = None,
    durability: Literal["sync", "async"] = "sync",
    writer: Literal["thread", "process"] = "thread",
    readonly: bool = False,
) -> Store:
    """The store at this path, see LmdbStore; sealed where there is a master key, see SealedStore.

    `writer` "process" gives its writing side a process of its own, see ProcessStore; to read only, it changes nothing.

    Raises:
        WrongKey: it is sealed, and the master key is another or missing; or it is not, and there is one.
        StoreError: as LmdbStore raises it.
        TypeError, ValueError: the master key cannot be one.
        ModuleNotFoundError: there is a master key, but not the package: pip install 'callboard[encryption]'.
    """
    key = MasterKey(master_key) if master_key is not None else None
    if writer not in ("thread", "process"):
        raise ValueError(f'writer must be "thread" or "process", not {writer!r}')
    store: Store
    if writer == "process" and not readonly:
        store = ProcessStore(path, durability=durability)
    else:
        store = LmdbStore(path, durability=durability, readonly=readonly)
    return unlocked(store, key)


def unlocked(store: Store, key: MasterKey | None) -> Store:
    """A store that was just opened, as its owner has it. Where it cannot be had it is closed.

    Raises:
        WrongKey, ModuleNotFoundError: as `open_store`.
    """
    if key is not None:
        return SealedStore(store, key)
    try:
        _refuse_sealed(store)
    except BaseException:
        store.close()
        raise
    return store


def _refuse_sealed(store: Store) -> None:
    if store.load(KEYRING_STREAM) is not None:
        raise WrongKey(
            f"the store {store.location!r} is sealed: give the master key that it was made with, or last rotated to "
            "(master_key=..., or CALLBOARD_MASTER_KEY for the command line)"
        )
