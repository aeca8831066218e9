"""`kdns compare`: it finds what differs, whatever that is, and nothing where nothing does."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pty
import re
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random

import dns.flags
import dns.message
import dns.rrset
import pytest

from kdns import corefile
from kdns.app import build
from kdns.chain import Process
from kdns.compare.asking import MOST_SILENT, Gently, InProcess, Pace, Remote, Server, client_of, own_addresses_of
from kdns.compare.comparison import Comparison, Report
from kdns.compare.differences import Way, verdict
from kdns.compare.known import KNOWN, truth_of
from kdns.compare.questions import Asked, Shape, of_cluster, of_file, shape_of
from kdns.dump import as_zone
from kdns.errors import ConfigError, KdnsError
from kdns.kubernetes import inventory
from kdns.kubernetes.objects import Metadata, Object, Put, Service, ServiceSpec, Synced
from kdns.metrics import Metrics
from kdns.plugins.kubernetes import Kubernetes
from kdns.responder import Responder
from kdns.upstream.sockets import Upstream
from kdns.wire import names
from kdns.wire.records import Type, type_from_text
from tests import started
from tests.started import ROOT, run
from tests.upstream.fake import silence, upstream

ZONE = names.from_text("cluster.local")
MANIFESTS = """\
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  clusterIP: 10.96.0.20
  ports: [{name: http, port: 80}]
