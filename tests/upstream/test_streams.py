"""Connections to one upstream: which are made, which are used again, and how they end; over TCP and TLS."""

import asyncio
import contextlib
import re
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import uvloop

from kdns.upstream import streams
from kdns.upstream.question import Question
from kdns.upstream.sockets import Keeping, Upstream, UpstreamError, Way
from kdns.upstream.streams import Connections
from kdns.wire import names
from tests.upstream import certificates
from tests.upstream.fake import Fake, reply, says, silence, upstream

RIGHT = b"\x0a\x00\x00\x01"
WRONG = b"\x06\x06\x06\x06"

Run = Callable[[Coroutine[None, None, None]], None]


@pytest.fixture(params=["uvloop", "asyncio"])
def run(request: pytest.FixtureRequest) -> Run:
    return uvloop.run if request.param == "uvloop" else asyncio.run


@asynccontextmanager
async def connected(
    to: Fake | Upstream, context: ssl.SSLContext | None = None, **keeping: float
) -> AsyncIterator[tuple[Connections, list[bool]]]:
    """Connections, and for each question whether there was one already."""
    counted: list[bool] = []
    upstream_ = to if isinstance(to, Upstream) else to.upstream
    way = Way(keeping=Keeping(**keeping), context=context, count=counted.append)  # type: ignore[arg-type]
    found = Connections(upstream_, way)
    try:
        yield found, counted
    finally:
        found.close()
        # Aborted transports are gone in the next turn.
        await asyncio.sleep(0.01)


async def ask(connections: Connections, name: str = "www.example.org.", seconds: float = 5.0) -> list[bytes]:
    deadline = asyncio.get_running_loop().time() + seconds
    message = await connections.ask(Question(names.from_text(name), 1), deadline)
    assert message.qname == names.from_text(name)
    return [record.data for record in message.answer]


def test_a_connection_is_used_again(run: Run) -> None:
    async def story() -> None:
        async with upstream(tcp=says(RIGHT)) as fake, connected(fake) as (connections, counted):
            for _ in range(5):
                assert await ask(connections) == [RIGHT]
            assert (fake.connections, counted) == (1, [False, True, True, True, True])
            assert len({packet[:2] for packet in fake.tcp}) == 5

    run(story())


def test_questions_at_the_same_time_have_connections_of_their_own(run: Run) -> None:
    async def story() -> None:
        async with upstream(tcp=lambda query: [0.05, reply(query, RIGHT)]) as fake, connected(fake) as (found, counted):
            for _ in range(2):
                await asyncio.gather(*(ask(found, f"{number}.example.org.") for number in range(4)))
            assert (fake.connections, sorted(counted)) == (4, [False] * 4 + [True] * 4)

    run(story())


@pytest.mark.parametrize(
    ("keeping", "pause", "made"),
    [
        ({"idle_seconds": 0.0}, 0.0, 3),
        ({"idle_seconds": 0.1}, 0.0, 1),
        ({"idle_seconds": 0.1}, 0.2, 3),
        ({"idle_seconds": 0.2, "age_seconds": 0.25}, 0.15, 2),
    ],
)
def test_what_is_old_is_not_used_again(run: Run, keeping: dict[str, float], pause: float, made: int) -> None:
    async def story() -> None:
        async with upstream(tcp=says(RIGHT)) as fake, connected(fake, **keeping) as (found, _):
            for _ in range(3):
                await ask(found)
                await asyncio.sleep(pause)
            assert fake.connections == made

    run(story())


def test_what_is_not_needed_is_closed_without_another_question(run: Run) -> None:
    async def story() -> None:
        async with upstream(tcp=says(RIGHT)) as fake, connected(fake, idle_seconds=0.1) as (found, _):
            await ask(found)
            assert len(found._open) == 1
            await asyncio.sleep(0.3)
            assert (len(found._open), found._timer) == (0, None)

    run(story())


def test_no_more_are_kept_than_allowed(run: Run) -> None:
    async def story() -> None:
        slow = upstream(tcp=lambda query: [0.05, reply(query, RIGHT)])
        async with slow as fake, connected(fake, most_idle=2) as (found, _):
            await asyncio.gather(*(ask(found, f"{number}.example.org.") for number in range(5)))
            await asyncio.sleep(0.05)
            assert (fake.connections, len(found._open), len(found._idle)) == (5, 2, 2)

    run(story())


