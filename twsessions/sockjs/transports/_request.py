"""
A request that carries a session: one frame long, or until it is full.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer

from twsessions.sockjs.driver import Driver
from twsessions.sockjs.frames import INTERRUPTED
from twsessions.sockjs.packet import Format
from twsessions.sockjs.session import Close
from twsessions.sockjs.transports._direct import canWriteNow, writeNow
from twsessions.web.exchange import abort

__all__ = ["RequestCarrier"]


@implementer(IPushProducer)
class RequestCarrier:
    """
    Writes frames to a response.

    @ivar isFull: whether C{limit} bytes have been written.
    """

    __slots__ = ("_driver", "_request", "_room", "_transport", "form", "isFull")

    def __init__(self, request: Any, form: Format, limit: int) -> None:
        """
        @param limit: bytes, not counting any prelude.
        """
        self._request = request
        self._driver: Driver | None = None
        self._room = limit
        self._transport: Any = None  # if frames go straight to it
        self.form = form
        self.isFull = False

    def carry(self, driver: Driver) -> None:
        """
        Offer to carry a session. The response's headers are set, and its prelude
        is written.
        """
        request = self._request
        self._driver = driver
        if driver.attach(self):
            # Another may finish it: a session that cannot be stored is answered by 500.
            request.notifyFinish().addBoth(self._lost)
            if self._room > 1:
                request.registerProducer(self, True)
                self._takeShortCut()

    def _takeShortCut(self) -> None:
        """
        When the headers have left, a chunk is a chunk: a broadcast makes it once,
        and it need not pass through the request again.
        """
        request, form = self._request, self.form
        if (
            form.chunked is not None
            and request.chunked
            and request.startedWriting
            and canWriteNow(getattr(request.channel, "transport", None))
        ):
            self._transport = request.channel.transport
            self.form = form.chunked

    def _lost(self, _: object) -> None:
        request, self._request = self._request, None
        driver, self._driver = self._driver, None
        if request is not None and driver is not None:
            driver.lost(self, Close(*INTERRUPTED))

    def write(self, data: bytes) -> None:
        """
        A frame.
        """
        transport = self._transport
        if transport is None:
            self._request.write(data)
            self._room -= len(data)
        else:
            writeNow(transport, data)
            size = len(data) - data.index(b"\r") - 4
            self._request.sentLength += size
            self._room -= size
        if self._room <= 0:
            self.isFull = True

    def finish(self, why: Close | None) -> None:
        """
        End the response.
        """
        request, self._request, self._driver = self._request, None, None
        self._transport = None
        if request is not None and not request._disconnected:
            if request.producer is self:
                request.unregisterProducer()
            request.finish()

    def abort(self) -> None:
        """
        Break the connection, or only the stream of HTTP/2.
        """
        request, self._request, self._driver = self._request, None, None
        self._transport = None
        if request is not None and not request._disconnected:
            abort(request.channel)

    def ping(self) -> bool:
        """
        There is no way to.
        """
        return False

    def listen(self, wanted: bool) -> None:
        """
        What the client sends comes by other requests, which wait.
        """

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
        if self._driver is not None:
            self._driver.resume(self)

    def stopProducing(self) -> None:
        """
        It has gone; L{_lost} is told as well.
        """
