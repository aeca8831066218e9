"""`debug`: accepted for CoreDNS's Corefiles; an error of the server never ends the process."""

from __future__ import annotations

from typing import ClassVar

from kdns.chain import Plugin
from kdns.options import Options


class DebugOptions(Options, directive="debug"):
    """It has none."""


class Debug(Plugin):
    name = "debug"
    options: ClassVar[type[Options]] = DebugOptions

    def notices(self) -> tuple[str, ...]:
        """The directive is accepted and does nothing."""
        return ("no effect: an error of the server costs its query and is logged with its stack anyway",)
