"""
SockJS over HTTP, byte by byte: what the protocol asks of each URL.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

import pytest
import pytest_twisted
from twisted.internet import reactor, tcp
from twisted.internet.defer import Deferred, DeferredQueue
from twisted.internet.error import ConnectError
from twisted.internet.task import Clock
from twisted.web.resource import Resource
from twisted.web.server import Site

import twsessions
from twsessions.sockjs import SockJSConnection, SockJSResource
from twsessions.test.real import freePort
from twsessions.test.sockjsclient import PATIENCE, TEXT, Answer, Client, Stream, turn, until

deferred = pytest_twisted.ensureDeferred
_numbers = count()

UNCACHED = "no-store, no-cache, no-transform, must-revalidate, max-age=0"
STILL_OPEN = b'c[2010,"Another connection still open"]\n'
PRELUDE = b"h" * 2048 + b"\n"


# What is served, and who listens to it.


class Echo(SockJSConnection):
    """
    Sends back what it gets.
    """

    def onMessage(self, message: str | bytes) -> None:
        self.send(message)


class Heard:
    """
    What connections are told, one after the other.
    """

    def __init__(self) -> None:
        self._events: DeferredQueue[tuple[Any, ...]] = DeferredQueue()

    def put(self, *event: Any) -> None:
        self._events.put(event)

    def next(self) -> Deferred[tuple[Any, ...]]:
        """
        The next event, as soon as there is one.
        """
        return self._events.get().addTimeout(PATIENCE, reactor)

    @property
    def isEmpty(self) -> bool:
        return not self._events.pending


class Recorder(Echo):
    """
    An echo that writes down what it is told; made by L{recorder}.
    """

    heard: ClassVar[Heard]
    made: ClassVar[list[Any]]

    def onOpen(self, info: Any) -> None:
        self.made.append(self)
        self.heard.put("open", info.transport)

    def onMessage(self, message: str | bytes) -> None:
        self.heard.put("message", message)
        super().onMessage(message)

    def onClose(self, code: int, reason: str) -> None:
        self.heard.put("close", code, reason)


def recorder() -> type[Recorder]:
    """
    A class of its own for each test.
    """
    return type("Recorded", (Recorder,), {"heard": Heard(), "made": []})


class Closing(SockJSConnection):
    """
    Closes as soon as it is open.
    """

    def onOpen(self, info: Any) -> None:
        self.close(3000, "Go away!")


class Server:
    """
    A site on a port, and a client of it.
    """

    def __init__(self, makeSite: Callable[[Resource], Any] = Site) -> None:
        self.root = Resource()
        site = makeSite(self.root)
        site.log = lambda request: None  # the log of what was asked is the site's business
        self._listening = reactor.listenTCP(0, site, interface="127.0.0.1")
        self.port: int = self._listening.getHost().port
        self.client = Client(self.port)

    def serve(self, name: str, application: Any = Echo, **settings: Any) -> str:
        """
        Put an application somewhere.

        @return: the path of its URL.
        """
        self.root.putChild(name.encode(), SockJSResource(application, **settings))
        return f"/{name}"

    async def waiting(self, method: str, path: str) -> Stream:
        """
        A request for frames that has arrived and waits; there is nothing to
        tell it yet.

        @return: where the answer will be.
        """
        stream = await self.client.connect()
        self.client.request(stream, method, path)
        assert await self.client.poll(path.rpartition("/")[0]) == STILL_OPEN
        return stream

    async def close(self) -> None:
        self.client.abort()
        await self._listening.stopListening()
        await until(lambda: not self.connections())  # it has seen that we are gone

    def connections(self) -> list[Any]:
        """
        The server's side of those that there are.
        """
        known = {*reactor.getReaders(), *reactor.getWriters()}
        servers = [one for one in known if isinstance(one, tcp.Server)]
        return [one for one in servers if one.getHost().port == self.port]


@pytest_twisted.async_yield_fixture
async def server() -> Any:
    made = Server()
    yield made
    await made.close()


def session(service: str) -> str:
    """
    The path of a session that nobody had before.
    """
    return f"{service}/000/session-{next(_numbers)}-{os.getpid()}"


# What holds for many answers.


def type_(answer: Answer) -> str:
    return (answer["content-type"] or "").replace(" ", "")


def assertUncached(answer: Answer) -> None:
    assert answer["cache-control"] == UNCACHED
    assert answer["expires"] is None
    assert answer["last-modified"] is None


def assertCached(answer: Answer) -> None:
    """
    For a year or so.
    """
    assert "public" in answer["cache-control"]
    (age,) = re.findall("max-age=([0-9]+)", answer["cache-control"])
    assert int(age) >= 1_000_000
    left = parsedate_to_datetime(answer["expires"]) - parsedate_to_datetime(answer["date"])
    assert abs(left.total_seconds() - int(age)) < 60
    assert answer["last-modified"] is None


def assertShared(answer: Answer, origin: str | None) -> None:
    """
    A page of that origin may read it.
    """
    assert answer["access-control-allow-origin"] == (origin or "*")
    assert answer["access-control-allow-credentials"] == ("true" if origin else None)
    assert "Origin" in (answer["vary"] or "")


async def assertRefused(answer: Answer, status: int) -> None:
    assert answer.status == status
    await answer.body()


# The greeting, and what there is not.


@deferred
async def test_greeting(server: Server) -> None:
    echo = server.serve("echo")
    for path in (echo, f"{echo}/"):
        answer = await server.client.get(path)
        assert answer.status == 200
        assert type_(answer) == "text/plain;charset=UTF-8"
        assert answer["set-cookie"] is None
        assert await answer.body() == b"Welcome to SockJS!\n"


@deferred
async def test_anywhereInATree(server: Server) -> None:
    parent = server.root
    for name in (b"a", b"b"):
        child = Resource()
        parent.putChild(name, child)
        parent = child
    parent.putChild(b"echo", SockJSResource(Echo))
    answer = await server.client.get("/a/b/echo")
    assert await answer.body() == b"Welcome to SockJS!\n"
    assert await server.client.poll("/a/b/echo/000/one") == b"o\n"


@pytest.mark.parametrize("method", ["GET", "POST"])
@deferred
async def test_notFound(server: Server, method: str) -> None:
    echo = server.serve("echo")
    for suffix in ("/a", "/a.html", "//", "///", "/a/a", "/a/a/", "/a/", "/info/a", "/websocket/a"):
        answer = await server.client.ask(method, echo + suffix)
        assert answer.status == 404, suffix
        assert answer["set-cookie"] is None
        await answer.body()


@pytest.mark.parametrize(
    ("method", "suffix", "allowed"),
    [
        ("POST", "", {"GET"}),
        ("POST", "/iframe.html", {"GET"}),
        ("POST", "/info", {"GET", "OPTIONS"}),
        ("GET", "/0/0/xhr", {"POST", "OPTIONS"}),
        ("PUT", "/0/0/xhr", {"POST", "OPTIONS"}),
        ("GET", "/0/0/xhr_send", {"POST", "OPTIONS"}),
        ("DELETE", "/0/0/xhr_send", {"POST", "OPTIONS"}),
        ("GET", "/0/0/xhr_streaming", {"POST", "OPTIONS"}),
        ("POST", "/0/0/eventsource", {"GET"}),
        ("POST", "/0/0/htmlfile", {"GET"}),
        ("POST", "/0/0/jsonp", {"GET"}),
        ("GET", "/0/0/jsonp_send", {"POST"}),
        ("POST", "/0/0/websocket", {"GET"}),
        ("POST", "/websocket", {"GET"}),
        ("BREW", "/0/0/xhr", {"POST", "OPTIONS"}),
    ],
)
@deferred
async def test_methodNotAllowed(
    server: Server, method: str, suffix: str, allowed: set[str]
) -> None:
    echo = server.serve("echo")
    answer = await server.client.ask(method, echo + suffix)
    assert answer.status == 405
    assert allowed <= set(re.split(", *", answer["allow"] or ""))
    assert method not in answer["allow"]
    assert answer["content-type"] is None
    assert await answer.body() == b""


@deferred
async def test_head(server: Server) -> None:
    """
    As GET, without the body, where GET changes nothing.
    """
    echo, client = server.serve("echo", application := recorder()), server.client
    stream = await client.connect()
    for path in ("", "/info", "/iframe.html", "/nowhere"):
        headOnly = await client.ask("HEAD", echo + path, on=stream)
        answer = await client.ask("GET", echo + path, on=stream)  # what follows is its answer
        await answer.body()
        assert headOnly.status == answer.status
        for name in ("content-type", "cache-control", "etag", "access-control-allow-origin"):
            assert headOnly[name] == answer[name]
    for transport in ("xhr", "xhr_streaming", "eventsource", "htmlfile?c=x", "jsonp?c=x"):
        answer = await client.ask("HEAD", f"{echo}/0/0/{transport}", on=stream)
        assert answer.status == 405, transport
    assert (await client.upgrade(f"{echo}/websocket", method="HEAD")).status == 405
    assert application.heard.isEmpty


# The page for iframes.

IFRAME = """<!DOCTYPE html>
<html>
<head>
  <meta http-equiv="X-UA-Compatible" content="IE=edge" />
  <meta http-equiv="Content-Type" content="text/html; charset=UTF-8" />
  <script src="%s"></script>
  <script>
    document.domain = document.domain;
    SockJS.bootstrap_iframe();
  </script>
