"""
Sessions beside whatever else Twisted Web has: virtual hosts, distrib, WSGI,
encoders, proxies, files, guards, templates; and used as Twisted's own
documentation uses them.
"""

from __future__ import annotations

import copy
import gzip
import os
import pickle
import subprocess
import sys
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
import treq
from twisted.cred.checkers import InMemoryUsernamePasswordDatabaseDontUse
from twisted.cred.portal import IRealm, Portal
from twisted.internet import reactor as reactor_
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.threadpool import ThreadPool
from twisted.web import guard, pages, static, template, util
from twisted.web.distrib import ResourceSubscription
from twisted.web.proxy import ReverseProxyResource
from twisted.web.resource import EncodingResourceWrapper, ForbiddenResource, IResource, Resource
from twisted.web.server import NOT_DONE_YET, GzipEncoderFactory, Request, Site
from twisted.web.vhost import NameVirtualHost, VHostMonsterResource
from twisted.web.wsgi import WSGIResource
from zope.interface import implementer

import twsessions
from twsessions import Session, SessionResource, SessionSite
from twsessions.errors import TooLateForSession
from twsessions.stores.memory import MemoryStore
from twsessions.test.page import Does, Page, result
from twsessions.testing.browser import Browser, Response
from twsessions.testing.faulty import FaultyStore

reactor: Any = reactor_


@pytest.fixture
def clock() -> Clock:
    it = Clock()
    it.advance(1_000_000)
    return it


