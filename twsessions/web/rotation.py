"""
New ids for old: who is told, and what becomes of those who come with the old one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from twsessions.core.ids import keyOf, makeUid
from twsessions.errors import TooLateForSession
from twsessions.web.page import requestOfPage

if TYPE_CHECKING:
    from twsessions.web.session import Session, _Rare
    from twsessions.web.storekeeper import StoreKeeper

__all__ = ["Rotations"]

_LATE = 10.0  # seconds in which what was on the way with an old id arrives
_REPLACED = 10_000  # ids


class Rotations:
    """
    The ids that sessions of this process have given up.

    @ivar moving: sessions by their old uid, until the rotation is stored:
        requests under way that came with it go on with this.
    """

    def __init__(self, keeper: StoreKeeper) -> None:
        self._keeper = keeper
        self.moving: dict[bytes, Session] = {}
        self._replaced: dict[bytes, float] = {}  # keys, until when

    def rotate(self, session: Session) -> bytes:
        """
        See L{Session.rotate<twsessions.Session.rotate>}.
        """
        keeper = self._keeper
        # Others may have a request with the old id open, and not all of them need
        # be the same user: only who logs in is told the new one.
        running = getattr(requestOfPage.get(), "_exchange", None)
        holders = session._holders or {}
        # The one that asked last comes last, and those that only looked come first.
        one = [running] if running in holders else sorted(holders, key=holders.__getitem__)
        waiting = [exchange for exchange in one if not exchange.request.startedWriting]
        isSure = running in holders or session._users == 1
        if one and not waiting and isSure:
            raise TooLateForSession(
                "the response's headers have left, so the new id cannot be sent any more:"
                " rotate() and login() come before the first write()"
            )
        old, new = session.uid, makeUid(keeper.entropy)
        if keeper.sessions.get(old) is session:
            del keeper.sessions[old]
            keeper.sessions[new] = session
        session.uid = new
        rare = session._more()
        rare.heir = waiting[-1] if waiting else None
        if session._record is not None:
            rare.rotated = True
            self.moving[old] = session
            rare.olden.append(old)
        if not session.isNew:
            self._noteReplaced(old)
        keeper.changed(session)
        return new

    def _noteReplaced(self, uid: bytes) -> None:
        now, replaced = self._keeper.seconds(), self._replaced
        while replaced and (len(replaced) >= _REPLACED or next(iter(replaced.values())) <= now):
            del replaced[next(iter(replaced))]
        replaced[keyOf(uid)] = now + _LATE

    def isReplaced(self, uid: bytes) -> bool:
        """
        Whether the id was given up for another one here, a moment ago: whoever
        comes with it was on the way when the new cookie left, and has it by now.
        """
        until = self._replaced.get(keyOf(uid)) if self._replaced else None
        return until is not None and self._keeper.seconds() < until

    def stored(self, session: Session) -> None:
        """
        The session is committed.
        """
        rare = session._rare
        if rare is not None and rare.olden and not rare.rotated:
            self.settle(rare)

    def settle(self, rare: _Rare) -> list[bytes]:
        """
        From now on the session is not to be had by its old ids, which are
        returned.
        """
        olden, rare.olden = rare.olden, []
        for old in olden:
            del self.moving[old]
        return olden

    def undo(self, session: Session) -> None:
        """
        It could not be stored: the id is again what the store knows.
        """
        keeper, rare = self._keeper, session._rare
        assert rare is not None and session._record is not None
        wasLive = keeper.sessions.get(session.uid) is session
        keeper.forget(session)
        for old in self.settle(rare):
            if keyOf(old) == session._record.key:
                session.uid = old
        rare.rotated = False
        if wasLive:
            keeper.sessions[session.uid] = session
