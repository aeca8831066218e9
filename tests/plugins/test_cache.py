"""cache: what upstreams say is kept for as long as they allow, and never what kdns knows by itself.

A script stands for the rest of the chain: each question that arrives takes its next line. The clock is moved by hand.
"""

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from kdns import app, corefile
from kdns.chain import Answer, Block, Process, Request, Waiter, fold, start
from kdns.kept_messages import BYTES_PER_MESSAGE, Kind, Message, Messages, Rules, Store, key_of
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
    Metric,
    Metrics,
)
from kdns.plugins.cache import VERIFY_SECONDS, Cache, Limits, Stale, rules_of
from kdns.plugins.forward import Forward
from kdns.plugins.whoami import Whoami
from kdns.wire import names
from kdns.wire.query import AA, AD, CD, RA, RD, TC, Query
from kdns.wire.records import Rcode, Record, Type, address, rcode_to_text, soa, to_text
from kdns.wire.reply import encode
from tests.plugins import trial
from tests.upstream.fake import says as says_on_the_wire
from tests.upstream.fake import silence, upstream

WWW = names.from_text("www.example.org")
ZONE = names.from_text("example.org")


def a(ttl: int, last: int = 1) -> Record:
    return address(WWW, ttl, bytes((10, 0, 0, last)))


def soa_of(ttl: int, minimum: int) -> Record:
    return soa(ZONE, ttl, b"\x02ns" + ZONE, b"\x04root" + ZONE, 7, minimum)


def says(*answer: Record, rcode: int = 0, authority: tuple[Record, ...] = (), **more: Any) -> Answer:
    """What `forward` makes of an upstream's reply."""
    flags = more.pop("flags", RA)
    return Answer(rcode, list(answer), list(authority), [], flags, **({"plugin": "forward"} | more))


def denies(ttl: int, minimum: int, rcode: int = Rcode.NXDOMAIN) -> Answer:
    return says(rcode=rcode, authority=(soa_of(ttl, minimum),))


def fails(**more: Any) -> Answer:
    return says(rcode=Rcode.SERVFAIL, flags=0, **more)


class Trial:
    """A block with `cache` alone, and a script for what stands behind it, the last line of which is for all after."""

    def __init__(self, text: str, *script: Answer | BaseException) -> None:
        self.clock = trial.Clock()
        self.block = Block(Process(Metrics(), self.clock), [names.ROOT], 53)
        self.cache = trial.plugin(Cache, text, self.block)
        self.script = list(script)
        self.asked: list[Request] = []
        # Set, an upstream answers only when this is.
        self.slow: asyncio.Event | None = None

    async def behind(self, request: Request) -> Answer:
        self.asked.append(request)
        request.keep = False
        said = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if self.slow is not None:
            await request.wait(self.slow.wait())
        if isinstance(said, BaseException):
            raise said
        # Each time another one, as `forward` makes it.
        sections = (
            [Record(*map(record.__getattribute__, record.__struct_fields__)) for record in section]
            for section in (said.answer, said.authority, said.additional)
        )
        return Answer(said.rcode, *sections, said.flags, said.plugin, said.error, said.cause)

    def request(self, question: str = "www.example.org. A", flags: int = RD, do: bool = False) -> Request:
        request = trial.request(question)
        request.query.flags = flags
        request.query.do = do
        request.now = self.clock.now
        return request

    def start(self, request: Request, done: Callable[[Any], None]) -> Answer | Waiter:
        return start(self.cache.handle(request, self.behind), done)

    def ask(self, question: str = "www.example.org. A", **more: Any) -> Answer:
        request = self.request(question, **more)
        said = self.start(request, lambda outcome: None)
        assert isinstance(said, Answer), "the plugin waits"
        # What is kept as bytes has an end.
        assert not request.keep or (said.lifetime is not None and request.until < self.clock.now + 1.001)
        return said

    async def ask_slowly(self) -> Answer:
        done: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        said = self.start(self.request(), done.set_result)
        return said if isinstance(said, Answer) else await done

    def metric(self, metric: Metric, kind: str = "") -> float:
        return self.block.process.metrics._values[metric]["dns://:53", *([kind] if kind else []), ".", ""]


def shown(answer: Answer) -> list[str]:
    """The whole answer, one thing a line."""
    bits = [name for bit, name in ((AA, "aa"), (TC, "tc"), (RA, "ra"), (AD, "ad")) if answer.flags & bit]
    error = [f"EDE {answer.error[0]}"] if answer.error else []
    records = [to_text(record) for part in (answer.answer, answer.authority, answer.additional) for record in part]
    return [" ".join([rcode_to_text(answer.rcode), *bits, *error, *([answer.plugin])]), *records]


# For how long, with what TTLs


