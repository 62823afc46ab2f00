"""
What nobody should send to a SockJS server, and how it bears it.
"""

from __future__ import annotations

import json
import re
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import capturedLogs, eventAsText
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import Site
from twisted.web.util import DeferredResource

from twsessions import SessionSite
from twsessions.sockjs import SockJSConnection, SockJSResource
from twsessions.test import test_sockjs_protocol
from twsessions.test.sockjsclient import (
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    Answer,
    Client,
    Frame,
    WebSocket,
    turn,
    until,
)
from twsessions.test.test_sockjs_protocol import (
    PRELUDE,
    URLS,
    Recorder,
    Server,
    assertRefused,
    recorder,
    session,
)
from twsessions.test.test_sockjs_websocket import MIB, unsent

deferred = pytest_twisted.ensureDeferred
server = test_sockjs_protocol.server  # a fixture

FORM = {"Content-Type": "application/x-www-form-urlencoded"}
MARK = "Zq9-raw"  # stands in all that must not be in the log


@contextmanager
def quiet() -> Iterator[None]:
    """
    Nothing fails meanwhile, and nothing that a client sent is logged.
    """
    with capturedLogs() as events:
        yield
    said = [eventAsText(event) for event in events]
    assert [text for event, text in zip(events, said, strict=True) if "log_failure" in event] == []
    assert [text for text in said if MARK in text] == []
    assert [text for text in said if "Traceback" in text] == []


# Bodies

BROKEN = [
    f'"{MARK}"',
    "1",
    "null",
    "true",
    "NaN",
    f'{{"{MARK}": 1}}',
    "[1]",
    "[null]",
    '["a", 1]',
    f'[["{MARK}"]]',
    f'[{{"{MARK}": "a"}}]',
    f'["{MARK}"',
    f'["{MARK}",]',
    '["a"]]',
    '["a"]["b"]',
    "[",
    "]",
    ",",
    '["',
    '["\\',
    '["\\u12',
    '["\\x41"]',
    '["a\nb"]',
    "['a']",
    "[" * 100_000,
    '[["a"' * 20_000,
    '{"a":' * 20_000,
    "[" * 50_000 + "]" * 50_000,
    "9" * 100_000,
    "[" + "9" * 100_000 + "]",
    "[1e999]",
    "[-Infinity]",
    "\ufeff" + '["a"]',
    '["a"]\0',
    MARK,
]
BROKEN_BYTES = [
    b'["\xff"]',
    b'["\xed\xa0\x80"]',
    b'["\xc0\xa2"]',
    '["a"]'.encode("utf-16"),
    '["a"]'.encode("utf-32"),
    bytes(range(256)),
]


@deferred
async def test_brokenBodies(server: Server) -> None:
    """
    Each is refused in a line of text; nothing of it is delivered, and the
    session goes on.
    """
    application = recorder()
    one, client = session(server.serve("echo", application)), server.client
    with quiet():
        assert await client.poll(one) == b"o\n"
        for body in [*(text.encode() for text in BROKEN), *BROKEN_BYTES]:
            for path in ("xhr_send", "jsonp_send"):
                answer = await client.post(f"{one}/{path}", body)
                assert answer.status in (400, 413, 500), body[:40]
                assert (answer["content-type"] or "").startswith("text/plain")
                said = await answer.body()
                assert re.fullmatch(rb"(Broken JSON encoding|Payload expected)\.\n?", said), body[
                    :40
                ]
        await client.send(one, '["x"]')
        assert await client.poll(one) == b'a["x"]\n'
    assert await application.heard.next() == ("open", "xhr")
    assert await application.heard.next() == ("message", "x")
    assert application.heard.isEmpty


@pytest.mark.parametrize(
    "body",
    [
        b"d=%ff%fe",
        b"d=[%22" + b"%C3%A9" * 10 + b"%ff%22]",
        b"d=1&d=2",
        b"d=%5B%22" + MARK.encode(),
        b"&".join(b"a%d=%d" % (number, number) for number in range(1000)) + b"&d=1",
        b"=" * 10_000,
        b"&" * 10_000,
        b"%" * 10_000,
        b"d",
        b"d=%",
        b"d=%00",
        b"\xff=\xff",
    ],
    ids=lambda body: body[:8].decode("latin-1"),
)
@deferred
async def test_brokenForms(server: Server, body: bytes) -> None:
    one, client = session(server.serve("echo")), server.client
    with quiet():
        assert await client.poll(one) == b"o\n"
        answer = await client.post(f"{one}/jsonp_send", body, FORM)
        assert answer.status in (400, 413, 500)
        assert (answer["content-type"] or "").startswith("text/plain")
        assert MARK.encode() not in await answer.body()
        await client.send(one, '["x"]')
        assert await client.poll(one) == b'a["x"]\n'


