"""The model after events: which tags each one returns, the serial, and the law that a kept answer stands on.

The law: whenever a reply changes, a tag that the earlier reply bore is among those that the event let go.
"""

from __future__ import annotations

from collections.abc import Coroutine, Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from kdns.addresses import pack_address
from kdns.chain import Answer, Block, Process, Request, failure, start
from kdns.kubernetes.cluster import SERIAL, Cluster, Tag, address_text, dashed
from kdns.kubernetes.objects import (
    Delete,
    Endpoint,
    EndpointConditions,
    EndpointPort,
    EndpointSlice,
    Event,
    Metadata,
    Namespace,
    Object,
    Pod,
    PodIP,
    PodStatus,
    Put,
    Service,
    ServicePort,
    ServiceSpec,
    Synced,
    TargetReference,
)
from kdns.kubernetes.schema import reverse_name
from kdns.metrics import Metrics
from kdns.plugins.kubernetes import Kubernetes
from kdns.wire import names
from kdns.wire.query import Query
from kdns.wire.records import CLASS_IN, Rcode, Type, type_to_text
from tests.plugins import trial

NOON = 1_700_000_000
HTTP = ServicePort(name="http", port=80)


def namespace(name: str = "shop", **labels: str) -> Put:
    return Put(Namespace(Metadata(name=name, labels=labels or None)))


def service(
    *addresses: str,
    name: str = "web",
    kind: str = "ClusterIP",
    external: str | None = None,
    ports: Iterable[ServicePort] = (HTTP,),
    where: str = "shop",
    **labels: str,
) -> Put:
    spec = ServiceSpec(type=kind, cluster_ips=list(addresses) or None, external_name=external, ports=list(ports))
    return Put(Service(Metadata(name=name, namespace=where, labels=labels or None), spec))


def slice_(
    *endpoints: str | Endpoint,
    of: str | None = "web",
    name: str = "web-1",
    ports: Iterable[EndpointPort] = (EndpointPort(name="http", port=8080),),
    family: str = "IPv4",
    where: str = "shop",
    **labels: str,
) -> Put:
    found = [Endpoint(addresses=[each]) if isinstance(each, str) else each for each in endpoints]
    owner = {"kubernetes.io/service-name": of} if of else {}
    metadata = Metadata(name=name, namespace=where, labels=owner | labels)
    return Put(EndpointSlice(metadata, address_type=family, endpoints=found, ports=list(ports)))


def pod(*addresses: str, name: str = "one", phase: str = "Running", leaving: bool = False, where: str = "shop") -> Put:
    metadata = Metadata(name=name, namespace=where, deletion_timestamp="2026-01-01T00:00:00Z" if leaving else None)
    status = PodStatus(
        phase=phase, pod_ip=addresses[0] if addresses else None, pod_ips=[PodIP(each) for each in addresses]
    )
    return Put(Pod(metadata, status=status))


def delete(put: Put) -> Delete:
    return Delete(type(put.object).__name__, put.object.metadata.namespace, put.object.metadata.name)


def unready(address: str, serving: bool | None = None, terminating: bool | None = None) -> Endpoint:
    return Endpoint([address], EndpointConditions(ready=False, serving=serving, terminating=terminating))


# Tags

WEB: Tag = ("service", b"shop", b"web")
SHOP: Tag = ("namespace", b"shop")


def reverse(text: str) -> Tag:
    return ("reverse", packed(text))


def packed(text: str) -> bytes:
    found = pack_address(text)
    assert found is not None
    return found


