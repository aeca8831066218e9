"""A Kubernetes API server that misbehaves on demand: a right one (api.py), served over HTTP/1.1, and what goes wrong.

A test says so in four ways:

    fake.on("list", "services", status(429, retry_after=2), times=3)     the replies to come        (faults.py)
    fake.tamper("services", lose(nth=3))                                 events of running watches  (faults.py)
    fake.say("services", expired(), End.FIN)                             into the running watches, now
    fake.refuse() · fake.stall() · fake.vanish() · fake.cut() · fake.forbid("list", "pods") · fake.add_replica("old")

It keeps every request (`requests`) and every object version that it told (`told`), with the time.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from inspect import isawaitable
from typing import Any

from tests.faults.api import Api, Event, Part, Watch, understand
from tests.faults.store import Store
from tests.faults.wire import End, Reply, Request, read_request, reset, write_reply

HOST = "127.0.0.1"

# A reply as it should be, and what is sent instead.
Fault = Callable[[Request, Reply], Reply | Awaitable[Reply]]
# One event as it should be, and what is told instead.
Tamper = Callable[[Event], Iterable[Part]]


@dataclass(eq=False)
class Rule:
    """A fault for the requests that fit, as often as `times` says; None is always. `met` counts."""

    verb: str
    resource: str
    fault: Fault
    times: int | None
    where: Callable[[Request], bool] = lambda request: True
    met: int = 0

    def fits(self, request: Request) -> bool:
        return (
            (self.times is None or self.met < self.times)
            and self.verb in ("", request.verb)
            and self.resource in ("", request.resource)
            and self.where(request)
        )


class Fake(Api):
    """The server. `url` is where it is, once started; it keeps its port when it refuses for a while."""

    def __init__(self, store: Store | None = None, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(store or Store())
        self.tls = tls
        self.port = 0
        self.requests: list[Request] = []
        self._rules: list[Rule] = []
        self._tampers: list[tuple[str, Tamper]] = []
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        # Open while the server works: of each connection, and of those to come.
        self._gates: list[asyncio.Event] = []
        self._stalled = False
        self._connections = 0
        self._crashes: list[Exception] = []

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://{HOST}:{self.port}"

    # Life

    async def start(self) -> None:
        """Listen."""
        self._server = await asyncio.start_server(
            self._serve, HOST, self.port, ssl=self.tls, limit=1 << 20, backlog=1024, reuse_address=True
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Close everything. Raises what went wrong with the fake itself."""
        self.refuse()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._crashes:
            raise ExceptionGroup("the fake API server failed", self._crashes)

    # What goes wrong

    def on(
        self,
        verb: str,
        resource: str,
        fault: Fault,
        times: int | None = 1,
        where: Callable[[Request], bool] = lambda request: True,
    ) -> Rule:
        """Let requests of a verb (`list`, `watch`, `get`) for a resource fail so; empty strings mean any."""
        rule = Rule(verb, resource, fault, times, where)
        self._rules.append(rule)
        return rule

    def tamper(self, resource: str, change: Tamper) -> None:
        """Let each change of a resource (empty: any), and each bookmark, go through a function, at once."""
        self._tampers.append((resource, change))

    def say(self, resource: str, *parts: Part) -> int:
        """Put something into the running watches of a resource (empty: any). Returns how many these are."""
        reached = [watch for watch in self.watches if resource in ("", watch.request.resource)]
        for watch in reached:
            for part in parts:
                watch.waiting.put_nowait(part)
        return len(reached)

    def heal(self) -> None:
        """Nothing goes wrong from now on."""
        self._rules.clear()
        self._tampers.clear()
        self._forbidden.clear()
        self.route = lambda request: ""
        self.go_on()
        for replica in self.replicas.values():
            replica.go_on()

    def refuse(self, cut: bool = True) -> None:
        """Refuse connections, as a host does whose server is down; `cut` ends those that are open, too."""
        if self._server is not None:
            self._server.close()
            self._server = None
        if cut:
            self.cut()

    async def accept(self) -> None:
        """Be there again, at the same port."""
        if self._server is None:
            await self.start()

    def stall(self) -> None:
        """Stop as by SIGSTOP: the kernel still accepts and acknowledges, nothing is answered."""
        self._stalled = True
        for gate in self._gates:
            gate.clear()

    def go_on(self) -> None:
        """Run again after a stall."""
        self._stalled = False
        for gate in self._gates:
            gate.set()

    def vanish(self) -> None:
        """Never say anything again on the connections that are open now; new ones are served."""
        for gate in self._gates:
            gate.clear()
        self._gates = []

    def cut(self, how: End = End.RESET) -> None:
        """End every connection."""
        for writer in list(self._writers):
            if how is End.RESET:
                reset(writer)
            else:
                writer.close()

    # What was asked and told

    def asked(self, verb: str = "", resource: str = "", after: float = 0.0) -> list[Request]:
        """The requests so far, or those of a verb, a resource, a time."""
        return [
            each
            for each in self.requests
            if verb in ("", each.verb) and resource in ("", each.resource) and each.time >= after
        ]

    # Connections

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        number = self._connections
        gate = asyncio.Event()
        self._gates.append(gate)
        if not self._stalled:
            gate.set()
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        try:
            # A client that goes, a reset of ours: nothing to tell anybody.
            with contextlib.suppress(ConnectionError, ssl.SSLError, TimeoutError):
                while (request := await read_request(reader, number)) is not None:
                    await gate.wait()
                    if not await self._answer(request, reader, writer, gate):
                        break
        except asyncio.CancelledError:
            pass
        except Exception as failure:
            # Ours, a fault's, never the client's: whoever stops us is told. What uvloop raises to who writes to a
            # connection that its client has closed in this very turn is a RuntimeError, and no failure.
            if not (isinstance(failure, RuntimeError) and writer.transport.is_closing()):
                self._crashes.append(failure)
        finally:
            self._tasks.discard(task)
            self._writers.discard(writer)
            if gate in self._gates:
                self._gates.remove(gate)
            writer.close()

    async def _answer(
        self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, gate: asyncio.Event
    ) -> bool:
        understand(request)
        self.requests.append(request)
        reply = self.reply(request)
        # What takes the place of this reply doesn't know of it.
        heard = reply.heard
        try:
            for rule in self._rules:
                if rule.fits(request):
                    rule.met += 1
                    changed = rule.fault(request, reply)
                    reply = await changed if isawaitable(changed) else changed
            return await self._send(request, reply, reader, writer, gate)
        finally:
            if heard is not None:
                heard()

    async def _send(
        self,
        request: Request,
        reply: Reply,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        gate: asyncio.Event,
    ) -> bool:
        if reply.stream is None:
            return await write_reply(writer, reply, gate.wait)
        reply.stream = self._encoded(request, reply.stream)
        for recut in reply.recut:
            reply.stream = recut(reply.stream)
        sending = asyncio.ensure_future(write_reply(writer, reply, gate.wait))
        # Whoever asks for a stream sends nothing more: to read is to learn that it left.
        leaving = asyncio.ensure_future(reader.read(1))
        try:
            await asyncio.wait([sending, leaving], return_when=asyncio.FIRST_COMPLETED)
            return sending.done() and sending.result()
        finally:
            sending.cancel()
            leaving.cancel()
            # Whether the client left in peace or by a reset is the same to us.
            await asyncio.gather(sending, leaving, return_exceptions=True)

    async def _encoded(self, request: Request, stream: Any) -> AsyncIterator[bytes | float | End]:
        async for part in stream:
            yield self.encode(request, part) if isinstance(part, Event) else part

    def changed(self, watch: Watch, event: Event) -> Iterable[Part]:
        """The same as it is told where somebody tampers with it."""
        parts: list[Part] = [event]
        for resource, change in self._tampers:
            if resource in ("", watch.request.resource):
                parts = [new for part in parts for new in (change(part) if isinstance(part, Event) else [part])]
        return parts


@contextlib.asynccontextmanager
async def api_server(store: Store | None = None, tls: ssl.SSLContext | None = None) -> AsyncIterator[Fake]:
    """A fake that runs as long as the block."""
    fake = Fake(store, tls)
    await fake.start()
    try:
        yield fake
    finally:
        await fake.stop()
