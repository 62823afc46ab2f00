"""
Moving sessions from store to store, as an operator does it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from twsessions import SessionSite
from twsessions.core.delta import Birth
from twsessions.errors import NotSupported, StoreUnavailable
from twsessions.interfaces import ITERATE
from twsessions.ops.admin import endBefore, pagesOf
from twsessions.ops.cli import run
from twsessions.ops.migrate import Counts, migrate
from twsessions.stores.memory import MemoryStore
from twsessions.test.page import result
from twsessions.testing.contract import change, create, newKey
from twsessions.testing.faulty import FaultyStore


class World:
    """
    Two stores with clocks of their own.
    """

    def __init__(self) -> None:
        self.here, self.there = Clock(), Clock()
        self.here.advance(5000)
        self.there.advance(1_000_000)
        self.source = MemoryStore(self.here.seconds)
        self.target = MemoryStore(self.there.seconds)
        self.keys: list[bytes] = []

    def make(self, count: int, **what: Any) -> None:
        for _ in range(count):
            what.setdefault("set", {"dn": b"1"})
            key = newKey()
            result(self.source.commit([create(key, idle=900.0, absolute=5000.0, **what)]))
            self.keys.append(key)

    def wait(self, seconds: float) -> None:
        self.here.advance(seconds)
        self.there.advance(seconds)

    def migrate(self, target: Any = None, **kwargs: Any) -> Counts:
        counts: Counts = result(migrate(self.source, target or self.target, **kwargs))
        return counts

    def copies(self) -> list[Any]:
        return list(result(self.target.load(self.keys)))


def test_everythingButTheClockIsTheSame() -> None:
    world = World()
    world.make(3, principal="ann", uses=4, ownIdle=True)
    [login] = result(world.source.commit([change(world.keys[0], login=True)]))
    world.wait(100)
    result(world.source.commit([change(world.keys[1], usedAgo=10.0)]))
    counts = world.migrate()
    assert (counts.copied, counts.seen, counts.done) == (3, 3, 1.0)
    originals = result(world.source.load(world.keys))
    for original, copy in zip(originals, world.copies(), strict=True):
        for name in "seed idle absolute fields uses principal epoch ownIdle secure".split():
            assert getattr(copy, name) == getattr(original, name), name
        assert copy.deadline - copy.asOf == pytest.approx(original.deadline - original.asOf)
        assert copy.asOf - copy.created == pytest.approx(original.asOf - original.created)
    assert world.copies()[0].epoch == login.epoch == 1
    assert world.copies()[0].handle == originals[0].handle


def test_runAgain() -> None:
    """
    Before and after the site is moved.
    """
    world = World()
    world.make(6)
    moved, used, inBoth, ended, untouched, gone = world.keys
    world.migrate()
    world.wait(50)
    world.make(1)  # and some use, before the site is on the target
    result(
        world.source.commit([change(used, set={"dn": b"2"}, remove=frozenset("x"), usedAgo=0.0)])
    )
    result(world.source.commit([change(inBoth, set={"dn": b"old"}, usedAgo=0.0)]))
    result(world.source.commit([change(gone, end="logout")]))
    world.wait(50)
    result(world.target.commit([change(moved, set={"dn": b"new"}, usedAgo=0.0)]))
    result(world.target.commit([change(inBoth, set={"dn": b"new"}, usedAgo=0.0)]))
    result(world.target.commit([change(ended, end="logout")]))
    counts = world.migrate()
    values = [copy and copy.fields["dn"] for copy in world.copies()]
    assert values == [b"new", b"2", b"new", None, b"1", None, b"1"]
    assert (counts.copied, counts.updated, counts.same, counts.ended) == (1, 1, 3, 2)
    # It is the logout that counts, however often it runs.
    world.migrate()
    assert world.copies()[3] is None


def test_useAloneIsBroughtUpToDate() -> None:
    world = World()
    world.make(2)
    world.migrate()
    world.wait(500)
    result(world.source.commit([change(world.keys[0], usedAgo=0.0)]))
    counts = world.migrate()
    assert (counts.updated, counts.same) == (1, 1)
    world.wait(500)
    assert [copy is not None for copy in world.copies()] == [True, False]


def test_aNewIdAtTheLastMoment() -> None:
    """
    A session that gets one when its page was read has not ended.
    """
    world = World()
    world.make(1)
    world.migrate()
    world.wait(50)
    [old], to = world.keys, bytes(32)  # where the run has been already

    def rotate(counts: Counts) -> None:
        result(world.source.commit([change(old, newKey=to)]))

    world.migrate(progress=rotate)
    assert [copy and copy.key for copy in result(world.target.load([old, to]))] == [None, to]


def test_stoppedAndRunAgain() -> None:
    world = World()
    world.make(700)
    faulty = FaultyStore(world.target)
    pages: list[float] = []

    def progress(counts: Counts) -> None:
        pages.append(counts.done)
        faulty.down = len(pages) == 2

    with pytest.raises(StoreUnavailable):
        world.migrate(faulty, progress=progress)
    assert 0 < pages[0] < pages[1] < 1
    faulty.down = False
    counts = world.migrate(faulty)
    assert counts.copied + counts.same == 700
    assert counts.same in (512, 511)  # the source's mark may have been among them
    assert None not in world.copies()


def test_severalSources() -> None:
    world = World()
    world.make(2)
    other = MemoryStore(world.here.seconds)
    key = newKey()
    result(other.commit([create(key)]))
    world.wait(10)
    world.migrate()
    counts = result(migrate(other, world.target))
    assert counts.copied == 1 and result(world.target.load([key])) != [None]
    for again in world.source, other:
        assert result(migrate(again, world.target)).ended == 0
    assert None not in world.copies()


def test_anIdThatIsTakenIsNotTouched() -> None:
    world = World()
    world.make(1)
    stranger = create(world.keys[0], set={"dn": b"other"})
    assert isinstance(stranger.birth, Birth)
    result(world.target.commit([stranger]))
    assert world.migrate().ended == 1
    assert world.copies()[0].fields == {"dn": b"other"}


def test_aSourceThatCannotList() -> None:
    class Blind(FaultyStore):
        @property
        def capabilities(self) -> frozenset[str]:
            return super().capabilities - {ITERATE}

    world = World()
    with pytest.raises(NotSupported):
        result(migrate(Blind(world.source), world.target))


def sessions(path: Path, count: int) -> list[bytes]:
    clock = Clock()
    clock.advance(1_000_000)
    from twisted.web.resource import Resource

    site = SessionSite(Resource(), reactor=clock, store=f"sqlite:///{path}")
    made = []
    for number in range(count):
        session = site.makeSession()
        session.sessionTimeout = None
        session.absoluteTimeout = None
        session["n"] = number
        result(session.commit())
        made.append(session.uid)
    result(site._stop())
    return made


def test_fromTheCommandLine(tmp_path: Path) -> None:
    uids = sessions(tmp_path / "a.db", 5)
    done = subprocess.run(
        [sys.executable, "-m", "twsessions", "migrate", "sqlite:///a.db", "$THERE"],
        cwd=tmp_path,
        env=dict(os.environ, THERE="sqlite:///b.db", PYTHONPATH=str(Path(__file__).parents[2])),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "5 sessions: 5 copied" in done.stderr
    clock = Clock()
    clock.advance(1_000_000)
    from twisted.web.resource import Resource

    site = SessionSite(Resource(), reactor=clock, store=f"sqlite:///{tmp_path}/b.db")
    assert [result(site.loadSession(uid))["n"] for uid in uids] == [0, 1, 2, 3, 4]
    result(site._stop())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["sqlite:///x.db", "nonsense"], "begins with one of"),
        (["$NOWHERE", "memory:"], "no environment variable NOWHERE"),
        (["memory:", "memory:"], "the same store"),
        (["sqlite:////no/such/directory/x.db", "sqlite:///y.db"], "no file /no/such/directory/x"),
        (["sqlite:///here.db", "sqlite:////no/such/directory/y.db"], "stopped: "),
        (["sqlite:///here.db", "memory:"], "by its own process only"),
        (["memory:", "sqlite:///y.db"], "by its own process only"),
    ],
)
def test_mistakes(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sessions(tmp_path / "here.db", 1)
    out, err = StringIO(), StringIO()
    assert result(run(Clock(), ["migrate", *arguments], out, err)) == 1
    assert said in err.getvalue() and not out.getvalue()
    assert [path.name for path in tmp_path.glob("*.db")] == ["here.db"]


def test_aNewIdMeanwhile() -> None:
    """
    Whoever logs in between two runs, on either store, stays logged in, and the
    id before is dead.
    """
    world = World()
    world.make(3)
    new = [newKey() for _ in world.keys]
    logins = [
        change(old, newKey=key, login=True, principal="ann", usedAgo=0.0)
        for old, key in zip(world.keys, new, strict=True)
    ]
    world.migrate()
    result(world.source.commit(logins[:1]))  # at once
    world.wait(50)
    result(world.source.commit(logins[1:2]))
    world.wait(50)
    result(world.target.commit(logins[2:]))
    for updated in (2, 0):
        counts = world.migrate()
        assert (counts.updated, counts.same, counts.ended) == (updated, 3 - updated, 0)
        assert world.copies() == [None] * 3
        records = result(world.target.load(new))
        assert [(record.principal, record.epoch) for record in records] == [("ann", 1)] * 3


def test_longAfterwards() -> None:
    """
    Who went on using the source while the copies idled out is there again; who
    is no longer there has logged out.
    """
    world = World()
    world.make(2)
    used, ended = world.keys
    world.migrate()
    result(world.target.commit([change(ended, end="logout")]))
    for keys in (world.keys, [used]):
        world.wait(600)
        for key in keys:
            result(world.source.commit([change(key, set={"dn": b"2"}, usedAgo=0.0)]))
    counts = world.migrate()
    assert counts.copied == 1
    copies = world.copies()
    assert copies[0].fields["dn"] == b"2" and copies[1] is None


def test_monthsAfterwards() -> None:
    """
    What has ended stays ended, and nobody hears of an end of the mark.
    """
    world = World()
    result(world.target.listen())
    result(world.source.commit([create(newKey(), idle=None)]))
    for copied, same in ((1, 0), (0, 1), (0, 1)):
        counts = world.migrate()
        assert (counts.copied, counts.same) == (copied, same)
        world.wait(31 * 86400)
        assert not result(world.target.sweep(10)).ended


def test_usedInTheTargetAtThatMoment() -> None:
    """
    What was acknowledged there is not written over with what is older.
    """

    class Busy(FaultyStore):
        def load(self, keys: Any) -> Any:
            loaded = super().load(keys)
            if world.keys[0] in keys:
                late = change(world.keys[0], set={"dn": b"new"}, usedAgo=0.0)
                result(world.target.commit([late]))
            return loaded

    world = World()
    world.make(2)
    world.migrate()
    world.wait(50)
    for key in world.keys:
        result(world.source.commit([change(key, set={"dn": b"old"}, usedAgo=0.0)]))
    world.wait(50)
    counts = world.migrate(Busy(world.target))
    assert (counts.updated, counts.same) == (1, 1)
    assert [copy.fields["dn"] for copy in world.copies()] == [b"new", b"old"]


def test_theMarkIsNoSession() -> None:
    """
    It is not listed, copied on or ended, so that what was ended stays ended.
    """

    async def listed(store: Any) -> list[bytes]:
        return [record.key async for page in pagesOf(store) for record in page]

    world = World()
    world.make(2)
    world.wait(1)
    world.migrate()
    third = MemoryStore(world.there.seconds)
    assert result(migrate(world.target, third)).copied == 2
    for store in (world.target, third):
        assert result(Deferred.fromCoroutine(listed(store))) == sorted(world.keys)
    result(endBefore(world.target))
    assert world.migrate().ended == 2
    assert world.copies() == [None, None]


def test_endedInTheSource() -> None:
    """
    It ends in the target as well, unless it has been used there, is not this
    source's, or falls due soon.
    """
    world = World()
    world.make(4)
    ended, used, due, left = world.keys
    result(world.source.commit([change(due, idle=100.0)]))
    stranger = newKey()
    result(world.target.commit([create(stranger, idle=None)]))
    result(world.target.listen())
    world.migrate()
    result(world.target.commit([change(used, usedAgo=0.0)]))
    result(world.source.commit([change(key, end="logout") for key in (ended, used, due)]))
    world.wait(50)
    counts = world.migrate()
    assert (counts.same, counts.ended) == (1, 1)
    assert [copy is not None for copy in world.copies()] == [False, True, True, True]
    assert result(world.target.load([stranger])) != [None]
    ends = result(world.target.claim(10, 30.0))
    assert [(end.record.key, end.reason) for end in ends] == [(ended, "revoked")]
    # A source that has lost its sessions has ended none.
    world.source = MemoryStore(world.here.seconds)
    world.make(1)
    assert (world.migrate().copied, world.migrate().ended) == (1, 0)
    assert result(world.target.load([left])) != [None]


def test_aSecondAfterTheCopy() -> None:
    """
    What changed right after it was copied, and nobody has used in the target.
    """
    world = World()
    world.make(2)
    late, used = world.keys
    world.migrate()
    result(world.source.commit([change(key, set={"dn": b"2"}) for key in world.keys]))
    result(world.target.commit([change(used, set={"dn": b"3"})]))
    for updated in (1, 0):
        assert world.migrate().updated == updated
        assert [copy.fields["dn"] for copy in world.copies()] == [b"2", b"3"]


def test_aNewIdDuringTheFirstRun() -> None:
    """
    Wherever the ids before and after lie, one session comes of one.
    """
    world = World()
    world.make(600)
    world.wait(300)
    keys = sorted(world.keys)
    moves = {
        keys[at]: bytes([to]) + newKey()[1:]
        for to in (0, 255)
        for at in (range(1, 4) if to else range(4, 7), range(-4, -1) if to else range(-7, -4))
        for at in at
    }

    def progress(counts: Counts) -> None:
        if moves and result(world.source.load(list(moves)))[0] is not None:
            logins = [
                change(old, newKey=new, login=True, principal="ann", usedAgo=0.0)
                for old, new in moves.items()
            ]
            result(world.source.commit(logins))

    counts = world.migrate(progress=progress)
    assert counts.copied == 600
    assert result(world.target.load(list(moves))) == [None] * 12
    copies = result(world.target.load(list(moves.values())))
    assert [copy and copy.principal for copy in copies] == ["ann"] * 12
    assert len(result(world.target.sessionsOf("ann"))) == 12
    assert len(result(world.target.iterate(None, 700))) == 600 + 1  # and the mark
    assert world.migrate().same == 600
