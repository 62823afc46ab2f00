"""
A SockJS session: one client's connection, whatever carries it just now.

Not the web session of a user. Requests come and go, the session stays; what
is to be sent meanwhile waits here. Nothing in this file does I/O or looks at a
clock: events and C{now} go in, what is to be done comes out.

What to write is taken by L{Session.take}, for as long as whatever carries the
session has room. A client that has no request open for C{disconnectDelay}
seconds is gone.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from twsessions.sockjs.frames import STILL_OPEN

__all__ = ["CLOSED", "HEARTBEAT", "NEW", "OPEN", "OPENED", "Close", "Limits", "Messages", "Session"]

NEW, OPEN, CLOSED = "new", "open", "closed"

OPENED = "opened"
"""To be written: the session is open."""

HEARTBEAT = "heartbeat"
"""To be written: a sign of life."""


class Weighed(Protocol):
    """
    A message; how it is encoded is not this file's business.

    @ivar size: what it counts against C{maxQueueBytes}.
    @ivar mayDrop: whether C{dropsOldest} is about it, too.
    """

    @property
    def size(self) -> int: ...

    @property
    def mayDrop(self) -> bool: ...


P = TypeVar("P", bound=Weighed)


@dataclass(frozen=True)
class Messages(Generic[P]):
    """
    To be written: messages that waited.
    """

    packets: list[P]


@dataclass(frozen=True)
class Close:
    """
    To be written as the last; why a session is closed.

    @ivar code: 1000 to 4999.
    @ivar reason: in words.
    @ivar forced: whether somebody closed it, this side or the other; else its
        time was over.
    """

    code: int
    reason: str
    forced: bool = True


@dataclass(frozen=True)
class Limits:
    """
    How long, how much.

    @ivar heartbeat: seconds without anything sent, after which a sign of life is.
    @ivar disconnectDelay: seconds a client may be without a request, and for
        which a closed session still says so.
    @ivar pongTimeout: seconds for the answer to a ping.
    @ivar maxQueueBytes: messages that may wait to be sent.
    @ivar dropsOldest: beyond it the oldest are dropped; else the session is closed.
    """

    heartbeat: float = 25.0
    disconnectDelay: float = 5.0
    pongTimeout: float = 20.0
    maxQueueBytes: int = 1 << 20
    dropsOldest: bool = False


class Session(Generic[P]):
    """
    The state of one connection.

    @ivar state: L{NEW}, L{OPEN} or L{CLOSED}.
    @ivar closed: why, once it is.
    @ivar isAttached: whether something carries it.
    @ivar isReady: whether that takes what is to be sent.
    @ivar dropped: messages that were, from a full queue.
    """

    __slots__ = (
        "_limits",
        "_pongBy",
        "_since",
        "_waiting",
        "_waitingBytes",
        "closed",
        "dropped",
        "isAttached",
        "isReady",
        "state",
    )

    def __init__(self, limits: Limits, now: float) -> None:
        self._limits = limits
        self._since = now  # of the last thing sent; when nothing carries it: without since
        self._waiting: deque[P] | None = None
        self._waitingBytes = 0
        self._pongBy: float | None = None
        self.state = NEW
        self.closed: Close | None = None
        self.isAttached = False
        self.isReady = False
        self.dropped = 0

    # -- what carries it ------------------------------------------------------

    def attach(self, now: float) -> Close | None:
        """
        Something offers to carry the session.

        @return: L{None}, or what to tell it instead.
        """
        if self.isAttached:
            return Close(*STILL_OPEN)
        self.isAttached = self.isReady = True
        self._since = now
        return None

    def pause(self) -> None:
        """
        What carries it can take no more for now.
        """
        self.isReady = False

    def resume(self) -> None:
        """
        It can again.
        """
        self.isReady = self.isAttached

    def detach(self, now: float, interrupted: Close | None = None) -> None:
        """
        Nothing carries it any more.

        @param interrupted: the connection broke. What was on its way may be
            lost, so the session is over.
        """
        self.isAttached = self.isReady = False
        self._pongBy = None
        self._since = now
        if interrupted is not None:
            self.close(now, interrupted)

    # -- what is sent ---------------------------------------------------------

    def send(self, packet: P, now: float) -> bool:
        """
        Send a message.

        @return: whether to write it at once; else it waits (or there is nobody
            any more to send it to).
        """
        if self.state is not OPEN:
            return False
        if self.isReady and not self._waiting:
            self._since = now
            return True
        if self._waiting is None:
            self._waiting = deque()
        self._waiting.append(packet)
        self._waitingBytes += packet.size
        while self._waitingBytes > self._limits.maxQueueBytes:
            oldest = None
            if self._limits.dropsOldest:
                oldest = next((packet for packet in self._waiting if packet.mayDrop), None)
            if oldest is None:
                self.close(now, Close(1013, "Too much is waiting to be sent"))
                self.clear()
                break
            self._waiting.remove(oldest)
            self._waitingBytes -= oldest.size
            self.dropped += 1
        return False

    def take(self, now: float) -> str | Messages[P] | Close | None:
        """
        What to write next to what carries it. A L{Close} is the last.

        @return: L{OPENED}, L{Messages}, a L{Close}, or L{None}: nothing for now.
        """
        if not self.isReady:
            return None
        if self.state is NEW:
            self.state = OPEN
            self._since = now
            return OPENED
        if self._waiting:
            packets = list(self._waiting)
            self.clear()
            self._since = now
            return Messages(packets)
        return self.closed

    def clear(self) -> None:
        """
        Drop all messages that wait.
        """
        self._waiting = None
        self._waitingBytes = 0

    # -- its end --------------------------------------------------------------

    def close(self, now: float, why: Close) -> bool:
        """
        Close it. It goes on saying so until C{disconnectDelay} is over.

        @return: whether it was not closed already.
        """
        if self.state is CLOSED:
            return False
        self.state = CLOSED
        self.closed = why
        self._since = now
        return True

    # -- time -----------------------------------------------------------------

    @property
    def deadline(self) -> float:
        """
        When L{due} is to be asked.
        """
        if self.state is CLOSED or not self.isAttached:
            return self._since + self._limits.disconnectDelay
        beat = self._since + self._limits.heartbeat
        return beat if self._pongBy is None else min(beat, self._pongBy)

    def pinged(self, now: float) -> None:
        """
        An answer is expected: any sign of the client will do.
        """
        if self._pongBy is None:
            self._pongBy = now + self._limits.pongTimeout

    def heard(self) -> None:
        """
        A sign of the client.
        """
        self._pongBy = None

    def due(self, now: float) -> str | Close | None:
        """
        Its deadline has come, perhaps.

        @return: L{HEARTBEAT}: write one. A L{Close}: the session is over, and
            its place can be given away. L{None}: not yet.
        """
        if now < self.deadline:
            return None
        if self.closed is not None:
            return self.closed
        if not self.isAttached:
            why = Close(1006, "The client did not come back", forced=False)
            self.close(now, why)
            return why
        if self._pongBy is not None and now >= self._pongBy:
            why = Close(1006, "The client does not answer", forced=False)
            self.close(now, why)
            return why
        self._since = now
        return HEARTBEAT
