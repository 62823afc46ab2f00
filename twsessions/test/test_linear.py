"""
The check of histories finds what is wrong with them, and nothing else.
"""

from __future__ import annotations

import random

import pytest

from twsessions.test.linear import GONE, Operation, isLinearizable


def write(value: str, *times: float) -> Operation:
    return Operation("write", value, *times)


def read(value: str, *times: float) -> Operation:
    return Operation("read", value, *times)


def end(*times: float) -> Operation:
    return Operation("end", "", *times)


@pytest.mark.parametrize(
    "history",
    [
        [],
        [write("a", 0, 1), read("a", 2, 3)],
        [write("a", 0, 9), read("", 1, 2), read("a", 3, 4)],
        [write("a", 0, 9), write("b", 0, 9), read("b", 1, 2), read("a", 3, 4)],
        [write("a", 0), read("", 1, 2), read("a", 3, 4)],
        [write("a", 0), read("", 3, 4)],
        [end(0, 5), read(GONE, 1, 2), write(GONE, 3, 4)],
        [end(0), read("", 1, 2), read(GONE, 3, 4)],
        [end(0, 1), write("a", 0), read(GONE, 2, 3)],
    ],
)
def test_possible(history: list[Operation]) -> None:
    assert isLinearizable(history)


@pytest.mark.parametrize(
    "history",
    [
        [write("a", 0, 1), read("", 2, 3)],  # lost
        [write("a", 0, 1), write("b", 2, 3), read("a", 4, 5)],  # stale
        [write("a", 0, 9), read("a", 1, 2), read("", 3, 4)],  # back again
        [write("a", 0), read("a", 1, 2), read("", 3, 4)],
        [read("a", 0, 1), write("a", 2, 3)],  # from the future
        [end(0, 1), read("", 2, 3)],  # not gone
        [end(0, 1), write("a", 2, 3)],  # revived
        [end(0), read(GONE, 1, 2), read("", 3, 4)],
        [write(GONE, 0, 1), read("", 2, 3)],  # refused without a reason
    ],
)
def test_impossible(history: list[Operation]) -> None:
    assert not isLinearizable(history)


def test_longHistories() -> None:
    """
    What an honest register gives, with many at once, is found to be possible.
    """
    chance = random.Random(7)
    state, now, history = "", 0.0, []
    for number in range(400):
        now += 1
        begin, finish = now - chance.random() * 5, now + chance.random() * 5
        if chance.random() < 0.1:
            if chance.random() < 0.5:
                state = f"{number}"
            history.append(write(f"{number}", begin))
        elif chance.random() < 0.5:
            state = f"{number}"
            history.append(write(state, begin, finish))
        else:
            history.append(read(state, begin, finish))
    assert isLinearizable(history)
    assert not isLinearizable([*history, read("never", now + 10, now + 11)])
