"""
A Site whose sessions are stored.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from twisted.internet.interfaces import IReactorTime
from twisted.web import server
from twisted.web.resource import IResource

from twsessions.core.cookies import CookiePolicy
from twsessions.interfaces import ISessionStore
from twsessions.web.owner import SessionOwner
from twsessions.web.request import SessionRequest, adopt, requestClassFor
from twsessions.web.session import Session
from twsessions.web.settings import Settings

__all__ = ["SessionSite"]

_SETTINGS = tuple(field.name for field in fields(Settings))


class SessionSite(SessionOwner, server.Site):
    """
    A L{twisted.web.server.Site} whose sessions are kept in a store::

        site = SessionSite(root, store="sqlite:///sessions.db")

    Everything else is as people know it: C{request.getSession()},
    C{site.sessionFactory}, C{site.sessions}.
    """

    sessionFactory: Any = Session
    sessions: dict[bytes, Session]

    def __init__(
        self,
        resource: IResource,
        requestFactory: Any = None,
        *args: Any,
        store: str | ISessionStore = "memory:",
        cookie: CookiePolicy = CookiePolicy(),
        **kwargs: Any,
    ) -> None:
        """
        @param resource: the root of the resource tree.
        @param requestFactory: as L{server.Site}'s. Sessions are added to what it
            makes.
        @param store: a URL (see L{storeFromURL<twsessions.storeFromURL>}), or a
            provider of L{ISessionStore}, which is then not closed.
        @param cookie: the cookie's attributes.
        @param kwargs: the fields of L{Settings<twsessions.web.settings.Settings>};
            all others are L{server.Site}'s.
        @raise ValueError: a setting that cannot be, a URL of no store.
        @raise NotSupported: a store that this installation cannot reach.
        """
        settings = {name: kwargs.pop(name) for name in _SETTINGS if name in kwargs}
        server.Site.__init__(self, resource, None, *args, **kwargs)
        self._setUp(store, cookie, settings)
        self.requestFactory = requestFactory or server.Request

    @property
    def requestFactory(self) -> Any:
        """
        As L{server.Site}'s. Sessions are added to what is set.
        """
        return self._withSessions

    @requestFactory.setter
    def requestFactory(self, factory: Any) -> None:
        self._withSessions = _withSessions(factory)
        self._requestFactory = factory

    def _theReactor(self) -> IReactorTime:
        reactor: IReactorTime = self.reactor
        return reactor

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()
        state["_keeper"] = None
        state["_listeners"] = []
        del state["_withSessions"]  # made here, so pickle would not find it
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.requestFactory = _withSessions(self._requestFactory)

    def startFactory(self) -> None:
        """
        The first port listens: begin to look for what fell due meanwhile.
        """
        super().startFactory()
        self.keeper.isStopping = self._isOver  # also if the last stop is not done yet
        self.keeper.start()

    def stopFactory(self) -> None:
        """
        The last port has closed: store what is not stored.
        """
        super().stopFactory()
        self._stop()

    # As a resource within another site this one looks after its own requests.

    def getChildWithDefault(self, pathEl: bytes, request: Any) -> Any:
        """
        As L{server.Site}'s; below a site that is not a L{SessionSite}, the
        request gets its sessions from here.
        """
        child = super().getChildWithDefault(pathEl, request)
        if isinstance(request, SessionRequest):
            return child  # the outermost site has given it its sessions
        from twsessions.web.resource import Adopting

        waiting = adopt(request, self)
        return child if waiting is None else Adopting(child, waiting)


def _withSessions(factory: Any) -> Any:
    if isinstance(factory, type):
        if not issubclass(factory, server.Request):
            raise TypeError(
                f"requestFactory must make twisted.web.server.Request's, not {factory.__name__}"
            )
        return requestClassFor(factory)

    def make(*args: Any, **kwargs: Any) -> Any:
        request = factory(*args, **kwargs)
        if not isinstance(request, SessionRequest):
            request.__class__ = requestClassFor(type(request))
        return request

    return make
