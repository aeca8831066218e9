"""What hinders the watches of one API server: each trouble is told in one line, for all that have it.

An outage meets every watch, each within a second or so of the others. So what there is to say waits until they have
met it, and then says what holds; what has passed by then only the metrics tell. Knows no requests.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Sequence

log = logging.getLogger("kdns.plugin.kubernetes")

GATHER_SECONDS = 1.0
# In a line; with `namespaces` there may be hundreds of watches.
MOST_NAMED = 8
# A trouble whose words change each time is told again after so many others.
MOST_REMEMBERED = 20


class Troubles:
    """The troubles of watches, by their label. What was told of a watch is not told again until it is well."""

    def __init__(self) -> None:
        self._now: dict[str, str] = {}
        self._told: dict[str, set[str]] = defaultdict(set)
        self._timer: asyncio.TimerHandle | None = None

    def note(self, label: str, trouble: str) -> None:
        """What hinders a watch from now on; nothing, where it is empty."""
        if self._now.get(label, "") == trouble:
            return
        self._now[label] = trouble
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(GATHER_SECONDS, self._say)

    def close(self) -> None:
        """Say nothing more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _say(self) -> None:
        self._timer = None
        news: dict[str, list[str]] = defaultdict(list)
        well: list[str] = []
        for label, trouble in self._now.items():
            told = self._told[label]
            if not trouble:
                if told:
                    well.append(label)
                    told.clear()
            elif trouble not in told:
                if len(told) >= MOST_REMEMBERED:
                    told.clear()
                told.add(trouble)
                news[trouble].append(label)
        for trouble, labels in news.items():
            log.warning("%s: %s", named(labels), trouble)
        if well:
            log.info("%s: watched again", named(well))


def named(names: Sequence[str], most: int = MOST_NAMED) -> str:
    """Names in a line of the log, as many as there is room for."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
