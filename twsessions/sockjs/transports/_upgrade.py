"""
From a request to a websocket (RFC 6455, 4.2).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from twisted.internet.error import ConnectionDone
from twisted.python.failure import Failure
from twisted.web.http import Request
from wsproto.connection import ConnectionType
from wsproto.events import AcceptConnection, RejectConnection
from wsproto.extensions import Extension, PerMessageDeflate
from wsproto.handshake import H11Handshake
from wsproto.utilities import RemoteProtocolError

__all__ = ["Handshake", "Refused"]


_isKey = re.compile(rb"[A-Za-z0-9+/]{21}[AQgw]==").fullmatch
_isFlag = re.compile(rb"(?:server|client)_no_context_takeover|client_max_window_bits").fullmatch
_isSize = re.compile(rb"(?:server|client)_max_window_bits=\"?(?:9|1[0-5])\"?").fullmatch


def _offers(request: Request) -> list[bytes]:
    lines = request.requestHeaders.getRawHeaders(b"sec-websocket-extensions", ())
    return [offer.strip() for offer in b",".join(lines).split(b",")]


def _isSound(offer: bytes) -> bool:
    """
    Whether it is an offer of compression that can be accepted (RFC 7692, 7.1);
    all others are to be passed over.
    """
    name, *parameters = (part.strip() for part in offer.split(b";"))
    names = [parameter.partition(b"=")[0] for parameter in parameters]
    return (
        name == b"permessage-deflate"
        and len(set(names)) == len(names)
        and all(_isFlag(one) or _isSize(one) for one in parameters)
    )


class Refused(Exception):
    """
    A request that cannot become a websocket.

    @ivar code: of the response.
    @ivar headers: for it.
    """

    def __init__(self, code: int, text: str, headers: list[tuple[bytes, bytes]]) -> None:
        super().__init__(text)
        self.code = code
        self.headers = headers


class Handshake:
    """
    A request that can.
    """

    def __init__(self, request: Request) -> None:
        """
        @raise Refused: it cannot.
        """
        self._request = request
        self._wsproto = H11Handshake(ConnectionType.SERVER)
        # wsproto cannot read a number in quotes.
        offers = [offer.replace(b'"', b"") for offer in _offers(request) if _isSound(offer)]
        headers = [
            (name, value)
            for name, values in request.requestHeaders.getAllRawHeaders()
            if name.lower() != b"sec-websocket-extensions"
            for value in values
        ]
        if offers:
            headers.append((b"Sec-WebSocket-Extensions", b", ".join(offers)))
        if (request.getHeader(b"upgrade") or b"").lower() != b"websocket":
            raise Refused(400, 'Can "Upgrade" only to "WebSocket".', [])
        if request.clientproto == b"HTTP/1.0":
            raise Refused(400, "HTTP/1.0 cannot be upgraded.", [])
        try:
            self._wsproto.initiate_upgrade_connection(headers, request.path)
        except RemoteProtocolError as error:
            hint = error.event_hint
            if isinstance(hint, RejectConnection):
                raise Refused(hint.status_code, str(error), list(hint.headers)) from None
            raise Refused(400, "Not a websocket request.", []) from None
        except ValueError:  # a host name that is none
            raise Refused(400, "Not a websocket request.", []) from None
        if not _isKey(request.getHeader(b"sec-websocket-key") or b""):
            raise Refused(400, "Sec-WebSocket-Key is not 16 bytes in base64.", [])

    def accept(self, deflate: bool) -> tuple[bytes, list[Extension]]:
        """
        @param deflate: whether to compress, if the client can.
        @return: what to answer, and the extensions that are in force.
        """
        extensions: list[Extension] = []
        if deflate:
            # Without memory from message to message: it would be 300 kB for each client.
            extensions.append(
                PerMessageDeflate(client_no_context_takeover=True, server_no_context_takeover=True)
            )
        cookies = [(b"Set-Cookie", line) for line in self._request.cookies]
        answer = self._wsproto.send(AcceptConnection(extensions=extensions, extra_headers=cookies))
        return answer, [extension for extension in extensions if extension.enabled()]

    def takeOver(
        self, answer: bytes, received: Callable[[bytes], None], lost: Callable[[Failure], None]
    ) -> bytes:
        """
        Answer, and take the connection from HTTP, for which the request is over.

        @return: what the client has sent since.
        """
        request = self._request
        channel: Any = request.channel
        transport = channel.transport
        early = b"".join(channel._dataBuffer)
        # Twisted's own way (HTTPChannel._protocolUpgradeForWebsockets), which
        # knows no producers.
        channel.dataReceived = channel.rawDataReceived = received
        channel.connectionLost = lost
        transport.unregisterProducer()
        transport.resumeProducing()
        transport.write(answer)
        request.setResponseCode(101)
        channel.factory.log(request)
        channel.requests.clear()
        request.connectionLost(Failure(ConnectionDone("it is a websocket now")))
        return early
