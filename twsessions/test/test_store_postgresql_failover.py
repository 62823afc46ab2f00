"""
A PostgreSQL server dies, and a standby takes its place that has not heard all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.task import deferLater

from twsessions.errors import SessionError, SessionGone, StoreUnavailable
from twsessions.stores.fromurl import storeFromURL
from twsessions.test.postgresserver import Server
from twsessions.testing.contract import change, create, newKey

TIMEOUT = 2.0


@pytest.fixture
def pair() -> Iterator[tuple[Server, Server]]:
    """
    A primary, and a standby that follows it.
    """
    primary = Server()
    primary.start()
    standby = Server(of=primary)
    standby.start()
    yield primary, standby
    standby.stop()
    primary.stop()


async def until(holds: Callable[[], Any]) -> None:
    end = time.monotonic() + 20.0
    while not holds():
        assert time.monotonic() < end, "it never came to that"
        await deferLater(reactor, 0.02, lambda: None)


async def one(store: Any, what: Any) -> Any:
    (outcome,) = await store.commit([what])
    if isinstance(outcome, SessionError):
        raise outcome
    return outcome


@pytest_twisted.ensureDeferred
async def test_failover(pair: tuple[Server, Server]) -> None:
    """
    The store finds the new primary by itself. What the standby had is there,
    whole; what it had not heard of is not, and every process agrees on that.
    """
    primary, standby = pair
    url = primary.url(f"?timeout={TIMEOUT}&target_session_attrs=read-write")
    url = url.replace("@127.0.0.1:", f"@127.0.0.1:{standby.port},127.0.0.1:")
    first, second = storeFromURL(reactor, url), storeFromURL(reactor, url)
    try:
        kept, changed, ended = newKey(), newKey(), newKey()
        for key in kept, changed, ended:
            await one(first, create(key, idle=900.0, set={"da": b"1", "db": b"1"}))
        heard = "SELECT pg_current_wal_lsn()"
        ((place,),) = primary.query(heard)
        await until(lambda: standby.query("SELECT pg_last_wal_replay_lsn() >= %s", place)[0][0])

        standby.query("ALTER SYSTEM SET primary_conninfo = ''")
        standby.query("SELECT pg_reload_conf()")
        await until(lambda: not standby.query("SELECT 1 FROM pg_stat_wal_receiver"))
        await one(first, change(changed, set={"da": b"2", "db": b"2"}))
        await one(second, change(ended, end="logout"))

        primary.kill()
        for store in first, second:
            began = time.monotonic()
            with pytest.raises(StoreUnavailable):
                await store.load([kept])
            assert time.monotonic() - began < TIMEOUT + 1.5
        standby.query("SELECT pg_promote()")

        for store in first, second:
            deadline = time.monotonic() + 20.0
            while True:
                try:
                    records = await store.load([kept, changed, ended])
                    break
                except StoreUnavailable:
                    assert time.monotonic() < deadline
                    await deferLater(reactor, 0.05, lambda: None)
            assert [dict(record.fields) for record in records] == [{"da": b"1", "db": b"1"}] * 3
        await one(second, change(changed, set={"da": b"3"}))
        (record,) = await first.load([changed])
        assert dict(record.fields) == {"da": b"3", "db": b"1"}
        await one(first, change(ended, end="logout"))
        with pytest.raises(SessionGone):
            await one(second, change(ended, set={"da": b"4"}))
    finally:
        await first.close()
        await second.close()
