"""A batch that exists can be stored: what no store takes cannot be made."""

import re
from collections.abc import Callable
from typing import Any, cast

import pytest

from callboard.store import Batch, Index, IndexRow, Row, Table


def put(key: bytes, value: bytes = b"") -> Row:
    return Row(Table.MESSAGE, key, value)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Batch("", 1, 0),
        lambda: Batch("é" * 201, 1, 0),
        lambda: Batch("\ud800", 1, 0),
        lambda: Batch("a", -1, 0),
        lambda: Batch("a", 1, -1),
        lambda: Batch("a", 2**63, 0),
        lambda: Batch("a", 1, 0, index_rows=(IndexRow(Index.TAG, b"x" * 401),)),
        lambda: Batch("a", 1, 0, index_rows=(IndexRow(Index.TAG, bytes(101)),)),
        lambda: Batch("a", 1, 0, rows=(put(b"k" * 65),)),
    ],
)
def test_a_batch_beyond_the_limits_cannot_be_made(make: Callable[[], Batch]) -> None:
    with pytest.raises(ValueError, match=r"400|surrogates|2\*\*63|at most 64"):
        make()


WRONG: Any = "text"
"""What somebody without a type checker passes."""


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Batch(cast("Any", b"a"), 1, 0), "a stream's name must be str, not bytes: decode it"),
        (lambda: Batch("a", cast("Any", 1.0), 0), "a batch's epoch must be int, not float"),
        (lambda: Batch("a", 1, cast("Any", "0")), "a batch's version must be int, not str"),
        (lambda: Batch("a", 1, 0, head=WRONG), "a head must be bytes, not str: encode it"),
        (lambda: Batch("a", 1, 0, head=cast("Any", 5)), "a head must be bytes, not int"),
        (lambda: Batch("a", 1, 0, head=cast("Any", bytearray(b"x"))), "a head must be bytes, not bytearray"),
        (lambda: Batch("a", 1, 0, rows=cast("Any", (put(b"k") for _ in range(1)))), "a batch's rows must be tuple"),
        (lambda: Batch("a", 1, 0, rows=(WRONG,)), "a row must be Row, not str: pass Row"),
        (lambda: Batch("a", 1, 0, rows=(Row(cast("Any", 77), b"k", b"v"),)), "a row's table must be Table, not int"),
        (
            lambda: Batch("a", 1, 0, rows=(Row(cast("Any", Index.TAG), b"k", b"v"),)),
            "a row's table must be Table, not Index",
        ),
        (
            lambda: Batch("a", 1, 0, rows=(Row(Table.MESSAGE, WRONG, b"v"),)),
            "a row key must be bytes, not str: encode it",
        ),
        (lambda: Batch("a", 1, 0, rows=(put(b"k"), put(b"l", WRONG))), "a row value must be bytes, not str: encode it"),
        (
            lambda: Batch("a", 1, 0, rows=(put(b"k", cast("Any", memoryview(b"x"))),)),
            "a row value must be bytes, not memoryview",
        ),
        (lambda: Batch("a", 1, 0, index_rows=cast("Any", {})), "a batch's index_rows must be tuple, not dict"),
        (lambda: Batch("a", 1, 0, index_rows=(WRONG,)), "an index row must be IndexRow, not str: pass IndexRow"),
        (
            lambda: Batch("a", 1, 0, index_rows=(IndexRow(cast("Any", 9), b"x"),)),
            "an index row's index must be Index, not int",
        ),
        (
            lambda: Batch("a", 1, 0, index_rows=(IndexRow(Index.TAG, WRONG),)),
            "an index value must be bytes, not str: encode",
        ),
        (
            lambda: Batch("a", 1, 0, index_rows=(IndexRow(Index.TAG, b"x", WRONG),)),
            "an index row's present must be bool",
        ),
    ],
)
def test_a_batch_of_wrong_types_cannot_be_made(make: Callable[[], Batch], told: str) -> None:
    with pytest.raises(TypeError, match=re.escape(told)):
        make()
