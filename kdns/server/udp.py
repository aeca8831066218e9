"""Queries over UDP: one socket, one reader callback, each reply sent at once or dropped.

Knows no DNS but the ports that are never answered; what a packet means, the responder says.
Law: RFC 1035 §4.2.1, RFC 2181 §4 (a reply leaves from the address that was asked), RFC 3542 §6 (pktinfo).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import sys
from typing import TYPE_CHECKING, Any

import msgspec

from kdns.server.seam import Mishaps

if TYPE_CHECKING:
    from collections.abc import Callable

    from kdns.server.seam import Pending, Responder


class UdpLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What one socket may cost.

    `per_wakeup` packets are read before the rest of the process gets its turn; `batch.py` reads ROUNDS batches instead.
    `pending` queries may wait for their reply; what comes beyond them is dropped.
    """

    per_wakeup: int = 64
    pending: int = 10_000
    receive_buffer_bytes: int = 4 * 1024 * 1024


# Echo, daytime, chargen and time answer whatever they get, and nobody can be reached at port 0: a reply there is
# at best lost and at worst the start of a loop.
SILENT_PORTS = frozenset((0, 7, 13, 19, 37))

# How long after it was turned away a socket is looked at once more: a packet takes microseconds to its queue.
LAST_LOOK_SECONDS = 0.02

LARGEST_DATAGRAM = 65_535
_DISCARD_PORT = 9
# What a packet takes of a socket's buffer, however small it is: at least that; Linux doubles the buffer besides.
_LEAST_PACKET_COST_BYTES = 256
# Linux's numbers where Python has no name for them.
_IP_PKTINFO = getattr(socket, "IP_PKTINFO", 8)
_IP_MTU_DISCOVER, _IP_PMTUDISC_OMIT = 10, 5
_IPV6_MTU_DISCOVER = 23
# The drops of a socket (sock_diag(7), SK_MEMINFO_DROPS) are the last of these nine numbers.
_SO_MEMINFO = 55
_MEMINFO = struct.Struct("=9I")
_PKTINFO4 = struct.Struct("=i4s4s")
_PKTINFO6 = struct.Struct("=16sI")
_SPACE = socket.CMSG_SPACE(_PKTINFO6.size)

_Ancillary = list[tuple[int, int, bytes]]


