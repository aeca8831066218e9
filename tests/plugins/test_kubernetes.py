"""kubernetes: what the log and the client are told of an alias whose target can't be resolved."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

import pytest

from kdns.chain import Answer, Request, failure
from kdns.kubernetes.objects import Metadata, Namespace, Put, Service, ServiceSpec, Synced
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
