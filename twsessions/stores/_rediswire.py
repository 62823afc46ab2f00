"""
One connection to a Redis server: what leaves in one flight is answered in one
list.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final

from hiredis import Reader, pack_command
from twisted.internet.defer import Deferred, fail
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure

from twsessions.errors import StoreUnavailable

__all__ = ["Wire", "command", "explain"]

_MORE: Final = object()  # the parser has no whole reply yet
_MOST: Final = 4096  # flights that wait for replies; bounds the memory

_LEAST: Final = 0.1  # seconds that a flight is given

_MEANING: Final = {
    "NOAUTH": "the Redis server wants a password",
    "WRONGPASS": "the Redis server refused user and password",
    "NOPERM": "the Redis user may not do what the store needs: it takes all of its keys"
    " (~prefix*), its channel (&prefix*) and the commands @read @write @scripting @connection"
    " @pubsub +time +info +ping, +cluster or +role where there is a cluster or Sentinel",
    "LOADING": "the Redis server is loading its data",
    "BUSY": "the Redis server is busy with a script",
    "READONLY": "the Redis server is a replica: it takes no writes",
    "OOM": "the Redis server's memory is full (maxmemory)",
    "MISCONF": "the Redis server cannot save to its disk and takes no writes",
    "NOREPLICAS": "the Redis server has too few replicas and takes no writes",
    "MASTERDOWN": "the Redis server has lost its master",
    "CLUSTERDOWN": "the Redis cluster is down",
    "TRYAGAIN": "the sessions are just being moved to another node of the cluster",
    "MOVED": "the Redis server is part of a cluster: use redis+cluster://",
}


def command(*words: bytes | str | int) -> bytes:
    """
    A command, as it is sent.
    """
    packed: bytes = pack_command(words)  # type: ignore[arg-type]
    return packed


def explain(error: object) -> StoreUnavailable:
    """
    What a reply that is an error says to people. The server repeats a
    command's arguments in some; those are left out.
    """
    text = str(error)
    code = text.partition(" ")[0]
    if "non local key" in text:
        code = "TRYAGAIN"
    said = _MEANING.get(code) or f"the Redis server refused: {text.partition(', with args')[0]}"
    return StoreUnavailable(said)


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


class Wire(Protocol):
    """
    The connection. It does not survive a missed deadline: replies could not
    be told apart any more.

    @ivar isLate: whether it was dropped for a missed deadline.
    @ivar lost: fires when the connection is closed, for whatever reason.
    @ivar pushed: is called with each reply, if it is set (a subscription).
    """

    transport: Any

    def __init__(self, clock: Any) -> None:
        """
        @param clock: an L{IReactorTime}.
        """
        self._clock = clock
        self._reader = Reader(notEnoughData=_MORE)
        self._flights: deque[_Flight] = deque()
        self._timer: Any = None
        self._why: str | None = None  # it is of no use any more
        self.isLate = False
        self.pushed: Callable[[Any], None] | None = None
        self.lost: Deferred[None] = Deferred()

    @property
    def isUp(self) -> bool:
        """
        Whether anything can be asked.
        """
        return self._why is None

    def ask(self, payload: bytes, count: int, deadline: float) -> Deferred[list[Any]]:
        """
        Send commands.

        @param count: how many.
        @param deadline: by the clock; when it is missed the connection is
            dropped.
        @return: fires with the replies, errors among them; fails with
            L{StoreUnavailable}.
        """
        if self._why is not None:
            return fail(StoreUnavailable(self._why))
        if len(self._flights) >= _MOST:
            return fail(StoreUnavailable(f"{_MOST} calls wait for the Redis server already"))
        now = self._clock.seconds()
        if deadline <= now:
            return fail(StoreUnavailable("the Redis server took too long"))
        # Whoever comes late must not cost the others their connection.
        deadline = max(deadline, now + _LEAST)
        flight = _Flight(count, deadline)
        self._flights.append(flight)
        self.transport.write(payload)
        if self._timer is None or deadline < self._timer.getTime():
            self._watch(deadline)
        return flight.done

    def send(self, payload: bytes) -> None:
        """
        Send a command whose reply is L{pushed}.
        """
        if self._why is None:
            self.transport.write(payload)

    def drop(self, why: str) -> None:
        """
        Close it, now; what waits for replies fails.

        @param why: said in the errors.
        """
        if self._why is None:
            self._why = why
            self.transport.abortConnection()
            self._failAll()

    # From the transport

    def dataReceived(self, data: bytes) -> None:
        """
        Parse replies and hand them out.
        """
        reader, flights = self._reader, self._flights
        try:
            reader.feed(data)
            while (reply := reader.gets()) is not _MORE:
                if self.pushed is not None:
                    self.pushed(reply)
                elif not flights:
                    self.drop("the Redis server answered what nobody had asked")
                else:
                    flight = flights[0]
                    flight.replies.append(reply)
                    if len(flight.replies) == flight.count:
                        flights.popleft()
                        flight.done.callback(flight.replies)
                if self._why is not None:
                    return
        except Exception:
            # The parser's own errors, and the like of a MemoryError for a
            # length that is garbage: whatever it is, replies are lost.
            self.drop("what the Redis server answers is not its protocol")

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """
        Fail what waits.
        """
        if self._why is None:
            self._why = "the connection to the Redis server was lost"
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
            self.drop("the Redis server did not answer in time")
        else:
            self._watch(first)

    def _failAll(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        flights, self._flights = self._flights, deque()
        for flight in flights:
            flight.done.errback(StoreUnavailable(self._why))