EXTERNAL = service(kind="ExternalName", external="www.example.com")
CHANGES: list[tuple[str, list[Put], Event, set[Tag]]] = [
    ("a new namespace", [], namespace(), {SHOP}),
    ("a namespace again", [namespace()], namespace(), set()),
    ("a namespace with another label", [namespace()], namespace("shop", team="a"), set()),
    ("a namespace that goes", [namespace()], delete(namespace()), {SHOP}),
    ("a namespace that wasn't there goes", [], delete(namespace()), set()),
    (
        "a namespace changes what addresses are called in it",
        [service("10.3.0.1"), slice_("172.17.0.1")],
        namespace(),
        {SHOP, reverse("10.3.0.1"), reverse("172.17.0.1")},
    ),
    ("a new service", [], service("10.3.0.1"), {WEB, reverse("10.3.0.1")}),
    ("a service again", [service("10.3.0.1")], service("10.3.0.1"), set()),
    ("a service with another label", [service("10.3.0.1")], service("10.3.0.1", team="a"), set()),
    (
        "a service with another port",
        [service("10.3.0.1")],
        service("10.3.0.1", ports=[ServicePort(name="http", port=81)]),
        {WEB, reverse("10.3.0.1")},
    ),
    (
        "a service whose node port only is another",
        [service("10.3.0.1")],
        service("10.3.0.1", ports=[ServicePort(name="http", port=80, node_port=30080)]),
        set(),
    ),
    ("a service that becomes a NodePort", [service("10.3.0.1")], service("10.3.0.1", kind="NodePort"), set()),
    (
        "a service with another address",
        [service("10.3.0.1")],
        service("10.3.0.2"),
        {WEB, reverse("10.3.0.1"), reverse("10.3.0.2")},
    ),
    ("a service that becomes an alias", [service("10.3.0.1")], EXTERNAL, {WEB, reverse("10.3.0.1")}),
    ("an alias of another name", [EXTERNAL], service(kind="ExternalName", external="other.example.com"), {WEB}),
    ("an alias that becomes a service", [EXTERNAL], service("10.3.0.1"), {WEB, reverse("10.3.0.1")}),
    (
        "a service that becomes headless",
        [service("10.3.0.1"), slice_("172.17.0.1")],
        service("None"),
        {WEB, reverse("10.3.0.1"), reverse("172.17.0.1")},
    ),
    (
        "a service that goes",
        [service("10.3.0.1"), slice_("172.17.0.1")],
        delete(service()),
        {WEB, reverse("10.3.0.1"), reverse("172.17.0.1")},
    ),
    ("a service that wasn't there goes", [], delete(service()), set()),
    (
        "a service that only slices spoke of goes",
        [slice_("172.17.0.1")],
        delete(service()),
        set(),
    ),
    ("a service after its slice", [slice_("172.17.0.1")], service("None"), {WEB, reverse("172.17.0.1")}),
    ("a slice before its service", [], slice_("172.17.0.1"), {WEB, reverse("172.17.0.1")}),
    ("a slice of a service", [service("None")], slice_("172.17.0.1"), {WEB, reverse("172.17.0.1")}),
    ("a slice again", [slice_("172.17.0.1")], slice_("172.17.0.1"), set()),
    ("a slice with another label", [slice_("172.17.0.1")], slice_("172.17.0.1", team="a"), set()),
    (
        "a slice with one address more",
        [slice_("172.17.0.1")],
        slice_("172.17.0.1", "172.17.0.2"),
        {WEB, reverse("172.17.0.1"), reverse("172.17.0.2")},
    ),
    (
        "a slice with another port",
        [slice_("172.17.0.1")],
        slice_("172.17.0.1", ports=[EndpointPort(name="http", port=8081)]),
        {WEB, reverse("172.17.0.1")},
    ),
    (
        "an endpoint that is no longer ready",
        [slice_("172.17.0.1")],
        slice_(unready("172.17.0.1")),
        {WEB, reverse("172.17.0.1")},
    ),
    ("an endpoint more that isn't ready", [slice_("172.17.0.1")], slice_("172.17.0.1", unready("172.17.0.2")), set()),
    (
        "an endpoint that isn't ready and ends",
        [slice_(unready("172.17.0.1", serving=True, terminating=True))],
        slice_(unready("172.17.0.1", serving=False, terminating=True)),
        set(),
    ),
    (
        "an endpoint that gets a hostname",
        [slice_("172.17.0.1")],
        slice_(Endpoint(addresses=["172.17.0.1"], hostname="pet-0")),
        {WEB, reverse("172.17.0.1")},
    ),
    (
        "a slice that moves to another service",
        [slice_("172.17.0.1")],
        slice_("172.17.0.1", of="api"),
        {WEB, ("service", b"shop", b"api"), reverse("172.17.0.1")},
    ),
    (
        "a slice that belongs to nobody any more",
        [slice_("172.17.0.1")],
        slice_("172.17.0.1", of=None),
        {WEB, reverse("172.17.0.1")},
    ),
    ("a slice that belongs to nobody", [], slice_("172.17.0.1", of=None), set()),
    ("a slice of names", [], slice_("www.example.com", family="FQDN"), set()),
    ("a slice that goes", [slice_("172.17.0.1")], delete(slice_()), {WEB, reverse("172.17.0.1")}),
    ("a slice that wasn't there goes", [], delete(slice_()), set()),
    (
        "a pod with two addresses",
        [],
        pod("172.17.0.1", "fd00::1"),
        {("pod", b"shop", packed("172.17.0.1")), ("pod", b"shop", packed("fd00::1"))},
    ),
    ("a pod again", [pod("172.17.0.1")], pod("172.17.0.1"), set()),
    (
        "a pod with another address",
        [pod("172.17.0.1")],
        pod("172.17.0.2"),
        {("pod", b"shop", packed("172.17.0.1")), ("pod", b"shop", packed("172.17.0.2"))},
    ),
    (
        "a pod that ends",
        [pod("172.17.0.1")],
        pod("172.17.0.1", phase="Failed"),
        {("pod", b"shop", packed("172.17.0.1"))},
    ),
    ("a pod that is about to go", [pod("172.17.0.1")], pod("172.17.0.1", leaving=True), set()),
    ("a pod that is about to go when first seen", [], pod("172.17.0.1", leaving=True), set()),
    ("a pod that goes", [pod("172.17.0.1")], delete(pod()), {("pod", b"shop", packed("172.17.0.1"))}),
    ("a second pod with the address", [pod("172.17.0.1")], pod("172.17.0.1", name="two"), set()),
    ("one of two pods with the address goes", [pod("172.17.0.1"), pod("172.17.0.1", name="two")], delete(pod()), set()),
    ("the end of the first listing", [], Synced(), set()),
]


