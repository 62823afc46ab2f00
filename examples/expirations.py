"""
Sessions that last five seconds, and a line in the log when one ends.

Run it with C{twistd -ny examples/expirations.py} and visit
http://127.0.0.1:8080/ . Keep visiting and the session stays; stop for five
seconds and it ends. The site is a stock L{twisted.web.server.Site}.
"""

import os

from twisted.application.internet import StreamServerEndpointService
from twisted.application.service import Application
from twisted.internet import reactor
from twisted.internet.endpoints import serverFromString
from twisted.logger import Logger
from twisted.web.resource import Resource
from twisted.web.server import Site

from twsessions import Session

log = Logger("expirations")


class ShortSession(Session):
    sessionTimeout = 5


class ExpirationLogger(Resource):
    def render_GET(self, request):
        session = request.getSession()
        if session.isNew and "visits" not in session:
            session.notifyOnExpire(
                lambda: log.info("a session ended after {n} visits", n=session["visits"])
            )
        session["visits"] = session.get("visits", 0) + 1
        request.setHeader(b"content-type", b"text/plain")
        return b"visits: %d\n" % session["visits"]


root = Resource()
root.putChild(b"", ExpirationLogger())
site = Site(root)
site.sessionFactory = ShortSession

application = Application("expirations")
endpoint = serverFromString(reactor, f"tcp:{os.environ.get('PORT', 8080)}:interface=127.0.0.1")
StreamServerEndpointService(endpoint, site).setServiceParent(application)
