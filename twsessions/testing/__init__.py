"""
What applications and stores are tested with.

The names are loaded on first use, so that whoever wants one of them does not
import what the others need.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__all__ = ["Browser", "FaultyStore", "StoreContractMixin"]

_HOMES = {
    "Browser": "twsessions.testing.browser",
    "FaultyStore": "twsessions.testing.faulty",
    "StoreContractMixin": "twsessions.testing.contract",
}

if TYPE_CHECKING:
    from twsessions.testing.browser import Browser
    from twsessions.testing.contract import StoreContractMixin
    from twsessions.testing.faulty import FaultyStore


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
