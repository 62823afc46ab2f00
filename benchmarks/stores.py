"""
What the shared stores do in a second, beside their servers' own tools and the
drivers that one would use instead.
"""

from __future__ import annotations

import os
import random
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

from benchmarks.harness import measure
from benchmarks.servers import redis
from twsessions.core.delta import Birth, Change
from twsessions.stores.fromurl import storeFromURL
from twsessions.test.memcachedserver import Server as Memcached
from twsessions.test.places import serverFor

SESSIONS, AT_ONCE = 1000, 64
SECONDS, TURNS = 3.0, 12


@contextmanager
def server(kind: str) -> Iterator[str]:
    """
    The URL of a data server that runs meanwhile.
    """
    if kind == "sqlite":
        with tempfile.TemporaryDirectory() as directory:
            yield f"sqlite:///{directory}/s.db"
    elif kind == "redis":
        with redis() as port:
            yield f"redis://127.0.0.1:{port}/0"
    elif kind == "memcached":
        forgetful = Memcached("-m", "2048")  # MB; of a million sessions it is to forget none
        try:
            yield f"memcached://127.0.0.1:{forgetful.port}"
        finally:
            forgetful.stop()
    else:
        one = serverFor(kind)
        one.start()
        try:
            yield one.url
        finally:
            one.stop()


def react(work: Callable[[Any], Any]) -> float:
    """
    Run a coroutine function on the reactor and return what it returns.
    """
    from twisted.internet import reactor
    from twisted.internet.defer import Deferred
    from twisted.python.failure import Failure

    results: list[Any] = []
    loop: Any = reactor

    def start() -> None:
        done = Deferred.fromCoroutine(work(reactor))
        done.addBoth(results.append).addCallback(lambda _: loop.stop())

    loop.callWhenRunning(start)
    loop.run()
    if isinstance(results[0], Failure):
        results[0].raiseException()
    return float(results[0])


def births(keys: list[bytes]) -> list[Change]:
    from benchmarks.sqlite import fields

    return [
        Change(key, os.urandom(16), Birth(key[:16]), fields(number), idle=9000.0)
        for number, key in enumerate(keys)
    ]


