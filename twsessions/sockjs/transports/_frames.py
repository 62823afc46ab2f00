"""
The frames of a websocket (RFC 6455, 5): bytes in, events out.

wsproto knows them all. But most frames are short texts that arrive whole, and
those take a lane of their own, which is three times as fast. Each of the
others is handed to wsproto, to the byte.
"""

from __future__ import annotations

from typing import NamedTuple

from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import (
    BytesMessage,
    CloseConnection,
    Event,
    Message,
    Ping,
    Pong,
    TextMessage,
)
from wsproto.extensions import Extension
from wsproto.utilities import LocalProtocolError

from twsessions.sockjs.frames import utf8

__all__ = ["Broken", "Ended", "Frames", "Pinged", "binaryFrame", "textFrame"]

_SLICE = 1024  # bytes that may be inflated at once: a thousand times as many come out at most

_HEADS = [bytes((0x81, size)) for size in range(126)]


class Pinged(NamedTuple):
    """
    The client wants this back.
    """

    payload: bytes


class Ended(NamedTuple):
    """
    The client closes.

    @ivar code: 1005 if it gives none.
    """

    code: int
    reason: str


class Broken(NamedTuple):
    """
    The client breaks the protocol, or a limit; nothing more is read.
    """

    code: int
    reason: str


def textFrame(payload: bytes) -> bytes:
    """
    A message of text.
    """
    size = len(payload)
    if size < 126:
        return _HEADS[size] + payload
    return _head(0x81, size) + payload


def binaryFrame(payload: bytes) -> bytes:
    """
    A message of bytes.
    """
    return _head(0x82, len(payload)) + payload


def _head(first: int, size: int) -> bytes:
    if size < 126:
        return bytes((first, size))
    if size < 65536:
        return b"%c\x7e%b" % (first, size.to_bytes(2, "big"))
    return b"%c\x7f%b" % (first, size.to_bytes(8, "big"))


class Frames:
    """
    One connection's.
    """

    __slots__ = (
        "_control",
        "_data",
        "_fragmented",
        "_limit",
        "_over",
        "_parts",
        "_rest",
        "_size",
        "_slow",
        "_way",
    )

    def __init__(self, limit: int, extensions: list[Extension]) -> None:
        """
        @param limit: bytes of a message.
        """
        self._limit = limit
        # Control frames are never compressed, and between the frames of a message
        # that is they confuse wsproto: they have a connection of their own.
        self._control = self._data = Connection(ConnectionType.SERVER)
        if extensions:
            self._data = Connection(ConnectionType.SERVER, extensions)
        self._rest = b""  # of a header that has not arrived whole
        self._slow = 0  # bytes that wsproto has yet to get of the frame under way
        self._way = self._control  # which of them
        self._fragmented = False  # a message is, whose last frame has not begun
        self._size = 0  # of that message, so far
        self._parts: list[str] | list[bytes] = []
        self._over = False

    def receive(self, data: bytes) -> list[str | bytes | Pinged | Ended | Broken]:
        """
        What the client says: messages (C{str} or C{bytes}), a L{Pinged}, an
        L{Ended} or a L{Broken}; pongs are left out.
        """
        events: list[str | bytes | Pinged | Ended | Broken] = []
        if self._rest:
            data = self._rest + data
            self._rest = b""
        at, end = 0, len(data)
        while at < end and not self._over:
            if self._slow:
                part = data[at : at + self._slow]
                at += len(part)
                self._slow -= len(part)
                self._feed(part, events)
                continue
            if end - at >= 2 and data[at + 1] < 0x80:
                self._break(1002, "A frame is not masked", events)
                break
            if end - at < 6:  # no frame is shorter
                self._rest = data[at:]
                break
            first, second = data[at], data[at + 1]
            size = second & 0x7F
            start = at + 6
            if size >= 126:
                wide = 2 if size == 126 else 8
                start += wide
                if end < start:
                    self._rest = data[at:]
                    break
                size = int.from_bytes(data[at + 2 : at + 2 + wide], "big")
            if first & 0x0F < 8:
                if self._size + size > self._limit:
                    self._break(1009, "The message is too big", events)
                    break
                if (
                    first == 0x81
                    and start + size <= end
                    and (size < 126 or (second == 0xFE and size < 65536))
                    and not self._fragmented
                ):
                    # The fast lane: a whole text.
                    mask = data[start - 4 : start] * (size // 4 + 1)
                    at = start + size
                    number = int.from_bytes(data[start:at], "big")
                    number ^= int.from_bytes(mask[:size], "big")
                    try:
                        events.append(number.to_bytes(size, "big").decode("utf-8"))
                    except UnicodeDecodeError:
                        self._break(1007, "The text is not UTF-8", events)
                    continue
                self._fragmented = first < 0x80
                self._way = self._data
                if self._data is self._control:
                    self._size += size
            else:
                self._way = self._control
            self._slow = start - at + size
        return events

    def _feed(self, data: bytes, events: list[str | bytes | Pinged | Ended | Broken]) -> None:
        way = self._way
        step = _SLICE if way is not self._control else len(data)
        for at in range(0, len(data), step):
            way.receive_data(data[at : at + step])
            for event in way.events():
                self._happened(event, events)
                if self._over:
                    return

    def _happened(self, event: Event, events: list[str | bytes | Pinged | Ended | Broken]) -> None:
        if isinstance(event, Message):
            data = event.data
            if data:
                if self._data is not self._control:  # only now it is known
                    self._size += len(utf8(data) if isinstance(data, str) else data)
                    if self._size > self._limit:
                        self._break(1009, "The message is too big", events)
                        return
                self._parts.append(data)
            if event.message_finished:
                empty: str | bytes = "" if isinstance(event, TextMessage) else b""
                events.append(empty.join(self._parts))  # type: ignore[arg-type]
                self._parts = []
                self._size = 0
        elif isinstance(event, Ping):
            events.append(Pinged(bytes(event.payload)))
        elif isinstance(event, CloseConnection):
            self._over = True
            if self._way.state in (ConnectionState.REMOTE_CLOSING, ConnectionState.CLOSED):
                events.append(Ended(int(event.code), event.reason or ""))
            else:  # what it could not read
                events.append(Broken(int(event.code), "Broken framing"))

    def _break(
        self, code: int, reason: str, events: list[str | bytes | Pinged | Ended | Broken]
    ) -> None:
        self._over = True
        events.append(Broken(code, reason))

    # -- what goes out --------------------------------------------------------

    def deflated(self, message: str | bytes) -> bytes:
        """
        A message, compressed.
        """
        event = TextMessage(message) if isinstance(message, str) else BytesMessage(message)
        return bytes(self._data.send(event))

    def ping(self) -> bytes:
        """
        Ask for a sign of life.
        """
        return self._send(Ping())

    def pong(self, payload: bytes) -> bytes:
        """
        Give one.
        """
        return self._send(Pong(payload))

    def close(self, code: int, reason: str) -> bytes:
        """
        The last frame.
        """
        return self._send(CloseConnection(code, utf8(reason).decode("utf-8")))

    def _send(self, event: Event) -> bytes:
        try:
            return bytes(self._control.send(event))
        except LocalProtocolError:  # it is closed
            return b""
