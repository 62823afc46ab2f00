"""
Groups of connections: in one process, and in several on real servers.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import Clock, deferLater
from twisted.internet.threads import deferToThread
from twisted.logger import capturedLogs
from twisted.web.resource import Resource

import twsessions
from twsessions import SessionResource, SessionSite, storeFromURL
from twsessions.errors import NotSupported, StoreError, StoreUnavailable
from twsessions.interfaces import MESSAGE_LIMIT, PUBLISH, Message
from twsessions.sockjs import Multiplexer, SockJSConnection
from twsessions.sockjs.groups import Groups
from twsessions.stores.memory import MemoryStore
from twsessions.test.places import serverFor
from twsessions.test.sockjsclient import Client, WebSocket
from twsessions.test.test_sockjs_driver import World
from twsessions.testing.faulty import FaultyStore

deferred = pytest_twisted.ensureDeferred

# One process


class Members:
    """
    Connections, and what they have been sent.
    """

    def __init__(self) -> None:
        self.world = World()
        self.made: list[tuple[Any, Any]] = []

    def one(self) -> Any:
        driver, wire, connection = self.world.opened(f"id{len(self.made)}")
        self.made.append((connection, wire))
        return connection

    def heard(self, connection: Any) -> list[str]:
        (wire,) = [wire for one, wire in self.made if one is connection]
        return [frame[3:-2] for frame in wire.written if frame[0] == "a"]


@pytest.fixture
def members() -> Members:
    return Members()


def outcome(deferred: Deferred[Any]) -> Any:
    """
    What a Deferred has fired with.
    """
    found: list[Any] = []
    deferred.addCallbacks(found.append, lambda failure: found.append(failure.value))
    assert found, "it has not fired"
    return found[0]


def test_membersHear(members: Members) -> None:
    """
    Members hear, in the order of what is said; others do not.
    """
    groups = Groups()
    a, b, c = members.one(), members.one(), members.one()
    room, other = groups["room"], groups["\ud800 other"]
    for connection in (a, b, b):
        room.join(connection)
    for connection in (b, c):
        other.join(connection)
    assert outcome(room.broadcast("1")) is None
    assert outcome(other.broadcast("2")) is None
    assert outcome(groups["room"].broadcast(b"3")) is None
    assert outcome(groups["empty"].broadcast("4")) is None
    assert outcome(room.broadcast("\ud800")) is None
    assert members.heard(a) == ["1", "3", "\\ud800"]
    assert members.heard(b) == ["1", "2", "3", "\\ud800"]
    assert members.heard(c) == ["2"]


def test_presence(members: Members) -> None:
    groups = Groups()
    a, b = members.one(), members.one()
    room, other = groups["room"], groups["other"]
    assert list(groups) == [] and len(room) == 0 and list(room) == []
    room.join(a)
    room.join(b)
    room.join(a)
    other.join(a)
    assert room == groups["room"] and room != other
    assert list(groups) == ["room", "other"] and len(groups) == 2 and "room" in groups
    assert list(room) == [a, b] and len(room) == 2 and a in room
    for connection in room:  # it may change meanwhile
        room.leave(connection)
        room.leave(connection)
    assert list(room) == [] and a not in room and list(groups) == ["other"]
    assert list(other) == [a]
    room.broadcast("unheard")
    other.broadcast("heard")
    assert members.heard(a) == ["heard"] and members.heard(b) == []


def test_whoIsClosedLeaves(members: Members) -> None:
    """
    Before C{onClose} is called; and nothing of it is left.
    """
    groups = Groups()
    a, b = members.one(), members.one()
    present: list[Any] = []
    a.do[(3000, "Go away!")] = lambda: present.append(a in groups["room"])
    for _ in range(3):
        for name in ("room", "other"):
            groups[name].join(a)
            groups["room"].join(b)
            groups[name].leave(a)
    groups["room"].join(a)
    groups["other"].join(a)
    a.close()
    assert present == [False]
    assert list(groups) == ["room"] and list(groups["room"]) == [b]
    assert list(groups._joined) == [b]
    groups["room"].join(a)  # too late
    assert list(groups["room"]) == [b]
    b.close()
    assert not groups._joined and not groups._members


def test_aMemberThatClosesAnother(members: Members) -> None:
    """
    What happens while a message is told of does not disturb it.
    """
    groups = Groups()
    room = groups["room"]
    a, b = members.one(), members.one()
    room.join(a)
    room.join(b)
    a.notifyOnClose(lambda: room.broadcast("a is gone"))
    a.notifyOnClose(b.close)
    outcome(room.broadcast("1"))
    a.close()
    assert members.heard(a) == ["1"] and members.heard(b) == ["1", "a is gone"]


def test_tooEarlyToJoin() -> None:
    """
    A connection that is not open would never leave.
    """
    groups = Groups()

    class Early(SockJSConnection):
        def __init__(self) -> None:
            with pytest.raises(ValueError, match="not before onOpen"):
                groups["room"].join(self)

    driver = World().connection(application=Early)
    with pytest.raises(ValueError, match="not before onOpen"):
        groups["room"].join(driver.connection)
    assert not groups._joined


def test_channelsAreConnections(members: Members) -> None:
    """
    A channel of a multiplexed connection is a member like any other.
    """
    groups = Groups()

    class Channel(SockJSConnection):
        def onOpen(self, info: Any) -> None:
            groups["room"].join(self)

    driver, wire, _ = members.world.opened("m", Multiplexer({"news": Channel}))
    driver.received(["sub,news"])
    groups["room"].broadcast("1")
    driver.received(["uns,news"])
    groups["room"].broadcast("2")
    assert wire.written == ["o", 'a["msg,news,1"]'] and not groups._joined


@pytest.mark.parametrize("wrong", [None, 1, ["x"]])
def test_whatIsNoMessage(wrong: Any) -> None:
    groups = Groups()
    with pytest.raises(TypeError, match="str or bytes"):
        groups["x"].broadcast(wrong)
    with pytest.raises(TypeError, match="a group's name is a str"):
        groups[wrong]


def test_tooLarge(members: Members) -> None:
    groups, a = Groups(), members.one()
    groups["room"].join(a)
    error = outcome(groups["room"].broadcast("x" * MESSAGE_LIMIT))
    assert type(error) is StoreError and str(MESSAGE_LIMIT) in str(error)
    assert members.heard(a) == []
    most = "x" * (MESSAGE_LIMIT - len("sockjs:room") - 1)
    assert outcome(groups["room"].broadcast(most)) is None
    assert members.heard(a) == [most]


def test_othersTopics(members: Members) -> None:
    """
    The store may carry other messages as well.
    """
    store = MemoryStore(lambda: 0.0)
    groups, a = Groups(store), members.one()
    groups["room"].join(a)
    store.publish([
        Message("room", b"t0"), Message("other:room", b"t1"), Message("others:room", b"t2"),
        Message("sockjs:room", b""), Message("sockjs:room", b"?3"), Message("sockjs:room", b"t4"),
    ])  # fmt: skip
    assert members.heard(a) == ["4"]


def test_severalOnOneSite(members: Members) -> None:
    """
    All groups of a site are the same, for whoever makes them.
    """
    site = SessionSite(Resource(), reactor=Clock())
    one, other = Groups(site), Groups(site)
    a, b = members.one(), members.one()
    one["room"].join(a)
    other["room"].join(b)
    outcome(other["room"].broadcast("1"))
    assert members.heard(a) == members.heard(b) == ["1"]


def test_whatCarriesNoMessages(members: Members, tmp_path: Path) -> None:
    """
    It is said when they are made, or, as the site's store is not made before
    it is needed, at the first use.
    """
    store = storeFromURL(reactor, f"sqlite:///{tmp_path}/s.db")
    with pytest.raises(NotSupported, match=r"Redis or PostgreSQL; for one process.*Groups\(\)"):
        Groups(store, reactor)
    groups = Groups(SessionSite(Resource(), store=store, reactor=Clock()))
    with pytest.raises(NotSupported):
        groups["room"].join(members.one())
    assert len(groups) == 0 and not groups._joined
    assert type(outcome(groups["room"].broadcast("1"))) is NotSupported
    store.close()


def test_whatGroupsAreMadeFor() -> None:
    for wrong in ("memory:", object()):
        with pytest.raises(TypeError, match="SessionSite, a SessionResource or a store"):
            Groups(wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="need a reactor"):
        Groups(FaultyStore(MemoryStore(lambda: 0.0)))


def test_aResource(members: Members) -> None:
    clock, a = Clock(), members.one()
    groups = Groups(SessionResource(Resource(), reactor=clock))
    groups["room"].join(a)
    outcome(groups["room"].broadcast("1"))
    assert members.heard(a) == ["1"]


def test_theStoreHangs(members: Members) -> None:
    """
    Whoever speaks is told after C{storeTimeout}, and sessions do not suffer.
    """
    clock = Clock()
    store = FaultyStore(MemoryStore(clock.seconds))
    site = SessionSite(Resource(), store=store, reactor=clock, storeTimeout=3.0)
    groups, a = Groups(site), members.one()
    groups["room"].join(a)
    store.hang()
    said = [groups["room"].broadcast(str(number)) for number in range(3)]
    clock.advance(2.9)
    assert not any(one.called for one in said)
    clock.advance(0.1)
    assert {type(outcome(one)) for one in said} == {StoreUnavailable}
    for _ in range(2):
        lost = groups["room"].broadcast("lost")
        clock.advance(3.0)
        assert type(outcome(lost)) is StoreUnavailable
    # The breaker is open: not even that long.
    assert type(outcome(groups["room"].broadcast("lost"))) is StoreUnavailable
    assert site.keeper.link.failures == 0 and not site.keeper.link.isOpen
    store.resume()
    clock.advance(10.0)
    assert outcome(groups["room"].broadcast("after")) is None
    assert members.heard(a)[-1] == "after"


def test_missed(members: Members) -> None:
    """
    A loss is logged, and the hook is called; one that fails does no harm.
    """
    store = MemoryStore(lambda: 0.0)
    calls: list[None] = []

    def missed() -> None:
        calls.append(None)
        raise RuntimeError("a hook's own mistake")

    groups, a = Groups(store, missed=missed), members.one()
    groups["room"].join(a)
    with capturedLogs() as events:
        store._listeners.tell(None)
        outcome(groups["room"].broadcast("1"))
    assert calls == [None] and members.heard(a) == ["1"]
    assert "may have been missed" in events[0]["log_format"]
    assert events[1]["log_failure"].type is RuntimeError


def test_notHeardYet(members: Members) -> None:
    store = FaultyStore(MemoryStore(lambda: 0.0))
    store.failNext("subscribe")
    groups = Groups(store, Clock())
    with capturedLogs() as events:
        groups["room"].join(members.one())
    assert [event["reason"] for event in events] == ["the store fails"]


def test_whoOnlySpeaksDoesNotListen() -> None:
    store = FaultyStore(MemoryStore(lambda: 0.0))
    outcome(Groups(store, Clock())["room"].broadcast("1"))
    assert [name for name, _ in store.calls] == ["publish"]


# Several processes

TIMEOUT = 1.0
PATIENCE = 20.0  # seconds

PROGRAM = """
import sys
from twisted.internet import reactor
from twisted.web.resource import Resource
from twsessions import SessionSite
from twsessions.sockjs import SockJSConnection, SockJSResource, broadcast
from twsessions.sockjs.groups import Groups

