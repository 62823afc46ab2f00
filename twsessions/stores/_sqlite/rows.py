"""
Rows of sessions: found, remembered, and made records of.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from math import inf
from typing import Any, Final

from twsessions.core.delta import isAlive
from twsessions.core.record import Record, unpack
from twsessions.errors import CorruptRecord, NewerFormat

__all__ = ["Places", "Row", "Seen", "WholeRow", "dueOf", "living", "readable", "unpackRow"]

Row = tuple[bytes, bytes]
"""Key and packed record."""

WholeRow = tuple[bytes, bytes, float | None, int]
"""The same, when a sweep looks at it, and its rowid."""

_SEEN: Final = 128  # records that are remembered from a load to the commit that follows
_SMALL: Final = 4096  # bytes of the largest of them
_PLACES: Final = 4096  # keys of which it is remembered where their rows are

# Statements are looked up by their text in sqlite3's cache of prepared ones,
# so lists of keys come in few lengths: the usual ones, and beyond them powers
# of two, the last key repeated.
_CHUNK: Final = 128
_SELECT: Final = {
    (name, size): "SELECT key, record, due, rowid FROM session"
    f" WHERE {name} IN ({', '.join('?' * size)})"
    for size in (*range(1, 17), 32, 64, 128)
    for name in ("key", "rowid")
}


class Seen:
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

    def add(self, rows: Iterable[WholeRow], records: dict[bytes, Record]) -> None:
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
        As L{unpackRow}, but C{asOf} may be earlier; what was remembered is
        forgotten.
        """
        seen = self._records.pop(key, None)
        return seen[1] if seen is not None and seen[0] == packed else unpackRow(key, packed, now)


class Places:
    """
    Where rows were found last. The index of a million keys is large, and what
    is in use lies all over it; a rowid leads to its row without. It may be
    another's by now, which the row tells.

    For both workers at once, as L{Seen}.
    """

    def __init__(self) -> None:
        self._rowids: dict[bytes, int] = {}

    def fetch(self, connection: sqlite3.Connection, keys: Sequence[bytes]) -> list[WholeRow]:
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


def _select(connection: sqlite3.Connection, name: str, values: list[Any]) -> list[WholeRow]:
    rows: list[WholeRow] = []
    for start in range(0, len(values), _CHUNK):
        chunk = values[start : start + _CHUNK]
        size = len(chunk)
        if (name, size) not in _SELECT:
            size = 1 << size.bit_length()
            chunk += chunk[-1:] * (size - len(chunk))
        rows += connection.execute(_SELECT[name, size], chunk).fetchall()
    return rows


def dueOf(record: Record) -> float | None:
    """
    When it falls due; L{None}: never.
    """
    deadline = record.deadline
    return None if deadline == inf else deadline


def readable(
    rows: Iterable[Row | WholeRow],
    now: float,
    corrupt: list[Row],
    sealed: set[bytes] | None = None,
    seen: Seen | None = None,
) -> Iterator[Record]:
    """
    The records in rows; corrupt rows and keys of newer ones go to C{corrupt}
    and C{sealed}. With C{seen}, C{asOf} may be earlier than C{now}.
    """
    unpacked = unpackRow if seen is None else seen.unpack
    for key, packed, *_ in rows:
        try:
            yield unpacked(key, packed, now)
        except CorruptRecord:
            corrupt.append((key, packed))
        except NewerFormat:
            if sealed is not None:
                sealed.add(key)


def living(rows: Iterable[Row | WholeRow], now: float, corrupt: list[Row]) -> Iterator[Record]:
    """
    The same of those that are alive.
    """
    return (record for record in readable(rows, now, corrupt) if isAlive(record, now))


def unpackRow(key: bytes, packed: object, now: float) -> Record:
    """
    The record in a row.

    @raise CorruptRecord: it is none.
    @raise NewerFormat: a newer release has written it.
    """
    if not isinstance(packed, bytes):
        raise CorruptRecord("not bytes")  # SQLite's columns take any type
    return unpack(key, packed, now)
