"""
Tests for L{twsessions.stores.sqlite} and L{twsessions.stores._threads}.
"""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from threading import get_ident
from typing import Any, TypeVar
from unittest.mock import patch

import pytest
import pytest_twisted  # type: ignore[import-untyped]
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import Clock
from twisted.logger import capturedLogs
from twisted.python.failure import Failure

import twsessions
from twsessions.core.delta import Birth, Change
from twsessions.core.record import Record, pack
from twsessions.errors import IdCollision, SessionGone, StoreError, StoreUnavailable
from twsessions.interfaces import Swept, Verdict
from twsessions.stores._sqlite.transactions import Transactions
from twsessions.stores._threads import InlineWorker, ThreadWorker
from twsessions.stores.fromurl import storeFromURL
from twsessions.stores.sqlite import SQLiteStore

T = TypeVar("T")


def answer(deferred: Deferred[T]) -> T:
    results: list[Any] = []
    deferred.addBoth(results.append)
    (result,) = results
    if isinstance(result, Failure):
        result.raiseException()
    return result  # type: ignore[no-any-return]


def key(number: int) -> bytes:
    return number.to_bytes(32, "big")


def birth(number: int, idle: float | None = 10.0, **more: Any) -> Change:
    return Change(key(number), b"born", Birth(number.to_bytes(16, "big")), idle=idle, **more)


class Fixture:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.clock = Clock()
        self.clock.advance(1000.0)
        self.store = self.another()

    def another(self) -> SQLiteStore:
        return SQLiteStore(str(self.path), self.clock.seconds, InlineWorker(), InlineWorker())

    def commit(self, *changes: Change) -> list[Any]:
        return answer(self.store.commit(changes))

    def load(self, *numbers: int) -> list[Record | None]:
        return answer(self.store.load([key(number) for number in numbers]))

    def sweep(self, limit: int = 100) -> Swept:
        return answer(self.store.sweep(limit))

    def direct(self, statement: str, *values: object) -> list[Any]:
        connection = sqlite3.connect(self.path, isolation_level=None)
        try:
            return connection.execute(statement, values).fetchall()
        finally:
            connection.close()


@pytest.fixture
def at(tmp_path: Path) -> Iterator[Fixture]:
    made = Fixture(tmp_path / "sessions.db")
    yield made
    answer(made.store.close())


def test_refusalsAreTheirOwn(at: Fixture) -> None:
    """
    In one transaction with refusals, the rest is stored.
    """
    at.commit(birth(1))
    bad = birth(5, set={"dx": "\ud800"})
    outcomes = at.commit(birth(1, set={"da": b"2"}), birth(2), Change(key(3), b"t"),
                         bad, birth(4), Change(key(2), b"u", set={"da": b"3"}))  # fmt: skip
    assert [type(outcome) for outcome in outcomes] == [
        Record, Record, SessionGone, StoreError, Record, Record
    ]  # fmt: skip
    one, two, three, five, four = at.load(1, 2, 3, 5, 4)
    assert (one, three, five) == (at.load(1)[0], None, None)
    assert two is not None
    assert four is not None
    assert (two.fields, two.version) == ({"da": b"3"}, 2)


def test_aBatchSeesItself(at: Fixture) -> None:
    """
    Born, rotated, changed and ended in one transaction.
    """
    answer(at.store.listen())
    outcomes = at.commit(
        birth(1, set={"da": b"1"}),
        Change(key(1), b"rotate", newKey=key(2)),
        Change(key(1), b"late", set={"da": b"no"}),
        Change(key(2), b"change", set={"db": b"2"}),
        Change(key(2), b"end", end="logout"),
        Change(key(2), b"later", set={"da": b"no"}),
        birth(2, principal="ann"),
    )
    assert [type(outcome) for outcome in outcomes] == [
        Record, Record, SessionGone, Record, Record, SessionGone, Record
    ]  # fmt: skip
    assert [record is not None for record in at.load(1, 2)] == [False, True]
    (end,) = answer(at.store.claim(10, 30.0))
    assert end.record.fields == {"da": b"1", "db": b"2"}
    assert at.direct("SELECT count(*) FROM session") == [(1,)]


