"""
An in-memory browser that drives a given Site.

Real HTTP/1.1 goes through the site's own protocol, without sockets and without
a running reactor: where the site answers at once, so does the browser::

    browser = Browser(site)
    browser.post("/login", {"user": "alice"})
    response = self.successResultOf(browser.get("/"))
"""

from __future__ import annotations

import string
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast
from urllib.parse import quote, urlencode, urljoin

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import (
    IConsumer,
    IDelayedCall,
    IPullProducer,
    IPushProducer,
    ISSLTransport,
    ITransport,
)
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import HTTPFactory
from twisted.web.http import Request as HTTPRequest
from twisted.web.http_headers import Headers
from zope.interface import implementer

from twsessions.testing.jar import CookieJar

__all__ = ["Browser", "Pending", "Response"]

_log = Logger()

_URL_CHARACTERS = string.ascii_letters + string.digits + string.punctuation
_MOST_REDIRECTS = 20

HeadersLike = Headers | Mapping[str, str] | Mapping[bytes, bytes] | None
FormLike = Mapping[str, Any] | Iterable[tuple[str, Any]] | None


@dataclass(frozen=True)
class Response:
    """
    A whole answer.

    @ivar code: the status, 200 for instance.
    @ivar body: its bytes, with the transfer encoding undone.
    @ivar url: what was asked for, after redirects.
    """

    code: int
    phrase: bytes
    headers: Headers
    body: bytes
    url: str

    @property
    def setCookies(self) -> list[bytes]:
        """
        The C{Set-Cookie} lines as they came, obeyed or not.
        """
        return list(self.headers.getRawHeaders(b"set-cookie", []))

    def text(self) -> str:
        """
        The body as text, in the charset it declares or else UTF-8.
        """
        declared = self.headers.getRawHeaders(b"content-type", [b""])[0].decode("latin-1")
        charset = declared.lower().partition("charset=")[2].partition(";")[0].strip(' "')
        return self.body.decode(charset or "utf-8")


@dataclass(frozen=True)
class _Address:
    # Where a request goes.
    secure: bool
    host: str
    target: str

    @property
    def url(self) -> str:
        return f"{'https' if self.secure else 'http'}://{self.host}{self.target}"

    @property
    def hostname(self) -> str:
        host, colon, port = self.host.rpartition(":")
        return host if colon and port.isdigit() else self.host

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]


@dataclass(frozen=True)
class _Order:
    # What start() was asked for, kept for redirects.
    method: bytes
    address: _Address
    headers: Headers = field(default_factory=Headers)
    body: bytes = b""


class Pending:
    """
    A request under way on a connection of its own.
    """

    def __init__(self, connection: _Connection, order: _Order) -> None:
        self._connection = connection
        self._order = order
        self._received = bytearray()
        self._parser = _Parser(order.method)
        self._outcome: Response | Failure | None = None
        self._response: Deferred[Response] | None = None

    @property
    def received(self) -> bytes:
        """
        All bytes that have come so far: status line, headers and body.
        """
        return bytes(self._received)

    @property
    def response(self) -> Deferred[Response]:
        """
        Fires with the L{Response} when it is complete; fails with
        L{ConnectionLost} if the connection ends before. Cancelling it
        disconnects.
        """
        # Made when asked for, so that nobody has to handle the failure of a
        # request that a test has cut off on purpose.
        if self._response is None:
            if self._outcome is None:
                self._response = Deferred(lambda _: self.disconnect())
            elif isinstance(self._outcome, Failure):
                self._response = fail(self._outcome)
            else:
                self._response = succeed(self._outcome)
        return self._response

    def write(self, data: bytes) -> None:
        """
        Send more bytes on the same connection, for what speaks another
        protocol after an upgrade.
        """
        self._connection.deliver(data)

    def disconnect(self) -> None:
        """
        Drop the connection, as a browser does that is closed or out of reach.
        """
        self._connection.lose(Failure(ConnectionAborted()))

    def _fire(self, failure: Failure | None = None) -> None:
        parser = self._parser
        if self._outcome is not None:
            return
        if failure is not None:
            self._outcome = failure
        else:
            self._outcome = Response(
                parser.code,
                parser.phrase,
                parser.headers,
                bytes(parser.body),
                self._order.address.url,
            )
        if self._response is not None:
            if failure is not None:
                self._response.errback(failure)
            else:
                self._response.callback(cast(Response, self._outcome))


