"""
Sessions as they are stored: under their keys, of a principal, with a handle, in
order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from twsessions.core.record import Record
from twsessions.errors import CorruptRecord, NewerFormat, StoreUnavailable
from twsessions.stores._redis.buckets import Buckets
from twsessions.stores._redis.index import Index
from twsessions.stores._redis.moves import Moves
from twsessions.stores._redis.record import decode, decodeAll, stateBetween, timeOf
from twsessions.stores._redis.repairs import Repairs
from twsessions.stores._redis.route import Ask
from twsessions.stores._redis.underway import Underway
from twsessions.stores._redis.wire import command

__all__ = ["Reading"]

_TIME: Final = command("TIME")
_PAGES: Final = 32  # buckets that are looked at together for a page of sessions


class Reading:
    """
    Finds sessions.
    """

    def __init__(
        self, buckets: Buckets, index: Index, moves: Moves, repairs: Repairs, underway: Underway
    ) -> None:
        self._buckets = buckets
        self._index = index
        self._moves = moves
        self._repairs = repairs
        self._underway = underway

    async def load(self, keys: list[bytes]) -> list[Any]:
        """
        See L{ISessionStore.load}.
        """
        return self._buckets.unlessGone(list(await self.read(keys, self._buckets.deadline())))

    async def read(
        self, keys: list[bytes], deadline: float, between: list[tuple[bytes, bytes]] | None = None
    ) -> Sequence[Record | None | StoreUnavailable]:
        """
        What is under each key.

        @param between: is given what is no session because it is on its way
            from one bucket to another.
        """
        found: dict[bytes, Record | None | StoreUnavailable] = {}
        asks = self._gets(keys)
        await self._buckets.run([ask for ask, _ in asks], deadline, head=_TIME)
        skew = self._buckets.skew()
        odd: list[tuple[bytes, bytes]] = []
        for ask, asked in asks:
            if isinstance(ask.reply, StoreUnavailable):
                for key in asked:
                    found[key] = StoreUnavailable(*ask.reply.args)
                continue
            records = decodeAll(asked, ask.reply, timeOf(ask.head, skew), odd)
            if self._buckets.areOne:
                self._lookInto(odd, between)
                return records
            found.update(zip(asked, records, strict=True))
        self._lookInto(odd, between)
        return [found.get(key) for key in keys]

    def _gets(self, keys: list[bytes]) -> list[tuple[Ask, list[bytes]]]:
        buckets = self._buckets
        if not keys:
            return []
        if buckets.areOne:
            start = buckets.name(0, b"s:")
            return [(Ask(0, command(b"MGET", *[start + key for key in keys])), keys)]
        # One at a time: where a slot is just being moved to another node, some
        # may be there and some here.
        gets = []
        for key in dict.fromkeys(keys):
            bucket = buckets.of(key)
            get = command(b"MGET", buckets.name(bucket, b"s:" + key))
            gets.append((Ask(bucket, get), [key]))
        return gets

    def _lookInto(
        self, odd: list[tuple[bytes, bytes]], between: list[tuple[bytes, bytes]] | None
    ) -> None:
        """
        Deal with what is stored where sessions are and is none.
        """
        for key, value in odd:
            try:
                decode(key, value, 0.0)
            except CorruptRecord:
                self._repairs.putAside(key)
            except NewerFormat:
                pass
            else:
                if between is not None:
                    between.append((key, value))

    async def sessionsOf(self, principal: str) -> list[Record]:
        """
        See L{ISessionStore.sessionsOf}.
        """
        deadline = self._buckets.deadline()
        found: dict[bytes, Record] = {}
        seen: set[bytes] = set()
        helped: set[bytes] = set()
        try:
            keys = await self._index.keysOf(principal, deadline)
        except UnicodeError:
            return []
        # One that is rotated meanwhile is under its new key the next time.
        while new := [key for key in keys if key not in seen]:
            between: list[tuple[bytes, bytes]] = []
            records = await self.read(new, deadline, between)
            nowhere = []
            for key, record in zip(new, records, strict=True):
                if isinstance(record, StoreUnavailable):
                    raise record
                if record is not None and record.principal == principal:
                    found[record.handle] = record
                else:
                    nowhere.append(key)
            seen.update(new)
            for key, value in between:
                state = stateBetween(value)
                if state is not None:
                    nowhere.remove(key)
                    await self._moves.goOn(key, value, isOld=False)
                    to = state.get("to", key)
                    if to not in helped:
                        helped.add(to)
                        seen.discard(to)
            if nowhere:
                self._underway.later(self._index.tidy(principal, nowhere))
            keys = await self._index.keysOf(principal, deadline)
        return sorted(found.values(), key=lambda record: record.created)

    async def withHandle(self, handle: bytes) -> Record | None:
        """
        See L{ISessionStore.withHandle}.
        """
        deadline = self._buckets.deadline()
        last = None
        helped: set[bytes] = set()
        while (key := await self._index.keyOf(handle, deadline)) not in (None, last):
            assert key is not None
            between: list[tuple[bytes, bytes]] = []
            (record,) = await self.read([key], deadline, between)
            if isinstance(record, StoreUnavailable):
                raise record
            if record is not None and record.handle == handle:
                return record
            last = key  # rotated meanwhile, or gone
            if between and key not in helped:
                helped.add(key)
                last = None
                await self._moves.goOn(*between[0], isOld=False)
        return None

    async def iterate(self, after: bytes | None, limit: int) -> list[Record]:
        """
        See L{ISessionStore.iterate}.
        """
        deadline = self._buckets.deadline()
        first = 0 if after is None else self._buckets.of(after)
        while first < self._buckets.count:
            pages = range(first, min(first + _PAGES, self._buckets.count))
            keys = await self._keys(pages, after, limit, deadline)
            records = await self.read(keys, deadline)
            for record in records:
                if isinstance(record, StoreUnavailable):
                    raise record
            living = [record for record in records if isinstance(record, Record)]
            if living:
                return living
            if keys:
                after = keys[-1]  # a whole page that cannot be read is not the end
                first = self._buckets.of(after)
            else:
                first = pages.stop
        return []

    async def _keys(
        self, pages: Sequence[int], after: bytes | None, limit: int, deadline: float
    ) -> list[bytes]:
        start = b"-" if after is None else b"(" + after
        buckets = self._buckets
        asks = [
            Ask(page, command("ZRANGEBYLEX", buckets.name(page, b"keys"), start, "+",
                              "LIMIT", 0, limit))
            for page in pages
        ]  # fmt: skip
        replies = await buckets.all(asks, deadline)
        found: list[bytes] = [key for reply in replies for key in reply]
        return found[:limit]
