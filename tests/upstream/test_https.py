"""Questions over HTTPS: what is asked, on which connection, which reply is believed, and what is said of the others."""

import asyncio
import ssl
import struct
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import uvloop

from kdns.upstream.https import HttpsConnections
from kdns.upstream.question import Question
from kdns.upstream.sockets import Keeping, Upstream, UpstreamError, Way
from kdns.wire import names
from kdns.wire.message import Message
from kdns.wire.query import RD
from tests.upstream import certificates, https
from tests.upstream.fake import reply
from tests.upstream.fake import upstream as plain
from tests.upstream.https import Asked, Fake, Script, response, says

RIGHT = b"\x0a\x00\x00\x01"
WRONG = b"\x06\x06\x06\x06"
NAME = "www.example.org."

Run = Callable[[Coroutine[None, None, None]], None]


@pytest.fixture(params=["uvloop", "asyncio"])
def run(request: pytest.FixtureRequest) -> Run:
    return uvloop.run if request.param == "uvloop" else asyncio.run


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("certificates")
    return certificates.make(folder, "server", "DNS:dns.example", "IP:127.0.0.1", "IP:::1")


@asynccontextmanager
async def connected(
    to: Upstream, made: tuple[Path, Path], method: str = "POST", source: str = "", **keeping: float
) -> AsyncIterator[tuple[HttpsConnections, list[bool]]]:
    """Connections, and for each request whether there was one already."""
    counted: list[bool] = []
    context = ssl.create_default_context(cafile=made[0])
    kept = Keeping(**keeping)  # type: ignore[arg-type]
    found = HttpsConnections(to, Way(keeping=kept, context=context, method=method, source=source, count=counted.append))
    try:
        yield found, counted
    finally:
        found.close()
        # The connections are gone some turns later.
        await asyncio.sleep(0.01)


async def ask(connections: HttpsConnections, seconds: float = 5.0, name: str = NAME) -> Message:
    deadline = asyncio.get_running_loop().time() + seconds
    return await connections.ask(Question(names.from_text(name), 1), deadline)


def addresses(message: Message) -> list[bytes]:
    return [record.data for record in message.answer]


@pytest.mark.parametrize("method", ["POST", "GET"])
def test_a_question_is_asked_as_rfc_8484_has_it(run: Run, made: tuple[Path, Path], method: str) -> None:
    async def story() -> None:
        async with (
            https.upstream(says(RIGHT), tls=certificates.server(*made)) as fake,
            connected(fake.upstream(), made, method) as (found, counted),
        ):
            for _ in range(3):
                assert addresses(await ask(found)) == [RIGHT]
            asked = fake.asked[0]
            assert (asked.method, asked.path, asked.query) == (method, "/dns-query", packet())
            assert asked.headers.pop("content-length", "44" if method == "POST" else "") in ("44", "")
            media_types = {"accept": https.MEDIA_TYPE} | (
                {"content-type": https.MEDIA_TYPE} if method == "POST" else {}
            )
            # Nothing that would tell who asks.
            assert asked.headers == {"host": f"127.0.0.1:{fake.port}", **media_types}
            assert (fake.connections, counted) == (1, [False, True, True])

    run(story())


def packet() -> bytes:
    """The query with the ID 0, which RFC 8484 §4.1 asks for."""
    return Question(names.from_text(NAME), 1, RD).packet(0)


def test_a_name_is_for_the_certificate_and_the_host_and_a_path_may_be_given(run: Run, made: tuple[Path, Path]) -> None:
    async def story() -> None:
        async with (
            https.upstream(says(RIGHT), tls=certificates.server(*made)) as fake,
            connected(fake.upstream("dns.example", "/other/path"), made) as (found, _),
        ):
            assert addresses(await ask(found)) == [RIGHT]
            assert (fake.asked[0].path, fake.asked[0].headers["host"]) == ("/other/path", f"dns.example:{fake.port}")

    run(story())


