"""Which namespace an address stands in, after pods came, went and took over from one another."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdns.kubernetes import snapshot
from kdns.kubernetes.clients import client_tag
from kdns.kubernetes.cluster import Cluster, Tag
from kdns.kubernetes.live import LiveOptions
from kdns.kubernetes.objects import Delete, Event, Metadata, Pod, PodIP, PodSpec, PodStatus, Put
from tests.kubernetes.test_cluster import delete, packed

HERE, THERE = "10.1.0.1", "10.1.0.2"


def pod(
    *addresses: str,
    name: str = "one",
    where: str = "a",
    phase: str = "Running",
    leaving: bool = False,
    created: str | None = None,
    host_network: bool | None = None,
    host: str | None = None,
) -> Put:
    metadata = Metadata(name, where, deletion_timestamp="2026-01-01T00:00:00Z" if leaving else None)
    metadata.creation_timestamp = created
    status = PodStatus(phase, pod_ips=[PodIP(each) for each in addresses], host_ip=host)
    return Put(Pod(metadata, PodSpec(host_network=host_network), status))


def cluster(*events: Event) -> Cluster:
    made = Cluster(lambda: 1_700_000_000, locates_clients=True)
    for event in events:
        made.apply(event)
    return made


def where(of: Cluster, address: str = HERE) -> str:
    assert of.clients is not None
    return (of.clients.namespace_at(packed(address)) or b"-").decode()


@pytest.mark.parametrize(
    ("events", "namespace"),
    [
        pytest.param([], "-", id="an address that no pod has"),
        pytest.param([pod(HERE)], "a", id="a pod"),
        pytest.param([pod(THERE, HERE)], "a", id="the second address of a pod"),
        pytest.param([pod(f"::ffff:{HERE}")], "a", id="an IPv4 address that is written as an IPv6 one"),
        pytest.param([pod(HERE, phase="Pending")], "a", id="a pod that doesn't run yet"),
        pytest.param([pod(HERE, phase="Succeeded")], "-", id="a pod that succeeded"),
        pytest.param([pod(HERE, phase="Failed")], "-", id="a pod that failed"),
        pytest.param([pod(HERE), pod(HERE, phase="Succeeded")], "-", id="a pod that ends"),
        pytest.param([pod(HERE), pod(HERE, phase="Unknown")], "a", id="a pod whose node isn't heard of"),
        pytest.param(
            [pod(HERE, phase="Unknown"), pod(HERE, name="two", where="b")], "b", id="a pod in place of a lost one"
        ),
        pytest.param([pod(HERE, leaving=True)], "a", id="a pod that has a while left"),
        pytest.param([pod(HERE), delete(pod())], "-", id="a pod that is gone"),
        pytest.param([pod(HERE), pod(THERE)], "-", id="a pod that has another address now"),
        pytest.param([pod(HERE, host_network=True)], "-", id="a pod in the network of its node"),
        pytest.param([pod(HERE, host=HERE)], "-", id="a pod with the address of its node"),
        pytest.param([pod(HERE, host=THERE)], "a", id="a pod on a node with another address"),
        pytest.param([pod(HERE), pod(HERE, name="two", where="b")], "-", id="pods of two namespaces at one address"),
        pytest.param([pod(HERE), pod(HERE, name="two")], "a", id="pods of one namespace at one address"),
        pytest.param(
            [pod(HERE), pod(HERE, name="two", where="b"), delete(pod(name="two", where="b"))],
            "a",
            id="one of two pods that is left",
        ),
        pytest.param(
            [pod(HERE, leaving=True), pod(HERE, name="two", where="b")],
            "b",
            id="a pod that took over from one",
        ),
        pytest.param(
            [pod(HERE, name="two", where="b"), pod(HERE, leaving=True)], "b", id="the same, told the other way round"
        ),
        pytest.param(
            [
                pod(HERE, leaving=True, created="2026-01-02T00:00:00Z"),
                pod(HERE, name="two", where="b", leaving=True, created="2026-01-01T00:00:00Z"),
            ],
            "a",
            id="the newer of two that both end",
        ),
        pytest.param(
            [pod(HERE, leaving=True), pod(HERE, name="two", where="b", leaving=True)],
            "-",
            id="two that both end, and nobody says which is newer",
        ),
        pytest.param(
            [pod(HERE, phase="Succeeded"), pod(HERE, name="two", where="b")],
            "b",
            id="a pod at the address of one that ended",
        ),
        pytest.param([pod(HERE, host_network=True), pod(HERE, name="two", where="b")], "b", id="a pod beside a node's"),
    ],
)
def test_an_address_stands_in_the_namespace_of_its_pod(events: list[Event], namespace: str) -> None:
    assert where(cluster(*events)) == namespace


@pytest.mark.parametrize(
    ("before", "event", "tags"),
    [
        pytest.param([], pod(HERE), {HERE}, id="a pod comes"),
        pytest.param([pod(HERE)], pod(HERE), set(), id="a pod is told again"),
        pytest.param([pod(HERE)], pod(HERE, leaving=True), set(), id="a pod is told to end"),
        pytest.param([pod(HERE)], pod(THERE), {HERE, THERE}, id="a pod has another address"),
        pytest.param([pod(HERE)], delete(pod()), {HERE}, id="a pod goes"),
        pytest.param([pod(HERE)], pod(HERE, name="two"), set(), id="another pod of the namespace comes"),
        pytest.param([pod(HERE)], pod(HERE, name="two", where="b"), {HERE}, id="an address is two's"),
        pytest.param([], Delete("Pod", "a", "one"), set(), id="a pod that wasn't there goes"),
    ],
)
def test_an_event_returns_the_tags_of_the_addresses_that_are_others_now(
    before: list[Event], event: Event, tags: set[str]
) -> None:
    changed: set[Tag] = cluster(*before).apply(event)
    assert {tag for tag in changed if tag[0] == "client"} == {client_tag(packed(each)) for each in tags}


def test_where_clients_stand_is_known_only_where_somebody_wants_to_know() -> None:
    made = Cluster(lambda: 0)
    assert made.clients is None
    assert not {tag for tag in made.apply(pod(HERE)) if tag[0] == "client"}


def test_nothing_is_left_of_pods_that_are_gone() -> None:
    made = cluster(
        pod(HERE, THERE), pod(HERE, name="two", where="b"), delete(pod()), delete(pod(name="two", where="b"))
    )
    assert made.clients is not None
    assert (made.clients._at, made.clients._pods) == ({}, {})


@st.composite
def pods(draw: st.DrawFn) -> Event:
    put = pod(
        *draw(st.lists(st.sampled_from([HERE, THERE]), max_size=2)),
        name=draw(st.sampled_from(["one", "two"])),
        where=draw(st.sampled_from("ab")),
        phase=draw(st.sampled_from(["Running", "Running", "Failed"])),
        leaving=draw(st.booleans()),
        created=draw(st.sampled_from([None, "2026-01-01T00:00:00Z", "rubbish"])),
        host_network=draw(st.sampled_from([None, None, True])),
    )
    return draw(st.sampled_from([put, put, delete(put)]))


@settings(max_examples=100, deadline=None)
@given(st.lists(pods(), max_size=12))
def test_whatever_happened_a_change_of_place_is_told_and_only_the_end_counts(events: list[Event]) -> None:
    made = cluster()
    last: dict[tuple[str, str], Event] = {}
    for event in events:
        before = {address: where(made, address) for address in (HERE, THERE)}
        changed = made.apply(event)
        after = {address: where(made, address) for address in (HERE, THERE)}
        moved = {client_tag(packed(address)) for address in before if before[address] != after[address]}
        assert {tag for tag in changed if tag[0] == "client"} == moved
        key = event.object.metadata if isinstance(event, Put) else event  # type: ignore[union-attr]
        last[key.namespace, key.name] = event
    again = cluster(*(event for event in last.values() if isinstance(event, Put)))
    assert [where(again, address) for address in (HERE, THERE)] == [where(made, each) for each in (HERE, THERE)]


def test_a_snapshot_has_clients_where_they_stood() -> None:
    before = cluster(pod(HERE), pod(THERE, name="host", where="b", host_network=True))
    read = [msgspec.convert(each, Pod) for each in snapshot.manifests(before) if each["kind"] == "Pod"]
    after = cluster(*map(Put, read))
    assert [where(after, HERE), where(after, THERE)] == ["a", "-"]
    assert LiveOptions(locates_clients=True).made_for["clients"] == "on"
