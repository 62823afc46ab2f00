"""
The stores on servers, against the model: with connections that are lost, in
the middle of a commit too (but on a cluster), and servers that are killed (of
Redis and PostgreSQL, which keep what they have).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import greenlet
import pytest
import pytest_twisted
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from twsessions.interfaces import ISessionStore
from twsessions.stores._redis.link import Dialer, Login
from twsessions.stores._redis.route import Cluster as Route
from twsessions.stores._redis.route import Single
from twsessions.stores.memcached import MemcachedStore
from twsessions.stores.redis import RedisStore
from twsessions.test.memcachedserver import Server as Memcached
from twsessions.test.redisproxy import Proxy
from twsessions.test.redisserver import Cluster
from twsessions.test.redisserver import Server as Redis
from twsessions.test.storemachine import Faults, machineFor

T = TypeVar("T")
SETTINGS = settings(
    max_examples=20,
    phases=[Phase.generate],  # to make a failure small takes minutes with a real server
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


class Cuts(Faults):
    """
    A proxy before a server.

    @ivar again: kills the server, and starts it again.
    """

    def __init__(self, port: int, again: Callable[[], None] = lambda: None) -> None:
        self.proxy = Proxy(port)
        self.again = again

    def answer(self, deferred: Deferred[T]) -> T:
        mine, results = greenlet.getcurrent(), []

        def fired(result: Any) -> None:
            results.append(result)
            if greenlet.getcurrent() is not mine:
                mine.switch()

        deferred.addBoth(fired)
        if not results:
            mine.parent.switch()  # to the reactor
        if isinstance(results[0], Failure):
            results[0].raiseException()
        return results[0]  # type: ignore[no-any-return]

    def cut(self) -> None:
        self.proxy.cutAll()

    def cutAfter(self, way: str | None, count: int = 0) -> None:
        self.proxy.left = {} if way is None else {way: count}

    def restart(self) -> None:
        self.again()


class Kills(Cuts):
    """
    The nodes of a cluster, which cut their clients' connections.

    @ivar cuts: connections that were.
    """

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(cluster.masters[0].port)
        self.cluster = cluster
        self.cuts = 0

    def cut(self) -> None:
        for server in self.cluster.masters:
            self.cuts += server.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")


def waiting(function: Callable[[], None]) -> Deferred[None]:
    """
    Run a function that may wait, beside the reactor.
    """
    done: Deferred[None] = Deferred()

    def run() -> None:
        try:
            function()
        except BaseException:
            done.errback()
        else:
            done.callback(None)

    greenlet.greenlet(run).switch()
    return done


@contextmanager
def redis() -> Iterator[tuple[Cuts, Any, Any, bool]]:
    server = Redis("appendonly yes", "appendfsync always")
    server.start()

    def again() -> None:
        server.kill()
        server.start()

    faults = Cuts(server.port, again)

    def opened(skew: Callable[[], float]) -> ISessionStore:
        dialer = Dialer(reactor, 1.5, Login())
        return RedisStore(Single(dialer, ("127.0.0.1", faults.proxy.port)), skew=skew)

    try:
        yield faults, lambda: server.call("FLUSHALL"), opened, True
    finally:
        server.stop()


@contextmanager
def cluster() -> Iterator[tuple[Cuts, Any, Any, bool]]:
    """
    A cluster tells its clients where its nodes are, so they pass by the proxy:
    the nodes themselves cut connections, but not in the middle of a commit.
    """
    made = Cluster()
    made.start()
    faults = Kills(made)

    def clear() -> None:
        for server in made.masters:
            server.call("FLUSHALL")

    def opened(skew: Callable[[], float]) -> ISessionStore:
        seeds = [("127.0.0.1", server.port) for server in made.masters]
        return RedisStore(Route(Dialer(reactor, 1.5, Login()), seeds), skew=skew)

    try:
        yield faults, clear, opened, False
    finally:
        made.stop()


@contextmanager
def memcached() -> Iterator[tuple[Cuts, Any, Any, bool]]:
    server = Memcached()
    faults = Cuts(server.port)

    def clear() -> None:
        client = server.client()
        client.line(b"flush_all")
        client.close()

    def opened(skew: Callable[[], float]) -> ISessionStore:
        servers = [("127.0.0.1", faults.proxy.port)]
        return MemcachedStore(reactor, servers, lambda: time.time() + skew(), b"machine")

    try:
        yield faults, clear, opened, False
    finally:
        server.stop()


@contextmanager
def postgresql() -> Iterator[tuple[Cuts, Any, Any, bool]]:
    from twsessions.stores._postgres.url import parse
    from twsessions.stores.postgresql import PostgreSQLStore
    from twsessions.test.postgresserver import Server

    server = Server()
    server.start()

    def again() -> None:
        server.kill()
        server.start()

    faults = Cuts(server.port, again)

    def opened(skew: Callable[[], float]) -> ISessionStore:
        target = parse(server.url(port=faults.proxy.port).partition(":")[2])
        return PostgreSQLStore(reactor, target, skew)

    try:
        yield faults, server.clear, opened, True
    finally:
        server.stop()


@pytest.mark.parametrize("place", [redis, cluster, memcached, postgresql])
@pytest_twisted.ensureDeferred
async def test_machine(place: Any) -> None:
    """
    Whatever happens, the store is as its model.
    """
    with place() as (faults, clear, opened, keeps):
        await faults.proxy.start()

        def makeStore(skew: Callable[[], float]) -> ISessionStore:
            clear()
            store: ISessionStore = opened(skew)
            return store

        machine = machineFor(
            makeStore, lambda _, skew: opened(skew), faults, keeps=keeps, scale=1000
        )
        try:
            await waiting(lambda: run_state_machine_as_test(machine, settings=SETTINGS))
            cuts = faults.cuts if isinstance(faults, Kills) else faults.proxy.accepted
            assert cuts > 2 * SETTINGS.max_examples, "hardly any faults"
        finally:
            await faults.proxy.stop()
