"""Where a configuration listens: ports that are shared or refused, in one configuration and over reloads."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import weakref
from collections.abc import AsyncIterator
from typing import Any

import dns.exception
import dns.message
import dns.query
import dns.rcode
import pytest

from kdns import corefile
from kdns.app import App, Configuration, build
from kdns.chain import Process
from kdns.errors import ConfigError
from kdns.metrics import Metrics
from kdns.responder import Responder
from tests.started import free_port


def built(text: str) -> Configuration:
    return build(corefile.parse(text, "Corefile"), Process(Metrics()))


@contextlib.asynccontextmanager
async def serving(text: str) -> AsyncIterator[App]:
    app = App(built(text))
    await app.start()
    try:
        yield app
    finally:
        await app.stop()


async def reload(app: App, text: str) -> None:
    before = app.configuration
    await app.replace(build(corefile.parse(text, "Corefile"), before.process, before.plugins))


def block(port: int, *lines: str) -> str:
    return f".:{port} {{\n" + "".join(f"    {line}\n" for line in (*lines, "whoami")) + "}\n"


async def refusal(text: str) -> str:
    """Why it can't be served; empty where it can."""
    try:
        async with serving(text):
            return ""
    except ConfigError as error:
        return "\n".join(f"{problem.message} ({problem.hint})" for problem in error.problems)


@pytest.mark.parametrize("bind", ["bind 127.0.0.1", "bind ::"])
def test_a_port_is_shared_where_both_have_multisocket_and_else_refused(bind: str) -> None:
    async def story() -> None:
        port, http = free_port(), free_port()
        plain, shared = block(port, bind), block(port, bind, f"ready 127.0.0.1:{http}", "multisocket 1")
        async with serving(plain):
            assert "is taken" in await refusal(plain)
            assert "the server there doesn't share it" in await refusal(shared)
        async with serving(shared):
            assert await refusal(shared) == ""
            assert "is taken" in await refusal(plain)

    asyncio.run(story())


def test_a_shared_port_is_left_to_its_server_until_this_one_is_ready_or_alone() -> None:
    async def story() -> None:
        port = free_port()
        lines = "bind 127.0.0.1", "multisocket 1"
        api = "kubernetes example {\n endpoint http://127.0.0.1:9\n startup_timeout 0s\n}"
        new = App(built(block(port, *lines, api)))
        async with serving(block(port, *lines, "hosts {\n 192.0.2.1 www.example\n}")):
            starting = asyncio.create_task(new.start())
            for _ in range(20):
                await asyncio.sleep(0.01)
                # A socket each time, so that the kernel may choose.
                assert await asyncio.to_thread(address, "127.0.0.1", port, False) == "192.0.2.1"
            assert not starting.done()
        await starting
        await new.stop()

    asyncio.run(story())


def test_a_reload_shares_a_port_or_keeps_it() -> None:
    async def story() -> None:
        port, http = free_port(), free_port()
        lines = "bind 127.0.0.1", f"health 127.0.0.1:{http}"
        plain, shared = block(port, *lines), block(port, *lines, "multisocket 1")
        async with serving(plain) as app:
            await reload(app, shared)
            assert await refusal(shared) == ""
            await reload(app, plain)
            assert "is taken" in await refusal(shared)

    asyncio.run(story())


def test_a_port_that_is_ours_already_may_get_other_addresses() -> None:
    async def story() -> None:
        port, http = free_port(), free_port()
        one = block(port, "bind 127.0.0.1", f"health 127.0.0.1:{http}")
        async with serving(one) as app:
            await reload(app, block(port, f"health :{http}"))
            await reload(app, one)
            await reload(app, block(port, "bind 127.0.0.1 127.0.0.2") + block(port, "bind 127.0.0.3"))
            # Another one still can't have it.
            assert "is taken" in await refusal(one)

    asyncio.run(story())


def test_one_address_and_all_of_a_port_are_two_listeners_and_nobody_else_gets_in() -> None:
    async def story() -> None:
        port = free_port()
        one = f".:{port} {{\n bind 127.0.0.2\n hosts {{\n 192.0.2.2 www.example\n }}\n}}\n"
        everywhere = f".:{port} {{\n hosts {{\n 192.0.2.1 www.example\n }}\n}}\n"
        async with serving(one + everywhere) as app:
            for _ in range(2):
                for tcp in (False, True):
                    assert await asyncio.to_thread(address, "127.0.0.2", port, tcp) == "192.0.2.2"
                    assert await asyncio.to_thread(address, "127.0.0.3", port, tcp) == "192.0.2.1"
                assert "is taken" in await refusal(one + everywhere)
                assert "is taken" in await refusal(block(port, "bind 127.0.0.2", "multisocket 1"))
                # The same two, the second of them opened beside the first.
                await reload(app, one)
                await reload(app, one + everywhere)

    asyncio.run(story())


