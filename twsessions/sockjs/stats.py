"""
How many connections and messages there are, for each transport.
"""

from __future__ import annotations

__all__ = ["Rate", "Stats", "TransportStats"]

_SPAN = 11  # the seconds that an average looks back on, and the present one


class Rate:
    """
    Something counted, and how often it happened lately.

    @ivar total: since the start.
    """

    __slots__ = ("_counts", "_second", "total")

    def __init__(self) -> None:
        self.total = 0
        self._second = 0
        self._counts: list[int] = [0] * _SPAN

    def add(self, now: float, count: int = 1) -> None:
        """
        It happened.
        """
        self.total += count
        second = int(now)
        if second != self._second:
            self._moveTo(second)
        self._counts[second % _SPAN] += count

    def perSecond(self, now: float) -> float:
        """
        The average of the last ten whole seconds; the present one is not over.
        """
        second = int(now)
        if second != self._second:
            self._moveTo(second)
        return (sum(self._counts) - self._counts[second % _SPAN]) / (_SPAN - 1)

    def _moveTo(self, second: int) -> None:
        for passed in range(self._second + 1, min(second, self._second + _SPAN) + 1):
            self._counts[passed % _SPAN] = 0
        if second - self._second >= _SPAN or second < self._second:
            self._counts = [0] * _SPAN
        self._second = second


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
