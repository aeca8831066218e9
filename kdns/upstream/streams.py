"""The connections to one upstream, over TCP or TLS: made when needed, kept for the next question.

A connection has one question at a time, as a server that answers in turn would make one slow name everybody's; only
when the upstream has as many as it may have are they shared.
Law: RFC 7766 §6.2 (reuse), §7 (replies in any order), §8 (frames), RFC 7858 (DNS over TLS), RFC 8310 §8.1 (names).
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import ssl
from collections.abc import Callable
from typing import cast

from kdns.addresses import host_and_port
from kdns.upstream.question import Question
from kdns.upstream.sockets import Upstream, UpstreamError, Way, most_connections, network_error, reason
from kdns.wire.message import Message, decode

# A connection on which so many frames in a row answer nothing that was asked is worth nothing, and costs time.
MOST_WRONG_FRAMES = 100
# RFC 7858 §3.4 wants few: each costs both ends a handshake, and servers that know TLS answer in any order.
MOST_TLS_CONNECTIONS = 10


class LostError(Exception):
    """A connection ended before the reply came; the cause is the error, None where the peer closed it."""


class Connections:
    """Asks one upstream over connections, of TLS where the upstream is one of TLS."""

    def __init__(self, upstream: Upstream, way: Way = Way()) -> None:  # noqa: B008
        self._upstream = upstream
        self._source = way.source
        self._keeping = way.keeping
        self._context = way.context if upstream.tls else None
        self._count = way.count
        self._most = min(most_connections(), MOST_TLS_CONNECTIONS if upstream.tls else 1 << 16)
        self._dialing = 0
        self._open: set[_Connection] = set()
        # The one that was used last stands last, and is used first: so the surplus grows old.
        self._idle: list[_Connection] = []
        self._timer: asyncio.TimerHandle | None = None
        # Who waits for a connection while as many as there may be are being made.
        self._waiting: list[asyncio.Future[None]] = []

    async def ask(self, question: Question, deadline: float) -> Message:
        """The reply, by `deadline` of the loop's clock. Raises UpstreamError."""
        while True:
            connection, is_new = await self._connection(deadline)
            try:
                return await connection.ask(question, deadline)
            except LostError as error:
                # One that was kept may have been closed at the other end while the question was on its way.
                if is_new:
                    raise connection.lost_error(error) from error
            finally:
                self._give_back(connection)

    def close(self) -> None:
        """End all connections; who waits for a reply gets an error."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._idle.clear()
        for connection in list(self._open):
            connection.close()

    async def _connection(self, deadline: float) -> tuple[_Connection, bool]:
        """A connection for one more question, and whether it is new."""
        loop = asyncio.get_running_loop()
        while True:
            now = loop.time()
            while self._idle:
                connection = self._idle.pop()
                if self._is_good(connection, now):
                    self._count(True)
                    return connection, False
                connection.close()
            if len(self._open) + self._dialing < self._most:
                self._count(False)
                return await self._dial(deadline), True
            shared = [connection for connection in self._open if connection.is_usable]
            if shared:
                self._count(True)
                return min(shared, key=lambda connection: connection.questions), False
            await self._change(deadline)

    async def _change(self, deadline: float) -> None:
        """Wait until a connection was made, given back or lost."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        try:
            async with asyncio.timeout_at(deadline):
                await future
        except TimeoutError as error:
            raise UpstreamError(f"dial tcp {self._upstream}: i/o timeout", silent=True) from error
        finally:
            if future in self._waiting:
                self._waiting.remove(future)

    def _tell(self) -> None:
        """Let those who wait look again."""
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    async def _dial(self, deadline: float) -> _Connection:
        self._dialing += 1
        try:
            connection = await self._connect(deadline)
        finally:
            self._dialing -= 1
            self._tell()
        # It may be gone already, and nobody would take it out then.
        if connection.is_usable:
            self._open.add(connection)
        return connection

    async def _connect(self, deadline: float) -> _Connection:
        loop = asyncio.get_running_loop()
        upstream = self._upstream
        name = None
        if self._context is not None:
            name = upstream.server_name or upstream.host.partition("%")[0]
        try:
            async with asyncio.timeout_at(deadline):
                # The loop makes the socket, too: one that we made would be ours and the transport's, and when the
                # handshake fails nobody could say who may close it.
                _, connection = await loop.create_connection(
                    lambda: _Connection(upstream, self._lost),
                    upstream.host,
                    upstream.port,
                    ssl=self._context,
                    server_hostname=name,
                    local_addr=(self._source, 0) if self._source else None,
                )
        except TimeoutError as error:
            raise UpstreamError(f"dial tcp {upstream}: i/o timeout", silent=True) from error
        except OSError as error:
            raise network_error(
                f"dial tcp {upstream}: {'tls' if isinstance(error, ssl.SSLError) else 'connect'}", error
            ) from error
        connection.made = loop.time()
        return connection

    def _is_good(self, connection: _Connection, now: float) -> bool:
        keeping = self._keeping
        return (
            connection.is_usable
            and now - connection.used < keeping.idle_seconds
            and not (keeping.age_seconds and now - connection.made >= keeping.age_seconds)
        )

    def _give_back(self, connection: _Connection) -> None:
        """Keep a connection that nobody uses any more, or close it."""
        if connection.questions or connection in self._idle:
            return
        loop = asyncio.get_running_loop()
        connection.used = loop.time()
        most = self._keeping.most_idle
        if not self._is_good(connection, connection.used) or (most and len(self._idle) >= most):
            connection.close()
            return
        self._idle.append(connection)
        self._tell()
        if self._timer is None:
            self._timer = loop.call_later(self._keeping.idle_seconds, self._sweep)

    def _sweep(self) -> None:
        """Close what was kept for long enough."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        kept = [connection for connection in self._idle if self._is_good(connection, now)]
        for connection in self._idle:
            if connection not in kept:
                connection.close()
        self._idle = kept
        self._timer = loop.call_later(self._keeping.idle_seconds, self._sweep) if kept else None

    def _lost(self, connection: _Connection) -> None:
        self._open.discard(connection)
        self._tell()
        if connection in self._idle:
            self._idle.remove(connection)


class _Connection(asyncio.Protocol):
    """One connection, and the questions on it that wait for a reply."""

    def __init__(self, upstream: Upstream, lost: Callable[[_Connection], None]) -> None:
        # For errors: `tcp 10.244.0.5:41012->10.0.0.10:53`.
        self.path = f"tcp {upstream}"
        self.made = 0.0
        self.used = 0.0
        self._tell = lost
        self._transport: asyncio.WriteTransport | None = None
        self._buffer = bytearray()
        self._asked: dict[int, tuple[Question, bytes, asyncio.Future[Message]]] = {}
        self._wrong = 0
        self._is_tired = False
        self._ended_by = "EOF"

    @property
    def questions(self) -> int:
        """How many questions wait."""
        return len(self._asked)

    @property
    def is_usable(self) -> bool:
        """Whether another question may be asked on it."""
        return not self._is_tired and self._transport is not None and not self._transport.is_closing()

    async def ask(self, question: Question, deadline: float) -> Message:
        """The reply to a question. Raises UpstreamError, or LostError when the connection ends."""
        if self._transport is None:
            raise LostError
        id = secrets.randbits(16)
        while id in self._asked:
            id = secrets.randbits(16)
        query = question.packet(id)
        future: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._asked[id] = question, query, future
        try:
            self._transport.write(len(query).to_bytes(2, "big") + query)
            async with asyncio.timeout_at(deadline):
                return await future
        except TimeoutError as error:
            raise UpstreamError(f"read {self.path}: i/o timeout", silent=True) from error
        finally:
            del self._asked[id]
            # What was given up may still be answered, and whoever is slow once needs no further question.
            if not future.done() or future.cancelled():
                self._is_tired = True

    def lost_error(self, error: LostError) -> UpstreamError:
        """The end of this connection in words."""
        cause = error.__cause__
        if isinstance(cause, OSError):
            return UpstreamError(f"read {self.path}: read: {reason(cause)}")
        return UpstreamError(f"read {self.path}: {self._ended_by}")

    def close(self) -> None:
        """End it at once: nothing that is still to be sent matters."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A cast: the transports of uvloop are none of asyncio's classes.
        self._transport = cast(asyncio.WriteTransport, transport)
        local = transport.get_extra_info("sockname")
        if local:
            self.path = f"tcp {host_and_port(*local[:2])}->{self.path.removeprefix('tcp ')}"

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        position = 0
        while len(buffer) - position >= 2:
            end = position + 2 + int.from_bytes(buffer[position : position + 2], "big")
            if end > len(buffer):
                break
            self._frame(bytes(buffer[position + 2 : end]))
            position = end
            if self._wrong > MOST_WRONG_FRAMES:
                buffer.clear()
                self._ended_by = "too many replies to nothing that was asked"
                self.close()
                return
        del buffer[:position]

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        for _, _, future in self._asked.values():
            if not future.done():
                lost = LostError()
                lost.__cause__ = exc
                future.set_exception(lost)
        self._tell(self)

    def _frame(self, reply: bytes) -> None:
        question, query, future = self._asked.get(int.from_bytes(reply[:2], "big"), (None, b"", None))
        # The case is for guessers off the path, and here are none.
        if question is None or future is None or not question.is_answered_in_other_case(reply, query):
            self._wrong += 1
            return
        self._wrong = 0
        if future.done():
            return
        try:
            future.set_result(decode(reply))
        except ValueError as error:
            # Nothing better comes on this connection.
            self._is_tired = True
            with contextlib.suppress(asyncio.InvalidStateError):
                future.set_exception(UpstreamError(f"read {self.path}: {error}"))
