"""
Where the PostgreSQL server is, and how a connection to it is made ready: found,
logged in, its tables there, its statements prepared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

from psycopg import pq
from psycopg.conninfo import make_conninfo
from psycopg.pq.abc import PGresult
from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorFDSet, IResolutionReceiver
from zope.interface import implementer

from twsessions.errors import StoreUnavailable
from twsessions.stores._postgres.errors import explain, stateOf
from twsessions.stores._postgres.schema import SCHEMA, greeting, making
from twsessions.stores._postgres.wire import Wire
from twsessions.stores._several import firstOf

__all__ = ["Dialer"]

_MISSING: Final = frozenset({"42P01", "3F000"})  # no such table, no such schema

# libpq's, where the URL says nothing else.
_USUAL: Final = {
    "client_encoding": "UTF8",
    "fallback_application_name": "twsessions",
    "gssencmode": "disable",  # Kerberos would be asked, and waited for
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
}


class Dialer:
    """
    Makes connections.
    """

    def __init__(
        self, reactor: Any, parameters: Mapping[str, str], schema: str, timeout: float
    ) -> None:
        """
        @param parameters: libpq's, the password among them.
        @param schema: the namespace of the store's tables.
        @param timeout: seconds for a connection, and for each statement.
        """
        self.reactor = reactor
        self.timeout = timeout
        self._parameters = dict(parameters)
        self._schema = schema

    async def dial(
        self,
        listens: str | None,
        lost: Callable[[StoreUnavailable], object],
        notified: Callable[[bytes], object],
        noticed: Callable[[PGresult], None],
    ) -> tuple[Wire, int]:
        """
        Connect; make the tables if there are none.

        @param listens: see L{greeting}.
        @return: the connection, and the OID of the type C{change}.
        @raise StoreUnavailable: that could not be done.
        """
        if not IReactorFDSet.providedBy(self.reactor):
            raise StoreUnavailable(
                "the PostgreSQL store needs a reactor that watches file descriptors, as all do on"
                " POSIX systems"
            )
        # One by one: libpq would wait for one that is silent, and never come to the next.
        parameters = {**_USUAL, **self._parameters}
        names = (parameters.get("host") or _usual(b"host")).split(",")
        ports = (parameters.get("port") or _usual(b"port")).split(",")
        first = partial(firstOf, self.reactor, self.timeout)

        async def attempt(more: Mapping[str, str]) -> tuple[Wire, int]:
            known = {k: v for k, v in {**parameters, **more}.items() if v}
            wire = Wire(self.reactor, lost, notified, noticed)
            try:
                await wire.connect(make_conninfo("", **known).encode())
                change = await self._greet(wire, listens)
                wire.pipeline()
            except BaseException:
                wire.drop(StoreUnavailable("the connection is not used"))
                raise
            return wire, change

        async def host(name: str, port: str) -> tuple[Wire, int]:
            found = await _addresses(self.reactor, name)
            places = [{"host": name, "hostaddr": address, "port": port} for address in found]
            return await first([partial(attempt, place) for place in places])

        return await first(
            [
                partial(host, name, ports[number] if len(ports) > 1 else ports[0])
                for number, name in enumerate(names)
            ]
        )

    async def _greet(self, wire: Wire, listens: str | None) -> int:
        said = greeting(self._schema, self.timeout, listens)
        results = await wire.script(said)
        if stateOf(results[-1]) in _MISSING:
            for result in await wire.script(making(self._schema)):
                _check(result)
            results = await wire.script(said)
        for result in results:
            # The version comes before what a later one may not have any more.
            if result.status == pq.ExecStatus.TUPLES_OK:
                version, change = (int(result.get_value(0, n) or b"0") for n in (0, 1))
                if version != SCHEMA:
                    raise StoreUnavailable(
                        f"the sessions in the schema {self._schema!r} were made by a newer"
                        f" release of twsessions (version {version}, this one knows {SCHEMA}):"
                        " upgrade, or use another schema; nothing in it was changed"
                    )
            _check(result)
        return change


def _check(result: PGresult) -> None:
    if result.status not in (pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK):
        raise explain(result)


def _usual(name: bytes) -> str:
    """
    What libpq would take from the environment.
    """
    for option in pq.Conninfo.get_defaults():
        if option.keyword == name:
            return (option.val or b"").decode()
    return ""


async def _addresses(reactor: Any, host: str) -> Sequence[str]:
    """
    A host's addresses; an empty one for a socket in the file system.
    """
    if not host or host.startswith(("/", "@")):
        return [""]
    if isIPAddress(host) or isIPv6Address(host):
        return [host]
    receiver = _Addresses()
    reactor.nameResolver.resolveHostName(receiver, host)
    await receiver.complete
    if not receiver.found:
        raise StoreUnavailable(f"the PostgreSQL server's name {host!r} could not be resolved")
    return receiver.found


@implementer(IResolutionReceiver)
class _Addresses:
    """
    Collects what a name resolves to.
    """

    def __init__(self) -> None:
        self.found: list[str] = []
        self.complete: Deferred[None] = Deferred()

    def resolutionBegan(self, resolutionInProgress: object) -> None:
        """
        See L{IResolutionReceiver}.
        """

    def addressResolved(self, address: Any) -> None:
        """
        See L{IResolutionReceiver}.
        """
        if address.host not in self.found:
            self.found.append(address.host)

    def resolutionComplete(self) -> None:
        """
        See L{IResolutionReceiver}.
        """
        if not self.complete.called:
            self.complete.callback(None)
