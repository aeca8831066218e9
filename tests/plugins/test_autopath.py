"""autopath: whose list it goes through, what a resolv.conf says of it, and what a wrong Corefile is told."""

from __future__ import annotations

import math
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from kdns.answers import Lifetime
from kdns.chain import Answer, Request, failure
from kdns.errors import ConfigError
from kdns.plugins import autopath
from kdns.plugins.autopath import Autopath
from kdns.plugins.kubernetes import Kubernetes
from kdns.searching import search_domains
from kdns.wire import names
from kdns.wire.records import Rcode
from tests.kubernetes.test_cluster import namespace, pod
from tests.plugins import trial

NOWHERE = failure("", "kubernetes", rcode=Rcode.NXDOMAIN)


class Asked:
    """A server that knows one name, and notes for which it was asked."""

    def __init__(self, known: str = "", rcode: int = Rcode.NXDOMAIN) -> None:
        self.known = known
        self.rcode = rcode
        self.names: list[str] = []

    def resolve(self, request: Request) -> Coroutine[Any, Any, Answer]:
        name = names.to_text(request.query.qname)
        self.names.append(name)
        assert request.absolute

        async def give() -> Answer:
            return Answer(plugin="forward") if name == self.known else failure("", "forward", rcode=self.rcode)

        return give()


def walked(plugin: Autopath, question: str, server: Asked, client: str = "10.1.0.1") -> Answer:
    request = trial.request(question, client=(client, 4711))
    request.server = server
    return trial.answer(plugin, request, NOWHERE)


def given(tmp_path: Path, text: str, zones: str = "") -> Autopath:
    (tmp_path / "resolv.conf").write_text(text)
    return trial.plugin(Autopath, f"autopath {zones} {tmp_path}/resolv.conf")


def of_kubernetes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, options: str = "") -> Autopath:
    (tmp_path / "own").write_text("search shop.svc.cluster.local corp.example\n")
    monkeypatch.setattr(autopath, "OWN_RESOLV_CONF", str(tmp_path / "own"))
    block = trial.block()
    made = trial.plugin(Autopath, f"autopath @kubernetes {options}", block)
    source = trial.plugin(Kubernetes, "kubernetes cluster.local {\n endpoint http://127.0.0.1:9\n}", block)
    made.join(block)
    source.apply([namespace(), namespace("other"), pod("10.1.0.1")])
    return made


@pytest.mark.parametrize(
    ("text", "domains"),
    [
        ("search a.example b.example\n", ["a.example.", "b.example."]),
        ("search a.example\nnameserver 192.0.2.1\nsearch b.example", ["b.example."]),
        ("search . A.example. a.example\n", ["a.example."]),
        ("search a..b ok.example\n", ["ok.example."]),
        ("# search a.example\nsearching b.example\n", []),
        ("search\n", []),
    ],
)
def test_the_last_search_line_counts(text: str, domains: list[str]) -> None:
    assert [names.to_text(domain) for domain in search_domains(text)] == domains


def test_the_domains_of_a_file_are_tried_in_their_order_and_the_name_itself_at_last(tmp_path: Path) -> None:
    plugin = given(tmp_path, "search shop.svc.cluster.local svc.cluster.local corp.example\n")
    server = Asked()
    assert walked(plugin, "www.example.com.shop.svc.cluster.local. A", server) is NOWHERE
    assert server.names == ["www.example.com.svc.cluster.local.", "www.example.com.corp.example.", "www.example.com."]


@pytest.mark.parametrize(
    "question",
    [
        pytest.param("shop.svc.cluster.local. A", id="the first domain itself"),
        pytest.param("www.svc.cluster.local. A", id="the second domain"),
        pytest.param("www.workshop.svc.cluster.local. A", id="a domain that ends like the first"),
        pytest.param("www.shop.svc.k.test. A", id="another zone"),
    ],
)
def test_other_names_are_none_of_its_business(tmp_path: Path, question: str) -> None:
    plugin = given(tmp_path, "search shop.svc.cluster.local\n")
    server = Asked()
    assert walked(plugin, question, server) is NOWHERE
    assert server.names == []


def test_its_zones_may_be_named(tmp_path: Path) -> None:
    text = "search shop.svc.cluster.local\n"
    for zones, asked in (("k.test", []), ("k.test svc.cluster.local", ["www."])):
        server = Asked()
        walked(given(tmp_path, text, zones), "www.shop.svc.cluster.local. A", server)
        assert server.names == asked


def test_the_first_name_that_exists_ends_the_search(tmp_path: Path) -> None:
    plugin = given(tmp_path, "search shop.svc.cluster.local svc.cluster.local corp.example\n")
    server = Asked(known="www.corp.example.")
    said = walked(plugin, "www.shop.svc.cluster.local. AAAA", server)
    assert server.names == ["www.svc.cluster.local.", "www.corp.example."]
    assert [(each.owner, each.data) for each in said.answer] == [
        (names.from_text("www.shop.svc.cluster.local"), names.from_text("www.corp.example"))
    ]


@pytest.mark.parametrize("rcode", [Rcode.SERVFAIL, Rcode.REFUSED, Rcode.NOTIMP])
def test_a_failure_ends_the_search(tmp_path: Path, rcode: Rcode) -> None:
    plugin = given(tmp_path, "search shop.svc.cluster.local svc.cluster.local\n")
    server = Asked(rcode=rcode)
    assert walked(plugin, "www.shop.svc.cluster.local. A", server).rcode == rcode
    assert server.names == ["www.svc.cluster.local."]