@pytest.mark.parametrize(("before", "event", "tags"), [each[1:] for each in CHANGES], ids=[each[0] for each in CHANGES])
def test_an_event_returns_the_tags_of_what_it_changed(before: list[Put], event: Event, tags: set[Tag]) -> None:
    cluster = Cluster(lambda: NOON)
    for put in before:
        cluster.apply(put)
    serial = cluster.serial
    # The serial is one more tag, of each change.
    assert cluster.apply(event) == (tags | {SERIAL} if tags else set())
    assert (cluster.serial != serial) == bool(tags)


def test_endpoints_that_are_not_ready_are_counted_by_condition_as_they_are_now() -> None:
    cluster = Cluster(lambda: NOON)

    def counted(*endpoints: str | Endpoint) -> tuple[tuple[str, int], ...]:
        cluster.apply(slice_(*endpoints))
        return cluster.services[b"shop"][b"web"].slices["web-1"].not_ready

    left = unready("172.17.0.2"), unready("172.17.0.3", serving=False)
    ending = unready("172.17.0.4", serving=True, terminating=True)
    ended = unready("172.17.0.4", serving=False, terminating=True)
    starting = unready("172.17.0.5", serving=True)
    unknown = Endpoint(["172.17.0.6"], EndpointConditions())
    assert counted("172.17.0.1", unknown) == ()
    assert counted("172.17.0.1", *left, ending) == (("not ready", 2), ("terminating, still serving", 1))
    assert counted("172.17.0.1", *left, ended) == (("not ready", 2), ("terminating", 1))
    assert counted("172.17.0.1", starting) == (("serving, yet not ready", 1),)
    assert counted("172.17.0.1") == ()


def test_a_service_that_is_gone_leaves_nothing_behind() -> None:
    cluster = Cluster(lambda: NOON)
    events = [namespace(), service("10.3.0.1"), slice_("172.17.0.1"), pod("172.17.0.1")]
    for event in events:
        cluster.apply(event)
    for event in events:
        cluster.apply(delete(event))
    assert not cluster.services
    assert not cluster.namespaces
    assert not cluster.known_addresses()
    assert not cluster.all_pods()


def test_an_object_without_a_namespace_is_in_the_default_one_when_it_goes_too() -> None:
    cluster = Cluster(lambda: NOON)
    put = service("10.3.0.1", where="")
    cluster.apply(put)
    assert cluster.service(b"default", b"web") is not None
    cluster.apply(delete(put))
    assert cluster.service(b"default", b"web") is None


# The serial (RFC 1982)


