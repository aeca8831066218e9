"""Answers that depend on where the client stands are kept for that place, and never given to another.

Whatever happens, a reply is the one that would be made now for this client: pods come, go, and take over addresses,
services change, and many clients ask for the same few names.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from random import Random
from typing import Any

import dns.flags
import dns.message
import dns.rcode
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdns import answers, corefile
from kdns.answers import PlacedAnswers
from kdns.app import build
from kdns.chain import Answer, Next, Process, Request, fold
from kdns.kubernetes.objects import Endpoint, Event, Synced
from kdns.metrics import Metrics
from kdns.plugins.kubernetes import Kubernetes
from kdns.responder import Responder, Site
from kdns.server.batch import serve_udp
from kdns.server.mmsg import available
from kdns.server.udp import open_udp
from kdns.wire import names
from kdns.wire.records import Type
from tests.kubernetes.test_cluster import (
    FOUR,
    OWN,
    SERVICES,
    SIX,
    START,
    delete,
    histories,
    namespace,
    packed,
    pod,
    service,
    slice_,
)
from tests.test_kept import packet, spelled, without_serial

LOCAL = ("192.0.2.1", 53)
NOON = 1_700_000_000.0
OUTSIDE = "192.0.2.7"
CLIENTS = [*FOUR, *SIX, OUTSIDE]
SHORT = [
    *SERVICES,
    *(f"_http._tcp.{name}" for name in SERVICES),
    *(f"{name}.{where}" for name in SERVICES for where in "ab"),
    "x.a.svc",
    "nobody",
    "x.a.svc.cluster.local",
    "nobody.a.svc.cluster.local",
]
SEARCH = "search {\n client 192.0.2.0/24 b\n names qualified\n}"
EXPANDED = [
    "x.a.svc.cluster.local",
    "nobody.a.svc.cluster.local",
    "y.b.a.svc.cluster.local",
    "y.b.svc.a.svc.cluster.local",
    "y.b.b.svc.cluster.local",
    "www.example.com.a.svc.cluster.local",
    "www.example.com.b.svc.cluster.local",
    "ftp.example.com.b.svc.cluster.local",
    "www.example.com.svc.cluster.local",
]
HOSTS = "hosts {\n 192.0.2.10 www.example.com\n 2001:db8::10 www.example.com\n fallthrough\n}"
AUTOPATH = f"autopath @kubernetes\n{HOSTS}"
BY_NAME = f"autopath @kubernetes {{\n namespace_in_name\n}}\n{HOSTS}"


class Placed:
    """A responder of a block with `kubernetes` and more, and one that is made to forget, over the same model."""

    def __init__(self, more: str = SEARCH, options: str = "") -> None:
        source = f"kubernetes cluster.local in-addr.arpa ip6.arpa {{\n endpoint http://127.0.0.1:9\n {options}\n}}"
        self.process = Process(Metrics(), lambda: NOON)
        text = f".:53 {{\n{more}\n{source}\n}}"
        self.sites = build(corefile.parse(text, "Corefile"), self.process).listeners[0].sites
        self.process.addresses = OWN
        (self.plugin,) = (each for each in self.process.plugins if isinstance(each, Kubernetes))
        self.responder = Responder(self.sites, self.process, self.process.metrics)
        self.forgetful = Responder(self.sites, Process(Metrics(), lambda: NOON), Metrics())

    def apply(self, *events: Event) -> None:
        self.plugin.apply(events)

    def ask(self, query: bytes, client: str, fresh: bool = False) -> bytes:
        responder = self.responder
        if fresh:
            responder = self.forgetful
            responder.serve(self.sites)
        reply = responder.respond(query, "udp", (client, 4711), LOCAL, lambda data: None)
        assert isinstance(reply, bytes)
        return reply

    def placed(self, client: str) -> PlacedAnswers:
        found = self.responder.placed_answers("udp", ":" in client)
        assert found is not None
        return found

    def found(self, query: bytes, client: str) -> bool:
        """Whether a reply is kept for those who stand where this client does."""
        placed = self.placed(client)
        return placed.find(query, placed.place(packed(client))) is not None

    def says(self, name: str, client: str) -> str:
        """The data of the last record of the answer, or the response code where there is none."""
        reply = dns.message.from_wire(self.ask(packet(names.from_text(name), Type.A), client))
        return reply.answer[-1][0].to_text() if reply.answer else dns.rcode.to_text(reply.rcode())


@settings(max_examples=12, deadline=None)
@given(
    st.sampled_from([(SEARCH, SHORT), (AUTOPATH, EXPANDED), (f"{SEARCH}\n{AUTOPATH}", [*SHORT, *EXPANDED])]),
    histories(15),
    st.integers(0, 2**32),
)
def test_whatever_happens_every_client_is_told_what_it_would_be_told_now(
    configured: tuple[str, list[str]], happened: list[Event], seed: int
) -> None:
    random = Random(seed)
    more, asked = configured
    here = Placed(more)
    here.apply(*START, Synced())
    hits = 0
    for event in [*happened, *happened[::-1]]:
        for _ in range(20):
            name, rtype = names.from_text(random.choice(asked)), random.choice([Type.A, Type.AAAA, Type.SRV, Type.TXT])
            client = random.choice(CLIENTS)
            query = packet(name, rtype, random.random() < 0.5)
            here.ask(query, client)
            here.ask(query, client)
            hits += here.found(query, client)
            again = packet(spelled(name, random), rtype, len(query) > len(name) + 16, id=random.randbytes(2))
            assert without_serial(here.ask(again, client)) == without_serial(here.ask(again, client, fresh=True))
        here.apply(event)
        for _ in range(20):
            query = packet(names.from_text(random.choice(asked)), random.choice([Type.A, Type.SRV]))
            client = random.choice(CLIENTS)
            assert without_serial(here.ask(query, client)) == without_serial(here.ask(query, client, fresh=True))
        for name in random.sample(asked, 4):
            wire = names.from_text(name)
            one, two = (dns.message.from_wire(here.ask(packet(wire, each), client)) for each in (Type.A, Type.AAAA))
            assert alias(one) == alias(two), f"A and AAAA of {name} lead elsewhere"
    assert hits


def alias(reply: dns.message.Message) -> str:
    """What the name that was asked stands for. What that one stands for may depend on the type (ExternalName)."""
    return next((rrset[0].to_text() for rrset in reply.answer if rrset.rdtype == Type.CNAME), "")


def hostname(name: str) -> Endpoint:
    return Endpoint(addresses=["10.1.0.77"], hostname=name)


WORLD = (
    namespace("a"),
    namespace("b"),
    service("10.3.0.1", name="web", where="a"),
    service("10.3.0.2", name="web", where="b"),
    service("10.3.0.3", name="only-a", where="a"),
    pod("10.1.0.1", "fd00::1", name="one", where="a"),
    pod("10.1.0.2", name="two", where="b"),
    Synced(),
)


@pytest.fixture
def here() -> Placed:
    made = Placed("search {\n default b\n}")
    made.apply(*WORLD)
    return made


def test_the_same_name_is_two_services_for_two_clients_in_any_order(here: Placed) -> None:
    for _ in range(3):
        assert here.says("web", "10.1.0.1") == "10.3.0.1"
        assert here.says("web", "10.1.0.2") == "10.3.0.2"
        assert here.says("web", OUTSIDE) == "10.3.0.2"
        assert here.says("web", "fd00::1") == "10.3.0.1"
        assert here.says("only-a", "10.1.0.1") == "10.3.0.3"
        assert here.says("only-a", "10.1.0.2") == "REFUSED"


def test_what_depends_on_the_client_is_never_kept_under_the_name_alone(here: Placed) -> None:
    query = packet(names.from_text("web"), Type.A)
    here.ask(query, "10.1.0.1")
    assert here.found(query, "10.1.0.1")
    assert not here.found(query, "10.1.0.2")
    assert here.responder.answers("udp", False).find(query) is None


def test_clients_of_one_place_share_what_is_kept_for_it(here: Placed) -> None:
    query = packet(names.from_text("web"), Type.A)
    here.ask(query, "10.1.0.2")
    assert here.found(query, OUTSIDE)


def test_names_of_the_zone_are_kept_for_all_together(here: Placed) -> None:
    query = packet(names.from_text("web.a.svc.cluster.local"), Type.A)
    here.ask(query, "10.1.0.1")
    assert not here.found(query, "10.1.0.1")
    assert here.responder.answers("udp", False).find(query) is not None


def test_an_address_that_was_given_to_a_pod_elsewhere_is_told_of_its_own_services_at_once(here: Placed) -> None:
    assert here.says("web", "10.1.0.1") == "10.3.0.1"
    here.apply(pod("10.1.0.1", "fd00::1", name="one", where="a", leaving=True), pod("10.1.0.1", name="new", where="b"))
    assert here.says("web", "10.1.0.1") == "10.3.0.2"
    assert here.says("web", "fd00::1") == "10.3.0.1"
    here.apply(delete(pod(name="new", where="b")))
    assert here.says("web", "10.1.0.1") == "10.3.0.1"


def test_only_what_a_change_concerns_is_let_go(here: Placed) -> None:
    queries = [packet(names.from_text(name), Type.A) for name in ("web", "only-a")]
    for query in queries:
        here.ask(query, "10.1.0.1")
    here.apply(service("10.3.0.9", name="web", where="a"))
    assert [here.found(query, "10.1.0.1") for query in queries] == [False, True]
    assert here.says("web", "10.1.0.1") == "10.3.0.9"


def test_a_denial_of_a_short_name_speaks_for_no_sibling_and_no_other_place() -> None:
    here = Placed("search", "fallthrough")
    here.apply(*WORLD)
    query = packet(names.from_text("no1"), Type.A)
    for _ in range(3):
        assert here.says("no1", "10.1.0.1") == "REFUSED"
    assert not here.found(query, "10.1.0.2")
    assert not here.found(packet(names.from_text("web"), Type.A), "10.1.0.1")


def test_strangers_cannot_make_the_memory_of_places_grow(here: Placed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "MOST_PLACES", 100)
    for number in range(1000):
        assert here.says("web", str(ipaddress.ip_address("192.0.2.0") + number)) == "10.3.0.2"
    assert len(here.placed(OUTSIDE).places) <= 100
    assert len(here.placed(OUTSIDE).positive) == 1


def test_another_configuration_has_other_places(here: Placed) -> None:
    assert here.says("web", OUTSIDE) == "10.3.0.2"
    other = Placed("search {\n default a\n}")
    other.apply(*WORLD)
    here.responder.serve(other.sites)
    assert here.says("web", "10.1.0.2") == "10.3.0.2"
    assert here.says("web", OUTSIDE) == "10.3.0.1"
    here.responder.serve(Placed("").sites)
    assert here.responder.placed_answers("udp", False) is None


def test_two_directives_of_one_port_each_have_their_say() -> None:
    source = "kubernetes {zone} {{\n endpoint http://127.0.0.1:9\n}}"
    blocks = [
        f".:53 {{\n search {{\n default a\n}}\n {source.format(zone='cluster.local')}\n}}",
        f"k.test:53 {{\n search {{\n default b\n names qualified\n}}\n {source.format(zone='in.k.test')}\n}}",
    ]
    process = Process(Metrics(), lambda: NOON)
    (listener,) = build(corefile.parse("\n".join(blocks), "Corefile"), process).listeners
    responder = Responder(listener.sites, process, process.metrics)
    for plugin in process.plugins:
        if isinstance(plugin, Kubernetes):
            plugin.apply(WORLD)
    for _ in range(2):
        reply = responder.respond(packet(names.from_text("web"), Type.A), "udp", (OUTSIDE, 7), LOCAL, lambda data: None)
        assert isinstance(reply, bytes)
        assert dns.message.from_wire(reply).answer[-1][0].to_text() == "10.3.0.1"
    placed = responder.placed_answers("udp", False)
    assert placed is not None
    assert placed.place(packed(OUTSIDE)) == b"\1a\1b"
    assert placed.place(packed("10.1.0.1")) == b"\1a\1a"


def headless(endpoints: int) -> Placed:
    here = Placed("search\nloadbalance")
    addresses = [f"10.7.{number}.1" for number in range(endpoints)]
    here.apply(*WORLD, service("None", name="db", where="a"), slice_(*addresses, of="db", where="a"))
    return here


def test_addresses_behind_an_alias_come_in_ever_other_orders_and_none_is_made_anew() -> None:
    here = headless(3)
    query = packet(names.from_text("db"), Type.A, edns=True)
    asked = 3000
    replies = [dns.message.from_wire(here.ask(query, "10.1.0.1")) for _ in range(asked)]
    assert {reply.answer[0].to_text() for reply in replies} == {"db. 5 IN CNAME db.a.svc.cluster.local."}
    orders = [tuple(each.to_text() for each in reply.answer[1]) for reply in replies]
    assert {frozenset(order) for order in orders} == {frozenset(f"10.7.{number}.1" for number in range(3))}
    # Each order is used 16 times or so before another replaces it; so five standard deviations of some 200 draws.
    shares = [sum(order[0] == f"10.7.{number}.1" for order in orders) / asked for number in range(3)]
    assert all(0.15 < share < 0.51 for share in shares)
    (kept,) = here.placed("10.1.0.1").positive
    assert kept.made is None


def test_an_alias_and_its_one_address_have_one_order() -> None:
    here = headless(1)
    here.says("db", "10.1.0.1")
    (kept,) = here.placed("10.1.0.1").positive
    assert kept.body


def test_a_short_name_tells_as_many_endpoints_as_fit() -> None:
    here = headless(60)
    told = dns.message.from_wire(here.ask(packet(names.from_text("db"), Type.A, edns=True), "10.1.0.1"))
    assert len(told.answer[1]) == 60
    told = dns.message.from_wire(here.ask(packet(names.from_text("db"), Type.A), "10.1.0.1"))
    assert told.flags & dns.flags.TC


# The search list


@pytest.fixture
def walking() -> Placed:
    made = Placed(AUTOPATH)
    made.apply(*WORLD)
    return made


WWW = "www.example.com.a.svc.cluster.local"


def test_a_search_list_is_that_of_the_client(walking: Placed) -> None:
    for _ in range(3):
        assert walking.says(WWW, "10.1.0.2") == "NXDOMAIN"
        assert walking.says(WWW, "10.1.0.1") == "192.0.2.10"
        assert walking.says(WWW, OUTSIDE) == "NXDOMAIN"
        assert walking.says("web.b.a.svc.cluster.local", "10.1.0.1") == "10.3.0.2"
    assert walking.responder.answers("udp", False).find(packet(names.from_text(WWW), Type.A)) is None


def test_a_denial_for_one_place_denies_no_sibling_to_another(walking: Placed) -> None:
    for _ in range(3):
        assert walking.says("ftp.example.com.a.svc.cluster.local", "10.1.0.2") == "NXDOMAIN"
    assert walking.says(WWW, "10.1.0.1") == "192.0.2.10"


def test_a_name_that_comes_to_exist_is_searched_for_no_longer(walking: Placed) -> None:
    name = "web.b.a.svc.cluster.local"
    assert walking.says(name, "10.1.0.1") == "10.3.0.2"
    walking.apply(service("10.3.0.9", name="b", where="a"), slice_(hostname("web"), of="b", where="a"))
    assert walking.says(name, "10.1.0.1") == "10.1.0.77"


def test_by_the_name_alone_all_clients_have_one_answer() -> None:
    here = Placed(BY_NAME)
    here.apply(*WORLD)
    for client in ("10.1.0.2", "10.1.0.1", OUTSIDE):
        assert here.says(WWW, client) == "192.0.2.10"
    assert here.says("ftp.example.com.a.svc.cluster.local", OUTSIDE) == "NXDOMAIN"
    assert here.says("www.example.com.c.svc.cluster.local", OUTSIDE) == "NXDOMAIN"
    assert here.responder.answers("udp", False).find(packet(names.from_text(WWW), Type.A)) is not None
    assert here.responder.placed_answers("udp", False) is None


@pytest.mark.parametrize("more", [AUTOPATH, BY_NAME], ids=["by client", "by name"])
def test_a_name_that_is_nowhere_speaks_for_no_sibling(more: str) -> None:
    here = Placed(more)
    here.apply(*WORLD)
    for _ in range(3):
        assert here.says("ftp.example.com.a.svc.cluster.local", "10.1.0.1") == "NXDOMAIN"
    assert here.says(WWW, "10.1.0.1") == "192.0.2.10"


def counted(here: Placed, name: str) -> dict[str, float]:
    """The values of a metric by their last label."""
    lines = here.process.metrics.render()[0].decode().splitlines()
    found = [line for line in lines if line.startswith(f"{name}{{")]
    return {line.split('"')[-2]: float(line.rsplit(" ", 1)[1]) for line in found}


def test_what_was_found_along_a_list_is_counted_each_time(walking: Placed) -> None:
    for _ in range(5):
        walking.says(WWW, "10.1.0.1")
        walking.says("web.a.svc.cluster.local", "10.1.0.1")
        walking.says("nobody.a.svc.cluster.local", "10.1.0.1")
    assert counted(walking, "coredns_autopath_success_total") == {"dns://:53": 5}


def test_questions_in_vain_are_counted_by_the_namespace_that_they_are_below() -> None:
    async def story() -> None:
        here = Placed("")
        feeding = asyncio.create_task(here.plugin.feed())
        await asyncio.sleep(0)
        here.apply(*WORLD, namespace("gone"))
        names_asked = [WWW, "ftp.example.com.a.svc.cluster.local", "example.com.a.svc.cluster.local"]
        names_asked += [
            "no.b.svc.cluster.local",
            "no.c.svc.cluster.local",
            "no.svc.cluster.local",
            "x.gone.svc.cluster.local",
        ]
        for _ in range(4):
            for name in (*names_asked, "web.a.svc.cluster.local", "a.svc.cluster.local"):
                here.says(name, OUTSIDE)
        here.apply(delete(namespace("gone")))
        assert counted(here, "kdns_search_path_misses_total") == {"a": 12, "b": 4}
        assert counted(here, "kdns_search_path_ndots_savings_total") == {"a": 8}
        feeding.cancel()
        await asyncio.gather(feeding, return_exceptions=True)
        assert counted(here, "kdns_search_path_misses_total") == {"a": 12, "b": 4}

    asyncio.run(story())


def test_a_service_that_comes_takes_the_place_of_what_others_said_of_its_name() -> None:
    here = Placed("search\nhosts {\n 192.0.2.99 printer\n fallthrough\n}")
    here.apply(*WORLD)
    query = packet(names.from_text("printer"), Type.A)
    assert here.says("printer", "10.1.0.1") == "192.0.2.99"
    assert here.found(query, "10.1.0.1")
    here.apply(service("10.3.0.7", name="printer", where="a"))
    assert here.says("printer", "10.1.0.1") == "10.3.0.7"
    assert here.says("printer", "10.1.0.2") == "192.0.2.99"


def test_a_policy_is_that_of_the_whole_name() -> None:
    here = Placed("search\nacl web.a.svc.cluster.local {\n block\n}")
    here.apply(*WORLD)
    for _ in range(2):
        assert here.says("web", "10.1.0.1") == "REFUSED"
        assert here.says("only-a", "10.1.0.1") == "10.3.0.3"
        assert here.says("web", "10.1.0.2") == "10.3.0.2"


class Again:
    """A handler that asks the server for the same name once more, as `dns64` does, and says what it said."""

    async def handle(self, request: Request, next: Next) -> Answer:
        return await next(request) if request.depth else await request.ask(request.query.qname, Type.A)


def test_what_a_question_within_a_question_depends_on_the_answer_depends_on() -> None:
    here = Placed("search")
    here.apply(*WORLD)
    (site,) = here.sites
    handlers = [Again().handle, *(plugin.handle for plugin in site.plugins if plugin.handle is not None)]
    here.responder.serve([msgspec.structs.replace(site, chain=fold(handlers))])
    for _ in range(2):
        assert here.says("web", "10.1.0.1") == "10.3.0.1"
        assert here.says("web", "10.1.0.2") == "10.3.0.2"


def test_a_name_that_a_policy_denies_is_searched_for_once_its_namespace_is_there() -> None:
    policy = 'template IN A cluster.local {\n match "^www[.]example[.]com[.]c[.]"\n rcode NXDOMAIN\n fallthrough\n}'
    here = Placed(f"{BY_NAME}\n{policy}")
    here.apply(*WORLD)
    for _ in range(3):
        assert here.says("www.example.com.c.svc.cluster.local", OUTSIDE) == "NXDOMAIN"
    here.apply(namespace("c"))
    assert here.says("www.example.com.c.svc.cluster.local", OUTSIDE) == "192.0.2.10"


def test_what_another_plugin_has_instead_is_no_question_in_vain() -> None:
    async def story() -> None:
        here = Placed("whoami", "fallthrough")
        feeding = asyncio.create_task(here.plugin.feed())
        await asyncio.sleep(0)
        here.apply(*WORLD)
        assert here.says("no.a.svc.cluster.local", OUTSIDE) == "NOERROR"
        assert counted(here, "kdns_search_path_misses_total") == {}
        feeding.cancel()
        await asyncio.gather(feeding, return_exceptions=True)

    asyncio.run(story())


# Answers that wait


class Late:
    """A handler that finds out where the client stands, waits, and then says what it found."""

    def __init__(self) -> None:
        self.where = {b"\x0a\1\0\1": b"a"}
        self.go = asyncio.Event()

    def locate(self, address: bytes) -> bytes:
        return self.where.get(address, b"")

    async def handle(self, request: Request, next: Next) -> Answer:
        before = request.stand(self.locate)
        await request.wait(self.go.wait())
        assert request.stand(self.locate) == before
        return Answer(plugin=before.decode())


def test_an_answer_that_waited_is_kept_for_where_the_client_stood_when_it_asked() -> None:
    async def story() -> None:
        late = Late()
        process = Process(Metrics(), lambda: NOON)
        site = Site(b"\0", fold([late.handle]), "dns://:53", plugins=(late,))  # type: ignore[arg-type]
        responder = Responder([site], process, process.metrics)
        query = packet(names.from_text("web"), Type.A)
        for _ in range(2):
            # A reply without records is kept from the second time on.
            late.where = {b"\x0a\1\0\1": b"a"}
            late.go.clear()
            process.forget({("client", b"\x0a\1\0\1")})
            responder.respond(query, "udp", ("10.1.0.1", 4711), LOCAL, lambda data: None)
            await asyncio.sleep(0)
            late.where = {b"\x0a\1\0\1": b"b"}
            process.forget({("client", b"\x0a\1\0\1")})
            late.go.set()
            await asyncio.sleep(0.01)
        placed = responder.placed_answers("udp", False)
        assert placed is not None
        assert placed.find(query, b"\1b") is None
        assert placed.find(query, b"\1a") is not None
        assert placed.place(b"\x0a\1\0\1") == b"\1b"

    asyncio.run(story())


# The way of packets


class Counting(Responder):
    """A responder that counts the packets it was given one at a time."""

    given = 0

    def respond(self, *arguments: Any) -> Any:
        self.given += 1
        return super().respond(*arguments)


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::1", "::"])
def test_a_batch_of_packets_is_answered_by_where_each_client_stands(host: str) -> None:
    async def story() -> None:
        here = Placed("search")
        here.responder = responder = Counting(here.sites, here.process, here.process.metrics)
        clients = {f"127.0.0.{number}": "ab"[number % 2] for number in range(2, 10)}
        if ":" in host:
            clients = {"::1": "b"}
        pods = [pod(address, name=address, where=where) for address, where in clients.items()]
        here.apply(*WORLD, *pods)
        server = serve_udp(here.responder, open_udp(host, 0))
        server.start()
        port = server.sock.getsockname()[1]
        socks = {client: _client(client, port) for client in clients}
        try:
            for turn in range(3):
                for sock in socks.values():
                    sock.send(packet(names.from_text("web"), Type.A, id=bytes((7, turn))))
                await asyncio.sleep(0.05)
                for client, sock in socks.items():
                    reply = dns.message.from_wire(sock.recv(512))
                    assert reply.id == 7 * 256 + turn
                    expected = {"a": "10.3.0.1", "b": "10.3.0.2"}[clients[client]]
                    assert reply.answer[-1][0].to_text() == expected
            places = set(clients.values())
            placed = here.placed(next(iter(clients)))
            assert sum(kept.uses for kept in placed.positive) == 3 * len(clients) - len(places)
            assert len(placed.positive) == len(places)
            # The first of each client goes by itself: only then is it known where it stands.
            assert not available or responder.given == len(clients)
        finally:
            for sock in socks.values():
                sock.close()
            await server.stop()

    asyncio.run(story())


def test_capitals_and_cookies_of_names_of_the_zone_go_the_short_way_beside_short_names() -> None:
    async def story() -> None:
        here = Placed("search")
        here.responder = responder = Counting(here.sites, here.process, here.process.metrics)
        here.apply(*WORLD, pod("127.0.0.2", name="me", where="a"))
        server = serve_udp(here.responder, open_udp("127.0.0.1", 0))
        server.start()
        sock = _client("127.0.0.2", server.sock.getsockname()[1])
        whole = names.from_text("web.a.svc.cluster.local")
        cookies = (b"12345678", b"87654321")
        try:
            for query in (
                packet(names.from_text("web"), Type.A),
                packet(whole, Type.A),
                packet(whole, Type.A, edns=True),
                packet(names.from_text("wEb.A.sVc.ClUsTeR.lOcAl"), Type.A),
                *(packet(whole, Type.A, edns=True)[:-2] + b"\0\x0c\0\x0a\0\x08" + each for each in cookies),
            ):
                sock.send(query)
                await asyncio.sleep(0.02)
                reply = dns.message.from_wire(sock.recv(512))
                assert reply.answer[-1][0].to_text() == "10.3.0.1"
                assert query[12:].startswith(reply.question[0].name.to_wire())
            # Only the first of each form goes by itself.
            assert not available or responder.given == 4
        finally:
            sock.close()
            await server.stop()

    asyncio.run(story())


def _client(address: str, port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((address, 0))
    sock.connect(("::1" if ":" in address else "127.0.0.1", port))
    sock.settimeout(5)
    return sock
