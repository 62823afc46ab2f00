"""
Ends of sessions, delivered to C{site.notifyOnExpire}'s callbacks.

The store keeps an end until a process has claimed it under a lease and said
that it was heard. A process that dies in between lets its lease run out, and
the end is delivered again, by whoever claims it next, with the same id.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred, DeferredList, inlineCallbacks, maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from twsessions.core.codec import decode
from twsessions.core.delta import DATA
from twsessions.errors import CorruptRecord, NotSupported, StoreError
from twsessions.interfaces import EVENTS, Ended, Verdict

if TYPE_CHECKING:
    from twsessions.web.storekeeper import StoreKeeper

__all__ = ["Deliverer", "SessionEnded"]

_AT_ONCE = 64  # deliveries under way in one process
_ATTEMPTS = 8
_LONGEST_WAIT = 300.0  # seconds between two attempts


@dataclass(frozen=True)
class SessionEnded:
    """
    What a callback of C{site.notifyOnExpire} is given.

    @ivar id: of this end: the same if it is delivered again.
    @ivar reason: C{"idle"}, C{"absolute"}, C{"logout"}, C{"evicted"} or
        C{"revoked"}.
    @ivar principal: who was logged in, or L{None}.
    @ivar data: the session's own keys and values, as they were last stored.
    @ivar created: seconds, by the store's clock.
    @ivar ended: likewise.
    """

    id: str
    reason: str
    principal: str | None
    data: Mapping[str, Any]
    created: float
    ended: float


class Deliverer:
    """
    Claims ends and calls back.

    @ivar callbacks: who wants to hear.
    """

    _log = Logger()

    def __init__(self, keeper: StoreKeeper) -> None:
        self._keeper = keeper
        self.callbacks: list[Callable[[SessionEnded], object]] = []
        self._task = keeper.alarm.task(self._look)
        self._underWay = 0
        self._claiming = False
        self._listenAgain = 0.0
        self._pending: dict[Deferred[Any], None] = {}
        self._stopping = False
        self._heard: dict[bytes, list[Callable[[SessionEnded], object]]] = {}

    @property
    def isListening(self) -> bool:
        """
        Whether anybody in this process wants to hear of ends.
        """
        return bool(self.callbacks)

    def listen(self, callback: Callable[[SessionEnded], object]) -> Callable[[], None]:
        """
        See C{SessionSite.notifyOnExpire}.
        """
        if EVENTS not in self._keeper.link.capabilities:
            raise NotSupported("this store does not keep the ends of sessions for anybody to hear")
        self.callbacks.append(callback)
        self._listenAgain = 0.0
        self._keeper.start()
        # At once, so that the very next end is heard.
        self._task.by(self._look(self._keeper.seconds()))

        def withdraw() -> None:
            if callback in self.callbacks:
                self.callbacks.remove(callback)

        return withdraw

    def poke(self) -> None:
        """
        There may be something to deliver.
        """
        if self.callbacks:
            self._task.by(self._keeper.seconds())

    def stop(self) -> None:
        """
        Give back what is under way: whoever claims it next may begin at once.
        """
        self._stopping = True
        for call in list(self._pending):
            call.cancel()
        self._stopping = False

    def _look(self, now: float) -> float | None:
        if not self.callbacks:
            return None
        if not self._claiming:
            self._claiming = True
            self._claim(now).addErrback(self._failed).addBoth(self._claimed)
        return None if self._keeper.local else now + self._keeper.settings.sweepInterval

    def _failed(self, failure: Failure) -> None:
        if failure.check(StoreError):
            self._log.warn("ends of sessions wait for the store: {error}", error=failure.value)
        else:
            self._log.failure("ends of sessions could not be claimed", failure=failure)
        self._task.by(self._keeper.seconds() + self._keeper.settings.sweepInterval)

    def _claimed(self, _: object) -> None:
        self._claiming = False

    @inlineCallbacks
    def _claim(self, now: float) -> Any:
        link, lease = self._keeper.link, self._keeper.settings.leaseDuration
        if now >= self._listenAgain:
            yield link.listen()
            self._listenAgain = now + 86400.0
        while self._underWay < _AT_ONCE:
            wanted = _AT_ONCE - self._underWay
            ends = yield link.claim(wanted, lease)
            for end in ends:
                self._deliver(end, lease)
            if len(ends) < wanted:
                break

    def _over(self, outcome: Any, call: Deferred[Any]) -> Any:
        del self._pending[call]
        return outcome

    def _deliver(self, end: Ended, lease: float) -> None:
        self._underWay += 1
        event = SessionEnded(
            end.id.hex(),
            end.reason,
            end.record.principal,
            _dataOf(end),
            end.record.created,
            end.ended,
        )
        heard = self._heard.setdefault(end.id, [])
        calls = []
        for callback in list(self.callbacks):
            if callback not in heard:  # those that succeeded are not called again
                call: Deferred[Any] = maybeDeferred(callback, event)
                if not call.called:
                    call.addTimeout(lease, self._keeper.reactor)
                    self._pending[call] = None
                    call.addBoth(self._over, call)
                call.addCallback(lambda _, callback: heard.append(callback), callback)
                calls.append(call)

        def done(outcomes: list[tuple[bool, Any]]) -> Deferred[Any]:
            failures = [outcome for succeeded, outcome in outcomes if not succeeded]
            if self._stopping or not (calls or self.callbacks):
                return self._keeper.link.settle(Verdict(end.id, end.claim, retryIn=0.0))
            verdict = Verdict(end.id, end.claim)
            for failure in failures:
                self._log.failure(
                    "a callback failed for the end {id} (attempt {attempt})",
                    failure=failure,
                    id=event.id,
                    attempt=end.attempts,
                )
            if failures:
                wait = min(_LONGEST_WAIT, 2.0 ** (end.attempts - 1))
                dead = end.attempts >= _ATTEMPTS
                if dead:
                    self._log.error("the end {id} is given up", id=event.id)
                else:
                    self._task.by(self._keeper.seconds() + wait)
                verdict = Verdict(end.id, end.claim, retryIn=wait, dead=dead)
            settling: Deferred[Any] = self._keeper.link.settle(verdict)
            if not failures or verdict.dead:
                settling.addCallback(lambda _: self._heard.pop(end.id, None))
            return settling

        def settled(_: object) -> None:
            self._underWay -= 1
            if self._underWay == _AT_ONCE - 1:
                self.poke()

        DeferredList(calls, consumeErrors=True).addCallback(done).addErrback(self._failed).addBoth(
            settled
        )


def _dataOf(end: Ended) -> dict[str, Any]:
    data = {}
    for name, value in end.record.fields.items():
        if name[:1] == DATA:
            try:
                data[name[1:]] = decode(value)
            except CorruptRecord:
                continue  # the rest is still worth hearing
    return data
