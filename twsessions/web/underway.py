"""
Which request's page is running.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

__all__ = ["underWay", "within"]

underWay: ContextVar[Any] = ContextVar("twsessions.underWay", default=None)
"""
The request whose page is running. A coroutine keeps it; a plain callback has
L{None}.
"""


def within(request: Any, does: Callable[..., object], *args: Any) -> None:
    """
    Have a request's page run.
    """
    token = underWay.set(request)
    try:
        does(*args)
    finally:
        underWay.reset(token)
