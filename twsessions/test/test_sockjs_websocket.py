"""
SockJS over websockets, frame by frame: RFC 6455, and what SockJS adds.
"""

from __future__ import annotations

import json
import re
import tracemalloc
import zlib
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from twsessions.sockjs import SockJSConnection
from twsessions.test import test_sockjs_protocol
from twsessions.test.sockjsclient import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    Frame,
    Lost,
    Stream,
    WebSocket,
    turn,
    until,
)
from twsessions.test.test_sockjs_protocol import (
    Closing,
    Echo,
    Recorder,
    Server,
    assertRefused,
    recorder,
    session,
)

deferred = pytest_twisted.ensureDeferred
server = test_sockjs_protocol.server  # a fixture

both = pytest.mark.parametrize("kind", ["framed", "raw"])
MIB = 1 << 20


def pathOf(service: str, kind: str) -> str:
    return f"{service}/websocket" if kind == "raw" else session(service) + "/websocket"


def spelled(message: str, kind: str) -> str:
    """
    A message as it is sent.
    """
    return message if kind == "raw" else json.dumps([message])


async def opened(server: Server, service: str, kind: str, **headers: str) -> WebSocket:
    """
    A websocket that has been greeted.
    """
    socket = await server.client.websocket(pathOf(service, kind), headers)
    if kind == "framed":
        assert await socket.message() == "o"
    return socket


async def echoes(socket: WebSocket, kind: str, message: str = "still here") -> None:
    """
    It works.
    """
    socket.send(spelled(message, kind))
    assert await socket.message() == ("" if kind == "raw" else "a") + spelled(message, kind)


# The handshake


@both
@deferred
async def test_handshake(server: Server, kind: str) -> None:
    """
    With the key, and the answer, of the protocol's own suite.
    """
    path = pathOf(server.serve("echo"), kind)
    for upgrade, connection in (("websocket", "Upgrade"), ("WebSocket", "keep-alive, upgrade")):
        answer = await server.client.upgrade(
            path,
            {
                "Upgrade": upgrade,
                "Connection": connection,
                "Sec-WebSocket-Key": "x3JJHMbDL1EzLkh9GBhXDw==",
                "Sec-WebSocket-Origin": "http://asd",
                "Origin": "null",
            },
        )
        assert (answer.version, answer.status) == ("HTTP/1.1", 101)
        assert answer["sec-websocket-accept"] == "HSmrc0sMlYUkAGmm5OPpG2HaGWk="
        assert (answer["connection"] or "").lower() == "upgrade"
        assert (answer["upgrade"] or "").lower() == "websocket"
        for absent in ("content-length", "transfer-encoding", "sec-websocket-extensions"):
            assert answer[absent] is None
        assert answer["sec-websocket-protocol"] is None


@both
@pytest.mark.parametrize(
    ("changes", "status"),
    [
        (
            dict.fromkeys(["Upgrade", "Connection", "Sec-WebSocket-Version", "Sec-WebSocket-Key"]),
            400,
        ),
        ({"Connection": "close"}, 400),
        ({"Connection": None}, 400),
        ({"Upgrade": None}, 400),
        ({"Upgrade": "h2c"}, 400),
        ({"Sec-WebSocket-Key": None}, 400),
        ({"Sec-WebSocket-Key": ""}, 400),
        ({"Sec-WebSocket-Key": "eA=="}, 400),
        ({"Sec-WebSocket-Key": "not base64, whatever it is"}, 400),
        ({"Sec-WebSocket-Version": "12"}, 426),
        ({"Sec-WebSocket-Version": "14"}, 426),
        ({"Sec-WebSocket-Version": "thirteen"}, 426),
        ({"Sec-WebSocket-Version": None}, 426),
    ],
)
@deferred
async def test_badHandshakes(
    server: Server, kind: str, changes: dict[str, str | None], status: int
) -> None:
    """
    They are refused, and the connection can be used for something better.
    """
    application = recorder()
    echo, client = server.serve("echo", application), server.client
    path, stream = pathOf(echo, kind), await client.connect()
    answer = await client.upgrade(path, changes, on=stream)
    if status == 426 and changes["Sec-WebSocket-Version"] is None:
        assert answer.status in (400, 426)
    else:
        assert answer.status == status
    if answer.status == 426:
        assert answer["sec-websocket-version"] == "13"
    await answer.body()
    assert application.heard.isEmpty
    if changes.get("Connection") == "close":
        stream = await client.connect()
    socket = WebSocket(await client.upgrade(path, on=stream))
    assert socket.answer.status == 101
    if kind == "framed":
        assert await socket.message() == "o"
    await echoes(socket, kind)


@both
@pytest.mark.parametrize("headers", [{}, None], ids=["upgrade", "plain"])
@deferred
async def test_onlyGet(server: Server, kind: str, headers: dict[str, str] | None) -> None:
    path = pathOf(server.serve("echo"), kind)
    for method in ("POST", "PUT"):
        if headers is None:
            answer = await server.client.ask(method, path)
        else:
            answer = await server.client.upgrade(path, method=method)
        assert answer.status == 405
        assert "GET" in (answer["allow"] or "")
        assert answer["content-type"] is None
        assert await answer.body() == b""


