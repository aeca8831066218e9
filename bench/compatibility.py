"""CoreDNS and kdns side by side: the same Corefile, the same API server, the same questions, and what differs.

`COREDNS=/path/to/coredns python -m bench.compatibility` goes through all Corefiles, or those that are named behind it.
It ends with 1 where a difference has no row in docs/coredns.md. The upstream of both is a kdns of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import yaml

from bench.servers import ROOT
from kdns.compare.asking import Gently, Remote
from kdns.compare.comparison import Comparison, Report
from kdns.compare.differences import Way
from kdns.compare.known import truth_of
from kdns.compare.questions import Asked, of_cluster, of_file
from kdns.compare.report import as_text
from kdns.errors import KdnsError
from kdns.kubernetes.objects import EndpointSlice, Namespace, Pod, Service
from kdns.plugins.bind import interface_addresses
from kdns.upstream.sockets import Upstream
from kdns.wire import names
from kdns.wire.message import Message
from kdns.wire.records import Rcode, Type
from tests.faults.fake import api_server
from tests.faults.store import RESOURCES, Store
from tests.started import free_port

Object = dict[str, Any]

ZONE = names.from_text("cluster.local")
KINDS: dict[str, type[Namespace | Service | EndpointSlice | Pod]] = {
    "Namespace": Namespace,
    "Service": Service,
    "EndpointSlice": EndpointSlice,
    "Pod": Pod,
}
# The namespaces that these Corefiles hide.
HIDDEN = {
    "one namespace": frozenset((b"default", b"hidden", b"empty", b"kube-system")),
    "namespaces by label": frozenset((b"default", b"hidden", b"empty")),
}
CROWD = 60
START_SECONDS = 30.0

# Who answers for the rest of the world.
WORLD = """\
.:PORT {
    bind HOST
    template IN A . {
        match ^(www[.]example[.]com|a[.]example[.]org|far[.]example[.]com)[.]$
        answer "{{ .Name }} 60 IN A 192.0.2.80"
        fallthrough
    }
    template IN AAAA . {
        match ^www[.]example[.]com[.]$
        answer "{{ .Name }} 60 IN AAAA 2001:db8::80"
        fallthrough
    }
    template IN ANY . {
        match ^(www[.]example[.]com|a[.]example[.]org|far[.]example[.]com|nothing[.]example[.]com)[.]$
        rcode NOERROR
        authority "example.com 60 IN SOA ns.example.com hostmaster.example.com 1 7200 1800 86400 60"
        fallthrough
    }
    template IN ANY broken.example.com {
        rcode SERVFAIL
    }
    template IN A alias.example.com {
        answer "alias.example.com 60 IN CNAME www.example.com"
        answer "www.example.com 60 IN A 192.0.2.80"
    }
    template IN TXT large.example.com {
        answer "large.example.com 60 IN TXT TEXT"
    }
    template IN PTR in-addr.arpa ip6.arpa {
        match ^1\\.2\\.0\\.192\\.
        answer "{{ .Name }} 60 IN PTR one.example.com."
        fallthrough
    }
    template IN ANY . {
        rcode NXDOMAIN
        authority "example.com 60 IN SOA ns.example.com hostmaster.example.com 1 7200 1800 86400 60"
    }
}
""".replace("TEXT", " ".join([f'\\"{"x" * 250}\\"'] * 6))

KUBEADM = """\
.:PORT {
    errors
    ready 127.0.0.1:READY
    kubernetes cluster.local in-addr.arpa ip6.arpa {
        endpoint API
        pods insecure
        fallthrough in-addr.arpa ip6.arpa
        ttl 30
    }
    forward . WORLD {
        max_concurrent 1000
    }
    cache 30 {
        disable success cluster.local
        disable denial cluster.local
    }
    loop
    loadbalance
}
"""
# The search list of a pod of the namespace `shop`.
RESOLV = "search shop.svc.cluster.local svc.cluster.local cluster.local example.org\n"
PLAIN = """\
.:PORT {
    errors
    kubernetes cluster.local in-addr.arpa ip6.arpa {
        endpoint API
        OPTIONS
    }
    loadbalance
}
"""


def plain(*options: str) -> str:
    """A Corefile with nothing but the cluster."""
    return PLAIN.replace("OPTIONS", "\n        ".join(options))


COREFILES = {
    "kubeadm": KUBEADM,
    "cache over everything": KUBEADM.replace("disable success cluster.local", "").replace(
        "disable denial cluster.local", ""
    ),
    "pods verified": plain("pods verified", "ttl 5"),
    "no pods": plain("endpoint_pod_names"),
    "ignore empty services": plain("ignore empty_service", "pods insecure"),
    "no endpoints": plain("noendpoints", "ttl 0"),
    "one namespace": plain("namespaces shop", "pods verified"),
    "namespaces by label": plain("namespace_labels team=front", "pods insecure"),
    "objects by label": plain("labels app=web", "pods verified"),
    "fallthrough": KUBEADM.replace("fallthrough in-addr.arpa ip6.arpa", "fallthrough"),
    "two zones": plain("ttl 10").replace("cluster.local", "example.net cluster.local"),
    "hosts, template, rewrite": KUBEADM.replace(
        "    forward",
        """\
    rewrite name old.example.org www.example.com
    rewrite name suffix .svc.old.local .svc.cluster.local answer auto
    rewrite stop name regex (.*)\\.(.*)\\.short {1}.{2}.svc.cluster.local answer auto
    rewrite type ANY HINFO
    hosts {
        192.0.2.70 host.example.org
        2001:db8::70 host.example.org
        fallthrough
    }
    template IN A ip.example.org {
        match ^ip-(?P<a>[0-9]*)-(?P<b>[0-9]*)-(?P<c>[0-9]*)-(?P<d>[0-9]*)[.]ip[.]example[.]org[.]$
        answer "{{ .Name }} 60 IN A {{ .Group.a }}.{{ .Group.b }}.{{ .Group.c }}.{{ .Group.d }}"
        fallthrough
    }
    template ANY ANY refused.example.org {
        rcode REFUSED
    }
    forward""",
        1,
    ),
    "autopath by a file": KUBEADM.replace("    kubernetes", "    autopath RESOLV\n    kubernetes"),
    "dns64": KUBEADM.replace("    kubernetes", "    dns64 {\n        allow_ipv4\n    }\n    kubernetes"),
    "any, acl, header": KUBEADM.replace(
        "    kubernetes",
        """\
    any
    acl {
        filter type TXT
    }
    header {
        response set ra
    }
    kubernetes""",
    ),
    "minimal, bind, without loadbalance": plain("pods insecure").replace("loadbalance", "minimal\n    bind HOST"),
}

QUESTIONS = """\
www.example.com A
www.example.com AAAA
WWW.Example.com A
www.example.com TXT
alias.example.com A
nothing.example.com A
broken.example.com A
large.example.com TXT
a.example.org A
nosuch.example.org A
nosuch.example.org AAAA
nosuch.example.org SOA
old.example.org A
host.example.org A
host.example.org AAAA
host.example.org MX
ip-10-0-0-7.ip.example.org A
ip-10-0-0-7.ip.example.org AAAA
ip-x.ip.example.org A
anything.refused.example.org A
web.shop.svc.old.local A
web.shop.svc.old.local AAAA
_http._tcp.web.shop.svc.old.local SRV
web.shop.short A
. NS
. A
localhost A
1.2.0.192.in-addr.arpa PTR
70.2.0.192.in-addr.arpa PTR
9.9.9.9.in-addr.arpa PTR
0.96.10.in-addr.arpa PTR
10.in-addr.arpa NS
in-addr.arpa SOA
in-addr.arpa NS
in-addr.arpa A
ip6.arpa SOA
ns.dns.cluster.local.cluster.local A
svc.in-addr.arpa A
a.b.c.web.shop.svc.cluster.local A
http.tcp.web.shop.svc.cluster.local SRV
_._.web.shop.svc.cluster.local SRV
_._tcp.web.shop.svc.cluster.local SRV
_tcp.web.shop.svc.cluster.local A
_http._udp.web.shop.svc.cluster.local SRV
*.shop.svc.cluster.local A
any.shop.svc.cluster.local A
x.y.10-1-0-1.shop.pod.cluster.local A
x.y.z.10-1-0-1.shop.pod.cluster.local A
10-01-0-1.shop.pod.cluster.local A
fd00-1--1.shop.pod.cluster.local AAAA
fd00-1-0-0-0-0-0-1.shop.pod.cluster.local AAAA
--1.shop.pod.cluster.local AAAA
10-1-0-77.shop.pod.cluster.local A
192-0-2-10.hidden.pod.cluster.local A
web.shop.svc.example.net A
web.shop.svc.example.net SRV
example.net SOA
version.bind TXT
web.shop.svc.cluster.local DS
web.shop.svc.cluster.local DNSKEY
web.shop.svc.cluster.local TYPE65280
cluster.local DS
local A
web.shop.shop.svc.cluster.local A
web.shop.svc.shop.svc.cluster.local A
web.shop.svc.cluster.local.shop.svc.cluster.local A
www.example.com.shop.svc.cluster.local TXT
a.shop.svc.cluster.local A
nothing.example.com.shop.svc.cluster.local A
nosuch.shop.svc.cluster.local AAAA
shop.svc.cluster.local A
"""


def main() -> int:
    program = os.environ.get("COREDNS", "")
    if not program:
        print("COREDNS=/path/to/coredns says which one", file=sys.stderr)
        return 2
    chosen = sys.argv[1:] or list(COREFILES)
    unexplained = 0
    for name in chosen:
        with tempfile.TemporaryDirectory() as folder:
            report = asyncio.run(_compare(Path(program), name, Path(folder)))
        print(f"\n== {name}")
        print("\n".join(as_text(report, "CoreDNS", "kdns")), flush=True)
        unexplained += len(report.unexplained)
    return 1 if unexplained else 0


def _host() -> str:
    """An address of this machine that CoreDNS takes for its own: one of loopback it doesn't."""
    found = [text for _, text in interface_addresses() if ":" not in text and not text.startswith("127.")]
    return next(iter(found), "127.0.0.1")


