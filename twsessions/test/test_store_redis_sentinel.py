"""
The Redis store behind Sentinels: a failover is followed.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater

from twsessions.core.record import Record
from twsessions.errors import SessionGone, StoreUnavailable
from twsessions.stores.fromurl import storeFromURL
from twsessions.test.ear import Ear, numbered
from twsessions.test.redismodel import insist
from twsessions.test.redisserver import Sentinels, call, until
from twsessions.testing.contract import change, create, newKey

ensure = pytest_twisted.ensureDeferred


def pause() -> Deferred[None]:
    return deferLater(reactor, 0.02, lambda: None)


@pytest.fixture
def sentinels() -> Iterator[Sentinels]:
    made = Sentinels("sesame")
    try:
        made.start()
        yield made
    finally:
        made.stop()


def urlOf(sentinels: Sentinels, hosts: str = "") -> str:
    hosts = hosts or ",".join(f"127.0.0.1:{one.port}" for one in sentinels.sentinels)
    return f"redis+sentinel://:sesame@{hosts}/{sentinels.service}"


async def loadedFrom(url: str) -> Any:
    store: Any = storeFromURL(reactor, url)
    try:
        return await store.load([newKey()])
    finally:
        await store.close()


@ensure
async def test_failoverIsFollowed(sentinels: Sentinels) -> None:
    """
    The master is killed: the store goes on with the replica by itself, with
    what the replica had; and what was ended stays ended.
    """
    # The first is a port where nobody listens.
    hosts = ",".join(["127.0.0.1:1", *(f"127.0.0.1:{s.port}" for s in sentinels.sentinels[:2])])
    store: Any = storeFromURL(reactor, urlOf(sentinels, hosts) + "?replicas=1&timeout=1")
    kept, ended, told = newKey(), newKey(), []
    ear = Ear()
    try:
        await store.watch(told.append)
        await store.subscribe(ear)
        await store.publish([numbered(1)])
        await ear.hears(1)
        await store.commit([create(kept, set={"da": b"1"}), create(ended)])
        await store.commit([change(ended, end="logout")])
        sentinels.master.kill()
        with pytest.raises(StoreUnavailable):
            await store.load([kept])
        (found,) = await insist(lambda: store.load([kept]), pause)
        assert found.fields == {"da": b"1"}
        assert await store.load([ended]) == [None]
        # There is no replica left that could have it, which is said.
        late = change(kept, set={"da": b"2"})
        with pytest.raises(StoreUnavailable, match="fewer than 1 replicas"):
            await store.commit([late])
        while None not in told:
            await pause()
        await ear.hears(None)
        await insist(lambda: store.publish([numbered(2)]), pause)
        await ear.hears(2)
        ear.check()
    finally:
        await store.close()


@ensure
async def test_aMasterThatHangsAndComesBack(sentinels: Sentinels) -> None:
    """
    The master hangs and another takes over. When the old one goes on, as a
    master to its own mind, it is not taken for one.
    """
    with pytest.raises(StoreUnavailable, match="does not know of that service"):
        await loadedFrom(urlOf(sentinels).rpartition("/")[0] + "/nobody")
    store: Any = storeFromURL(reactor, urlOf(sentinels) + "?timeout=0.5")
    key, to = newKey(), newKey()
    try:
        await store.commit([create(key, set={"da": b"1"}, idle=600.0)])
        until(lambda: call(sentinels.replica.port, "DBSIZE", password="sesame"), "it is replicated")
        sentinels.master.send(signal.SIGSTOP)
        try:
            (moved,) = await insist(lambda: store.commit([change(key, newKey=to)]), pause)
            assert isinstance(moved, Record)
        finally:
            sentinels.master.send(signal.SIGCONT)

        for _ in range(20):
            (old,) = await insist(lambda: store.commit([change(key, set={"da": b"2"})]), pause)
            assert isinstance(old, SessionGone)
            (new,) = await insist(lambda: store.load([to]), pause)
            assert new.fields == {"da": b"1"}
    finally:
        await store.close()


class Late(Protocol):
    """
    A Sentinel that has not heard that a master is none any more.
    """

    port = 0

    def dataReceived(self, data: bytes) -> None:
        assert self.transport is not None
        if b"PING" in data:
            self.transport.write(b"+PONG\r\n")
        else:
            self.transport.write(b"*2\r\n$9\r\n127.0.0.1\r\n$%d\r\n%d\r\n"
                                 % (len(str(self.port)), self.port))  # fmt: skip


@ensure
async def test_aReplicaIsNotTakenForTheMaster(sentinels: Sentinels) -> None:
    """
    What it has may be old: a session that has ended may be in it.
    """
    factory = Factory.forProtocol(Late)
    factory.noisy = False
    listening: Any = reactor.listenTCP(0, factory, interface="127.0.0.1")  # type: ignore[attr-defined]
    url = urlOf(sentinels, f"127.0.0.1:{listening.getHost().port}")
    try:
        Late.port = sentinels.master.port
        assert await loadedFrom(url) == [None]
        Late.port = sentinels.replica.port
        with pytest.raises(StoreUnavailable):
            await loadedFrom(url)
    finally:
        await listening.stopListening()
