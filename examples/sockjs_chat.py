"""
A chat with presence: who logs out, or is silent for a minute, leaves the room.

Run it with C{twistd -ny examples/sockjs_chat.py}, visit http://127.0.0.1:8080/
in two browsers, and log in. In the environment, PORT says where else it is to
listen, SESSION_TIMEOUT after how many silent seconds a session ends, SOCKJS_URL
where browsers find the client library, should the network not be there.
"""

import json
import os
from html import escape
from string import Template

from twisted.application.internet import StreamServerEndpointService
from twisted.application.service import Application
from twisted.internet import reactor
from twisted.internet.endpoints import serverFromString
from twisted.web.resource import Resource
from twisted.web.util import redirectTo

from twsessions import Session, SessionSite
from twsessions.sockjs import SockJSConnection, SockJSResource, SockJSSettings

LOGIN = """<!doctype html><meta charset="utf-8"><title>Chat</title><link rel="icon" href="data:,">
<form id="login" method="post" action="/login">
<input name="name" maxlength="40" placeholder="your name" required autofocus>
<button>Log in</button></form>"""

ROOM = Template("""<!doctype html><html lang="en"><meta charset="utf-8"><title>Chat</title>
<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">
<style>
body{font:16px/1.5 system-ui;max-width:40rem;margin:1rem auto}main{display:flex}
ul{list-style:none;padding:0}#said{flex:1}#who li::before{content:"\\25cf ";color:green}
</style>
<p id="you">You are $name. <button id="logout">Log out</button></p>
<p id="ended" hidden>Your session has ended. <a href="/">Log in</a> again.</p>
<main><ul id="said"></ul><ul id="who"></ul></main>
<form id="say"><input id="text" autocomplete="off" autofocus><button>Say</button></form>
<script src="$library"></script>
<script>
const at = id => document.getElementById(id);
let socket;

function line(text) {
  const line = document.createElement("li");
  line.textContent = text;
  return line;
}

function connect() {
  socket = new SockJS("/chat");
  socket.onmessage = event => {
    const told = JSON.parse(event.data);
    if (told.who) at("who").replaceChildren(...told.who.map(line));
    else at("said").append(line(told.name + ": " + told.text));
  };
  socket.onclose = event => {
    at("who").replaceChildren();
    // 4001: the session has ended. 2000: nothing was let in, so it ended while we were away.
    // 4003: it has, and another tab has begun a new one.
    if ([4001, 4003, 2000].includes(event.code)) {
      at("you").hidden = at("say").hidden = true;
      at("ended").hidden = false;
    } else {
      setTimeout(connect, 1000);
    }
  };
}

at("say").onsubmit = event => {
  event.preventDefault();
  if (socket.readyState !== SockJS.OPEN) return;
  socket.send(at("text").value);
  at("text").value = "";
};
at("logout").onclick = () => fetch("/logout", {method: "POST"});
connect();
</script></html>""")


class Chat(SockJSConnection):
    """
    A window of somebody's; they are in the room while they have one.
    """

    room = set()

    def onOpen(self, info):
        self.name = info.session.principal
        if self.name is None:
            self.close(4003, "Log in first")
        else:
            self.room.add(self)
            self.tellWho()

    def onMessage(self, message):
        self.tell(name=self.name, text=message)

    def onClose(self, code, reason):
        self.room.discard(self)
        self.tellWho()

    def tellWho(self):
        self.tell(who=sorted({one.name for one in self.room}))

    def tell(self, **what):
        self.broadcast(self.room, json.dumps(what))


class Front(Resource):
    """
    The room, or the way in.
    """

    def getChild(self, path, request):
        return self

    def render_GET(self, request):
        name = request.getSession().principal
        if name is None:
            return LOGIN.encode()
        library = chat.settings.sockjsURL
        return ROOM.substitute(name=escape(name), library=escape(library)).encode()

    def render_POST(self, request):
        session = request.getSession()
        if request.path == b"/logout":
            session.logout()
        else:
            name = request.args.get(b"name", [b""])[0].decode("utf-8", "replace")[:40].strip()
            session.login(name or "somebody")
        return redirectTo(b"/", request)


class ShortSession(Session):
    sessionTimeout = float(os.environ.get("SESSION_TIMEOUT", 60))


# bound: whose session ends is out. To say something counts as use, to be there does not.
library = os.environ.get("SOCKJS_URL", SockJSSettings.sockjsURL)
chat = SockJSResource(Chat, bound=True, sockjsURL=library)
root = Front()
root.putChild(b"chat", chat)
site = SessionSite(root, store="sqlite:///sockjs_chat.db")
site.sessionFactory = ShortSession

application = Application("sockjs_chat")
endpoint = serverFromString(reactor, f"tcp:{os.environ.get('PORT', 8080)}:interface=127.0.0.1")
StreamServerEndpointService(endpoint, site).setServiceParent(application)
