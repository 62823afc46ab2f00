"""
C{python -m benchmarks}: measure, print the table, keep it in RESULTS.rst.
"""

from __future__ import annotations

import argparse

from benchmarks import harness, many, network, requests, sockjs, sqlite, stores
from benchmarks.harness import Goal

GOALS = [
    Goal("request, session in memory", "oursExisting", "stockExisting", "us", 1.0),
    Goal("request, new session", "oursNew", "stockNew", "us", 0.85),
    Goal("memory of many, each, empty", "oursBytesEmpty", "stockBytesEmpty", "B", 0.45),
    Goal("memory of many, each, 8 fields", "oursBytesFull", "stockBytesFull", "B", 0.25),
    Goal("touch, of many", "oursTouch", "stockTouch", "ns", 0.4),
    Goal("look-up and touch, of many", "oursLookUp", "stockLookUp", "ns", 0.65),
    Goal("all of many due at once: longest gap", "oursGap", "stockGap", "ms", 1 / 400, limit=20),
    Goal("full garbage collection with many", "oursCollect", "stockCollect", "ms", 0.4),
    Goal("SQLite, request: load, change, commit (theirs: Django)", "oursSQLite",
         "djangoSessions", "us", 0.10, base="bareOverTCP", theirBase="djangoBare"),
    Goal("Redis, request: load, change, commit (theirs: express)", "oursRedis",
         "expressRedis", "us", 0.25, base="oursRedisBare", theirBase="none"),
    Goal("the same (theirs: aiohttp-session)", "oursRedis", "aiohttpRedis", "us", 0.25,
         base="oursRedisBare", theirBase="none"),
    Goal("the same (theirs: starsessions)", "oursRedis", "starsessionsRedis", "us", 0.25,
         base="oursRedisBare", theirBase="none"),
    Goal("the same (theirs: Flask-Session)", "oursRedis", "flaskRedis", "us", 0.25,
         base="oursRedisBare", theirBase="none"),
    Goal("SQLite, commits/s in groups (theirs: raw)", "oursGroups", "rawGroups", "/s", least=0.7),
    Goal("Redis, loads/s, 64 at once (theirs: redis-benchmark)", "oursRedisLoads",
         "redisBenchmark", "/s", least=0.28),
    Goal("the same (theirs: txredisapi, nothing decoded)", "oursRedisLoads",
         "txredisapiLoads", "/s", least=3.0),
    Goal("PostgreSQL, loads/s (theirs: pgbench, pipelined)", "oursPostgreSQLLoads",
         "pgbenchLoads", "/s", least=0.6),
    Goal("PostgreSQL, commits/s (theirs: pgbench -c8)", "oursPostgreSQLCommits",
         "pgbenchCommits", "/s", least=0.8),
    Goal("memcached, loads/s (theirs: twisted.protocols.memcache)", "oursMemcachedLoads",
         "twistedMemcache", "/s", least=1.0),
    Goal("SQLite, commits/s with many sessions, of those with 1000", "sqliteOfMany", None,
         "", floor=0.9),
    Goal("Redis, likewise", "redisOfMany", None, "", floor=0.9),
    Goal("PostgreSQL, likewise", "postgresqlOfMany", None, "", floor=0.9),
    Goal("memcached, likewise", "memcachedOfMany", None, "", floor=0.9),
    Goal("SQLite, due sessions ended in a second", "sqliteSweeps", None, "/s", floor=5000),
    Goal("the longest reactor gap meanwhile", "sqliteSweepGap", None, "ms", limit=20),
    Goal("Redis, due sessions ended in a second", "redisSweeps", None, "/s", floor=5000),
    Goal("the longest reactor gap meanwhile", "redisSweepGap", None, "ms", limit=20),
    Goal("PostgreSQL, due sessions ended in a second", "postgresqlSweeps", None, "/s", floor=5000),
    Goal("the longest reactor gap meanwhile", "postgresqlSweepGap", None, "ms", limit=20),
    Goal("SQLite file of many: first answer", "firstAnswer", None, "s", limit=1.0),
    Goal("SQLite file of many: memory of a start (theirs: of 1000)", "memoryOfAStart",
         "memoryOfASmallStart", "MiB", 1.2),
    Goal("reactor gap while another process writes", "gapWhileAnotherWrites", None, "ms",
         limit=10.0),
    Goal("SockJS, websocket echo, 1 connection (theirs: sockjs-node)", "sockjsEchoOfOne",
         "sockjsNodeEchoOfOne", "/CPU s", least=0.8),
    Goal("SockJS, websocket echo, 100 connections (theirs: sockjs-node)", "sockjsEchoOfMany",
         "sockjsNodeEchoOfMany", "/CPU s", least=0.6),
    Goal("SockJS, the same (theirs: sockjs-tornado)", "sockjsEchoOfMany",
         "sockjsTornadoEchoOfMany", "/CPU s", least=2.5),
    Goal("SockJS, broadcast to 500 xhr-streams (theirs: sockjs-node)", "sockjsFanOut",
         "sockjsNodeFanOut", "/CPU s", least=1.0),
    Goal("SockJS, memory of an idle websocket (theirs: sockjs-tornado)", "sockjsIdleWebsocket",
         "sockjsTornadoIdleWebsocket", "KiB", 1.0),
    Goal("SockJS, memory of an idle xhr-stream (theirs: sockjs-tornado)", "sockjsIdleStream",
         "sockjsTornadoIdleStream", "KiB", 1.0),
    Goal("SockJS, delayed calls for 10,000 idle connections", "sockjsDelayedCalls", None,
         "", limit=1),
    Goal("SockJS, all of them gone at once: longest turn", "sockjsGoneTurn", None, "ms", limit=20),
    Goal("SockJS, all their heartbeats at once: longest turn", "sockjsHeartbeatTurn", None,
         "ms", limit=20),
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--scale", type=int, default=1_000_000, help="sessions, where many")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="100,000 sessions, one round")
    parser.add_argument("--only", help="rows whose title has this in it; keeps no results")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        harness.here(options.measure, options.scale)
        return
    if options.quick:
        options.scale, options.rounds = 100_000, 1
    goals = [goal for goal in GOALS if not options.only or options.only in goal.title]
    text = harness.table(goals, options.scale, options.rounds)
    print(text)
    if not options.only:
        command = "python -m benchmarks " + (
            "--quick" if options.quick else f"--rounds {options.rounds}"
        )
        harness.write(text, command, options.scale, options.rounds)


if __name__ == "__main__":
    main()

__all__ = ["many", "network", "requests", "sockjs", "sqlite", "stores"]
