"""
A connection on which what leaves in one flight is answered in one list.
"""

from __future__ import annotations

from collections import deque
from typing import Any, ClassVar, Final

from twisted.internet.defer import Deferred, fail
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure

from twsessions.errors import StoreUnavailable

__all__ = ["FlightProtocol"]

_MOST: Final = 4096  # flights that wait for replies; bounds the memory
_LEAST: Final = 0.1  # seconds that a flight is given


class _Flight:
    """
    Commands sent together, and their replies so far.
    """

    __slots__ = ("count", "deadline", "done", "replies")

    def __init__(self, count: int, deadline: float) -> None:
        self.count = count
        self.deadline = deadline
        self.replies: list[Any] = []
        self.done: Deferred[list[Any]] = Deferred()


class FlightProtocol(Protocol):
    """
    The connection; a subclass parses, and calls L{answer}. It does not
    survive a missed deadline: replies could not be told apart any more.

    @cvar peer: what is at the other end, for people.
    @ivar isLate: whether it was dropped for a missed deadline.
    @ivar lost: fires when the connection is closed, for whatever reason.
    """

    peer: ClassVar[str]
    transport: Any

    def __init__(self, clock: Any) -> None:
        """
        @param clock: an L{IReactorTime}.
        """
        self._clock = clock
        self._flights: deque[_Flight] = deque()
        self._timer: Any = None
        self._why: str | None = None  # it is of no use any more
        self.isLate = False
        self.lost: Deferred[None] = Deferred()

    @property
    def isUp(self) -> bool:
        """
        Whether anything can be asked.
        """
        return self._why is None

    def connectionMade(self) -> None:
        """
        Send small requests at once, also while others wait for replies.
        """
        self.transport.setTcpNoDelay(True)
        self.transport.setTcpKeepAlive(True)

    def ask(self, payload: bytes, count: int, deadline: float) -> Deferred[list[Any]]:
        """
        Send commands.

        @param count: how many replies they get.
        @param deadline: by the clock; when it is missed the connection is
            dropped.
        @return: fires with the replies, errors among them; fails with
            L{StoreUnavailable}.
        """
        if self._why is not None:
            return fail(StoreUnavailable(self._why))
        if len(self._flights) >= _MOST:
            return fail(StoreUnavailable(f"{_MOST} calls wait for the {self.peer} already"))
        now = self._clock.seconds()
        if deadline <= now:
            return fail(StoreUnavailable(f"the {self.peer} took too long"))
        # Whoever comes late must not cost the others their connection.
        deadline = max(deadline, now + _LEAST)
        flight = _Flight(count, deadline)
        self._flights.append(flight)
        self.transport.write(payload)
        if self._timer is None or deadline < self._timer.getTime():
            self._watch(deadline)
        return flight.done

    def answer(self, reply: Any) -> None:
        """
        The next reply has come.
        """
        flights = self._flights
        if not flights:
            self.drop(f"the {self.peer} answered what nobody had asked")
            return
        flight = flights[0]
        flight.replies.append(reply)
        if len(flight.replies) == flight.count:
            flights.popleft()
            flight.done.callback(flight.replies)

    def drop(self, why: str) -> None:
        """
        Close it, now; what waits for replies fails.

        @param why: said in the errors.
        """
        if self._why is None:
            self._why = why
            self.transport.abortConnection()
            self._failAll()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """
        Fail what waits.
        """
        if self._why is None:
            self._why = f"the connection to the {self.peer} was lost"
            if not reason.check(ConnectionDone, ConnectionLost):
                self._why += f": {reason.getErrorMessage()}"  # such as TLS's
        self._failAll()
        self.lost.callback(None)

    # Deadlines

    def _watch(self, deadline: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._clock.callLater(max(0.0, deadline - self._clock.seconds()), self._late)

    def _late(self) -> None:
        self._timer = None
        if not self._flights:
            return
        first = min(flight.deadline for flight in self._flights)
        if first <= self._clock.seconds():
            self.isLate = True
            self.drop(f"the {self.peer} did not answer in time")
        else:
            self._watch(first)

    def _failAll(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        flights, self._flights = self._flights, deque()
        for flight in flights:
            flight.done.errback(StoreUnavailable(self._why))
