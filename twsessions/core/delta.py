"""
One change to one session, and what a stored record is after it.

Every store applies a L{Change} by the rules of L{apply}: the memory and
SQLite stores call it, a store with scripts of its own restates it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

from twsessions.core.lifecycle import REASONS
from twsessions.core.record import Record
from twsessions.errors import Conflict, IdCollision, SessionGone

__all__ = ["COMPONENT", "DATA", "FLASH", "UNSET", "Birth", "Change", "Unset", "apply", "isAlive"]

DATA: Final = "d"
"""First character of the names of the session's own keys."""

FLASH: Final = "f"
"""First character of the names of one-shot values."""

COMPONENT: Final = "c"
"""First character of the names of persistent components."""


class Unset:
    """
    The type of L{UNSET}, which stands for "as it was".
    """

    def __repr__(self) -> str:
        return "UNSET"


UNSET: Final = Unset()
_NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})


@dataclass(slots=True)
class Birth:
    """
    What is said of a session once, when it is first stored.

    @ivar seed: see L{Record.seed}.
    @ivar ago: seconds since the session was made, by the clock of whoever
        made it: C{created} is the store's now less this.
    @ivar absolute: see L{Record.absolute}.
    @ivar epoch: logins so far; of a session that comes from another store.
    """

    seed: bytes = field(repr=False)
    ago: float = 0.0
    absolute: float | None = None
    secure: bool = False
    address: str | None = None
    userAgent: str | None = None
    epoch: int = 0


@dataclass(slots=True)
class Change:
    """
    What one commit does to one session: all of it or nothing.

    @ivar key: the session's key as the writer knows it.
    @ivar token: bytes unique to this change; the same change sent again, after
        an unknown outcome, carries the same token and is applied once.
    @ivar birth: not L{None}: the session must not exist yet. L{None}: it must
        exist and be alive.
    @ivar set: encoded values to store, by field name.
    @ivar remove: field names to drop. Names in neither stay as they are.
    @ivar expect: what fields must be before: these bytes, or C{None} for not
        there. If one is not, nothing of the change is done.
    @ivar idle: a new idle timeout in seconds, or L{None} for none.
    @ivar ownIdle: see L{Record.ownIdle}.
    @ivar principal: whom the session is bound to from now on.
    @ivar login: the epoch rises by one.
    @ivar newKey: the session moves to this key; the old one is dead.
    @ivar usedAgo: seconds since the session was last used; C{touched} becomes
        the store's now less this, if that is later. L{None}: not a use.
    @ivar uses: requests to add.
    @ivar end: one of L{REASONS}: the session ends, with this change applied.
    """

    key: bytes = field(repr=False)
    token: bytes = field(repr=False)
    birth: Birth | None = None
    set: Mapping[str, bytes] = field(default_factory=lambda: _NOTHING, repr=False)
    remove: frozenset[str] = frozenset()
    expect: Mapping[str, bytes | None] = field(default_factory=lambda: _NOTHING, repr=False)
    idle: float | None | Unset = UNSET
    ownIdle: bool | Unset = UNSET
    principal: str | None | Unset = field(default=UNSET, repr=False)
    login: bool = False
    newKey: bytes | None = field(default=None, repr=False)
    usedAgo: float | None = None
    uses: int = 0
    end: str | None = None

    def __post_init__(self) -> None:
        if self.end is not None and self.end not in REASONS:
            raise ValueError(f"no such reason to end a session: {self.end!r}")


def isAlive(record: Record | None, now: float) -> bool:
    """
    Whether a record can be loaded at C{now}; one whose deadline is C{now}
    cannot.
    """
    return record is not None and now < record.deadline


def apply(record: Record | None, change: Change, now: float) -> Record:
    """
    The record after a change.

    @param record: what is stored under C{change.key}, or L{None}.
    @param now: the store's time, seconds.
    @return: a new record. Its key is C{change.newKey} if there is one. If
        C{change.end} is set it is the session's last state, to be removed.
    @raise SessionGone: there is no living session to change.
    @raise IdCollision: the session was to be new and the key is taken.
    @raise Conflict: a field is not what C{change.expect} says.
    """
    if record is not None and change.token == record.token:
        return record.seenAt(now)  # the same change again: it has been done
    if change.birth is not None:
        if record is not None:
            raise IdCollision("a session exists under this key already")
        birth = change.birth
        born = now - birth.ago
        record = Record(
            key=change.key,
            seed=birth.seed,
            created=born,
            touched=born,
            absolute=birth.absolute,
            version=0,
            secure=birth.secure,
            address=birth.address,
            userAgent=birth.userAgent,
            epoch=birth.epoch,
        )
    elif record is None or not isAlive(record, now):
        raise SessionGone("the session has ended")
    fields = record.fields
    for name, value in change.expect.items():
        if fields.get(name) != value:
            raise Conflict("a value is not what it was to be")
    if change.set or change.remove:
        merged = dict(fields)
        for name in change.remove:
            merged.pop(name, None)
        merged.update(change.set)
        fields = merged
    touched = record.touched
    if change.usedAgo is not None:
        # Monotonic: a slow writer never takes time away from a later use.
        touched = max(touched, now - change.usedAgo)
    idle, ownIdle, principal = change.idle, change.ownIdle, change.principal
    return Record(  # by position: by name it takes twice as long
        change.key if change.newKey is None else change.newKey,
        record.seed,
        record.created,
        touched,
        record.idle if isinstance(idle, Unset) else idle,
        record.absolute,
        fields,
        record.version + 1,
        record.uses + change.uses,
        record.principal if isinstance(principal, Unset) else principal,
        record.epoch + change.login,
        record.ownIdle if isinstance(ownIdle, Unset) else ownIdle,
        record.secure,
        record.address,
        record.userAgent,
        change.token,
        now,
    )
