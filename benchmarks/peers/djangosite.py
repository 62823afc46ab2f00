"""
Django, with its database sessions in an SQLite file, on waitress.
"""

import logging
import sys
from typing import Any

import django
from django.conf import settings
from django.core.management import call_command
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse
from django.urls import path
from waitress import serve

from benchmarks.many import payload


def count(request: Any) -> HttpResponse:
    session = request.session
    if "user" not in session:
        session.update(payload(1))
        session["user"] = 0
    session["user"] += 1
    return HttpResponse(b"%d" % session["user"])


def bare(request: Any) -> HttpResponse:
    return HttpResponse(b"ok")


urlpatterns = [path("count", count), path("bare", bare)]


if __name__ == "__main__":
    settings.configure(
        DEBUG=False,
        ALLOWED_HOSTS=["*"],
        ROOT_URLCONF=__name__,
        SECRET_KEY="k" * 50,
        DATABASES={
            "default": {
                "ENGINE": "django.db.backends.sqlite3",
                "NAME": sys.argv[2],
                "CONN_MAX_AGE": None,
                "OPTIONS": {"init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;"},
            }
        },
        INSTALLED_APPS=["django.contrib.sessions"],
        MIDDLEWARE=[
            "django.contrib.sessions.middleware.SessionMiddleware",
            "django.middleware.common.CommonMiddleware",  # says how long a response is
        ],
        LOGGING_CONFIG=None,
    )
    django.setup()
    call_command("migrate", verbosity=0)
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # there always is one
    serve(get_wsgi_application(), host="127.0.0.1", port=int(sys.argv[1]), threads=32, _quiet=True)
