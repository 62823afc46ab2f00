"""
From a URL to a page or a transport.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any, ClassVar, NoReturn
from urllib.parse import unquote_to_bytes

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.web.http import datetimeToString
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from twsessions.sockjs import pages
from twsessions.sockjs.binding import bind, ownerOf, sessionOf
from twsessions.sockjs.driver import Driver
from twsessions.sockjs.frames import BrokenFrame, parseMessages, utf8
from twsessions.sockjs.info import ConnectionInfo
from twsessions.sockjs.origins import Origins
from twsessions.sockjs.packet import Format
from twsessions.sockjs.protocol import makerOf
from twsessions.sockjs.service import Full, Service
from twsessions.sockjs.session import Close
from twsessions.sockjs.settings import SockJSSettings
from twsessions.sockjs.transports import eventsource, htmlfile, jsonp, websocket, xhr
from twsessions.sockjs.transports._frames import Frames
from twsessions.sockjs.transports._request import RequestCarrier
from twsessions.sockjs.transports._upgrade import Handshake, Refused
from twsessions.web.alarm import Alarm
from twsessions.web.keeper import keeperOf

__all__ = ["SockJSResource"]

_TEXT = b"text/plain; charset=UTF-8"
_NOT_FOUND = b"404 Error: Page not found\n"
_YEAR = 31536000
_LONGEST = 128  # characters of an id: clients' have eight
_LONGEST_URI = 4096  # it is kept with the connection
_GRACE = 0.25  # seconds
_GOING = Close(1001, "The server is going away")

_isIframe = re.compile(rb"iframe[0-9-.a-z_]*\.html").fullmatch
_isJsessionid = re.compile(rb"[A-Za-z0-9._-]{1,128}").fullmatch


class _Answer(Exception):
    """
    Something else than what was asked for.
    """

    def __init__(
        self, code: int, text: bytes = b"", headers: list[tuple[bytes, bytes]] | None = None
    ) -> None:
        super().__init__(code)
        self.code = code
        self.text = text
        self.headers = headers or []


class SockJSResource(Resource):
    """
    A SockJS service, anywhere in a tree of resources::

        root.putChild(b"chat", SockJSResource(Chat))

    @ivar settings: its L{SockJSSettings<twsessions.sockjs.settings.SockJSSettings>}.
    """

    isLeaf = True

    def __init__(
        self,
        application: Any,
        reactor: IReactorTime | None = None,
        entropy: Callable[[int], bytes] = os.urandom,
        **settings: Any,
    ) -> None:
        """
        @param application: a L{SockJSConnection<twsessions.sockjs.SockJSConnection>}
            class, a function that makes one, or a provider of
            C{IProtocolFactory}.
        @param reactor: by default that of the site of the first request.
        @param settings: the fields of
            L{SockJSSettings<twsessions.sockjs.settings.SockJSSettings>}.
        @raise ValueError: a setting that cannot be.
        @raise TypeError: a setting that there is not, an application that is none.
        """
        super().__init__()
        self.settings = SockJSSettings(**settings)
        self._maker = makerOf(application)
        self._reactor = reactor
        self._entropy = entropy
        self._service: Service | None = None
        self._enabled = self.settings.enabled
        origins = self.settings.origins
        self._origins = Origins("*" if origins is None and not self.settings.bound else origins)
        self._iframe = pages.iframe(self.settings.sockjsURL)

    @property
    def service(self) -> Service:
        """
        The connections and their statistics.

        @raise RuntimeError: there was no request yet, and no reactor is known.
        """
        if self._service is None:
            if self._reactor is None:
                raise RuntimeError("no reactor is known before the first request")
            self._start(Alarm(self._reactor), self._reactor)
        assert self._service is not None
        return self._service

    def _start(self, alarm: Alarm, reactor: Any) -> None:
        self._service = Service(self.settings, alarm)
        trigger = getattr(reactor, "addSystemEventTrigger", None)
        if trigger is not None:
            trigger("before", "shutdown", self._goodbye, reactor)

    def _goodbye(self, reactor: Any) -> Deferred[None] | None:
        service = self.service
        if not service.connections:
            return None
        service.closeAll(_GOING)
        # The reactor drops what waits in its buffers when it stops.
        return deferLater(reactor, _GRACE, lambda: None)

    # -- one request ----------------------------------------------------------

    def render(self, request: Any) -> bytes | int:
        """
        Answer a request.
        """
        if request._disconnected:  # nothing would tell of its end any more
            return NOT_DONE_YET
        if self._reactor is None:
            keeper = keeperOf(request.site, None)
            if self._service is None:
                self._start(keeper.alarm, keeper.reactor)
            elif self._service.alarm is not keeper.alarm and self._service.alarm._stopped:
                self._service.wakeBy(keeper.alarm)  # of several sites the first one will do
        try:
            return self._route(request)
        except _Answer as answer:
            return _say(request, answer)

    def _route(self, request: Any) -> bytes | int:
        path = request.postpath
        if len(path) == 3 and all(0 < len(p) <= _LONGEST and b"." not in p for p in path[:2]):
            if len(request.uri) > _LONGEST_URI:
                raise _Answer(414)
            return self._connection(request, path[1], path[2])
        if len(path) == 0 or path == [b""]:
            _allow(request, b"GET", b"HEAD")
            request.setHeader(b"content-type", _TEXT)
            return pages.GREETING
        if len(path) == 1:
            if path[0] == b"info":
                return self._info(request)
            if _isIframe(path[0]):
                return self._page(request)
            if path[0] == b"websocket":
                return self._webSocket(request, raw=True)
        raise _Answer(404, _NOT_FOUND)

    def _connection(self, request: Any, id: bytes, transport: bytes) -> bytes | int:
        if transport == b"websocket":
            return self._webSocket(request, raw=False)
        way = self._ways.get(transport)
        if way is None:
            raise _Answer(404, _NOT_FOUND)
        return way(self, request, id.decode("latin-1"))

    # -- pages ----------------------------------------------------------------

    def _info(self, request: Any) -> bytes:
        self._cors(request, b"GET", b"HEAD")
        _uncached(request)
        request.setHeader(b"content-type", b"application/json; charset=UTF-8")
        return pages.info(
            "websocket" in self._enabled,
            bool(self.settings.jsessionid),
            self._origins.describe(),
            self._entropy,
        )

    def _page(self, request: Any) -> bytes:
        _allow(request, b"GET", b"HEAD")
        page, etag = self._iframe
        self._cached(request)
        request.setHeader(b"etag", etag)
        if self._origins.frames is not None:
            request.setHeader(b"content-security-policy", self._origins.frames)
        if _knows(request, etag):
            raise _Answer(304)
        request.setHeader(b"content-type", b"text/html; charset=UTF-8")
        return page

    # -- to the client --------------------------------------------------------

    def _xhr(self, request: Any, id: str) -> int:
        self._begin(request, "xhr", b"POST", xhr.TYPE)
        return self._carry(request, "xhr", id, xhr.FORMAT, b"", 1)

    def _xhrStreaming(self, request: Any, id: str) -> int:
        self._begin(request, "xhr_streaming", b"POST", xhr.TYPE)
        return self._carry(request, "xhr_streaming", id, xhr.FORMAT, xhr.PRELUDE)

    def _eventSource(self, request: Any, id: str) -> int:
        self._begin(request, "eventsource", b"GET", eventsource.TYPE)
        return self._carry(request, "eventsource", id, eventsource.FORMAT, eventsource.PRELUDE)

    def _htmlFile(self, request: Any, id: str) -> int:
        self._begin(request, "htmlfile", b"GET", htmlfile.TYPE)
        prelude = htmlfile.prelude(_callback(request))
        return self._carry(request, "htmlfile", id, htmlfile.FORMAT, prelude)

    def _jsonp(self, request: Any, id: str) -> int:
        self._begin(request, "jsonp", b"GET", jsonp.TYPE)
        request.setHeader(b"x-content-type-options", b"nosniff")
        form = jsonp.formatFor(_callback(request))
        return self._carry(request, "jsonp", id, form, b"", 1)

    def _begin(self, request: Any, transport: str, method: bytes, type: bytes) -> None:
        """
        What all requests of a transport have in common.
        """
        if transport not in self._enabled:
            raise _Answer(404, _NOT_FOUND)
        self._cors(request, method)
        _uncached(request)
        request.setHeader(b"content-type", type)
        self._stick(request)

    def _carry(
        self,
        request: Any,
        transport: str,
        id: str,
        form: Format,
        prelude: bytes,
        limit: int | None = None,
    ) -> int:
        driver = self._find(request, id)
        if driver is None:
            driver = self._make(request, transport, id)
        if prelude:
            request.write(prelude)
        carrier = RequestCarrier(request, form, limit or self.settings.responseLimit)
        carrier.carry(driver)
        return NOT_DONE_YET

    def _webSocket(self, request: Any, raw: bool) -> int:
        transport = "rawwebsocket" if raw else "websocket"
        if transport not in self._enabled:
            raise _Answer(404, _NOT_FOUND)
        _allow(request, b"GET")
        if not self._origins.admits(request):
            raise _Answer(403, b"The origin is not allowed\n")
        try:
            handshake = Handshake(request)
        except Refused as refused:
            text = str(refused).encode("ascii", "replace") + b"\n"
            raise _Answer(refused.code, text, refused.headers) from None
        driver = self._make(request, transport, None)
        answer, extensions = handshake.accept(self.settings.deflate)
        frames = Frames(self.settings.maxMessageBytes, extensions)
        form: Format
        if raw:
            form = websocket.deflatedRaw(frames) if extensions else websocket.RAW
        else:
            form = websocket.deflatedFramed(frames) if extensions else websocket.FRAMED
        connection = request.channel.transport
        carrier = websocket.WebSocketCarrier(connection, frames, form, raw)
        early = handshake.takeOver(answer, carrier.dataReceived, carrier.connectionLost)
        carrier.carry(driver)
        if early:
            carrier.dataReceived(early)
        return NOT_DONE_YET

    # -- from the client ------------------------------------------------------

    def _xhrSend(self, request: Any, id: str) -> int:
        if not self._enabled & {"xhr", "xhr_streaming", "eventsource", "htmlfile"}:
            raise _Answer(404, _NOT_FOUND)
        self._cors(request, b"POST")
        _uncached(request)
        self._stick(request)
        body = self._body(request)
        if not body:
            raise _Answer(500, b"Payload expected.\n")
        request.setResponseCode(204)
        return self._receive(request, id, body, b"")

    def _jsonpSend(self, request: Any, id: str) -> int:
        if "jsonp" not in self._enabled:
            raise _Answer(404, _NOT_FOUND)
        self._cors(request, b"POST")
        _uncached(request)
        self._stick(request)
        body = self._body(request)
        kind = (request.getHeader(b"content-type") or b"").partition(b";")[0].strip().lower()
        if kind == b"application/x-www-form-urlencoded":
            body = _field(body)
        if not body:
            raise _Answer(500, b"Payload expected.\n")
        return self._receive(request, id, body, b"ok")

    def _body(self, request: Any) -> bytes:
        body: bytes = request.content.read(self.settings.maxBodyBytes + 1)
        if len(body) > self.settings.maxBodyBytes:
            self._tooBig(request)
        return body

    def _tooBig(self, request: Any) -> NoReturn:
        # Some clients cannot see the status, and would go on without the message.
        driver = self._find(request, request.postpath[1].decode("latin-1"))
        if driver is not None:
            driver.end(Close(1009, "Too big"))
        raise _Answer(413, b"Too big\n")

    def _receive(self, request: Any, id: str, body: bytes, answer: bytes) -> int:
        driver = self._find(request, id)
        if driver is None or driver.session.closed is not None:
            raise _Answer(404, b"404 Error: No such session\n")
        try:
            messages = parseMessages(body.decode("utf-8"))
        except (BrokenFrame, UnicodeDecodeError):
            raise _Answer(500, b"Broken JSON encoding.\n") from None
        limit = self.settings.maxMessageBytes
        if len(body) > limit and any(len(utf8(message)) > limit for message in messages):
            self._tooBig(request)
        request.setHeader(b"content-type", _TEXT)
        driver.received(messages)

        def respond(_: object = None) -> None:
            if not request._disconnected:
                request.write(answer)
                request.finish()

        room = driver.room()
        if room is None:
            respond()
        else:
            room.addCallback(respond)
        return NOT_DONE_YET

    _ways: ClassVar[dict[bytes, Callable[[SockJSResource, Any, str], int]]] = {
        b"xhr": _xhr,
        b"xhr_send": _xhrSend,
        b"xhr_streaming": _xhrStreaming,
        b"eventsource": _eventSource,
        b"htmlfile": _htmlFile,
        b"jsonp": _jsonp,
        b"jsonp_send": _jsonpSend,
    }

    # -- connections ----------------------------------------------------------

    def _find(self, request: Any, id: str) -> Driver | None:
        driver = self.service.find(id)
        if driver is not None and driver.owner is not None:
            session = sessionOf(request)
            if session is None or ownerOf(session) != driver.owner:
                raise _Answer(403, b"This is somebody else's\n")
        return driver

    def _make(self, request: Any, transport: str, id: str | None) -> Driver:
        settings, session = self.settings, None
        if settings.bound:
            session = sessionOf(request)
            if session is None:
                raise _Answer(403, b"There is no session\n")
        info = ConnectionInfo.of(
            request, transport, session, settings.trustForwarded, settings.passCookies
        )
        owner = None if session is None else ownerOf(session)
        try:
            driver = self.service.make(self._maker, info, id, owner)
        except Full:
            raise _Answer(503, b"Too many connections\n", [(b"retry-after", b"5")]) from None
        if session is not None:
            bind(driver, session, settings.countsAsUse)
        return driver

    # -- headers --------------------------------------------------------------

    def _cors(self, request: Any, *methods: bytes) -> None:
        """
        @raise _Answer: the page may not, or it is a question beforehand.
        """
        if not self._origins.admits(request):
            raise _Answer(403, b"The origin is not allowed\n")
        self._origins.allow(request)
        if request.method == b"OPTIONS":
            headers = request.responseHeaders
            headers.setRawHeaders(
                b"access-control-allow-methods", [b", ".join([b"OPTIONS", *methods])]
            )
            headers.setRawHeaders(b"access-control-max-age", [b"%d" % _YEAR])
            self._cached(request)
            self._stick(request)
            raise _Answer(204)
        _allow(request, *methods, b"OPTIONS")

    def _cached(self, request: Any) -> None:
        request.setHeader(b"cache-control", b"public, max-age=%d" % _YEAR)
        request.setHeader(b"expires", datetimeToString(self.service.seconds() + _YEAR))

    def _stick(self, request: Any) -> None:
        wanted = self.settings.jsessionid
        if callable(wanted):
            wanted(request)
        elif wanted:
            value = request.getCookie(b"JSESSIONID")
            if value is None or not _isJsessionid(value):
                value = b"dummy"
            request.cookies.append(b"JSESSIONID=%b; Path=/" % value)


def _say(request: Any, answer: _Answer) -> bytes:
    request.setResponseCode(answer.code)
    for name, value in answer.headers:
        request.responseHeaders.setRawHeaders(name, [value])
    if answer.text:
        request.setHeader(b"content-type", _TEXT)
    else:
        request.responseHeaders.removeHeader(b"content-type")
        request.defaultContentType = None
    return answer.text


def _allow(request: Any, *methods: bytes) -> None:
    if request.method not in methods:
        raise _Answer(405, headers=[(b"allow", b", ".join(methods))])


def _knows(request: Any, etag: bytes) -> bool:
    """
    Whether the client has it (RFC 9110, 13.1.2).
    """
    tags = request.getHeader(b"if-none-match") or b""
    known = [tag.strip().removeprefix(b"W/") for tag in tags.split(b",")]
    return etag in known or known == [b"*"]


def _field(body: bytes) -> bytes:
    """
    The one field of a form that matters.
    """
    for field in body.split(b"&"):
        name, _, value = field.partition(b"=")
        if name == b"d":
            return unquote_to_bytes(value.replace(b"+", b" "))
    return b""


def _uncached(request: Any) -> None:
    request.setHeader(
        b"cache-control", b"no-store, no-cache, no-transform, must-revalidate, max-age=0"
    )


def _callback(request: Any) -> str:
    values = request.args.get(b"c") or request.args.get(b"callback")
    if not values:
        raise _Answer(500, b'"callback" parameter required\n')
    callback: str = values[0].decode("latin-1")
    if not jsonp.isCallback(callback):
        raise _Answer(500, b'invalid "callback" parameter\n')
    return callback
