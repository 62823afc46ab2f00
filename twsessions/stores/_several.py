"""
Several servers behind one store: whom to ask when one is late, and when all
have failed.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final, TypeVar

from twisted.internet.defer import CancelledError, Deferred, FailureGroup, race
from twisted.internet.error import ConnectingCancelledError

from twsessions.errors import StoreUnavailable

__all__ = ["firstOf", "unlessAllFailed"]

_SHARES: Final = 8  # at most, into which the time is divided

T = TypeVar("T")


async def firstOf(
    reactor: Any, timeout: float, tries: Sequence[Callable[[], Coroutine[Any, Any, T]]]
) -> T:
    """
    Begin one try after the other until one succeeds. The next begins when one
    has failed, and also when one has taken its share of the time: it may hang,
    or be slow and yet the only one that will succeed.

    @param reactor: an L{IReactorTime}.
    @param timeout: seconds that each of the tries keeps to.
    @param tries: at least one. Those that are under way when another succeeds
        are cancelled.
    @return: what the first one to succeed returns. If none does, the error of
        the last one is raised.
    """
    share = timeout / min(len(tries) + 1, _SHARES)
    turns: list[Deferred[None]] = [Deferred() for _ in range(len(tries) + 1)]

    def begin(number: int) -> None:
        if not turns[number].called:
            turns[number].callback(None)

    async def attempt(number: int) -> T:
        await turns[number]
        late = reactor.callLater(share, begin, number + 1)
        try:
            return await tries[number]()
        except (CancelledError, ConnectingCancelledError):
            raise  # it is all over
        except Exception:
            begin(number + 1)
            raise
        finally:
            if late.active():
                late.cancel()

    begin(0)
    try:
        _, result = await race(
            [Deferred.fromCoroutine(attempt(number)) for number in range(len(tries))]
        )
    except FailureGroup as failed:
        failed.failures[-1].raiseException()
    return result


def unlessAllFailed(outcomes: list[T]) -> list[T]:
    """
    The outcomes of a batch, if the store has not failed as a whole.

    @raise StoreUnavailable: what all of them are.
    """
    first = outcomes[0] if outcomes else None
    if isinstance(first, StoreUnavailable) and all(
        isinstance(outcome, StoreUnavailable) for outcome in outcomes
    ):
        raise StoreUnavailable(*first.args)
    return outcomes
