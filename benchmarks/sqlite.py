"""
What the SQLite store costs.
"""

from __future__ import annotations

import gc
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from hashlib import sha256
from typing import Any

from twisted.internet import defer, task
from twisted.python.failure import Failure

from benchmarks.harness import measure
from benchmarks.many import payload, resident
from benchmarks.servers import perRequest, python
from twsessions.core.codec import encode
from twsessions.core.delta import Birth, Change
from twsessions.stores._threads import InlineWorker, ThreadWorker
from twsessions.stores.sqlite import SQLiteStore

GROUP, GROUPS = 100, 200


@measure
def oursSQLite(scale: int) -> float:
    with tempfile.TemporaryDirectory() as directory:
        return perRequest(python("ours"), f"sqlite:///{directory}/s.db", "/count")


@measure
def bareOverTCP(scale: int) -> float:
    return perRequest(python("ours"), "memory:", "/bare")


def django(path: str) -> float:
    with tempfile.TemporaryDirectory() as directory:
        return perRequest(python("djangosite"), f"{directory}/d.db", path)


@measure
def djangoSessions(scale: int) -> float:
    return django("/count")


@measure
def djangoBare(scale: int) -> float:
    return django("/bare")


def fields(number: int) -> dict[str, bytes]:
    return {"d" + name: encode(value) for name, value in payload(number).items()}


def _answer(deferred: Any) -> Any:
    results: list[Any] = []
    deferred.addBoth(results.append)
    return results[0]


