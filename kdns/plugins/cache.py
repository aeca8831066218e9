"""`cache`: replies of upstreams are kept for as long as they allow, and perhaps a while longer.

Only what `forward` says is kept. The names of the cluster stand before this directive in the chain; their answers are
kept elsewhere, and forgotten the moment they change (`answers.py`). What may be kept and for how long is
`kept_messages.py`'s. Law: docs/plugins/cache.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import math
from collections.abc import Coroutine, Iterable, Sequence
from typing import Annotated, Any

import msgspec

from kdns.answers import Lifetime
from kdns.chain import Answer, Block, Next, Plugin, Request, Waiter, start
from kdns.corefile import Directive, Token
from kdns.errors import Problem, note
from kdns.kept_messages import Key, Kind, Limits, Message, Messages, Rules, key_of
from kdns.logs import plugin_logger
from kdns.metrics import (
    CACHE_BYTES,
    CACHE_DROPS,
    CACHE_ENTRIES,
    CACHE_EVICTIONS,
    CACHE_HITS,
    CACHE_MISSES,
    CACHE_PREFETCHES,
    CACHE_REQUESTS,
    CACHE_STALE,
)
from kdns.options import (
    Fault,
    Options,
    RefusalError,
    argument,
    choice,
    custom,
    duration,
    flag,
    is_number,
    number,
    parse_duration,
    repeatable,
    several,
    spell_duration,
    zone_arguments,
    zones,
)
from kdns.wire import names
from kdns.wire.message import LARGEST_TTL_SECONDS
from kdns.wire.query import AA, AD, RD, TC, Query
from kdns.wire.records import Rcode, Record

log = plugin_logger("cache")

# What answers by itself, in CoreDNS behind this directive, here before it.
_BEHIND_IN_COREDNS = ("hosts", "k8s_external", "kubernetes", "file", "auto", "secondary")

# Whose answers are kept. What kdns knows by itself may be the client's alone (`whoami`), and is said again for nothing.
KEPT_OF = "forward"

# CoreDNS: "caching SERVFAIL responses over 5 minutes is not permitted" (RFC 2308 §7.1); the same holds for RECHECK.
LONGEST_FAILURE_SECONDS = 300.0
# RFC 8767 §5: who still waits after that is about to give up.
VERIFY_SECONDS = 1.8
# CoreDNS has 1,024 too where CAPACITY is less.
FEWEST_MESSAGES = 1024
CAPACITY, SUCCESS_SECONDS, DENIAL_SECONDS, SHORTEST_SECONDS = 9984, 3600, 1800, 5
# Each is for another name, and each may wait for an upstream that is dead.
MOST_REFRESHES = 1000

# RFC 8914 §4.4, §4.14, §4.20.
STALE_ANSWER = (3, "kept from before, because nothing newer is known yet")
STALE_DENIAL = (19, STALE_ANSWER[1])
KEPT_FAILURE = (13, "kept from before")


class Stale(msgspec.Struct, frozen=True):
    """`serve_stale`: for how long an expired reply is still given, and whether the upstream is asked first."""

    seconds: float = 3600.0
    mode: str = "immediate"
    verify_seconds: float = VERIFY_SECONDS
    reply_ttl_seconds: int = 0
    recheck_seconds: float = 0.0


def _read_stale(tokens: Sequence[Token]) -> Stale:
    if not tokens:
        return Stale()
    seconds = _seconds(tokens[0])
    mode = tokens[1].text.lower() if len(tokens) > 1 else "immediate"
    if mode not in ("immediate", "verify"):
        raise RefusalError(tokens[1], "`immediate` or `verify`")
    rest = list(tokens[2:])
    verify = _seconds(rest.pop(0)) if mode == "verify" and rest else VERIFY_SECONDS
    ttl = _seconds(rest.pop(0), LARGEST_TTL_SECONDS, "0s to a week") if rest else 0.0
    if ttl != int(ttl):
        raise RefusalError(tokens[3 if mode == "verify" else 2], "a whole number of seconds")
    recheck = _seconds(rest.pop(0), LONGEST_FAILURE_SECONDS, "0s to 5m") if rest else 0.0
    if rest:
        raise RefusalError(rest[0], "nothing more after `immediate RTTL RECHECK`")
    return Stale(seconds, mode, verify, int(ttl), recheck)


def _seconds(token: Token, most: float = math.inf, expected: str = "0s or more") -> float:
    seconds = parse_duration(token)
    if not 0 <= seconds <= most:
        raise RefusalError(token, expected)
    return seconds


def _read_percent(tokens: Sequence[Token]) -> int:
    text = tokens[0].text
    digits = text.removesuffix("%")
    if digits == text or not (digits.isascii() and digits.isdecimal()) or not 10 <= int(digits[:4]) <= 90:
        raise RefusalError(tokens[0], "10% to 90%")
    return int(digits)


def _read_disable(tokens: Sequence[Token]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    kind = choice("success", "denial").read(tokens[:1])
    return ((kind, zones(none=(".",)).read(tokens[1:])),)


_TTL = number(1, unit="seconds").called("TTL")
# What is left out is that of the directive's own line, which no default knows.
_CAPACITY = dataclasses.replace(
    several(number(0).called("CAPACITY"), _TTL, number(0, unit="seconds").called("MINTTL")), fills=False
)
_PERCENT = custom(_read_percent, "PERCENT", "a share such as `10%`")


class CacheOptions(Options, directive="cache", once=True):
    ttl: Annotated[
        int | None,
        argument(_TTL, is_number),
        "no reply is kept for longer, in seconds; 3600 unless given, 1800 for one without data",
    ] = None
    zones: Annotated[
        tuple[str, ...], zone_arguments(), "zones whose replies are kept; those of the block unless given"
    ] = ()
    success: Annotated[tuple[int, ...], _CAPACITY, "how many replies with data are kept, and for how long"] = ()
    denial: Annotated[tuple[int, ...], _CAPACITY, "how many replies without data are kept, and for how long"] = ()
    prefetch: Annotated[
        tuple[int, float, int],
        several(number(0).called("AMOUNT"), duration(), _PERCENT),
        "a reply asked for so often is fetched anew before it ends",
    ] = (0, 60.0, 10)
    serve_stale: Annotated[
        Stale | None,
        custom(
            _read_stale, "DURATION [immediate|verify ...]", "a duration, then `immediate` or `verify`", least=0, most=5
        ),
        "a reply that has ended is given for so long when the upstream doesn't answer",
    ] = None
    serve_stale_policy: Annotated[str, choice("prefer_positive"), "which stale replies are preferred"] = ""
    servfail: Annotated[float, duration(0.0, LONGEST_FAILURE_SECONDS), "how long a SERVFAIL is kept"] = 5.0
    disable: Annotated[
        tuple[tuple[str, tuple[str, ...]], ...],
        custom(_read_disable, "success|denial [ZONES...]", "`success` or `denial`, then perhaps zones", most=None),
        repeatable,
        "what is not kept",
    ] = ()
    keepttl: Annotated[bool, flag(), "a kept reply has the TTL that it came with"] = False

    def faults(self) -> Iterable[Fault]:
        if self.serve_stale_policy and self.serve_stale is None:
            sentence = "`serve_stale_policy` needs `serve_stale`"
            yield Fault("serve_stale_policy", sentence, besides=("serve_stale",))


def rules_of(options: CacheOptions) -> Rules:
    """How long what is kept, with all that was left out."""
    return Rules(
        success=_limits(options.success, options.ttl or SUCCESS_SECONDS),
        denial=_limits(options.denial, options.ttl or DENIAL_SECONDS),
        failure_seconds=options.servfail,
        stale_seconds=options.serve_stale.seconds if options.serve_stale else 0.0,
        prefer_positive=bool(options.serve_stale_policy),
    )


def _limits(given: tuple[int, ...], longest_seconds: int) -> Limits:
    capacity, longest, shortest = given + (CAPACITY, longest_seconds, SHORTEST_SECONDS)[len(given) :]
    return Limits(max(capacity, FEWEST_MESSAGES), longest, shortest)


class Cache(Plugin):
    name = "cache"
    options = CacheOptions

    def __init__(self, options: CacheOptions, block: Block) -> None:
        self._clock = block.process.clock
        self._metrics = block.process.metrics
        self._messages = Messages(rules_of(options))
        self._stale = options.serve_stale or Stale(0.0)
        self._prefer_positive = bool(options.serve_stale_policy)
        self._prefetch = options.prefetch
        self._keep_ttl = options.keepttl
        self._zones = names.Zones([names.from_text(zone) for zone in options.zones] or block.zones)
        self._disabled = {
            kind: names.Zones(
                names.from_text(zone) for each, zones_ in options.disable if each == kind for zone in zones_
            )
            for kind in ("success", "denial")
        }
        self._bypassed = [plugin.name for plugin in block.plugins if self._would_keep(plugin)]
        self._refreshes: dict[Key, _Refresh] = {}
        self._server = block.server
        texts = options.zones or tuple(names.to_text(zone) for zone in block.zones)
        # Metrics end with the view, which is CoreDNS's and empty here.
        self._scope = (",".join(texts), "")
        for metric in (CACHE_REQUESTS, CACHE_MISSES, CACHE_PREFETCHES, CACHE_STALE, CACHE_DROPS):
            self._metrics.increase(metric, self._server, *self._scope, by=0)
        for kind in (Kind.SUCCESS, Kind.DENIAL):
            # A gauge may have a value already, that of the configuration before, which serves until this one is taken.
            for metric in (CACHE_HITS, CACHE_EVICTIONS, CACHE_ENTRIES, CACHE_BYTES):
                self._metrics.increase(metric, self._server, kind.value, *self._scope, by=0)

    @classmethod
    def read(cls, directives: Sequence[Directive], problems: list[Problem]) -> CacheOptions | None:
        """The options; a zone that looks like a TTL is one, as in CoreDNS, and is told."""
        options: CacheOptions | None = super().read(directives, problems)
        for line in (line for directive in directives for line in directive.body or ()):
            if line.name.text == "serve_stale" and [word.text.lower() for word in line.args[1:]] == ["verify"]:
                wait = spell_duration(VERIFY_SECONDS)
                problems.append(
                    note(f"`verify` waits {wait} for the upstream, unless told how long", line.args[1].place())
                )
        for token in (token for directive in directives for token in directive.args):
            if not is_number(token):
                with contextlib.suppress(RefusalError):
                    parse_duration(token)
                    message = f"`{token.text}` is taken for a zone"
                    hint = "the TTL of `cache` is a number of seconds, without a unit"
                    problems.append(Problem(message, token.place(), hint=hint, warning=True))
        return options

    def notices(self) -> tuple[str, ...]:
        """Whose answers CoreDNS would keep, with other TTLs than those that are configured."""
        if not self._bypassed:
            return ()
        whose = " and ".join(f"`{name}`" for name in self._bypassed)
        return (f"no effect on answers of {whose}, which have the TTL that those say",)

    def _would_keep(self, plugin: Plugin) -> bool:
        """Whether CoreDNS would keep this one's answers."""
        if plugin.name not in _BEHIND_IN_COREDNS:
            return False
        view = getattr(plugin, "view", None)
        if view is None:
            return True
        zone = view.primary.lower()
        labels = names.labels_of(zone)
        return self._zones.hold(zone, labels) and not all(each.hold(zone, labels) for each in self._disabled.values())

    def close(self) -> None:
        for refresh in self._refreshes.values():
            refresh.cancel()

    # A query

    def handle(self, request: Request, next: Next) -> Coroutine[Any, Any, Answer]:
        """Pass on what is in none of the zones, without a coroutine more."""
        query = request.query
        return self._answer(request, next) if self._zones.hold(query.qname, query.labels) else next(request)

    async def _answer(self, request: Request, next: Next) -> Answer:
        query = request.query
        now = self._clock()
        key = key_of(query, request.upstream_options)
        self._count(CACHE_REQUESTS)
        # RFC 8767 §4: who doesn't want recursion wants no stale data either.
        message = self._messages.find(key, now, stale=bool(query.flags & RD))
        if message is None:
            self._count(CACHE_MISSES)
            return await self._fetch(request, next, key)
        self._count(CACHE_HITS, message.kind)
        if now >= message.until:
            request.keep = False
            return await self._answer_stale(request, next, key, message)
        if self._ends_soon(message, now):
            self._refresh(request, next, key, message, now)
        answer = self._reply(query, message, message.ttl_seconds if self._keep_ttl else message.left_seconds(now))
        self._age(request, message, answer, now)
        return answer

    def _age(self, request: Request, message: Message, answer: Answer, now: float) -> None:
        """Let the reply be kept as bytes, until it ends or somebody has to decide whether to fetch it anew."""
        amount, _, percent = self._prefetch
        until = message.until - (math.ceil(percent * message.ttl_seconds / 100) if amount else 0)
        if now >= until:
            request.keep = False
            return
        request.until = min(request.until, until, message.stored + int(now - message.stored) + 1)
        ttl_seconds = None if self._keep_ttl or message.kind is Kind.FAILURE else message.ttl_seconds
        used = functools.partial(self._used, message)
        answer.lifetime = Lifetime(message.stored, until, ttl_seconds, used)

    def _used(self, message: Message, times: int) -> None:
        """Count what was sent without asking here. Pauses between these are taken for short ones."""
        self._count(CACHE_REQUESTS, by=times)
        self._count(CACHE_HITS, message.kind, times)
        if self._prefetch[0]:
            message.hits += times
            message.last_hit = self._clock()

    async def _fetch(self, request: Request, next: Next, key: Key) -> Answer:
        """What the rest of the chain says, and keep it."""
        query = request.query
        flags = query.flags
        # RFC 6840 §5.7: with AD an upstream tells whether the data is authentic. Who comes next may want to know.
        query.flags |= AD
        try:
            answer = await next(request)
        finally:
            query.flags = flags
        message = self._keep(query, key, answer)
        if message is None:
            return answer
        request.keep = False
        if self._is_kept(message, query):
            return self._reply(query, message, message.ttl_seconds, answer)
        answer.flags = _flags_for(query, answer.flags)
        return answer

    async def _answer_stale(self, request: Request, next: Next, key: Key, message: Message) -> Answer:
        """Answer with a message whose time is over, or in mode `verify` with a newer one, if there is one soon."""
        query = request.query
        refresh = self._refresh(request, next, key, message, self._clock())
        if self._stale.mode == "verify" and refresh is not None:
            if not refresh.over.is_set():
                await request.wait(refresh.wait(self._stale.verify_seconds))
            newer = refresh.message
            if newer is not None and (newer.kind is Kind.SUCCESS or not self._prefer_positive):
                return self._reply(query, newer, newer.ttl_seconds if self._is_kept(newer, query) else None)
        self._count(CACHE_STALE)
        answer = self._reply(query, message, self._stale.reply_ttl_seconds)
        answer.flags &= ~AA
        answer.error = STALE_DENIAL if message.rcode == Rcode.NXDOMAIN else STALE_ANSWER
        return answer

    def _reply(self, query: Query, message: Message, ttl_seconds: int | None, first: Answer | None = None) -> Answer:
        """The message as an answer, its records copied, since those who come after may change them.

        `first` is the answer that it was made of, whose author and cause then stay.
        """
        answer = Answer(
            message.rcode,
            _copies(message.answer, ttl_seconds),
            _copies(message.authority, ttl_seconds),
            _copies(message.additional, ttl_seconds),
            _flags_for(query, message.flags),
            self.name,
            message.error,
        )
        if first is not None:
            answer.plugin, answer.cause = first.plugin, first.cause
        elif message.kind is Kind.FAILURE and message.error is None:
            answer.error = KEPT_FAILURE
        return answer

    # What is kept

    def _keep(self, query: Query, key: Key, answer: Answer) -> Message | None:
        """The answer as a message, kept if it may be; None where it is no message of an upstream, or half of one."""
        if answer.plugin != KEPT_OF or answer.flags & TC:
            return None
        message = self._messages.message(
            query,
            answer.rcode,
            answer.flags,
            answer.answer,
            answer.authority,
            answer.additional,
            answer.error,
            self._clock(),
        )
        if message is None:
            return None
        if self._is_kept(message, query):
            evicted = self._messages.keep(key, message)
            if evicted:
                self._count(CACHE_EVICTIONS, message.kind, evicted)
        elif message.kind is not Kind.FAILURE:
            self._messages.outdate(key)
        for kind in (Kind.SUCCESS, Kind.DENIAL):
            self._measure(kind)
        return message

    def _is_kept(self, message: Message, query: Query) -> bool:
        if message.until <= message.stored:
            return False
        return not self._disabled[_type_label(message.kind)].hold(query.qname, query.labels)

    # Asking in the background

    def _ends_soon(self, message: Message, now: float) -> bool:
        """Count a use; whether the message is popular enough to be fetched anew, and near enough to its end."""
        amount, gap_seconds, percent = self._prefetch
        if not amount:
            return False
        message.hits = 1 if now - message.last_hit > gap_seconds else message.hits + 1
        message.last_hit = now
        return message.hits >= amount and message.left_seconds(now) <= math.ceil(percent * message.ttl_seconds / 100)

    def _refresh(self, request: Request, next: Next, key: Key, message: Message, now: float) -> _Refresh | None:
        """Ask again in the background, unless that is under way; None where it may not be asked at the moment."""
        refresh = self._refreshes.get(key)
        if refresh is not None:
            return refresh
        if now < message.retry_at or self._messages.is_settled(key, now) or len(self._refreshes) >= MOST_REFRESHES:
            return None
        if self._stale.mode != "verify" or now < message.until:
            self._count(CACHE_PREFETCHES)
        again = _again(request, now)
        refresh = self._refreshes[key] = _Refresh()

        def done(outcome: Answer | BaseException) -> None:
            del self._refreshes[key]
            refresh.end(self._refreshed(again.query, key, message, outcome))

        try:
            outcome = start(next(again), done)
        except Exception as error:
            done(error)
        else:
            if isinstance(outcome, Waiter):
                refresh.waiter = outcome
            else:
                done(outcome)
        return refresh

    def _refreshed(self, query: Query, key: Key, before: Message, outcome: Answer | BaseException) -> Message | None:
        """Keep what was said; None where the message from before is still the best that is known."""
        message = None
        if isinstance(outcome, Answer):
            message = self._keep(query, key, outcome)
        elif not isinstance(outcome, asyncio.CancelledError):
            log.error("no newer answer to %s: %r", names.to_text(query.qname), outcome, exc_info=outcome)
        if message is None or message.kind is Kind.FAILURE:
            before.retry_at = self._clock() + self._stale.recheck_seconds
            return None
        message.hits, message.last_hit = before.hits, before.last_hit
        return message

    # Metrics

    def _count(self, metric: Any, kind: Kind | None = None, by: int = 1) -> None:
        labels = (self._server, *self._scope) if kind is None else (self._server, _type_label(kind), *self._scope)
        self._metrics.increase(metric, *labels, by=by)

    def _measure(self, kind: Kind) -> None:
        store = self._messages.store_of(kind)
        labels = (self._server, kind.value, *self._scope)
        self._metrics.set(CACHE_ENTRIES, len(store), *labels)
        self._metrics.set(CACHE_BYTES, store.size_bytes, *labels)


