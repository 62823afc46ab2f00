"""
A Klein application with logins, through a SessionResource.

Run it with C{twistd -ny examples/klein_login.py} and visit
http://127.0.0.1:8080/ .
"""

import os
from html import escape

from klein import Klein
from twisted.application.internet import StreamServerEndpointService
from twisted.application.service import Application
from twisted.internet import reactor
from twisted.internet.endpoints import serverFromString
from twisted.web.server import Site

from twsessions import SessionResource

app = Klein()

PAGE = """<!doctype html><meta charset="utf-8"><title>Klein and sessions</title><p>%s</p>
<form method="post" action="login"><input name="name"><button>log in</button></form>
<form method="post" action="logout"><button>log out</button></form>
"""


@app.route("/")
def home(request):
    session = request.getSession()
    who = session.principal or "nobody"
    saved = session.flash.get("saved", "")
    return PAGE % f"You are {escape(who)}. {escape(saved)}"


@app.route("/login", methods=["POST"])
def login(request):
    name = request.args.get(b"name", [b""])[0].decode("utf-8", "replace")
    if name:
        session = request.getSession()
        session.login(name)
        session.flash["saved"] = "Welcome!"
    request.redirect(b"/")


@app.route("/logout", methods=["POST"])
def logout(request):
    request.getSession().logout()
    request.redirect(b"/")


application = Application("klein_login")
site = Site(SessionResource(app.resource(), store="sqlite:///klein_login.db"))
endpoint = serverFromString(reactor, f"tcp:{os.environ.get('PORT', 8080)}:interface=127.0.0.1")
StreamServerEndpointService(endpoint, site).setServiceParent(application)
