"""
A store from a URL: one line a scheme.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl, unquote_to_bytes

from twisted.internet.interfaces import IReactorFromThreads, IReactorTime

from twsessions.errors import NotSupported

if TYPE_CHECKING:
    from twsessions.interfaces import ISessionStore
    from twsessions.stores._threads import Worker

__all__ = ["checkURL", "storeFromURL"]


def storeFromURL(reactor: IReactorTime, url: str) -> ISessionStore:
    """
    The store a URL names; nothing is connected or opened yet.

    C{memory:}; C{sqlite:///relative/path}, C{sqlite:////absolute/path};
    C{redis://host}, C{rediss://host}, C{redis+sentinel://host,host/service},
    C{redis+cluster://host,host}; C{postgresql://host/database};
    C{memcached://host,host}. Their options are in the documentation, under
    Settings.

    @param reactor: gives the time, and the threads if it has any.
    @raise ValueError: the URL is not right; says what would be. It never
        repeats the URL, which may hold a password.
    @raise NotSupported: a store this release does not have.
    """
    return _read(url)(reactor)


def checkURL(url: str) -> None:
    """
    Raise what L{storeFromURL} would raise, without making a store.
    """
    _read(url)


_Maker = Callable[[IReactorTime], "ISessionStore"]


def _read(url: str) -> _Maker:
    scheme, colon, rest = url.partition(":")
    read = _SCHEMES.get(scheme.lower()) if colon else None
    if read is None:
        raise ValueError(f"a store's URL begins with one of {', '.join(_SCHEMES)} and a colon")
    return read(rest)


def _memory(rest: str) -> _Maker:
    if rest:
        raise ValueError("the memory store's URL is 'memory:' and nothing more")

    def make(reactor: IReactorTime) -> ISessionStore:
        from twsessions.stores.memory import MemoryStore

        return MemoryStore(reactor.seconds)

    return make


def _sqlite(rest: str) -> _Maker:
    shape = "sqlite:///relative/path or sqlite:////absolute/path"
    location, _, query = rest.partition("?")
    if not location.startswith("///"):
        raise ValueError(f"an SQLite store is a file on this host, without a host's name: {shape}")
    if "#" in rest:
        raise ValueError("'#' in the path of an SQLite store is written %23")
    try:
        path = unquote_to_bytes(location[3:]).decode()
    except UnicodeError:
        raise ValueError("the path of an SQLite store is UTF-8, percent-encoded") from None
    if not path or path.endswith("/") or "\0" in path:
        raise ValueError(f"an SQLite store needs the path of a file: {shape}")
    options = parse_qsl(query, keep_blank_values=True) if query else []
    synchronous = dict(options).get("synchronous", "normal")
    if [name for name, _ in options] not in (
        [],
        ["synchronous"],
    ) or synchronous not in _SYNC:
        raise ValueError(
            "an SQLite store takes one option, ?synchronous=full or ?synchronous=normal"
        )

    def make(reactor: IReactorTime) -> ISessionStore:
        from twsessions.stores.sqlite import SQLiteStore

        reader, writer = _worker(reactor, "reader"), _worker(reactor, "writer")
        return SQLiteStore(path, reactor.seconds, reader, writer, synchronous)

    return make


_SYNC: Final = ("full", "normal")


def _worker(reactor: IReactorTime, name: str) -> Worker:
    from twsessions.stores._threads import InlineWorker, ThreadWorker

    if IReactorFromThreads.providedBy(reactor):
        return ThreadWorker(reactor, f"twsessions {name}")
    return InlineWorker()


def _module(name: str, scheme: str) -> Callable[[str], _Maker]:
    """
    A store with a module, and URLs, of its own: C{fromURL(scheme, rest)} there.
    """

    def read(rest: str) -> _Maker:
        try:
            home = import_module(f"twsessions.stores.{name}")
        except ModuleNotFoundError as error:
            if error.name == f"twsessions.stores.{name}":
                raise NotSupported(f"this release of twsessions has no {name} store") from None
            raise NotSupported(
                f"{scheme}: needs {error.name}: pip install 'twsessions[{name}]'"
            ) from error
        maker: _Maker = home.fromURL(scheme, rest)
        return maker

    return read


_SCHEMES: Final[dict[str, Callable[[str], _Maker]]] = {
    "memory": _memory,
    "sqlite": _sqlite,
    "redis": _module("redis", "redis"),
    "rediss": _module("redis", "rediss"),
    "redis+sentinel": _module("redis", "redis+sentinel"),
    "redis+cluster": _module("redis", "redis+cluster"),
    "postgresql": _module("postgresql", "postgresql"),
    "memcached": _module("memcached", "memcached"),
}
