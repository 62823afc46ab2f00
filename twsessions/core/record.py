"""
A session as a store keeps it: the record, and its one packed form.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import msgpack

from twsessions.core.ids import handleOf
from twsessions.core.lifecycle import deadlineOf, reasonAt
from twsessions.errors import CorruptRecord, NewerFormat

__all__ = ["FORMAT", "Record", "fromBody", "pack", "seedOf", "toBody", "unpack"]

FORMAT = 1
"""The format L{pack} writes; L{unpack} reads this one and all before it."""

_SEED = 3  # after what msgpack says of a list and of bytes
_CHECK = 8  # bytes of checksum: against accidents, not against an attacker


@dataclass(slots=True)
class Record:
    """
    One session, stored. To be treated as immutable: it may be shared.

    @ivar key: 32 bytes, the SHA-256 of the id; the id itself is never stored.
    @ivar seed: 16 private bytes, the same for the session's whole life;
        handle, event id and CSRF token are derived from it.
    @ivar created: seconds, by the store's clock.
    @ivar touched: when it was last used, by the store's clock.
    @ivar idle: seconds it may stay unused, or L{None}.
    @ivar absolute: seconds after C{created} that no use extends, or L{None}.
    @ivar fields: encoded values by name; the first character of a name says
        whose it is (L{twsessions.core.delta.DATA} and those after it).
    @ivar version: rises by one with each change.
    @ivar uses: requests that have used it, as far as they were stored.
    @ivar epoch: logins so far.
    @ivar ownIdle: whether C{idle} was set for this one session and not by its
        class.
    @ivar secure: made on, and only to be accepted from, a secure connection.
    @ivar token: of the change that made this version; tells a retry from a
        new change.
    @ivar asOf: the store's time when this record was read. Not stored.
    """

    key: bytes = field(repr=False)
    seed: bytes = field(repr=False)
    created: float
    touched: float
    idle: float | None = None
    absolute: float | None = None
    fields: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    version: int = 1
    uses: int = 0
    principal: str | None = field(default=None, repr=False)
    epoch: int = 0
    ownIdle: bool = False
    secure: bool = False
    address: str | None = None
    userAgent: str | None = None
    token: bytes = field(default=b"", repr=False)
    asOf: float = 0.0

    @property
    def deadline(self) -> float:
        """
        When it ends, by the store's clock; infinite if it does not.
        """
        return deadlineOf(self.touched, self.idle, self.created, self.absolute)

    @property
    def reason(self) -> str:
        """
        Which limit its deadline is: C{"idle"} or C{"absolute"}.
        """
        return reasonAt(self.touched, self.idle, self.created, self.absolute)

    @property
    def handle(self) -> bytes:
        """
        16 bytes that name the session to people and are no usable id.
        """
        return handleOf(self.seed)

    def seenAt(self, now: float) -> Record:
        """
        This record, read at another time.
        """
        return Record(  # dataclasses.replace() takes seven times as long
            self.key,
            self.seed,
            self.created,
            self.touched,
            self.idle,
            self.absolute,
            self.fields,
            self.version,
            self.uses,
            self.principal,
            self.epoch,
            self.ownIdle,
            self.secure,
            self.address,
            self.userAgent,
            self.token,
            now,
        )


def toBody(record: Record) -> bytes:
    """
    All of a record but its key, as bytes.
    """
    body: bytes = msgpack.packb(
        (
            record.seed,
            record.created,
            record.touched,
            record.idle,
            record.absolute,
            record.fields,
            record.version,
            record.uses,
            record.principal,
            record.epoch,
            record.ownIdle,
            record.secure,
            record.address,
            record.userAgent,
            record.token,
        )
    )
    return body


def fromBody(key: bytes, body: bytes) -> Record:
    """
    The record that L{toBody} made these bytes of.

    @raise CorruptRecord: they are something else.
    """
    try:
        values: list[Any] = msgpack.unpackb(body, use_list=True, strict_map_key=True)
        return Record(key, *values)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise CorruptRecord("a session record that does not parse") from error


def seedOf(body: bytes) -> bytes:
    """
    The seed, L{Record.seed}, in what L{toBody} has made: nothing is checked.
    """
    return body[_SEED : _SEED + 16]


def pack(record: Record) -> bytes:
    """
    The same for where it may be changed by others, or read by another release:
    format, checksum, body.
    """
    body = toBody(record)
    head = bytes((FORMAT,))
    return head + _checksum(head, record.key, body) + body


def unpack(key: bytes, packed: bytes, now: float = 0.0) -> Record:
    """
    The record that L{pack} made these bytes of.

    @param now: the store's time, for L{Record.asOf}.
    @raise NewerFormat: it is of a later release; leave it as it is.
    @raise CorruptRecord: it is nothing this package wrote under this key.
    """
    head, check, body = packed[:1], packed[1 : 1 + _CHECK], packed[1 + _CHECK :]
    if not head or not 1 <= head[0]:
        raise CorruptRecord("not a session record")
    if check != _checksum(head, key, body):
        raise CorruptRecord("a session record whose checksum does not hold")
    if head[0] > FORMAT:
        raise NewerFormat(f"a session record of format {head[0]}; this release reads {FORMAT}")
    record = fromBody(key, body)
    record.asOf = now
    return record


def _checksum(head: bytes, key: bytes, body: bytes) -> bytes:
    # The key is in it, so that a row copied to another key does not load.
    return blake2b(body, digest_size=_CHECK, key=head + key).digest()
