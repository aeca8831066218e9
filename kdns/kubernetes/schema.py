"""Kubernetes services as DNS records.

Pure: a view of the cluster and a name in, an outcome out. Knows nothing of sockets, plugins or the API server.
Law: kubernetes/dns, docs/specification.md 1.1.0, and where it leaves a choice docs/coredns.md. A name exists or not,
once for all types: `NxDomain` says that it doesn't, `NoData` that it does without the type.
"""

from __future__ import annotations

import string
import sys
from collections.abc import Callable, Container, Iterator, Sequence
from random import randrange
from typing import TypeVar

import msgspec

from kdns.addresses import pack_address
from kdns.kubernetes.cluster import (
    SERIAL,
    Cluster,
    EndpointSet,
    Kind,
    Port,
    ServiceModel,
    Tag,
    dashed,
    namespace_tag,
    pod_tag,
    reverse_tag,
    service_tag,
)
from kdns.wire import names
from kdns.wire.records import Record, Type, address, soa, srv, txt

V = TypeVar("V")

SCHEMA_VERSION = b"1.1.0"
# A day's third, as the specification's own example has it: the version changes with the server, not with the cluster.
SCHEMA_VERSION_TTL = 28800
# As CoreDNS has it, however large `ttl` is.
LONGEST_SOA_TTL = 300

_HEX = frozenset(string.hexdigits.lower().encode())
# RFC 8482 §4.1: a question for ANY gets one RRset; these are tried in this order.
_ANY_ORDER = (Type.CNAME, Type.A, Type.AAAA, Type.SRV, Type.TXT, Type.PTR)
_FAMILY = {Type.A: 4, Type.AAAA: 16}


class Found(msgspec.Struct, gc=False):
    """The name has records of the type; `additional` are their addresses where they point at names."""

    answer: list[Record]
    additional: list[Record] = []


class Alias(msgspec.Struct, gc=False):
    """The name stands for another one, outside of this service (ExternalName)."""

    target: bytes


class NoData(msgspec.Struct, gc=False):
    """The name exists, without records of the type."""


class NxDomain(msgspec.Struct, gc=False):
    """There is no such name."""


Outcome = Found | Alias | NoData | NxDomain
# What there is directly below the zone of a cluster.
_BELOW_ZONE = frozenset((b"svc", b"pod", b"dns", b"dns-version"))

NODATA = NoData()
NXDOMAIN = NxDomain()


# The ends of reverse zones as they stand in a message.
_REVERSE = (b"\x07in-addr\x04arpa\x00", b"\x03ip6\x04arpa\x00")


class View(msgspec.Struct):
    """A cluster as a `kubernetes` directive shows it: `ttl` in seconds, `primary` the zone that PTR and NS point into.

    `own` gives the server's own addresses, packed, for the NS records. With `rfc_cname` an ExternalName is an alias for
    questions of every type.
    """

    cluster: Cluster
    primary: bytes
    ttl: int = 5
    pods: str = "disabled"
    ignore_empty: bool = False
    rfc_cname: bool = False
    own: Callable[[], Sequence[bytes]] = tuple


class Question(msgspec.Struct, gc=False):
    """What is asked below a zone: `labels` folded, left of the zone; `owner` and `zone` as the client spelled them.

    `room` is how many bytes a reply may have: of a thousand endpoints no more are told than could be sent, and then
    `varies` says that it might have been others.

    Where there is no such name, `siblings` are the labels that exist in the place of its leftmost one, as long as the
    tags hold: with any other label there the answer is the same. None where that can't be said.
    """

    owner: bytes
    labels: list[bytes]
    zone: bytes
    rtype: int
    tags: set[Tag]
    room: int = 65535
    varies: bool = False
    siblings: Container[bytes] | None = None


def lookup(view: View, question: Question, reverse: bool) -> Outcome:
    """What the zone says to a question; the tags of what that depends on are added to the question's.

    `reverse` tells a zone below in-addr.arpa or ip6.arpa.
    """
    if question.rtype == Type.ANY:
        return _lookup_any(view, question, reverse)
    labels = question.labels
    if not labels:
        return _lookup_apex(view, question, reverse)
    if len(labels) == 1 and labels[0] == b"dns-version":
        if question.rtype != Type.TXT:
            return NODATA
        return Found([txt(question.owner, SCHEMA_VERSION_TTL, SCHEMA_VERSION)])
    if labels[-1] == b"dns":
        return _lookup_ns_dns(view, question, reverse)
    if reverse:
        return _lookup_reverse(view, question)
    if labels[-1] == b"svc":
        return _lookup_service(view, question)
    if labels[-1] == b"pod":
        return _lookup_pod(view, question)
    if labels[-1] not in _BELOW_ZONE:
        question.siblings = _BELOW_ZONE if len(labels) == 1 else ()
    return NXDOMAIN


