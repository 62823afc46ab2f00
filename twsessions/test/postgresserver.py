"""
A real PostgreSQL server for tests, and a proxy that cuts connections to it.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet.interfaces import IListeningPort
from twisted.internet.protocol import ClientFactory, Factory, Protocol

from twsessions.test.real import freePort, missing

try:
    import psycopg
except ImportError:
    psycopg = None

__all__ = ["PASSWORD", "Proxy", "Server"]

PASSWORD = "p@ss:w/rd?#"
"""The superuser's."""

_PATIENCE = 30.0  # seconds for a server to do what it is to do


class Server:
    """
    A server in a directory of its own, on a port of 127.0.0.1 and on a socket
    in C{directory}.
    """

    def __init__(self, *settings: str, of: Server | None = None) -> None:
        """
        @param settings: for its configuration, like C{"fsync=off"}.
        @param of: it is a hot standby of that one.
        """
        self._settings = ("fsync=off", "max_connections=100", *settings)
        self._bin = _programs()
        self._user = _user()
        self._process: subprocess.Popen[bytes] | None = None
        self.port = freePort()
        self.directory = tempfile.mkdtemp(prefix="twsessions-pg-", dir="/tmp")
        self._log = Path(self.directory, "log")
        self._log.touch()
        if self._user is not None:
            os.chown(self.directory, self._user, -1)
            os.chown(self._log, self._user, -1)
        self.data = os.path.join(self.directory, "data")
        if of is not None:
            self._run(
                "pg_basebackup", "-D", self.data, "-h", of.directory, "-p", str(of.port),
                "-U", "root", "-R", "-X", "stream", "-c", "fast",
            )  # fmt: skip
            return
        secret = Path(self.directory, "password")
        secret.write_text(PASSWORD + "\n")
        self._run(
            "initdb", "-D", self.data, "-U", "root", "-E", "UTF8", "--locale=C", "--no-sync",
            "--auth-host=scram-sha-256", "--auth-local=trust", f"--pwfile={secret}",
        )  # fmt: skip

    def url(self, query: str = "", port: int | None = None) -> str:
        """
        Where it is, as C{storeFromURL} takes it.
        """
        password = "p%40ss%3Aw%2Frd%3F%23"
        return f"postgresql://root:{password}@127.0.0.1:{port or self.port}/postgres{query}"

    def start(self) -> None:
        """
        Start it and wait until it can be used.
        """
        end = time.monotonic() + _PATIENCE
        while time.monotonic() < end:
            # Again and again: what was killed may hold its shared memory yet.
            if self._process is None or self._process.poll() is not None:
                self._process = self._spawn()
            try:
                self.query("SELECT 1")
                return
            except psycopg.OperationalError:
                time.sleep(0.05)
        raise AssertionError("PostgreSQL does not start: " + self._log.read_text()[-2000:])

    def query(self, statement: str, *values: object, role: str = "root") -> list[Any]:
        """
        What a statement gives, asked by another connection.
        """
        where = f"host={self.directory} port={self.port} dbname=postgres user={role}"
        with psycopg.connect(where, autocommit=True, connect_timeout=5) as connection:
            cursor = connection.execute(statement, values or None)
            return cursor.fetchall() if cursor.description else []

    def clear(self, schema: str = "twsessions") -> None:
        """
        Forget all that is stored.
        """
        if self.query("SELECT to_regclass(%s)", schema + ".session") == [(None,)]:
            return
        names = ", ".join(f"{schema}.{t}" for t in ("session", "ending", "lease", "quarantine"))
        self.query(f"TRUNCATE {names}; DELETE FROM {schema}.meta WHERE name <> 'schema'")

    def signal(self, number: int) -> None:
        """
        Send a signal to every process of the server.
        """
        assert self._process is not None
        pid = self._process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for one in (pid, *map(int, children)):
            try:
                os.kill(one, number)
            except ProcessLookupError:
                pass

    def pause(self) -> None:
        """
        It hangs, connections included.
        """
        self.signal(signal.SIGSTOP)

    def resume(self) -> None:
        """
        It goes on.
        """
        self.signal(signal.SIGCONT)

    def kill(self) -> None:
        """
        It dies on the spot.
        """
        self.signal(signal.SIGKILL)
        assert self._process is not None
        self._process.wait(_PATIENCE)

    def stop(self) -> None:
        """
        Stop it and forget everything.
        """
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(_PATIENCE)
        shutil.rmtree(self.directory, ignore_errors=True)

    def _spawn(self) -> subprocess.Popen[bytes]:
        options = [f"-c{setting}" for setting in self._settings]
        with open(self._log, "ab") as log:
            return subprocess.Popen(
                [
                    os.path.join(self._bin, "postgres"), "-D", self.data, "-p", str(self.port),
                    "-h", "127.0.0.1", "-k", self.directory, *options,
                ],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.directory,
                user=self._user, start_new_session=True,
            )  # fmt: skip

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [os.path.join(self._bin, program), *arguments],
            check=True, timeout=60, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            cwd=self.directory, user=self._user,
        )  # fmt: skip


