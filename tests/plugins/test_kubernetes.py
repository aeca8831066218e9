"""kubernetes: what the log and the client are told of an alias whose target can't be resolved."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

import pytest

from kdns import corefile
from kdns.chain import Answer, Request, failure
from kdns.kubernetes.objects import Delete, Metadata, Namespace, Put, Service, ServiceSpec, Synced
from kdns.plugins.kubernetes import Kubernetes
from kdns.wire.records import Rcode
from tests.plugins import trial


class Says:
    """A server that has one answer to everything."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer

    def resolve(self, request: Request) -> Coroutine[Any, Any, Answer]:
        async def give() -> Answer:
            return self.answer

        return give()


@pytest.mark.parametrize(
    ("answer", "cause", "error"),
    [
        pytest.param(
            failure("", "forward", rcode=Rcode.REFUSED),
            "db.example.com., where the alias leads: REFUSED of `forward`",
            (0, "the alias leads to a name that is answered with REFUSED"),
            id="an upstream that refuses",
        ),
        pytest.param(
            failure("read udp: i/o timeout", "forward", (22, "no upstream replied in time")),
            "read udp: i/o timeout",
            (22, "no upstream replied in time"),
            id="an upstream that is silent",
        ),
    ],
)
def test_why_an_alias_leads_nowhere_is_told(answer: Answer, cause: str, error: tuple[int, str]) -> None:
    plugin = trial.plugin(Kubernetes, "kubernetes cluster.local {\n inventory none\n}")
    service = Service(
        Metadata(name="db", namespace="shop"), ServiceSpec(type="ExternalName", external_name="db.example.com")
    )
    for event in (Put(Namespace(Metadata(name="shop"))), Put(service), Synced()):
        plugin.cluster.apply(event)
    request = trial.request("db.shop.svc.cluster.local. A")
    request.server = Says(answer)
    said = trial.answer(plugin, request)
    assert (said.rcode, said.plugin, said.cause, said.error) == (Rcode.SERVFAIL, "kubernetes", cause, error)


def test_an_external_name_that_leads_to_no_name_is_told_once() -> None:
    plugin = trial.plugin(Kubernetes, "kubernetes cluster.local {\n endpoint http://127.0.0.1:9\n}")

    def alias(target: str) -> Put:
        spec = ServiceSpec(type="ExternalName", external_name=target)
        return Put(Service(Metadata(name="db", namespace="shop"), spec))

    with trial.log_lines() as lines:
        for target in ("192.0.2.1", "192.0.2.1", "fd00::1.", "db.example.com", "192.0.2.1", "a..b"):
            plugin.apply([alias(target)])
        plugin.apply([Delete("Service", "shop", "db"), alias("a..b")])
    told = [line.partition("plugin/kubernetes: ")[2] for line in lines]
    assert told == [
        "the ExternalName shop/db has no record, for `192.0.2.1` is an address",
        "the ExternalName shop/db has no record, for `fd00::1.` is an address",
        "the ExternalName shop/db has no record, for `192.0.2.1` is an address",
        "the ExternalName shop/db has no record, for `a..b` is no name of a host",
        "the ExternalName shop/db has no record, for `a..b` is no name of a host",
    ]


def test_of_several_api_servers_the_first_is_used_and_that_is_told() -> None:
    text = "kubernetes cluster.local {\n endpoint http://127.0.0.1:9 http://127.0.0.2:9 http://127.0.0.3:9\n}"
    drawn = """\
warning: `endpoint`: the first URL is used, and the others aren't
  Corefile:3:30
    3 |  endpoint http://127.0.0.1:9 http://127.0.0.2:9 http://127.0.0.3:9
      |                              ^^^^^^^^^^^^^^^^^^
hint: as in CoreDNS: put a load balancer before several servers"""
    assert trial.problems(Kubernetes, text) == drawn
    directives = corefile.parse(f". {{\n{text}\n}}", "Corefile").blocks[0].named("kubernetes")
    options = Kubernetes.read(directives, [])
    assert options is not None
    assert options.endpoint == "http://127.0.0.1:9"


def test_one_api_server_needs_no_word() -> None:
    assert trial.problems(Kubernetes, "kubernetes cluster.local {\n endpoint http://127.0.0.1:9\n}") == ""


def test_that_a_pod_name_with_a_dot_is_no_label_is_told() -> None:
    told = trial.problems(Kubernetes, "kubernetes cluster.local {\n endpoint_pod_names\n}").splitlines()[0]
    assert told == "note: `endpoint_pod_names`: an endpoint of a pod whose name has a dot is named by its address"
