"""Queries over TCP: framing, time and room for each connection, replies in whatever order they come.

Knows no DNS but the two bytes of length; what a message means, the responder says.
Law: RFC 7766 (time-outs §6.2.3, pipelining §6.2.1.1, order §7), RFC 1035 §4.2.2.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import resource
import socket
from typing import TYPE_CHECKING, cast

import msgspec

from kdns.server.seam import Mishaps, plain_host

if TYPE_CHECKING:
    from kdns.server.seam import Pending, Responder

log = logging.getLogger("kdns.server")


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What clients may cost. A clock runs per message, not per read, so that dripping bytes buys no time.

    `connections` 0 stands for half of the descriptors that the process may have, 1000 at most; `per_client` 0 for half
    of these connections. `idle_seconds` shrinks to `shortest_idle_seconds` while the table fills from half to four
    fifths.
    """

    connections: int = 0
    # A NodeLocal DNSCache or a NAT is one address for all pods behind it, with a connection for each query under way;
    # the other half of the table is for the others.
    per_client: int = 0
    first_query_seconds: float = 3.0
    message_seconds: float = 3.0
    idle_seconds: float = 10.0
    shortest_idle_seconds: float = 0.2
    stall_seconds: float = 10.0
    in_flight: int = 100
    per_turn: int = 32
    high_water_bytes: int = 64 * 1024
    most_bytes: int = 1024 * 1024
    accepts_per_wakeup: int = 32
    accept_pause_seconds: float = 0.5
    backlog: int = 512


SHORTEST_MESSAGE = 12
SECONDS_BETWEEN_REFUSALS = 60.0
# The client gave up in the queue, or a firewall took it out: the next one may be well (accept(2)).
_GONE = (errno.ECONNABORTED, errno.EPROTO, errno.EPERM, errno.EHOSTUNREACH, errno.ENETUNREACH)


