"""
Tests for L{twsessions.testing.browser} and L{twsessions.testing.jar}.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionAborted, ConnectionLost
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.web.http import Request
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Site
from twisted.web.static import File

from twsessions.testing.browser import Browser, Response
from twsessions.testing.jar import Cookie, CookieJar

Render = Callable[[Any], Any]


class Page(Resource):
    """
    One function, at one path.
    """

    isLeaf = True

    def __init__(self, render: Render) -> None:
        super().__init__()
        self._render = render

    def render(self, request: Any) -> Any:
        return self._render(request)


def echo(request: Any) -> bytes:
    """
    Tell what was asked.
    """
    cookie = request.requestHeaders.getRawHeaders(b"cookie", [b"-"])
    return b"|".join([request.method, request.uri, b",".join(cookie), request.content.read()])


class Web:
    """
    A stock site on a clock.
    """

    def __init__(self) -> None:
        self.clock = Clock()
        self.root = Resource()
        self.site = Site(self.root, reactor=self.clock)
        self.requests: list[Any] = []
        self.root.putChild(b"echo", Page(echo))
        self.root.putChild(b"later", Page(self._keep))

    def _keep(self, request: Any) -> object:
        self.requests.append(request)
        return NOT_DONE_YET

    def page(self, name: bytes, render: Render) -> None:
        self.root.putChild(name, Page(render))

    def setting(self, *lines: bytes) -> None:
        """
        C{/set} answers with these C{Set-Cookie} lines.
        """

        def render(request: Any) -> bytes:
            request.responseHeaders.setRawHeaders(b"set-cookie", lines)
            return b""

        self.page(b"set", render)


@pytest.fixture
def web() -> Iterator[Web]:
    it = Web()
    yield it
    assert it.clock.getDelayedCalls() == []


@pytest.fixture
def browser(web: Web) -> Iterator[Browser]:
    it = Browser(web.site)
    yield it
    it.close()


def now(deferred: Deferred[Response]) -> Response:
    """
    The result that is there already.
    """
    found: list[Any] = []
    deferred.addBoth(found.append)
    assert found, "no answer yet"
    if isinstance(found[0], Failure):
        found[0].raiseException()
    response: Response = found[0]
    return response


def test_bytes(browser: Browser) -> None:
    """
    An answer that is there at once is there at once.
    """
    response = now(browser.get("/echo?a=%2F&b=\u00e9"))
    assert (response.code, response.phrase) == (200, b"OK")
    assert response.body == b"GET|/echo?a=%2F&b=%C3%A9|-|"
    assert response.headers.getRawHeaders(b"content-length") == [b"27"]
    assert response.url == "http://example.com/echo?a=%2F&b=%C3%A9"


def test_form(browser: Browser) -> None:
    """
    A form is sent as the body; headers given go before the browser's own.
    """
    body = now(browser.post("/echo", {"a": "1 2", "b": ["3", "4"]}, {"Cookie": "x"})).text()
    assert body == "POST|/echo|x|a=1+2&b=3&b=4"
    assert now(browser.post("/echo", [("a", "1")])).text() == "POST|/echo|-|a=1"
    assert now(browser.request(b"PUT", b"/echo", body=b"raw")).text() == "PUT|/echo|-|raw"


def test_stream(web: Web, browser: Browser) -> None:
    """
    What has come so far can be looked at; the answer is complete at the end.
    """
    pending = browser.start("GET", "/later")
    assert pending.received == b""
    [request] = web.requests
    request.write(b"one ")
    assert pending.received.startswith(b"HTTP/1.1 200 OK\r\n")
    assert pending.received.endswith(b"\r\n4\r\none \r\n")
    request.write(b"two")
    assert not pending.response.called
    ended: list[str] = []
    request.notifyFinish().addCallback(lambda _: ended.append("notified"))
    pending.response.addCallback(lambda r: ended.append(r.text()))
    request.finish()
    assert ended == ["notified", "one two"]


def test_headAndNotModified(web: Web, browser: Browser) -> None:
    """
    Answers without a body are over with their head.
    """
    response = now(browser.request("HEAD", "/echo"))
    assert response.body == b""
    assert response.headers.getRawHeaders(b"content-length") == [b"13"]

    def unchanged(request: Request) -> bytes:
        request.setETag(b"x")
        return b""

    web.page(b"tagged", unchanged)
    response = now(browser.get("/tagged", {b"If-None-Match": b"x"}))
    assert (response.code, response.body) == (304, b"")
    web.page(b"nothing", lambda request: request.setResponseCode(204) or b"")
    assert now(browser.get("/nothing")).code == 204
    assert now(browser.get("/echo")).code == 200
    assert len(browser._connections) == 1, "one connection was kept alive for all of it"


def test_closeDelimited(web: Web, browser: Browser) -> None:
    """
    A body without a length ends with the connection.
    """

    def raw(request: Any) -> object:
        request.channel.transport.write(b"HTTP/1.1 200 OK\r\n\r\nabc")
        request.channel.transport.write(b"def")
        request.channel.loseConnection()
        return NOT_DONE_YET

    web.page(b"raw", raw)
    assert now(browser.get("/raw")).body == b"abcdef"
    assert browser._connections == []
    assert now(browser.get("/echo", {"Connection": "close"})).code == 200
    assert browser._connections == []


def test_interim(web: Web, browser: Browser) -> None:
    """
    Interim answers are passed over.
    """
    pending = browser.start("POST", "/echo", {"Expect": "100-continue"}, b"x")
    assert pending.received.startswith(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert now(pending.response).text() == "POST|/echo|-|x"


def test_redirect(web: Web, browser: Browser) -> None:
    """
    Redirects are followed with the cookies they set, if that is wanted.
    """

    def login(request: Any) -> bytes:
        request.addCookie(b"user", b"alice", path=b"/")
        request.setResponseCode(int(request.args[b"code"][0]))
        request.setHeader(b"location", b"echo?done")
        return b""

    web.page(b"login", login)
    assert now(browser.post("/login?code=303", {"a": "1"})).code == 303
    response = now(browser.post("/login?code=303", {"a": "1"}, follow=True))
    assert response.text() == "GET|/echo?done|user=alice|"
    assert response.url == "http://example.com/echo?done"
    assert browser.cookies == {"user": "alice"}
    response = now(browser.post("/login?code=307", {"a": "1"}, follow=True))
    assert response.text() == "POST|/echo?done|user=alice|a=1"
    web.page(b"loop", lambda request: request.redirect(b"/loop") or b"")
    with pytest.raises(ValueError, match="redirects"):
        now(browser.get("/loop", follow=True))


def test_secure(web: Web) -> None:
    """
    A secure browser's requests are secure, and a secure cookie goes nowhere
    else.
    """
    web.page(b"secure", lambda request: b"yes" if request.isSecure() else b"no")
    web.setting(b"a=1; Secure", b"b=2")
    browser = Browser(web.site, secure=True)
    assert now(browser.get("/secure")).text() == "yes"
    assert now(browser.get("/set")).setCookies == [b"a=1; Secure", b"b=2"]
    assert now(browser.get("/echo")).text() == "GET|/echo|a=1; b=2|"
    assert now(browser.get("http://example.com/secure")).text() == "no"
    assert now(browser.get("http://example.com/echo")).text() == "GET|/echo|b=2|"
    assert now(browser.get("https://example.org/echo")).text() == "GET|/echo|-|"
    plain = Browser(web.site, jar=browser.jar)
    assert plain.cookies == {"b": "2"}
    now(plain.get("/set"))
    assert browser.cookies == {"a": "1", "b": "2"}
    plain.close()
    browser.close()


def test_rawCookie(browser: Browser) -> None:
    """
    Any bytes can be sent as a cookie.
    """
    browser.jar.set(Cookie("a", "1", "example.com"))
    hostile = b'a="\xff\x01;;=; a\t=' + b"x" * 3000
    browser.setRawCookie(hostile)
    assert now(browser.get("/echo")).body == b"GET|/echo|" + hostile + b"|"
    browser.setRawCookie(None)
    assert now(browser.get("/echo")).body == b"GET|/echo|a=1|"


def test_disconnect(web: Web, browser: Browser) -> None:
    """
    The site hears of a browser that has gone.
    """
    heard: list[Failure] = []
    first, second = browser.start("GET", "/later"), browser.start("GET", "/later")
    third = browser.get("/later")
    for request in web.requests:
        request.notifyFinish().addErrback(heard.append)
    web.requests[0].write(b"part")
    first.disconnect()
    assert [failure.type for failure in heard] == [ConnectionAborted]
    assert not second.response.called
    third.addErrback(lambda failure: failure.trap(ConnectionAborted))
    second.response.addErrback(lambda failure: failure.trap(ConnectionAborted))
    browser.disconnect()
    assert len(heard) == 3
    with pytest.raises(ConnectionAborted):
        now(first.response)
    assert now(browser.get("/echo")).code == 200


def test_cancel(web: Web, browser: Browser) -> None:
    """
    Who stops waiting has disconnected.
    """
    response = browser.get("/later")
    heard: list[Failure] = []
    web.requests[0].notifyFinish().addErrback(heard.append)
    response.cancel()
    with pytest.raises(ConnectionAborted):
        now(response)
    assert len(heard) == 1


def test_siteCloses(web: Web, browser: Browser) -> None:
    """
    An answer cut short is no answer.
    """
    response = browser.get("/later")
    web.requests[0].setHeader(b"content-length", b"10")
    web.requests[0].write(b"short")
    web.requests[0].channel.loseConnection()
    with pytest.raises(ConnectionLost):
        now(response)


def test_unfinished(web: Web, browser: Browser) -> None:
    """
    A whole body is an answer though the site has not finished; its connection
    is not used for another request before it has.
    """
    response = browser.get("/later")
    [request] = web.requests
    request.setHeader(b"content-length", b"3")
    request.write(b"abc")
    assert not response.called
    web.clock.advance(0)
    assert now(response).body == b"abc"
    now(browser.get("/echo"))
    assert len(browser._connections) == 2
    request.finish()
    now(browser.get("/echo"))
    assert len(browser._resting) == 2


def test_pullProducer(browser: Browser, web: Web, tmp_path: Path) -> None:
    """
    A pull producer is pulled, without a reactor.
    """
    (tmp_path / "big").write_bytes(b"0123456789" * 100_000)
    web.root.putChild(b"files", File(str(tmp_path)))
    assert now(browser.get("/files/big")).body == b"0123456789" * 100_000
    ranged = now(browser.get("/files/big", {"Range": "bytes=5-9"}))
    assert (ranged.code, ranged.body) == (206, b"56789")
    assert len(browser._connections) == 1


class Counting:
    """
    A producer that gives a chunk now and then.
    """

    def __init__(self, request: Any, chunks: list[bytes]) -> None:
        self.request, self.chunks, self.stopped = request, chunks, False

    def resumeProducing(self) -> None:
        if chunk := self.chunks.pop(0):
            self.request.write(chunk)
        if not self.chunks:
            self.request.unregisterProducer()
            self.request.finish()

    def pauseProducing(self) -> None:
        raise AssertionError("the browser never pauses")

    def stopProducing(self) -> None:
        self.stopped = True


def test_slowProducer(web: Web, browser: Browser) -> None:
    """
    A pull producer that has nothing for now is asked again in another turn.
    """
    response = browser.get("/later")
    [request] = web.requests
    request.registerProducer(Counting(request, [b"a", b"", b"b"]), False)
    assert not response.called
    web.clock.advance(0)
    assert now(response).body == b"ab"


@pytest.mark.parametrize("streaming", [True, False])
def test_producerStopped(web: Web, browser: Browser, streaming: bool) -> None:
    """
    A producer is stopped when the browser goes.
    """
    pending = browser.start("GET", "/later")
    [request] = web.requests
    producer = Counting(request, [b"", b"a"])
    request.registerProducer(producer, streaming)
    pending.disconnect()
    web.clock.advance(0)
    assert producer.stopped


def test_upgrade(web: Web, browser: Browser) -> None:
    """
    After an upgrade bytes go both ways.
    """

    def upgrade(request: Any) -> object:
        channel = request.channel
        channel.transport.write(b"HTTP/1.1 101 Go\r\nUpgrade: echo\r\n\r\nhi")
        channel.dataReceived = lambda data: channel.transport.write(data.upper())
        return NOT_DONE_YET

    web.page(b"upgrade", upgrade)
    pending = browser.start("GET", "/upgrade", {"Upgrade": "echo"})
    assert now(pending.response).code == 101
    pending.write(b"shout")
    assert pending.received.endswith(b"\r\n\r\nhiSHOUT")


def test_startsAndStops(web: Web) -> None:
    """
    The first browser starts the site, the last one stops it.
    """
    seen: list[str] = []
    start, stop = web.site.startFactory, web.site.stopFactory
    site: Any = web.site
    site.startFactory = lambda: seen.append("start") or start()  # type: ignore[func-returns-value]
    site.stopFactory = lambda: seen.append("stop") or stop()  # type: ignore[func-returns-value]
    one, two = Browser(web.site), Browser(web.site)
    for browser in (one, two, one):
        now(browser.get("/echo"))
    one.close()
    one.close()
    assert seen == ["start"]
    now(two.get("/echo"))
    two.close()
    assert seen == ["start", "stop"]


def test_timeouts(web: Web) -> None:
    """
    Idle connections end when that is wanted.
    """
    browser = Browser(web.site, timeouts=True)
    now(browser.get("/echo"))
    assert len(browser._connections) == 1
    web.clock.pump([1] * 61)
    assert browser._connections == []
    browser.close()


def test_protocolFails(web: Web, browser: Browser) -> None:
    """
    An error in the protocol ends the connection, as it does with sockets.
    """
    now(browser.get("/echo"))

    def broken(data: bytes) -> None:
        raise ZeroDivisionError

    browser._connections[0].protocol.dataReceived = broken
    with pytest.raises(ZeroDivisionError):
        now(browser.get("/echo"))
    assert browser._connections == []


def sent(jar: CookieJar, url: str = "https://a.example.com/", at: float = 0.0) -> str:
    """
    The cookies sent to a URL.
    """
    scheme, _, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    found = jar.matching(scheme == "https", host, slash + path, at)
    return "; ".join(f"{cookie.name}={cookie.value}" for cookie in found)


def kept(line: bytes, secure: bool = True, host: str = "a.example.com", path: str = "/") -> bool:
    """
    Whether a browser without cookies keeps this one.
    """
    jar = CookieJar()
    obeyed = jar.receive(line, secure, host, path, 0.0)
    assert obeyed == (len(jar) == 1)
    return obeyed


@pytest.mark.parametrize(
    "line",
    [
        b"a=1",
        b"=1",
        b"1",
        b"a=1; Path=/; Secure; HttpOnly; SameSite=Lax; Max-Age=5; Partitioned",
        b"a=1; Domain=example.com",
        b"a=1; Domain=.A.example.COM",
        b"a=1; Domain=",
        b"__Secure-a=1; Secure",
        b"__Host-a=1; Secure; Path=/",
        b"__host-a=1; Path=/; Secure; Domain=",
        b"a=1; Expires=Wed, 21 Oct 2065 07:28:00 GMT",
        b"a=1; Expires=nonsense",
        b"a=1; SameSite=None; Secure",
    ],
)
def test_keeps(line: bytes) -> None:
    """
    Lines that are obeyed.
    """
    assert kept(line)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"=",
        b"; Path=/",
        b"a=\x01",
        b"a=" + b"x" * 4096,
        b"a=1; Domain=b.example.com",
        b"a=1; Domain=ple.com",
        b"a=1; Domain=com",
        b"__Secure-a=1",
        b"__Host-a=1; Secure",
        b"__Host-a=1; Path=/",
        b"__Host-a=1; Path=/x; Secure",
        b"__HOST-a=1; Path=/; Secure; Domain=a.example.com",
        b"=__Host-a=1; Path=/; Secure",
        b"a=1; SameSite=None",
        b"a=1; Partitioned",
    ],
)
def test_ignores(line: bytes) -> None:
    """
    Lines that are not.
    """
    assert not kept(line)


def test_secureOverPlain() -> None:
    """
    Plain HTTP sets no secure cookies, covers none up and removes none.
    """
    assert not kept(b"a=1; Secure", secure=False)
    jar = CookieJar()
    jar.receive(b"a=1; Secure; Path=/", True, "example.com", "/", 0)
    for line in (b"a=2", b"a=2; Path=/x", b"a=; Max-Age=0"):
        assert not jar.receive(line, False, "example.com", "/", 0)
    assert sent(jar, "https://example.com/x") == "a=1"


def test_removal() -> None:
    """
    C{Max-Age} goes before C{Expires}, and both remove.
    """
    jar = CookieJar()
    past = b"Expires=Thu, 01 Jan 1970 00:00:00 GMT"
    for removal in (past, b"Max-Age=0", b"Max-Age=-1", b"max-age=0; Expires=Fri, 01 Jan 2100"):
        jar.receive(b"a=1; Max-Age=9; " + past, True, "a.example.com", "/", 0)
        assert sent(jar) == "a=1"
        jar.receive(b"a=1; Path=/other; " + removal, True, "a.example.com", "/", 0)
        assert sent(jar) == "a=1"
        jar.receive(b"a=; " + removal, True, "a.example.com", "/", 0)
        assert sent(jar) == ""
    jar.receive(b"a=1; Max-Age=9", True, "a.example.com", "/", 100)
    assert sent(jar, at=108.9) == "a=1"
    assert sent(jar, at=109) == ""
    assert len(jar) == 0


def test_pathsAndDomains() -> None:
    """
    Where cookies go, and in which order.
    """
    jar = CookieJar()
    for line in (b"r=0; Path=/", b"s=1; Path=/shop", b"d=2; Domain=example.com", b"r=3; Path=/"):
        jar.receive(line, True, "a.example.com", "/shop/cart", 0)
    assert sent(jar, "https://a.example.com/shop/x") == "s=1; d=2; r=3"
    assert sent(jar, "https://a.example.com/shop") == "s=1; d=2; r=3"
    assert sent(jar, "https://a.example.com/shopping") == "r=3"
    assert sent(jar, "https://b.example.com/shop/") == "d=2"
    assert sent(jar, "https://notexample.com/shop/") == ""
    jar.clear()
    assert sent(jar) == ""


def test_manyOfOneName() -> None:
    """
    What a site has with a change of C{Domain} or C{Partitioned}: a browser
    keeps both cookies, sends the older one first and removes each by itself.
    """
    jar = CookieJar()
    for line in (b"a=1", b"a=2; Domain=a.example.com", b"a=3; Secure; Partitioned"):
        jar.receive(line, True, "a.example.com", "/", 0)
    assert sent(jar) == "a=1; a=2; a=3"
    jar.receive(b"a=; Domain=a.example.com; Max-Age=0", True, "a.example.com", "/", 0)
    assert sent(jar) == "a=1; a=3"


def test_cookiesAreTheFirstOfTheirName(web: Web) -> None:
    browser = Browser(web.site, host="A.example.com")
    for line in (b"a=1", b"a=2; Domain=example.com", b"a=3; Path=/x", b"b=1"):
        browser.jar.receive(line, False, "a.example.com", "/", 0)
    assert browser.cookies == {"a": "3", "b": "1"}
    browser.jar.receive(b"a=; Path=/x; Max-Age=0", False, "a.example.com", "/", 0)
    assert browser.cookies == {"a": "1", "b": "1"}


def test_dates(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    They are in UTC, with or without a zone, wherever the tests run; 400 days is
    the longest that a cookie is kept.
    """
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    try:
        for date in (b"Thu, 01-Jan-1970 01:00:00 GMT", b"Thu Jan  1 01:00:00 1970"):
            jar = CookieJar()
            jar.receive(b"a=1; Expires=" + date, True, "a.example.com", "/", 0)
            assert [cookie.expires for cookie in jar] == [3600.0]
    finally:
        monkeypatch.undo()
        time.tzset()
    for end in (b"Max-Age=" + b"9" * 1000, b"Expires=Wed, 21 Oct 2065 07:28:00 GMT"):
        jar = CookieJar()
        jar.receive(b"a=1; " + end, True, "a.example.com", "/", 5)
        assert [cookie.expires for cookie in jar] == [5 + 400 * 86400]


def test_longAttributesAreNone() -> None:
    jar = CookieJar()
    for attribute in (b"Max-Age=" + b"0" * 5000, b"Path=/" + b"x" * 1024):
        assert jar.receive(b"a=1; " + attribute, True, "a.example.com", "/", 0)
    assert sent(jar) == "a=1"
