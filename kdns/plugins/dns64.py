"""`dns64`: for clients that have IPv6 alone, an IPv4 address as an IPv6 address that a NAT64 leads to it.

Law: docs/plugins/dns64.md, RFC 6147 (what is translated), RFC 6052 §2.2 (how).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Coroutine, Sequence
from typing import Annotated, Any, ClassVar

from kdns.chain import Answer, Block, Next, Plugin, Request
from kdns.corefile import Token
from kdns.metrics import DNS64_TRANSLATED
from kdns.options import Options, RefusalError, argument, custom, flag
from kdns.wire.query import AD, CD
from kdns.wire.records import CLASS_IN, Rcode, Record, Type, address

# RFC 6052 §2.1: the prefix that everybody knows.
WELL_KNOWN = ipaddress.IPv6Network("64:ff9b::/96")
LENGTHS = (32, 40, 48, 56, 64, 96)
# RFC 6147 §5.1.7: the longest TTL where the name has no SOA.
LONGEST_TTL_SECONDS = 600
# RFC 6052 §2.2: bits 64 to 71 are zero, so the address goes round this byte.
_SKIPPED = 8


def _read_prefix(tokens: Sequence[Token]) -> ipaddress.IPv6Network:
    expected = "an IPv6 network of 32, 40, 48, 56, 64 or 96 bits, such as `64:ff9b::/96`"
    try:
        network = ipaddress.IPv6Network(tokens[0].text, strict=False)
    except ValueError:
        raise RefusalError(tokens[0], expected) from None
    if network.prefixlen not in LENGTHS:
        raise RefusalError(tokens[0], expected, "RFC 6052 §2.2 has no other lengths")
    return network


_prefix = custom(_read_prefix, "PREFIX", "a prefix")


class Dns64Options(Options, directive="dns64"):
    prefix_: Annotated[ipaddress.IPv6Network, argument(_prefix), "the network that the NAT64 translates"] = WELL_KNOWN
    prefix: Annotated[ipaddress.IPv6Network | None, _prefix, "the same, as an option"] = None
    translate_all: Annotated[bool, flag(), "translate even where there are IPv6 addresses, in place of them"] = False
    allow_ipv4: Annotated[bool, flag(), "translate for clients that ask over IPv4 too"] = False


class Dns64(Plugin):
    name = "dns64"
    options: ClassVar[type[Options]] = Dns64Options

    def __init__(self, options: Dns64Options, block: Block) -> None:
        self._prefix = options.prefix or options.prefix_
        self._all = options.translate_all
        self._for_ipv4 = options.allow_ipv4
        self._block = block

    def notices(self) -> tuple[str, ...]:
        """What no option changes."""
        return (
            "SERVFAIL where the question for A fails",
            "a client that sets DO and CD gets nothing translated",
            "AA is that of the answer that is translated",
        )

    def handle(self, request: Request, next: Next) -> Coroutine[Any, Any, Answer]:
        """Only questions for AAAA are looked at, of clients that have a use for it."""
        query = request.query
        if query.rtype != Type.AAAA or query.rclass != CLASS_IN or not (self._for_ipv4 or request.over_ipv6):
            return next(request)
        # RFC 6147 §5.5: who checks signatures itself would find what was made here to be forged.
        if query.do and query.flags & CD:
            return next(request)
        return self._translated(request, next)

    async def _translated(self, request: Request, next: Next) -> Answer:
        answer = await next(request)
        if answer.rcode == Rcode.NXDOMAIN or answer.cause or answer.unclaimed:
            return answer
        if not self._all and any(record.rtype == Type.AAAA for record in answer.answer):
            return answer
        # RFC 6147 §5.1.2: any other code, as of a server that knows no AAAA, is taken for an empty answer.
        found = await request.ask(request.query.spelled, Type.A)
        has_address = any(record.rtype == Type.A for record in found.answer)
        if not has_address and not (self._all and found.rcode == Rcode.NOERROR):
            # That there is no address would be believed, and kept.
            return found if found.rcode == Rcode.SERVFAIL and answer.rcode == Rcode.NOERROR else answer
        self._block.process.metrics.increase(DNS64_TRANSLATED, self._block.server)
        soa = longest_ttl_of(answer.authority)
        return Answer(
            Rcode.NOERROR,
            [self._translate(record, soa) for record in found.answer],
            found.authority,
            found.additional,
            found.flags & ~AD,
            plugin=self.name,
            error=found.error,
        )

    def _translate(self, record: Record, longest_ttl: int) -> Record:
        if record.rtype != Type.A:
            return record
        return address(record.owner, min(record.ttl, longest_ttl), embedded(self._prefix, record.data))


def longest_ttl_of(authority: Sequence[Record]) -> int:
    """The TTL that a translated record may have at most: that of the SOA which said that there is no AAAA."""
    return next((record.ttl for record in authority if record.rtype == Type.SOA), LONGEST_TTL_SECONDS)


def embedded(prefix: ipaddress.IPv6Network, packed: bytes) -> bytes:
    """The 16 bytes of the IPv6 address in which a prefix has an IPv4 address (RFC 6052 §2.2)."""
    start = prefix.prefixlen // 8
    head = prefix.network_address.packed[:start]
    if start > _SKIPPED:
        return head + packed
    before = _SKIPPED - start
    return (head + packed[:before] + b"\x00" + packed[before:]).ljust(16, b"\x00")
