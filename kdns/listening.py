"""Where a configuration listens: the sockets of each address and port, who answers there, and how they are left.

Knows no plugin and no Corefile. A port belongs to one process, unless the listener says that it shares it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from kdns import metrics
from kdns.addresses import host_and_port
from kdns.chain import Process
from kdns.errors import ConfigError, Problem
from kdns.metrics import Metric
from kdns.responder import Responder, Site
from kdns.server.batch import serve_udp
from kdns.server.tcp import TcpServer, open_tcp
from kdns.server.udp import UdpServer, open_udp

# A forwarded query has its answer, or SERVFAIL, after 4 seconds.
DRAIN_SECONDS = 5.0

Sockets = tuple[list[socket.socket], list[socket.socket]]
_Source = Callable[[], Mapping[tuple[str, ...], float]]


class Listener(msgspec.Struct, frozen=True):
    """One address and port, and the zones that are served there. An empty address is all addresses.

    `shared` is whether other processes may listen there, too.
    """

    address: str
    port: int
    sites: tuple[Site, ...]
    shared: bool = False

    @property
    def place(self) -> tuple[str, int]:
        """Its address and port."""
        return self.address, self.port


class Listening:
    """A listener while it is served: who answers, and the servers of its sockets, from `start` until `stop`."""

    def __init__(self, listener: Listener, sockets: Sockets, process: Process) -> None:
        udp, tcp = sockets
        self.listener = listener
        self.sockets = sockets
        self._responder = Responder(listener.sites, process, process.metrics)
        self._udp = [serve_udp(self._responder, sock) for sock in udp]
        self._tcp = TcpServer(self._responder, tcp)
        self._responder.idle_seconds = self._tcp.told_idle_seconds
        self._numbers = process.metrics
        self._sources = [source for server in self._udp for source in _udp_sources(server)] + _tcp_sources(self._tcp)

    def start(self) -> None:
        """Begin to answer; called in the running loop."""
        for server in self._udp:
            server.start()
        self._tcp.start()
        for metric, source in self._sources:
            self._numbers.read(metric, source)

    def serve(self, listener: Listener) -> None:
        """Serve what this one, of the same address and port, says from the next query on."""
        self.listener = listener
        self._responder.serve(listener.sites)
        _share(self.sockets, listener.shared)

    async def stop(self) -> None:
        """Leave the port: answer what has arrived, and close."""
        servers: list[UdpServer | TcpServer] = [*self._udp, self._tcp]
        await asyncio.gather(*(server.stop(DRAIN_SECONDS) for server in servers))
        for metric, source in self._sources:
            self._numbers.unread(metric, source)
        self._responder.close()


def open_sockets(listeners: Sequence[Listener], held: Iterable[Listening] = ()) -> list[Sockets]:
    """The sockets of each listener, beside those that we still hold. Raises ConfigError, and then none is left open.

    One address and all addresses of a port can both be served: the kernel gives a packet to the more exact socket. It
    takes SO_REUSEPORT for as long as they are opened, with which a port that another kdns has would be shared in
    silence, too; so it is first tried without, unless the port is ours already.
    """
    ours = [each for each in held if _overlaps(each.listener, listeners)]
    beside_ours = [each for each in listeners if _overlaps(each, [other.listener for other in ours])]
    several = [each for each in listeners if _overlaps(each, listeners)]
    for listener in several:
        if not listener.shared and listener not in beside_ours:
            close_sockets(_open(listener, reuse_port=False))
    opened: list[Sockets] = []
    for each in ours:
        _share(each.sockets, True)
    try:
        with contextlib.ExitStack() as undo:
            for listener in listeners:
                sockets = _open(listener, listener.shared or listener in several or listener in beside_ours)
                undo.callback(close_sockets, sockets)
                opened.append(sockets)
            undo.pop_all()
    finally:
        for each in ours:
            _share(each.sockets, each.listener.shared)
    for listener, sockets in zip(listeners, opened, strict=True):
        _share(sockets, listener.shared)
    return opened


def is_taken(listener: Listener) -> bool:
    """Whether somebody has this port now, so that nobody else can have it alone."""
    try:
        close_sockets(_open(listener, reuse_port=False))
    except ConfigError:
        return True
    return False


def _overlaps(listener: Listener, others: Iterable[Listener]) -> bool:
    """Whether another one of these has the same port and the same address, or one of both has all addresses."""
    return any(
        other is not listener
        and other.port == listener.port
        and (other.address == listener.address or not other.address or not listener.address)
        for other in others
    )


def close_sockets(sockets: Sockets) -> None:
    """Close sockets that nothing was read from yet."""
    udp, tcp = sockets
    for sock in udp + tcp:
        sock.close()


def _share(sockets: Sockets, shared: bool) -> None:
    """Let other processes of the same user have this port from now on, or no more; who has it already stays."""
    udp, tcp = sockets
    for sock in udp + tcp:
        # Of a listener that is being left some are closed already.
        if sock.fileno() >= 0:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, shared)


def _open(listener: Listener, reuse_port: bool) -> Sockets:
    """UDP and TCP sockets of a listener: of both families where it has no address. Raises ConfigError."""
    udp: list[socket.socket] = []
    tcp: list[socket.socket] = []
    addresses = [listener.address] if listener.address else ["0.0.0.0", "::"]
    try:
        for address in addresses:
            try:
                udp.append(open_udp(address, listener.port, reuse_port))
                tcp.append(open_tcp(address, listener.port, reuse_port))
            except OSError as error:
                # A machine without IPv6 still has all of IPv4.
                if (
                    not listener.address
                    and address == "::"
                    and error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)
                ):
                    continue
                raise
    except OSError as error:
        close_sockets((udp, tcp))
        raise ConfigError([_cannot_listen(listener, error)]) from error
    return udp, tcp


def _cannot_listen(listener: Listener, error: OSError) -> Problem:
    where = host_and_port(listener.address, listener.port)
    if error.errno == errno.EADDRINUSE:
        hint = "the server there doesn't share it: it lacks `multisocket`, or is another user's"
        return Problem(
            f"{where} is taken; port {_free_port(listener.address)} is free", hint=hint if listener.shared else ""
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return Problem(f"not allowed to listen on {where}", hint="ports below 1024 need the right NET_BIND_SERVICE")
    return Problem(f"can't listen on {where}: {os.strerror(error.errno or 0)}")


def _free_port(address: str) -> int:
    """A port that is free for UDP and TCP at this moment."""
    for candidate in (1053, 2053, 5533, 8053, 10053, 0):
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            tcp = stack.enter_context(open_tcp(address or "0.0.0.0", candidate))
            port = int(tcp.getsockname()[1])
            stack.enter_context(open_udp(address or "0.0.0.0", port))
            return port
    return 0


def _udp_sources(server: UdpServer) -> list[tuple[Metric, _Source]]:
    """What a UDP server counts, by metric and its labels."""
    return [
        (
            metrics.PACKETS_DROPPED,
            lambda: {
                ("source_port",): server.dropped_ports,
                ("too_many_waiting",): server.dropped_pending,
                ("receive_error",): server.receive_errors,
            },
        ),
        (metrics.UDP_SEND_DROPS, lambda: {("would_block",): server.dropped_sends, ("error",): server.send_errors}),
        (metrics.UDP_RECEIVE_DROPS, lambda: {(): server.receive_drops()}),
        (metrics.PANICS, lambda: {(): server.mishaps.count}),
    ]


def _tcp_sources(server: TcpServer) -> list[tuple[Metric, _Source]]:
    return [
        (
            metrics.TCP_CLOSED,
            lambda: {
                ("too_many",): server.refused_full,
                ("too_many_of_client",): server.refused_client,
                ("idle",): server.closed_idle,
                ("slow",): server.closed_slow,
                ("not_reading",): server.closed_stalled,
                ("malformed",): server.closed_malformed,
            },
        ),
        (metrics.TCP_ACCEPT_ERRORS, lambda: {(): server.accept_errors}),
        (metrics.PANICS, lambda: {(): server.mishaps.count}),
    ]
