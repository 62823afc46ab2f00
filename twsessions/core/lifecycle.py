"""
When a session ends, and why.
"""

from __future__ import annotations

import math
from typing import Final

__all__ = ["REASONS", "checkSeconds", "checkTimeout", "deadlineOf", "reasonAt", "touchIsDue"]

REASONS: Final = ("idle", "absolute", "logout", "evicted", "revoked")
"""Why a session can end."""

_COALESCE = 20  # a use is written at most once in a 20th of the idle timeout


_LONGEST = 1e12  # seconds: more than 30,000 years


def deadlineOf(touched: float, idle: float | None, created: float, absolute: float | None) -> float:
    """
    The time at which it ends: whichever limit comes first.

    @param touched: when it was last used, seconds.
    @param idle: seconds it may stay unused, or L{None}.
    @param created: when it was made, seconds.
    @param absolute: seconds it may live at all, or L{None}.
    @return: seconds, by the same clock; infinite if there is no limit.
    """
    first = math.inf if idle is None else touched + idle
    if absolute is not None and created + absolute < first:
        first = created + absolute
    return first


def reasonAt(touched: float, idle: float | None, created: float, absolute: float | None) -> str:
    """
    Which limit L{deadlineOf} is.

    @return: C{"idle"}, or C{"absolute"}, also if both are the same.
    """
    if absolute is None:
        return "idle"
    return "idle" if idle is not None and touched + idle < created + absolute else "absolute"


def checkSeconds(value: object, name: str) -> float | None:
    """
    A timeout that can be calculated with.

    @param name: what to call it in an error.
    @return: C{value}.
    @raise TypeError: neither a number nor L{None}.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} is a number of seconds or None, not {value!r}")
    return value


def checkTimeout(value: object, name: str) -> float | None:
    """
    A timeout as it is given by people: as L{checkSeconds}.

    @raise ValueError: not positive, or longer than a clock can tell.
    """
    seconds = checkSeconds(value, name)
    if seconds is not None and not 0 < seconds <= _LONGEST:
        raise ValueError(f"{name} must be more than 0 seconds and at most 10**12, not {value!r}")
    return seconds


def touchIsDue(now: float, storedTouched: float, idle: float | None) -> bool:
    """
    Whether a use is worth a write of its own: the stored one is older than a
    20th of the idle timeout. A younger one may wait to be written with others.
    """
    return idle is not None and now - storedTouched >= idle / _COALESCE
