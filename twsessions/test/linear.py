"""
Is there an order in which what several processes saw could have happened?

Of one key of one session: a register that is written, read and, with its
session, ended for good. (Wing and Gong 1993, with Lowe's memory of states.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

__all__ = ["GONE", "Operation", "isLinearizable"]

GONE = "gone"


@dataclass(frozen=True)
class Operation:
    """
    What one process did.

    @ivar kind: C{"write"}, C{"read"} or C{"end"}.
    @ivar value: written or read; L{GONE}: there was no session (any more).
    @ivar invoked: when it began, on a clock that all processes share.
    @ivar returned: when its outcome was known; infinite: it never was, and
        may have been done at any time since, or not at all.
    """

    kind: str
    value: str
    invoked: float
    returned: float = inf


def isLinearizable(operations: Sequence[Operation], first: str = "") -> bool:
    """
    Whether each operation can be given a moment between its beginning and its
    end so that all of them make sense one after the other.

    @param first: the value before all of them.
    """
    read = {one.value for one in operations if one.kind == "read"}
    todo = sorted(
        # A write that nobody knows of and nobody has read may never have been.
        (one for one in operations if one.returned < inf or one.kind == "end" or one.value in read),
        key=lambda one: one.invoked,
    )
    everything = sum(1 << n for n, one in enumerate(todo) if one.returned < inf)
    seen: set[tuple[int, str]] = set()
    stack = [(0, first)]
    while stack:
        done, state = stack.pop()
        if done & everything == everything:
            return True
        if (done, state) in seen:
            continue
        seen.add((done, state))
        # Only what began before the first end among the rest can come next.
        left = [(n, one) for n, one in enumerate(todo) if not done >> n & 1]
        limit = min(one.returned for _, one in left)
        for n, one in left:
            if one.invoked > limit:
                break
            following = _after(one, state)
            if following is not None:
                stack.append((done | 1 << n, following))
    return False


def _after(one: Operation, state: str) -> str | None:
    isGone = state == GONE
    if one.kind == "read":
        return state if one.value == state else None
    if one.kind == "end":
        return GONE
    if one.returned == inf:
        return state if isGone else one.value
    if one.value == GONE:  # it was refused
        return state if isGone else None
    return None if isGone else one.value
