"""
Tests for L{twsessions.core.codec}.
"""

from __future__ import annotations

import collections
import enum
import pickle
from datetime import datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from typing import Any, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgpack import ExtType, Timestamp, packb

from twsessions.core.codec import MAX_DEPTH, decode, encode
from twsessions.errors import CorruptRecord

OFFSETS = st.none() | st.builds(
    timezone, st.timedeltas(timedelta(hours=-23, minutes=-59), timedelta(hours=23, minutes=59))
)
ZONES = OFFSETS | st.sampled_from(["UTC", "Europe/Paris", "America/New_York"]).map(ZoneInfo)

KEYS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**200), 2**200)
    | st.floats(allow_nan=False)
    | st.text(max_size=20)
    | st.binary(max_size=20)
    | st.datetimes(timezones=ZONES)
    | st.dates()
    | st.times(timezones=OFFSETS)
    | st.timedeltas()
    | st.decimals(allow_nan=False)
    | st.uuids()
)
HASHABLE = st.recursive(
    KEYS,
    lambda inner: st.lists(inner, max_size=3).map(tuple) | st.frozensets(inner, max_size=3),
    max_leaves=5,
)
VALUES = st.recursive(
    KEYS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(HASHABLE, inner, max_size=4)
        | st.sets(HASHABLE, max_size=4)
        | st.frozensets(HASHABLE, max_size=4)
    ),
    max_leaves=20,
)


def exact(value: Any) -> Any:
    """
    The value in a form that is equal only for values of the same types.
    """
    kind = type(value)
    if kind in (list, tuple):
        return kind, [exact(item) for item in value]
    if kind in (set, frozenset):
        return kind, sorted(repr(exact(item)) for item in value)
    if kind is dict:
        return kind, [(exact(key), exact(item)) for key, item in value.items()]
    if kind in (datetime, time):
        zone = value.tzinfo if isinstance(value.tzinfo, ZoneInfo) else value.utcoffset()
        return kind, value.replace(tzinfo=None), value.fold, str(zone)
    return kind, repr(value)


@given(VALUES)
@example(time(tzinfo=timezone(timedelta(microseconds=1))))
@example(datetime(2026, 1, 1, tzinfo=timezone(-timedelta(microseconds=70))))
@example(time(microsecond=1, tzinfo=timezone.utc))
def test_roundTrip(value: object) -> None:
    encoded = encode(value)
    restored = decode(encoded)
    assert restored == value
    assert exact(restored) == exact(value)
    assert encode(value) == encoded
    assert encode(restored) == encoded


@given(
    st.binary() | VALUES.map(encode).flatmap(lambda data: st.permutations(list(data)).map(bytes))
)
def test_anyBytes(data: bytes) -> None:
    """
    Any bytes are a value that can be stored again, or corrupt.
    """
    try:
        value = decode(data)
    except CorruptRecord:
        return
    decode(encode(value))


@given(VALUES, st.data())
def test_damagedBytes(value: object, data: st.DataObject) -> None:
    encoded = bytearray(encode(value))
    encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    try:
        encode(decode(bytes(encoded)))
    except CorruptRecord:
        pass


@pytest.mark.parametrize(
    "value",
    [
        0,
        -1,
        2**63,
        2**64 - 1,
        2**64,
        -(2**63) - 1,
        -(2**71),
        10**10000,
        {2**64: {2**70}},
        float("inf"),
        -0.0,
        "x" * 100_000,
        b"\xdc" * 100_000,
        list(range(-5000, 5000)),
        {(1, (2, frozenset([3]))): [()], 1.5: {}, None: set()},
        Decimal("-0.00"),
        Decimal("1E+1000000"),
        Decimal("-Infinity"),
        timedelta.min,
        timedelta.max,
        datetime.min,
        datetime.max.replace(tzinfo=timezone.utc),
        datetime(2024, 10, 27, 2, 30, fold=1),
        datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Paris")),
        datetime(2024, 1, 1, tzinfo=timezone(-timedelta(hours=1, seconds=1, microseconds=1))),
        time(2, 30, tzinfo=ZoneInfo("Europe/Paris")),
        time(2, 30, fold=1, tzinfo=timezone.utc),
        UUID(int=0),
    ],
    ids=lambda value: type(value).__name__,
)
def test_edges(value: object) -> None:
    restored = decode(encode(value))
    assert restored == value
    assert type(restored) is type(value)
    if isinstance(value, datetime):
        assert isinstance(restored, datetime)
        assert (restored.utcoffset(), restored.fold) == (value.utcoffset(), value.fold)


