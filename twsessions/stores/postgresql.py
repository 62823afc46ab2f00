"""
Sessions in PostgreSQL, shared by every process.

Each operation, and each batch, is one call of a function in the database: one
round trip and one transaction. Reads and writes have a connection each, so
that a load never waits for a commit; and messages a third one, if there are
any, so that sessions never wait for messages.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator, Sequence
from hashlib import blake2b
from secrets import token_bytes
from struct import error as StructError
from typing import Any, Final, TypeVar

from psycopg import pq
from psycopg.pq.abc import PGresult
from twisted.internet.defer import Deferred, FirstError, gatherResults
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from twsessions.core.delta import Change, isAlive
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
from twsessions.stores._postgres import record
from twsessions.stores._postgres.dial import Dialer
from twsessions.stores._postgres.errors import stateOf
from twsessions.stores._postgres.link import Link, Refused
from twsessions.stores._postgres.parts import Parts, cut
from twsessions.stores._postgres.schema import CORRUPT
from twsessions.stores._postgres.url import Target, parse
from twsessions.stores._several import unlessAllFailed

__all__ = ["PostgreSQLStore", "fromURL"]

T = TypeVar("T")

_WISH: Final = 30 * 86400.0  # seconds for which one listen() holds
_SLICE: Final = 250  # sessions swept in one transaction: some ms of their locks
_CHUNK: Final = 16  # keys in one query
_READS: Final = 16  # batches of reads that are on their way at once
_SAID: Final = 1 << 20  # bytes of messages in one transaction, or a message
_REFUSED: Final[dict[bytes, tuple[type[SessionError], str]]] = {
    b"gone": (SessionGone, "the session has ended"),
    b"taken": (IdCollision, "a session exists under this key already"),
    b"conflict": (Conflict, "a value is not what it was to be"),
}


def fromURL(scheme: str, rest: str) -> Callable[[Any], PostgreSQLStore]:
    """
    Read a URL, C{scheme:rest}.

    @return: makes the store, given a reactor; nothing is connected to.
    @raise ValueError: it is not right; says what would be, and repeats nothing
        of it: there may be a password in it.
    """
    target = parse(rest)
    return lambda reactor: PostgreSQLStore(reactor, target)


@implementer(ISessionStore)
class PostgreSQLStore:
    """
    A store in a schema of a PostgreSQL database (13 or later). Nothing is
    connected to before the first operation.
    """

    capabilities = frozenset({EVENTS, PRINCIPALS, EXCLUSIVE, HINTS, PUBLISH, ITERATE})

    _log = Logger()

    def __init__(
        self, reactor: Any, target: Target, skew: Callable[[], float] = lambda: 0.0
    ) -> None:
        """
        @param reactor: one that watches file descriptors, as all do on POSIX.
        @param skew: seconds to add to the server's time.
        """
        dialer = Dialer(reactor, target.parameters, target.schema, target.timeout)
        self._reader = Link(dialer, _READS, self._noticed, "ended", self._notified)
        self._writer = Link(dialer, 1, self._noticed)
        self._talker = Link(dialer, 1, self._noticed, "said", self._told)
        self._outbox, self._inbox, self._parts = Outbox(), Inbox(), Parts()
        self._skew = skew
        self._heard: Callable[[Sequence[bytes] | None], None] | None = None
        self._inspected: set[bytes] = set()
        self._isOpen = True

    # Sessions

    def load(self, keys: Sequence[bytes]) -> Deferred[list[Record | None]]:
        """
        See L{ISessionStore.load}.
        """
        wanted = list(keys)
        # What has come is taken apart while the server looks for the rest.
        parts = [wanted[at : at + _CHUNK] for at in range(0, len(wanted), _CHUNK)] or [[]]
        found: dict[bytes, Record] = {}

        def take(result: PGresult) -> None:
            found.update((one.key, one) for one in self._living(result))

        asked = [self._read(b"load", record.array(part)).addCallback(take) for part in parts]
        gathered = gatherResults(asked, consumeErrors=True).addErrback(_first)
        return gathered.addCallback(lambda done: [found.get(key) for key in wanted])

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
        return self._do(self._iterate(after or b"", limit))

    def watch(self, heard: Callable[[Sequence[bytes] | None], None]) -> Deferred[None]:
        """
        See L{ISessionStore.watch}.
        """
        if self._isOpen:
            self._heard = heard
            self._reader.keep(lambda: self._tell(None))
        # Each connection for reading listens: an answer means it is there.
        return self.load([]).addCallback(lambda found: None)

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
        if self._isOpen:
            self._inbox.add(heard)
            self._talker.keep(self._inbox.missed)
        # The connection for messages listens: an answer means it is there.
        return self._talker.ask(b"publish", record.texts([])).addCallback(lambda result: None)

    # Ends

    def listen(self) -> Deferred[None]:
        """
        See L{ISessionStore.listen}.
        """
        done = self._write(b"listen", record.packFloat(_WISH))
        return done.addCallback(lambda result: None)

    def claim(self, limit: int, lease: float) -> Deferred[list[Ended]]:
        """
        See L{ISessionStore.claim}.
        """
        claim = token_bytes(16)
        parameters = record.packInt(limit), record.packFloat(lease), claim

        def claimed(result: PGresult) -> list[Ended]:
            rows = (_row(result, number, 6) for number in range(result.ntuples))
            return [
                Ended(
                    id_,
                    record.decode(body, record.readFloat(now)),
                    reason.decode("ascii"),
                    record.readFloat(ended),
                    record.readInt(attempts),
                    claim,
                )
                for id_, body, reason, ended, attempts, now in rows
            ]

        return self._write(b"claim", *parameters).addCallback(claimed)

    def settle(self, verdicts: Sequence[Verdict]) -> Deferred[list[bool]]:
        """
        See L{ISessionStore.settle}.
        """
        parameters = (
            record.array([verdict.id for verdict in verdicts]),
            record.array([verdict.claim for verdict in verdicts]),
            record.floats([verdict.retryIn for verdict in verdicts]),
            record.bools([verdict.dead for verdict in verdicts]),
        )
        done = self._write(b"settle", *parameters)
        return done.addCallback(lambda result: record.readBools(_value(result)))

    # Principals

    def sessionsOf(self, principal: str) -> Deferred[list[Record]]:
        """
        See L{ISessionStore.sessionsOf}.
        """
        # Half of a surrogate pair, from somebody's JSON, is nobody's and no failure.
        name = principal.encode("utf-8", "surrogatepass")
        return self._read(b"whose", name).addCallback(lambda result: list(self._living(result)))

    def withHandle(self, handle: bytes) -> Deferred[Record | None]:
        """
        See L{ISessionStore.withHandle}.
        """
        return self._read(b"handle", handle).addCallback(
            lambda result: next(self._living(result), None)
        )

    # Leases

    def acquire(self, name: bytes, holder: bytes, lease: float) -> Deferred[bool]:
        """
        See L{ISessionStore.acquire}. While another has it it only reads.
        """
        done = self._write(b"acquire", name, holder, record.packFloat(lease))
        return done.addCallback(lambda result: record.readBool(_value(result)))

    def release(self, name: bytes, holder: bytes) -> Deferred[None]:
        """
        See L{ISessionStore.release}.
        """
        return self._writer.ask(b"release", name, holder).addCallback(lambda result: None)

    def close(self) -> Deferred[None]:
        """
        See L{ISessionStore.close}.
        """
        self._isOpen = False
        self._heard = None
        self._inbox.clear()
        return self._do(self._close())

    async def _close(self) -> None:
        for closing in [link.close() for link in (self._reader, self._writer, self._talker)]:
            await closing

    # Inside

    def _do(self, coroutine: Coroutine[Deferred[Any], Any, T]) -> Deferred[T]:
        return Deferred.fromCoroutine(coroutine)

    def _read(self, name: bytes, *parameters: bytes) -> Deferred[PGresult]:
        return self._reader.ask(name, record.packFloat(self._skew()), *parameters)

    def _write(self, name: bytes, *parameters: bytes) -> Deferred[PGresult]:
        return self._writer.ask(name, record.packFloat(self._skew()), *parameters)

    async def _commit(self, changes: list[Change]) -> list[Record | SessionError]:
        outcomes: list[Record | SessionError | None] = []
        encoded = []
        for change in changes:
            try:
                encoded.append(record.encode(change))
                outcomes.append(None)
            except (ValueError, TypeError, OverflowError, StructError) as error:
                # Not to be written; the others must not suffer.
                outcomes.append(_unfit(type(error).__name__))
        answers = iter(await self._commitAll(encoded) if encoded or not self._isOpen else ())
        return [next(answers) if outcome is None else outcome for outcome in outcomes]

    async def _commitAll(self, encoded: list[bytes]) -> list[Record | SessionError]:
        skew = record.packFloat(self._skew())
        try:
            result = await self._writer.askWith(
                b"commit", lambda change: (skew, record.array(encoded, change))
            )
        except Refused as error:
            if len(encoded) == 1:
                return [_unfit(str(error))]
            # One of them is at fault; nothing was done.
            outcomes = []
            for one in encoded:
                outcomes += await self._commitAll([one])
            return outcomes
        return [_outcome(result, number) for number in range(result.ntuples)]

    async def _publish(self, messages: Sequence[Message]) -> list[SessionError | None]:
        outcomes: list[SessionError | None] = []
        batches: list[tuple[list[int], list[bytes]]] = []
        room = 0
        for at, message in enumerate(messages):
            outcomes.append(None)
            try:
                parts = cut(self._outbox.pack(message))
            except StoreError as error:
                outcomes[at] = error
                continue
            size = sum(map(len, parts))
            if size > room:
                batches.append(([], []))
                room = _SAID
            room -= size
            places, said = batches[-1]
            places.append(at)
            said += parts
        asked = [self._talker.ask(b"publish", record.texts(said)) for _, said in batches]
        for (places, _), answer in zip(batches, asked, strict=True):
            try:
                await answer
            except StoreError as error:
                for at in places:
                    outcomes[at] = type(error)(*error.args)
        if not asked and not self._isOpen:
            raise StoreUnavailable("the store has been closed")
        return unlessAllFailed(outcomes)

    async def _sweep(self, limit: int) -> Swept:
        ended = seen = 0
        while True:
            # A slice at a time: commits that wait come in between.
            result = await self._write(
                b"sweep", record.packInt(max(0, limit - ended)), record.packInt(_SLICE)
            )
            looked, dead = (record.readInt(_value(result, column)) for column in (0, 1))
            raw = result.get_value(0, 2)
            wait = None if raw is None else max(0.0, record.readFloat(raw))
            ended += dead
            seen += looked or _SLICE
            if wait is None or wait > 0.0:
                return Swept(ended, False, wait)
            if ended >= limit or seen >= max(limit, _SLICE):
                return Swept(ended, True, 0.0)

    async def _iterate(self, after: bytes, limit: int) -> list[Record]:
        while True:
            result = await self._read(b"walk", after, record.packInt(limit))
            records = list(self._living(result))
            if records or not result.ntuples:
                return records
            # A whole page that cannot be read is not the end.
            after = _value(result, 4, result.ntuples - 1)

    def _living(self, result: PGresult) -> Iterator[Record]:
        """
        The living among rows of sessions; what is corrupt is put aside.
        """
        count = result.ntuples
        if not count:
            return
        now = record.readFloat(_value(result, 3))
        get = result.get_value
        corrupt = []
        for row in range(count):
            try:
                one = record.unseal(get(row, 0) or b"", get(row, 1) or b"", get(row, 2) or b"", now)
            except CorruptRecord:
                corrupt.append(_value(result, 4, row))
            except NewerFormat:
                pass
            else:
                if isAlive(one, now):
                    yield one
        if corrupt:
            self._inspect(corrupt)

    def _inspect(self, keys: list[bytes]) -> None:
        """
        Have the server look at records that were corrupt; nobody waits.
        """
        keys = [key for key in keys if key not in self._inspected]
        if not keys:
            return
        self._inspected.update(keys)

        def finish(result: T) -> T:
            self._inspected.difference_update(keys)
            return result

        def failed(failure: Any) -> None:
            self._log.error(
                "{count} corrupt session records could not be put aside: {reason}",
                count=len(keys), reason=failure.getErrorMessage(),
            )  # fmt: skip

        self._writer.ask(b"inspect", record.array(keys)).addBoth(finish).addErrback(failed)

    def _noticed(self, notice: PGresult) -> None:
        if stateOf(notice) != CORRUPT:
            return
        detail = notice.error_field(pq.DiagnosticField.MESSAGE_DETAIL) or b""
        key = bytes.fromhex(detail.decode("ascii"))
        self._log.error(
            "The stored session {session} is corrupt; it was moved to the table 'quarantine' "
            "and its user gets a new one",
            session=blake2b(key, digest_size=4).hexdigest(),
        )

    def _notified(self, payload: bytes) -> None:
        try:
            keys = [bytes.fromhex(word) for word in payload.decode("ascii").split()]
        except ValueError:
            return  # anybody may send notifications
        self._tell(keys)

    def _told(self, payload: bytes) -> None:
        try:
            packed = self._parts.take(payload)
        except ValueError:
            return  # likewise
        if packed is not None:
            self._inbox.arrived(packed)

    def _tell(self, keys: Sequence[bytes] | None) -> None:
        heard = self._heard
        if heard is None:
            return
        try:
            heard(keys)
        except Exception:  # noqa: BLE001 (it must not cost the connection)
            self._log.failure("a failure in what was told of ended sessions")


def _outcome(result: PGresult, number: int) -> Record | SessionError:
    refusal, body, now = (result.get_value(number, column) for column in range(3))
    if refusal is not None:
        error, text = _REFUSED[refusal]
        return error(text)
    return record.decode(body or b"", record.readFloat(now or b""))


def _first(failure: Failure) -> Failure:
    assert isinstance(failure.value, FirstError)
    return failure.value.subFailure


def _unfit(why: str) -> StoreError:
    return StoreError(f"a change that cannot be stored: {why}")


def _row(result: PGresult, number: int, columns: int) -> list[bytes]:
    return [_value(result, column, number) for column in range(columns)]


def _value(result: PGresult, column: int = 0, row: int = 0) -> bytes:
    """
    A value that is never NULL.
    """
    value = result.get_value(row, column)
    if value is None:
        raise StoreUnavailable("PostgreSQL answered with nothing where there is something")
    return value
