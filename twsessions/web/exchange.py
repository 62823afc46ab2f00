"""
What happens to the sessions of one request, and to its response for their sake.

Whatever its cookies name is loaded before the resource renders, and what was
changed is stored before the first byte of the response leaves: a browser
follows a redirect as soon as it has the headers, and may ask another process.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred, DeferredList, fail
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web import http
from twisted.web.http_headers import Headers

from twsessions.core.cookies import NOTHING
from twsessions.errors import (
    SessionGone,
    StoreUnavailable,
    TooLateForSession,
    TooManySessions,
)
from twsessions.web.page import within
from twsessions.web.session import Session

if TYPE_CHECKING:
    from twsessions.core.cookies import CookiePolicy, Sent
    from twsessions.web.request import SessionRequest
    from twsessions.web.storekeeper import StoreKeeper

__all__ = ["Exchange", "abort"]

_NOBODY = object()  # the heir, when the request that was it is over
_CAREFUL = re.compile(rb"no-store|private", re.IGNORECASE)  # in Cache-Control


class _Slot:
    """
    One of the two sessions a request can have: over TLS, and in plain.
    """

    sent: Sent | None = None
    session: Session | None = None
    uid: bytes | None = None  # by which this request knows the session
    losses = 0  # the session's, when it was asked for
    isUsed = False  # else it was only looked at
    isLate = False  # it came with an id that was just replaced
    gone: Session | None = None  # the session, when the client has gone

    def __init__(self, secure: bool) -> None:
        self.secure = secure


class Exchange:
    """
    One request's dealings with its sessions.

    @ivar isOpen: the headers have left and nothing is held.
    """

    __slots__ = (
        "_awaited",
        "_covered",
        "_failed",
        "_held",
        "_loaded",
        "_outage",
        "_past",
        "_peeked",
        "_sent",
        "_slept",
        "_slots",
        "_then",
        "isOpen",
        "keeper",
        "owner",
        "request",
    )

    _log = Logger()

    def __init__(self, request: Any, owner: Any) -> None:
        self.request = request
        self.owner = owner
        self.keeper: StoreKeeper = owner._keeper or owner.keeper
        self._slots: tuple[_Slot, ...] = ()
        self._sent: tuple[Sent, Sent] | None = None  # what cookies there are: plain, secure
        self._loaded: dict[bytes, Session | None] | None = None
        self._awaited = 0  # answers
        self._then: Callable[[], object] | None = None  # instead of rendering the request
        self._outage: Exception | None = None
        self._held: deque[tuple[Callable[..., None], tuple[Any, ...]]] | None = None
        self._covered = 0  # of those held, the first that were there when the wait began
        self._past: tuple[Session, ...] = ()  # ended in this request, and replaced
        self._failed = self._slept = self._peeked = self.isOpen = False

    @property
    def policy(self) -> CookiePolicy:
        """
        How the cookies are to be.
        """
        policy: CookiePolicy = self.owner.cookie
        return policy

    @classmethod
    def of(cls, request: SessionRequest) -> Exchange:
        """
        The request's exchange.
        """
        exchange = request._exchange
        if exchange is None:
            channel = getattr(request, "channel", None)
            if channel is None:
                raise TooLateForSession("the request is over")
            exchange = request._exchange = cls(request, channel.site)
        return exchange

    # -- before rendering -----------------------------------------------------

    def load(self, lines: Sequence[bytes], then: Callable[[], object] | None = None) -> bool:
        """
        Ask the store for every session that a cookie names.

        @param then: called when there is an answer to all; perhaps before this
            returns. By default the request is rendered.
        @return: whether there is anything to ask for; if not, nothing is called.
        """
        self._sent = sent = self.owner.cookie.candidatesOf(lines)
        uids = dict.fromkeys(sent[0].uids + sent[1].uids)
        if not uids:
            return False
        self.request._exchange = self
        self._loaded = {}
        self._awaited = len(uids)
        self._then = then
        for uid in uids:
            self.keeper.loadThen(uid, self._arrived)
        return True

    def _arrived(self, uid: bytes, outcome: Session | Exception | None) -> None:
        if isinstance(outcome, Exception):
            if not isinstance(outcome, StoreUnavailable):
                failure = Failure(outcome)
                self._log.failure("a session could not be loaded", failure=failure)
            self._outage = outcome
        elif self._loaded is not None:
            if outcome is not None:
                outcome._users += 1  # until this request has said if it wants it
            self._loaded[uid] = outcome
        elif outcome is not None:
            self.keeper.unused(outcome)  # the request is over
        self._awaited -= 1
        if not self._awaited:
            then, self._then = self._then, None
            if then is not None:
                then()
            elif not self.request._disconnected:
                within(self.request, self.request._below.process, self.request)

    # -- while rendering ------------------------------------------------------

    def isSecure(self) -> bool:
        """
        Whether the request counts as secure. (A virtual host monster may change
        the answer during traversal.)
        """
        if self.request._disconnected and self._slots:
            # Without a connection nothing can tell if it was.
            return any(slot.secure for slot in self._slots)
        secure = self.owner.cookie.secure
        return bool(self.request.isSecure() if secure == "auto" else secure)

    def session(self, secure: bool) -> Session | None:
        """
        The session asked for already.
        """
        for slot in self._slots:
            if slot.secure is secure and slot.isUsed:
                return slot.session
        return None

    def getSession(self, forceNotSecure: bool) -> Session:
        """
        See L{SessionRequest.getSession}.
        """
        request = self.request
        secure = not forceNotSecure and self.isSecure()
        for slot in self._slots:
            if slot.secure is secure:
                break
        else:
            slot = _Slot(secure)
            self._slots += (slot,)
        session = slot.session
        if session is not None:
            if session._ended is not None:
                self._past += (session,)
                self._release(session)
            elif slot.isUsed:
                session.touch()
                return session
        elif request._disconnected:
            if slot.gone is None:
                raise TooLateForSession("getSession() came after the client had gone")
            slot.gone.touch()
            return slot.gone
        elif slot.sent is None:
            session = self._find(slot, secure)
        if session is None or session._ended is not None:
            if request.startedWriting:
                raise TooLateForSession(
                    "getSession() came after the response's headers had left: the new"
                    " session's cookie cannot be sent. Call it before the first write()."
                )
            # The new cookie of somebody who has just logged in is not to be
            # overwritten with that of a session that has nothing in it.
            live = self.owner.settings.createOn == "access" and not slot.isLate
            session = self.keeper.make(secure, live)
            slot.uid = session.uid
        if slot.session is not session:
            self._hold(slot, session)
        slot.isUsed = True
        holders = session._holders or {}
        del holders[self]
        holders[self] = True  # the last one
        session._requests += 1
        session.touch()
        session.awake(request)
        return session

    def _hold(self, slot: _Slot, session: Session) -> None:
        slot.session = session
        if session._rare is not None:
            slot.losses = session._rare.losses
        session._users += 1
        if session._holders is None:
            session._holders = {}
        session._holders[self] = False
        if self._loaded is not None:
            self._take(session)

    def peek(self, takesPart: bool = True) -> Session | None:
        """
        See L{SessionRequest.peekSession}.

        @param takesPart: whether what is done to it then is this request's, and
            its response waits until that is stored.
        """
        self._peeked = True
        secure = self.isSecure()
        for slot in self._slots:
            session = slot.gone if slot.session is None else slot.session
            if slot.secure is secure and session is not None:
                break
        else:
            slot = _Slot(secure)
            session = self._find(slot, secure)
            isOver = self.request.finished or self.request._disconnected
            if session is not None and takesPart and not isOver:
                self._slots += (slot,)
                self._hold(slot, session)
        return None if session is None or session._ended is not None else session

    def _take(self, session: Session) -> None:
        # It was held for whoever would ask; now the slot holds it.
        loaded = self._loaded or {}
        for uid, other in loaded.items():
            if other is session:
                del loaded[uid]
                session._users -= 1
                break

    def _find(self, slot: _Slot, secure: bool) -> Session | None:
        if self._sent is not None:
            sent = self._sent[secure]
        else:
            lines = self.request.requestHeaders.getRawHeaders(b"cookie")
            if lines is None:
                slot.sent = NOTHING
                return None
            sent = self.owner.cookie.candidates(lines, secure)
        if sent.uids and self._outage is not None:
            # Each time it is asked for; the cookie is left as it is.
            raise StoreUnavailable("the session could not be loaded") from self._outage
        slot.sent = sent
        loaded = self._loaded
        found: Session | None = None
        for uid in sent.uids:
            if loaded is None:
                session = self.keeper.found(uid)
            else:
                session = loaded.get(uid)
            if session is None or session._ended is not None:
                continue
            if session.secure != secure:
                self._log.warn("{session} came over the wrong kind of connection", session=session)
                continue
            if found is not None and found is not session:
                self._log.warn("two living sessions in one request: neither is used")
                return None
            found, slot.uid = session, uid
        if found is not None:
            found.isNew = False
        else:
            slot.isLate = any(map(self.keeper.rotations.isReplaced, sent.uids))
        return found

    def client(self) -> tuple[str | None, str | None]:
        """
        Who is asking: address and user agent, for C{sessionsOf}.
        """
        address = getattr(self.request.getClientAddress(), "host", None)
        agent = self.request.getHeader(b"user-agent")
        return address, None if agent is None else agent[:200].decode("latin-1")

    # -- the gate -------------------------------------------------------------

    def enter(self, action: Callable[..., None], *args: Any) -> None:
        """
        Do something to the response, when the store knows what the client will
        have seen.
        """
        if self._failed:
            return
        if self._held is not None:
            self._held.append((action, args))
            return
        if not self.request.startedWriting or action == self._finishNow:
            waiting = self._commit()
            if waiting is not None:
                self._held, self._covered = deque([(action, args)]), 1
                waiting.addBoth(self._answered)
                return
        action(*args)

    def _isQuiet(self) -> bool:
        """
        Whether nothing is in the way and nothing has to be waited for, seen at
        a glance, as most often: L{_commit} would find nothing to do.
        """
        request = self.request
        if (
            self._past
            or self._failed
            or self._held is not None
            or request._disconnected
            or request.finished
        ):
            return False
        for slot in self._slots:
            session = slot.session
            if (
                session is None
                or not self.keeper.commits.isStored(session)
                or not (self._slept or type(session).sleep is Session.sleep)
                or session._rare is not None
            ):
                return False
        return True

    def _commit(self) -> Deferred[Any] | None:
        """
        What has to be waited for, if anything.
        """
        keeper = self.keeper
        waits: list[Deferred[Any]] = []
        for session in self._past:
            stored = keeper.commits.store(session)
            if stored is not None:
                waits.append(stored)
        slept, self._slept = self._slept, self._slept or any(slot.isUsed for slot in self._slots)
        for slot in self._slots:
            used = slot.session if slot.session is not None else slot.gone
            if used is None:
                continue
            session = used
            if not slept and slot.isUsed and session._ended is None:
                try:
                    session.sleep(self.request)
                except Exception:
                    waits.append(fail())
            losses = 0
            if session._rare is not None:
                losses = session._rare.losses
                evicting = keeper.logins.evicting(session)
                if evicting is not None:
                    waits.append(evicting)
            if losses != slot.losses:
                slot.losses = losses
                waits.append(fail(_loss(session)))
            else:
                stored = keeper.commits.store(session)
                if stored is not None and not _isGood(stored):
                    waits.append(stored)
        if not waits:
            for slot in self._slots:
                refusal = None if slot.session is None else keeper.logins.refusal(slot.session)
                if refusal is not None:
                    return refusal
            return None
        if len(waits) == 1:
            return waits[0]

        def first(failure: Failure) -> Failure:
            reason: Failure = failure.value.subFailure  # type: ignore[union-attr]
            return reason

        both = DeferredList(waits, fireOnOneErrback=True, consumeErrors=True)
        return both.addErrback(first)

    def _answered(self, outcome: object) -> None:
        try:
            if isinstance(outcome, Failure):
                self._refused(outcome)
            else:
                self._stored()
        except Exception:
            self._log.failure("a request's session went wrong")

    def _stored(self) -> None:
        held, self._held = self._held, None
        assert held is not None
        request = self.request
        covered = self._covered if self._isKept() else 0
        isChecked = False  # all is stored, and nobody could change anything since
        while held:
            action, args = held.popleft()
            isChecked = isChecked or (not covered and self._isQuiet())
            if isChecked or covered:
                covered -= bool(covered)
                if not self._failed:
                    action(*args)
            else:
                isChecked = not request.startedWriting
                self.enter(action, *args)
                if self._held is not None:  # held again: the rest waits behind it
                    self._held.extend(held)
                    self._covered = len(self._held)
                    return
            if request.producer is not None:
                isChecked, covered = False, 0

    def _isKept(self) -> bool:
        """
        Whether what was waited for, and has been stored, is as it was. The values
        may have changed again: a session that many requests change at the same
        time has always something to store, and must not keep them waiting.
        """
        for slot in self._slots:
            session = slot.session
            if session is None or session._ended is not None or session._record is None:
                return False
            rare = session._rare
            if rare is not None and (
                rare.rotated
                or rare.losses != slot.losses
                or rare.evicting is not None
                or rare.refusal is not None
            ):
                return False
        return not (self._past or self.request._disconnected)

    def _refused(self, failure: Failure) -> None:
        """
        It could not be stored, and the client must not believe it was.
        """
        self._stopHeld()
        self._held = None
        request = self.request
        self._log.failure(
            "the session of {request} could not be stored", failure=failure, request=request
        )
        if request._disconnected or request.finished:
            self._failed = True  # nobody is there to be told
        elif request.startedWriting:
            self._failed = True
            if request.producer is not None:
                request.producer.stopProducing()
            self.done()
            abort(request.channel)
        elif failure.check(SessionGone):
            self.answer(http.CONFLICT, b"The session has ended")
        elif failure.check(TooManySessions):
            self.answer(http.FORBIDDEN, b"Too many sessions")
        else:
            self.answer(http.INTERNAL_SERVER_ERROR, b"The session could not be stored")

    def _stopHeld(self) -> None:
        for action, args in self._held or ():
            if action == self._register:
                args[0].stopProducing()

    def discard(self) -> None:
        """
        The resource has failed after it began to answer: if none of that has
        left yet, none does, for the headers will be those of an error page.
        """
        if self._held is not None and not self.request.startedWriting:
            self._stopHeld()
            self._held.clear()
            self._covered = 0

    def answer(self, code: int, text: bytes, retry: bool = False) -> None:
        """
        Answer in the resource's stead, and take nothing more from it.
        """
        request = self.request
        keepsCookies = code in (http.CONFLICT, http.FORBIDDEN)
        producer = request.producer
        if producer is not None:
            self.unregisterProducer()
            producer.stopProducing()
        self._failed = True
        headers = Headers()
        for name in (b"server", b"date"):
            for value in request.responseHeaders.getRawHeaders(name, ()):
                headers.addRawHeader(name, value)
        request.responseHeaders = headers
        request.cookies[:] = []
        if keepsCookies:
            self._cookies()
        request.etag = request.lastModified = None
        request.setResponseCode(code)
        body = b"<html><title>%d</title><p>%s</p></html>\n" % (code, text)
        headers.setRawHeaders(b"content-type", [b"text/html; charset=utf-8"])
        headers.setRawHeaders(b"content-length", [b"%d" % len(body)])
        headers.setRawHeaders(b"cache-control", [b"no-store"])
        if retry:
            headers.setRawHeaders(b"retry-after", [b"1"])
        self.passOn(body)
        self._finishNow()

    # -- what goes out --------------------------------------------------------

    def write(self, data: bytes) -> None:
        """
        The resource writes, perhaps for the first time.
        """
        request = self.request
        if request.startedWriting or not self._isQuiet():
            self.enter(self.passOn, data)
            return
        self._cookies()
        request._below.write(request, data)
        self.isOpen = bool(request.startedWriting)

    def passOn(self, data: bytes) -> None:
        """
        Write to the connection.
        """
        request = self.request
        if not request.startedWriting and not request._disconnected:
            if not self._failed:
                self._cookies()
            request._below.write(request, data)
            self.isOpen = not self._failed and bool(request.startedWriting)
            return
        own = request.__dict__.get("write")
        if getattr(own, "__module__", None) == http.__name__:
            own(data)  # Twisted's for HEAD, 204 and 304, not somebody's around ours
        else:
            request._below.write(request, data)

    def finish(self) -> None:
        """
        The resource is done.
        """
        request = self.request
        if self._failed:
            return
        if request.finished or request._disconnected:
            self.gone()
            request._below.finish(request)
            return
        self.isOpen = False
        if self._isQuiet():
            self._finishNow()
        else:
            self.enter(self._finishNow)

    def _finishNow(self) -> None:
        request = self.request
        if not request._disconnected:
            if not request.startedWriting:
                self.passOn(b"")
            request._below.finish(request)
        self.done()
        if not self._failed:
            request._exchange = None  # the two need not wait for the garbage collector

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """
        A producer wants to write.
        """
        if self._failed:
            producer.stopProducing()
        else:
            self.enter(self._register, producer, streaming)

    def _register(self, producer: Any, streaming: bool) -> None:
        if self.request._disconnected:
            producer.stopProducing()
        else:
            self.request._below.registerProducer(self.request, producer, streaming)

    def unregisterProducer(self) -> None:
        """
        The producer has written all.
        """
        if self.request.producer is not None and not self.request._disconnected:
            self.request._below.unregisterProducer(self.request)

    def gone(self) -> None:
        """
        There is no client any more; there may still be something to store.
        """
        if self._held is None:
            waiting = self._commit()
            if waiting is not None:
                waiting.addErrback(
                    lambda failure: self._log.failure(
                        "the session of {request} could not be stored",
                        failure=failure,
                        request=self.request,
                    )
                )
        for slot in self._slots:
            slot.gone = slot.session or slot.gone  # the resource may go on with it
        self.done()

    def done(self) -> None:
        """
        The request has done with its sessions.
        """
        for slot in self._slots:
            session, slot.session = slot.session, None
            if session is not None:
                if session._rare is not None and session._rare.heir is self:
                    session._rare.heir = _NOBODY  # the session must not keep it
                self._release(session)
        loaded, self._loaded = self._loaded, None
        if loaded:
            for unasked in loaded.values():
                if unasked is not None:
                    self.keeper.release(unasked)

    def _release(self, session: Session) -> None:
        if session._holders is not None:
            session._holders.pop(self, None)
        self.keeper.release(session)

    def _cookies(self) -> None:
        """
        Say in the headers what became of the session.
        """
        policy, used = self.owner.cookie, self._peeked
        for slot in self._slots:
            used, secure = True, slot.secure
            session, sent = slot.session, slot.sent
            if session is None:
                continue
            if session._ended is not None:
                if sent is not None and sent.presented and self._inherits(session):
                    self._setCookie(secure, policy.deleteCookie(secure))
            elif (
                sent is not None
                and sent.uids == (session.uid,)
                and (policy.maxAge is None or not slot.isUsed)
            ):
                pass  # it has its cookie
            elif self.keeper.isKnown(session) and (
                session.uid == slot.uid or self._inherits(session)
            ):
                self._setCookie(secure, policy.setCookie(session.uid, secure))
            # Otherwise it was never stored, or another process has given it an id
            # that only the browser knows. A cookie of nobody's is left as it is: by
            # now there may be a good one in its place.
        if used:
            _vary(self.request.responseHeaders)

    def _inherits(self, session: Session) -> bool:
        """
        Whether the client is to know the session's new id, or its end.
        """
        heir = None if session._rare is None else session._rare.heir
        return heir is None or heir is self

    def _setCookie(self, secure: bool, line: bytes) -> None:
        request = self.request
        theirs = request.responseHeaders.getRawHeaders(b"set-cookie")
        if theirs is not None:
            # Of WSGI or a proxied server; Twisted would write ours over them.
            request.cookies[:0] = theirs
            request.responseHeaders.removeHeader(b"set-cookie")
        if request.cookies:
            # RFC 6265bis: not two lines for one name.
            start = self.policy.nameFor(secure) + b"="
            request.cookies[:] = [one for one in request.cookies if not one.startswith(start)]
        request.cookies.append(line)
        headers = request.responseHeaders
        control = headers.getRawHeaders(b"cache-control")
        if control is None or not _CAREFUL.search(b",".join(control)):
            headers.setRawHeaders(b"cache-control", [b"no-store"])


def _isGood(deferred: Deferred[None]) -> bool:
    return deferred.called and deferred.result is None


def _loss(session: Session) -> Exception:
    if session._ended is not None:
        return SessionGone("the session ended before it was stored")
    return StoreUnavailable("what was changed was dropped with a commit that failed")


def abort(channel: Any) -> None:
    """
    Break off a response whose headers have left.
    """
    # A stream of HTTP/2 can be ended by itself; in HTTP/1.1 the client only
    # learns that the response is not whole when the connection breaks.
    abort = getattr(channel, "abortConnection", None)
    if abort is None:
        abort = channel.transport.abortConnection
    abort()


def _vary(headers: Headers) -> None:
    values = headers.getRawHeaders(b"vary")
    if values is None:
        headers.setRawHeaders(b"vary", [b"Cookie"])
        return
    named = {name.strip().lower() for value in values for name in value.split(b",")}
    if b"cookie" not in named and b"*" not in named:
        headers.addRawHeader(b"vary", b"Cookie")
