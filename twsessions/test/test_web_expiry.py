"""
When sessions end, on one site and on several that share a file, and who hears
of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from twsessions import Session, SessionSite
from twsessions.test.page import Does, Page, result
from twsessions.testing.browser import Browser, Response

IDLE = 900.0


class World:
    """
    One clock, one place for sessions, and the sites of several processes.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.clock = Clock()
        self.clock.advance(1_000_000)
        self.sites: list[Any] = []

    def site(self, **settings: Any) -> Any:
        page = Page()
        site: Any = SessionSite(page, reactor=self.clock, store=self.url, **settings)
        site.page = page
        site.doStart()
        self.sites.append(site)
        return site

    def stop(self, site: Any) -> None:
        self.sites.remove(site)
        site.doStop()

    def wait(self, seconds: float, step: float = 0.5) -> None:
        whole = int(seconds / step)
        self.clock.pump([step] * whole)
        self.clock.advance(seconds - whole * step)


def visit(browser: Browser, does: Does) -> Response:
    page: Any = browser.site
    page.page.does = does
    response: Response = result(browser.get("/"))
    assert response.code == 200
    return response


def use(request: Any) -> bytes:
    request.getSession()["k"] = "v"
    return b""


def show(request: Any) -> bytes:
    return str(request.getSession().get("k")).encode()


@pytest.fixture(params=["memory:", "sqlite"])
def world(request: Any, tmp_path: Path) -> Iterator[World]:
    it = World(f"sqlite:///{tmp_path}/s.db" if request.param == "sqlite" else request.param)
    yield it
    for site in list(it.sites):
        it.stop(site)
    assert it.clock.getDelayedCalls() == []


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[World]:
    it = World(f"sqlite:///{tmp_path}/s.db")
    yield it
    for site in list(it.sites):
        it.stop(site)
    assert it.clock.getDelayedCalls() == []


def browserOf(site: Any, jar: Any = None) -> Browser:
    return Browser(site, jar=jar)


# When


@pytest.mark.parametrize("ago, alive", [(-0.001, True), (0.0, False), (0.001, False)])
def test_idleEndsExactlyAtTheBoundary(world: World, ago: float, alive: bool) -> None:
    """
    A request just before it finds the session, one at it does not.
    """
    browser = browserOf(world.site())
    visit(browser, use)
    world.clock.advance(IDLE + ago)
    assert visit(browser, show).body == (b"v" if alive else b"None")
    browser.close()


@pytest.mark.parametrize("ago, alive", [(-0.001, True), (0.0, False)])
def test_absoluteEndsExactlyAtTheBoundary(world: World, ago: float, alive: bool) -> None:
    """
    However much it was used until then.
    """

    class Limited(Session):
        absoluteTimeout = 2000

    site = world.site()
    site.sessionFactory = Limited
    browser = browserOf(site)
    visit(browser, use)
    for _ in range(19):
        world.clock.advance(100)
        assert visit(browser, show).body == b"v"
    world.clock.advance(100 + ago)
    assert visit(browser, show).body == (b"v" if alive else b"None")
    browser.close()


def test_rotationDoesNotExtendTheAbsoluteTimeout(world: World) -> None:
    """
    Nor does a login.
    """

    class Limited(Session):
        absoluteTimeout = 1000

    site = world.site()
    site.sessionFactory = Limited
    browser = browserOf(site)
    visit(browser, use)
    for act in (lambda r: r.getSession().rotate(), lambda r: r.getSession().login("a") and b""):
        world.clock.advance(400)
        visit(browser, act)
    world.clock.advance(199)
    assert visit(browser, show).body == b"v"
    world.clock.advance(1)
    assert visit(browser, show).body == b"None"
    browser.close()


@pytest.mark.parametrize("step", [1.0, 7.0, 44.0, 46.0, 100.0, 899.0])
def test_visitsKeepItAliveAtAnyPace(world: World, step: float) -> None:
    """
    Also those that are too close to each other to be written one by one; it
    ends exactly after the last.
    """
    site = world.site()
    browser = browserOf(site)
    ended: list[float] = []
    visit(browser, use)
    site.notifyOnExpire(lambda end: ended.append(end.ended))
    for _ in range(int(3000 / step) + 1):
        world.clock.advance(step)
        assert visit(browser, show).body == b"v"
    last = world.clock.seconds()
    world.wait(IDLE - 0.5)
    assert ended == []
    world.wait(3)
    assert ended == [pytest.approx(last + IDLE, abs=1e-6)]
    browser.close()