def test_one_that_the_upstream_closed_meanwhile_is_replaced(run: Run) -> None:
    async def story() -> None:
        # It answers once and closes: at once, or only when the next question comes.
        answered = 0

        def step(query: bytes) -> list[bytes | float]:
            nonlocal answered
            answered += 1
            return [reply(query, RIGHT), b""] if answered < 3 else [b""] if answered == 4 else [reply(query, RIGHT)]

        async with upstream(tcp=step) as fake, connected(fake) as (found, _):
            for _ in range(4):
                assert await ask(found) == [RIGHT]
                await asyncio.sleep(0.02)
            assert (fake.connections, len(fake.tcp)) == (4, 5)

    run(story())


def test_a_new_one_that_is_closed_is_an_error(run: Run) -> None:
    async def story() -> None:
        async with upstream(tcp=lambda query: [b""]) as fake, connected(fake) as (found, _):
            with pytest.raises(UpstreamError, match=r"read tcp 127\.0\.0\.1:\d+->127\.0\.0\.1:\d+: EOF"):
                await ask(found)
            assert fake.connections == 1

    run(story())


def test_one_on_which_a_question_stayed_without_reply_is_not_used_again(run: Run) -> None:
    async def story() -> None:
        async with upstream(tcp=lambda query: [0.2, reply(query, RIGHT)]) as fake, connected(fake) as (found, _):
            with pytest.raises(UpstreamError, match="i/o timeout"):
                await ask(found, seconds=0.1)
            assert await ask(found) == [RIGHT]
            assert fake.connections == 2

    run(story())


def test_when_there_are_enough_they_are_shared(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "most_connections", lambda: 2)

    async def story() -> None:
        # Replies in any order: each finds its question.
        held: list[bytes] = []

        def step(query: bytes) -> list[bytes | float]:
            held.append(query)
            return [reply(query, RIGHT)] if len(held) <= 2 else [0.02, reply(query, RIGHT)]

        async with upstream(tcp=step) as fake, connected(fake) as (found, _):
            await asyncio.gather(*(ask(found, f"{number}.example.org.") for number in range(2)))
            answers = await asyncio.gather(*(ask(found, f"{number}.example.org.") for number in range(10)))
            assert answers == [[RIGHT]] * 10
            assert fake.connections == 2

    run(story())


def test_a_burst_waits_for_connections_that_are_being_made(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "most_connections", lambda: 2)

    async def story() -> None:
        async with upstream(tcp=lambda query: [0.02, reply(query, RIGHT)]) as fake, connected(fake) as (found, _):
            answers = await asyncio.gather(*(ask(found, f"{number}.example.org.") for number in range(50)))
            assert answers == [[RIGHT]] * 50
            assert (fake.connections, found._waiting) == (2, [])

    run(story())


def test_a_burst_to_one_that_hangs_up_on_everybody_comes_to_an_end(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "most_connections", lambda: 2)

    async def story() -> None:
        async with upstream(tcp=lambda query: [b""]) as fake, connected(fake) as (found, _):
            asked = (ask(found, f"{number}.example.org.") for number in range(20))
            outcomes = await asyncio.gather(*asked, return_exceptions=True)
            assert {type(outcome) for outcome in outcomes} == {UpstreamError}
            assert (found._open, found._waiting, found._dialing) == (set(), [], 0)

    run(story())


def test_a_burst_to_one_that_never_takes_a_connection_times_out(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "most_connections", lambda: 2)

    async def story() -> None:
        with socket.socket() as full:
            # The backlog of a listener that accepts nothing is full after a connection or two.
            full.bind(("127.0.0.1", 0))
            full.listen(0)
            port = full.getsockname()[1]
            with contextlib.ExitStack() as stack:
                for _ in range(2):
                    other = stack.enter_context(socket.socket())
                    other.setblocking(False)
                    with contextlib.suppress(BlockingIOError):
                        other.connect(("127.0.0.1", port))
                async with connected(Upstream("127.0.0.1", port)) as (found, _):
                    asked = (ask(found, f"{number}.example.org.", 0.2) for number in range(5))
                    outcomes = await asyncio.gather(*asked, return_exceptions=True)
                    assert {str(outcome) for outcome in outcomes} == {f"dial tcp 127.0.0.1:{port}: i/o timeout"}
                    assert (found._open, found._waiting, found._dialing) == (set(), [], 0)

    run(story())


@pytest.mark.parametrize("size", [0, 1, 12, 600])
def test_messages_that_answer_nothing_end_the_connection(run: Run, size: int) -> None:
    async def story() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            # Two bytes of length and no message at all are the cheapest flood there is.
            writer.write((size.to_bytes(2, "big") + bytes(size)) * 100_000)
            with contextlib.suppress(ConnectionError):
                await reader.read()
                await reader.read()
            writer.transport.abort()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with connected(Upstream("127.0.0.1", port)) as (found, _):
            started = time.monotonic()
            with pytest.raises(UpstreamError, match="too many replies to nothing that was asked"):
                await ask(found)
            assert time.monotonic() - started < 1
        server.close()
        await asyncio.sleep(0.05)

    run(story())


