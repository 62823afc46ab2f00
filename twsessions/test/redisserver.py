"""
Real Redis servers for tests: one, with Sentinels, or a cluster.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hiredis

from twsessions.test.real import freePort, missing

__all__ = ["Cluster", "Server", "call", "until"]

_PATIENCE = 20.0  # seconds for a server to do what it is to do
_NEVER = 15000  # ms; so long that no node of a cluster is taken for dead unless a test asks for it


def until(holds: Callable[[], Any], what: str) -> Any:
    """
    Wait for something of another process.
    """
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end:
        try:
            result = holds()
        except (OSError, EOFError, hiredis.ReplyError):
            result = None
        if result:
            return result
        time.sleep(0.02)
    raise AssertionError(f"not in {_PATIENCE} s: {what}")


def call(port: int, *words: Any, password: str | None = None) -> Any:
    """
    Have a server do one command, and wait for its reply.

    @raise hiredis.ReplyError: it refused.
    """
    with socket.create_connection(("127.0.0.1", port), 5.0) as connection:
        count = 1
        if password is not None:
            count = 2
            connection.sendall(hiredis.pack_command(("AUTH", password)))
        connection.sendall(hiredis.pack_command(words))
        reader = hiredis.Reader()
        while True:
            reply = reader.gets()
            if reply is not False:
                count -= 1
                if isinstance(reply, hiredis.ReplyError):
                    raise reply
                if not count:
                    return reply
                continue
            data = connection.recv(1 << 16)
            if not data:
                raise EOFError
            reader.feed(data)


class Server:
    """
    A C{redis-server} process with a directory of its own.

    @ivar port: where it listens.
    """

    def __init__(self, *options: str, program: str = "redis-server") -> None:
        """
        @param options: lines of its configuration.
        """
        found = shutil.which(program)
        if found is None:
            missing(program)
        self._program = str(found)
        self.port = freePort()
        self.directory = tempfile.mkdtemp(prefix="twsessions-redis-")
        lines = [f'dir "{self.directory}"', "bind 127.0.0.1", "daemonize no", *options]
        if not any(line.startswith("port ") for line in lines):
            lines.append(f"port {self.port}")
        self._config = os.path.join(self.directory, "server.conf")
        with open(self._config, "w") as file:
            file.write("\n".join(lines) + "\n")
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *more: str) -> None:
        """
        Start it, or start it again.
        """
        with open(os.path.join(self.directory, "log"), "ab") as log:
            self.process = subprocess.Popen(
                [self._program, self._config, *more], stdout=log, stderr=log
            )

        def listens() -> bool:
            if self.process is None or self.process.poll() is not None:
                log = Path(self.directory, "log").read_text(errors="replace")
                raise AssertionError(f"it does not start: {log[-2000:]}")
            with socket.create_connection(("127.0.0.1", self.port), 1.0):
                return True

        until(listens, "the server listens")

    def call(self, *words: Any) -> Any:
        """
        See L{call}.
        """
        return call(self.port, *words)

    def send(self, number: int) -> None:
        """
        Send it a signal.
        """
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """
        End it without a word.
        """
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def stop(self) -> None:
        """
        End it, and remove what it has kept.
        """
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)


class Cluster:
    """
    Masters, each with a replica.

    @ivar masters: in the order of their slots; see L{recover}.
    @ivar replicas: of the master at the same place.
    """

    def __init__(self, count: int = 3, program: str = "redis-server") -> None:
        options = (
            "cluster-enabled yes",
            "cluster-config-file nodes.conf",
            "cluster-node-timeout 700",
            "cluster-require-full-coverage no",
            "cluster-replica-validity-factor 0",
            "repl-diskless-sync-delay 0",
            'save ""',
        )
        self.servers = [Server(*options, program=program) for _ in range(2 * count)]
        self.masters, self.replicas = self.servers[:count], self.servers[count:]

    def start(self) -> None:
        """
        Start all, and make them one cluster.
        """
        for server in self.servers:
            server.start()
        count = len(self.masters)
        for place, master in enumerate(self.masters):
            first, last = 16384 * place // count, 16384 * (place + 1) // count - 1
            master.call("CLUSTER", "ADDSLOTSRANGE", first, last)
            master.call("CLUSTER", "SET-CONFIG-EPOCH", place + 1)

        def known(server: Server) -> int:
            lines = server.call("CLUSTER", "NODES").splitlines()
            return sum(b" connected" in line and b"handshake" not in line for line in lines)

        def allMet() -> bool:
            for server in self.servers:
                if known(server) < count * 2:  # a handshake that takes too long is given up
                    server.call("CLUSTER", "MEET", "127.0.0.1", self.masters[0].port)
            time.sleep(0.1)
            return all(known(server) == count * 2 for server in self.servers)

        until(allMet, "all nodes have met")
        for master, replica in zip(self.masters, self.replicas, strict=True):
            name = master.call("CLUSTER", "MYID")

            def replicate(replica: Server = replica, name: bytes = name) -> bool:
                return bool(replica.call("CLUSTER", "REPLICATE", name) == b"OK")

            until(replicate, "a replica knows its master")
        self.recover()

    def fail(self, after: float) -> None:
        """
        Have a node that does not answer taken for dead, and its replica take over.

        @param after: seconds.
        """
        self._takeForDead(int(after * 1000))

    def _takeForDead(self, after: int) -> None:
        for server in self.servers:
            server.call("CONFIG", "SET", "cluster-node-timeout", after)

    def isWhole(self) -> bool:
        """
        Whether all living nodes are of one mind about who is the master of
        what, each is what it is taken for, and every replica has what its
        master has.
        """
        layouts = set()
        for server in self.servers:
            if server.process is None:
                continue
            info = server.call("CLUSTER", "INFO")
            if b"cluster_state:ok" not in info or b"cluster_slots_ok:16384" not in info:
                return False
            slots = server.call("CLUSTER", "SLOTS")
            layout = {(first, last, master[1]) for first, last, master, *_ in slots}
            layouts.add(frozenset(layout))
            replication = server.call("INFO", "replication")
            isMaster = b"role:master" in replication
            if isMaster is not (server.port in {port for _, _, port in layout}):
                return False
            if not isMaster and b"master_link_status:up" not in replication:
                return False
        return len(layouts) == 1

    def recover(self) -> None:
        """
        Have all nodes run and agree, whatever was done to them, and note who is
        a master now.  Undoes L{fail}.
        """
        for server in self.servers:
            if server.process is None:
                server.start()
            server.send(signal.SIGCONT)
        until(self.isWhole, "the cluster is whole")
        self._takeForDead(_NEVER)
        for place, master in enumerate(self.masters):
            if master.call("ROLE")[0] != b"master":
                self.masters[place], self.replicas[place] = self.replicas[place], master

    def stop(self) -> None:
        """
        End all.
        """
        for server in self.servers:
            server.stop()


class Sentinels:
    """
    A master, a replica, and three Sentinels that watch them.

    @ivar service: what they call it.
    """

    service = "sessions"

    def __init__(self, password: str | None = None) -> None:
        """
        @param password: of the servers; Sentinels have none.
        """
        secret = [f"requirepass {password}", f"masterauth {password}"] if password else []
        options = ['save ""', "repl-diskless-sync-delay 0", *secret]
        self.password = password
        self.master = Server(*options)
        self.replica = Server(*options, f"replicaof 127.0.0.1 {self.master.port}")
        auth = [f"sentinel auth-pass {self.service} {password}"] if password else []
        self.sentinels = [
            Server(
                f"sentinel monitor {self.service} 127.0.0.1 {self.master.port} 2",
                f"sentinel down-after-milliseconds {self.service} 500",
                f"sentinel failover-timeout {self.service} 3000",
                *auth,
                program="redis-sentinel",
            )
            for _ in range(3)
        ]

    def start(self) -> None:
        """
        Start all, until they know of each other.
        """
        for server in (self.master, self.replica, *self.sentinels):
            server.start()

        def know() -> bool:
            for sentinel in self.sentinels:
                reply = sentinel.call("SENTINEL", "MASTER", self.service)
                facts = dict(zip(reply[::2], reply[1::2], strict=True))
                if (facts[b"num-slaves"], facts[b"num-other-sentinels"]) != (b"1", b"2"):
                    return False
            return b"master_link_status:up" in call(
                self.replica.port, "INFO", "replication", password=self.password
            )

        until(know, "the Sentinels know of all")

    def stop(self) -> None:
        """
        End all.
        """
        for server in (*self.sentinels, self.replica, self.master):
            server.stop()
