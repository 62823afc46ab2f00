"""
A client that has seen the response finds its changes, after a SIGKILL; after a
SIGTERM also those that nobody has committed.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import twsessions

KILLS = 25
TERMS = 5
CLIENTS = 6
PATIENCE = 10.0  # seconds for a server to end

SERVER = """
import socket, sys
from twisted.internet import reactor
from twisted.web.resource import Resource
from twsessions import SessionSite

class Count(Resource):
    isLeaf = True
    def render_GET(self, request):
        session = request.getSession()
        session["n"] = session.get("n", 0) + 1
        session["filler"] = "x" * session["n"]
        n, late = session["n"], session.get("late", 0)
        request.notifyFinish().addCallback(lambda _: session.update(late=n))
        return b"%d %d" % (n, late)

site = SessionSite(Count(), store="sqlite:///" + sys.argv[1])
site.displayTracebacks = True
listening = socket.socket(fileno=int(sys.argv[2]))
reactor.adoptStreamPort(listening.fileno(), socket.AF_INET, site)
print("up", flush=True)
reactor.run()
"""


class Client:
    """
    Counts, one request after the other, until the server dies.

    @ivar seen: what the last answer said.
    @ivar unknown: requests since then, which may have been done or not.
    """

    def __init__(self, number: signal.Signals) -> None:
        self.number = number
        self.cookie, self.seen, self.unknown = "", 0, 0
        self.problem = ""

    def run(self, address: tuple[str, int]) -> None:
        self.first = True
        try:
            with socket.create_connection(address, timeout=20) as connection:
                file = connection.makefile("rb")
                while not self.problem:
                    self.visit(connection, file)
        except (OSError, EOFError):
            pass  # killed

    def visit(self, connection: socket.socket, file: object) -> None:
        cookie = f"Cookie: {self.cookie}\r\n" if self.cookie else ""
        self.unknown += 1
        connection.sendall(f"GET / HTTP/1.1\r\nHost: x\r\n{cookie}\r\n".encode())
        status = file.readline()  # type: ignore[attr-defined]
        headers = {}
        while (line := file.readline().strip()) != b"":  # type: ignore[attr-defined]
            name, _, value = line.partition(b": ")
            headers[name.lower()] = value
        length = headers.get(b"content-length")
        if length is None:
            raise EOFError
        body = file.read(int(length))  # type: ignore[attr-defined]
        if len(body) < int(length):
            raise EOFError
        if b"503" in status and self.number == signal.SIGTERM:
            raise EOFError  # it is stopping
        if b"200" not in status:
            self.problem = f"{status!r} {body[:500]!r}"
            return
        if b"set-cookie" in headers:
            if self.cookie:
                self.problem = "the session was lost"
                return
            self.cookie = headers[b"set-cookie"].partition(b";")[0].decode()
        count, late = map(int, body.split())
        if not self.seen < count <= self.seen + self.unknown:
            self.problem = f"{count} after {self.seen} and {self.unknown} requests"
        # What was set late a SIGKILL may have taken.
        if not (0 if self.first and self.number == signal.SIGKILL else self.seen) <= late < count:
            self.problem = f"{late}, which was set late, after {self.seen} and before {count}"
        self.seen, self.unknown, self.first = count, 0, False


@pytest.mark.parametrize(("number", "times"), [(signal.SIGKILL, KILLS), (signal.SIGTERM, TERMS)])
def test_endsUnderLoadLoseNothing(tmp_path: Path, number: signal.Signals, times: int) -> None:
    """
    C{n} is stored before the response leaves; C{late} is set when it has left,
    and waits for the next commit.
    """
    environment = dict(os.environ, PYTHONPATH=str(Path(twsessions.__file__).parents[1]))
    chance = random.Random(20)
    clients = [Client(number) for _ in range(CLIENTS)]
    for _ in range(times):
        # The server alone has it, and takes with it who was not yet accepted.
        with socket.create_server(("127.0.0.1", 0), backlog=64) as listening:
            address = listening.getsockname()
            listening.setblocking(False)  # the server must not wait in accept()
            server = subprocess.Popen(
                [sys.executable, "-c", SERVER, str(tmp_path / "s.db"), str(listening.fileno())],
                pass_fds=[listening.fileno()],
                stdout=subprocess.PIPE,
                env=environment,
            )
        assert server.stdout is not None
        threads = [
            threading.Thread(target=client.run, args=(address,), daemon=True) for client in clients
        ]
        try:
            assert server.stdout.readline() == b"up\n"
            for thread in threads:
                thread.start()
            threads[0].join(chance.uniform(0.02, 0.25))  # let it be at any place
        finally:
            server.send_signal(number)
            server.wait(PATIENCE)
            server.stdout.close()
        for client, thread in zip(clients, threads, strict=True):
            thread.join(PATIENCE)
            assert not thread.is_alive() and client.problem == "", client.problem
        assert server.returncode == (0 if number == signal.SIGTERM else -number)
    assert min(client.seen for client in clients) > times
