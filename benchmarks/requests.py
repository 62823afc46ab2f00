"""
What a session adds to a request, in memory.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable
from statistics import median
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.testing import StringTransport
from twisted.web import resource, server

from benchmarks.harness import measure
from twsessions import SessionSite

BROWSERS = 1000
BLOCK, BLOCKS = 500, 60


class Page(resource.Resource):
    isLeaf = True

    def __init__(self, does: Callable[[Any], object]) -> None:
        super().__init__()
        self.does = does

    def render_GET(self, request: Any) -> bytes:
        self.does(request)
        return b"ok"


class Sink(StringTransport):
    """
    Throws away what is written.
    """

    def write(self, data: bytes) -> None:
        pass

    def writeSequence(self, data: Any) -> None:
        pass


def connect(site: Any, transport: StringTransport) -> Any:
    protocol = site.buildProtocol(IPv4Address("TCP", "127.0.0.1", 1))
    protocol.makeConnection(transport)
    return protocol


def cookies(site: Any) -> list[bytes]:
    """
    A cookie for each of many browsers.
    """
    found = []
    for _ in range(BROWSERS):
        transport = StringTransport()
        connect(site, transport).dataReceived(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        for line in transport.value().split(b"\r\n"):
            if line.lower().startswith(b"set-cookie:"):
                found.append(line[11:].strip().split(b";")[0])
    return found


def overhead(site: Any, withCookies: bool) -> float:
    """
    CPU microseconds that a session adds to a request, garbage collection off:
    what one takes on C{site}, less what one takes on a site that asks for no
    session. The two take turns.
    """
    bare = server.Site(Page(nothing))
    requests = [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"]
    if withCookies:
        head = b"GET / HTTP/1.1\r\nHost: x\r\nCookie: %s\r\n\r\n"
        requests = [head % cookie for cookie in cookies(site)]
    sides = []
    for one in (site, bare):
        one.timeOut = None
        times: list[float] = []
        sides.append((connect(one, Sink()), times))
    for turn in range(BLOCKS):
        for protocol, times in random.sample(sides, 2):
            gc.collect()
            gc.disable()
            started = time.process_time()
            for number in range(turn * BLOCK, (turn + 1) * BLOCK):
                protocol.dataReceived(requests[number % len(requests)])
            times.append((time.process_time() - started) / BLOCK * 1e6)
            gc.enable()
    (_, withSession), (_, without) = sides
    return median(withSession) - median(without)


def getSession(request: Any) -> None:
    request.getSession()


def nothing(request: Any) -> None:
    pass


@measure
def stockExisting(scale: int) -> float:
    return overhead(server.Site(Page(getSession)), True)


@measure
def oursExisting(scale: int) -> float:
    return overhead(SessionSite(Page(getSession)), True)


@measure
def stockNew(scale: int) -> float:
    return overhead(server.Site(Page(getSession)), False)


@measure
def oursNew(scale: int) -> float:
    return overhead(SessionSite(Page(getSession)), False)
