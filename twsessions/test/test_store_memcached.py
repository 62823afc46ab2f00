"""
The memcached store: its URLs, its items, and what comes of changes that meet.
"""

from __future__ import annotations

import os
import random
import time
from binascii import b2a_base64
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import Clock
from twisted.logger import capturedLogs
from twisted.web.resource import Resource

from twsessions import SessionSite, storeFromURL
from twsessions.core.delta import Change
from twsessions.core.record import Record
from twsessions.errors import (
    IdCollision,
    NotSupported,
    SessionGone,
    SessionTooLarge,
    StoreUnavailable,
)
from twsessions.stores._memcache.ask import ADD, CAS, DELETE, EXISTS, GETS, STORED, Ask
from twsessions.stores._memcache.merge import Item, Merge
from twsessions.stores._memcache.ring import Ring
from twsessions.stores._memcache.wire import Wire
from twsessions.stores.memcached import MemcachedStore, fromURL
from twsessions.stores.memory import MemoryStore
from twsessions.test.memcachedserver import Server
from twsessions.testing.browser import Browser
from twsessions.testing.contract import change, create, newKey

SMALL = ("-I", "64k", "-o", "slab_chunk_max=32768")  # items of up to 64 KiB
deferred = pytest_twisted.ensureDeferred


class Stores:
    """
    Makes servers and stores, and ends them all.
    """

    def __init__(self) -> None:
        self.servers: list[Server] = []
        self.stores: list[MemcachedStore] = []
        self.clock = Clock()
        self.clock.advance(1_000_000.0)

    def serve(self, *options: str) -> Server:
        server = Server(*options)
        self.servers.append(server)
        return server

    def make(self, *servers: Server, now: Callable[[], float] | None = None) -> MemcachedStore:
        addresses = [("127.0.0.1", server.port) for server in servers or self.servers]
        store = MemcachedStore(reactor, addresses, now or self.clock.seconds)
        self.stores.append(store)
        return store


@pytest_twisted.async_yield_fixture
async def stores() -> Any:
    made = Stores()
    yield made
    for store in made.stores:
        await store.close()
    for server in made.servers:
        server.stop()


def nameOf(key: bytes, mark: bytes = b":") -> bytes:
    return b"twsessions" + mark + b2a_base64(key, newline=False)


async def one(store: Any, change: Change) -> Any:
    (outcome,) = await store.commit([change])
    return outcome


# URLs


@pytest.mark.parametrize(
    ("rest", "addresses"),
    [
        ("//localhost", [("localhost", 11211)]),
        ("//a:1,B:2/", [("a", 1), ("b", 2)]),
        ("//[::1]:7,10.0.0.1?timeout=0.5&prefix=shop", [("::1", 7), ("10.0.0.1", 11211)]),
    ],
)
def test_urls(rest: str, addresses: list[tuple[str, int]]) -> None:
    store = fromURL("memcached", rest)(Clock())
    assert [server._address for server in store._servers] == addresses


@pytest.mark.parametrize(
    ("rest", "says"),
    [
        ("", "named like memcached://host1:11211,host2:11211"),
        ("secret", "named like"),
        ("//", "named like"),
        ("//a,,secret", "named like"),
        ("//user:secret@host", "without user and password"),
        ("//host/secret", "named like"),
        ("//ho st", "named like"),
        ("//host\r\nsecret", "named like"),
        ("//host:0", "from 1 to 65535"),
        ("//host:65536", "from 1 to 65535"),
        ("//host,host:11211", "named twice"),
        ("//host#secret", "named like"),
        ("//host?colour=secret", "no option 'colour'; it has timeout and prefix"),
        ("//user:12?secret@host", "no option; it has timeout and prefix"),
        ("//host?timeout=secret", "a number of seconds"),
        ("//host?timeout=nan", "a number of seconds"),
        ("//host?timeout=-1", "a number of seconds"),
        ("//host?timeout=1&timeout=2", "twice"),
        ("//host?prefix=a%0D%0Asecret", "visible ASCII"),
        ("//host?prefix=a%20secret", "visible ASCII"),
        ("//host?prefix=" + 201 * "x", "up to 200"),
    ],
)
def test_urlsThatAreNotRight(rest: str, says: str) -> None:
    with pytest.raises(ValueError, match=says) as raised:
        storeFromURL(Clock(), "memcached:" + rest)
    assert "secret" not in str(raised.value)


