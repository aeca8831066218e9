"""What the control plane would have done, row by row."""

from __future__ import annotations

import random
import time
from typing import Any

import msgspec
import pytest

from kdns.kubernetes.controller import Completed, InventoryOptions, Manifest, Workload, complete, key_of
from kdns.kubernetes.objects import Endpoints, EndpointSlice, Metadata, Namespace, Pod, Service

DUAL = InventoryOptions(service_cidrs=("10.96.0.0/12", "fd00:10:96::/112"))
SIX_FIRST = InventoryOptions(service_cidrs=("fd00:10:96::/112", "10.96.0.0/12"))


def service(name: str = "web", namespace: str = "shop", **spec: Any) -> Service:
    ports = spec.pop("ports", [{"name": "http", "port": 80}])
    return msgspec.convert(
        {"kind": "Service", "metadata": {"name": name, "namespace": namespace}, "spec": {"ports": ports, **spec}},
        Service,
    )


def pod(name: str, *addresses: str, labels: dict[str, str] | None = None, **more: Any) -> Pod:
    spec, status, metadata = more.get("spec", {}), more.get("status", {}), more.get("metadata", {})
    if addresses:
        status = {"podIP": addresses[0], "podIPs": [{"ip": each} for each in addresses]} | status
    metadata = {"name": name, "namespace": "shop", "labels": labels or {"app": "web"}} | metadata
    return msgspec.convert({"kind": "Pod", "metadata": metadata, "spec": spec, "status": status}, Pod)


def endpoints(name: str = "web", **more: Any) -> Endpoints:
    return msgspec.convert({"kind": "Endpoints", "metadata": {"name": name, "namespace": "shop"}, **more}, Endpoints)


def ready(value: bool) -> dict[str, Any]:
    return {"conditions": [{"type": "Ready", "status": "True" if value else "False"}]}


def slices(completed: Completed) -> list[EndpointSlice]:
    return [each for each in completed.objects.values() if isinstance(each, EndpointSlice)]


def shown(completed: Completed) -> list[str]:
    """Every endpoint in one line: address, then what it is not or has besides, then its ports."""
    lines = []
    for each in slices(completed):
        ports = " ".join(f"{port.name}/{port.protocol}/{port.port}" for port in each.ports or ())
        for endpoint in each.endpoints or ():
            state = "" if endpoint.ready else " unready"
            hostname = f" {endpoint.hostname}" if endpoint.hostname else ""
            lines.append(f"{' '.join(endpoint.addresses or ())}{hostname}{state} {ports}".strip())
    return sorted(lines)


def addresses(completed: Completed, name: str = "web") -> list[str] | None:
    found = completed.objects[("Service", "shop", name)]
    assert isinstance(found, Service)
    return found.spec.cluster_ips


def families(completed: Completed, name: str = "web") -> list[str] | None:
    found = completed.objects[("Service", "shop", name)]
    assert isinstance(found, Service)
    return found.spec.ip_families


