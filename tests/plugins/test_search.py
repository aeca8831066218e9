"""search: where clients stand, which names are short, and what a wrong Corefile is told."""

from __future__ import annotations

import asyncio

import pytest

from kdns import corefile
from kdns.app import build
from kdns.chain import Answer, Process, Request, failure
from kdns.errors import ConfigError
from kdns.kubernetes.objects import Put, Synced
from kdns.metrics import Metrics
from kdns.plugins.kubernetes import Kubernetes
from kdns.plugins.search import Search
from kdns.searching import below_zone, in_own_namespace
from kdns.wire.records import Rcode
from tests.kubernetes.test_cluster import namespace, packed, pod, service
from tests.plugins import trial

SOURCE = "kubernetes cluster.local {\n endpoint http://127.0.0.1:9\n}"


def made(text: str, *events: Put | Synced, source: str = SOURCE) -> tuple[Search, Kubernetes]:
    block = trial.block()
    search = trial.plugin(Search, text, block)
    kubernetes = trial.plugin(Kubernetes, source, block)
    search.join(block)
    kubernetes.apply(events)
    return search, kubernetes


@pytest.mark.parametrize(
    ("address", "where"),
    [
        pytest.param("10.1.0.1", "shop", id="a pod stands in its namespace, whatever its network"),
        pytest.param("10.1.0.2", "vms", id="an address of a network that is named"),
        pytest.param("10.1.9.9", "edge", id="the smallest network counts"),
        pytest.param("10.244.0.9", "?", id="an address of the pods' network that no pod has"),
        pytest.param("10.244.7.1", "vms", id="a smaller network within the pods'"),
        pytest.param("2001:db8::7", "vms", id="an IPv6 network"),
        pytest.param("192.0.2.1", "lost", id="all others"),
    ],
)
def test_a_client_stands_in_one_place(address: str, where: str) -> None:
    text = """search {
        client 10.1.0.0/16 2001:db8::/32 10.244.7.0/24 vms
        client 10.1.9.0/24 edge
        pods 10.244.0.0/16
        default lost
    }"""
    search, _ = made(text, namespace(), pod("10.1.0.1"), Synced())
    assert search.locate(packed(address)).decode() == where


def test_without_pods_no_pod_is_known_and_none_is_watched() -> None:
    for text, expected in (("search", b"shop"), ("search {\n without_pods\n}", b"")):
        search, kubernetes = made(text, namespace(), pod("10.1.0.1"), Synced())
        assert search.locate(packed("10.1.0.1")) == expected
        assert kubernetes.live is not None
        assert kubernetes.live._options.wanted.pods is bool(expected)


def test_kubernetes_lives_on_only_where_it_knows_what_is_wanted() -> None:
    _, plain = made("search {\n without_pods\n}")
    _, knowing = made("search")
    options = Kubernetes.read(trial._directives(Kubernetes, SOURCE), [])
    block = trial.block()
    assert plain.lives_on(options, block)
    assert knowing.lives_on(options, block)
    asyncio.run(fed(plain))
    assert plain.lives_on(options, block)
    block.locates_clients = True
    assert not plain.lives_on(options, block)
    assert knowing.lives_on(options, block)


async def fed(kubernetes: Kubernetes) -> None:
    """Let it ask its source, for a moment."""
    feeding = asyncio.create_task(kubernetes.feed())
    await asyncio.sleep(0)
    feeding.cancel()
    await asyncio.gather(feeding, return_exceptions=True)


@pytest.mark.parametrize("search_first", [True, False])
def test_blocks_with_and_without_it_have_one_kubernetes_in_any_order(search_first: bool) -> None:
    texts = [f".:53 {{\n search\n {SOURCE}\n}}", f"other.test:53 {{\n {SOURCE}\n}}"]
    process = Process(Metrics())
    build(corefile.parse("\n".join(texts if search_first else texts[::-1]), "Corefile"), process)
    (kubernetes,) = (each for each in process.plugins if isinstance(each, Kubernetes))
    (search,) = (each for each in process.plugins if isinstance(each, Search))
    kubernetes.apply([namespace(), pod("10.1.0.1"), Synced()])
    assert search.locate(packed("10.1.0.1")) == b"shop"
    assert kubernetes.live is not None
    assert kubernetes.live._options.wanted.pods