# Which server


def test_ring() -> None:
    keys = [newKey() for _ in range(6000)]
    names = ["a:1", "b:1", "c:1"]
    ring, turned = Ring(names), Ring(names[::-1])
    shares = Counter(ring.of(key) for key in keys)
    assert all(1750 < shares[place] < 2250 for place in range(3)), shares
    assert all(names[ring.of(key)] == names[::-1][turned.of(key)] for key in keys)
    more = Ring([*names, "d:1"])
    moved = [more.of(key) for key in keys if more.of(key) != ring.of(key)]
    assert set(moved) == {3} and len(moved) < 2000
    assert Ring(["only"]).of(b"\xff" * 32) == Ring(["only"]).of(bytes(32)) == 0


# The wire


class Transport:
    def __init__(self) -> None:
        self.isUp = True

    def setTcpNoDelay(self, value: bool) -> None:
        pass

    setTcpKeepAlive = setTcpNoDelay

    def write(self, data: bytes) -> None:
        pass

    def abortConnection(self) -> None:
        self.isUp = False


def wireOn(clock: Clock) -> Wire:
    wire = Wire(clock)
    wire.transport = Transport()
    wire.connectionMade()
    wire.itemSize = 1000
    return wire


REPLIES = (
    b"STAT time 7\r\nSTAT who\r\nEND\r\nEND\r\n"
    b"VALUE k 0 4 12\r\n\r\nEN\r\nVALUE l 0 0 13\r\n\r\nEND\r\nNOT_FOUND\r\n"
)
READ = [
    {b"time": b"7", b"who": b""}, {}, {b"k": (b"12", b"\r\nEN"), b"l": (b"13", b"")}, b"NOT_FOUND",
]  # fmt: skip


@pytest.mark.parametrize("size", range(1, len(REPLIES) + 1))
def test_repliesInPieces(size: int) -> None:
    clock = Clock()
    wire = wireOn(clock)
    got: list[Any] = []
    for number in (1, 2, 1):
        wire.ask(b"x", number, 1.0).addCallback(got.extend)
    for at in range(0, len(REPLIES), size):
        wire.dataReceived(REPLIES[at : at + size])
    assert got == READ
    assert wire.isUp and not wire._chunks
    clock.advance(5.0)
    assert wire.isUp and not clock.getDelayedCalls()


@pytest.mark.parametrize(
    "garbage",
    [
        b"VALUE k 0 1001 1\r\n",
        b"VALUE k 0 3 1\r\nabcde",
        b"VALUE k 0 3 1\r\nabc\r\nSTORED\r\n",
        b"x" * 5000,
        b"".join(b"STAT %d\r\n" % number for number in range(5000)),
        b"STORED\r\nSTORED\r\nVALUE k 0 3 1\r\n",
        b"STORED\r\nSTORED\r\n",
    ],
)
def test_whatIsNoProtocolEndsTheConnection(garbage: bytes) -> None:
    clock = Clock()
    wire = wireOn(clock)
    failures: list[Any] = []
    wire.ask(b"x", 1, 1.0).addErrback(failures.append)
    wire.dataReceived(garbage)
    assert not wire.isUp and not wire.transport.isUp
    assert not clock.getDelayedCalls()
    for failure in failures:
        assert isinstance(failure, list) or failure.check(StoreUnavailable)


def test_deadlines() -> None:
    clock = Clock()
    wire = wireOn(clock)
    failures: list[Any] = []
    wire.ask(b"x", 1, 3.0).addErrback(failures.append)
    wire.ask(b"x", 1, 2.0).addErrback(failures.append)
    clock.advance(1.0)
    wire.dataReceived(b"STAT drip drop\r\n")  # whoever only drips is late all the same
    clock.advance(0.9)
    assert wire.isUp
    clock.advance(0.2)
    assert not wire.isUp and wire.isLate and not clock.getDelayedCalls()
    wire.ask(b"x", 1, 9.0).addErrback(failures.append)
    assert [failure.type for failure in failures] == [StoreUnavailable] * 3


def test_theQueueIsBounded() -> None:
    clock = Clock()
    wire = wireOn(clock)
    failures: list[Any] = []
    for _ in range(5000):
        wire.ask(b"x", 1, 2.0).addErrback(failures.append)
    assert len(failures) == 5000 - 4096
    wire.drop("enough")
    assert len(failures) == 5000


