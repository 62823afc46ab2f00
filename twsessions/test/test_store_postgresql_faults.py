"""
What the PostgreSQL store does when the server dies, hangs, refuses, or talks
nonsense, and when connections are cut.
"""

from __future__ import annotations

import os
import random
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import gatherResults
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread

from twsessions.core.record import Record
from twsessions.errors import SessionError, SessionGone, StoreError, StoreUnavailable
from twsessions.interfaces import Message, Verdict
from twsessions.stores.memory import MemoryStore
from twsessions.test.ear import Ear, numbered
from twsessions.test.postgresserver import PASSWORD, Proxy, Server
from twsessions.test.real import freePort, missing
from twsessions.testing.contract import change, create, newKey

try:
    import psycopg

    from twsessions.stores._postgres import record
    from twsessions.stores._postgres.url import parse
    from twsessions.stores.postgresql import PostgreSQLStore, fromURL
except ModuleNotFoundError:
    psycopg = None

TIMEOUT = 2.0
SLACK = 1.5  # for a slow machine


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    if psycopg is None:
        missing("psycopg")
    made = Server("deadlock_timeout=50ms")
    try:
        made.start()
        yield made
    finally:
        made.stop()


class Place:
    """
    Makes stores on one server, maybe through a proxy.
    """

    def __init__(self, server: Server) -> None:
        self.server = server
        self.proxy = Proxy(reactor, server.port)
        self.stores: list[Any] = []

    def store(self, proxied: bool = False, timeout: float = TIMEOUT, **options: str) -> Any:
        query = f"?timeout={timeout}" + "".join(f"&{k}={v}" for k, v in options.items())
        return self.at(self.server.url(query, self.proxy.port if proxied else None))

    def at(self, url: str, **more: Any) -> Any:
        self.stores.append(PostgreSQLStore(reactor, parse(url.partition(":")[2]), **more))
        return self.stores[-1]

    async def close(self) -> None:
        for store in self.stores:
            await store.close()
        await self.proxy.stop()


@pytest_twisted.async_yield_fixture
async def place(server: Server) -> Any:
    server.clear()
    made = Place(server)
    yield made
    await made.close()
    # Nothing is left: no timer (but those of the runner, which are due), no connection.
    now = reactor.seconds()
    assert [call for call in reactor.getDelayedCalls() if call.getTime() > now] == []
    await until(lambda: connections(server) == 0)


def connections(server: Server) -> int:
    found = server.query(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'twsessions'"
    )
    count: int = found[0][0]
    return count


async def until(holds: Callable[[], Any], patience: float = 15.0) -> Any:
    end = time.monotonic() + patience
    while time.monotonic() < end:
        if result := holds():
            return result
        await deferLater(reactor, 0.01, lambda: None)
    raise AssertionError("it never came to that")


async def one(store: Any, change_: Any) -> Any:
    (outcome,) = await store.commit([change_])
    if isinstance(outcome, SessionError):
        raise outcome
    return outcome


async def made(store: Any, **what: Any) -> bytes:
    key = newKey()
    await one(store, create(key, idle=900.0, **what))
    return key


async def fields(store: Any, key: bytes) -> Any:
    (record,) = await store.load([key])
    return record and dict(record.fields)


async def unavailable(deferred: Any) -> StoreUnavailable:
    """
    The error, which has to come in time.
    """
    began = time.monotonic()
    with pytest.raises(StoreUnavailable) as caught:
        await deferred
    assert time.monotonic() - began < TIMEOUT + SLACK
    return caught.value


async def recovered(store: Any, key: bytes) -> Any:
    """
    Wait until a store works again, without anything being done to it.
    """
    return await patiently(lambda: fields(store, key))


async def patiently(ask: Callable[[], Any]) -> Any:
    """
    Ask again until there is an answer.
    """
    end = time.monotonic() + 15.0
    while time.monotonic() < end:
        try:
            return await ask()
        except StoreUnavailable:
            await deferLater(reactor, 0.02, lambda: None)
    raise AssertionError("it does not come back")


# The server


@pytest_twisted.ensureDeferred
async def test_nobodyListens(server: Server) -> None:
    store = fromURL("postgresql", server.url(f"?timeout={TIMEOUT}", freePort())[11:])(reactor)
    try:
        error = await unavailable(store.load([newKey()]))
        assert "refused" in str(error)
        # And at once, for a while.
        began = time.monotonic()
        for _ in range(500):
            await unavailable(store.commit([create(newKey())]))
        assert time.monotonic() - began < 10 * TIMEOUT
        assert not store._writer._queue and not store._reader._queue
    finally:
        await store.close()


