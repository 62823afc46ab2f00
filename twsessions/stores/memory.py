"""
Sessions in this process's memory: the reference for all stores.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from math import inf
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from zope.interface import implementer

from twsessions.core.deadlines import DeadlineQueue
from twsessions.core.delta import Change, apply, isAlive
from twsessions.core.ids import handleOf
from twsessions.core.record import Record, fromBody, seedOf, toBody
from twsessions.errors import (
    IdCollision,
    NotSupported,
    SessionError,
    StoreError,
    StoreUnavailable,
)
from twsessions.interfaces import (
    EVENTS,
    EXCLUSIVE,
    ITERATE,
    LOCAL,
    PRINCIPALS,
    PUBLISH,
    Ended,
    ISessionStore,
    Message,
    Swept,
    Verdict,
)
from twsessions.stores._messages import Listeners, check

__all__ = ["MemoryStore"]


_WARM = 1024  # records kept as objects; the others are packed, in a quarter of the memory


class _Place:
    """
    Where one session is kept.

    @ivar kept: its record, or the bytes of it; L{None} once it has ended.
    @ivar deadline: the record's.
    """

    __slots__ = ("deadline", "kept", "key", "queued")

    def __init__(self, record: Record) -> None:
        self.put(record)
        self.queued: float | None = None

    def put(self, record: Record) -> None:
        """
        Replace the record.
        """
        self.key = record.key
        self.kept: Record | bytes | None = record
        self.deadline = record.deadline

    def record(self) -> Record | None:
        """
        The record, unpacked if need be.
        """
        kept = self.kept
        return fromBody(self.key, kept) if isinstance(kept, bytes) else kept

    def cool(self) -> None:
        """
        Pack the record: nothing has changed it for a while.
        """
        if isinstance(self.kept, Record):
            self.kept = toBody(self.kept)

    def seed(self) -> bytes:
        """
        The record's, without unpacking it.
        """
        kept = self.kept
        assert kept is not None
        return seedOf(kept) if isinstance(kept, bytes) else kept.seed


class _End:
    """
    An end that somebody wants to hear of.
    """

    __slots__ = ("attempts", "claim", "dead", "due", "ended", "reason", "record")

    def __init__(self, record: Record, reason: str, ended: float) -> None:
        self.record = record
        self.reason = reason
        self.ended = self.due = ended
        self.attempts = 0
        self.claim = b""
        self.dead = False


@implementer(ISessionStore)
class MemoryStore:
    """
    Keeps sessions in a dictionary. Every Deferred it returns has fired.
    """

    capabilities = frozenset((LOCAL, EVENTS, PRINCIPALS, EXCLUSIVE, PUBLISH, ITERATE))

    def __init__(self, now: Callable[[], float]) -> None:
        """
        @param now: the clock, such as a reactor's C{seconds}.
        """
        self._now = now
        self._places: dict[bytes, _Place] = {}
        self._warm: OrderedDict[_Place, None] = OrderedDict()
        self._due: DeadlineQueue[_Place] = DeadlineQueue(_deadlineOf)
        self._byPrincipal: dict[str, dict[bytes, None]] = {}
        self._ends: dict[bytes, _End] = {}
        self._fresh: deque[bytes] = deque()  # ends that were never claimed, the oldest first
        self._claimed: dict[bytes, _End] = {}  # the others that are to be heard
        self._claims = 0
        self._listening = False
        self._leases: dict[bytes, tuple[bytes, float]] = {}
        self._listeners = Listeners()
        self._isOpen = True

    def load(self, keys: Sequence[bytes]) -> Deferred[list[Record | None]]:
        """
        See L{ISessionStore.load}.
        """
        if not self._isOpen:
            return _closed()
        now = self._now()
        found: list[Record | None] = []
        for key in keys:
            place = self._places.get(key)
            record = place.record() if place is not None and now < place.deadline else None
            found.append(None if record is None else record.seenAt(now))
        return succeed(found)

    def commit(self, changes: Sequence[Change]) -> Deferred[list[Record | SessionError]]:
        """
        See L{ISessionStore.commit}.
        """
        if not self._isOpen:
            return _closed()
        now = self._now()
        outcomes: list[Record | SessionError] = []
        for change in changes:
            try:
                outcomes.append(self._commit(change, now))
            except SessionError as error:
                outcomes.append(error)
            except UnicodeEncodeError as error:
                outcomes.append(
                    StoreError(f"a change that cannot be stored: {type(error).__name__}")
                )
        return succeed(outcomes)

    def _commit(self, change: Change, now: float) -> Record:
        places, key = self._places, change.key
        place = places.get(key)
        there = None
        if change.newKey is not None and change.newKey != key:
            there = places.get(change.newKey)
            moved = None if there is None else there.record()
            if moved is not None and moved.token == change.token:
                return moved.seenAt(now)  # this rotation has been done
        before = None if place is None else place.record()
        record = apply(before, change, now)
        if there is not None:
            raise IdCollision("a session exists under the new key already")
        if change.end is not None:
            if place is not None and before is not None:
                self._remove(place, before)
            if self._listening:
                self._keepEnd(record, change.end, now)
            return record
        if isinstance(change.principal, str):
            change.principal.encode()  # now, and not when the record is packed
        if place is None:
            place = places[record.key] = _Place(record)
        else:
            place.put(record)
            if record.key != key:
                del places[key]
                places[record.key] = place
        if before is None or before.principal is not None or record.principal is not None:
            self._index(before, record)
        self._due.add(place)
        warm = self._warm
        warm[place] = None
        warm.move_to_end(place)
        if len(warm) > _WARM:
            warm.popitem(last=False)[0].cool()
        return record

    def _index(self, before: Record | None, after: Record | None) -> None:
        if before is not None and before.principal is not None:
            keys = self._byPrincipal.get(before.principal)
            if keys is not None:
                keys.pop(before.key, None)
                if not keys:
                    del self._byPrincipal[before.principal]
        if after is not None and after.principal is not None:
            self._byPrincipal.setdefault(after.principal, {})[after.key] = None

    def _remove(self, place: _Place, record: Record) -> None:
        self._index(record, None)
        del self._places[place.key]
        self._warm.pop(place, None)
        self._due.forget(place)
        place.kept = None

    def _keepEnd(self, record: Record, reason: str, ended: float) -> None:
        handle = record.handle
        if handle not in self._ends:  # else it was copied here again, and ends again
            self._ends[handle] = _End(record, reason, ended)
            self._fresh.append(handle)

    def sweep(self, limit: int) -> Deferred[Swept]:
        """
        See L{ISessionStore.sweep}.
        """
        if not self._isOpen:
            return _closed()
        now = self._now()
        ended = 0
        for place in self._due.due(now, limit):
            record = place.record()
            if record is not None:
                self._remove(place, record)
                if self._listening:
                    self._keepEnd(record, record.reason, record.deadline)
                ended += 1
        following = self._due.next(now)
        more = following is not None and following <= now
        wait = None if following is None else max(0.0, following - now)
        return succeed(Swept(ended, more, wait))

    def listen(self) -> Deferred[None]:
        """
        See L{ISessionStore.listen}.
        """
        if not self._isOpen:
            return _closed()
        self._listening = True
        return succeed(None)

    def claim(self, limit: int, lease: float) -> Deferred[list[Ended]]:
        """
        See L{ISessionStore.claim}.
        """
        if not self._isOpen:
            return _closed()
        now = self._now()
        due: list[bytes] = []
        if self._claimed:  # few
            waiting = [(end.due, id_) for id_, end in self._claimed.items() if end.due <= now]
            due = [handle for _, handle in sorted(waiting)[:limit]]
        while len(due) < limit and self._fresh:
            due.append(self._fresh.popleft())
        claimed = []
        for handle in due:
            end = self._claimed[handle] = self._ends[handle]
            self._claims += 1
            end.claim = b"%d" % self._claims
            end.attempts += 1
            end.due = now + lease
            claimed.append(
                Ended(handle, end.record, end.reason, end.ended, end.attempts, end.claim)
            )
        return succeed(claimed)

    def settle(self, verdicts: Sequence[Verdict]) -> Deferred[list[bool]]:
        """
        See L{ISessionStore.settle}.
        """
        if not self._isOpen:
            return _closed()
        now = self._now()
        held = []
        for verdict in verdicts:
            end = self._ends.get(verdict.id)
            if end is None or end.claim != verdict.claim or end.dead:
                held.append(False)
                continue
            held.append(True)
            if verdict.dead:
                end.dead = True
                self._claimed.pop(verdict.id, None)
            elif verdict.retryIn is None:
                del self._ends[verdict.id]
                self._claimed.pop(verdict.id, None)
            else:
                end.claim = b""
                end.due = now + verdict.retryIn
        return succeed(held)

    def sessionsOf(self, principal: str) -> Deferred[list[Record]]:
        """
        See L{ISessionStore.sessionsOf}.
        """
        if not self._isOpen:
            return _closed()
        now = self._now()
        keys = self._byPrincipal.get(principal, ())
        records = [self._places[key].record() for key in keys]
        living = [r.seenAt(now) for r in records if r is not None and isAlive(r, now)]
        return succeed(sorted(living, key=lambda record: record.created))

    def withHandle(self, handle: bytes) -> Deferred[Record | None]:
        """
        See L{ISessionStore.withHandle}. Looks at all sessions: an index would
        cost each of them more than this costs the few who ask.
        """
        if not self._isOpen:
            return _closed()
        now = self._now()
        for place in self._places.values():
            if now < place.deadline and handleOf(place.seed()) == handle:
                record = place.record()
                return succeed(None if record is None else record.seenAt(now))
        return succeed(None)

    def acquire(self, name: bytes, holder: bytes, lease: float) -> Deferred[bool]:
        """
        See L{ISessionStore.acquire}.
        """
        if not self._isOpen:
            return _closed()
        now = self._now()
        held, until = self._leases.get(name, (holder, -inf))
        if held != holder and now < until:
            return succeed(False)
        self._leases[name] = holder, now + lease
        return succeed(True)

    def release(self, name: bytes, holder: bytes) -> Deferred[None]:
        """
        See L{ISessionStore.release}.
        """
        if not self._isOpen:
            return _closed()
        if self._leases.get(name, (b"", 0.0))[0] == holder:
            del self._leases[name]
        return succeed(None)

    def watch(self, heard: Callable[[Sequence[bytes] | None], None]) -> Deferred[None]:
        """
        See L{ISessionStore.watch}: there is no other process to hear of.
        """
        return fail(NotSupported("the memory store gives no hints"))

    def publish(self, messages: Sequence[Message]) -> Deferred[list[SessionError | None]]:
        """
        See L{ISessionStore.publish}.
        """
        if not self._isOpen:
            return _closed()
        outcomes: list[SessionError | None] = []
        for message in messages:
            try:
                check(message)
            except SessionError as error:
                outcomes.append(error)
            else:
                outcomes.append(None)
                self._listeners.tell(message)
        return succeed(outcomes)

    def subscribe(self, heard: Callable[[Message | None], object]) -> Deferred[None]:
        """
        See L{ISessionStore.subscribe}.
        """
        if not self._isOpen:
            return _closed()
        self._listeners.add(heard)
        return succeed(None)

    def iterate(self, after: bytes | None, limit: int) -> Deferred[list[Record]]:
        """
        See L{ISessionStore.iterate}.
        """
        if not self._isOpen:
            return _closed()
        now = self._now()
        keys = sorted(self._places)
        found: list[Record] = []
        for key in keys[0 if after is None else bisect_right(keys, after) :]:
            if len(found) == limit:
                break
            place = self._places[key]
            record = place.record() if now < place.deadline else None
            if record is not None:
                found.append(record.seenAt(now))
        return succeed(found)

    def close(self) -> Deferred[None]:
        """
        See L{ISessionStore.close}.
        """
        self._isOpen = False
        self._listeners.clear()
        return succeed(None)


def _deadlineOf(place: _Place) -> float | None:
    return None if place.kept is None else place.deadline


def _closed() -> Deferred[Any]:
    return fail(StoreUnavailable("the store has been closed"))