# What comes of changes that meet, whatever the order


class Items:
    """
    What a server, or several, would do with commands.
    """

    def __init__(self) -> None:
        self.items: dict[bytes, tuple[bytes, bytes]] = {}
        self._numbers = count(1)

    def do(self, ask: Ask) -> None:
        there = self.items.get(ask.key)
        if ask.verb is GETS:
            ask.reply = there
        elif ask.verb is DELETE:
            ask.reply = b"DELETED" if self.items.pop(ask.key, None) else b"NOT_FOUND"
        elif ask.verb is ADD and there is not None:
            ask.reply = b"NOT_STORED"
        elif ask.verb is CAS and there is None:
            ask.reply = b"NOT_FOUND"
        elif ask.verb is CAS and there is not None and there[0] != ask.cas:
            ask.reply = EXISTS
        else:
            self.items[ask.key] = b"%d" % next(self._numbers), ask.value
            ask.reply = STORED

    def client(self, change: Change) -> Client:
        return Client(self, change)

    def commit(self, change: Change) -> Any:
        client = self.client(change)
        while not client.isDone:
            client.step()
        return client.outcome

    def record(self, key: bytes) -> Record | None:
        return Item(key, self.items.get(key), None).record


class Client:
    """
    A commit that is under way, one command at a time.
    """

    def __init__(self, items: Items, change: Change) -> None:
        self._items = items
        self.merge = Merge([change], lambda: 1000.0, lambda key: 100_000, {})
        (self._steps,) = self.merge.steps()
        self._todo: list[Ask] = []
        self._asked: Sequence[Ask] = ()
        self.isDone = False
        self._next()

    @property
    def outcome(self) -> Any:
        return self.merge.outcomes[0]

    def _next(self) -> None:
        self._asked = next(self._steps, ())
        self._todo = list(self._asked)
        self.isDone = not self._todo

    def step(self) -> None:
        self._items.do(self._todo.pop(0))
        if not self._todo:
            self._next()

    def fail(self, isDone: bool) -> Ask:
        """
        The connection is cut, before or after the next command was done.
        """
        lost = self._todo[0]
        if isDone:
            self._items.do(lost)
        late = Ask(lost.verb, lost.key, lost.value, lost.ttl, lost.cas, lost.wire)
        for ask in self._todo:
            ask.reply = StoreUnavailable("cut")
        self._next()
        return late


def schedules(make: Callable[[], tuple[Items, list[Client]]]) -> Iterator[tuple[Items, list[Any]]]:
    """
    Run the clients in every order there is, or in 3000 of them.
    """
    chance = random.Random(7)
    todo: list[list[int]] = [[]]
    for _ in range(3000):
        if not todo:
            return
        at = chance.randrange(len(todo))
        todo[at], todo[-1] = todo[-1], todo[at]
        order = todo.pop()
        items, clients = make()
        for number in order:
            clients[number].step()
        while running := [at for at, client in enumerate(clients) if not client.isDone]:
            todo += [[*order, other] for other in running[1:]]
            order = [*order, running[0]]
            clients[running[0]].step()
        yield items, [client.outcome for client in clients]


A, B, C = (bytes([letter]) * 32 for letter in b"abc")


def started(*changes: Change) -> Callable[[], tuple[Items, list[Client]]]:
    def make() -> tuple[Items, list[Client]]:
        items = Items()
        assert isinstance(items.commit(create(A, set={"d0": b"0"})), Record)
        return items, [items.client(change) for change in changes]

    return make


def living(items: Items) -> list[bytes]:
    return [key for key in (A, B, C) if items.record(key) is not None]


def test_allOrdersOfThreeWriters() -> None:
    writes = [change(A, set={f"d{n}": b"x"}, uses=1) for n in (1, 2, 3)]
    number = 0
    for items, outcomes in schedules(started(*writes)):
        record = items.record(A)
        assert record is not None and all(isinstance(one, Record) for one in outcomes)
        assert set(record.fields) == {"d0", "d1", "d2", "d3"}
        assert (record.uses, record.version) == (3, 4)
        number += 1
    assert number > 90


