"""
Clocks that are set while sessions live, and processes that sleep through the
end of theirs.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.task import Clock
from twisted.web.server import Site

import twsessions
from twsessions import Session, SessionSite
from twsessions.test.page import Does, Page, result
from twsessions.testing.browser import Browser

IDLE = 900
HOUR, DAY = 3600, 86400


class World:
    """
    A site on a clock that can be set.
    """

    def __init__(self, kind: str, directory: Path) -> None:
        self.clock = Clock()
        self.clock.advance(1_000_000)
        page = Page()
        self.site: Any
        if kind == "stock":
            self.site = Site(page, reactor=self.clock)
            self.site.sessionFactory = Session
        else:
            url = f"sqlite:///{directory}/s.db" if kind == "sqlite" else kind
            self.site = SessionSite(page, reactor=self.clock, store=url)
        self.page = page
        self.site.doStart()
        self.heard: list[float] = []

    def visit(self, browser: Browser, does: Does) -> bytes:
        self.page.does = does
        response = result(browser.get("/"))
        assert response.code == 200
        body: bytes = response.body
        return body

    def begin(self) -> Browser:
        """
        A client with a new session that tells of its end.
        """
        browser = Browser(self.site)

        def does(request: Any) -> bytes:
            session = request.getSession()
            session["k"] = "v"
            session.notifyOnExpire(lambda: self.heard.append(self.clock.seconds()))
            return b""

        self.visit(browser, does)
        return browser

    def step(self, seconds: float) -> None:
        """
        Set the clock, as an administrator does; no time goes by.
        """
        self.clock.rightNow += seconds

    def wait(self, seconds: int) -> None:
        self.clock.pump([1.0] * seconds)


def isThere(request: Any) -> bytes:
    return b"yes" if "k" in request.getSession() else b"no"


@pytest.fixture(params=["stock", "memory:", "sqlite"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    it = World(request.param, tmp_path)
    yield it
    it.site.doStop()


def test_backByAnHour(world: World) -> None:
    """
    Nobody is thrown out; who is not seen again ends late by the hour at most;
    who comes afterwards is not concerned at all.
    """
    before = world.begin()
    world.wait(60)
    world.step(-HOUR)
    assert world.visit(before, isThere) == b"yes"
    start = world.clock.seconds()
    after = world.begin()
    for _ in range(5):
        world.wait(IDLE - 10)
        assert world.visit(after, isThere) == b"yes"
        assert world.visit(before, isThere) == b"yes"
        assert world.heard == []
    assert world.clock.seconds() - start > HOUR
    last = world.clock.seconds()
    world.wait(IDLE)
    world.wait(1)
    assert [int(when - last) - IDLE in (0, 1) for when in world.heard] == [True, True]
    for browser in (before, after):
        assert world.visit(browser, isThere) == b"no"
    assert all(session.lastModified >= last for session in world.site.sessions.values())


def test_backAndLeftAlone(world: World) -> None:
    before = world.begin()
    world.step(-HOUR)
    after = world.begin()
    world.wait(IDLE - 1)
    assert world.visit(after, isThere) == b"yes"
    world.wait(IDLE + 1)
    assert len(world.heard) == 1  # of the second
    assert world.visit(after, isThere) == b"no"
    world.wait(HOUR)
    assert len(world.heard) == 2
    assert world.visit(before, isThere) == b"no"


def test_aboutTheEndsOfAStore(tmp_path: Path) -> None:
    """
    The site's own listeners hear of an end that comes after the step in time.
    """
    world = World("memory:", tmp_path)
    ends: list[str] = []
    world.site.notifyOnExpire(lambda end: ends.append(end.reason))
    world.wait(5)
    world.step(-HOUR)
    world.visit(Browser(world.site), lambda request: request.getSession().update(k=1))
    world.wait(IDLE + 2)
    assert ends == ["idle"]
    world.site.doStop()


def test_aboutTheEndsOfAStoreThatIsNotInMemory(tmp_path: Path) -> None:
    world = World("sqlite", tmp_path)
    ends: list[str] = []
    world.site.notifyOnExpire(lambda end: ends.append(end.reason))
    world.wait(5)
    world.step(-HOUR)
    try:
        world.visit(Browser(world.site), lambda request: request.getSession().update(k=1))
        world.wait(IDLE + 2)
        assert ends == ["idle"]
    finally:
        world.site.doStop()


@pytest.mark.parametrize(
    "kind",
    [
        "stock",
        "sqlite",
        "memory:",
    ],
)
def test_whatHasEndedStaysEnded(kind: str, tmp_path: Path) -> None:
    """
    Made before the step, used after it, and left alone: there may be doubt
    about when it ends, but not about whether it has.
    """
    world = World(kind, tmp_path)
    browser = world.begin()
    world.step(-HOUR)
    world.visit(browser, isThere)
    for _ in range(IDLE + HOUR + 2):
        if world.heard:
            break
        world.wait(1)
    try:
        assert len(world.heard) == 1
        assert world.visit(browser, isThere) == b"no"
    finally:
        world.site.doStop()


def test_forwardByADay(world: World) -> None:
    """
    It is a day later: all that were there are over, once; the next ones live as
    long as any.
    """
    browsers = [world.begin() for _ in range(3)]
    world.step(DAY)
    world.wait(1)
    world.wait(1)
    assert len(world.heard) == 3 and len(world.site.sessions) == 0
    assert [world.visit(browser, isThere) for browser in browsers] == [b"no"] * 3
    world.heard.clear()
    start = world.clock.seconds()
    one = world.begin()
    world.wait(IDLE - 1)
    assert world.visit(one, isThere) == b"yes"
    assert world.heard == [] and world.clock.seconds() - start < IDLE
    world.wait(IDLE + 1)
    assert len(world.heard) == 1
    assert world.visit(one, isThere) == b"no"


@pytest.mark.parametrize(
    "kind",
    [
        "stock",
        "memory:",
        "sqlite",
    ],
)
def test_theRequestComesBeforeTheClock(kind: str, tmp_path: Path) -> None:
    """
    After a sleep, a reactor may read from its sockets before it makes the calls
    that fell due.
    """
    world = World(kind, tmp_path)
    browser = world.begin()
    world.step(IDLE)
    try:
        assert world.visit(browser, isThere) == b"no"
        world.wait(2)
        assert len(world.heard) == 1
    finally:
        world.site.doStop()


SERVER = """
import sys
from twisted.internet import reactor
from twisted.web.resource import Resource
from twsessions import Session, SessionSite