class Browser:
    """
    Asks a site for pages and keeps the cookies it sets.

    Every browser counts as a port of the site: the first one starts it unless
    it listens already, L{close} of the last one stops it.

    @ivar jar: all cookies, with their attributes. Two browsers that share one
        are one browser; give it to a new one when a test's site "restarts".
    @ivar headers: sent with every request.
    """

    def __init__(
        self,
        site: HTTPFactory,
        secure: bool = False,
        host: bytes | str = b"example.com",
        *,
        jar: CookieJar | None = None,
        address: str = "192.0.2.1",
        timeouts: bool = False,
    ) -> None:
        """
        @param secure: whether a path alone means C{https}; a whole URL says
            so itself.
        @param host: which host a path alone is on.
        @param jar: the cookies to begin with.
        @param address: the IP address that the site sees.
        @param timeouts: whether connections end when they were idle for the
            site's C{timeOut}. Otherwise no delayed call is made for them.
        """
        self.site = site
        self.secure = secure
        self.host = host.decode("ascii") if isinstance(host, bytes) else host
        self.jar = CookieJar() if jar is None else jar
        self.headers = Headers({"User-Agent": ["twsessions.testing.Browser"]})
        self._address = address
        self._timeouts = timeouts
        self._rawCookie: bytes | None = None
        self._isStarted = False
        self._connections: list[_Connection] = []
        self._resting: list[_Connection] = []

    @property
    def cookies(self) -> Mapping[str, str]:
        """
        Values by name of the cookies that would be sent to C{/} or any path
        below it on this browser's host. Of several with one name, the one a
        site would see first.
        """
        now = self._seconds()
        host = _Address(self.secure, self.host, "/").hostname.lower()
        found = [c for c in self.jar if c.expires > now and c.goesTo(self.secure, host, c.path)]
        found.reverse()
        found.sort(key=lambda cookie: len(cookie.path))  # the longest path, and the oldest, is kept
        return {cookie.name: cookie.value for cookie in found}

    def setRawCookie(self, header: bytes | None) -> None:
        """
        Send exactly these bytes as the C{Cookie} header from now on, whatever
        they are; L{None}: the jar's cookies again.
        """
        self._rawCookie = header

    def get(
        self, url: bytes | str, headers: HeadersLike = None, follow: bool = False
    ) -> Deferred[Response]:
        """
        See L{request}.
        """
        return self.request("GET", url, headers, follow=follow)

    def post(
        self,
        url: bytes | str,
        form: FormLike = None,
        headers: HeadersLike = None,
        body: bytes = b"",
        follow: bool = False,
    ) -> Deferred[Response]:
        """
        See L{request}.
        """
        return self.request("POST", url, headers, body, form, follow)

    def request(
        self,
        method: bytes | str,
        url: bytes | str,
        headers: HeadersLike = None,
        body: bytes = b"",
        form: FormLike = None,
        follow: bool = False,
    ) -> Deferred[Response]:
        """
        Send a request and wait for the whole answer.

        @param url: a path, which is sent to the letter, or a whole URL.
        @param headers: go before the browser's own of the same name.
        @param form: fields of a form, sent as its body.
        @param follow: whether to go where a redirect leads.
        @return: fires with the L{Response}; synchronously, if the site answers
            synchronously. Fails with L{ConnectionLost} if the connection ends
            before. Cancelling it disconnects.
        """
        order = self._order(method, url, headers, body, form)
        return self._ask(order, _MOST_REDIRECTS if follow else 0)

    def start(
        self,
        method: bytes | str,
        url: bytes | str,
        headers: HeadersLike = None,
        body: bytes = b"",
        form: FormLike = None,
    ) -> Pending:
        """
        Send a request, to look at what comes while it comes. See L{request}.
        """
        return self._send(self._order(method, url, headers, body, form))

    def disconnect(self) -> None:
        """
        Drop all connections, with the requests that are under way on them.
        """
        for connection in list(self._connections):
            connection.lose(Failure(ConnectionAborted()))

    def close(self) -> None:
        """
        Disconnect, and stop the site if nobody else uses it.
        """
        self.disconnect()
        if self._isStarted:
            self._isStarted = False
            self.site.doStop()

    def _seconds(self) -> float:
        return self.site.reactor.seconds()

    def _order(
        self,
        method: bytes | str,
        url: bytes | str,
        headers: HeadersLike,
        body: bytes,
        form: FormLike,
    ) -> _Order:
        every = self.headers.copy()
        if form is not None:
            fields = form.items() if isinstance(form, Mapping) else form
            body = urlencode(list(fields), doseq=True).encode("ascii")
            every.setRawHeaders(b"content-type", [b"application/x-www-form-urlencoded"])
        if isinstance(headers, Headers):
            for name, values in headers.getAllRawHeaders():
                every.setRawHeaders(name, values)
        elif headers is not None:
            for key, value in headers.items():
                every.setRawHeaders(_bytes(key), [_bytes(value)])
        return _Order(_bytes(method).upper(), self._resolve(url), every, body)

    def _resolve(self, url: bytes | str) -> _Address:
        text = url.decode("latin-1") if isinstance(url, bytes) else quote(url, _URL_CHARACTERS)
        text = text.partition("#")[0]
        scheme, colon, rest = text.partition("://")
        if colon and scheme in ("http", "https"):
            slash = next((at for at, char in enumerate(rest) if char in "/?"), len(rest))
            target = rest[slash:]
            host = rest[:slash]
            secure = scheme == "https"
        else:
            secure, host, target = self.secure, self.host, text
        if not target.startswith(("/", "*")):
            target = "/" + target
        return _Address(secure, host, target)

    def _ask(self, order: _Order, redirects: int) -> Deferred[Response]:
        response = self._send(order).response
        if not redirects:
            return response
        return response.addCallback(self._follow, order, redirects)

    def _follow(
        self, response: Response, order: _Order, redirects: int
    ) -> Response | Deferred[Response]:
        location = response.headers.getRawHeaders(b"location", [b""])[0]
        if response.code not in (301, 302, 303, 307, 308) or not location:
            return response
        if redirects == 1:
            raise ValueError(f"more than {_MOST_REDIRECTS} redirects, the last to {location!r}")
        url = urljoin(order.address.url, location.decode("latin-1"))
        method, body, headers = order.method, order.body, order.headers.copy()
        if response.code < 307 and method != b"HEAD":
            method, body = b"GET", b""
            headers.removeHeader(b"content-type")
        address = self._resolve(url.encode("latin-1"))
        return self._ask(_Order(method, address, headers, body), redirects - 1)

    def _send(self, order: _Order) -> Pending:
        if not self._isStarted:
            self._isStarted = True
            self.site.doStart()
        secure = order.address.secure
        for connection in self._resting:
            if connection.secure == secure:
                self._resting.remove(connection)
                break
        else:
            connection = _Connection(self, secure)
            self._connections.append(connection)
        return connection.send(order, self._head(order) + order.body)

    def _head(self, order: _Order) -> bytes:
        headers, address = order.headers, order.address
        lines = [b"%s %s HTTP/1.1" % (order.method, address.target.encode("latin-1"))]
        if not headers.hasHeader(b"host"):
            lines.append(b"Host: " + address.host.encode("ascii"))
        for name, values in headers.getAllRawHeaders():
            lines.extend(b"%s: %s" % (name, value) for value in values)
        if self._rawCookie is not None:
            lines.append(b"Cookie: " + self._rawCookie)  # past Headers, which would clean it
        elif not headers.hasHeader(b"cookie"):
            kept = self.jar.matching(
                address.secure, address.hostname, address.path, self._seconds()
            )
            if kept:
                pairs = [f"{c.name}={c.value}" if c.name else c.value for c in kept]
                lines.append(b"Cookie: " + "; ".join(pairs).encode("latin-1"))
        if not headers.hasHeader(b"content-length") and not headers.hasHeader(b"transfer-encoding"):
            if order.body or order.method in (b"POST", b"PUT", b"PATCH"):
                lines.append(b"Content-Length: %d" % len(order.body))
        return b"\r\n".join([*lines, b"", b""])

    def _headersReceived(self, order: _Order, headers: Headers) -> None:
        # As in a browser: cookies count from the head on, before the body.
        address = order.address
        for line in headers.getRawHeaders(b"set-cookie", []):
            self.jar.receive(line, address.secure, address.hostname, address.path, self._seconds())


