"""
A page that does what a test says, and what a Deferred has already.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

__all__ = ["Does", "Page", "result"]

Does = Callable[[Any], object]


class Page(Resource):
    """
    Does whatever it was last told to.

    @ivar does: is given the request; what it returns is the page.
    """

    isLeaf = True
    does: Does

    def render_GET(self, request: Any) -> object:
        result = self.does(request)
        if isinstance(result, bytes) or result is NOT_DONE_YET:
            return result
        return repr(result).encode()


def result(thing: Deferred[Any] | Coroutine[Any, Any, Any]) -> Any:
    """
    What is there already.
    """
    results: list[Any] = []
    deferred = thing if isinstance(thing, Deferred) else Deferred.fromCoroutine(thing)
    deferred.addBoth(results.append)
    assert results, "nothing has come"
    if isinstance(results[0], Failure):
        results[0].raiseException()
    return results[0]
