"""
Tests for L{twsessions.core.lifecycle}.
"""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twsessions.core.lifecycle import (
    REASONS,
    checkTimeout,
    deadlineOf,
    reasonAt,
    touchIsDue,
)

# Binary fractions, so that sums are exact and can be compared.
MOMENTS = st.integers(0, 2**34).map(lambda n: n / 4)
SPANS = st.integers(1, 2**24).map(lambda n: n / 4)
LIMITS = st.none() | SPANS


def test_whicheverComesFirst() -> None:
    assert deadlineOf(100.0, 10.0, 50.0, 1000.0) == 110.0
    assert deadlineOf(100.0, 10.0, 50.0, 55.0) == 105.0
    assert deadlineOf(100.0, None, 50.0, 55.0) == 105.0
    assert deadlineOf(100.0, 10.0, 50.0, None) == 110.0
    assert deadlineOf(100.0, None, 50.0, None) == math.inf


def test_whichOne() -> None:
    assert reasonAt(100.0, 10.0, 50.0, 1000.0) == "idle"
    assert reasonAt(100.0, 10.0, 50.0, 55.0) == "absolute"
    assert reasonAt(100.0, None, 50.0, 55.0) == "absolute"
    assert reasonAt(100.0, 10.0, 50.0, None) == "idle"
    assert reasonAt(100.0, 10.0, 100.0, 10.0) == "absolute", "both at once: no use had helped"


def test_reasons() -> None:
    assert len(set(REASONS)) == len(REASONS)
    assert {"idle", "absolute", "logout", "evicted", "revoked"} == set(REASONS)


@given(MOMENTS, LIMITS, SPANS, LIMITS)
def test_itIsTheEarlierLimit(
    created: float, idle: float | None, later: float, absolute: float | None
) -> None:
    touched = created + later
    deadline = deadlineOf(touched, idle, created, absolute)
    limits = [math.inf]
    limits += [] if idle is None else [touched + idle]
    limits += [] if absolute is None else [created + absolute]
    assert deadline == min(limits)
    reason = reasonAt(touched, idle, created, absolute)
    assert reason in REASONS
    if deadline != math.inf:
        assert deadline == (touched + idle if reason == "idle" else created + absolute)  # type: ignore[operator]


@given(MOMENTS, MOMENTS, SPANS, LIMITS, LIMITS)
def test_useOnlyExtendsAndNeverPastTheAbsoluteLimit(
    created: float, touched: float, later: float, idle: float | None, absolute: float | None
) -> None:
    before = deadlineOf(touched, idle, created, absolute)
    after = deadlineOf(touched + later, idle, created, absolute)
    assert before <= after <= before + later or before == after == math.inf
    if absolute is not None:
        assert after <= created + absolute
    # Nor does a use turn the absolute limit into the idle one.
    reasons = [reasonAt(t, idle, created, absolute) for t in (touched, touched + later)]
    assert reasons != ["absolute", "idle"]


@given(MOMENTS, MOMENTS, SPANS, SPANS, LIMITS)
def test_aLongerTimeoutNeverEndsItSooner(
    created: float, touched: float, idle: float, more: float, absolute: float | None
) -> None:
    deadlines = [
        deadlineOf(touched, timeout, created, absolute) for timeout in (idle, idle + more, None)
    ]
    assert deadlines == sorted(deadlines)
    deadlines = [
        deadlineOf(touched, idle, created, timeout) for timeout in (more, more + 1.0, None)
    ]
    assert deadlines == sorted(deadlines)


@given(MOMENTS, MOMENTS, SPANS, LIMITS)
def test_timeIsRelative(created: float, touched: float, by: float, limit: float | None) -> None:
    for idle, absolute in ((limit, None), (None, limit), (limit, limit)):
        here = deadlineOf(touched, idle, created, absolute)
        assert deadlineOf(touched + by, idle, created + by, absolute) == here + by
        there = reasonAt(touched + by, idle, created + by, absolute)
        assert there == reasonAt(touched, idle, created, absolute)


# -- coalescing ----------------------------------------------------------------


def test_touchesAreCoalesced() -> None:
    assert not touchIsDue(104.75, 100.0, 100.0)
    assert touchIsDue(105.0, 100.0, 100.0)
    assert not touchIsDue(1e9, 100.0, None), "it has no idle limit to extend"


@given(MOMENTS, SPANS, SPANS, SPANS)
def test_anOlderUseIsNoLessDue(stored: float, since: float, more: float, idle: float) -> None:
    assert touchIsDue(stored + since, stored, idle) <= touchIsDue(
        stored + since + more, stored, idle
    )
    assert touchIsDue(stored + since, stored, idle + more) <= touchIsDue(
        stored + since, stored, idle
    )
    assert touchIsDue(stored + idle, stored, idle), "at the deadline at the latest"
    assert not touchIsDue(stored, stored, idle), "two uses at one moment are one write"


@given(MOMENTS, SPANS, st.lists(st.floats(0.0, 0.9), max_size=60))
def test_whatIsNotWrittenCostsATwentiethAtMost(
    start: float, idle: float, gaps: list[float]
) -> None:
    """
    However it is used, a session's stored deadline is late by less than a
    20th of its timeout: used that much before its end, it does not end.
    """
    stored = now = start
    for gap in gaps:
        now += gap * idle
        if touchIsDue(now, stored, idle):
            stored = now
        assert deadlineOf(now, idle, start, None) - deadlineOf(stored, idle, start, None) <= (
            idle / 20 * (1 + 1e-6)
        )


# -- timeouts as people give them -----------------------------------------------


@given(st.none() | st.integers(1, 10**12) | st.floats(1e-9, 1e12))
def test_timeouts(value: float | None) -> None:
    got = checkTimeout(value, "idle")
    assert got == value and type(got) is type(value)


@pytest.mark.parametrize("value", [0, -1, 10**400, -0.0, 0.0, -0.5, math.inf, -math.inf, math.nan])
def test_noTimeout(value: float) -> None:
    with pytest.raises(ValueError, match="sessionTimeout"):
        checkTimeout(value, "sessionTimeout")


@pytest.mark.parametrize("value", [True, False, "900", b"900", Decimal(9), Fraction(1, 2), [9], 1j])
def test_notEvenANumber(value: object) -> None:
    with pytest.raises(TypeError, match="sessionTimeout"):
        checkTimeout(value, "sessionTimeout")
