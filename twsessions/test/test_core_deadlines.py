"""
The deadline queue against a model that looks at everything.
"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from twsessions.core.deadlines import DeadlineQueue


class Item:
    def __init__(self, deadline: float | None) -> None:
        self.deadline = deadline
        self.queued: float | None = None


def makeQueue() -> DeadlineQueue[Item]:
    return DeadlineQueue(lambda item: item.deadline)


def run(queue: DeadlineQueue[Item], until: float, limit: int = 3) -> list[tuple[float, Item]]:
    """
    Call C{due} whenever the queue asks for it.
    """
    found = []
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


def test_noCallLooksAtMoreThanItMay() -> None:
    looked = []
    queue: DeadlineQueue[Item] = DeadlineQueue(
        lambda item: (looked.append(item), item.deadline)[1]  # type: ignore[func-returns-value]
    )
    items = [Item(5.5) for _ in range(1000)]
    for item in items:
        queue.add(item)
    looked.clear()
    found = queue.due(6.0, 10)
    assert len(found) == 10 == len(looked)
    assert queue.next(6.0) == 6.0
    while len(found) < 1000:
        found.extend(queue.due(6.0, 10))
    assert set(found) == set(items)


@given(st.data())
def test_asTheModel(data: st.DataObject) -> None:
    queue, items, heard, now = makeQueue(), [], {}, 0.0
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
