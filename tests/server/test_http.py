"""HTTP for probes and scrapes, over real sockets on loopback: what is answered, and what strangers can't do."""

import asyncio
import contextlib
import gzip
import socket
from collections.abc import Awaitable, Callable

import pytest

from kdns.chain import Route
from kdns.errors import ConfigError
from kdns.server import http
from kdns.server.http import HttpServer


def route(path: str, body: bytes = b"OK", port: int = 0, address: str = "127.0.0.1", status: int = 200) -> Route:
    return Route(address, port, path, lambda headers: (status, body, "text/plain; charset=utf-8"))


def serving(routes: list[Route], talk: Callable[[HttpServer], Awaitable[None]]) -> None:
    async def run() -> None:
        server = HttpServer(routes)
        await server.start()
        try:
            await asyncio.wait_for(talk(server), 20)
        finally:
            await server.stop()

    asyncio.run(run())


async def ask(server: HttpServer, request: str, place: int = 0) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of the reply to a request that is written here by hand."""
    reader, writer = await asyncio.open_connection(*server.addresses[place])
    writer.write(request.encode())
    reply = await reader.read()
    writer.close()
    head, _, body = reply.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    return int(first.split()[1]), headers, body


def request(method: str, path: str, *headers: str) -> str:
    return "".join(f"{line}\r\n" for line in (f"{method} {path} HTTP/1.1", "Host: x", *headers, ""))


@pytest.mark.parametrize(
    ("method", "path", "status", "body"),
    [
        ("GET", "/health", 200, b"OK"),
        ("POST", "/health", 200, b"OK"),
        ("DELETE", "/health", 200, b"OK"),
        ("HEAD", "/health", 200, b""),
        ("GET", "/health?now=1", 200, b"OK"),
        ("GET", "/ready", 503, b"kubernetes"),
        ("GET", "/", 404, b"404 page not found\n"),
        ("GET", "/health/", 404, b"404 page not found\n"),
        ("GET", "/metrics", 404, b"404 page not found\n"),
    ],
)
def test_a_path_is_answered_by_its_route_and_no_other_path_is(method: str, path: str, status: int, body: bytes) -> None:
    async def talk(server: HttpServer) -> None:
        said = await ask(server, request(method, path))
        assert (said[0], said[2]) == (status, body)
        assert said[1]["content-type"] == "text/plain; charset=utf-8"
        assert said[1]["connection"] == "close"

    serving([route("/health"), route("/ready", b"kubernetes", status=503)], talk)


def test_routes_are_grouped_by_address_and_port_and_the_first_of_equals_holds() -> None:
    async def talk(server: HttpServer) -> None:
        assert len(server.addresses) == 2
        assert (await ask(server, request("GET", "/health")))[2] == b"first"
        assert (await ask(server, request("GET", "/ready")))[2] == b"ready"
        assert (await ask(server, request("GET", "/ready"), place=1))[0] == 404

    elsewhere = Route("127.0.0.2", 0, "/health", lambda headers: (200, b"elsewhere", "text/plain"))
    serving([route("/health", b"first"), elsewhere, route("/health", b"second"), route("/ready", b"ready")], talk)


def test_a_route_gets_the_headers_by_names_in_lower_case() -> None:
    async def talk(server: HttpServer) -> None:
        said = await ask(server, request("GET", "/", "ACCEPT: application/openmetrics-text"))
        assert said[2] == b"application/openmetrics-text"

    serving([Route("127.0.0.1", 0, "/", lambda headers: (200, headers["accept"].encode(), "text/plain"))], talk)


def test_a_long_reply_is_compressed_for_who_accepts_it() -> None:
    body = b"metric 1\n" * 1000

    async def talk(server: HttpServer) -> None:
        status, headers, said = await ask(server, request("GET", "/metrics", "Accept-Encoding: gzip"))
        assert (status, headers["content-encoding"], gzip.decompress(said)) == (200, "gzip", body)
        assert (await ask(server, request("GET", "/metrics")))[2] == body

    serving([route("/metrics", body)], talk)


def test_a_route_that_fails_is_told_and_answered_with_500(caplog: pytest.LogCaptureFixture) -> None:
    def fail(headers: dict[str, str]) -> tuple[int, bytes, str]:
        raise RuntimeError("secret")

    async def talk(server: HttpServer) -> None:
        status, _, body = await ask(server, request("GET", "/"))
        assert (status, body) == (500, b"internal error\n")

    serving([Route("127.0.0.1", 0, "/", fail)], talk)
    assert caplog.messages == ["no reply for HTTP path /"]


@pytest.mark.parametrize(
    "packet",
    [
        pytest.param("GET /" + "a" * 10_000 + " HTTP/1.1\r\nHost: x\r\n\r\n", id="a path that is too long"),
        pytest.param(request("GET", "/health", "X: " + "a" * 10_000), id="a header that is too long"),
        pytest.param(request("GET", "/health", *(f"X{i}: a" for i in range(200))), id="too many headers"),
        pytest.param("\x16\x03\x01\x02\r\n\r\n", id="a TLS hello"),
        pytest.param("GET /health HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", id="a length below zero"),
    ],
)
def test_what_is_no_proper_request_gets_an_error_and_no_log_line(packet: str, caplog: pytest.LogCaptureFixture) -> None:
    async def talk(server: HttpServer) -> None:
        assert (await ask(server, packet))[0] == 400
        assert (await ask(server, request("GET", "/health")))[0] == 200

    serving([route("/health")], talk)
    assert caplog.messages == []


def test_who_sends_nothing_is_cut_off_and_others_are_served_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "CONNECTION_SECONDS", 0.2)

    async def talk(server: HttpServer) -> None:
        slow = [await asyncio.open_connection(*server.addresses[0]) for _ in range(3)]
        slow[0][1].write(b"GET /health HTTP/1.1\r\nX:")
        assert (await ask(server, request("GET", "/health")))[0] == 200
        for reader, writer in slow:
            with contextlib.suppress(ConnectionResetError):
                assert await reader.read() == b""
            writer.close()

    serving([route("/health")], talk)


def test_a_crowd_that_holds_its_connections_does_not_keep_a_probe_out() -> None:
    async def talk(server: HttpServer) -> None:
        crowd = [await asyncio.open_connection(*server.addresses[0]) for _ in range(http.MOST_CONNECTIONS + 20)]
        assert (await ask(server, request("GET", "/health")))[0] == 200
        for _, writer in crowd:
            writer.close()

    serving([route("/health")], talk)


def test_a_port_that_is_taken_is_the_users_business_and_nothing_listens() -> None:
    async def run() -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            server = HttpServer(
                [route("/ready"), route("/health", port=port), route("/metrics", address="192.0.2.1", port=1)]
            )
            with pytest.raises(ConfigError) as raised:
                await server.start()
            assert server.addresses == []
        text = str(raised.value)
        assert f"cannot listen on `127.0.0.1:{port}` for /health: address already in use" in text
        assert f"sport = :{port}" in text
        assert "cannot listen on `192.0.2.1:1` for /metrics: cannot assign requested address" in text

    asyncio.run(run())


def test_new_routes_take_over_without_closing_what_stays_and_a_mistake_changes_nothing() -> None:
    async def talk(server: HttpServer) -> None:
        before = server.addresses
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            with pytest.raises(ConfigError):
                await server.replace([route("/health", b"lost"), route("/x", port=taken.getsockname()[1])])
        assert (await ask(server, request("GET", "/health")))[2] == b"old"
        await server.replace([route("/health", b"new")])
        assert server.addresses == before
        assert (await ask(server, request("GET", "/health")))[2] == b"new"
        await server.replace([])
        assert server.addresses == []
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(*before[0])

    serving([route("/health", b"old")], talk)


@pytest.mark.parametrize(("address", "clients"), [("", ["127.0.0.1", "::1"]), ("localhost", ["127.0.0.1", "::1"])])
def test_no_address_is_all_of_them_and_localhost_needs_no_resolver(address: str, clients: list[str]) -> None:
    async def talk(server: HttpServer) -> None:
        families = {":" in host for host, _ in server.addresses}
        port = server.addresses[0][1]
        for client in clients:
            if (":" in client) in families:
                _, writer = await asyncio.open_connection(client, port)
                writer.close()

    serving([route("/health", address=address)], talk)
