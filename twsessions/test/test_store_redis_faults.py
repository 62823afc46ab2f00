"""
What the Redis store does when its server refuses, hangs, answers nonsense, dies
or is somebody else.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater
from twisted.logger import capturedLogs

from twsessions.core.delta import Change
from twsessions.core.record import Record
from twsessions.errors import SessionGone, StoreUnavailable
from twsessions.interfaces import Verdict
from twsessions.stores._redis.link import Dialer, Login
from twsessions.stores._redis.route import Single
from twsessions.stores._redis.subscription import Subscription
from twsessions.stores.fromurl import storeFromURL
from twsessions.stores.redis import RedisStore
from twsessions.test.ear import Ear, numbered
from twsessions.test.real import PATIENCE
from twsessions.test.redismodel import Play, insist, play
from twsessions.test.redisproxy import Proxy
from twsessions.test.redisserver import Server, until
from twsessions.testing.contract import change, create, newKey

ensure = pytest_twisted.ensureDeferred


def pause(seconds: float = 0.02) -> Deferred[None]:
    return deferLater(reactor, seconds, lambda: None)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    made = Server("appendonly yes", "appendfsync always", 'save ""')
    made.start()
    yield made
    made.stop()


@pytest.fixture(autouse=True)
def empty(server: Server) -> None:
    if server.process is None:
        server.start()
    server.call("CONFIG", "SET", "maxmemory", "0")
    server.call("FLUSHALL")


class Place:
    """
    Stores on a server, through a proxy or not, and all closed at the end.
    """

    def __init__(self, server: Server) -> None:
        self.server = server
        self.proxy = Proxy(server.port)
        self.stores: list[RedisStore] = []

    def make(
        self, port: int | None = None, timeout: float = PATIENCE, **options: Any
    ) -> RedisStore:
        dialer = Dialer(reactor, timeout, Login())
        route = Single(dialer, ("127.0.0.1", self.server.port if port is None else port))
        self.stores.append(RedisStore(route, **options))
        return self.stores[-1]

    def near(self, timeout: float = PATIENCE) -> RedisStore:
        """
        A store behind the proxy.
        """
        return self.make(self.proxy.port, timeout)


@pytest_twisted.async_yield_fixture
async def place(server: Server) -> AsyncIterator[Place]:
    made = Place(server)
    await made.proxy.start()
    yield made
    for store in made.stores:
        await store.close()
    await made.proxy.stop()
    # One may be the fixture's own.
    left = [call for call in reactor.getDelayedCalls() if "in_reactor" not in str(call)]
    assert not left, "a delayed call is left"


async def one(store: RedisStore, what: Change) -> Any:
    return (await store.commit([what]))[0]


async def failing(call: Deferred[Any], within: float = 3.0) -> StoreUnavailable:
    start = time.monotonic()
    with pytest.raises(StoreUnavailable) as caught:
        await call
    assert time.monotonic() - start < within
    return caught.value


@ensure
async def test_refused(place: Place) -> None:
    """
    Nobody listens; and as soon as somebody does, all is well.
    """
    store, key = place.near(), newKey()
    await place.proxy.stop()
    for _ in range(5):
        await failing(store.load([key]), 1.0)
        await failing(store.commit([create(key)]), 1.0)
    await place.proxy.start()
    await insist(lambda: store.commit([create(key)]), pause)
    assert (await store.load([key]))[0] is not None


@ensure
async def test_hangs(place: Place, server: Server) -> None:
    """
    A server that is stopped: each call has its deadline, and what was under
    way is done wholly or not at all.
    """
    store, key = place.make(timeout=0.5), newKey()
    born = create(key, set={"da": b"1"})
    await insist(lambda: store.commit([born]), pause)
    server.send(signal.SIGSTOP)
    try:
        sent = change(key, set={"da": b"2", "db": b"2"})
        calls = [store.load([key]), store.commit([sent]), store.sweep(1), store.claim(1, 1.0)]
        for call in calls:
            await failing(call)
        start = time.monotonic()
        many = [store.load([newKey()]) for _ in range(200)]
        for call in many:
            await failing(call)
        assert time.monotonic() - start < 4.0
    finally:
        server.send(signal.SIGCONT)
    (found,) = await insist(lambda: store.load([key]), pause)
    assert found.fields in ({"da": b"1"}, {"da": b"2", "db": b"2"})
    again = await one(store, sent)
    assert (again.fields, again.version) == ({"da": b"2", "db": b"2"}, 2)


@pytest.mark.parametrize("way", ["up", "down"])
@ensure
async def test_cutAtEveryByte(place: Place, way: str) -> None:
    """
    Wherever the connection breaks during a commit: the old state or the new
    one, and the same change sent again is applied once.
    """
    store, direct = place.near(), place.make()
    key, old = newKey(), {"da": b"1", "db": b"1"}
    await one(store, create(key, set=old))
    outcomes = set()
    size = 0
    cut = 0
    while True:
        await store.load([key])  # it is connected
        before = (await direct.load([key]))[0]
        value = b"%d" % cut
        sent = Change(key, os.urandom(16), set={"da": value, "db": value}, uses=1)
        start = place.proxy.passed[way]
        place.proxy.left = {way: cut}
        try:
            outcome = await one(store, sent)
        except StoreUnavailable:
            outcome = None
        size = place.proxy.passed[way] - start
        place.proxy.left = {}
        (found,) = await direct.load([key])
        states = [dict(before.fields), {"da": value, "db": value}]
        assert found.fields in states
        outcomes.add(states.index(found.fields))
        again = await one(store, sent)
        assert (again.fields, again.version) == (states[1], before.version + 1)
        assert again.uses == before.uses + 1
        if outcome is not None:
            break
        cut += 1
    assert size > 100
    assert outcomes == ({0, 1} if way == "up" else {1})


@pytest.mark.parametrize(
    "said",
    [
        b"+OK\r\n" * 40,
        b"$-1\r\n" * 40,
        b"*0\r\n" * 40,
        b"*-1\r\n" * 40,
        b":1\r\n" * 40,
        b"-ERR what\r\n" * 40,
        b"*3\r\n$1\r\n1\r\n$0\r\n\r\n*0\r\n" * 40,
        b"*2\r\n$1\r\n1\r\n$1\r\n1\r\n" * 40,
        b"*1\r\n*1\r\n*1\r\n:1\r\n" * 40,
        b"$5\r\nab\r\n\r\n" * 40,
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\xff" * 1000,
        b"$99999999999999\r\n",
        b"",
    ],
)
@ensure
async def test_nonsense(place: Place, said: bytes) -> None:
    """
    Whatever comes back, it is a fault of the store's, and passes with it.
    """
    store, key = place.near(timeout=0.2), newKey()
    born = create(key, set={"da": b"1"})
    await insist(lambda: store.commit([born]), pause)
    calls: list[Callable[[], Any]] = [
        lambda: store.load([key]),
        lambda: store.commit([change(key, set={"db": b"1"})]),
        lambda: store.sweep(1),
        lambda: store.listen(),
        lambda: store.claim(1, 1.0),
        lambda: store.settle([Verdict(b"i" * 16, b"c")]),
        lambda: store.sessionsOf("ann"),
        lambda: store.withHandle(b"h" * 16),
        lambda: store.iterate(None, 1),
    ]
    with capturedLogs():
        for call in calls[:2] if not said else calls:
            await insist(lambda: store.load([key]), pause)
            place.proxy.garble = lambda data: said
            try:
                answer = await call()
            except StoreUnavailable:
                pass
            else:
                # An answer of the right shape cannot be told from a true one,
                # but nobody gets a session by it.
                assert not isinstance(answer, list) or not any(
                    isinstance(one, Record) for one in answer
                )
            place.proxy.garble = None
    (found,) = await insist(lambda: store.load([key]), pause)
    assert found.fields["da"] == b"1"


@ensure
async def test_repliesByteByByte(place: Place) -> None:
    store, key = place.near(), newKey()
    chance = random.Random(5)

    def slice_(data: bytes) -> bytes:
        rest.append(data)
        return b""

    rest: list[bytes] = []
    await one(store, create(key, set={"da": b"x" * 300}))
    place.proxy.garble = slice_
    loaded = store.load([key, newKey()])
    while not rest:
        await pause(0.001)
    (near,) = place.proxy.connections
    data = b"".join(rest)
    while data:
        size = chance.randrange(1, 9)
        near.transport.write(data[:size])
        data = data[size:]
        await pause(0)
    record, absent = await loaded
    assert record.fields == {"da": b"x" * 300} and absent is None


@ensure
async def test_killedUnderLoad(place: Place, server: Server) -> None:
    """
    Killed and started again under load, three times: nothing that was
    acknowledged is lost, and no end comes undone.
    """
    store = place.make(timeout=0.5)
    acknowledged: dict[bytes, int] = {}
    unknown: set[bytes] = set()
    gone: set[bytes] = set()
    running = True
    failures = 0

    async def work(number: int) -> None:
        nonlocal failures
        turn = 0
        while running:
            turn += 1
            key = newKey()
            for what in (
                create(key, set={"dn": b"1"}),
                change(key, set={"dn": b"2"}),
                change(key, end="logout") if turn % 2 else change(key, set={"dn": b"3"}),
            ):
                try:
                    outcome = await one(store, what)
                except StoreUnavailable:
                    failures += 1
                    unknown.add(key)
                    await pause()
                    break
                assert isinstance(outcome, Record)
                if what.end:
                    gone.add(key)
                    del acknowledged[key]
                else:
                    acknowledged[key] = int(what.set["dn"])

    workers = [Deferred.fromCoroutine(work(number)) for number in range(8)]
    for _ in range(3):
        await pause(0.25)
        server.kill()
        await pause(0.1)
        server.start()
        until(lambda: server.call("PING") == b"PONG", "the server is back")
        await insist(lambda: store.load([newKey()]), pause)
    running = False
    await gatherResults(workers)
    assert acknowledged and gone and failures
    keys = list(acknowledged)
    for key, record in zip(keys, await store.load(keys), strict=True):
        if key in unknown:
            continue  # perhaps it was ended, or written, and nobody was told
        assert record is not None and int(record.fields["dn"]) == acknowledged[key]
    assert await store.load(list(gone)) == [None] * len(gone)


@ensure
async def test_scriptsForgotten(place: Place, server: Server) -> None:
    """
    A server that has lost its scripts is given them again, and the order of a
    batch is kept.
    """
    store, key = place.make(), newKey()
    await one(store, create(key))
    server.call("SCRIPT", "FLUSH")
    batch = [change(key, set={"dn": b"%d" % n}) for n in range(100)]
    outcomes = await store.commit(batch)
    assert [outcome.fields["dn"] for outcome in outcomes] == [b"%d" % n for n in range(100)]


@ensure
async def test_fullMemory(place: Place, server: Server) -> None:
    """
    A server without memory takes no changes, but loads, and lets go.
    """
    store, key = place.make(), newKey()
    other = newKey()
    await one(store, create(key, set={"da": b"1"}))
    await one(store, create(other))
    server.call("CONFIG", "SET", "maxmemory", "1")
    error = await failing(store.commit([change(key, set={"da": b"2"})]))
    assert "memory is full" in str(error)
    assert (await store.load([key]))[0].fields == {"da": b"1"}
    assert isinstance(await one(store, change(other, end="logout")), Record)
    refused, done = await store.commit([change(key, newKey=newKey()), change(key, end="logout")])
    assert isinstance(refused, StoreUnavailable) and isinstance(done, Record)
    server.call("CONFIG", "SET", "maxmemory", "0")
    assert await store.load([key]) == [None]


@ensure
async def test_replica(place: Place, server: Server) -> None:
    """
    A server that is no master any more is left, and asked again.
    """
    store, key = place.make(), newKey()
    await one(store, create(key))
    server.call("REPLICAOF", "127.0.0.1", "1")
    server.call("CONFIG", "SET", "replica-serve-stale-data", "yes")
    try:
        error = await failing(store.commit([change(key, set={"da": b"1"})]))
        assert "takes no writes" in str(error)
    finally:
        server.call("REPLICAOF", "NO", "ONE")
    await insist(lambda: store.commit([change(key, set={"da": b"1"})]), pause)


@ensure
async def test_foreignValues(place: Place, server: Server) -> None:
    """
    Others' values under our names: absent, left alone, and no trouble for
    their neighbours.
    """
    store, good = place.make(), newKey()
    foreign = [newKey() for _ in range(5)]
    names = [b"twsessions{0}s:" + key for key in foreign]
    for name, words in zip(
        names,
        [("RPUSH", "x"), ("SADD", "x"), ("HSET", "x", "y"), ("SET", b"\x02new"), ("SET", b"text")],
        strict=True,
    ):
        server.call(words[0], name, *words[1:])
    await one(store, create(good))
    dumps = [server.call("DUMP", name) for name in names]
    with capturedLogs():
        assert [r is None for r in await store.load([*foreign, good])] == [True] * 5 + [False]
        outcomes = await store.commit([change(key, set={"da": b"1"}) for key in (*foreign, good)])
    assert [type(outcome) for outcome in outcomes] == [SessionGone] * 5 + [Record]
    assert [server.call("DUMP", name) for name in names] == dumps


@ensure
async def test_corruptIsPutAsideOnce(place: Place, server: Server) -> None:
    store, key = place.make(), newKey()
    await one(store, create(key, principal="ann"))
    name = b"twsessions{0}s:" + key
    value = server.call("GET", name)
    server.call("SET", name, value[:-1] + b"\0")
    with capturedLogs() as events:
        assert await store.load([key]) == [None]
        assert await store.load([key]) == [None]
        assert await store.sessionsOf("ann") == []
        while not server.call("EXISTS", b"twsessions{0}q:" + key):
            await pause()
        await store.sweep(1)
    assert len(events) == 1 and key.hex() not in str(events)
    server.call("RENAME", b"twsessions{0}q:" + key, name)
    server.call("SET", name, value)
    assert (await store.load([key]))[0] is not None


@ensure
async def test_namespaces(place: Place) -> None:
    ours, theirs = place.make(), place.make(prefix=b"theirs")
    key = newKey()
    await one(ours, create(key, set={"da": b"1"}, principal="ann"))
    assert await theirs.load([key]) == [None]
    assert await theirs.sessionsOf("ann") == [] and await theirs.iterate(None, 9) == []
    await one(theirs, create(key, set={"da": b"2"}))
    assert (await ours.load([key]))[0].fields == {"da": b"1"}


@ensure
async def test_manyCallersAreBounded(place: Place, server: Server) -> None:
    """
    More callers than can wait are refused at once.
    """
    store = place.make(timeout=0.5)
    await store.load([newKey()])
    server.send(signal.SIGSTOP)
    try:
        calls = [store.load([newKey()]) for _ in range(5000)]
        refused = [call for call in calls if call.called]
        assert len(refused) > 800
        for call in calls:
            await failing(call)
    finally:
        server.send(signal.SIGCONT)
    await insist(lambda: store.load([newKey()]), pause)


@ensure
async def test_hintsComeBack(place: Place) -> None:
    """
    After a lost connection whoever listens is told that something may have
    been missed, and goes on hearing.
    """
    store, other, key = place.near(), place.make(), newKey()
    told: list[Any] = []
    await store.watch(told.append)
    await one(other, create(key))
    place.proxy.cutAll()
    while None not in told:
        await pause()
    await one(other, change(key, end="logout"))
    while [key] not in told:
        await pause()


@ensure
async def test_hintsWhenThereIsNoServerYet(place: Place) -> None:
    store, told = place.near(), []
    await place.proxy.stop()
    await failing(store.watch(told.append))
    await place.proxy.start()
    while None not in told:
        await pause()


@ensure
async def test_aListenerThatRaises(place: Place) -> None:
    store, keys = place.make(), [newKey(), newKey()]
    told: list[Any] = []

    def heard(keys: Any) -> None:
        told.append(keys)
        raise RuntimeError("no")

    await store.watch(heard)
    with capturedLogs() as events:
        for key in keys:
            await store.commit([create(key)])
            await store.commit([change(key, end="logout")])
        while len(told) < 2:
            await pause()
    assert [event["log_failure"].type for event in events] == [RuntimeError] * 2


@ensure
async def test_anotherListenerNeedsNoOtherConnection(place: Place, server: Server) -> None:
    store, key = place.make(), newKey()
    told: list[Any] = []
    for heard in (lambda keys: None, lambda keys: None, told.append):
        await store.watch(heard)
        await store.subscribe(heard)
    await one(store, create(key))
    await one(store, change(key, end="logout"))
    while told != [[key]]:
        await pause()
    assert server.call("CLIENT", "LIST", "TYPE", "pubsub").count(b"\n") == 2


# Messages


@ensure
async def test_messagesComeBack(place: Place, server: Server) -> None:
    """
    Connections that are cut, and a server that is killed: who listens is told
    that something was missed, and goes on hearing.
    """
    store, other, ear = place.near(), place.make(), Ear()
    await store.subscribe(ear)
    await other.publish([numbered(0)])
    await ear.hears(0)
    place.proxy.cutAll()
    await ear.hears(None)
    await other.publish([numbered(1)])
    await ear.hears(1)
    assert ear.heard == [0, None, 1]
    server.kill()
    await failing(other.publish([numbered(2)]))
    server.start()
    await insist(lambda: other.publish([numbered(3)]), pause)
    for number in range(4, 1000):
        await other.publish([numbered(number)])
        await pause()
        if ear.heard[-1] == number:
            break
    else:
        raise AssertionError("nothing is heard any more")
    assert ear.heard[:4] == [0, None, 1, None]
    ear.check()


@ensure
async def test_messagesWithCuts(place: Place) -> None:
    """
    Wherever the listener's connection breaks, it hears no message twice, none
    late, none in part, and is told of each loss.
    """
    store, other, ear = place.near(), place.make(), Ear()
    await store.subscribe(ear)
    chance = random.Random(8)
    for number in range(300):
        if number % 30 == 0:
            place.proxy.left = {"down": chance.randrange(60_000)}
        elif number % 30 == 15:
            place.proxy.left = {}
            place.proxy.cutAll()
        await other.publish([numbered(number)])
        await pause(chance.choice([0, 0, 0.02]))
    place.proxy.left = {}
    number = 299
    while ear.heard[-1] != number:
        number += 1
        await other.publish([numbered(number)])
        await pause()
    assert ear.heard.count(None) > 5
    assert len(ear.heard) > 50
    ear.check()


@ensure
async def test_messagesWhenThereIsNoServerYet(place: Place) -> None:
    store, ear = place.near(), Ear()
    await place.proxy.stop()
    await failing(store.subscribe(ear))
    await failing(store.publish([numbered(1)]))
    await place.proxy.start()
    await ear.hears(None)
    await insist(lambda: store.publish([numbered(2)]), pause)
    await ear.hears(2)
    assert ear.heard[:1] == [None] and ear.heard[-1] == 2


@ensure
async def test_oneWhoListensLaterBringsItBack(place: Place) -> None:
    """
    Whoever listened before is told that something may have been missed, also
    if it is another's call that connects.
    """
    store, first, second, third = place.near(), Ear(), Ear(), Ear()
    await place.proxy.stop()
    await failing(store.subscribe(first))
    await place.proxy.start()
    await insist(lambda: store.subscribe(second), pause)
    assert first.heard == [None]
    place.proxy.cutAll()
    while store._messages._server.isUp:
        await pause(0)
    await store.subscribe(third)
    assert first.heard == [None, None]
    await store.publish([numbered(1)])
    await third.hears(1)
    assert first.heard == [None, None, 1]


@ensure
async def test_lateMessages(place: Place, server: Server) -> None:
    """
    The server hangs, and does what was given up on when it goes on: whoever
    has heard a later message does not hear the earlier one behind it. What
    others put on the channel is not heard at all.
    """
    store, ear = place.make(timeout=0.5), Ear()
    other = place.make()
    await other.subscribe(ear)
    caught: list[Any] = []
    spy = Subscription(other._route, store._topics, caught.append)
    await spy.start()
    await store.publish([numbered(0)])
    server.send(signal.SIGSTOP)
    try:
        await failing(store.publish([numbered(1)]))
    finally:
        server.send(signal.SIGCONT)
    await insist(lambda: store.publish([numbered(2)]), pause)
    await ear.hears(2)
    while len(caught) < 2:
        await pause()
    for said in (caught[0], caught[-1], b"", b"junk", caught[-1][:20], b"\2" + caught[-1][1:]):
        server.call("PUBLISH", store._topics, said)
    before = tuple(ear.heard)
    await store.publish([numbered(3)])
    await ear.hears(3)
    assert tuple(ear.heard) == (*before, 3)
    ear.check()
    await spy.close()


@ensure
async def test_sessionsDoNotSufferFromMessages(place: Place, server: Server) -> None:
    """
    A user that may not publish, and a connection for messages that is lost:
    it is the messages' own trouble.
    """
    server.call("ACL", "SETUSER", "mute", "on", ">pw", "~*", "resetchannels", "+@all")
    server.call("ACL", "SETUSER", "mute", "&twsessions:ended")
    dialer = Dialer(reactor, 0.5, Login("mute", "pw"))
    store = RedisStore(Single(dialer, ("127.0.0.1", server.port)))
    place.stores.append(store)
    key = newKey()
    await one(store, create(key))
    ids = {line.split()[0] for line in server.call("CLIENT", "LIST").splitlines()}
    error = await failing(store.publish([numbered(1), numbered(2)]))
    assert "may not do" in str(error)
    error = await failing(store.subscribe(lambda message: None))
    assert "may not do" in str(error)
    server.call("ACL", "SETUSER", "mute", "allchannels")
    ear = Ear()
    await insist(lambda: store.subscribe(ear), pause)
    await store.publish([numbered(1), numbered(2)])
    await ear.hears(2)
    load = store.load([key] * 10)
    lines = server.call("CLIENT", "LIST").splitlines()
    (publisher,) = [line for line in lines if b"cmd=publish" in line]
    assert publisher.split()[0] not in ids
    server.call("CLIENT", "KILL", "ID", publisher.split()[0].partition(b"=")[2])
    assert None not in await load
    assert await one(store, change(key, set={"da": b"1"}))
    after = {line.split()[0] for line in server.call("CLIENT", "LIST").splitlines()}
    assert len(ids & after) == 1


@ensure
async def test_whoHearsWhom(place: Place, server: Server) -> None:
    """
    Those with the same prefix and the same database. (Channels are the
    server's: it does not tell databases apart.)
    """
    heard: dict[str, list[Any]] = {}
    url = f"redis://127.0.0.1:{server.port}"
    for where in ("/0", "/1", "/0?prefix=other", ""):
        store: Any = storeFromURL(reactor, url + where)
        place.stores.append(store)
        heard[where] = []
        await store.subscribe(heard[where].append)
    for number, store in enumerate(place.stores):
        await store.publish([numbered(number)])
    expected = {"/0": [0, 3], "/1": [1], "/0?prefix=other": [2], "": [0, 3]}
    for where, numbers in expected.items():
        while len(heard[where]) < len(numbers):
            await pause()
        assert heard[where] == [numbered(number) for number in numbers]


@ensure
async def test_fourClaimNothingTwice(place: Place) -> None:
    """
    Four sweep and claim at once, and connections are not cut: each end is
    given out once.
    """
    stores = [place.make(skew=lambda: clock[0]) for _ in range(4)]
    clock = [0.0]
    await stores[0].listen()
    keys = [newKey() for _ in range(2000)]
    for start in range(0, len(keys), 250):
        await stores[0].commit([create(key, idle=5.0) for key in keys[start : start + 250]])
    clock[0] = 10.0
    heard: list[bytes] = []

    async def work(store: RedisStore) -> None:
        while True:
            swept = await store.sweep(100)
            ends = await store.claim(30, 30.0)
            heard.extend(end.record.key for end in ends)
            held = await store.settle([Verdict(end.id, end.claim) for end in ends])
            assert all(held)
            if not ends and not swept.more:
                return

    await gatherResults([Deferred.fromCoroutine(work(store)) for store in stores])
    assert len(heard) == 2000 and set(heard) == set(keys)


@pytest.mark.parametrize("seed", range(4))
@ensure
async def test_againstTheModel(place: Place, seed: int) -> None:
    """
    With connections that break at any byte.
    """

    def disturb(chance: random.Random) -> None:
        place.proxy.left = {}
        if chance.random() < 0.15:
            place.proxy.cutAll()
        elif chance.random() < 0.15:
            place.proxy.left = {chance.choice(["up", "down"]): chance.randrange(600)}

    def rest() -> Deferred[None]:
        place.proxy.left = {}
        return pause(0.01)

    def make(skew: Callable[[], float]) -> RedisStore:
        return place.make(place.proxy.port, skew=skew)

    await play(lambda: Play(seed, make, disturb, rest), 150, lambda: place.server.call("FLUSHALL"))


@ensure
async def test_closeWhileItHangs(place: Place, server: Server) -> None:
    store = place.make(timeout=0.3)
    await insist(lambda: store.load([newKey()]), pause)
    server.send(signal.SIGSTOP)
    try:
        call = store.load([newKey()])
        closed = store.close()
        await failing(call)
        await closed
    finally:
        server.send(signal.SIGCONT)


@ensure
async def test_closeWhileItConnects(server: Server, place: Place) -> None:
    server.send(signal.SIGSTOP)
    try:
        store = place.make(timeout=0.3)
        call, closed = store.load([newKey()]), store.close()
        await failing(call)
        await closed
    finally:
        server.send(signal.SIGCONT)


def test_nothingIsConnected() -> None:
    store = storeFromURL(reactor, "redis://127.0.0.1:1/0")
    assert store.close().called
