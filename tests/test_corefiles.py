"""The Corefiles that distributions of Kubernetes ship: each loads unchanged, starts, and answers.

They stand in tests/corefiles/, one folder each with the files that they import.
To be loaded, nothing of them is changed but /etc/resolv.conf, which this machine may not have.
To be started, addresses, ports and paths are put into reach, an inventory stands for the API server, and each upstream
is one that gives every name one address.
"""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

import dns.message
import dns.query
import dns.rcode
import pytest
import uvloop

from kdns import corefile, serve
from kdns.app import App, build
from kdns.chain import Process
from kdns.metrics import Metrics
from tests import started
from tests.upstream.fake import says, upstream

FOLDER = Path(__file__).parent / "corefiles"
NAMES = sorted(each.name for each in FOLDER.iterdir())
ENVIRONMENT = {"MY_HOST_IP": "127.0.0.1"}

WEB, UPSTREAM = "10.96.3.4", "192.0.2.80"
INVENTORY = """\
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  clusterIP: 10.96.3.4
  ports: [{name: http, port: 80}]
"""

# What is worth a warning in a Corefile as it stands: paths that lead nowhere on this machine.
WARNINGS = {
    "helm": ["no files matching import glob pattern: `/opt/coredns/*.conf`"],
    "k3s": [
        "no files matching import glob pattern: `/etc/coredns/custom/*.override`",
        "no files matching import glob pattern: `/etc/coredns/custom/*.server`",
    ],
    "scaleway": ["no files matching import glob pattern: `custom/*.override`"],
    "vcluster": ["no files matching import glob pattern: `/etc/coredns/custom/*.server`"],
}

# Whose answers the `cache` of CoreDNS would keep, and kdns's doesn't; but for OTHER_NOTES all else means the same.
KEPT_IN_COREDNS = "`cache`: no effect on answers of {}, which have the TTL that those say"
KEPT = dict.fromkeys(NAMES, "`kubernetes`")
KEPT |= dict.fromkeys(("k3s", "kops-gossip", "kubespray", "minikube", "ovh", "vcluster"), "`hosts` and `kubernetes`")
for means_the_same in ("aks-localdns", "kind", "kubeadm", "kubespray-nodelocaldns", "nodelocal", "talos"):
    del KEPT[means_the_same]

OTHER_NOTES = {
    "kops-ipv6": [
        "`dns64`: SERVFAIL where the question for A fails",
        "`dns64`: a client that sets DO and CD gets nothing translated",
        "`dns64`: AA is that of the answer that is translated",
    ],
}

# What each is asked beside a name of the cluster and a name of others: the question, the response code, the data.
QUESTIONS: dict[str, list[tuple[str, str, list[str]]]] = {
    "aks": [
        ("vm.reddog.microsoft.com. A", "NXDOMAIN", []),
        ("a.b.c.d.internal.cloudapp.net. A", "NXDOMAIN", []),
        ("vm.internal.cloudapp.net. A", "NOERROR", [UPSTREAM]),
        ("www.corp.example. A", "NOERROR", [UPSTREAM]),
    ],
    "aks-localdns": [
        ("health-check.localdns.local. A", "NOERROR", []),
        ("vm.reddog.microsoft.com. A", "NXDOMAIN", []),
    ],
    "coredns-deployment": [("www.corp.example. A", "NOERROR", [UPSTREAM])],
    "gardener": [("web.shop.svc.cluster.local.svc.cluster.local. A", "NOERROR", [WEB])],
    "k3s": [("node-b. A", "NOERROR", ["192.0.2.12"]), ("www.corp.example. A", "NOERROR", [UPSTREAM])],
    "kops-gossip": [("api.internal.prod.k8s.local. A", "NOERROR", ["192.0.2.10"])],
    "kubespray": [
        ("registry.example. A", "NOERROR", ["192.0.2.21"]),
        ("web.shop.svc.other.local. A", "NOERROR", [WEB]),
        ("www.old.corp.example. A", "NOERROR", [UPSTREAM]),
    ],
    "minikube": [("host.minikube.internal. A", "NOERROR", ["192.168.49.1"])],
    "openshift": [
        ("www.corp.example. A", "NOERROR", [UPSTREAM]),
        ("www.secure.example. A", "NOERROR", [UPSTREAM]),
        ("version.bind. CH TXT", "REFUSED", []),
    ],
    "ovh": [("shop.internal.example. A", "NOERROR", ["192.0.2.31"])],
    "vcluster": [("node-a. A", "NOERROR", ["192.0.2.11"])],
}
# In these, names of the cluster are forwarded to its own server.
PER_NODE = ("aks-localdns", "kubespray-nodelocaldns", "nodelocal")


# As it stands


@pytest.mark.parametrize("name", NAMES)
def test_it_loads_unchanged(name: str, tmp_path: Path) -> None:
    shutil.copytree(FOLDER / name, tmp_path, dirs_exist_ok=True)
    (tmp_path / "resolv.conf").write_text("nameserver 192.0.2.1\n")
    path = tmp_path / "Corefile"
    path.write_text(path.read_text().replace("/etc/resolv.conf", str(tmp_path / "resolv.conf")))
    parsed = corefile.load(str(path), environment=ENVIRONMENT)
    configuration = build(parsed, Process(Metrics()))
    assert [problem.message for problem in configuration.warnings] == WARNINGS.get(name, [])
    notes = [problem.message for problem in serve.warnings(parsed, configuration) if problem.note]
    assert notes == ([KEPT_IN_COREDNS.format(KEPT[name])] if name in KEPT else []) + OTHER_NOTES.get(name, [])


