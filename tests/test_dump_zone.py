"""An inventory printed as a zone: other servers' tools take it, and its records are what queries are answered with."""

from __future__ import annotations

import subprocess
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import dns.message
import dns.name
import dns.rdatatype
import dns.zone
import pytest
from click.testing import CliRunner

from kdns import corefile
from kdns.app import build
from kdns.chain import Process
from kdns.cli import kdns as command
from kdns.kubernetes import inventory
from kdns.kubernetes.objects import Put, Synced
from kdns.metrics import Metrics
from kdns.plugins.kubernetes import Kubernetes
from kdns.responder import Responder
from tests import needs

ZONES = Path(__file__).parent.parent / "zones"
REVERSE = ["in-addr.arpa", "ip6.arpa"]
LOOPBACK = b"\x7f\x00\x00\x01"

EVERYTHING = """
apiVersion: v1
kind: Namespace
metadata: {name: empty}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  clusterIPs: [10.96.0.20, "fd00:96::20"]
  ipFamilyPolicy: RequireDualStack
  ports:
    - {name: http, port: 80, targetPort: 8080}
    - {name: dns, port: 53, protocol: UDP}
    - {name: dns-tcp, port: 53, protocol: TCP}
    - {name: sig, port: 99, protocol: SCTP}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
endpoints:
  - {addresses: [10.1.0.1]}
  - {addresses: [10.1.0.2], hostname: second}
  - {addresses: [10.1.0.3], conditions: {ready: false}}
ports: [{name: http, port: 8080}, {name: dns, port: 53, protocol: UDP}]
---
apiVersion: v1
kind: Service
metadata: {name: unnamed, namespace: shop}
spec: {type: NodePort, clusterIP: 10.96.0.21, ports: [{port: 443}]}
---
apiVersion: v1
kind: Service
metadata: {name: pets, namespace: shop}
spec: {clusterIP: None, ports: [{name: http, port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: pets-1, namespace: shop, labels: {kubernetes.io/service-name: pets}}
addressType: IPv4
endpoints:
  - {addresses: [10.1.0.2], hostname: pet-0}
  - {addresses: [10.1.0.4], hostname: pet-0}
  - {addresses: [10.1.0.5, 10.1.0.6]}
ports: [{name: http, port: 8080}, {name: any}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: pets-2, namespace: shop, labels: {kubernetes.io/service-name: pets}}
addressType: IPv6
endpoints: [{addresses: ["fd00:17::"]}, {addresses: ["::5"]}]
---
apiVersion: v1
kind: Service
metadata: {name: nobody, namespace: shop}
spec: {clusterIP: None, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: outside, namespace: shop}
spec: {type: ExternalName, externalName: www.example.com}
---
apiVersion: v1
kind: Service
metadata: {name: inside, namespace: shop}
spec: {type: ExternalName, externalName: web.shop.svc.cluster.local.}
---
apiVersion: v1
kind: Service
metadata: {name: number, namespace: shop}
spec: {type: ExternalName, externalName: 192.0.2.1}
---
apiVersion: v1
kind: Pod
metadata: {name: one, namespace: shop}
status: {podIP: 10.1.0.7, podIPs: [{ip: 10.1.0.7}, {ip: "fd00::7"}]}
"""

INVENTORIES = ["everything", *(path.name for path in sorted(ZONES.iterdir()))]


