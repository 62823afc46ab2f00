"""
Sessions by principal and by handle.

On one server the scripts keep the indexes. On a cluster an entry is in a
bucket of its own and only hints: it is made before what it leads to.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from twsessions.stores._redis import scripts
from twsessions.stores._redis.buckets import Buckets
from twsessions.stores._redis.route import Ask
from twsessions.stores._redis.wire import command

__all__ = ["Index"]


class Index:
    """
    The indexes.
    """

    def __init__(self, buckets: Buckets) -> None:
        self._buckets = buckets

    def hint(self, principal: str, key: bytes, *old: bytes) -> Ask:
        """
        To say that a session may be of a principal.

        @param old: the key that it had before, which leads there no more.
        """
        name = principal.encode()
        bucket = self._buckets.ofName(name)
        return self._buckets.script(bucket, scripts.HINT, name, key, *old)

    def hintHandle(self, handle: bytes, key: bytes) -> Ask:
        """
        To say that a session may have a handle.
        """
        bucket = self._buckets.of(handle)
        return Ask(bucket, command("HSET", self._buckets.name(bucket, b"handles"), handle, key))

    async def keysOf(self, principal: str, deadline: float) -> list[bytes]:
        """
        What may be the keys of a principal's sessions.
        """
        name = principal.encode()
        bucket = self._buckets.ofName(name)
        place = self._buckets.name(bucket, b"p:" + name)
        found: list[bytes] = await self._buckets.ask(
            Ask(bucket, command("ZRANGE", place, 0, -1)), deadline
        )
        return found

    async def keyOf(self, handle: bytes, deadline: float) -> bytes | None:
        """
        What may be the key of the session with a handle.
        """
        bucket = self._buckets.of(handle)
        place = self._buckets.name(bucket, b"handles")
        found: bytes | None = await self._buckets.ask(
            Ask(bucket, command("HGET", place, handle)), deadline
        )
        return found

    async def tidy(self, principal: str, keys: Sequence[bytes]) -> None:
        """
        Remove what leads nowhere, unless it is young: then what it leads to
        may be on its way.
        """
        name = principal.encode()
        ask = self._buckets.script(self._buckets.ofName(name), scripts.UNHINT, name, *keys)
        await self._buckets.ask(ask, self._buckets.deadline())

    async def forget(self, stale: Iterable[bytes]) -> None:
        """
        Remove what leads to dead keys.

        @param stale: a key, its principal and its handle in turn, again and
            again; either of the latter may be empty.
        """
        asks = []
        buckets = self._buckets
        values = iter(stale)
        for key, principal, handle in zip(values, values, values, strict=True):
            if principal:
                bucket = buckets.ofName(principal)
                place = buckets.name(bucket, b"p:" + principal)
                asks.append(Ask(bucket, command("ZREM", place, key)))
            if handle:
                bucket = buckets.of(handle)
                asks.append(Ask(bucket, command("HDEL", buckets.name(bucket, b"handles"), handle)))
        if asks:
            await buckets.run(asks, buckets.deadline())
