"""
What SockJS connections cost, with us and with others.
"""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Callable
from resource import RLIMIT_NOFILE, getrlimit, setrlimit
from typing import Any

from twisted.internet.testing import StringTransport
from twisted.web import resource, server

from benchmarks import sockjsclient
from benchmarks.harness import ROOT, measure
from benchmarks.requests import connect
from benchmarks.servers import APART, freePort, python, running
from twsessions.sockjs import SockJSConnection, SockJSResource

OURS = [sys.executable, str(ROOT / "examples" / "sockjs_test_server.py")]
NODE = ["node", str(ROOT / "benchmarks" / "peers" / "sockjsnode.js")]
TORNADO = python("sockjstornado")

DUE = 10_000


def against(program: list[str], client: Callable[[int, int], float]) -> float:
    """
    What a client finds that is given a server's process and port.

    The two have CPUs of their own. On a common one a round trip is several
    times cheaper, and whether they have one would be chance.
    """
    _, most = getrlimit(RLIMIT_NOFILE)
    setrlimit(RLIMIT_NOFILE, (most, most))  # 1024, as it often is, is too few
    port = freePort()
    with running([*program, str(port)], port, APART[0]) as process:
        os.sched_setaffinity(0, APART[1])
        return client(process.pid, port)


def echoOfOne(program: list[str]) -> float:
    return against(program, lambda pid, port: sockjsclient.echo(pid, port, 1, 60_000))


def echoOfMany(program: list[str]) -> float:
    return against(program, lambda pid, port: sockjsclient.echo(pid, port, 100, 100_000))


def fanOut(program: list[str]) -> float:
    return against(program, lambda pid, port: sockjsclient.fanOut(pid, port, 500, 600))


def idleWebsockets(program: list[str]) -> float:
    opened = sockjsclient.websocket
    return against(program, lambda pid, port: sockjsclient.idle(pid, port, opened, 2000))


def idleStreams(program: list[str]) -> float:
    opened = sockjsclient.stream
    return against(program, lambda pid, port: sockjsclient.idle(pid, port, opened, 2000))


@measure
def sockjsEchoOfOne(scale: int) -> float:
    return echoOfOne(OURS)


@measure
def sockjsNodeEchoOfOne(scale: int) -> float:
    return echoOfOne(NODE)


@measure
def sockjsEchoOfMany(scale: int) -> float:
    return echoOfMany(OURS)


@measure
def sockjsNodeEchoOfMany(scale: int) -> float:
    return echoOfMany(NODE)


@measure
def sockjsTornadoEchoOfMany(scale: int) -> float:
    return echoOfMany(TORNADO)


@measure
def sockjsFanOut(scale: int) -> float:
    return fanOut(OURS)


@measure
def sockjsNodeFanOut(scale: int) -> float:
    return fanOut(NODE)


@measure
def sockjsIdleWebsocket(scale: int) -> float:
    return idleWebsockets(OURS)


@measure
def sockjsTornadoIdleWebsocket(scale: int) -> float:
    return idleWebsockets(TORNADO)


@measure
def sockjsIdleStream(scale: int) -> float:
    return idleStreams(OURS)


@measure
def sockjsTornadoIdleStream(scale: int) -> float:
    return idleStreams(TORNADO)


class Wire(StringTransport):
    """
    Throws away what is written; heartbeats are counted.
    """

    heartbeats = 0

    def write(self, data: bytes) -> None:
        Wire.heartbeats += data == b"2\r\nh\n\r\n"

    def writeSequence(self, data: Any) -> None:
        self.write(b"".join(data))


class Idler(SockJSConnection):
    """
    Says nothing; those are counted that did not come back.
    """

    gone = 0

    def onClose(self, code: int, reason: str) -> None:
        Idler.gone += code == 1006


def idlers(transport: bytes) -> Any:
    """
    Very many connections by that transport, made while the clock stands, so
    that they fall due in the same moment, which has come. Gives their reactor.
    """
    from twisted.internet import reactor

    real, standing = reactor.seconds, [reactor.seconds()]
    reactor.seconds = lambda: standing[0] if standing else real()  # type: ignore[method-assign]
    idle = SockJSResource(Idler, reactor, disconnectDelay=1.0, heartbeat=1.0)
    root = resource.Resource()
    root.putChild(b"idle", idle)
    site: Any = server.Site(root)
    site.timeOut = None
    request = b"POST /idle/000/%08d/%s HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
    for number in range(DUE):
        connect(site, Wire()).dataReceived(request % (number, transport))
    assert len(idle.service.connections) == DUE
    gc.collect()
    time.sleep(1.0)
    standing.clear()
    return reactor


def longestTurn(reactor: Any, isOver: Callable[[], bool]) -> float:
    """
    Milliseconds that the longest turn of the reactor until then has worked.
    """
    longest = 0.0

    def turn(last: float) -> None:
        nonlocal longest
        now = time.process_time()
        longest = max(longest, now - last)
        if isOver():
            reactor.stop()
        else:
            reactor.callLater(0, turn, now)

    reactor.callWhenRunning(lambda: turn(time.process_time()))
    reactor.run()
    return longest * 1e3


@measure
def sockjsDelayedCalls(scale: int) -> float:
    return len(idlers(b"xhr").getDelayedCalls())


@measure
def sockjsGoneTurn(scale: int) -> float:
    return longestTurn(idlers(b"xhr"), lambda: Idler.gone == DUE)


@measure
def sockjsHeartbeatTurn(scale: int) -> float:
    return longestTurn(idlers(b"xhr_streaming"), lambda: Wire.heartbeats >= DUE)
