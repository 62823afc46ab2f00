"""
One delayed call for all that a site has to do later.

Stock Twisted has a delayed call for each session: about 1 kB each, and a
reactor that stalls when many fall due. Here a site has one, set to whatever
of its tasks comes first.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

__all__ = ["Alarm", "Task"]

SLICE = 0.004
"""Seconds of work after which a task should return and ask to be called again."""


class Task:
    """
    Something to be done later; made by L{Alarm.task}.

    @ivar when: the reactor's time at which it is due, or L{None}.
    """

    __slots__ = ("_alarm", "run", "when")

    def __init__(self, alarm: Alarm, run: Callable[[float], float | None]) -> None:
        self._alarm = alarm
        self.run = run
        self.when: float | None = None

    def at(self, when: float | None) -> None:
        """
        Do it then, instead of at any other time; L{None}: not at all.
        """
        self.when = when
        self._alarm._set()

    def by(self, when: float | None) -> None:
        """
        Do it then, if it would not be done earlier anyway.
        """
        if when is not None and (self.when is None or when < self.when):
            self.when = when
            self._alarm._set()


class Alarm:
    """
    Runs tasks when they are due.

    @ivar seconds: the reactor's clock.
    """

    _log = Logger()

    def __init__(self, reactor: IReactorTime) -> None:
        self._reactor = reactor
        self.seconds: Callable[[], float] = reactor.seconds
        self._tasks: list[Task] = []
        self._call: IDelayedCall | None = None
        self._callAt = 0.0
        self._ringing = False
        self._stopped = False

    def task(self, run: Callable[[float], float | None]) -> Task:
        """
        A task that is not due yet.

        @param run: called with the reactor's time; returns when it wants to be
            called next (now or earlier: as soon as the reactor has had a
            turn), or L{None}. It must not work for longer than L{SLICE}.
        """
        task = Task(self, run)
        self._tasks.append(task)
        return task

    def start(self) -> None:
        """
        Run tasks, after a L{stop}.
        """
        self._stopped = False
        self._set()

    def stop(self) -> None:
        """
        Leave no delayed call behind; tasks keep their times.
        """
        self._stopped = True
        self._set()

    def _set(self) -> None:
        if self._ringing:
            return
        first = None
        if not self._stopped:
            for task in self._tasks:
                if task.when is not None and (first is None or task.when < first):
                    first = task.when
        call = self._call
        if first is None:
            if call is not None:
                self._call = None
                call.cancel()
        elif call is None:
            self._callAt = first
            self._call = self._reactor.callLater(max(0.0, first - self.seconds()), self._ring)
        elif first < self._callAt:
            # A call that is too early is left: it costs one idle turn, where
            # moving it each time would cost every session.
            self._callAt = first
            call.reset(max(0.0, first - self.seconds()))

    def _ring(self) -> None:
        self._call = None
        self._ringing = True
        try:
            for task in self._tasks:
                now = self.seconds()
                if task.when is not None and task.when <= now:
                    task.when = None
                    try:
                        again = task.run(now)
                    except Exception:
                        self._log.failure("a task failed; it is tried again in a second")
                        again = now + 1.0
                    if again is not None and (task.when is None or again < task.when):
                        task.when = again
        finally:
            self._ringing = False
            self._set()
