"""
The buckets that sessions are in: what their keys are called and how they are
asked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar
from zlib import crc32

from twsessions.errors import StoreUnavailable
from twsessions.stores._redis.route import Ask, Route
from twsessions.stores._redis.scripts import Script
from twsessions.stores._redis.wire import command
from twsessions.stores._several import unlessAllFailed

__all__ = ["Buckets"]

T = TypeVar("T")


class Buckets:
    """
    All buckets of one store: one, or 256 on a cluster, in the order of the
    keys in them.

    @ivar count: how many there are.
    @ivar areOne: whether everything is in one.
    @ivar channel: where it is said which sessions have ended.
    """

    def __init__(
        self, route: Route, prefix: bytes, replicas: int, skew: Callable[[], float]
    ) -> None:
        """
        @param replicas: a write that is to be L{safe<run>} has to be known to
            so many.
        @param skew: seconds to add to the server's time.
        """
        self.route = route
        self.skew = skew
        self._bases = [b"%b{%b}" % (prefix, tag) for tag in route.tags]
        self.count = len(self._bases)
        self.areOne = self.count == 1
        self.channel = prefix + b":ended"
        self._replicas = replicas
        self._wait = b""
        if replicas:
            self._wait = command("WAIT", replicas, int(route.timeout * 500))

    def deadline(self) -> float:
        """
        When a call that is made now has to have its answer.
        """
        return self.route.reactor.seconds() + self.route.timeout  # type: ignore[no-any-return]

    def of(self, key: bytes) -> int:
        """
        Where a session is, or what is known of a handle.
        """
        return 0 if self.areOne else key[0]

    def ofName(self, name: bytes) -> int:
        """
        Where that is which has any name: a principal, a lease.
        """
        return 0 if self.areOne else crc32(name) % self.count

    def name(self, bucket: int, name: bytes) -> bytes:
        """
        What the server calls it.
        """
        return self._bases[bucket] + name

    def script(self, bucket: int, script: Script, *args: bytes) -> Ask:
        """
        A script to be run.
        """
        base = self._bases[bucket]
        # While a slot is being moved to another node, one that names two keys,
        # one of which there never is, is refused. It is the only safe answer:
        # half of the bucket is elsewhere.
        keys = (base,) if self.areOne else (base, base + b"due")
        return Ask.script(bucket, script, keys, (b"%r" % self.skew(), *args))

    def ending(self, bucket: int, script: Script, *args: bytes) -> Ask:
        """
        A script to be run that may end sessions.
        """
        indexed = b"1" if self.areOne else b"0"
        return self.script(bucket, script, self.channel, indexed, *args)

    def unlessGone(self, outcomes: list[T]) -> list[T]:
        """
        What there is for each session, unless there is no server that works.

        @raise StoreUnavailable: what all of them have failed with.
        """
        isGone = self.areOne or all(server.isDown for server in self.route.servers())
        return unlessAllFailed(outcomes) if isGone else outcomes

    async def run(
        self, asks: Sequence[Ask], deadline: float, head: bytes = b"", safe: bool = False
    ) -> None:
        """
        See L{Route.run}.

        @param safe: the replicas must have it, or it fails.
        """
        wait = self._wait if safe else b""
        await self.route.run(asks, deadline, head, wait)
        if not wait:
            return
        for ask in asks:
            if not isinstance(ask.reply, StoreUnavailable) and not (
                isinstance(ask.tail, int) and ask.tail >= self._replicas
            ):
                ask.reply = StoreUnavailable(
                    f"fewer than {self._replicas} replicas of the Redis server have it in time"
                )

    async def ask(self, ask: Ask, deadline: float, safe: bool = False) -> Any:
        """
        Have one reply.

        @raise StoreUnavailable: there is none.
        """
        await self.run((ask,), deadline, safe=safe)
        if isinstance(ask.reply, StoreUnavailable):
            raise StoreUnavailable(*ask.reply.args)
        return ask.reply

    async def all(self, asks: Sequence[Ask], deadline: float) -> list[Any]:
        """
        Have all replies.

        @raise StoreUnavailable: one is missing.
        """
        await self.run(asks, deadline)
        for ask in asks:
            if isinstance(ask.reply, StoreUnavailable):
                raise StoreUnavailable(*ask.reply.args)
        return [ask.reply for ask in asks]