def authority(view: View, zone: bytes) -> Record:
    """The SOA of a zone, spelled as the client did; a negative answer carries it too (RFC 2308 §3).

    The server and the mailbox of a reverse zone are the primary zone's, as its NS is: names in it resolve nowhere.
    """
    home = view.primary if zone.lower().endswith(_REVERSE) else zone
    # RFC 2308 §5: a resolver keeps a negative answer for min(SOA TTL, SOA minimum).
    ttl = min(view.ttl, LONGEST_SOA_TTL)
    return soa(zone, ttl, b"\x02ns\x03dns" + home, b"\x0ahostmaster" + home, view.cluster.serial, view.ttl)


def reverse_address(labels: Sequence[bytes]) -> bytes | None:
    """The address that a whole reverse name (RFC 1035 §3.5, RFC 3596 §2.5) spells, packed; None for any other name."""
    if len(labels) == 6 and labels[4:] == [b"in-addr", b"arpa"]:
        octets = labels[3::-1]
        # No leading zero, no sign: the one spelling that a resolver makes.
        if all(octet.isdigit() and len(octet) <= 3 and b"%d" % int(octet) == octet for octet in octets):
            numbers = [int(octet) for octet in octets]
            return bytes(numbers) if max(numbers) < 256 else None
        return None
    if len(labels) == 34 and labels[32:] == [b"ip6", b"arpa"]:
        nibbles = labels[31::-1]
        if all(len(nibble) == 1 and nibble[0] in _HEX for nibble in nibbles):
            packed = bytes.fromhex(b"".join(nibbles).decode())
            return packed[12:] if packed.startswith(b"\x00" * 10 + b"\xff\xff") else packed
    return None


def reverse_name(packed: bytes) -> bytes:
    """The name at which the PTR records of an address stand."""
    if len(packed) == 4:
        return names.from_labels([b"%d" % octet for octet in reversed(packed)] + [b"in-addr", b"arpa"])
    return names.from_labels([b"%c" % nibble for nibble in packed.hex().encode()[::-1]] + [b"ip6", b"arpa"])


def _lookup_any(view: View, question: Question, reverse: bool) -> Outcome:
    order = (Type.SOA,) if not question.labels else _ANY_ORDER
    outcome: Outcome = NXDOMAIN
    for rtype in order:
        one = Question(question.owner, question.labels, question.zone, rtype, question.tags, question.room)
        outcome = lookup(view, one, reverse)
        question.varies = one.varies
        if isinstance(outcome, Found):
            return Found([record for record in outcome.answer if record.rtype == rtype])
        if isinstance(outcome, Alias | NxDomain):
            return outcome
    return outcome


# The zone's own names (specification 2.2, and CoreDNS's NS records)


def _lookup_apex(view: View, question: Question, reverse: bool) -> Outcome:
    if question.rtype == Type.SOA:
        question.tags.add(SERIAL)
        return Found([authority(view, question.zone)])
    if question.rtype == Type.NS:
        targets = _name_servers(view, question, reverse)
        answer = [
            Record(question.owner, Type.NS, view.ttl, target) for target in dict.fromkeys(name for name, _ in targets)
        ]
        return Found(answer, [address(name, view.ttl, packed) for name, packed in targets])
    return NODATA


def _lookup_ns_dns(view: View, question: Question, reverse: bool) -> Outcome:
    labels = question.labels
    # `dns` alone exists by RFC 8020; it is NXDOMAIN so that a host of that name in a later search domain is found.
    if labels != [b"ns", b"dns"]:
        return NXDOMAIN
    family = _FAMILY.get(question.rtype)
    packed = [each for _, each in _name_servers(view, question, reverse) if len(each) == family]
    return _addresses(question.owner, view.ttl, packed)