class _Connection:
    """
    One connection of a browser: the site's protocol and the request on it.
    """

    def __init__(self, browser: Browser, secure: bool) -> None:
        self.browser = browser
        self.secure = secure
        self.isLost = False
        self.isClosing = False
        self.pending: Pending | None = None
        self._depth = 0  # of calls into the site, during which nothing is reported
        self._later: IDelayedCall | None = None
        kind = IPv6Address if ":" in browser._address else IPv4Address
        self.peer = kind("TCP", browser._address, 40000 + len(browser._connections))
        self.host = kind(
            "TCP", "2001:db8::1" if kind is IPv6Address else "198.51.100.1", 443 if secure else 80
        )
        self.transport = (_SecureTransport if secure else _Transport)(self)
        protocol = browser.site.buildProtocol(self.peer)
        assert protocol is not None, "the site refused the connection"
        self.protocol: Any = protocol
        if not browser._timeouts:
            self.protocol.timeOut = None
        self.channel: Any = getattr(protocol, "_channel", protocol)
        self._hook(self.channel)
        protocol.makeConnection(self.transport)

    def _hook(self, channel: Any) -> None:
        register, done = channel.registerProducer, channel.requestDone

        def registerProducer(producer: Any, streaming: bool) -> None:
            # The channel would pull by a Cooperator of the global reactor.
            if streaming:
                register(producer, True)
            else:
                pull = _Pull(producer, self)
                register(pull, True)
                pull.resumeProducing()

        def requestDone(request: HTTPRequest) -> None:
            self._depth += 1
            try:
                done(request)
            finally:
                self._depth -= 1
            # The response is reported after everybody else has heard that the
            # request is over: with sockets it could not be earlier either.
            request.notifyFinish().addBoth(lambda _: self.settle())

        channel.registerProducer = registerProducer
        channel.requestDone = requestDone

    def send(self, order: _Order, data: bytes) -> Pending:
        self.pending = pending = Pending(self, order)
        pending._parser.onHeaders = lambda headers: self.browser._headersReceived(order, headers)
        self.deliver(data)
        return pending

    def deliver(self, data: bytes) -> None:
        if self.isLost:
            return
        self._depth += 1
        try:
            self.protocol.dataReceived(data)
        except Exception:
            # What a reactor does.
            _log.failure("a site's protocol failed")
            self.lose(Failure())
        finally:
            self._depth -= 1
        self.settle()

    def received(self, data: bytes) -> None:
        pending = self.pending
        if pending is None or self.isLost:
            return
        pending._received += data
        try:
            pending._parser.feed(data)
        except Exception:
            self.lose(Failure())
            return
        if pending._parser.isComplete and not self._depth and self._later is None:
            # Most likely the site is in the middle of finishing the request;
            # if it is not, this is all there is to wait for.
            self._later = self.callLater(self.settle)

    def settle(self) -> None:
        if self._depth:
            return
        if self._later is not None:
            if self._later.active():
                self._later.cancel()
            self._later = None
        if self.isClosing and not self.isLost:
            self.lose(Failure(ConnectionDone()))
        pending, browser = self.pending, self.browser
        isComplete = pending is not None and pending._parser.isComplete
        if isComplete and cast(Pending, pending)._parser.code != 101:
            self.pending = None
        if (
            self.pending is None
            and not self.isLost
            and not self.channel.requests
            and self not in browser._resting
        ):
            browser._resting.append(self)
        if pending is not None and isComplete:
            pending._fire()

    def lose(self, reason: Failure) -> None:
        if self.isLost:
            return
        self.isLost = True
        browser, pending = self.browser, self.pending
        browser._connections.remove(self)
        if self in browser._resting:
            browser._resting.remove(self)
        self._depth += 1
        try:
            producer, self.transport.producer = self.transport.producer, None
            if producer is not None:
                producer.stopProducing()
            self.protocol.connectionLost(reason)
        except Exception:
            _log.failure("a site's protocol failed")
        finally:
            self._depth -= 1
        if pending is not None:
            pending._parser.end()
            if not pending._parser.isComplete:
                self.pending = None
                if reason.check(ConnectionDone):
                    reason = Failure(ConnectionLost("the site closed the connection"))
                pending._fire(reason)
        self.settle()

    def callLater(self, function: Callable[[], object]) -> IDelayedCall:
        return self.browser.site.reactor.callLater(0, function)


