"""
Sessions in an SQLite file: nothing to install, shared by a host's processes.

Reads and writes have a connection and a worker each, so that a load never
waits for a commit (WAL). Whatever is handed over in one call is one
transaction: the wait for the disk is paid once for all of it.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Any, Concatenate, ParamSpec, TypeVar

from twisted.internet.defer import Deferred, fail
from twisted.logger import Logger
from zope.interface import implementer

from twsessions.core.delta import Change
from twsessions.core.record import Record
from twsessions.errors import (
    NotSupported,
    SessionError,
    StoreUnavailable,
)
from twsessions.interfaces import (
    EVENTS,
    EXCLUSIVE,
    ITERATE,
    PRINCIPALS,
    Ended,
    ISessionStore,
    Message,
    Swept,
    Verdict,
)
from twsessions.stores._sqlite.file import transaction
from twsessions.stores._sqlite.link import Link
from twsessions.stores._sqlite.place import Place
from twsessions.stores._sqlite.queries import Queries
from twsessions.stores._sqlite.rows import Places, Row, Seen
from twsessions.stores._sqlite.transactions import SLICE, Transactions
from twsessions.stores._threads import Worker

__all__ = ["SQLiteStore"]

P = ParamSpec("P")
T = TypeVar("T")


@implementer(ISessionStore)
class SQLiteStore:
    """
    A store in one file, for the processes of one host. Not for a file on a
    network: WAL needs shared memory.

    @ivar path: the file, as an absolute path.
    """

    capabilities = frozenset({EVENTS, PRINCIPALS, EXCLUSIVE, ITERATE})

    _log = Logger()

    def __init__(
        self,
        path: str,
        now: Callable[[], float],
        reader: Worker,
        writer: Worker,
        synchronous: str = "normal",
        patience: float = 1.5,
    ) -> None:
        """
        Nothing is opened or made before the first operation.

        @param now: the time in seconds, the same in all processes; is called
            in the workers.
        @param reader: does what only reads.
        @param writer: does what writes; each of the two is stopped by
            L{close}.
        @param synchronous: C{"normal"}: what was acknowledged survives the
            death of any process; a power cut can take the last commits.
            C{"full"}: it survives that too, and costs a flush a transaction.
        @param patience: seconds a worker waits for another process's lock;
            best less than the site's C{storeTimeout}, so that the reason is
            known when the request fails.
        """
        if synchronous not in ("normal", "full"):
            raise ValueError(f"synchronous is 'normal' or 'full', not {synchronous!r}")
        # Made absolute now: a daemon changes its directory later.
        self.path = os.path.abspath(path)
        place = Place(self.path, now)
        self._reader = Link(self.path, place, reader, synchronous, patience)
        self._writer = Link(self.path, place, writer, synchronous, patience)
        self._closing: Deferred[None] | None = None
        self._corrupt: set[bytes] = set()
        self._seen, self._places = Seen(), Places()
        self._queries = Queries(now, self._places, self._seen)
        self._transactions = Transactions(now, self._places, self._seen)

    # Sessions

    def load(self, keys: Sequence[bytes]) -> Deferred[list[Record | None]]:
        """
        See L{ISessionStore.load}.
        """
        wanted = list(keys)
        return self._reading(self._queries.load, wanted)

    def commit(self, changes: Sequence[Change]) -> Deferred[list[Record | SessionError]]:
        """
        See L{ISessionStore.commit}.
        """
        return self._writing(self._transactions.commit, list(changes)).addCallback(self._report)

    def sweep(self, limit: int) -> Deferred[Swept]:
        """
        See L{ISessionStore.sweep}. While nothing is due it only reads.
        """
        return Deferred.fromCoroutine(self._sweep(limit))

    def iterate(self, after: bytes | None, limit: int) -> Deferred[list[Record]]:
        """
        See L{ISessionStore.iterate}.
        """
        return self._reading(self._queries.iterate, after, limit)

    def watch(self, heard: Callable[[Sequence[bytes] | None], None]) -> Deferred[None]:
        """
        See L{ISessionStore.watch}: a file tells nobody.
        """
        return fail(NotSupported("the SQLite store gives no hints"))

    def publish(self, messages: Sequence[Message]) -> Deferred[list[SessionError | None]]:
        """
        See L{ISessionStore.publish}: a file tells nobody.
        """
        return fail(NotSupported("the SQLite store carries no messages"))

    def subscribe(self, heard: Callable[[Message | None], object]) -> Deferred[None]:
        """
        See L{ISessionStore.subscribe}: a file tells nobody.
        """
        return fail(NotSupported("the SQLite store carries no messages"))

    # Ends

    def listen(self) -> Deferred[None]:
        """
        See L{ISessionStore.listen}.
        """
        return self._writing(self._transactions.listen)

    def claim(self, limit: int, lease: float) -> Deferred[list[Ended]]:
        """
        See L{ISessionStore.claim}. While nothing is to be had it only reads.
        """
        return Deferred.fromCoroutine(self._claim(limit, lease))

    def settle(self, verdicts: Sequence[Verdict]) -> Deferred[list[bool]]:
        """
        See L{ISessionStore.settle}.
        """
        return self._writing(self._transactions.settle, list(verdicts))

    # Principals

    def sessionsOf(self, principal: str) -> Deferred[list[Record]]:
        """
        See L{ISessionStore.sessionsOf}.
        """
        # As bytes: of half a surrogate pair, which is nobody's, the driver makes no text.
        name = principal.encode("utf-8", "surrogatepass")
        return self._reading(self._queries.select, "principal = CAST(? AS TEXT)", name).addCallback(
            lambda records: sorted(records, key=lambda record: record.created)
        )

    def withHandle(self, handle: bytes) -> Deferred[Record | None]:
        """
        See L{ISessionStore.withHandle}.
        """
        return self._reading(self._queries.select, "handle = ?", handle).addCallback(
            lambda records: records[0] if records else None
        )

    # Leases

    def acquire(self, name: bytes, holder: bytes, lease: float) -> Deferred[bool]:
        """
        See L{ISessionStore.acquire}. While another has it it only reads.
        """
        return Deferred.fromCoroutine(self._acquire(name, holder, lease))

    def release(self, name: bytes, holder: bytes) -> Deferred[None]:
        """
        See L{ISessionStore.release}.
        """
        return self._writing(self._transactions.release, name, holder)

    def close(self) -> Deferred[None]:
        """
        See L{ISessionStore.close}. The log of writes goes into the file.
        """
        if self._closing is None:
            self._closing = Deferred.fromCoroutine(self._close())
        done: Deferred[None] = Deferred()

        def tell(result: Any) -> Any:
            done.callback(None)
            return result

        self._closing.addBoth(tell)
        return done

    # In the reactor's thread

    def _reading(
        self, f: Callable[Concatenate[sqlite3.Connection, list[Row], P], T],
        *args: P.args, **kwargs: P.kwargs,
    ) -> Deferred[T]:  # fmt: skip
        """
        Have the reader call C{f}, which appends what is corrupt to a list.
        """
        if self._closing is not None:
            return _closed()
        corrupt: list[Row] = []

        def finish(result: T) -> T:
            if corrupt:
                self._putAside(corrupt)
            return result

        return self._reader.do(f, corrupt, *args, **kwargs).addCallback(finish)

    def _writing(
        self, f: Callable[Concatenate[sqlite3.Connection, P], T],
        *args: P.args, **kwargs: P.kwargs,
    ) -> Deferred[T]:  # fmt: skip
        """
        Have the writer call C{f} in a transaction.
        """
        if self._closing is not None:
            return _closed()

        def whole(connection: sqlite3.Connection) -> T:
            with transaction(connection):
                return f(connection, *args, **kwargs)

        return self._writer.do(whole)

    def _putAside(self, rows: list[Row]) -> None:
        """
        Have the writer take corrupt records out of the way; nobody waits.
        """
        rows = [row for row in rows if row[0] not in self._corrupt]
        keys = {key for key, _ in rows}
        if not keys:
            return
        self._corrupt |= keys

        def finish(result: Any) -> Any:
            self._corrupt -= keys
            return result

        def failed(failure: Any) -> None:
            self._log.error("{count} corrupt session records could not be put aside: {reason}",
                            count=len(keys), reason=failure.getErrorMessage())  # fmt: skip

        self._writing(self._transactions.putAside, rows).addBoth(finish).addCallback(
            lambda moved: self._report((None, moved))
        ).addErrback(failed)

    def _report(self, result: tuple[T, list[bytes]]) -> T:
        """
        Log the keys (by a short hash) that have been quarantined.
        """
        value, keys = result
        for key in keys:
            self._log.error(
                "The stored session {session} is corrupt; it was moved to the table 'quarantine' "
                "and its user gets a new one",
                session=blake2b(key, digest_size=4).hexdigest(),
            )
        return value

    async def _sweep(self, limit: int) -> Swept:
        ended = seen = 0
        while True:
            wait, chores = await self._reading(self._queries.peek)
            due = wait is not None and wait <= 0
            if not due and not chores:
                return Swept(ended, False, wait)
            if ended >= limit or seen >= max(limit, SLICE):
                return Swept(ended, True, 0.0)
            # A slice at a time: commits that wait come in between.
            result = self._writing(self._transactions.sweep, limit - ended).addCallback(
                self._report
            )
            looked, dead = await result
            ended += dead
            seen += looked or SLICE

    async def _claim(self, limit: int, lease: float) -> list[Ended]:
        if not await self._reading(self._queries.isAnyToClaim):
            return []
        return await self._writing(self._transactions.claim, limit, lease).addCallback(self._report)

    async def _acquire(self, name: bytes, holder: bytes, lease: float) -> bool:
        if await self._reading(self._queries.isTaken, name, holder):
            return False
        return await self._writing(self._transactions.acquire, name, holder, lease)

    async def _close(self) -> None:
        # The writer last: whoever closes last brings the log into the file.
        links = (self._reader, self._writer)
        for link in links:
            try:
                await link.close()
            except StoreUnavailable as error:
                self._log.error("{reason}", reason=str(error))
        for link in links:
            await link.worker.stop()


def _closed() -> Deferred[Any]:
    return fail(StoreUnavailable("the store has been closed"))
