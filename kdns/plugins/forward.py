"""`forward FROM TO...`: names that others know are asked of them.

Which names, and what becomes of a reply, stand here; whom to ask is `upstream/pool.py`'s.
Law: docs/plugins/forward.md; the options are CoreDNS 1.14.7's.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from typing import Annotated, Any, ClassVar

import msgspec

from kdns.addresses import is_address
from kdns.chain import Answer, Block, Next, Plugin, Request, failure
from kdns.corefile import Directive, Token, read_regular
from kdns.errors import ConfigError, Problem, note
from kdns.metrics import FORWARD_REJECTED, Metrics
from kdns.options import (
    Fault,
    Options,
    RefusalError,
    WordError,
    argument,
    choice,
    custom,
    differs,
    duration,
    flag,
    number,
    parse_duration,
    parse_each,
    repeatable,
    spell_duration,
    word,
    zone,
    zones,
)
from kdns.upstream.destinations import ADDRESS, read_resolvers, read_upstreams, resolved
from kdns.upstream.pool import MOST_ATTEMPTS, OVERALL_SECONDS, HealthCheck, Pool, Rules
from kdns.upstream.sockets import Keeping, Upstream, UpstreamError, Way
from kdns.wire import names
from kdns.wire.message import Message
from kdns.wire.query import AA, AD, RA, TC, Query
from kdns.wire.records import Rcode, Record

# RFC 8914 §4.23, §4.24. The text says what, not whom: it goes to strangers.
_NOBODY_REPLIES = (22, "no upstream replied in time")
_NETWORK_FAILS = (23, "no upstream could be reached")
# §4.1: none of the codes says that it is the server itself that can't.
_SHORT = (0, "the server is short of sockets")


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


class Certificates(msgspec.Struct, frozen=True):
    """The files of `tls`: our certificate and key where we show one, and whom to trust where not the system's."""

    certificate: str = ""
    key: str = ""
    authority: str = ""

    def context(self) -> ssl.SSLContext:
        """What TLS needs of them. Raises OSError."""
        context = ssl.create_default_context(cafile=self.authority or None)
        if self.certificate:
            # The files have no password; without one given OpenSSL would ask the terminal.
            context.load_cert_chain(self.certificate, self.key, "")
        return context


def _read_certificates(tokens: Sequence[Token]) -> Certificates:
    files = [token.text for token in tokens]
    found = Certificates(authority=files[0]) if len(files) == 1 else Certificates(*files)
    for token in tokens:
        try:
            read_regular(token.text)
        except OSError as error:
            reason = error.strerror or str(error)
            raise WordError(token, ValueError(f"`{token.text}` can't be read: {reason.lower()}")) from error
    if found.authority:
        _check_certificates(tokens[-1], Certificates(authority=found.authority), "holds no certificate")
    if found.certificate:
        complaint = f"and `{found.key}` are no certificate and its key"
        _check_certificates(tokens[0], Certificates(found.certificate, found.key), complaint)
    return found


def _check_certificates(token: Token, certificates: Certificates, complaint: str) -> None:
    try:
        certificates.context()
    except OSError as error:
        raise WordError(token, ValueError(f"`{token.text}` {complaint}")) from error


def _read_source(tokens: Sequence[Token]) -> str:
    if not is_address(tokens[0].text):
        raise RefusalError(tokens[0], "an IP address")
    return tokens[0].text


_rcodes = custom(_read_rcodes, "RCODE...", "response codes", most=None, show=_show_rcodes)
_failures = custom(_read_failures, "RCODE...", "response codes", most=None, show=_show_rcodes)
_check = custom(
    _read_health_check, "DURATION [no_rec] [domain NAME]", "a duration, then its options", most=None, show=_show_check
)


