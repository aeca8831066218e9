"""The UDP server over real sockets on loopback."""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from itertools import pairwise

import pytest
import uvloop

from kdns.server.batch import ROUNDS, BatchedUdpServer
from kdns.server.mmsg import PLACE_BYTES, PLACES
from kdns.server.udp import SILENT_PORTS, UdpLimits, UdpServer, open_udp
from tests.server.standin import StandIn, answer, eventually, query, receive, udp_client

Serving = tuple[UdpServer, StandIn, int]
KIND: ContextVar[type[UdpServer]] = ContextVar("KIND")


@pytest.fixture(params=[UdpServer, BatchedUdpServer], ids=["plain", "batched"], autouse=True)
def kind(request: pytest.FixtureRequest) -> Iterator[None]:
    """All that is said here holds for both."""
    token = KIND.set(request.param)
    yield
    KIND.reset(token)


@asynccontextmanager
async def serving(address: str = "127.0.0.1", limits: UdpLimits | None = None) -> AsyncIterator[Serving]:
    responder = StandIn()
    server = KIND.get()(responder, open_udp(address, 0), limits)
    server.start()
    try:
        yield server, responder, server.sock.getsockname()[1]
    finally:
        await server.stop()


@pytest.fixture(params=["uvloop", "asyncio"])
def run(request: pytest.FixtureRequest) -> Callable[[Coroutine[None, None, None]], None]:
    return uvloop.run if request.param == "uvloop" else asyncio.run


Run = Callable[[Coroutine[None, None, None]], None]


def test_a_query_is_answered_and_the_responder_knows_who_asked_whom(run: Run) -> None:
    async def story() -> None:
        async with serving() as (server, responder, port):
            with udp_client() as client:
                client.sendto(query("now.test."), ("127.0.0.1", port))
                data, source = await receive(client)
                assert data == answer(query("now.test."))
                assert source == ("127.0.0.1", port)
                assert responder.seen == [("udp", client.getsockname(), ("127.0.0.1", port))]
            assert (server.received, server.sent) == (1, 1)

    run(story())


def test_replies_that_come_later_go_to_their_own_clients(run: Run) -> None:
    async def story() -> None:
        async with serving() as (_, _, port):
            with udp_client() as slow, udp_client() as fast:
                slow.sendto(query("later-80.test.", 1), ("127.0.0.1", port))
                fast.sendto(query("later-10.test.", 2), ("127.0.0.1", port))
                assert (await receive(fast))[0][:2] == b"\x00\x02"
                assert (await receive(slow))[0][:2] == b"\x00\x01"

    run(story())


def test_a_burst_larger_than_one_wakeup_is_answered_whole(run: Run) -> None:
    async def story() -> None:
        async with serving(limits=UdpLimits(per_wakeup=4)) as (_, _, port):
            with udp_client() as client:
                for number in range(50):
                    client.sendto(query("now.test.", number), ("127.0.0.1", port))
                numbers = [int.from_bytes((await receive(client))[0][:2], "big") for _ in range(50)]
                assert numbers == list(range(50))

    run(story())


@pytest.mark.parametrize("asked", ["127.0.0.1", "127.0.0.2", "127.77.0.9"])
def test_a_wildcard_socket_replies_from_the_address_that_was_asked(run: Run, asked: str) -> None:
    async def story() -> None:
        async with serving("0.0.0.0") as (_, responder, port):
            with udp_client() as client:
                for name in ("now.test.", "later-10.test."):
                    client.sendto(query(name), (asked, port))
                    data, source = await receive(client)
                    assert data == answer(query(name))
                    assert source == (asked, port)
            assert {local for _, _, local in responder.seen} == {(asked, port)}

    run(story())


@pytest.mark.parametrize("bound", ["::", "::1"])
def test_ipv6_is_answered_and_a_v6_socket_leaves_ipv4_alone(run: Run, bound: str) -> None:
    async def story() -> None:
        async with serving(bound) as (server, responder, port):
            assert server.sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 1
            with udp_client(("::1", 0)) as client:
                client.sendto(query("now.test."), ("::1", port))
                data, source = await receive(client)
                assert data == answer(query("now.test."))
                assert source == ("::1", port)
                assert responder.seen == [("udp", client.getsockname()[:2], ("::1", port))]

    run(story())


