"""
L{twsessions.SessionResource}, and sites within sites: where somebody else makes
the Site.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from klein import Klein
from treq.client import HTTPClient
from treq.testing import RequestTraversalAgent
from twisted.internet.task import Clock
from twisted.web.resource import Resource
from twisted.web.server import Site
from twisted.web.util import redirectTo

from twsessions import Session, SessionResource, SessionSite
from twsessions.stores.memory import MemoryStore
from twsessions.test.page import Does, Page, result
from twsessions.testing.browser import Browser, Response
from twsessions.testing.faulty import FaultyStore


def count(request: Any) -> bytes:
    session = request.getSession()
    session["n"] = session.get("n", 0) + 1
    return b"%d" % session["n"]


class World:
    """
    A page under whatever.
    """

    def __init__(self, url: str) -> None:
        self.clock = Clock()
        self.clock.advance(1_000_000)
        self.url = url
        self.page = Page()

    def resource(self, root: Any = None, **settings: Any) -> SessionResource:
        return SessionResource(root or self.page, store=self.url, **settings)

    def get(self, browser: Browser, path: str = "/", does: Does = count) -> Response:
        self.page.does = does
        response: Response = result(browser.get(path))
        return response


@pytest.fixture(params=["memory:", "sqlite"])
def world(request: Any, tmp_path: Path) -> World:
    return World(f"sqlite:///{tmp_path}/s.db" if request.param == "sqlite" else request.param)


@pytest.fixture
def browsers() -> Iterator[list[Browser]]:
    opened: list[Browser] = []
    yield opened
    for browser in opened:
        browser.close()


def test_underAStockSite(world: World, browsers: list[Browser]) -> None:
    """
    As with a SessionSite: one cookie, ours, and the values stay.
    """
    browser = Browser(Site(world.resource(), reactor=world.clock))
    browsers.append(browser)
    first = world.get(browser)
    assert first.body == b"1" and len(first.setCookies) == 1
    assert first.setCookies[0].startswith(b"twsession=")
    assert first.headers.getRawHeaders(b"vary") == [b"Cookie"]
    assert [world.get(browser, path).body for path in ("/", "/a/b", "/a/b/?c=d")] == [
        b"2",
        b"3",
        b"4",
    ]
    assert world.get(browser, does=lambda r: b"static").headers.getRawHeaders(b"vary") is None


def test_itIdlesOut(world: World, browsers: list[Browser]) -> None:
    """
    By the reactor of the site that it is under.
    """
    resource = world.resource()
    heard: list[str] = []
    browser = Browser(Site(resource, reactor=world.clock))
    browsers.append(browser)
    world.get(browser)
    resource.notifyOnExpire(lambda end: heard.append(end.reason))
    world.clock.pump([1] * 899)
    assert world.get(browser).body == b"2"
    world.clock.pump([1] * 902)
    assert heard == ["idle"]
    assert world.get(browser).body == b"1"


def test_itNeedsAReactorBeforeTheFirstRequest(world: World) -> None:
    """
    And says how to give it one.
    """
    with pytest.raises(RuntimeError, match="SessionResource"):
        world.resource().notifyOnExpire(lambda end: None)
    world.resource(reactor=world.clock).notifyOnExpire(lambda end: None)


def test_childrenAndNotFound(world: World, browsers: list[Browser]) -> None:
    """
    What is below is found as ever.
    """
    root, leaf = Resource(), Resource()
    root.putChild(b"page", world.page)
    root.putChild(b"deep", leaf)
    leaf.putChild(b"page", world.page)
    resource = world.resource(root)
    resource.putChild(b"later", world.page)
    browser = Browser(Site(resource, reactor=world.clock))
    browsers.append(browser)
    paths = ["/page", "/deep/page", "/later"]
    assert [world.get(browser, path).body for path in paths] == [b"1", b"2", b"3"]
    assert world.get(browser, "/nothing").code == 404
    assert result(browser.post("/page")).code == 405


def test_belowAPath(world: World, browsers: list[Browser]) -> None:
    """
    Only a part of a stock site; the rest has Twisted's sessions.
    """
    root, stock = Resource(), Page()
    seen: list[Any] = []
    stock.does = lambda r: seen.append(type(r.getSession())) or b""
    root.putChild(b"app", world.resource())
    root.putChild(b"stock", stock)
    browser = Browser(Site(root, reactor=world.clock))
    browsers.append(browser)
    assert [world.get(browser, "/app/x").body for _ in range(2)] == [b"1", b"2"]
    assert result(browser.get("/stock")).setCookies[0].startswith(b"TWISTED_SESSION")
    assert not issubclass(seen[0], Session)
    assert world.get(browser, "/app").body == b"3"


def test_aPageThatFails(world: World, browsers: list[Browser]) -> None:
    """
    An error page, with what was changed until then; afterwards all is well.
    """

    def fails(request: Any) -> bytes:
        count(request)
        raise RuntimeError("the page failed")

    browser = Browser(Site(world.resource(), reactor=world.clock))
    browsers.append(browser)
    assert world.get(browser, does=fails).code == 500
    assert world.get(browser).body == b"2"


def test_headAndRedirect(world: World, browsers: list[Browser]) -> None:
    """
    With the cookie.
    """
    browser = Browser(Site(world.resource(), reactor=world.clock))
    browsers.append(browser)
    world.page.does = count
    response = result(browser.request("HEAD", "/"))
    assert (response.code, response.body) == (200, b"") and len(response.setCookies) == 1
    response = world.get(browser, does=lambda r: count(r) and redirectTo(b"/x", r))
    assert response.code == 302
    assert world.get(browser).body == b"3"


def test_theStoreIsWaitedFor(browsers: list[Browser]) -> None:
    """
    At the load and at the commit; when it is down there: 503, 500.
    """
    world = World("")
    store = FaultyStore(MemoryStore(world.clock.seconds))
    world.url = store  # type: ignore[assignment]
    resource = world.resource()
    browser = Browser(Site(resource, reactor=world.clock))
    browsers.append(browser)
    assert world.get(browser).body == b"1"
    rendered: list[int] = []
    world.page.does = lambda r: rendered.append(1) or count(r)
    store.hang()
    pending = browser.start("GET", "/")
    assert rendered == []
    store.resume()
    assert result(pending.response).body == b"2"
    store.down = True
    response = world.get(browser)
    assert response.code == 503 and response.setCookies == []
    assert world.get(browser, does=lambda r: b"static").body == b"static"
    store.down = False
    world.clock.advance(5)

    def cut(request: Any) -> bytes:
        store.failNext("commit")
        return count(request)

    assert world.get(browser, does=cut).code == 500
    assert world.get(browser).body == b"3"
    # Gone while it loads.
    del rendered[:]
    world.page.does = lambda r: rendered.append(1) or count(r)
    store.hang()
    pending = browser.start("GET", "/")
    pending.disconnect()
    store.resume()
    assert resource.sessions == {} and rendered == []
    assert world.get(browser).body == b"4"


def test_klein(world: World, browsers: list[Browser]) -> None:
    """
    C{app.resource()}, with routes, redirects and coroutines.
    """
    app = Klein()

    @app.route("/")
    def index(request: Any) -> bytes:
        return count(request)

    @app.route("/deep/<int:number>")
    async def deep(request: Any, number: int) -> bytes:
        session = request.getSession()
        await session.login(f"user {number}")
        return count(request)

    @app.route("/out")
    def out(request: Any) -> Any:
        return request.getSession().logout().addCallback(lambda _: b"bye")

    @app.route("/go")
    def go(request: Any) -> None:
        count(request)
        request.redirect(b"/")

    @app.route("/branch/", branch=True)
    def branch(request: Any) -> Any:
        return world.page

    resource = world.resource(app.resource())
    browser = Browser(Site(resource, reactor=world.clock))
    browsers.append(browser)
    paths = ["/", "/deep/5", "/deep/6", "/branch/x/y"]
    assert [world.get(browser, path).body for path in paths] == [b"1", b"2", b"3", b"4"]
    assert [one.userAgent for one in result(resource.sessionsOf("user 6"))] == [
        "twsessions.testing.Browser"
    ]
    assert result(resource.sessionsOf("user 5")) == []
    response = result(browser.get("/go", follow=True))
    assert (response.code, response.body) == (200, b"6")
    assert world.get(browser, "/nothing").code == 404
    assert world.get(browser, "/out").body == b"bye"
    assert browser.cookies == {}
    assert world.get(browser, "/").body == b"1"


@pytest.mark.parametrize("asLeaf", [True, False])
def test_treqTesting(tmp_path: Path, asLeaf: bool) -> None:
    """
    The agent makes its own Site and puts its own sessionFactory there.
    """
    page = Page()
    page.does = count
    root: Any = page
    if not asLeaf:
        root = Resource()
        root.putChild(b"page", page)
    agent = RequestTraversalAgent(SessionResource(root, reactor=Clock()))
    client = HTTPClient(agent)

    def ask(**keywords: Any) -> Any:
        asked = client.get("http://example.com/page", **keywords)
        agent.flush()
        response = result(asked)
        text = response.text()
        agent.flush()
        return response, result(text)

    response, text = ask()
    assert text == "1"
    cookies = response.cookies()
    assert [cookie.name for cookie in cookies] == ["twsession"]
    for number in (2, 3):
        assert ask(cookies=cookies)[1] == str(number)
    client = HTTPClient(agent)
    assert ask()[1] == "1"


def test_aSiteInASite(world: World, browsers: list[Browser]) -> None:
    """
    A SessionSite below a stock Site looks after its own requests.
    """
    below = Resource()
    below.putChild(b"", world.page)
    inner = SessionSite(below, reactor=world.clock, store=world.url)
    root = Resource()
    root.putChild(b"inner", inner)
    browser = Browser(Site(root, reactor=world.clock))
    browsers.append(browser)
    replies = [world.get(browser, "/inner/") for _ in range(3)]
    assert [reply.body for reply in replies] == [b"1", b"2", b"3"]
    assert [len(reply.setCookies) for reply in replies] == [1, 0, 0]
    assert replies[0].setCookies[0].startswith(b"twsession=")
    assert world.get(browser, "/inner").code == 302


@pytest.mark.parametrize("kind", ["stock", "ours"])
def test_belowASessionSiteItsSessionsCount(
    world: World, browsers: list[Browser], kind: str
) -> None:
    """
    One cookie, one session for the whole: Twisted makes a new one at each
    alternation.
    """
    below = Resource()
    below.putChild(b"", world.page)
    below.putChild(b"x", world.page)
    inner: Any = (Site if kind == "stock" else SessionSite)(below, reactor=world.clock)
    root = Resource()
    root.putChild(b"inner", inner)
    root.putChild(b"outer", world.page)
    site = SessionSite(root, reactor=world.clock, store=world.url)
    browser = Browser(site)
    browsers.append(browser)
    paths = ["/outer", "/inner/", "/outer", "/inner/x"]
    replies = [world.get(browser, path) for path in paths]
    assert [reply.body for reply in replies] == [b"1", b"2", b"3", b"4"]
    assert sum(len(reply.setCookies) for reply in replies) == 1
    assert inner.sessions == {}


def test_aResourceBelowASessionSiteHasItsOwnSessions(browsers: list[Browser]) -> None:
    """
    Its store, its settings; what the outer site had loaded is let go of.
    """
    world = World("")
    outerStore = FaultyStore(MemoryStore(world.clock.seconds))
    innerStore = MemoryStore(world.clock.seconds)
    from twsessions import CookiePolicy

    root = Resource()
    root.putChild(
        b"inner",
        SessionResource(world.page, store=innerStore, cookie=CookiePolicy(name="inner")),
    )
    root.putChild(b"outer", world.page)
    site = SessionSite(root, reactor=world.clock, store=outerStore)
    browser = Browser(site)
    browsers.append(browser)
    paths = ["/outer", "/inner", "/outer", "/inner"]
    assert [world.get(browser, path).body for path in paths] == [b"1", b"1", b"2", b"2"]
    assert site.sessions == {}


def test_wrongSettingsAreErrorsWhereTheyAreMade() -> None:
    """
    Before there is a reactor.
    """
    with pytest.raises(ValueError):
        SessionResource(Page(), store="nothing:")
    with pytest.raises(ValueError):
        SessionResource(Page(), createOn="never")
    with pytest.raises(TypeError):
        SessionResource(Page(), whatever=1)
    with pytest.raises(TypeError):
        SessionResource(Page(), cookie="name")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        SessionResource(Page(), store=object())  # type: ignore[arg-type]
