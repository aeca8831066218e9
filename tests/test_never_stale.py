"""Whatever happens, in any order: a kept reply is the one that would be made now, and none is from before an event.

A state machine of hypothesis plays a server's life: objects come, change and go, one by one or as an inventory that was
edited; clients ask, spelled this way and that, over both transports; answers wait for an upstream while all of this
goes on; the configuration is replaced, by one that knows all objects or by one that is yet to be told of them. Beside
the server stands one that never keeps anything, over the same chains: what either says must be the same at each moment,
but for the serial of a negative reply's SOA.

The same steps are taken in each run. KDNS_EXAMPLES=1000 takes so many other lives.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from random import Random
from typing import Any, NamedTuple

import dns.message
import dns.rdatatype
import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from kdns import corefile
from kdns.app import Configuration, build
from kdns.chain import Answer, Next, Process, Request, Waiter, fold
from kdns.kubernetes.controller import key_of
from kdns.kubernetes.inventory import difference
from kdns.kubernetes.objects import Delete, Event, Object, Put, Synced
from kdns.kubernetes.schema import reverse_name
from kdns.metrics import Metrics
from kdns.plugins.kubernetes import Kubernetes
from kdns.responder import Responder, Site
from kdns.server.batch import serve_udp
from kdns.server.udp import open_udp
from kdns.wire import names
from kdns.wire.query import RA
from kdns.wire.records import Rcode, Type, address, soa
from tests.kubernetes.test_cluster import OWN, QUESTIONS, SERVICES, START, delete, puts, service, variations
from tests.plugins import trial
from tests.test_kept import LOCAL, packet, spelled

GIVEN_EXAMPLES = os.environ.get("KDNS_EXAMPLES")
EXAMPLES = int(GIVEN_EXAMPLES or 150)
STEPS = 25
# A denial is kept from the second question on, and a reply in several orders once there are sixteen of them.
ENOUGH = 18

# One that asks through a real socket, by the short way of `server/batch.py`; a pod that is in the model now and then;
# one that never is; one that asks over IPv6; and that pod by a socket of both families.
BY_SOCKET = ("127.0.0.1", 4711)
CLIENTS = [BY_SOCKET] * 3 + [("10.0.0.1", 4711)] * 2 + [("192.0.2.7", 4711), ("fd00::1", 4711)]
CLIENTS += [("::ffff:10.0.0.1", 4711)]


def block(options: str, *more: str, zone: str = ".") -> str:
    directives = "\n".join(more)
    cluster = f"kubernetes cluster.local in-addr.arpa ip6.arpa {{\n endpoint http://127.0.0.1:9\n {options}\n}}"
    return f"{zone}:53 {{\n{directives}\n{cluster if options else ''}\n}}\n"


HOSTS = "hosts {\n 10.0.0.8 y.a.svc.cluster.local www.example.org\n fallthrough\n}"
COREFILES = [
    block("pods verified", "loadbalance"),
    block("pods verified\n ignore empty_service\n endpoint_pod_names"),
    block("pods insecure\n ttl 30\n fallthrough", "loadbalance", HOSTS),
    block("pods verified\n labels team=t\n namespaces a", "log . {\n class denial\n}"),
    block("namespace_labels team=t", "cache 30", "loadbalance"),
    block("pods verified", "rewrite name old.example.org x.a.svc.cluster.local", "minimal"),
    block("pods verified") + block("", HOSTS, zone="y.a.svc.cluster.local"),
    block("pods verified", "search {\n names qualified\n}", "loadbalance"),
    block("pods verified", "autopath @kubernetes"),
    block(
        "pods verified\n fallthrough",
        "search {\n pods 10.0.0.0/24\n client 192.0.2.0/24 b\n default a\n}",
        "autopath @kubernetes",
        "cache 30",
    ),
]
# Those of the cluster, names that are nobody's, and such as an upstream knows; those of example.com change.
OUTSIDE = ["www.example.com", "ftp.example.com", "no.example.com", "www.example.org", "old.example.org"]
SHORT = ["x", "y", "n", "x.a", "_http._tcp.x", "x.a.a.svc.cluster.local"]
SHORT += [f"{name}.a.svc.cluster.local" for name in ("www.example.com", "www.example.org", "no.example.org")]
NOBODY = ["n.a.svc.cluster.local", "h.n.a.svc.cluster.local", "n.svc.cluster.local", "n.cluster.local", "n.b.n.local"]
ASKED = [
    *QUESTIONS,
    *((names.from_text(name), rtype) for name in OUTSIDE + NOBODY + SHORT for rtype in (Type.A, Type.AAAA)),
]
# Where most of it happens.
BUSY = [each for each in ASKED if any(part in each[0] for part in (b"\x01x\x01a", b"\x01y\x01a", b"example", b"\x01n"))]
BUSIEST = [
    *((names.from_text(name), Type.A) for name in SHORT),
    *((names.from_text(f"{name}.a.svc.cluster.local"), Type.A) for name in "xyn"),
    (names.from_text("x.a.svc.cluster.local"), Type.SRV),
    (names.from_text("www.example.org"), Type.A),
    (reverse_name(OWN[0]), Type.PTR),
]
# Such as an answer to may wait for an upstream, by themselves or as aliases.
WAITING = [
    (names.from_text(name), int(Type.A))
    for name in [
        *(f"{one}.example.com" for one in "abcdefgh"),
        *OUTSIDE,
        "x.a.svc.cluster.local",
        "y.b.svc.cluster.local",
    ]
]


class Asking(NamedTuple):
    """A client's question."""

    query: bytes
    transport: str
    client: tuple[str, int]


