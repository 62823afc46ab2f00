"""
Rotations from one bucket of a cluster to another, in steps that any process
can take up where another has died.

    1. The new key is reserved.
    2. Under the old key the change is applied, and what comes of it is kept as
       a value that is no session: from here on the old key is dead.
    3. The new key becomes the session, if it is still reserved for it.
    4. What is left under the old key is removed.

A change that is sent again, with its token, goes through the same steps. What
nobody sends again is found by the sweep, which goes on with step 3.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from twsessions.core.delta import Change
from twsessions.core.record import Record
from twsessions.errors import IdCollision, SessionError, SessionGone, StoreUnavailable
from twsessions.stores._redis import scripts
from twsessions.stores._redis.buckets import Buckets
from twsessions.stores._redis.index import Index
from twsessions.stores._redis.record import decode, stateBetween
from twsessions.stores._redis.route import Ask
from twsessions.stores._redis.wire import command

__all__ = ["Moves"]


class Moves:
    """
    Moves sessions.
    """

    def __init__(self, buckets: Buckets, index: Index) -> None:
        self._buckets = buckets
        self._index = index

    async def move(
        self,
        change: Change,
        deadline: float,
        depart: Callable[[], Awaitable[Record | SessionError]],
        isAlive: Callable[[], Awaitable[bool]],
    ) -> Record | SessionError:
        """
        Apply a change with a new key.

        @param depart: takes step 2, and L{arrives<arrive>}.
        @param isAlive: whether the old key is.
        """
        to = change.newKey
        assert to is not None
        said = await self._step(scripts.RESERVE, deadline, to, change.token, change.key)
        if isinstance(said, Record):
            return said
        if said == b"I":
            if await isAlive():
                return IdCollision("a session exists under the new key already")
            return SessionGone("the session has ended")
        outcome = await depart()
        if isinstance(outcome, StoreUnavailable):
            return outcome
        if isinstance(outcome, SessionError):
            # It has been done already, or there is nothing to wait for.
            said = await self._step(scripts.FORGET, deadline, to, change.token)
            return said if isinstance(said, Record) else outcome
        return outcome

    async def arrive(
        self, old: bytes, token: bytes, record: Record, value: bytes, deadline: float
    ) -> Record | SessionError:
        """
        Take steps 3 and 4.

        @param record: the session under its new key.
        @param value: the same, as it is stored.
        """
        hints = [self._index.hintHandle(record.handle, record.key)]
        if record.principal is not None:
            hints.append(self._index.hint(record.principal, record.key, old))
        await self._buckets.all(hints, deadline)
        said = await self._step(scripts.ARRIVE, deadline, record.key, token, value)
        await self._step(scripts.FORGET, deadline, old, token)
        return said if isinstance(said, Record) else SessionGone("the session has ended")

    async def goOn(self, key: bytes, value: bytes, isOld: bool) -> None:
        """
        Finish what another process may have left.

        @param value: what is under C{key} and is no session.
        @param isOld: nobody can be about to take step 2 any more.
        """
        state = stateBetween(value)
        deadline = self._buckets.deadline()
        if state is None:
            return
        old = state.get("from")
        if old is None:
            await self._finish(key, state, deadline)
            return
        bucket = self._buckets.of(old)
        get = command("GET", self._buckets.name(bucket, b"s:" + old))
        left = stateBetween(await self._buckets.ask(Ask(bucket, get), deadline) or b"")
        if left is not None and left.get("to") == key and left["token"] == state["token"]:
            await self._finish(old, left, deadline)
        elif isOld:
            await self._step(scripts.FORGET, deadline, key, state["token"])

    async def _finish(self, old: bytes, state: Mapping[str, bytes], deadline: float) -> None:
        record = decode(state["to"], state["record"], 0.0)
        assert record is not None
        await self.arrive(old, state["token"], record, state["record"], deadline)

    async def _step(
        self, script: scripts.Script, deadline: float, key: bytes, *args: bytes
    ) -> Record | Any:
        ask = self._buckets.script(self._buckets.of(key), script, key, *args)
        stamp, said = await self._buckets.ask(ask, deadline, safe=script is scripts.ARRIVE)
        return decode(key, said, float(stamp)) if said[:1] == b"\1" else said
