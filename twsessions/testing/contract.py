"""
What every session store must do: one suite for all of them.

Each test is a coroutine function with plain asserts, so any runner will do. A
subclass says how to make its store, and with C{run} how a coroutine is run::

    class TestMyStore(StoreContractMixin, run=pytest_twisted.ensureDeferred):
        async def makeStore(self):
            return MyStore(...)

On a L{twisted.trial.unittest.TestCase} C{run} is not needed.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any
from unittest import SkipTest

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import Clock
from twisted.logger import capturedLogs

from twsessions.core.delta import Birth, Change
from twsessions.core.ids import keyOf, makeUid
from twsessions.core.record import Record
from twsessions.errors import (
    Conflict,
    IdCollision,
    NotSupported,
    SessionError,
    SessionGone,
    StoreError,
    StoreUnavailable,
)
from twsessions.interfaces import (
    EVENTS,
    EXCLUSIVE,
    HINTS,
    ITERATE,
    LOCAL,
    MESSAGE_LIMIT,
    PRINCIPALS,
    PUBLISH,
    Ended,
    ISessionStore,
    Message,
    Verdict,
)

__all__ = ["StoreContractMixin", "change", "create", "newKey"]


def newKey() -> bytes:
    """
    A key that no store knows.
    """
    return keyOf(makeUid(os.urandom))


def change(key: bytes, **what: Any) -> Change:
    """
    A L{Change}, with a token of its own.
    """
    return Change(key, os.urandom(16), **what)


def create(
    key: bytes, idle: float | None = 60.0, absolute: float | None = None, **what: Any
) -> Change:
    """
    A L{Change} that makes a session.
    """
    birth = Birth(os.urandom(16), absolute=absolute)
    return change(key, birth=birth, idle=idle, **what)


class StoreContractMixin:
    """
    The contract. All times are on a L{Clock} unless C{advance} says otherwise.

    @cvar isSpread: whether the sessions are on several servers, each with an
        order and a pace of its own.
    """

    isSpread = False
    clock: Clock

    def __init_subclass__(
        cls, run: Callable[[Callable[..., Awaitable[None]]], Any] | None = None, **kwargs: Any
    ) -> None:
        super().__init_subclass__(**kwargs)
        # Of these only: not all that a TestCase says it has can be looked at.
        for name in [name for name in dir(cls) if name.startswith("test_")]:
            test = getattr(cls, name)
            if inspect.iscoroutinefunction(test):
                setattr(cls, name, _wrapped(test, run))

    # -- for subclasses -------------------------------------------------------

    async def makeStore(self) -> Any:
        """
        A store on an empty place, whose time is C{self.clock}'s.
        """
        raise NotImplementedError("a subclass says how to make its store")

    async def reopen(self, store: Any) -> Any:
        """
        Another store object on the same place, as another process has it; or
        L{None}, if there cannot be one.
        """
        return None

    async def advance(self, seconds: float) -> None:
        """
        Let time pass for the store.
        """
        self.clock.advance(seconds)

    async def rawBytes(self, store: Any) -> bytes | None:
        """
        All that is stored, to be searched for what must not be; or L{None}.
        """
        return None

    async def corrupt(self, store: Any, key: bytes, mutate: Callable[[bytes], bytes]) -> bool:
        """
        Change the stored bytes of a record behind the store's back.

        @return: L{False} if that cannot be done here.
        """
        return False

    # -- helpers --------------------------------------------------------------

    def _needs(self, *capabilities: str) -> None:
        for capability in capabilities:
            if capability not in self.store.capabilities:
                raise SkipTest(f"the store declares no {capability!r}")

    async def one(self, change: Change) -> Record:
        """
        Commit one change; raise what refused it.
        """
        outcome: Record | SessionError = (await self.store.commit([change]))[0]
        if isinstance(outcome, SessionError):
            raise outcome
        return outcome

    async def refused(self, change: Change, error: type[SessionError]) -> None:
        """
        Commit one change, which must be refused.
        """
        outcome = (await self.store.commit([change]))[0]
        assert isinstance(outcome, error), f"{outcome!r} instead of {error.__name__}"

    async def fields(self, key: bytes) -> dict[str, bytes] | None:
        """
        The fields under a key, or L{None}.
        """
        record = (await self.store.load([key]))[0]
        return None if record is None else dict(record.fields)

    async def isAlive(self, key: bytes) -> bool:
        """
        Whether the key loads.
        """
        return (await self.store.load([key]))[0] is not None

    async def made(self, **what: Any) -> bytes:
        """
        The key of a new session.
        """
        key = newKey()
        await self.one(create(key, **what))
        return key

    async def sweepAll(self) -> int:
        """
        Sweep until there is nothing due.
        """
        ended: int = 0
        for _ in range(1000):
            swept = await self.store.sweep(10)
            ended += swept.ended
            if not swept.more:
                return ended
        raise AssertionError("the sweep does not come to an end")

    # -- creating and loading -------------------------------------------------

    async def test_providesTheInterface(self) -> None:
        from zope.interface.verify import verifyObject

        verifyObject(ISessionStore, self.store)

    async def test_createAndLoad(self) -> None:
        key = newKey()
        made = await self.one(
            create(key, absolute=600.0, set={"da": b"1"}, principal="ann", uses=2)
        )
        loaded = (await self.store.load([key]))[0]
        for record in (made, loaded):
            assert record.key == key
            assert record.fields == {"da": b"1"}
            assert (record.idle, record.absolute, record.principal) == (60.0, 600.0, "ann")
            assert (record.uses, record.epoch, record.secure) == (2, 0, False)
        assert loaded.version == made.version == 1

    async def test_createInsertOnly(self) -> None:
        key = await self.made(set={"da": b"1"})
        await self.refused(create(key, set={"da": b"2"}), IdCollision)
        assert await self.fields(key) == {"da": b"1"}

    async def test_createSetsTheDeadlineAtOnce(self) -> None:
        key = await self.made(idle=10.0)
        await self.advance(10.0)
        assert not await self.isAlive(key)

    async def test_birthLiesBack(self) -> None:
        key = newKey()
        change_ = create(key, idle=10.0)
        assert change_.birth is not None
        change_.birth.ago = 4.0
        await self.one(change_)
        await self.advance(6.0)
        assert not await self.isAlive(key)

    async def test_birthOfAnOlderSession(self) -> None:
        """
        One that comes from another store.
        """
        new = create(newKey(), uses=7, usedAgo=3.0, principal="ann", ownIdle=True)
        assert new.birth is not None
        new.birth.ago, new.birth.epoch = 40.0, 2
        record = await self.one(new)
        assert (record.uses, record.epoch, record.principal, record.ownIdle) == (7, 2, "ann", True)
        assert abs(record.asOf - record.created - 40.0) < 1.0
        assert abs(record.asOf - record.touched - 3.0) < 1.0
        again = await self.one(change(new.key, login=True))
        assert again.epoch == 3

    async def test_loadMissing(self) -> None:
        key = newKey()
        assert await self.store.load([key, key]) == [None, None]
        assert await self.store.load([]) == []
        await self.refused(change(key), SessionGone)

    async def test_loadManyInOrder(self) -> None:
        keys = [await self.made(set={"dn": b"%d" % n}) for n in range(30)]
        keys.insert(7, newKey())
        loaded = await self.store.load(keys)
        assert loaded[7] is None
        del loaded[7]
        assert [record.fields["dn"] for record in loaded] == [b"%d" % n for n in range(30)]

    async def test_loadExactDeadlineBoundary(self) -> None:
        key = await self.made(idle=100.0)
        await self.advance(95.0)
        assert await self.isAlive(key)
        await self.advance(5.0)
        assert not await self.isAlive(key)

    async def test_loadDoesNotCountAsUse(self) -> None:
        key = await self.made(idle=10.0)
        for _ in range(4):
            await self.advance(2.5)
            alive = await self.isAlive(key)
        assert not alive

    async def test_noDeadline(self) -> None:
        key = await self.made(idle=None)
        await self.advance(10.0**8)
        await self.sweepAll()
        assert await self.isAlive(key)

    async def test_laterChangesLeaveALoadedRecordAlone(self) -> None:
        key = await self.made(set={"da": b"1"})
        before = (await self.store.load([key]))[0]
        await self.one(change(key, set={"da": b"2"}))
        assert before.fields == {"da": b"1"}

    # -- changing -------------------------------------------------------------

    async def test_saveAfterDeleteIsGone(self) -> None:
        key = await self.made()
        await self.one(change(key, end="logout"))
        await self.refused(change(key, set={"da": b"1"}), SessionGone)
        assert not await self.isAlive(key)

    async def test_saveAfterExpiryIsGone(self) -> None:
        key = await self.made(idle=10.0)
        await self.advance(10.0)
        await self.refused(change(key, set={"da": b"1"}, usedAgo=0.0), SessionGone)
        await self.sweepAll()
        await self.refused(change(key, set={"da": b"1"}, usedAgo=0.0), SessionGone)

    async def test_saveDisjointKeysBothSurvive(self) -> None:
        key = await self.made(set={"dz": b"0"})
        await self.one(change(key, set={"da": b"1"}))
        record = await self.one(change(key, set={"db": b"2"}))
        assert record.fields == {"da": b"1", "db": b"2", "dz": b"0"}
        assert await self.fields(key) == {"da": b"1", "db": b"2", "dz": b"0"}

    async def test_saveSameKeyLastAcknowledgedWins(self) -> None:
        key = await self.made()
        for value in (b"1", b"2", b"3"):
            await self.one(change(key, set={"da": value}))
        assert await self.fields(key) == {"da": b"3"}

    async def test_saveAndRemoveTogether(self) -> None:
        key = await self.made(set={"da": b"1", "db": b"2", "dc": b"3"})
        await self.one(change(key, set={"dd": b"4"}, remove=frozenset({"da", "db", "dx"})))
        assert await self.fields(key) == {"dc": b"3", "dd": b"4"}

    async def test_expectations(self) -> None:
        key = await self.made(set={"da": b"1", "db": b"2"})
        taken = change(key, remove=frozenset({"da"}), set={"dn": b"!"}, expect={"da": b"1"})
        await self.one(taken)
        again = change(key, remove=frozenset({"da"}), set={"dn": b"?"}, expect={"da": b"1"})
        await self.refused(again, Conflict)
        await self.refused(change(key, set={"dn": b"?"}, expect={"db": None}), Conflict)
        assert await self.fields(key) == {"db": b"2", "dn": b"!"}
        await self.one(change(key, set={"dx": b"3"}, expect={"dx": None, "db": b"2"}))
        assert await self.fields(key) == {"db": b"2", "dn": b"!", "dx": b"3"}

    async def test_batchesKeepTheirOrderAndEachItsOutcome(self) -> None:
        a, b, missing = await self.made(), newKey(), newKey()
        outcomes = await self.store.commit(
            [
                change(a, set={"d": b"1"}),
                change(missing, set={"d": b"1"}),
                create(b),
                change(a, set={"d": b"2"}),
                create(a),
                change(b, end="logout"),
                change(b, set={"d": b"3"}),
            ]
        )
        kinds = [type(outcome) for outcome in outcomes]
        assert kinds == [Record, SessionGone, Record, Record, IdCollision, Record, SessionGone]
        assert await self.fields(a) == {"d": b"2"}
        assert not await self.isAlive(b)

    async def test_severalChangesOfOneSession(self) -> None:
        key, other = await self.made(), await self.made()
        changes = [change(key, set={f"d{n}": b"1", "d": b"%d" % n}, uses=1) for n in range(3)]
        outcomes = await self.store.commit([*changes, change(other, uses=1)])
        assert [(outcome.version, outcome.uses) for outcome in outcomes] == [
            (2, 1), (3, 2), (4, 3), (2, 1),
        ]  # fmt: skip
        assert await self.fields(key) == {"d0": b"1", "d1": b"1", "d2": b"1", "d": b"2"}

    async def test_versionsRise(self) -> None:
        key = await self.made()
        first = await self.one(change(key, set={"da": b"1"}))
        second = await self.one(change(key, uses=3))
        assert (first.version, second.version, second.uses) == (2, 3, 3)

    async def test_bytesComeBackAsTheyWere(self) -> None:
        values = {
            "d": b"", "d0": b"007", "dnul": b"\0\r\n\xff", "d\u00e9\U0001f40d": b"x",
            "d'\"; --": b"y", "dbig": os.urandom(70_000),
        }  # fmt: skip
        key = await self.made(set=values)
        assert await self.fields(key) == values

    async def test_changesLeaveOtherFieldsAlone(self) -> None:
        """
        However large and however many they are.
        """
        fields = {f"d{size}": os.urandom(size) for size in (0, 1, 255, 256, 65535, 65536)}
        key = await self.made(set=fields)
        some = [{f"d-{n}": b"%d" % n} for n in range(12)]
        for new in (*some, {f"d+{n}": b"%d" % n for n in range(50)}):
            await self.one(change(key, set=new))
            fields |= new
            assert await self.fields(key) == fields
        gone = [f"d+{n}" for n in range(0, 50, 2)]
        await self.one(change(key, remove=frozenset(gone), set=dict.fromkeys(gone[:20], b"again")))
        for name in gone:
            del fields[name]
        fields |= dict.fromkeys(gone[:20], b"again")
        assert await self.fields(key) == fields
        await self.one(change(key, remove=frozenset(fields)))
        assert await self.fields(key) == {}

    async def test_retriesAfterAnUnknownOutcome(self) -> None:
        key, to = newKey(), newKey()
        for step in (
            create(key, set={"da": b"1"}),
            change(key, set={"db": b"2"}, uses=1),
            change(key, newKey=to, login=True, principal="ann"),
        ):
            first, again = await self.one(step), await self.one(step)
            assert (again.version, again.uses, again.epoch) == (
                first.version,
                first.uses,
                first.epoch,
            )
        assert not await self.isAlive(key)
        assert await self.fields(to) == {"da": b"1", "db": b"2"}
        end = change(to, end="logout")
        await self.one(end)
        await self.refused(end, SessionGone)

    # -- use and deadlines ----------------------------------------------------

    async def test_useExtends(self) -> None:
        key = await self.made(idle=100.0)
        for _ in range(5):
            await self.advance(80.0)
            await self.one(change(key, usedAgo=0.0))
        await self.sweepAll()
        await self.advance(95.0)
        assert await self.isAlive(key)
        await self.advance(5.0)
        assert not await self.isAlive(key)

    async def test_useLiesBack(self) -> None:
        key = await self.made(idle=100.0)
        await self.advance(60.0)
        await self.one(change(key, usedAgo=40.0))
        await self.advance(55.0)
        assert await self.isAlive(key)
        await self.advance(5.0)
        assert not await self.isAlive(key)

    async def test_useNeverShortens(self) -> None:
        key = await self.made(idle=100.0)
        await self.advance(50.0)
        await self.one(change(key, usedAgo=0.0))
        await self.one(change(key, usedAgo=40.0))
        await self.advance(95.0)
        assert await self.isAlive(key)

    async def test_useNeverPassesTheAbsoluteLimit(self) -> None:
        key = await self.made(idle=100.0, absolute=250.0)
        for _ in range(3):
            await self.advance(80.0)
            await self.one(change(key, usedAgo=0.0))
        await self.advance(10.0)
        assert not await self.isAlive(key)

    async def test_useOfNothingIsGone(self) -> None:
        key = newKey()
        await self.refused(change(key, usedAgo=0.0), SessionGone)
        assert not await self.isAlive(key)

    async def test_writingIsNotUse(self) -> None:
        key = await self.made(idle=100.0)
        await self.advance(80.0)
        await self.one(change(key, set={"da": b"1"}))
        await self.advance(20.0)
        assert not await self.isAlive(key)

    async def test_anotherTimeoutMovesTheDeadlineBothWays(self) -> None:
        key = await self.made(idle=10.0)
        await self.one(change(key, idle=30.0, ownIdle=True))
        await self.advance(20.0)
        await self.sweepAll()
        record = (await self.store.load([key]))[0]
        assert record.ownIdle
        await self.one(change(key, idle=5.0, usedAgo=0.0))
        await self.advance(5.0)
        assert not await self.isAlive(key)

    # -- rotation -------------------------------------------------------------

    async def test_rotateMovesAll(self) -> None:
        key, to = (
            await self.made(set={"da": b"1"}, principal="ann", idle=10.0, absolute=25.0),
            newKey(),
        )
        before = (await self.store.load([key]))[0]
        await self.advance(4.0)
        after = await self.one(change(key, newKey=to, set={"db": b"2"}))
        loaded = (await self.store.load([to]))[0]
        for record in (after, loaded):
            assert record.key == to
            assert record.fields == {"da": b"1", "db": b"2"}
            assert (record.handle, record.created) == (before.handle, before.created)
            assert record.principal == "ann"
        assert not await self.isAlive(key)
        await self.advance(6.0)
        assert not await self.isAlive(to)

    async def test_rotateOldDead(self) -> None:
        key, to = await self.made(), newKey()
        await self.one(change(key, newKey=to))
        for late in (
            change(key, set={"da": b"1"}),
            change(key, usedAgo=0.0),
            change(key, end="logout"),
        ):
            await self.refused(late, SessionGone)
        assert await self.isAlive(to)

    async def test_rotateOneWinner(self) -> None:
        key, a, b = await self.made(), newKey(), newKey()
        outcomes = await self.store.commit([change(key, newKey=a), change(key, newKey=b)])
        assert [type(outcome) for outcome in outcomes] == [Record, SessionGone]
        assert (await self.isAlive(a), await self.isAlive(b)) == (True, False)

    async def test_concurrentRotationsHaveOneWinner(self) -> None:
        key, other = await self.made(set={"da": b"1"}), await self._peer()
        keys = [newKey() for _ in range(4)]
        rounds = [
            store.commit([change(key, newKey=to)])
            for store, to in zip((self.store, other) * 2, keys, strict=True)
        ]
        outcomes = [outcome for (outcome,) in await gatherResults(rounds)]
        won = [outcome.key for outcome in outcomes if isinstance(outcome, Record)]
        assert len(won) == 1, outcomes
        assert sum(isinstance(outcome, SessionGone) for outcome in outcomes) == 3, outcomes
        for store in (self.store, other):
            records = await store.load([key, *keys])
            assert [record.key for record in records if record is not None] == won
        assert await self.fields(won[0]) == {"da": b"1"}

    async def test_rotateOntoATakenKey(self) -> None:
        a = await self.made(set={"da": b"1"})
        b = await self.made(set={"da": b"2"}, principal="ann")
        await self.refused(change(a, newKey=b, set={"db": b"!"}, login=True), IdCollision)
        assert (await self.fields(a), await self.fields(b)) == ({"da": b"1"}, {"da": b"2"})
        records = await self.store.load([a, b])
        assert [(record.version, record.epoch) for record in records] == [(1, 0), (1, 0)]
        to = newKey()
        await self.one(change(a, newKey=to))
        assert await self.fields(to) == {"da": b"1"}

    async def test_rotateMissingIsGone(self) -> None:
        to = newKey()
        await self.refused(change(newKey(), newKey=to), SessionGone)
        assert not await self.isAlive(to)

    # -- ends -----------------------------------------------------------------

    async def test_deleteTwice(self) -> None:
        key = await self.made()
        await self.one(change(key, end="logout"))
        await self.refused(change(key, end="logout"), SessionGone)

    async def test_everyHandleOnThePlaceAgrees(self) -> None:
        other = await self.another()
        key, to = await self.made(set={"da": b"1"}), newKey()
        assert (await other.load([key]))[0].fields == {"da": b"1"}
        await other.commit([change(key, set={"db": b"2"})])
        assert await self.fields(key) == {"da": b"1", "db": b"2"}
        await other.commit([change(key, newKey=to)])
        assert not await self.isAlive(key)
        await self.one(change(to, end="logout"))
        assert await other.load([to]) == [None]
        assert isinstance((await other.commit([change(to, usedAgo=0.0)]))[0], SessionGone)

    async def test_dueListsOnlyDue(self) -> None:
        self._needs(EVENTS)
        await self.store.listen()
        early, late = await self.made(idle=100.0), await self.made(idle=200.0)
        await self.advance(95.0)
        assert await self.sweepAll() == 0
        await self.advance(5.0)
        assert await self.sweepAll() == 1
        assert [end.record.key for end in await self.store.claim(10, 30.0)] == [early]
        assert await self.isAlive(late)

    async def test_useBeatsTheSweepIfAcknowledgedFirst(self) -> None:
        key = await self.made(idle=100.0)
        await self.advance(95.0)
        await self.one(change(key, usedAgo=0.0))
        await self.advance(5.0)
        assert await self.sweepAll() == 0
        assert await self.isAlive(key)

    async def test_sweepIsBoundedAndEndsAll(self) -> None:
        self._needs(EVENTS)  # others may leave the sweeping to their servers
        for _ in range(25):
            await self.made(idle=10.0)
        await self.advance(10.0)
        swept = await self.store.sweep(10)
        assert 0 < swept.ended <= 10 and swept.more
        assert swept.ended + await self.sweepAll() == 25
        assert await self.sweepAll() == 0

    async def test_sweepTellsHowLongToWait(self) -> None:
        self._needs(EVENTS)  # others may leave the sweeping to their servers
        assert (await self.store.sweep(10)).wait is None
        await self.made(idle=10.0)
        wait = (await self.store.sweep(10)).wait
        assert wait is not None and wait <= 10.0

    async def test_whoWaitsAsToldIsThereInTime(self) -> None:
        self._needs(EVENTS)  # others may leave the sweeping to their servers
        await self.made(idle=10.0)
        await self.made(idle=300.0)
        await self.advance(9.5)
        waited = 9.5
        for _ in range(50):
            swept = await self.store.sweep(10)
            if swept.ended:
                break
            if not swept.more:
                assert swept.wait is not None and swept.wait >= 0.0
                waited += swept.wait
                assert waited < 10.1, "overslept"
                await self.advance(swept.wait)
        assert swept.ended == 1

    async def test_sweepEndsTheEarliestFirst(self) -> None:
        self._needs(EVENTS)
        await self.store.listen()
        for limit in (1, 6):
            idles = [30.0, 10.9, 10.1, 20.0, 10.5, 10.3, 5.0]
            keys = [newKey() for _ in idles]
            # Of one batch, so that all are of the same moment.
            pairs = zip(keys, idles, strict=True)
            await self.store.commit([create(key, idle=idle) for key, idle in pairs])
            await self.one(change(keys[6], idle=25.0))
            idles[6] = 25.0
            await self.advance(100.0)
            order: list[bytes] = []
            for _ in range(100):
                swept = await self.store.sweep(limit)
                assert swept.ended <= limit
                order += [end.record.key for end in await self.store.claim(10, 1000.0)]
                if not swept.more:
                    break
            wanted = [key for _, key in sorted(zip(idles, keys, strict=True))]
            if self.isSpread:
                order, wanted = sorted(order), sorted(wanted)
            assert order == wanted

    async def test_endsCarryWhatWasThere(self) -> None:
        self._needs(EVENTS)
        await self.store.listen()
        idle = await self.made(idle=10.0, absolute=11.0, set={"da": b"1"}, principal="ann")
        absolute = await self.made(idle=10.0, absolute=9.0)
        out = await self.made(set={"da": b"1"})
        handles = {key: (await self.store.load([key]))[0].handle for key in (idle, absolute, out)}
        await self.one(change(out, set={"db": b"2"}, end="logout"))
        for reason in ("evicted", "revoked"):
            await self.one(change(await self.made(), end=reason))
        await self.advance(10.0)
        await self.sweepAll()
        ends = {end.record.key: end for end in await self.store.claim(10, 30.0)}
        assert len(ends) == 5
        assert sorted(end.reason for end in ends.values()) == [
            "absolute", "evicted", "idle", "logout", "revoked",
        ]  # fmt: skip
        assert (ends[idle].reason, ends[absolute].reason) == ("idle", "absolute")
        assert (ends[idle].record.fields, ends[idle].record.principal) == ({"da": b"1"}, "ann")
        assert ends[out].record.fields == {"da": b"1", "db": b"2"}
        for key, handle in handles.items():
            assert ends[key].id == handle

    async def test_anEndWithABirth(self) -> None:
        self._needs(EVENTS)
        await self.store.listen()
        key = newKey()
        await self.one(create(key, set={"da": b"1"}, end="idle"))
        assert not await self.isAlive(key)
        assert [end.record.fields for end in await self.store.claim(10, 30.0)] == [{"da": b"1"}]

    async def test_anEndIsHeardOnce(self) -> None:
        """
        Also if the session was copied here again, from a store where it lived on.
        """
        self._needs(EVENTS)
        if self.isSpread:
            raise SkipTest("each server keeps its own ends")
        await self.store.listen()
        seed = os.urandom(16)
        for _ in range(2):
            key = newKey()
            await self.one(change(key, birth=Birth(seed), idle=60.0))
            await self.one(change(key, end="logout"))
        (end,) = await self.store.claim(10, 30.0)
        assert await self.store.settle([Verdict(end.id, end.claim)]) == [True]
        await self.advance(60.0)
        assert await self.store.claim(10, 30.0) == []

    async def test_endsBeforeListenAreNotKept(self) -> None:
        self._needs(EVENTS)
        await self.one(change(await self.made(), end="logout"))
        await self.made(idle=10.0)
        await self.advance(10.0)
        assert await self.sweepAll() == 1
        await self.store.listen()
        assert await self.store.claim(10, 30.0) == []

    async def _claimed(self, count: int = 1) -> list[Ended]:
        self._needs(EVENTS)
        await self.store.listen()
        for _ in range(count):
            await self.one(change(await self.made(), end="logout"))
        claimed: list[Ended] = await self.store.claim(count, 30.0)
        return claimed

    async def test_claimExclusive(self) -> None:
        assert len(await self._claimed(3)) == 3
        await self.advance(25.0)
        assert await self.store.claim(10, 30.0) == []

    async def test_claimIsBounded(self) -> None:
        await self._claimed(0)
        for _ in range(5):
            await self.one(change(await self.made(), end="logout"))
        sizes = [len(await self.store.claim(2, 30.0)) for _ in range(4)]
        assert sizes == [2, 2, 1, 0]

    async def test_claimLeaseExpiresAndRedelivers(self) -> None:
        (first,) = await self._claimed()
        await self.advance(30.0)
        (again,) = await self.store.claim(10, 30.0)
        assert (again.id, again.reason, again.attempts) == (first.id, first.reason, 2)
        assert again.claim != first.claim
        assert await self.store.settle([Verdict(first.id, first.claim)]) == [False]
        assert await self.store.settle([Verdict(again.id, again.claim)]) == [True]
        await self.advance(300.0)
        assert await self.store.claim(10, 30.0) == []

    async def test_settledIsForgotten(self) -> None:
        (end,) = await self._claimed()
        verdict = Verdict(end.id, end.claim)
        assert await self.store.settle([verdict, verdict]) == [True, False]
        await self.advance(300.0)
        assert await self.store.claim(10, 30.0) == []

    async def test_retryLater(self) -> None:
        (end,) = await self._claimed()
        later = Verdict(end.id, end.claim, retryIn=50.0)
        assert await self.store.settle([later]) == [True]
        assert await self.store.settle([later, Verdict(end.id, end.claim)]) == [False, False]
        await self.advance(40.0)
        assert await self.store.claim(10, 30.0) == []
        await self.advance(10.0)
        assert [again.attempts for again in await self.store.claim(10, 30.0)] == [2]

    async def test_deadLetters(self) -> None:
        (end,) = await self._claimed()
        dead = Verdict(end.id, end.claim, retryIn=1.0, dead=True)
        assert await self.store.settle([dead]) == [True]
        assert await self.store.settle([dead, Verdict(end.id, end.claim)]) == [False, False]
        await self.advance(300.0)
        assert await self.store.claim(10, 30.0) == []

    async def test_dueWhileAllWereDownIsFound(self) -> None:
        self._needs(EVENTS)
        await self.store.listen()
        key = await self.made(idle=10.0, set={"da": b"1"})
        other = await self.another()
        await self.store.close()
        await self.advance(1000.0)
        self.store = other
        assert await self.sweepAll() == 1
        assert [end.record.key for end in await other.claim(10, 30.0)] == [key]

    async def test_listeningIsForEveryProcess(self) -> None:
        self._needs(EVENTS)
        other = await self.another()
        await other.listen()
        await self.one(change(await self.made(), end="logout"))
        assert len(await other.claim(10, 30.0)) == 1
        assert await self.store.claim(10, 30.0) == []

    # -- principals -----------------------------------------------------------

    async def test_findByPrincipal(self) -> None:
        self._needs(PRINCIPALS)
        first = await self.made(principal="ann")
        await self.advance(1.0)
        second = await self.made()
        await self.made(principal="bob")
        await self.one(change(second, principal="ann", login=True))
        assert [r.key for r in await self.store.sessionsOf("ann")] == [first, second]
        for nobody in ("nobody", "", "\ud800", "ann\udc00"):
            assert await self.store.sessionsOf(nobody) == []

    async def test_noGhostsInTheIndex(self) -> None:
        self._needs(PRINCIPALS)
        ended, due, moved, changed = [
            await self.made(principal="ann", idle=i) for i in (60, 10, 60, 60)
        ]
        to = newKey()
        await self.one(change(ended, end="logout"))
        await self.one(change(moved, newKey=to))
        await self.one(change(changed, principal="bob"))
        await self.advance(10.0)
        assert [r.key for r in await self.store.sessionsOf("ann")] == [to]
        await self.sweepAll()
        assert [r.key for r in await self.store.sessionsOf("ann")] == [to]
        assert [r.key for r in await self.store.sessionsOf("bob")] == [changed]
        await self.one(change(changed, principal=None))
        assert await self.store.sessionsOf("bob") == []

    async def test_findByHandle(self) -> None:
        self._needs(PRINCIPALS)
        key, to = await self.made(idle=10.0), newKey()
        handle = (await self.store.load([key]))[0].handle
        assert (await self.store.withHandle(handle)).key == key
        await self.one(change(key, newKey=to))
        assert (await self.store.withHandle(handle)).key == to
        assert await self.store.withHandle(os.urandom(16)) is None
        await self.advance(10.0)
        assert await self.store.withHandle(handle) is None

    # -- leases ---------------------------------------------------------------

    async def test_leases(self) -> None:
        self._needs(EXCLUSIVE)
        acquire = self.store.acquire
        assert await acquire(b"x", b"a", 10.0)
        assert not await acquire(b"x", b"b", 10.0)
        assert await acquire(b"y", b"b", 10.0)
        await self.advance(8.0)
        assert await acquire(b"x", b"a", 10.0)  # renewed
        await self.advance(8.0)
        assert not await acquire(b"x", b"b", 10.0)
        await self.store.release(b"x", b"b")  # not b's to release
        assert not await acquire(b"x", b"b", 10.0)
        await self.advance(2.0)
        assert await acquire(b"x", b"b", 10.0)  # a has died
        assert not await acquire(b"x", b"a", 10.0)
        await self.store.release(b"x", b"b")
        assert await acquire(b"x", b"a", 10.0)

    async def test_concurrentHoldersOfOneLease(self) -> None:
        self._needs(EXCLUSIVE)
        for other in self.store, await self._peer():
            name = os.urandom(4)
            asked = [
                store.acquire(name, b"%d" % number, 10.0)
                for number, store in enumerate((self.store, other) * 3)
            ]
            assert sorted(await gatherResults(asked)) == [False] * 5 + [True]

    # -- hints ----------------------------------------------------------------

    async def test_hints(self) -> None:
        self._needs(HINTS)
        told: list[bytes] = []
        changed: Deferred[None] = Deferred()

        def heard(keys: Sequence[bytes] | None) -> None:
            told.extend(keys or ())
            if ended | {moved, due} <= set(told) and not changed.called:
                changed.callback(None)

        moved, due = await self.made(), await self.made(idle=2.0)
        ended = {await self.made() for _ in range(3)}
        await self.store.watch(heard)
        other = await self.another()
        for outcome in await other.commit([change(key, end="logout") for key in ended]):
            assert isinstance(outcome, Record)
        await other.commit([change(moved, newKey=newKey())])
        await self.advance(2.0)
        await other.sweep(10)
        await changed  # or the runner's patience ends

    # -- messages -------------------------------------------------------------

    async def test_messagesArrive(self) -> None:
        self._needs(PUBLISH)
        ears = [await _Ear.on(self.store), await _Ear.on(await self._peer())]
        said = [
            Message("x", b"one"),
            Message("y", bytes(range(256))),
            Message("x", b""),
            Message("", b"no topic"),
            Message("\u2603 \0 \ud800", b"any topic"),
            Message("x", b"one"),  # again: that is another one
            Message("x", b"one"),
            Message("x", b"\0" * 40_000),
            Message("x", b"\0" * 40_000),
            Message("x", os.urandom(MESSAGE_LIMIT - 1)),
        ]
        assert await self.store.publish(said) == [None] * len(said)
        for ear in ears:
            assert await ear.heard(len(said)) == said

    async def test_messagesOfOneSenderArriveInOrder(self) -> None:
        self._needs(PUBLISH)
        peer = await self._peer()
        ears = [await _Ear.on(self.store), await _Ear.on(peer), await _Ear.on(self.store)]
        said: dict[str, list[Message]] = {"a": [], "b": []}
        calls = []
        for number in range(60):
            for name, store in ("a", self.store), ("b", peer):
                # Some large, some small, on several topics; none waited for.
                payload = b"%d " % number + b"." * (number % 7 * 3000)
                message = Message(f"{name}{number % 3}", payload)
                said[name].append(message)
                calls.append(store.publish([message]))
        assert await gatherResults(calls) == [[None]] * len(calls)
        for ear in ears:
            heard = await ear.heard(120)
            assert None not in heard
            for name, messages in said.items():
                assert [one for one in heard if one and one.topic[0] == name] == messages

    async def test_messagesAreNotKept(self) -> None:
        self._needs(PUBLISH)
        await self.store.publish([Message("x", b"early")])
        ear = await _Ear.on(await self._peer())
        late = Message("x", b"late")
        await self.store.publish([late])
        heard = await ear.until(late)
        if not self.isSpread:  # or a server may be late with what was said before
            assert heard == [late]

    async def test_whoBeginsToListenHearsItself(self) -> None:
        self._needs(PUBLISH)
        ear = _Ear()
        await self.store.publish([Message("x", b"nobody listens")])  # it is connected
        begun = self.store.subscribe(ear.hear)
        said = [Message("x", b"%d" % number) for number in range(20)]
        calls = [self.store.publish([message]) for message in said]
        await begun
        calls.append(self.store.publish([Message("x", b"last")]))
        await gatherResults(calls)
        assert await ear.heard(21) == [*said, Message("x", b"last")]

    async def test_messagesThatAreTooLarge(self) -> None:
        self._needs(PUBLISH)
        ear = await _Ear.on(self.store)
        good = Message("\u2603", b"x" * (MESSAGE_LIMIT - 3))
        large = Message("\u2603", b"x" * (MESSAGE_LIMIT - 2))
        first, second, third = await self.store.publish([large, good, large])
        assert second is None
        for refused in (first, third):
            assert type(refused) is StoreError and str(MESSAGE_LIMIT) in str(refused)
        assert await self.store.publish([]) == []
        assert await ear.heard(1) == [good]

    async def test_listenersDoNotDisturbEachOther(self) -> None:
        self._needs(PUBLISH)
        told: list[Message | None] = []

        def bad(message: Message | None) -> None:
            told.append(message)
            raise RuntimeError("a listener's own mistake")

        def answering(message: Message | None) -> None:
            if message is not None and message.payload == b"question":
                self.store.publish([Message("x", b"answer")])

        await self.store.subscribe(bad)
        await self.store.subscribe(answering)
        ear = await _Ear.on(self.store)
        said = [Message("x", b"question"), Message("x", b"answer")]
        with capturedLogs() as events:
            await self.store.publish(said[:1])
            assert await ear.heard(2) == said == told
        assert [event["log_failure"].type for event in events] == [RuntimeError] * 2
        # trial takes what is logged for a failure of the test.
        getattr(self, "flushLoggedErrors", lambda error: None)(RuntimeError)

    # -- walking through ------------------------------------------------------

    async def test_iterate(self) -> None:
        self._needs(ITERATE)
        keys = sorted([await self.made() for _ in range(11)])
        await self.made(idle=1.0)
        await self.advance(1.0)
        await self.one(change(keys.pop(4), end="logout"))
        seen: list[bytes] = []
        after = None
        while page := await self.store.iterate(after, 4):
            assert len(page) <= 4
            seen.extend(record.key for record in page)
            after = page[-1].key
        assert seen == keys

    async def test_iterateMeetsNoGhosts(self) -> None:
        self._needs(ITERATE)
        keys = sorted([await self.made(idle=60.0) for _ in range(12)])
        first, *middle, last = keys
        # More than a page of those that are due: that is not the end.
        for key in middle:
            await self.one(change(key, idle=10.0))
        await self.advance(11.0)
        assert await self._walked(3) == [first, last]
        to = newKey()
        await self.one(change(first, newKey=to))
        assert await self._walked(3) == sorted([to, last])
        await self.one(change(last, end="logout"))
        assert await self._walked(3) == [to]
        await self.sweepAll()
        assert await self._walked(3) == [to]

    async def _walked(self, limit: int) -> list[bytes]:
        """
        The keys of all living sessions, by pages.
        """
        keys: list[bytes] = []
        while page := await self.store.iterate(keys[-1] if keys else None, limit):
            assert len(page) <= limit
            keys += [record.key for record in page]
        return keys

    # -- the rest -------------------------------------------------------------

    async def test_whatIsNotDeclaredIsRefused(self) -> None:
        store, capabilities = self.store, self.store.capabilities
        assert isinstance(capabilities, frozenset)
        calls: dict[str, Iterable[Callable[[], Any]]] = {
            EVENTS: (lambda: store.listen(), lambda: store.claim(1, 1.0), lambda: store.settle([])),
            PRINCIPALS: (lambda: store.sessionsOf("x"), lambda: store.withHandle(b"x" * 16)),
            EXCLUSIVE: (lambda: store.acquire(b"x", b"a", 1.0), lambda: store.release(b"x", b"a")),
            HINTS: (lambda: store.watch(lambda keys: None),),
            PUBLISH: (
                lambda: store.publish([Message("x", b"x")]),
                lambda: store.subscribe(lambda message: None),
            ),
            ITERATE: (lambda: store.iterate(None, 1),),
        }
        for capability, uses in calls.items():
            for use in uses:
                if capability in capabilities:
                    await use()
                    continue
                try:
                    await use()
                except NotSupported:
                    continue
                raise AssertionError(f"{capability!r} is not declared, and not refused")

    async def test_localAnswersAtOnce(self) -> None:
        self._needs(LOCAL)
        assert self.store.load([newKey()]).called
        assert self.store.commit([create(newKey())]).called

    async def test_closeTwiceAndNothingAfterwards(self) -> None:
        key = await self.made()
        await self.store.close()
        await self.store.close()
        for use in (
            lambda: self.store.load([key]),
            lambda: self.store.commit([change(key)]),
            lambda: self.store.sweep(1),
        ):
            try:
                await use()
            except StoreUnavailable:
                continue
            raise AssertionError("a closed store answered")

    async def test_everythingIsRefusedAfterClose(self) -> None:
        key, store = await self.made(), self.store
        await store.close()
        uses: list[tuple[str | None, Callable[[], Any]]] = [
            (None, lambda: store.load([key])),
            (None, lambda: store.load([])),
            (None, lambda: store.commit([create(newKey())])),
            (None, lambda: store.sweep(1)),
            (EVENTS, lambda: store.listen()),
            (EVENTS, lambda: store.claim(1, 1.0)),
            (EVENTS, lambda: store.settle([Verdict(b"i" * 16, b"c")])),
            (PRINCIPALS, lambda: store.sessionsOf("ann")),
            (PRINCIPALS, lambda: store.withHandle(b"h" * 16)),
            (EXCLUSIVE, lambda: store.acquire(b"x", b"a", 1.0)),
            (EXCLUSIVE, lambda: store.release(b"x", b"a")),
            (HINTS, lambda: store.watch(lambda keys: None)),
            (PUBLISH, lambda: store.publish([Message("x", b"x")])),
            (PUBLISH, lambda: store.publish([])),
            (PUBLISH, lambda: store.subscribe(lambda message: None)),
            (ITERATE, lambda: store.iterate(None, 1)),
        ]
        for number, (capability, use) in enumerate(uses):
            if capability is None or capability in store.capabilities:
                try:
                    await use()
                except StoreUnavailable:
                    continue
                raise AssertionError(f"a closed store answered: {capability}, {number}")

    async def test_noIdIsInTheStoredBytes(self) -> None:
        uid = makeUid(os.urandom)
        await self.one(create(keyOf(uid), set={"da": b"findme"}))
        raw = await self.rawBytes(self.store)
        if raw is None:
            raise SkipTest("the store's bytes cannot be read")
        assert b"findme" in raw
        assert uid not in raw and bytes.fromhex(uid.decode()) not in raw

    async def test_corruptRecords(self) -> None:
        place = 0
        while True:
            key = await self.made(set={"da": b"1"})

            def flip(stored: bytes, place: int = place) -> bytes:
                if place >= len(stored):
                    raise IndexError
                return stored[:place] + bytes((stored[place] ^ 0x55,)) + stored[place + 1 :]

            try:
                if not await self.corrupt(self.store, key, flip):
                    raise SkipTest("the store's bytes cannot be changed")
            except IndexError:
                return
            assert await self.fields(key) in (None, {"da": b"1"})
            outcome = (await self.store.commit([change(key, set={"db": b"2"})]))[0]
            assert isinstance(outcome, SessionGone) or outcome.fields == {"da": b"1", "db": b"2"}
            await self.sweepAll()
            place += 1

    async def test_newerFormatsAreLeftAlone(self) -> None:
        key = await self.made(set={"da": b"1"})
        seen: list[bytes] = []

        def raise_(stored: bytes) -> bytes:
            from hashlib import blake2b

            newer = bytes((99,))
            content = stored[9:]
            check = blake2b(content, digest_size=8, key=newer + key).digest()
            return newer + check + content

        def look(stored: bytes) -> bytes:
            seen.append(stored)
            return stored

        if not await self.corrupt(self.store, key, raise_):
            raise SkipTest("the store's bytes cannot be changed")
        await self.corrupt(self.store, key, look)
        assert not await self.isAlive(key)
        await self.refused(change(key, set={"db": b"2"}), SessionGone)
        await self.refused(change(key, end="logout"), SessionGone)
        await self.refused(create(key), IdCollision)
        await self.refused(change(await self.made(), newKey=key), IdCollision)
        await self.advance(1000.0)
        await self.sweepAll()
        await self.corrupt(self.store, key, look)
        assert seen[0] == seen[1] and seen[0][0] == 99

    # -- running --------------------------------------------------------------

    store: Any

    async def another(self) -> Any:
        """
        Another store object on the same place; skips if there is none.
        """
        other = await self.reopen(self.store)
        if other is None:
            raise SkipTest("the store cannot be opened twice")
        self._opened.append(other)
        return other

    async def _peer(self) -> Any:
        """
        Another store object on the same place, or else the same.
        """
        other = await self.reopen(self.store)
        if other is None:
            return self.store
        self._opened.append(other)
        return other

    _opened: list[Any]


class _Ear:
    """
    Hears messages.
    """

    def __init__(self) -> None:
        self._heard: list[Message | None] = []
        self._isEnough: Callable[[], bool] = lambda: False
        self._enough: Deferred[None] = Deferred()

    @classmethod
    async def on(cls, store: Any) -> _Ear:
        """
        One that has subscribed.
        """
        ear = cls()
        await store.subscribe(ear.hear)
        return ear

    def hear(self, message: Message | None) -> None:
        """
        To be subscribed.
        """
        self._heard.append(message)
        if self._isEnough() and not self._enough.called:
            self._enough.callback(None)

    async def heard(self, count: int) -> list[Message | None]:
        """
        All there have been, when there are so many; or the runner's patience
        ends.
        """
        return await self._until(lambda: len(self._heard) >= count)

    async def until(self, last: Message) -> list[Message | None]:
        """
        All there have been, when this one is there.
        """
        return await self._until(lambda: last in self._heard)

    async def _until(self, isEnough: Callable[[], bool]) -> list[Message | None]:
        self._isEnough = isEnough
        if not isEnough():
            await self._enough
        return self._heard


def _wrapped(
    test: Callable[..., Awaitable[None]],
    run: Callable[[Callable[..., Awaitable[None]]], Any] | None,
) -> Any:
    test = getattr(test, "__wrapped__", test)

    @functools.wraps(test)
    async def wrapper(self: StoreContractMixin) -> None:
        self.clock = Clock()
        self.clock.advance(1_000_000.0)
        self.store = await self.makeStore()
        self._opened = [self.store]
        try:
            await test(self)
        finally:
            for store in self._opened:
                await store.close()

    if run is None:
        return wrapper
    made = run(wrapper)
    made.__wrapped__ = test
    return made