@pytest.mark.parametrize(
    ("text", "said", "first_ttl", "kept_seconds"),
    [
        pytest.param("cache", says(a(300)), 300, 300, id="a reply is kept for its TTL"),
        pytest.param("cache", says(a(300), a(60, 2)), 60, 60, id="the lowest TTL is that of all records"),
        pytest.param(
            "cache", says(a(300), authority=(Record(ZONE, Type.NS, 20, b"\x02ns" + ZONE),)), 20, 20,
            id="the lowest TTL of all sections",
        ),
        pytest.param("cache", says(a(86400)), 3600, 3600, id="an hour at most"),
        pytest.param("cache 30", says(a(300)), 30, 30, id="the TTL of the directive is the most"),
        pytest.param("cache 30 {\n success 5000\n}", says(a(300)), 30, 30, id="a CAPACITY alone leaves it so"),
        pytest.param("cache 30 {\n success 5000 60\n}", says(a(300)), 60, 60, id="the TTL of `success` goes first"),
        pytest.param("cache 30 {\n denial 5000 60\n}", says(a(300)), 30, 30, id="that of `denial` is for denials"),
        pytest.param("cache", says(a(1)), 5, 5, id="MINTTL raises a TTL"),
        pytest.param("cache", says(a(0)), 5, 5, id="MINTTL raises 0 too"),
        pytest.param("cache {\n success 9984 3600 0\n}", says(a(0)), 0, 0, id="without MINTTL 0 is not kept"),
        pytest.param("cache {\n success 9984 3600 60\n}", says(a(7)), 60, 60, id="MINTTL is what one makes it"),
        pytest.param("cache 2", says(a(300)), 2, 2, id="TTL goes before MINTTL"),
        pytest.param("cache 99999999", says(a(2**31 - 1)), 604800, 604800, id="a week at most"),
        pytest.param("cache", denies(300, 60), 60, 60, id="a denial is kept for the SOA's last field"),
        pytest.param("cache", denies(60, 300), 60, 60, id="or for its TTL, if that is less"),
        pytest.param("cache", denies(86400, 86400), 1800, 1800, id="half an hour at most"),
        pytest.param("cache", denies(86400, 86400, Rcode.NOERROR), 1800, 1800, id="no data is a denial"),
        pytest.param("cache 30 {\n denial 9984 5\n}", denies(300, 300), 5, 5, id="the TTL of `denial`"),
        pytest.param(
            "cache", says(Record(WWW, Type.CNAME, 40, ZONE), rcode=Rcode.NXDOMAIN, authority=(soa_of(60, 60),)), 40, 40,
            id="an alias that leads nowhere is a denial",
        ),
        pytest.param("cache", says(rcode=Rcode.NXDOMAIN), None, 0, id="without an SOA a denial is not kept"),
        pytest.param("cache", says(), None, 0, id="nor is no data"),
        pytest.param("cache", says(Record(WWW, Type.CNAME, 300, ZONE)), 300, 0, id="nor an alias without its end"),
        pytest.param(
            "cache", says(authority=(Record(ZONE, Type.NS, 20, b"\x02ns" + ZONE),)), 20, 0, id="nor a referral"
        ),
        pytest.param("cache", says(a(300), flags=RA | TC), 300, 0, id="half a reply is not kept"),
        pytest.param("cache", says(rcode=Rcode.REFUSED), None, 0, id="REFUSED is not kept"),
        pytest.param("cache", says(rcode=Rcode.FORMERR), None, 0, id="FORMERR is not kept"),
        pytest.param("cache", fails(), None, 5, id="SERVFAIL is kept for 5 seconds"),
        pytest.param("cache", says(rcode=Rcode.NOTIMP), None, 5, id="and so is NOTIMP"),
        pytest.param("cache {\n servfail 30s\n}", fails(), None, 30, id="or as `servfail` says"),
        pytest.param("cache {\n servfail 0\n}", fails(), None, 0, id="or not at all"),
        pytest.param("cache {\n disable success\n}", says(a(300)), 300, 0, id="`disable` leaves a reply as it is"),
        pytest.param("cache 30 {\n disable success\n}", denies(300, 300), 30, 30, id="and concerns one kind"),
        pytest.param("cache {\n disable denial example.org\n}", denies(300, 300), 300, 0, id="in these zones"),
        pytest.param("cache {\n disable denial example.net\n}", denies(300, 300), 300, 300, id="in no others"),
        pytest.param("cache {\n disable denial\n}", fails(), None, 0, id="a failure is a denial there"),
        pytest.param("cache example.org", says(a(300)), 300, 300, id="names of the zones are kept"),
        pytest.param("cache 30 example.net www.org", says(a(300)), 300, 0, id="no others"),
        pytest.param("cache", says(a(300), plugin="kubernetes"), 300, 0, id="what kdns says itself is not kept"),
    ],
)  # fmt: skip
def test_a_message_is_kept_for_a_time_that_it_and_the_options_give(
    text: str, said: Answer, first_ttl: int | None, kept_seconds: int
) -> None:
    here = Trial(text, said)
    first = here.ask()
    ttls = {record.ttl for part in (first.answer, first.authority) for record in part}
    assert ttls == ({first_ttl} if first_ttl is not None else set())
    here.clock.now += max(0, kept_seconds - 0.001)
    again = here.ask()
    assert len(here.asked) == (1 if kept_seconds else 2)
    if kept_seconds and ttls:
        assert {record.ttl for part in (again.answer, again.authority) for record in part} == {1}
    here.clock.now += 0.001
    here.ask()
    assert len(here.asked) == (2 if kept_seconds else 3)


