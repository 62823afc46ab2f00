"""
SockJS over TLS: websockets, and HTTP/2 for the other transports; bound to a
session whose cookie is a secure one.
"""

from __future__ import annotations

import base64
import os
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest_twisted
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, Event, ResponseReceived, StreamEnded
from twisted.internet import reactor
from twisted.internet.endpoints import serverFromString
from twisted.internet.threads import deferToThread
from twisted.web.resource import Resource
from wsproto.connection import Connection, ConnectionType
from wsproto.events import CloseConnection, Message, TextMessage

from twsessions import SessionSite
from twsessions.sockjs import SockJSConnection, SockJSResource
from twsessions.test.certificates import makeCertificates


class Echo(SockJSConnection):
    """
    Greets by name.
    """

    def onOpen(self, info: Any) -> None:
        self.send(f"{info.session['name']} {info.isSecure}")

    def onMessage(self, message: Any) -> None:
        self.send(message)


class Login(Resource):
    isLeaf = True

    def render_GET(self, request: Any) -> bytes:
        request.getSession()["name"] = "Ann"
        return b"hello"

    def render_POST(self, request: Any) -> bytes:
        request.getSession().logout()
        return b"bye"


class Place:
    """
    A server with TLS. Its clients wait in threads, as clients do.
    """

    def __init__(self, directory: Path) -> None:
        makeCertificates(directory)
        self.directory = directory
        root = Resource()
        root.putChild(b"login", Login())
        root.putChild(b"chat", SockJSResource(Echo, bound=True))
        self.site = SessionSite(root)
        self.port = 0
        self.listening: Any = None

    async def start(self) -> None:
        where = self.directory / "server"
        endpoint = serverFromString(
            reactor, f"ssl:0:interface=127.0.0.1:privateKey={where}.key:certKey={where}.pem"
        )
        self.listening = await endpoint.listen(self.site)
        self.port = self.listening.getHost().port

    def connect(self, protocol: str) -> ssl.SSLSocket:
        context = ssl.create_default_context(cafile=str(self.directory / "ca.pem"))
        context.set_alpn_protocols([protocol])
        plain = socket.create_connection(("127.0.0.1", self.port), timeout=20)
        secure = context.wrap_socket(plain, server_hostname="localhost")
        assert secure.selected_alpn_protocol() == protocol
        return secure

    def ask(self, method: str, path: str, cookie: str = "") -> tuple[str, str]:
        """
        One request over HTTP/1.1: the status line, and the cookie.
        """
        with self.connect("http/1.1") as wire:
            head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            wire.sendall(f"{head}Content-Length: 0\r\nCookie: {cookie}\r\n\r\n".encode())
            data = b""
            while more := wire.recv(65536):
                data += more
        lines = data.decode().split("\r\n")
        found = [line[12:].split(";")[0] for line in lines if line.startswith("Set-Cookie: ")]
        return lines[0], found[0] if found else ""


@pytest_twisted.async_yield_fixture
async def place(tmp_path: Path) -> Any:
    made = Place(tmp_path)
    await made.start()
    yield made
    await made.listening.stopListening()


class WebSocket:
    """
    A client over TLS.
    """

    def __init__(self, place: Place, cookie: str) -> None:
        self.wire = place.connect("http/1.1")
        key = base64.b64encode(os.urandom(16)).decode()
        self.wire.sendall(
            "GET /chat/0/one/websocket HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
            "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nOrigin: https://localhost\r\n"
            f"Sec-WebSocket-Key: {key}\r\nCookie: {cookie}\r\n\r\n".encode()
        )
        data = b""
        while b"\r\n\r\n" not in data:
            data += self.wire.recv(65536)
        head, _, rest = data.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 "), head
        self.frames = Connection(ConnectionType.CLIENT, trailing_data=rest)
        self.events = self._read()

    def _read(self) -> Iterator[Any]:
        while True:
            yield from self.frames.events()
            self.frames.receive_data(self.wire.recv(65536) or None)

    def say(self, text: str) -> None:
        self.wire.sendall(self.frames.send(TextMessage(text)))

    def hear(self) -> Any:
        event = next(self.events)
        if isinstance(event, Message):
            parts = [event.data]
            while not event.message_finished:
                event = next(self.events)
                parts.append(event.data)
            return "".join(parts)
        assert isinstance(event, CloseConnection)
        return int(event.code), event.reason


