"""The differences from CoreDNS that are meant: for each that two replies can show, how to know it.

`row` is the first column of its row in docs/coredns.md, where the reason stands. A rule is as narrow as it can be: a
difference of the same name that looks otherwise is news.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

import msgspec

from kdns.addresses import pack_address
from kdns.compare.differences import Aspect, Difference, NoReply, Pair, Reply, Way
from kdns.kubernetes.cluster import Cluster, Kind, ServiceModel, dashed
from kdns.kubernetes.objects import EndpointSlice, Object, Pod, Put, Synced
from kdns.kubernetes.schema import SCHEMA_VERSION_TTL
from kdns.wire import names
from kdns.wire.message import Message
from kdns.wire.records import Type


class Truth(msgspec.Struct, frozen=True):
    """What the rules know of the cluster: its model, and of its pods some addresses, packed.

    `dotted` are those of endpoints whose pods' names are no labels, `second` those that are the first of no pod of
    their namespace. `fqdn` are the services, by namespace and name, that have EndpointSlices of that type. `hidden`
    are the namespaces that the configuration doesn't show.
    """

    cluster: Cluster
    dotted: frozenset[bytes] = frozenset()
    second: frozenset[tuple[bytes, bytes]] = frozenset()
    fqdn: frozenset[tuple[bytes, bytes]] = frozenset()
    hidden: frozenset[bytes] = frozenset()


Rule = Callable[[Pair, Difference, Truth], bool]

_EXISTS = ("NXDOMAIN", "NODATA")
_ADDRESSES = (Type.A, Type.AAAA)
_APEX_KINDS = ("zone", "subtree", "namespace", "name server")
_OWN_NAMES = ("zone", "name server")
_RECORDS = (Aspect.ANSWER, Aspect.ADDITIONAL)
# What goes upstream, where it goes there at all.
_FORWARDED = ("name outside", "reverse name")


class Known(msgspec.Struct, frozen=True):
    """A row of docs/coredns.md, and what shows that a difference is this one."""

    row: str
    explains: Rule


def truth_of(objects: Iterable[Object]) -> Truth:
    """The model of these objects, as the rules need it."""
    cluster = Cluster(time.time)
    dotted: set[bytes] = set()
    first: set[tuple[bytes, bytes]] = set()
    others: set[tuple[bytes, bytes]] = set()
    fqdn: set[tuple[bytes, bytes]] = set()
    for each in objects:
        cluster.apply(Put(each))
        if isinstance(each, EndpointSlice):
            dotted.update(_dotted(each))
            if each.address_type == "FQDN" and each.service:
                fqdn.add((each.metadata.namespace.encode(), each.service.encode()))
        elif isinstance(each, Pod):
            namespace, addresses = each.metadata.namespace.encode(), _packed(each.addresses)
            first.update((namespace, address) for address in addresses[:1])
            others.update((namespace, address) for address in addresses[1:])
    cluster.apply(Synced())
    return Truth(cluster, frozenset(dotted), frozenset(others - first), frozenset(fqdn))


def _dotted(part: EndpointSlice) -> Iterator[bytes]:
    for endpoint in part.endpoints or ():
        if endpoint.target_ref is not None and "." in endpoint.target_ref.name:
            yield from _packed(endpoint.addresses or ())


def _packed(texts: Iterable[str]) -> list[bytes]:
    return [packed for packed in map(pack_address, texts) if packed is not None]


def explanation(pair: Pair, difference: Difference, truth: Truth) -> Known | None:
    """The row that explains a difference, if one does."""
    return next((known for known in KNOWN if known.explains(pair, difference, truth)), None)


def _verdicts(before: str, after: str, fits: Callable[[Pair], bool]) -> Rule:
    """What is known by both verdicts and a question of this form."""
    return lambda pair, difference, truth: (
        difference.aspect is Aspect.VERDICT and pair.verdicts == (before, after) and fits(pair)
    )


def _name_server(fits: Callable[[Pair], bool]) -> Rule:
    def is_server(pair: Pair) -> bool:
        if pair.shape.kind == "name server":
            return pair.asked.rtype in _ADDRESSES
        is_apex = pair.shape.kind == "zone" or (pair.shape.kind == "reverse name" and not pair.shape.left)
        return is_apex and pair.asked.rtype == Type.NS

    return _verdicts("NODATA", "NOERROR", lambda pair: is_server(pair) and fits(pair))


def _is_port_of_underscore(pair: Pair) -> bool:
    return pair.shape.kind == "port" and b"_" in pair.shape.left[:2]


def _is_protocol(pair: Pair) -> bool:
    return pair.shape.kind == "endpoint" and pair.shape.left[0].startswith(b"_")


def _version(pair: Pair, difference: Difference, truth: Truth) -> bool:
    # ANY finds what there is, and that is the TXT.
    is_other = pair.shape.kind == "version" and pair.asked.rtype != Type.TXT
    return is_other and pair.verdicts in (_EXISTS, ("NXDOMAIN", "NOERROR"))


def _capped_version(pair: Pair, difference: Difference, truth: Truth) -> bool:
    """The one record of a cluster that lives for hours, behind a `cache` that lets nothing live for longer than it."""
    there, here = difference.ttls
    is_version = pair.shape.kind == "version" and difference.aspect is Aspect.TTL
    return is_version and there < here == SCHEMA_VERSION_TTL


def _kept_reply(pair: Pair, difference: Difference, truth: Truth) -> bool:
    is_outside = pair.shape.kind in _FORWARDED and pair.shape.address not in truth.cluster.known_addresses()
    return difference.cause == "AA set only there" and (is_outside or _is_denied_by_others(pair))


def _capped_reply(pair: Pair, difference: Difference, truth: Truth) -> bool:
    """A denial of somebody else, whose TTL a `cache` has cut that wasn't to keep it."""
    there, here = difference.ttls
    return difference.aspect is Aspect.TTL and there < here and _is_denied_by_others(pair)


