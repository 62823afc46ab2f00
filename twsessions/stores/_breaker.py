"""
A circuit breaker: a store that keeps failing is left alone for a while, so that
it costs who needs it milliseconds and not the whole timeout.
"""

from __future__ import annotations

from typing import Any

from twisted.logger import Logger

from twsessions.errors import StoreUnavailable

__all__ = ["Breaker"]

_log = Logger()


class Breaker:
    """
    Counts failures in a row.

    @ivar isOpen: whether calls are kept from the store.
    @ivar failures: all that there were.
    """

    def __init__(self, reactor: Any, failuresToOpen: int, coolDown: float, patience: float) -> None:
        """
        @param reactor: L{IReactorTime}.
        @param failuresToOpen: how many in a row.
        @param coolDown: seconds from a failure to the next try.
        @param patience: seconds for which a try may have no answer, before
            there is another.
        """
        self.isOpen = False
        self.failures = 0
        self._reactor = reactor
        self._failuresToOpen = failuresToOpen
        self._coolDown = coolDown
        self._patience = patience
        self._inRow = 0
        self._openSince = 0.0
        self._nextTry = 0.0

    def refusal(self) -> StoreUnavailable | None:
        """
        Why a call is not to be made; L{None}: it may, and if the breaker is open
        it is the probe. Until that is answered, or can be no more, there is no
        other.
        """
        if not self.isOpen:
            return None
        now = self._reactor.seconds()
        if now < self._nextTry:
            return self.explanation()
        self._nextTry = now + self._patience
        return None

    def explanation(self) -> StoreUnavailable:
        """
        What to tell who is refused.
        """
        now = self._reactor.seconds()
        return StoreUnavailable(
            f"the store has been unavailable for {now - self._openSince:.1f} s;"
            f" the next try is in {self._nextTry - now:.1f} s"
        )

    def failed(self, why: Exception) -> None:
        """
        A call has failed, or has been given up on.
        """
        self.failures += 1
        self._inRow += 1
        if self._inRow < self._failuresToOpen:
            return
        now = self._reactor.seconds()
        self._nextTry = now + self._coolDown
        if not self.isOpen:
            self.isOpen = True
            self._openSince = now
            _log.warn(
                "the store is unavailable: {count} failures in a row, the last: {why}",
                count=self._inRow,
                why=str(why),
            )

    def worked(self) -> None:
        """
        A call was answered.
        """
        self._inRow = 0
        if self.isOpen:
            self.isOpen = False
            _log.info(
                "the store is available again, after {seconds:.1f} s",
                seconds=self._reactor.seconds() - self._openSince,
            )

    def workedInPart(self) -> None:
        """
        One server of several is away. That tells nothing of the others, and must
        not keep calls from them: the next one probes again.
        """
        self._nextTry = 0.0
