"""
An SQLite file of sessions: made, checked, opened, and its faults explained.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Lock
from typing import Final

from twsessions.errors import StoreUnavailable

__all__ = ["APPLICATION", "LAPSED", "SCHEMA", "explain", "isPassing", "openFile", "transaction"]

APPLICATION: Final = 0x74775365
"""C{PRAGMA application_id}: marks the file as ours (C{"twSe"})."""

SCHEMA: Final = 1
"""C{PRAGMA user_version}: raised when an older release could do harm."""

# Plain tables, not WITHOUT ROWID: an insert costs half (13 against 26 us).
# session.due: when a sweep has to look at the session, never after its deadline.
# A use moves the deadline but not due, which saves a third of every commit; the
# sweep moves it when it gets there and finds the session alive.
_TABLES: Final = (
    """CREATE TABLE session (
        key BLOB NOT NULL PRIMARY KEY,
        record BLOB NOT NULL,
        due REAL,
        principal TEXT,
        handle BLOB NOT NULL)""",
    "CREATE INDEX session_due ON session (due) WHERE due IS NOT NULL",
    "CREATE INDEX session_principal ON session (principal) WHERE principal IS NOT NULL",
    "CREATE INDEX session_handle ON session (handle)",
    # due: when to hand it out next; NULL: never again.
    """CREATE TABLE ending (
        id BLOB NOT NULL PRIMARY KEY,
        key BLOB NOT NULL,
        record BLOB NOT NULL,
        reason TEXT NOT NULL,
        ended REAL NOT NULL,
        due REAL,
        claim BLOB,
        attempts INTEGER NOT NULL DEFAULT 0)""",
    "CREATE INDEX ending_due ON ending (due) WHERE due IS NOT NULL",
    """CREATE TABLE lease (
        name BLOB NOT NULL PRIMARY KEY,
        holder BLOB NOT NULL,
        until REAL NOT NULL)""",
    """CREATE TABLE quarantine (
        key BLOB NOT NULL,
        record BLOB NOT NULL,
        since REAL NOT NULL)""",
    "CREATE TABLE meta (name TEXT NOT NULL PRIMARY KEY, value REAL NOT NULL)",
)

LAPSED: Final = "coalesce((SELECT value FROM meta WHERE name = 'listening'), 0) <= :now"
"""Whether nobody wants to hear of ends."""

# What SQLite says (these texts have not changed in twenty years; its codes
# reach Python from 3.11 on), what that means here, and what to do about it.
_FAULTS: Final = {
    "is locked": "has been locked by another process for too long: look for a backup, an open "
    "sqlite3 shell or a long transaction",
    "is full": "cannot grow, the disk or quota is full: free some space",
    "readonly": "cannot be written: check owner and permissions of the file and its directory",
    "not a database": "is not an SQLite database: give another path, or move the file away",
    "malformed": "is damaged: stop every process that uses it, and put a backup in place of it and "
    "its -wal and -shm files, or recover it with the sqlite3 shell's .recover",
    "unable to open": "cannot be opened: check that it is a file, and the permissions of the file "
    "and its directory",
    "disk I/O error": "cannot be read or written, the disk fails: see the system's log",
}

_creating = Lock()


def openFile(path: str, synchronous: str, patience: float) -> sqlite3.Connection:
    """
    A connection to the file, which is made and given its tables if need be.

    @param synchronous: C{"normal"} or C{"full"}.
    @param patience: seconds to wait for another process's lock.
    @raise StoreUnavailable: the file is not for us.
    @raise sqlite3.Error, OSError: for L{explain}.
    """
    _create(path)
    connection = sqlite3.connect(path, timeout=patience, isolation_level=None)
    try:
        # Again and again, because a change to WAL does not wait for a lock.
        _patiently(lambda: _prepare(connection, path), patience)
        connection.execute(f"PRAGMA synchronous={synchronous}")
        # Do not keep the disk space that one burst of writes took.
        connection.execute("PRAGMA journal_size_limit=67108864")
        # At most 8 MiB. Among a million sessions, a thousand in use have a page
        # of the keys' index each: twice what SQLite's default holds.
        connection.execute("PRAGMA cache_size=-8192")
    except BaseException:
        connection.close()
        raise
    return connection


@contextmanager
def transaction(connection: sqlite3.Connection, kind: str = "IMMEDIATE") -> Iterator[None]:
    """
    All that is done inside, or nothing; by default under the one lock for
    writing, C{"DEFERRED"} for reads that must agree with each other.
    """
    connection.execute("BEGIN " + kind)
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            # After some faults SQLite has rolled back by itself.
            with suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
        raise


def explain(error: Exception, path: str) -> StoreUnavailable:
    """
    What is wrong with the file, and what its administrator can do.
    """
    said = str(error)
    for sign, meaning in _FAULTS.items():
        if sign in said:
            return StoreUnavailable(f"the session database {path} {meaning} ({said})")
    return StoreUnavailable(f"the session database {path} failed: {said}")


def isPassing(error: Exception) -> bool:
    """
    Whether the connection can be used on: the fault is outside the file.
    """
    return "is locked" in str(error) or "is full" in str(error)


def _create(path: str) -> None:
    """
    Make an empty file that nobody else can read, unless there is one; the
    files SQLite puts beside it take over its permissions.
    """
    # O_EXCL follows no link, and SQLite would make what it leads to for all to read.
    path = os.path.realpath(path)
    with _creating:
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            return
        except FileNotFoundError:
            raise StoreUnavailable(
                f"the directory {os.path.dirname(path)} of the session database does not exist: "
                "make it, and give it to the user the server runs as"
            ) from None
        try:
            if hasattr(os, "fchmod"):
                os.fchmod(file, 0o600)  # whatever the umask says
        finally:
            # Under the lock: closing it while a connection of this process is
            # open would drop that connection's locks (POSIX).
            os.close(file)


def _prepare(connection: sqlite3.Connection, path: str) -> None:
    """
    Check whose the file is; give it its tables if it has none.
    """
    with transaction(connection, "DEFERRED"):
        ours = _isOurs(connection, path)
    if connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        connection.execute("PRAGMA journal_mode=WAL")
    if not ours:
        with transaction(connection):
            if not _isOurs(connection, path):  # or another process was faster
                for statement in _TABLES:
                    connection.execute(statement)
                connection.execute(f"PRAGMA application_id={APPLICATION}")
                connection.execute(f"PRAGMA user_version={SCHEMA}")


def _isOurs(connection: sqlite3.Connection, path: str) -> bool:
    """
    Whether our tables are in the file; false if it is empty. To be asked in a
    transaction: another process may be making them.

    @raise StoreUnavailable: it is somebody else's or of a later release.
    """
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (schema,) = connection.execute("PRAGMA user_version").fetchone()
    if application == APPLICATION:
        if schema > SCHEMA:
            raise StoreUnavailable(
                f"the session database {path} was made by a newer release of twsessions (schema "
                f"{schema}, this one knows {SCHEMA}): upgrade, or use another file; nothing in it "
                "was changed"
            )
        return True
    if application or schema or connection.execute("SELECT 1 FROM sqlite_master").fetchone():
        raise StoreUnavailable(
            f"{path} is another application's SQLite database: give the sessions a file of their "
            "own; nothing in it was changed"
        )
    return False


def _patiently(f: Callable[[], object], patience: float) -> None:
    end = time.monotonic() + patience
    while True:
        try:
            f()
            return
        except sqlite3.OperationalError as error:
            if "is locked" not in str(error) or time.monotonic() >= end:
                raise
        time.sleep(0.005)  # in the worker's thread, not the reactor's