@deferred
async def test_brokenFrames(server: Server) -> None:
    """
    The same on websockets: the connection is closed, the server is not.
    """
    application = recorder()
    echo, client = server.serve("echo", application, maxMessageBytes=MIB), server.client
    with quiet():
        for message in BROKEN:
            if message == BROKEN[0]:
                continue  # there one string alone is a message
            socket = await client.websocket(f"{session(echo)}/websocket")
            assert await socket.message() == "o"
            socket.send(message)
            code, reason = await closed(socket)
            assert code in (1002, 1003, 1007, 1008, 1009, 3000), message[:40]
            assert MARK not in reason
            assert await application.heard.next() == ("open", "websocket")
            assert (await application.heard.next())[0] == "close"
            assert application.heard.isEmpty


async def closed(socket: WebSocket) -> tuple[int | None, str]:
    """
    How a websocket closes, whatever comes before it.
    """
    try:
        return await socket.closed()
    except AssertionError:
        return await socket.closed()


# Limits


async def assertTooBig(client: Client, application: Any, one: str, *asked: Any) -> None:
    """
    C{asked} is refused with 413, and the session closed: many clients cannot
    see the status, and would go on without the message.
    """
    assert await client.poll(one) == b"o\n"
    assert (await application.heard.next())[0] == "open"
    await assertRefused(await client.ask(*asked), 413)
    assert await application.heard.next() == ("close", 1009, "Too big")
    assert await client.poll(one) == b'c[1009,"Too big"]\n'
    assert application.heard.isEmpty


@pytest.mark.parametrize("path", ["xhr_send", "jsonp_send"])
@deferred
async def test_bodyLimit(server: Server, path: str) -> None:
    """
    Of several messages as of one, with a length or in chunks.
    """
    application = recorder()
    echo = server.serve("echo", application, maxBodyBytes=2000, maxMessageBytes=1000)
    one, client = session(echo), server.client
    with quiet():
        largest = json.dumps(["x" * 996, "y" * 994], separators=(",", ":"))
        assert len(largest) == 1997
        assert await client.poll(one) == b"o\n"
        assert (await client.post(f"{one}/{path}", largest + " " * 3)).status in (200, 204)
        assert json.loads((await client.poll(one))[1:]) == ["x" * 996, "y" * 994]
        for event in (("open", "xhr"), ("message", "x" * 996), ("message", "y" * 994)):
            assert await application.heard.next() == event
        chunks = b"".join([b"400\r\n" + b" " * 1024 + b"\r\n"] * 100) + b"0\r\n\r\n"
        for headers, body in (
            ({}, (largest + " " * 4).encode()),
            ({}, b'["' + b"x" * 8 * MIB),
            ({"Transfer-Encoding": "chunked"}, chunks),
        ):
            one = session(echo)
            await assertTooBig(client, application, one, "POST", f"{one}/{path}", headers, body)
            assert (await client.post(f"{session(echo)}/{path}", body, headers)).status == 413


