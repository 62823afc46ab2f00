"""
L{twsessions.web.session.Session} on a stock L{twisted.web.server.Site}: what
Twisted's own sessions get wrong and a subclass can mend.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher
from twisted.python.components import Componentized, registerAdapter
from twisted.python.failure import Failure
from twisted.web.server import Session as StockSession
from twisted.web.server import Site
from zope.interface import Interface, implementer

from twsessions import Session
from twsessions.errors import NeedsSessionSite, SessionGone
from twsessions.test.page import Does, Page, result
from twsessions.testing.browser import Browser, Response


class ShortSession(Session):
    """
    As Twisted's documentation has it.
    """

    sessionTimeout = 60


class ICounter(Interface):
    """
    Counts; kept in this process only.
    """


@implementer(ICounter)
class Counter:
    """
    As Twisted's documentation has it.
    """

    def __init__(self, session: StockSession) -> None:
        self.value = 0


registerAdapter(Counter, StockSession, ICounter)


class Web:
    """
    A stock site with our sessions, on a clock.
    """

    def __init__(self) -> None:
        self.clock = Clock()
        self.clock.advance(1_000_000.5)
        self.page = Page()
        self.site = Site(self.page, reactor=self.clock)
        self.site.sessionFactory = Session

    def visit(self, browser: Browser, does: Does) -> Response:
        self.page.does = does
        response: Response = result(browser.get("/"))
        return response

    def session(self) -> Any:
        return self.site.makeSession()


@pytest.fixture
def web() -> Web:
    return Web()


@pytest.fixture
def browser(web: Web) -> Iterator[Browser]:
    it = Browser(web.site)
    yield it
    it.close()


@pytest.fixture
def logged() -> Iterator[list[Failure]]:
    """
    The failures that are logged.
    """
    failures: list[Failure] = []

    def observe(event: Any) -> None:
        if event.get("log_failure") is not None:
            failures.append(event["log_failure"])

    globalLogPublisher.addObserver(observe)
    yield failures
    globalLogPublisher.removeObserver(observe)


def boom() -> None:
    raise RuntimeError("boom")


# Idle time


def test_visitedItStays(web: Web, browser: Browser) -> None:
    """
    Each request counts as use, as Twisted's has not done since 18.9.
    """
    uids = set()
    for _ in range(20):
        web.visit(browser, lambda request: uids.add(request.getSession().uid))
        web.clock.advance(800)
    assert len(uids) == 1
    assert list(web.site.sessions) == list(uids)


def test_leftAloneItEndsExactlyThen(web: Web, browser: Browser) -> None:
    """
    The idle time runs from the last use and not from the first.
    """
    ended: list[float] = []

    def begin(request: Any) -> None:
        request.getSession().notifyOnExpire(lambda: ended.append(web.clock.seconds()))

    web.visit(browser, begin)
    web.clock.advance(700)
    web.visit(browser, lambda request: request.getSession())
    last = web.clock.seconds()
    web.clock.pump([1] * 899)
    assert ended == [] and len(web.site.sessions) == 1
    web.clock.advance(1)
    assert ended == [last + 900]
    assert web.site.sessions == {}
    browser.close()  # and Twisted's own timer of the date in logs
    assert web.clock.getDelayedCalls() == []


def test_aSubclassHasItsOwnTimeout(web: Web) -> None:
    """
    C{sessionTimeout} of the class counts.
    """
    web.site.sessionFactory = ShortSession
    session = web.session()
    assert isinstance(session, ShortSession)
    web.clock.advance(59.9)
    assert not session.isExpired
    web.clock.advance(0.1)
    assert session.isExpired


def test_theTimeoutOfAllSessions(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Programs set it on Twisted's class, for whatever sessions there will be.
    """
    assert Session.sessionTimeout == 900
    monkeypatch.setattr(StockSession, "sessionTimeout", 10)
    session = web.session()
    web.clock.advance(9.9)
    assert not session.isExpired
    web.clock.advance(0.1)
    assert session.isExpired
    web.site.sessionFactory = ShortSession
    assert web.session().sessionTimeout == 60


