"""
Every error the package raises of its own, in one tree.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = [
    "Conflict",
    "CorruptRecord",
    "IdCollision",
    "LeaseTimeout",
    "NeedsSessionSite",
    "NewerFormat",
    "NotSupported",
    "SessionError",
    "SessionGone",
    "SessionTooLarge",
    "StoreError",
    "StoreUnavailable",
    "TooLateForSession",
    "TooManySessions",
]

_LONGEST = 100  # characters of a name that an error message repeats


class SessionError(Exception):
    """
    The base of all errors here.
    """


class SessionGone(SessionError):
    """
    The session has ended (or its id was rotated away) and nothing can be
    written to it any more.
    """


class SessionTooLarge(SessionError):
    """
    The session's data is over the site's C{maxSessionBytes}; nothing was
    written.

    @ivar size: bytes the encoded data would take.
    @ivar limit: bytes allowed.
    @ivar biggest: the largest keys, each with its size in bytes, largest
        first.
    """

    def __init__(self, size: int, limit: int, biggest: Sequence[tuple[str, int]]) -> None:
        self.size = size
        self.limit = limit
        self.biggest = tuple(biggest)
        named = ", ".join(f"{_short(key)!r} {bytes_} bytes" for key, bytes_ in self.biggest)
        super().__init__(
            f"the session's data takes {size} bytes, over the limit of {limit}"
            f" (largest: {named}); nothing was stored"
        )


def _short(key: str) -> str:
    return key if len(key) <= _LONGEST else key[:_LONGEST] + "\u2026"


class TooLateForSession(SessionError):
    """
    A new session was asked for when the response's headers had already left,
    so its cookie could not be sent any more.
    """


class TooManySessions(SessionError):
    """
    The principal already has as many sessions as the site allows.
    """


class NeedsSessionSite(SessionError):
    """
    The operation needs a L{SessionSite<twsessions.SessionSite>} or
    L{SessionResource<twsessions.SessionResource>}: a stock
    L{twisted.web.server.Site} offers no hook for it.
    """


class LeaseTimeout(SessionError):
    """
    C{exclusive()} could not get the session in time, or lost it.
    """


class StoreError(SessionError):
    """
    The base of what a store raises.
    """


class StoreUnavailable(StoreError):
    """
    The store could not be reached, did not answer in time, or refused for a
    reason outside the session: a full disk, a missing permission.
    """


class Conflict(StoreError):
    """
    A change that was to apply to certain values only found others.
    """


class IdCollision(StoreError):
    """
    A session was to be created under a key that is already taken.
    """


class NotSupported(StoreError):
    """
    The store declares that it cannot do this.
    """


class CorruptRecord(StoreError):
    """
    Stored bytes are not a session's record or value.
    """


class NewerFormat(StoreError):
    """
    A record was written by a newer release; it is left as it is.
    """
