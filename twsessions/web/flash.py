"""
One-shot values: reading one takes it away.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred, maybeDeferred

from twsessions.core.codec import decode
from twsessions.core.data import View
from twsessions.core.delta import FLASH

if TYPE_CHECKING:
    from twsessions.web.session import Session

__all__ = ["Flash"]


class Flash(MutableMapping[str, Any]):
    """
    The one-shot values of a session, apart from its own keys.

    C{flash["saved"] = "…"} leaves one; C{flash["saved"]}, C{get} and C{pop} take
    it. C{in}, C{len} and iteration only look. L{None} is a value like any other.
    """

    __slots__ = ("_session",)

    def __init__(self, session: Session) -> None:
        self._session = session

    def _view(self) -> View:
        return View(self._session._values, FLASH, "session.flash")

    def __getitem__(self, key: str) -> Any:
        view = self._view()
        value = view[key]
        self._session._writable()
        del view[key]
        self._session._keeper.changed(self._session)
        return value

    def __setitem__(self, key: str, value: Any) -> None:
        self._session._writable()
        self._view()[key] = value
        self._session._keeper.changed(self._session)

    def __delitem__(self, key: str) -> None:
        self._session._writable()
        del self._view()[key]
        self._session._keeper.changed(self._session)

    def pop(self, key: str, *default: Any) -> Any:
        """
        As reading it; with a default, that is given for a missing one.
        """
        try:
            return self[key]
        except KeyError:
            if default:
                return default[0]
            raise

    def take(self, key: str, *default: Any) -> Deferred[Any]:
        """
        As L{pop}, but of all requests in all processes that ask at the same
        time only one gets the value. What else has changed in the session is
        stored, too.

        @return: fires with the value; without a default it fails with
            C{KeyError} if there is none. It fails as C{session.commit()} does.
        """
        session = self._session
        if session._keeper.local:
            return maybeDeferred(self.pop, key, *default)

        async def take() -> Any:
            session._writable()
            encoded = await session._keeper.commits.take(session, FLASH + key)  # type: ignore[attr-defined]
            if encoded is not None:
                return decode(encoded)
            if default:
                return default[0]
            raise KeyError(key)

        return Deferred.fromCoroutine(take())

    def popitem(self) -> tuple[str, Any]:
        """
        As reading any one of them.
        """
        for key in self:
            return key, self[key]
        raise KeyError("no values are left")

    def clear(self) -> None:
        """
        Remove all, unread.
        """
        self._session._writable()
        self._view().clear()
        self._session._keeper.changed(self._session)

    def __contains__(self, key: object) -> bool:
        return key in self._view()

    def __iter__(self) -> Iterator[str]:
        return iter(self._view())

    def __len__(self) -> int:
        return len(self._view())
