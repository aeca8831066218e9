"""The contract of plugins: Request, Answer, Plugin; folding handlers into one callable, and stepping it by hand.

A query runs through a chain of `async def handle(request, next) -> Answer`, yet never in a task: `start` steps the
coroutine, and an answer that needs no waiting comes back at once. A handler waits only through
`await request.wait(coroutine)`, which runs that coroutine in a task of its own; when it is done the chain is stepped
again.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Container, Coroutine, Generator, Iterable, Sequence
from typing import Any, ClassVar, Protocol, TypeVar

from kdns.addresses import host_and_port, pack_client
from kdns.answers import AnswerCache, Lifetime, Tag
from kdns.corefile import Directive
from kdns.errors import KdnsError, Problem
from kdns.metrics import Metrics
from kdns.options import Options, parse_options
from kdns.wire import names
from kdns.wire.query import AA, Query
from kdns.wire.records import CLASS_IN, Rcode, Record

T = TypeVar("T")
Next = Callable[["Request"], Coroutine[Any, Any, "Answer"]]
# Where the client of a packed address stands: a namespace, or nothing where it is in none.
Locate = Callable[[bytes], bytes]

# How often one query may ask the whole server again (ExternalName, rewrite, templates) before it is a loop.
DEEPEST = 8

# The response code of an answer that is none: the client gets no reply.
SILENCE = -1


class Answer:
    """What a handler says: a response code, three sections of records, and what the server should make of them.

    `lifetime` is how its TTLs go down, where they do: whoever gives its records other TTLs sets it to None.
    `plugin` is who answered, for metrics. `error` is an extended error's code and text (RFC 8914). `cause` is what went
    wrong, for the `errors` directive. `flags` are AA, RA, AD and TC as they stand in a header; AA alone unless
    told otherwise.
    """

    __slots__ = ("additional", "answer", "authority", "cause", "error", "flags", "lifetime", "plugin", "rcode")

    def __init__(
        self,
        rcode: int = Rcode.NOERROR,
        answer: Sequence[Record] = (),
        authority: Sequence[Record] = (),
        additional: Sequence[Record] = (),
        flags: int = AA,
        plugin: str = "",
        error: tuple[int, str] | None = None,
        cause: str = "",
    ) -> None:
        self.rcode = rcode
        self.answer = answer
        self.authority = authority
        self.additional = additional
        self.flags = flags
        self.plugin = plugin
        self.error = error
        self.cause = cause
        self.lifetime: Lifetime | None = None

    @property
    def unclaimed(self) -> bool:
        """Whether no plugin took the question as its own."""
        return self.rcode == Rcode.REFUSED and not self.plugin


def failure(cause: str, plugin: str = "", error: tuple[int, str] | None = None, rcode: int = Rcode.SERVFAIL) -> Answer:
    """An answer that only says that there is none: SERVFAIL unless told otherwise, not authoritative."""
    return Answer(rcode, flags=0, plugin=plugin, error=error, cause=cause)


class Server(Protocol):
    """What a request needs of the server that runs it: to be answered from the start, by whichever block is right."""

    def resolve(self, request: Request) -> Coroutine[Any, Any, Answer]: ...


class Request:
    """One question on its way through the chain.

    `tags` gathers what the answer depends on; `keep` is False once it depends on more than its tags and its question.
    `varies` is True where the same question may as well get another order or choice of the same records.
    `any_order` is True where any order of the answer's addresses would do as well.
    `siblings` comes with a denial: the labels that exist where the question's leftmost one doesn't, for as long as the
    tags hold. Any label but those would get the same answer; None where that can't be said.
    `stood` is where the client stands, as those say who were asked: the answer is kept for others who stand there.
    `absolute` is True for a name that a record or a plugin brought up: it is meant as it stands, and no search list
    applies to it.
    `used` are told how often the reply was sent, at once for the first time and later for those that are kept.
    `until` is when the answer, TTLs and all, stops to be true, if it does: a moment in seconds since 1970.
    `now` is the time of arrival in seconds since 1970. `zone` is the zone of the server block that runs it.
    `reply_options` are EDNS options for the reply, as bytes; only for a client who sent options itself.
    `upstream_options` are EDNS options for the question to an upstream, as bytes; the client's own never get there.
    """

    __slots__ = (
        "_callbacks",
        "_client",
        "_local",
        "absolute",
        "any_order",
        "depth",
        "keep",
        "now",
        "query",
        "reply_options",
        "server",
        "siblings",
        "stood",
        "tags",
        "transport",
        "until",
        "upstream_options",
        "used",
        "varies",
        "zone",
    )

    def __init__(
        self,
        query: Query,
        server: Server,
        transport: str = "udp",
        client: tuple[str, int] = ("127.0.0.1", 0),
        local: tuple[str, int] = ("127.0.0.1", 53),
        now: float = 0.0,
    ) -> None:
        self.query = query
        self.server = server
        self.transport = transport
        self._client = client
        self._local = local
        self.now = now
        self.zone = b"\x00"
        self.depth = 0
        self.tags: set[Tag] = set()
        self.keep = True
        self.varies = False
        self.until = math.inf
        self.any_order = False
        self.siblings: Container[bytes] | None = None
        self.stood: dict[Locate, bytes] = {}
        self.absolute = False
        self.used: tuple[Callable[[int], None], ...] = ()
        self.reply_options = b""
        self.upstream_options = b""
        self._callbacks: list[Callable[[bytes, Answer], None]] | None = None

    @property
    def client(self) -> tuple[str, int]:
        """The client's address and port; an answer that read it is not kept for others."""
        self.keep = False
        return self._client

    @property
    def address(self) -> bytes:
        """The client's address, packed; only for who has a part in keeping the reply."""
        return pack_client(self._client[0])

    def stand(self, locate: Locate) -> bytes:
        """Where the client stands, as `locate` says; the answer is then kept for those who stand there alone.

        It is asked once, so that an answer that waits is of one place, even if the address is another's by then.
        """
        place = self.stood.get(locate)
        if place is None:
            place = self.stood[locate] = locate(self.address)
        return place

    @property
    def over_ipv6(self) -> bool:
        """Whether the client asked over IPv6. Answers are kept for each family by itself, so this costs no keeping."""
        return ":" in self._client[0]

    @property
    def local(self) -> tuple[str, int]:
        """The address and port that the client asked; an answer that read it is not kept."""
        self.keep = False
        return self._local

    async def wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run something that waits; the only way for a handler to do so."""
        task = asyncio.get_running_loop().create_task(coroutine)
        await _Waiting(task)
        try:
            return task.result()
        finally:
            # An error leads to this frame, and the task to the error: without this, a circle for the collector.
            del task

    async def ask(self, name: bytes, rtype: int) -> Answer:
        """What the whole server answers to another question of the same client; SERVFAIL when they nest too deep."""
        if self.depth >= DEEPEST:
            return failure("questions within a question nest too deep")
        query = Query(self.query.id, self.query.flags, name, names.labels_of(name.lower()), rtype, CLASS_IN)
        query.do = self.query.do
        # As much room as the reply has: of many endpoints no fewer are told than fit.
        query.edns, query.size = self.query.edns, self.query.size
        child = Request(query, self.server, self.transport, self._client, self._local, self.now)
        child.depth = self.depth + 1
        child.tags, child.stood = self.tags, self.stood
        child.absolute = self.absolute or query.qname != self.query.qname
        answer = await self.server.resolve(child)
        # Its `siblings`, `any_order` and `used` are about the other name.
        self.keep = self.keep and child.keep
        self.varies = self.varies or child.varies
        self.until = min(self.until, child.until)
        return answer

    def after_reply(self, callback: Callable[[bytes, Answer], None]) -> None:
        """Call back with the bytes of the reply once they are made; the reply is then not kept."""
        self.keep = False
        if self._callbacks is None:
            self._callbacks = []
        self._callbacks.append(callback)

    def tell_nobody(self) -> None:
        """Take back every `after_reply`: the reply goes to no client."""
        self._callbacks = None

    def replied(self, reply: bytes, answer: Answer) -> None:
        """Tell those who asked to be told. An error of theirs must not cost the client its answer."""
        callbacks, self._callbacks = self._callbacks, None
        for callback in callbacks or ():
            callback(reply, answer)


class Route:
    """An HTTP path that a plugin serves: `respond` gives status, body and content type at each request."""

    __slots__ = ("address", "path", "port", "respond")

    def __init__(
        self, address: str, port: int, path: str, respond: Callable[[dict[str, str]], tuple[int, bytes, str]]
    ) -> None:
        self.address = address
        self.port = port
        self.path = path
        self.respond = respond


class Process:
    """What plugins may know of the whole process: its plugins, its phase, its metrics, its clock (seconds since 1970).

    `addresses` are the server's own, packed: those that are no loopback addresses if there are any, else where it
    listens.
    """

    def __init__(self, metrics: Metrics, clock: Callable[[], float] = time.time) -> None:
        self.metrics = metrics
        self.clock = clock
        self.plugins: list[Plugin] = []
        # Before it listens, and after it was told to end.
        self.starting = False
        self.stopping = False
        self.addresses: list[bytes] = []
        self.answers: list[AnswerCache] = []
        # Reads the configuration again, and serves it if it has changed; whoever started the process sets it.
        self.reload: Callable[[], Awaitable[None]] | None = None

    def forget(self, tags: set[Tag]) -> None:
        """Drop the kept answers that depend on any of these tags."""
        for answers in self.answers:
            answers.forget(tags)


class Block:
    """A server block while its plugins are configured: its zones (wire form), port and where it listens."""

    def __init__(self, process: Process, zones: Sequence[bytes], port: int) -> None:
        self.process = process
        self.zones = tuple(zones)
        self.port = port
        self.addresses: list[str] = []
        # Whether other processes may listen at the same addresses and port.
        self.shares_port = False
        # Whether somebody wants to know which pod a client is; those who know the pods come later in the chain.
        self.locates_clients = False
        self.plugins: list[Plugin] = []

    @property
    def server(self) -> str:
        """The block's `server` label in metrics, such as `dns://:53`."""
        host = self.addresses[0] if len(self.addresses) == 1 else ""
        return server_label(host, self.port)


