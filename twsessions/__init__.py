"""
Twisted Web's sessions, made real: they survive restarts, are shared by
processes, end when they should and say so.

The everyday names are loaded on first use, so that C{import twsessions}
pulls in neither C{twisted.web} nor a reactor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"

_HOMES = {
    "Session": "twsessions.web.session",
    "SessionSite": "twsessions.web.site",
    "SessionResource": "twsessions.web.resource",
    "CookiePolicy": "twsessions.core.cookies",
    "registerComponent": "twsessions.web.components",
    "storeFromURL": "twsessions.stores.fromurl",
}

__all__ = [
    "CookiePolicy",
    "Session",
    "SessionResource",
    "SessionSite",
    "registerComponent",
    "storeFromURL",
]

if TYPE_CHECKING:
    from twsessions.core.cookies import CookiePolicy
    from twsessions.stores.fromurl import storeFromURL
    from twsessions.web.components import registerComponent
    from twsessions.web.resource import SessionResource
    from twsessions.web.session import Session
    from twsessions.web.site import SessionSite


def __getattr__(name: str) -> object:
    try:
        home = _HOMES[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    from importlib import import_module

    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
