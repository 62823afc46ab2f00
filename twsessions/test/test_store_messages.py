"""
Tests for L{twsessions.stores._messages} and for messages in PostgreSQL's
notifications.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.logger import capturedLogs

from twsessions.errors import StoreError
from twsessions.interfaces import MESSAGE_LIMIT, Message
from twsessions.stores import _messages
from twsessions.stores._messages import Inbox, Listeners, Outbox
from twsessions.stores._postgres.parts import Parts, cut

MESSAGES = [Message("x", b"%d" % number) for number in range(9)]


def packed() -> list[bytes]:
    outbox = Outbox()
    return [outbox.pack(message) for message in MESSAGES]


def inbox() -> tuple[Inbox, list[Any]]:
    told: list[Any] = []
    made = Inbox()
    made.add(told.append)
    return made, told


@given(topic=st.text(st.characters()), payload=st.binary())
def test_roundTrip(topic: str, payload: bytes) -> None:
    made, told = inbox()
    made.arrived(Outbox().pack(Message(topic, payload)))
    assert told == [(topic, payload)]


def test_lateOnesAreLeftOut() -> None:
    """
    What comes behind a later one, or comes twice, is not heard.
    """
    made, told = inbox()
    said = packed()
    for number in 0, 1, 1, 0, 2, 1, 3:
        made.arrived(said[number])
    assert told == MESSAGES[:4]


def test_gaps() -> None:
    """
    When something is missing that is said, once, before what follows; of a
    sender that is new nothing is known to be missing.
    """
    made, told = inbox()
    said = packed()
    for number in 3, 4, 6, 7:
        made.arrived(said[number])
    assert told == [*MESSAGES[3:5], None, *MESSAGES[6:8]]


def test_aLossIsToldOnce() -> None:
    """
    Gaps that come of a loss that was told are no news.
    """
    made, told = inbox()
    one, other = packed(), packed()
    made.arrived(one[0])
    made.arrived(other[0])
    made.missed()
    made.arrived(one[4])
    made.arrived(other[4])
    assert told == [MESSAGES[0], MESSAGES[0], None, MESSAGES[4], MESSAGES[4]]
    made.arrived(one[6])
    made.arrived(other[6])
    assert told[5:] == [None, MESSAGES[6], MESSAGES[6]]
    made.arrived(one[2])  # late is late, whatever was lost
    assert len(told) == 8


def test_sendersAreForgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_messages, "_SENDERS", 10)
    made, told = inbox()
    first = Outbox()
    made.arrived(first.pack(MESSAGES[0]))
    for _ in range(50):
        made.arrived(Outbox().pack(MESSAGES[1]))
        made.arrived(first.pack(MESSAGES[0]))
    assert len(made._last) == 10
    assert told.count(MESSAGES[0]) == 51 and told.count(MESSAGES[1]) == 50


@given(st.binary() | st.builds(lambda tail: b"\1" + b"s" * 16 + tail, st.binary()))
def test_foreignBytes(said: bytes) -> None:
    """
    Anybody may say anything there.
    """
    made, told = inbox()
    made.arrived(said)
    good = packed()
    for one in good:
        made.arrived(one)
        made.arrived(said)
    assert [one for one in told if one in MESSAGES] == MESSAGES


def test_newerFormat() -> None:
    made, told = inbox()
    made.arrived(b"\2" + packed()[0][1:])
    assert told == []


@pytest.mark.parametrize("message", [("x", "text"), (b"x", b""), (None, None)])
def test_noMessage(message: Any) -> None:
    with pytest.raises(StoreError, match="its topic is text, its payload is bytes"):
        Outbox().pack(message)


def test_whatIsRefusedTakesNoNumber() -> None:
    outbox = Outbox()
    made, told = inbox()
    made.arrived(outbox.pack(MESSAGES[0]))
    with pytest.raises(StoreError, match=f"limit of {MESSAGE_LIMIT}"):
        outbox.pack(Message("x", bytes(MESSAGE_LIMIT)))
    made.arrived(outbox.pack(MESSAGES[1]))
    assert told == MESSAGES[:2]


def test_listeners() -> None:
    """
    What a listener says comes after what is being told; one that fails is
    logged, and one that is cleared hears no more.
    """
    listeners = Listeners()
    told: list[Any] = []

    def first(message: Any) -> None:
        told.append(("first", message))
        if message is MESSAGES[0]:
            listeners.tell(MESSAGES[1])
        raise RuntimeError("no")

    def second(message: Any) -> None:
        told.append(("second", message))
        if message is MESSAGES[1]:
            listeners.clear()
            listeners.tell(MESSAGES[2])

    listeners.add(first)
    listeners.add(second)
    with capturedLogs() as events:
        listeners.tell(MESSAGES[0])
        listeners.tell(None)
    assert told == [(who, one) for one in MESSAGES[:2] for who in ("first", "second")]
    assert len(events) == 2


# Notifications


@pytest.mark.parametrize(
    ("size", "count"),
    [(0, 1), (1, 1), (5903, 1), (5904, 1), (5924, 1), (5925, 2), (20_000, 4), (2**18 - 1, 45)],
)
def test_parts(size: int, count: int) -> None:
    """
    All have room, no two are equal, and together they are the message.
    """
    outbox = Outbox()
    parts = Parts()
    said = [outbox.pack(Message("x", bytes(size))) for _ in range(3)]
    notifications = [cut(one) for one in said]
    flat = [part for some in notifications for part in some]
    assert len(set(flat)) == len(flat)
    assert max(map(len, flat)) < 8000
    assert [len(some) for some in notifications] == [count] * 3
    for one, some in zip(said, notifications, strict=True):
        *before, last = [parts.take(part) for part in some]
        assert not any(before) and last == one


def test_partsThatAreMissing() -> None:
    """
    A message is whole or not there, wherever the connection broke.
    """
    outbox = Outbox()
    first, second = (outbox.pack(Message("x", os.urandom(30_000))) for _ in range(2))
    count = len(cut(first))
    assert count == 6
    for lost in range(count):
        for until in range(lost + 1, count + 1):
            parts = Parts()
            said = cut(first)
            del said[lost:until]
            found = [parts.take(part) for part in [*said, *cut(second)]]
            assert [one for one in found if one is not None] == [second]
            assert not parts._parts


@given(st.binary() | st.from_regex(rb"\A[A-Z]{0,3} -?[0-9]{1,9} -?[0-9]{1,9} [A-Z]{0,9}\Z"))
def test_foreignNotifications(said: bytes) -> None:
    parts = Parts()
    for _ in range(3):
        try:
            parts.take(said)
        except ValueError:
            pass
    assert sum(map(len, parts._parts)) <= 3 * len(said)
    good = Outbox().pack(Message("x", bytes(20_000)))
    assert [parts.take(part) for part in cut(good)][-1] == good


def test_partsAreBounded() -> None:
    """
    Whoever never ends gets no more room than a message has.
    """
    parts = Parts()
    for number in range(10_000):
        parts.take(b"name %d 1000000 %b" % (number, b"x" * 7000))
    assert sum(map(len, parts._parts)) < 2 * MESSAGE_LIMIT