@pytest.mark.parametrize("char", ["x", "\u00e9", "😀", "\\u00e9"])
@deferred
async def test_messageLimit(server: Server, char: str) -> None:
    """
    Bytes count, not characters; and one message that is too big refuses all.
    """
    application = recorder()
    echo, client = server.serve("echo", application, maxMessageBytes=1000), server.client
    size = len(json.loads(f'"{char}"').encode())
    largest, one = char * (1000 // size), session(echo)
    assert await client.poll(one) == b"o\n"
    await client.send(one, f'["{largest}"]')
    assert json.loads((await client.poll(one))[1:]) == [json.loads(f'"{largest}"')]
    assert await application.heard.next() == ("open", "xhr")
    assert (await application.heard.next())[0] == "message"
    for body in (f'["{largest}{char}"]', f'["a","{largest}{char}","b"]'):
        for path in ("xhr_send", "jsonp_send"):
            one = session(echo)
            await assertTooBig(client, application, one, "POST", f"{one}/{path}", {}, body)


@pytest.mark.parametrize("kind", ["framed", "raw"])
@deferred
async def test_messageLimitOfFragments(server: Server, kind: str) -> None:
    """
    Bytes there too, in however many pieces.
    """
    echo = server.serve("echo", maxMessageBytes=1000)
    path = f"{session(echo)}/websocket" if kind == "framed" else f"{echo}/websocket"
    socket = await server.client.websocket(path)
    if kind == "framed":
        assert await socket.message() == "o"
    socket.frame(TEXT, b'["', final=False)
    for _ in range(26):
        socket.frame(CONTINUATION, "😀".encode() * 10, final=False)
    assert (await socket.closed())[0] == 1009


@pytest.mark.parametrize("opcode", [CONTINUATION, PING, PONG])
@deferred
async def test_fragmentsThatSayNothing(server: Server, opcode: int) -> None:
    """
    A message that never ends and never grows takes no memory.
    """
    socket = await server.client.websocket(f"{server.serve('echo')}/websocket")
    kept: list[bytes] = []
    write, socket.stream.write = socket.stream.write, kept.append  # type: ignore[method-assign]
    for _ in range(5000):
        socket.frame(opcode, b"", final=opcode != CONTINUATION)
    socket.stream.write = write  # type: ignore[method-assign]
    many, count = b"".join(kept), len(kept)
    socket.frame(TEXT, b"x", final=False)

    async def all() -> int:
        socket.stream.write(many)
        socket.frame(PING, b"done")
        while (frame := await socket.receive()) != Frame(PONG, b"done"):
            assert frame == Frame(PONG, b"")
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        before = await all()
        for _ in range(10):
            after = await all()
    finally:
        tracemalloc.stop()
    assert after - before < 2 * 10 * count  # bytes, two for each frame
    socket.frame(CONTINUATION, b"y")
    assert await socket.message() == "xy"


@deferred
async def test_sessionLimit(server: Server) -> None:
    """
    Those that are there stay; the next is told to come again, and may when
    one has gone.
    """
    clock, application = Clock(), recorder()
    echo = server.serve("echo", application, reactor=clock, maxSessions=3)
    client, sessions = server.client, [session(echo), session(echo)]
    for one in sessions:
        assert await client.poll(one) == b"o\n"
    socket = await client.websocket(f"{session(echo)}/websocket")
    assert await socket.message() == "o"
    for name, (method, suffix) in URLS.items():
        if "websocket" in name:
            answer = await client.upgrade(echo + suffix)
        else:
            answer = await client.ask(method, echo + suffix)
        assert answer.status == 503, name
        assert answer["retry-after"]
        assert (
            answer["access-control-allow-origin"]
            or "websocket" in name
            or name
            in (
                "htmlfile",
                "jsonp",
            )
        )
        await answer.body()
    for one in sessions:
        await client.send(one, '["x"]')
        assert await client.poll(one) == b'a["x"]\n'
    socket.close()
    await socket.closed()
    assert await client.poll(session(echo)) == b"o\n"
    await assertRefused(await client.post(f"{session(echo)}/xhr"), 503)
    clock.advance(5.1)
    assert await client.poll(session(echo)) == b"o\n"


@pytest.mark.parametrize("name", URLS)
def test_goneBefore(name: str) -> None:
    """
    A request whose client has gone before it was this resource's turn leaves
    nothing behind.
    """
    method, suffix = URLS[name]
    clock, gate = Clock(), Deferred[Any]()
    resource = SockJSResource(SockJSConnection, clock)
    site = Site(DeferredResource(gate), reactor=clock)
    channel = site.buildProtocol(IPv4Address("TCP", "192.0.2.1", 1))
    channel.makeConnection(StringTransport())
    head = f"{method} {suffix} HTTP/1.1\r\nHost: x\r\n"
    if "websocket" in name:
        head += "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        head += "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    channel.dataReceived(f"{head}\r\n".encode())
    channel.connectionLost(Failure(ConnectionDone()))
    with quiet():
        gate.callback(resource)
    assert not resource.service._all


@deferred
async def test_sessionsThatBreakOff(server: Server) -> None:
    """
    They give their place away, without any time going by.
    """
    echo, client = server.serve("echo", application := recorder(), maxSessions=2), server.client
    for _ in range(20):
        socket = await client.websocket(f"{session(echo)}/websocket")
        assert await socket.message() == "o"
        socket.stream.abort()
        assert await application.heard.next() == ("open", "websocket")
        assert (await application.heard.next())[0] == "close"


@pytest.mark.parametrize("overflow", ["close", "dropOldest"])
@deferred
async def test_sendQueueOfPolls(server: Server, overflow: str) -> None:
    """
    A client that does not come for its messages: they do not pile up.
    """
    clock, application = Clock(), recorder()
    echo = server.serve("echo", application, reactor=clock, maxQueueBytes=10_000, overflow=overflow)
    one, client = session(echo), server.client
    assert await client.poll(one) == b"o\n"
    (connection,) = application.made
    assert await application.heard.next() == ("open", "xhr")
    for number in range(100):
        connection.send(f"{number:02}" + "x" * 998)
    if overflow == "dropOldest":
        numbers = [int(message[:2]) for message in json.loads((await client.poll(one))[1:])]
        assert numbers == list(range(100))[-len(numbers) :]
        assert 5 <= len(numbers) <= 10
        await client.send(one, '["x"]')
        assert await client.poll(one) == b'a["x"]\n'
        assert not connection.isClosed
    else:
        assert connection.isClosed
        event = await application.heard.next()
        assert event[0] == "close" and event[1] in (1008, 1009, 1013)
        assert re.fullmatch(rb'c\[%d,"[^"]*"\]\n' % event[1], await client.poll(one))
        clock.advance(5.1)
        assert application.heard.isEmpty
        assert await client.poll(one) == b"o\n"


@deferred
async def test_sendQueueOfStreams(server: Server) -> None:
    """
    A stream that nobody reads is bounded like a websocket.
    """
    application = recorder()
    echo = server.serve("echo", application, maxQueueBytes=MIB, responseLimit=1 << 30)
    answer = await server.client.post(f"{session(echo)}/xhr_streaming")
    assert [await answer.chunk(), await answer.chunk()] == [PRELUDE, b"o\n"]
    (connection,) = application.made
    answer.stream.transport.pauseProducing()
    sent, held = 0, 0
    while not connection.isClosed and sent < 64 * MIB:
        connection.send("x" * 65536)
        sent += 65536
        await turn()
        held = max(held, unsent(server, answer.stream))
    assert connection.isClosed
    assert held < 2 * MIB
    assert await application.heard.next() == ("open", "xhr_streaming")
    event = await application.heard.next()
    assert event[0] == "close" and event[1] in (1002, 1008, 1009, 1013)
    assert application.heard.isEmpty
    answer.stream.transport.resumeProducing()
    await until(lambda: answer.stream.isLost)


@deferred
async def test_sendAfterAClose(server: Server) -> None:
    """
    To a slow client as well: it has an end, and only one.
    """
    application = recorder()
    echo = server.serve("echo", application)
    socket = await server.client.websocket(f"{echo}/websocket")
    await until(lambda: application.made)
    (connection,) = application.made
    socket.stream.transport.pauseProducing()
    sent = 0
    while not unsent(server, socket.stream) and sent < 1024:
        connection.send("x" * 65536)
        sent += 1
        await turn()
    connection.close(3456, "slow")
    connection.send("never")
    connection.close(3457, "never")
    assert (await application.heard.next())[0] == "open"
    assert await application.heard.next() == ("close", 3456, "slow")
    assert application.heard.isEmpty
    socket.stream.transport.resumeProducing()
    for _ in range(sent):
        assert len(await socket.message()) == 65536
    assert await socket.closed() == (3456, "slow")
    assert application.heard.isEmpty


@deferred
async def test_moreThanTheApplicationTakes(server: Server) -> None:
    """
    Messages do not pile up before an application that is slow: requests wait,
    and in the end the session is closed. None of them is left without answer.
    """
    pause: Deferred[None] = Deferred()

    class Stuck(Recorder):
        async def onMessage(self, message: str | bytes) -> None:  # type: ignore[override]
            self.heard.put("message", message[:3])
            await pause

    application: Any = type("Stuck", (Stuck,), vars(recorder()) | {})
    one = session(server.serve("stuck", application, maxQueueBytes=200_000))
    client, streams = server.client, []
    assert await client.poll(one) == b"o\n"
    body = json.dumps(["x" * 60_000])
    for _ in range(40):
        streams.append(await client.connect())
        client.request(streams[-1], "POST", f"{one}/xhr_send", body=body)
    (connection,) = application.made
    await until(lambda: connection.isClosed)
    statuses = [(await client.answer(stream)).status for stream in streams]
    assert set(statuses) == {204, 404}
    assert await application.heard.next() == ("open", "xhr")
    assert await application.heard.next() == ("message", "xxx")
    assert application.heard.isEmpty  # it is told when it is done
    pause.callback(None)
    event = await application.heard.next()
    assert event[0] == "close" and event[1] in (1008, 1009, 1013)
    assert application.heard.isEmpty


# URLs and headers


@deferred
async def test_giantIds(server: Server) -> None:
    """
    Ids are kept, so they are short; uuids and the like are.
    """
    echo, client = server.serve("echo", application := recorder()), server.client
    with quiet():
        assert await client.poll(f"{echo}/000/{'i' * 128}") == b"o\n"
        assert await application.heard.next() == ("open", "xhr")
        for id in ("i" * 2000, MARK * 1000, "%ff" * 3000):
            for method, suffix in URLS.values():
                path = echo + suffix.replace("/0/0/", f"/0/{id}/")
                if id in path and "websocket" not in path:
                    answer = await client.ask(method, path)
                    assert answer.status in (400, 404, 414), suffix
                    assert MARK.encode() not in await answer.body()
    assert application.heard.isEmpty


@deferred
async def test_infoAsAWebsocket(server: Server) -> None:
    """
    One such request ends sockjs-node 0.3.24.
    """
    echo, client = server.serve("echo"), server.client
    with quiet():
        for suffix in ("", "/", "/info", "/iframe.html"):
            answer = await client.upgrade(echo + suffix)
            assert answer.status == 200
            assert answer["upgrade"] is None
            assert await answer.body()
        for suffix in ("/0/0/xhr", "/0/0/xhr_send", "/nowhere"):
            answer = await client.upgrade(echo + suffix)
            assert answer.status in (404, 405)
            await answer.body()
        assert await client.poll(session(echo)) == b"o\n"


@pytest.mark.parametrize("transport", ["jsonp", "htmlfile"])
@pytest.mark.parametrize(
    "callback",
    [
        "<script>alert(1)</script>",
        "alert(1)//",
        "%3Cscript%3E",
        "a%0D%0ASet-Cookie:x=y",
        "CWS" * 40,
    ],
)
@deferred
async def test_reflectedCallbacks(server: Server, transport: str, callback: str) -> None:
    """
    What is no name does not come back, in whatever type.
    """
    echo = server.serve("echo", application := recorder())
    with quiet():
        answer = await server.client.get(f"{session(echo)}/{transport}?c={MARK}{callback}")
        assert answer.status == 500
        assert answer["set-cookie"] is None
        assert (answer["content-type"] or "").startswith("text/plain")
        assert await answer.body() == b'invalid "callback" parameter\n'
    assert application.heard.isEmpty


@deferred
async def test_reflectedPaths(server: Server) -> None:
    """
    An error says nothing of what was asked for.
    """
    echo, client = server.serve("echo"), server.client
    paths = [
        f"/{MARK}",
        f"/<script>{MARK}</script>",
        f"/0/0/{MARK}",
        f"/0/{MARK}/xhr_send",
        f"/{MARK}/{MARK}/{MARK}/{MARK}",
        f"/iframe-{MARK}.htm",
    ]
    with quiet():
        for path in paths:
            for method in ("GET", "POST"):
                headers = {"Referer": MARK, "User-Agent": MARK}
                answer = await client.ask(method, echo + path, headers, '["x"]')
                assert answer.status in (404, 405)
                assert MARK.encode() not in await answer.body()


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "\xff\xfe"},
        {"Origin": MARK + "\x7f\x01"},
        {"Origin": "x" * 8000},
        {"Origin": "https://[::1"},
        {"Access-Control-Request-Headers": "\xff, \x01, " + MARK},
        {"Cookie": "JSESSIONID=\xff; =; ;;; $Version=1"},
        {"Cookie": f'JSESSIONID="{MARK}<script>"; Path=/'},
        {"Cookie": "JSESSIONID=" + "x" * 8000},
        {"Content-Type": "\xff/" + MARK},
        {"If-None-Match": '"\xff'},
        {"X-Forwarded-For": "\xff" + MARK + ", , ,"},
        {"Sec-WebSocket-Protocol": "\xff,,,"},
    ],
    ids=lambda headers: next(iter(headers)),
)
@deferred
async def test_headers(server: Server, headers: dict[str, str]) -> None:
    """
    Whatever they say, there is an answer, and the service goes on.
    """
    echo = server.serve(
        "echo", jsessionid=True, trustForwarded=True, passCookies=["JSESSIONID", "$Version"]
    )
    client = server.client
    with quiet():
        for method, suffix in (
            ("GET", "/info"),
            ("OPTIONS", "/0/0/xhr"),
            ("GET", "/iframe.html"),
            ("POST", "/0/one/xhr"),
            ("POST", "/0/one/xhr_send"),
            ("POST", "/0/one/jsonp_send"),
            ("GET", "/0/two/eventsource"),
        ):
            body = '["x"]' if "send" in suffix else None
            answer = await client.ask(method, echo + suffix, headers, body)
            assert answer.status in (200, 204, 400, 403, 404), suffix
            cookie = answer["set-cookie"] or ""
            assert re.fullmatch(r"(JSESSIONID=[\w.-]{1,128}; *[Pp]ath=/)?", cookie)
        answer = await client.upgrade(f"{session(echo)}/websocket", headers)
        assert answer.status in (101, 400, 403)
        assert await client.poll(session(echo)) == b"o\n"