def test_over_ipv6_and_from_an_address_of_ours(run: Run, made: tuple[Path, Path]) -> None:
    async def story() -> None:
        async with (
            https.upstream(says(RIGHT), tls=certificates.server(*made), host="::1") as six,
            https.upstream(says(RIGHT), tls=certificates.server(*made)) as four,
            connected(six.upstream(), made) as (of_six, _),
            connected(four.upstream(), made, source="127.0.0.2") as (of_four, _),
        ):
            assert addresses(await ask(of_six)) == addresses(await ask(of_four)) == [RIGHT]
            assert six.asked[0].headers["host"] == f"[::1]:{six.port}"
            assert four.hosts == ["127.0.0.2"]

    run(story())


@pytest.mark.parametrize(
    ("name", "trusted"), [("other.example", True), ("dns.example", False)], ids=["another name", "nobody vouches"]
)
def test_a_certificate_that_is_not_the_upstreams_is_an_error(
    run: Run, made: tuple[Path, Path], tmp_path: Path, name: str, trusted: bool
) -> None:
    async def story() -> None:
        trust = made if trusted else certificates.make(tmp_path, "stranger", "DNS:stranger.example")
        async with (
            https.upstream(says(RIGHT), tls=certificates.server(*made)) as fake,
            connected(fake.upstream(name), trust) as (found, _),
        ):
            words = f"dial tcp 127.0.0.1:{fake.port}: tls: failed to verify certificate: "
            with pytest.raises(UpstreamError, match=words) as caught:
                await ask(found)
            assert (caught.value.silent, caught.value.own, fake.asked) == (False, False, [])

    run(story())


