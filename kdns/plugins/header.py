"""`header`: bits of a query or of its reply are set or cleared.

Law: docs/plugins/header.md.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import msgspec

from kdns.chain import Answer, Block, Next, Plugin, Request
from kdns.corefile import Directive
from kdns.options import Options, RefusalError, choice, lines
from kdns.wire.query import AA, RA, RD

BITS = {"aa": AA, "ra": RA, "rd": RD}


class Rule(msgspec.Struct, frozen=True):
    """What one line does: to queries or replies, with which bits, and whether they are set."""

    selector: str
    bits: int
    set: bool


def _read_rule(line: Directive) -> Rule:
    if len(line.args) < 2 or line.body is not None:
        raise RefusalError(line.name, "`query|response set|clear FLAG...`")
    action = choice("set", "clear").read(line.args[:1])
    bits = 0
    for token in line.args[1:]:
        bits |= BITS[choice(*BITS).read([token])]
    return Rule(line.name.text, bits, action == "set")


class HeaderOptions(Options, directive="header"):
    rules: Annotated[
        tuple[Rule, ...],
        lines(_read_rule, "query", "response", syntax="query|response set|clear FLAG..."),
        "bits that are set or cleared in a query or in its reply, in the order of the lines",
    ] = ()


class Header(Plugin):
    name = "header"
    options: ClassVar[type[Options]] = HeaderOptions

    def __init__(self, options: HeaderOptions, block: Block) -> None:
        self._query = [rule for rule in options.rules if rule.selector == "query"]
        self._response = [rule for rule in options.rules if rule.selector == "response"]

    async def handle(self, request: Request, next: Next) -> Answer:
        query = request.query
        query.flags = _changed(query.flags, self._query)
        answer = await next(request)
        # RD of a reply is that of its query, unless it is told otherwise here.
        flags = _changed(answer.flags | query.flags & RD, self._response)
        query.flags = query.flags & ~RD | flags & RD
        answer.flags = flags & ~RD
        return answer


def _changed(flags: int, rules: list[Rule]) -> int:
    for rule in rules:
        flags = flags | rule.bits if rule.set else flags & ~rule.bits
    return flags