def test_touchesAreCoalescedAndYetExactAcrossProcesses(shared: World) -> None:
    """
    The last visit of one site counts to the second for the other.
    """
    one, two = shared.site(), shared.site()
    first = browserOf(one)
    second = browserOf(two, jar=first.jar)
    visit(first, use)
    shared.wait(10)
    before = shared.sites[0].keeper.link.commits
    for _ in range(20):
        shared.clock.advance(1)
        visit(first, show)
    assert one.keeper.link.commits - before <= 2
    last = shared.clock.seconds()
    shared.wait(IDLE - 1)
    assert shared.clock.seconds() == last + IDLE - 1
    assert visit(second, show).body == b"v"
    shared.wait(IDLE - 1)
    assert visit(first, show).body == b"v"
    shared.wait(IDLE)
    assert visit(second, show).body == b"None"
    first.close()
    second.close()


def test_itsOwnTimeoutIsStored(shared: World) -> None:
    """
    C{setTimeout}, shorter and longer and none, holds in another process, and
    when that has changed something.
    """
    for seconds, wait, alive in [
        (60, 59, True),
        (60, 60, False),
        (5000, 4999, True),
        (5000, 5000, False),
        (None, 86400 * 5, True),
    ]:
        one = shared.site()
        browser = browserOf(one)
        visit(browser, use)
        visit(browser, lambda r, s=seconds: r.getSession().setTimeout(s) or b"")
        jar = browser.jar
        browser.close()
        shared.stop(one)
        two = shared.site()
        browser = browserOf(two, jar)
        visit(browser, lambda r: r.getSession().update(more=1) or b"")
        browser.close()
        shared.stop(two)
        shared.clock.advance(wait)
        other = browserOf(shared.site(), jar)
        assert visit(other, show).body == (b"v" if alive else b"None"), (seconds, wait)
        other.close()
        shared.stop(shared.sites[0])


@pytest.mark.parametrize("isChanged", [False, True])
def test_aNewTimeoutOfTheClassHoldsForOldSessions(shared: World, isChanged: bool) -> None:
    """
    From their next use on, in all processes.
    """
    one = shared.site()
    browser = browserOf(one)
    visit(browser, use)
    shared.clock.advance(800)
    two = shared.site()
    two.sessionFactory = type("Patient", (Session,), {"sessionTimeout": 5000})
    new = browserOf(two, browser.jar)
    visit(new, lambda r: r.getSession().update(more=1) or b"" if isChanged else show(r))
    shared.stop(two)
    shared.clock.advance(4999)
    assert visit(browser, show).body == b"v"
    browser.close()
    new.close()


def test_anInstancesTimeoutHoldsAsInTwisted(world: World) -> None:
    """
    C{session.sessionTimeout = 60}, shorter and longer.
    """
    for seconds, wait, alive in [(60, 61, False), (5000, 4990, True), (5000, 5001, False)]:
        browser = browserOf(world.site())
        visit(browser, use)
        world.clock.advance(1)
        visit(browser, lambda r, s=seconds: setattr(r.getSession(), "sessionTimeout", s) or b"")
        world.wait(wait, 10.0)
        assert visit(browser, show).body == (b"v" if alive else b"None"), (seconds, wait)
        browser.close()


def test_neitherLimitIsNoTimerThatNeverComes(world: World) -> None:
    """
    A session without limits asks a reactor for nothing infinite.
    """

    class Endless(Session):
        sessionTimeout = None
        absoluteTimeout = None

    site = world.site()
    site.sessionFactory = Endless
    browser = browserOf(site)
    for does in (use, lambda r: r.getSession().notifyOnExpire(lambda: None) and b""):
        visit(browser, does)
        for call in world.clock.getDelayedCalls():
            assert call.getTime() < world.clock.seconds() + 1e6
    world.clock.advance(1e7)
    assert visit(browser, show).body == b"v"
    browser.close()


