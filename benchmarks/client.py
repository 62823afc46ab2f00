"""
A client for a server that is measured: many browsers on 32 connections, of
which each always has a request under way.

Prints the CPU time that the server took for each request, in microseconds.
"""

from __future__ import annotations

import os
import socket
import sys

CONNECTIONS = 32


class Connection:
    """
    One connection, shared by some browsers that take turns.
    """

    def __init__(self, port: int, path: bytes, browsers: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.reader = self.socket.makefile("rb")
        self.path = path
        self.jar = [b""] * browsers
        self.counts = [0] * browsers
        self.turn = 0

    def ask(self) -> None:
        """
        Send the next browser's request.
        """
        self.turn = (self.turn + 1) % len(self.jar)
        cookie = self.jar[self.turn]
        head = b"Cookie: %s\r\n" % cookie if cookie else b""
        self.socket.sendall(b"GET %s HTTP/1.1\r\nHost: x\r\n%s\r\n" % (self.path, head))

    def hear(self) -> None:
        """
        Read the response, keep its cookie, and see that nothing was lost.
        """
        length = 0
        status = self.reader.readline()
        assert b" 200 " in status, status
        while (line := self.reader.readline().strip()) != b"":
            name, _, value = line.partition(b": ")
            if name.lower() == b"content-length":
                length = int(value)
            elif name.lower() == b"transfer-encoding":
                length = -1
            elif name.lower() == b"set-cookie":
                self.jar[self.turn] = value.partition(b";")[0].strip()
        body = self._chunks() if length < 0 else self.reader.read(length)
        if body != b"ok":
            self.counts[self.turn] += 1
            assert int(body) == self.counts[self.turn], (body, self.counts[self.turn])

    def _chunks(self) -> bytes:
        body = b""
        while size := int(self.reader.readline(), 16):
            body += self.reader.read(size)
            self.reader.readline()
        self.reader.readline()
        return body


def spent(pid: int) -> float:
    """
    Seconds of CPU time that a process has taken.
    """
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main(pid: int, port: int, path: str, browsers: int, requests: int) -> None:
    some = [Connection(port, path.encode(), browsers // CONNECTIONS) for _ in range(CONNECTIONS)]

    def everywhere(requests: int) -> None:
        for connection in some:
            connection.ask()
        for _ in range(requests // CONNECTIONS - 1):
            for connection in some:
                connection.hear()
                connection.ask()
        for connection in some:
            connection.hear()

    everywhere(2 * browsers)
    before = spent(pid)
    everywhere(requests)
    print((spent(pid) - before) / requests * 1e6)


if __name__ == "__main__":
    process, port, path, *counts = sys.argv[1:]
    main(int(process), int(port), path, *map(int, counts))