def test_an_address_of_pods_of_two_namespaces_is_not_that_of_a_stranger() -> None:
    text = "search {\n client 10.1.0.0/16 vms\n pods 10.1.0.0/24\n default lost\n}"
    search, kubernetes = made(text, namespace(), pod("10.1.0.1"), pod("10.1.0.1", name="two", where="b"), Synced())
    assert search.locate(packed("10.1.0.1")) == b""
    kubernetes.apply([pod("10.1.0.1", name="two", where="b", phase="Failed")])
    assert search.locate(packed("10.1.0.1")) == b"shop"


def test_without_kubernetes_there_is_nothing_to_find() -> None:
    block = trial.block()
    search = trial.plugin(Search, "search", block)
    with pytest.raises(ConfigError) as caught:
        search.join(block)
    assert caught.value.problems[0].message == "`search` needs `kubernetes` in the same server block"


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ("client 10.1.0.0/16", ["`client` takes networks, then a namespace"]),
        (
            "client shop 10.1.0.0/16",
            ["expected the name of a namespace, found `10.1.0.0/16`", "the namespace stands last"],
        ),
        ("client 10.1.0.5/16 shop", ["found `10.1.0.5/16`", "the network is `10.1.0.0/16`"]),
        ("client 10.1.0.0/16 My-Shop", ["expected the name of a namespace, found `My-Shop`"]),
        ("client 10.1.0.0/16 a\n client 10.1.0.0/16 b", ["`10.1.0.0/16` is given twice"]),
        ("client 10.1.0.0/16 a\n pods 10.1.0.0/16", ["`10.1.0.0/16` is given twice"]),
        ("names double", ["`names` takes `single` or `qualified`"]),
        ("namespaces shop", ["`namespaces` is for `names qualified`"]),
        ("without_pods\n pods 10.1.0.0/16", ["`pods` is of no use with `without_pods`"]),
        ("default", ["`default` takes a namespace"]),
    ],
)
def test_a_wrong_line_is_told(lines: str, told: list[str]) -> None:
    drawn = trial.problems(Search, f"search {{\n {lines}\n}}")
    assert not [each for each in told if each not in drawn], drawn


@pytest.mark.parametrize(
    ("name", "own", "full"),
    [
        ("web", True, None),
        ("_http._tcp.web", True, None),
        ("http.tcp.web", False, "http.tcp.web.svc"),
        ("svc", True, None),
        ("web.shop", False, "web.shop.svc"),
        ("web.svc", False, None),
        ("web.shop.svc", False, "web.shop.svc"),
        ("web-0.web.shop", False, "web-0.web.shop.svc"),
        ("_tcp.web.shop", False, None),
        ("_http._tcp.web.shop", False, "_http._tcp.web.shop.svc"),
        ("_http._tcp.web.shop.svc", False, "_http._tcp.web.shop.svc"),
        ("a.b.c.d", False, None),
        ("a.b.c.d.svc", False, None),
        ("a.b.c.d.e", False, None),
    ],
)
def test_a_name_is_short_by_its_form(name: str, own: bool, full: str | None) -> None:
    labels = name.encode().split(b".")
    found = below_zone(labels)
    assert (in_own_namespace(labels), found and b".".join(found).decode()) == (own, full)


def test_a_pod_that_is_not_known_yet_is_told_to_ask_again_and_nothing_is_kept() -> None:
    search, _ = made("search {\n pods 10.244.0.0/16\n}", namespace(), service("10.3.0.1"), Synced())
    request = trial.request("web. A", client=("10.244.0.9", 4711))
    said = trial.answer(search, request)
    assert (said.rcode, said.error, request.keep) == (Rcode.SERVFAIL, (14, "the pod that asks isn't known yet"), False)


def test_what_a_plugin_asks_is_no_short_name() -> None:
    search, _ = made("search {\n default shop\n names qualified\n}", namespace(), service("10.3.0.1"), Synced())
    for name in ("web.", "web.shop."):
        request = trial.request(f"{name} A")
        request.absolute = True
        behind = failure("", "forward", rcode=Rcode.NXDOMAIN)
        assert trial.answer(search, request, behind) is behind


@pytest.mark.parametrize("rcode", [Rcode.SERVFAIL, Rcode.REFUSED])
def test_a_refusal_of_the_whole_name_is_one_of_the_short_name(rcode: Rcode) -> None:
    search, _ = made("search {\n default shop\n}", namespace(), service("10.3.0.1"), Synced())
    refused = failure("", "acl", (15, ""), rcode)

    class Refuses:
        def resolve(self, request: Request):  # type: ignore[no-untyped-def]
            async def give() -> Answer:
                return refused

            return give()

    request = trial.request("web. A")
    request.server = Refuses()
    assert trial.answer(search, request) is refused
