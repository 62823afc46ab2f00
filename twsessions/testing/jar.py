"""
A browser's cookies, by the rules of RFC 6265bis that matter to sessions.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timezone
from email.utils import parsedate_to_datetime
from math import inf

__all__ = ["Cookie", "CookieJar"]

_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_MAX_AGE = re.compile(r"-?[0-9]+")
_LONGEST = 4096  # bytes of name and value together
_LONGEST_ATTRIBUTE = 1024  # bytes of an attribute's value
_OLDEST = 400 * 86400  # seconds that a cookie is kept


@dataclass(frozen=True, slots=True)
class Cookie:
    """
    A cookie as a browser keeps it.

    @ivar domain: the host it came from or, if not C{hostOnly}, the domain it
        goes to with all its subdomains.
    @ivar expires: when it ends, by the clock of whoever asks; infinite for one
        that lasts as long as the browser.
    @ivar sameSite: C{"strict"}, C{"lax"}, C{"none"}, or L{None} if not said.
    """

    name: str
    value: str
    domain: str
    path: str = "/"
    hostOnly: bool = True
    secure: bool = False
    httpOnly: bool = False
    sameSite: str | None = None
    partitioned: bool = False
    expires: float = inf

    def goesTo(self, secure: bool, host: str, path: str) -> bool:
        """
        Whether it is sent with a request.
        """
        return (
            (secure or not self.secure)
            and (host == self.domain if self.hostOnly else _isWithin(host, self.domain))
            and _isUnder(path, self.path)
        )


class CookieJar:
    """
    Takes C{Set-Cookie} lines and says which cookies go with a request.

    Hosts have no port, paths no query; times are seconds of any one clock.
    """

    def __init__(self) -> None:
        self._cookies: dict[tuple[object, ...], Cookie] = {}  # in order of creation

    def __iter__(self) -> Iterator[Cookie]:
        return iter(list(self._cookies.values()))

    def __len__(self) -> int:
        return len(self._cookies)

    def clear(self) -> None:
        """
        Forget all cookies.
        """
        self._cookies.clear()

    def set(self, cookie: Cookie) -> None:
        """
        Keep a cookie as it is, in place of one with the same name, domain and
        path, that goes to subdomains as well or does not either, and is
        partitioned or not as this one is.
        """
        self._cookies[_place(cookie)] = cookie

    def matching(self, secure: bool, host: str, path: str, now: float) -> list[Cookie]:
        """
        The cookies that go with a request, in the order in which they are
        sent: longer paths first, then older cookies.
        """
        for key, cookie in list(self._cookies.items()):
            if cookie.expires <= now:
                del self._cookies[key]
        found = [c for c in self._cookies.values() if c.goesTo(secure, host.lower(), path)]
        return sorted(found, key=lambda cookie: -len(cookie.path))

    def receive(self, line: bytes, secure: bool, host: str, path: str, now: float) -> bool:
        """
        Do what a C{Set-Cookie} line of the answer to a request says.

        @param line: the value of the header.
        @return: whether the browser obeyed it; L{False} if it ignored it.
        """
        cookie = _parse(line, host.lower(), path, now)
        if cookie is None or not self._isAllowed(cookie, secure):
            return False
        if cookie.expires <= now:
            self._cookies.pop(_place(cookie), None)
        else:
            self.set(cookie)
        return True

    def _isAllowed(self, cookie: Cookie, secure: bool) -> bool:
        if cookie.secure and not secure:
            return False
        if (cookie.sameSite == "none" or cookie.partitioned) and not cookie.secure:
            return False
        # A nameless cookie whose value looks like "__Host-x=1" would be sent as
        # that, so the value is held to the prefix's rules; no value can pass.
        prefixed = (cookie.name or cookie.value).lower()
        if prefixed.startswith(("__secure-", "__host-")) and not cookie.name:
            return False
        if prefixed.startswith("__secure-") and not cookie.secure:
            return False
        if prefixed.startswith("__host-") and not (
            cookie.secure and cookie.hostOnly and cookie.path == "/"
        ):
            return False
        # Plain HTTP, which anybody on the way can write, must not cover up a
        # cookie that came over TLS.
        return secure or not any(
            kept.secure
            and kept.name == cookie.name
            and (_isWithin(kept.domain, cookie.domain) or _isWithin(cookie.domain, kept.domain))
            and _isUnder(cookie.path, kept.path)
            for kept in self._cookies.values()
        )


def _place(cookie: Cookie) -> tuple[object, ...]:
    return cookie.name, cookie.domain, cookie.hostOnly, cookie.path, cookie.partitioned


def _parse(line: bytes, host: str, requestPath: str, now: float) -> Cookie | None:
    # Section 5.6 ("the set-cookie header field") and the first half of 5.7.
    if _CONTROL.search(line):
        return None
    pair, *rest = line.decode("latin-1").split(";")
    name, equals, value = pair.partition("=")
    if not equals:
        name, value = "", name
    name, value = name.strip(" \t"), value.strip(" \t")
    if not (name or value) or len(name) + len(value) > _LONGEST:
        return None
    defaultPath = requestPath[: requestPath.rfind("/")] or "/"
    cookie = Cookie(name, value, host, defaultPath)
    maxAge: float | None = None
    isPathSaid = False
    domain = ""
    for attribute in rest:
        word, _, said = attribute.partition("=")
        word, said = word.strip(" \t").lower(), said.strip(" \t")
        if len(said) > _LONGEST_ATTRIBUTE:
            continue
        if word == "max-age" and _MAX_AGE.fullmatch(said):
            maxAge = now + min(int(said), _OLDEST) if int(said) > 0 else -inf
        elif word == "expires":
            try:
                date = parsedate_to_datetime(said).replace(tzinfo=timezone.utc)  # whatever it says
            except (ValueError, TypeError, OverflowError):
                continue
            cookie = replace(cookie, expires=min(date.timestamp(), now + _OLDEST))
        elif word == "domain":
            domain = said.removeprefix(".").lower()
        elif word == "path":
            isPathSaid = said.startswith("/")
            cookie = replace(cookie, path=said if isPathSaid else defaultPath)
        elif word == "secure":
            cookie = replace(cookie, secure=True)
        elif word == "httponly":
            cookie = replace(cookie, httpOnly=True)
        elif word == "partitioned":
            cookie = replace(cookie, partitioned=True)
        elif word == "samesite":
            site = said.lower()
            cookie = replace(cookie, sameSite=site if site in {"strict", "lax", "none"} else None)
    if maxAge is not None:
        cookie = replace(cookie, expires=maxAge)
    if cookie.name.lower().startswith("__host-") and not isPathSaid:
        return None
    if domain and "." not in domain:
        # The nearest thing to a public suffix without a list of them.
        domain = "" if domain == host else "."
    if domain:
        if not _isWithin(host, domain):
            return None
        cookie = replace(cookie, domain=domain, hostOnly=False)
    return cookie


def _isWithin(host: str, domain: str) -> bool:
    if host == domain:
        return True
    # A numeric address has no subdomains.
    return host.endswith("." + domain) and not re.fullmatch(r"[0-9.]+|\[.*\]", host)


def _isUnder(path: str, cookiePath: str) -> bool:
    return path == cookiePath or (
        path.startswith(cookiePath) and (cookiePath.endswith("/") or path[len(cookiePath)] == "/")
    )
