"""
What L{SessionSite<twsessions.SessionSite>} and
L{SessionResource<twsessions.SessionResource>} offer alike.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from twsessions.core.cookies import CookiePolicy
from twsessions.core.ids import isUid
from twsessions.core.record import Record
from twsessions.interfaces import ISessionStore
from twsessions.stores.fromurl import checkURL, storeFromURL
from twsessions.stores.link import StoreLink
from twsessions.web.session import Session
from twsessions.web.settings import Settings
from twsessions.web.storekeeper import StoreKeeper

if TYPE_CHECKING:
    from twsessions.web.events import SessionEnded

__all__ = ["SessionDescription", "SessionOwner"]


@dataclass(frozen=True)
class SessionDescription:
    """
    One of a principal's sessions, as it can be shown to them.

    @ivar handle: names it to C{expireSession}; of no use as an id.
    @ivar created: seconds, by the store's clock.
    @ivar lastModified: when it was last used, as far as that is stored.
    @ivar deadline: when it will end if it is not used; C{inf}: never.
    @ivar address: where it was made from, or L{None}.
    @ivar userAgent: with what, or L{None}.
    """

    handle: str
    created: float
    lastModified: float
    deadline: float
    address: str | None
    userAgent: str | None

    @classmethod
    def of(cls, record: Record) -> SessionDescription:
        """
        Of a stored session.
        """
        return cls(
            record.handle.hex(),
            record.created,
            record.touched,
            record.deadline,
            record.address,
            record.userAgent,
        )


class SessionOwner:
    """
    The sessions of one application.

    @ivar sessions: the live ones of this process, by uid.
    @ivar sessionFactory: called with this object and a uid; makes a
        L{Session<twsessions.Session>}.
    """

    sessionFactory: Any = Session
    sessions: dict[bytes, Session]
    counter = 0
    _isOver = False  # the reactor is stopping

    def _setUp(
        self,
        store: str | ISessionStore,
        cookie: CookiePolicy,
        settings: dict[str, Any],
    ) -> None:
        """
        Check all there is to check. Opens nothing.
        """
        if not isinstance(cookie, CookiePolicy):
            raise TypeError(f"cookie is a CookiePolicy, not {cookie!r}")
        if isinstance(store, str):
            checkURL(store)
        elif not ISessionStore.providedBy(store):
            raise TypeError(f"store is a URL or provides ISessionStore; {store!r} does neither")
        self.cookie = cookie
        self.settings = Settings(**settings)
        self._store = store
        self._keeper: StoreKeeper | None = None
        self._listeners: list[Callable[[SessionEnded], object]] = []  # outlive the keeper

    def _theReactor(self) -> IReactorTime:
        raise RuntimeError("no reactor is known yet")

    @property
    def keeper(self) -> StoreKeeper:
        """
        What looks after the sessions; made when it is first needed.
        """
        keeper = self._keeper
        if keeper is None:
            reactor: Any = self._theReactor()
            store = self._store
            made = isinstance(store, str)
            if isinstance(store, str):
                store = storeFromURL(reactor, store)
            link = StoreLink(reactor, store, self.settings.storeTimeout)
            keeper = self._keeper = StoreKeeper(self, reactor, link, self.settings)
            keeper.deliverer.callbacks = self._listeners
            self._closes = made
            trigger = getattr(reactor, "addSystemEventTrigger", None)
            if trigger is not None:
                trigger("before", "shutdown", self._shutDown)
            keeper.isStopping = self._isOver
        return keeper

    def _shutDown(self) -> Deferred[None]:
        self._isOver = True
        return self._stop()

    def _stop(self) -> Deferred[None]:
        keeper = self._keeper
        if keeper is None:
            return Deferred.fromCoroutine(_nothing())

        async def stop() -> None:
            await keeper.stop()
            if not keeper.isStopping:
                return  # a port has been opened meanwhile
            keeper.isStopping = self._isOver
            # What is in memory ends with the process, not with the port.
            if self._closes and not keeper.local and self._keeper is keeper:
                if not self._isOver:
                    self._keeper = None
                self.sessions.clear()
                await keeper.link.close()

        return Deferred.fromCoroutine(stop())

    def makeSession(self) -> Session:
        """
        As Twisted: a new session. Its C{commit()} stores it, and L{flush} if it has
        values.
        """
        session = self.keeper.make()
        session.startCheckingExpiration()
        return session

    def getSession(self, uid: bytes) -> Session:
        """
        As Twisted: a session that is live in this process. One that is in the
        store only: L{loadSession}.

        @raise KeyError: there is none.
        """
        session = (self._keeper or self.keeper).found(uid)
        if session is None:
            raise KeyError("no such session is live in this process")
        return session

    def loadSession(self, uid: bytes) -> Deferred[Session | None]:
        """
        A session, for code outside a request. What is changed in it is stored
        by its C{commit()}; it is used if its C{touch()} is called.

        @param uid: the id.
        @return: fires with the session, or L{None} if there is none (any more).
        @raise StoreUnavailable: (through the Deferred) the store does not answer.
        @raise TypeError: (likewise) C{uid} is a C{str}.
        """

        async def load() -> Session | None:
            if isinstance(uid, str):
                raise TypeError("a uid is bytes, not str")  # it would be nobody's: a silent failure
            if not isUid(uid):
                return None
            session = await self.keeper.load(uid)
            if session is None or session._ended is not None:
                return None
            session.isNew = False
            self.keeper.unused(session)  # what is changed or added brings it back
            return session

        return Deferred.fromCoroutine(load())

    def notifyOnExpire(self, callback: Callable[[SessionEnded], object]) -> Callable[[], None]:
        """
        Call C{callback} for every session that ends: in any process, for any
        reason, and also when all processes were down. At least once for each;
        normally exactly once.

        @param callback: takes a L{SessionEnded<twsessions.web.events.SessionEnded>}.
            May return a Deferred or be a coroutine function. If it fails, it is
            called again later, with the same C{id}; after eight times the end
            is put aside and logged.
        @return: a function that withdraws the callback.
        @raise NotSupported: the store cannot promise it.
        """
        return self.keeper.deliverer.listen(callback)

    def sessionsOf(self, principal: str | None) -> Deferred[list[SessionDescription]]:
        """
        The living sessions of a principal, the oldest first.

        @param principal: as it was given to C{login()}; L{None}, that of a session
            which is not logged in, has none.
        @return: fires with a list of L{SessionDescription}.
        @raise TypeError: C{principal} is something else, such as a number.
        @raise NotSupported: (through the Deferred) the store has no index.
        """
        _check(principal)
        return self.keeper.link.sessionsOf(principal).addCallback(
            lambda records: [SessionDescription.of(record) for record in records]
        )

    def expireSession(self, handle: str) -> Deferred[bool]:
        """
        End the session that C{handle} names.

        @return: fires with whether there was one.
        """

        async def end() -> bool:
            try:
                raw = bytes.fromhex(handle)
            except (ValueError, TypeError):
                return False
            return await self.keeper.endings.endHandle(raw)

        return Deferred.fromCoroutine(end())

    def expireSessionsOf(self, principal: str | None, keep: Session | None = None) -> Deferred[int]:
        """
        End all sessions of a principal, in every process.

        @param principal: as L{sessionsOf}.
        @param keep: but not this one.
        @return: fires with how many were ended.
        @raise TypeError: C{principal} is neither a C{str} nor L{None}.
        @raise NotSupported: (through the Deferred) the store has no index.
        """
        _check(principal)
        return Deferred.fromCoroutine(self.keeper.logins.endAll(principal, keep))

    def flush(self) -> Deferred[None]:
        """
        Store whatever live sessions hold that is not stored.

        @return: fires when it is.
        @raise StoreUnavailable: (through the Deferred) not all of it could be.
        """
        return Deferred.fromCoroutine(self.keeper.flush())


def _check(principal: object) -> None:
    # login() took no such thing, so there would be nobody: a silent failure.
    if principal is not None and not isinstance(principal, str):
        raise TypeError(f"a principal is a str, not {principal!r}")


async def _nothing() -> None:
    pass
