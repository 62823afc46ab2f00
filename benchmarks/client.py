"""
A client for a server that is measured: many browsers on a few connections.
"""

from __future__ import annotations

import socket
import sys
import threading

CONNECTIONS = 16


def ask(file: socket.socket, reader: object, path: str, cookie: str) -> str:
    """
    One request; returns the cookie to send next.
    """
    head = f"Cookie: {cookie}\r\n" if cookie else ""
    file.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n{head}\r\n".encode())
    length = 0
    status = reader.readline()  # type: ignore[attr-defined]
    assert b" 200 " in status, status
    while (line := reader.readline().strip()) != b"":  # type: ignore[attr-defined]
        name, _, value = line.partition(b": ")
        if name.lower() == b"content-length":
            length = int(value)
        elif name.lower() == b"set-cookie":
            cookie = value.partition(b";")[0].decode()
    reader.read(length)  # type: ignore[attr-defined]
    return cookie


def main(port: int, browsers: int, requests: int) -> None:
    jars = [[""] * (browsers // CONNECTIONS) for _ in range(CONNECTIONS)]
    connections = [socket.create_connection(("127.0.0.1", port)) for _ in jars]
    readers = [connection.makefile("rb") for connection in connections]

    def work(number: int, times: int) -> None:
        jar = jars[number]
        for turn in range(times):
            at = turn % len(jar)
            jar[at] = ask(connections[number], readers[number], "/", jar[at])

    def everywhere(times: int) -> None:
        threads = [threading.Thread(target=work, args=(n, times)) for n in range(CONNECTIONS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    everywhere(browsers // CONNECTIONS)
    ask(connections[0], readers[0], "/mark", "")
    everywhere(requests // CONNECTIONS)
    ask(connections[0], readers[0], "/mark", "")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
