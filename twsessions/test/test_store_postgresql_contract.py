"""
The PostgreSQL store keeps the contract on a server of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import ClassVar

import pytest
import pytest_twisted
from twisted.internet import reactor

from twsessions.test.postgresserver import Server
from twsessions.test.real import PATIENCE, missing
from twsessions.testing.contract import StoreContractMixin

try:
    import psycopg

    from twsessions.stores._postgres.url import parse
    from twsessions.stores.postgresql import PostgreSQLStore
except ModuleNotFoundError:
    psycopg = None


@pytest.fixture(scope="module", autouse=True)
def server() -> Iterator[Server]:
    if psycopg is None:
        missing("psycopg")
    made = Server()
    try:
        made.start()
        TestPostgreSQLStore.server = made
        yield made
    finally:
        made.stop()


# What a session's seal covers, and the key.
COLUMNS = (
    "created", "touched", "version", "uses", "epoch", "own_idle", "secure", "seed", "token",
    "idle", "absolute", "principal", "address", "agent", "names", "vals",
)  # fmt: skip
HEAD = 9  # bytes of format and seal


class TestPostgreSQLStore(StoreContractMixin, run=pytest_twisted.ensureDeferred):
    server: ClassVar[Server]

    async def makeStore(self) -> PostgreSQLStore:
        self.server.clear()
        return await self.reopen(None)

    async def reopen(self, store: object) -> PostgreSQLStore:
        target = parse(self.server.url(f"?timeout={PATIENCE}").partition(":")[2])
        return PostgreSQLStore(reactor, target, self.clock.seconds)

    async def rawBytes(self, store: PostgreSQLStore) -> bytes:
        names = ("session", "ending", "lease", "quarantine", "meta")
        raw = b""
        for name in names:
            for row in self.server.query(f"SELECT record_send(t) FROM twsessions.{name} t"):
                raw += bytes(row[0])
        return raw

    async def corrupt(
        self, store: PostgreSQLStore, key: bytes, mutate: Callable[[bytes], bytes]
    ) -> bool:
        """
        The stored bytes are a format of one byte, the seal, and the columns
        as the server sends them.
        """
        where = f"host={self.server.directory} port={self.server.port} dbname=postgres user=root"
        with psycopg.connect(where, autocommit=True) as connection:
            pgconn = connection.pgconn
            names = ", ".join(("format", "seal", *COLUMNS))
            query = f"SELECT {names} FROM twsessions.session WHERE key = $1".encode()
            result = pgconn.exec_params(query, [key], param_formats=[1], result_format=1)
            form, *parts = [result.get_value(0, n) for n in range(2 + len(COLUMNS))]
            assert form is not None
            rest = mutate(form[1:] + b"".join(part or b"" for part in parts))
            values = [b"\0" + rest[:1]]
            rest = rest[1:]
            for part in parts:
                size = len(part or b"")
                values.append(None if part is None else rest[:size])
                rest = rest[size:]
            sets = ", ".join(
                f"{name} = ${n}" for n, name in enumerate(("format", "seal", *COLUMNS), 2)
            )
            update = f"UPDATE twsessions.session SET {sets} WHERE key = $1".encode()
            pgconn.exec_params(update, [key, *values], param_formats=[1] * (len(values) + 1))
            # If it was refused, the server's types have held: nothing is corrupt.
        return True
