"""
Which of several memcached servers has a key.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Sequence
from hashlib import blake2b
from typing import Final

__all__ = ["Ring"]

_POINTS: Final = 640  # of each server: none gets more than about a tenth over its share


class Ring:
    """
    Servers on a circle, as in ketama: each has many points, and a key belongs
    to the next. With one server more or less, only that one's keys move.
    """

    def __init__(self, names: Sequence[str]) -> None:
        """
        @param names: of the servers; their order does not matter.
        """
        points = sorted(
            (_number(blake2b(b"%d" % turn, key=_short(name), digest_size=8).digest()), place)
            for place, name in enumerate(names)
            for turn in range(_POINTS)
        )
        self._points = [point for point, _ in points]
        self._places = [place for _, place in points]
        self._places.append(self._places[0])  # past the last point the circle closes

    def of(self, key: bytes) -> int:
        """
        The place of a key's server among the names.

        @param key: a hash, so it is as good as one.
        """
        return self._places[bisect(self._points, _number(key[:8]))]


def _number(digits: bytes) -> int:
    return int.from_bytes(digits, "big")


def _short(name: str) -> bytes:
    return blake2b(name.encode()).digest()
