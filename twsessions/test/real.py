"""
What fixtures that start real servers share: ports, and what to do without one.
"""

from __future__ import annotations

import os
import random
import socket
from typing import NoReturn

import pytest

__all__ = ["PATIENCE", "freePort", "missing"]

# Seconds that a store waits for its server in tests which are not about that:
# the machine may have other things to do.
PATIENCE = 10.0

# Below the ports that systems give out by themselves: nobody's connection can
# take one between our look and the server's start. 10000 above, and above all
# of these, lie the second ports of a Redis cluster.
_FIRST, _LAST = 11000, 21000

# Hypothesis seeds the common generator, the same way in every process.
_random = random.SystemRandom()


def missing(what: str) -> NoReturn:
    """
    Skip a test because something is not installed; in CI that is a failure.
    """
    if os.environ.get("CI"):
        pytest.fail(f"{what} is not installed")
    pytest.skip(f"{what} is not installed")


_given: set[int] = set()  # several servers are made before the first of them starts


def freePort() -> int:
    """
    A port that nobody listens on, nor on the one 10000 above; another one each
    time.
    """
    while True:
        port = _random.randrange(_FIRST, _LAST)
        if port in _given:
            continue
        try:
            for number in (port, port + 10000):
                with socket.socket() as one:
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    one.bind(("127.0.0.1", number))
        except OSError:
            continue
        _given.add(port)
        return port
