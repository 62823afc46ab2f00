"""
Run cases in processes of their own, in random order, and tabulate the ratios.
"""

from __future__ import annotations

import json
import os
import platform
import random
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[1]

# As the goals were set: whoever has eight processes gets no more of the machine
# than who has one and its server.
CORES = sorted(os.sched_getaffinity(0))[:2]
os.sched_setaffinity(0, CORES)

Measure = Callable[[int], float]
_measures: dict[str, Measure] = {}


def measure(function: Measure) -> Measure:
    """
    Register what one process measures; it is given a scale, in sessions.
    """
    _measures[function.__name__] = function
    return function


@dataclass(frozen=True)
class Goal:
    """
    One row: two measures, less a common base, and the ratio they should have.

    @ivar unit: of the measures.
    @ivar most: the ratio, or with C{least} the other way round.
    @ivar limit: for C{ours}, in its unit, whatever C{theirs} is.
    @ivar floor: likewise, what it should reach.
    """

    title: str
    ours: str
    theirs: str | None
    unit: str
    most: float | None = None
    least: float | None = None
    limit: float | None = None
    floor: float | None = None
    base: str | None = None
    theirBase: str | None = None


def run(name: str, scale: int) -> float | None:
    """
    One measure, in a process of its own.
    """
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--measure", name, "--scale", str(scale)],
        cwd=ROOT,
        capture_output=True,
        env=dict(os.environ, PYTHONHASHSEED=str(random.randrange(2**16))),
        timeout=1200,
    )
    if done.returncode:
        print(f"  {name}: {done.stderr.decode().strip().splitlines()[-1:]}", file=sys.stderr)
        return None
    value: float = json.loads(done.stdout)
    return value


def here(name: str, scale: int) -> None:
    """
    Measure in this process, and print the number.
    """
    print(json.dumps(_measures[name](scale)))


def table(goals: list[Goal], scale: int, rounds: int) -> str:
    """
    Measure everything C{rounds} times and make the table.
    """
    together = _compared(goals)
    found: dict[str, list[float]] = {name: [] for names in together for name in names}
    for number in range(rounds):
        for names in random.sample(together, len(together)):
            for name in random.sample(sorted(names), len(names)):
                print(f"round {number + 1} of {rounds}: {name}", file=sys.stderr)
                value = run(name, scale)
                if value is not None:
                    found[name].append(value)
    rows = [["what", "ours", "theirs", "ratio", "goal", "met"]]
    for goal in goals:
        rows.append(_row(goal, {name: median(v) for name, v in found.items() if v}))
    return _draw(rows)


def _compared(goals: list[Goal]) -> list[set[str]]:
    """
    The measures, those together that are compared: they are taken one after
    the other, for a machine is not always equally fast.
    """
    together: list[set[str]] = []
    for goal in goals:
        names = {goal.ours, goal.theirs, goal.base, goal.theirBase} - {None}
        apart = [others for others in together if not others & names]
        together = [*apart, names.union(*(others for others in together if others & names))]
    return together


def _row(goal: Goal, values: dict[str, float]) -> list[str]:
    ours, theirs = values.get(goal.ours), values.get(goal.theirs or "")
    if ours is None or (goal.theirs and theirs is None):
        return [goal.title, "-", "-", "-", "-", "not measured"]
    ours -= values.get(goal.base or "", 0.0)
    if theirs is not None:
        theirs -= values.get(goal.theirBase or goal.base or "", 0.0)
    ratio = None if not theirs else ours / theirs
    met, wanted = True, []
    if goal.most is not None and ratio is not None:
        met &= ratio <= goal.most
        wanted.append(f"<= {goal.most:g}")
    if goal.least is not None and ratio is not None:
        met &= ratio >= goal.least
        wanted.append(f">= {goal.least:g}")
    if goal.limit is not None:
        met &= ours <= goal.limit
        wanted.append(f"<= {goal.limit:g} {goal.unit}")
    if goal.floor is not None:
        met &= ours >= goal.floor
        wanted.append(f">= {goal.floor:g} {goal.unit}")
    return [
        goal.title,
        f"{ours:.4g} {goal.unit}",
        "" if theirs is None else f"{theirs:.4g} {goal.unit}",
        "" if ratio is None else f"{ratio:.3g}",
        ", ".join(wanted),
        "yes" if met else "no",
    ]


def _draw(rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rule = "  ".join("=" * width for width in widths)
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return "\n".join([rule, lines[0], rule, *lines[1:], rule, ""])


def write(text: str, command: str, scale: int, rounds: int) -> None:
    """
    Keep the table beside the code, with how it was made.
    """
    import twisted

    head = (
        "Results\n=======\n\n"
        f"Made by ``{command}`` on {date.today()}: medians of {rounds} rounds in random order,\n"
        f'each measure in a process of its own; {scale:,} sessions where it says "of many".\n'
        f"Python {platform.python_version()}, Twisted {twisted.__version__},"
        f" SQLite {sqlite3.sqlite_version}, {len(CORES)} of {os.cpu_count()} cores,"
        f" {platform.machine()}.\n"
        "Times are CPU time of the measured process, and web servers have a core to themselves;\n"
        "only the ratios mean anything elsewhere. A Python that was built without optimizations\n"
        "(by hand; no distribution does that) takes half as long again, unlike C and Node.\n\n"
    )
    (ROOT / "benchmarks" / "RESULTS.rst").write_text(head + text)
