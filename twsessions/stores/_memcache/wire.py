"""
memcached's protocol on one connection.
"""

from __future__ import annotations

import re
from typing import Any, Final

from twsessions.stores._flights import FlightProtocol

__all__ = ["Reply", "Wire"]

Reply = bytes | dict[bytes, Any]
"""
A line, or what came before an C{END}: C{(cas, value)} by key, or statistics by
name.
"""

_MOST: Final = 4096  # values in a reply; bounds the memory
_LONGEST: Final = 2048  # bytes of a line
_value: Final = re.compile(rb"VALUE ([!-~]+) [0-9]+ ([0-9]{1,10}) ([0-9]{1,20})\r\n").match


class Wire(FlightProtocol):
    """
    The connection.

    @ivar itemSize: bytes of the largest item the server takes; it sends none
        that is larger.
    """

    peer = "memcached server"

    def __init__(self, clock: Any) -> None:
        """
        See L{FlightProtocol}.
        """
        super().__init__(clock)
        self._chunks: list[bytes] = []  # of a reply that is not complete
        self._size = 0  # bytes in them
        self._needed = 0  # bytes without which there is nothing to parse
        self._group: dict[bytes, Any] = {}  # what came since the last END
        self.itemSize = 0

    def dataReceived(self, data: bytes) -> None:
        """
        Parse replies and hand them out.
        """
        self._chunks.append(data)
        self._size += len(data)
        if self._size < self._needed or self._why is not None:
            return
        data = b"".join(self._chunks)
        try:
            rest = data[self._parse(data) :]
        except ValueError:
            self.drop("what the memcached server answers is not its protocol")
            return
        self._chunks, self._size = [rest] if rest else [], len(rest)

    # Replies

    def _parse(self, data: bytes) -> int:
        """
        @return: how many bytes of it have been dealt with.
        @raise ValueError: it is no reply.
        """
        at = 0
        while self._why is None:
            if (head := _value(data, at)) is not None:
                key, length, cas = head.groups()
                start = head.end()
                stop = start + int(length)
                if not self._flights or stop - start > self.itemSize:
                    raise ValueError("no such value can be")
                if len(data) < stop + 2:
                    self._needed = stop + 2 - at
                    return at
                if not data.startswith(b"\r\n", stop):
                    raise ValueError("a value that does not end")
                self._put(key, (cas, data[start:stop]))
                at = stop + 2
                continue
            end = data.find(b"\r\n", at, at + _LONGEST)
            if end < 0:
                if len(data) - at >= _LONGEST:
                    raise ValueError("an endless line")
                self._needed = 0
                return at
            if not self._flights:
                self.drop("the memcached server answered what nobody had asked")
            elif data.startswith(b"STAT ", at):
                name, _, said = data[at + 5 : end].partition(b" ")
                self._put(name, said)
            elif end - at == 3 and data.startswith(b"END", at):
                group, self._group = self._group, {}
                self._answer(group)
            else:
                self._answer(data[at:end])
            at = end + 2
        return at

    def _put(self, name: bytes, what: object) -> None:
        if len(self._group) >= _MOST:
            raise ValueError("an endless reply")
        self._group[name] = what

    def _answer(self, reply: Reply) -> None:
        if self._group:
            raise ValueError("a reply within a reply")
        self.answer(reply)

    def _failAll(self) -> None:
        self._chunks, self._size = [], 0
        super()._failAll()
