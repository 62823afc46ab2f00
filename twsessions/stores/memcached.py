"""
Sessions in memcached: one server, or several that share them out by key.

A session is one item. Changes are merged by compare and set, so that nothing
is overwritten that was not read, and nothing that has ended is written again.

What memcached is not: it forgets. A restart takes all sessions of that server,
and a full memory those that were not used for the longest time; to their users
it is as if they had never logged in. A server that is down is not stood in for
by another (what had ended meanwhile would be back later): the outcome for its
sessions is L{StoreUnavailable<twsessions.errors.StoreUnavailable>}, item by
item, the others are not touched by it, and the Deferred fails only if that is
so of all. All processes name the same servers, and their clocks agree.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Sequence
from hashlib import blake2b
from typing import Any, Final, TypeVar
from urllib.parse import parse_qsl

from twisted.internet.defer import Deferred, fail, succeed
from twisted.logger import Logger
from zope.interface import implementer

from twsessions.core.delta import Change
from twsessions.core.record import Record
from twsessions.errors import NotSupported, SessionError, StoreUnavailable
from twsessions.interfaces import Ended, ISessionStore, Message, Swept, Verdict
from twsessions.stores._memcache.ask import ADD, GETS, STORED, Ask, isPrefix
from twsessions.stores._memcache.link import Server
from twsessions.stores._memcache.merge import Item, Merge, Steps
from twsessions.stores._memcache.ring import Ring
from twsessions.stores._several import unlessAllFailed

__all__ = ["MemcachedStore", "fromURL"]

T = TypeVar("T")
Address = tuple[str, int]
_UnderWay = tuple[Steps, Sequence[Ask]]  # and what it waits for

_PORT: Final = 11211
_SHAPE: Final = "memcached://host1:11211,host2:11211"
_hostAndPort: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\[\]:@/\s]+)(?::([0-9]{1,5}))?").fullmatch

_SEEN: Final = 1024  # items that are remembered between load and commit
_SMALL: Final = 8192  # bytes of the largest of them
_KEPT: Final = 86400.0  # seconds for which what is corrupt is kept
_ONLY: Final = frozenset((0,))


def fromURL(scheme: str, rest: str) -> Callable[[Any], MemcachedStore]:
    """
    A store from its URL, C{scheme:rest}.

    @return: makes it, given a reactor.
    @raise ValueError: the URL is not right; says what would be, and repeats
        nothing of it.
    """
    location, _, query = rest.partition("?")
    if not location.startswith("//") or "#" in rest:
        raise ValueError(f"a memcached store is named like {_SHAPE}")
    addresses = [_address(one) for one in location[2:].removesuffix("/").split(",")]
    if len(set(addresses)) < len(addresses):
        raise ValueError("a memcached server is named twice")
    options = dict(timeout="1.5", prefix="twsessions")
    given = parse_qsl(query, keep_blank_values=True)
    for name, value in given:
        if name not in options:
            # Named only if it can be nothing but a name.
            what = f" {name!r}" if re.fullmatch("[A-Za-z_]{1,20}", name) else ""
            raise ValueError(
                f"a memcached store has no option{what}; it has {' and '.join(options)}"
            )
        options[name] = value
    if len(dict(given)) < len(given):
        raise ValueError("an option is given twice")
    try:
        timeout = float(options["timeout"])
    except ValueError:
        timeout = 0.0
    if not 0 < timeout < 3600:
        raise ValueError("timeout is a number of seconds more than 0")
    prefix = options["prefix"].encode()
    if not isPrefix(prefix):
        raise ValueError("prefix is up to 200 visible ASCII characters, without spaces")
    return lambda reactor: MemcachedStore(reactor, addresses, reactor.seconds, prefix, timeout)


def _address(text: str) -> Address:
    match = _hostAndPort(text)
    if match is None:
        raise ValueError(f"a memcached store is named like {_SHAPE}, without user and password")
    port = int(match[2] or _PORT)
    if not 0 < port < 65536:
        raise ValueError("a port is a number from 1 to 65535")
    return match[1].strip("[]").lower(), port


@implementer(ISessionStore)
class MemcachedStore:
    """
    A store on memcached servers. Nothing is connected to before the first
    operation.
    """

    capabilities: frozenset[str] = frozenset()

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        addresses: Sequence[Address],
        now: Callable[[], float],
        prefix: bytes = b"twsessions",
        timeout: float = 1.5,
    ) -> None:
        """
        @param addresses: host and port of each server.
        @param now: the time in seconds, the same in all processes: what
            deadlines are checked against. (memcached counts in whole seconds,
            and only throws away what has been due for a minute.)
        @param prefix: of all keys.
        @param timeout: seconds for a call.
        """
        self._reactor = reactor
        self._now = now
        self._timeout = timeout
        isOnly = len(addresses) == 1
        self._servers = [
            Server(reactor, host, port, prefix, timeout, patient=isOnly) for host, port in addresses
        ]
        self._ring = Ring([server.name for server in self._servers])
        self._seen: OrderedDict[bytes, Item] = OrderedDict()
        self._asides: set[bytes] = set()
        self._underway = 0
        self._drained: Deferred[None] = Deferred()
        self._isClosing = self._isClosed = False
        self._waiting: list[Deferred[None]] = []  # for it to be closed

    # Sessions

    def load(self, keys: Sequence[bytes]) -> Deferred[list[Record | None]]:
        """
        See L{ISessionStore.load}.
        """
        return self._do(self._load(list(keys)))

    def commit(self, changes: Sequence[Change]) -> Deferred[list[Record | SessionError]]:
        """
        See L{ISessionStore.commit}.
        """
        return self._do(self._commit(list(changes)))

    def sweep(self, limit: int) -> Deferred[Swept]:
        """
        See L{ISessionStore.sweep}: memcached drops what is due by itself, and
        tells nobody.
        """
        if self._isClosing:
            return fail(_closed())
        return succeed(Swept(0, False, None))

    def close(self) -> Deferred[None]:
        """
        See L{ISessionStore.close}.
        """
        if self._isClosed:
            return succeed(None)
        done: Deferred[None] = Deferred()
        self._waiting.append(done)
        if not self._isClosing:
            self._isClosing = True
            Deferred.fromCoroutine(self._close()).addErrback(
                lambda failure: self._log.failure("closing the store failed", failure)
            )
        return done

    # What memcached cannot do

    def listen(self) -> Deferred[None]:
        """
        See L{ISessionStore.listen}.
        """
        return _cannot("tell of ends: a session that has ended leaves nothing behind")

    def claim(self, limit: int, lease: float) -> Deferred[list[Ended]]:
        """
        See L{ISessionStore.claim}.
        """
        return _cannot("tell of ends")

    def settle(self, verdicts: Sequence[Verdict]) -> Deferred[list[bool]]:
        """
        See L{ISessionStore.settle}.
        """
        return _cannot("tell of ends")

    def sessionsOf(self, principal: str) -> Deferred[list[Record]]:
        """
        See L{ISessionStore.sessionsOf}.
        """
        return _cannot("find the sessions of a principal")

    def withHandle(self, handle: bytes) -> Deferred[Record | None]:
        """
        See L{ISessionStore.withHandle}.
        """
        return _cannot("find a session by its handle")

    def acquire(self, name: bytes, holder: bytes, lease: float) -> Deferred[bool]:
        """
        See L{ISessionStore.acquire}.
        """
        return _cannot("give leases: it might forget who has one")

    def release(self, name: bytes, holder: bytes) -> Deferred[None]:
        """
        See L{ISessionStore.release}.
        """
        return _cannot("give leases")

    def watch(self, heard: Callable[[Sequence[bytes] | None], None]) -> Deferred[None]:
        """
        See L{ISessionStore.watch}.
        """
        return _cannot("give hints")

    def publish(self, messages: Sequence[Message]) -> Deferred[list[SessionError | None]]:
        """
        See L{ISessionStore.publish}.
        """
        return _cannot("carry messages")

    def subscribe(self, heard: Callable[[Message | None], object]) -> Deferred[None]:
        """
        See L{ISessionStore.subscribe}.
        """
        return _cannot("carry messages")

    def iterate(self, after: bytes | None, limit: int) -> Deferred[list[Record]]:
        """
        See L{ISessionStore.iterate}.
        """
        return _cannot("walk through all sessions")

    # What is under way

    def _do(self, coroutine: Coroutine[Any, Any, T]) -> Deferred[T]:
        if self._isClosing:
            coroutine.close()
            return fail(_closed())
        self._underway += 1
        return Deferred.fromCoroutine(coroutine).addBoth(self._done)

    def _done(self, result: Any) -> Any:
        self._underway -= 1
        if self._isClosing and not self._underway:
            self._drained.callback(None)
        return result

    async def _close(self) -> None:
        if self._underway:
            await self._drained
        for closing in [server.close() for server in self._servers]:
            await closing
        self._isClosed = True
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            one.callback(None)

    # Loading

    async def _load(self, keys: list[bytes]) -> list[Any]:
        asks = {key: Ask(GETS, key) for key in keys}
        await self._run(list(asks.values()), self._deadline())
        now = self._now()
        corrupt: list[Item] = []
        found: dict[bytes, Record | StoreUnavailable] = {}
        for key, ask in asks.items():
            if ask.reply is None:
                continue
            if isinstance(ask.reply, StoreUnavailable):
                found[key] = StoreUnavailable(*ask.reply.args)
                continue
            item = Item(key, ask.reply, ask.wire)
            record = item.record
            if record is not None and now < record.deadline:
                record.asOf = now
                found[key] = record
                self._remember(item)
            elif item.corrupt is not None:
                corrupt.append(item)
        self._putAside(corrupt)
        return self._unlessGone([found.get(key) for key in keys])

    def _remember(self, item: Item) -> None:
        """
        So that the commit that follows need not read it again.
        """
        if item.size <= _SMALL:
            seen = self._seen
            seen[item.key] = item
            seen.move_to_end(item.key)
            if len(seen) > _SEEN:
                seen.popitem(last=False)

    # Committing

    async def _commit(self, changes: list[Change]) -> list[Any]:
        merge = Merge(changes, self._now, self._limit, self._seen)
        deadline = self._deadline()
        # A server that hangs takes all the time there is, but only of its own.
        groups: dict[frozenset[int], list[_UnderWay]] = {}
        for steps in merge.steps():
            asks = _next(steps)
            groups.setdefault(self._placesOf(asks), []).append((steps, asks))
        flights = [Deferred.fromCoroutine(self._go(group, deadline)) for group in groups.values()]
        for flight in flights:
            await flight
        self._putAside(merge.corrupt)
        return self._unlessGone(merge.outcomes)

    async def _go(self, under_way: list[_UnderWay], deadline: float) -> None:
        while under_way:
            await self._run([ask for _, asks in under_way for ask in asks], deadline)
            under_way = [(steps, asks) for steps, _ in under_way if (asks := _next(steps))]

    def _placesOf(self, asks: Sequence[Ask]) -> frozenset[int]:
        if len(self._servers) == 1:
            return _ONLY
        return frozenset(self._ring.of(ask.key) for ask in asks)

    def _limit(self, key: bytes) -> int | None:
        return self._servers[self._ring.of(key)].valueSize

    def _putAside(self, items: Sequence[Item]) -> None:
        """
        Take corrupt items out of the way; nobody waits.
        """
        items = [item for item in items if item.key not in self._asides]
        if not items or self._isClosing:
            return
        self._asides.update(item.key for item in items)
        self._do(self._quarantine(items)).addErrback(
            lambda failure: self._log.failure("corrupt items could not be put aside", failure)
        )

    async def _quarantine(self, items: Sequence[Item]) -> None:
        try:
            buries = [item.bury(b"") for item in items]
            kept = [Ask(ADD, item.key, item.corrupt or b"", _KEPT, aside=True) for item in items]
            await self._run([*kept, *buries], self._deadline())
        finally:
            self._asides.difference_update(item.key for item in items)
        for ask in buries:
            if ask.reply == STORED:  # or it was somebody else's to tell of
                self._log.error(
                    "The stored session {session} is corrupt; it was put aside for a day "
                    "and its user gets a new one",
                    session=blake2b(ask.key, digest_size=4).hexdigest(),
                )

    # Servers

    def _deadline(self) -> float:
        return float(self._reactor.seconds()) + self._timeout

    async def _run(self, asks: Sequence[Ask], deadline: float) -> None:
        """
        Send each command to its server, in one flight to each, and have their
        replies filled in.
        """
        if len(self._servers) == 1:
            if asks:
                await self._servers[0].run(asks, deadline)
            return
        groups: dict[int, list[Ask]] = {}
        for ask in asks:
            groups.setdefault(self._ring.of(ask.key), []).append(ask)
        flights = [
            Deferred.fromCoroutine(self._servers[place].run(group, deadline))
            for place, group in groups.items()
        ]
        for flight in flights:
            await flight

    def _unlessGone(self, outcomes: list[T]) -> list[T]:
        """
        Raise what all have failed with, if there is no server that works.
        """
        isGone = len(self._servers) == 1 or all(server.isDown for server in self._servers)
        return unlessAllFailed(outcomes) if isGone else outcomes


def _next(steps: Steps) -> Sequence[Ask]:
    """
    What is to be asked next; nothing at the end.
    """
    return next(steps, ())


def _cannot(what: str) -> Deferred[Any]:
    return fail(NotSupported(f"memcached cannot {what}"))


def _closed() -> StoreUnavailable:
    return StoreUnavailable("the store has been closed")
