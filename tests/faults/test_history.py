"""Time that goes back, and what is never told: servers behind others, backups, lost events. Rows W15, W16 and W17."""

from __future__ import annotations

import pytest

from tests.faults import faults
from tests.faults.api import expired
from tests.faults.patience import always, eventually
from tests.faults.rows import RESOURCES, asked_version, beginnings, each_kind
from tests.faults.store import endpoint_slice, namespace, service
from tests.faults.trial import AUDITING, FAST, row, trial
from tests.faults.world import SUFFIX

# W15, W16 · time that goes back


@row
async def test_w15_an_api_server_that_is_behind_is_never_believed(seed: int) -> None:
    async with trial(seed) as it:
        behind = it.fake.add_replica("behind")
        behind.hold()
        await it.churn(30)
        await it.in_step()
        fresh = it.model()
        it.fake.route = lambda request: it.random.choice(["", "behind", "behind"])
        for _ in range(4):
            it.fake.cut()
            await always(lambda: it.model() == fresh, 0.1, "I2: the model went back")
            it.fake.say(it.random.choice(RESOURCES), expired())
            await always(lambda: it.model() == fresh, 0.1, "I2: the model went back")
        it.fake.heal()
        await it.churn(20)
        await it.in_step()


@row
@pytest.mark.parametrize("streaming", [True, False])
async def test_w15_what_was_deleted_does_not_come_back_from_a_server_that_is_behind(seed: int, streaming: bool) -> None:
    async with trial(seed) as it:
        if not streaming:
            it.fake.on("watch", "", faults.no_watch_list(), times=None)
        it.fake.store.put("services", service("shop", "old", "10.96.99.1"))
        await it.in_step()
        past = it.fake.add_replica("past", lies=True)
        past.hold()
        it.fake.store.delete("services", "shop", "old")
        await it.in_step()
        it.fake.route = lambda request: "past"
        # Nothing newer is to be had by asking for it, so what there is has to do; but the second look tells.
        it.fake.say("services", expired())
        gone = ("NXDOMAIN", frozenset[str]())
        began = it.fake.requests[-1].time
        everything = lambda: [each for each in beginnings(it, began) if not asked_version(each)]  # noqa: E731
        while not everything():
            await always(lambda: it.ask(f"old.shop.{SUFFIX}", "A") == gone, 0.01, "I2: deleted, and there again")
        await always(lambda: it.ask(f"old.shop.{SUFFIX}", "A") == gone, 0.08, "I2: deleted, and there again")
        it.fake.heal()
        it.fake.cut()


@row
async def test_w15_a_server_that_shows_the_past_as_the_present_for_a_moment(seed: int) -> None:
    async with trial(seed) as it:
        liar = it.fake.add_replica("liar", lies=True)
        liar.hold()
        await it.churn(30)
        await it.in_step()
        fresh = it.model()
        it.fake.route = lambda request: "liar"
        it.fake.say("", expired())
        # The second look comes after `second_look` seconds; the lie has ended by then.
        await always(lambda: it.model() == fresh, FAST.second_look * 0.7, "I2: the model went back")
        it.fake.heal()
        it.fake.cut()
        await it.churn(20)
        await it.in_step()


@row
@pytest.mark.parametrize("new_uids", [True, False])
async def test_w16_a_backup_that_was_restored_is_taken_over_whole(seed: int, new_uids: bool) -> None:
    async with trial(seed, AUDITING) as it:
        await it.churn(10)
        kept = it.fake.store.number
        await it.churn(40)
        await it.in_step()
        it.may_go_back = True
        it.fake.store.restore(kept, new_uids)
        it.world.forget_places()
        it.fake.cut()
        await it.churn(5)
        await it.in_step(10)
        assert it.relists("set_back") >= 1


@row
async def test_w16_a_watch_that_waits_for_a_future_that_is_no_more_is_found_before_the_next_audit(seed: int) -> None:
    async with trial(seed) as it:
        await it.churn(10)
        kept = it.fake.store.number
        await it.churn(40)
        await it.in_step()
        it.may_go_back = True
        it.fake.store.restore(kept)
        it.world.forget_places()
        it.fake.cut()
        await it.in_step(10)
        assert it.relists("set_back") >= 1


@row
async def test_w16_an_interruption_alone_is_looked_into_once_and_lists_nothing(seed: int) -> None:
    async with trial(seed) as it:
        began = it.fake.requests[-1].time
        it.fake.cut()
        looks = lambda: [each for each in it.fake.asked("list", after=began) if each.partial]  # noqa: E731
        await eventually(lambda: len(looks()) == 3)
        await always(lambda: len(looks()) == 3, FAST.probe * 3)
        assert {each.parameters["limit"] for each in looks()} == {"1"}
        assert it.count("kdns_kubernetes_relists_total") == 0


