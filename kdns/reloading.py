"""A reload: the Corefile is read again, made ready beside the one that is served, and takes its place.

Who asks for it (the `reload` directive, SIGUSR1) is elsewhere; how a configuration gives way to another is `app.py`'s.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from kdns import metrics
from kdns.app import App, Configuration, build
from kdns.corefile import Corefile, fingerprint
from kdns.errors import KdnsError
from kdns.logs import plugin_logger

log = logging.getLogger("kdns")
_plugin_log = plugin_logger("reload")

REFUSED = "Corefile changed but reload failed: the last configuration is still served"


class Reloading:
    """Serves the Corefile as it is now, when somebody asks; one that can't be served changes nothing.

    `tell` says what is worth a word of one that is served.
    """

    def __init__(
        self, app: App, again: Callable[[], Corefile] | None, tell: Callable[[Corefile, Configuration], None]
    ) -> None:
        self._app = app
        self._again = again
        self._tell = tell
        self._running: asyncio.Task[None] | None = None
        self._refused = ""
        # The fingerprint of what was tried last: what is refused is tried again and again, for it may be right by then.
        self._tried = ""

    def signalled(self) -> None:
        """SIGUSR1: whether it has changed or not."""
        log.info("SIGUSR1: Reloading")
        self._begin(unchanged_too=True)

    async def look(self) -> None:
        """Read it again, and serve it if it has changed."""
        # The plugin that asks may end with the configuration that gives way.
        await asyncio.shield(self._begin(unchanged_too=False))

    def _begin(self, unchanged_too: bool) -> asyncio.Task[None]:
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._reload(unchanged_too))
        return self._running

    async def _reload(self, unchanged_too: bool) -> None:
        if self._again is None:
            return
        before = self._app.configuration
        try:
            parsed = self._again()
            found, tried = fingerprint(parsed), self._tried
            self._tried = found
            if not unchanged_too and found == before.fingerprint:
                self._refused = ""
                return
            if unchanged_too or found != tried:
                log.info("Reloading")
            configuration = build(parsed, before.process, before.plugins)
            await self._app.replace(configuration)
        except KdnsError as error:
            self._refuse(error, unchanged_too)
            return
        self._refused = ""
        self._tell(parsed, configuration)
        _plugin_log.info("Running configuration SHA512 = %s", configuration.fingerprint)
        log.info("Reloading complete")

    def _refuse(self, error: KdnsError, signalled: bool) -> None:
        # Every half minute the same mistake would be the same news; who sends a signal waits for a word.
        if str(error) == self._refused and not signalled:
            return
        self._refused = str(error)
        self._app.configuration.process.metrics.increase(metrics.RELOAD_FAILED)
        for line in [*str(error).splitlines(), REFUSED]:
            if signalled:
                log.error("SIGUSR1: %s", line)
            else:
                _plugin_log.error("%s", line)
