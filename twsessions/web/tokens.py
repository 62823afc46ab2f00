"""
Names for changes, by which a store knows one that is sent again.
"""

from __future__ import annotations

import os
from collections.abc import Callable

__all__ = ["Tokens"]

_forks = 0


def _forked() -> None:
    global _forks
    _forks += 1


os.register_at_fork(after_in_child=_forked)


class Tokens:
    """
    Unique, not secret: no system call for each.
    """

    def __init__(self, entropy: Callable[[int], bytes]) -> None:
        self._entropy = entropy
        self._count, self._fork, self._start = 0, -1, b""

    def next(self) -> bytes:
        """
        One that there was not, 16 bytes.
        """
        if self._fork != _forks:  # a child must not go on with its parent's
            self._fork, self._start = _forks, self._entropy(12)
        self._count += 1
        return self._start + (self._count & 0xFFFFFFFF).to_bytes(4, "big")
