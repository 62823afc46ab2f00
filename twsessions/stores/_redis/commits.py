"""
Changes on their way to where the sessions are.

Those of one bucket are merged by one script. On a cluster they go in waves, of
which each has at most one change of a session.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from twisted.internet.defer import Deferred

from twsessions.core.delta import Change
from twsessions.core.ids import handleOf
from twsessions.core.record import Record
from twsessions.errors import (
    Conflict,
    IdCollision,
    SessionError,
    SessionGone,
    StoreError,
    StoreUnavailable,
)
from twsessions.stores._redis import scripts
from twsessions.stores._redis.buckets import Buckets
from twsessions.stores._redis.index import Index
from twsessions.stores._redis.moves import Moves
from twsessions.stores._redis.reading import Reading
from twsessions.stores._redis.record import decode, encode, read
from twsessions.stores._redis.repairs import Repairs
from twsessions.stores._redis.route import Ask
from twsessions.stores._redis.wire import explain

__all__ = ["Commits"]

_Outcome = Record | SessionError

_CHUNK: Final = 64  # changes in one script: about a millisecond of the server's time


class Commits:
    """
    Applies changes.
    """

    def __init__(
        self, buckets: Buckets, index: Index, moves: Moves, reading: Reading, repairs: Repairs
    ) -> None:
        self._buckets = buckets
        self._index = index
        self._moves = moves
        self._reading = reading
        self._repairs = repairs

    async def commit(self, changes: list[Change]) -> list[Any]:
        """
        See L{ISessionStore.commit}.
        """
        deadline = self._buckets.deadline()
        outcomes: list[Any] = [None] * len(changes)
        if self._buckets.areOne:
            await self._apply(changes, range(len(changes)), outcomes, deadline)
        else:
            broken: set[bytes] = set()
            for wave in _waves(changes):
                await self._applyWave(changes, wave, outcomes, broken, deadline)
        return self._buckets.unlessGone(outcomes)

    async def _apply(
        self, changes: list[Change], wanted: Iterable[int], outcomes: list[Any], deadline: float
    ) -> None:
        """
        Apply changes, none of which goes from one bucket to another, and fill
        in their outcomes.
        """
        buckets = self._buckets
        byBucket: dict[int, tuple[list[int], list[bytes]]] = {}
        for at in wanted:
            change = changes[at]
            try:
                packed = encode(change, not buckets.areOne)
            except (ValueError, TypeError, OverflowError) as error:
                # Not to be written in any store; the others must not suffer.
                outcomes[at] = StoreError(f"a change that cannot be stored: {type(error).__name__}")
            else:
                places, args = byBucket.setdefault(buckets.of(change.key), ([], []))
                places.append(at)
                args.append(packed)
        asks: list[tuple[Ask, list[int]]] = []
        for bucket, (places, args) in byBucket.items():
            for start in range(0, len(places), _CHUNK):
                end = start + _CHUNK
                ask = self._buckets.ending(bucket, scripts.COMMIT, *args[start:end])
                asks.append((ask, places[start:end]))
        await buckets.run([ask for ask, _ in asks], deadline, safe=True)
        for ask, places in asks:
            self._take(ask, changes, places, outcomes)

    def _take(
        self, ask: Ask, changes: list[Change], places: list[int], outcomes: list[Any]
    ) -> Sequence[bytes]:
        """
        Fill in outcomes from what the commit script says.

        @param places: of the changes that it was given.
        @return: what it says, one for each of them.
        """
        if isinstance(ask.reply, StoreUnavailable):
            for at in places:
                outcomes[at] = StoreUnavailable(*ask.reply.args)
            return []
        stamp, aside, stale = ask.reply[:3]
        said: list[bytes] = ask.reply[3:]
        now = float(stamp)
        for at, one in zip(places, said, strict=True):
            outcomes[at] = _outcome(changes[at], one, now)
        self._repairs.tidy(aside, stale)
        return said

    async def _applyWave(
        self,
        changes: list[Change],
        wave: list[int],
        outcomes: list[Any],
        broken: set[bytes],
        deadline: float,
    ) -> None:
        """
        Apply changes of different sessions on a cluster.

        @param broken: keys whose earlier changes have unknown outcomes: later
            ones must not come before them.
        """
        for at in wave:
            if not broken.isdisjoint(_keysOf(changes[at])):
                outcomes[at] = StoreUnavailable("the change before has an unknown outcome")
        wave = [at for at in wave if outcomes[at] is None]
        hinted = [at for at in wave if _isHinted(changes[at])]
        # A node that hangs with a hint takes no time from those that need none.
        others = sorted({*wave} - {*hinted})
        applied = Deferred.fromCoroutine(self._applyKnown(changes, others, outcomes, deadline))
        if hinted:
            await self._hint(changes, hinted, outcomes, deadline)
            hinted = [at for at in hinted if outcomes[at] is None]
            await self._applyKnown(changes, hinted, outcomes, deadline)
        await applied
        for at in wave:
            if isinstance(outcomes[at], StoreUnavailable):
                broken.update(_keysOf(changes[at]))

    async def _applyKnown(
        self, changes: list[Change], wanted: list[int], outcomes: list[Any], deadline: float
    ) -> None:
        """
        Apply changes of different sessions, about which all has been said in
        the indexes that has to be said before.
        """
        moving = [at for at in wanted if self._isMove(changes[at])]
        moves = [Deferred.fromCoroutine(self._move(changes[at], deadline)) for at in moving]
        await self._apply(changes, sorted({*wanted} - {*moving}), outcomes, deadline)
        for at, move in zip(moving, moves, strict=True):
            try:
                outcomes[at] = await move
            except StoreUnavailable as error:
                outcomes[at] = error

    async def _hint(
        self, changes: list[Change], hinted: list[int], outcomes: list[Any], deadline: float
    ) -> None:
        """
        Say in the indexes where sessions are going to be.
        """
        asks: list[tuple[int, Ask]] = []
        for at in hinted:
            change = changes[at]
            key = change.key if change.newKey is None else change.newKey
            if change.birth is not None:
                asks.append((at, self._index.hintHandle(handleOf(change.birth.seed), key)))
            if isinstance(change.principal, str):
                try:
                    asks.append((at, self._index.hint(change.principal, key)))
                except UnicodeError:
                    continue  # which is found out later as well
        if asks:
            await self._buckets.run([ask for _, ask in asks], deadline)
        for at, ask in asks:
            if isinstance(ask.reply, StoreUnavailable):
                outcomes[at] = StoreUnavailable(*ask.reply.args)

    def _isMove(self, change: Change) -> bool:
        return change.newKey not in (None, change.key) and change.end is None

    async def _move(self, change: Change, deadline: float) -> _Outcome:
        async def depart() -> _Outcome:
            outcomes: list[Any] = [None]
            try:
                packed = encode(change, True)
            except (ValueError, TypeError, OverflowError) as error:
                return StoreError(f"a change that cannot be stored: {type(error).__name__}")
            ask = self._buckets.ending(self._buckets.of(change.key), scripts.COMMIT, packed)
            await self._buckets.run((ask,), deadline, safe=True)
            said = self._take(ask, [change], [0], outcomes)
            outcome: _Outcome = outcomes[0]
            if isinstance(outcome, Record):
                return await self._moves.arrive(
                    change.key, change.token, outcome, said[0], deadline
                )
            return outcome

        async def isAlive() -> bool:
            (found,) = await self._reading.read([change.key], deadline)
            if isinstance(found, StoreUnavailable):
                raise found
            return found is not None

        return await self._moves.move(change, deadline, depart, isAlive)


def _outcome(change: Change, said: bytes, now: float) -> _Outcome:
    """
    What the commit script says of a change.
    """
    kind = said[:1]
    if kind == b"\1":
        if change.newKey is None:
            return read(change.key, said, now)  # which the script has checked, or written
        record = decode(change.newKey, said, now)
        assert record is not None
        return record
    if kind == b"G":
        return SessionGone("the session has ended")
    if kind == b"I":
        return IdCollision("a session exists under this key already")
    if kind == b"C":
        return Conflict("a value is not what it was to be")
    return explain(said[1:].decode("utf-8", "replace"))


def _isHinted(change: Change) -> bool:
    """
    Whether something is to be said of it in an index before it is applied.
    """
    return change.end is None and (change.birth is not None or isinstance(change.principal, str))


def _keysOf(change: Change) -> set[bytes]:
    return {change.key} if change.newKey is None else {change.key, change.newKey}


def _waves(changes: list[Change]) -> list[list[int]]:
    """
    Places of changes, in groups: in one group no two are of the same key, and
    of the same key the earlier is in an earlier group.
    """
    waves: list[list[int]] = []
    last: dict[bytes, int] = {}  # the wave that a key was in
    for at, change in enumerate(changes):
        keys = _keysOf(change)
        wave = 1 + max(last.get(key, -1) for key in keys)
        if wave == len(waves):
            waves.append([])
        waves[wave].append(at)
        last.update(dict.fromkeys(keys, wave))
    return waves
