"""
Connections that belong to the user's web session.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.task import Clock
from twisted.web.resource import Resource
from twisted.web.server import Site

from twsessions import Session, SessionResource, SessionSite
from twsessions.sockjs import ConnectionInfo, SockJSConnection, SockJSResource
from twsessions.stores.memory import MemoryStore
from twsessions.testing.browser import Browser, Pending, Response
from twsessions.testing.faulty import FaultyStore


class Talk(SockJSConnection):
    """
    Remembers what happens to it.
    """

    all: list[Talk]

    def __init__(self) -> None:
        self.said: list[Any] = []

    def onOpen(self, info: ConnectionInfo) -> None:
        type(self).all.append(self)
        self.said.append(info.session)

    def onMessage(self, message: str) -> None:
        self.said.append(message)

    def onClose(self, code: int, reason: str) -> None:
        self.said.append((code, reason))


class Page(Resource):
    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.does: Callable[[Session], object] = lambda session: None

    def render_GET(self, request: Any) -> bytes:
        self.does(request.getSession())
        return b"done"


class World:
    """
    A page that has sessions, and a bound SockJS service beside it.
    """

    def __init__(self, store: Any = "memory:", wrap: bool = False, **settings: Any) -> None:
        self.clock = Clock()
        self.clock.advance(1_000_000)
        self.talk: Any = type("Talk", (Talk,), {"all": []})
        self.page = Page()
        self.service = SockJSResource(self.talk, bound=True, **settings)
        root = Resource()
        root.putChild(b"page", self.page)
        root.putChild(b"talk", self.service)
        self.site: Any
        if wrap:
            resource = SessionResource(root, reactor=self.clock, store=store)
            self.site = Site(resource, reactor=self.clock)
        else:
            self.site = SessionSite(root, reactor=self.clock, store=store)
        self.site.doStart()

    def browser(self, **kwargs: Any) -> Browser:
        return Browser(self.site, **kwargs)

    def visit(
        self, browser: Browser, does: Callable[[Session], object] = lambda session: None
    ) -> Response:
        self.page.does = does
        return answer(browser.get("/page"))


def answer(waiting: Any) -> Response:
    """
    What has come already.
    """
    found: list[Response] = []
    waiting.addCallback(found.append)
    return found[0]


def stream(browser: Browser, id: str = "one", **kwargs: Any) -> Pending:
    """
    Open a stream.
    """
    return browser.start("POST", f"/talk/000/{id}/xhr_streaming", **kwargs)


def say(browser: Browser, text: str, id: str = "one", **kwargs: Any) -> int:
    """
    Send a message; the status.
    """
    body = f'["{text}"]'.encode()
    return answer(browser.post(f"/talk/000/{id}/xhr_send", body=body, **kwargs)).code


@pytest.mark.parametrize("wrap", [False, True], ids=["site", "resource"])
def test_itIsTheUsersSession(wrap: bool) -> None:
    """
    The application has the session that the pages have.
    """
    world = World(wrap=wrap)
    ann = world.browser()
    seen: list[Session] = []
    world.visit(ann, lambda session: (session.update(name="Ann"), seen.append(session)))
    opened = stream(ann)
    assert opened.received.endswith(b"o\n\r\n") and b" 200 " in opened.received[:20]
    (talk,) = world.talk.all
    assert talk.said == seen and talk.info.session["name"] == "Ann"
    assert say(ann, "hello") == 204
    assert talk.said[1:] == ["hello"]


def test_theEndOfSeveral() -> None:
    """
    All that are still open end with the session, and those that are closed
    leave nothing behind.
    """
    world = World()
    ann = world.browser()
    seen: list[Session] = []
    world.visit(ann, seen.append)
    for id in "one", "two", "three":
        stream(ann, id)
    first, second, third = world.talk.all
    first.close()
    seen[0].expire()
    assert second.said[-1] == third.said[-1] == (4001, "Session ended")
    world.visit(ann, seen.append)
    stream(ann, "four")
    world.talk.all[-1].close()
    assert not seen[1].expireCallbacks


def test_theSiteIsStartedAgain(tmp_path: Path) -> None:
    """
    What goes by time goes on with the next request.
    """
    clock = Clock()
    root = Resource()
    service = SockJSResource(SockJSConnection)
    root.putChild(b"talk", service)
    site: Any = SessionSite(root, reactor=clock, store=f"sqlite:///{tmp_path}/s.db")
    browser = Browser(site)
    opened = stream(browser)
    alarm = service.service.alarm
    site.doStop()  # the browser's port
    clock.pump([1] * 10)
    site.doStart()
    assert answer(browser.get("/talk/info")).code == 200
    assert service.service.alarm is not alarm
    clock.advance(25)
    assert opened.received.endswith(b"h\n\r\n")
    browser.close()


@pytest.mark.parametrize("transport", ["xhr", "xhr_streaming", "eventsource", "websocket"])
def test_nobodyWithoutASession(transport: str) -> None:
    """
    Who has no session is refused, and gets none by it.
    """
    world = World()
    nobody = world.browser()
    method = "POST" if "xhr" in transport else "GET"
    headers = {}
    if transport == "websocket":
        headers = {
            "Connection": "Upgrade",
            "Upgrade": "websocket",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": "x3JJHMbDL1EzLkh9GBhXDw==",
        }
    response = answer(nobody.request(method, f"/talk/0/x/{transport}", headers=headers))
    assert response.code == 403 and not response.setCookies
    assert not world.talk.all and not world.site.sessions
    assert answer(nobody.request("GET", "/talk/info")).code == 200


@pytest.mark.parametrize("transport", ["jsonp?c=x", "htmlfile?c=x", "jsonp_send"])
def test_whatNoOriginGuardsIsOff(transport: str) -> None:
    """
    A script or a form of any page could use these with the user's cookies.
    """
    world = World()
    ann = world.browser()
    world.visit(ann)
    assert answer(ann.get(f"/talk/0/x/{transport}")).code == 404


def test_othersAreRefused() -> None:
    """
    Somebody else who knows the connection's name gets nothing of it.
    """
    world = World()
    ann, bob, nobody = world.browser(), world.browser(), world.browser()
    world.visit(ann)
    world.visit(bob)
    opened = stream(ann)
    before = opened.received
    for other in bob, nobody:
        assert say(other, "evil") == 403
        assert answer(other.post("/talk/000/one/xhr")).code == 403
        assert answer(other.post("/talk/000/one/xhr_streaming")).code == 403
    (talk,) = world.talk.all
    assert talk.said[1:] == [] and opened.received == before
    assert say(ann, "still mine") == 204


def test_loginKeepsIt() -> None:
    """
    The session's id may change; the connection stays hers.
    """
    world = World()
    ann = world.browser()
    world.visit(ann)
    opened = stream(ann)
    world.visit(ann, lambda session: session.login("ann"))
    assert say(ann, "after") == 204
    (talk,) = world.talk.all
    assert talk.said[1:] == ["after"] and talk.info.session.principal == "ann"
    talk.send("hello")
    assert opened.received.endswith(b'a["hello"]\n\r\n')


@pytest.mark.parametrize("end", ["logout", "idle"])
def test_itsEndClosesTheConnection(end: str) -> None:
    """
    However the session ends, its connections are closed with a code.
    """
    world = World()
    ann, bob = world.browser(), world.browser()
    world.visit(ann)
    world.visit(bob)
    streams = [stream(ann, "one"), stream(ann, "two")]
    others = stream(bob, "three")
    if end == "logout":
        world.visit(ann, lambda session: session.logout())
    else:
        for _ in range(30):
            world.clock.advance(31)
            world.visit(bob)
    for one in streams:
        assert b'c[4001,"Session ended"]\n' in one.received
        assert one.received.endswith(b"0\r\n\r\n")
    assert b"c[" not in others.received
    said = [talk.said[1:] for talk in world.talk.all]
    assert said == [[(4001, "Session ended")], [(4001, "Session ended")], []]


def test_itsEndIsToldToPolls() -> None:
    """
    Also to one that comes after the end, when its cookie names nobody any more;
    what was sent before is no longer for whoever that is.
    """
    world = World()
    ann = world.browser()
    world.visit(ann)
    assert answer(ann.post("/talk/0/one/xhr")).body == b"o\n"
    (talk,) = world.talk.all
    talk.send("secret")
    world.visit(ann, lambda session: session.logout())
    assert say(ann, "late") == 404
    for who in ann, world.browser():
        assert answer(who.post("/talk/0/one/xhr")).body == b'c[4001,"Session ended"]\n'
    assert talk.said[1:] == [(4001, "Session ended")]
    world.clock.advance(6)
    assert answer(ann.post("/talk/0/one/xhr")).code == 403


def test_oneCallbackForAll() -> None:
    """
    However many connections a session has, none is searched for among them at
    its end. One that cannot be told keeps no other from it. When all have gone,
    nothing hangs on the session any more.
    """
    world = World()
    ann = world.browser()
    seen: list[Session] = []
    world.visit(ann, seen.append)
    (session,) = seen
    opened = [stream(ann, f"id{number}") for number in range(3)]
    assert len(session.expireCallbacks) == 1
    for one in opened:
        one.disconnect()
    assert session.expireCallbacks == []

    opened = [stream(ann, f"other{number}") for number in range(3)]

    def cannot() -> None:
        raise OSError("It cannot be told")

    driver: Any = world.service.service.find("other1")
    driver._carrier._request.finish = cannot
    world.visit(ann, lambda session: session.logout())
    ended = [one.received.endswith(b'c[4001,"Session ended"]\n\r\n0\r\n\r\n') for one in opened]
    assert ended == [True, False, True]


def test_pollsAndHeartbeatsAreNoUse() -> None:
    """
    A browser that only polls is nobody at the keyboard.
    """
    world = World()
    ann = world.browser()
    world.visit(ann)
    assert answer(ann.post("/talk/0/one/xhr")).body == b"o\n"
    for _ in range(35):
        poll = ann.start("POST", "/talk/0/one/xhr")
        world.clock.advance(25)
        assert poll.received.endswith(b"h\n\r\n0\r\n\r\n"), poll.received
    poll = ann.start("POST", "/talk/0/one/xhr")
    world.clock.advance(24.9)
    assert not poll.received
    world.clock.advance(0.2)
    assert b"c[4001" in poll.received


@pytest.mark.parametrize("counts", [True, False])
def test_messagesAreUseOrNot(counts: bool) -> None:
    """
    That is a setting.
    """
    world = World(countsAsUse=counts)
    ann = world.browser()
    world.visit(ann)
    opened = stream(ann)
    for _ in range(10):
        world.clock.advance(100)
        code = say(ann, "I am here")
    ended = b"c[4001" in opened.received
    assert ended is not counts and code == (204 if counts else 404)


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://example.com.evil"])
def test_otherOrigins(origin: str) -> None:
    """
    By default only pages of the same host may, on every transport.
    """
    world = World()
    ann = world.browser()
    world.visit(ann)
    opened = stream(ann)
    headers = {"Origin": origin}
    for method, path in [
        ("GET", "info"),
        ("POST", "0/x/xhr"),
        ("POST", "0/x/xhr_streaming"),
        ("POST", "0/one/xhr_send"),
        ("GET", "0/x/eventsource"),
        ("GET", "0/x/websocket"),
        ("GET", "websocket"),
        ("OPTIONS", "0/x/xhr"),
    ]:
        response = answer(ann.request(method, f"/talk/{path}", headers=headers, body=b'["x"]'))
        assert response.code == 403, path
        assert not response.headers.hasHeader("access-control-allow-origin")
    assert len(world.talk.all) == 1 and world.talk.all[0].said[1:] == []
    for same in "http://example.com", "https://EXAMPLE.com":
        assert say(ann, "mine", headers={"Origin": same}) == 204
    opened.disconnect()


def test_listedOrigins() -> None:
    """
    Others can be allowed by name; then the page may read the answers.
    """
    world = World(origins=["https://app.example/"])
    ann = world.browser()
    world.visit(ann)
    stream(ann)
    headers = {"Origin": "https://app.example"}
    response = answer(ann.post("/talk/0/one/xhr_send", body=b'["x"]', headers=headers))
    assert response.code == 204
    allowed = response.headers.getRawHeaders("access-control-allow-origin")
    assert allowed == ["https://app.example"]
    assert say(ann, "x", headers={"Origin": "http://example.com"}) == 403


def test_storeIsAway() -> None:
    """
    Without its store nobody can say whose a connection is: 503, and later again.
    """
    store = FaultyStore(MemoryStore(lambda: 1_000_000.0))
    world = World(store)
    ann = world.browser()
    world.visit(ann, lambda session: session.update(name="Ann"))
    opened = stream(ann)
    store.failNext("load")
    assert say(ann, "lost") == 503
    store.failNext("load")
    assert answer(ann.post("/talk/0/two/xhr")).code == 503
    assert say(ann, "heard") == 204
    assert world.talk.all[0].said[1:] == ["heard"]
    assert b"c[" not in opened.received


def test_answeredInItsStead() -> None:
    """
    A stream whose response is another, because what was changed on the way to
    it could not be stored, carries nothing.
    """

    class Door(Resource):
        def getChild(self, name: bytes, request: Any) -> Resource:
            request.getSession()["visited"] = True
            return world.service

    store = FaultyStore(MemoryStore(lambda: 1_000_000.0))
    world = World(store)
    world.site.resource.putChild(b"door", Door())
    ann = world.browser()
    world.visit(ann)
    store.failNext("commit")
    opened = ann.start("POST", "/door/talk/000/one/xhr_streaming")
    assert b" 500 " in opened.received[:20]
    (talk,) = world.talk.all
    talk.send("nobody hears it")
    assert talk.said[1:] == [(1002, "Connection interrupted")]
    world.clock.advance(6)
    assert not world.service.service._all


def test_stockSite() -> None:
    """
    A stock Site has no session to bind to, and says so.
    """
    clock = Clock()
    root = Resource()
    root.putChild(b"talk", SockJSResource(Talk, bound=True))
    browser = Browser(Site(root, reactor=clock))
    assert answer(browser.post("/talk/0/x/xhr")).code == 500


def test_severalSites() -> None:
    """
    A resource can be in several of them, for HTTP and HTTPS for example. Its
    connections are cared for as long as one is there, and whose request came
    last leaves nothing behind.
    """
    world = World(heartbeat=25.0)
    sites = [world.site, SessionSite(world.site.resource, reactor=world.clock)]
    sites[1].doStart()
    browsers = [Browser(site) for site in sites]
    for browser in browsers:
        world.visit(browser)
    opened = [stream(browser, f"id{number}") for number, browser in enumerate(browsers)]
    alarm = world.service.service.alarm
    before = len(alarm._tasks)
    for _ in range(100):
        for browser in browsers:
            assert answer(browser.get("/talk/info")).code == 200
    assert world.service.service.alarm is alarm and len(alarm._tasks) == before
    world.site.doStop()
    assert answer(browsers[1].get("/talk/info")).code == 200
    world.clock.advance(25.0)
    assert opened[1].received.endswith(b"h\n\r\n")


def test_oneDelayedCall() -> None:
    """
    Sessions and connections of a site share one delayed call.
    """
    world = World()
    browsers = [world.browser() for _ in range(20)]
    for number, browser in enumerate(browsers):
        world.visit(browser, lambda session, n=number: session.update(n=n))  # type: ignore[misc]
        stream(browser, f"id{number}")
    ours = [call for call in world.clock.getDelayedCalls() if "HTTPFactory" not in str(call)]
    assert len(ours) == 1  # the other one writes Twisted's log
    for browser in browsers:
        browser.close()
    world.site.doStop()
    assert not world.clock.getDelayedCalls()