def test_timersDoNotGrowWithSessions(world: World) -> None:
    """
    One for the site, one for its store (and Twisted's for the date in logs).
    """
    site = world.site()
    counts = set()
    for _ in range(30):
        browser = browserOf(site)
        visit(browser, use)
        visit(browser, lambda r: r.getSession().notifyOnExpire(lambda: None) and b"")
        counts.add(len(world.clock.getDelayedCalls()))
        browser.close()
    assert max(counts) <= 3


def test_whatIsKeptHereGoesWhenTheStoreEndsIt(world: World) -> None:
    """
    An attribute keeps a session in memory, but no longer than it lives.
    """
    site = world.site()
    browser = browserOf(site)

    def mark(request: Any) -> bytes:
        request.getSession()["k"] = "v"
        request.getSession().here = object()
        return b""

    visit(browser, mark)
    assert len(site.sessions) == 1
    world.wait(IDLE - 10, 10.0)
    assert len(site.sessions) == 1
    world.wait(12)
    assert site.sessions == {}
    browser.close()


def test_noLiveObjectsWithoutUse(shared: World) -> None:
    """
    On a shared store sessions that nobody uses are not in memory, neither
    those that were loaded outside a request.
    """
    site = shared.site()
    uids = []
    for _ in range(10):
        browser = browserOf(site)
        visit(browser, use)
        visit(browser, lambda r: uids.append(r.getSession().uid) or b"")
        browser.close()
    assert site.sessions == {}
    for uid in uids:
        assert result(site.loadSession(uid))["k"] == "v"
    assert site.sessions == {}


# session.notifyOnExpire


def test_theSessionsOwnCallbackAtItsEnd(world: World) -> None:
    """
    Once, in the process that asked, when it idles out.
    """
    site = world.site()
    browser = browserOf(site)
    heard: list[float] = []
    visit(browser, use)
    visit(
        browser,
        lambda r: (
            r.getSession().notifyOnExpire(lambda: heard.append(world.clock.seconds())) and b""
        ),
    )
    last = world.clock.seconds()
    world.wait(IDLE - 1)
    assert heard == []
    world.wait(3)
    assert len(heard) == 1 and last + IDLE <= heard[0] <= last + IDLE + 2
    world.wait(IDLE * 2, 10.0)
    assert len(heard) == 1
    browser.close()


def test_theSessionsOwnCallbackWhenAnotherProcessEndedIt(shared: World) -> None:
    """
    By its sweep, or by a logout; and not while the other keeps it alive.
    """
    one, two = shared.site(), shared.site()
    for how in ("idle", "logout"):
        here = browserOf(one)
        there = browserOf(two, jar=here.jar)
        heard: list[str] = []
        visit(here, use)
        visit(here, lambda r, h=heard: r.getSession().notifyOnExpire(lambda: h.append("x")) and b"")
        for _ in range(30):
            shared.wait(100, 10.0)
            visit(there, show)
        assert heard == []
        if how == "logout":
            visit(there, lambda r: r.getSession().logout() and b"")
        shared.wait(IDLE + 2, 1.0)
        assert heard == ["x"]
        assert one.sessions == {}
        here.close()
        there.close()


def test_aCallbackOnASessionLoadedOutsideARequest(world: World) -> None:
    """
    It pins the session as one from a request does.
    """
    site = world.site()
    browser = browserOf(site)
    uids: list[bytes] = []
    visit(browser, use)
    visit(browser, lambda r: uids.append(r.getSession().uid) or b"")
    session = result(site.loadSession(uids[0]))
    heard: list[int] = []
    session.notifyOnExpire(lambda: heard.append(1))
    del session
    world.wait(IDLE + 2, 1.0)
    assert heard == [1]
    browser.close()


# site.notifyOnExpire


def endOf(site: Any, value: str = "v") -> None:
    """
    Make a session with C{k = value} and leave it alone.
    """
    browser = browserOf(site)
    visit(browser, lambda r: r.getSession().update(k=value) or b"")
    browser.close()