@pytest.mark.parametrize(
    ("start", "now", "following"),
    [
        pytest.param(100, 200, 200, id="the clock's"),
        pytest.param(200, 200, 201, id="one more within a second"),
        pytest.param(300, 200, 301, id="one more when the clock goes back"),
        pytest.param(0xFFFFFFFF, 0xFFFFFFFF, 0, id="zero after the last"),
        pytest.param(0xFFFFFFF0, 0x100000010, 0x10, id="the clock's when that went round"),
        pytest.param(5, 0xFFFFFFFF, 6, id="one more when the clock is from before the round"),
    ],
)
def test_the_serial_grows(start: int, now: int, following: int) -> None:
    time = [start]
    cluster = Cluster(lambda: time[0])
    time[0] = now
    cluster.apply(namespace())
    assert cluster.serial == following


# The law

NAMESPACES = ["a", "b"]
SERVICES = ["x", "y"]
FOUR = ["10.0.0.1", "10.0.0.2", "10.0.0.3"]
SIX = ["fd00::1", "fd00:2::"]
OWN = [packed("10.0.0.1"), packed("fd00::1")]
TARGETS = ["x.a.svc.cluster.local", "y.b.svc.cluster.local", "www.example.com", "10.0.0.9"]
HOSTNAMES = [None, "h"]
PODS = ["p", "q"]
CONFIGURATIONS = [
    "pods verified",
    "pods verified\nignore empty_service\nendpoint_pod_names",
    "pods insecure\nnamespaces a\nfallthrough",
    "pods verified\nlabels team=t",
    "pods verified\nnamespace_labels team=t",
]

# Most of it happens in one place, so that things meet.
names_of_namespaces = st.sampled_from(["a", "a", "a", "b"])
labels = st.sampled_from([{"team": "t"}] * 5 + [{}])
addresses = st.lists(st.sampled_from(FOUR + SIX), min_size=1, max_size=2, unique=True)
service_ports = st.lists(
    st.sampled_from(
        [HTTP, ServicePort(name="dns", port=53, protocol="UDP"), ServicePort(port=80), ServicePort(name="alt", port=80)]
    ),
    min_size=1,
    max_size=2,
    unique_by=lambda port: port.name,
)
slice_ports = st.lists(
    st.sampled_from(
        [EndpointPort(name="http", port=8080), EndpointPort(name="dns", port=53, protocol="UDP"), EndpointPort()]
    ),
    max_size=2,
    unique_by=lambda port: port.name,
)


@st.composite
def services(draw: st.DrawFn) -> Put:
    kind = draw(st.sampled_from(["ClusterIP", "NodePort", "None", "None", "ExternalName"]))
    place = {"name": draw(st.sampled_from(["x", "x", "y"])), "where": draw(names_of_namespaces)} | draw(labels)
    if kind == "ExternalName":
        return service(kind=kind, external=draw(st.sampled_from(TARGETS)), **place)
    given_addresses = ["None"] if kind == "None" else draw(addresses)
    return service(*given_addresses, kind="ClusterIP" if kind == "None" else kind, ports=draw(service_ports), **place)


@st.composite
def endpoints(draw: st.DrawFn) -> Endpoint:
    return Endpoint(
        addresses=draw(addresses),
        conditions=EndpointConditions(ready=draw(st.sampled_from([True, True, True, None, False]))),
        hostname=draw(st.sampled_from(HOSTNAMES)),
        target_ref=TargetReference(kind="Pod", name=draw(st.sampled_from(PODS))),
    )


@st.composite
def slices(draw: st.DrawFn) -> Put:
    return slice_(
        *draw(st.lists(endpoints(), min_size=1, max_size=2)),
        of=draw(st.sampled_from(["x"] * 5 + ["y"] * 3 + [None])),
        name=draw(st.sampled_from(["s", "t"])),
        where=draw(names_of_namespaces),
        ports=draw(slice_ports),
        family=draw(st.sampled_from(["IPv4"] * 6 + ["IPv6", "FQDN"])),
        **draw(labels),
    )


@st.composite
def pods(draw: st.DrawFn) -> Put:
    made = pod(
        *draw(addresses),
        name=draw(st.sampled_from(PODS)),
        where=draw(names_of_namespaces),
        phase=draw(st.sampled_from(["Running", "Running", "Pending", "Succeeded"])),
        leaving=draw(st.sampled_from([False, False, True])),
    )
    # A pod that is about to go keeps what it was seen with, labels included; here it has them always.
    made.object.metadata.labels = {"team": "t"}
    return made


