"""One question to one upstream, and the reply that is really the reply to it.

A fresh connected socket for every question gives each a random port of the kernel's choice beside its random ID; what
comes back counts only if it repeats both, and the question to the letter. All else is ignored while the wait goes on.
Law: RFC 5452 §9 (what a reply must match), RFC 7766 §5 (truncation), RFC 6891 §6.2.2 (servers without EDNS).
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import secrets
import socket
import struct

import msgspec

from kdns.errors import PeerError
from kdns.wire.message import Message, decode
from kdns.wire.query import AD, CD, QR, RD, TC
from kdns.wire.records import CLASS_IN, Rcode, Type

# What fits every usual path unfragmented (RFC 9715 §3): fragments are what an attacker off the path can forge.
UDP_PAYLOAD = 1232
# A reply that differs only in the case of the name is a server that folds names, or a guess. The right one has this
# long to come; then TCP decides, where nobody guesses.
WRONG_CASE_PATIENCE_SECONDS = 0.2

_HEADER = struct.Struct("!HHHHHH")
_TAIL = struct.Struct("!HH")
_OPT = struct.Struct("!BHHBBHH")
_OPCODE = 0x7800
_LARGEST = 65_535


class Upstream(msgspec.Struct, frozen=True):
    """A server to ask, by its numeric address."""

    host: str
    port: int = 53

    def __str__(self) -> str:
        return show((self.host, self.port))


class UpstreamError(PeerError):
    """An upstream gave no usable reply; the text is worded as Go words it, since log tools search for it.

    `silent` is whether nothing came at all, as against an error of the network.
    """

    def __init__(self, text: str, silent: bool = False) -> None:
        super().__init__(text)
        self.silent = silent


class _WrongCaseError(Exception):
    """Only replies came whose question differs in case."""


async def exchange(
    qname: bytes,
    rtype: int,
    upstream: Upstream,
    seconds: float,
    *,
    transport: str = "udp",
    flags: int = RD,
    do: bool = False,
    rclass: int = CLASS_IN,
) -> Message:
    """Ask one upstream one question, within `seconds` in all; UpstreamError where there is no reply.

    Of `flags`, RD, AD and CD are sent. Over UDP a truncated reply is fetched again over TCP; when that fails, the
    truncated one is the answer if it can be read.
    """
    deadline = asyncio.get_running_loop().time() + seconds
    question = _Question(qname, rtype, rclass, flags & (RD | AD | CD), do)
    reply = await _ask(question, upstream, deadline, transport)
    if reply.rcode == Rcode.FORMERR and not reply.edns:
        question.edns = False
        reply = await _ask(question, upstream, deadline, transport)
    return reply


async def _ask(question: _Question, upstream: Upstream, deadline: float, transport: str) -> Message:
    if transport == "tcp":
        return await _ask_tcp(question, upstream, deadline)
    try:
        packet = await _ask_udp(question, upstream, deadline)
    except _WrongCaseError:
        return await _ask_tcp(question, upstream, deadline)
    if not packet[2] << 8 & TC:
        return decode(packet)
    try:
        return await _ask_tcp(question, upstream, deadline)
    except UpstreamError:
        try:
            return decode(packet)
        except ValueError:
            pass
        raise


class _Question:
    """What is asked. The bytes of it are made anew for each attempt, since each has its own ID."""

    __slots__ = ("do", "edns", "flags", "section")

    def __init__(self, qname: bytes, rtype: int, rclass: int, flags: int, do: bool) -> None:
        self.section = qname + _TAIL.pack(rtype, rclass)
        self.flags = flags
        self.do = do
        self.edns = True

    def packet(self) -> bytes:
        """The query, with an ID that can't be foretold."""
        header = _HEADER.pack(secrets.randbits(16), self.flags, 1, 0, 0, 1 if self.edns else 0)
        # Ours alone: of the client's options none is passed on.
        opt = _OPT.pack(0, Type.OPT, UDP_PAYLOAD, 0, 0, 0x8000 if self.do else 0, 0) if self.edns else b""
        return header + self.section + opt

    def is_answered_by(self, reply: bytes, query: bytes) -> bool:
        """Whether the reply has the query's ID and question, letter by letter, and is a reply to a query at all."""
        return self._is_reply(reply, query) and reply.startswith(self.section, 12)

    def is_answered_in_other_case(self, reply: bytes, query: bytes) -> bool:
        """The same but for upper and lower case."""
        end = 12 + len(self.section)
        return self._is_reply(reply, query) and reply[12:end].lower() == self.section.lower()

    def _is_reply(self, reply: bytes, query: bytes) -> bool:
        if len(reply) < 12 or reply[:2] != query[:2] or reply[4:6] != b"\x00\x01":
            return False
        flags = reply[2] << 8 | reply[3]
        return flags & QR != 0 and flags & _OPCODE == 0


