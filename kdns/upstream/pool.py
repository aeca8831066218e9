"""Several upstreams as one: whom to ask first, how often, and who is avoided until it lives again.

Knows nothing of clients and chains; one exchange is `exchange.py`'s. Law: docs/plugins/forward.md.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Coroutine, Iterable, Sequence
from typing import Any

import msgspec

from kdns.logs import plugin_logger
from kdns.metrics import (
    FORWARD_HEALTH_BROKEN,
    FORWARD_HEALTH_FAILURES,
    PROXY_CONNECTION_HITS,
    PROXY_CONNECTION_MISSES,
    PROXY_HEALTH_FAILURES,
    Metrics,
)
from kdns.upstream.exchange import Client
from kdns.upstream.question import Question
from kdns.upstream.sockets import Upstream, UpstreamError, Way
from kdns.wire import names
from kdns.wire.message import Message
from kdns.wire.query import AD, CD, RD, Query
from kdns.wire.records import Type

log = plugin_logger("forward")

# What one client's query may cost the upstreams, whatever the options say (NXNSAttack and its kin live from retries).
MOST_ATTEMPTS = 10
# Resolvers of glibc and musl give up after 5 seconds: what is said then is heard by nobody.
OVERALL_SECONDS = 4.0
# An upstream that is silent for so long is given time, but another is asked meanwhile.
PATIENCE_SECONDS = 0.3
CHECK_SECONDS = 1.0
# How many questions may be under way at once. Each costs 14 kB until it ends (9,000 to a dead upstream, 2026-11-21):
# names of strangers and an upstream that is silent must not cost the cluster its own names for want of memory.
MOST_QUESTIONS = 2000


# The name in lower case, type, class, RD, AD and CD, DO, transport, and EDNS options.
ErrandKey = tuple[bytes, int, int, int, bool, str, bytes]


class HealthCheck(msgspec.Struct, frozen=True):
    """How an upstream that failed is asked whether it lives again: how often, with RD or without, for which name."""

    seconds: float = 0.5
    recursion: bool = True
    domain: str = "."


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """How a pool chooses and asks. `attempts` 0 stands for two per upstream; `max_fails` 0 for never avoiding one.

    `transport` is how all is asked, empty for as the client did. `failures` are response codes with which the next
    upstream is asked.
    """

    policy: str = "random"
    transport: str = ""
    seconds: float = 2.0
    attempts: int = 0
    max_fails: int = 2
    fail_fast: bool = False
    failures: frozenset[int] = frozenset()
    check: HealthCheck = HealthCheck()


class Pool:
    """The upstreams of one `forward` line."""

    def __init__(
        self,
        upstreams: Sequence[Upstream],
        rules: Rules,
        metrics: Metrics,
        way: Way = Way(),  # noqa: B008
    ) -> None:
        self._members = [_Member(upstream, metrics, way) for upstream in upstreams]
        self._rules = rules
        self._metrics = metrics
        self._attempts = min(MOST_ATTEMPTS, rules.attempts or 2 * len(self._members))
        # Whom nobody checks, nobody avoids: it would be for good.
        self._avoids = bool(rules.max_fails and rules.check.seconds)
        self._turn = -1
        self._ailing = asyncio.Event()
        self._errands: dict[ErrandKey, _Errand] = {}
        # Attempts whose question was answered by another upstream: what becomes of them tells whether theirs lives.
        self._late: set[asyncio.Task[Message]] = set()

    async def ask(self, query: Query, transport: str, options: bytes = b"") -> Message:
        """The first usable reply. UpstreamError tells the last failure when there is none in time.

        `options` are EDNS options to send, as bytes.

        Who asks what is being asked already shares the reply: the message is one for all, and not to be changed.
        """
        transport = self._rules.transport or transport
        key = (query.qname, query.rtype, query.rclass, query.flags & (RD | AD | CD), query.do, transport, options)
        errand = self._errands.get(key)
        if errand is None:
            if len(self._errands) >= MOST_QUESTIONS:
                raise UpstreamError(f"more than {MOST_QUESTIONS} questions under way", own=True)
            question = Question(query.qname, query.rtype, query.flags, query.do, query.rclass, options=options)
            errand = self._errands[key] = _Errand(self._run(question, transport))
            errand.task.add_done_callback(lambda _: self._end(key, errand))
        errand.waiting += 1
        try:
            outcome = await asyncio.shield(errand.task)
        finally:
            errand.waiting -= 1
            if not errand.waiting:
                self._end(key, errand)
        if isinstance(outcome, UpstreamError):
            # Another one for each who asks: its way is not theirs.
            raise UpstreamError(str(outcome), outcome.silent, outcome.own)
        return outcome

    async def check(self) -> None:
        """Ask the upstreams that failed, at intervals, whether they live again; never returns."""
        rules = self._rules
        while self._avoids:
            await self._ailing.wait()
            await asyncio.sleep(rules.check.seconds)
            ailing = [member for member in self._members if member.fails]
            if not ailing:
                self._ailing.clear()
            await asyncio.gather(*(self._check_one(member) for member in ailing))

    def close(self) -> None:
        """End whatever still runs, and the connections."""
        for task in [*self._late, *(errand.task for errand in self._errands.values())]:
            task.cancel()
        for member in self._members:
            member.client.close()

    def _end(self, key: ErrandKey, errand: _Errand) -> None:
        """Nobody waits for it any more, or it is done."""
        if self._errands.get(key) is errand:
            del self._errands[key]
        if not errand.task.done():
            errand.task.cancel()
        elif not errand.task.cancelled():
            # Seen, also where nobody is left to see it.
            errand.task.exception()

    async def _run(self, question: Question, transport: str) -> Message | UpstreamError:
        """Ask one upstream after the other, without waiting for each to the end where they are equals."""
        try:
            order, all_avoided = self._order()
        except UpstreamError as error:
            return _bare(error)
        attempts = (order * (self._attempts // len(order) + 1))[: self._attempts]
        # Of those that were dead a moment ago nobody is asked twice.
        first, again = deque(attempts[: len(order)]), deque(() if all_avoided else attempts[len(order) :])
        loop = asyncio.get_running_loop()
        deadline = loop.time() + OVERALL_SECONDS
        running: dict[asyncio.Task[Message], _Member] = {}
        problem = UpstreamError("no upstream was asked", silent=True)
        unwanted: Message | None = None
        try:
            while first or again or running:
                waiting = first or again
                left = deadline - loop.time()
                if waiting and left > 0 and waiting[0] not in running.values():
                    member = waiting.popleft()
                    task = loop.create_task(self._ask_one(member, question, min(left, self._rules.seconds), transport))
                    running[task] = member
                elif not running:
                    break
                # In sequence the order is a wish: the next one may know other names than the one before.
                hurry = bool(first) and self._rules.policy != "sequential"
                done, _ = await asyncio.wait(
                    running, timeout=PATIENCE_SECONDS if hurry else None, return_when=asyncio.FIRST_COMPLETED
                )
                if not done:
                    self._suspect(running.values())
                for task in done:
                    del running[task]
                    try:
                        message = task.result()
                    except UpstreamError as error:
                        problem = _bare(error)
                        if error.own:
                            again.clear()
                        continue
                    if message.rcode not in self._rules.failures:
                        return message
                    unwanted = message
                    # A second round is for those that gave no reply at all.
                    again.clear()
        except asyncio.CancelledError:
            for task in running:
                task.cancel()
            raise
        finally:
            for task in running:
                self._late.add(task)
                task.add_done_callback(self._came_late)
        return problem if unwanted is None else unwanted

    def _came_late(self, task: asyncio.Task[Message]) -> None:
        self._late.discard(task)
        if not task.cancelled():
            task.exception()

    async def _ask_one(self, member: _Member, question: Question, seconds: float, transport: str) -> Message:
        started = time.perf_counter()
        try:
            message = await member.client.ask(question, seconds, transport)
        except UpstreamError as error:
            self._failed(member, error)
            raise
        self._answered(member)
        self._metrics.forwarded(member.label, message.rcode, time.perf_counter() - started)
        return message

    def _order(self) -> tuple[list[_Member], bool]:
        """The upstreams in the order in which they are asked, and whether all of them are to be avoided.

        Those that are to be avoided are left out where others are left.
        """
        rules = self._rules
        order = [member for member in self._members if not self._avoids or member.fails <= rules.max_fails]
        all_avoided = not order
        if all_avoided:
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
        if len(order) > 1:
            order.sort(key=lambda member: member.is_suspect)
        return order, all_avoided

    async def _check_one(self, member: _Member) -> None:
        check = self._rules.check
        question = Question(names.from_text(check.domain), Type.NS, RD if check.recursion else 0)
        transport = "tcp" if self._rules.transport == "tcp" else "udp"
        try:
            # Any reply will do: it lives.
            await member.client.ask(question, CHECK_SECONDS, transport)
        except UpstreamError as error:
            self._failed(member, error)
            if not error.own:
                self._metrics.increase(PROXY_HEALTH_FAILURES, "forward", member.label)
                self._metrics.increase(FORWARD_HEALTH_FAILURES, member.label)
        else:
            self._answered(member)

    def _suspect(self, members: Iterable[_Member]) -> None:
        """Note who is silent: until they answer something, others are asked first."""
        if not self._avoids:
            return
        now = time.perf_counter()
        for member in members:
            if now - member.heard_at > PATIENCE_SECONDS:
                member.is_suspect = True

    def _failed(self, member: _Member, error: UpstreamError) -> None:
        if error.own:
            return
        member.fails += 1
        self._ailing.set()
        if self._avoids and member.fails == self._rules.max_fails + 1:
            log.warning("upstream %s is avoided after %d failures: %s", member.label, member.fails, error)

    def _answered(self, member: _Member) -> None:
        if self._avoids and member.fails > self._rules.max_fails:
            log.info("upstream %s answers again", member.label)
        member.fails = 0
        member.is_suspect = False
        member.heard_at = time.perf_counter()


def _bare(error: UpstreamError) -> UpstreamError:
    """The error without the way that it came.

    The way leads over frames and tasks back to the error: a circle for each question that fails, which only the
    collector ends. With a thousand that hang it took 200 ms to do so (bench/rollout.py, 2026-11-21).
    """
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


class _Member:
    """An upstream, how often it failed since it last answered, and when that was (seconds of perf_counter)."""

    __slots__ = ("client", "fails", "heard_at", "is_suspect", "label")

    def __init__(self, upstream: Upstream, metrics: Metrics, way: Way) -> None:
        self.label = str(upstream)

        def count(kept: bool) -> None:
            metric = PROXY_CONNECTION_HITS if kept else PROXY_CONNECTION_MISSES
            metrics.increase(metric, "forward", self.label, upstream.protocol)

        self.client = Client(upstream, msgspec.structs.replace(way, count=count))
        self.fails = 0
        self.is_suspect = False
        self.heard_at = 0.0


class _Errand:
    """A question on its way, and how many wait for its reply."""

    __slots__ = ("task", "waiting")

    def __init__(self, run: Coroutine[Any, Any, Message | UpstreamError]) -> None:
        self.task = asyncio.get_running_loop().create_task(run)
        self.waiting = 0
