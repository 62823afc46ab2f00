"""
Copy living sessions from one store to another, while both are in use.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING

from twsessions.core.codec import decode, encode
from twsessions.core.delta import Birth, Change
from twsessions.core.record import Record
from twsessions.errors import Conflict, IdCollision, NotSupported, SessionGone, StoreUnavailable
from twsessions.interfaces import ITERATE, PRINCIPALS, ISessionStore

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Counts", "isMark", "migrate"]

_PAGE = 256  # sessions in one round trip


@dataclass
class Counts:
    """
    What a L{migrate} did.

    @ivar copied: sessions that the target did not have.
    @ivar updated: those it had, that were used in the source since.
    @ivar same: those it had, at least as new.
    @ivar ended: those that ended, in either store, while they were copied.
    @ivar done: how far it has come, from 0 to 1.
    """

    copied: int = 0
    updated: int = 0
    same: int = 0
    ended: int = 0
    done: float = 0.0

    @property
    def seen(self) -> int:
        """
        Sessions looked at.
        """
        return self.copied + self.updated + self.same + self.ended


async def migrate(
    source: ISessionStore,
    target: ISessionStore,
    name: str,
    progress: Callable[[Counts], object] = lambda counts: None,
) -> Counts:
    """
    Copy every living session, with its deadlines, principal, id and CSRF token;
    users notice nothing. What was copied before is brought up to date if it
    was last used in the source. So run it while the site is on the source,
    move the site, and run it again.

    Once it has come to its end, a session that is missing in the target has
    ended there and is not copied again, unless it was made since, or was used
    in the source when a copy that nobody used was over already.

    @param name: tells this source from others, in the mark that it leaves in
        the target.
    @param progress: called after every page of sessions.
    @return: the counts.
    @raise NotSupported: the source cannot list its sessions.
    @raise StoreUnavailable: one of the stores failed; run it again.
    """
    if ITERATE not in source.capabilities:
        raise NotSupported("the source cannot list its sessions (memcached cannot)")
    # What has fallen due is in the way of a new copy.
    while (await target.sweep(_PAGE)).more:
        pass
    mark = _Mark(target, name)
    before = await mark.read()
    began: float | None = None
    last = 0.0
    counts = Counts()
    after: bytes | None = None
    while page := await source.iterate(after, _PAGE):
        if began is None:
            began = page[0].asOf
            if before is None:
                await mark.write(dbegan=began)
        last = max(last, page[-1].asOf)
        await _copy([record for record in page if not isMark(record)], before, target, counts)
        after = page[-1].key
        # Keys are hashes, spread evenly: where one lies is how far it is.
        counts.done = int.from_bytes(after[:4], "big") / 2**32
        progress(counts)
    if began is not None:
        await mark.write(dwhole=began, dlast=last)
    counts.done = 1.0
    progress(counts)
    return counts


def isMark(record: Record) -> bool:
    """
    Whether it is no session, but what a L{migrate} has left in its target.
    """
    return record.seed == record.key[:16]


class _Mark:
    """
    A record in the target that says when a source was last copied whole. It
    stays: its end would be told to the site's listeners like a session's.
    """

    def __init__(self, target: ISessionStore, name: str) -> None:
        self.target = target
        self.key = sha256(b"twsessions migrate " + name.encode()).digest()

    async def read(self) -> tuple[float, float] | None:
        """
        The source's times at which the last whole run began and at which it
        read the last sessions.
        """
        [record] = await _load(self.target, [self.key])
        if record is None or "dwhole" not in record.fields:
            return None
        began, last = (float(str(decode(record.fields[name]))) for name in ("dwhole", "dlast"))
        return began, last

    async def write(self, **times: float) -> None:
        """
        Say that a run has begun, or has come to its end.
        """
        fields = {name: encode(time) for name, time in times.items()}
        outcomes = await self.target.commit(
            [
                Change(self.key, os.urandom(16), birth=Birth(self.key[:16]), idle=None),
                Change(self.key, os.urandom(16), set=fields),
            ]
        )
        if isinstance(outcomes[1], Exception):
            raise outcomes[1]


async def _load(target: ISessionStore, keys: Sequence[bytes]) -> list[Record | None]:
    found: Sequence[Record | StoreUnavailable | None] = await target.load(keys)
    records = []
    for record in found:
        if isinstance(record, StoreUnavailable):
            raise record  # of one server among several
        records.append(record)
    return records


async def _copy(
    page: Sequence[Record],
    before: tuple[float, float] | None,
    target: ISessionStore,
    counts: Counts,
) -> None:
    isNew = [before is None or _isNew(record, *before) for record in page]
    new = [record for record, flag in zip(page, isNew, strict=True) if flag]
    there = [record for record, flag in zip(page, isNew, strict=True) if not flag]
    outcomes = await target.commit([_birthOf(record) for record in new]) if new else ()
    for record, outcome in zip(new, outcomes, strict=True):
        if isinstance(outcome, IdCollision):
            there.append(record)
        elif isinstance(outcome, Exception):
            raise outcome
        else:
            counts.copied += 1
    if there:
        await _update(there, target, counts)


def _isNew(record: Record, began: float, last: float) -> bool:
    """
    Whether the target cannot have a session of the last run in its place: it
    was made since, or the source was in use when a copy would have idled out.
    """
    wasIdle = record.idle is not None and record.touched > last + record.idle + _DELAY
    return record.created > began or wasIdle


async def _update(records: Sequence[Record], target: ISessionStore, counts: Counts) -> None:
    newer = []
    copies = await _load(target, [record.key for record in records])
    for record, copy in zip(records, copies, strict=True):
        slack = _SAME
        if copy is None and PRINCIPALS in target.capabilities:
            # Either store may have given it a new id since. If both were used
            # at that time the source did: the copy comes after.
            copy, slack = await target.withHandle(record.handle), -_SAME
        if copy is None or copy.seed != record.seed:
            counts.ended += 1
        elif record.asOf - record.touched >= copy.asOf - copy.touched - slack:
            counts.same += 1
        else:
            newer.append(_changeTo(record, copy))
    for outcome in await target.commit(newer) if newer else ():
        if isinstance(outcome, SessionGone):
            counts.ended += 1
        elif isinstance(outcome, Conflict):
            counts.same += 1  # it was used in the target at this moment
        elif isinstance(outcome, Exception):
            raise outcome
        else:
            counts.updated += 1


_SAME = 1.0  # seconds by which two stores may see the same use at different times
_DELAY = 60.0  # seconds that a session may take from the one store into the other


def _birthOf(record: Record) -> Change:
    return Change(
        record.key,
        os.urandom(16),
        birth=Birth(
            record.seed,
            ago=record.asOf - record.created,
            absolute=record.absolute,
            secure=record.secure,
            address=record.address,
            userAgent=record.userAgent,
            epoch=record.epoch,
        ),
        set=record.fields,
        idle=record.idle,
        ownIdle=record.ownIdle,
        principal=record.principal,
        usedAgo=record.asOf - record.touched,
        uses=record.uses,
    )


def _changeTo(record: Record, copy: Record) -> Change:
    new, old = record.fields, copy.fields
    changed = {name: value for name, value in new.items() if old.get(name) != value}
    removed = frozenset(old) - frozenset(new)
    return Change(
        copy.key,
        os.urandom(16),
        newKey=None if copy.key == record.key else record.key,
        set=changed,
        remove=removed,
        expect={name: old.get(name) for name in (*changed, *removed)},
        idle=record.idle,
        ownIdle=record.ownIdle,
        principal=record.principal,
        login=record.epoch > copy.epoch,
        usedAgo=record.asOf - record.touched,
        uses=max(0, record.uses - copy.uses),
    )