def test_datagrams_of_every_size_reach_the_responder_whole(run: Run) -> None:
    # Of what is larger than any query, a batch has the beginning.
    largest = 65_507 if KIND.get() is UdpServer else PLACE_BYTES

    async def story() -> None:
        async with serving() as (server, responder, port):
            with udp_client() as client:
                for size in (0, 1, 11, 4096, 65_507):
                    client.sendto(b"\xff" * size, ("127.0.0.1", port))
                    whole = min(size, largest)
                    await eventually(
                        lambda whole=whole: bool(responder.packets) and len(responder.packets[-1]) == whole
                    )
                client.sendto(query("now.test."), ("127.0.0.1", port))
                assert (await receive(client))[0] == answer(query("now.test."))
            assert server.received == 6

    run(story())


def test_the_ports_that_answer_everything_get_no_reply() -> None:
    async def story() -> None:
        async with serving() as (server, responder, port):
            # Below 1024 a test can't bind, and from 0 nobody can send: the packet is put in by hand.
            for source in sorted(SILENT_PORTS):
                server._answer(query("now.test."), ("127.0.0.1", source), ("127.0.0.1", port), None)
            assert responder.packets == []
            assert server.dropped_ports == len(SILENT_PORTS) == 5
            server._answer(query("now.test."), ("127.0.0.1", 53), ("127.0.0.1", port), None)
            assert len(responder.packets) == 1

    asyncio.run(story())


def test_a_reply_that_cannot_be_sent_is_counted_and_the_next_one_is(run: Run) -> None:
    async def story() -> None:
        async with serving() as (server, _, port):
            # Port 0 is EINVAL, and a datagram may not have 70,000 bytes.
            server._send(b"x", ("127.0.0.1", 0), None)
            server._send(bytes(70_000), ("127.0.0.1", 9), None)
            assert server.send_errors == 2
            with udp_client() as client:
                client.sendto(query("now.test."), ("127.0.0.1", port))
                await receive(client)
            assert server.sent == 1

    run(story())


def test_a_client_that_is_gone_leaves_the_socket_usable(run: Run) -> None:
    async def story() -> None:
        async with serving() as (server, _, port):
            for _ in range(5):
                with udp_client() as gone:
                    gone.sendto(query("later-20.test."), ("127.0.0.1", port))
                    await eventually(lambda: len(server._pending) == 1)
                await eventually(lambda: not server._pending)
            with udp_client() as client:
                client.sendto(query("now.test."), ("127.0.0.1", port))
                assert (await receive(client))[0] == answer(query("now.test."))

    run(story())


def test_a_full_send_buffer_drops_and_counts() -> None:
    async def story() -> None:
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        near.setblocking(False)
        with far:
            server = UdpServer(StandIn(), open_udp("127.0.0.1", 0))
            server.sock.close()
            # A stream of datagrams that nobody reads is the one socket that fills up at will.
            server.sock = near
            for _ in range(1000):
                server._send(b"x" * 1000, None, [])
            assert server.dropped_sends > 0
            assert server.dropped_sends + server.sent == 1000
            near.close()

    asyncio.run(story())


