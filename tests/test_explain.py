"""`kdns explain`: what it says to each mistake, its transcripts, and a running server that is asked."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from kdns import corefile, explaining
from kdns.app import build
from kdns.chain import Process
from kdns.errors import ConfigError
from kdns.explain import report
from kdns.explain.asking import Ask, AskError
from kdns.explain.explanation import World, explain
from kdns.explain.knowledge import Source
from kdns.explain.meaning import Meaning, meaning_of
from kdns.explain.running import clusters_of, main_listener
from kdns.explain.stub import NODE, OTHER, Resolver, candidates, in_cluster, of_pod
from kdns.kubernetes.objects import (
    SERVICE_NAME_LABEL,
    Endpoint,
    EndpointPort,
    EndpointSlice,
    Metadata,
    Namespace,
    PodDnsConfig,
    PodDnsOption,
    PodSpec,
    Put,
    Service,
    ServiceSpec,
    Synced,
)
from kdns.metrics import Metrics
from kdns.server import admin
from kdns.wire import names
from tests import needs, started
from tests.started import ROOT, Started, run

HERE = Path(__file__).parent / "explain"
SHOP = str(HERE / "shop.yaml")
NOON = 1_700_000_000.0
KUBECONFIG = """\
apiVersion: v1
kind: Config
clusters: [{name: here, cluster: {server: "https://127.0.0.1:9"}}]
users: [{name: me, user: {token: secret}}]
contexts: [{name: here, context: {cluster: here, user: me}}]
current-context: here
"""


# Mistakes, and what is said to them


class Row(msgspec.Struct, forbid_unknown_fields=True):
    """A question, and what is to be said of it."""

    name: str
    ask: str
    says: str
    queries: int
    resolves: bool | None = False
    from_: str = msgspec.field(default="", name="from")
    client: str = ""
    corefile: str = ""
    objects: list[str] = []
    hints: list[str] = []


ROWS = msgspec.yaml.decode((HERE / "rows.yaml").read_bytes(), type=list[Row])


def explained(row: Row, tmp_path: Path) -> report.Explanation:
    file = HERE / "Corefile"
    if row.corefile not in ("", "Corefile"):
        file = tmp_path / "Corefile"
        file.write_text(f".:53 {{\n{row.corefile}\n}}\n")
    wish = explaining.Wish(inventory=(SHOP,), corefile=str(file) if row.corefile else "")
    name, _, rtype = row.ask.partition(" ")
    return explaining.offline(Ask(name, rtype, row.from_, row.client), wish)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_mistake_is_told_with_its_way_out(row: Row, tmp_path: Path) -> None:
    told = explained(row, tmp_path)
    found = {
        "says": told.summary,
        "resolves": told.resolves,
        "queries": told.queries,
        "objects": [f"{each.kind} {each.namespace}/{each.name}".replace(" /", " ") for each in told.objects],
        "hints": [f"{hint.code}: {hint.text}" for hint in told.hints],
    }
    assert found == {key: getattr(row, key) for key in found}


# What can't be asked


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        pytest.param(
            Ask("http://web.shop:80/x"),
            "error: `http://web.shop:80/x` is no name\nhint: a name stands alone: `web.shop`",
            id="a URL",
        ),
        pytest.param(
            Ask("web:80"), "error: `web:80` is no name\nhint: a name stands alone: `web`", id="a name with a port"
        ),
        pytest.param(
            Ask("[fd00::1]:53"),
            "error: `[fd00::1]:53` is no name\nhint: an address stands alone: `fd00::1`",
            id="an address with a port",
        ),
        pytest.param(
            Ask("fe80::1%eth0"),
            "error: `fe80::1%eth0` is no name\nhint: an address stands alone: `fe80::1`",
            id="an address with a zone",
        ),
        pytest.param(Ask("a..b"), "error: `a..b` is no name: a label has 1 to 63 bytes", id="an empty label"),
        pytest.param(
            Ask("web", "B"),
            "error: `B` is no record type\nhint: A, AAAA, SRV and PTR are; without a type A and AAAA are asked for",
            id="a type that is none",
        ),
        pytest.param(
            Ask("web", "AXFR"),
            "error: `AXFR` is no type that a record has\n"
            "hint: A, AAAA, SRV and PTR are; without a type A and AAAA are asked for",
            id="a type that no record has",
        ),
        pytest.param(
            Ask("web", of="shpo"), "error: there is no namespace `shpo`\nhint: did you mean `shop`?", id="no namespace"
        ),
        pytest.param(
            Ask("web", of="shop/web-O"),
            "error: there is no pod `shop/web-O`\nhint: did you mean `shop/web-3`?",
            id="no pod",
        ),
        pytest.param(
            Ask("web", client="10.1"),
            "error: `10.1` is no address\nhint: `--client` takes the IP address of a client",
            id="no address",
        ),
        pytest.param(
            Ask("web", of="shop", client="10.1.0.20"),
            "error: `--from` and `--client` are two ways to say who asks\nhint: give one of them",
            id="two clients",
        ),
    ],
)
def test_a_question_that_is_none_is_refused(ask: Ask, message: str) -> None:
    with pytest.raises(AskError) as refused:
        explaining.offline(ask, explaining.Wish(inventory=(SHOP,)))
    assert str(refused.value) == message


# The resolver of a client


def test_names_with_fewer_dots_than_ndots_are_searched_first() -> None:
    resolver = in_cluster("shop", "cluster.local")
    cases = {
        "web": ["web.shop.svc.cluster.local.", "web.svc.cluster.local.", "web.cluster.local.", "web."],
        "a.b.c.d.e.f": [
            "a.b.c.d.e.f.",
            "a.b.c.d.e.f.shop.svc.cluster.local.",
            "a.b.c.d.e.f.svc.cluster.local.",
            "a.b.c.d.e.f.cluster.local.",
        ],
        "web.": ["web."],
    }
    assert {text: [names.to_text(each.name) for each in candidates(text, resolver)] for text in cases} == cases


def test_a_domain_that_makes_a_name_too_long_is_passed_over() -> None:
    long = ".".join(["x" * 60] * 4)
    found = candidates(long, in_cluster("shop", "cluster.local"))
    assert [names.to_text(each.name) for each in found] == [f"{long}."]


def test_a_lone_dot_in_the_list_is_the_name_itself() -> None:
    found = candidates("web", Resolver(search=("a.example", ".", "b.example")))
    assert [names.to_text(each.name) for each in found] == ["web.a.example.", "web.", "web.b.example."]


# Serves in a network of its own, and counts what glibc asks there for each name.
GLIBC = """\
ip link set lo up
mount --bind resolv.conf /etc/resolv.conf
"$KDNS" serve --corefile Corefile >> log 2>&1 &
until grep -q "^listening on" log; do kill -0 $! || exit 1; sleep 0.1; done
for name in "$@"; do
  truncate --size 0 log
  getent ahosts "$name" > found
  grep -c " IN " log
