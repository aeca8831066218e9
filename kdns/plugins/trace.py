"""`trace`: accepted for CoreDNS's Corefiles; nothing is sent to a tracer.

Law of the options: CoreDNS's page of `trace`.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

from kdns.chain import Plugin
from kdns.options import Options, argument, duration, flag, fraction, number, word, words

_size = number(1).called("SIZE")


class TraceOptions(Options, directive="trace"):
    endpoint: Annotated[
        tuple[str, ...],
        argument(words("[ENDPOINT-TYPE] [ENDPOINT]", at_least=0, at_most=2)),
        "where CoreDNS sends traces: `zipkin` or `datadog`, and an address",
    ] = ("zipkin", "localhost:9411")
    every: Annotated[int, number(0).called("AMOUNT"), "one query of so many is traced"] = 1
    service: Annotated[str, word("NAME"), "the name of the service in traces"] = "coredns"
    client_server: Annotated[bool, flag(), "client and server share a span"] = False
    datadog_analytics_rate: Annotated[float, fraction(0, 1), "how many traces are analyzed"] = 0.0
    zipkin_max_backlog_size: Annotated[int, _size, "how many traces wait"] = 1000
    zipkin_max_batch_size: Annotated[int, _size, "how many traces are sent at once"] = 100
    zipkin_max_batch_interval: Annotated[float, duration(), "how long traces wait"] = 1.0


class Trace(Plugin):
    name = "trace"
    options: ClassVar[type[Options]] = TraceOptions

    def notices(self) -> tuple[str, ...]:
        """The directive is accepted and does nothing."""
        return ("no effect: no traces are sent; `prometheus` and `log` tell of queries",)