def _name_servers(view: View, question: Question, reverse: bool) -> list[tuple[bytes, bytes]]:
    """Names and addresses of the services that this server is an endpoint of, or `ns.dns` with its own addresses."""
    own = list(view.own())
    # A name below a reverse zone would not resolve.
    zone = view.primary if reverse else question.zone
    found: list[tuple[bytes, bytes]] = []
    for mine in own:
        question.tags.add(reverse_tag(mine))
        for service, ready in view.cluster.endpoints_at(mine):
            question.tags.add(service.tag)
            if service.kind is Kind.CLUSTER_IP:
                found += [(_service_name(service, zone), packed) for packed in service.addresses]
            else:
                name = _endpoint_name(service, ready.label, zone)
                found += [(name, packed) for packed in service.at_label(ready.label).glue[ready.label]]
    return list(dict.fromkeys(found)) or [(b"\x02ns\x03dns" + zone, mine) for mine in own]


# Services (specification 2.3, 2.4, 2.5)


def _lookup_service(view: View, question: Question) -> Outcome:
    labels = question.labels
    if len(labels) == 1:
        return NODATA
    namespace = labels[-2]
    question.tags.add(namespace_tag(namespace))
    if namespace not in view.cluster.namespaces:
        question.siblings = view.cluster.namespaces if len(labels) == 2 else ()
        return NXDOMAIN
    if len(labels) == 2:
        return NODATA
    name, left = labels[-3], labels[:-3]
    question.tags.add(service_tag(namespace, name))
    service = view.cluster.service(namespace, name)
    if service is None:
        question.siblings = () if left else view.cluster.services.get(namespace)
        return NXDOMAIN
    if len(left) > 2:
        return NXDOMAIN
    if service.kind is Kind.EXTERNAL_NAME:
        return _lookup_external(view, question, service, left)
    if service.kind is Kind.HEADLESS:
        # Specification 2.4: a headless service without ready endpoints has no name.
        if not service.has_ready():
            return NXDOMAIN
    elif view.ignore_empty and not service.has_ready():
        return NXDOMAIN
    if len(left) == 1:
        return _lookup_endpoint(view, question, service, left[0])
    protocol_and_port = _port_filter(left)
    if protocol_and_port is None:
        return NXDOMAIN
    if service.kind is Kind.CLUSTER_IP:
        return _lookup_cluster_ip(view, question, service, protocol_and_port)
    endpoints = service.endpoints(protocol_and_port)
    return _lookup_endpoints(view, question, service, endpoints) if endpoints.pairs else NXDOMAIN


def _lookup_external(view: View, question: Question, service: ServiceModel, left: list[bytes]) -> Outcome:
    # Names below one don't exist: search lists would otherwise lead `www.google.com` to a service called `com`.
    if left or not service.external:
        return NXDOMAIN
    if view.rfc_cname or question.rtype in (Type.A, Type.AAAA, Type.CNAME):
        return Alias(service.external)
    return NODATA


def _lookup_cluster_ip(view: View, question: Question, service: ServiceModel, wanted: _PortFilter) -> Outcome:
    rtype = question.rtype
    ports = [port for port in service.ports if _matches(port, wanted)] if wanted else service.ports
    if wanted and not ports:
        return NXDOMAIN
    if rtype in _FAMILY:
        size = _FAMILY[rtype]
        return _addresses(question.owner, view.ttl, [packed for packed in service.addresses if len(packed) == size])
    if rtype != Type.SRV or not ports or not service.addresses:
        return NODATA
    weight = _weight(len(ports) * len(service.addresses))
    target = _service_name(service, question.zone)
    numbers = dict.fromkeys(port.number for port in ports)
    return Found(
        [srv(question.owner, view.ttl, weight, number, target) for number in numbers],
        [address(target, view.ttl, packed) for packed in service.addresses],
    )


def _lookup_endpoint(view: View, question: Question, service: ServiceModel, label: bytes) -> Outcome:
    endpoints = service.at_label(label)
    if endpoints.pairs:
        return _lookup_endpoints(view, question, service, endpoints)
    # RFC 8020: `_tcp.web` exists when `_http._tcp.web` does.
    if label[:1] == b"_" and any(port.name and port.protocol == label[1:] for port in _ports_of(service)):
        return NODATA
    return NXDOMAIN


