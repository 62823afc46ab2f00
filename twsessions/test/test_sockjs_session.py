"""
A SockJS session without I/O.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings as profile
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from twsessions.sockjs.packet import Packet
from twsessions.sockjs.session import (
    CLOSED,
    HEARTBEAT,
    NEW,
    OPEN,
    OPENED,
    Close,
    Limits,
    Messages,
    Session,
)

LIMITS = Limits(heartbeat=25, disconnectDelay=5, pongTimeout=20, maxQueueBytes=1000)


def opened(limits: Limits = LIMITS) -> Session[Packet]:
    """
    A session that something carries.
    """
    session: Session[Packet] = Session(limits, 0.0)
    assert session.attach(0.0) is None
    assert session.take(0.0) is OPENED
    return session


def test_nothingBeforeOpen() -> None:
    """
    A session says that it is open before anything else, once.
    """
    session: Session[Packet] = Session(LIMITS, 0.0)
    assert session.take(0.0) is None and session.state is NEW
    assert not session.send(Packet("lost"), 0.0)
    session.attach(1.0)
    assert session.take(1.0) is OPENED and session.state is OPEN
    assert session.take(1.0) is None


def test_oneCarrier() -> None:
    """
    A second carrier is told so, and the first goes on.
    """
    session = opened()
    assert session.attach(1.0) == Close(2010, "Another connection still open")
    assert session.send(Packet("a"), 1.0)


def test_messagesWait() -> None:
    """
    While nothing carries the session, messages wait, and come together.
    """
    session = opened()
    session.detach(1.0)
    first, second = Packet("a"), Packet("b")
    assert not session.send(first, 1.0)
    assert not session.send(second, 1.0)
    assert session.take(1.0) is None
    session.attach(2.0)
    assert session.take(2.0) == Messages([first, second])
    assert session.take(2.0) is None


def test_closeComesLast() -> None:
    """
    What waits is sent before the close, and the close is repeated until the
    delay is over.
    """
    session = opened()
    session.detach(1.0)
    packet = Packet("a")
    session.send(packet, 1.0)
    why = Close(3000, "Go away!")
    assert session.close(2.0, why)
    assert not session.close(2.0, Close(3001, "Again"))
    for now in 3.0, 4.0:
        assert session.attach(now) is None
        assert session.take(now) == (Messages([packet]) if now == 3.0 else why)
        session.detach(now)
    assert session.due(8.9) is None
    assert session.due(9.0) == why


@pytest.mark.parametrize("isAttached", [False, True])
def test_howLongItSaysThatItIsClosed(isAttached: bool) -> None:
    """
    As long as the delay, however long nothing was sent before.
    """
    session = opened()
    if not isAttached:
        session.detach(16.0)
    why = Close(3000, "Go away!")
    session.close(20.0, why)
    assert session.due(24.9) is None
    assert session.due(25.0) == why


def test_interrupted() -> None:
    """
    A connection that broke ends the session.
    """
    session = opened()
    session.detach(1.0, Close(1002, "Connection interrupted"))
    assert session.state is CLOSED
    session.attach(2.0)
    assert session.take(2.0) == Close(1002, "Connection interrupted")


def test_didNotComeBack() -> None:
    """
    Without a carrier it is over after the delay; nobody forced it.
    """
    session = opened()
    session.detach(10.0)
    assert session.deadline == 15.0
    assert session.due(14.9) is None
    ended = session.due(15.0)
    assert isinstance(ended, Close) and ended.code == 1006 and not ended.forced


def test_heartbeat() -> None:
    """
    A heartbeat is due when nothing else has been sent for long enough.
    """
    session = opened()
    session.send(Packet("a"), 10.0)
    assert session.due(34.9) is None
    assert session.due(35.0) is HEARTBEAT
    assert session.deadline == 60.0


def test_pong() -> None:
    """
    Who does not answer a ping is gone; any sign will do.
    """
    session = opened()
    session.pinged(25.0)
    session.heard()
    assert session.deadline == 25.0 and session.due(25.0) is HEARTBEAT
    session.pinged(25.0)
    session.pinged(30.0)  # the first is the one that counts
    ended = session.due(45.0)
    assert isinstance(ended, Close) and ended.code == 1006 and not ended.forced


def test_pongsTakeTheirTime() -> None:
    """
    Signs of life go on while an answer is awaited for longer than between two.
    """
    session = opened(Limits(heartbeat=25, pongTimeout=60))
    for now in 25.0, 50.0, 75.0:
        assert session.deadline == now and session.due(now) is HEARTBEAT
        session.pinged(now)
    assert session.deadline == 85.0
    assert isinstance(session.due(85.0), Close)


@pytest.mark.parametrize("drops", [False, True])
def test_queueIsBounded(drops: bool) -> None:
    """
    What waits is bounded: beyond that the session is closed, or the oldest go.
    """
    session = opened(Limits(maxQueueBytes=1000, dropsOldest=drops))
    session.pause()
    packets = [Packet("x" * 100) for _ in range(20)]
    for packet in packets:
        assert not session.send(packet, 1.0)
    if drops:
        session.resume()
        left = session.take(1.0)
        assert isinstance(left, Messages) and left.packets == packets[-len(left.packets) :]
        assert session.dropped == 20 - len(left.packets) and 1 <= len(left.packets) <= 7
    else:
        assert session.state is CLOSED
        assert session.closed is not None and session.closed.code == 1013


def test_whatWasTakenDoesNotCount() -> None:
    session = opened(Limits(maxQueueBytes=1000))
    for now in range(10):
        session.pause()
        session.send(Packet("x" * 500), now)
        session.resume()
        assert isinstance(session.take(now), Messages)
    assert session.state is OPEN


class Life(RuleBasedStateMachine):
    """
    Whatever happens in whatever order: messages arrive once, in order, until
    the session is closed, which it is once and stays.
    """

    @initialize()
    def start(self) -> None:
        self.now = 0.0
        self.session: Session[Packet] = Session(Limits(25, 5, 20, 500), 0.0)
        self.count = 0
        self.expected: list[str] = []  # sent, not written yet
        self.said: list[Any] = []
        self.ended: Close | None = None

    def taken(self) -> None:
        while True:
            item = self.session.take(self.now)
            if item is None:
                return
            if item is OPENED:
                assert not self.said
                self.said.append(item)
            elif isinstance(item, Messages):
                messages = [packet.message for packet in item.packets]
                assert messages and messages == self.expected
                self.expected = []
            else:
                assert item is self.session.closed
                return

    @rule(seconds=st.floats(0.1, 30))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def attach(self) -> None:
        wasAttached = self.session.isAttached
        refusal = self.session.attach(self.now)
        assert (refusal is not None) is wasAttached
        self.taken()

    @precondition(lambda self: self.session.isAttached)
    @rule(broken=st.booleans())
    def detach(self, broken: bool) -> None:
        self.session.detach(self.now, Close(1002, "broken") if broken else None)

    @rule(size=st.integers(1, 300))
    def send(self, size: int) -> None:
        self.count += 1
        message = f"{self.count:x>{size}}"
        wasOpen = self.session.state is OPEN
        if self.session.send(Packet(message), self.now):
            assert wasOpen and not self.expected and self.session.isReady
        elif self.session.state is OPEN:
            self.expected.append(message)
        elif wasOpen:
            self.expected = []  # too many

    @rule()
    def pause(self) -> None:
        self.session.pause()

    @rule()
    def resume(self) -> None:
        self.session.resume()
        self.taken()

    @rule()
    def close(self) -> None:
        wasClosed = self.session.state is CLOSED
        assert self.session.close(self.now, Close(3000, "bye")) is not wasClosed
        self.taken()

    @rule()
    def ping(self) -> None:
        if self.session.isAttached and self.session.state is OPEN:
            self.session.pinged(self.now)

    @rule()
    def due(self) -> None:
        deadline, item = self.session.deadline, self.session.due(self.now)
        if self.now < deadline:
            assert item is None
        else:
            assert item is HEARTBEAT or item is self.session.closed
            assert item is not HEARTBEAT or self.session.isAttached

    @invariant()
    def closedOnce(self) -> None:
        if self.ended is not None:
            assert self.session.closed is self.ended and self.session.state is CLOSED
        self.ended = self.session.closed
        assert (self.session.state is CLOSED) is (self.ended is not None)
        assert not self.session.isReady or self.session.isAttached


TestLife = Life.TestCase
TestLife.settings = profile(max_examples=200, stateful_step_count=40, deadline=None)
