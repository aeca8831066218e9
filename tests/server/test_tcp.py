"""The TCP server over real connections on loopback, with short limits where a clock is what is tested."""

import asyncio
import logging
import os
import resource
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager

import pytest
import uvloop

from kdns.server.tcp import Limits, TcpServer, open_tcp
from tests.server.standin import StandIn, TcpClient, answer, eventually, framed, query

Address = tuple[str, int]
Serving = tuple[TcpServer, StandIn, Address]
Run = Callable[[Coroutine[None, None, None]], None]

# A clock that runs out in 0.3 s must not have run out after 0.2 s, and must have after 3 s on a busy machine.
SHORT = 0.3
EARLY = 0.2
LATE = 3.0


@asynccontextmanager
async def serving(limits: Limits | None = None, host: str = "127.0.0.1") -> AsyncIterator[Serving]:
    responder = StandIn()
    sock = open_tcp(host, 0)
    server = TcpServer(responder, [sock], limits)
    address = sock.getsockname()[:2]
    server.start()
    try:
        yield server, responder, address
    finally:
        await server.stop()
        await eventually(lambda: not server.connections)


@pytest.fixture(params=["uvloop", "asyncio"])
def run(request: pytest.FixtureRequest) -> Run:
    return uvloop.run if request.param == "uvloop" else asyncio.run


# Messages


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_query_is_answered_and_the_responder_knows_who_asked_whom(run: Run, host: str) -> None:
    async def story() -> None:
        async with serving(host=host) as (server, responder, address):
            client = await TcpClient.connect(address)
            client.writer.write(framed(query("now.test.")))
            assert await client.read() == answer(query("now.test."))
            assert responder.seen == [("tcp", client.writer.get_extra_info("sockname")[:2], address)]
            assert (server.accepted, server.received, server.sent) == (1, 1, 1)
            await client.close()

    run(story())


def test_two_hundred_pipelined_queries_are_all_answered(run: Run) -> None:
    async def story() -> None:
        async with serving() as (_, _, address):
            client = await TcpClient.connect(address)
            client.writer.write(framed(*(query("now.test.", number) for number in range(200))))
            assert [await client.read_number() for _ in range(200)] == list(range(200))
            await client.close()

    run(story())


def test_a_slow_answer_does_not_hold_up_a_fast_one(run: Run) -> None:
    async def story() -> None:
        async with serving() as (_, _, address):
            client = await TcpClient.connect(address)
            client.writer.write(framed(query("later-150.test.", 1), query("later-20.test.", 2), query("now.test.", 3)))
            assert [await client.read_number() for _ in range(3)] == [3, 2, 1]
            await client.close()

    run(story())


def test_a_message_may_come_byte_by_byte(run: Run) -> None:
    async def story() -> None:
        async with serving() as (_, _, address):
            client = await TcpClient.connect(address)
            client.writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for byte in framed(query("now.test.", 1), query("now.test.", 2)):
                client.writer.write(bytes((byte,)))
                await asyncio.sleep(0)
            assert [await client.read_number() for _ in range(2)] == [1, 2]
            await client.close()

    run(story())


def test_a_message_of_64_kib_is_taken_and_one_is_sent(run: Run) -> None:
    async def story() -> None:
        async with serving() as (_, responder, address):
            client = await TcpClient.connect(address)
            question = query("big-65535.test.")
            client.writer.write(framed(question + bytes(65535 - len(question))))
            assert len(await client.read()) == 65535
            assert len(responder.packets[0]) == 65535
            await client.close()

    run(story())


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(b"\x00\x00", id="an empty frame"),
        pytest.param(b"\x00\x0b", id="the length of a frame shorter than a header"),
        pytest.param(b"\x00\x05hello", id="a whole frame shorter than a header"),
    ],
)
def test_a_frame_that_can_hold_no_message_closes_the_connection_after_the_answers_before_it(
    run: Run, bad: bytes
) -> None:
    async def story() -> None:
        async with serving() as (server, responder, address):
            client = await TcpClient.connect(address)
            client.writer.write(framed(query("never.test."), query("now.test.", 7)) + bad)
            assert await client.read_number() == 7
            assert await client.until_closed() < LATE
            assert server.closed_malformed == 1
            assert responder.cancelled == 1
            await client.close()

    run(story())


