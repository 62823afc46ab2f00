"""
What a session on Redis costs each request, with us and with others.
"""

from __future__ import annotations

from benchmarks.harness import ROOT, measure
from benchmarks.servers import perRequest, python, redis

EXPRESS = ["node", str(ROOT / "benchmarks" / "peers" / "express.js")]


def ours(path: str) -> float:
    with redis() as port:
        return perRequest(python("ours"), f"redis://127.0.0.1:{port}/0", path)


def theirs(program: list[str], path: str) -> float:
    with redis() as port:
        return perRequest(program, str(port), path)


@measure
def oursRedis(scale: int) -> float:
    return ours("/count")


@measure
def oursRedisBare(scale: int) -> float:
    return ours("/bare")


@measure
def expressRedis(scale: int) -> float:
    return theirs(EXPRESS, "/count") - theirs(EXPRESS, "/bare")


@measure
def aiohttpRedis(scale: int) -> float:
    program = python("aiohttpsession")
    return theirs(program, "/count") - theirs(program, "/bare")


@measure
def starsessionsRedis(scale: int) -> float:
    program = python("starsessionsasgi")
    return theirs(program, "/count") - theirs(program, "/bare")


@measure
def flaskRedis(scale: int) -> float:
    program = python("flasksession")
    return theirs(program, "/count") - theirs(program, "/bare")


@measure
def none(scale: int) -> float:
    """
    The base of what has its base taken away already.
    """
    return 0.0
