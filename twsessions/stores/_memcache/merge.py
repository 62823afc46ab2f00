"""
How changes are made to items that others change too: compare and set, again if
need be. Generators that say what to ask and are given replies; no I/O.

An item is a packed record, or the token of the change that ended it or moved it
away: the tombstone stays for ten minutes, so that not even a late duplicate of
the session's birth brings it back.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from math import inf
from typing import Any, Final

from twsessions.core.delta import Change, apply
from twsessions.core.record import Record, pack, unpack
from twsessions.errors import (
    CorruptRecord,
    IdCollision,
    NewerFormat,
    SessionError,
    SessionGone,
    SessionTooLarge,
    StoreError,
    StoreUnavailable,
)
from twsessions.stores._memcache.ask import ADD, CAS, DELETE, GETS, STORED, Ask
from twsessions.stores._memcache.wire import Wire

__all__ = ["Item", "Merge", "Steps", "isMove"]

Steps = Generator[Sequence[Ask], None, None]
"""Yields commands that may be sent together; goes on when they have replies."""

_Outcome = Record | SessionError

_GRAVE: Final = b"\0"  # what a tombstone begins with; no record does
_MOURNING: Final = 600.0  # seconds a tombstone stays
_SLACK: Final = 60.0  # seconds an item stays after its deadline, which is what counts
_TRIES: Final = 1000  # of one change against other writers; the deadline mostly comes first


class Item:
    """
    What is under a key.

    @ivar record: the session, which may have fallen due.
    @ivar grave: the token of the change that ended it, if it has ended.
    @ivar isTaken: whether there is anything that is not to be overwritten.
    @ivar corrupt: what is no record, or was changed by an accident.
    @ivar size: bytes.
    """

    __slots__ = ("cas", "corrupt", "grave", "isTaken", "key", "record", "size", "wire")

    def __init__(self, key: bytes, reply: tuple[bytes, bytes] | None, wire: Wire | None) -> None:
        self.key = key
        self.wire = wire
        self.record: Record | None = None
        self.grave: bytes | None = None
        self.corrupt: bytes | None = None
        self.isTaken = False
        self.cas, self.size = b"", 0
        if reply is None:
            return
        self.cas, value = reply
        self.size = len(value)
        if value[:1] == _GRAVE:
            self.grave = value[1:]
            self.isTaken = True
            return
        try:
            self.record = unpack(key, value)
        except NewerFormat:
            self.isTaken = True
        except CorruptRecord:
            self.corrupt = value
            self.isTaken = True

    def put(self, value: bytes, ttl: float | None) -> Ask:
        """
        To store something, if what is there is still the same.
        """
        if self.cas:
            return Ask(CAS, self.key, value, ttl, self.cas, self.wire)
        return Ask(ADD, self.key, value, ttl)

    def bury(self, token: bytes) -> Ask:
        """
        To end it, if it is still the same.
        """
        return self.put(_GRAVE + token, _MOURNING)


class Merge:
    """
    The changes of one commit.

    @ivar outcomes: of each, when all L{steps} are done.
    @ivar corrupt: items that have to be put aside.
    """

    def __init__(
        self,
        changes: Sequence[Change],
        now: Callable[[], float],
        limit: Callable[[bytes], int | None],
        seen: dict[bytes, Item],
    ) -> None:
        """
        @param limit: the bytes of the largest value that a key's server takes,
            if that is known.
        @param seen: what was read before. That it is out of date is noticed,
            and costs a round trip more.
        """
        self.outcomes: list[Any] = [None] * len(changes)
        self.corrupt: list[Item] = []
        self._changes = changes
        self._now = now
        self._limit = limit
        self._seen = seen

    def steps(self) -> list[Steps]:
        """
        What to do for each session; these do not depend on each other.
        """
        if not any(map(isMove, self._changes)):
            groups: dict[bytes, list[int]] = {}
            for at, change in enumerate(self._changes):
                groups.setdefault(change.key, []).append(at)
            return [self._settle(key, places) for key, places in groups.items()]
        return [self._one_after_the_other(places) for places in self._entangled()]

    def _entangled(self) -> Iterable[list[int]]:
        """
        The places of changes, together if they have a key in common.
        """
        groups: dict[bytes, list[int]] = {}
        for at, change in enumerate(self._changes):
            group = groups.setdefault(change.key, [])
            if change.newKey is not None:
                other = groups.setdefault(change.newKey, [])
                if other is not group:
                    group[:] = sorted(group + other)
                    groups.update({key: group for key, one in groups.items() if one is other})
            group.append(at)
        return {id(group): group for group in groups.values()}.values()

    def _one_after_the_other(self, places: list[int]) -> Steps:
        for at in places:
            change = self._changes[at]
            if isMove(change):
                yield from self._move(at, change)
            else:
                yield from self._settle(change.key, [at])

    # In place

    def _settle(self, key: bytes, places: list[int]) -> Steps:
        """
        Changes of one session, all in one step.
        """
        item, isFresh = self._seen.pop(key, None), False
        isBirth = self._changes[places[0]].birth is not None
        if item is None and isBirth and self._limit(key) is not None:
            item = Item(key, None, None)  # if there is something, adding is refused
        for _ in range(_TRIES):
            if item is None:
                ask = Ask(GETS, key)
                yield (ask,)
                if isinstance(ask.reply, StoreUnavailable):
                    self._fail(places, ask.reply)
                    return
                item, isFresh = self._read(ask), True
            outcomes, put = self._fold(item, places)
            isDone = isFresh
            if put is not None:
                yield (put,)
                if isinstance(put.reply, StoreUnavailable):
                    self._fail(places, put.reply)
                    return
                isDone = put.reply == STORED
            if isDone:
                for at, outcome in zip(places, outcomes, strict=True):
                    self.outcomes[at] = outcome
                return
            item = None
        self._fail(places, StoreUnavailable("others keep changing the session"))

    def _fold(self, item: Item, places: list[int]) -> tuple[list[_Outcome], Ask | None]:
        """
        What becomes of each change, and what has to be stored for that.
        """
        now, record, isTaken = self._now(), item.record, item.isTaken
        outcomes: list[_Outcome] = []
        put: Ask | None = None
        for at in places:
            change = self._changes[at]
            try:
                if isTaken:
                    raise _taken(change)
                after = apply(record, change, now)
                if change.end is not None:
                    record, isTaken = None, True
                    put = item.bury(change.token)
                elif record is None or change.token != record.token:
                    put = self._store(item, after, now)
                    record = after
                outcomes.append(after)
            except SessionError as error:
                outcomes.append(error)
        return outcomes, put

    # From key to key

    def _move(self, at: int, change: Change) -> Steps:
        """
        A rotation. The record is first added under the new key, which nobody
        has been told of yet; what decides is that the old item, unchanged
        since, becomes a tombstone. If instead it has ended, the new one goes.
        """
        assert change.newKey is not None
        self._seen.pop(change.key, None)
        for _ in range(_TRIES):
            asks = Ask(GETS, change.key), Ask(GETS, change.newKey)
            yield asks
            if (error := _failure(asks)) is not None:
                self.outcomes[at] = error
                return
            old, new = (self._read(ask) for ask in asks)
            now = self._now()
            isOurs = new.record is not None and new.record.token == change.token
            if isOurs and old.grave == change.token:
                assert new.record is not None
                self.outcomes[at] = new.record.seenAt(now)  # it has been done
                return
            try:
                if old.isTaken:
                    raise _taken(change)
                after = apply(old.record, change, now)
                if not isOurs and (new.isTaken or new.record is not None):
                    raise IdCollision("a session exists under the new key already")
                put = self._store(new, after, now)
            except SessionError as error:
                if isOurs:
                    forget = Ask(DELETE, change.newKey)
                    yield (forget,)
                    if isinstance(forget.reply, StoreUnavailable):
                        error = forget.reply
                self.outcomes[at] = error
                return
            for ask in (put, old.bury(change.token)):
                yield (ask,)
                if isinstance(ask.reply, StoreUnavailable):
                    # If that was the second it may have been done: the new
                    # item stays, or the data might be lost.
                    self.outcomes[at] = ask.reply
                    return
                if ask.reply != STORED:
                    break
            else:
                self.outcomes[at] = after
                return
        self.outcomes[at] = StoreUnavailable("others keep changing the session")

    # Both

    def _read(self, ask: Ask) -> Item:
        item = Item(ask.key, ask.reply, ask.wire)
        if item.corrupt is not None:
            self.corrupt.append(item)
        return item

    def _store(self, item: Item, record: Record, now: float) -> Ask:
        """
        @raise SessionTooLarge: the server would not take it.
        @raise StoreError: no store would.
        """
        try:
            value = pack(record)
        except (ValueError, TypeError, OverflowError) as error:
            raise StoreError(f"a change that cannot be stored: {type(error).__name__}") from error
        limit = self._limit(item.key)
        if limit is not None and len(value) > limit:
            sizes = [(name[1:], len(field)) for name, field in record.fields.items()]
            biggest = sorted(sizes, key=lambda pair: pair[1], reverse=True)[:3]
            raise SessionTooLarge(len(value), limit, biggest)
        deadline = record.deadline
        return item.put(value, None if deadline == inf else max(0.0, deadline - now) + _SLACK)

    def _fail(self, places: Iterable[int], error: StoreUnavailable) -> None:
        for at in places:
            self.outcomes[at] = StoreUnavailable(*error.args)


def isMove(change: Change) -> bool:
    """
    Whether it takes a session to another key.
    """
    return change.newKey not in (None, change.key) and change.end is None


def _taken(change: Change) -> SessionError:
    """
    What a change is told where something is that is no living session.
    """
    if change.birth is not None:
        return IdCollision("a session has been under this key")
    return SessionGone("the session has ended")


def _failure(asks: Iterable[Ask]) -> StoreUnavailable | None:
    for ask in asks:
        if isinstance(ask.reply, StoreUnavailable):
            return ask.reply
    return None
