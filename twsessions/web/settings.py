"""
What a site's owner can set about its sessions.
"""

from __future__ import annotations

from dataclasses import dataclass

from twsessions.core.lifecycle import checkTimeout

__all__ = ["Settings"]


@dataclass(frozen=True)
class Settings:
    """
    Checked when made, so that a wrong one is an error where it is written.

    @ivar createOn: C{"access"}: C{getSession()} sets the cookie, as Twisted does;
        C{"write"}: no cookie, no record and no timer until something is stored.
    @ivar storeTimeout: seconds the store has for an answer.
    @ivar maxSessionBytes: of a session's encoded data; L{None}: no limit.
    @ivar maxSessionsPerPrincipal: living at the same time; L{None}: no limit.
    @ivar tooMany: what a login over that does. C{"endOldest"}: the principal's
        oldest sessions end. C{"refuse"}: it fails. (Logins that come in the same
        moment may all be let in.)
    @ivar sweepInterval: seconds between two looks for sessions that fell due.
    @ivar leaseDuration: seconds a process has to deliver a claimed end, and a
        holder of C{exclusive()} to say that it is alive.
    @ivar commit: C{"before-response"}: changes are stored before the response's
        first byte leaves. The only way there is.
    """

    createOn: str = "access"
    storeTimeout: float = 2.0
    maxSessionBytes: int | None = 64 * 1024
    maxSessionsPerPrincipal: int | None = None
    tooMany: str = "endOldest"
    sweepInterval: float = 1.0
    leaseDuration: float = 30.0
    commit: str = "before-response"

    def __post_init__(self) -> None:
        if self.createOn not in ("access", "write"):
            raise ValueError(f"createOn is 'access' or 'write', not {self.createOn!r}")
        if self.tooMany not in ("endOldest", "refuse"):
            raise ValueError(f"tooMany is 'endOldest' or 'refuse', not {self.tooMany!r}")
        if self.commit != "before-response":
            raise ValueError(f"commit can only be 'before-response', not {self.commit!r}")
        for name in ("storeTimeout", "sweepInterval", "leaseDuration"):
            if checkTimeout(getattr(self, name), name) is None:
                raise ValueError(f"{name} must be a number of seconds, not None")
        for name in ("maxSessionBytes", "maxSessionsPerPrincipal"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise ValueError(f"{name} must be a whole number of at least 1, not {value!r}")