@both
@deferred
async def test_notOverHTTP10(server: Server, kind: str) -> None:
    answer = await server.client.upgrade(pathOf(server.serve("echo"), kind), http="1.0")
    await assertRefused(answer, 400)


@deferred
async def test_notAnywhere(server: Server) -> None:
    echo = server.serve("echo")
    for suffix in ("//websocket", "/a/websocket", "/a./a/websocket", "/a/a./websocket", "/a/a/a"):
        await assertRefused(await server.client.upgrade(echo + suffix), 404)


@both
@deferred
async def test_inOneBreath(server: Server, kind: str) -> None:
    """
    What comes together with the handshake is not lost.
    """
    path, stream = pathOf(server.serve("echo"), kind), await server.client.connect()
    early = WebSocket.__new__(WebSocket)
    early.stream = stream
    stream.transport.pauseProducing()
    headers = {name: value or "" for name, value in server.client.handshake().items()}
    server.client.request(stream, "GET", path, headers)
    early.send(spelled("early", kind))
    early.send(spelled("bird", kind))
    stream.transport.resumeProducing()
    socket = WebSocket(await server.client.answer(stream))
    said = [await socket.message() for _ in range(2 if kind == "raw" else 3)]
    assert said == (["early", "bird"] if kind == "raw" else ["o", 'a["early"]', 'a["bird"]'])


# Messages


@deferred
async def test_framed(server: Server) -> None:
    application = recorder()
    socket = await server.client.websocket(pathOf(server.serve("echo", application), "framed"))
    assert await socket.message() == "o"
    socket.send('["a"]')
    assert await socket.message() == 'a["a"]'
    socket.send(' [ "b" , "c" ] ')
    said = [await socket.message()]
    if said == ['a["b"]']:
        said.append(await socket.message())
    assert said in (['a["b","c"]'], ['a["b"]', 'a["c"]'])
    socket.send('"alone"')  # as sockjs-client never does, but others do
    assert await socket.message() == 'a["alone"]'
    assert await application.heard.next() == ("open", "websocket")
    for message in ("a", "b", "c", "alone"):
        assert await application.heard.next() == ("message", message)


@deferred
async def test_emptyFrames(server: Server) -> None:
    application = recorder()
    socket = await opened(server, server.serve("echo", application), "framed")
    for message in ("", "[]", " [ ] ", "[]"):
        socket.send(message)
    await echoes(socket, "framed", "a")
    assert await application.heard.next() == ("open", "websocket")
    assert await application.heard.next() == ("message", "a")


@deferred
async def test_raw(server: Server) -> None:
    """
    No open frame, no array: what is sent is what is meant.
    """
    application = recorder()
    socket = await server.client.websocket(server.serve("echo", application) + "/websocket")
    messages = ["Hello world!\uffff", "", '["a"]', '["a', "[]", "\0\r\n😀"]
    for message in messages:
        await echoes(socket, "raw", message)
    assert await application.heard.next() == ("open", "rawwebsocket")
    for message in messages:
        assert await application.heard.next() == ("message", message)


@deferred
async def test_binaryOnRaw(server: Server) -> None:
    application = recorder()
    socket = await opened(server, server.serve("echo", application), "raw")
    data = bytes(range(256)) * 300
    for message in (data[:10], b"", b"\xff\xfe", data[:65535]):
        socket.send(message)
        assert await socket.message() == message
    await application.heard.next()
    assert await application.heard.next() == ("message", data[:10])


@deferred
async def test_noBinaryOnFramed(server: Server) -> None:
    """
    SockJS has text only: 1003, cannot accept that.
    """
    application = recorder()
    socket = await opened(server, server.serve("echo", application), "framed")
    socket.send(b'["a"]')
    assert (await socket.closed())[0] == 1003
    assert await application.heard.next() == ("open", "websocket")
    assert (await application.heard.next())[0] == "close"


@pytest.mark.parametrize(
    "message", ['["a', "[", "5", "{}", "null", "true", '["a",]', '["a"]["b"]', '["a"] x', "x"]
)
@deferred
async def test_brokenMessages(server: Server, message: str) -> None:
    """
    They end the connection, and nothing of them is delivered.
    """
    application = recorder()
    socket = await opened(server, server.serve("echo", application), "framed")
    socket.send(message)
    frame = await socket.receive()
    if frame.opcode == TEXT:
        assert re.fullmatch(rb'c\[3000,"[^"]*"\]', frame.payload)
        frame = await socket.receive()
    assert frame.opcode == CLOSE
    code = int.from_bytes(frame.payload[:2], "big")
    assert code in (1002, 1003, 1007, 1008, 3000)
    socket.frame(CLOSE, frame.payload)
    assert await socket.stream.rest() == b""
    assert await application.heard.next() == ("open", "websocket")
    assert (await application.heard.next())[0] == "close"
    assert application.heard.isEmpty


