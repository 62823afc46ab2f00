"""
Web servers and data servers, started to be measured.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.harness import CORES, ROOT

BROWSERS, REQUESTS = 960, 9600

# A web server has a core to itself, and its client and its data are on the other:
# else the time it takes depends on who else is there, and threads of one
# interpreter that pass its lock from core to core take half as long again.
APART = {CORES[0]}, {CORES[-1]}


def freePort() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        number: int = free.getsockname()[1]
    return number


@contextmanager
def running(
    words: list[str], port: int, cores: set[int] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """
    A process, when it listens.

    @param cores: where it runs; by default anywhere.
    """
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    environment["NODE_PATH"] = str(ROOT / "build" / "peers" / "node_modules")
    process = subprocess.Popen(
        words,
        env=environment,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        preexec_fn=lambda: os.sched_setaffinity(0, cores or CORES),
    )
    try:
        until = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > until:
                    raise
                time.sleep(0.02)
        yield process
    finally:
        process.kill()
        process.wait()


@contextmanager
def redis() -> Iterator[int]:
    """
    A Redis that keeps nothing on disk; gives its port.
    """
    port = freePort()
    words = ["redis-server", "--port", str(port), "--save", "", "--loglevel", "warning"]
    with running(words, port, APART[1]):
        yield port


def perRequest(program: list[str], data: str, path: str) -> float:
    """
    CPU microseconds of a web server for each request.

    @param program: how it is started; its port and C{data} are added.
    """
    port = freePort()
    with running([*program, str(port), data], port, APART[0]) as process:
        client = [sys.executable, "-m", "benchmarks.client", str(process.pid), str(port), path]
        counts = [str(BROWSERS), str(REQUESTS)]
        done = subprocess.run(
            [*client, *counts],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            check=True,
            timeout=300,
            preexec_fn=lambda: os.sched_setaffinity(0, APART[1]),
        )
        return float(done.stdout)


def python(module: str) -> list[str]:
    return [sys.executable, "-m", f"benchmarks.peers.{module}"]
