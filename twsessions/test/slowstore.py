"""
A store that is far away.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock, deferLater

from twsessions.stores.memory import MemoryStore
from twsessions.testing.faulty import FaultyStore

__all__ = ["SlowStore"]


class SlowStore(FaultyStore):
    """
    Does nothing before the reactor has had a turn, or some time has passed.
    """

    def __init__(self, clock: Clock, trip: float = 0.0) -> None:
        """
        @param trip: seconds there and back.
        """
        super().__init__(MemoryStore(clock.seconds))
        self.clock = clock
        self._trip = trip

    def _ask(self, operation: str, *args: Any) -> Deferred[Any]:
        if operation == "close":
            return succeed(None)
        return deferLater(self.clock, self._trip, super()._ask, operation, *args)
