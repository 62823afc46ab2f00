"""
Which request's page is running.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

__all__ = ["requestOfPage", "within"]

requestOfPage: ContextVar[Any] = ContextVar("twsessions.requestOfPage", default=None)
"""
The request whose page is running. A coroutine keeps it; a plain callback has
L{None}.
"""


def within(request: Any, does: Callable[..., object], *args: Any) -> None:
    """
    Have a request's page run.
    """
    token = requestOfPage.set(request)
    try:
        does(*args)
    finally:
        requestOfPage.reset(token)
