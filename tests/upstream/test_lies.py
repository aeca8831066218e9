"""The lying upstream: what it sends, and what the client, the log and the upstream itself get to see.

A packet goes in at the responder and a reply comes out, as in a server whose block has `errors` and `forward`.
"""

import asyncio
import re
import socket
import struct
from collections.abc import Callable, Coroutine, Sequence
from typing import NamedTuple

import pytest
import uvloop

from kdns.chain import fold
from kdns.plugins.errors import Errors
from kdns.plugins.forward import Forward
from kdns.responder import Responder, Site
from kdns.wire import names
from kdns.wire.message import decode
from kdns.wire.records import Rcode, to_text
from tests.plugins import trial
from tests.upstream import certificates, https
from tests.upstream.fake import Step, question_of, reply, says, silence, upstream
from tests.upstream.https import Script
from tests.upstream.test_https import LIES

RIGHT = b"\x0a\x00\x00\x01"
WRONG = b"\x06\x06\x06\x06"
GOOD = "Www.Example.org. 30 IN A 10.0.0.1"
NAME = names.from_text("Www.Example.org.")
QUERY = struct.pack("!HHHHHH", 77, 0x0100, 1, 0, 0, 1) + NAME + b"\x00\x01\x00\x01" + b"\0\0\x29\x10\0" + bytes(6)

Run = Callable[[Coroutine[None, None, None]], None]


@pytest.fixture(params=["uvloop", "asyncio"])
def run(request: pytest.FixtureRequest) -> Run:
    return uvloop.run if request.param == "uvloop" else asyncio.run


class Said(NamedTuple):
    """What one query led to: the reply, the lines of the log, how often the upstream was asked."""

    rcode: int
    answer: list[str]
    truncated: bool
    errors: tuple[tuple[int, str], ...]
    lines: list[str]
    udp: int
    tcp: int


async def say(*script: Step, tcp: Step | None = None, options: str = "read_timeout 2s") -> Said:
    """Ask a server whose upstream follows this script."""
    block = trial.block()
    async with upstream(*script, tcp=tcp) as fake:
        plugin = trial.plugin(Forward, f"forward . {fake.upstream} {{\n max_connect_attempts 1\n {options}\n}}", block)
        errors = trial.plugin(Errors, "errors", block)
        chain = fold([errors.handle, plugin.handle])
        responder = Responder([Site(b"\x00", chain, "dns://:53")], block.process, block.process.metrics)
        done: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        with trial.log_lines() as lines:
            said = responder.respond(QUERY, "udp", ("127.0.0.1", 5000), ("127.0.0.1", 53), done.set_result)
            packet = said if isinstance(said, bytes) else await asyncio.wait_for(done, 10)
        plugin.close()
        message = decode(packet)
        assert (message.id, packet[12 : 16 + len(NAME)]) == (77, question_of(QUERY))
        assert not {key for key in (b"\x06\x06\x06\x06",) if key in packet}, "what is wrong was passed on"
        return Said(
            message.rcode,
            [to_text(record) for record in message.answer],
            bool(message.flags & 0x0200),
            message.errors,
            lines,
            len(fake.udp),
            len(fake.tcp),
        )


def patched(packet: bytes, where: int, value: int) -> bytes:
    return packet[:where] + bytes((value,)) + packet[where + 1 :]


def chaos(query: bytes) -> bytes:
    """A reply whose one record is of class CH."""
    packet = reply(query, WRONG)
    return patched(packet, len(packet) - 4 - 7, 3)


def other_question(name: bytes = b"\x03www\x07example\x03org\x00", rtype: int = 1, rclass: int = 1) -> Step:
    return lambda query: [reply(query, WRONG, question=name + struct.pack("!HH", rtype, rclass))]