def test_rotationSentAgain(at: Fixture) -> None:
    at.commit(birth(1), birth(3))
    rotation = Change(key(1), b"rotate", newKey=key(2), set={"da": b"1"})
    first, again = at.commit(rotation, rotation)
    assert first == again == at.commit(rotation)[0] == at.load(2)[0]
    (refused,) = at.commit(Change(key(2), b"other", newKey=key(3)))
    assert isinstance(refused, IdCollision)
    assert None not in at.load(2, 3)


def test_aUseDoesNotMoveTheIndex(at: Fixture) -> None:
    """
    What a sweep looks at first is written when it is born or falls due
    earlier, and otherwise by the sweep.
    """
    at.commit(birth(1, idle=10.0))
    at.clock.advance(6.0)
    at.commit(Change(key(1), b"used", usedAgo=0.0))
    assert at.direct("SELECT due FROM session") == [(1010.0,)]
    at.clock.advance(5.0)
    assert at.load(1) != [None]
    assert at.sweep() == Swept(0, False, 5.0)
    assert at.direct("SELECT due FROM session") == [(1016.0,)]
    at.commit(Change(key(1), b"shorter", idle=7.0))
    assert at.direct("SELECT due FROM session") == [(1013.0,)]
    at.commit(Change(key(1), b"endless", idle=None))
    assert at.sweep().wait == 2.0
    at.clock.advance(2.0)
    assert at.sweep() == Swept(0, False, None)
    at.commit(Change(key(1), b"finite", idle=50.0))
    assert at.sweep() == Swept(0, False, 43.0)
    at.clock.advance(43.0)
    assert at.sweep() == Swept(1, False, None)


def test_theEarliestFirst(at: Fixture) -> None:
    at.commit(birth(1, idle=10.0), birth(2, idle=15.0), birth(3, idle=20.0))
    at.commit(Change(key(1), b"longer", idle=18.0))
    at.clock.advance(30.0)
    left = []
    while at.sweep(1).ended:
        left.append([row[0] for row in at.direct("SELECT key FROM session ORDER BY key")])
    assert left == [[key(1), key(3)], [key(3)], []]


def test_manyFallDue(at: Fixture) -> None:
    answer(at.store.listen())
    at.commit(*(birth(number, idle=10.0 + number % 7) for number in range(2000)))
    at.clock.advance(20.0)
    assert at.sweep(1300) == Swept(1300, True, 0.0)
    assert at.sweep(1300) == Swept(700, False, None)
    ends = answer(at.store.claim(3000, 30.0))
    assert len({end.id for end in ends}) == 2000
    assert {(end.reason, end.ended) for end in ends} == {("idle", 1010.0 + n) for n in range(7)}


def test_sweepIsBounded(at: Fixture) -> None:
    """
    Sessions that turn out to live count as work too.
    """
    numbers = range(1000)
    at.commit(*(birth(number) for number in numbers))
    at.clock.advance(5.0)
    at.commit(*(Change(key(number), b"used", usedAgo=0.0) for number in numbers))
    at.clock.advance(5.0)
    sweeps = [at.sweep(100) for _ in range(4)]
    assert sweeps == [Swept(0, True, 0.0)] * 3 + [Swept(0, False, 5.0)]


def test_newerFormatStays(at: Fixture) -> None:
    answer(at.store.listen())
    (record,) = at.commit(birth(1))
    with patch("twsessions.core.record.FORMAT", 99):
        newer = pack(record)
    at.direct("UPDATE session SET record = ?", newer)
    assert at.load(1) == [None]
    kinds = [type(outcome) for outcome in at.commit(
        birth(1), Change(key(1), b"t", set={"da": b"1"}), Change(key(1), b"e", end="logout"),
        Change(key(1), b"r", newKey=key(2)), birth(3), Change(key(3), b"r", newKey=key(1)),
    )]  # fmt: skip
    assert kinds == [
        IdCollision,
        SessionGone,
        SessionGone,
        SessionGone,
        Record,
        IdCollision,
    ]
    at.clock.advance(100.0)
    assert at.sweep().ended == 1
    assert at.sweep().ended == 0
    assert at.direct("SELECT key, record FROM session") == [(key(1), newer)]
    assert at.direct("SELECT * FROM quarantine") == []