def test_endsAreHeardAfterARestart(shared: World) -> None:
    """
    Sessions that fell due while nobody was there, with their last values.
    """
    one = shared.site()
    one.notifyOnExpire(lambda end: None)
    for number in range(3):
        endOf(one, str(number))
    browser = browserOf(one)
    visit(browser, lambda r: r.getSession().login("alice") and b"")
    browser.close()
    shared.stop(one)
    shared.clock.advance(86400)
    ends: list[Any] = []
    shared.site().notifyOnExpire(ends.append)
    shared.wait(5)
    assert sorted(end.data.get("k", "-") for end in ends) == ["-", "0", "1", "2"]
    assert [end.principal for end in ends if not end.data] == ["alice"]
    assert {end.reason for end in ends} == {"idle"}
    assert len({end.id for end in ends}) == 4
    for end in ends:
        assert end.ended == pytest.approx(end.created + IDLE)


@pytest.mark.parametrize("reason", ["idle", "absolute", "logout", "evicted", "revoked"])
def test_theReasonIsTold(world: World, reason: str) -> None:
    """
    For each way to end.
    """

    class Limited(Session):
        absoluteTimeout = 1000

    site = world.site(maxSessionsPerPrincipal=1)
    site.sessionFactory = Limited
    ends: list[Any] = []
    site.notifyOnExpire(ends.append)
    browser = browserOf(site)
    visit(browser, lambda r: r.getSession().login("alice") and b"")
    if reason == "absolute":
        world.clock.advance(800)
        visit(browser, show)
    if reason in ("idle", "absolute"):
        world.wait(902, 1.0)
    elif reason == "logout":
        visit(browser, lambda r: r.getSession().logout() and b"")
    elif reason == "evicted":
        other = browserOf(site)
        visit(other, lambda r: r.getSession().login("alice") and b"")
        other.close()
    else:
        assert result(site.expireSessionsOf("alice")) == 1
    world.wait(2)
    assert [(end.reason, end.principal) for end in ends] == [(reason, "alice")]
    browser.close()


def test_rotationAndLoginAreNoEnds(world: World) -> None:
    """
    Only the logout is.
    """
    site = world.site()
    ends: list[Any] = []
    site.notifyOnExpire(ends.append)
    browser = browserOf(site)
    visit(browser, use)
    visit(browser, lambda r: r.getSession().rotate())
    visit(browser, lambda r: r.getSession().login("alice") and b"")
    world.wait(5)
    assert ends == []
    visit(browser, lambda r: r.getSession().logout() and b"")
    world.wait(5)
    assert [(end.reason, dict(end.data)) for end in ends] == [("logout", {"k": "v"})]
    browser.close()


def test_aFailingCallbackIsCalledAgainWithTheSameId(world: World) -> None:
    """
    With growing pauses; and given up after eight times.
    """
    site = world.site()
    calls: list[tuple[float, str]] = []

    def fails(end: Any) -> None:
        calls.append((world.clock.seconds(), end.id))
        raise RuntimeError("not now")

    site.notifyOnExpire(fails)
    endOf(site)
    world.wait(IDLE + 1000, 1.0)
    assert len({name for _, name in calls}) == 1
    assert len(calls) == 8
    times = [when for when, _ in calls]
    pauses = [late - early for early, late in zip(times, times[1:], strict=False)]
    for pause, wanted in zip(pauses, [1, 2, 4, 8, 16, 32, 64], strict=True):
        assert wanted <= pause <= wanted + 2.5
    world.wait(5000, 10.0)
    assert len(calls) == 8


def test_onlyTheCallbackThatFailedIsCalledAgain(world: World) -> None:
    """
    The others have heard it.
    """
    site = world.site()
    good: list[str] = []
    bad: list[str] = []

    def failsOnce(end: Any) -> None:
        bad.append(end.id)
        if len(bad) == 1:
            raise RuntimeError("not now")

    site.notifyOnExpire(lambda end: good.append(end.id))
    site.notifyOnExpire(failsOnce)
    site.notifyOnExpire(lambda end: good.append(end.id))
    endOf(site)
    world.wait(IDLE + 10, 1.0)
    assert len(bad) == 2 and len(good) == 2
    assert len(set(good + bad)) == 1


def test_aWithdrawnCallbackHearsNothing(world: World) -> None:
    """
    And what nobody hears waits for somebody who does.
    """
    site = world.site()
    heard: list[str] = []
    withdraw = site.notifyOnExpire(lambda end: heard.append("withdrawn"))
    withdraw()
    withdraw()
    endOf(site)
    world.wait(IDLE + 5, 1.0)
    assert heard == []
    site.notifyOnExpire(lambda end: heard.append("later"))
    world.wait(5)
    assert heard == ["later"]


