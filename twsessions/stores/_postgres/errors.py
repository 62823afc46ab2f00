"""
What PostgreSQL's errors mean here, and what can be done about them.
"""

from __future__ import annotations

from typing import Final

from psycopg import pq
from psycopg.pq.abc import PGresult

from twsessions.errors import StoreUnavailable

__all__ = ["explain", "isFinal", "isOfData", "isPassing", "stateOf"]

_MEANINGS: Final = {
    "25006": "it is a standby, or read-only: connect to the primary"
    " (with several hosts, target_session_attrs=read-write finds it)",
    "26000": "a prepared statement has gone: a pooler between here and the server has to keep"
    " one server connection for each of the store's",
    "28000": "the role may not log in: see the server's pg_hba.conf",
    "28P01": "user or password are wrong",
    "3D000": "there is no such database: create it",
    "42501": "the role lacks a permission: let it CREATE in the database, or make the tables as"
    " another role and GRANT it USAGE on the schema and SELECT, INSERT, UPDATE, DELETE on its"
    " tables",
    "53100": "the server's disk is full",
    "53300": "it has too many connections: raise max_connections",
    "55P03": "a session has been locked by somebody else for too long: look for a long transaction",
    "57014": "it was not done in time",
    "57P01": "it is being shut down",
    "57P02": "it has crashed and is coming back",
    "57P03": "it is not ready yet",
}


def stateOf(result: PGresult) -> str:
    """
    The five characters of SQLSTATE of an error or a notice.
    """
    return (result.error_field(pq.DiagnosticField.SQLSTATE) or b"").decode("ascii", "replace")


def isPassing(state: str) -> bool:
    """
    Whether nothing was done, and another try is all it takes: a transaction
    met another (serialization failure, deadlock).
    """
    return state in ("40001", "40P01")


def isOfData(state: str) -> bool:
    """
    Whether it is what was sent that cannot be stored.
    """
    return state[:2] in ("22", "23", "54")


def isFinal(state: str) -> bool:
    """
    Whether the connection is of no use any more: it is to another server, or
    other tables, than was thought.
    """
    return state in ("0A000", "25006", "26000") or state[:2] in ("08", "3F", "42", "XX")


def explain(result: PGresult) -> StoreUnavailable:
    """
    What a failed statement is to those who wait for it.
    """
    state = stateOf(result)
    said = result.error_field(pq.DiagnosticField.MESSAGE_PRIMARY) or b""
    meaning = _MEANINGS.get(state)
    text = said.decode("utf-8", "replace") + f" ({state})"
    if meaning is not None:
        return StoreUnavailable(f"PostgreSQL refused, {meaning}: {text}")
    return StoreUnavailable(f"PostgreSQL failed: {text}")