</head>
<body>
  <h2>Don't panic!</h2>
  <p>This is a SockJS hidden iframe. It's used for cross domain magic.</p>
</body>
</html>"""


@pytest.mark.parametrize(
    "name",
    [
        "iframe.html",
        "iframe-a.html",
        "iframe-.html",
        "iframe-0.1.2.html",
        "iframe-0.1.2abc-dirty.2144.html",
        "iframe-a.html?t=1234",
        "iframe-0.1.2abc-dirty.2144.html?t=qweqweq123",
    ],
)
@deferred
async def test_iframe(server: Server, name: str) -> None:
    echo = server.serve("echo", sockjsURL="/static/sockjs.js")
    answer = await server.client.get(f"{echo}/{name}")
    assert answer.status == 200
    assert type_(answer) == "text/html;charset=UTF-8"
    assertCached(answer)
    assert answer["etag"]
    assert answer["set-cookie"] is None
    assert (await answer.body()).decode().strip() == IFRAME % "/static/sockjs.js"


@deferred
async def test_iframeNamesTheLibrary(server: Server) -> None:
    """
    By default one from a place that caches it; and the name is quoted.
    """
    answer = await server.client.get(server.serve("echo") + "/iframe.html")
    (url,) = re.findall('<script src="([^"]*)"', (await answer.body()).decode())
    assert url.startswith("https://")
    other = server.serve("other", sockjsURL='https://x.example/?a=1&b="><script>')
    answer = await server.client.get(f"{other}/iframe.html")
    body = (await answer.body()).decode()
    assert 'src="https://x.example/?a=1&amp;b=&quot;&gt;&lt;script&gt;"></script>' in body


@pytest.mark.parametrize(
    "name",
    [
        "iframe.htm",
        "iframe",
        "IFRAME.HTML",
        "IFRAME",
        "iframe.HTML",
        "iframe.xml",
        "iframe-/.html",
        "xiframe.html",
        "iframe.html.html%00",
    ],
)
@deferred
async def test_noIframe(server: Server, name: str) -> None:
    await assertRefused(await server.client.get(f"{server.serve('echo')}/{name}"), 404)


@deferred
async def test_iframeNotModified(server: Server) -> None:
    path = server.serve("echo", sockjsURL="/a.js") + "/iframe.html"
    first, second = await server.client.get(path), await server.client.get(path)
    tag = first["etag"]
    assert tag == second["etag"]
    for known in (tag, f'"other", {tag}', f"{tag}, W/\"other\"", f"W/{tag}", "*"):  # fmt: skip
        answer = await server.client.get(path, {"If-None-Match": known})
        assert answer.status == 304, known
        assert answer["content-type"] is None
        assert answer["etag"] == tag
        assert await answer.body() == b""
    for unknown in ('"other"', "other", "W/", ""):
        answer = await server.client.get(path, {"If-None-Match": unknown})
        assert answer.status == 200, unknown
    # Another library is another page.
    other = await server.client.get(server.serve("other", sockjsURL="/b.js") + "/iframe.html")
    assert other["etag"] != tag


# /info


@deferred
async def test_info(server: Server) -> None:
    echo = server.serve("echo")
    for origin in ("https://a.example", "null", None):
        answer = await server.client.get(f"{echo}/info", {"Origin": origin} if origin else None)
        assert answer.status == 200
        assert type_(answer) == "application/json;charset=UTF-8"
        assert answer["set-cookie"] is None
        assertUncached(answer)
        assertShared(answer, origin)
        info = json.loads(await answer.body())
        assert info["websocket"] is True
        assert info["cookie_needed"] is False
        assert info["origins"] == ["*:*"]
        assert type(info["entropy"]) is int


@deferred
async def test_entropy(server: Server) -> None:
    """
    Browsers stir it into their random numbers: 32 bits, new each time.
    """
    echo = server.serve("echo")
    seen = []
    for _ in range(24):
        answer = await server.client.get(f"{echo}/info")
        seen.append(json.loads(await answer.body())["entropy"])
    assert len(set(seen)) == 24
    assert all(0 <= one < 2**32 for one in seen)
    assert max(seen) >= 2**31  # that it is not is less likely than one in ten million
    assert len({one % 2 for one in seen}) == 2


@deferred
async def test_infoSaysWhatIsOff(server: Server) -> None:
    off = server.serve("off", transports=["rawwebsocket", "xhr", "xhr_streaming"], jsessionid=True)
    answer = await server.client.get(f"{off}/info")
    info = json.loads(await answer.body())
    assert info["websocket"] is False
    assert info["cookie_needed"] is True
    assert answer["set-cookie"] is None


# OPTIONS


@pytest.mark.parametrize(
    ("suffix", "method"),
    [
        ("/info", "GET"),
        ("/abc/abc/xhr", "POST"),
        ("/abc/abc/xhr_send", "POST"),
        ("/abc/abc/xhr_streaming", "POST"),
    ],
)
@deferred
async def test_options(server: Server, suffix: str, method: str) -> None:
    """
    A browser asks for leave; the answer holds for a year.
    """
    echo = server.serve("echo")
    for origin in ("https://a.example", "null", None):
        headers = {"Access-Control-Request-Method": method}
        if origin:
            headers["Origin"] = origin
        answer = await server.client.ask("OPTIONS", echo + suffix, headers)
        assert answer.status in (200, 204)
        assertCached(answer)
        assertShared(answer, origin)
        assert int(answer["access-control-max-age"]) > 1_000_000
        methods = re.split(", *", answer["access-control-allow-methods"])
        assert {"OPTIONS", method} <= set(methods)
        assert await answer.body() == b""


@pytest.mark.parametrize(("asked", "allowed"), [("a, b, c", "a, b, c"), ("", None), (None, None)])
@deferred
async def test_optionsAllowHeaders(server: Server, asked: str | None, allowed: str | None) -> None:
    echo = server.serve("echo")
    headers = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    if asked is not None:
        headers["Access-Control-Request-Headers"] = asked
    answer = await server.client.ask("OPTIONS", f"{echo}/0/0/xhr", headers)
    assert answer.status in (200, 204)
    assertShared(answer, "https://a.example")
    assert (answer["access-control-allow-headers"] or None) == allowed


# The URLs of sessions


@pytest.mark.parametrize("suffix", ["/a/a", "/_/_", "/1/1", "/abcdefgh_i-j%20/abcdefg_i-j%20"])
@deferred
async def test_anyServerAndSession(server: Server, suffix: str) -> None:
    assert await server.client.poll(server.serve("echo") + suffix) == b"o\n"


@pytest.mark.parametrize("suffix", ["//", "/a./a", "/a/a.", "/./.", "/", "///", "//a", "/a//", ""])
@deferred
async def test_noSession(server: Server, suffix: str) -> None:
    echo = server.serve("echo", application := recorder())
    for method in ("GET", "POST"):
        for transport in ("xhr", "xhr_send", "xhr_streaming", "eventsource", "jsonp?c=x"):
            answer = await server.client.ask(method, f"{echo}{suffix}/{transport}")
            await assertRefused(answer, 404)
    assert application.heard.isEmpty


@deferred
async def test_theServerPartIsForBalancers(server: Server) -> None:
    echo, client = server.serve("echo"), server.client
    assert await client.poll(f"{echo}/000/one") == b"o\n"
    await client.send(f"{echo}/123/one", '["a"]')
    assert await client.poll(f"{echo}/999/one") == b'a["a"]\n'


@deferred
async def test_servicesAreApart(server: Server) -> None:
    """
    A session of one service is not there in another, whatever its id.
    """
    client = server.client
    a, b = server.serve("a", heardA := recorder()), server.serve("b", heardB := recorder())
    assert await client.poll(f"{a}/0/one") == b"o\n"
    await assertRefused(await client.post(f"{b}/0/one/xhr_send", '["x"]'), 404)
    await assertRefused(await client.post(f"{b}/0/one/jsonp_send", '["x"]'), 404)
    assert await client.poll(f"{b}/0/one") == b"o\n"
    await client.send(f"{b}/0/one", '["to b"]')
    await client.send(f"{a}/0/one", '["to a"]')
    assert await client.poll(f"{a}/0/one") == b'a["to a"]\n'
    assert await client.poll(f"{b}/0/one") == b'a["to b"]\n'
    for heard, message in ((heardA.heard, "to a"), (heardB.heard, "to b")):
        assert await heard.next() == ("open", "xhr")
        assert await heard.next() == ("message", message)
        assert heard.isEmpty


# xhr


@deferred
async def test_xhr(server: Server) -> None:
    one, client = session(server.serve("echo")), server.client
    for origin in ("https://a.example", "null", None):
        headers = {"Origin": origin} if origin else {}
        answer = await client.post(f"{one}/xhr", headers=headers)
        assert answer.status == 200
        assert type_(answer) == "application/javascript;charset=UTF-8"
        assertUncached(answer)
        assertShared(answer, origin)
        assert await answer.body() == (b"o\n" if origin == "https://a.example" else b'a["x"]\n')

        answer = await client.post(f"{one}/xhr_send", '["x"]', headers)
        assert answer.status == 204
        assert type_(answer) == "text/plain;charset=UTF-8"
        assertUncached(answer)
        assertShared(answer, origin)
        assert await answer.body() == b""


@deferred
async def test_aPollWaits(server: Server) -> None:
    one, client = session(server.serve("echo")), server.client
    assert await client.poll(one) == b"o\n"
    stream = await server.waiting("POST", f"{one}/xhr")
    await client.send(one, '["x"]')
    answer = await client.answer(stream)
    assert await answer.body() == b'a["x"]\n'


@deferred
async def test_oneConnectionForAll(server: Server) -> None:
    """
    Poll after poll on one connection, and messages between them.
    """
    one, client = session(server.serve("echo")), server.client
    stream = await client.connect()
    assert await client.poll(one, on=stream) == b"o\n"
    for number in range(5):
        answer = await client.ask("POST", f"{one}/xhr_send", body=f'["{number}"]', on=stream)
        assert answer.status == 204 and await answer.body() == b""
        assert await client.poll(one, on=stream) == f'a["{number}"]\n'.encode()


@deferred
async def test_messagesTogetherInOrder(server: Server) -> None:
    one, client = session(server.serve("echo")), server.client
    assert await client.poll(one) == b"o\n"
    await client.send(one, ' [ "a" ,\n"b"\t]\r\n', "[]", '["", "c"]')
    assert await client.poll(one) == b'a["a","b","","c"]\n'


@deferred
async def test_nobodyToSendTo(server: Server) -> None:
    client, echo = server.client, server.serve("echo")
    for transport in ("xhr_send", "jsonp_send"):
        await assertRefused(await client.post(f"{session(echo)}/{transport}", '["x"]'), 404)


@deferred
async def test_brokenMessages(server: Server) -> None:
    """
    They are refused in the protocol's words; the session goes on.
    """
    one, client = session(server.serve("echo")), server.client
    assert await client.poll(one) == b"o\n"
    for body, says in (('["x', b"Broken JSON encoding."), ("", b"Payload expected.")):
        answer = await client.post(f"{one}/xhr_send", body)
        assert answer.status == 500
        assert says in await answer.body()
    await client.send(one, '["a"]')
    assert await client.poll(one) == b'a["a"]\n'


@deferred
async def test_contentTypes(server: Server) -> None:
    one, client = session(server.serve("echo")), server.client
    assert await client.poll(one) == b"o\n"
    types = [
        "text/plain",
        "T",
        "application/json",
        "application/xml",
        "",
        "application/json; charset=utf-8",
        "text/xml; charset=utf-8",
        "text/xml",
        "application/x-www-form-urlencoded",
    ]
    for contentType in types:
        answer = await client.post(f"{one}/xhr_send", '["a"]', {"Content-Type": contentType})
        assert answer.status == 204, contentType
        assert await answer.body() == b""
    assert json.loads((await client.poll(one))[1:]) == ["a"] * len(types)


# xhr_streaming, eventsource, htmlfile: one frame is one chunk


@deferred
async def test_xhrStreaming(server: Server) -> None:
    one, client = session(server.serve("echo")), server.client
    answer = await client.post(f"{one}/xhr_streaming", headers={"Origin": "https://a.example"})
    assert answer.status == 200
    assert type_(answer) == "application/javascript;charset=UTF-8"
    assertUncached(answer)
    assertShared(answer, "https://a.example")
    assert await answer.chunk() == PRELUDE
    assert await answer.chunk() == b"o\n"
    for message in (b'["x"]', b'["y"]'):
        await client.send(one, message.decode())
        assert await answer.chunk() == b"a" + message + b"\n"


@deferred
async def test_eventsource(server: Server) -> None:
    one, client = session(server.serve("echo")), server.client
    answer = await client.get(f"{one}/eventsource", {"Origin": "https://a.example"})
    assert answer.status == 200
    assert type_(answer) == "text/event-stream"  # some clients refuse it with a charset
    assertUncached(answer)
    assertShared(answer, "https://a.example")
    assert await answer.chunk() == b"\r\n"
    assert await answer.chunk() == b"data: o\r\n\r\n"
    await client.send(one, '["x"]')
    assert await answer.chunk() == b'data: a["x"]\r\n\r\n'
    await client.send(one, r'["  \u0000\n\r "]')
    assert await answer.chunk() == b'data: a["  \\u0000\\n\\r "]\r\n\r\n'


@deferred
async def test_eventsourceEscapesPercents(server: Server) -> None:
    """
    The client undoes percent escapes, and fails at what is none.
    """
    application = recorder()
    one, client = session(server.serve("echo", application)), server.client
    answer = await client.get(f"{one}/eventsource")
    assert [await answer.chunk(), await answer.chunk()] == [b"\r\n", b"data: o\r\n\r\n"]
    for message, said in (
        ("%20", "%2520"),
        ("100%", "100%25"),
        ("%0d%0A%00", "%250d%250A%2500"),
        (r"\r%\n\u0000", r"\r%25\n\u0000"),
    ):
        await client.send(one, f'["{message}"]')
        assert (await answer.chunk()).decode() == f'data: a["{said}"]\r\n\r\n'
    application.made[0].close(3456, "50%\r\n\0")
    assert await answer.chunk() == rb'data: c[3456,"50%25\r\n\u0000"]' + b"\r\n\r\n"
    assert await answer.chunk() == b""


HTMLFILE = r"""<!doctype html>
<html><head>
  <meta http-equiv="X-UA-Compatible" content="IE=edge" />
  <meta http-equiv="Content-Type" content="text/html; charset=UTF-8" />
