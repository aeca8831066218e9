"""Several `kubernetes` directives in one process: alike they are one, unlike their metrics say what is true of all."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import dns.message
import dns.query
import pytest
import uvloop

from kdns import corefile
from kdns.app import App, Configuration, build
from kdns.chain import Process
from kdns.errors import ConfigError
from kdns.metrics import Metrics
from kdns.plugins.kubernetes import Kubernetes
from tests.started import free_port

SERVICE = """\
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: shop}}
spec: {{clusterIP: {address}, ports: [{{port: 80}}]}}
"""


def blocks(*options: str) -> str:
    """A server block for each of these, on a port of its own."""
    return "".join(
        f".:{free_port()} {{\n bind 127.0.0.1\n kubernetes cluster.local in-addr.arpa {{\n{each}\n}}\n}}\n"
        for each in options
    )


def built(text: str, before: Configuration | None = None) -> Configuration:
    parsed = corefile.parse(text, "Corefile")
    if before is None:
        return build(parsed, Process(Metrics()))
    return build(parsed, before.process, before.plugins)


def sources(configuration: Configuration) -> list[Kubernetes]:
    """The directive of each block."""
    return [each for block in configuration.blocks for each in block.plugins if isinstance(each, Kubernetes)]


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    (tmp_path / "web.yaml").write_text(SERVICE.format(name="web", address="10.96.0.7"))
    (tmp_path / "db.yaml").write_text(SERVICE.format(name="db", address="10.96.0.8"))
    return tmp_path


def test_blocks_that_say_the_same_have_one_model(shop: Path) -> None:
    same = f"inventory {shop}"
    configuration = built(blocks(same, same, f"{same}\nttl 30"))
    first, second, third = sources(configuration)
    assert first is second
    assert third is not first
    # Each once, or it would be started twice.
    assert [plugin for plugin in configuration.plugins if isinstance(plugin, Kubernetes)] == [first, third]


def test_zones_are_part_of_what_is_said() -> None:
    text = blocks("endpoint http://192.0.2.1", "endpoint http://192.0.2.1")
    first, second = sources(built(text.replace("cluster.local", "other.local", 1)))
    assert first is not second


def test_each_has_a_snapshot_of_its_own(tmp_path: Path) -> None:
    one = f"endpoint http://192.0.2.1\nsnapshot {tmp_path}/a"
    built(blocks(one, one, f"{one}b\nttl 30"))
    with pytest.raises(ConfigError) as raised:
        built(blocks(one, f"{one}\nttl 30", f"{one} 10s"))
    assert [(problem.message, problem.place and problem.place.line) for problem in raised.value.problems] == [
        (f"`{tmp_path}/a` is written by another `kubernetes`", 12),
        (f"`{tmp_path}/a` is written by another `kubernetes`", 20),
    ]
    assert raised.value.problems[0].hint == "that one is in line 5 of Corefile; each needs a file of its own"


def test_a_reload_goes_on_with_the_one_that_blocks_share(shop: Path) -> None:
    same = f"inventory {shop}"
    before = built(blocks(same, same))
    after = built(blocks(same, f"{same}\nttl 30", same), before)
    first, second, third = sources(after)
    assert first is third
    assert first is sources(before)[0]
    assert second is not first


def test_both_blocks_answer_and_a_change_shows_in_both(shop: Path) -> None:
    same = f"inventory {shop}"

    async def story(app: App) -> None:
        ports = [listener.port for listener in app.configuration.listeners]
        assert [await address(port, "web") for port in ports] == ["10.96.0.7", "10.96.0.7"]
        (shop / "web.yaml").write_text(SERVICE.format(name="web", address="10.96.0.9"))
        await until(lambda: value(app, "kdns_inventory_reloads_total", result="ok") == 2)
        assert await address(ports[0], "web") == "10.96.0.9"
        assert await address(ports[1], "web") == "10.96.0.9"
        assert value(app, "kdns_inventory_objects", kind="Service") == 2

    serve(blocks(same, same), story)


def test_metrics_say_what_is_true_of_all_inventories(shop: Path) -> None:
    other = shop / "other"
    other.mkdir()
    (shop / "db.yaml").rename(other / "db.yaml")

    async def story(app: App) -> None:
        assert value(app, "kdns_inventory_objects", kind="Service") == 2
        assert value(app, "kdns_inventory_loaded") == 1
        (other / "db.yaml").write_text("kind: Service\n")
        await until(lambda: value(app, "kdns_inventory_loaded") == 0)
        # What was right last is served.
        assert value(app, "kdns_inventory_objects", kind="Service") == 2
        assert value(app, "kdns_inventory_problems") == 1

    serve(blocks(f"inventory {shop}/web.yaml", f"inventory {other}"), story)


def test_synced_is_a_process_whose_directives_all_are(shop: Path) -> None:
    # One reads an inventory, one asks an API server that nobody is.
    text = blocks(f"inventory {shop}", "endpoint http://127.0.0.1:9\nstartup_timeout 0s")

    async def story(app: App) -> None:
        assert value(app, "kdns_inventory_loaded") == 1
        assert value(app, "kdns_kubernetes_synced") == 0
        assert value(app, "kdns_kubernetes_connected") == 0

    serve(text, story)


def serve(text: str, story: Callable[[App], Awaitable[None]]) -> None:
    async def serving() -> None:
        app = App(built(text))
        await app.start()
        try:
            await story(app)
        finally:
            await app.stop()

    uvloop.run(serving())


async def until(check: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while True:
            if check():
                return
            await asyncio.sleep(0.01)


async def address(port: int, service: str) -> str:
    """The address that a service has at this port."""
    query = dns.message.make_query(f"{service}.shop.svc.cluster.local", "A")
    reply = await asyncio.to_thread(dns.query.udp, query, "127.0.0.1", 5, port)
    return " ".join(str(data) for rrset in reply.answer for data in rrset)


def value(app: App, name: str, **labels: str) -> float | None:
    return app.configuration.process.metrics.registry.get_sample_value(name, labels)
