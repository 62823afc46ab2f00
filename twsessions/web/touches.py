"""
Uses of stored sessions, written when it is worth it.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from twsessions.core.delta import Change
from twsessions.core.lifecycle import touchIsDue
from twsessions.errors import SessionGone
from twsessions.web.alarm import SLICE

if TYPE_CHECKING:
    from twsessions.web.session import Session
    from twsessions.web.storekeeper import StoreKeeper

__all__ = ["Touches"]

_STEP = 64  # sessions between two looks at the clock


class Touches:
    """
    Sessions that were used, and nothing else: many uses become one write.

    @ivar waiting: those whose last use is not written, the first one first. One
        that is committed has it written along.
    """

    _log = Logger()

    def __init__(self, keeper: StoreKeeper) -> None:
        self._keeper = keeper
        self.waiting: OrderedDict[Session, None] = OrderedDict()
        self._task = keeper.alarm.task(self._writeSome)

    def add(self, session: Session) -> None:
        """
        A session has been used.
        """
        waiting = self.waiting
        if session not in waiting:
            waiting[session] = None
            idle, record, when = session._idle(), session._record, self._keeper.seconds()
            assert record is not None
            if idle is None:
                when += 60.0  # one that never idles out only has its requests counted
            else:
                # At the latest before the store would end it.
                when = min(when, record.touched + 0.9 * idle) + idle / 20
            self._task.by(when)

    def isDue(self, session: Session) -> bool:
        """
        Whether its last use is worth a write of its own, at once.
        """
        record = session._record
        return record is not None and touchIsDue(
            session.lastModified, record.touched, session._idle()
        )

    def _writeSome(self, now: float) -> float | None:
        """
        Uses that were not worth a write of their own, together.
        """
        seconds = self._keeper.seconds
        started, steps = now, 0
        while self.waiting:
            session, _ = self.waiting.popitem(last=False)
            self.write(session)
            steps += 1
            if steps % _STEP == 0 and (seconds() - started > SLICE or steps > 4096):
                return now
        return None

    def write(self, session: Session) -> Deferred[None] | None:
        """
        Write that a session was used. A failure is logged: it fails no reader.

        @return: L{None} if there is nothing to wait for.
        """
        keeper, record = self._keeper, session._record
        if session._ended is not None or record is None or session._isCommitting:
            return None
        now = keeper.seconds()
        if session.lastModified <= record.touched and not session._requests:
            return None
        change = Change(
            record.key,
            keeper.token(),
            usedAgo=max(0.0, now - session.lastModified),
            uses=session._requests,
        )
        idle = session._idle()
        if idle != record.idle and not record.ownIdle:
            change.idle = idle
        if keeper.local:
            try:
                keeper.commits.stored(session, change, keeper.link.commitNow(change))
            except SessionGone:
                keeper.endings.lost(session)
            return None

        def failed(failure: Failure) -> None:
            if failure.check(SessionGone):
                keeper.endings.lost(session)
            else:
                self._log.warn(
                    "{session}: its use could not be stored: {error}",
                    session=repr(session),
                    error=failure.value,
                )

        return keeper.link.commit(change).addCallbacks(
            lambda record: keeper.commits.stored(session, change, record), failed
        )

    def flush(self) -> list[Deferred[None]]:
        """
        Write them all; those whose values changed as well have a commit coming.
        """
        waits = []
        while self.waiting:
            session, _ = self.waiting.popitem()
            if not session._hasChanges():
                written = self.write(session)
                if written is not None:
                    waits.append(written)
        return waits