done
kill $!
"""


def test_the_walk_is_that_of_glibc(tmp_path: Path) -> None:
    needs.root()
    unshare = needs.command("unshare", "ip", "mount", "getent")
    text = ".:53 {\n log\n kubernetes cluster.local {\n  inventory shop.yaml\n }\n}\n"
    (tmp_path / "Corefile").write_text(text.replace("shop.yaml", SHOP))
    (tmp_path / "resolv.conf").write_text(
        "nameserver 127.0.0.1\nsearch default.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n"
    )
    names_asked = [
        "web.shop",
        "web.shop.svc.cluster.local",
        "queue-0.queue.shop",
        "six.shop.svc",
        "mail.shop",
        "moved.shop.svc.cluster.local",
        "nosuch.shop.svc.cluster.local",
        "web.shop.svc.cluster.local.",
    ]
    done = subprocess.run(
        [unshare, "--net", "--mount", "sh", "-c", GLIBC, "sh", *names_asked],
        cwd=tmp_path,
        env=started.plain_environment() | {"KDNS": str(started.COMMANDS / "kdns")},
        capture_output=True,
        text=True,
        timeout=50,
        check=True,
    )
    wish = explaining.Wish(corefile=str(tmp_path / "Corefile"))
    told = {name: explaining.offline(Ask(name), wish).queries for name in names_asked}
    assert told == dict(zip(names_asked, map(int, done.stdout.split()), strict=True))


_LIST = ("shop.svc.k.test", "svc.k.test", "k.test")


@pytest.mark.parametrize(
    ("spec", "resolver"),
    [
        pytest.param(None, Resolver(search=_LIST), id="says nothing"),
        pytest.param(PodSpec(host_network=True), Resolver("ClusterFirst", NODE, (), 1), id="is on its node's network"),
        pytest.param(
            PodSpec(host_network=True, dns_policy="ClusterFirstWithHostNet"),
            Resolver("ClusterFirstWithHostNet", search=_LIST),
            id="is there, and wants the cluster's all the same",
        ),
        pytest.param(PodSpec(dns_policy="Default"), Resolver("Default", NODE, (), 1), id="wants that of its node"),
        pytest.param(
            PodSpec(
                dns_policy="None",
                dns_config=PodDnsConfig(searches=["a.test."], options=[PodDnsOption("ndots", "99")]),
            ),
            Resolver("None", OTHER, ("a.test",), 15),
            id="has its own",
        ),
        pytest.param(
            PodSpec(
                dns_config=PodDnsConfig(
                    searches=["k.test", "b.test", "x" * 254],
                    options=[PodDnsOption("ndots", "2"), PodDnsOption("edns0")],
                )
            ),
            Resolver(search=(*_LIST, "b.test"), ndots=2),
            id="adds to the cluster's",
        ),
        pytest.param(
            PodSpec(dns_config=PodDnsConfig(searches=[f"s{number}.test" for number in range(40)])),
            Resolver(search=(*_LIST, *[f"s{number}.test" for number in range(29)])),
            id="adds more than the kubelet takes",
        ),
    ],
)
def test_the_kubelet_makes_the_resolver_of_a_pod_that(spec: PodSpec | None, resolver: Resolver) -> None:
    assert of_pod(spec, "shop", "k.test") == resolver


@pytest.mark.parametrize(
    ("name", "meaning"),
    [
        ("web.shop.svc", Meaning("service", "shop", "web")),
        ("web-0.web.shop.svc", Meaning("endpoint", "shop", "web", "web-0")),
        ("_http._tcp.web.shop.svc", Meaning("port", "shop", "web", port="http", protocol="tcp")),
        ("shop.svc", Meaning("namespace", "shop")),
        ("svc", Meaning("zone")),
        ("10-1-0-7.shop.pod", Meaning("pod", "shop", label="10-1-0-7", address="10.1.0.7")),
        ("fd00-10--7.shop.pod", Meaning("pod", "shop", label="fd00-10--7", address="fd00:10::7")),
        ("a.b.c.d.web.shop.svc", Meaning("other")),
        ("web.shop", Meaning("other")),
    ],
)
def test_labels_have_a_meaning(name: str, meaning: Meaning) -> None:
    assert meaning_of(names.labels_of(names.from_text(name))) == meaning


# Transcripts


def says(*arguments: str) -> tuple[int, str, str]:
    done = run("kdns", "explain", *arguments, cwd=ROOT)
    return done.returncode, done.stdout, done.stderr


def test_a_service_is_told_with_the_state_of_each_pod() -> None:
    assert says("web", "--from", "shop/web-0", "-i", SHOP) == (
        0,
        """\
