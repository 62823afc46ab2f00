"""
Tests for L{twsessions.stores.link}.
"""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from zope.interface import implementer
from zope.interface.verify import verifyObject

from twsessions import storeFromURL
from twsessions.core.delta import Change
from twsessions.core.record import Record
from twsessions.errors import (
    IdCollision,
    NotSupported,
    SessionGone,
    StoreError,
    StoreUnavailable,
)
from twsessions.interfaces import LOCAL, ISessionStore, Message, Verdict
from twsessions.stores.link import StoreLink
from twsessions.stores.memory import MemoryStore


@implementer(ISessionStore)
class Script:
    """
    A store whose answers the test gives.
    """

    capabilities: frozenset[str] = frozenset()

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.answers: list[Deferred[Any]] = []

    def _ask(self, name: str, *args: Any) -> Deferred[Any]:
        self.asked.append((name, *args))
        self.answers.append(Deferred())
        return self.answers[-1]

    def load(self, keys: Any) -> Deferred[Any]:
        return self._ask("load", list(keys))

    def commit(self, changes: Any) -> Deferred[Any]:
        return self._ask("commit", [change.token for change in changes])

    def sweep(self, limit: int) -> Deferred[Any]:
        return self._ask("sweep", limit)

    def listen(self) -> Deferred[Any]:
        return self._ask("listen")

    def claim(self, limit: int, lease: float) -> Deferred[Any]:
        return self._ask("claim", limit, lease)

    def settle(self, verdicts: Any) -> Deferred[Any]:
        return self._ask("settle", verdicts)

    def sessionsOf(self, principal: str) -> Deferred[Any]:
        return self._ask("sessionsOf", principal)

    def withHandle(self, handle: bytes) -> Deferred[Any]:
        return self._ask("withHandle", handle)

    def acquire(self, name: bytes, holder: bytes, lease: float) -> Deferred[Any]:
        return self._ask("acquire", name, holder, lease)

    def release(self, name: bytes, holder: bytes) -> Deferred[Any]:
        return self._ask("release", name, holder)

    def watch(self, heard: Any) -> Deferred[Any]:
        return self._ask("watch", heard)

    def publish(self, messages: Any) -> Deferred[Any]:
        return self._ask("publish", list(messages))

    def subscribe(self, heard: Any) -> Deferred[Any]:
        return self._ask("subscribe", heard)

    def iterate(self, after: bytes | None, limit: int) -> Deferred[Any]:
        return self._ask("iterate", after, limit)

    def close(self) -> Deferred[Any]:
        return self._ask("close")


class Bench:
    """
    A link on a clock, to a scripted store.
    """

    def __init__(self, store: Any = None, **settings: Any) -> None:
        self.clock = Clock()
        self.store: Any = Script() if store is None else store
        self.link = StoreLink(self.clock, self.store, **settings)

    @property
    def asked(self) -> list[tuple[Any, ...]]:
        """
        What the store has been asked.
        """
        asked: list[tuple[Any, ...]] = self.store.asked
        return asked

    def answer(self, at: int, outcome: Any) -> None:
        """
        Fire the Deferred of one round trip.
        """
        if isinstance(outcome, Exception):
            self.store.answers[at].errback(outcome)
        else:
            self.store.answers[at].callback(outcome)

    def load(self, key: bytes = b"k") -> list[Any]:
        """
        Load; the list gets the outcome.
        """
        return heard(self.link.load(key))

    def commit(self, token: bytes = b"t", key: bytes = b"k") -> list[Any]:
        """
        Commit; the list gets the outcome.
        """
        return heard(self.link.commit(Change(key, token)))

    def open(self) -> None:
        """
        Let the breaker open.
        """
        for _ in range(3):
            self.load()
            self.answer(-1, StoreUnavailable("down"))
        assert self.link.isOpen


def heard(deferred: Deferred[Any]) -> list[Any]:
    """
    A list that gets the result, or the exception, when it is there.
    """
    found: list[Any] = []
    deferred.addCallbacks(found.append, lambda failure: found.append(failure.value))
    return found


def record(key: bytes = b"k") -> Record:
    """
    Any record.
    """
    return Record(key, b"seed", 0.0, 0.0)


def failed(*lists: list[Any]) -> bool:
    """
    Whether each has failed for want of the store.
    """
    return all(len(it) == 1 and isinstance(it[0], StoreUnavailable) for it in lists)


