"""
What the SQLite store does when processes die, disks fill and files rot.
"""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import capturedLogs
from twisted.python.failure import Failure

import twsessions
from twsessions.core.delta import Birth, Change
from twsessions.core.record import Record
from twsessions.errors import StoreUnavailable
from twsessions.stores._sqlite.file import APPLICATION, SCHEMA
from twsessions.stores._threads import InlineWorker
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


def birth(number: int, value: bytes = b"value", token: bytes = b"born") -> Change:
    seed = number.to_bytes(16, "big")
    return Change(key(number), token, Birth(seed), set={"da": value}, idle=900.0)


class Stores:
    """
    Makes stores on one file and closes them all.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.clock = Clock()
        self._made: list[SQLiteStore] = []

    def make(self) -> SQLiteStore:
        store = SQLiteStore(
            str(self.path),
            self.clock.seconds,
            InlineWorker(),
            InlineWorker(),
            patience=0.05,
        )
        self._made.append(store)
        return store

    def direct(self, statement: str, *values: object) -> list[Any]:
        connection = sqlite3.connect(self.path, isolation_level=None)
        try:
            return connection.execute(statement, values).fetchall()
        finally:
            connection.close()

    def close(self) -> None:
        for store in self._made:
            answer(store.close())


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[Stores]:
    made = Stores(tmp_path / "sessions.db")
    yield made
    made.close()


CHILD = """
import sys, time
from twisted.internet.defer import Deferred
from twsessions.core.delta import Birth, Change
from twsessions.stores._threads import InlineWorker
from twsessions.stores.sqlite import SQLiteStore

def answer(deferred):
    results = []
    deferred.addBoth(results.append)
    if hasattr(results[0], "raiseException"):
        results[0].raiseException()
    return results[0]

path, number = sys.argv[1], int(sys.argv[2])
store = SQLiteStore(path, time.time, InlineWorker(), InlineWorker(), patience=20.0)

def say(*words):
    print(*words, flush=True)

def hear():
    return sys.stdin.readline()

def key(number):
    return number.to_bytes(32, "big")

def birth(number, **more):
    return Change(key(number), b"born", Birth(number.to_bytes(16, "big")), **more)
"""


def spawn(script: str, path: Path, number: int = 0, **options: Any) -> subprocess.Popen[str]:
    root = Path(twsessions.__file__).parents[1]
    return subprocess.Popen(
        [sys.executable, "-c", CHILD + script, str(path), str(number)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
        **options,
    )


def test_eightProcessesMakeTheFile(stores: Stores) -> None:
    script = "say('ready'); hear(); say(answer(store.commit([birth(number)]))[0].version)"
    children = [spawn(script, stores.path, number) for number in range(8)]
    for child in children:
        assert child.stdout is not None and child.stdin is not None
        assert child.stdout.readline() == "ready\n"
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    assert [child.communicate()[0] for child in children] == ["1\n"] * 8
    assert None not in answer(stores.make().load([key(number) for number in range(8)]))
    assert stores.direct("PRAGMA user_version") == [(SCHEMA,)]
    assert stores.direct("PRAGMA application_id") == [(APPLICATION,)]
    assert stores.direct("PRAGMA journal_mode") == [("wal",)]


LOAD = """
answer(store.commit([birth(number + slot, set={"dn": b"0"}) for slot in range(20)]))
turn = 0
while True:
    turn += 1
    value = str(turn).encode()
    done = answer(store.commit([
        Change(key(number + slot), value, set={"dn": value}, usedAgo=0.0) for slot in range(20)
    ]))
    assert all(record.fields["dn"] == value for record in done)
    say(turn)