def test_allOrdersOfTwoRotationsAndAWriter() -> None:
    changes = change(A, newKey=B), change(A, newKey=C), change(A, set={"d1": b"1"})
    number = 0
    for items, (first, second, written) in schedules(started(*changes)):
        won = [one for one in (first, second) if isinstance(one, Record)]
        assert len(won) == 1
        assert all(isinstance(one, (Record, SessionGone)) for one in (first, second, written))
        assert living(items) == [won[0].key]
        record = items.record(won[0].key)
        assert record is not None
        # Acknowledged writes are there; others are not.
        assert ("d1" in record.fields) == isinstance(written, Record)
        number += 1
    assert number > 1000


def test_allOrdersOfARotationAndAnEnd() -> None:
    changes = change(A, newKey=B), change(A, end="logout"), change(A, set={"d1": b"1"})
    seen = set()
    for items, (rotated, ended, _) in schedules(started(*changes)):
        assert isinstance(rotated, Record) != isinstance(ended, Record)
        assert living(items) == ([B] if isinstance(rotated, Record) else [])
        seen.add(type(rotated))
    assert seen == {Record, SessionGone}


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("isDone", [False, True])
@pytest.mark.parametrize("kind", ["birth", "write", "rotate", "end"])
def test_cutsAndRetries(kind: str, isDone: bool, late: bool) -> None:
    """
    Cut at each command, which is done or not, or later: what is sent again is
    applied once, and nothing lives that should not.
    """
    for place in range(5):
        items = Items()
        if kind != "birth":
            items.commit(create(A, set={"d0": b"0"}))
        it = {
            "birth": create(A, set={"d0": b"0"}, uses=1),
            "write": change(A, uses=1),
            "rotate": change(A, newKey=B, uses=1),
            "end": change(A, end="logout"),
        }[kind]
        client = items.client(it)
        for _ in range(place):
            if not client.isDone:
                client.step()
        if client.isDone:
            break
        lost = client.fail(isDone)
        assert isinstance(client.outcome, StoreUnavailable)
        outcome = items.commit(it)
        if late:
            items.do(lost)
        if kind == "end":
            assert living(items) == [] and isinstance(outcome, (Record, SessionGone))
            continue
        assert isinstance(outcome, Record) and outcome.uses == 1
        assert living(items) == [B if kind == "rotate" else A]
        assert items.commit(it).version == outcome.version
        if late:
            # Whatever is still on its way when the session ends.
            items.commit(change(outcome.key, end="logout"))
            items.do(lost)
            assert living(items) == []


def test_theRestOfARotationThatFailed() -> None:
    """
    As long as it may still be there nobody is told that the session is gone.
    """
    items = Items()
    items.commit(create(A))
    rotation = change(A, newKey=B)
    cut = items.client(rotation)
    while B not in items.items:
        cut.step()
    cut.fail(isDone=False)
    items.commit(change(A, end="logout"))
    again = items.client(rotation)
    again.step()
    again.step()
    again.fail(isDone=False)
    assert isinstance(again.outcome, StoreUnavailable) and living(items) == [B]
    assert isinstance(items.commit(rotation), SessionGone) and living(items) == []


@pytest.mark.parametrize("it", [change(A, uses=1), change(A, newKey=B)], ids=["write", "rotate"])
def test_whoNeverWins(it: Change) -> None:
    """
    Others are always faster: it fails, and does not hang.
    """
    items = Items()
    items.commit(create(A))
    do = items.do

    def doLate(ask: Ask) -> None:
        if ask.key == A and ask.verb is CAS:
            ask.reply = EXISTS
        else:
            do(ask)

    items.do = doLate  # type: ignore[method-assign]
    assert isinstance(items.commit(it), StoreUnavailable)
    assert A in living(items)


def test_nothingIsSetBlindly() -> None:
    verbs = {ADD, CAS, GETS, DELETE}
    items = Items()
    do = items.do

    def watch(ask: Ask) -> None:
        assert ask.verb in verbs
        assert ask.verb is not DELETE or ask.key == B, "only what nobody knows is deleted"
        do(ask)

    items.do = watch  # type: ignore[method-assign]
    for it in (create(A), change(A, uses=1), change(A, newKey=B), change(B, end="logout")):
        assert isinstance(items.commit(it), Record)
    assert isinstance(items.commit(create(A)), IdCollision)


# On a server