def test_notANumber() -> None:
    for value in (float("nan"), Decimal("NaN"), Decimal("-sNaN12")):
        restored = decode(encode([value]))
        assert repr(restored) == repr([value])


def test_dictKeepsItsOrder() -> None:
    value = {"b": 1, "a": 2, 3: 3}
    assert list(decode(encode(value))) == ["b", "a", 3]  # type: ignore[call-overload]


def test_foreignZoneIsItsOffset() -> None:
    class Plus(tzinfo):
        def utcoffset(self, moment: datetime | None) -> timedelta:
            return timedelta(hours=5)

        def dst(self, moment: datetime | None) -> None:
            return None

        tzname = dst

    value = datetime(2024, 1, 1, tzinfo=Plus())
    restored = decode(encode(value))
    assert restored == value
    assert isinstance(restored, datetime)
    assert restored.tzinfo == timezone(timedelta(hours=5))


def test_foreignZoneWithoutOffset() -> None:
    class Nowhere(tzinfo):
        def utcoffset(self, moment: datetime | None) -> None:
            return None

        dst = tzname = utcoffset

    class Nothing(tzinfo):
        pass  # as of somebody who has not read what it must have

    class Twice(tzinfo):
        def utcoffset(self, moment: datetime | None) -> timedelta:
            return timedelta(hours=1 if moment is None or moment.fold else 2)

        dst = tzname = utcoffset  # type: ignore[assignment]

    with pytest.raises(TypeError, match=r"cannot store a datetime in \[0\]: its Nowhere is no"):
        encode([datetime(2024, 1, 1, tzinfo=Nowhere())])
    with pytest.raises(TypeError, match="its Nothing raises NotImplementedError"):
        encode(time(1, tzinfo=Nothing()))
    with pytest.raises(TypeError, match="its Twice is no"):  # equal to no other, says PEP 495
        encode(datetime(2024, 10, 27, 2, 30, tzinfo=Twice()))


def test_unknownZoneKeepsTheMoment() -> None:
    value = datetime(2024, 7, 1, tzinfo=ZoneInfo("Europe/Paris"))
    restored = decode(encode(value).replace(b"Europe/Paris", b"Europe/Parix"))
    assert restored == value


class Color(enum.IntEnum):
    RED = 1


class Point(NamedTuple):
    x: int


class Text(str):
    __slots__ = ()


@pytest.mark.parametrize(
    ("value", "what", "hint"),
    [
        (object(), "object", ""),
        (Color.RED, "Color", " (a subclass: only int itself is stored)"),
        (Point(1), "Point", " (a subclass: only tuple itself is stored)"),
        (Text("x"), "Text", " (a subclass: only str itself is stored)"),
        (
            collections.OrderedDict(a=1),
            "OrderedDict",
            " (a subclass: only dict itself is stored)",
        ),
        (bytearray(b"x"), "bytearray", ""),
        (memoryview(b"x"), "memoryview", ""),
        (1j, "complex", ""),
        (ExtType(1, b""), "ExtType", " (a subclass: only tuple itself is stored)"),
        (Timestamp(1), "Timestamp", ""),
        (range(3), "range", ""),
        ("\ud800", "str with lone surrogates", ""),
        ("\ud800" * 10_000, "str with lone surrogates", ""),
    ],
)
def test_refused(value: object, what: str, hint: str) -> None:
    for whole, where in (
        (value, ""),
        ([0, 1, 2, {"x": value}], " in [3]['x']"),
        ((value,), " in [0]"),
        ({"a": (1, [value])}, " in ['a'][1][0]"),
    ):
        with pytest.raises(TypeError) as caught:
            encode(whole)
        assert str(caught.value) == f"cannot store a {what}{where}{hint}"


@pytest.mark.parametrize(
    ("value", "where"),
    [
        ([1, 2, 3, {"x": object()}], r"\[3\]\['x'\]"),
        (({"a": [b"", object()]},), r"\[0\]\['a'\]\[1\]"),
        ({(1, object()): 1}, r" \(a key\)\[1\]"),
        ({(1,): 1, (object(),): 2}, r" \(a key\)\[0\]"),
        ({"a": {frozenset([object()])}}, r"\['a'\] \(a member\) \(a member\)"),
        ({10**10000: object()}, r"\[.*\]"),
        ([{}, {"k" * 1000: object()}], r"\[1\]\['k.{0,30}'\]"),
    ],
)
def test_saysWhere(value: object, where: str) -> None:
    with pytest.raises(TypeError, match=rf"^cannot store a object in {where}$"):
        encode(value)


