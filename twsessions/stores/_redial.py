"""
A server's connection, which is made anew when it was lost.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Final, Generic, TypeVar

from twisted.internet.defer import CancelledError, Deferred, TimeoutError, fail, succeed
from twisted.internet.error import ConnectingCancelledError
from twisted.logger import Logger
from twisted.python.failure import Failure

from twsessions.errors import StoreUnavailable
from twsessions.stores._flights import FlightProtocol

__all__ = ["Redialed"]

_FIRST_DELAY: Final = 0.05  # seconds after a failure in which there is no other try
_LAST_DELAY: Final = 1.0

W = TypeVar("W", bound=FlightProtocol)


class Redialed(Generic[W]):
    """
    There is no connection until somebody asks for one, and none is kept
    trying for nobody.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        dial: Callable[[], Coroutine[Any, Any, W]],
        timeout: float,
        patient: bool,
        peer: str,
    ) -> None:
        """
        @param dial: connects; fails with L{StoreUnavailable}.
        @param timeout: seconds for C{dial}.
        @param patient: who asks while a try to connect follows one that
            failed waits for it. Otherwise they fail at once: others' answers
            may depend on it.
        @param peer: what is at the other end, for people.
        """
        self._reactor = reactor
        self._dial = dial
        self._timeout = timeout
        self._patient = patient
        self._peer = peer
        self._wire: W | None = None
        self._latest: W | None = None  # which may not be in use yet, or not any more
        self._attempt: Deferred[None] | None = None
        self._waiting: list[Deferred[W]] = []
        self._delay = 0.0  # seconds from the last failure to the next try; 0: it did not fail
        self._nextTry = 0.0
        self._last = StoreUnavailable("")
        self._closed = False

    @property
    def isDown(self) -> bool:
        """
        Whether it could not be reached the last time.
        """
        return self._delay > 0

    @property
    def isUp(self) -> bool:
        """
        Whether there is a connection.
        """
        return self._wire is not None and self._wire.isUp

    def drop(self, why: str) -> None:
        """
        Drop the connection, if there is one; the next call makes another.
        """
        if self._wire is not None:
            self._wire.drop(why)

    def close(self) -> Deferred[None]:
        """
        Drop everything, for good.
        """
        self._closed = True
        if self._attempt is not None:
            self._attempt.cancel()
        if self._latest is None:
            return succeed(None)
        gone = _whenFires(self._latest.lost)
        self._latest.drop("the store has been closed")
        return gone

    def up(self) -> Deferred[W]:
        """
        Be connected.

        @return: fires with the connection; fails with L{StoreUnavailable}.
        """
        if self._closed:
            return fail(StoreUnavailable("the store has been closed"))
        if self._wire is not None:
            if self._wire.isUp:
                return succeed(self._wire)
            self._note(self._wire)  # it may not be closed quite yet
        if self._attempt is None:
            if self._reactor.seconds() < self._nextTry:
                return fail(StoreUnavailable(*self._last.args))
            self._try()
        if self._wire is not None and self._wire.isUp:
            return succeed(self._wire)
        if self._attempt is None or (self._delay and not self._patient):
            return fail(StoreUnavailable(*self._last.args))
        waiting: Deferred[W] = Deferred()
        self._waiting.append(waiting)
        return waiting

    def _try(self) -> None:
        attempt = Deferred.fromCoroutine(self._dial())
        attempt.addTimeout(self._timeout, self._reactor)
        done: Deferred[None] = attempt.addCallbacks(self._connected, self._failed)
        self._attempt = None if done.called else done

    def _connected(self, wire: W) -> None:
        self._attempt = None
        if self._delay and not self._patient:
            self._log.info("the {peer} is available again", peer=self._peer)
        self._delay = 0.0
        self._wire = self._latest = wire
        wire.lost.addCallback(self._lost, wire)
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            one.callback(wire)

    def _failed(self, failure: Failure) -> None:
        self._attempt = None
        error = failure.value
        if isinstance(error, StoreUnavailable):
            self._last = error
        elif failure.check(CancelledError, ConnectingCancelledError, TimeoutError):
            self._last = StoreUnavailable(f"the {self._peer} did not answer in time")
        elif not isinstance(error, Exception):
            failure.raiseException()
        else:
            self._log.failure("no connection to the {peer}", failure=failure, peer=self._peer)
            self._last = StoreUnavailable(
                f"no connection to the {self._peer}: {type(error).__name__}"
            )
        self._backOff()
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            one.errback(StoreUnavailable(*self._last.args))

    def _backOff(self) -> None:
        if not self._delay and not self._patient:
            # As long as others work the store does, and nobody else says it.
            self._log.warn("one of several servers is away: {why}", why=str(self._last))
        self._delay = min(max(_FIRST_DELAY, self._delay * 2), _LAST_DELAY)
        self._nextTry = self._reactor.seconds() + self._delay

    def _lost(self, _: None, wire: W) -> None:
        self._note(wire)
        if self._wire is wire:
            self._wire = None

    def _note(self, wire: W) -> None:
        if wire.isLate:
            # It hangs, and would take a connection without a word.
            wire.isLate = False
            self._last = StoreUnavailable(f"the {self._peer} did not answer in time")
            self._backOff()


def _whenFires(deferred: Deferred[None]) -> Deferred[None]:
    """
    Another Deferred that fires when one does.
    """
    after: Deferred[None] = Deferred()

    def tell(result: None) -> None:
        after.callback(None)
        return result

    deferred.addCallback(tell)
    return after
