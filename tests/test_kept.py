"""A kept reply is never older than the model: whatever happens, it is the one that would be made now."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from random import Random

import dns.message
import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from kdns import corefile
from kdns.app import build
from kdns.chain import Answer, Next, Process, Request, fold
from kdns.kubernetes.objects import Event, Synced
from kdns.metrics import Metrics
from kdns.plugins.kubernetes import Kubernetes
from kdns.responder import Responder, Site
from kdns.wire import names
from kdns.wire.records import Type, address
from tests.kubernetes.test_cluster import CONFIGURATIONS, OWN, QUESTIONS, START, delete, histories, service, slice_

CLIENT, LOCAL = ("192.0.2.7", 4711), ("192.0.2.1", 53)
NOON = 1_700_000_000.0
OPT = b"\0\0\x29\x04\xd0\0\0\0\0\0\0"


def packet(name: bytes, rtype: int, edns: bool = False, flags: bytes = b"\1\0", id: bytes = b"\0\7") -> bytes:
    end = rtype.to_bytes(2, "big") + b"\0\1" + (OPT if edns else b"")
    return id + flags + b"\0\1\0\0\0\0" + (b"\0\1" if edns else b"\0\0") + name + end


class Kept:
    """A responder of a `kubernetes` block, and another that never kept anything, over the same model."""

    def __init__(self, options: str, more: str = "") -> None:
        text = f".:53 {{\n kubernetes cluster.local in-addr.arpa ip6.arpa {{\n endpoint http://127.0.0.1:9\n{options}\n}}\n{more}\n}}"
        self.process = Process(Metrics(), lambda: NOON)
        self.sites = build(corefile.parse(text, "Corefile"), self.process).listeners[0].sites
        self.process.addresses = OWN
        (self.plugin,) = (each for each in self.process.plugins if isinstance(each, Kubernetes))
        self.responder = Responder(self.sites, self.process, self.process.metrics)

    def ask(self, query: bytes, transport: str = "udp", fresh: bool = False) -> bytes:
        responder = self.responder
        if fresh:
            other = Process(Metrics(), lambda: NOON)
            other.addresses = OWN
            responder = Responder(self.sites, other, other.metrics)
        reply = responder.respond(query, transport, CLIENT, LOCAL, lambda data: None)
        assert isinstance(reply, bytes)
        return reply

    def found(self, query: bytes) -> bool:
        return self.responder.answers("udp", False).find(query) is not None


def without_serial(reply: bytes) -> str:
    """A reply as text, but for the serial of a negative one, which is of the moment when it was made."""
    message = dns.message.from_wire(reply)
    lines = message.to_text().splitlines()
    if message.authority:
        lines = [line.rsplit(maxsplit=5)[0] if " SOA " in line else line for line in lines]
    return "\n".join(lines)


def spelled(name: bytes, random: Random) -> bytes:
    return bytes(each ^ 0x20 if random.random() < 0.5 and chr(each).isalpha() else each for each in name)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(CONFIGURATIONS), histories(15), st.integers(0, 2**32))
def test_whatever_happens_a_kept_reply_is_the_one_that_would_be_made_now(
    options: str, happened: list[Event], seed: int
) -> None:
    random = Random(seed)
    kept = Kept(options)
    kept.plugin.apply([*START, Synced()])
    hits = 0
    for event in [*happened, *happened[::-1]]:
        for name, rtype in random.sample(QUESTIONS, 20):
            query = packet(name, rtype, random.random() < 0.5)
            # Kept, if it wasn't yet.
            kept.ask(query)
            hits += kept.found(query)
            again = packet(spelled(name, random), rtype, len(query) > len(name) + 16, id=random.randbytes(2))
            assert without_serial(kept.ask(again)) == without_serial(kept.ask(again, fresh=True))
        kept.plugin.apply([event])
        for name, rtype in random.sample(QUESTIONS, 20):
            query = packet(name, rtype)
            assert without_serial(kept.ask(query)) == without_serial(kept.ask(query, fresh=True))
    assert hits


def test_a_change_lets_go_what_it_changes_and_nothing_else() -> None:
    kept = Kept("pods verified")
    kept.plugin.apply([*START, Synced()])
    x, y = (packet(names.from_text(f"{name}.a.svc.cluster.local"), Type.A) for name in "xy")
    for query in (x, y):
        kept.ask(query)
        assert kept.found(query)
    kept.plugin.apply([service("10.3.0.7", name="y", where="a", team="t")])
    assert kept.found(x)
    assert not kept.found(y)


def test_nothing_is_kept_before_all_was_read() -> None:
    kept = Kept("")
    query = packet(names.from_text("x.a.svc.cluster.local"), Type.A)
    kept.ask(query)
    assert not kept.found(query)
    kept.plugin.apply([*START, Synced()])
    kept.ask(query)
    assert kept.found(query)


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        (packet(names.from_text("x.a.svc.cluster.local"), Type.A, flags=b"\x29\0"), "another opcode"),
        (packet(names.from_text("x.a.svc.cluster.local"), Type.AXFR), "a transfer"),
        (packet(names.from_text("www.example.com"), Type.A)[:-2] + b"\0\3", "the class CH"),
        (packet(names.from_text("x.a.svc.cluster.local"), Type.A) + b"?", "bytes behind it"),
        (packet(names.from_text("x.a.svc.cluster.local"), Type.A, True)[:-2] + b"\0\4\0\x0a\0\0", "an option"),
    ],
)
def test_what_says_more_than_its_question_is_not_kept(query: bytes, reason: str) -> None:
    kept = Kept("")
    kept.plugin.apply([*START, Synced()])
    kept.ask(query)
    assert not kept.found(query), reason


def test_what_is_logged_is_answered_anew_and_the_rest_is_kept() -> None:
    kept = Kept("", "log . {\n class denial\n}")
    kept.plugin.apply([*START, Synced()])
    good, bad = (packet(names.from_text(f"{name}.a.svc.cluster.local"), Type.A) for name in ("x", "none"))
    for query in (good, bad):
        kept.ask(query)
    assert kept.found(good)
    assert not kept.found(bad)


def test_udp_and_tcp_keep_apart_what_fits() -> None:
    kept = Kept("", "loadbalance")
    many = [f"10.7.{number}.1" for number in range(200)]
    kept.plugin.apply([*START, slice_(*many, of="x", name="s", where="a", team="t"), Synced()])
    query = packet(names.from_text("x.a.svc.cluster.local"), Type.A)
    for _ in range(40):
        assert len(kept.ask(query)) <= 512
        assert kept.ask(query)[2] & 0x02
        assert len(dns.message.from_wire(kept.ask(query, "tcp")).answer[0]) == 200


def addresses(reply: bytes, query: bytes) -> list[bytes]:
    """The data of A records that stand at the question's name: 16 bytes each, the address at their end."""
    count = int.from_bytes(reply[6:8], "big")
    return [reply[len(query) + 16 * number + 12 : len(query) + 16 * (number + 1)] for number in range(count)]


