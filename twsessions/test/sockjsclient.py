"""
A client that sees what is on the wire: HTTP chunk by chunk, websockets frame
by frame.

It shares no code with the server, and it can break every rule of a protocol
on purpose.
"""

from __future__ import annotations

import os
from base64 import b64encode
from collections.abc import Callable, Mapping
from hashlib import sha1
from http.client import HTTPMessage, parse_headers
from io import BytesIO
from typing import Any, NamedTuple

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure

__all__ = [
    "PATIENCE",
    "BINARY",
    "CLOSE",
    "CONTINUATION",
    "PING",
    "PONG",
    "TEXT",
    "Answer",
    "Client",
    "Frame",
    "Lost",
    "Stream",
    "WebSocket",
    "turn",
    "until",
]

PATIENCE = 20.0  # seconds until something that does not come is a failure

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10


def turn(seconds: float = 0.0) -> Deferred[None]:
    """
    Let the reactor do what there is to do.
    """
    done: Deferred[None] = Deferred()
    reactor.callLater(seconds, done.callback, None)
    return done


async def until(happened: Callable[[], object]) -> None:
    """
    Let the reactor run until something has happened.
    """
    patience = reactor.seconds() + PATIENCE
    while not happened():
        assert reactor.seconds() < patience, "it does not happen"
        await turn()


class Lost(Exception):
    """
    The connection is gone.

    @ivar data: what had come and was not read.
    """

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.data = data


class Stream(Protocol):
    """
    A connection's bytes, to be waited for.
    """

    def __init__(self) -> None:
        self.isLost = False
        self._data = bytearray()
        self._waiting: Deferred[None] | None = None

    def dataReceived(self, data: bytes) -> None:
        self._data += data
        self._wake()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.isLost = True
        self._wake()

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.callback(None)

    async def _more(self) -> None:
        if self.isLost:
            raise Lost(bytes(self._data))
        waiting: Deferred[None] = Deferred()
        self._waiting = waiting
        await waiting.addTimeout(PATIENCE, reactor)

    def _take(self, count: int) -> bytes:
        taken = bytes(self._data[:count])
        del self._data[:count]
        return taken

    async def exactly(self, count: int) -> bytes:
        """
        That many bytes.
        """
        while len(self._data) < count:
            await self._more()
        return self._take(count)

    async def until(self, mark: bytes) -> bytes:
        """
        Bytes up to a mark, and the mark.
        """
        while mark not in self._data:
            await self._more()
        return self._take(self._data.index(mark) + len(mark))

    async def rest(self) -> bytes:
        """
        Bytes until the other side closes.
        """
        while not self.isLost:
            await self._more()
        return self._take(len(self._data))

    def write(self, data: bytes) -> None:
        self.transport.write(data)

    def abort(self) -> None:
        """
        Be gone, as a network that fails.
        """
        self.transport.abortConnection()


class Answer:
    """
    A response whose body is still to come.
    """

    def __init__(self, stream: Stream, start: str, headers: HTTPMessage) -> None:
        self.stream = stream
        self.version, status, *_ = start.split(" ")
        self.status = int(status)
        self.headers = headers

    def __getitem__(self, name: str) -> str | None:
        """
        A header; L{None} if it is not there.
        """
        return self.headers.get(name)

    async def chunk(self) -> bytes:
        """
        The next chunk, nothing at the end. Each frame is one.
        """
        assert self["transfer-encoding"] == "chunked"
        assert self["content-length"] is None
        size = int(await self.stream.until(b"\r\n"), 16)
        data = await self.stream.exactly(size)
        assert await self.stream.exactly(2) == b"\r\n"
        return data

    async def body(self) -> bytes:
        """
        All that is still to come.
        """
        if self.status in (204, 304):
            assert self["transfer-encoding"] is None
            assert self["content-length"] in (None, "0")
            return b""
        if self["content-length"] is not None:
            return await self.stream.exactly(int(self["content-length"]))
        if self["transfer-encoding"] is None:
            return await self.stream.rest()
        chunks = []
        while chunk := await self.chunk():
            chunks.append(chunk)
        return b"".join(chunks)


class Frame(NamedTuple):
    """
    A frame of a websocket; C{reserved} are its three bits.
    """

    opcode: int
    payload: bytes
    final: bool = True
    reserved: int = 0


