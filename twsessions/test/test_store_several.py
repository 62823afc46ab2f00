"""
Who is asked when, if several could answer.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from twsessions.errors import StoreUnavailable
from twsessions.stores._several import firstOf


class Servers:
    """
    @ivar asked: by number, the answers that are waited for.
    @ivar given: those that nobody waits for any more.
    """

    def __init__(self, count: int, timeout: float = 12.0) -> None:
        self.clock = Clock()
        self.asked: dict[int, Deferred[str]] = {}
        self.given: list[int] = []
        self.result = Deferred.fromCoroutine(
            firstOf(self.clock, timeout, [self._of(number) for number in range(count)])
        )

    def _of(self, number: int) -> Callable[[], Coroutine[Any, Any, str]]:
        async def attempt() -> str:
            self.asked[number] = Deferred(lambda _: self.given.append(number))
            return await self.asked[number]

        return attempt

    def fail(self, number: int) -> None:
        self.asked[number].errback(StoreUnavailable(str(number)))

    def outcome(self) -> Any:
        outcomes: list[Any] = []
        self.result.addBoth(outcomes.append)
        (outcome,) = outcomes
        return outcome.value if isinstance(outcome, Failure) else outcome

    def rest(self) -> list[Any]:
        return self.clock.getDelayedCalls()


def test_theFirstAnswers() -> None:
    servers = Servers(3)
    servers.clock.advance(2.9)
    servers.asked[0].callback("a")
    assert servers.outcome() == "a"
    assert (list(servers.asked), servers.given, servers.rest()) == ([0], [], [])


def test_oneThatFails() -> None:
    """
    The next is asked at once, and has a whole share of its own.
    """
    servers = Servers(3)
    servers.clock.advance(2.0)
    servers.fail(0)
    assert list(servers.asked) == [0, 1]
    servers.clock.advance(2.9)
    assert list(servers.asked) == [0, 1]
    servers.asked[1].callback("b")
    assert (servers.outcome(), servers.rest()) == ("b", [])


def test_oneThatIsSlow() -> None:
    """
    The next ones are asked too, and the slow one may still be the one.
    """
    servers = Servers(3)
    servers.clock.pump([3.0, 3.0])
    assert list(servers.asked) == [0, 1, 2]
    servers.fail(1)
    servers.fail(2)
    assert not servers.result.called
    servers.asked[0].callback("a")
    assert (servers.outcome(), servers.given, servers.rest()) == ("a", [], [])


def test_thoseLeftAreCancelled() -> None:
    servers = Servers(4)
    servers.clock.pump([2.4, 2.4])
    assert list(servers.asked) == [0, 1, 2]
    servers.asked[1].callback("b")
    assert (servers.outcome(), servers.given, servers.rest()) == ("b", [0, 2], [])
    assert 3 not in servers.asked, "it was begun only to be cancelled"


def test_noneAnswers() -> None:
    servers = Servers(2)
    servers.clock.advance(4.0)
    servers.fail(1)
    servers.fail(0)
    outcome = servers.outcome()
    assert isinstance(outcome, StoreUnavailable) and str(outcome) == "1"
    assert servers.rest() == []


def test_anotherError() -> None:
    servers = Servers(2)
    servers.asked[0].errback(ZeroDivisionError())
    servers.asked[1].callback("b")
    assert servers.outcome() == "b"


def test_allIsCancelled() -> None:
    servers = Servers(3)
    servers.clock.advance(3.0)
    servers.result.cancel()
    assert isinstance(servers.outcome(), CancelledError)
    assert (list(servers.asked), servers.given, servers.rest()) == ([0, 1], [0, 1], [])


@pytest.mark.parametrize(("count", "share"), [(1, 4.0), (2, 4.0), (3, 3.0), (7, 1.5), (50, 1.5)])
def test_shares(count: int, share: float) -> None:
    servers = Servers(count)
    servers.clock.advance(share * 0.99)
    assert len(servers.asked) == 1
    servers.clock.advance(share * 0.02)
    assert len(servers.asked) == min(count, 2)
    servers.result.addErrback(lambda _: None).cancel()
