"""Many datagrams by one system call, against Python's own sockets."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

import pytest

from kdns.server.mmsg import PLACE_BYTES, PLACES, Ring
from kdns.server.udp import open_udp

HOSTS = pytest.mark.parametrize("host", ["127.0.0.1", "::1"])


@pytest.fixture
def clients() -> Iterator[list[socket.socket]]:
    made: list[socket.socket] = []
    yield made
    for each in made:
        each.close()


def client(made: list[socket.socket], server: socket.socket, host: str) -> socket.socket:
    sock = socket.socket(server.family, socket.SOCK_DGRAM)
    sock.settimeout(5)
    sock.connect((host, server.getsockname()[1]))
    made.append(sock)
    return sock


@HOSTS
def test_each_datagram_has_its_place_and_its_reply_goes_back(host: str, clients: list[socket.socket]) -> None:
    with open_udp(host, 0) as server:
        ring = Ring(server, destinations=False)
        asking = [client(clients, server, host) for _ in range(5)]
        # Twice: what the kernel changed for the first is put back for the second.
        for turn in (b"a", b"bcd"):
            for number, each in enumerate(asking):
                each.send(turn * (number + 1))
            assert ring.receive() == 5
            for number, each in enumerate(asking):
                assert ring.packet(number) == turn * (number + 1)
                assert ring.peer(number)[:2] == each.getsockname()[:2]
                assert not ring.was_cut(number)
                ring.reply(number, b"reply %d" % number)
            assert ring.send(0, 5) == (0, 0)
            assert [each.recv(100) for each in asking] == [b"reply %d" % number for number in range(5)]


@HOSTS
def test_only_the_places_that_are_named_are_sent(host: str, clients: list[socket.socket]) -> None:
    with open_udp(host, 0) as server:
        ring = Ring(server, destinations=False)
        asking = [client(clients, server, host) for _ in range(3)]
        for each in asking:
            each.send(b"?")
        assert ring.receive() == 3
        for number in range(3):
            ring.reply(number, b"%d" % number)
        assert ring.send(1, 2) == (0, 0)
        assert asking[1].recv(10) == b"1"
        for each in (asking[0], asking[2]):
            each.setblocking(False)
            with pytest.raises(BlockingIOError):
                each.recv(10)


def test_without_a_datagram_it_would_block() -> None:
    with open_udp("127.0.0.1", 0) as server:
        ring = Ring(server, destinations=False)
        for _ in range(2):
            with pytest.raises(BlockingIOError):
                ring.receive()


def test_no_more_come_at_once_than_there_are_places(clients: list[socket.socket]) -> None:
    with open_udp("127.0.0.1", 0) as server:
        ring = Ring(server, destinations=False)
        asking = client(clients, server, "127.0.0.1")
        for number in range(PLACES + 3):
            asking.send(b"%d" % number)
        assert ring.receive() == PLACES
        assert ring.packet(PLACES - 1) == b"%d" % (PLACES - 1)
        assert ring.receive() == 3
        assert [ring.packet(number) for number in range(3)] == [b"%d" % (PLACES + number) for number in range(3)]


def test_a_datagram_larger_than_its_place_is_cut_and_says_so(clients: list[socket.socket]) -> None:
    with open_udp("127.0.0.1", 0) as server:
        ring = Ring(server, destinations=False)
        asking = client(clients, server, "127.0.0.1")
        for size in (PLACE_BYTES, PLACE_BYTES + 1, 10):
            asking.send(b"x" * size)
        assert ring.receive() == 3
        assert [ring.was_cut(number) for number in range(3)] == [False, True, False]
        assert [len(ring.packet(number)) for number in range(3)] == [PLACE_BYTES, PLACE_BYTES, 10]


@pytest.mark.parametrize(("anywhere", "asked"), [("0.0.0.0", "127.0.0.9"), ("::", "::1")])
def test_a_reply_leaves_from_the_address_that_was_asked(
    anywhere: str, asked: str, clients: list[socket.socket]
) -> None:
    with open_udp(anywhere, 0) as server:
        ring = Ring(server, destinations=True)
        # Connected: a reply from any other address would never arrive.
        asking = client(clients, server, asked)
        for _ in range(2):
            asking.send(b"?")
            assert ring.receive() == 1
            ((_, _, data),) = ring.ancillary(0)
            assert socket.inet_pton(server.family, asked) in data
            assert struct.unpack("=i", data[:4] if server.family == socket.AF_INET else data[16:])[0] > 0
            ring.leave_interfaces_to_routing(1)
            ((_, _, data),) = ring.ancillary(0)
            assert struct.unpack("=i", data[:4] if server.family == socket.AF_INET else data[16:])[0] == 0
            ring.reply(0, b"!")
            assert ring.send(0, 1) == (0, 0)
            assert asking.recv(10) == b"!"


def test_a_message_that_fails_costs_the_others_nothing(clients: list[socket.socket]) -> None:
    with open_udp("127.0.0.1", 0) as server:
        ring = Ring(server, destinations=False)
        asking = [client(clients, server, "127.0.0.1") for _ in range(3)]
        for each in asking:
            each.send(b"?")
        assert ring.receive() == 3
        for number in range(3):
            ring.reply(number, b"%d" % number)
        # Nobody can be reached at port 0: the kernel refuses this one.
        ring.ports[1 * 16 + 1] = 0
        assert ring.send(0, 3) == (0, 1)
        assert asking[0].recv(10) == b"0"
        assert asking[2].recv(10) == b"2"
