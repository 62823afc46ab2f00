"""
Any operations in any order, on a Redis store and on the memory store: what they
say must be the same, also when connections break.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from twsessions.core.delta import Birth, Change
from twsessions.core.record import Record
from twsessions.errors import SessionError, SessionGone, StoreUnavailable
from twsessions.interfaces import Verdict
from twsessions.stores.memory import MemoryStore
from twsessions.stores.redis import RedisStore

__all__ = ["Play", "insist", "play"]

_PATIENCE = 20.0


async def insist(call: Callable[[], Awaitable[Any]], pause: Callable[[], Awaitable[Any]]) -> Any:
    """
    Call again and again, until the store is there and so is every item.
    """
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            result = await call()
            if not isinstance(result, list) or not any(
                isinstance(one, StoreUnavailable) for one in result
            ):
                return result
            error = next(one for one in result if isinstance(one, StoreUnavailable))
        except StoreUnavailable as failed:
            error = failed
        if time.monotonic() > end:
            raise error
        await pause()


async def play(make: Callable[[], Play], steps: int, empty: Callable[[], object]) -> None:
    """
    Play until the machine is fast enough, five times at most.

    @param empty: removes what is stored.
    """
    for left in reversed(range(5)):
        one = make()
        try:
            await one.run(steps)
            return
        except AssertionError:
            if not (one.isLate and left):
                raise
        empty()


class Play:
    """
    One sequence of operations.

    @ivar clock: the model's time; timeouts are never whole seconds, and it
        moves by whole ones, so that milliseconds decide nothing.
    @ivar isLate: a call has taken so long that they may have decided something.
    """

    def __init__(
        self,
        seed: int,
        make: Callable[[Callable[[], float]], RedisStore],
        disturb: Callable[[random.Random], None],
        pause: Callable[[], Deferred[Any]],
    ) -> None:
        """
        @param make: is given what to add to the server's time.
        @param disturb: may break a connection.
        """
        self.chance = random.Random(seed)
        self.isLate = False
        self.clock = Clock()
        self.clock.advance(1000.0)
        self.model = MemoryStore(self.clock.seconds)
        self._make = make
        self._disturb = disturb
        self._pause = pause
        self.stores = [make(self._skew), make(self._skew)]
        self.keys: list[bytes] = []
        self.handles: set[bytes] = set()
        self.ended: set[bytes] = set()  # what the model has ended and was heard of

    def _skew(self) -> float:
        return self.clock.seconds() - time.time()

    async def run(self, steps: int) -> None:
        """
        Play, and compare.
        """
        try:
            await self.model.listen()
            await self._ask(lambda store: store.listen())
            for _ in range(steps):
                step = self.chance.choice(
                    [self._create, self._create, self._change, self._change, self._change,
                     self._rotate, self._end, self._advance, self._sweep, self._restart]
                )  # fmt: skip
                await step()
                await self._compare()
            await self._compareAll()
        finally:
            for store in self.stores:
                await store.close()

    async def _ask(self, call: Callable[[RedisStore], Awaitable[Any]]) -> Any:
        async def attempt() -> Any:
            start = time.monotonic()
            try:
                return await call(self.chance.choice(self.stores))
            finally:
                self.isLate = self.isLate or time.monotonic() - start > 0.2

        self._disturb(self.chance)
        return await insist(attempt, self._pause)

    async def _commit(self, change: Change) -> Record | SessionError:
        (expected,) = await self.model.commit([change])
        (outcome,) = await self._ask(lambda store: store.commit([change]))
        if change.end is not None and isinstance(outcome, SessionGone):
            pass  # a success as well: the first reply may have been lost
        elif isinstance(expected, Record):
            self._same(outcome, expected)
        else:
            assert type(outcome) is type(expected), (outcome, expected)
        return expected

    def _same(self, got: Any, expected: Record | None) -> None:
        if expected is None:
            assert got is None, f"resurrected: {got!r}"
            return
        assert isinstance(got, Record), f"lost: {got!r}"
        assert dict(got.fields) == dict(expected.fields)
        for name in "key seed idle absolute version uses principal epoch ownIdle".split():
            assert getattr(got, name) == getattr(expected, name), name
        for name in "created", "touched":
            assert abs(getattr(got, name) - getattr(expected, name)) < 0.4, name

    def _key(self) -> bytes:
        return self.chance.choice(self.keys) if self.keys else os.urandom(32)

    def _some(self) -> dict[str, Any]:
        chance = self.chance
        what: dict[str, Any] = {}
        names = ["da", "db", "f\u2603", "dc"]
        if chance.random() < 0.7:
            what["set"] = {
                chance.choice(names): os.urandom(chance.choice([0, 3, 300])) for _ in range(2)
            }
        if chance.random() < 0.3:
            what["remove"] = frozenset(chance.sample(names, 2))
        if chance.random() < 0.4:
            what["usedAgo"] = float(chance.randrange(20))
            what["uses"] = chance.randrange(3)
        if chance.random() < 0.2:
            what["idle"] = chance.choice([None, chance.randrange(60) + 0.5])
        if chance.random() < 0.2:
            what["principal"] = chance.choice([None, "ann", "bob"])
        if chance.random() < 0.2:
            what["expect"] = {chance.choice(names): chance.choice([None, b""])}
        return what

    def _token(self) -> bytes:
        return self.chance.randbytes(16)

    # Steps

    async def _create(self) -> None:
        key = self.chance.randbytes(32)
        absolute = self.chance.choice([None, self.chance.randrange(90) + 0.5])
        birth = Birth(self.chance.randbytes(16), float(self.chance.randrange(3)), absolute)
        what = {"idle": self.chance.randrange(60) + 0.5, **self._some(), "expect": {}}
        outcome = await self._commit(Change(key, self._token(), birth, **what))
        if isinstance(outcome, Record):
            self.handles.add(outcome.handle)
            self.keys.append(key)

    async def _change(self) -> None:
        await self._commit(Change(self._key(), self._token(), **self._some()))

    async def _rotate(self) -> None:
        to = self.chance.randbytes(32)
        if self.chance.random() < 0.2:
            to = self._key()
        change = Change(self._key(), self._token(), newKey=to, login=True, **self._some())
        await self._commit(change)
        self.keys.append(to)

    async def _end(self) -> None:
        reason = self.chance.choice(["logout", "revoked"])
        await self._commit(Change(self._key(), self._token(), end=reason, **self._some()))

    async def _advance(self) -> None:
        self.clock.advance(float(self.chance.randrange(1, 20)))

    async def _sweep(self) -> None:
        while (await self.model.sweep(1000)).more:
            pass
        while (await self._ask(lambda store: store.sweep(1000))).more:
            pass

    async def _restart(self) -> None:
        place = self.chance.randrange(len(self.stores))
        await self.stores[place].close()
        self.stores[place] = self._make(self._skew)

    # Comparisons

    async def _compare(self) -> None:
        keys = self.keys[-12:]
        expected = await self.model.load(keys)
        for got, one in zip(await self._ask(lambda store: store.load(keys)), expected, strict=True):
            self._same(got, one)

    async def _compareAll(self) -> None:
        for principal in "ann", "bob":
            got = await self._ask(lambda store, who=principal: store.sessionsOf(who))
            expected = await self.model.sessionsOf(principal)
            assert {one.key for one in got} == {one.key for one in expected}
        for handle in self.handles:
            found = await self._ask(lambda store, handle=handle: store.withHandle(handle))
            self._same(found, await self.model.withHandle(handle))
        walked: list[bytes] = []
        while page := await self._ask(
            lambda store, after=walked[-1] if walked else None: store.iterate(after, 3)
        ):
            walked += [one.key for one in page]
        assert walked == [one.key for one in await self.model.iterate(None, 10_000)]
        await self._sweep()
        ends = {end.id: end for end in await self.model.claim(10_000, 30.0)}
        heard: dict[bytes, Any] = {}
        # What was claimed by a call whose answer was lost comes back.
        for _ in range(10):
            while claimed := await self._ask(lambda store: store.claim(50, 30.0)):
                for end in claimed:
                    assert end.id not in heard, "heard twice"
                    heard[end.id] = end
                await self._ask(
                    lambda store, ends=claimed: store.settle(
                        [Verdict(end.id, end.claim) for end in ends]
                    )
                )
            self.clock.advance(31.0)
        assert heard.keys() >= ends.keys(), "an end was not heard of"
        for id_, end in ends.items():
            assert heard[id_].reason == end.reason
            self._same(heard[id_].record, end.record)
