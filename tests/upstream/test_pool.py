"""Several upstreams as one: identical questions, silent and flapping upstreams, shortages of our own, randomness."""

import asyncio
import contextlib
import itertools
import os
import random
import resource
import ssl
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import uvloop

from kdns.metrics import Metrics
from kdns.upstream import pool as module
from kdns.upstream import sockets
from kdns.upstream.pool import Pool, Rules
from kdns.upstream.sockets import Keeping, Upstream, UpstreamError, Way
from kdns.wire import names
from kdns.wire.query import CD, RD, Query
from tests.plugins import trial
from tests.upstream import certificates
from tests.upstream.fake import Fake, reply, says, silence, upstream

RIGHT = b"\x0a\x00\x00\x01"
OTHER = b"\x0a\x00\x00\x02"

Run = Callable[[Coroutine[None, None, None]], None]


@pytest.fixture(params=["uvloop", "asyncio"])
def run(request: pytest.FixtureRequest) -> Run:
    return uvloop.run if request.param == "uvloop" else asyncio.run


@contextmanager
def pool(*fakes: Fake, **rules: object) -> Iterator[Pool]:
    found = Pool([fake.upstream for fake in fakes], Rules(**rules), Metrics())  # type: ignore[arg-type]
    try:
        yield found
    finally:
        found.close()


def question(name: str = "www.example.org.", rtype: int = 1, flags: int = RD, do: bool = False) -> Query:
    wire = names.from_text(name)
    query = Query(1, flags, wire, names.labels_of(wire.lower()), rtype, 1)
    query.do = do
    return query


def local_ports() -> tuple[int, int]:
    """The ports that the kernel gives, from the first to the one after the last."""
    low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    return low, high + 1


async def ask(found: Pool, query: Query | None = None, transport: str = "udp") -> list[bytes]:
    message = await found.ask(query or question(), transport)
    return [record.data for record in message.answer]


# Identical questions


def test_two_hundred_identical_questions_are_one_packet(run: Run) -> None:
    async def story() -> None:
        async with upstream(lambda query: [0.1, reply(query, RIGHT)]) as fake:
            with pool(fake) as found:
                # The case of the client's letters is no difference.
                spellings = itertools.cycle([question(), question("WWW.example.ORG.")])
                answers = await asyncio.gather(*(ask(found, next(spellings)) for _ in range(200)))
                assert answers == [[RIGHT]] * 200
                assert len(fake.udp) == 1
                # Nothing is kept: that is the cache's work.
                assert await ask(found) == [RIGHT]
                assert len(fake.udp) == 2

    run(story())


def test_what_differs_in_anything_is_asked_by_itself(run: Run) -> None:
    async def story() -> None:
        slow = says(RIGHT)
        async with upstream(lambda query: [0.05, *slow(query)], tcp=slow) as fake:
            with pool(fake) as found:
                different = [
                    question(),
                    question(rtype=28),
                    question("example.org."),
                    question(flags=0),
                    question(flags=RD | CD),
                    question(do=True),
                ]
                await asyncio.gather(
                    *(ask(found, query) for query in different),
                    ask(found, transport="tcp"),
                    found.ask(question(), "udp", b"\xff\xee\x00\x00"),
                )
                assert (len(fake.udp), len(fake.tcp)) == (7, 1)

    run(story())


def test_who_gives_up_takes_nothing_from_the_others(run: Run) -> None:
    async def story() -> None:
        async with upstream(lambda query: [0.1, reply(query, RIGHT)]) as fake:
            with pool(fake) as found:
                first, second = asyncio.ensure_future(ask(found)), asyncio.ensure_future(ask(found))
                await asyncio.sleep(0.02)
                first.cancel()
                assert await second == [RIGHT]
                assert len(fake.udp) == 1
                # When all have given up, it is asked anew.
                third = asyncio.ensure_future(ask(found))
                await asyncio.sleep(0.02)
                third.cancel()
                await asyncio.sleep(0)
                assert await ask(found) == [RIGHT]
                assert len(fake.udp) == 3
            assert not found._errands

    run(story())


