"""
How many connections and messages there are, for each transport.
"""

from __future__ import annotations

from collections import deque

__all__ = ["Rate", "Stats", "TransportStats"]

_SPAN = 10  # seconds that an average looks back


class Rate:
    """
    Something counted, and how often it happened lately.

    @ivar total: since the start.
    """

    __slots__ = ("_ends", "_past", "total")

    def __init__(self) -> None:
        self.total = 0
        self._ends = 0.0  # when the present second does
        self._past = deque([0], maxlen=_SPAN + 1)  # totals at the ends of those before

    def add(self, now: float, count: int = 1) -> None:
        """
        It happened.
        """
        if now >= self._ends:
            self._moveTo(now)
        self.total += count

    def perSecond(self, now: float) -> float:
        """
        The average of the last ten whole seconds.
        """
        if now >= self._ends:
            self._moveTo(now)
        return (self._past[-1] - self._past[0]) / _SPAN

    def _moveTo(self, now: float) -> None:
        passed = int(now) + 1 - int(self._ends)
        self._past.extend([self.total] * min(passed, _SPAN + 1))
        self._ends = int(now) + 1.0


class TransportStats:
    """
    Of one transport.

    @ivar current: connections that are open.
    @ivar opened: connections.
    @ivar received: messages of clients.
    @ivar sent: messages to clients.
    """

    __slots__ = ("current", "opened", "received", "sent")

    def __init__(self) -> None:
        self.current = 0
        self.opened = Rate()
        self.received = Rate()
        self.sent = Rate()

    def describe(self, now: float) -> dict[str, float]:
        """
        Totals, and averages per second of the last ten seconds.
        """
        return {
            "current": self.current,
            "opened": self.opened.total,
            "openedPerSecond": self.opened.perSecond(now),
            "received": self.received.total,
            "receivedPerSecond": self.received.perSecond(now),
            "sent": self.sent.total,
            "sentPerSecond": self.sent.perSecond(now),
        }


class Stats:
    """
    Of all transports. A connection counts for the one that opened it.
    """

    def __init__(self) -> None:
        self._transports: dict[str, TransportStats] = {}

    def of(self, transport: str) -> TransportStats:
        """
        Those of one transport.
        """
        stats = self._transports.get(transport)
        if stats is None:
            stats = self._transports[transport] = TransportStats()
        return stats

    def describe(self, now: float) -> dict[str, dict[str, float]]:
        """
        All of it, by the transports' names.
        """
        return {name: stats.describe(now) for name, stats in sorted(self._transports.items())}
