"""Watches as streams of bytes: bookmarks, versions, chunks, ends of all kinds, and silence.

Rows W4, W7, W8, W9, W10 and W29. What must hold throughout is checked by `trial`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

import msgspec
import pytest

from kdns.kubernetes import watch
from kdns.kubernetes.waiting import Timing
from tests.faults import faults
from tests.faults.api import Event, expired
from tests.faults.patience import always, eventually
from tests.faults.rows import RESOURCES, beginnings, begins, resumes, with_watches_of
from tests.faults.store import Store, service
from tests.faults.trial import AUDITING, FAST, row, trial
from tests.faults.wire import End
from tests.faults.world import SUFFIX, WEB

# W4 · bookmarks and versions


@row
async def test_w04_bookmarks_alone_move_the_place_to_resume_at(seed: int) -> None:
    async with trial(seed) as it:
        it.fake.bookmark_seconds = 0.05
        it.fake.cut()
        await eventually(lambda: len(it.fake.asked("watch")) == 6)
        it.fake.store.tick(1000)
        here = it.fake.store.number
        await asyncio.sleep(0.15)
        # All before the last bookmark is forgotten, and nobody needs it.
        it.fake.store.compact()
        it.fake.cut()
        await eventually(lambda: len(it.fake.asked("watch")) == 9)
        again = it.fake.asked("watch")[6:]
        assert {each.parameters["resourceVersion"] for each in again} == {str(here)}
        assert it.relists("expired") == 0


@row
async def test_w04_without_any_bookmark(seed: int) -> None:
    async with trial(seed, started=False) as it:
        it.fake.on("watch", "", faults.without_bookmarks, times=None)
        it.start()
        await it.synced()
        await it.churn(20)
        await it.in_step()
        it.fake.cut()
        await it.churn(20)
        await it.in_step()


@row
async def test_w04_bookmarks_that_go_back_are_not_followed(seed: int) -> None:
    async with trial(seed) as it:
        it.fake.bookmark_seconds = 0.03
        it.fake.tamper("", faults.bookmarks_at(lambda number: number - it.random.randrange(20)))
        it.fake.cut()
        for _ in range(3):
            await it.churn(10)
            await it.in_step()
            await asyncio.sleep(0.1)
            it.fake.cut()
        await it.churn(5)


SPELLINGS: dict[str, tuple[Callable[[int], str], Callable[[str], int]]] = {
    "text": (lambda number: f"v{number}", lambda text: int(text[1:])),
    "hexadecimal": (lambda number: f"x{number:06x}", lambda text: int(text[1:], 16)),
    "long": (lambda number: f"{number:030d}", int),
    "descending": (lambda number: f"r{10**9 - number}", lambda text: 10**9 - int(text[1:])),
}


@row
@pytest.mark.parametrize("spelling", SPELLINGS)
async def test_w04_versions_that_are_no_numbers(seed: int, spelling: str) -> None:
    spell, unspell = SPELLINGS[spelling]
    async with trial(seed, AUDITING, store=Store(spell, unspell)) as it:
        await it.churn(20)
        it.fake.cut()
        await it.churn(20)
        await it.in_step()
        lists = len(beginnings(it))
        it.fake.cut()
        await it.churn(20)
        await it.in_step()
        assert len(beginnings(it)) == lists
        it.fake.say("services", expired())
        it.fake.store.compact()
        await it.churn(20)
        await it.in_step()


# W7 · bytes


@row
@pytest.mark.parametrize("size", [1, 2, 3, 1000])
async def test_w07_chunks_of_any_size(seed: int, size: int) -> None:
    async with trial(seed, started=False) as it:
        it.fake.on("", "", faults.recut(size), times=None)
        it.fake.store.put("services", service("shop", "kaefer", "10.96.99.1", labels={"animal": "Käfer 🐞 甲虫"}))
        it.start()
        await it.synced(10)
        await it.churn(20)
        await it.in_step(10)


@row
async def test_w07_several_events_in_a_chunk_and_half_of_the_next(seed: int) -> None:
    async with trial(seed) as it:
        it.fake.on("watch", "", faults.joined(it.random.randint(2, 5)), times=None)
        for resource in RESOURCES:
            it.fake.say(resource, expired())
        it.fake.store.compact()
        await it.churn(100)
        it.fake.heal()
        it.fake.cut()
        await it.in_step()


@row
async def test_w07_an_event_of_ten_megabytes(seed: int) -> None:
    async with trial(seed) as it:
        large = service("shop", "large", "10.96.99.1", labels={"pad": "x" * 10_000_000})
        it.fake.store.put("services", large)
        await it.churn(10)
        await it.in_step(10)
        assert it.ask(f"large.shop.{SUFFIX}", "A") == ("NOERROR", frozenset(["10.96.99.1"]))
        assert it.relists("malformed") == 0


@row
async def test_w07_what_is_no_event_is_never_kept_and_listed_over(seed: int) -> None:
    async with trial(seed) as it:
        for rubbish in (b"rubbish\n", b'{"type":"ADDED"}\n', b'{"type":"ADDED","object":{}}\n', b"\xff\xfe\n", b"[]\n"):
            it.fake.say("services", rubbish)
            await it.churn(10)
            await it.in_step()
        assert it.relists("malformed") >= 1


@row
async def test_w07_a_line_without_end_is_given_up(seed: int) -> None:
    async with trial(seed) as it:
        start = b'{"type":"MODIFIED","object":{"metadata":{"name":"web","pad":"'
        it.fake.say("services", start, *[b"x" * 1_000_000] * 20)
        await it.churn(10)
        await it.in_step(10)
        assert it.relists("malformed") == 1


@row
async def test_w07_empty_lines_and_unknown_types(seed: int) -> None:
    async with trial(seed) as it:
        unknown = json.dumps({"type": "RENAMED", "object": {"kind": "Service", "metadata": {"name": "web"}}}).encode()
        it.fake.say("", b"\n", b"\r\n", b"  \n", unknown + b"\n")
        await it.churn(10)
        await it.in_step()


# W8 · streams that end


ENDS = pytest.mark.parametrize("how", [End.FIN, End.RESET, None])


@row
@ENDS
async def test_w08_a_watch_that_ends_goes_on_where_it_was(seed: int, how: End | None) -> None:
    async with trial(seed) as it:
        lists = len(beginnings(it))
        for resource in RESOURCES:
            it.fake.on("watch", resource, faults.ends_after(it.random.randint(1, 3), how), times=4)
        it.fake.cut(End.FIN if how is None else how)
        await it.churn(60, a_second=300)
        await it.in_step()
        assert len(beginnings(it)) == lists


@row
@pytest.mark.parametrize("how", [End.FIN, End.RESET])
async def test_w08_a_watch_that_ends_within_an_event(seed: int, how: End) -> None:
    async with trial(seed) as it:
        lists = len(beginnings(it))
        for resource in RESOURCES:
            it.fake.on("watch", resource, faults.torn_after(it.random.randint(0, 3), how), times=4)
        it.fake.cut()
        await it.churn(60, a_second=300)
        await it.in_step()
        assert len(beginnings(it)) == lists


@row
async def test_w08_a_healthy_watch_that_breaks_is_taken_up_at_once(seed: int) -> None:
    async with trial(seed) as it:
        await it.churn(10)
        began = it.fake.requests[-1].time
        it.fake.say("", End.RESET)
        await eventually(lambda: len(it.fake.asked("watch", after=began)) >= 3)
        # Twice the first pause, and the time of a few connections.
        assert it.fake.requests[-1].time - began < 1.0


# W9, W10 · silence


@row
async def test_w09_a_server_that_falls_silent_is_noticed_and_taken_up_again(seed: int) -> None:
    async with trial(seed) as it:
        await it.churn(10)
        await it.in_step()
        it.fake.stall()
        took = await eventually(lambda: it.source.suspect)
        assert took <= FAST.probe + 2 * FAST.probe_reply + 2.0
        assert not it.source.connected
        it.look_at_all()
        for _ in range(20):
            it.world.churn()
        await always(lambda: it.ask(WEB, "A") == ("NOERROR", frozenset(["10.96.0.1"])), 0.5)
        it.fake.go_on()
        await it.in_step()
        await eventually(lambda: it.source.connected)
        assert it.relists("expired") == 0


def test_w09_twenty_seconds_are_enough_to_notice_silence() -> None:
    timing = Timing()
    assert timing.probe + 2 * timing.probe_reply <= 20
    # A connection that dies by itself, whatever is asked on it.
    assert timing.reply <= 20
    assert timing.silence <= 20


@row
async def test_w09_a_silent_server_is_asked_ever_less_often(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # Whoever waits for an answer for longer than a stream has to live has had no stream.
    monkeypatch.setattr(watch, "LIVED_SECONDS", 0.1)
    async with trial(seed, msgspec.structs.replace(FAST, first_pause=0.8, longest_pause=30.0)) as it:
        it.fake.stall()
        await asyncio.sleep(3.0)
        assert it.count("kdns_kubernetes_failures_total", kind="Service") <= 3
        it.fake.go_on()
        await it.in_step(10)


@row
async def test_w09_connections_that_die_while_new_ones_work(seed: int) -> None:
    # As when a balancer keeps them open towards us and has forgotten where they led.
    async with trial(seed, with_watches_of(1)) as it:
        await it.churn(10)
        it.fake.vanish()
        for _ in range(20):
            it.world.churn()
        await it.in_step(6)


@row
async def test_w10_a_watch_that_never_says_anything_is_left_in_the_end(seed: int) -> None:
    # The server is alive, this one stream is not: its own limit has to end it.
    async with trial(seed, with_watches_of(1)) as it:
        silent = it.fake.on("watch", "services", faults.only_headers, times=1, where=resumes)
        it.fake.cut()
        await eventually(lambda: silent.met == 1)
        await it.churn(20)
        await it.in_step(6)


@row
async def test_w10_a_watch_that_never_says_anything_is_repaired_by_audits(seed: int) -> None:
    async with trial(seed, AUDITING) as it:
        silent = it.fake.on("watch", "services", faults.only_headers, times=1, where=resumes)
        it.fake.cut()
        await eventually(lambda: silent.met == 1)
        await it.churn(20)
        await it.in_step(6)


@row
async def test_w10_a_list_that_never_begins(seed: int) -> None:
    async with trial(seed, started=False) as it:
        it.fake.on("watch", "", faults.only_headers, times=3, where=begins)
        it.start()
        await it.synced(10)
        await it.churn(10)


# W29 · watches that are closed at once


@row
async def test_w29_a_watch_that_tells_what_is_known_and_ends_is_a_failure(seed: int) -> None:
    async with trial(seed) as it:
        known = next(iter(it.fake.store.objects["services"].values()))

        @faults.on_events
        async def again(parts: faults.Parts) -> faults.Parts:
            yield Event("MODIFIED", known)

        began = it.fake.requests[-1].time
        it.fake.on("watch", "services", again, times=None, where=resumes)
        it.fake.cut()
        await always(lambda: it.ask(WEB, "A")[1], 2.0)
        assert len(it.fake.asked("watch", "services", began)) <= 14
        it.fake.heal()
        await it.churn(10)
        await it.in_step()


@row
async def test_w29_a_watch_that_is_closed_at_once_is_a_failure(seed: int) -> None:
    how = [None, End.FIN, End.RESET][seed % 3]
    async with trial(seed) as it:
        began = it.fake.requests[-1].time
        it.fake.on("watch", "services", faults.ends_after(0, how), times=None, where=resumes)
        it.fake.cut()
        await always(lambda: it.ask(WEB, "A")[1], 2.0)
        # 0.02, 0.04, 0.08, 0.16, then 0.3 s each; at most twice as often for want of the jitter.
        assert len(it.fake.asked("watch", "services", began)) <= 14
        assert beginnings(it, began) == []
        it.fake.heal()
        await it.churn(10)
        await it.in_step()