def test_all_who_share_a_question_share_its_failure(run: Run) -> None:
    async def story() -> None:
        async with upstream(silence) as fake:
            with pool(fake, seconds=0.05) as found:
                outcomes = await asyncio.gather(*(ask(found) for _ in range(5)), return_exceptions=True)
                assert all(isinstance(outcome, UpstreamError) and outcome.silent for outcome in outcomes)
                assert len(fake.udp) == 2

    run(story())


# Silent ones


@pytest.mark.parametrize("policy", ["random", "round_robin"])
def test_one_dead_upstream_of_two_costs_nobody_an_answer(run: Run, policy: str) -> None:
    async def story() -> None:
        async with upstream(silence) as dead, upstream(says(RIGHT)) as alive:
            with pool(dead, alive, policy=policy) as found, trial.log_lines():
                took = []
                for number in range(40):
                    started = time.monotonic()
                    assert await ask(found, question(f"{number}.example.org.")) == [RIGHT]
                    took.append(time.monotonic() - started)
                # The first one waits, from then on the silent one comes last.
                assert max(took) < 1.5
                assert sorted(took)[30] < 0.1
                assert len(dead.udp) <= 5

    run(story())


def test_in_sequence_the_next_waits_for_the_first_to_fail(run: Run) -> None:
    async def story() -> None:
        async with upstream(lambda query: [0.5, reply(query, RIGHT)]) as slow, upstream(says(OTHER)) as quick:
            with pool(slow, quick, policy="sequential") as found:
                assert await ask(found) == [RIGHT]
                assert len(quick.udp) == 0

    run(story())


def test_a_slow_reply_still_counts_when_the_other_upstream_has_none(run: Run) -> None:
    async def story() -> None:
        async with upstream(lambda query: [0.5, reply(query, RIGHT)]) as slow, upstream(silence) as dead:
            with pool(slow, dead) as found:
                assert await ask(found) == [RIGHT]
                assert len(slow.udp) == 1

    run(story())


def test_what_comes_late_clears_a_suspicion_and_what_never_comes_is_a_failure(run: Run) -> None:
    async def story() -> None:
        slow_then_dead = [lambda query: [0.5, reply(query, RIGHT)], silence]
        async with upstream(*slow_then_dead) as slow, upstream(says(OTHER)) as quick:
            with pool(slow, quick, policy="round_robin", seconds=0.7) as found:
                member = found._members[0]
                assert await ask(found) == [OTHER]
                assert (member.is_suspect, member.fails) == (True, 0)
                await asyncio.sleep(0.4)
                assert (member.is_suspect, member.fails) == (False, 0)
                found._turn = -1
                assert await ask(found) == [OTHER]
                await asyncio.sleep(0.6)
                assert (member.is_suspect, member.fails) == (True, 1)

    run(story())


def test_a_flapping_upstream_of_two_costs_nobody_an_answer(run: Run) -> None:
    async def story() -> None:
        began = time.monotonic()

        def flapping(query: bytes) -> list[bytes]:
            return [reply(query, RIGHT)] if int((time.monotonic() - began) * 4) % 2 else []

        async with upstream(flapping) as one, upstream(says(RIGHT)) as two:
            with pool(one, two) as found, trial.log_lines():
                checking = asyncio.ensure_future(found.check())
                for number in range(100):
                    assert await ask(found, question(f"{number}.example.org.")) == [RIGHT]
                    await asyncio.sleep(0.01)
                checking.cancel()

    run(story())


def test_the_budget_of_one_query_is_bounded_with_many_dead_upstreams(run: Run) -> None:
    async def story() -> None:
        async with upstream(silence) as one, upstream(silence) as two, upstream(silence) as three:
            fakes = (one, two, three)
            with pool(*fakes, seconds=0.4) as found, trial.log_lines():
                started = time.monotonic()
                with pytest.raises(UpstreamError):
                    await ask(found)
                assert time.monotonic() - started < 2
                assert [len(fake.udp) for fake in fakes] == [2, 2, 2]

    run(story())


