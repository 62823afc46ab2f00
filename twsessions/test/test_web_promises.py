"""
The promises that an application sees, through real HTTP, on both embedded
stores.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.components import registerAdapter
from twisted.web import server
from twisted.web.resource import Resource
from zope.interface import Attribute, Interface

from twsessions import CookiePolicy, Session, SessionResource, SessionSite, registerComponent
from twsessions.errors import TooLateForSession
from twsessions.testing.browser import Browser, Response

Render = Callable[[Any], object]


class Page(Resource):
    """
    Renders by whatever function it has just been given.
    """

    isLeaf = True
    does: Render

    def render_GET(self, request: Any) -> object:
        result = self.does(request)
        return result if isinstance(result, (bytes, int)) else repr(result).encode()


class World:
    """
    A place for sessions, and the sites of several processes on it.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.clock = Clock()
        self.clock.advance(1_000_000)
        self.sites: list[Any] = []

    def site(self, factory: type = SessionSite, **settings: Any) -> Any:
        page = Page()
        site = factory(page, reactor=self.clock, store=self.url, **settings)
        if factory is SessionResource:
            outer = server.Site(site, reactor=self.clock)
            outer.page, outer.owner = page, site  # type: ignore[attr-defined]
            site = outer
        else:
            site.page = page
        self.sites.append(site)
        return site


def result(deferred: Deferred[Any]) -> Any:
    results: list[Any] = []
    deferred.addBoth(results.append)
    assert results, "nothing has come"
    if hasattr(results[0], "raiseException"):
        results[0].raiseException()
    return results[0]


def visit(browser: Browser, does: Render) -> Response:
    browser.site.page.does = does
    response: Response = result(browser.get("/"))
    return response


@pytest.fixture(params=["memory:", "sqlite"])
def world(request: Any, tmp_path: Path) -> Iterator[World]:
    url = request.param
    if url == "sqlite":
        url = f"sqlite:///{tmp_path}/sessions.db"
    yield World(url)


@pytest.fixture
def durable(tmp_path: Path) -> World:
    return World(f"sqlite:///{tmp_path}/sessions.db")


def count(request: Any) -> bytes:
    session = request.getSession()
    session["n"] = session.get("n", 0) + 1
    return b"%d" % session["n"]


def look(request: Any) -> bytes:
    return repr(dict(request.getSession())).encode()


def test_countsAndKeeps(world: World) -> None:
    browser = Browser(world.site())
    first = visit(browser, count)
    assert (first.code, first.body, len(first.setCookies)) == (200, b"1", 1)
    second = visit(browser, count)
    assert (second.body, second.setCookies) == (b"2", [])
    assert second.headers.getRawHeaders("vary") == ["Cookie"]
    assert first.headers.getRawHeaders("cache-control") == ["no-store"]


def test_survivesARestartAndIsShared(durable: World) -> None:
    browser = Browser(durable.site())
    visit(browser, count)
    other = Browser(durable.site(), jar=browser.jar)
    assert visit(other, count).body == b"2"
    assert visit(browser, count).body == b"3"


def test_nothingForPagesWithoutSession(world: World) -> None:
    response = visit(Browser(world.site()), lambda request: b"x")
    assert response.setCookies == []
    assert response.headers.getRawHeaders("vary") is None


def test_nestedChangesAndTypes(world: World) -> None:
    browser = Browser(world.site())

    def put(request: Any) -> bytes:
        request.getSession()["cart"] = [("a", 1), {"b": {2}}]
        return b""

    visit(browser, put)
    visit(browser, lambda request: request.getSession()["cart"].append(b"x") or b"")
    assert visit(browser, look).body == repr({"cart": [("a", 1), {"b": {2}}, b"x"]}).encode()


def test_unstorableValuesAreRefusedWhereTheyAreMade(world: World) -> None:
    def put(request: Any) -> bytes:
        with pytest.raises(TypeError, match="session\\['x'\\].*object"):
            request.getSession()["x"] = object()
        return b"refused"

    assert visit(Browser(world.site()), put).body == b"refused"


