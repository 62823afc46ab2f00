"""
One connection to PostgreSQL: libpq, which a reactor tells when to read and to
write. Nothing here waits, and nothing is tried again.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

from psycopg import OperationalError, pq
from psycopg.pq.abc import PGconn, PGresult
from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IReactorFDSet, IReadWriteDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

from twsessions.errors import StoreUnavailable

__all__ = ["Wire"]

T = TypeVar("T")

_BINARY: Final = 1


class _Asked:
    """
    A statement under way, and who waits for its result.
    """

    __slots__ = ("answer", "result")

    def __init__(self) -> None:
        self.answer: Deferred[PGresult] = Deferred()
        self.result: PGresult | None = None


@implementer(IReadWriteDescriptor)
class Wire:
    """
    A connection: first L{connect}, then L{script} until L{pipeline}, then
    L{ask}. It never comes back once it was lost.

    @ivar isUp: whether statements can be sent.
    """

    def __init__(
        self,
        reactor: IReactorFDSet,
        lost: Callable[[StoreUnavailable], object],
        notified: Callable[[bytes], object],
        noticed: Callable[[PGresult], None],
    ) -> None:
        """
        @param lost: called once, when the connection is lost after
            L{pipeline}; all that was under way has failed by then.
        @param notified: called with the payload of each notification.
        @param noticed: called with each notice and warning.
        """
        self._reactor: Any = reactor
        self._lost = lost
        self._notified = notified
        self._noticed = noticed
        self._pgconn: PGconn | None = None
        self._fd = -1
        self._asked: deque[_Asked] = deque()
        self._connecting: Deferred[None] | None = None
        self._script: tuple[Deferred[list[PGresult]], list[PGresult]] | None = None
        self.isUp = False

    # Before statements

    def connect(self, conninfo: bytes) -> Deferred[None]:
        """
        Connect and log in. Host names have to be resolved already: libpq
        would wait for the answer.
        """
        waiting: Deferred[None] = Deferred()
        self._connecting = waiting
        self._pgconn = pq.PGconn.connect_start(conninfo)
        self._pgconn.notice_handler = self._noticed
        self._poll()
        return waiting

    def script(self, statements: bytes) -> Deferred[list[PGresult]]:
        """
        Have statements, separated by semicolons, done as one transaction.

        @return: fires with their results, up to the first that is an error.
        """
        if self._pgconn is None:
            return fail(StoreUnavailable("the connection to PostgreSQL was lost"))
        waiting: Deferred[list[PGresult]] = Deferred()
        self._script = waiting, []
        self._do(lambda pgconn: pgconn.send_query(statements))
        return waiting

    def pipeline(self) -> None:
        """
        From now on L{ask} can be used, and L{script} cannot.
        """
        if self._pgconn is not None:
            self._pgconn.enter_pipeline_mode()
            self.isUp = True

    # Statements

    @property
    def underway(self) -> int:
        """
        How many statements are.
        """
        return len(self._asked)

    def ask(self, name: bytes, parameters: Sequence[bytes | None]) -> Deferred[PGresult]:
        """
        Send a prepared statement, a transaction of its own. Those before it
        need not have been answered.

        @return: fires with its result, which may be an error.
        """
        if not self.isUp:
            return fail(StoreUnavailable("the connection to PostgreSQL was lost"))
        asked = _Asked()
        self._asked.append(asked)
        values, formats = list(parameters), [_BINARY] * len(parameters)

        def send(pgconn: PGconn) -> None:
            pgconn.send_query_prepared(name, values, formats, _BINARY)
            pgconn.pipeline_sync()

        self._do(send)
        return asked.answer

    def drop(self, why: StoreUnavailable) -> None:
        """
        Let go of the connection; whoever waits is told why.
        """
        pgconn, self._pgconn = self._pgconn, None
        if pgconn is None:
            return
        self._unregister()
        pgconn.notice_handler = None
        pgconn.finish()
        wasUp, self.isUp = self.isUp, False
        waiting: list[Deferred[Any]] = [asked.answer for asked in self._asked]
        self._asked.clear()
        if self._connecting is not None:
            waiting.append(self._connecting)
        if self._script is not None:
            waiting.append(self._script[0])
        self._connecting = self._script = None
        for one in waiting:
            own = StoreUnavailable(*why.args)
            _tell(one, own)
        if wasUp:
            self._lost(why)

    # The reactor's side

    def fileno(self) -> int:
        """
        See L{IReadWriteDescriptor}.
        """
        return self._fd

    def logPrefix(self) -> str:
        """
        See L{IReadWriteDescriptor}.
        """
        return "PostgreSQL"

    def doRead(self) -> None:
        """
        See L{IReadWriteDescriptor}.
        """
        if self._connecting is not None:
            self._poll()
        elif self._pgconn is not None:
            self._do(lambda pgconn: pgconn.consume_input())
            self._take()

    def doWrite(self) -> None:
        """
        See L{IReadWriteDescriptor}.
        """
        if self._connecting is not None:
            self._poll()
        else:
            self._do(lambda pgconn: None)

    def connectionLost(self, reason: Failure) -> None:
        """
        See L{IReadWriteDescriptor}.
        """
        if self._connecting is not None:
            self._poll()  # there may be another host to try
        else:
            self.drop(StoreUnavailable("the connection to PostgreSQL was lost"))

    def _register(self, read: bool, write: bool) -> None:
        assert self._pgconn is not None
        # A duplicate: libpq closes its own whenever it likes, and the next file
        # that is opened anywhere in the process may be given the same number.
        self._fd = os.dup(self._pgconn.socket)
        if read:
            self._reactor.addReader(self)
        if write:
            self._reactor.addWriter(self)

    def _unregister(self) -> None:
        if self._fd >= 0:
            self._reactor.removeReader(self)
            self._reactor.removeWriter(self)
            os.close(self._fd)
            self._fd = -1

    def _poll(self) -> None:
        pgconn, waiting = self._pgconn, self._connecting
        assert pgconn is not None and waiting is not None
        # libpq may go on with another socket.
        self._unregister()
        status = pgconn.connect_poll()
        if status == pq.PollingStatus.FAILED:
            self.drop(_unavailable(pgconn))
        elif status == pq.PollingStatus.OK:
            pgconn.nonblocking = 1
            self._connecting = None
            self._register(True, False)
            _tell(waiting, None)
        else:
            reads = status == pq.PollingStatus.READING
            self._register(reads, not reads)

    def _do(self, f: Callable[[PGconn], object]) -> None:
        """
        Have something done with the connection, and send what there is to
        be sent.
        """
        pgconn = self._pgconn
        if pgconn is None:
            return
        try:
            f(pgconn)
            if pgconn.flush():
                self._reactor.addWriter(self)
            else:
                self._reactor.removeWriter(self)
        except OperationalError:
            self._take()  # the server may have said why
            self.drop(_unavailable(pgconn))

    def _take(self) -> None:
        """
        Hand out what has arrived.
        """
        between = False
        while (pgconn := self._pgconn) is not None:
            while (notification := pgconn.notifies()) is not None:
                self._notified(notification.extra)
            if not (self._asked or self._script) or pgconn.is_busy():
                break
            result = pgconn.get_result()
            if self._script is not None:
                self._takeScript(result)
            elif result is not None:
                self._takeResult(result)
            elif between:
                break  # nothing between two statements twice: it was lost
            between = result is None
        if pgconn is not None and pgconn.status == pq.ConnStatus.BAD:
            self.drop(_unavailable(pgconn))

    def _takeScript(self, result: PGresult | None) -> None:
        assert self._script is not None
        waiting, results = self._script
        if result is None:
            self._script = None
            _tell(waiting, results)
        else:
            results.append(result)

    def _takeResult(self, result: PGresult) -> None:
        asked = self._asked[0]
        if result.status != pq.ExecStatus.PIPELINE_SYNC:
            asked.result = result
            return
        self._asked.popleft()
        if asked.result is None:
            self.drop(StoreUnavailable("PostgreSQL answered what was not asked"))
        else:
            _tell(asked.answer, asked.result)


def _tell(waiting: Deferred[T], outcome: T | StoreUnavailable) -> None:
    if waiting.called:
        return  # cancelled
    if isinstance(outcome, StoreUnavailable):
        waiting.errback(outcome)
    else:
        waiting.callback(outcome)


def _unavailable(pgconn: PGconn) -> StoreUnavailable:
    lines = pgconn.error_message.decode("utf-8", "replace").splitlines()
    said = lines[0].strip() if lines else ""
    return StoreUnavailable(said or "the connection to PostgreSQL was lost")
