"""`loop`: accepted for CoreDNS's Corefiles; a forwarding loop is not looked for yet."""

from __future__ import annotations

from kdns.chain import Plugin
from kdns.options import Options


class LoopOptions(Options, directive="loop", once=True):
    """It has none."""


class Loop(Plugin):
    name = "loop"
    options = LoopOptions

    def notices(self) -> tuple[str, ...]:
        """The directive is accepted and does nothing."""
        return ("no effect yet: a `forward` that leads back here is not found at start",)