async def _ask_udp(question: _Question, upstream: Upstream, deadline: float) -> bytes:
    """The first whole and fitting reply over UDP; a truncated one need not be readable."""
    loop = asyncio.get_running_loop()
    sock = _open(socket.SOCK_DGRAM, upstream, "udp")
    with sock:
        try:
            # A UDP socket is connected at once: the kernel then drops what others send to it.
            sock.connect((upstream.host, upstream.port))
        except OSError as error:
            raise UpstreamError(f"dial udp {upstream}: connect: {_reason(error)}") from error
        path = f"udp {_local(sock)}->{upstream}"
        wrong_case = False
        try:
            async with asyncio.timeout_at(deadline) as clock:
                query = question.packet()
                sock.send(query)
                while True:
                    reply = await loop.sock_recv(sock, _LARGEST)
                    if question.is_answered_by(reply, query):
                        if reply[2] << 8 & TC or _is_readable(reply):
                            return reply
                    elif not wrong_case and question.is_answered_in_other_case(reply, query):
                        wrong_case = True
                        clock.reschedule(min(deadline, loop.time() + WRONG_CASE_PATIENCE_SECONDS))
        except TimeoutError as error:
            if wrong_case:
                raise _WrongCaseError from error
            raise UpstreamError(f"read {path}: i/o timeout", silent=True) from error
        except OSError as error:
            raise UpstreamError(f"read {path}: read: {_reason(error)}") from error


async def _ask_tcp(question: _Question, upstream: Upstream, deadline: float) -> Message:
    """The first whole and fitting reply over a connection of its own."""
    loop = asyncio.get_running_loop()
    sock = _open(socket.SOCK_STREAM, upstream, "tcp")
    step, verb = f"dial tcp {upstream}", "connect"
    with sock:
        try:
            async with asyncio.timeout_at(deadline):
                await loop.sock_connect(sock, (upstream.host, upstream.port))
                step, verb = f"read tcp {_local(sock)}->{upstream}", "read"
                query = question.packet()
                await loop.sock_sendall(sock, len(query).to_bytes(2, "big") + query)
                while True:
                    size = int.from_bytes(await _read_exactly(sock, 2), "big")
                    reply = await _read_exactly(sock, size)
                    # The case is for guessers off the path, and here are none.
                    if question.is_answered_in_other_case(reply, query):
                        return decode(reply)
        except TimeoutError as error:
            raise UpstreamError(f"{step}: i/o timeout", silent=True) from error
        except EOFError as error:
            raise UpstreamError(f"{step}: EOF") from error
        except OSError as error:
            raise UpstreamError(f"{step}: {verb}: {_reason(error)}") from error
        except ValueError as error:
            # Nothing better comes on this connection.
            raise UpstreamError(f"{step}: {error}") from error


async def _read_exactly(sock: socket.socket, size: int) -> bytes:
    loop = asyncio.get_running_loop()
    parts = []
    while size:
        part = await loop.sock_recv(sock, size)
        if not part:
            raise EOFError
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _is_readable(reply: bytes) -> bool:
    try:
        decode(reply)
    except ValueError:
        return False
    return True


def _open(kind: socket.SocketKind, upstream: Upstream, network: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in upstream.host else socket.AF_INET
    try:
        sock = socket.socket(family, kind)
    except OSError as error:
        raise UpstreamError(f"dial {network} {upstream}: socket: {_reason(error)}") from error
    sock.setblocking(False)
    return sock


def _local(sock: socket.socket) -> str:
    name = sock.getsockname()
    return show((name[0], name[1]))


def show(address: tuple[str, int]) -> str:
    """An address and port as text: `10.0.0.10:53`, `[fd00::10]:53`."""
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _reason(error: OSError) -> str:
    return os.strerror(error.errno).lower() if error.errno else str(error).lower()


def is_address(text: str) -> bool:
    """Whether the text is a numeric IP address, with or without a zone."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