</head><body><h2>Don't panic!</h2>
  <script>
    document.domain = document.domain;
    var c = parent.%s;
    c.start();
    function p(d) {c.message(d);};
    window.onload = function() {c.stop();};
  </script>"""


@pytest.mark.parametrize(
    ("query", "callback"),
    [
        ("c=%63allback", "callback"),
        ("callback=_jp.a-Z_9", "_jp.a-Z_9"),
        ("c=" + 32 * "x", 32 * "x"),
    ],
)
@deferred
async def test_htmlfile(server: Server, query: str, callback: str) -> None:
    one, client = session(server.serve("echo")), server.client
    answer = await client.get(f"{one}/htmlfile?{query}")
    assert answer.status == 200
    assert type_(answer) == "text/html;charset=UTF-8"
    assertUncached(answer)
    head = await answer.chunk()
    assert head.decode().strip() == HTMLFILE % callback
    assert len(head) > 1024  # else Safari waits for more
    assert await answer.chunk() == b'<script>\np("o");\n</script>\r\n'
    await client.send(one, '["x"]')
    assert await answer.chunk() == b'<script>\np("a[\\"x\\"]");\n</script>\r\n'


@pytest.mark.parametrize(
    ("method", "transport"),
    [("POST", "xhr_streaming"), ("GET", "eventsource"), ("GET", "htmlfile?c=x")],
)
@deferred
async def test_responseLimit(server: Server, method: str, transport: str) -> None:
    """
    A response ends between two frames when it is long enough, and the next
    one goes on there.
    """
    application = recorder()
    one, client = session(server.serve("echo", application, responseLimit=4096)), server.client
    answer = await client.ask(method, f"{one}/{transport}")
    prelude = await answer.chunk()
    await answer.chunk()
    for number in range(100):
        application.made[0].send(f"#{number}#" + "x" * 100)
    first = await answer.body()
    assert 4000 < len(first) < 4096 + 200
    found, responses = re.findall(b"#([0-9]+)#", first), 1
    while len(found) < 100:
        answer = await client.ask(method, f"{one}/{transport}")
        assert await answer.chunk() == prelude
        while len(found) < 100 and (chunk := await answer.chunk()):
            found += re.findall(b"#([0-9]+)#", chunk)
        responses += 1
    assert [int(number) for number in found] == list(range(100))
    assert responses > 1


@deferred
async def test_responseLimitToTheByte(server: Server) -> None:
    """
    4096 bytes of messages, framing included: as the protocol's own suite has it.
    """
    one, client = session(server.serve("echo", responseLimit=4096)), server.client
    answer = await client.post(f"{one}/xhr_streaming")
    assert [await answer.chunk(), await answer.chunk()] == [PRELUDE, b"o\n"]
    frame = json.dumps(["x" * 128])
    for _ in range(31):
        await client.send(one, frame)
        assert await answer.chunk() == f"a{frame}\n".encode()
    assert await answer.chunk() == b""
    one = session("/echo")
    answer = await client.get(f"{one}/eventsource")
    assert [await answer.chunk(), await answer.chunk()] == [b"\r\n", b"data: o\r\n\r\n"]
    await client.send(one, json.dumps(["x" * 4096]))
    assert await answer.chunk() == b'data: a["' + b"x" * 4096 + b'"]\r\n\r\n'
    assert await answer.chunk() == b""


# jsonp


@deferred
async def test_jsonp(server: Server) -> None:
    one, client = session(server.serve("echo")), server.client
    answer = await client.get(f"{one}/jsonp?c=%63allback")
    assert answer.status == 200
    assert type_(answer) == "application/javascript;charset=UTF-8"
    assert answer["x-content-type-options"] == "nosniff"
    assertUncached(answer)
    assert await answer.body() == b'/**/callback("o");\r\n'
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    for body, headers in (
        ("d=%5B%22x%22%5D", form),
        ("d=%5B%22x%22%5D", {"Content-Type": "application/x-www-form-urlencoded; charset=UTF-8"}),
        ("a=1&d=%5B%22x%22%5D&b=2", form),
        ("d=%5B%5D", form),
        ('["%61+b"]', {"Content-Type": "text/plain"}),
        ('["y"]', {"Content-Type": "text/plain;charset=UTF-8"}),
        ('["z"]', {}),
    ):
        answer = await client.post(f"{one}/jsonp_send", body, headers)
        assert (answer.status, await answer.body()) == (200, b"ok"), body
        assert type_(answer) == "text/plain;charset=UTF-8"
        assertUncached(answer)
    answer = await client.get(f"{one}/jsonp?callback=_jp.x")
    frame = 'a["x","x","x","%61+b","y","z"]'
    assert await answer.body() == f"/**/_jp.x({json.dumps(frame)});\r\n".encode()


@deferred
async def test_jsonpForms(server: Server) -> None:
    """
    Browsers send a form in UTF-8: a plus is a space there, a percent sign is escaped.
    """
    one, client = session(server.serve("echo")), server.client
    await (await client.get(f"{one}/jsonp?c=x")).body()
    body = "d=%5B%22a+b%2Bc%25%26%C3%A9%F0%9F%98%80%22%5D"
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    answer = await client.post(f"{one}/jsonp_send", body, form)
    assert (answer.status, await answer.body()) == (200, b"ok")
    said = (await (await client.get(f"{one}/jsonp?c=x")).body()).decode()
    assert json.loads(json.loads(said[len("/**/x(") : -len(");\r\n")])[1:]) == ["a b+c%&é😀"]


@deferred
async def test_jsonpBrokenMessages(server: Server) -> None:
    one, client = session(server.serve("echo")), server.client
    await (await client.get(f"{one}/jsonp?c=x")).body()
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    for body, says in (
        ("d=%5B%22x", b"Broken JSON encoding."),
        ("", b"Payload expected."),
        ("d=", b"Payload expected."),
        ("p=p", b"Payload expected."),
    ):
        answer = await client.post(f"{one}/jsonp_send", body, form)
        assert answer.status == 500
        assert says in await answer.body(), body
    answer = await client.post(f"{one}/jsonp_send", "d=%5B%22b%22%5D", form)
    assert await answer.body() == b"ok"
    answer = await client.get(f"{one}/jsonp?c=x")
    assert await answer.body() == b'/**/x("a[\\"b\\"]");\r\n'


@pytest.mark.parametrize("transport", ["jsonp", "htmlfile"])
@deferred
async def test_callbacks(server: Server, transport: str) -> None:
    """
    A name and nothing but a name: it lands in a script.
    """
    application = recorder()
    one, client = session(server.serve("echo", application)), server.client
    answer = await client.get(f"{one}/{transport}")
    assert answer.status == 500
    assert b'"callback" parameter required' in await answer.body()
    for callback in (
        "%20",
        "*",
        "abc(",
        "abc%28",
        "a%0a",
        "a%00",
        "%C3%A9",
        "a%3Bb",
        "a%2Fb",
        33 * "x",
    ):
        answer = await client.get(f"{one}/{transport}?c={callback}")
        assert answer.status == 500, callback
        assert b'invalid "callback" parameter' in await answer.body()
    answer = await client.get(f"{one}/{transport}?c=")
    await assertRefused(answer, 500)
    assert application.heard.isEmpty


# JSESSIONID


async def everyTransport(client: Client, service: str, headers: dict[str, str]) -> list[Answer]:
    """
    The head of an answer of every kind.
    """
    answers = []
    for method, transport in (
        ("POST", "xhr"),
        ("POST", "xhr_streaming"),
        ("GET", "eventsource"),
        ("GET", "htmlfile?c=x"),
        ("GET", "jsonp?c=x"),
    ):
        one = session(service)
        answers.append(await client.ask(method, f"{one}/{transport}", headers))
        send = "jsonp_send" if transport == "jsonp?c=x" else "xhr_send"
        answers.append(await client.ask("POST", f"{one}/{send}", headers, '["x"]'))
    answers.append(await client.ask("OPTIONS", f"{session(service)}/xhr", headers))
    return answers


@pytest.mark.parametrize(
    ("sent", "value"), [(None, "dummy"), ("a=b; JSESSIONID=abc.DEF-1", "abc.DEF-1")]
)
@deferred
async def test_stickyCookie(server: Server, sent: str | None, value: str) -> None:
    """
    Set on each answer, with the balancer's own value if it has given one.
    """
    path = server.serve("cookie", jsessionid=True)
    for answer in await everyTransport(server.client, path, {"Cookie": sent} if sent else {}):
        assert answer.status in (200, 204)
        name, *attributes = re.split("; *", answer["set-cookie"] or "")
        assert name == f"JSESSIONID={value}"
        assert "path=/" in [attribute.lower() for attribute in attributes]


@deferred
async def test_noCookie(server: Server) -> None:
    path = server.serve("echo")
    for answer in await everyTransport(server.client, path, {"Cookie": "JSESSIONID=abc"}):
        assert answer.status in (200, 204)
        assert answer["set-cookie"] is None


@deferred
async def test_cookieOfOnesOwn(server: Server) -> None:
    def stick(request: Any) -> None:
        request.addCookie(b"ROUTE", request.getCookie(b"ROUTE") or b"new")

    path = server.serve("cookie", jsessionid=stick)
    answer = await server.client.get(f"{path}/info")
    assert json.loads(await answer.body())["cookie_needed"] is True
    for answer in await everyTransport(server.client, path, {"Cookie": "ROUTE=seven"}):
        assert (answer["set-cookie"] or "").startswith("ROUTE=seven")


# How it ends


@deferred
async def test_closedInTheOpenCallback(server: Server) -> None:
    """
    Every poll after that says so.
    """
    close, client = server.serve("close", Closing), server.client
    one = session(close)
    answers = [await client.poll(one) for _ in range(3)]
    assert answers == [b"o\n", b'c[3000,"Go away!"]\n', b'c[3000,"Go away!"]\n']
    one = session(close)
    said = [await (await client.get(f"{one}/jsonp?c=x")).body() for _ in range(3)]
    assert said == [b'/**/x("o");\r\n', *[b'/**/x("c[3000,\\"Go away!\\"]");\r\n'] * 2]


@pytest.mark.parametrize(
    ("method", "transport", "opened", "closed"),
    [
        ("POST", "xhr_streaming", b"o\n", b'c[3000,"Go away!"]\n'),
        ("GET", "eventsource", b"data: o\r\n\r\n", b'data: c[3000,"Go away!"]\r\n\r\n'),
        (
            "GET",
            "htmlfile?c=x",
            b'<script>\np("o");\n</script>\r\n',
            b'<script>\np("c[3000,\\"Go away!\\"]");\n</script>\r\n',
        ),
    ],
)
@deferred
async def test_closedStreams(
    server: Server, method: str, transport: str, opened: bytes, closed: bytes
) -> None:
    """
    A close frees the session for the next request, which is told of it too.
    """
    one, client = session(server.serve("close", Closing)), server.client
    answer = await client.ask(method, f"{one}/{transport}")
    chunks = [await answer.chunk() for _ in range(4)]
    assert chunks[1:] == [opened, closed, b""]
    answer = await client.ask(method, f"{one}/{transport}")
    chunks = [await answer.chunk() for _ in range(3)]
    assert chunks[1:] == [closed, b""]


@deferred
async def test_whatWasSentBeforeArrives(server: Server) -> None:
    class Parting(SockJSConnection):
        def onOpen(self, info: Any) -> None:
            self.send("a")
            self.send("b")
            self.close(3001, 'so "long"')
            self.close(3002, "again")
            self.send("c")

    parting, client = server.serve("parting", Parting), server.client
    one = session(parting)
    answers = b"".join([await client.poll(one) for _ in range(4)])
    assert re.fullmatch(
        rb'o\na\["a","b"\]\n(c\[3001,"so \\"long\\""\]\n)+', answers.replace(b']\na[', b",")
    ), answers  # fmt: skip
    answer = await client.post(f"{session(parting)}/xhr_streaming")
    said = b""
    while chunk := await answer.chunk():
        said += chunk
    said = said.removeprefix(PRELUDE).replace(b"]\na[", b",")
    assert said == b'o\na["a","b"]\nc[3001,"so \\"long\\""]\n'


@deferred
async def test_aCloseEndsAPollThatWaits(server: Server) -> None:
    application = recorder()
    one, client = session(server.serve("echo", application)), server.client
    assert await client.poll(one) == b"o\n"
    stream = await server.waiting("POST", f"{one}/xhr")
    application.made[0].close(3007, "enough")
    assert await (await client.answer(stream)).body() == b'c[3007,"enough"]\n'
    assert await client.poll(one) == b'c[3007,"enough"]\n'
    assert await application.heard.next() == ("open", "xhr")
    assert await application.heard.next() == ("close", 3007, "enough")
    assert application.heard.isEmpty


@deferred
async def test_onlyOneReceiver(server: Server) -> None:
    """
    The second is sent away; the first goes on.
    """
    application = recorder()
    one, client = session(server.serve("echo", application)), server.client
    first = await client.post(f"{one}/xhr_streaming")
    assert [await first.chunk(), await first.chunk()] == [PRELUDE, b"o\n"]
    second = await client.post(f"{one}/xhr_streaming")
    chunks = [await second.chunk() for _ in range(3)]
    assert chunks == [PRELUDE, STILL_OPEN, b""]
    assert await client.poll(one) == STILL_OPEN
    answer = await client.get(f"{one}/eventsource")
    chunks = [await answer.chunk() for _ in range(3)]
    assert chunks[1] == b"data: " + STILL_OPEN.strip() + b"\r\n\r\n"
    assert chunks[2] == b""
    await client.send(one, '["x"]')
    assert await first.chunk() == b'a["x"]\n'
    assert await application.heard.next() == ("open", "xhr_streaming")
    assert await application.heard.next() == ("message", "x")
    assert application.heard.isEmpty


@pytest.mark.parametrize("transport", ["xhr", "xhr_streaming"])
@deferred
async def test_aNetworkThatFails(server: Server, transport: str) -> None:
    """
    What was on its way may be lost, so the session is over: at once, and the
    client is told if it comes back.
    """
    application = recorder()
    one = session(server.serve("echo", application, reactor=Clock()))
    client = server.client
    assert await client.poll(one) == b"o\n"
    (await server.waiting("POST", f"{one}/{transport}")).abort()
    assert await application.heard.next() == ("open", "xhr")
    kind, code, _ = await application.heard.next()
    assert (kind, code) in (("close", 1002), ("close", 1006))
    assert await client.poll(one) in (b"o\n", b'c[1002,"Connection interrupted"]\n')


# Time


class Timed:
    """
    A session whose server's time is ours.
    """

    def __init__(self, server: Server, **settings: Any) -> None:
        self.clock = Clock()
        self.application = recorder()
        self.heard = self.application.heard
        self.one = session(server.serve("echo", self.application, reactor=self.clock, **settings))
        self._client = server.client

    async def send(self) -> int:
        """
        The status of an attempt to send nothing.
        """
        answer = await self._client.post(f"{self.one}/xhr_send", "[]")
        await answer.body()
        return answer.status


@deferred
async def test_disconnectDelay(server: Server) -> None:
    """
    A client has some time between two polls, counted from the last.
    """
    timed, client = Timed(server), server.client
    assert await client.poll(timed.one) == b"o\n"
    assert await timed.heard.next() == ("open", "xhr")
    timed.clock.advance(4.9)
    assert await timed.send() == 204
    timed.application.made[0].send("x")
    assert await client.poll(timed.one) == b'a["x"]\n'
    timed.clock.advance(4.9)
    assert await timed.send() == 204
    assert timed.heard.isEmpty
    timed.clock.advance(0.2)
    kind, code, _ = await timed.heard.next()
    assert (kind, code) in (("close", 1002), ("close", 1006))
    assert timed.application.made[0].isClosed
    assert await timed.send() == 404
    assert await client.poll(timed.one) == b"o\n"  # another session
    assert await timed.heard.next() == ("open", "xhr")
    assert timed.heard.isEmpty


@deferred
async def test_aPollThatWaitsIsThere(server: Server) -> None:
    """
    No delay runs out while a request is waiting.
    """
    timed, client = Timed(server, heartbeat=100.0), server.client
    assert await client.poll(timed.one) == b"o\n"
    stream = await server.waiting("POST", f"{timed.one}/xhr")
    timed.clock.pump([1.0] * 60)
    assert await timed.send() == 204
    timed.application.made[0].send("x")
    assert await (await client.answer(stream)).body() == b'a["x"]\n'


@deferred
async def test_settingOfTheDelay(server: Server) -> None:
    timed, client = Timed(server, disconnectDelay=60.0), server.client
    assert await client.poll(timed.one) == b"o\n"
    timed.clock.pump([1.0] * 59)
    assert await timed.send() == 204
    timed.clock.advance(1.1)
    assert await timed.send() == 404


@deferred
async def test_theCloseFrameUntilTheDelayIsOver(server: Server) -> None:
    clock, client = Clock(), server.client
    one = session(server.serve("close", Closing, reactor=clock))
    assert await client.poll(one) == b"o\n"
    for _ in range(3):
        assert await client.poll(one) == b'c[3000,"Go away!"]\n'
        clock.advance(1.0)
    answer = await client.post(f"{one}/xhr_send", '["x"]')
    assert answer.status in (204, 404)  # nobody hears it
    clock.advance(5.1)
    assert await client.poll(one) == b"o\n"


@pytest.mark.parametrize(
    ("method", "transport", "beat"),
    [
        ("POST", "xhr_streaming", b"h\n"),
        ("GET", "eventsource", b"data: h\r\n\r\n"),
        ("GET", "htmlfile?c=x", b'<script>\np("h");\n</script>\r\n'),
    ],
)
@deferred
async def test_heartbeats(server: Server, method: str, transport: str, beat: bytes) -> None:
    timed = Timed(server)
    answer = await server.client.ask(method, f"{timed.one}/{transport}")
    await answer.chunk()
    await answer.chunk()
    for _ in range(2):
        for _ in range(3):  # not yet, and what is sent delays it
            timed.clock.advance(24.9)
            timed.application.made[0].send("x")
            assert b"x" in await answer.chunk()
        for _ in range(2):
            timed.clock.advance(25.1)
            assert await answer.chunk() == beat
    assert await timed.heard.next() == ("open", transport.partition("?")[0])
    assert timed.heard.isEmpty


@deferred
async def test_heartbeatsOfPolls(server: Server) -> None:
    """
    One ends the poll; the next poll is the client's sign of life.
    """
    timed, client = Timed(server, heartbeat=10.0), server.client
    assert await client.poll(timed.one) == b"o\n"
    for method, path, beat in (
        ("POST", "xhr", b"h\n"),
        ("GET", "jsonp?c=x", b'/**/x("h");\r\n'),
    ):
        stream = await server.waiting(method, f"{timed.one}/{path}")
        timed.clock.advance(10.1)
        assert await (await client.answer(stream)).body() == beat
    timed.clock.advance(5.1)
    assert await timed.send() == 404


# HTTP


@deferred
async def test_http10(server: Server) -> None:
    """
    No chunks there, and an end that can be seen.
    """
    echo, client = server.serve("echo"), server.client
    for headers in ({}, {"Connection": "Keep-Alive"}):
        answer = await client.ask("GET", echo, headers, http="1.0")
        assert answer.status == 200
        assert answer["transfer-encoding"] is None
        assert await answer.body() == b"Welcome to SockJS!\n"
        if (answer["connection"] or "").lower() != "keep-alive":
            assert await answer.stream.rest() == b""
    one = session(echo)
    assert await client.poll(one, http="1.0") == b"o\n"
    await client.send(one, '["x"]')
    assert await client.poll(one, http="1.0") == b'a["x"]\n'


@pytest.mark.parametrize(
    ("method", "transport", "said"),
    [
        ("POST", "xhr_streaming", PRELUDE + b'o\nc[3000,"Go away!"]\n'),
        ("GET", "eventsource", b'\r\ndata: o\r\n\r\ndata: c[3000,"Go away!"]\r\n\r\n'),
    ],
)
@deferred
async def test_http10Streams(server: Server, method: str, transport: str, said: bytes) -> None:
    """
    The connection's end is the stream's, whatever the client would like.
    """
    close, client = server.serve("close", Closing), server.client
    for headers in ({}, {"Connection": "Keep-Alive"}):
        answer = await client.ask(method, f"{session(close)}/{transport}", headers, http="1.0")
        assert answer.status == 200
        assert answer["transfer-encoding"] is None
        assert answer["content-length"] is None
        assert await answer.stream.rest() == said


@deferred
async def test_http10StreamsAtOnce(server: Server) -> None:
    """
    Nothing is held back until the end.
    """
    one, client = session(server.serve("echo")), server.client
    answer = await client.ask("POST", f"{one}/xhr_streaming", http="1.0")
    assert await answer.stream.exactly(2051) == PRELUDE + b"o\n"
    await client.send(one, '["x"]')
    assert await answer.stream.exactly(7) == b'a["x"]\n'


@deferred
async def test_http11(server: Server) -> None:
    """
    The connection stays, after a stream too.
    """
    close, client = server.serve("close", Closing), server.client
    stream = await client.connect()
    for _ in range(2):
        answer = await client.ask("GET", close, {"Connection": "Keep-Alive"}, on=stream)
        assert (answer["connection"] or "keep-alive").lower() == "keep-alive"
        assert await answer.body() == b"Welcome to SockJS!\n"
        answer = await client.ask("POST", f"{session(close)}/xhr_streaming", on=stream)
        chunks = [await answer.chunk() for _ in range(4)]
        assert chunks == [PRELUDE, b"o\n", b'c[3000,"Go away!"]\n', b""]


# Transports that are off

URLS = {
    "websocket": ("GET", "/0/0/websocket"),
    "rawwebsocket": ("GET", "/websocket"),
    "xhr": ("POST", "/0/0/xhr"),
    "xhr_streaming": ("POST", "/0/0/xhr_streaming"),
    "eventsource": ("GET", "/0/0/eventsource"),
    "htmlfile": ("GET", "/0/0/htmlfile?c=x"),
    "jsonp": ("GET", "/0/0/jsonp?c=x"),
}


@pytest.mark.parametrize("name", list(URLS))
@deferred
async def test_aTransportThatIsOff(server: Server, name: str) -> None:
    """
    It is refused, and opens nothing; the others are there.
    """
    application = recorder()
    others = [other for other in URLS if other != name]
    echo, client = server.serve("echo", application, transports=others), server.client
    handshake = {key: value or "" for key, value in client.handshake().items()}
    for wanted in (name, *others):
        method, suffix = URLS[wanted]
        headers = handshake if "websocket" in wanted else None
        answer = await client.ask(method, echo + suffix.replace("/0/0", f"/0/{wanted}"), headers)
        if wanted == name:
            assert answer.status in (403, 404)
            assert answer["upgrade"] is None
            await answer.body()
            assert application.heard.isEmpty
        else:
            assert answer.status == (101 if "websocket" in wanted else 200)
    answer = await client.get(f"{echo}/info")
    assert json.loads(await answer.body())["websocket"] is (name != "websocket")


@pytest.mark.parametrize("name", ["xhr", "xhr_streaming", "eventsource", "htmlfile", "jsonp"])
@deferred
async def test_oneTransportAlone(server: Server, name: str) -> None:
    """
    What it sends with is there as well.
    """
    echo, client = server.serve("echo", transports=[name]), server.client
    method, suffix = URLS[name]
    assert (await client.ask(method, echo + suffix)).status == 200
    send = "jsonp_send" if name == "jsonp" else "xhr_send"
    answer = await client.post(f"{echo}/0/0/{send}", '["x"]')
    assert answer.status in (200, 204)


# Characters

# Browsers and what lies between are known to spoil these: the protocol wants
# them escaped by the server, and so in lower case.
_ESCAPED = [
    *range(0x20), *range(0x200C, 0x2010), *range(0x2028, 0x2030), *range(0x2060, 0x2070),
    *range(0xFFF0, 0x10000),
]  # fmt: skip


@deferred
async def test_escaping(server: Server) -> None:
    large = 1 << 20
    one = session(server.serve("echo", maxMessageBytes=large, maxBodyBytes=large))
    client = server.client
    assert await client.poll(one) == b"o\n"
    fragile = "".join(map(chr, _ESCAPED))
    await client.send(one, json.dumps([fragile]))
    said = (await client.poll(one)).decode()
    assert json.loads(said[1:]) == [fragile]
    assert "".join(f"\\u{code:04x}" for code in _ESCAPED if code > 255) in said
    every = "".join(map(chr, (*range(0x20, 0xD800), *range(0xE000, 0x10000)))) + "😀"
    for ascii in (True, False):  # as the client escapes it, and as it is
        await client.send(one, json.dumps([every], ensure_ascii=ascii))
        said = (await client.poll(one)).decode()
        assert json.loads(said[1:]) == [every]
        assert [char for char in said.strip() if ord(char) in _ESCAPED] == []


@deferred
async def test_surrogates(server: Server) -> None:
    """
    A pair is one character. Half a pair has no UTF-8: it is sent as an escape,
    or refused; it does no harm.
    """
    application = recorder()
    one, client = session(server.serve("echo", application)), server.client
    assert await client.poll(one) == b"o\n"
    await client.send(one, r'["\ud83d\ude00"]')
    assert json.loads((await client.poll(one))[1:]) == ["😀"]
    answer = await client.post(f"{one}/xhr_send", r'["\ud800", "\udc00\ud800"]')
    if answer.status == 204:
        assert (await client.poll(one)).lower() == rb'a["\ud800","\udc00\ud800"]' + b"\n"
    else:
        assert answer.status in (400, 500)
    await client.send(one, '["still here"]')
    assert await client.poll(one) == b'a["still here"]\n'


# The example that serves the protocol's own suites


@contextmanager
def example(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    root = Path(twsessions.__file__).parents[1]
    process = subprocess.Popen(
        [sys.executable, str(root / "examples" / "sockjs_test_server.py"), *arguments],
        env=dict(os.environ, PYTHONPATH=str(root)),
        stdout=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


async def reached(process: subprocess.Popen[bytes], port: int) -> Client:
    """
    A client, as soon as the example listens.
    """
    client = Client(port)
    for _ in range(1000):
        assert process.poll() is None, "it has ended"
        try:
            await client.connect()
            return client
        except ConnectError:
            await turn(0.02)  # only between two looks; nothing depends on it
    raise AssertionError("it does not listen")


@deferred
async def test_exampleServer() -> None:
    port = freePort()
    with example("--port", str(port), "--sockjs-url", "/lib/sockjs.js") as process:
        client = await reached(process, port)
        for name, websocket, cookie in (
            ("echo", True, False),
            ("disabled_websocket_echo", False, False),
            ("cookie_needed_echo", True, True),
            ("close", True, False),
        ):
            answer = await client.get(f"/{name}/info", {"Origin": "null"})
            assertShared(answer, "null")
            info = json.loads(await answer.body())
            assert (info["websocket"], info["cookie_needed"]) == (websocket, cookie), name
            assert info["origins"] == ["*:*"]
        answer = await client.get("/echo/iframe.html")
        assert b'<script src="/lib/sockjs.js"></script>' in await answer.body()
        await assertRefused(await client.upgrade("/disabled_websocket_echo/0/0/websocket"), 404)

        answer = await client.post("/echo/0/one/xhr_streaming")
        assert [await answer.chunk(), await answer.chunk()] == [PRELUDE, b"o\n"]
        await client.send("/echo/0/one", json.dumps(["x" * 4096]))
        assert await answer.chunk() == b'a["' + b"x" * 4096 + b'"]\n'
        assert await answer.chunk() == b""
        answer = await client.post("/cookie_needed_echo/0/one/xhr")
        assert (answer["set-cookie"] or "").startswith("JSESSIONID=dummy")
        assert await client.poll("/close/0/one") == b"o\n"
        assert await client.poll("/close/0/one") == b'c[3000,"Go away!"]\n'

        amplify = await client.websocket("/amplify/websocket")
        for message, times in (("1", 2), ("10", 1024), ("18", 1 << 18), ("0", 2), ("19", 2)):
            amplify.send(message)
            frame = await amplify.receive()
            assert (frame.opcode, frame.payload) == (TEXT, b"x" * times), message
        ticker = await client.websocket("/ticker/websocket")
        assert await ticker.message() and await ticker.message()
        many = [await client.websocket("/broadcast/websocket") for _ in range(3)]
        one = await client.post("/broadcast/0/one/xhr_streaming")
        assert [await one.chunk(), await one.chunk()] == [PRELUDE, b"o\n"]
        many[0].send("to all")
        assert [await each.message() for each in many] == ["to all"] * 3
        assert await one.chunk() == b'a["to all"]\n'
        client.abort()


@deferred
async def test_exampleServersPort() -> None:
    """
    As the suites say it: the port alone.
    """
    port = freePort()
    with example(str(port)) as process:
        client = await reached(process, port)
        assert await (await client.get("/echo")).body() == b"Welcome to SockJS!\n"
        client.abort()
