"""
A memcached server: how it is dialled, and what it is asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, cast

from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.error import ConnectError, DNSLookupError
from twisted.internet.protocol import Factory

from twsessions.errors import StoreUnavailable
from twsessions.stores._memcache.ask import Ask, fill, spell
from twsessions.stores._memcache.wire import Wire
from twsessions.stores._redial import Redialed

__all__ = ["Server"]

_RELATIVE: Final = 30 * 86400  # seconds; to memcached a larger number is a date
_LAST_DATE: Final = 2**31 - 1  # the largest it reads
_OVERHEAD: Final = 128  # bytes of an item beside prefix and value, and some to spare


class Server(Redialed[Wire]):
    """
    One server.

    @ivar name: host and port.
    @ivar valueSize: bytes of the largest value it takes; L{None} as long as
        that is not known.
    """

    def __init__(
        self, reactor: Any, host: str, port: int, prefix: bytes, timeout: float, patient: bool
    ) -> None:
        """
        @param prefix: of all keys.

        See L{Redialed} for the others.
        """
        self.name = f"{host}:{port}"
        super().__init__(
            reactor, self._greeted, timeout, patient, f"memcached server at {self.name}"
        )
        self.valueSize: int | None = None
        self._address = host, port
        self._prefix = prefix
        self._ahead = 0.0  # seconds by which the server's clock is ahead of the reactor's

    async def run(self, asks: Sequence[Ask], deadline: float) -> None:
        """
        Send all commands in one flight and have their replies filled in. Does
        not fail.

        @param deadline: by the reactor's clock.
        """
        try:
            wire = self._wire
            if wire is None or not wire.isUp:
                wire = await self.up()
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

    def _expiry(self, ttl: float) -> int:
        seconds = int(ttl) + 1
        if seconds <= _RELATIVE:
            return seconds
        date = int(self._reactor.seconds() + self._ahead) + seconds
        return date if date <= _LAST_DATE else 0

    # The connection

    async def _greeted(self) -> Wire:
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
