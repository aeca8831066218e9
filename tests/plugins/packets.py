"""A whole server without sockets: a Corefile in, questions as packets, replies as messages."""

from __future__ import annotations

import asyncio
from typing import Any

import dns.flags
import dns.message
import dns.rrset

from kdns import corefile
from kdns.app import build
from kdns.chain import Process, Waiter
from kdns.metrics import Metrics
from kdns.responder import Responder
from tests.plugins.trial import Clock

OVER_IPV4 = ("10.244.0.7", 41234)
OVER_IPV6 = ("2001:db8::7", 41234)


class NoReplyError(Exception):
    """The server was silent."""


class Server:
    """What a Corefile makes, asked at its first listener. `size` is how many bytes the last reply had."""

    def __init__(self, text: str) -> None:
        self.process = Process(Metrics(), Clock())
        configuration = build(corefile.parse(text, "Corefile"), self.process)
        self.plugins = configuration.plugins
        self._responder = Responder(configuration.listeners[0].sites, self.process, self.process.metrics)
        self.size = 0

    def ask(
        self,
        question: str,
        client: tuple[str, int] = OVER_IPV4,
        transport: str = "udp",
        cd: bool = False,
        **wishes: Any,
    ) -> dns.message.Message:
        """The reply to `NAME [CLASS] TYPE`, with what else `dns.message.make_query` takes."""
        name, *rclass, rtype = question.split()
        query = dns.message.make_query(name, rtype, rclass[0] if rclass else "IN", **wishes)
        if cd:
            query.flags |= dns.flags.CD
        reply = asyncio.run(self._reply(query.to_wire(), client, transport))
        self.size = len(reply)
        return dns.message.from_wire(reply)

    async def _reply(self, packet: bytes, client: tuple[str, int], transport: str) -> bytes:
        sent: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        said = self._responder.respond(packet, transport, client, ("127.0.0.1", 53), sent.set_result)
        if isinstance(said, Waiter):
            said = await asyncio.wait_for(sent, 10)
        if said is None:
            raise NoReplyError
        return said

    @property
    def kept(self) -> int:
        """How many replies are kept."""
        return sum(len(answers.positive) + len(answers.negative) for answers in self.process.answers)


def lines(section: list[dns.rrset.RRset]) -> list[str]:
    """The records of a section, one a line."""
    return [" ".join(line.split(maxsplit=4)) for rrset in section for line in rrset.to_text().splitlines()]