async def _compare(program: Path, name: str, folder: Path) -> Report:
    text = COREFILES[name]
    store, host = Store(), _host()
    objects = list(_objects(host))
    for each in objects:
        store.put(next(one.plural for one in RESOURCES.values() if one.kind == each["kind"]), each)
    truth = truth_of(msgspec.convert(each, type=KINDS[each["kind"]]) for each in objects)
    truth = msgspec.structs.replace(truth, hidden=HIDDEN.get(name, frozenset()))
    asked = of_cluster(truth.cluster, ZONE, Random(4711))
    asked = list(dict.fromkeys([*asked, *of_file("QUESTIONS", QUESTIONS)]))
    ours = [sys.executable, "-c", "from kdns.coredns import main; main()", "-conf"]
    async with api_server(store) as api:
        with contextlib.ExitStack() as stack:
            words = {"HOST": host, "API": api.url}
            world = stack.enter_context(_running(ours, WORLD, folder / "world", words))
            words["WORLD"] = f"{host}:{world}"
            there = stack.enter_context(_running([str(program), "-conf"], text, folder / "CoreDNS", words))
            here = stack.enter_context(_running(ours, text, folder / "kdns", words))
            async with _remote(host, there) as theirs, _remote(host, here) as ourselves:
                for remote in (theirs, ourselves):
                    await _ready(remote)
                return await Comparison(theirs, ourselves, truth, ZONE).run(asked)


