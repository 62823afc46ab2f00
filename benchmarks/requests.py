"""
What a session adds to a request, in memory.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.testing import StringTransport
from twisted.web import resource, server

from benchmarks.harness import measure
from twsessions import SessionSite

BROWSERS = 1000
REQUESTS = 30_000


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


def perRequest(site: Any, jar: list[bytes]) -> float:
    """
    CPU microseconds a request, garbage collection off.
    """
    site.timeOut = None
    protocol = connect(site, Sink())
    requests = [b"GET / HTTP/1.1\r\nHost: x\r\nCookie: %s\r\n\r\n" % cookie for cookie in jar]
    requests = requests or [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"]
    best = float("inf")
    for _ in range(3):
        gc.collect()
        gc.disable()
        started = time.process_time()
        for number in range(REQUESTS // 3):
            protocol.dataReceived(requests[number % len(requests)])
        best = min(best, (time.process_time() - started) / (REQUESTS // 3))
        gc.enable()
    return best * 1e6


def getSession(request: Any) -> None:
    request.getSession()


def nothing(request: Any) -> None:
    pass


@measure
def bareRequest(scale: int) -> float:
    return perRequest(server.Site(Page(nothing)), cookies(server.Site(Page(getSession))))


@measure
def bareRequestWithoutCookie(scale: int) -> float:
    return perRequest(server.Site(Page(nothing)), [])


@measure
def stockExisting(scale: int) -> float:
    site = server.Site(Page(getSession))
    return perRequest(site, cookies(site))


@measure
def oursExisting(scale: int) -> float:
    site = SessionSite(Page(getSession))
    return perRequest(site, cookies(site))


@measure
def stockNew(scale: int) -> float:
    return perRequest(server.Site(Page(getSession)), [])


@measure
def oursNew(scale: int) -> float:
    return perRequest(SessionSite(Page(getSession)), [])
