"""
Which Redis server a bucket of sessions is on: one, a Sentinel's master, or the
nodes of a cluster.
"""

from __future__ import annotations

from binascii import crc_hqx
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, Final

from hiredis import ReplyError
from twisted.internet.defer import Deferred

from twsessions.errors import StoreUnavailable
from twsessions.stores._redis.link import Dialer, Login, Server
from twsessions.stores._redis.scripts import Script
from twsessions.stores._redis.wire import Wire, command, explain
from twsessions.stores._several import firstOf

__all__ = ["Address", "Ask", "Cluster", "Route", "Sentinels", "Single"]

Address = tuple[str, int]

_ROUNDS: Final = 6  # redirections and the like that one command may meet
_SLOTS: Final = 16384
_REFRESH: Final = 0.1  # seconds between two looks at how the cluster is laid out
_ASKING: Final = b"*1\r\n$6\r\nASKING\r\n"


class Ask:
    """
    One command to the server that has a bucket, and the reply.

    @ivar reply: what came; L{StoreUnavailable} if it failed.
    @ivar head: the reply to what was sent ahead of all commands to that
        server, if there was such a thing.
    @ivar tail: the reply to what was sent behind, likewise.
    """

    __slots__ = ("_full", "asking", "bucket", "head", "payload", "reply", "tail")

    def __init__(self, bucket: int, payload: bytes) -> None:
        self.bucket = bucket
        self.payload = payload
        self.reply: Any = None
        self.head: Any = None
        self.tail: Any = None
        self.asking: Address | None = None
        self._full: tuple[Script, Sequence[bytes], Sequence[bytes]] | None = None

    @classmethod
    def script(
        cls, bucket: int, script: Script, keys: Sequence[bytes], args: Sequence[bytes]
    ) -> Ask:
        """
        To run a script.
        """
        ask = cls(bucket, script.call(keys, args))
        ask._full = script, keys, args
        return ask

    def spellOut(self) -> bool:
        """
        Send the script along the next time.

        @return: whether that is any news.
        """
        if self._full is None:
            return False
        script, keys, args = self._full
        self._full = None
        self.payload = script.fullCall(keys, args)
        return True


class Route:
    """
    What the routes have in common.

    @ivar tags: the hash tag of each bucket.
    @ivar timeout: seconds for a call.
    @ivar database: the number of it.
    """

    tags: Sequence[bytes]

    def __init__(self, dialer: Dialer) -> None:
        self.dialer = dialer
        self.reactor = dialer.reactor
        self.timeout = dialer.timeout
        self.database = dialer.database

    def server(self, ask: Ask) -> Server:
        """
        Who has the bucket.
        """
        raise NotImplementedError

    async def connect(self) -> Wire:
        """
        A connection of its own, to any server that passes on what is
        published.
        """
        raise NotImplementedError

    def servers(self) -> Iterable[Server]:
        """
        All there are connections to.
        """
        raise NotImplementedError

    async def prepare(self, deadline: float) -> None:
        """
        Do what has to be done before L{server} is called.
        """

    def redirect(self, ask: Ask, code: str, text: str) -> bool:
        """
        Deal with an error.

        @return: whether to send the command again.
        """
        return False

    async def run(
        self, asks: Sequence[Ask], deadline: float, head: bytes = b"", tail: bytes = b""
    ) -> None:
        """
        Send all commands, those to one server in one flight and in their
        order, and have their replies filled in. Does not fail.

        @param head: a command to send ahead of them to each server.
        @param tail: a command to send behind.
        """
        todo = asks
        for _ in range(_ROUNDS):
            try:
                await self.prepare(deadline)
            except StoreUnavailable as error:
                for ask in todo:
                    ask.reply = error
                return
            await self._fly(todo, deadline, head, tail)
            todo = [ask for ask in todo if type(ask.reply) is ReplyError and self._isNews(ask)]
            if not todo:
                return
        for ask in todo:
            ask.reply = StoreUnavailable("the Redis cluster sends from one node to another")

    async def _fly(self, asks: Sequence[Ask], deadline: float, head: bytes, tail: bytes) -> None:
        groups: dict[Server, list[Ask]] = {}
        for ask in asks:
            groups.setdefault(self.server(ask), []).append(ask)
        flights = []
        for server, group in groups.items():
            said = [head] if head else []
            for ask in group:
                if ask.asking is not None:
                    said.append(_ASKING)
                said.append(ask.payload)
            if tail:
                said.append(tail)
            flights.append((server.ask(b"".join(said), len(said), deadline), group))
        for flight, group in flights:
            try:
                replies = await flight
            except StoreUnavailable as error:
                for ask in group:
                    ask.reply = error
                continue
            at = 1 if head else 0
            for ask in group:
                if ask.asking is not None:
                    ask.asking = None
                    at += 1
                ask.head, ask.reply, ask.tail = replies[0], replies[at], replies[-1]
                at += 1

    def _isNews(self, ask: Ask) -> bool:
        text = str(ask.reply)
        code = text.partition(" ")[0]
        if code == "NOSCRIPT":
            if ask.spellOut():
                return True
        elif code == "READONLY":
            # Not the master any more; a new connection finds who is.
            self.server(ask).drop("the Redis server is no master any more")
        elif self.redirect(ask, code, text):
            return True
        ask.reply = explain(text)
        return False

    def drop(self, why: str) -> None:
        """
        Drop all connections; new ones are made on use.
        """
        for server in self.servers():
            server.drop(why)

    async def close(self) -> None:
        """
        Drop all connections, for good.
        """
        for closing in [server.close() for server in self.servers()]:
            await closing


