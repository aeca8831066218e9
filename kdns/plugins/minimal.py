"""`minimal`: an answer with data is sent without the records that only accompany it.

Law: docs/plugins/minimal.md.
"""

from __future__ import annotations

from typing import ClassVar

from kdns.chain import Answer, Next, Plugin, Request
from kdns.options import Options
from kdns.wire.records import Rcode


class MinimalOptions(Options, directive="minimal"):
    """It has none."""


class Minimal(Plugin):
    name = "minimal"
    options: ClassVar[type[Options]] = MinimalOptions

    async def handle(self, request: Request, next: Next) -> Answer:
        answer = await next(request)
        # Without an answer the authority section says why, or whom to ask instead.
        if answer.rcode == Rcode.NOERROR and (answer.answer or not answer.authority):
            answer.authority = answer.additional = ()
        return answer
