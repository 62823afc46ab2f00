"""
Writing to a socket at once.

Twisted keeps what is written until the reactor says that the socket takes it:
two system calls to ask, and a third to send. A socket nearly always takes it,
so here the third comes first, and only what is left goes the usual way.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.tcp import Connection

__all__ = ["canWriteNow", "writeNow"]


def canWriteNow(transport: Any) -> bool:
    """
    Whether L{writeNow} knows how: it is a plain TCP connection.
    """
    return isinstance(transport, Connection) and not getattr(transport, "TLS", False)


def writeNow(transport: Any, data: bytes) -> None:
    """
    Do as C{transport.write(data)}.
    """
    if transport.dataBuffer or transport._tempDataBuffer or not transport.connected:
        transport.write(data)
        return
    sent = transport.writeSomeData(data)
    if sent.__class__ is not int:  # an error: the reactor is to find it, and tell everybody
        transport.write(data)
    elif sent < len(data):
        transport.write(data[sent:])
