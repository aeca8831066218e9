"""One question to an upstream that follows a script, most of them hostile."""

import asyncio
import contextlib
import re
import socket
import struct
import time
from collections.abc import Callable, Coroutine

import pytest
import uvloop

from kdns.upstream.exchange import exchange
from kdns.upstream.sockets import Upstream, UpstreamError
from kdns.wire import names
from kdns.wire.message import Message, decode
from kdns.wire.query import CD, RD, Query, parse
from tests.upstream.fake import Fake, Step, question_of, reply, says, silence, upstream

RIGHT = b"\x0a\x00\x00\x01"
WRONG = b"\x06\x06\x06\x06"
NAME = names.from_text("Www.Example.org.")

Run = Callable[[Coroutine[None, None, None]], None]


@pytest.fixture(params=["uvloop", "asyncio"])
def run(request: pytest.FixtureRequest) -> Run:
    return uvloop.run if request.param == "uvloop" else asyncio.run


async def ask(fake: Fake, seconds: float = 5.0, **how: object) -> Message:
    return await exchange(NAME, 1, fake.upstream, seconds, **how)  # type: ignore[arg-type]


def addresses(message: Message) -> list[bytes]:
    return [record.data for record in message.answer]


def test_a_question_is_answered_over_udp_and_over_tcp(run: Run) -> None:
    async def story() -> None:
        for host in ("127.0.0.1", "::1"):
            async with upstream(says(RIGHT), tcp=says(RIGHT), host=host) as fake:
                assert addresses(await ask(fake)) == [RIGHT]
                assert (len(fake.udp), len(fake.tcp)) == (1, 0)
                assert addresses(await ask(fake, transport="tcp")) == [RIGHT]
                assert (len(fake.udp), len(fake.tcp)) == (1, 1)

    run(story())


def test_the_query_has_our_own_edns_and_no_more_of_the_client_than_rd_ad_cd_and_do(run: Run) -> None:
    async def story() -> None:
        async with upstream(says(RIGHT)) as fake:
            await ask(fake)
            await ask(fake, flags=0x7FFF, do=True)
            await ask(fake, flags=CD)
        first, second, third = (parse(packet) for packet in fake.udp)
        for query, flags, do in ((first, RD, False), (second, 0x0130, True), (third, CD, False)):
            assert isinstance(query, Query)
            assert (query.spelled, query.rtype, query.rclass) == (NAME, 1, 1)
            assert (query.flags, query.edns, query.size, query.do, query.options) == (flags, True, 1232, do, b"")

    run(story())


# Each of these comes first; the right reply 50 ms later.
BAD: list[tuple[str, Callable[[bytes], bytes]]] = [
    ("an empty datagram", lambda query: b""),
    ("one byte", lambda query: query[:1]),
    ("a header alone", lambda query: query[:2] + b"\x81\x80" + bytes(8)),
    ("a header that promises a question", lambda query: query[:2] + b"\x81\x80\x00\x01" + bytes(6)),
    ("rubbish", lambda query: bytes(range(200))),
    ("another ID", lambda query: reply(query, WRONG, id_=int.from_bytes(query[:2], "big") ^ 1)),
    ("the query itself", lambda query: query),
    ("QR=0", lambda query: reply(query, WRONG, flags=0x0180)),
    ("another opcode", lambda query: reply(query, WRONG, flags=0xA180)),
    ("another name", lambda query: reply(query, WRONG, question=b"\x03www\x07invalid\x03org\x00\x00\x01\x00\x01")),
    ("a longer name", lambda query: reply(query, WRONG, question=b"\x01x" + question_of(query))),
    ("another type", lambda query: reply(query, WRONG, question=NAME + b"\x00\x1c\x00\x01")),
    ("another class", lambda query: reply(query, WRONG, question=NAME + b"\x00\x01\x00\x03")),
    ("the name in another case", lambda query: reply(query, WRONG, question=question_of(query).lower())),
    ("no question", lambda query: reply(query, question=b"")[:4] + bytes(8)),
    ("two questions", lambda query: _patched(reply(query, question=question_of(query) * 2), 5, 2)),
    ("a lying ANCOUNT", lambda query: _patched(reply(query, WRONG), 7, 2)),
    ("a cut record", lambda query: reply(query, WRONG)[:-1]),
    ("a pointer loop", lambda query: _patched(reply(query, WRONG), 12 + len(question_of(query)) + 1, 0xFF)),
]


def _patched(packet: bytes, where: int, value: int) -> bytes:
    return packet[:where] + bytes((value,)) + packet[where + 1 :]


@pytest.mark.parametrize("bad", [row[1] for row in BAD], ids=[row[0] for row in BAD])
def test_a_bad_reply_is_ignored_and_the_right_one_taken(run: Run, bad: Callable[[bytes], bytes]) -> None:
    async def story() -> None:
        async with upstream(lambda query: [bad(query), 0.05, reply(query, RIGHT)]) as fake:
            assert addresses(await ask(fake)) == [RIGHT]
            assert len(fake.udp) == 1

    run(story())


def test_a_reply_from_another_address_never_arrives(run: Run) -> None:
    async def story() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.bind(("127.0.0.1", 0))

            def step(query: bytes) -> list[bytes | float]:
                stranger.sendto(reply(query, WRONG), ("127.0.0.1", fake.ports[-1]))
                return [0.05, reply(query, RIGHT)]

            async with upstream(step) as fake:
                assert addresses(await ask(fake)) == [RIGHT]

    run(story())


@pytest.mark.parametrize("rcode", [0, 2, 3, 5])
def test_any_code_is_a_reply(run: Run, rcode: int) -> None:
    async def story() -> None:
        async with upstream(says(rcode=rcode)) as fake:
            assert (await ask(fake)).rcode == rcode

    run(story())


