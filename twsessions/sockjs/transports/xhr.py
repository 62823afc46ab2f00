"""
XMLHttpRequest: polling and streaming. A frame is a line.
"""

from __future__ import annotations

from twsessions.sockjs.packet import Framed

__all__ = ["FORMAT", "PRELUDE", "TYPE"]

FORMAT = Framed(lambda frame: (frame + "\n").encode("utf-8"), streams=True)

TYPE = b"application/javascript; charset=UTF-8"

PRELUDE = b"h" * 2048 + b"\n"
"""For streaming: some browsers show nothing of a response before they have so much."""
