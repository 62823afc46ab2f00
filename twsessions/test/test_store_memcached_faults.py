"""
The memcached store and all that can happen to a server and the way there.
"""

from __future__ import annotations

import random
import re
import socket
import time
from binascii import b2a_base64
from collections.abc import Callable
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor as theReactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.logger import capturedLogs, formatEvent

from twsessions.core.delta import Change
from twsessions.core.record import Record
from twsessions.errors import SessionGone, StoreUnavailable
from twsessions.stores.link import StoreLink
from twsessions.stores.memcached import MemcachedStore
from twsessions.test.memcachedserver import Server
from twsessions.test.real import PATIENCE
from twsessions.testing.contract import change, create, newKey

reactor: Any = theReactor
deferred = pytest_twisted.ensureDeferred


def after(seconds: float) -> Deferred[None]:
    done: Deferred[None] = Deferred()
    reactor.callLater(seconds, done.callback, None)
    return done


async def eventually(holds: Callable[[], Any], seconds: float = 10.0) -> Any:
    """
    Try until it does not fail with L{StoreUnavailable}.
    """
    end = time.monotonic() + seconds
    while True:
        try:
            return await holds()
        except StoreUnavailable:
            assert time.monotonic() < end, "it does not recover"
            await after(0.02)


async def one(store: Any, change: Change) -> Any:
    (outcome,) = await store.commit([change])
    return outcome


def portOf(listening: Any) -> int:
    port: int = listening.getHost().port
    return port


# The way to the server, cut at any byte


class Near(Protocol):
    """
    The store's end of a proxied connection.
    """

    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy
        self.far: Any = None
        self.early: list[bytes] = []

    def connectionMade(self) -> None:
        self.proxy.open.add(self)
        endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", self.proxy.target)
        factory = Factory.forProtocol(lambda: Far(self))
        endpoint.connect(factory).addErrback(lambda _: self.transport.abortConnection())

    def dataReceived(self, data: bytes) -> None:
        self.proxy.seen += data
        data, isCut = self.proxy.pass_(data, "out")
        if self.far is None:
            self.early.append(data)
        else:
            self.far.transport.write(data)
        if isCut:
            self.cut()

    def cut(self) -> None:
        # What was let through arrives.
        self.transport.abortConnection()
        if self.far is not None:
            self.far.transport.loseConnection()

    def connectionLost(self, reason: Any = None) -> None:
        self.proxy.open.discard(self)
        if self.far is not None:
            self.far.transport.loseConnection()


class Far(Protocol):
    """
    The server's end.
    """

    def __init__(self, near: Near) -> None:
        self.near = near

    def connectionMade(self) -> None:
        self.near.far = self
        self.transport.write(b"".join(self.near.early))

    def dataReceived(self, data: bytes) -> None:
        data, isCut = self.near.proxy.pass_(data, "back")
        self.near.transport.write(data)
        if isCut:
            self.near.transport.loseConnection()
            self.transport.loseConnection()

    def connectionLost(self, reason: Any = None) -> None:
        self.near.transport.loseConnection()


