"""Servers that refuse, are away, or are no API servers at all. Rows W11, W24 and W27."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from itertools import pairwise
from random import Random

import pytest

from kdns.kubernetes.api import ApiSource, Wanted
from kdns.kubernetes.client import Client
from kdns.kubernetes.credentials import at_endpoint
from kdns.kubernetes.objects import Event
from kdns.metrics import Metrics
from tests.faults import faults
from tests.faults.api import expired
from tests.faults.fake import HOST, api_server
from tests.faults.patience import always, eventually
from tests.faults.rows import RESOURCES, beginnings, begins
from tests.faults.trial import FAST, row, trial
from tests.faults.wire import Request
from tests.faults.world import World

# W11 · refusals


REFUSALS = {
    "429": faults.status(429, retry_after=1, reason="TooManyRequests"),
    "429 without a time": faults.status(429),
    "500": faults.status(500, reason="InternalError", message="etcdserver: request timed out"),
    "503": faults.status(503, reason="ServiceUnavailable"),
    "504": faults.status(504, reason="Timeout"),
    "408": faults.status(408),
    "rubbish for a time": faults.status(429, retry_after=float("nan")),
}


@row
@pytest.mark.parametrize("refusal", REFUSALS)
async def test_w11_a_watch_that_is_refused_waits_and_resumes(seed: int, refusal: str) -> None:
    async with trial(seed) as it:
        lists = len(beginnings(it))
        rule = it.fake.on("watch", "services", REFUSALS[refusal], times=2)
        it.fake.cut()
        await it.churn(20)
        await eventually(lambda: rule.met == 2, 6)
        await it.in_step()
        assert len(beginnings(it)) == lists
        gaps = pauses(it.fake.asked("watch", "services")[1:])
        assert min(gaps) >= (1.0 if refusal == "429" else FAST.first_pause * 0.9)


@row
@pytest.mark.parametrize("refusal", ["500", "503", "429 without a time"])
async def test_w11_a_list_that_is_refused_is_asked_for_again(seed: int, refusal: str) -> None:
    async with trial(seed) as it:
        rule = it.fake.on("", "", REFUSALS[refusal], times=9, where=begins)
        for resource in RESOURCES:
            it.fake.say(resource, expired())
        it.fake.store.compact()
        await it.churn(20)
        await it.in_step()
        assert rule.met == 9
        requests, labels = "coredns_kubernetes_rest_client_requests_total", {"method": "GET", "host": it.fake.url[7:]}
        assert it.count(requests, code=refusal[:3], **labels) == 9
        assert it.count(requests, code="200", **labels) >= 2 * len(RESOURCES)
        timed = it.count("coredns_kubernetes_rest_client_request_duration_seconds_count", verb="GET")
        assert timed == it.count(requests)


@row
async def test_w11_a_server_that_refuses_connections_is_tried_ever_less_often(seed: int) -> None:
    async with trial(seed) as it:
        it.fake.refuse()
        await it.churn(30, a_second=50)
        it.look_at_all()
        await always(lambda: not it.source.connected, 0.5)
        assert it.count("coredns_kubernetes_rest_client_requests_total", code="<error>") > 0
        await it.fake.accept()
        began = it.fake.requests[-1].time
        await it.in_step()
        assert beginnings(it, began) == []


@row
async def test_w11_an_outage_is_told_once_for_all_that_it_meets(seed: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "kdns.plugin.kubernetes")
    kinds = "(namespaces|services|endpointslices)"
    async with trial(seed) as it:
        it.fake.refuse()
        await always(lambda: not it.source.connected or it.fake.watches, 2.5)
        await it.fake.accept()
        await eventually(lambda: "watched again" in caplog.text, 10)
        told = [record.getMessage() for record in caplog.records]
        assert [re.sub(f"{kinds}, {kinds}, {kinds}", "all", each) for each in told] == [
            f"all: not reached: {HOST}:{it.fake.port}: Connection refused",
            "all: watched again",
        ]
        # Each has failed, and is counted by itself.
        for kind in ("Namespace", "Service", "EndpointSlice"):
            assert it.count("kdns_kubernetes_failures_total", kind=kind) >= 2


@row
async def test_an_error_of_ours_is_told_ever_less_often_and_ends_nothing(
    seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(events: Sequence[Event], live: bool) -> None:
        raise RuntimeError("whatever is told")

    async with api_server() as fake:
        World(fake.store, Random(seed))
        source = ApiSource(Client(at_endpoint(fake.url)), Wanted(), fail, Metrics(), FAST, Random(seed))
        running = asyncio.create_task(source.run())
        await asyncio.sleep(2.0)
        assert not running.done()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    # Of each of three watches, after 0.02, 0.04, 0.08, 0.16 and then 0.3 s at least.
    assert 3 * 4 <= len([each for each in caplog.records if "an error of kdns" in each.message]) <= 3 * 12


# W24 · clocks


@row
async def test_w24_a_clock_that_jumps_by_hours(seed: int) -> None:
    offset = 0.0

    def clock() -> float:
        return 1_700_000_000.0 + offset

    async with trial(seed, clock=clock) as it:
        for jump in (3600.0, -7200.0, 86400.0):
            it.fake.refuse()
            offset += jump
            await it.churn(10, a_second=100)
            it.look_at_all()
            await it.fake.accept()
            await it.in_step(3)


# W27 · replies that are no API's


NO_API = {
    "a proxy's page": faults.html(502),
    "a proxy's page with 200": faults.html(200),
    "protobuf": faults.protobuf(),
    "nothing": faults.empty(),
    "gzip undeclared": faults.gzipped(declared=False),
    "404": faults.status(404, message="the server could not find the requested resource"),
}


@row
@pytest.mark.parametrize("reply", NO_API)
async def test_w27_replies_that_are_no_apis_are_failures(seed: int, reply: str) -> None:
    async with trial(seed) as it:
        if seed % 2:
            it.fake.on("watch", "", faults.no_watch_list(), times=None)
        rule = it.fake.on("", "", NO_API[reply], times=12)
        for resource in RESOURCES:
            it.fake.say(resource, expired())
        it.fake.store.compact()
        await eventually(lambda: rule.met == 12)
        await it.churn(20)
        await it.in_step()


@row
async def test_w27_nobody_whom_a_redirect_names_is_asked(seed: int) -> None:
    async with api_server() as other, trial(seed) as it:
        rule = it.fake.on("", "", faults.redirect(other.url, (301, 302, 307, 308)[seed % 4]), times=12)
        for resource in RESOURCES:
            it.fake.say(resource, expired())
        it.fake.store.compact()
        await eventually(lambda: rule.met == 12)
        await it.churn(20)
        await it.in_step()
        assert other.requests == []


@row
async def test_w27_gzip_that_says_so_is_read(seed: int) -> None:
    async with trial(seed) as it:
        it.fake.on("watch", "", faults.no_watch_list(), times=None)
        it.fake.on("list", "", faults.gzipped(), times=3)
        for resource in RESOURCES:
            it.fake.say(resource, expired())
        it.fake.store.compact()
        await it.churn(20)
        await it.in_step()


def pauses(requests: list[Request]) -> list[float]:
    return [after.time - before.time for before, after in pairwise(requests)]
