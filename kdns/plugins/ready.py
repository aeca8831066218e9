"""`ready`: an HTTP path that says whether every plugin can do its work, and which can't.

Law: docs/plugins/ready.md. One answer for the whole process, whichever block has the directive.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

from kdns.chain import Block, Plugin, Route
from kdns.logs import plugin_logger
from kdns.options import Address, Options, address, argument, choice

_log = plugin_logger("ready")
_TEXT = "text/plain; charset=utf-8"


class ReadyOptions(Options, directive="ready", once=True):
    address: Annotated[Address, argument(address()), "where /ready is served"] = Address("", 8181)
    monitor: Annotated[
        str,
        choice("until-ready", "continuously"),
        "whether a plugin that has been ready once is asked again",
    ] = "until-ready"


class Ready(Plugin):
    name = "ready"
    options = ReadyOptions

    def __init__(self, options: ReadyOptions, block: Block) -> None:
        self._address = options.address
        self._continuously = options.monitor == "continuously"
        self._process = block.process
        self._been_ready: set[Plugin] = set()
        self._said = ""

    def routes(self) -> Iterable[Route]:
        return (Route(self._address.host, self._address.port, "/ready", self.respond),)

    def respond(self, headers: dict[str, str]) -> tuple[int, bytes, str]:
        """200 when all are ready; else 503 with the names of those that aren't, and what is missing to them."""
        if self._process.stopping:
            return 503, b"Shutting down", _TEXT
        waiting: dict[str, list[str]] = {}
        for plugin in self._process.plugins:
            if not self._is_ready(plugin):
                waiting.setdefault(plugin.name, []).append(plugin.missing())
        missing = ",".join(sorted(waiting))
        # A probe comes every few seconds; what it finds is news only once.
        if missing and missing != self._said:
            _log.info('Plugins not ready: "%s"', missing)
        self._said = missing
        if not missing and self._process.starting:
            return 503, b"Not listening yet", _TEXT
        if not missing:
            return 200, b"OK", _TEXT
        return 503, ",".join(_with_cause(name, waiting[name]) for name in sorted(waiting)).encode(), _TEXT

    def _is_ready(self, plugin: Plugin) -> bool:
        if plugin in self._been_ready and not self._continuously:
            return True
        if not plugin.ready():
            return False
        self._been_ready.add(plugin)
        return True


def _with_cause(name: str, causes: Iterable[str]) -> str:
    """The name as CoreDNS has it, and behind it what only kdns says."""
    told = "; ".join(dict.fromkeys(filter(None, causes)))
    return f"{name} ({told})" if told else name
