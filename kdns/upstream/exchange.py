"""One question to one upstream, and the reply that is really the reply to it.

A fresh connected UDP socket for every question gives each a random port of the kernel's choice beside its random ID;
what comes back counts only if it repeats both, and the question to the letter. All else is ignored while the wait goes
on. Law: RFC 5452 §9 (what a reply must match), RFC 7766 §5 (truncation), RFC 6891 §6.2.2 (servers without EDNS).
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import ssl
from typing import TYPE_CHECKING

import msgspec

from kdns.upstream.question import Question
from kdns.upstream.sockets import Upstream, UpstreamError, Way, network_error, open_udp, path_of, udp_allowance
from kdns.upstream.streams import Connections
from kdns.wire.message import Message, decode
from kdns.wire.query import RD, TC
from kdns.wire.records import Rcode

if TYPE_CHECKING:
    from kdns.upstream.https import HttpsConnections

# A reply that differs only in the case of the name is a server that folds names, or a guess. The right one has this
# long to come; then TCP decides, where nobody guesses.
WRONG_CASE_PATIENCE_SECONDS = 0.2
# So many wrong replies to one question are somebody's attempt at guessing: TCP decides then as well.
MOST_WRONG_REPLIES = 100
# Reading what is there already gives nobody else a turn, so that is done after so many wrong replies.
_WRONG_REPLIES_PER_TURN = 8

_LARGEST = 65_535


class _DoubtError(Exception):
    """Only replies came that may be guesses."""


async def exchange(
    qname: bytes,
    rtype: int,
    upstream: Upstream,
    seconds: float,
    *,
    transport: str = "udp",
    flags: int = RD,
    do: bool = False,
) -> Message:
    """Ask one upstream one question and keep no connection; see `Client.ask`."""
    client = Client(upstream)
    try:
        return await client.ask(Question(qname, rtype, flags, do), seconds, transport)
    finally:
        client.close()


class Client:
    """Asks one upstream: over UDP, or over connections that are kept; one of TLS or HTTPS over that alone."""

    def __init__(self, upstream: Upstream, way: Way = Way()) -> None:  # noqa: B008
        self._upstream = upstream
        self._source = way.source
        if upstream.tls and way.context is None:
            way = msgspec.structs.replace(way, context=ssl.create_default_context())
        self._connections = _connections(upstream, way)

    async def ask(self, question: Question, seconds: float, transport: str = "udp") -> Message:
        """The reply, within `seconds` in all; UpstreamError where there is none.

        Over UDP a truncated reply is fetched again over TCP; when that fails, the truncated one is the answer if it can
        be read.
        """
        deadline = asyncio.get_running_loop().time() + seconds
        reply = await self._ask(question, deadline, transport)
        if reply.rcode == Rcode.FORMERR and not reply.edns:
            reply = await self._ask(question.without_edns(), deadline, transport)
        return reply

    def close(self) -> None:
        """End the connections that are kept."""
        self._connections.close()

    async def _ask(self, question: Question, deadline: float, transport: str) -> Message:
        if transport != "udp" or self._upstream.tls:
            return await self._connections.ask(question, deadline)
        try:
            message = await self._ask_udp(question, deadline)
        except _DoubtError:
            return await self._connections.ask(question, deadline)
        if message is not None and not message.flags & TC:
            return message
        try:
            return await self._connections.ask(question, deadline)
        except UpstreamError:
            if message is None:
                raise
            return message

    async def _ask_udp(self, question: Question, deadline: float) -> Message | None:
        """The first whole and fitting reply over UDP; None for a truncated one that can't be read."""
        upstream = self._upstream
        allowance = udp_allowance()
        if allowance.locked():
            # Half of the time at most, so that the upstream isn't blamed for what it had no time to say.
            now = asyncio.get_running_loop().time()
            try:
                async with asyncio.timeout_at(now + (deadline - now) / 2):
                    await allowance.acquire()
            except TimeoutError as error:
                raise UpstreamError(f"dial udp {upstream}: too many questions under way", own=True) from error
        else:
            await allowance.acquire()
        try:
            with open_udp(upstream, self._source) as sock:
                return await _converse(sock, f"udp {path_of(sock, upstream)}", question, deadline)
        finally:
            allowance.release()


def _connections(upstream: Upstream, way: Way) -> Connections | HttpsConnections:
    if not upstream.path:
        return Connections(upstream, way)
    from kdns.upstream.https import HttpsConnections

    return HttpsConnections(upstream, way)


async def _converse(sock: socket.socket, path: str, question: Question, deadline: float) -> Message | None:
    loop = asyncio.get_running_loop()
    query = question.packet(secrets.randbits(16))
    step = f"write {path}: write"
    wrong, wrong_case = 0, False
    try:
        async with asyncio.timeout_at(deadline) as clock:
            sock.send(query)
            step = f"read {path}: read"
            while wrong < MOST_WRONG_REPLIES:
                reply = await loop.sock_recv(sock, _LARGEST)
                if question.is_answered_by(reply, query):
                    try:
                        return decode(reply)
                    except ValueError:
                        if reply[2] << 8 & TC:
                            return None
                elif not wrong_case and question.is_answered_in_other_case(reply, query):
                    wrong_case = True
                    now = loop.time()
                    clock.reschedule(now + min(WRONG_CASE_PATIENCE_SECONDS, (deadline - now) / 2))
                wrong += 1
                if wrong % _WRONG_REPLIES_PER_TURN == 0:
                    await asyncio.sleep(0)
    except TimeoutError as error:
        if not wrong_case:
            raise UpstreamError(f"read {path}: i/o timeout", silent=True) from error
    except OSError as error:
        raise network_error(step, error) from error
    raise _DoubtError
