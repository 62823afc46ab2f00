"""
The SQLite store keeps the contract: at once on a Clock, and on threads.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable

import pytest_twisted
from twisted.internet import reactor

from twsessions.stores._threads import InlineWorker, ThreadWorker
from twsessions.stores.sqlite import SQLiteStore
from twsessions.testing.contract import StoreContractMixin


class _InAFile(StoreContractMixin):
    def setup_method(self) -> None:
        self.directory = tempfile.mkdtemp()

    def teardown_method(self) -> None:
        shutil.rmtree(self.directory)

    @property
    def path(self) -> str:
        return os.path.join(self.directory, "sessions.db")

    async def makeStore(self) -> SQLiteStore:
        return SQLiteStore(self.path, self.clock.seconds, InlineWorker(), InlineWorker())

    async def reopen(self, store: SQLiteStore) -> SQLiteStore:
        return await _InAFile.makeStore(self)

    async def rawBytes(self, store: SQLiteStore) -> bytes:
        raw = b""
        for name in os.listdir(self.directory):
            with open(os.path.join(self.directory, name), "rb") as file:
                raw += file.read()
        return raw

    async def corrupt(
        self, store: SQLiteStore, key: bytes, mutate: Callable[[bytes], bytes]
    ) -> bool:
        with sqlite3.connect(self.path, isolation_level=None) as connection:
            ((record,),) = connection.execute("SELECT record FROM session WHERE key = ?", (key,))
            connection.execute("UPDATE session SET record = ? WHERE key = ?", (mutate(record), key))
        connection.close()
        return True


class TestSQLiteStore(_InAFile, run=pytest_twisted.ensureDeferred):
    pass


class TestSQLiteStoreOnThreads(_InAFile, run=pytest_twisted.ensureDeferred):
    async def makeStore(self) -> SQLiteStore:
        return SQLiteStore(
            self.path,
            self.clock.seconds,
            ThreadWorker(reactor, "reader"),
            ThreadWorker(reactor, "writer"),
        )
