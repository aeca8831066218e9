"""A start while the API can't be reached, with and without the last known state on disk (W25), as clients see it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random

import dns.asyncquery
import dns.edns
import dns.flags
import dns.message
import dns.rcode
import pytest

from kdns import corefile
from kdns.app import App, build
from kdns.chain import Process
from kdns.metrics import Metrics
from kdns.plugins.kubernetes import Kubernetes
from tests.faults import faults
from tests.faults.fake import HOST, Fake, api_server
from tests.faults.patience import eventually
from tests.faults.store import external, service
from tests.faults.trial import row
from tests.faults.world import DB, FOREVER, OUT, SUFFIX, WEB, World
from tests.started import free_port
from tests.upstream.fake import Fake as Upstream
from tests.upstream.fake import says, upstream

OUTSIDE = "www.example.org."
# What is found by the default pauses of a source that starts: a second or two after the server is there.
SECONDS = 6.0


class Server:
    """kdns that listens, with an API server and an upstream behind it."""

    def __init__(self, fake: Fake, behind: Upstream, options: str) -> None:
        self.port = free_port()
        text = (
            f".:{self.port} {{\n bind {HOST}\n cache 30\n kubernetes cluster.local in-addr.arpa {{\n"
            f"  endpoint {fake.url}\n  {options}\n }}\n forward . {HOST}:{behind.upstream.port}\n}}\n"
        )
        self.text = text
        configuration = build(corefile.parse(text, "Corefile"), Process(Metrics()))
        self.plugin = next(each for each in configuration.plugins if isinstance(each, Kubernetes))
        self.app = App(configuration)
        self.metrics = configuration.process.metrics

    async def ask(self, name: str, rtype: str = "A") -> dns.message.Message:
        query = dns.message.make_query(name, rtype, use_edns=0, payload=1232)
        return await dns.asyncquery.udp(query, HOST, timeout=2.0, port=self.port)

    async def rcode(self, name: str, rtype: str = "A") -> str:
        return dns.rcode.to_text((await self.ask(name, rtype)).rcode())

    def value(self, name: str) -> float | None:
        return self.metrics.registry.get_sample_value(name)


@contextlib.asynccontextmanager
async def serving(fake: Fake, behind: Upstream, options: str = "startup_timeout 200ms") -> AsyncIterator[Server]:
    server = Server(fake, behind, options)
    await server.app.start()
    try:
        yield server
    finally:
        await server.app.stop()


@contextlib.asynccontextmanager
async def around(seed: int) -> AsyncIterator[tuple[Fake, World, Upstream]]:
    """An API server that has something to tell, and an upstream that answers."""
    async with api_server() as fake, upstream(says(b"\x0a\x00\x00\x01"), tcp=says(b"\x0a\x00\x00\x01")) as behind:
        yield fake, World(fake.store, Random(seed)), behind


def errors(reply: dns.message.Message) -> list[int]:
    """The codes of a reply's extended errors."""
    return [int(each.code) for each in reply.options if isinstance(each, dns.edns.EDEOption)]


async def is_right(server: Server, world: World) -> None:
    """Every name that exists for ever has an answer that was right at some time."""
    for name, rtype in FOREVER:
        reply = await server.ask(name, rtype)
        found = frozenset(rdata.to_text() for rrset in reply.answer for rdata in rrset)
        assert found, f"I4: {name} {rtype}: {reply}"
        # The upstream has something to add to what an alias points to.
        assert name == OUT or world.is_right(name, found), f"I3: {name} {rtype} was never {found}"


@row
@pytest.mark.parametrize("away", ["refuses", "stalls", "503"])
async def test_w25_names_of_the_cluster_fail_and_others_are_forwarded_until_the_api_was_read(
    seed: int, away: str
) -> None:
    async with around(seed) as (fake, world, behind):
        if away == "refuses":
            fake.refuse()
        elif away == "stalls":
            fake.stall()
        else:
            fake.on("", "", faults.status(503), times=None)
        began = time.monotonic()
        async with serving(fake, behind) as server:
            assert time.monotonic() - began < 1.5
            for name in (WEB, DB, f"no.such.{SUFFIX}"):
                reply = await server.ask(name)
                assert (dns.rcode.to_text(reply.rcode()), errors(reply)) == ("SERVFAIL", [14])
            assert await server.rcode("1.0.96.10.in-addr.arpa.", "PTR") == "SERVFAIL"
            assert await server.rcode(OUTSIDE) == "NOERROR"
            assert not server.plugin.ready()
            assert "services" in server.plugin.missing()
            fake.heal()
            await fake.accept()
            seen = set()
            while (rcode := await server.rcode(WEB)) != "NOERROR":
                seen.add(rcode)
                assert time.monotonic() - began < 15
                await asyncio.sleep(0.01)
            assert seen <= {"SERVFAIL"}
            assert server.plugin.ready()
            await is_right(server, world)
            assert await server.rcode(f"no.such.{SUFFIX}") == "NXDOMAIN"