@pytest.fixture(params=["memory:", "sqlite"])
def url(request: Any, tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/s.db" if request.param == "sqlite" else request.param


def count(request: Any) -> bytes:
    session = request.getSession()
    session["n"] = session.get("n", 0) + 1
    return b"%d" % session["n"]


def peek(request: Any) -> bytes:
    return str(request.getSession().get("n")).encode()


class Count(Resource):
    isLeaf = True

    def render_GET(self, request: Any) -> bytes:
        return count(request)


class Before(Resource):
    """
    Counts in the session, then has another resource answer.
    """

    isLeaf = True

    def __init__(self, inner: IResource) -> None:
        super().__init__()
        self.inner = inner

    def render(self, request: Any) -> object:
        count(request)
        return self.inner.render(request)


def tree(**children: IResource) -> Resource:
    root = Resource()
    for name, child in children.items():
        root.putChild(name.encode(), child)
    return root


def asSite(root: IResource, clock: Clock, url: str) -> Any:
    return SessionSite(root, reactor=clock, store=url)


def asResource(root: IResource, clock: Clock, url: str) -> Any:
    return Site(SessionResource(root, reactor=clock, store=url), reactor=clock)


def get(browser: Browser, path: str = "/", **keywords: Any) -> Response:
    response: Response = result(browser.get(path, **keywords))
    return response


def visit(browser: Browser, does: Does, path: str = "/", **keywords: Any) -> Response:
    page: Any = browser.site
    page.page.does = does
    return get(browser, path, **keywords)


# Virtual hosts


@pytest.mark.parametrize("make", [asSite, asResource])
def test_tlsThatEndsAtAProxy(make: Any, clock: Clock, url: str) -> None:
    """
    The request becomes secure while its resource is looked for: so do cookie
    and session, which plain HTTP then has not.
    """
    site = make(tree(app=Count(), vhost=VHostMonsterResource()), clock, url)
    browser = Browser(site)
    secure, plain = "/vhost/https/example.org:443/app", "/vhost/http/example.org:80/app"
    [line] = get(browser, secure).setCookies
    assert line.startswith(b"__Host-twsession=") and b"; Secure" in line
    cookie = line.partition(b";")[0]
    browser.setRawCookie(cookie)
    again = get(browser, secure)
    assert again.body == b"2" and again.setCookies == []
    for path in (plain, "/app"):
        for sent in (cookie, cookie.removeprefix(b"__Host-")):
            browser.setRawCookie(sent)
            response = get(browser, path)
            assert response.body == b"1"
            assert response.setCookies[0].startswith(b"twsession=")
            assert b"Secure" not in response.setCookies[0]
    browser.setRawCookie(cookie)
    assert get(browser, secure).body == b"3"
    browser.close()


@pytest.mark.parametrize("make", [asSite, asResource])
def test_twoHostsOfOneSite(make: Any, clock: Clock, url: str) -> None:
    """
    Browsers keep the cookies of hosts apart; the site has all sessions.
    """
    hosts = NameVirtualHost()
    hosts.addHost(b"one.example", Count())
    hosts.addHost(b"two.example", tree(there=Count()))
    site = make(hosts, clock, url)
    owner = site if isinstance(site, SessionSite) else site.resource
    browser = Browser(site)
    for n in (b"1", b"2"):
        assert get(browser, "http://one.example/").body == n
        assert get(browser, "http://two.example/there").body == n
    assert get(browser, "http://three.example/").code == 404
    uids = {cookie.value.encode() for cookie in browser.jar}
    assert len(uids) == 2
    for uid in uids:
        assert result(owner.loadSession(uid))["n"] == 2
    browser.close()


# Over real connections: distrib, WSGI, a proxy


class Client:
    """
    Asks a port, and keeps the cookies.
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self.cookies: dict[str, str] = {}

    async def get(self, path: str) -> tuple[int, bytes, list[str]]:
        """
        @return: the code, the body and the names of the cookies that were set.
        """
        headers = {}
        if self.cookies:
            headers["Cookie"] = "; ".join(f"{k}={v}" for k, v in self.cookies.items())
        response = await treq.get(
            f"http://127.0.0.1:{self.port}{path}", headers, persistent=False, timeout=10
        )
        body = await response.content()
        names = []
        for line in response.headers.getRawHeaders("set-cookie", []):
            name, _, value = line.partition(";")[0].partition("=")
            self.cookies[name] = value
            names.append(name)
        return response.code, body, names


class Listening:
    """
    What listens on real ports until a test is over.
    """

    def __init__(self) -> None:
        self.ports: list[Any] = []

    def client(self, site: Site) -> Client:
        port = reactor.listenTCP(0, site, interface="127.0.0.1")
        self.ports.append(port)
        return Client(port.getHost().port)

    async def stop(self) -> None:
        for port in self.ports:
            await port.stopListening()


@pytest_twisted.async_yield_fixture
async def listening() -> Any:
    it = Listening()
    yield it
    await it.stop()


PUBLISHER = """
import sys
from twisted.internet import reactor
from twisted.spread.pb import PBServerFactory
from twisted.web.distrib import ResourcePublisher
from twisted.web.server import Site
from twsessions import Session, SessionResource, SessionSite
from twsessions.test.test_web_neighbours import Count

kind, socket, store = sys.argv[1:]
if kind == "stock":
    site = Site(Count())
    site.sessionFactory = Session
elif kind == "site":
    site = SessionSite(Count(), store=store)
else:
    site = Site(SessionResource(Count(), store=store))
    site.sessionFactory = Session
reactor.listenUNIX(socket, PBServerFactory(ResourcePublisher(site)))
reactor.callWhenRunning(print, "up", flush=True)
reactor.run()
"""


@pytest.fixture
def publish(tmp_path: Path) -> Iterator[Callable[[str, str], str]]:
    """
    Starts a process that publishes L{Count}; gives its socket.
    """
    processes: list[subprocess.Popen[bytes]] = []
    environment = dict(os.environ, PYTHONPATH=str(Path(twsessions.__file__).parents[1]))

    def start(kind: str, store: str) -> str:
        socket = str(tmp_path / "p")
        process = subprocess.Popen(
            [sys.executable, "-c", PUBLISHER, kind, socket, store],
            stdout=subprocess.PIPE,
            env=environment,
        )
        processes.append(process)
        assert process.stdout is not None and process.stdout.readline() == b"up\n"
        return socket

    yield start
    for process in processes:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


async def distributed(listening: Listening, socket: str, store: str) -> list[Any]:
    """
    What a client gets from a front with sessions of its own, and from a
    process behind it, by turns.
    """
    behind = ResourceSubscription("unix", socket)
    root = tree(own=Count(), there=behind, both=Before(behind))
    client = listening.client(SessionSite(root, store=store))
    try:
        return [
            await client.get(path)
            for path in ("/own", "/there", "/own", "/there", "/both", "/both", "/own")
        ]
    finally:
        if behind.publisher is not None:
            gone: Deferred[None] = Deferred()
            behind.publisher.broker.notifyOnDisconnect(lambda: gone.callback(None))
            behind.publisher.broker.transport.loseConnection()
            await gone


@pytest.mark.parametrize("kind", ["stock", "site"])
@pytest_twisted.ensureDeferred
async def test_distrib(
    kind: str, url: str, publish: Any, listening: Listening, tmp_path: Path
) -> None:
    """
    Front and publisher have sessions and cookies of their own, also when the
    front used its session before it passed the request on.
    """
    socket = publish(kind, f"sqlite:///{tmp_path}/t.db" if "sqlite" in url else url)
    assert await distributed(listening, socket, url) == [
        (200, b"1", ["twsession"]),
        (200, b"1", ["TWISTED_SESSION_there"]),
        (200, b"2", []),
        (200, b"2", []),
        (200, b"1", ["TWISTED_SESSION_both"]),
        (200, b"2", []),
        (200, b"5", []),  # /both counted here as well
    ]


@pytest_twisted.ensureDeferred
async def test_distribOfASessionResource(
    url: str, publish: Any, listening: Listening, tmp_path: Path
) -> None:
    """
    The publisher has stock sessions of its own, whatever it publishes.
    """
    socket = publish("resource", f"sqlite:///{tmp_path}/t.db" if "sqlite" in url else url)
    behind = ResourceSubscription("unix", socket)
    client = listening.client(SessionSite(behind, store=url))
    try:
        for n in (b"1", b"2"):
            code, body, _ = await client.get("/")
            assert (code, body) == (200, n)
    finally:
        gone: Deferred[None] = Deferred()
        behind.publisher.broker.notifyOnDisconnect(lambda: gone.callback(None))
        behind.publisher.broker.transport.loseConnection()
        await gone


def test_usesBehindDistrib(clock: Clock) -> None:
    """
    A publisher's requests are stock ones: a stock Site's sessions see that
    they are used, a SessionSite's do not.
    """

    def does(request: Any) -> bytes:
        request.sitepath = []
        session = Request.getSession(request)
        session["n"] = session.get("n", 0) + 1
        return b"%d" % session["n"]

    ours = asSite(Page(), clock, "memory:")
    ours.page = ours.resource
    for site, expected in ((onStock(clock), [b"1", b"2", b"3"]), (ours, [b"1", b"2", b"1"])):
        browser = Browser(site)
        got = []
        for _ in expected:
            got.append(visit(browser, does).body)
            clock.pump([1.0] * 500)
        assert got == expected
        browser.close()


class Wsgi:
    """
    An application that streams, notes its thread and sets a cookie if asked.
    """

    def __init__(self) -> None:
        self.threads: set[int] = set()

    def __call__(self, environ: Any, startResponse: Any) -> Iterator[bytes]:
        self.threads.add(threading.get_ident())
        headers = [("Content-Type", "text/plain")]
        if environ["QUERY_STRING"] == "cookie":
            headers.append(("Set-Cookie", "theirs=1"))
        startResponse("200 OK", headers)
        yield from (b"a", b"b" * 70_000, b"c")


WHOLE = b"a" + b"b" * 70_000 + b"c"


@pytest.fixture
def wsgi() -> Iterator[tuple[Wsgi, WSGIResource]]:
    pool = ThreadPool(1, 2)
    pool.start()
    app = Wsgi()
    yield app, WSGIResource(reactor, pool, app)
    pool.stop()


class Noting(Session):
    threads: set[int] = set()

    def touch(self) -> None:
        self.threads.add(threading.get_ident())
        super().touch()

    def sleep(self, request: Any) -> None:
        self.threads.add(threading.get_ident())


@pytest_twisted.ensureDeferred
async def test_wsgi(url: str, wsgi: Any, listening: Listening) -> None:
    """
    An application in its threads knows nothing of sessions; a resource around
    it uses them in the reactor's.
    """
    app, resource = wsgi
    site = SessionSite(tree(plain=resource, counted=Before(resource), n=Count()), store=url)
    site.sessionFactory = Noting
    wrapped = SessionResource(Before(resource), store=url)
    client = listening.client(site)
    assert await client.get("/plain") == (200, WHOLE, [])
    assert await client.get("/counted") == (200, WHOLE, ["twsession"])
    assert await client.get("/counted") == (200, WHOLE, [])
    assert await client.get("/plain?cookie") == (200, WHOLE, ["theirs"])
    assert await client.get("/n") == (200, b"3", [])
    other = listening.client(Site(wrapped))
    assert await other.get("/") == (200, WHOLE, ["twsession"])
    assert await other.get("/?cookie") == (200, WHOLE, ["theirs"])
    assert Noting.threads == {threading.get_ident()}
    assert app.threads.isdisjoint(Noting.threads)
    await wrapped.flush()
    await wrapped._stop()  # nobody but the reactor's shutdown would


@pytest_twisted.ensureDeferred
async def test_theCookiesOfAWsgiApplication(wsgi: Any, listening: Listening) -> None:
    """
    Both cookies are set by one response.
    """
    client = listening.client(SessionSite(Before(wsgi[1])))
    code, _, names = await client.get("/?cookie")
    assert code == 200 and sorted(names) == ["theirs", "twsession"]


@pytest_twisted.ensureDeferred
async def test_reverseProxy(url: str, listening: Listening) -> None:
    """
    What is changed before a request is passed on is stored; the answer comes
    through whole.
    """
    big = static.Data(b"x" * 300_000, "application/octet-stream")
    behind = listening.client(Site(tree(big=big, moved=util.Redirect(b"/big"))))
    proxy = ReverseProxyResource("127.0.0.1", behind.port, b"", reactor=reactor)
    root = tree(n=Count(), plain=proxy)
    for name in (b"big", b"moved", b"missing"):
        path = b"/" + name
        root.putChild(
            name,
            Before(ReverseProxyResource("127.0.0.1", behind.port, path, reactor=reactor)),
        )
    client = listening.client(SessionSite(root, store=url))
    assert await client.get("/plain/big") == (200, b"x" * 300_000, [])
    assert await client.get("/big") == (200, b"x" * 300_000, ["twsession"])
    assert (await client.get("/missing"))[0] == 404
    assert await client.get("/n") == (200, b"3", [])


# Encoders


def gzipped(resource: IResource) -> EncodingResourceWrapper:
    return EncodingResourceWrapper(resource, [GzipEncoderFactory()])


GZIP = {"Accept-Encoding": "gzip"}


def stream(request: Any) -> object:
    count(request)
    request.write(b"a" * 5000)
    count(request)
    request.write(b"b" * 5000)
    request.finish()
    return NOT_DONE_YET


@pytest.mark.parametrize("around", [True, False], ids=["resource", "site"])
@pytest.mark.parametrize("streams", [True, False])
def test_gzipWaitsAsWell(clock: Clock, around: bool, streams: bool) -> None:
    """
    No byte of it leaves before the store has answered, and all of it then.
    """
    store, page = FaultyStore(MemoryStore(clock.seconds)), Page()
    root: Any = gzipped(page)
    if around:
        root = gzipped(SessionResource(page, reactor=clock, store=store))
        site: Any = Site(root, reactor=clock)
    else:
        site = SessionSite(root, reactor=clock, store=store)
    site.page = page
    browser = Browser(site)
    assert visit(browser, count).code == 200

    def does(request: Any) -> object:
        store.hang()
        return stream(request) if streams else count(request) * 10_000

    page.does = does
    pending = browser.start("GET", "/", headers=GZIP)
    assert pending.received == b""
    store.resume()
    response = result(pending.response)
    assert response.headers.getRawHeaders(b"content-encoding") == [b"gzip"]
    assert response.headers.getRawHeaders(b"vary") == [b"Cookie"]
    whole = b"a" * 5000 + b"b" * 5000 if streams else b"2" * 10_000
    assert gzip.decompress(response.body) == whole
    page.does = stream if streams else count
    head = result(browser.request("HEAD", "/", headers=GZIP))
    assert (head.code, head.body) == (200, b"")
    assert visit(browser, peek).body == (b"5" if streams else b"3")
    browser.close()


def test_gzipBelowASessionResource(clock: Clock) -> None:
    browser = Browser(asResource(gzipped(Count()), clock, "memory:"))
    response = get(browser, headers=GZIP)
    assert response.headers.getRawHeaders(b"content-encoding") == [b"gzip"]
    assert gzip.decompress(response.body) == b"1"


# Files, guards, redirects, templates


@implementer(IRealm)
class Realm:
    def requestAvatar(self, name: bytes, mind: object, *interfaces: Any) -> Any:
        return IResource, Before(static.Data(b"hello " + name, "text/plain")), lambda: None


class Later(Resource):
    """
    Finds its child in a second.
    """

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock

    def getChild(self, name: bytes, request: Any) -> Any:
        count(request)
        found: Deferred[Any] = Deferred()
        self.clock.callLater(1, found.callback, static.Data(name, "text/plain"))
        return util.DeferredResource(found)


ANN = {"Authorization": "Basic " + b64encode(b"ann:pw").decode()}
OLD = {"If-Modified-Since": "Fri, 31 Dec 2100 23:59:59 GMT"}


@pytest.mark.parametrize(
    "path, headers, code, body",
    [
        ("/file", {}, 200, b"0123456789"),
        ("/file", OLD, 304, b""),
        ("/file", {"Range": "bytes=3-5"}, 206, b"345"),
        ("/file", {"Range": "bytes=3-5,7-8"}, 206, None),
        ("/file", {"Range": "bytes=30-50"}, 416, b""),
        ("/tagged", {"If-None-Match": '"x"'}, 304, b""),
        ("/moved", {}, 302, None),
        ("/forbidden", {}, 403, None),
        ("/nowhere", {}, 404, None),
        ("/guarded", ANN, 200, b"hello ann"),
        ("/later/x", {}, 200, b"x"),
    ],
)
@pytest.mark.parametrize("make", [asSite, asResource])
def test_whateverAnswers(
    make: Any,
    path: str,
    headers: dict[str, str],
    code: int,
    body: bytes | None,
    clock: Clock,
    url: str,
    tmp_path: Path,
) -> None:
    """
    One cookie, once; told to caches; and what was changed is there.
    """
    file = tmp_path / "file"
    file.write_bytes(b"0123456789")
    tagged = Page()
    tagged.does = lambda request: b"" if request.setETag(b'"x"') else b"changed"
    checker = InMemoryUsernamePasswordDatabaseDontUse(ann=b"pw")
    site = make(
        tree(
            file=Before(static.File(str(file))),
            tagged=Before(tagged),
            moved=Before(util.Redirect(b"/n")),
            forbidden=Before(ForbiddenResource()),
            nowhere=Before(pages.notFound()),
            guarded=guard.HTTPAuthSessionWrapper(
                Portal(Realm(), [checker]), [guard.BasicCredentialFactory(b"here")]
            ),
            later=Later(clock),
            n=Count(),
        ),
        clock,
        url,
    )
    browser = Browser(site)
    for cookies in (1, 0):
        pending = browser.start("GET", path, headers=headers)
        clock.advance(1)
        response = result(pending.response)
        assert response.code == code
        assert body is None or response.body == body
        assert len(response.setCookies) == cookies
        assert response.headers.getRawHeaders(b"vary") == [b"Cookie"]
    assert get(browser, "/n").body == b"3"
    browser.close()


def test_aGuardThatRefusesAsksNobody(clock: Clock, url: str) -> None:
    portal = Portal(Realm(), [InMemoryUsernamePasswordDatabaseDontUse(ann=b"pw")])
    wrapper = guard.HTTPAuthSessionWrapper(portal, [guard.BasicCredentialFactory(b"here")])
    browser = Browser(asSite(wrapper, clock, url))
    response = get(browser)
    assert response.code == 401 and response.setCookies == []
    assert not response.headers.hasHeader(b"vary")
    browser.close()


@pytest.fixture
def browser(clock: Clock, url: str) -> Iterator[Browser]:
    site: Any = asSite(Page(), clock, url)
    site.page = site.resource
    it = Browser(site)
    yield it
    it.close()


class Element(template.Element):
    """
    Its second part is there a second later, and changes the session.
    """

    loader = template.XMLString(
        '<p xmlns:t="http://twistedmatrix.com/ns/twisted.web.template/0.1">'
        '<b t:render="first"/><i t:render="second"/></p>'
    )

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock

    @template.renderer
    def first(self, request: Any, tag: Any) -> Any:
        return tag(count(request).decode())

    @template.renderer
    def second(self, request: Any, tag: Any) -> Any:
        later: Deferred[Any] = Deferred()

        def go() -> None:
            later.callback(tag(count(request).decode()))

        self.clock.callLater(1, go)
        return later


def test_templates(browser: Browser, clock: Clock) -> None:
    """
    C{renderElement} writes the doctype first. So a session has to be asked for
    before it; its renderers can then use and change it, early and late.
    """
    page: Any = browser.site

    def does(request: Any) -> object:
        request.getSession()
        return template.renderElement(request, Element(clock))

    page.page.does = does
    pending = browser.start("GET", "/")
    clock.advance(1)
    response = result(pending.response)
    assert response.body.endswith(b"<p><b>1</b><i>2</i></p>") and len(response.setCookies) == 1
    # Who has a session can be asked for it at any time.
    page.page.does = lambda request: template.renderElement(request, Element(clock))
    pending = browser.start("GET", "/")
    clock.advance(1)
    assert result(pending.response).body.endswith(b"<p><b>3</b><i>4</i></p>")
    assert visit(browser, peek).body == b"4"


def test_aTemplateIsTooLateForANewSession(browser: Browser, clock: Clock) -> None:
    """
    Where stock Twisted would lose the cookie without a word.
    """
    errors: list[Exception] = []

    class Asks(template.Element):
        loader = template.TagLoader(template.Tag("b", render="ask"))

        @template.renderer
        def ask(self, request: Any, tag: Any) -> Any:
            with pytest.raises(TooLateForSession) as raised:
                request.getSession()
            errors.append(raised.value)
            return tag("x")

    response = visit(browser, lambda request: template.renderElement(request, Asks()))
    assert response.body.endswith(b"<b>x</b>") and len(errors) == 1
    assert response.setCookies == []


def test_aPageThatRaisesAfterAChange(browser: Browser) -> None:
    """
    What it changed before is stored, as it would stay in stock Twisted's
    memory; and the new session's cookie is set by the error page.
    """

    def does(request: Any) -> object:
        count(request)
        raise RuntimeError("on purpose")

    first = visit(browser, does)
    assert first.code == 500 and len(first.setCookies) == 1
    assert visit(browser, does).code == 500
    assert visit(browser, peek).body == b"2"


def test_aDeferredThatFiresWhenTheClientHasLeft(browser: Browser, clock: Clock) -> None:
    """
    A session asked for before can still be changed; a new one is refused.
    """
    page: Any = browser.site
    visit(browser, count)
    seen: list[str] = []

    def does(request: Any) -> object:
        early = request.args.get(b"early") is not None
        if early:
            request.getSession()

        def later() -> None:
            try:
                count(request)
                seen.append("changed")
            except TooLateForSession:
                seen.append("too late")

        clock.callLater(1, later)
        return NOT_DONE_YET

    page.page.does = does
    for path in ("/?early=1", "/"):
        browser.start("GET", path)
        browser.disconnect()
        clock.advance(1)
    assert seen == ["changed", "too late"]
    assert visit(browser, peek).body == b"2"


def test_aWriteThatIsWrapped(browser: Browser) -> None:
    """
    As an access log does that counts bytes.
    """
    sizes: list[int] = []

    def does(request: Any) -> object:
        count(request)
        write = request.write

        def counting(data: bytes) -> None:
            sizes.append(len(data))
            write(data)

        request.write = counting
        for part in (b"a", b"bc", b"def"):
            request.write(part)
        request.finish()
        return NOT_DONE_YET

    assert visit(browser, does).body == b"abcdef"
    assert sizes == [1, 2, 3]


# As Twisted's documentation uses sessions


def onStock(clock: Clock, factory: Any = Session) -> Any:
    site: Any = Site(Page(), reactor=clock)
    site.sessionFactory = factory
    site.page = site.resource
    return site


class Howto(Session):
    sessionTimeout = 60

    def __init__(self, site: Any, uid: bytes, reactor: Any = None) -> None:
        self.before = 1  # a subclass may set something first
        Session.__init__(self, site, uid, reactor)
        self.visits = 0


class TwoArguments(Session):
    sessionTimeout = 60

    def __init__(self, site: Any, uid: bytes) -> None:
        super().__init__(site, uid)


class Slots(Session):
    __slots__ = ("cart",)
    sessionTimeout = 60

    def __init__(self, site: Any, uid: bytes, reactor: Any = None) -> None:
        super().__init__(site, uid, reactor)
        self.cart: list[str] = []


class Computed(Session):
    @property
    def sessionTimeout(self) -> float:  # type: ignore[override]
        return 600 if self.get("stays") else 60


class ByName(Session):
    sessionTimeout = 60

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class Anything(Session):
    sessionTimeout = 60

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return None


@pytest.mark.parametrize("factory", [Howto, TwoArguments, Slots, Computed, ByName, Anything])
@pytest.mark.parametrize("kind", ["stock", "memory:", "sqlite"])
def test_subclasses(kind: str, factory: Any, clock: Clock, tmp_path: Path) -> None:
    """
    They count, stay as long as they are used, and end when they should.
    """
    if kind == "stock":
        site = onStock(clock, factory)
    else:
        url = f"sqlite:///{tmp_path}/s.db" if kind == "sqlite" else kind
        site = asSite(Page(), clock, url)
        site.sessionFactory, site.page = factory, site.resource
    browser = Browser(site)
    for n in (b"1", b"2", b"3"):
        assert visit(browser, count).body == n
        clock.pump([1.0] * 50)
    assert [type(session) for session in site.sessions.values()] in ([factory], [])
    clock.pump([1.0] * 12)
    assert len(site.sessions) == 0
    assert visit(browser, peek).body == b"None"
    browser.close()


def test_aComputedTimeoutMayGrow(clock: Clock, url: str) -> None:
    site = asSite(Page(), clock, url)
    site.sessionFactory, site.page = Computed, site.resource
    browser = Browser(site)
    visit(browser, lambda request: request.getSession().update(stays=True, n=1))
    clock.pump([1.0] * 590)
    assert visit(browser, peek).body == b"1"
    clock.pump([1.0] * 600)
    assert visit(browser, peek).body == b"None"
    browser.close()


class Overriding(Session):
    """
    Notes who calls what.
    """

    calls: list[str] = []

    def expire(self) -> Any:
        self.calls.append("expire")
        return super().expire()

    def expiring(self) -> None:
        self.calls.append("expiring")


def test_expiringIsCalledAtEveryEnd(clock: Clock, url: str) -> None:
    """
    C{expire} itself is called by whoever wants the end: not by the clock, as
    Twisted's was.
    """
    ours = asSite(Page(), clock, url)
    ours.sessionFactory, ours.page = Overriding, ours.resource
    for site in (onStock(clock, Overriding), ours):
        Overriding.calls.clear()
        browser = Browser(site)
        visit(browser, lambda request: request.getSession().notifyOnExpire(lambda: None))
        clock.pump([1.0] * 901)
        assert Overriding.calls == ["expiring"]
        visit(browser, lambda request: request.getSession().expire() and b"")
        assert Overriding.calls == ["expiring", "expire", "expiring"]
        browser.close()


def test_theSitesDictionary(clock: Clock, url: str) -> None:
    """
    C{site.sessions[uid].expire()}; a list of it while they expire; C{del}.
    """
    heard: list[int] = []

    def keep(n: int) -> Does:
        def does(request: Any) -> bytes:
            session = request.getSession()
            session["n"] = n
            session.notifyOnExpire(lambda: heard.append(n))
            uid: bytes = session.uid
            return uid

        return does

    ours = asSite(Page(), clock, url)
    ours.page = ours.resource
    for site in (onStock(clock), ours):
        heard.clear()
        browsers = [Browser(site) for _ in range(4)]
        uids = [visit(browser, keep(n)).body for n, browser in enumerate(browsers)]
        assert list(site.sessions) == uids
        assert site.getSession(uids[2]) is site.sessions[uids[2]]
        site.sessions[uids[2]].expire()
        assert heard == [2] and uids[2] not in site.sessions
        for uid in list(site.sessions):
            site.sessions[uid].expire()
        assert heard == [2, 0, 1, 3] and len(site.sessions) == 0
        for browser in browsers:
            assert visit(browser, peek).body == b"None"
        for browser in browsers:
            browser.close()
        site.sessions.clear()


def test_madeByHandWithACookieOfOnesOwn(clock: Clock, url: str) -> None:
    """
    As pages do that log in without C{getSession()}.
    """
    site = asSite(Page(), clock, url)
    site.page = site.resource
    browser = Browser(site)
    browser.site.doStart()
    session = site.makeSession()
    session["n"] = 41
    session.startCheckingExpiration()
    session.startCheckingExpiration()
    assert session.sessionNamespaces == {} and site.sessionCheckTime == 1800
    session.sessionNamespaces["mine"] = object()  # which keeps it in memory
    result(session.commit())
    assert site.getSession(session.uid) is session
    browser.setRawCookie(b"twsession=" + session.uid)
    assert visit(browser, count).body == b"42"
    assert visit(browser, lambda r: list(r.getSession().sessionNamespaces)).body == b"['mine']"
    clock.pump([1.0] * 901)
    assert len(site.sessions) == 0 and session.isExpired
    assert visit(browser, peek).body == b"None"
    browser.close()
    site.doStop()


def test_madeByHandAndLeftAlone(clock: Clock) -> None:
    """
    It ends as any other.
    """
    for site in (onStock(clock), asSite(Page(), clock, "memory:")):
        uid = site.makeSession().uid
        assert uid in site.sessions
        clock.pump([1.0] * 901)
        assert uid not in site.sessions


def test_madeByHandAndLeftAloneBesideAStore(clock: Clock, tmp_path: Path) -> None:
    site = asSite(Page(), clock, f"sqlite:///{tmp_path}/s.db")
    site.doStart()
    try:
        uid = site.makeSession().uid
        clock.pump([1.0] * 901)
        assert uid not in site.sessions
    finally:
        site.doStop()


def test_changedLateAndLeftAlone(clock: Clock, tmp_path: Path) -> None:
    site = asSite(Page(), clock, f"sqlite:///{tmp_path}/s.db")
    site.page = site.resource
    browser = Browser(site)
    sessions: list[Session] = []

    def does(request: Any) -> bytes:
        count(request)
        sessions.append(request.getSession())
        return b""

    visit(browser, does)
    sessions.pop()["late"] = 1
    assert len(site.sessions) == 1  # for the next request, or flush()
    clock.pump([1.0] * 902)
    try:
        assert len(site.sessions) == 0
    finally:
        browser.close()


def test_copies(clock: Clock) -> None:
    """
    A Site that is pickled or copied leaves its sessions behind.
    """
    site = onStock(Clock(), Howto)
    again = pickle.loads(pickle.dumps(site))
    twin = copy.copy(site)
    for other in (again, twin):
        first, second = site.makeSession(), other.makeSession()
        assert list(other.sessions.values()) == [second]
        second.expire()
        assert not first.isExpired
    ours = asSite(Page(), clock, "memory:")
    ours.makeSession()
    double = copy.copy(ours)
    double.makeSession()
    assert double.keeper is not ours.keeper and len(double.sessions) == len(ours.sessions) == 1