def test_ttls_go_down_at_each_whole_second() -> None:
    here = Trial("cache", says(a(30)))
    seen = []
    for _ in range(5):
        seen.append(here.ask().answer[0].ttl)
        here.clock.now += 0.5
    assert seen == [30, 30, 29, 29, 28]


def test_with_keepttl_they_stay_until_the_reply_ends() -> None:
    here = Trial("cache {\n keepttl\n}", says(a(30)))
    here.ask()
    here.clock.now += 29
    assert here.ask().answer[0].ttl == 30
    here.clock.now += 1
    here.ask()
    assert len(here.asked) == 2


def test_a_clock_that_was_set_back_makes_nothing_live_longer() -> None:
    here = Trial("cache", says(a(30)))
    here.ask()
    here.clock.now -= 3600
    here.ask()
    assert len(here.asked) == 2


# What is answered


@pytest.mark.parametrize(
    ("said", "first", "kept"),
    [
        pytest.param(
            says(a(30), flags=AA | RA),
            ["NOERROR aa ra forward", "www.example.org. 30 IN A 10.0.0.1"],
            ["NOERROR aa ra cache", "www.example.org. 20 IN A 10.0.0.1"],
            id="data",
        ),
        pytest.param(
            denies(30, 30),
            ["NXDOMAIN ra forward", "example.org. 30 IN SOA ns.example.org. root.example.org. 7 7200 1800 86400 30"],
            ["NXDOMAIN ra cache", "example.org. 20 IN SOA ns.example.org. root.example.org. 7 7200 1800 86400 30"],
            id="a denial",
        ),
        pytest.param(
            says(a(30), error=(6, "bogus")),
            ["NOERROR ra EDE 6 forward", "www.example.org. 30 IN A 10.0.0.1"],
            ["NOERROR ra EDE 6 cache", "www.example.org. 20 IN A 10.0.0.1"],
            id="an extended error",
        ),
    ],
)
def test_a_kept_message_is_the_whole_message(said: Answer, first: list[str], kept: list[str]) -> None:
    here = Trial("cache", said)
    assert shown(here.ask()) == first
    here.clock.now += 10
    assert shown(here.ask()) == kept
    assert len(here.asked) == 1


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        (fails(), "SERVFAIL EDE 13 cache"),
        (fails(error=(22, "no upstream replied in time"), cause="i/o timeout"), "SERVFAIL EDE 22 cache"),
    ],
)
def test_a_failure_is_told_once_and_answered_as_one_that_was_kept(said: Answer, kept: str) -> None:
    here = Trial("cache", said)
    assert here.ask().cause == said.cause
    again = here.ask()
    # `errors` logged it when it happened.
    assert (shown(again), again.cause) == ([kept], "")
    assert len(here.asked) == 1


def test_an_answer_may_be_changed_by_those_who_come_after() -> None:
    here = Trial("cache", says(a(30), a(30, 2)))
    for _ in range(3):
        answer = here.ask()
        assert [record.data[3] for record in answer.answer] == [1, 2]
        assert isinstance(answer.answer, list)
        answer.answer.reverse()
        answer.answer[0].ttl, answer.answer[0].owner = 1, b"\x01x\0"


@pytest.mark.parametrize(
    ("question", "more"),
    [
        ("www.example.org. AAAA", {}),
        ("example.org. A", {}),
        ("www.example.org. A", {"do": True}),
        ("www.example.org. A", {"flags": RD | CD}),
        ("www.example.org. A", {"flags": 0}),
    ],
)
def test_another_name_type_do_cd_or_rd_is_another_question(question: str, more: dict[str, Any]) -> None:
    here = Trial("cache", says(a(30)))
    here.ask()
    here.ask(question, **more)
    assert len(here.asked) == 2


def test_the_spelling_makes_no_other_question() -> None:
    here = Trial("cache", says(a(30)))
    here.ask()
    request = here.request("wWw.eXample.org. A")
    said = here.start(request, print)
    assert isinstance(said, Answer)
    assert encode(request.query, 0, 0, said.answer, (), (), 512)[12:].startswith(b"\x03wWw\x07eXample\x03org\0")
    assert len(here.asked) == 1


def test_upstreams_are_asked_with_ad_and_clients_get_it_who_know_it() -> None:
    here = Trial("cache", says(a(30), flags=RA | AD))
    flags: list[int] = []
    request = here.request()
    behind = here.behind

    async def seen(request: Request) -> Answer:
        flags.append(request.query.flags)
        return await behind(request)

    said = start(here.cache.handle(request, seen), print)
    assert isinstance(said, Answer)
    assert (flags, request.query.flags, said.flags) == ([RD | AD], RD, RA)
    assert here.ask().flags == RA
    assert here.ask(flags=RD | AD).flags == RA | AD
    assert len(here.asked) == 1
    assert here.ask(do=True).flags == RA | AD