def test_interface() -> None:
    """
    The script is a store.
    """
    verifyObject(ISessionStore, Script())


def test_leavesAtOnce() -> None:
    """
    With nothing in flight a call leaves at once, loads and commits apart.
    """
    bench = Bench()
    loaded, committed = bench.load(), bench.commit()
    assert bench.asked == [("load", [b"k"]), ("commit", [b"t"])]
    one, two = record(), record()
    bench.answer(0, [one])
    bench.answer(1, [two])
    assert loaded[0] is one
    assert committed[0] is two
    assert (bench.link.loads, bench.link.commits, bench.link.batches) == (1, 1, 2)


def test_gathers() -> None:
    """
    While one is in flight the next batch gathers: each key once, in order.
    """
    bench = Bench()
    first = bench.load(b"a")
    more = [bench.load(key) for key in (b"b", b"a", b"b", b"c")]
    assert len(bench.asked) == 1
    bench.answer(0, [None])
    assert first == [None]
    assert bench.asked[1:] == [("load", [b"b", b"a", b"c"])]
    bench.answer(1, [record(b"b"), None, record(b"c")])
    assert [it[0] and it[0].key for it in more] == [b"b", None, b"b", b"c"]
    assert bench.link.batches == 2


def test_commitsInOrder() -> None:
    """
    Commits keep their order, those to one key included, and each has an
    outcome of its own.
    """
    bench = Bench()
    bench.commit(b"0")
    outcomes = [bench.commit(b"1", b"a"), bench.commit(b"2", b"b"), bench.commit(b"3", b"a")]
    bench.answer(0, [record()])
    assert bench.asked[1] == ("commit", [b"1", b"2", b"3"])
    gone, taken = SessionGone("gone"), IdCollision("taken")
    bench.answer(1, [gone, record(), taken])
    assert [it[0] for it in outcomes] == [gone, record(), taken]
    assert (bench.link.failures, bench.link.isOpen) == (0, False)


def test_maxBatch() -> None:
    """
    A batch has a largest size.
    """
    bench = Bench(maxBatch=2)
    for key in (b"0", b"1", b"2", b"3"):
        bench.load(key)
    bench.answer(0, [None])
    bench.answer(1, [None, None])
    assert [keys for _, keys in bench.asked] == [[b"0"], [b"1", b"2"], [b"3"]]


def test_callsFromCallbacks() -> None:
    """
    What is called while a batch's outcomes are handed out leaves as one batch,
    without a turn of the reactor.
    """
    bench = Bench()
    bench.load(b"0")
    bench.link.load(b"1").addCallback(lambda _: bench.commit(b"1"))
    bench.link.load(b"2").addCallback(lambda _: bench.commit(b"2"))
    bench.answer(0, [None])
    bench.answer(1, [None, None])
    assert bench.asked[2:] == [("commit", [b"1", b"2"])]


def test_synchronousStore() -> None:
    """
    A store that answers at once, though it is not local, is no recursion.
    """

    class Quick(Script):
        def load(self, keys: Any) -> Deferred[Any]:
            return super().load(keys) if not self.asked else succeed([None] * len(keys))

    bench = Bench(Quick(), maxBatch=1)
    found = [bench.load(b"%d" % number) for number in range(3000)]
    bench.link.load(b"0").addCallback(lambda _: found.append(bench.load(b"k")))
    bench.answer(0, [None])
    assert found == [[None]] * 3001


def test_deadline() -> None:
    """
    Each call fails when its own time is up, on one timer; what the store says
    afterwards is nobody's, and it goes on.
    """
    bench = Bench()
    first = bench.load(b"a")
    bench.clock.advance(1.5)
    second, third = bench.load(b"b"), bench.commit()
    assert len(bench.clock.getDelayedCalls()) == 1
    bench.clock.advance(0.5)
    assert failed(first)
    assert (second, third) == ([], [])
    assert bench.asked[2] == ("load", [b"b"]), "the hung round trip was given up on"
    assert len(bench.clock.getDelayedCalls()) == 1
    bench.answer(0, [record()])
    bench.answer(2, [None])
    assert second == [None]
    assert len(first) == 1
    bench.clock.advance(1.5)
    assert failed(third)
    assert bench.link.timeouts == 2
    bench.clock.advance(2)
    assert bench.clock.getDelayedCalls() == []