@deferred
async def test_howLongItemsStay(stores: Stores) -> None:
    """
    A minute longer than the session; more than 30 days is a date, and what the
    server could not read as a date stays as long as there is room.
    """
    client = stores.serve().client()
    real = stores.make(now=time.time)
    faked = stores.make()  # whose clock says that it is 1970
    day = 86400.0
    cases: list[tuple[Any, float | None, float | None]] = [
        (real, 10.0, 70.0),
        (real, 29 * day, 29 * day + 60),
        (real, 30 * day, 30 * day + 60),
        (real, 31 * day, 31 * day + 60),
        (faked, 10.0, 70.0),
        (faked, 31 * day, 31 * day + 60),
        (faked, 31 * day + 0.5, 31 * day + 60),
        (real, 365 * 200 * day, None),
        (real, None, None),
    ]
    for store, idle, stays in cases:
        key = newKey()
        assert isinstance(await one(store, create(key, idle=idle)), Record)
        assert (await store.load([key]))[0] is not None
        ttl = client.ttl(nameOf(key))
        assert (ttl == -1) if stays is None else (abs(ttl - stays) < 4), idle
    late = create(newKey(), idle=10.0)
    assert late.birth is not None
    late.birth.ago = 1000.0
    assert isinstance(await one(real, late), Record)
    assert await real.load([late.key]) == [None]
    client.close()


@deferred
async def test_onlyTombstonesAreLeft(stores: Stores) -> None:
    client = stores.serve().client()
    store = stores.make()
    a, b, to = newKey(), newKey(), newKey()
    await store.commit([create(a), create(b)])
    await store.commit([change(a, end="logout"), change(b, newKey=to)])
    for key in (a, b):
        value = client.get(nameOf(key))
        assert value is not None and len(value) == 17
        assert 590 < client.ttl(nameOf(key)) < 610
        # The birth, once more and late: not even that.
        assert isinstance(await one(store, create(key)), IdCollision)
    client.close()


@deferred
async def test_whatTheServerWouldNotTake(stores: Stores) -> None:
    server = stores.serve(*SMALL)
    client, store = server.client(), stores.make()
    key, other = newKey(), newKey()
    await store.commit([create(key, set={"da": b"1"}), create(other)])
    limit = store._servers[0].valueSize
    assert limit is not None and 64_000 < limit < 65_536
    size = len(client.get(nameOf(key)) or b"")
    before = client.stat(b"cmd_set")
    outcomes = await store.commit(
        [change(key, set={"dbig": bytes(limit)}), change(other, set={"dx": b"1"}),
         change(key, set={"db": b"2"}), create(newKey(), set={"dbig": bytes(70_000)})]
    )  # fmt: skip
    kinds = [type(outcome) for outcome in outcomes]
    assert kinds == [SessionTooLarge, Record, Record, SessionTooLarge]
    assert outcomes[0].biggest[0] == ("big", limit) and outcomes[0].limit == limit
    assert int(client.stat(b"cmd_set")) == int(before) + 2
    assert (await store.load([key]))[0].fields == {"da": b"1", "db": b"2"}
    # One that just fits.
    (outcome,) = await store.commit([change(key, set={"dbig": bytes(limit - size - 40)})])
    assert isinstance(outcome, Record)
    assert (await store.load([key]))[0].fields["dbig"] == bytes(limit - size - 40)
    client.close()


@deferred
async def test_tooLargeBeforeTheServerIsKnown(stores: Stores) -> None:
    stores.serve(*SMALL)
    birth = create(newKey(), set={"dbig": bytes(100_000)})
    assert isinstance(await one(stores.make(), birth), (SessionTooLarge, StoreUnavailable))
    store = stores.make()
    outcomes = await store.commit([birth, create(newKey())])
    assert isinstance(outcomes[0], SessionTooLarge) and isinstance(outcomes[1], Record)


@deferred
async def test_evictedSessionsAreAbsent(stores: Stores) -> None:
    server = stores.serve("-m", "2")
    store = stores.make()
    keys = [newKey() for _ in range(6000)]
    for at in range(0, len(keys), 200):
        births = [create(key, set={"da": os.urandom(400)}) for key in keys[at : at + 200]]
        outcomes = await store.commit(births)
        assert all(isinstance(one, (Record, StoreUnavailable)) for one in outcomes)
    records = await store.load(keys)
    absent = [key for key, record in zip(keys, records, strict=True) if record is None]
    assert 2000 < len(absent) < 6000
    refused = await store.commit([change(key, uses=1) for key in absent[:200]])
    assert {type(one) for one in refused} == {SessionGone}
    client = server.client()
    assert int(client.stat(b"evictions")) > 1000
    client.close()


