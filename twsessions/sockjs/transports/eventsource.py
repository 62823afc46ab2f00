"""
Server-sent events (HTML, 9.2). A frame is an event.
"""

from __future__ import annotations

from twsessions.sockjs.packet import Framed

__all__ = ["FORMAT", "PRELUDE", "TYPE"]

# What would end the line; clients unescape it, so the percent sign as well.
_escapes = str.maketrans({"%": "%25", "\r": "%0D", "\n": "%0A", "\0": "%00"})


def _wrap(frame: str) -> bytes:
    return f"data: {frame.translate(_escapes)}\r\n\r\n".encode()


FORMAT = Framed(_wrap, streams=True)

TYPE = b"text/event-stream"
"""Without a charset: it is UTF-8 by definition, and one client insists on it."""

PRELUDE = b"\r\n"
