"""Upstreams that nobody here wrote: Knot DNS answers for a zone, and a whole server forwards to it."""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvloop

from kdns import corefile
from kdns.app import App, build
from kdns.chain import Process
from kdns.metrics import Metrics
from kdns.upstream.exchange import exchange
from kdns.upstream.sockets import Upstream, UpstreamError
from kdns.wire import names
from kdns.wire.records import Rcode, Type, to_text
from tests import needs, started

ZONE = """
@ 300 IN SOA ns hostmaster 1 7200 1800 86400 60
@ 300 IN NS ns
ns 300 IN A 127.0.0.1
www 30 IN A 10.0.0.1
alias 30 IN CNAME www
*.wild 30 IN A 10.0.0.2
""" + "".join(f'large 30 IN TXT "{number:03} {"x" * 100}"\n' for number in range(60))


@pytest.fixture(scope="module")
def knot(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Upstream]:
    """Knot on loopback, as Debian ships it."""
    command = needs.command("knotd")
    folder: Path = tmp_path_factory.mktemp("knot")
    upstream = Upstream("127.0.0.1", started.free_port())
    (folder / "example.org.zone").write_text(ZONE)
    (folder / "knot.conf").write_text(
        f"server:\n    listen: 127.0.0.1@{upstream.port}\n    rundir: {folder}\n"
        f"database:\n    storage: {folder}\n"
        f"template:\n  - id: default\n    storage: {folder}\n    journal-content: none\n"
        "zone:\n  - domain: example.org\n    zonefile-sync: -1\n"
    )
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([command, "-c", str(folder / "knot.conf")], stdout=log, stderr=log)
        try:
            _wait_for(upstream, process, folder / "log")
            yield upstream
        finally:
            process.terminate()
            process.wait(20)


def _wait_for(upstream: Upstream, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            message = uvloop.run(exchange(names.from_text("www.example.org."), Type.A, upstream, 0.5))
        except UpstreamError:
            message = None
        if message is not None and message.rcode == Rcode.NOERROR:
            return
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)


LARGE = [f'large.example.org. 30 IN TXT "{number:03} {"x" * 100}"' for number in range(60)]
CASES: dict[str, tuple[str, int, int, list[str]]] = {
    "an address": ("WWW.example.org.", Type.A, 0, ["WWW.example.org. 30 IN A 10.0.0.1"]),
    "no data": ("www.example.org.", Type.AAAA, 0, []),
    "no such name": ("nothing.example.org.", Type.A, 3, []),
    "an alias": (
        "alias.example.org.",
        Type.A,
        0,
        ["alias.example.org. 30 IN CNAME www.example.org.", "www.example.org. 30 IN A 10.0.0.1"],
    ),
    "a wildcard": ("any.Wild.example.org.", Type.A, 0, ["any.Wild.example.org. 30 IN A 10.0.0.2"]),
    "a reply that takes TCP": ("large.example.org.", Type.TXT, 0, LARGE),
    "a zone of others": ("example.net.", Type.A, 5, []),
}


@pytest.mark.parametrize("options", ["", "force_tcp", "prefer_udp", "policy sequential\nmax_concurrent 1000"])
def test_a_whole_server_forwards_to_knot(knot: Upstream, options: str) -> None:
    async def story() -> None:
        port = started.free_port()
        text = f".:{port} {{\n bind 127.0.0.1\n errors\n forward . {knot} {{\n{options}\n}}\n}}"
        process = Process(Metrics())
        app = App(build(corefile.parse(text, "Corefile"), process))
        await app.start()
        try:
            for name, rtype, rcode, answer in CASES.values():
                for transport in ("udp", "tcp"):
                    here = Upstream("127.0.0.1", port)
                    message = await exchange(names.from_text(name), rtype, here, 4, transport=transport)
                    assert (message.rcode, sorted(map(to_text, message.answer))) == (rcode, sorted(answer))
        finally:
            await app.stop()
        if options == "force_tcp":
            exposed = process.metrics.render()[0].decode()
            labels = f'{{proto="tcp",proxy_name="forward",to="{knot}"}}'
            assert f"coredns_proxy_conn_cache_misses_total{labels} 1.0" in exposed
            hits = next(line for line in exposed.splitlines() if f"conn_cache_hits_total{labels}" in line)
            # The large reply was asked for three times: once it didn't fit.
            assert float(hits.split()[-1]) == 2 * len(CASES)

    uvloop.run(story())


def test_many_at_once_are_answered_over_few_connections(knot: Upstream) -> None:
    async def story() -> None:
        port = started.free_port()
        text = f".:{port} {{\n bind 127.0.0.1\n forward . {knot} {{\n force_tcp\n }}\n}}"
        app = App(build(corefile.parse(text, "Corefile"), Process(Metrics())))
        await app.start()
        try:
            here = Upstream("127.0.0.1", port)
            asked = (exchange(names.from_text(f"{n}.wild.example.org."), Type.A, here, 4) for n in range(300))
            messages = await asyncio.gather(*asked)
            assert [(message.rcode, len(message.answer)) for message in messages] == [(0, 1)] * 300
        finally:
            await app.stop()

    uvloop.run(story())