# In reach


@pytest.mark.parametrize("name", NAMES)
def test_it_starts_and_answers(name: str, tmp_path: Path) -> None:
    shutil.copytree(FOLDER / name, tmp_path, dirs_exist_ok=True)
    (tmp_path / "inventory.yaml").write_text(INVENTORY)

    async def story() -> None:
        step = says(bytes(map(int, UPSTREAM.split("."))))
        async with upstream(step, tcp=step) as fake:
            reach = _Reach(tmp_path, str(fake.upstream))
            reach.bring()
            parsed = corefile.load(str(tmp_path / "Corefile"), environment=ENVIRONMENT)
            app = App(build(parsed, Process(Metrics())))
            await app.start()
            try:
                for address in reach.addresses:
                    for question, rcode, data in _questions(name):
                        said = await asyncio.to_thread(ask, question, address, reach.port)
                        assert said == (rcode, data), f"{question} at {address}"
            finally:
                await app.stop()

    uvloop.run(story())


def _questions(name: str) -> Iterable[tuple[str, str, list[str]]]:
    yield "web.shop.svc.cluster.local. A", "NOERROR", [UPSTREAM if name in PER_NODE else WEB]
    if name not in PER_NODE:
        yield "4.3.96.10.in-addr.arpa. PTR", "NOERROR", ["web.shop.svc.cluster.local."]
        yield "nobody.shop.svc.cluster.local. A", "NXDOMAIN", []
    yield "www.example.net. A", "NOERROR", [UPSTREAM]
    yield from QUESTIONS.get(name, [])


def ask(question: str, address: str, port: int) -> tuple[str, list[str]]:
    """Response code and the answer's data."""
    name, *rclass, rtype = question.split()
    query = dns.message.make_query(name, rtype, rclass[0] if rclass else "IN", use_edns=0)
    reply = dns.query.udp(query, address, 5, port)
    return dns.rcode.to_text(reply.rcode()), [str(data) for rrset in reply.answer for data in rrset]


class _Reach:
    """A folder with a Corefile and what it imports, brought into reach of a test."""

    def __init__(self, folder: Path, to: str) -> None:
        self.port = started.free_port()
        self._folder = folder
        self._to = to
        self._ports: dict[tuple[str, str], int] = {}
        self._bound: dict[str, str] = {}

    @property
    def addresses(self) -> list[str]:
        """Where it can be asked."""
        return list(self._bound.values()) or ["127.0.0.1"]

    def bring(self) -> None:
        """Rewrite the Corefile and what it imports."""
        imported = [path for path in (self._folder / "custom").glob("*") if path.is_file()]
        for path in [self._folder / "Corefile", *imported]:
            lines = [each for line in path.read_text().splitlines() for each in self._line(line)]
            path.write_text("\n".join(lines) + "\n")

    def _line(self, line: str) -> list[str]:
        for folder in ("/etc/coredns", "/opt/coredns"):
            line = line.replace(f"{folder}/", f"{self._folder}/")
        line = line.replace("/rootfs/", f"{self._folder}/rootfs/")
        if re.match(r"\S.*\{$", line):
            return [re.sub(r":\d+", f":{self.port}", line)]
        if found := re.fullmatch(r"(\s+bind )(.*)", line):
            return [found[1] + " ".join(map(self._address, found[2].split()))]
        if found := re.fullmatch(r"(\s+)(health|ready|prometheus)\b\s*((?:\{\$\w+\})?[^\s{]*)\s*(.*)", line):
            place = (found[2], found[3])
            port = self._ports.setdefault(place, 0) or started.free_port()
            self._ports[place] = port
            return [f"{found[1]}{found[2]} 127.0.0.1:{port} {found[4]}"]
        if found := re.fullmatch(r"(\s+forward\s+\S+\s+)[^{]*(\{?)", line):
            return [f"{found[1]}{self._to} {found[2]}"]
        if re.fullmatch(r"\s+kubernetes .*\{", line):
            return [line, f"inventory {self._folder}/inventory.yaml"]
        if re.fullmatch(r"\s+tls(_servername .*)?", line):
            # The upstream of the test speaks no TLS.
            return []
        # Nobody waits for 20 seconds at its end.
        return [re.sub(r"lameduck \S+", "lameduck 0s", line)]

    def _address(self, address: str) -> str:
        return self._bound.setdefault(address, f"127.0.0.{2 + len(self._bound)}")


# What only some of them have


def test_the_one_of_kops_for_ipv6_translates_addresses_of_the_cluster(tmp_path: Path) -> None:
    assert started.has_ipv6()
    shutil.copytree(FOLDER / "kops-ipv6", tmp_path, dirs_exist_ok=True)
    (tmp_path / "inventory.yaml").write_text(INVENTORY)

    async def story() -> None:
        async with upstream(says()) as fake:
            reach = _Reach(tmp_path, str(fake.upstream))
            reach.bring()
            app = App(build(corefile.load(str(tmp_path / "Corefile")), Process(Metrics())))
            await app.start()
            try:
                question = "web.shop.svc.cluster.local. AAAA"
                said = await asyncio.to_thread(ask, question, "::1", reach.port)
                assert said == ("NOERROR", ["64:ff9b::a60:304"])
                assert await asyncio.to_thread(ask, question, "127.0.0.1", reach.port) == ("NOERROR", [])
            finally:
                await app.stop()

    uvloop.run(story())