@pytest_twisted.ensureDeferred
async def test_webSocket(place: Place) -> None:
    """
    A secure websocket has the secure session, and ends with it.
    """

    def client() -> list[Any]:
        _, cookie = place.ask("GET", "/login")
        assert cookie.startswith("__Host-")
        line = WebSocket(place, cookie)
        heard = [line.hear(), line.hear()]
        for text in '["hi"]', '["' + "x" * 60_000 + '"]':
            line.say(text)
            heard.append(line.hear())
        place.ask("POST", "/login", cookie)
        heard += [line.hear(), line.hear()]
        line.wire.close()
        return heard

    opened, greeting, echo, big, closed, last = await deferToThread(client)
    assert (opened, greeting, echo) == ("o", 'a["Ann True"]', 'a["hi"]')
    assert big == 'a["' + "x" * 60_000 + '"]'
    assert closed == 'c[4001,"Session ended"]' and last == (1000, "Session ended")


class HTTP2:
    """
    A client of HTTP/2.
    """

    def __init__(self, place: Place, cookie: str) -> None:
        self.wire = place.connect("h2")
        self.cookie = cookie
        self.connection = H2Connection(H2Configuration(client_side=True))
        self.connection.initiate_connection()
        self.seen: dict[int, list[Event]] = {}

    def start(self, path: str, body: bytes = b"") -> int:
        """
        A POST; its stream.
        """
        stream: int = self.connection.get_next_available_stream_id()
        headers = [
            (":method", "POST"), (":path", path), (":scheme", "https"),
            (":authority", "localhost"), ("cookie", self.cookie),
            ("origin", "https://localhost"), ("content-length", str(len(body))),
        ]  # fmt: skip
        self.connection.send_headers(stream, headers, end_stream=not body)
        if body:
            self.connection.send_data(stream, body, end_stream=True)
        self.wire.sendall(self.connection.data_to_send())
        self.seen[stream] = []
        return stream

    def until(self, stream: int, holds: Callable[[list[Event]], bool]) -> None:
        while not holds(self.seen[stream]):
            data = self.wire.recv(65536)
            assert data, "the server has hung up"
            for event in self.connection.receive_data(data):
                if isinstance(event, DataReceived):
                    self.connection.acknowledge_received_data(
                        event.flow_controlled_length, event.stream_id
                    )
                if getattr(event, "stream_id", None) in self.seen:
                    self.seen[event.stream_id].append(event)
            self.wire.sendall(self.connection.data_to_send())

    def body(self, stream: int) -> bytes:
        return b"".join(one.data for one in self.seen[stream] if isinstance(one, DataReceived))

    def status(self, stream: int) -> bytes:
        self.until(stream, lambda seen: any(isinstance(one, StreamEnded) for one in seen))
        (response,) = [one for one in self.seen[stream] if isinstance(one, ResponseReceived)]
        return dict(response.headers)[b":status"]


@pytest_twisted.ensureDeferred
async def test_http2(place: Place) -> None:
    """
    Streams and polls go over one connection of HTTP/2.
    """

    def client() -> tuple[bytes, list[bytes], bytes]:
        _, cookie = place.ask("GET", "/login")
        two = HTTP2(place, cookie)
        stream = two.start("/chat/0/s/xhr_streaming")
        two.until(stream, lambda _: two.body(stream).endswith(b'a["Ann True"]\n'))
        codes = [two.status(two.start("/chat/0/s/xhr_send", b'["over two"]'))]
        two.until(stream, lambda _: two.body(stream).endswith(b'a["over two"]\n'))
        poll = two.start("/chat/0/p/xhr")
        codes.append(two.status(poll))
        codes.append(two.status(two.start("/chat/0/none/xhr_send", b'["x"]')))
        place.ask("POST", "/login", cookie)
        codes.append(two.status(stream))
        two.wire.close()
        return two.body(stream), codes, two.body(poll)

    streamed, codes, polled = await deferToThread(client)
    assert streamed.endswith(b'a["over two"]\nc[4001,"Session ended"]\n')
    assert codes == [b"204", b"200", b"404", b"200"] and polled == b"o\n"