@st.composite
def namespaces(draw: st.DrawFn) -> Put:
    return namespace(draw(names_of_namespaces), **draw(labels))


@st.composite
def variations(draw: st.DrawFn, of: Put) -> Put:
    """The same object with something of another one: what an update mostly is."""
    match of.object:
        case Namespace():
            return namespace(of.object.metadata.name, **draw(labels))
        case Service() as thing:
            other = draw(services()).object
            field = draw(st.sampled_from(["type", "cluster_ips", "external_name", "ports"]))
            changed = {"spec": replace(thing.spec, **{field: getattr(other.spec, field)})}
        case EndpointSlice() as thing:
            other = draw(slices()).object
            field = draw(st.sampled_from(["endpoints", "ports", "address_type", "labels"]))
            if field == "labels":
                changed = {"metadata": replace(thing.metadata, labels=other.metadata.labels)}
            else:
                changed = {field: getattr(other, field)}
        case Pod() as thing:
            changed = {"status": draw(pods()).object.status}
    return Put(replace(thing, **changed))


puts = st.one_of(namespaces(), services(), services(), slices(), slices(), slices(), pods())
START = [
    namespace("a", team="t"),
    service("None", name="x", where="a", team="t"),
    slice_("10.0.0.1", "10.0.0.2", of="x", name="s", where="a", team="t"),
]


@st.composite
def histories(draw: st.DrawFn, longest: int) -> list[Event]:
    """Objects come, change and go."""
    met = list(START)
    found: list[Event] = []
    for _ in range(draw(st.integers(8, longest))):
        what = draw(st.sampled_from(["new", "new", "new", "other", "other", "other", "gone"]))
        put = draw(puts) if what == "new" else draw(st.sampled_from(met))
        if what == "other":
            put = draw(variations(put))
        if what == "gone":
            found.append(delete(put))
        else:
            met.append(put)
            found.append(put)
    return found


class Remembering(Process):
    """A process that remembers what it was told to forget."""

    forgotten: set[Tag]

    def forget(self, tags: set[Tag]) -> None:
        self.forgotten |= tags


class Nobody:
    """A server without any other zone."""

    async def resolve(self, request: Request) -> Answer:
        return failure("", rcode=Rcode.REFUSED)


async def nobody(request: Request) -> Answer:
    return failure("", rcode=Rcode.REFUSED)


class Asked:
    """A `kubernetes` block, and what it answers to every question of this small world."""

    def __init__(self, options: str) -> None:
        self.process = Remembering(Metrics(), lambda: NOON)
        self.process.forgotten = set()
        self.process.addresses = OWN
        within = Block(self.process, [names.from_text(".")], 53)
        text = f"kubernetes cluster.local in-addr.arpa ip6.arpa {{\n{options}\n}}"
        self.plugin = trial.plugin(Kubernetes, text, within)

    def apply(self, *events: Event) -> set[Tag]:
        self.process.forgotten = set()
        self.plugin.apply(events)
        return self.process.forgotten

    def replies(self) -> dict[tuple[bytes, int], tuple[object, set[Tag]]]:
        """For each question its reply, without the serials of SOA records, and the reply's tags."""
        return {question: self.reply(*question) for question in QUESTIONS}

    def reply(self, name: bytes, rtype: int) -> tuple[object, set[Tag]]:
        query = Query(1, 0, name, names.labels_of(name), rtype, CLASS_IN)
        request = Request(query, Nobody(), now=NOON)
        said = start(self.handle(request), lambda outcome: None)
        assert isinstance(said, Answer)
        assert request.keep
        # A negative reply's serial may be old: nobody compares it, and every change would let go all such replies.
        return (said.rcode, said.flags, said.answer, said.additional, bool(said.authority)), request.tags

    def handle(self, request: Request) -> Coroutine[Any, Any, Answer]:
        return self.plugin.handle(request, nobody)


