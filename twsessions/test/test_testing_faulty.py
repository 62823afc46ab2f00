"""
Tests for L{twsessions.testing.faulty}.
"""

from __future__ import annotations

import pytest
import pytest_twisted
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase, TestCase

from twsessions.core.delta import Birth, Change
from twsessions.core.record import Record
from twsessions.errors import StoreUnavailable
from twsessions.interfaces import LOCAL
from twsessions.stores.memory import MemoryStore
from twsessions.testing.contract import StoreContractMixin
from twsessions.testing.faulty import FaultyStore

KEY = b"k" * 32
BIRTH = Change(KEY, b"born", Birth(b"s" * 16))


class TestWithoutFaults(StoreContractMixin, run=pytest_twisted.ensureDeferred):
    """
    As long as no fault is asked for it is a store like any other.
    """

    async def makeStore(self) -> FaultyStore:
        return FaultyStore(MemoryStore(self.clock.seconds))


class TrialTests(StoreContractMixin, TestCase):
    """
    Whoever uses trial has the contract without any C{run}.
    """

    async def makeStore(self) -> FaultyStore:
        return FaultyStore(MemoryStore(self.clock.seconds))


class FaultTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.store = FaultyStore(MemoryStore(Clock().seconds))

    def isStored(self) -> bool:
        return self.successResultOf(self.store.store.load([KEY])) != [None]

    def test_calls(self) -> None:
        self.successResultOf(self.store.load([KEY]))
        self.successResultOf(self.store.sweep(10))
        self.assertEqual(self.store.calls, [("load", ([KEY],)), ("sweep", (10,))])

    def test_neverLocal(self) -> None:
        self.assertEqual(self.store.capabilities, MemoryStore.capabilities - {LOCAL})

    def test_failNext(self) -> None:
        """
        Each announced failure is one call's, and that call does nothing.
        """
        self.store.failNext("commit")
        self.store.failNext("commit", OSError("disk"))
        self.failureResultOf(self.store.commit([BIRTH]), StoreUnavailable)
        self.successResultOf(self.store.load([KEY]))
        self.failureResultOf(self.store.commit([BIRTH]), OSError)
        self.assertFalse(self.isStored())
        self.successResultOf(self.store.commit([BIRTH]))
        self.assertTrue(self.isStored())

    def test_misspelt(self) -> None:
        for name in ("comit", "capabilities"):
            with pytest.raises(ValueError, match=name):
                self.store.failNext(name)
            with pytest.raises(ValueError, match=name):
                self.store.loseReplies(name)

    def test_down(self) -> None:
        self.store.down = True
        self.failureResultOf(self.store.commit([BIRTH]), StoreUnavailable)
        self.failureResultOf(self.store.load([KEY]), StoreUnavailable)
        self.store.down = False
        self.assertFalse(self.isStored())
        self.assertEqual(self.successResultOf(self.store.load([KEY])), [None])

    def test_hang(self) -> None:
        """
        What was asked for while it hung is done in that order, not earlier;
        what was cancelled is not done.
        """
        self.store.hang()
        commit = self.store.commit([BIRTH])
        load = self.store.load([KEY])
        cancelled = self.store.commit([Change(KEY, b"end", end="logout")])
        cancelled.addErrback(lambda failure: None)
        cancelled.cancel()
        self.assertNoResult(commit)
        self.assertFalse(self.isStored())
        self.store.resume()
        self.assertIsInstance(self.successResultOf(commit)[0], Record)
        self.assertIsInstance(self.successResultOf(load)[0], Record)
        self.assertTrue(self.isStored())
        self.successResultOf(self.store.load([KEY]))

    def test_resumeWhileDown(self) -> None:
        self.store.hang()
        commit = self.store.commit([BIRTH])
        self.store.down = True
        self.store.resume()
        self.failureResultOf(commit, StoreUnavailable)
        self.assertFalse(self.isStored())

    def test_loseReplies(self) -> None:
        """
        The change is made; sent again it is the same change.
        """
        self.store.loseReplies(times=2)
        self.failureResultOf(self.store.commit([BIRTH]), StoreUnavailable)
        self.assertTrue(self.isStored())
        self.failureResultOf(self.store.commit([BIRTH]), StoreUnavailable)
        (record,) = self.successResultOf(self.store.commit([BIRTH]))
        self.assertEqual(record.version, 1)

    def test_closeAlwaysWorks(self) -> None:
        self.store.down = True
        self.store.hang()
        self.successResultOf(self.store.close())
        self.store.failNext("close")
        self.failureResultOf(self.store.close(), StoreUnavailable)
