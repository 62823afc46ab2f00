"""
Stores, and the way to them, with very many sessions, keys or callers. What
they cost is counted, not timed.
"""

from __future__ import annotations

import gc
import os
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from twsessions.core.delta import Birth, Change
from twsessions.errors import StoreUnavailable
from twsessions.interfaces import ISessionStore, Verdict
from twsessions.stores.fromurl import storeFromURL
from twsessions.stores.link import StoreLink
from twsessions.stores.memory import MemoryStore
from twsessions.test.page import result
from twsessions.test.places import place
from twsessions.test.real import PATIENCE
from twsessions.test.test_web_load import assertLinear, grows, steps
from twsessions.testing.faulty import FaultyStore


def birth(fields: dict[str, bytes] | None = None, idle: float = 900.0) -> Change:
    return Change(
        os.urandom(32), os.urandom(16), birth=Birth(os.urandom(16)), set=fields or {}, idle=idle
    )


def end(key: bytes) -> Change:
    return Change(key, os.urandom(16), end="logout")


# All stores


@pytest.fixture(params=["memory:", "sqlite", "redis", "postgresql"])
def url(request: Any, tmp_path: Path) -> Iterator[str]:
    kind = request.param
    with nullcontext(kind) if kind == "memory:" else place(kind, tmp_path) as it:
        yield it


def using(url: str) -> ISessionStore:
    patience = "" if url.startswith(("memory:", "sqlite:")) else f"?timeout={PATIENCE}"
    return storeFromURL(reactor, url + patience)  # type: ignore[arg-type]


@pytest_twisted.ensureDeferred
async def test_veryManyKeys(url: str) -> None:
    """
    All are set, one is changed, all are removed.
    """
    store: Any = using(url)
    fields = {f"d{n}": b"\x01" for n in range(20_000)}
    change = birth(fields)
    [record] = await store.commit([change])
    assert record.fields == fields
    [record] = await store.commit([Change(change.key, os.urandom(16), set={"d7": b"\x02"})])
    assert record.fields == {**fields, "d7": b"\x02"}
    [record] = await store.load([change.key])
    assert record.fields == {**fields, "d7": b"\x02"}
    rest = {"d": b"\x03"}
    [record] = await store.commit(
        [Change(change.key, os.urandom(16), set=rest, remove=frozenset(fields))]
    )
    assert record.fields == rest
    [record] = await store.load([change.key])
    assert record.fields == rest
    await store.close()


@pytest_twisted.ensureDeferred
async def test_veryLongNames(url: str) -> None:
    store: Any = using(url)
    fields = {"d" + char * 500_000: b"\x01" for char in ("a", "\N{SNOWMAN}", "\0")}
    change = birth(fields)
    await store.commit([change])
    [record] = await store.load([change.key])
    assert record.fields == fields
    [record] = await store.commit([Change(change.key, os.urandom(16), remove=frozenset(fields))])
    assert record.fields == {}
    await store.close()


@pytest_twisted.ensureDeferred
async def test_keysThatNobodyHas(url: str) -> None:
    """
    Nothing is remembered of them, here or there.
    """
    store: Any = using(url)
    await store.commit([birth()])

    async def guess() -> int:
        for _ in range(20):
            keys = [os.urandom(32) for _ in range(256)]
            assert await store.load(keys) == [None] * 256
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    await guess()
    tracemalloc.start()
    try:
        before = await guess()
        assert await guess() - before < 20_000
    finally:
        tracemalloc.stop()
    assert len(await store.iterate(None, 1000)) == 1
    await store.close()


# In memory


@pytest.fixture
def clock() -> Clock:
    it = Clock()
    it.advance(1_000_000)
    return it


def test_whatHasEndedIsLetGo(clock: Clock) -> None:
    """
    And not kept until its time would have been over.
    """
    store = MemoryStore(clock.seconds)

    def work() -> None:
        changes = [birth({"d": os.urandom(1000)}) for _ in range(1000)]
        store.commit(changes)
        store.commit([end(change.key) for change in changes])

    assert grows(work) < 20_000


