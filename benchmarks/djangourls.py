"""
The same two pages, as a Django application.
"""

from typing import Any

from django.http import HttpResponse
from django.urls import path

from benchmarks.many import payload


def count(request: Any) -> HttpResponse:
    session = request.session
    if "user" not in session:
        session.update(payload(1))
    session["user"] += 1
    return HttpResponse(b"ok")


def bare(request: Any) -> HttpResponse:
    return HttpResponse(b"ok")


urlpatterns = [path("count", count), path("bare", bare)]
