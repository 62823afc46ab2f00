"""
What is only read, in the reader's thread.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

from twsessions.core.record import Record
from twsessions.stores._sqlite.file import LAPSED
from twsessions.stores._sqlite.rows import Places, Row, Seen, living

__all__ = ["Queries"]


class Queries:
    """
    Each is given a connection, and a list for the rows that are corrupt.
    """

    def __init__(self, now: Callable[[], float], places: Places, seen: Seen) -> None:
        """
        @param now: the time in seconds, the same in all processes.
        """
        self._now = now
        self._places = places
        self._seen = seen

    def load(
        self, connection: sqlite3.Connection, corrupt: list[Row], keys: list[bytes]
    ) -> list[Record | None]:
        """
        See L{ISessionStore.load}.
        """
        rows = self._places.fetch(connection, keys)
        now = self._now()
        found = {record.key: record for record in living(rows, now, corrupt)}
        self._seen.add(rows, found)
        return [found.get(key) for key in keys]

    def select(
        self,
        connection: sqlite3.Connection,
        corrupt: list[Row],
        where: str,
        value: object,
    ) -> list[Record]:
        """
        The living sessions for which something is so.
        """
        rows = connection.execute("SELECT key, record FROM session WHERE " + where, (value,))
        return list(living(rows.fetchall(), self._now(), corrupt))

    def iterate(
        self,
        connection: sqlite3.Connection,
        corrupt: list[Row],
        after: bytes | None,
        limit: int,
    ) -> list[Record]:
        """
        See L{ISessionStore.iterate}.
        """
        after = b"" if after is None else after
        while True:
            now = self._now()
            rows = connection.execute(
                "SELECT key, record FROM session WHERE key > ? ORDER BY key LIMIT ?",
                (after, limit),
            ).fetchall()
            records = list(living(rows, now, corrupt))
            if records or not rows:
                return records
            after = rows[-1][0]  # a whole page that cannot be read is not the end

    def peek(self, connection: sqlite3.Connection, corrupt: list[Row]) -> tuple[float | None, bool]:
        """
        Seconds until there is a session to look at, and whether anything else
        is to be cleared away.
        """
        now = self._now()
        due, chores = connection.execute(
            f"""SELECT
                (SELECT due FROM session WHERE due IS NOT NULL ORDER BY due LIMIT 1),
                EXISTS (SELECT 1 FROM lease WHERE until <= :now)
                OR ({LAPSED} AND EXISTS (SELECT 1 FROM ending))""",
            {"now": now},
        ).fetchone()
        return None if due is None else max(0.0, due - now), bool(chores)

    def isAnyToClaim(self, connection: sqlite3.Connection, corrupt: list[Row]) -> bool:
        """
        Whether there is an end to be heard of.
        """
        row = connection.execute("SELECT 1 FROM ending WHERE due <= ? LIMIT 1", (self._now(),))
        return row.fetchone() is not None

    def isTaken(
        self,
        connection: sqlite3.Connection,
        corrupt: list[Row],
        name: bytes,
        holder: bytes,
    ) -> bool:
        """
        Whether another holds a lease.
        """
        row = connection.execute(
            "SELECT 1 FROM lease WHERE name = ? AND holder <> ? AND until > ?",
            (name, holder, self._now()),
        )
        return row.fetchone() is not None