# 1 to 16: this comes first, the right reply 50 ms later.
BAD: dict[str, Step] = {
    "another ID": lambda query: [reply(query, WRONG, id_=int.from_bytes(query[:2], "big") ^ 1)],
    "another name": other_question(b"\x03www\x07invalid\x03org\x00"),
    "another type": other_question(rtype=28),
    "another class": other_question(rclass=3),
    "QR=0": lambda query: [reply(query, WRONG, flags=0x0180)],
    "opcode NOTIFY": lambda query: [reply(query, WRONG, flags=0xA180)],
    "a header alone": lambda query: [query[:2] + b"\x81\x80" + bytes(8)],
    "a header that promises a question": lambda query: [query[:2] + b"\x81\x80\x00\x01" + bytes(6)],
    "the query itself": lambda query: [query],
    "an empty datagram": lambda query: [b""],
    "rubbish": lambda query: [bytes(range(200))],
    "two questions": lambda query: [patched(reply(query, WRONG, question=question_of(query) * 2), 5, 2)],
    "a lying ANCOUNT": lambda query: [patched(reply(query, WRONG), 7, 2)],
    "a cut record": lambda query: [reply(query, WRONG)[:-1]],
    "a pointer loop": lambda query: [patched(reply(query, WRONG), 12 + len(question_of(query)) + 1, 0xFF)],
    "the name in another case": lambda query: [reply(query, WRONG, question=question_of(query).upper())],
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_bad_then_good_ends_good(run: Run, bad: Step) -> None:
    async def story() -> None:
        said = await say(lambda query: [*bad(query), 0.05, reply(query, RIGHT)])
        assert said == Said(0, [GOOD], False, (), [], 1, 0)

    run(story())


def timed_out(lines: Sequence[str]) -> bool:
    line = r"\[ERROR\] plugin/errors: 2 www\.example\.org\. A: read udp 127\.0\.0\.1:\d+->127\.0\.0\.1:\d+: i/o timeout"
    return len(lines) == 1 and re.fullmatch(line, lines[0]) is not None


@pytest.mark.parametrize(
    "bad", [*BAD.values(), silence], ids=[*BAD, "silence"]
)  # 17, and what is left when nothing right follows
def test_bad_and_nothing_else_is_a_timeout(bad: Step) -> None:
    async def story() -> None:
        said = await say(bad, options="read_timeout 100ms", tcp=silence)
        rcode, answer, truncated, errors, lines, udp, _ = said
        assert (rcode, answer, truncated, udp) == (Rcode.SERVFAIL, [], False, 1)
        assert errors == ((22, "no upstream replied in time"),)
        # In another case it is TCP that has the last word.
        assert timed_out([line.replace("read tcp", "read udp") for line in lines])

    uvloop.run(story())


def folded(address: bytes) -> Step:
    return lambda query: [reply(query, address, question=question_of(query).upper())]


# 18 to 25, and the plain errors, which are answers.
OTHERS: dict[str, tuple[tuple[Step, ...], Step | None, Said]] = {
    "two replies, the second another": (
        (lambda query: [reply(query, RIGHT), reply(query, WRONG)],),
        None,
        Said(0, [GOOD], False, (), [], 1, 0),
    ),
    "truncated, and whole over TCP": (
        (says(WRONG, flags=0x8380),),
        says(RIGHT),
        Said(0, [GOOD], False, (), [], 1, 1),
    ),
    "truncated in the middle of a record": (
        (lambda query: [reply(query, WRONG, flags=0x8380)[:-3]],),
        says(RIGHT),
        Said(0, [GOOD], False, (), [], 1, 1),
    ),
    "truncated, and nobody at TCP": (
        (says(RIGHT, flags=0x8380),),
        None,
        Said(0, [GOOD], True, (), [], 1, 0),
    ),
    "the name in another case only": (
        (folded(WRONG),),
        folded(RIGHT),
        Said(0, [GOOD], False, (), [], 1, 1),
    ),
    "a hundred guesses": (
        (lambda query: [reply(query, WRONG, id_=number) for number in range(110)],),
        says(RIGHT),
        Said(0, [GOOD], False, (), [], 1, 1),
    ),
    "FORMERR to EDNS": (
        (lambda query: [reply(query, rcode=1)] if query[11] else [reply(query, RIGHT)],),
        None,
        Said(0, [GOOD], False, (), [], 2, 0),
    ),
    "a record of class CH": ((lambda query: [chaos(query)],), None, Said(0, [], False, (), [], 1, 0)),
    "SERVFAIL": ((says(rcode=2),), None, Said(2, [], False, (), [], 1, 0)),
    "NXDOMAIN": ((says(rcode=3),), None, Said(3, [], False, (), [], 1, 0)),
    "NOTIMP": ((says(rcode=4),), None, Said(4, [], False, (), [], 1, 0)),
    "REFUSED": ((says(rcode=5),), None, Said(5, [], False, (), [], 1, 0)),
}


@pytest.mark.parametrize(("script", "tcp", "expected"), OTHERS.values(), ids=OTHERS)
def test_other_ways_to_answer(run: Run, script: tuple[Step, ...], tcp: Step | None, expected: Said) -> None:
    async def story() -> None:
        assert await say(*script, tcp=tcp) == expected

    run(story())


def test_a_reply_from_another_port_never_arrives(run: Run) -> None:
    async def story() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.bind(("127.0.0.1", 0))
            block = trial.block()

            def step(query: bytes) -> list[bytes | float]:
                stranger.sendto(reply(query, WRONG), ("127.0.0.1", fake.ports[-1]))
                return [0.05, reply(query, RIGHT)]

            async with upstream(step) as fake:
                plugin = trial.plugin(Forward, f"forward . {fake.upstream}", block)
                responder = Responder(
                    [Site(b"\x00", fold([plugin.handle]), "dns://:53")], block.process, block.process.metrics
                )
                done: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
                responder.respond(QUERY, "udp", ("127.0.0.1", 5000), ("127.0.0.1", 53), done.set_result)
                assert [to_text(record) for record in decode(await done).answer] == [GOOD]

    run(story())


def test_a_flood_of_wrong_replies_holds_up_nobody_else(run: Run) -> None:
    async def story() -> None:
        loop = asyncio.get_running_loop()
        longest = 0.0

        async def watch() -> None:
            nonlocal longest
            while True:
                before = loop.time()
                await asyncio.sleep(0)
                longest = max(longest, loop.time() - before)

        flood = [b"\x00\x00" * 300] * 90
        watching = loop.create_task(watch())
        said = await say(lambda query: [*flood, 0.01, reply(query, RIGHT)])
        watching.cancel()
        assert said.answer == [GOOD]
        assert longest < 0.5

    run(story())


# Over HTTPS


@pytest.mark.parametrize("lie", [each[1] for each in LIES], ids=[each[0] for each in LIES])
def test_over_https_a_lie_costs_a_second_question_and_is_never_passed_on(
    run: Run, lie: Script, tmp_path_factory: pytest.TempPathFactory
) -> None:
    made = certificates.make(tmp_path_factory.mktemp("certificates"), "server", "IP:127.0.0.1")

    async def story() -> None:
        async with https.upstream(lie, https.says(RIGHT), tls=certificates.server(*made)) as fake:
            block = trial.block()
            options = f"tls {made[0]}\n read_timeout 1s"
            plugin = trial.plugin(Forward, f"forward . https://127.0.0.1:{fake.port} {{\n {options}\n}}", block)
            responder = Responder(
                [Site(b"\x00", fold([plugin.handle]), "dns://:53")], block.process, block.process.metrics
            )
            done: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
            responder.respond(QUERY, "udp", ("127.0.0.1", 5000), ("127.0.0.1", 53), done.set_result)
            packet = await asyncio.wait_for(done, 10)
            assert (packet[:2], packet[12 : 16 + len(NAME)]) == (b"\x00\x4d", question_of(QUERY))
            assert [to_text(record) for record in decode(packet).answer] == [GOOD]
            assert WRONG not in packet
            assert len(fake.asked) == 2
            plugin.close()
            await asyncio.sleep(0.01)

    run(story())