def test_coroutinesAreCallbacks(world: World) -> None:
    """
    Their end is what counts: while they run, the end is not settled.
    """
    site = world.site()
    gates: list[Deferred[None]] = []
    done: list[str] = []

    async def slow(end: Any) -> None:
        gates.append(Deferred())
        await gates[-1]
        done.append(end.id)

    site.notifyOnExpire(slow)
    endOf(site)
    world.wait(IDLE + 10, 1.0)
    assert len(gates) == 1 and done == []
    gates[0].callback(None)
    world.wait(100, 1.0)
    assert len(done) == len(gates) == 1


def test_oneThatHangsBlocksNoOther(world: World) -> None:
    """
    After the lease it is taken for failed and called again.
    """
    site = world.site(leaseDuration=30.0)
    hung: list[str] = []
    heard: list[str] = []

    def callback(end: Any) -> Any:
        if end.data["k"] == "hang" and len(hung) < 1:
            hung.append(end.id)
            return Deferred()
        heard.append(end.data["k"])
        return None

    site.notifyOnExpire(callback)
    endOf(site, "hang")
    for number in range(5):
        endOf(site, str(number))
    world.wait(IDLE + 5, 1.0)
    assert len(hung) == 1 and sorted(heard) == list("01234")
    world.wait(40, 1.0)
    assert sorted(heard) == [*"01234", "hang"]


def test_stopWithACallbackUnderWayLeavesNothing(world: World) -> None:
    """
    Neither a delayed call nor a lost end.
    """
    site = world.site()
    site.notifyOnExpire(lambda end: Deferred())
    endOf(site)
    world.wait(IDLE + 5, 1.0)
    world.stop(site)
    assert world.clock.getDelayedCalls() == []


def test_anUnfinishedCallbackIsHeardByTheNextProcess(shared: World) -> None:
    """
    When the lease of the one that stopped has run out, at the latest. However
    many stop: that is no failure of the callback.
    """
    ids: list[str] = []

    def hangs(end: Any) -> Any:
        ids.append(end.id)
        return Deferred()

    for number in range(9):
        site = shared.site()
        site.notifyOnExpire(hangs)
        if number == 0:
            endOf(site)
            shared.wait(IDLE + 5, 1.0)
        else:
            shared.wait(2, 1.0)
        assert len(ids) == number + 1
        shared.stop(site)
    shared.site().notifyOnExpire(lambda end: ids.append(end.id))
    shared.wait(35, 1.0)
    assert len(ids) == 10 and len(set(ids)) == 1


def test_listenersOutliveAStopOfTheSitesPorts(world: World) -> None:
    """
    The last port closes and another opens: C{site.notifyOnExpire} still holds.
    """
    site = world.site()
    heard: list[str] = []
    site.notifyOnExpire(lambda end: heard.append(end.data["k"]))
    endOf(site)
    world.stop(site)
    site.doStart()
    world.sites.append(site)
    world.wait(IDLE + 5, 1.0)
    assert heard == ["v"]


def test_eachEndIsHeardOnceByFourSites(shared: World) -> None:
    """
    200 sessions fall due at once.
    """
    sites = [shared.site() for _ in range(4)]
    heard: list[tuple[int, str, str]] = []
    for number, site in enumerate(sites):

        def callback(end: Any, number: int = number) -> None:
            heard.append((number, end.id, end.data["k"]))

        site.notifyOnExpire(callback)
    for number in range(200):
        endOf(sites[number % 4], str(number))
    shared.wait(IDLE + 10, 1.0)
    assert sorted(value for _, _, value in heard) == sorted(str(number) for number in range(200))
    assert len({name for _, name, _ in heard}) == 200


def test_whatWasHeardIsNotCalledAgainIfTheStoreWasNotTold(world: World) -> None:
    """
    The callback has run; only the store does not know, and gives it out again.
    """
    from twsessions.stores.memory import MemoryStore
    from twsessions.testing.faulty import FaultyStore

    store = FaultyStore(MemoryStore(world.clock.seconds))
    world.url = store  # type: ignore[assignment]
    site = world.site()
    heard: list[str] = []
    site.notifyOnExpire(lambda end: heard.append(end.id))
    endOf(site)
    store.failNext("settle")
    world.wait(IDLE + 100, 1.0)
    assert len(heard) == 1
    settled = [args for name, args in store.calls if name == "settle"]
    assert len(settled) == 2
    world.stop(site)
    world.clock.advance(5)  # the link to a store that is not the site's own


