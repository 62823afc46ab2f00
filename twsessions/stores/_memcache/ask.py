"""
One thing that is asked about one item of a memcached server, and how it is
spelled.
"""

from __future__ import annotations

from binascii import b2a_base64
from collections.abc import Callable, Sequence
from typing import Any, Final

from twsessions.errors import StoreUnavailable
from twsessions.stores._memcache.wire import Reply, Wire

__all__ = ["ADD", "CAS", "DELETE", "EXISTS", "GETS", "STORED", "Ask", "fill", "isPrefix", "spell"]

GETS: Final = b"gets"
ADD: Final = b"add"
CAS: Final = b"cas"
DELETE: Final = b"delete"

STORED: Final = b"STORED"
EXISTS: Final = b"EXISTS"
_LINES: Final = {
    ADD: (STORED, b"NOT_STORED"),
    CAS: (STORED, EXISTS, b"NOT_FOUND"),
    DELETE: (b"DELETED", b"NOT_FOUND"),
}

_LONGEST: Final = 250  # bytes of a key


class Ask:
    """
    A command.

    @ivar key: of the session.
    @ivar value: to store.
    @ivar ttl: seconds for which it is to be kept; L{None}: as long as there
        is room.
    @ivar cas: what the stored value must still be for C{CAS}.
    @ivar wire: where C{cas} is from. A server that has been restarted counts
        from 1 again, so it means nothing on another connection. In a reply,
        where that is from.
    @ivar aside: the item is not the session, but what is kept of a corrupt one.
    @ivar reply: for C{GETS} cas and value, or L{None}; for the others the
        line that came; L{StoreUnavailable} if it failed.
    """

    __slots__ = ("aside", "cas", "key", "reply", "ttl", "value", "verb", "wire")

    def __init__(
        self,
        verb: bytes,
        key: bytes,
        value: bytes = b"",
        ttl: float | None = None,
        cas: bytes = b"",
        wire: Wire | None = None,
        aside: bool = False,
    ) -> None:
        self.verb = verb
        self.key = key
        self.value = value
        self.ttl = ttl
        self.cas = cas
        self.wire = wire
        self.aside = aside
        self.reply: Any = None


def isPrefix(prefix: bytes) -> bool:
    """
    Whether keys can begin with it.
    """
    return len(prefix) <= _LONGEST - 50 and all(0x21 <= byte <= 0x7E for byte in prefix)


def _name(prefix: bytes, ask: Ask) -> bytes:
    # Base64 has neither spaces nor control characters: no key is a command.
    name = prefix + (b"!" if ask.aside else b":") + b2a_base64(ask.key, newline=False)
    if len(name) > _LONGEST:
        raise ValueError("a session's key is 32 bytes")
    return name


def spell(
    asks: Sequence[Ask], prefix: bytes, wire: Wire, expiry: Callable[[float], int]
) -> tuple[bytes, list[Ask | list[bytes]]]:
    """
    The commands, all reads as one.

    @param prefix: of all keys.
    @param expiry: what the server is told for seconds to live.
    @return: what to send, and whose replies will come, for L{fill}; a list of
        names stands for the reads.
    """
    names: list[bytes] = []
    parts: list[bytes] = []
    whose: list[Ask | list[bytes]] = []
    for ask in asks:
        if ask.verb is GETS:
            names.append(_name(prefix, ask))
            continue
        if ask.verb is CAS and ask.wire is not wire:
            ask.reply = EXISTS
            continue
        if ask.verb is DELETE:
            parts.append(b"delete %b\r\n" % _name(prefix, ask))
        else:
            until = 0 if ask.ttl is None else expiry(ask.ttl)
            parts.append(
                b"%b %b 0 %d %d%b\r\n%b\r\n"
                % (
                    ask.verb, _name(prefix, ask), until, len(ask.value),
                    b" " + ask.cas if ask.verb is CAS else b"", ask.value,
                )
            )  # fmt: skip
        whose.append(ask)
    if names:
        parts.insert(0, b"gets %b\r\n" % b" ".join(names))
        whose.insert(0, names)
    return b"".join(parts), whose


def fill(
    asks: Sequence[Ask], whose: Sequence[Ask | list[bytes]], replies: Sequence[Reply], wire: Wire
) -> None:
    """
    Give each its reply.

    @raise ValueError: these are no replies to these commands.
    """
    for to, reply in zip(whose, replies, strict=True):
        if isinstance(to, Ask):
            if not isinstance(reply, bytes):
                raise ValueError("a value where there was to be a line")
            to.reply = reply if reply in _LINES[to.verb] else _refusal(reply)
            continue
        if isinstance(reply, bytes):
            error = _refusal(reply)
            for ask in asks:
                if ask.verb is GETS:
                    ask.reply = error
            continue
        reads = iter(to)
        for ask in asks:
            if ask.verb is GETS:
                ask.reply = reply.pop(next(reads), None)
                ask.wire = wire
        if reply:
            raise ValueError("a value that nobody had asked for")


def _refusal(line: bytes) -> StoreUnavailable:
    """
    @raise ValueError: it is none.
    """
    if not line.startswith(b"SERVER_ERROR"):
        raise ValueError("another reply than such a command has")
    said = "".join(chr(byte) if 32 <= byte < 127 else "?" for byte in line[13:113])
    return StoreUnavailable(f"the memcached server refused: {said}")
