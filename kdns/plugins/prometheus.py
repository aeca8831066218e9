"""`prometheus`: an HTTP path with the metrics of the process. What is counted is counted with or without it.

Law: docs/plugins/prometheus.md; the metrics themselves stand in kdns/metrics.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated

from kdns.chain import Block, Plugin, Route
from kdns.corefile import Token
from kdns.options import Address, Options, address, argument, custom, flag, without_effect


def _refuse_tls(tokens: Sequence[Token]) -> str:
    # Metrics in the clear are not what was asked for, so it's no warning.
    raise ValueError("metrics over TLS aren't in kdns yet")


class PrometheusOptions(Options, directive="prometheus", once=True):
    address: Annotated[Address, argument(address()), "where /metrics is served"] = Address("localhost", 9153)
    runtime_metrics: Annotated[bool, flag(), "metrics of Go's runtime", without_effect("kdns has no Go runtime")] = (
        False
    )
    tls: Annotated[str, custom(_refuse_tls, "FILE", "a file"), "not yet: metrics over TLS"] = ""


class Prometheus(Plugin):
    name = "prometheus"
    options = PrometheusOptions

    def __init__(self, options: PrometheusOptions, block: Block) -> None:
        self._address = options.address
        self._metrics = block.process.metrics

    def routes(self) -> Iterable[Route]:
        return (Route(self._address.host, self._address.port, "/metrics", self.respond),)

    def respond(self, headers: dict[str, str]) -> tuple[int, bytes, str]:
        """The metrics in the form that the Accept header asks for."""
        text, content_type = self._metrics.render(headers.get("accept", ""))
        return 200, text, content_type