def open_tcp(address: str, port: int, reuse_port: bool = False, limits: Limits | None = None) -> socket.socket:
    """A listening socket at a numeric address, ready for `TcpServer`. Raises OSError where that can't be."""
    family, kind, protocol, _, target = socket.getaddrinfo(
        address, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
    )[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setblocking(False)
        # A restart need not wait until the connections of the last process are forgotten.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(target)
        sock.listen((limits or Limits()).backlog)
    except OSError:
        sock.close()
        raise
    return sock


class TcpServer:
    """Answers at the listening sockets of `open_tcp`, from `start` until `stop`; one table of connections for all.

    The counters are plain integers for whoever collects them.
    """

    def __init__(self, responder: Responder, socks: list[socket.socket], limits: Limits | None = None) -> None:
        self.received = 0
        self.sent = 0
        self.accepted = 0
        self.refused_full = 0
        self.refused_client = 0
        self.accept_errors = 0
        self.closed_idle = 0
        self.closed_slow = 0
        self.closed_stalled = 0
        self.closed_malformed = 0
        self.mishaps = Mishaps()
        self.socks = socks
        self.limits = limits or Limits()
        self.respond = responder.respond
        self.connections: set[_Connection] = set()
        self.stopping = False
        self._capacity = self.limits.connections or _default_capacity()
        self._per_client = self.limits.per_client or max(1, self._capacity // 2)
        self._next_line = 0.0
        self._clients: dict[str, int] = {}
        self._taken = 0
        self._starting: set[asyncio.Task[None]] = set()
        self._pauses: dict[socket.socket, asyncio.TimerHandle] = {}
        self._empty: asyncio.Event | None = None
        self._sweeping: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to accept; called in the running loop."""
        self.loop = asyncio.get_running_loop()
        for sock in self.socks:
            self.loop.add_reader(sock.fileno(), self._acceptable, sock)

    async def stop(self, grace_seconds: float = 0.0) -> None:
        """Take in who already waits, answer what is in flight, close; who isn't done after the grace is cut."""
        if self.stopping:
            return
        self.stopping = True
        self.loop = asyncio.get_running_loop()
        deadline = self.loop.time() + grace_seconds
        for sock in self.socks:
            self.loop.remove_reader(sock.fileno())
            if pause := self._pauses.pop(sock, None):
                pause.cancel()
            # Who is in the queue believes to be connected: closing it would reset them. Others may come meanwhile, but
            # no flood shall keep the port.
            for _ in range(2 * self.limits.backlog):
                if not self._accept(sock):
                    break
            sock.close()
        if self._starting:
            await asyncio.wait(self._starting)
        if self._sweeping is not None:
            self._sweeping.cancel()
        if self.connections and grace_seconds > 0:
            # What had arrived before is read and answered; the loop needs a turn to see it.
            await asyncio.sleep(min(0.02, grace_seconds))
            self._empty = asyncio.Event()
            for connection in list(self.connections):
                connection.finish()
            if self.connections:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._empty.wait(), max(0.0, deadline - self.loop.time()))
        for connection in list(self.connections):
            connection.abort()

    def idle_seconds(self) -> float:
        """How long a connection may stay without a query, now that so much of the table is taken."""
        limits = self.limits
        used = self._taken / self._capacity
        if used <= 0.5:
            return limits.idle_seconds
        share = max(0.0, (0.8 - used) / 0.3)
        return max(min(limits.shortest_idle_seconds, limits.idle_seconds), limits.idle_seconds * share)

    def told_idle_seconds(self) -> float:
        """The same as clients may be told (RFC 7828 §3.2.2): once the server ends, they have no time left."""
        return 0.0 if self.stopping else self.idle_seconds()

    def opened(self, connection: _Connection) -> None:
        """A connection has its transport."""
        self.connections.add(connection)
        if self._taken * 2 > self._capacity and self._sweeping is None:
            self._sweeping = self.loop.call_later(self.limits.shortest_idle_seconds, self._sweep)

    def closed(self, connection: _Connection) -> None:
        """A connection is gone."""
        self.connections.discard(connection)
        self._forget_client(connection.client[0])
        if self._empty is not None and not self.connections:
            self._empty.set()

    def _sweep(self) -> None:
        """Let the idle know that their stay has become shorter."""
        self._sweeping = None
        for connection in self.connections:
            connection.watch_clock()

    def _acceptable(self, sock: socket.socket) -> None:
        for _ in range(self.limits.accepts_per_wakeup):
            if not self._accept(sock):
                return

    def _accept(self, sock: socket.socket) -> bool:
        """Take one connection; False when there is none to take now."""
        try:
            accepted, peer = sock.accept()
        except BlockingIOError:
            return False
        except OSError as error:
            self.accept_errors += 1
            if error.errno in _GONE:
                return True
            self._pause(sock, error)
            return False
        self.accepted += 1
        host = plain_host(peer[0])
        if self._taken >= self._capacity:
            self.refused_full += 1
            self._refuse(accepted, f"{self._capacity} are open")
        elif self._clients.get(host, 0) >= self._per_client:
            self.refused_client += 1
            self._refuse(accepted, f"{host} has {self._per_client}")
        else:
            self._taken += 1
            self._clients[host] = self._clients.get(host, 0) + 1
            task = self.loop.create_task(self._begin(accepted, (host, peer[1])))
            self._starting.add(task)
            task.add_done_callback(self._starting.discard)
        return True

    def _refuse(self, accepted: socket.socket, why: str) -> None:
        accepted.close()
        # Who comes too often comes again: the counters say how often, a line now and then says that it happens.
        now = self.loop.time()
        if now >= self._next_line:
            self._next_line = now + SECONDS_BETWEEN_REFUSALS
            refused = self.refused_full + self.refused_client
            log.warning("a TCP connection was refused: %s; %d refused so far", why, refused)

    async def _begin(self, accepted: socket.socket, client: tuple[str, int]) -> None:
        try:
            accepted.setblocking(False)
            local = accepted.getsockname()
            connection = _Connection(self, client, (plain_host(local[0]), local[1]))
            await self.loop.connect_accepted_socket(lambda: connection, accepted)
        except OSError:
            self.accept_errors += 1
            self._forget_client(client[0])
            accepted.close()

    def _forget_client(self, host: str) -> None:
        self._taken -= 1
        left = self._clients.get(host, 1) - 1
        if left > 0:
            self._clients[host] = left
        else:
            self._clients.pop(host, None)

    def _pause(self, sock: socket.socket, error: OSError) -> None:
        # The listener stays readable while no descriptor is left: without a pause the loop would spin.
        if self.stopping:
            return
        log.warning("accept paused: seconds=%s error=%s", self.limits.accept_pause_seconds, error.strerror)
        self.loop.remove_reader(sock.fileno())
        self._pauses[sock] = self.loop.call_later(self.limits.accept_pause_seconds, self._unpause, sock)

    def _unpause(self, sock: socket.socket) -> None:
        self._pauses.pop(sock, None)
        self.loop.add_reader(sock.fileno(), self._acceptable, sock)


class _Connection(asyncio.Protocol):
    """One client: bytes gathered into messages, replies sent as they come, one clock for all its deadlines."""

    def __init__(self, server: TcpServer, client: tuple[str, int], local: tuple[str, int]) -> None:
        self.server = server
        self.client = client
        self.local = local
        self._limits = server.limits
        self._loop = server.loop
        self._buffer = bytearray()
        self._pending: dict[_Reply, Pending] = {}
        self._out: list[bytes] | None = None
        self._out_bytes = 0
        self._written = 0
        self._asked = False
        self._client_done = False
        self._finishing = False
        self._closing = False
        self._blocked = False
        self._reading = True
        self._again: asyncio.Handle | None = None
        # The moments from which the clocks run.
        self._opened = self._loop.time()
        self._idle_since = self._opened
        self._message_since = 0.0
        self._stalled_since = 0.0
        self._drained = 0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0

    # What the loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=self._limits.high_water_bytes)
        self.server.opened(self)
        self.watch_clock()

    def data_received(self, data: bytes) -> None:
        if self._closing:
            return
        self._buffer += data
        self._work()

    def eof_received(self) -> bool:
        # Half-closed: the client wants its answers, then FIN.
        self._client_done = True
        self._work()
        return True

    def pause_writing(self) -> None:
        self._blocked = True
        self._start_stall_clock()
        self._steer()

    def resume_writing(self) -> None:
        self._blocked = False
        self._work()

    def connection_lost(self, exc: Exception | None) -> None:
        self._closing = True
        for stopper in (self._timer, self._again):
            if stopper is not None:
                stopper.cancel()
        self._timer = self._again = None
        # RFC 7766 §6.2.4: nobody is there to be answered.
        pending, self._pending = self._pending, {}
        for each in pending.values():
            each.cancel()
        self._buffer.clear()
        self.server.closed(self)

    # What the server calls.

    def finish(self) -> None:
        """Answer what is here, then close. Who has not asked anything yet may still do so."""
        self._finishing = True
        self._work()

    def abort(self) -> None:
        """Close at once."""
        self._closing = True
        self._transport.abort()

    def watch_clock(self) -> None:
        """Set the timer for the next deadline."""
        deadline = self._deadline()
        if deadline is None:
            return
        # A timer that is early finds the deadline moved and starts again; only one that would be late is replaced.
        if self._timer is not None:
            if self._timer_at <= deadline:
                return
            self._timer.cancel()
        self._timer_at = deadline
        self._timer = self._loop.call_at(deadline, self._tick)

    # Messages in.

    def _work(self) -> None:
        """Answer the messages that are here, a bounded number of them, and settle what happens next."""
        if self._closing:
            return
        self._out, self._out_bytes = [], 0
        position = self._answer_messages()
        out, self._out, self._out_bytes = self._out, None, 0
        if out:
            self._write(b"".join(out))
        if position:
            del self._buffer[:position]
            self._message_since = 0.0
        if not self._closing:
            self._settle()

    def _answer_messages(self) -> int:
        """Answer messages from the front of the buffer; how many bytes they had."""
        buffer = self._buffer
        position = 0
        for _ in range(self._limits.per_turn):
            if not self._may_answer() or len(buffer) < position + 2:
                return position
            size = buffer[position] << 8 | buffer[position + 1]
            if size < SHORTEST_MESSAGE:
                # Nothing that follows can be trusted to be a frame.
                self.server.closed_malformed += 1
                self._close()
                return position
            end = position + 2 + size
            if len(buffer) < end:
                return position
            self._answer(bytes(buffer[position + 2 : end]))
            position = end
        return position

    def _go_on(self) -> None:
        self._again = None
        self._work()

    def _may_answer(self) -> bool:
        limits = self._limits
        return (
            not self._blocked
            and not self._closing
            and len(self._pending) < limits.in_flight
            and self._out_bytes < limits.high_water_bytes
        )

    def _answer(self, message: bytes) -> None:
        self.server.received += 1
        self._asked = True
        reply = _Reply(self)
        try:
            outcome = self.server.respond(message, "tcp", self.client, self.local, reply)
        except Exception as error:
            self.server.mishaps.note(error, message, "tcp")
            return
        if outcome is None:
            return
        if isinstance(outcome, bytes):
            self._send(outcome)
        else:
            self._pending[reply] = outcome

    def _settle(self) -> None:
        """Read on or not, close or not, and which clock runs."""
        if self._again is None and self._may_answer() and self._holds_message():
            # The rest of the process has its turn first.
            self._again = self._loop.call_soon(self._go_on)
        leaving = self._client_done or (self._finishing and self._asked and not self._buffer)
        if leaving and not self._pending and not self._blocked and self._again is None:
            self._close()
            return
        self._steer()
        if self._buffer and not self._message_since and self._reading:
            self._message_since = self._loop.time()
        self.watch_clock()

    def _holds_message(self) -> bool:
        """Whether the buffer begins with a whole message, or with what can never be one."""
        buffer = self._buffer
        if len(buffer) < 2:
            return False
        size = buffer[0] << 8 | buffer[1]
        return size < SHORTEST_MESSAGE or len(buffer) >= 2 + size

    def _steer(self) -> None:
        """Read only what can be answered: TCP's own window then holds the client back."""
        wanted = self._may_answer() and self._again is None
        if wanted == self._reading or self._closing or self._client_done:
            return
        self._reading = wanted
        if not wanted:
            self._transport.pause_reading()
            return
        if self._message_since:
            # While nothing was read, the client could not complete its message.
            self._message_since = self._loop.time()
        self._transport.resume_reading()

    # Replies out.

    def finished(self, reply: _Reply, data: bytes) -> None:
        """The reply to a pending query; an empty one frees its place only."""
        if self._pending.pop(reply, None) is None:
            return
        if data:
            self._send(data)
        if not self._pending and not self._buffer:
            self._idle_since = self._loop.time()
        # A full table of queries may have held others back.
        if self._buffer or self._client_done or self._finishing or not self._reading:
            self._work()
        else:
            self.watch_clock()

    def _send(self, data: bytes) -> None:
        self.server.sent += 1
        self._idle_since = self._loop.time()
        framed = len(data).to_bytes(2, "big") + data
        if self._out is None:
            self._write(framed)
        else:
            self._out.append(framed)
            self._out_bytes += len(framed)

    def _write(self, data: bytes) -> None:
        if self._transport.is_closing():
            return
        if self._transport.get_write_buffer_size() + len(data) > self._limits.most_bytes:
            self.server.closed_stalled += 1
            self.abort()
            return
        self._written += len(data)
        self._transport.write(data)

    def _close(self) -> None:
        """Send what is written, then close; the stall clock sees to it that this ends."""
        self._closing = True
        pending, self._pending = self._pending, {}
        for each in pending.values():
            each.cancel()
        if self._out:
            out, self._out = self._out, []
            self._write(b"".join(out))
        self._start_stall_clock()
        self._transport.close()
        self.watch_clock()

    # Time.

    def _start_stall_clock(self) -> None:
        self._stalled_since = self._loop.time()
        self._drained = self._written - self._transport.get_write_buffer_size()

    def _deadline(self) -> float | None:
        limits = self._limits
        if self._blocked or self._closing:
            return self._stalled_since + limits.stall_seconds
        if not self._asked:
            return self._opened + limits.first_query_seconds
        if self._message_since and self._reading:
            return self._message_since + limits.message_seconds
        if self._pending or self._again is not None:
            return None
        return self._idle_since + self.server.idle_seconds()

    def _tick(self) -> None:
        self._timer = None
        deadline = self._deadline()
        if deadline is None:
            return
        if self._loop.time() < deadline - 0.001:
            self.watch_clock()
            return
        if self._blocked or self._closing:
            drained = self._written - self._transport.get_write_buffer_size()
            if drained > self._drained:
                self._start_stall_clock()
                self.watch_clock()
                return
            self.server.closed_stalled += 1
            self.abort()
        elif self._buffer:
            self.server.closed_slow += 1
            self.abort()
        else:
            self.server.closed_idle += 1
            self._close()


class _Reply:
    """Where the reply to one query goes: what the responder calls when it has one later."""

    __slots__ = ("_connection",)

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection

    def __call__(self, data: bytes) -> None:
        self._connection.finished(self, data)


def _default_capacity() -> int:
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return min(1000, descriptors // 2) if descriptors > 0 else 1000
