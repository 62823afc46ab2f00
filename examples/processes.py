"""
Several processes, one port, one store: log in on one, be known on all.

Run it with C{twistd -ny examples/processes.py} and visit http://127.0.0.1:8080/
a few times: the page says which process has answered. PROCESSES says how many
there are (4), STORE is their store's URL. The first one listens and starts the
others, which inherit its socket; one that dies is started again.
"""

import os
import socket
import sys
from html import escape

from twisted.application.service import Application, Service
from twisted.internet import reactor
from twisted.internet.endpoints import serverFromString
from twisted.internet.protocol import ProcessProtocol, Protocol
from twisted.internet.stdio import StandardIO
from twisted.logger import Logger
from twisted.web.resource import Resource
from twisted.web.util import redirectTo

from twsessions import SessionSite

log = Logger("processes")
PORT = os.environ.get("PORT", "8080")
STORE = os.environ.get("STORE", "sqlite:///processes.db")
PROCESSES = int(os.environ.get("PROCESSES", "4"))
SOCKET = os.environ.get("LISTENING_SOCKET")  # in all but the first process

PAGE = """<!doctype html><meta charset="utf-8"><title>Processes</title>
<link rel="icon" href="data:,">
<p>This is process {pid}. You are {who}.
You have asked {count} times.
<form method="post" action="/login"><input name="name"><button>Log in</button></form>
<form method="post" action="/logout"><button>Log out</button></form>"""


class Front(Resource):
    def getChild(self, path, request):
        return self

    def render_GET(self, request):
        # So that a browser's next request can go to another process.
        request.setHeader(b"connection", b"close")
        session = request.getSession()
        session["count"] = session.get("count", 0) + 1
        who = escape(session.principal or "nobody")
        return PAGE.format(pid=os.getpid(), who=who, count=session["count"]).encode()

    def render_POST(self, request):
        request.setHeader(b"connection", b"close")
        session = request.getSession()
        if request.path == b"/login":
            name = request.args.get(b"name", [b""])[0].decode("utf-8", "replace")
            session.login(name or "somebody")
        else:
            session.logout()
        return redirectTo(b"/", request)


class Worker(ProcessProtocol):
    """
    Another process, seen from the first.
    """

    def __init__(self, first):
        self.first = first

    def processEnded(self, reason):
        self.first.workers.remove(self)
        if self.first.running:
            log.warn("a process has ended: {reason}", reason=reason.value)
            self.first.startWorker()


class First(Service):
    """
    Listens, and looks after the others.
    """

    def __init__(self, site):
        self.site = site
        self.workers = []

    def startService(self):
        super().startService()
        endpoint = serverFromString(reactor, f"tcp:{PORT}:interface=127.0.0.1")
        endpoint.listen(self.site).addCallback(self.listening).addErrback(self.failed)

    def listening(self, port):
        self.port = port
        for _ in range(PROCESSES - 1):
            self.startWorker()

    def failed(self, failure):
        log.failure("cannot listen", failure=failure)
        reactor.stop()

    def startWorker(self):
        number = self.port.fileno()
        command = [sys.executable, *sys.orig_argv[1:]]
        environment = dict(os.environ, LISTENING_SOCKET=str(number))
        # Its standard input is a pipe from here: when that closes, it stops.
        descriptors = {0: "w", 1: 1, 2: 2, number: number}
        worker = Worker(self)
        self.workers.append(worker)
        reactor.spawnProcess(worker, command[0], command, environment, childFDs=descriptors)

    async def stopService(self):
        super().stopService()
        for worker in self.workers:
            worker.transport.closeStdin()
        await self.port.stopListening()


class FirstHasGone(Protocol):
    def connectionLost(self, reason):
        if reactor.running:
            reactor.stop()


class Other(Service):
    """
    Listens on the socket it has inherited.
    """

    def __init__(self, site):
        self.site = site

    def startService(self):
        super().startService()
        StandardIO(FirstHasGone())
        self.port = reactor.adoptStreamPort(int(SOCKET), socket.AF_INET, self.site)

    async def stopService(self):
        super().stopService()
        await self.port.stopListening()


site = SessionSite(Front(), store=STORE)
application = Application("processes")
(Other(site) if SOCKET else First(site)).setServiceParent(application)
