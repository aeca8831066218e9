"""The fake API server by itself, asked over HTTP: right where nothing is to go wrong, wrong exactly as it was told."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import pytest

from tests.faults import faults, statuses
from tests.faults.api import expired
from tests.faults.fake import Fake, api_server
from tests.faults.patience import eventually
from tests.faults.store import Store, endpoint_slice, label_matcher, namespace, pod, service
from tests.faults.wire import End

SERVICES = "/api/v1/services"
SLICES = "/apis/discovery.k8s.io/v1/endpointslices"
PARTIAL = {"Accept": "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"}
WATCH_LIST = {
    "watch": "true",
    "sendInitialEvents": "true",
    "allowWatchBookmarks": "true",
    "resourceVersionMatch": "NotOlderThan",
}
Json = dict[str, Any]


class Asking:
    """A plain HTTP client of the fake."""

    def __init__(self, fake: Fake, session: aiohttp.ClientSession) -> None:
        self.fake = fake
        self._session = session

    async def get(self, path: str, headers: dict[str, str] | None = None, **parameters: str) -> tuple[int, Json]:
        """Status and content of a reply."""
        async with self._session.get(self.fake.url + path, params=parameters, headers=headers) as reply:
            return reply.status, json.loads(await reply.read())

    @contextlib.asynccontextmanager
    async def watch(self, path: str, **parameters: str) -> AsyncIterator[Callable[[], Awaitable[Json]]]:
        """What gives the next event of a watch."""
        parameters = {"watch": "true", **parameters}
        async with self._session.get(self.fake.url + path, params=parameters) as reply:
            assert reply.status == 200

            async def following() -> Json:
                async with asyncio.timeout(5):
                    line = await reply.content.readline()
                if not line:
                    raise EOFError
                event: Json = json.loads(line)
                return event

            yield following

    async def events(self, path: str, **parameters: str) -> list[str]:
        """A watch to its end: types and names, or versions of bookmarks and codes of errors."""
        told = []
        async with self.watch(path, **parameters) as following:
            with contextlib.suppress(EOFError, aiohttp.ClientError):
                while True:
                    told.append(brief(await following()))
        return told


def brief(event: Json) -> str:
    """An event in a few words."""
    metadata = event["object"]["metadata"]
    end = " end" if "annotations" in metadata else ""
    said = metadata.get("name") or metadata.get("resourceVersion") or event["object"]["code"]
    return f"{event['type']} {said}{end}"


@contextlib.asynccontextmanager
async def asking(store: Store | None = None) -> AsyncIterator[Asking]:
    async with api_server(store or shop()) as fake, aiohttp.ClientSession() as session:
        yield Asking(fake, session)


def shop() -> Store:
    """A namespace, three services (versions 1002 to 1004) and a slice (1005)."""
    store = Store()
    store.put("namespaces", namespace("shop"))
    for number, name in enumerate(("cart", "mail", "web"), start=1):
        store.put("services", service("shop", name, f"10.96.0.{number}"))
    store.put("endpointslices", endpoint_slice("shop", "web-1", "web", ["10.1.0.1"]))
    return store


def run(test: Callable[[Asking], Awaitable[None]], store: Store | None = None) -> None:
    async def whole() -> None:
        async with asking(store) as ask, asyncio.timeout(20):
            await test(ask)

    asyncio.run(whole())


def names(page: Json) -> list[str]:
    return [item["metadata"]["name"] for item in page["items"]]


# Lists


def test_a_list_has_its_items_without_kind_and_the_version_of_the_whole() -> None:
    async def test(ask: Asking) -> None:
        status, page = await ask.get(SERVICES)
        assert status == 200
        assert (page["kind"], page["apiVersion"]) == ("ServiceList", "v1")
        assert page["metadata"] == {"resourceVersion": "1005"}
        assert names(page) == ["cart", "mail", "web"]
        assert not {"kind", "apiVersion"} & page["items"][0].keys()
        assert page["items"][0]["metadata"]["resourceVersion"] == "1002"
        _, slices = await ask.get(SLICES)
        assert (slices["kind"], slices["apiVersion"]) == ("EndpointSliceList", "discovery.k8s.io/v1")
        assert [told.version.key[1] for told in ask.fake.told] == ["cart", "mail", "web", "web-1"]

    run(test)


def test_pages_show_one_moment_though_the_objects_change() -> None:
    async def test(ask: Asking) -> None:
        _, first = await ask.get(SERVICES, limit="2")
        assert names(first) == ["cart", "mail"]
        assert first["metadata"]["remainingItemCount"] == 1
        ask.fake.store.delete("services", "shop", "web")
        ask.fake.store.put("services", service("shop", "wiki", "10.96.0.9"))
        _, second = await ask.get(SERVICES, **{"limit": "2", "continue": first["metadata"]["continue"]})
        assert names(second) == ["web"]
        assert second["metadata"] == {"resourceVersion": "1005"}

    run(test)


def test_a_page_of_a_compacted_moment_is_410_with_a_token_to_go_on() -> None:
    async def test(ask: Asking) -> None:
        _, first = await ask.get(SERVICES, limit="2")
        ask.fake.store.put("services", service("shop", "wiki", "10.96.0.9"))
        ask.fake.store.compact()
        status, body = await ask.get(SERVICES, **{"continue": first["metadata"]["continue"]})
        assert (status, body["reason"]) == (410, "Expired")
        status, rest = await ask.get(SERVICES, **{"continue": body["metadata"]["continue"]})
        assert (status, names(rest)) == (200, ["web", "wiki"])

    run(test)


@pytest.mark.parametrize(
    ("parameters", "status", "reason"),
    [
        ({"resourceVersion": "9999"}, 504, "Timeout"),
        ({"resourceVersion": "9999", "resourceVersionMatch": "NotOlderThan"}, 504, "Timeout"),
        ({"resourceVersion": "1001", "resourceVersionMatch": "Exact"}, 410, "Expired"),
        ({"resourceVersionMatch": "NotOlderThan"}, 422, "Invalid"),
        ({"sendInitialEvents": "true"}, 422, "Invalid"),
        ({"continue": "rubbish"}, 400, "BadRequest"),
        ({"fieldSelector": "spec.type=ClusterIP"}, 400, "BadRequest"),
        ({"resourceVersion": "x"}, 500, ""),
    ],
)
def test_a_list_that_cannot_be(parameters: dict[str, str], status: int, reason: str) -> None:
    async def test(ask: Asking) -> None:
        ask.fake.store.compact()
        told, body = await ask.get(SERVICES, **parameters)
        assert (told, body["kind"], body["status"], body.get("reason", "")) == (status, "Status", "Failure", reason)
        if status == 504:
            assert body["details"]["causes"][0]["reason"] == "ResourceVersionTooLarge"

    run(test)


def test_a_list_may_be_of_an_earlier_moment() -> None:
    async def test(ask: Asking) -> None:
        _, page = await ask.get(SERVICES, resourceVersion="1003", resourceVersionMatch="Exact")
        assert (names(page), page["metadata"]) == (["cart", "mail"], {"resourceVersion": "1003"})

    run(test)


def test_namespaces_selectors_and_single_objects() -> None:
    async def test(ask: Asking) -> None:
        ask.fake.store.put("services", service("other", "web", "10.96.0.7", labels={"tier": "front"}))
        assert names((await ask.get("/api/v1/namespaces/other/services"))[1]) == ["web"]
        assert len((await ask.get(SERVICES, fieldSelector="metadata.name=web"))[1]["items"]) == 2
        assert names((await ask.get(SERVICES, labelSelector="tier in (front, back)"))[1]) == ["web"]
        status, one = await ask.get("/api/v1/namespaces/shop/services/mail")
        assert (status, one["kind"], one["metadata"]["name"]) == (200, "Service", "mail")
        assert (await ask.get("/api/v1/namespaces/shop"))[1]["kind"] == "Namespace"
        status, body = await ask.get("/api/v1/namespaces/shop/services/none")
        assert (status, body["message"]) == (404, 'services "none" not found')
        status, body = await ask.get("/api/v1/namespaces/shop/pods/none")
        assert body["details"] == {"name": "none", "kind": "pods"}

    run(test)


def test_metadata_alone() -> None:
    async def test(ask: Asking) -> None:
        _, page = await ask.get(SERVICES, PARTIAL, limit="1")
        assert (page["kind"], page["apiVersion"]) == ("PartialObjectMetadataList", "meta.k8s.io/v1")
        assert page["items"][0].keys() == {"kind", "apiVersion", "metadata"}
        assert page["items"][0]["metadata"]["resourceVersion"] == "1002"

    run(test)


@pytest.mark.parametrize(
    ("selector", "labels", "fits"),
    [
        ("", {}, True),
        ("a=b", {"a": "b"}, True),
        ("a==b,c!=d", {"a": "b"}, True),
        ("a=b,c!=d", {"a": "b", "c": "d"}, False),
        ("a", {"a": ""}, True),
        ("!a", {"a": ""}, False),
        ("a in (b, c),d notin (e)", {"a": "c"}, True),
        ("a notin (b)", {"a": "b"}, False),
        ("app.kubernetes.io/name=web", {"app.kubernetes.io/name": "web"}, True),
    ],
)
def test_label_selectors(selector: str, labels: dict[str, str], fits: bool) -> None:
    store = Store()
    version = store.put("services", service("shop", "web", labels=labels))
    assert label_matcher(selector)(version) is fits


# Watches


def test_a_watch_goes_on_from_a_version() -> None:
    async def test(ask: Asking) -> None:
        store = ask.fake.store
        store.put("services", service("shop", "web", "10.96.0.4"))
        async with ask.watch(SERVICES, resourceVersion="1003") as following:
            assert brief(await following()) == "ADDED web"
            assert brief(await following()) == "MODIFIED web"
            store.put("pods", pod("shop", "web-1", "10.1.0.1"))
            store.delete("services", "shop", "cart")
            gone = await following()
            assert brief(gone) == "DELETED cart"
            # The last state that it had, at the version of its end.
            assert gone["object"]["metadata"]["resourceVersion"] == "1008"
            assert gone["object"]["spec"]["clusterIP"] == "10.96.0.1"
            assert gone["object"]["kind"] == "Service"

    run(test)


def test_a_watch_of_labels_deletes_what_does_not_match_any_more() -> None:
    async def test(ask: Asking) -> None:
        async with ask.watch(SERVICES, resourceVersion="1005", labelSelector="app=web") as following:
            ask.fake.store.put("services", service("shop", "web", "10.96.0.3", labels={"app": "other"}))
            ask.fake.store.put("services", service("shop", "web", "10.96.0.3"))
            assert brief(await following()) == "DELETED web"
            assert brief(await following()) == "ADDED web"

    run(test)


def test_a_watch_of_a_compacted_version_says_410_in_its_stream() -> None:
    async def test(ask: Asking) -> None:
        ask.fake.store.tick(5)
        ask.fake.store.compact()
        assert await ask.events(SERVICES, resourceVersion="1004") == ["ERROR 410"]
        assert await ask.events(SERVICES, resourceVersion="1010", timeoutSeconds="0.01") == []

    run(test)


def test_a_watch_of_a_version_to_come_is_silent_until_then() -> None:
    async def test(ask: Asking) -> None:
        async with ask.watch(SERVICES, resourceVersion="1006", allowWatchBookmarks="true") as following:
            ask.fake.store.put("services", service("shop", "cart", "10.96.0.7"))
            ask.fake.store.put("services", service("shop", "cart", "10.96.0.8"))
            event = await following()
            assert event["object"]["spec"]["clusterIP"] == "10.96.0.8"

    run(test)


def test_a_watch_list_tells_all_there_is_then_says_so_then_goes_on() -> None:
    async def test(ask: Asking) -> None:
        async with ask.watch(SERVICES, **WATCH_LIST) as following:
            assert [brief(await following()) for _ in range(4)] == [
                "ADDED cart",
                "ADDED mail",
                "ADDED web",
                "BOOKMARK 1005 end",
            ]
            ask.fake.store.put("services", service("shop", "wiki", "10.96.0.9"))
            assert brief(await following()) == "ADDED wiki"

    run(test)


@pytest.mark.parametrize(
    ("parameters", "status"),
    [
        ({"watch": "true", "sendInitialEvents": "true"}, 422),
        ({"watch": "true", "resourceVersion": "1", "resourceVersionMatch": "NotOlderThan"}, 422),
    ],
)
def test_a_watch_that_cannot_be(parameters: dict[str, str], status: int) -> None:
    async def test(ask: Asking) -> None:
        assert (await ask.get(SERVICES, **parameters))[0] == status

    run(test)


def test_a_watch_list_of_a_version_to_come_is_504_in_its_stream() -> None:
    async def test(ask: Asking) -> None:
        assert await ask.events(SERVICES, **WATCH_LIST, resourceVersion="9999") == ["ERROR 504"]

    run(test)


def test_bookmarks_come_when_idle_and_before_the_end() -> None:
    async def test(ask: Asking) -> None:
        ask.fake.bookmark_seconds = 0.05
        told = await ask.events(SLICES, resourceVersion="1005", allowWatchBookmarks="true", timeoutSeconds="0.12")
        assert set(told) == {"BOOKMARK 1005"}
        assert len(told) >= 2
        assert await ask.events(SLICES, resourceVersion="1005", timeoutSeconds="0.12") == []

    run(test)


def test_versions_need_not_be_numbers() -> None:
    async def test(ask: Asking) -> None:
        ask.fake.store.put("services", service("shop", "web", "10.96.0.4"))
        assert (await ask.get(SERVICES))[1]["metadata"]["resourceVersion"] == "v1001"
        async with ask.watch(SERVICES, resourceVersion="v1001") as following:
            ask.fake.store.delete("services", "shop", "web")
            assert (await following())["object"]["metadata"]["resourceVersion"] == "v1002"

    run(test, Store(spell=lambda number: f"v{number}", unspell=lambda text: int(text[1:])))


# Who may


def test_tokens_and_rights_as_the_real_server_refuses_them() -> None:
    async def test(ask: Asking) -> None:
        ask.fake.tokens = {"good"}
        assert await ask.get(SERVICES) == (401, statuses.unauthorized())
        good = {"Authorization": "Bearer good"}
        assert (await ask.get(SERVICES, good))[0] == 200
        ask.fake.forbid("list", "endpointslices")
        status, body = await ask.get(SLICES, good)
        assert status == 403
        assert body["message"] == (
            'endpointslices.discovery.k8s.io is forbidden: User "system:serviceaccount:kube-system:coredns" cannot '
            'list resource "endpointslices" in API group "discovery.k8s.io" at the cluster scope'
        )
        assert body["details"] == {"group": "discovery.k8s.io", "kind": "endpointslices"}
        ask.fake.allow("list", "endpointslices")
        assert (await ask.get(SLICES, good))[0] == 200

    run(test)


# What goes wrong


def test_a_fault_meets_the_requests_it_is_meant_for_and_no_more() -> None:
    async def test(ask: Asking) -> None:
        rule = ask.fake.on("list", "services", faults.status(429, retry_after=2), times=2)
        assert (await ask.get(SLICES))[0] == 200
        assert [(await ask.get(SERVICES))[0] for _ in range(3)] == [429, 429, 200]
        assert rule.met == 2
        assert [each.verb for each in ask.fake.asked(resource="services")] == ["list"] * 3

    run(test)


def test_streams_that_end_badly() -> None:
    async def test(ask: Asking) -> None:
        fake = ask.fake
        fake.on("watch", "", faults.gone_after(2))
        assert await ask.events(SERVICES, **WATCH_LIST) == ["ADDED cart", "ADDED mail", "ERROR 410"]
        fake.on("watch", "", faults.ends_after(0))
        assert await ask.events(SERVICES, **WATCH_LIST) == []
        for how in (End.FIN, End.RESET):
            fake.on("watch", "", faults.ends_after(1, how))
            assert await ask.events(SERVICES, **WATCH_LIST) == ["ADDED cart"]
            fake.on("watch", "", faults.torn_after(1, how))
            assert await ask.events(SERVICES, **WATCH_LIST) == ["ADDED cart"]

    run(test)


def test_bookmarks_that_are_wrong() -> None:
    async def test(ask: Asking) -> None:
        for fault, end in [
            (faults.without_end_bookmark, []),
            (faults.end_bookmark_twice, ["BOOKMARK 1005 end", "BOOKMARK 1005 end"]),
            (faults.unmarked_end_bookmark, ["BOOKMARK 1005"]),
        ]:
            ask.fake.on("watch", "", fault)
            told = await ask.events(SERVICES, **WATCH_LIST, timeoutSeconds="0.05")
            assert told[3:-1] == end, told

    run(test)


@pytest.mark.parametrize("size", [1, 2, 7, 4096])
def test_bytes_cut_otherwise_are_the_same_bytes(size: int) -> None:
    async def test(ask: Asking) -> None:
        ask.fake.store.put("services", service("shop", "zoo", "10.96.0.9", labels={"animal": "Käfer 🐞"}))
        _, whole = await ask.get(SERVICES)
        ask.fake.on("", "services", faults.recut(size), times=None)
        assert await ask.get(SERVICES) == (200, whole)
        async with ask.watch(SERVICES, resourceVersion="1005") as following:
            assert (await following())["object"]["metadata"]["labels"] == {"animal": "Käfer 🐞"}

    run(test)


def test_joined_events_and_compressed_lists() -> None:
    async def test(ask: Asking) -> None:
        _, whole = await ask.get(SERVICES)
        ask.fake.on("watch", "", faults.joined(2))
        async with ask.watch(SERVICES, **WATCH_LIST, timeoutSeconds="0.05") as following:
            assert [brief(await following()) for _ in range(2)] == ["ADDED cart", "ADDED mail"]
        ask.fake.on("list", "", faults.gzipped())
        assert await ask.get(SERVICES) == (200, whole)
        ask.fake.on("list", "", faults.gzipped(declared=False))
        with pytest.raises(ValueError, match="decode"):
            await ask.get(SERVICES)
        ask.fake.on("list", "", faults.cut_at(0.9))
        with pytest.raises(aiohttp.ClientError):
            await ask.get(SERVICES)

    run(test)


def test_changes_that_are_lost_told_twice_or_again() -> None:
    async def test(ask: Asking) -> None:
        ask.fake.tamper("services", faults.lose(nth=2))
        ask.fake.tamper("services", faults.twice())
        async with ask.watch(SERVICES, resourceVersion="1005") as following:
            for name in ("one", "two", "three"):
                ask.fake.store.put("services", service("shop", name, "10.96.0.9"))
            told = [brief(await following()) for _ in range(4)]
        assert told == ["ADDED one", "ADDED one", "ADDED three", "ADDED three"]

    run(test)


def test_a_running_watch_is_told_what_a_test_wants_it_to_hear() -> None:
    async def test(ask: Asking) -> None:
        async with ask.watch(SERVICES, resourceVersion="1005") as following:
            assert ask.fake.say("services", b"rubbish\n") == 1
            with pytest.raises(json.JSONDecodeError):
                await following()
            ask.fake.say("", expired())
            assert brief(await following()) == "ERROR 410"
            with pytest.raises(EOFError):
                await following()
        await eventually(lambda: not ask.fake.watches)

    run(test)


def test_a_server_that_is_away_or_stopped() -> None:
    async def test(ask: Asking) -> None:
        fake = ask.fake
        fake.refuse()
        with pytest.raises(aiohttp.ClientError):
            await ask.get(SERVICES)
        await fake.accept()
        assert (await ask.get(SERVICES))[0] == 200
        async with ask.watch(SERVICES, resourceVersion="1005") as following:
            fake.stall()
            fake.store.put("services", service("shop", "wiki", "10.96.0.9"))
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(ask.get(SERVICES), 0.1)
            event = asyncio.ensure_future(following())
            await asyncio.sleep(0.05)
            assert not event.done()
            fake.go_on()
            assert brief(await event) == "ADDED wiki"

    run(test)


def test_a_replica_that_is_behind() -> None:
    async def test(ask: Asking) -> None:
        fake = ask.fake
        behind = fake.add_replica("behind")
        behind.hold()
        fake.route = lambda request: "behind"
        fake.store.put("services", service("shop", "wiki", "10.96.0.9"))
        # Only what must be the newest comes from etcd.
        assert "wiki" in names((await ask.get(SERVICES))[1])
        assert "wiki" not in names((await ask.get(SERVICES, resourceVersion="0"))[1])
        assert (await ask.get(SERVICES, resourceVersion="1006"))[0] == 504
        async with ask.watch(SERVICES, **WATCH_LIST) as following:
            assert [brief(await following()) for _ in range(3)] == ["ADDED cart", "ADDED mail", "ADDED web"]
            behind.go_on()
            assert [brief(await following()) for _ in range(2)] == ["ADDED wiki", "BOOKMARK 1006 end"]
        liar = fake.add_replica("liar", lies=True)
        liar.hold(1003)
        fake.route = lambda request: "liar"
        assert names((await ask.get(SERVICES))[1]) == ["cart", "mail"]

    run(test)


def test_a_store_from_a_backup_goes_back() -> None:
    async def test(ask: Asking) -> None:
        store = ask.fake.store
        before = store.objects["services"]["shop", "web"].uid
        store.put("services", service("shop", "wiki", "10.96.0.9"))
        store.delete("services", "shop", "cart")
        store.restore(1005)
        _, page = await ask.get(SERVICES)
        assert (names(page), page["metadata"]["resourceVersion"]) == (["cart", "mail", "web"], "1005")
        assert page["items"][2]["metadata"]["uid"] != before
        store.put("services", service("shop", "new", "10.96.0.9"))
        assert store.number == 1006

    run(test)


def test_a_mistake_in_a_fault_is_told_at_the_end() -> None:
    def wrong(request: object, reply: object) -> Any:
        raise KeyError("a fault of the fault")

    async def whole() -> None:
        async with asking() as ask:
            ask.fake.on("list", "", wrong)
            with contextlib.suppress(aiohttp.ClientError):
                await ask.get(SERVICES)

    with pytest.raises(ExceptionGroup, match="fake API server"):
        asyncio.run(whole())