async def write_snapshot(fake: Fake, behind: Upstream, file: Path) -> None:
    """Let a kdns that reads the API leave its state behind."""
    async with serving(fake, behind, f"snapshot {file} 1s") as server:
        await eventually(server.plugin.ready)
        await eventually(file.exists)


@row
async def test_w25_a_snapshot_is_served_at_once_and_marked_as_old(seed: int, tmp_path: Path) -> None:
    file = tmp_path / "state"
    async with around(seed) as (fake, world, behind):
        await write_snapshot(fake, behind, file)
        fake.refuse()
        began = time.monotonic()
        async with serving(fake, behind, f"snapshot {file} 1s\n ttl 30") as server:
            assert time.monotonic() - began < 1.0
            await is_right(server, world)
            reply = await server.ask(WEB)
            assert errors(reply) == [3]
            assert {rrset.ttl for rrset in reply.answer} == {5}
            assert server.value("kdns_kubernetes_stale") == 1
            assert server.plugin.ready()
            assert await server.rcode(OUTSIDE) == "NOERROR"
            # Meanwhile the world goes on.
            for _ in range(30):
                world.churn()
            fake.store.put("services", service("shop", "new", "10.96.99.1"))
            await fake.accept()
            while errors(await server.ask(WEB)):
                await is_right(server, world)
                assert time.monotonic() - began < 15
            await is_right(server, world)
            assert await server.rcode(f"new.shop.{SUFFIX}") == "NOERROR"
            assert server.value("kdns_kubernetes_stale") == 0
            reply = await server.ask(WEB)
            assert {rrset.ttl for rrset in reply.answer} == {30}


@row
async def test_w25_what_is_gone_since_the_snapshot_is_gone_once_the_api_was_read(seed: int, tmp_path: Path) -> None:
    file = tmp_path / "state"
    async with around(seed) as (fake, world, behind):
        fake.store.put("services", service("shop", "old", "10.96.99.1"))
        await write_snapshot(fake, behind, file)
        fake.refuse()
        fake.store.delete("services", "shop", "old")
        async with serving(fake, behind, f"snapshot {file} 1s") as server:
            assert await server.rcode(f"old.shop.{SUFFIX}") == "NOERROR"
            await fake.accept()
            began = time.monotonic()
            while await server.rcode(f"old.shop.{SUFFIX}") != "NXDOMAIN":
                await is_right(server, world)
                assert time.monotonic() - began < SECONDS
                await asyncio.sleep(0.01)


@row
async def test_w25_a_snapshot_that_is_too_old_is_served_but_not_ready(seed: int, tmp_path: Path) -> None:
    file = tmp_path / "state"
    async with around(seed) as (fake, world, behind):
        await write_snapshot(fake, behind, file)
        fake.refuse()
        hours = time.time() - 7200
        os.utime(file, (hours, hours))
        async with serving(fake, behind, f"snapshot {file} 1s") as server:
            await is_right(server, world)
            assert not server.plugin.ready()
            await fake.accept()
            await eventually(server.plugin.ready, SECONDS)


@row
@pytest.mark.parametrize("damage", ["torn", "empty", "rubbish", "a folder"])
async def test_w25_a_snapshot_that_is_damaged_counts_as_none(seed: int, damage: str, tmp_path: Path) -> None:
    file = tmp_path / "state"
    async with around(seed) as (fake, world, behind):
        await write_snapshot(fake, behind, file)
        content = file.read_bytes()
        file.unlink()
        if damage == "a folder":
            file.mkdir()
        else:
            cut = Random(seed).randrange(len(content) - 3)
            file.write_bytes({"torn": content[:cut], "empty": b"", "rubbish": b"\xff\x00rubbish"}[damage])
        fake.refuse()
        async with serving(fake, behind, f"snapshot {file} 1s\n startup_timeout 200ms") as server:
            assert await server.rcode(WEB) == "SERVFAIL"
            await fake.accept()
            await eventually(server.plugin.ready, SECONDS)
            await is_right(server, world)


