"""Several upstreams as one: whom to ask first, how often, and who is avoided until it lives again.

Knows nothing of clients and chains; one exchange is `exchange.py`'s. Law: docs/plugins/forward.md.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence

import msgspec

from kdns.logs import plugin_logger
from kdns.metrics import FORWARD_HEALTH_BROKEN, FORWARD_HEALTH_FAILURES, PROXY_HEALTH_FAILURES, Metrics
from kdns.upstream.exchange import Upstream, UpstreamError, exchange
from kdns.wire import names
from kdns.wire.message import Message
from kdns.wire.query import RD, Query
from kdns.wire.records import Type

log = plugin_logger("forward")

# What one client's query may cost the upstreams, whatever the options say (NXNSAttack and its kin live from retries).
MOST_ATTEMPTS = 10
OVERALL_SECONDS = 5.0
CHECK_SECONDS = 1.0


class HealthCheck(msgspec.Struct, frozen=True):
    """How an upstream that failed is asked whether it lives again: how often, with RD or without, for which name."""

    seconds: float = 0.5
    recursion: bool = True
    domain: str = "."


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """How a pool chooses. `attempts` 0 stands for two per upstream; `max_fails` 0 for never avoiding one.

    `failures` are response codes with which the next upstream is asked.
    """

    policy: str = "random"
    seconds: float = 2.0
    attempts: int = 0
    max_fails: int = 2
    fail_fast: bool = False
    failures: frozenset[int] = frozenset()
    check: HealthCheck = HealthCheck()


class Pool:
    """The upstreams of one `forward` line."""

    def __init__(self, upstreams: Sequence[Upstream], rules: Rules, metrics: Metrics) -> None:
        self._members = [_Member(upstream) for upstream in upstreams]
        self._rules = rules
        self._metrics = metrics
        self._attempts = min(MOST_ATTEMPTS, rules.attempts or 2 * len(self._members))
        self._turn = -1
        self._ailing = asyncio.Event()

    async def ask(self, query: Query, transport: str) -> Message:
        """The first usable reply. UpstreamError tells the last failure when there is none in time."""
        order = self._order()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + OVERALL_SECONDS
        problem = UpstreamError("no upstream was asked", silent=True)
        unwanted: Message | None = None
        for attempt in range(self._attempts):
            left = deadline - loop.time()
            # A second round is for those that gave no reply at all.
            if left <= 0 or (unwanted is not None and attempt >= len(order)):
                break
            try:
                message = await self._ask_one(
                    order[attempt % len(order)], query, min(left, self._rules.seconds), transport
                )
            except UpstreamError as error:
                problem = error
                continue
            if message.rcode not in self._rules.failures:
                return message
            unwanted = message
        if unwanted is None:
            raise problem
        return unwanted

    async def check(self) -> None:
        """Ask the upstreams that failed, at intervals, whether they live again; never returns."""
        rules = self._rules
        while rules.max_fails and rules.check.seconds:
            await self._ailing.wait()
            await asyncio.sleep(rules.check.seconds)
            ailing = [member for member in self._members if member.fails]
            if not ailing:
                self._ailing.clear()
            await asyncio.gather(*(self._check_one(member) for member in ailing))

    async def _ask_one(self, member: _Member, query: Query, seconds: float, transport: str) -> Message:
        started = time.perf_counter()
        try:
            message = await exchange(
                query.qname,
                query.rtype,
                member.upstream,
                seconds,
                transport=transport,
                flags=query.flags,
                do=query.do,
                rclass=query.rclass,
            )
        except UpstreamError as error:
            self._failed(member, error)
            raise
        self._answered(member)
        self._metrics.forwarded(str(member.upstream), message.rcode, time.perf_counter() - started)
        return message

    def _order(self) -> list[_Member]:
        """The upstreams in the order in which they are asked, without those that are avoided if others are left."""
        rules = self._rules
        order = [member for member in self._members if not rules.max_fails or member.fails <= rules.max_fails]
        if not order:
            self._metrics.increase(FORWARD_HEALTH_BROKEN)
            if rules.fail_fast:
                raise UpstreamError("no healthy proxies", silent=True)
            # The checks may be what is broken: better to try than to fail.
            order = list(self._members)
        if rules.policy == "random":
            random.shuffle(order)
        elif rules.policy == "round_robin":
            self._turn += 1
            first = self._turn % len(order)
            order = order[first:] + order[:first]
        return order

    async def _check_one(self, member: _Member) -> None:
        check = self._rules.check
        flags = RD if check.recursion else 0
        try:
            # Any reply will do: it lives.
            await exchange(names.from_text(check.domain), Type.NS, member.upstream, CHECK_SECONDS, flags=flags)
        except UpstreamError as error:
            self._failed(member, error)
            self._metrics.increase(PROXY_HEALTH_FAILURES, "forward", str(member.upstream))
            self._metrics.increase(FORWARD_HEALTH_FAILURES, str(member.upstream))
        else:
            self._answered(member)

    def _failed(self, member: _Member, error: UpstreamError) -> None:
        member.fails += 1
        self._ailing.set()
        if self._rules.max_fails and member.fails == self._rules.max_fails + 1:
            log.warning("upstream %s is avoided after %d failures: %s", member.upstream, member.fails, error)

    def _answered(self, member: _Member) -> None:
        if self._rules.max_fails and member.fails > self._rules.max_fails:
            log.info("upstream %s answers again", member.upstream)
        member.fails = 0


class _Member:
    """An upstream and how often it failed since it last answered."""

    __slots__ = ("fails", "upstream")

    def __init__(self, upstream: Upstream) -> None:
        self.upstream = upstream
        self.fails = 0
