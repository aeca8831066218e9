"""`bufsize`: replies over UDP, and those of upstreams, no larger than that, whatever the client can take.

Law: docs/plugins/bufsize.md.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Annotated, Any, ClassVar

from kdns.chain import Answer, Block, Next, Plugin, Request
from kdns.options import Options, argument, number
from kdns.wire.reply import UDP_PAYLOAD


class BufsizeOptions(Options, directive="bufsize"):
    size: Annotated[
        int,
        argument(number(512, 4096, unit="bytes").called("SIZE")),
        "replies over UDP have at most so many bytes",
    ] = UDP_PAYLOAD


class Bufsize(Plugin):
    name = "bufsize"
    options: ClassVar[type[Options]] = BufsizeOptions

    def __init__(self, options: BufsizeOptions, block: Block) -> None:
        self._most = options.size

    def notices(self) -> tuple[str, ...]:
        """More than kdns sends has no effect."""
        if self._most <= UDP_PAYLOAD:
            return ()
        return (f"replies over UDP have at most {UDP_PAYLOAD} bytes anyway",)

    def handle(self, request: Request, next: Next) -> Coroutine[Any, Any, Answer]:
        """The client takes less from here on; no coroutine of its own for that."""
        if request.query.size > self._most:
            request.query.size = self._most
        return next(request)