def test_a_response_is_ignored_and_the_next_query_answered(run: Run) -> None:
    async def story() -> None:
        async with serving() as (_, _, address):
            client = await TcpClient.connect(address)
            client.writer.write(framed(answer(query("now.test.", 1)), query("silent.test.", 2), query("now.test.", 3)))
            assert await client.read_number() == 3
            await client.close()

    run(story())


def test_after_half_close_what_is_in_flight_is_answered_then_comes_fin(run: Run) -> None:
    async def story() -> None:
        async with serving(Limits(per_turn=2)) as (_, _, address):
            client = await TcpClient.connect(address)
            last = [query("now.test.", number) for number in range(2, 10)]
            client.writer.write(framed(query("later-100.test.", 1), *last) + b"\x00")
            client.writer.write_eof()
            assert [await client.read_number() for _ in range(9)] == [*range(2, 10), 1]
            assert await client.reader.read() == b""
            await client.close()

    run(story())


def test_half_close_without_a_query_is_answered_by_fin(run: Run) -> None:
    async def story() -> None:
        async with serving() as (_, _, address):
            client = await TcpClient.connect(address)
            client.writer.write_eof()
            assert await client.until_closed() < LATE
            await client.close()

    run(story())


def test_an_exception_costs_one_query_and_one_line_with_its_question(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    async def story() -> None:
        async with serving() as (server, _, address):
            client = await TcpClient.connect(address)
            client.writer.write(framed(query("boom.test.", 1), query("now.test.", 2)))
            assert await client.read_number() == 2
            assert server.mishaps.count == 1
            await client.close()

    with caplog.at_level(logging.ERROR, "kdns.server"):
        run(story())
    assert [record.getMessage() for record in caplog.records] == ["no answer over tcp to boom.test. IN A, 1 so far"]


# Clocks


def test_a_connection_without_a_query_is_closed(run: Run) -> None:
    async def story() -> None:
        async with serving(Limits(first_query_seconds=SHORT)) as (server, _, address):
            client = await TcpClient.connect(address)
            assert EARLY < await client.until_closed() < LATE
            assert server.closed_idle == 1
            await client.close()

    run(story())


def test_a_connection_that_was_answered_stays_for_the_idle_time(run: Run) -> None:
    async def story() -> None:
        limits = Limits(first_query_seconds=0.1, idle_seconds=SHORT)
        async with serving(limits) as (server, _, address):
            client = await TcpClient.connect(address)
            for number in range(3):
                client.writer.write(framed(query("now.test.", number)))
                assert await client.read_number() == number
                await asyncio.sleep(0.05)
            assert EARLY - 0.05 < await client.until_closed() < LATE
            assert server.closed_idle == 1
            await client.close()

    run(story())


def test_the_idle_time_starts_with_a_late_answer(run: Run) -> None:
    async def story() -> None:
        async with serving(Limits(first_query_seconds=0.1, idle_seconds=SHORT)) as (_, _, address):
            client = await TcpClient.connect(address)
            client.writer.write(framed(query("later-500.test.", 1)))
            assert await client.read_number() == 1
            assert EARLY < await client.until_closed() < LATE
            await client.close()

    run(story())


@pytest.mark.parametrize("first", [b"\x00", b"\x00\x20", framed(query("now.test."))[:-1]], ids=["one", "two", "most"])
def test_a_message_that_is_not_completed_is_cut(run: Run, first: bytes) -> None:
    async def story() -> None:
        async with serving(Limits(message_seconds=SHORT)) as (server, _, address):
            client = await TcpClient.connect(address)
            client.writer.write(framed(query("now.test.", 1)))
            assert await client.read_number() == 1
            client.writer.write(first)
            assert EARLY < await client.until_closed() < LATE
            assert server.closed_slow == 1
            await client.close()

    run(story())


def test_dripping_bytes_buys_no_time(run: Run) -> None:
    async def story() -> None:
        async with serving(Limits(message_seconds=0.5, first_query_seconds=0.5)) as (_, _, address):
            client = await TcpClient.connect(address)
            client.writer.write(b"\xff\xff")

            async def drip() -> None:
                while True:
                    client.writer.write(b"x")
                    await asyncio.sleep(0.05)

            dripping = asyncio.ensure_future(drip())
            assert 0.4 < await client.until_closed() < LATE
            dripping.cancel()
            await client.close()

    run(story())


def test_a_client_that_never_reads_is_held_back_and_then_cut(run: Run) -> None:
    async def story() -> None:
        async with serving(Limits(stall_seconds=SHORT)) as (server, responder, address):
            client = await TcpClient.connect(address)
            client.writer.transport.pause_reading()
            transport = client.writer.transport
            sent = 0
            started = time.monotonic()
            while server.closed_stalled == 0:
                assert time.monotonic() - started < 15
                if transport.get_write_buffer_size() < 65536 and sent < 200_000:
                    client.writer.write(framed(*(query("big-4000.test.", number) for number in range(100))))
                    sent += 100
                for connection in server.connections:
                    held = connection._transport.get_write_buffer_size() + len(connection._buffer)
                    assert held < 1024 * 1024
                await asyncio.sleep(0)
            assert len(responder.packets) < sent
            transport.abort()

    run(story())


def test_a_client_that_reads_slowly_but_reads_gets_everything(run: Run) -> None:
    async def story() -> None:
        async with serving(Limits(stall_seconds=1.5)) as (server, _, address):
            client = await TcpClient.connect(address)
            client.writer.transport.pause_reading()
            client.writer.write(framed(*(query("big-60000.test.", number) for number in range(300))))
            await eventually(lambda: any(connection._blocked for connection in server.connections))
            await asyncio.sleep(0.3)
            client.writer.transport.resume_reading()
            for number in range(300):
                assert await client.read_number() == number
            assert server.closed_stalled == 0
            await client.close()

    run(story())


def test_replies_for_who_does_not_read_have_a_bound(run: Run) -> None:
    async def story() -> None:
        limits = Limits(in_flight=1000, most_bytes=200_000, high_water_bytes=20_000)
        async with serving(limits) as (server, responder, address):
            client = await TcpClient.connect(address)
            client.writer.transport.pause_reading()
            # The answers come all at once, after reading stopped being of any use.
            sent = [query("later-100.test.", number) + bytes(60_000) for number in range(300)]
            client.writer.write(framed(*sent))
            await eventually(lambda: server.closed_stalled == 1, 15)
            await eventually(lambda: not server.connections)
            assert responder.cancelled > 0
            client.writer.transport.abort()

    run(story())


# Caps


def test_no_more_queries_than_allowed_are_in_flight_on_a_connection(run: Run) -> None:
    async def story() -> None:
        async with serving(Limits(in_flight=5)) as (_, responder, address):
            client = await TcpClient.connect(address)
            client.writer.write(framed(*(query("later-100.test.", number) for number in range(20))))
            await eventually(lambda: len(responder.packets) == 5)
            await asyncio.sleep(0.02)
            assert len(responder.packets) == 5
            assert sorted([await client.read_number() for _ in range(20)]) == list(range(20))
            await client.close()

    run(story())


def test_connections_beyond_the_table_are_closed_at_once_and_places_come_back(run: Run) -> None:
    async def story() -> None:
        async with serving(Limits(connections=3, per_client=3)) as (server, _, address):
            clients = [await TcpClient.connect(address) for _ in range(3)]
            await eventually(lambda: len(server.connections) == 3)
            more = await TcpClient.connect(address)
            assert await more.until_closed() < LATE
            assert server.refused_full == 1
            await more.close()
            await clients.pop().close()
            await eventually(lambda: len(server.connections) == 2)
            clients.append(await TcpClient.connect(address))
            for client in clients:
                client.writer.write(framed(query("now.test.", 5)))
                assert await client.read_number() == 5
                await client.close()

    run(story())


def test_one_address_cannot_take_all_places(run: Run) -> None:
    async def story() -> None:
        async with serving(Limits(per_client=2)) as (server, _, address):
            greedy = [await TcpClient.connect(address, "127.0.0.2") for _ in range(2)]
            await eventually(lambda: len(server.connections) == 2)
            more = await TcpClient.connect(address, "127.0.0.2")
            assert await more.until_closed() < LATE
            assert server.refused_client == 1
            other = await TcpClient.connect(address, "127.0.0.3")
            other.writer.write(framed(query("now.test.", 5)))
            assert await other.read_number() == 5
            for client in (*greedy, more, other):
                await client.close()
            await eventually(lambda: not server.connections)
            assert server._clients == {}
            assert server._taken == 0

    run(story())


def test_one_address_gets_half_of_the_table_and_who_gets_more_is_logged_once(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    async def story() -> None:
        async with serving(Limits(connections=4)) as (server, _, address):
            clients = [await TcpClient.connect(address, "127.0.0.2") for _ in range(2)]
            await eventually(lambda: len(server.connections) == 2)
            clients += [await TcpClient.connect(address, "127.0.0.2") for _ in range(3)]
            await eventually(lambda: server.refused_client == 3)
            clients += [await TcpClient.connect(address, "127.0.0.3") for _ in range(2)]
            await eventually(lambda: len(server.connections) == 4)
            for client in clients:
                await client.close()

    with caplog.at_level(logging.WARNING, "kdns.server"):
        run(story())
    assert [record.getMessage() for record in caplog.records] == [
        "a TCP connection was refused: 127.0.0.2 has 2; 1 refused so far"
    ]


def test_what_clients_are_told_of_the_idle_time_is_true(run: Run) -> None:
    async def story() -> None:
        async with serving(Limits(connections=4, per_client=4, shortest_idle_seconds=0.5)) as (server, _, address):
            assert server.told_idle_seconds() == 10.0
            clients = [await TcpClient.connect(address) for _ in range(4)]
            await eventually(lambda: len(server.connections) == 4)
            assert server.told_idle_seconds() == 0.5
            for client in clients:
                await client.close()
        assert server.told_idle_seconds() == 0.0, "a server that ends has no time to give"

    run(story())


def test_a_filling_table_shortens_the_stay_of_the_idle(run: Run) -> None:
    async def story() -> None:
        async with serving(Limits(connections=4, per_client=4, shortest_idle_seconds=0.1)) as (_, _, address):
            idle = await TcpClient.connect(address)
            idle.writer.write(framed(query("now.test.")))
            await idle.read()
            others = [await TcpClient.connect(address) for _ in range(3)]
            # Ten seconds were its due while the table was empty.
            assert await idle.until_closed() < LATE
            for client in (idle, *others):
                await client.close()

    run(story())


def test_the_table_is_half_of_the_descriptors_at_most() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, before[1]))
    try:
        assert TcpServer(StandIn(), [])._capacity == 100
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert TcpServer(StandIn(), [])._capacity <= 1000