def test_whatIsRememberedIsComparedWithTheFile(at: Fixture) -> None:
    """
    A commit does not unpack again what was loaded, unless it has changed.
    """
    other = at.another()
    at.commit(birth(1, set={"da": b"1"}))
    at.clock.advance(1.0)
    (first,) = at.load(1)
    with patch("twsessions.stores._sqlite.rows.unpack", side_effect=AssertionError):
        at.clock.advance(1.0)
        (second,) = at.commit(Change(key(1), b"again", set={"da": b"1"}))
    assert first is not None
    assert (first.version, first.asOf, second.version, second.asOf) == (1, 1001.0, 2, 1002.0)
    assert answer(other.load([key(1)])) == [second]
    (theirs,) = answer(other.commit([Change(key(1), b"theirs", set={"db": b"2"})]))
    assert at.load(1) == [theirs]
    (ours,) = at.commit(Change(key(1), b"ours", remove=frozenset({"da"})))
    assert (ours.fields, ours.version) == ({"db": b"2"}, 4)
    at.direct("UPDATE session SET record = CAST(record || x'00' AS BLOB)")
    with capturedLogs():
        assert at.load(1) == [None]
    at.commit(birth(1))
    at.direct("DELETE FROM session")
    assert at.load(1) == [None]
    assert isinstance(at.commit(Change(key(1), b"late"))[0], SessionGone)


def test_whatIsRolledBackIsNotThere(at: Fixture) -> None:
    (born,) = at.commit(birth(1))
    with (
        patch.object(Transactions, "_isHeard", side_effect=sqlite3.OperationalError("is full")),
        pytest.raises(StoreUnavailable),
    ):
        at.commit(
            Change(key(1), b"t", set={"da": b"1"}),
            birth(2),
            birth(3),
            Change(key(3), b"end", end="logout"),
        )
    assert at.load(1, 2, 3) == [born, None, None]


def test_littleIsRemembered(at: Fixture) -> None:
    with patch("twsessions.stores._sqlite.rows._SEEN", 4):
        at.commit(*(birth(number) for number in range(10)))
        assert None not in at.load(*range(10))
        assert 0 < len(at.store._seen._records) <= 4
        at.commit(birth(11, set={"da": bytes(5000)}))
        assert at.load(11) != [None]
        assert key(11) not in at.store._seen._records


def test_aRowsPlaceMayBeAnothers(at: Fixture) -> None:
    """
    Rows are looked for where they were last.
    """
    at.commit(birth(1), birth(2))
    other = at.another()
    answer(other.commit([Change(key(2), b"end", end="logout")]))
    answer(other.commit([birth(3, set={"da": b"3"})]))
    answer(other.close())
    places = "SELECT rowid, key FROM session ORDER BY rowid"
    assert at.direct(places) == [(1, key(1)), (2, key(3))]
    assert [record and record.key for record in at.load(1, 2, 3)] == [key(1), None, key(3)]
    gone, kept = at.commit(
        Change(key(2), b"late", set={"da": b"2"}), Change(key(3), b"t", set={"db": b"3"})
    )
    assert isinstance(gone, SessionGone) and kept.fields == {"da": b"3", "db": b"3"}
    for moved in ("-rowid", "rowid + 3"):  # VACUUM may do that
        at.direct(f"UPDATE session SET rowid = {moved}")
    assert at.direct(places) == [(1, key(3)), (2, key(1))]
    for number in (3, 1):
        assert [record and record.key for record in at.load(number)] == [key(number)]
    at.commit(Change(key(1), b"u", set={"da": b"1"}))
    assert [record and record.fields for record in at.load(1)] == [{"da": b"1"}]


def test_fewPlacesAreRemembered(at: Fixture) -> None:
    at.commit(*map(birth, range(1, 11)))
    with patch("twsessions.stores._sqlite.rows._PLACES", 3):
        for number in (*range(1, 11), *range(1, 11)):
            assert at.load(number) != [None]
            assert len(at.store._places._rowids) <= 3


def test_corruptEndsAreSetAside(at: Fixture) -> None:
    answer(at.store.listen())
    at.commit(birth(1), birth(2))
    at.clock.advance(10.0)
    at.sweep()
    at.direct("UPDATE ending SET record = x'0102' WHERE key = ?", key(1))
    with capturedLogs() as events:
        (end,) = answer(at.store.claim(10, 30.0))
        assert answer(at.store.claim(10, 30.0)) == []
    assert (end.record.key, len(events)) == (key(2), 1)
    assert at.direct("SELECT key, record FROM quarantine") == [(key(1), b"\1\2")]


