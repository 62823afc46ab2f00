"""
Having the store end what has fallen due.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Any

from twisted.python.failure import Failure

from twsessions.core.record import Record
from twsessions.web.alarm import SLICE

if TYPE_CHECKING:
    from twsessions.web.storekeeper import StoreKeeper

__all__ = ["Sweeper"]

_STEP = 64  # sessions between two looks at the clock
_BATCH = 256  # sessions of a shared store in one go


class Sweeper:
    """
    Sweeps a shared store every C{sweepInterval}, and one in memory when the
    first of its sessions falls due.
    """

    def __init__(self, keeper: StoreKeeper) -> None:
        self._keeper = keeper
        self._task = keeper.alarm.task(self._sweep)

    def awaken(self) -> None:
        """
        There may be sessions in the shared store.
        """
        keeper = self._keeper
        if not keeper.local:
            due, at = self._task.when, keeper.seconds() + keeper.settings.sweepInterval
            if due is None or at < due:  # earlier than it was: the clock was set back
                self._task.by(at)

    def expect(self, record: Record) -> None:
        """
        This is a session in memory now.
        """
        if record.deadline < inf:
            self._task.by(self._keeper.seconds() + max(0.0, record.deadline - record.asOf))

    def _sweep(self, now: float) -> float | None:
        keeper = self._keeper
        if keeper.local:
            return self._sweepMemory(now)
        interval = keeper.settings.sweepInterval

        def done(swept: Any) -> None:
            if swept.ended:
                keeper.deliverer.poke()
            keeper.watch.poll()
            self._task.by(keeper.seconds() + (0.0 if swept.more else interval))

        def failed(failure: Failure) -> None:
            self._task.by(keeper.seconds() + interval)

        keeper.watch.listen()
        keeper.link.sweep(_BATCH).addCallbacks(done, failed)
        return None

    def _sweepMemory(self, now: float) -> float | None:
        # It answers at once, and knows the next deadline exactly.
        keeper = self._keeper
        started = keeper.seconds()
        while True:
            swept = keeper.link.sweepNow(_STEP)
            if not swept.more or keeper.seconds() - started > SLICE:
                break
        if swept.ended:
            keeper.deliverer.poke()
        return now if swept.more else (None if swept.wait is None else now + swept.wait)
