"""
Real memcached servers for tests.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from urllib.parse import unquote_to_bytes

from twsessions.test.real import freePort, missing

__all__ = ["Client", "Server"]

_PATIENCE = 20.0  # seconds for a server to do what it is to do


class Client:
    """
    A connection that waits for each answer.
    """

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), 5.0)
        self._file = self._socket.makefile("rb")

    def close(self) -> None:
        """
        Hang up.
        """
        self._file.close()
        self._socket.close()

    def line(self, command: bytes) -> bytes:
        """
        Say something that is answered in one line.
        """
        self._socket.sendall(command + b"\r\n")
        return self._file.readline().removesuffix(b"\r\n")

    def lines(self, command: bytes) -> list[bytes]:
        """
        Say something that is answered in lines, up to an C{END}.
        """
        found = [self.line(command)]
        while found[-1] != b"END":
            assert found[-1], f"no answer to {command!r}"
            found.append(self._file.readline().removesuffix(b"\r\n"))
        return found[:-1]

    def get(self, name: bytes) -> bytes | None:
        """
        The value under a name.
        """
        head = self.line(b"get " + name)
        if head == b"END":
            return None
        value = self._file.read(int(head.split(b" ")[3]) + 2)[:-2]
        assert self._file.readline() == b"END\r\n"
        return value

    def set(self, name: bytes, value: bytes, until: int = 0) -> None:
        """
        Store a value, whatever is there.
        """
        head = b"set %b 0 %d %d\r\n" % (name, until, len(value))
        assert self.line(head + value) == b"STORED"

    def delete(self, name: bytes) -> bool:
        """
        Forget a value.
        """
        return self.line(b"delete " + name) == b"DELETED"

    def ttl(self, name: bytes) -> int:
        """
        Seconds until an item goes; -1: it does not.
        """
        head = self.line(b"mg " + name + b" t")
        assert head.startswith(b"HD t"), head
        return int(head[4:])

    def names(self) -> set[bytes]:
        """
        What there is.
        """
        found: set[bytes] = set()
        for _ in range(3):  # an item that is just being used is left out
            for line in self.lines(b"lru_crawler metadump all"):
                found.add(unquote_to_bytes(line.split(b" ")[0].removeprefix(b"key=")))
        return found

    def stat(self, name: bytes) -> bytes:
        """
        One of its statistics.
        """
        return dict(line[5:].split(b" ", 1) for line in self.lines(b"stats"))[name]


class Server:
    """
    A C{memcached} process.

    @ivar port: where it listens; the same after a restart.
    """

    def __init__(self, *options: str) -> None:
        """
        @param options: of its command line.
        """
        program = shutil.which("memcached") or shutil.which("memcached", path="/usr/sbin:/usr/bin")
        if program is None:
            missing("memcached")
        self.port = freePort()
        user = ("-u", "nobody") if os.geteuid() == 0 else ()
        self._command = [program, "-l", "127.0.0.1", "-p", str(self.port), *user, *options]
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """
        Begin, with nothing stored; returns when it answers.
        """
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        end = time.monotonic() + _PATIENCE
        while time.monotonic() < end:
            try:
                self.client().close()
                return
            except OSError:
                assert self._process.poll() is None, "memcached does not start"
                time.sleep(0.01)
        raise AssertionError("memcached does not answer")

    def client(self) -> Client:
        """
        A connection to it.
        """
        return Client(self.port)

    def pause(self) -> None:
        """
        Let it hang.
        """
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        os.waitpid(self._process.pid, os.WUNTRACED)  # all of its threads

    def resume(self) -> None:
        """
        Let it go on.
        """
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """
        Kill it: all it knows is gone.
        """
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