"""


def test_killedWritersLoseNothing(stores: Stores) -> None:
    """
    25 writers, five at a time, killed at random: what each had acknowledged
    is there, and each transaction is there as a whole.
    """
    chance = random.Random(7)
    acknowledged: dict[int, int] = {}
    for batch in range(5):
        children = {
            number: spawn(LOAD, stores.path, number)
            for number in range(batch * 1000, batch * 1000 + 500, 100)
        }
        for number, child in children.items():
            assert child.stdout is not None
            for _ in range(chance.randrange(1, 30)):
                acknowledged[number] = int(child.stdout.readline())
            child.send_signal(signal.SIGKILL)
            for line in child.stdout:
                if line.endswith("\n"):
                    acknowledged[number] = int(line)
            child.wait()
    # The children's clock is the wall's, this one's stands at 0: all live.
    store = stores.make()
    for number, turn in acknowledged.items():
        records = answer(store.load([key(number + slot) for slot in range(20)]))
        turns = {int(record.fields["dn"]) for record in records if record is not None}
        assert None not in records
        assert len(turns) == 1
        assert turns.pop() in (turn, turn + 1)
    assert stores.direct("PRAGMA integrity_check") == [("ok",)]


def test_fullDisk(stores: Stores) -> None:
    store = stores.make()
    answer(store.commit([birth(1)]))
    connection = store._writer._connection
    assert connection is not None
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count={pages}")
    big = birth(2, b"x" * 50_000)
    with pytest.raises(StoreUnavailable, match="full: free some space"):
        answer(store.commit([Change(key(1), b"t", set={"da": b"new"}), big]))
    one, two = answer(store.load([key(1), key(2)]))
    assert one is not None
    assert (one.fields["da"], two) == (b"value", None)  # nothing of it, and reads go on
    connection.execute("PRAGMA max_page_count=100000")
    assert isinstance(answer(store.commit([big]))[0], Record)
    assert stores.direct("PRAGMA integrity_check") == [("ok",)]


READ_ONLY = """
import os
if os.geteuid() == 0:
    os.setuid(65534)  # permissions do not bind root
print([record is not None for record in answer(store.load([key(1), key(2)]))])
try:
    answer(store.commit([birth(2)]))
except Exception as error:
    print(type(error).__name__, error)