web resolves to 10.96.0.20

asked by pod shop/web-0 at 10.1.0.20
  search shop.svc.cluster.local svc.cluster.local cluster.local, ndots:5
  web.shop.svc.cluster.local.  A     10.96.0.20  kubernetes
                               AAAA  no data     kubernetes
  2 queries, 4 packets

answered by kubernetes in the server block of .
  web.shop.svc.cluster.local. 5 IN A 10.96.0.20
  TTL 5 s; 60 bytes, fits into any packet; kept until what it says changes

Service shop/web: ClusterIP 10.96.0.20, resourceVersion 4711
  ports http 80/TCP, metrics 9090/TCP, dns 53/UDP
  1 of 4 pods ready of selector app=web,tier=front
    web-1 (10.1.0.21): being deleted since 2026-11-21T10:00:00Z
    web-3 (10.1.0.23): not ready: containers with unready status: [app]
    web-2: has no address yet (Pending)
""",
        "",
    )


def test_where_endpoints_are_no_pods_their_conditions_say_why() -> None:
    assert says("six.shop.svc.cluster.local.", "AAAA", "-i", SHOP) == (
        0,
        """\
six.shop.svc.cluster.local. resolves to fd00:10:96::6

asked by a pod of namespace default (unless --from says otherwise)
  six.shop.svc.cluster.local.  AAAA  fd00:10:96::6  kubernetes
  1 query, 2 packets

answered by kubernetes in the server block of .
  six.shop.svc.cluster.local. 5 IN AAAA fd00:10:96::6
  TTL 5 s; 72 bytes, fits into any packet; kept until what it says changes

Service shop/six: ClusterIP fd00:10:96::6
  ports without name 80/TCP
  1 of 3 endpoints ready
    fd00:10:1::7: terminating, still serving
    fd00:10:1::8: not ready
""",
        "",
    )


def test_an_alias_is_told_with_what_it_leads_to() -> None:
    assert says("memcached.platform.", "A", "--from", "default", "-i", "zones") == (
        0,
        """\
memcached.platform. resolves to 10.96.0.40, by its alias memcached.platform.svc.cluster.local.

asked by a pod of namespace default at 10.1.0.61
  that is the address of pod back-end-0
  memcached.platform.  A  10.96.0.40  search
  1 query, 2 packets

answered by search in the server block of .
  memcached.platform. 5 IN CNAME memcached.platform.svc.cluster.local.
  memcached.platform.svc.cluster.local. 5 IN A 10.96.0.40
  kubernetes answers (asked for memcached.platform.svc.cluster.local. A)
  TTL 5 s; 102 bytes, fits into any packet; kept until what it says changes

Service platform/memcached: ClusterIP 10.96.0.40
  ports memcache 11211/TCP
  1 of 1 pods ready of selector app=memcached
""",
        "",
    )


def test_what_is_forwarded_is_not_asked_without_a_server() -> None:
    assert says("old.example.org.", "A", "--corefile", str(HERE / "Corefile"), "-i", SHOP) == (
        0,
        """\
old.example.org. resolves to 10.96.0.20

asked by a pod of namespace default (unless --from says otherwise)
  old.example.org.  A  10.96.0.20  kubernetes (asked for web.shop.svc.cluster.local. A)
  1 query, 2 packets

