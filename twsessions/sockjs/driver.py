"""
Does what a session's state says: between a carrier, the session and the
application.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from twsessions.sockjs.packet import Format, Packet
from twsessions.sockjs.session import CLOSED, HEARTBEAT, OPEN, OPENED, Close, Messages, Session

if TYPE_CHECKING:
    from twsessions.sockjs.connection import SockJSConnection
    from twsessions.sockjs.info import ConnectionInfo
    from twsessions.sockjs.service import Service
    from twsessions.sockjs.stats import TransportStats

__all__ = ["Carrier", "Driver"]

_FAILED = Close(1011, "Internal error")
_INBOX = 64 * 1024  # characters of messages that may wait for the application


class Carrier(Protocol):
    """
    A request, or a websocket, that carries a session for a while.
    """

    @property
    def form(self) -> Format:
        """
        How it spells what the session says.
        """

    @property
    def isFull(self) -> bool:
        """
        Whether it wants to be finished.
        """

    def write(self, data: bytes) -> None:
        """
        To the client.
        """

    def finish(self, why: Close | None) -> None:
        """
        Nothing more will be written.

        @param why: the session is closed; else only the carrier is full.
            C{abort} may follow if the connection does not end.
        """

    def abort(self) -> None:
        """
        Break the connection.
        """

    def ping(self) -> bool:
        """
        Ask the client for a sign of life.

        @return: whether there is a way to.
        """

    def listen(self, wanted: bool) -> None:
        """
        Go on, or pause, reading what the client sends.
        """


class Driver:
    """
    One connection.

    @ivar service: it is one of its connections.
    @ivar id: the client's name for it; L{None}: no other request can find it.
    @ivar connection: the application's object.
    @ivar owner: of the web session it is bound to, or L{None}.
    @ivar used: called when the client has sent something.
    @ivar queued: the queue of deadlines' own.
    """

    __slots__ = (
        "_carrier",
        "_closeCallbacks",
        "_finished",
        "_inbox",
        "_inboxSize",
        "_isFlowing",
        "_isTold",
        "_room",
        "_running",
        "_stats",
        "connection",
        "id",
        "info",
        "owner",
        "producer",
        "queued",
        "service",
        "session",
        "used",
    )

    _log = Logger()

    def __init__(
        self,
        service: Service,
        connection: SockJSConnection,
        info: ConnectionInfo,
        stats: TransportStats,
        id: str | None = None,
        owner: bytes | None = None,
    ) -> None:
        self.service = service
        self._stats = stats
        self._carrier: Carrier | None = None
        self._finished: Carrier | None = None  # its last, which may hang
        self._inbox: deque[str | bytes] | None = None  # exists while the application is busy
        self._inboxSize = 0
        self._running = False  # a handler is
        self._isTold = False  # the application is, of the close
        self._isFlowing = True  # the producer is
        self._room: list[Deferred[None]] | None = None
        self._closeCallbacks: list[Callable[[], object]] | None = None
        self.session: Session[Packet] = Session(service.limits, service.seconds())
        self.connection = connection
        self.info = info
        self.id = id
        self.owner = owner
        self.producer: Any = None
        self.used: Callable[[], None] | None = None
        self.queued: float | None = None
        connection._driver = self

    @property
    def isOpen(self) -> bool:
        """
        Whether messages can be sent.
        """
        return self.session.state is OPEN

    # -- the carrier ----------------------------------------------------------

    def attach(self, carrier: Carrier) -> bool:
        """
        Something offers to carry the session. If it is refused it is told, and
        finished.

        @return: whether it is to tell of its end, by L{lost}.
        """
        refusal = self.session.attach(self.service.seconds())
        if refusal is not None:
            carrier.write(carrier.form.closed(refusal))
            carrier.finish(refusal)
            return False
        self._carrier = carrier
        if self._inboxSize > _INBOX:
            carrier.listen(False)
        self._flush()
        self._pace()
        self.service.queue(self)
        return self._carrier is carrier

    def lost(self, carrier: Carrier, why: Close) -> None:
        """
        The carrier's connection is gone.
        """
        if self._carrier is carrier:
            self._carrier = None
            wasClosed = self.session.state is CLOSED
            self.session.detach(self.service.seconds(), why)
            self.service.queue(self)
            if not wasClosed:
                self._closed()
        if self.id is None:
            self.service.forget(self)

    def pause(self, carrier: Carrier) -> None:
        """
        The carrier can take no more for now.
        """
        if self._carrier is carrier:
            self.session.pause()
            self._pace()

    def resume(self, carrier: Carrier) -> None:
        """
        It can again.
        """
        if self._carrier is carrier:
            self.session.resume()
            self._flush()
            self._pace()

    def listen(self, wanted: bool) -> None:
        """
        Go on, or pause, reading what the client sends, if that can be done.
        """
        if self._carrier is not None:
            self._carrier.listen(wanted)

    def _flush(self) -> None:
        """
        Write what there is to write.
        """
        session, carrier, isNew = self.session, self._carrier, False
        while carrier is not None:
            item = session.take(self.service.seconds())
            if item is None:
                break
            if isinstance(item, Messages):
                carrier.write(carrier.form.messages(item.packets))
            elif item is OPENED:
                isNew = True
                carrier.write(carrier.form.opened())
            elif isinstance(item, Close):
                carrier.write(carrier.form.closed(item))
                self._leave(carrier, item)
                break
            if carrier.isFull:
                self._leave(carrier, None)
                break
        if isNew:
            self._open()

    def _leave(self, carrier: Carrier, why: Close | None) -> None:
        self._carrier = None
        if why is not None:
            self._finished = carrier
        self.session.detach(self.service.seconds())
        self._pace()
        self.service.queue(self)
        carrier.finish(why)

    # -- what goes out --------------------------------------------------------

    def send(self, packet: Packet) -> None:
        """
        Send a message, now or later.
        """
        session = self.session
        if session.state is not OPEN:
            return
        now = self.service.seconds()
        self._stats.sent.add(now)
        if session.send(packet, now):
            carrier = self._carrier
            assert carrier is not None
            carrier.write(packet.wire(carrier.form))
            if carrier.isFull:
                self._leave(carrier, None)
        elif session.state is not OPEN:
            self._overflowed(now)

    def _overflowed(self, now: float) -> None:
        """
        Too much was waiting, and the session is closed.
        """
        carrier, self._carrier = self._carrier, None
        self._inbox = None if not self._running else deque()
        self._inboxSize = 0
        if carrier is not None:
            self.session.detach(now)
            carrier.abort()
        self.service.queue(self)
        self._closed()

    def close(self, code: int, reason: str) -> None:
        """
        This side closes the session.
        """
        self.end(Close(code, reason))

    def end(self, why: Close) -> None:
        """
        Close the session for some reason. Messages that wait for the
        application are dropped.
        """
        if self.session.close(self.service.seconds(), why):
            if self._inbox is not None:
                self._inbox.clear()
                self._inboxSize = 0
            self._flush()
            self.service.queue(self)
            self._closed()

    def closedByClient(self, why: Close) -> None:
        """
        The other side has closed it.
        """
        if self.session.close(self.service.seconds(), why):
            self.service.queue(self)
            self._closed()

    def due(self, now: float) -> None:
        """
        The session's deadline has come, perhaps.
        """
        session = self.session
        wasClosed = session.state is CLOSED
        item = session.due(now)
        if item is HEARTBEAT:
            carrier = self._carrier
            assert carrier is not None
            carrier.write(carrier.form.heartbeat())
            if carrier.isFull:
                self._leave(carrier, None)
            elif carrier.ping():
                session.pinged(now)
        elif item is not None:
            self.service.forget(self)
            carrier, self._carrier = self._carrier or self._finished, None
            if carrier is not None:
                carrier.abort()
            if not wasClosed:
                self._closed()
            return
        self.service.queue(self)

    def register(self, producer: Any) -> None:
        """
        See L{SockJSConnection.registerProducer}.
        """
        if self.producer is not None:
            raise RuntimeError("there is a producer already: unregister it first")
        self.producer = producer
        self._isFlowing = True
        self._pace()

    def _pace(self) -> None:
        """
        Stop the producer while nothing carries what it says.
        """
        producer, flows = self.producer, self.session.isReady
        if producer is not None and flows is not self._isFlowing:
            self._isFlowing = flows
            if flows:
                producer.resumeProducing()
            else:
                producer.pauseProducing()

    # -- the application ------------------------------------------------------

    def received(self, messages: Sequence[str | bytes]) -> None:
        """
        Messages of the client, in their order.
        """
        session = self.session
        if session.state is not OPEN:
            return
        self._stats.received.add(self.service.seconds(), len(messages))
        if self.used is not None and messages:
            self.used()
        if self._inbox is not None:
            for message in messages:
                self._inbox.append(message)
                self._inboxSize += len(message) + 64
            self._checkInbox()
            return
        onMessage = self.connection.onMessage
        for at, message in enumerate(messages):
            try:
                result = onMessage(message)
            except Exception:
                self._failed(Failure())
                return
            if result is not None and self._isBusy(result):
                waiting = messages[at + 1 :] if session.state is OPEN else ()
                self._inbox = deque(waiting)
                self._inboxSize = sum(map(len, waiting)) + 64 * len(waiting)
                return
            if session.state is not OPEN:
                return

    def room(self) -> Deferred[None] | None:
        """
        L{None}, or what fires when the application has caught up.
        """
        if self._inboxSize <= _INBOX:
            return None
        waiting: Deferred[None] = Deferred()
        if self._room is None:
            self._room = []
        self._room.append(waiting)
        return waiting

    def _checkInbox(self) -> None:
        if self._inboxSize > _INBOX:
            self.listen(False)
        if self._inboxSize > _INBOX + self.service.limits.maxQueueBytes:
            self.end(Close(1013, "Too many messages"))

    def _isBusy(self, result: Any) -> bool:
        """
        Whether a handler is not done yet.
        """
        if inspect.iscoroutine(result):
            self._running = True
            result = Deferred.fromCoroutine(result)
        elif not isinstance(result, Deferred):
            return False
        self._running = True
        if result.called and not result.paused:
            result.addErrback(self._failed)
            self._running = False
            if self.session.state is CLOSED:
                self._tellClosed()
            return False
        result.addErrback(self._failed).addCallback(self._pump)
        return True

    def _pump(self, _: object) -> None:
        """
        A handler is done: the messages that have waited for it.
        """
        inbox = self._inbox
        while inbox:
            message = inbox.popleft()
            self._inboxSize -= len(message) + 64
            try:
                result = self.connection.onMessage(message)
            except Exception:
                self._failed(Failure())
                continue
            if result is not None and self._isBusy(result):
                break
            self._running = True
        else:
            self._running = False
            self._inbox = None
        if self._inboxSize <= _INBOX:
            self._makeRoom()
        if not self._running and self.session.state is CLOSED:
            self._tellClosed()

    def _makeRoom(self) -> None:
        room, self._room = self._room, None
        for waiting in room or ():
            waiting.callback(None)
        self.listen(True)

    def _open(self) -> None:
        stats = self._stats
        stats.current += 1
        stats.opened.add(self.service.seconds())
        self.connection.info = self.info
        try:
            result = self.connection.onOpen(self.info)
        except Exception:
            self._failed(Failure())
            return
        if result is not None and self._isBusy(result):
            self._inbox = deque()

    def _failed(self, failure: Failure) -> None:
        self._log.failure("a SockJS application failed", failure=failure)
        self.end(_FAILED)

    def _closed(self) -> None:
        """
        The session is closed now, which it was not before.
        """
        if self.connection.info is None:
            return  # never opened
        self._stats.current -= 1
        callbacks, self._closeCallbacks = self._closeCallbacks, None
        for callback in callbacks or ():
            try:
                callback()
            except Exception:
                self._log.failure("a callback of a closed SockJS connection failed")
        producer, self.producer = self.producer, None
        if producer is not None:
            producer.stopProducing()
        self._makeRoom()
        if self._running:
            if self._inbox is None:
                self._inbox = deque()
        else:
            self._tellClosed()

    def _tellClosed(self) -> None:
        why = self.session.closed
        if why is None or self._isTold:
            return
        self._isTold = True
        try:
            result = self.connection.onClose(why.code, why.reason)
        except Exception:
            self._log.failure("a SockJS application failed at a close")
            return
        if inspect.iscoroutine(result):
            result = Deferred.fromCoroutine(result)
        if isinstance(result, Deferred):
            result.addErrback(
                lambda failure: self._log.failure(
                    "a SockJS application failed at a close", failure=failure
                )
            )

    def notifyOnClose(self, callback: Callable[[], object]) -> None:
        """
        See L{SockJSConnection.notifyOnClose}.
        """
        if self.session.state is CLOSED:
            callback()
            return
        if self._closeCallbacks is None:
            self._closeCallbacks = []
        self._closeCallbacks.append(callback)