class _Refresh:
    """A question that is asked in the background: when that is over, and the newer message that came of it, if any."""

    def __init__(self) -> None:
        self.waiter: Waiter | None = None
        self.message: Message | None = None
        self.over = asyncio.Event()

    async def wait(self, seconds: float) -> None:
        """Wait until it is over, at most so long; 0 is as long as it takes."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds or None):
                await self.over.wait()

    def end(self, message: Message | None) -> None:
        self.message = message
        self.over.set()

    def cancel(self) -> None:
        if self.waiter is not None:
            self.waiter.cancel()


def _again(request: Request, now: float) -> Request:
    """The same question as one of ours: whoever asked has an answer by the time it is over, or is gone."""
    asked = request.query
    query = Query(asked.id, asked.flags | AD, asked.qname, asked.labels, asked.rtype, asked.rclass)
    query.do = asked.do
    again = Request(query, request.server, request.transport, now=now)
    again.zone = request.zone
    again.upstream_options = request.upstream_options
    return again


def _flags_for(query: Query, flags: int) -> int:
    # RFC 6840 §5.8: AD is for those who show that they know it.
    return flags if query.do or query.flags & AD else flags & ~AD


def _copies(records: Iterable[Record], ttl_seconds: int | None) -> list[Record]:
    if ttl_seconds is None:
        return [Record(record.owner, record.rtype, record.ttl, record.data) for record in records]
    return [Record(record.owner, record.rtype, ttl_seconds, record.data) for record in records]


def _type_label(kind: Kind) -> str:
    """The `type` label, which is also the word for `disable`: a failure counts as a denial, as in CoreDNS."""
    return "success" if kind is Kind.SUCCESS else "denial"
