"""Lists and the streams that begin with one: forgotten places, pages, servers that are behind, lists that break.

Rows W1, W2, W3, W5, W6 and W23 of the faults that a watch may meet. What must hold throughout is checked by `trial`; a
row says what goes wrong, and what is particular about its end.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable

import msgspec
import pytest

from tests.faults import faults, statuses
from tests.faults.api import Event, error, expired
from tests.faults.fake import Fault
from tests.faults.patience import always, eventually
from tests.faults.rows import RESOURCES, asked_version, beginnings, begins, bulk, each_kind, resumes
from tests.faults.trial import FAST, row, trial
from tests.faults.wire import End, Request

# W1 · 410 in the stream


@row
@each_kind
async def test_w01_a_watch_that_is_told_410_lists_again_as_a_difference(seed: int, resource: str) -> None:
    async with trial(seed) as it:
        await it.churn(10)
        assert it.fake.say(resource, expired()) == 1
        # What changes now, no watch will tell.
        for _ in range(20):
            it.world.churn()
        it.fake.store.compact()
        await it.churn(10)
        await it.in_step()
        assert it.relists("expired") == 1


@row
async def test_w01_410_after_a_few_events_time_and_again(seed: int) -> None:
    async with trial(seed) as it:
        for resource in RESOURCES:
            it.fake.on("watch", resource, faults.gone_after(it.random.randrange(4)), times=3)
        it.fake.cut()
        await it.churn(100, a_second=200)
        await it.in_step()


@row
async def test_w01_what_lists_and_events_tell_is_counted(seed: int) -> None:
    async with trial(seed, started=False) as it:
        bulk(it, 30)
        it.start()
        took = await it.synced()
        assert 0 < it.count("kdns_kubernetes_sync_seconds") <= took
        counts = {"name": "kdns_kubernetes_events_total", "kind": "Service"}
        services = it.fake.store.at("services", it.fake.store.number)
        assert it.count(**counts, event="put") == len(services)
        # One by an event, the others by a list.
        told, *untold = sorted(services)[:5]
        it.fake.store.delete("services", *told)
        await eventually(lambda: it.count(**counts, event="delete") == 1)
        assert it.fake.say("services", expired()) == 1
        for key in untold:
            it.fake.store.delete("services", *key)
        it.fake.store.compact()
        await it.in_step()
        assert it.count(**counts, event="delete") == 5
        for resource in ("services", "endpointslices", "namespaces"):
            assert 0 < it.count("kdns_kubernetes_watch_age_seconds", watch=resource) < 60


# W2 · 410 by HTTP


@row
async def test_w02_410_instead_of_a_watch(seed: int) -> None:
    async with trial(seed) as it:
        it.fake.on("watch", "", faults.says(statuses.expired_watch("1", 2)), times=4)
        it.fake.cut()
        await it.churn(30)
        await it.in_step()


@row
async def test_w02_410_on_a_later_page_keeps_what_there_was_until_a_list_is_complete(seed: int) -> None:
    async with trial(seed) as it:
        bulk(it, 1200)
        await it.in_step()
        it.fake.on("watch", "services", faults.no_watch_list(), times=None)
        pages = it.fake.on("list", "services", faults.expired_pages(), times=5)
        it.fake.say("services", expired())
        await eventually(lambda: pages.met == 5)
        await it.churn(30)
        await it.in_step()
        assert it.count("kdns_kubernetes_failures_total", kind="Service", status="410") >= 2


@row
async def test_w02_a_compaction_between_two_pages(seed: int) -> None:
    async with trial(seed) as it:
        bulk(it, 1200)
        it.fake.on("watch", "services", faults.no_watch_list(), times=None)

        async def compacting(request: Request, reply: object) -> object:
            it.world.churn()
            it.fake.store.compact()
            return reply

        it.fake.on("list", "services", compacting, times=2)  # type: ignore[arg-type]
        it.fake.say("services", expired())
        await it.churn(30)
        await it.in_step()


# W3 · too large resource version


# With its cause, with a cause that has no reason, with words alone.
VARIANTS = [statuses.too_large, statuses.too_large_as_before_1_19, statuses.too_large_as_before_1_17]


@row
@pytest.mark.parametrize("streaming", [True, False])
async def test_w03_a_server_that_is_behind_is_asked_for_what_etcd_has(seed: int, streaming: bool) -> None:
    variant = VARIANTS[seed % len(VARIANTS)]
    async with trial(seed) as it:
        if not streaming:
            it.fake.on("watch", "", faults.no_watch_list(), times=None)
        behind = it.fake.add_replica("behind")
        behind.hold()
        it.fake.store.tick()
        await it.churn(5)
        await it.in_step()
        it.fake.route = lambda request: "behind"
        too_large = faults.says(variant("9999", 1000))
        rule = it.fake.on("", "services", too_large, None, lambda each: begins(each) and bool(asked_version(each)))
        began = it.fake.requests[-1].time
        it.fake.say("services", expired())
        await eventually(lambda: any(not asked_version(each) for each in beginnings(it, began)))
        assert rule.met >= 1
        behind.go_on()
        it.fake.heal()
        await it.churn(10)
        await it.in_step()


@row
async def test_w03_too_large_in_the_stream_is_waited_out(seed: int) -> None:
    async with trial(seed) as it:
        it.fake.on("watch", "", faults.on_events(only(error(statuses.too_large("9999", 1000)))), times=3)
        it.fake.cut()
        await it.churn(20)
        await it.in_step()


# W5 · the bookmark that ends the initial events


END_BOOKMARKS = {
    "no end": faults.without_end_bookmark,
    "no bookmarks": faults.without_bookmarks,
    "not marked": faults.unmarked_end_bookmark,
    "twice": faults.end_bookmark_twice,
    "cut off before": faults.torn_after(2, End.FIN),
}


@row
@pytest.mark.parametrize("fault", END_BOOKMARKS)
async def test_w05_nothing_counts_as_complete_before_it_was_said(seed: int, fault: str) -> None:
    async with trial(seed, started=False) as it:
        it.fake.on("watch", "", END_BOOKMARKS[fault], times=3)
        it.start()
        await it.synced(10)
        assert not it.differences()
        await it.churn(20)
        await it.in_step()


@row
async def test_w05_not_synced_while_the_list_has_no_end(seed: int) -> None:
    async with trial(seed, started=False) as it:
        it.fake.on("watch", "services", faults.without_end_bookmark, times=None)
        slow = it.fake.on("list", "services", faults.slow(20_000, step=256))
        it.start()
        await always(lambda: not it.source.synced, FAST.silence * 0.8)
        assert "services" in " ".join(it.source.missing)
        await it.synced(10)
        assert slow.met == 1


@row
async def test_w05_a_watch_that_is_quiet_after_its_list_is_kept(seed: int) -> None:
    async with trial(seed) as it:
        await asyncio.sleep(FAST.silence * 1.5)
        assert len(it.fake.asked("watch")) == 3
        assert it.count("kdns_kubernetes_failures_total") == 0


# W6 · no streaming lists


@row
@pytest.mark.parametrize("refuses", [True, False])
async def test_w06_a_server_without_streaming_lists_is_listed(seed: int, refuses: bool) -> None:
    async with trial(seed, started=False) as it:
        it.fake.on("watch", "", faults.no_watch_list() if refuses else faults.ignores_watch_list(), times=None)
        it.start()
        await it.synced()
        assert len(it.fake.asked("list")) == 3
        await it.churn(30)
        await it.in_step()
        for resource in RESOURCES:
            it.fake.say(resource, expired())
        it.fake.store.compact()
        await it.churn(30)
        await it.in_step()


@row
async def test_w06_a_streaming_list_that_was_silent_once_is_asked_for_again(seed: int) -> None:
    async with trial(seed, started=False) as it:
        silent = it.fake.on("watch", "", faults.only_headers, times=3, where=begins)
        it.start()
        await it.synced()
        assert silent.met == 3
        assert it.fake.asked("list") == []
        await it.churn(10)


BREAKING = {
    "silent": faults.only_headers,
    "ended": faults.ends_after(2),
    "reset": faults.ends_after(2, End.RESET),
}


@row
@pytest.mark.parametrize("how", BREAKING)
async def test_w06_streaming_lists_that_never_come_to_their_end_give_way_to_pages(seed: int, how: str) -> None:
    async with trial(seed, started=False) as it:
        rule = it.fake.on("watch", "services", BREAKING[how], times=None, where=begins)
        it.start()
        await it.synced(10)
        assert rule.met == 3
        assert [each.resource for each in it.fake.asked("list")] == ["services"]
        await it.churn(10)


@row
async def test_w06_streaming_lists_are_tried_again_after_a_while(seed: int) -> None:
    # The server is upgraded meanwhile, or a feature gate is opened.
    async with trial(seed, msgspec.structs.replace(FAST, pages=1.0), started=False) as it:
        it.fake.on("watch", "", faults.no_watch_list(), times=None)
        it.start()
        await it.synced()
        it.fake.heal()

        async def list_again() -> list[str]:
            lists = lambda: [each.verb for each in beginnings(it) if each.resource == "services"]  # noqa: E731
            before = len(lists())
            # Once there is a watch to hear it.
            await eventually(lambda: it.fake.say("services", expired()))
            await eventually(lambda: len(lists()) > before)
            return lists()

        assert await list_again() == ["watch", "list", "list"]
        await asyncio.sleep(1.0)
        assert await list_again() == ["watch", "list", "list", "watch"]


@row
async def test_w06_pages(seed: int) -> None:
    async with trial(seed, started=False) as it:
        bulk(it, 1700)
        it.fake.on("watch", "", faults.no_watch_list(), times=None)
        it.start()
        await it.synced()
        assert len([each for each in it.fake.asked("list", "services") if "continue" in each.parameters]) == 3
        await it.churn(10)
        await it.in_step()


# W23 · slow and broken lists


@row
async def test_w06_a_watch_begins_at_the_version_of_the_first_page(seed: int) -> None:
    # By law all have the same one; whoever goes by a later one doesn't hear of what happened between two pages.
    @faults.on_bytes
    async def later(things: faults.Things) -> faults.Things:
        head = True
        async for thing in things:
            assert isinstance(thing, bytes)
            yield re.sub(rb'("resourceVersion":")\d+', rb"\g<1>999999", thing, count=1) if head else thing
            head = False

    async with trial(seed, started=False) as it:
        bulk(it, 1200)
        it.fake.on("watch", "", faults.no_watch_list(), times=None, where=begins)
        it.fake.on("list", "services", later, times=None, where=lambda request: "continue" in request.parameters)
        it.start()
        await it.synced()
        await eventually(lambda: [each for each in it.fake.asked("watch", "services") if resumes(each)])
        await it.churn(30)
        await it.in_step()


@row
@pytest.mark.parametrize("streaming", [True, False])
async def test_w23_a_list_that_breaks_near_its_end_changes_nothing_that_is_answered(seed: int, streaming: bool) -> None:
    async with trial(seed) as it:
        bulk(it, 300)
        await it.in_step()
        if not streaming:
            it.fake.on("watch", "", faults.no_watch_list(), times=None)
        broken = it.fake.on("", "services", broken_at(it.random.uniform(0.5, 0.95)), times=3, where=begins)
        it.fake.say("services", expired())
        for _ in range(20):
            it.world.churn()
        await eventually(lambda: broken.met == 3, 10)
        await it.in_step(10)


@row
@pytest.mark.parametrize("streaming", [True, False])
async def test_w23_a_list_that_comes_slowly_is_waited_for(seed: int, streaming: bool) -> None:
    async with trial(seed) as it:
        bulk(it, 300)
        await it.in_step()
        if not streaming:
            it.fake.on("watch", "", faults.no_watch_list(), times=None)
        it.fake.on("", "services", faults.slow(150_000), where=begins)
        it.fake.say("services", expired())
        await it.churn(20)
        await it.in_step(10)
        assert it.count("kdns_kubernetes_failures_total", kind="Service", status="none") <= (0 if streaming else 1)


@row
async def test_w23_a_page_on_a_connection_that_has_died_is_asked_for_anew(seed: int) -> None:
    async with trial(seed, started=False) as it:
        bulk(it, 1200)
        it.fake.on("watch", "", faults.no_watch_list(), times=None)

        async def dying(request: Request, reply: object) -> object:
            # As when a balancer keeps it open towards us and has forgotten where it led.
            it.fake.vanish()
            return reply

        dead = it.fake.on("list", "services", dying, where=lambda each: "continue" in each.parameters)  # type: ignore[arg-type]
        it.start()
        await it.synced()
        assert dead.met == 1


@row
async def test_w23_a_page_of_a_server_that_falls_silent_is_given_up_with_all_else(seed: int) -> None:
    # A page may take its time; what has no other sign of life either may not.
    async with trial(seed, msgspec.structs.replace(FAST, reply=30.0), started=False) as it:
        bulk(it, 1200)
        it.fake.on("watch", "", faults.no_watch_list(), times=None)

        async def stopping(request: Request, reply: object) -> object:
            it.fake.stall()
            return reply

        it.fake.on("list", "services", stopping, where=lambda each: "continue" in each.parameters)  # type: ignore[arg-type]
        it.start()
        services = next(each for each in it.source.watches if each.resource.kind == "Service")
        await eventually(lambda: "the API server has fallen silent" in services.trouble, 3)
        it.fake.go_on()
        await it.synced()


def only(event: Event) -> Callable[[faults.Parts], faults.Parts]:
    async def events(parts: faults.Parts) -> faults.Parts:
        yield event

    return events


def broken_at(fraction: float) -> Fault:
    """A list, or the initial events of a watch, broken at this share of the objects."""

    def fault(request: Request, reply: object) -> object:
        if request.verb == "list":
            return faults.cut_at(fraction)(request, reply)  # type: ignore[arg-type]
        return faults.ends_after(int(300 * fraction), End.RESET)(request, reply)  # type: ignore[arg-type]

    return fault  # type: ignore[return-value]
