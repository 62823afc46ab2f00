"""
See the sessions of a store, and end them, while it is in use.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from math import inf
from typing import TYPE_CHECKING

from twsessions.core.delta import Change
from twsessions.core.record import Record
from twsessions.errors import NotSupported, SessionGone, StoreUnavailable
from twsessions.interfaces import ITERATE, PRINCIPALS, ISessionStore
from twsessions.ops.migrate import isMark

if TYPE_CHECKING:
    from twsessions.errors import SessionError

__all__ = ["endBefore", "endHandles", "endPrincipal", "pagesOf"]

_PAGE = 256  # sessions in one round trip

_CANNOT = {
    ITERATE: "this store cannot list its sessions (memcached cannot)",
    PRINCIPALS: "this store cannot find sessions by principal or handle (memcached cannot)",
}


async def pagesOf(
    store: ISessionStore, principal: str | None = None
) -> AsyncIterator[Sequence[Record]]:
    """
    The living sessions of a store, some at a time: up to 256 in the order of
    their keys, or all of one principal, the oldest first.

    What begins or is given a new id meanwhile may be missed, or be met twice.

    @param principal: whose; L{None}: everybody's.
    @raise NotSupported: the store cannot list sessions, or not by principal.
    @raise StoreUnavailable: it failed.
    """
    if principal is not None:
        _need(store, PRINCIPALS)
        yield await store.sessionsOf(principal)
        return
    _need(store, ITERATE)
    after: bytes | None = None
    while page := await store.iterate(after, _PAGE):
        after = page[-1].key
        if sessions := [record for record in page if not isMark(record)]:
            yield sessions


# Whatever ends sessions looks again until it finds none: one that is given a
# new id at that moment has not ended, and is found where it is now.


async def endHandles(
    store: ISessionStore,
    handles: Sequence[bytes],
    keep: Collection[bytes] = (),
    progress: Callable[[int], object] = lambda ended: None,
) -> list[bytes]:
    """
    End the sessions with these L{handles<Record.handle>}, for the reason
    C{"revoked"}.

    @param keep: handles, 16 bytes each, of sessions that are not to end.
    @param progress: called after every round trip, with how many it has ended.
    @return: those of C{handles} that no session had.
    @raise NotSupported: the store cannot find sessions by handle.
    @raise StoreUnavailable: it failed, twice in a row; call it again.
    """
    _need(store, PRINCIPALS)
    unknown = []
    for handle in dict.fromkeys(handles):
        record = await store.withHandle(handle)
        if record is None:
            unknown.append(handle)
        while record is not None and handle not in keep:
            await _end(store, [record], progress)
            record = await store.withHandle(handle)
    return unknown


async def endPrincipal(
    store: ISessionStore,
    principal: str,
    keep: Collection[bytes] = (),
    progress: Callable[[int], object] = lambda ended: None,
) -> None:
    """
    End the sessions of a principal, for the reason C{"revoked"}.

    @param keep: handles, 16 bytes each, of sessions that are not to end.
    @param progress: called after every round trip, with how many it has ended.
    @raise NotSupported: the store cannot find sessions by principal.
    @raise StoreUnavailable: it failed, twice in a row; call it again.
    """
    _need(store, PRINCIPALS)
    while records := _but(keep, await store.sessionsOf(principal)):
        for start in range(0, len(records), _PAGE):
            await _end(store, records[start : start + _PAGE], progress)


async def endBefore(
    store: ISessionStore,
    time: float = inf,
    keep: Collection[bytes] = (),
    progress: Callable[[int], object] = lambda ended: None,
) -> None:
    """
    End the sessions that were created before a time, for the reason
    C{"revoked"}.

    @param time: seconds since 1970, by the store's clock; C{inf}: all. Of
        those that begin after this does, some may end and some stay.
    @param keep: handles, 16 bytes each, of sessions that are not to end.
    @param progress: called after every round trip, with how many it has ended.
    @raise NotSupported: the store cannot list its sessions.
    @raise StoreUnavailable: it failed, twice in a row; call it again.
    """
    isOver = False
    while not isOver:
        isOver, began = True, inf
        async for page in pagesOf(store):
            began = min(began, page[0].asOf)
            if records := _but(keep, [record for record in page if record.created < time]):
                isOver = False
                await _end(store, records, progress)
        # On a busy site those that begin meanwhile would be found for ever.
        time = min(time, began)


def _need(store: ISessionStore, capability: str) -> None:
    if capability not in store.capabilities:
        raise NotSupported(_CANNOT[capability])


def _but(keep: Collection[bytes], records: list[Record]) -> list[Record]:
    return [record for record in records if record.handle not in keep] if keep else records


async def _end(
    store: ISessionStore, records: Sequence[Record], progress: Callable[[int], object]
) -> None:
    """
    End those that have neither ended nor moved yet.
    """
    changes = [Change(record.key, os.urandom(16), end="revoked") for record in records]
    for isAgain in (False, True):
        outcomes: Sequence[Record | SessionError]
        try:
            outcomes = await store.commit(changes)
        except StoreUnavailable as error:
            outcomes = [error] * len(changes)
        # What is gone when it is sent again has most likely ended by the first try.
        done = (Record, SessionGone) if isAgain else Record
        progress(sum(isinstance(outcome, done) for outcome in outcomes))
        failed = [
            (change, outcome)
            for change, outcome in zip(changes, outcomes, strict=True)
            if isinstance(outcome, Exception) and not isinstance(outcome, SessionGone)
        ]
        if not failed:
            return
        changes = [change for change, _ in failed]
    raise failed[0][1]
