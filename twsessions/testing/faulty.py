"""
A store that fails when it is told to, around one that works.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from twisted.internet.defer import Deferred, fail
from zope.interface import implementer

from twsessions.core.delta import Change
from twsessions.core.record import Record
from twsessions.errors import SessionError, StoreUnavailable
from twsessions.interfaces import LOCAL, Ended, ISessionStore, Message, Swept, Verdict

__all__ = ["FaultyStore"]


@implementer(ISessionStore)
class FaultyStore:
    """
    Passes everything on, as long as no fault is asked for.

    It never declares L{LOCAL}: its Deferreds can be made to wait. C{close}
    always works, unless L{failNext} says otherwise.

    @ivar store: the store that does the work.
    @ivar calls: every operation asked for: its name and its arguments.
    @ivar down: set it to C{True} and everything is
        L{StoreUnavailable<twsessions.errors.StoreUnavailable>}.
    """

    def __init__(self, store: ISessionStore) -> None:
        self.store = store
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.down = False
        self._failures: dict[str, deque[Exception]] = {}
        self._unanswered: dict[str, int] = {}
        self._hanging = False
        self._held: list[tuple[Deferred[Any], str, tuple[Any, ...]]] = []

    @property
    def capabilities(self) -> frozenset[str]:
        """
        The store's, without L{LOCAL}.
        """
        capabilities: frozenset[str] = self.store.capabilities
        return capabilities - {LOCAL}

    # Faults

    def failNext(self, operation: str, error: Exception | None = None) -> None:
        """
        The next call of an operation fails, and does nothing. Several add up.

        @param operation: such as C{"commit"}.
        @param error: L{StoreUnavailable}, if not given.
        """
        failures = self._failures.setdefault(_checked(operation), deque())
        failures.append(StoreUnavailable("the store fails") if error is None else error)

    def loseReplies(self, operation: str = "commit", times: int = 1) -> None:
        """
        The next calls of an operation do their work and then say
        L{StoreUnavailable}: the caller cannot know what became of it.
        """
        self._unanswered[_checked(operation)] = times

    def hang(self) -> None:
        """
        Do nothing and answer nothing until L{resume}.
        """
        self._hanging = True

    def resume(self) -> None:
        """
        Do what has been asked for meanwhile, in that order, and answer again.
        What has been cancelled is not done.
        """
        self._hanging = False
        held, self._held = self._held, []
        for answer, operation, args in held:
            if not answer.called:
                self._perform(operation, args).chainDeferred(answer)

    # The store

    def load(self, keys: Sequence[bytes]) -> Deferred[list[Record | None]]:
        """
        See L{ISessionStore.load}.
        """
        return self._ask("load", keys)

    def commit(self, changes: Sequence[Change]) -> Deferred[list[Record | SessionError]]:
        """
        See L{ISessionStore.commit}.
        """
        return self._ask("commit", changes)

    def sweep(self, limit: int) -> Deferred[Swept]:
        """
        See L{ISessionStore.sweep}.
        """
        return self._ask("sweep", limit)

    def listen(self) -> Deferred[None]:
        """
        See L{ISessionStore.listen}.
        """
        return self._ask("listen")

    def claim(self, limit: int, lease: float) -> Deferred[list[Ended]]:
        """
        See L{ISessionStore.claim}.
        """
        return self._ask("claim", limit, lease)

    def settle(self, verdicts: Sequence[Verdict]) -> Deferred[list[bool]]:
        """
        See L{ISessionStore.settle}.
        """
        return self._ask("settle", verdicts)

    def sessionsOf(self, principal: str) -> Deferred[list[Record]]:
        """
        See L{ISessionStore.sessionsOf}.
        """
        return self._ask("sessionsOf", principal)

    def withHandle(self, handle: bytes) -> Deferred[Record | None]:
        """
        See L{ISessionStore.withHandle}.
        """
        return self._ask("withHandle", handle)

    def acquire(self, name: bytes, holder: bytes, lease: float) -> Deferred[bool]:
        """
        See L{ISessionStore.acquire}.
        """
        return self._ask("acquire", name, holder, lease)

    def release(self, name: bytes, holder: bytes) -> Deferred[None]:
        """
        See L{ISessionStore.release}.
        """
        return self._ask("release", name, holder)

    def watch(self, heard: Callable[[Sequence[bytes] | None], None]) -> Deferred[None]:
        """
        See L{ISessionStore.watch}.
        """
        return self._ask("watch", heard)

    def publish(self, messages: Sequence[Message]) -> Deferred[list[SessionError | None]]:
        """
        See L{ISessionStore.publish}.
        """
        return self._ask("publish", messages)

    def subscribe(self, heard: Callable[[Message | None], object]) -> Deferred[None]:
        """
        See L{ISessionStore.subscribe}.
        """
        return self._ask("subscribe", heard)

    def iterate(self, after: bytes | None, limit: int) -> Deferred[list[Record]]:
        """
        See L{ISessionStore.iterate}.
        """
        return self._ask("iterate", after, limit)

    def close(self) -> Deferred[None]:
        """
        See L{ISessionStore.close}.
        """
        return self._ask("close")

    def _ask(self, operation: str, *args: Any) -> Deferred[Any]:
        self.calls.append((operation, args))
        failures = self._failures.get(operation)
        if failures:
            return fail(failures.popleft())
        if self._hanging and operation != "close":
            answer: Deferred[Any] = Deferred()
            self._held.append((answer, operation, args))
            return answer
        return self._perform(operation, args)

    def _perform(self, operation: str, args: tuple[Any, ...]) -> Deferred[Any]:
        if self.down and operation != "close":
            return fail(StoreUnavailable("the store is down"))
        done: Deferred[Any] = getattr(self.store, operation)(*args)
        if self._unanswered.get(operation, 0) > 0:
            self._unanswered[operation] -= 1
            done.addCallback(_lost)
        return done


def _lost(result: object) -> NoReturn:
    raise StoreUnavailable("the store's answer was lost")


def _checked(operation: str) -> str:
    """
    A misspelt operation would never fail, and the test would pass.
    """
    if operation == "capabilities" or operation not in ISessionStore:
        raise ValueError(f"a store has no operation {operation!r}")
    return operation