def test_newerEndsDoNotStandInTheWay(at: Fixture) -> None:
    """
    They are left to the release that can read them.
    """
    answer(at.store.listen())
    at.commit(birth(1))
    at.clock.advance(10.0)
    at.sweep()
    body = b"whatever"
    newer = b"\x63" + blake2b(body, digest_size=8, key=b"\x63" + key(1)).digest() + body
    at.direct("UPDATE ending SET record = ?", newer)
    at.commit(birth(2))
    at.commit(Change(key(2), b"e", end="logout"))
    found = [end.record.key for _ in range(2) for end in answer(at.store.claim(1, 30.0))]
    assert found == [key(2)]
    assert at.direct("SELECT record FROM ending WHERE key = ?", key(1)) == [(newer,)]


def test_wishLapses(at: Fixture) -> None:
    """
    When nobody has listened for 30 days, ends are neither kept nor left.
    """
    at.commit(birth(0))
    at.clock.advance(10.0)
    at.sweep()
    answer(at.store.listen())
    at.commit(birth(1))
    at.clock.advance(10.0)
    at.sweep()
    assert at.direct("SELECT key FROM ending") == [(key(1),)]
    at.clock.advance(30 * 86400.0)
    at.commit(birth(2), birth(3))
    at.commit(Change(key(3), b"e", end="logout"))
    at.sweep()
    assert at.direct("SELECT key FROM ending") == []


def test_verdicts(at: Fixture) -> None:
    answer(at.store.listen())
    at.commit(*(birth(number) for number in range(3)))
    at.commit(*(Change(key(number), b"e", end="logout") for number in range(3)))
    heard, again, dead = answer(at.store.claim(10, 30.0))
    verdicts = [
        Verdict(heard.id, heard.claim),
        Verdict(again.id, again.claim, retryIn=5.0),
        Verdict(dead.id, dead.claim, dead=True),
        Verdict(heard.id, b"another"),
    ]
    assert answer(at.store.settle(verdicts)) == [True, True, True, False]
    at.clock.advance(5.0)
    (end,) = answer(at.store.claim(10, 30.0))
    assert (end.id, end.attempts, end.claim != again.claim) == (again.id, 2, True)
    at.clock.advance(1e6)
    assert [one.id for one in answer(at.store.claim(10, 30.0))] == [again.id]
    assert at.direct("SELECT id FROM ending WHERE due IS NULL") == [(dead.id,)], "it is kept"


def test_twoProcessesSweepAndClaim(at: Fixture) -> None:
    """
    Each end is had once; what was not settled in time is had again.
    """
    answer(at.store.listen())
    at.commit(*(birth(number) for number in range(100)))
    at.clock.advance(10.0)
    other = at.another()
    swept = [answer(store.sweep(30)).ended for store in (at.store, other) * 2]
    assert swept == [30, 30, 30, 10]
    ends = [end.id for store in (at.store, other) * 2 for end in answer(store.claim(40, 30.0))]
    assert len(ends) == len(set(ends)) == 100
    at.clock.advance(30.0)
    again = answer(other.claim(1000, 30.0))
    assert [(end.id, end.attempts) for end in again] == [(id_, 2) for id_ in ends]
    answer(other.close())


def test_leasesThatRanOutAreCleared(at: Fixture) -> None:
    assert answer(at.store.acquire(b"n", b"a", 5.0))
    at.clock.advance(5.0)
    at.sweep()
    assert at.direct("SELECT * FROM lease") == []


def test_closeLeavesOneFile(at: Fixture) -> None:
    at.commit(birth(1))
    answer(at.store.close())
    answer(at.store.close())
    assert [file.name for file in at.path.parent.iterdir()] == ["sessions.db"]
    attempts: list[Deferred[Any]] = [
        at.store.load([key(1)]),
        at.store.commit([]),
        at.store.sweep(1),
    ]
    for attempt in attempts:
        with pytest.raises(StoreUnavailable, match="closed"):
            answer(attempt)


def test_closeOfAStoreNeverUsed(at: Fixture) -> None:
    answer(at.store.close())
    assert list(at.path.parent.iterdir()) == []


