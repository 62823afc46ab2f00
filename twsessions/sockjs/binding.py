"""
A connection that belongs to the user's web session.
"""

from __future__ import annotations

from typing import Any

from twsessions.core.ids import handleOf
from twsessions.errors import NeedsSessionSite
from twsessions.sockjs.driver import Driver
from twsessions.sockjs.session import Close
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
    return request.peekSession()


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
    withdraw = session.notifyOnExpire(lambda: driver.end(SESSION_ENDED))
    driver.notifyOnClose(withdraw)
    if countsAsUse:
        driver.used = session.touch