@deferred
async def test_noMemoryAtAll(stores: Stores) -> None:
    """
    A server that does not evict (-M) refuses: that is an outcome.
    """
    stores.serve("-M", "-m", "2")
    store = stores.make()
    kinds: set[type] = set()
    for _ in range(100):
        births = [create(newKey(), set={"da": bytes(5000)}) for _ in range(20)]
        try:
            kinds.update(type(one) for one in await store.commit(births))
        except StoreUnavailable as error:
            assert "out of memory" in str(error)
            break
    else:
        raise AssertionError("it is never full")
    assert kinds <= {Record, StoreUnavailable}


@deferred
async def test_noKeyIsACommand(stores: Stores) -> None:
    server = stores.serve()
    store = stores.make()
    nasty = b"\r\nflush_all\r\n \0\x7f\xff"
    nasty += bytes(32 - len(nasty))
    canary = newKey()
    await store.commit([create(canary), create(nasty, set={"d\r\nflush_all\r\n": nasty})])
    record, _ = await store.load([nasty, canary])
    assert record.fields == {"d\r\nflush_all\r\n": nasty}
    moved = b"\r\nEND\r\n".ljust(32)
    assert isinstance(await one(store, change(nasty, newKey=moved)), Record)
    assert [one is None for one in await store.load([canary, nasty, moved])] == [False, True, False]
    client = server.client()
    assert client.stat(b"cmd_flush") == b"0"
    # As many and as long as can be, in one call.
    app = MemcachedStore(reactor, [("127.0.0.1", server.port)], stores.clock.seconds, b"x" * 200)
    stores.stores.append(app)
    keys = [newKey() for _ in range(1000)]
    assert all(isinstance(it, Record) for it in await app.commit([create(key) for key in keys]))
    assert [record and record.key for record in await app.load(keys)] == keys
    # A key that would be too long goes nowhere.
    before = client.stat(b"cmd_get")
    with pytest.raises(ValueError, match="32 bytes"):
        await store.load([bytes(300)])
    assert client.stat(b"cmd_get") == before
    client.close()


@deferred
async def test_twoAppsOnOneServer(stores: Stores) -> None:
    port = stores.serve().port
    apps = [
        MemcachedStore(reactor, [("127.0.0.1", port)], stores.clock.seconds, prefix)
        for prefix in (b"shop", b"blog", b"x" * 200)
    ]
    key = newKey()
    for number, app in enumerate(apps):
        assert isinstance(await one(app, create(key, set={"dn": b"%d" % number})), Record)
    for number, app in enumerate(apps):
        assert (await app.load([key]))[0].fields == {"dn": b"%d" % number}
        await app.close()


@deferred
async def test_aCommitThatFollowsALoadDoesNotReadAgain(stores: Stores) -> None:
    server = stores.serve()
    store, other = stores.make(), stores.make()
    key, big = newKey(), newKey()
    await store.commit([create(key), create(big, set={"da": bytes(10_000)})])
    client = server.client()

    async def reads(doing: Deferred[Any]) -> int:
        before = int(client.stat(b"cmd_get"))
        await doing
        return int(client.stat(b"cmd_get")) - before

    await store.load([key, big])
    assert await reads(store.commit([change(key, uses=1)])) == 0
    assert await reads(store.commit([change(key, uses=1)])) == 1
    assert await reads(store.commit([change(big, uses=1)])) == 1
    # What another has done meanwhile is noticed.
    await store.load([key])
    await one(other, change(key, set={"dx": b"1"}))
    record = await one(store, change(key, uses=1))
    assert (record.fields, record.uses) == ({"dx": b"1"}, 3)
    # Refusals are never told from memory.
    await store.load([key])
    stores.clock.advance(50.0)
    await one(other, change(key, usedAgo=0.0))
    stores.clock.advance(50.0)
    assert isinstance(await one(store, change(key, uses=1)), Record)
    assert isinstance(await one(store, create(newKey())), Record)
    keys = [newKey() for _ in range(1100)]
    await store.commit([create(key) for key in keys])
    assert None not in await store.load(keys)
    assert len(store._seen) == 1024
    assert await reads(store.commit([change(keys[-1], uses=1)])) == 0
    client.close()