def _is_denied_by_others(pair: Pair) -> bool:
    """Whether the SOA is none of the zones that the name lies in, as where a name of the cluster was forwarded."""
    if not isinstance(pair.there, Message):
        return False
    owners = [each.owner.lower() for each in pair.there.authority if each.rtype == Type.SOA]
    return any(not pair.asked.name.lower().endswith(owner) for owner in owners)


def _other_spelling(pair: Pair, difference: Difference, truth: Truth) -> bool:
    if pair.shape.kind != "pod" or pair.verdicts not in (("NXDOMAIN", "NOERROR"), _EXISTS):
        return False
    namespace, label = pair.shape.left[-2], pair.shape.left[-3]
    packed = pack_address(label.decode(errors="replace").replace("-", ":"))
    return packed is not None and dashed(packed) != label and truth.cluster.has_pod(namespace, packed)


def _link_local(pair: Pair, difference: Difference, truth: Truth) -> bool:
    if pair.shape.kind not in _OWN_NAMES or difference.aspect not in _RECORDS:
        return False
    if isinstance(pair.there, NoReply) or isinstance(pair.here, NoReply):
        return False
    there = {each.data for each in (*pair.there.answer, *pair.there.additional) if each.rtype in _ADDRESSES}
    here = {each.data for each in (*pair.here.answer, *pair.here.additional) if each.rtype in _ADDRESSES}
    return there > here and all(map(is_link_local, there - here))


def is_link_local(packed: bytes) -> bool:
    """Whether it is an address of fe80::/10 (RFC 4291 §2.5.6), which kdns never gives as its own."""
    return len(packed) == 16 and packed[0] == 0xFE and packed[1] & 0xC0 == 0x80


