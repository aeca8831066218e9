"""`reload`: a changed Corefile is taken up without a restart, and without the loss of a query.

Here is only when to look; what is done then is `kdns/reloading.py`'s, for a signal asks for the same.
Law: docs/plugins/reload.md.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from random import Random
from typing import Annotated

from kdns.chain import Block, Plugin
from kdns.corefile import Token
from kdns.options import Options, RefusalError, argument, custom, duration, parse_duration, spell_duration


def _read_jitter(tokens: Sequence[Token]) -> float:
    seconds = parse_duration(tokens[0])
    if seconds != 0 and seconds < 1:
        raise RefusalError(tokens[0], "0 or 1s or more")
    return seconds


class ReloadOptions(Options, directive="reload"):
    interval: Annotated[float, argument(duration(2.0).called("INTERVAL")), "time between two looks at the Corefile"] = (
        30.0
    )
    jitter: Annotated[
        float,
        argument(custom(_read_jitter, "JITTER", "a duration", show=spell_duration)),
        "how far that time varies; never more than half of it",
    ] = 15.0


class Reload(Plugin):
    name = "reload"
    options = ReloadOptions

    def __init__(self, options: ReloadOptions, block: Block) -> None:
        self._process = block.process
        self._interval = options.interval
        self._jitter = min(options.jitter, options.interval / 2)
        self._random = Random()

    async def feed(self) -> None:
        """Look again and again; the first directive of several looks for all."""
        while True:
            await asyncio.sleep(self._interval + self._random.uniform(-self._jitter, self._jitter))
            first = next((plugin for plugin in self._process.plugins if isinstance(plugin, Reload)), None)
            if first is self and self._process.reload is not None:
                await self._process.reload()