async def filled(reactor: Any, url: str, count: int) -> tuple[Any, list[bytes]]:
    """
    A store with so many sessions, and a thousand of their keys.
    """
    store = storeFromURL(reactor, url)
    kept: list[bytes] = []
    for at in range(0, count, 250):
        keys = [os.urandom(32) for _ in range(250)]
        await store.commit(births(keys))
        if at % max(250, count // 4) == 0:
            kept += keys
    return store, kept


def settle(url: str) -> None:
    """
    Have the server do now what the filling would have it do meanwhile.
    """
    import psycopg

    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("VACUUM (ANALYZE) twsessions.session")
        connection.execute("CHECKPOINT")


async def busy(store: Any, keys: list[bytes], commits: bool, seconds: float) -> float:
    """
    Loads or commits a second, 64 at once.
    """
    done, started = 0, time.perf_counter()
    while time.perf_counter() < started + seconds:
        some = [keys[(done + n) * 7919 % len(keys)] for n in range(AT_ONCE)]
        if commits:
            await store.commit(
                [
                    Change(key, os.urandom(16), set={"duser": b"%d" % done}, usedAgo=0.0)
                    for key in dict.fromkeys(some)
                ]
            )
        else:
            await store.load(some)
        done += AT_ONCE
    return done / (time.perf_counter() - started)


async def ended(store: Any, keys: list[bytes]) -> None:
    """
    Close the store, with nothing lost.
    """
    for at in range(0, len(keys), 250):
        assert None not in await store.load(keys[at : at + 250])
    await store.close()


def perSecond(kind: str, commits: bool) -> float:
    """
    Loads or commits a second.
    """

    async def work(reactor: Any) -> float:
        store, keys = await filled(reactor, url, SESSIONS)
        if kind == "postgresql":
            settle(url)
        await busy(store, keys, commits, SECONDS / 3)  # what was stored may be on its way
        rate = await busy(store, keys, commits, SECONDS)
        await ended(store, keys)
        return rate

    with server(kind) as url:
        return react(work)


def manyOverFew(kind: str, scale: int) -> float:
    """
    Commits a second where many sessions are stored, over those where there are
    a thousand. The two take turns.
    """

    async def work(reactor: Any) -> float:
        sides = []
        for url, count in ((few, SESSIONS), (many, scale)):
            store, keys = await filled(reactor, url, count)
            rates: list[float] = []
            sides.append((store, keys, rates))
        for url in (few, many):
            if kind == "postgresql":
                settle(url)
        for store, keys, _ in sides:
            await busy(store, keys, True, SECONDS / 3)
        for _ in range(TURNS):
            for store, keys, rates in random.sample(sides, 2):
                rates.append(await busy(store, keys, True, SECONDS / TURNS))
        for store, keys, _ in sides:
            await ended(store, keys)
        (_, _, withFew), (_, _, withMany) = sides
        return median(withMany) / median(withFew)

    with server(kind) as few, server(kind) as many:
        return react(work)


@measure
def oursRedisLoads(scale: int) -> float:
    return perSecond("redis", False)


@measure
def redisBenchmark(scale: int) -> float:
    """
    GET of as many bytes, by redis-benchmark on one connection.
    """
    with redis() as port:
        words = ["-p", str(port), "-c", "1", "-P", "64", "-d", "600", "-r", "1000"]
        words += ["-t", "set,get", "-n", "500000", "--csv"]
        done = subprocess.run(["redis-benchmark", *words], capture_output=True, check=True)
        for line in done.stdout.decode().splitlines():
            name, _, rest = line.replace('"', "").partition(",")
            if name == "GET":
                return float(rest.split(",")[0])
        raise ValueError("redis-benchmark said nothing of GET")


@measure
def txredisapiLoads(scale: int) -> float:
    """
    GET of as many bytes by txredisapi, 64 in flight; nothing is decoded.
    """

    async def work(reactor: Any) -> float:
        import txredisapi
        from twisted.internet.defer import gatherResults

        client = await txredisapi.Connection("127.0.0.1", port)
        for number in range(SESSIONS):
            await client.set(f"key{number}", b"x" * 600)
        done, started = 0, time.perf_counter()
        while time.perf_counter() < started + SECONDS:
            names = [f"key{(done + n) * 7919 % SESSIONS}" for n in range(AT_ONCE)]
            await gatherResults([client.get(name) for name in names])
            done += AT_ONCE
        return done / (time.perf_counter() - started)

    with redis() as port:
        return react(work)


def pgbench(script: str, clients: int, perScript: int) -> float:
    """
    Statements a second by pgbench.
    """
    one = serverFor("postgresql")
    one.start()
    try:
        one.query("CREATE TABLE t (key bytea PRIMARY KEY, value bytea, due float8)")
        one.query("CREATE INDEX d ON t (due)")
        one.query(
            "INSERT INTO t SELECT sha256(int4send(n)), convert_to(repeat('x', 600), 'UTF8'), n"
            f" FROM generate_series(0, {SESSIONS - 1}) n"
        )
        with tempfile.NamedTemporaryFile("w", suffix=".sql") as file:
            file.write(script)
            file.flush()
            os.chmod(file.name, 0o644)
            words = ["-n", "-M", "prepared", "-T", "3", "-c", str(clients), "-f", file.name]
            done = subprocess.run(
                ["pgbench", *words, "-d", one.url], capture_output=True, check=True, text=True
            )
        for line in done.stdout.splitlines():
            if line.startswith("tps = "):
                return float(line.split()[2]) * perScript
        raise ValueError("pgbench said nothing")
    finally:
        one.stop()


_SELECT = "\\set n random(0, 999)\nSELECT value FROM t WHERE key = sha256(int4send(:n::int));\n"
_UPDATE = (
    "\\set n random(0, 999)\nUPDATE t SET value = value || '', due = due + 1"
    " WHERE key = sha256(int4send(:n::int));\n"
)


@measure
def pgbenchLoads(scale: int) -> float:
    return pgbench("\\startpipeline\n" + _SELECT * 64 + "\\endpipeline\n", 1, 64)


@measure
def pgbenchCommits(scale: int) -> float:
    return pgbench(_UPDATE, 8, 1)


@measure
def oursPostgreSQLLoads(scale: int) -> float:
    return perSecond("postgresql", False)


@measure
def oursPostgreSQLCommits(scale: int) -> float:
    return perSecond("postgresql", True)


@measure
def oursMemcachedLoads(scale: int) -> float:
    return perSecond("memcached", False)


@measure
def twistedMemcache(scale: int) -> float:
    """
    By twisted.protocols.memcache, 64 in flight, and unpacked as ours are.
    """
    from benchmarks.sqlite import fields
    from twsessions.core.record import Record, pack, unpack

    async def work(reactor: Any) -> float:
        from twisted.internet.defer import gatherResults
        from twisted.internet.endpoints import clientFromString, connectProtocol
        from twisted.protocols.memcache import MemCacheProtocol

        endpoint = clientFromString(reactor, f"tcp:127.0.0.1:{url.rpartition(':')[2]}")
        client = await connectProtocol(endpoint, MemCacheProtocol())
        key = b"k" * 32
        packed = pack(Record(key, b"s" * 16, 0.0, 0.0, fields=fields(1)))
        for number in range(SESSIONS):
            await client.set(b"key%d" % number, packed)
        done, started = 0, time.perf_counter()
        while time.perf_counter() < started + SECONDS:
            names = [b"key%d" % ((done + n) * 7919 % SESSIONS) for n in range(AT_ONCE)]
            for _, value in await gatherResults([client.get(name) for name in names]):
                unpack(key, value)
            done += AT_ONCE
        return done / (time.perf_counter() - started)

    with server("memcached") as url:
        return react(work)


def _many(kind: str) -> None:
    def ofMany(scale: int) -> float:
        return manyOverFew(kind, scale)

    ofMany.__name__ = f"{kind}OfMany"
    measure(ofMany)


for _kind in ("sqlite", "redis", "postgresql", "memcached"):
    _many(_kind)


def sweeping(kind: str, count: int = 20_000) -> tuple[float, float]:
    """
    Due sessions ended a second by one process, and the longest gap meanwhile
    of a reactor that ticks every millisecond, in ms.
    """
    gap = [0.0]

    async def work(reactor: Any) -> float:
        from twisted.internet.task import LoopingCall, deferLater

        store = storeFromURL(reactor, url)
        await store.listen()
        for _ in range(0, count, 250):
            some = births([os.urandom(32) for _ in range(250)])
            for one in some:
                one.idle = 0.5
            await store.commit(some)
        await deferLater(reactor, 0.6, lambda: None)
        last = time.perf_counter()

        def tick() -> None:
            nonlocal last
            now = time.perf_counter()
            gap[0] = max(gap[0], now - last - 0.001)
            last = now

        ticking = LoopingCall(tick)
        ticking.start(0.001)
        ended, started = 0, time.perf_counter()
        while ended < count:
            ended += (await store.sweep(256)).ended
        taken = time.perf_counter() - started
        ticking.stop()
        await store.close()
        return count / taken

    with server(kind) as url:
        return react(work), gap[0] * 1e3


def _sweeps(kind: str) -> None:
    def rate(scale: int) -> float:
        return sweeping(kind)[0]

    def gap(scale: int) -> float:
        return sweeping(kind)[1]

    rate.__name__, gap.__name__ = f"{kind}Sweeps", f"{kind}SweepGap"
    measure(rate)
    measure(gap)


for _kind in ("sqlite", "redis", "postgresql"):
    _sweeps(_kind)
