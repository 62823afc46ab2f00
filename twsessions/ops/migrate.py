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
    from collections.abc import AsyncIterator, Sequence

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
    progress: Callable[[Counts], object] = lambda counts: None,
) -> Counts:
    """
    Copy every living session, with its deadlines, principal, id and CSRF token;
    users notice nothing. What was copied before is brought up to date if it
    was last used in the source, and ended, for the reason C{"revoked"}, if it
    has ended there and nobody has used the copy. So run it while the site is
    on the source, move the site, and run it again.

    Once it has come to its end, a session that is missing in the target has
    ended there and is not copied again, unless it was made since, or was used
    in the source when a copy that nobody used was over already.

    A mark is left in either store, which is no session.

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
    mark = _Mark(target, await _nameOf(source))
    before = await mark.read()
    began: float | None = None
    last = 0.0
    counts = Counts()
    async for page in _pages(source):
        if began is None:
            began = page[0].asOf
        last = max(last, page[-1].asOf)
        await _copy(page, before, began, mark, counts)
        # Keys are hashes, spread evenly: where one lies is how far it is.
        counts.done = int.from_bytes(page[-1].key[:4], "big") / 2**32
        progress(counts)
    if began is not None:
        if before is None:
            # The new ids of those who logged in meanwhile may have been passed by.
            late = Counts()
            async for page in _pages(source):
                await _copy([one for one in page if _isLate(one, began)], None, began, mark, late)
                progress(counts)
            counts.copied += late.copied
        await mark.write(began, last)
        canFind = {ITERATE, PRINCIPALS} <= target.capabilities & source.capabilities
        if before is not None and canFind:
            await _endCopies(source, mark, counts, progress)
    counts.done = 1.0
    progress(counts)
    return counts


def isMark(record: Record) -> bool:
    """
    Whether it is no session, but what a L{migrate} has left.
    """
    return record.seed == record.key[:16]


async def _nameOf(source: ISessionStore) -> bytes:
    """
    What tells a store from others, and is lost with its sessions. Its URL does
    not: each host may have a file of its own, under the same name.
    """
    key = sha256(b"twsessions migrate").digest()
    [record] = await _load(source, [key])
    if record is None:
        await source.commit([Change(key, os.urandom(16), birth=Birth(key[:16]), idle=None)])
        [record] = await _load(source, [key])
        if record is None:
            raise StoreUnavailable("the source did not store what it is to be known by")
    return record.token


class _Mark:
    """
    A record in the target that says when a source was last copied whole. It
    stays: its end would be told to the site's listeners like a session's.

    @ivar target: where it is.
    """

    def __init__(self, target: ISessionStore, name: bytes) -> None:
        """
        @param name: of the source.
        """
        self.target = target
        self.key = sha256(b"twsessions migrate from " + name).digest()

    def token(self) -> bytes:
        """
        For a change that makes a session as it is in the source.
        """
        random = os.urandom(8)
        return random + sha256(self.key + random).digest()[:8]

    def isUnused(self, copy: Record) -> bool:
        """
        Whether the last change of a session in the target had a L{token}.
        """
        return copy.token[8:] == sha256(self.key + copy.token[:8]).digest()[:8]

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

    async def write(self, began: float, last: float) -> None:
        """
        Say that a run has come to its end.
        """
        fields = {"dwhole": encode(began), "dlast": encode(last)}
        outcomes = await self.target.commit(
            [
                Change(self.key, os.urandom(16), birth=Birth(self.key[:16]), idle=None),
                Change(self.key, os.urandom(16), set=fields),
            ]
        )
        if isinstance(outcomes[1], Exception):
            raise outcomes[1]


async def _pages(store: ISessionStore) -> AsyncIterator[list[Record]]:
    after: bytes | None = None
    while page := await store.iterate(after, _PAGE):
        yield page
        after = page[-1].key


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
    began: float,
    mark: _Mark,
    counts: Counts,
) -> None:
    new: list[Record] = []
    there: list[Record] = []
    byHandle = PRINCIPALS in mark.target.capabilities
    for record in page:
        if isMark(record):
            continue
        isNew = before is None or _isNew(record, *before)
        if isNew and byHandle and _isLate(record, began):
            # It may have been copied under the id that it had then.
            isNew = await mark.target.withHandle(record.handle) is None
        (new if isNew else there).append(record)
    births = [_birthOf(record, mark.token()) for record in new]
    outcomes = await mark.target.commit(births) if births else ()
    for record, outcome in zip(new, outcomes, strict=True):
        if isinstance(outcome, IdCollision):
            there.append(record)
        elif isinstance(outcome, Exception):
            raise outcome
        else:
            counts.copied += 1
    if there:
        await _update(there, mark, counts)


def _isNew(record: Record, began: float, last: float) -> bool:
    """
    Whether the target cannot have a session of the last run in its place: it
    was made since, or the source was in use when a copy would have idled out.
    """
    wasIdle = record.idle is not None and record.touched > last + record.idle + _DELAY
    return record.created > began or wasIdle


def _isLate(record: Record, began: float) -> bool:
    """
    Whether a session may have been given a new id since a run has begun.
    """
    return record.touched > began - _DELAY


async def _update(records: Sequence[Record], mark: _Mark, counts: Counts) -> None:
    target = mark.target
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
        elif record.asOf - record.touched >= copy.asOf - copy.touched - slack and not (
            mark.isUnused(copy) and _content(record) != _content(copy)
        ):
            counts.same += 1
        else:
            newer.append(_changeTo(record, copy, mark.token()))
    for outcome in await target.commit(newer) if newer else ():
        if isinstance(outcome, SessionGone):
            counts.ended += 1
        elif isinstance(outcome, Conflict):
            counts.same += 1  # it was used in the target at this moment
        elif isinstance(outcome, Exception):
            raise outcome
        else:
            counts.updated += 1


async def _endCopies(
    source: ISessionStore, mark: _Mark, counts: Counts, progress: Callable[[Counts], object]
) -> None:
    """
    End the copies that nobody has used, of what has ended in the source.
    """
    async for page in _pages(mark.target):
        # What falls due soon does that by itself, and for its own reason.
        copies = [
            record
            for record in page
            if mark.isUnused(record) and record.deadline > record.asOf + _DELAY
        ]
        records = await _load(source, [copy.key for copy in copies]) if copies else ()
        ends = []
        for copy, record in zip(copies, records, strict=True):
            if record is None:
                moved = await source.withHandle(copy.handle)
                if moved is None:
                    ends.append(Change(copy.key, os.urandom(16), end="revoked"))
                else:
                    await _update([moved], mark, counts)
        for outcome in await mark.target.commit(ends) if ends else ():
            if isinstance(outcome, StoreUnavailable):
                raise outcome
            counts.ended += 1
        progress(counts)


def _content(record: Record) -> object:
    return record.fields, record.principal, record.epoch, record.idle


_SAME = 1.0  # seconds by which two stores may see the same use at different times
_DELAY = 60.0  # seconds that a session may take from the one store into the other


def _birthOf(record: Record, token: bytes) -> Change:
    return Change(
        record.key,
        token,
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


def _changeTo(record: Record, copy: Record, token: bytes) -> Change:
    new, old = record.fields, copy.fields
    changed = {name: value for name, value in new.items() if old.get(name) != value}
    removed = frozenset(old) - frozenset(new)
    return Change(
        copy.key,
        token,
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