everybody = set()

class Talker(SockJSConnection):
    def onOpen(self, info):
        everybody.add(self)

    def onClose(self, code, reason):
        everybody.discard(self)

    async def onMessage(self, message):
        if isinstance(message, bytes):
            groups["room"].broadcast(message)
            return
        do, name, text = message.split(" ", 2)
        group = groups[name]
        if do == "join":
            group.join(self)
        elif do == "leave":
            group.leave(self)
        elif do == "count":
            self.send(f"count {len(group)}")
        elif do == "many":
            who, count = text.split()
            for number in range(int(count)):
                said = group.broadcast(f"{who} {number} " + "." * (number % 4 * 4000))
                if number % 100 == 99:
                    await said  # more than there is time for would be refused
        elif do == "say":
            group.broadcast(text)
        elif do == "try":
            group.broadcast(text * 1000).addCallbacks(
                lambda _: self.send("taken"), lambda failure: self.send(failure.type.__name__)
            )

root = Resource()
root.putChild(b"talk", SockJSResource(Talker, reactor))
site = SessionSite(root, store=sys.argv[1], storeTimeout=float(sys.argv[2]))
groups = Groups(site, missed=lambda: broadcast(everybody, "missed"))
port = reactor.listenTCP(0, site, interface="127.0.0.1")
print(port.getHost().port, flush=True)
reactor.run()
"""


class Process:
    """
    A process with some clients.
    """

    def __init__(self, url: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, url, str(TIMEOUT)],
            stdout=subprocess.PIPE,
            env=dict(os.environ, PYTHONPATH=str(Path(twsessions.__file__).parents[1])),
        )
        self.client: Any = None

    def start(self) -> None:
        assert self.process.stdout is not None
        self.client = Client(int(self.process.stdout.readline()))

    def stop(self) -> None:
        if self.client is not None:
            self.client.abort()
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()  # type: ignore[union-attr]

    async def member(self, name: str, group: str = "room") -> WebSocket:
        """
        A client that has joined, and hears what is said.
        """
        socket: WebSocket = await self.client.websocket("/talk/websocket")
        socket.send(f"join {group} -")
        socket.send(f"say {group} hello {name}")
        await until(socket, f"hello {name}")
        return socket


async def until(socket: WebSocket, last: str) -> list[str]:
    """
    All that is heard until something is; within the client's patience.
    """
    heard: list[Any] = []
    while last not in heard:
        heard.append(await socket.message())
    return heard[:-1]


@pytest.fixture(params=["postgresql", "redis"])
def server(request: pytest.FixtureRequest) -> Iterator[Any]:
    made = serverFor(request.param)
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest_twisted.async_yield_fixture
async def processes(server: Any) -> AsyncIterator[list[Process]]:
    made = [Process(server.url) for _ in range(3)]
    try:
        for one in made:
            one.start()
        yield made
    finally:
        for one in made:
            one.stop()


@deferred
async def test_allHearInOneOrder(processes: list[Process]) -> None:
    """
    Two clients in each of three processes; one in each speaks at the same
    time as the others. All hear all of it, in the order of each speaker, and
    on one server in one order.
    """
    sockets = []
    for at, process in enumerate(processes):
        for number in range(2):
            sockets.append(await process.member(f"{at}.{number}"))
    marks = []
    for at, socket in enumerate(sockets[::2]):
        socket.send(f"many room {at} 150")
        socket.send(f"say room end {at}")
    for at in range(3):
        marks.append(f"end {at}")
    heard = []
    for socket in sockets:
        mine: list[str] = []
        while not set(marks) <= set(mine):
            mine.append(await socket.message())  # type: ignore[arg-type]
        heard.append([one for one in mine if not one.startswith("hello")])
    for at in range(3):
        said = [f"{at} {number} " + "." * (number % 4 * 4000) for number in range(150)]
        said.append(f"end {at}")
        for mine in heard:
            assert [one for one in mine if one in said] == said
    assert len(heard[0]) == 3 * 151
    assert all(mine == heard[0] for mine in heard)


@deferred
async def test_groupsApart(processes: list[Process]) -> None:
    """
    Only members hear, until they leave or are closed; binary messages arrive
    as they are.
    """
    a = await processes[0].member("a")
    b = await processes[1].member("b")
    c = await processes[1].member("c", "other")
    await until(a, "hello b")
    c.send("say room 1")
    c.send("say other 2")
    c.send("say room 3")
    assert await until(a, "3") == ["1"] and await until(b, "3") == ["1"]
    b.send(bytes(range(256)))
    assert await a.message() == await b.message() == bytes(range(256))
    b.send("leave room -")
    b.send("say room 4")
    b.send("say other 5")
    assert await a.message() == "4" and await until(c, "5") == ["2"]
    b.send("join other -")
    b.send("say other 6")
    assert await b.message() == "6" and await c.message() == "6"
    b.send("count other -")
    assert await b.message() == "count 2"
    c.stream.abort()
    while True:
        b.send("count other -")
        if await b.message() == "count 1":
            break
    b.send("count room -")
    assert await b.message() == "count 0"


@deferred
async def test_whoSpeaksIsTold(processes: list[Process]) -> None:
    a = await processes[0].member("a")
    b = await processes[1].member("b")
    await until(a, "hello b")
    a.send("try room " + "x" * 300)
    assert await a.message() == "StoreError"
    a.send("try room " + "x" * 200)
    assert {await a.message(), await a.message()} == {"taken", "x" * 200_000}
    assert await b.message() == "x" * 200_000


@deferred
async def test_theServerRestarts(server: Any, processes: list[Process]) -> None:
    """
    Who speaks meanwhile is told in time, members are told that they may have
    missed something, and then all goes on by itself.
    """
    sockets = [await process.member(str(at)) for at, process in enumerate(processes)]
    await until(sockets[0], "hello 2")
    await until(sockets[1], "hello 2")
    server.kill()
    for socket in sockets:
        start = time.monotonic()
        socket.send("try room lost")
        assert (await until(socket, "StoreUnavailable"))[:1] in ([], ["missed"])
        assert time.monotonic() - start < TIMEOUT + 1.5
    await deferToThread(server.start)
    await gatherResults([Deferred.fromCoroutine(until(socket, "missed")) for socket in sockets])
    for socket in sockets:
        # Its breaker may be open yet.
        end = time.monotonic() + PATIENCE
        while True:
            socket.send("try room back")
            said = await socket.message()
            while said not in ("taken", "StoreUnavailable"):
                said = await socket.message()
            if said == "taken":
                break
            assert time.monotonic() < end
            await deferLater(reactor, 0.05, lambda: None)
    for at, socket in enumerate(sockets):
        socket.send(f"many room {at} 20")
    for socket in sockets:
        heard: list[str] = []
        while sum(one.startswith(("0 19", "1 19", "2 19")) for one in heard) < 3:
            heard.append(await socket.message())  # type: ignore[arg-type]
        for at in range(3):
            numbers = [int(one.split()[1]) for one in heard if one.startswith(f"{at} ")]
            assert numbers == list(range(20))


@deferred
async def test_aProcessDies(processes: list[Process]) -> None:
    """
    What it has said arrives up to some point; the others go on.
    """
    a = await processes[0].member("a")
    b = await processes[1].member("b")
    await until(a, "hello b")
    b.send("many room b 5000")
    heard = [await a.message() for _ in range(50)]
    processes[1].process.send_signal(signal.SIGKILL)
    a.send("say room after")
    heard += await until(a, "after")
    numbers = [int(str(one).split()[1]) for one in heard]
    assert numbers == list(range(len(numbers)))
    c = await processes[2].member("c")
    c.send("say room c")
    await until(a, "c")


@deferred
async def test_aSiteThatIsStartedAgain(server: Any) -> None:
    """
    With its new store, without being told; who stays need not join again.
    """
    site: Any = SessionSite(Resource(), store=server.url, reactor=reactor)
    other = storeFromURL(reactor, server.url)
    groups, members = Groups(site), Members()
    a, first = members.one(), None
    for count in 1, 2:
        site.doStart()
        if count == 1:
            groups["room"].join(a)
        assert PUBLISH in site.keeper.link.capabilities
        await groups["room"].broadcast("mine")
        await other.publish([Message("sockjs:room", b"tother")])
        end = time.monotonic() + PATIENCE
        while members.heard(a) != ["mine", "other"] * count:
            assert time.monotonic() < end, members.heard(a)
            await deferLater(reactor, 0.01, lambda: None)
        store = site.keeper.link.store
        site.doStop()
        while site._keeper is not None:
            await deferLater(reactor, 0.01, lambda: None)
        with pytest.raises(StoreUnavailable):
            await store.load([])
        assert store is not first
        first = store
    a.close()
    await other.close()
