"""
The same sessions for code that does not make its own Site.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure
from twisted.web.resource import IResource, Resource, _IEncodingResource, getChildForRequest
from twisted.web.server import NOT_DONE_YET
from zope.interface import implementer

from twsessions.core.cookies import CookiePolicy
from twsessions.interfaces import ISessionStore
from twsessions.web.owner import SessionOwner
from twsessions.web.page import within
from twsessions.web.request import adopt

__all__ = ["Adopting", "SessionResource"]


@implementer(IResource)
class SessionResource(SessionOwner):
    """
    Wraps the root of a resource tree: for C{klein.run}, C{treq.testing},
    C{twist web} and whatever else makes the Site itself::

        resource = SessionResource(app.resource(), store="sqlite:///sessions.db")
    """

    isLeaf = True
    server = None

    def __init__(
        self,
        root: IResource,
        *,
        reactor: IReactorTime | None = None,
        store: str | ISessionStore = "memory:",
        cookie: CookiePolicy = CookiePolicy(),
        **settings: Any,
    ) -> None:
        """
        @param root: the resource that answers.
        @param reactor: by default that of the site of the first request.
        @param store: as L{SessionSite<twsessions.SessionSite>}'s.
        @param cookie: likewise.
        @param settings: the fields of L{Settings<twsessions.web.settings.Settings>}.
        @raise ValueError: a setting that cannot be, a URL of no store.
        """
        self.root = root
        self._reactor = reactor
        self.sessions = {}
        self._setUp(store, cookie, settings)

    @property
    def reactor(self) -> IReactorTime:
        """
        What sessions are timed by.
        """
        return self._theReactor()

    def _theReactor(self) -> IReactorTime:
        if self._reactor is None:
            raise RuntimeError(
                "no reactor is known before the first request: give SessionResource one"
            )
        return self._reactor

    def getChildWithDefault(self, name: bytes, request: Any) -> Any:
        """
        Not called: this resource is a leaf, and looks further by itself.
        """
        return self

    def putChild(self, path: bytes, child: IResource) -> None:
        """
        Put a child on the wrapped resource.
        """
        self.root.putChild(path, child)

    def render(self, request: Any) -> object:
        """
        Load the request's session, then let the wrapped resources answer.
        """
        if self._reactor is None:
            self._reactor = request.site.reactor
        if self._keeper is None:
            self.keeper.start()
        return _renderAfter(
            request, adopt(request, self), lambda: getChildForRequest(self.root, request)
        )


class Adopting(Resource):
    """
    A resource that renders when a request's session has been loaded.
    """

    isLeaf = True

    def __init__(self, child: IResource, waiting: Deferred[Any]) -> None:
        super().__init__()
        self._child = child
        self._waiting = waiting

    def render(self, request: Any) -> object:
        """
        Wait, then render what is below.
        """
        return _renderAfter(
            request, self._waiting, lambda: getChildForRequest(self._child, request)
        )


def _renderAfter(request: Any, waiting: Deferred[Any] | None, find: Any) -> object:
    def go(_: object = None) -> None:
        if request._disconnected:
            return
        try:
            found = find()
            if _IEncodingResource.providedBy(found):  # as Request.process
                request._encoder = found.getEncoder(request) or request._encoder
            within(request, request.render, found)
        except BaseException:
            request.processingFailed(Failure())

    if waiting is None:
        go()
    else:
        waiting.addCallback(go)
    return NOT_DONE_YET
