"""
A message as notifications: text of less than 8000 bytes, so that a long one
takes several.

Those of one transaction arrive one after the other, with none of another's in
between. But of equal ones in one transaction only the first arrives: so each
part begins with the head of its message, which is like no other's.
"""

from __future__ import annotations

from binascii import a2b_base64, b2a_base64
from typing import Final

from twsessions.interfaces import MESSAGE_LIMIT
from twsessions.stores._messages import HEAD

__all__ = ["Parts", "cut"]

_NAME: Final = HEAD * 4 // 3  # characters of the head
_ROOM: Final = 7900  # for what comes after the head, and the part's number
_MOST: Final = (HEAD + MESSAGE_LIMIT) * 4 // 3 // _ROOM + 1


def cut(packed: bytes) -> list[bytes]:
    """
    The notifications for one message.
    """
    text = b2a_base64(packed, newline=False)
    if len(text) <= _ROOM:
        return [text]
    name, rest = text[:_NAME], text[_NAME:]
    chunks = [rest[at : at + _ROOM] for at in range(0, len(rest), _ROOM)]
    count = len(chunks)
    return [b"%b %d %d %b" % (name, n, count, chunk) for n, chunk in enumerate(chunks)]


class Parts:
    """
    Puts messages together again. Keeps one at a time, so that its memory is
    bounded.
    """

    def __init__(self) -> None:
        self._name = b""
        self._parts: list[bytes] = []

    def take(self, said: bytes) -> bytes | None:
        """
        A notification has come.

        @return: the message that is complete with it, or L{None}.
        @raise ValueError: it is none of ours.
        """
        if b" " not in said:
            return a2b_base64(said)
        name, number, count, chunk = said.split(b" ")
        place, most = int(number), int(count)
        if place == 0:
            self._name, self._parts = name, []
        if name != self._name or place != len(self._parts) or most > _MOST:
            return None  # its beginning was not heard
        self._parts.append(chunk)
        if place + 1 < most:
            return None
        parts, self._parts = self._parts, []
        return a2b_base64(name + b"".join(parts))
