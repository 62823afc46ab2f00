"""
Applications: what they are told, in which order, and what their mistakes do.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.defer import Deferred, execute, succeed
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher

from twsessions.sockjs import (
    ConnectionInfo,
    Multiplexer,
    SockJSConnection,
    SockJSResource,
    broadcast,
)
from twsessions.sockjs.driver import Driver
from twsessions.sockjs.protocol import makerOf
from twsessions.sockjs.service import Full, Service
from twsessions.sockjs.session import Close
from twsessions.sockjs.settings import SockJSSettings
from twsessions.sockjs.transports import xhr
from twsessions.web.alarm import Alarm


class Wire:
    """
    A carrier that keeps what is written.
    """

    form = xhr.FORMAT

    def __init__(self, frames: float = float("inf")) -> None:
        self.frames = frames
        self.written: list[str] = []
        self.ended: Any = ""
        self.listens: list[bool] = []
        self.pings = 0

    @property
    def isFull(self) -> bool:
        return len(self.written) >= self.frames

    def write(self, data: bytes) -> None:
        assert not self.ended
        self.written.append(data.decode("utf-8").removesuffix("\n"))

    def finish(self, why: Close | None) -> None:
        self.ended = why or "full"

    def abort(self) -> None:
        self.ended = "aborted"

    def ping(self) -> bool:
        self.pings += 1
        return True

    def listen(self, wanted: bool) -> None:
        self.listens.append(wanted)


class Talk(SockJSConnection):
    """
    Does as it is told, and remembers what happens to it.
    """

    def __init__(self) -> None:
        self.said: list[Any] = []
        self.do: dict[Any, Callable[[], object]] = {}

    def onOpen(self, info: ConnectionInfo) -> object:
        return self._note("open")

    def onMessage(self, message: Any) -> object:
        return self._note(message)

    def onClose(self, code: int, reason: str) -> object:
        return self._note((code, reason))

    def _note(self, what: Any) -> object:
        self.said.append(what)
        do = self.do.get(what)
        return None if do is None else do()


class World:
    """
    A service, and connections to it.
    """

    def __init__(self, **settings: Any) -> None:
        self.clock = Clock()
        self.service = Service(SockJSSettings(**settings), Alarm(self.clock))

    def connection(self, id: str | None = "x", application: Any = Talk) -> Driver:
        info = ConnectionInfo(ip="192.0.2.1", transport="xhr")
        return self.service.make(makerOf(application), info, id)

    def opened(self, id: str | None = "x", application: Any = Talk) -> tuple[Driver, Wire, Any]:
        driver, wire = self.connection(id, application), Wire()
        assert driver.attach(wire)
        return driver, wire, driver.connection


@pytest.fixture
def logged() -> Any:
    """
    What has been logged with a failure.
    """
    events: list[Any] = []

    def see(event: Any) -> None:
        if event.get("log_failure") is not None:
            events.append(event["log_failure"].value)

    globalLogPublisher.addObserver(see)
    yield events
    globalLogPublisher.removeObserver(see)


def test_fromOpenToClose() -> None:
    """
    Open, messages, close: each once, in this order.
    """
    driver, wire, talk = World().opened()
    assert talk.info.ip == "192.0.2.1" and not talk.isClosed
    driver.received(["a", "b"])
    talk.send("c")
    talk.close(3001, "enough")
    talk.close(3002, "again")
    driver.received(["late"])
    talk.send("late")
    assert talk.said == ["open", "a", "b", (3001, "enough")]
    assert wire.written == ["o", 'a["c"]', 'c[3001,"enough"]']
    assert wire.ended == Close(3001, "enough")
    assert talk.isClosed and talk.closeReason == Close(3001, "enough")


def test_closeInOpen() -> None:
    """
    It may be closed before it has begun.
    """
    world = World()
    driver = world.connection()
    talk: Any = driver.connection
    talk.do["open"] = talk.close
    wire = Wire()
    assert not driver.attach(wire)
    assert wire.written == ["o", 'c[3000,"Go away!"]']
    assert talk.said == ["open", (3000, "Go away!")]


@pytest.mark.parametrize("kind", ["deferred", "chained", "coroutine"])
def test_handlersTakeTurns(kind: str) -> None:
    """
    While a handler is under way, what comes waits, the close as well. Whatever
    else it returns says nothing.
    """
    driver, _, talk = World().opened()
    gates: list[Deferred[Any]] = [Deferred(), Deferred()]

    def slow(gate: Deferred[Any]) -> Any:
        async def wait() -> None:
            await gate

        if kind == "chained":
            return succeed(None).addCallback(lambda _: gate)
        return gate if kind == "deferred" else wait()

    talk.do["d"] = lambda: "anything"
    talk.do["a"] = lambda: slow(gates[0])
    talk.do["c"] = lambda: slow(gates[1])
    driver.received(["a", "b"])
    driver.received(["c", "d"])
    driver.closedByClient(Close(1000, "bye"))
    assert talk.said == ["open", "a"] and talk.isClosed
    gates[0].callback(None)
    assert talk.said == ["open", "a", "b", "c"]
    gates[1].callback(None)
    assert talk.said == ["open", "a", "b", "c", "d", (1000, "bye")]


@pytest.mark.parametrize("kind", ["fired", "coroutine"])
def test_quickTurns(kind: str) -> None:
    """
    The close is told after the messages before it, when their handlers are
    quicker than the one they waited for as well.
    """
    driver, _, talk = World().opened()
    gate: Deferred[None] = Deferred()

    async def done() -> None:
        pass

    talk.do["a"] = lambda: gate
    talk.do["b"] = done if kind == "coroutine" else lambda: succeed(None)
    driver.received(["a", "b", "c"])
    driver.closedByClient(Close(1000, "bye"))
    gate.callback(None)
    assert talk.said == ["open", "a", "b", "c", (1000, "bye")]


@pytest.mark.parametrize("where", ["open", "a"])
def test_closeIsNotToldWithin(where: str) -> None:
    """
    A handler that closes its connection is done before C{onClose} is called.
    """
    driver = World().connection()
    talk: Any = driver.connection

    def close() -> None:
        talk.close()
        talk.said.append("done")

    talk.do[where] = close
    driver.attach(Wire())
    driver.received(["a", "b"])
    assert talk.said[-3:] == [where, "done", (3000, "Go away!")]


def test_openTakesItsTime() -> None:
    """
    Messages wait until the application is ready for them.
    """
    world = World()
    driver = world.connection()
    talk: Any = driver.connection
    gate: Deferred[None] = Deferred()
    talk.do["open"] = lambda: gate
    driver.attach(Wire())
    driver.received(["a"])
    assert talk.said == ["open"]
    gate.callback(None)
    assert talk.said == ["open", "a"]


@pytest.mark.parametrize("how", ["raise", "fail", "late"])
@pytest.mark.parametrize("where", ["open", "a", "c"])
def test_failure(how: str, where: str, logged: list[Any]) -> None:
    """
    A handler that fails is logged, and closes the connection, once.
    """
    world = World()
    driver = world.connection()
    talk: Any = driver.connection
    gate: Deferred[None] = Deferred()

    def fail() -> object:
        if how == "raise":
            raise KeyError("oops")
        if how == "late":
            return gate

        async def fails() -> None:
            raise KeyError("oops")

        return fails()

    talk.do[where] = fail
    wire = Wire()
    driver.attach(wire)
    driver.received(["a", "b"])
    driver.received(["c"])
    if how == "late":
        gate.errback(KeyError("oops"))
    assert [type(one) for one in logged] == [KeyError]
    assert talk.said[-1] == (1011, "Internal error") and wire.written[-1] == (
        'c[1011,"Internal error"]'
    )
    assert talk.said[:-1] == ["open", "a", "b", "c"][: ["open", "a", "b", "c"].index(where) + 1]


def test_toldOnce() -> None:
    """
    What comes as soon as the client is read again may close the connection.
    """
    driver, wire, talk = World().opened()
    gate: Deferred[None] = Deferred()
    talk.do["a"], talk.do["b"] = lambda: gate, talk.close
    driver.received(["a"])
    wire.listen = lambda wanted: driver.received(["b"])  # type: ignore[method-assign]
    gate.callback(None)
    assert talk.said == ["open", "a", "b", (3000, "Go away!")]


def test_closeWhileBusy() -> None:
    """
    A handler that closes its connection and goes on is not told twice.
    """
    driver, _, talk = World().opened()
    gate: Deferred[None] = Deferred()

    async def closing() -> None:
        talk.close()
        await gate

    talk.do["a"] = closing
    driver.received(["a", "b"])
    assert talk.said == ["open", "a"]
    gate.callback(None)
    assert talk.said == ["open", "a", (3000, "Go away!")]

    driver, _, talk = World().opened()
    waits: Deferred[None] = Deferred()
    talk.do["a"] = lambda: waits
    talk.do["b"] = talk.close
    driver.received(["a", "b", "c"])
    waits.callback(None)
    assert talk.said == ["open", "a", "b", (3000, "Go away!")]


@pytest.mark.parametrize("how", ["raise", "fail", "coroutine"])
def test_failingClose(how: str, logged: list[Any]) -> None:
    """
    A failure in onClose is logged; nothing else can be done about it.
    """
    driver, _, talk = World().opened()

    async def fails() -> None:
        raise ZeroDivisionError

    ways = {"raise": lambda: 1 / 0, "fail": lambda: execute(lambda: 1 / 0), "coroutine": fails}
    talk.do[(1000, "")] = ways[how]
    driver.closedByClient(Close(1000, ""))
    assert [type(one) for one in logged] == [ZeroDivisionError]


FLOODS = pytest.mark.parametrize("flood", [["x" * 70_000], [""] * 1100], ids=["large", "many"])


@FLOODS
def test_inboxIsBounded(flood: list[str]) -> None:
    """
    A client that floods a busy application is not read any more, and is thrown
    out if that does not help.
    """
    world = World(maxQueueBytes=10_000)
    driver, wire, talk = world.opened()
    gate: Deferred[None] = Deferred()
    talk.do["a"] = lambda: gate
    driver.received(["a"])
    driver.received(flood)
    assert wire.listens == [False]
    room = driver.room()
    assert room is not None and not room.called
    driver.received(["x" * 10_000])
    assert wire.written[-1] == 'c[1013,"Too many messages"]'
    assert room.called, "nobody waits for room in what is closed"
    gate.callback(None)
    assert talk.said == ["open", "a", (1013, "Too many messages")]


@FLOODS
def test_roomAgain(flood: list[str]) -> None:
    """
    When it has caught up, it is read again, and not before.
    """
    driver, wire, talk = World().opened()
    gates: list[Deferred[None]] = [Deferred(), Deferred()]
    talk.do["a"], talk.do["b"] = lambda: gates[0], lambda: gates[1]
    driver.received(["a", "b", *flood])
    room = driver.room()
    assert room is not None
    gates[0].callback(None)
    assert not room.called and wire.listens == [False]
    gates[1].callback(None)
    assert room.called and wire.listens[-1] is True and driver.room() is None


class Source:
    """
    A producer.
    """

    def __init__(self) -> None:
        self.told: list[str] = []

    def pauseProducing(self) -> None:
        self.told.append("pause")

    def resumeProducing(self) -> None:
        self.told.append("resume")

    def stopProducing(self) -> None:
        self.told.append("stop")


def test_producer() -> None:
    """
    A producer rests while the client cannot follow, and between two polls.
    """
    driver, wire, talk = World().opened()
    source = Source()
    talk.registerProducer(source, True)
    with pytest.raises(RuntimeError):
        talk.registerProducer(Source(), True)
    with pytest.raises(ValueError):
        talk.registerProducer(Source(), False)
    assert source.told == []
    driver.pause(wire)
    talk.write(b"a")
    assert source.told == ["pause"] and wire.written == ["o"]
    driver.resume(wire)
    assert source.told == ["pause", "resume"] and wire.written[-1] == 'a["a"]'
    talk.close()
    assert source.told == ["pause", "resume", "pause", "stop"]
    late = Source()
    talk.registerProducer(late, True)
    assert late.told == ["stop"]


def test_producerOfPolls() -> None:
    """
    One that begins between two of them waits for the next as well.
    """
    driver, wire, talk = World().opened()
    first, second = Source(), Source()
    talk.registerProducer(first, True)
    wire.frames = 2
    talk.send("a")
    assert wire.ended == "full" and first.told == ["pause"]
    talk.unregisterProducer()
    talk.registerProducer(second, True)
    assert second.told == ["pause"]
    driver.attach(Wire())
    assert second.told == ["pause", "resume"] and first.told == ["pause"]


class Broken(Source):
    """
    A producer that fails.
    """

    def stopProducing(self) -> None:
        raise KeyError("oops")


class Unpausable(Broken):
    """
    One that fails earlier.
    """

    pauseProducing = Broken.stopProducing


def test_failingProducer(logged: list[Any]) -> None:
    """
    It costs its own connection, and no other.
    """
    world = World()
    bad, wire, talk = world.opened("bad")
    _, _, other = world.opened("other")
    talk.registerProducer(Unpausable(), True)
    wire.frames = 2
    broadcast([talk, other], "a")
    assert other.said == ["open"] and not other.isClosed
    assert talk.said == ["open", (1011, "Internal error")]
    assert [type(one) for one in logged] == [KeyError] * 2
    assert wire.ended == "full"
    again = Wire()
    bad.attach(again)
    assert again.written == ['c[1011,"Internal error"]']


@pytest.mark.parametrize("how", ["time", "service"])
def test_failingProducerAtTheEnd(how: str, logged: list[Any]) -> None:
    """
    Others that end at the same time do end.
    """
    world = World()
    talks: list[Any] = []
    for id in "abcd":
        driver = world.connection(id)
        driver.attach(Wire(frames=1))
        talks.append(driver.connection)
        talks[-1].registerProducer(Broken(), True)
    if how == "service":
        world.service.closeAll(Close(1006, "bye"))
    world.clock.advance(6)
    assert [talk.said[-1][0] for talk in talks] == [1006] * 4
    assert len(logged) == 4 and not world.service._all


def test_polls() -> None:
    """
    Each poll takes what there is; without one for too long the client is gone.
    """
    world = World()
    driver, talk = world.connection(), None
    talk = driver.connection
    first = Wire(frames=1)
    assert not driver.attach(first)
    assert (first.written, first.ended) == (["o"], "full")
    talk.send("a")
    talk.send("b")
    second = Wire(frames=1)
    driver.attach(second)
    assert second.written == ['a["a","b"]']
    waits = Wire(frames=1)
    assert driver.attach(waits)
    talk.send("c")
    assert (waits.written, waits.ended) == (['a["c"]'], "full")
    third = Wire(frames=1)
    assert driver.attach(third)
    world.clock.advance(25)
    assert third.written == ["h"] and third.ended == "full"
    world.clock.advance(4.9)
    assert not talk.isClosed
    world.clock.advance(0.2)
    assert talk.said[-1][0] == 1006 and talk.closeReason is not None  # type: ignore[attr-defined]
    assert not talk.closeReason.forced and world.service.find("x") is None
    assert not world.clock.getDelayedCalls()


def test_whoDoesNotComeBackIsHeard() -> None:
    """
    What had arrived from a client is handed out, though it is gone.
    """
    world = World()
    driver = world.connection()
    talk: Any = driver.connection
    gate: Deferred[None] = Deferred()
    talk.do["a"] = lambda: gate
    driver.attach(Wire(frames=1))
    driver.received(["a", "b"])
    world.clock.advance(5)
    assert talk.isClosed and talk.said == ["open", "a"]
    gate.callback(None)
    assert talk.said == ["open", "a", "b", (1006, "The client did not come back")]


def test_theLastPoll() -> None:
    """
    The time for the next one begins with a message as well.
    """
    world = World()
    driver = world.connection()
    for wire in Wire(frames=1), Wire(frames=1):
        driver.attach(wire)
    world.clock.advance(10)
    driver.connection.send("a")
    assert wire.ended == "full"
    world.clock.advance(5)
    assert driver.connection.isClosed and not world.service._all


@pytest.mark.parametrize("comesBack", [False, True])
def test_tooMuchWaits(comesBack: bool) -> None:
    """
    A client that is too slow is thrown out, once; if it comes back soon it
    hears why.
    """
    world = World(maxQueueBytes=1000)
    driver, wire, talk = world.opened()
    gate: Deferred[None] = Deferred()
    talk.do["a"] = lambda: gate
    driver.received(["a", "b"])
    world.clock.advance(10)
    driver.pause(wire)
    for _ in range(20):
        talk.send("x" * 100)
    assert wire.written == ["o"] and wire.ended == "aborted"
    gate.callback(None)
    gone = (1013, "Too much is waiting to be sent")
    assert talk.said == ["open", "a", gone]
    assert world.service.stats.describe(0)["xhr"]["current"] == 0
    if comesBack:
        again = Wire()
        assert not driver.attach(again)
        assert again.written == ['c[1013,"Too much is waiting to be sent"]']
    world.clock.advance(5)
    assert not world.service._all and talk.said[-2:] == ["a", gone]


class Stopping(Clock):
    """
    A reactor that is going to stop.
    """

    def addSystemEventTrigger(
        self, phase: str, event: str, callback: Callable[..., Any], *args: Any
    ) -> None:
        assert (phase, event) == ("before", "shutdown")
        self.stop = lambda: callback(*args)


def test_shutdown() -> None:
    """
    Clients are told that the server is going away, and it waits until that is on its way.
    """
    with pytest.raises(RuntimeError, match="reactor"):
        _ = SockJSResource(Talk).service
    reactor = Stopping()
    service = SockJSResource(Talk, reactor=reactor).service  # type: ignore[arg-type]
    assert reactor.stop() is None
    driver = service.make(Talk, ConnectionInfo(transport="xhr"), "x")
    wire = Wire()
    driver.attach(wire)
    stopped = reactor.stop()
    assert wire.written == ["o", 'c[1001,"The server is going away"]'] and not stopped.called
    reactor.advance(1)
    assert stopped.called


def test_pingTimeout() -> None:
    """
    A websocket whose client is silent is given up.
    """
    world = World(pingTimeout=10)
    driver, wire, talk = world.opened(id=None)
    world.clock.advance(25)
    assert wire.pings == 1 and wire.written == ["o", "h"]
    driver.session.heard()
    world.clock.advance(25)
    assert wire.pings == 2 and not talk.isClosed
    world.clock.advance(10)
    assert wire.ended == "aborted" and talk.said[-1][0] == 1006
    assert not world.service._all and not world.clock.getDelayedCalls()


@pytest.mark.parametrize("how", ["ours", "ours, slow", "theirs"])
def test_aCarrierThatHangs(how: str) -> None:
    """
    A connection that does not end although it was closed is broken off, also
    if there was no way to tell it.
    """
    world = World()
    driver, wire, talk = world.opened(id=None)
    world.clock.advance(10)
    if how == "ours, slow":
        driver.pause(wire)
    if how == "theirs":
        driver.closedByClient(Close(1000, "bye"))
    else:
        talk.close()
    assert wire.ended == (Close(3000, "Go away!") if how == "ours" else "")
    world.clock.advance(5)
    assert wire.ended == "aborted"


def test_full() -> None:
    """
    There is a limit to connections, and places become free.
    """
    world = World(maxSessions=2)
    drivers = [world.opened(id)[0] for id in "ab"]
    with pytest.raises(Full):
        world.connection("c")
    drivers[0].end(Close(3000, ""))
    world.clock.advance(5)
    world.connection("c")


def test_oneCallForTenThousand() -> None:
    """
    Ten thousand connections need one delayed call, and it ends them all when
    they fall due, with pauses.
    """
    world = World()
    talks = []
    for number in range(10_000):
        driver, wire, talk = world.opened(str(number))
        driver.lost(wire, Close(1002, "Connection interrupted"))
        talks.append(talk)
        assert len(world.clock.getDelayedCalls()) == 1
    for _ in range(10_000):
        if not world.service._all:
            break
        world.clock.advance(0.01 if world.clock.seconds() > 4 else 4.5)
    assert not world.service._all and not world.clock.getDelayedCalls()


def test_closedAndLost() -> None:
    """
    A client that closes its connection and breaks it has closed it once.
    """
    world = World()
    driver, wire, talk = world.opened(id=None)
    driver.closedByClient(Close(1000, "bye"))
    driver.lost(wire, Close(1006, "Connection lost"))
    assert talk.said == ["open", (1000, "bye")] and not world.service._all
    assert world.service.stats.describe(0)["xhr"]["current"] == 0


def test_statistics() -> None:
    """
    Connections and messages are counted, and averaged over ten seconds.
    """
    world = World()
    driver, _, talk = world.opened()
    for _ in range(10):
        driver.received(["a", "b"])
        talk.send("c")
        world.clock.advance(1)
    found = world.service.stats.describe(world.clock.seconds())["xhr"]
    assert found["current"] == 1 and found["opened"] == 1
    assert (found["received"], found["receivedPerSecond"]) == (20, 2.0)
    assert (found["sent"], found["sentPerSecond"]) == (10, 1.0)
    world.clock.advance(4)
    found = world.service.stats.describe(world.clock.seconds())["xhr"]
    assert found["receivedPerSecond"] == pytest.approx(1.2)
    world.clock.advance(1000)
    driver.end(Close(3000, ""))
    talk.send("late")
    world.clock.advance(10)
    found = world.service.stats.describe(world.clock.seconds())["xhr"]
    assert found["current"] == 0 and found["sentPerSecond"] == 0 and found["sent"] == 10


def test_broadcastEncodesOnce() -> None:
    """
    Everybody gets the same bytes; closed ones nothing.
    """
    world = World()
    many = [world.opened(str(number)) for number in range(5)]
    bytesWritten: list[bytes] = []
    for _, wire, _ in many:
        wire.write = bytesWritten.append  # type: ignore[method-assign]
    many[0][0].lost(many[0][1], Close(1002, ""))
    broadcast([talk for _, _, talk in many], "hello")
    assert bytesWritten == [b'a["hello"]\n'] * 4
    assert len({id(data) for data in bytesWritten}) == 1
    with pytest.raises(TypeError):
        broadcast([], 3)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [(999, ""), (1001, ""), (2999, ""), (5000, ""), (3000, "x" * 124)])
def test_badClose(bad: tuple[int, str]) -> None:
    """
    Only what can be sent is a close code, and a reason.
    """
    _, _, talk = World().opened()
    with pytest.raises(ValueError):
        talk.close(*bad)
    assert not talk.isClosed


def test_notifyOnClose(logged: list[Any]) -> None:
    """
    One that fails keeps nobody else from hearing of it; who asks late hears at once.
    """
    driver, _, talk = World().opened()
    told: list[str] = []
    talk.notifyOnClose(lambda: 1 / 0)
    talk.notifyOnClose(lambda: told.append("first"))
    talk.do[(3000, "Go away!")] = lambda: told.append("onClose")
    talk.close()
    talk.notifyOnClose(lambda: told.append("late"))
    assert told == ["first", "onClose", "late"]
    assert [type(one) for one in logged] == [ZeroDivisionError]


def test_twoAreDue() -> None:
    """
    The end of the first may be what the second is told, and no sign of life is
    due any more.
    """
    world = World()
    _, wire, talk = world.opened("stays")
    world.clock.advance(10)
    gone, lost, other = world.opened("goes")
    other.do[(1006, "The client did not come back")] = lambda: talk.send("he has gone")
    world.clock.advance(9)
    gone.lost(lost, None)  # type: ignore[arg-type]
    world.clock.advance(7)
    assert wire.written == ["o", 'a["he has gone"]'] and wire.ended == ""
    assert world.service.find("stays") is not None and not talk.isClosed


def test_badMessage() -> None:
    _, _, talk = World().opened()
    for bad in 3, None, ["a"], {"a": 1}:
        with pytest.raises(TypeError):
            talk.send(bad)


def test_notAnApplication() -> None:
    with pytest.raises(TypeError):
        makerOf(3)
    with pytest.raises(TypeError, match="SockJSConnection"):
        World().connection(application=dict)


class Lines(Protocol):
    """
    An ordinary Twisted protocol.
    """

    def connectionMade(self) -> None:
        self.heard: list[Any] = []
        self.transport.write(b"hello")  # type: ignore[union-attr]

    def dataReceived(self, data: bytes) -> None:
        self.heard.append(data)
        self.transport.writeSequence([b"you said ", data])  # type: ignore[union-attr]
        if data == b"bye":
            self.transport.loseConnection()  # type: ignore[union-attr]

    def connectionLost(self, reason: Any) -> None:  # type: ignore[override]
        self.heard.append(reason.type)


def test_protocol() -> None:
    """
    A factory of protocols is an application.
    """
    made: list[Lines] = []

    class LinesFactory(Factory):
        def buildProtocol(self, addr: Any) -> Lines:
            made.append(Lines())
            return made[-1]

    factory = LinesFactory()
    world = World()
    driver, wire, _ = world.opened("a", factory)
    assert made[0].transport.getPeer().host == "192.0.2.1"  # type: ignore[union-attr]
    driver.received(["ünï", "bye", "late"])
    assert made[0].heard == ["ünï".encode(), b"bye", ConnectionDone]
    assert wire.written == [
        "o",
        'a["hello"]',
        'a["you said ünï"]',
        'a["you said bye"]',
        'c[3000,"Go away!"]',
    ]
    driver, wire, _ = world.opened("b", factory)
    driver.lost(wire, Close(1006, "Connection lost"))
    assert made[1].heard == [ConnectionLost]


def test_refusingFactory() -> None:
    """
    A factory may build nothing: that refuses the client.
    """

    class Refusing(Factory):
        def buildProtocol(self, addr: Any) -> None:
            return None

    wire = Wire()
    assert not World().connection("a", Refusing()).attach(wire)
    assert wire.written == ["o", 'c[3000,"Refused"]']


class TestChannels:
    """
    Several applications over one connection.
    """

    def channels(self, **settings: Any) -> tuple[World, Driver, Wire, list[Any]]:
        world, made = World(**settings), []

        def make() -> Talk:
            made.append(Talk())
            return made[-1]

        driver, wire, _ = world.opened("x", Multiplexer({"ann": make, "böb 1": make}))
        return world, driver, wire, made

    def test_eachItsOwn(self) -> None:
        """
        Who subscribes is connected, and gets what is sent on the channel.
        """
        _, driver, wire, made = self.channels()
        driver.received(["sub,ann", "msg,ann,a,b", "msg,other,c", "sub,other", "msg,b%F6b%201,d"])
        driver.received([b"sub,b%F6b%201"])
        assert len(made) == 1
        driver.received(["sub,b%F6b%201", "msg,b%F6b%201,", "nonsense", "", "sub,ann"])
        ann, bob = made
        assert ann.said == ["open", "a,b"] and bob.said == ["open", ""]
        ann.send("x,y")
        bob.send("ü")
        assert wire.written == ["o", 'a["msg,ann,x,y"]', 'a["msg,b%F6b%201,ü"]']
        assert ann.info.ip == "192.0.2.1"

    def test_bytes(self) -> None:
        """
        They go as text, as everywhere but on raw websockets.
        """
        _, _, wire, (ann, bob) = self.opened(["sub,ann", "sub,b%F6b%201"])
        broadcast([ann, bob], b"\xff")
        ann.send("\ud800".encode("utf-8", "surrogatepass") + b"!")
        bob.send("\ud800")
        assert wire.written[1:] == [
            'a["msg,ann,\\ufffd"]',
            'a["msg,b%F6b%201,\\ufffd"]',
            'a["msg,ann,\\ufffd\\ufffd\\ufffd!"]',
            'a["msg,b%F6b%201,\\ud800"]',
        ]

    def test_ends(self) -> None:
        """
        A channel can be closed by each side, and opened again; all end with the
        connection.
        """
        world, driver, wire, made = self.channels()
        driver.received(["sub,ann", "uns,ann", "msg,ann,late", "sub,ann"])
        assert made[0].said == ["open", (1000, "Unsubscribed")]
        made[1].close(3005, "done")
        assert made[1].said == ["open", (3005, "done")] and wire.written == ["o", 'a["uns,ann"]']
        driver.received(["sub,ann", "sub,b%F6b%201"])
        assert len(world.service._all) == 3
        driver.closedByClient(Close(1000, "bye"))
        assert [talk.said[-1] for talk in made[2:]] == [(1000, "bye")] * 2
        driver.lost(wire, Close(1006, ""))
        world.clock.advance(6)
        assert not world.service._all and not world.clock.getDelayedCalls()

    @pytest.mark.parametrize(
        "end",
        [
            lambda driver, wire: driver.end(Close(4001, "Session ended")),
            lambda driver, wire: driver.closedByClient(Close(1000, "bye")),
            lambda driver, wire: driver.lost(wire, Close(1006, "", forced=False)),
        ],
        ids=["ours", "theirs", "nobodys"],
    )
    def test_whatWaitsAtTheEnd(self, end: Callable[[Driver, Wire], None]) -> None:
        """
        It is as without channels: handed out, unless this side has closed the
        connection.
        """
        world, driver, wire, made = self.opened(["sub,ann"])
        plain, plainWire, talk = world.opened("y")
        gate: Deferred[None] = Deferred()
        made.append(talk)
        for one in made:
            one.do["a"] = lambda: gate
        plain.received(["a", "b"])
        driver.received(["msg,ann,a", "msg,ann,b"])
        end(plain, plainWire)
        end(driver, wire)
        gate.callback(None)
        assert made[0].said == talk.said and made[0].closeReason == talk.closeReason

    def test_noEndIsDropped(self) -> None:
        """
        Messages may be; that a channel is closed is told in any case.
        """
        _, driver, wire, made = self.channels(maxQueueBytes=1000, overflow="dropOldest")
        driver.received(["sub,ann", "sub,b%F6b%201"])
        ann, bob = made
        driver.pause(wire)
        ann.send("lost")
        ann.close()
        for number in range(20):
            bob.send(f"{number}")
        driver.resume(wire)
        told = json.loads(wire.written[-1][1:])
        assert told[0] == "uns,ann" and told[1:] == [
            f"msg,b%F6b%201,{number}" for number in range(21 - len(told), 20)
        ]
        assert driver.session.dropped == 22 - len(told)
        driver.pause(wire)
        for _ in range(20):  # but nothing grows without end
            driver.received(["sub,ann"])
            made[-1].close()
        assert driver.session.closed == Close(1013, "Too much is waiting to be sent")

    def test_full(self) -> None:
        """
        Channels count as connections.
        """
        _, driver, wire, made = self.channels(maxSessions=2)
        driver.received(["sub,ann", "sub,b%F6b%201"])
        assert len(made) == 1 and wire.written[-1] == 'a["uns,b%F6b%201"]'

    def test_slowest(self) -> None:
        """
        The client is not read while one of its channels is too busy.
        """
        _, driver, wire, made = self.channels()
        driver.received(["sub,ann", "sub,b%F6b%201"])
        gate: Deferred[None] = Deferred()
        made[0].do["a"] = lambda: gate
        driver.received(["msg,ann,a", "msg,ann," + "x" * 70_000])
        assert wire.listens[-1:] == [False]
        driver.received(["msg,b%F6b%201,quick"])
        assert made[1].said[-1] == "quick" and wire.listens[-1:] == [False]
        gate.callback(None)
        assert wire.listens[-1] is True

    def test_slowestOfPolls(self) -> None:
        """
        Who sends by requests waits for their answers.
        """
        _, driver, _, made = self.channels()
        driver.received(["sub,ann", "sub,b%F6b%201"])
        gates: list[Deferred[None]] = [Deferred(), Deferred()]
        for talk, gate in zip(made, gates, strict=True):
            talk.do["a"] = lambda gate=gate: gate
        for name in "ann", "b%F6b%201":
            driver.received([f"msg,{name},a", f"msg,{name}," + "x" * 70_000])
        room = driver.room()
        assert room is not None
        gates[0].callback(None)
        assert not room.called
        gates[1].callback(None)
        assert room.called and driver.room() is None

    def test_endOfTheSlowest(self) -> None:
        """
        Nobody waits for a channel that is closed.
        """
        for end in "uns,ann", "ours", None:
            _, driver, wire, (ann, *_) = self.opened(["sub,ann"])
            ann.do["a"] = Deferred
            driver.received(["msg,ann,a", "msg,ann," + "x" * 70_000])
            room = driver.room()
            assert room is not None
            if end is None:
                driver.closedByClient(Close(1000, ""))
            elif end == "ours":
                ann.close()
            else:
                driver.received([end])
            assert room.called and wire.listens[-1] is True

    def opened(self, first: list[str]) -> tuple[World, Driver, Wire, list[Any]]:
        world, driver, wire, made = self.channels()
        driver.received(first)
        return world, driver, wire, made

    def test_producers(self) -> None:
        """
        Those of all channels rest while the client cannot follow.
        """
        _, driver, wire, (ann, bob) = self.opened(["sub,ann", "sub,b%F6b%201"])
        sources = Source(), Source()
        ann.registerProducer(sources[0], True)
        driver.pause(wire)
        bob.registerProducer(sources[1], True)
        assert [source.told for source in sources] == [["pause"]] * 2
        driver.resume(wire)
        driver.received(["uns,ann"])
        assert [source.told for source in sources] == [
            ["pause", "resume", "stop"],
            ["pause", "resume"],
        ]

    def test_producersOfWhoIsSlow(self) -> None:
        """
        One that begins meanwhile rests as well.
        """
        world, driver, wire, made = self.channels()
        driver.pause(wire)
        driver.received(["sub,ann"])
        source = Source()
        made[0].registerProducer(source, True)
        assert source.told == ["pause"]

    def test_quiet(self) -> None:
        """
        The outer connection has the signs of life, and a channel needs none.
        """
        world, driver, wire, made = self.channels(pingTimeout=10)
        driver.received(["sub,ann"])
        for _ in range(20):
            world.clock.advance(9)
            driver.session.heard()
        assert not made[0].isClosed and set(wire.written) == {"o", "h"}

    def test_producersOfPolls(self) -> None:
        """
        One that goes on when there is a poll leaves no room for the next.
        """
        _, driver, wire, (ann, bob) = self.opened(["sub,ann", "sub,b%F6b%201"])

        class Eager(Source):
            def __init__(self, talk: Any) -> None:
                super().__init__()
                self.talk = talk

            def resumeProducing(self) -> None:
                super().resumeProducing()
                self.talk.send("more")

        sources = Eager(ann), Eager(bob)
        for source in sources:
            source.talk.registerProducer(source, True)
        driver.pause(wire)
        wire.frames = 2
        driver.resume(wire)
        assert wire.written == ["o", 'a["msg,ann,more"]'] and wire.ended == "full"
        assert [source.told for source in sources] == [["pause", "resume", "pause"], ["pause"]]

    def test_names(self) -> None:
        """
        A name is a str, spelled as JavaScript's escape() does it.
        """
        name = "a+\x80\xff\u0100\u2603\U0001f40d\ud800"
        driver, _, _ = World().opened("x", Multiplexer({name: Talk}))
        driver.received(["sub,a+%80%FF%u0100%u2603%uD83D%uDC0D%uD800"])
        assert len(driver.service._all) == 2  # type: ignore[attr-defined]
        for bad in "", 3:
            with pytest.raises(TypeError):
                Multiplexer({bad: Talk})  # type: ignore[dict-item]
        with pytest.raises(TypeError):
            Multiplexer({"a": 3})
