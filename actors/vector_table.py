"""Vectors in memory, and those nearest to another by the cosine of their angle. Exact, with numpy or without.

All have length 1, so that the cosine is the product. It is always summed up by the same Python function, in double
precision: numpy only finds, in single precision, those few of which one may be among the nearest, by a bound on its
error. So the results are the same to the last bit.

Source: Higham, "Accuracy and Stability of Numerical Algorithms", 2nd edition, section 3.1 (the error of a product).
"""

import importlib
import math
import sys
from array import array
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from operator import mul
from typing import Any

__all__ = ["VectorTable", "numpy_if_installed", "unit_vector"]

ROWS_A_STEP = 4_000
"""With numpy: about 2 ms for 1 536 dimensions."""

PRODUCTS_A_STEP = 20_000
"""Without: about 1 ms."""

_SINGLE = 2.0**-24
"""Half of the distance from 1 to the next number of single precision."""


@cache
def numpy_if_installed() -> Any:
    """The module, or None. Cost: imports it at the first call, in 0.1 s."""
    try:
        return importlib.import_module("numpy")
    except ModuleNotFoundError:
        return None


def unit_vector(values: Sequence[float]) -> bytes:
    """These numbers as a vector of length 1: single precision, the lowest byte first.

    Raises:
        ValueError: they give no direction: none at all, all 0, or one that is not finite.
    """
    length = math.hypot(*values)
    if not 0 < length < math.inf:
        raise ValueError(f"a vector of {len(values)} numbers and length {length} has no direction")
    return _swapped(array("f", [value / length for value in values])).tobytes()


def _swapped(values: "array[float]") -> "array[float]":
    if sys.byteorder == "big":
        values.byteswap()
    return values


class VectorTable:
    """Vectors of one number of dimensions, each with a number that the caller gives.

    Args:
        dimensions: how many numbers a vector has.
        numpy: the module; None: without.

    Cost: 4 bytes for each number of a vector. To look through 10 000 of 1 536 dimensions takes 5 ms with numpy and 0.6
        s without.
    """

    def __init__(self, dimensions: int, *, numpy: Any = None) -> None:
        self.dimensions = dimensions
        self._numpy = numpy
        self._values = array("f")
        self._numbers = array("Q")

    @property
    def size_bytes(self) -> int:
        """What it holds."""
        return 4 * len(self._values) + 8 * len(self._numbers)

    def add(self, number: int, vector: bytes) -> None:
        """Take in a vector as `unit_vector` gives it."""
        assert len(vector) == 4 * self.dimensions, "its dimensions are checked before"
        self._values.extend(_vector(vector))
        self._numbers.append(number)

    def rows(self) -> Iterator[tuple[int, bytes]]:
        """Every vector with its number."""
        for row, number in enumerate(self._numbers):
            yield number, _swapped(self._row(row)).tobytes()

    def nearest(
        self, vector: bytes, suits: Callable[[int], bool], found: list[tuple[int, float]], *, count: int
    ) -> Iterator[None]:
        """Put at least those `count` that are nearest into `found`, with their cosine, in short steps; in any order,
        and maybe others. Nothing may be added meanwhile."""
        query = _vector(vector)
        rows = self._rows_by_product(query, suits, count) if self._numpy is not None else range(len(self._numbers))
        step = max(1, PRODUCTS_A_STEP // self.dimensions)
        for looked_at, row in enumerate(rows):
            if looked_at % step == 0 or row is None:
                yield
            if row is not None and suits(self._numbers[row]):
                found.append((self._numbers[row], sum(map(mul, self._row(row), query))))

    def _rows_by_product(self, query: "array[float]", suits: Callable[[int], bool], count: int) -> Iterator[int | None]:
        """The rows, the nearest first as single precision has it, up to where none can be among the nearest; None
        for a pause."""
        numpy, rows = self._numpy, len(self._numbers)
        products = numpy.empty(rows, dtype=numpy.float32)
        for start in range(0, rows, ROWS_A_STEP):
            # The view is dropped at once: an array that somebody views cannot grow.
            table = numpy.frombuffer(self._values, dtype=numpy.float32).reshape(rows, self.dimensions)
            products[start : start + ROWS_A_STEP] = table[start : start + ROWS_A_STEP] @ numpy.asarray(query)
            del table
            yield None
        error = 2 * self.dimensions * _SINGLE
        least, suited = -math.inf, 0
        order: list[int] = numpy.argsort(-products).tolist()
        for row in order:
            product = float(products[row])
            if product < least:
                return
            yield row
            if suits(self._numbers[row]):
                suited += 1
                if suited == count:
                    least = product - 2 * error

    def _row(self, row: int) -> "array[float]":
        return self._values[row * self.dimensions : (row + 1) * self.dimensions]


def _vector(stored: bytes) -> "array[float]":
    values = array("f")
    values.frombytes(stored)
    return _swapped(values)
