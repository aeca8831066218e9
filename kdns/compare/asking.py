"""Both servers as somebody to ask: one over the network, gently, or kdns in this process.

Nothing here knows what is asked. Law: RFC 5452 §9 (what a reply must match).
"""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Protocol

import msgspec

from kdns.app import Configuration, build, own_addresses
from kdns.chain import Process, Waiter
from kdns.compare.differences import NoReply, Reply, Way
from kdns.compare.known import is_link_local
from kdns.compare.questions import Asked
from kdns.corefile import Corefile
from kdns.errors import KdnsError
from kdns.kubernetes.cluster import Cluster
from kdns.metrics import Metrics
from kdns.plugins.kubernetes import Kubernetes
from kdns.responder import Responder
from kdns.upstream.question import Question
from kdns.upstream.sockets import Upstream, UpstreamError, network_error, open_udp
from kdns.upstream.streams import Connections
from kdns.wire.message import Message, decode
from kdns.wire.records import Type

# How long a cluster may take to be read.
READ_SECONDS = 60.0
# As long as resolvers wait for an answer.
ANSWER_SECONDS = 5.0
# The rate never falls below this, in questions a second: then at least somebody can see that it goes on.
LEAST_RATE = 1.0
SAME_SILENCE_SECONDS = 1.0
# So many questions in a row without a reply are a server that is gone, or that should be left alone.
MOST_SILENT = 20


class Server(Protocol):
    """Somebody to ask."""

    async def ask(self, asked: Asked, way: Way) -> Reply: ...


class Gently(msgspec.Struct, frozen=True):
    """How to ask a server that others need: questions a second, how many at once, seconds to wait, times to try."""

    rate: float = 200.0
    at_once: int = 16
    seconds: float = 2.0
    tries: int = 2


class Pace:
    """When the next question may go out: `rate` a second, half as many after each silence, slowly more again.

    SERVFAIL is no silence: some configurations have it for each name that they don't know.
    """

    def __init__(self, rate: float, clock: Callable[[], float]) -> None:
        self._full = rate
        self._clock = clock
        self._next = clock()
        self._halved = -math.inf
        self.rate = rate

    def delay(self) -> float:
        """Take the next place. Returns how many seconds to wait for it."""
        now = self._clock()
        self._next = max(now, self._next) + 1 / self.rate
        return self._next - now

    def silent(self) -> None:
        """No reply came: the server may have more to do than it can."""
        # Those that were under way together are silent together, and that is one sign.
        if self._clock() - self._halved >= SAME_SILENCE_SECONDS:
            self._halved = self._clock()
            self.rate = max(min(LEAST_RATE, self._full), self.rate / 2)

    def answered(self) -> None:
        """All is well again, as far as can be seen."""
        self.rate = min(self._full, self.rate * 1.05)


class Remote:
    """A server at an address. It is asked in the order of the calls, at the pace and as often as `gently` says."""

    def __init__(self, upstream: Upstream, gently: Gently) -> None:
        self.upstream = upstream
        self._gently = gently
        self.pace = Pace(gently.rate, asyncio.get_running_loop().time)
        self._connections = Connections(upstream)
        self._silent = 0
        self._answered: tuple[Question, Way] | None = None

    async def ask(self, asked: Asked, way: Way) -> Reply:
        """The reply. Raises KdnsError once it seems that none will ever come again."""
        question = Question(asked.name, asked.rtype, edns=way is not Way.UDP)
        reply: Reply = NoReply("")
        for _ in range(self._gently.tries):
            await asyncio.sleep(self.pace.delay())
            reply = await self._try(question, way)
            if isinstance(reply, Message):
                break
        if isinstance(reply, Message):
            self._silent, self._answered = 0, (question, way)
        else:
            self._silent += 1
            if self._silent >= MOST_SILENT:
                await self._make_sure()
        return reply

    async def _try(self, question: Question, way: Way) -> Reply:
        try:
            if way is Way.TCP:
                deadline = asyncio.get_running_loop().time() + self._gently.seconds
                reply = await self._connections.ask(question, deadline)
            else:
                reply = await _over_udp(self.upstream, question, self._gently.seconds)
        except UpstreamError as error:
            # A port that nothing listens at, as where there is no TCP, is no sign of too much work.
            if error.silent:
                self.pace.silent()
            return NoReply(str(error))
        self.pace.answered()
        return reply

    async def _make_sure(self) -> None:
        """Ask again what was answered last: a server may be silent to some, as CoreDNS to PTRs of no service."""
        if self._answered is None or isinstance(await self._try(*self._answered), NoReply):
            raise KdnsError(f"{self.upstream} doesn't answer any more; it is left alone")
        self._silent = 0

    def close(self) -> None:
        """End its connections."""
        self._connections.close()