@st.composite
def askings(draw: st.DrawFn, of: Sequence[tuple[bytes, int]] = ()) -> Asking:
    name, rtype = draw(st.sampled_from(of) if of else st.one_of(*map(st.sampled_from, (BUSIEST, BUSY, ASKED))))
    # Each form has replies of its own; most clients are alike, so that things meet.
    flags = draw(st.sampled_from([b"\1\0"] * 8 + [b"\0\0", b"\1\x20"]))
    edns = draw(st.sampled_from([False, False, False, True]))
    seed = draw(st.sampled_from([0, 0, 0, 1, 2]))
    query = packet(spelled(name, Random(seed)) if seed else name, rtype, edns, flags)
    if edns and draw(st.booleans()):
        query = query[:-2] + b"\0\x0c\0\x0a\0\x08" + draw(st.sampled_from([b"12345678", b"87654321"]))
    transport = draw(st.sampled_from(["udp"] * 6 + ["tcp"]))
    return Asking(query, transport, draw(st.sampled_from(CLIENTS)))


def plain(name: str) -> Asking:
    """A client's question for a service of the namespace where most of it happens."""
    return Asking(packet(names.from_text(f"{name}.a.svc.cluster.local"), Type.A), "udp", CLIENTS[0])


class Upstream:
    """Stands at the end of each chain and knows all names but those that begin with `no`.

    While `slow`, an answer waits until it is let go, and says what was true when it was asked for. What it says of
    example.com may be kept until it changes, and is another with each configuration; what it says of other names only
    `cache` may keep.
    """

    def __init__(self) -> None:
        self.slow = False
        self.gates: list[asyncio.Future[None]] = []
        self.version = 0

    def of(self, configuration: int) -> Callable[[Request, Next], Coroutine[Any, Any, Answer]]:
        """The handler for the chains of one configuration."""

        async def handle(request: Request, next: Next) -> Answer:
            return await self.answer(request, configuration)

        return handle

    async def answer(self, request: Request, configuration: int) -> Answer:
        name = request.query.qname
        ours = name.endswith(names.from_text("example.com"))
        if ours:
            request.tags.add(("upstream", b"example.com"))
        else:
            request.keep = False
        version = self.version + 16 * configuration if ours else self.version
        if self.slow:
            gate = asyncio.get_running_loop().create_future()
            self.gates.append(gate)
            await request.wait(_passed(gate))
        plugin = "upstream" if ours else "forward"
        if name.startswith(b"\x02no"):
            return Answer(Rcode.NXDOMAIN, (), [soa(name[3:], 20, name, name, version, 20)], flags=RA, plugin=plugin)
        if request.query.rtype != Type.A:
            return Answer(0, (), [soa(name, 20, name, name, version, 20)], flags=RA, plugin=plugin)
        return Answer(
            0, [address(name, 60, bytes((10, *divmod(version % 65536, 256), name[1])))], flags=RA, plugin=plugin
        )