def _hidden_server(pair: Pair, difference: Difference, truth: Truth) -> bool:
    """Services in hidden namespaces there, the server itself here."""
    if pair.shape.kind not in _OWN_NAMES or difference.aspect not in _RECORDS or isinstance(pair.there, NoReply):
        return False
    records = (*pair.there.answer, *pair.there.additional)
    addresses = [each.data for each in records if each.rtype in _ADDRESSES]
    return any(_is_hidden(address, truth) for address in addresses)


def _hidden_pointer(pair: Pair, difference: Difference, truth: Truth) -> bool:
    packed = pair.shape.address
    is_gone = pair.asked.rtype == Type.PTR and pair.verdicts == ("NOERROR", "NXDOMAIN")
    return is_gone and packed is not None and _is_hidden(packed, truth)


def _is_hidden(packed: bytes, truth: Truth) -> bool:
    """Whether all services of an address lie in namespaces that aren't shown."""
    services = truth.cluster.services_at(packed) or [service for service, _ in truth.cluster.endpoints_at(packed)]
    return bool(services) and all(service.namespace in truth.hidden for service in services)


def _translated(pair: Pair, difference: Difference, truth: Truth) -> bool:
    """IPv6 addresses that end in IPv4 ones of the cluster, as a prefix of 96 bits makes them (RFC 6052 §2.2)."""
    if difference.cause != "AA set only here" or not isinstance(pair.here, Message) or pair.asked.rtype != Type.AAAA:
        return False
    service = _service(pair, truth.cluster)
    if service is not None and service.kind is Kind.EXTERNAL_NAME and _is_lone_alias(pair.here):
        # Nothing was found where it leads.
        return True
    ends = [each.data[12:] for each in pair.here.answer if each.rtype == Type.AAAA]
    known = truth.cluster.known_addresses()
    return bool(ends) and all(each in known or dashed(each) in pair.shape.left for each in ends)


def _unasked_opt(pair: Pair, difference: Difference, truth: Truth) -> bool:
    return difference.cause == "an OPT record only there" and pair.way is Way.UDP


def _lone_alias(pair: Pair, difference: Difference, truth: Truth) -> bool:
    """The alias of a search list to a name without records of the type, and the denial of its zone."""
    if pair.verdicts != ("NODATA", "NOERROR") or pair.shape.kind == "name outside":
        return False
    return _is_lone_alias(pair.here) and _service(pair, truth.cluster) is None


def _other_than_pointer(pair: Pair, difference: Difference, truth: Truth) -> bool:
    """No such name there, or with `fallthrough` whatever an upstream says, where here it has a PTR."""
    packed = pair.shape.address
    if packed is None or pair.asked.rtype == Type.PTR or packed not in truth.cluster.known_addresses():
        return False
    before, after = pair.verdicts
    return after == "NODATA" and before in ("NXDOMAIN", "SERVFAIL", "REFUSED")


def _names_of_reverse_zone(pair: Pair, difference: Difference, truth: Truth) -> bool:
    """Name servers below a reverse zone there: as the answer at its apex, elsewhere in the SOA of a negative one."""
    if pair.shape.kind != "reverse name" or difference.aspect not in (Aspect.SOA, *_RECORDS):
        return False
    if not isinstance(pair.there, Message):
        return False
    # The name server stands first in the data of both.
    servers = [each.data for each in (*pair.there.answer, *pair.there.authority) if each.rtype in (Type.NS, Type.SOA)]
    return any(b"\x04arpa\x00" in data for data in servers)


def _several_services(pair: Pair, difference: Difference, truth: Truth) -> bool:
    packed = pair.shape.address
    if difference.aspect is not Aspect.ANSWER or packed is None or not isinstance(pair.there, Message):
        return False
    services = truth.cluster.services_at(packed)
    begins = [[service.name, service.namespace, b"svc"] for service in services]
    targets = [names.labels_of(each.data.lower())[:3] for each in pair.there.answer if each.rtype == Type.PTR]
    return len(services) > 1 and bool(targets) and all(target in begins for target in targets)


