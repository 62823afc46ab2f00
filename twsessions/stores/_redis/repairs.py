"""
What is found not to be as it should, and put in order in passing.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

from twisted.logger import Logger

from twsessions.stores._redis import scripts
from twsessions.stores._redis.buckets import Buckets
from twsessions.stores._redis.index import Index
from twsessions.stores._redis.underway import Underway

__all__ = ["Repairs"]


class Repairs:
    """
    Corrupt sessions go aside, and entries of the indexes that lead nowhere go.
    """

    _log = Logger()

    def __init__(self, buckets: Buckets, index: Index, underway: Underway) -> None:
        self._buckets = buckets
        self._index = index
        self._underway = underway

    def tidy(self, aside: bytes, stale: Sequence[bytes]) -> None:
        """
        Deal with what a script has met.

        @param aside: the keys of the corrupt sessions that it has put aside, one
            after the other.
        @param stale: see L{Index.forget}.
        """
        if aside:
            self._report(aside)
        if stale:
            self._underway.later(self._index.forget(stale))

    def putAside(self, key: bytes) -> None:
        """
        What is stored under this key was found corrupt; it goes if it still is.
        """
        self._underway.later(self._putAside(key))

    async def _putAside(self, key: bytes) -> None:
        ask = self._buckets.script(self._buckets.of(key), scripts.ASIDE, key)
        _, aside = await self._buckets.ask(ask, self._buckets.deadline())
        self._report(aside)

    def _report(self, aside: bytes) -> None:
        for start in range(0, len(aside), 32):
            self._log.error(
                "The stored session {session} is corrupt; it was renamed, from s:... to q:...,"
                " and its user gets a new one",
                session=blake2b(aside[start : start + 32], digest_size=4).hexdigest(),
            )