def test_who_a_client_is_is_never_told_to_another() -> None:
    block = Block(Process(Metrics(), trial.Clock()), [names.ROOT], 53)
    plugins = [trial.plugin(Cache, "cache", block), trial.plugin(Whoami, "whoami", block)]
    chain = fold([plugin.handle for plugin in plugins if plugin.handle is not None])
    for client in ("192.0.2.1", "192.0.2.2"):
        said = start(chain(trial.request("www.example.org. A", client=(client, 5353))), print)
        assert isinstance(said, Answer)
        assert to_text(said.additional[0]).endswith(client)


def test_what_nobody_claims_is_left_as_it_is() -> None:
    here = Trial("cache", Answer(Rcode.REFUSED, flags=0))
    assert here.ask().unclaimed


def test_a_newer_message_takes_the_place_of_the_one_before() -> None:
    here = Trial("cache", says(a(30)), denies(60, 60), says(a(90, 2)))
    assert here.ask().rcode == 0
    here.clock.now += 30
    assert here.ask().rcode == Rcode.NXDOMAIN
    assert here.metric(CACHE_ENTRIES, "success") == 0
    here.clock.now += 60
    assert shown(here.ask())[1:] == ["www.example.org. 90 IN A 10.0.0.2"]
    assert (here.metric(CACHE_ENTRIES, "success"), here.metric(CACHE_ENTRIES, "denial")) == (1, 0)


# prefetch


def test_what_is_popular_is_fetched_anew_before_it_ends() -> None:
    here = Trial("cache {\n prefetch 2 1m 10%\n}", says(a(100)), says(a(100, 2)), says(a(100, 3)))
    here.ask()
    for later, last, asked in ((0, 1, 1), (89, 1, 1), (0.5, 1, 1), (0.5, 1, 2), (0, 2, 2), (89, 2, 2), (5, 2, 3)):
        here.clock.now += later
        assert (here.ask().answer[0].data[3], len(here.asked)) == (last, asked)
    # The client's own request is over by then, or waits for nothing.
    assert here.asked[1].query.flags == RD | AD
    assert here.metric(CACHE_PREFETCHES) == 2
    assert (here.metric(CACHE_REQUESTS), here.metric(CACHE_MISSES), here.metric(CACHE_HITS, "success")) == (8, 1, 7)


@pytest.mark.parametrize(
    ("options", "pauses", "asked"),
    [
        ("prefetch 3", (95, 0), 1),
        ("prefetch 3", (95, 0, 0), 2),
        ("prefetch 3 1m 10%", (10, 10, 70, 2), 1),
        ("prefetch 3 1m 10%", (10, 10, 70, 2, 1), 2),
        ("prefetch 1 1m 50%", (49,), 1),
        ("prefetch 1 1m 50%", (50,), 2),
        ("prefetch 0", (95, 1, 1, 1), 1),
        ("keepttl", (95, 1, 1, 1), 1),
    ],
)
def test_popular_is_what_is_asked_for_often_without_long_pauses(
    options: str, pauses: tuple[int, ...], asked: int
) -> None:
    here = Trial(f"cache {{\n {options}\n}}", says(a(100)))
    here.ask()
    for pause in pauses:
        here.clock.now += pause
        here.ask()
    assert len(here.asked) == asked


def test_a_prefetch_that_fails_costs_nobody_an_answer_and_isnt_repeated_at_once() -> None:
    here = Trial("cache {\n prefetch 1 1m 10%\n}", says(a(100)), fails(cause="i/o timeout"))
    here.ask()
    here.clock.now += 95
    for _ in range(5):
        assert shown(here.ask()) == ["NOERROR ra cache", "www.example.org. 5 IN A 10.0.0.1"]
    assert len(here.asked) == 2
    here.clock.now += 5
    assert here.ask().rcode == Rcode.SERVFAIL
    assert len(here.asked) == 3


def test_an_error_of_ours_in_the_background_is_logged_with_the_name() -> None:
    here = Trial("cache {\n prefetch 1\n}", says(a(100)), ValueError("oh"))
    here.ask()
    here.clock.now += 95
    with trial.log_lines() as lines:
        assert here.ask().rcode == 0
    assert lines[0].startswith("[ERROR] plugin/cache: no newer answer to www.example.org.: ValueError('oh')")


# serve_stale


def test_immediate_answers_at_once_and_asks_behind_the_clients_back() -> None:
    here = Trial("cache {\n serve_stale\n}", says(a(30)), says(a(30, 2)))
    here.ask()
    here.clock.now += 40
    assert shown(here.ask()) == ["NOERROR ra EDE 3 cache", "www.example.org. 0 IN A 10.0.0.1"]
    assert shown(here.ask()) == ["NOERROR ra cache", "www.example.org. 30 IN A 10.0.0.2"]
    assert (len(here.asked), here.metric(CACHE_STALE), here.metric(CACHE_PREFETCHES)) == (2, 1, 1)


