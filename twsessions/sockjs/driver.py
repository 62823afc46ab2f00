"""
Does what a session's state says: between a carrier, the session and the
application.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from twsessions.sockjs.connection import SockJSConnection
from twsessions.sockjs.inbox import FAILED, Inbox
from twsessions.sockjs.info import ConnectionInfo
from twsessions.sockjs.packet import Format, Packet
from twsessions.sockjs.session import (
    CLOSED,
    HEARTBEAT,
    OPEN,
    OPENED,
    Close,
    Limits,
    Messages,
    Session,
)
from twsessions.sockjs.stats import TransportStats

__all__ = ["Carrier", "Driver"]


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


class Home(Protocol):
    """
    Where drivers live.

    @ivar limits: of each.
    """

    limits: Limits
    seconds: Callable[[], float]

    def make(
        self,
        maker: Callable[[], SockJSConnection],
        info: ConnectionInfo,
        id: str | None = None,
        owner: bytes | None = None,
    ) -> Driver:
        """
        Another one.
        """

    def queue(self, driver: Driver) -> None:
        """
        See to it that C{driver.due} is called when its deadline comes.
        """

    def forget(self, driver: Driver) -> None:
        """
        It is over.
        """


class Driver:
    """
    One connection.

    @ivar service: it is one of its connections.
    @ivar id: the client's name for it; L{None}: no other request can find it.
    @ivar connection: the application's object.
    @ivar owner: of the web session it is bound to, or L{None}.
    @ivar endedHere: whether this side has closed it.
    @ivar used: called when the client has sent something.
    @ivar queued: the queue of deadlines' own.
    """

    __slots__ = (
        "_carrier",
        "_closeCallbacks",
        "_finished",
        "_inbox",
        "_isFlowing",
        "_isSlow",
        "_producer",
        "_stats",
        "connection",
        "endedHere",
        "id",
        "info",
        "owner",
        "queued",
        "service",
        "session",
        "used",
    )

    _log = Logger()

    def __init__(
        self,
        service: Home,
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
        self._inbox = Inbox(connection, self, service.limits.maxQueueBytes)
        self._isFlowing = True  # the producer is
        self._isSlow = False
        self._closeCallbacks: list[Callable[[], object]] | None = None
        self.session: Session[Packet] = Session(service.limits, service.seconds())
        self.connection = connection
        self.info = info
        self.id = id
        self.owner = owner
        self.endedHere = False
        self._producer: Any = None
        self.used: Callable[[], None] | None = None
        self.queued: float | None = None
        connection._line = self

    @property
    def isOpen(self) -> bool:
        """
        Whether messages can be sent.
        """
        return self.session.state is OPEN

    @property
    def closed(self) -> Close | None:
        """
        Why it is closed, if it is.
        """
        return self.session.closed

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
                self._closed(drop=False)
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
        if carrier is not None:
            self.session.detach(now)
            carrier.abort()
        self.service.queue(self)
        self._closed(drop=True)

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
            self._flush()
            self.service.queue(self)
            self._closed(drop=True)

    def endWithOwner(self, why: Close) -> None:
        """
        Close the session: the web session that it is bound to has ended. A
        client that is not here just now cannot show any more whose it is, so
        whoever asks hears of the end, and of nothing else.
        """
        self.end(why)
        if self._carrier is None:
            self.session.clear()
            self.owner = None

    def closedByClient(self, why: Close) -> None:
        """
        The other side has closed it.
        """
        if self.session.close(self.service.seconds(), why):
            self.service.queue(self)
            self._closed(drop=False)

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
                self._closed(drop=False)
            return
        self.service.queue(self)

    def register(self, producer: Any) -> None:
        """
        See L{SockJSConnection.registerProducer}.
        """
        if self._producer is not None:
            raise RuntimeError("there is a producer already: unregister it first")
        self._producer = producer
        self._isFlowing = True
        self._pace()

    def unregister(self) -> None:
        """
        See L{SockJSConnection.unregisterProducer}.
        """
        self._producer = None

    def _pace(self) -> None:
        """
        Stop the producer while nothing carries what it says.
        """
        producer, flows = self._producer, self.session.isReady and not self._isSlow
        if producer is not None and flows is not self._isFlowing:
            self._isFlowing = flows
            self._tell(producer.resumeProducing if flows else producer.pauseProducing)

    def _tell(self, produce: Callable[[], object]) -> None:
        """
        Tell the producer. Its failure is no other connection's.
        """
        try:
            produce()
        except Exception:
            self._log.failure("the producer of a SockJS connection failed")
            self.end(FAILED)

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
        self._inbox.received(messages)

    def room(self) -> Deferred[None] | None:
        """
        L{None}, or what fires when the application has caught up.
        """
        return self._inbox.room()

    def hold(self, isHeld: bool) -> None:
        """
        Let the client wait with what it sends, or no longer: whom the
        application hands its messages to is busy.
        """
        self._inbox.hold(isHeld)

    def slow(self, isSlow: bool) -> None:
        """
        What the carrier takes waits behind it, or no longer.
        """
        self._isSlow = isSlow
        self._pace()

    def _open(self) -> None:
        stats = self._stats
        stats.current += 1
        stats.opened.add(self.service.seconds())
        self.connection.info = self.info
        self._inbox.opened(self.info)

    def _closed(self, drop: bool) -> None:
        """
        The session is closed now, which it was not before.

        @param drop: whether messages that wait are of no interest any more.
        """
        why = self.session.closed
        if self.connection.info is None or why is None:
            return  # never opened
        self.endedHere = drop
        self._stats.current -= 1
        callbacks, self._closeCallbacks = self._closeCallbacks, None
        for callback in callbacks or ():
            try:
                callback()
            except Exception:
                self._log.failure("a callback of a closed SockJS connection failed")
        producer, self._producer = self._producer, None
        if producer is not None:
            self._tell(producer.stopProducing)
        self._inbox.closed(why, drop)

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
