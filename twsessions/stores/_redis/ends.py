"""
Sessions that fell due, and their ends as they are heard of.
"""

from __future__ import annotations

from secrets import token_bytes
from typing import Final

from twisted.logger import Logger

from twsessions.errors import CorruptRecord, NewerFormat, StoreUnavailable
from twsessions.interfaces import Ended, Swept, Verdict
from twsessions.stores._redis import scripts
from twsessions.stores._redis.buckets import Buckets
from twsessions.stores._redis.moves import Moves
from twsessions.stores._redis.record import claimOf, decodeEnd, encodeVerdict, timeOf
from twsessions.stores._redis.repairs import Repairs
from twsessions.stores._redis.route import Ask
from twsessions.stores._redis.underway import Underway
from twsessions.stores._redis.wire import command
from twsessions.stores._several import unlessAllFailed

__all__ = ["Ends"]

_TIME: Final = command("TIME")
_SLICE: Final = 250  # sessions that one script sweeps: a few milliseconds
_LATER: Final = 3600.0  # until an end that only a newer release can read is tried again


class Ends:
    """
    Sweeps, and hands out ends under a lease.
    """

    _log = Logger()

    def __init__(
        self, buckets: Buckets, moves: Moves, repairs: Repairs, underway: Underway
    ) -> None:
        self._buckets = buckets
        self._moves = moves
        self._repairs = repairs
        self._underway = underway

    async def _heads(self, name: bytes, deadline: float) -> tuple[dict[int, float], bool]:
        """
        The first of a ZSET of times, in each bucket.

        @return: seconds until then, by bucket, and whether that is all.
        @raise StoreUnavailable: no bucket can be reached.
        """
        buckets = self._buckets
        asks = [
            Ask(bucket, command("ZRANGE", buckets.name(bucket, name), 0, 0, "WITHSCORES"))
            for bucket in range(buckets.count)
        ]
        await buckets.run(asks, deadline, head=_TIME)
        unlessAllFailed([ask.reply for ask in asks])
        heads = {}
        whole = True
        for ask in asks:
            if isinstance(ask.reply, StoreUnavailable):
                whole = False
            elif ask.reply:
                heads[ask.bucket] = float(ask.reply[1]) - timeOf(ask.head, self._buckets.skew())
        return heads, whole

    async def sweep(self, limit: int) -> Swept:
        """
        See L{ISessionStore.sweep}.
        """
        deadline = self._buckets.deadline()
        # What is left when half of the time is over is for the next call.
        half = deadline - self._buckets.route.timeout / 2
        heads, whole = await self._heads(b"due", deadline)
        ended = looked = 0
        while due := sorted((wait, bucket) for bucket, wait in heads.items() if wait <= 0):
            if (
                ended >= limit
                or looked >= max(limit, _SLICE)
                or self._buckets.route.reactor.seconds() >= half
            ):
                return Swept(ended, True, 0.0)
            shares = _shares([bucket for _, bucket in due], limit - ended, _SLICE)
            asks = [
                self._buckets.ending(bucket, scripts.SWEEP, b"%d" % share)
                for bucket, share in shares.items()
            ]
            await self._buckets.run(asks, deadline)
            unlessAllFailed([ask.reply for ask in asks])
            for ask in asks:
                heads.pop(ask.bucket)
                if isinstance(ask.reply, StoreUnavailable):
                    whole = False
                    continue
                stamp, aside, stale, dead, seen, between, following = ask.reply
                ended += dead
                looked += seen
                if following:
                    heads[ask.bucket] = float(following) - float(stamp)
                self._repairs.tidy(aside, stale)
                for key, value in zip(between[::2], between[1::2], strict=True):
                    self._underway.later(self._moves.goOn(key, value, isOld=True))
        wait = min(heads.values(), default=None)
        if not whole:
            wait = min([1.0, *heads.values()])  # whatever is due elsewhere
        return Swept(ended, False, wait)

    async def listen(self) -> None:
        """
        See L{ISessionStore.listen}.
        """
        asks = [
            self._buckets.script(bucket, scripts.LISTEN) for bucket in range(self._buckets.count)
        ]
        await self._buckets.all(asks, self._buckets.deadline())

    async def claim(self, limit: int, lease: float) -> list[Ended]:
        """
        See L{ISessionStore.claim}.
        """
        deadline = self._buckets.deadline()
        heads, _ = await self._heads(b"heard", deadline)
        ends: list[Ended] = []
        while len(ends) < limit:
            due = sorted((wait, bucket) for bucket, wait in heads.items() if wait <= 0)
            shares = _shares([bucket for _, bucket in due], limit - len(ends), limit)
            asks = [
                self._buckets.script(
                    bucket, scripts.CLAIM, b"%d" % share, b"%r" % lease,
                    bytes((bucket,)) + token_bytes(16),
                )
                for bucket, share in shares.items()
            ]  # fmt: skip
            if not asks:
                break
            await self._buckets.run(asks, deadline)
            for ask in asks:
                if isinstance(ask.reply, StoreUnavailable):
                    del heads[ask.bucket]
                    continue
                stamp, *found = ask.reply
                if len(found) < 2 * shares[ask.bucket]:
                    del heads[ask.bucket]
                ends += self._decodeEnds(found, float(stamp))
        return sorted(ends, key=lambda end: end.ended)

    def _decodeEnds(self, found: list[bytes], now: float) -> list[Ended]:
        ends = []
        for id_, packed in zip(found[::2], found[1::2], strict=True):
            try:
                ends.append(decodeEnd(id_, packed, now))
            except CorruptRecord:
                self._log.error("The end of a session is corrupt and will not be heard of")
                self._underway.later(self._giveBack(id_, packed, dead=True))
            except NewerFormat:
                self._underway.later(self._giveBack(id_, packed, dead=False))
        return ends

    async def _giveBack(self, id_: bytes, packed: bytes, dead: bool) -> None:
        claim = claimOf(packed)
        if claim:
            await self.settle([Verdict(id_, claim, retryIn=_LATER, dead=dead)])

    async def settle(self, verdicts: list[Verdict]) -> list[bool]:
        """
        See L{ISessionStore.settle}.
        """
        byBucket: dict[int, list[int]] = {}
        for at, verdict in enumerate(verdicts):
            # A claim says where it was made.
            bucket = self._buckets.of(verdict.claim or b"\0")
            byBucket.setdefault(bucket, []).append(at)
        asks = [
            self._buckets.script(
                bucket, scripts.SETTLE, *[encodeVerdict(verdicts[at]) for at in places]
            )
            for bucket, places in byBucket.items()
        ]
        replies = await self._buckets.all(asks, self._buckets.deadline())
        held = [False] * len(verdicts)
        for places, reply in zip(byBucket.values(), replies, strict=True):
            for at, one in zip(places, reply, strict=True):
                held[at] = one == 1
        return held


def _shares(buckets: list[int], total: int, most: int) -> dict[int, int]:
    """
    Divide work among buckets, those named first before the others.
    """
    buckets = buckets[:total]
    return {bucket: min(most, total // len(buckets)) for bucket in buckets}
