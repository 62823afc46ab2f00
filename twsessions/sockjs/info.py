"""
Who has connected, from where, and with which web session.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from http.cookies import SimpleCookie
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from twisted.internet.abstract import isIPAddress, isIPv6Address

if TYPE_CHECKING:
    from twsessions.web.session import Session

__all__ = ["ConnectionInfo"]

# What browsers set by themselves, and proxies. Not Cookie: whatever page opens
# a connection, the browser sends the user's cookies along.
_HEADERS = (
    "origin",
    "referer",
    "host",
    "user-agent",
    "accept-language",
    "dnt",
    "via",
    "x-client-ip",
    "x-forwarded-for",
    "x-cluster-client-ip",
    "x-forwarded-proto",
    "x-real-ip",
    "x-ssl",
)


_LONGEST = 1024  # characters of a header that are kept


class ConnectionInfo:
    """
    About the request that opened a connection.

    @ivar ip: the client's address, or L{None}.
    @ivar path: of the URL.
    @ivar headers: some of the request's, by lower-case name: those that browsers
        and proxies set, but no cookies.
    @ivar cookies: those that C{passCookies} names, by name.
    @ivar arguments: of the URL's query: a list for each name.
    @ivar isSecure: whether it came over TLS.
    @ivar transport: the name of the transport that opened it.
    @ivar session: the user's L{web session<twsessions.Session>}, if the resource is
        bound to it; else L{None}. It is not a request that uses it: what is
        changed in it has to be stored with its C{commit()}.
    """

    __slots__ = (
        "arguments",
        "cookies",
        "headers",
        "ip",
        "isSecure",
        "path",
        "session",
        "transport",
    )

    def __init__(
        self,
        ip: str | None = None,
        path: str = "",
        headers: Mapping[str, str] = {},
        cookies: Mapping[str, str] = {},
        arguments: Mapping[str, list[str]] = {},
        isSecure: bool = False,
        transport: str = "",
        session: Session | None = None,
    ) -> None:
        self.ip = ip
        self.path = path
        self.headers = headers
        self.cookies = cookies
        self.arguments = arguments
        self.isSecure = isSecure
        self.transport = transport
        self.session = session

    @classmethod
    def of(
        cls,
        request: Any,
        transport: str,
        session: Session | None,
        trustForwarded: bool,
        passCookies: Collection[str],
    ) -> ConnectionInfo:
        """
        From a request.
        """
        found = request.requestHeaders
        headers = {}
        for name in _HEADERS:
            values = found.getRawHeaders(name.encode("ascii"))
            if values:
                headers[name] = b", ".join(values).decode("latin-1")[-_LONGEST:]
        ip = getattr(request.getClientAddress(), "host", None)
        if trustForwarded and "x-forwarded-for" in headers:
            # The last is what our own proxy saw; those before are hearsay.
            last = headers["x-forwarded-for"].rpartition(",")[2].strip()
            if isIPAddress(last) or isIPv6Address(last):
                ip = last
        cookies = {}
        for name in passCookies:
            # Twisted has split them: SimpleCookie gives up at the first it finds odd.
            value = request.getCookie(name.encode("utf-8"))
            if value is not None:
                cookies[name] = SimpleCookie().value_decode(value.decode("latin-1").strip())[0]
        path, _, query = request.uri.partition(b"?")
        return cls(
            ip,
            path.decode("latin-1"),
            headers,
            cookies,
            parse_qs(query.decode("latin-1"), keep_blank_values=True) if query else {},
            bool(request.isSecure()),
            transport,
            session,
        )

    def getHeader(self, name: str) -> str | None:
        """
        A header's value, or L{None}.
        """
        return self.headers.get(name.lower())

    def getCookie(self, name: str) -> str | None:
        """
        A cookie's value, or L{None}.
        """
        return self.cookies.get(name)

    def getArgument(self, name: str) -> str | None:
        """
        The first of a query argument's values, or L{None}.
        """
        values = self.arguments.get(name)
        return values[0] if values else None