@implementer(ITransport, IConsumer, IPushProducer)
class _Transport:
    """
    The site's end of a connection.
    """

    disconnecting = False
    producer: Any = None

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection

    @property
    def connected(self) -> bool:
        return not self._connection.isLost

    def write(self, data: bytes) -> None:
        if not isinstance(data, bytes):
            raise TypeError(f"a transport takes bytes, not {data!r}")
        self._connection.received(data)

    def writeSequence(self, data: Iterable[bytes]) -> None:
        self.write(b"".join(data))

    def loseConnection(self) -> None:
        self.disconnecting = True
        self._connection.isClosing = True
        self._connection.settle()

    def abortConnection(self) -> None:
        self.loseConnection()

    def getPeer(self) -> Any:
        return self._connection.peer

    def getHost(self) -> Any:
        return self._connection.host

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        if self.producer is not None:
            raise RuntimeError("there is a producer already")
        if streaming:
            self.producer = producer
        else:
            self.producer = pull = _Pull(producer, self._connection)
            pull.resumeProducing()

    def unregisterProducer(self) -> None:
        self.producer = None

    # The browser reads and sends without limit: nothing to hold back here.

    def pauseProducing(self) -> None:
        pass

    def resumeProducing(self) -> None:
        pass

    def stopProducing(self) -> None:
        self.loseConnection()


