"""
A listener that checks what stores promise about messages.
"""

from __future__ import annotations

import time

from twisted.internet import reactor
from twisted.internet.task import deferLater

from twsessions.interfaces import Message

__all__ = ["Ear", "numbered"]

PATIENCE = 20.0  # seconds until what is not heard is a failure


class Ear:
    """
    Hears the numbers that are said.
    """

    def __init__(self) -> None:
        self.heard: list[int | None] = []

    def __call__(self, message: Message | None) -> None:
        if message is None:
            self.heard.append(None)
        else:
            number, rest = message.payload.split(b" ")
            assert rest == b"." * (int(number) % 5 * 4000)
            self.heard.append(int(number))

    async def hears(self, number: int | None) -> None:
        """
        Wait for one.
        """
        end = time.monotonic() + PATIENCE
        while number not in self.heard:
            assert time.monotonic() < end, f"{number} is not heard, but {self.heard[-20:]}"
            await deferLater(reactor, 0.005, lambda: None)

    def check(self) -> None:
        """
        None comes twice or late; and where some are missing, that is said.
        """
        last, wasTold = None, False
        for number in self.heard:
            if number is None:
                wasTold = True
                continue
            if last is not None:
                assert number > last
                assert number == last + 1 or wasTold
            last, wasTold = number, False


def numbered(number: int) -> Message:
    """
    A message, some of them long.
    """
    return Message("x", b"%d %b" % (number, b"." * (number % 5 * 4000)))