@pytest.mark.parametrize("passing", [True, False])
def test_an_answer_behind_a_denial_that_ages_does_not_outlive_it(tmp_path: Path, passing: bool) -> None:
    class Ageing(Asked):
        def resolve(self, request: Request) -> Coroutine[Any, Any, Answer]:
            known = names.to_text(request.query.qname) == self.known
            request.until = trial.NOON + (60 if known else 1 if passing else math.inf)
            return self._give(super().resolve(request))

        async def _give(self, coroutine: Coroutine[Any, Any, Answer]) -> Answer:
            answer = await coroutine
            answer.lifetime = Lifetime(trial.NOON, trial.NOON + 60, 60)
            return answer

    plugin = given(tmp_path, "search shop.svc.cluster.local svc.cluster.local corp.example\n")
    request = trial.request("www.shop.svc.cluster.local. A")
    request.server = Ageing(known="www.corp.example.")
    said = trial.answer(plugin, request, NOWHERE)
    assert (request.until, said.lifetime is None) == (trial.NOON + (1 if passing else 60), passing)


def test_a_denial_that_ages_is_not_kept_for_longer_than_those_of_the_other_names(tmp_path: Path) -> None:
    denial = failure("", "forward", rcode=Rcode.NXDOMAIN)
    denial.lifetime = Lifetime(trial.NOON, trial.NOON + 3600, 3600)
    request = trial.request("www.shop.svc.cluster.local. A")
    request.server = Asked()
    said = trial.answer(given(tmp_path, "search shop.svc.cluster.local\n"), request, denial)
    assert (said.rcode, said.lifetime) == (Rcode.NXDOMAIN, None)


def test_a_name_that_would_be_too_long_is_left_out(tmp_path: Path) -> None:
    label = "a" * 63
    plugin = given(tmp_path, f"search x.example {label}.{label}.example\n")
    server = Asked()
    walked(plugin, f"{label}.{label}.x.example. A", server)
    assert server.names == []
    walked(given(tmp_path, f"search x.k {label}.{label}.k\n", "k"), f"{label}.{label}.x.k. A", server)
    assert server.names == [f"{label}.{label}."]


def test_the_list_of_a_pod_is_that_of_its_namespace_then_that_of_the_node(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plugin = of_kubernetes(monkeypatch, tmp_path)
    server = Asked()
    walked(plugin, "www.example.com.shop.svc.cluster.local. A", server)
    walked(plugin, "www.example.com.other.svc.cluster.local. A", server)
    walked(plugin, "www.example.com.shop.svc.cluster.local. A", server, client="10.1.0.2")
    assert server.names == [
        "www.example.com.svc.cluster.local.",
        "www.example.com.cluster.local.",
        "www.example.com.corp.example.",
        "www.example.com.",
    ]


def test_the_namespace_in_the_name_is_anybodys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plugin = of_kubernetes(monkeypatch, tmp_path, "{\n namespace_in_name\n}")
    for where, asked in (("shop", 4), ("other", 4), ("nowhere", 0)):
        server = Asked()
        walked(plugin, f"www.{where}.svc.cluster.local. A", server, client="192.0.2.1")
        assert len(server.names) == asked


def test_pods_are_watched_only_where_the_client_counts() -> None:
    for options, watched in (("", True), ("{\n namespace_in_name\n}", False)):
        block = trial.block()
        trial.plugin(Autopath, f"autopath @kubernetes {options}", block)
        assert block.locates_clients is watched


def test_where_it_does_something_else_than_in_coredns_is_told() -> None:
    told = {}
    for pods in ("insecure", "verified"):
        block = trial.block()
        made = trial.plugin(Autopath, "autopath @kubernetes", block)
        trial.plugin(Kubernetes, f"kubernetes cluster.local {{\n endpoint http://127.0.0.1:9\n pods {pods}\n}}", block)
        made.join(block)
        told[pods] = list(made.notices())
    shared = "no list for pods in the network of their node, nor where pods of two namespaces have one address"
    assert told == {"insecure": [shared, "works without `pods verified`, and watches the pods"], "verified": [shared]}


def test_without_kubernetes_there_is_no_list() -> None:
    block = trial.block()
    with pytest.raises(ConfigError) as caught:
        trial.plugin(Autopath, "autopath @kubernetes", block).join(block)
    assert caught.value.problems[0].message == "`autopath @kubernetes` needs `kubernetes` in the same server block"


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("autopath", "`autopath` needs [ZONES...] RESOLV-CONF|@kubernetes"),
        ("autopath @erratic", "expected a file in the form of /etc/resolv.conf, or `@kubernetes`, found `@erratic`"),
        ("autopath /nowhere/resolv.conf", "`/nowhere/resolv.conf` can't be read: no such file or directory"),
        ("autopath /dev/null", "`/dev/null` can't be read: not a regular file"),
        ("autopath a..b @kubernetes", "a..b"),
        ("autopath @kubernetes\n autopath @kubernetes", "`autopath` can only be used once in a server block"),
    ],
)
def test_a_wrong_line_is_told(line: str, told: str) -> None:
    assert told in trial.problems(Autopath, line)


def test_a_file_without_a_search_list_is_told(tmp_path: Path) -> None:
    (tmp_path / "resolv.conf").write_text("nameserver 192.0.2.1\n")
    drawn = trial.problems(Autopath, f"autopath {tmp_path}/resolv.conf")
    assert "has no search list: there is nothing to go through" in drawn
    (tmp_path / "resolv.conf").write_text("search a.example\n")
    drawn = trial.problems(Autopath, f"autopath {tmp_path}/resolv.conf {{\n namespace_in_name\n}}")
    assert "`namespace_in_name` is for `@kubernetes`" in drawn
