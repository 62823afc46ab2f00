"""
What a store promises.

A store keeps L{records<twsessions.core.record.Record>} under 32-byte keys
(hashes of ids; a store never sees an id) and ends them. Its operations take
whole batches, because a round trip in flight is the time in which the next
batch gathers. C{twsessions.testing.StoreContractMixin} proves every promise on
this page; a store that passes it is a store.

Common to all operations:

  - An item's outcome is its own: one bad item fails no other.
  - A fault of the store itself fails the whole Deferred with
    L{StoreUnavailable<twsessions.errors.StoreUnavailable>}; drivers' errors do
    not get out. What was under way is then either wholly done or not at all.
  - Time is the store's own clock. Whoever calls says "so many seconds ago",
    never "at".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from zope.interface import Attribute, Interface

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred

    from twsessions.core.delta import Change
    from twsessions.core.record import Record
    from twsessions.errors import SessionError

__all__ = [
    "EVENTS",
    "EXCLUSIVE",
    "HINTS",
    "ITERATE",
    "LOCAL",
    "MESSAGE_LIMIT",
    "PRINCIPALS",
    "PUBLISH",
    "Ended",
    "ISessionStore",
    "Message",
    "Swept",
    "Verdict",
]

EVENTS = "events"
"""Capability: ends are kept until they are heard (listen, claim, settle)."""

PRINCIPALS = "principals"
"""Capability: sessions can be found by principal and by handle."""

EXCLUSIVE = "exclusive"
"""Capability: leases (acquire, release)."""

HINTS = "hints"
"""Capability: what other processes ended is told of soon (watch)."""

ITERATE = "iterate"
"""Capability: all sessions can be walked through (iterate)."""

PUBLISH = "publish"
"""Capability: messages reach all processes that want them (publish, subscribe)."""

LOCAL = "local"
"""
Capability: no other process can see the store, and every Deferred it returns
has fired already.
"""

MESSAGE_LIMIT: Final = 256 * 1024
"""Bytes that a message can have, its topic in UTF-8 included; the same for every store."""


class Message(NamedTuple):
    """
    What one process says to all that have their sessions in the same place.

    @ivar topic: what it is about: any text.
    @ivar payload: any bytes, or none.
    """

    topic: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class Swept:
    """
    What L{ISessionStore.sweep} did.

    @ivar ended: how many sessions it ended.
    @ivar more: whether some that are due may be left.
    @ivar wait: seconds until the next session known to the store falls due, at
        the least; L{None} if it knows of none.
    """

    ended: int
    more: bool
    wait: float | None


@dataclass(frozen=True, slots=True)
class Ended:
    """
    A session that has ended and of which somebody wants to hear.

    @ivar id: stable and unique to this end: the record's handle, 16 bytes.
    @ivar record: the session's last state.
    @ivar reason: one of L{twsessions.core.lifecycle.REASONS}.
    @ivar ended: when, by the store's clock: its deadline if it fell due.
    @ivar attempts: how often it has been claimed, this time included.
    @ivar claim: names this claim; L{Verdict} must repeat it.
    """

    id: bytes
    record: Record
    reason: str
    ended: float
    attempts: int
    claim: bytes


@dataclass(frozen=True, slots=True)
class Verdict:
    """
    What became of a claimed end.

    @ivar id: L{Ended.id}.
    @ivar claim: L{Ended.claim}.
    @ivar retryIn: L{None}: it was heard and can be forgotten. Otherwise it is
        to be claimed again after so many seconds.
    @ivar dead: it failed for the last time: kept, never claimed again.
    """

    id: bytes
    claim: bytes
    retryIn: float | None = None
    dead: bool = False


class ISessionStore(Interface):
    """
    Keeps sessions until they end.
    """

    capabilities: frozenset[str] = Attribute(
        """
        Which of the constants above this store can do. What it cannot do it
        refuses with L{NotSupported<twsessions.errors.NotSupported>}.
        """
    )

    def load(keys: Sequence[bytes]) -> Deferred[list[Record | None]]:
        """
        Read sessions. Changes nothing, and does not count as use.

        @return: fires with a record, or L{None}, for each key in turn. Unknown,
            ended, fallen due (its deadline is the store's now or earlier,
            whether or not anything has swept) and corrupt look alike on
            purpose. A corrupt record is put aside and logged once. A record of
            a L{newer format<twsessions.errors.NewerFormat>} reads as absent
            too and is left as it is, whatever is done to its key. Fields are
            the caller's own to keep and not to change. A store on several
            servers gives a L{StoreUnavailable
            <twsessions.errors.StoreUnavailable>} for each key that is on one
            that is away; the Deferred fails if all servers are.
        """

    def commit(changes: Sequence[Change]) -> Deferred[list[Record | SessionError]]:
        """
        Apply each change, atomically for each, in the order given.

        Once the Deferred has fired, the outcome stands: it survives the death
        of every process that uses the store. The rules of merging are
        L{twsessions.core.delta.apply}'s: keys not named in a change are not
        touched, keys written together appear together, the last acknowledged
        writer wins per key, use only moves forward.

        A change sent again with the same token, after an outcome that was
        not learned, is applied once: this is known of the last change of each
        session, and for a rotation under the new key as well.

        A key that has ended or was rotated away never comes to life again.

        A change with C{end} removes the session in the same step, and, if
        anybody has L{listened<listen>}, keeps its end for L{claim}.

        @return: fires with, for each change in turn, the record as it is stored
            now (for C{end}: the last state), or the error that refused it:
            L{SessionGone<twsessions.errors.SessionGone>} (nothing living under
            that key; for C{end} this is success as well),
            L{IdCollision<twsessions.errors.IdCollision>}, or
            L{Conflict<twsessions.errors.Conflict>} (a field is not what
            C{expect} says). A refused change has changed nothing. Of one that
            is a L{StoreUnavailable<twsessions.errors.StoreUnavailable>}, for a
            server that is away among several, it is not known.
        """

    def sweep(limit: int) -> Deferred[Swept]:
        """
        End sessions that have fallen due, the earliest first (of each server,
        if there are several), up to C{limit}.

        A use or change that was acknowledged first wins; one that comes after
        finds the session gone. Safe to run in many processes at once. Bounded
        work, whatever is due: it may come to none at first, and say that there
        is more.
        """

    def listen() -> Deferred[None]:
        """
        From now on keep the ends of sessions, of every process, for L{claim}.

        Kept by the store itself, so that ends are heard that came while no
        listener was running. To be repeated at least every 30 days; a store
        without listeners for that long may forget the wish and the ends.

        @raise NotSupported: no L{EVENTS}.
        """

    def claim(limit: int, lease: float) -> Deferred[list[Ended]]:
        """
        Take up to C{limit} ends, those that wait longest first, for C{lease}
        seconds.

        Nobody else is given them until then. If no verdict has come by then
        they are given out again, with the same id.

        @raise NotSupported: no L{EVENTS}.
        """

    def settle(verdicts: Sequence[Verdict]) -> Deferred[list[bool]]:
        """
        Say what became of claimed ends.

        @return: fires with, for each, whether the claim was still held;
            if not, nothing was done.
        @raise NotSupported: no L{EVENTS}.
        """

    def sessionsOf(principal: str) -> Deferred[list[Record]]:
        """
        The living sessions of a principal, the oldest first. A name that
        cannot be encoded (half a surrogate pair, as JSON can hold) is nobody's,
        and has none.

        @raise NotSupported: no L{PRINCIPALS}.
        """

    def withHandle(handle: bytes) -> Deferred[Record | None]:
        """
        The living session with that L{handle<Record.handle>}, or L{None}.

        @raise NotSupported: no L{PRINCIPALS}.
        """

    def acquire(name: bytes, holder: bytes, lease: float) -> Deferred[bool]:
        """
        Take or renew the lease called C{name}, for C{lease} seconds.

        @param holder: bytes unique to whoever asks.
        @return: fires with whether C{holder} has it now.
        @raise NotSupported: no L{EXCLUSIVE}.
        """

    def release(name: bytes, holder: bytes) -> Deferred[None]:
        """
        Give a lease back; nothing happens if C{holder} does not have it.

        @raise NotSupported: no L{EXCLUSIVE}.
        """

    def watch(heard: Callable[[Sequence[bytes] | None], None]) -> Deferred[None]:
        """
        Be told of sessions that have ended, in any process.

        Only a hint: it mostly comes within a second, it may come twice or not
        at all, and the store has to be asked what is the case.

        @param heard: called in the reactor's thread with the keys of sessions
            that have ended or have moved to another key, or with L{None} when
            some may have been missed (a connection was lost and is back).
            There is one; a second call of C{watch} replaces it.
        @return: fires when it is in force.
        @raise NotSupported: no L{HINTS}.
        """

    def publish(messages: Sequence[Message]) -> Deferred[list[SessionError | None]]:
        """
        Say something to every process that has L{subscribed<subscribe>}, this
        one included: it hears itself by way of the store, as the others do.

        Nothing is kept. A message arrives at most once, and what one store
        object publishes arrives in the order of its calls, whatever the topic;
        of two that publish at the same time, processes may hear one or the
        other first. After a failure it is not known whether a message arrives;
        if it does, then not behind a later one. The Deferred says that the
        store has it, and not that anybody has heard it.

        No other operation waits for this one, or fails because of it.

        @return: fires with, for each message in turn, L{None}, or why it
            will not arrive: a L{StoreError<twsessions.errors.StoreError>} for
            one that is over L{MESSAGE_LIMIT}.
        @raise NotSupported: no L{PUBLISH}.
        """

    def subscribe(heard: Callable[[Message | None], object]) -> Deferred[None]:
        """
        From now on be told of all messages that arrive, until the store is
        closed. (A store on several servers may be late with some that were
        published before.)

        @param heard: called in the reactor's thread with each message, or
            with L{None} when some may have been missed: a connection was lost
            and is back, or what came was not what should have come next. (Not
            every loss is seen.) Each call of C{subscribe} adds one.
        @return: fires when it is in force; what this store object publishes
            meanwhile waits for that, and is heard. If it fails, it is tried
            again all the same, and C{heard} is called with L{None} when it is
            in force.
        @raise NotSupported: no L{PUBLISH}.
        """

    def iterate(after: bytes | None, limit: int) -> Deferred[list[Record]]:
        """
        Up to C{limit} living sessions in the order of their keys.

        @param after: the last key of the page before, or L{None} to begin.
        @return: fires with a list; an empty one is the end.
        @raise NotSupported: no L{ITERATE}.
        """

    def close() -> Deferred[None]:
        """
        Let go of files, connections and threads, after what is under way has
        ended. Safe to call twice; anything called afterwards fails with
        L{StoreUnavailable<twsessions.errors.StoreUnavailable>}.
        """