@pytest_twisted.ensureDeferred
async def test_aNameThatDoesNotResolve(place: Place) -> None:
    store = place.at(f"postgresql://root@nowhere.invalid/postgres?timeout={TIMEOUT}")
    await unavailable(store.load([newKey()]))


@pytest_twisted.ensureDeferred
async def test_aNameThatResolves(place: Place) -> None:
    url = place.server.url().replace("127.0.0.1", "localhost")
    store = place.at(url)
    assert await fields(store, await made(store, set={"da": b"1"})) == {"da": b"1"}


@pytest_twisted.ensureDeferred
async def test_theSecondHostAnswers(place: Place) -> None:
    port = place.server.port
    url = place.server.url().replace("@127.0.0.1:", f"@127.0.0.1:{freePort()},127.0.0.1:")
    assert f",127.0.0.1:{port}/" in url
    store = place.at(url)
    await made(store)


@pytest_twisted.ensureDeferred
async def test_theSecondHostAnswersAndTheFirstIsSilent(place: Place) -> None:
    """
    As one whose machine has died, or hangs.
    """
    with socket.create_server(("127.0.0.1", 0)) as silent:
        first = f"@127.0.0.1:{silent.getsockname()[1]},127.0.0.1:"
        url = place.server.url("?timeout=3").replace("@127.0.0.1:", first)
        store = place.at(url)
        assert await patiently(lambda: fields(store, newKey())) is None


@pytest_twisted.ensureDeferred
async def test_theSecondHostAnswersAndTheFirstHasNoAddress(place: Place) -> None:
    url = place.server.url("?timeout=3").replace("@", "@nowhere.invalid,")
    store = place.at(url)
    assert await patiently(lambda: fields(store, newKey())) is None


@pytest_twisted.ensureDeferred
async def test_theSocketInTheFileSystem(place: Place) -> None:
    server = place.server
    host = server.directory.replace("/", "%2F")
    await made(place.at(f"postgresql://root@{host}:{server.port}/postgres"))
    await made(place.at(f"postgresql://root@:{server.port}/postgres?host={host}"))


@pytest_twisted.ensureDeferred
async def test_hangs(place: Place) -> None:
    store, other = place.store(), place.store()
    key = await made(store, set={"da": b"1"})
    late = change(key, set={"da": b"2"})
    place.server.pause()
    try:
        # All three at once: they wait side by side.
        waiting = [store.load([key]), store.commit([late]), store.sweep(10), other.load([key])]
        for deferred in waiting:
            await unavailable(deferred)
        await unavailable(store.load([key]))
    finally:
        place.server.resume()
    await recovered(store, key)
    # Wholly or not at all; once it is certain that nothing is under way any
    # more, the same change is applied once.
    await until(lambda: connections(place.server) <= 2)
    record = await one(store, late)
    assert (record.version, record.fields) == (2, {"da": b"2"})


@pytest_twisted.ensureDeferred
async def test_diesAndComesBackUnderLoad(place: Place) -> None:
    stores = [place.store(), place.store()]
    keys = [await made(stores[0]) for _ in range(8)]
    acknowledged = [0] * len(keys)
    stop = False

    async def write(number: int) -> None:
        value = 0
        while not stop:
            value += 1
            change_ = change(keys[number], set={"dn": b"%d" % value}, uses=1)
            while not stop:
                try:
                    await one(stores[number % 2], change_)
                except StoreUnavailable:
                    await deferLater(reactor, 0.01, lambda: None)
                else:
                    acknowledged[number] = value
                    break

    writers = gatherResults([_deferred(write(number)) for number in range(len(keys))])
    for _ in range(2):
        seen = list(acknowledged)
        await until(lambda seen=seen: all(a > b for a, b in zip(acknowledged, seen, strict=True)))
        place.server.kill()
        await deferToThread(place.server.start)
    seen = list(acknowledged)
    await until(lambda: all(a > b for a, b in zip(acknowledged, seen, strict=True)))
    stop = True
    await writers
    records = await stores[0].load(keys)
    for record, value in zip(records, acknowledged, strict=True):
        # Each was applied once; the last may have been without it being known.
        assert record.uses == int(record.fields["dn"])
        assert record.uses - value in (0, 1)


def _deferred(coroutine: Any) -> Any:
    from twisted.internet.defer import Deferred

    return Deferred.fromCoroutine(coroutine)