ORIGINS = ["https://good.example", "http://localhost:8080"]


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "http://good.example",
        "https://good.example.evil.example",
        "https://good.example:8443",
        "https://good.exampl",
        "http://localhost",
        "null",
        "",
        "\xff",
    ],
)
@deferred
async def test_originList(server: Server, origin: str) -> None:
    """
    It holds on every URL; who is refused opens nothing, and sends nothing.
    """
    echo, client = server.serve("echo", application := recorder(), origins=ORIGINS), server.client
    one = session(echo)
    with quiet():
        answer = await client.post(f"{one}/xhr", headers={"Origin": "https://good.example"})
        assert answer["access-control-allow-origin"] == "https://good.example"
        assert await answer.body() == b"o\n"
        assert await application.heard.next() == ("open", "xhr")
        urls = [*URLS.values(), ("GET", "/info"), ("OPTIONS", "/info"), ("OPTIONS", "/0/0/xhr")]
        for path in ("xhr", "xhr_send", "jsonp_send"):
            urls.append(("POST", f"{one}/{path}".removeprefix(echo)))
        for method, suffix in urls:
            if suffix.endswith("websocket"):
                answer = await client.upgrade(echo + suffix, {"Origin": origin})
            else:
                answer = await client.ask(method, echo + suffix, {"Origin": origin}, '["x"]')
            assert answer.status == 403, suffix
            assert answer["access-control-allow-origin"] is None
            assert answer["access-control-allow-credentials"] is None
            await answer.body()
    assert application.heard.isEmpty