def test_deadlineWhileGathering() -> None:
    """
    A call whose time is up before it could leave does not leave.
    """
    bench = Bench(failuresToOpen=9)
    bench.load(b"a")
    bench.clock.advance(1)
    bench.load(b"b")
    bench.clock.advance(1)  # [b] leaves, with one second left
    bench.clock.advance(0.5)
    late = bench.commit(b"0"), bench.load(b"c"), bench.load(b"d")
    assert bench.asked[1:] == [("load", [b"b"]), ("commit", [b"0"])]
    stuck = bench.commit(b"1")
    bench.clock.advance(1.4)
    fresh = bench.commit(b"2")
    bench.clock.advance(0.6)
    assert failed(*late[:1], stuck)
    assert bench.asked[-1] == ("commit", [b"2"]), "not the one that has failed"
    bench.answer(-1, [record()])
    assert fresh == [record()]


def test_boundedMemory() -> None:
    """
    No more than so many wait.
    """
    bench = Bench(maxWaiting=3)
    waiting = [bench.load(), bench.load(), bench.commit()]
    assert failed(bench.load(), bench.commit(), heard(bench.link.sweep(1)))
    assert waiting == [[], [], []]
    bench.answer(1, [record()])
    assert bench.load() == []
    assert bench.link.failures == 0


def test_breaker() -> None:
    """
    After three failures in a row calls fail at once; then one at a time tries
    the store.
    """
    bench = Bench()
    for outcome in (StoreUnavailable("1"), StoreUnavailable("2"), [None]):
        bench.load()
        bench.answer(-1, outcome)
    assert not bench.link.isOpen, "a success in between counts"
    bench.open()
    assert (bench.link.failures, len(bench.asked)) == (5, 6)
    bench.clock.advance(0.25)
    refused = [bench.load(), bench.commit(), heard(bench.link.sweep(1))]
    assert failed(*refused)
    assert "for 0.2 s; the next try is in 0.8 s" in str(refused[0][0])
    assert len(bench.asked) == 6
    bench.clock.advance(0.75)
    probe = bench.load()
    assert failed(bench.load(), bench.commit())
    assert len(bench.asked) == 7
    bench.answer(-1, StoreUnavailable("still"))
    assert failed(probe, bench.load())
    bench.clock.advance(1)
    change = bench.commit()
    bench.answer(-1, [SessionGone("gone")])
    assert isinstance(change[0], SessionGone)
    assert not bench.link.isOpen, "a refusal is an answer"
    bench.load()
    bench.commit()
    assert [name for name, *_ in bench.asked[-2:]] == ["load", "commit"]


def test_breakerByTimeouts() -> None:
    """
    Round trips that hang open it too, once for each; those who wait to leave
    are told at once. A probe that hangs makes room for the next.
    """
    bench = Bench(failuresToOpen=2)
    lost = [bench.load(), bench.commit()]
    bench.clock.advance(1)
    waiting = [bench.load(), bench.commit()]
    bench.clock.advance(1)
    assert bench.link.isOpen
    assert failed(*lost, *waiting)
    assert (bench.link.failures, bench.link.timeouts, len(bench.asked)) == (2, 2, 2)
    bench.answer(0, [None])
    bench.answer(1, StoreUnavailable("late"))
    assert bench.link.isOpen and bench.link.failures == 2, "what comes late tells nothing"
    bench.clock.advance(1)
    probe = bench.load()
    bench.clock.advance(1.5)
    assert failed(bench.load()) and probe == [], "one at a time, as long as it may be answered"
    bench.clock.advance(0.5)
    assert failed(probe, bench.load())
    bench.clock.advance(1)
    probe = bench.load()
    bench.answer(-1, [None])
    assert probe == [None]
    assert not bench.link.isOpen


def test_theBreakerSaysWhy() -> None:
    """
    Once, in the log: pages that only load say nothing else of an outage. And
    once when it is over.
    """
    for refusal, said in (StoreUnavailable("wrong password"), "wrong password"), (None, "2 s"):
        bench = Bench(failuresToOpen=2)
        with capturedLogs() as logs:
            for _ in range(4):
                bench.load()
                if refusal is None:
                    bench.clock.advance(2)
                else:
                    bench.answer(-1, refusal)
                bench.clock.advance(1)
        (event,) = logs
        assert formatEvent(event).endswith(said)
        with capturedLogs() as logs:
            for _ in range(2):
                bench.load()
                bench.answer(-1, [None])
        assert len(logs) == 1