@pytest_twisted.ensureDeferred
async def test_theTablesAreDropped(place: Place) -> None:
    store = place.store(schema="dropped")
    key = await made(store)
    place.server.query("DROP SCHEMA dropped CASCADE")
    await unavailable(store.commit([change(key)]))
    await recovered(store, key)
    await made(store)


# Connections


@pytest_twisted.ensureDeferred
async def test_cutAtEveryByteOfACommit(place: Place) -> None:
    store, direct = place.store(proxied=True), place.store()
    proxy = place.proxy
    key = await made(store, set={"da": b"0"})
    before = proxy.sent
    await one(store, change(key, set={"da": b"1"}, uses=1))
    size = proxy.sent - before
    assert 200 < size < 1000
    changed = 1
    for allowance in range(size + 1):
        value = b"%d" % allowance
        attempt = change(key, set={"da": value, "db": value}, uses=1)
        if store._writer._wire is None:
            await recovered(store, key)
            await patiently(store.listen)  # that the connection for writing is there
        proxy.allowance = allowance
        outcome: Any
        try:
            outcome = (await store.commit([attempt]))[0]
        except StoreUnavailable as error:
            outcome = error
        proxy.allowance = None
        assert isinstance(outcome, StoreUnavailable) or allowance == size, allowance
        # The server has finished with it, one way or the other.
        (record,) = await direct.load([key])
        assert record.uses in (changed, changed + 1), allowance
        assert record.fields.get("da") == (value if record.uses > changed else record.fields["da"])
        assert record.uses == changed or record.fields["db"] == value
        again = await one(direct, attempt)
        changed += 1
        assert (again.uses, again.fields) == (changed, {"da": value, "db": value}), allowance


@pytest_twisted.ensureDeferred
async def test_cutAtEveryByteOfAnAnswer(place: Place) -> None:
    store, direct = place.store(proxied=True), place.store(timeout=5.0)
    proxy = place.proxy
    key = await made(store, set={"da": b"0"})
    changed = 0
    for allowance in range(0, 500, 3):
        await recovered(store, key)
        await patiently(store.listen)
        left = allowance

        def part(data: bytes) -> bytes:
            nonlocal left
            data, left = data[:left], max(0, left - len(data))
            if not left:
                reactor.callLater(0, proxy.cut)
            return data

        proxy.garble = part
        attempt = change(key, set={"da": b"%d" % allowance}, uses=1)
        outcome: Any
        try:
            outcome = (await store.commit([attempt]))[0]
        except StoreUnavailable as error:
            outcome = error
        proxy.garble = lambda data: data
        changed += 1
        again = await one(direct, attempt)
        assert (again.uses, again.fields) == (changed, {"da": b"%d" % allowance})
        if isinstance(outcome, Record):
            assert outcome.fields == again.fields
            break  # the whole answer fits
        assert isinstance(outcome, StoreUnavailable)
    assert allowance > 150 and isinstance(outcome, Record)


@pytest_twisted.ensureDeferred
async def test_garbage(place: Place) -> None:
    store, proxy = place.store(proxied=True, timeout=0.3), place.proxy
    key = await made(place.store(), set={"da": b"1"})
    noise = random.Random(7)
    for _ in range(15):
        await recovered(store, key)
        proxy.garble = lambda data: noise.randbytes(len(data))
        for use in (lambda: store.load([key]), lambda: store.commit([change(key, uses=1)])):
            try:
                assert await use() is None, "noise was believed"
            except StoreUnavailable:
                pass
        proxy.garble = lambda data: data
    assert await recovered(store, key) == {"da": b"1"}