@pytest.mark.parametrize("mode", ["immediate", "verify"])
def test_while_the_upstream_fails_the_old_answer_is_given_for_so_long_and_then_the_failure(mode: str) -> None:
    here = Trial(f"cache {{\n serve_stale 1h {mode}\n}}", says(a(30), flags=AA), fails())
    here.ask()
    here.clock.now += 30
    for _ in range(10):
        assert shown(here.ask()) == ["NOERROR EDE 3 cache", "www.example.org. 0 IN A 10.0.0.1"]
    # The failure is kept for 5 seconds, and it is asked no more often than that.
    assert len(here.asked) == 2
    here.clock.now += 5
    here.ask()
    assert len(here.asked) == 3
    here.clock.now += 3600
    assert here.ask().rcode == Rcode.SERVFAIL


def test_a_stale_denial_is_told_from_a_stale_answer() -> None:
    here = Trial("cache {\n serve_stale 1h immediate 30s\n}", denies(30, 30), fails())
    here.ask()
    here.clock.now += 30
    assert shown(here.ask()) == [
        "NXDOMAIN ra EDE 19 cache",
        "example.org. 30 IN SOA ns.example.org. root.example.org. 7 7200 1800 86400 30",
    ]


def test_a_failure_is_never_stale_and_who_wants_no_recursion_gets_nothing_stale() -> None:
    here = Trial("cache {\n serve_stale\n}", fails())
    here.ask()
    here.clock.now += 5
    here.ask()
    assert len(here.asked) == 2
    here = Trial("cache {\n serve_stale\n}", says(a(30)), says(a(30, 2)))
    here.ask(flags=0)
    here.clock.now += 30
    assert here.ask(flags=0).answer[0].data[3] == 2


def test_recheck_is_a_pause_after_a_failure_that_is_not_kept() -> None:
    here = Trial("cache {\n servfail 0\n serve_stale 1h immediate 30s 20s\n}", says(a(30)), fails())
    here.ask()
    here.clock.now += 30
    for pause, asked in ((0, 2), (19, 2), (1, 3), (0, 3)):
        here.clock.now += pause
        assert shown(here.ask()) == ["NOERROR ra EDE 3 cache", "www.example.org. 30 IN A 10.0.0.1"]
        assert len(here.asked) == asked


def test_verify_gives_what_is_new_and_what_is_old_only_where_there_is_none() -> None:
    here = Trial("cache {\n serve_stale 1h verify\n}", says(a(30)), says(a(30, 2)), denies(60, 60), fails())
    here.ask()
    here.clock.now += 30
    assert shown(here.ask()) == ["NOERROR ra cache", "www.example.org. 30 IN A 10.0.0.2"]
    here.clock.now += 30
    assert here.ask().rcode == Rcode.NXDOMAIN
    here.clock.now += 60
    assert shown(here.ask())[0] == "NXDOMAIN ra EDE 19 cache"
    assert (here.metric(CACHE_STALE), here.metric(CACHE_PREFETCHES)) == (1, 0)


def test_verify_believes_an_upstream_that_has_nothing_to_keep() -> None:
    here = Trial("cache {\n serve_stale 1h verify\n}", says(a(30)), says(), fails())
    here.ask()
    here.clock.now += 30
    assert shown(here.ask()) == ["NOERROR ra cache"]
    # Nor is the old answer given again.
    assert here.ask().rcode == Rcode.SERVFAIL


def test_immediate_gives_nothing_that_the_upstream_took_back() -> None:
    here = Trial("cache {\n disable denial\n serve_stale\n}", says(a(30)), denies(30, 30))
    here.ask()
    here.clock.now += 30
    assert here.ask().rcode == 0
    assert here.ask().rcode == Rcode.NXDOMAIN


def test_verify_waits_for_so_long_and_the_question_goes_on() -> None:
    async def story() -> None:
        here = Trial("cache {\n serve_stale 1h verify 1ms\n}", says(a(30)), says(a(30, 2)))
        here.ask()
        here.clock.now += 30
        here.slow = asyncio.Event()
        first, second = await asyncio.gather(here.ask_slowly(), here.ask_slowly())
        assert shown(first) == shown(second) == ["NOERROR ra EDE 3 cache", "www.example.org. 0 IN A 10.0.0.1"]
        assert len(here.asked) == 2
        here.slow.set()
        for _ in range(5):
            await asyncio.sleep(0)
        assert shown(here.ask()) == ["NOERROR ra cache", "www.example.org. 30 IN A 10.0.0.2"]

    asyncio.run(story())