answered by kubernetes in the server block of .
  old.example.org. 30 IN A 10.96.0.20
  rewrite changes
  TTL 30 s; 49 bytes, fits into any packet; not kept: made anew for each query, because of acl

Service shop/web: ClusterIP 10.96.0.20, resourceVersion 4711
  ports http 80/TCP, metrics 9090/TCP, dns 53/UDP
  1 of 4 pods ready of selector app=web,tier=front
    web-1 (10.1.0.21): being deleted since 2026-11-21T10:00:00Z
    web-3 (10.1.0.23): not ready: containers with unready status: [app]
    web-2: has no address yet (Pending)
""",
        "",
    )
    code, told, _ = says("www.example.org.", "A", "--corefile", str(HERE / "Corefile"), "-i", SHOP)
    assert (code, told.splitlines()[-2:]) == (
        0,
        ["  www.example.org.  A  forwarded  forward to 192.0.2.1:53 or 192.0.2.2:53", "  1 query, 2 packets"],
    )


_NO_NAME = "error: `http://web/` is no name\nhint: a name stands alone: `web`\n"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        pytest.param(f"http://web/ -i {SHOP}", _NO_NAME, id="no name"),
        pytest.param("web -i nowhere.yaml", "error: there is no file or folder `", id="no inventory"),
        pytest.param(
            "web -i tests/kubernetes/broken.yaml", "error: `10.96.0.010` is no IP address\n", id="a broken inventory"
        ),
        pytest.param("web --corefile nowhere", "error: open nowhere: no such file or directory\n", id="no Corefile"),
        pytest.param("web --kubeconfig nowhere", "error: there is no kubeconfig `nowhere`\n", id="no kubeconfig"),
        pytest.param("web -i zones --kubeconfig x", "Error: give one of --inventory PATH and", id="two sources"),
        pytest.param("web -i zones --server :53", "Error: --server is for a running kdns", id="a server and none"),
        pytest.param("web --context x", "Error: --context is one of a --kubeconfig FILE", id="a context of nothing"),
        pytest.param("web --server 192.0.2.1:53", "error: no kdns ", id="a server that isn't there"),
        pytest.param("", "Error: Missing argument 'NAME'.", id="nothing"),
    ],
)
def test_what_is_asked_wrong_ends_with_2(line: str, said: str) -> None:
    code, told, error = says(*line.split())
    assert (code, told) == (2, "")
    assert said in error
    assert "Traceback" not in error


def test_what_cannot_be_written_ends_with_2() -> None:
    kdns = started.COMMANDS / "kdns"
    with Path("/dev/full").open("w") as full:
        line = [kdns, "explain", "web.shop", "-i", SHOP]
        done = subprocess.run(line, stdout=full, stderr=subprocess.PIPE, text=True, timeout=20, check=False)
    assert (done.returncode, done.stderr) == (2, "error: the output can't be written: no space left on device\n")


def test_a_corefile_that_watches_a_cluster_needs_to_be_told_of_one(tmp_path: Path) -> None:
    (tmp_path / "Corefile").write_text("cluster.local {\n    kubernetes\n}\n")
    code, told, error = says("web", "--corefile", str(tmp_path / "Corefile"))
    assert (code, told) == (2, "")
    assert error == (
        "error: the Corefile's cluster can't be reached from here\n"
        "hint: give `--kubeconfig FILE`, or `--inventory PATH` with what `kubectl get -o yaml` printed\n"
    )


# For tools


def test_tools_get_all_of_it() -> None:
    code, told, _ = says("queue.shop.svc.cluster.local.", "A", "-i", SHOP, "--json")
    assert code == 0
    assert json.loads(told) == {
        "name": "queue.shop.svc.cluster.local.",
        "types": ["A"],
        "source": SHOP,
        "zones": ["cluster.local.", "in-addr.arpa.", "ip6.arpa."],
        "client": {
            "namespace": "default",
            "pod": "",
            "address": "",
            "dns_policy": "ClusterFirst",
            "asks": "the cluster's DNS",
            "search": ["default.svc.cluster.local", "svc.cluster.local", "cluster.local"],
            "ndots": 5,
            "assumed": True,
            "notes": [],
        },
        "resolves": True,
        "summary": "resolves to 10.1.0.30",
        "walk": [
            {
                "name": "queue.shop.svc.cluster.local.",
                "type": "A",
                "outcome": "answer",
                "rcode": "NOERROR",
                "zone": ".",
                "directive": "kubernetes",
                "records": ["queue.shop.svc.cluster.local. 5 IN A 10.1.0.30"],
                "count": 1,
                "to": [],
                "error": "",
                "steps": [
                    {"directive": "loadbalance", "does": "passes on", "question": "", "depth": 0},
                    {"directive": "search", "does": "passes on", "question": "", "depth": 0},
                    {"directive": "kubernetes", "does": "answers", "question": "", "depth": 0},
                ],
            }
        ],
        "queries": 1,
        "packets": 2,
        "answers": [
            {
                "name": "queue.shop.svc.cluster.local.",
                "type": "A",
                "records": ["queue.shop.svc.cluster.local. 5 IN A 10.1.0.30"],
                "count": 1,
                "additional": [],
                "ttl": 5,
                "size_bytes": 62,
                "truncated": {"512": False, "1232": False},
                "kept": True,
                "ages": False,
                "kept_out_by": "",
            }
        ],
        "objects": [
            {
                "kind": "Service",
                "namespace": "shop",
                "name": "queue",
                "exists": True,
                "resource_version": "",
                "kind_for_dns": "headless",
                "type": "ClusterIP",
                "addresses": [],
                "external_name": "",
                "ports": [{"name": "amqp", "protocol": "TCP", "port": 5672}],
                "selector": "app=queue",
                "hidden_by": "",
                "endpoints": {
                    "ready": 1,
                    "total": 2,
                    "counted": "pods",
                    "known": True,
                    "not_ready": [{"name": "queue-1", "address": "10.1.0.31", "why": "not ready"}],
                    "conditions": {},
                },
            }
        ],
        "hints": [],
    }


@pytest.mark.parametrize("kind", [report.Explanation, report.Client, report.Verdict, report.Answer, report.Object])
def test_every_field_is_on_the_page(kind: type[msgspec.Struct]) -> None:
    told = (ROOT / "docs" / "explain.md").read_text().partition("## For tools")[2]
    # A service's namespace and name are its own.
    assert [name for name in kind.__struct_fields__ if f"`{name}`" not in told] == []


# A reply that doesn't fit


def of_many(endpoints: int, options: str = "") -> World:
    """A headless service of so many endpoints, with a named port, as a server knows it."""
    text = f".:53 {{\n kubernetes cluster.local {{\n{options}\n}}\n}}\n"
    configuration = build(corefile.parse(text, "Corefile"), Process(Metrics(), lambda: NOON))
    listener = main_listener(configuration)
    plugin = clusters_of(listener)[0]
    plugin.apply(
        [
            Put(Namespace(Metadata(name="shop"))),
            Put(Service(Metadata(name="big", namespace="shop"), ServiceSpec(cluster_ips=["None"]))),
            Put(
                EndpointSlice(
                    Metadata(name="big-1", namespace="shop", labels={SERVICE_NAME_LABEL: "big"}),
                    "IPv4",
                    [Endpoint([f"10.1.{number // 256}.{number % 256}"]) for number in range(endpoints)],
                    [EndpointPort("http", "TCP", 80)],
                )
            ),
            Synced(),
        ]
    )
    return World("", listener, configuration.process, [Source(plugin)])


@pytest.mark.parametrize(
    ("endpoints", "truncated", "properties"),
    [
        (5, {"512": False, "1232": False}, "fits into any packet"),
        (40, {"512": True, "1232": False}, "doesn't fit into 512 bytes: without EDNS the client asks again over TCP"),
        (100, {"512": True, "1232": True}, "doesn't fit over UDP: the client asks again over TCP"),
    ],
)
def test_a_reply_that_does_not_fit_is_told(endpoints: int, truncated: dict[str, bool], properties: str) -> None:
    told = asyncio.run(explain(Ask("big.shop.svc.cluster.local.", "A"), of_many(endpoints)))
    answer = told.answers[0]
    # A header, the question, and for each record a pointer to it.
    assert (answer.size_bytes, answer.count) == (12 + 32 + 16 * endpoints, endpoints)
    assert (answer.truncated, len(answer.records)) == (truncated, min(endpoints, 50))
    assert properties in "\n".join(explaining.as_text(told))


def test_what_a_server_never_hears_of_may_be_there() -> None:
    told = asyncio.run(explain(Ask("web.shop.svc.cluster.local."), of_many(1, "labels team=front")))
    assert [hint.text for hint in told.hints] == ["`labels` may hide it, if it is there: `--kubeconfig FILE` tells"]


def test_others_have_a_turn_between_any_two_queries() -> None:
    async def count_turns() -> tuple[int, int]:
        turns = 0

        async def others() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        running = asyncio.create_task(others())
        told = await explain(Ask("web", of="shop"), of_many(3))
        running.cancel()
        return told.queries, turns

    queries, turns = asyncio.run(count_turns())
    assert turns >= queries == 8


# A running server

PROMETHEUS = """.:PORT {
    bind 127.0.0.1
    log
    kubernetes cluster.local {
        inventory INVENTORY
        pods verified
    }
    prometheus 127.0.0.1:METRICS
    cache
}
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Started]:
    with started.started("kdns", "serve", "-i", SHOP, "-l", "127.0.0.1:PORT") as running:
        yield running


