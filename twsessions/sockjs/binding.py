"""
A connection that belongs to the user's web session.
"""

from __future__ import annotations

from typing import Any

from twisted.logger import Logger

from twsessions.core.ids import handleOf
from twsessions.errors import NeedsSessionSite
from twsessions.sockjs.driver import Driver
from twsessions.sockjs.session import Close
from twsessions.web.exchange import Exchange
from twsessions.web.request import SessionRequest
from twsessions.web.session import Session

__all__ = ["SESSION_ENDED", "bind", "ownerOf", "sessionOf"]

SESSION_ENDED = Close(4001, "Session ended")


def sessionOf(request: Any) -> Session | None:
    """
    The web session that a request's cookie names, or L{None}. To look is not
    to use: polls and heartbeats do not keep it alive.

    @raise NeedsSessionSite: the request is of a stock Site.
    @raise StoreUnavailable: it could not be loaded.
    """
    if not isinstance(request, SessionRequest):
        raise NeedsSessionSite("bound=True needs a SessionSite or a SessionResource")
    return Exchange.of(request).peek(takesPart=False)


def ownerOf(session: Session) -> bytes:
    """
    What stays the same of a web session, whatever its id.
    """
    return handleOf(session._ownSeed())


def bind(driver: Driver, session: Session, countsAsUse: bool) -> None:
    """
    Close the connection when the web session ends, wherever that is.

    @param countsAsUse: whether its messages are use of the session.
    """
    callbacks = session.expireCallbacks
    ends = next((one for one in callbacks if isinstance(one, _Ends)), None)
    if ends is None:
        ends = _Ends(session, driver)
    ends.add(driver)
    if countsAsUse:
        driver.used = session.touch


class _Ends:
    """
    A web session's callback for all its connections: with one for each, their
    end would be a search for each among all.
    """

    _log = Logger()

    def __init__(self, session: Session, first: Driver) -> None:
        self._drivers: dict[Driver, None] = {first: None}
        self._withdraw = session.notifyOnExpire(self)

    def add(self, driver: Driver) -> None:
        """
        Another one.
        """
        self._drivers[driver] = None
        driver.notifyOnClose(lambda: self._closed(driver))

    def _closed(self, driver: Driver) -> None:
        del self._drivers[driver]
        if not self._drivers:
            self._withdraw()

    def __call__(self) -> None:
        """
        The session has ended.
        """
        for driver in list(self._drivers):
            try:
                driver.endWithOwner(SESSION_ENDED)
            except Exception:
                self._log.failure("a SockJS connection could not be ended with its session")
