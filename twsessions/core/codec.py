"""
One value to bytes and back, equal and of the same type.

The bytes are MessagePack; what it has no type for travels as an extension.
Compared on an 8-field payload (443 bytes): msgpack 2.3 us to encode and
2.5 us to decode, ormsgpack 1.1 and 1.5; but values are stored one by one, and
only msgpack keeps every key (tuple, frozenset, large int) and enum apart.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Callable, Iterable, Iterator
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from functools import partial
from typing import Any, Final, TypeVar
from uuid import UUID
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from msgpack import ExtType, Packer, Unpacker, unpackb

from twsessions.errors import CorruptRecord

__all__ = ["MAX_DEPTH", "decode", "encode"]

#: How deep containers may be nested.
MAX_DEPTH: Final = 100

# The extension codes are what stored sessions are made of: never renumber.
_INT, _TUPLE, _SET, _FROZENSET, _DATETIME, _DATE, _TIME, _TIMEDELTA, _DECIMAL, _UUID = range(10)

_FIXED_SIZE: Final = frozenset({type(None), bool, int, float})
_TEXTS: Final = frozenset({str, bytes})
_LEAVES: Final = _FIXED_SIZE | _TEXTS | {datetime, date, time, timedelta, Decimal, UUID}
_SEQUENCES: Final = frozenset({list, tuple, set, frozenset})
_CONTAINERS: Final = _SEQUENCES | {dict}

# Longer strings do not go through the shared packer, which never shrinks.
_SHORT: Final = 4096
# Up to this size, announced but missing list items cannot cost much memory.
_HARMLESS: Final = 2048

_Clock = TypeVar("_Clock", datetime, time)
# The bytes that can start a map, a list or an extension.
_STARTS: Final = bytes(
    [*range(0x80, 0xA0), *range(0xC7, 0xCA), *range(0xD4, 0xD9), *range(0xDC, 0xE0)]
)


class _Unstorable(Exception):
    """
    A value of an allowed type that has no encoding; says why.
    """


def encode(value: object) -> bytes:
    """
    Turn a value into bytes. The same value gives the same bytes each time.

    @param value: C{None}, C{bool}, C{int}, C{float}, C{str}, C{bytes},
        C{list}, C{tuple}, C{dict}, C{set}, C{frozenset}, C{datetime},
        C{date}, C{time}, C{timedelta}, C{Decimal} or C{UUID}, nested freely
        up to L{MAX_DEPTH}: exactly these types, not their subclasses.
    @return: what L{decode} takes.
    @raise TypeError: something in the value cannot be stored; says what and
        where.
    """
    kind = type(value)
    try:
        if kind in _FIXED_SIZE or (kind in _TEXTS and len(value) <= _SHORT):  # type: ignore[arg-type]
            try:
                return _packScalar(value)
            except OverflowError:
                return _pack(value)
        if _fits(value, MAX_DEPTH):
            return _pack(value)
    except (UnicodeEncodeError, _Unstorable):
        pass
    raise TypeError(_complaint(value))


def decode(data: bytes) -> object:
    """
    Turn bytes back into the value.

    @param data: what L{encode} returned, or anything else: no input runs
        code, and none takes much more memory or time than its length.
    @return: the value.
    @raise CorruptRecord: the bytes are not an encoded value.
    """
    try:
        value = _unpack(data, 0)
        # Too deep takes many bytes that start a container: seldom to be seen.
        if (
            len(data) <= MAX_DEPTH
            or len(data) - len(data.translate(None, _STARTS)) <= MAX_DEPTH
            or _fits(value, MAX_DEPTH)
        ):
            return value
        reason = "too deep"
    except Exception as error:
        # Only its name: the message and the traceback would show the data.
        reason = type(error).__name__
    raise CorruptRecord(f"{len(data)} bytes are not an encoded value ({reason})")


# What may be encoded


def _fits(value: object, depth: int) -> bool:
    """
    Whether the value is made of allowed types only, in at most C{depth} levels.
    """
    kind = type(value)
    if kind in _LEAVES:
        return True
    if kind not in _CONTAINERS or depth == 0:
        return False
    items: Any = value
    if kind is dict:
        # Most containers hold leaves only: that is one pass without Python code.
        if not _LEAVES.issuperset(map(type, items)):
            if not all(_fits(key, depth - 1) for key in items):
                return False
        items = items.values()
    if _LEAVES.issuperset(map(type, items)):
        return True
    for item in items:
        if not _fits(item, depth - 1):
            return False
    return True


def _complaint(value: object) -> str:
    """
    Say what cannot be stored and where it is, once something is known to be.
    """
    # Depth first with an explicit path: (where, what, the containers around).
    pending: list[tuple[str, object, tuple[int, ...]]] = [("", value, ())]
    while pending:
        where, item, around = pending.pop()
        place = f" in {where}" if where else ""
        kind = type(item)
        if kind in _CONTAINERS:
            if id(item) in around:
                return f"cannot store a {kind.__name__} that contains itself{place}"
            if len(around) == MAX_DEPTH:
                return f"cannot store a {kind.__name__} nested deeper than {MAX_DEPTH} levels"
            inside = (*around, id(item))
            pending.extend(
                (where + step, child, inside) for step, child in reversed([*_children(item)])
            )
        elif kind not in _LEAVES:
            base = next((base for base in kind.__mro__ if base in _LEAVES | _CONTAINERS), None)
            hint = f" (a subclass: only {base.__name__} itself is stored)" if base else ""
            return f"cannot store a {kind.__name__}{place}{hint}"
        else:
            try:
                _pack(item)
            except UnicodeEncodeError:
                return f"cannot store a str with lone surrogates{place}"
            except _Unstorable as error:
                return f"cannot store a {kind.__name__}{place}: {error}"
    return "cannot store a value that changes while it is encoded"


def _children(container: Any) -> Iterator[tuple[str, object]]:
    kind = type(container)
    if kind is dict:
        for key, item in container.items():
            yield " (a key)", key
            yield f"[{_show(key)}]", item
    elif kind is list or kind is tuple:
        for index, item in enumerate(container):
            yield f"[{index}]", item
    else:
        for item in container:
            yield " (a member)", item


def _show(key: object) -> str:
    # Not the repr of a foreign type, nor of an int too long to print.
    try:
        return reprlib.repr(key) if type(key) in _LEAVES else type(key).__name__
    except ValueError:
        return type(key).__name__


# To bytes


def _pack(value: object) -> bytes:
    packer = Packer(strict_types=True, default=_toExtension, buf_size=512)
    packed: bytes = packer.pack(value)
    return packed


# One for all threads: without a default nothing can interrupt it.
_packScalar: Final[Callable[[object], bytes]] = Packer(strict_types=True, buf_size=512).pack


def _toExtension(value: Any) -> ExtType:
    code, dump = _DUMP[type(value)]
    return ExtType(code, dump(value))


def _dumpInt(value: int) -> bytes:
    return value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True)


def _dumpTuple(value: tuple[object, ...]) -> bytes:
    return _pack(list(value))


def _dumpSet(value: Iterable[object]) -> bytes:
    # Sorted, since a set has an order of its own in each process; joined
    # behind an "array 32" header, since packing again would double the work.
    members = sorted(map(_pack, value))
    return b"\xdd" + len(members).to_bytes(4, "big") + b"".join(members)


def _dumpClock(value: _Clock) -> bytes:
    """
    The ISO format, then the fold and the zone's key where there are any.
    """
    zone = value.tzinfo
    try:
        text = value.isoformat()
    except Exception as error:  # of somebody's tzinfo
        raise _Unstorable(f"its {type(zone).__name__} raises {type(error).__name__}") from error
    if type(zone) is ZoneInfo and zone.key:
        return f"{text}|{value.fold}|{zone.key}".encode()
    if value.fold:
        text += "|1"
    if zone is not None and type(zone) is not timezone:
        # Any other tzinfo is stored as the offset it has at that moment.
        restored = _loadClock(type(value), text.encode())
        if restored.tzinfo is None or restored != value:
            raise _Unstorable(f"its {type(zone).__name__} is no fixed offset and no ZoneInfo")
    return text.encode()


def _dumpTimedelta(value: timedelta) -> bytes:
    return _dumpInt(value // timedelta(microseconds=1))


def _dumpISO(value: date) -> bytes:
    return value.isoformat().encode()


def _dumpDecimal(value: Decimal) -> bytes:
    return str(value).encode()


def _dumpUUID(value: UUID) -> bytes:
    return value.bytes


_DUMP: Final[dict[type, tuple[int, Callable[[Any], bytes]]]] = {
    int: (_INT, _dumpInt),  # only those of more than 64 bits come here
    tuple: (_TUPLE, _dumpTuple),
    set: (_SET, _dumpSet),
    frozenset: (_FROZENSET, _dumpSet),
    datetime: (_DATETIME, _dumpClock),
    date: (_DATE, _dumpISO),
    time: (_TIME, _dumpClock),
    timedelta: (_TIMEDELTA, _dumpTimedelta),
    Decimal: (_DECIMAL, _dumpDecimal),
    UUID: (_UUID, _dumpUUID),
}


# From bytes


def _unpack(data: bytes, depth: int) -> object:
    if len(data) > _HARMLESS and (b"\xdc" in data or b"\xdd" in data):
        # Lists are allocated as long as they claim to be: see first, without
        # making anything, that all the items are there.
        unpacker = Unpacker(max_buffer_size=len(data))
        unpacker.feed(data)
        unpacker.skip()
    # MessagePack's own timestamps are never written: let them be datetimes.
    return unpackb(data, ext_hook=_HOOKS[depth], strict_map_key=False, timestamp=3)


def _fromExtension(depth: int, code: int, data: bytes) -> object:
    nested = _NESTED.get(code)
    if nested is None:
        return _LOAD[code](data)
    items = _unpack(data, depth + 1)
    if type(items) is not list:
        raise ValueError("not a sequence")
    return nested(items)


# How deep an extension is nested is known from which of these is called; the
# one level too many has none, and IndexError is its end.
_HOOKS: Final = [partial(_fromExtension, depth) for depth in range(MAX_DEPTH + 1)]


def _loadInt(data: bytes) -> int:
    return int.from_bytes(data, "big", signed=True)


_isTiny: Final = re.compile(r".*([+-])00:00:00\.(\d{6})").fullmatch


def _loadClock(kind: type[_Clock], data: bytes) -> _Clock:
    text, *rest = data.decode().split("|")
    value = kind.fromisoformat(text)
    tiny = _isTiny(text)
    if tiny is not None:  # an offset that fromisoformat() drops, in all versions so far
        value = value.replace(tzinfo=timezone(timedelta(microseconds=int(tiny[1] + tiny[2]))))
    if rest:
        fold, *zone = rest
        value = value.replace(fold=int(fold))
        if zone:
            try:
                value = value.replace(tzinfo=ZoneInfo(*zone))
            except ZoneInfoNotFoundError:
                # No such zone on this machine: a moment is known without it.
                if value.tzinfo is None:
                    raise
    return value


_NESTED: Final[dict[int, Callable[[list[Any]], object]]] = {
    _TUPLE: tuple,
    _SET: set,
    _FROZENSET: frozenset,
}

_LOAD: Final[dict[int, Callable[[bytes], object]]] = {
    _INT: _loadInt,
    _DATETIME: partial(_loadClock, datetime),
    _DATE: lambda data: date.fromisoformat(data.decode()),
    _TIME: partial(_loadClock, time),
    _TIMEDELTA: lambda data: timedelta(microseconds=_loadInt(data)),
    _DECIMAL: lambda data: Decimal(data.decode()),
    _UUID: lambda data: UUID(bytes=data),
}
