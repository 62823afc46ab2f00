"""
Redis's protocol on one connection, and what its errors mean.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from hiredis import Reader, pack_command

from twsessions.errors import StoreUnavailable
from twsessions.stores._flights import FlightProtocol

__all__ = ["Wire", "command", "explain"]

_MORE: Final = object()  # the parser has no whole reply yet


_MEANING: Final = {
    "NOAUTH": "the Redis server wants a password",
    "WRONGPASS": "the Redis server refused user and password",
    "NOPERM": "the Redis user may not do what the store needs: it takes all of its keys"
    " (~prefix*), its channel (&prefix*) and the commands @read @write @scripting @connection"
    " @pubsub +time +info +ping, +cluster or +role where there is a cluster or Sentinel",
    "LOADING": "the Redis server is loading its data",
    "BUSY": "the Redis server is busy with a script",
    "READONLY": "the Redis server is a replica: it takes no writes",
    "OOM": "the Redis server's memory is full (maxmemory)",
    "MISCONF": "the Redis server cannot save to its disk and takes no writes",
    "NOREPLICAS": "the Redis server has too few replicas and takes no writes",
    "MASTERDOWN": "the Redis server has lost its master",
    "CLUSTERDOWN": "the Redis cluster is down",
    "TRYAGAIN": "the sessions are just being moved to another node of the cluster",
    "MOVED": "the Redis server is part of a cluster: use redis+cluster://",
}


def command(*words: bytes | str | int) -> bytes:
    """
    A command, as it is sent.
    """
    packed: bytes = pack_command(words)  # type: ignore[arg-type]
    return packed


def explain(error: object) -> StoreUnavailable:
    """
    What a reply that is an error says to people. The server repeats a
    command's arguments in some; those are left out.
    """
    text = str(error)
    code = text.partition(" ")[0]
    if "non local key" in text:
        code = "TRYAGAIN"
    said = _MEANING.get(code) or f"the Redis server refused: {text.partition(', with args')[0]}"
    return StoreUnavailable(said)


class Wire(FlightProtocol):
    """
    The connection.

    @ivar pushed: is called with each reply, if it is set (a subscription).
    """

    peer = "Redis server"

    def __init__(self, clock: Any) -> None:
        """
        See L{FlightProtocol}.
        """
        super().__init__(clock)
        self._reader = Reader(notEnoughData=_MORE)
        self.pushed: Callable[[Any], None] | None = None

    def send(self, payload: bytes) -> None:
        """
        Send a command whose reply is L{pushed}.
        """
        if self.isUp:
            self.transport.write(payload)

    def dataReceived(self, data: bytes) -> None:
        """
        Parse replies and hand them out.
        """
        reader = self._reader
        try:
            reader.feed(data)
            while self._why is None and (reply := reader.gets()) is not _MORE:
                if self.pushed is not None:
                    self.pushed(reply)
                else:
                    self.answer(reply)
        except Exception:
            # The parser's own errors, and the like of a MemoryError for a
            # length that is garbage: whatever it is, replies are lost.
            self.drop("what the Redis server answers is not its protocol")