def server_label(host: str, port: int) -> str:
    """The `server` label of metrics; an empty host is all addresses."""
    return f"dns://{host_and_port(host, port)}"


class Plugin:
    """The parent of every directive. A plugin defines what it needs of these; `handle` puts it into the chain.

    `classes` are those whose questions it answers. One of another class than IN ends at the plugin that has it, so
    that no other takes it for one of IN.

    `heeds_names` is False for a handler that does the same to every name of a zone, so that behind it what is said of
    a name that doesn't exist (`Request.siblings`) may be said of others.

    `shared` is True for one that all server blocks that say the same have in common.
    """

    name: ClassVar[str]
    classes: ClassVar[tuple[int, ...]] = (CLASS_IN,)
    heeds_names: ClassVar[bool] = True
    shared: ClassVar[bool] = False
    options: ClassVar[type[Options]]
    handle: Callable[[Request, Next], Coroutine[Any, Any, Answer]] | None = None
    # Of a plugin whose answers depend on where the client stands: where that is. It calls `request.stand` with it.
    locate: Locate | None = None

    def __init__(self, options: Any, block: Block) -> None: ...

    @classmethod
    def read(cls, directives: Sequence[Directive], problems: list[Problem]) -> Any:
        """The options of all uses of the directive in one block, or None after a mistake, which is in `problems`."""
        return parse_options(cls.options, directives, problems)

    def lives_on(self, options: Any, block: Block) -> bool:
        """Whether this one will do where another would be made with these options for this block.

        It is asked of what a reload finds, and, if `shared`, of what other blocks have.
        """
        return False

    def configure(self, block: Block) -> None:
        """Change the block before it listens (bind)."""

    def join(self, block: Block) -> None:
        """Find those of the block that it works with, now that all are there.

        Raises ConfigError where they are missing.
        """

    async def feed(self) -> None:
        """Run in the background as long as the configuration holds."""

    async def started(self) -> None:
        """Return once the plugin can answer, or must do without; the server listens after that.

        Raises ConfigError where what the user gave can't be served at all.
        """

    def notices(self) -> Iterable[str]:
        """Lines for the log at start and for `kdns check`: what means something else here than in CoreDNS."""
        return ()

    def writes(self) -> Iterable[str]:
        """Files that it writes, as they are named in the configuration: no other plugin may write them."""
        return ()

    def routes(self) -> Iterable[Route]:
        """HTTP paths to serve."""
        return ()

    def ready(self) -> bool:
        """Whether the plugin can do its work; the `ready` directive asks until it has been so once."""
        return True

    def missing(self) -> str:
        """What keeps the plugin from being ready, for a person; empty where its name says enough."""
        return ""

    async def stopping(self) -> None:
        """Called first when the process is told to end; the server goes on serving until it returns."""

    def close(self) -> None:
        """Let go of what the plugin holds; called after the last answer."""


