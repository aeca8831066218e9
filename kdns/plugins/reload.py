"""`reload`: accepted for CoreDNS's Corefiles; the file is not watched yet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from kdns.chain import Plugin
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

    def notices(self) -> tuple[str, ...]:
        """The directive is accepted and does nothing."""
        return ("no effect yet: a changed Corefile counts after a restart",)
