"""
Connections in named groups, to which every process can speak.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from twisted.internet.defer import Deferred, fail, maybeDeferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from twsessions.errors import NotSupported
from twsessions.interfaces import LOCAL, PUBLISH, ISessionStore, Message
from twsessions.sockjs.connection import SockJSConnection, broadcast
from twsessions.stores.link import StoreLink
from twsessions.stores.memory import MemoryStore
from twsessions.web.owner import SessionOwner

__all__ = ["Group", "Groups"]

_PREFIX = "sockjs:"  # of topics; others are other code's
_TEXT, _BYTES = b"t", b"b"


class Groups:
    """
    The groups of an application, by name, over all processes that share its
    sessions::

        groups = Groups(site)

        class Chat(SockJSConnection):
            def onOpen(self, info):
                groups["room"].join(self)

            def onMessage(self, message):
                groups["room"].broadcast(message)

    A message goes to the store, and from there to the members in every
    process, also to those in this one: all of them hear what one process says
    in the order in which it was said. On one server of Redis or PostgreSQL it
    is one order for all who speak; on a Redis Cluster two that speak at the
    same time may be heard in one order here and in another there.

    What there is to know:

      - A message arrives at most once, and is not kept for anybody.
      - It has up to 256 KiB
        (L{MESSAGE_LIMIT<twsessions.interfaces.MESSAGE_LIMIT>}), in UTF-8 and
        with the group's name.
      - When a process has lost its connection to the store, its members miss
        what is said until it is back. That is logged, and C{missed} is called;
        what was said is not to be had any more.
      - Each process is sent what is said to any group.
      - All C{Groups} of one store speak of the same groups, C{prefix} or
        C{schema} in the store's URL tells applications apart.

    Iteration gives the names of the groups that have members in this process.
    """

    _log = Logger()

    def __init__(
        self,
        sessions: SessionOwner | ISessionStore | None = None,
        reactor: IReactorTime | None = None,
        missed: Callable[[], object] | None = None,
    ) -> None:
        """
        @param sessions: a L{SessionSite<twsessions.SessionSite>} or
            L{SessionResource<twsessions.SessionResource>}, whose store carries
            the messages: memory (one process), Redis or PostgreSQL. Or a store.
            Or L{None}: the groups are of this process only.
        @param reactor: for a store; others need none.
        @param missed: called when members here may have missed something.
        @raise TypeError: C{sessions} is something else, or a reactor is missing.
        @raise NotSupported: a store that carries no messages.
        """
        if sessions is None:
            sessions = MemoryStore(lambda: 0.0)
        if not isinstance(sessions, SessionOwner):
            if not ISessionStore.providedBy(sessions):
                raise TypeError(
                    "groups are made for a SessionSite, a SessionResource or a store, not for"
                    f" {sessions!r}"
                )
            _check(sessions)
            if reactor is None and LOCAL not in sessions.capabilities:
                raise TypeError("groups on a store of its own need a reactor")
        self._sessions = sessions
        self._reactor = reactor
        self._missed = missed
        self._link: StoreLink | None = None
        self._hears = False
        self._members: dict[str, dict[SockJSConnection, None]] = {}
        self._joined: dict[SockJSConnection, set[str]] = {}

    def __getitem__(self, name: str) -> Group:
        """
        A group. It need not be made, and costs nothing while it has no members.
        """
        if not isinstance(name, str):
            raise TypeError(f"a group's name is a str, not {type(name).__name__}")
        return Group(self, name)

    def __iter__(self) -> Iterator[str]:
        return iter(tuple(self._members))

    def __len__(self) -> int:
        return len(self._members)

    def __contains__(self, name: object) -> bool:
        return name in self._members

    # For groups

    def _membersOf(self, name: str) -> dict[SockJSConnection, None]:
        return self._members.get(name, {})

    def _join(self, name: str, connection: SockJSConnection) -> None:
        if connection.isClosed:
            if connection.closeReason is None:
                raise ValueError("a connection can join a group when it is open: not before onOpen")
            return
        self._toStore(hears=True)
        names = self._joined.get(connection)
        if names is None:
            names = self._joined[connection] = set()
            connection.notifyOnClose(lambda: self._closed(connection))
        names.add(name)
        self._members.setdefault(name, {})[connection] = None

    def _leave(self, name: str, connection: SockJSConnection) -> None:
        names = self._joined.get(connection, set())
        if name in names:
            names.remove(name)
            members = self._members[name]
            del members[connection]
            if not members:
                del self._members[name]

    def _closed(self, connection: SockJSConnection) -> None:
        for name in tuple(self._joined[connection]):
            self._leave(name, connection)
        del self._joined[connection]

    def _say(self, name: str, message: str | bytes) -> Deferred[None]:
        if isinstance(message, str):
            # Half of a surrogate pair is legal in JSON.
            payload = _TEXT + message.encode("utf-8", "surrogatepass")
        elif isinstance(message, bytes):
            payload = _BYTES + message
        else:
            raise TypeError(f"a message is a str or bytes, not {type(message).__name__}")
        try:
            link = self._toStore()
        except NotSupported:
            return fail()
        return link.publish(Message(_PREFIX + name, payload))

    # The store

    def _toStore(self, hears: bool = False) -> StoreLink:
        """
        The way to the store: not the sessions' own, which must not suffer from
        whatever happens to messages.

        @raise NotSupported: it carries no messages.
        """
        sessions, link = self._sessions, self._link
        reactor: Any = self._reactor
        timeout = 2.0
        if isinstance(sessions, SessionOwner):
            # A site that was stopped, and started again, has another store.
            keeper = sessions.keeper
            store = keeper.link.store
            reactor, timeout = keeper.reactor, sessions.settings.storeTimeout
        else:
            store = sessions
        if link is None or link.store is not store:
            _check(store)
            link = self._link = StoreLink(reactor, store, timeout)
            self._hears = False
        if not self._hears and (hears or self._members):
            self._hears = True
            # Past the link: a subscription looks after itself once it is made.
            listening: Deferred[None] = maybeDeferred(store.subscribe, self._heard)
            listening.addErrback(self._notYet)
        return link

    def _notYet(self, failure: Failure) -> None:
        self._log.warn(
            "what is said to groups is not heard yet: {reason}", reason=failure.getErrorMessage()
        )

    def _heard(self, message: Message | None) -> None:
        if message is None:
            self._log.warn("something that was said to groups may have been missed")
            if self._missed is not None:
                self._missed()
        elif message.topic.startswith(_PREFIX):
            members = self._members.get(message.topic[len(_PREFIX) :])
            if members:
                kind, payload = message.payload[:1], message.payload[1:]
                if kind == _TEXT:
                    broadcast(members, payload.decode("utf-8", "surrogatepass"))
                elif kind == _BYTES:
                    broadcast(members, payload)


@dataclass(frozen=True)
class Group:
    """
    One group; C{groups["room"]} makes it.

    Its length and iteration are about its members in this process; nobody
    knows those of the others.

    @ivar name: any text.
    """

    _groups: Groups
    name: str

    def join(self, connection: SockJSConnection) -> None:
        """
        Let a connection hear what arrives for the group from now on, until it
        leaves or is closed. To do it again, or with one that is closed, does no
        harm.

        @raise ValueError: the connection is not open yet.
        @raise NotSupported: the sessions' store carries no messages.
        """
        self._groups._join(self.name, connection)

    def leave(self, connection: SockJSConnection) -> None:
        """
        Let a connection hear no more of it. Nothing happens if it is no member.
        """
        self._groups._leave(self.name, connection)

    def broadcast(self, message: str | bytes) -> Deferred[None]:
        """
        Say something to all members in all processes. Whoever says it need not
        be one.

        @param message: as for
            L{SockJSConnection.send<twsessions.sockjs.SockJSConnection.send>}.
        @return: fires when the store has taken it. Fails with
            L{StoreError<twsessions.errors.StoreError>} if it is too large; with
            L{StoreUnavailable<twsessions.errors.StoreUnavailable>}, after
            C{storeTimeout} at the latest, if it may or may not arrive; with
            L{NotSupported<twsessions.errors.NotSupported>}.
        @raise TypeError: it is neither C{str} nor C{bytes}.
        """
        return self._groups._say(self.name, message)

    def __len__(self) -> int:
        return len(self._groups._membersOf(self.name))

    def __iter__(self) -> Iterator[SockJSConnection]:
        return iter(tuple(self._groups._membersOf(self.name)))

    def __contains__(self, connection: object) -> bool:
        return connection in self._groups._membersOf(self.name)


def _check(store: ISessionStore) -> None:
    if PUBLISH not in store.capabilities:
        raise NotSupported(
            "this store carries no messages between processes: groups need Redis or PostgreSQL;"
            " for one process, make them without a store: Groups()"
        )
