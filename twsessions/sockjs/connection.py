"""
What an application subclasses: one object for each client.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from twisted.internet.interfaces import IConsumer
from zope.interface import implementer

from twsessions.sockjs.frames import GO_AWAY, utf8
from twsessions.sockjs.info import ConnectionInfo
from twsessions.sockjs.packet import Packet
from twsessions.sockjs.session import Close

__all__ = ["SockJSConnection", "broadcast"]


class Line(Protocol):
    """
    What is behind a connection.
    """

    @property
    def isOpen(self) -> bool:
        """
        Whether messages can be sent.
        """

    @property
    def closed(self) -> Close | None:
        """
        Why it is closed, if it is.
        """

    def send(self, packet: Packet) -> None:
        """
        See L{SockJSConnection.send}.
        """

    def close(self, code: int, reason: str) -> None:
        """
        See L{SockJSConnection.close}.
        """

    def notifyOnClose(self, callback: Callable[[], object]) -> None:
        """
        See L{SockJSConnection.notifyOnClose}.
        """

    def register(self, producer: Any) -> None:
        """
        See L{SockJSConnection.registerProducer}.
        """

    def unregister(self) -> None:
        """
        See L{SockJSConnection.unregisterProducer}.
        """


def broadcast(connections: Iterable[SockJSConnection], message: str | bytes) -> None:
    """
    Send a message to many. It is encoded once for each wire format, and the
    same bytes go to every client of that format. Closed ones are passed over.
    """
    if not isinstance(message, (str, bytes)):
        raise TypeError(f"a message is a str or bytes, not {type(message).__name__}")
    packet = Packet(message, isShared=True)
    for connection in list(connections):
        line = connection._line
        if line is not None:
            line.send(packet)


@implementer(IConsumer)
class SockJSConnection:
    """
    A client that is connected. Override C{onOpen}, C{onMessage} and C{onClose}.
    Each may be a coroutine function or return a Deferred: until it is done, the
    next message waits. If one fails, that is logged and the connection is
    closed.

    @ivar info: who it is: a L{ConnectionInfo<twsessions.sockjs.ConnectionInfo>};
        L{None} before L{onOpen}.
    """

    info: ConnectionInfo | None = None
    _line: Line | None = None

    def onOpen(self, info: ConnectionInfo) -> object:
        """
        A client has connected.
        """

    def onMessage(self, message: Any) -> object:
        """
        The client has sent a message.

        @param message: C{str}; C{bytes} only if it came over a raw websocket in
            a binary message.
        """

    def onClose(self, code: int, reason: str) -> object:
        """
        The connection is closed. Called once, after the messages that had
        arrived from the client, if L{onOpen} was called.

        @param code: 1000 to 4999; 1006: the client is gone without a word.
        @param reason: in words, the client's or ours: not to be trusted.
        """

    # -- for the application to call ------------------------------------------

    def send(self, message: str | bytes) -> None:
        """
        Send a message. To a connection that is closed: nothing happens. One
        that the client is too slow for waits, up to C{maxQueueBytes}.

        @param message: C{bytes} go as a binary message over a raw websocket, and
            as UTF-8 text otherwise.
        @raise TypeError: it is neither C{str} nor C{bytes}.
        """
        line = self._line
        if not isinstance(message, (str, bytes)):
            raise TypeError(f"a message is a str or bytes, not {type(message).__name__}")
        if line is not None:
            line.send(Packet(message))

    def broadcast(self, connections: Iterable[SockJSConnection], message: str | bytes) -> None:
        """
        Send a message to many: see L{broadcast}.
        """
        broadcast(connections, message)

    def close(self, code: int = GO_AWAY[0], reason: str = GO_AWAY[1]) -> None:
        """
        Close the connection; what was sent before still arrives. To do it again
        does no harm.

        @param code: 1000, or 3000 to 4999 (RFC 6455, 7.4.2).
        @param reason: for the client; up to 123 bytes of UTF-8.
        @raise ValueError: another code, or too long a reason.
        """
        if code != 1000 and not 3000 <= code <= 4999:
            raise ValueError(f"a close code is 1000 or 3000 to 4999, not {code!r}")
        if len(utf8(reason)) > 123:
            raise ValueError("a close reason has up to 123 bytes")
        if self._line is not None:
            self._line.close(code, reason)

    @property
    def isClosed(self) -> bool:
        """
        Whether it is not open: closed, or not open yet.
        """
        return self._line is None or not self._line.isOpen

    @property
    def closeReason(self) -> Close | None:
        """
        Why it was closed: C{code}, C{reason}, and C{forced}: whether one of the
        two sides did it, and not time. L{None}: it was not.
        """
        return None if self._line is None else self._line.closed

    def notifyOnClose(self, callback: Callable[[], object]) -> None:
        """
        Call C{callback} when the connection is closed, before L{onClose}; at once
        if it is.
        """
        if self._line is not None:
            self._line.notifyOnClose(callback)
        else:
            callback()

    # -- back-pressure --------------------------------------------------------

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """
        As any C{IConsumer}: C{producer.pauseProducing()} is called when the client
        cannot follow, C{resumeProducing()} when it can again.

        @raise ValueError: it is a pull producer.
        @raise RuntimeError: there is one already.
        """
        if not streaming:
            raise ValueError("only push producers (streaming=True) can be registered")
        if self._line is None or not self._line.isOpen:
            producer.stopProducing()
        else:
            self._line.register(producer)

    def unregisterProducer(self) -> None:
        """
        The producer has no more to say.
        """
        if self._line is not None:
            self._line.unregister()

    def write(self, data: bytes) -> None:
        """
        As any C{IConsumer}: the same as L{send}.
        """
        self.send(data)