def test_without_descriptors_the_server_waits_instead_of_spinning(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        async with serving(Limits(accept_pause_seconds=0.1)) as (server, _, address):
            waiting = socket.create_connection(address)
            client = await TcpClient.connect(address)
            await eventually(lambda: len(server.connections) == 2)
            hoard: list[int] = []
            late = socket.socket()
            late.setblocking(False)
            before = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(before[0], 256), before[1]))
            try:
                try:
                    while True:
                        hoard.append(os.dup(0))
                except OSError:
                    pass
                late.connect_ex(address)
                await eventually(lambda: server.accept_errors >= 1)
                cpu = time.process_time()
                errors = server.accept_errors
                await asyncio.sleep(0.5)
                assert time.process_time() - cpu < 0.25
                assert server.accept_errors - errors <= 6
                # Who is in already is served all the same.
                client.writer.write(framed(query("now.test.", 9)))
                assert await client.read_number() == 9
            finally:
                for descriptor in hoard:
                    os.close(descriptor)
                resource.setrlimit(resource.RLIMIT_NOFILE, before)
            await eventually(lambda: len(server.connections) == 3)
            late.close()
            waiting.close()
            await client.close()

    with caplog.at_level(logging.CRITICAL):
        run(story())


# Ends


def test_a_client_that_is_gone_has_its_queries_cancelled(run: Run) -> None:
    async def story() -> None:
        async with serving() as (server, responder, address):
            client = await TcpClient.connect(address)
            client.writer.write(framed(query("never.test."), query("later-50.test.")))
            await eventually(lambda: len(responder.packets) == 2)
            # A reset, as of a client that died.
            linger = struct.pack("ii", 1, 0)
            client.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            client.writer.transport.abort()
            await eventually(lambda: not server.connections)
            assert responder.cancelled == 2

    run(story())


