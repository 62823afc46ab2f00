"""
Sessions in an SQLite file: nothing to install, shared by a host's processes.

Reads and writes have a connection and a worker each, so that a load never
waits for a commit (WAL). Whatever is handed over in one call is one
transaction: the wait for the disk is paid once for all of it.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from hashlib import blake2b
from math import inf
from secrets import token_bytes
from typing import Any, Concatenate, ParamSpec, TypeVar

from twisted.internet.defer import Deferred, fail
from twisted.logger import Logger
from zope.interface import implementer

from twsessions.core.delta import Change, apply, isAlive
from twsessions.core.record import Record, pack, unpack
from twsessions.errors import (
    CorruptRecord,
    IdCollision,
    NewerFormat,
    NotSupported,
    SessionError,
    SessionGone,
    StoreError,
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
from twsessions.stores._sqlitefile import Place, explain, isPassing, openFile, transaction
from twsessions.stores._threads import Worker

__all__ = ["SQLiteStore"]

P = ParamSpec("P")
T = TypeVar("T")
_Row = tuple[bytes, bytes]  # key, packed record
_WholeRow = tuple[bytes, bytes, float | None, int]  # when a sweep looks at it, and its rowid

_WISH = 30 * 86400.0  # seconds for which one listen() holds
_SLICE = 250  # sessions swept in one transaction: a few ms of the write lock
_LATER = 3600.0  # until a sweep looks again at what only a newer release can read
_SEEN = 128  # records that are remembered from a load to the commit that follows
_SMALL = 4096  # bytes of the largest of them
_PLACES = 4096  # keys of which it is remembered where their rows are

# Statements are looked up by their text in sqlite3's cache of prepared ones,
# so lists of keys come in few lengths: the usual ones, and beyond them powers
# of two, the last key repeated.
_CHUNK = 128
_SELECT = {
    (name, size): "SELECT key, record, due, rowid FROM session"
    f" WHERE {name} IN ({', '.join('?' * size)})"
    for size in (*range(1, 17), 32, 64, 128)
    for name in ("key", "rowid")
}
_COLUMNS = "key, record, due, principal, handle"
_LAPSED = "coalesce((SELECT value FROM meta WHERE name = 'listening'), 0) <= :now"


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
        self._now = now
        place = Place(self.path, now)
        self._reader = _Link(self.path, place, reader, synchronous, patience)
        self._writer = _Link(self.path, place, writer, synchronous, patience)
        self._closing: Deferred[None] | None = None
        self._corrupt: set[bytes] = set()
        self._seen = _Seen()
        self._places = _Places()

    # Sessions

    def load(self, keys: Sequence[bytes]) -> Deferred[list[Record | None]]:
        """
        See L{ISessionStore.load}.
        """
        wanted = list(keys)
        return self._reading(self._loadNow, wanted)

    def commit(self, changes: Sequence[Change]) -> Deferred[list[Record | SessionError]]:
        """
        See L{ISessionStore.commit}.
        """
        return self._writing(self._commitNow, list(changes)).addCallback(self._report)

    def sweep(self, limit: int) -> Deferred[Swept]:
        """
        See L{ISessionStore.sweep}. While nothing is due it only reads.
        """
        return Deferred.fromCoroutine(self._sweep(limit))

    def iterate(self, after: bytes | None, limit: int) -> Deferred[list[Record]]:
        """
        See L{ISessionStore.iterate}.
        """
        return self._reading(self._iterateNow, after, limit)

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
        return self._writing(self._listenNow)

    def claim(self, limit: int, lease: float) -> Deferred[list[Ended]]:
        """
        See L{ISessionStore.claim}. While nothing is to be had it only reads.
        """
        return Deferred.fromCoroutine(self._claim(limit, lease))

    def settle(self, verdicts: Sequence[Verdict]) -> Deferred[list[bool]]:
        """
        See L{ISessionStore.settle}.
        """
        return self._writing(self._settleNow, list(verdicts))

    # Principals

    def sessionsOf(self, principal: str) -> Deferred[list[Record]]:
        """
        See L{ISessionStore.sessionsOf}.
        """
        # As bytes: of half a surrogate pair, which is nobody's, the driver makes no text.
        name = principal.encode("utf-8", "surrogatepass")
        return self._reading(self._select, "principal = CAST(? AS TEXT)", name).addCallback(
            lambda records: sorted(records, key=lambda record: record.created)
        )

    def withHandle(self, handle: bytes) -> Deferred[Record | None]:
        """
        See L{ISessionStore.withHandle}.
        """
        return self._reading(self._select, "handle = ?", handle).addCallback(
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
        return self._writing(self._releaseNow, name, holder)

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
        self, f: Callable[Concatenate[sqlite3.Connection, list[_Row], P], T],
        *args: P.args, **kwargs: P.kwargs,
    ) -> Deferred[T]:  # fmt: skip
        """
        Have the reader call C{f}, which appends what is corrupt to a list.
        """
        if self._closing is not None:
            return _closed()
        corrupt: list[_Row] = []

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

    def _putAside(self, rows: list[_Row]) -> None:
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

        self._writing(self._quarantineNow, rows).addBoth(finish).addCallback(
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
            wait, chores = await self._reading(self._peekNow)
            due = wait is not None and wait <= 0
            if not due and not chores:
                return Swept(ended, False, wait)
            if ended >= limit or seen >= max(limit, _SLICE):
                return Swept(ended, True, 0.0)
            # A slice at a time: commits that wait come in between.
            result = self._writing(self._sweepNow, limit - ended).addCallback(self._report)
            looked, dead = await result
            ended += dead
            seen += looked or _SLICE

    async def _claim(self, limit: int, lease: float) -> list[Ended]:
        if not await self._reading(self._isAnyToClaim):
            return []
        return await self._writing(self._claimNow, limit, lease).addCallback(self._report)

    async def _acquire(self, name: bytes, holder: bytes, lease: float) -> bool:
        if await self._reading(self._isTaken, name, holder):
            return False
        return await self._writing(self._acquireNow, name, holder, lease)

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

    # In the reader

    def _loadNow(
        self, connection: sqlite3.Connection, corrupt: list[_Row], keys: list[bytes]
    ) -> list[Record | None]:
        rows = self._places.fetch(connection, keys)
        now = self._now()
        found = {record.key: record for record in _living(rows, now, corrupt)}
        self._seen.add(rows, found)
        return [found.get(key) for key in keys]

    def _select(
        self,
        connection: sqlite3.Connection,
        corrupt: list[_Row],
        where: str,
        value: object,
    ) -> list[Record]:
        rows = connection.execute("SELECT key, record FROM session WHERE " + where, (value,))
        return list(_living(rows.fetchall(), self._now(), corrupt))

    def _iterateNow(
        self,
        connection: sqlite3.Connection,
        corrupt: list[_Row],
        after: bytes | None,
        limit: int,
    ) -> list[Record]:
        after = b"" if after is None else after
        while True:
            now = self._now()
            rows = connection.execute(
                "SELECT key, record FROM session WHERE key > ? ORDER BY key LIMIT ?",
                (after, limit),
            ).fetchall()
            records = list(_living(rows, now, corrupt))
            if records or not rows:
                return records
            after = rows[-1][0]  # a whole page that cannot be read is not the end

    def _peekNow(
        self, connection: sqlite3.Connection, corrupt: list[_Row]
    ) -> tuple[float | None, bool]:
        """
        Seconds until there is a session to look at, and whether anything else
        is to be cleared away.
        """
        now = self._now()
        due, chores = connection.execute(
            f"""SELECT
                (SELECT due FROM session WHERE due IS NOT NULL ORDER BY due LIMIT 1),
                EXISTS (SELECT 1 FROM lease WHERE until <= :now)
                OR ({_LAPSED} AND EXISTS (SELECT 1 FROM ending))""",
            {"now": now},
        ).fetchone()
        return None if due is None else max(0.0, due - now), bool(chores)

    def _isAnyToClaim(self, connection: sqlite3.Connection, corrupt: list[_Row]) -> bool:
        row = connection.execute("SELECT 1 FROM ending WHERE due <= ? LIMIT 1", (self._now(),))
        return row.fetchone() is not None

    def _isTaken(
        self,
        connection: sqlite3.Connection,
        corrupt: list[_Row],
        name: bytes,
        holder: bytes,
    ) -> bool:
        row = connection.execute(
            "SELECT 1 FROM lease WHERE name = ? AND holder <> ? AND until > ?",
            (name, holder, self._now()),
        )
        return row.fetchone() is not None

    # In the writer, in a transaction

    def _commitNow(
        self, connection: sqlite3.Connection, changes: list[Change]
    ) -> tuple[list[Record | SessionError], list[bytes]]:
        keys = [change.key for change in changes]
        keys += [change.newKey for change in changes if change.newKey is not None]
        rows = self._places.fetch(connection, keys)
        now = self._now()
        batch = _Batch(rows, now, self._seen)
        outcomes = [batch.step(change) for change in changes]
        moved = self._quarantineNow(connection, batch.corrupt)
        self._places.forget(batch.write(connection))
        if batch.ends and self._isHeard(connection, now):
            self._keepEnds(connection, ((record, reason, now) for record, reason in batch.ends))
        return outcomes, moved

    def _sweepNow(
        self, connection: sqlite3.Connection, limit: int
    ) -> tuple[tuple[int, int], list[bytes]]:
        """
        How many sessions were looked at and how many ended; keys quarantined.
        """
        now = self._now()
        rows: list[_Row] = connection.execute(
            "SELECT key, record FROM session WHERE due <= ? ORDER BY due LIMIT ?",
            (now, _SLICE),
        ).fetchall()
        corrupt: list[_Row] = []
        sealed: set[bytes] = set()
        records = sorted(_readable(rows, now, corrupt, sealed), key=lambda one: one.deadline)
        dead = [record for record in records if not isAlive(record, now)][:limit]
        connection.executemany("DELETE FROM session WHERE key = ?", [(one.key,) for one in dead])
        self._places.forget(one.key for one in dead)
        dues = [(_due(record), record.key) for record in records[len(dead) :]]
        dues += [(now + _LATER, key) for key in sealed]
        connection.executemany("UPDATE session SET due = ? WHERE key = ?", dues)
        moved = self._quarantineNow(connection, corrupt)
        if dead and self._isHeard(connection, now):
            self._keepEnds(connection, ((one, one.reason, one.deadline) for one in dead))
        connection.execute("DELETE FROM lease WHERE until <= ?", (now,))
        connection.execute(
            f"DELETE FROM ending WHERE {_LAPSED}"
            " AND id IN (SELECT id FROM ending ORDER BY rowid LIMIT :limit)",
            {"now": now, "limit": _SLICE},
        )
        return (len(rows), len(dead)), moved

    def _quarantineNow(self, connection: sqlite3.Connection, rows: Iterable[_Row]) -> list[bytes]:
        """
        Move rows aside, unless they have changed meanwhile.
        """
        moved = []
        for row in rows:
            where = " FROM session WHERE key = ? AND record = ?"
            connection.execute(
                "INSERT INTO quarantine (key, record, since) SELECT key, record, ?" + where,
                (self._now(), *row),
            )
            if connection.execute("DELETE" + where, row).rowcount:
                moved.append(row[0])
        return moved

    def _isHeard(self, connection: sqlite3.Connection, now: float) -> bool:
        lapsed: int = connection.execute(f"SELECT {_LAPSED}", {"now": now}).fetchone()[0]
        return not lapsed

    def _keepEnds(
        self, connection: sqlite3.Connection, ends: Iterable[tuple[Record, str, float]]
    ) -> None:
        connection.executemany(
            "INSERT INTO ending (id, key, record, reason, ended, due) VALUES (?, ?, ?, ?, ?, ?)"
            " ON CONFLICT (id) DO NOTHING",
            [
                (record.handle, record.key, pack(record), reason, ended, ended)
                for record, reason, ended in ends
            ],
        )

    def _listenNow(self, connection: sqlite3.Connection) -> None:
        connection.execute(
            "INSERT INTO meta (name, value) VALUES ('listening', ?)"
            " ON CONFLICT (name) DO UPDATE SET value = excluded.value",
            (self._now() + _WISH,),
        )

    def _claimNow(
        self, connection: sqlite3.Connection, limit: int, lease: float
    ) -> tuple[list[Ended], list[bytes]]:
        now = self._now()
        claim = token_bytes(16)
        ends: list[Ended] = []
        corrupt: list[bytes] = []
        rows = connection.execute(
            "SELECT id, key, record, reason, ended, attempts FROM ending"
            " WHERE due <= ? ORDER BY due, ended LIMIT ?",
            (now, limit),
        ).fetchall()
        for id_, key, packed, reason, ended, attempts in rows:
            try:
                record = _unpack(key, packed, now)
            except CorruptRecord:
                corrupt.append(key)
                connection.execute(
                    "INSERT INTO quarantine (key, record, since) VALUES (?, ?, ?)",
                    (key, packed, now),
                )
                connection.execute("DELETE FROM ending WHERE id = ?", (id_,))
            except NewerFormat:
                connection.execute("UPDATE ending SET due = ? WHERE id = ?", (now + _LATER, id_))
            else:
                ends.append(Ended(id_, record, reason, ended, attempts + 1, claim))
        connection.executemany(
            "UPDATE ending SET claim = ?, due = ?, attempts = attempts + 1 WHERE id = ?",
            [(claim, now + lease, end.id) for end in ends],
        )
        return ends, corrupt

    def _settleNow(self, connection: sqlite3.Connection, verdicts: list[Verdict]) -> list[bool]:
        now = self._now()
        held = []
        for verdict in verdicts:
            name = (verdict.id, verdict.claim)
            if verdict.retryIn is None and not verdict.dead:
                done = connection.execute("DELETE FROM ending WHERE id = ? AND claim = ?", name)
            else:
                due = None if verdict.dead else now + (verdict.retryIn or 0.0)
                done = connection.execute(
                    "UPDATE ending SET claim = NULL, due = ? WHERE id = ? AND claim = ?",
                    (due, *name),
                )
            held.append(done.rowcount > 0)
        return held

    def _acquireNow(
        self, connection: sqlite3.Connection, name: bytes, holder: bytes, lease: float
    ) -> bool:
        now = self._now()
        return (
            connection.execute(
                "INSERT INTO lease (name, holder, until) VALUES (?, ?, ?)"
                " ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, until = excluded.until"
                " WHERE lease.holder = excluded.holder OR lease.until <= ?",
                (name, holder, now + lease, now),
            ).rowcount
            > 0
        )

    def _releaseNow(self, connection: sqlite3.Connection, name: bytes, holder: bytes) -> None:
        connection.execute("DELETE FROM lease WHERE name = ? AND holder = ?", (name, holder))


class _Link:
    """
    One connection and the worker that alone uses it.
    """

    def __init__(
        self, path: str, place: Place, worker: Worker, synchronous: str, patience: float
    ) -> None:
        self.worker = worker
        self._path = path
        self._place = place
        self._options = (synchronous, patience)
        self._connection: sqlite3.Connection | None = None

    def do(
        self,
        f: Callable[Concatenate[sqlite3.Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Deferred[T]:
        """
        Have the worker call C{f} with the connection; faults come out
        explained.
        """
        return self.worker.do(self._run, f, args, kwargs)

    def close(self) -> Deferred[None]:
        """
        Have the worker close the connection, if there is one.
        """
        return self.worker.do(self._drop)

    def _run(self, f: Callable[..., T], args: Any, kwargs: Any) -> T:
        try:
            if self._connection is None:
                self._place.opening()
                self._connection = openFile(self._path, *self._options)
                self._place.opened(self)
            elif not self._place.isOpenBy(self):
                self._drop()
                raise StoreUnavailable(
                    f"the session database {self._path} was deleted or replaced while it was in "
                    "use; what is there now is used from here on"
                )
            return f(self._connection, *args, **kwargs)
        except (sqlite3.Error, OSError) as error:
            if not isPassing(error):
                with suppress(StoreUnavailable):
                    self._drop()  # what was mended is seen by a new connection
            raise explain(error, self._path) from error

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            self._place.closed(self)
            try:
                connection.close()
            except sqlite3.Error as error:
                raise explain(error, self._path) from error


class _Batch:
    """
    What becomes of the sessions of one commit, before it is written.

    @ivar corrupt: rows that have to go before L{write}.
    @ivar ends: last states, and why they ended.
    """

    def __init__(self, rows: list[_WholeRow], now: float, seen: _Seen) -> None:
        self.now = now
        self._places = {key: (due, rowid) for key, _, due, rowid in rows}
        self.corrupt: list[_Row] = []
        self.ends: list[tuple[Record, str]] = []
        self._sealed: set[bytes] = set()
        records = _readable(rows, now, self.corrupt, self._sealed, seen)
        self._before = {record.key: record for record in records}
        self._after: dict[bytes, Record] = self._before.copy()
        self._packed: dict[bytes, bytes] = {}

    def step(self, change: Change) -> Record | SessionError:
        """
        Apply one change; a refusal is an outcome like any other.
        """
        try:
            return self._apply(change)
        except SessionError as error:
            return error
        except (ValueError, TypeError, OverflowError) as error:
            # Not to be written in any store; the others must not suffer.
            return StoreError(f"a change that cannot be stored: {type(error).__name__}")

    def _apply(self, change: Change) -> Record:
        old, new = change.key, change.key if change.newKey is None else change.newKey
        if old in self._sealed:
            # A newer release's: there is nothing here, and it stays as it is.
            raise (IdCollision("taken") if change.birth is not None else SessionGone("unreadable"))
        there = self._after.get(new) if new != old else None
        if there is not None and there.token == change.token:
            return there.seenAt(self.now)  # this rotation has been done
        before = self._after.get(old)
        record = apply(before, change, self.now)
        if there is not None or new in self._sealed:
            raise IdCollision("a session exists under the new key already")
        if change.end is not None:
            self.ends.append((record, change.end))
            self._after.pop(old, None)
        elif before is None or record.version != before.version or new != old:
            self._packed[new] = pack(record)
            self._after.pop(old, None)
            self._after[new] = record
        return record

    def write(self, connection: sqlite3.Connection) -> list[bytes]:
        """
        Bring the file to the state after all steps.

        @return: the keys under which there is nothing any more.
        """
        places = self._places
        gone = [key for key in self._before if key not in self._after]
        dead = [(places[key][1],) for key in gone]
        born, used, moved = [], [], []
        for key, packed in self._packed.items():
            record, before = self._after.get(key), self._before.get(key)
            if record is None:
                continue
            due = _due(record)
            if before is None or before.seed != record.seed:
                born.append((key, packed, due, record.principal, record.handle))
                if before is not None:
                    dead.append((places[key][1],))
            elif before.principal == record.principal and _isBefore(places[key][0], due):
                used.append((packed, places[key][1]))
            else:
                moved.append((packed, due, record.principal, places[key][1]))
        # By rowid, which holds as long as the transaction: to find a key again
        # costs more the more there are. Only the columns that change: an index
        # not named is not rewritten.
        for statement, values in (
            ("DELETE FROM session WHERE rowid = ?", dead),
            ("UPDATE session SET record = ? WHERE rowid = ?", used),
            (
                "UPDATE session SET record = ?, due = ?, principal = ? WHERE rowid = ?",
                moved,
            ),
            (f"INSERT INTO session ({_COLUMNS}) VALUES (?, ?, ?, ?, ?)", born),
        ):
            if values:
                connection.executemany(statement, values)
        return gone


class _Seen:
    """
    Records from their load to the commit that follows, each with the bytes it
    was unpacked from: a row of the same bytes need not be unpacked again,
    whoever has written to the file meanwhile.

    Few and not for long: a thousand of them, kept over commits, cost the
    reactor's thread more than they saved (measured). For both workers at once: a
    dict's single operations are atomic, and no order of them does harm.
    """

    def __init__(self) -> None:
        self._records: dict[bytes, tuple[bytes, Record]] = {}

    def add(self, rows: Iterable[_WholeRow], records: dict[bytes, Record]) -> None:
        """
        Remember records, by their keys, with their rows.
        """
        seen = self._records
        for key, packed, *_ in rows:
            if key in records and len(packed) <= _SMALL:
                if len(seen) >= _SEEN:
                    seen.clear()
                seen[key] = packed, records[key]

    def unpack(self, key: bytes, packed: bytes, now: float) -> Record:
        """
        As L{_unpack}, but C{asOf} may be earlier; what was remembered is
        forgotten.
        """
        seen = self._records.pop(key, None)
        return seen[1] if seen is not None and seen[0] == packed else _unpack(key, packed, now)


class _Places:
    """
    Where rows were found last. The index of a million keys is large, and what
    is in use lies all over it; a rowid leads to its row without. It may be
    another's by now, which the row tells.

    For both workers at once, as L{_Seen}.
    """

    def __init__(self) -> None:
        self._rowids: dict[bytes, int] = {}

    def fetch(self, connection: sqlite3.Connection, keys: Sequence[bytes]) -> list[_WholeRow]:
        """
        The rows of those keys that there are.
        """
        rowids = self._rowids
        known = {rowid: key for key in keys if (rowid := rowids.get(key)) is not None}
        rows = [row for row in _select(connection, "rowid", list(known)) if known[row[3]] == row[0]]
        if len(rows) < len(keys):
            there = {row[0] for row in rows}
            others = _select(connection, "key", [key for key in keys if key not in there])
            if len(rowids) + len(others) > _PLACES:
                rowids.clear()
            for row in others:
                rowids[row[0]] = row[3]
            rows += others
        return rows

    def forget(self, keys: Iterable[bytes]) -> None:
        """
        There is nothing under these any more.
        """
        for key in keys:
            self._rowids.pop(key, None)


def _select(connection: sqlite3.Connection, name: str, values: list[Any]) -> list[_WholeRow]:
    rows: list[_WholeRow] = []
    for start in range(0, len(values), _CHUNK):
        chunk = values[start : start + _CHUNK]
        size = len(chunk)
        if (name, size) not in _SELECT:
            size = 1 << size.bit_length()
            chunk += chunk[-1:] * (size - len(chunk))
        rows += connection.execute(_SELECT[name, size], chunk).fetchall()
    return rows


def _due(record: Record) -> float | None:
    deadline = record.deadline
    return None if deadline == inf else deadline


def _isBefore(due: float | None, deadline: float | None) -> bool:
    """
    Whether a sweep that looks at C{due} comes in time.
    """
    return deadline is None if due is None else deadline is None or due <= deadline


def _readable(
    rows: Iterable[_Row | _WholeRow],
    now: float,
    corrupt: list[_Row],
    sealed: set[bytes] | None = None,
    seen: _Seen | None = None,
) -> Iterator[Record]:
    """
    The records in rows; corrupt rows and keys of newer ones go to C{corrupt}
    and C{sealed}. With C{seen}, C{asOf} may be earlier than C{now}.
    """
    unpacked = _unpack if seen is None else seen.unpack
    for key, packed, *_ in rows:
        try:
            yield unpacked(key, packed, now)
        except CorruptRecord:
            corrupt.append((key, packed))
        except NewerFormat:
            if sealed is not None:
                sealed.add(key)


def _living(rows: Iterable[_Row | _WholeRow], now: float, corrupt: list[_Row]) -> Iterator[Record]:
    return (record for record in _readable(rows, now, corrupt) if isAlive(record, now))


def _unpack(key: bytes, packed: object, now: float) -> Record:
    if not isinstance(packed, bytes):
        raise CorruptRecord("not bytes")  # SQLite's columns take any type
    return unpack(key, packed, now)


def _closed() -> Deferred[Any]:
    return fail(StoreUnavailable("the store has been closed"))
