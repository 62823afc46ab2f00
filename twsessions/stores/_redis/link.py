"""
A Redis server: how it is dialled and logged in to.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Final

from hiredis import ReplyError
from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import (
    HostnameEndpoint,
    TCP4ClientEndpoint,
    TCP6ClientEndpoint,
    wrapClientTLS,
)
from twisted.internet.error import ConnectError, DNSLookupError
from twisted.internet.protocol import Factory
from twisted.logger import Logger

from twsessions.errors import StoreUnavailable
from twsessions.stores._redial import Redialed
from twsessions.stores._redis.scripts import SCRIPTS
from twsessions.stores._redis.wire import Wire, command, explain

__all__ = ["Dialer", "Login", "Server"]

_ATTEMPT_DELAY: Final = 0.1  # seconds from one address of a name to the next

_log = Logger()


@dataclass(frozen=True)
class Login:
    """
    Who asks, and for which database.
    """

    user: str | None = None
    password: str | None = field(default=None, repr=False)
    database: int = 0

    def commands(self) -> list[bytes]:
        """
        What has to be said first.
        """
        said = []
        if self.user is not None:
            said.append(command(b"AUTH", self.user, self.password or ""))
        elif self.password is not None:
            said.append(command(b"AUTH", self.password))
        if self.database:
            said.append(command(b"SELECT", self.database))
        return said


class Dialer:
    """
    Makes connections that are logged in, and know the store's scripts.
    """

    def __init__(
        self,
        reactor: Any,
        timeout: float,
        login: Login,
        tls: Callable[[str], Any] | None = None,
    ) -> None:
        """
        @param timeout: seconds for each connection.
        @param tls: makes the TLS options for a host's name; L{None}: no TLS.
        """
        self.reactor = reactor
        self.timeout = timeout
        self.database = login.database
        self._login = login
        self._tls = tls
        self._warned = False

    async def dial(self, host: str, port: int, login: Login | None = None) -> Wire:
        """
        Connect.

        @param login: another one than usual, for a Sentinel: it gets no
            scripts.
        @raise StoreUnavailable: that could not be done.
        """
        endpoint = self._endpoint(host, port)
        if self._tls is not None:
            endpoint = wrapClientTLS(self._tls(host), endpoint)
        factory = Factory.forProtocol(lambda: Wire(self.reactor))
        factory.noisy = False
        try:
            wire: Wire = await endpoint.connect(factory)
        except (ConnectError, DNSLookupError, OSError) as error:
            raise StoreUnavailable(
                f"no connection to the Redis server at {host}:{port}: {type(error).__name__}"
            ) from error
        try:
            await self._greet(wire, login)
        except BaseException:
            wire.drop("the connection is not used")
            raise
        return wire

    def _endpoint(self, host: str, port: int) -> Any:
        # A refusal is known at once for an address, and only after the delay
        # for a name: it may stand for several.
        if isIPAddress(host):
            return TCP4ClientEndpoint(self.reactor, host, port, self.timeout)
        if isIPv6Address(host):
            return TCP6ClientEndpoint(self.reactor, host, port, self.timeout)
        return HostnameEndpoint(
            self.reactor, host, port, timeout=self.timeout, attemptDelay=_ATTEMPT_DELAY
        )

    async def _greet(self, wire: Wire, login: Login | None) -> None:
        said = (login or self._login).commands()
        last = len(said)
        said.append(command(b"PING"))
        if login is None:
            said.append(command(b"INFO", b"memory"))
            said += [command(b"SCRIPT", b"LOAD", script.text) for script in SCRIPTS]
        deadline = self.reactor.seconds() + self.timeout
        replies = await wire.ask(b"".join(said), len(said), deadline)
        for reply in replies[: last + 1]:
            if isinstance(reply, ReplyError):
                # An unknown AUTH's arguments come back: only the code is safe.
                code = str(reply).partition(" ")[0]
                raise (
                    StoreUnavailable("the Redis server refused user, password or database")
                    if code == "ERR"
                    else explain(code)
                )
        if replies[last] != b"PONG":
            raise StoreUnavailable("what answers is not a Redis server")
        if login is None and isinstance(replies[last + 1], bytes):
            self._checkMemory(replies[last + 1])

    def _checkMemory(self, info: bytes) -> None:
        facts = dict(line.partition(b":")[::2] for line in info.split(b"\r\n"))
        policy = facts.get(b"maxmemory_policy", b"noeviction")
        if policy != b"noeviction" and not self._warned:
            self._warned = True
            _log.warn(
                "The Redis server may throw sessions away when its memory is full: its"
                " maxmemory-policy is {policy}. Set it to noeviction",
                policy=policy.decode("ascii", "replace"),
            )


class Server(Redialed[Wire]):
    """
    One server, or whichever is the master just now.
    """

    def __init__(
        self,
        reactor: Any,
        dial: Callable[[], Coroutine[Any, Any, Wire]],
        timeout: float,
        patient: bool,
        where: str = "",
    ) -> None:
        """
        @param where: as in C{" at host:port"}, if it is always the same.

        See L{Redialed} for the others.
        """
        super().__init__(reactor, dial, timeout, patient, Wire.peer + where)

    def ask(self, payload: bytes, count: int, deadline: float) -> Deferred[list[Any]]:
        """
        See L{Wire.ask}.
        """
        wire = self._wire
        if wire is not None and wire.isUp:
            return wire.ask(payload, count, deadline)
        return self.up().addCallback(lambda wire: wire.ask(payload, count, deadline))
