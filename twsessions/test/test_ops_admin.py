"""
Seeing and ending the sessions of a store that is in use.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock, deferLater
from twisted.web.resource import Resource

from twsessions import SessionSite, storeFromURL
from twsessions.core.delta import Birth, Change
from twsessions.core.record import Record
from twsessions.errors import NotSupported, SessionError, StoreUnavailable
from twsessions.ops.admin import endBefore, endHandles, endPrincipal, pagesOf
from twsessions.stores.memory import MemoryStore
from twsessions.test.places import place
from twsessions.testing.contract import change, create, newKey
from twsessions.testing.faulty import FaultyStore

inReactor: Callable[..., Any] = pytest_twisted.ensureDeferred
clock: Any = reactor
HOSTILE = "'; DROP TABLE session; --\x1b]0;pwned\x07\u202e\r\n\u2028\x7f%s{}*"
LOWEST = bytes(31)  # and one more: before all others in the order of keys


@pytest.fixture(scope="module", params=["sqlite", "redis", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Iterator[str]:
    with place(request.param, tmp_path_factory.mktemp("ops")) as url:
        yield url


@pytest_twisted.async_yield_fixture
async def store(url: str) -> AsyncIterator[Any]:
    """
    One without sessions.
    """
    store = storeFromURL(reactor, url)
    await endBefore(store)
    yield store
    await store.close()


async def make(store: Any, count: int, ago: float = 0.0, **what: Any) -> list[Record]:
    client = {name: what.pop(name) for name in ("address", "userAgent") if name in what}

    def one() -> Change:
        birth = Birth(os.urandom(16), ago=ago, **client)
        return change(newKey(), birth=birth, idle=900.0, usedAgo=0.0, **what)

    return list(await store.commit([one() for _ in range(count)]))


async def handles(store: Any, principal: str | None = None) -> list[bytes]:
    return [record.handle async for page in pagesOf(store, principal) for record in page]


class Busy(FaultyStore):
    """
    A store in which something happens whenever sessions are about to end.
    """

    def __init__(self, store: Any, *happens: list[Change]) -> None:
        super().__init__(store)
        self.happens = list(happens)

    def commit(self, changes: Sequence[Change]) -> Deferred[list[Record | SessionError]]:
        if not self.happens:
            return super().commit(changes)
        first = self.store.commit(self.happens.pop(0))
        return first.addCallback(lambda outcomes: super(Busy, self).commit(changes))


@inReactor
async def test_everyPage(store: Any) -> None:
    await make(store, 600)
    ours = await make(store, 3, principal=HOSTILE, address=HOSTILE, userAgent=HOSTILE)
    sizes = [len(page) async for page in pagesOf(store)]
    assert sum(sizes) == 603 and len(sizes) > 2
    assert len(set(await handles(store))) == 603
    assert sorted(await handles(store, HOSTILE)) == sorted(record.handle for record in ours)
    [page] = [page async for page in pagesOf(store, HOSTILE)]
    assert {(one.principal, one.address, one.userAgent) for one in page} == {(HOSTILE,) * 3}
    assert await handles(store, "bob") == []
    await endPrincipal(store, HOSTILE)
    assert len(await handles(store)) == 600


@inReactor
async def test_byHandle(store: Any) -> None:
    one, rotated, kept, other = await make(store, 4)
    ended: list[int] = []
    moving = [change(rotated.key, newKey=newKey())]
    unknown = await endHandles(
        Busy(store, [], moving),
        [one.handle, bytes(16), one.handle, rotated.handle, kept.handle],
        {kept.handle},
        ended.append,
    )
    assert unknown == [bytes(16)]
    assert sum(ended) == 2
    assert sorted(await handles(store)) == sorted([kept.handle, other.handle])
    assert await endHandles(store, [one.handle]) == [one.handle]


@inReactor
async def test_byPrincipal(store: Any) -> None:
    ours = await make(store, 300, principal="ann")
    others = await make(store, 2, principal="bob")
    ended: list[int] = []
    moving = [change(record.key, newKey=newKey()) for record in ours[:3]]
    leaving = [change(record.key, end="logout") for record in ours[3:5]]
    keep = {ours[9].handle}
    await endPrincipal(Busy(store, moving + leaving), "ann", keep, ended.append)
    assert sum(ended) == 297 and len(ended) == 3
    assert sorted(await handles(store)) == sorted({other.handle for other in others} | keep)


@inReactor
async def test_byTime(store: Any) -> None:
    """
    Also one that is given a new id while others end, and is no longer where
    the walk would have met it.
    """
    now = (await make(store, 1))[0].asOf
    old = await make(store, 700, ago=1000.0)
    young = await make(store, 300, ago=10.0)
    last = max(old, key=lambda record: record.key)
    moving = [change(last.key, newKey=LOWEST + b"1")]
    ended: list[int] = []
    keep = {old[5].handle, last.handle}
    await endBefore(store, now - 2000.0, (), ended.append)
    assert sum(ended) == 0
    await endBefore(Busy(store, moving), now - 500.0, keep - {last.handle}, ended.append)
    assert sum(ended) == 699
    left = await handles(store)
    assert len(left) == 302
    assert set(left) >= {record.handle for record in young} | {old[5].handle}


@inReactor
async def test_all(store: Any) -> None:
    """
    A visitor whose session ends comes back at once: that is no reason to go on
    for ever.
    """
    made = await make(store, 400)
    last = max(made, key=lambda record: record.key)
    ended: list[int] = []
    coming = [create(LOWEST + b"%c" % number) for number in range(40)]
    busy = Busy(store, [change(last.key, newKey=LOWEST + b"x")], *([one] for one in coming))
    await endBefore(busy, progress=ended.append)
    left = await handles(store)
    assert not {record.handle for record in made} & set(left)
    assert 400 <= sum(ended) < 420 and len(left) < 40


@inReactor
async def test_aSiteHears(url: str, store: Any) -> None:
    site: Any = SessionSite(Resource(), store=url, reactor=reactor, storeTimeout=10.0)
    heard: dict[str, tuple[str, str | None, int]] = {}
    here: list[bytes] = []
    site.notifyOnExpire(
        lambda event: heard.update({event.id: (event.reason, event.principal, event.data["n"])})
    )
    site.keeper.start()
    await site.keeper.link.listen()
    try:
        for n in range(3):
            session = site.makeSession()
            session["n"] = n
            session.notifyOnExpire(lambda uid=session.uid: here.append(uid))
            await session.login("ann")
        found = await handles(store, "ann")
        await endHandles(store, found[:1])
        await endPrincipal(store, "ann", found[2:])
        await endBefore(store)
        for _ in range(500):
            if len(heard) == len(here) == 3:
                break
            await deferLater(clock, 0.02, lambda: None)
        assert heard == {handle.hex(): ("revoked", "ann", n) for n, handle in enumerate(found)}
        assert len(here) == 3
    finally:
        await site._stop()


def inMemory() -> FaultyStore:
    return FaultyStore(MemoryStore(Clock().seconds))


ENDINGS: list[Callable[..., Any]] = [
    lambda store, made, add: endBefore(store, progress=add),
    lambda store, made, add: endPrincipal(store, "ann", progress=add),
    lambda store, made, add: endHandles(store, [record.handle for record in made], progress=add),
]
endings = pytest.mark.parametrize("end", ENDINGS, ids=["before", "principal", "handles"])


@endings
@inReactor
async def test_aLostReply(end: Any) -> None:
    """
    The change is sent again with its token, and counts as one end.
    """
    store = inMemory()
    made = await make(store, 3, principal="ann")
    del store.calls[:]
    store.loseReplies("commit")
    ended: list[int] = []
    await end(store, made, ended.append)
    sent = [args[0] for name, args in store.calls if name == "commit"]
    assert sent[0] == sent[1]
    assert sum(ended) == 3
    assert await handles(store) == []


@endings
@inReactor
async def test_aStoreThatIsAway(end: Any) -> None:
    """
    It can be run again.
    """
    store = inMemory()
    made = await make(store, 600, principal="ann")
    ended: list[int] = []

    def add(count: int) -> None:
        ended.append(count)
        store.down = len(ended) >= 2

    with pytest.raises(StoreUnavailable):
        await end(store, made, add)
    store.down = False
    assert 0 < sum(ended) < 600
    await end(store, made, ended.append)
    assert sum(ended) == 600
    assert await handles(store) == []


@inReactor
async def test_oneOfSeveralServersIsAway() -> None:
    """
    The others' sessions end; that it is not all of them is said.
    """

    class Partly(FaultyStore):
        def commit(self, changes: Sequence[Change]) -> Deferred[list[Record | SessionError]]:
            here = [one for one in changes if one.key[0] < 128]
            outcomes = {}

            def together(done: list[Record | SessionError]) -> list[Record | SessionError]:
                outcomes.update(zip((one.key for one in here), done, strict=True))
                return [outcomes.get(one.key, StoreUnavailable("away")) for one in changes]

            return super().commit(here).addCallback(together)

    store = MemoryStore(Clock().seconds)
    made = await make(store, 100)
    ended: list[int] = []
    with pytest.raises(StoreUnavailable, match="away"):
        await endBefore(Partly(store), progress=ended.append)
    assert sum(ended) == sum(record.key[0] < 128 for record in made)
    assert len(await handles(store)) == 100 - sum(ended)


@inReactor
async def test_aStoreThatCannot() -> None:
    class Blind(FaultyStore):
        capabilities = frozenset()

    store = Blind(MemoryStore(Clock().seconds))
    for attempt in (
        handles(store),
        handles(store, "ann"),
        endBefore(store),
        endPrincipal(store, "ann"),
        endHandles(store, [bytes(16)]),
    ):
        with pytest.raises(NotSupported, match="this store cannot"):
            await attempt
    assert store.calls == []
