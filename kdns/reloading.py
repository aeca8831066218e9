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
from kdns.errors import ConfigError, KdnsError, Place, Problem
from kdns.logs import plugin_logger

log = logging.getLogger("kdns")
_plugin_log = plugin_logger("reload")

REFUSED = "Corefile changed but reload failed: the last configuration is still served"


class Reloading:
    """Serves the Corefile as it is now, when somebody asks; one that can't be served changes nothing.

    Between `begin` and `end`, that is: who asks earlier waits, who asks later asks for nothing. `tell` says what is
    worth a word of one that is served.
    """

    def __init__(
        self, app: App, again: Callable[[], Corefile] | None, tell: Callable[[Corefile, Configuration], None]
    ) -> None:
        self._app = app
        self._again = again
        self._tell = tell
        self._serving = asyncio.Event()
        self._running: asyncio.Task[None] | None = None
        self._signals = 0
        self._refused = ""
        # The fingerprint of what was tried last: what is refused is tried again and again, for it may be right by then.
        self._tried = ""

    def begin(self) -> None:
        """The first configuration is served, and may give way to others."""
        self._serving.set()

    async def end(self) -> None:
        """The process ends: what is under way is given up, and the sockets are those that it leaves in order."""
        self._again = None
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait([self._running])

    def signalled(self) -> None:
        """SIGUSR1: whether it has changed or not."""
        if self._again is None:
            return
        log.info("SIGUSR1: Reloading")
        self._signals += 1
        self._run()

    async def look(self) -> None:
        """Read it again, and serve it if it has changed."""
        # The plugin that asks may end with the configuration that gives way.
        await asyncio.shield(self._run())

    def _run(self) -> asyncio.Task[None]:
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._reloads())
        return self._running

    async def _reloads(self) -> None:
        await self._serving.wait()
        while True:
            signals, self._signals = self._signals, 0
            await self._reload(unchanged_too=signals > 0)
            # Who has sent a signal meanwhile may have changed the file after it was read.
            if not self._signals:
                return

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
            if parsed.default:
                # An editor may be about to write it; CoreDNS's own block in its place would look no more.
                raise ConfigError([Problem("there is no server block", Place(file)) for file in parsed.files[:1]])
            configuration = build(parsed, before.process, before.plugins)
            await self._app.replace(configuration)
        except Exception as error:
            if not isinstance(error, KdnsError):
                log.exception("a reload failed by an error of kdns")
            self._refuse(error, unchanged_too)
            return
        self._refused = ""
        self._tell(parsed, configuration)
        _plugin_log.info("Running configuration SHA512 = %s", configuration.fingerprint)
        log.info("Reloading complete")

    def _refuse(self, error: Exception, signalled: bool) -> None:
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
