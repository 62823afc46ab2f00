"""
A client for a server that is measured: many browsers on 32 connections, of
which each always has a request under way.
"""

from __future__ import annotations

import socket
import sys

CONNECTIONS = 32


class Connection:
    """
    One connection, shared by some browsers that take turns.
    """

    def __init__(self, port: int, browsers: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.reader = self.socket.makefile("rb")
        self.jar = [b""] * browsers
        self.turn = 0

    def ask(self, path: bytes = b"/") -> None:
        """
        Send the next browser's request.
        """
        self.turn = (self.turn + 1) % len(self.jar)
        cookie = self.jar[self.turn]
        head = b"Cookie: %s\r\n" % cookie if cookie else b""
        self.socket.sendall(b"GET %s HTTP/1.1\r\nHost: x\r\n%s\r\n" % (path, head))

    def hear(self) -> None:
        """
        Read the response, and keep its cookie.
        """
        length = 0
        status = self.reader.readline()
        assert b" 200 " in status, status
        while (line := self.reader.readline().strip()) != b"":
            name, _, value = line.partition(b": ")
            if name.lower() == b"content-length":
                length = int(value)
            elif name.lower() == b"set-cookie":
                self.jar[self.turn] = value.partition(b";")[0]
        self.reader.read(length)


def main(port: int, browsers: int, requests: int) -> None:
    connections = [Connection(port, browsers // CONNECTIONS) for _ in range(CONNECTIONS)]

    def everywhere(requests: int) -> None:
        for connection in connections:
            connection.ask()
        for _ in range(requests // CONNECTIONS - 1):
            for connection in connections:
                connection.hear()
                connection.ask()
        for connection in connections:
            connection.hear()

    everywhere(browsers)
    connections[0].ask(b"/mark")
    connections[0].hear()
    everywhere(requests)
    connections[0].ask(b"/mark")
    connections[0].hear()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
