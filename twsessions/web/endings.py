"""
How a stored session ends: the store is told, then whoever waits for it here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred, DeferredList, fail, succeed
from twisted.python.failure import Failure

from twsessions.core.delta import Change
from twsessions.core.record import Record
from twsessions.errors import SessionError, SessionGone, SessionTooLarge, StoreError
from twsessions.web.page import requestOfPage

if TYPE_CHECKING:
    from twsessions.web.session import Session
    from twsessions.web.storekeeper import StoreKeeper

__all__ = ["Endings"]

_AT_ONCE = 256  # sessions


class Endings:
    """
    Ends sessions, whether they are live in this process or in the store only.
    """

    def __init__(self, keeper: StoreKeeper) -> None:
        self._keeper = keeper

    # -- a session --------------------------------------------------------------

    def end(self, session: Session, reason: str) -> Deferred[None]:
        """
        See L{Session.expire<twsessions.Session.expire>}.

        @param reason: one of L{twsessions.core.lifecycle.REASONS}; if it has one
            already it keeps that.
        """
        rare = session._rare
        wasLive = self._keeper.sessions.get(session.uid) is session
        if session._ended is None:
            self._mark(session, reason)
        else:
            reason = session._ended
            if rare is not None and rare.forgotten:
                return succeed(None)  # from a callback, or later
            wasLive = True
        if session._isCommitting:
            again: Deferred[None] = Deferred()
            session._more().waiting.append(again)
            # Whether the commit under way succeeds or not, the end follows.
            return again.addBoth(lambda _: self.end(session, reason))
        if rare is not None and rare.ending:
            waiter: Deferred[None] = Deferred()
            rare.waiting.append(waiter)
            return waiter
        return self._tell(session, reason, wasLive)

    def lost(self, session: Session) -> None:
        """
        The store says that the session has ended.
        """
        if session._ended is None:
            if session._hasChanges():
                session._more().losses += 1
            self._mark(session, session._reason())
            self._finish(session)

    def _mark(self, session: Session, reason: str) -> None:
        session._ended = reason
        running = getattr(requestOfPage.get(), "_exchange", None)
        # Other responses leave the cookie alone: there may be a good one in its place.
        session._more().heir = running if running in (session._holders or ()) else None
        self._keeper.forget(session)
        self._keeper.touches.waiting.pop(session, None)

    def _tell(self, session: Session, reason: str, wasLive: bool) -> Deferred[None]:
        """
        Tell the store of the end.
        """
        keeper = self._keeper
        if session._record is None and not (keeper.deliverer.isListening and wasLive):
            self._finish(session)
            return succeed(None)
        now = keeper.seconds()
        try:
            change = session._change(keeper.token, now, whole=True)
        except (TypeError, SessionTooLarge):
            # It ends all the same, with what is stored already.
            session._revert()
            change = session._change(keeper.token, now, whole=True)
        assert change is not None
        change.newKey = None
        change.end = reason
        if keeper.local:
            try:
                keeper.link.commitNow(change)
            except SessionError as error:
                if isinstance(error, StoreError):
                    return fail(error)
            self._finish(session)
            keeper.deliverer.poke()
            return succeed(None)
        rare = session._more()
        result: Deferred[None] = Deferred()
        rare.waiting.append(result)
        rare.ending = True

        def done(outcome: object) -> None:
            rare.ending = False
            waiting, rare.waiting = rare.waiting, []
            if isinstance(outcome, Failure) and not outcome.check(SessionGone):
                for waiter in waiting:
                    waiter.errback(outcome)
                return
            self._finish(session)
            keeper.deliverer.poke()
            for waiter in waiting:
                waiter.callback(None)

        keeper.link.commit(change).addBoth(done)
        return result

    def _finish(self, session: Session) -> None:
        rare = session._more()
        rare.forgotten = True
        self._keeper.letGo(session)
        session._finish()

    # -- of which only the record is known --------------------------------------

    async def endRecord(self, record: Record, reason: str) -> bool:
        """
        End a session.

        @return: whether there was one.
        """
        [ended] = await self.endRecords([record], reason)
        return ended

    async def endRecords(self, records: Sequence[Record], reason: str) -> list[bool]:
        """
        The same for several, at the same time.
        """
        keeper = self._keeper
        seeds = {record.seed for record in records}
        live = {
            session._record.seed: session
            for session in keeper.sessions.values()
            if session._record is not None and session._record.seed in seeds
        }

        async def end(record: Record) -> bool:
            session = live.get(record.seed)
            if session is not None:
                await self.end(session, reason)
                return True
            try:
                await keeper.link.commit(Change(record.key, keeper.token(), end=reason))
            except SessionGone:
                return False
            keeper.deliverer.poke()
            return True

        ended: list[bool] = []
        for start in range(0, len(records), _AT_ONCE):
            some = records[start : start + _AT_ONCE]
            ends: list[Deferred[Any]] = [Deferred.fromCoroutine(end(one)) for one in some]
            for succeeded, outcome in await DeferredList(ends, consumeErrors=True):
                if not succeeded:
                    outcome.raiseException()
                ended.append(outcome)
        return ended

    async def endHandle(self, handle: bytes) -> bool:
        """
        End the session with that handle.

        @return: whether there was one.
        """
        record = await self._keeper.link.withHandle(handle)
        return record is not None and await self.endRecord(record, "revoked")