class Proxy:
    """
    Between a store and a server.

    @ivar left: bytes that are let through in a direction; L{None}: all.
    @ivar seen: what the store has sent.
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self.left: dict[str, int | None] = {"out": None, "back": None}
        self.open: set[Near] = set()
        self.seen = b""
        factory = Factory.forProtocol(lambda: Near(self))
        factory.noisy = False
        self._listening = reactor.listenTCP(0, factory, interface="127.0.0.1")
        self.port = portOf(self._listening)

    def pass_(self, data: bytes, direction: str) -> tuple[bytes, bool]:
        left = self.left[direction]
        if left is None:
            return data, False
        data = data[:left]
        self.left[direction] = left - len(data)
        return data, left == len(data)

    def close(self) -> Any:
        for near in list(self.open):
            near.transport.abortConnection()
        return self._listening.stopListening()


class Place:
    """
    Servers, proxies, stores: ended after the test.
    """

    def __init__(self) -> None:
        self.servers: list[Server] = []
        self.proxies: list[Proxy] = []
        self.stores: list[MemcachedStore] = []

    def serve(self, *options: str) -> Server:
        self.servers.append(Server(*options))
        return self.servers[-1]

    def proxy(self, server: Server) -> Proxy:
        self.proxies.append(Proxy(server.port))
        return self.proxies[-1]

    def store(self, *ports: int, timeout: float = PATIENCE) -> MemcachedStore:
        addresses = [("127.0.0.1", port) for port in ports]
        store = MemcachedStore(reactor, addresses, reactor.seconds, timeout=timeout)
        self.stores.append(store)
        return store


@pytest_twisted.async_yield_fixture
async def place() -> Any:
    made = Place()
    before = set(reactor.getDelayedCalls())
    yield made
    for store in made.stores:
        await store.close()
    for proxy in made.proxies:
        await proxy.close()
    for server in made.servers:
        server.stop()
    left = [call for call in reactor.getDelayedCalls() if call not in before and call.active()]
    ours = [call for call in left if not re.search("in_reactor|Deferred.callback", str(call))]
    assert not ours, "a call is left behind"


KINDS = ("birth", "write", "rotate", "end")


@pytest.mark.parametrize("direction", ["out", "back"])
@pytest.mark.parametrize("kind", KINDS)
@deferred
async def test_cutAtEveryByte(place: Place, kind: str, direction: str) -> None:
    """
    What was under way is wholly done or not at all; sent again it is applied
    once; the store recovers by itself.
    """
    server = place.serve()
    proxy, direct = place.proxy(server), place.store(server.port)
    store = place.store(proxy.port)
    await eventually(lambda: store.load([newKey()]))
    cut = 0
    while True:
        key, to = newKey(), newKey()
        if kind != "birth":
            await one(direct, create(key, set={"da": b"1"}))
        it = {
            "birth": create(key, set={"da": b"1", "db": b"2"}),
            "write": change(key, set={"db": b"2"}, uses=1),
            "rotate": change(key, set={"db": b"2"}, newKey=to, uses=1),
            "end": change(key, end="logout"),
        }[kind]
        await eventually(lambda: store.load([newKey()]))
        proxy.left[direction] = cut
        try:
            outcome = await one(store, it)
        except StoreUnavailable:
            outcome = None
        proxy.left[direction] = None
        whole = {"da": b"1", "db": b"2"}
        old, new = await direct.load([key, to])
        if kind == "birth":
            assert old is None or old.fields == whole
        elif kind == "end":
            assert new is None and (old is None or old.fields == {"da": b"1"})
        elif kind == "write":
            assert old is not None and old.fields in ({"da": b"1"}, whole)
        else:
            assert new is None or new.fields == whole
            assert new is not None or old is not None, "the data is lost"
        if isinstance(outcome, Record):
            break  # the cut came after the whole
        assert outcome is None
        # As another request of the same user would, once the store is there.
        again = await eventually(lambda: one(store, it))  # noqa: B023
        old, new = await direct.load([key, to])
        if kind == "end":
            assert isinstance(again, (Record, SessionGone)) and old is None
        else:
            living = new if kind == "rotate" else old
            assert (old is None) == (kind == "rotate")
            assert isinstance(again, Record) and living is not None
            assert (living.fields, living.uses) == (whole, it.uses)
        cut += 1
    # Births and writes take two commands, and their replies some bytes each.
    assert cut > (100 if direction == "out" else 5)
    assert not re.search(rb"^(set|replace|append) ", proxy.seen, re.M)


@deferred
async def test_refused(place: Place) -> None:
    server = place.serve()
    store = place.store(server.port)
    key = newKey()
    server.stop()
    for _ in range(3):
        with pytest.raises(StoreUnavailable, match="127.0.0.1:.*ConnectionRefused"):
            await store.load([key])
        with pytest.raises(StoreUnavailable):
            await store.commit([create(key)])
    server.start()
    assert isinstance(await eventually(lambda: one(store, create(key))), Record)


@pytest.mark.parametrize("isConnected", [True, False])
@deferred
async def test_hung(place: Place, isConnected: bool) -> None:
    server = place.serve()
    store = place.store(server.port, timeout=0.5)
    key, late = newKey(), newKey()
    if isConnected:
        born = create(key)
        await eventually(lambda: store.commit([born]))
    server.pause()
    began = time.monotonic()
    waits = [store.load([key]), store.commit([create(late)]), store.load([newKey()])]
    for wait in waits:
        with pytest.raises(StoreUnavailable, match="in time"):
            await wait
    assert time.monotonic() - began < 3.0
    # From now on it costs nearly nothing, most of the time.
    began = time.monotonic()
    for _ in range(20):
        with pytest.raises(StoreUnavailable):
            await store.load([key])
    assert time.monotonic() - began < 5.0
    server.resume()
    (record,) = await eventually(lambda: store.load([key]))
    assert (record is not None) == isConnected
    (record,) = await eventually(lambda: store.load([late]))
    assert isinstance(record, Record) or record is None


@deferred
async def test_oneOfTwoHangs(place: Place) -> None:
    """
    After the first call the sessions of the other server are as quick as ever.
    """
    servers = place.serve(), place.serve()
    store = place.store(*(server.port for server in servers), timeout=1.0)
    keys = [newKey() for _ in range(20)]
    await store.commit([create(key) for key in keys])
    servers[1].pause()
    with capturedLogs() as logs:
        await store.load(keys)
        began = time.monotonic()
        for _ in range(20):
            loaded = await store.load(keys)
            for key, record in zip(keys, loaded, strict=True):
                assert isinstance(record, StoreUnavailable if store._ring.of(key) else Record)
        assert time.monotonic() - began < 5.0, "each took a quarter of the timeout"
    (event,) = logs
    assert f"away: the memcached server at 127.0.0.1:{servers[1].port}" in formatEvent(event)
    servers[1].resume()

    async def whole() -> None:
        if not all(isinstance(record, Record) for record in await store.load(keys)):
            raise StoreUnavailable

    with capturedLogs() as logs:
        await eventually(whole)
    (event,) = logs
    assert "available again" in formatEvent(event)


@deferred
async def test_oneOfTwoHangsInACommit(place: Place) -> None:
    """
    What takes several trips to the other server has the time for them, in the
    very first commit.
    """
    servers = place.serve(), place.serve()
    store = place.store(*(server.port for server in servers), timeout=1.0)
    keys = [newKey() for _ in range(20)]
    await store.commit([create(key) for key in keys])
    servers[1].pause()
    changes = [change(key, uses=1) for key in keys]
    moving = next(key for key in keys if not store._ring.of(key))
    to = next(key for key in iter(newKey, None) if not store._ring.of(key))
    changes.append(change(moving, newKey=to))
    for key, outcome in zip([*keys, to], await store.commit(changes), strict=True):
        assert isinstance(outcome, StoreUnavailable if store._ring.of(key) else Record)
    servers[1].resume()


@deferred
async def test_oneOfTwoIsDeadAndTheLinkStaysClosed(place: Place) -> None:
    """
    However many calls in a row are for its sessions, others' are answered; only
    when both are dead does the breaker open.
    """
    servers = place.serve(), place.serve()
    store = place.store(*(server.port for server in servers), timeout=1.0)
    keys = [newKey() for _ in range(20)]
    await store.commit([create(key) for key in keys])
    link = StoreLink(reactor, store)
    lost, kept = ([key for key in keys if store._ring.of(key) == n] for n in (0, 1))
    servers[0].stop()
    for key in 5 * lost:
        with pytest.raises(StoreUnavailable):
            await link.load(key)
    assert isinstance(await link.load(kept[0]), Record)
    assert not link.isOpen
    servers[1].stop()
    for _ in range(30):
        if not link.isOpen:
            with pytest.raises(StoreUnavailable):
                await link.load(kept[0])
    assert link.isOpen
    await link.close()


GREETING = (
    b"STAT pid 1\r\nSTAT time 1700000000\r\nEND\r\n"
    b"STAT item_size_max 1048576\r\nSTAT cas_enabled yes\r\nEND\r\n"
)


class Liar(Protocol):
    """
    Says hello like memcached, and then something else.
    """

    said: bytes = b""
    hello: bytes = GREETING
    made = 0
    up = 0

    def connectionMade(self) -> None:
        Liar.made += 1
        Liar.up += 1
        self.greeted = False

    def connectionLost(self, reason: Any = None) -> None:
        Liar.up -= 1

    def dataReceived(self, data: bytes) -> None:
        self.transport.write(Liar.said if self.greeted else Liar.hello)
        self.greeted = True


GARBAGE = [
    b"HTTP/1.1 400 Bad Request\r\n\r\n",
    b"\0\xff" * 3000,
    b"\r\n",
    b"12\r\n",
    b"STORED\r\nSTORED\r\nSTORED\r\nSTORED\r\n",
    b"ERROR\r\n",
    b"CLIENT_ERROR bad command line format\r\n",
    b"SERVER_ERROR out of memory \x1b[31m\r\n",
    b"VALUE somebody-else 0 3 1\r\nabc\r\nEND\r\n",
    b"VALUE twsessions:KEY 0 99999999999 1\r\n",
    b"VALUE twsessions:KEY 0 -3 1\r\nabc\r\nEND\r\n",
    b"VALUE twsessions:KEY 0 3\r\nabc\r\nEND\r\n",
    b"VALUE twsessions:KEY 0 3 x\r\nabc\r\nEND\r\n",
    b"STAT a b\r\nEND\r\n",
    b"DELETED\r\n",
    b"VALUE ",
]


@deferred
async def test_garbage(place: Place) -> None:
    listening = reactor.listenTCP(0, Factory.forProtocol(Liar), interface="127.0.0.1")
    store = place.store(portOf(listening), timeout=0.2)
    key = newKey()
    name = b2a_base64(key, newline=False)
    try:
        Liar.hello = GREETING
        with capturedLogs() as events:
            for said in GARBAGE:
                Liar.said = said.replace(b"KEY", name)
                calls: list[Callable[[], Any]] = [
                    lambda: store.load([key]),
                    lambda: store.commit([change(key, uses=1)]),
                    lambda: store.commit([change(key, newKey=newKey())]),
                    lambda: store.commit([change(key, end="logout")]),
                ]
                for call in calls:
                    while True:
                        before = Liar.made
                        with pytest.raises(StoreUnavailable) as raised:
                            await call()
                        assert "\x1b" not in str(raised.value)
                        if before < Liar.made or "in time" not in str(raised.value):
                            break
                        await after(0.05)  # it was not even tried
        assert not [event for event in events if "log_failure" in event]
        # More than 30 days are told as a date of the server's.
        day = 86400
        assert abs(store._servers[0]._expiry(31.0 * day) - 1700000000 - 31 * day) < 100
        for hello in (b"HTTP/1.0 200 OK\r\n\r\n", b"ERROR\r\nERROR\r\n", b"END\r\nEND\r\n",
                      b"CLIENT_ERROR unauthenticated\r\nCLIENT_ERROR unauthenticated\r\n",
                      GREETING.replace(b"1048576", b"big"), b"x" * 10_000):  # fmt: skip
            Liar.hello = hello
            before = Liar.made
            while Liar.made == before:
                with pytest.raises(StoreUnavailable):
                    await store.load([key])
                await after(0.02)
        await store.close()
        while Liar.up:
            await after(0.01)
    finally:
        await listening.stopListening()


@deferred
async def test_restartUnderLoad(place: Place) -> None:
    """
    All sessions are absent, nothing else happens.
    """
    server = place.serve()
    links = [StoreLink(reactor, place.store(server.port)) for _ in range(3)]
    keys = [newKey() for _ in range(50)]
    await gatherResults([links[0].commit(create(key)) for key in keys])
    isOver = False
    seen: dict[str, int] = {}

    async def use(link: StoreLink, key: bytes) -> None:
        while not isOver:
            try:
                record = await link.load(key)
                what = "absent" if record is None else "there"
                await link.commit(change(key, set={"da": b"1"}, usedAgo=0.0))
            except (StoreUnavailable, SessionGone) as error:
                what = type(error).__name__
                await after(0.01)
            seen[what] = seen.get(what, 0) + 1

    users = [Deferred.fromCoroutine(use(link, key)) for link in links for key in keys]
    await after(0.2)
    assert set(seen) == {"there"}
    seen.clear()
    server.stop()
    await after(0.1)
    server.start()
    for link in links:
        await eventually(lambda: link.load(newKey()))  # noqa: B023
    await after(0.1)
    seen.clear()
    await after(0.1)
    assert set(seen) <= {"SessionGone", "absent"}
    isOver = True
    await gatherResults(users)
    fresh = newKey()
    await links[0].commit(create(fresh))
    record = await links[1].load(fresh)
    assert record is not None
    await gatherResults([link.close() for link in links])


@deferred
async def test_whatWasReadBeforeARestartIsNotTrusted(place: Place) -> None:
    """
    CAS numbers begin again: one that fits by chance must not overwrite.
    """
    server = place.serve()
    store, other = place.store(server.port), place.store(server.port)
    key = newKey()
    await one(store, create(key, set={"da": b"old"}))
    assert (await store.load([key]))[0] is not None
    server.stop()
    server.start()
    # The same number, and the same key (which would be a wonder).
    await eventually(lambda: one(other, create(key, set={"da": b"new"})))
    record = await eventually(lambda: one(store, change(key, set={"db": b"1"})))
    assert record.fields == {"da": b"new", "db": b"1"}


@deferred
async def test_closeWhileItHangs(place: Place) -> None:
    server = place.serve()
    store = place.store(server.port, timeout=1.0)
    key = newKey()
    await store.commit([create(key)])
    server.pause()
    wait = store.commit([change(key, uses=1)])
    closed = [store.close(), store.close()]
    with pytest.raises(StoreUnavailable):
        await wait
    for one_ in closed:
        await one_
    with pytest.raises(StoreUnavailable, match="closed"):
        await store.load([key])
    server.resume()


@deferred
async def test_closeWhileItConnects(place: Place) -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        store = place.store(deaf.getsockname()[1], timeout=0.3)
        wait = store.load([newKey()])
        closed = store.close()
        with pytest.raises(StoreUnavailable):
            await wait
        await closed


@deferred
async def test_manyCallsAtOnceAreBounded(place: Place) -> None:
    server = place.serve()
    store = place.store(server.port, timeout=1.0)
    key = newKey()
    await store.commit([create(key)])
    server.pause()
    failures: list[Any] = []
    waits = [store.load([key]).addErrback(failures.append) for _ in range(6000)]
    assert len(failures) > 1000, "more than the queue takes"
    await gatherResults(waits)
    assert len(failures) == 6000
    assert all(failure.check(StoreUnavailable) for failure in failures)
    server.resume()
    assert isinstance((await eventually(lambda: store.load([key])))[0], Record)


@deferred
async def test_writersWhoseConnectionsAreCut(place: Place) -> None:
    """
    What one has acknowledged every reader sees from then on, whoever is cut
    where; a logout ends it for all.
    """
    server = place.serve()
    reader = place.store(server.port)
    key = newKey()
    await one(reader, create(key))
    chance = random.Random(3)
    cuts = 0

    async def write(name: str) -> None:
        nonlocal cuts
        proxy = place.proxy(server)
        store = place.store(proxy.port)
        for turn in range(60):
            it = change(key, set={name: b"%d" % turn})
            direction = chance.choice(["out", "back"])
            proxy.left[direction] = chance.randrange(600)
            while True:
                try:
                    outcome = await one(store, it)
                    break
                except StoreUnavailable:
                    cuts += 1
                    proxy.left = {"out": None, "back": None}
                    await after(0.01)
            assert isinstance(outcome, Record)
            (record,) = await reader.load([key])
            assert record is not None and record.fields[name] == b"%d" % turn
            for other, value in outcome.fields.items():
                assert int(record.fields[other]) >= int(value), "it went back"

    names = ["da", "db", "dc"]
    await gatherResults([Deferred.fromCoroutine(write(name)) for name in names])
    (record,) = await reader.load([key])
    assert record is not None and dict(record.fields) == dict.fromkeys(names, b"59")
    assert cuts > 30
    await one(reader, change(key, end="logout"))
    assert await reader.load([key]) == [None]
