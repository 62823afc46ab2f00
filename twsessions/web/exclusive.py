"""
One holder at a time of one session, across all processes.
"""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred, DeferredLock, succeed
from twisted.internet.task import LoopingCall, deferLater

from twsessions.errors import LeaseTimeout, StoreError

if TYPE_CHECKING:
    from twsessions.stores.link import StoreLink
    from twsessions.web.session import Session

__all__ = ["Exclusive"]

_POLL = 0.05  # seconds between two attempts, at first; it doubles up to a second


class Exclusive:
    """
    What L{Session.exclusive<twsessions.Session.exclusive>} returns.

    @ivar link: L{None} where no other process can have the session.
    """

    def __init__(
        self,
        session: Session,
        lock: DeferredLock,
        timeout: float | None,
        link: StoreLink | None,
        lease: float,
    ) -> None:
        self._session = session
        self._lock = lock
        self._timeout = timeout
        self.link = link
        self._lease = lease
        self._holder = session._keeper.entropy(16)
        self._renewal: LoopingCall | None = None
        self._until = 0.0  # by the reactor's clock: so long the store keeps it for us

    @property
    def _name(self) -> bytes:
        from twsessions.core.ids import handleOf

        return handleOf(self._session._ownSeed())

    async def __aenter__(self) -> Session:
        session, reactor = self._session, self._session._reactor
        until = None if self._timeout is None else reactor.seconds() + self._timeout
        locked = self._lock.acquire()
        if self._timeout is not None:
            locked.addTimeout(
                self._timeout,
                reactor,
                lambda value, timeout: _late(timeout),
            )
        await locked
        try:
            if self.link is not None:
                await self._acquire(self.link, until)
            await session._keeper.refresh(session)
        except BaseException:
            await self._free()
            raise
        return session

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if self.link is not None:
                self._assure()
            await self._session.commit()
        finally:
            await self._free()

    async def _acquire(self, link: StoreLink, until: float | None) -> None:
        reactor, wait = self._session._reactor, _POLL
        while True:
            asked = reactor.seconds()
            if await link.acquire(self._name, self._holder, self._lease):
                break
            if until is not None and reactor.seconds() + wait > until:
                _late(self._timeout)
            await deferLater(reactor, wait, lambda: None)
            wait = min(1.0, wait * 2)
        self._until = asked + self._lease
        self._renewal = LoopingCall(self._renew, link)
        self._renewal.clock = reactor
        self._renewal.start(self._lease / 3, now=False)

    def _assure(self) -> None:
        """
        Whoever was stopped for longer than the lease must not write over what
        the next holder has done.
        """
        session = self._session
        if session._reactor.seconds() >= self._until:
            session._keeper.drop(session)
            raise LeaseTimeout(
                f"the session was not kept: for {self._lease:g} s the store has not heard from"
                " its holder, and another may have had it. What was changed is not stored."
            )

    def _renew(self, link: StoreLink) -> Deferred[None]:
        asked = self._session._reactor.seconds()
        if asked >= self._until:
            return succeed(None)  # another may have come and gone; let the next one in

        def renewed(held: bool) -> None:
            self._until = asked + self._lease if held else 0.0

        # If the store is away for a while the next renewal may still be in time.
        renewal = link.acquire(self._name, self._holder, self._lease)
        return renewal.addCallbacks(renewed, lambda failure: failure.trap(StoreError) and None)

    async def _free(self) -> None:
        renewal, self._renewal = self._renewal, None
        try:
            if renewal is not None:
                renewal.stop()
                if self.link is not None:
                    await self.link.release(self._name, self._holder)
        except StoreError:
            pass  # the lease ends by itself
        finally:
            self._lock.release()


def _late(timeout: float | None) -> None:
    raise LeaseTimeout(f"the session was in use for longer than {timeout} seconds")