@row
async def test_w16_a_backup_that_caught_up_with_the_numbers_seen_before(seed: int) -> None:
    # By the time that kdns looks, the counter has passed the place where it was.
    async with trial(seed, AUDITING) as it:
        await it.churn(10)
        kept = it.fake.store.number
        await it.churn(40)
        await it.in_step()
        seen = it.fake.store.number
        it.may_go_back = True
        it.fake.refuse()
        it.fake.store.restore(kept)
        it.world.forget_places()
        it.fake.store.tick(seen - kept)
        for _ in range(5):
            it.world.churn()
        it.fake.store.compact()
        await it.fake.accept()
        await it.in_step(10)


# W17 · what is never told


LOSABLE = {
    "services": [service("shop", "lost", "10.96.99.1"), service("shop", "lost", "10.96.99.2")],
    "endpointslices": [endpoint_slice("shop", "lost", "lost", [f"10.9.9.{number}"]) for number in (1, 2)],
    "namespaces": [namespace("lost"), namespace("lost", {"changed": "yes"})],
}


@row
@each_kind
@pytest.mark.parametrize("type", ["ADDED", "MODIFIED", "DELETED"])
async def test_w17_an_event_that_is_lost_is_found_by_an_audit(seed: int, resource: str, type: str) -> None:
    before, after = LOSABLE[resource]
    async with trial(seed, AUDITING) as it:
        store = it.fake.store
        if type != "ADDED":
            store.put(resource, before)
            await it.in_step()
        it.fake.tamper(resource, faults.lose_named("lost", type))
        if type == "DELETED":
            store.delete(resource, "" if resource == "namespaces" else "shop", "lost")
        else:
            store.put(resource, after)
        await it.churn(20, a_second=100)
        await eventually(lambda: it.count("kdns_kubernetes_drift_repaired_total"))
        await it.in_step()
        assert it.count("kdns_kubernetes_drift_repaired_total") == 1


@row
async def test_w17_what_was_lost_is_counted_once_and_only_that(seed: int) -> None:
    async with trial(seed, AUDITING) as it:
        it.fake.tamper("services", faults.lose())
        it.fake.store.put("services", service("shop", "lost", "10.96.99.1"))

        # Churn while the audit looks: what is merely late must not count as lost.
        async def until_found() -> None:
            while it.ask(f"lost.shop.{SUFFIX}", "A")[0] != "NOERROR":
                await it.churn(1, a_second=100)

        await until_found()
        await it.in_step(10)
        assert it.count("kdns_kubernetes_drift_repaired_total") == 1


@row
async def test_w17_what_an_audit_took_away_does_not_come_back_when_the_stream_is_late(seed: int) -> None:
    async with trial(seed, AUDITING) as it:
        store = it.fake.store
        store.put("services", service("shop", "old", "10.96.99.1"))
        await it.in_step()
        # Later than an audit and its second look, each.
        it.fake.tamper("services", faults.delayed(0.7))
        store.put("services", service("shop", "old", "10.96.99.2"))
        store.delete("services", "shop", "old")
        await eventually(lambda: it.ask(f"old.shop.{SUFFIX}", "A")[0] == "NXDOMAIN")
        await always(lambda: it.ask(f"old.shop.{SUFFIX}", "A")[0] == "NXDOMAIN", 1.2, "I2: deleted, and there again")
        it.fake.heal()


@row
async def test_w17_an_audit_repairs_the_slices_of_a_service_together(seed: int) -> None:
    # A rollout of which nothing was told: at no moment is there no endpoint.
    async with trial(seed, AUDITING) as it:
        store = it.fake.store
        names = [f"roll{number}" for number in range(12)]
        for name in names:
            store.put("services", service("shop", name))
            store.put("endpointslices", endpoint_slice("shop", f"{name}-a", name, ["10.9.9.1"]))
        await it.in_step()
        it.lasting += [(f"{name}.shop.{SUFFIX}", "A") for name in names]
        it.fake.tamper("endpointslices", faults.lose(count=4 * len(names)))
        for number, name in enumerate(names):
            store.put("endpointslices", endpoint_slice("shop", f"{name}-b", name, ["10.9.9.2"]))
            if number % 2:
                store.put("endpointslices", endpoint_slice("shop", f"{name}-a", name, [], ["10.9.9.1"]))
            else:
                store.delete("endpointslices", "shop", f"{name}-a")
        await it.in_step(10)


@row
async def test_w17_many_lost_events(seed: int) -> None:
    async with trial(seed, AUDITING) as it:
        it.fake.tamper("", faults.lose(nth=3, count=40))
        await it.churn(150)
        await it.in_step(10)


@row
async def test_w17_an_audit_of_a_healthy_watch_repairs_nothing(seed: int) -> None:
    async with trial(seed, AUDITING) as it:
        for _ in range(10):
            await it.churn(20, a_second=200)
        await eventually(lambda: len([each for each in it.fake.asked("list") if each.partial]) >= 3)
        await it.in_step()
        assert it.count("kdns_kubernetes_drift_repaired_total") == 0