@deferred
async def test_corruptItemsArePutAside(stores: Stores) -> None:
    server = stores.serve()
    store, other = stores.make(), stores.make()
    client = server.client()
    for value in (b"", b"\0", b"garbage", b"\1" + bytes(40)):
        key = newKey()
        with capturedLogs() as events:
            for _ in range(2):  # once is not for all time
                client.set(nameOf(key), value)
                for _ in range(3):
                    loads = [store.load([key]), other.load([key])]
                    assert await gatherResults(loads) == [[None]] * 2
                assert isinstance(await one(store, change(key, uses=1)), SessionGone)
        if value == b"\0":
            continue  # which is a tombstone
        assert len(events) == 2
        assert key.hex() not in str(events)
        assert client.get(nameOf(key, b"!")) == value
        assert 86000 < client.ttl(nameOf(key, b"!")) < 87000
    client.close()


@deferred
async def test_withoutCASItIsRefused(stores: Stores) -> None:
    stores.serve("-C")
    with pytest.raises(StoreUnavailable, match="without CAS: start it without -C"):
        await stores.make().load([newKey()])


@deferred
async def test_oneOfThreeIsDown(stores: Stores) -> None:
    servers = [stores.serve() for _ in range(3)]
    store = stores.make()
    keys = [newKey() for _ in range(60)]
    await store.commit([create(key) for key in keys])
    down = 1
    servers[down].stop()
    for _ in range(2):
        loaded = await store.load(keys)
        written = await store.commit([change(key, uses=1) for key in keys])
        for key, record, outcome in zip(keys, loaded, written, strict=True):
            isDown = store._ring.of(key) == down
            assert isinstance(record, StoreUnavailable if isDown else Record)
            assert isinstance(outcome, StoreUnavailable if isDown else Record)
    gone = [key for key in keys if store._ring.of(key) == down]
    unavailable = [StoreUnavailable] * len(gone)
    assert [type(record) for record in await store.load(gone)] == unavailable
    written = await store.commit([change(key, uses=1) for key in gone])
    assert [type(outcome) for outcome in written] == unavailable
    # A rotation onto it: the old one stays.
    key = next(key for key in keys if store._ring.of(key) != down)
    to = next(key for key in iter(newKey, None) if store._ring.of(key) == down)
    outcomes = await store.commit([change(key, newKey=to), change(key, uses=1)])
    assert [type(outcome) for outcome in outcomes] == [StoreUnavailable, Record]
    assert isinstance((await store.load([key, *keys]))[0], Record)
    servers[down].start()
    while True:
        loaded = await store.load(keys)
        if not any(isinstance(record, StoreUnavailable) for record in loaded):
            break
        await after(0.05)
    for key, record in zip(keys, loaded, strict=True):
        assert (record is None) == (store._ring.of(key) == down), "nobody stands in for it"


def after(seconds: float) -> Deferred[None]:
    done: Deferred[None] = Deferred()
    reactor.callLater(seconds, done.callback, None)
    return done


@deferred
async def test_fourWritersOfOneSession(stores: Stores) -> None:
    """
    Everything that was acknowledged is there, once.
    """
    stores.serve()
    writers = [stores.make() for _ in range(4)]
    key = newKey()
    await one(writers[0], create(key, idle=None))

    async def write(number: int) -> int:
        done = 0
        for turn in range(60):
            it = change(key, set={f"d{number}": b"%d" % turn}, uses=1)
            if turn % 3:
                await writers[number].load([key])
            outcome = await one(writers[number], it)
            assert isinstance(outcome, Record), outcome
            done += 1
        return done

    done = await gatherResults([Deferred.fromCoroutine(write(number)) for number in range(4)])
    record = (await writers[0].load([key]))[0]
    assert (record.uses, record.version) == (sum(done), sum(done) + 1)
    assert record.fields == {f"d{number}": b"59" for number in range(4)}


# Against the model


