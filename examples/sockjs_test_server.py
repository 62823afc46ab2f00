"""
The services that SockJS's protocol and browser test suites ask for::

    python examples/sockjs_test_server.py 8081
"""

from __future__ import annotations

import argparse

from twisted.internet import reactor, task
from twisted.web.resource import Resource
from twisted.web.server import Site

from twsessions.sockjs import SockJSConnection, SockJSResource, broadcast
from twsessions.sockjs.settings import TRANSPORTS


class Echo(SockJSConnection):
    def onMessage(self, message):
        self.send(message)


class Closing(SockJSConnection):
    def onOpen(self, info):
        self.close(3000, "Go away!")


class Amplify(SockJSConnection):
    def onMessage(self, message):
        power = int(message) if message.isdecimal() and len(message) < 3 else 1
        self.send("x" * 2 ** (power if 0 < power < 19 else 1))


class Broadcast(SockJSConnection):
    everybody: set = set()

    def onOpen(self, info):
        self.everybody.add(self)

    def onMessage(self, message):
        broadcast(self.everybody, message)

    def onClose(self, code, reason):
        self.everybody.discard(self)


class Ticker(SockJSConnection):
    def onOpen(self, info):
        self.clock = task.LoopingCall(self.send, "tick!")
        self.clock.start(1.0, now=False)

    def onClose(self, code, reason):
        self.clock.stop()


def makeSite(**settings):
    limits = {"maxMessageBytes": 1 << 20, **settings}
    root = Resource()
    root.putChild(b"echo", SockJSResource(Echo, responseLimit=4096, **limits))
    root.putChild(
        b"disabled_websocket_echo",
        SockJSResource(Echo, transports=TRANSPORTS - {"websocket"}, **limits),
    )
    root.putChild(b"cookie_needed_echo", SockJSResource(Echo, jsessionid=True, **limits))
    root.putChild(b"close", SockJSResource(Closing, **limits))
    root.putChild(b"amplify", SockJSResource(Amplify, **limits))
    root.putChild(b"broadcast", SockJSResource(Broadcast, **limits))
    root.putChild(b"ticker", SockJSResource(Ticker, **limits))
    return Site(root)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("number", nargs="?", type=int, default=8081, metavar="PORT")
    parser.add_argument("--port", type=int, help="the same")
    parser.add_argument("--sockjs-url", help="where pages in iframes find the client library")
    options = parser.parse_args()
    settings = {"sockjsURL": options.sockjs_url} if options.sockjs_url else {}
    port = options.port or options.number
    reactor.listenTCP(port, makeSite(**settings), interface="127.0.0.1")
    print(f"http://127.0.0.1:{port}/", flush=True)
    reactor.run()
