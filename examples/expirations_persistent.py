"""
The same as expirations.py, but the sessions survive a restart.

Run it with C{twistd -ny examples/expirations_persistent.py}, visit
http://127.0.0.1:8080/ , stop it (kill -9 will do) and start it again: the visits
go on. What fell due while it was down is printed when it is back.
"""

import os

from twisted.application.internet import StreamServerEndpointService
from twisted.application.service import Application
from twisted.internet import reactor
from twisted.internet.endpoints import serverFromString
from twisted.logger import Logger
from twisted.web.resource import Resource

from twsessions import Session, SessionSite

log = Logger("expirations")


class ShortSession(Session):
    sessionTimeout = 5


class Visits(Resource):
    def render_GET(self, request):
        session = request.getSession()
        session["visits"] = session.get("visits", 0) + 1
        request.setHeader(b"content-type", b"text/plain")
        return b"visits: %d\n" % session["visits"]


def ended(event):
    log.info(
        "session {id} ended ({reason}) after {visits} visits",
        id=event.id,
        reason=event.reason,
        visits=event.data["visits"],
    )


root = Resource()
root.putChild(b"", Visits())
site = SessionSite(root, store="sqlite:///expirations.db")
site.sessionFactory = ShortSession
site.notifyOnExpire(ended)

application = Application("expirations")
endpoint = serverFromString(reactor, f"tcp:{os.environ.get('PORT', 8080)}:interface=127.0.0.1")
StreamServerEndpointService(endpoint, site).setServiceParent(application)
