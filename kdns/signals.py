"""The signals that end this process, and what it says then.

Law: CoreDNS 1.14.7, sigtrap.go and sigtrap_posix.go of its fork of caddy.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
from typing import Any

log = logging.getLogger("kdns")

# What a second SIGINT ends with.
FORCED = 2
# uvloop tells of one signal twice, now and then, when it comes right after another (0.23.0: SIGUSR1, then SIGTERM, one
# time in forty), which would end `lameduck` at once. Nobody who has lost patience asks twice in so short a time.
ECHO_SECONDS = 0.1


class Signals:
    """Listens for signals in one loop: `told` is set by the first that wants an end, `hurry` by one that can't wait."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.told = asyncio.Event()
        self.hurry = asyncio.Event()
        self.code = 0
        self._interrupts = 0
        self._last: dict[signal.Signals, float] = {}
        loop.add_signal_handler(signal.SIGTERM, self._terminate)
        loop.add_signal_handler(signal.SIGINT, self._interrupt)
        loop.add_signal_handler(signal.SIGQUIT, self._quit)
        # A terminal that goes away is no reason to end.
        loop.add_signal_handler(signal.SIGHUP, lambda: None)
        loop.add_signal_handler(signal.SIGUSR2, self._upgrade)

    def _terminate(self) -> None:
        if self._is_echo(signal.SIGTERM):
            return
        log.info("SIGTERM: Shutting down servers then terminating")
        self._end()

    def _interrupt(self) -> None:
        if self._is_echo(signal.SIGINT):
            return
        self._interrupts += 1
        if self._interrupts > 1:
            log.info("SIGINT: Force quit")
            self.code = FORCED
        else:
            log.info("SIGINT: Shutting down")
        self._end()

    def _quit(self) -> None:
        log.info("SIGQUIT: Quitting process immediately")
        self.told.set()
        self.hurry.set()

    def _upgrade(self) -> None:
        log.warning("SIGUSR2: a process can't be upgraded in place; the next one is started beside it")

    def _is_echo(self, number: signal.Signals) -> bool:
        now = time.monotonic()
        last, self._last[number] = self._last.get(number, 0.0), now
        return now - last < ECHO_SECONDS

    def _end(self) -> None:
        # Who asks twice has waited long enough.
        if self.told.is_set():
            self.hurry.set()
        self.told.set()


async def done_before(event: asyncio.Event, task: asyncio.Task[Any]) -> bool:
    """Wait for a task; where the event comes first the task is cancelled, and it wasn't done. Raises what it raises."""
    waiting = asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait((task, waiting), return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
    if not task.done():
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        return False
    await task
    return True
