"""
How many sessions a principal may have, and their end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from twsessions.core.ids import handleOf
from twsessions.core.record import Record
from twsessions.errors import StoreError, TooManySessions

if TYPE_CHECKING:
    from twsessions.web.session import Session
    from twsessions.web.storekeeper import StoreKeeper

__all__ = ["Awaitable", "Logins"]


class Awaitable(Deferred[None]):
    """
    A Deferred that knows whether anybody waits for it.
    """

    isAwaited = False


def _noting(add: Callable[..., Any]) -> Callable[..., Any]:
    def note(self: Awaitable, *args: Any, **kwargs: Any) -> Any:
        self.isAwaited = True
        return add(self, *args, **kwargs)

    return note


for _add in ("addCallbacks", "addCallback", "addErrback", "addBoth"):
    setattr(Awaitable, _add, _noting(getattr(Deferred, _add)))


class Logins:
    """
    The principals of a site's sessions.
    """

    _log = Logger()

    def __init__(self, keeper: StoreKeeper) -> None:
        self._keeper = keeper
        # By principal: handles of those who have logged in, and need room.
        self._newcomers: dict[str, list[tuple[bytes, Deferred[None]]]] = {}

    def bind(self, session: Session, principal: str) -> Deferred[None]:
        """
        See L{Session.login<twsessions.Session.login>}.
        """
        keeper, settings = self._keeper, self._keeper.settings
        most = settings.maxSessionsPerPrincipal
        refuses = settings.tooMany == "refuse"
        if most is None or not refuses:
            session._bind(principal)
            stored = keeper.commit(session)
            if most is None:
                return stored
        rare = session._more()
        waiting: list[Deferred[None]] = []
        rare.evicting = waiting

        async def limit(most: int) -> None:
            if refuses:
                if len(await self._othersOf(session, principal)) >= most:
                    raise TooManySessions(f"there are {most} sessions already")
                session._bind(principal)
                await keeper.commit(session)
                return
            await stored
            try:
                await self._evict(session, principal, most)
            except StoreError as error:
                # The login itself is stored; the next one makes good for it.
                self._log.warn(
                    "{session}: older sessions could not be ended: {error}",
                    session=repr(session),
                    error=error,
                )

        def over(outcome: Any) -> Any:
            if rare.evicting is waiting:
                rare.evicting = None
            if isinstance(outcome, Failure) and outcome.check(TooManySessions):
                rare.refusal = result
            for waiter in waiting:
                waiter.callback(None)
            return outcome

        result = Awaitable()
        Deferred.fromCoroutine(limit(most)).addBoth(over).chainDeferred(result)
        return result

    async def _othersOf(self, session: Session, principal: str) -> list[Record]:
        own = handleOf(session._ownSeed())
        records = await self._keeper.link.sessionsOf(principal)
        return [record for record in records if record.handle != own]

    def _evict(self, session: Session, principal: str, most: int) -> Deferred[None]:
        evicted: Deferred[None] = Deferred()
        isFirst = principal not in self._newcomers
        newcomers = self._newcomers.setdefault(principal, [])
        newcomers.append((handleOf(session._ownSeed()), evicted))
        if isFirst:
            Deferred.fromCoroutine(self._makeRoom(principal, most))
        return evicted

    async def _makeRoom(self, principal: str, most: int) -> None:
        """
        End the principal's oldest sessions: once for all who have logged in at
        the same time, who would each end all the others.
        """
        keeper = self._keeper
        while self._newcomers[principal]:
            newcomers, self._newcomers[principal] = self._newcomers[principal], []
            failure: Failure | None = None
            try:
                records = await keeper.link.sessionsOf(principal)
                logins = newcomers + self._newcomers[principal]
                order = {handle: n for n, (handle, _) in enumerate(logins, 1)}
                records = sorted(records, key=lambda record: order.get(record.handle, 0))
                await keeper.endings.endRecords(records[: max(0, len(records) - most)], "evicted")
            except Exception:
                failure = Failure()
            for _, evicted in newcomers:
                if failure is None:
                    evicted.callback(None)
                else:
                    evicted.errback(failure)
        del self._newcomers[principal]

    def evicting(self, session: Session) -> Deferred[None] | None:
        """
        What a response has to wait for beside the commit: that the sessions
        which a login pushes out have ended.
        """
        rare = session._rare
        if rare is None or rare.evicting is None:
            return None
        waiter: Deferred[None] = Deferred()
        rare.evicting.append(waiter)
        return waiter

    def refusal(self, session: Session) -> Deferred[None] | None:
        """
        A login that was refused, of which nobody has heard; once.
        """
        rare = session._rare
        if rare is None or rare.refusal is None:
            return None
        refusal, rare.refusal = rare.refusal, None
        if refusal.isAwaited:
            return None
        told: Deferred[None] = Deferred()
        refusal.chainDeferred(told)
        return told

    async def endAll(self, principal: str | None, keep: Session | None) -> int:
        """
        End the sessions of a principal, but for one.
        """
        keeper = self._keeper
        kept = None if keep is None else handleOf(keep._ownSeed())
        count = 0
        while True:
            records = await keeper.link.sessionsOf(principal)
            records = [record for record in records if record.handle != kept]
            ended = await keeper.endings.endRecords(records, "revoked")
            count += sum(ended)
            if len(records) == sum(ended):
                return count
            # One was rotated in between: it is found under its new key.