class Short(Session):
    sessionTimeout = 0.8

heard = []

class Count(Resource):
    isLeaf = True
    def render_GET(self, request):
        session = request.getSession()
        session["n"] = session.get("n", 0) + 1
        if session["n"] == 1:
            session.notifyOnExpire(lambda: heard.append(1))
        return b"%d %d" % (session["n"], len(heard))

site = SessionSite(Count(), store=sys.argv[1])
site.sessionFactory = Short
port = reactor.listenTCP(0, site, interface="127.0.0.1")
reactor.callWhenRunning(print, port.getHost().port, flush=True)
reactor.run()
"""


class Client:
    """
    One connection, and the last cookie that came over it.
    """

    def __init__(self, port: int) -> None:
        self.connection = socket.create_connection(("127.0.0.1", port), timeout=20)
        self.file = self.connection.makefile("rb")
        self.cookie = b""

    def send(self) -> None:
        cookie = b"Cookie: " + self.cookie + b"\r\n" if self.cookie else b""
        self.connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n" + cookie + b"\r\n")

    def receive(self) -> list[int]:
        assert b"200" in self.file.readline()
        length = 0
        while (line := self.file.readline().strip()) != b"":
            name, _, value = line.partition(b": ")
            if name.lower() == b"content-length":
                length = int(value)
            elif name.lower() == b"set-cookie":
                self.cookie = value.partition(b";")[0]
        return [int(number) for number in self.file.read(length).split()]

    def close(self) -> None:
        self.file.close()
        self.connection.close()


@pytest.mark.parametrize("kind", ["memory:", "sqlite"])
def test_aProcessThatWasSuspended(kind: str, tmp_path: Path) -> None:
    """
    For longer than the idle timeout; a request is among the first things it
    sees, and finds no session.
    """
    store = f"sqlite:///{tmp_path}/s.db" if kind == "sqlite" else kind
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, store],
        stdout=subprocess.PIPE,
        env=dict(os.environ, PYTHONPATH=str(Path(twsessions.__file__).parents[1])),
    )
    try:
        assert server.stdout is not None
        client = Client(int(server.stdout.readline()))
        client.send()
        assert client.receive() == [1, 0]
        old = client.cookie
        server.send_signal(signal.SIGSTOP)
        os.waitpid(server.pid, os.WUNTRACED)
        client.send()
        time.sleep(1.0)  # is what is tested, and waits for nothing
        server.send_signal(signal.SIGCONT)
        first, _ = client.receive()
        assert first == 1 and client.cookie != old
        heard = 0
        for n in range(2, 100):
            client.send()
            count, heard = client.receive()
            assert count == n
            if heard:
                break
        assert heard == 1
        client.close()
    finally:
        server.kill()
        server.wait()
        if server.stdout is not None:
            server.stdout.close()