def test_when_all_are_avoided_each_is_asked_once(run: Run) -> None:
    async def story() -> None:
        async with upstream(silence) as one, upstream(silence) as two:
            with pool(one, two, seconds=0.02, max_fails=1) as found, trial.log_lines():
                for name in ("a.org.", "b.org."):
                    with pytest.raises(UpstreamError):
                        await ask(found, question(name))
                assert [len(fake.udp) for fake in (one, two)] == [3, 3]

    run(story())


def test_without_checks_nobody_is_avoided(run: Run) -> None:
    async def story() -> None:
        async with upstream(silence) as dead:
            check = module.HealthCheck(seconds=0.0)
            with (
                pool(dead, seconds=0.02, max_fails=1, check=check, fail_fast=True) as found,
                trial.log_lines() as lines,
            ):
                for number in range(4):
                    with pytest.raises(UpstreamError, match="i/o timeout"):
                        await ask(found, question(f"{number}.example.org."))
                assert (len(dead.udp), lines) == (8, [])

    run(story())


def test_a_storm_of_mishaps_leaves_nothing_behind(run: Run, tmp_path: Path) -> None:
    chance = random.Random(4711)
    certificate, key = certificates.make(tmp_path, "server", "IP:127.0.0.1")

    def mishaps(query: bytes) -> list[bytes | float]:
        choices: list[list[bytes | float]] = [
            [chance.random() * 0.02, reply(query, RIGHT)],
            [],
            [reply(query, RIGHT, flags=0x8380)],
            [reply(query, RIGHT, id_=1)] * chance.randint(1, 150),
            [reply(query, RIGHT)[:-2]],
            [reply(query, RIGHT), b""],
            [b""],
        ]
        return chance.choices(choices, weights=[4, 1, 1, 1, 1, 1, 1])[0]

    async def one(found: Pool) -> None:
        query = question(f"{chance.randint(0, 100)}.org.")
        task = asyncio.ensure_future(ask(found, query, chance.choice(["udp", "tcp"])))
        if chance.random() < 0.3:
            await asyncio.sleep(chance.random() * 0.05)
            task.cancel()
        with contextlib.suppress(UpstreamError, asyncio.CancelledError):
            await task

    async def story() -> None:
        context = ssl.create_default_context(cafile=certificate)
        shown = certificates.server(certificate, key)
        for idle_seconds in (0.0, 0.02, 10.0):
            async with upstream(mishaps, tcp=mishaps) as plain, upstream(tcp=mishaps, tls=shown) as secret:
                over_tls = Upstream(secret.upstream.host, secret.upstream.port, tls=True)
                way = Way(keeping=Keeping(idle_seconds=idle_seconds), context=context)
                found = Pool([plain.upstream, over_tls], Rules(seconds=0.05, max_fails=2), Metrics(), way)
                checking = asyncio.ensure_future(found.check())
                await asyncio.gather(*(one(found) for _ in range(150)))
                await asyncio.sleep(0.15)
                assert not found._errands
                assert not found._late
                found.close()
                checking.cancel()
                await asyncio.sleep(0.05)
                for member in found._members:
                    connections = member.client._connections
                    assert not connections._open
                    assert not connections._waiting
                    assert not connections._dialing
        # What nobody closed would be a ResourceWarning, and those are errors here.

    with trial.log_lines():
        run(story())


# What is our own fault


@contextmanager
def without_descriptors() -> Iterator[None]:
    """This process may open nothing more."""
    free = os.dup(0)
    os.close(free)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("transport", ["udp", "tcp"])
def test_a_shortage_of_our_own_is_not_blamed_on_the_upstream(run: Run, transport: str) -> None:
    async def story() -> None:
        async with upstream(says(RIGHT), tcp=says(RIGHT)) as fake:
            with pool(fake, max_fails=1) as found, trial.log_lines() as lines:
                for _ in range(3):
                    with without_descriptors(), pytest.raises(UpstreamError) as caught:
                        await ask(found, transport=transport)
                    step = "socket" if transport == "udp" else "connect"
                    assert str(caught.value) == f"dial {transport} {fake.upstream}: {step}: too many open files"
                    assert (caught.value.own, caught.value.silent) == (True, False)
                assert (found._members[0].fails, found._ailing.is_set(), lines) == (0, False, [])
                assert await ask(found, transport=transport) == [RIGHT]

    run(story())