def test_anInstanceHasItsOwnTimeoutFromTheNextTouch(web: Web) -> None:
    """
    As with Twisted's timers: longer or shorter, from the next use on.
    """
    short, long = web.session(), web.session()
    short.sessionTimeout = 10
    long.sessionTimeout = 5000
    short.touch()
    long.touch()
    web.clock.advance(9.9)
    assert not short.isExpired
    web.clock.advance(0.1)
    assert short.isExpired and not long.isExpired
    web.clock.advance(4989)
    assert not long.isExpired
    web.clock.advance(1)
    assert long.isExpired


def test_setTimeoutCountsAtOnce(web: Web) -> None:
    """
    Shorter, longer and none at all.
    """
    session = web.session()
    session.setTimeout(10)
    web.clock.advance(9)
    session.touch()
    web.clock.advance(9)
    assert not session.isExpired
    session.setTimeout(5000)
    web.clock.advance(4000)
    assert not session.isExpired
    session.setTimeout(None)
    web.clock.advance(20_000)
    assert not session.isExpired
    heard: list[float] = []
    session.notifyOnExpire(lambda: heard.append(web.clock.seconds()))
    session.touch()
    session.setTimeout(10)
    now = web.clock.seconds()
    web.clock.pump([1.0] * 20)
    assert heard == [now + 10]


@pytest.mark.parametrize("wrong", [0, -1, float("inf"), float("nan"), "10", True])
def test_setTimeoutRefusesWhatIsNoTime(web: Web, wrong: Any) -> None:
    """
    And changes nothing then.
    """
    session = web.session()
    with pytest.raises((TypeError, ValueError)):
        session.setTimeout(wrong)
    web.clock.advance(900)
    assert session.isExpired


def test_useDoesNotExtendTheAbsoluteTimeout(web: Web) -> None:
    """
    However much it is used.
    """
    session = web.session()
    session.absoluteTimeout = 3600
    for _ in range(36):
        web.clock.advance(100)
        session.touch()
    assert session.isExpired
    assert web.site.sessions == {}


def test_oneDelayedCallForAllSessions(web: Web) -> None:
    """
    Not one for each; and none when the last has ended.
    """
    sessions = [web.session() for _ in range(100)]
    assert len(web.clock.getDelayedCalls()) == 1
    for session in sessions[1:]:
        session.expire()
    assert not sessions[0].isExpired
    web.clock.advance(900)
    assert sessions[0].isExpired
    assert web.clock.getDelayedCalls() == []


def test_noDelayedCallIsLeftWhenAllHaveEnded(web: Web) -> None:
    """
    As Twisted: tests of applications end the sessions they made, and the reactor
    is clean. Later ones end in their time.
    """
    sessions = [web.session() for _ in range(3)]
    for session in sessions:
        assert len(web.clock.getDelayedCalls()) == 1
        session.expire()
    assert web.clock.getDelayedCalls() == []
    later = web.session()
    web.clock.advance(899.9)
    assert not later.isExpired
    web.clock.advance(0.1)
    assert later.isExpired


def test_manyThatFallDueTogetherAllEnd(web: Web) -> None:
    """
    Work is done in slices, but it is done.
    """
    count: list[int] = []
    for _ in range(3000):
        web.session().notifyOnExpire(lambda: count.append(1))
    web.clock.advance(900)
    web.clock.pump([0.0] * 200)
    assert len(count) == 3000
    assert web.site.sessions == {}


# The end


def test_expiringTwiceDoesNoHarm(web: Web) -> None:
    """
    Twisted raises KeyError (#9290).
    """
    session, calls = web.session(), []
    session.notifyOnExpire(lambda: calls.append(1))
    assert result(session.expire()) is None
    assert result(session.expire()) is None
    session.touch()
    web.clock.advance(2000)
    assert calls == [1]
    assert web.clock.getDelayedCalls() == []


def test_expiringFromACallbackDoesNoHarm(web: Web) -> None:
    """
    The Deferred of the inner one fires too.
    """
    session, calls = web.session(), []
    session.notifyOnExpire(lambda: session.expire().addCallback(calls.append))
    session.notifyOnExpire(lambda: calls.append("second"))
    session.expire()
    assert calls == [None, "second"]


def test_aSessionThatEndedByItselfCanBeTouchedAndExpired(web: Web) -> None:
    """
    Twisted raises AlreadyCalled from one and KeyError from the other.
    """
    session = web.session()
    web.clock.advance(900)
    session.touch()
    result(session.expire())
    assert session.isExpired


