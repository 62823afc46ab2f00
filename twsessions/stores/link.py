"""
Between a site and its store: batches and deadlines, behind a circuit breaker.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from math import inf
from typing import Any, TypeVar, cast

from twisted.internet.defer import Deferred, fail, maybeDeferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from twsessions.core.delta import Change
from twsessions.core.record import Record
from twsessions.errors import SessionError, StoreUnavailable
from twsessions.interfaces import LOCAL, Ended, ISessionStore, Message, Swept, Verdict
from twsessions.stores._breaker import Breaker

__all__ = ["StoreLink"]

_log = Logger()
_T = TypeVar("_T")

_SAID = 16 * 1024 * 1024  # bytes of messages that wait; bounds the memory
_CROWD = 0.25  # of all who may wait, for one session: in flight and gathering, it leaves half
_SLACK = 1e-6  # seconds by which a clock's arithmetic may be off


_Then = Callable[[Any], object]  # takes an outcome; an exception is one like any other


class _Call:
    """
    Somebody who waits for an outcome.

    @ivar then: is told of it; L{None}: has been, or waits no more.
    @ivar also: others who wait for the same item.
    """

    __slots__ = ("also", "item", "made", "then")

    def __init__(self, made: float, item: object, then: _Then) -> None:
        self.made = made
        self.item = item
        self.then: _Then | None = then
        self.also: deque[_Call] | None = None

    def all(self) -> list[_Call]:
        """
        This one and the others.
        """
        return [self, *(self.also or ())]

    def first(self) -> _Call | None:
        """
        Who has waited longest; those before who wait no more are let go.
        """
        if self.then is not None:
            return self
        also = self.also
        while also:
            if also[0].then is not None:
                return also[0]
            also.popleft()
        return None


class _Trip:
    """
    A round trip to the store: who waits for each item of it.
    """

    __slots__ = ("calls", "isOver", "lane", "made", "name")

    def __init__(self, made: float, lane: _Lane | None, name: str, calls: list[_Call]) -> None:
        self.made = made
        self.lane = lane
        self.name = name
        self.calls = calls
        self.isOver = False  # answered, or given up on


class _Lane:
    """
    One kind of round trip, of which one at a time is in flight, and what has
    gathered for the next, in order: by key if all who ask for one can be told
    the same, else each by itself.
    """

    __slots__ = ("gathered", "isLeaving", "name", "trip")

    def __init__(self, name: str) -> None:
        self.name = name
        self.trip: _Trip | None = None
        self.isLeaving = False
        self.gathered: dict[object, _Call] = {}


class StoreLink:
    """
    A site's way to its store.

    Loads, commits, verdicts and messages of many callers travel together: a round trip in flight
    is the time in which the next batch gathers, and with none in flight a call
    leaves at once. (What is called while outcomes are handed out leaves when
    all are.) Whoever waits is told within C{timeout} seconds, whatever the
    store does. A store that keeps failing is left alone for a while.

    A L{LOCAL} store is called straight through, with none of this.

    @ivar store: the store.
    @ivar capabilities: the store's.
    @ivar local: whether the store is L{LOCAL}, and L{loadNow} and
        L{commitNow} can be used.
    @ivar loads: sessions asked for so far.
    @ivar commits: changes handed in so far.
    @ivar batches: round trips of loads, commits, verdicts or messages so far.
    @ivar timeouts: calls that failed because their time was up.
    """

    def __init__(
        self,
        reactor: IReactorTime,
        store: ISessionStore,
        timeout: float = 2.0,
        maxBatch: int = 256,
        maxWaiting: int = 10_000,
        failuresToOpen: int = 3,
        coolDown: float = 1.0,
    ) -> None:
        """
        @param timeout: seconds after which a call fails.
        @param maxBatch: most sessions in one round trip.
        @param maxWaiting: most calls that wait; bounds the memory.
        @param failuresToOpen: round trips that fail in a row before the
            breaker opens.
        @param coolDown: seconds from a failure to the next try, once it is
            open.
        """
        self.store = store
        self.capabilities = store.capabilities
        self.local = LOCAL in store.capabilities
        self.loads = self.commits = self.batches = self.timeouts = 0
        # zope's interfaces hide from mypy what is a method and what takes self.
        self._reactor: Any = reactor
        self._timeout = timeout
        self._maxBatch = maxBatch
        self._maxWaiting = maxWaiting
        self._breaker = Breaker(reactor, failuresToOpen, coolDown, timeout)
        self._loadLane = _Lane("load")
        self._commitLane = _Lane("commit")
        self._settleLane = _Lane("settle")
        self._publishLane = _Lane("publish")
        self._said = 0  # bytes of messages that wait
        self._lanes = (self._commitLane, self._loadLane, self._settleLane, self._publishLane)
        self._alone: dict[_Trip, None] = {}  # trips in no lane
        self._waiting = 0  # calls without an outcome
        self._timer: Any = None  # for the first of them; all have the same time
        self._outcomes: deque[Any] = deque()  # who is told, what; and so on
        self._isHandingOut = False
        self._logged: set[tuple[str, type[BaseException]]] = set()
        self._closed: list[Deferred[None]] | None = None  # who waits for it
        self._drained: Deferred[None] | None = None

    @property
    def isOpen(self) -> bool:
        """
        Whether the breaker keeps calls from the store.
        """
        return self._breaker.isOpen

    @property
    def failures(self) -> int:
        """
        Round trips that failed or were given up on, so far.
        """
        return self._breaker.failures

    def load(self, key: bytes) -> Deferred[Record | None]:
        """
        Read a session.

        @return: fires with the record, or L{None}. Cancelling it is to say
            that nobody waits any more. Fails with L{StoreUnavailable}.
        """
        if self.local:
            try:
                return succeed(self.loadNow(key))
            except SessionError:
                return fail()
        self.loads += 1
        return self._promised(self._loadLane, key)

    def loadThen(self, key: bytes, then: _Then) -> None:
        """
        L{load} without a Deferred, of a store that is not L{LOCAL}.

        @param then: called with the record, L{None} or the exception; perhaps
            before this returns.
        """
        self.loads += 1
        self._gather(self._loadLane, key, then)

    def commit(self, change: Change) -> Deferred[Record]:
        """
        Apply a change, after all those handed in before.

        @return: fires with the record as it is stored now; fails with the error
            that refused it, or with L{StoreUnavailable}, after which it is
            not known whether it has been applied. Cancelling it takes nothing
            back.
        """
        if self.local:
            try:
                return succeed(self.commitNow(change))
            except SessionError:
                return fail()
        self.commits += 1
        return self._promised(self._commitLane, change)

    def commitThen(self, change: Change, then: _Then) -> None:
        """
        L{commit} without a Deferred, of a store that is not L{LOCAL}.

        @param then: called with the record or the exception; perhaps before
            this returns.
        """
        self.commits += 1
        self._gather(self._commitLane, change, then)

    def settle(self, verdict: Verdict) -> Deferred[bool]:
        """
        Say what became of a claimed end: see L{ISessionStore.settle}.

        @return: fires with whether the claim was still held.
        """
        if self.local:
            return self._pass("settle", [verdict]).addCallback(lambda held: held[0])
        return self._promised(self._settleLane, verdict)

    def publish(self, message: Message) -> Deferred[None]:
        """
        Say something to every process, after all that was said before: see
        L{ISessionStore.publish}.

        @return: fires when the store has it; fails with
            L{StoreError<twsessions.errors.StoreError>} if it is too large, or
            with L{StoreUnavailable}. Cancelling it takes nothing back.
        """
        if self.local:
            return self._pass("publish", [message]).addCallback(_outcome)
        if self._said >= _SAID:
            waiting = f"{self._said} bytes of messages wait for the store already"
            return fail(StoreUnavailable(waiting))
        size = len(message.payload)
        self._said += size

        def done(outcome: _T) -> _T:
            self._said -= size
            return outcome

        return self._promised(self._publishLane, message).addBoth(done)

    def loadNow(self, key: bytes) -> Record | None:
        """
        L{load} for a L{LOCAL} store, without a Deferred.
        """
        self.loads += 1
        [record] = self._now("load", (key,))
        return cast("Record | None", record)

    def commitNow(self, change: Change) -> Record:
        """
        L{commit} for a L{LOCAL} store, without a Deferred.

        @raise SessionError: what refused it.
        """
        self.commits += 1
        [outcome] = self._now("commit", (change,))
        if isinstance(outcome, Exception):
            raise outcome
        return cast(Record, outcome)

    def sweepNow(self, limit: int) -> Swept:
        """
        L{sweep} for a L{LOCAL} store, without a Deferred.
        """
        return cast(Swept, self._now("sweep", limit))

    # The rest goes through one by one, with the same deadline and breaker.

    def sweep(self, limit: int) -> Deferred[Swept]:
        """
        See L{ISessionStore.sweep}.
        """
        return self._pass("sweep", limit)

    def listen(self) -> Deferred[None]:
        """
        See L{ISessionStore.listen}.
        """
        return self._pass("listen")

    def claim(self, limit: int, lease: float) -> Deferred[list[Ended]]:
        """
        See L{ISessionStore.claim}.

        @param lease: seconds.
        """
        return self._pass("claim", limit, lease)

    def sessionsOf(self, principal: str | None) -> Deferred[list[Record]]:
        """
        See L{ISessionStore.sessionsOf}; L{None} is nobody.
        """
        if principal is None:
            return succeed([])
        return self._pass("sessionsOf", principal)

    def withHandle(self, handle: bytes) -> Deferred[Record | None]:
        """
        See L{ISessionStore.withHandle}.
        """
        return self._pass("withHandle", handle)

    def acquire(self, name: bytes, holder: bytes, lease: float) -> Deferred[bool]:
        """
        See L{ISessionStore.acquire}.

        @param lease: seconds.
        """
        return self._pass("acquire", name, holder, lease)

    def release(self, name: bytes, holder: bytes) -> Deferred[None]:
        """
        See L{ISessionStore.release}.
        """
        return self._pass("release", name, holder)

    def watch(self, heard: Callable[[Sequence[bytes] | None], None]) -> Deferred[None]:
        """
        See L{ISessionStore.watch}.
        """
        return self._pass("watch", heard)

    def iterate(self, after: bytes | None, limit: int) -> Deferred[list[Record]]:
        """
        See L{ISessionStore.iterate}.
        """
        return self._pass("iterate", after, limit)

    def close(self) -> Deferred[None]:
        """
        Close the store when all that was called has its outcome.

        @return: fires when it is closed, after C{timeout} seconds at the
            latest; fails if the store fails to close. Safe to call twice.
        """
        if self.local:
            return self._pass("close")
        waiting: Deferred[None] = Deferred()
        if self._closed is not None:
            self._closed.append(waiting)
            if self._drained is None:
                self._finishClose(None)
            return waiting
        self._closed = [waiting]
        drained: Deferred[None] = Deferred()
        self._drained = drained
        limit = self._reactor.callLater(self._timeout, self._closeLate)

        def shut(_: None) -> Deferred[Any]:
            return maybeDeferred(cast(Any, self.store).close)

        def done(result: Any) -> None:
            if limit.active():
                limit.cancel()
            if isinstance(result, Failure):
                result = self._explained("close", result)
            self._finishClose(result)

        drained.addCallback(shut).addBoth(done)
        self._handOut()
        return waiting

    def _closeLate(self) -> None:
        _log.warn("the store did not close in time")
        drained = self._drained
        if drained is not None and not drained.called:
            drained.callback(None)  # closed over what hangs, rather than not at all
        self._finishClose(None)

    def _finishClose(self, result: Any) -> None:
        self._drained = None
        if self._timer is not None and not self._waiting:
            self._timer.cancel()
            self._timer = None
        waiting, self._closed = self._closed or [], []
        for deferred in waiting:
            if isinstance(result, Exception):
                deferred.errback(result)
            else:
                deferred.callback(None)

    def _now(self, name: str, asked: object) -> Any:
        try:
            deferred = getattr(self.store, name)(asked)
            result = deferred.result
        except Exception:
            result = Failure()
        else:
            if isinstance(result, Failure):
                deferred.addErrback(lambda _: None)  # it is raised from here instead
        if isinstance(result, Failure):
            raise self._explained(name, result)
        return result

    def _pass(self, name: str, *args: Any) -> Deferred[Any]:
        if self.local:
            deferred: Deferred[Any] = maybeDeferred(getattr(self.store, name), *args)
            return deferred.addErrback(self._explain, name)
        refusal = self._refusal()
        if refusal is not None:
            return fail(refusal)
        answered: Deferred[Any] = Deferred()
        call = _Call(self._reactor.seconds(), name, partial(_tell, answered))
        trip = _Trip(call.made, None, name, [call])
        self._alone[trip] = None
        self._await()
        self._send(trip, args)
        return answered

    def _explain(self, failure: Failure, name: str) -> Failure:
        error = self._explained(name, failure)
        return failure if error is failure.value else Failure(error)

    # Batches.

    def _promised(self, lane: _Lane, item: object) -> Deferred[Any]:
        deferred: Deferred[Any] = Deferred(lambda _: self._forget(lane, call))
        call = self._gather(lane, item, partial(_tell, deferred))
        return deferred

    def _gather(self, lane: _Lane, item: object, then: _Then) -> _Call | None:
        """
        @return: L{None} if it is refused; C{then} has been told.
        """
        if self._breaker.isOpen or self._closed is not None or self._waiting >= self._maxWaiting:
            refusal = self._refusal()
            if refusal is not None:
                then(refusal)
                return None
        call = _Call(self._reactor.seconds(), item, then)
        if lane is self._loadLane:
            first = lane.gathered.setdefault(item, call)
            if first is not call:
                if first.also is None:
                    first.also = deque()
                elif len(first.also) >= self._maxWaiting * _CROWD:
                    then(StoreUnavailable("too many wait for this session already"))
                    return None
                first.also.append(call)
        else:
            lane.gathered[call] = call
        self._await()
        if not self._isHandingOut:
            self._leave(lane)
        return call

    def _forget(self, lane: _Lane, call: _Call | None) -> None:
        """
        Nobody waits for a load any more. What has not left does not leave.
        """
        if lane is not self._loadLane or call is None or call.then is None:
            return  # what is handed in cannot be taken back
        call.then = None
        self._waiting -= 1
        self._sift(lane, lane.gathered.get(call.item))

    def _sift(self, lane: _Lane, call: _Call | None) -> None:
        # What nobody waits for is not asked.
        if call is not None and call.first() is None:
            del lane.gathered[call.item if lane is self._loadLane else call]

    def _leave(self, lane: _Lane) -> None:
        if lane.isLeaving:
            return  # a store that answers at once is a loop here, not a recursion
        lane.isLeaving = True
        try:
            while lane.trip is None and lane.gathered:
                names = list(islice(lane.gathered, self._maxBatch))
                calls = [lane.gathered.pop(name) for name in names]
                self.batches += 1
                lane.trip = trip = _Trip(self._reactor.seconds(), lane, lane.name, calls)
                self._send(trip, ([call.item for call in calls],))
        finally:
            lane.isLeaving = False

    def _send(self, trip: _Trip, args: Sequence[Any]) -> None:
        answer: Deferred[Any] = maybeDeferred(getattr(self.store, trip.name), *args)
        answer.addCallback(self._answered, trip).addErrback(self._broke, trip)

    def _answered(self, result: Any, trip: _Trip) -> None:
        outcomes = [result] if trip.lane is None else result
        if len(outcomes) != len(trip.calls):
            raise RuntimeError(f"{len(outcomes)} outcomes for {len(trip.calls)} items")
        if not self._end(trip):
            return  # given up on: nobody waits, and something newer may be known
        if not all(isinstance(outcome, StoreUnavailable) for outcome in outcomes):
            self._breaker.worked()
        else:
            self._breaker.workedInPart()
        crowds = []
        for call, outcome in zip(trip.calls, outcomes, strict=True):
            self._decide(call, outcome)
            if call.also is not None:
                crowds.append((call.also, outcome))
        for also, outcome in crowds:
            for other in also:
                self._decide(other, outcome)
        self._returned(trip)

    def _broke(self, failure: Failure, trip: _Trip) -> None:
        error = self._explained(trip.name, failure)
        if not self._end(trip):
            return
        if isinstance(error, StoreUnavailable):
            self._failed(error)
        else:
            self._breaker.worked()
        for call in trip.calls:
            for one in call.all():
                # Each its own: an error that is raised in many places at once
                # gathers all their tracebacks.
                own = error
                if isinstance(error, StoreUnavailable):
                    own = StoreUnavailable(*error.args)
                    own.__cause__ = error.__cause__
                self._decide(one, own)
        self._returned(trip)

    def _returned(self, trip: _Trip) -> None:
        if trip.lane is not None:
            # First of all: the store works while callers deal with outcomes.
            self._leave(trip.lane)
        self._handOut()

    def _end(self, trip: _Trip) -> bool:
        if trip.isOver:
            return False
        trip.isOver = True
        if trip.lane is None:
            del self._alone[trip]
        else:
            trip.lane.trip = None
        return True

    def _decide(self, call: _Call, outcome: Any) -> None:
        then = call.then
        if then is not None:
            call.then = None
            self._waiting -= 1
            self._outcomes.append(then)
            self._outcomes.append(outcome)

    def _handOut(self) -> None:
        if self._isHandingOut:
            return
        self._isHandingOut = True
        try:
            while True:
                while self._outcomes:
                    then, outcome = self._outcomes.popleft(), self._outcomes.popleft()
                    try:
                        then(outcome)
                    except Exception:
                        _log.failure("a bug in what was to be done with the store's answer")
                # What the callers have asked for meanwhile leaves as one batch.
                for lane in self._lanes:
                    if lane.gathered:
                        self._leave(lane)
                if not self._outcomes:
                    break
        finally:
            self._isHandingOut = False
        drained = self._drained
        if drained is not None and not drained.called and self._isIdle():
            drained.callback(None)

    def _isIdle(self) -> bool:
        return not (self._waiting or self._alone or any(lane.trip for lane in self._lanes))

    # Deadlines.

    def _await(self) -> None:
        self._waiting += 1
        if self._timer is None:
            self._timer = self._reactor.callLater(self._timeout, self._expire)

    def _expire(self) -> None:
        self._timer = None
        now = self._reactor.seconds()
        over = now - self._timeout + _SLACK  # what was made by then
        first = inf
        for trip in [*self._alone, *(lane.trip for lane in self._lanes)]:
            if trip is None:
                continue
            for call in trip.calls:
                first = min(first, self._timeOut(call, over))
            if trip.made > over:
                first = min(first, trip.made)
                continue
            # Given up on, though the store goes on with it, and the lane is
            # free. If it is applied after a later change to the same
            # session, then as one of another process would be: wholly or not
            # at all, touching only the keys that it names, never bringing a
            # session back. It was never acknowledged, and whoever sends it
            # again does so with its token, so that it is applied once.
            self._end(trip)
            self._failed(self._noAnswer())
        for lane in self._lanes:
            for call in list(lane.gathered.values()):
                first = min(first, self._timeOut(call, over))
                self._sift(lane, call)
                if call.made > over:
                    break  # as all behind it
        if first < inf:
            self._timer = self._reactor.callLater(
                max(0.0, first + self._timeout - now), self._expire
            )
        self._handOut()

    def _timeOut(self, call: _Call, over: float) -> float:
        """
        Tell those whose time is over; when the first of the others was made.
        """
        while (one := call.first()) is not None:
            if one.made > over:
                return one.made  # as all behind it
            self.timeouts += 1
            self._decide(one, self._noAnswer())
        return inf

    def _noAnswer(self) -> StoreUnavailable:
        return StoreUnavailable(f"the store did not answer within {self._timeout:g} s")

    def _refusal(self) -> StoreUnavailable | None:
        if self._closed is not None:
            return StoreUnavailable("the store is closed")
        if self._waiting >= self._maxWaiting:
            return StoreUnavailable(f"{self._waiting} calls wait for the store already")
        return self._breaker.refusal()

    def _failed(self, why: StoreUnavailable) -> None:
        self._breaker.failed(why)
        if not self._breaker.isOpen:
            return
        for lane in (self._commitLane, self._loadLane, self._publishLane):
            # They would only leave to fail.
            for call in lane.gathered.values():
                for one in call.all():
                    self._decide(one, self._breaker.explanation())
            lane.gathered.clear()

    def _explained(self, name: str, failure: Failure) -> Exception:
        # What a store may raise; anything else is a bug of the store, which is
        # told once and then treated as one more way to be unavailable.
        error: BaseException = cast(BaseException, failure.value)
        if isinstance(error, SessionError):
            return error
        kind = (name, type(error))
        if kind not in self._logged:
            self._logged.add(kind)
            _log.failure("a bug in the store's {name}()", failure=failure, name=name)
        unavailable = StoreUnavailable(f"the store's {name}() failed: {type(error).__name__}")
        unavailable.__cause__ = error
        return unavailable


def _tell(deferred: Deferred[Any], outcome: Any) -> None:
    if deferred.called:
        return  # cancelled meanwhile
    if isinstance(outcome, Exception):
        deferred.errback(outcome)
    else:
        deferred.callback(outcome)


def _outcome(outcomes: Sequence[SessionError | None]) -> None:
    [outcome] = outcomes
    if outcome is not None:
        raise outcome
