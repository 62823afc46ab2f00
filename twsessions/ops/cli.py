"""
The command line: C{python -m twsessions}.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TextIO

from twsessions.errors import SessionError
from twsessions.ops.migrate import Counts, migrate
from twsessions.stores.fromurl import checkURL, storeFromURL

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

__all__ = ["main", "run"]

_WHAT = "Look after sessions."
_WIDTH = 30  # characters of the progress bar


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m twsessions", description="Look after sessions."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    moving = commands.add_parser(
        "migrate",
        help="copy living sessions from one store to another",
        description="Copy living sessions, with their deadlines, while both stores are in use."
        " Can be stopped and run again: what was used since is brought up to date.",
    )
    for name, what in (("source", "FROM"), ("target", "TO")):
        moving.add_argument(
            name,
            metavar=what,
            help="a store's URL, or $NAME: an environment variable that holds it"
            " (other users of the machine can see what is on a command line)",
        )
    return parser


def _url(given: str) -> str:
    if not given.startswith("$"):
        return given
    value = os.environ.get(given[1:])
    if value is None:
        raise ValueError(f"there is no environment variable {given[1:]}")
    return value


def _bar(out: TextIO) -> Any:
    isTerminal = out.isatty()

    def show(counts: Counts) -> None:
        if isTerminal:
            full = int(counts.done * _WIDTH)
            bar = "#" * full + "." * (_WIDTH - full)
            out.write(f"\r[{bar}] {counts.done:4.0%}  {counts.seen:,} sessions ")
            out.flush()

    return show


async def run(reactor: IReactorTime, arguments: Sequence[str], out: TextIO) -> int:
    """
    Do what the command line says.

    @param arguments: without the program's name.
    @param out: where to say what happens.
    @return: the exit code: 0, or 1 if it could not be done.
    @raise SystemExit: the arguments are wrong.
    """
    options = _parser().parse_args(arguments)
    try:
        urls = [_url(options.source), _url(options.target)]
        for url in urls:
            checkURL(url)
        if urls[0] == urls[1]:
            raise ValueError("FROM and TO are the same store")
    except (ValueError, SessionError) as error:
        out.write(f"{error}\n")
        return 1
    source, target = (storeFromURL(reactor, url) for url in urls)
    try:
        counts = await migrate(source, target, urls[0], _bar(out))
    except SessionError as error:
        out.write(f"\nstopped: {error}\nRun it again to go on.\n")
        return 1
    finally:
        await source.close()
        await target.close()
    out.write(
        f"\n{counts.seen:,} sessions: {counts.copied:,} copied, {counts.updated:,} brought up to"
        f" date, {counts.same:,} there already, {counts.ended:,} ended meanwhile\n"
    )
    return 0


def main() -> None:
    """
    The program.
    """
    from twisted.internet import task
    from twisted.internet.defer import Deferred

    async def go(reactor: Any) -> None:
        code = await run(reactor, sys.argv[1:], sys.stderr)
        if code:
            raise SystemExit(code)

    task.react(lambda reactor: Deferred.fromCoroutine(go(reactor)))
