"""`any`: a short answer to who asks for all types at once, whatever there is (RFC 8482 §4.2).

Law: docs/plugins/any.md.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any as AnyType
from typing import ClassVar

from kdns.chain import Answer, Next, Plugin, Request
from kdns.options import Options
from kdns.wire.records import CLASS_IN, Record, Type

TTL_SECONDS = 8482
_STRINGS = (b"ANY obsoleted", b"See RFC 8482")
_HINFO = b"".join(bytes((len(string),)) + string for string in _STRINGS)


class AnyOptions(Options, directive="any"):
    """It has none."""


class Any(Plugin):
    name = "any"
    options: ClassVar[type[Options]] = AnyOptions

    def handle(self, request: Request, next: Next) -> Coroutine[AnyType, AnyType, Answer]:
        """All other types are the next plugin's; no coroutine of its own for them."""
        if request.query.rtype == Type.ANY and request.query.rclass == CLASS_IN:
            return self._answer(request)
        return next(request)

    async def _answer(self, request: Request) -> Answer:
        record = Record(request.query.qname, Type.HINFO, TTL_SECONDS, _HINFO)
        return Answer(answer=[record], flags=0, plugin=self.name)