def nest(levels: int, kind: Any = list) -> Any:
    value: Any = kind()
    for _ in range(levels - 1):
        value = {"k": value} if kind is dict else kind([value])
    return value


@pytest.mark.parametrize("kind", [list, tuple, dict, frozenset])
def test_depth(kind: type) -> None:
    deepest = nest(MAX_DEPTH, kind)
    assert decode(encode(deepest)) == deepest
    with pytest.raises(TypeError, match=f"nested deeper than {MAX_DEPTH} levels"):
        encode(nest(MAX_DEPTH + 1, kind))
    with pytest.raises(TypeError, match="nested deeper"):
        encode(nest(100_000, kind))


def test_depthOfKeys() -> None:
    deepest = {nest(MAX_DEPTH - 1, tuple): 1}
    assert decode(encode(deepest)) == deepest
    with pytest.raises(TypeError, match="nested deeper"):
        encode({nest(MAX_DEPTH, tuple): 1})


def test_cycles() -> None:
    loop: list[object] = [1]
    loop.append({"again": (loop,)})
    with pytest.raises(TypeError, match=r"a list that contains itself in \[1\]\['again'\]\[0\]$"):
        encode(loop)
    wide: list[object] = []
    wide.extend([wide] * 10)
    with pytest.raises(TypeError, match="contains itself"):
        encode(wide)


def nestedExtension(code: int, levels: int) -> bytes:
    data: bytes = packb([])
    for _ in range(levels):
        data = packb([ExtType(code, data)])
    return data


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"\x01\x01",
        b"\xa1\xff",
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xc9\xff\xff\xff\xff\x01",
        b"\xdd\x00\x0f\xff\xff" * 900 + b"\x00" * 2**20,
        b"\xdc\xff\xff" * 900 + b"\x00" * 2**17,
        b"\x91" * 101 + b"\x00",
        b"\x91" * 100_000 + b"\x00",
        b"\x81\x90\x00",
        b"\x81\x00" * 500 + b"\x00",
        packb(ExtType(99, b"")),
        packb(ExtType(1, b"\x01")),
        packb(ExtType(1, packb("abc"))),
        packb(ExtType(3, packb([[]]))),
        packb(ExtType(4, b"2024-01-01T00:00:00|7")),
        packb(ExtType(4, b"2024-01-01T00:00:00|0|../../etc/passwd")),
        packb(ExtType(4, b"2024-01-01T00:00:00|0|Europe/Paris|x")),
        packb(ExtType(6, b"00:00:00|0|No/Where")),
        packb(ExtType(7, b"\x7f" * 1000)),
        packb(ExtType(8, b"__import__('os')")),
        packb(ExtType(9, b"short")),
        nestedExtension(1, 101),
        nestedExtension(1, 3000),
        packb(Timestamp(2**60)),
    ],
    ids=lambda data: repr(data[:8]),
)
def test_corrupt(data: bytes) -> None:
    with pytest.raises(CorruptRecord) as caught:
        decode(data)
    # A traceback shows nothing of the data.
    assert caught.value.__cause__ is caught.value.__context__ is None


def test_announcedItemsTakeNoMemory() -> None:
    tracemalloc = pytest.importorskip("tracemalloc")
    tracemalloc.start()
    try:
        for data in (
            b"\xdd\x00\x0f\xff\xff" * 900 + b"\x00" * 2**20,
            packb(ExtType(1, b"\xdc\xff\xff" * 900 + b"\x00" * 2**16)),
            b"\xdc\x07\xff" * 680,
        ):
            tracemalloc.reset_peak()
            with pytest.raises(CorruptRecord):
                decode(data)
            assert tracemalloc.get_traced_memory()[1] < 16 * 2**20
    finally:
        tracemalloc.stop()


class Planted:
    ran = False

    def __reduce__(self) -> tuple[Any, ...]:
        return (setattr, (Planted, "ran", True))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickleIsNeverLoaded(protocol: int) -> None:
    planted = pickle.dumps(Planted(), protocol)
    for data in (planted, *(packb(ExtType(code, planted)) for code in range(128))):
        try:
            decode(data)
        except CorruptRecord:
            pass
    assert not Planted.ran


def test_setsOfOtherProcesses() -> None:
    """
    Sets that iterate in another order have the same bytes.
    """
    members = [0, 8, 16, 24]
    orders = {tuple(set(order)) for order in (members, members[::-1])}
    assert len(orders) == 2
    assert len({encode(set(order)) for order in orders}) == 1
