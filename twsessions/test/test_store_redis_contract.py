"""
The Redis store keeps the contract on a server of its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import ClassVar

import pytest
import pytest_twisted
from twisted.internet import reactor

from twsessions.stores._redis.link import Dialer, Login
from twsessions.stores._redis.route import Single
from twsessions.stores.redis import RedisStore
from twsessions.test.real import PATIENCE
from twsessions.test.redisserver import Server
from twsessions.testing.contract import StoreContractMixin


@pytest.fixture(scope="module", autouse=True)
def server() -> Iterator[Server]:
    made = Server("rdbcompression no", 'save ""')
    made.start()
    TestRedisStore.server = made
    yield made
    made.stop()


class TestRedisStore(StoreContractMixin, run=pytest_twisted.ensureDeferred):
    server: ClassVar[Server]

    async def makeStore(self) -> RedisStore:
        self.server.call("FLUSHALL")
        return await self.reopen(None)

    async def reopen(self, store: object) -> RedisStore:
        dialer = Dialer(reactor, PATIENCE, Login())
        route = Single(dialer, ("127.0.0.1", self.server.port))
        return RedisStore(route, skew=self.clock.seconds)

    async def rawBytes(self, store: RedisStore) -> bytes:
        self.server.call("SAVE")
        with open(os.path.join(self.server.directory, "dump.rdb"), "rb") as file:
            return file.read()

    async def corrupt(
        self, store: RedisStore, key: bytes, mutate: Callable[[bytes], bytes]
    ) -> bool:
        name = b"twsessions{0}s:" + key
        self.server.call("SET", name, mutate(self.server.call("GET", name)))
        return True
