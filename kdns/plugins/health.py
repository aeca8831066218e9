"""`health`: an HTTP path that says that the process lives, and the pause before it ends.

Law: docs/plugins/health.md. CoreDNS asks its own URL each second for its metric; here the same is known without that:
how late the event loop is, which is how long a request would have waited.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Annotated

from kdns import metrics
from kdns.chain import Block, Plugin, Route
from kdns.logs import plugin_logger
from kdns.options import Address, Options, address, argument, duration, spell_duration

_log = plugin_logger("health")

MEASURE_SECONDS = 1.0
LATE_SECONDS = 1.0


class HealthOptions(Options, directive="health"):
    address: Annotated[Address, argument(address()), "where /health is served"] = Address("", 8080)
    lameduck: Annotated[float, duration(), "how long queries are still answered after the order to end"] = 0.0


class Health(Plugin):
    name = "health"
    options = HealthOptions

    def __init__(self, options: HealthOptions, block: Block) -> None:
        self._address = options.address
        self._lameduck_seconds = options.lameduck
        self._metrics = block.process.metrics

    def routes(self) -> Iterable[Route]:
        return (Route(self._address.host, self._address.port, "/health", _respond),)

    async def feed(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + MEASURE_SECONDS
            await asyncio.sleep(MEASURE_SECONDS)
            self.measure(max(0.0, loop.time() - due))

    def measure(self, late_seconds: float) -> None:
        """Count how long a request would have waited just now."""
        self._metrics.observe(metrics.HEALTH_SECONDS, late_seconds)
        if late_seconds > LATE_SECONDS:
            _log.warning(
                'Local health request to "http://%s/health" would have taken more than 1s: %s',
                self._address,
                spell_duration(round(late_seconds, 3)),
            )

    async def stopping(self) -> None:
        if self._lameduck_seconds > 0:
            _log.info("Going into lameduck mode for %s", spell_duration(self._lameduck_seconds))
            await asyncio.sleep(self._lameduck_seconds)


def _respond(headers: dict[str, str]) -> tuple[int, bytes, str]:
    return 200, b"OK", "text/plain; charset=utf-8"
