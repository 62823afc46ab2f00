"""
Flask-Session, with its Redis interface, on waitress.
"""

import sys

from flask import Flask, session
from flask_session import Session
from redis import Redis
from waitress import serve

from benchmarks.many import payload

app = Flask(__name__)
app.config["SESSION_TYPE"] = "redis"
app.config["SESSION_REDIS"] = Redis(port=int(sys.argv[2]))
Session(app)


@app.route("/count")
def count() -> str:
    if "user" not in session:
        session.update(payload(1))
        session["user"] = 0
    session["user"] += 1
    return str(session["user"])


@app.route("/bare")
def bare() -> str:
    return "ok"


if __name__ == "__main__":
    serve(app, host="127.0.0.1", port=int(sys.argv[1]), threads=32, _quiet=True)
