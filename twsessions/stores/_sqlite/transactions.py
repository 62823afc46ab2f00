"""
What is written, in the writer's thread.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable
from secrets import token_bytes
from typing import Final

from twsessions.core.delta import Change, isAlive
from twsessions.core.record import Record, pack
from twsessions.errors import CorruptRecord, NewerFormat, SessionError
from twsessions.interfaces import Ended, Verdict
from twsessions.stores._sqlite.batch import Batch
from twsessions.stores._sqlite.file import LAPSED
from twsessions.stores._sqlite.rows import Places, Row, Seen, dueOf, readable, unpackRow

__all__ = ["SLICE", "Transactions"]

SLICE: Final = 250
"""Sessions swept in one transaction: a few ms of the write lock."""

_WISH: Final = 30 * 86400.0  # seconds for which one listen() holds
_LATER: Final = 3600.0  # until a sweep looks again at what only a newer release can read


class Transactions:
    """
    Each is given a connection, on which a transaction has begun.
    """

    def __init__(self, now: Callable[[], float], places: Places, seen: Seen) -> None:
        """
        @param now: the time in seconds, the same in all processes.
        """
        self._now = now
        self._places = places
        self._seen = seen

    def commit(
        self, connection: sqlite3.Connection, changes: list[Change]
    ) -> tuple[list[Record | SessionError], list[bytes]]:
        """
        See L{ISessionStore.commit}; and the keys of what was quarantined.
        """
        keys = [change.key for change in changes]
        keys += [change.newKey for change in changes if change.newKey is not None]
        rows = self._places.fetch(connection, keys)
        now = self._now()
        batch = Batch(rows, now, self._seen)
        outcomes = [batch.step(change) for change in changes]
        moved = self.putAside(connection, batch.corrupt)
        self._places.forget(batch.write(connection))
        if batch.ends and self._isHeard(connection, now):
            self._keepEnds(connection, ((record, reason, now) for record, reason in batch.ends))
        return outcomes, moved

    def sweep(
        self, connection: sqlite3.Connection, limit: int
    ) -> tuple[tuple[int, int], list[bytes]]:
        """
        How many sessions were looked at and how many ended; keys quarantined.
        """
        now = self._now()
        rows: list[Row] = connection.execute(
            "SELECT key, record FROM session WHERE due <= ? ORDER BY due LIMIT ?",
            (now, SLICE),
        ).fetchall()
        corrupt: list[Row] = []
        sealed: set[bytes] = set()
        records = sorted(readable(rows, now, corrupt, sealed), key=lambda one: one.deadline)
        dead = [record for record in records if not isAlive(record, now)][:limit]
        connection.executemany("DELETE FROM session WHERE key = ?", [(one.key,) for one in dead])
        self._places.forget(one.key for one in dead)
        dues = [(dueOf(record), record.key) for record in records[len(dead) :]]
        dues += [(now + _LATER, key) for key in sealed]
        connection.executemany("UPDATE session SET due = ? WHERE key = ?", dues)
        moved = self.putAside(connection, corrupt)
        if dead and self._isHeard(connection, now):
            self._keepEnds(connection, ((one, one.reason, one.deadline) for one in dead))
        connection.execute("DELETE FROM lease WHERE until <= ?", (now,))
        connection.execute(
            f"DELETE FROM ending WHERE {LAPSED}"
            " AND id IN (SELECT id FROM ending ORDER BY rowid LIMIT :limit)",
            {"now": now, "limit": SLICE},
        )
        return (len(rows), len(dead)), moved

    def putAside(self, connection: sqlite3.Connection, rows: Iterable[Row]) -> list[bytes]:
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
        lapsed: int = connection.execute(f"SELECT {LAPSED}", {"now": now}).fetchone()[0]
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

    def listen(self, connection: sqlite3.Connection) -> None:
        """
        See L{ISessionStore.listen}.
        """
        connection.execute(
            "INSERT INTO meta (name, value) VALUES ('listening', ?)"
            " ON CONFLICT (name) DO UPDATE SET value = excluded.value",
            (self._now() + _WISH,),
        )

    def claim(
        self, connection: sqlite3.Connection, limit: int, lease: float
    ) -> tuple[list[Ended], list[bytes]]:
        """
        See L{ISessionStore.claim}; and the keys of what was quarantined.
        """
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
                record = unpackRow(key, packed, now)
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

    def settle(self, connection: sqlite3.Connection, verdicts: list[Verdict]) -> list[bool]:
        """
        See L{ISessionStore.settle}.
        """
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

    def acquire(
        self, connection: sqlite3.Connection, name: bytes, holder: bytes, lease: float
    ) -> bool:
        """
        See L{ISessionStore.acquire}.
        """
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

    def release(self, connection: sqlite3.Connection, name: bytes, holder: bytes) -> None:
        """
        See L{ISessionStore.release}.
        """
        connection.execute("DELETE FROM lease WHERE name = ? AND holder = ?", (name, holder))