async def _over_udp(upstream: Upstream, question: Question, seconds: float) -> Message:
    """The reply over UDP, truncated or not. Raises UpstreamError."""
    loop = asyncio.get_running_loop()
    query = question.packet(secrets.randbits(16))
    with open_udp(upstream) as sock:
        try:
            async with asyncio.timeout(seconds):
                sock.send(query)
                while True:
                    reply = await loop.sock_recv(sock, 65_535)
                    if question.is_answered_in_other_case(reply, query):
                        return decode(reply)
        except TimeoutError as error:
            raise UpstreamError(f"none within {seconds:g} s", silent=True) from error
        except OSError as error:
            raise network_error(f"udp {upstream}", error) from error
        except ValueError as error:
            raise UpstreamError(str(error)) from error


class InProcess:
    """kdns in this process: the responder of a configuration, without a socket. `shown` are its namespaces.

    `client` is the address at which the one who asks seems to stand.
    """

    def __init__(self, responder: Responder, shown: Iterable[bytes] = (), client: str = "127.0.0.1") -> None:
        self._responder = responder
        self._client = client
        self.shown = frozenset(shown)

    async def ask(self, asked: Asked, way: Way) -> Reply:
        """The reply that the client would get."""
        question = Question(asked.name, asked.rtype, edns=way is not Way.UDP)
        transport = "tcp" if way is Way.TCP else "udp"
        later: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        packet = question.packet(secrets.randbits(16))
        outcome = self._responder.respond(packet, transport, (self._client, 1), ("127.0.0.1", 53), later.set_result)
        if outcome is None:
            return NoReply("kdns is silent on purpose")
        if not isinstance(outcome, Waiter):
            return decode(outcome)
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return decode(await later)
        except TimeoutError:
            outcome.cancel()
            return NoReply(f"none within {ANSWER_SECONDS:g} s")


@asynccontextmanager
async def in_process(parsed: Corefile, own: list[bytes], client: str) -> AsyncIterator[InProcess]:
    """kdns as a Corefile configures it, for as long as the block lasts; it listens nowhere.

    `own` are the addresses, packed, that it takes for its own: those at which it would be asked. `client` is the
    address from which. Raises KdnsError.
    """
    configuration = build(parsed, Process(Metrics()))
    process = configuration.process
    process.addresses = own or own_addresses(["127.0.0.1"])
    feeds = [asyncio.create_task(plugin.feed()) for plugin in configuration.plugins]
    try:
        await asyncio.gather(*(plugin.started() for plugin in configuration.plugins))
        clusters = [plugin.cluster for plugin in await _synced(configuration)]
        shown = [namespace for cluster in clusters for namespace in cluster.namespaces]
        # CoreDNS's own port is where clients ask; of others the first one has to do.
        listener = next((each for each in configuration.listeners if each.port == 53), configuration.listeners[0])
        yield InProcess(Responder(listener.sites, process, process.metrics), shown, client)
    finally:
        for feed in feeds:
            feed.cancel()
        await asyncio.gather(*feeds, return_exceptions=True)
        for plugin in configuration.plugins:
            plugin.close()


async def _synced(configuration: Configuration) -> list[Kubernetes]:
    """The directives that answer for a cluster, once they know it. Raises KdnsError."""
    sources = [plugin for plugin in configuration.plugins if isinstance(plugin, Kubernetes)]
    try:
        async with asyncio.timeout(READ_SECONDS):
            # Once at the start; nobody but this would need an event for it.
            while not all(source.cluster.synced for source in sources):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
    except TimeoutError:
        missing = "; ".join(source.missing() for source in sources)
        raise KdnsError(f"the cluster was not read within {READ_SECONDS:g} s: {missing}") from None
    return sources


def client_of(upstream: Upstream) -> str:
    """The address of this machine from which a server is asked. Raises UpstreamError."""
    with open_udp(upstream) as sock:
        return str(sock.getsockname()[0])


async def own_addresses_of(server: Server, zone: bytes, cluster: Cluster) -> list[bytes]:
    """The addresses that a server takes for its own, packed, by what it says of `ns.dns`; none if it says nothing.

    Where these are a ClusterIP, it is the endpoints of that service. Raises KdnsError if it doesn't answer.
    """
    own: list[bytes] = []
    for rtype in (Type.A, Type.AAAA):
        asked = Asked(b"\x02ns\x03dns" + zone, rtype)
        reply = await server.ask(asked, Way.UDP)
        if isinstance(reply, NoReply):
            raise KdnsError(f"no answer to {asked}: {reply.reason}")
        own += [each.data for each in reply.answer if each.rtype == rtype and not is_link_local(each.data)]
    services = [service for address in own for service in cluster.services_at(address)]
    behind = [address for service in services for part in service.slices.values() for address in part.addresses]
    return behind or own
