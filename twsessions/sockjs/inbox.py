"""
What an application is told of one connection: one thing at a time, in order.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from twsessions.sockjs.connection import SockJSConnection
from twsessions.sockjs.info import ConnectionInfo
from twsessions.sockjs.session import Close

__all__ = ["FAILED", "Inbox"]

FAILED = Close(1011, "Internal error")
_ENOUGH = 64 * 1024  # bytes that may wait before the client is not read any more


class Client(Protocol):
    """
    What an inbox wants of the other side.
    """

    @property
    def isOpen(self) -> bool:
        """
        Whether messages are still of interest.
        """

    def end(self, why: Close) -> None:
        """
        Close the connection; L{Inbox.closed} is told.
        """

    def listen(self, wanted: bool) -> None:
        """
        Go on, or pause, reading what the client sends.
        """


class Inbox:
    """
    Calls the handlers, and keeps what comes while one of them is under way.
    """

    __slots__ = (
        "_client",
        "_connection",
        "_isHeld",
        "_isTold",
        "_limit",
        "_room",
        "_running",
        "_size",
        "_waiting",
        "_why",
    )

    _log = Logger()

    def __init__(self, connection: SockJSConnection, client: Client, limit: int) -> None:
        """
        @param limit: bytes; a client that sends more than that while it is not
            read is thrown out.
        """
        self._connection = connection
        self._client = client
        self._limit = limit
        self._running = False  # a handler is
        self._waiting: deque[str | bytes] | None = None  # exists while one is
        self._size = 0  # of what waits
        self._room: list[Deferred[None]] | None = None
        self._isHeld = False
        self._why: Close | None = None
        self._isTold = False

    @property
    def isFull(self) -> bool:
        """
        Whether the client should not be read for now.
        """
        return self._isHeld or self._size > _ENOUGH

    def opened(self, info: ConnectionInfo) -> None:
        """
        The connection is open.
        """
        if self._isBusy(self._connection.onOpen, info):
            self._waiting = deque()
        else:
            self._tell()

    def received(self, messages: Sequence[str | bytes]) -> None:
        """
        The client has sent messages.
        """
        if self._waiting is not None:
            self._wait(messages)
            return
        onMessage = self._connection.onMessage
        for at, message in enumerate(messages):
            if self._isBusy(onMessage, message):
                self._waiting = deque()
                if self._client.isOpen:
                    self._wait(messages[at + 1 :])
                return
            if not self._client.isOpen:
                self._tell()
                return

    def room(self) -> Deferred[None] | None:
        """
        L{None}, or what fires when the application has caught up.
        """
        if not self.isFull:
            return None
        waiting: Deferred[None] = Deferred()
        if self._room is None:
            self._room = []
        self._room.append(waiting)
        return waiting

    def hold(self, isHeld: bool) -> None:
        """
        Let the client wait, although little waits here; or no longer.
        """
        self._isHeld = isHeld
        if isHeld:
            self._client.listen(False)
        elif not self.isFull:
            self._makeRoom()

    def closed(self, why: Close, drop: bool) -> None:
        """
        The connection is closed.

        @param drop: whether messages that wait are of no interest any more.
        """
        self._why = why
        if drop and self._waiting:
            self._waiting.clear()
            self._size = 0
        self._makeRoom()
        if not self._running:
            self._tell()

    def _wait(self, messages: Sequence[str | bytes]) -> None:
        assert self._waiting is not None
        self._waiting.extend(messages)
        self._size += sum(map(len, messages)) + 64 * len(messages)
        if self.isFull:
            self._client.listen(False)
        if self._size > _ENOUGH + self._limit:
            self._client.end(Close(1013, "Too many messages"))

    def _isBusy(self, handler: Callable[[Any], object], what: object) -> bool:
        """
        Call a handler.

        @return: whether it is not done yet; C{_next} is called when it is.
        """
        self._running, result = True, None
        try:
            result = handler(what)
        except Exception:
            self._failed(Failure())
        if result is not None:
            if inspect.iscoroutine(result):
                result = Deferred.fromCoroutine(result)
            if isinstance(result, Deferred):
                result.addErrback(self._failed)
                if not result.called or result.paused:
                    result.addCallback(self._next)
                    return True
        self._running = False
        return False

    def _next(self, _: object) -> None:
        """
        A handler is done: on with what has waited.
        """
        waiting = self._waiting
        while waiting:
            message = waiting.popleft()
            self._size -= len(message) + 64
            if self._isBusy(self._connection.onMessage, message):
                break
        else:
            self._running = False
            self._waiting = None
        if not self.isFull:
            self._makeRoom()
        if not self._running:
            self._tell()

    def _makeRoom(self) -> None:
        room, self._room = self._room, None
        for waiting in room or ():
            waiting.callback(None)
        self._client.listen(True)

    def _failed(self, failure: Failure) -> None:
        self._log.failure("a SockJS application failed", failure=failure)
        self._client.end(FAILED)

    def _tell(self) -> None:
        why = self._why
        if why is None or self._isTold:
            return
        self._isTold = True

        def failed(failure: Failure) -> None:
            self._log.failure("a SockJS application failed at a close", failure=failure)

        try:
            result = self._connection.onClose(why.code, why.reason)
        except Exception:
            failed(Failure())
            return
        if inspect.iscoroutine(result):
            result = Deferred.fromCoroutine(result)
        if isinstance(result, Deferred):
            result.addErrback(failed)