@both
@deferred
async def test_fragments(server: Server, kind: str) -> None:
    """
    A message may come in pieces, torn anywhere, and control frames between them.
    """
    socket = await opened(server, server.serve("echo"), kind)
    whole = spelled("gr\u00fc\u00df 😀" * 100, kind)
    data = (
        whole.encode()
        if kind == "raw"
        else json.dumps(json.loads(whole), ensure_ascii=False).encode()
    )
    for size in (1, 2, 7, 100, len(data)):
        parts = [data[at : at + size] for at in range(0, len(data), size)]
        socket.frame(TEXT, parts[0], final=False)
        for number, part in enumerate(parts[1:]):
            if number in (0, 50):
                socket.frame(PING, b"%d" % number)
            socket.frame(CONTINUATION, part, final=False)
        socket.frame(CONTINUATION, b"")
        frames = [await socket.receive()]
        while frames[-1].opcode == PONG:
            frames.append(await socket.receive())
        assert [frame.payload for frame in frames[:-1]] == [b"0", b"50"][: len(frames) - 1]
        if len(parts) > 52:
            assert len(frames) == 3
        said = frames[-1].payload.decode()
        assert json.loads(said[1:]) == json.loads(data) if kind == "framed" else said == whole


@deferred
async def test_binaryFragments(server: Server) -> None:
    socket = await opened(server, server.serve("echo"), "raw")
    socket.frame(BINARY, b"\xff", final=False)
    socket.frame(CONTINUATION, b"", final=False)
    socket.frame(CONTINUATION, b"\xfe")
    assert await socket.receive() == Frame(BINARY, b"\xff\xfe")


@both
@deferred
async def test_byteByByte(server: Server, kind: str) -> None:
    """
    However the network cuts it.
    """
    socket = await opened(server, server.serve("echo"), kind)
    kept: list[bytes] = []
    write, socket.stream.write = socket.stream.write, kept.append  # type: ignore[method-assign]
    socket.send(spelled("x" * 200, kind))
    socket.frame(PING, b"p")
    socket.stream.transport.setTcpNoDelay(True)
    for byte in b"".join(kept):
        write(bytes([byte]))
        await turn()
    said = await socket.message()
    assert said == ("x" * 200 if kind == "raw" else f'a["{"x" * 200}"]')
    assert await socket.receive() == Frame(PONG, b"p")


@both
@deferred
async def test_pings(server: Server, kind: str) -> None:
    """
    Each is answered with what it says; a pong that nobody asked for is not.
    """
    socket = await opened(server, server.serve("echo"), kind)
    for payload in (b"", b"x", b"\xff" * 125):
        socket.frame(PING, payload)
        assert await socket.receive() == Frame(PONG, payload)
    socket.frame(PONG, b"unasked")
    await echoes(socket, kind)


# What breaks the rules


@both
@pytest.mark.parametrize(
    ("frames", "code"),
    [
        ([{"opcode": TEXT, "payload": b'["a"]', "masked": False}], 1002),
        ([{"opcode": PING, "masked": False}], 1002),
        ([{"opcode": CONTINUATION, "payload": b"x"}], 1002),
        (
            [{"opcode": TEXT, "payload": b"[", "final": False}, {"opcode": TEXT, "payload": b"]"}],
            1002,
        ),
        ([{"opcode": TEXT, "payload": b"[]", "reserved": 4}], 1002),
        ([{"opcode": TEXT, "payload": b"[]", "reserved": 2}], 1002),
        ([{"opcode": TEXT, "payload": b"[]", "reserved": 1}], 1002),
        ([{"opcode": 3, "payload": b"[]"}], 1002),
        ([{"opcode": 11}], 1002),
        ([{"opcode": PING, "final": False}], 1002),
        ([{"opcode": PING, "payload": b"x" * 126}], 1002),
        ([{"opcode": CLOSE, "payload": b"x"}], 1002),
        ([{"opcode": CLOSE, "payload": (1005).to_bytes(2, "big")}], 1002),
        ([{"opcode": CLOSE, "payload": (1006).to_bytes(2, "big")}], 1002),
        ([{"opcode": CLOSE, "payload": (1015).to_bytes(2, "big")}], 1002),
        ([{"opcode": CLOSE, "payload": (999).to_bytes(2, "big")}], 1002),
        ([{"opcode": CLOSE, "payload": (0).to_bytes(2, "big")}], 1002),
        ([{"opcode": CLOSE, "payload": (5000).to_bytes(2, "big")}], 1002),
        ([{"opcode": CLOSE, "payload": (65535).to_bytes(2, "big")}], 1002),
        ([{"opcode": CLOSE, "payload": (1000).to_bytes(2, "big") + b"\xff"}], 1007),
        ([{"opcode": TEXT, "payload": b'["\xff"]'}], 1007),
        ([{"opcode": TEXT, "payload": b'["\xed\xa0\x80"]'}], 1007),
        ([{"opcode": TEXT, "payload": b'["\xc0\x80"]'}], 1007),
        ([{"opcode": TEXT, "payload": b'["\xf4\x90\x80\x80"]'}], 1007),
        ([{"opcode": TEXT, "payload": b'["\xe2\x82'}], 1007),
        (
            [
                {"opcode": TEXT, "payload": b'["\xe2', "final": False},
                {"opcode": CONTINUATION, "payload": b'"]'},
            ],
            1007,
        ),
    ],
    ids=lambda value: None if isinstance(value, list) else str(value),
)
@deferred
async def test_violations(
    server: Server, kind: str, frames: list[dict[str, Any]], code: int
) -> None:
    """
    1002 for the protocol's rules, 1007 for text that is no UTF-8; nothing of it
    is delivered.
    """
    application = recorder()
    socket = await opened(server, server.serve("echo", application), kind)
    for frame in frames:
        socket.frame(**frame)
    found, _ = await socket.closed()
    assert found == code
    assert await application.heard.next() == (
        "open",
        "websocket" if kind == "framed" else "rawwebsocket",
    )
    assert (await application.heard.next())[0] == "close"
    assert application.heard.isEmpty