def _second_address_of_pod(pair: Pair, difference: Difference, truth: Truth) -> bool:
    if pair.shape.kind != "pod" or pair.verdicts not in (("NXDOMAIN", "NOERROR"), _EXISTS):
        return False
    namespace, label = pair.shape.left[-2], pair.shape.left[-3]
    return any(space == namespace and dashed(packed) == label for space, packed in truth.second)


def _dotted_pod(pair: Pair, difference: Difference, truth: Truth) -> bool:
    """The endpoint of such a pod, by its name or its address, or the records of its service that name it."""
    if difference.aspect not in (Aspect.VERDICT, *_RECORDS):
        return False
    if pair.shape.address is not None:
        return pair.shape.address in truth.dotted
    if pair.shape.kind == "endpoint":
        return pair.shape.left[0] in map(dashed, truth.dotted)
    service = _service(pair, truth.cluster)
    if service is None or pair.asked.rtype != Type.SRV or difference.aspect is Aspect.VERDICT:
        return False
    return any(address in truth.dotted for part in service.slices.values() for address in part.addresses)


def _fqdn_slice(pair: Pair, difference: Difference, truth: Truth) -> bool:
    service = _service(pair, truth.cluster)
    if service is None or (service.namespace, service.name) not in truth.fqdn or not isinstance(pair.there, Message):
        return False
    if any(each.rtype == Type.CNAME for each in pair.there.answer):
        return difference.aspect in (Aspect.VERDICT, Aspect.ANSWER)
    # Without other slices a headless service has no ready endpoint here, and then no name.
    is_empty = service.kind is Kind.HEADLESS and not service.has_ready()
    return is_empty and pair.verdicts == ("NODATA", "NXDOMAIN")


def _slice_of_nobody(pair: Pair, difference: Difference, truth: Truth) -> bool:
    """A PTR for an address that only slices have which no service owns; CoreDNS may fail to write such a reply."""
    packed = pair.shape.address
    if packed is None or pair.asked.rtype != Type.PTR or pair.verdicts[0] not in ("NOERROR", "no reply", "SERVFAIL"):
        return False
    cluster = truth.cluster
    is_owned = cluster.endpoints_at(packed) or cluster.services_at(packed)
    return packed in cluster.known_addresses() and not is_owned and difference.aspect is Aspect.VERDICT


def _failing_alias(pair: Pair, difference: Difference, truth: Truth) -> bool:
    service = _service(pair, truth.cluster)
    is_external = service is not None and service.kind is Kind.EXTERNAL_NAME
    return is_external and pair.verdicts == ("NOERROR", "SERVFAIL") and _is_lone_alias(pair.there)


def _failing_target(pair: Pair, difference: Difference, truth: Truth) -> bool:
    is_outside = pair.shape.kind == "name outside"
    return is_outside and pair.verdicts == ("NOERROR", "SERVFAIL") and _is_lone_alias(pair.there)


def _is_lone_alias(reply: Reply) -> bool:
    return isinstance(reply, Message) and all(each.rtype == Type.CNAME for each in reply.answer)


def _cut_additional(pair: Pair, difference: Difference, truth: Truth) -> bool:
    """TC there, and here a whole answer without some of its additional records."""
    is_tc = difference.aspect is Aspect.FLAG and "TC set only there" in difference.cause
    return is_tc and pair.asked.rtype in (Type.SRV, Type.NS, Type.MX, Type.ANY)


def _service(pair: Pair, cluster: Cluster) -> ServiceModel | None:
    left = pair.shape.left
    if len(left) < 3 or left[-1] != b"svc":
        return None
    return cluster.service(left[-2], left[-3])


