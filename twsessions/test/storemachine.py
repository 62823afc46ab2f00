"""
A store against a model of it: any operations in any order, on stale keys too.

The model restates the promises with dictionaries and shares no code with what
stores use to apply changes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from twsessions.core.delta import Birth, Change
from twsessions.core.record import Record
from twsessions.errors import SessionError, SessionGone
from twsessions.interfaces import Ended, ISessionStore, Verdict

__all__ = ["answer", "machineFor"]

T = TypeVar("T")

_START = 1000  # not 0, so that no time is false
_names = st.sampled_from(["da", "db", "f\u2603"])
_values = st.binary(max_size=3)
_seconds = st.integers(1, 60)
_principals = st.sampled_from([None, "ann", "bob"])
_reasons = st.sampled_from(["logout", "revoked", "evicted"])
_births = st.fixed_dictionaries(
    {
        "idle": st.none() | _seconds,
        "absolute": st.none() | st.integers(1, 120),
        "ago": st.integers(0, 3),
        "principal": _principals,
        "fields": st.dictionaries(_names, _values),
    }
)


def answer(deferred: Deferred[T]) -> T:
    """
    What a Deferred that has fired fired with; raises what it failed with.
    """
    results: list[Any] = []
    deferred.addBoth(results.append)
    assert results, "a store for this machine answers at once"
    if isinstance(results[0], Failure):
        results[0].raiseException()
    return results[0]  # type: ignore[no-any-return]


@dataclass(eq=False)
class _Session:
    """
    What has been acknowledged of a session.

    @ivar ended: why; C{""} as long as nobody has ended it.
    @ivar last: the last change of all.
    """

    key: bytes
    created: int
    touched: int
    idle: int | None
    absolute: int | None
    principal: str | None
    last: Change
    fields: dict[str, bytes] = field(default_factory=dict)
    version: int = 1
    uses: int = 0
    epoch: int = 0
    handle: bytes = b""
    ended: str = ""

    @property
    def limits(self) -> tuple[float, float]:
        idle = math.inf if self.idle is None else self.touched + self.idle
        absolute = math.inf if self.absolute is None else self.created + self.absolute
        return idle, absolute

    @property
    def deadline(self) -> float:
        return min(self.limits)

    @property
    def why(self) -> str:
        idle, absolute = self.limits
        return self.ended or ("idle" if idle < absolute else "absolute")


@dataclass
class _Heard:
    """
    What is known of an end that has been claimed.
    """

    end: Ended
    until: float
    attempts: int = 1
    held: bool = True  # by the claim in `end`
    closed: bool = False  # heard, or dead: never to be seen again


def machineFor(
    makeStore: Callable[[Callable[[], float]], ISessionStore],
    reopen: Callable[[ISessionStore, Callable[[], float]], ISessionStore] | None = None,
) -> type[RuleBasedStateMachine]:
    """
    The machine for a store that answers at once and can do everything. Its
    C{TestCase} attribute is what test runners want.

    @param makeStore: is given a clock, and returns a store on an empty place.
    @param reopen: is given a store that has been closed and the clock, and
        returns another on its place.
    """

    class StoreMachine(RuleBasedStateMachine):
        # Keys are never taken back: whoever draws one may hold a stale one.
        keys: Bundle[bytes] = Bundle("keys")

        def __init__(self) -> None:
            super().__init__()
            self.now = float(_START)
            self.numbers = count(1)
            self.sessions: list[_Session] = []
            self.byKey: dict[bytes, _Session] = {}  # of those not ended
            self.allKeys: list[bytes] = []
            self.heard: dict[bytes, _Heard] = {}
            self.deadlines: dict[bytes, float] = {}
            self.store = makeStore(self.time)

        def time(self) -> float:
            return self.now

        # Help

        def living(self, key: bytes) -> _Session | None:
            session = self.byKey.get(key)
            return session if session is not None and self.now < session.deadline else None

        def token(self) -> bytes:
            return b"token %d" % next(self.numbers)

        def newKey(self) -> bytes:
            key = b"%032x" % (next(self.numbers) * 0x9E3779B97F4A7C15 % 2**64)
            self.allKeys.append(key)
            return key

        def commit(self, change: Change) -> Record | SessionError:
            (outcome,) = answer(self.store.commit([change]))
            return outcome

        def changed(self, change: Change) -> _Session | None:
            """
            Commit a change and count it, or see that it is refused.
            """
            session, outcome = self.living(change.key), self.commit(change)
            if session is None:
                assert isinstance(outcome, SessionGone), f"resurrected: {outcome!r}"
                return None
            assert isinstance(outcome, Record), f"refused: {outcome!r}"
            session.version += 1
            session.last = change
            assert outcome.version == session.version, "each change is one version"
            return session

        # Rules

        @initialize(target=keys, births=st.lists(_births, min_size=2, max_size=3))
        def begin(self, births: list[dict[str, Any]]) -> Any:
            answer(self.store.listen())
            # Otherwise most examples are over before they have a session.
            return multiple(*(self.born(**birth) for birth in births))

        @rule(target=keys, birth=_births)
        def create(self, birth: dict[str, Any]) -> bytes:
            return self.born(**birth)

        def born(
            self,
            idle: int | None,
            absolute: int | None,
            ago: int,
            principal: str | None,
            fields: dict[str, bytes],
        ) -> bytes:
            key = self.newKey()
            birth = Birth(b"%016d" % next(self.numbers), ago=ago, absolute=absolute)
            change = Change(
                key, self.token(), birth, set=dict(fields), idle=idle, principal=principal
            )
            outcome = self.commit(change)
            assert isinstance(outcome, Record), f"refused: {outcome!r}"
            born = int(self.now) - ago
            session = _Session(key, born, born, idle, absolute, principal, change, dict(fields))
            session.handle = outcome.handle
            self.sessions.append(session)
            self.byKey[key] = session
            return key

        @rule(key=keys, name=_names, value=_values)
        def write(self, key: bytes, name: str, value: bytes) -> None:
            session = self.changed(Change(key, self.token(), set={name: value}))
            if session is not None:
                session.fields[name] = value

        @rule(key=keys, names=st.frozensets(_names))
        def delete(self, key: bytes, names: frozenset[str]) -> None:
            session = self.changed(Change(key, self.token(), remove=names))
            if session is not None:
                for name in names:
                    session.fields.pop(name, None)

        @rule(key=keys, ago=st.integers(0, 90))
        def use(self, key: bytes, ago: int) -> None:
            session = self.changed(Change(key, self.token(), usedAgo=ago, uses=1))
            if session is not None:
                session.uses += 1
                session.touched = max(session.touched, int(self.now) - ago)

        @rule(key=keys, idle=st.none() | _seconds)
        def setTimeout(self, key: bytes, idle: int | None) -> None:
            session = self.changed(Change(key, self.token(), idle=idle, ownIdle=True))
            if session is not None:
                session.idle = idle
                self.deadlines.pop(session.handle, None)  # it may be earlier now

        @rule(target=keys, key=keys, principal=_principals)
        def rotate(self, key: bytes, principal: str | None) -> Any:
            new = self.newKey()
            change = Change(key, self.token(), newKey=new, principal=principal, login=True)
            session = self.changed(change)
            if session is None:
                return multiple()
            del self.byKey[key]
            session.key, session.principal = new, principal
            session.epoch += 1
            self.byKey[new] = session
            return new

        @rule(key=keys, other=keys)
        def rotateOntoAnother(self, key: bytes, other: bytes) -> None:
            """
            Onto a key that is taken: nobody may lose anything by it.
            """
            if key != other and self.living(other) is not None:
                outcome = self.commit(Change(key, self.token(), newKey=other))
                assert isinstance(outcome, SessionError), f"another's place taken: {outcome!r}"

        @rule(key=keys, reason=_reasons, name=_names)
        def end(self, key: bytes, reason: str, name: str) -> None:
            session = self.changed(Change(key, self.token(), set={name: b"end"}, end=reason))
            if session is not None:
                session.fields[name] = b"end"
                session.ended = reason
                del self.byKey[key]

        @rule(data=st.data())
        @precondition(lambda self: self.sessions)
        def sendAgain(self, data: st.DataObject) -> None:
            """
            The last change of a session, as if its outcome had got lost.
            """
            session = data.draw(st.sampled_from(self.sessions))
            if session.last.birth is not None and self.living(session.key) is None:
                return  # a store that has forgotten the key cannot tell it from a new one
            outcome = self.commit(session.last)
            if session.last.end is not None:
                assert isinstance(outcome, SessionGone)
            elif self.living(session.key) is session:
                assert isinstance(outcome, Record) and outcome.key == session.key

        @rule(seconds=_seconds)
        def advance(self, seconds: int) -> None:
            self.now += seconds

        @rule(limit=st.integers(1, 3))
        def sweep(self, limit: int) -> None:
            swept = answer(self.store.sweep(limit))
            assert swept.ended <= limit
            if not swept.more:
                pending = [one.deadline for one in self.byKey.values()]
                first = min((one for one in pending if one > self.now), default=math.inf)
                wait = math.inf if swept.wait is None else swept.wait
                assert 0 < wait <= first - self.now, f"oversleeps {first}: {swept!r}"

        @rule(limit=st.integers(1, 3), lease=_seconds)
        def claim(self, limit: int, lease: int) -> None:
            self.claimed(limit, lease)

        def claimed(self, limit: int, lease: int) -> list[Ended]:
            """
            Claim, and see that each end is one that may be claimed now.
            """
            claimed = answer(self.store.claim(limit, lease))
            assert len(claimed) <= limit
            for end in claimed:
                (session,) = [one for one in self.sessions if one.handle == end.id]
                assert self.living(session.key) is not session, "an end of what still lives"
                record = end.record
                assert end.reason == session.why
                assert record.handle == end.id and record.key == session.key
                assert (dict(record.fields), record.principal, record.version) == (
                    session.fields, session.principal, session.version
                )  # fmt: skip
                known = self.heard.get(end.id)
                attempts = 1
                if known is not None:
                    assert not known.closed, "heard twice"
                    assert known.until <= self.now, "somebody else has it"
                    attempts = known.attempts + 1
                assert end.attempts == attempts
                self.heard[end.id] = _Heard(end, self.now + lease, attempts)
            return claimed

        @rule(data=st.data(), retryIn=st.none() | _seconds, dead=st.booleans())
        @precondition(lambda self: self.heard)
        def settle(self, data: st.DataObject, retryIn: int | None, dead: bool) -> None:
            # One whose lease has run out and that nobody took is left out: a
            # store may say either.
            known = [one for one in self.heard.values() if not one.held or one.until > self.now]
            if known:
                one = data.draw(st.sampled_from(known))
                verdict = Verdict(one.end.id, one.end.claim, retryIn, dead)
                assert answer(self.store.settle([verdict])) == [one.held]
                if one.held:
                    one.held = False
                    one.closed = dead or retryIn is None
                    one.until = self.now + (retryIn or 0)

        @rule(data=st.data())
        @precondition(lambda self: self.heard)
        def settleAnothers(self, data: st.DataObject) -> None:
            id_ = data.draw(st.sampled_from(sorted(self.heard)))
            assert answer(self.store.settle([Verdict(id_, b"not its claim")])) == [False]

        @rule()
        @precondition(lambda self: reopen is not None)
        def restart(self) -> None:
            assert reopen is not None
            answer(self.store.close())
            self.store = reopen(self.store, self.time)

        # What always holds

        @invariant()
        def loadsAsInTheModel(self) -> None:
            records = answer(self.store.load(self.allKeys))
            for key, record in zip(self.allKeys, records, strict=True):
                session = self.living(key)
                if session is None or record is None:
                    assert session is None and record is None, f"{session!r}, but {record!r}"
                    continue
                assert dict(record.fields) == session.fields
                for name in ("key", "created", "touched", "idle", "absolute", "principal",
                             "version", "uses", "epoch", "deadline"):  # fmt: skip
                    assert getattr(record, name) == getattr(session, name), name
                assert record.deadline >= self.deadlines.get(session.handle, -math.inf)
                self.deadlines[session.handle] = record.deadline

        @invariant()
        def indexesAreTheLiving(self) -> None:
            living = [one for one in self.sessions if self.living(one.key) is one]
            for principal in ("ann", "bob"):
                records = answer(self.store.sessionsOf(principal))
                assert [one.created for one in records] == sorted(one.created for one in records)
                assert {one.key for one in records} == {
                    one.key for one in living if one.principal == principal
                }, "the index of principals"
            for session in self.sessions:
                found = answer(self.store.withHandle(session.handle))
                assert (found and found.key) == (session.key if session in living else None)
            walked: list[bytes] = []
            while page := answer(self.store.iterate(walked[-1] if walked else None, 3)):
                walked += [one.key for one in page]
            assert walked == sorted(one.key for one in living)

        def teardown(self) -> None:
            try:
                self.everyEndIsHeard()
            finally:
                answer(self.store.close())

        def everyEndIsHeard(self) -> None:
            if not self.sessions:
                return
            while answer(self.store.sweep(10)).more:
                pass
            self.now += 1000  # past all leases, and later than some deadlines: swept no more
            over = {
                one.handle for one in self.sessions if one.ended or one.deadline <= self.now - 1000
            }
            while claimed := self.claimed(3, 50):
                answer(self.store.settle([Verdict(end.id, end.claim) for end in claimed]))
            assert set(self.heard) == over, "the ledger of what was heard is that of the ends"

    return StoreMachine