class WebSocket:
    """
    A websocket that is open.
    """

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.stream = answer.stream
        self._closing = False

    def send(self, message: str | bytes) -> None:
        """
        Send a whole message.
        """
        if isinstance(message, str):
            self.frame(TEXT, message.encode())
        else:
            self.frame(BINARY, message)

    def close(self, code: int | None = 1000, reason: str = "") -> None:
        """
        Begin to close. L{None}: without a code.
        """
        self._closing = True
        payload = b"" if code is None else code.to_bytes(2, "big") + reason.encode()
        self.frame(CLOSE, payload)

    def frame(
        self,
        opcode: int,
        payload: bytes = b"",
        final: bool = True,
        reserved: int = 0,
        masked: bool = True,
        length: int | None = None,
    ) -> None:
        """
        Send one frame, which may be wrong in any way.

        @param length: what it claims; otherwise it tells the truth.
        """
        length = len(payload) if length is None else length
        head = bytes([final << 7 | reserved << 4 | opcode])
        if length < 126:
            head += bytes([masked << 7 | length])
        elif length < 65536:
            head += bytes([masked << 7 | 126]) + length.to_bytes(2, "big")
        else:
            head += bytes([masked << 7 | 127]) + length.to_bytes(8, "big")
        if masked:
            mask = os.urandom(4)
            payload = xor(payload, mask)
            head += mask
        self.stream.write(head + payload)

    async def receive(self) -> Frame:
        """
        The next frame.
        """
        first, second = await self.stream.exactly(2)
        assert not second & 128, "a server does not mask"
        length = second
        if length == 126:
            length = int.from_bytes(await self.stream.exactly(2), "big")
            assert length > 125, "not the shortest length"
        elif length == 127:
            length = int.from_bytes(await self.stream.exactly(8), "big")
            assert length > 65535, "not the shortest length"
        payload = await self.stream.exactly(length)
        return Frame(first & 15, payload, bool(first & 128), first >> 4 & 7)

    async def message(self) -> str | bytes:
        """
        The next frame, which is a whole message.
        """
        frame = await self.receive()
        assert frame.opcode in (TEXT, BINARY) and frame.final and not frame.reserved, frame
        return frame.payload.decode() if frame.opcode == TEXT else frame.payload

    async def closed(self) -> tuple[int | None, str]:
        """
        The code and reason in the close frame, which comes next; the server
        then ends the connection. L{None}: it says no code.
        """
        frame = await self.receive()
        assert frame.opcode == CLOSE and frame.final and not frame.reserved, frame
        if not self._closing:
            self._closing = True
            self.frame(CLOSE, frame.payload)
        assert await self.stream.rest() == b""
        if not frame.payload:
            return None, ""
        return int.from_bytes(frame.payload[:2], "big"), frame.payload[2:].decode()


def xor(data: bytes, mask: bytes) -> bytes:
    """
    Mask or unmask.
    """
    size = len(data)
    long = (mask * (size // 4 + 1))[:size]
    return (int.from_bytes(data, "big") ^ int.from_bytes(long, "big")).to_bytes(size, "big")


class Client:
    """
    Whoever talks to the server. Without C{on} each request has a connection
    of its own.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: list[Stream] = []

    async def connect(self) -> Stream:
        """
        A new connection.
        """
        endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", self._port)
        stream = await connectProtocol(endpoint, Stream())
        self._streams.append(stream)
        return stream

    def abort(self) -> None:
        """
        Leave no connection behind.
        """
        for stream in self._streams:
            if not stream.isLost:
                stream.abort()

    async def ask(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str] | None = None,
        body: str | bytes | None = None,
        http: str = "1.1",
        on: Stream | None = None,
    ) -> Answer:
        """
        Send a request, and wait for the head of its response.
        """
        stream = on or await self.connect()
        self.request(stream, method, path, headers, body, http)
        return await self.answer(stream)

    def request(
        self,
        stream: Stream,
        method: str,
        path: str,
        headers: Mapping[str, str] | None = None,
        body: str | bytes | None = None,
        http: str = "1.1",
    ) -> None:
        """
        Send a request and do not wait.
        """
        headers = headers or {}
        lines = [f"{method} {path} HTTP/{http}", f"Host: 127.0.0.1:{self._port}"]
        if isinstance(body, str):
            body = body.encode()
        if "Transfer-Encoding" not in headers and (method == "POST" or body is not None):
            body = body or b""
            lines.append(f"Content-Length: {len(body)}")
        lines += [f"{name}: {value}" for name, value in headers.items()]
        stream.write("\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b""))

    async def answer(self, stream: Stream) -> Answer:
        """
        The head of the next response.
        """
        start = await stream.until(b"\r\n")
        lines = []
        while not lines or lines[-1] != b"\r\n":
            lines.append(await stream.until(b"\r\n"))
        return Answer(stream, start.decode("latin-1"), parse_headers(BytesIO(b"".join(lines))))

    async def get(self, path: str, headers: Mapping[str, str] | None = None) -> Answer:
        return await self.ask("GET", path, headers)

    async def post(
        self, path: str, body: str | bytes = b"", headers: Mapping[str, str] | None = None
    ) -> Answer:
        return await self.ask("POST", path, headers, body)

    async def poll(self, path: str, **kwargs: Any) -> bytes:
        """
        What an xhr poll gives.
        """
        answer = await self.ask("POST", path + "/xhr", **kwargs)
        assert answer.status == 200, answer.status
        return await answer.body()

    async def send(self, path: str, *bodies: str) -> None:
        """
        Send messages by xhr.
        """
        for body in bodies:
            answer = await self.post(path + "/xhr_send", body)
            assert (answer.status, await answer.body()) == (204, b"")

    async def upgrade(
        self,
        path: str,
        headers: Mapping[str, str | None] | None = None,
        method: str = "GET",
        http: str = "1.1",
        on: Stream | None = None,
    ) -> Answer:
        """
        Ask for a websocket.

        @param headers: more of them, or others; L{None} leaves one out.
        """
        all = {**self.handshake(), **(headers or {})}
        wanted = {name: value for name, value in all.items() if value is not None}
        return await self.ask(method, path, wanted, None, http, on)

    @staticmethod
    def handshake() -> dict[str, str | None]:
        """
        The headers that ask for a websocket.
        """
        return {
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": b64encode(os.urandom(16)).decode(),
        }

    async def websocket(self, path: str, headers: Mapping[str, str] | None = None) -> WebSocket:
        """
        Open a websocket.
        """
        handshake = self.handshake()
        answer = await self.upgrade(path, {**handshake, **(headers or {})})
        assert answer.status == 101, answer.status
        key = f"{handshake['Sec-WebSocket-Key']}258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        accept = b64encode(sha1(key.encode()).digest()).decode()
        assert answer["sec-websocket-accept"] == accept
        return WebSocket(answer)