# What comes back, and the words for it.
LIES: list[tuple[str, Script, str]] = [
    ("an error of HTTP", lambda asked: response(b"busy", 503), "HTTP status 503"),
    ("a redirection", lambda asked: response(b"", 302, Location="https://127.0.0.1:9/"), "HTTP status 302"),
    ("a page", lambda asked: response(reply(asked.query, WRONG), media_type="text/html"), "no DNS message"),
    ("another ID", lambda asked: response(reply(asked.query, WRONG, id_=7)), "another question"),
    ("another question", lambda asked: response(reply(asked.query, WRONG, question=other())), "another question"),
    ("no reply", lambda asked: response(reply(asked.query, WRONG, flags=0x0100)), "another question"),
    ("our own query", lambda asked: response(asked.query), "another question"),
    ("nothing", lambda asked: response(b""), "another question"),
    ("half a message", lambda asked: response(reply(asked.query, WRONG)[:-3]), "a record runs past the end"),
    ("an endless one", lambda asked: response(reply(asked.query, WRONG) + bytes(70_000)), "longer than a DNS message"),
    (
        "no HTTP",
        lambda asked: b"\x00\x1f" + reply(asked.query, WRONG) + b"\r\n\r\n",
        "Bad status line|Invalid|Expected HTTP",
    ),
    ("endless headers", lambda asked: b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n", "when reading|headers"),
    ("endless interim responses", lambda asked: b"HTTP/1.1 100 Continue\r\n\r\n" * 100_000, "more responses than"),
    ("an end", lambda asked: b"", "EOF"),
    ("half a body", lambda asked: response(reply(asked.query, WRONG), **{"Content-Length": "999"}), "i/o timeout"),
    ("silence", lambda asked: None, "i/o timeout"),
]


def other() -> bytes:
    return names.from_text("www.example.com.") + struct.pack("!HH", 1, 1)


@pytest.mark.parametrize(("lie", "words"), [each[1:] for each in LIES], ids=[each[0] for each in LIES])
def test_what_is_no_reply_to_the_question_is_an_error_and_the_next_one_is_believed(
    run: Run, made: tuple[Path, Path], lie: Script, words: str
) -> None:
    async def story() -> None:
        async with (
            https.upstream(lie, says(RIGHT), tls=certificates.server(*made)) as fake,
            connected(fake.upstream(), made) as (found, _),
        ):
            with pytest.raises(UpstreamError, match=words) as caught:
                await ask(found, 0.3 if "timeout" in words else 5.0)
            assert caught.value.silent == ("timeout" in words)
            assert len(str(caught.value)) < 400
            assert addresses(await ask(found)) == [RIGHT]

    run(story())


def test_a_case_that_the_upstream_folds_is_no_other_question(run: Run, made: tuple[Path, Path]) -> None:
    async def story() -> None:
        def upper(asked: Asked) -> bytes:
            question = names.from_text("WWW.example.ORG.") + struct.pack("!HH", 1, 1)
            return response(reply(asked.query, RIGHT, question=question))

        async with (
            https.upstream(upper, tls=certificates.server(*made)) as fake,
            connected(fake.upstream(), made) as (found, _),
        ):
            assert addresses(await ask(found)) == [RIGHT]

    run(story())


@pytest.mark.parametrize(("age", "ttl"), [("10", 20), ("31", 0), ("x", 30), ("-5", 30), ("9" * 400, 30)])
def test_the_age_of_what_a_cache_of_http_gave_is_taken_off_its_ttls(
    run: Run, made: tuple[Path, Path], age: str, ttl: int
) -> None:
    async def story() -> None:
        async with (
            https.upstream(
                lambda asked: response(reply(asked.query, RIGHT), Age=age), tls=certificates.server(*made)
            ) as fake,
            connected(fake.upstream(), made) as (found, _),
        ):
            assert [record.ttl for record in (await ask(found)).answer] == [ttl]

    run(story())


@pytest.mark.parametrize("method", ["POST", "GET"])
def test_a_connection_that_was_closed_meanwhile_is_replaced(run: Run, made: tuple[Path, Path], method: str) -> None:
    async def story() -> None:
        async with (
            https.upstream(says(RIGHT), lambda asked: b"", says(RIGHT), tls=certificates.server(*made)) as fake,
            connected(fake.upstream(), made, method) as (found, _),
        ):
            for _ in range(2):
                assert addresses(await ask(found)) == [RIGHT]
            assert (fake.connections, len(fake.asked)) == (2, 3)

    run(story())


def test_questions_at_the_same_time_have_connections_of_their_own(run: Run, made: tuple[Path, Path]) -> None:
    async def story() -> None:
        async with (
            https.upstream(says(RIGHT), tls=certificates.server(*made)) as fake,
            connected(fake.upstream(), made) as (found, _),
        ):
            said = await asyncio.gather(*(ask(found, name=f"n{number}.example.") for number in range(20)))
            assert all(addresses(each) == [RIGHT] for each in said)
            assert {names.to_text(each.qname) for each in said} == {f"n{number}.example." for number in range(20)}
            assert 1 < fake.connections <= 20

    run(story())


def test_with_no_time_to_be_kept_each_question_has_a_connection(run: Run, made: tuple[Path, Path]) -> None:
    async def story() -> None:
        async with (
            https.upstream(says(RIGHT), tls=certificates.server(*made)) as fake,
            connected(fake.upstream(), made, idle_seconds=0.0) as (found, counted),
        ):
            for _ in range(3):
                await ask(found)
            assert (fake.connections, counted) == (3, [False, False, False])

    run(story())


def test_a_port_where_nobody_listens_is_an_error_in_the_words_of_go(run: Run, made: tuple[Path, Path]) -> None:
    async def story() -> None:
        async with https.upstream(says(RIGHT), tls=certificates.server(*made)) as fake:
            gone = fake.upstream()
        async with connected(gone, made) as (found, _):
            with pytest.raises(UpstreamError, match=f"dial tcp 127.0.0.1:{gone.port}: connect: connection refused"):
                await ask(found)

    run(story())


def test_an_upstream_that_knows_no_tls_is_an_error(run: Run, made: tuple[Path, Path]) -> None:
    async def story() -> None:
        async with plain(tcp=lambda query: [b"no TLS here"]) as fake:
            to = Upstream(fake.upstream.host, fake.upstream.port, True, "", "/dns-query")
            async with connected(to, made) as (found, _):
                with pytest.raises(UpstreamError, match=f"dial tcp {fake.upstream}: tls: |i/o timeout"):
                    await ask(found, 0.3)

    run(story())


def test_whoever_gives_up_leaves_nothing_behind(run: Run, made: tuple[Path, Path]) -> None:
    async def story() -> None:
        async with (
            https.upstream(lambda asked: None, says(RIGHT), tls=certificates.server(*made)) as fake,
            connected(fake.upstream(), made) as (found, _),
        ):
            task = asyncio.create_task(ask(found))
            await fake.arrived.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert addresses(await ask(found)) == [RIGHT]
            assert fake.connections == 2

    run(story())


def test_the_fake_tells_where_it_is() -> None:
    assert str(Fake("127.0.0.1", 443).upstream()) == "127.0.0.1:443"