def test_a_server_that_folds_case_is_asked_over_tcp(run: Run) -> None:
    async def story() -> None:
        def folded(address: bytes) -> Step:
            return lambda query: [reply(query, address, question=question_of(query).lower())]

        async with upstream(folded(WRONG), tcp=folded(RIGHT)) as fake:
            started = time.monotonic()
            assert addresses(await ask(fake)) == [RIGHT]
            assert time.monotonic() - started < 2

    run(story())


def test_a_truncated_reply_is_fetched_over_tcp(run: Run) -> None:
    async def story() -> None:
        # Even one whose records are cut.
        def cut(query: bytes) -> list[bytes]:
            return [reply(query, WRONG, WRONG, flags=0x8380)[:-3]]

        async with upstream(cut, tcp=says(RIGHT)) as fake:
            assert addresses(await ask(fake)) == [RIGHT]
            assert fake.udp[0][2:] == fake.tcp[0][2:]

    run(story())


def test_a_truncated_reply_is_better_than_none(run: Run) -> None:
    async def story() -> None:
        async with upstream(says(RIGHT, flags=0x8380)) as fake:
            message = await ask(fake)
            assert addresses(message) == [RIGHT]
            assert message.flags & 0x0200

    run(story())


def test_a_server_without_edns_is_asked_again_without(run: Run) -> None:
    async def story() -> None:
        def step(query: bytes) -> list[bytes]:
            return [reply(query, rcode=1)] if query[11] else [reply(query, RIGHT)]

        async with upstream(step) as fake:
            assert addresses(await ask(fake)) == [RIGHT]
            assert len(fake.udp) == 2

    run(story())


def test_silence_is_a_timeout_in_the_words_of_go(run: Run) -> None:
    async def story() -> None:
        async with upstream(silence, tcp=silence) as fake:
            for transport in ("udp", "tcp"):
                started = time.monotonic()
                with pytest.raises(UpstreamError) as caught:
                    await ask(fake, 0.2, transport=transport)
                assert 0.15 < time.monotonic() - started < 2
                port = fake.upstream.port
                assert re.fullmatch(
                    rf"read {transport} 127\.0\.0\.1:\d+->127\.0\.0\.1:{port}: i/o timeout", str(caught.value)
                )
                assert caught.value.silent

    run(story())


def test_bad_replies_do_not_prolong_the_wait(run: Run) -> None:
    async def story() -> None:
        async with upstream(lambda query: [reply(query, WRONG, id_=1), 0.05] * 200) as fake:
            started = time.monotonic()
            with pytest.raises(UpstreamError, match="i/o timeout"):
                await ask(fake, 0.3)
            assert time.monotonic() - started < 2

    run(story())


def test_a_closed_port_is_an_error_at_once(run: Run) -> None:
    async def story() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(("127.0.0.1", 0))
            nobody = Upstream("127.0.0.1", sock.getsockname()[1])
        for transport, words in (
            ("udp", rf"read udp 127\.0\.0\.1:\d+->{re.escape(str(nobody))}: read: connection refused"),
            ("tcp", rf"dial tcp {re.escape(str(nobody))}: connect: connection refused"),
        ):
            started = time.monotonic()
            with pytest.raises(UpstreamError) as caught:
                await exchange(NAME, 1, nobody, 5, transport=transport)
            assert re.fullmatch(words, str(caught.value))
            assert not caught.value.silent
            assert time.monotonic() - started < 2

    run(story())


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        pytest.param(lambda query: [b""], "EOF", id="the connection is closed"),
        pytest.param(lambda query: [reply(query, WRONG)[:-1]], "past the end", id="the reply is broken"),
    ],
)
def test_over_tcp_a_bad_end_is_an_error(run: Run, answer: Step, words: str) -> None:
    async def story() -> None:
        async with upstream(tcp=answer) as fake:
            with pytest.raises(UpstreamError, match=words):
                await ask(fake, transport="tcp")

    run(story())


def test_over_tcp_a_reply_to_something_else_is_ignored(run: Run) -> None:
    async def story() -> None:
        async with upstream(tcp=lambda query: [reply(query, WRONG, id_=1), reply(query, RIGHT)]) as fake:
            assert addresses(await ask(fake, transport="tcp")) == [RIGHT]

    run(story())


def test_ports_and_ids_are_new_for_every_question(run: Run) -> None:
    async def story() -> None:
        async with upstream(says(RIGHT)) as fake:
            for _ in range(10):
                await asyncio.gather(*(ask(fake) for _ in range(20)))
            assert len(set(fake.ports)) > 190
            assert len({packet[:2] for packet in fake.udp}) > 190

    run(story())


def test_whoever_is_cancelled_leaves_no_socket_behind(run: Run) -> None:
    async def story() -> None:
        async with upstream(silence, tcp=silence) as fake:
            for transport in ("udp", "tcp"):
                tasks = [asyncio.ensure_future(ask(fake, transport=transport)) for _ in range(20)]
                await asyncio.sleep(0.05)
                for task in tasks:
                    task.cancel()
                for task in tasks:
                    with contextlib.suppress(asyncio.CancelledError):
                        await task
        # An open socket would be a ResourceWarning, and those are errors here.

    run(story())


def test_upstreams_are_shown_as_addresses_are_written() -> None:
    assert str(Upstream("10.0.0.10")) == "10.0.0.10:53"
    assert str(Upstream("fd00::a", 5353)) == "[fd00::a]:5353"


def test_the_script_itself_is_sound() -> None:
    query = struct.pack("!HHHHHH", 5, 0x0100, 1, 0, 0, 0) + NAME + b"\x00\x01\x00\x01"
    assert addresses(decode(reply(query, RIGHT))) == [RIGHT]
