"""
Very many requests: of nobody, of somebody who guesses, of one session; and
sessions with very many keys. What they cost is counted, not timed.
"""

from __future__ import annotations

import gc
import os
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.web.server import NOT_DONE_YET

from twsessions import SessionSite
from twsessions.core.codec import decode
from twsessions.core.delta import Change
from twsessions.core.ids import keyOf
from twsessions.errors import StoreUnavailable
from twsessions.test.page import Does, Page
from twsessions.test.slowstore import SlowStore
from twsessions.testing.browser import Browser, Response

MANY = 1000
TRIP = 0.01  # seconds to the far store and back


class FarStore(SlowStore):
    """
    Counts what it was asked for.
    """

    def count(self, operation: str) -> int:
        return sum(name == operation for name, _ in self.calls)

    @property
    def changes(self) -> int:
        return sum(len(args[0]) for name, args in self.calls if name == "commit")


class World:
    """
    A site on one of the stores: C{"memory:"}, C{"sqlite"} or C{"far"}.
    """

    def __init__(self, kind: str, path: Path) -> None:
        self.clock = Clock()
        self.clock.advance(1_000_000)
        self.kind = kind
        self.far = FarStore(self.clock, TRIP)
        urls: dict[str, Any] = {"sqlite": f"sqlite:///{path}/s.db", "far": self.far}
        self.url = urls.get(kind, kind)
        self.sites: list[Any] = []
        self.browsers: list[Browser] = []

    def site(self, **settings: Any) -> Any:
        site: Any = SessionSite(Page(), reactor=self.clock, store=self.url, **settings)
        site.page = site.resource
        site.doStart()
        self.sites.append(site)
        site.log = lambda request: None  # an observer may keep what is logged
        return site

    def browser(self, site: Any) -> Browser:
        browser = Browser(site)
        self.browsers.append(browser)
        return browser

    def settle(self, seconds: float = 0.5) -> None:
        for _ in range(round(seconds / TRIP)):
            self.clock.advance(TRIP)

    def result(self, deferred: Deferred[Any]) -> Any:
        results: list[Any] = []
        deferred.addBoth(results.append)
        for _ in range(50):
            if not results:
                self.clock.advance(TRIP)
        assert results, "nothing has come"
        if hasattr(results[0], "raiseException"):
            results[0].raiseException()
        return results[0]

    def records(self, site: Any) -> list[Any]:
        return list(self.result(site.keeper.link.iterate(None, 1_000_000)))

    def visit(self, browser: Browser, does: Does) -> Response:
        page: Any = browser.site
        page.page.does = does
        response: Response = self.result(browser.get("/"))
        return response

    def timers(self) -> int:
        return len(self.clock.getDelayedCalls())

    def stop(self) -> None:
        for browser in self.browsers:
            browser.close()
        for site in self.sites:
            site.doStop()
        self.settle()
        self.clock.advance(5)
        assert self.timers() == 0


@pytest.fixture(params=["memory:", "sqlite", "far"])
def world(request: Any, tmp_path: Path) -> Iterator[World]:
    it = World(request.param, tmp_path)
    yield it
    it.stop()


@pytest.fixture
def far(tmp_path: Path) -> Iterator[World]:
    it = World("far", tmp_path)
    yield it
    it.stop()


class Client(StringTransport):
    """
    Sends requests, one after the other, and counts the answers.

    @ivar codes: of the answers.
    @ivar cookies: how many were set.
    @ivar heard: is called with each answer's head, before anything else.
    """

    def __init__(self, site: Any, heard: Callable[[bytes], object] | None = None) -> None:
        super().__init__()
        site.timeOut = None
        self.codes: list[int] = []
        self.cookies = 0
        self.heard = heard
        self.channel = site.buildProtocol(IPv4Address("TCP", "192.0.2.1", 1))
        self.channel.makeConnection(self)

    def write(self, data: bytes) -> None:
        if data.startswith(b"HTTP/1.1 "):
            self.codes.append(int(data[9:12]))
            if self.heard is not None:
                self.heard(data)
        self.cookies += data.count(b"\r\nSet-Cookie:")

    def writeSequence(self, data: Any) -> None:
        self.write(b"".join(data))

    def ask(self, cookie: bytes = b"", path: bytes = b"/") -> None:
        line = b"Cookie: twsession=%s\r\n" % cookie if cookie else b""
        self.channel.dataReceived(b"GET %s HTTP/1.1\r\nHost: x\r\n%s\r\n" % (path, line))

    def close(self) -> None:
        self.channel.connectionLost(Failure(ConnectionDone()))