def test_aCallbackThatRaisesStopsNoOther(web: Web, logged: list[Failure]) -> None:
    """
    It is logged; the session has ended all the same.
    """
    session, calls = web.session(), []
    session.notifyOnExpire(boom)
    session.notifyOnExpire(lambda: calls.append("middle"))
    session.notifyOnExpire(boom)
    web.clock.advance(900)
    assert calls == ["middle"]
    assert web.site.sessions == {} and web.clock.getDelayedCalls() == []
    assert [failure.type for failure in logged] == [RuntimeError, RuntimeError]


def test_deferredsAndCoroutinesAreCallbacks(web: Web, logged: list[Failure]) -> None:
    """
    One that does not end holds up nobody; one that fails later is logged.
    """
    session, calls = web.session(), []
    hangs: Deferred[None] = Deferred()

    async def coroutine() -> None:
        await hangs
        calls.append("coroutine")
        boom()

    session.notifyOnExpire(lambda: hangs)
    session.notifyOnExpire(coroutine)
    session.notifyOnExpire(lambda: calls.append("plain"))
    session.expire()
    assert calls == ["plain"] and session.isExpired
    hangs.callback(None)
    assert calls == ["plain", "coroutine"]
    assert [failure.type for failure in logged] == [RuntimeError]


def test_aWithdrawnCallbackIsNotCalled(web: Web) -> None:
    """
    Withdrawing twice does no harm, nor does it too late.
    """
    session, calls = web.session(), []
    withdraw = session.notifyOnExpire(lambda: calls.append("a"))
    session.notifyOnExpire(lambda: calls.append("b"))
    withdraw()
    withdraw()
    session.expire()
    withdraw()
    assert calls == ["b"]


def test_withdrawingTakesOneOfTwoEqualCallbacks(web: Web) -> None:
    """
    However often it is called.
    """
    session, calls = web.session(), []

    def callback() -> None:
        calls.append(1)

    session.notifyOnExpire(callback)
    withdraw = session.notifyOnExpire(callback)
    withdraw()
    withdraw()
    session.expire()
    assert calls == [1]


def test_aCallbackThatWithdrawsItselfHidesNoOther(web: Web) -> None:
    """
    The list that is walked is not the one that shrinks.
    """
    session, calls = web.session(), []

    def first() -> None:
        calls.append("first")
        withdraw()

    withdraw = session.notifyOnExpire(first)
    session.notifyOnExpire(lambda: calls.append("second"))
    session.notifyOnExpire(lambda: calls.append("third"))
    session.expire()
    assert calls == ["first", "second", "third"]


def test_aCallbackCanWithdrawALaterOne(web: Web) -> None:
    """
    What is withdrawn before its turn is not called.
    """
    session, calls = web.session(), []
    session.notifyOnExpire(lambda: withdraw())
    withdraw = session.notifyOnExpire(lambda: calls.append("withdrawn"))
    session.expire()
    assert calls == []


def test_aCallbackAddedDuringTheEndIsCalledOnce(web: Web) -> None:
    """
    And one that is added after it, at once.
    """
    session, calls = web.session(), []
    session.notifyOnExpire(lambda: session.notifyOnExpire(lambda: calls.append("during")))
    session.expire()
    assert calls == ["during"]
    session.notifyOnExpire(lambda: calls.append("after"))
    assert calls == ["during", "after"]


def test_expireCallbacksIsAListAsInTwisted(web: Web) -> None:
    """
    People look into it, append to it and replace it.
    """
    session, calls = web.session(), []
    assert session.expireCallbacks == []
    session.expireCallbacks.append(lambda: calls.append("appended"))
    session.expireCallbacks = [*session.expireCallbacks, lambda: calls.append("replaced")]
    session.expire()
    assert calls == ["appended", "replaced"]


def test_theExpiringHookRunsBeforeTheCallbacks(web: Web) -> None:
    """
    Once; and if it fails the callbacks run.
    """
    calls = []

    class Hooked(Session):
        def expiring(self) -> None:
            calls.append("hook")
            boom()

    web.site.sessionFactory = Hooked
    session = web.session()
    session.notifyOnExpire(lambda: calls.append("callback"))
    session.expire()
    assert calls == ["hook", "callback"]


