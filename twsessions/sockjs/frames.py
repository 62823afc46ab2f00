"""
SockJS frames, and the messages that clients send: text in, text out.

A server says C{o} (open), C{h} (heartbeat), C{a["...",...]} (messages) and
C{c[code,"reason"]} (close). A client sends a JSON array of strings. Nothing
else is legal, so nothing else is parsed: no depth, no numbers, no surprises.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from json.decoder import scanstring  # type: ignore[attr-defined]
from json.encoder import encode_basestring, encode_basestring_ascii

__all__ = [
    "GO_AWAY",
    "HEARTBEAT",
    "INTERRUPTED",
    "OPEN",
    "STILL_OPEN",
    "BrokenFrame",
    "closeFrame",
    "messagesFrame",
    "parseMessages",
    "quote",
    "utf8",
]

OPEN, HEARTBEAT = "o", "h"

GO_AWAY = (3000, "Go away!")
STILL_OPEN = (2010, "Another connection still open")
INTERRUPTED = (1002, "Connection interrupted")

# What browsers and proxies are known to change or to drop on the way, and
# lone surrogates, which have no UTF-8.
_fragile = re.compile("[\x7f-\x9f\u00ad\u0600-\u0604\u070f\u17b4\u17b5\u200c-\u200f\u2028-\u202f"
                      "\u2060-\u206f\ud800-\udfff\ufeff\ufff0-\uffff]")  # fmt: skip
_space = re.compile("[ \t\n\r]*").match


class BrokenFrame(ValueError):
    """
    What a client sent is not an array of strings.
    """


def quote(message: str) -> str:
    """
    A message as JSON, with everything escaped that does not travel well.
    """
    if message.isascii():
        quoted: str = encode_basestring_ascii(message)
    else:
        quoted = encode_basestring(message)
        quoted = _fragile.sub(lambda found: f"\\u{ord(found[0]):04x}", quoted)
    return quoted


def utf8(message: str) -> bytes:
    """
    A message as UTF-8; lone surrogates, which have none, become C{U+FFFD}, as
    browsers do it (Encoding, 4.3).
    """
    try:
        return message.encode("utf-8")
    except UnicodeEncodeError:
        return message.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode("utf-8")


def messagesFrame(quoted: Iterable[str]) -> str:
    """
    Messages that are quoted already.
    """
    return f"a[{','.join(quoted)}]"


def closeFrame(code: int, reason: str) -> str:
    """
    The last frame of a session.
    """
    return f"c[{code},{quote(reason)}]"


def parseMessages(text: str, single: bool = False) -> list[str]:
    """
    The messages that a client sends.

    @param single: whether one string that is in no array will do.
    @raise BrokenFrame: it is something else.
    """
    try:
        if text[0] == "[" and text[1] == '"':  # as they mostly are
            message, at = scanstring(text, 2, True)
            messages = [message]
            if text[at] == "]" and at + 1 == len(text):
                return messages
        else:
            at = _space(text).end()  # type: ignore[union-attr]
            if single and text[at] == '"':
                message, at = scanstring(text, at + 1, True)
                return _ended(text, at, [message])
            if text[at] != "[":
                raise BrokenFrame("not an array")
            at = _space(text, at + 1).end()  # type: ignore[union-attr]
            if text[at] == "]":
                return _ended(text, at + 1, [])
            if text[at] != '"':
                raise BrokenFrame("not a string in the array")
            message, at = scanstring(text, at + 1, True)
            messages = [message]
        while True:
            at = _space(text, at).end()  # type: ignore[union-attr]
            if text[at] == "]":
                return _ended(text, at + 1, messages)
            if text[at] != ",":
                raise BrokenFrame("no comma between the strings")
            at = _space(text, at + 1).end()  # type: ignore[union-attr]
            if text[at] != '"':
                raise BrokenFrame("not a string in the array")
            message, at = scanstring(text, at + 1, True)
            messages.append(message)
    except IndexError:
        raise BrokenFrame("it ends too early") from None
    except ValueError as error:
        if isinstance(error, BrokenFrame):
            raise
        raise BrokenFrame("not a string of JSON") from None


def _ended(text: str, at: int, messages: list[str]) -> list[str]:
    if _space(text, at).end() != len(text):  # type: ignore[union-attr]
        raise BrokenFrame("something follows the messages")
    return messages
