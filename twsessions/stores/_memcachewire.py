"""
One connection to a memcached server: what leaves in one flight is answered in
one list.
"""

from __future__ import annotations

import re
from collections import deque
from typing import Any, Final

from twisted.internet.defer import Deferred, fail
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure

from twsessions.errors import StoreUnavailable

__all__ = ["Reply", "Wire"]

Reply = bytes | dict[bytes, Any]
"""
A line, or what came before an C{END}: C{(cas, value)} by key, or statistics by
name.
"""

_MOST: Final = 4096  # flights that wait for replies, and values in a reply; bounds the memory
_LONGEST: Final = 2048  # bytes of a line
_LEAST: Final = 0.1  # seconds that a flight is given
_value: Final = re.compile(rb"VALUE ([!-~]+) [0-9]+ ([0-9]{1,10}) ([0-9]{1,20})\r\n").match


class _Flight:
    """
    Commands sent together, and their replies so far.
    """

    __slots__ = ("count", "deadline", "done", "replies")

    def __init__(self, count: int, deadline: float) -> None:
        self.count = count
        self.deadline = deadline
        self.replies: list[Reply] = []
        self.done: Deferred[list[Reply]] = Deferred()


class Wire(Protocol):
    """
    The connection. It does not survive a missed deadline: replies could not
    be told apart any more.

    @ivar itemSize: bytes of the largest item the server takes; it sends none
        that is larger.
    @ivar isLate: whether it was dropped for a missed deadline.
    @ivar lost: fires when the connection is closed, for whatever reason.
    """

    transport: Any

    def __init__(self, clock: Any) -> None:
        """
        @param clock: an L{IReactorTime}.
        """
        self._clock = clock
        self._flights: deque[_Flight] = deque()
        self._timer: Any = None
        self._why: str | None = None  # it is of no use any more
        self._chunks: list[bytes] = []  # of a reply that is not complete
        self._size = 0  # bytes in them
        self._needed = 0  # bytes without which there is nothing to parse
        self._group: dict[bytes, Any] = {}  # what came since the last END
        self.itemSize = 0
        self.isLate = False
        self.lost: Deferred[None] = Deferred()

    @property
    def isUp(self) -> bool:
        """
        Whether anything can be asked.
        """
        return self._why is None

    def ask(self, payload: bytes, count: int, deadline: float) -> Deferred[list[Reply]]:
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
            return fail(StoreUnavailable(f"{_MOST} calls wait for the memcached server already"))
        now = self._clock.seconds()
        if deadline <= now:
            return fail(StoreUnavailable("the memcached server took too long"))
        # Whoever comes late must not cost the others their connection.
        deadline = max(deadline, now + _LEAST)
        flight = _Flight(count, deadline)
        self._flights.append(flight)
        self.transport.write(payload)
        if self._timer is None or deadline < self._timer.getTime():
            self._watch(deadline)
        return flight.done

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

    def connectionMade(self) -> None:
        """
        Send small requests at once.
        """
        self.transport.setTcpNoDelay(True)
        self.transport.setTcpKeepAlive(True)

    def dataReceived(self, data: bytes) -> None:
        """
        Parse replies and hand them out.
        """
        self._chunks.append(data)
        self._size += len(data)
        if self._size < self._needed or self._why is not None:
            return
        data = b"".join(self._chunks)
        try:
            rest = data[self._parse(data) :]
        except ValueError:
            self.drop("what the memcached server answers is not its protocol")
            return
        self._chunks, self._size = [rest] if rest else [], len(rest)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """
        Fail what waits.
        """
        if self._why is None:
            self._why = "the connection to the memcached server was lost"
        self._failAll()
        self.lost.callback(None)

    # Replies

    def _parse(self, data: bytes) -> int:
        """
        @return: how many bytes of it have been dealt with.
        @raise ValueError: it is no reply.
        """
        at = 0
        while self._why is None:
            if (head := _value(data, at)) is not None:
                key, length, cas = head.groups()
                start = head.end()
                stop = start + int(length)
                if not self._flights or stop - start > self.itemSize:
                    raise ValueError("no such value can be")
                if len(data) < stop + 2:
                    self._needed = stop + 2 - at
                    return at
                if not data.startswith(b"\r\n", stop):
                    raise ValueError("a value that does not end")
                self._put(key, (cas, data[start:stop]))
                at = stop + 2
                continue
            end = data.find(b"\r\n", at, at + _LONGEST)
            if end < 0:
                if len(data) - at >= _LONGEST:
                    raise ValueError("an endless line")
                self._needed = 0
                return at
            if not self._flights:
                self.drop("the memcached server answered what nobody had asked")
            elif data.startswith(b"STAT ", at):
                name, _, said = data[at + 5 : end].partition(b" ")
                self._put(name, said)
            elif end - at == 3 and data.startswith(b"END", at):
                group, self._group = self._group, {}
                self._answer(group)
            else:
                self._answer(data[at:end])
            at = end + 2
        return at

    def _put(self, name: bytes, what: object) -> None:
        if len(self._group) >= _MOST:
            raise ValueError("an endless reply")
        self._group[name] = what

    def _answer(self, reply: Reply) -> None:
        if self._group:
            raise ValueError("a reply within a reply")
        flight = self._flights[0]
        flight.replies.append(reply)
        if len(flight.replies) == flight.count:
            self._flights.popleft()
            flight.done.callback(flight.replies)

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
            self.drop("the memcached server did not answer in time")
        else:
            self._watch(first)

    def _failAll(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._chunks, self._size = [], 0
        flights, self._flights = self._flights, deque()
        for flight in flights:
            flight.done.errback(StoreUnavailable(self._why))