@both
@deferred
async def test_utf8FailsFast(server: Server, kind: str) -> None:
    """
    A message that cannot become valid need not be complete.
    """
    socket = await opened(server, server.serve("echo"), kind)
    socket.frame(TEXT, b'["\xff', final=False)
    assert (await socket.closed())[0] == 1007


# Size


@both
@deferred
async def test_largest(server: Server, kind: str) -> None:
    """
    Bytes count, not characters; the largest goes through, in one piece or many.
    """
    echo = server.serve("echo", maxMessageBytes=1024)
    socket = await opened(server, echo, kind)
    framing = 0 if kind == "raw" else 4
    largest = "\u00e9" * ((1024 - framing) // 2)
    for size in (1024, 100):
        data = (largest if kind == "raw" else f'["{largest}"]').encode()
        assert len(data) == 1024
        parts = [data[at : at + size] for at in range(0, len(data), size)]
        for number, part in enumerate(parts):
            opcode = CONTINUATION if number else TEXT
            socket.frame(opcode, part, final=number == len(parts) - 1)
        said = (await socket.receive()).payload.decode()
        assert (said if kind == "raw" else json.loads(said[1:])[0]) == largest


@both
@pytest.mark.parametrize("how", ["whole", "fragments", "claimed", "many"])
@deferred
async def test_tooLarge(server: Server, kind: str, how: str) -> None:
    """
    1009 as soon as it is too much: nobody waits for the rest of it.
    """
    application = recorder()
    socket = await opened(server, server.serve("echo", application, maxMessageBytes=1024), kind)
    if how == "whole":
        socket.send(spelled("x" * 1100, kind))
    elif how == "fragments":
        socket.frame(TEXT, b'["' + b"x" * 600, final=False)
        socket.frame(CONTINUATION, b"x" * 600, final=False)
    elif how == "claimed":
        socket.frame(TEXT, b'["' + b"x" * 1100, length=1 << 40)
    else:
        socket.frame(TEXT, b'["', final=False)
        for _ in range(1100):
            socket.frame(CONTINUATION, b"x", final=False)
    assert (await socket.closed())[0] == 1009
    assert (await application.heard.next())[0] == "open"
    kind_, code, _ = await application.heard.next()
    assert (kind_, code) == ("close", 1009)
    assert application.heard.isEmpty


@deferred
async def test_emptyFragmentsAreNothing(server: Server) -> None:
    """
    They do not add up to anything, in memory either.
    """
    socket = await opened(server, server.serve("echo"), "raw")
    socket.frame(TEXT, b"x", final=False)
    for _ in range(100):
        for _ in range(100):
            socket.frame(CONTINUATION, b"", final=False)
        socket.frame(PING)
        assert await socket.receive() == Frame(PONG, b"")
    socket.frame(CONTINUATION, b"y")
    assert await socket.message() == "xy"


# The end


@both
@pytest.mark.parametrize(
    ("code", "reason", "heard"),
    [
        (1000, "", (1000, "")),
        (1000, "bye", (1000, "bye")),
        (1001, "", (1001, "")),
        (3000, "", (3000, "")),
        (4321, "gr\u00fc\u00df 😀", (4321, "gr\u00fc\u00df 😀")),
        (4999, "x" * 123, (4999, "x" * 123)),
    ],
)
@deferred
async def test_closedByClient(
    server: Server, kind: str, code: int, reason: str, heard: tuple[int, str]
) -> None:
    """
    The application learns the code; the server says it back and hangs up.
    """
    application = recorder()
    socket = await opened(server, server.serve("echo", application), kind)
    socket.send(spelled("last", kind))
    socket.close(code, reason)
    await socket.message()
    assert (await socket.closed())[0] == code
    assert (await application.heard.next())[0] == "open"
    assert await application.heard.next() == ("message", "last")
    assert await application.heard.next() == ("close", *heard)
    assert application.heard.isEmpty
    assert application.made[0].isClosed
    why = application.made[0].closeReason
    assert (why.code, why.reason, why.forced) == (*heard, True)


@both
@deferred
async def test_closedByClientWithoutACode(server: Server, kind: str) -> None:
    application = recorder()
    socket = await opened(server, server.serve("echo", application), kind)
    socket.close(None)
    assert await socket.closed() in ((None, ""), (1000, ""))
    assert (await application.heard.next())[0] == "open"
    kind_, code, _ = await application.heard.next()
    assert kind_ == "close" and code in (1000, 1005)


@both
@deferred
async def test_closedByTheNetwork(server: Server, kind: str) -> None:
    application = recorder()
    for end in (Stream.abort, lambda stream: stream.transport.loseConnection()):
        socket = await opened(server, server.serve("echo", application), kind)
        end(socket.stream)
        assert (await application.heard.next())[0] == "open"
        kind_, code, _ = await application.heard.next()
        assert kind_ == "close" and code in (1002, 1006)
        assert application.heard.isEmpty


@deferred
async def test_closedByServerFramed(server: Server) -> None:
    """
    SockJS's own frame says it; then the websocket ends cleanly.
    """
    socket = await opened(server, server.serve("close", Closing), "framed")
    assert await socket.message() == 'c[3000,"Go away!"]'
    assert (await socket.closed())[0] in (1000, 3000)


@deferred
async def test_closedByServerRaw(server: Server) -> None:
    class Parting(SockJSConnection):
        def onOpen(self, info: Any) -> None:
            self.send("bye")
            self.close(4001, "gr\u00fc\u00df 😀")
            self.send("never")

    socket = await opened(server, server.serve("close", Closing), "raw")
    assert await socket.closed() == (3000, "Go away!")
    socket = await opened(server, server.serve("parting", Parting), "raw")
    assert await socket.message() == "bye"
    assert await socket.closed() == (4001, "gr\u00fc\u00df 😀")


@both
@deferred
async def test_nothingAfterTheEnd(server: Server, kind: str) -> None:
    """
    What the client had sent before it saw the close is not delivered; what
    the application says at the end goes nowhere. It hears of it once.
    """

    class Talkative(Recorder):
        heard = recorder().heard
        made: list[Any] = []  # noqa: RUF012

        def onMessage(self, message: str | bytes) -> None:
            self.heard.put("message", message)
            self.close(3005, "first")

        def onClose(self, code: int, reason: str) -> None:
            super().onClose(code, reason)
            self.send("too late")
            self.close(3006, "again")
            self.heard.put("done")

    path = server.serve("talkative", Talkative)
    socket = await opened(server, path, kind)
    socket.send(spelled("one", kind))
    socket.send(spelled("two", kind))
    if kind == "framed":
        assert await socket.message() == 'c[3005,"first"]'
    assert (await socket.closed())[0] in (1000, 3005)
    events = [await Talkative.heard.next() for _ in range(4)]
    assert events[1:] == [("message", "one"), ("close", 3005, "first"), ("done",)]

    socket = await opened(server, path, kind)
    socket.close(4000, "mine")
    assert (await socket.closed())[0] == 4000
    events = [await Talkative.heard.next() for _ in range(3)]
    assert events[1:] == [("close", 4000, "mine"), ("done",)]

    socket = await opened(server, path, kind)
    socket.stream.abort()
    events = [await Talkative.heard.next() for _ in range(3)]
    assert events[1][0] == "close" and events[2] == ("done",)
    assert Talkative.heard.isEmpty


@both
@deferred
async def test_aClientThatDoesNotHangUp(server: Server, kind: str) -> None:
    """
    The server has closed; the client's answer never comes. The connection does
    not stay for ever.
    """
    clock = Clock()
    application = recorder()
    socket = await opened(server, server.serve("echo", application, reactor=clock), kind)
    application.made[0].close(3000, "go")
    while (await socket.receive()).opcode != CLOSE:
        pass
    clock.pump([1.0] * 60)
    assert await socket.stream.rest() == b""


@deferred
async def test_theSameIdTwice(server: Server) -> None:
    """
    A websocket is a session of its own, whatever it calls itself.
    """
    client, one = server.client, session(server.serve("echo"))
    first = await client.websocket(f"{one}/websocket")
    second = await client.websocket(f"{one}/websocket")
    assert [await first.message(), await second.message()] == ["o", "o"]
    assert await client.poll(one) == b"o\n"
    await echoes(first, "framed", "a")
    await echoes(second, "framed", "b")
    first.close()
    assert (await first.closed())[0] == 1000
    await echoes(second, "framed", "c")
    third = await client.websocket(f"{one}/websocket")
    assert await third.message() == "o"
    await echoes(third, "framed", "d")
    await client.send(one, '["e"]')
    assert await client.poll(one) == b'a["e"]\n'


# Heartbeats


@both
@deferred
async def test_heartbeat(server: Server, kind: str) -> None:
    """
    A ping after 25 seconds of silence; on the raw websocket nothing but that.
    """
    clock, application = Clock(), recorder()
    socket = await opened(server, server.serve("echo", application, reactor=clock), kind)
    for _ in range(2):
        for _ in range(3):  # not yet, and what is sent delays it
            clock.advance(24.9)
            application.made[0].send("x")
            assert await socket.message() in ("x", 'a["x"]')
        clock.advance(25.1)
        frame = await socket.receive()
        if kind == "framed" and frame == Frame(TEXT, b"h"):
            frame = await socket.receive()
        assert frame.opcode == PING
        socket.frame(PONG, frame.payload)
        await echoes(socket, kind)
    assert not application.made[0].isClosed


@both
@deferred
async def test_pingTimeout(server: Server, kind: str) -> None:
    """
    A client that does not answer is gone.
    """
    clock, application = Clock(), recorder()
    echo = server.serve("echo", application, reactor=clock, heartbeat=10.0, pingTimeout=5.0)
    socket = await opened(server, echo, kind)
    clock.advance(10.1)
    while (frame := await socket.receive()).opcode != PING:
        assert (kind, frame.payload) == ("framed", b"h")
    clock.advance(4.8)
    assert not application.made[0].isClosed
    clock.advance(0.3)
    assert (await application.heard.next())[0] == "open"
    kind_, code, _ = await application.heard.next()
    assert (kind_, code) == ("close", 1006)
    assert application.made[0].closeReason.forced is False
    try:
        await socket.stream.rest()
    except Lost:
        pass
    assert socket.stream.isLost


@both
@deferred
async def test_anySignWillDo(server: Server, kind: str) -> None:
    """
    A client that talks is there, though its pong may be long in coming.
    """
    clock, application = Clock(), recorder()
    echo = server.serve("echo", application, reactor=clock, heartbeat=10.0, pingTimeout=5.0)
    socket = await opened(server, echo, kind)
    clock.advance(10.1)
    while (await socket.receive()).opcode != PING:
        pass
    await echoes(socket, kind)
    clock.advance(5.1)
    await echoes(socket, kind)
    assert not application.made[0].isClosed


# Compression


class Deflating:
    """
    A client's side of permessage-deflate, as it was agreed.
    """

    def __init__(self, agreed: str | None) -> None:
        name, *self._parameters = [part.strip() for part in (agreed or "").split(";")]
        assert name == "permessage-deflate"
        self._out = zlib.compressobj(wbits=-15)
        self._in = zlib.decompressobj(wbits=-15)

    def pack(self, message: str) -> bytes:
        packed = self._out.compress(message.encode()) + self._out.flush(zlib.Z_SYNC_FLUSH)
        if "client_no_context_takeover" in self._parameters:
            self._out = zlib.compressobj(wbits=-15)
        return packed.removesuffix(b"\0\0\xff\xff")

    def unpack(self, frame: Frame) -> str:
        assert frame.opcode == TEXT, frame
        return self.expand(frame).decode()

    def expand(self, frame: Frame) -> bytes:
        assert frame.final and frame.reserved in (0, 4), frame
        if not frame.reserved:
            return frame.payload
        data = self._in.decompress(frame.payload + b"\0\0\xff\xff")
        if "server_no_context_takeover" in self._parameters:
            self._in = zlib.decompressobj(wbits=-15)
        return data


OFFER = {"Sec-WebSocket-Extensions": "permessage-deflate; client_max_window_bits"}


async def deflating(server: Server, kind: str, application: Any = Echo) -> tuple[Any, Deflating]:
    """
    A websocket that compresses, and has been greeted.
    """
    service = server.serve("deflating", application, deflate=True)
    socket = await server.client.websocket(pathOf(service, kind), OFFER)
    side = Deflating(socket.answer["sec-websocket-extensions"])
    if kind == "framed":
        assert side.unpack(await socket.receive()) == "o"
    return socket, side


@both
@deferred
async def test_deflate(server: Server, kind: str) -> None:
    """
    Both directions, where it is on and asked for. What is not compressed is
    always allowed.
    """
    socket, side = await deflating(server, kind)
    text = "".join(str(number * number) for number in range(400))
    for _ in range(3):
        socket.frame(TEXT, side.pack(spelled(text, kind)), reserved=4)
        frame = await socket.receive()
        assert len(frame.payload) < len(text)
        assert side.unpack(frame) == (text if kind == "raw" else f'a["{text}"]')
    socket.send(spelled("plain", kind))
    assert "plain" in side.unpack(await socket.receive())
    socket.frame(TEXT, side.pack(spelled("packed", kind)), reserved=4)
    assert "packed" in side.unpack(await socket.receive())


@deferred
async def test_deflateRaw(server: Server) -> None:
    """
    Bytes stay bytes; what has no UTF-8 goes as without compression.
    """

    class Answers(SockJSConnection):
        def onMessage(self, message: str | bytes) -> None:
            self.send(message)
            self.send("a\ud800b")

    socket, side = await deflating(server, "raw", Answers)
    socket.frame(BINARY, b"\0\xff")
    frame = await socket.receive()
    assert (frame.opcode, side.expand(frame)) == (BINARY, b"\0\xff")
    assert side.unpack(await socket.receive()) == "a\ufffdb"


@both
@pytest.mark.parametrize("between", ["nothing", "ping"])
@deferred
async def test_deflateInPieces(server: Server, kind: str, between: str) -> None:
    """
    A ping between the pieces is none of them.
    """
    socket, side = await deflating(server, kind)
    for _ in range(2):
        packed = side.pack(spelled("pieces", kind))
        socket.frame(TEXT, packed[:4], final=False, reserved=4)
        if between == "ping":
            socket.frame(PING, b"between")
            assert await socket.receive() == Frame(PONG, b"between")
        socket.frame(CONTINUATION, packed[4:], final=False)
        socket.frame(CONTINUATION, b"")
        assert side.unpack(await socket.receive()) == ("pieces" if kind == "raw" else 'a["pieces"]')


@both
@deferred
async def test_deflateIsOff(server: Server, kind: str) -> None:
    socket = await server.client.websocket(pathOf(server.serve("echo"), kind), OFFER)
    assert socket.answer["sec-websocket-extensions"] is None
    on = server.serve("on", deflate=True)
    for offer in ({}, {"Sec-WebSocket-Extensions": "x-webkit-deflate-frame, bogus; a=1"}):
        socket = await server.client.websocket(pathOf(on, kind), offer)
        assert socket.answer["sec-websocket-extensions"] is None


@both
@pytest.mark.parametrize(
    "offer",
    [
        "permessage-deflate; server_max_window_bits=7",
        "permessage-deflate; server_max_window_bits=x",
        "permessage-deflate; client_max_window_bits=99",
        "permessage-deflate; bogus",
        "permessage-deflate; =",
        ";;;,,,===",
        "permessage-deflate; server_max_window_bits=" + "9" * 5000,
    ],
)
@deferred
async def test_badOffers(server: Server, kind: str, offer: str) -> None:
    """
    An offer that cannot be is not taken; the websocket opens without it, or is
    refused in good order.
    """
    echo = server.serve("echo", deflate=True)
    answer = await server.client.upgrade(
        pathOf(echo, kind), {"Sec-WebSocket-Extensions": offer[:8000]}
    )
    if answer.status != 101:
        await assertRefused(answer, 400)
    else:
        assert answer["sec-websocket-extensions"] is None
        socket = WebSocket(answer)
        if kind == "framed":
            assert await socket.message() == "o"
        await echoes(socket, kind)


@deferred
async def test_quotedOffer(server: Server) -> None:
    """
    A number may be in quotes (RFC 7692, 7.1.2.1).
    """
    echo = server.serve("echo", deflate=True, maxSessions=1)
    for size in '"9"', '"15"', "15":
        parts = ["permessage-deflate", f"server_max_window_bits={size}"]
        parts.append(f"client_max_window_bits={size}")
        offer = {"Sec-WebSocket-Extensions": "; ".join(parts)}
        socket = await server.client.websocket(f"{session(echo)}/websocket", offer)
        side = Deflating(socket.answer["sec-websocket-extensions"])
        assert side.unpack(await socket.receive()) == "o"
        socket.close()
        await socket.closed()


@both
@deferred
async def test_deflateBroken(server: Server, kind: str) -> None:
    """
    What does not inflate ends the connection.
    """
    socket, _ = await deflating(server, kind)
    socket.frame(TEXT, b"\xff" * 40, reserved=4)
    assert (await socket.closed())[0] in (1002, 1007)


@both
@deferred
async def test_deflateBomb(server: Server, kind: str) -> None:
    """
    It is the size of what comes out that counts, and no more than that comes
    out.
    """
    application = recorder()
    socket, _ = await deflating(server, kind, application)
    packing, packed = zlib.compressobj(9, wbits=-15), []
    for _ in range(32):
        packed.append(packing.compress(b"x" * MIB))
    bomb = b"".join(packed) + packing.flush(zlib.Z_SYNC_FLUSH)
    assert len(bomb) < 65536  # packed it is not too large
    tracemalloc.start()
    try:
        socket.frame(TEXT, bomb, reserved=4)
        assert (await socket.closed())[0] == 1009
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 * MIB
    assert (await application.heard.next())[0] == "open"
    assert (await application.heard.next())[:2] == ("close", 1009)


# A client that does not read


def unsent(server: Server, stream: Stream) -> int:
    """
    The bytes that the server still holds for a client.
    """
    ours = stream.transport.getHost()
    for one in server.connections():
        if one.getPeer() == ours:
            held: int = len(one.dataBuffer) - one.offset + one._tempDataLen
            return held
    return 0


@both
@deferred
async def test_aClientThatDoesNotRead(server: Server, kind: str) -> None:
    """
    What waits for it is bounded; then it is closed.
    """
    application = recorder()
    echo = server.serve("echo", application, maxQueueBytes=MIB)
    socket = await opened(server, echo, kind)
    (connection,) = application.made
    socket.stream.transport.pauseProducing()
    sent, held = 0, 0
    while not connection.isClosed and sent < 64 * MIB:
        connection.send("x" * 65536)
        sent += 65536
        await turn()
        held = max(held, unsent(server, socket.stream))
    assert connection.isClosed
    assert held < 2 * MIB
    assert (await application.heard.next())[0] == "open"
    event = await application.heard.next()
    assert event[0] == "close" and event[1] in (1008, 1009, 1013)
    assert application.heard.isEmpty
    socket.stream.transport.resumeProducing()
    while not socket.stream.isLost:
        await socket.stream.rest()


@both
@deferred
async def test_dropOldest(server: Server, kind: str) -> None:
    """
    It loses the oldest of what waited, and stays.
    """
    application = recorder()
    echo = server.serve("echo", application, maxQueueBytes=MIB, overflow="dropOldest")
    socket = await opened(server, echo, kind)
    (connection,) = application.made
    socket.stream.transport.pauseProducing()
    many = 512
    for number in range(many):
        connection.send(f"<{number}>" + "x" * 65536)
        await turn()
        assert unsent(server, socket.stream) < 2 * MIB
    assert not connection.isClosed
    socket.stream.transport.resumeProducing()
    found: list[int] = []
    while not found or found[-1] != many - 1:
        frame = await socket.receive()
        found += map(int, re.findall(rb"<([0-9]+)>", frame.payload))
    assert found == sorted(set(found))
    assert found[0] == 0
    assert 16 <= len(found) < many
    assert found[-15:] == list(range(many - 15, many))  # the newest MiB, framing apart
    await echoes(socket, kind)


@both
@deferred
async def test_aProducerIsPaused(server: Server, kind: str) -> None:
    """
    An application that produces as told never fills the queue.
    """
    told: list[str] = []

    class Producer:
        def pauseProducing(self) -> None:
            told.append("pause")

        def resumeProducing(self) -> None:
            told.append("resume")

        def stopProducing(self) -> None:
            told.append("stop")

    application = recorder()
    socket = await opened(server, server.serve("echo", application), kind)
    (connection,) = application.made
    connection.registerProducer(Producer(), True)
    socket.stream.transport.pauseProducing()
    sent = 0
    while not told and sent < 1024:
        connection.send(f"<{sent}>" + "x" * 65536)
        sent += 1
        await turn()
    assert told == ["pause"]
    assert not connection.isClosed
    socket.stream.transport.resumeProducing()
    found: list[int] = []
    while len(found) < sent:
        frame = await socket.receive()
        found += map(int, re.findall(rb"<([0-9]+)>", frame.payload))
    assert found == list(range(sent))
    await until(lambda: len(told) == 2)
    assert told == ["pause", "resume"]
    socket.close()
    await socket.closed()
    assert told == ["pause", "resume", "stop"]


@both
@deferred
async def test_pingsOfAClientThatDoesNotRead(server: Server, kind: str) -> None:
    """
    The answers do not pile up either; the last is given.
    """
    socket = await opened(server, server.serve("echo"), kind)
    socket.stream.transport.pauseProducing()
    held = 0
    for _ in range(32 * MIB // (131 * 512)):
        for _ in range(512):
            socket.frame(PING, b"p" * 125)
        await turn()
        held = max(held, unsent(server, socket.stream))
        if socket.stream.isLost:
            break
    socket.frame(PING, b"last")
    for _ in range(1000):
        await turn()
    held = max(held, unsent(server, socket.stream))
    assert held < 4 * MIB
    socket.stream.transport.resumeProducing()
    while (await socket.receive()) != Frame(PONG, b"last"):
        pass


@both
@deferred
async def test_anApplicationThatIsSlow(server: Server, kind: str) -> None:
    """
    A client is read no faster than the application follows: messages wait
    outside, in order, and none is lost.
    """
    waiting: list[Any] = []
    seen: list[str] = []

    class Slow(Echo):
        async def onMessage(self, message: str | bytes) -> None:  # type: ignore[override]
            seen.append(str(message)[:8])
            pause: Deferred[None] = Deferred()
            waiting.append(pause)
            await pause

    socket = await opened(server, server.serve("slow", Slow), kind)
    many = 400
    for number in range(many):
        socket.send(spelled(f"{number:08}" + "x" * 60000, kind))
    for _ in range(2000):
        await turn()
    assert seen == ["00000000"]
    assert socket.stream.transport.dataBuffer or socket.stream.transport._tempDataLen
    for _ in range(many):
        waiting.pop().callback(None)
        await until(lambda: waiting or len(seen) == many)
    assert seen == [f"{number:08}" for number in range(many)]


@both
@deferred
async def test_whoIsNotReadCannotAnswer(server: Server, kind: str) -> None:
    """
    While the application is busy and the client is not read, its silence is
    ours.
    """
    clock, busy = Clock(), Deferred[None]()
    told: list[Any] = []

    class Busy(SockJSConnection):
        async def onMessage(self, message: str | bytes) -> None:
            told.append(str(message)[:4])
            await busy

        def onClose(self, code: int, reason: str) -> None:
            told.append(code)

    service = server.serve("busy", Busy, reactor=clock)
    socket = await opened(server, service, kind)
    many = 200
    for number in range(many):
        socket.send(spelled(f"{number:04}" + "x" * 60000, kind))
    transport = socket.stream.transport
    for _ in range(500):
        await turn()
    assert transport.dataBuffer or transport._tempDataLen  # it is not read
    for _ in range(6):
        clock.advance(15.0)
        await turn()
    assert told == ["0000"]
    busy.callback(None)
    await until(lambda: len(told) == many)
    assert told == [f"{number:04}" for number in range(many)]
    # From then on it has to answer again.
    clock.pump([5.0] * 12)
    await until(lambda: len(told) > many)
    assert told[many:] == [1006]
