"""
Hearing of sessions that other processes end: a connection that only listens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from hiredis import ReplyError
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from twsessions.errors import StoreUnavailable
from twsessions.stores._redis.link import Server
from twsessions.stores._redis.route import Route
from twsessions.stores._redis.wire import Wire, command, explain

__all__ = ["Hints"]

_KEY: Final = 32  # bytes of a key; a message is some of them
_PULSE: Final = 10.0  # seconds between two signs of life that are asked for
_FIRST_DELAY: Final = 0.1  # seconds from a lost connection to the next try
_LAST_DELAY: Final = 5.0

_log = Logger()


class Hints:
    """
    A subscription that, once asked for, comes back by itself.
    """

    def __init__(self, route: Route, channel: bytes) -> None:
        self._route = route
        self._reactor = route.reactor
        self._channel = channel
        self._heard: Callable[[Sequence[bytes] | None], None] | None = None
        self._server = Server(self._reactor, self._subscribe, route.timeout, patient=True)
        self._timer: Any = None
        self._delay = _FIRST_DELAY
        self._isAnswered = True
        self._closed = False

    async def watch(self, heard: Callable[[Sequence[bytes] | None], None]) -> None:
        """
        See L{ISessionStore.watch<twsessions.interfaces.ISessionStore.watch>}.
        If it fails it is tried again all the same.
        """
        self._heard = heard
        try:
            await self._server.up()
        except StoreUnavailable:
            self._later()
            raise

    async def close(self) -> None:
        """
        Stop listening.
        """
        self._closed = True
        self._setTimer(None)
        await self._server.close()

    async def _subscribe(self) -> Wire:
        wire = await self._route.connect()
        confirmed: Deferred[None] = Deferred()

        def first(reply: Any) -> None:
            if isinstance(reply, ReplyError):
                confirmed.errback(explain(reply))
            else:
                wire.pushed = lambda message: self._pushed(wire, message)
                confirmed.callback(None)

        def lost(_: None) -> None:
            if not confirmed.called:
                confirmed.errback(StoreUnavailable("the connection to the Redis server was lost"))
            else:
                self._later()

        wire.pushed = first
        wire.lost.addCallback(lost)
        wire.send(command("SUBSCRIBE", self._channel))
        try:
            await confirmed
        except BaseException:
            wire.drop("the connection is not used")
            raise
        self._delay = _FIRST_DELAY
        self._isAnswered = True
        self._setTimer(_PULSE, self._beat, wire)
        return wire

    def _pushed(self, wire: Wire, message: Any) -> None:
        self._isAnswered = True
        if isinstance(message, list) and message[:2] == [b"message", self._channel]:
            keys = message[2]
            self._tell([keys[at : at + _KEY] for at in range(0, len(keys), _KEY)])

    def _tell(self, keys: Sequence[bytes] | None) -> None:
        if self._heard is None or self._closed:
            return
        try:
            self._heard(keys)
        except Exception:
            _log.failure("hearing of sessions that have ended failed")

    def _beat(self, wire: Wire) -> None:
        # A connection that only listens cannot tell silence from death.
        if self._isAnswered:
            self._isAnswered = False
            wire.send(command("PING"))
            self._setTimer(_PULSE, self._beat, wire)
        else:
            wire.drop("the Redis server gives no sign of life")

    def _later(self) -> None:
        if not self._closed:
            self._setTimer(self._delay, self._again)
            self._delay = min(self._delay * 2, _LAST_DELAY)

    def _again(self) -> None:
        def failed(failure: Failure) -> None:
            failure.trap(StoreUnavailable)
            self._later()

        # Some may have been missed.
        self._server.up().addCallbacks(lambda _: self._tell(None), failed)

    def _setTimer(self, seconds: float | None, *call: Any) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None if seconds is None else self._reactor.callLater(seconds, *call)
