"""
Messages between processes: how servers pass them on, and who is told of them.

A server that hung and goes on may still do what its client has given up on
long since, after what the client has asked of another since. So each sender
numbers its messages, and whoever hears a higher number leaves out the lower
ones that come later.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from secrets import token_bytes
from struct import Struct
from struct import error as StructError
from typing import Final

from twisted.logger import Logger

from twsessions.errors import StoreError
from twsessions.interfaces import MESSAGE_LIMIT, Message

__all__ = ["HEAD", "Inbox", "Listeners", "Outbox", "check"]

_FORMAT: Final = 1
_head: Final = Struct(">B8sQI")  # format, sender, number, bytes of the topic

HEAD: Final = _head.size
"""Bytes that a message has more when it is packed."""

_SENDERS: Final = 4096  # whose last numbers are known; bounds the memory


def check(message: Message) -> bytes:
    """
    See that a message can be sent.

    @return: its topic's bytes.
    @raise StoreError: it is too large, or no message.
    """
    name, payload = message
    if not (isinstance(name, str) and isinstance(payload, bytes)):
        raise StoreError("a message that cannot be sent: its topic is text, its payload is bytes")
    # A name that a client has made up may hold half of a surrogate pair.
    topic = name.encode("utf-8", "surrogatepass")
    size = len(topic) + len(payload)
    if size > MESSAGE_LIMIT:
        raise StoreError(
            f"a message of {size} bytes, over the limit of {MESSAGE_LIMIT}; it was not sent"
        )
    return topic


class Listeners:
    """
    Those who are told of messages.
    """

    _log = Logger()

    def __init__(self) -> None:
        self._all: list[Callable[[Message | None], object]] = []
        self._waiting: deque[Message | None] = deque()
        self._isTelling = False

    def add(self, heard: Callable[[Message | None], object]) -> None:
        """
        Tell one more.
        """
        self._all.append(heard)

    def clear(self) -> None:
        """
        Tell nobody any more.
        """
        self._all.clear()
        self._waiting.clear()

    def tell(self, message: Message | None) -> None:
        """
        Tell everybody; what is said meanwhile comes afterwards.
        """
        self._waiting.append(message)
        if self._isTelling:
            return
        self._isTelling = True
        try:
            while self._waiting:
                message = self._waiting.popleft()
                for heard in tuple(self._all):
                    try:
                        heard(message)
                    except Exception:
                        self._log.failure("a failure in what was told of messages")
        finally:
            self._isTelling = False


class Outbox:
    """
    Numbers what one store object says.
    """

    def __init__(self) -> None:
        self._sender = b""
        self._number = 0

    def pack(self, message: Message) -> bytes:
        """
        A message as it travels.

        @raise StoreError: it is too large, or no message.
        """
        topic = check(message)
        if not self._sender:
            self._sender = token_bytes(8)  # not earlier: processes may be forked before
        self._number += 1
        head = _head.pack(_FORMAT, self._sender, self._number, len(topic))
        return b"".join((head, topic, message[1]))


class Inbox(Listeners):
    """
    Tells of what has arrived, in the order of each sender.
    """

    def __init__(self) -> None:
        super().__init__()
        # The last number of each sender, and how many losses were known of then.
        self._last: OrderedDict[bytes, tuple[int, int]] = OrderedDict()
        self._losses = 0

    def missed(self) -> None:
        """
        Say that something may have been missed.
        """
        self._losses += 1
        self.tell(None)

    def arrived(self, packed: bytes) -> None:
        """
        A message has come; or anything else, as anybody may send it.
        """
        try:
            format_, sender, number, length = _head.unpack_from(packed)
            if format_ != _FORMAT or length > len(packed) - HEAD:
                return
            topic = packed[HEAD : HEAD + length].decode("utf-8", "surrogatepass")
        except (ValueError, StructError):
            return
        last, losses = self._last.get(sender, (number - 1, 0))
        if number <= last:
            return
        if number > last + 1 and losses == self._losses:
            self.missed()
        self._last[sender] = number, self._losses
        self._last.move_to_end(sender)
        if len(self._last) > _SENDERS:
            self._last.popitem(last=False)
        self.tell(Message(topic, packed[HEAD + length :]))