@pytest.mark.parametrize("seed", range(6))
@deferred
async def test_likeTheMemoryStore(stores: Stores, seed: int) -> None:
    """
    Any batches, on stale keys too, through several stores that are closed and
    made anew: outcomes and records are those of the memory store.
    """
    chance = random.Random(seed)
    for _ in range(1 + seed % 3):
        stores.serve()
    model = MemoryStore(stores.clock.seconds)
    handles = [stores.make() for _ in range(3)]
    keys = [newKey()]
    onto: list[bytes] = []
    recent: list[Change] = []

    def any_(isAlone: bool) -> Change:
        kind = chance.randrange(9)
        key = chance.choice(keys[-12:])
        if kind < 2:
            keys.append(newKey())
            idle = chance.choice([None, 10.0, 30.0])
            return create(keys[-1], idle=idle, absolute=chance.choice([None, 60.0]))
        if kind == 2:
            # Onto one that has ended is another thing here: it stays dead.
            taken = [one for one in keys[-12:] if isAlone and one in model._places]
            to = chance.choice([newKey(), newKey(), newKey(), *taken[:1]])
            (onto if to in keys else keys).append(to)
            return change(key, newKey=to, login=True, principal="ann")
        if kind == 3:
            return change(key, end="logout", set={"dz": b"end"})
        if kind == 4 and recent and recent[-1].birth is None:
            return recent[-1]  # its outcome was lost
        if kind == 5:
            return change(key, expect={"da": chance.choice([None, b"1"])}, set={"da": b"2"})
        return change(
            key,
            set={chance.choice(["da", "db"]): chance.choice([b"1", b"2"])},
            remove=frozenset(chance.choice(["da", "db", "dc"])),
            usedAgo=chance.choice([None, 0.0, 3.0]),
            uses=1,
            **({"idle": chance.choice([None, 5.0, 20.0])} if chance.random() < 0.2 else {}),
        )

    for _ in range(150):
        size = chance.choice([1, 1, 2, 5])
        batch = [any_(size == 1) for _ in range(size)]
        recent += [it for it in batch if it.newKey not in onto]
        at = chance.randrange(3)
        expected = await model.commit(batch)
        outcomes = await handles[at].commit(batch)
        for it, wanted, got in zip(batch, expected, outcomes, strict=True):
            assert type(wanted) is type(got), (it, wanted, got)
            if isinstance(wanted, Record):
                assert wanted == got
        loaded = await handles[chance.randrange(3)].load(keys)
        assert loaded == await model.load(keys)
        if chance.random() < 0.2:
            stores.clock.advance(chance.randrange(1, 8))
        if chance.random() < 0.05:
            await handles[at].close()
            handles[at] = stores.make()


# End to end


class Counting(Resource):
    isLeaf = True

    def render(self, request: Any) -> bytes:
        session = request.getSession()
        if request.method == b"POST":
            session["n"] = session.get("n", 0) + 1
        if request.path == b"/rotate":
            session.rotate()
        if request.path == b"/login":
            session.login("ann")
        if request.path == b"/logout":
            session.expire()
            return b"bye"
        return b"%d" % session.get("n", 0)


@deferred
async def test_throughASite(stores: Stores) -> None:
    server = stores.serve()
    url = f"memcached://127.0.0.1:{server.port}?prefix=e2e"
    sites = [SessionSite(Counting(), store=url, reactor=reactor) for _ in range(2)]
    for site in sites:
        site.startFactory()
    try:
        browser = Browser(sites[0])
        for expected in (b"1", b"2", b"3"):
            assert (await browser.post("/")).body == expected
        # As another process would.
        other = Browser(sites[1], jar=browser.jar)
        assert (await other.get("/")).body == b"3"
        old = server.client()
        assert (await other.post("/rotate")).body == b"4"
        assert (await browser.get("/")).body == b"4"
        assert (await browser.post("/login")).body == b"5"
        assert (await other.get("/")).body == b"5"
        assert (await browser.get("/logout")).body == b"bye"
        assert (await other.get("/")).body == b"0"
        values = [old.get(name) for name in old.names()]
        assert sum(value is not None and len(value) > 20 for value in values) <= 1
        old.close()
        with pytest.raises(NotSupported):
            sites[0].notifyOnExpire(lambda ended: None)
        with pytest.raises(NotSupported, match="memcached cannot find the sessions of a"):
            await sites[0].sessionsOf("ann")
    finally:
        for site in sites:
            site.stopFactory()
        await after(0.1)
