"""
Sessions in Redis or Valkey: one server, a Sentinel's master, or a cluster.

A session is one value under one key, so that loading many is one C{MGET}; a
commit carries what has changed, and a script merges it where the value is. On
a cluster the first byte of a key says which of 256 buckets, and so which slot,
a session is in; what concerns one bucket is atomic. What is not:

  - A rotation from one bucket to another, see
    L{moves<twsessions.stores._redis.moves>}: the old key is dead before
    the new one lives, and a process's death in between loses nothing.
  - The indexes of principals and handles: they are checked against the
    sessions when they are read.

If a node of a cluster cannot be reached, the outcome of what was to happen
there is a L{StoreUnavailable<twsessions.errors.StoreUnavailable>}, item by
item, and the Deferred fails only if that is so of all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger
from zope.interface import implementer

from twsessions.core.delta import Change
from twsessions.core.record import Record
from twsessions.errors import SessionError, StoreError
from twsessions.interfaces import (
    EVENTS,
    EXCLUSIVE,
    HINTS,
    ITERATE,
    PRINCIPALS,
    PUBLISH,
    Ended,
    ISessionStore,
    Message,
    Swept,
    Verdict,
)
from twsessions.stores._messages import Inbox, Outbox
from twsessions.stores._redis import scripts
from twsessions.stores._redis.buckets import Buckets
from twsessions.stores._redis.commits import Commits
from twsessions.stores._redis.ends import Ends
from twsessions.stores._redis.index import Index
from twsessions.stores._redis.link import Server
from twsessions.stores._redis.moves import Moves
from twsessions.stores._redis.reading import Reading
from twsessions.stores._redis.repairs import Repairs
from twsessions.stores._redis.route import Route
from twsessions.stores._redis.subscription import Subscription
from twsessions.stores._redis.underway import Underway
from twsessions.stores._redis.url import parse
from twsessions.stores._redis.wire import command, explain
from twsessions.stores._several import unlessAllFailed

__all__ = ["RedisStore", "fromURL"]

_KEY: Final = 32  # bytes of a key; a hint is some of them


def fromURL(scheme: str, rest: str) -> Callable[[Any], RedisStore]:
    """
    A store from its URL, C{scheme:rest}.

    @return: makes it, given a reactor.
    @raise ValueError: the URL is not right; says what would be, and repeats
        nothing of it.
    """
    target = parse(scheme, rest)
    return lambda reactor: RedisStore(target.route(reactor), target.prefix, target.replicas)


@implementer(ISessionStore)
class RedisStore:
    """
    A store on a Redis server, or several. Nothing is connected to before the
    first operation.
    """

    capabilities = frozenset({EVENTS, PRINCIPALS, EXCLUSIVE, HINTS, PUBLISH, ITERATE})

    _log = Logger()

    def __init__(
        self,
        route: Route,
        prefix: bytes = b"twsessions",
        replicas: int = 0,
        skew: Callable[[], float] = lambda: 0.0,
    ) -> None:
        """
        @param prefix: all the store's keys, and its channels, begin with it.
        @param replicas: a commit is acknowledged when so many replicas have
            it. If they are too slow it fails, and its outcome is not known.
        @param skew: seconds to add to the server's time.
        """
        self._route = route
        self._buckets = buckets = Buckets(route, prefix, replicas, skew)
        self._underway = underway = Underway(route)
        self._index = Index(buckets)
        self._moves = Moves(buckets, self._index)
        repairs = Repairs(buckets, self._index, underway)
        self._reading = Reading(buckets, self._index, self._moves, repairs, underway)
        self._commits = Commits(buckets, self._index, self._moves, self._reading, repairs)
        self._ends = Ends(buckets, self._moves, repairs, underway)
        self._hints = Subscription(route, buckets.channel, self._hinted)
        self._watcher: Callable[[Sequence[bytes] | None], None] | None = None
        # Numbered databases have the same channels.
        self._topics = b"%b:said:%d" % (prefix, route.database)
        self._outbox, self._inbox = Outbox(), Inbox()
        self._messages = Subscription(route, self._topics, self._heard)
        # Of its own: sessions do not wait for messages to be sent.
        self._publisher = Server(route.reactor, route.connect, route.timeout, patient=True)
        self._isClosed = False
        self._waiting: list[Deferred[None]] = []  # for it to be closed

    # Sessions

    def load(self, keys: Sequence[bytes]) -> Deferred[list[Record | None]]:
        """
        See L{ISessionStore.load}.
        """
        return self._underway.do(self._reading.load(list(keys)))

    def commit(self, changes: Sequence[Change]) -> Deferred[list[Record | SessionError]]:
        """
        See L{ISessionStore.commit}.
        """
        return self._underway.do(self._commits.commit(list(changes)))

    def sweep(self, limit: int) -> Deferred[Swept]:
        """
        See L{ISessionStore.sweep}. While nothing is due it only reads.
        """
        return self._underway.do(self._ends.sweep(limit))

    def iterate(self, after: bytes | None, limit: int) -> Deferred[list[Record]]:
        """
        See L{ISessionStore.iterate}.
        """
        return self._underway.do(self._reading.iterate(after, limit))

    def watch(self, heard: Callable[[Sequence[bytes] | None], None]) -> Deferred[None]:
        """
        See L{ISessionStore.watch}. If it fails it is tried again all the same,
        and C{heard} is told when it is in force.
        """
        if not self._underway.isClosing:
            self._watcher = heard
        return self._underway.do(self._hints.start())

    # Messages

    def publish(self, messages: Sequence[Message]) -> Deferred[list[SessionError | None]]:
        """
        See L{ISessionStore.publish}.
        """
        return self._underway.do(self._publish(messages))

    def subscribe(self, heard: Callable[[Message | None], object]) -> Deferred[None]:
        """
        See L{ISessionStore.subscribe}.
        """
        if not self._underway.isClosing:
            self._inbox.add(heard)
        return self._underway.do(self._messages.start())

    # Ends

    def listen(self) -> Deferred[None]:
        """
        See L{ISessionStore.listen}.
        """
        return self._underway.do(self._ends.listen())

    def claim(self, limit: int, lease: float) -> Deferred[list[Ended]]:
        """
        See L{ISessionStore.claim}. While nothing is to be had it only reads.
        """
        return self._underway.do(self._ends.claim(limit, lease))

    def settle(self, verdicts: Sequence[Verdict]) -> Deferred[list[bool]]:
        """
        See L{ISessionStore.settle}.
        """
        return self._underway.do(self._ends.settle(list(verdicts)))

    # Principals

    def sessionsOf(self, principal: str) -> Deferred[list[Record]]:
        """
        See L{ISessionStore.sessionsOf}.
        """
        return self._underway.do(self._reading.sessionsOf(principal))

    def withHandle(self, handle: bytes) -> Deferred[Record | None]:
        """
        See L{ISessionStore.withHandle}.
        """
        return self._underway.do(self._reading.withHandle(handle))

    # Leases

    def acquire(self, name: bytes, holder: bytes, lease: float) -> Deferred[bool]:
        """
        See L{ISessionStore.acquire}.
        """
        asked = self._onLease(scripts.ACQUIRE, name, holder, b"%r" % lease)
        return self._underway.do(asked).addCallback(lambda reply: reply == 1)

    def release(self, name: bytes, holder: bytes) -> Deferred[None]:
        """
        See L{ISessionStore.release}.
        """
        asked = self._onLease(scripts.RELEASE, name, holder)
        return self._underway.do(asked).addCallback(lambda _: None)

    def close(self) -> Deferred[None]:
        """
        See L{ISessionStore.close}.
        """
        if self._isClosed:
            return succeed(None)
        done: Deferred[None] = Deferred()
        self._waiting.append(done)
        if not self._underway.isClosing:
            Deferred.fromCoroutine(self._close()).addErrback(
                lambda failure: self._log.failure("closing the store failed", failure)
            )
        return done

    async def _close(self) -> None:
        await self._underway.end()
        await self._hints.close()
        await self._messages.close()
        await self._publisher.close()
        await self._route.close()
        self._isClosed = True
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            one.callback(None)

    # Being told, and telling

    def _hinted(self, keys: bytes | None) -> None:
        if self._watcher is not None:
            self._watcher(
                None if keys is None else [keys[at : at + _KEY] for at in range(0, len(keys), _KEY)]
            )

    def _heard(self, packed: bytes | None) -> None:
        if packed is None:
            self._inbox.missed()
        else:
            self._inbox.arrived(packed)

    async def _publish(self, messages: Sequence[Message]) -> list[SessionError | None]:
        outcomes: list[SessionError | None] = []
        said: list[bytes] = []
        places: list[int] = []
        for at, message in enumerate(messages):
            outcomes.append(None)
            try:
                said.append(command(b"PUBLISH", self._topics, self._outbox.pack(message)))
                places.append(at)
            except StoreError as error:
                outcomes[at] = error
        if said:
            deadline = self._buckets.deadline()
            await self._messages.decided()
            replies = await self._publisher.ask(b"".join(said), len(said), deadline)
            for at, reply in zip(places, replies, strict=True):
                if not isinstance(reply, int):
                    outcomes[at] = explain(reply)
        return unlessAllFailed(outcomes)

    # Leases

    async def _onLease(self, script: scripts.Script, name: bytes, *args: bytes) -> Any:
        ask = self._buckets.script(self._buckets.ofName(name), script, name, *args)
        return await self._buckets.ask(ask, self._buckets.deadline())