def _lookup_endpoints(view: View, question: Question, service: ServiceModel, endpoints: EndpointSet) -> Outcome:
    """Records of endpoints: of a headless service, or of one label of any service."""
    rtype = question.rtype
    if rtype in _FAMILY:
        return _addresses(question.owner, view.ttl, _some(endpoints.addresses[_FAMILY[rtype]], question, 16))
    if rtype != Type.SRV or not endpoints.targets:
        return NODATA
    weight = _weight(endpoints.pairs)
    ttl, owner = view.ttl, question.owner
    suffix = _service_name(service, question.zone)
    targets = _some(endpoints.targets, question, 18 + len(suffix))
    if len(suffix) >= names.LONGEST_NAME - names.LONGEST_LABEL:
        # A name that no message can hold is no name (RFC 1035 §2.3.4); only very long zones come to this.
        targets = [target for target in targets if 1 + len(target[0]) + len(suffix) <= names.LONGEST_NAME]
        if not targets:
            return NODATA
    owners = {label: _below(label, suffix) for label, _ in targets}
    return Found(
        [srv(owner, ttl, weight, number, owners[label]) for label, number in targets],
        # Grouped by owner and family, so that a reply that is cut keeps whole RRsets.
        [address(owners[label], ttl, packed) for label in sorted(owners) for packed in endpoints.glue[label]],
    )


def _some(all: Sequence[V], question: Question, least: int) -> Sequence[V]:
    """All, or, where the room is too small at `least` bytes each, as many as overflow it, from a place by chance.

    Otherwise each question for a service of thousands would cost milliseconds to send the same few.
    """
    most = question.room // least + 1
    if len(all) <= most:
        return all
    question.varies = True
    start = randrange(len(all))
    return [*all[start : start + most], *all[: max(0, start + most - len(all))]]


_PortFilter = tuple[bytes, ...]


def _port_filter(left: list[bytes]) -> _PortFilter | None:
    """Name and protocol of `_http._tcp`, whose underscores may be missing; None for a label that is only one."""
    if not left:
        return ()
    port, protocol = (label[1:] if label[:1] == b"_" else label for label in left)
    return (port, protocol) if port and protocol else None


def _matches(port: Port, wanted: _PortFilter) -> bool:
    return port.name == wanted[0] and port.protocol == wanted[1]


def _ports_of(service: ServiceModel) -> Iterator[Port]:
    if service.kind is Kind.CLUSTER_IP:
        yield from service.ports
    for part in service.slices.values():
        if service.kind is Kind.HEADLESS and part.ready:
            yield from part.ports