def test_synchronous(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'normal' or 'full'"):
        SQLiteStore(str(tmp_path), Clock().seconds, InlineWorker(), InlineWorker(), "off")


@pytest_twisted.ensureDeferred  # type: ignore[untyped-decorator]
async def test_threads(tmp_path: Path) -> None:
    """
    With the real reactor and threads: two stores on one file, many operations
    at once, nothing lost; close waits for what was asked for before.
    """
    url = f"sqlite:///{tmp_path}/sessions.db?synchronous=full"
    first, second = storeFromURL(reactor, url), storeFromURL(reactor, url)
    await gatherResults(
        [
            store.commit([birth(number, idle=900.0) for number in range(base, base + 10)])
            for base, store in zip(range(0, 200, 10), [first, second] * 10, strict=True)
        ]
    )
    changes = [
        store.commit([Change(key(1), name.encode(), set={name: b"1"})])
        for store, side in ((first, "a"), (second, "b"))
        for name in (f"d{side}{number}" for number in range(20))
    ]
    await gatherResults(changes)
    records = await second.load([key(number) for number in range(200)])
    assert None not in records
    assert records[1] is not None
    assert (len(records[1].fields), records[1].version) == (40, 41)
    last = first.commit([Change(key(2), b"last", set={"da": b"last"})])
    await first.close()
    assert last.called
    (two,) = await second.load([key(2)])
    assert two is not None
    assert two.fields["da"] == b"last"
    await second.close()
    assert [file.name for file in tmp_path.iterdir()] == ["sessions.db"]


@pytest_twisted.ensureDeferred  # type: ignore[untyped-decorator]
async def test_threadWorker() -> None:
    worker = ThreadWorker(reactor)  # type: ignore[arg-type]
    order: list[int] = []

    def job(number: int) -> int:
        order.append(number)
        return get_ident()

    idents = [worker.do(job, number) for number in range(100)]
    failing = worker.do(divmod, 1, 0)
    assert len(set(await gatherResults(idents))) == 1
    assert order == list(range(100))
    with pytest.raises(ZeroDivisionError):
        await failing
    here = worker.do(get_ident).addCallback(lambda there: (there, get_ident()))
    pending = [worker.stop(), worker.stop()]
    there, back = await here
    assert there != back == get_ident()
    await gatherResults([*pending, worker.stop()])
    with pytest.raises(StoreUnavailable, match="closed"):
        await worker.do(get_ident)


@pytest_twisted.ensureDeferred  # type: ignore[untyped-decorator]
async def test_threadWorkerNeverUsed() -> None:
    await ThreadWorker(reactor).stop()  # type: ignore[arg-type]


def ran(script: str) -> tuple[str, int]:
    """
    What a process of its own has printed, and its exit code.
    """
    root = Path(twsessions.__file__).parents[1]
    done = subprocess.run(  # noqa: PLW1510 (the exit code is looked at)
        [sys.executable, "-c", script],
        timeout=60,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    return done.stdout, done.returncode


def test_aForgottenWorkerDoesNotKeepTheProcess() -> None:
    script = (
        "from twisted.internet import reactor; from threading import Event\n"
        "from twsessions.stores._threads import ThreadWorker\n"
        "worker = ThreadWorker(reactor); started = Event()\n"
        "worker.do(lambda: (started.set(), Event().wait()))\n"
        "reactor.callLater(0.01, lambda: (started.wait(), reactor.stop()))\n"
        "reactor.run(); print('end')"
    )
    assert ran(script) == ("end\n", 0)


def test_aWorkerThatIsAskedBeforeAFork() -> None:
    """
    As of C{twistd}, when it becomes a daemon: its parent ends.
    """
    script = (
        "import os; from twisted.internet import reactor\n"
        "from twsessions.stores._threads import ThreadWorker\n"
        "worker = ThreadWorker(reactor)\n"
        "worker.do(os.getpid).addCallback(lambda pid: print(pid == os.getpid()))"
        ".addCallback(lambda _: worker.stop()).addCallback(lambda _: reactor.stop())\n"
        "child = os.fork()\n"
        "if child: os._exit(os.waitpid(child, 0)[1])\n"
        "reactor.callLater(20, os._exit, 3)\n"
        "reactor.run()"
    )
    assert ran(script) == ("True\n", 0)