def _programs() -> str:
    if psycopg is None:
        missing("psycopg")
    homes = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    found = str(homes[-1]) if homes else shutil.which("initdb")
    if found is None:
        missing("PostgreSQL")
    return os.path.dirname(str(found))


def _user() -> int | None:
    """
    PostgreSQL refuses to run as root.
    """
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name).pw_uid
        except KeyError:
            continue
    raise AssertionError("there is no user to run PostgreSQL as")


class Proxy:
    """
    Between a store and its server: passes everything on, up to a point.

    @ivar allowance: how many bytes may still go to the server before the
        connection is cut; L{None}: any number.
    @ivar sent: bytes that went to the server.
    @ivar garble: what becomes of the server's bytes.
    """

    def __init__(self, reactor: Any, port: int) -> None:
        self.allowance: int | None = None
        self.sent = 0
        self.garble: Callable[[bytes], bytes] = lambda data: data
        self._reactor = reactor
        self._target = port
        self._ends: set[Protocol] = set()
        self._listening: IListeningPort = reactor.listenTCP(
            0, Factory.forProtocol(lambda: _Front(self)), interface="127.0.0.1"
        )
        self.port: int = self._listening.getHost().port  # type: ignore[attr-defined]

    def cut(self) -> None:
        """
        Cut all connections.
        """
        for end in list(self._ends):
            end.transport.abortConnection()  # type: ignore[union-attr]

    async def stop(self) -> None:
        """
        Cut all connections and take no more.
        """
        await self._listening.stopListening()
        self.cut()


class _End(Protocol):
    """
    One half of a connection through the proxy.
    """

    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy
        self.other: Any = None

    def connectionMade(self) -> None:
        self.proxy._ends.add(self)

    def connectionLost(self, reason: object = None) -> None:
        self.proxy._ends.discard(self)
        if self.other is not None and self.other.transport is not None:
            self.other.transport.loseConnection()


class _Front(_End):
    """
    The store's half.
    """

    def connectionMade(self) -> None:
        super().connectionMade()
        self.transport.pauseProducing()
        factory = ClientFactory()
        factory.noisy = False
        factory.buildProtocol = lambda address: _Back(self)  # type: ignore[method-assign]
        factory.clientConnectionFailed = (  # type: ignore[method-assign]
            lambda connector, reason: self.transport.abortConnection()
        )
        self.proxy._reactor.connectTCP("127.0.0.1", self.proxy._target, factory)

    def dataReceived(self, data: bytes) -> None:
        proxy = self.proxy
        if proxy.allowance is not None:
            data = data[: proxy.allowance]
            proxy.allowance -= len(data)
        proxy.sent += len(data)
        self.other.transport.write(data)
        if proxy.allowance == 0:
            self.transport.abortConnection()


class _Back(_End):
    """
    The server's half.
    """

    def __init__(self, front: _Front) -> None:
        super().__init__(front.proxy)
        self.other = front
        front.other = self

    def connectionMade(self) -> None:
        super().connectionMade()
        self.other.transport.resumeProducing()

    def dataReceived(self, data: bytes) -> None:
        self.other.transport.write(self.proxy.garble(data))
