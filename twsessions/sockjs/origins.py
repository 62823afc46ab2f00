"""
Which web pages may connect, and what CORS has to say about it.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

__all__ = ["Origins"]


class Origins:
    """
    A list of origins, every one, or those of the same site.
    """

    def __init__(self, allowed: str | Collection[str] | None) -> None:
        """
        @param allowed: C{"*"}: all; a collection of C{"https://host[:port]"};
            L{None}: the host that the request itself is made to.
        """
        self.all = allowed == "*"
        self._same = allowed is None
        self._listed = frozenset(
            origin.rstrip("/").lower().encode("ascii")
            for origin in (() if allowed is None or self.all else allowed)
        )

    def describe(self) -> list[str]:
        """
        For C{/info}, where clients expect something of the sort.
        """
        if self.all or self._same:
            return ["*:*"]
        return sorted(origin.decode("ascii") for origin in self._listed)

    @property
    def frames(self) -> bytes | None:
        """
        A policy for the page for iframes (CSP 3, 6.4.2), or L{None}: what it
        does for the page around it, it does with its own origin.
        """
        if self.all:
            return None
        return b"frame-ancestors " + (
            b"'self'" if self._same else b" ".join(sorted(self._listed)) or b"'none'"
        )

    def admits(self, request: Any) -> bool:
        """
        Whether the page that makes this request may. One that does not say
        where it is from is no other page's script: browsers always say that
        when it matters (Fetch, 3.2), but for the transports that
        L{bound<SockJSSettings>} resources have not.
        """
        origin = request.getHeader(b"origin")
        if origin is None or self.all:
            return True
        origin = origin.lower()
        if self._same:
            # Only the host: TLS may end at a proxy.
            scheme, _, host = origin.partition(b"://")
            own = request.getHeader(b"host")
            return scheme in (b"http", b"https") and own is not None and host == own.lower()
        return origin in self._listed

    def allow(self, request: Any) -> None:
        """
        Let the page of an admitted request read the answer (Fetch, 3.3).
        """
        headers = request.responseHeaders
        origin = request.getHeader(b"origin")
        if origin is None or b"\r" in origin or b"\n" in origin:
            if self.all:
                headers.setRawHeaders(b"access-control-allow-origin", [b"*"])
        else:
            headers.setRawHeaders(b"access-control-allow-origin", [origin])
            headers.setRawHeaders(b"access-control-allow-credentials", [b"true"])
        headers.addRawHeader(b"vary", b"Origin")
        wanted = request.getHeader(b"access-control-request-headers")
        if wanted:
            headers.setRawHeaders(b"access-control-allow-headers", [wanted])
