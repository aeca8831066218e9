"""`forward FROM TO...`: names that others know are asked of them.

Which names, and what becomes of a reply, stand here; whom to ask is `upstream/pool.py`'s.
Law: docs/plugins/forward.md; the options are CoreDNS 1.14.7's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

from kdns.chain import Answer, Block, Next, Plugin, Request, failure
from kdns.corefile import Directive, Token, read_regular
from kdns.errors import Problem
from kdns.metrics import FORWARD_REJECTED, Metrics
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
    parse_each,
    repeatable,
    spell_duration,
    without_effect,
    word,
    words,
    zone,
    zones,
)
from kdns.upstream.exchange import Upstream, UpstreamError, is_address
from kdns.upstream.pool import HealthCheck, Pool, Rules
from kdns.wire import names
from kdns.wire.message import Message
from kdns.wire.query import AA, AD, RA, TC, Query
from kdns.wire.records import Rcode

MOST_UPSTREAMS = 15

# RFC 8914 §4.23, §4.24. The text says what, not whom: it goes to strangers.
_NOBODY_REPLIES = (22, "no upstream replied in time")
_NETWORK_FAILS = (23, "no upstream could be reached")
_SCHEMES_TO_COME = ("tls", "https", "grpc", "quic")
_ADDRESS = "an address, `IP[:PORT]` or `[IPv6]:PORT`, or a file in the form of resolv.conf"


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
        host, bracket, after = text[1:].partition("]")
        if not bracket or ":" not in host or (after and after[0] != ":"):
            return None
        port = after[1:] if after else port
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
        int, number(0), "how often to try in all, at most 10; unless given, twice per upstream"
    ] = 0
    health_check: Annotated[HealthCheck, _check, "how often an upstream that failed is asked whether it lives"] = (
        HealthCheck()
    )
    failfast_all_unhealthy_upstreams: Annotated[bool, flag(), "SERVFAIL at once when all are avoided"] = False
    max_concurrent: Annotated[int, number(0), "more queries than that at once are REFUSED; 0 for no limit"] = 0
    next: Annotated[
        tuple[int, ...], _rcodes, repeatable, "with these replies the next line that takes the name is asked"
    ] = ()
    next_on_nodata: Annotated[bool, flag(), "the same with NOERROR and no answer"] = False
    failover: Annotated[tuple[int, ...], _failures, repeatable, "with these replies the next upstream is asked"] = ()
    expire: Annotated[float, duration(0), without_effect(_FRESH), "how long an idle connection is kept"] = 10.0
    max_age: Annotated[float, duration(0), without_effect(_FRESH), "how long any connection is kept"] = 0.0
    max_idle_conns: Annotated[int, number(0), without_effect(_FRESH), "how many idle connections are kept"] = 0
    tls: Annotated[
        tuple[str, ...], words("[CERT KEY] [CA]", at_least=0, at_most=3), without_effect(_PLAIN), "files"
    ] = ()
    tls_servername: Annotated[str, word("NAME"), without_effect(_PLAIN), "the name in the certificate"] = ""


class Forward(Plugin):
    """The `forward` directive: its lines in their order, of which the first that takes a name has it."""

    name: ClassVar[str] = "forward"
    options: ClassVar[type[Options]] = ForwardOptions

    def __init__(self, options: list[ForwardOptions], block: Block) -> None:
        self._lines = [_Line(each, block.process.metrics) for each in options]

    @classmethod
    def read(cls, directives: Sequence[Directive], problems: list[Problem]) -> list[ForwardOptions] | None:
        """Each line is a rule of its own."""
        found = parse_each(ForwardOptions, directives, problems)
        return found if len(found) == len(directives) else None

    async def handle(self, request: Request, next: Next) -> Answer:
        """Ask others for the names of a line; all other names are the next plugin's."""
        labels = request.query.labels
        answer: Answer | None = None
        for line in self._lines:
            if not line.takes(labels):
                continue
            # It depends on somebody whose changes nobody tells us.
            request.keep = False
            answer = await line.answer(request)
            if not line.hands_on(answer):
                break
        return await next(request) if answer is None else answer

    async def feed(self) -> None:
        """Look after the upstreams that failed."""
        await asyncio.gather(*(line.pool.check() for line in self._lines))


class _Line:
    """One `forward` line: the names that it takes, and the upstreams that answer them."""

    def __init__(self, options: ForwardOptions, metrics: Metrics) -> None:
        self._options = options
        self._metrics = metrics
        self._from = [names.labels_of(names.from_text(each)) for each in options.from_]
        self._except = [names.labels_of(names.from_text(each)) for each in options.except_]
        self._onward = frozenset(options.next)
        self._running = 0
        rules = Rules(
            policy=options.policy,
            seconds=options.read_timeout,
            attempts=options.max_connect_attempts,
            max_fails=options.max_fails,
            fail_fast=options.failfast_all_unhealthy_upstreams,
            failures=frozenset(options.failover),
            check=options.health_check,
        )
        self.pool = Pool(options.to, rules, metrics)

    def takes(self, labels: list[bytes]) -> bool:
        """Whether a name is in FROM and in none of the exceptions."""
        return _is_below(labels, self._from) and not _is_below(labels, self._except)

    def hands_on(self, answer: Answer) -> bool:
        """Whether the next line that takes the name, if there is one, is asked after this reply of an upstream."""
        nodata = answer.rcode == Rcode.NOERROR and not answer.answer
        return not answer.cause and (answer.rcode in self._onward or (nodata and self._options.next_on_nodata))

    async def answer(self, request: Request) -> Answer:
        """What the upstreams say, or the failure to say."""
        limit = self._options.max_concurrent
        if limit and self._running >= limit:
            self._metrics.increase(FORWARD_REJECTED)
            return failure(f"concurrent queries exceeded maximum {limit}", "forward", rcode=Rcode.REFUSED)
        self._running += 1
        try:
            message = await request.wait(self.pool.ask(request.query, self._transport(request.transport)))
        except UpstreamError as error:
            return failure(str(error), "forward", _NOBODY_REPLIES if error.silent else _NETWORK_FAILS)
        finally:
            self._running -= 1
        return _answer(request.query, message)

    def _transport(self, transport: str) -> str:
        if self._options.force_tcp:
            return "tcp"
        return "udp" if self._options.prefer_udp else transport


def _is_below(labels: list[bytes], zones_: list[list[bytes]]) -> bool:
    return any(labels[len(labels) - len(zone_) :] == zone_ for zone_ in zones_ if len(zone_) <= len(labels))


def _answer(query: Query, message: Message) -> Answer:
    """The upstream's reply as ours: its bits, the client's spelling."""
    for section in (message.answer, message.authority, message.additional):
        for record in section:
            if record.owner.lower() == query.qname:
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