def asked(server: Started, *arguments: str) -> tuple[int, str, str]:
    return says(*arguments, "--server", f"127.0.0.1:{server.port}")


def test_a_running_server_tells_what_it_knows(server: Started) -> None:
    assert asked(server, "queue", "--from", "shop/web-0") == (
        0,
        """\
queue resolves to 10.1.0.30

asked by pod shop/web-0 at 10.1.0.20
  its dnsPolicy isn't known here: taken for ClusterFirst
  search shop.svc.cluster.local svc.cluster.local cluster.local, ndots:5
  queue.shop.svc.cluster.local.  A     10.1.0.30  kubernetes
                                 AAAA  no data    kubernetes
  2 queries, 4 packets

answered by kubernetes in the server block of .
  queue.shop.svc.cluster.local. 5 IN A 10.1.0.30
  TTL 5 s; 62 bytes, fits into any packet; not kept yet

Service shop/queue: headless
  ports amqp 5672/TCP
  1 of 2 addresses ready
    1 not ready
    which ones, and what their pods say, a running server doesn't know: --kubeconfig asks the API
""",
        "",
    )


def test_a_running_server_tells_the_conditions_of_what_is_not_ready(server: Started) -> None:
    code, told, _ = asked(server, "six.shop.svc.cluster.local.", "AAAA")
    assert (code, told.splitlines()[-6:]) == (
        0,
        [
            "Service shop/six: ClusterIP fd00:10:96::6",
            "  ports without name 80/TCP",
            "  1 of 3 addresses ready",
            "    1 not ready",
            "    1 terminating, still serving",
            "    which ones, and what their pods say, a running server doesn't know: --kubeconfig asks the API",
        ],
    )
    code, told, _ = asked(server, "six.shop.svc.cluster.local.", "AAAA", "--json")
    assert (code, json.loads(told)["objects"][0]["endpoints"]) == (
        0,
        {
            "ready": 1,
            "total": 3,
            "counted": "addresses",
            "known": False,
            "not_ready": [],
            "conditions": {"not ready": 1, "terminating, still serving": 1},
        },
    )


