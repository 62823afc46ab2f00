"""
The deadline queue against a model that looks at everything.
"""

from __future__ import annotations

import random
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twsessions.core import deadlines
from twsessions.core.deadlines import DeadlineQueue


class Item:
    def __init__(self, deadline: float | None) -> None:
        self.deadline = deadline
        self.queued: float | None = None


def dueAt(item: Item) -> float:
    assert item.deadline is not None
    return item.deadline


def makeQueue() -> DeadlineQueue[Item]:
    return DeadlineQueue(lambda item: item.deadline)


def run(queue: DeadlineQueue[Item], until: float, limit: int = 3) -> list[tuple[float, Item]]:
    """
    Call C{due} whenever the queue asks for it.
    """
    found: list[tuple[float, Item]] = []
    while True:
        when = queue.next(until)
        if when is None or when > until:
            return found
        found.extend((when, item) for item in queue.due(when, limit))


def test_exactlyAtItsDeadline() -> None:
    queue, item = makeQueue(), Item(10.25)
    queue.add(item)
    assert queue.due(10.2499, 100) == []
    assert queue.due(10.25, 100) == [item]
    assert queue.due(99, 100) == []
    assert len(queue) == 0


def test_usedItemsMoveByThemselves() -> None:
    queue, item = makeQueue(), Item(10.0)
    queue.add(item)
    item.deadline = 500.5
    assert run(queue, 500.0) == []
    assert run(queue, 501.0) == [(500.5, item)]


def test_anEarlierDeadlineLeavesNothingBehind() -> None:
    queue, item = makeQueue(), Item(1000.0)
    queue.add(item)
    for deadline in range(900, 100, -100):
        item.deadline = float(deadline)
        queue.add(item)
    assert run(queue, 200.0) == [(200.0, item)]
    item.deadline = None
    assert run(queue, 2000.0) == []
    assert len(queue) == 0


def test_oneEntryForEachInTheLongRun() -> None:
    queue, item = makeQueue(), Item(50.0)
    queue.add(item)
    item.deadline = 10.0
    queue.add(item)
    item.deadline = 100.0  # used in time
    assert run(queue, 60.0) == []  # through 10, and through 50, where it was first
    assert len(queue) == 1


def test_boundedWork() -> None:
    looked = []
    queue: DeadlineQueue[Item] = DeadlineQueue(
        lambda item: (looked.append(item), item.deadline)[1]  # type: ignore[func-returns-value]
    )
    count = 3 * deadlines._MOVES
    items = [Item(5.5) for _ in range(count)]
    for item in items:
        queue.add(item)
    assert queue.due(4.9, count) == []
    assert looked == items, "a bucket is left alone until it begins"
    found: list[Item] = []
    while (when := queue.next(6.0)) is not None:
        assert when <= 6.0
        looked.clear()
        some = queue.due(6.0, 10)
        assert len(some) <= 10 and len(looked) <= deadlines._MOVES + 10
        found += some
    assert found == items, "of the same deadline, as they came"


def test_anItemUsedWhileItIsNearLetsOthersPass() -> None:
    queue, used, other = makeQueue(), Item(10.1), Item(10.3)
    queue.add(used)
    queue.add(other)
    assert queue.due(10.0, 9) == []  # both are near now
    used.deadline = 10.5
    assert queue.due(11.0, 9) == [other, used]


@pytest.mark.parametrize("width", [0.1, 1.0, 7.0])
def test_earliestFirst(width: float) -> None:
    rng = random.Random(5)
    queue: DeadlineQueue[Item] = DeadlineQueue(lambda item: item.deadline, width)
    items = [Item(rng.uniform(0.0, 30.0)) for _ in range(5000)]
    for item in items:
        queue.add(item)
    for item in rng.sample(items, 2000):
        item.deadline = dueAt(item) + rng.choice([0.01, 3.0, 40.0])  # used
    found: list[Item] = []
    for now in (12.5, 100.0):
        while (when := queue.next(now)) is not None and when <= now:
            found += queue.due(now, 7)
    assert found == sorted(items, key=dueAt)


@given(st.data(), st.sampled_from([1, 2, 1000]))
def test_asTheSortedModel(data: st.DataObject, moves: int) -> None:
    """
    What is due comes as sorted, whatever was done to it before, and nothing
    of it is held back for long.
    """
    queue, now = makeQueue(), 0.0
    living: list[Item] = []
    times = st.integers(0, 60).map(lambda tenths: tenths / 10)  # many of them in one bucket
    with patch.object(deadlines, "_MOVES", moves):
        for _ in range(data.draw(st.integers(1, 40))):
            action = data.draw(st.sampled_from(["add", "add", "use", "shorten", "forget", "due"]))
            if action == "add" or not living:
                item = Item(now + data.draw(times))
                living.append(item)
                queue.add(item)
                continue
            item = data.draw(st.sampled_from(living))
            if action == "use":
                item.deadline = dueAt(item) + data.draw(times)
            elif action == "shorten":
                item.deadline = now + data.draw(times)
                queue.add(item)
            elif action == "forget":
                queue.forget(item)
                if data.draw(st.booleans()):
                    queue.add(item)
                else:
                    living.remove(item)
            else:
                now += data.draw(times)
                # Late, in which case several buckets are open at once.
                limit, calls = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 50))
                for _ in range(calls):
                    due = sorted(dueAt(i) for i in living if dueAt(i) <= now)
                    found = queue.due(now, limit)
                    assert [i.deadline for i in found] == due[: len(found)]
                    for item in found:
                        living.remove(item)
                    left = len(due) - len(found)
                    when = queue.next(now)
                    assert not left or (when is not None and when <= now)
        found = [item for _, item in run(queue, now + 1000.0)]
        assert set(found) == set(living) and len(found) == len(living)
        assert [i.deadline for i in found] == sorted(map(dueAt, living))
    assert len(queue) == 0


@given(st.data())
def test_asTheModel(data: st.DataObject) -> None:
    queue, now = makeQueue(), 0.0
    items: list[Item] = []
    heard: dict[Item, float] = {}
    times = st.floats(0.001, 20, allow_nan=False)
    for _ in range(data.draw(st.integers(1, 40))):
        action = data.draw(st.sampled_from(["add", "use", "shorten", "remove", "advance"]))
        if action == "add" or not items:
            item = Item(now + data.draw(times))
            items.append(item)
            queue.add(item)
            continue
        item = data.draw(st.sampled_from(items))
        if action == "advance":
            until = now + data.draw(times)
            for when, found in run(queue, until, data.draw(st.integers(1, 5))):
                assert found.deadline is not None and found.deadline <= max(when, now)
                assert found not in heard
                heard[found] = when
                found.deadline = None
            now = until
            assert not [i for i in items if i.deadline is not None and i.deadline <= now]
        elif item.deadline is None:
            continue
        elif action == "use":
            item.deadline = max(item.deadline, now + data.draw(times))
        elif action == "shorten":
            item.deadline = now + data.draw(times)
            queue.add(item)
        else:
            item.deadline = None
    assert run(queue, now + 10_000) is not None
    assert len(queue) == 0
