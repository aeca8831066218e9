"""`forward FROM TO...`: names that others know are asked of them.

The plugin chooses whom to ask, in which order and how often; asking is `upstream/exchange.py`'s.
Law: docs/plugins/forward.md; the options are CoreDNS 1.14.7's.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import msgspec

from kdns.chain import Answer, Block, Next, Plugin, Request, failure
from kdns.corefile import Token, read_regular
from kdns.logs import plugin_logger
from kdns.metrics import (
    FORWARD_HEALTH_BROKEN,
    FORWARD_HEALTH_FAILURES,
    FORWARD_REJECTED,
    PROXY_HEALTH_FAILURES,
)
from kdns.options import (
    Options,
    RefusalError,
    WordError,
    argument,
    choice,
    custom,
    duration,
    flag,
    number,
    parse_duration,
    repeatable,
    spell_duration,
    without_effect,
    word,
    words,
    zone,
    zones,
)
from kdns.upstream.exchange import Upstream, UpstreamError, exchange, is_address
from kdns.wire import names
from kdns.wire.message import Message
from kdns.wire.query import AA, AD, RA, RD, TC, Query
from kdns.wire.records import Rcode, Type

log = plugin_logger("forward")

# What one client's query may cost the upstreams, whatever the options say (NXNSAttack and its kin live from retries).
MOST_ATTEMPTS = 10
OVERALL_SECONDS = 5.0
CHECK_SECONDS = 1.0
MOST_UPSTREAMS = 15

# RFC 8914 §4.23, §4.24.
_NO_REACHABLE_AUTHORITY, _NETWORK_ERROR = 22, 23
_SCHEMES_TO_COME = ("tls", "https", "grpc", "quic")
_ADDRESS = "an address, `IP[:PORT]` or `[IPv6]:PORT`, or a file in the form of resolv.conf"


class HealthCheck(msgspec.Struct, frozen=True):
    """How an upstream that failed is asked whether it lives again: how often, with RD or without, for which name."""

    seconds: float = 0.5
    recursion: bool = True
    domain: str = "."


def _read_upstreams(tokens: Sequence[Token]) -> tuple[Upstream, ...]:
    found = tuple(upstream for token in tokens for upstream in _upstreams_of(token))
    if len(found) > MOST_UPSTREAMS:
        raise ValueError(f"more than {MOST_UPSTREAMS} upstreams are configured: {len(found)}")
    return found


def _upstreams_of(token: Token) -> list[Upstream]:
    text = token.text
    scheme, separator, rest = text.partition("://")
    if separator and scheme in _SCHEMES_TO_COME:
        raise WordError(token, ValueError(f"an upstream with `{scheme}://` isn't in kdns yet"))
    if separator and scheme != "dns":
        raise RefusalError(token, _ADDRESS)
    upstream = _address_of(rest if separator else text)
    if upstream is not None:
        return [upstream]
    if separator:
        raise RefusalError(token, _ADDRESS)
    try:
        servers = resolv_conf(read_regular(text))
    except OSError as error:
        # What looks like no path was hardly meant as one.
        if "/" not in text:
            raise RefusalError(token, _ADDRESS) from error
        reason = error.strerror or str(error)
        raise WordError(token, ValueError(f"`{text}` can't be read: {reason.lower()}")) from error
    if not servers:
        raise WordError(token, ValueError(f"`{text}` names no server: it has no line `nameserver IP`"))
    return servers


def resolv_conf(text: str) -> list[Upstream]:
    """The servers of a file in the form of /etc/resolv.conf; everything else in it is left alone."""
    fields = [line.split() for line in text.splitlines()]
    hosts = [field[1] for field in fields if len(field) > 1 and field[0] == "nameserver"]
    return [Upstream(host) for host in hosts if is_address(host)]


def _address_of(text: str) -> Upstream | None:
    host, port = text, "53"
    if text.startswith("["):
        host, _, after = text[1:].partition("]")
        if after and not after.startswith(":"):
            return None
        port = after[1:] if after else port
        if ":" not in host:
            return None
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    if not is_address(host) or not (port.isascii() and port.isdigit() and 0 < int(port[:6]) < 65536):
        return None
    return Upstream(host, int(port))


def _read_health_check(tokens: Sequence[Token]) -> HealthCheck:
    seconds = parse_duration(tokens[0])
    if seconds < 0:
        raise RefusalError(tokens[0], "0s or more")
    recursion, domain = True, "."
    rest = iter(tokens[1:])
    for token in rest:
        if token.text == "no_rec":
            recursion = False
        elif token.text == "domain":
            name = next(rest, None)
            if name is None:
                raise WordError(token, ValueError("`domain` needs a name"))
            try:
                names.from_text(name.text)
            except ValueError as error:
                raise WordError(name, error) from error
            domain = name.text
        else:
            raise RefusalError(token, "`no_rec` or `domain NAME`")
    return HealthCheck(seconds=seconds, recursion=recursion, domain=domain)


def _read_rcodes(tokens: Sequence[Token]) -> tuple[int, ...]:
    return tuple(_rcode_of(token) for token in tokens)


def _read_failures(tokens: Sequence[Token]) -> tuple[int, ...]:
    for token in tokens:
        if _rcode_of(token) == Rcode.NOERROR:
            raise WordError(token, ValueError("NOERROR is no failure"))
    return _read_rcodes(tokens)


def _rcode_of(token: Token) -> int:
    text = token.text.upper()
    if text not in Rcode.__members__:
        raise RefusalError(token, "a response code, such as NXDOMAIN or SERVFAIL")
    return Rcode[text]


def _show_rcodes(codes: Any) -> str:
    return " ".join(Rcode(code).name for code in codes)


def _show_check(check: Any) -> str:
    return spell_duration(check.seconds)


_FRESH = "each query has a connection of its own"
_PLAIN = "upstreams over TLS aren't in kdns yet"
_rcodes = custom(_read_rcodes, "RCODE...", "response codes", most=None, show=_show_rcodes)
_failures = custom(_read_failures, "RCODE...", "response codes", most=None, show=_show_rcodes)
_check = custom(
    _read_health_check, "DURATION [no_rec] [domain NAME]", "a duration, then its options", most=None, show=_show_check
)


class ForwardOptions(Options, directive="forward"):
    """What `forward` takes."""

    from_: Annotated[tuple[str, ...], argument(zone("FROM")), "names in this zone are forwarded"]
    to: Annotated[
        tuple[Upstream, ...],
        argument(custom(_read_upstreams, "TO...", _ADDRESS, most=None)),
        "whom to ask: addresses, or files in the form of resolv.conf, at most 15",
    ]
    except_: Annotated[tuple[str, ...], zones(at_least=1), repeatable, "names in these zones are not forwarded"] = ()
    force_tcp: Annotated[bool, flag(), "ask over TCP whatever the client used"] = False
    prefer_udp: Annotated[bool, flag(), "ask over UDP whatever the client used"] = False
    policy: Annotated[
        str, choice("random", "round_robin", "sequential"), "whom to ask first, the others follow when it fails"
    ] = "random"
    read_timeout: Annotated[float, duration(0.001), "how long to wait for one upstream; 5s is the most for all"] = 2.0
    max_fails: Annotated[
        int, number(0), "an upstream that failed more often than that, one time after another, is avoided; 0 for never"
    ] = 2
    max_connect_attempts: Annotated[
        int | None, number(0), "how often to try in all; 0 and the default are twice per upstream, never more than 10"
    ] = None
    health_check: Annotated[HealthCheck, _check, "how often an upstream that failed is asked whether it lives"] = (
        HealthCheck()
    )
    failfast_all_unhealthy_upstreams: Annotated[bool, flag(), "SERVFAIL at once when all are avoided"] = False
    max_concurrent: Annotated[int, number(0), "more queries than that at once are REFUSED; 0 for no limit"] = 0
    next: Annotated[tuple[int, ...], _rcodes, repeatable, "with these answers the next `forward` is asked"] = ()
    next_on_nodata: Annotated[bool, flag(), "with an empty NOERROR the next `forward` is asked"] = False
    failover: Annotated[tuple[int, ...], _failures, repeatable, "with these answers the next upstream is asked"] = ()
    expire: Annotated[float, duration(0), without_effect(_FRESH), "how long an idle connection is kept"] = 10.0
    max_age: Annotated[float, duration(0), without_effect(_FRESH), "how long any connection is kept"] = 0.0
    max_idle_conns: Annotated[int, number(0), without_effect(_FRESH), "how many idle connections are kept"] = 0
    tls: Annotated[
        tuple[str, ...], words("[CERT KEY] [CA]", at_least=0, at_most=3), without_effect(_PLAIN), "files"
    ] = ()
    tls_servername: Annotated[str, word("NAME"), without_effect(_PLAIN), "the name in the certificate"] = ""


class Forward(Plugin):
    """The `forward` directive."""

    name: ClassVar[str] = "forward"
    options: ClassVar[type[Options]] = ForwardOptions

    def __init__(self, options: ForwardOptions, block: Block) -> None:
        self._options = options
        self._metrics = block.process.metrics
        self._from = [names.labels_of(names.from_text(each)) for each in options.from_]
        self._except = [names.labels_of(names.from_text(each)) for each in options.except_]
        self._upstreams = [_Standing(upstream) for upstream in options.to]
        self._next_codes = frozenset(options.next)
        self._failures = frozenset(options.failover)
        self._turn = 0
        self._running = 0
        self._ailing = asyncio.Event()
        count = len(self._upstreams)
        self._attempts = min(MOST_ATTEMPTS, options.max_connect_attempts or 2 * count)

    async def handle(self, request: Request, next: Next) -> Answer:  # noqa: A002
        """Ask others for names in FROM; all other names are the next plugin's."""
        query = request.query
        if not self._takes(query.labels):
            return await next(request)
        # The answer depends on somebody whose changes nobody tells us.
        request.keep = False
        limit = self._options.max_concurrent
        if limit and self._running >= limit:
            self._metrics.increase(FORWARD_REJECTED)
            return failure(f"concurrent queries exceeded maximum {limit}", self.name, rcode=Rcode.REFUSED)
        self._running += 1
        try:
            outcome = await request.wait(self._ask(query, request.transport))
        finally:
            self._running -= 1
        if isinstance(outcome, Answer):
            return outcome
        if outcome.rcode in self._next_codes or (self._options.next_on_nodata and _is_nodata(outcome)):
            return await next(request)
        return _answer(query, outcome)

    async def feed(self) -> None:
        """Ask the upstreams that failed, at intervals, whether they live again."""
        check = self._options.health_check
        while self._options.max_fails and check.seconds:
            await self._ailing.wait()
            await asyncio.sleep(check.seconds)
            ailing = [each for each in self._upstreams if each.fails]
            if ailing:
                await asyncio.gather(*(self._check(each, check) for each in ailing))
            else:
                self._ailing.clear()

    def _takes(self, labels: list[bytes]) -> bool:
        return _is_below(labels, self._from) and not _is_below(labels, self._except)

    async def _ask(self, query: Query, transport: str) -> Message | Answer:
        """The first usable reply of the upstreams, or the failure to say."""
        order = self._order()
        if order is None:
            return failure("no healthy proxies", self.name, (_NO_REACHABLE_AUTHORITY, "all upstreams are down"))
        loop = asyncio.get_running_loop()
        deadline = loop.time() + OVERALL_SECONDS
        over = self._transport(transport)
        problem: UpstreamError | None = None
        refused: Message | None = None
        for attempt in range(self._attempts):
            left = deadline - loop.time()
            if left <= 0:
                break
            standing = order[attempt % len(order)]
            started = time.perf_counter()
            try:
                message = await exchange(
                    query.qname,
                    query.rtype,
                    standing.upstream,
                    min(left, self._options.read_timeout),
                    transport=over,
                    flags=query.flags,
                    do=query.do,
                    rclass=query.rclass,
                )
            except UpstreamError as error:
                problem = error
                self._failed(standing, error)
                continue
            self._succeeded(standing)
            self._metrics.forwarded(str(standing.upstream), message.rcode, time.perf_counter() - started)
            if message.rcode not in self._failures:
                return message
            refused = message
            if attempt + 1 >= len(order):
                break
        if refused is not None:
            return refused
        # RFC 8914: the text says what, not whom, since it goes to strangers.
        if problem is None or problem.silent:
            said = (_NO_REACHABLE_AUTHORITY, "no upstream replied in time")
        else:
            said = (_NETWORK_ERROR, "no upstream could be reached")
        return failure(str(problem or "no time left"), self.name, said)

    def _transport(self, transport: str) -> str:
        if self._options.force_tcp:
            return "tcp"
        return "udp" if self._options.prefer_udp else transport

    def _order(self) -> list[_Standing] | None:
        """The upstreams in the order in which they are asked; the dead only if nobody lives, None if not even then."""
        most = self._options.max_fails
        alive = [each for each in self._upstreams if not most or each.fails <= most]
        if not alive and self._options.failfast_all_unhealthy_upstreams:
            return None
        # With nobody alive the checks may be what is broken: better to try than to fail.
        order = alive or list(self._upstreams)
        if not alive:
            self._metrics.increase(FORWARD_HEALTH_BROKEN)
        if self._options.policy == "random":
            random.shuffle(order)
        elif self._options.policy == "round_robin":
            self._turn += 1
            first = self._turn % len(order)
            order = order[first:] + order[:first]
        return order

    def _failed(self, standing: _Standing, error: UpstreamError) -> None:
        standing.fails += 1
        self._ailing.set()
        if standing.fails == self._options.max_fails + 1 and self._options.max_fails:
            log.warning("upstream %s is avoided after %d failures: %s", standing.upstream, standing.fails, error)

    def _succeeded(self, standing: _Standing) -> None:
        if standing.fails > self._options.max_fails > 0:
            log.info("upstream %s answers again", standing.upstream)
        standing.fails = 0

    async def _check(self, standing: _Standing, check: HealthCheck) -> None:
        try:
            await exchange(
                names.from_text(check.domain),
                Type.NS,
                standing.upstream,
                CHECK_SECONDS,
                transport="tcp" if self._options.force_tcp else "udp",
                flags=RD if check.recursion else 0,
            )
        except UpstreamError as error:
            self._failed(standing, error)
            self._metrics.increase(PROXY_HEALTH_FAILURES, self.name, str(standing.upstream))
            self._metrics.increase(FORWARD_HEALTH_FAILURES, str(standing.upstream))
        else:
            # Any reply will do: it lives.
            self._succeeded(standing)


class _Standing:
    """An upstream and how often it failed since it last answered."""

    __slots__ = ("fails", "upstream")

    def __init__(self, upstream: Upstream) -> None:
        self.upstream = upstream
        self.fails = 0


def _is_below(labels: list[bytes], zones_: list[list[bytes]]) -> bool:
    return any(labels[len(labels) - len(zone_) :] == zone_ for zone_ in zones_ if len(zone_) <= len(labels))


def _is_nodata(message: Message) -> bool:
    return message.rcode == Rcode.NOERROR and not message.answer


def _answer(query: Query, message: Message) -> Answer:
    """The upstream's reply as ours: its bits, the client's spelling."""
    for section in (message.answer, message.authority, message.additional):
        for record in section:
            if record.owner.lower() == query.name:
                record.owner = query.qname
    # RFC 6891 §6.1.3: the upper bits of a code stand in OPT, and without one BADVERS would read as NOERROR.
    rcode = message.rcode if message.rcode < 16 or query.edns else Rcode.SERVFAIL
    return Answer(
        rcode,
        message.answer,
        message.authority,
        message.additional,
        message.flags & (AA | RA | AD | TC),
        plugin="forward",
        error=message.errors[0] if message.errors else None,
    )
