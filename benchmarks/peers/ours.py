"""
twsessions, as it is by default, on any store.
"""

import sys
from typing import Any

from twisted.internet import reactor
from twisted.web.resource import Resource

from benchmarks.many import payload
from twsessions import SessionSite


class Pages(Resource):
    isLeaf = True

    def render_GET(self, request: Any) -> bytes:
        if request.path == b"/bare":
            return b"ok"
        session = request.getSession()
        if "user" not in session:
            session.update(payload(1))
            session["user"] = 0
        session["user"] += 1
        return b"%d" % session["user"]


if __name__ == "__main__":
    site: Any = SessionSite(Pages(), store=sys.argv[2])
    site.log = lambda request: None  # as with all of them
    reactor.listenTCP(int(sys.argv[1]), site, interface="127.0.0.1")  # type: ignore[attr-defined]
    reactor.run()  # type: ignore[attr-defined]