def test_anEndedSessionCanBeReadButNotWritten(web: Web) -> None:
    """
    What is written to it would be lost.
    """
    session = web.session()
    session["a"] = 1
    session.flash["f"] = 1
    session.expire()
    assert session["a"] == 1 and dict(session) == {"a": 1}
    for write in (
        lambda: session.__setitem__("a", 2),
        lambda: session.pop("a"),
        lambda: session.update(a=2),
        lambda: session.setdefault("b", 2),
        session.clear,
        lambda: session.flash.__setitem__("f", 2),
        lambda: session.flash["f"],
    ):
        with pytest.raises(SessionGone):
            write()
    assert session["a"] == 1


def test_afterTheEndTheNextRequestHasANewOne(web: Web, browser: Browser) -> None:
    """
    On a stock Site, whose own request answers the same one from its memory.
    """
    uids = []
    web.visit(browser, lambda request: uids.append(request.getSession().uid))
    web.visit(browser, lambda request: request.getSession().expire() and b"")
    web.visit(browser, lambda request: uids.append(request.getSession().uid))
    assert uids[0] != uids[1]
    assert list(web.site.sessions) == uids[1:]


def test_aStockSiteCountsRequests(web: Web, browser: Browser) -> None:
    """
    One for each, however often it asks; only the first finds the session new.
    """
    seen: list[object] = []

    def look(request: Any) -> None:
        for _ in range(2):
            session = request.getSession()
            seen.append((session.isNew, session.requestCount))

    for _ in range(3):
        web.visit(browser, look)
    assert seen == [(True, 1), (True, 1), (False, 2), (False, 2), (False, 3), (False, 3)]


def test_twistedsDictionariesAreThere(web: Web) -> None:
    """
    Made when they are asked for; what is put into them keeps the object.
    """
    session = web.session()
    assert not session._isPinned()
    session.sessionNamespaces["old"] = "style"
    assert session.sessionNamespaces == {"old": "style"} and session._isPinned()
    session.sessionNamespaces = {"new": "one"}
    assert session.sessionNamespaces == {"new": "one"}
    Componentized.__init__(session)  # as a subclass may call it
    session.setComponent(ICounter, Counter(session))
    assert isinstance(ICounter(session), Counter) and session._adapterCache


# A mapping


def test_itIsAMapping(web: Web) -> None:
    """
    With all that a mutable mapping has.
    """
    session = web.session()
    session.update({"a": 1}, b=[2])
    assert session.setdefault("c", "3") == "3" and session.setdefault("a", 9) == 1
    assert dict(session) == {"a": 1, "b": [2], "c": "3"}
    assert (len(session), "a" in session, "z" in session, 1 in session) == (3, True, False, False)
    assert session.get("z") is None and session.get("z", 5) == 5
    assert sorted(session.keys()) == ["a", "b", "c"]
    assert list(session.items()) == list(zip(session.keys(), session.values(), strict=True))
    assert session.pop("a") == 1 and session.pop("a", None) is None
    name, value = session.popitem()
    assert (name, value) in [("b", [2]), ("c", "3")]
    session.clear()
    assert len(session) == 0 and list(session) == []
    with pytest.raises(KeyError):
        session.popitem()


@pytest.mark.parametrize("key", ["missing", "", 5, None, b"a", ("a",)])
def test_whatIsNotThereIsAKeyError(web: Web, key: Any) -> None:
    """
    Named as it was asked for.
    """
    session = web.session()
    session["a"] = 1
    with pytest.raises(KeyError) as read:
        session[key]
    assert read.value.args == (key,)
    with pytest.raises(KeyError) as deleted:
        del session[key]
    assert deleted.value.args == (key,)
    assert key not in session and session.get(key, "default") == "default"


def test_anEmptySessionIsTrueAndOnlyItself(web: Web) -> None:
    """
    Twisted takes a false one for a missing one.
    """
    one, other = web.session(), web.session()
    assert one and other and bool(one) is True
    assert one != other and one == one and len({one, other, one}) == 2


def test_whatCannotBeStoredIsATypeErrorAtTheAssignment(web: Web) -> None:
    """
    That names key and type and changes nothing.
    """
    session = web.session()
    session["k"] = "before"
    for value in (object(), Session, lambda: None, [1, {"a": object()}], 1j):
        with pytest.raises(TypeError, match=r"session\['k'\]"):
            session["k"] = value
    with pytest.raises(TypeError, match="object"):
        session["k"] = object()
    with pytest.raises(TypeError, match="int"):
        session[5] = "value"
    assert dict(session) == {"k": "before"}


