"""
A blocking driver on a worker that is handed in.

A store with a driver that blocks is given a L{Worker}; it does not know, and
need not, whether there is a thread behind it.
"""

from __future__ import annotations

from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread
from typing import Any, ParamSpec, Protocol, TypeVar

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IReactorFromThreads

from twsessions.errors import StoreUnavailable

__all__ = ["InlineWorker", "ThreadWorker", "Worker"]

P = ParamSpec("P")
T = TypeVar("T")
_Job = tuple[Deferred[Any], Callable[..., Any], tuple[Any, ...], dict[str, Any]]


class Worker(Protocol):
    """
    Does one thing after the other, in the order asked for.
    """

    def do(self, f: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        """
        Call C{f}.

        @return: fires, in the reactor's thread, with what C{f} returns or
            raises; fails with L{StoreUnavailable} after L{stop}.
        """

    def stop(self) -> Deferred[None]:
        """
        Take nothing more; fires when all that was asked for is done.
        """


class InlineWorker:
    """
    Calls at once, in the caller's thread: for tests on a
    L{Clock<twisted.internet.task.Clock>} and for reactors without threads.
    """

    _stopped = False

    def do(self, f: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        """
        See L{Worker.do}.
        """
        if self._stopped:
            return fail(_stoppedError())
        try:
            return succeed(f(*args, **kwargs))
        except Exception as error:  # noqa: BLE001 (it goes where the result would)
            return fail(error)

    def stop(self) -> Deferred[None]:
        """
        See L{Worker.stop}.
        """
        self._stopped = True
        return succeed(None)


class ThreadWorker:
    """
    One thread of its own, started on first use.

    Not one of the reactor's pool: a driver's connection wants one thread for
    its whole life, a slow resolver must not hold a session up, and a hop to a
    waiting thread costs a fraction of C{deferToThread}.

    The thread gets its jobs when the reactor's turn is over. If it ran during
    the turn, the two would take the interpreter's lock from each other at every
    system call, which costs more than the jobs do. Nor is it started before:
    what is asked for before the reactor runs must survive that C{twistd} forks.

    The thread never waits for the reactor, and Python does not wait for the
    thread: a process that forgets to stop it ends all the same.
    """

    def __init__(self, reactor: IReactorFromThreads, name: str = "twsessions") -> None:
        self._reactor: Any = reactor  # to call it later, too
        self._name = name
        self._gathered: list[_Job] = []
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._thread: Thread | None = None
        self._stopped: list[Deferred[None]] | None = None
        self._done = False

    def do(self, f: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        """
        See L{Worker.do}.
        """
        if self._stopped is not None:
            return fail(_stoppedError())
        if not self._gathered:
            self._reactor.callLater(0, self._hand)
        result: Deferred[T] = Deferred()
        self._gathered.append((result, f, args, kwargs))
        return result

    def stop(self) -> Deferred[None]:
        """
        See L{Worker.stop}.
        """
        if self._stopped is None:
            self._stopped = []
            self._hand()
            if self._thread is None:
                self._done = True
            else:
                self._jobs.put(None)
        if self._done:
            return succeed(None)
        waiting: Deferred[None] = Deferred()
        self._stopped.append(waiting)
        return waiting

    def _hand(self) -> None:
        jobs, self._gathered = self._gathered, []
        if jobs and self._thread is None:
            self._thread = Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()
        for job in jobs:
            self._jobs.put(job)

    # In the thread

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            self._reactor.callFromThread(*_outcome(*job))
        self._reactor.callFromThread(self._tellStopped)

    # In the reactor's thread again

    def _tellStopped(self) -> None:
        self._done = True
        waiting, self._stopped = self._stopped or [], []
        for one in waiting:
            one.callback(None)


def _outcome(
    result: Deferred[Any], f: Callable[..., Any], args: Any, kwargs: Any
) -> tuple[Callable[[Any], None], Any]:
    try:
        return result.callback, f(*args, **kwargs)
    except BaseException as error:  # noqa: BLE001 (unanswered, a request would hang)
        return result.errback, error


def _stoppedError() -> StoreUnavailable:
    return StoreUnavailable("the store has been closed")