class ForwardOptions(Options, directive="forward"):
    """What `forward` takes."""

    from_: Annotated[
        tuple[str, ...],
        argument(zone("FROM")),
        "names in this zone are forwarded",
        differs("this is several reverse zones, and all of them are forwarded", lambda zones: len(zones) > 1),
    ]
    to: Annotated[
        tuple[Upstream, ...],
        argument(custom(read_upstreams, "TO...", ADDRESS, most=None)),
        "whom to ask: addresses, names, or files in the form of resolv.conf, at most 15",
    ]
    except_: Annotated[tuple[str, ...], zones(at_least=1), repeatable, "names in these zones are not forwarded"] = ()
    force_tcp: Annotated[bool, flag(), "ask over TCP whatever the client used"] = False
    prefer_udp: Annotated[bool, flag(), "ask over UDP whatever the client used"] = False
    policy: Annotated[
        str, choice("random", "round_robin", "sequential"), "whom to ask first, the others follow when it fails"
    ] = "random"
    read_timeout: Annotated[
        float,
        duration(0.001),
        "how long to wait for one upstream; 4s is the most for all",
        differs(
            f"an answer has {spell_duration(OVERALL_SECONDS)} in all, and then is SERVFAIL",
            lambda seconds: seconds > OVERALL_SECONDS,
        ),
    ] = 2.0
    max_fails: Annotated[
        int, number(0), "an upstream that failed more often than that, one time after another, is avoided; 0 for never"
    ] = 2
    max_connect_attempts: Annotated[
        int,
        number(0),
        "how often to try in all, at most 10; unless given, twice per upstream",
        differs(
            f"upstreams are tried {MOST_ATTEMPTS} times at most; 0 is twice for each",
            lambda attempts: not 0 < attempts <= MOST_ATTEMPTS,
        ),
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
    expire: Annotated[float, duration(0), "how long a connection without a question is kept"] = 10.0
    max_age: Annotated[float, duration(0), "how long any connection is kept; 0s for no limit"] = 0.0
    max_idle_conns: Annotated[
        int, number(0), "how many connections without a question are kept for each upstream; 0 for all"
    ] = 0
    tls: Annotated[
        Certificates | None,
        custom(_read_certificates, "[CERT KEY] [CA]", "at most three files", least=0, most=3),
        "files in PEM for upstreams over TLS: a certificate to show and its key, and whom to trust",
    ] = None
    tls_servername: Annotated[
        str, word("NAME"), "the name in the certificate of upstreams over TLS; their address unless given"
    ] = ""
    doh_method: Annotated[str, choice("GET", "POST"), "how upstreams over HTTPS are asked"] = "POST"
    resolver: Annotated[
        tuple[Upstream, ...],
        custom(read_resolvers, "IP[:PORT]...", "addresses", most=None),
        "who knows the addresses of upstreams with a name; the system unless given",
    ] = ()
    source_address: Annotated[
        str, custom(_read_source, "IP", "an IP address"), "the address of this machine to ask from"
    ] = ""

    def faults(self) -> Iterable[Fault]:
        if self.max_age and self.max_age < self.expire:
            shortest = spell_duration(self.expire)
            yield Fault(
                "max_age", f"`max_age` must not be less than `expire`, which is {shortest}", besides=("expire",)
            )
        named = next((each for each in self.to if each.server_name not in ("", each.host.removesuffix("."))), None)
        if self.tls_servername and named is not None:
            yield Fault("tls_servername", f"the upstream {named} has a name of its own, `{named.server_name}`")
        if self.source_address:
            numeric = [each for each in self.to if is_address(each.host)]
            other = next((each for each in numeric if (":" in each.host) != (":" in self.source_address)), None)
            if other is not None:
                sentence = (
                    f"the upstream {other} can't be asked from `{self.source_address}`, which is of another family"
                )
                yield Fault("source_address", sentence, self.source_address)


class Written(msgspec.Struct, frozen=True):
    """A line as it was written: what it says, and its words, for mistakes that are seen only when the server starts."""

    options: ForwardOptions
    words: tuple[Token, ...]


class Forward(Plugin):
    """The `forward` directive: its lines in their order, of which the first that takes a name has it."""

    name: ClassVar[str] = "forward"
    options: ClassVar[type[Options]] = ForwardOptions

    def __init__(self, options: list[Written], block: Block) -> None:
        self._lines = [_Line(each, block.process.metrics) for each in options]

    @classmethod
    def read(cls, directives: Sequence[Directive], problems: list[Problem]) -> list[Written] | None:
        """Each line is a rule of its own."""
        found = parse_each(ForwardOptions, directives, problems)
        if len(found) != len(directives):
            return None
        for directive, options in zip(directives, found, strict=True):
            problems += _doubts(directive, options)
        return [
            Written(options, (directive.name, *directive.args))
            for directive, options in zip(directives, found, strict=True)
        ]

    def handle(self, request: Request, next: Next) -> Coroutine[Any, Any, Answer]:
        """Ask others for the names of a line; all other names are the next plugin's."""
        query = request.query
        for line in self._lines:
            if line.takes(query):
                return self._forward(request, line)
        return next(request)

    async def _forward(self, request: Request, first: _Line) -> Answer:
        """The answer of the first line that takes the name, or of one after it that it hands on to."""
        # It depends on somebody whose changes nobody tells us.
        request.keep = False
        answer = await first.answer(request)
        line = first
        for following in self._lines[self._lines.index(first) + 1 :]:
            if not line.hands_on(answer):
                break
            if following.takes(request.query):
                line = following
                answer = await line.answer(request)
        return answer

    def upstreams(self, query: Query) -> list[str]:
        """Whom it asks such a question; nobody where it is the next plugin's."""
        line = next((line for line in self._lines if line.takes(query)), None)
        return [] if line is None else [str(each) for each in line.upstreams]

    async def started(self) -> None:
        """Find the addresses of upstreams with a name. Raises ConfigError where one has none."""
        await asyncio.gather(*(line.resolve() for line in self._lines))

    async def feed(self) -> None:
        """Look after the upstreams that failed."""
        await asyncio.gather(*(line.check() for line in self._lines))

    def close(self) -> None:
        """End the connections that are kept."""
        for line in self._lines:
            line.close()


def _doubts(directive: Directive, options: ForwardOptions) -> Iterator[Problem]:
    """Options that change nothing, of which CoreDNS is silent, and upstreams whose certificate must be another here."""
    idle: dict[str, str] = {}
    if not any(each.tls for each in options.to):
        idle |= dict.fromkeys(("tls", "tls_servername"), "it is for upstreams with `tls://` or `https://` before them")
    if all(is_address(each.host) for each in options.to):
        idle["resolver"] = "no upstream has a name"
    if not any(each.path for each in options.to):
        idle["doh_method"] = "it is for upstreams with `https://` before them"
    if all(each.path for each in options.to):
        hint = "a connection of HTTPS is kept as long as `expire` says"
        idle |= dict.fromkeys(("max_age", "max_idle_conns"), hint)
        idle |= dict.fromkeys(("force_tcp", "prefer_udp"), "all upstreams are asked over HTTPS")
    for line in directive.body or ():
        if line.name.text in idle:
            message = f"`{line.name.text}` has no effect"
            yield Problem(message, line.name.place(), hint=idle[line.name.text], warning=True)
    for token in directive.args[1:]:
        # With `tls_servername` or a name of its own it is for that one, here and there.
        if "://" not in token.text or "%" in token.text or options.tls_servername:
            continue
        if any(each.tls and not is_address(each.host) for each in read_upstreams([token])):
            yield note("TO of `forward`: the certificate has to be for the name, not for its address", token.place())


class _Line:
    """One `forward` line: the names that it takes, and the upstreams that answer them."""

    def __init__(self, written: Written, metrics: Metrics) -> None:
        self._options = options = written.options
        self._words = written.words
        self._metrics = metrics
        self._tops = frozenset(names.from_text(each).lower() for each in options.from_)
        self._from = names.Zones(self._tops)
        self._except = names.Zones(map(names.from_text, options.except_))
        self._onward = frozenset(options.next)
        self._running = 0
        # There is none until the addresses of all upstreams are known.
        self._pool: Pool | None = None
        self._is_resolved = asyncio.Event()
        if all(is_address(each.host) for each in options.to):
            self._begin(options.to)

    async def resolve(self) -> None:
        """Find the addresses of upstreams with a name. Raises ConfigError where one has none."""
        if self._pool is None:
            source = self._options.source_address
            found = await resolved(self._options.to, self._options.resolver, self._words)
            reachable = [each for each in found if not source or (":" in each.host) == (":" in source)]
            if not reachable:
                message = f"`forward`: no upstream has an address that can be asked from `{source}`"
                raise ConfigError([Problem(message, self._words[0].place())])
            self._begin(reachable)

    async def check(self) -> None:
        """Look after the upstreams that failed; never returns."""
        await self._is_resolved.wait()
        assert self._pool is not None
        await self._pool.check()

    def close(self) -> None:
        """End the connections that are kept."""
        if self._pool is not None:
            self._pool.close()

    def _begin(self, upstreams: Sequence[Upstream]) -> None:
        options = self._options
        rules = Rules(
            policy=options.policy,
            transport="tcp" if options.force_tcp else "udp" if options.prefer_udp else "",
            seconds=options.read_timeout,
            attempts=options.max_connect_attempts,
            max_fails=options.max_fails,
            fail_fast=options.failfast_all_unhealthy_upstreams,
            failures=frozenset(options.failover),
            check=options.health_check,
        )
        name = options.tls_servername
        if name:
            upstreams = [msgspec.structs.replace(each, server_name=name) if each.tls else each for each in upstreams]
        context = (options.tls or Certificates()).context() if any(each.tls for each in upstreams) else None
        if context is not None and all(each.path for each in upstreams):
            # A server of HTTP/2 as well is to know that it isn't spoken here; without a word it takes HTTP/1.1 to be.
            context.set_alpn_protocols(["http/1.1"])
        keeping = Keeping(idle_seconds=options.expire, age_seconds=options.max_age, most_idle=options.max_idle_conns)
        way = Way(source=options.source_address, keeping=keeping, context=context, method=options.doh_method)
        self._pool = Pool(upstreams, rules, self._metrics, way)
        self._is_resolved.set()

    @property
    def upstreams(self) -> tuple[Upstream, ...]:
        """Whom it asks, as the line names them."""
        return self._options.to

    def takes(self, query: Query) -> bool:
        """Whether a name is in FROM and in none of the exceptions; FROM itself is never an exception, as in CoreDNS."""
        qname, labels = query.qname, query.labels
        if not self._from.hold(qname, labels):
            return False
        return not self._except or qname in self._tops or not self._except.hold(qname, labels)

    def hands_on(self, answer: Answer) -> bool:
        """Whether the next line that takes the name, if there is one, is asked after this reply of an upstream."""
        nodata = answer.rcode == Rcode.NOERROR and not answer.answer
        return not answer.cause and (answer.rcode in self._onward or (nodata and self._options.next_on_nodata))

    async def answer(self, request: Request) -> Answer:
        """What the upstreams say, or the failure to say."""
        if self._pool is None:
            return failure("the addresses of upstreams aren't known yet", "forward", _NETWORK_FAILS)
        limit = self._options.max_concurrent
        if limit and self._running >= limit:
            self._metrics.increase(FORWARD_REJECTED)
            return failure(f"concurrent queries exceeded maximum {limit}", "forward", rcode=Rcode.REFUSED)
        self._running += 1
        try:
            message = await request.wait(self._pool.ask(request.query, request.transport, request.upstream_options))
        except UpstreamError as error:
            told = _SHORT if error.own else _NOBODY_REPLIES if error.silent else _NETWORK_FAILS
            return failure(str(error), "forward", told)
        finally:
            self._running -= 1
        return _answer(request.query, message)


def _answer(query: Query, message: Message) -> Answer:
    """The upstream's reply as ours: its bits, the client's spelling."""
    # RFC 6891 §6.1.3: the upper bits of a code stand in OPT, and without one BADVERS would read as NOERROR.
    rcode = message.rcode if message.rcode < 16 or query.edns else Rcode.SERVFAIL
    return Answer(
        rcode,
        _spelled(message.answer, query.qname),
        _spelled(message.authority, query.qname),
        _spelled(message.additional, query.qname),
        message.flags & (AA | RA | AD | TC),
        plugin="forward",
        error=message.errors[0] if message.errors else None,
    )


def _spelled(records: list[Record], qname: bytes) -> list[Record]:
    """The records, in a list of their own, with the question's name spelled so that a reply can point at it."""
    return [
        record
        if record.owner == qname or record.owner.lower() != qname
        else Record(qname, record.rtype, record.ttl, record.data)
        for record in records
    ]
