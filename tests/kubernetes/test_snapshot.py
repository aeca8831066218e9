"""The last known state on disk: what is written is read as the same cluster, and a bad file hurts nobody."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterable
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdns.kubernetes import inventory, snapshot
from kdns.kubernetes.cluster import Cluster
from kdns.kubernetes.live import LiveOptions, Server, open_source, server_url
from kdns.kubernetes.objects import EndpointSlice, Event, Namespace, Object, Pod, Put, Service, Synced
from kdns.kubernetes.schema import View, reverse_records, zone_records
from kdns.plugins.kubernetes import Kubernetes
from kdns.wire import names
from kdns.wire.records import to_text
from tests.kubernetes.test_cluster import namespace, namespaces, pod, pods, service, services, slice_, slices
from tests.plugins import trial

NOON = 1_700_000_000
MADE_FOR = {"cluster": "https://192.0.2.1:6443", "labels": "team=a"}
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
    asyncio.run(snapshot.write(cluster, str(path), MADE_FOR))
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
    assert all(write(cluster, path).objects())
    served = inventory.load([str(path)])
    assert served.warnings == []
    assert snapshot.read(str(path)).made_for == MADE_FOR
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
    assert [type(each).__name__ for each in found.objects()].count("NoneType") == 2
    assert len(found.items) == len(whole.items)


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
        asyncio.run(snapshot.write(cluster_of([]), str(path), MADE_FOR))
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
    assert len(list(filter(None, found.objects()))) == len(whole.items) - 1


# A start from it


def restored(path: Path, *options: str) -> Kubernetes:
    """A directive with these options that has looked for its last known state in a file."""
    lines = "\n".join(["endpoint http://127.0.0.1:9", *options, f"snapshot {path}"])
    plugin = trial.plugin(Kubernetes, f"kubernetes cluster.local {{\n{lines}\n}}")
    live = plugin.live
    assert live is not None
    live._restore(open_source(live._options.server, live._options.wanted, live._tell, live._numbers))
    return plugin


def left_behind(path: Path, *options: str) -> None:
    """Write what a directive with these options would."""
    plugin = trial.plugin(Kubernetes, "\n".join(["kubernetes cluster.local {", *options, "}"]))
    assert plugin.live is not None
    asyncio.run(snapshot.write(cluster_of(FULL), str(path), plugin.live._options.made_for))


HERE = "endpoint http://127.0.0.1:9"


def test_a_snapshot_is_not_filtered_by_labels_again(tmp_path: Path) -> None:
    path = tmp_path / "last.json"
    left_behind(path, HERE, "labels team=a")
    plugin = restored(path, "labels team=a")
    assert plugin.live is not None
    assert plugin.live.stale
    assert plugin.cluster.service(b"shop", b"web") is not None


@pytest.mark.parametrize(
    ("then", "now", "told"),
    [
        (["namespaces shop"], [], "`namespaces` was `shop` and is not given"),
        (["namespaces shop"], ["namespaces shop web"], "`namespaces` was `shop` and is `shop web`"),
        ([], ["noendpoints"], "`noendpoints` was not given and is `on`"),
        (["labels team=a"], ["labels team=b"], "`labels` was `team=a` and is `team=b`"),
        ([], ["namespace_labels team=a"], "`namespace_labels` was not given and is `team=a`"),
        (["pods verified"], ["pods insecure"], "`pods` was `verified` and is not given"),
        ([], ["endpoint_pod_names"], "`endpoint_pod_names` was not given and is `on`"),
        (
            ["pods verified", "labels a=b"],
            [],
            "`labels` was `a=b` and is not given; `pods` was `verified` and is not given",
        ),
    ],
)
def test_one_of_other_options_is_not_used_and_the_log_says_what_differs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, then: list[str], now: list[str], told: str
) -> None:
    path = tmp_path / "last.json"
    left_behind(path, HERE, *then)
    plugin = restored(path, *now)
    assert plugin.live is not None
    assert (plugin.live.stale, plugin.cluster.synced, plugin.cluster.services) == (False, False, {})
    assert [record.getMessage() for record in caplog.records] == [
        f"the snapshot can't be used: {path}: with other options: {told}"
    ]


def test_one_of_another_cluster_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "last.json"
    left_behind(path, "endpoint https://192.0.2.1:6443")
    assert not restored(path).cluster.synced
    assert "`cluster` was `https://192.0.2.1:6443` and is `http://127.0.0.1:9`" in caplog.text


@pytest.mark.parametrize(
    ("then", "now"),
    [
        (["namespaces web shop"], ["namespaces shop web"]),
        (["ttl 30", "pods insecure", "fallthrough"], ["startup_timeout 1s", "ignore empty_service"]),
    ],
)
def test_options_that_decide_nothing_about_what_is_known_may_change(
    tmp_path: Path, then: list[str], now: list[str]
) -> None:
    path = tmp_path / "last.json"
    left_behind(path, HERE, *then)
    assert restored(path, *now).cluster.service(b"shop", b"web") is not None


def test_one_that_does_not_say_what_it_was_made_for_is_used_as_far_as_it_can_be_kept_up_to_date(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "last.json"
    left_behind(path, HERE)
    whole = json.loads(path.read_text())
    del whole["metadata"]
    path.write_text(json.dumps(whole))
    assert snapshot.read(str(path)).made_for is None
    plugin = restored(path, "noendpoints")
    assert plugin.live is not None
    assert plugin.live.stale
    web = plugin.cluster.service(b"shop", b"web")
    assert web is not None
    assert web.slices == {}
    assert list(plugin.cluster.pods_by_name()) == []
    assert "doesn't say with which options it was made" in caplog.records[0].getMessage()


KUBECONFIG = """\
clusters:
- {name: one, cluster: {server: "https://192.0.2.1:6443"}}
- {name: two, cluster: {server: "https://192.0.2.2:6443"}}
contexts:
- {name: a, context: {cluster: one, user: me}}
- {name: b, context: {cluster: two}}
current-context: a
"""


@pytest.mark.parametrize(
    ("content", "context", "url"),
    [
        (KUBECONFIG, "", "https://192.0.2.1:6443"),
        (KUBECONFIG, "b", "https://192.0.2.2:6443"),
        (KUBECONFIG, "c", ""),
        (KUBECONFIG.replace("two, cluster: {server", "two, cluster: {nobody"), "", ""),
        ("clusters: [", "", ""),
    ],
)
def test_the_cluster_of_a_kubeconfig_is_the_server_of_its_context(
    tmp_path: Path, content: str, context: str, url: str
) -> None:
    path = tmp_path / "config"
    path.write_text(content)
    # Of one that can't be read all that is known is its path.
    assert server_url(Server(kubeconfig=str(path), context=context)) == (url or str(path))


def test_in_a_pod_the_cluster_is_where_the_variables_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    assert LiveOptions().made_for == {"cluster": "10.96.0.1:443"}