@deferred
async def test_originsThatAreListed(server: Server) -> None:
    echo, client = server.serve("echo", origins=ORIGINS), server.client
    for origin in ORIGINS:
        for name, (method, suffix) in URLS.items():
            path, headers = echo + suffix.replace("/0/0/", f"{session('')}/"), {"Origin": origin}
            if "websocket" in name:
                assert (await client.upgrade(path, headers)).status == 101
            else:
                answer = await client.ask(method, path, headers)
                assert answer.status == 200
                assert answer["access-control-allow-origin"] == origin
                assert "Origin" in (answer["vary"] or "")


@pytest.mark.parametrize(
    "settings, policy",
    [
        ({}, None),
        ({"origins": "*", "bound": True}, None),
        ({"bound": True}, "frame-ancestors 'self'"),
        (
            {"origins": ["https://b.example:8443", "https://A.example/"]},
            "frame-ancestors https://a.example https://b.example:8443",
        ),
        ({"origins": []}, "frame-ancestors 'none'"),
    ],
)
@deferred
async def test_originsOfFrames(server: Server, settings: Any, policy: str | None) -> None:
    """
    A page that may not connect may not have the page for iframes do it either,
    whose origin is the service's own.
    """
    echo, client = server.serve("echo", **settings), server.client
    page = await client.ask("GET", f"{echo}/iframe-1.html")
    assert page.status == 200 and page["content-security-policy"] == policy
    await page.body()
    known = {"If-None-Match": page["etag"] or ""}
    again = await client.ask("GET", f"{echo}/iframe-1.html", known)
    assert again.status == 304 and again["content-security-policy"] == policy