def open_udp(address: str, port: int, reuse_port: bool = False, limits: UdpLimits | None = None) -> socket.socket:
    """A socket bound to a numeric address, ready for `UdpServer`. Raises OSError where that can't be.

    With `reuse_port`, several processes share the port and the kernel spreads the clients over them.
    """
    family, kind, protocol, _, target = socket.getaddrinfo(
        address, port, type=socket.SOCK_DGRAM, flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
    )[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setblocking(False)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        _set_comforts(sock, limits or UdpLimits())
        if _is_wildcard(str(target[0])):
            _ask_for_destinations(sock)
        sock.bind(target)
    except OSError:
        sock.close()
        raise
    return sock


class UdpServer:
    """Answers what arrives at one socket of `open_udp`, from `start` until `stop`.

    The counters are plain integers for whoever collects them. Nothing queues: a reply that the kernel doesn't take at
    once is dropped and counted, since the client asks again and memory is bounded that way.
    """

    def __init__(self, responder: Responder, sock: socket.socket, limits: UdpLimits | None = None) -> None:
        self.received = 0
        self.sent = 0
        self.dropped_ports = 0
        self.dropped_sends = 0
        self.dropped_pending = 0
        self.receive_errors = 0
        self.send_errors = 0
        self.mishaps = Mishaps()
        self.sock = sock
        self._respond = responder.respond
        self._limits = limits or UdpLimits()
        self._buffer = bytearray(LARGEST_DATAGRAM)
        self._view = memoryview(self._buffer)
        self._pending: dict[_Reply, Pending] = {}
        self._idle: asyncio.Event | None = None
        self._receive_drops = 0
        self._reading = False
        name = sock.getsockname()
        self._local: tuple[str, int] = (name[0], name[1])
        self._anywhere = _is_wildcard(name[0])
        self._read: Callable[[], None] = self._read_any if self._anywhere else self._read_one

    def start(self) -> None:
        """Begin to answer; called in the running loop."""
        asyncio.get_running_loop().add_reader(self.sock.fileno(), self._readable)
        self._reading = True

    async def stop(self, grace_seconds: float = 0.0) -> None:
        """Leave the port without losing a packet to others that share it, then give up what is still pending.

        Queries that arrived are answered; those that wait have `grace_seconds` to get their reply.
        """
        if not self._reading:
            self.sock.close()
            return
        self._reading = False
        asyncio.get_running_loop().remove_reader(self.sock.fileno())
        self._turn_away()
        self._empty()
        # What the kernel was about to put into this queue when it was turned away is there by now.
        await asyncio.sleep(LAST_LOOK_SECONDS)
        self._empty()
        if self._pending and grace_seconds > 0:
            self._idle = asyncio.Event()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), grace_seconds)
        for pending in list(self._pending.values()):
            pending.cancel()
        self._pending.clear()
        self.receive_drops()
        self.sock.close()

    def receive_drops(self) -> int:
        """How many packets were lost because the socket's buffer was full, as far as the system tells."""
        if sys.platform == "linux" and self.sock.fileno() >= 0:
            with contextlib.suppress(OSError, struct.error):
                numbers = self.sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size)
                self._receive_drops = int(_MEMINFO.unpack(numbers)[8])
        return self._receive_drops

    def _turn_away(self) -> None:
        # A connected socket gets nothing but its peer's packets, and nobody's is this one; it can still send to all.
        # Measured with a plain close: 406 of 800 packets lost to the queue that vanished. With this: none.
        host = self._local[0]
        if _is_wildcard(host):
            host = "::1" if ":" in host else "127.0.0.1"
        with contextlib.suppress(OSError):
            self.sock.connect((host, _DISCARD_PORT, *self.sock.getsockname()[2:]))

    def _empty(self) -> None:
        """Answer all that is in the socket's queue; no more than fits into it, should others go on to fill it."""
        with contextlib.suppress(BlockingIOError):
            for _ in range(self._limits.receive_buffer_bytes // _LEAST_PACKET_COST_BYTES):
                self._read_guarded()

    def _readable(self) -> None:
        # Bounded, so that the watch, TCP and probes get their turn under a flood; the loop calls again for the rest.
        try:
            for _ in range(self._limits.per_wakeup):
                self._read_guarded()
        except BlockingIOError:
            return

    def _read_guarded(self) -> None:
        try:
            self._read()
        except BlockingIOError:
            raise
        except OSError:
            # An ICMP error for an earlier reply, or a shortage in the kernel: neither concerns the next packet.
            self.receive_errors += 1

    def _read_one(self) -> None:
        """One packet of a socket bound to one address."""
        size, peer = self.sock.recvfrom_into(self._buffer)
        self._answer_and_send(bytes(self._view[:size]), peer, None)

    def _read_any(self) -> None:
        """One packet of a socket bound to all addresses: which of them was asked, pktinfo says."""
        size, ancillary, _, peer = self.sock.recvmsg_into((self._buffer,), _SPACE)
        self._answer_and_send(bytes(self._view[:size]), peer, ancillary)

    def _answer_and_send(self, packet: bytes, peer: Any, ancillary: _Ancillary | None) -> None:
        self.received += 1
        local, back = self._local, None
        if ancillary is not None:
            asked, back = destination(ancillary)
            local = (asked, local[1]) if asked else local
        reply = self._answer(packet, peer, local, back)
        if reply:
            self._send(reply, peer, back)

    def _answer(self, packet: bytes, peer: Any, local: tuple[str, int], back: _Ancillary | None) -> bytes | None:
        """The reply to send now. None if there is none, or if it is sent later, to `peer` with `back`."""
        if peer[1] in SILENT_PORTS:
            self.dropped_ports += 1
            return None
        reply = _Reply(self, peer, back)
        try:
            outcome = self._respond(packet, "udp", (peer[0], peer[1]), local, reply)
        except Exception as error:
            self.mishaps.note(error, packet, "udp")
            return None
        if outcome is None or isinstance(outcome, bytes):
            return outcome
        if len(self._pending) >= self._limits.pending:
            self.dropped_pending += 1
            outcome.cancel()
        else:
            self._pending[reply] = outcome
        return None

    def _send(self, data: bytes, peer: Any, back: _Ancillary | None) -> None:
        try:
            if back is None:
                self.sock.sendto(data, peer)
            else:
                self.sock.sendmsg((data,), back, 0, peer)
        except BlockingIOError:
            self.dropped_sends += 1
        except OSError:
            # EINVAL for a broadcast address, EPERM from a firewall, no route: this client gets nothing, the next will.
            self.send_errors += 1
        else:
            self.sent += 1

    def _finish(self, reply: _Reply, data: bytes) -> None:
        # A reply to a query that was dropped or given up comes too late; an empty one frees the place only.
        if self._pending.pop(reply, None) is None:
            return
        if data:
            self._send(data, reply.peer, reply.back)
        if self._idle is not None and not self._pending:
            self._idle.set()


class _Reply:
    """Where the reply to one query goes: what the responder calls when it has one later."""

    __slots__ = ("back", "peer", "server")

    def __init__(self, server: UdpServer, peer: Any, back: _Ancillary | None) -> None:
        self.server = server
        self.peer = peer
        self.back = back

    def __call__(self, data: bytes) -> None:
        self.server._finish(self, data)


def destination(ancillary: _Ancillary) -> tuple[str, _Ancillary]:
    """The address that a packet was sent to, and the ancillary data that makes the reply leave from there.

    Both are empty where nothing says which address that was.
    """
    for level, kind, data in ancillary:
        if level == socket.IPPROTO_IP and kind == _IP_PKTINFO:
            _, local, _ = _PKTINFO4.unpack(data[: _PKTINFO4.size])
            # The interface is left to routing: the way back need not be the way here.
            return socket.inet_ntop(socket.AF_INET, local), [(level, kind, _PKTINFO4.pack(0, local, bytes(4)))]
        if level == socket.IPPROTO_IPV6 and kind == socket.IPV6_PKTINFO:
            local, interface = _PKTINFO6.unpack(data[: _PKTINFO6.size])
            # A link-local address means nothing without its link.
            if local[0] != 0xFE or local[1] & 0xC0 != 0x80:
                interface = 0
            return socket.inet_ntop(socket.AF_INET6, local), [(level, kind, _PKTINFO6.pack(local, interface))]
    return "", []


def _is_wildcard(address: str) -> bool:
    return address in ("0.0.0.0", "::")


def _ask_for_destinations(sock: socket.socket) -> None:
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)


def _set_comforts(sock: socket.socket, limits: UdpLimits) -> None:
    """What helps and may be missing: a large queue, as far as `rmem_max` allows, and deafness to forged path MTUs."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, limits.receive_buffer_bytes)
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError):
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _IP_PMTUDISC_OMIT)
        else:
            sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _IP_PMTUDISC_OMIT)
