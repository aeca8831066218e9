"""`multisocket`: accepted for CoreDNS's Corefiles; kdns has one process, which one socket keeps busy."""

from __future__ import annotations

from typing import Annotated, ClassVar

from kdns.chain import Plugin
from kdns.options import Options, argument, number


class MultisocketOptions(Options, directive="multisocket"):
    sockets: Annotated[
        int | None, argument(number(1, 1024).called("NUMBER")), "how many sockets have each address, in CoreDNS"
    ] = None


class Multisocket(Plugin):
    name = "multisocket"
    options: ClassVar[type[Options]] = MultisocketOptions

    def notices(self) -> tuple[str, ...]:
        """The directive is accepted and does nothing."""
        return ("no effect: each address has one socket; more servers share the load as more replicas",)
