"""
A queue that answers: who is due next?

Most sessions are used again long before they fall due, so the queue does not
follow them. An item lies in a bucket of time, and only when that begins is
its deadline asked for: then it moves to a later bucket, or to the small heap
of those that are really near. Using an item costs the queue nothing; a far
item costs it one list entry; and a call's work is bounded.

The earliest deadline comes first because nothing is taken from the heap while
a bucket that has begun is not empty, and because an item cannot be due earlier
than the time for which it is held.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from heapq import heappop, heappush
from math import inf
from typing import Any, Generic, Protocol, TypeVar

__all__ = ["DeadlineQueue", "Queueable"]


class Queueable(Protocol):
    """
    What can be queued.

    @ivar queued: the queue's own: the time for which it holds the item, or
        L{None}.
    """

    queued: float | None


T = TypeVar("T", bound=Queueable)

_MOVES = 1024  # items that one call may move from their bucket to the heap


class _Several(deque[Any]):
    """
    Items with the same deadline.
    """


class DeadlineQueue(Generic[T]):
    """
    Items and their deadlines.
    """

    def __init__(self, deadlineOf: Callable[[T], float | None], width: float = 1.0) -> None:
        """
        @param deadlineOf: an item's deadline in seconds; L{None}: it is gone.
        @param width: of a bucket, in seconds.
        """
        self._deadlineOf = deadlineOf
        self._width = width
        self._buckets: dict[float, list[T]] = {}
        self._forgotten: dict[float, int] = {}  # items of a bucket that it need not hold
        self._starts: list[float] = []  # heap of the numbers of the buckets
        # Times and items apart: a million tuples would busy the garbage collector.
        self._near: list[float] = []  # heap
        self._nearItems: dict[float, T | _Several] = {}
        self._nearCount = 0
        self._opened = -inf  # up to this bucket number items go to the heap
        self._opening: list[T] = []  # that bucket, its first item at the end
        self._openingNumber = -inf

    def __len__(self) -> int:
        buckets = sum(map(len, self._buckets.values()))
        return buckets + self._nearCount + len(self._opening)

    def add(self, item: T) -> None:
        """
        Hold an item for its deadline. One that is held for an earlier time
        already stays where it is: it moves when its bucket begins.
        """
        deadline = self._deadlineOf(item)
        if deadline is None or deadline == inf:
            return
        queued = item.queued
        if queued is not None and queued <= deadline:
            return
        item.queued = deadline
        self._put(item, deadline)

    def _put(self, item: T, deadline: float) -> None:
        number = deadline // self._width
        if number <= self._opened:
            there = self._nearItems.get(deadline)
            if there is None:
                self._nearItems[deadline] = item
                heappush(self._near, deadline)
            elif isinstance(there, _Several):
                there.append(item)
            else:
                self._nearItems[deadline] = _Several((there, item))
            self._nearCount += 1
            return
        bucket = self._buckets.get(number)
        if bucket is None:
            bucket = self._buckets[number] = []
            heappush(self._starts, number)
        bucket.append(item)

    def forget(self, item: T) -> None:
        """
        Hold an item no longer, and do not keep it in memory much longer: when
        half a bucket is forgotten, the bucket lets go of it.
        """
        queued, item.queued = item.queued, None
        if queued is None:
            return
        number = queued // self._width
        bucket = self._buckets.get(number)
        if bucket is None:
            return  # near: it goes when its time comes
        forgotten = self._forgotten[number] = self._forgotten.get(number, 0) + 1
        if 2 * forgotten > len(bucket):
            bucket[:] = [
                other
                for other in bucket
                if other.queued is not None and other.queued // self._width == number
            ]
            del self._forgotten[number]

    def next(self, now: float) -> float | None:
        """
        When to call L{due} next: C{now} or earlier if work is left over.
        """
        if self._opening:
            return now
        near = self._near[0] if self._near else None
        if self._starts:
            start = self._starts[0] * self._width
            if near is None or start < near:
                return start
        return near

    def due(self, now: float, limit: int) -> list[T]:
        """
        Items whose deadline has come, the earliest first, after looking at no
        more than C{limit} of the near ones. They are held no longer.

        Moving the items of a bucket comes before that and is bounded for
        itself. So there may be none although L{next} says that some are left.
        """
        found: list[T] = []
        near, moves = self._near, _MOVES
        while limit > 0:
            if self._opening:
                if not moves:
                    break
                moves -= self._move(moves)
            elif near and near[0] <= now:
                limit -= 1
                held, item = self._take()
                if item.queued == held:  # else it is held for another time by now
                    item.queued = None
                    deadline = self._deadlineOf(item)
                    if deadline is None or deadline == inf:
                        continue
                    if deadline <= held:
                        found.append(item)
                    else:  # due as well, perhaps, but others may come before it
                        item.queued = deadline
                        self._put(item, deadline)
            elif self._starts and self._starts[0] * self._width <= now:
                self._openingNumber = self._opened = heappop(self._starts)
                self._opening = self._buckets.pop(self._openingNumber)
                self._opening.reverse()  # in the order they came the heap takes them faster
                self._forgotten.pop(self._openingNumber, None)
            else:
                break
        return found

    def _take(self) -> tuple[float, T]:
        """
        The nearest item, and the time it was held for.
        """
        held = self._near[0]
        there = self._nearItems[held]
        self._nearCount -= 1
        if isinstance(there, _Several):
            item: T = there.popleft()
            if there:
                return held, item
        else:
            item = there
        heappop(self._near)
        del self._nearItems[held]
        return held, item

    def _move(self, limit: int) -> int:
        """
        Move items from the bucket that has begun to where they belong.

        @return: how many.
        """
        opening, number, width = self._opening, self._openingNumber, self._width
        count = min(limit, len(opening))
        for _ in range(count):
            item = opening.pop()
            # An entry that was left behind when its item got an earlier deadline
            # is stale: the item is held for a time outside this bucket, or not.
            if item.queued is None or item.queued // width != number:
                continue
            item.queued = deadline = self._deadlineOf(item)
            if deadline == inf:
                item.queued = None
            elif deadline is not None:
                self._put(item, deadline)
        return count