SELECTED = [
    (
        "a pod that has all the labels is an endpoint, whatever other labels it has",
        [
            service(selector={"zone": "prod", "version": "v1"}),
            pod("a", "10.1.0.1", labels={"zone": "prod", "version": "v1", "x": "y"}),
        ],
        ["10.1.0.1 http/TCP/80"],
    ),
    (
        "a pod that lacks one of the labels is none",
        [service(selector={"zone": "prod", "version": "v1"}), pod("a", "10.1.0.1", labels={"zone": "prod"})],
        [],
    ),
    (
        "a pod of another namespace is none",
        [service(selector={"app": "web"}), pod("a", "10.1.0.1", metadata={"namespace": "other"})],
        [],
    ),
    (
        "a pod whose Ready condition is False is there, not ready",
        [
            service(selector={"app": "web"}),
            pod("a", "10.1.0.1", status=ready(False)),
            pod("b", "10.1.0.2", status=ready(True)),
        ],
        ["10.1.0.1 unready http/TCP/80", "10.1.0.2 http/TCP/80"],
    ),
    (
        "a pod that is being deleted is not ready, though its condition still says so",
        [
            service(selector={"app": "web"}),
            pod("a", "10.1.0.1", status=ready(True), metadata={"deletionTimestamp": "2026-01-01T00:00:00Z"}),
        ],
        ["10.1.0.1 unready http/TCP/80"],
    ),
    (
        "publishNotReadyAddresses makes all ready, the one being deleted as well",
        [
            service(selector={"app": "web"}, publishNotReadyAddresses=True),
            pod("a", "10.1.0.1", status=ready(False)),
            pod("b", "10.1.0.2", status=ready(True), metadata={"deletionTimestamp": "2026-01-01T00:00:00Z"}),
        ],
        ["10.1.0.1 http/TCP/80", "10.1.0.2 http/TCP/80"],
    ),
    (
        "a pod that has conditions, but no Ready, is not ready",
        [
            service(selector={"app": "web"}),
            pod("a", "10.1.0.1", status={"conditions": [{"type": "Initialized", "status": "True"}]}),
        ],
        ["10.1.0.1 unready http/TCP/80"],
    ),
    (
        "pods that ended are no endpoints",
        [
            service(selector={"app": "web"}, publishNotReadyAddresses=True),
            pod("a", "10.1.0.1", status={"phase": "Succeeded"}),
            pod("b", "10.1.0.2", status={"phase": "Failed"}),
        ],
        [],
    ),
    (
        "a pod has a hostname only in the Service that its subdomain names",
        [
            service("web", selector={"app": "web"}),
            service("other", selector={"app": "web"}),
            pod("a", "10.1.0.1", spec={"hostname": "a", "subdomain": "web"}),
            pod("b", "10.1.0.2", spec={"hostname": "b"}),
            pod("c", "10.1.0.3", spec={"subdomain": "web"}),
        ],
        sorted(
            ["10.1.0.1 a http/TCP/80", *2 * ["10.1.0.2 http/TCP/80", "10.1.0.3 http/TCP/80"], "10.1.0.1 http/TCP/80"]
        ),
    ),
    (
        "a target port with a number counts, without one the port itself",
        [
            service(
                selector={"app": "web"},
                ports=[{"name": "a", "port": 1, "targetPort": 2}, {"name": "b", "port": 3, "protocol": "UDP"}],
            ),
            pod("a", "10.1.0.1"),
        ],
        ["10.1.0.1 a/TCP/2 b/UDP/3"],
    ),
    (
        "a named target port is looked up in each pod, by name and protocol, and left out where it is missing",
        [
            service(
                selector={"app": "web"},
                ports=[{"name": "x", "port": 80, "targetPort": "http"}, {"name": "y", "port": 81}],
            ),
            pod("a", "10.1.0.1", spec={"containers": [{"ports": [{"name": "http", "containerPort": 8080}]}]}),
            pod("b", "10.1.0.2", spec={"containers": [{}, {"ports": [{"name": "http", "containerPort": 9090}]}]}),
            pod(
                "c",
                "10.1.0.3",
                spec={"containers": [{"ports": [{"name": "http", "containerPort": 1, "protocol": "UDP"}]}]},
            ),
        ],
        ["10.1.0.1 x/TCP/8080 y/TCP/81", "10.1.0.2 x/TCP/9090 y/TCP/81", "10.1.0.3 y/TCP/81"],
    ),
    (
        "the ports of a sidecar count, those of an init container that ends don't",
        [
            service(selector={"app": "web"}, ports=[{"name": "x", "port": 80, "targetPort": "http"}]),
            pod(
                "a",
                "10.1.0.1",
                spec={
                    "initContainers": [
                        {"ports": [{"name": "http", "containerPort": 1}]},
                        {"restartPolicy": "Always", "ports": [{"name": "http", "containerPort": 2}]},
                    ]
                },
            ),
        ],
        ["10.1.0.1 x/TCP/2"],
    ),
    (
        "a headless Service without ports has its endpoints all the same",
        [service(selector={"app": "web"}, clusterIP="None", ports=[]), pod("a", "10.1.0.1")],
        ["10.1.0.1"],
    ),
    (
        "each family of the Service has its slice, with the pod's first address of that family",
        [
            service(selector={"app": "web"}, clusterIP="None", ipFamilies=["IPv6", "IPv4"]),
            pod("a", "10.1.0.1", "fd00::1", "10.1.0.9"),
            pod("b", "10.1.0.2"),
        ],
        ["10.1.0.1 http/TCP/80", "10.1.0.2 http/TCP/80", "fd00::1 http/TCP/80"],
    ),
    (
        "a pod on its node's network counts by the node's address",
        [service(selector={"app": "web"}), pod("a", spec={"hostNetwork": True}, status={"hostIP": "192.168.0.7"})],
        ["192.168.0.7 http/TCP/80"],
    ),
    (
        "an ExternalName has no endpoints, though it has a selector",
        [service(type="ExternalName", externalName="a.b", selector={"app": "web"}), pod("a", "10.1.0.1")],
        [],
    ),
    ("an empty selector selects nothing", [service(selector={}), pod("a", "10.1.0.1")], []),
    (
        "slices that are written count, and nothing else",
        [
            service(selector={"app": "web"}),
            pod("a", "10.1.0.1"),
            endpoints(subsets=[{"addresses": [{"ip": "10.9.9.9"}]}]),
            EndpointSlice(
                metadata=msgspec.convert(
                    {"name": "mine", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
                    type=type(pod("x").metadata),
                ),
                address_type="IPv4",
            ),
        ],
        [],
    ),
    (
        "Endpoints count for a Service without selector, by family, with hostnames and what isn't ready",
        [
            service(),
            pod("a", "10.1.0.1"),
            endpoints(
                subsets=[
                    {
                        "addresses": [{"ip": "10.9.0.1", "hostname": "one"}, {"ip": "fd00::9"}],
                        "notReadyAddresses": [{"ip": "10.9.0.2"}],
                        "ports": [{"name": "db", "port": 5432}],
                    }
                ]
            ),
        ],
        ["10.9.0.1 one db/TCP/5432", "10.9.0.2 unready db/TCP/5432", "fd00::9 db/TCP/5432"],
    ),
    (
        "Endpoints count for a Service with selector when the inventory has no pods at all",
        [service(selector={"app": "web"}), endpoints(subsets=[{"addresses": [{"ip": "10.9.0.1"}]}])],
        ["10.9.0.1"],
    ),
    (
        "Endpoints of a Service with selector don't count beside pods",
        [
            service(selector={"app": "web"}),
            pod("a", "10.1.0.1"),
            endpoints(subsets=[{"addresses": [{"ip": "10.9.0.1"}]}]),
        ],
        ["10.1.0.1 http/TCP/80"],
    ),
    ("Endpoints without a Service are nothing", [endpoints(subsets=[{"addresses": [{"ip": "10.9.0.1"}]}])], []),
]


@pytest.mark.parametrize(("manifests", "expected"), [row[1:] for row in SELECTED], ids=[row[0] for row in SELECTED])
def test_the_endpoints_of_a_service(manifests: list[Manifest], expected: list[str]) -> None:
    assert shown(complete(manifests, InventoryOptions())) == expected


FAMILIES = [
    ("a Service without a word on it has the first range's family", service(), DUAL, ["IPv4"]),
    ("the first range may be of IPv6", service(), SIX_FIRST, ["IPv6"]),
    ("a written address says its family", service(clusterIP="fd00::1"), DUAL, ["IPv6"]),
    (
        "two written addresses say theirs, in their order",
        service(clusterIPs=["fd00::1", "10.0.0.1"]),
        DUAL,
        ["IPv6", "IPv4"],
    ),
    (
        "PreferDualStack has both where both are configured",
        service(ipFamilyPolicy="PreferDualStack"),
        SIX_FIRST,
        ["IPv6", "IPv4"],
    ),
    (
        "PreferDualStack has one where one is configured",
        service(ipFamilyPolicy="PreferDualStack"),
        InventoryOptions(),
        ["IPv4"],
    ),
    ("RequireDualStack has both", service(ipFamilyPolicy="RequireDualStack"), DUAL, ["IPv4", "IPv6"]),
    (
        "a headless Service with selector has the default",
        service(clusterIP="None", selector={"a": "b"}),
        InventoryOptions(),
        ["IPv4"],
    ),
    ("a headless Service without selector has both", service(clusterIP="None"), InventoryOptions(), ["IPv4", "IPv6"]),
    (
        "SingleStack keeps the first of those written",
        service(ipFamilyPolicy="SingleStack", ipFamilies=["IPv6"]),
        DUAL,
        ["IPv6"],
    ),
    ("an ExternalName has none", service(type="ExternalName", externalName="a.b"), DUAL, None),
]


@pytest.mark.parametrize(
    ("manifest", "options", "expected"), [row[1:] for row in FAMILIES], ids=[row[0] for row in FAMILIES]
)
def test_the_families_of_a_service(manifest: Service, options: InventoryOptions, expected: list[str] | None) -> None:
    assert families(complete([manifest], options)) == expected


def test_a_written_address_stays_even_out_of_the_range() -> None:
    assert addresses(complete([service(clusterIP="10.0.0.11")], InventoryOptions())) == ["10.0.0.11"]


def test_an_address_is_given_by_name_and_so_the_same_beside_any_other_service() -> None:
    alone = addresses(complete([service()], InventoryOptions()))
    others = [service(f"other-{number}") for number in range(100)]
    assert alone == addresses(complete([*others, service()], InventoryOptions())) == ["10.97.244.94"]


def test_the_order_of_the_manifests_makes_no_difference() -> None:
    tight = InventoryOptions(service_cidrs=("10.0.0.0/25",))
    manifests = [service(f"web-{number}") for number in range(100)]
    first = complete(manifests, tight).objects
    random.Random(1).shuffle(manifests)
    assert complete(manifests, tight).objects == first


def test_each_type_but_external_name_gets_an_address_and_each_family_one() -> None:
    completed = complete(
        [
            service("np", type="NodePort"),
            service("lb", type="LoadBalancer", ipFamilyPolicy="PreferDualStack"),
            service("none", clusterIP="None"),
        ],
        DUAL,
    )
    node_port, balancer = addresses(completed, "np"), addresses(completed, "lb")
    assert node_port is not None
    assert balancer is not None
    assert len(node_port) == 1
    assert [":" in each for each in balancer] == [False, True]
    assert addresses(completed, "none") == ["None"]


def test_a_range_is_used_up_to_its_last_address_and_then_a_problem() -> None:
    # 32 addresses without network, broadcast and the first, which is `kubernetes`'s, are 29.
    small = InventoryOptions(service_cidrs=("10.0.0.0/27",))
    completed = complete([service(f"web-{number:02}") for number in range(31)], small)
    given = [
        each.spec.cluster_ip
        for each in completed.objects.values()
        if isinstance(each, Service) and each.spec.cluster_ip
    ]
    assert sorted(given, key=lambda each: int(each.split(".")[3])) == [f"10.0.0.{number}" for number in range(2, 31)]
    assert [problem.subject for problem in completed.problems] == [
        "Service shop/web-29: spec.clusterIP",
    ]
    assert completed.problems[0].message == (
        "the service range 10.0.0.0/27 has no free ClusterIP left for 2 services, the first of them this"
    )


def test_the_static_band_is_left_free_while_there_is_room() -> None:
    completed = complete(
        [service(f"web-{number}") for number in range(239)], InventoryOptions(service_cidrs=("10.0.0.0/24",))
    )
    given = {
        int(str(each.spec.cluster_ip).split(".")[3]) for each in completed.objects.values() if isinstance(each, Service)
    }
    # /24: 256 / 16 = 16 addresses from .1 to .16 are for people, so .17 to .254 are 238; the 239th is from the band.
    assert set(range(17, 255)) < given
    assert len(given) == 239
    assert not given & {0, 1, 255}


def test_an_address_that_another_service_has_is_a_problem() -> None:
    completed = complete([service(clusterIP="fd00::1"), service("api", clusterIPs=["fd00:0::1"])], SIX_FIRST)
    (problem,) = completed.problems
    assert (problem.message, problem.subject) == (
        "the ClusterIP `fd00:0::1` is taken",
        "Service shop/api: spec.clusterIPs",
    )
    assert problem.hint.startswith("Service shop/web has this one")
    assert complete([service(clusterIP="None"), service("api", clusterIP="None")], DUAL).problems == []


def test_computed_slices_have_the_labels_of_what_they_are_made_from() -> None:
    labels = {"team": "a", "service.kubernetes.io/headless": "", "kubernetes.io/service-name": "x"}
    labelled = service(selector={"app": "web"})
    labelled.metadata.labels = labels
    by_hand = endpoints("api", subsets=[{"addresses": [{"ip": "10.9.0.1"}]}])
    by_hand.metadata.labels = {"team": "b"}
    made = slices(complete([labelled, pod("a", "10.1.0.1"), service("api"), by_hand], InventoryOptions()))
    assert [each.metadata.labels for each in made] == [
        {"team": "a", "kubernetes.io/service-name": "web"},
        {"team": "b", "kubernetes.io/service-name": "api"},
    ]


def test_a_family_without_range_is_a_problem() -> None:
    completed = complete([service(ipFamilies=["IPv6"])], InventoryOptions())
    assert [problem.message for problem in completed.problems] == ["there is no IPv6 range to take a ClusterIP from"]


def test_with_cluster_ips_endpoints_every_service_is_answered_by_its_endpoints() -> None:
    options = InventoryOptions(cluster_ips="endpoints")
    completed = complete(
        [service(type="NodePort", clusterIP="10.0.0.1", selector={"app": "web"}), pod("a", "10.1.0.1")], options
    )
    made = completed.objects[("Service", "shop", "web")]
    assert isinstance(made, Service)
    assert (made.spec.type, made.spec.cluster_ip, made.spec.cluster_ips) == ("ClusterIP", "None", ["None"])
    assert shown(completed) == ["10.1.0.1 http/TCP/80"]


def test_each_namespace_has_its_name_as_a_label() -> None:
    written = Namespace(Metadata(name="shop", labels={"team": "a"}))
    made = complete([written, service(namespace="bank")], InventoryOptions()).objects
    label = "kubernetes.io/metadata.name"
    assert made["Namespace", "", "shop"].metadata.labels == {"team": "a", label: "shop"}
    assert made["Namespace", "", "bank"].metadata.labels == {label: "bank"}


def test_a_namespace_that_only_objects_name_exists_and_no_namespace_is_default() -> None:
    completed = complete(
        [service(), msgspec.convert({"kind": "Pod", "metadata": {"name": "a"}}, Pod)], InventoryOptions()
    )
    assert {name for kind, _, name in completed.objects if kind == "Namespace"} == {"shop", "default"}
    assert ("Pod", "default", "a") in completed.objects


WARNINGS = [
    (
        "a selector that matches nothing",
        [service(selector={"app": "web"}), pod("a", "10.1.0.1", labels={"app": "db"})],
        [
            "the selector matches no Pod of the inventory",
            "all its labels must be on a Pod of namespace `shop`; the Service answers without endpoints",
        ],
    ),
    (
        "a pod without address, once for however many Services",
        [service(selector={"app": "web"}), service("api", selector={"app": "web"}), pod("a")],
        [
            "the pod `a` has no address, so Service `web` goes without it",
            "an inventory has no kubelet that gives addresses: write `status: {podIP: …}`",
        ],
    ),
    (
        "pods of another family only",
        [service(selector={"app": "web"}), pod("a", "fd00::1")],
        [
            "the selector matches 1 Pod, none of which has an IPv4 address",
            "the service's families are in `spec.ipFamilies`; without it they are those of `service_cidr`",
        ],
    ),
]


@pytest.mark.parametrize(("manifests", "expected"), [row[1:] for row in WARNINGS], ids=[row[0] for row in WARNINGS])
def test_warnings(manifests: list[Manifest], expected: list[str]) -> None:
    completed = complete(manifests, InventoryOptions())
    assert [text for warning in completed.warnings for text in (warning.message, warning.hint)] == expected
    assert all(warning.warning for warning in completed.warnings)


def test_a_selector_that_matches_a_workloads_template_is_told_what_is_missing() -> None:
    workload = Workload("Deployment", "shop", "web", {"app": "web", "tier": "front"})
    (warning,) = complete([service(selector={"app": "web"})], InventoryOptions(), [workload]).warnings
    assert warning.hint == (
        "the pods of Deployment `web` would match; "
        "an inventory needs the Pods themselves, e.g. from `kubectl get pods -n shop -o yaml`"
    )


def test_slices_are_of_bounded_size_and_named_alike_at_each_start() -> None:
    manifests = [
        service(selector={"app": "web"}),
        *(pod(f"p-{number:03}", f"10.1.{number // 200}.{number % 200 + 1}") for number in range(250)),
    ]
    made = slices(complete(manifests, InventoryOptions()))
    assert [len(each.endpoints or ()) for each in made] == [100, 100, 50]
    assert made == slices(complete(reversed(manifests), InventoryOptions()))
    assert [each.metadata.name for each in made] == ["web-ipv4-b51453b9", "web-ipv4-b51453b9-1", "web-ipv4-b51453b9-2"]


def test_nothing_that_is_given_is_changed() -> None:
    manifests = [service(selector={"app": "web"}), pod("a", "10.1.0.1")]
    before = msgspec.json.encode(manifests)
    complete(manifests, DUAL)
    assert msgspec.json.encode(manifests) == before


def test_10_000_services_and_20_000_pods_that_share_a_label_take_seconds() -> None:
    services = [
        service(f"web-{number}", selector={"shared": "yes", "app": f"web-{number}"}) for number in range(10_000)
    ]
    pods = [
        pod(
            f"p-{number}",
            f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}",
            labels={"shared": "yes", "app": f"web-{number % 10_000}"},
        )
        for number in range(20_000)
    ]
    began = time.process_time()
    completed = complete([*services, *pods], InventoryOptions())
    assert time.process_time() - began < 10
    assert len(slices(completed)) == 10_000


def test_the_key_of_a_namespace_has_no_namespace() -> None:
    completed = complete([service()], InventoryOptions())
    assert {key_of(each) for each in completed.objects.values()} == set(completed.objects)