@deferred
async def test_whatTheApplicationSees(server: Server) -> None:
    """
    Of a request's headers those that are harmless, of its cookies those that
    were asked for, and the address that the connection comes from, or that our
    own proxy saw.
    """
    infos: list[Any] = []

    class Looking(SockJSConnection):
        def onOpen(self, info: Any) -> None:
            infos.append(info)

    plain = server.serve("plain", Looking)
    asked = server.serve("asked", Looking, passCookies=["lang", "style"], trustForwarded=True)
    headers = {
        "Authorization": "Basic c2VjcmV0",
        "Cookie": 'mine={"a": 1}; flag; sid=secret; lang=en; Jürg="ä"; style="dark"',
        "X-Csrf-Token": "secret",
        "X-Forwarded-For": "10.6.6.6, 10.1.2.3",
        "Referer": "https://a.example/page",
        "User-Agent": "Test/1.0",
        "Accept-Language": "de",
    }
    for service in (plain, asked):
        answer = await server.client.post(f"{session(service)}/xhr?a=1&a=2&b=", headers=headers)
        assert await answer.body() == b"o\n"
        await server.client.websocket(f"{session(service)}/websocket?a=1&a=2&b=", headers)
    assert [info.transport for info in infos] == ["xhr", "websocket"] * 2
    for number, info in enumerate(infos):
        for name in ("referer", "user-agent", "accept-language"):
            assert info.headers[name] in headers.values()
        assert not {"cookie", "authorization", "x-csrf-token"} & {*info.headers}
        assert "secret" not in repr([info.headers, info.cookies, info.arguments, info.path])
        assert info.cookies == ({} if number < 2 else {"lang": "en", "style": "dark"})
        assert info.ip == ("127.0.0.1" if number < 2 else "10.1.2.3")
        assert info.arguments == {"a": ["1", "2"], "b": [""]}
        assert info.path.endswith(("/xhr", "/websocket"))
        assert info.session is None


@pytest.mark.parametrize(
    "message",
    [
        "</script><script>alert(1)</script>",
        "<!--<script>",
        "<!-- </SCRIPT >",
        "]]>",
        "\u2028\u2029",
        "\\\"'`${x}",
    ],
)
@deferred
async def test_messagesInPages(server: Server, message: str) -> None:
    """
    Whatever one client says to another, it stays a string in the other's page.
    """
    application = recorder()
    one, client = session(server.serve("echo", application)), server.client
    answer = await client.get(f"{one}/htmlfile?c=x")
    await answer.chunk()
    await answer.chunk()
    await client.send(one, json.dumps([message]))
    application_, closing = application.made[0], f"{message[:40]}"
    said = [await answer.chunk()]
    application_.close(3000, closing)
    said.append(await answer.chunk())
    for chunk, frame in zip(said, (["a", [message]], ["c", [3000, closing]]), strict=True):
        found = re.fullmatch(rb'<script>\np\(("[^<\n]*")\);\n</script>\r\n', chunk)
        assert found, chunk
        text = json.loads(found[1])
        assert [text[0], json.loads(text[1:])] == frame


