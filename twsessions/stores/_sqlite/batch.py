"""
What becomes of the sessions of one commit.
"""

from __future__ import annotations

import sqlite3
from typing import Final

from twsessions.core.delta import Change, apply
from twsessions.core.record import Record, pack
from twsessions.errors import IdCollision, SessionError, SessionGone, StoreError
from twsessions.stores._sqlite.rows import Row, Seen, WholeRow, dueOf, readable

__all__ = ["Batch"]

_COLUMNS: Final = "key, record, due, principal, handle"


class Batch:
    """
    What becomes of the sessions of one commit, before it is written.

    @ivar corrupt: rows that have to go before L{write}.
    @ivar ends: last states, and why they ended.
    """

    def __init__(self, rows: list[WholeRow], now: float, seen: Seen) -> None:
        self.now = now
        self._places = {key: (due, rowid) for key, _, due, rowid in rows}
        self.corrupt: list[Row] = []
        self.ends: list[tuple[Record, str]] = []
        self._sealed: set[bytes] = set()
        records = readable(rows, now, self.corrupt, self._sealed, seen)
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
            due = dueOf(record)
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


def _isBefore(due: float | None, deadline: float | None) -> bool:
    """
    Whether a sweep that looks at C{due} comes in time.
    """
    return deadline is None if due is None else deadline is None or due <= deadline
