"""
The live sessions of a site, and their end: all that a stock
L{twisted.web.server.Site} has. Its sessions are in memory and ended by one
delayed call.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from twisted.internet.defer import Deferred, DeferredLock, fail, succeed
from twisted.logger import Logger

from twsessions.core.data import Data, withoutPrefix
from twsessions.core.deadlines import DeadlineQueue
from twsessions.core.delta import Birth
from twsessions.errors import NeedsSessionSite
from twsessions.web.alarm import SLICE, Alarm
from twsessions.web.exclusive import Exclusive
from twsessions.web.settings import Settings

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from twsessions.web.session import Session

__all__ = ["Keeper", "keeperOf"]

_NONE_YET, _SEVERAL = object(), object()
_STEP = 64  # sessions between two looks at the clock
_keepers: WeakKeyDictionary[Any, Keeper] = WeakKeyDictionary()


def keeperOf(site: Any, reactor: IReactorTime | None) -> Keeper:
    """
    The keeper of a site: its own, or for a stock Site one that is made here
    and found again.
    """
    keeper: Keeper | None = getattr(site, "keeper", None)
    if keeper is None:
        keeper = _keepers.get(site)
        if keeper is None:
            # Not kept on the site: it would be pickled with it.
            keeper = _keepers[site] = Keeper(site.reactor if reactor is None else reactor)
    return keeper


class Keeper:
    """
    Sessions in memory, and one delayed call that ends them.

    @ivar local: whether no other process has these sessions.
    @ivar lookUpIsUse: whether asking a session for its truth counts as use.
    @ivar commonIdle: the idle timeout of all sessions that were ever queued, if
        it and the absolute one are the same for all of them: the deadline of
        one that still has these very objects has not become earlier.
    @ivar commonAbsolute: the absolute timeout, likewise.
    """

    _log = Logger()
    lookUpIsUse = True
    local = True

    def __init__(
        self,
        reactor: IReactorTime,
        settings: Settings = Settings(maxSessionBytes=None),
        entropy: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self.reactor = reactor
        self.seconds: Callable[[], float] = reactor.seconds
        self.settings = settings
        self.entropy = entropy
        self.alarm = Alarm(reactor)
        self.commonIdle: object = _NONE_YET
        self.commonAbsolute: object = None
        self._due: DeadlineQueue[Session] = DeadlineQueue(lambda session: session._deadline())
        self._dueTask = self.alarm.task(self._endDue)
        self._locks: WeakKeyDictionary[Session, DeferredLock] = WeakKeyDictionary()

    # -- time -----------------------------------------------------------------

    def queue(self, session: Session) -> None:
        """
        See to it that C{session} ends when it falls due.
        """
        idle, absolute = session._idle(), session._absolute()
        if idle != self.commonIdle or absolute != self.commonAbsolute:
            own = session.sessionTimeout, session.absoluteTimeout
            isFirst = self.commonIdle is _NONE_YET and (idle, absolute) == own
            self.commonIdle = own[0] if isFirst else _SEVERAL
            self.commonAbsolute = own[1]
        self._due.add(session)
        self._dueTask.by(self._due.next(self.seconds()))

    def _endDue(self, now: float) -> float | None:
        started, steps = self.seconds(), 0
        while True:
            for session in self._due.due(now, _STEP):
                self.fellDue(session)
            again = self._due.next(now)
            steps += 1
            if again is None or again > now or self.seconds() - started > SLICE or steps > 256:
                return again

    def fellDue(self, session: Session) -> None:
        """
        By this process's clock the session's time is over.
        """
        self.end(session, session._reason())

    # -- what a session asks for ----------------------------------------------

    def dataOf(self, session: Session) -> Data:
        """
        The values of a session that has not used any yet.
        """
        return Data(maxValueBytes=self.settings.maxSessionBytes, describe=withoutPrefix)

    def touched(self, session: Session) -> None:
        """
        A stored session has been used.
        """

    def changed(self, session: Session) -> None:
        """
        Something is to be stored.
        """

    def pinned(self, session: Session) -> None:
        """
        Something hangs on the object itself now.
        """

    def introduce(self, session: Session, birth: Birth) -> None:
        """
        Say whose session it is that is to be stored for the first time.
        """

    def forget(self, session: Session) -> None:
        """
        Take a session out of the site's dictionary.
        """
        sessions = session.site.sessions
        if sessions.get(session.uid) is session:
            del sessions[session.uid]

    def end(self, session: Session, reason: str) -> Deferred[None]:
        """
        End a session: see L{Session.expire<twsessions.Session.expire>}.

        @param reason: one of L{twsessions.core.lifecycle.REASONS}.
        """
        if session._ended is None:
            session._ended = reason
            self.forget(session)
            self.letGo(session)
            session._finish()
        return succeed(None)

    def letGo(self, session: Session) -> None:
        """
        It has ended: keep nothing of it.
        """
        self._due.forget(session)
        if not session.site.sessions and not self._due:
            self._dueTask.at(None)  # as Twisted: whoever ends all of them has a clean reactor

    def rotate(self, session: Session) -> bytes:
        """
        See L{Session.rotate<twsessions.Session.rotate>}.
        """
        raise NeedsSessionSite(
            "rotate() and login() need a SessionSite or a SessionResource:"
            " a stock Site would not send the new cookie"
        )

    def bind(self, session: Session, principal: str) -> Deferred[None]:
        """
        See L{Session.login<twsessions.Session.login>}.
        """
        session._bind(principal)
        return self.commit(session)

    def commit(self, session: Session) -> Deferred[None]:
        """
        See L{Session.commit<twsessions.Session.commit>}.
        """
        if session._data is not None:
            try:
                session._data.accept(*session._data.changes())
            except TypeError:
                return fail()
        return succeed(None)

    def drop(self, session: Session) -> None:
        """
        Forget what was changed and is not stored.
        """
        session._revert()

    def refresh(self, session: Session) -> Deferred[None]:
        """
        Bring the session to what the store has.
        """
        return succeed(None)

    def exclusive(self, session: Session, timeout: float | None) -> Exclusive:
        """
        See L{Session.exclusive<twsessions.Session.exclusive>}.
        """
        lock = self._locks.get(session)
        if lock is None:
            lock = self._locks[session] = DeferredLock()
        return Exclusive(session, lock, timeout, None, self.settings.leaseDuration)