def test_a_running_server_has_hints_as_well(server: Started) -> None:
    code, told, _ = asked(server, "quue", "--from", "shop")
    assert (code, told.splitlines()[:2]) == (
        1,
        ["quue doesn't exist", "hint: did you mean `queue`? there is no Service `quue` in `shop`"],
    )
    code, told, _ = asked(server, "queue-1.queue.shop")
    assert (code, told.splitlines()[1:3]) == (
        1,
        [
            "hint: the ready endpoints of Service `shop/queue` are called `queue-0`, and 1 is not ready, so without a",
            "      name",
        ],
    )


def test_a_running_server_refuses_as_the_command_does(server: Started) -> None:
    assert asked(server, "web", "--from", "shpo") == (
        2,
        "",
        "error: there is no namespace `shpo`\nhint: did you mean `shop`?\n",
    )


def test_a_reply_is_told_as_kept_once_a_client_has_asked(server: Started) -> None:
    needs.command("dig")
    line = "web.shop.svc.cluster.local.", "A"
    assert "; not kept yet" in asked(server, *line)[1]
    assert "; not kept yet" in asked(server, *line)[1]
    # As glibc asks.
    server.dig("+noedns", "+noadflag", *line)
    assert "; kept until what it says changes" in asked(server, *line)[1]


def test_a_reply_that_depends_on_the_client_is_kept_for_others_who_stand_there() -> None:
    needs.command("dig")
    line = "web.", "A"
    with started.started("kdns", "serve", "-i", SHOP, "-l", "127.0.0.1:PORT", "--client", "127.0.0.1/32=shop") as one:
        one.dig("+noedns", "+noadflag", *line)
        kept = asked(one, *line, "--from", "shop")[1]
        # Elsewhere there is no such Service.
        other = asked(one, *line, "--client", "192.0.2.1")[1]
    assert "  that is the address of pod " in kept
    assert "; kept until what it says changes\n" in kept
    assert other.startswith("web. is REFUSED")


UPSTREAM = """.:PORT {
    bind 127.0.0.1
    template IN A www.example.com {
        answer "{{ .Name }} 60 IN A 192.0.2.80"
    }
    template ANY ANY example.com {
        rcode NXDOMAIN
    }
}
"""
FORWARDING = """.:PORT {
    bind 127.0.0.1
    kubernetes cluster.local {
        inventory INVENTORY
    }
    forward . 127.0.0.1:UPSTREAM
    cache
}
"""


def test_what_others_say_is_told_as_theirs(tmp_path: Path) -> None:
    ports = started.free_port(), started.free_port()
    (tmp_path / "upstream").write_text(UPSTREAM.replace("PORT", str(ports[0])))
    text = FORWARDING.replace("INVENTORY", SHOP).replace("UPSTREAM", str(ports[0])).replace("PORT", str(ports[1]))
    (tmp_path / "Corefile").write_text(text)
    with (
        started.started("kdns", "serve", "--corefile", str(tmp_path / "upstream")),
        started.started("kdns", "serve", "--corefile", str(tmp_path / "Corefile")),
    ):
        place = "--server", f"127.0.0.1:{ports[1]}"
        code, told, _ = says("www.example.com.", "A", *place)
        assert (code, told.splitlines()[0]) == (0, "www.example.com. resolves to 192.0.2.80")
        # Who asked first was told by the upstream; who asks next is told by `cache`.
        assert told.splitlines()[-1].endswith("; kept until its TTL is over")
        # That it doesn't exist is an answer to where the alias leads.
        code, told, _ = says("mail.shop", "A", *place)
        assert (code, told.splitlines()[:2]) == (
            1,
            ["mail.shop stands for mail.example.com, which has no answer here", ""],
        )


