"""Objects and their orders: told twice or late, made again, moving, not ready, or malformed. Rows W18 to W21, W26."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from tests.faults import faults
from tests.faults.api import Event, expired
from tests.faults.patience import always, eventually
from tests.faults.rows import RESOURCES, each_kind
from tests.faults.store import endpoint_slice, external, service
from tests.faults.trial import AUDITING, row, trial
from tests.faults.world import SUFFIX

# What became of a change, and when


@row
async def test_the_time_from_a_change_to_its_answer_is_measured_for_every_kind_of_service(seed: int) -> None:
    now = 1_700_000_000.0
    managed, written = "endpointslice.kubernetes.io/managed-by", "endpoints.kubernetes.io/last-change-trigger-time"
    makers = {"with": "endpointslice-controller.k8s.io", "without": "endpointslicemirroring-controller.k8s.io"}
    async with trial(seed, clock=lambda: now) as it:

        def ago(seconds: float) -> str:
            return datetime.fromtimestamp(now - seconds, UTC).isoformat().replace("+00:00", "Z")

        def change(name: str, address: str, maker: str, began: str | None) -> None:
            part = endpoint_slice("shop", f"{name}-0", name, [address])
            part["metadata"]["labels"][managed] = maker
            part["metadata"]["annotations"] = {} if began is None else {written: began}
            it.fake.store.put("services", service("shop", name, "10.96.99.1" if name == "web2" else "None"))
            it.fake.store.put("endpointslices", part)

        change("web2", "10.9.9.1", makers["with"], ago(0.5))
        change("one", "10.9.9.2", makers["with"], ago(0.25))
        change("two", "10.9.9.3", makers["without"], ago(2.0))
        change("three", "10.9.9.4", "somebody", ago(4.0))
        # Who says nothing of when it began, or nothing that is a time, isn't measured.
        change("four", "10.9.9.5", makers["without"], None)
        change("five", "10.9.9.6", makers["with"], "yesterday")
        await it.in_step()
        metric = "coredns_kubernetes_dns_programming_duration_seconds"
        kinds = ("cluster_ip", "headless_with_selector", "headless_without_selector")
        assert [it.count(f"{metric}_count", service_kind=kind) for kind in kinds] == [1, 1, 2]
        assert [it.count(f"{metric}_sum", service_kind=kind) for kind in kinds] == [0.5, 0.25, 6.0]


# W18, W19, W20, W21 · orders of events


@row
async def test_w18_events_told_twice(seed: int) -> None:
    async with trial(seed) as it:
        it.fake.tamper("", faults.twice())
        await it.churn(50)
        await it.in_step()


@row
async def test_w18_old_events_told_again(seed: int) -> None:
    async with trial(seed, AUDITING) as it:
        it.fake.tamper("", faults.replayed(it.random.randint(1, 5)))
        await it.churn(50)
        await it.in_step(10)


@row
async def test_w18_what_was_deleted_does_not_come_back_with_an_old_event(seed: int) -> None:
    async with trial(seed, AUDITING) as it:
        old = it.fake.store.put("services", service("shop", "old", "10.96.99.1"))
        await it.in_step()
        it.fake.store.delete("services", "shop", "old")
        await it.in_step()
        await it.churn(3)
        it.fake.say("services", Event(it.random.choice(["ADDED", "MODIFIED"]), old))
        await always(lambda: it.ask(f"old.shop.{SUFFIX}", "A")[0] == "NXDOMAIN", 0.1)


@row
@each_kind
async def test_w18_one_kind_is_late(seed: int, resource: str) -> None:
    async with trial(seed) as it:
        it.fake.tamper(resource, faults.delayed(0.01))
        await it.churn(40, a_second=500)
        await it.in_step(10)


@row
@pytest.mark.parametrize("relisted", [False, True])
async def test_w19_deleted_and_made_again_while_nobody_looked(seed: int, relisted: bool) -> None:
    async with trial(seed) as it:
        store = it.fake.store
        store.put("services", service("shop", "again", "10.96.99.1"))
        store.put("endpointslices", endpoint_slice("shop", "again-0", "again", ["10.9.9.9"]))
        await it.in_step()
        it.fake.refuse()
        store.delete("services", "shop", "again")
        store.delete("endpointslices", "shop", "again-0")
        new = it.random.choice([service("shop", "again"), external("shop", "again", "new.example.com")])
        store.put("services", new)
        store.put("endpointslices", endpoint_slice("shop", "again-0", "again", ["10.9.9.10"]))
        if relisted:
            store.compact()
        await it.fake.accept()
        await it.in_step()
        _, answer = it.ask(f"again.shop.{SUFFIX}", "A")
        assert answer <= {"10.9.9.10", "new.example.com."}
        assert answer
        assert it.relists("expired") == (3 if relisted else 0)


@row
async def test_w20_addresses_that_move_between_slices_leave_no_gap(seed: int) -> None:
    async with trial(seed) as it:
        for step in range(60):
            it.world.move_in_big()
            if step == 30:
                it.fake.say("endpointslices", expired())
            await it.churn(1)
        await it.in_step()


@row
@pytest.mark.parametrize("streaming", [True, False])
async def test_w20_a_rollout_that_nobody_saw_leaves_no_gap_within_the_list(seed: int, streaming: bool) -> None:
    # The pods of the first slice are no longer ready, those of the last one are, and the list tells it in that order.
    async with trial(seed) as it:
        if not streaming:
            it.fake.on("watch", "", faults.no_watch_list(), times=None)
        store = it.fake.store
        store.put("services", service("shop", "roll"))
        store.put("endpointslices", endpoint_slice("shop", "a-roll", "roll", ["10.9.9.1"]))
        for number in range(600):
            store.put("endpointslices", endpoint_slice("shop", f"m{number}", f"m{number}", [f"10.8.{number // 250}.1"]))
        await it.in_step()
        it.lasting.append((f"roll.shop.{SUFFIX}", "A"))
        it.fake.refuse()
        store.put("endpointslices", endpoint_slice("shop", "z-roll", "roll", ["10.9.9.2"]))
        store.put("endpointslices", endpoint_slice("shop", "a-roll", "roll", [], ["10.9.9.1"]))
        store.compact()
        await it.fake.accept()
        await it.in_step()
        assert it.relists("expired") >= 1


@row
async def test_w20_a_slice_that_goes_to_another_service(seed: int) -> None:
    async with trial(seed) as it:
        store = it.fake.store
        for name in ("left", "right"):
            store.put("services", service("shop", name))
            store.put("endpointslices", endpoint_slice("shop", f"{name}-0", name, [f"10.9.{len(name)}.1"]))
        store.put("endpointslices", endpoint_slice("shop", "moving", "left", ["10.9.9.9"]))
        await it.in_step()
        assert "10.9.9.9" in it.ask(f"left.shop.{SUFFIX}", "A")[1]
        store.put("endpointslices", endpoint_slice("shop", "moving", "right", ["10.9.9.9"]))
        # Another slice has the address too, and loses it again.
        store.put("endpointslices", endpoint_slice("shop", "right-0", "right", ["10.9.9.9", "10.9.5.1"]))
        store.put("endpointslices", endpoint_slice("shop", "right-0", "right", ["10.9.5.1"]))
        await it.in_step()
        assert it.ask(f"left.shop.{SUFFIX}", "A")[1] == {"10.9.4.1"}
        assert it.ask(f"right.shop.{SUFFIX}", "A")[1] == {"10.9.5.1", "10.9.9.9"}


@row
async def test_w21_no_endpoint_is_ready_and_then_all_are(seed: int) -> None:
    async with trial(seed) as it:
        store = it.fake.store
        store.put("services", service("shop", "ill"))
        for _ in range(5):
            store.put("endpointslices", endpoint_slice("shop", "ill-0", "ill", [], ["10.9.9.1", "10.9.9.2"]))
            await it.in_step()
            rcode, answer = it.ask(f"ill.shop.{SUFFIX}", "A")
            assert (rcode in ("NOERROR", "NXDOMAIN"), answer) == (True, frozenset())
            if it.random.random() < 0.5:
                it.fake.cut()
            store.put("endpointslices", endpoint_slice("shop", "ill-0", "ill", ["10.9.9.1", "10.9.9.2"]))
            await it.in_step()
            assert it.ask(f"ill.shop.{SUFFIX}", "A") == ("NOERROR", frozenset(["10.9.9.1", "10.9.9.2"]))


# W26 · objects that nobody should have made


def nasties() -> dict[str, list[dict[str, object]]]:
    """Objects by resource; each has a name, and little else that is as it should be."""

    def of(name: str, **fields: object) -> dict[str, object]:
        return {"metadata": {"name": name, "namespace": "shop"}, **fields}

    labels = {"kubernetes.io/service-name": "db"}
    return {
        "services": [
            of("no-spec"),
            of("null-spec", spec=None),
            of("text-spec", spec="ClusterIP"),
            of("no-address", spec={"clusterIP": "999.1.1.1", "clusterIPs": ["999.1.1.1", ""], "ports": None}),
            of("null-ports", spec={"clusterIP": "10.96.98.1", "ports": [None]}),
            of("zero-port", spec={"clusterIP": "10.96.98.2", "ports": [{"port": 0}, {"port": 99999}, {"port": -1}]}),
            of("text-port", spec={"clusterIP": "10.96.98.3", "ports": [{"port": "http"}]}),
            of("no-target", spec={"type": "ExternalName", "externalName": "a" * 300}),
            of("odd-target", spec={"type": "ExternalName", "externalName": "..\u00fc.\x00"}),
            of("x" * 300, spec={"clusterIP": "10.96.98.4"}),
            of("under_score.and.dots", spec={"clusterIP": "10.96.98.5"}),
            of("null-labels", spec={"clusterIP": "10.96.98.6"}) | {"status": None},
        ],
        "endpointslices": [
            of("no-endpoints"),
            of("null-endpoints", endpoints=None, ports=None),
            of("null-endpoint", endpoints=[None]),
            {"metadata": {"name": "odd", "namespace": "shop", "labels": labels}, "endpoints": [{"addresses": None}]},
            {
                "metadata": {"name": "bad", "namespace": "shop", "labels": {"kubernetes.io/service-name": "bad"}},
                "addressType": "IPv4",
                "endpoints": [{"addresses": ["999.1.1.1", "10.9.9.8", "::1"], "hostname": "h" * 300}],
                "ports": [{"port": 0}, {"port": None, "name": None}],
            },
            {
                "metadata": {"name": "dots", "namespace": "shop", "labels": {"kubernetes.io/service-name": "bad"}},
                "addressType": "FQDN",
                "endpoints": [{"addresses": ["a.example.com"], "conditions": None}],
            },
        ],
        "namespaces": [{"metadata": {"name": "n" * 300}}, {"metadata": {"name": "odd name", "labels": None}}],
    }


@row
@pytest.mark.parametrize("way", ["watch", "list", "streaming list"])
async def test_w26_objects_that_are_wrong_cost_no_other_its_answer(seed: int, way: str) -> None:
    async with trial(seed) as it:
        if way == "list":
            it.fake.on("watch", "", faults.no_watch_list(), times=None)
        made = [(plural, each) for plural, found in nasties().items() for each in found]
        it.random.shuffle(made)
        for plural, each in made:
            if it.random.random() < 0.5:
                await it.churn(1)
            it.fake.store.put(plural, each)
        if way != "watch":
            for resource in RESOURCES:
                it.fake.say(resource, expired())
            it.fake.store.compact()
        await it.churn(20)
        await it.in_step()
        for _, each in made:
            rcode, _ = it.ask(f"{each['metadata']['name'][:60]}.shop.{SUFFIX}".replace("\x00", ""), "A")
            assert rcode != "SERVFAIL"
        assert it.count("kdns_kubernetes_objects_skipped_total") > 0


@row
@pytest.mark.parametrize("way", ["watch", "list", "streaming list"])
async def test_w26_without_metadata(seed: int, way: str) -> None:
    async with trial(seed, AUDITING) as it:
        if way == "list":
            it.fake.on("watch", "", faults.no_watch_list(), times=None)
        if way == "watch":
            for nothing in (b"{}", b'{"metadata":null}', b'{"metadata":{"name":null}}', b"null", b"[]", b'"text"'):
                it.fake.say("services", b'{"type":"ADDED","object":%s}\n' % nothing)
        else:
            it.fake.store.poison("services", ("shop", "poison"), b'{"metadata":null}')
            it.fake.say("services", expired())
            it.fake.store.compact()
            await eventually(lambda: it.count("kdns_kubernetes_objects_skipped_total"))
            # No key is known of it, so it can't be compared.
            it.fake.store.objects["services"].pop(("shop", "poison"))
        await it.churn(20)
        await it.in_step()


@row
@pytest.mark.parametrize("way", ["watch", "list", "streaming list"])
@pytest.mark.parametrize("readable", [True, False])
async def test_w26_an_object_that_nests_without_end_costs_no_list(seed: int, way: str, readable: bool) -> None:
    deep = b'{"a":[' * 20_000 + b"1" + b"]}" * 20_000
    async with trial(seed) as it:
        if way == "list":
            it.fake.on("watch", "", faults.no_watch_list(), times=None)
        number = b'"resourceVersion":"%d"' % (it.fake.store.number + 1)
        spec = b'"clusterIP":"10.96.99.1","ports":' + (b"null" if readable else deep)
        metadata = b'{"name":"deep","namespace":"shop",%s,"managedFields":%s}' % (number, deep)
        it.fake.store.poison("services", ("shop", "deep"), b'{"metadata":%s,"spec":{%s}}' % (metadata, spec))
        if way != "watch":
            it.fake.say("services", expired())
            it.fake.store.compact()
        await it.churn(20)
        await it.in_step()
        # Where DNS reads nothing of it, it is an object like others.
        answer = ("NOERROR", frozenset(["10.96.99.1"])) if readable else ("NXDOMAIN", frozenset[str]())
        assert it.ask(f"deep.shop.{SUFFIX}", "A") == answer
        assert bool(it.count("kdns_kubernetes_objects_skipped_total")) is not readable
        assert it.relists("malformed") == 0


@row
async def test_w26_ever_new_names_of_objects_that_cannot_be_read_are_forgotten_with_them(seed: int) -> None:
    async with trial(seed, AUDITING) as it:
        services = next(each for each in it.source.watches if each.resource.kind == "Service")
        for number in range(30):
            bad = {"metadata": {"name": f"bad{number}", "namespace": "shop"}, "spec": "broken"}
            it.fake.store.put("services", bad)
            if number % 3:
                it.fake.store.delete("services", "shop", f"bad{number}")
        await eventually(lambda: len(services.poisoned) == 10)
        it.fake.refuse()
        for number in range(0, 30, 6):
            it.fake.store.delete("services", "shop", f"bad{number}")
        it.fake.store.compact()
        await it.fake.accept()
        await eventually(lambda: len(services.poisoned) == 5)
        await it.in_step()


@row
async def test_w26_an_object_that_goes_bad_keeps_its_last_good_state(seed: int) -> None:
    async with trial(seed, AUDITING) as it:
        it.fake.store.put("services", service("shop", "turn", "10.96.99.1"))
        await it.in_step()
        it.fake.store.put("services", {"metadata": {"name": "turn", "namespace": "shop"}, "spec": "broken"})
        await it.churn(10)
        await eventually(lambda: it.count("kdns_kubernetes_objects_skipped_total") >= 1)
        assert it.ask(f"turn.shop.{SUFFIX}", "A") == ("NOERROR", frozenset(["10.96.99.1"]))
        it.fake.store.put("services", service("shop", "turn", "10.96.99.2"))
        await eventually(lambda: it.ask(f"turn.shop.{SUFFIX}", "A")[1] == {"10.96.99.2"})
        it.fake.store.put("services", {"metadata": {"name": "turn", "namespace": "shop"}, "spec": "broken"})
        it.fake.store.delete("services", "shop", "turn")
        await eventually(lambda: it.ask(f"turn.shop.{SUFFIX}", "A")[0] == "NXDOMAIN")


@row
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("end", ["gone", "good"])
async def test_w26_the_end_of_an_object_that_is_bad_is_found_by_an_audit(seed: int, known: bool, end: str) -> None:
    async with trial(seed, AUDITING) as it:
        store = it.fake.store
        if known:
            store.put("services", service("shop", "turn", "10.96.99.1"))
            await it.in_step()
        store.put("services", {"metadata": {"name": "turn", "namespace": "shop"}, "spec": "broken"})
        await eventually(lambda: it.count("kdns_kubernetes_objects_skipped_total") >= 1)
        it.fake.tamper("services", faults.lose())
        if end == "good":
            store.put("services", service("shop", "turn", "10.96.99.2"))
            await eventually(lambda: it.ask(f"turn.shop.{SUFFIX}", "A")[1] == {"10.96.99.2"})
        else:
            store.delete("services", "shop", "turn")
            await eventually(lambda: it.ask(f"turn.shop.{SUFFIX}", "A")[0] == "NXDOMAIN")


@row
async def test_w26_a_bad_version_that_is_told_late_changes_nothing(seed: int) -> None:
    async with trial(seed, AUDITING) as it:
        store = it.fake.store
        store.put("services", {"metadata": {"name": "turn", "namespace": "shop"}, "spec": "broken"})
        bad = store.objects["services"]["shop", "turn"]
        store.put("services", service("shop", "turn", "10.96.99.1"))
        await it.in_step()
        it.fake.say("services", Event("MODIFIED", bad))
        await eventually(lambda: it.count("kdns_kubernetes_objects_skipped_total") >= 2)
        audits = lambda: len([each for each in it.fake.asked("list", "services") if each.partial])  # noqa: E731
        before = audits()
        await eventually(lambda: audits() >= before + 3)
        await it.in_step()
        assert it.count("kdns_kubernetes_drift_repaired_total") == 0


@row
async def test_w26_an_object_that_was_bad_once_is_audited_like_others(seed: int) -> None:
    async with trial(seed, AUDITING) as it:
        it.fake.store.put("services", {"metadata": {"name": "turn", "namespace": "shop"}, "spec": "broken"})
        await eventually(lambda: it.count("kdns_kubernetes_objects_skipped_total") >= 1)
        it.fake.store.put("services", service("shop", "turn", "10.96.99.1"))
        await eventually(lambda: it.ask(f"turn.shop.{SUFFIX}", "A")[1] == {"10.96.99.1"})
        it.fake.tamper("services", faults.lose())
        it.fake.store.put("services", service("shop", "turn", "10.96.99.2"))
        await eventually(lambda: it.ask(f"turn.shop.{SUFFIX}", "A")[1] == {"10.96.99.2"})
