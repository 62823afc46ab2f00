"""
A Redis server: how it is dialled, and its connection, which is made anew when
it was lost.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Final

from hiredis import ReplyError
from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.defer import CancelledError, Deferred, TimeoutError, fail, succeed
from twisted.internet.endpoints import (
    HostnameEndpoint,
    TCP4ClientEndpoint,
    TCP6ClientEndpoint,
    wrapClientTLS,
)
from twisted.internet.error import ConnectError, ConnectingCancelledError, DNSLookupError
from twisted.internet.protocol import Factory
from twisted.logger import Logger
from twisted.python.failure import Failure

from twsessions.errors import StoreUnavailable
from twsessions.stores._redisscripts import SCRIPTS
from twsessions.stores._rediswire import Wire, command, explain

__all__ = ["Dialer", "Login", "Server", "whenFires"]

_FIRST_DELAY: Final = 0.05  # seconds after a failure in which there is no other try
_LAST_DELAY: Final = 1.0
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


class Server:
    """
    One server, or whichever is the master just now. There is no connection
    until somebody asks for something, and none is kept trying for nobody.
    """

    def __init__(
        self,
        reactor: Any,
        dial: Callable[[], Coroutine[Any, Any, Wire]],
        timeout: float,
        patient: bool,
    ) -> None:
        """
        @param dial: connects; fails with L{StoreUnavailable}.
        @param timeout: seconds for C{dial}.
        @param patient: who asks while a try to connect follows one that
            failed waits for it. Otherwise they fail at once: others' answers
            may depend on it.
        """
        self._reactor = reactor
        self._dial = dial
        self._timeout = timeout
        self._patient = patient
        self._wire: Wire | None = None
        self._attempt: Deferred[None] | None = None
        self._waiting: list[Deferred[Wire]] = []
        self._delay = 0.0  # seconds from the last failure to the next try; 0: it did not fail
        self._nextTry = 0.0
        self._last = StoreUnavailable("")
        self._closed = False

    @property
    def isDown(self) -> bool:
        """
        Whether it could not be reached the last time.
        """
        return self._delay > 0

    @property
    def isUp(self) -> bool:
        """
        Whether there is a connection.
        """
        return self._wire is not None and self._wire.isUp

    def ask(self, payload: bytes, count: int, deadline: float) -> Deferred[list[Any]]:
        """
        See L{Wire.ask}.
        """
        wire = self._wire
        if wire is not None and wire.isUp:
            return wire.ask(payload, count, deadline)
        return self.up().addCallback(lambda wire: wire.ask(payload, count, deadline))

    def drop(self, why: str) -> None:
        """
        Drop the connection, if there is one; the next call makes another.
        """
        if self._wire is not None:
            self._wire.drop(why)

    def close(self) -> Deferred[None]:
        """
        Drop everything, for good.
        """
        self._closed = True
        if self._attempt is not None:
            self._attempt.cancel()
        if self._wire is None:
            return succeed(None)
        gone = whenFires(self._wire.lost)
        self._wire.drop("the store has been closed")
        return gone

    def up(self) -> Deferred[Wire]:
        """
        Be connected.
        """
        if self._closed:
            return fail(StoreUnavailable("the store has been closed"))
        if self._wire is not None:
            self._note(self._wire)  # it may not be closed quite yet
        if self._attempt is None:
            if self._reactor.seconds() < self._nextTry:
                return fail(StoreUnavailable(*self._last.args))
            self._try()
        if self._wire is not None and self._wire.isUp:
            return succeed(self._wire)
        if self._attempt is None or (self._delay and not self._patient):
            return fail(StoreUnavailable(*self._last.args))
        waiting: Deferred[Wire] = Deferred()
        self._waiting.append(waiting)
        return waiting

    def _try(self) -> None:
        attempt = Deferred.fromCoroutine(self._dial())
        attempt.addTimeout(self._timeout, self._reactor)
        done: Deferred[None] = attempt.addCallbacks(self._connected, self._failed)
        self._attempt = None if done.called else done

    def _connected(self, wire: Wire) -> None:
        self._attempt = None
        self._delay = 0.0
        self._wire = wire
        wire.lost.addCallback(self._lost, wire)
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            one.callback(wire)

    def _failed(self, failure: Failure) -> None:
        self._attempt = None
        error = failure.value
        if isinstance(error, StoreUnavailable):
            self._last = error
        elif failure.check(CancelledError, ConnectingCancelledError, TimeoutError):
            self._last = StoreUnavailable("the Redis server did not answer in time")
        elif not isinstance(error, Exception):
            failure.raiseException()
        else:
            _log.failure("a Redis server could not be connected to", failure=failure)
            self._last = StoreUnavailable(f"no connection to Redis: {type(error).__name__}")
        self._backOff()
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            one.errback(StoreUnavailable(*self._last.args))

    def _backOff(self) -> None:
        self._delay = min(max(_FIRST_DELAY, self._delay * 2), _LAST_DELAY)
        self._nextTry = self._reactor.seconds() + self._delay

    def _lost(self, _: None, wire: Wire) -> None:
        self._note(wire)
        if self._wire is wire:
            self._wire = None

    def _note(self, wire: Wire) -> None:
        if wire.isLate:
            # It hangs, and would take a connection without a word.
            wire.isLate = False
            self._last = StoreUnavailable("the Redis server did not answer in time")
            self._backOff()


def whenFires(deferred: Deferred[None]) -> Deferred[None]:
    """
    Another Deferred that fires when one does.
    """
    after: Deferred[None] = Deferred()

    def tell(result: None) -> None:
        after.callback(None)
        return result

    deferred.addCallback(tell)
    return after
