"""
Calls of a store that have no outcome yet.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, fail
from twisted.logger import Logger
from twisted.python.failure import Failure

from twsessions.errors import StoreUnavailable
from twsessions.stores._redis.route import Route

__all__ = ["Underway"]

T = TypeVar("T")


class Underway:
    """
    Counts them, so that the store is closed after the last.

    @ivar count: how many there are.
    @ivar isClosing: whether there will be no more.
    """

    _log = Logger()

    def __init__(self, route: Route) -> None:
        self._route = route
        self.count = 0
        self.isClosing = False
        self._drained: Deferred[None] = Deferred()

    def do(self, coroutine: Coroutine[Any, Any, T]) -> Deferred[T]:
        """
        Do what somebody waits for.

        @return: fires with its outcome.
        @raise StoreUnavailable: (through the Deferred) the store is closed, or
            the servers answered nonsense.
        """
        if self.isClosing:
            coroutine.close()
            return fail(StoreUnavailable("the store has been closed"))
        self.count += 1
        return Deferred.fromCoroutine(coroutine).addBoth(self._done)

    def later(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """
        Do something for which nobody waits, and which may fail.
        """

        def failed(failure: Failure) -> None:
            failure.trap(StoreUnavailable)

        self.count += 1
        Deferred.fromCoroutine(coroutine).addBoth(self._done).addErrback(failed).addErrback(
            lambda failure: self._log.failure("tidying up failed", failure)
        )

    async def end(self) -> None:
        """
        Take no more, and wait for what is under way.
        """
        self.isClosing = True
        if self.count:
            await self._drained

    def _done(self, result: Any) -> Any:
        self.count -= 1
        if self.isClosing and not self.count and not self._drained.called:
            self._drained.callback(None)
        if not isinstance(result, Failure):
            return result
        nonsense = result.check(TypeError, ValueError, IndexError, KeyError, AttributeError)
        if nonsense is None:
            return result
        # Replies of another shape than such commands have. Later ones cannot
        # be trusted to belong to what was asked either.
        self._log.failure("the Redis server's answer makes no sense", result)
        self._route.drop("the Redis server answered nonsense")
        error = StoreUnavailable("the Redis server's answer makes no sense")
        error.__cause__ = result.value
        return Failure(error)
