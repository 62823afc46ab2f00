"""
What a L{SockJSResource<twsessions.sockjs.SockJSResource>} can be told.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from twsessions.sockjs.session import Limits

__all__ = ["TRANSPORTS", "SockJSSettings"]

TRANSPORTS = frozenset(
    ["websocket", "rawwebsocket", "xhr", "xhr_streaming", "eventsource", "htmlfile", "jsonp"]
)
"""The names of all transports."""

CLIENT = "https://cdn.jsdelivr.net/npm/sockjs-client@1/dist/sockjs.min.js"


@dataclass(frozen=True)
class SockJSSettings:
    """
    All have a default that is fit for the open network.

    @ivar heartbeat: seconds of silence after which a sign of life is sent.
    @ivar disconnectDelay: seconds a client may be without a request.
    @ivar responseLimit: bytes after which a streaming response ends and the
        client asks anew, so that its memory does not fill.
    @ivar transports: the names of those that are on, of L{TRANSPORTS}.
    @ivar jsessionid: whether to set the cookie C{JSESSIONID} that some load
        balancers stick to; or a function that is called with the request
        and does it.
    @ivar sockjsURL: of the client library, for pages in iframes.
    @ivar origins: the web pages that may connect, as a list of origins
        (C{"https://www.example.org"}); C{"*"}: all. L{None}: all if not bound,
        else only pages of the same origin.
    @ivar bound: whether connections belong to the user's web session: who has
        none is refused, and its end closes them. C{jsonp} and C{htmlfile}, which
        no check of origins can guard, are then off.
    @ivar countsAsUse: whether messages of the client count as use of the web
        session. Heartbeats and polls never do.
    @ivar maxMessageBytes: of a message of a client.
    @ivar maxBodyBytes: of a request's body: clients put all that waits in one.
    @ivar maxQueueBytes: that may wait for a slow client.
    @ivar overflow: C{"close"} the connection when more are waiting, or
        C{"dropOldest"}.
    @ivar maxSessions: connections that may be open at once; then 503.
    @ivar pingTimeout: seconds for a websocket's answer to a ping.
    @ivar deflate: whether websockets may compress (RFC 7692). It costs memory
        and time for each connection.
    @ivar trustForwarded: whether C{X-Forwarded-For} names the client: only
        behind a proxy that sets it.
    @ivar passCookies: the names of cookies that applications get to see.
    """

    heartbeat: float = 25.0
    disconnectDelay: float = 5.0
    responseLimit: int = 128 * 1024
    transports: Collection[str] = TRANSPORTS
    jsessionid: bool | Callable[[Any], object] = False
    sockjsURL: str = CLIENT
    origins: str | Collection[str] | None = None
    bound: bool = False
    countsAsUse: bool = True
    maxMessageBytes: int = 64 * 1024
    maxBodyBytes: int = 1024 * 1024
    maxQueueBytes: int = 1024 * 1024
    overflow: str = "close"
    maxSessions: int = 100_000
    pingTimeout: float = 20.0
    deflate: bool = False
    trustForwarded: bool = False
    passCookies: Collection[str] = ()

    def __post_init__(self) -> None:
        """
        @raise ValueError: one that cannot be.
        """
        for name in ("heartbeat", "disconnectDelay", "pingTimeout"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not 0 < value < 1e9:
                raise ValueError(f"{name} must be a number of seconds, not {value!r}")
        for name in (
            "responseLimit",
            "maxMessageBytes",
            "maxBodyBytes",
            "maxQueueBytes",
            "maxSessions",
        ):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, not {value!r}")
        if isinstance(self.transports, str):
            raise ValueError("transports is a collection of names, not one name")
        for transport in self.transports:
            if transport not in TRANSPORTS:
                known = ", ".join(sorted(TRANSPORTS))
                raise ValueError(f"there is no transport {transport!r}; there are: {known}")
        if self.overflow not in ("close", "dropOldest"):
            raise ValueError(f"overflow is 'close' or 'dropOldest', not {self.overflow!r}")
        if isinstance(self.origins, str) and self.origins != "*":
            raise ValueError("origins is '*' or a collection of origins; one alone goes in a list")
        if isinstance(self.passCookies, str):
            raise ValueError("passCookies is a collection of names, not one name")

    @property
    def enabled(self) -> frozenset[str]:
        """
        The transports that are on.
        """
        enabled = frozenset(self.transports)
        return enabled - {"jsonp", "htmlfile"} if self.bound else enabled

    @property
    def limits(self) -> Limits:
        """
        What a session has to know.
        """
        return Limits(
            self.heartbeat,
            self.disconnectDelay,
            self.pingTimeout,
            self.maxQueueBytes,
            self.overflow == "dropOldest",
        )
