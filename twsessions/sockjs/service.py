"""
All connections of one resource: found by their ids, ended in time.
"""

from __future__ import annotations

from collections.abc import Callable

from twsessions.core.deadlines import DeadlineQueue
from twsessions.sockjs.connection import SockJSConnection
from twsessions.sockjs.driver import Driver
from twsessions.sockjs.info import ConnectionInfo
from twsessions.sockjs.session import Close
from twsessions.sockjs.settings import SockJSSettings
from twsessions.sockjs.stats import Stats
from twsessions.web.alarm import SLICE, Alarm

__all__ = ["Full", "Service"]

_STEP = 64  # connections between two looks at the clock


class Full(Exception):
    """
    There are as many connections as there may be.
    """


class Service:
    """
    Connections, and the one task that sees to their deadlines.

    @ivar alarm: what wakes it.
    @ivar stats: what has happened.
    @ivar connections: the application's objects of all that have not gone yet.
    """

    def __init__(self, settings: SockJSSettings, alarm: Alarm) -> None:
        self.settings = settings
        self.limits = settings.limits
        self.stats = Stats()
        self.seconds = alarm.seconds
        self.alarm = alarm
        self._byId: dict[str, Driver] = {}
        self._all: set[Driver] = set()
        self._due = _queue()
        self._task = alarm.task(self._endDue)

    @property
    def connections(self) -> list[SockJSConnection]:
        """
        Those that are open.
        """
        return [driver.connection for driver in self._all if driver.isOpen]

    def make(
        self,
        maker: Callable[[], SockJSConnection],
        info: ConnectionInfo,
        id: str | None = None,
        owner: bytes | None = None,
    ) -> Driver:
        """
        A new connection, which nothing carries yet.

        @param maker: see L{makerOf<twsessions.sockjs.protocol.makerOf>}.
        @raise Full: there are too many.
        """
        if len(self._all) >= self.settings.maxSessions:
            raise Full
        connection = maker()
        driver = Driver(self, connection, info, self.stats.of(info.transport), id, owner)
        self._all.add(driver)
        if id is not None:
            self._byId[id] = driver
        return driver

    def find(self, id: str) -> Driver | None:
        """
        The connection that a client calls so.
        """
        return self._byId.get(id)

    def forget(self, driver: Driver) -> None:
        """
        Give its place away.
        """
        self._all.discard(driver)
        self._due.forget(driver)
        if not self._all:  # leave no delayed call behind
            self._due = _queue()
            self._task.at(None)
        if driver.id is not None and self._byId.get(driver.id) is driver:
            del self._byId[driver.id]

    def queue(self, driver: Driver) -> None:
        """
        See to it that its deadline is kept.
        """
        if driver in self._all:
            self._due.add(driver)
            self._task.by(self._due.next(self.seconds()))

    def wakeBy(self, alarm: Alarm) -> None:
        """
        Be woken by another alarm: a site that has stopped, and started again,
        has a new one.
        """
        self._task.at(None)
        self.alarm = alarm
        self._task = alarm.task(self._endDue)
        self._task.by(self._due.next(self.seconds()))

    def closeAll(self, why: Close) -> None:
        """
        Close every connection.
        """
        for driver in list(self._all):
            driver.end(why)

    def _endDue(self, now: float) -> float | None:
        started = self.seconds()
        for _ in range(256):
            for driver in self._due.due(now, _STEP):
                driver.due(now)
            again = self._due.next(now)
            if again is None or again > now or self.seconds() - started > SLICE:
                break
        return again


def _queue() -> DeadlineQueue[Driver]:
    return DeadlineQueue(lambda driver: driver.session.deadline)
