"""
aiohttp-session, with its Redis storage.
"""

import sys

import aiohttp_session
from aiohttp import web
from aiohttp_session.redis_storage import RedisStorage
from redis import asyncio as redis

from benchmarks.many import payload


async def count(request: web.Request) -> web.Response:
    session = await aiohttp_session.get_session(request)
    if "user" not in session:
        session.update(payload(1))
        session["user"] = 0
    session["user"] += 1
    return web.Response(body=b"%d" % session["user"])


async def bare(request: web.Request) -> web.Response:
    return web.Response(body=b"ok")


async def make() -> web.Application:
    app = web.Application()
    storage = RedisStorage(redis.Redis(port=int(sys.argv[2])))
    aiohttp_session.setup(app, storage)
    app.router.add_get("/count", count)
    app.router.add_get("/bare", bare)
    return app


if __name__ == "__main__":
    web.run_app(make(), host="127.0.0.1", port=int(sys.argv[1]), print=None, access_log=None)