def _weight(count: int) -> int:
    return max(1, 100 // count)


def _addresses(owner: bytes, ttl: int, packed: Sequence[bytes]) -> Outcome:
    return Found([address(owner, ttl, each) for each in packed]) if packed else NODATA


def _service_name(service: ServiceModel, zone: bytes) -> bytes:
    return _below(service.name, _below(service.namespace, b"\x03svc" + zone))


def _endpoint_name(service: ServiceModel, label: bytes, zone: bytes) -> bytes:
    return _below(label, _service_name(service, zone))


def _below(label: bytes, name: bytes) -> bytes:
    return b"%c%b%b" % (len(label), label, name)


# Pods (specification 1.0, section on pod records; deprecated there, and used everywhere)


def _lookup_pod(view: View, question: Question) -> Outcome:
    labels = question.labels
    if len(labels) == 1:
        return NODATA
    namespace = labels[-2]
    question.tags.add(namespace_tag(namespace))
    if view.pods == "disabled" or namespace not in view.cluster.namespaces:
        return NXDOMAIN
    if len(labels) == 2:
        return NODATA
    packed = dashed_address(labels[-3])
    # Up to two labels in front are ignored: wildcard certificates are made for such names.
    if packed is None or len(labels) > 5:
        return NXDOMAIN
    if view.pods == "verified":
        question.tags.add(pod_tag(namespace, packed))
        if not view.cluster.has_pod(namespace, packed):
            return NXDOMAIN
    if _FAMILY.get(question.rtype) == len(packed):
        return Found([address(question.owner, view.ttl, packed)])
    return NODATA


def dashed_address(label: bytes) -> bytes | None:
    """The packed address that a pod's label spells, such as `10-1-0-7` or `fd00--7`; None for any other label."""
    try:
        text = label.decode("ascii")
    except UnicodeDecodeError:
        return None
    if text.count("-") == 3 and "--" not in text:
        return pack_address(text.replace("-", "."))
    return pack_address(text.replace("-", ":")) if "-" in text else None


# Reverse names (specification 2.3.3, 2.4.3)


def _lookup_reverse(view: View, question: Question) -> Outcome:
    packed = reverse_address(question.labels + [label.lower() for label in names.labels_of(question.zone)])
    if packed is None:
        return NXDOMAIN
    question.tags.add(reverse_tag(packed))
    targets = pointers(view, packed, question.tags)
    if not targets:
        return NXDOMAIN
    if question.rtype != Type.PTR:
        return NODATA
    some = _some(targets, question, 12)
    return Found([Record(question.owner, Type.PTR, view.ttl, target) for target in some])


def pointers(view: View, packed: bytes, tags: set[Tag]) -> list[bytes]:
    """The names of an address: of the service that has it as ClusterIP, else of every ready endpoint that has it.

    Endpoints with a hostname come first, then those of headless services, then by name.
    """
    services = view.cluster.services_at(packed)
    if services:
        tags.update(service.tag for service in services)
        return [_service_name(services[0], view.primary)]
    found = [
        (not ready.named, service.kind is not Kind.HEADLESS, _endpoint_name(service, ready.label, view.primary))
        for service, ready in view.cluster.endpoints_at(packed)
    ]
    return [name for name in dict.fromkeys(name for _, _, name in sorted(found)) if len(name) <= names.LONGEST_NAME]


# The whole zone


def zone_records(view: View, zone: bytes) -> Iterator[Record]:
    """Every record of a forward zone, each once, SOA first: what a transfer or a zone file holds.

    Pod records are those of pods that are known. They are made by `lookup`, so they are what a client is answered.
    """
    seen: set[tuple[bytes, int, bytes]] = set()
    for labels, types in zone_names(view):
        owner = names.from_labels(labels)[:-1] + zone if labels else zone
        for rtype in types:
            outcome = lookup(view, Question(owner, labels, zone, rtype, set(), sys.maxsize), reverse=False)
            records: list[Record] = []
            if isinstance(outcome, Found):
                records = outcome.answer + (outcome.additional if not labels else [])
            elif isinstance(outcome, Alias):
                records = [Record(owner, Type.CNAME, view.ttl, outcome.target)]
            for record in records:
                key = (record.owner.lower(), record.rtype, record.data)
                if key not in seen:
                    seen.add(key)
                    yield record


def reverse_records(view: View, zone: bytes) -> Iterator[Record]:
    """Every PTR of a reverse zone, SOA and NS first."""
    for rtype in (Type.SOA, Type.NS):
        outcome = lookup(view, Question(zone, [], zone, rtype, set()), reverse=True)
        if isinstance(outcome, Found):
            yield from outcome.answer
    suffix = zone.lower()
    for packed in sorted(view.cluster.known_addresses(), key=lambda each: (len(each), each)):
        owner = reverse_name(packed)
        if owner.endswith(suffix):
            for target in pointers(view, packed, set()):
                yield Record(owner, Type.PTR, view.ttl, target)


def zone_names(view: View) -> Iterator[tuple[list[bytes], Sequence[int]]]:
    """Every name of a cluster's zone by its labels left of the zone, with the types that it may have records of."""
    yield [], (Type.SOA, Type.NS)
    yield [b"dns-version"], (Type.TXT,)
    yield [b"ns", b"dns"], (Type.A, Type.AAAA)
    for service in view.cluster.all_services():
        base = [service.name, service.namespace, b"svc"]
        if service.kind is Kind.EXTERNAL_NAME:
            yield base, (Type.CNAME,)
            continue
        yield base, (Type.A, Type.AAAA, Type.SRV)
        candidates = service.candidates()
        ports = service.ports if service.kind is Kind.CLUSTER_IP else [port for _, port in candidates]
        for port in dict.fromkeys(ports):
            if port.name:
                yield [b"_" + port.name, b"_" + port.protocol, *base], (Type.A, Type.AAAA, Type.SRV)
        for label in dict.fromkeys(ready.label for ready, _ in candidates):
            yield [label, *base], (Type.A, Type.AAAA, Type.SRV)
    if view.pods != "disabled":
        for namespace, packed in view.cluster.all_pods():
            yield [dashed(packed), namespace, b"pod"], (Type.A, Type.AAAA)
