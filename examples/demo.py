"""
The demo: a session to look at, and to kill.

Run it with C{make demo} or C{twistd -ny examples/demo.py} and visit
http://127.0.0.1:8080/ . Store values, kill the process with SIGKILL, start it
again: they are there. Choose a short timeout and watch the session end.
PORT in the environment says where else it is to listen.
"""

import hmac
import os
from datetime import datetime, timezone
from html import escape

from twisted.application.internet import StreamServerEndpointService
from twisted.application.service import Application
from twisted.internet import reactor
from twisted.internet.endpoints import serverFromString
from twisted.logger import Logger
from twisted.web.pages import notFound
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from twsessions import SessionSite

log = Logger("demo")

STYLE = """
body{font:16px/1.5 system-ui,sans-serif;margin:0;background:#f4f5f7;color:#1d2433}
main{max-width:46rem;margin:0 auto;padding:1.5rem 1rem}
h1{font-size:1.5rem;margin:.2rem 0 1rem}section{background:#fff;border-radius:10px;
padding:1rem 1.2rem;margin:0 0 1rem;box-shadow:0 1px 3px #0002}
h2{font-size:1.05rem;margin:0 0 .6rem}
dl{display:grid;grid-template-columns:auto 1fr;align-items:baseline;gap:.2rem 1rem;margin:0}
dt{color:#5b6475}dd{margin:0}
table{border-collapse:collapse;width:100%}td{padding:.3rem .5rem .3rem 0;
border-top:1px solid #e6e8ec;overflow-wrap:anywhere}
form{display:inline-flex;flex-wrap:wrap;gap:.5rem;margin:.2rem .4rem .2rem 0}
input,select,button{font:inherit;padding:.3rem .6rem;border:1px solid #c5cad3;
border-radius:6px;min-width:0}button{background:#2457d6;color:#fff;border-color:#2457d6;cursor:pointer}
button.plain{background:#fff;color:#2457d6}.flash{background:#e5f5e8;border-left:4px solid #2c9a46}
.ended{background:#fdeaea;border-left:4px solid #c93a3a}code{background:#eef0f4;padding:.1rem .3rem;
border-radius:4px}big{font-size:1.6rem;font-variant-numeric:tabular-nums}
"""

SCRIPT = """
const left = document.getElementById("left"), until = Date.now() + 1000 * left.dataset.seconds;
function tell() {
  const seconds = Math.max(0, Math.round((until - Date.now()) / 1000));
  left.textContent = Math.floor(seconds / 60) + ":" + String(seconds % 60).padStart(2, "0");
}
tell();
const ticking = setInterval(tell, 250);
const events = new EventSource("events");
events.addEventListener("ended", event => {
  events.close();
  const note = document.createElement("section");
  note.className = "ended";
  note.textContent = "This session has ended. Reload for a new one.";
  document.querySelector("h1").after(note);
  clearInterval(ticking);
  left.textContent = "over";
  left.nextSibling.remove();
});
"""

PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>twsessions</title>
<meta name="viewport" content="width=device-width"><style>{style}</style><main>
<h1>A session that survives</h1>{flash}
<section><h2>This session</h2><dl>
<dt>Visits</dt><dd><big id="visits">{visits}</big></dd>
<dt>Ends in</dt><dd><big id="left" data-seconds="{left}"></big> unless you come back</dd>
<dt>Logged in</dt><dd>{principal}</dd>
<dt>Begun</dt><dd>{created}</dd>
<dt>Requests</dt><dd>{requests}</dd></dl></section>
<section><h2>Values</h2><table>{values}</table>
<form method="post" action="set">{token}<input name="name" placeholder="name" required>
<input name="value" placeholder="value"><button>Store</button></form></section>
<section><h2>Do something with it</h2>
<form method="post" action="timeout">{token}<select name="seconds" aria-label="idle timeout">
<option value="5">5 seconds</option><option value="60">1 minute</option>
<option value="900" selected>15 minutes</option></select><button>Set the timeout</button></form>
<form method="post" action="login">{token}<input name="who" placeholder="who" required>
<button>Log in</button></form>
<form method="post" action="rotate">{token}<button class="plain">New id</button></form>
<form method="post" action="logout">{token}<button class="plain">End it</button></form></section>
<section><h2>Kill it</h2><p>Kill this server: <code>kill -9 {pid}</code>. Start it again:
<code>make demo</code>. Reload: all is as it was. Sessions that fell due meanwhile are
in its log.</p></section></main><script>{script}</script></html>"""


def page(session):
    token = f'<input type="hidden" name="token" value="{session.csrfToken}">'
    values = "".join(
        f"<tr><td>{escape(name)}</td><td>{escape(repr(session[name]))}</td></tr>"
        for name in session
        if name not in ("visits", "timeout")
    )
    said = session.flash.get("said")
    return PAGE.format(
        style=STYLE,
        script=SCRIPT,
        flash=f'<section class="flash">{escape(said)}</section>' if said else "",
        visits=session["visits"],
        left=session.get("timeout", session.sessionTimeout),
        principal=escape(session.principal or "nobody"),
        created=datetime.fromtimestamp(session.created, timezone.utc).strftime(
            "%d %B %Y %H:%M UTC"
        ),
        requests=session.requestCount,
        values=values or "<tr><td>none yet</td></tr>",
        token=token,
        pid=os.getpid(),
    ).encode()


class Demo(Resource):
    def getChild(self, path, request):
        return self if path == b"" else super().getChild(path, request)

    def render_GET(self, request):
        session = request.getSession()
        session["visits"] = session.get("visits", 0) + 1
        return page(session)


class Action(Resource):
    """
    A form's target: checks the token, does it, and goes back to the page.
    """

    isLeaf = True

    def __init__(self, does):
        super().__init__()
        self.does = does

    def render_POST(self, request):
        session = request.getSession()
        form = {
            name.decode(): values[0].decode("utf-8", "replace")
            for name, values in request.args.items()
        }
        if not hmac.compare_digest(form.get("token", "").encode(), session.csrfToken.encode()):
            request.setResponseCode(403)
            return b'This form is not from here, or its session has ended. <a href="/">Go back</a>'
        self.does(session, form)
        request.setResponseCode(303)
        request.setHeader(b"location", b"/")
        return b""


def store(session, form):
    value = form.get("value", "")
    try:
        value = int(value)
    except ValueError:
        pass
    values = form["name"]
    if values in ("visits", "timeout"):
        session.flash["said"] = f"{values} is the demo's own."
    else:
        session[values] = value
        session.flash["said"] = f"Stored {values}."


def timeout(session, form):
    seconds = {"5": 5, "60": 60}.get(form.get("seconds"), 900)
    session.setTimeout(seconds)
    session["timeout"] = seconds
    session.flash["said"] = f"It ends after {seconds} seconds without a visit."


def login(session, form):
    session.login(form["who"])
    session.flash["said"] = f"Welcome, {form['who']}. The session has a new id."


def rotate(session, form):
    session.rotate()
    session.flash["said"] = "The session has a new id; the old one is dead."


def logout(session, form):
    session.logout()


class Events(Resource):
    """
    Tells the page when its session ends: an event stream.
    """

    isLeaf = True

    def render_GET(self, request):
        request.setHeader(b"content-type", b"text/event-stream")
        request.setHeader(b"cache-control", b"no-store")

        def ended():
            request.write(over)
            request.finish()

        over = b"event: ended\ndata: \n\n"
        if request.peekSession() is None:  # it ended while this server was down
            return over
        withdraw = request.getSession().notifyOnExpire(ended)
        request.notifyFinish().addErrback(lambda failure: withdraw())
        request.write(b": listening\n\n")
        return NOT_DONE_YET


def hear(event):
    log.info(
        "session {id} of {who} ended ({reason}) after {visits} visits",
        id=event.id[:8],
        who=event.principal or "nobody",
        reason=event.reason,
        visits=event.data.get("visits", 0),
    )


root = Demo()
for does in (store, timeout, login, rotate, logout):
    root.putChild({"store": b"set"}.get(does.__name__, does.__name__.encode()), Action(does))
root.putChild(b"events", Events())
root.putChild(b"favicon.ico", notFound())

site = SessionSite(root, store="sqlite:///twsessions-demo.db")
site.notifyOnExpire(hear)

application = Application("demo")
port = os.environ.get("PORT", 8080)
endpoint = serverFromString(reactor, f"tcp:{port}:interface=127.0.0.1")
StreamServerEndpointService(endpoint, site).setServiceParent(application)
