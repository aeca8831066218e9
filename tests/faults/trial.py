"""kdns before an API server that misbehaves: its source, its model, its answers, and what must hold whatever happens.

    async with trial(seed=1) as it:
        it.fake.on("watch", "services", gone_after(3))
        await it.churn(20)
        await it.in_step()

The invariants, by the numbers that tests and failures name:

I1  in the end the model is what the server has            `in_step`, and at the end of every trial
I2  no object goes back to an older version                with every event
I3  no answer mixes two objects, or two states of one      after every event
I4  a name that exists throughout is always answered       after every event
I5  what was known last is served meanwhile                I3 and I4, while nothing can be read
I6  the server is not overrun                              at the end of every trial
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import ssl
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from random import Random
from typing import Any

import dns.message
import dns.rcode
import dns.rdatatype
import msgspec
import pytest
import uvloop

from kdns import corefile
from kdns.app import build
from kdns.chain import Process
from kdns.kubernetes.api import ApiSource, Wanted
from kdns.kubernetes.changes import decode
from kdns.kubernetes.client import Client
from kdns.kubernetes.cluster import Cluster, Port
from kdns.kubernetes.credentials import Source, at_endpoint
from kdns.kubernetes.objects import EndpointSlice, Event, Namespace, Pod, Put, Service, Synced
from kdns.kubernetes.waiting import Timing
from kdns.metrics import Metrics
from kdns.plugins.kubernetes import Kubernetes
from kdns.responder import Responder
from tests.faults.fake import HOST, Fake, api_server
from tests.faults.patience import eventually
from tests.faults.store import Store
from tests.faults.world import FOREVER, NOTHING, Answer, World

# How many worlds each row is tried with.
SEEDS = range(int(os.environ.get("KDNS_FAULT_SEEDS", "2")))

# A minute of the real server's life in half a second.
FAST = Timing(
    first_pause=0.02,
    longest_pause=0.3,
    watch=(5, 10),
    reply=0.5,
    silence=0.5,
    probe=0.15,
    probe_reply=0.15,
    audit=3600.0,
    second_look=0.1,
)
# As FAST, with an audit every half second.
AUDITING = msgspec.structs.replace(FAST, audit=0.3)

# A source never asks more often than this in any second, signs of life and audits left out: three kinds, each with
# pauses of 0.02, 0.04, 0.08, 0.16 and 0.3 s at least, and a list of a few pages.
MOST_REQUESTS = 45

COREFILE = """
.:5353 {
    bind 127.0.0.1
    cache 30
    kubernetes cluster.local in-addr.arpa ip6.arpa {
        endpoint http://127.0.0.1:1
        OPTIONS
    }
}
"""

_DECODERS: dict[str, msgspec.json.Decoder[Any]] = {
    "namespaces": msgspec.json.Decoder(Namespace),
    "services": msgspec.json.Decoder(Service),
    "endpointslices": msgspec.json.Decoder(EndpointSlice),
    "pods": msgspec.json.Decoder(Pod),
}


class Trial:
    """A source with its model and answers, before a fake server."""

    def __init__(
        self,
        fake: Fake,
        seed: int,
        timing: Timing = FAST,
        wanted: Wanted | None = None,
        credentials: Source | None = None,
        options: str = "",
        clock: Callable[[], float] = time.time,
        credential_clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.fake = fake
        self.random = Random(seed)
        self.world = World(fake.store, self.random)
        self.events: list[Event] = []
        self.wanted = wanted or Wanted()
        # Set where a store goes back, and versions with it.
        self.may_go_back = False
        # More questions that have an answer from now on, whatever it is.
        self.lasting: list[tuple[str, str]] = []
        # What did not hold while the source told something; it goes on, as kdns does.
        self.broken: list[str] = []
        self.most_requests = MOST_REQUESTS
        self._versions: dict[tuple[str, str, str], int] = {}
        self._asked: dict[tuple[str, str], bytes] = {}
        self._read: dict[bytes, tuple[str, Answer]] = {}
        configuration = build(
            corefile.parse(COREFILE.replace("OPTIONS", options), "Corefile"), Process(Metrics(), clock)
        )
        self.process = configuration.process
        self.responder = Responder(configuration.listeners[0].sites, self.process, self.process.metrics)
        self.plugin = next(each for each in configuration.plugins if isinstance(each, Kubernetes))
        client = Client(credentials or at_endpoint(fake.url), credential_clock, self.process.metrics)
        self.source = ApiSource(
            client, self.wanted, self._tell, self.process.metrics, timing, Random(self.random.random())
        )
        self._running: asyncio.Task[None] | None = None

    # Life

    def start(self) -> None:
        """Begin to watch."""
        self._running = asyncio.create_task(self.source.run())

    async def synced(self, seconds: float = 5.0) -> float:
        """Wait until everything was read once. Returns how long it took."""
        return await eventually(lambda: self.source.synced, seconds, f"synced; missing: {self.source.missing}")

    async def stop(self) -> None:
        """Stop watching. Raises what ended the source, which nothing should."""
        if self._running is not None:
            ended = self._running.done()
            self._running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._running
            assert not ended, "the source has ended by itself"
        assert not self.broken, self.broken[0]
        assert self.count("coredns_panics_total") == 0, "an error of kdns; the log says which"

    # What happens

    async def churn(self, count: int, a_second: float = 2000.0) -> None:
        """Change the cluster so many times."""
        for _ in range(count):
            self.world.churn()
            await asyncio.sleep(self.random.expovariate(a_second))

    def _tell(self, events: Sequence[Event], live: bool) -> None:
        self.events += events
        self.plugin.apply(events, live)
        try:
            for event in events:
                self._check_version(event)
            if self.source.synced or any(isinstance(event, Synced) for event in events):
                self.look()
        except AssertionError as broken:
            self.broken.append(str(broken))

    def _check_version(self, event: Event) -> None:
        if not isinstance(event, Put):
            return
        metadata = event.object.metadata
        if not metadata.resource_version.isdigit():
            return
        key, version = (type(event.object).__name__, metadata.namespace, metadata.name), int(metadata.resource_version)
        assert self.may_go_back or version >= self._versions.get(key, 0), f"I2: {key} went back to {version}"
        self._versions[key] = version

    # What is answered

    def ask(self, name: str, rtype: str) -> tuple[str, Answer]:
        """The response code and the answer to a question, at this moment."""
        packet = self._asked.get((name, rtype))
        if packet is None:
            query = dns.message.make_query(name, rtype, flags=0, use_edns=0, id=4711)
            packet = self._asked[name, rtype] = query.to_wire()
        reply = self.responder.respond(packet, "udp", (HOST, 4711), (HOST, 5353), lambda reply: None)
        assert isinstance(reply, bytes), "an answer from the model doesn't wait"
        if reply not in self._read:
            self._read[reply] = _read(reply)
        return self._read[reply]

    def look(self) -> None:
        """I3 and I4, by every question that has an answer for ever."""
        for name, rtype in FOREVER:
            rcode, answer = self.ask(name, rtype)
            assert answer, f"I4: {name} {rtype} exists, and the answer is {rcode}"
            assert self.world.is_right(name, answer), f"I3: {name} {rtype} was never {sorted(answer)}"
        for name, rtype in self.lasting:
            assert self.ask(name, rtype)[1], f"I4: {name} {rtype} exists, and has no answer"

    def look_at_all(self) -> None:
        """The same for what comes and goes: right at some time, and never a failure."""
        self.look()
        for name in self.world.questions():
            rcode, answer = self.ask(name, "A")
            assert rcode in ("NOERROR", "NXDOMAIN"), f"I5: {name} is {rcode}"
            assert answer == NOTHING or self.world.is_right(name, answer), f"I3: {name} was never {sorted(answer)}"

    # What has to hold

    async def in_step(self, seconds: float = 5.0) -> float:
        """I1: wait until the source has told every object as the server has it, then compare the models."""
        try:
            took = await eventually(lambda: self.broken or not self.differences(), seconds)
        except AssertionError:
            raise AssertionError(f"I1: not in step after {seconds:g} s: {self.differences()}") from None
        assert not self.broken, self.broken[0]
        assert self.model() == self.true_model(), "I1: the model is not what the server has"
        self.look_at_all()
        return took

    def differences(self) -> dict[str, object]:
        """What the source holds and the server has otherwise: versions by key."""
        found: dict[str, object] = {}
        for watch in self.source.watches:
            resource, scope = watch.resource, watch.scope
            true = {
                f"{key[0]}/{key[1]}": self.fake.store.spell(version.number)
                for key, version in self.fake.store.objects[resource.plural].items()
                if scope.namespace in ("", key[0]) and scope.name in ("", key[1])
            }
            held = {key: str(version) for key, version in watch.known.items()}
            for key in (true.keys() | held.keys()) - watch.poisoned.keys():
                if true.get(key) != held.get(key):
                    found[f"{watch.label} {key}"] = (true.get(key), held.get(key))
        return found

    def model(self) -> list[str]:
        """The model that answers are made of."""
        return _lines(self.plugin.cluster)

    def true_model(self) -> list[str]:
        """The model of what the server has at this moment."""
        cluster = Cluster(lambda: 0)
        for plural, versions in self.fake.store.objects.items():
            if plural == "pods" and not self.wanted.pods:
                continue
            for version in versions.values():
                if self.wanted.namespaces and (version.key[0] or version.key[1]) not in self.wanted.namespaces:
                    continue
                with contextlib.suppress(msgspec.MsgspecError):
                    cluster.apply(Put(decode(_DECODERS[plural], version.item)))
        return _lines(cluster)

    def check_requests(self) -> None:
        """I6: the most requests within any second."""
        window: deque[float] = deque()
        for request in self.fake.requests:
            # Audits come a thousand times as often as in earnest.
            if not request.resource or request.partial or "fieldSelector" in request.parameters:
                continue
            window.append(request.time)
            while window[0] < request.time - 1.0:
                window.popleft()
            assert len(window) <= self.most_requests, f"I6: {len(window)} requests within a second: {self.busiest()}"

    def busiest(self) -> Counter[tuple[str, str]]:
        """How often what was asked for."""
        return Counter((each.verb, each.resource) for each in self.fake.requests)

    def count(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that have these labels."""
        return sum(
            sample.value
            for family in self.process.metrics.registry.collect()
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def relists(self, reason: str) -> float:
        """Lists after the first one, for a reason."""
        return self.count("kdns_kubernetes_relists_total", reason=reason)


def row(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """A test of a fault: a coroutine that is given a seed, and is run with several, on either kind of loop."""

    @pytest.mark.parametrize("seed", SEEDS)
    @functools.wraps(test)
    def whole(**arguments: Any) -> None:
        async def within() -> None:
            async with asyncio.timeout(50):
                await test(**arguments)

        run_on_some_loop(within(), arguments["seed"])

    return whole


def run_on_some_loop(main: Coroutine[Any, Any, None], seed: int) -> None:
    """Run it on uvloop, as kdns runs, where the seed is odd, else on asyncio's own loop."""
    (uvloop.run if seed % 2 else asyncio.run)(main)


@contextlib.asynccontextmanager
async def trial(
    seed: int,
    timing: Timing = FAST,
    wanted: Wanted | None = None,
    store: Store | None = None,
    options: str = "",
    started: bool = True,
    clock: Callable[[], float] = time.time,
    tls: ssl.SSLContext | None = None,
    credentials: Callable[[Fake], Source] | None = None,
    credential_clock: Callable[[], float] = time.monotonic,
) -> AsyncIterator[Trial]:
    """kdns in step with a fake server, unless it is to be started later; what must hold is checked at the end."""
    async with api_server(store, tls) as fake:
        source = credentials(fake) if credentials else None
        it = Trial(fake, seed, timing, wanted, source, options, clock, credential_clock)
        try:
            if started:
                it.start()
                await it.synced()
                await it.in_step()
            yield it
            if it.source.synced:
                await it.in_step()
                it.check_requests()
        finally:
            await it.stop()


def _read(reply: bytes) -> tuple[str, Answer]:
    message = dns.message.from_wire(reply)
    wanted = message.question[0].rdtype
    # An alias answers a question for addresses, too.
    found = [rrset for rrset in message.answer if rrset.rdtype in (wanted, dns.rdatatype.CNAME)]
    return dns.rcode.to_text(message.rcode()), frozenset(rdata.to_text() for rrset in found for rdata in rrset)


def _lines(cluster: Cluster) -> list[str]:
    lines = [f"namespace {name!r}" for name in cluster.namespaces]
    for services in cluster.services.values():
        for service in services.values():
            of = f"{service.namespace!r} {service.name!r}"
            ports = [_port(port) for port in service.ports]
            lines.append(f"service {of} {service.kind.name} {service.addresses} {service.external!r} {ports}")
            for part in service.slices.values():
                ready = [(each.address, each.label) for each in part.ready]
                ports = [_port(port) for port in part.ports]
                lines.append(f"slice {of} {part.name} {ready} {part.not_ready} {ports}")
    lines += [f"pod {key} {addresses}" for key, addresses in cluster.pods_by_name()]
    return sorted(lines)


def _port(port: Port) -> tuple[bytes, bytes, int]:
    return port.name, port.protocol, port.number
