"""
A memcached server: its connection, which is made anew when it was lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, cast

from twisted.internet.defer import CancelledError, Deferred, TimeoutError, fail, succeed
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.error import ConnectError, ConnectingCancelledError, DNSLookupError
from twisted.internet.protocol import Factory
from twisted.logger import Logger
from twisted.python.failure import Failure

from twsessions.errors import StoreUnavailable
from twsessions.stores._memcacheask import Ask, fill, spell
from twsessions.stores._memcachewire import Wire

__all__ = ["Server"]

_FIRST_DELAY: Final = 0.05  # seconds after a failure in which there is no other try
_LAST_DELAY: Final = 1.0
_RELATIVE: Final = 30 * 86400  # seconds; to memcached a larger number is a date
_LAST_DATE: Final = 2**31 - 1  # the largest it reads
_OVERHEAD: Final = 128  # bytes of an item beside prefix and value, and some to spare

_log = Logger()


class Server:
    """
    One server. There is no connection until somebody asks for something, and
    none is kept trying for nobody.

    @ivar name: host and port.
    @ivar valueSize: bytes of the largest value it takes; L{None} as long as
        that is not known.
    """

    def __init__(
        self, reactor: Any, host: str, port: int, prefix: bytes, timeout: float, patient: bool
    ) -> None:
        """
        @param prefix: of all keys.
        @param timeout: seconds for connecting.
        @param patient: who asks while a try to connect follows one that
            failed waits for it. Otherwise they fail at once: others' answers
            may depend on it.
        """
        self.name = f"{host}:{port}"
        self.valueSize: int | None = None
        self._reactor = reactor
        self._address = host, port
        self._prefix = prefix
        self._timeout = timeout
        self._patient = patient
        self._ahead = 0.0  # seconds by which the server's clock is ahead of the reactor's
        self._wire: Wire | None = None
        self._latest: Wire | None = None  # which may not be in use yet, or not any more
        self._attempt: Deferred[None] | None = None
        self._waiting: list[Deferred[Wire]] = []
        self._delay = 0.0  # seconds from the last failure to the next try; 0: it did not fail
        self._nextTry = 0.0
        self._last = StoreUnavailable("")
        self._closed = False

    async def run(self, asks: Sequence[Ask], deadline: float) -> None:
        """
        Send all commands in one flight and have their replies filled in. Does
        not fail.

        @param deadline: by the reactor's clock.
        """
        try:
            wire = self._wire
            if wire is None or not wire.isUp:
                wire = await self._up()
            payload, whose = spell(asks, self._prefix, wire, self._expiry)
            if not whose:
                return
            replies = await wire.ask(payload, len(whose), deadline)
            try:
                fill(asks, whose, replies, wire)
            except ValueError:
                # Later replies cannot be trusted to belong to what was asked.
                wire.drop("the memcached server answered nonsense")
                raise StoreUnavailable("the memcached server's answer makes no sense") from None
        except StoreUnavailable as error:
            for ask in asks:
                # Each its own: one raised in many places gathers their tracebacks.
                ask.reply = StoreUnavailable(*error.args)

    def close(self) -> Deferred[None]:
        """
        Drop everything, for good.
        """
        self._closed = True
        if self._attempt is not None:
            self._attempt.cancel()
        if self._latest is None:
            return succeed(None)
        self._latest.drop("the store has been closed")
        return self._latest.lost

    def _expiry(self, ttl: float) -> int:
        seconds = int(ttl) + 1
        if seconds <= _RELATIVE:
            return seconds
        date = int(self._reactor.seconds() + self._ahead) + seconds
        return date if date <= _LAST_DATE else 0

    # The connection

    def _up(self) -> Deferred[Wire]:
        if self._closed:
            return fail(StoreUnavailable("the store has been closed"))
        if self._wire is not None and not self._wire.isUp:
            self._lost(None, self._wire)  # it is being closed
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

    async def _dial(self) -> Wire:
        endpoint = HostnameEndpoint(self._reactor, *self._address, timeout=self._timeout)
        factory = Factory.forProtocol(lambda: Wire(self._reactor))
        factory.noisy = False
        try:
            wire = cast(Wire, await endpoint.connect(factory))
        except (ConnectError, DNSLookupError, OSError) as error:
            raise StoreUnavailable(
                f"no connection to the memcached server at {self.name}: {type(error).__name__}"
            ) from error
        self._latest = wire
        try:
            await self._greet(wire)
        except BaseException:
            wire.drop("the connection is not used")
            raise
        return wire

    async def _greet(self, wire: Wire) -> None:
        began = self._reactor.seconds()
        stats, settings = await wire.ask(b"stats\r\nstats settings\r\n", 2, began + self._timeout)
        try:
            if not isinstance(stats, dict) or not isinstance(settings, dict):
                raise ValueError("a server of another kind, or one that wants a password")
            ahead = int(stats[b"time"]) - began
            wire.itemSize = int(settings[b"item_size_max"])
        except (KeyError, ValueError):
            raise StoreUnavailable(
                f"what answers at {self.name} is no memcached server that can be used"
            ) from None
        if settings.get(b"cas_enabled") == b"no":
            raise StoreUnavailable(
                f"the memcached server at {self.name} runs without CAS: start it without -C"
            )
        self._ahead = ahead
        self.valueSize = wire.itemSize - len(self._prefix) - _OVERHEAD

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
            self._last = StoreUnavailable(
                f"the memcached server at {self.name} did not answer in time"
            )
        elif not isinstance(error, Exception):
            failure.raiseException()
        else:
            _log.failure("a memcached server could not be connected to", failure=failure)
            self._last = StoreUnavailable(f"no connection to memcached: {type(error).__name__}")
        self._backOff()
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            one.errback(StoreUnavailable(*self._last.args))

    def _backOff(self) -> None:
        self._delay = min(max(_FIRST_DELAY, self._delay * 2), _LAST_DELAY)
        self._nextTry = self._reactor.seconds() + self._delay

    def _lost(self, _: None, wire: Wire) -> None:
        if self._wire is wire:
            self._wire = None
            if wire.isLate:
                # It hangs, and would take a connection without a word.
                self._last = StoreUnavailable("the memcached server did not answer in time")
                self._backOff()