async def _passed(gate: asyncio.Future[None]) -> None:
    await gate


class Late:
    """A reply that is waited for: what was right when it was asked for, and what came."""

    def __init__(self, asking: Asking, right: object) -> None:
        self.asking = asking
        self.right = right
        self.waiter: Waiter | None = None
        self.came: list[bytes] = []


class Life(RuleBasedStateMachine):
    """One server from its start on. `tally` counts what came to pass, over all lives."""

    tally: Counter[str]

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.clock = trial.Clock()
        self.process = Process(Metrics(), self.clock)
        self.process.addresses = OWN
        self.upstream = Upstream()
        self.objects: dict[Delete, Put] = {}
        self.asked: dict[Asking, None] = {}
        self.late: list[Late] = []
        self.computed = 0
        self.generation = 0
        self.configuration: Configuration | None = None
        # Of the configuration that is served, and of the one before, whose last answers are still waited for.
        self.sources: list[Kubernetes] = []
        self.former: list[Kubernetes] = []
        self.untold: list[Kubernetes] = []
        other = Process(Metrics(), self.clock)
        other.addresses = OWN
        self.responder = Responder((), self.process, self.process.metrics)
        self.forgetful = Responder((), other, other.metrics)
        self.forgetful_process = other
        self.server = serve_udp(self.responder, open_udp("127.0.0.1", 0))
        self.client = socket.socket(type=socket.SOCK_DGRAM)
        self.client.settimeout(10)
        self.client.connect(self.server.sock.getsockname())

    def teardown(self) -> None:
        for late in self.late:
            assert late.waiter is not None
            late.waiter.cancel()
        # The tasks that were cancelled have yet to end.
        self.run(asyncio.sleep(0))
        self.loop.close()
        self.client.close()
        self.server.sock.close()

    def run(self, story: Coroutine[Any, Any, None]) -> None:
        self.tally["steps"] += 1
        self.loop.run_until_complete(story)

    # What happens

    @initialize(text=st.sampled_from(COREFILES))
    def begin(self, text: str) -> None:
        self.serve(text, told=True)
        self.tell(START)

    @rule(put=puts)
    def an_object_comes_or_changes(self, put: Put) -> None:
        self.tell([put])

    @precondition(lambda self: self.objects)
    @rule(data=st.data())
    def an_object_changes_in_part(self, data: st.DataObject) -> None:
        before = data.draw(st.sampled_from(list(self.objects.values())))
        self.tell([data.draw(variations(before))])

    @precondition(lambda self: self.objects)
    @rule(data=st.data())
    def an_object_goes(self, data: st.DataObject) -> None:
        self.tell([data.draw(st.sampled_from(list(self.objects)))])

    @rule(name=st.sampled_from(SERVICES), other=st.sampled_from(OUTSIDE))
    def a_service_becomes_an_alias(self, name: str, other: str) -> None:
        self.tell([service(kind="ExternalName", external=other, name=name, where="a", team="t")])
        self.asked[plain(name)] = None
        self.run(self._compare([plain(name)] * ENOUGH))

    @rule(name=st.sampled_from("cdefg"))
    def a_service_comes_after_a_sibling_was_denied(self, name: str) -> None:
        self.tell([Delete("Service", "a", name)])
        self.run(self._compare([plain("n")] * ENOUGH))
        self.asked[plain(name)] = None
        self.tell([service("10.3.0.9", name=name, where="a", team="t")])

    @rule(new=st.lists(puts, max_size=4), data=st.data(), at_once=st.integers(1, 40))
    def the_inventory_is_edited(self, new: list[Put], data: st.DataObject, at_once: int) -> None:
        before = {key_of(put.object): put.object for put in self.objects.values()}
        kept = data.draw(st.sets(st.sampled_from(sorted(before)))) if before else set()
        after: Mapping[Any, Object] = {key: before[key] for key in kept} | {
            key_of(put.object): put.object for put in new
        }
        events = list(difference(before, after))
        for start in range(0, len(events), at_once):
            self.tell(events[start : start + at_once])
        self.tally["inventories"] += 1

    @rule()
    def what_an_upstream_says_changes(self) -> None:
        self.upstream.version += 1
        self.process.forget({("upstream", b"example.com")})
        self.look()

    @rule(askings=st.lists(askings(), min_size=1, max_size=4), often=st.sampled_from([3, 3, ENOUGH]))
    def clients_ask(self, askings: list[Asking], often: int) -> None:
        self.asked |= dict.fromkeys(askings)
        self.run(self._compare(askings * often))

    @rule(asking=askings(WAITING))
    def a_client_asks_and_may_wait(self, asking: Asking) -> None:
        self.run(self._ask_late(asking))

    @rule(
        asking=askings(WAITING),
        meanwhile=st.sampled_from(["event", "upstream", "reload"]),
        text=st.sampled_from(COREFILES),
    )
    def a_client_waits_while_something_happens(self, asking: Asking, meanwhile: str, text: str) -> None:
        before = len(self.upstream.gates)
        self.run(self._ask_late(asking))
        if meanwhile == "event":
            self.tell([Delete("Service", "a", "x")])
        elif meanwhile == "upstream":
            self.what_an_upstream_says_changes()
        else:
            self.the_configuration_is_replaced(text, told=True)
        for gate in self.upstream.gates[before:]:
            self.upstream.gates.remove(gate)
            self.run(self._let_go(gate))
        self.look()

    @precondition(lambda self: self.upstream.gates)
    @rule(data=st.data())
    def an_upstream_answers(self, data: st.DataObject) -> None:
        gate = self.upstream.gates.pop(data.draw(st.integers(0, len(self.upstream.gates) - 1)))
        self.run(self._let_go(gate))
        self.look()

    @precondition(lambda self: self.late)
    @rule(data=st.data())
    def a_client_gives_up(self, data: st.DataObject) -> None:
        late = self.late.pop(data.draw(st.integers(0, len(self.late) - 1)))
        assert late.waiter is not None
        late.waiter.cancel()
        self.run(asyncio.sleep(0))
        self.upstream.gates = [gate for gate in self.upstream.gates if not gate.done()]
        assert not late.came

    @rule(text=st.sampled_from(COREFILES), told=st.booleans())
    def the_configuration_is_replaced(self, text: str, told: bool) -> None:
        self.serve(text, told)
        self.tally["reloads"] += 1
        self.look()

    @precondition(lambda self: self.untold)
    @rule()
    def a_source_has_told_all(self) -> None:
        for source in self.untold:
            source.apply([*self.objects.values(), Synced()])
        self.untold = []
        self.look()

    @rule(seconds=st.sampled_from([0.3, 1.0, 7.5, 29.0, 3600.0]))
    def time_goes_by(self, seconds: float) -> None:
        self.clock.now += seconds
        self.look()

    # How

    def serve(self, text: str, told: bool) -> None:
        """Serve this Corefile from now on; `told` tells whether new plugins know all objects before."""
        before = self.configuration.plugins if self.configuration else None
        self.configuration = build(corefile.parse(text, "Corefile"), self.process, before)
        self.process.plugins = self.configuration.plugins
        sources = [each for each in self.configuration.plugins if isinstance(each, Kubernetes)]
        fresh = [each for each in sources if each not in self.sources]
        self.former, self.sources = [each for each in self.sources if each not in sources], sources
        self.untold = [each for each in self.untold if each in sources]
        for source in fresh:
            if told:
                source.apply([*self.objects.values(), Synced()])
            else:
                self.untold.append(source)
        self.generation += 1
        sites = [self.site(each) for each in self.configuration.listeners[0].sites]
        self.responder.serve(sites)
        self.forgetful.serve(sites)

    def site(self, site: Site) -> Site:
        """The zone with an upstream at the end of its chain, and somebody who counts at the beginning."""
        assert self.configuration is not None
        (plugins,) = (each.plugins for each in self.configuration.blocks if site.zone in each.zones)
        handlers = [each.handle for each in plugins if each.handle is not None]
        return msgspec.structs.replace(site, chain=fold([self.count, *handlers, self.upstream.of(self.generation)]))

    async def count(self, request: Request, next: Next) -> Answer:
        self.computed += 1
        return await next(request)

    def tell(self, events: Iterable[Event]) -> None:
        """Let all sources tell of these events, and look at what is said then."""
        for event in events:
            if isinstance(event, Put):
                self.objects[delete(event)] = event
            elif isinstance(event, Delete):
                self.objects.pop(event, None)
        for source in (*self.sources, *self.former):
            # One that has yet to tell all may have told of this one already.
            source.apply(events)
        self.tally["batches of events"] += 1
        self.look()

    def look(self) -> None:
        """Ask all again that was ever asked."""
        self.run(self._compare(self.asked))

    async def _compare(self, askings: Iterable[Asking]) -> None:
        self.upstream.slow = False
        for asking in askings:
            before = self.computed
            said = self.said(asking)
            self.tally["kept" if self.computed == before else "made"] += 1
            fresh = self.fresh(asking)
            assert said == fresh or meaning(said) == meaning(fresh), f"{asking}\nsays {said!r}\nnot  {fresh!r}"

    def said(self, asking: Asking) -> bytes:
        """The server's reply, which comes at once."""
        if asking.client != BY_SOCKET or asking.transport != "udp":
            return respond(self.responder, asking)
        self.client.send(asking.query)
        self.server._readable()
        return self.client.recv(65535)

    def fresh(self, asking: Asking) -> bytes:
        said = respond(self.forgetful, asking)
        for kept in self.forgetful_process.answers:
            kept.clear()
        return said

    async def _ask_late(self, asking: Asking) -> None:
        self.upstream.slow = False
        late = Late(asking, meaning(self.fresh(asking)))
        self.upstream.slow = True
        outcome = self.responder.respond(asking.query, asking.transport, asking.client, LOCAL, late.came.append)
        if isinstance(outcome, bytes):
            assert meaning(outcome) == late.right, asking
        else:
            assert isinstance(outcome, Waiter), asking
            late.waiter = outcome
            self.late.append(late)
        await asyncio.sleep(0)
        self.upstream.slow = False

    async def _let_go(self, gate: asyncio.Future[None]) -> None:
        gate.set_result(None)
        # The upstream's task, the one that waits for it, and the chain.
        for _ in range(5):
            await asyncio.sleep(0)
        for late in [each for each in self.late if each.came]:
            self.late.remove(late)
            self.asked[late.asking] = None
            assert [meaning(each) for each in late.came] == [late.right], late.asking
            self.tally["waited"] += 1