def test_valuesKeepTheirIdentityAndNestedChanges(web: Web, browser: Browser) -> None:
    """
    Through requests: C{session["cart"].append(x)} needs no announcement.
    """

    def add(request: Any) -> object:
        cart = request.getSession().setdefault("cart", [])
        cart.append(datetime(2026, 1, 1, tzinfo=timezone.utc))
        return len(cart)

    def show(request: Any) -> bytes:
        return b"%d" % len(request.getSession()["cart"])

    for _ in range(3):
        web.visit(browser, lambda request: b"" if add(request) else b"")
    assert web.visit(browser, show).body == b"3"


def test_itIsDirtyUntilItIsCommitted(web: Web) -> None:
    """
    Also by a nested change; not by one that is undone.
    """
    session = web.session()
    assert not session.isDirty
    session["a"] = [1]
    assert session.isDirty
    result(session.commit())
    assert not session.isDirty and session["a"] == [1]
    session["a"].append(2)
    assert session.isDirty
    session["a"].pop()
    assert not session.isDirty
    session["a"].append(object())
    with pytest.raises(TypeError):
        result(session.commit())


# Flash


def test_aFlashIsReadOnce(web: Web) -> None:
    """
    By C{[]}, C{get} and C{pop}; apart from the session's own keys.
    """
    session = web.session()
    session["saved"] = "own"
    for read in (
        lambda flash: flash["saved"],
        lambda flash: flash.get("saved"),
        lambda flash: flash.pop("saved"),
        lambda flash: flash.pop("saved", "default"),
    ):
        session.flash["saved"] = "once"
        assert "saved" in session.flash and len(session.flash) == 1
        assert read(session.flash) == "once"
        assert "saved" not in session.flash and session.flash.get("saved") is None
    assert dict(session) == {"saved": "own"}
    with pytest.raises(KeyError):
        session.flash["saved"]
    with pytest.raises(KeyError):
        session.flash.pop("saved")
    assert session.flash.pop("saved", None) is None


def test_aFlashCanBeNone(web: Web) -> None:
    """
    Which is not the same as none at all.
    """
    session = web.session()
    session.flash["x"] = None
    assert "x" in session.flash
    assert session.flash.get("x", "default") is None
    assert session.flash.get("x", "default") == "default"


def test_allFlashesCanBeReadAtOnce(web: Web) -> None:
    """
    While they are walked through they go.
    """
    for read in (dict, lambda flash: dict(flash.items()), lambda flash: dict([flash.popitem()])):
        session = web.session()
        session.flash["x"] = 1
        if read is dict:
            session.flash["y"] = 2
        got = read(session.flash)
        assert got == ({"x": 1, "y": 2} if read is dict else {"x": 1})
        assert len(session.flash) == 0
    session.flash.update(a=1, b=2, c=3)
    assert sorted(session.flash.values()) == [1, 2, 3]
    assert list(session.flash) == []


def test_aFlashThatCannotBeStoredIsATypeError(web: Web) -> None:
    """
    Named as what it is.
    """
    session = web.session()
    with pytest.raises(TypeError, match=r"session\.flash\['x'\]"):
        session.flash["x"] = object()
    with pytest.raises(TypeError):
        session.flash[1] = "x"
    assert "x" not in session.flash


# Components and attributes


def test_adaptersOfTwistedsSessionWork(web: Web, browser: Browser) -> None:
    """
    As in Twisted's documentation, through requests.
    """

    def count(request: Any) -> bytes:
        counter = request.getSession(ICounter)
        counter.value += 1
        return b"%d" % counter.value

    assert [web.visit(browser, count).body for _ in range(3)] == [b"1", b"2", b"3"]


def test_itIsComponentized(web: Web) -> None:
    """
    Components can be set, found by adaptation, and taken away.
    """
    session = web.session()
    counter = Counter(session)
    session.setComponent(ICounter, counter)
    assert ICounter(session) is counter and session.getComponent(ICounter) is counter
    session.unsetComponent(ICounter)
    assert ICounter(session) is not counter
    session.anything = object()
    with pytest.raises(AttributeError):
        getattr(session, "nothing")  # noqa: B009


# What it says of itself


def test_theTokenIsNotTheId(web: Web) -> None:
    """
    It stays the same, and is different for each session.
    """
    one, other = web.session(), web.session()
    token = one.csrfToken
    assert isinstance(token, str) and len(token) >= 22
    one["a"] = 1
    assert one.csrfToken == token != other.csrfToken
    assert one.uid.decode() not in token and token not in one.uid.decode()