def test_oneServerOfSeveralIsAway() -> None:
    """
    Batches with nothing but its sessions in them do not keep others from theirs.
    """
    bench = Bench(failuresToOpen=2)
    for n in range(3):
        loaded = bench.load()
        bench.answer(n, [StoreUnavailable("node down")])
        assert failed(loaded)
    assert not bench.link.isOpen and bench.link.failures == 0


def test_aProbeOfOneServerOfSeveralTellsNothing() -> None:
    """
    The next call probes again.
    """
    bench = Bench(failuresToOpen=1)
    bench.load()
    bench.answer(0, StoreUnavailable("all down"))
    assert bench.link.isOpen
    bench.clock.advance(1)
    probe = bench.load()
    bench.answer(1, [StoreUnavailable("node down")])
    assert failed(probe) and bench.link.isOpen
    probe = bench.load()
    bench.answer(2, [None])
    assert probe == [None] and not bench.link.isOpen


def test_ownErrors() -> None:
    """
    A failure of the batch is each caller's own exception, also of those who
    have asked for the same session.
    """
    bench = Bench(failuresToOpen=2)
    bench.load(b"0")
    some = [bench.load(key) for key in (b"1", b"2", b"1")]
    bench.answer(0, [None])
    waiting = [bench.load(b"3"), bench.load(b"3")]
    bench.answer(1, StoreUnavailable("down"))
    assert failed(*some)
    assert len({id(one[0]) for one in some}) == 3
    assert {str(one[0]) for one in some} == {"down"}
    waiting += [bench.load(b"4"), bench.load(b"4")]
    bench.answer(2, StoreUnavailable("down"))
    assert failed(*waiting), "those who have not left, too"


@pytest.mark.parametrize("outcome", [ZeroDivisionError("bug"), [], None])
def test_bug(outcome: Any) -> None:
    """
    What no store may do counts as one more way to be unavailable, and is
    logged once for each kind.
    """
    bench = Bench(failuresToOpen=9)
    with capturedLogs() as logs:
        for _ in range(2):
            loaded = bench.load()
            bench.answer(-1, outcome)
            assert failed(loaded)
            assert isinstance(loaded[0].__cause__, (ZeroDivisionError, RuntimeError, TypeError))
    assert len(logs) == 1
    assert bench.link.failures == 2


def test_raises() -> None:
    """
    A store that raises where it should fail is understood.
    """

    class Raising(Script):
        def load(self, keys: Any) -> Deferred[Any]:
            raise StoreUnavailable("down")

    assert failed(Bench(Raising()).load())


def test_cancelledLoad() -> None:
    """
    A load that nobody waits for any more is forgotten.
    """
    bench = Bench()
    first = bench.link.load(b"a")
    others = [bench.link.load(key) for key in (b"b", b"c", b"c", b"c", b"d", b"d")]
    found = [heard(it) for it in (first, *others)]
    kept = found.pop(4)
    for it in (first, *others[:3], *others[4:]):
        it.cancel()
    assert all(isinstance(it[0], CancelledError) for it in found)
    bench.answer(0, [None])
    assert bench.asked[1:] == [("load", [b"c"])]
    bench.answer(1, [record(b"c")])
    assert kept == [record(b"c")]
    assert bench.link._waiting == 0


def test_cancelledCommit() -> None:
    """
    A commit is done whether or not somebody waits.
    """
    bench = Bench()
    bench.commit(b"0")
    change = bench.link.commit(Change(b"k", b"1"))
    found = heard(change)
    change.cancel()
    bench.answer(0, [record()])
    assert bench.asked[1] == ("commit", [b"1"])
    bench.answer(1, [record()])
    assert isinstance(found[0], CancelledError)
    assert bench.link._waiting == 0


def test_cancelledInBetween() -> None:
    """
    A load may be cancelled by whoever got his own just before.
    """
    bench = Bench()
    bench.load(b"a")
    second, third = bench.link.load(b"b"), bench.link.load(b"c")
    second.addCallback(lambda _: third.cancel())
    found = heard(third)
    bench.answer(0, [None])
    bench.answer(1, [None, None])
    assert len(found) == 1
    assert isinstance(found[0], CancelledError)
    assert bench.link._waiting == 0


