"""What the servers need of the rest: somebody who answers, and what is said when that one raises.

An exception out of a responder is our own fault: it costs that query, a count, and one line of the log.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Protocol

from kdns.answers import AnswerCache, PlacedAnswers
from kdns.wire import names, records
from kdns.wire.query import Query, parse

log = logging.getLogger("kdns.server")

# A client can send the packet that trips us over and over; the counter says how often, the log says what.
SECONDS_BETWEEN_LINES = 1.0


class Pending(Protocol):
    """A query whose reply comes later."""

    def cancel(self) -> None:
        """Give up; nothing is sent any more."""


class Responder(Protocol):
    """Who answers packets."""

    @property
    def many_zones(self) -> bool:
        """Whether replies count in the metrics of more than one zone."""

    def answers(self, transport: str, six: bool) -> AnswerCache:
        """What is kept of the replies to clients of one transport and address family (`six`: IPv6)."""

    def placed_answers(self, transport: str, six: bool) -> PlacedAnswers | None:
        """The same of replies that depend on where the client stands; None where none does."""

    def respond(
        self,
        packet: bytes,
        transport: str,
        client: tuple[str, int],
        local: tuple[str, int],
        send: Callable[[bytes], None],
    ) -> bytes | Pending | None:
        """The reply to send now, None for silence, or a `Pending`: `send` is called once later (b"" is silence)."""


class Mishaps:
    """Counts the queries whose answer raised, and logs them with their question, at most one a second."""

    __slots__ = ("_next_line", "count")

    def __init__(self) -> None:
        self.count = 0
        self._next_line = 0.0

    def note(self, error: Exception, packet: bytes, transport: str) -> None:
        """Count the error that this packet caused, and log it with its traceback."""
        self.count += 1
        now = time.monotonic()
        if now >= self._next_line:
            self._next_line = now + SECONDS_BETWEEN_LINES
            question = _question(packet)
            log.error("no answer over %s to %s, %d so far", transport, question, self.count, exc_info=error)


def plain_host(host: str) -> str:
    """An IPv4 address that a socket of both families shows as `::ffff:192.0.2.1`, in its own form."""
    return host[7:] if host.startswith("::ffff:") and "." in host else host


def _question(packet: bytes) -> str:
    try:
        query = parse(packet)
    except Exception:  # perhaps reading it is what failed
        query = None
    if not isinstance(query, Query):
        return f"the packet {packet[:64].hex()}"
    kind = f"{records.class_to_text(query.rclass)} {records.type_to_text(query.rtype)}"
    return f"{names.to_text(query.qname)} {kind}"