def test_noIdAndNoValueIsShown(web: Web) -> None:
    """
    Not in C{repr}, nor in C{describe}, nor in the errors it raises.
    """
    session = web.session()
    session["key"] = "hunter2"
    session["list"] = ["hunter2"]
    session.flash["note"] = "hunter2"
    shown = [repr(session), str(session), f"{session}"]
    shown += [repr(session.describe()), repr(session.flash)]
    with pytest.raises(TypeError) as error:
        session["key2"] = ["hunter2", object()]
    shown.append(str(error.value))
    session.expire()
    shown.append(repr(session))
    with pytest.raises(SessionGone) as gone:
        session["key"] = 1
    shown.append(str(gone.value))
    for text in shown:
        assert "hunter2" not in text
        assert session.uid.decode() not in text and session.uid.decode()[:12] not in text
    assert "key" in session.describe()["values"]


def test_describeSaysWhatIsThere(web: Web) -> None:
    """
    For an error report: names, types and sizes.
    """
    session = web.session()
    session["a"] = [1, 2]
    described = session.describe()
    assert described["created"] == web.clock.seconds()
    assert described["values"]["a"].startswith("list")
    assert described["isExpired"] is described["loggedIn"] is False


def test_whatNeedsTheOtherSiteSaysSo(web: Web) -> None:
    """
    A new id would need a new cookie; and nothing has changed afterwards.
    """
    session = web.session()
    uid = session.uid
    with pytest.raises(NeedsSessionSite, match="SessionSite"):
        session.rotate()
    with pytest.raises(NeedsSessionSite):
        session.login("alice")
    assert session.uid == uid and session.principal is None
    for wrong in (None, b"alice", "", 5, "\ud800"):
        with pytest.raises(TypeError):
            session.login(wrong)


def test_logoutIsExpire(web: Web) -> None:
    """
    Under the name that an application looks for.
    """
    session = web.session()
    result(session.logout())
    assert session.isExpired and session.uid not in web.site.sessions


def test_deletingFromTheSitesDictionaryIsSurvived(web: Web) -> None:
    """
    People do it; the session's own end must not fail over it.
    """
    session, calls = web.session(), []
    session.notifyOnExpire(lambda: calls.append(1))
    del web.site.sessions[session.uid]
    web.clock.advance(900)
    assert calls == [1]


def test_madeByHandAsTwistedsTestsDo(web: Web) -> None:
    """
    C{Session(site, uid)}; with a reactor given as well.
    """
    session = Session(web.site, b"uid", web.clock)
    web.site.sessions[b"uid"] = session
    session.startCheckingExpiration()
    assert session.uid == b"uid" and session.site is web.site
    assert session.created == session.lastModified == web.clock.seconds()
    web.clock.advance(900)
    assert web.site.sessions == {}


def test_exclusiveIsOneAtATime(web: Web) -> None:
    """
    Also where no other process can have the session.
    """
    session, order = web.session(), []
    go: Deferred[None] = Deferred()

    async def first() -> None:
        async with session.exclusive():
            order.append("first in")
            await go
            order.append("first out")

    async def second() -> None:
        async with session.exclusive() as inside:
            assert inside is session
            order.append("second in")

    one, two = Deferred.fromCoroutine(first()), Deferred.fromCoroutine(second())
    assert order == ["first in"]
    go.callback(None)
    assert order == ["first in", "first out", "second in"]
    result(one)
    result(two)
    assert len(web.clock.getDelayedCalls()) == 1  # the session's end, and nothing else


def test_exclusiveDoesNotWaitForever(web: Web) -> None:
    """
    And is free again for the next after one has given up.
    """
    from twsessions.errors import LeaseTimeout

    session = web.session()
    go: Deferred[None] = Deferred()

    async def hold() -> None:
        async with session.exclusive():
            await go

    async def hurry() -> None:
        async with session.exclusive(timeout=5):
            pass

    held, hurried = Deferred.fromCoroutine(hold()), Deferred.fromCoroutine(hurry())
    web.clock.advance(5)
    with pytest.raises(LeaseTimeout):
        result(hurried)
    go.callback(None)
    result(held)
    result(Deferred.fromCoroutine(hurry()))