def _keys(scale: int) -> list[bytes]:
    """
    Keys of many sessions, of which some are written: in no order, as hashes are.
    """
    return [sha256(b"%d" % number).digest() for number in range(max(2000, scale // 10))]


def _some(keys: list[bytes], turn: int) -> list[bytes]:
    return [keys[(turn * GROUP + number) * 7919 % len(keys)] for number in range(GROUP)]


@measure
def oursGroups(scale: int) -> float:
    """
    Commits a second, in groups of 100, of one changed field each.
    """
    with tempfile.TemporaryDirectory() as directory:
        store = SQLiteStore(f"{directory}/s.db", time.time, InlineWorker(), InlineWorker())
        keys = _keys(scale)
        for at in range(0, len(keys), GROUP):
            births = [
                Change(key, b"0", Birth(key[16:]), fields(at), idle=900.0)
                for key in keys[at : at + GROUP]
            ]
            _answer(store.commit(births))
        started = time.process_time()
        for turn in range(GROUPS):
            changes = [
                Change(key, b"%d" % turn, set={"duser": encode(turn)}, usedAgo=0.0)
                for key in _some(keys, turn)
            ]
            _answer(store.commit(changes))
        return GROUPS * GROUP / (time.process_time() - started)


@measure
def rawGroups(scale: int) -> float:
    """
    Upserts a second of as many bytes, in transactions of 100.
    """
    with tempfile.TemporaryDirectory() as directory:
        connection = sqlite3.connect(f"{directory}/raw.db", isolation_level=None)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute("CREATE TABLE s (key BLOB PRIMARY KEY, record BLOB, due REAL)")
        connection.execute("CREATE INDEX d ON s (due)")
        keys = _keys(scale)
        blob = b"".join(name.encode() + value for name, value in fields(1).items())
        upsert = (
            "INSERT INTO s VALUES (?, ?, ?) ON CONFLICT (key)"
            " DO UPDATE SET record = excluded.record, due = excluded.due"
        )

        def write(some: list[bytes], turn: int) -> None:
            rows = [(key, blob + b"%d" % turn, time.time()) for key in some]
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany(upsert, rows)
            connection.execute("COMMIT")

        for at in range(0, len(keys), GROUP):
            write(keys[at : at + GROUP], 0)
        started = time.process_time()
        for turn in range(GROUPS):
            write(_some(keys, turn), turn)
        return GROUPS * GROUP / (time.process_time() - started)


def _stocked(directory: str, scale: int) -> str:
    """
    A file with so many sessions.
    """
    path = f"{directory}/many.db"
    store = SQLiteStore(path, time.time, InlineWorker(), InlineWorker())
    some = fields(1)
    for at in range(0, scale, 5000):
        _answer(
            store.commit(
                [
                    Change(os.urandom(32), b"0", Birth(os.urandom(16)), some, idle=90000.0)
                    for _ in range(min(5000, scale - at))
                ]
            )
        )
    _answer(store.close())
    return path


_FIRST = """
import sys, time
started = time.perf_counter()
from benchmarks.many import resident
from benchmarks.peers.ours import Pages
from benchmarks.requests import connect
from twisted.internet import reactor
from twisted.internet.testing import StringTransport
from twsessions import SessionSite
before = resident()
site = SessionSite(Pages(), store="sqlite:///" + sys.argv[1])
site.timeOut = None
class Ending(StringTransport):
    def write(self, data):
        if data.endswith(b"1") and reactor.running:
            print(time.perf_counter() - started, resident() - before)
            reactor.stop()
    def writeSequence(self, data):
        self.write(b"".join(data))
def begin():
    site.doStart()
    connect(site, Ending()).dataReceived(b"GET /count HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n")
reactor.callWhenRunning(begin)
reactor.run()
"""


def _firstAnswer(scale: int) -> list[float]:
    with tempfile.TemporaryDirectory() as directory:
        path = _stocked(directory, scale)
        done = subprocess.run(
            [sys.executable, "-c", _FIRST, path], stdout=subprocess.PIPE, check=True
        )
        return [float(word) for word in done.stdout.split()]


@measure
def firstAnswer(scale: int) -> float:
    return _firstAnswer(scale)[0]


@measure
def memoryOfAStart(scale: int) -> float:
    return _firstAnswer(scale)[1] / 2**20


@measure
def memoryOfASmallStart(scale: int) -> float:
    return _firstAnswer(1000)[1] / 2**20


_WRITER = """
import sqlite3, sys, os, time
connection = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=60)
while True:
    connection.execute("BEGIN IMMEDIATE")
    for _ in range(200):
        connection.execute("UPDATE session SET due = due WHERE key = ?", (os.urandom(32),))
    connection.execute("COMMIT")
    time.sleep(0.002)
"""


@measure
def gapWhileAnotherWrites(scale: int) -> float:
    """
    The longest gap of a reactor that ticks every millisecond and commits, in ms.
    """
    from twisted.internet import reactor

    with tempfile.TemporaryDirectory() as directory:
        path = f"{directory}/s.db"
        store = SQLiteStore(
            path, time.time, ThreadWorker(reactor, "reader"), ThreadWorker(reactor, "writer")
        )
        gaps: list[float] = []
        failures: list[Failure] = []

        async def work() -> None:
            keys = [os.urandom(32) for _ in range(500)]
            await store.commit([Change(k, b"0", Birth(k[:16]), fields(1)) for k in keys])
            writer = subprocess.Popen([sys.executable, "-c", _WRITER, path])
            try:
                await busy(keys)
            finally:
                writer.kill()
                writer.wait()
                await store.close()

        async def busy(keys: list[bytes]) -> None:
            gc.freeze()
            await task.deferLater(reactor, 0.3, lambda: None)
            last = time.perf_counter()

            def tick() -> None:
                nonlocal last
                now = time.perf_counter()
                gaps.append(now - last)
                last = now

            ticking = task.LoopingCall(tick)
            ticking.start(0.001)
            for turn in range(400):
                some = keys[turn : turn + 20]
                changes = [Change(k, os.urandom(8), set={"dn": encode(turn)}) for k in some]
                await defer.gatherResults([store.load(some), store.commit(changes)])
            ticking.stop()

        def start() -> None:
            done = defer.Deferred.fromCoroutine(work())
            done.addErrback(failures.append).addCallback(lambda _: reactor.stop())

        reactor.callWhenRunning(start)
        reactor.run()
        for failure in failures:
            failure.raiseException()
        return (max(gaps) - 0.001) * 1e3


__all__ = ["resident"]
