"""
URLs of Redis stores.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qsl, unquote

from twsessions.errors import NotSupported
from twsessions.stores._redis.link import Dialer, Login
from twsessions.stores._redis.route import Address, Cluster, Route, Sentinels, Single

__all__ = ["Target", "parse"]

_SHAPES: Final = {
    "redis": "redis://user:password@host:6379/0",
    "rediss": "rediss://user:password@host:6379/0",
    "redis+sentinel": "redis+sentinel://user:password@host1:26379,host2:26379/service/0",
    "redis+cluster": "redis+cluster://user:password@host1:6379,host2:6379",
}
_OPTIONS: Final = {
    "redis": ("prefix", "timeout", "replicas"),
    "rediss": ("prefix", "timeout", "replicas", "ca"),
    "redis+sentinel": (
        "prefix", "timeout", "replicas", "tls", "ca", "sentinelUser", "sentinelPassword",
    ),
    "redis+cluster": ("prefix", "timeout", "replicas", "tls", "ca"),
}  # fmt: skip
_isPrefix: Final = re.compile(r"[A-Za-z0-9_.:/-]{1,64}").fullmatch
_hostAndPort: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\[\]:@]+)(?::([0-9]{1,5}))?").fullmatch


@dataclass(frozen=True)
class Target:
    """
    What a URL says.

    @ivar timeout: seconds for a call.
    @ivar prefix: of all keys.
    @ivar replicas: that have to have a commit.
    @ivar tls: makes the TLS options for a host; L{None}: no TLS.
    """

    scheme: str
    addresses: Sequence[Address]
    login: Login
    service: str
    sentinelLogin: Login
    timeout: float
    prefix: bytes
    replicas: int
    tls: Callable[[str], Any] | None

    def route(self, reactor: Any) -> Route:
        """
        The way there.
        """
        dialer = Dialer(reactor, self.timeout, self.login, self.tls)
        if self.scheme == "redis+cluster":
            return Cluster(dialer, self.addresses)
        if self.scheme == "redis+sentinel":
            return Sentinels(dialer, self.addresses, self.service, self.sentinelLogin)
        return Single(dialer, self.addresses[0])


def parse(scheme: str, rest: str) -> Target:
    """
    Read C{scheme:rest}.

    @raise ValueError: it is not right; says what would be, and repeats nothing
        of it.
    @raise NotSupported: TLS is wanted and cannot be had.
    """
    shape = _SHAPES[scheme]
    location, _, query = rest.partition("?")
    if not location.startswith("//"):
        raise ValueError(f"a Redis store's URL is like {shape}")
    if "#" in rest:
        raise ValueError("'#' in the URL of a Redis store is written %23")
    authority, _, path = location[2:].partition("/")
    who, at, hosts = authority.rpartition("@")
    options = _options(scheme, query)
    isCluster, isSentinel = scheme == "redis+cluster", scheme == "redis+sentinel"
    service, database = "", path
    if isSentinel:
        service, _, database = path.partition("/")
        service = unquote(service)
        if not service:
            raise ValueError(f"the URL has to name Sentinel's service: {shape}")
    if isCluster and path:
        raise ValueError(f"a Redis cluster has no numbered databases: {shape}")
    if database and not (database.isascii() and database.isdigit() and len(database) < 6):
        raise ValueError(f"a Redis database is a number: {shape}")
    user, password = _userAndPassword(who) if at else (None, None)
    port = 26379 if isSentinel else 6379
    addresses = [_address(host, port, shape) for host in hosts.split(",")]
    if len(addresses) > 1 and not (isCluster or isSentinel):
        raise ValueError(f"only a cluster or Sentinels have several hosts: {shape}")
    wantsTLS = scheme == "rediss" or _isYes(options.get("tls", "no"), "tls")
    if "ca" in options and not wantsTLS:
        raise ValueError("the option ca goes with TLS only: tls=yes")
    sentinelUser = options.get("sentinelUser")
    return Target(
        scheme,
        addresses,
        Login(user, password, int(database or 0)),
        service,
        Login(sentinelUser, options.get("sentinelPassword")),
        _timeout(options.get("timeout", "1.5")),
        _prefix(options.get("prefix", "twsessions")),
        _replicas(options.get("replicas", "0")),
        _tls(options.get("ca")) if wantsTLS else None,
    )


def _options(scheme: str, query: str) -> dict[str, str]:
    known = _OPTIONS[scheme]
    options: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True, max_num_fields=20):
        if name not in known:
            # Named only if it can be nothing but a name.
            what = f" called {name!r}" if re.fullmatch("[A-Za-z_]{1,20}", name) else ""
            raise ValueError(f"{scheme}: has no option{what}; it has {', '.join(known)}")
        if name in options:
            raise ValueError(f"the option {name} is given twice")
        options[name] = value
    return options


def _userAndPassword(who: str) -> tuple[str | None, str | None]:
    user, colon, password = who.partition(":")
    if not user and not password:
        raise ValueError("nobody is named before the '@' of a Redis store's URL")
    return unquote(user) or None, unquote(password) if colon else None


def _address(text: str, port: int, shape: str) -> Address:
    match = _hostAndPort(text)
    if match is None or (match[2] and not 0 < int(match[2]) < 65536):
        raise ValueError(f"no host, or no port, as they should be: {shape}")
    return match[1].strip("[]"), int(match[2] or port)


def _isYes(text: str, name: str) -> bool:
    if text not in ("yes", "no"):
        raise ValueError(f"the option {name} is yes or no")
    return text == "yes"


def _timeout(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.05 <= seconds <= 60:
        raise ValueError("the option timeout is a number of seconds, 0.05 to 60")
    return seconds


def _prefix(text: str) -> bytes:
    if not _isPrefix(text):
        raise ValueError("the option prefix is up to 64 letters, digits or any of _ . : / -")
    return text.encode("ascii")


def _replicas(text: str) -> int:
    if not re.fullmatch("[0-9]", text):
        raise ValueError("the option replicas is a number, 0 to 9")
    return int(text)


def _tls(ca: str | None) -> Callable[[str], Any]:
    """
    TLS that checks the server's certificate and name.

    @param ca: a file of certificates to trust; L{None}: the system's.
    """
    try:
        from twisted.internet.ssl import (
            Certificate,
            optionsForClientTLS,
            platformTrust,
            trustRootFromCertificates,
        )
    except ImportError as error:
        raise NotSupported(
            f"TLS needs {error.name}: pip install 'twsessions[redis,tls]'"
        ) from error
    if ca is None:
        trust = platformTrust()
    else:
        try:
            with open(ca, "rb") as file:
                blocks = _PEM.findall(file.read())
            trust = trustRootFromCertificates([Certificate.loadPEM(block) for block in blocks])
        except Exception as error:
            raise ValueError(
                f"the file that the option ca names cannot be read: {type(error).__name__}"
            ) from None
        if not blocks:
            raise ValueError("the file that the option ca names has no certificate (PEM) in it")
    return lambda host: optionsForClientTLS(host, trustRoot=trust)


_PEM: Final = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