def flood(
    world: World, site: Any, does: Does, cookies: Callable[[], bytes], count: int = MANY
) -> int:
    """
    Ask for a page very often, many times at once where the store is far.

    @return: how many cookies were set.
    """
    site.page.does = does
    clients = [Client(site) for _ in range(100 if world.kind == "far" else 1)]
    for _ in range(count // 100):
        for n in range(100):
            clients[n % len(clients)].ask(cookies())
        if world.kind == "far":
            world.settle(8 * TRIP)
    for client in clients:
        client.close()
    assert [code for client in clients for code in client.codes] == [200] * count
    return sum(client.cookies for client in clients)


def grows(work: Callable[[], object]) -> int:
    """
    Bytes that are held each time C{work} has been done once more: what leaks
    does so every time, and a table that grew for good only once.
    """
    work()
    grown = []
    tracemalloc.start()
    try:
        work()
        for _ in range(3):
            gc.collect()
            before = tracemalloc.get_traced_memory()[0]
            work()
            gc.collect()
            grown.append(tracemalloc.get_traced_memory()[0] - before)
            if grown[-1] < 4096:
                break
    finally:
        tracemalloc.stop()
    return min(grown)


def steps(prepare: Callable[[int], Callable[[], object]], size: int) -> int:
    """
    Instructions of Python's virtual machine that work takes, with lines and
    calls.

    @param prepare: gives the work to be done with so many of something.
    """
    _count(prepare(size))  # Python 3.12 sees a function's instructions from its second call on
    return _count(prepare(size))


def _count(work: Callable[[], object]) -> int:
    count = 0

    def trace(frame: Any, event: str, _: object) -> Any:
        nonlocal count
        frame.f_trace_opcodes = True
        count += 1
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


def assertLinear(prepare: Callable[[int], Callable[[], object]], count: int) -> None:
    """
    @param prepare: gives the work to be done with so many of something.
    """
    few, many = steps(prepare, count), steps(prepare, 4 * count)
    assert many < 6 * few, (few, many)  # 16 times would be quadratic


def nobody() -> bytes:
    return b""


def guess() -> bytes:
    return os.urandom(32).hex().encode()


def look(request: Any) -> bytes:
    return str(request.getSession().get("k")).encode()


def put(request: Any) -> bytes:
    request.getSession()["k"] = 1
    return b"put"


def assertNothingIsLeft(site: Any) -> None:
    keeper = site.keeper
    assert (site.sessions, len(keeper._due)) == ({}, 0)
    assert not (
        keeper.rotations.moving
        or keeper.touches.waiting
        or keeper.watch._sessions
        or keeper._resting
    )
    assert not (keeper.watch._asking or keeper.logins._newcomers or keeper._loading)


# Floods


@pytest.mark.parametrize("cookies", [nobody, guess])
def test_visitorsOfWhomNothingIsStored(world: World, cookies: Callable[[], bytes]) -> None:
    """
    Without a cookie or with a guessed one: no record, timer, session or cookie.
    """
    site = world.site(createOn="write")
    world.settle(2)
    timers = world.timers()
    asked = 0 if cookies is nobody else MANY
    assert flood(world, site, look, cookies) == 0
    assert world.records(site) == []
    assertNothingIsLeft(site)
    world.settle(0.1)
    assert world.timers() <= timers + 1  # that of a sweep, or of the link
    assert (site.keeper.link.loads, site.keeper.link.commits) == (asked, 0)


def test_memoryOfVisitorsOfWhomNothingIsStored(world: World) -> None:
    site = world.site(createOn="write")
    for cookies in (nobody, guess):

        def work(cookies: Callable[[], bytes] = cookies) -> None:
            flood(world, site, look, cookies, 1000)
            world.far.calls.clear()

        assert grows(work) < 20_000  # 20 bytes for each


def test_visitorsThatHaveSessions(world: World) -> None:
    """
    With createOn="access" each has one, and all of it goes when its time is
    over. In memory it is no record as long as it is empty.
    """
    site = world.site()
    world.settle(2)
    timers = world.timers()
    assert flood(world, site, look, nobody) == MANY
    local = world.kind == "memory:"
    assert len(site.sessions) == (MANY if local else 0)
    assert len(world.records(site)) == (0 if local else MANY)
    assert world.timers() <= timers + 2
    world.clock.advance(901)
    world.settle(2)
    assert world.records(site) == []
    assertNothingIsLeft(site)


def test_memoryOfVisitorsThatHaveSessions(world: World) -> None:
    site = world.site()

    def work() -> None:
        flood(world, site, put, nobody, 1000)
        world.clock.advance(901)
        world.settle(2)
        assertNothingIsLeft(site)
        world.far.calls.clear()

    assert grows(work) < 20_000


def test_guessesAreAskedForTogether(far: World) -> None:
    """
    Not more sessions are read than there were requests, in few round trips; of
    one request not more than four.
    """
    site = far.site(createOn="write")
    site.page.does = look
    clients = [Client(site) for _ in range(1000)]
    for client in clients:
        client.ask(guess())
    far.settle()
    assert [client.codes for client in clients] == [[200]] * 1000
    loads = [args[0] for name, args in far.far.calls if name == "load"]
    assert sum(map(len, loads)) == 1000
    assert len(loads) <= 1 + 1000 // 256 + 1
    client = clients[0]
    line = b"; ".join(b"twsession=" + guess() for _ in range(50))
    client.channel.dataReceived(b"GET / HTTP/1.1\r\nHost: x\r\nCookie: %s\r\n\r\n" % line)
    far.settle()
    assert client.codes == [200, 200]
    assert sum(len(args[0]) for name, args in far.far.calls if name == "load") <= 1004


def test_usersFallDueOnTimeMeanwhile(world: World) -> None:
    """
    However many others come and fall due with them.
    """
    site = world.site()
    due: dict[object, float] = {}
    late: dict[object, float] = {}
    ended: dict[object, float] = {}

    def heard(event: Any) -> None:
        if "user" in event.data:
            late[event.data["user"]] = world.clock.seconds() - due[event.data["user"]]

    site.notifyOnExpire(heard)

    def user(request: Any) -> bytes:
        session = request.getSession()
        name = session["user"] = len(due)
        due[name] = world.clock.seconds() + 900
        session.notifyOnExpire(lambda: ended.setdefault(name, world.clock.seconds()))
        return b""

    for _ in range(20):
        world.visit(world.browser(site), user)
        flood(world, site, put, nobody, 200)
        world.clock.advance(1)
    world.clock.advance(901 - (world.clock.seconds() - min(due.values()) + 900) - 10)
    for _ in range(60):
        flood(world, site, put, guess, 100)
        world.clock.advance(0.5)
    assert sorted(late) == sorted(ended) == list(range(20))
    # A store is asked each second, and what it says takes a way or two.
    assert max(late.values()) <= 2.5
    assert max(ended[name] - due[name] for name in due) <= 2.5


def login(request: Any) -> bytes:
    request.getSession().login("alice")
    return b"welcome"


def test_loginsOfOnePrincipal(world: World) -> None:
    """
    There are never more of the principal's sessions than there may be, and
    nothing is left of the others.
    """
    site = world.site(maxSessionsPerPrincipal=3)
    bob = world.browser(site)
    world.visit(bob, lambda r: r.getSession().login("bob") and b"")

    def work() -> None:
        flood(world, site, login, nobody, 500)
        assert len(world.result(site.sessionsOf("alice"))) == 3
        assert len(world.records(site)) == 4
        assert len(site.sessions) <= (4 if world.kind == "memory:" else 0)
        world.far.calls.clear()

    assert grows(work) < 20_000
    assert world.visit(bob, lambda r: r.getSession().principal).body == b"'bob'"


def test_loginsAtTheSameTime(far: World) -> None:
    """
    Each session that is too many is ended once, and not by everybody; who came
    last stays. Ids of old are remembered until the new ones are stored.
    """
    site = far.site(maxSessionsPerPrincipal=3)
    browsers = [far.browser(site) for _ in range(300)]
    for browser in browsers:
        site.page.does = put
        browser.start("GET", "/")
    far.settle()
    far.far.calls.clear()
    site.page.does = login
    answers = [browser.start("GET", "/") for browser in browsers]
    far.settle()
    assert all(b" 200 OK" in answer.received for answer in answers)
    assert far.far.changes <= 2 * 300
    assert far.far.count("sessionsOf") <= 10
    principals = [far.visit(b, lambda r: r.getSession().principal).body for b in browsers]
    assert principals == [b"None"] * 297 + [b"'alice'"] * 3
    far.clock.advance(901)
    far.settle(2)
    assertNothingIsLeft(site)


def test_loginsOfManyAtTheSameTime(far: World) -> None:
    """
    What one login costs does not depend on how many others are under way.
    """
    site = far.site()

    def prepare(count: int) -> Callable[[], object]:
        sessions = [site.keeper.make() for _ in range(count)]
        for session in sessions:
            session["k"] = 1
            session.commit()
        far.settle()
        logins = [session.login(f"user {n}") for n, session in enumerate(sessions)]

        def arrive() -> None:
            far.settle()
            assert all(login.called for login in logins)

        return arrive

    assertLinear(prepare, 100)


def test_aStoreOfWhichAPartIsAway(far: World) -> None:
    """
    What cannot be learned of a session is asked again each second, however
    long that goes on, and not more often the longer it does.
    """
    site = far.site()
    site.keeper.watch._hasHints = False
    gone: list[object] = []
    far.visit(far.browser(site), lambda r: r.getSession().notifyOnExpire(lambda: gone.append(1)))
    far.settle(2)
    load = far.far.load
    asked = 0

    def partly(keys: Any) -> Any:
        nonlocal asked
        asked += len(keys)
        return succeed([StoreUnavailable("one server of several is away") for _ in keys])

    far.far.load = partly  # type: ignore[method-assign]
    far.settle(30)
    asked = 0
    far.settle(5)
    assert 5 <= asked <= 12
    far.far.load = load  # type: ignore[method-assign]
    assert gone == []


# One session


class Crowd:
    """
    Requests of one session, all on connections of their own.

    @ivar cookie: the session's.
    @ivar answered: how long each took, in seconds.
    """

    def __init__(self, world: World, site: Any) -> None:
        self.world = world
        self.site = site
        browser = world.browser(site)
        assert world.visit(browser, put).code == 200
        [value] = browser.cookies.values()
        self.cookie = value.encode()
        self.pages: list[Does] = []
        self.clients: list[Client] = []
        self.answered: list[float] = []
        site.page.does = lambda request: self.pages[int(request.uri[1:])](request)
        world.settle()
        world.far.calls.clear()

    def start(
        self,
        does: Does,
        heard: Callable[[bytes], object] = lambda head: None,
        cookie: bytes | None = None,
    ) -> Client:
        """
        @param heard: called with the answer's head when it leaves.
        @param cookie: not the session's, but this.
        """
        started = self.world.clock.seconds()

        def note(head: bytes) -> None:
            self.answered.append(self.world.clock.seconds() - started)
            heard(head)

        self.pages.append(does)
        client = Client(self.site, note)
        self.clients.append(client)
        client.ask(self.cookie if cookie is None else cookie, b"/%d" % (len(self.pages) - 1))
        return client

    def codes(self) -> list[int]:
        return [code for client in self.clients for code in client.codes]

    def stored(self, uid: bytes | None = None) -> dict[str, Any] | None:
        """
        What the store has now; L{None} if there is no such session.
        """
        store: Any = self.world.far.store
        [record] = self.world.result(store.load([keyOf(uid or self.cookie)]))
        return None if record is None else {k[1:]: decode(v) for k, v in record.fields.items()}


def setting(key: str, value: object) -> Does:
    def does(request: Any) -> bytes:
        request.getSession()[key] = value
        return b"set"

    return does


def test_manyRequestsOfOneSession(far: World) -> None:
    """
    What they change is stored together, and each one's before its answer
    leaves. What does not change is not stored.
    """
    crowd = Crowd(far, far.site())

    def check(n: int) -> Callable[[bytes], object]:
        return lambda head: kept.append((crowd.stored() or {}).get(str(n)) == n)

    kept: list[bool] = []
    for n in range(1000):
        crowd.start(setting(str(n), n), check(n))
    far.settle()
    assert crowd.codes() == [200] * 1000 and kept == [True] * 1000
    assert far.far.changes <= 4
    assert far.far.count("load") <= 3
    far.far.calls.clear()
    for n in range(1000):
        crowd.start(setting(str(n), n))
        crowd.start(look)
    far.settle()
    assert crowd.codes() == [200] * 3000
    assert far.far.changes == 0
    for _ in range(1000):
        crowd.start(setting("same", "thing"))
    far.settle()
    assert far.far.changes == 1


def test_aSessionThatIsAlwaysChanged(far: World) -> None:
    """
    Others change it again before any commit is done: nobody waits for that.
    """
    crowd = Crowd(far, far.site())
    for n in range(400):
        crowd.start(setting("n", n) if n % 3 else look)
        far.clock.advance(TRIP / 5)
    assert len(crowd.answered) > 350
    far.settle()
    assert crowd.codes() == [200] * 400
    # The load under way, and the next; the commit under way, and the next.
    assert max(crowd.answered) <= 4.5 * TRIP
    assert far.far.changes <= 400 / 5 + 5
    assert (crowd.stored() or {})["n"] == 398


def test_aStreamOfASessionThatIsAlwaysChanged(far: World) -> None:
    """
    What it changes before it ends is stored before it ends.
    """
    crowd = Crowd(far, far.site())

    def stream(request: Any) -> int:
        request.getSession()["first"] = 1
        request.write(b"first")
        request.getSession()["last"] = 2
        for _ in range(1000):
            request.write(b".")
        request.finish()
        request.notifyFinish().addCallback(lambda _: done.append(crowd.stored()))
        return NOT_DONE_YET

    done: list[Any] = []
    for n in range(200):
        crowd.start(stream if n == 100 else setting("n", n))
        far.clock.advance(TRIP / 5)
    assert len(done) == 1 and {"first": 1, "last": 2}.items() <= done[0].items()
    assert max(crowd.answered) <= 4.5 * TRIP


def test_aFlashOfASessionThatIsAlwaysChanged(far: World) -> None:
    """
    It is taken by one, and neither that one nor the others wait for long.
    """
    crowd = Crowd(far, far.site())
    crowd.start(lambda r: r.getSession().flash.__setitem__("saved", "yes") or b"")
    far.settle()
    taken: list[object] = []

    def take(request: Any) -> int:
        def told(value: object) -> None:
            taken.append(value)
            request.finish()

        request.getSession().flash.take("saved", None).addCallback(told)
        return NOT_DONE_YET

    for n in range(300):
        crowd.start(take if n % 10 == 9 else setting("n", n))
        far.clock.advance(TRIP / 5)
    assert len(crowd.answered) > 270
    far.settle()
    assert sorted(map(str, taken)) == ["None"] * 29 + ["yes"]
    assert max(crowd.answered) <= 8 * TRIP


def test_whoTakesNothingHarmsNoOther(far: World) -> None:
    """
    Another process was faster with a flash: what else is to be stored is.
    """
    crowd = Crowd(far, far.site())
    crowd.start(lambda r: r.getSession().flash.__setitem__("saved", "yes") or b"")
    far.settle()
    other = far.site()
    session = far.result(other.loadSession(crowd.cookie))
    taken: list[object] = []

    def take(request: Any) -> int:
        request.getSession().flash.take("saved", "no").addCallback(taken.append)
        request.finish()
        return NOT_DONE_YET

    for does in (look, take, setting("n", 1), setting("m", 2)):
        crowd.start(does)
    far.clock.advance(TRIP)  # these are loaded together: all but the first
    far.clock.advance(TRIP / 2)
    theirs = session.flash.take("saved")
    far.settle()
    assert (far.result(theirs), taken) == ("yes", ["no"])
    assert crowd.codes() == [200] * 5
    assert (crowd.stored() or {}).items() >= {"n": 1, "m": 2}.items()


def test_othersAreNotBehindTheCrowd(far: World) -> None:
    """
    A page of another session is not made after those of all who ask for one.
    """
    site = far.site()
    browser = far.browser(site)
    far.visit(browser, put)
    [other] = browser.cookies.values()
    crowd = Crowd(far, site)
    order: list[str] = []

    def page(name: str) -> Does:
        def does(request: Any) -> bytes:
            order.append(name)
            return setting("n", name)(request)

        return does

    for n in range(1000):
        crowd.start(page(f"one {n}"))
        if n == 500:
            crowd.start(page("other"), lambda head: order.append("answer"), other.encode())
    far.settle()
    assert crowd.codes() == [200] * 1001
    assert order.index("other") <= 3
    assert crowd.answered[crowd.answered.index(max(crowd.answered))] <= 5 * TRIP


def test_whenACommitOfTheCrowdFails(far: World) -> None:
    """
    Whoever hears that it was stored, it was; the others hear that it was not.
    """
    crowd = Crowd(far, far.site())
    rows: list[tuple[int, bool]] = []

    def check(n: int) -> Callable[[bytes], object]:
        def heard(head: bytes) -> None:
            rows.append((int(head[9:12]), (crowd.stored() or {}).get(str(n)) == n))

        return heard

    for n in range(300):
        crowd.start(setting(str(n), n), check(n))
        far.clock.advance(TRIP / 5)
        if n % 50 == 20:
            far.far.failNext("commit")
    far.settle()
    assert len(rows) == 300
    assert {row for row in rows if row[0] == 200} == {(200, True)}
    assert {row[0] for row in rows} == {200, 500}


def test_anIdThatChangesInTheCrowd(far: World) -> None:
    """
    Whoever is told of a new id is told of one that the store has.
    """
    crowd = Crowd(far, far.site())
    told: list[tuple[bytes, bool]] = []

    def heard(head: bytes) -> None:
        for line in head.split(b"\r\n"):
            if line.startswith(b"Set-Cookie: twsession="):
                uid = line[22:].partition(b";")[0]
                told.append((uid, crowd.stored(uid) is not None))

    def rotate(request: Any) -> bytes:
        request.getSession().rotate()
        return b""

    def slowly(request: Any) -> int:
        setting("n", -1)(request)
        request.write(b"held")
        far.clock.callLater(TRIP / 2, request.getSession().rotate)
        far.clock.callLater(2 * TRIP, request.finish)
        return NOT_DONE_YET

    for n in range(50):
        crowd.start({20: rotate, 21: slowly, 30: rotate}.get(n, setting("n", n)), heard)
        far.clock.advance(TRIP / 5)
    far.settle()
    assert crowd.codes() == [200] * 50
    assert len(set(told)) >= 2 and all(isStored for _, isStored in told)
    assert crowd.stored() is None


# Many keys


OPERATIONS: dict[str, Callable[[Any], object]] = {
    "assign": lambda s: [s.__setitem__(key, 2) for key in s],
    "append": lambda s: [s[key].append(2) for key in s],
    "clear": lambda s: s.clear(),
    "delete": lambda s: [s.__delitem__(key) for key in list(s)],
    "delete while looking": lambda s: [s.__delitem__(key) for key in s],
    "describe": lambda s: s.describe(),
    "flash": lambda s: [s.flash.__setitem__(key, 1) for key in s],
    "items": lambda s: list(s.items()),
    "length": lambda s: len(s),
    "one": lambda s: s.__setitem__("one", 1),
    "pop": lambda s: [s.pop(key) for key in list(s)],
    "update": lambda s: s.update({key + "'": 1 for key in s}),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_manyKeysAreNotWorseThanMany(world: World, name: str) -> None:
    """
    A request with four times the keys takes four times the steps.
    """
    site = world.site(maxSessionBytes=None)

    def prepare(count: int) -> Callable[[], object]:
        browser = world.browser(site)
        fill = {str(n): [1] for n in range(count)}
        world.visit(browser, lambda r: r.getSession().update(fill) or b"")

        def work() -> None:
            response = world.visit(browser, lambda r: OPERATIONS[name](r.getSession()) and b"")
            assert response.code == 200

        return work

    assertLinear(prepare, 300)


def test_manyFlashesAreCleared(world: World) -> None:
    site = world.site(maxSessionBytes=None)

    def prepare(count: int) -> Callable[[], object]:
        browser = world.browser(site)
        fill = {str(n): [1] for n in range(count)}
        world.visit(browser, lambda r: r.getSession().flash.update(fill) or b"")

        def work() -> None:
            world.visit(browser, lambda r: r.getSession().flash.clear() or b"")
            assert world.visit(browser, lambda r: len(r.getSession().flash)).body == b"0"

        return work

    assertLinear(prepare, 300)


def test_keysAreTakenOneByOne(far: World) -> None:
    """
    One that cannot be read is passed over.
    """
    site = far.site()
    browser = far.browser(site)
    far.visit(browser, lambda r: r.getSession().update(a=1, b=2, c=3) or b"")
    [record] = far.records(site)
    far.result(site.keeper.link.commit(Change(record.key, b"t" * 16, set={"da": b"\xc1"})))

    def take(request: Any) -> object:
        session = request.getSession()
        taken = {session.popitem() for _ in range(2)}
        with pytest.raises(KeyError, match="left"):
            session.popitem()
        return taken == {("b", 2), ("c", 3)}

    assert far.visit(browser, take).body == b"True"
    assert far.visit(browser, lambda r: dict(r.getSession().items())).body == b"{}"


def test_veryManyKeys(world: World) -> None:
    """
    As many as one likes, if the site says so; else not even for a moment.
    """
    fill = {str(n): 1 for n in range(100_000)}
    browser = world.browser(world.site(maxSessionBytes=None))
    world.visit(browser, lambda r: r.getSession().update(fill) or b"")
    assert world.visit(browser, lambda r: len(r.getSession())).body == b"100000"
    assert world.visit(browser, lambda r: dict(r.getSession()) == fill).body == b"True"
    assert world.visit(browser, lambda r: r.getSession().clear() or b"").code == 200
    assert world.visit(browser, lambda r: dict(r.getSession())).body == b"{}"
    browser = world.browser(world.site())
    world.visit(browser, put)
    assert world.visit(browser, lambda r: r.getSession().update(fill) or b"").code == 500
    assert world.visit(browser, lambda r: dict(r.getSession())).body == b"{'k': 1}"


def test_veryLongNames(world: World) -> None:
    name = "n" * 1_000_000
    browser = world.browser(world.site(maxSessionBytes=None))
    world.visit(browser, setting(name, "v"))
    assert world.visit(browser, lambda r: r.getSession()[name]).body == b"'v'"
    assert world.visit(browser, lambda r: r.getSession().pop(name)).body == b"'v'"
    assert world.visit(browser, lambda r: dict(r.getSession())).body == b"{}"
    browser = world.browser(world.site())
    world.visit(browser, put)
    assert world.visit(browser, setting(name, "v")).code == 500
    assert world.visit(browser, lambda r: dict(r.getSession())).body == b"{'k': 1}"


def test_valuesThatGoToAndFro(far: World) -> None:
    """
    Only where they are at the end is stored, and only if it is elsewhere; also
    if that is under way.
    """
    crowd = Crowd(far, far.site())

    def toAndFro(times: int) -> Does:
        def does(request: Any) -> bytes:
            session = request.getSession()
            for n in range(times):
                session["k"] = n % 2
                session["gone"] = n
                del session["gone"]
            assert len(session._values._assigned) <= 2
            return b""

        return does

    crowd.start(toAndFro(10_000))  # to 1, which it was
    far.settle()
    assert far.far.changes == 0
    crowd.start(toAndFro(10_001))
    far.settle()
    assert (far.far.changes, crowd.stored()) == (1, {"k": 0})
    for n in range(200):
        crowd.start(setting("k", n % 2), lambda head: None)
        far.clock.advance(TRIP / 5)
    far.settle()
    assert crowd.codes() == [200] * 202
    assert crowd.stored() == {"k": 1}


def test_manyWritesWaitInOrder(far: World) -> None:
    crowd = Crowd(far, far.site())

    def does(request: Any) -> int:
        setting("n", 1)(request)
        for n in range(5000):
            request.write(b"%d." % n)
        request.finish()
        return NOT_DONE_YET

    far.visit(browser := far.browser(crowd.site), lambda r: b"")
    response = far.visit(browser, does)
    assert response.body == b"".join(b"%d." % n for n in range(5000))