def respond(responder: Responder, asking: Asking) -> bytes:
    said = responder.respond(asking.query, asking.transport, asking.client, LOCAL, lambda data: None)
    assert isinstance(said, bytes), asking
    return said


def meaning(reply: bytes) -> object:
    """All that a reply says, in no order of its records, but for the serial of a negative one."""
    message = dns.message.from_wire(reply)

    def section(sets: list[Any]) -> list[tuple[str, int, list[str]]]:
        return sorted((each.name.to_text(), each.ttl, sorted(data(one) for one in each)) for each in sets)

    def data(one: Any) -> str:
        return (
            one.replace(serial=0).to_text() if message.authority and one.rdtype == dns.rdatatype.SOA else one.to_text()
        )

    question = [each.name.to_text() for each in message.question]
    sections = [section(each) for each in (message.answer, message.authority, message.additional)]
    return message.id, message.flags, question, sections, message.edns, message.ednsflags, message.options


@pytest.mark.timeout(60 + EXAMPLES)
def test_whatever_happens_a_kept_reply_is_the_one_that_would_be_made_now_and_none_is_from_before_an_event() -> None:
    Life.tally = Counter()
    run_state_machine_as_test(
        Life,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            derandomize=GIVEN_EXAMPLES is None,
            database=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        ),
    )
    tally = Life.tally
    # What never came to pass would prove nothing.
    assert tally["steps"] > 10 * EXAMPLES, tally
    assert tally["kept"] > 10 * EXAMPLES, tally
    for each in ("made", "batches of events", "reloads", "inventories"):
        assert tally[each] > EXAMPLES // 4, (each, tally)
    assert tally["waited"] > EXAMPLES // 5, tally