@pytest.mark.parametrize("endpoints", [3, 1000])
def test_kept_orders_are_as_fair_as_fresh_ones(endpoints: int) -> None:
    kept = Kept("", "loadbalance")
    many = [f"10.{7 + number // 250}.{number % 250}.1" for number in range(endpoints)]
    kept.plugin.apply([*START, slice_(*many, of="x", name="s", where="a", team="t"), Synced()])
    query = packet(names.from_text("x.a.svc.cluster.local"), Type.A)
    asked, variants = 40_000, 16
    first: Counter[bytes] = Counter()
    seen: Counter[bytes] = Counter()
    for _ in range(asked):
        found = addresses(kept.ask(query), query)
        first[found[0]] += 1
        seen.update(found)
    assert len(seen) == endpoints
    # Each order is used some 16 times before another replaces it, so that many draws count as one.
    expected = asked / endpoints
    chi_square = sum((first[each] - expected) ** 2 / expected for each in seen) / (variants + 1)
    freedom = endpoints - 1
    # Five standard deviations of a chi-square with so many degrees of freedom.
    assert chi_square < freedom + 5 * (2 * freedom) ** 0.5
    share = sum(seen.values()) / endpoints
    assert all(share / 3 < count < 3 * share for count in seen.values())


# Answers that wait


class Slow:
    """A handler that waits, tags its answer, and says what the world was like before it waited."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.world = b"\x0a\0\0\1"

    async def handle(self, request: Request, next: Next) -> Answer:
        request.tags.add(("service", b"a", b"x"))
        seen = self.world
        await request.wait(self.go.wait())
        return Answer(answer=[address(request.query.qname, 5, seen)], plugin="slow")


@pytest.mark.parametrize("loop", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("meanwhile", [None, ("service", b"a", b"x"), ("service", b"a", b"y")])
def test_an_answer_that_waited_is_kept_only_if_nothing_of_it_has_changed(
    loop: Callable[..., None], meanwhile: tuple[object, ...] | None
) -> None:
    async def story() -> None:
        slow = Slow()
        process = Process(Metrics(), lambda: NOON)
        responder = Responder([Site(b"\0", fold([slow.handle]), "dns://:53")], process, process.metrics)
        query = packet(names.from_text("x.a.svc.cluster.local"), Type.A)
        told: list[bytes] = []
        responder.respond(query, "udp", CLIENT, LOCAL, told.append)
        await asyncio.sleep(0)
        if meanwhile is not None:
            process.forget({meanwhile})
        slow.go.set()
        await asyncio.sleep(0.01)
        assert len(told) == 1
        kept = responder.answers("udp", False).find(query)
        assert (kept is None) == (meanwhile == ("service", b"a", b"x"))

    loop(story())


def test_a_deleted_service_is_gone_with_the_next_query() -> None:
    kept = Kept("")
    put = service("10.3.0.9", name="y", where="a", team="t")
    kept.plugin.apply([*START, put, Synced()])
    query = packet(names.from_text("y.a.svc.cluster.local"), Type.A)
    for _ in range(3):
        assert dns.message.from_wire(kept.ask(query)).answer
    kept.plugin.apply([delete(put)])
    assert dns.message.from_wire(kept.ask(query)).rcode() == 3
