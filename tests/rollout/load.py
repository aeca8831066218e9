"""A load whose every query is accounted for: answered, answered wrongly, or lost.

    with load(port, [question("web.shop.svc.cluster.local.", "10.96.0.7")], Rates(udp=400, fresh=50)) as tally:
        ...
    assert tally.lost == 0

A query is lost that has no answer within the patience. Over TCP it is asked once more, on another connection, when its
own ends before the answer, as a client does. Over UDP it is asked once, and no socket is used for long, so that the
kernel spreads the queries over all processes of a port. It runs in a thread of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import uvloop

from kdns.wire import names

HOST = "127.0.0.1"
TICK_SECONDS = 0.002
SOCKETS, QUERIES_OF_A_SOCKET = 64, 50
CONNECTIONS = 20
WAIT_SECONDS = 30.0
KINDS = ("udp", "kept", "fresh")


class Question(NamedTuple):
    """A query behind its ID, and what stands in its answer."""

    query: bytes
    answer: bytes


def question(name: str, address: str) -> Question:
    """That a name has this A record."""
    query = struct.pack("!HHHHH", 0x0100, 1, 0, 0, 0) + names.from_text(name) + struct.pack("!HH", 1, 1)
    return Question(query, socket.inet_aton(address))


class Rates(NamedTuple):
    """Queries a second: by UDP, by TCP over connections that are kept, and by TCP with a connection for each."""

    udp: float = 0
    kept: float = 0
    fresh: float = 0


class Tally:
    """What became of the queries of each kind. `again` is how many were asked once more."""

    def __init__(self) -> None:
        self.sent = dict.fromkeys(KINDS, 0)
        self.answered = dict.fromkeys(KINDS, 0)
        self.again = dict.fromkeys(KINDS, 0)
        self.wrong: list[bytes] = []
        self.seconds: list[float] = []

    def wait(self, more: int) -> None:
        """Return when so many more queries were answered."""
        wanted = sum(self.answered.values()) + more
        deadline = time.monotonic() + WAIT_SECONDS
        while sum(self.answered.values()) < wanted:
            assert time.monotonic() < deadline, self
            time.sleep(0.01)

    @property
    def lost(self) -> int:
        """Of all kinds, once the load has ended."""
        return sum(self.sent.values()) - sum(self.answered.values())

    def __str__(self) -> str:
        parts = [
            f"{kind}: {self.sent[kind]} sent, {self.again[kind]} asked again, "
            f"{self.sent[kind] - self.answered[kind]} lost"
            for kind in KINDS
            if self.sent[kind]
        ]
        longest = max(self.seconds, default=0) * 1000
        return "; ".join([*parts, f"{len(self.wrong)} wrong; the longest wait {longest:.0f} ms"])


@contextlib.contextmanager
def load(port: int, questions: Sequence[Question], rates: Rates, patience_seconds: float = 10.0) -> Iterator[Tally]:
    """Ask these questions in turn, at these rates, for as long as the block lasts; then wait for the last answers."""
    running = _Load(port, questions, patience_seconds)
    thread = threading.Thread(target=lambda: uvloop.run(running.run(rates)), name="load", daemon=True)
    thread.start()
    try:
        yield running.tally
    finally:
        running.ended.set()
        thread.join()


class _Query:
    """One query under way, the same when it is asked again."""

    __slots__ = ("again", "asked", "kind", "question")

    def __init__(self, kind: str, question: Question, asked: float) -> None:
        self.kind = kind
        self.question = question
        self.asked = asked
        self.again = False


class _Load:
    def __init__(self, port: int, questions: Sequence[Question], patience_seconds: float) -> None:
        self.port = port
        self.tally = Tally()
        self.ended = threading.Event()
        self._patience_seconds = patience_seconds
        self._questions = itertools.cycle(questions)
        self._waiting: set[_Query] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, rates: Rates) -> None:
        self.loop = asyncio.get_running_loop()
        sockets = deque(_Socket(self) for _ in range(SOCKETS))
        retired: list[_Socket] = []
        connections = [_Connection(self) for _ in range(CONNECTIONS if rates.kept else 0)]
        turns = itertools.cycle(connections)
        began = time.perf_counter()
        while not self.ended.is_set():
            elapsed = time.perf_counter() - began
            for query in self._due("udp", rates.udp, elapsed):
                if sockets[0].used >= QUERIES_OF_A_SOCKET:
                    retired.append(sockets[0])
                    sockets[0] = _Socket(self)
                sockets[0].ask(query)
                sockets.rotate()
            for query in self._due("kept", rates.kept, elapsed):
                next(turns).ask([query])
            for query in self._due("fresh", rates.fresh, elapsed):
                self.spawn(self._ask_afresh(query))
            for each in [each for each in retired if not each.waiting]:
                each.close()
                retired.remove(each)
            await asyncio.sleep(TICK_SECONDS)
        await self._wait_for_the_last()
        for each in (*sockets, *retired, *connections):
            each.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        # The transports close in the loop's next turn.
        await asyncio.sleep(TICK_SECONDS)

    def answered(self, query: _Query, reply: bytes) -> None:
        """Count an answer that came in time."""
        if query not in self._waiting:
            return
        self._waiting.discard(query)
        taken = time.perf_counter() - query.asked
        if taken > self._patience_seconds:
            return
        self.tally.answered[query.kind] += 1
        self.tally.seconds.append(taken)
        if reply[3] & 15 or query.question.answer not in reply:
            self.tally.wrong.append(reply)

    def may_ask_again(self, query: _Query) -> bool:
        """Whether a query whose connection is gone has its second chance, which begins now."""
        if query.again or query not in self._waiting:
            return False
        query.again, query.asked = True, time.perf_counter()
        self.tally.again[query.kind] += 1
        return True

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = self.loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _due(self, kind: str, rate: float, elapsed: float) -> Iterable[_Query]:
        """The queries that are to be sent by now."""
        for _ in range(int(rate * elapsed) - self.tally.sent[kind]):
            self.tally.sent[kind] += 1
            query = _Query(kind, next(self._questions), time.perf_counter())
            self._waiting.add(query)
            yield query

    async def _ask_afresh(self, query: _Query) -> None:
        for _ in range(2):
            try:
                reader, writer = await asyncio.open_connection(HOST, self.port)
                try:
                    writer.write(_framed(1, query))
                    reply = await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))
                finally:
                    writer.close()
            except (OSError, asyncio.IncompleteReadError):
                if not self.may_ask_again(query):
                    return
            else:
                self.answered(query, reply)
                return

    async def _wait_for_the_last(self) -> None:
        # What is asked again meanwhile begins to wait anew.
        for _ in range(int(2 * self._patience_seconds / TICK_SECONDS)):
            now = time.perf_counter()
            if all(now - query.asked > self._patience_seconds for query in self._waiting):
                return
            await asyncio.sleep(TICK_SECONDS)


def _framed(number: int, query: _Query) -> bytes:
    packet = query.question.query
    return struct.pack("!HH", len(packet) + 2, number) + packet


class _Socket:
    """A UDP socket with a source port of its own."""

    def __init__(self, load: _Load) -> None:
        self.used = 0
        self.waiting: dict[bytes, _Query] = {}
        self._load = load
        self._sock = socket.socket(type=socket.SOCK_DGRAM)
        self._sock.setblocking(False)
        self._sock.connect((HOST, load.port))
        load.loop.add_reader(self._sock.fileno(), self._readable)

    def ask(self, query: _Query) -> None:
        self.used += 1
        number = self.used.to_bytes(2, "big")
        self.waiting[number] = query
        packet = number + query.question.query
        try:
            self._sock.send(packet)
        except ConnectionRefusedError:
            # It tells of an earlier packet; this one isn't sent yet.
            with contextlib.suppress(OSError):
                self._sock.send(packet)

    def close(self) -> None:
        self._load.loop.remove_reader(self._sock.fileno())
        self._sock.close()

    def _readable(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                reply = self._sock.recv(4096)
                query = self.waiting.pop(reply[:2], None)
                if query is not None:
                    self._load.answered(query, reply)


class _Connection(asyncio.Protocol):
    """A TCP connection with several queries under way; when it ends there is another at once."""

    def __init__(self, load: _Load) -> None:
        self._load = load
        self._transport: asyncio.Transport | None = None
        self._connecting = False
        self._closed = False
        self._numbers = itertools.cycle(range(1 << 16))
        self._buffer = bytearray()
        self._unsent: list[_Query] = []
        self._waiting: dict[int, _Query] = {}

    def ask(self, queries: Iterable[_Query]) -> None:
        self._unsent += queries
        if self._transport is not None:
            self._send(self._transport)
        elif not self._connecting:
            self._connecting = True
            self._load.spawn(self._connect())

    def close(self) -> None:
        self._closed = True
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._send(self._transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while len(self._buffer) > 2 and len(self._buffer) >= (end := 2 + int.from_bytes(self._buffer[:2], "big")):
            reply = bytes(self._buffer[2:end])
            del self._buffer[:end]
            query = self._waiting.pop(int.from_bytes(reply[:2], "big"), None)
            if query is not None:
                self._load.answered(query, reply)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._buffer.clear()
        waiting, self._waiting = self._waiting, {}
        again = [query for query in waiting.values() if self._load.may_ask_again(query)]
        if again and not self._closed:
            self.ask(again)

    async def _connect(self) -> None:
        try:
            await self._load.loop.create_connection(lambda: self, HOST, self._load.port)
        except OSError:
            self._unsent = [query for query in self._unsent if self._load.may_ask_again(query)]
        self._connecting = False
        if self._unsent and not self._closed:
            self.ask(())

    def _send(self, transport: asyncio.Transport) -> None:
        for query in self._unsent:
            number = next(self._numbers)
            self._waiting[number] = query
            transport.write(_framed(number, query))
        self._unsent.clear()
