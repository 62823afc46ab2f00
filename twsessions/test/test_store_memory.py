"""
The memory store keeps the contract, and the contract notices one that does not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock

from twsessions.core.delta import Change
from twsessions.core.record import Record
from twsessions.errors import StoreError
from twsessions.interfaces import Message
from twsessions.stores.memory import MemoryStore
from twsessions.testing.contract import StoreContractMixin, change, create, newKey


class TestMemoryStore(StoreContractMixin, run=pytest_twisted.ensureDeferred):
    async def makeStore(self) -> MemoryStore:
        return MemoryStore(self.clock.seconds)


def test_manyRecordsAsOne() -> None:
    """
    Most are kept packed; nothing shows it.
    """
    clock = Clock()
    store = MemoryStore(clock.seconds)
    keys = sorted(newKey() for _ in range(1500))
    made = []
    for number, key in enumerate(keys):
        new = create(key, idle=10.0 if number < 3 else 60.0, set={"dn": b"%d" % number})
        new.principal = "ann" if number < 5 else None
        made += result(store.commit([new]))
    result(store.listen())
    assert result(store.load(keys)) == made
    assert result(store.iterate(None, 2000)) == made
    assert result(store.sessionsOf("ann")) == made[:5]
    for one in (made[100], made[1400]):  # packed, and not
        assert result(store.withHandle(one.handle)) == one
    clock.advance(10)
    assert result(store.sweep(100)).ended == 3
    ends = result(store.claim(100, 5.0))
    assert {end.record.fields["dn"] for end in ends} == {b"0", b"1", b"2"}
    (changed,) = result(store.commit([change(keys[3], set={"dx": b"!"})]))
    assert changed.fields == {"dn": b"3", "dx": b"!"}
    (ended,) = result(store.commit([change(keys[4], end="logout")]))
    assert ended.fields == {"dn": b"4"}
    assert result(store.sessionsOf("ann")) == [changed]
    assert result(store.load([keys[4]])) == [None]


def test_aNameThatCannotBePacked() -> None:
    """
    Its own change is refused, and not that of somebody else later.
    """
    store = MemoryStore(Clock().seconds)
    outcomes = result(store.commit([create(newKey(), principal="\ud800"), create(newKey())]))
    assert [type(outcome) for outcome in outcomes] == [StoreError, Record]
    for _ in range(1100):
        assert isinstance(result(store.commit([create(newKey())]))[0], Record)


def result(deferred: Deferred[Any]) -> Any:
    results: list[Any] = []
    deferred.addCallback(results.append)
    return results[0]


class Forgetful(MemoryStore):
    """
    Acknowledges, and stores nothing.
    """

    def commit(self, changes):  # type: ignore[no-untyped-def]
        now = self._now()
        return succeed([Record(c.key, b"x" * 16, now, now, asOf=now) for c in changes])


class Reviving(MemoryStore):
    """
    Makes a session anew when somebody writes to one that has ended.
    """

    def _commit(self, change: Change, now: float) -> Record:
        if change.birth is None and change.key not in self._places and change.end is None:
            from twsessions.core.delta import Birth

            change.birth = Birth(b"x" * 16)
        return super()._commit(change, now)


class Unsweeping(MemoryStore):
    """
    Gives out sessions that have fallen due.
    """

    def load(self, keys):  # type: ignore[no-untyped-def]
        places = [self._places.get(key) for key in keys]
        return succeed([place and place.record() for place in places])


class Interrupting(MemoryStore):
    """
    Tells of what a listener says before the others have heard what it answers.
    """

    def publish(self, messages):  # type: ignore[no-untyped-def]
        for message in messages:
            for heard in tuple(self._listeners._all):
                try:
                    heard(message)
                except RuntimeError:
                    pass
        return succeed([None] * len(messages))


class Backwards(MemoryStore):
    """
    Tells of the last message first.
    """

    def publish(self, messages):  # type: ignore[no-untyped-def]
        return super().publish(messages[::-1])


class Keeping(MemoryStore):
    """
    Tells new listeners what was said before.
    """

    def publish(self, messages):  # type: ignore[no-untyped-def]
        self.said = [*getattr(self, "said", []), *messages]
        return super().publish(messages)

    def subscribe(self, heard):  # type: ignore[no-untyped-def]
        for message in getattr(self, "said", []):
            heard(message)
        return super().subscribe(heard)


class Unlimited(MemoryStore):
    """
    Takes messages of any size.
    """

    def publish(self, messages):  # type: ignore[no-untyped-def]
        for message in messages:
            self._listeners.tell(Message(*message))
        return succeed([None] * len(messages))


@pytest.mark.parametrize(
    ("broken", "test"),
    [
        (Forgetful, "test_createInsertOnly"),
        (Reviving, "test_saveAfterDeleteIsGone"),
        (Reviving, "test_useOfNothingIsGone"),
        (Unsweeping, "test_loadExactDeadlineBoundary"),
        (Interrupting, "test_listenersDoNotDisturbEachOther"),
        (Backwards, "test_messagesArrive"),
        (Keeping, "test_messagesAreNotKept"),
        (Unlimited, "test_messagesThatAreTooLarge"),
    ],
)
def test_theContractFailsABrokenStore(broken: type, test: str) -> None:
    def run(coroutineFunction: Callable) -> Callable:
        return lambda self: Deferred.fromCoroutine(coroutineFunction(self))

    class Suite(StoreContractMixin, run=run):
        async def makeStore(self) -> MemoryStore:
            return broken(self.clock.seconds)

    failed: list[object] = []
    getattr(Suite(), test)().addErrback(failed.append)
    assert failed
