"""
The command line: C{python -m twsessions}.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime, timedelta, timezone
from math import inf
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, TextIO

from twisted.internet.defer import Deferred

from twsessions.core.record import Record
from twsessions.errors import NotSupported, SessionError
from twsessions.interfaces import LOCAL, ISessionStore
from twsessions.ops.admin import endBefore, endHandles, endPrincipal, pagesOf
from twsessions.ops.migrate import Counts, migrate
from twsessions.stores.fromurl import checkURL, storeFromURL
from twsessions.stores.sqlite import SQLiteStore

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

__all__ = ["main", "run"]

_WIDTH = 30  # characters of the progress bar
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_LAST = (datetime.max.replace(tzinfo=timezone.utc) - _EPOCH).total_seconds()


class _World(NamedTuple):
    reactor: IReactorTime
    out: TextIO
    err: TextIO
    goOn: Callable[[], object]


class _Refusal(Exception):
    """
    What is asked for cannot be done, and the sentence that says so.
    """


class _Interrupted(Exception):
    """
    Somebody has stopped the program.
    """


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        # It repeats arguments, and a store's URL may hold a password.
        super().error(re.sub(r"\S*://.*", "…", message, flags=re.DOTALL))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m twsessions", description="Look after sessions.")
    commands = parser.add_subparsers(dest="command", required=True)

    def command(does: object, name: str, summary: str, more: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=summary, description=more)
        made.set_defaults(does=does)
        return made

    def store(to: argparse.ArgumentParser, name: str, shown: str) -> None:
        to.add_argument(
            name,
            metavar=shown,
            help="a store's URL, or $NAME: an environment variable that holds it"
            " (other users of the machine can see what is on a command line)",
        )

    listing = command(
        _list,
        "list",
        "show living sessions",
        "Show living sessions, without ids and values. Times are UTC, by the store's clock.",
    )
    store(listing, "store", "STORE")
    listing.add_argument(
        "--principal", metavar="NAME", type=_name, help="only those of this principal"
    )
    listing.add_argument(
        "--json", action="store_true", help="one JSON object a line, with nothing shortened"
    )

    ending = command(
        _end,
        "end",
        "end sessions",
        "End sessions, while the store is in use: whoever has one of them is logged out. Name them"
        " in one of four ways. Can be stopped and run again.",
    )
    store(ending, "store", "STORE")
    ending.add_argument("handles", metavar="HANDLE", nargs="*", type=_handle, help="as list shows")
    ending.add_argument("--principal", metavar="NAME", type=_name, help="all of this principal")
    ending.add_argument(
        "--before",
        metavar="TIME",
        type=_time,
        help="all created before this time (ISO 8601; UTC unless it says otherwise): for a store"
        " that came back as it once was, so that logouts may be undone",
    )
    ending.add_argument("--all", action="store_true", help="all of everybody")
    ending.add_argument(
        "--keep",
        metavar="HANDLE",
        nargs="+",
        action="extend",
        type=_handle,
        default=[],
        help="but not these",
    )
    ending.set_defaults(error=ending.error)

    moving = command(
        _migrate,
        "migrate",
        "copy living sessions from one store to another",
        "Copy living sessions, with their deadlines, while both stores are in use."
        " Can be stopped and run again: what was used since is brought up to date.",
    )
    store(moving, "source", "FROM")
    store(moving, "target", "TO")
    return parser


def _handle(text: str) -> bytes:
    if not re.fullmatch("[0-9a-fA-F]{32}", text):
        raise argparse.ArgumentTypeError("a handle is 32 hexadecimal digits")
    return bytes.fromhex(text)


def _name(text: str) -> str:
    if any("\ud800" <= one <= "\udfff" for one in text):
        raise argparse.ArgumentTypeError("a name is text in the terminal's encoding")
    return text


def _time(text: str) -> float:
    try:
        # Python 3.10 does not know the Z.
        time = datetime.fromisoformat(re.sub("[Zz]$", "+00:00", text))
    except ValueError:
        raise argparse.ArgumentTypeError(
            "a time is like 2026-07-31, 2026-07-31T12:00:00 or 2026-07-31T14:00:00+02:00"
        ) from None
    return (time if time.tzinfo else time.replace(tzinfo=timezone.utc)).timestamp()


# Stores


def _url(given: str) -> str:
    if given.startswith("$"):
        name = given[1:]
        value = os.environ.get(name)
        if value is None:
            shown = name if name.isidentifier() else "of that name"  # it may be a URL
            raise _Refusal(f"there is no environment variable {shown}")
        given = value
    try:
        checkURL(given)
    except (ValueError, NotSupported) as error:
        raise _Refusal(str(error)) from None
    return given


@asynccontextmanager
async def _opened(world: _World, *urls: str) -> AsyncIterator[list[ISessionStore]]:
    """
    The stores that have these URLs, until they have been used. All but the first
    one may be new.
    """
    stores = [storeFromURL(world.reactor, url) for url in urls]
    try:
        first = stores[0]
        if any(LOCAL in store.capabilities for store in stores):
            raise _Refusal("a memory: store is seen by its own process only")
        if isinstance(first, SQLiteStore) and not os.path.exists(first.path):
            raise _Refusal(f"there is no file {_printable(first.path)}")
        yield stores
    finally:
        for store in stores:
            await store.close()


# Commands: each takes what was parsed and gives the exit code.


async def _list(world: _World, options: argparse.Namespace) -> int:
    row: Callable[[Record], str] = _object if options.json else _row
    head = "" if options.json else _HEAD
    async with _opened(world, _url(options.store)) as [store]:
        with _tally(world, "") as add:
            async for page in pagesOf(store, options.principal):
                world.out.write(head)
                world.out.writelines(map(row, page))
                world.out.flush()
                head = ""
                add(len(page))
    return 0


async def _end(world: _World, options: argparse.Namespace) -> int:
    ways = [options.handles, options.principal is not None, options.before is not None, options.all]
    if sum(map(bool, ways)) != 1:
        options.error("name the sessions to end by HANDLE, --principal, --before or --all: by one")
    unknown: list[bytes] = []
    async with _opened(world, _url(options.store)) as [store]:
        with _tally(world, " ended", isLive=world.err.isatty()) as add:
            if options.handles:
                unknown = await endHandles(store, options.handles, options.keep, add)
            elif options.principal is not None:
                await endPrincipal(store, options.principal, options.keep, add)
            else:
                time = inf if options.before is None else options.before
                await endBefore(store, time, options.keep, add)
    for handle in unknown:
        world.err.write(f"no session has the handle {handle.hex()}\n")
    return 1 if unknown else 0


async def _migrate(world: _World, options: argparse.Namespace) -> int:
    source, target = _url(options.source), _url(options.target)
    if source == target:
        raise _Refusal("FROM and TO are the same store")
    async with _opened(world, source, target) as [old, new]:
        try:
            counts = await migrate(old, new, _bar(world))
        finally:
            if world.err.isatty():
                world.err.write("\n")  # after the bar
    world.err.write(
        f"{_sessions(counts.seen)}: {counts.copied:,} copied, {counts.updated:,} brought up to"
        f" date, {counts.same:,} there already, {counts.ended:,} ended meanwhile\n"
    )
    return 0


# What is shown


def _row(record: Record) -> str:
    created, used, ends = (
        _iso(time) or "never" for time in (record.created, record.touched, record.deadline)
    )
    return (
        f"{record.handle.hex()}  {_cut(record.principal, 24):24}  {created:20}  {used:20}"
        f"  {ends:20}  {record.uses:8}  {_cut(record.address, 39):15}"
        f"  {_cut(record.userAgent, 40)}\n"
    )


_HEAD = (
    f"{'HANDLE':32}  {'PRINCIPAL':24}  {'CREATED':20}  {'LAST USED':20}  {'ENDS AT':20}  REQUESTS"
    f"  {'ADDRESS':15}  USER AGENT\n"
)


def _object(record: Record) -> str:
    # The names are SessionDescription's.
    shown = {
        "handle": record.handle.hex(),
        "principal": record.principal,
        "created": _iso(record.created),
        "lastModified": _iso(record.touched),
        "deadline": _iso(record.deadline),
        "requestCount": record.uses,
        "address": record.address,
        "userAgent": record.userAgent,
    }
    return json.dumps(shown) + "\n"  # in ASCII


def _sessions(count: int) -> str:
    return "1 session" if count == 1 else f"{count:,} sessions"


def _iso(time: float) -> str | None:
    """
    L{None}: never, or after the year 9999.
    """
    if time >= _LAST:
        return None
    moment = _EPOCH + timedelta(seconds=int(time))
    return moment.replace(tzinfo=None).isoformat() + "Z"


def _cut(text: str | None, width: int) -> str:
    if text is None:
        return "-"
    text = _printable(text)
    return text if len(text) <= width else text[: width - 1] + "…"


def _printable(text: str) -> str:
    """
    Text that a client has sent, with nothing in it that a terminal obeys.
    """
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode() for one in text
    )


@contextmanager
def _tally(world: _World, verb: str, isLive: bool = False) -> Iterator[Callable[[int], None]]:
    """
    Says how many sessions it came to, also when it was stopped on the way.

    @param isLive: and shows it growing.
    """
    count = 0

    def add(more: int) -> None:
        nonlocal count
        count += more
        if isLive:
            world.err.write(f"{_sessions(count)}{verb}\r")
            world.err.flush()
        world.goOn()

    try:
        yield add
    except (SessionError, _Interrupted):
        if count:
            world.err.write(f"{_sessions(count)}{verb}\n")
        raise
    world.err.write(f"{_sessions(count)}{verb}\n")


def _bar(world: _World) -> Callable[[Counts], None]:
    isTerminal = world.err.isatty()

    def show(counts: Counts) -> None:
        if isTerminal:
            full = int(counts.done * _WIDTH)
            bar = "#" * full + "." * (_WIDTH - full)
            world.err.write(f"\r[{bar}] {counts.done:4.0%}  {_sessions(counts.seen)} ")
            world.err.flush()
        world.goOn()

    return show


# The program


async def run(
    reactor: IReactorTime,
    arguments: Sequence[str],
    out: TextIO,
    err: TextIO,
    goOn: Callable[[], object] = lambda: None,
) -> int:
    """
    Do what the command line says.

    @param arguments: without the program's name.
    @param out: where to show what was asked for.
    @param err: where to say what happens.
    @param goOn: is called between two pages of sessions; what it raises stops.
    @return: the exit code: 0, or 1 if it could not be done.
    @raise SystemExit: the arguments are wrong.
    """
    options = _parser().parse_args(arguments)
    try:
        code: int = await options.does(_World(reactor, out, err, goOn), options)
    except (_Refusal, NotSupported) as error:
        err.write(f"{error}\n")
        return 1
    except (SessionError, _Interrupted) as error:
        err.write(f"stopped: {error}; it can be run again\n")
        return 1
    return code


def main() -> None:
    """
    The program.
    """
    from twisted.internet import task

    for stream in sys.stdout, sys.stderr:
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]

    async def go(reactor: Any) -> None:
        isStopping = False
        over: Deferred[None] = Deferred()

        def stop() -> Deferred[None]:
            nonlocal isStopping
            isStopping = True
            return over

        def goOn() -> None:
            if isStopping:
                raise _Interrupted("interrupted")

        reactor.addSystemEventTrigger("before", "shutdown", stop)
        try:
            code = await run(reactor, sys.argv[1:], sys.stdout, sys.stderr, goOn)
        except BrokenPipeError:  # whoever reads it has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = 1
        finally:
            over.callback(None)
        raise SystemExit(code)

    task.react(lambda reactor: Deferred.fromCoroutine(go(reactor)))
