"""Nothing that a query leaves behind leads back to itself: what does, only the garbage collector finds.

It looks through all that lives to do so, and holds every other query up meanwhile.
"""

from __future__ import annotations

import asyncio
import gc
import socket

import pytest
import uvloop

from kdns import corefile
from kdns.app import App, build
from kdns.chain import Process
from kdns.metrics import Metrics
from tests.rollout.load import HOST, question
from tests.rollout.upstreams import ADDRESS, upstream
from tests.started import free_port

QUERIES = 20


async def circles(text: str, tcp: bool) -> int:
    """How many objects only the collector takes away after some queries for names that are forwarded."""
    port = free_port()
    app = App(build(corefile.parse(f".:{port} {{\nbind {HOST}\n{text}\n}}\n", "Corefile"), Process(Metrics())))
    await app.start()
    loop = asyncio.get_running_loop()
    kind = socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM
    with socket.socket(type=kind) as sock:
        sock.setblocking(False)
        await loop.sock_connect(sock, (HOST, port))

        async def ask(numbers: range) -> None:
            for number in numbers:
                query = b"\x00\x07" + question(f"host-{number}.example.", ADDRESS).query
                await loop.sock_sendall(sock, len(query).to_bytes(2, "big") + query if tcp else query)
                assert await loop.sock_recv(sock, 4096)

        # What is made once, such as a cache's tables, is no query's.
        await ask(range(QUERIES))
        gc.collect()
        gc.disable()
        try:
            await ask(range(QUERIES, 2 * QUERIES))
            return gc.collect()
        finally:
            gc.enable()
            await app.stop()


@pytest.mark.parametrize("tcp", [False, True], ids=["udp", "tcp"])
@pytest.mark.parametrize("delay_seconds", [0.0, None], ids=["answered", "silent"])
@pytest.mark.parametrize(
    "lines",
    ["", "log", "errors", "cache {\n serve_stale\n}", "rewrite name regex (.*) {1}", "dns64"],
    ids=["plain", "log", "errors", "cache", "rewrite", "dns64"],
)
def test_a_query_leaves_no_circle(lines: str, delay_seconds: float | None, tcp: bool) -> None:
    with upstream(delay_seconds) as found:
        forward = f"forward . {HOST}:{found.port} {{\n prefer_udp\n read_timeout 10ms\n max_fails 0\n}}"
        # Now and then something of the loop's own is among them.
        assert uvloop.run(circles(f"{lines}\n{forward}", tcp)) < QUERIES
