"""
What C{request.getSession()} returns.

Three things are called session here. This one is the web session of a user. Its
values live in a L{Data<twsessions.core.data.Data>}; its stored state is a
L{Record<twsessions.core.record.Record>}. Whatever concerns the whole site
(time, the store, who else uses this session) is its
L{keeper's<twsessions.web.keeper.Keeper>}.
"""

from __future__ import annotations

from collections.abc import Callable, ItemsView, Iterator, MutableMapping, ValuesView
from functools import cached_property
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred, ensureDeferred, maybeDeferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.python.reflect import qual
from twisted.web import server

from twsessions.core.codec import encode
from twsessions.core.data import Data, View
from twsessions.core.delta import COMPONENT, DATA, UNSET, Birth, Change, Unset
from twsessions.core.ids import csrfTokenOf, keyOf, logName, makeSeed
from twsessions.core.lifecycle import checkSeconds, checkTimeout, deadlineOf, reasonAt
from twsessions.errors import SessionGone, SessionTooLarge
from twsessions.web.components import isPersistent, refresh, revert, sync
from twsessions.web.flash import Flash
from twsessions.web.keeper import keeperOf

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from twsessions.core.record import Record
    from twsessions.web.exchange import Exchange
    from twsessions.web.exclusive import Exclusive
    from twsessions.web.keeper import Keeper
    from twsessions.web.logins import Awaitable

__all__ = ["Session"]

_DAY = 86400


class _Rare:
    """
    What few sessions have, kept apart so that a plain one stays small.
    """

    __slots__ = (
        "callbacks",
        "ending",
        "evicting",
        "finished",
        "following",
        "forgotten",
        "heir",
        "idle",
        "login",
        "losses",
        "olden",
        "principal",
        "refusal",
        "rotated",
        "waiting",
    )

    def __init__(self) -> None:
        self.callbacks: list[Callable[[], object]] = []
        self.idle: float | None | Unset = UNSET  # by setTimeout
        self.principal: str | None | Unset = UNSET  # not stored yet
        self.login = False  # not stored yet
        self.rotated = False  # the uid differs from what is stored
        self.heir: object = None  # the exchange that tells of the new uid, or the end; L{None}: any
        self.olden: list[bytes] = []  # uids by which it can still be found
        self.waiting: list[Deferred[None]] = []  # for the commit, or the end, under way
        self.following: list[Deferred[None]] = []  # for the commit after that
        self.ending = False  # the store is being told of the end
        self.evicting: list[Deferred[None]] | None = None  # who waits, while a login does so
        self.refusal: Awaitable | None = None  # a login that failed, for the response to tell
        self.forgotten = False  # the store has been told
        self.finished = False  # has ended, and callbacks were called
        self.losses = 0  # commits that failed, and dropped what anybody had changed

    @property
    def isUnstored(self) -> bool:
        """
        Whether some of it is to be stored.
        """
        return self.rotated or self.login or self.principal is not UNSET or self.idle is not UNSET


class _Core:
    """
    What every use looks at, in one place of an instance: where there are very
    many, reading it from memory is what use costs.
    """

    __slots__ = ("_ended", "_keeper", "_record", "lastModified", "queued")


