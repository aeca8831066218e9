"""The last known state on disk: what is written is read as the same cluster, and a bad file hurts nobody."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdns.kubernetes import inventory, snapshot
from kdns.kubernetes.cluster import Cluster
from kdns.kubernetes.objects import EndpointSlice, Event, Namespace, Object, Pod, Put, Service, Synced
from kdns.kubernetes.schema import View, reverse_records, zone_records
from kdns.plugins.kubernetes import Kubernetes
from kdns.wire import names
from kdns.wire.records import to_text
from tests.kubernetes.test_cluster import namespace, namespaces, pod, pods, service, services, slice_, slices
from tests.plugins import trial

NOON = 1_700_000_000
ZONES = [names.from_text(zone) for zone in ("cluster.local", "in-addr.arpa", "ip6.arpa")]
DECODER: msgspec.json.Decoder[Object] = msgspec.json.Decoder(Namespace | Service | EndpointSlice | Pod)


def cluster_of(events: Iterable[Event], pod_names: bool = False) -> Cluster:
    cluster = Cluster(lambda: NOON, pod_names)
    for event in [*events, Synced()]:
        cluster.apply(event)
    cluster.serial = NOON
    return cluster


def records(cluster: Cluster) -> list[str]:
    """Every record of a cluster, but those of slices of a service that isn't there, which have none."""
    view = View(cluster, ZONES[0], pods="verified", own=lambda: (b"\x7f\x00\x00\x01",))
    found = [*zone_records(view, ZONES[0]), *reverse_records(view, ZONES[1]), *reverse_records(view, ZONES[2])]
    return sorted(map(to_text, found))


def write(cluster: Cluster, path: Path) -> snapshot.Snapshot:
    asyncio.run(snapshot.write(cluster, str(path)))
    return snapshot.read(str(path))


FULL = [
    namespace(),
    service("10.96.0.9", "fd00::9"),
    service("None", name="db"),
    service(name="out", kind="ExternalName", external="example.com"),
    slice_("10.1.0.7", "10.1.0.8"),
    slice_("fd00:1::7", of="db", name="db-1", family="IPv6"),
    pod("10.1.0.7"),
]


@settings(deadline=None)
@given(st.lists(namespaces() | services() | slices() | pods(), max_size=12), st.booleans())
def test_what_is_written_is_the_same_cluster_when_it_is_read(events: list[Put], pod_names: bool) -> None:
    cluster = cluster_of(events, pod_names)
    again = [DECODER.decode(msgspec.json.encode(manifest)) for manifest in snapshot.manifests(cluster)]
    assert records(cluster_of(map(Put, again), pod_names)) == records(cluster)


def test_a_snapshot_is_itself_an_inventory(tmp_path: Path) -> None:
    path = tmp_path / "last.json"
    cluster = cluster_of(FULL)
    assert write(cluster, path).skipped == 0
    served = inventory.load([str(path)])
    assert served.warnings == []
    # What an inventory adds by itself: the namespace `default`.
    assert records(cluster_of(map(Put, served.objects.values()))) == records(cluster)
    assert not list(tmp_path.glob("*.new"))


def test_it_was_written_when_its_file_was(tmp_path: Path) -> None:
    path = tmp_path / "last.json"
    write(cluster_of(FULL), path)
    os.utime(path, (NOON, NOON))
    assert snapshot.read(str(path)).written == NOON


def test_an_object_that_is_none_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "last.json"
    whole = write(cluster_of(FULL), path)
    text = path.read_text()
    path.write_text(text.replace('"10.1.0.7"', "10107", 1).replace('"kind":"Pod"', '"kind":"Paul"'))
    found = snapshot.read(str(path))
    assert found.skipped == 2
    assert len(found.objects) == len(whole.objects) - 2


@pytest.mark.parametrize("cut", [0, 10, -1, -3, -20])
def test_a_file_that_was_cut_off_is_none(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "last.json"
    write(cluster_of(FULL), path)
    path.write_bytes(path.read_bytes().rstrip()[: cut or None] if cut else b"")
    with pytest.raises(snapshot.SnapshotError, match=r"last\.json"):
        snapshot.read(str(path))


def test_a_disk_that_does_not_take_it_leaves_the_last_one(tmp_path: Path) -> None:
    path = tmp_path / "last.json"
    write(cluster_of(FULL), path)
    before = path.read_bytes()
    # A folder where the new file should go can't be opened for writing, whoever asks.
    (tmp_path / "last.json.new").mkdir()
    with pytest.raises(snapshot.SnapshotError):
        asyncio.run(snapshot.write(cluster_of([]), str(path)))
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", ['{"items": []}', '{"items": [{"kind": "Paul"}]}', '{"items": ["\\ud800"]}'])
def test_a_file_without_an_object_is_none(tmp_path: Path, content: str) -> None:
    path = tmp_path / "last.json"
    path.write_text(content)
    with pytest.raises(snapshot.SnapshotError):
        snapshot.read(str(path))


def test_a_byte_that_is_no_text_costs_its_object_alone(tmp_path: Path) -> None:
    path = tmp_path / "last.json"
    whole = write(cluster_of(FULL), path)
    path.write_bytes(path.read_bytes().replace(b'"name":"db"', b'"name":"d\xff"', 1))
    try:
        found = snapshot.read(str(path))
    except snapshot.SnapshotError:
        return
    assert len(found.objects) == len(whole.objects) - 1


def test_a_snapshot_is_not_filtered_by_labels_again(tmp_path: Path) -> None:
    path = tmp_path / "last.json"
    write(cluster_of(FULL), path)
    text = f"kubernetes cluster.local {{\n endpoint http://127.0.0.1:9\n labels team=a\n snapshot {path}\n}}"
    plugin = trial.plugin(Kubernetes, text)
    assert plugin.live is not None
    plugin.live._restore()
    assert plugin.live.stale
    assert plugin.cluster.service(b"shop", b"web") is not None
