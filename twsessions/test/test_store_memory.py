"""
The memory store keeps the contract, and the contract notices one that does not.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, succeed

from twsessions.core.delta import Change
from twsessions.core.record import Record
from twsessions.stores.memory import MemoryStore
from twsessions.testing.contract import StoreContractMixin


class TestMemoryStore(StoreContractMixin, run=pytest_twisted.ensureDeferred):
    async def makeStore(self) -> MemoryStore:
        return MemoryStore(self.clock.seconds)


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
        return succeed([place and place.record for place in places])


@pytest.mark.parametrize(
    ("broken", "test"),
    [
        (Forgetful, "test_createInsertOnly"),
        (Reviving, "test_saveAfterDeleteIsGone"),
        (Reviving, "test_useOfNothingIsGone"),
        (Unsweeping, "test_loadExactDeadlineBoundary"),
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