def test_verdictsTravelTogether() -> None:
    bench = Bench()
    verdicts = [Verdict(b"%d" % number, b"c") for number in range(4)]
    held = [heard(bench.link.settle(verdict)) for verdict in verdicts]
    assert bench.asked == [("settle", verdicts[:1])]
    bench.answer(0, [True])
    assert bench.asked[1:] == [("settle", verdicts[1:])]
    bench.answer(1, [False, True, True])
    assert held == [[True], [False], [True], [True]]


def test_messagesTravelTogether() -> None:
    """
    In the order of the calls, equal ones too; and each has its outcome.
    """
    bench = Bench()
    said = [Message("x", b"%d" % (number // 2)) for number in range(6)]
    done = [heard(bench.link.publish(message)) for message in said]
    assert bench.asked == [("publish", said[:1])]
    bench.answer(0, [None])
    assert bench.asked[1:] == [("publish", said[1:])]
    bench.answer(1, [None, StoreError("too large"), None, None, None])
    assert done[:2] + done[3:] == [[None]] * 5
    assert type(done[2][0]) is StoreError
    assert bench.link._said == 0


def test_messagesWaitForNothingElse() -> None:
    bench = Bench()
    bench.load(b"a")
    bench.commit(b"t")
    said = heard(bench.link.publish(Message("x", b"1")))
    assert [one[0] for one in bench.asked] == ["load", "commit", "publish"]
    bench.clock.advance(2)
    assert failed(said)
    assert bench.link._said == 0


def test_whatIsSaidAboutAnOutcome() -> None:
    """
    What callers say when they have their outcomes leaves as one batch.
    """
    bench = Bench()
    said = [Message("x", b"%d" % number) for number in range(3)]
    bench.link.load(b"first")
    for message in said:
        answered = bench.link.load(b"k")
        answered.addCallback(lambda _, message=message: bench.link.publish(message))
    bench.answer(0, [None])
    bench.answer(1, [None])
    assert bench.asked[2:] == [("publish", said)]


def test_tooMuchIsSaid() -> None:
    """
    The bytes that wait are bounded, and only messages are refused for them.
    """
    bench = Bench(failuresToOpen=1000)
    large = Message("x", bytes(256 * 1024))
    said = [heard(bench.link.publish(large)) for _ in range(70)]
    assert sum(map(bool, said)) == 6 and failed(*said[64:])
    assert "wait for the store already" in str(said[-1][0])
    assert bench.load() == []
    bench.clock.advance(2)
    assert failed(*said)
    heard(bench.link.publish(large))
    assert len(bench.asked) == 3


def test_messagesOfALocalStore() -> None:
    bench = Bench(MemoryStore(lambda: 0.0))
    told: list[Any] = []
    bench.store.subscribe(told.append)
    message = Message("x", b"1")
    assert heard(bench.link.publish(message)) == [None] and told == [message]
    (refused,) = heard(bench.link.publish(Message("x", bytes(10**6))))
    assert type(refused) is StoreError and told == [message]


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("sweep", (5,)),
        ("listen", ()),
        ("claim", (5, 1.0)),
        ("sessionsOf", ("alice",)),
        ("withHandle", (b"h",)),
        ("acquire", (b"n", b"h", 1.0)),
        ("release", (b"n", b"h")),
        ("watch", (print,)),
        ("iterate", (None, 5)),
    ],
)
def test_passes(name: str, args: tuple[Any, ...]) -> None:
    """
    The rest goes through, side by side, with a deadline and the breaker.
    """
    bench = Bench(failuresToOpen=2)
    call = getattr(bench.link, name)
    first, second, third = heard(call(*args)), heard(call(*args)), heard(call(*args))
    assert bench.asked == [(name, *args)] * 3
    result = object()
    bench.answer(1, result)
    assert second == [result]
    bench.answer(2, NotSupported("no"))
    assert isinstance(third[0], NotSupported)
    assert bench.link.failures == 0
    bench.clock.advance(2)
    assert failed(first)
    failing = heard(call(*args))
    bench.answer(3, StoreUnavailable("down"))
    assert failed(failing, heard(call(*args)))
    assert len(bench.asked) == 4


@pytest.mark.parametrize("kind", ["memory:", "sqlite"])
def test_aNameThatNoStoreCanKeep(kind: str, tmp_path: Path) -> None:
    """
    As often as it is asked for, it does not open the breaker.
    """
    url = kind if kind == "memory:" else f"sqlite:///{tmp_path}/s.db"
    bench = Bench(storeFromURL(Clock(), url))
    for name in ("\ud800", None):
        assert heard(bench.link.sessionsOf(name)) == [[]]
    assert bench.link.failures == 0 and heard(bench.link.sessionsOf("ann")) == [[]]
    heard(bench.link.close())


def test_close() -> None:
    """
    The store is closed when what was called has its outcome; nothing comes
    afterwards.
    """
    bench = Bench()
    first, second = bench.commit(b"1"), bench.commit(b"2")
    closed = [heard(bench.link.close()), heard(bench.link.close())]
    assert failed(bench.load(), bench.commit(), heard(bench.link.sweep(1)))
    bench.answer(0, [record()])
    bench.answer(1, [record()])
    assert (first, second) == ([record()], [record()])
    assert bench.asked[2:] == [("close",)]
    assert closed == [[], []]
    bench.answer(2, None)
    assert closed == [[None], [None]]
    assert heard(bench.link.close()) == [None]
    assert bench.clock.getDelayedCalls() == []


def test_closeIsBounded() -> None:
    """
    Closing takes no longer than the deadline, whatever hangs.
    """
    bench = Bench()
    stuck = bench.commit()
    bench.clock.advance(1)
    closed = heard(bench.link.close())
    bench.clock.advance(1)
    assert failed(stuck)
    assert bench.asked[1:] == [("close",)]
    bench.clock.advance(1)
    assert closed == [None]
    bench.answer(1, None)
    bench.answer(0, [record()])
    assert bench.clock.getDelayedCalls() == []


def test_closeAtTheLastMoment() -> None:
    """
    The store is closed, and whoever waits is told, also if the time for both
    is up at once.
    """
    bench = Bench()
    bench.commit()
    bench.clock.advance(1)
    late = bench.load()
    closed = heard(bench.link.close())
    bench.clock.pump([1, 1])
    assert failed(late) and closed == [None]
    assert bench.asked[-1] == ("close",)


def test_closeThough() -> None:
    """
    The store is closed even if something hangs until the deadline, or the
    breaker is open.
    """
    bench = Bench()
    bench.open()
    closed = heard(bench.link.close())
    bench.answer(-1, ZeroDivisionError())
    assert failed(closed)
    bench = Bench()
    stuck = bench.load()
    closed = heard(bench.link.close())
    bench.clock.advance(2)
    assert failed(stuck)
    assert bench.asked[-1] == ("close",)
    assert closed == [None]


class Local(Script):
    """
    A store within the process.
    """

    capabilities = frozenset({LOCAL})

    def __init__(self, outcome: Any) -> None:
        super().__init__()
        self.outcome = outcome

    def _ask(self, name: str, *args: Any) -> Deferred[Any]:
        self.asked.append((name, *args))
        if isinstance(self.outcome, type):
            raise self.outcome
        return fail(self.outcome) if isinstance(self.outcome, Exception) else succeed(self.outcome)


def test_local() -> None:
    """
    A local store is called straight through, with or without Deferreds.
    """
    bench = Bench(Local([record()]), maxWaiting=0)
    link = bench.link
    assert link.local
    assert link.capabilities == {LOCAL}
    assert link.loadNow(b"k") == link.commitNow(Change(b"k", b"t")) == record()
    assert bench.load() == bench.commit() == [record()]
    assert heard(link.sweep(3)) == heard(link.close()) == [[record()]]
    assert (link.loads, link.commits, link.batches) == (2, 2, 0)
    assert bench.clock.getDelayedCalls() == []


def test_localErrors() -> None:
    """
    Its errors are raised, and logged by nobody; bugs are like those of any store.
    """
    bench = Bench(Local([SessionGone("gone")]))
    with pytest.raises(SessionGone):
        bench.link.commitNow(Change(b"k", b"t"))
    assert isinstance(bench.commit()[0], SessionGone)
    bugs = ZeroDivisionError(), ZeroDivisionError
    for error in (StoreUnavailable("closed"), StoreUnavailable, *bugs):
        bench = Bench(Local(error))
        with capturedLogs() as logs:
            with pytest.raises(StoreUnavailable):
                bench.link.loadNow(b"k")
            assert failed(bench.load(), heard(bench.link.sweep(1)))
            gc.collect()
        assert len(logs) == (2 if error in bugs else 0)
