"""
A TCP proxy that cuts, garbles and refuses, on the reactor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP4ServerEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure

__all__ = ["Proxy"]


class _Near(Protocol):
    """
    The client's connection.
    """

    transport: Any

    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy
        self.far: _Far | None = None
        self.early = b""

    def connectionMade(self) -> None:
        self.proxy.connections.add(self)
        self.proxy.accepted += 1
        endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", self.proxy.target)
        endpoint.connect(Factory.forProtocol(lambda: _Far(self))).addErrback(
            lambda _: self.transport.abortConnection()
        )

    def dataReceived(self, data: bytes) -> None:
        if self.far is None:
            self.early += data
        else:
            passed = self.proxy.count("up", data)
            self.far.transport.write(passed)
            if len(passed) < len(data):
                self.far.transport.loseConnection()  # what has passed arrives
                self.transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.proxy.connections.discard(self)
        if self.far is not None:
            self.far.transport.loseConnection()


class _Far(Protocol):
    """
    The connection to the server.
    """

    transport: Any

    def __init__(self, near: _Near) -> None:
        self.near = near

    def connectionMade(self) -> None:
        self.near.far = self
        early, self.near.early = self.near.early, b""
        if early:
            self.near.dataReceived(early)

    def dataReceived(self, data: bytes) -> None:
        proxy = self.near.proxy
        if proxy.garble is not None:
            data = proxy.garble(data)
        passed = proxy.count("down", data)
        self.near.transport.write(passed)
        if len(passed) < len(data):
            self.near.transport.loseConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.near.transport.loseConnection()


class Proxy:
    """
    The proxy.

    @ivar target: the server's port.
    @ivar left: bytes that still pass, C{"up"} to the server and C{"down"}
        from it, before the connection is cut.
    @ivar garble: is given what the server says; its result is passed on.
    @ivar accepted: connections so far.
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self.left: dict[str, int] = {}
        self.passed = {"up": 0, "down": 0}
        self.garble: Callable[[bytes], bytes] | None = None
        self.connections: set[_Near] = set()
        self.accepted = 0
        self.port = 0
        self._listening: Any = None

    async def start(self) -> None:
        """
        Listen, on the port of the time before if there was one.
        """
        endpoint = TCP4ServerEndpoint(reactor, self.port, interface="127.0.0.1")
        self._listening = await endpoint.listen(Factory.forProtocol(lambda: _Near(self)))
        self.port = self._listening.getHost().port

    def count(self, way: str, data: bytes) -> bytes:
        """
        What of it may pass.
        """
        left = self.left.get(way)
        if left is not None:
            data = data[:left]
            self.left[way] = left - len(data)
        self.passed[way] += len(data)
        return data

    def cutAll(self) -> None:
        """
        Cut all connections.
        """
        for one in tuple(self.connections):
            one.transport.abortConnection()

    async def stop(self) -> None:
        """
        Listen no more, and cut all connections.
        """
        listening, self._listening = self._listening, None
        if listening is not None:
            await listening.stopListening()
        self.cutAll()
        while self.connections:
            turn: Deferred[None] = Deferred()
            reactor.callLater(0, turn.callback, None)  # type: ignore[attr-defined]
            await turn
