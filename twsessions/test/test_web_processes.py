"""
One session in several processes: what hangs on it here, and what others do.

Each site stands for a process: they share a clock and a store, nothing else.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from twsessions import Session, SessionSite
from twsessions.core.delta import Change
from twsessions.core.record import Record
from twsessions.errors import SessionError
from twsessions.interfaces import HINTS, Swept
from twsessions.stores.memory import MemoryStore
from twsessions.testing.browser import Browser, Response
from twsessions.testing.faulty import FaultyStore

Heard = Callable[[Sequence[bytes] | None], None]


class Place:
    """
    Where the sessions are, and who is told of their end.
    """

    def __init__(self, clock: Clock, hints: bool) -> None:
        self.store = MemoryStore(clock.seconds)
        self.hints = hints
        self.heard: list[Heard] = []


class Shared(FaultyStore):
    """
    One process's way to the place.
    """

    def __init__(self, place: Place) -> None:
        super().__init__(place.store)
        self.place = place

    @property
    def capabilities(self) -> frozenset[str]:
        return super().capabilities | ({HINTS} if self.place.hints else frozenset())

    def watch(self, heard: Heard) -> Deferred[None]:
        self.place.heard.append(heard)
        done: Deferred[None] = Deferred()
        done.callback(None)
        return done

    def commit(self, changes: Sequence[Change]) -> Deferred[list[Record | SessionError]]:
        over = [one.key for one in changes if one.end is not None or one.newKey is not None]

        def tell(outcome: Any) -> Any:
            for heard in self.place.heard:
                heard(over)
            return outcome

        done = super().commit(changes)
        return done.addCallback(tell) if over else done

    def sweep(self, limit: int) -> Deferred[Swept]:
        before = set(self.place.store._places)

        def tell(swept: Swept) -> Swept:
            over = list(before - set(self.place.store._places))
            for heard in self.place.heard if over else ():
                heard(over)
            return swept

        return super().sweep(limit).addCallback(tell)


class Page(Resource):
    isLeaf = True
    does: Callable[[Session], object]

    def render_GET(self, request: Any) -> bytes:
        return repr(self.does(request.getSession())).encode()


class World:
    def __init__(self, hints: bool) -> None:
        self.hints = hints
        self.clock = Clock()
        self.clock.advance(1_000_000)
        self.place = Place(self.clock, hints)
        self.a, self.b = self.site(), self.site()
        self.ann = Browser(self.a)

    def site(self, **settings: Any) -> Any:
        page = Page()
        site: Any = SessionSite(page, reactor=self.clock, store=Shared(self.place), **settings)
        site.page = page
        site.doStart()
        self.clock.advance(1.0)  # until it watches
        return site

    def visit(self, site: Any, does: Callable[[Session], object]) -> bytes:
        site.page.does = does
        browser = Browser(site)
        browser.jar = self.ann.jar
        responses: list[Response] = []
        browser.get("/").addCallback(responses.append)
        return responses[0].body

    def learn(self) -> None:
        """
        Give word of an end the time it is promised to take.
        """
        if not self.hints:
            self.clock.advance(1.0)


@pytest.fixture(params=["hints", "polls"])
def world(request: pytest.FixtureRequest) -> World:
    return World(request.param == "hints")


def result(deferred: Deferred[Any]) -> Any:
    results: list[Any] = []
    deferred.addBoth(results.append)
    if isinstance(results[0], Failure):
        results[0].raiseException()
    return results[0]


def test_aLogoutThereIsHeardHere(world: World) -> None:
    heard: list[str] = []

    def ask(session: Session) -> None:
        session.notifyOnExpire(lambda: heard.append("here"))

    world.visit(world.a, ask)
    world.visit(world.b, lambda session: session.logout())
    world.learn()
    assert heard == ["here"]
    world.clock.pump([1.0] * 1000)
    assert heard == ["here"]
    assert world.a.sessions == {}


def test_anotherObjectsWriteTakesNothingAway(world: World) -> None:
    """
    An earlier object of the same session, whose use is stored late, does not
    make this process deaf for what hangs on a later one.
    """
    heard: list[str] = []
    world.visit(world.a, lambda session: session.update(n=1))
    world.clock.advance(10)
    world.visit(world.a, lambda session: None)  # too soon to be worth a write
    (uid,) = world.ann.cookies.values()
    world.clock.advance(10)
    later = result(world.a.loadSession(uid.encode("ascii")))
    later.notifyOnExpire(lambda: heard.append("here"))
    world.clock.pump([1.0] * 100)  # the use is stored now
    world.visit(world.b, lambda session: session.logout())
    world.learn()
    assert heard == ["here"]


@pytest.mark.parametrize("isNew", [False, True])
def test_aStreamHearsOfTheEnd(world: World, isNew: bool) -> None:
    """
    Though its session was stored after the callback was added.
    """
    heard: list[str] = []
    uids: list[bytes] = []

    class Stream(Resource):
        isLeaf = True

        def render_GET(self, request: Any) -> int:
            session = request.getSession()
            session.notifyOnExpire(lambda: heard.append("here"))
            session["n"] = 2
            uids.append(session.uid)
            request.write(b"begun")
            return NOT_DONE_YET

    if not isNew:
        world.visit(world.b, lambda session: session.update(n=1))
    world.a.resource = Stream()
    pending = Browser(world.a, jar=world.ann.jar).start("GET", "/")
    assert b"begun" in pending.received
    there = result(world.b.loadSession(uids[0]))
    assert there["n"] == 2
    result(there.expire())
    world.learn()
    assert heard == ["here"]


def test_anIdleEndIsHeardOnce(world: World) -> None:
    heard: list[str] = []
    for site in (world.a, world.b):
        world.visit(site, lambda session: session.notifyOnExpire(lambda: heard.append("x")))
    world.clock.pump([1.0] * 899)
    assert heard == []
    world.clock.pump([1.0] * 3)
    assert heard == ["x", "x"]  # each process's own callback


def test_useThereCountsHere(world: World) -> None:
    heard: list[str] = []
    world.visit(world.a, lambda session: session.notifyOnExpire(lambda: heard.append("x")))
    for _ in range(3):
        world.clock.pump([1.0] * 800)
        world.visit(world.b, lambda session: None)
    assert heard == []
    world.clock.pump([1.0] * 902)
    assert heard == ["x"]


def test_aRotationThereIsNoEnd(world: World) -> None:
    """
    What hangs on the object here goes on with the session under its new id.
    """
    heard: list[str] = []
    seen: list[Session] = []

    def ask(session: Session) -> None:
        session["n"] = 1
        session.notifyOnExpire(lambda: heard.append("here"))
        seen.append(session)

    world.visit(world.a, ask)
    old = seen[0].uid
    for _ in range(2):
        world.visit(world.b, lambda session: session.rotate())
        world.learn()
    world.visit(world.b, lambda session: session.login("ann"))
    world.learn()
    world.clock.pump([1.0] * 100)
    assert heard == []
    # Without its browser it is still the session: it can be changed ...
    seen[0]["here"] = 2
    result(seen[0].commit())
    assert old not in world.a.sessions
    assert result(world.a.loadSession(old)) is None
    assert world.visit(world.b, lambda session: dict(session)) == b"{'n': 1, 'here': 2}"
    # ... and with it, it is the same object as ever.
    assert world.visit(world.a, lambda session: session is seen[0]) == b"True"
    assert seen[0].principal == "ann"
    world.visit(world.b, lambda session: session.logout())
    world.learn()
    assert heard == ["here"]


@pytest.mark.parametrize("how", ["here", "there", "idle", "moved"])
def test_nothingIsKeptOfWhatHasEnded(world: World, how: str) -> None:
    seen: list[weakref.ref[Session]] = []

    def ask(session: Session) -> None:
        session.notifyOnExpire(lambda: None)
        seen.append(weakref.ref(session))

    world.visit(world.a, ask)
    if how == "moved":
        world.visit(world.b, lambda session: session.rotate())
        world.learn()
    if how != "idle":
        world.visit(world.a if how == "here" else world.b, lambda session: session.logout())
    world.clock.pump([1.0] * 1000)
    gc.collect()
    assert seen[0]() is None


def test_aChangeThatMissedARotation(world: World) -> None:
    """
    Made before anybody here could know, it is refused; the session goes on.
    """
    seen: list[Session] = []

    def ask(session: Session) -> None:
        session.notifyOnExpire(lambda: heard.append("here"))
        seen.append(session)

    heard: list[str] = []
    world.visit(world.a, ask)
    world.place.heard.clear()  # no hint comes
    world.visit(world.b, lambda session: session.rotate())
    seen[0]["x"] = 1
    with pytest.raises(SessionError):
        result(seen[0].commit())
    assert heard == [] and not seen[0].isExpired
    seen[0]["x"] = 2
    result(seen[0].commit())
    assert world.visit(world.b, lambda session: session["x"]) == b"2"


def test_missedHintsAreMadeUpFor() -> None:
    world = World(hints=True)
    told: list[str] = []
    world.visit(world.a, lambda session: session.notifyOnExpire(lambda: told.append("here")))
    lost, world.place.heard = world.place.heard, []
    world.visit(world.b, lambda session: session.logout())
    world.clock.pump([1.0] * 5)
    assert told == []
    lost[0](None)  # the connection is back
    assert told == ["here"]


def test_outagesEndNothing(world: World) -> None:
    told: list[str] = []
    world.visit(world.a, lambda session: session.notifyOnExpire(lambda: told.append("here")))
    store: Any = world.a.keeper.link.store
    store.down = True
    world.visit(world.b, lambda session: session.logout())
    world.clock.pump([1.0] * 60)
    assert told == []
    store.down = False
    world.clock.pump([1.0] * 5)
    assert told == ["here"]


def test_onlyOneTakesAFlash(world: World) -> None:
    """
    C{get} may be answered in two processes at once; C{take} may not.
    """
    taken: list[object] = []
    kept: list[Session] = []

    def leave(session: Session) -> None:
        session.flash["saved"] = None
        session.notifyOnExpire(lambda: None)
        kept.append(session)

    world.visit(world.a, leave)
    world.visit(world.b, lambda session: (kept.append(session), session.notifyOnExpire(int)))
    assert "saved" in kept[0].flash and "saved" in kept[1].flash
    for session in kept:
        session.flash.take("saved", "nothing").addCallback(taken.append)
    assert taken == [None, "nothing"]
    assert not kept[0].flash and not kept[1].flash
    with pytest.raises(KeyError):
        result(kept[1].flash.take("saved"))
    kept[0].flash["new"] = [1]
    assert result(kept[0].flash.take("new")) == [1]
    assert world.visit(world.b, lambda session: list(session.flash)) == b"[]"


def test_aResponseUnderWayLeavesTheNewCookieOfARotationThere(world: World) -> None:
    """
    The id that the session goes on with here is known to no browser.
    """

    class Slow(Resource):
        isLeaf = True

        def render_GET(self, request: Any) -> int:
            request.getSession()
            requests.append(request)
            return NOT_DONE_YET

    requests: list[Any] = []
    world.visit(world.a, lambda session: session.notifyOnExpire(lambda: None))
    world.a.resource = Slow()
    browser = Browser(world.a)
    browser.jar = world.ann.jar
    pending = browser.start("GET", "/")
    world.visit(world.b, lambda session: session.login("ann"))
    world.learn()
    requests[0].finish()
    assert result(pending.response).setCookies == []
    assert world.visit(world.b, lambda session: session.principal) == b"'ann'"


def test_anotherIdeaOfTheTimeIsNoReasonToAskAllTheTime(world: World) -> None:
    """
    By this process's timeout the session is over, by the store's it is not.
    """

    def shorten(session: Session) -> None:
        session.sessionTimeout = 60

    world.visit(world.a, shorten)
    world.clock.advance(50)
    world.visit(world.b, lambda session: None)
    store: Any = world.a.keeper.link.store
    calls, load = store.calls, store.load
    store.load = lambda keys: load(keys) if len(calls) < 1000 else Deferred()  # fail, not hang
    world.clock.pump([1.0] * 50)
    before = len(calls)
    world.clock.pump([0.01] * 1000)
    assert len(world.a.sessions) == 1
    assert sum(name == "load" for name, _ in calls[before:]) <= 20


def test_aCommitWhoseAnswerIsOvertakenByALoad(world: World) -> None:
    """
    What another process has stored after it stays, and uses count once.
    """
    store: Any = world.a.keeper.link.store

    def put(value: int) -> Callable[[Session], object]:
        def does(session: Session) -> None:
            session["k"] = value
            session.notifyOnExpire(lambda: None)

        return does

    def late(changes: Sequence[Change]) -> Deferred[Any]:
        answer: Deferred[Any] = Deferred()
        waiting.append((commit(changes), answer))
        return answer

    waiting: list[tuple[Deferred[Any], Deferred[Any]]] = []
    commit = store.commit
    world.visit(world.a, put(0))
    store.commit = late
    world.a.page.does = put(1)
    browser = Browser(world.a)
    browser.jar = world.ann.jar
    pending = browser.start("GET", "/")
    del store.commit
    world.visit(world.b, put(2))
    (uid,) = world.ann.cookies.values()
    result(world.a.loadSession(uid.encode("ascii")))
    for stored, answer in waiting:
        stored.chainDeferred(answer)
    assert result(pending.response).code == 200
    for site in (world.a, world.b):
        assert world.visit(site, lambda session: session["k"]) == b"2"
    # The other process cannot know of uses that are not stored yet.
    world.clock.pump([1.0] * 100)
    assert world.visit(world.b, lambda session: session.requestCount) == b"6"
