"""
L{twsessions.SessionSite} through a browser, on both embedded stores: cookies,
ids, principals, and all that people do with a Site.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import attr
import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher
from twisted.python.failure import Failure
from twisted.spread import jelly
from twisted.web import server
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET
from zope.interface import Attribute, Interface

from twsessions import CookiePolicy, Session, SessionSite, registerComponent
from twsessions.errors import LeaseTimeout, SessionGone, TooLateForSession, TooManySessions
from twsessions.test.page import Does, Page
from twsessions.test.slowstore import SlowStore
from twsessions.testing.browser import Browser, Response

KNOWN = b"twsession"
SECURE = b"__Host-twsession"


_clocks: list[Clock] = []


def result(deferred: Deferred[Any]) -> Any:
    """
    What comes without any time going by.
    """
    results: list[Any] = []
    deferred.addBoth(results.append)
    for _ in range(50):
        if not results:
            _clocks[-1].advance(0)
    assert results, "nothing has come"
    if isinstance(results[0], Failure):
        results[0].raiseException()
    return results[0]


class World:
    """
    One clock, one place for sessions, and the sites of several processes.
    """

    def __init__(self, url: str) -> None:
        self.clock = Clock()
        self.clock.advance(1_000_000)
        _clocks[:] = [self.clock]
        self.url: Any = SlowStore(self.clock) if url == "slow" else url
        self.sites: list[Any] = []
        self.browsers: list[Browser] = []

    def site(self, *args: Any, **settings: Any) -> Any:
        page = Page()
        site: Any = SessionSite(page, *args, reactor=self.clock, store=self.url, **settings)
        site.page = page
        site.doStart()
        self.sites.append(site)
        return site

    def browser(self, site: Any = None, **keywords: Any) -> Browser:
        site = site or (self.sites[0] if self.sites else self.site())
        browser = Browser(site, **keywords)
        self.browsers.append(browser)
        return browser

    def stop(self) -> None:
        for browser in self.browsers:
            browser.close()
        for site in self.sites:
            site.doStop()
        self.settle()
        assert self.clock.getDelayedCalls() == []

    def settle(self) -> None:
        """
        Let a store that is not the sites' own do what it was asked for.
        """
        if isinstance(self.url, SlowStore):
            self.clock.pump([0.0] * 20)
            self.clock.advance(5)


def visit(browser: Browser, does: Does, path: str = "/") -> Response:
    page: Any = browser.site
    page.page.does = does
    response: Response = result(browser.get(path))
    return response


def use(request: Any) -> bytes:
    request.getSession()["k"] = "v"
    return b""


def show(request: Any) -> bytes:
    return str(request.getSession().get("k")).encode()


def cookieOf(browser: Browser) -> bytes:
    return "; ".join(f"{name}={value}" for name, value in browser.cookies.items()).encode()


@pytest.fixture(params=["memory:", "sqlite", "slow"])
def world(request: Any, tmp_path: Path) -> Iterator[World]:
    it = World(f"sqlite:///{tmp_path}/s.db" if request.param == "sqlite" else request.param)
    yield it
    it.stop()


@pytest.fixture(params=["sqlite", "slow"])
def shared(request: Any, tmp_path: Path) -> Iterator[World]:
    it = World(f"sqlite:///{tmp_path}/s.db" if request.param == "sqlite" else request.param)
    yield it
    it.stop()


@pytest.fixture
def messages() -> Iterator[list[str]]:
    """
    All that is logged, as text.
    """
    from twisted.logger import formatEvent

    texts: list[str] = []

    def observe(event: Any) -> None:
        texts.append(formatEvent(event) + repr(event.get("log_failure", "")))
        if event.get("log_failure") is not None:
            texts.append(event["log_failure"].getTraceback())

    globalLogPublisher.addObserver(observe)
    yield texts
    globalLogPublisher.removeObserver(observe)


# Cookies


@pytest.mark.parametrize("secure", [False, True])
def test_theCookieIsAsStrictAsItCanBe(world: World, secure: bool) -> None:
    """
    R10 to R13; and it is set once and not again.
    """
    browser = world.browser(secure=secure)
    [line] = visit(browser, use).setCookies
    name, _, rest = line.partition(b"=")
    uid, _, attributes = rest.partition(b"; ")
    assert name == (SECURE if secure else KNOWN)
    assert len(uid) == 64
    wanted = {b"Path=/", b"HttpOnly", b"SameSite=Lax"} | ({b"Secure"} if secure else set())
    assert set(attributes.split(b"; ")) == wanted
    assert visit(browser, show).setCookies == []
    assert visit(browser, show).body == b"v"


@pytest.mark.parametrize(
    "policy, secure",
    [
        (CookiePolicy(), False),
        (CookiePolicy(), True),
        (CookiePolicy(name="own", maxAge=600, sameSite="strict"), False),
        (CookiePolicy(secure=True, sameSite="none", partitioned=True), True),
        (CookiePolicy(domain="example.com", path="/"), True),
        (CookiePolicy(keys=[b"k" * 32]), False),
    ],
)
def test_logoutTakesTheVeryCookieAway(world: World, policy: CookiePolicy, secure: bool) -> None:
    """
    R14: with all its attributes, so that browsers take it.
    """
    browser = world.browser(world.site(cookie=policy), secure=secure)
    [made] = visit(browser, use).setCookies
    assert visit(browser, show).body == b"v"
    [gone] = visit(browser, lambda r: r.getSession().logout() and b"").setCookies
    assert b"Max-Age=0" in gone and b"Expires=Thu, 01 Jan 1970" in gone

    def attributes(line: bytes) -> set[bytes]:
        parts = line.split(b"; ")
        return {p for p in parts[1:] if not p.startswith((b"Max-Age", b"Expires"))}

    assert attributes(made) == attributes(gone)
    assert browser.cookies == {}


def test_oneSetCookieWhateverHappens(world: World) -> None:
    """
    R15: create, rotate, logout, login in one request.
    """
    browser = world.browser()

    def everything(request: Any) -> bytes:
        request.getSession()["k"] = "first"
        request.getSession().rotate()
        request.getSession().logout()
        second = request.getSession()
        second["k"] = "second"
        second.login("alice")
        second.rotate()
        request.addCookie(b"other", b"x")
        return second.uid

    for _ in range(2):
        response = visit(browser, everything)
        lines = [line for line in response.setCookies if line.startswith(KNOWN + b"=")]
        assert lines[0].startswith(KNOWN + b"=" + response.body) and len(lines) == 1
        assert len(response.setCookies) == 2
        assert visit(browser, show).body == b"second"
    assert len(result(world.sites[0].sessionsOf("alice"))) == 1


def test_aCookieOfOurNameIsOurs(world: World) -> None:
    """
    A page that sets one itself does not make it two.
    """

    def meddle(request: Any) -> bytes:
        request.addCookie(b"twsession", b"x")
        request.addCookie(b"twsession2", b"y")
        return use(request)

    lines = visit(world.browser(), meddle).setCookies
    assert [line[:12] for line in lines] == [b"twsession2=y", lines[1][:12]]
    assert len(lines) == 2 and lines[1].startswith(b"twsession=") and len(lines[1]) > 70


def test_tooLargeHarmsNoLaterRequest(world: World) -> None:
    """
    Neither where the session stays in memory for other reasons.
    """
    browser = world.browser()

    def pinned(request: Any) -> bytes:
        request.getSession().here = object()
        return use(request)

    def much(request: Any) -> bytes:
        request.getSession().update({f"big{n}": "x" * 9000 for n in range(9)})
        return b""

    visit(browser, pinned)
    assert visit(browser, much).code == 500
    assert visit(browser, lambda r: sorted(r.getSession())).body == b"['k']"
    assert visit(browser, lambda r: r.getSession().update(k="w") or b"").code == 200
    assert visit(browser, show).body == b"w"


def test_maxAgeIsRenewedWithEachUse(world: World) -> None:
    """
    Or the browser would drop the cookie of a session that lives.
    """
    browser = world.browser(world.site(cookie=CookiePolicy(maxAge=600)))
    assert b"Max-Age=600" in visit(browser, use).setCookies[0]
    world.clock.advance(500)
    assert b"Max-Age=600" in visit(browser, show).setCookies[0]
    world.clock.advance(500)
    assert visit(browser, show).body == b"v"
    for does in (lambda r: b"static", lambda r: r.peekSession() and b""):
        assert visit(browser, does).setCookies == []


@pytest.mark.parametrize(
    "access",
    [
        lambda s: s.get("k"),
        lambda s: "k" in s,
        lambda s: len(s),
        lambda s: list(s),
        lambda s: s.touch(),
        lambda s: s.logout(),
        lambda s: s.isNew,
    ],
)
def test_whatDependsOnASessionIsNotForSharedCaches(world: World, access: Any) -> None:
    """
    R20: C{Vary: Cookie} once, C{no-store} with each Set-Cookie.
    """
    browser = world.browser()

    def page(request: Any) -> bytes:
        request.setHeader(b"vary", b"Accept")
        access(request.getSession())
        return b""

    first = visit(browser, page)
    again = visit(browser, page)
    for response in (first, again):
        assert response.headers.getRawHeaders(b"vary") == [b"Accept", b"Cookie"]
        control = response.headers.getRawHeaders(b"cache-control", [])
        assert control == ([b"no-store"] if response.setCookies else [])


def test_whatDoesNotDependOnItIsLeftAlone(world: World) -> None:
    """
    No Vary, no cookie, also for a client that has a session.
    """
    browser = world.browser()
    visit(browser, use)
    response = visit(browser, lambda request: b"static")
    assert response.headers.getRawHeaders(b"vary") is None
    assert response.headers.getRawHeaders(b"cache-control") is None
    assert response.setCookies == []


@pytest.mark.parametrize("given", [b"Cookie", b"accept, COOKIE", b"*"])
def test_aVaryThatSaysItIsLeftAlone(world: World, given: bytes) -> None:
    """
    It is not said twice.
    """

    def page(request: Any) -> bytes:
        request.setHeader(b"vary", given)
        return use(request)

    response = visit(world.browser(), page)
    assert response.headers.getRawHeaders(b"vary") == [given]


def test_lateIsAnError(world: World) -> None:
    """
    R21: no session is made whose cookie cannot be sent; one that is there is
    found.
    """
    outcomes: list[object] = []

    def late(request: Any) -> object:
        request.write(b"begun")
        try:
            outcomes.append(request.getSession().get("k"))
        except TooLateForSession as error:
            outcomes.append(type(error))
        request.finish()
        return NOT_DONE_YET

    browser = world.browser()
    assert visit(browser, late).body == b"begun"
    assert outcomes == [TooLateForSession]
    assert world.sites[0].sessions == {}
    visit(browser, use)
    assert visit(browser, late).body == b"begun"
    assert outcomes[1:] == ["v"]


def test_aLongRequestThatAsksAgainKeepsItAlive(world: World) -> None:
    """
    As with Twisted; and when its client has gone.
    """
    browser, asking = world.browser(), world.browser()
    visit(browser, use)
    asking.setRawCookie(cookieOf(browser))
    requests: list[Any] = []

    def wait(request: Any) -> object:
        request.getSession()
        requests.append(request)
        return NOT_DONE_YET

    world.sites[0].page.does = wait
    pending = asking.start("GET", "/")
    world.settle()
    for isGone in (False, True):
        if isGone:
            pending.disconnect()
        for _ in range(3):
            world.clock.pump([11.0] * 80)
            requests[0].getSession()
    world.clock.pump([11.0] * 80)
    assert visit(browser, show).body == b"v"


def test_afterTheRequestIsAnError(world: World) -> None:
    """
    A callback that comes when all is over.
    """
    requests: list[Any] = []
    browser = world.browser()
    visit(browser, lambda request: requests.append(request) or use(request))
    visit(browser, lambda request: requests.append(request) or b"")
    for request in requests:
        with pytest.raises(TooLateForSession):
            request.getSession()
        assert request.session is None


# Ids that are none


def test_anIdThatWeDidNotMakeIsNotTakenOver(world: World) -> None:
    """
    Strict mode, R02: unknown, rotated, ended.
    """
    browser = world.browser()
    visit(browser, use)
    rotated = cookieOf(browser)
    visit(browser, lambda r: r.getSession().rotate())
    ended = cookieOf(browser)
    visit(browser, lambda r: r.getSession().logout() and b"")
    for cookie in (rotated, ended, KNOWN + b"=" + b"a" * 64):
        stranger = world.browser()
        stranger.setRawCookie(cookie)
        assert visit(stranger, show).body == b"None"
        [line] = visit(stranger, use).setCookies
        assert not line.startswith(cookie)
        stranger.setRawCookie(line.partition(b";")[0])
        assert visit(stranger, show).body == b"v"
        stranger.setRawCookie(cookie)
        assert visit(stranger, show).body == b"None"


@pytest.mark.parametrize(
    "make",
    [
        lambda good: b"",
        lambda good: b";;;",
        lambda good: KNOWN,
        lambda good: KNOWN + b"=",
        lambda good: KNOWN + b'="' + good + b'"',
        lambda good: KNOWN + b"=" + good.upper(),
        lambda good: KNOWN + b"=" + good + b"=",
        lambda good: KNOWN + b"=" + good[:-1],
        lambda good: KNOWN + b"=" + good + b"0",
        lambda good: KNOWN.upper() + b"=" + good,
        lambda good: b"\x0b" + KNOWN + b"=" + good,
        lambda good: b"\xc2\xa0" + KNOWN + b"=" + good,
        lambda good: KNOWN + b" =" + good,
        lambda good: KNOWN + b"=%" + good,
        lambda good: KNOWN + b"=\xff\xfe\x80",
        lambda good: KNOWN + b"=../../etc/passwd",
        lambda good: KNOWN + b"=' OR 1=1--",
        lambda good: b"$Version=1; " + KNOWN + b'="x; y"',
        lambda good: KNOWN + b"=" + b"A" * 8000,
        lambda good: b"TWISTED_SESSION=" + good,
        lambda good: b"; ".join(KNOWN + b"=%064x" % n for n in range(50)),
    ],
)
def test_malformedIsAnonymousAndNeverSeenByTheStore(
    world: World, make: Any, messages: list[str]
) -> None:
    """
    R04 and the corpus: as no cookie at all; nothing of it is logged.
    """
    browser = world.browser()
    visit(browser, use)
    good = next(iter(browser.cookies.values())).encode()
    link = world.sites[0].keeper.link
    loads = link.loads
    stranger = world.browser()
    stranger.setRawCookie(make(good))
    response = visit(stranger, show)
    assert (response.code, response.body) == (200, b"None")
    assert link.loads == loads
    assert not [text for text in messages if good.decode()[:16] in text]
    assert visit(browser, show).body == b"v"


def test_oneLivingIdAmongBadOnesIsTaken(world: World) -> None:
    """
    R17: in any order.
    """
    browser = world.browser()
    visit(browser, use)
    good = cookieOf(browser)
    bad, malformed = KNOWN + b"=" + b"b" * 64, KNOWN + b"=x"
    for pairs in ([bad, good], [good, bad], [malformed, good, good], [bad, malformed, good]):
        browser.setRawCookie(b"; ".join(pairs))
        assert visit(browser, show).body == b"v"


def test_twoLivingIdsAreNobody(world: World) -> None:
    """
    Which of them was meant cannot be known; both live on.
    """
    one, two = world.browser(), world.browser()
    visit(one, use)
    visit(two, use)
    stranger = world.browser()
    for cookie in (
        cookieOf(one) + b"; " + cookieOf(two),
        cookieOf(two) + b"; " + cookieOf(one),
    ):
        stranger.setRawCookie(cookie)
        assert visit(stranger, show).body == b"None"
    assert visit(one, show).body == visit(two, show).body == b"v"


def test_idsAreTakenFromCookiesOnly(world: World) -> None:
    """
    R03.
    """
    browser = world.browser()
    visit(browser, use)
    good = next(iter(browser.cookies.values()))
    stranger = world.browser()
    stranger.headers.setRawHeaders("X-Session", [good])
    path = f"/{good}?twsession={good}&TWISTED_SESSION={good}"
    assert visit(stranger, show, path).body == b"None"


@pytest.mark.parametrize("policy", [CookiePolicy(), CookiePolicy(name="own")])
def test_secureAndPlainDoNotMix(world: World, policy: CookiePolicy) -> None:
    """
    The id of one is nothing to the other, under either name.
    """
    site = world.site(cookie=policy)
    secure, plain = world.browser(site, secure=True), world.browser(site)
    visit(secure, use)
    visit(plain, use)
    for mine, isSecure in ((secure, False), (plain, True)):
        uid = next(iter(mine.cookies.values())).encode()
        stranger = world.browser(site, secure=isSecure)
        stranger.setRawCookie(policy.nameFor(isSecure) + b"=" + uid)
        assert visit(stranger, show).body == b"None"
        assert visit(mine, show).body == b"v"


def test_forceNotSecureIsTheSessionOfPlainHttp(world: World) -> None:
    """
    As in Twisted: a secure request can have both.
    """
    browser = world.browser(secure=True)

    def both(request: Any) -> bytes:
        secure, plain = request.getSession(), request.getSession(forceNotSecure=True)
        assert secure is not plain and request.session is secure
        secure["k"], plain["k"] = "secure", "plain"
        return b""

    assert len(visit(browser, both).setCookies) == 2
    assert visit(browser, show).body == b"secure"
    [uid] = [c.value for c in browser.jar if c.name == KNOWN.decode()]
    other = world.browser()
    other.setRawCookie(KNOWN + b"=" + uid.encode())
    assert visit(other, show).body == b"plain"


# Creation and the end


def test_createOnWriteMakesNothingUntilThen(world: World) -> None:
    """
    No cookie, no record, no timer.
    """
    site = world.site(createOn="write")
    browser = world.browser(site)
    visit(browser, lambda r: b"")
    timers = len(world.clock.getDelayedCalls())
    commits = site.keeper.link.commits
    for does in (
        show,
        lambda r: r.getSession().flash.get("x"),
        lambda r: r.getSession().csrfToken and b"",
        lambda r: r.getSession().logout() and b"",
        lambda r: r.getSession().touch(),
    ):
        response = visit(browser, does)
        assert response.setCookies == []
        assert response.headers.getRawHeaders(b"vary") == [b"Cookie"]
    assert site.sessions == {} and site.keeper.link.commits == commits
    assert len(world.clock.getDelayedCalls()) <= timers
    assert len(visit(browser, use).setCookies) == 1
    assert visit(browser, show).body == b"v"


def test_createOnWriteAndKept(world: World) -> None:
    """
    What hangs on the session from its first request on is there for the next.
    """
    site = world.site(createOn="write")
    browser = world.browser(site)
    heard: list[str] = []

    def keep(request: Any) -> bytes:
        session = request.getSession()
        session["k"] = "v"
        session.notifyOnExpire(lambda: heard.append("end"))
        return b""

    visit(browser, keep)
    visit(browser, lambda r: r.getSession().logout() and b"")
    assert heard == ["end"]


def test_createOnWriteEndsNothingThatNeverWas(world: World) -> None:
    """
    A logout without session is no end of one.
    """
    site = world.site(createOn="write")
    ends: list[Any] = []
    site.notifyOnExpire(ends.append)
    visit(world.browser(site), lambda r: r.getSession().logout() and b"")
    world.clock.pump([1] * 5)
    assert ends == []


def test_anEndBeforeAnythingWasStoredIsHeard(world: World) -> None:
    site = world.site()
    ends: list[Any] = []
    site.notifyOnExpire(ends.append)
    visit(world.browser(site), lambda r: r.getSession().logout() and b"")
    session = site.makeSession()
    session["k"] = "v"
    result(session.expire())
    world.clock.pump([1] * 5)
    assert [(end.reason, end.data) for end in ends] == [("logout", {}), ("logout", {"k": "v"})]


def test_afterExpireTheSameRequestHasAFreshSession(world: World) -> None:
    """
    #9385: what is written to it is there next time.
    """
    browser = world.browser()
    visit(browser, use)
    before = dict(browser.cookies)

    def again(request: Any) -> bytes:
        old = request.getSession()
        old.expire()
        assert request.peekSession() is None
        new = request.getSession()
        assert new is not old and new.isNew and "k" not in new
        new["k"] = "new"
        return b""

    visit(browser, again)
    assert dict(browser.cookies) != before
    assert visit(browser, show).body == b"new"


def test_rotateKeepsTheDataAndKillsTheOldId(world: World) -> None:
    """
    Also twice in one request, also of a session that is new.
    """
    browser = world.browser()
    old: list[bytes] = []

    def twice(request: Any) -> bytes:
        session = request.getSession()
        session["k"] = "v"
        before = session.uid
        first, second = session.rotate(), session.rotate()
        assert len({before, first, second}) == 3 and session.uid == second
        old.extend([before, first])
        return second

    for _ in range(2):
        response = visit(browser, twice)
        assert response.setCookies[0].startswith(KNOWN + b"=" + response.body)
        assert visit(browser, show).body == b"v"
    stranger = world.browser()
    for uid in old:
        stranger.setRawCookie(KNOWN + b"=" + uid)
        assert visit(stranger, show).body == b"None"
        with pytest.raises(KeyError):
            world.sites[0].getSession(uid)


@pytest.mark.parametrize("secure", [False, True])
def test_aRequestThatWasOnItsWayWhenTheIdChanged(world: World, secure: bool) -> None:
    """
    It comes with the old id, is nobody's, and leaves the new cookie alone: else
    whoever has just logged in would be out again. What it stores has a cookie.
    """
    browser = world.browser(secure=secure)
    visit(browser, use)
    sent = cookieOf(browser)

    def late(does: Does) -> Response:
        browser.setRawCookie(sent)
        response = visit(browser, does)
        browser.setRawCookie(None)
        return response

    for rotate in (lambda session: session.login("ann"), lambda session: session.rotate()):
        sent = cookieOf(browser)
        visit(browser, lambda r, rotate=rotate: rotate(r.getSession()) and b"" or b"")
        count = len(world.sites[0].sessions)
        response = late(lambda r: b"%d" % r.getSession().isNew + show(r))
        assert (response.body, response.setCookies) == (b"1None", [])
        assert len(world.sites[0].sessions) == count
        assert visit(browser, show).body == b"v"

    # One that stores something has a session to come back to, as ever.
    assert len(late(use).setCookies) == 1
    browser.setRawCookie(sent)
    world.clock.advance(10)
    world.settle()
    assert len(visit(browser, show).setCookies) == 1, "this is somebody who comes back later"


def test_aRequestThatWasOnItsWayToAnotherProcess(shared: World) -> None:
    """
    That one does not know; but with C{createOn="write"} nothing that only
    reads does anything to the cookie, whatever it came with.
    """
    one, other = (shared.site(createOn="write") for _ in range(2))
    browser = shared.browser(one)
    visit(browser, use)
    sent = cookieOf(browser)
    visit(browser, lambda r: r.getSession().login("ann") and b"")
    late = shared.browser(other)
    late.setRawCookie(sent)
    response = visit(late, show)
    assert (response.body, response.setCookies) == (b"None", [])
    assert len(visit(late, use).setCookies) == 1


def test_anIdThatIsReplacedAndEndedInOneRequest(world: World) -> None:
    """
    The session that takes its place has its cookie.
    """
    browser = world.browser()
    visit(browser, use)

    def replace(request: Any) -> bytes:
        request.getSession().rotate()
        request.getSession().expire()
        return request.getSession().uid

    response = visit(browser, replace)
    assert [line.split(b";")[0] for line in response.setCookies] == [KNOWN + b"=" + response.body]


def test_rotationAfterTheHeadersIsAnError(world: World) -> None:
    """
    The client would be left with a dead id; as it is, its session lives on.
    """
    refused: list[str] = []

    def late(request: Any) -> object:
        session = request.getSession()
        uid = session.uid
        session["k"] = "v"
        request.write(b"begun")
        for act in (session.rotate, lambda: session.login("alice")):
            try:
                act()
            except TooLateForSession:
                refused.append(session.uid.decode())
        assert session.principal is None
        request.finish()
        assert set(refused) == {uid.decode()}
        return NOT_DONE_YET

    browser = world.browser()
    visit(browser, use)
    if not isinstance(world.url, str):
        return  # nothing is written before its store has had a turn
    assert visit(browser, late).body == b"begun"
    assert len(refused) == 2
    assert visit(browser, show).body == b"v"


def test_loginRotatesAndBinds(world: World) -> None:
    """
    The token changes with it, and with nothing else.
    """
    browser = world.browser()
    seen: list[tuple[Any, ...]] = []

    def look(request: Any) -> bytes:
        session = request.getSession()
        seen.append((session.uid, session.csrfToken, session.principal))
        return b""

    visit(browser, use)
    visit(browser, look)
    visit(browser, lambda r: r.getSession().rotate())
    visit(browser, look)
    visit(browser, lambda r: look(r) + (r.getSession().login("alice") and b"") + look(r))
    visit(browser, look)
    visit(browser, lambda r: r.getSession().login("bob") and b"")
    visit(browser, look)
    first, rotated, before, inside, alice, bob = seen
    assert first[1] == rotated[1] == before[1] and first[0] != rotated[0]
    assert inside == alice and alice[1] != first[1] and alice[2] == "alice"
    assert bob[1] not in (alice[1], first[1]) and bob[2] == "bob" and bob[0] != alice[0]
    assert visit(browser, show).body == b"v"


def test_hooksRunOnceForEachRequest(world: World) -> None:
    """
    C{awake} when it is first asked for, C{sleep} before the response, what is
    changed in either is stored; C{expiring} at the end.
    """
    calls: list[str] = []

    class Hooked(Session):
        def awake(self, request: Any) -> None:
            calls.append("awake")
            self["awake"] = self.get("awake", 0) + 1

        def sleep(self, request: Any) -> None:
            calls.append("sleep")
            self["sleep"] = self.get("sleep", 0) + 1

        def expiring(self) -> None:
            calls.append("expiring")

    site = world.site()
    site.sessionFactory = Hooked
    browser = world.browser(site)

    def twice(request: Any) -> bytes:
        session = request.getSession()
        assert request.getSession() is session
        calls.append("render")
        request.write(b"a")
        request.write(b"b")
        return b""

    visit(browser, twice)
    visit(browser, twice)
    assert calls == ["awake", "render", "sleep"] * 2
    counts = visit(browser, lambda r: (r.getSession()["awake"], r.getSession()["sleep"]))
    assert counts.body == b"(3, 2)"
    del calls[:]
    visit(browser, lambda r: r.peekSession().update(k="v") or b"")
    assert calls == [], "to look is not to use"
    visit(browser, lambda r: [r.peekSession(), twice(r)][1])
    assert calls == ["awake", "render", "sleep"]
    del calls[:]
    visit(browser, lambda r: r.getSession().logout() and b"")
    assert calls == ["awake", "expiring"]


def test_countsAndNewness(world: World) -> None:
    """
    C{isNew} in its first request, C{requestCount} in each, as far as they are
    written.
    """
    browser = world.browser()
    seen: list[tuple[bool, int]] = []
    for _ in range(4):
        world.clock.advance(50)
        visit(
            browser,
            lambda r: seen.append((r.getSession().isNew, r.getSession().requestCount)) or use(r),
        )
    assert seen == [(True, 1), (False, 2), (False, 3), (False, 4)]


def test_toLookIsNoUse(world: World) -> None:
    """
    Though what is done to the session is, or to its id, as if it were asked for.
    """
    browser = world.browser()
    visit(browser, use)
    world.clock.advance(500)

    def look(request: Any) -> bytes:
        session = request.peekSession()
        assert session is request.peekSession() and request.session is None
        session["k"] = "w"
        assert not session.isNew and session.requestCount == 1
        return session.login("alice") and b""

    before = cookieOf(browser)
    visit(browser, look)
    assert cookieOf(browser) != before
    world.clock.advance(399)
    seen = visit(browser, lambda r: (r.peekSession()["k"], r.peekSession().principal))
    assert seen.body == b"('w', 'alice')"
    world.clock.advance(1)
    assert visit(browser, lambda r: r.peekSession()).body == b"None"


# Restart


def test_aRestartIsNotNoticed(shared: World) -> None:
    """
    Data, principal, token, own timeout, flash and creation time.
    """
    browser = shared.browser()

    def fill(request: Any) -> bytes:
        session = request.getSession()
        session["k"] = ("v", {1, 2}, b"\x00")
        session.flash["note"] = None
        session.login("alice")
        session.setTimeout(100_000)
        return b""

    def tell(request: Any) -> object:
        session = request.getSession()
        return (
            session["k"],
            "note" in session.flash,
            session.principal,
            session.csrfToken,
            session.created,
            session.isNew,
        )

    visit(browser, fill)
    before = visit(browser, tell).body
    shared.stop()
    shared.sites, shared.browsers = [], []
    shared.clock.advance(50_000)
    after = shared.browser(shared.site(), jar=browser.jar)
    assert visit(after, tell).body == before
    shared.clock.advance(99_999)
    assert visit(after, tell).body == before


def test_theFileHoldsNoId(shared: World, tmp_path: Path) -> None:
    """
    R05: who has the file has no session.
    """
    browser = shared.browser()
    visit(browser, lambda r: r.getSession().login("alice") and b"")
    uid = next(iter(browser.cookies.values()))
    for path in tmp_path.iterdir():
        content = path.read_bytes()
        assert uid.encode() not in content and bytes.fromhex(uid) not in content


def test_twoProcessesMergeTheirKeys(shared: World) -> None:
    """
    Two requests at once, each to another process, each with its own key.
    """
    one = shared.browser(shared.site())
    two = shared.browser(shared.site(), jar=one.jar)
    visit(one, use)
    held: list[Any] = []

    def begin(request: Any) -> object:
        request.getSession()["one"] = [1]
        held.append(request)
        return NOT_DONE_YET

    one.site.page.does = begin  # type: ignore[attr-defined]
    pending = one.start("GET", "/")
    visit(two, lambda r: r.getSession().update(two=2) or b"")
    held[0].finish()
    result(pending.response)
    for browser in (one, two):
        assert visit(browser, lambda r: sorted(r.getSession())).body == b"['k', 'one', 'two']"


# Components


class ICart(Interface):
    """
    A cart.
    """

    items = Attribute("what is in it")


class IVisits(Interface):
    """
    An attrs class with slots.
    """


class IPrefs(Interface):
    """
    A dataclass with slots.
    """


@dataclass
class Cart:
    """
    A plain dataclass.
    """

    items: list[str] = field(default_factory=list)
    note: str = ""


@attr.s(auto_attribs=True, slots=True)
class Visits:
    """
    An attrs class.
    """

    count: int = 0


@dataclass(slots=True)
class Prefs:
    """
    A dataclass with slots.
    """

    colours: dict[str, str] = field(default_factory=dict)


registerComponent(Cart, ICart)
registerComponent(Visits, IVisits)
registerComponent(Prefs, IPrefs)


def test_componentsAreStored(world: World) -> None:
    """
    Of all kinds, by C{ICart(session)} and C{request.getSession(ICart)}; apart
    from the session's own keys.
    """
    browser = world.browser()

    def change(request: Any) -> bytes:
        ICart(request.getSession()).items.append("book")
        request.getSession(IVisits).count += 1
        request.getSession(IPrefs).colours["a"] = "b"
        assert len(request.getSession()) == 0
        return b""

    for _ in range(3):
        visit(browser, change)
    tell = visit(
        browser,
        lambda r: (
            ICart(r.getSession()).items,
            r.getSession(IVisits).count,
            r.getSession(IPrefs).colours,
        ),
    )
    assert tell.body == b"(['book', 'book', 'book'], 3, {'a': 'b'})"


@pytest.mark.parametrize(
    "unset",
    [
        lambda session: session.unsetComponent(ICart),
        lambda session: ICart(session) and session.unsetComponent(ICart),
        lambda session: session.removeComponent(ICart(session)),
    ],
    ids=["notAskedFor", "unset", "removed"],
)
def test_aComponentThatIsUnsetIsNotStored(world: World, unset: Callable[[Session], Any]) -> None:
    """
    Programs log people out by it. Another one stays.
    """
    browser = world.browser()

    def look(request: Any) -> object:
        return ICart(request.getSession()).items, request.getSession(IVisits).count

    def change(request: Any) -> bytes:
        request.getSession().setComponent(ICart, Cart(["book"]))
        request.getSession(IVisits).count += 1
        return b""

    for _ in range(2):
        visit(browser, change)
        visit(browser, lambda r: str(unset(r.getSession())).encode())
        assert visit(browser, lambda r: ICart(r.getSession()).items).body == b"[]"
    assert visit(browser, look).body == b"([], 2)"

    def end(request: Any) -> bytes:
        session = request.getSession()
        session.expire()
        unset(session)
        return b""

    assert visit(browser, end).code == 200


def test_aComponentThatAnotherProcessUnsetsIsGone(shared: World) -> None:
    """
    Also where an attribute keeps the session, and its component, in memory.
    """
    one = shared.browser(shared.site())
    two = shared.browser(shared.site(), jar=one.jar)

    def keep(request: Any) -> bytes:
        session = request.getSession()
        session.kept = ICart(session).items.append("book")
        session.getComponent(IPrefs).colours["a"] = "b"
        return b""

    visit(one, keep)
    visit(two, lambda r: r.getSession().unsetComponent(ICart) or b"")
    tell = visit(one, lambda r: (hasattr(r.getSession(), "kept"), ICart(r.getSession()).items))
    assert tell.body == b"(True, [])"
    visit(one, lambda r: r.getSession().update(a=1) or b"")
    tell = visit(two, lambda r: (ICart(r.getSession()).items, r.getSession(IPrefs).colours))
    assert tell.body == b"([], {'a': 'b'})"


def test_componentsOfTwoProcessesMerge(shared: World) -> None:
    """
    Different components as different keys; one process sees what the other has
    stored.
    """
    one = shared.browser(shared.site())
    two = shared.browser(shared.site(), jar=one.jar)
    visit(one, lambda r: ICart(r.getSession()).items.append("one") or b"")
    visit(two, lambda r: setattr(r.getSession(IVisits), "count", 5) or b"")
    visit(two, lambda r: ICart(r.getSession()).items.append("two") or b"")
    tell = visit(one, lambda r: (ICart(r.getSession()).items, r.getSession(IVisits).count))
    assert tell.body == b"(['one', 'two'], 5)"


def staying(world: World, browser: Browser) -> tuple[Any, Any]:
    """
    A request that uses its session and is not finished yet, and what its browser
    waits for.
    """
    requests: list[Any] = []

    def stay(request: Any) -> object:
        request.getSession()
        requests.append(request)
        return NOT_DONE_YET

    browser.site.page.does = stay  # type: ignore[attr-defined]
    pending = browser.start("GET", "/")
    world.clock.pump([0.0] * 5)
    [request] = requests
    return request, pending


def test_aLiveComponentFollowsTheOtherProcess(shared: World) -> None:
    """
    A request under way keeps the session, and its component, in memory.
    """
    one = shared.browser(shared.site())
    two = shared.browser(shared.site(), jar=one.jar)
    visit(one, lambda r: ICart(r.getSession()).items.append("one") or b"")
    request, pending = staying(shared, one)
    assert ICart(request.getSession()).items == ["one"]
    visit(two, lambda r: ICart(r.getSession()).items.append("two") or b"")
    also = shared.browser(one.site, jar=one.jar)
    assert visit(also, lambda r: ICart(r.getSession()).items).body == b"['one', 'two']"
    assert ICart(request.getSession()).items == ["one", "two"]
    request.finish()
    result(pending.response)


def test_aChangedComponentIsNotOverwrittenByALoad(shared: World) -> None:
    """
    Another request of the same session comes before the change is stored, and
    another while it is being stored.
    """
    one = shared.browser(shared.site())
    visit(one, lambda r: setattr(r.getSession(IVisits), "count", 1) or b"")
    requests: list[Any] = []

    def add(request: Any) -> object:
        request.getSession(IVisits).count += 1
        requests.append(request)
        return NOT_DONE_YET

    one.site.page.does = add  # type: ignore[attr-defined]
    pending = one.start("GET", "/")
    shared.clock.pump([0.0] * 5)
    also = shared.browser(one.site, jar=one.jar)
    assert visit(also, lambda r: [r.getSession(IVisits).count]).body == b"[2]"
    visits = requests[0].getSession(IVisits)
    requests[0].finish()
    if pending.received == b"":  # it is being stored just now
        visits.count = 9
    result(pending.response)
    last = visit(also, lambda r: [r.getSession(IVisits).count]).body
    assert last == b"[%d]" % visits.count
    other = shared.browser(shared.site(), jar=one.jar)
    assert visit(other, lambda r: [r.getSession(IVisits).count]).body == last


def test_aComponentThatIsOnlyReadIsNotStored(world: World) -> None:
    """
    Looking costs no write, once it is there.
    """
    browser = world.browser()
    visit(browser, lambda r: ICart(r.getSession()).items.append("x") or b"")
    before = world.sites[0].keeper.link.commits
    visit(browser, lambda r: ICart(r.getSession()).items and b"")
    assert world.sites[0].keeper.link.commits == before


def test_aFailedCommitTakesBackWhatComponentsHad(world: World) -> None:
    """
    The next request, and C{flush()}, find what is stored.
    """
    browser = world.browser()
    visit(browser, lambda r: ICart(r.getSession()).items.append("x") or b"")

    def spoil(request: Any) -> bytes:
        request.getSession().notifyOnExpire(lambda: None)  # the object stays
        request.getSession(IVisits).count += 1
        ICart(request.getSession()).items.append(object())  # type: ignore[arg-type]
        return b""

    assert visit(browser, spoil).code == 500
    session = result(world.sites[0].loadSession(next(iter(browser.cookies.values())).encode()))
    IVisits(session).count = object()
    assert session.isDirty
    with pytest.raises(TypeError):
        result(world.sites[0].flush())
    tell = visit(browser, lambda r: (ICart(r.getSession()).items, r.getSession(IVisits).count))
    assert tell.body == b"(['x'], 0)"
    result(world.sites[0].flush())


def test_lookingAtAComponentOverwritesNone(shared: World) -> None:
    """
    One that is not there yet, while another process stores it.
    """
    one = shared.browser(shared.site())
    two = shared.browser(shared.site(), jar=one.jar)
    visit(one, lambda r: r.getSession().update(k=1) or b"")
    request, pending = staying(shared, one)
    assert ICart(request.getSession()).items == []
    visit(two, lambda r: ICart(r.getSession()).items.append("two") or b"")
    request.finish()
    result(pending.response)
    assert visit(two, lambda r: ICart(r.getSession()).items).body == b"['two']"


@pytest.mark.parametrize("cls", [int, object, type("Plain", (), {})])
def test_onlyDataclassesAndAttrsAreComponents(cls: type) -> None:
    """
    Anything else has no fields to store.
    """

    class IOther(Interface):
        pass

    with pytest.raises(TypeError):
        registerComponent(cls, IOther)


def test_aComponentMustBeMakeable() -> None:
    """
    Every session has one.
    """

    class IOther(Interface):
        pass

    @dataclass
    class Needs:
        argument: int

    with pytest.raises(TypeError, match="argument"):
        registerComponent(Needs, IOther)


def test_anInterfaceHasOneComponent() -> None:
    """
    To register it again does no harm.
    """
    registerComponent(Cart, ICart)
    with pytest.raises(ValueError, match="Cart"):
        registerComponent(Prefs, ICart)
    noInterface: Any = Prefs
    with pytest.raises(TypeError, match="Interface"):
        registerComponent(Prefs, noInterface)


# Principals


def test_sessionsOfAPrincipal(world: World) -> None:
    """
    Described without anything that could be used as an id.
    """
    site = world.site()
    browsers = [world.browser(site, address=f"192.0.2.{n}") for n in range(3)]
    for browser in browsers:
        visit(browser, lambda r: r.getSession().login("alice") and b"")
        world.clock.advance(1)
    visit(browsers[2], lambda r: r.getSession().rotate())
    listed = result(site.sessionsOf("alice"))
    assert [one.address for one in listed] == ["192.0.2.0", "192.0.2.1", "192.0.2.2"]
    assert listed[0].userAgent == "twsessions.testing.Browser"
    assert listed[0].created == 1_000_000 and listed[0].deadline == 1_000_900
    stranger = world.browser(site)
    for one in listed:
        for browser in browsers:
            assert one.handle not in cookieOf(browser).decode()
        stranger.setRawCookie(KNOWN + b"=" + one.handle.encode())
        assert visit(stranger, lambda r: r.getSession().principal).body == b"None"
    assert result(site.expireSession(listed[1].handle)) is True
    assert result(site.expireSession(listed[1].handle)) is False
    for wrong in ("", "zz", "00" * 16, "é", None, b"x"):
        assert result(site.expireSession(wrong)) is False
    principals = [visit(b, lambda r: r.getSession().principal).body for b in browsers]
    assert principals == [b"'alice'", b"None", b"'alice'"]
    for nobody in ("nobody", "", "\ud800", None):
        assert result(site.sessionsOf(nobody)) == []
        assert result(site.expireSessionsOf(nobody)) == 0
    for wrong in (5, b"alice"):
        with pytest.raises(TypeError, match="a principal is a str"):
            site.sessionsOf(wrong)
        with pytest.raises(TypeError, match="a principal is a str"):
            site.expireSessionsOf(wrong)


def test_expireAllButOne(world: World) -> None:
    """
    In every process; the callbacks of the sessions run.
    """
    site = world.site()
    browsers = [world.browser(site) for _ in range(4)]
    heard: list[int] = []
    for number, browser in enumerate(browsers):
        visit(browser, lambda r: r.getSession().login("alice") and b"")
        visit(
            browser,
            lambda r, n=number: r.getSession().notifyOnExpire(lambda: heard.append(n)) and b"",
        )
    counts: list[Any] = []
    visit(
        browsers[0],
        lambda r: (
            site.expireSessionsOf("alice", keep=r.getSession()).addCallback(counts.append) and b""
        ),
    )
    assert counts == [3] and sorted(heard) == [1, 2, 3]
    assert visit(browsers[0], lambda r: r.getSession().principal).body == b"'alice'"
    assert visit(browsers[1], lambda r: r.getSession().principal).body == b"None"
    assert result(site.expireSessionsOf("alice")) == 1
    assert result(site.expireSessionsOf("alice")) == 0
    assert result(site.sessionsOf("alice")) == []


def test_thereIsALimitOfSessionsPerPrincipal(world: World) -> None:
    """
    The oldest makes room, before the answer to the login leaves; who logs in
    again in one session takes none away.
    """
    site = world.site(maxSessionsPerPrincipal=2)
    browsers = [world.browser(site) for _ in range(4)]
    for browser in browsers:
        for _ in range(3):
            visit(browser, lambda r: r.getSession().login("alice") and b"")
        assert len(result(site.sessionsOf("alice"))) <= 2
        world.clock.advance(1)
    principals = [visit(b, lambda r: r.getSession().principal).body for b in browsers]
    assert principals == [b"None", b"None", b"'alice'", b"'alice'"]


def test_whoLogsInIsNotPushedOut(shared: World) -> None:
    """
    Though their session is the oldest: others make room, all that are too many.
    """
    free, limited = shared.site(), shared.site(maxSessionsPerPrincipal=2)
    browsers = [shared.browser(free) for _ in range(4)]
    for browser in browsers:
        visit(browser, lambda r: r.getSession().login("alice") and b"")
        shared.clock.advance(1)
    oldest = shared.browser(limited, jar=browsers[0].jar)
    visit(oldest, lambda r: r.getSession().login("alice") and b"")
    principals = [visit(b, lambda r: r.getSession().principal).body for b in browsers]
    assert principals == [b"'alice'", b"None", b"None", b"'alice'"]


def test_tooManySessionsCanBeRefused(world: World) -> None:
    site = world.site(maxSessionsPerPrincipal=2, tooMany="refuse")
    browsers = [world.browser(site) for _ in range(3)]

    def login(request: Any) -> object:
        session = request.getSession()
        session["x"] = 1
        session.login("alice")  # nobody waits for it
        return b"welcome"

    assert [visit(browser, login).code for browser in browsers] == [200, 200, 403]
    assert visit(browsers[0], login).code == 200  # again, in the same session
    again = visit(browsers[2], lambda r: (r.getSession().principal, r.getSession()["x"]))
    assert again.body == b"(None, 1)"

    def ask(request: Any) -> object:
        def refused(failure: Failure) -> Any:
            failure.trap(TooManySessions)
            done = request.notifyFinish()
            request.write(b"too many")
            request.finish()
            return done

        request.getSession().login("alice").addErrback(refused).addErrback(failures.append)
        return NOT_DONE_YET

    failures: list[Failure] = []
    assert visit(browsers[2], ask).body == b"too many"
    assert failures == []
    assert len(result(site.sessionsOf("alice"))) == 2
    visit(browsers[0], lambda r: r.getSession().logout() and b"")
    assert visit(browsers[2], login).body == b"welcome"
    assert visit(browsers[2], lambda r: r.getSession().principal).body == b"'alice'"


@pytest.mark.parametrize("name", ["sessionTimeout", "absoluteTimeout"])
@pytest.mark.parametrize("value", ["900", timedelta(days=7)], ids=["str", "timedelta"])
def test_aTimeoutThatIsNoNumberFailsThatPageOnly(world: World, name: str, value: object) -> None:
    """
    The store is not taken for broken: others have their sessions.
    """
    site = world.site()
    browser = world.browser(site)
    visit(browser, use)
    wrong = type("Wrong", (Session,), {name: value})

    def ask(request: Any) -> bytes:
        site.sessionFactory = wrong
        try:
            return use(request)
        finally:
            site.sessionFactory = Session

    for _ in range(5):
        assert visit(world.browser(site), ask).code == 500
    assert visit(browser, show).body == b"v"


# Outside requests


def test_loadSessionAndFlush(world: World) -> None:
    """
    What is changed is stored by C{commit()} or by C{flush()}.
    """
    site = world.site()
    browser = world.browser(site)
    visit(browser, use)
    uid = next(iter(browser.cookies.values())).encode()
    for store in (lambda s: s.commit(), lambda s: site.flush()):
        session = result(site.loadSession(uid))
        assert session.uid == uid and not session.isNew
        session["k"] = session["k"] + "x"
        result(store(session))
    assert visit(browser, show).body == b"vxx"
    world.clock.advance(10)
    assert result(site.loadSession(uid)).lastModified == world.clock.seconds() - 10
    for wrong in (None, b"", b"x", b"a" * 64, uid[:-1], uid + b"\n"):
        assert result(site.loadSession(wrong)) is None
    with pytest.raises(TypeError, match="a uid is bytes"):
        result(site.loadSession(uid.decode()))
    session = result(site.loadSession(uid))
    session.setTimeout(2000)
    result(site.flush())
    world.clock.advance(1980)
    session = result(site.loadSession(uid))
    result(session.expire())
    assert result(site.loadSession(uid)) is None
    for act in (session.rotate, lambda: session.login("ann")):
        with pytest.raises(SessionGone):
            act()
    assert session.uid == uid
    assert visit(browser, show).body == b"None"


def test_madeOutsideARequest(world: World) -> None:
    """
    C{makeSession()} as Twisted's, and its id works when it is committed.
    """
    site = world.site()
    session = site.makeSession()
    session["k"] = "v"
    assert site.getSession(session.uid) is session and site.sessions[session.uid] is session
    result(session.commit())
    browser = world.browser(site)
    browser.setRawCookie(KNOWN + b"=" + session.uid)
    assert visit(browser, show).body == b"v"
    for wrong in (b"nothing", None, session.uid.decode()):  # None: of a cookie that is not there
        with pytest.raises(KeyError):
            site.getSession(wrong)


def test_exclusiveAcrossProcesses(shared: World) -> None:
    """
    Fresh on entry, committed on exit; the other waits, and not for ever.
    """
    one, two = shared.site(), shared.site()
    browser = shared.browser(one)
    visit(browser, lambda r: r.getSession().update(n=0) or b"")
    uid = next(iter(browser.cookies.values())).encode()
    gate: Deferred[None] = Deferred()

    async def add(site: Any, wait: Any = None, timeout: float = 10.0) -> None:
        session = await site.loadSession(uid)
        async with session.exclusive(timeout=timeout):
            session["n"] += 1
            if wait is not None:
                await wait

    first = Deferred.fromCoroutine(add(one, gate))
    second = Deferred.fromCoroutine(add(two))
    third = Deferred.fromCoroutine(add(two, timeout=3))
    shared.clock.pump([0.1] * 50)
    with pytest.raises(LeaseTimeout):
        result(third)
    gate.callback(None)
    result(first)
    shared.clock.pump([0.1] * 20)
    result(second)
    assert visit(browser, lambda r: r.getSession()["n"]).body == b"2"


def test_whatASessionsMakerPutsOnItIsWatched(shared: World) -> None:
    """
    From the load on: its end elsewhere is heard while a response is under way.
    """
    ended: list[bytes] = []

    class Own(Session):
        def __init__(self, site: Any, uid: bytes) -> None:
            super().__init__(site, uid)
            self.lines: list[str] = []

        def expiring(self) -> None:
            ended.append(self.uid)

    one, two = shared.site(), shared.site()
    one.sessionFactory = Own
    here = shared.browser(one)
    there = shared.browser(two, jar=here.jar)
    visit(there, use)
    requests: list[Any] = []

    def stream(request: Any) -> object:
        request.getSession()
        request.write(b"first")
        requests.append(request)
        return NOT_DONE_YET

    one.page.does = stream
    pending = here.start("GET", "/")
    shared.clock.pump([0.1] * 10)
    visit(there, lambda r: r.getSession().logout() and b"")
    shared.clock.pump([0.5] * 10)
    assert len(ended) == 1
    requests[0].finish()
    result(pending.response)


def test_whoWasStoppedForTooLongStoresNothing(shared: World) -> None:
    """
    It has the session no more, though it could not know; nor does it keep it
    from the others.
    """
    one, two = shared.site(), shared.site()
    browser = shared.browser(one)
    visit(browser, lambda r: r.getSession().update(n=0) or b"")
    uid = next(iter(browser.cookies.values())).encode()
    gate: Deferred[None] = Deferred()

    async def add(site: Any, number: int, wait: Any = None) -> None:
        session = await site.loadSession(uid)
        async with session.exclusive(timeout=60):
            session["n"] += number
            if wait is not None:
                await wait

    first = Deferred.fromCoroutine(add(one, 1, gate))
    second = Deferred.fromCoroutine(add(two, 10))
    shared.clock.pump([8.0] * 5)
    assert not second.called  # for longer than a lease: the first says that it is alive
    shared.clock.advance(31)  # it is stopped
    shared.clock.pump([0.1] * 20)
    result(second)
    gate.callback(None)
    with pytest.raises(LeaseTimeout, match="not stored"):
        result(first)
    assert visit(browser, lambda r: r.getSession()["n"]).body == b"10"


def test_aPageThatLostTheSessionHasNotSavedIt(shared: World) -> None:
    """
    Even if it does not care.
    """
    browser = shared.browser(shared.site())
    visit(browser, lambda r: r.getSession().update(n=0) or b"")
    gate: Deferred[None] = Deferred()

    async def add(request: Any) -> None:
        session = request.getSession()
        try:
            async with session.exclusive():
                session["n"] += 1
                await gate
        except LeaseTimeout:
            request.write(b"all is well")
        request.finish()

    def page(request: Any) -> object:
        Deferred.fromCoroutine(add(request))
        return NOT_DONE_YET

    browser.site.page.does = page  # type: ignore[attr-defined]
    waiting = browser.get("/")
    shared.clock.pump([0.1] * 20)
    shared.clock.advance(31)
    gate.callback(None)
    shared.clock.pump([0.1] * 20)
    response = result(waiting)
    assert response.code == 500 and b"well" not in response.body
    assert visit(browser, lambda r: r.getSession()["n"]).body == b"0"


# Site and Request as people use them


class OwnRequest(server.Request):
    """
    A user's request.
    """

    def own(self) -> bytes:
        return b"own"


def ownFactory(*args: Any, **keywords: Any) -> OwnRequest:
    """
    A function that makes one.
    """
    return OwnRequest(*args, **keywords)


@pytest.mark.parametrize("factory", [OwnRequest, ownFactory])
def test_ownRequestsHaveSessions(world: World, factory: Any) -> None:
    """
    A class or a function; what it adds stays.
    """
    given, assigned = world.site(factory), world.site()
    assigned.requestFactory = factory

    def page(request: Any) -> bytes:
        assert isinstance(request, OwnRequest)
        use(request)
        return request.own()

    for site in (given, assigned):
        browser = world.browser(site)
        assert visit(browser, page).body == b"own"
        assert visit(browser, show).body == b"v"
        assert [cookie.name for cookie in browser.jar] == ["twsession"]


def test_whatMakesNoRequestIsRefused() -> None:
    """
    When the site is made.
    """
    with pytest.raises(TypeError):
        SessionSite(Page(), int, reactor=Clock())


@pytest.mark.parametrize("kind", [Session, lambda site, uid: Session(site, uid)])
def test_theSessionFactoryIsAClassOrAFunction(world: World, kind: Any) -> None:
    """
    Set on the site as on any.
    """
    site = world.site()
    site.sessionFactory = kind
    browser = world.browser(site)
    visit(browser, use)
    assert visit(browser, show).body == b"v"


def test_aFactoryOfOtherSessionsIsAnError(world: World) -> None:
    """
    Said at the first session, and no cookie is set.
    """
    site = world.site()
    site.sessionFactory = server.Session
    response = visit(world.browser(site), use)
    assert response.code == 500 and response.setCookies == []


@pytest.mark.parametrize("factory", [None, OwnRequest, ownFactory])
def test_aSiteCanBePickled(world: World, factory: Any) -> None:
    """
    As Twisted's on a Clock; its sessions stay behind.
    """
    url = world.url if isinstance(world.url, str) else "memory:"
    site = SessionSite(Resource(), factory, reactor=Clock(), store=url)
    site.doStart()
    site.makeSession()
    site.notifyOnExpire(lambda end: None)
    site.doStop()
    again = pickle.loads(pickle.dumps(site))
    assert again.sessions == {} and isinstance(again, SessionSite)
    again.resource = again.page = Page()
    again.doStart()
    browser = Browser(again)
    visit(browser, use)
    assert visit(browser, show).body == b"v"
    browser.close()
    again.doStop()


def test_distribGetsARequestWithoutSession(world: World) -> None:
    """
    The peer knows C{twisted.web.server.Request} only.
    """
    states: list[Any] = []

    def copy(request: Any) -> bytes:
        use(request)
        states.append((request.getTypeToCopy(), request.getStateToCopyFor(None)))
        return b""

    visit(world.browser(), copy)
    [(name, state)] = states
    assert name == b"twisted.web.server.Request"
    assert not [key for key, value in state.items() if isinstance(value, Session)]
    assert "_exchange" not in state
    assert jelly.jelly({"uri": state["uri"]})


def test_noIdIsLoggedOrShown(world: World, messages: list[str]) -> None:
    """
    R08: not by an error in a page with tracebacks shown, nor by repr.
    """
    site = world.site()
    site.displayTracebacks = True
    browser = world.browser(site)
    visit(browser, use)

    def fails(request: Any) -> bytes:
        session = request.getSession()
        raise RuntimeError(repr(session))

    response = visit(browser, fails)
    assert response.code == 500
    uid = next(iter(browser.cookies.values()))
    assert uid not in response.text()
    assert not [text for text in messages if uid in text]
    assert any("RuntimeError" in text for text in messages)


def test_aCorruptValueReadsAsAbsent(shared: World) -> None:
    """
    One key of a session; the others and all that walks over them work.
    """
    from twsessions.core.delta import Change

    site = shared.site()
    browser = shared.browser(site)
    visit(browser, lambda r: r.getSession().update(good=1, bad=2) or b"")
    uid = next(iter(browser.cookies.values())).encode()
    session = result(site.loadSession(uid))
    result(site.keeper.link.commit(Change(session._record.key, b"t" * 16, set={"dbad": b"\xc1"})))

    def walk(request: Any) -> object:
        session = request.getSession()
        return (dict(session.items()), sorted(map(str, session.values())), session.get("bad"))

    assert visit(browser, walk).body == b"({'good': 1}, ['1'], None)"
