"""Pods of a real API server as clients: where they stand as they come, go, and take over an address."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import dns.message
import dns.query
import pytest

from tests.cluster.api import Object, eventually
from tests.cluster.control_plane import ControlPlane, Namespace
from tests.cluster.serving import ANSWER_SECONDS, Reply, Server, serving, upstream

HTTP: list[Object] = [{"name": "http", "port": 80}]
OUTSIDE = {"www.example.com.": "192.0.2.123"}
# Addresses of this machine that no other test asks from.
_ADDRESSES = (f"127.77.0.{number}" for number in itertools.count(2))


@pytest.fixture(scope="module")
def server(cluster: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    more = ["search", "autopath @kubernetes"]
    with upstream(OUTSIDE) as outside:
        options = f"kubeconfig {cluster.kubeconfig()}"
        with serving(tmp_path_factory.mktemp("kdns"), options, outside, more=more) as found:
            yield found


@pytest.fixture
def shops(cluster: ControlPlane) -> Iterator[tuple[Namespace, Namespace]]:
    """Two namespaces, each with a service `web`."""
    with cluster.namespace() as one, cluster.namespace() as two:
        for each in (one, two):
            each.service("web", ports=HTTP)
        yield one, two


def said(server: Server, client: str, name: str, rtype: str = "A") -> Reply:
    """What a client at this address is told."""
    query = dns.message.make_query(name, rtype)
    return Reply(dns.query.udp(query, "127.0.0.1", ANSWER_SECONDS, server.port, source=client))


def stands_in(server: Server, client: str, namespace: Namespace | None) -> None:
    """Wait until the client finds the service of a namespace by its short name, or none."""
    expected = [] if namespace is None else [namespace.api.get("Service", "web", namespace.name)["spec"]["clusterIP"]]

    def same() -> bool:
        reply = said(server, client, "web.")
        assert [each for each in reply.data if each[0].isdigit()] == expected, reply
        return True

    eventually(same, 20)


def test_a_pod_finds_the_service_of_its_own_namespace(server: Server, shops: tuple[Namespace, Namespace]) -> None:
    first, second = next(_ADDRESSES), next(_ADDRESSES)
    for where, address in zip(shops, (first, second), strict=True):
        where.pod("client", address)
        stands_in(server, address, where)
    reply = said(server, first, "web.")
    assert reply.ordered[0] == f"web. 5 IN CNAME web.{shops[0].name}.svc.cluster.local."
    assert said(server, first, "web.", "AAAA").ordered == reply.ordered[:1]
    assert said(server, next(_ADDRESSES), "web.").rcode == "NXDOMAIN"


def test_an_address_that_another_pod_takes_over_stands_where_that_one_does(
    server: Server, shops: tuple[Namespace, Namespace]
) -> None:
    first, second = shops
    address = next(_ADDRESSES)
    first.pod("client", address)
    stands_in(server, address, first)
    # With time of grace it is there for a while, and so is its address.
    first.delete("Pod", "client", grace_seconds=None)
    second.pod("client", address)
    stands_in(server, address, second)
    second.pod_status("client", phase="Succeeded")
    first.delete("Pod", "client")
    stands_in(server, address, None)


def test_two_pods_at_one_address_stand_nowhere_and_so_does_one_of_the_nodes_network(
    server: Server, shops: tuple[Namespace, Namespace]
) -> None:
    first, second = shops
    address, host = next(_ADDRESSES), next(_ADDRESSES)
    first.pod("client", address)
    stands_in(server, address, first)
    second.pod("client", address)
    stands_in(server, address, None)
    second.delete("Pod", "client")
    stands_in(server, address, first)
    first.pod("host", host, hostNetwork=True)
    stands_in(server, host, None)


def test_a_search_list_is_gone_through_for_a_pod(server: Server, shops: tuple[Namespace, Namespace]) -> None:
    first, second = shops
    address = next(_ADDRESSES)
    first.pod("client", address)
    stands_in(server, address, first)
    name = f"www.example.com.{first.name}.svc.cluster.local."
    assert said(server, address, name).ordered == [
        f"{name} 60 IN CNAME www.example.com.",
        "www.example.com. 60 IN A 192.0.2.123",
    ]
    assert said(server, address, f"www.example.com.{second.name}.svc.cluster.local.").rcode == "NXDOMAIN"
    assert said(server, address, f"web.{second.name}.{first.name}.svc.cluster.local.").rcode == "NOERROR"
