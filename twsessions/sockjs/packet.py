"""
A message on its way out, encoded at most once for each wire format.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from twsessions.sockjs.frames import HEARTBEAT, OPEN, closeFrame, messagesFrame, quote, utf8
from twsessions.sockjs.session import Close

__all__ = ["Format", "Framed", "Packet"]


class Packet:
    """
    A message.

    @cvar mayDrop: whether it may be dropped when too much is waiting.
    @ivar message: C{str}, or C{bytes}, which only raw websockets can carry.
    """

    __slots__ = ("_quoted", "_wires", "message")

    mayDrop = True

    def __init__(self, message: str | bytes, isShared: bool = False) -> None:
        """
        @param isShared: whether it goes to many.
        """
        self.message = message
        self._quoted: str | None = None
        self._wires: dict[Format, bytes] | None = {} if isShared else None

    @property
    def size(self) -> int:
        """
        What it counts while it waits: bytes.
        """
        message = self.message
        return len(utf8(message) if isinstance(message, str) else message) + 64

    @property
    def quoted(self) -> str:
        """
        As JSON.
        """
        quoted = self._quoted
        if quoted is None:
            message = self.message
            if isinstance(message, bytes):
                message = message.decode("utf-8", "replace")
            quoted = self._quoted = quote(message)
        return quoted

    def wire(self, form: Format) -> bytes:
        """
        The bytes that say it in some format.
        """
        wires = self._wires
        if wires is None:
            return form.messages((self,))
        data = wires.get(form)
        if data is None:
            data = wires[form] = form.messages((self,))
        return data


class Format(Protocol):
    """
    How a transport spells what a session says. Transports that spell alike
    share one object.
    """

    @property
    def chunked(self) -> Format | None:
        """
        The same in chunks of HTTP/1.1, or L{None}.
        """

    def opened(self) -> bytes:
        """
        The session is open.
        """

    def heartbeat(self) -> bytes:
        """
        A sign of life.
        """

    def messages(self, packets: Sequence[Packet]) -> bytes:
        """
        Messages that arrive together.
        """

    def closed(self, why: Close) -> bytes:
        """
        The session is closed.
        """


class Framed:
    """
    SockJS frames in some wrapping.
    """

    chunked: Framed | None = None

    def __init__(self, wrap: Callable[[str], bytes], streams: bool = False) -> None:
        """
        @param wrap: makes the bytes that carry a frame.
        @param streams: whether it is for responses that go on and on.
        """
        self._wrap = wrap
        if streams:
            self.chunked = Framed(lambda frame: _chunk(wrap(frame)))
        self._opened = wrap(OPEN)
        self._heartbeat = wrap(HEARTBEAT)

    def opened(self) -> bytes:
        """
        C{o}.
        """
        return self._opened

    def heartbeat(self) -> bytes:
        """
        C{h}.
        """
        return self._heartbeat

    def messages(self, packets: Sequence[Packet]) -> bytes:
        """
        C{a["..."]}.
        """
        if len(packets) == 1:
            return self._wrap(f"a[{packets[0].quoted}]")
        return self._wrap(messagesFrame([packet.quoted for packet in packets]))

    def closed(self, why: Close) -> bytes:
        """
        C{c[3000,"Go away!"]}.
        """
        return self._wrap(closeFrame(why.code, why.reason))


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)