def test_idleMeansIdle(world: World) -> None:
    site = world.site()
    browser = Browser(site)
    visit(browser, count)
    for n in range(2, 8):
        world.clock.advance(800)
        assert visit(browser, count).body == b"%d" % n
    world.clock.advance(900)
    assert visit(browser, count).body == b"1"


def test_visitsCloseTogetherCountToo(world: World) -> None:
    site = world.site()
    site.sessionFactory = type("Short", (Session,), {"sessionTimeout": 100})
    browser = Browser(site)
    visit(browser, count)
    world.clock.advance(3)  # not worth a write of its own
    visit(browser, look)
    world.clock.pump([1] * 99)
    assert visit(browser, count).body == b"2"


def test_absoluteLimit(world: World) -> None:
    site = world.site()
    site.sessionFactory = type("Short", (Session,), {"absoluteTimeout": 2000})
    browser = Browser(site)
    visit(browser, count)
    for _ in range(3):
        world.clock.advance(600)
        visit(browser, count)
    world.clock.advance(200)
    assert visit(browser, count).body == b"1"


def test_callbacksWhenItEnds(world: World) -> None:
    site, ended = world.site(), []
    browser = Browser(site)

    def register(request: Any) -> bytes:
        session = request.getSession()
        session["a"] = 1
        session.notifyOnExpire(lambda: 1 / 0)
        session.notifyOnExpire(lambda: ended.append(dict(session)))
        session.notifyOnExpire(lambda: ended.append("no"))()
        return b""

    visit(browser, register)
    world.clock.advance(899)
    assert ended == []
    world.clock.advance(1)
    assert ended == [{"a": 1}]


def test_endsAreHeardOnceByTheSite(world: World) -> None:
    site, heard = world.site(), []
    site.notifyOnExpire(heard.append)
    browser = Browser(site)
    visit(browser, count)
    visit(browser, lambda request: request.getSession().login("ann") and b"")
    visit(browser, lambda request: request.getSession().expire() and b"")
    world.clock.advance(2)
    assert [(e.reason, e.principal, e.data) for e in heard] == [("logout", "ann", {"n": 1})]
    visit(Browser(site), count)
    world.clock.advance(900)
    world.clock.advance(2)
    assert [e.reason for e in heard] == ["logout", "idle"]
    assert len({e.id for e in heard}) == 2


def test_whatFellDueWhileAllWereDownIsHeard(durable: World) -> None:
    site = durable.site()
    site.notifyOnExpire(lambda event: None)
    visit(Browser(site), count)
    result(Deferred.fromCoroutine(site.keeper.stop()))
    durable.clock.advance(5000)
    heard: list[Any] = []
    durable.site().notifyOnExpire(heard.append)
    durable.clock.advance(2)
    durable.clock.advance(2)
    assert [(e.reason, e.data) for e in heard] == [("idle", {"n": 1})]


def test_aFailingListenerIsCalledAgain(world: World) -> None:
    site, heard = world.site(), []

    def listener(event: Any) -> None:
        heard.append(event.id)
        if len(heard) < 3:
            raise RuntimeError("not yet")

    site.notifyOnExpire(listener)
    browser = Browser(site)
    visit(browser, count)
    visit(browser, lambda request: request.getSession().expire() and b"")
    world.clock.pump([1] * 20)
    assert len(heard) == 3 and len(set(heard)) == 1


def test_rotationLoginLogout(world: World) -> None:
    site = world.site()
    browser, thief = Browser(site), Browser(site)
    visit(browser, count)
    (line,) = [f"{n}={v}" for n, v in browser.cookies.items()]
    response = visit(browser, lambda request: request.getSession().login("ann") and b"")
    assert len(response.setCookies) == 1
    thief.setRawCookie(line.encode())
    assert visit(thief, look).body == b"{}"
    assert visit(browser, lambda r: r.getSession().principal).body == b"'ann'"
    assert visit(browser, look).body == b"{'n': 1}"
    response = visit(browser, lambda request: request.getSession().logout() and b"")
    assert len(response.setCookies) == 1 and b"Max-Age=0" in response.setCookies[0]
    assert dict(browser.cookies) == {}


