"""
A connection to PostgreSQL that is made anew when it was lost, with a deadline
for every statement.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from psycopg import pq
from psycopg.pq.abc import PGresult
from twisted.internet.defer import CancelledError, Deferred, TimeoutError, fail
from twisted.internet.interfaces import IDelayedCall
from twisted.python.failure import Failure

from twsessions.errors import StoreError, StoreUnavailable
from twsessions.stores._postgres.dial import Dialer
from twsessions.stores._postgres.errors import explain, isFinal, isOfData, isPassing, stateOf
from twsessions.stores._postgres.wire import Wire

__all__ = ["Link", "Refused"]

_FIRST_DELAY: Final = 0.05  # seconds after a failure in which there is no other try
_LAST_DELAY: Final = 1.0
_TRIES: Final = 5  # of a transaction that met another

_Parameters = Sequence[bytes | None]


class Refused(StoreError):
    """
    What was sent cannot be stored; nothing was.
    """


class _Call:
    """
    A statement, and who waits for its result.
    """

    __slots__ = ("answer", "name", "parameters", "timer", "tries")

    def __init__(self, name: bytes, parameters: Callable[[int], _Parameters]) -> None:
        self.name = name
        self.parameters = parameters
        self.answer: Deferred[PGresult] = Deferred()
        self.tries = 0
        self.timer: Any = None


class Link:
    """
    Sends statements to the server, each of which is a transaction.

    It connects when there is something to send; with L{keep}, by itself as
    well. What was sent when a connection is lost fails, as its outcome is not
    known. What was not sent waits for the next one. For a while after a
    connection could not be made everything fails at once.
    """

    def __init__(
        self,
        dialer: Dialer,
        depth: int,
        noticed: Callable[[PGresult], None],
        listens: str | None = None,
        notified: Callable[[bytes], object] = lambda payload: None,
    ) -> None:
        """
        @param depth: how many statements are sent without waiting for the
            answers. With 1 none is done that was given up on before it could
            begin.
        @param noticed: called with the server's notices.
        @param listens: to what; see
            L{greeting<twsessions.stores._postgres.schema.greeting>}.
        @param notified: called with the payloads of notifications.
        """
        self._dialer = dialer
        self._reactor = dialer.reactor
        self._depth = depth
        self._noticed = noticed
        self._listens = listens
        self._notified = notified
        self._back: Callable[[], object] | None = None
        self._wire: Wire | None = None
        self._wasLost = False
        self._change = 0
        self._dialing: Deferred[None] | None = None
        self._retry: IDelayedCall | None = None
        self._delay = 0.0
        self._notBefore = -1.0
        self._why = StoreUnavailable("not connected")
        self._queue: deque[_Call] = deque()
        self._sent: set[_Call] = set()
        self._closed: list[Deferred[None]] | None = None

    def ask(self, name: bytes, *parameters: bytes | None) -> Deferred[PGresult]:
        """
        Have a prepared statement done.

        @return: fires with its result; fails with L{StoreUnavailable}, or
            with L{Refused}.
        """
        return self.askWith(name, lambda change: parameters)

    def askWith(self, name: bytes, parameters: Callable[[int], _Parameters]) -> Deferred[PGresult]:
        """
        As L{ask}, for parameters that depend on the OID of the type
        C{change}.
        """
        if self._closed is not None:
            return fail(StoreUnavailable("the store has been closed"))
        call = _Call(name, parameters)
        call.timer = self._reactor.callLater(self._dialer.timeout, self._expire, call)
        self._queue.append(call)
        self._send()
        return call.answer

    def keep(self, back: Callable[[], object]) -> None:
        """
        From now on connect by itself.

        @param back: called when a connection was lost and is back.
        """
        self._back = back

    def close(self) -> Deferred[None]:
        """
        Take nothing more, and let go when all is answered.
        """
        if self._closed is None:
            self._closed = []
        done: Deferred[None] = Deferred()
        self._closed.append(done)
        self._finish()
        return done

    # Connections

    def _connect(self) -> None:
        retry, self._retry = self._retry, None
        if retry is not None and retry.active():
            retry.cancel()
        if self._dialing is not None or self._wire is not None:
            return
        wires: list[Wire] = []

        async def dial() -> None:
            wire, self._change = await self._dialer.dial(
                self._listens, self._lost, self._notified, self._noticed
            )
            wires.append(wire)

        def done(result: Any) -> None:
            self._dialing = None
            if not isinstance(result, Failure):
                self._wire = wires[0]
                self._delay = 0.0
                if self._back is not None and self._wasLost:
                    self._back()
                self._wasLost = False
                self._send()
                self._finish()
                return
            why = result.value
            if isinstance(why, (CancelledError, TimeoutError)):
                why = StoreUnavailable(
                    f"PostgreSQL did not answer within {self._dialer.timeout:g} s"
                )
            self._failed(_asUnavailable(why))

        self._dialing = dialing = Deferred.fromCoroutine(dial())
        dialing.addTimeout(self._dialer.timeout, self._reactor)
        dialing.addBoth(done)

    def _failed(self, why: StoreUnavailable) -> None:
        self._why = why
        self._wasLost = True
        self._delay = min(_LAST_DELAY, self._delay * 2 or _FIRST_DELAY)
        self._notBefore = self._reactor.seconds() + self._delay
        for call in list(self._queue):
            self._answer(call, StoreUnavailable(*why.args))
        self._comeBack()
        self._finish()

    def _lost(self, why: StoreUnavailable) -> None:
        self._wire = None
        self._why = why
        self._wasLost = True
        self._comeBack()
        if self._queue:
            self._send()

    def _comeBack(self) -> None:
        if self._back is not None and self._retry is None and self._closed is None:
            self._retry = self._reactor.callLater(max(self._delay, _FIRST_DELAY), self._connect)

    # Statements

    def _send(self) -> None:
        wire = self._wire
        if wire is None:
            if self._dialing is None and self._queue:
                if self._reactor.seconds() < self._notBefore:
                    for call in list(self._queue):
                        self._answer(call, StoreUnavailable(*self._why.args))
                else:
                    self._connect()
            return
        while self._queue and wire.underway < self._depth and wire.isUp:
            call = self._queue.popleft()
            self._sent.add(call)
            call.tries += 1
            asked = wire.ask(call.name, call.parameters(self._change))
            asked.addBoth(self._answered, call)

    def _answered(self, result: PGresult | Failure, call: _Call) -> None:
        self._sent.discard(call)
        if isinstance(result, Failure):
            self._answer(call, _asUnavailable(result.value))
        elif result.status in (pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK):
            self._answer(call, result)
        else:
            self._refused(result, call)
        self._send()

    def _refused(self, result: PGresult, call: _Call) -> None:
        state = stateOf(result)
        if isPassing(state) and call.tries < _TRIES and not call.answer.called:
            self._queue.appendleft(call)
            return
        why = explain(result)
        self._answer(call, Refused(*why.args) if isOfData(state) else why)
        if isFinal(state) and self._wire is not None:
            self._wire.drop(why)

    def _expire(self, call: _Call) -> None:
        call.timer = None
        why = StoreUnavailable(f"PostgreSQL did not answer within {self._dialer.timeout:g} s")
        wasSent = call in self._sent
        self._answer(call, why)
        if wasSent and self._wire is not None:
            self._wire.drop(why)  # or its answer would be taken for another's

    def _answer(self, call: _Call, outcome: PGresult | StoreError) -> None:
        if call.timer is not None:
            call.timer.cancel()
            call.timer = None
        if call in self._queue:
            self._queue.remove(call)
        if not call.answer.called:
            if isinstance(outcome, StoreError):
                call.answer.errback(outcome)
            else:
                call.answer.callback(outcome)
        self._finish()

    def _finish(self) -> None:
        if self._closed is None or self._queue or self._sent:
            return
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        if self._dialing is not None:
            self._dialing.cancel()
        if self._wire is not None:
            self._wire.drop(StoreUnavailable("the store has been closed"))
        waiting, self._closed = self._closed, []
        for one in waiting:
            one.callback(None)


def _asUnavailable(error: Any) -> StoreUnavailable:
    if isinstance(error, StoreUnavailable):
        return error
    # Not what it says: that may be anything.
    return StoreUnavailable(f"PostgreSQL could not be used: {type(error).__name__}")
