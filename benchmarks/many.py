"""
What very many living sessions cost, in memory.
"""

from __future__ import annotations

import gc
import json
import os
import random
import time
from typing import Any

from twisted.web import resource, server

from benchmarks.harness import measure
from twsessions import Session, SessionSite

TOUCHES = 100_000


def payload(number: int) -> dict[str, Any]:
    """
    Eight fields of about 470 bytes, another for every session; as what comes
    from outside, they share no objects.
    """
    fields = {
        "user": number,
        "name": f"user number {number}",
        "email": f"user{number}@mail.example",
        "roles": ["reader", "writer", f"group{number % 100}"],
        "locale": "en_GB",
        "cart": [{"item": number % 977 + n, "count": n + 1} for n in range(4)],
        "seen": f"2026-11-{number % 28 + 1:02d}T12:00:00",
        "note": f"{number:060d}" * 3,
    }
    own: dict[str, Any] = json.loads(json.dumps(fields))
    return own


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def stockSite() -> Any:
    return server.Site(resource.Resource())


def ourSite() -> Any:
    return SessionSite(resource.Resource())


def fill(site: Any, count: int, full: bool) -> None:
    gc.disable()
    for number in range(count):
        session = site.makeSession()
        if full:
            if isinstance(session, Session):
                session.update(payload(number))
                session.commit()
            else:
                session.data = payload(number)
    gc.enable()
    gc.collect()


def bytesEach(site: Any, count: int, full: bool) -> float:
    gc.collect()
    before = resident()
    fill(site, count, full)
    return (resident() - before) / count


@measure
def stockBytesEmpty(scale: int) -> float:
    return bytesEach(stockSite(), scale, False)


@measure
def oursBytesEmpty(scale: int) -> float:
    return bytesEach(ourSite(), scale, False)


@measure
def stockBytesFull(scale: int) -> float:
    return bytesEach(stockSite(), scale // 4, True)


@measure
def oursBytesFull(scale: int) -> float:
    return bytesEach(ourSite(), scale // 4, True)


def touching(site: Any, count: int, lookUp: bool) -> float:
    fill(site, count, False)
    chosen = random.sample(list(site.sessions), min(TOUCHES, count))
    sessions = [site.sessions[uid] for uid in chosen]
    gc.disable()
    started = time.process_time()
    if lookUp:
        for uid in chosen:
            site.getSession(uid).touch()
    else:
        for session in sessions:
            session.touch()
    return (time.process_time() - started) / len(chosen) * 1e9


@measure
def stockTouch(scale: int) -> float:
    return touching(stockSite(), scale, False)


@measure
def oursTouch(scale: int) -> float:
    return touching(ourSite(), scale, False)


@measure
def stockLookUp(scale: int) -> float:
    return touching(stockSite(), scale, True)


@measure
def oursLookUp(scale: int) -> float:
    return touching(ourSite(), scale, True)


def collecting(site: Any, count: int) -> float:
    fill(site, count, False)
    started = time.process_time()
    gc.collect()
    return (time.process_time() - started) * 1e3


@measure
def stockCollect(scale: int) -> float:
    return collecting(stockSite(), scale)


@measure
def oursCollect(scale: int) -> float:
    return collecting(ourSite(), scale)


def longestGap(site: Any, count: int) -> float:
    """
    Milliseconds by which a tick of every 10 ms comes late, at the worst, while
    all sessions fall due at once.
    """
    from twisted.internet import reactor, task

    short = type("Short", (type(site).sessionFactory,), {"sessionTimeout": 30.0})
    site.sessionFactory = short
    started = time.time()
    real, stopped = reactor.seconds, [True]
    # All are made in the same moment.
    reactor.seconds = lambda: started if stopped else real()  # type: ignore[method-assign]
    site.reactor = reactor
    fill(site, count, False)
    stopped.clear()
    gc.freeze()
    last, gaps = [0.0], [0.0]

    def tick() -> None:
        now = time.perf_counter()
        if last[0]:
            gaps[0] = max(gaps[0], now - last[0] - 0.01)
        last[0] = now
        if not site.sessions:
            ticking.stop()
            reactor.stop()

    ticking = task.LoopingCall(tick)
    reactor.callLater(max(0.0, started + 29.9 - time.time()), ticking.start, 0.01)
    reactor.run()
    return gaps[0] * 1e3


@measure
def stockGap(scale: int) -> float:
    return longestGap(stockSite(), scale)


@measure
def oursGap(scale: int) -> float:
    return longestGap(ourSite(), scale)
