"""
The Redis store on a real cluster of three masters with a replica each.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from itertools import count
from typing import Any, ClassVar

import hiredis
import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater
from twisted.logger import capturedLogs, formatEvent

from twsessions.core.delta import Change
from twsessions.core.record import Record
from twsessions.errors import IdCollision, SessionGone, StoreUnavailable
from twsessions.stores._messages import Inbox
from twsessions.stores._redis.link import Dialer, Login
from twsessions.stores._redis.route import Ask, Single
from twsessions.stores._redis.route import Cluster as Route
from twsessions.stores._redis.subscription import Subscription
from twsessions.stores.link import StoreLink
from twsessions.stores.redis import RedisStore
from twsessions.test.ear import Ear, numbered
from twsessions.test.real import PATIENCE
from twsessions.test.redismodel import Play, insist, play
from twsessions.test.redisserver import Cluster, Server, until
from twsessions.testing.contract import StoreContractMixin, change, create, newKey

ensure = pytest_twisted.ensureDeferred


def pause(seconds: float = 0.02) -> Deferred[None]:
    return deferLater(reactor, seconds, lambda: None)


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[Cluster]:
    made = Cluster()
    try:
        made.start()
        TestContract.cluster = made
        yield made
    finally:
        made.stop()


def storeOn(cluster: Cluster, timeout: float = 1.5, **options: Any) -> RedisStore:
    dialer = Dialer(reactor, timeout, Login())
    # At the first of them nobody listens.
    seeds = [("127.0.0.1", port) for port in (1, cluster.masters[0].port)]
    return RedisStore(Route(dialer, seeds), **options)


def newPrefix() -> bytes:
    """
    The nodes may be late with messages of the test before.
    """
    return b"test-%d" % next(_numbers)


_numbers = count()


def empty(cluster: Cluster) -> None:
    for server in cluster.servers:
        if server.call("ROLE")[0] == b"master":
            server.call("FLUSHALL")


def placeOf(cluster: Cluster, store: RedisStore, key: bytes) -> tuple[bytes, Server]:
    """
    What the server calls a session, and the master that has it.
    """
    name = store._buckets.name(key[0], b"s:" + key)
    slot = cluster.masters[0].call("CLUSTER", "KEYSLOT", name)
    count = len(cluster.masters)
    (owner,) = [
        server
        for place, server in enumerate(cluster.masters)
        if 16384 * place // count <= slot < 16384 * (place + 1) // count
    ]
    return name, owner


def keyIn(bucket: int) -> bytes:
    return bytes((bucket,)) + os.urandom(31)


class TestContract(StoreContractMixin, run=pytest_twisted.ensureDeferred):
    isSpread = True
    cluster: ClassVar[Cluster]

    async def makeStore(self) -> RedisStore:
        empty(self.cluster)
        self.prefix = newPrefix()
        return await self.reopen(None)

    async def reopen(self, store: object) -> RedisStore:
        return storeOn(self.cluster, PATIENCE, skew=self.clock.seconds, prefix=self.prefix)

    async def corrupt(
        self, store: RedisStore, key: bytes, mutate: Callable[[bytes], bytes]
    ) -> bool:
        name, owner = placeOf(self.cluster, store, key)
        owner.call("SET", name, mutate(owner.call("GET", name)))
        return True


class Place:
    """
    Stores on the cluster, all closed at the end.

    @ivar now: seconds that are added to the servers' time.
    """

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.now = 0.0
        self.prefix = newPrefix()
        self.stores: list[RedisStore] = []

    def make(self, timeout: float = PATIENCE, **options: Any) -> RedisStore:
        options.setdefault("skew", lambda: self.now)
        options.setdefault("prefix", self.prefix)
        self.stores.append(storeOn(self.cluster, timeout, **options))
        return self.stores[-1]


@pytest_twisted.async_yield_fixture
async def place(cluster: Cluster) -> AsyncIterator[Place]:
    cluster.recover()
    empty(cluster)
    made = Place(cluster)
    yield made
    for store in made.stores:
        await store.close()
    left = [call for call in reactor.getDelayedCalls() if "in_reactor" not in str(call)]
    assert not left, "a delayed call is left"


async def one(store: RedisStore, what: Change) -> Any:
    return (await store.commit([what]))[0]


class _Broken:
    """
    A route that fails at one of its trips, and in all later ones.
    """

    def __init__(self, store: RedisStore, after: int, isSent: bool) -> None:
        self.route = store._route
        self.whole = self.route.run
        self.left = after
        self.isSent = isSent
        self.isBroken = False
        self.route.run = self.run  # type: ignore[method-assign]

    async def run(
        self, asks: Sequence[Ask], deadline: float, head: bytes = b"", tail: bytes = b""
    ) -> None:
        self.left -= 1
        if self.left >= 0 or (self.left == -1 and self.isSent):
            await self.whole(asks, deadline, head, tail)
        if self.left < 0:
            self.isBroken = True
            for ask in asks:
                ask.reply = StoreUnavailable("broken by the test")


@pytest.mark.parametrize("isSent", [False, True])
@ensure
async def test_rotationBreaksAtEachStep(place: Place, isSent: bool) -> None:
    """
    Wherever it breaks, one key lives and has the data: at once when the change
    is sent again, and soon when it is not.
    """
    other = place.make()
    await other.listen()
    for isSentAgain in (True, False):
        step = 0
        while True:
            place.now = 0.0
            old, to = keyIn(step), keyIn(step + 100)
            await one(other, create(old, set={"da": b"1"}, idle=900.0, principal="ann"))
            rotation = change(old, newKey=to, set={"db": b"2"}, login=True)
            broken = _Broken(place.make(), step, isSent)
            outcome = await insistOnce(place.stores[-1], rotation)
            assert isinstance(outcome, Record) or broken.isBroken
            living = [r.key for r in await other.load([old, to]) if r is not None]
            assert len(living) <= 1
            if isinstance(outcome, Record):
                assert living == [to]
            if isSentAgain:
                again = await one(other, rotation)
                assert isinstance(again, Record) and (again.version, again.epoch) == (2, 1)
                expected = [to]
            else:
                place.now = 6.0
                await swept(other)
                while len(living := await alive(other, [old, to])) != 1:
                    await pause()
                expected = living
            records = await other.sessionsOf("ann")
            assert [record.key for record in records] == expected
            fields = {"da": b"1"} if expected == [old] else {"da": b"1", "db": b"2"}
            assert records[0].fields == fields
            assert (await other.withHandle(records[0].handle)).key == expected[0]
            place.now = 8000.0
            await swept(other)
            place.now += 10.0
            await swept(other)
            ends = await other.claim(10, 30.0)
            assert [end.record.key for end in ends] == expected, "one end, and only one"
            for master in place.cluster.masters:
                left = [name for name in master.call("KEYS", "*") if b"}s:" in name]
                assert left == [], "something is left behind"
            empty(place.cluster)
            await other.listen()
            if not broken.isBroken:
                break
            step += 1
        assert step >= 4


async def insistOnce(store: RedisStore, what: Change) -> Any:
    try:
        return await one(store, what)
    except StoreUnavailable as error:
        return error


async def alive(store: RedisStore, keys: list[bytes]) -> list[bytes]:
    return [record.key for record in await store.load(keys) if record is not None]


async def swept(store: RedisStore) -> None:
    """
    Sweep until nothing is due or going on.
    """
    while (await store.sweep(100)).more or store._underway.count:
        await pause(0.005)


@pytest.mark.parametrize("isSent", [False, True])
@ensure
async def test_sessionsOfFindsThoseOnTheirWay(place: Place, isSent: bool) -> None:
    """
    Wherever a process has died in a rotation, the session does not escape
    those who would end all sessions of somebody.
    """
    store, step, isBroken = place.make(), 0, True
    while isBroken:
        old, to = keyIn(step), keyIn(step + 100)
        await one(store, create(old, principal=str(step)))
        broken = _Broken(place.make(), step, isSent)
        await insistOnce(place.stores[-1], change(old, newKey=to))
        (found,) = await store.sessionsOf(str(step))
        assert await alive(store, [old, to]) == [found.key]
        hints = await store._index.keysOf(str(step), store._buckets.deadline())
        assert hints == [found.key]
        step, isBroken = step + 1, broken.isBroken
    assert step > 4


@pytest.mark.parametrize("isSent", [False, True])
@ensure
async def test_aHandleFindsThoseOnTheirWay(place: Place, isSent: bool) -> None:
    """
    Wherever a process has died in a rotation, the session does not escape who
    would end it.
    """
    store, step, isBroken = place.make(), 0, True
    while isBroken:
        old, to = keyIn(step), keyIn(step + 100)
        made = await one(store, create(old))
        broken = _Broken(place.make(), step, isSent)
        await insistOnce(place.stores[-1], change(old, newKey=to))
        found = await store.withHandle(made.handle)
        assert found is not None and await alive(store, [old, to]) == [found.key]
        step, isBroken = step + 1, broken.isBroken
    assert step > 4


@ensure
async def test_aLateStepRevivesNothing(place: Place) -> None:
    """
    Who found a rotation half done, and goes on with it after it was finished
    and the session has ended, does not bring it back.
    """
    store, old, to = place.make(), keyIn(1), keyIn(200)
    await one(store, create(old, set={"da": b"1"}))
    rotation = change(old, newKey=to)
    record = await one(store, rotation)
    name, owner = placeOf(place.cluster, store, to)
    value = owner.call("GET", name)
    for late in (False, True):
        if late:
            await one(store, change(to, end="logout"))
        outcome = await store._moves.arrive(
            old, rotation.token, record, value, store._buckets.deadline()
        )
        assert isinstance(outcome, SessionGone if late else Record)
    assert await alive(store, [old, to]) == []
    assert isinstance(await one(store, rotation), SessionGone)
    assert await alive(store, [old, to]) == []


@ensure
async def test_nothingOvertakesWhatIsUnknown(place: Place) -> None:
    """
    If the outcome of a change is not known, a later one of the same batch and
    session is not tried.
    """
    store, key, other = place.make(), keyIn(1), keyIn(2)
    await store.commit([create(key), create(other)])
    route, whole = store._route, store._route.run
    trips = 0

    async def run(asks: Sequence[Ask], *args: Any) -> None:
        nonlocal trips
        trips += 1
        if trips > 1:
            return await whole(asks, *args)
        for ask in asks:
            ask.reply = StoreUnavailable("broken by the test")

    route.run = run  # type: ignore[method-assign]
    batch = [change(key, set={"da": b"1"}), change(key, set={"da": b"2"}),
             change(key, newKey=keyIn(3))]  # fmt: skip
    assert [type(outcome) for outcome in await store.commit(batch)] == [StoreUnavailable] * 3
    (found,) = await store.load([key])
    assert found.fields == {}
    outcomes = await store.commit(batch)
    assert [outcome.version for outcome in outcomes] == [2, 3, 4]


@ensure
async def test_rotationRefused(place: Place) -> None:
    store, old, to = place.make(), keyIn(1), keyIn(2)
    assert isinstance(await one(store, change(old, newKey=to)), SessionGone)
    await one(store, create(to))
    assert isinstance(await one(store, change(old, newKey=to)), SessionGone)
    await one(store, create(old))
    assert isinstance(await one(store, change(old, newKey=to)), IdCollision)
    assert await alive(store, [old, to]) == [old, to]
    for master in place.cluster.masters:
        assert not [n for n in master.call("KEYS", "*") if b"}s:" in n and old not in n
                    and to not in n]  # fmt: skip


@ensure
async def test_aWalkLeavesOutNobodyWhoCannotBeRead(place: Place) -> None:
    store, keys = place.make(), [keyIn(1), keyIn(2)]
    await store.commit([create(key) for key in keys])
    route, whole = store._route, store._route.run
    trips = 0

    async def run(asks: Sequence[Ask], *args: Any) -> None:
        nonlocal trips
        trips += 1
        await whole(asks, *args)
        if trips == 2:  # its node has gone since the keys were read
            asks[0].reply = StoreUnavailable("broken by the test")

    route.run = run  # type: ignore[method-assign]
    with pytest.raises(StoreUnavailable):
        await store.iterate(None, 10)
    assert [record.key for record in await store.iterate(None, 10)] == keys


@ensure
async def test_hintsGoWithTheirSessions(place: Place) -> None:
    store = place.make()
    made = await store.commit([create(keyIn(n), principal="ann") for n in (1, 2)])
    await one(store, change(made[0].key, end="logout"))
    place.now = 70.0
    await swept(store)
    deadline = store._buckets.deadline()
    assert await store._index.keysOf("ann", deadline) == []
    assert [await store._index.keyOf(one_.handle, deadline) for one_ in made] == [None, None]


@ensure
async def test_hintsThatLeadNowhereGo(place: Place) -> None:
    store = place.make()
    key, dead = keyIn(1), keyIn(2)
    await one(store, create(key, idle=None, principal="ann"))
    await store._buckets.ask(store._index.hint("ann", dead), store._buckets.deadline())
    for seconds, left in (0.0, {key, dead}), (3000.0, {key, dead}), (4000.0, {key}):
        place.now = seconds
        assert [record.key for record in await store.sessionsOf("ann")] == [key]
        while store._underway.count:
            await pause(0.005)
        found = await store._index.keysOf("ann", store._buckets.deadline())
        assert set(found) == left


@pytest.mark.parametrize("seed", range(2))
@ensure
async def test_againstTheModel(place: Place, seed: int) -> None:
    """
    With connections that are cut.
    """

    def disturb(chance: random.Random) -> None:
        if chance.random() < 0.1:
            for server in place.cluster.masters:
                server.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    def make(skew: Callable[[], float]) -> RedisStore:
        return place.make(skew=skew)

    await play(lambda: Play(seed, make, disturb, pause), 100, lambda: empty(place.cluster))


@ensure
async def test_slotOnItsWay(place: Place) -> None:
    """
    While a slot is moved from one node to another its sessions load, whichever
    half they are in; they change before and after, but not in between.
    """
    store, cluster = place.make(), place.cluster
    keys = [keyIn(7) for _ in range(6)]
    await store.commit([create(key, set={"da": b"1"}) for key in keys])
    _, source = placeOf(cluster, store, keys[0])
    (target, *_) = [server for server in cluster.masters if server is not source]
    slot = source.call("CLUSTER", "KEYSLOT", store._buckets.name(7, b"due"))
    ids = {server: server.call("CLUSTER", "MYID") for server in cluster.masters}

    def move(names: list[bytes]) -> None:
        source.call("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *names)

    try:
        target.call("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[source])
        source.call("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[target])
        names = source.call("CLUSTER", "GETKEYSINSLOT", slot, 100)
        for half in (names[::2], names[1::2]):
            move(half)
            records = await store.load([*keys, keyIn(7)])
            assert [record is not None for record in records] == [True] * 6 + [False]
            outcomes = await store.commit([change(key, set={"da": b"2"}) for key in keys])
            assert {type(outcome) for outcome in outcomes} == {StoreUnavailable}
            assert "moved to another node" in str(outcomes[0])
            elsewhere = keyIn(8)
            outcomes = await store.commit([create(elsewhere), create(keyIn(7))])
            assert isinstance(outcomes[0], Record)
            assert isinstance(outcomes[1], StoreUnavailable)
    finally:
        for server in (target, source, *cluster.masters):
            server.call("CLUSTER", "SETSLOT", slot, "NODE", ids[target])
    for key in keys:
        record = await one(store, change(key, set={"da": b"2"}))
        assert (record.fields, record.version) == ({"da": b"2"}, 2)
    empty(cluster)
    for server in (source, *cluster.masters):
        server.call("CLUSTER", "SETSLOT", slot, "NODE", ids[source])


@ensure
async def test_aNodeThatHangs(place: Place) -> None:
    """
    What is on other nodes goes on at once, and what is on that one fails at
    once after the first time.
    """
    store, cluster = place.make(timeout=0.5), place.cluster
    keys = {}
    for bucket in range(256):
        key = keyIn(bucket)
        keys.setdefault(placeOf(cluster, store, key)[1], key)
    order = list(keys.values())
    born = [create(key) for key in order]
    await insist(lambda: store.commit(born), pause)
    hung = cluster.masters[1]
    hung.send(signal.SIGSTOP)
    try:
        with capturedLogs() as logs:
            for turn in range(8):
                got = await store.load(order)
                if turn == 0:
                    start = time.monotonic()
                for key, record in zip(order, got, strict=True):
                    kind = StoreUnavailable if keys[hung] == key else Record
                    assert isinstance(record, kind), (turn, record)
        said = [formatEvent(event) for event in logs]
        assert [line for line in said if f"away: the Redis server at 127.0.0.1:{hung.port}" in line]
        assert time.monotonic() - start < 7 * 0.25, "each took half of the timeout"
        # Nobody with a session elsewhere is refused, however often that one is asked.
        link = StoreLink(reactor, store)
        for _ in range(5):
            with pytest.raises(StoreUnavailable):
                await link.load(keys[hung])
        for server, key in keys.items():
            if server is not hung:
                assert isinstance(await link.load(key), Record)
    finally:
        hung.send(signal.SIGCONT)
    await insist(lambda: store.load(order), pause)
    await link.close()


@ensure
async def test_aNodeThatHangsInACommit(place: Place) -> None:
    """
    That it is not told where sessions are going to be takes no time from
    changes of others, and nothing is done to those sessions before.
    """
    store, cluster = place.make(timeout=0.5), place.cluster
    hung = cluster.masters[1]
    keys = [key for key in map(keyIn, range(256)) if placeOf(cluster, store, key)[1] is not hung]
    await insist(lambda: store.commit([create(key) for key in keys]), pause)
    born = [create(keyIn(key[0])) for key in keys]
    hung.send(signal.SIGSTOP)
    try:
        outcomes = await store.commit([*born, *(change(key, uses=1) for key in keys)])
        assert StoreUnavailable in {type(outcome) for outcome in outcomes[: len(born)]}
        assert {type(outcome) for outcome in outcomes[len(born) :]} == {Record}
        born = [create(keyIn(key[0])) for key in keys]
        outcomes = await store.commit([*born, *(change(what.key, uses=1) for what in born)])
        assert {type(outcome) for outcome in outcomes} == {StoreUnavailable, Record}
    finally:
        hung.send(signal.SIGCONT)


@ensure
async def test_aMasterIsKilledUnderLoad(place: Place) -> None:
    """
    Its replica takes over, and the store goes on by itself. What was
    acknowledged (by the replica, too) is there, and nothing dead lives.
    """
    cluster, store = place.cluster, place.make(timeout=1.0, replicas=1)
    cluster.fail(after=0.7)
    running = True
    acknowledged: dict[bytes, bytes] = {}
    unknown: set[bytes] = set()
    dead: set[bytes] = set()
    longest = 0.0
    failures = 0

    async def said(what: Change) -> Any:
        nonlocal failures, longest
        start = time.monotonic()
        try:
            outcome = await one(store, what)
        except StoreUnavailable as error:
            outcome = error
        longest = max(longest, time.monotonic() - start)
        if isinstance(outcome, StoreUnavailable):
            failures += 1
            unknown.add(what.key)
            await pause()
        return outcome

    async def work() -> None:
        turn = 0
        while running:
            turn += 1
            key, to = newKey(), newKey()
            if not isinstance(await said(create(key, set={"dn": b"1"})), Record):
                continue
            acknowledged[key] = b"1"
            if isinstance(await said(change(key, set={"dn": b"2"})), Record):
                acknowledged[key] = b"2"
            if turn % 3 == 0 and isinstance(await said(change(key, end="logout")), Record):
                del acknowledged[key]
                dead.add(key)
            if turn % 3 == 1:
                outcome = await said(change(key, newKey=to))
                if isinstance(outcome, Record):
                    acknowledged[to] = acknowledged.pop(key)
                    dead.add(key)

    workers = [Deferred.fromCoroutine(work()) for _ in range(6)]
    try:
        await pause(0.4)
        victim, heir = cluster.masters[2], cluster.replicas[2]
        before = failures
        victim.kill()
        end = time.monotonic() + 20.0
        while heir.call("ROLE")[0] != b"master":
            assert time.monotonic() < end
            await pause(0.05)
        # It has no replica of its own now.
        store._buckets._wait = b""
        await insist(lambda: store.commit([create(keyIn(b)) for b in range(256)]), pause)
        mark = failures
        await pause(0.3)
    finally:
        running = False
        await gatherResults(workers)
    assert before == 0 and failures == mark, "errors are of the failover, and over with it"
    assert longest < 3.0
    assert acknowledged and dead and unknown
    for start in range(0, len(acknowledged), 200):
        some = list(acknowledged)[start : start + 200]
        for key, record in zip(some, await store.load(some), strict=True):
            if key not in unknown:
                assert record is not None and record.fields["dn"] == acknowledged[key]
    for start in range(0, len(dead), 200):
        some = [key for key in dead if key not in unknown][start : start + 200]
        assert await store.load(some) == [None] * len(some)
    # The dead come back, as a replica of its heir: the cluster is whole again.
    victim.start()
    until(cluster.isWhole, "the cluster is whole")
    assert victim.call("ROLE")[0] == b"slave"
    for start in range(0, len(dead), 200):
        some = [key for key in dead if key not in unknown][start : start + 200]
        assert await store.load(some) == [None] * len(some)


class _CutOff(Protocol):
    """
    A node that sees no other, and goes on telling what it knew.
    """

    transport: Any

    def __init__(self, layout: list[bytes]) -> None:
        self.layout = layout
        self.reader = hiredis.Reader()

    def dataReceived(self, data: bytes) -> None:
        self.reader.feed(data)
        while (words := self.reader.gets()) is not False:
            known = {b"PING": b"+PONG\r\n", b"SCRIPT": b"+OK\r\n", b"INFO": b"+\r\n"}
            known[b"CLUSTER"] = self.layout[0]
            self.transport.write(known.get(words[0], b"-CLUSTERDOWN The cluster is down\r\n"))


@ensure
async def test_nodesThatAreCutOffFromTheOthers(place: Place) -> None:
    """
    They can be reached, but what they know is over: it is not asked of them
    alone where the sessions are.
    """
    layout: list[bytes] = []
    factory = Factory.forProtocol(lambda: _CutOff(layout))
    factory.noisy = False
    ports = [reactor.listenTCP(0, factory, interface="127.0.0.1") for _ in range(7)]
    numbers = [port.getHost().port for port in ports]
    whole = place.cluster.masters[0].port
    layout.append(b"*8\r\n" + b"".join(
        b"*3\r\n:%d\r\n:%d\r\n*2\r\n$9\r\n127.0.0.1\r\n:%d\r\n"
        % (2048 * at, 2048 * at + 2047, number)
        for at, number in enumerate([*numbers, whole])
    ))  # fmt: skip
    dialer = Dialer(reactor, 1.5, Login())
    store = RedisStore(Route(dialer, [("127.0.0.1", number) for number in numbers]))
    try:
        keys = [keyIn(bucket) for bucket in range(256)]
        assert await insist(lambda: store.load(keys), pause) == [None] * 256
    finally:
        await store.close()
        for port in ports:
            await port.stopListening()


# Messages


def nodeOf(cluster: Cluster, server: Any) -> Server:
    """
    The node that a connection is to.
    """
    port = server._wire.transport.getPeer().port
    (node,) = [one for one in cluster.servers if one.port == port]
    return node


@ensure
async def test_messagesReachEveryNode(place: Place) -> None:
    """
    A message that one node is given is heard on all of them.
    """
    store = place.make()
    listeners = []
    for server in place.cluster.servers:
        ear, inbox = Ear(), Inbox()
        inbox.add(ear)
        route = Single(Dialer(reactor, 1.5, Login()), ("127.0.0.1", server.port))
        spy = Subscription(route, store._topics, inbox.arrived)
        await spy.start()
        listeners.append((ear, spy))
    number = 0
    end = time.monotonic() + 20.0
    # A node that was away a moment ago may not be told of the first ones.
    while not all(ear.heard[-1:] == [number] for ear, _ in listeners):
        assert time.monotonic() < end, [ear.heard for ear, _ in listeners]
        number += 1
        await store.publish([numbered(number)])
        await pause()
    for ear, spy in listeners:
        ear.check()
        await spy.close()


@ensure
async def test_aNodeThatHangsAndMessages(place: Place) -> None:
    """
    Another one is taken for them, though nobody has found out for sessions
    that it hangs.
    """
    store, cluster = place.make(timeout=0.5), place.cluster
    await insist(lambda: store.publish([numbered(0)]), pause)
    hung = nodeOf(cluster, store._publisher)
    hung.send(signal.SIGSTOP)
    try:
        start = time.monotonic()
        with pytest.raises(StoreUnavailable):
            await store.publish([numbered(1)])
        await insist(lambda: store.publish([numbered(2)]), pause)
        assert time.monotonic() - start < 5.0
        assert nodeOf(cluster, store._publisher) is not hung
    finally:
        hung.send(signal.SIGCONT)


@ensure
async def test_aNodeIsKilledAndMessages(place: Place) -> None:
    """
    Who listened there is told that something was missed, and hears of it from
    another one.
    """
    store, cluster, ear = place.make(), place.cluster, Ear()
    await store.subscribe(ear)
    victim = nodeOf(cluster, store._messages._server)
    victim.kill()
    await ear.hears(None)
    number = 0
    while number not in ear.heard:
        number += 1
        await insist(lambda number=number: store.publish([numbered(number)]), pause)
    ear.check()
    assert nodeOf(cluster, store._messages._server) is not victim
    victim.start()
    until(cluster.isWhole, "the cluster is whole")


@ensure
async def test_messagesAfterAMasterIsNoneAnyMore(place: Place) -> None:
    """
    It may leave the cluster, and can still be reached: who listened there
    listens to another one, and is told that something may have been missed.
    """
    store, cluster, ear = place.make(), place.cluster, Ear()
    born = [create(keyIn(bucket)) for bucket in range(256)]
    await insist(lambda: store.commit(born), pause)
    await store.subscribe(ear)
    await insist(lambda: store.publish([numbered(0)]), pause)
    left = nodeOf(cluster, store._messages._server)
    store._route._seeds.append(("127.0.0.1", left.port))  # which does not make it one to go to
    pairs = zip(cluster.masters, cluster.replicas, strict=True)
    (heir,) = [b if a is left else a for a, b in pairs if left in (a, b)]
    heir.call("CLUSTER", "FAILOVER", "TAKEOVER")
    until(lambda: left.call("ROLE")[0] == b"slave", "it is none any more")
    keys = [one.key for one in born]
    end = time.monotonic() + 20.0
    while None not in ear.heard:
        assert time.monotonic() < end
        await insist(lambda: store.load(keys), pause)
        await pause()
    assert nodeOf(cluster, store._messages._server) is not left
    await insist(lambda: store.publish([numbered(1)]), pause)
    assert nodeOf(cluster, store._publisher) is not left
    until(cluster.isWhole, "the cluster is whole")


@ensure
async def test_messagesGoByMasters(place: Place) -> None:
    """
    A seed may be a replica, which leaves the cluster unnoticed: it is not taken
    even when no master answers.
    """
    store, cluster, ear = place.make(timeout=0.5), place.cluster, Ear()
    store._route._seeds = [("127.0.0.1", replica.port) for replica in cluster.replicas]
    store._route._seeds += [("127.0.0.1", master.port) for master in cluster.masters]
    roles = {server: server.call("ROLE")[0] for server in cluster.servers}
    masters = [server for server, role in roles.items() if role == b"master"]
    await insist(lambda: store.load([keyIn(1)]), pause)
    for master in masters:
        master.send(signal.SIGSTOP)
    try:
        with pytest.raises(StoreUnavailable):
            await store.subscribe(ear)
    finally:
        for master in masters:
            master.send(signal.SIGCONT)
    await ear.hears(None)
    assert nodeOf(cluster, store._messages._server) in masters
    until(cluster.isWhole, "the cluster is whole")