def test_a_few_messages_that_answer_nothing_are_ignored(run: Run) -> None:
    async def story() -> None:
        lying = upstream(tcp=lambda query: [reply(query, WRONG, id_=1)] * 50 + [reply(query, RIGHT)])
        async with lying as fake, connected(fake) as (found, _):
            for _ in range(4):
                assert await ask(found) == [RIGHT]
            assert fake.connections == 1

    run(story())


def test_a_reply_in_pieces_is_put_together(run: Run) -> None:
    async def story() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            query = (await reader.readexactly(2 + 12 + 17 + 4 + 11))[2:]
            packet = reply(query, *[RIGHT] * 1000)
            for byte in (len(packet).to_bytes(2, "big") + packet)[:20]:
                writer.write(bytes((byte,)))
                await writer.drain()
                await asyncio.sleep(0.001)
            writer.write((len(packet).to_bytes(2, "big") + packet)[20:])
            await writer.drain()
            await reader.read()
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with connected(Upstream("127.0.0.1", port)) as (found, _):
            assert len(await ask(found)) == 1000
        server.close()
        await asyncio.sleep(0.05)

    run(story())


def test_whoever_gives_up_leaves_nothing_behind(run: Run) -> None:
    async def story() -> None:
        async with upstream(tcp=silence) as fake, connected(fake) as (found, _):
            for wait in (0, 0.05):
                asked = [asyncio.ensure_future(ask(found, f"{number}.example.org.")) for number in range(5)]
                await asyncio.sleep(wait)
                for task in asked:
                    task.cancel()
                for task in asked:
                    with contextlib.suppress(asyncio.CancelledError):
                        await task
            await asyncio.sleep(0.05)
            assert (len(found._open), len(found._idle), found._dialing) == (0, 0, 0)
        # A socket left open would be a ResourceWarning, and those are errors here.

    run(story())


# TLS


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("certificates")


@pytest.fixture(scope="session")
def made(folder: Path) -> tuple[Path, Path]:
    return certificates.make(folder, "server", "DNS:dns.example", "IP:127.0.0.1")


@pytest.mark.parametrize("name", ["dns.example", ""])
def test_over_tls_a_connection_is_used_again(run: Run, made: tuple[Path, Path], name: str) -> None:
    async def story() -> None:
        async with upstream(tcp=says(RIGHT), tls=certificates.server(*made)) as fake:
            to = Upstream(fake.upstream.host, fake.upstream.port, True, name)
            async with connected(to, ssl.create_default_context(cafile=made[0])) as (found, counted):
                for _ in range(3):
                    assert await ask(found) == [RIGHT]
                assert (fake.connections, counted) == (1, [False, True, True])

    run(story())


@pytest.mark.parametrize(
    ("name", "trusted", "words"),
    [
        ("other.example", True, "tls: failed to verify certificate: .*mismatch"),
        ("dns.example", False, "tls: failed to verify certificate: self-signed certificate"),
    ],
)
def test_a_certificate_that_is_not_the_upstreams_is_an_error(
    run: Run, made: tuple[Path, Path], name: str, trusted: bool, words: str
) -> None:
    async def story() -> None:
        async with upstream(tcp=says(RIGHT), tls=certificates.server(*made)) as fake:
            to = Upstream(fake.upstream.host, fake.upstream.port, True, name)
            context = ssl.create_default_context(cafile=made[0]) if trusted else ssl.create_default_context()
            async with connected(to, context) as (found, _):
                with pytest.raises(UpstreamError) as caught:
                    await ask(found)
                assert re.search(words, str(caught.value), re.IGNORECASE)
                assert (caught.value.silent, caught.value.own, fake.tcp) == (False, False, [])

    run(story())


def test_an_upstream_that_knows_no_tls_is_an_error_in_time(run: Run, made: tuple[Path, Path]) -> None:
    async def story() -> None:
        async with upstream(tcp=silence) as fake:
            to = Upstream(fake.upstream.host, fake.upstream.port, True, "dns.example")
            async with connected(to, ssl.create_default_context(cafile=made[0])) as (found, _):
                with pytest.raises(UpstreamError) as caught:
                    await ask(found, seconds=0.2)
                assert "i/o timeout" in str(caught.value)
                assert caught.value.silent

    run(story())
