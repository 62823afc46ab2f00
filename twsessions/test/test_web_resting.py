"""
On a store in memory, sessions that nobody uses are not objects for long.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

from twisted.internet.task import Clock
from twisted.web.resource import Resource

from twsessions import Session, SessionSite
from twsessions.testing.browser import Browser, Response
from twsessions.web.storekeeper import _RESTING


class Page(Resource):
    isLeaf = True
    does: Callable[[Session], object] = lambda session: None

    def render_GET(self, request: Any) -> bytes:
        return repr(type(self).does(request.getSession())).encode()


class World:
    def __init__(self, sessionFactory: type = Session) -> None:
        self.clock = Clock()
        self.clock.advance(1_000_000)
        self.page = type("OnePage", (Page,), {})
        self.site: Any = SessionSite(self.page(), reactor=self.clock)
        self.site.sessionFactory = sessionFactory
        self.site.doStart()

    def visit(self, browser: Browser, does: Callable[[Session], object]) -> bytes:
        self.page.does = staticmethod(does)
        responses: list[Response] = []
        browser.get("/").addCallback(responses.append)
        return responses[0].body

    def crowd(self) -> None:
        """
        So many others that nobody else is among those used last.
        """
        for number in range(_RESTING + 1):
            self.visit(Browser(self.site), lambda session, n=number: session.update(n=n))


def test_valuesAndUseOutliveTheObject() -> None:
    world = World()
    ann, seen = Browser(world.site), []

    def first(session: Session) -> None:
        session["cart"] = ["book"]
        seen.append(weakref.ref(session))

    world.visit(ann, first)
    world.clock.advance(30)  # too little for the use to be worth a write
    world.visit(ann, lambda session: session["cart"])
    world.crowd()
    gc.collect()
    assert seen[0]() is None
    assert len(world.site.sessions) == _RESTING
    world.clock.advance(880)  # the last use was 880 seconds ago
    assert world.visit(ann, lambda session: (session["cart"], session.requestCount)) == (
        b"(['book'], 3)"
    )
    world.clock.advance(900)
    assert world.visit(ann, lambda session: session.get("cart")) == b"None"


def test_thoseMadeOutsideARequest() -> None:
    world = World()
    for number in range(_RESTING + 10):
        session = world.site.makeSession()
        session["n"] = number
        session.commit()
    assert len(world.site.sessions) == _RESTING


def test_whatHangsOnAnObjectStays() -> None:
    world = World()
    heard: list[str] = []
    ann, bob, eve = (Browser(world.site) for _ in range(3))

    def called(session: Session) -> None:
        session["x"] = 1
        session.notifyOnExpire(lambda: heard.append("ann"))

    def attribute(session: Session) -> None:
        session["x"] = 1
        session.plain = object()  # type: ignore[attr-defined]

    def late(session: Session) -> None:
        session["x"] = 1
        kept.append(session)

    kept: list[Session] = []
    world.visit(ann, called)
    world.visit(bob, attribute)
    world.visit(eve, late)
    world.crowd()
    assert len(world.site.sessions) == _RESTING + 2
    assert world.visit(bob, lambda session: "plain" in session.__dict__) == b"True"
    # One that was let go is taken back when something hangs on it again.
    kept[0].notifyOnExpire(lambda: heard.append("eve"))
    world.clock.pump([1.0] * 901)
    assert sorted(heard) == ["ann", "eve"]


def test_aHookIsCalledForAll() -> None:
    heard: list[bytes] = []

    class Telling(Session):
        def expiring(self) -> None:
            heard.append(self.uid)

    world = World(Telling)
    world.crowd()
    world.clock.pump([1.0] * 901)
    assert len(set(heard)) == _RESTING + 1


def test_nothingIsLeftInTheQueue() -> None:
    """
    Those who are let go need no place in the queue of deadlines.
    """
    world = World()
    for _ in range(3):
        world.crowd()
        world.clock.advance(3.0)
    assert len(world.site.keeper._due) <= 2 * _RESTING + 2


def test_aChangeAfterItWasLetGo() -> None:
    world = World()
    kept = world.site.makeSession()
    kept["a"] = 1
    kept.commit()
    world.crowd()
    assert kept.uid not in world.site.sessions
    kept["b"] = 2
    assert world.site.sessions[kept.uid] is kept
    kept.commit()
    world.crowd()
    assert world.site.getSession(kept.uid)["b"] == 2


def test_whoeverStillHasOneSharesIt() -> None:
    """
    A coroutine that goes on after its request has what the next request has.
    """
    world = World()
    ann, kept = Browser(world.site), []

    def keep(session: Session) -> None:
        session["x"] = 1
        kept.append(session)

    world.visit(ann, keep)
    world.crowd()
    assert world.visit(ann, lambda session: session is kept[0]) == b"True"
    world.crowd()
    assert world.visit(ann, lambda session: session["x"]) == b"1"
    kept[0].expire()
    assert world.visit(ann, lambda session: session.get("x")) == b"None"


def test_oneThatWasTakenBackFallsDue() -> None:
    world = World()
    ann, bob, kept = Browser(world.site), Browser(world.site), []

    def keep(session: Session) -> None:
        session["x"] = 1
        kept.append(session)

    world.visit(ann, keep)
    world.crowd()
    kept[0]["x"] = 2
    for _ in range(10):
        world.clock.advance(100)
        world.visit(bob, lambda session: None)
    assert kept[0].isExpired
    assert world.visit(ann, lambda session: session.get("x")) == b"None"
