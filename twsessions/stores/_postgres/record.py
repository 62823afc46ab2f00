"""
Changes and records in PostgreSQL's binary formats, as
L{schema<twsessions.stores._postgres.schema>} takes and gives them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import lru_cache
from hashlib import sha256
from struct import Struct
from struct import error as StructError
from typing import Final

from twsessions.core.delta import Birth, Change, Unset
from twsessions.core.ids import handleOf
from twsessions.core.record import Record
from twsessions.errors import CorruptRecord, NewerFormat

__all__ = [
    "array",
    "bools",
    "changes",
    "decode",
    "floats",
    "packFloat",
    "packInt",
    "readBool",
    "readBools",
    "readFloat",
    "readInt",
    "texts",
    "unseal",
]

_FORMAT: Final = 1

# OIDs of types, the same everywhere.
_BOOL: Final = 16
_BYTEA: Final = 17
_INT8: Final = 20
_TEXT: Final = 25
_FLOAT8: Final = 701
_BYTEAS: Final = 1001

packFloat: Final[Callable[[float], bytes]] = Struct(">d").pack
packInt: Final[Callable[[int], bytes]] = Struct(">i").pack
_packBig: Final[Callable[[int], bytes]] = Struct(">q").pack
_float: Final = Struct(">d").unpack_from
_int: Final = Struct(">i").unpack_from

# Dimensions, 0, the elements' type, their number, the first one's index.
_arrayHead: Final = Struct(">iiIii").pack
# What is of one size in a record's content; a column is type, length, value.
_fixed: Final = Struct(">4x8xd8xd8xq8xq8xq8x?8x?").unpack_from
_FIXED_SIZE: Final = Struct(">4x8xd8xd8xq8xq8xq8x?8x?").size


def array(values: Sequence[bytes | None], type_: int = _BYTEA) -> bytes:
    """
    An array of values that are encoded already; by default of C{bytea}.
    """
    if not values:
        return b"\0\0\0\0\0\0\0\0" + type_.to_bytes(4, "big")
    parts = [_arrayHead(1, 0, type_, len(values), 1)]
    for value in values:
        parts.append(_value(value))
    return b"".join(parts)


def floats(values: Sequence[float | None]) -> bytes:
    """
    An array of C{float8}.
    """
    return array([None if value is None else packFloat(value) for value in values], _FLOAT8)


def bools(values: Sequence[bool]) -> bytes:
    """
    An array of C{bool}.
    """
    return array([_TRUE if value else _FALSE for value in values], _BOOL)


def texts(values: Sequence[bytes]) -> bytes:
    """
    An array of C{text}.
    """
    return array(values, _TEXT)


def changes(encoded: Sequence[bytes], type_: int) -> bytes:
    """
    An array of what L{encode} has made.

    @param type_: the OID of the type C{change}.
    """
    return array(encoded, type_)


def _value(value: bytes | None) -> bytes:
    return _NULL if value is None else packInt(len(value)) + value


def _column(type_: int, value: bytes | None) -> bytes:
    return packInt(type_) + _value(value)


_NULL: Final = b"\xff\xff\xff\xff"
_TRUE: Final = b"\1"
_FALSE: Final = b"\0"
_NO_BYTES: Final = _column(_BYTEA, None)
_NO_FLOAT: Final = _column(_FLOAT8, None)
_NO_BOOL: Final = _column(_BOOL, None)
_NO_ITEMS: Final = _column(_BYTEAS, array(()))
_NO_EXPECTATIONS: Final = _NO_ITEMS * 2
_NO_REASON: Final = _column(_TEXT, None)
_YES: Final = _column(_BOOL, _TRUE)
_NO: Final = _column(_BOOL, _FALSE)
_NO_USES: Final = _column(_INT8, _packBig(0))
_COLUMNS: Final = packInt(25)
_NO_BIRTH: Final = b"".join((
    _NO_BYTES, _NO_BYTES, _NO_FLOAT, _NO_FLOAT, _NO_BOOL, _NO_BYTES, _NO_BYTES,
    _column(_INT8, None),
))  # fmt: skip


# What is sent


def encode(change: Change) -> bytes:
    """
    A value of the type C{change}.

    @raise ValueError: something in it cannot be written.
    @raise TypeError: likewise.
    @raise StructError: likewise.
    """
    newKey, idle, ownIdle, principal = (
        change.newKey, change.idle, change.ownIdle, change.principal,
    )  # fmt: skip
    return b"".join((
        _COLUMNS,
        _bytes(change.key),
        _bytes(change.token),
        _NO_BYTES if newKey is None or newKey == change.key else _bytes(newKey),
        _names(change.set),
        _items(list(change.set.values())),
        _names(change.remove) if change.remove else _NO_ITEMS,
        _names(change.expect) + _items(list(change.expect.values()))
        if change.expect else _NO_EXPECTATIONS,
        _NO + _NO_FLOAT if isinstance(idle, Unset) else _YES + _aFloat(idle),
        _NO_BOOL if isinstance(ownIdle, Unset) else _aBool(ownIdle),
        _NO + _NO_BYTES if isinstance(principal, Unset) else _YES + _aText(principal),
        _aBool(change.login),
        _aFloat(change.usedAgo),
        _column(_INT8, _packBig(change.uses)) if change.uses else _NO_USES,
        _NO_REASON if change.end is None else _column(_TEXT, change.end.encode("ascii")),
        _NO_BIRTH if change.birth is None else _birth(change.birth),
    ))  # fmt: skip


def _birth(birth: Birth) -> bytes:
    return b"".join((
        _bytes(birth.seed),
        _bytes(handleOf(birth.seed)),
        _aFloat(birth.ago),
        _aFloat(birth.absolute),
        _aBool(birth.secure),
        _aText(birth.address),
        _aText(birth.userAgent),
        _column(_INT8, _packBig(birth.epoch)),
    ))  # fmt: skip


def _bytes(value: bytes) -> bytes:
    return _column(_BYTEA, value)


def _aText(value: str | None) -> bytes:
    return _NO_BYTES if value is None else _column(_BYTEA, value.encode())


def _aFloat(value: float | None) -> bytes:
    return _NO_FLOAT if value is None else _column(_FLOAT8, packFloat(value))


def _aBool(value: bool) -> bytes:
    return _YES if value else _NO


def _items(values: Sequence[bytes | None]) -> bytes:
    return _column(_BYTEAS, array(values)) if values else _NO_ITEMS


def _names(names: Collection[str]) -> bytes:
    return _items([name.encode() for name in names])


# What comes back


def readFloat(raw: bytes) -> float:
    """
    A C{float8}.
    """
    value: float = _float(raw)[0]
    return value


def readInt(raw: bytes) -> int:
    """
    An C{int2}, C{int4} or C{int8}.
    """
    return int.from_bytes(raw, "big", signed=True)


def readBool(raw: bytes) -> bool:
    """
    A C{bool}.
    """
    return raw != _FALSE


def readBools(raw: bytes) -> list[bool]:
    """
    An array of C{bool}.
    """
    return [value != _FALSE for value in _read(raw)]


def unseal(format_: bytes, seal: bytes, content: bytes, now: float) -> Record:
    """
    The record in a row: its format, its seal and what that seals.

    @param now: the store's time, for L{Record.asOf}.
    @raise NewerFormat: it is of a later release; leave it as it is.
    @raise CorruptRecord: it is nothing this package wrote.
    """
    if format_ != b"\0\1":
        raise NewerFormat(
            f"a session record of format {readInt(format_)}; this release reads {_FORMAT}"
        )
    if sha256(content).digest()[:8] != seal:
        raise CorruptRecord("a session record whose checksum does not hold")
    return decode(content, now)


def decode(content: bytes, now: float) -> Record:
    """
    The record in the content of a row.

    @raise CorruptRecord: it does not parse.
    """
    # Loading many sessions is, for the most part, this.
    try:
        created, touched, version, uses, epoch, ownIdle, secure = _fixed(content)
        values: list[bytes | None] = []
        at, end = _FIXED_SIZE, len(content)
        while at < end:
            start = at + 8
            (length,) = _int(content, at + 4)
            if length < 0:
                values.append(None)
                at = start
            else:
                at = start + length
                values.append(content[start:at])
        key, seed, token, idle, absolute, principal, address, agent, names, vals = values
        assert key is not None and seed is not None and token is not None
        assert names is not None and vals is not None
        return Record(
            key,
            seed,
            created,
            touched,
            None if idle is None else _float(idle)[0],
            None if absolute is None else _float(absolute)[0],
            dict(zip(_readNames(names), _read(vals), strict=True)),
            version,
            uses,
            None if principal is None else principal.decode(),
            epoch,
            ownIdle,
            secure,
            None if address is None else address.decode(),
            None if agent is None else agent.decode(),
            token,
            now,
        )
    except (ValueError, StructError, AssertionError) as error:
        raise CorruptRecord("a session record that does not parse") from error


def _readNames(raw: bytes) -> tuple[str, ...]:
    return _knownNames(raw) if len(raw) < _LONG else _decodeNames(raw)


def _decodeNames(raw: bytes) -> tuple[str, ...]:
    return tuple([name.decode() for name in _read(raw)])


# An application's sessions have the same few sets of keys.
_LONG: Final = 1024
_knownNames: Final = lru_cache(512)(_decodeNames)


def _read(raw: bytes) -> list[bytes]:
    """
    The elements of an array that has no NULLs.
    """
    found = []
    at, end = 20, len(raw)
    while at < end:
        start = at + 4
        at = start + _int(raw, at)[0]
        found.append(raw[start:at])
    return found