class ChainError(KdnsError):
    """A handler awaited something else than `request.wait`."""


class _Waiting:
    """What a chain yields while it waits: the task, nothing else."""

    __slots__ = ("task",)

    def __init__(self, task: asyncio.Task[Any]) -> None:
        self.task = task

    def __await__(self) -> Generator[_Waiting, None, None]:
        if not self.task.done():
            yield self


def fold(handlers: Sequence[Callable[[Request, Next], Coroutine[Any, Any, Answer]]]) -> Next:
    """One callable out of a chain of handlers; what the last one passes on is REFUSED."""
    call: Next = _no_next
    for handle in reversed(handlers):
        call = _link(handle, call)
    return call


def start(coroutine: Coroutine[Any, Any, Answer], done: Callable[[Answer | BaseException], None]) -> Answer | Waiter:
    """Step a chain: its answer if it needs no waiting, else a `Waiter`, and `done` is called later.

    Raises what a handler raises, and ChainError when it awaits something else than `request.wait`.
    """
    try:
        waiting = coroutine.send(None)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]
    return Waiter(coroutine, _checked(coroutine, waiting), done)


class Waiter:
    """A chain that waits for a task. `cancel` ends it and whatever it waits for."""

    __slots__ = ("_coroutine", "_done", "_task")

    def __init__(
        self, coroutine: Coroutine[Any, Any, Answer], waiting: _Waiting, done: Callable[[Answer | BaseException], None]
    ) -> None:
        self._coroutine = coroutine
        self._done = done
        self._task: asyncio.Task[Any] | None = None
        self._follow(waiting)

    def cancel(self) -> None:
        """Give up: the task is cancelled and the chain closed, so that both clean up; `done` is not called."""
        task, self._task = self._task, None
        if task is not None:
            task.remove_done_callback(self._step)
            task.cancel()
            self._coroutine.close()

    def _follow(self, waiting: _Waiting) -> None:
        self._task = waiting.task
        waiting.task.add_done_callback(self._step)

    def _step(self, _task: asyncio.Task[Any]) -> None:
        if self._task is None:
            # Cancelled in the very turn in which the task ended, when the loop had this call in hand already.
            return
        self._task = None
        try:
            waiting = _checked(self._coroutine, self._coroutine.send(None))
        except StopIteration as stop:
            self._done(stop.value)
        except (Exception, asyncio.CancelledError) as error:
            self._done(error)
        else:
            self._follow(waiting)


def _checked(coroutine: Coroutine[Any, Any, Answer], waiting: object) -> _Waiting:
    if not isinstance(waiting, _Waiting):
        coroutine.close()
        raise ChainError(f"a handler awaited {waiting!r}; it may wait only through request.wait")
    return waiting


def _link(handle: Callable[[Request, Next], Coroutine[Any, Any, Answer]], call: Next) -> Next:
    def link(request: Request) -> Coroutine[Any, Any, Answer]:
        return handle(request, call)

    return link


async def _no_next(request: Request) -> Answer:
    # RFC 8906 and every authoritative server: what is nobody's here is refused, not failed.
    return failure("", rcode=Rcode.REFUSED)
