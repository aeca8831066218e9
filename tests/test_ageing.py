"""A forwarded reply that is kept as bytes is the one that the chain would make at that moment, or is not given.

A responder with kept replies and one that never finds any share one `cache` and one upstream.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from random import Random
from typing import Any

import dns.message
import dns.rrset
import pytest

from kdns.chain import Answer, Block, Next, Process, Request, fold
from kdns.metrics import CACHE_HITS, CACHE_REQUESTS, Metrics
from kdns.plugins.cache import Cache
from kdns.plugins.loadbalance import Loadbalance
from kdns.plugins.rewrite import Rewrite
from kdns.responder import Responder, Site
from kdns.wire import names
from kdns.wire.query import RA
from kdns.wire.records import Rcode, Record, Type, address, soa
from tests.plugins import trial
from tests.test_kept import CLIENT, LOCAL, packet

WWW = names.from_text("www.example.org")
NAMES = [names.from_text(f"n{number}.example.org") for number in range(8)]


class Here:
    """A block with `cache`, perhaps with others before it, whose upstream has other addresses at each question."""

    def __init__(self, text: str = "cache", *before: Callable[[Request, Next], Coroutine[Any, Any, Answer]]) -> None:
        self.clock = trial.Clock()
        self.process = Process(Metrics(), self.clock)
        self.block = Block(self.process, [names.ROOT], 53)
        cache = trial.plugin(Cache, text, self.block)
        assert cache.handle is not None
        self.chain = fold([*before, cache.handle, self.upstream])
        self.asked = 0
        self.responder = Responder([Site(names.ROOT, self.chain, "dns://:53")], self.process, self.process.metrics)

    async def upstream(self, request: Request, next: Next) -> Answer:
        self.asked += 1
        request.keep = False
        name = request.query.qname
        number = name[2] - ord("0")
        if number == 6:
            return Answer(Rcode.SERVFAIL, flags=RA, plugin="forward")
        if number == 7:
            return Answer(Rcode.NXDOMAIN, (), [soa(WWW, 20, WWW, WWW, self.asked, 20)], flags=RA, plugin="forward")
        records = [address(name, 10 + number, bytes((10, 0, number, self.asked % 256)))]
        if number > 3:
            alias = Record(name, Type.CNAME, 40, WWW)
            records = [alias, *(address(WWW, 12, bytes((10, 1, self.asked % 256, last))) for last in range(3))]
        return Answer(0, records, flags=RA, plugin="forward")

    def ask(self, query: bytes, fresh: bool = False) -> bytes:
        responder = self.responder
        if fresh:
            responder = Responder([Site(names.ROOT, self.chain, "dns://:53")], self.process, Metrics())
        reply = responder.respond(query, "udp", CLIENT, LOCAL, lambda data: None)
        assert isinstance(reply, bytes)
        return reply

    def found(self, query: bytes) -> bool:
        return self.responder.answers("udp", False).find(query) is not None


def content(reply: bytes) -> tuple[object, ...]:
    """All that a reply says, in no order."""
    message = dns.message.from_wire(reply)

    def section(sets: list[dns.rrset.RRset]) -> list[tuple[str, int, int, list[str]]]:
        return sorted((str(each.name), each.rdtype, each.ttl, sorted(map(str, each))) for each in sets)

    return message.flags, section(message.answer), section(message.authority), message.options, message.rcode()


@pytest.mark.parametrize("balance", [False, True])
@pytest.mark.parametrize(
    "options", ["", "keepttl", "servfail 0", "serve_stale", "serve_stale 1h verify", "prefetch 2 1m 30%"]
)
def test_whatever_time_it_is_a_kept_reply_is_the_one_that_would_be_made_now(options: str, balance: bool) -> None:
    block = trial.block()
    shuffle = trial.plugin(Loadbalance, "loadbalance", block).handle
    here = Here(f"cache {{\n {options}\n}}", *([shuffle] if balance and shuffle else []))
    random = Random(7)
    from_bytes = 0
    for _ in range(3000):
        here.clock.now += random.choice((0, 0, 0, 0.1, 0.1, 0.3, 0.7, 1.3))
        query = packet(random.choice(NAMES), 1, edns=random.random() < 0.5)
        asked = here.asked
        hits = sum(kept.uses for kept in here.responder.answers("udp", False).positive)
        reply = here.ask(query)
        kept = hits < sum(kept.uses for kept in here.responder.answers("udp", False).positive)
        from_bytes += kept
        if kept:
            assert here.asked == asked
            assert content(reply) == content(here.ask(query, fresh=True))
    assert from_bytes > (500 if balance else 800)


def test_replies_from_bytes_count_as_hits_and_make_a_name_popular() -> None:
    here = Here("cache {\n prefetch 5 1m 10%\n}")
    query = packet(NAMES[0], 1)
    for _ in range(7):
        here.ask(query)
    assert here.found(query)
    here.process.metrics.render()
    values = here.process.metrics._values
    # The one that looked is one of them.
    assert values[CACHE_REQUESTS]["dns://:53", ".", ""] == 8
    assert values[CACHE_HITS]["dns://:53", "success", ".", ""] == 7
    here.clock.now += 9.5
    assert not here.found(query)
    here.ask(query)
    assert here.asked == 2


def test_who_gives_records_other_ttls_has_them_kept_for_the_present_second_only() -> None:
    async def rewriting(request: Request, next: Next) -> Answer:
        answer = await next(request)
        return Answer(answer.rcode, [Record(r.owner, r.rtype, 77, r.data) for r in answer.answer], plugin="rewrite")

    here = Here("cache", rewriting)
    query = packet(NAMES[0], 1)
    here.ask(query)
    here.clock.now += 0.4
    reply = here.ask(query)
    assert here.found(query)
    assert here.ask(query) == reply
    assert dns.message.from_wire(reply).answer[0].ttl == 77
    here.clock.now += 0.6
    assert not here.found(query)
    here.ask(query)
    assert here.found(query)
    assert here.asked == 1


def test_what_is_made_of_a_forwarded_answer_is_kept_for_the_present_second_only() -> None:
    async def alias(request: Request, next: Next) -> Answer:
        if request.depth or request.query.qname != WWW:
            return await next(request)
        answer = await request.ask(NAMES[0], Type.A)
        return Answer(0, [Record(WWW, Type.CNAME, 5, NAMES[0]), *answer.answer], plugin="kubernetes")

    here = Here("cache", alias)
    query = packet(WWW, 1)
    for pause in (0, 0.5):
        here.clock.now += pause
        here.ask(query)
    assert here.found(query)
    here.clock.now += 0.5
    assert not here.found(query)
    assert [each.ttl for each in dns.message.from_wire(here.ask(query)).answer] == [5, 9]
    assert here.asked == 1


def test_ttls_that_were_rewritten_stay_so_in_what_is_kept() -> None:
    here = Here()
    rewrite = trial.plugin(Rewrite, "rewrite ttl suffix example.org 77", here.block)
    assert rewrite.handle is not None

    def behind(request: Request, next: Next) -> Coroutine[Any, Any, Answer]:
        return here.chain(request)

    chain = fold([rewrite.handle, behind])
    responder = Responder([Site(names.ROOT, chain, "dns://:53")], here.process, here.process.metrics)
    query = packet(NAMES[1], Type.A)
    for _ in range(8):
        reply = responder.respond(query, "udp", CLIENT, LOCAL, lambda data: None)
        assert isinstance(reply, bytes)
        assert dns.message.from_wire(reply).answer[0].ttl == 77
        here.clock.now += 0.4
    assert here.asked == 1
