"""
sockjs-tornado: /echo gives every message back, /broadcast to all.
"""

import sys

from sockjs.tornado import SockJSConnection, SockJSRouter
from tornado.ioloop import IOLoop
from tornado.web import Application


class Echo(SockJSConnection):
    def on_message(self, message: str) -> None:
        self.send(message)


class Broadcast(SockJSConnection):
    everyone: set[SockJSConnection] = set()

    def on_open(self, info: object) -> None:
        self.everyone.add(self)

    def on_message(self, message: str) -> None:
        self.broadcast(self.everyone, message)

    def on_close(self) -> None:
        self.everyone.discard(self)


if __name__ == "__main__":
    routes = SockJSRouter(Echo, "/echo").urls + SockJSRouter(Broadcast, "/broadcast").urls
    Application(routes).listen(int(sys.argv[1]), "127.0.0.1")
    IOLoop.current().start()