def test_verify_with_0_waits_for_the_upstream_and_all_who_wait_get_its_answer() -> None:
    async def story() -> None:
        here = Trial("cache {\n serve_stale 1h verify 0\n}", says(a(30)), says(a(30, 2)))
        here.ask()
        here.clock.now += 30
        here.slow = asyncio.Event()
        asking = [asyncio.create_task(here.ask_slowly()) for _ in range(3)]
        for _ in range(5):
            await asyncio.sleep(0)
        here.slow.set()
        for each in await asyncio.gather(*asking):
            assert shown(each) == ["NOERROR ra cache", "www.example.org. 30 IN A 10.0.0.2"]
        assert len(here.asked) == 2

    asyncio.run(story())


def test_immediate_doesnt_wait_and_what_is_under_way_ends_with_the_process() -> None:
    async def story() -> None:
        here = Trial("cache {\n serve_stale\n}", says(a(30)))
        here.ask()
        here.clock.now += 30
        here.slow = asyncio.Event()
        assert shown(here.ask())[0] == shown(here.ask())[0] == "NOERROR ra EDE 3 cache"
        assert len(here.asked) == 2
        here.cache.close()
        await asyncio.sleep(0)
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(story())


def test_a_client_that_goes_away_doesnt_end_what_others_wait_for() -> None:
    async def story() -> None:
        here = Trial("cache {\n serve_stale 1h verify 0\n}", says(a(30)), says(a(30, 2)))
        here.ask()
        here.clock.now += 30
        here.slow = asyncio.Event()
        gone = here.start(here.request(), print)
        waiting = asyncio.create_task(here.ask_slowly())
        await asyncio.sleep(0)
        assert isinstance(gone, Waiter)
        gone.cancel()
        here.slow.set()
        assert (await waiting).answer[0].data[3] == 2
        assert len(here.asked) == 2

    asyncio.run(story())


@pytest.mark.parametrize("mode", ["immediate", "verify"])
def test_prefer_positive_gives_a_success_whatever_came_later(mode: str) -> None:
    text = f"cache {{\n serve_stale 1h {mode}\n serve_stale_policy prefer_positive\n}}"
    here = Trial(text, says(a(30)), denies(30, 30), denies(30, 30), says(a(30, 2)))
    here.ask()
    here.clock.now += 30
    for asked in (2, 2):
        assert shown(here.ask()) == ["NOERROR ra EDE 3 cache", "www.example.org. 0 IN A 10.0.0.1"]
        assert len(here.asked) == asked
    here.clock.now += 3600
    assert here.ask().rcode == Rcode.NXDOMAIN


# Bounds and metrics


def message_of(kilobytes: int = 0) -> Message:
    records = [Record(WWW, Type.TXT, 30, bytes(1024)) for _ in range(kilobytes)] or [a(30)]
    return Message(Kind.SUCCESS, 0, 0, records, (), (), None, 30, trial.NOON, trial.NOON + 30)


def key_number(number: int) -> tuple[bytes, int, int, bool, int]:
    return names.from_text(f"n{number}.example.org"), 1, 1, False, 0


def test_names_that_are_asked_for_once_push_out_none_that_are_asked_for_again() -> None:
    store = Store(1024)
    for number in range(700):
        store.put(key_number(number), message_of())
        store.find(key_number(number))
    evicted = sum(store.put(key_number(number), message_of()) for number in range(1000, 50_000))
    assert (len(store), evicted) == (1024, 700 + 49_000 - 1024)
    assert all(store.find(key_number(number)) is not None for number in range(700))


def test_even_if_all_were_asked_for_again_there_is_room_for_new_ones() -> None:
    store = Store(1024)
    for number in range(5000):
        store.put(key_number(number), message_of())
        store.find(key_number(number))
    assert len(store) == 1024
    for number in range(6000, 6100):
        store.put(key_number(number), message_of())
    assert all(store.find(key_number(number)) is not None for number in range(6000, 6100))


def test_large_messages_count_for_many() -> None:
    store = Store(1024)
    for number in range(1000):
        store.put(key_number(number), message_of(kilobytes=50))
        assert store.size_bytes <= 1024 * BYTES_PER_MESSAGE
    assert len(store) < 21
    for number in range(1000):
        store.remove(key_number(number))
    assert (len(store), store.size_bytes) == (0, 0)


def test_what_was_kept_before_under_the_same_key_costs_nothing_more() -> None:
    store = Store(1024)
    for _ in range(3):
        store.put(key_number(1), message_of())
        store.find(key_number(1))
    size = store.size_bytes
    store.put(key_number(1), message_of())
    assert (len(store), store.size_bytes) == (1, size)