def address(host: str, port: int, tcp: bool) -> str:
    """The address of www.example, as the one who listens there has it."""
    query = dns.message.make_query("www.example", "A")
    reply = (dns.query.tcp if tcp else dns.query.udp)(query, host, 20, port)
    return str(reply.answer[0][0])


def test_a_reload_that_cannot_listen_leaves_all_as_it_was() -> None:
    async def story() -> None:
        port, other = free_port(), free_port()
        plain = block(port, "bind 127.0.0.1")
        async with serving(block(other, "bind 127.0.0.1")), serving(plain) as app:
            with pytest.raises(ConfigError, match="is taken"):
                await reload(app, block(port) + block(other, "bind 127.0.0.1"))
            assert "is taken" in await refusal(block(port, "bind 127.0.0.1", "multisocket 1")), "it isn't shared"

    asyncio.run(story())


def test_a_configuration_that_was_replaced_leaves_nothing_in_memory() -> None:
    async def story() -> None:
        port = free_port()
        text = block(port, "bind 127.0.0.1", "forward . 127.0.0.1:9", "cache", "errors", "loop")
        async with serving(text) as app:
            # As a process does that has read a cluster.
            gc.freeze()
            before = [weakref.ref(plugin) for plugin in app.configuration.plugins]
            await reload(app, text.replace("127.0.0.1\n", "127.0.0.2\n"))
        assert [found for each in before if (found := each())] == []

    asyncio.run(story())


@pytest.mark.parametrize("tcp", [False, True], ids=["udp", "tcp"])
def test_an_error_of_ours_costs_its_query_and_is_counted(monkeypatch: pytest.MonkeyPatch, tcp: bool) -> None:
    respond = Responder.respond

    def fail_at_some(responder: Responder, packet: bytes, *others: Any) -> Any:
        if b"unlucky" in packet:
            raise RuntimeError("whatever is wrong")
        return respond(responder, packet, *others)

    async def story() -> None:
        port = free_port()
        ask = dns.query.tcp if tcp else dns.query.udp
        async with serving(block(port, "bind 127.0.0.1")) as app:
            unlucky, other = (dns.message.make_query(f"{name}.test.", "A") for name in ("unlucky", "other"))
            with pytest.raises((dns.exception.Timeout, EOFError)):
                await asyncio.to_thread(ask, unlucky, "127.0.0.1", timeout=0.3, port=port)
            reply = await asyncio.to_thread(ask, other, "127.0.0.1", timeout=5, port=port)
            assert reply.rcode() == dns.rcode.NOERROR
            assert "coredns_panics_total 1.0" in app.configuration.process.metrics.render()[0].decode()

    monkeypatch.setattr(Responder, "respond", fail_at_some)
    asyncio.run(story())


def test_a_listener_that_a_reload_takes_away_leaves_its_counts_and_nothing_else() -> None:
    async def story() -> None:
        port, other = free_port(), free_port()
        one, two = block(port, "bind 127.0.0.1"), block(other, "bind 127.0.0.1")
        async with serving(one + two) as app:
            process = app.configuration.process
            assert len(process.answers) == 2, "one for each UDP socket"
            with socket.create_connection(("127.0.0.1", other)) as sock:
                sock.setblocking(False)
                # A length that no message has.
                sock.send(b"\x00\x01\x00")
                await asyncio.get_running_loop().sock_recv(sock, 1)
            counted = 'kdns_tcp_connections_closed_total{reason="malformed"} 1.0'
            assert counted in process.metrics.render()[0].decode()
            await reload(app, one)
            for _ in range(500):
                if len(process.answers) == 1:
                    break
                await asyncio.sleep(0.01)
            assert len(process.answers) == 1
            assert counted in process.metrics.render()[0].decode(), "a counter never goes back"
            await reload(app, one + two)
            assert counted in process.metrics.render()[0].decode()

    asyncio.run(story())