class Single(Route):
    """
    One server, which has all sessions, in one bucket.
    """

    tags = (b"0",)

    def __init__(self, dialer: Dialer, address: Address) -> None:
        super().__init__(dialer)
        self._address = address
        self._server = Server(self.reactor, self.connect, self.timeout, patient=True)

    def server(self, ask: Ask) -> Server:
        """
        See L{Route.server}.
        """
        return self._server

    def servers(self) -> Iterable[Server]:
        """
        See L{Route.servers}.
        """
        return (self._server,)

    async def connect(self) -> Wire:
        """
        See L{Route.connect}.
        """
        return await self.dialer.dial(*self._address)


class Sentinels(Single):
    """
    The one server that Sentinels say is the master; they are asked for each
    connection.
    """

    def __init__(
        self, dialer: Dialer, sentinels: Sequence[Address], service: str, login: Login
    ) -> None:
        """
        @param login: the Sentinels' own.
        """
        super().__init__(dialer, sentinels[0])
        self._sentinels = list(sentinels)
        self._service = service
        self._login = login

    async def connect(self) -> Wire:
        """
        See L{Route.connect}.
        """
        address = await self._master()
        wire = await self.dialer.dial(*address)
        try:
            deadline = self.reactor.seconds() + self.timeout
            (role,) = await wire.ask(command("ROLE"), 1, deadline)
            if not isinstance(role, list) or role[:1] != [b"master"]:
                raise StoreUnavailable("the Redis server that Sentinel names is no master (yet)")
        except BaseException:
            wire.drop("the connection is not used")
            raise
        return wire

    async def _master(self) -> Address:
        asked = [partial(self._masterBy, sentinel) for sentinel in self._sentinels]
        return await firstOf(self.reactor, self.timeout, asked)

    async def _masterBy(self, sentinel: Address) -> Address:
        wire = await self.dialer.dial(*sentinel, login=self._login)
        try:
            question = command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._service)
            deadline = self.reactor.seconds() + self.timeout
            (reply,) = await wire.ask(question, 1, deadline)
            if not isinstance(reply, list) or len(reply) != 2:
                raise StoreUnavailable("a Sentinel does not know of that service")
            # The next time it is asked first.
            self._sentinels.sort(key=sentinel.__ne__)
            return reply[0].decode("ascii"), int(reply[1])
        finally:
            wire.drop("a Sentinel has been asked")