def test_a_server_loads_explanations_when_one_is_asked_for() -> None:
    code = "import sys, kdns.serve; print(*sorted(name for name in sys.modules if name.startswith('kdns.explain')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=True)
    assert done.stdout == "kdns.explain kdns.explain.running\n"


def test_an_explanation_is_no_query_of_a_client(tmp_path: Path) -> None:
    ports = started.free_port(), started.free_port()
    text = PROMETHEUS.replace("INVENTORY", SHOP).replace("METRICS", str(ports[1])).replace("PORT", str(ports[0]))
    (tmp_path / "Corefile").write_text(text)
    with started.started("kdns", "serve", "--corefile", str(tmp_path / "Corefile")) as running:
        code, told, _ = says("web.shop", "--server", f"127.0.0.1:{ports[0]}")
        assert code == 0
        assert "not kept: made anew for each query, because of log" in told
        with urllib.request.urlopen(f"http://127.0.0.1:{ports[1]}/metrics", timeout=10) as page:
            counted = re.findall(r"^coredns_dns_(?:requests|responses)_total{.*", page.read().decode(), re.MULTILINE)
        assert (counted, '"A IN web' in running.said) == ([], False)


def test_a_server_that_has_not_read_the_cluster_says_so(tmp_path: Path) -> None:
    (tmp_path / "config").write_text(KUBECONFIG)
    port = started.free_port()
    text = "kubernetes cluster.local {\n kubeconfig config\n startup_timeout 200ms\n}\n"
    (tmp_path / "Corefile").write_text(f".:{port} {{\nbind 127.0.0.1\n{text}}}\n")
    with started.started("kdns", "serve", "--corefile", "Corefile", cwd=tmp_path):
        code, told, _ = says("web.shop", "--from", "shop", "--server", f"127.0.0.1:{port}")
    assert (code, told.splitlines()[0]) == (
        1,
        "web.shop is SERVFAIL by kubernetes: not synced with the cluster yet",
    )
    assert told.splitlines()[1].startswith("hint: the cluster isn't read yet, so each of its names is SERVFAIL: ")


# Asks at the place that it is given, as the user that it is given.
ASK_AS = """\
import os, socket, sys
from kdns.server import admin
name = admin.places()[sys.argv[1]]
os.setresuid(*[int(sys.argv[2])] * 3)
with socket.socket(socket.AF_UNIX) as asking:
    asking.connect("\\0" + name)
    asking.sendall(b'{"name": "web"}\\n')
    print(asking.makefile().readline(), end="")
"""
# Serves as another user than root, until its input ends.
SERVE_AS = """\
import asyncio, os, sys
from kdns.server import admin

async def answer(question):
    return b"answer"

async def serve():
    await admin.AdminServer(answer).start(sys.argv[1])
    os.setresuid(*[int(sys.argv[2])] * 3)
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(0, ended.set)
    print("ready", flush=True)
    await ended.wait()

asyncio.run(serve())
"""


def ask_as(place: str, user: int) -> str:
    line = [sys.executable, "-c", ASK_AS, place, str(user)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=20, check=True)
    return done.stdout


def test_nobody_but_root_and_its_own_user_may_ask(server: Started) -> None:
    needs.root()
    place = f"127.0.0.1:{server.port}"
    assert ask_as(place, 65533) == "user 65533 may not ask: only root and user 0 may\n"
    assert ask_as(place, 0) == "ok\n"


@pytest.mark.parametrize(
    ("apart", "said"),
    [
        pytest.param([], "ok\n", id="beside it"),
        pytest.param(
            ["unshare", "--pid", "--fork"],
            "a process of another container may not ask: only root and user 65533 may\n",
            id="in another container",
        ),
    ],
)
def test_its_own_user_may_ask_from_its_own_container_only(apart: list[str], said: str) -> None:
    needs.root()
    if apart:
        needs.command(apart[0])
    place = f"apart-{len(apart)}.test:53"
    line = [*apart, sys.executable, "-c", SERVE_AS, place, "65533"]
    # The end of the block closes the pipe, and waits for the end of the process.
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as serving:
        assert serving.stdout is not None
        assert serving.stdout.readline() == "ready\n"
        assert (ask_as(place, 65533), ask_as(place, 0)) == (said, "ok\n")


def test_the_socket_is_gone_with_the_process() -> None:
    with started.started("kdns", "serve", "-i", SHOP, "-l", "127.0.0.1:PORT") as running:
        place = f"127.0.0.1:{running.port}"
        assert place in admin.places()
        assert running.end(signal.SIGTERM) == 0
        assert place not in admin.places()