def test_its_metrics_are_there_from_the_start_and_count() -> None:
    here = Trial("cache {\n success 1 60\n}", says(a(30)))
    counters = (CACHE_REQUESTS, CACHE_MISSES, CACHE_PREFETCHES, CACHE_STALE, CACHE_DROPS)
    assert [here.metric(each) for each in counters] == [0, 0, 0, 0, 0]
    for kind in ("success", "denial"):
        assert [here.metric(each, kind) for each in (CACHE_HITS, CACHE_EVICTIONS, CACHE_ENTRIES, CACHE_BYTES)] == [
            0
        ] * 4
    for number in range(1100):
        here.ask(f"n{number}.example.org. A")
    here.ask("n1099.example.org. A")
    assert (here.metric(CACHE_REQUESTS), here.metric(CACHE_MISSES)) == (1101, 1100)
    # 1,024 is the least that CAPACITY is taken for.
    assert (here.metric(CACHE_HITS, "success"), here.metric(CACHE_EVICTIONS, "success")) == (1, 76)
    assert here.metric(CACHE_ENTRIES, "success") == 1024
    assert 500_000 < here.metric(CACHE_BYTES, "success") < 1_048_576


def test_the_key_and_the_rules_are_all_that_a_message_is_found_by() -> None:
    messages = Messages(Rules(success=Limits(9, 60, 5), denial=Limits(9, 60, 5), failure_seconds=5))
    query = Query(1, RD | AD, WWW, names.labels_of(WWW), Type.A, 1)
    message = messages.message(query, 0, 0, [a(30)], [], [], None, trial.NOON)
    assert message is not None
    messages.keep(key_of(query), message)
    assert messages.find((WWW, Type.A, 1, False, RD, b""), trial.NOON + 29, stale=True) is message
    assert messages.find((WWW, Type.A, 1, False, RD, b""), trial.NOON + 30, stale=True) is None


# Options


def options(text: str) -> Any:
    found: list[Any] = []
    read = Cache.read(corefile.parse(f". {{\n{text}\n}}", "Corefile").blocks[0].directives, found)
    assert read is not None, found
    return read


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ("cache", "ttl", None),
        ("cache 30", "ttl", 30),
        ("cache 30 cluster.local", "zones", ("cluster.local.",)),
        ("cache cluster.local", "ttl", None),
        ("cache 30s", "zones", ("30s.",)),
        ("cache {\n prefetch 10\n}", "prefetch", (10, 60.0, 10)),
        ("cache {\n prefetch 10 1h 20%\n}", "prefetch", (10, 3600.0, 20)),
        ("cache {\n serve_stale\n}", "serve_stale", Stale(3600.0)),
        ("cache {\n serve_stale 0\n}", "serve_stale", Stale(0.0)),
        ("cache {\n serve_stale 1h IMMEDIATE 30s\n}", "serve_stale", Stale(3600.0, "immediate", 1.8, 30)),
        ("cache {\n serve_stale 1h verify\n}", "serve_stale", Stale(3600.0, "verify", VERIFY_SECONDS)),
        ("cache {\n serve_stale 1h verify 0 30s\n}", "serve_stale", Stale(3600.0, "verify", 0.0, 30)),
        ("cache {\n serve_stale 1h verify 1s 2s 3s\n}", "serve_stale", Stale(3600.0, "verify", 1.0, 2, 3.0)),
        ("cache {\n serve_stale\n serve_stale_policy prefer_positive\n}", "serve_stale_policy", "prefer_positive"),
        ("cache {\n servfail 0\n}", "servfail", 0.0),
        (
            "cache 30 {\n disable success cluster.local\n disable denial\n}",
            "disable",
            (("success", ("cluster.local.",)), ("denial", (".",))),
        ),
        ("cache {\n keepttl\n}", "keepttl", True),
    ],
)
def test_its_options_are_read(text: str, field: str, value: object) -> None:
    assert getattr(options(text), field) == value


@pytest.mark.parametrize(
    ("text", "success", "denial"),
    [
        ("cache", Limits(9984, 3600, 5), Limits(9984, 1800, 5)),
        ("cache 30", Limits(9984, 30, 5), Limits(9984, 30, 5)),
        ("cache 900 {\n denial 9984 30\n}", Limits(9984, 900, 5), Limits(9984, 30, 5)),
        ("cache {\n success 5000\n denial 1 60 0\n}", Limits(5000, 3600, 5), Limits(1024, 60, 0)),
    ],
)
def test_what_is_left_out_comes_from_the_line_of_the_directive(text: str, success: Limits, denial: Limits) -> None:
    rules = rules_of(options(text))
    assert (rules.success, rules.denial) == (success, denial)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("cache 0", "expected 1 or more, found `0`"),
        ("cache\ncache", "can only be used once"),
        ("cache 30s", "warning: `30s` is taken for a zone"),
        ("cache {\n success\n}", "`success` takes"),
        ("cache {\n denial 1 0\n}", "expected 1 or more, found `0`"),
        ("cache {\n denial 1 1 -1\n}", "expected 0 or more, found `-1`"),
        ("cache {\n prefetch 10 1m 5%\n}", "expected 10% to 90%, found `5%`"),
        ("cache {\n prefetch -1\n}", "expected 0 or more, found `-1`"),
        ("cache {\n servfail 6m\n}", "to 5m"),
        ("cache {\n disable everything\n}", "`disable` takes `success` or `denial`"),
        ("cache {\n serve_stale -1s\n}", "expected 0s or more, found `-1s`"),
        ("cache {\n serve_stale 1h sometimes\n}", "`immediate` or `verify`"),
        ("cache {\n serve_stale 1h immediate 1500ms\n}", "expected a whole number of seconds, found `1500ms`"),
        ("cache {\n serve_stale 1h verify 1s 2h 6m\n}", "expected 0s to 5m, found `6m`"),
        ("cache {\n serve_stale 1h immediate 1s 1s 1s\n}", "expected nothing more"),
        ("cache {\n serve_stale_policy prefer_positive\n}", "`serve_stale_policy` needs `serve_stale`"),
        ("cache {\n servfial 5s\n}", "did you mean `servfail`?"),
    ],
)
def test_what_it_does_not_take_is_told(text: str, part: str) -> None:
    assert part in trial.problems(Cache, text)