def _objects(host: str) -> Iterator[Object]:
    yield from yaml.safe_load_all((ROOT / "bench/compatibility.yaml").read_text())
    yield _slice("shop", "crowd", [f"10.2.0.{number}" for number in range(1, CROWD + 1)])
    # Both servers are its endpoint, so that it is the name server of their zones.
    yield _slice("kube-system", "kube-dns", [host])


def _slice(namespace: str, service: str, addresses: Sequence[str]) -> Object:
    labels = {"kubernetes.io/service-name": service}
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": f"{service}-1", "namespace": namespace, "labels": labels},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [address]} for address in addresses],
        "ports": [{"name": "http", "port": 80, "protocol": "TCP"}],
    }


@contextlib.contextmanager
def _running(line: Sequence[str], text: str, folder: Path, words: dict[str, str]) -> Iterator[int]:
    """A server with a Corefile, at a port that is free, for as long as the block lasts."""
    folder.mkdir()
    port = free_port()
    (folder / "resolv.conf").write_text(RESOLV)
    for word, value in {"PORT": port, "READY": free_port(), "RESOLV": folder / "resolv.conf", **words}.items():
        text = text.replace(word, str(value))
    (folder / "Corefile").write_text(text)
    with (folder / "said").open("wb") as out:
        process = subprocess.Popen([*line, str(folder / "Corefile")], cwd=ROOT, stdout=out, stderr=out)
    try:
        yield port
    except BaseException as error:
        error.add_note((folder / "said").read_text())
        raise
    finally:
        process.kill()
        process.wait()


@contextlib.asynccontextmanager
async def _remote(host: str, port: int) -> AsyncIterator[Remote]:
    remote = Remote(Upstream(host, port), Gently(rate=5000, seconds=3, tries=1))
    try:
        yield remote
    finally:
        remote.close()


async def _ready(remote: Remote) -> None:
    """Wait until a server knows the cluster: before that a name of it is SERVFAIL."""
    deadline = time.monotonic() + START_SECONDS
    asked = Asked(names.from_text("web.shop.svc.cluster.local"), Type.A)
    while time.monotonic() < deadline:
        # One that doesn't listen yet is given up soon.
        with contextlib.suppress(KdnsError):
            reply = await remote.ask(asked, Way.UDP)
            if isinstance(reply, Message) and reply.rcode == Rcode.NOERROR:
                return
        await asyncio.sleep(0.1)
    raise TimeoutError(f"{remote.upstream} doesn't know the cluster after {START_SECONDS:g} s")


if __name__ == "__main__":
    sys.exit(main())
