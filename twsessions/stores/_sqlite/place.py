"""
Whether the path still leads to the file that is open.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from math import inf
from typing import Final

from twsessions.errors import StoreUnavailable

__all__ = ["Place"]

_LOOK: Final = 1.0  # seconds between two looks
_Files = list[tuple[int, int] | None]  # what there is: the database, its -wal, its -shm


class Place:
    """
    SQLite does not look, and what goes into a file that was deleted, or that
    another was moved over, is lost with the process.

    For both workers at once: a dict's single operations are atomic.
    """

    def __init__(self, path: str, now: Callable[[], float]) -> None:
        """
        @param now: the time in seconds.
        """
        self._path = path
        self._now = now
        self._looked = -inf
        self._there: _Files = []
        self._open: dict[object, _Files] = {}

    def opening(self) -> None:
        """
        Somebody is about to open what is there.

        @raise StoreUnavailable: not beside what another has open.
        """
        self._look()
        for files in self._open.copy().values():
            self._leads(files)

    def opened(self, who: object) -> None:
        """
        Somebody has opened what is there.
        """
        self._look()
        self._open[who] = self._there

    def closed(self, who: object) -> None:
        """
        Somebody has it open no more.
        """
        self._open.pop(who, None)

    def isOpenBy(self, who: object) -> bool:
        """
        Whether what somebody has open is there, as far as known: it is looked
        at now and then.

        @raise StoreUnavailable: it is not, and what is there cannot be opened.
        """
        if not 0 <= self._now() - self._looked < _LOOK:
            self._look()
        files = self._open[who]
        return files is self._there or self._leads(files)

    def _look(self) -> None:
        path = os.path.realpath(self._path)
        self._looked = self._now()
        there = [_identity(path + end) for end in ("", "-wal", "-shm")]
        if there != self._there:
            self._there = there

    def _leads(self, files: _Files) -> bool:
        database, *beside = self._there
        if database == files[0]:
            return True
        if any(one is not None and one in files for one in beside):
            # With these, SQLite would make one damaged file of the two.
            raise StoreUnavailable(
                f"the session database {self._path} was deleted or replaced while it was in use: "
                "remove the -wal and -shm files beside it, which are not its own"
            )
        return False


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
