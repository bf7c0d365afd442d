"""What a released callboard wrote is what this one reads: the golden store of the present format, log included.

Format 1 is migrated, see test_lmdb_copy.py; the rows of messages have golden bytes of their own.
"""

import base64
import json
import shutil
from pathlib import Path

import pytest

from callboard.store import Head, LmdbStore, Table
from callboard.store.lmdb_check import check_directory

GOLDEN = Path(__file__).resolve().parent.parent / "golden"


def decoded(text: str) -> bytes:
    return base64.b64decode(text)


@pytest.mark.parametrize("readonly", [True, False])
@pytest.mark.parametrize("number", [2])
def test_a_golden_store_gives_what_it_gave_when_it_was_written(tmp_path: Path, number: int, readonly: bool) -> None:
    golden = GOLDEN / f"format-{number}"
    told = json.loads((golden / "contents.json").read_text())
    shutil.copy(golden / "data.mdb", tmp_path / "data.mdb")
    assert check_directory(tmp_path).findings == []
    store = LmdbStore(tmp_path, readonly=readonly)

    assert store.statistics().log_bytes > 0
    for name, stream in told["streams"].items():
        assert store.load(name) == Head(stream["epoch"], stream["version"], decoded(stream["head"]))
        rows = [[table.name, key, value] for table in Table for key, value in store.scan(name, table)]
        assert rows == [[table, decoded(key), decoded(value)] for table, key, value in stream["rows"]]
    assert set(store.streams()) == set(told["streams"])
    assert store.damage.count == 0
    if not readonly:
        assert store.claim() == told["owner"] + 1 + 1  # contents() claimed one to tell the number
    store.close()
