"""
Changes, records and ends as L{scripts<twsessions.stores._redis.scripts>}
takes and keeps them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import sha1
from typing import Any, Final

import msgpack

from twsessions.core.delta import UNSET, Change
from twsessions.core.ids import handleOf
from twsessions.core.record import Record
from twsessions.errors import CorruptRecord, NewerFormat
from twsessions.interfaces import Ended, Verdict

__all__ = [
    "claimOf",
    "decode",
    "decodeAll",
    "decodeEnd",
    "encode",
    "encodeVerdict",
    "read",
    "stateBetween",
    "timeOf",
]

_FORMAT: Final = 1
_BETWEEN: Final = 0  # a session on its way from one bucket to another
_CHECK: Final = 9  # format and checksum end here,
_CONTENT: Final = 25  # and the handle here

_unpack = msgpack.unpackb
_pack = msgpack.Packer(use_bin_type=False).pack  # Lua's knows no other type


def encode(change: Change, apart: bool) -> bytes:
    """
    A change as the commit script takes it. C{None} is left out, so what can be
    set to it is C{False} then.

    @param apart: another key is in a bucket that the script cannot see.
    @raise ValueError: something in it cannot be written.
    @raise TypeError: likewise.
    @raise OverflowError: likewise.
    """
    what: dict[str, Any] = {"key": change.key, "token": change.token}
    if change.newKey is not None:
        what["to"] = change.newKey
        if apart and change.newKey != change.key:
            what["away"] = True
    birth = change.birth
    if birth is not None:
        what["birth"] = {
            "seed": birth.seed,
            "ago": birth.ago,
            "absolute": birth.absolute,
            "epoch": birth.epoch,
            "secure": birth.secure,
            "address": birth.address,
            "userAgent": birth.userAgent,
            "handle": handleOf(birth.seed),
        }
    if change.set:
        what["set"] = dict(change.set)
    if change.remove:
        what["remove"] = list(change.remove)
    if change.expect:
        what["expect"] = {n: False if v is None else v for n, v in change.expect.items()}
    if change.idle is not UNSET:
        what["idle"] = False if change.idle is None else change.idle
    if change.principal is not UNSET:
        what["principal"] = False if change.principal is None else change.principal
    if change.ownIdle is not UNSET:
        what["ownIdle"] = change.ownIdle
    if change.login:
        what["login"] = True
    if change.usedAgo is not None:
        what["usedAgo"] = change.usedAgo
    if change.uses:
        what["uses"] = change.uses
    if change.end is not None:
        what["stop"] = change.end
    packed: bytes = _pack(what)
    return packed


def decodeAll(
    keys: Iterable[bytes],
    values: Iterable[bytes | None],
    now: float,
    odd: list[tuple[bytes, bytes]],
) -> list[Record | None]:
    """
    The living sessions that are stored as C{values}, L{None} for all others.

    @param now: the server's time.
    @param odd: is given the keys and values of what is there and is no
        session; L{decode} knows more.
    """
    # Loading many sessions is, for the most part, this: it is all in one place
    # because calls would cost a tenth of it.
    found: list[Record | None] = []
    for key, value in zip(keys, values, strict=True):
        record = None
        if value is not None:
            if value.startswith(b"\1" + sha1(key + value[_CHECK:]).digest()[:8]):
                try:
                    record = Record(key, *_unpack(value[_CONTENT:]), now)  # type: ignore[call-arg]
                except (ValueError, TypeError, AttributeError, msgpack.UnpackException):
                    odd.append((key, value))
                else:
                    if now >= record.deadline:
                        record = None
            else:
                odd.append((key, value))
        found.append(record)
    return found


def decode(key: bytes, value: bytes, now: float) -> Record | None:
    """
    The session that is stored as C{value}, or L{None}: it is between two
    buckets, and neither key is alive.

    @param now: the server's time, for L{Record.asOf}.
    @raise NewerFormat: it is of a later release; leave it as it is.
    @raise CorruptRecord: it is nothing this package wrote under this key.
    """
    if not value:
        raise CorruptRecord("not a session record")
    if value[0] == _BETWEEN:
        if stateBetween(value) is None:
            raise CorruptRecord("a rotation that does not parse")
        return None
    if value[0] != _FORMAT:
        raise NewerFormat(f"a session record of format {value[0]}; this release reads {_FORMAT}")
    if sha1(key + value[_CHECK:]).digest()[:8] != value[1:_CHECK]:
        raise CorruptRecord("a session record whose checksum does not hold")
    return read(key, value, now)


def read(key: bytes, value: bytes, now: float) -> Record:
    """
    L{decode} of what is known to be a session, and whole.
    """
    try:
        return Record(key, *_unpack(value[_CONTENT:]), now)  # type: ignore[call-arg]
    except (ValueError, TypeError, AttributeError, msgpack.UnpackException) as error:
        raise CorruptRecord("a session record that does not parse") from error


def stateBetween(value: bytes) -> Mapping[str, bytes] | None:
    """
    What is known of a session between two buckets: C{to}, C{token} and
    C{record} under its old key, C{from} and C{token} under its new one; or
    L{None}: that is not what it is.
    """
    if value[:1] != b"\0":
        return None
    try:
        raw: dict[bytes, bytes] = _unpack(value[1:], raw=True)
        state = {name.decode("ascii"): what for name, what in raw.items()}
    except (ValueError, TypeError, AttributeError, msgpack.UnpackException):
        return None
    isWhole = "token" in state and ("from" in state or {"to", "record"} <= state.keys())
    return state if isWhole else None


def decodeEnd(id_: bytes, packed: bytes, now: float) -> Ended:
    """
    An end, as the claim script gives it.

    @raise NewerFormat: its record is of a later release.
    @raise CorruptRecord: it is nothing this package wrote.
    """
    try:
        reason, ended, attempts, claim, key, value = _unpack(packed, raw=True)
        record = decode(key, value, now)
        if record is None:
            raise CorruptRecord("not a session record")
        return Ended(id_, record, reason.decode("ascii"), float(ended), attempts, claim)
    except (ValueError, TypeError, AttributeError, msgpack.UnpackException) as error:
        raise CorruptRecord("an end that does not parse") from error


def encodeVerdict(verdict: Verdict) -> bytes:
    """
    A verdict as the settle script takes it.
    """
    what = {"id": verdict.id, "claim": verdict.claim, "dead": verdict.dead}
    if verdict.retryIn is not None:
        what["retryIn"] = verdict.retryIn
    packed: bytes = _pack(what)
    return packed


def timeOf(clock: Any, skew: float) -> float:
    """
    Seconds, from the answer to C{TIME}.
    """
    seconds, micros = clock
    return int(seconds) + int(micros) / 1e6 + skew


def claimOf(packed: bytes) -> bytes:
    """
    The claim in an end that cannot be read otherwise; empty if there is none.
    """
    try:
        claim = _unpack(packed, raw=True)[3]
    except (ValueError, TypeError, IndexError, KeyError, msgpack.UnpackException):
        return b""
    return claim if isinstance(claim, bytes) else b""
