"""
Ends that fell due while every process was down, heard by four that start.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import twsessions
from twsessions.test.places import place

COUNT = 5000
PROCESSES = 4
PATIENCE = 60.0  # seconds
LEASE = 2.0

MAKE = """
import sys
from twisted.internet import defer, task
from twisted.web.resource import Resource
from twsessions import Session, SessionSite

class Short(Session):
    sessionTimeout = 0.5

async def main(reactor):
    site = SessionSite(Resource(), store=sys.argv[1], reactor=reactor, storeTimeout=30.0)
    site.sessionFactory = Short
    site.notifyOnExpire(lambda event: defer.Deferred())  # the wish is the store's to keep
    await site.keeper.link.listen()
    commits = []
    for number in range(int(sys.argv[2])):
        session = site.makeSession()
        session["n"] = number
        commits.append(session.commit())
    await defer.gatherResults(commits)
    site.keeper.alarm.stop()
    site.keeper.deliverer.callbacks.clear()
    await site.keeper.link.close()

task.react(lambda reactor: defer.Deferred.fromCoroutine(main(reactor)))
"""

HEAR = """
import os, sys
from twisted.internet import reactor
from twisted.web.resource import Resource
from twsessions import SessionSite

out = os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
site = SessionSite(
    Resource(), store=sys.argv[1], leaseDuration=float(sys.argv[3]), storeTimeout=30.0
)

def heard(event):
    os.write(out, b"%s %d\\n" % (event.id.encode(), event.data["n"]))

print("up", flush=True)
sys.stdin.readline()
reactor.callWhenRunning(site.doStart)
site.notifyOnExpire(heard)
reactor.run()
"""


class Listener:
    """
    A process that writes down what it hears.
    """

    def __init__(self, url: str, out: Path) -> None:
        self.out = out
        out.touch()
        self.process = subprocess.Popen(
            [sys.executable, "-c", HEAR, url, str(out), str(LEASE)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=_environment(),
        )

    def heard(self) -> list[str]:
        return [line.split()[0] for line in self.out.read_text().splitlines()]


def _environment() -> dict[str, str]:
    return dict(os.environ, PYTHONPATH=str(Path(twsessions.__file__).parents[1]))


@contextmanager
def listeners(url: str, directory: Path) -> Iterator[list[Listener]]:
    """
    Four that begin in the same moment.
    """
    started = [Listener(url, directory / f"{number}.txt") for number in range(PROCESSES)]
    try:
        for one in started:
            assert one.process.stdout is not None
            assert one.process.stdout.readline() == b"up\n"
        for one in started:
            assert one.process.stdin is not None
            one.process.stdin.write(b"\n")
            one.process.stdin.flush()
        yield started
    finally:
        for one in started:
            one.process.kill()
            one.process.wait()
            one.process.stdin.close()  # type: ignore[union-attr]
            one.process.stdout.close()  # type: ignore[union-attr]


def wait(until: float, some: list[Listener], count: int) -> None:
    """
    Until so many different ends have been heard.
    """
    while len({event for one in some for event in one.heard()}) < count:
        assert time.monotonic() < until, Counter(len(one.heard()) for one in some)
        select.select([], [], [], 0.02)  # only between two looks; nothing depends on it


@pytest.fixture(params=["postgresql", "redis", "sqlite"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with place(request.param, tmp_path) as url:
        yield url


@pytest.mark.parametrize("kill", [False, True], ids=["", "kill"])
def test_eachIsHeard(url: str, tmp_path: Path, kill: bool) -> None:
    subprocess.run(
        [sys.executable, "-c", MAKE, url, str(COUNT)],
        check=True,
        env=_environment(),
        timeout=PATIENCE,
    )
    until = time.monotonic() + PATIENCE
    with listeners(url, tmp_path) as some:
        if kill:
            wait(until, some, COUNT // 10)
            some[0].process.send_signal(signal.SIGKILL)
        wait(until, some, COUNT)
        heard = [one.heard() for one in some]
    times = Counter(event for events in heard for event in events)
    assert len(times) == COUNT
    again = {event for event, count in times.items() if count > 1}
    if kill:
        # What the dead one had heard and not settled was given out again.
        assert again <= set(heard[0])
        assert max(times.values()) <= 2
    else:
        assert not again