# The admin socket


async def _ask(place: str, question: bytes) -> tuple[bytes, bytes]:
    """The status and the answer; `admin.ask` blocks, and the server runs in this very loop."""
    reader, writer = await asyncio.open_unix_connection("\0" + admin.places()[place])
    writer.write(question)
    status, _, answer = (await reader.read()).partition(b"\n")
    writer.close()
    await writer.wait_closed()
    return status, answer


def test_one_question_has_its_answer_at_a_time() -> None:
    running, most = 0, 0

    async def answer(question: bytes) -> bytes:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        return question.strip()[::-1]

    async def ask_all() -> list[tuple[bytes, bytes]]:
        server = admin.AdminServer(answer)
        await server.start("one.test:53")
        try:
            return await asyncio.gather(*(_ask("one.test:53", b"question %d\n" % number) for number in range(5)))
        finally:
            await server.stop()

    assert asyncio.run(ask_all()) == [(b"ok", b"%d noitseuq" % number) for number in range(5)]
    assert most == 1


def test_who_comes_when_many_wait_is_sent_away() -> None:
    async def ask_all() -> list[bytes]:
        come, released = asyncio.Event(), asyncio.Event()

        async def answer(question: bytes) -> bytes:
            come.set()
            await released.wait()
            return b"answer"

        server = admin.AdminServer(answer)
        await server.start("busy.test:53")
        try:
            waiting = [asyncio.create_task(_ask("busy.test:53", b"?\n")) for _ in range(admin.MOST_WAITING)]
            await come.wait()
            late = await _ask("busy.test:53", b"?\n")
            released.set()
            return [status for status, _ in (late, *await asyncio.gather(*waiting))]
        finally:
            await server.stop()

    assert asyncio.run(ask_all()) == [b"too many ask at once", *[b"ok"] * admin.MOST_WAITING]


def test_who_says_nothing_holds_up_nobody() -> None:
    async def answer(question: bytes) -> bytes:
        return b"answer"

    async def ask_all() -> tuple[tuple[bytes, bytes], bytes]:
        server = admin.AdminServer(answer)
        await server.start("silent.test:53")
        try:
            silent = [
                await asyncio.open_unix_connection("\0" + admin.places()["silent.test:53"])
                for _ in range(admin.MOST_WAITING - 1)
            ]
            answered = await _ask("silent.test:53", b"?\n")
            # The end of the server is theirs as well.
            await server.stop()
            read = [await reader.read() for reader, _ in silent]
            for _, writer in silent:
                writer.close()
            return answered, b"".join(read)
        finally:
            await server.stop()

    assert asyncio.run(ask_all()) == ((b"ok", b"answer"), b"")


def test_who_does_not_read_the_answer_does_not_keep_the_server_from_its_end() -> None:
    answered = asyncio.Event()

    async def answer(question: bytes) -> bytes:
        answered.set()
        return bytes(64 * 1024 * 1024)

    async def end() -> int:
        server = admin.AdminServer(answer)
        await server.start("unread.test:53")
        with socket.socket(socket.AF_UNIX) as deaf:
            deaf.connect("\0" + admin.places()["unread.test:53"])
            deaf.sendall(b"?\n")
            await answered.wait()
            await asyncio.wait_for(server.stop(), 30)
        return len(asyncio.all_tasks())

    # This one alone.
    assert asyncio.run(end()) == 1


def test_an_answer_that_fails_costs_that_question_only(caplog: pytest.LogCaptureFixture) -> None:
    async def answer(question: bytes) -> bytes:
        return b"%d" % (1 // len(question.strip()))

    async def ask_all() -> list[tuple[bytes, bytes]]:
        server = admin.AdminServer(answer)
        await server.start("broken.test:53")
        try:
            return [await _ask("broken.test:53", question) for question in (b"\n", b"1\n", b"x" * 20_000)]
        finally:
            await server.stop()

    assert asyncio.run(ask_all()) == [
        (b"an internal error, which the log of the process has", b""),
        (b"ok", b"1"),
        (b"the question is too long", b""),
    ]
    assert [record.getMessage() for record in caplog.records] == ["no answer to the question b'\\n'"]


def test_several_servers_are_told_by_where_they_listen() -> None:
    with pytest.raises(ConfigError) as refused:
        admin.choose("", {"127.0.0.1:53": "kdns/127.0.0.1:53/7", "127.0.0.1:1053": "kdns/127.0.0.1:1053/8"})
    assert str(refused.value) == (
        "error: several kdns run here\nhint: `--server ADDR:PORT` says which: 127.0.0.1:1053, 127.0.0.1:53"
    )
    with pytest.raises(ConfigError) as refused:
        admin.choose("", {})
    assert str(refused.value) == (
        "error: no kdns runs here\n"
        "hint: `--inventory PATH`, `--kubeconfig FILE` and `--corefile FILE` do without a server"
    )
    assert admin.choose("", {":53": "kdns/:53/7"}) == (":53", "kdns/:53/7")
