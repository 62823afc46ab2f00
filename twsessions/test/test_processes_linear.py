"""
What several processes see of the same sessions, with faults in between, fits
one order of events for each key.
"""

from __future__ import annotations

import os
import random
import re
import socket
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

import twsessions
from twsessions.test.linear import GONE, Operation, isLinearizable
from twsessions.test.places import place

PROCESSES = 4
KEYS = 12
OPERATIONS = 400  # of each process
PATIENCE = 60.0  # seconds

WORK = """
import os, random, sys, time
from twisted.internet import defer, task
from twsessions.core.delta import Birth, Change
from twsessions.core.record import Record
from twsessions.errors import IdCollision, SessionGone, StoreUnavailable
from twsessions.stores.fromurl import storeFromURL

url, out, seed, count = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
keys = [bytes.fromhex(key) for key in sys.argv[5:]]
log = os.open(out, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
chance = random.Random(seed)

def say(*words):
    os.write(log, (" ".join(map(str, words)) + "\\n").encode())

async def one(store, number):
    name = f"{seed}.{number}"
    key = chance.choice(keys)
    kind = chance.choices(["write", "read", "end"], [450, 545, 5])[0]
    if kind == "write":
        change = Change(key, os.urandom(16), set={"dx": name.encode()})
    elif kind == "end":
        change = Change(key, os.urandom(16), end="logout")
    say("begin", name, kind, key.hex(), time.monotonic())
    try:
        if kind == "read":
            [record] = await store.load([key])
        else:
            [record] = await store.commit([change])
    except StoreUnavailable:
        return "again"  # nobody knows what became of this one
    if isinstance(record, StoreUnavailable):
        return "again"
    value = "gone" if record is None or isinstance(record, SessionGone) else ""
    if isinstance(record, Record) and kind == "read":
        value = record.fields["dx"].decode() or "-"
    assert isinstance(record, (Record, SessionGone, type(None))), record
    say("end", name, value or "-", time.monotonic())

async def some(reactor, store, numbers):
    for number in numbers:
        while await one(store, number) == "again":
            number += count
            await task.deferLater(reactor, 0.01, lambda: None)

async def main(reactor):
    store = storeFromURL(reactor, url)
    births = [
        Change(key, b"birth", Birth(key[:16]), set={"dx": b""}, idle=None) for key in keys
    ]
    for _ in range(50):
        try:
            born = await store.commit(births)  # one process's births are the others' collisions
            if not any(isinstance(outcome, StoreUnavailable) for outcome in born):
                break
        except StoreUnavailable:
            await task.deferLater(reactor, 0.05, lambda: None)
    print("up", flush=True)
    sys.stdin.readline()
    works = [some(reactor, store, range(n, count, 3)) for n in range(3)]
    await defer.gatherResults([defer.Deferred.fromCoroutine(work) for work in works])
    await store.close()

task.react(lambda reactor: defer.Deferred.fromCoroutine(main(reactor)))
"""


class Cutter:
    """
    A proxy that cuts each connection after some bytes, in either direction.
    """

    def __init__(self, port: int, chance: random.Random) -> None:
        self.target, self.chance, self.cuts = port, chance, 0
        self.listening = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self.listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self.listening.accept()
                far = socket.create_connection(("127.0.0.1", self.target))
            except OSError:
                return
            for ends, most in (((near, far), 60_000), ((far, near), 60_000)):
                left = self.chance.randrange(20_000, most)
                threading.Thread(target=self._pass, args=(*ends, left), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, left: int) -> None:
        with suppress(OSError):
            while left and (data := source.recv(min(left, 4096))):
                target.sendall(data)
                left -= len(data)
        self.cuts += not left
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


class Worker:
    def __init__(self, url: str, out: Path, seed: int, keys: list[bytes]) -> None:
        self.out = out
        words = [url, out, seed, OPERATIONS, *(key.hex() for key in keys)]
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORK, *map(str, words)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=dict(os.environ, PYTHONPATH=str(Path(twsessions.__file__).parents[1])),
        )

    def wait(self) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"up\n"

    def go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()  # type: ignore[union-attr]
        self.process.stdout.close()  # type: ignore[union-attr]

    def operations(self) -> Iterator[tuple[str, Operation]]:
        begun: dict[str, tuple[str, str, float]] = {}
        for line in self.out.read_text().splitlines():
            what, name, *rest = line.split()
            if what == "begin":
                begun[name] = rest[0], rest[1], float(rest[2])
                continue
            kind, key, invoked = begun.pop(name)
            value = name if kind == "write" and rest[0] != GONE else rest[0].replace("-", "")
            yield key, Operation(kind, value, invoked, float(rest[1]))
        for name, (kind, key, invoked) in begun.items():
            if kind != "read":
                yield key, Operation(kind, name, invoked)


def check(workers: list[Worker]) -> None:
    histories: dict[str, list[Operation]] = defaultdict(list)
    for worker in workers:
        for key, operation in worker.operations():
            histories[key].append(operation)
    assert sum(map(len, histories.values())) > PROCESSES * OPERATIONS / 2
    for key, history in histories.items():
        assert isLinearizable(history), (key, sorted(history, key=lambda one: one.invoked))


@pytest.fixture(params=["memcached", "postgresql", "redis", "sqlite"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with place(request.param, tmp_path) as url:
        yield url


def test_killedProcesses(url: str, tmp_path: Path) -> None:
    chance = random.Random()
    keys = [os.urandom(32) for _ in range(KEYS)]
    workers = [
        Worker(url, tmp_path / f"{n}", chance.randrange(2**30), keys) for n in range(PROCESSES + 1)
    ]
    try:
        for worker in workers:
            worker.wait()
        for worker in workers:
            worker.go()
        until = time.monotonic() + PATIENCE
        victim = workers[-1]
        while victim.out.stat().st_size < 5000 and victim.process.poll() is None:
            assert time.monotonic() < until
        victim.process.kill()
        assert victim.process.wait() != 0
        for worker in workers[:-1]:
            assert worker.process.wait(PATIENCE) == 0
        check(workers)
    finally:
        for worker in workers:
            worker.close()


@pytest.mark.parametrize("kind", ["memcached", "postgresql", "redis"])
def test_cutConnections(kind: str, tmp_path: Path) -> None:
    chance = random.Random()
    keys = [os.urandom(32) for _ in range(KEYS)]
    with place(kind, tmp_path) as direct:
        port = re.search(r":(\d+)(?=/|$)", direct)
        assert port is not None
        cutter = Cutter(int(port[1]), chance)
        url = direct.replace(f":{port[1]}", f":{cutter.port}")
        workers = [
            Worker(url, tmp_path / f"{n}", chance.randrange(2**30), keys) for n in range(PROCESSES)
        ]
        try:
            for worker in workers:
                worker.wait()
            for worker in workers:
                worker.go()
            for worker in workers:
                assert worker.process.wait(PATIENCE) == 0
            assert cutter.cuts >= PROCESSES
            check(workers)
        finally:
            cutter.listening.close()
            for worker in workers:
                worker.close()