def test_after_a_storm_of_resets_the_next_client_is_served(run: Run) -> None:
    async def story() -> None:
        async with serving() as (server, _, address):
            for _ in range(200):
                sock = socket.create_connection(address)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                sock.close()
            await eventually(lambda: server.accepted >= 100 and not server.connections)
            client = await TcpClient.connect(address)
            client.writer.write(framed(query("now.test.", 4)))
            assert await client.read_number() == 4
            await client.close()

    run(story())


def test_stop_finishes_what_is_in_flight_and_closes(run: Run) -> None:
    async def story() -> None:
        async with serving() as (server, responder, address):
            busy = await TcpClient.connect(address)
            busy.writer.write(framed(query("later-150.test.", 1)))
            idle = await TcpClient.connect(address)
            idle.writer.write(framed(query("now.test.", 2)))
            assert await idle.read_number() == 2
            await eventually(lambda: len(responder.packets) == 2)
            stopping = asyncio.ensure_future(server.stop(grace_seconds=5))
            assert await idle.until_closed() < LATE
            assert await busy.read_number() == 1
            assert await busy.reader.read() == b""
            await stopping
            with pytest.raises(OSError, match=r"refused|Connect call failed"):
                await TcpClient.connect(address)
            assert responder.cancelled == 0
            for client in (busy, idle):
                await client.close()

    run(story())


def test_stop_takes_in_who_was_in_the_queue(run: Run) -> None:
    async def story() -> None:
        async with serving() as (server, _, address):
            queued = [socket.create_connection(address) for _ in range(50)]
            for sock in queued:
                sock.sendall(framed(query("now.test.", 3)))
            await server.stop(grace_seconds=5)
            for sock in queued:
                sock.settimeout(5)
                assert sock.recv(100)[2:4] == b"\x00\x03"
                assert sock.recv(100) == b""
                sock.close()

    run(story())


def test_stop_cuts_who_is_not_done_after_the_grace(run: Run) -> None:
    async def story() -> None:
        async with serving() as (server, responder, address):
            client = await TcpClient.connect(address)
            client.writer.write(framed(query("never.test.")))
            silent = await TcpClient.connect(address)
            await eventually(lambda: len(responder.packets) == 1 and len(server.connections) == 2)
            started = time.monotonic()
            await server.stop(grace_seconds=SHORT)
            assert EARLY < time.monotonic() - started < LATE
            await eventually(lambda: not server.connections)
            assert responder.cancelled == 1
            await client.until_closed()
            for each in (client, silent):
                await each.close()

    run(story())