@pytest.mark.parametrize(
    "reason", ['a"],["b', "a\nb\r\n\r\nc", "</script>", "\\", "\u2028\0\ud800"]
)
@deferred
async def test_closeReasons(server: Server, reason: str) -> None:
    """
    They are JSON as well, in every format.
    """

    class Parting(SockJSConnection):
        def onOpen(self, info: Any) -> None:
            self.close(3000, reason)

    parting, client = server.serve("parting", Parting), server.client
    one = session(parting)
    await client.poll(one)
    said = (await client.poll(one)).decode()
    assert said.endswith("\n") and "\n" not in said[:-1] and "\r" not in said
    assert json.loads(said[1:]) == [3000, reason]
    said = (await (await client.get(f"{one}/jsonp?c=x")).body()).decode()
    assert json.loads(json.loads(said[len("/**/x(") : -len(");\r\n")])[1:]) == [3000, reason]
    answer = await client.get(f"{one}/eventsource")
    await answer.chunk()
    said = (await answer.chunk()).decode()
    assert re.fullmatch("data: [^\r\n]*\r\n\r\n", said)
    socket = await client.websocket(f"{session(parting)}/websocket")
    assert await socket.message() == "o"
    message = await socket.message()
    assert json.loads(message[1:]) == [3000, reason]
    assert (await socket.closed())[0] in (1000, 3000)
    socket = await client.websocket(f"{parting}/websocket")
    assert (await socket.closed())[0] == 3000


@deferred
async def test_loneSurrogatesOnWebsockets(server: Server) -> None:
    """
    They are no UTF-8, so a raw websocket cannot carry them; it carries on.
    """

    class Half(SockJSConnection):
        def onMessage(self, message: Any) -> None:
            self.send("\ud800")
            self.send("whole")

    half, client = server.serve("half", Half), server.client
    with quiet():
        socket = await client.websocket(f"{half}/websocket")
        socket.send("x")
        assert [await socket.message(), await socket.message()] == ["\ufffd", "whole"]
        socket = await client.websocket(f"{session(half)}/websocket")
        assert await socket.message() == "o"
        socket.send('["x"]')
        assert await socket.message() == 'a["\\ud800"]'
        assert await socket.message() == 'a["whole"]'


@deferred
async def test_garbage(server: Server) -> None:
    """
    Bytes that are no protocol at all, before and after the handshake.
    """
    echo, client = server.serve("echo"), server.client
    with quiet():
        for garbage in (b"\0" * 100, b"\xff" * 100_000, b"GET\r\n\r\n", b"\r\n" * 1000):
            stream = await client.connect()
            stream.write(garbage)
            stream.transport.loseWriteConnection()
            await stream.rest()
            socket = await client.websocket(f"{session(echo)}/websocket")
            assert await socket.message() == "o"
            socket.stream.write(garbage)
            socket.stream.transport.loseWriteConnection()
            await socket.stream.rest()
        assert await client.poll(session(echo)) == b"o\n"


# Bound to a web session


class Account(Resource):
    """
    Where users get their sessions, and end them.
    """

    isLeaf = True

    def render_GET(self, request: Any) -> bytes:
        user = request.getSession()
        if request.postpath == [b"logout"]:
            user.logout()
        else:
            user["visits"] = user.get("visits", 0) + 1
        return b"done"


class User:
    """
    A browser of somebody's, as far as it has a cookie.
    """

    def __init__(self, client: Client) -> None:
        self.client = client
        self.headers: dict[str, str] = {}

    async def login(self) -> User:
        answer = await self.client.get("/account/")
        self.headers["Cookie"] = (answer["set-cookie"] or "").partition(";")[0]
        assert await answer.body() == b"done"
        return self

    async def logout(self) -> None:
        assert await (await self.client.get("/account/logout", self.headers)).body() == b"done"

    async def ask(self, method: str, path: str, body: str | None = None, **more: str) -> Answer:
        headers = {**self.headers, **{name.title(): value for name, value in more.items()}}
        if path.endswith("/websocket"):
            return await self.client.upgrade(path, headers)
        return await self.client.ask(method, path, headers, body)


@pytest_twisted.async_yield_fixture
async def bound() -> Any:
    """
    A server whose users have sessions.
    """
    made = Server(SessionSite)
    made.root.putChild(b"account", Account())
    yield made
    await made.close()