def test_endsThatAreHeardSlowly(clock: Clock) -> None:
    """
    How many wait does not matter to who takes some of them.
    """

    def prepare(count: int) -> Callable[[], object]:
        store = MemoryStore(clock.seconds)
        store.listen()
        changes = [birth() for _ in range(count)]
        store.commit(changes)
        store.commit([end(change.key) for change in changes])
        assert len(result(store.claim(10, 30.0))) == 10

        def claim() -> None:
            ends = result(store.claim(10, 30.0))
            held = result(store.settle([Verdict(one.id, one.claim) for one in ends]))
            assert held == [True] * 10

        return claim

    few, many = steps(prepare, 100), steps(prepare, 2000)
    assert many < 2 * few


def test_eachEndIsClaimedUntilItIsHeard(clock: Clock) -> None:
    """
    Whatever became of the claim before.
    """
    store = MemoryStore(clock.seconds)
    store.listen()
    changes = [birth() for _ in range(30)]
    store.commit(changes)
    store.commit([end(change.key) for change in changes])
    first = result(store.claim(30, 30.0))
    store.settle(
        [Verdict(one.id, one.claim) for one in first[:10]]
        + [Verdict(one.id, one.claim, retryIn=5.0) for one in first[10:20]]
        + [Verdict(one.id, one.claim, dead=True) for one in first[20:25]]
    )
    assert result(store.claim(30, 30.0)) == []
    clock.advance(5)
    again = result(store.claim(30, 30.0))
    assert {one.id for one in again} == {one.id for one in first[10:20]}
    clock.advance(25)
    again = result(store.claim(30, 30.0))
    assert {one.id for one in again} == {one.id for one in first[25:]}


# The way to a store


def test_manyWaitForOneSession(clock: Clock) -> None:
    """
    Who is told that the store did not answer costs as much as one of few.
    """

    def prepare(count: int) -> Callable[[], object]:
        store = FaultyStore(MemoryStore(clock.seconds))
        link = StoreLink(clock, store)
        store.hang()
        outcomes: list[object] = []

        def wait() -> None:
            for _ in range(count):
                link.loadThen(b"key", outcomes.append)
                clock.advance(1.9 / count)
            for _ in range(count):
                clock.advance(1.9 / count)
            clock.advance(10)
            assert len(outcomes) == count

        return wait

    assertLinear(prepare, 100)


@pytest.mark.parametrize("backwards", [False, True])
def test_manyWaitNoMoreForOneSession(clock: Clock, backwards: bool) -> None:
    """
    What all have given up is not asked any more.
    """

    def prepare(count: int) -> Callable[[], object]:
        store = FaultyStore(MemoryStore(clock.seconds))
        link = StoreLink(clock, store)
        store.hang()
        first = link.load(b"other")
        loads = [link.load(b"key").addErrback(lambda _: None) for _ in range(count)]

        def cancel() -> None:
            for load in loads[::-1] if backwards else loads:
                load.cancel()

        def finish() -> None:
            cancel()
            store.resume()
            assert result(first) is None
            assert [args for name, args in store.calls if name == "load"] == [([b"other"],)]

        return finish

    assertLinear(prepare, 100)


def test_someOfManyWaitNoMore(clock: Clock) -> None:
    """
    The others are told, each once.
    """
    store = FaultyStore(MemoryStore(clock.seconds))
    link = StoreLink(clock, store)
    store.hang()
    link.load(b"other")
    loads: list[Deferred[Any]] = [link.load(b"key") for _ in range(20)]
    for load in loads[:5] + loads[10:15]:
        load.addErrback(lambda _: "cancelled").cancel()
    store.resume()
    assert [result(load) for load in loads] == (["cancelled"] * 5 + [None] * 5) * 2
    assert len(store.calls) == 2


def test_aCrowdLeavesRoomForOthers(clock: Clock) -> None:
    """
    However many ask for one session while the store is slow, it is not they
    for whom all others are refused.
    """
    store = FaultyStore(MemoryStore(clock.seconds))
    link = StoreLink(clock, store, maxWaiting=100)
    store.hang()
    outcomes: list[object] = []
    for _ in range(3):
        for _ in range(100):
            link.loadThen(b"key", outcomes.append)
        other: list[object] = []
        link.loadThen(b"other", other.append)
        store.resume()
        assert other == [None]
        store.hang()
        link.loadThen(b"key", outcomes.append)
    store.resume()
    refused = [outcome for outcome in outcomes if outcome is not None]
    assert len(outcomes) == 303 and len(refused) > 200
    assert {type(outcome) for outcome in refused} == {StoreUnavailable}
    link.loadThen(b"key", outcomes.append)
    assert outcomes[-1] is None