@pytest.fixture(params=INVENTORIES)
def manifests(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The path of an inventory."""
    if request.param != "everything":
        return ZONES / str(request.param)
    path = tmp_path / "everything.yaml"
    path.write_text(EVERYTHING)
    return path


def dump(manifests: Path, zone: str) -> str:
    """What `kdns dump` prints."""
    done = CliRunner().invoke(command, ["dump", "-i", str(manifests), "--format", "zone", "--zone", zone])
    assert done.exit_code == 0, done.output
    return done.stdout


def checked(*arguments: str) -> None:
    """Run a checker, which has to be content."""
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("zone", ["cluster.local", *REVERSE])
def test_bind_accepts_the_zone(manifests: Path, zone: str, tmp_path: Path) -> None:
    file = tmp_path / "dumped.zone"
    file.write_text(dump(manifests, zone))
    # Names of ports begin with an underscore, which no host may.
    checked(needs.command("named-checkzone"), "-k", "ignore", "-i", "local", zone, str(file))


@pytest.mark.parametrize("zone", ["cluster.local", *REVERSE])
def test_knot_accepts_the_zone(manifests: Path, zone: str, tmp_path: Path) -> None:
    file = tmp_path / "dumped.zone"
    file.write_text(dump(manifests, zone))
    checked(needs.command("kzonecheck"), "-o", zone, str(file))


@pytest.mark.parametrize("zone", ["cluster.local", *REVERSE])
def test_every_set_of_records_is_what_a_query_answers(manifests: Path, zone: str) -> None:
    dumped = dump(manifests, zone)
    dns.zone.from_text(dumped, zone, relativize=False)
    expected: dict[tuple[str, str], set[str]] = defaultdict(set)
    for owner, ttl, rclass, rtype, data in records_in(dumped):
        expected[owner, rtype].add(f"{owner} {ttl} {rclass} {rtype} {data}")
    served = Served(manifests)
    for (owner, rtype), records in expected.items():
        assert served.ask(owner, rtype) == {_without_serial(record) for record in records}


def test_a_zone_has_every_name_of_the_cluster(tmp_path: Path) -> None:
    path = tmp_path / "everything.yaml"
    path.write_text(EVERYTHING)
    owners = {
        record[0].removesuffix("cluster.local.").rstrip(".") for record in records_in(dump(path, "cluster.local"))
    }
    ports = {
        "_http._tcp.web",
        "_dns._udp.web",
        "_dns-tcp._tcp.web",
        "_sig._sctp.web",
        "_http._tcp.pets",
        "_any._tcp.pets",
    }
    of_web = {"web", "10-1-0-1.web", "second.web"}
    of_pets = {"pets", "pet-0.pets", "10-1-0-5.pets", "10-1-0-6.pets", "fd00-17--0.pets", "--5.pets"}
    services = ports | of_web | of_pets | {"unnamed", "outside", "inside"}
    assert owners == {
        "",
        "ns.dns",
        "dns-version",
        "10-1-0-7.shop.pod",
        "fd00--7.shop.pod",
        *(f"{each}.shop.svc" for each in services),
    }


def records_in(dumped: str) -> Iterator[list[str]]:
    """The records of a zone file as `kdns dump` writes it, one a line: owner, TTL, class, type and data."""
    for line in dumped.splitlines():
        if not line.startswith("$"):
            yield line.split(" ", 4)


class Served:
    """The same inventory behind a responder."""

    def __init__(self, manifests: Path) -> None:
        text = f".:53 {{\nkubernetes cluster.local {' '.join(REVERSE)} {{\npods verified\ninventory {manifests}\n}}\n}}"
        built = build(corefile.parse(text, "Corefile"), Process(Metrics()))
        built.process.addresses = [LOOPBACK]
        for plugin in built.plugins:
            if isinstance(plugin, Kubernetes):
                objects = inventory.load(plugin.inventory_paths, plugin.inventory_options).objects
                plugin.apply([*map(Put, objects.values()), Synced()])
        self._responder = Responder(built.listeners[0].sites, built.process, built.process.metrics)

    def ask(self, owner: str, rtype: str) -> set[str]:
        """The answer to a question, as lines without serials."""
        query = dns.message.make_query(dns.name.from_text(owner), rtype)
        wire = self._responder.respond(query.to_wire(), "tcp", ("127.0.0.1", 1), ("127.0.0.1", 53), lambda reply: None)
        assert isinstance(wire, bytes)
        reply = dns.message.from_wire(wire)
        return {
            _without_serial(f"{rrset.name} {rrset.ttl} IN {dns.rdatatype.to_text(rrset.rdtype)} {rdata}")
            for rrset in reply.answer
            for rdata in rrset
        }


def _without_serial(line: str) -> str:
    fields = line.split()
    if fields[3] == "SOA":
        fields[6] = "SERIAL"
    return " ".join(fields)