@deferred
async def test_boundNeedsASession(bound: Server) -> None:
    """
    403 without one; and without the transports that no check can guard.
    """
    echo = bound.serve("echo", application := recorder(), bound=True)
    with quiet():
        ann = await User(bound.client).login()
        for user in (User(bound.client), ann):
            for name, (method, suffix) in URLS.items():
                answer = await user.ask(method, echo + suffix.replace("/0/0/", f"{session('')}/"))
                if name in ("jsonp", "htmlfile"):
                    assert answer.status in (403, 404), name
                elif user is ann:
                    assert answer.status == (101 if "websocket" in name else 200), name
                    assert await application.heard.next() == ("open", name)
                else:
                    assert answer.status == 403, name
                    await answer.body()
            if user is not ann:
                assert application.heard.isEmpty
        forged = User(bound.client)
        forged.headers = {"Cookie": ann.headers["Cookie"][:-4] + "AAAA"}
        await assertRefused(await forged.ask("POST", session(echo) + "/xhr"), 403)


@deferred
async def test_boundBelongsToOne(bound: Server) -> None:
    """
    Who knows the id of another's connection can do nothing with it.
    """
    echo = bound.serve("echo", application := recorder(), bound=True)
    one = session(echo)
    ann, eve = await User(bound.client).login(), await User(bound.client).login()
    with quiet():
        assert await (await ann.ask("POST", f"{one}/xhr")).body() == b"o\n"
        for user in (eve, User(bound.client)):
            for method, suffix in (
                ("POST", "xhr"),
                ("POST", "xhr_streaming"),
                ("GET", "eventsource"),
                ("POST", "xhr_send"),
            ):
                await assertRefused(await user.ask(method, f"{one}/{suffix}", '["evil"]'), 403)
        answer = await ann.ask("POST", f"{one}/xhr_send", '["x"]')
        assert answer.status == 204
        assert await (await ann.ask("POST", f"{one}/xhr")).body() == b'a["x"]\n'
    assert await application.heard.next() == ("open", "xhr")
    assert await application.heard.next() == ("message", "x")
    assert application.heard.isEmpty
    assert dict(application.made[0].info.session) == {"visits": 1}


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1", ""])
@deferred
async def test_boundToItsOrigin(bound: Server, origin: str) -> None:
    """
    Another site's page has the user's cookie, and nothing else.
    """
    echo = bound.serve("echo", application := recorder(), bound=True)
    ann = await User(bound.client).login()
    with quiet():
        for method, suffix in [*URLS.values(), ("GET", "/info"), ("OPTIONS", "/0/0/xhr")]:
            answer = await ann.ask(method, echo + suffix, origin=origin)
            assert answer.status in (403, 404), suffix
            assert answer["access-control-allow-origin"] is None
        assert application.heard.isEmpty
        own = f"http://127.0.0.1:{bound.port}"
        for name in ("websocket", "rawwebsocket", "xhr", "xhr_streaming", "eventsource"):
            method, suffix = URLS[name]
            answer = await ann.ask(
                method, echo + suffix.replace("/0/0/", f"{session('')}/"), origin=own
            )
            assert answer.status == (101 if "websocket" in name else 200), name


@deferred
async def test_boundToItsEnd(bound: Server) -> None:
    """
    After a logout nothing is left open, of this user's.
    """
    echo = bound.serve("echo", application := recorder(), bound=True)
    ann, bob = await User(bound.client).login(), await User(bound.client).login()
    framed = WebSocket(await ann.ask("GET", f"{session(echo)}/websocket"))
    assert await framed.message() == "o"
    raw = WebSocket(await ann.ask("GET", f"{echo}/websocket"))
    stream = await ann.ask("POST", f"{session(echo)}/xhr_streaming")
    assert [await stream.chunk(), await stream.chunk()] == [PRELUDE, b"o\n"]
    polled = session(echo)
    assert await (await ann.ask("POST", f"{polled}/xhr")).body() == b"o\n"
    other = WebSocket(await bob.ask("GET", f"{session(echo)}/websocket"))
    assert await other.message() == "o"
    for _ in range(5):
        assert (await application.heard.next())[0] == "open"
    with quiet():
        await ann.logout()
        assert await framed.message() == 'c[4001,"Session ended"]'
        assert (await framed.closed())[0] in (1000, 4001)
        assert await raw.closed() == (4001, "Session ended")
        assert [await stream.chunk(), await stream.chunk()] == [b'c[4001,"Session ended"]\n', b""]
        for _ in range(4):
            assert await application.heard.next() == ("close", 4001, "Session ended")
        answer = await ann.ask("POST", f"{polled}/xhr")
        if answer.status == 200:
            assert await answer.body() == b'c[4001,"Session ended"]\n'
        else:
            assert answer.status == 403
        await assertRefused(await ann.ask("POST", f"{session(echo)}/xhr"), 403)
        other.send('["still here"]')
        assert await other.message() == 'a["still here"]'
    assert await application.heard.next() == ("message", "still here")
    assert application.heard.isEmpty


@deferred
async def test_boundNeedsASessionSite(server: Server) -> None:
    """
    On a stock Site that is the programmer's mistake, not a way in.
    """
    echo = server.serve("echo", bound=True)
    answer = await server.client.post(f"{session(echo)}/xhr")
    assert answer.status == 500
    assert b"Traceback" not in await answer.body()
