"""
What other processes do to the sessions that this one holds on to.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING

from twsessions.core.ids import makeUid
from twsessions.core.record import Record
from twsessions.interfaces import HINTS, PRINCIPALS

if TYPE_CHECKING:
    from twsessions.web.session import Session
    from twsessions.web.storekeeper import StoreKeeper

__all__ = ["Watch"]

_POLL = 1024  # sessions that a sweep asks after, at the most


class Watch:
    """
    Stored sessions that are more than their record here: a callback, an
    attribute or a stream hangs on them. Others may end them, or give them a new
    id. A clock or a hint only asks after one; the store decides.
    """

    def __init__(self, keeper: StoreKeeper) -> None:
        self._keeper = keeper
        self._link = keeper.link
        self._sessions: dict[bytes, Session] = {}  # by key
        self._moved: dict[bytes, Session] = {}  # by seed: others gave them a new id
        self._asking: dict[Session, None] = {}
        self._askTask = keeper.alarm.task(self._askAgain)
        self._hasHints = HINTS in keeper.link.capabilities
        self._isListening = False

    def add(self, session: Session) -> None:
        """
        Watch over a session, if it is stored.
        """
        if session._record is not None:
            self._sessions[session._record.key] = session

    def remove(self, session: Session) -> bool:
        """
        Do not, as long as its key changes, or any more.

        @return: whether it was watched over.
        """
        record = session._record
        if record is None or self._sessions.get(record.key) is not session:
            return False
        del self._sessions[record.key]
        return True

    def forget(self, session: Session) -> None:
        """
        It has ended, or is known by another key.
        """
        self.remove(session)
        record = session._record
        if record is not None and self._moved.get(record.seed) is session:
            del self._moved[record.seed]

    def returned(self, record: Record) -> Session | None:
        """
        The session to which another process has given a new id, with which its
        browser has come back.
        """
        return self._moved.pop(record.seed, None) if self._moved else None

    def ask(self, session: Session) -> None:
        """
        Find out what has become of a session.
        """
        keeper, record = self._keeper, session._record
        assert record is not None

        def answered(found: Record | None) -> None:
            if self._isSettled(session, record):
                return
            if found is None:
                self.missing(session)
            else:
                session._adopt(keeper.here(found))
                session.lastModified = max(session.lastModified, session._record.touched)  # type: ignore[union-attr]
                if session._isDue(keeper.seconds()):
                    self._askLater(session)  # by the store's clock, or its timeout, it is not
                else:
                    keeper.queue(session)

        self._link.load(record.key).addCallbacks(answered, lambda _: self._askLater(session))

    def missing(self, session: Session) -> None:
        """
        The store has nothing under the session's key: it has ended, or another
        process has given it a new id, which only its browser knows.
        """
        keeper, record = self._keeper, session._record
        if record is None or not session._isPinned() or PRINCIPALS not in self._link.capabilities:
            keeper.endings.lost(session)
            return
        keeper.forget(session)

        def answered(found: Record | None) -> None:
            if self._isSettled(session, record):
                return
            if found is None:
                keeper.endings.lost(session)
                return
            self.forget(session)
            # Whoever comes with the id of old is a stranger.
            session.uid = makeUid(keeper.entropy)
            session._adopt(keeper.here(found))
            self._moved[found.seed] = session
            keeper.hold(session)
            keeper.queue(session)
            self.add(session)

        self._link.withHandle(record.handle).addCallbacks(
            answered, lambda _: self._askLater(session)
        )

    def _isSettled(self, session: Session, record: Record) -> bool:
        # Something that is newer than the question has answered it.
        return (
            session._ended is not None
            or session._isCommitting
            or session._record is None
            or session._record.key != record.key
        )

    def _askLater(self, session: Session) -> None:
        self._asking[session] = None
        self._askTask.by(self._keeper.seconds() + self._keeper.settings.sweepInterval)

    def _askAgain(self, now: float) -> float | None:
        asking, self._asking = self._asking, {}
        for session in asking:
            if session._ended is None and session._record is not None:
                self.ask(session)
        return None

    # -- how it is learnt of ----------------------------------------------------

    def listen(self) -> None:
        """
        Have the store tell what others have done, if it can.
        """
        if not self._hasHints or self._isListening:
            return
        self._isListening = True

        def failed(_: object) -> None:
            self._isListening = False

        # What was done before it is in force is asked after.
        self._link.watch(self._heard).addCallbacks(self._heard, failed)

    def _heard(self, keys: Sequence[bytes] | None) -> None:
        # See ISessionStore.watch.
        for key in list(self._sessions) if keys is None else keys:
            session = self._sessions.get(key)
            if session is not None and not session._isCommitting:
                self.ask(session)

    def poll(self) -> None:
        """
        Ask after some of the sessions, if the store cannot tell.
        """
        if self._hasHints:
            return
        for key, session in list(islice(self._sessions.items(), _POLL)):
            if self._sessions.pop(key, None) is None:
                continue  # another's end has ended it
            self._sessions[key] = session  # to the end
            if not session._isCommitting:
                self.ask(session)
