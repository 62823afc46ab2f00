"""
Hearing what is published on a channel: a connection that only listens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from hiredis import ReplyError
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from twsessions.errors import StoreUnavailable
from twsessions.stores._redis.link import Server
from twsessions.stores._redis.route import Route
from twsessions.stores._redis.wire import Wire, command, explain

__all__ = ["Subscription"]

_PULSE: Final = 10.0  # seconds between two signs of life that are asked for
_FIRST_DELAY: Final = 0.1  # seconds from a lost connection to the next try
_LAST_DELAY: Final = 5.0

_log = Logger()


class Subscription:
    """
    One that, once asked for, comes back by itself.
    """

    def __init__(
        self, route: Route, channel: bytes, heard: Callable[[bytes | None], object]
    ) -> None:
        """
        @param heard: called with what is published, and with L{None} when
            something may have been missed.
        """
        self._route = route
        self._reactor = route.reactor
        self._channel = channel
        self._heard = heard
        self._server = Server(self._reactor, self._subscribe, route.timeout, patient=True)
        self._timer: Any = None
        self._delay = _FIRST_DELAY
        self._isAnswered = True
        self._wasLost = False
        self._starting = 0
        self._waiting: list[Deferred[None]] = []  # for it to be decided
        self._closed = False

    async def start(self) -> None:
        """
        Listen. If it fails it is tried again all the same.

        @raise StoreUnavailable: it is not in force yet.
        """
        self._starting += 1
        try:
            await self._server.up()
            self._isBack()
        except StoreUnavailable:
            self._later()
            raise
        finally:
            self._starting -= 1
            if not self._starting:
                waiting, self._waiting = self._waiting, []
                for one in waiting:
                    one.callback(None)

    async def decided(self) -> None:
        """
        Wait until no L{start} is under way.
        """
        if self._starting:
            waiting: Deferred[None] = Deferred()
            self._waiting.append(waiting)
            await waiting

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
            self._tell(message[2])

    def _tell(self, payload: bytes | None) -> None:
        if self._closed:
            return
        try:
            self._heard(payload)
        except Exception:
            _log.failure("hearing of what was published failed")

    def _beat(self, wire: Wire) -> None:
        # A connection that only listens cannot tell silence from death.
        if self._isAnswered:
            self._isAnswered = False
            wire.send(command("PING"))
            self._setTimer(_PULSE, self._beat, wire)
        else:
            wire.drop("the Redis server gives no sign of life")

    def _later(self) -> None:
        self._wasLost = True
        if not self._closed:
            self._setTimer(self._delay, self._again)
            self._delay = min(self._delay * 2, _LAST_DELAY)

    def _again(self) -> None:
        def failed(failure: Failure) -> None:
            failure.trap(StoreUnavailable)
            self._later()

        self._server.up().addCallbacks(lambda _: self._isBack(), failed)

    def _isBack(self) -> None:
        if self._wasLost:
            self._wasLost = False
            self._tell(None)  # something may have been missed

    def _setTimer(self, seconds: float | None, *call: Any) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None if seconds is None else self._reactor.callLater(seconds, *call)
