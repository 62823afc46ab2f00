"""
What was changed in sessions, on its way to the store.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred, fail, maybeDeferred, succeed
from twisted.python.failure import Failure

from twsessions.core.delta import Change
from twsessions.core.record import Record
from twsessions.errors import Conflict, SessionError, SessionGone, SessionTooLarge

if TYPE_CHECKING:
    from twsessions.web.session import Session
    from twsessions.web.storekeeper import StoreKeeper

__all__ = ["Commits"]


class Commits:
    """
    Commits sessions, each by one change at a time.
    """

    def __init__(self, keeper: StoreKeeper) -> None:
        self._keeper = keeper

    def isStored(self, session: Session) -> bool:
        """
        Whether it can be seen at a glance, as most often, that L{store} would
        find nothing to do.
        """
        keeper = self._keeper
        if session._ended is not None or session._isCommitting or not session._isUntouched():
            return False
        return keeper.local if session._record is None else not keeper.touches.isDue(session)

    def store(self, session: Session) -> Deferred[None] | None:
        """
        Store what the client of a response will take for stored: what was
        changed, and that the session was used.

        @return: as L{commit}, or L{None} if there is nothing to wait for.
        """
        keeper, rare = self._keeper, session._rare
        if session._ended is not None:
            # Known by the store, it may still be calling back: one of the
            # callbacks may be what finishes this response.
            if rare is not None and rare.forgotten:
                return None
            return self.commit(session)
        if session._isCommitting:
            return self.commit(session)
        if session._record is None:
            # An empty session on a store in memory is stored when it is not
            # empty any more: nothing but this process could find it there.
            isWanted = session.uid in keeper.sessions and not keeper.local
            if not isWanted and not session._hasChanges():
                return None
        stored = self._commit(session)
        if stored is None and session._ended is None and keeper.touches.isDue(session):
            return keeper.touches.write(session)
        return stored

    def commit(self, session: Session) -> Deferred[None]:
        """
        See L{Session.commit<twsessions.Session.commit>}.
        """
        if session._ended is not None:
            if session._rare is not None and session._rare.finished:
                if session._data is not None and session._data.isDirty:
                    return fail(SessionGone("the session ended before it was stored"))
                return succeed(None)
            return self._keeper.endings.end(session, session._ended)
        if session._isCommitting:
            # What is under way may lack what was changed since. The next commit
            # has it, for all who come meanwhile; what is changed after that
            # keeps none of them waiting.
            waiter: Deferred[None] = Deferred()
            session._more().following.append(waiter)
            return waiter
        return self._commit(session) or succeed(None)

    def _commit(self, session: Session) -> Deferred[None] | None:
        """
        L{commit} a session that is alive and of which no commit is under way.

        @return: L{None} if it is stored.
        """
        keeper = self._keeper
        try:
            change = session._change(keeper.token, keeper.seconds())
            if change is not None:
                session._checkTimeouts()  # else the store would fail, for everybody
        except (TypeError, SessionTooLarge):
            keeper.drop(session)
            return fail()
        if change is None:
            return None
        if session.uid not in keeper.sessions:
            keeper.enliven(session)  # made with createOn="write"
        keeper.touches.waiting.pop(session, None)
        if keeper.local:
            try:
                self.stored(session, change, keeper.link.commitNow(change))
            except SessionGone:
                keeper.endings.lost(session)
                return fail()
            except SessionError:
                keeper.drop(session)
                return fail()
            keeper.rotations.stored(session)
            if not session._users:
                keeper.rest(session)
            return None
        return self._send(session, change)

    def _send(self, session: Session, change: Change) -> Deferred[None]:
        keeper = self._keeper
        keeper.sweeper.awaken()
        result: Deferred[None] = Deferred()
        session._isCommitting = True
        keeper.link.commitThen(change, _Committing(keeper, session, change, result))
        return result

    def stored(self, session: Session, change: Change, record: Record) -> None:
        """
        The store has made C{change}, and C{record} is the session now.
        """
        keeper = self._keeper
        record = keeper.here(record)
        known = session._record
        if known is not None and known.version >= record.version:
            record = known  # a load that left later was back sooner
        isWatched = keeper.watch.remove(session)
        session._stored(change, record)
        if isWatched or (known is None and not keeper.local and session.queued is not None):
            keeper.watch.add(session)
        if keeper.local:
            keeper.sweeper.expect(record)

    async def take(self, session: Session, name: str) -> bytes | None:
        """
        Remove a stored value, unless another process has done so.

        @param name: with its prefix.
        @return: the value, encoded, or L{None} if there is none (any more).
        @raise SessionError: as L{commit}.
        """
        keeper = self._keeper
        await self.commit(session)
        while session._isCommitting:
            free: Deferred[None] = Deferred()
            session._more().waiting.append(free)
            await free
        record = session._record
        encoded = None if record is None else record.fields.get(name)
        if record is None or encoded is None:
            return None
        change = Change(
            record.key, keeper.token(), remove=frozenset((name,)), expect={name: encoded}
        )
        try:
            await self._send(session, change)
        except Conflict:
            await keeper.refresh(session)
            return None
        return encoded


class _Committing:
    """
    A commit under way, and who is told.
    """

    __slots__ = ("change", "keeper", "result", "session")

    def __init__(
        self, keeper: StoreKeeper, session: Session, change: Change, result: Deferred[None]
    ) -> None:
        self.keeper = keeper
        self.session = session
        self.change = change
        self.result = result

    def __call__(self, outcome: Record | Exception) -> None:
        keeper, session = self.keeper, self.session
        if not isinstance(outcome, Exception):
            try:
                keeper.commits.stored(session, self.change, outcome)
                keeper.rotations.stored(session)
            except Exception as error:  # of a component, perhaps
                outcome = error
        isGone = isinstance(outcome, SessionGone)
        if isGone and not session._isPinned():
            keeper.endings.lost(session)
        elif isinstance(outcome, Exception) and not isinstance(outcome, Conflict):
            keeper.drop(session)
        session._isCommitting = False
        rare, waiting, following = session._rare, [], []
        if rare is not None:
            waiting, rare.waiting = rare.waiting, []
            following, rare.following = rare.following, []
        # A conflict concerns only who wanted to take something.
        others = None if isinstance(outcome, Conflict) else outcome
        _tell(others, waiting)
        if not following:
            _tell(outcome, [self.result])
        elif isinstance(others, Exception):
            _tell(outcome, [self.result, *following])
        else:
            # Before those who are told change more.
            followed = maybeDeferred(keeper.commits.commit, session)
            _tell(outcome, [self.result])
            followed.addBoth(_tell, following)
        if isGone:
            keeper.watch.missing(session)
        keeper.unused(session)


def _tell(outcome: object, waiting: list[Deferred[None]]) -> None:
    for waiter in waiting:
        if isinstance(outcome, (Exception, Failure)):
            waiter.errback(outcome)
        else:
            waiter.callback(None)