def _questions() -> list[tuple[bytes, int]]:
    found: list[tuple[str, Iterable[int]]] = [
        ("cluster.local", (Type.NS, Type.SOA, Type.ANY)),
        ("in-addr.arpa", (Type.NS,)),
        ("ns.dns.cluster.local", (Type.A, Type.AAAA)),
        ("svc.cluster.local", (Type.A,)),
    ]
    dashes = [dashed(packed(each)).decode() for each in FOUR + SIX]
    for space in NAMESPACES:
        found.append((f"{space}.svc.cluster.local", (Type.A,)))
        found += [(f"{each}.{space}.pod.cluster.local", (Type.A, Type.AAAA)) for each in dashes]
        for name in SERVICES:
            base = f"{name}.{space}.svc.cluster.local"
            found.append((base, (Type.A, Type.AAAA, Type.SRV, Type.CNAME, Type.TXT, Type.ANY)))
            found += [
                (f"{each}.{base}", (Type.A, Type.SRV)) for each in ("_tcp", "_http._tcp", "_dns._udp", "_alt._tcp")
            ]
            found += [(f"{each}.{base}", (Type.A, Type.AAAA, Type.SRV)) for each in [*dashes, "h", *PODS]]
    asked = [(names.from_text(name), int(rtype)) for name, types in found for rtype in types]
    for each in FOUR + SIX:
        asked += [(reverse_name(packed(each)), Type.PTR), (reverse_name(packed(each)), Type.A)]
    return asked


QUESTIONS = _questions()
REMEMBERED = [
    (names.from_text(f"{left}.{name}.{space}.svc.cluster.local"), int(Type.SRV))
    for left in ("_http._tcp", "h")
    for name in SERVICES
    for space in NAMESPACES
]


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(CONFIGURATIONS), histories(15))
def test_whatever_happens_a_reply_that_changes_bore_a_tag_that_was_let_go(options: str, happened: list[Event]) -> None:
    asked = Asked(options)
    asked.apply(*START, Synced())
    before = asked.replies()
    for event in happened:
        tags = asked.apply(event)
        after = asked.replies()
        for question, (reply, bore) in before.items():
            if after[question][0] != reply:
                assert bore & tags, f"{_spelled(question)}: {reply} -> {after[question][0]}; bore {bore}, let go {tags}"
        before = after


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(CONFIGURATIONS), histories(25))
def test_whatever_happened_the_model_answers_as_one_that_saw_only_the_end(options: str, happened: list[Event]) -> None:
    asked = Asked(options)
    asked.apply(Synced())
    left: dict[Delete, Put] = {}
    for event in [*START, *happened]:
        # The model keeps what it computed for a question, and must not keep it too long.
        for question in REMEMBERED:
            asked.reply(*question)
        asked.apply(event)
        if isinstance(event, Delete):
            left.pop(event, None)
        elif isinstance(event, Put) and not _only_leaving(event.object):
            left[delete(event)] = event
    for order in (list(left.values()), list(left.values())[::-1]):
        fresh = Asked(options)
        fresh.apply(*order, Synced())
        fresh.plugin.cluster.serial = asked.plugin.cluster.serial
        got, expected = asked.replies(), fresh.replies()
        for question in QUESTIONS:
            assert got[question] == expected[question], _spelled(question)


def _only_leaving(what: Object) -> bool:
    """Whether it is news that changes nothing: a pod that is about to go keeps its name until then."""
    return isinstance(what, Pod) and what.metadata.deletion_timestamp is not None and not what.finished


def _spelled(question: tuple[bytes, int]) -> str:
    return f"{names.to_text(question[0])} {type_to_text(question[1])}"


@pytest.mark.parametrize("text", FOUR + SIX + ["::", "::5", "fd00:17::", "2001:db8::1:0:0:1"])
def test_a_dashed_address_is_a_label_that_says_the_address(text: str) -> None:
    label = dashed(packed(text)).decode()
    assert address_text(packed(text)) == text
    assert not label.endswith("-")
    assert pack_address(label.replace("-", "." if "." in text else ":")) == packed(text)


def test_of_several_services_with_one_cluster_ip_the_first_by_name_comes_first() -> None:
    cluster = Cluster(lambda: 0.0)
    cluster.apply(Put(Namespace(Metadata("shop"))))
    for name in ("twin", "older"):
        cluster.apply(Put(Service(Metadata(name, "shop"), ServiceSpec(cluster_ip="10.3.0.6"))))
    found = cluster.services_at(bytes((10, 3, 0, 6)))
    assert [each.name for each in found] == [b"older", b"twin"]