def test_allInOneRequestIsOneCookie(world: World) -> None:
    def everything(request: Any) -> bytes:
        session = request.getSession()
        session["a"] = 1
        session.rotate()
        session.logout()
        fresh = request.getSession()
        assert fresh is not session
        assert request.getSession() is fresh
        fresh.login("bob")
        fresh["b"] = 2
        return b""

    browser = Browser(world.site())
    assert len(visit(browser, everything).setCookies) == 1
    assert visit(browser, look).body == b"{'b': 2}"


def test_flashIsForOnce(world: World) -> None:
    browser = Browser(world.site())

    def leave(request: Any) -> bytes:
        request.getSession().flash["saved"] = None
        return b""

    def take(request: Any) -> bytes:
        session = request.getSession()
        return b"%d%d" % ("saved" in session.flash, session.flash.get("saved", 1) is None)

    visit(browser, leave)
    assert [visit(browser, take).body for _ in range(2)] == [b"11", b"00"]
    assert visit(browser, look).body == b"{}"


def test_createOnWrite(world: World) -> None:
    site = world.site(createOn="write")
    browser = Browser(site)
    assert visit(browser, look).setCookies == []
    assert site.sessions == {}
    assert len(visit(browser, count).setCookies) == 1
    assert visit(browser, count).body == b"2"


def test_tooLate(world: World) -> None:
    seen = []

    def late(request: Any) -> int:
        request.write(b"begun")
        try:
            request.getSession()
        except TooLateForSession as error:
            seen.append(error)
        request.finish()
        return server.NOT_DONE_YET

    site = world.site()
    response = visit(Browser(site), late)
    assert (response.body, response.setCookies, len(seen)) == (b"begun", [], 1)
    assert site.sessions == {}


def test_tooLarge(world: World) -> None:
    browser = Browser(world.site(maxSessionBytes=1000))
    visit(browser, count)

    def grow(request: Any) -> bytes:
        session = request.getSession()
        session["n"] = 99
        session["list"] = ["x" * 300]
        session["list"] += ["y" * 300, "z" * 700]
        return b"secret"

    response = visit(browser, grow)
    assert response.code == 500 and b"secret" not in response.body
    assert visit(browser, look).body == b"{'n': 1}"


def test_secureAndPlainNeverMix(world: World) -> None:
    site = world.site(cookie=CookiePolicy(name="sid"))
    tls, plain = Browser(site, secure=True), Browser(site)
    assert b"; Secure" in visit(tls, count).setCookies[0]
    plain.setRawCookie(b"sid=" + tls.cookies["sid"].encode())
    assert visit(plain, count).body == b"1"


def test_hostileCookiesAreNobody(world: World) -> None:
    site = world.site()
    browser = Browser(site)
    visit(browser, count)
    good = browser.cookies["twsession"].encode()
    stranger = Browser(site)
    for value in (b"", b"x" * 5000, good.upper(), b'"' + good + b'"', b"0" * 64, b"../../x"):
        stranger.setRawCookie(b"twsession=" + value)
        assert visit(stranger, count).body == b"1"
    stranger.setRawCookie(b"twsession=" + b"0" * 64 + b"; twsession=" + good)
    assert visit(stranger, look).body == b"{'n': 1}"
    other = Browser(site)
    visit(other, count)
    stranger.setRawCookie(
        b"twsession=%s; twsession=%s" % (good, other.cookies["twsession"].encode())
    )
    assert visit(stranger, look).body == b"{}"


class ICart(Interface):
    items = Attribute("names")


@dataclasses.dataclass
class Cart:
    items: list[str] = dataclasses.field(default_factory=list)


registerComponent(Cart, ICart)


class ICounter(Interface):
    value = Attribute("so many")


class Counter:
    def __init__(self, session: Any) -> None:
        self.value = 0


registerAdapter(Counter, server.Session, ICounter)


def test_components(world: World) -> None:
    site = world.site()
    browser = Browser(site)
    visit(browser, lambda request: request.getSession(ICart).items.append("book") or b"")
    visit(browser, lambda request: ICart(request.getSession()).items.append("pen") or b"")
    assert visit(browser, lambda r: ICart(r.getSession()).items).body == b"['book', 'pen']"
    if world.url != "memory:":
        again = Browser(world.site(), jar=browser.jar)
        assert visit(again, lambda r: ICart(r.getSession()).items).body == b"['book', 'pen']"


