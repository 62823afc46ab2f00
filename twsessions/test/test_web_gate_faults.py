"""
The gate of L{twsessions.web.request} under a store that hangs and fails: no
byte leaves before it has answered, whatever the response is made of and whoever
goes away meanwhile.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any
from weakref import WeakSet

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IPullProducer, IPushProducer
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import globalLogPublisher
from twisted.python.failure import Failure
from twisted.web.server import NOT_DONE_YET, Site
from twisted.web.util import redirectTo
from zope.interface import implementer

from twsessions import Session, SessionSite
from twsessions.errors import (
    LeaseTimeout,
    SessionGone,
    SessionTooLarge,
    StoreUnavailable,
    TooLateForSession,
)
from twsessions.stores.memory import MemoryStore
from twsessions.test.page import Does, Page, result
from twsessions.testing.browser import Browser, Pending, Response
from twsessions.testing.faulty import FaultyStore


class World:
    """
    One store, that a test can hold, and the sites of two processes.
    """

    def __init__(self) -> None:
        self.clock = Clock()
        self.clock.advance(1_000_000.5)
        self.memory = MemoryStore(self.clock.seconds)
        self.store = FaultyStore(self.memory)
        self.sites: list[Any] = []
        self.site = self.makeSite()

    def makeSite(self, **settings: Any) -> Any:
        page = Page()
        site: Any = SessionSite(page, reactor=self.clock, store=self.store, **settings)
        site.page = page
        self.sites.append(site)
        return site

    def start(self, browser: Browser, does: Does, method: str = "GET") -> Pending:
        self.page(browser).does = does
        return browser.start(method, "/")

    def visit(self, browser: Browser, does: Does) -> Response:
        pending = self.start(browser, does)
        response: Response = result(pending.response)
        return response

    def page(self, browser: Browser) -> Any:
        site: Any = browser.site
        return site.page

    def read(self, jar: Any, key: str = "k") -> object:
        """
        What another process tells a client with these cookies.
        """
        site = self.makeSite()
        browser = Browser(site, jar=jar)
        got: list[object] = []
        self.visit(browser, lambda request: got.append(request.getSession().get(key)))
        browser.close()
        return got[0]

    def commits(self) -> int:
        return sum(name == "commit" for name, _ in self.store.calls)


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def failures() -> Iterator[list[Failure]]:
    """
    What is logged as having failed.
    """
    those: list[Failure] = []

    def observe(event: Any) -> None:
        if "log_failure" in event:
            those.append(event["log_failure"])

    globalLogPublisher.addObserver(observe)
    yield those
    globalLogPublisher.removeObserver(observe)


@pytest.fixture
def browser(world: World) -> Iterator[Browser]:
    """
    A client that has a session with C{k = 0}.
    """
    it = Browser(world.site)
    assert world.visit(it, lambda request: put(request, 0) or b"").code == 200
    yield it
    it.close()


def put(request: Any, value: object) -> None:
    request.getSession()["k"] = value


def held(world: World, browser: Browser, does: Does, method: str = "GET") -> Pending:
    """
    A request that renders with the store held: it may see no answer yet.
    """

    def rendered(request: Any) -> object:
        world.store.hang()
        return does(request)

    pending = world.start(browser, rendered, method)
    assert pending.received == b""
    return pending


def step(world: World) -> None:
    """
    What has been asked of the held store is done; what that brings waits.
    """
    store = world.store
    asked, store._held = store._held, []
    for answer, operation, args in asked:
        store._perform(operation, args).chainDeferred(answer)


@implementer(IPushProducer)
class Push:
    """
    Writes some when it is resumed, or told to.
    """

    def __init__(self, request: Any) -> None:
        self.request = request
        self.stopped = 0

    def write(self, data: bytes) -> None:
        self.request.write(data)

    def resumeProducing(self) -> None:
        pass

    def pauseProducing(self) -> None:
        pass

    def stopProducing(self) -> None:
        self.stopped += 1


@implementer(IPullProducer)
class Pull:
    """
    Writes two pieces, one at a time, and finishes.
    """

    def __init__(self, request: Any) -> None:
        self.request = request
        self.pieces = [b"one ", b"two"]
        self.pulls = self.stopped = 0

    def resumeProducing(self) -> None:
        self.pulls += 1
        if self.pieces:
            self.request.write(self.pieces.pop(0))
        else:
            self.request.unregisterProducer()
            self.request.finish()

    def stopProducing(self) -> None:
        self.stopped += 1


# Kinds of responses


def body(request: Any) -> object:
    put(request, 1)
    return b"done"


def pieces(request: Any) -> object:
    put(request, 1)
    for piece in (b"do", b"n", b"e"):
        request.write(piece)
    request.finish()
    return NOT_DONE_YET


def redirect(request: Any) -> object:
    put(request, 1)
    return redirectTo(b"/next", request)


def noContent(request: Any) -> object:
    put(request, 1)
    request.setResponseCode(204)
    return b""


def notModified(request: Any) -> object:
    put(request, 1)
    request.setResponseCode(304)
    return b""


def fails(request: Any) -> object:
    put(request, 1)
    raise RuntimeError("the page failed")


def peek(request: Any) -> object:
    request.peekSession()["k"] = 1
    return b"done"


def onlyFinish(request: Any) -> object:
    put(request, 1)
    request.finish()
    return NOT_DONE_YET


def pull(request: Any) -> object:
    put(request, 1)
    request.registerProducer(Pull(request), False)
    return NOT_DONE_YET


def push(request: Any) -> object:
    put(request, 1)
    producer = Push(request)
    request.registerProducer(producer, True)
    producer.write(b"do")
    producer.write(b"ne")
    request.unregisterProducer()
    request.finish()
    return NOT_DONE_YET


@pytest.mark.parametrize(
    "does, code, expected",
    [
        (body, 200, b"done"),
        (peek, 200, b"done"),
        (pieces, 200, b"done"),
        (redirect, 302, None),
        (noContent, 204, b""),
        (notModified, 304, b""),
        (fails, 500, None),
        (onlyFinish, 200, b""),
        (pull, 200, b"one two"),
        (push, 200, b"done"),
    ],
)
def test_noByteLeavesBeforeTheStoreHasAnswered(
    world: World, browser: Browser, does: Does, code: int, expected: bytes | None
) -> None:
    """
    And then the response is what it would have been.
    """
    pending = held(world, browser, does)
    assert world.commits() == 2
    world.clock.advance(1)
    assert pending.received == b""
    world.store.resume()
    response = result(pending.response)
    assert response.code == code
    if expected is not None:
        assert response.body == expected
    assert world.read(browser.jar) == 1
    # The connection is as good as before.
    assert world.visit(browser, lambda request: b"again").body == b"again"


@pytest.mark.parametrize("does", [body, pieces, onlyFinish, pull, push])
def test_headWaitsAsWell(world: World, browser: Browser, does: Does) -> None:
    """
    And has no body.
    """
    pending = held(world, browser, does, "HEAD")
    world.store.resume()
    world.clock.pump([0] * 3)  # a pull producer of which nothing comes has one turn at a time
    response = result(pending.response)
    assert (response.code, response.body) == (200, b"")
    assert world.read(browser.jar) == 1
    assert world.visit(browser, lambda request: b"again").body == b"again"


def test_fakedHeadWithWritesWaits(world: World, browser: Browser) -> None:
    """
    A page that is asked for GET in HEAD's stead and writes by itself.
    """

    class GetOnly(Page):
        render_HEAD = None  # type: ignore[assignment]

    world.site.resource = world.site.page = GetOnly()

    def writes(request: Any) -> object:
        world.store.hang()
        request.getSession()
        request.write(b"thrown away")
        put(request, 1)
        return b"thrown away as well"

    pending = world.start(browser, writes, "HEAD")
    assert pending.received == b""
    world.store.resume()
    assert result(pending.response).code == 200
    assert world.read(browser.jar) == 1


def test_aResponseThatEndsLaterWaits(world: World, browser: Browser) -> None:
    """
    NOT_DONE_YET; nothing is committed before it begins to answer.
    """
    requests: list[Any] = []

    def later(request: Any) -> object:
        put(request, 1)
        requests.append(request)
        return NOT_DONE_YET

    pending = world.start(browser, later)
    assert world.commits() == 1
    world.store.hang()
    requests[0].write(b"do")
    put(requests[0], 2)  # after the first commit has left
    requests[0].write(b"ne")
    requests[0].finish()
    assert pending.received == b""
    world.store.resume()
    assert result(pending.response).body == b"done"
    assert world.read(browser.jar) == 2


def test_aStreamStoresItsLaterChangesBeforeItsEnd(world: World, browser: Browser) -> None:
    """
    The last chunk waits for the second commit.
    """
    requests: list[Any] = []

    def stream(request: Any) -> object:
        put(request, 1)
        request.write(b"begin ")
        requests.append(request)
        return NOT_DONE_YET

    pending = world.start(browser, stream)
    assert b"begin " in pending.received
    assert world.read(browser.jar) == 1
    world.store.hang()
    put(requests[0], 2)
    requests[0].write(b"middle ")
    assert b"middle " in pending.received
    requests[0].finish()
    before = pending.received
    assert not before.endswith(b"0\r\n\r\n")
    world.store.resume()
    assert result(pending.response).body == b"begin middle "
    assert world.read(browser.jar) == 2


def test_aPullProducerIsNotPulledBeforeTheStoreHasAnswered(world: World, browser: Browser) -> None:
    """
    Nor a push producer registered.
    """
    producers: list[Pull] = []

    def pulled(request: Any) -> object:
        put(request, 1)
        producers.append(Pull(request))
        request.registerProducer(producers[0], False)
        return NOT_DONE_YET

    pending = held(world, browser, pulled)
    assert producers[0].pulls == 0
    world.store.resume()
    assert result(pending.response).body == b"one two"
    assert producers[0].pulls == 3


def test_aPageThatChangesNothingCommitsNothing(world: World, browser: Browser) -> None:
    """
    Reading within a 20th of the idle timeout costs no write.
    """
    before = world.commits()
    assert world.visit(browser, lambda request: request.getSession()["k"]).body == b"0"
    assert world.visit(browser, lambda request: b"static").body == b"static"
    assert world.commits() == before


def test_pipelinedRequestsSeeTheChangesOfTheFirst(world: World, browser: Browser) -> None:
    """
    Both were sent at once; the second is rendered when the first is stored.
    """
    seen: list[object] = []

    def both(request: Any) -> object:
        if request.uri == b"/first":
            world.store.hang()
            put(request, 1)
            return b"first"
        seen.append(request.getSession()["k"])
        return b"second"

    world.site.page.does = both
    cookie = "; ".join(f"{name}={value}" for name, value in browser.cookies.items()).encode()
    transport = StringTransport()
    channel = world.site.buildProtocol(None)
    channel.timeOut = None
    channel.makeConnection(transport)
    for path in (b"/first", b"/second"):
        channel.dataReceived(
            b"GET %s HTTP/1.1\r\nHost: example.com\r\nCookie: %s\r\n\r\n" % (path, cookie)
        )
    assert transport.value() == b"" and seen == []
    world.store.resume()
    assert seen == [1]
    assert transport.value().index(b"first") < transport.value().index(b"second")
    channel.connectionLost(Failure(ConnectionDone()))


# The client goes away


def test_goneBeforeTheLoadAnswers(world: World, browser: Browser) -> None:
    """
    Nothing is rendered, and nothing is kept.
    """
    rendered: list[Any] = []
    world.store.hang()
    pending = world.start(browser, lambda request: rendered.append(request) or b"")
    pending.disconnect()
    world.store.resume()
    assert rendered == []
    assert world.site.sessions == {}
    assert world.read(browser.jar) == 0


def test_goneWhileTheCommitIsUnderWay(world: World, browser: Browser) -> None:
    """
    It is stored all the same, and nothing is kept.
    """
    for does in (body, pieces, pull, push):
        pending = held(world, browser, does)
        pending.disconnect()
        world.store.resume()
        assert world.site.sessions == {}
        assert world.read(browser.jar) == 1
        world.visit(browser, lambda request: put(request, 0) or b"")


def test_goneBeforeTheAnswerIsBegun(world: World, browser: Browser) -> None:
    """
    What was changed until then is stored when the client goes.
    """
    pending = world.start(browser, lambda request: put(request, 1) or NOT_DONE_YET)
    pending.disconnect()
    assert world.site.sessions == {}
    assert world.read(browser.jar) == 1


def test_goneMidStream(world: World, browser: Browser) -> None:
    """
    What was changed since the headers is stored.
    """

    def stream(request: Any) -> object:
        put(request, 1)
        request.write(b"begin")
        put(request, 2)
        return NOT_DONE_YET

    pending = world.start(browser, stream)
    pending.disconnect()
    assert world.site.sessions == {}
    assert world.read(browser.jar) == 2


def test_whatAHandlerChangesAfterTheClientWentIsStored(world: World, browser: Browser) -> None:
    """
    A handler that goes on by itself and finishes, as many do.
    """
    requests: list[Any] = []

    def slow(request: Any) -> object:
        session = request.getSession()
        requests.append((request, session))
        return NOT_DONE_YET

    pending = world.start(browser, slow)
    [(request, session)] = requests
    pending.disconnect()
    session["k"] = 5
    request.write(b"nobody hears")
    with pytest.raises(RuntimeError):
        request.finish()  # as Twisted's
    assert world.read(browser.jar) == 5
    assert world.site.sessions == {}


def test_whatIsChangedAfterTheRequestIsStoredByFlush(world: World, browser: Browser) -> None:
    """
    C{site.flush()} does it for every session that somebody still holds.
    """
    sessions: list[Any] = []
    world.visit(browser, lambda request: sessions.append(request.getSession()) or b"")
    sessions[0]["k"] = 7
    result(world.site.flush())
    assert world.read(browser.jar) == 7
    assert world.site.sessions == {}


# The store fails


def test_storeDownAtTheLoad(world: World, browser: Browser) -> None:
    """
    503 and no Set-Cookie; a page without session is 200; afterwards the same
    cookie works.
    """
    cookies = dict(browser.cookies)
    world.store.down = True
    response = world.visit(browser, lambda request: request.getSession()["k"])
    assert response.code == 503 and response.setCookies == []
    assert response.headers.getRawHeaders(b"retry-after") is not None
    assert world.visit(browser, lambda request: b"static").body == b"static"
    world.store.down = False
    world.clock.advance(5)  # the breaker
    response = world.visit(browser, lambda request: request.getSession()["k"])
    assert (response.code, response.body) == (200, b"0")
    assert dict(browser.cookies) == cookies


def test_storeHungAtTheLoad(world: World, browser: Browser) -> None:
    """
    The same, after C{storeTimeout}.
    """
    world.store.hang()
    pending = world.start(browser, lambda request: request.getSession()["k"])
    world.clock.advance(1.9)
    assert pending.received == b""
    world.clock.advance(0.1)
    response = result(pending.response)
    assert response.code == 503 and response.setCookies == []
    other = world.start(browser, lambda request: b"static")
    world.clock.advance(2)
    assert result(other.response).body == b"static"


def test_aPageThatHandlesTheOutageLeavesTheCookie(world: World, browser: Browser) -> None:
    """
    The cookie is as good as before: it is neither deleted nor replaced.
    """

    def fallback(request: Any) -> bytes:
        for _ in range(2):
            with pytest.raises(StoreUnavailable):
                request.getSession()
        return b"sorry"

    world.store.down = True
    response = world.visit(browser, fallback)
    assert (response.code, response.body, response.setCookies) == (200, b"sorry", [])
    world.store.down = False
    assert world.visit(browser, lambda request: request.getSession()["k"]).body == b"0"


def test_storeDownForAClientWithoutCookie(world: World) -> None:
    """
    It has no session to lose, but none can be made either.
    """
    browser = Browser(world.site)
    world.store.down = True
    response = world.visit(browser, lambda request: put(request, 1) or b"hello")
    assert response.code == 500 and response.setCookies == []
    assert b"hello" not in response.body

    def load(request: Any) -> object:
        return result(world.site.loadSession(b"a" * 64))

    assert world.visit(browser, load).code == 503
    browser.close()


@pytest.mark.parametrize("does", [body, pieces, redirect, noContent, onlyFinish, pull, push])
@pytest.mark.parametrize("how", ["down", "hung"])
def test_storeDownAtTheCommit(world: World, browser: Browser, does: Does, how: str) -> None:
    """
    500 and nothing of the page; the old value stands and the session works on.
    """

    def rendered(request: Any) -> object:
        if how == "hung":
            world.store.hang()
        else:
            world.store.failNext("commit")
        request.setHeader(b"x-page", b"1")
        return does(request)

    pending = world.start(browser, rendered)
    if how == "hung":
        world.clock.advance(2)
    response = result(pending.response)
    assert response.code == 500 and response.setCookies == []
    assert b"done" not in response.body and b"one" not in response.body
    assert response.headers.getRawHeaders(b"x-page") is None
    assert response.headers.getRawHeaders(b"location") is None
    assert world.site.sessions == {}  # the copy is dropped
    if how == "down":
        assert world.visit(browser, lambda request: request.getSession()["k"]).body == b"0"
        assert world.visit(browser, body).code == 200
        assert world.read(browser.jar) == 1


def test_storeDownAtTheEndOfAStream(world: World, browser: Browser) -> None:
    """
    The stream is cut off: it must not look complete.
    """
    requests: list[Any] = []

    def stream(request: Any) -> object:
        put(request, 1)
        request.write(b"begin")
        requests.append(request)
        return NOT_DONE_YET

    pending = world.start(browser, stream)
    put(requests[0], 2)
    world.store.failNext("commit")
    requests[0].finish()
    with pytest.raises(ConnectionLost):
        result(pending.response)
    assert world.site.sessions == {}
    assert world.read(browser.jar) == 1


def test_aHeldProducerIsStoppedWhenTheCommitFails(world: World, browser: Browser) -> None:
    """
    It would wait for ever otherwise.
    """
    producers: list[Push] = []

    def pushes(request: Any) -> object:
        put(request, 1)
        producers.append(Push(request))
        request.registerProducer(producers[0], True)
        return NOT_DONE_YET

    pending = held(world, browser, pushes)
    world.clock.advance(2)
    assert result(pending.response).code == 500
    assert producers[0].stopped == 1


def test_aHeldProducerIsStoppedWhenThePageFailsOrTheClientHasGone(
    world: World, browser: Browser
) -> None:
    producers: list[Push] = []

    def pushes(request: Any) -> object:
        producers.append(Push(request))
        put(request, len(producers))
        request.registerProducer(producers[-1], True)
        return NOT_DONE_YET

    pending = held(world, browser, lambda request: pushes(request) and {}[1])
    assert producers[0].stopped == 1
    world.store.resume()
    assert result(pending.response).code == 500
    pending = held(world, browser, pushes)
    pending.disconnect()
    producers[1].request.unregisterProducer()
    world.store.resume()
    assert producers[1].stopped == 1


def test_whoGoesAwayWhileTheCommitFailsLeavesNothing(world: World, browser: Browser) -> None:
    pending = held(world, browser, pieces)
    pending.disconnect()
    world.clock.advance(2)
    assert world.site.sessions == {}
    world.store.resume()
    assert world.read(browser.jar) in (0, 1)


def test_allThatIsHeldLeavesInItsOrderThoughItIsHeldAgain(world: World, browser: Browser) -> None:
    """
    The session was given a new id while the response waited.
    """
    pending = held(world, browser, pieces)
    [session] = world.site.sessions.values()
    session.rotate()
    step(world)
    assert pending.received == b""
    world.store.resume()
    response = result(pending.response)
    assert (response.body, len(response.setCookies)) == (b"done", 1)
    assert world.read(browser.jar) == 1


def test_aLoadThatACommitOvertakesBringsNothingOldBack(world: World, browser: Browser) -> None:
    requests: list[Any] = []
    other = Browser(world.site, jar=browser.jar)
    first = world.start(browser, lambda r: requests.append((r, r.getSession())) or NOT_DONE_YET)
    world.store.hang()
    second = world.start(other, lambda request: b"%d" % request.getSession()["k"])
    request, session = requests[0]
    session["k"] = 1
    request.write(b"saved")
    asked, world.store._held = world.store._held, []
    answers = [world.store._perform(operation, args) for _, operation, args in asked]
    assert [operation for _, operation, _ in asked] == ["load", "commit"]
    for (waiting, _, _), answer in reversed(list(zip(asked, answers, strict=True))):
        answer.chainDeferred(waiting)
    world.store.resume()
    assert session["k"] == 1
    request.finish()
    assert result(first.response).body == b"saved"
    assert result(second.response).body == b"1"
    other.close()


def test_nothingIsKeptOfASessionThatNobodyUses(world: World, browser: Browser) -> None:
    """
    Though its time was set anew.
    """
    sessions: WeakSet[Session] = WeakSet()

    def change(request: Any) -> bytes:
        sessions.add(request.getSession())
        request.getSession().setTimeout(600)
        return b""

    world.visit(browser, change)
    world.clock.pump([1.0] * 60)
    gc.collect()
    assert not sessions and not world.site.sessions


@pytest.mark.parametrize("fails", [False, True])
def test_anEndIsWaitedForAlsoByWhoGoesOnWithAnother(
    world: World, browser: Browser, fails: bool
) -> None:
    """
    Of which there is nothing to store.
    """
    site = world.makeSite(createOn="write")
    other = Browser(site, jar=browser.jar)

    def again(request: Any) -> bytes:
        request.getSession().logout()
        assert "k" not in request.getSession()
        return b"bye"

    pending = held(world, other, again)
    world.store.down = fails
    world.store.resume()
    assert result(pending.response).code == (500 if fails else 200)
    world.store.down = False
    assert world.read(browser.jar) == (0 if fails else None)
    other.close()


def test_whoWritesAfterARefusalIsNotHeard(world: World, browser: Browser) -> None:
    """
    The client has its answer, and the connection is free for the next stream.
    """
    streams: list[Push] = []

    def stream(request: Any) -> object:
        request.getSession()
        streams.append(Push(request))
        request.registerProducer(streams[-1], True)
        return NOT_DONE_YET

    pending = world.start(browser, stream)
    request = streams[0].request
    put(request, 1)
    world.store.failNext("commit")
    request.write(b"first")
    assert result(pending.response).code == 500
    assert streams[0].stopped == 1
    streams[0].write(b"second")
    request.unregisterProducer()
    request.registerProducer(streams[0], True)
    assert streams[0].stopped == 2
    request.finish()
    pending = world.start(browser, stream)
    streams[1].write(b"next")
    streams[1].request.unregisterProducer()
    streams[1].request.finish()
    assert result(pending.response).body == b"next"
    assert streams[1].stopped == 0


def test_aPageThatIsAnswered503WhileItsCommitFails(
    world: World, browser: Browser, failures: list[Failure]
) -> None:
    def outage(request: Any) -> object:
        put(request, 1)
        request.write(b"begun")
        raise StoreUnavailable("another one is away")

    pending = world.start(browser, lambda request: world.store.hang() or outage(request))
    assert result(pending.response).code == 503
    world.store.down = True
    world.store.resume()
    assert {failure.type for failure in failures} == {StoreUnavailable}


def test_tooLargeIs500AndTheOldVersionStands(world: World, browser: Browser) -> None:
    """
    Many values that are too much together; nothing goes to the store.
    """
    before = world.commits()

    def much(request: Any) -> bytes:
        for number in range(10):
            request.getSession()[f"big{number}"] = "x" * 10_000
        return b"hello"

    response = world.visit(browser, much)
    assert response.code == 500 and b"hello" not in response.body
    assert world.commits() == before
    assert world.visit(browser, lambda request: sorted(request.getSession())).body == b"['k']"
    assert world.visit(browser, body).code == 200


def test_oneValueThatIsTooLargeIsRefusedAtTheAssignment(world: World, browser: Browser) -> None:
    """
    Which a page can handle.
    """

    def much(request: Any) -> bytes:
        with pytest.raises(SessionTooLarge, match="'k'"):
            put(request, "x" * 70_000)
        return b"handled"

    assert world.visit(browser, much).body == b"handled"
    assert world.read(browser.jar) == 0


def test_aNestedValueThatCannotBeStoredIs500(world: World, browser: Browser) -> None:
    """
    It became so after its assignment; nothing is half-written.
    """
    world.visit(browser, lambda request: put(request, [1]) or b"")

    def spoil(request: Any) -> bytes:
        request.getSession()["other"] = 1
        request.getSession()["k"].append(object())
        return b"hello"

    assert world.visit(browser, spoil).code == 500
    assert world.read(browser.jar) == [1]
    assert world.read(browser.jar, "other") is None
    assert world.visit(browser, lambda request: request.getSession()["k"]).body == b"[1]"


@pytest.mark.parametrize("isFound", [False, True])
def test_endedElsewhereMeanwhileIs409(world: World, browser: Browser, isFound: bool) -> None:
    """
    What the page has written went nowhere, also if another request is the first
    to find out; the cookie is taken away.
    """
    other = Browser(world.makeSite(), jar=browser.jar)
    requests: list[Any] = []
    pending = world.start(browser, lambda request: requests.append(request) or NOT_DONE_YET)
    session = requests[0].getSession()
    cookies = dict(browser.cookies)
    old = "; ".join(f"{name}={value}" for name, value in cookies.items()).encode()
    world.visit(other, lambda request: request.getSession().logout() and b"")
    session["k"] = 1
    if isFound:
        asking = Browser(world.site)
        asking.setRawCookie(old)
        assert world.visit(asking, lambda request: request.peekSession()).body == b"None"
        asking.close()
    requests[0].write(b"hello")
    requests[0].finish()
    response = result(pending.response)
    assert response.code == 409 and b"hello" not in response.body
    [line] = response.setCookies
    assert b"Max-Age=0" in line
    assert world.site.sessions == {}
    browser.setRawCookie(old)
    assert world.visit(browser, lambda request: request.getSession().get("k")).body == b"None"
    other.close()


def test_aUseThatCannotBeStored(world: World, browser: Browser) -> None:
    """
    It fails no reader and ends nothing, unless the session has ended elsewhere.
    """
    other = Browser(world.makeSite(), jar=browser.jar)
    ended: list[str] = []
    requests: list[Any] = []

    def watch(request: Any) -> bytes:
        request.getSession().notifyOnExpire(lambda: ended.append("heard"))
        return b""

    def look(request: Any) -> object:
        world.store.down = True
        return request.getSession()["k"]

    world.visit(browser, watch)
    world.clock.advance(100)
    assert world.visit(browser, look).body == b"0"
    assert not ended
    world.store.down = False
    world.clock.advance(100)
    pending = world.start(browser, lambda request: requests.append(request) or NOT_DONE_YET)
    assert requests[0].getSession()["k"] == 0
    world.visit(other, lambda request: request.getSession().logout() and b"")
    requests[0].finish()
    assert result(pending.response).code == 200
    assert ended == ["heard"]
    other.close()


def test_usesAreCountedOnce(world: World) -> None:
    """
    Also if it is time to store them while a commit is under way.
    """
    site = world.makeSite()
    site.sessionFactory = type("Short", (Session,), {"sessionTimeout": 20})
    browser = Browser(site)
    world.visit(browser, body)
    pending = held(world, browser, lambda request: put(request, 2) or b"")
    [session] = site.sessions.values()
    session.touch()
    world.clock.advance(1.5)
    world.store.resume()
    assert result(pending.response).code == 200
    shown = world.visit(browser, lambda request: request.getSession().requestCount)
    assert shown.body == b"3"
    browser.close()


def test_aRequestThatSharedAFailedCommitFailsToo(world: World, browser: Browser) -> None:
    """
    Two requests of one session: what the second changed is dropped with the
    first's, so its answer must not say that it was saved.
    """
    requests: list[Any] = []
    other = Browser(world.site, jar=browser.jar)
    second = world.start(other, lambda request: requests.append(request) or NOT_DONE_YET)
    session = requests[0].getSession()
    first = held(world, browser, body)
    session["second"] = 1
    world.clock.advance(2)
    assert result(first.response).code == 500
    world.store.resume()
    world.clock.advance(5)
    requests[0].write(b"saved")
    requests[0].finish()
    response = result(second.response)
    stored = world.read(browser.jar, "second")
    assert (response.code, stored) in [(500, None), (200, 1)]
    other.close()


# The end of a session under the gate


@pytest.mark.parametrize("ask", ["getSession", "peekSession"])
def test_logoutIsStoredBeforeTheAnswer(world: World, browser: Browser, ask: str) -> None:
    """
    Once the client knows, the old id is dead everywhere.
    """
    pending = held(world, browser, lambda request: getattr(request, ask)().logout() and b"bye")
    world.store.resume()
    assert result(pending.response).code == 200
    assert browser.cookies == {}


def test_logoutWhileACommitIsUnderWayIsStoredBeforeTheAnswer(
    world: World, browser: Browser
) -> None:
    """
    The answer waits for the end, and not only for what was sent before it.
    """
    jar = dict(browser.cookies)

    def both(request: Any) -> bytes:
        session = request.getSession()
        session["k"] = 1
        session.commit()
        session.expire()
        return b"bye"

    pending = held(world, browser, both)
    # The first commit is answered, the end is not.
    [(answer, name, args)] = world.store._held
    world.store._held.clear()
    world.store._perform(name, args).chainDeferred(answer)
    assert pending.received == b""
    world.store.resume()
    assert result(pending.response).body == b"bye"
    assert jar and browser.cookies == {}


@pytest.mark.parametrize("spoil", [object(), "x" * 70_000])
def test_logoutOfWhatCannotBeStored(world: World, browser: Browser, spoil: object) -> None:
    """
    It ends all the same, with what was stored last.
    """
    heard: list[Any] = []
    world.site.notifyOnExpire(heard.append)

    def logout(request: Any) -> bytes:
        session = request.getSession()
        session["list"] = values = []
        values.append(spoil)
        session.logout()
        return b"out"

    assert world.visit(browser, logout).body == b"out"
    assert world.read(browser.jar) is None
    world.clock.advance(1)
    assert [end.data for end in heard] == [{"k": 0}]


def test_logoutOfWhatHasEndedElsewhere(world: World, browser: Browser) -> None:
    other = Browser(world.makeSite(), jar=browser.jar)
    requests: list[Any] = []
    pending = world.start(browser, lambda request: requests.append(request) or NOT_DONE_YET)
    session = requests[0].getSession()
    world.visit(other, lambda request: request.getSession().logout() and b"")
    result(session.logout())
    requests[0].finish()
    assert result(pending.response).code == 200
    other.close()


def test_allSessionsOfAPrincipalEndedByTwoAtOnce(world: World) -> None:
    browsers = [Browser(world.site) for _ in range(3)]
    for browser in browsers:
        world.visit(browser, lambda request: request.getSession().login("ann") and b"")
    counts: list[int] = []
    world.store.hang()
    for site in (world.makeSite(), world.makeSite()):
        site.expireSessionsOf("ann").addCallback(counts.append)
    for _ in range(3):
        step(world)  # so that both have the list before either ends anything
    assert sum(counts) == 3 and len(counts) == 2
    world.store.resume()
    for browser in browsers:
        browser.close()


def test_aRotationMeanwhileIsNoEscape(world: World) -> None:
    """
    From the end of all sessions of a principal.
    """
    page = Page()
    there: Any = SessionSite(page, reactor=world.clock, store=FaultyStore(world.memory))
    there.page = page
    browser = Browser(there)
    world.visit(browser, lambda request: request.getSession().login("ann") and b"")
    counts: list[int] = []
    world.store.hang()
    world.site.expireSessionsOf("ann").addCallback(counts.append)
    step(world)
    world.visit(browser, lambda request: request.getSession().rotate())
    world.store.resume()
    assert counts == [1]
    assert world.visit(browser, lambda request: request.getSession().principal).body == b"None"
    browser.close()


def test_anEndThatFollowsACommitIsStored(world: World, browser: Browser) -> None:
    """
    Outside a request, where nothing else sees to it.
    """
    session = result(world.site.loadSession(next(iter(browser.cookies.values())).encode()))
    session["k"] = 1
    world.store.hang()
    committed, ended = session.commit(), session.expire()
    again = session.expire()
    world.store.resume()
    for deferred in (committed, ended, again):
        assert result(deferred) is None
    assert world.read(browser.jar) is None


def test_aRequestWithTheOldIdDuringARotationSharesIt(world: World, browser: Browser) -> None:
    """
    It came before the rotation was stored; it goes on with the new id.
    """
    requests: list[Any] = []

    def rotate(request: Any) -> object:
        request.getSession().rotate()
        requests.append(request)
        return NOT_DONE_YET

    def write(request: Any) -> object:
        put(request, "written")
        requests.append(request)
        return NOT_DONE_YET

    other = Browser(world.site, jar=browser.jar)
    first = world.start(browser, rotate)
    second = world.start(other, write)
    for request in requests:
        request.finish()
    assert result(first.response).code == result(second.response).code == 200
    assert world.read(browser.jar) == "written"
    other.close()


def test_logoutAndANewSessionInOneRequestWaitForBoth(world: World, browser: Browser) -> None:
    """
    The old one's end is as much a part of the answer as the new one.
    """
    old = "; ".join(f"{name}={value}" for name, value in browser.cookies.items()).encode()

    def switch(request: Any) -> int:
        def goOn(outcome: object) -> None:
            assert isinstance(outcome, Failure)
            request.getSession()["k"] = "new"
            request.write(b"switched")
            request.finish()

        world.store.failNext("commit")  # the end has to be sent again
        request.getSession().logout().addBoth(goOn)
        return NOT_DONE_YET

    response = world.visit(browser, switch)
    assert response.code == 200 and len(response.setCookies) == 1
    assert world.read(browser.jar) == "new"
    browser.setRawCookie(old)
    assert world.visit(browser, lambda request: request.getSession().get("k")).body == b"None"


def test_logoutThatCannotBeStoredIs500AlsoIfANewSessionWasMade(
    world: World, browser: Browser
) -> None:
    """
    The client must not believe that the old one has ended.
    """

    def switch(request: Any) -> bytes:
        world.store.down = True
        request.getSession().logout()
        request.getSession()["k"] = "new"
        return b"switched"

    response = world.visit(browser, switch)
    assert response.code == 500 and response.setCookies == []
    world.store.down = False
    assert world.read(browser.jar) == 0


def test_logoutThatCannotBeStoredIs500AndCanBeTriedAgain(world: World, browser: Browser) -> None:
    """
    The breaker is open: the store says no at once.
    """

    def out(request: Any) -> bytes:
        world.store.down = True
        request.getSession().logout()
        return b"bye"

    assert world.visit(browser, out).code == 500
    world.store.down = False
    assert world.read(browser.jar) == 0
    assert world.visit(browser, lambda request: request.getSession().logout() and b"").code == 200
    assert browser.cookies == {}


def test_aLogoutThatFailedCanBeAskedForAgainInTheSameRequest(
    world: World, browser: Browser
) -> None:
    """
    C{expire()} has failed; the second one works, and so the answer is good.
    """
    outcomes: list[object] = []

    def out(request: Any) -> int:
        session = request.getSession()

        def again(outcome: object) -> None:
            outcomes.append(outcome)
            session.expire().addBoth(outcomes.append)
            request.write(b"bye")
            request.finish()

        world.store.failNext("commit")
        session.expire().addBoth(again)
        return NOT_DONE_YET

    assert world.visit(browser, out).body == b"bye"
    assert isinstance(outcomes[0], Failure) and outcomes[0].check(StoreUnavailable)
    assert outcomes[1] is None
    assert browser.cookies == {}


def test_whatAProducerChangesBehindTheGateIsStored(world: World, browser: Browser) -> None:
    """
    The response was held, and is let go of: the producer runs only now, and the
    end of the response waits for what it changed.
    """

    class Late:
        def __init__(self, session: Any) -> None:
            self.session = session

        def resumeProducing(self) -> None:
            self.session["k"] = "late"

        def stopProducing(self) -> None:
            pass

    def page(request: Any) -> int:
        session = request.getSession()
        session["k"] = "early"
        request.write(b"x")
        request.registerProducer(Late(session), False)
        request.unregisterProducer()
        request.finish()
        return NOT_DONE_YET

    assert world.visit(browser, page).body == b"x"
    assert world.read(browser.jar) == "late"


def test_expiringFromACallbackFiresItsDeferred(world: World, browser: Browser) -> None:
    """
    Re-entrant, with a store that takes its time.
    """
    calls: list[object] = []

    def out(request: Any) -> bytes:
        session = request.getSession()
        session.notifyOnExpire(lambda: session.expire().addCallback(calls.append))
        session.expire().addCallback(calls.append)
        return b"bye"

    pending = held(world, browser, out)
    assert calls == []
    world.store.resume()
    assert result(pending.response).body == b"bye"
    assert calls == [None, None]


def test_rotationIsStoredBeforeTheAnswer(world: World, browser: Browser) -> None:
    """
    Until then the old id is good, and afterwards it is dead everywhere.
    """
    old = "; ".join(f"{name}={value}" for name, value in browser.cookies.items()).encode()
    pending = held(world, browser, lambda request: request.getSession().rotate())
    world.store.resume()
    assert result(pending.response).code == 200
    assert world.read(browser.jar) == 0
    browser.setRawCookie(old)
    assert world.visit(browser, lambda request: request.getSession().get("k")).body == b"None"


def test_rotationThatCannotBeStoredLeavesTheOldId(world: World, browser: Browser) -> None:
    """
    500; the cookie that the browser has still works.
    """

    def rotate(request: Any) -> bytes:
        world.store.failNext("commit")
        request.getSession().login("alice")
        return b"hello"

    cookies = dict(browser.cookies)
    response = world.visit(browser, rotate)
    assert response.code == 500 and response.setCookies == []
    assert dict(browser.cookies) == cookies
    assert world.read(browser.jar) == 0
    shown = world.visit(browser, lambda request: request.getSession().principal)
    assert shown.body == b"None"


def test_rotationThatCannotBeStoredLeavesTheSession(world: World, browser: Browser) -> None:
    """
    A request of the same session goes on with it, under the old id.
    """
    streams: list[Any] = []
    ended: list[bytes] = []

    def stream(request: Any) -> object:
        session = request.getSession()
        session.notifyOnExpire(lambda: ended.append(session.uid))
        streams.append(request)
        return NOT_DONE_YET

    def login(request: Any) -> bytes:
        world.store.failNext("commit")
        request.getSession().rotate()
        request.getSession().login("alice")
        return b"hello"

    other = Browser(world.site, jar=browser.jar)
    streaming = world.start(other, stream)
    [(uid, session)] = world.site.sessions.items()
    assert world.visit(browser, login).code == 500
    assert world.site.sessions == {uid: session} and session.uid == uid
    assert not session.isDirty
    streams[0].finish()
    assert result(streaming.response).setCookies == []
    response = world.visit(browser, lambda request: put(request, 1) or b"")
    assert (response.code, response.setCookies) == (200, [])
    assert world.read(browser.jar) == 1
    world.visit(browser, lambda request: request.getSession().logout() and b"")
    assert ended == [uid]
    other.close()


def test_rotationOutsideARequestIsStoredByFlush(world: World, browser: Browser) -> None:
    [pair] = browser.cookies.values()
    old = pair.encode()
    session = result(world.site.loadSession(old))
    new = session.rotate()
    result(world.site.flush())
    assert result(world.makeSite().loadSession(new))["k"] == 0
    assert result(world.makeSite().loadSession(old)) is None


def test_rotationThatComesTooLate(world: World, browser: Browser) -> None:
    sessions: list[Any] = []

    def stream(request: Any) -> object:
        sessions.append(request.getSession())
        request.write(b"begun")
        return NOT_DONE_YET

    def late(request: Any) -> bytes:
        session = request.getSession()
        request.write(b"begun")
        with pytest.raises(TooLateForSession):
            session.rotate()
        return b""

    streaming = world.start(browser, stream)
    with pytest.raises(TooLateForSession):
        sessions[0].rotate()
    other = Browser(world.site, jar=browser.jar)
    assert world.visit(other, late).body == b"begun"
    streaming.disconnect()
    other.close()


def test_whoRotatesTheSessionOfAnotherIsNotToldTheNewId(world: World, browser: Browser) -> None:
    """
    Nor is it too late for that when their own headers have left.
    """
    requests: list[Any] = []

    def wait(request: Any) -> object:
        requests.append((request, request.getSession()))
        return NOT_DONE_YET

    def rotate(request: Any) -> object:
        request.getSession()["k"] = "own"
        request.write(b"begun")
        requests[0][1].rotate()
        request.finish()
        return NOT_DONE_YET

    waiting = world.start(browser, wait)
    helper = Browser(world.site)
    assert world.visit(helper, rotate).body == b"begun"
    assert world.visit(helper, rotate).setCookies == []
    requests[0][0].finish()
    assert len(result(waiting.response).setCookies) == 1
    assert world.read(browser.jar) == 0 and world.read(helper.jar) == "own"
    helper.close()


def test_theReplyToARotationIsLost(world: World, browser: Browser) -> None:
    """
    500, since nobody knows; and the next login works, on whatever id.
    """

    def rotate(request: Any) -> bytes:
        world.store.loseReplies("commit")
        request.getSession().rotate()
        return b"hello"

    assert world.visit(browser, rotate).code == 500
    assert world.site.sessions == {}
    response = world.visit(browser, lambda request: request.getSession().login("a") and b"in")
    assert response.body == b"in"


def test_aHookThatFailsIsAnErrorPage(world: World, browser: Browser) -> None:
    """
    C{sleep} runs at the gate; it must not hang or loop.
    """
    from twsessions import Session

    class Hooked(Session):
        def sleep(self, request: Any) -> None:
            raise RuntimeError("sleep")

    world.site.sessionFactory = Hooked
    response = world.visit(browser, body)
    assert response.code == 500 and b"done" not in response.body


def test_goneIsRaisedToCodeThatCommitsByItself(world: World, browser: Browser) -> None:
    """
    Outside a request as well.
    """
    uid = next(iter(browser.cookies.values())).encode()
    here = result(world.site.loadSession(uid))
    there = result(world.makeSite().loadSession(uid))
    result(there.expire())
    here["k"] = 1
    with pytest.raises(SessionGone):
        result(here.commit())
    assert here.isExpired
    assert world.site.sessions == {}
    with pytest.raises(SessionGone):
        result(here.commit())
    idle = world.makeSite().makeSession()
    result(idle.expire())
    assert result(idle.commit()) is None


# HTTP/2


class H2Client:
    """
    A client's end of one connection, in memory.
    """

    def __init__(self, world: World) -> None:
        from h2.config import H2Configuration
        from h2.connection import H2Connection as Client
        from twisted.web._http2 import H2Connection

        self.clock = world.clock
        self.server = H2Connection(world.clock)
        self.server.site = self.server.factory = world.site
        self.server.requestFactory = world.site.requestFactory
        self.server.timeOut = None
        self.transport = StringTransport()
        self.server.makeConnection(self.transport)
        self.client = Client(H2Configuration(client_side=True))
        self.client.initiate_connection()
        self.events: dict[int, list[Any]] = {}
        self.turn()

    def turn(self) -> None:
        for _ in range(6):
            data = self.client.data_to_send()
            if data:
                self.server.dataReceived(data)
            self.clock.advance(0)
            received = self.transport.value()
            self.transport.clear()
            for event in self.client.receive_data(received):
                stream = getattr(event, "stream_id", None)
                if stream is not None:
                    self.events.setdefault(stream, []).append(event)

    def get(self, path: bytes, cookie: bytes) -> int:
        stream = self.client.get_next_available_stream_id()
        headers = [
            (b":method", b"GET"),
            (b":scheme", b"http"),
            (b":authority", b"example.com"),
            (b":path", path),
            *((b"cookie", crumb) for crumb in cookie.split(b"; ") if crumb),
        ]
        self.client.send_headers(stream, headers, end_stream=True)
        self.turn()
        return int(stream)

    def kinds(self, stream: int) -> list[str]:
        self.turn()
        return [type(event).__name__ for event in self.events.get(stream, [])]

    def status(self, stream: int) -> bytes:
        [headers] = [e.headers for e in self.events[stream] if hasattr(e, "headers")]
        return dict(headers)[b":status"]

    def body(self, stream: int) -> bytes:
        return b"".join(getattr(e, "data", b"") for e in self.events[stream])


def cookieOf(browser: Browser) -> bytes:
    return "; ".join(f"{name}={value}" for name, value in browser.cookies.items()).encode()


def test_http2Waits(world: World, browser: Browser) -> None:
    """
    Headers, data and the end of the stream; other streams of the connection
    are answered meanwhile and share the session.
    """
    client = H2Client(world)

    def render(request: Any) -> object:
        if request.path == b"/static":
            return b"static"
        world.store.hang()
        return body(request)

    world.site.page.does = render
    waiting = client.get(b"/", b"other=1; " + cookieOf(browser))
    static = client.get(b"/static", b"")
    assert client.kinds(waiting) == []
    assert client.status(static) == b"200" and client.body(static) == b"static"
    world.store.resume()
    assert client.kinds(waiting)[-1] == "StreamEnded"
    assert client.status(waiting) == b"200" and client.body(waiting) == b"done"
    assert world.read(browser.jar) == 1


def test_twoStreamsOfOneSessionShareIt(world: World, browser: Browser) -> None:
    """
    Both change it, neither loses what the other did.
    """
    client = H2Client(world)
    requests: list[Any] = []

    def render(request: Any) -> object:
        request.getSession()[request.path.decode()] = 1
        requests.append(request)
        return NOT_DONE_YET

    world.site.page.does = render
    streams = [client.get(path, cookieOf(browser)) for path in (b"/a", b"/b")]
    assert requests[0].getSession() is requests[1].getSession()
    for request in requests:
        request.finish()
    for stream in streams:
        assert client.kinds(stream)[-1] == "StreamEnded" and client.status(stream) == b"200"
    assert world.read(browser.jar, "/a") == world.read(browser.jar, "/b") == 1
    assert world.site.sessions == {}


def test_anHttp2StreamThatCannotBeStoredIsReset(world: World, browser: Browser) -> None:
    """
    It must not look complete; the connection lives on.
    """
    client = H2Client(world)
    requests: list[Any] = []

    def render(request: Any) -> object:
        if request.path == b"/static":
            return b"static"
        put(request, 1)
        request.write(b"begin")
        requests.append(request)
        return NOT_DONE_YET

    world.site.page.does = render
    stream = client.get(b"/", cookieOf(browser))
    assert client.kinds(stream)[-1] == "DataReceived"
    put(requests[0], 2)
    world.store.failNext("commit")
    requests[0].finish()
    assert client.kinds(stream)[-1] == "StreamReset"
    static = client.get(b"/static", b"")
    assert client.kinds(static)[-1] == "StreamEnded"
    assert world.site.sessions == {}
    assert world.read(browser.jar) == 1


def test_anHttp2StreamThatTheClientResetsIsStored(world: World, browser: Browser) -> None:
    """
    While its commit is under way, and while its session loads.
    """
    client = H2Client(world)
    rendered: list[int] = []

    def render(request: Any) -> object:
        rendered.append(1)
        world.store.hang()
        return body(request)

    world.site.page.does = render
    stream = client.get(b"/", cookieOf(browser))
    client.client.reset_stream(stream)
    client.turn()
    world.store.resume()
    client.turn()
    assert world.site.sessions == {}
    assert world.read(browser.jar) == 1
    world.store.hang()
    stream = client.get(b"/", cookieOf(browser))
    client.client.reset_stream(stream)
    client.turn()
    world.store.resume()
    client.turn()
    assert rendered == [1] and world.site.sessions == {}


# A login under the gate


def test_theAnswerToALoginWaitsForWhomItPushesOut(world: World) -> None:
    """
    With C{maxSessionsPerPrincipal} the oldest session is dead when the client
    of the newest one hears.
    """
    site = world.makeSite(maxSessionsPerPrincipal=1)
    old, new = Browser(site), Browser(site)
    world.visit(old, lambda r: r.getSession().login("alice") and b"")
    world.clock.advance(1)
    pending = held(world, new, lambda r: r.getSession().login("alice") and b"in")
    while pending.received == b"":
        assert world.store._held, "nothing is asked of the store, and nothing is answered"
        answer, name, args = world.store._held.pop(0)
        world.store._perform(name, args).chainDeferred(answer)
    world.store._held.clear()
    world.store.resume()
    assert result(pending.response).body == b"in"
    listed = result(world.makeSite().sessionsOf("alice"))
    assert len(listed) == 1
    old.close()
    new.close()


def test_aLoginThatCannotPushOthersOutIsOne(world: World) -> None:
    """
    The next one makes good for it.
    """
    site = world.makeSite(maxSessionsPerPrincipal=1)
    browsers = [Browser(site) for _ in range(3)]
    outcomes: list[object] = []

    def login(request: Any) -> bytes:
        request.getSession().login("ann").addBoth(outcomes.append)
        return b"in"

    world.visit(browsers[0], login)
    world.clock.advance(1)
    world.store.failNext("sessionsOf")
    assert world.visit(browsers[1], login).body == b"in"
    assert len(result(site.sessionsOf("ann"))) == 2
    world.clock.advance(1)
    world.visit(browsers[2], login)
    assert len(result(site.sessionsOf("ann"))) == 1
    assert outcomes == [None] * 3
    assert world.visit(browsers[2], lambda r: r.getSession().principal).body == b"'ann'"
    for browser in browsers:
        browser.close()


@pytest.mark.parametrize(
    "limits",
    [
        {},
        {"maxSessionsPerPrincipal": 1},
        {"maxSessionsPerPrincipal": 1, "tooMany": "refuse"},
    ],
)
def test_aLoginFiresWhenItIsStored(world: World, limits: dict[str, Any]) -> None:
    """
    Or fails, if it is not.
    """
    browser = Browser(world.makeSite(**limits))
    outcomes: list[Any] = []

    def login(request: Any) -> bytes:
        done = request.getSession().login("ann")
        done.addCallback(lambda _: result(world.memory.sessionsOf("ann")))
        done.addBoth(outcomes.append)
        return b"in"

    assert world.visit(browser, lambda r: put(r, 0) or b"").code == 200
    world.store.down = True
    down = world.start(browser, lambda r: r.getSession())
    world.store.down = False
    world.clock.advance(5)
    assert result(down.response).code == 503
    assert world.visit(browser, login).body == b"in"
    assert [len(outcome) for outcome in outcomes] == [1]

    def fails(request: Any) -> bytes:
        request.getSession()
        world.store.down = True
        return login(request)

    assert world.visit(browser, fails).code == 500
    assert isinstance(outcomes[1], Failure) and outcomes[1].check(StoreUnavailable)
    browser.close()


def test_stopsWhenAllRequestsOfASessionAreDone() -> None:
    """
    Also if one of them is done before the other; those that come meanwhile are
    sent elsewhere.
    """
    clock = Clock()
    slow: list[Any] = []

    def answer(request: Any) -> Any:
        request.getSession()["n"] = 1
        if request.path != b"/slow":
            return b""
        slow.append(request)
        return NOT_DONE_YET

    store = FaultyStore(MemoryStore(clock.seconds))
    page = Page()
    page.does = answer
    site = SessionSite(page, store=store, reactor=clock)
    browser = Browser(site)
    browser.get("/")
    answered: list[Response] = []
    browser.get("/slow").addCallback(answered.append)
    browser.get("/")
    stopped: list[None] = []
    site._stop().addCallback(stopped.append)
    clock.pump([0.1] * 5)
    assert not stopped
    assert result(browser.get("/")).code == 503
    slow[0].finish()
    clock.pump([0.1] * 5)
    assert answered[0].code == 200 and stopped


@pytest.mark.parametrize("ask", ["getSession", "peekSession"])
def test_aStopWaitsForAnAnswerAndNotForAStream(world: World, browser: Browser, ask: str) -> None:
    """
    Whichever of them has asked for the session last.
    """
    requests: list[Any] = []

    def wait(request: Any) -> object:
        put(request, 1)
        requests.append(request)
        return NOT_DONE_YET

    def stream(request: Any) -> object:
        getattr(request, ask)()
        request.write(b"first")
        return NOT_DONE_YET

    other = Browser(world.site, jar=browser.jar)
    pending = world.start(browser, wait)
    world.start(other, stream)
    stopped: list[None] = []
    world.site._stop().addCallback(stopped.append)
    world.clock.pump([0.1] * 5)
    assert not stopped
    requests[0].finish()
    world.clock.pump([0.1] * 5)
    assert result(pending.response).code == 200 and stopped
    other.disconnect()


def test_onlyWhoLogsInIsToldTheNewId(world: World, browser: Browser) -> None:
    """
    Who has planted an id on somebody may wait with a request for the login, or
    ask all the time meanwhile.
    """
    waiting: list[Any] = []
    thief = Browser(world.site)
    for name, value in browser.cookies.items():
        thief.setRawCookie(f"{name}={value}".encode())

    def wait(request: Any) -> object:
        request.getSession()
        waiting.append(request)
        return NOT_DONE_YET

    async def login(request: Any) -> None:
        session = request.getSession()
        checked: Deferred[None] = Deferred()
        waiting.append(checked)
        await checked
        session.login("ann")
        saved: Deferred[None] = Deferred()
        waiting.append(saved)
        await saved
        request.finish()

    def start(request: Any) -> object:
        Deferred.fromCoroutine(login(request))
        return NOT_DONE_YET

    early = world.start(thief, wait)
    logging = world.start(browser, start)
    meanwhile = world.start(thief, wait)
    first, checked, second = waiting
    checked.callback(None)
    late = world.start(thief, wait)
    _, _, _, saved, third = waiting
    for request in (first, second, third):
        request.finish()
    saved.callback(None)
    assert len(result(logging.response).setCookies) == 1
    for stolen in (early, meanwhile, late):
        assert result(stolen.response).setCookies == []
    assert world.visit(browser, lambda r: r.getSession().principal).body == b"'ann'"
    assert world.visit(thief, lambda r: r.getSession().principal).body == b"None"
    thief.close()


def test_aLoginInACallbackIsToldTheNewId(world: World, browser: Browser) -> None:
    """
    Also if a stream of the same browser has begun since it asked for its session.
    """
    checked: Deferred[None] = Deferred()
    streams: list[Any] = []

    def login(request: Any) -> object:
        session = request.getSession()
        checked.addCallback(lambda _: session.login("ann") and request.finish())
        return NOT_DONE_YET

    def stream(request: Any) -> object:
        request.getSession()
        request.write(b"first")
        streams.append(request)
        return NOT_DONE_YET

    other = Browser(world.site, jar=browser.jar)
    logging = world.start(browser, login)
    world.start(other, stream)
    checked.callback(None)
    assert len(result(logging.response).setCookies) == 1
    streams[0].finish()
    assert world.visit(browser, lambda r: r.getSession().principal).body == b"'ann'"
    other.close()


@pytest.mark.parametrize("ask", ["getSession", "peekSession"])
def test_whoCameAndWentTakesNoLoginFromACallback(world: World, browser: Browser, ask: str) -> None:
    """
    Of those who are still there, who asked for the session last is told the new
    id, and nobody else is.
    """
    checked: Deferred[None] = Deferred()
    waiting: list[Any] = []

    def wait(request: Any) -> object:
        waiting.append((request, request.getSession()))
        return NOT_DONE_YET

    thief, other, third = (Browser(world.site, jar=browser.jar) for _ in range(3))
    stolen = world.start(thief, wait)
    logging = world.start(browser, wait)
    request, session = waiting[1]
    world.start(third, wait)
    assert world.visit(other, lambda request: getattr(request, ask)()["k"]).body == b"0"
    world.start(other, wait)
    for meanwhile, _ in waiting[2:]:
        meanwhile.finish()
    checked.addCallback(lambda _: session.login("ann") and request.finish())
    checked.callback(None)
    assert len(result(logging.response).setCookies) == 1
    waiting[0][0].finish()
    assert result(stolen.response).setCookies == []
    for those in (thief, other, third):
        those.close()


@pytest.mark.parametrize("secure", [False, True])
def test_toLookWhenTheRequestIsOver(world: World, secure: bool) -> None:
    browser = Browser(world.site, secure=secure)
    requests: list[Any] = []

    def look(request: Any) -> object:
        requests.append(request)
        return request.peekSession() and NOT_DONE_YET

    world.visit(browser, lambda request: put(request, 0) or b"")
    pending = world.start(browser, look)
    session = requests[0].peekSession()
    pending.disconnect()
    assert requests[0].peekSession() is session is requests[0].getSession()
    assert world.visit(browser, lambda request: requests.append(request) or b"").code == 200
    with pytest.raises(TooLateForSession):
        requests[1].peekSession()
    browser.close()


def test_whoeverWantsASessionForThemselvesHearsThatItHasEnded(
    world: World, browser: Browser
) -> None:
    uid = next(iter(browser.cookies.values())).encode()
    session = result(world.site.loadSession(uid))
    ended: list[bool] = []
    session.notifyOnExpire(lambda: ended.append(True))
    result(result(world.makeSite().loadSession(uid)).expire())

    async def have() -> None:
        async with session.exclusive():
            raise AssertionError("there is nothing to be had")

    for _ in range(2):  # the lock is free again
        with pytest.raises(SessionGone):
            result(have())
    assert ended == [True]


def test_aSessionThatCannotBeMadeFromWhatIsStoredIsAnErrorPage(
    world: World, browser: Browser
) -> None:
    """
    For whoever asks for it; nobody waits for ever.
    """
    other = world.makeSite()

    class Faulty(Session):
        def __init__(self, site: Any, uid: bytes) -> None:
            raise RuntimeError("no session")

    other.sessionFactory = Faulty
    visitor = Browser(other, jar=browser.jar)
    assert world.visit(visitor, lambda request: b"static").body == b"static"
    assert world.visit(visitor, lambda request: request.getSession()).code == 503
    assert world.read(browser.jar) == 0
    visitor.close()


def test_aFlushIsDoneThoughASessionHasEndedElsewhere(world: World, browser: Browser) -> None:
    uid = next(iter(browser.cookies.values())).encode()
    session = result(world.site.loadSession(uid))
    session["k"] = 1
    result(result(world.makeSite().loadSession(uid)).expire())
    result(world.site.flush())
    assert session.isExpired and world.site.sessions == {}


def test_aStopIsDoneThoughTheStoreIsAwayAndARequestHasNoEnd(world: World, browser: Browser) -> None:
    """
    It waits for as long as the store may take.
    """
    world.start(browser, lambda request: put(request, 1) or NOT_DONE_YET)
    world.store.down = True
    stopped: list[object] = []
    world.site._stop().addBoth(stopped.append)
    world.clock.pump([0.02] * 90)
    assert not stopped
    world.clock.pump([0.02] * 20)
    assert stopped == [None]


@pytest.mark.parametrize("isTaken", [False, True])
def test_whoHasASessionForLongKeepsItUnlessItIsTaken(
    world: World, browser: Browser, isTaken: bool
) -> None:
    """
    Though the store was away for one of the times at which it is told so.
    """
    uid = next(iter(browser.cookies.values())).encode()
    done: Deferred[None] = Deferred()
    theirs: Deferred[None] = Deferred()

    async def add(site: Any, wait: Any) -> None:
        session = await site.loadSession(uid)
        async with session.exclusive(timeout=None):
            session["k"] += 1
            await wait

    first = Deferred.fromCoroutine(add(world.site, done))
    world.clock.pump([0.5] * 24)
    world.store.down = True
    world.clock.pump([0.5] * 20)
    world.store.down = False
    second = Deferred.fromCoroutine(add(world.makeSite(), theirs))
    world.clock.pump([0.5] * 116)
    assert not first.called and not second.called
    if isTaken:
        name, holder, _ = next(args for called, args in world.store.calls if called == "acquire")
        result(world.memory.release(name, holder))
        world.clock.pump([0.5] * 24)
    done.callback(None)
    if isTaken:
        with pytest.raises(LeaseTimeout):
            result(first)
    else:
        result(first)
    theirs.callback(None)
    world.clock.pump([0.5] * 4)
    result(second)
    assert world.read(browser.jar) == (1 if isTaken else 2)


def test_flashesOutsideARequestAreStoredByFlush(world: World, browser: Browser) -> None:
    uid = next(iter(browser.cookies.values())).encode()
    steps: list[tuple[Any, set[str]]] = [
        (lambda flash: flash.update(a=1, b=2, c=3), {"a", "b", "c"}),
        (lambda flash: flash["a"], {"b", "c"}),
        (lambda flash: flash.__delitem__("b"), {"c"}),
        (lambda flash: flash.clear(), set()),
    ]
    for does, left in steps:
        site = world.makeSite()
        does(result(site.loadSession(uid)).flash)
        result(site.flush())
        assert set(result(world.makeSite().loadSession(uid)).flash) == left


@pytest.mark.parametrize("isStock", [False, True])
def test_aFlashIsTakenOnce(world: World, isStock: bool) -> None:
    """
    Whether another process could have it or not.
    """
    site: Any = Site(Page(), reactor=world.clock) if isStock else world.site
    site.sessionFactory = Session
    session = site.makeSession()
    session.flash["saved"] = 1
    assert result(session.flash.take("saved")) == 1
    with pytest.raises(KeyError):
        result(session.flash.take("saved"))
    assert result(session.flash.take("saved", None)) is None
    with pytest.raises(KeyError):
        session.flash.popitem()
    session.flash["saved"] = 2
    session.expire()
    with pytest.raises(SessionGone):
        result(session.flash.take("saved"))


def test_anEndThatAStoppedProcessWasTellingIsHeardByTheNextAtOnce(
    world: World, browser: Browser, failures: list[Failure]
) -> None:
    """
    That its listener was not done with it is no failure.
    """
    told: list[Any] = []
    world.site.notifyOnExpire(lambda event: told.append(event) or Deferred())
    world.visit(browser, lambda request: request.getSession().logout() and b"")
    world.clock.pump([0.5] * 4)
    result(world.site._stop())
    heard: list[Any] = []
    world.makeSite().notifyOnExpire(heard.append)
    assert [event.id for event in heard] == [event.id for event in told] != []
    assert not failures


@pytest.mark.parametrize("ask", ["getSession", "peekSession"])
def test_aLateAnswerTakesNoNewCookieAway(world: World, browser: Browser, ask: str) -> None:
    """
    Of somebody who has logged out and in again meanwhile.
    """
    requests: list[Any] = []

    def wait(request: Any) -> object:
        requests.append(getattr(request, ask)() and request)
        return NOT_DONE_YET

    other = Browser(world.site, jar=browser.jar)
    late = world.start(other, wait)
    assert len(world.visit(browser, lambda r: r.getSession().logout() and b"").setCookies) == 1
    assert browser.cookies == {}
    world.visit(browser, lambda request: request.getSession().login("ann") and b"")
    requests[0].finish()
    assert result(late.response).setCookies == []
    assert world.visit(browser, lambda r: r.getSession().principal).body == b"'ann'"
    other.close()


def test_aLogoutInACallbackTakesTheCookieOfALogin(world: World) -> None:
    site: Any = SessionSite(Page(), reactor=world.clock, store=world.memory)
    site.page = site.resource
    browser = Browser(site)
    sessions: list[Any] = []
    world.visit(browser, lambda request: request.getSession().login("ann") and b"")

    def wait(request: Any) -> object:
        sessions.append((request, request.getSession()))
        return NOT_DONE_YET

    pending = world.start(browser, wait)
    request, session = sessions[0]
    session.logout()
    request.finish()
    assert result(pending.response).code == 200 and browser.cookies == {}
    browser.close()


def test_manyEndsAreHeardThoughOnlySomeAreToldAtATime(world: World) -> None:
    waiting: list[Deferred[None]] = []

    def slow(event: Any) -> Deferred[None]:
        waiting.append(Deferred())
        return waiting[-1]

    world.site.notifyOnExpire(slow)
    count = 300
    for _ in range(count):
        session = world.site.makeSession()
        session["k"] = 1
        result(session.commit())
        session.expire()
    world.clock.pump([0.1] * 3)
    heard = 0
    while waiting:
        heard += 1
        waiting.pop(0).callback(None)
        world.clock.pump([0.1] * 2)
    assert heard == count


def test_whatAProxySaysOfOneRequestHoldsForNoOtherOfItsConnection(world: World) -> None:
    browser = Browser(world.site)

    def page(ssl: bool) -> Does:
        def does(request: Any) -> object:
            if ssl:
                request.setHost(b"example.org", 443, ssl=True)
            return repr(request.isSecure())

        return does

    seen = [world.visit(browser, page(ssl)).body for ssl in (True, False, True)]
    assert [b"True" in body for body in seen] == [True, False, True]
    browser.close()
