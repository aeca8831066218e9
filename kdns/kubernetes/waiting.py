"""How long an API server is waited for, and left alone after a failure. Pure: no clock, no requests.

Law: the pauses of k8s.io/client-go's reflector, which every API server is used to.
"""

from __future__ import annotations

from random import Random

import msgspec

from kdns.kubernetes.client import REPLY_SECONDS


class Timing(msgspec.Struct, frozen=True):
    """How long is long; all in seconds."""

    first_pause: float = 0.8
    longest_pause: float = 30.0
    # How long a watch lasts before it is begun anew.
    watch: tuple[float, float] = (300.0, 600.0)
    # Until a reply begins; and until a streaming list goes on.
    reply: float = REPLY_SECONDS
    silence: float = 10.0
    # How long lists are read by pages where the server could not stream one.
    pages: float = 3600.0
    # Between two signs of life, and until one of them has to be there.
    probe: float = 10.0
    probe_reply: float = 4.0
    # Between two audits of a watch; and from what an audit doubts, or a list from the past, to the look that counts.
    audit: float = 240.0
    second_look: float = 5.0


class Backoff:
    """Pauses that double up to a longest one, each with as much again by chance (a herd must not come back at once)."""

    def __init__(self, timing: Timing, random: Random) -> None:
        self._timing = timing
        self._random = random
        self._pause = timing.first_pause

    def reset(self) -> None:
        """What came after the last pause went well for long enough."""
        self._pause = self._timing.first_pause

    def next(self) -> float:
        """The pause to make now, in seconds."""
        pause = self._pause
        self._pause = min(pause * 2, self._timing.longest_pause)
        return min(pause * (1 + self._random.random()), self._timing.longest_pause)