@implementer(ISSLTransport)
class _SecureTransport(_Transport):
    """
    The site's end of a TLS connection.
    """

    negotiatedProtocol = None

    def getPeerCertificate(self) -> None:
        return None

    # TLS promises what TCP has.

    def getTcpNoDelay(self) -> bool:
        return True

    def setTcpNoDelay(self, enabled: bool) -> None:
        pass

    def getTcpKeepAlive(self) -> bool:
        return False

    def setTcpKeepAlive(self, enabled: bool) -> None:
        pass

    def loseWriteConnection(self) -> None:
        self.loseConnection()


@implementer(IPushProducer)
class _Pull:
    """
    Makes a push producer of a pull producer, without a reactor: pulls for as
    long as something comes, then once each turn.
    """

    def __init__(self, producer: IPullProducer, connection: _Connection) -> None:
        self._producer = producer
        self._connection = connection
        self._isPulling = False

    def _isRegistered(self) -> bool:
        channel: Any = self._connection.channel
        transport = self._connection.transport
        return not self._connection.isLost and (
            channel._requestProducer is self or transport.producer is self
        )

    def resumeProducing(self) -> None:
        if self._isPulling:
            return
        self._isPulling = True
        try:
            while self._isRegistered():
                pending = self._connection.pending
                before = len(pending._received) if pending is not None else 0
                self._producer.resumeProducing()
                after = len(pending._received) if pending is not None else 0
                if self._isRegistered() and after == before:
                    self._connection.callLater(self.resumeProducing)
                    break
        finally:
            self._isPulling = False

    def pauseProducing(self) -> None:
        pass

    def stopProducing(self) -> None:
        self._producer.stopProducing()


