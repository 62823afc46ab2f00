"""
SockJS for Twisted Web: connections to browsers that always get through, bound
to the user's web session where that is wanted.
"""

from __future__ import annotations

try:
    import wsproto  # noqa: F401
except ImportError as error:
    raise ImportError(
        "twsessions.sockjs needs wsproto: pip install 'twsessions[sockjs]'"
    ) from error

from twsessions.sockjs.connection import SockJSConnection, broadcast
from twsessions.sockjs.groups import Groups
from twsessions.sockjs.info import ConnectionInfo
from twsessions.sockjs.multiplex import Multiplexer
from twsessions.sockjs.resource import SockJSResource
from twsessions.sockjs.settings import SockJSSettings

__all__ = [
    "ConnectionInfo",
    "Groups",
    "Multiplexer",
    "SockJSConnection",
    "SockJSResource",
    "SockJSSettings",
    "broadcast",
]