class Session(_Core, server.Session, MutableMapping[str, Any]):
    """
    A user's session: a L{twisted.web.server.Session} and a mapping of values
    that are stored.

    Keys are C{str}. Values are C{None}, C{bool}, C{int}, C{float}, C{str},
    C{bytes}, C{list}, C{tuple}, C{dict}, C{set}, C{frozenset}, C{datetime},
    C{date}, C{time}, C{timedelta}, C{Decimal} and C{UUID}, nested freely; they come
    back equal and of the same type. Anything else raises L{TypeError} at the
    assignment. Changes inside a value (C{session["cart"].append(x)}) are
    noticed. Plain attributes live in this process only.

    @cvar sessionTimeout: seconds a session may stay unused before it ends;
        L{None}: it never idles out. A subclass or an instance may set it.
    @cvar absoluteTimeout: seconds after its creation at which it ends, however
        much it is used; L{None}: no limit. (OWASP ASVS 5.0, 7.3.1 and 7.3.2.)
    @ivar uid: the id, 64 hex digits as C{bytes}. A secret: do not log it.
    @ivar site: what made it: a L{twisted.web.server.Site}.
    @ivar created: when it was made, by the reactor's clock.
    @ivar lastModified: when it was last used, by the reactor's clock.
    """

    __slots__ = (
        "_cache",
        "_data",
        "_holders",
        "_isCommitting",
        "_rare",
        "_requests",
        "_seed",
        "_users",
        "created",
        "isNew",
        "secure",
        "site",
        "uid",
    )

    _log = Logger()

    sessionTimeout: float | None  # type: ignore[assignment]  # Twisted's own may have been set
    absoluteTimeout: float | None = 30 * _DAY

    # Twisted's classes give every instance a dictionary and lists it seldom
    # needs; here they are made when first asked for.

    def __init__(self, site: Any, uid: bytes, reactor: IReactorTime | None = None) -> None:
        """
        @param site: the site it belongs to, with C{sessions} and C{reactor}.
        @param uid: its id.
        @param reactor: L{IReactorTime}; by default the site's.
        """
        self.site = site
        self.uid = uid
        self._keeper: Keeper = keeperOf(site, reactor)
        self.created = self.lastModified = self._keeper.seconds()
        self._data: Data | None = None
        self._record: Record | None = None
        self._rare: _Rare | None = None
        self._ended: str | None = None
        self._seed: bytes | None = None
        self._users = 0
        self._requests = int(self._keeper.lookUpIsUse)  # there, a request made it
        # Whose responses are under way, and whether they have asked for it or only looked.
        self._holders: dict[Exchange, bool] | None = None
        self._isCommitting = False
        self._cache: dict[str, object] | None = None
        self.isNew = True
        self.secure = False
        self.queued: float | None = None

    @property
    def _adapterCache(self) -> dict[str, object]:
        """
        Where Componentized keeps components.
        """
        components = self._cache
        if components is None:
            components = self._cache = {}
        return components

    @_adapterCache.setter
    def _adapterCache(self, components: dict[str, object]) -> None:
        self._cache = components

    @cached_property
    def sessionNamespaces(self) -> dict[str, Any]:  # type: ignore[override]
        """
        As Twisted: a dictionary of this process.
        """
        return {}

    def __repr__(self) -> str:
        state = self._ended or ("new" if self.isNew else "alive")
        return f"<{type(self).__name__} {logName(self.uid)} {state}>"

    def __bool__(self) -> bool:
        # Twisted takes a false session for a missing one, so an empty mapping
        # must be true. A stock Site asks exactly when it has found a session by
        # its cookie, once in a request, and nowhere else tells it: there this
        # counts as use.
        keeper = self._keeper
        if keeper.lookUpIsUse and self._ended is None:
            if self._isDue(keeper.seconds()):
                keeper.fellDue(self)  # the reactor has not come round to it: a new one is made
                return False
            self.touch()
            self.isNew = False
            self._requests += 1
        return True

    __eq__ = object.__eq__  # a session is itself, whatever is in it
    __hash__ = object.__hash__

    # -- values ---------------------------------------------------------------

    @property
    def _values(self) -> Data:
        data = self._data
        if data is None:
            self._data = data = self._keeper.dataOf(self)
        return data

    def _writable(self) -> Data:
        if self._ended is not None:
            raise SessionGone("the session has ended; nothing can be stored in it")
        return self._values

    def __getitem__(self, key: str) -> Any:
        data = self._data
        if data is None:
            data = self._values
        try:
            return data[DATA + key]
        except (KeyError, TypeError):
            raise KeyError(key) from None

    def __setitem__(self, key: str, value: Any) -> None:
        if type(key) is not str:
            raise TypeError(f"a session's keys are str, not {type(key).__name__}")
        data = self._data
        if data is None or self._ended is not None:
            data = self._writable()
        data.assign(DATA + key, value, key)
        if not self._users:
            self._keeper.changed(self)

    def __delitem__(self, key: str) -> None:
        del View(self._writable(), DATA)[key]
        self._keeper.changed(self)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and (DATA + key) in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(View(self._values, DATA))

    def __len__(self) -> int:
        return len(View(self._values, DATA))

    # A value that turns out to be unreadable is passed over.

    def items(self) -> ItemsView[str, Any]:
        return View(self._values, DATA).items()

    def values(self) -> ValuesView[Any]:
        return View(self._values, DATA).values()

    def popitem(self) -> tuple[str, Any]:
        item = View(self._writable(), DATA).popitem()
        self._keeper.changed(self)
        return item

    def clear(self) -> None:
        """
        Remove all values; the session goes on.
        """
        View(self._writable(), DATA).clear()
        self._keeper.changed(self)

    @property
    def flash(self) -> Flash:
        """
        One-shot values: reading one takes it away.
        """
        return Flash(self)

    def _components(self) -> View:
        return View(self._values, COMPONENT)

    def unsetComponent(self, interfaceClass: Any) -> None:
        """
        As Twisted. A persistent component is no longer stored, either.
        """
        name = qual(interfaceClass)
        if isPersistent(name):
            self._adapterCache.pop(name, None)  # perhaps nobody has asked for it
            self._unstore(name)
        else:
            super().unsetComponent(interfaceClass)

    def removeComponent(self, component: object) -> list[Any]:
        """
        As Twisted. A persistent component is no longer stored, either.
        """
        for name, known in self._adapterCache.items():
            if known is component and isPersistent(name):
                self._unstore(name)
        interfaces: list[Any] = super().removeComponent(component)
        return interfaces

    def _unstore(self, name: str) -> None:
        if self._ended is None and name in self._components():
            del self._components()[name]
            self._keeper.changed(self)

    # -- state ----------------------------------------------------------------

    @property
    def _reactor(self) -> IReactorTime:
        return self._keeper.reactor

    @property
    def principal(self) -> str | None:
        """
        Who is logged in, or L{None}.
        """
        rare = self._rare
        if rare is not None and not isinstance(rare.principal, Unset):
            return rare.principal
        return None if self._record is None else self._record.principal

    @property
    def isExpired(self) -> bool:
        """
        Whether it has ended, or is about to.
        """
        return self._ended is not None

    @property
    def isDirty(self) -> bool:
        """
        Whether there is a change that is not stored yet.
        """
        return self._ended is None and self._hasChanges()

    @property
    def requestCount(self) -> int:
        """
        How many requests have used it, this one included. Counts of other
        processes arrive with their next write. On a stock Site, a session that
        is asked for its truth by the page as well counts that too.
        """
        return self._requests + (0 if self._record is None else self._record.uses)

    @property
    def csrfToken(self) -> str:
        """
        A token for forms: the same for the life of the session, but for a
        L{login}, and of no use as an id. (OWASP ASVS 5.0, 3.5.1.)
        """
        rare = self._rare
        epoch = 0 if self._record is None else self._record.epoch
        if rare is not None:
            epoch += rare.login
        return csrfTokenOf(self._ownSeed(), epoch)

    @property
    def expireCallbacks(self) -> list[Callable[[], object]]:
        """
        As Twisted: the list of what L{notifyOnExpire} was given.
        """
        return self._more().callbacks

    @expireCallbacks.setter
    def expireCallbacks(self, callbacks: list[Callable[[], object]]) -> None:
        self._more().callbacks = callbacks

    def describe(self) -> dict[str, object]:
        """
        What an error report may say of this session: no id, no values, only
        names, types and sizes.
        """
        data = self._values
        values = {}
        for name in data:
            try:
                value = data[name]
                values[name[1:]] = f"{type(value).__name__}, {len(encode(value))} bytes"
            except Exception as error:
                values[name[1:]] = f"unreadable: {type(error).__name__}"
        return {
            "name": logName(self.uid),
            "created": self.created,
            "lastModified": self.lastModified,
            "deadline": self._deadline(),
            "requestCount": self.requestCount,
            "isNew": self.isNew,
            "isExpired": self.isExpired,
            "loggedIn": self.principal is not None,
            "values": values,
        }

    # -- use ------------------------------------------------------------------

    def touch(self) -> None:
        """
        Count this moment as use: the idle time begins again. Nothing happens
        if the session has ended.
        """
        if self._ended is not None:
            return
        keeper = self._keeper
        self.lastModified = keeper.seconds()
        if self._record is not None:
            keeper.touched(self)
        elif (
            self.sessionTimeout is keeper.commonIdle
            and self.absoluteTimeout is keeper.commonAbsolute
        ):
            return  # few have limits of their own
        queued = self.queued
        if queued is not None and (self._deadline() or queued) < queued:
            keeper.queue(self)  # a limit has become shorter

    def setTimeout(self, seconds: float | None) -> None:
        """
        Give this one session its own idle timeout, which is stored with it.

        @param seconds: from now on; L{None}: it does not idle out.
        @raise ValueError: not a positive, finite number.
        """
        self._more().idle = checkTimeout(seconds, "the timeout")
        self.__dict__.pop("sessionTimeout", None)
        self._keeper.queue(self)
        self._keeper.changed(self)

    def startCheckingExpiration(self) -> None:
        """
        As Twisted: from now on it ends when its time is over. Called by
        whatever made it.
        """
        self._keeper.queue(self)

    def awake(self, request: server.Request) -> None:
        """
        A hook for subclasses: a request begins to use the session.
        """

    def sleep(self, request: server.Request) -> None:
        """
        A hook for subclasses: the response to a request that used the session
        is about to leave. What is changed here is stored with the rest.
        """

    def expiring(self) -> None:
        """
        A hook for subclasses: the session has ended; runs before the callbacks
        of L{notifyOnExpire}.
        """

    # -- end ------------------------------------------------------------------

    def notifyOnExpire(self, callback: Callable[[], object]) -> Callable[[], None]:
        """
        Call C{callback}, once, in this process, when the session ends: anywhere
        and for whatever reason. One that is added after the end is called at
        once.

        @param callback: takes no arguments. May return a Deferred or be a
            coroutine function. If it fails that is logged, and the others run.
        @return: a function that withdraws the callback; calling it twice or too
            late does nothing.
        """
        rare = self._more()
        if rare.finished:
            self._call(callback)
            return lambda: None
        rare.callbacks.append(callback)
        self._keeper.pinned(self)
        isThere = True

        def withdraw() -> None:
            nonlocal isThere
            if isThere and callback in rare.callbacks:
                rare.callbacks.remove(callback)
            isThere = False

        return withdraw

    def expire(self) -> Deferred[None]:
        """
        End the session. To do it again does no harm, from a callback neither.

        @return: fires when the store has forgotten it and the callbacks have
            been called. It fails with
            L{StoreUnavailable<twsessions.errors.StoreUnavailable>} if the store
            cannot be told.
        """
        return self._keeper.end(self, "logout")

    def logout(self) -> Deferred[None]:
        """
        The same as L{expire}. Need not be waited for: the response waits.
        """
        return self.expire()

    def rotate(self) -> bytes:
        """
        Give the session a new id; its values stay. The old id is dead, in every
        process, when the response leaves. To be done whenever somebody's
        rights change; L{login} does it. (OWASP ASVS 5.0, 7.2.4.)

        @return: the new id.
        @raise NeedsSessionSite: a stock Site would not send the new cookie.
        @raise SessionGone: it has ended.
        @raise TooLateForSession: the response's headers have left.
        """
        if self._ended is not None:
            raise SessionGone("the session has ended; its id cannot be changed")
        return self._keeper.rotate(self)

    def login(self, principal: str) -> Deferred[None]:
        """
        L{Rotate<rotate>} the id and bind the session to somebody. Need not be
        waited for: the response waits.

        @param principal: who it is, in the application's own terms.
        @return: fires when it is stored. It fails with
            L{TooManySessions<twsessions.errors.TooManySessions>} if the site
            refuses more of the principal's; if nobody waits for it, the
            response is then a 403.
        @raise TypeError: C{principal} is not a C{str}, or has lone surrogates.
        @raise NeedsSessionSite: as L{rotate}.
        """
        if not isinstance(principal, str) or not principal:
            raise TypeError(f"a principal is a str that is not empty, not {principal!r}")
        try:
            principal.encode()
        except UnicodeEncodeError:
            raise TypeError("a principal with lone surrogates cannot be stored") from None
        self.rotate()
        return self._keeper.bind(self, principal)

    def commit(self) -> Deferred[None]:
        """
        Store what has changed, now. For code outside a request: within one, the
        response does it.

        @return: fires when every process can see it.
        @raise SessionGone: (through the Deferred) it has ended meanwhile.
        @raise SessionTooLarge: (likewise) it is over C{maxSessionBytes}.
        @raise StoreUnavailable: (likewise) the store does not answer.
        """
        return self._keeper.commit(self)

    def exclusive(self, timeout: float | None = 10.0) -> Exclusive:
        """
        For C{async with}: have the session to oneself, across all processes.
        The values are fresh on entry and stored on exit, also if the body
        raises: as those that a failing page has changed.

        @param timeout: seconds to wait for whoever has it.
        @raise LeaseTimeout: (on entry) it was not to be had in time; (on exit)
            for C{leaseDuration} the store did not hear from this process, so
            that another may have had it: nothing of what was changed is stored.
        @raise NotSupported: the store has no leases.
        """
        return self._keeper.exclusive(self, timeout)

    # -- for the keeper -------------------------------------------------------

    def _more(self) -> _Rare:
        rare = self._rare
        if rare is None:
            self._rare = rare = _Rare()
        return rare

    def _bind(self, principal: str) -> None:
        rare = self._more()
        rare.principal = principal
        rare.login = True
        self._keeper.changed(self)

    def _ownSeed(self) -> bytes:
        if self._record is not None:
            return self._record.seed
        if self._seed is None:
            self._seed = makeSeed(self._keeper.entropy)
        return self._seed

    def _idle(self) -> float | None:
        rare, record = self._rare, self._record
        if rare is not None and not isinstance(rare.idle, Unset):
            return rare.idle
        if record is not None and record.ownIdle:
            return record.idle
        return self.sessionTimeout

    def _checkTimeouts(self) -> None:
        checkSeconds(self.sessionTimeout, "sessionTimeout")
        checkSeconds(self.absoluteTimeout, "absoluteTimeout")

    def _absolute(self) -> float | None:
        record = self._record
        return self.absoluteTimeout if record is None else record.absolute

    def _deadline(self) -> float | None:
        """
        When it falls due by the reactor's clock; L{None} if it has ended.
        """
        if self._ended is not None:
            return None
        return deadlineOf(self.lastModified, self._idle(), self.created, self._absolute())

    def _isDue(self, now: float) -> bool:
        """
        Whether L{_deadline} has come; the session has not ended.
        """
        if self._rare is None and self._record is None:
            idle, absolute = self.sessionTimeout, self.absoluteTimeout
        else:
            idle, absolute = self._idle(), self._absolute()
        return (idle is not None and now >= self.lastModified + idle) or (
            absolute is not None and now >= self.created + absolute
        )

    def _reason(self) -> str:
        return reasonAt(self.lastModified, self._idle(), self.created, self._absolute())

    def _isPinned(self) -> bool:
        """
        Whether something hangs on this object that is not in the store.
        """
        rare = self._rare
        if rare is not None and rare.callbacks:
            return True
        if self.__dict__:
            return True
        cache = self._cache
        return bool(cache) and not all(map(isPersistent, cache or ()))

    def _adopt(self, record: Record) -> None:
        """
        Become what is stored; what was changed here and is not stored yet
        stays changed.
        """
        if self._record is None:
            self.created = record.created
            self.isNew = False
            self.secure = record.secure
        self._record = record
        self._seed = None
        if record.touched > self.lastModified or self._requests == 0:
            self.lastModified = max(record.touched, self.created)
        self._renew(record)

    def _renew(self, record: Record) -> None:
        data, cache = self._data, self._cache
        if data is not None:
            if cache:
                self._noteComponents()
                stored = self._components()
                known = [name for name in cache if name in stored]
            data.refresh(record.fields)
            if cache:
                for name in known:
                    if name not in stored:
                        del cache[name]  # another process has unset it
                refresh(self, cache)

    def _noteComponents(self) -> None:
        # Before values are brought up to date: what was changed here stays.
        try:
            self._sync()
        except (TypeError, SessionTooLarge):
            pass  # the commit will say so

    def _sync(self) -> None:
        if self._cache and self._ended is None:
            sync(self, self._cache)

    def _hasChanges(self) -> bool:
        if self._isUntouched():
            return False
        try:
            self._sync()
        except (TypeError, SessionTooLarge):
            return True  # the commit will say so
        data, rare = self._data, self._rare
        return (data is not None and data.isDirty) or (rare is not None and rare.isUnstored)

    def _revert(self) -> None:
        """
        Forget the values, and components, that were changed here.
        """
        if self._data is not None:
            self._data.revert()
            if self._cache:
                revert(self, self._cache)

    def _isUntouched(self) -> bool:
        """
        Whether it can be seen at a glance that L{_hasChanges} would find none.
        """
        data, rare = self._data, self._rare
        return (
            (data is None or data.isUntouched)
            and not self._cache
            and (rare is None or not rare.isUnstored)
        )

    def _change(self, token: Callable[[], bytes], now: float, whole: bool = False) -> Change | None:
        """
        All that differs from what is stored.

        @param whole: also if nothing does.
        @return: L{None} if nothing does.
        @raise TypeError: a value was changed into something unencodable.
        @raise SessionTooLarge: over the site's limit.
        """
        self._sync()
        data, record, rare = self._data, self._record, self._rare
        set_: dict[str, bytes] = {}
        removed: frozenset[str] = frozenset()
        if data is not None:
            set_, removed = data.changes()
            limit = self._keeper.settings.maxSessionBytes
            if set_ and limit is not None and data.isOver(limit, set_):
                biggest = [(name[1:], bytes_) for name, bytes_ in data.biggest()]
                raise SessionTooLarge(data.encodedSize(), limit, biggest)
        isChanged = set_ or removed or (rare is not None and rare.isUnstored)
        if not (isChanged or whole or record is None):
            return None
        key = keyOf(self.uid) if record is None else record.key
        change = Change(key, token(), set=set_, remove=removed, uses=self._requests)
        change.usedAgo = max(0.0, now - self.lastModified)
        idle = self._idle()
        if record is None:
            change.birth = Birth(
                self._ownSeed(),
                ago=max(0.0, now - self.created),
                absolute=self._absolute(),
                secure=self.secure,
            )
            self._keeper.introduce(self, change.birth)
            change.idle = idle
        else:
            if rare is not None and rare.rotated:
                change.newKey = keyOf(self.uid)
            if idle != record.idle:
                change.idle = idle
        if rare is not None:
            if not isinstance(rare.idle, Unset):
                change.ownIdle = True
            change.principal = rare.principal
            change.login = rare.login
        return change

    def _stored(self, change: Change, record: Record) -> None:
        """
        C{change} is stored, and this is the session now.
        """
        self._requests -= change.uses
        rare = self._rare
        if rare is not None:
            if rare.principal == change.principal:
                rare.principal = UNSET
                rare.login = False
            if change.ownIdle is True and rare.idle == record.idle:
                rare.idle = UNSET
            if change.newKey is not None or change.birth is not None:
                rare.rotated = record.key != keyOf(self.uid)
        self._record = record
        self._seed = None
        data = self._data
        if data is not None:
            if self._cache:
                self._noteComponents()
            data.accept(change.set, change.remove)
            self._renew(record)

    def _finish(self) -> Deferred[None]:
        """
        It has ended: the hook, then the callbacks, each by itself.

        @return: fires when those that returned Deferreds are done.
        """
        rare = self._more()
        waits = [self._call(self.expiring)]
        while rare.callbacks:  # one may add or withdraw others
            waits.append(self._call(rare.callbacks.pop(0)))
        rare.finished = True
        pending = [wait for wait in waits if not wait.called]
        if not pending:
            return succeed(None)
        return ensureDeferred(_all(pending))

    def _call(self, callback: Callable[[], object]) -> Deferred[object]:
        def failed(failure: Failure) -> None:
            self._log.failure(
                "a callback of an ended session failed: {session}",
                failure=failure,
                session=repr(self),
            )

        return maybeDeferred(callback).addErrback(failed)


async def _all(deferreds: list[Deferred[object]]) -> None:
    for deferred in deferreds:
        await deferred
