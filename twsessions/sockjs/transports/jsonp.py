"""
Scripts that call a function: polling for pages that can do nothing else.
"""

from __future__ import annotations

import re

from twsessions.sockjs.frames import quote
from twsessions.sockjs.packet import Framed

__all__ = ["TYPE", "formatFor", "inScript", "isCallback"]

TYPE = b"application/javascript; charset=UTF-8"

# CVE-2014-4671: a callback that could be any text could be any file.
isCallback = re.compile("[a-zA-Z0-9_.-]{1,32}").fullmatch


def inScript(frame: str) -> str:
    """
    A frame as a string of JavaScript, safe within a page's script as well.
    """
    return quote(frame).replace("<", "\\u003c")


def formatFor(callback: str) -> Framed:
    """
    A frame is a call of C{callback}, which is checked already.
    """
    return Framed(lambda frame: f"/**/{callback}({inScript(frame)});\r\n".encode())
