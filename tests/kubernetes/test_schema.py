"""Parts of the schema that no single question shows: addresses as reverse names, weights, and the zone as a whole."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdns.addresses import pack_address
from kdns.kubernetes.cluster import Cluster
from kdns.kubernetes.objects import (
    Endpoint,
    EndpointPort,
    EndpointSlice,
    Event,
    Metadata,
    Namespace,
    Put,
    Service,
    ServiceSpec,
    Synced,
)
from kdns.kubernetes.schema import (
    NODATA,
    NXDOMAIN,
    Found,
    Question,
    View,
    authority,
    lookup,
    pointers,
    reverse_address,
    reverse_name,
    reverse_records,
    zone_records,
)
from kdns.wire import names
from kdns.wire.records import Record, Type, to_text

ZONE = names.from_text("cluster.local")
NOON = 1_700_000_000


def view(*events: Event) -> View:
    cluster = Cluster(lambda: NOON)
    for event in events:
        cluster.apply(event)
    return View(cluster, ZONE, own=lambda: [b"\x7f\x00\x00\x01"])


def headless(endpoints: int) -> View:
    """A cluster of one headless service with so many endpoints."""
    metadata = Metadata(name="hl-1", namespace="ns1", labels={"kubernetes.io/service-name": "hl"})
    found = [Endpoint(addresses=[f"10.{number >> 8}.{number & 255}.1"]) for number in range(endpoints)]
    return view(
        Put(Namespace(Metadata(name="ns1"))),
        Put(Service(Metadata(name="hl", namespace="ns1"), ServiceSpec(cluster_ips=["None"]))),
        Put(EndpointSlice(metadata, "IPv4", found, [EndpointPort("http", "TCP", 80)])),
        Synced(),
    )


def ask(shown: View, left: str, rtype: int) -> object:
    labels = [label.encode() for label in left.split(".")] if left else []
    owner = names.from_labels(labels)[:-1] + ZONE
    return lookup(shown, Question(owner, labels, ZONE, rtype, set()), reverse=False)


@given(st.binary(min_size=4, max_size=4) | st.binary(min_size=16, max_size=16))
def test_a_reverse_name_says_its_address(packed: bytes) -> None:
    mapped = packed.startswith(b"\x00" * 10 + b"\xff\xff")
    assert reverse_address(names.labels_of(reverse_name(packed))) == (packed[12:] if mapped else packed)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("0.3.10.in-addr.arpa", id="an octet is missing"),
        pytest.param("1.1.0.3.10.in-addr.arpa", id="an octet too many"),
        pytest.param("01.0.3.10.in-addr.arpa", id="a leading zero"),
        pytest.param("256.0.3.10.in-addr.arpa", id="more than an octet"),
        pytest.param("+1.0.3.10.in-addr.arpa", id="a sign"),
        pytest.param("a.0.3.10.in-addr.arpa", id="a letter"),
        pytest.param("1.0.3.10.in-addr.example", id="another tree"),
        pytest.param(".".join(["0"] * 31) + ".ip6.arpa", id="a nibble is missing"),
        pytest.param(".".join(["0"] * 31) + ".g.ip6.arpa", id="no nibble"),
        pytest.param(".".join(["0"] * 31) + ".00.ip6.arpa", id="two nibbles in one label"),
    ],
)
def test_any_other_name_is_no_address(text: str) -> None:
    assert reverse_address(names.labels_of(names.from_text(text))) is None


def test_an_ipv4_address_within_ipv6_is_the_ipv4_address() -> None:
    nibbles = "1.0.0.0.0.0.a.0.f.f.f.f" + ".0" * 20
    assert reverse_address(names.labels_of(names.from_text(f"{nibbles}.ip6.arpa"))) == pack_address("10.0.0.1")


@pytest.mark.parametrize(
    ("endpoints", "weight"), [(1, 100), (2, 50), (3, 33), (6, 16), (99, 1), (100, 1), (101, 1), (400, 1)]
)
def test_endpoints_share_a_weight_of_100_and_none_has_0(endpoints: int, weight: int) -> None:
    found = ask(headless(endpoints), "_http._tcp.hl.ns1.svc", Type.SRV)
    assert isinstance(found, Found)
    assert len(found.answer) == len(found.additional) == endpoints
    assert {int.from_bytes(record.data[2:4], "big") for record in found.answer} == {weight}


def test_a_service_without_a_namespace_object_does_not_exist() -> None:
    shown = view(Put(Service(Metadata(name="web", namespace="ns1"), ServiceSpec(cluster_ips=["10.3.0.1"]))), Synced())
    assert ask(shown, "web.ns1.svc", Type.A) is NXDOMAIN


@pytest.mark.parametrize(("ttl", "lasts"), [(0, 0), (5, 5), (300, 300), (301, 300), (3600, 300)])
def test_an_soa_lasts_as_long_as_records_do_but_no_more_than_five_minutes(ttl: int, lasts: int) -> None:
    shown = view()
    shown.ttl = ttl
    numbers = f"{NOON} 7200 1800 86400 {ttl}"
    expected = f"cluster.local. {lasts} IN SOA ns.dns.cluster.local. hostmaster.cluster.local. {numbers}"
    assert to_text(authority(shown, ZONE)) == expected


def test_a_zone_begins_with_its_soa_and_has_no_record_twice() -> None:
    records = [to_text(record) for record in zone_records(headless(3), ZONE)]
    assert " SOA " in records[0]
    assert len(records) == len(set(records))


def test_a_reverse_zone_has_the_addresses_below_it_only() -> None:
    records = [to_text(record) for record in reverse_records(headless(300), names.from_text("1.10.in-addr.arpa"))]
    assert [record.split()[3] for record in records] == ["SOA", "NS", *["PTR"] * 44]
    assert all(record.split()[0].endswith("1.10.in-addr.arpa.") for record in records)


# Services of thousands


def records(shown: View, rtype: int, room: int) -> list[Record]:
    labels = [b"hl", b"ns1", b"svc"]
    outcome = lookup(shown, Question(names.from_labels(labels)[:-1] + ZONE, labels, ZONE, rtype, set(), room), False)
    assert isinstance(outcome, Found)
    return outcome.answer + outcome.additional


@pytest.mark.parametrize("rtype", [Type.A, Type.SRV])
def test_of_thousands_of_endpoints_no_more_are_told_than_overflow_the_reply(rtype: int) -> None:
    shown = headless(3000)
    some = [(record.owner, record.data) for record in records(shown, rtype, 1232)]
    # The least that each takes in a reply: the question's name as a pointer, type, class, TTL and length, the data.
    assert sum(12 + len(data) for _, data in some) > 1232
    assert len(some) < 100
    assert len(set(some)) == len(some)


def test_each_of_thousands_of_endpoints_has_its_turn() -> None:
    shown = headless(300)
    seen: Counter[bytes] = Counter()
    for _ in range(600):
        seen.update(record.data for record in records(shown, Type.A, 512))
    assert len(seen) == 300
    # Each is in 33 of 300 windows: 66 times expected, and 20 is more than five standard deviations below.
    assert min(seen.values()) > 20


def test_a_target_that_no_message_can_hold_is_left_out() -> None:
    zone = names.from_text(".".join(["z" * 60] * 4))
    shown = headless(1)
    labels = [b"hl", b"ns1", b"svc"]
    question = Question(names.from_labels(labels)[:-1] + zone, labels, zone, Type.SRV, set())
    assert lookup(shown, question, False) is NODATA
    shown.primary = zone
    assert pointers(shown, pack_address("10.0.0.1") or b"", set()) == []