def test_an_exception_costs_one_query_and_one_line_with_its_question(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    async def story() -> None:
        async with serving() as (server, _, port):
            with udp_client() as client:
                for name in ("boom.Test.", "boom.test.", "now.test."):
                    client.sendto(query(name), ("127.0.0.1", port))
                assert (await receive(client))[0] == answer(query("now.test."))
            assert server.mishaps.count == 2

    with caplog.at_level(logging.ERROR, "kdns.server"):
        run(story())
    assert [record.getMessage() for record in caplog.records] == ["no answer over udp to boom.test. IN A, 1 so far"]
    assert "RuntimeError: boom" in caplog.text


def test_more_pending_queries_than_allowed_are_dropped_and_counted(run: Run) -> None:
    async def story() -> None:
        async with serving(limits=UdpLimits(pending=3)) as (server, responder, port):
            with udp_client() as client:
                for _ in range(5):
                    client.sendto(query("never.test."), ("127.0.0.1", port))
                client.sendto(query("now.test."), ("127.0.0.1", port))
                assert (await receive(client))[0] == answer(query("now.test."))
            assert server.dropped_pending == 2
            assert responder.cancelled == 2
            assert len(server._pending) == 3

    run(story())


def test_stop_answers_what_had_arrived_and_cancels_what_waits(run: Run) -> None:
    async def story() -> None:
        responder = StandIn()
        server = UdpServer(responder, open_udp("127.0.0.1", 0), UdpLimits(per_wakeup=1))
        port = server.sock.getsockname()[1]
        server.start()
        with udp_client() as client:
            client.sendto(query("never.test."), ("127.0.0.1", port))
            await eventually(lambda: len(server._pending) == 1)
            for number in range(20):
                client.sendto(query("now.test.", number), ("127.0.0.1", port))
            await server.stop()
            numbers = [int.from_bytes((await receive(client))[0][:2], "big") for _ in range(20)]
            assert numbers == list(range(20))
        assert responder.cancelled == 1
        assert server.sock.fileno() == -1

    run(story())


def test_stop_gives_pending_queries_their_grace(run: Run) -> None:
    async def story() -> None:
        responder = StandIn()
        server = UdpServer(responder, open_udp("0.0.0.0", 0))
        port = server.sock.getsockname()[1]
        server.start()
        with udp_client() as client:
            client.sendto(query("later-50.test."), ("127.0.0.3", port))
            await eventually(lambda: len(server._pending) == 1)
            await server.stop(grace_seconds=5)
            assert await receive(client) == (answer(query("later-50.test.")), ("127.0.0.3", port))
        assert responder.cancelled == 0

    run(story())


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", "::1", "::"])
def test_leaving_a_shared_port_loses_no_query(run: Run, address: str) -> None:
    async def story() -> None:
        first = UdpServer(StandIn(), open_udp(address, 0, reuse_port=True))
        port = first.sock.getsockname()[1]
        second = UdpServer(StandIn(), open_udp(address, port, reuse_port=True))
        first.start()
        second.start()
        target = "::1" if ":" in address else "127.0.0.1"
        clients = [udp_client((target, 0)) for _ in range(60)]
        for turn, client in enumerate(clients):
            client.sendto(query("now.test.", turn), (target, port))
            if turn == 20:
                leaving = asyncio.ensure_future(first.stop())
            if turn % 7 == 0:
                await asyncio.sleep(0)
        await leaving
        for turn, client in enumerate(clients):
            assert int.from_bytes((await receive(client))[0][:2], "big") == turn
            client.close()
        assert second.received > 0
        await second.stop()

    run(story())


def test_under_a_flood_the_rest_of_the_process_has_its_turn(run: Run) -> None:
    async def story() -> None:
        responder = StandIn()
        server = KIND.get()(responder, open_udp("127.0.0.1", 0))
        turns: list[int] = []

        def turn() -> None:
            turns.append(server.received)
            if server.received < sent:
                loop.call_soon(turn)

        loop = asyncio.get_running_loop()
        with udp_client() as client:
            # All of them wait before the server begins.
            sent = 280
            for number in range(sent):
                client.sendto(query("now.test.", number), server.sock.getsockname())
            server.start()
            loop.call_soon(turn)
            await eventually(lambda: server.received == sent)
        steps = [after - before for before, after in pairwise([0, *turns])]
        # As many packets as are taken at most before the others are asked.
        assert max(steps) <= (64 if KIND.get() is UdpServer else ROUNDS * PLACES)
        await server.stop()

    run(story())


def test_packets_that_a_full_buffer_lost_are_counted() -> None:
    # The kernel makes of it the least that it allows: a few packets.
    sock = open_udp("127.0.0.1", 0, limits=UdpLimits(receive_buffer_bytes=1))
    server = UdpServer(StandIn(), sock)
    assert server.receive_drops() == 0
    with udp_client() as client:
        for _ in range(500):
            client.sendto(query("now.test."), sock.getsockname())
    lost = server.receive_drops()
    assert 0 < lost < 500
    sock.close()
    assert server.receive_drops() == lost, "what was lost stays so when the socket is closed"


def test_an_address_that_is_not_here_or_taken_is_an_oserror() -> None:
    with pytest.raises(OSError, match="assign requested address"):
        open_udp("192.0.2.1", 0)
    with open_udp("127.0.0.1", 0) as taken, pytest.raises(OSError, match="in use"):
        open_udp("127.0.0.1", taken.getsockname()[1])


# What was answered before


def keep(responder: StandIn, packet: bytes, data: bytes) -> tuple[list[float], list[float]]:
    row, times = [0.0] * 3, [0.0] * 20
    responder.kept.keep(packet, packet[:2] + data, row, times, (), negative=False, varies=False)
    return row, times


@pytest.mark.parametrize("many_zones", [False, True])
def test_a_kept_reply_is_sent_without_asking_and_counted(run: Run, many_zones: bool) -> None:
    if KIND.get() is UdpServer:
        # There the responder itself looks.
        return

    async def story() -> None:
        responder = StandIn()
        responder.many_zones = many_zones
        server = BatchedUdpServer(responder, open_udp("127.0.0.1", 0))
        kept = query("kept.test.")
        reply = kept[:2] + b"\x85\x00" + kept[4:] + b"more"
        row, times = keep(responder, kept, reply[2:])
        with udp_client() as client:
            # All wait when the server begins, so they come at once, and the others among them.
            sent = [query("kept.test.", number) for number in range(1, 100)]
            sent[40], sent[50], sent[60] = query("now.test.", 41), query("silent.test.", 51), query("later-5.test.", 61)
            for packet in sent:
                client.sendto(packet, server.sock.getsockname())
            server.start()
            found = {(await receive(client))[0] for _ in range(98)}
        assert found == {
            answer(packet) if number in (40, 60) else packet[:2] + reply[2:]
            for number, packet in enumerate(sent)
            if number != 50
        }
        assert len(responder.seen) == 3
        assert (server.received, server.sent) == (99, 98)
        responder.kept.tell()
        assert row == [96, 96 * len(kept), 96 * len(reply)]
        assert sum(times[1:]) == 96
        assert times[0] > 0
        await server.stop()

    run(story())


def test_a_kept_reply_goes_to_who_spells_its_name_otherwise_in_that_spelling() -> None:
    if KIND.get() is UdpServer:
        # There the responder itself looks.
        return

    async def story() -> None:
        async with serving() as (_, responder, port):
            kept = query("kept.test.")
            keep(responder, kept, b"\x85\x00" + kept[4:] + b"more")
            with udp_client() as client:
                for number, spelled in enumerate((b"\4kept\4test\0", b"\4KEPT\4tEST\0", b"\4kepT\4test\0")):
                    asked = number.to_bytes(2, "big") + kept[2:12] + spelled + kept[-4:]
                    client.sendto(asked, ("127.0.0.1", port))
                    assert (await receive(client))[0] == asked[:2] + b"\x85\x00" + asked[4:] + b"more"
            assert not responder.seen

    asyncio.run(story())


@pytest.mark.parametrize("address", ["0.0.0.0", "::"])
def test_a_kept_reply_leaves_from_the_address_that_was_asked(run: Run, address: str) -> None:
    asked = "127.0.0.9" if address == "0.0.0.0" else "::1"

    async def story() -> None:
        async with serving(address) as (_, responder, port):
            packet = query("kept.test.")
            keep(responder, packet, answer(packet)[2:])
            with udp_client(("127.0.0.1" if "." in asked else "::1", 0)) as client:
                client.connect((asked, port))
                for _ in range(3):
                    client.send(packet)
                    assert (await receive(client))[0] == answer(packet)

    run(story())
