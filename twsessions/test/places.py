"""
Where the processes of a test can share sessions: real servers, and a file.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["place"]


@contextmanager
def place(kind: str, directory: Path) -> Iterator[str]:
    """
    Give the URL of a store that nobody has used yet.

    @param kind: C{"sqlite"}, C{"redis"}, C{"postgresql"} or C{"memcached"}.
    """
    if kind == "sqlite":
        yield f"sqlite:///{directory / 's.db'}"
    elif kind == "redis":
        from twsessions.test import redisserver

        server = redisserver.Server()
        server.start()
        try:
            yield f"redis://127.0.0.1:{server.port}/0"
        finally:
            server.stop()
    else:
        raise ValueError(kind)