def test_stockAdaptersStayInTheProcess(world: World) -> None:
    def add(request: Any) -> bytes:
        counter = ICounter(request.getSession())
        counter.value += 1
        return b"%d" % counter.value

    browser = Browser(world.site())
    assert [visit(browser, add).body for _ in range(3)] == [b"1", b"2", b"3"]


def test_principals(world: World) -> None:
    site = world.site()
    browsers = [Browser(site) for _ in range(3)]
    for browser in browsers:
        visit(browser, lambda request: request.getSession().login("ann") and b"")
        world.clock.advance(1)
    described = result(site.sessionsOf("ann"))
    assert [d.address is not None for d in described] == [True] * 3
    assert result(site.expireSession(described[0].handle)) is True
    assert result(site.expireSession(described[0].handle)) is False
    assert visit(browsers[0], lambda r: r.getSession().principal).body == b"None"
    kept = []
    visit(browsers[1], lambda request: kept.append(request.getSession()) or b"")
    assert result(site.expireSessionsOf("ann", keep=kept[0])) == 1
    assert visit(browsers[2], lambda r: r.getSession().principal).body == b"None"
    assert visit(browsers[1], lambda r: r.getSession().principal).body == b"'ann'"


def test_theOldestMakesRoom(world: World) -> None:
    site = world.site(maxSessionsPerPrincipal=2)
    browsers = [Browser(site) for _ in range(3)]
    for browser in browsers:
        visit(browser, lambda request: request.getSession().login("ann") and b"")
        world.clock.advance(1)
    names = [visit(b, lambda r: r.getSession().principal).body for b in browsers]
    assert names == [b"None", b"'ann'", b"'ann'"]


def test_outsideARequest(world: World) -> None:
    site = world.site()
    browser = Browser(site)
    visit(browser, count)
    uid = browser.cookies["twsession"].encode()
    session = result(site.loadSession(uid))
    session["n"] = 40
    result(session.commit())
    assert visit(browser, count).body == b"41"
    assert result(site.loadSession(b"0" * 64)) is None
    assert result(site.loadSession(b"nonsense")) is None


def test_csrfTokenChangesAtLoginOnly(world: World) -> None:
    browser, tokens = Browser(world.site()), []

    def token(request: Any) -> bytes:
        tokens.append(request.getSession().csrfToken)
        return b""

    visit(browser, token)
    visit(browser, lambda request: request.getSession().rotate() and b"")
    visit(browser, token)
    visit(browser, lambda request: request.getSession().login("ann") and b"")
    visit(browser, token)
    assert tokens[0] == tokens[1] != tokens[2]


def test_theResourceDoesTheSame(world: World) -> None:
    site = world.site(SessionResource)
    browser = Browser(site)
    assert [visit(browser, count).body for _ in range(3)] == [b"1", b"2", b"3"]
    visit(browser, lambda request: request.getSession().logout() and b"")
    assert dict(browser.cookies) == {}


def test_stockSite() -> None:
    clock, ended = Clock(), []
    page = Page()
    site: Any = server.Site(page, reactor=clock)
    site.page = page
    site.sessionFactory = type("Short", (Session,), {"sessionTimeout": 60})
    browser = Browser(site)

    def register(request: Any) -> bytes:
        request.getSession().notifyOnExpire(lambda: ended.append(1))
        return b""

    visit(browser, register)
    for n in range(1, 6):
        clock.advance(59)
        assert visit(browser, count).body == b"%d" % n
    assert len(site.sessions) == 1
    clock.advance(59.9)
    assert ended == []
    clock.advance(0.1)
    assert ended == [1]
    assert site.sessions == {}
    browser.close()
    assert clock.getDelayedCalls() == []


def test_stopLeavesNothingBehind(world: World) -> None:
    site = world.site()
    site.notifyOnExpire(lambda event: None)
    browser = Browser(site)
    visit(browser, count)
    visit(browser, lambda request: request.getSession().notifyOnExpire(len) and b"")
    browser.close()
    assert world.clock.getDelayedCalls() == []
