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

from collections.abc import Callable, Coroutine, Iterable, Sequence
from hashlib import blake2b
from secrets import token_bytes
from typing import Any, Final, TypeVar

from twisted.internet.defer import Deferred, fail, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from twsessions.core.delta import Change
from twsessions.core.ids import handleOf
from twsessions.core.record import Record
from twsessions.errors import (
    Conflict,
    CorruptRecord,
    IdCollision,
    NewerFormat,
    SessionError,
    SessionGone,
    StoreError,
    StoreUnavailable,
)
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
from twsessions.stores._redis.index import Index
from twsessions.stores._redis.link import Server
from twsessions.stores._redis.moves import Moves
from twsessions.stores._redis.record import (
    claimOf,
    decode,
    decodeAll,
    decodeEnd,
    encode,
    encodeVerdict,
    read,
    stateBetween,
    timeOf,
)
from twsessions.stores._redis.route import Ask, Route
from twsessions.stores._redis.subscription import Subscription
from twsessions.stores._redis.url import parse
from twsessions.stores._redis.wire import command, explain
from twsessions.stores._several import unlessAllFailed

__all__ = ["RedisStore", "fromURL"]

T = TypeVar("T")
_Outcome = Record | SessionError

_TIME: Final = command("TIME")
_CHUNK: Final = 64  # changes in one script: about a millisecond of the server's time
_SLICE: Final = 250  # sessions that one script sweeps: a few milliseconds
_PAGES: Final = 32  # buckets that are looked at together for a page of sessions
_KEY: Final = 32  # bytes of a key; a hint is some of them
_LATER: Final = 3600.0  # until an end that only a newer release can read is tried again


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
        self._skew = skew
        self._buckets = Buckets(route, prefix, replicas, skew)
        self._index = Index(self._buckets)
        self._moves = Moves(self._buckets, self._index)
        self._channel = prefix + b":ended"
        self._hints = Subscription(route, self._channel, self._hinted)
        self._watcher: Callable[[Sequence[bytes] | None], None] | None = None
        # Numbered databases have the same channels.
        self._topics = b"%b:said:%d" % (prefix, route.database)
        self._outbox, self._inbox = Outbox(), Inbox()
        self._messages = Subscription(route, self._topics, self._heard)
        # Of its own: sessions do not wait for messages to be sent.
        self._publisher = Server(route.reactor, route.connect, route.timeout, patient=True)
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
        See L{ISessionStore.sweep}. While nothing is due it only reads.
        """
        return self._do(self._sweep(limit))

    def iterate(self, after: bytes | None, limit: int) -> Deferred[list[Record]]:
        """
        See L{ISessionStore.iterate}.
        """
        return self._do(self._iterate(after, limit))

    def watch(self, heard: Callable[[Sequence[bytes] | None], None]) -> Deferred[None]:
        """
        See L{ISessionStore.watch}. If it fails it is tried again all the same,
        and C{heard} is told when it is in force.
        """
        if not self._isClosing:
            self._watcher = heard
        return self._do(self._hints.start())

    # Messages

    def publish(self, messages: Sequence[Message]) -> Deferred[list[SessionError | None]]:
        """
        See L{ISessionStore.publish}.
        """
        return self._do(self._publish(messages))

    def subscribe(self, heard: Callable[[Message | None], object]) -> Deferred[None]:
        """
        See L{ISessionStore.subscribe}.
        """
        if not self._isClosing:
            self._inbox.add(heard)
        return self._do(self._messages.start())

    # Ends

    def listen(self) -> Deferred[None]:
        """
        See L{ISessionStore.listen}.
        """
        return self._do(self._listen())

    def claim(self, limit: int, lease: float) -> Deferred[list[Ended]]:
        """
        See L{ISessionStore.claim}. While nothing is to be had it only reads.
        """
        return self._do(self._claim(limit, lease))

    def settle(self, verdicts: Sequence[Verdict]) -> Deferred[list[bool]]:
        """
        See L{ISessionStore.settle}.
        """
        return self._do(self._settle(list(verdicts)))

    # Principals

    def sessionsOf(self, principal: str) -> Deferred[list[Record]]:
        """
        See L{ISessionStore.sessionsOf}.
        """
        return self._do(self._sessionsOf(principal))

    def withHandle(self, handle: bytes) -> Deferred[Record | None]:
        """
        See L{ISessionStore.withHandle}.
        """
        return self._do(self._withHandle(handle))

    # Leases

    def acquire(self, name: bytes, holder: bytes, lease: float) -> Deferred[bool]:
        """
        See L{ISessionStore.acquire}.
        """
        asked = self._onLease(scripts.ACQUIRE, name, holder, b"%r" % lease)
        return self._do(asked).addCallback(lambda reply: reply == 1)

    def release(self, name: bytes, holder: bytes) -> Deferred[None]:
        """
        See L{ISessionStore.release}.
        """
        return self._do(self._onLease(scripts.RELEASE, name, holder)).addCallback(lambda _: None)

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

    # What is under way

    def _do(self, coroutine: Coroutine[Any, Any, T]) -> Deferred[T]:
        if self._isClosing:
            coroutine.close()
            return fail(StoreUnavailable("the store has been closed"))
        self._underway += 1
        return Deferred.fromCoroutine(coroutine).addBoth(self._done)

    def _later(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """
        Do something for which nobody waits, and which may fail.
        """

        def failed(failure: Failure) -> None:
            failure.trap(StoreUnavailable)

        self._underway += 1
        Deferred.fromCoroutine(coroutine).addBoth(self._done).addErrback(failed).addErrback(
            lambda failure: self._log.failure("tidying up failed", failure)
        )

    def _done(self, result: Any) -> Any:
        self._underway -= 1
        if self._isClosing and not self._underway and not self._drained.called:
            self._drained.callback(None)
        if not isinstance(result, Failure):
            return result
        nonsense = result.check(TypeError, ValueError, IndexError, KeyError, AttributeError)
        if nonsense is None:
            return result
        # Replies of another shape than such commands have. Later ones cannot
        # be trusted to belong to what was asked either.
        self._log.failure("the Redis server's answer makes no sense", result)
        self._route.drop("the Redis server answered nonsense")
        error = StoreUnavailable("the Redis server's answer makes no sense")
        error.__cause__ = result.value
        return Failure(error)

    async def _close(self) -> None:
        if self._underway:
            await self._drained
        await self._hints.close()
        await self._messages.close()
        await self._publisher.close()
        await self._route.close()
        self._isClosed = True
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            one.callback(None)

    def _unlessGone(self, outcomes: list[T]) -> list[T]:
        """
        Raise what all have failed with, if there is no server that works.
        """
        isGone = self._buckets.areOne or all(server.isDown for server in self._route.servers())
        return unlessAllFailed(outcomes) if isGone else outcomes

    # Loading

    async def _load(self, keys: list[bytes]) -> list[Any]:
        return self._unlessGone(list(await self._read(keys, self._buckets.deadline())))

    async def _read(
        self, keys: list[bytes], deadline: float, between: list[tuple[bytes, bytes]] | None = None
    ) -> Sequence[Record | None | StoreUnavailable]:
        """
        What is under each key.

        @param between: is given what is no session because it is on its way
            from one bucket to another.
        """
        found: dict[bytes, Record | None | StoreUnavailable] = {}
        asks = self._gets(keys)
        await self._buckets.run([ask for ask, _ in asks], deadline, head=_TIME)
        skew = self._skew()
        odd: list[tuple[bytes, bytes]] = []
        for ask, asked in asks:
            if isinstance(ask.reply, StoreUnavailable):
                for key in asked:
                    found[key] = StoreUnavailable(*ask.reply.args)
                continue
            records = decodeAll(asked, ask.reply, timeOf(ask.head, skew), odd)
            if self._buckets.areOne:
                self._lookInto(odd, between)
                return records
            found.update(zip(asked, records, strict=True))
        self._lookInto(odd, between)
        return [found.get(key) for key in keys]

    def _gets(self, keys: list[bytes]) -> list[tuple[Ask, list[bytes]]]:
        buckets = self._buckets
        if not keys:
            return []
        if buckets.areOne:
            start = buckets.name(0, b"s:")
            return [(Ask(0, command(b"MGET", *[start + key for key in keys])), keys)]
        # One at a time: where a slot is just being moved to another node, some
        # may be there and some here.
        gets = []
        for key in dict.fromkeys(keys):
            bucket = buckets.of(key)
            get = command(b"MGET", buckets.name(bucket, b"s:" + key))
            gets.append((Ask(bucket, get), [key]))
        return gets

    def _lookInto(
        self, odd: list[tuple[bytes, bytes]], between: list[tuple[bytes, bytes]] | None
    ) -> None:
        """
        Deal with what is stored where sessions are and is none.
        """
        for key, value in odd:
            try:
                decode(key, value, 0.0)
            except CorruptRecord:
                self._later(self._putAside(key, value))
            except NewerFormat:
                pass
            else:
                if between is not None:
                    between.append((key, value))

    async def _putAside(self, key: bytes, value: bytes) -> None:
        ask = self._buckets.script(self._buckets.of(key), scripts.ASIDE, key, value)
        _, aside = await self._buckets.ask(ask, self._buckets.deadline())
        self._report(aside)

    def _report(self, aside: bytes) -> None:
        for start in range(0, len(aside), 32):
            self._log.error(
                "The stored session {session} is corrupt; it was renamed, from s:... to q:...,"
                " and its user gets a new one",
                session=blake2b(aside[start : start + 32], digest_size=4).hexdigest(),
            )

    # Committing

    async def _commit(self, changes: list[Change]) -> list[Any]:
        deadline = self._buckets.deadline()
        outcomes: list[Any] = [None] * len(changes)
        if self._buckets.areOne:
            await self._apply(changes, range(len(changes)), outcomes, deadline)
        else:
            broken: set[bytes] = set()
            for wave in _waves(changes):
                await self._applyWave(changes, wave, outcomes, broken, deadline)
        return self._unlessGone(outcomes)

    async def _apply(
        self, changes: list[Change], wanted: Iterable[int], outcomes: list[Any], deadline: float
    ) -> None:
        """
        Apply changes, none of which goes from one bucket to another, and fill
        in their outcomes.
        """
        buckets = self._buckets
        byBucket: dict[int, tuple[list[int], list[bytes]]] = {}
        for at in wanted:
            change = changes[at]
            try:
                packed = encode(change, not buckets.areOne)
            except (ValueError, TypeError, OverflowError) as error:
                # Not to be written in any store; the others must not suffer.
                outcomes[at] = StoreError(f"a change that cannot be stored: {type(error).__name__}")
            else:
                places, args = byBucket.setdefault(buckets.of(change.key), ([], []))
                places.append(at)
                args.append(packed)
        asks: list[tuple[Ask, list[int]]] = []
        for bucket, (places, args) in byBucket.items():
            for start in range(0, len(places), _CHUNK):
                end = start + _CHUNK
                ask = self._script(bucket, scripts.COMMIT, *args[start:end])
                asks.append((ask, places[start:end]))
        await buckets.run([ask for ask, _ in asks], deadline, safe=True)
        for ask, places in asks:
            self._take(ask, changes, places, outcomes)

    def _script(self, bucket: int, script: scripts.Script, *args: bytes) -> Ask:
        """
        One that may end sessions.
        """
        indexed = b"1" if self._buckets.areOne else b"0"
        return self._buckets.script(bucket, script, self._channel, indexed, *args)

    def _take(
        self, ask: Ask, changes: list[Change], places: list[int], outcomes: list[Any]
    ) -> Sequence[bytes]:
        """
        Fill in outcomes from what the commit script says.

        @param places: of the changes that it was given.
        @return: what it says, one for each of them.
        """
        if isinstance(ask.reply, StoreUnavailable):
            for at in places:
                outcomes[at] = StoreUnavailable(*ask.reply.args)
            return []
        stamp, aside, stale = ask.reply[:3]
        said: list[bytes] = ask.reply[3:]
        now = float(stamp)
        for at, one in zip(places, said, strict=True):
            outcomes[at] = _outcome(changes[at], one, now)
        self._tidy(aside, stale)
        return said

    def _tidy(self, aside: bytes, stale: list[bytes]) -> None:
        if aside:
            self._report(aside)
        if stale:
            self._later(self._index.forget(stale))

    async def _applyWave(
        self,
        changes: list[Change],
        wave: list[int],
        outcomes: list[Any],
        broken: set[bytes],
        deadline: float,
    ) -> None:
        """
        Apply changes of different sessions on a cluster.

        @param broken: keys whose earlier changes have unknown outcomes: later
            ones must not come before them.
        """
        for at in wave:
            if not broken.isdisjoint(_keysOf(changes[at])):
                outcomes[at] = StoreUnavailable("the change before has an unknown outcome")
        wave = [at for at in wave if outcomes[at] is None]
        hinted = [at for at in wave if _isHinted(changes[at])]
        # A node that hangs with a hint takes no time from those that need none.
        others = sorted({*wave} - {*hinted})
        applied = Deferred.fromCoroutine(self._applyKnown(changes, others, outcomes, deadline))
        if hinted:
            await self._hint(changes, hinted, outcomes, deadline)
            hinted = [at for at in hinted if outcomes[at] is None]
            await self._applyKnown(changes, hinted, outcomes, deadline)
        await applied
        for at in wave:
            if isinstance(outcomes[at], StoreUnavailable):
                broken.update(_keysOf(changes[at]))

    async def _applyKnown(
        self, changes: list[Change], wanted: list[int], outcomes: list[Any], deadline: float
    ) -> None:
        """
        Apply changes of different sessions, about which all has been said in
        the indexes that has to be said before.
        """
        moving = [at for at in wanted if self._isMove(changes[at])]
        moves = [Deferred.fromCoroutine(self._move(changes[at], deadline)) for at in moving]
        await self._apply(changes, sorted({*wanted} - {*moving}), outcomes, deadline)
        for at, move in zip(moving, moves, strict=True):
            try:
                outcomes[at] = await move
            except StoreUnavailable as error:
                outcomes[at] = error

    async def _hint(
        self, changes: list[Change], hinted: list[int], outcomes: list[Any], deadline: float
    ) -> None:
        """
        Say in the indexes where sessions are going to be.
        """
        asks: list[tuple[int, Ask]] = []
        for at in hinted:
            change = changes[at]
            key = change.key if change.newKey is None else change.newKey
            if change.birth is not None:
                asks.append((at, self._index.hintHandle(handleOf(change.birth.seed), key)))
            if isinstance(change.principal, str):
                try:
                    asks.append((at, self._index.hint(change.principal, key)))
                except UnicodeError:
                    continue  # which is found out later as well
        if asks:
            await self._buckets.run([ask for _, ask in asks], deadline)
        for at, ask in asks:
            if isinstance(ask.reply, StoreUnavailable):
                outcomes[at] = StoreUnavailable(*ask.reply.args)

    def _isMove(self, change: Change) -> bool:
        return change.newKey not in (None, change.key) and change.end is None

    async def _move(self, change: Change, deadline: float) -> _Outcome:
        async def depart() -> _Outcome:
            outcomes: list[Any] = [None]
            try:
                packed = encode(change, True)
            except (ValueError, TypeError, OverflowError) as error:
                return StoreError(f"a change that cannot be stored: {type(error).__name__}")
            ask = self._script(self._buckets.of(change.key), scripts.COMMIT, packed)
            await self._buckets.run((ask,), deadline, safe=True)
            said = self._take(ask, [change], [0], outcomes)
            outcome: _Outcome = outcomes[0]
            if isinstance(outcome, Record):
                return await self._moves.arrive(
                    change.key, change.token, outcome, said[0], deadline
                )
            return outcome

        async def isAlive() -> bool:
            (found,) = await self._read([change.key], deadline)
            if isinstance(found, StoreUnavailable):
                raise found
            return found is not None

        return await self._moves.move(change, deadline, depart, isAlive)

    # Sweeping

    async def _heads(self, name: bytes, deadline: float) -> tuple[dict[int, float], bool]:
        """
        The first of a ZSET of times, in each bucket.

        @return: seconds until then, by bucket, and whether that is all.
        @raise StoreUnavailable: no bucket can be reached.
        """
        buckets = self._buckets
        asks = [
            Ask(bucket, command("ZRANGE", buckets.name(bucket, name), 0, 0, "WITHSCORES"))
            for bucket in range(buckets.count)
        ]
        await buckets.run(asks, deadline, head=_TIME)
        unlessAllFailed([ask.reply for ask in asks])
        heads = {}
        whole = True
        for ask in asks:
            if isinstance(ask.reply, StoreUnavailable):
                whole = False
            elif ask.reply:
                heads[ask.bucket] = float(ask.reply[1]) - timeOf(ask.head, self._skew())
        return heads, whole

    async def _sweep(self, limit: int) -> Swept:
        deadline = self._buckets.deadline()
        # What is left when half of the time is over is for the next call.
        half = deadline - self._route.timeout / 2
        heads, whole = await self._heads(b"due", deadline)
        ended = looked = 0
        while due := sorted((wait, bucket) for bucket, wait in heads.items() if wait <= 0):
            if (
                ended >= limit
                or looked >= max(limit, _SLICE)
                or self._route.reactor.seconds() >= half
            ):
                return Swept(ended, True, 0.0)
            shares = _shares([bucket for _, bucket in due], limit - ended, _SLICE)
            asks = [
                self._script(bucket, scripts.SWEEP, b"%d" % share)
                for bucket, share in shares.items()
            ]
            await self._buckets.run(asks, deadline)
            unlessAllFailed([ask.reply for ask in asks])
            for ask in asks:
                heads.pop(ask.bucket)
                if isinstance(ask.reply, StoreUnavailable):
                    whole = False
                    continue
                stamp, aside, stale, dead, seen, between, following = ask.reply
                ended += dead
                looked += seen
                if following:
                    heads[ask.bucket] = float(following) - float(stamp)
                self._tidy(aside, stale)
                for key, value in zip(between[::2], between[1::2], strict=True):
                    self._later(self._moves.goOn(key, value, isOld=True))
        wait = min(heads.values(), default=None)
        if not whole:
            wait = min([1.0, *heads.values()])  # whatever is due elsewhere
        return Swept(ended, False, wait)

    # Ends

    async def _listen(self) -> None:
        asks = [
            self._buckets.script(bucket, scripts.LISTEN) for bucket in range(self._buckets.count)
        ]
        await self._buckets.all(asks, self._buckets.deadline())

    async def _claim(self, limit: int, lease: float) -> list[Ended]:
        deadline = self._buckets.deadline()
        heads, _ = await self._heads(b"heard", deadline)
        ends: list[Ended] = []
        while len(ends) < limit:
            due = sorted((wait, bucket) for bucket, wait in heads.items() if wait <= 0)
            shares = _shares([bucket for _, bucket in due], limit - len(ends), limit)
            asks = [
                self._buckets.script(
                    bucket, scripts.CLAIM, b"%d" % share, b"%r" % lease,
                    bytes((bucket,)) + token_bytes(16),
                )
                for bucket, share in shares.items()
            ]  # fmt: skip
            if not asks:
                break
            await self._buckets.run(asks, deadline)
            for ask in asks:
                if isinstance(ask.reply, StoreUnavailable):
                    del heads[ask.bucket]
                    continue
                stamp, *found = ask.reply
                if len(found) < 2 * shares[ask.bucket]:
                    del heads[ask.bucket]
                ends += self._decodeEnds(found, float(stamp))
        return sorted(ends, key=lambda end: end.ended)

    def _decodeEnds(self, found: list[bytes], now: float) -> list[Ended]:
        ends = []
        for id_, packed in zip(found[::2], found[1::2], strict=True):
            try:
                ends.append(decodeEnd(id_, packed, now))
            except CorruptRecord:
                self._log.error("The end of a session is corrupt and will not be heard of")
                self._later(self._giveBack(id_, packed, dead=True))
            except NewerFormat:
                self._later(self._giveBack(id_, packed, dead=False))
        return ends

    async def _giveBack(self, id_: bytes, packed: bytes, dead: bool) -> None:
        claim = claimOf(packed)
        if claim:
            await self._settle([Verdict(id_, claim, retryIn=_LATER, dead=dead)])

    async def _settle(self, verdicts: list[Verdict]) -> list[bool]:
        byBucket: dict[int, list[int]] = {}
        for at, verdict in enumerate(verdicts):
            # A claim says where it was made.
            bucket = self._buckets.of(verdict.claim or b"\0")
            byBucket.setdefault(bucket, []).append(at)
        asks = [
            self._buckets.script(
                bucket, scripts.SETTLE, *[encodeVerdict(verdicts[at]) for at in places]
            )
            for bucket, places in byBucket.items()
        ]
        replies = await self._buckets.all(asks, self._buckets.deadline())
        held = [False] * len(verdicts)
        for places, reply in zip(byBucket.values(), replies, strict=True):
            for at, one in zip(places, reply, strict=True):
                held[at] = one == 1
        return held

    # Finding

    async def _sessionsOf(self, principal: str) -> list[Record]:
        deadline = self._buckets.deadline()
        found: dict[bytes, Record] = {}
        seen: set[bytes] = set()
        helped: set[bytes] = set()
        try:
            keys = await self._index.keysOf(principal, deadline)
        except UnicodeError:
            return []
        # One that is rotated meanwhile is under its new key the next time.
        while new := [key for key in keys if key not in seen]:
            between: list[tuple[bytes, bytes]] = []
            records = await self._read(new, deadline, between)
            nowhere = []
            for key, record in zip(new, records, strict=True):
                if isinstance(record, StoreUnavailable):
                    raise record
                if record is not None and record.principal == principal:
                    found[record.handle] = record
                else:
                    nowhere.append(key)
            seen.update(new)
            for key, value in between:
                state = stateBetween(value)
                if state is not None:
                    nowhere.remove(key)
                    await self._moves.goOn(key, value, isOld=False)
                    to = state.get("to", key)
                    if to not in helped:
                        helped.add(to)
                        seen.discard(to)
            if nowhere:
                self._later(self._index.tidy(principal, nowhere))
            keys = await self._index.keysOf(principal, deadline)
        return sorted(found.values(), key=lambda record: record.created)

    async def _withHandle(self, handle: bytes) -> Record | None:
        deadline = self._buckets.deadline()
        last = None
        helped: set[bytes] = set()
        while (key := await self._index.keyOf(handle, deadline)) not in (None, last):
            assert key is not None
            between: list[tuple[bytes, bytes]] = []
            (record,) = await self._read([key], deadline, between)
            if isinstance(record, StoreUnavailable):
                raise record
            if record is not None and record.handle == handle:
                return record
            last = key  # rotated meanwhile, or gone
            if between and key not in helped:
                helped.add(key)
                last = None
                await self._moves.goOn(*between[0], isOld=False)
        return None

    async def _iterate(self, after: bytes | None, limit: int) -> list[Record]:
        deadline = self._buckets.deadline()
        first = 0 if after is None else self._buckets.of(after)
        while first < self._buckets.count:
            pages = range(first, min(first + _PAGES, self._buckets.count))
            keys = await self._keys(pages, after, limit, deadline)
            records = await self._read(keys, deadline)
            for record in records:
                if isinstance(record, StoreUnavailable):
                    raise record
            living = [record for record in records if isinstance(record, Record)]
            if living:
                return living
            if keys:
                after = keys[-1]  # a whole page that cannot be read is not the end
                first = self._buckets.of(after)
            else:
                first = pages.stop
        return []

    async def _keys(
        self, pages: Sequence[int], after: bytes | None, limit: int, deadline: float
    ) -> list[bytes]:
        start = b"-" if after is None else b"(" + after
        buckets = self._buckets
        asks = [
            Ask(page, command("ZRANGEBYLEX", buckets.name(page, b"keys"), start, "+",
                              "LIMIT", 0, limit))
            for page in pages
        ]  # fmt: skip
        replies = await buckets.all(asks, deadline)
        found: list[bytes] = [key for reply in replies for key in reply]
        return found[:limit]

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


def _outcome(change: Change, said: bytes, now: float) -> _Outcome:
    """
    What the commit script says of a change.
    """
    kind = said[:1]
    if kind == b"\1":
        if change.newKey is None:
            return read(change.key, said, now)  # which the script has checked, or written
        record = decode(change.newKey, said, now)
        assert record is not None
        return record
    if kind == b"G":
        return SessionGone("the session has ended")
    if kind == b"I":
        return IdCollision("a session exists under this key already")
    if kind == b"C":
        return Conflict("a value is not what it was to be")
    return explain(said[1:].decode("utf-8", "replace"))


def _isHinted(change: Change) -> bool:
    """
    Whether something is to be said of it in an index before it is applied.
    """
    return change.end is None and (change.birth is not None or isinstance(change.principal, str))


def _keysOf(change: Change) -> set[bytes]:
    return {change.key} if change.newKey is None else {change.key, change.newKey}


def _waves(changes: list[Change]) -> list[list[int]]:
    """
    Places of changes, in groups: in one group no two are of the same key, and
    of the same key the earlier is in an earlier group.
    """
    waves: list[list[int]] = []
    last: dict[bytes, int] = {}  # the wave that a key was in
    for at, change in enumerate(changes):
        keys = _keysOf(change)
        wave = 1 + max(last.get(key, -1) for key in keys)
        if wave == len(waves):
            waves.append([])
        waves[wave].append(at)
        last.update(dict.fromkeys(keys, wave))
    return waves


def _shares(buckets: list[int], total: int, most: int) -> dict[int, int]:
    """
    Divide work among buckets, those named first before the others.
    """
    buckets = buckets[:total]
    return {bucket: min(most, total // len(buckets)) for bucket in buckets}
