"""
The memcached store keeps the contract, on one server and on three.
"""

from __future__ import annotations

import os
from binascii import b2a_base64
from collections.abc import Callable, Iterator
from typing import ClassVar

import pytest
import pytest_twisted
from twisted.internet import reactor

from twsessions.interfaces import Swept
from twsessions.stores.memcached import MemcachedStore
from twsessions.test.memcachedserver import Client, Server
from twsessions.test.real import PATIENCE
from twsessions.testing.contract import StoreContractMixin

_run = pytest_twisted.ensureDeferred


@pytest.fixture(scope="module", autouse=True)
def servers() -> Iterator[list[Server]]:
    made: list[Server] = []
    try:
        for _ in range(3):
            made.append(Server())
        _OnServers.servers = made
        yield made
    finally:
        for server in made:
            server.stop()


class _OnServers(StoreContractMixin):
    servers: ClassVar[list[Server]]
    count: ClassVar[int]

    prefix = b""

    async def makeStore(self) -> MemcachedStore:
        self.prefix = os.urandom(8).hex().encode()
        return await self.reopen(None)

    async def reopen(self, store: object) -> MemcachedStore:
        addresses = [("127.0.0.1", server.port) for server in self.servers[: self.count]]
        return MemcachedStore(reactor, addresses, self.clock.seconds, self.prefix, timeout=PATIENCE)

    def clients(self) -> Iterator[Client]:
        for server in self.servers[: self.count]:
            client = server.client()
            yield client
            client.close()

    async def rawBytes(self, store: MemcachedStore) -> bytes:
        raw = b""
        for client in self.clients():
            for name in client.names():
                raw += name + (client.get(name) or b"")
        return raw

    async def corrupt(
        self, store: MemcachedStore, key: bytes, mutate: Callable[[bytes], bytes]
    ) -> bool:
        name = self.prefix + b":" + b2a_base64(key, newline=False)
        for client in self.clients():
            value = client.get(name)
            if value is not None:
                client.set(name, mutate(value))
                return True
        raise AssertionError("there is no such item")

    async def test_sweepsNothing(self) -> None:
        await self.made(idle=10.0)
        await self.advance(10.0)
        assert await self.store.sweep(10) == Swept(0, False, None)


class TestMemcachedStore(_OnServers, run=_run):
    count = 1


class TestMemcachedStoreOnThree(_OnServers, run=_run):
    count = 3
