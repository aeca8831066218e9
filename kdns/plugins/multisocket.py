"""`multisocket`: other processes may listen at the addresses and ports of this server block as well.

In CoreDNS every port can be shared, and the directive opens several sockets in one process, for its threads. kdns has
one thread, which one socket keeps busy, and shares a port only where it is told so.
Law: docs/plugins/multisocket.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, ClassVar

from kdns.chain import Block, Plugin
from kdns.options import Options, argument, number


class MultisocketOptions(Options, directive="multisocket"):
    sockets: Annotated[
        int | None, argument(number(1, 1024).called("NUMBER")), "how many sockets an address has in CoreDNS"
    ] = None


class Multisocket(Plugin):
    name = "multisocket"
    options: ClassVar[type[Options]] = MultisocketOptions

    def __init__(self, options: MultisocketOptions, block: Block) -> None:
        self._sockets = options.sockets

    def configure(self, block: Block) -> None:
        block.shares_port = True

    def notices(self) -> Iterable[str]:
        """It shares the port, and opens no more sockets than without it."""
        if self._sockets != 1:
            yield "each address has one socket here; other processes may listen beside this one"