def test_questions_beyond_the_allowance_of_sockets_wait_in_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "descriptors", lambda: 64)

    async def story() -> None:
        under_way = most = 0

        def step(query: bytes) -> list[bytes | float]:
            nonlocal under_way, most
            under_way += 1
            most = max(most, under_way)
            asyncio.get_running_loop().call_later(0.02, done)
            return [0.02, reply(query, RIGHT)]

        def done() -> None:
            nonlocal under_way
            under_way -= 1

        async with upstream(step) as fake:
            with pool(fake) as found:
                answers = await asyncio.gather(*(ask(found, question(f"{number}.org.")) for number in range(100)))
                assert answers == [[RIGHT]] * 100
                assert most <= 17

    run(story())


def test_who_waits_in_line_too_long_gets_an_error_of_ours(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "descriptors", lambda: 64)

    async def story() -> None:
        async with upstream(silence) as fake:
            with pool(fake, seconds=0.1, attempts=1, max_fails=0) as found:
                asked = (ask(found, question(f"{number}.org.")) for number in range(20))
                outcomes = await asyncio.gather(*asked, return_exceptions=True)
                own = [outcome.own for outcome in outcomes if isinstance(outcome, UpstreamError)]
                assert (len(own), own.count(True)) == (20, 4)
                assert len(fake.udp) == 16

    run(story())


def test_more_questions_than_memory_allows_are_an_error_of_ours(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_QUESTIONS", 3)

    async def story() -> None:
        async with upstream(lambda query: [0.05, reply(query, RIGHT)]) as fake:
            with pool(fake) as found:
                # Who asks the same as another is no further question.
                asked = [ask(found, question(f"{number % 5}.org.")) for number in range(20)]
                outcomes = await asyncio.gather(*asked, return_exceptions=True)
                own = [str(outcome) for outcome in outcomes if isinstance(outcome, UpstreamError) and outcome.own]
                assert own == ["more than 3 questions under way"] * 8
                assert await ask(found) == [RIGHT]

    run(story())


# Randomness


def chi_square(values: Iterable[int], low: int, high: int, bins: int) -> float:
    """Pearson's statistic of values from `low` up to and without `high`, as sigmas by Wilson and Hilferty."""
    counts = Counter((value - low) * bins // (high - low) for value in values)
    assert set(counts) <= set(range(bins)), "a value is out of the range"
    expected = sum(counts.values()) / bins
    statistic = sum((counts[each] - expected) ** 2 / expected for each in range(bins))
    freedom = bins - 1
    spread = 2 / (9 * freedom)
    return ((statistic / freedom) ** (1 / 3) - (1 - spread)) / spread**0.5


def test_ports_and_ids_are_random() -> None:
    async def story() -> None:
        async with upstream(says(RIGHT)) as fake:
            with pool(fake) as found:
                for turn in range(80):
                    await asyncio.gather(*(ask(found, question(f"{turn}.{number}.org.")) for number in range(50)))
        assert len(fake.ports) == 4000
        low, high = local_ports()
        # 4.8 sigmas: one run in a million is unlucky, and a counter or a generator of few bits is never lucky.
        assert chi_square(fake.ports, low, high, 64) < 4.8
        ids = [int.from_bytes(packet[:2], "big") for packet in fake.udp]
        assert chi_square(ids, 0, 65536, 64) < 4.8
        assert chi_square((id & 0x3F for id in ids), 0, 64, 64) < 4.8
        # Nor does one follow from the one before.
        steps = [(after - before) % 65536 for before, after in itertools.pairwise(ids)]
        assert chi_square(steps, 0, 65536, 64) < 4.8
        # Of as many random ports and IDs so many differ; 95 % of that is the promise.
        for values, size in ((fake.ports, high - low), (ids, 65536)):
            expected = size * (1 - (1 - 1 / size) ** len(values))
            assert len(set(values)) > 0.95 * expected

    uvloop.run(story())


def test_the_test_of_randomness_finds_what_is_not_random() -> None:
    assert chi_square(range(4000), 0, 65536, 64) > 100
    assert chi_square([number * 8 % 65536 // 2 for number in range(4000)], 0, 65536, 64) > 50
