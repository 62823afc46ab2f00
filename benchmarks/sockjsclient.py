"""
A client that keeps a SockJS server busy, and takes no answer but the one due.
"""

from __future__ import annotations

import itertools
import os
import select
import socket
import time
from collections.abc import Callable, Sequence

from benchmarks.client import spent

SIZE = 100  # of a message, in bytes
TURNS = 16  # a connection's messages, before it says the first again
PATIENCE = 30.0  # for an answer, in seconds
WARM = 100  # connections that are open before memory is looked at


class Line:
    """
    A connection that carries one SockJS session, opened.

    @param opening: the request.
    @param status: of the response.
    @param opened: the last bytes that come for it.
    @ivar due: what the server is to say next.
    """

    due = b""

    def __init__(self, port: int, opening: bytes, status: bytes, opened: bytes) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.sendall(opening)
        self.heard = b""
        while not self.heard.endswith(opened):
            self._read()
        assert self.heard.startswith(b"HTTP/1.1 " + status), self.heard
        self.heard = b""

    def _read(self) -> None:
        data = self.socket.recv(65536)
        assert data, (self.heard, "and then it hung up")
        self.heard += data

    def hear(self) -> bool:
        """
        Read, and say whether all that is due is here. Anything else is an error.
        """
        self._read()
        if self.heard == self.due:
            self.heard = self.due = b""
            return True
        assert self.due.startswith(self.heard), (self.heard, "instead of", self.due)
        return False


def websocket(port: int, service: str, number: int) -> Line:
    head = (
        f"GET /{service}/000/{number:08d}/websocket HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    return Line(port, head.encode(), b"101", b"\r\n\r\n\x81\x01o")


def stream(port: int, service: str, number: int) -> Line:
    head = (
        f"POST /{service}/000/{number:08d}/xhr_streaming HTTP/1.1\r\n"
        f"Host: 127.0.0.1:{port}\r\nContent-Length: 0\r\n\r\n"
    )
    return Line(port, head.encode(), b"200", b"\n\r\n2\r\no\n\r\n")


def message(number: int, turn: int) -> bytes:
    return (b"%d of connection %d " % (turn, number)).ljust(SIZE, b".")


def asked(text: bytes) -> bytes:
    """
    A message as the client's websocket frame, masked.
    """
    data = b'["%s"]' % text
    mask = os.urandom(4)
    masked = bytes(byte ^ mask[place % 4] for place, byte in enumerate(data))
    return b"\x81" + bytes([0x80 | len(data)]) + mask + masked


def answered(text: bytes) -> bytes:
    """
    The same as the server's.
    """
    data = b'a["%s"]' % text
    return b"\x81" + bytes([len(data)]) + data


def streamed(text: bytes) -> bytes:
    """
    The same as a chunk of a stream.
    """
    data = b'a["%s"]\n' % text
    return b"%x\r\n%s\r\n" % (len(data), data)


class Ears:
    """
    Many lines, listened to in whatever order they have something to say.
    """

    def __init__(self, lines: Sequence[Line]) -> None:
        self.lines = {line.socket.fileno(): line for line in lines}
        self.poll = select.epoll()
        for number in self.lines:
            self.poll.register(number, select.EPOLLIN)

    def heard(self) -> list[Line]:
        """
        Those that have now said all that was due.
        """
        events = self.poll.poll(PATIENCE)
        assert events, "no answer"
        return [line for number, _ in events if (line := self.lines[number]).hear()]


def echo(pid: int, port: int, connections: int, messages: int) -> float:
    """
    Messages that come back for each second of the server's CPU time, when
    every connection always has one under way.
    """
    lines = [websocket(port, "echo", number) for number in range(connections)]
    ears = Ears(lines)
    texts = [[message(number, turn) for turn in range(TURNS)] for number in range(connections)]
    said = {
        line: itertools.cycle([(asked(text), answered(text)) for text in some])
        for line, some in zip(lines, texts, strict=True)
    }

    def say(line: Line) -> None:
        frame, line.due = next(said[line])
        line.socket.sendall(frame)

    def talk(messages: int) -> None:
        for line in lines:
            say(line)
        toSay, toHear = messages - connections, messages
        while toHear:
            for line in ears.heard():
                toHear -= 1
                if toSay:
                    toSay -= 1
                    say(line)

    talk(messages // 4)
    before = spent(pid)
    talk(messages)
    return messages / (spent(pid) - before)


def fanOut(pid: int, port: int, streams: int, messages: int) -> float:
    """
    Deliveries for each second of the server's CPU time, when each message goes
    to many xhr-streams, and the next is said when all have heard it.
    """
    lines = [stream(port, "broadcast", number) for number in range(streams)]
    speaker = websocket(port, "broadcast", streams)
    ears = Ears([*lines, speaker])

    def talk(first: int, messages: int) -> None:
        for turn in range(first, first + messages):
            text = message(streams, turn)
            due = streamed(text)
            for line in lines:
                line.due = due
            speaker.due = answered(text)
            speaker.socket.sendall(asked(text))
            left = streams + 1
            while left:
                left -= len(ears.heard())

    talk(0, messages // 4)
    before = spent(pid)
    talk(messages, messages)
    return streams * messages / (spent(pid) - before)


def resident(pid: int) -> int:
    """
    Bytes of memory that a process holds.
    """
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def idle(pid: int, port: int, opened: Callable[[int, str, int], Line], connections: int) -> float:
    """
    KiB of the server's memory for each connection that says nothing.
    """
    some = [opened(port, "broadcast", number) for number in range(WARM)]
    time.sleep(1.0)
    before = resident(pid)
    lines = [opened(port, "broadcast", WARM + number) for number in range(connections)]
    time.sleep(2.0)
    each = (resident(pid) - before) / connections / 1024
    assert not Ears([*some, *lines]).poll.poll(0), "one was closed"
    return each
