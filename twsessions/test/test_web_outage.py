"""
The store is away, over real connections: what the clients of a site get.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
import treq
from twisted.internet import reactor
from twisted.internet.task import deferLater
from twisted.web.client import Agent, HTTPConnectionPool
from twisted.web.resource import Resource

from twsessions import SessionSite
from twsessions.test.places import serverFor

TIMEOUT = 1.0  # the site's, in seconds
SLACK = 1.5  # for a slow machine
PATIENCE = 20.0
clock: Any = reactor


class Count(Resource):
    isLeaf = True

    def render_GET(self, request: Any) -> bytes:
        if request.path == b"/static":
            return b"static"
        session = request.getSession()
        session["n"] = session.get("n", 0) + 1
        return b"%d" % session["n"]


class World:
    """
    A site, its store's server and one client with a cookie.
    """

    def __init__(self, server: Any) -> None:
        self.server = server
        self.site: Any = SessionSite(
            Count(), store=server.url, storeTimeout=TIMEOUT, reactor=reactor
        )
        self.port = clock.listenTCP(0, self.site, interface="127.0.0.1")
        self.pool = HTTPConnectionPool(reactor)
        self.cookie = b""

    async def get(self, path: str = "/") -> tuple[int, bytes, float, Any]:
        headers = {b"cookie": self.cookie} if self.cookie else {}
        started = clock.seconds()
        url = f"http://127.0.0.1:{self.port.getHost().port}{path}"
        client = treq.client.HTTPClient(Agent(reactor, pool=self.pool))  # no cookies of its own
        response = await client.get(url, headers=headers)
        body = await response.content()
        cookie = response.headers.getRawHeaders(b"set-cookie", [b""])[0]
        if cookie:
            self.cookie = cookie.partition(b";")[0]
        return response.code, body, clock.seconds() - started, response.headers

    async def close(self) -> None:
        await self.port.stopListening()
        await self.pool.closeCachedConnections()
        await self.site._stop()


@pytest.fixture(params=["memcached", "postgresql", "redis"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    server = serverFor(request.param)
    server.start()
    yield server
    server.stop()


async def recovered(world: World) -> bytes:
    until = clock.seconds() + PATIENCE
    while True:
        code, body, _, _ = await world.get()
        if code == 200:
            return body
        assert code == 503 and clock.seconds() < until
        await deferLater(clock, 0.05, lambda: None)


@pytest.mark.parametrize("fault", ["hangs", "refuses"])
@pytest_twisted.ensureDeferred
async def test_outage(server: Any, fault: str) -> None:
    world = World(server)
    try:
        assert (await world.get())[:2] == (200, b"1")
        assert (await world.get())[:2] == (200, b"2")
        if fault == "hangs":
            server.send(signal.SIGSTOP)
        else:
            server.kill()
        cookie = world.cookie
        for _ in range(5):
            code, body, took, headers = await world.get()
            assert code == 503 and took < TIMEOUT + SLACK
            assert not headers.hasHeader(b"set-cookie") and headers.hasHeader(b"retry-after")
            code, body, took, _ = await world.get("/static")
            assert (code, body) == (200, b"static") and took < TIMEOUT + SLACK
        # The breaker is open: nobody waits any more.
        assert took < TIMEOUT / 2
        world.cookie = b""
        code, _, _, headers = await world.get()
        assert code == 500 and not headers.hasHeader(b"set-cookie")
        world.cookie = cookie
        if fault == "hangs":
            server.send(signal.SIGCONT)
        else:
            server.start()
        assert await recovered(world) == (b"3" if server.keeps or fault == "hangs" else b"1")
    finally:
        await world.close()