---
apiVersion: v1
kind: Service
metadata: {name: pets, namespace: shop}
spec: {clusterIP: None, ports: [{name: http, port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: pets-1, namespace: shop, labels: {kubernetes.io/service-name: pets}}
addressType: IPv4
endpoints: [{addresses: [10.1.0.1], hostname: pet-0}, {addresses: [10.1.0.2]}]
ports: [{name: http, port: 8080}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
endpoints: [{addresses: [10.1.0.7]}]
ports: [{name: http, port: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: ext, namespace: shop}
spec: {type: ExternalName, externalName: www.example.com}
---
apiVersion: v1
kind: Pod
metadata: {name: pet-0, namespace: shop}
status: {podIP: 10.1.0.1, podIPs: [{ip: 10.1.0.1}, {ip: "fd00::1"}]}
"""
COREFILE = """\
. {
    kubernetes cluster.local in-addr.arpa ip6.arpa {
        inventory PATH
        pods verified
    }
}
"""
Change = Callable[[dns.message.Message], object]
# Enough for what runs on the same machine; nobody has to wait for the replies that never come.
QUICK = Gently(rate=100_000, seconds=5.0, tries=1)


def asked(text: str) -> Asked:
    name, rtype = text.split()
    return Asked(names.from_text(name), type_from_text(rtype))


SILENCE = object()


class Cluster:
    """A cluster of some manifests, and kdns that answers for it."""

    def __init__(self, path: Path, directives: str = COREFILE, more: Sequence[Object] = ()) -> None:
        path.write_text(MANIFESTS)
        objects = [*inventory.load([str(path)]).objects.values(), *more]
        self.truth = truth_of(objects)
        configuration = build(corefile.parse(directives.replace("PATH", str(path)), "Corefile"), Process(Metrics()))
        plugin = next(each for each in configuration.plugins if isinstance(each, Kubernetes))
        plugin.apply([*map(Put, objects), Synced()])
        process = configuration.process
        process.addresses = [b"\x7f\x00\x00\x01"]
        self.responder = Responder(configuration.listeners[0].sites, process, process.metrics)
        self.kdns = InProcess(self.responder)
        self.asked = of_cluster(self.truth.cluster, ZONE, Random(1))

    def reply(self, query: bytes, transport: str) -> bytes:
        reply = self.responder.respond(query, transport, ("127.0.0.1", 1), ("127.0.0.1", 53), lambda reply: None)
        assert isinstance(reply, bytes)
        return reply

    def comparison(self, there: Server) -> Comparison:
        return Comparison(there, self.kdns, self.truth, ZONE, second_look_seconds=0.0)


class Incumbent:
    """The same kdns at sockets of its own, whose replies to some questions are changed.

    With `first_look_only` a reply is changed once in each way.
    """

    def __init__(self, cluster: Cluster, changes: dict[str, Change], first_look_only: bool = False) -> None:
        self._cluster = cluster
        self._changes = {asked(text): change for text, change in changes.items()}
        self._first_look_only = first_look_only
        self._changed: set[tuple[Asked, str, bool]] = set()

    def over_udp(self, query: bytes) -> list[bytes]:
        return self._reply(query, "udp")

    def over_tcp(self, query: bytes) -> list[bytes]:
        return self._reply(query, "tcp")

    def _reply(self, query: bytes, transport: str) -> list[bytes]:
        reply = self._cluster.reply(query, transport)
        message = dns.message.from_wire(query)
        question = Asked(names.from_text(message.question[0].name.to_text()), int(message.question[0].rdtype))
        change = self._changes.get(question)
        once = question, transport, message.edns >= 0
        if change is None or (self._first_look_only and once in self._changed):
            return [reply]
        self._changed.add(once)
        changed = dns.message.from_wire(reply)
        if change(changed) is SILENCE:
            return []
        return [changed.to_wire(max_size=65535)]


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path / "shop.yaml")


def compared(
    cluster: Cluster,
    changes: dict[str, Change],
    *,
    first_look_only: bool = False,
    questions: tuple[str, ...] = (),
) -> Report:
    """What a comparison with such an incumbent finds, over sockets; all is asked, or these questions."""
    wanted = [asked(each) for each in questions] or cluster.asked

    async def compare() -> Report:
        incumbent = Incumbent(cluster, changes, first_look_only)
        async with upstream(incumbent.over_udp, tcp=incumbent.over_tcp) as at:
            remote = Remote(at.upstream, QUICK)
            try:
                return await cluster.comparison(remote).run(wanted)
            finally:
                remote.close()

    return asyncio.run(compare())


# What is found

WEB = "web.shop.svc.cluster.local."
PETS = "pets.shop.svc.cluster.local."
MISSING = f"www.example.com.{PETS.partition('.')[2]}"


def flag(bit: int) -> Change:
    def change(message: dns.message.Message) -> None:
        message.flags ^= bit

    return change


def rcode(code: int) -> Change:
    def change(message: dns.message.Message) -> None:
        message.set_rcode(code)
        message.answer = []

    return change


def answer(*lines: str) -> Change:
    """NOERROR with another answer section; each line is a record."""

    def change(message: dns.message.Message) -> None:
        message.set_rcode(0)
        message.answer = [dns.rrset.from_text(*_split(line)) for line in lines]

    return change


def ttl(seconds: int) -> Change:
    def change(message: dns.message.Message) -> None:
        for each in message.answer:
            each.ttl = seconds

    return change


def soa(text: str) -> Change:
    def change(message: dns.message.Message) -> None:
        owner = message.authority[0].name
        message.authority = [dns.rrset.from_text(owner, 5, "IN", "SOA", text)]

    return change


def no_additional(message: dns.message.Message) -> None:
    message.additional = []


def no_edns(message: dns.message.Message) -> None:
    message.use_edns(False)


def silent(message: dns.message.Message) -> object:
    return SILENCE


def _split(line: str) -> list[str]:
    owner, seconds, rtype, data = line.split(maxsplit=3)
    return [owner, seconds, "IN", rtype, data]


PLANTED: list[tuple[str, str, Change, str]] = [
    ("a service that isn't there", f"{WEB} A", rcode(3), "NXDOMAIN there, NOERROR here"),
    ("a service without an address", f"{WEB} A", answer(), "NODATA there, NOERROR here"),
    ("another address", f"{WEB} A", answer(f"{WEB} 5 A 10.96.0.21"), "A records that are others"),
    ("an endpoint less", f"{PETS} A", answer(f"{PETS} 5 A 10.1.0.1"), "A records that are only here"),
    (
        "an endpoint more",
        f"{PETS} A",
        answer(f"{PETS} 5 A 10.1.0.1", f"{PETS} 5 A 10.1.0.2", f"{PETS} 5 A 10.1.0.3"),
        "A records that are only there",
    ),
    ("another TTL", f"{WEB} A", ttl(30), "TTL 30 there, 5 here"),
    (
        "another port",
        f"_http._tcp.{WEB} SRV",
        answer(f"_http._tcp.{WEB} 5 SRV 0 100 81 {WEB}"),
        "SRV records that are others",
    ),
    (
        "no addresses beside an SRV",
        f"_http._tcp.{WEB} SRV",
        no_additional,
        "A records in the additional section that are only here",
    ),
    (
        "another name at an address",
        "20.0.96.10.in-addr.arpa. PTR",
        answer(f"20.0.96.10.in-addr.arpa. 5 PTR {PETS}"),
        "PTR records that are others",
    ),
    (
        "another alias",
        "ext.shop.svc.cluster.local. CNAME",
        answer("ext.shop.svc.cluster.local. 5 CNAME a.b."),
        "CNAME records that are others",
    ),
    ("a pod that isn't there", "10-1-0-1.shop.pod.cluster.local. A", rcode(3), "NXDOMAIN there, NOERROR here"),
    ("a name that nobody has", f"{MISSING} A", answer(f"{MISSING} 5 A 192.0.2.1"), "NOERROR there, NXDOMAIN here"),
    ("an answer that isn't authoritative", f"{WEB} A", flag(dns.flags.AA), "AA set only here"),
    ("a server that offers recursion", f"{WEB} A", flag(dns.flags.RA), "RA set only there"),
    ("a truncated answer", f"{WEB} A", flag(dns.flags.TC), "TC set only there"),
    ("no OPT record", f"{WEB} A", no_edns, "an OPT record only here"),
    (
        "another mailbox",
        f"{WEB} AAAA",
        soa("ns.dns.cluster.local. me.cluster.local. 1 7200 1800 86400 5"),
        "another SOA",
    ),
    (
        "denials that live for longer",
        f"{WEB} AAAA",
        soa("ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 1"),
        "a negative answer may be kept for 1 s there, 5 s here",
    ),
    ("a failure", f"{WEB} A", rcode(2), "SERVFAIL there, NOERROR here"),
    ("silence", f"{WEB} A", silent, "no reply there, NOERROR here"),
]


@pytest.mark.parametrize(("question", "change", "cause"), [pytest.param(*row[1:], id=row[0]) for row in PLANTED])
def test_a_difference_that_was_planted_is_found_and_no_other(
    cluster: Cluster, question: str, change: Change, cause: str
) -> None:
    report = compared(cluster, {question: change})
    assert [(each.asked, each.difference.cause, each.row) for each in report.findings] == [(asked(question), cause, "")]


def test_a_finding_says_in_which_ways_it_was_found(cluster: Cluster) -> None:
    def without_edns(message: dns.message.Message) -> None:
        if message.edns < 0:
            ttl(7)(message)

    report = compared(cluster, {f"{WEB} A": without_edns})
    assert [each.ways for each in report.findings] == [(Way.UDP,)]


def reorder(message: dns.message.Message) -> None:
    message.answer = [dns.rrset.from_rdata_list(each.name, each.ttl, list(each)[::-1]) for each in message.answer]


def serial(message: dns.message.Message) -> None:
    soa("ns.dns.cluster.local. hostmaster.cluster.local. 99 7200 1800 86400 5")(message)


def spelling(message: dns.message.Message) -> None:
    message.answer = [dns.rrset.from_text(WEB.upper(), 5, "IN", "A", "10.96.0.20")]


@pytest.mark.parametrize(
    ("question", "change"),
    [
        pytest.param(f"{PETS} A", reorder, id="the order of records"),
        pytest.param(f"{WEB} AAAA", serial, id="a serial"),
        pytest.param(f"{WEB} A", spelling, id="upper case"),
    ],
)
def test_what_no_client_sees_is_no_difference(cluster: Cluster, question: str, change: Change) -> None:
    assert compared(cluster, {question: change}).findings == []


def test_kdns_and_kdns_dont_differ(cluster: Cluster) -> None:
    report = compared(cluster, {})
    assert (report.questions, report.vanished, report.findings) == (len(cluster.asked), 0, [])
    assert len(cluster.asked) > 100


def test_what_is_gone_at_a_second_look_is_counted_and_not_told(cluster: Cluster) -> None:
    report = compared(cluster, {f"{WEB} A": rcode(3)}, first_look_only=True)
    assert (report.vanished, report.findings) == (1, [])


NXDOMAIN, NODATA = rcode(3), answer()
SRV_OF_POD = "10-1-0-1.shop.pod.cluster.local. SRV"


@pytest.mark.parametrize(
    ("question", "change", "row"),
    [
        ("shop.svc.cluster.local. TXT", NXDOMAIN, "TXT at `cluster.local`"),
        (f"_tcp.{WEB} SRV", NXDOMAIN, "`_tcp.web.shop.svc…` where"),
        (f"_._tcp.{WEB} SRV", answer(f"_._tcp.{WEB} 5 SRV 0 100 80 {WEB}"), "`_._tcp.web.shop.svc…`"),
        ("dns-version.cluster.local. A", NXDOMAIN, "`dns-version.cluster.local`"),
        ("dns-version.cluster.local. TXT", ttl(30), "`cache` in the chain"),
        ("ns.dns.cluster.local. A", NODATA, "NS of the zone and `ns.dns`, from"),
        ("20.0.96.10.in-addr.arpa. A", NXDOMAIN, "A and other types at a reverse name"),
        (
            "20.0.96.10.in-addr.arpa. A",
            soa("ns.dns.in-addr.arpa. hostmaster.in-addr.arpa. 1 7200 1800 86400 5"),
            "the name server of a reverse zone",
        ),
        (f"{WEB} ANY", NODATA, "ANY"),
        (SRV_OF_POD, answer(f"{SRV_OF_POD[:-4]} 5 SRV 0 100 0 {SRV_OF_POD[:-4]}"), "SRV of a pod's name"),
        ("fd00--1.shop.pod.cluster.local. AAAA", NXDOMAIN, "`pods verified` and a pod's second address"),
        ("fd00-0-0-0-0-0-0-1.shop.pod.cluster.local. AAAA", NXDOMAIN, "an IPv6 address spelled"),
    ],
)
def test_a_difference_that_is_meant_bears_its_row(cluster: Cluster, question: str, change: Change, row: str) -> None:
    report = compared(cluster, {question: change}, questions=(question,))
    assert len(report.findings) == 1
    assert report.findings[0].row.startswith(row)


@pytest.mark.parametrize(
    ("question", "change"),
    [
        pytest.param(f"{WEB} TXT", NXDOMAIN, id="TXT of a service"),
        pytest.param("shop.svc.cluster.local. A", NXDOMAIN, id="another type of a namespace"),
        pytest.param(f"_tcp.{WEB} SRV", rcode(2), id="a failure where NXDOMAIN would be meant"),
        pytest.param("20.0.96.10.in-addr.arpa. PTR", NXDOMAIN, id="PTR itself"),
        pytest.param(f"{WEB} ANY", NXDOMAIN, id="ANY of a name that would not exist"),
        pytest.param(f"{WEB} A", answer(f"{WEB} 5 CNAME a.b."), id="an alias where no slice is of type FQDN"),
        pytest.param("10-1-0-1.shop.pod.cluster.local. A", NXDOMAIN, id="a pod's first address"),
        pytest.param("dns-version.cluster.local. TXT", ttl(86400), id="a version that lives for longer"),
        pytest.param(
            "20.0.96.10.in-addr.arpa. A",
            soa("ns.example.com. hostmaster.example.com. 1 7200 1800 86400 5"),
            id="a reverse zone of somebody else",
        ),
    ],
)
def test_what_only_looks_like_one_that_is_meant_is_not_explained(
    cluster: Cluster, question: str, change: Change
) -> None:
    report = compared(cluster, {question: change}, questions=(question,))
    assert [each.row for each in report.findings] == [""]


ALSO = Service(Metadata(name="also", namespace="shop"), ServiceSpec(cluster_ip="10.96.0.20"))


@pytest.mark.parametrize(
    ("target", "row"),
    [(WEB, "PTR of an address that several services have"), (PETS, ""), ("web.other.svc.cluster.local.", "")],
)
def test_only_another_service_of_the_same_address_explains_another_pointer(
    tmp_path: Path, target: str, row: str
) -> None:
    pointer = "20.0.96.10.in-addr.arpa."
    shared = Cluster(tmp_path / "shop.yaml", more=[ALSO])
    changes = {f"{pointer} PTR": answer(f"{pointer} 5 PTR {target}")}
    report = compared(shared, changes, questions=(f"{pointer} PTR",))
    assert [each.row for each in report.findings] == [row]


@pytest.mark.parametrize(
    ("question", "row"),
    [("20.0.96.10.in-addr.arpa. PTR", ""), ("21.0.96.10.in-addr.arpa. PTR", "AA of a reply that is kept")],
)
def test_kdns_that_has_no_authority_is_explained_only_for_what_others_know(
    cluster: Cluster, question: str, row: str
) -> None:
    async def compare() -> Report:
        incumbent = Incumbent(cluster, {question: flag(dns.flags.AA)})
        async with upstream(incumbent.over_udp, tcp=incumbent.over_tcp) as at:
            remote = Remote(at.upstream, QUICK)
            try:
                # The other way round: it is kdns whose replies are changed.
                comparison = Comparison(cluster.kdns, remote, cluster.truth, ZONE, second_look_seconds=0.0)
                return await comparison.run([asked(question)])
            finally:
                remote.close()

    assert [(each.difference.cause, each.row) for each in asyncio.run(compare()).findings] == [
        ("AA set only there", row)
    ]


def test_a_ttl_that_goes_down_is_that_of_an_answer_which_is_kept(cluster: Cluster) -> None:
    left = iter(range(4, 0, -1))

    def age(message: dns.message.Message) -> None:
        # Each look asks in three ways.
        ttl(next(left) if message.edns < 0 else 5)(message)

    report = compared(cluster, {f"{WEB} A": age})
    assert [(each.row, each.ways) for each in report.findings] == [("`cache` in the chain", (Way.UDP,))]


def test_every_row_that_explains_stands_in_the_table() -> None:
    table = (ROOT / "docs" / "coredns.md").read_text()
    rows = re.findall(r"^\| (.*?) \|", table, re.MULTILINE)
    assert {known.row for known in KNOWN} <= set(rows)


# Who is asked, and how


def test_who_isnt_there_is_asked_once(cluster: Cluster) -> None:
    async def compare() -> int:
        async with upstream(silence) as at:
            remote = Remote(at.upstream, Gently(rate=1000, seconds=0.05, tries=2))
            with pytest.raises(KdnsError, match=r"no answer to cluster\.local\. SOA: none within 0\.05 s"):
                await cluster.comparison(remote).run(cluster.asked)
            return len(at.udp)

    assert asyncio.run(compare()) == 2


def test_a_server_that_falls_silent_is_left_alone(cluster: Cluster) -> None:
    async def compare() -> int:
        alive = 10

        def until(query: bytes) -> list[bytes]:
            nonlocal alive
            alive -= 1
            return [cluster.reply(query, "udp")] if alive > 0 else []

        async with upstream(until) as at:
            remote = Remote(at.upstream, Gently(rate=100_000, seconds=0.02, tries=1))
            with pytest.raises(KdnsError, match="it is left alone"):
                await cluster.comparison(remote).run(cluster.asked)
            return len(at.udp)

    assert asyncio.run(compare()) < 100


def test_a_server_that_is_silent_to_some_questions_is_asked_the_others(cluster: Cluster) -> None:
    others = [Asked(names.from_text(f"none-{number}.shop.svc.cluster.local"), Type.A) for number in range(50)]
    assert len(others) > 2 * MOST_SILENT

    async def ask() -> tuple[list[str], str]:
        incumbent = Incumbent(cluster, {str(each): silent for each in others})
        async with upstream(incumbent.over_udp) as at:
            remote = Remote(at.upstream, Gently(rate=100_000, seconds=2.0, tries=1))
            await remote.ask(asked(f"{WEB} A"), Way.UDP)
            replies = await asyncio.gather(*(remote.ask(each, Way.UDP) for each in others))
            return [verdict(each) for each in replies], verdict(await remote.ask(asked(f"{WEB} A"), Way.UDP))

    assert asyncio.run(ask()) == (["no reply"] * len(others), "NOERROR")


def test_the_pace_is_halved_by_silence_and_comes_back(cluster: Cluster) -> None:
    now = [100.0]
    pace = Pace(100, lambda: now[0])
    assert [round(pace.delay(), 4) for _ in range(3)] == [0.01, 0.02, 0.03]
    # Sixteen questions that were under way together are one silence.
    for _ in range(16):
        pace.silent()
    assert (pace.rate, round(pace.delay(), 4)) == (50, 0.05)
    for _ in range(20):
        now[0] += 2.0
        pace.silent()
    assert pace.rate == 1
    for _ in range(1000):
        pace.answered()
    assert pace.rate == 100
    # What was not used is not saved up.
    now[0] = 200.0
    assert round(pace.delay(), 4) == 0.01


def test_a_port_that_nothing_listens_at_is_no_reason_to_ask_more_slowly() -> None:
    async def ask() -> tuple[set[str], float]:
        nobody = Remote(Upstream("127.0.0.1", started.free_port()), QUICK)
        replies = [await nobody.ask(asked(f"{WEB} A"), Way.TCP) for _ in range(MOST_SILENT - 1)]
        with pytest.raises(KdnsError, match="it is left alone"):
            await nobody.ask(asked(f"{WEB} A"), Way.TCP)
        return set(map(verdict, replies)), nobody.pace.rate

    assert asyncio.run(ask()) == ({"no reply"}, QUICK.rate)


ACL = COREFILE.replace("    kubernetes", "    acl {\n        block net 192.0.2.0/24\n    }\n    kubernetes")


@pytest.mark.parametrize(("client", "expected"), [("192.0.2.7", "REFUSED"), ("127.0.0.1", "NOERROR")])
def test_kdns_answers_as_the_client_that_asks_would_be_answered(tmp_path: Path, client: str, expected: str) -> None:
    kdns = InProcess(Cluster(tmp_path / "shop.yaml", directives=ACL).responder, client=client)
    assert verdict(asyncio.run(kdns.ask(asked(f"{WEB} A"), Way.UDP))) == expected


def test_the_client_is_the_address_from_which_the_other_server_is_asked() -> None:
    assert client_of(Upstream("127.0.0.1", 53)) == "127.0.0.1"


@pytest.mark.parametrize(
    ("said", "own"),
    [
        pytest.param(("10.96.0.20",), [b"\x0a\x01\x00\x07"], id="the endpoints behind a ClusterIP"),
        pytest.param(("192.0.2.7",), [b"\xc0\x00\x02\x07"], id="an address of its own"),
        pytest.param((), [], id="nothing"),
    ],
)
def test_kdns_takes_the_place_of_the_server_that_it_is_compared_with(
    cluster: Cluster, said: tuple[str, ...], own: list[bytes]
) -> None:
    name = "ns.dns.cluster.local."
    changes = {f"{name} A": answer(*(f"{name} 5 A {address}" for address in said))}

    async def ask() -> list[bytes]:
        async with upstream(Incumbent(cluster, changes).over_udp) as at:
            return await own_addresses_of(Remote(at.upstream, QUICK), ZONE, cluster.truth.cluster)

    assert asyncio.run(ask()) == own


# What is asked


def test_every_record_of_the_zone_is_asked_for() -> None:
    objects = list(inventory.load([str(ROOT / "zones")]).objects.values())
    questions = set(of_cluster(truth_of(objects).cluster, ZONE, Random(1)))
    for zone in ("cluster.local", "in-addr.arpa", "ip6.arpa"):
        for line in as_zone(objects, zone, 5):
            if not line.startswith("$"):
                owner, _, _, rtype, *_ = line.split()
                if zone == "cluster.local" or rtype == "PTR":
                    assert asked(f"{owner} {rtype}") in questions


EXTERNAL = "ext.shop.svc.cluster.local."
POINTERS = {
    WEB: {"20.0.96.10.in-addr.arpa.", "7.0.1.10.in-addr.arpa."},
    PETS: {"1.0.1.10.in-addr.arpa.", "2.0.1.10.in-addr.arpa."},
    EXTERNAL: set(),
}


@pytest.mark.parametrize("seed", range(5))
def test_a_sample_asks_for_all_names_of_so_many_services(cluster: Cluster, seed: int) -> None:
    known = {str(each) for each in of_cluster(cluster.truth.cluster, ZONE, Random(seed))}
    sample = {str(each) for each in of_cluster(cluster.truth.cluster, ZONE, Random(seed), 1)}
    chosen = [service for service in POINTERS if f"{service} A" in sample]
    assert len(chosen) == 1
    # Some names that don't exist are asked for below each service of a few.
    own = {each for each in known if chosen[0] in each and "kdns-compare" not in each}
    assert own <= sample
    pointers = {f"{name} PTR" for names_of_one in POINTERS.values() for name in names_of_one}
    assert sample & pointers == {f"{name} PTR" for name in POINTERS[chosen[0]]}


def test_a_sample_as_large_as_the_cluster_is_all_of_it(cluster: Cluster) -> None:
    assert of_cluster(cluster.truth.cluster, ZONE, Random(1), 3) == cluster.asked


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("cluster.local", Shape("zone")),
        ("Web.Shop.svc.cluster.LOCAL", Shape("service", (b"web", b"shop", b"svc"))),
        ("_a._b.web.shop.svc.cluster.local", Shape("port", (b"_a", b"_b", b"web", b"shop", b"svc"))),
        ("x.y.10-0-0-1.shop.pod.cluster.local", Shape("pod", (b"x", b"y", b"10-0-0-1", b"shop", b"pod"))),
        ("www.example.com.shop.svc.cluster.local", Shape("port", (b"www", b"example", b"com", b"shop", b"svc"))),
        ("1.2.0.192.in-addr.arpa", Shape("reverse name", (b"1", b"2", b"0", b"192"), b"\xc0\x00\x02\x01")),
        ("2.0.192.in-addr.arpa", Shape("reverse name", (b"2", b"0", b"192"))),
        ("notcluster.local", Shape("name outside")),
        ("local", Shape("name outside")),
    ],
)
def test_a_name_has_a_kind_by_its_form(name: str, shape: Shape) -> None:
    assert shape_of(names.from_text(name), ZONE) == shape


def test_a_file_of_questions_is_read_and_every_mistake_told() -> None:
    assert of_file("q", "# two\n\nexample.org AAAA\n. TYPE65280\n") == [
        Asked(names.from_text("example.org"), Type.AAAA),
        Asked(b"\0", 65280),
    ]
    with pytest.raises(ConfigError) as error:
        of_file("q", "example.org\nexample.org AAAAA\n")
    assert [each.message for each in error.value.problems] == [
        "a question is a name and a type",
        "`AAAAA` is no record type",
    ]


# kdns compare


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Manifests, and the same with another address."""
    made = tmp_path_factory.mktemp("compare")
    (made / "shop.yaml").write_text(MANIFESTS)
    (made / "other.yaml").write_text(MANIFESTS.replace("10.96.0.20", "10.96.0.21"))
    (made / "Corefile").write_text(
        ". {\n    kubernetes cluster.local in-addr.arpa ip6.arpa {\n        ttl 30\n    }\n}\n"
    )
    (made / "no-questions").write_text("# none\n")
    (made / "other-zone").write_text(". {\n    kubernetes k8s.example\n}\n")
    (made / "free.yaml").write_text(MANIFESTS.replace("  clusterIP: 10.96.0.20\n", ""))
    (made / "questions").write_text("web.shop.svc.cluster.local A\n")
    return made


@pytest.fixture(scope="module")
def there(folder: Path) -> Iterator[started.Started]:
    """The other server: kdns on those manifests."""
    with started.started("kdns", "serve", "-i", str(folder / "shop.yaml"), "-l", "127.0.0.1:PORT") as running:
        yield running


def compare(there: started.Started, folder: Path, *arguments: str) -> tuple[int, str, str]:
    line = ["--against", f"127.0.0.1:{there.port}", "--rate", "20000", *arguments]
    done = run("kdns", "compare", *line, cwd=folder)
    return done.returncode, done.stdout.replace(f":{there.port}", ":53"), done.stderr


def test_compare_ends_with_0_where_nothing_differs(there: started.Started, folder: Path) -> None:
    code, out, err = compare(there, folder, "-i", "shop.yaml")
    assert (code, err) == (0, "")
    expected = r"\d+ questions to 127.0.0.1:53 and to kdns, each over UDP, UDP with EDNS and TCP\nno difference\n"
    assert re.fullmatch(expected, out)


DIFFERENT = """\
167 questions to 127.0.0.1:53 and to kdns, each over UDP, UDP with EDNS and TCP

unexplained: 7 differences
  A records that are others (3 × service, 1 × port)
    web.shop.svc.cluster.local. A
      there  web.shop.svc.cluster.local. 5 A 10.96.0.20
      here   web.shop.svc.cluster.local. 5 A 10.96.0.21
    web.shop.svc.cluster.local. ANY
      there  web.shop.svc.cluster.local. 5 A 10.96.0.20
      here   web.shop.svc.cluster.local. 5 A 10.96.0.21
    WEB.SHOP.SVC.CLUSTER.LOCAL. A
      there  WEB.SHOP.SVC.CLUSTER.LOCAL. 5 A 10.96.0.20
      here   WEB.SHOP.SVC.CLUSTER.LOCAL. 5 A 10.96.0.21
    and 1 more
  A records in the additional section that are others (1 × service, 1 × port)
    web.shop.svc.cluster.local. SRV
      there  web.shop.svc.cluster.local. 5 A 10.96.0.20
      here   web.shop.svc.cluster.local. 5 A 10.96.0.21
    _http._tcp.web.shop.svc.cluster.local. SRV
      there  web.shop.svc.cluster.local. 5 A 10.96.0.20
      here   web.shop.svc.cluster.local. 5 A 10.96.0.21
  NXDOMAIN there, NOERROR here (1 × reverse name)
    21.0.96.10.in-addr.arpa. PTR
      there  NXDOMAIN
      here   NOERROR
             21.0.96.10.in-addr.arpa. 5 PTR web.shop.svc.cluster.local.

explained: 1 difference
  A and other types at a reverse name that has a PTR (1 × reverse name)
"""


def test_compare_ends_with_1_where_something_differs_and_shows_it(there: started.Started, folder: Path) -> None:
    assert compare(there, folder, "-i", "other.yaml") == (1, DIFFERENT, "")


def test_compare_shows_a_bar_on_a_terminal_and_another_one_for_the_second_look(
    there: started.Started, folder: Path
) -> None:
    options = ["--against", f"127.0.0.1:{there.port}", "--rate", "20000", "-i", "other.yaml"]
    line = [str(started.COMMANDS / "kdns"), "compare", *options]
    terminal, stderr = pty.openpty()
    with subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=stderr, cwd=folder) as process:
        os.close(stderr)
        shown = b""
        # Once nobody has the other end, Linux has EIO for the one who reads.
        with contextlib.suppress(OSError):
            while piece := os.read(terminal, 65536):
                shown += piece
        os.close(terminal)
    assert process.returncode == 1
    assert b"asking  " in shown
    assert b"asking again  " in shown
    assert b"100%" in shown


def test_compare_as_json_has_every_difference(there: started.Started, folder: Path) -> None:
    code, out, _ = compare(there, folder, "-i", "shop.yaml", "--corefile", "Corefile", "--json")
    assert code == 1
    told = json.loads(out)
    causes = {group["cause"]: group for group in told["unexplained"]}
    first = causes["TTL 5 there, 30 here"]["differences"][0]
    assert set(told) == {"questions", "vanished", "unexplained", "explained"}
    assert set(first) == {"question", "kind", "over", "cause", "there", "here"}


def test_compare_gives_a_corefile_the_addresses_that_the_options_say(there: started.Started, folder: Path) -> None:
    options = ["-i", "free.yaml", "--service-cidr", "10.200.0.0/24", "--corefile", "Corefile", "--json"]
    code, out, _ = compare(there, folder, *options)
    groups = json.loads(out)["unexplained"]
    found = [each for group in groups for each in group["differences"] if each["question"] == f"{WEB} A"]
    assert code == 1
    assert found[0]["here"][0].startswith(f"{WEB} 30 A 10.200.0.")


def test_compare_asks_for_a_sample(there: started.Started, folder: Path) -> None:
    everything, some = (compare(there, folder, "-i", "shop.yaml", *more)[1] for more in ((), ("--sample", "1")))
    assert int(some.split()[0]) < int(everything.split()[0])
    assert some.endswith("no difference\n")


def test_compare_asks_a_kdns_that_runs_what_a_file_says(there: started.Started, folder: Path) -> None:
    code, out, _ = compare(there, folder, "--server", f"127.0.0.1:{there.port}", "--questions", "questions")
    assert code == 0
    assert out == (
        "1 question to 127.0.0.1:53 and to kdns at 127.0.0.1:53, each over UDP, UDP with EDNS and TCP\nno difference\n"
    )


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("--against 127.0.0.1", "give --inventory PATH, --kubeconfig FILE, or --server ADDR with --questions FILE"),
        ("--against 127.0.0.1 -i shop.yaml --kubeconfig k", "give either --inventory PATH or --kubeconfig FILE"),
        ("--against 127.0.0.1 -i shop.yaml --server 127.0.0.1 --corefile Corefile", "--corefile is for a kdns in this"),
        ("--against 127.0.0.1 -i shop.yaml --context c", "--context is one of a --kubeconfig FILE"),
        ("--against 127.0.0.1 --kubeconfig k --service-cidr 10.0.0.0/8", "--service-cidr is for an --inventory"),
        ("--against dns.example -i shop.yaml", "error: `--against dns.example` is no address"),
        ("--against 127.0.0.1 -i none.yaml", "error: there is no file or folder `none.yaml`"),
        ("--against 127.0.0.1 -i shop.yaml --questions none", "error: `--questions none`: no such file or directory"),
        (
            "--against THERE --server THERE --questions no-questions",
            "error: there is no question in `--questions no-questions`",
        ),
        (
            "--against THERE -i shop.yaml --zone k8s.example",
            "error: the other server answers REFUSED to k8s.example. SOA; `--zone` says which zone to compare",
        ),
        (
            "--against THERE -i shop.yaml --corefile other-zone",
            "error: kdns answers REFUSED to cluster.local. SOA; `--zone` says which zone to compare",
        ),
        (
            "--against 127.0.0.1:1 -i shop.yaml",
            "error: no answer to ns.dns.cluster.local. A: udp 127.0.0.1:1: connection refused",
        ),
    ],
)
def test_compare_that_cannot_be_ends_with_2(there: started.Started, folder: Path, line: str, why: str) -> None:
    words = line.replace("THERE", f"127.0.0.1:{there.port}").split()
    done = run("kdns", "compare", *words, cwd=folder)
    assert (done.returncode, done.stdout) == (2, "")
    assert why in done.stderr