"""


def test_readOnlyFile() -> None:
    with TemporaryDirectory() as directory:
        stores = Stores(Path(directory, "sessions.db"))
        endless = Change(key(1), b"born", Birth(b"s" * 16))
        answer(stores.make().commit([endless]))
        stores.close()
        stores.path.chmod(0o444)
        os.chmod(directory, 0o777)
        said = spawn(READ_ONLY, stores.path).communicate()[0]
    assert "[True, False]" in said
    assert "StoreUnavailable the session database" in said
    assert "cannot be written: check owner and permissions" in said


def test_anotherProcessHoldsTheLock(stores: Stores) -> None:
    store = stores.make()
    answer(store.commit([birth(1)]))
    answer(store.listen())
    child = spawn(
        "import sqlite3; c = sqlite3.connect(path, isolation_level=None);"
        "c.execute('BEGIN EXCLUSIVE'); say('locked'); hear(); c.execute('COMMIT')",
        stores.path,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "locked\n"
    for reader in store, stores.make():
        assert answer(reader.load([key(1)]))[0] is not None
    # While there is nothing to do these only read:
    assert answer(store.sweep(10)).ended == 0
    assert answer(store.claim(10, 30.0)) == []
    changes = [birth(2), Change(key(1), b"t", set={"da": b"new"})]
    with pytest.raises(StoreUnavailable, match="locked by another process"):
        answer(store.commit(changes))
    child.communicate("go\n")
    one, two = answer(store.load([key(1), key(2)]))
    assert one is not None
    assert (one.fields["da"], two) == (b"value", None)
    assert all(isinstance(outcome, Record) for outcome in answer(store.commit(changes)))


def test_everyByteOfARecord(stores: Stores) -> None:
    store = stores.make()
    answer(store.commit([birth(1)]))
    (original,) = answer(store.load([key(1)]))
    [row] = stores.direct("SELECT * FROM session")
    packed = row[1]
    for position in range(len(packed)):
        for flip in 0x01, 0x80:
            damaged = bytearray(packed)
            damaged[position] ^= flip
            stores.direct("INSERT OR REPLACE INTO session VALUES (?, ?, ?, ?, ?)",
                          row[0], bytes(damaged), *row[2:])  # fmt: skip
            with capturedLogs() as events:
                assert answer(store.load([key(1)])) == [None]
                assert answer(store.load([key(1)])) == [None]
            assert len(events) == 1
            assert key(1).hex() not in str(events)
    (count,) = stores.direct("SELECT count(*) FROM quarantine")
    assert count == (2 * len(packed),)
    stores.direct("INSERT INTO session VALUES (?, ?, ?, ?, ?)", *row)
    assert answer(store.load([key(1)])) == [original]


@pytest.mark.parametrize("value", ["text", 7, 7.5, b""])
def test_recordOfAnotherType(stores: Stores, value: object) -> None:
    store = stores.make()
    answer(store.commit([birth(1)]))
    stores.direct("UPDATE session SET record = ?", value)
    assert isinstance(answer(store.commit([birth(1)]))[0], Record)
    assert stores.direct("SELECT record FROM quarantine") == [(value,)]


def test_damagedFile(stores: Stores) -> None:
    """
    Any byte of the file: an answer, the original, or a fault that is explained.
    """
    store = stores.make()
    answer(store.commit([birth(number) for number in range(40)]))
    originals = answer(store.load([key(7)]))
    stores.close()
    whole = stores.path.read_bytes()
    chance = random.Random(3)
    for _ in range(150):
        damaged = bytearray(whole)
        damaged[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        stores.path.write_bytes(damaged)
        with capturedLogs():
            store = stores.make()
            try:
                assert answer(store.load([key(7)])) in (originals, [None])
            except StoreUnavailable as error:
                assert str(stores.path) in str(error)
            answer(store.close())
    for left in stores.path.parent.iterdir():
        left.unlink()
    stores.path.write_bytes(whole)
    assert answer(stores.make().load([key(7)])) == originals


def refused(stores: Stores, says: str) -> None:
    before = stores.path.read_bytes()
    store = stores.make()
    attempts: list[Deferred[Any]] = [store.load([key(1)]), store.commit([birth(1)])]
    for attempt in attempts:
        with pytest.raises(StoreUnavailable, match=says):
            answer(attempt)
    assert stores.path.read_bytes() == before


def test_notADatabase(stores: Stores) -> None:
    stores.path.write_bytes(b"Dear diary, " * 100)
    refused(stores, "is not an SQLite database: give another path")
    stores.path.unlink()
    assert isinstance(answer(stores.make().commit([birth(1)]))[0], Record)


def test_anotherApplicationsDatabase(stores: Stores) -> None:
    stores.direct("CREATE TABLE diary (day)")
    refused(stores, "another application's")


def test_anotherApplicationsEmptyDatabase(stores: Stores) -> None:
    stores.direct("PRAGMA application_id = 5")
    refused(stores, "another application's")


def test_newerSchema(stores: Stores) -> None:
    answer(stores.make().commit([birth(1)]))
    stores.close()
    stores.direct(f"PRAGMA user_version = {SCHEMA + 1}")
    refused(stores, "newer release")


def test_noDirectory(tmp_path: Path) -> None:
    stores = Stores(tmp_path / "missing" / "sessions.db")
    store = stores.make()
    with pytest.raises(StoreUnavailable, match="directory .*missing .*does not exist"):
        answer(store.load([key(1)]))
    stores.path.parent.mkdir()
    assert answer(store.load([key(1)])) == [None]
    stores.close()


def test_directoryInstead(stores: Stores) -> None:
    stores.path.mkdir()
    with pytest.raises(StoreUnavailable, match="check that it is a file"):
        answer(stores.make().load([key(1)]))


def test_nobodyElseCanRead(stores: Stores) -> None:
    before = os.umask(0)
    try:
        answer(stores.make().commit([birth(1)]))
        modes = {file.name: file.stat().st_mode & 0o777 for file in stores.path.parent.iterdir()}
    finally:
        os.umask(before)
    names = ("sessions.db", "sessions.db-shm", "sessions.db-wal")
    assert modes == dict.fromkeys(names, 0o600)


def test_nobodyElseCanReadWhatALinkLeadsTo(stores: Stores) -> None:
    place = stores.path.parent / "data"
    place.mkdir()
    stores.path.symlink_to(place / "real.db")
    before = os.umask(0)
    try:
        answer(stores.make().commit([birth(1)]))
        modes = {file.name: file.stat().st_mode & 0o777 for file in place.iterdir()}
    finally:
        os.umask(before)
    assert modes == dict.fromkeys(("real.db", "real.db-shm", "real.db-wal"), 0o600)


GONE = "deleted or replaced while it was in use; what is there now is used"


def around(path: Path) -> list[Path]:
    return [path.with_name(path.name + end) for end in ("", "-wal", "-shm")]


def backedUp(stores: Stores) -> tuple[SQLiteStore, Path]:
    """
    A store in use, and a copy of its file with one session less.
    """
    store = stores.make()
    answer(store.commit([birth(1)]))
    copy = stores.path.with_name("backup.db")
    stores.direct("VACUUM INTO ?", str(copy))
    answer(store.commit([birth(2)]))
    assert None not in answer(store.load([key(1), key(2)]))
    return store, copy


def goesOn(stores: Stores, store: SQLiteStore, *there: bool) -> None:
    """
    Each connection says so once, and from then on what is there now is used.
    """
    attempts = [lambda: store.load([]), lambda: store.commit([])]
    for attempt in attempts:
        with pytest.raises(StoreUnavailable, match=GONE):
            answer(attempt())
    assert [record is not None for record in answer(store.load([key(1), key(2)]))] == list(there)
    assert isinstance(answer(store.commit([birth(3)]))[0], Record)
    for reader in store, stores.make():
        assert None not in answer(reader.load([key(3)]))
    assert stores.direct("PRAGMA integrity_check") == [("ok",)]


def test_deletedWhileInUse(stores: Stores) -> None:
    store, _ = backedUp(stores)
    for path in around(stores.path):
        path.unlink()
    stores.clock.advance(1.0)
    goesOn(stores, store, False, False)


def test_movedOverWhileInUse(stores: Stores) -> None:
    """
    What SQLite has put beside the file before would damage the one now.
    """
    store, copy = backedUp(stores)
    before = copy.read_bytes()
    copy.replace(stores.path)
    stores.clock.advance(1.0)
    _, *beside = around(stores.path)
    for path in beside:
        for _ in range(2):
            with pytest.raises(StoreUnavailable, match="remove the -wal and -shm"):
                answer(store.load([key(1)]))
            with pytest.raises(StoreUnavailable, match="remove the -wal and -shm"):
                answer(store.commit([birth(3)]))
        assert stores.path.read_bytes() == before
        path.unlink()
        stores.clock.advance(1.0)
    goesOn(stores, store, True, False)


def test_movedOverBeforeTheFirstCommit(stores: Stores) -> None:
    _, copy = backedUp(stores)
    reader = stores.make()
    assert None not in answer(reader.load([key(1), key(2)]))
    copy.replace(stores.path)
    with pytest.raises(StoreUnavailable, match="remove the -wal and -shm"):
        answer(reader.commit([birth(3)]))
    with pytest.raises(StoreUnavailable, match="remove the -wal and -shm"):
        answer(reader.load([key(1)]))  # at once, as the other has looked


def test_aLinkThatLeadsElsewhere(stores: Stores) -> None:
    place = stores.path.parent / "data"
    place.mkdir()
    stores.path.symlink_to(place / "one.db")
    store, copy = backedUp(stores)
    stores.path.unlink()
    stores.path.symlink_to(copy)
    stores.clock.advance(1.0)
    goesOn(stores, store, True, False)
    assert not place.joinpath("one.db-wal").exists()  # it was closed properly


def test_restoredInPlace(stores: Stores) -> None:
    """
    As the sqlite3 shell's .restore does it.
    """
    store, copy = backedUp(stores)
    source, target = sqlite3.connect(copy), sqlite3.connect(stores.path)
    source.backup(target)
    for connection in source, target:
        connection.close()
    stores.clock.advance(1.0)
    assert [record is not None for record in answer(store.load([key(1), key(2)]))] == [True, False]
    assert isinstance(answer(store.commit([birth(3)]))[0], Record)
    assert stores.direct("PRAGMA integrity_check") == [("ok",)]
