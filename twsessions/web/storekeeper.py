"""
The sessions of a site that has a store: they are loaded, committed, rotated
and ended there, and an object lives only as long as a request, a callback or an
attribute needs it (on a store that is in memory itself, for as long as the
session).
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from twisted.internet.defer import Deferred, DeferredList, succeed
from twisted.internet.task import deferLater

from twsessions.core.data import Data, withoutPrefix
from twsessions.core.delta import UNSET, Birth
from twsessions.core.ids import isUid, keyOf, logName, makeUid
from twsessions.core.record import Record
from twsessions.errors import (
    SessionGone,
    StoreUnavailable,
)
from twsessions.web.commits import Commits
from twsessions.web.endings import Endings
from twsessions.web.events import Deliverer
from twsessions.web.exclusive import Exclusive
from twsessions.web.keeper import Keeper
from twsessions.web.logins import Logins
from twsessions.web.rotation import Rotations
from twsessions.web.session import Session
from twsessions.web.settings import Settings
from twsessions.web.sweeper import Sweeper
from twsessions.web.tokens import Tokens
from twsessions.web.touches import Touches
from twsessions.web.watch import Watch

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from twsessions.stores.link import StoreLink

__all__ = ["StoreKeeper"]

_RESTING = 1024  # sessions that a store in memory has, kept as objects though nobody uses them
_MOMENT = 0.02  # seconds

_Then = Callable[[bytes, "Session | Exception | None"], None]


class StoreKeeper(Keeper):
    """
    Sessions kept in a store.

    @ivar link: the way to the store.
    @ivar sessions: the live ones, by uid.
    @ivar isStopping: whether requests that come are to go elsewhere: 503.
    """

    lookUpIsUse = False
    isStopping = False
    _loading = 0

    def __init__(
        self,
        owner: Any,
        reactor: IReactorTime,
        link: StoreLink,
        settings: Settings,
        entropy: Callable[[int], bytes] = os.urandom,
    ) -> None:
        super().__init__(reactor, settings, entropy)
        self.owner = owner
        self.link = link
        self.local = link.local
        self.sessions: dict[bytes, Session] = owner.sessions
        self.token = Tokens(entropy).next
        self._resting: OrderedDict[Session, None] = OrderedDict()
        # Those that are kept no longer: whoever still has one shares it with the next request.
        self._left: WeakValueDictionary[bytes, Session] = WeakValueDictionary()
        self.commits = Commits(self)
        self.touches = Touches(self)
        self.sweeper = Sweeper(self)
        self.deliverer = Deliverer(self)
        self.logins = Logins(self)
        self.watch = Watch(self)
        self.rotations = Rotations(self)
        self.endings = Endings(self)
        self._moving = self.rotations.moving

    # -- making and finding ---------------------------------------------------

    def make(self, secure: bool = False, live: bool = True) -> Session:
        """
        A new session.

        @param live: whether it is in the site's dictionary from the start.
        @raise TypeError: the site's C{sessionFactory} makes something else.
        """
        owner = self.owner
        owner.counter += 1
        session = self._produce(makeUid(self.entropy))
        session.secure = secure
        if live:
            self.enliven(session)
        return session

    def _produce(self, uid: bytes) -> Session:
        session: Session = self.owner.sessionFactory(self.owner, uid)
        if not isinstance(session, Session):
            raise TypeError(
                f"{type(self.owner).__name__}.sessionFactory must make sessions of"
                f" twsessions.Session or a subclass, not {type(session).__name__}"
            )
        return session

    def enliven(self, session: Session) -> None:
        """
        Have the session in the site's dictionary, and its time run.
        """
        self.sessions[session.uid] = session
        if self.local:
            session.startCheckingExpiration()
        elif self.owner.sessionFactory is not Session:
            self.pinned(session)  # what made it may have put something on it

    def found(self, uid: bytes) -> Session | None:
        """
        The session, if it can be had without waiting: a live one, or any on a
        store in memory.
        """
        session = self.sessions.get(uid)
        if session is None:
            session = self._moving.get(uid)
            if session is None:
                if self.local and isUid(uid):
                    return self._attach(uid, self.link.loadNow(keyOf(uid)))
                return None
        if session._ended is not None:
            return None
        if self.local:
            due, now = self._dueTask.when, self.seconds()
            isQueued = (
                session.sessionTimeout is self.commonIdle
                and session.absoluteTimeout is self.commonAbsolute
                and due is not None
                and due > now
            )
            if not isQueued and session._isDue(now):
                return None  # the queue has just not come round to it
        return session

    def isKnown(self, session: Session) -> bool:
        """
        Whether the session is to be found by its uid.
        """
        record = session._record
        if record is None:
            return session.uid in self.sessions
        return record.key == keyOf(session.uid)

    def load(self, uid: bytes) -> Deferred[Session | None]:
        """
        The session as the store has it now.

        @param uid: well-formed.
        @return: fires with the session, live, or L{None}.
        @raise StoreUnavailable: (through the Deferred) no answer in time.
        """
        loaded: Deferred[Session | None] = Deferred()

        def tell(_: bytes, outcome: Session | Exception | None) -> None:
            if isinstance(outcome, Exception):
                loaded.errback(outcome)
            else:
                loaded.callback(outcome)

        self.loadThen(uid, tell)
        return loaded

    def loadThen(self, uid: bytes, then: _Then) -> None:
        """
        L{load} without a Deferred, which every request would have to pay for.

        @param then: called with C{uid}, and with the session, L{None} or the
            exception; perhaps before this returns.
        """
        if self.local:
            then(uid, self.found(uid))
            return
        if self.isStopping:
            then(uid, StoreUnavailable("the process is stopping"))
            return
        self.sweeper.awaken()
        live = self.sessions.get(uid) or self._moving.get(uid)
        if live is not None and live._record is None:
            then(uid, live)  # made here, its first commit under way
            return
        key = keyOf(uid) if live is None or live._record is None else live._record.key
        self._loading += 1
        self.link.loadThen(key, _Loading(self, uid, then))

    def _attach(self, uid: bytes, record: Record | None) -> Session | None:
        live = self.sessions.get(uid) or self._moving.get(uid)
        if record is None:
            if live is not None and live._record is not None and not live._isCommitting:
                self.watch.missing(live)
                live = None
            return live
        record = self.here(record)
        if live is None:
            live = self.watch.returned(record)
            if live is not None:
                self.forget(live)
                live.uid = uid
                self.sessions[uid] = live
        if live is not None:
            if live._record is None or live._record.version <= record.version:
                live._adopt(record)
            return live
        session = self._left.pop(uid, None)
        if session is None:
            session = self._produce(uid)
        session._adopt(record)
        self.enliven(session)
        return session

    def here(self, record: Record) -> Record:
        """
        The record by this process's clock: its times are the store's, and will be
        compared with the reactor's, which may be another.
        """
        shift = self.seconds() - record.asOf
        if abs(shift) < 0.5:
            return record
        moved = record.seenAt(self.seconds())
        moved.created += shift
        moved.touched += shift
        return moved

    # -- holding --------------------------------------------------------------

    def dataOf(self, session: Session) -> Data:
        record = session._record
        return Data(
            {} if record is None else record.fields,
            maxValueBytes=self.settings.maxSessionBytes,
            onCorrupt=self._corrupt,
            owner=session.uid,  # the session itself would make a cycle
            describe=withoutPrefix,
        )

    @staticmethod
    def _corrupt(uid: object, name: str, error: Exception) -> None:
        assert isinstance(uid, bytes)
        StoreKeeper._log.error(
            "session {name}: a stored value does not decode and reads as absent",
            name=logName(uid),
        )

    def touched(self, session: Session) -> None:
        self.touches.add(session)

    def changed(self, session: Session) -> None:
        if not session._users:
            self.hold(session)
            if not self.local and session.queued is None:
                self.queue(session)

    def pinned(self, session: Session) -> None:
        # Only what is held here needs the clock's help: the store ends the rest.
        if session._ended is None and session.queued is None:
            self.hold(session)
            if self.local or session._isPinned():
                self._watch(session)

    def _watch(self, session: Session) -> None:
        self.queue(session)
        if not self.local:
            self.watch.add(session)

    def hold(self, session: Session) -> None:
        """
        Somebody has kept the session beyond its request: L{flush} must find it.
        """
        if session._ended is None and (
            session._record is not None or self.settings.createOn == "access"
        ):
            held = self.sessions.setdefault(session.uid, session)
            if self.local and held is session:
                self.queue(session)  # as all that are held in memory

    def introduce(self, session: Session, birth: Birth) -> None:
        exchange = next(iter(session._holders or ()), None)
        if exchange is not None:
            birth.address, birth.userAgent = exchange.client()

    def release(self, session: Session) -> None:
        """
        A request has done with the session.
        """
        session._users -= 1
        if session._users or session._ended is not None:
            return
        if self.local:
            if session._record is not None:
                self.rest(session)
        elif session._isPinned():
            self._watch(session)  # it must not stay longer than the store has it
        elif not (session._isCommitting or session._hasChanges()):
            self.forget(session)
            if session.queued is not None:
                self._due.forget(session)

    def rest(self, session: Session) -> None:
        """
        Nobody uses a session in memory. What the store has is smaller than an
        object, which is kept for those only that were used last.
        """
        resting = self._resting
        resting[session] = None
        resting.move_to_end(session)
        while len(resting) > _RESTING:
            other, _ = resting.popitem(last=False)
            if not (
                other._users
                or other._ended is not None
                or other._hasChanges()
                or other._isPinned()
                or type(other).expiring is not Session.expiring
            ):
                self.touches.waiting.pop(other, None)
                self.touches.write(other)
                self.forget(other)
                self._due.forget(other)
                self._left[other.uid] = other

    def unused(self, session: Session) -> None:
        """
        Perhaps nothing needs it any more.
        """
        if not session._users and self.sessions.get(session.uid) is session:
            session._users = 1
            self.release(session)

    # -- what a session asks for ----------------------------------------------

    def commit(self, session: Session) -> Deferred[None]:
        return self.commits.commit(session)

    def drop(self, session: Session) -> None:
        """
        A commit failed: what was not stored is forgotten, so that this process
        agrees with the others.
        """
        rare = session._more()
        rare.losses += 1  # whoever uses it now must not say that it is saved
        session._revert()
        rare.principal = rare.idle = UNSET
        rare.login = False
        if rare.rotated:
            self.rotations.undo(session)
        if not self.local and not session._isPinned():
            self.forget(session)

    def refresh(self, session: Session) -> Deferred[None]:
        if self.local or session._record is None:
            return succeed(None)

        def loaded(record: Record | None) -> None:
            if record is None:
                self.endings.lost(session)
                raise SessionGone("the session has ended")
            session._adopt(self.here(record))

        return self.link.load(session._record.key).addCallback(loaded)

    def exclusive(self, session: Session, timeout: float | None) -> Exclusive:
        exclusive = super().exclusive(session, timeout)
        exclusive.link = self.link
        return exclusive

    def rotate(self, session: Session) -> bytes:
        return self.rotations.rotate(session)

    def bind(self, session: Session, principal: str) -> Deferred[None]:
        return self.logins.bind(session, principal)

    # -- ending ---------------------------------------------------------------

    def end(self, session: Session, reason: str) -> Deferred[None]:
        return self.endings.end(session, reason)

    def letGo(self, session: Session) -> None:
        self.watch.forget(session)
        self.rotations.settle(session._more())
        self._resting.pop(session, None)
        super().letGo(session)

    def fellDue(self, session: Session) -> None:
        record = session._record
        if record is None:
            self.end(session, session._reason())
        elif not self.local:
            self.watch.ask(session)
        elif record.deadline <= self.seconds():
            # The store's own sweep ends the record, at the same time.
            self.endings.lost(session)
        else:
            # The clock was set back: the record has a use of a later time.
            self.end(session, session._reason())

    # -- starting and stopping ------------------------------------------------

    def start(self) -> None:
        """
        Begin to look for sessions that fell due.
        """
        self.alarm.start()
        self.sweeper.awaken()
        self.deliverer.poke()

    async def flush(self) -> None:
        """
        Store all that is not stored yet.
        """
        waits: list[Deferred[Any]] = [*self.touches.flush()]
        for session in list(self.sessions.values()):
            if session._hasChanges() or session._isCommitting:
                waits.append(self.commits.commit(session))
        for succeeded, outcome in await DeferredList(waits, consumeErrors=True):
            if not succeeded and not outcome.check(SessionGone):
                outcome.raiseException()

    async def stop(self, within: float = 5.0) -> None:
        """
        When requests under way are done (or C{storeTimeout} is over), flush, for
        C{within} seconds at the most, and leave no delayed call.
        """
        self.isStopping = True
        moments = int(self.settings.storeTimeout / _MOMENT)
        while not self.local and moments and self._underWay():
            moments -= 1  # no more will come, so they are soon done
            await deferLater(self.reactor, _MOMENT, lambda: None)
        flushed = Deferred.fromCoroutine(self.flush())
        if not flushed.called:
            flushed.addTimeout(within, self.reactor)
        try:
            await flushed
        except Exception as error:
            self._log.error("not all sessions could be stored: {error}", error=error)
        if self.isStopping:  # else a port has been opened meanwhile
            self.deliverer.stop()
            self.alarm.stop()

    def _underWay(self) -> bool:
        """
        Whether a request waits for its session, or a response for its commit.
        """
        return self._loading > 0 or any(
            session._users > sum(exchange.isOpen for exchange in session._holders or ())
            for session in self.sessions.values()
        )


class _Loading:
    """
    A load under way, and who is told. One object, where a partial is three:
    what waits in a busy process is what the garbage collector goes through.
    """

    __slots__ = ("keeper", "then", "uid")

    def __init__(self, keeper: StoreKeeper, uid: bytes, then: _Then) -> None:
        self.keeper = keeper
        self.uid = uid
        self.then = then

    def __call__(self, outcome: Record | Exception | None) -> None:
        keeper, uid = self.keeper, self.uid
        keeper._loading -= 1
        if isinstance(outcome, Exception):
            self.then(uid, outcome)
            return
        try:
            session = keeper._attach(uid, outcome)
        except Exception as error:  # of the site's sessionFactory
            self.then(uid, error)
        else:
            self.then(uid, session)
