"""
starsessions, with its Redis store, on Starlette and Uvicorn.
"""

import sys

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starsessions import SessionAutoloadMiddleware, SessionMiddleware
from starsessions.stores.redis import RedisStore

from benchmarks.many import payload


async def count(request: Request) -> Response:
    session = request.session
    if "user" not in session:
        session.update(payload(1))
        session["user"] = 0
    session["user"] += 1
    return Response(b"%d" % session["user"])


async def bare(request: Request) -> Response:
    return Response(b"ok")


if __name__ == "__main__":
    sessions = [
        Middleware(
            SessionMiddleware,
            store=RedisStore(f"redis://127.0.0.1:{sys.argv[2]}"),
            cookie_https_only=False,
            lifetime=900,
        ),
        Middleware(SessionAutoloadMiddleware, paths=["/count"]),
    ]
    routes = [Route("/count", count), Route("/bare", bare)]
    uvicorn.run(
        Starlette(routes=routes, middleware=sessions),
        host="127.0.0.1",
        port=int(sys.argv[1]),
        log_level="warning",
    )