@row
async def test_w25_a_bad_object_of_a_snapshot_costs_no_other_its_answer(seed: int, tmp_path: Path) -> None:
    file = tmp_path / "state"
    async with around(seed) as (fake, world, behind):
        await write_snapshot(fake, behind, file)
        state = json.loads(file.read_bytes())
        bad: list[object] = [
            None,
            [],
            {"kind": "Service"},
            {"kind": "Other"},
            {"kind": "Service", "metadata": {"name": 7}},
        ]
        state["items"] = [*bad[:3], *state["items"], *bad[3:]]
        file.write_text(json.dumps(state))
        fake.refuse()
        async with serving(fake, behind, f"snapshot {file} 1s") as server:
            await is_right(server, world)


@row
async def test_w25_nothing_that_a_tenant_writes_keeps_the_snapshot_from_being_written(
    seed: int, tmp_path: Path
) -> None:
    file = tmp_path / "state"
    async with around(seed) as (fake, world, behind):
        for name, target in (("address", "10.0.0.1"), ("nothing", ""), ("long", "a" * 300), ("dots", "a..b")):
            fake.store.put("services", external("shop", name, target))
        fake.store.put("services", service("shop", "odd", "999.1.1.1"))
        async with serving(fake, behind, f"snapshot {file} 1s") as server:
            await eventually(file.exists)
            # The source is alive: changes still arrive.
            fake.store.put("services", service("shop", "later", "10.96.99.1"))
            await asyncio.sleep(0.3)
            assert await server.rcode(f"later.shop.{SUFFIX}") == "NOERROR"
        fake.refuse()
        async with serving(fake, behind, f"snapshot {file} 1s") as server:
            await is_right(server, world)


@row
async def test_w25_a_snapshot_that_another_process_has_written_is_written_again(seed: int, tmp_path: Path) -> None:
    file = tmp_path / "state"
    async with around(seed) as (fake, _, behind), serving(fake, behind, f"snapshot {file} 1s"):
        await eventually(file.exists)
        first = json.loads(file.read_bytes())
        other = tmp_path / "other"
        other.write_text('{"items": []}')
        other.replace(file)
        # Nothing of the cluster has changed.
        await eventually(lambda: json.loads(file.read_bytes()) == first, SECONDS)


@row
async def test_w25_a_reload_waits_for_the_api_before_it_takes_answers_away(seed: int) -> None:
    async with around(seed) as (fake, world, behind), serving(fake, behind) as server:
        await eventually(server.plugin.ready, SECONDS)
        fake.refuse()
        before = server.app.configuration
        text = server.text.replace("startup_timeout 200ms", "startup_timeout 0s\n ttl 60")

        def replacing() -> asyncio.Task[None]:
            changed = build(corefile.parse(text, "Corefile"), before.process, before.plugins)
            return asyncio.create_task(server.app.replace(changed))

        given_up = replacing()
        await asyncio.sleep(0.3)
        given_up.cancel()
        await asyncio.gather(given_up, return_exceptions=True)
        assert server.app.configuration is before
        waiting = replacing()
        for _ in range(10):
            await asyncio.sleep(0.03)
            await is_right(server, world)
        assert not waiting.done()
        await fake.accept()
        await waiting
        await is_right(server, world)
        assert (await server.ask(WEB)).answer[0].ttl == 60


@row
async def test_w25_a_snapshot_that_cannot_be_written_changes_nothing_else(seed: int, tmp_path: Path) -> None:
    file = tmp_path / "missing" / "state"
    async with around(seed) as (fake, world, behind), serving(fake, behind, f"snapshot {file} 1s") as server:
        await eventually(lambda: server.value("kdns_kubernetes_snapshot_failures_total"))
        fake.store.put("services", service("shop", "later", "10.96.99.1"))
        await asyncio.sleep(0.3)
        assert await server.rcode(f"later.shop.{SUFFIX}") == "NOERROR"
        await is_right(server, world)
