"""
A request that has a session.

C{request.getSession()} answers at once, but a store answers later. So there is
one way through: L{SessionRequest} is mixed into the site's request class and
passes all on to its L{Exchange<twsessions.web.exchange.Exchange>}, made when it
first matters.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from twisted.web import http, server

from twsessions.errors import StoreUnavailable
from twsessions.web.exchange import Exchange
from twsessions.web.page import within
from twsessions.web.session import Session

__all__ = ["SessionRequest", "adopt", "requestClassFor"]


class _Below:
    """
    The methods of a class of requests as they are below L{SessionRequest}.
    """

    def __init__(self, cls: type) -> None:
        order = cls.__mro__
        below = order[order.index(SessionRequest) + 1 :]
        for name in ("process", "write", "finish", "registerProducer", "unregisterProducer"):
            for base in below:
                if name in base.__dict__:
                    setattr(self, name, base.__dict__[name])
                    break

    process: Callable[[Any], None]
    write: Callable[[Any, bytes], None]
    finish: Callable[[Any], None]
    registerProducer: Callable[[Any, Any, bool], None]
    unregisterProducer: Callable[[Any], None]


class SessionRequest(server.Request):
    """
    A request whose sessions come from a L{StoreKeeper}.
    """

    _exchange: Exchange | None = None
    _below: ClassVar[_Below]
    _hostIsSet = False
    channel: Any

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._below = _Below(cls)

    def process(self) -> None:
        """
        Load what the cookies name, then go on as any request.
        """
        owner = self.channel.site
        if not (owner._keeper or owner.keeper).local:
            lines = self.requestHeaders.getRawHeaders(b"cookie")
            if lines is not None and Exchange(self, owner).load(lines):
                return
        within(self, self._below.process, self)

    @property
    def session(self) -> Session | None:
        """
        The session this request has asked for already, or L{None}.
        """
        exchange = self._exchange
        return None if exchange is None else exchange.session(exchange.isSecure())

    def getSession(self, sessionInterface: Any = None, forceNotSecure: bool = False) -> Any:
        """
        The user's session; a new one if there is none.

        @param sessionInterface: give that component of it instead.
        @param forceNotSecure: the one that is used over plain HTTP, even if this
            request came over TLS.
        @raise StoreUnavailable: it could not be loaded. Not caught, it is
            answered by 503; the cookie stays good.
        @raise TooLateForSession: there is none, and the headers have left, so a
            cookie cannot be set any more.
        """
        exchange = self._exchange
        if exchange is None:
            exchange = Exchange.of(self)
        session = exchange.getSession(forceNotSecure)
        return session.getComponent(sessionInterface) if sessionInterface else session

    def peekSession(self) -> Session | None:
        """
        The user's session, if there is one. Unlike C{getSession()} this makes
        none, and does not count as use. What is changed in it is stored before
        the response leaves, all the same.

        @raise StoreUnavailable: it could not be loaded.
        @raise TooLateForSession: the request is over.
        """
        return Exchange.of(self).peek()

    def isSecure(self) -> bool:
        """
        As Twisted's, which asks the connection each time; it will not change.
        """
        channel = getattr(self, "channel", None)
        secure: bool | None = getattr(channel, "_twsessionsSecure", None)
        if secure is None or self._hostIsSet:
            secure = super().isSecure()
            if channel is not None and not self._hostIsSet:
                channel._twsessionsSecure = secure
        return secure

    def setHost(self, host: bytes, port: int, ssl: bool = False) -> None:
        """
        As Twisted's, for reverse proxies: C{ssl} counts as a secure connection.
        """
        self._hostIsSet = True
        super().setHost(host, port, ssl)

    def write(self, data: bytes) -> None:
        """
        As Twisted's; the first one waits for the store.
        """
        exchange = self._exchange
        if exchange is None:
            self._below.write(self, data)
        elif exchange.isOpen:
            exchange.passOn(data)
        else:
            exchange.write(data)

    def finish(self) -> None:
        """
        As Twisted's; waits for the store.
        """
        exchange = self._exchange
        if exchange is None:
            self._below.finish(self)
        else:
            exchange.finish()

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """
        As Twisted's; the producer is not asked for anything before the store
        has answered.
        """
        exchange = self._exchange
        if exchange is None:
            super().registerProducer(producer, streaming)
        else:
            exchange.registerProducer(producer, streaming)

    def unregisterProducer(self) -> None:
        """
        As Twisted's.
        """
        exchange = self._exchange
        if exchange is None:
            super().unregisterProducer()
        else:
            exchange.enter(exchange.unregisterProducer)

    def connectionLost(self, reason: Failure) -> None:
        """
        The client went away; what it changed is stored all the same.
        """
        exchange = self._exchange
        if exchange is not None:
            exchange.gone()
        super().connectionLost(reason)

    def processingFailed(self, reason: Failure) -> Failure:
        """
        As Twisted's, but 503 if the session's store is away.
        """
        if self._exchange is not None:
            self._exchange.discard()
        if reason.check(StoreUnavailable) and not self.startedWriting:
            Exchange.of(self).answer(http.SERVICE_UNAVAILABLE, b"Service Unavailable", retry=True)
            return reason
        failed: Failure = super().processingFailed(reason)
        return failed

    def getStateToCopyFor(self, issuer: Any) -> dict[str, Any]:
        """
        For C{twisted.web.distrib}: sessions stay in the process that made them.
        """
        state: dict[str, Any] = super().getStateToCopyFor(issuer)
        state.pop("_exchange", None)
        return state

    def getTypeToCopy(self) -> bytes:
        """
        For C{twisted.web.distrib}, which knows one class only.
        """
        return b"twisted.web.server.Request"


SessionRequest._below = _Below(SessionRequest)

_classes: dict[type, type] = {}


def requestClassFor(base: type) -> type:
    """
    C{base}, a kind of L{server.Request}, with sessions.
    """
    if base is server.Request:
        return SessionRequest
    if issubclass(base, SessionRequest):
        return base
    made = _classes.get(base)
    if made is None:
        names = {"__module__": base.__module__}
        made = _classes[base] = type(base.__name__, (SessionRequest, base), names)
    return made


def adopt(request: Any, owner: Any) -> Deferred[Any] | None:
    """
    Give a request that some other site has made its session from C{owner}.

    @return: L{None}, or a Deferred that fires when it can render.
    """
    if getattr(request, "channel", None) is None:
        return None  # of distrib, with no connection: it has the stock sessions of its site
    if not isinstance(request, SessionRequest):
        request.__class__ = requestClassFor(type(request))
    if request._exchange is not None:
        if request._exchange.owner is owner:
            return None
        request._exchange.done()
        request._exchange = None
    exchange = request._exchange = Exchange(request, owner)
    lines = request.requestHeaders.getRawHeaders(b"cookie")
    loaded: Deferred[None] = Deferred()
    if lines is None or not exchange.load(lines, partial(loaded.callback, None)):
        return None
    return loaded