@pytest.mark.parametrize(("line", "noted"), [("1h verify", True), ("1h verify 1s", False), ("1h", False)])
def test_how_long_verify_waits_is_noted_where_coredns_waits_as_long_as_it_takes(line: str, noted: bool) -> None:
    told = trial.problems(Cache, f"cache {{\n serve_stale {line}\n}}")
    assert told.startswith("note: `verify` waits 1.8s for the upstream, unless told how long\n") is noted


KEPT_IN_COREDNS = "no effect on answers of {}, which have the TTL that those say"


@pytest.mark.parametrize(
    ("directives", "line", "whose"),
    [
        ("", "cache 30", ""),
        ("kubernetes", "cache 30", "`kubernetes`"),
        ("kubernetes hosts", "cache 30", "`hosts` and `kubernetes`"),
        ("kubernetes", "cache 30 cluster.local", "`kubernetes`"),
        ("kubernetes", "cache 30 example.org", ""),
        ("kubernetes", "cache 30 {\n disable success cluster.local\n}", "`kubernetes`"),
        # As kubeadm has it: in CoreDNS they aren't kept either.
        ("kubernetes", "cache 30 {\n disable success cluster.local\n disable denial cluster.local\n}", ""),
        ("kubernetes", "cache 30 {\n disable success\n disable denial\n}", ""),
        ("template whoami", "cache 30", ""),
    ],
)
def test_it_says_whose_answers_coredns_would_keep(directives: str, line: str, whose: str, tmp_path: Path) -> None:
    (tmp_path / "inventory.yaml").write_text("")
    text = {
        "kubernetes": f"kubernetes cluster.local {{\n inventory {tmp_path}/inventory.yaml\n}}",
        "template": "template ANY ANY {\n rcode NXDOMAIN\n}",
    }
    lines = "\n".join(text.get(name, name) for name in directives.split())
    made = app.build(corefile.parse(f". {{\n{lines}\n{line}\n}}", "Corefile"), Process(Metrics()))
    (cache,) = (plugin for plugin in made.plugins if isinstance(plugin, Cache))
    assert cache.notices() == ((KEPT_IN_COREDNS.format(whose),) if whose else ())


def test_a_name_outside_of_its_zones_costs_no_coroutine_of_ours() -> None:
    cache = trial.plugin(Cache, "cache example.net")

    async def rest(request: Request) -> Answer:
        return Answer()

    made: list[Coroutine[Any, Any, Answer]] = []

    def next(request: Request) -> Coroutine[Any, Any, Answer]:
        made.append(rest(request))
        return made[0]

    assert cache.handle(trial.request("www.example.org. A"), next) is made[0]
    made[0].close()


# With `forward`


def test_replies_of_a_real_upstream_are_kept_and_so_is_its_silence() -> None:
    async def story() -> None:
        async with upstream(says_on_the_wire(b"\x0a\0\0\1"), silence) as fake:
            block = Block(Process(Metrics(), trial.Clock()), [names.ROOT], 53)
            options = f"forward . {fake.upstream} {{\n read_timeout 10ms\n max_fails 0\n}}"
            plugins = [trial.plugin(Cache, "cache", block), trial.plugin(Forward, options, block)]
            chain = fold([plugin.handle for plugin in plugins if plugin.handle is not None])

            async def ask(question: str) -> Answer:
                done: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
                said = start(chain(trial.request(question)), done.set_result)
                return said if isinstance(said, Answer) else await done

            assert shown(await ask("www.example.org. A")) == [
                "NOERROR ra forward",
                "www.example.org. 30 IN A 10.0.0.1",
            ]
            assert shown(await ask("WWW.example.org. A")) == ["NOERROR ra cache", "www.example.org. 30 IN A 10.0.0.1"]
            assert len(fake.udp) == 1
            assert fake.udp[0][2:4] == (RD | AD).to_bytes(2, "big")
            first = await ask("other.example.org. A")
            assert (first.rcode, first.plugin, bool(first.cause)) == (Rcode.SERVFAIL, "forward", True)
            asked = len(fake.udp)
            assert shown(await ask("other.example.org. A")) == ["SERVFAIL EDE 22 cache"]
            assert len(fake.udp) == asked

    asyncio.run(story())