KNOWN = (
    Known("`_._tcp.web.shop.svc…`, a port of `_` alone", _verdicts("NOERROR", "NXDOMAIN", _is_port_of_underscore)),
    Known("`_tcp.web.shop.svc…` where `_http._tcp.web.shop.svc…` exists", _verdicts(*_EXISTS, _is_protocol)),
    Known("`dns-version.cluster.local`, another type than TXT", _version),
    Known("`cache` in the chain", _capped_version),
    Known(
        "TXT at `cluster.local`, `svc`, `pod`, a namespace, `ns.dns`",
        _verdicts(*_EXISTS, lambda pair: pair.shape.kind in _APEX_KINDS and pair.asked.rtype == Type.TXT),
    ),
    Known(
        "SOA of a name that doesn't exist", _verdicts("NODATA", "NXDOMAIN", lambda pair: pair.asked.rtype == Type.SOA)
    ),
    Known(
        "NS of the zone and `ns.dns`, in mixed case",
        _name_server(lambda pair: pair.asked.name != pair.asked.name.lower()),
    ),
    Known(
        "NS of the zone and `ns.dns`, from a server with `bind`, or at loopback alone", _name_server(lambda pair: True)
    ),
    Known(
        "`ns.dns.cluster.local.cluster.local`",
        lambda pair, difference, truth: (
            pair.shape.left[:2] == (b"ns", b"dns")
            and len(pair.shape.left) > 2
            and pair.verdicts in (("NOERROR", "NXDOMAIN"), ("NODATA", "NXDOMAIN"))
        ),
    ),
    Known(
        "`svc.in-addr.arpa` and `pod.in-addr.arpa`, and so in each reverse zone",
        _verdicts(
            "NODATA",
            "NXDOMAIN",
            lambda pair: pair.shape.kind == "reverse name" and pair.shape.left in ((b"svc",), (b"pod",)),
        ),
    ),
    Known("A and other types at a reverse name that has a PTR", _other_than_pointer),
    Known("the name server of a reverse zone, in its NS and SOA, and the SOA's mailbox", _names_of_reverse_zone),
    Known("PTR of an address that several services have", _several_services),
    Known("PTR of an address in a namespace that `namespace_labels` hides", _hidden_pointer),
    Known(
        "NS of the zone and `ns.dns`, where the Service of the server is in a namespace that isn't shown",
        _hidden_server,
    ),
    Known("the server's own link-local addresses, as those of `ns.dns`", _link_local),
    Known("an IPv6 address spelled in another way", _other_spelling),
    Known(
        "`autopath`, the first domain of a list itself",
        _verdicts("SERVFAIL", "NODATA", lambda pair: pair.shape.kind == "namespace"),
    ),
    Known("`autopath`, a name that exists without the type", _lone_alias),
    Known("AA where `dns64` has looked for IPv4 addresses", _translated),
    Known("the extended error of `acl`, for a query without EDNS", _unasked_opt),
    Known("AA of a reply that is kept", _kept_reply),
    Known("TTLs of what `cache` is told not to keep (`disable`)", _capped_reply),
    Known("`pods verified` and a pod's second address", _second_address_of_pod),
    Known(
        "SRV of a pod's name",
        _verdicts(
            "NOERROR", "NODATA", lambda pair: pair.shape.kind == "pod" and pair.asked.rtype in (Type.SRV, Type.ANY)
        ),
    ),
    Known("`endpoint_pod_names` and a pod name with dots", _dotted_pod),
    Known("EndpointSlices of type FQDN", _fqdn_slice),
    Known("EndpointSlices without a service, or of one that isn't there", _slice_of_nobody),
    Known("ANY", _verdicts("NODATA", "NOERROR", lambda pair: pair.asked.rtype == Type.ANY)),
    Known("an ExternalName whose target fails upstream (SERVFAIL, REFUSED, no reply)", _failing_alias),
    Known(
        "an alias that `template` makes or `rewrite cname` leads elsewhere, "
        "whose target fails (SERVFAIL, REFUSED, no reply)",
        _failing_target,
    ),
    Known(
        "a name that no directive claims",
        _verdicts("SERVFAIL", "REFUSED", lambda pair: pair.shape.kind in ("name outside", "reverse name")),
    ),
    Known("additional records that don't fit", _cut_additional),
)
