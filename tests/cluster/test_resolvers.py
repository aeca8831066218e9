"""How many queries it takes a resolver to find a name: with a search list, without one, and with what kdns does of it.

The resolvers are those of glibc, of Python, of musl and of Go, each in a pod's network with a resolv.conf of its own;
the queries are those that kdns counted.
"""

from __future__ import annotations

import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests import needs, started
from tests.cluster import control_plane
from tests.cluster.network import Node, Pod

pytestmark = pytest.mark.timeout(120)

HERE = Path(__file__).parent
OUTSIDE_NAME, OUTSIDE_ADDRESS = "www.corp.example.", "198.51.100.53"
# What a kubelet writes for a pod of the namespace `shop`, and what stands in a laptop's or a virtual machine's.
WITH_LIST = "nameserver {dns}\nsearch shop.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n"
WITHOUT_LIST = "nameserver {dns}\n"
# Where there is no list, glibc takes the domain of the host's name for one.
AS_CLIENT = 'echo client >/proc/sys/kernel/hostname && exec "$@"'
PYTHON = """\
import socket, sys
for address in {each[4][0] for each in socket.getaddrinfo(sys.argv[1], 80)}:
    print(address)
"""
LISTS = {"a search list": WITH_LIST, "no list": WITHOUT_LIST}
# What each server does besides answering for the cluster and asking others.
SERVERS = {
    "nothing": "",
    "autopath": "autopath @kubernetes",
    "autopath by name": "autopath @kubernetes {\n namespace_in_name\n}",
    "search": "search {\n names qualified\n}",
}
COREFILE = """\
.:53 {{
    {more}
    kubernetes cluster.local in-addr.arpa ip6.arpa {{
        inventory {inventory}
    }}
    forward . {outside}
    cache 30
    ready
    prometheus :9153
}}
"""
INVENTORY = """\
apiVersion: v1
kind: Service
metadata: {{name: web, namespace: shop}}
spec: {{clusterIP: 10.96.0.7, ports: [{{port: 80}}]}}
---
apiVersion: v1
kind: Service
metadata: {{name: web, namespace: other}}
spec: {{clusterIP: 10.96.0.8, ports: [{{port: 80}}]}}
---
apiVersion: v1
kind: Pod
metadata: {{name: client, namespace: shop}}
status: {{podIP: {address}}}
"""


class World(NamedTuple):
    """A client, the ways in which it looks names up, and the servers that it may ask, by what they do."""

    client: Pod
    ways: dict[str, Callable[[str], set[str]]]
    servers: dict[str, Pod]

    def look_up(self, way: str, server: str, resolv_conf: str, name: str) -> tuple[set[str], int]:
        """The addresses that a resolver finds, and how many queries it sent."""
        dns = self.servers[server].addresses[0]
        # In place: the file is mounted.
        (self.client.folder / "resolv.conf").write_text(resolv_conf.format(dns=dns))
        before = queries(dns)
        found = self.ways[way](name)
        return found, queries(dns) - before


def queries(dns: str) -> int:
    """How many a server has answered."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(f"http://{dns}:9153/metrics", timeout=5) as reply:
        lines = reply.read().decode().splitlines()
    return sum(int(float(line.split()[-1])) for line in lines if line.startswith("coredns_dns_requests_total{"))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    needs.root()
    needs.command("getent", "musl-gcc", "gcc")
    go = control_plane.found_programs() / "lookup"
    folder = tmp_path_factory.mktemp("resolvers")
    musl = folder / "lookup"
    line = [needs.command("musl-gcc"), "-static", "-Wall", "-Werror", "-o", str(musl), str(HERE / "lookup.c")]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    node = Node(folder / "node")
    try:
        with node.entered():
            outside = node.pod("outside", "", OUTSIDE_ADDRESS)
            outside.start("dns", sys.executable, str(HERE / "outside.py"), OUTSIDE_NAME, OUTSIDE_ADDRESS)
            client = node.pod("client", "")
            inventory = folder / "inventory.yaml"
            inventory.write_text(INVENTORY.format(address=client.addresses[0]))
            servers = {name: dns_pod(node, folder, name, inventory) for name in SERVERS}

            def run(*command: str) -> set[str]:
                done = client.run("unshare", "--uts", "sh", "-c", AS_CLIENT, "sh", *command)
                return {line.split()[0] for line in done.stdout.splitlines()}

            ways = {
                "glibc": lambda name: run("getent", "ahosts", name),
                "python": lambda name: run(sys.executable, "-c", PYTHON, name),
                "musl": lambda name: run(str(musl), name),
                "go": lambda name: run(str(go), name),
            }
            yield World(client, ways, servers)
    finally:
        node.end()


def dns_pod(node: Node, folder: Path, name: str, inventory: Path) -> Pod:
    corefile = folder / f"Corefile.{name.replace(' ', '-')}"
    corefile.write_text(COREFILE.format(more=SERVERS[name], inventory=inventory, outside=OUTSIDE_ADDRESS))
    pod = node.pod("dns", "")
    ready = f"http://{pod.addresses[0]}:8181/ready"
    pod.start("kdns", str(started.COMMANDS / "coredns"), "-conf", str(corefile), ready=ready)
    return pod


@pytest.mark.parametrize("way", ["glibc", "python", "musl", "go"])
@pytest.mark.parametrize(
    ("server", "resolv_conf", "name", "address", "count"),
    [
        ("nothing", "a search list", "web", "10.96.0.7", 2),
        ("nothing", "a search list", "web.other", "10.96.0.8", 4),
        ("nothing", "a search list", "web.other.svc", "10.96.0.8", 6),
        ("nothing", "a search list", "www.corp.example", OUTSIDE_ADDRESS, 8),
        ("nothing", "a search list", "no.corp.example", "", 8),
        ("nothing", "no list", "web", "", 2),
        ("autopath", "a search list", "web", "10.96.0.7", 2),
        ("autopath", "a search list", "web.other", "10.96.0.8", 2),
        ("autopath", "a search list", "web.other.svc", "10.96.0.8", 2),
        ("autopath", "a search list", "www.corp.example", OUTSIDE_ADDRESS, 2),
        ("autopath", "a search list", "no.corp.example", "", 8),
        ("autopath by name", "a search list", "web.other", "10.96.0.8", 2),
        ("autopath by name", "a search list", "www.corp.example", OUTSIDE_ADDRESS, 2),
        ("search", "no list", "web", "10.96.0.7", 2),
        ("search", "no list", "web.other", "10.96.0.8", 2),
        ("search", "no list", "web.other.svc", "10.96.0.8", 2),
        ("search", "no list", "www.corp.example", OUTSIDE_ADDRESS, 2),
        ("search", "a search list", "web", "10.96.0.7", 2),
    ],
)
def test_a_name_is_found_with_so_many_queries(
    world: World, way: str, server: str, resolv_conf: str, name: str, address: str, count: int
) -> None:
    found = world.look_up(way, server, LISTS[resolv_conf], name)
    assert found == ({address} if address else set(), count)
