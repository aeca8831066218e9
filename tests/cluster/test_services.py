"""Services of a real API server, as kdns answers for them: every type, every change, and Kubernetes' own DNS tests.

Of the DNS tests of Kubernetes' e2e suite, each that asks a cluster's DNS is here. Those are not:
- stub domains, forwarding of PTR questions and of ExternalName targets to another server, as far as they replace the
  ConfigMap `coredns` and restart the DNS pods: what their Corefiles say is tested where `forward` is;
- public names and the metadata server of a cloud: no traffic leaves this machine;
- what a pod has in /etc/hosts, as its own hostname, or in a resolv.conf that it made itself: no server is asked;
- 10,000 services at once: a benchmark. Here are as many as a test has time for.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dns.message
import dns.query
import dns.reversename
import pytest

from tests import started
from tests.cluster.api import Object, eventually
from tests.cluster.control_plane import NODE, NODE_ADDRESS, ControlPlane, Namespace
from tests.cluster.serving import ANSWER_SECONDS, Reply, Server, search, serving, some_address, upstream

ZONE = "cluster.local."
KUBERNETES = "10.96.0.1"
OUTSIDE = {"foo.example.com.": "192.0.2.123", "bar.example.com.": "192.0.2.124"}
HTTP: list[Object] = [{"name": "http", "port": 80}]


@pytest.fixture(scope="module")
def outside() -> Iterator[str]:
    """The server that all names outside of the cluster are forwarded to."""
    with upstream(OUTSIDE) as address:
        yield address


@pytest.fixture(scope="module")
def server(cluster: ControlPlane, outside: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """kdns on the shared cluster."""
    with serving(
        tmp_path_factory.mktemp("kdns"), f"kubeconfig {cluster.kubeconfig()}\npods verified", outside
    ) as found:
        yield found


def reverse(address: str) -> str:
    return str(dns.reversename.from_address(address))


# The types of services


@pytest.mark.parametrize("kind", ["ClusterIP", "NodePort", "LoadBalancer"])
def test_a_service_has_its_cluster_ip_its_ports_and_its_endpoints(
    server: Server, namespace: Namespace, kind: str
) -> None:
    ports: list[Object] = [
        {"name": "http", "port": 80, "targetPort": 8080},
        {"name": "dns", "port": 53, "protocol": "UDP"},
        {"name": "signal", "port": 99, "protocol": "SCTP"},
    ]
    made = namespace.service("web", {"app": "web"}, ports, type=kind)
    address = made["spec"]["clusterIP"]
    pod = some_address()
    namespace.pod("web-0", pod, {"app": "web"})
    name = f"web.{namespace.name}.svc.{ZONE}"
    label = f"{pod.replace('.', '-')}.{name}"

    assert server.expect(name, "A", address).answer == [f"{name} 5 IN A {address}"]
    server.expect_nothing(name, "AAAA", "NOERROR")
    found = server.expect(name, "SRV", f"0 33 80 {name}", f"0 33 53 {name}", f"0 33 99 {name}")
    assert found.additional == [f"{name} 5 IN A {address}"]
    server.expect(f"_http._tcp.{name}", "SRV", f"0 100 80 {name}")
    server.expect(f"_dns._udp.{name}", "SRV", f"0 100 53 {name}")
    server.expect(f"_signal._sctp.{name}", "SRV", f"0 100 99 {name}")
    server.expect_nothing(f"_http._udp.{name}", "SRV")
    server.expect(reverse(address), "PTR", name)
    # The node's ports and addresses are never in it.
    for port in made["spec"]["ports"]:
        assert "nodePort" not in port or str(port["nodePort"]) not in "".join(found.data)
    server.expect(label, "A", pod)
    server.expect(label, "SRV", f"0 33 8080 {label}", f"0 33 53 {label}", f"0 33 99 {label}")
    server.expect(reverse(pod), "PTR", label)

    namespace.delete("Service", "web")
    for gone in (name, f"_http._tcp.{name}", label):
        server.expect_nothing(gone)
    server.expect_nothing(reverse(address), "PTR")


def test_what_a_load_balancer_gets_changes_no_answer(server: Server, namespace: Namespace) -> None:
    made = namespace.service("shop", {"app": "shop"}, HTTP, type="LoadBalancer", externalIPs=["198.51.100.7"])
    address = made["spec"]["clusterIP"]
    name = f"shop.{namespace.name}.svc.{ZONE}"
    assert made["status"]["loadBalancer"] == {}
    server.expect(name, "A", address)
    ingress = [{"ip": "203.0.113.9"}, {"hostname": "lb.example.com"}]
    namespace.api.patch_status("Service", "shop", {"loadBalancer": {"ingress": ingress}}, namespace.name)
    # The status was told before this service was.
    after = namespace.service("after")["spec"]["clusterIP"]
    server.expect(f"after.{namespace.name}.svc.{ZONE}", "A", after)
    server.expect(name, "A", address)
    for external in ("203.0.113.9", "198.51.100.7"):
        assert server.ask(reverse(external), "PTR").rcode == "NXDOMAIN"


def test_a_port_that_changes_changes_its_records(server: Server, namespace: Namespace) -> None:
    namespace.service("web", ports=HTTP)
    name = f"web.{namespace.name}.svc.{ZONE}"
    server.expect(f"_http._tcp.{name}", "SRV", f"0 100 80 {name}")
    changed = [{"name": "https", "port": 443}]
    namespace.api.patch("Service", "web", {"spec": {"ports": changed}}, namespace.name)
    server.expect(f"_https._tcp.{name}", "SRV", f"0 100 443 {name}")
    server.expect_nothing(f"_http._tcp.{name}", "SRV")


def test_two_families(server: Server, namespace: Namespace) -> None:
    labels = {"app": "dual"}
    made = namespace.service("dual", labels, HTTP, ipFamilyPolicy="RequireDualStack")
    namespace.service("dual-headless", labels, HTTP, ipFamilyPolicy="RequireDualStack", clusterIP="None")
    four, six = made["spec"]["clusterIPs"]
    pod = some_address()
    namespace.pod("dual-0", [pod, "fd00:1::7"], labels)

    name = f"dual.{namespace.name}.svc.{ZONE}"
    server.expect(name, "A", four)
    server.expect(name, "AAAA", six)
    found = server.expect(f"_http._tcp.{name}", "SRV", f"0 50 80 {name}")
    assert found.additional == sorted([f"{name} 5 IN A {four}", f"{name} 5 IN AAAA {six}"])
    server.expect(reverse(six), "PTR", name)

    headless = f"dual-headless.{namespace.name}.svc.{ZONE}"
    server.expect(headless, "A", pod)
    server.expect(headless, "AAAA", "fd00:1::7")
    server.expect(f"fd00-1--7.{headless}", "AAAA", "fd00:1::7")
    server.expect_nothing(f"fd00-1--7.{headless}", "A", "NOERROR")
    targets = (f"{pod.replace('.', '-')}.{headless}", f"fd00-1--7.{headless}")
    server.expect(headless, "SRV", *(f"0 50 80 {target}" for target in targets))

    # One of the two families is taken away, and given back.
    single = {"ipFamilyPolicy": "SingleStack", "ipFamilies": ["IPv4"], "clusterIPs": [four]}
    namespace.api.patch("Service", "dual", {"spec": single}, namespace.name)
    server.expect_nothing(name, "AAAA", "NOERROR")
    server.expect_nothing(reverse(six), "PTR")
    double = {"ipFamilyPolicy": "PreferDualStack", "ipFamilies": ["IPv4", "IPv6"]}
    patched = namespace.api.patch("Service", "dual", {"spec": double}, namespace.name)
    server.expect(name, "AAAA", patched["spec"]["clusterIPs"][1])
    server.expect(name, "A", four)


# Headless services, pods and the EndpointSlice controller


def test_a_stateful_set_has_a_name_for_each_pod(server: Server, namespace: Namespace) -> None:
    """The real controllers make its pods and their endpoints; here the test is scheduler and kubelet."""
    labels = {"app": "db"}
    namespace.service("db", labels, [{"name": "sql", "port": 5432}], clusterIP="None")
    name = f"db.{namespace.name}.svc.{ZONE}"
    server.expect_nothing(name)
    template = {
        "metadata": {"labels": labels},
        "spec": {"containers": [{"name": "main", "image": "none.invalid/main"}]},
    }
    spec = {
        "serviceName": "db",
        "replicas": 2,
        "podManagementPolicy": "Parallel",
        "selector": {"matchLabels": labels},
        "template": template,
    }
    namespace.create("StatefulSet", "db", spec=spec)
    addresses = {"db-0": some_address(), "db-1": some_address()}
    for pod, address in addresses.items():
        eventually(lambda pod=pod: _has(namespace, "Pod", pod), 20)
        namespace.api.bind(pod, NODE, namespace.name)
        namespace.pod_status(pod, address)
    server.expect(name, "A", *addresses.values())
    for pod, address in addresses.items():
        server.expect(f"{pod}.{name}", "A", address)
        server.expect(reverse(address), "PTR", f"{pod}.{name}")
        # The hostname takes the place of the address.
        server.expect_nothing(f"{address.replace('.', '-')}.{name}")
    found = server.expect(f"_sql._tcp.{name}", "SRV", *(f"0 50 5432 {pod}.{name}" for pod in addresses))
    assert found.additional == sorted(f"{pod}.{name} 5 IN A {address}" for pod, address in addresses.items())

    # A pod of the set dies, and comes back under its name with another address.
    namespace.delete("Pod", "db-1")
    server.expect(name, "A", addresses["db-0"])
    eventually(lambda: _has(namespace, "Pod", "db-1"), 20)
    namespace.api.bind("db-1", NODE, namespace.name)
    again = some_address()
    namespace.pod_status("db-1", again)
    server.expect(f"db-1.{name}", "A", again)
    server.expect_nothing(reverse(addresses["db-1"]), "PTR")
    namespace.api.patch("StatefulSet", "db", {"spec": {"replicas": 0}}, namespace.name)
    # Nobody but a kubelet ends a pod that has a node, and it takes its time.
    eventually(lambda: _terminating(namespace, "db-1"), 20)
    for pod in addresses:
        with contextlib.suppress(Exception):
            namespace.delete("Pod", pod)
    server.expect_nothing(name)


def _has(namespace: Namespace, kind: str, name: str) -> bool:
    return name in [each["metadata"]["name"] for each in namespace.api.list(kind, namespace.name)]


def _terminating(namespace: Namespace, pod: str) -> bool:
    pods = {each["metadata"]["name"]: each["metadata"] for each in namespace.api.list("Pod", namespace.name)}
    return pod not in pods or "deletionTimestamp" in pods[pod]


def test_readiness_and_labels_decide_who_is_an_endpoint(server: Server, namespace: Namespace) -> None:
    namespace.service("web", {"app": "web"}, HTTP, clusterIP="None")
    name = f"web.{namespace.name}.svc.{ZONE}"
    first, second = some_address(), some_address()
    namespace.pod("web-0", first, {"app": "web"})
    namespace.pod("web-1", second, {"app": "web"}, ready=False)
    server.expect(name, "A", first)
    server.expect_nothing(f"{second.replace('.', '-')}.{name}")

    namespace.pod_status("web-1", ready=True)
    server.expect(name, "A", first, second)
    namespace.pod_status("web-0", ready=False)
    server.expect(name, "A", second)
    server.expect_nothing(reverse(first), "PTR")

    # A label that no longer matches, the selector that follows it.
    namespace.api.patch("Pod", "web-1", {"metadata": {"labels": {"app": "other"}}}, namespace.name)
    server.expect_nothing(name)
    namespace.api.patch("Service", "web", {"spec": {"selector": {"app": "other"}}}, namespace.name)
    server.expect(name, "A", second)

    # Who terminates is no endpoint any more, though the pod is still there.
    namespace.delete("Pod", "web-1", grace_seconds=None)
    server.expect_nothing(name)


def test_addresses_that_are_not_ready_are_published_where_the_service_says_so(
    server: Server, namespace: Namespace
) -> None:
    namespace.service("peers", {"app": "peers"}, HTTP, clusterIP="None", publishNotReadyAddresses=True)
    name = f"peers.{namespace.name}.svc.{ZONE}"
    address = some_address()
    namespace.pod("peers-0", address, {"app": "peers"}, ready=False, hostname="peers-0", subdomain="peers")
    server.expect(name, "A", address)
    server.expect(f"peers-0.{name}", "A", address)
    namespace.delete("Pod", "peers-0", grace_seconds=None)
    namespace.wait_endpoints("peers", {address: True})
    server.expect(name, "A", address)
    namespace.api.patch("Service", "peers", {"spec": {"publishNotReadyAddresses": False}}, namespace.name)
    server.expect_nothing(name)
    namespace.api.patch("Service", "peers", {"spec": {"publishNotReadyAddresses": True}}, namespace.name)
    server.expect(f"peers-0.{name}", "A", address)


def test_endpoints_written_by_hand_count_through_the_mirroring_controller(server: Server, namespace: Namespace) -> None:
    """An Endpoints object, and an EndpointSlice, for services without a selector."""
    namespace.service("old", ports=HTTP, clusterIP="None")
    subset = {
        "addresses": [{"ip": "192.0.2.20", "hostname": "one"}],
        "notReadyAddresses": [{"ip": "192.0.2.21"}],
        "ports": [{"name": "http", "port": 8080}],
    }
    namespace.create("Endpoints", "old", subsets=[subset])
    old = f"old.{namespace.name}.svc.{ZONE}"
    server.expect(old, "A", "192.0.2.20")
    server.expect(f"_http._tcp.{old}", "SRV", f"0 100 8080 one.{old}")

    namespace.service("new", ports=HTTP, clusterIP="None")
    namespace.create(
        "EndpointSlice",
        "new-by-hand",
        metadata={"labels": {"kubernetes.io/service-name": "new"}},
        addressType="IPv6",
        endpoints=[{"addresses": ["2001:db8::20"]}, {"addresses": ["2001:db8::21"], "conditions": {"ready": False}}],
        ports=[{"name": "http", "port": 8080}],
    )
    new = f"new.{namespace.name}.svc.{ZONE}"
    server.expect(new, "AAAA", "2001:db8::20")
    server.expect_nothing(new, "A", "NOERROR")


def test_verified_pods_have_names_as_long_as_they_run(server: Server, namespace: Namespace) -> None:
    address = some_address()
    name = f"{address.replace('.', '-')}.{namespace.name}.pod.{ZONE}"
    namespace.pod("alone")
    server.expect_nothing(f"{namespace.name}.pod.{ZONE}", "A", "NOERROR")
    server.expect_nothing(name)
    namespace.pod_status("alone", [address, "fd00:1::9"])
    server.expect(name, "A", address)
    server.expect(f"fd00-1--9.{namespace.name}.pod.{ZONE}", "AAAA", "fd00:1::9")
    server.expect_nothing(f"{address.replace('.', '-')}.default.pod.{ZONE}")
    # A job that is done keeps its address in the API, and has none.
    namespace.pod_status("alone", phase="Succeeded")
    server.expect_nothing(name)
    namespace.pod("next", address)
    server.expect(name, "A", address)
    namespace.delete("Pod", "next")
    server.expect_nothing(name)


def test_a_namespace_exists_as_long_as_it_is_there(server: Server, cluster: ControlPlane) -> None:
    with cluster.namespace() as namespace:
        server.expect_nothing(f"{namespace.name}.svc.{ZONE}", "A", "NOERROR")
        address = namespace.service("web")["spec"]["clusterIP"]
        server.expect(f"web.{namespace.name}.svc.{ZONE}", "A", address)
    server.expect_nothing(f"web.{namespace.name}.svc.{ZONE}")
    server.expect_nothing(f"{namespace.name}.svc.{ZONE}")
    server.expect_nothing(reverse(address), "PTR")


def test_an_alias_becomes_a_service_and_an_alias_again(server: Server, namespace: Namespace) -> None:
    target = namespace.service("target")["spec"]["clusterIP"]
    name, inside = (f"{each}.{namespace.name}.svc.{ZONE}" for each in ("moving", "target"))
    namespace.service("moving", ports=(), type="ExternalName", externalName=inside.rstrip("."))
    cname = f"{name} 5 IN CNAME {inside}"
    assert server.expect(name, "CNAME", inside).answer == [cname]
    assert server.expect(name, "A", inside, target).ordered == [cname, f"{inside} 5 IN A {target}"]

    spec: Object = {"type": "ClusterIP", "externalName": None, "ports": HTTP}
    address = namespace.api.patch("Service", "moving", {"spec": spec}, namespace.name)["spec"]["clusterIP"]
    server.expect(name, "A", address)
    server.expect_nothing(name, "CNAME", "NOERROR")
    server.expect(reverse(address), "PTR", name)

    spec = {"type": "ExternalName", "externalName": "foo.example.com", "clusterIP": None, "clusterIPs": None}
    namespace.api.patch("Service", "moving", {"spec": spec}, namespace.name)
    found = server.expect(name, "A", "foo.example.com.", "192.0.2.123")
    assert [record.split()[3] for record in found.ordered] == ["CNAME", "A"]
    server.expect_nothing(reverse(address), "PTR")
    server.expect_nothing(f"_http._tcp.{name}", "SRV")


# Kubernetes' own tests of a cluster's DNS, by their names


def pod_search(namespace: str) -> list[str]:
    """The search list that a kubelet gives to a pod."""
    return [f"{namespace}.svc.{ZONE}", f"svc.{ZONE}", ZONE]


@pytest.fixture(params=["pods of their own addresses", "host network"])
def prober(server: Server, namespace: Namespace, request: pytest.FixtureRequest) -> tuple[str, str]:
    """A headless service and one with a ClusterIP, of the pod that asks; addresses of the pod and the second."""
    on_host = request.param == "host network"
    address = NODE_ADDRESS if on_host else some_address()
    labels = {"dns-test": "true"}
    namespace.service("dns-test-service", labels, HTTP, clusterIP="None")
    made = namespace.service("test-service-2", labels, HTTP)
    namespace.pod("dns-test", address, labels, **({"hostNetwork": True} if on_host else {}))
    return address, made["spec"]["clusterIP"]


def test_dns_for_services(server: Server, namespace: Namespace, prober: tuple[str, str]) -> None:
    pod, address = prober
    headless, normal = (f"{each}.{namespace.name}.svc.{ZONE}" for each in ("dns-test-service", "test-service-2"))
    label = f"{pod.replace('.', '-')}.{headless}"
    server.expect(headless, "A", pod)
    server.expect(f"_http._tcp.{headless}", "SRV", f"0 100 80 {label}")
    server.expect(f"_http._tcp.{normal}", "SRV", f"0 100 80 {normal}")
    server.expect(reverse(address), "PTR", normal)


def test_partial_names_for_services(server: Server, namespace: Namespace, prober: tuple[str, str]) -> None:
    pod, address = prober
    headless, normal = (f"{each}.{namespace.name}.svc.{ZONE}" for each in ("dns-test-service", "test-service-2"))
    server.expect(headless, "A", pod)
    server.expect(normal, "A", address)
    domains = pod_search(namespace.name)
    for short in ("dns-test-service", f"dns-test-service.{namespace.name}", f"dns-test-service.{namespace.name}.svc"):
        assert search(server.ask, short, domains).data == [pod]
    for short, target in (
        (f"_http._tcp.dns-test-service.{namespace.name}.svc", f"{pod.replace('.', '-')}.{headless}"),
        (f"_http._tcp.test-service-2.{namespace.name}.svc", normal),
    ):
        assert search(lambda name: server.ask(name, "SRV"), short, domains).data == [f"0 100 80 {target}"]
    server.expect(reverse(address), "PTR", normal)


def test_dns_for_the_cluster(server: Server) -> None:
    server.expect(f"kubernetes.default.svc.{ZONE}", "A", KUBERNETES)


LONG = [f"{letter * 60}.{letter * 60}.{letter * 60}.example." for letter in "abcdef"]


@pytest.mark.parametrize("before", [[], LONG, ["."], ["_sip._tcp.abc_d.example.com."]])
@pytest.mark.parametrize("short", ["kubernetes.default", "kubernetes.default.svc"])
def test_partial_names_for_the_cluster_whatever_stands_first_in_the_search_list(
    server: Server, namespace: Namespace, before: list[str], short: str
) -> None:
    assert search(server.ask, short, [*before, *pod_search(namespace.name)]).data == [KUBERNETES]


def test_a_search_list_of_one_domain_finds_what_is_there_and_nothing_else(server: Server) -> None:
    domains = [f"default.svc.{ZONE}"]
    assert search(server.ask, "kubernetes", domains).data == [KUBERNETES]
    assert search(server.ask, "not-existing-service", domains).rcode == "NXDOMAIN"


def test_dns_for_pods_with_a_subdomain(server: Server, namespace: Namespace) -> None:
    labels = {"dns-test-hostname-attribute": "true"}
    namespace.service("dns-test-service-2", labels, HTTP, clusterIP="None")
    address = some_address()
    namespace.pod("dns-test", address, labels, hostname="dns-querier-2", subdomain="dns-test-service-2")
    name = f"dns-test-service-2.{namespace.name}.svc.{ZONE}"
    server.expect(f"dns-querier-2.{name}", "A", address)
    server.expect(name, "A", address)


def test_dns_for_external_name_services(server: Server, namespace: Namespace) -> None:
    namespace.service("dns-test-service-3", ports=(), type="ExternalName", externalName="foo.example.com")
    name = f"dns-test-service-3.{namespace.name}.svc.{ZONE}"
    server.expect(name, "CNAME", "foo.example.com.")
    namespace.api.patch("Service", "dns-test-service-3", {"spec": {"externalName": "bar.example.com"}}, namespace.name)
    server.expect(name, "CNAME", "bar.example.com.")
    spec = {"type": "ClusterIP", "externalName": None, "ports": HTTP}
    made = namespace.api.patch("Service", "dns-test-service-3", {"spec": spec}, namespace.name)
    server.expect(name, "A", made["spec"]["clusterIP"])


def test_dns_for_an_external_name_whose_target_another_server_knows(server: Server, namespace: Namespace) -> None:
    namespace.service("local", ports=(), type="ExternalName", externalName="foo.example.com")
    name = f"local.{namespace.name}.svc.{ZONE}"
    found = server.expect(name, "A", "foo.example.com.", "192.0.2.123")
    # Who takes the first line takes the alias.
    assert [record.split(maxsplit=4)[4] for record in found.ordered] == ["foo.example.com.", "192.0.2.123"]


def test_a_service_name_may_start_with_a_digit(server: Server, namespace: Namespace) -> None:
    made = namespace.service("1kubernetes", ports=[{"port": 443}])
    name = f"1kubernetes.{namespace.name}.svc.{ZONE}"
    server.expect(name, "A", made["spec"]["clusterIP"])
    server.expect(name, "SRV", f"0 100 443 {name}")


@pytest.mark.parametrize("kind", ["ClusterIP", "NodePort"])
def test_a_service_changes_its_type_from_external_name_and_back(
    server: Server, namespace: Namespace, kind: str
) -> None:
    target = namespace.service("externalsvc", {"app": "external"}, HTTP)["spec"]["clusterIP"]
    elsewhere = f"externalsvc.{namespace.name}.svc.{ZONE}"
    service = f"{kind.lower()}-service"
    name = f"{service}.{namespace.name}.svc.{ZONE}"
    first = namespace.service(service, ports=HTTP, type=kind)["spec"]["clusterIP"]
    server.expect(name, "A", first)
    spec: Object = {"type": "ExternalName", "externalName": elsewhere, "clusterIP": None, "clusterIPs": None}
    namespace.api.patch("Service", service, {"spec": spec}, namespace.name)
    server.expect(name, "A", elsewhere, target)
    spec = {"type": kind, "externalName": None, "ports": HTTP}
    second = namespace.api.patch("Service", service, {"spec": spec}, namespace.name)["spec"]["clusterIP"]
    server.expect(name, "A", second)


def test_a_cluster_ip_stays_while_its_endpoints_come_and_go(server: Server, namespace: Namespace) -> None:
    made = namespace.service("tolerate-unready", {"app": "slow"}, HTTP, publishNotReadyAddresses=True)
    address, name = made["spec"]["clusterIP"], f"tolerate-unready.{namespace.name}.svc.{ZONE}"
    pod = some_address()
    namespace.pod("slow-0", pod, {"app": "slow"}, ready=False)
    label = f"{pod.replace('.', '-')}.{name}"
    server.expect(label, "A", pod)
    server.expect(name, "A", address)
    for published in (False, True):
        spec = {"spec": {"publishNotReadyAddresses": published}}
        namespace.api.patch("Service", "tolerate-unready", spec, namespace.name)
        if published:
            server.expect(label, "A", pod)
        else:
            server.expect_nothing(label)
        server.expect(name, "A", address)


def test_many_services_at_once(server: Server, cluster: ControlPlane) -> None:
    with cluster.namespace() as one, cluster.namespace() as two, ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda number: (one, two)[number % 2].service(f"svc-{number}"), range(200)))
        for service in made[::20]:
            metadata = service["metadata"]
            name = f"{metadata['name']}.{metadata['namespace']}.svc.{ZONE}"
            server.expect(name, "A", service["spec"]["clusterIP"], seconds=30)


def test_a_kubeconfig_alone_is_enough_to_serve_its_cluster(cluster: ControlPlane) -> None:
    line = ("serve", "--kubeconfig", str(cluster.kubeconfig()), "--context", "kdns", "--listen", "127.0.0.1:PORT")
    with started.started("kdns", *line) as server:
        assert server.dig("+short", f"kubernetes.default.svc.{ZONE}") == f"{KUBERNETES}\n"
        assert server.dig("+short", "-x", KUBERNETES) == f"kubernetes.default.svc.{ZONE}\n"


# The same objects as an inventory


def test_the_same_objects_as_an_inventory_give_the_same_answers(private_cluster: ControlPlane, tmp_path: Path) -> None:
    """Name by name: of all that either model has, and of some that neither has."""
    kubeconfig = private_cluster.kubeconfig()
    snapshot = tmp_path / "snapshot.json"
    with private_cluster.namespace("shop") as shop, private_cluster.namespace("empty"):
        last = _fill(shop)
        with serving(tmp_path, f"kubeconfig {kubeconfig}\npods verified\nsnapshot {snapshot} 1s") as live:
            live.expect(last, "A", "10.1.9.9")
            eventually(lambda: snapshot.exists() and "10.1.9.9" in snapshot.read_text())
            inventories = {"kubectl": tmp_path / "kubectl.yaml", "the snapshot": tmp_path / "kept.json"}
            shutil.copy(snapshot, inventories["the snapshot"])
            exported = private_cluster.kubectl("get", "svc,endpointslices,pods,ns", "-A", "-o", "yaml")
            assert exported.returncode == 0, exported.stderr
            inventories["kubectl"].write_text(exported.stdout)
            dumped = started.run("kdns", "dump", "--kubeconfig", str(kubeconfig))
            assert dumped.returncode == 0, dumped.stderr
            inventories["kdns dump"] = tmp_path / "dumped.yaml"
            inventories["kdns dump"].write_text(dumped.stdout)

            names = set().union(*map(_names, inventories.values()))
            # As many as there are services, aliases, ports, endpoints, pods and addresses; a number that only grows.
            assert len(names) > 60
            names |= {f"{each}.{ZONE}" for each in ("no", "no.svc", "no.shop.svc", "a.b.c.web.shop.svc", "empty.pod")}
            expected = _answers(live.port, names)
            for way, inventory in inventories.items():
                line = ("serve", "--inventory", str(inventory), "--listen", "127.0.0.1:PORT")
                with started.started("kdns", *line) as server:
                    found = _answers(server.port, names)
                different = [
                    f"{expected[key]}\n\n{way}:\n{found[key]}" for key in expected if expected[key] != found[key]
                ]
                assert not different, f"{way}: {len(different)} answers differ\n" + "\n\n".join(different[:5])


def _fill(shop: Namespace) -> str:
    """Objects of every kind that DNS tells apart; the last name to appear."""
    dual: Object = {"ipFamilyPolicy": "RequireDualStack"}
    named: list[Object] = [
        {"name": "http", "port": 80, "targetPort": 8080},
        {"name": "dns", "port": 53, "protocol": "UDP"},
        {"name": "dns-tcp", "port": 53},
        {"name": "signal", "port": 99, "protocol": "SCTP"},
    ]
    shop.service("web", {"app": "web"}, named, **dual)
    shop.service("unnamed", {"app": "web"}, [{"port": 443}], type="NodePort")
    shop.service("pending", {"app": "web"}, HTTP, type="LoadBalancer")
    shop.service("balanced", {"app": "web"}, HTTP, type="LoadBalancer")
    ingress = {"ingress": [{"ip": "203.0.113.9"}]}
    shop.api.patch_status("Service", "balanced", {"loadBalancer": ingress}, shop.name)
    shop.service("alone", {"app": "nobody"}, HTTP)
    shop.service("alone-headless", {"app": "nobody"}, HTTP, clusterIP="None")
    shop.service("db", {"app": "db"}, [{"name": "sql", "port": 5432}], clusterIP="None", **dual)
    shop.service("portless", {"app": "db"}, (), clusterIP="None")
    shop.service("peers", {"app": "slow"}, HTTP, clusterIP="None", publishNotReadyAddresses=True)
    shop.service("strict", {"app": "slow"}, HTTP, clusterIP="None")
    shop.service("named-port", {"app": "web"}, [{"name": "any", "port": 1, "targetPort": "web"}], clusterIP="None")
    shop.service("alias", ports=(), type="ExternalName", externalName="web.shop.svc.cluster.local")
    shop.service("alias-outside", ports=(), type="ExternalName", externalName="foo.example.com.")
    shop.service("by-hand", ports=HTTP, clusterIP="None")
    by_hand = {"metadata": {"labels": {"kubernetes.io/service-name": "by-hand"}}, "addressType": "IPv4"}
    endpoints = [{"addresses": ["10.1.8.1"], "hostname": "first"}, {"addresses": ["10.1.8.2"], "conditions": {}}]
    shop.create("EndpointSlice", "by-hand", **by_hand, endpoints=endpoints, ports=[{"name": "http", "port": 8080}])
    # Of a service that doesn't exist.
    orphan = {"metadata": {"labels": {"kubernetes.io/service-name": "orphan"}}, "addressType": "IPv4"}
    shop.create("EndpointSlice", "orphan", **orphan, endpoints=[{"addresses": ["10.1.8.9"]}], ports=[])
    container = {"name": "main", "image": "none.invalid/main", "ports": [{"name": "web", "containerPort": 8888}]}
    for number in range(3):
        addresses = [f"10.1.0.{number + 1}", f"fd00:1::{number + 1}"]
        shop.pod(f"web-{number}", addresses, {"app": "web"}, ready=number < 2, containers=[container])
        hostname: Object = {"hostname": f"db-{number}", "subdomain": "db"}
        shop.pod(f"db-{number}", [f"10.1.1.{number + 1}", f"fd00:1::1:{number + 1}"], {"app": "db"}, **hostname)
    shop.pod("slow", "10.1.2.1", {"app": "slow"}, ready=False)
    shop.pod("pending", labels={"app": "web"})
    shop.pod("host", NODE_ADDRESS, {"app": "web"}, hostNetwork=True)
    shop.pod("done", "10.1.2.2", {"app": "web"})
    shop.pod_status("done", phase="Succeeded")
    shop.pod("leaving", "10.1.2.3", {"app": "web"})
    shop.delete("Pod", "leaving", grace_seconds=None)
    ready = {"10.1.0.1": True, "10.1.0.2": True, "10.1.0.3": False, NODE_ADDRESS: True, "10.1.2.3": False}
    # A pod without the port that is named is an endpoint without ports.
    for service in ("web", "unnamed", "pending", "balanced", "named-port"):
        six = {f"fd00:1::{number}": number < 3 for number in (1, 2, 3)} if service == "web" else {}
        shop.wait_endpoints(service, ready | six, 20)
    for service in ("db", "portless"):
        found = {f"10.1.1.{number}": True for number in (1, 2, 3)}
        six = {f"fd00:1::1:{number}": True for number in (1, 2, 3)} if service == "db" else {}
        shop.wait_endpoints(service, found | six, 20)
    shop.wait_endpoints("peers", {"10.1.2.1": True}, 20)
    shop.wait_endpoints("strict", {"10.1.2.1": False}, 20)
    shop.service("last", {"app": "last"}, HTTP, clusterIP="None")
    shop.pod("last", "10.1.9.9", {"app": "last"})
    shop.wait_endpoints("last", {"10.1.9.9": True}, 20)
    return f"last.shop.svc.{ZONE}"


def _names(inventory: Path) -> set[str]:
    """Every name that an inventory has a record of, in the cluster's zone and in the reverse ones."""
    found = set()
    for zone in ("cluster.local", "in-addr.arpa", "ip6.arpa"):
        arguments = ("--format", "zone", "--zone", zone)
        done = started.run("kdns", "dump", "--inventory", str(inventory), *arguments)
        assert done.returncode == 0, done.stderr
        found |= {line.split()[0].lower() for line in done.stdout.splitlines() if line and line[0] not in "$;"}
    return found


def _answers(port: int, names: set[str]) -> dict[tuple[str, str], str]:
    """What a server says to every question about these names."""
    found = {}
    for name in sorted(names):
        for rtype in ("A", "AAAA", "SRV", "CNAME", "PTR", "TXT", "NS", "SOA", "ANY"):
            query = dns.message.make_query(name, rtype)
            reply = Reply(dns.query.tcp(query, "127.0.0.1", ANSWER_SECONDS, port))
            found[name, rtype] = f"{name} {rtype}: {reply}"
    return found
