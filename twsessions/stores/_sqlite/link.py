"""
A connection to the file, which is opened when it is needed, and again when it
has to be.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Concatenate, ParamSpec, TypeVar

from twisted.internet.defer import Deferred

from twsessions.errors import StoreUnavailable
from twsessions.stores._sqlite.file import explain, isPassing, openFile
from twsessions.stores._sqlite.place import Place
from twsessions.stores._threads import Worker

__all__ = ["Link"]

P = ParamSpec("P")
T = TypeVar("T")


class Link:
    """
    One connection and the worker that alone uses it.
    """

    def __init__(
        self, path: str, place: Place, worker: Worker, synchronous: str, patience: float
    ) -> None:
        self.worker = worker
        self._path = path
        self._place = place
        self._options = (synchronous, patience)
        self._connection: sqlite3.Connection | None = None

    def do(
        self,
        f: Callable[Concatenate[sqlite3.Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Deferred[T]:
        """
        Have the worker call C{f} with the connection; faults come out
        explained.
        """
        return self.worker.do(self._run, f, args, kwargs)

    def close(self) -> Deferred[None]:
        """
        Have the worker close the connection, if there is one.
        """
        return self.worker.do(self._drop)

    def _run(self, f: Callable[..., T], args: Any, kwargs: Any) -> T:
        try:
            if self._connection is None:
                self._place.opening()
                self._connection = openFile(self._path, *self._options)
                self._place.opened(self)
            elif not self._place.isOpenBy(self):
                self._drop()
                raise StoreUnavailable(
                    f"the session database {self._path} was deleted or replaced while it was in "
                    "use; what is there now is used from here on"
                )
            return f(self._connection, *args, **kwargs)
        except (sqlite3.Error, OSError) as error:
            if not isPassing(error):
                with suppress(StoreUnavailable):
                    self._drop()  # what was mended is seen by a new connection
            raise explain(error, self._path) from error

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            self._place.closed(self)
            try:
                connection.close()
            except sqlite3.Error as error:
                raise explain(error, self._path) from error
