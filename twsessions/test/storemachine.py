"""
A store against a model of it: any operations in any order, on stale keys too.

The model restates the promises with dictionaries and shares no code with what
stores use to apply changes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
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
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from twsessions.core.delta import Birth, Change
from twsessions.core.record import Record
from twsessions.errors import SessionError, SessionGone, StoreUnavailable
from twsessions.interfaces import EVENTS, ITERATE, PRINCIPALS, Ended, ISessionStore, Verdict

__all__ = ["Faults", "answer", "machineFor"]

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


class Faults:
    """
    What can happen to a store on a server, and how to wait for it.
    """

    def answer(self, deferred: Deferred[T]) -> T:
        """
        Wait for what a Deferred fires with.
        """
        raise NotImplementedError

    def cut(self) -> None:
        """
        Cut all connections.
        """
        raise NotImplementedError

    def cutAfter(self, way: str | None, count: int = 0) -> None:
        """
        Cut them when so many bytes more have passed C{"up"} to the server or
        C{"down"} from it; L{None}: no longer.
        """
        raise NotImplementedError

    def restart(self) -> None:
        """
        Kill the server, and start it again.
        """
        raise NotImplementedError


def machineFor(
    makeStore: Callable[[Callable[[], float]], ISessionStore],
    reopen: Callable[[ISessionStore, Callable[[], float]], ISessionStore] | None = None,
    faults: Faults | None = None,
    keeps: bool = True,
    scale: int = 1,
) -> type[RuleBasedStateMachine]:
    """
    The machine for a store. Its C{TestCase} attribute is what test runners
    want. What a store does not declare it is not asked for.

    @param makeStore: is given a clock, and returns a store on an empty place.
    @param reopen: is given a store that has been closed and the clock, and
        returns another on its place.
    @param faults: for a store on a server; others answer at once.
    @param keeps: whether the server's death loses nothing.
    @param scale: of the store's seconds in one of the machine's. A server's own
        time goes on while it is asked: with a thousand that does not show, and
        the clock that C{makeStore} is given is what to add to it.
    """

    def long(seconds: float | None) -> float | None:
        return None if seconds is None else seconds * scale

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
            self.restarts = 0
            self.began = time.time()
            self.store = makeStore(self.time)

        def time(self) -> float:
            return self.now if scale == 1 else (self.now - _START) * scale

        # Help

        def can(self, *capabilities: str) -> bool:
            return self.store.capabilities.issuperset(capabilities)

        def ours(self, when: float) -> float:
            """
            A time of the store's, by the machine's clock.
            """
            if scale == 1 or when == math.inf:
                return when
            return _START + round((when - self.began) / scale)

        def ask(self, operation: Callable[[], Deferred[T]]) -> T:
            """
            Do something, again if the connection was lost meanwhile.
            """
            if faults is None:
                return answer(operation())
            for _ in range(200):
                try:
                    result = faults.answer(operation())
                except StoreUnavailable:
                    result = None
                else:
                    # Of a cluster, the part that was cut off says so item by item.
                    items = result if isinstance(result, list) else []
                    if not any(isinstance(item, StoreUnavailable) for item in items):
                        return result
                faults.cutAfter(None)
                faults.answer(deferLater(reactor, 0.02, lambda: None))
            raise AssertionError("the store does not recover")

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
            (outcome,) = self.ask(lambda: self.store.commit([change]))
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
            if self.can(EVENTS):
                self.ask(lambda: self.store.listen())
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
            birth = Birth(b"%016d" % next(self.numbers), ago=ago * scale, absolute=long(absolute))
            change = Change(
                key, self.token(), birth, set=dict(fields), idle=long(idle), principal=principal
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
            session = self.changed(Change(key, self.token(), usedAgo=ago * scale, uses=1))
            if session is not None:
                session.uses += 1
                session.touched = max(session.touched, int(self.now) - ago)

        @rule(key=keys, idle=st.none() | _seconds)
        def setTimeout(self, key: bytes, idle: int | None) -> None:
            session = self.changed(Change(key, self.token(), idle=long(idle), ownIdle=True))
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
        @precondition(lambda self: self.can(EVENTS))
        def sweep(self, limit: int) -> None:
            swept = self.ask(lambda: self.store.sweep(limit))
            assert swept.ended <= limit
            if not swept.more:
                pending = [one.deadline for one in self.byKey.values()]
                first = min((one for one in pending if one > self.now), default=math.inf)
                wait = math.inf if swept.wait is None else swept.wait / scale
                assert 0 < wait <= first - self.now, f"oversleeps {first}: {swept!r}"

        @rule(limit=st.integers(1, 3), lease=_seconds)
        @precondition(lambda self: self.can(EVENTS))
        def claim(self, limit: int, lease: int) -> None:
            self.claimed(limit, lease)

        def claimed(self, limit: int, lease: int) -> list[Ended]:
            """
            Claim, and see that each end is one that may be claimed now.
            """
            claimed = self.ask(lambda: self.store.claim(limit, lease * scale))
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
                verdict = Verdict(one.end.id, one.end.claim, long(retryIn), dead)
                assert self.ask(lambda: self.store.settle([verdict])) == [one.held]
                if one.held:
                    one.held = False
                    one.closed = dead or retryIn is None
                    one.until = self.now + (retryIn or 0)

        @rule(data=st.data())
        @precondition(lambda self: self.heard)
        def settleAnothers(self, data: st.DataObject) -> None:
            id_ = data.draw(st.sampled_from(sorted(self.heard)))
            assert self.ask(lambda: self.store.settle([Verdict(id_, b"not its claim")])) == [False]

        @rule()
        @precondition(lambda self: reopen is not None)
        def restart(self) -> None:
            assert reopen is not None
            self.ask(self.store.close)
            self.store = reopen(self.store, self.time)
            if self.can(EVENTS):
                self.ask(lambda: self.store.listen())

        # Faults

        @rule()
        @precondition(lambda self: faults is not None)
        def loseConnections(self) -> None:
            assert faults is not None
            faults.cut()

        @rule(
            key=keys,
            name=_names,
            value=_values,
            way=st.sampled_from(["up", "down"]),
            size=st.integers(0, 200),
        )
        @precondition(lambda self: faults is not None)
        def writeThroughACut(
            self, key: bytes, name: str, value: bytes, way: str, size: int
        ) -> None:
            """
            The connection goes somewhere in a commit, which is sent again: it
            may have been done, and is not done twice.
            """
            assert faults is not None
            faults.cutAfter(way, size)
            self.write(key, name, value)
            faults.cutAfter(None)

        @rule()
        @precondition(lambda self: faults is not None and keeps and self.restarts < 1)
        def restartServer(self) -> None:
            assert faults is not None
            self.restarts += 1
            faults.restart()

        # What always holds

        @invariant()
        def loadsAsInTheModel(self) -> None:
            records = self.ask(lambda: self.store.load(self.allKeys))
            for key, record in zip(self.allKeys, records, strict=True):
                session = self.living(key)
                if session is None or record is None:
                    assert session is None and record is None, f"{session!r}, but {record!r}"
                    continue
                assert dict(record.fields) == session.fields
                for name in "key", "principal", "version", "uses", "epoch":
                    assert getattr(record, name) == getattr(session, name), name
                for name in "idle", "absolute":
                    assert getattr(record, name) == long(getattr(session, name)), name
                for name in "created", "touched", "deadline":
                    assert self.ours(getattr(record, name)) == getattr(session, name), name
                assert record.deadline >= self.deadlines.get(session.handle, -math.inf)
                self.deadlines[session.handle] = record.deadline

        @invariant()
        def indexesAreTheLiving(self) -> None:
            living = [one for one in self.sessions if self.living(one.key) is one]
            for principal in ("ann", "bob") if self.can(PRINCIPALS) else ():
                records = self.ask(partial(self.store.sessionsOf, principal))
                assert [one.created for one in records] == sorted(one.created for one in records)
                assert {one.key for one in records} == {
                    one.key for one in living if one.principal == principal
                }, "the index of principals"
            for session in self.sessions if self.can(PRINCIPALS) else ():
                found = self.ask(partial(self.store.withHandle, session.handle))
                assert (found and found.key) == (session.key if session in living else None)
            if not self.can(ITERATE):
                return
            walked: list[bytes] = []
            page = partial(self.store.iterate, limit=3)
            while records := self.ask(partial(page, walked[-1] if walked else None)):
                walked += [one.key for one in records]
            assert walked == sorted(one.key for one in living)

        def teardown(self) -> None:
            try:
                if self.can(EVENTS):
                    self.everyEndIsHeard()
            finally:
                self.ask(self.store.close)

        def everyEndIsHeard(self) -> None:
            if not self.sessions:
                return
            while self.ask(lambda: self.store.sweep(10)).more:
                pass
            self.now += 1000  # past all leases, and later than some deadlines: swept no more
            over = {
                one.handle for one in self.sessions if one.ended or one.deadline <= self.now - 1000
            }
            while claimed := self.claimed(3, 50):
                verdicts = [Verdict(end.id, end.claim) for end in claimed]
                self.ask(partial(self.store.settle, verdicts))
            assert set(self.heard) == over, "the ledger of what was heard is that of the ends"

    return StoreMachine
