"""
Where the processes of a test can share sessions: real servers, and a file.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["place", "serverFor"]


@contextmanager
def place(kind: str, directory: Path) -> Iterator[str]:
    """
    Give the URL of a store that nobody has used yet.

    @param kind: C{"sqlite"}, or of a server (see L{serverFor}).
    """
    if kind == "sqlite":
        yield f"sqlite:///{directory / 's.db'}"
        return
    server = serverFor(kind)
    server.start()
    try:
        yield server.url
    finally:
        server.stop()


class _Redis:
    """
    A Redis that has written what it acknowledges.
    """

    keeps = True

    def __init__(self) -> None:
        from twsessions.test.redisserver import Server

        self._server = Server("appendonly yes", "appendfsync always")
        self.url = f"redis://127.0.0.1:{self._server.port}/0"
        self.start, self.stop = self._server.start, self._server.stop
        self.kill, self.send = self._server.kill, self._server.send


class _Memcached:
    keeps = False

    def __init__(self) -> None:
        from twsessions.test.memcachedserver import Server

        self._server = Server()
        self._server.stop()
        self.url = f"memcached://127.0.0.1:{self._server.port}"
        self.start, self.kill, self.stop = self._server.start, self._server.stop, self._server.stop

    def send(self, number: int) -> None:
        if number == signal.SIGSTOP:
            self._server.pause()
        else:
            self._server.resume()


class _PostgreSQL:
    keeps = True

    def __init__(self) -> None:
        from twsessions.test.postgresserver import Server

        self._server = Server()
        self.url = self._server.url()
        self.start, self.kill, self.stop = self._server.start, self._server.kill, self._server.stop
        self.query = self._server.query

    def send(self, number: int) -> None:
        if number == signal.SIGSTOP:
            self._server.pause()
        else:
            self._server.resume()


def serverFor(kind: str) -> Any:
    """
    A server that has not been started.

    @param kind: C{"redis"}, C{"postgresql"} or C{"memcached"}.
    @return: something with C{url}, C{start()}, C{kill()}, C{send(signal)},
        C{stop()} and C{keeps}: whether what it knows survives C{kill()}.
    """
    servers: dict[str, type] = {
        "memcached": _Memcached,
        "postgresql": _PostgreSQL,
        "redis": _Redis,
    }
    return servers[kind]()
