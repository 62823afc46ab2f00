"""
Websockets (RFC 6455): with SockJS frames, and raw.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.interfaces import IPushProducer
from twisted.python.failure import Failure
from zope.interface import implementer

from twsessions.sockjs.driver import Driver
from twsessions.sockjs.frames import BrokenFrame, parseMessages, utf8
from twsessions.sockjs.packet import Format, Framed, Packet
from twsessions.sockjs.session import Close
from twsessions.sockjs.transports._direct import canWriteNow, writeNow
from twsessions.sockjs.transports._frames import (
    Broken,
    Ended,
    Frames,
    Pinged,
    binaryFrame,
    textFrame,
)

__all__ = ["FRAMED", "RAW", "WebSocketCarrier", "deflatedFramed", "deflatedRaw"]

_LOST = Close(1006, "Connection lost", forced=False)

FRAMED = Framed(lambda frame: textFrame(frame.encode("utf-8")))


class _Raw:
    """
    Messages as they are.
    """

    chunked = None

    def __init__(self, spell: Callable[[str | bytes], bytes]) -> None:
        self._spell = spell

    def opened(self) -> bytes:
        """
        Goes without saying.
        """
        return b""

    heartbeat = opened

    def messages(self, packets: Sequence[Packet]) -> bytes:
        """
        Each by itself.
        """
        return b"".join([self._spell(packet.message) for packet in packets])

    def closed(self, why: Close) -> bytes:
        """
        The websocket's own close says it.
        """
        return b""


def _plain(message: str | bytes) -> bytes:
    if isinstance(message, bytes):
        return binaryFrame(message)
    return textFrame(utf8(message))


RAW = _Raw(_plain)


def deflatedFramed(frames: Frames) -> Format:
    """
    As L{FRAMED}, compressed: for one connection only.
    """
    return Framed(frames.deflated)


def deflatedRaw(frames: Frames) -> Format:
    """
    As L{RAW}, compressed: for one connection only.
    """
    return _Raw(
        lambda message: frames.deflated(
            message if isinstance(message, bytes) else utf8(message).decode("utf-8")
        )
    )


@implementer(IPushProducer)
class WebSocketCarrier:
    """
    A connection that has been a request.
    """

    isFull = False

    __slots__ = (
        "_driver",
        "_frames",
        "_isClosing",
        "_isListening",
        "_isPlain",
        "_ping",
        "_raw",
        "_transport",
        "form",
    )

    def __init__(self, transport: Any, frames: Frames, form: Format, raw: bool) -> None:
        self._transport = transport
        self._isPlain = canWriteNow(transport)
        self._frames = frames
        self._raw = raw
        self._driver: Driver | None = None
        self._isClosing = False
        self._isListening = True
        self._ping: bytes | None = None  # of a client that is slow
        self.form = form

    def carry(self, driver: Driver) -> None:
        """
        Carry a session, which is nobody else's.
        """
        self._driver = driver
        self._transport.registerProducer(self, True)
        driver.attach(self)

    # -- what comes in --------------------------------------------------------

    def dataReceived(self, data: bytes) -> None:
        """
        From the client.
        """
        driver = self._driver
        if driver is None:
            return
        driver.session.heard()
        for event in self._frames.receive(data):
            if type(event) is str:
                if self._raw:
                    driver.received([event])
                elif event:
                    try:
                        messages = parseMessages(event, single=True)
                    except BrokenFrame:
                        self._refuse(1007, "Broken framing")
                        return
                    driver.received(messages)
            elif type(event) is bytes:
                if not self._raw:
                    self._refuse(1003, "SockJS is text")
                    return
                driver.received([event])
            elif type(event) is Pinged:
                self._pong(event.payload)
            elif type(event) is Ended:
                code, reason = event
                self._say(code, reason)
                driver.closedByClient(Close(code, reason))
                self._lose()
            elif type(event) is Broken:
                self._refuse(*event)

    def _pong(self, payload: bytes) -> None:
        if self._driver is not None and not self._driver.session.isReady:
            self._ping = payload  # the last is the one to answer (RFC 6455, 5.5.3)
        else:
            self.write(self._frames.pong(payload))

    def _refuse(self, code: int, reason: str) -> None:
        driver = self._driver
        self._say(code, reason)
        self._lose()
        if driver is not None:
            driver.closedByClient(Close(code, reason))

    def connectionLost(self, reason: Failure) -> None:
        """
        It is gone.
        """
        driver, self._driver = self._driver, None
        self._transport = None
        if driver is not None:
            driver.lost(self, _LOST)

    # -- what goes out --------------------------------------------------------

    def write(self, data: bytes) -> None:
        """
        To the client.
        """
        transport = self._transport
        if transport is None or not data:
            return
        if self._isPlain:
            writeNow(transport, data)
        else:
            transport.write(data)

    def finish(self, why: Close | None) -> None:
        """
        Close in order: the client closes the connection, or time does.
        """
        if why is None or why.code == 1006:
            self._lose()
        else:
            self._say(why.code if self._raw else 1000, why.reason)

    def _say(self, code: int, reason: str) -> None:
        if not self._isClosing:
            self.listen(True)  # for the answer
            self._isClosing = True
            self.write(self._frames.close(code, reason))

    def _lose(self) -> None:
        transport = self._transport
        if transport is not None:
            transport.unregisterProducer()
            transport.loseConnection()

    def abort(self) -> None:
        """
        Break the connection.
        """
        if self._transport is not None:
            self._transport.abortConnection()

    def ping(self) -> bool:
        """
        A ping of the websocket, unless its answer could not be read.
        """
        if self._isListening:
            self.write(self._frames.ping())
        return self._isListening

    def listen(self, wanted: bool) -> None:
        """
        Go on, or pause, reading.
        """
        transport = self._transport
        if transport is None or self._isClosing or wanted is self._isListening:
            return
        self._isListening = wanted
        if wanted:
            transport.resumeProducing()
        else:
            transport.pauseProducing()
            if self._driver is not None:
                self._driver.session.heard()  # it cannot be, for now

    # -- IPushProducer --------------------------------------------------------

    def pauseProducing(self) -> None:
        """
        The client is slow.
        """
        if self._driver is not None:
            self._driver.pause(self)

    def resumeProducing(self) -> None:
        """
        It has caught up.
        """
        ping, self._ping = self._ping, None
        if ping is not None:
            self.write(self._frames.pong(ping))
        if self._driver is not None:
            self._driver.resume(self)

    def stopProducing(self) -> None:
        """
        It has gone; L{connectionLost} is told as well.
        """