@pytest_twisted.ensureDeferred
async def test_garbageFromTheBeginning(place: Place) -> None:
    store, proxy = place.store(proxied=True, timeout=0.3), place.proxy
    for noise in (b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\0" * 99, b"E\xff\xff\xff\xff", b"N"):
        proxy.garble = lambda data, noise=noise: noise
        await unavailable(store.load([newKey()]))
        await deferLater(reactor, 0.3, lambda: None)
    proxy.garble = lambda data: data
    await recovered(store, newKey())


@pytest_twisted.ensureDeferred
async def test_terminatedInTheMiddle(place: Place) -> None:
    store = place.store(timeout=5.0)
    key = await made(store, set={"da": b"1"})
    with locked(place.server, key):
        waiting = store.commit([change(key, set={"da": b"2"}), create(other := newKey())])
        await until(lambda: place.server.query(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE application_name = 'twsessions' AND wait_event_type = 'Lock'"
        ))  # fmt: skip
        await unavailable(waiting)
    assert await fields(store, key) == {"da": b"1"}
    assert await fields(store, other) is None
    await one(store, change(key, set={"da": b"3"}))


@pytest_twisted.ensureDeferred
async def test_terminatedWhileNothingIsUnderway(place: Place) -> None:
    store = place.store()
    key = await made(store, set={"da": b"1"})
    await fields(store, key)
    place.server.query(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE application_name = 'twsessions'"
    )
    await until(lambda: store._reader._wire is None and store._writer._wire is None)
    # It was heard of, so nobody suffers.
    assert await fields(store, key) == {"da": b"1"}
    await one(store, change(key, set={"da": b"2"}))


@pytest_twisted.ensureDeferred
async def test_hintsComeBack(place: Place) -> None:
    store, other = place.store(), place.store()
    heard: list[Any] = []
    await store.watch(heard.append)
    assert heard == []
    key = await made(other)
    await one(other, change(key, end="logout"))
    await until(lambda: heard)
    assert heard == [[key]]
    place.server.kill()
    await until(lambda: store._reader._wire is None)
    await deferToThread(place.server.start)
    await until(lambda: None in heard)  # by itself
    await recovered(other, key)
    many = [await made(other) for _ in range(300)]
    await other.commit([change(one_, end="logout") for one_ in many])
    await until(lambda: set(many) <= {key for keys in heard if keys for key in keys})


# Messages


@pytest_twisted.ensureDeferred
async def test_closedWhileItComesBack(place: Place) -> None:
    """
    The next call has connected before the store did so by itself: nothing is
    left that does it again, to a store that has been closed.
    """
    store = place.store()
    await store.watch(lambda keys: None)
    waiting = [store.load([newKey()]) for _ in range(20)]  # some are not sent yet
    store._reader._wire.drop(StoreUnavailable("cut"))
    await gatherResults(waiting, consumeErrors=True).addErrback(lambda _: None)
    await store.close()
    now = reactor.seconds()
    assert [call for call in reactor.getDelayedCalls() if call.getTime() > now] == []


@pytest_twisted.ensureDeferred
async def test_messagesComeBack(place: Place) -> None:
    """
    A server that dies: who listens is told that something was missed, and
    goes on hearing; sessions have their own connections.
    """
    store, other, ear = place.store(), place.store(), Ear()
    await store.subscribe(ear)
    await other.publish([numbered(0)])
    await ear.hears(0)
    place.server.kill()
    await unavailable(other.publish([numbered(1)]))
    await deferToThread(place.server.start)
    await ear.hears(None)  # by itself
    number = 1
    while number not in ear.heard:
        number += 1
        try:
            await other.publish([numbered(number)])
        except StoreUnavailable:
            pass
        await deferLater(reactor, 0.01, lambda: None)
    ear.check()
    key = await made(store)
    await fields(store, key)
    before = {store._reader._wire, store._writer._wire}
    pid = store._talker._wire._pgconn.backend_pid
    assert place.server.query("SELECT pg_terminate_backend(%s)", pid) == [(True,)]
    await until(lambda: store._talker._wire is None)
    assert await fields(store, key) == {}
    await one(store, change(key, set={"da": b"1"}))
    assert before == {store._reader._wire, store._writer._wire}


@pytest_twisted.ensureDeferred
async def test_messagesWithCuts(place: Place) -> None:
    """
    Wherever the listener's connection breaks, it hears no message twice, none
    late, none in part, and is told of each loss.
    """
    store, other, ear = place.store(proxied=True), place.store(timeout=5.0), Ear()
    await store.subscribe(ear)
    chance = random.Random(8)
    cut = False

    def garble(data: bytes) -> bytes:
        nonlocal cut
        if not cut:
            return data
        cut = False
        reactor.callLater(0, place.proxy.cut)  # type: ignore[attr-defined]
        return data[: chance.randrange(len(data))]

    place.proxy.garble = garble
    for number in range(400):
        cut = number % 20 == 10
        await other.publish([numbered(number)])
        await deferLater(reactor, chance.choice([0, 0, 0.01]), lambda: None)
    while ear.heard[-1] != number:
        number += 1
        await other.publish([numbered(number)])
        await deferLater(reactor, 0.01, lambda: None)
    assert ear.heard.count(None) > 5
    assert len(ear.heard) > 100
    ear.check()


@pytest_twisted.ensureDeferred
async def test_messagesWhenThereIsNoServerYet(place: Place) -> None:
    place.server.kill()
    store, ear = place.store(), Ear()
    await unavailable(store.subscribe(ear))
    await unavailable(store.publish([numbered(0)]))
    await deferToThread(place.server.start)
    await ear.hears(None)
    assert await store.publish([numbered(1)]) == [None]
    await ear.hears(1)
    ear.check()


@pytest_twisted.ensureDeferred
async def test_publishingToAServerThatHangs(place: Place) -> None:
    """
    What is given up on is heard in its place or not at all.
    """
    store, other, ear = place.store(), place.store(timeout=5.0), Ear()
    await other.subscribe(ear)
    await store.publish([numbered(0)])
    place.server.pause()
    try:
        calls = [store.publish([numbered(number)]) for number in (1, 2)]
        for call in calls:
            await unavailable(call)
    finally:
        place.server.resume()
    number = 2
    while number not in ear.heard[1:]:
        number += 1
        try:
            await store.publish([numbered(number)])
        except StoreUnavailable:
            pass
        await deferLater(reactor, 0.01, lambda: None)
    ear.check()


@pytest_twisted.ensureDeferred
async def test_foreignNotifications(place: Place) -> None:
    store, ear = place.store(), Ear()
    await store.subscribe(ear)
    await store.publish([numbered(0)])
    for said in "", "junk", "a b c d", "name 0 45 x", "\u2603", "AAAA", "x 1 2":
        place.server.query("SELECT pg_notify('twsessions.said', %s)", said)
    await store.publish([numbered(4)])
    await ear.hears(4)
    assert ear.heard == [0, 4]


@pytest_twisted.ensureDeferred
async def test_manyBytesAreSeveralTransactions(place: Place) -> None:
    """
    And one that the server refuses takes only its own messages along.
    """
    store, told = place.store(timeout=5.0), []
    await store.subscribe(told.append)
    said = [Message("x", os.urandom(200_000)) for _ in range(12)]
    assert await store.publish(said) == [None] * 12
    await until(lambda: len(told) == 12)
    assert told == said
    whole = store._talker.ask
    asked = 0

    def ask(name: bytes, parameter: bytes) -> Any:
        nonlocal asked
        asked += 1
        # More than a notification has room for: 22023.
        return whole(name, record.texts([b"x" * 9000]) if asked == 2 else parameter)

    store._talker.ask = ask
    outcomes = await store.publish(said)
    assert asked == 4
    bad = [at for at, outcome in enumerate(outcomes) if outcome is not None]
    assert bad == [3, 4, 5] and type(outcomes[3]) is not StoreUnavailable
    await until(lambda: len(told) == 22)
    assert told[12:] == [*said[:3], None, *said[6:]]


@pytest_twisted.ensureDeferred
async def test_whoHearsWhom(place: Place) -> None:
    ours, also, theirs = place.store(), place.store(), place.store(schema="other")
    heard: list[list[Any]] = [[], [], []]
    for store, ear in zip((ours, also, theirs), heard, strict=True):
        await store.subscribe(ear.append)
    await ours.publish([numbered(1)])
    await theirs.publish([numbered(2)])
    await also.publish([numbered(3)])
    await until(lambda: list(map(len, heard)) == [2, 2, 1])
    assert heard == [[numbered(1), numbered(3)]] * 2 + [[numbered(2)]]


@pytest_twisted.ensureDeferred
async def test_noConnectionForMessagesWithoutAny(place: Place) -> None:
    store = place.store()
    key = await made(store)
    await fields(store, key)
    assert connections(place.server) == 2
    await store.publish([numbered(1)])
    await store.subscribe(lambda message: None)
    assert connections(place.server) == 3


# Other transactions


class locked:
    """
    A session that somebody else has locked.
    """

    def __init__(self, server: Server, *keys: bytes) -> None:
        where = f"host={server.directory} port={server.port} dbname=postgres user=root"
        self.connection = psycopg.connect(where)
        for key in keys:
            self.lock(key)

    def lock(self, key: bytes) -> None:
        self.connection.execute(
            "SELECT FROM twsessions.session WHERE key = %s FOR UPDATE", (key,), binary=True
        )

    def __enter__(self) -> locked:
        return self

    def __exit__(self, *exception: object) -> None:
        self.connection.close()


@pytest_twisted.ensureDeferred
async def test_aSessionThatIsLockedForTooLong(place: Place) -> None:
    store = place.store()
    key, free = await made(store, set={"da": b"1"}), await made(store)
    with locked(place.server, key):
        assert await fields(store, key) == {"da": b"1"}
        error = await unavailable(store.commit([change(key, set={"da": b"2"})]))
        assert "locked" in str(error)
        await one(store, change(free, set={"da": b"2"}))
    # Nothing lands after it was given up on.
    assert await fields(store, key) == {"da": b"1"}


@pytest_twisted.ensureDeferred
async def test_aSessionThatFallsDueWhileAChangeWaits(place: Place) -> None:
    store = place.store(timeout=5.0)
    key = newKey()
    await one(store, create(key, idle=0.4))
    with locked(place.server, key):
        waiting = store.commit([change(key, usedAgo=0.0)])
        await deferLater(reactor, 0.5, lambda: None)  # it is time that has to pass
        assert await fields(store, key) is None
    # Somebody has seen that it is gone.
    assert isinstance((await waiting)[0], SessionGone)


@pytest_twisted.ensureDeferred
async def test_oppositeOrdersDoNotMeet(place: Place) -> None:
    stores = [place.store(timeout=5.0) for _ in range(4)]
    keys = [await made(stores[0]) for _ in range(20)]

    async def write(store: Any, turn: Callable[[list[bytes]], list[bytes]]) -> None:
        for _ in range(25):
            outcomes = await store.commit([change(key, uses=1) for key in turn(keys)])
            assert all(isinstance(outcome, Record) for outcome in outcomes)

    turns = [list, lambda keys: keys[::-1], sorted, lambda keys: random.sample(keys, len(keys))]
    await gatherResults([_deferred(write(*pair)) for pair in zip(stores, turns, strict=True)])
    assert [record.uses for record in await stores[0].load(keys)] == [100] * 20
    deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = 'postgres'"
    assert place.server.query(deadlocks) == [(0,)]


@pytest_twisted.ensureDeferred
async def test_writersOfOneSession(place: Place) -> None:
    stores = [place.store(timeout=5.0) for _ in range(4)]
    key = await made(stores[0])

    async def write(number: int) -> None:
        for value in range(50):
            await one(stores[number], change(key, uses=1, set={f"d{number}": b"%d" % value}))

    await gatherResults([_deferred(write(number)) for number in range(4)])
    (record,) = await stores[0].load([key])
    assert (record.uses, record.version) == (200, 201)
    assert record.fields == {f"d{number}": b"49" for number in range(4)}


@pytest_twisted.ensureDeferred
async def test_deadlocksAreTriedAgain(place: Place) -> None:
    store = place.store(timeout=5.0)
    first, second = sorted([await made(store), await made(store)])
    with locked(place.server, second) as other:
        waiting = store.commit([change(first, uses=1), change(second, uses=1)])
        await until(lambda: place.server.query(
            "SELECT 1 FROM pg_stat_activity"
            " WHERE application_name = 'twsessions' AND wait_event_type = 'Lock'"
        ))  # fmt: skip

        def cross() -> None:
            try:
                other.lock(first)  # each waits for the other now
            except psycopg.errors.DeadlockDetected:
                pass
            other.connection.rollback()

        await deferToThread(cross)
        outcomes = await waiting
    assert [outcome.uses for outcome in outcomes] == [1, 1]


@pytest_twisted.ensureDeferred
async def test_serializationFailuresAreTriedAgain(place: Place) -> None:
    store = place.store()
    key = await made(store)
    # Sequences are not rolled back: the first two tries fail.
    place.server.query("""
        CREATE SEQUENCE twsessions.tries;
        CREATE FUNCTION twsessions.meddle() RETURNS trigger LANGUAGE plpgsql AS $f$ BEGIN
            IF nextval('twsessions.tries') < 3 THEN
                RAISE EXCEPTION 'not now' USING ERRCODE = '40001';
            END IF;
            RETURN NEW;
        END $f$;
        CREATE TRIGGER meddle BEFORE UPDATE ON twsessions.session
            FOR EACH ROW EXECUTE FUNCTION twsessions.meddle()
    """)
    try:
        record = await one(store, change(key, uses=1))
        assert (record.uses, record.version) == (1, 2)
        # Not for ever.
        place.server.query("ALTER SEQUENCE twsessions.tries RESTART MINVALUE -1000 START -1000")
        place.server.query("SELECT setval('twsessions.tries', -1000)")
        await unavailable(store.commit([change(key, uses=1)]))
    finally:
        place.server.query(
            "DROP FUNCTION twsessions.meddle CASCADE; DROP SEQUENCE twsessions.tries"
        )
    assert (await one(store, change(key, uses=1))).uses == 2


@pytest_twisted.ensureDeferred
async def test_oneBadItemFailsNoOther(place: Place) -> None:
    store = place.store()
    a, b = await made(store), await made(store, uses=2**62)
    outcomes = await store.commit([
        change(a, set={"da": b"1"}),
        change(a, principal="\ud800"),  # not to be encoded
        change(b, uses=2**63),  # too large for the wire
        change(b, uses=2**62),  # for the server
        change(b, set={"da": b"2"}, principal="a\0b"),
    ])  # fmt: skip
    kinds = [type(outcome) for outcome in outcomes]
    assert kinds == [Record, StoreError, StoreError, StoreError, Record]
    assert (await fields(store, a), await fields(store, b)) == ({"da": b"1"}, {"da": b"2"})
    assert [record.key for record in await store.sessionsOf("a\0b")] == [b]
    assert await store.sessionsOf("\ud800") == []


# Many


@pytest_twisted.ensureDeferred
async def test_nothingIsDeliveredTwice(place: Place) -> None:
    stores = [place.store(timeout=5.0) for _ in range(4)]
    await stores[0].listen()
    keys = [newKey() for _ in range(1000)]
    for at in range(0, len(keys), 250):
        await stores[0].commit([create(key, idle=0.01) for key in keys[at : at + 250]])
    await deferLater(reactor, 0.02, lambda: None)
    heard: list[bytes] = []

    async def listen(store: Any) -> int:
        ended = idle = 0
        while idle < 3:
            swept = await store.sweep(40)
            ended += swept.ended
            claimed = await store.claim(30, 60.0)
            heard.extend(end.record.key for end in claimed)
            assert all(await store.settle([Verdict(end.id, end.claim) for end in claimed]))
            if swept.more or claimed:
                idle = 0
            else:
                idle += 1
                await deferLater(reactor, 0.06, lambda: None)
        return ended

    counts = await gatherResults([_deferred(listen(store)) for store in stores])
    assert sum(counts) == len(keys)
    assert sorted(heard) == sorted(keys)


@pytest_twisted.ensureDeferred
async def test_exclusiveAcrossStores(place: Place) -> None:
    stores = [place.store(timeout=5.0) for _ in range(4)]
    holders = [b"%d" % number for number in range(4)]
    pairs = list(zip(stores, holders, strict=True))
    for _ in range(10):
        got = await gatherResults([store.acquire(b"x", holder, 30.0) for store, holder in pairs])
        assert sum(got) == 1
        winner = got.index(True)
        await stores[winner].release(b"x", holders[winner])


@pytest.mark.parametrize("seed", range(8))
@pytest_twisted.ensureDeferred
async def test_asInTheModel(place: Place, seed: int) -> None:
    """
    Any operations, on stale keys too, with connections that are cut and stores
    that are closed and opened again: the same as in memory.
    """
    await _Model(place, random.Random(seed)).run()


class _Model:
    """
    Sessions here and in a L{MemoryStore}. Timeouts are so many seconds and a
    half, all else whole seconds, so that some ms do not matter.
    """

    STEPS = 120

    def __init__(self, place: Place, choice: random.Random) -> None:
        self.place = place
        self.random = choice
        self.now = 1000.0
        self.model = MemoryStore(lambda: self.now)
        self.stores = [self.open(), self.open()]
        self.keys = [newKey()]
        self.last: Any = None

    def open(self) -> Any:
        url = self.place.server.url(port=self.place.proxy.port)
        return self.place.at(url, skew=lambda: self.now - time.monotonic())

    async def run(self) -> None:
        for store in (self.stores[0], self.model):
            await self.surely(lambda store=store: store.listen())
        for _ in range(self.STEPS):
            step = self.random.choice(
                [self.create, self.write, self.write, self.use, self.rotate, self.end, self.again,
                 self.pass_, self.sweep, self.cut, self.restart, self.expect]
            )  # fmt: skip
            await step()
            await self.compare()
        self.now += 5000
        await self.compare()
        ended = await self.drain(self.stores[0])
        assert ended == await self.drain(self.model)

    async def surely(self, use: Callable[[], Any]) -> Any:
        """
        Again and again, until the outcome is known.
        """
        for _ in range(50):
            try:
                return await use()
            except StoreUnavailable:
                await deferLater(reactor, 0.01, lambda: None)
        raise AssertionError("it does not come back")

    async def both(self, change_: Any) -> None:
        self.last = change_
        (expected,) = await self.model.commit([change_])
        store = self.random.choice(self.stores)
        tries = 0

        def attempt() -> Any:
            nonlocal tries
            tries += 1
            return store.commit([change_])

        waiting = attempt()
        if self.random.random() < 0.2:
            reactor.callLater(0, self.place.proxy.cut)
        try:
            (outcome,) = await waiting
        except StoreUnavailable:
            (outcome,) = await self.surely(attempt)
        if change_.end is not None and tries > 1 and isinstance(outcome, SessionGone):
            return  # it has been done
        assert type(outcome) is type(expected), (change_, outcome, expected)
        if isinstance(expected, Record):
            same(outcome, expected)

    def key(self) -> bytes:
        return self.random.choice(self.keys[-6:])

    def limit(self) -> float | None:
        return self.random.choice([None, 3.5, 10.5, 40.5])

    async def create(self) -> None:
        self.keys.append(newKey())
        principal = self.random.choice([None, "ann", "bob"])
        value = {"da": os.urandom(3)}
        await self.both(
            create(self.keys[-1], self.limit(), self.limit(), set=value, principal=principal)
        )

    async def write(self) -> None:
        names = self.random.sample(["da", "db", "dc", "f\u2603"], 2)
        value = {names[0]: os.urandom(self.random.randrange(3))}
        await self.both(change(self.key(), set=value, remove=frozenset(names[1:])))

    async def expect(self) -> None:
        key = self.key()
        (record,) = await self.model.load([key])
        fields = dict(record.fields) if record is not None else {}
        expected = {"da": self.random.choice([fields.get("da"), b"other", None])}
        await self.both(change(key, expect=expected, set={"da": b"!"}))

    async def use(self) -> None:
        idle = self.random.choice([{}, {"idle": self.limit(), "ownIdle": True}])
        await self.both(change(self.key(), usedAgo=float(self.random.randrange(6)), uses=1, **idle))

    async def rotate(self) -> None:
        old = self.key()
        new = newKey() if self.random.random() < 0.8 else self.key()
        if new == old:
            return
        self.keys.append(new)
        await self.both(change(old, newKey=new, login=True, principal="ann"))

    async def end(self) -> None:
        reason = self.random.choice(["logout", "revoked"])
        await self.both(change(self.key(), set={"dz": b"end"}, end=reason))

    async def again(self) -> None:
        if self.last is not None and (self.last.birth is None or self.last.end is None):
            (alive,) = await self.model.load([self.last.newKey or self.last.key])
            if alive is not None:
                await self.both(self.last)

    async def pass_(self) -> None:
        self.now += self.random.randrange(1, 6)

    async def sweep(self) -> None:
        store = self.random.choice(self.stores)
        await self.surely(lambda: store.sweep(5))
        await self.model.sweep(5)

    async def cut(self) -> None:
        self.place.proxy.cut()

    async def restart(self) -> None:
        await self.stores.pop(0).close()
        self.stores.append(self.open())

    async def compare(self) -> None:
        store = self.random.choice(self.stores)
        found = await self.surely(lambda: store.load(self.keys))
        for record, expected in zip(found, await self.model.load(self.keys), strict=True):
            assert (record is None) == (expected is None), (record, expected)
            if expected is not None:
                same(record, expected)
        for principal in ("ann", "bob"):
            records = await self.surely(lambda principal=principal: store.sessionsOf(principal))
            expected = await self.model.sessionsOf(principal)
            assert {one.key for one in records} == {one.key for one in expected}

    async def drain(self, store: Any) -> Any:
        """
        All ends there have been: whose, why, and the last state.
        """
        while (await self.surely(lambda: store.sweep(100))).more:
            pass
        ends: set[Any] = set()
        while claimed := await self.surely(lambda: store.claim(50, 60.0)):
            for end in claimed:
                ends.add((end.id, end.reason, tuple(sorted(end.record.fields.items()))))
            await self.surely(
                lambda claimed=claimed: store.settle([Verdict(e.id, e.claim) for e in claimed])
            )
        return ends


def same(record: Record, expected: Record) -> None:
    for name in ("key", "seed", "fields", "version", "uses", "principal", "epoch", "idle",
                 "absolute", "ownIdle", "token"):  # fmt: skip
        assert getattr(record, name) == getattr(expected, name), name
    assert abs((record.touched - record.created) - (expected.touched - expected.created)) < 0.4


# What must not be seen


@pytest_twisted.ensureDeferred
async def test_aWrongPassword(place: Place) -> None:
    wrong = "wr0ng-p4ssw0rd"
    url = place.server.url(f"?timeout={TIMEOUT}").replace("p%40ss%3Aw%2Frd%3F%23", wrong)
    store = place.at(url)
    error = await unavailable(store.load([newKey()]))
    assert "password" in str(error)
    shown = repr(store) + repr(vars(store)) + str(error) + repr(error.__cause__)
    shown += repr(parse(url.partition(":")[2])) + repr(vars(store._reader))
    assert wrong not in shown and PASSWORD not in shown
