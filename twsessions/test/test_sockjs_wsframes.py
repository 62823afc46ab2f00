"""
The frames of websockets: the fast lane and wsproto see the same.
"""

from __future__ import annotations

from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st
from wsproto.connection import Connection, ConnectionType
from wsproto.events import CloseConnection, Message, Ping
from wsproto.extensions import PerMessageDeflate
from wsproto.frame_protocol import FrameProtocol

from twsessions.sockjs.transports._frames import (
    Broken,
    Ended,
    Frames,
    Pinged,
    binaryFrame,
    textFrame,
)

LIMIT = 100_000


def masked(first: int, payload: bytes, key: bytes) -> bytes:
    """
    A client's frame.
    """
    size = len(payload)
    if size < 126:
        head = bytes((first, 0x80 | size))
    elif size < 65536:
        head = bytes((first, 0xFE)) + size.to_bytes(2, "big")
    else:
        head = bytes((first, 0xFF)) + size.to_bytes(8, "big")
    return head + key + bytes(byte ^ key[at % 4] for at, byte in enumerate(payload))


def oracle(data: bytes) -> list[Any]:
    """
    What wsproto makes of it.
    """
    connection = Connection(ConnectionType.SERVER)
    connection.receive_data(data)
    found: list[Any] = []
    parts: list[Any] = []
    for event in connection.events():
        if isinstance(event, Message):
            parts.append(event.data)
            if event.message_finished:
                found.append(parts[0][:0].join(parts))
                parts = []
        elif isinstance(event, Ping):
            found.append(Pinged(bytes(event.payload)))
        elif isinstance(event, CloseConnection):
            isTheirs = connection.state.name == "REMOTE_CLOSING"
            found.append(
                Ended(int(event.code), event.reason or "") if isTheirs else int(event.code)
            )
    return found


keys = st.binary(min_size=4, max_size=4)
payloads = st.one_of(
    st.text(max_size=40).map(lambda text: text.encode("utf-8")),
    st.binary(max_size=130),
    st.sampled_from([b"", b"x" * 125, b"x" * 126, b"y" * 70_000, "€".encode() * 50]),
)
firsts = st.one_of(
    st.sampled_from([0x81, 0x81, 0x81, 0x01, 0x80, 0x00, 0x82, 0x89, 0x8A, 0x88]),
    st.integers(0, 255),
)
frames = st.builds(masked, firsts, payloads, keys)


@given(st.lists(frames, max_size=8), st.lists(st.integers(1, 300), max_size=30), st.binary())
@example([masked(0x81, b"a", b"\0\0\0\0")] * 3, [1] * 30, b"")
def test_sameAsWsproto(parts: list[bytes], cuts: list[int], tail: bytes) -> None:
    """
    However it is cut, the same messages, pings and ends come out, and the same
    is refused.
    """
    data = b"".join(parts)
    subject = Frames(LIMIT, [])
    found: list[Any] = []
    at = 0
    for cut in [*cuts, len(data)]:
        found.extend(subject.receive(data[at : at + cut]))
        at += cut
    plain = [event.code if isinstance(event, Broken) else event for event in found]
    if 1009 in plain:  # ours alone
        plain = plain[: plain.index(1009)]
        assert oracle(data)[: len(plain)] == plain
    else:
        assert plain == oracle(data)


@given(st.lists(st.one_of(st.text(max_size=400), st.binary(max_size=400)), max_size=5), keys)
def test_out(messages: list[str | bytes], key: bytes) -> None:
    """
    What we write is what a client reads, compressed or not.
    """
    client = Connection(ConnectionType.CLIENT)
    for message in messages:
        if isinstance(message, bytes):
            client.receive_data(binaryFrame(message))
        else:
            client.receive_data(textFrame(message.encode("utf-8")))
    assert [event.data for event in client.events() if isinstance(event, Message)] == messages


def test_aBombIsSmall() -> None:
    """
    What inflates beyond the limit is refused before it is all there.
    """
    subject = Frames(LIMIT, [enabled()])
    sender = FrameProtocol(True, [enabled(client=True)])
    bomb = bytes(sender.send_data("x" * 50_000_000))
    assert len(bomb) < LIMIT
    assert subject.receive(bomb) == [Broken(1009, "The message is too big")]


def test_aPingBetweenCompressedFrames() -> None:
    """
    Control frames within a compressed message are heard, and do it no harm.
    """
    subject = Frames(LIMIT, [enabled()])
    sender = FrameProtocol(True, [enabled(client=True)])
    data = (
        bytes(sender.send_data("hello " * 100, fin=False))
        + masked(0x89, b"ping", b"abcd")
        + bytes(sender.send_data("world", fin=True))
    )
    assert subject.receive(data) == [Pinged(b"ping"), "hello " * 100 + "world"]


def enabled(client: bool = False) -> PerMessageDeflate:
    """
    Compression that is agreed on.
    """
    extension = PerMessageDeflate()
    if client:
        extension.finalize("permessage-deflate")
    else:
        extension.accept("permessage-deflate")
    assert extension.enabled()
    return extension