def test_listenersThatLeaveMeanwhileLoseNoEnd(world: World) -> None:
    """
    The only one withdraws while ends are on their way to it.
    """
    from twsessions.stores.memory import MemoryStore
    from twsessions.testing.faulty import FaultyStore

    store = FaultyStore(MemoryStore(world.clock.seconds))
    world.url = store  # type: ignore[assignment]
    site = world.site()
    heard: list[str] = []
    withdraw = site.notifyOnExpire(lambda end: heard.append("gone"))
    endOf(site)
    world.wait(IDLE - 2, 1.0)
    claims = store.claim

    def claim(limit: int, lease: float) -> Any:
        answer = claims(limit, lease)
        return answer.addCallback(lambda ends: (ends and withdraw(), ends)[1])

    store.claim = claim  # type: ignore[method-assign]
    world.wait(10)
    assert heard == []
    store.claim = claims  # type: ignore[method-assign]
    site.notifyOnExpire(lambda end: heard.append("later"))
    world.wait(40)
    assert heard == ["later"]
    world.stop(site)
    world.clock.advance(5)  # the link to a store that is not the site's own


def test_aStoreWithoutEventsSaysSoAtTheRegistration(world: World) -> None:
    """
    A promise that cannot be kept is not given.
    """
    from twsessions.errors import NotSupported
    from twsessions.stores.memory import MemoryStore

    class Forgetful(MemoryStore):
        capabilities = frozenset()

    site: Any = SessionSite(Page(), reactor=world.clock, store=Forgetful(world.clock.seconds))
    with pytest.raises(NotSupported):
        site.notifyOnExpire(lambda end: None)


# Stopping


def changedLate(site: Any) -> Any:
    """
    The cookies of a client whose session is changed after its last request.
    """
    browser = browserOf(site)
    sessions: list[Any] = []
    visit(browser, use)
    visit(browser, lambda r: sessions.append(r.getSession()) or b"")
    sessions[0]["k"] = "late"
    browser.close()
    return browser.jar


def test_stopStoresWhatIsNotStored(shared: World) -> None:
    """
    C{stopFactory} flushes; the next process finds it.
    """
    site = shared.site()
    jar = changedLate(site)
    shared.stop(site)
    assert shared.clock.getDelayedCalls() == []
    other = browserOf(shared.site(), jar)
    assert visit(other, show).body == b"late"
    other.close()


def test_theLastUseBeforeAStopCounts(shared: World) -> None:
    """
    A touch that was not written yet is written then.
    """
    site = shared.site()
    browser = browserOf(site)
    visit(browser, use)
    shared.clock.advance(40)
    visit(browser, show)
    jar = browser.jar
    browser.close()
    shared.stop(site)
    shared.clock.advance(IDLE - 1)
    other = browserOf(shared.site(), jar)
    assert visit(other, show).body == b"v"
    other.close()


def test_aStopWritesASessionOnce(shared: World) -> None:
    """
    One that was used, and is changed afterwards: were the use written by itself,
    on a store that takes its time it would be counted twice.
    """
    site = shared.site()
    jar, link = changedLate(site), site.keeper.link
    before = link.commits
    shared.stop(site)
    assert link.commits == before + 1
    other = browserOf(shared.site(), jar)
    assert visit(other, lambda r: r.getSession().requestCount).body == b"3"
    other.close()


def test_aPortThatIsOpenedBeforeTheStopIsDone() -> None:
    """
    The site goes on, and so does all that it does by the clock.
    """
    from twsessions.test.slowstore import SlowStore

    clock = Clock()
    site: Any = SessionSite(Page(), reactor=clock, store=SlowStore(clock, 0.1))
    heard: list[str] = []
    site.doStart()
    site.notifyOnExpire(lambda end: heard.append(end.reason))
    clock.pump([0.1] * 20)
    site.makeSession()["k"] = "v"
    site.doStop()
    site.doStart()
    clock.pump([1.0] * 1000)
    assert heard == ["idle"]
    site.doStop()
    clock.pump([0.1] * 20)
