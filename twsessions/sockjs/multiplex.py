"""
Several channels over one connection, each with an application of its own.

Spoken by sockjs's C{websocket-multiplex}: C{sub,name}, C{msg,name,text} and
C{uns,name}, in both directions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer

from twsessions.sockjs.connection import SockJSConnection
from twsessions.sockjs.driver import Driver
from twsessions.sockjs.info import ConnectionInfo
from twsessions.sockjs.packet import Packet
from twsessions.sockjs.protocol import makerOf
from twsessions.sockjs.service import Full
from twsessions.sockjs.session import Close

__all__ = ["Multiplexer"]

_UNSUBSCRIBED = Close(1000, "Unsubscribed")


class Multiplexer:
    """
    An application made of others::

        SockJSResource(Multiplexer({"news": News, "chat": Chat}))
    """

    def __init__(self, channels: Mapping[str, Any]) -> None:
        """
        @param channels: applications by the names of their channels, each as for
            L{SockJSResource<twsessions.sockjs.SockJSResource>}.
        @raise TypeError: one is no application.
        """
        self._channels = {
            _escape(name): _Channel(_escape(name), makerOf(application))
            for name, application in channels.items()
        }

    def __call__(self) -> SockJSConnection:
        """
        A connection, on which nobody has subscribed to anything yet.
        """
        return _Multiplexed(self._channels)


class _End(Packet):
    """
    That a channel is closed, which nothing else would tell.
    """

    __slots__ = ()

    mayDrop = False


class _Channel:
    """
    One channel; and how it spells what its sessions say.

    @ivar end: says that it is closed.
    """

    chunked = None

    def __init__(self, name: str, maker: Callable[[], SockJSConnection]) -> None:
        self.maker = maker
        self._message = f"msg,{name},".encode("ascii")
        self.end = f"uns,{name}"

    def opened(self) -> bytes:
        """
        Goes without saying, and the outer connection has its own heartbeat.
        """
        return b""

    heartbeat = opened

    def messages(self, packets: Sequence[Packet]) -> bytes:
        """
        One at a time: a channel never waits, the outer connection does.
        """
        (packet,) = packets
        message = packet.message
        if isinstance(message, bytes):  # which only raw websockets can carry
            message = message.decode("utf-8", "replace")
        return self._message + message.encode("utf-8", "surrogatepass")

    def closed(self, why: Close) -> bytes:
        """
        Is told by L{_ChannelCarrier.finish}; there is no room for a reason.
        """
        return b""


class _ChannelCarrier:
    """
    Carries a channel's session over the outer connection.
    """

    isFull = False

    def __init__(self, outer: _Multiplexed, driver: Driver, channel: _Channel) -> None:
        self._outer = outer
        self.driver = driver
        self.form = channel

    def write(self, data: bytes) -> None:
        """
        Send a message of the outer connection.
        """
        if data:
            self._outer.send(data.decode("utf-8", "surrogatepass"))

    def finish(self, why: Close | None) -> None:
        """
        This side has closed the channel.
        """
        self._outer.tellEnd(self.form)
        self._outer.left(self)
        self.driver.lost(self, _UNSUBSCRIBED)

    def abort(self) -> None:
        """
        The same, without a word.
        """
        self._outer.left(self)

    def ping(self) -> bool:
        """
        The outer connection does.
        """
        return False

    def listen(self, wanted: bool) -> None:
        """
        The outer connection waits for the slowest of its channels.
        """
        self._outer.listen(self, wanted)


@implementer(IPushProducer)
class _Multiplexed(SockJSConnection):
    """
    The outer connection.
    """

    def __init__(self, channels: Mapping[str, _Channel]) -> None:
        self._channels = channels
        self._carriers: dict[_Channel, _ChannelCarrier] = {}
        self._busy: set[_ChannelCarrier] = set()

    def onOpen(self, info: ConnectionInfo) -> None:
        """
        Hear of it when the client is slow.
        """
        self.registerProducer(self, True)

    def onMessage(self, message: Any) -> None:
        """
        Something about a channel, or for one. Whatever else it is, is ignored.
        """
        kind, _, rest = message.partition(",") if isinstance(message, str) else ("", "", "")
        name, _, text = rest.partition(",")
        channel = self._channels.get(name)
        if channel is None:
            return
        carrier = self._carriers.get(channel)
        if carrier is None:
            if kind == "sub":
                self._subscribe(channel)
        elif kind == "msg":
            carrier.driver.received([text])
        elif kind == "uns":
            self._end(carrier, _UNSUBSCRIBED)

    def onClose(self, code: int, reason: str) -> None:
        """
        All channels end with it; what waits in them is dropped if this side has
        closed it, as everywhere.
        """
        outer, why = self._line, self.closeReason
        assert isinstance(outer, Driver) and why is not None
        for carrier in list(self._carriers.values()):
            if outer.endedHere:
                carrier.driver.end(why)
            else:
                self._end(carrier, why)

    def _subscribe(self, channel: _Channel) -> None:
        outer = self._line
        assert isinstance(outer, Driver) and self.info is not None
        try:
            driver = outer.service.make(channel.maker, self.info)
        except Full:
            self.tellEnd(channel)
            return
        carrier = self._carriers[channel] = _ChannelCarrier(self, driver, channel)
        driver.slow(not outer.session.isReady)
        driver.attach(carrier)

    def _end(self, carrier: _ChannelCarrier, why: Close) -> None:
        self.left(carrier)
        carrier.driver.lost(carrier, why)

    def tellEnd(self, channel: _Channel) -> None:
        """
        Say that a channel is closed.
        """
        if self._line is not None:
            self._line.send(_End(channel.end))

    def left(self, carrier: _ChannelCarrier) -> None:
        """
        A channel is closed.
        """
        if self._carriers.get(carrier.form) is carrier:
            del self._carriers[carrier.form]
        self.listen(carrier, True)

    def listen(self, carrier: _ChannelCarrier, wanted: bool) -> None:
        """
        A channel's application is busy, or no longer.
        """
        wasBusy = bool(self._busy)
        if wanted:
            self._busy.discard(carrier)
        else:
            self._busy.add(carrier)
        if bool(self._busy) is not wasBusy and isinstance(self._line, Driver):
            self._line.hold(bool(self._busy))

    # -- IPushProducer --------------------------------------------------------

    def pauseProducing(self) -> None:
        """
        The client is slow, or has caught up: so are all channels' producers.
        """
        outer = self._line
        assert isinstance(outer, Driver)
        for carrier in list(self._carriers.values()):
            carrier.driver.slow(not outer.session.isReady)

    resumeProducing = pauseProducing  # one that resumes may pause them all

    def stopProducing(self) -> None:
        """
        It is closed; C{onClose} is called as well.
        """


def _escape(name: str) -> str:
    """
    As JavaScript's C{escape} (ECMA-262, B.2.1.1), by which clients spell names.
    """
    if not isinstance(name, str) or not name:
        raise TypeError(f"a channel's name is a str that is not empty, not {name!r}")
    spelled = []
    for unit in memoryview(name.encode("utf-16-le", "surrogatepass")).cast("H"):
        if chr(unit) in _PLAIN:
            spelled.append(chr(unit))
        else:
            spelled.append(f"%{unit:02X}" if unit < 256 else f"%u{unit:04X}")
    return "".join(spelled)


_PLAIN = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789@*_+-./")