class _Parser:
    """
    Reads one response out of bytes as they come.
    """

    def __init__(self, method: bytes) -> None:
        self.code = 0
        self.phrase = b""
        self.headers = Headers()
        self.body = bytearray()
        self.isComplete = False
        self.onHeaders: Callable[[Headers], None] = lambda headers: None
        self._buffer = bytearray()
        self._isEnd = False
        self._run = self._parse(method)
        next(self._run)

    def feed(self, data: bytes) -> None:
        if not self.isComplete:
            self._buffer += data
            self._step()

    def end(self) -> None:
        if not self.isComplete:
            self._isEnd = True
            self._step()

    def _step(self) -> None:
        try:
            next(self._run)
        except StopIteration:
            self.isComplete = True

    # Each yield waits for more bytes, or the end.

    def _parse(self, method: bytes) -> Generator[None, None, None]:
        while True:
            status = yield from self._line()
            version, code, phrase = (*status.split(b" ", 2), b"")[:3]
            if not version.startswith(b"HTTP/1."):
                raise ValueError(f"not an HTTP/1 response: {status!r}")
            self.code, self.phrase = int(code), phrase
            self.headers = yield from self._fields()
            if self.code == 101 or self.code >= 200:
                break
        self.onHeaders(self.headers)
        lengths = self.headers.getRawHeaders(b"content-length", [])
        if method == b"HEAD" or self.code in (101, 204, 304):
            return
        if self.headers.getRawHeaders(b"transfer-encoding", [b""])[-1].lower() == b"chunked":
            yield from self._chunks()
        elif lengths:
            if len(set(lengths)) > 1:
                raise ValueError(f"more than one Content-Length: {lengths!r}")
            yield from self._take(int(lengths[0]))
        else:
            while not self._isEnd:
                yield from self._take(len(self._buffer))
                yield
            yield from self._take(len(self._buffer))

    def _line(self) -> Generator[None, None, bytes]:
        while (end := self._buffer.find(b"\r\n")) < 0:
            yield
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 2]
        return line

    def _fields(self) -> Generator[None, None, Headers]:
        headers = Headers()
        while line := (yield from self._line()):
            name, colon, value = line.partition(b":")
            if not colon:
                raise ValueError(f"not a header: {line!r}")
            headers.addRawHeader(name, value.strip(b" \t"))
        return headers

    def _chunks(self) -> Generator[None, None, None]:
        while size := int((yield from self._line()).partition(b";")[0], 16):
            yield from self._take(size)
            if (yield from self._line()):
                raise ValueError("a chunk is longer than it says")
        yield from self._fields()

    def _take(self, size: int) -> Generator[None, None, None]:
        while size:
            if not self._buffer:
                yield
            self.body += self._buffer[:size]
            taken = min(size, len(self._buffer))
            del self._buffer[:taken]
            size -= taken


def _bytes(value: bytes | str) -> bytes:
    return value if isinstance(value, bytes) else value.encode("utf-8")