def _evenTags(count: int) -> list[bytes]:
    """
    Hash tags whose slots are spread evenly: one for each C{count}th of them.
    """
    found: dict[int, bytes] = {}
    number = 0
    while len(found) < count:
        tag = b"%x" % number
        found.setdefault(_slotOf(tag) * count // _SLOTS, tag)
        number += 1
    return [found[place] for place in range(count)]


def _slotOf(tag: bytes) -> int:
    return crc_hqx(tag, 0) % _SLOTS  # CRC-16/XMODEM, as the cluster's


class Cluster(Route):
    """
    The nodes of a cluster, among which 256 buckets are spread by slot.
    """

    def __init__(self, dialer: Dialer, seeds: Sequence[Address]) -> None:
        """
        @param seeds: some of the nodes.
        """
        super().__init__(dialer)
        self.tags = _evenTags(256)
        self._slots = [_slotOf(tag) for tag in self.tags]
        self._seeds = list(seeds)
        self._servers: dict[Address, Server] = {}
        self._owners: list[Address] = []  # of each slot; empty: it is not known
        self._masters: set[Address] = set()
        self._tellers: list[Address] = []  # of maps, the last one last
        self._others: dict[Wire, Address] = {}  # connections made for messages and hints
        self._refreshed = 0.0
        self._refreshing: list[Deferred[None]] | None = None
        self._isStale = True
        self._isClosed = False
        self._said = ""  # by the last node that was asked for the map in vain

    def server(self, ask: Ask) -> Server:
        """
        See L{Route.server}.
        """
        if ask.asking is not None:
            return self._serverAt(ask.asking)
        return self._serverAt(self._owners[self._slots[ask.bucket]])

    def servers(self) -> Iterable[Server]:
        """
        See L{Route.servers}.
        """
        return list(self._servers.values())

    def _serverAt(self, address: Address) -> Server:
        server = self._servers.get(address)
        if server is None:
            server = self._servers[address] = Server(
                self.reactor,
                lambda: self.dialer.dial(*address),
                self.timeout,
                patient=False,
                where=f" at {address[0]}:{address[1]}",
            )
            if self._isClosed:
                server.close()
        return server

    async def close(self) -> None:
        """
        See L{Route.close}.
        """
        self._isClosed = True
        await super().close()

    async def connect(self) -> Wire:
        """
        See L{Route.connect}.
        """
        await self.prepare(self.reactor.seconds() + self.timeout)
        # Of a seed that is no master nobody would be told that it has left the cluster.
        masters = [address for address in self._known() if address in self._masters]
        dials = [partial(self._dialOther, address) for address in masters]
        return await firstOf(self.reactor, self.timeout, dials)

    async def _dialOther(self, address: Address) -> Wire:
        def lost(_: None) -> None:
            del self._others[wire]

        wire = await self.dialer.dial(*address)
        self._others[wire] = address
        wire.lost.addCallback(lost)
        return wire

    async def prepare(self, deadline: float) -> None:
        """
        See L{Route.prepare}: have a map of the cluster that is not known to be
        out of date.
        """
        if not self._isStale and not any(self._isDown(one) for one in self._masters):
            return
        if self._owners and self.reactor.seconds() < self._refreshed + _REFRESH:
            return
        if self._refreshing is not None:
            waiting: Deferred[None] = Deferred()
            self._refreshing.append(waiting)
            await waiting
        else:
            self._refreshing = []
            try:
                await self._refresh(deadline)
            finally:
                others, self._refreshing = self._refreshing, None
                for other in others:
                    other.callback(None)
        if not self._owners:
            raise StoreUnavailable(f"no node of the Redis cluster answers: {self._said}")

    def _isDown(self, address: Address) -> bool:
        server = self._servers.get(address)
        return server is not None and server.isDown

    def _known(self) -> list[Address]:
        # Those that are down come last, before them seeds that may have left the cluster, and
        # those that are up first; else by turns: one that is cut off from the others goes on
        # telling what it knew.
        def badness(address: Address) -> tuple[bool, bool, bool, int]:
            server = self._servers.get(address)
            return (
                server is not None and server.isDown,
                address not in self._masters,
                server is None or not server.isUp,
                self._tellers.index(address) if address in self._tellers else -1,
            )

        return sorted({*self._masters, *self._seeds}, key=badness)

    async def _refresh(self, deadline: float) -> None:
        asked = [partial(self._mapBy, address, deadline) for address in self._known()]
        try:
            self._owners = await firstOf(self.reactor, self.timeout, asked)
        except StoreUnavailable as error:
            self._said = str(error)
        else:
            gone = self._masters.difference(self._owners)
            self._masters = set(self._owners)
            self._isStale = False
            kept = {*self._masters, *self._seeds}
            self._tellers = [one for one in self._tellers if one in kept]
            for address in [one for one in self._servers if one not in kept]:
                self._servers.pop(address).close()
            for wire, address in list(self._others.items()):
                if address in gone:
                    # It may have left the cluster, and neither hear nor pass on anything.
                    wire.drop("the Redis server is no master of the cluster any more")
        self._refreshed = self.reactor.seconds()

    async def _mapBy(self, asked: Address, deadline: float) -> list[Address]:
        (reply,) = await self._serverAt(asked).ask(command("CLUSTER", "SLOTS"), 1, deadline)
        if isinstance(reply, ReplyError):
            raise explain(reply)
        owners: list[Address | None] = [None] * _SLOTS
        try:
            for first, last, master, *_ in reply:
                host = (master[0] or b"").decode("ascii")
                address = (asked[0] if host in ("", "?") else host, int(master[1]))
                owners[first : last + 1] = [address] * (last + 1 - first)
        except (TypeError, ValueError, IndexError, AttributeError) as error:
            raise StoreUnavailable("what answers is not a node of a Redis cluster") from error
        if len(owners) != _SLOTS or any(owners[slot] is None for slot in self._slots):
            raise StoreUnavailable("some slots of the Redis cluster are nobody's")
        self._tellers = [one for one in self._tellers if one != asked] + [asked]
        return [asked if owner is None else owner for owner in owners]

    def redirect(self, ask: Ask, code: str, text: str) -> bool:
        """
        See L{Route.redirect}.
        """
        if code not in ("MOVED", "ASK"):
            if code == "CLUSTERDOWN":
                self._isStale = True
            return False
        try:
            _, slot, where = text.split(" ")
            host, _, port = where.rpartition(":")
            address = (host or self._owners[int(slot)][0], int(port))
            if code == "ASK":
                ask.asking = address
            else:
                self._owners[int(slot)] = address
                self._isStale = True
        except (ValueError, IndexError):
            return False
        return True
