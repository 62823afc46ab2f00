"""
Any Twisted protocol as an application: messages are what it reads and writes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IAddress, IConsumer, IProtocolFactory, ITransport
from twisted.python.failure import Failure
from zope.interface import implementer

from twsessions.sockjs.connection import SockJSConnection
from twsessions.sockjs.info import ConnectionInfo

__all__ = ["ProtocolConnection", "SockJSAddress", "makerOf"]


def makerOf(application: Any) -> Callable[[], SockJSConnection]:
    """
    What makes an application's connections.

    @param application: a L{SockJSConnection} class, a function that makes one, or
        a provider of C{IProtocolFactory}.
    @return: a function. It raises L{TypeError} if the application makes
        something else.
    @raise TypeError: it is none of these.
    """
    if IProtocolFactory.providedBy(application):
        application.doStart()
        return lambda: ProtocolConnection(application)
    if not callable(application):
        raise TypeError(f"not a SockJS application: {application!r}")

    def make() -> SockJSConnection:
        connection = application()
        if not isinstance(connection, SockJSConnection):
            raise TypeError(
                f"a SockJS application makes SockJSConnections, not {type(connection).__name__}"
            )
        return connection

    return make


@implementer(IAddress)
class SockJSAddress:
    """
    A client that is connected by SockJS.

    @ivar info: its L{ConnectionInfo}.
    """

    def __init__(self, info: ConnectionInfo) -> None:
        self.info = info

    def __repr__(self) -> str:
        return f"SockJSAddress({self.info.ip!r})"


@implementer(ITransport, IConsumer)
class ProtocolConnection(SockJSConnection):
    """
    The transport of a protocol. A message of the client is given to
    C{dataReceived} in one piece, as UTF-8; what the protocol writes is a message.
    """

    disconnecting = False

    def __init__(self, factory: IProtocolFactory) -> None:
        self._factory = factory
        self._protocol: Any = None

    def onOpen(self, info: ConnectionInfo) -> None:
        """
        Build the protocol and connect it.
        """
        protocol = self._factory.buildProtocol(SockJSAddress(info))
        if protocol is None:
            self.close(3000, "Refused")
            return
        self._protocol = protocol
        protocol.makeConnection(self)

    def onMessage(self, message: str | bytes) -> None:
        """
        Data for the protocol.
        """
        if isinstance(message, str):
            message = message.encode("utf-8", "replace")
        self._protocol.dataReceived(message)

    def onClose(self, code: int, reason: str) -> None:
        """
        The protocol's connection is lost.
        """
        if self._protocol is None:
            return
        kind = ConnectionDone if code in (1000, 1001) or code >= 3000 else ConnectionLost
        self._protocol.connectionLost(Failure(kind(f"{code} {reason}")))

    # -- ITransport -----------------------------------------------------------

    def write(self, data: bytes) -> None:
        """
        Send a message.

        @param data: as text, if it is UTF-8, which all but raw websockets need.
        """
        if not isinstance(data, bytes):
            raise TypeError(f"data is bytes, not {type(data).__name__}")
        try:
            self.send(data.decode("utf-8"))
        except UnicodeDecodeError:
            self.send(data)

    def writeSequence(self, data: Iterable[bytes]) -> None:
        """
        Send one message made of parts.
        """
        self.write(b"".join(data))

    def loseConnection(self) -> None:
        """
        Close the connection when all is written.
        """
        self.disconnecting = True
        self.close()

    abortConnection = loseConnection

    def getPeer(self) -> IAddress:
        """
        The client: the address of its connection, as far as it is known.
        """
        ip = None if self.info is None else self.info.ip
        if ip is None:
            return SockJSAddress(self.info or ConnectionInfo())
        return (IPv6Address if ":" in ip else IPv4Address)("TCP", ip, 0)

    def getHost(self) -> IAddress:
        """
        This side.
        """
        return SockJSAddress(self.info or ConnectionInfo())
