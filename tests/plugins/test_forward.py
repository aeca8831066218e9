"""forward: which names it takes, whom it asks, and what it makes of what they say; upstreams follow scripts."""

import asyncio
import re
import struct
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path

import pytest
import uvloop

from kdns.chain import Answer, Block, Waiter, fold, start
from kdns.errors import ConfigError, Problem
from kdns.metrics import FORWARD_HEALTH_BROKEN, FORWARD_REJECTED
from kdns.plugins.forward import Forward
from kdns.responder import Responder, Site
from kdns.upstream.destinations import resolv_conf, resolved
from kdns.upstream.sockets import Upstream
from kdns.wire import names
from kdns.wire.message import Message, decode
from kdns.wire.records import Rcode, to_text
from tests.plugins import trial
from tests.upstream import certificates, https
from tests.upstream.fake import Step, question_of, reply, says, silence, upstream
from tests.upstream.https import says as says_https

RIGHT = b"\x0a\x00\x00\x01"
OTHER = b"\x0a\x00\x00\x02"

Run = Callable[[Coroutine[None, None, None]], None]


@pytest.fixture(params=["uvloop", "asyncio"])
def run(request: pytest.FixtureRequest) -> Run:
    return uvloop.run if request.param == "uvloop" else asyncio.run


def forward(*lines: str, block: Block | None = None) -> Forward:
    return trial.plugin(Forward, "\n".join(lines), block)


async def ask(plugin: Forward, question: str = "www.example.org. A", transport: str = "udp") -> Answer:
    """The plugin's answer; a name that it doesn't take is YXDOMAIN, which no upstream here says."""

    async def rest(request: object) -> Answer:
        return Answer(Rcode.YXDOMAIN)

    done: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

    def told(outcome: Answer | BaseException) -> None:
        if isinstance(outcome, Answer):
            done.set_result(outcome)
        else:
            done.set_exception(outcome)

    request = trial.request(question, transport)
    said = start(plugin.handle(request, rest), told)
    if isinstance(said, Waiter):
        said = await asyncio.wait_for(done, 10)
    # What came from others may not be kept; what is the next plugin's is its own to say.
    assert request.keep is (said.rcode == Rcode.YXDOMAIN)
    return said


def text(answer: Answer) -> list[str]:
    return [to_text(record) for record in answer.answer]


# Upstreams with names


def knows(**addresses: list[bytes]) -> Step:
    """A resolver that knows these names' addresses, of IPv4 or IPv6 by their length; all others don't exist."""

    def step(query: bytes) -> list[bytes]:
        name, rtype = names.to_text(question_of(query)[:-4]), int.from_bytes(question_of(query)[-4:-2], "big")
        found = addresses.get(name.partition(".")[0])
        if found is None:
            return [reply(query, rcode=3)]
        size = {1: 4, 28: 16}[rtype]
        wanted = [each for each in found if len(each) == size]
        said = reply(query, *(each for each in wanted))
        return [said.replace(b"\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x1e\x00\x04", _record(rtype, size))]

    return step


def _record(rtype: int, size: int) -> bytes:
    return struct.pack("!HHHIH", 0xC00C, rtype, 1, 30, size)


def test_a_name_is_asked_of_the_resolvers_in_turn_and_each_of_its_addresses_is_an_upstream(run: Run) -> None:
    async def story() -> None:
        local = b"\x7f\x00\x00\x01"
        async with upstream(knows()) as ignorant, upstream(knows(dns=[local, bytes(15) + b"\x01"])) as knowing:
            async with upstream(says(RIGHT)) as fake:
                options = f"resolver {ignorant.upstream} {knowing.upstream}\n policy sequential"
                plugin = forward(f"forward . dns.example:{fake.upstream.port} {{\n {options}\n}}")
                early = await ask(plugin)
                assert (early.rcode, early.cause) == (Rcode.SERVFAIL, "the addresses of upstreams aren't known yet")
                await plugin.started()
                assert text(await ask(plugin)) == ["www.example.org. 30 IN A 10.0.0.1"]
                plugin.close()
            assert [question_of(packet)[-4:-2] for packet in knowing.udp] == [b"\x00\x01", b"\x00\x1c"]
            assert len(ignorant.udp) == 2

    run(story())


def test_of_a_name_with_hundreds_of_addresses_no_more_than_thirty_are_asked(run: Run) -> None:
    async def story() -> None:
        addresses = [bytes((127, 0, 1, number)) for number in range(1, 200)]
        async with upstream(knows(dns=addresses)) as fake:
            found = await resolved([Upstream("dns.example", 5353)], [fake.upstream])
            assert [str(each) for each in found] == [f"127.0.1.{number}:5353" for number in range(1, 31)]

    run(story())


def test_a_name_without_an_address_is_the_users_mistake(run: Run) -> None:
    async def story() -> None:
        async with upstream(knows(dns=[])) as fake:
            upstreams = "dns.example tls://no.example:853%dns.example 10.0.0.1"
            plugin = forward(f"forward . {upstreams} {{\n resolver {fake.upstream}\n}}")
            with pytest.raises(ConfigError) as caught:
                await plugin.started()
            places = [problem.place for problem in caught.value.problems]
            assert [(place.line, place.column, place.length) for place in places if place] == [(2, 11, 11), (2, 23, 32)]
            assert [problem.message for problem in caught.value.problems] == [
                f"`forward`: the upstream `dns.example` has no address: {fake.upstream} knows none",
                f"`forward`: the upstream `no.example` has no address: {fake.upstream} knows none",
            ]

    run(story())


def test_without_a_resolver_the_system_is_asked_and_the_certificate_is_for_the_name(run: Run, made: Path) -> None:
    async def story() -> None:
        shown = certificates.server(made / "server.pem", made / "server.key")
        async with upstream(tcp=says(RIGHT), tls=shown) as fake:
            port = fake.upstream.port
            trust = f"tls {made}/server.pem\n source_address 127.0.0.1"
            plugin = forward(f"forward . tls://localhost:{port} {{\n {trust}\n}}")
            await plugin.started()
            assert "hostname mismatch" in (await ask(plugin)).cause.lower()
            plugin.close()
            plugin = forward(f"forward . tls://localhost:{port} {{\n {trust}\n tls_servername dns.example\n}}")
            await plugin.started()
            assert text(await ask(plugin)) == ["www.example.org. 30 IN A 10.0.0.1"]
            plugin.close()

    run(story())


# Which names


@pytest.mark.parametrize(
    ("line", "question", "taken"),
    [
        ("forward . {0}", "www.example.org. A", True),
        ("forward . {0}", ". NS", True),
        ("forward example.org {0}", "WWW.Example.ORG. A", True),
        ("forward example.org {0}", "example.org. A", True),
        ("forward example.org {0}", "notexample.org. A", False),
        ("forward example.org {0}", "org. A", False),
        # The bytes of the zone stand at its end, within a label.
        ("forward example.org {0}", "not\\007example.org. A", False),
        ("forward 10.0.0.0/9 {0}", "1.0.0.10.in-addr.arpa. PTR", True),
        ("forward 10.0.0.0/9 {0}", "1.0.128.10.in-addr.arpa. PTR", False),
        ("forward . {0} {{\n except example.org lan\n}}", "www.example.org. A", False),
        ("forward . {0} {{\n except example.org\n except lan\n}}", "printer.LAN. A", False),
        ("forward . {0} {{\n except www.example.org\n}}", "example.org. A", True),
        # As in CoreDNS: FROM itself is no exception of its own.
        ("forward example.org {0} {{\n except example.org\n}}", "example.org. A", True),
        ("forward example.org {0} {{\n except example.org\n}}", "www.example.org. A", False),
    ],
)
def test_a_name_is_taken_if_it_is_in_from_and_in_no_exception(run: Run, line: str, question: str, taken: bool) -> None:
    async def story() -> None:
        async with upstream(says()) as fake:
            answer = await ask(forward(line.format(fake.upstream)), question)
            assert (answer.rcode == Rcode.NOERROR) is taken
            assert len(fake.udp) == taken

    run(story())


def test_the_first_line_that_takes_a_name_has_it(run: Run) -> None:
    async def story() -> None:
        async with upstream(says(RIGHT)) as one, upstream(says(OTHER)) as two:
            plugin = forward(
                f"forward example.org {one.upstream} {{\n except b.example.org\n}}", f"forward . {two.upstream}"
            )
            assert text(await ask(plugin, "a.example.org. A")) == ["a.example.org. 30 IN A 10.0.0.1"]
            assert text(await ask(plugin, "b.example.org. A")) == ["b.example.org. 30 IN A 10.0.0.2"]
            assert text(await ask(plugin, "c.example.net. A")) == ["c.example.net. 30 IN A 10.0.0.2"]

    run(story())


# What becomes of a reply


def test_bits_and_code_are_the_upstreams_own(run: Run) -> None:
    async def story() -> None:
        async with upstream(says(flags=0x8180), says(flags=0x85B0, rcode=3)) as fake:
            plugin = forward(f"forward . {fake.upstream}")
            first, second = await ask(plugin), await ask(plugin)
            assert (first.flags, first.rcode, first.plugin) == (0x0080, 0, "forward")
            # AA, RA, AD; CD and RD are between us and the client.
            assert (second.flags, second.rcode) == (0x04A0, 3)

    run(story())


def test_owners_are_spelled_so_that_they_point_at_the_question(run: Run) -> None:
    async def story() -> None:
        def step(query: bytes) -> list[bytes]:
            name = question_of(query)[:-4].upper()
            record = name + struct.pack("!HHIH", 1, 1, 30, 4) + RIGHT
            return [_counted(reply(query) + record)]

        async with upstream(step) as fake:
            answer = await ask(forward(f"forward . {fake.upstream}"), "Www.EXAMPLE.org. A")
            assert text(answer) == ["www.example.org. 30 IN A 10.0.0.1"]

    run(story())


def _counted(packet: bytes) -> bytes:
    return packet[:7] + b"\x01" + packet[8:]


def test_an_extended_error_is_passed_on(run: Run) -> None:
    async def story() -> None:
        def step(query: bytes) -> list[bytes]:
            option = struct.pack("!HHH", 15, 2 + 7, 15) + b"blocked"
            opt = struct.pack("!BHHIH", 0, 41, 1232, 0, len(option)) + option
            packet = reply(query, rcode=3) + opt
            return [packet[:11] + b"\x01" + packet[12:]]

        async with upstream(step) as fake:
            answer = await ask(forward(f"forward . {fake.upstream}"))
            assert (answer.rcode, answer.error, list(answer.additional)) == (3, (15, "blocked"), [])

    run(story())


def test_a_code_that_needs_edns_is_servfail_to_a_client_without(run: Run) -> None:
    async def story() -> None:
        def step(query: bytes) -> list[bytes]:
            packet = reply(query) + struct.pack("!BHHIH", 0, 41, 1232, 1 << 24, 0)
            return [packet[:11] + b"\x01" + packet[12:]]

        async with upstream(step) as fake:
            assert (await ask(forward(f"forward . {fake.upstream}"))).rcode == Rcode.SERVFAIL

    run(story())


# Through the whole server


def through(plugin: Forward, block: Block) -> Responder:
    return Responder([Site(b"\x00", fold([plugin.handle]), "dns://:53")], block.process, block.process.metrics)


async def serve(responder: Responder, packet: bytes, transport: str = "udp") -> bytes:
    done: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
    said = responder.respond(packet, transport, ("127.0.0.1", 5000), ("127.0.0.1", 53), done.set_result)
    return said if isinstance(said, bytes) else await asyncio.wait_for(done, 10)


def query(opcode: int = 0, edns: bytes = b"", name: str = "Www.Example.org.") -> bytes:
    header = struct.pack("!HHHHHH", 77, 0x0100 | opcode << 11, 1, 0, 0, 1 if edns else 0)
    return header + names.from_text(name) + b"\x00\x01\x00\x01" + edns


def test_a_client_gets_its_own_id_question_and_edns_back(run: Run) -> None:
    async def story() -> None:
        async with upstream(says(RIGHT)) as fake:
            block = trial.block()
            responder = through(forward(f"forward . {fake.upstream}", block=block), block)
            # A cookie, which is between the client and us.
            edns = b"\x00" + struct.pack("!HHIH", 41, 4096, 0x8000, 12) + struct.pack("!HH", 10, 8) + bytes(8)
            packet = await serve(responder, query(edns=edns))
            message = decode(packet)
            assert (message.id, message.flags, message.do) == (77, 0x8180, True)
            assert question_of(packet) == question_of(query())
            assert [to_text(record) for record in message.answer] == ["Www.Example.org. 30 IN A 10.0.0.1"]
            assert fake.udp[0].endswith(b"\x00" + struct.pack("!HHIH", 41, 1232, 0x8000, 0))
            without = decode(await serve(responder, query()))
            assert not without.edns

    run(story())


def test_a_large_reply_is_cut_for_a_small_client_and_whole_over_tcp(run: Run) -> None:
    async def story() -> None:
        many = says(*(struct.pack("!I", number) for number in range(60)))
        async with upstream(says(flags=0x8380), tcp=many) as fake:
            block = trial.block()
            responder = through(forward(f"forward . {fake.upstream}", block=block), block)
            small = await serve(responder, query())
            assert len(small) <= 512
            assert decode(small).flags & 0x0200
            whole: Message = decode(await serve(responder, query(), "tcp"))
            assert len(whole.answer) == 60
            assert not whole.flags & 0x0200

    run(story())


@pytest.mark.parametrize("opcode", [1, 2, 4, 5, 6])
def test_only_queries_are_forwarded(opcode: int) -> None:
    async def story() -> None:
        async with upstream(says(RIGHT), tcp=says(RIGHT)) as fake:
            block = trial.block()
            responder = through(forward(f"forward . {fake.upstream}", block=block), block)
            for transport in ("udp", "tcp"):
                packet = await serve(responder, query(opcode), transport)
                assert packet[3] & 0xF in (Rcode.NOTIMP, Rcode.NOTAUTH)
            assert (fake.udp, fake.tcp) == ([], [])

    asyncio.run(story())


# Whom to ask


def test_the_next_upstream_is_asked_when_one_fails(run: Run) -> None:
    async def story() -> None:
        async with upstream(silence) as dumb, upstream(says(RIGHT)) as good:
            plugin = forward(
                f"forward . {dumb.upstream} {good.upstream} {{\n policy sequential\n read_timeout 100ms\n}}"
            )
            assert text(await ask(plugin)) == ["www.example.org. 30 IN A 10.0.0.1"]
            assert (len(dumb.udp), len(good.udp)) == (1, 1)

    run(story())


def test_when_all_are_silent_the_client_learns_it_and_the_log_can_say_who(run: Run) -> None:
    async def story() -> None:
        async with upstream(silence) as one, upstream(silence) as two:
            plugin = forward(f"forward . {one.upstream} {two.upstream} {{\n read_timeout 50ms\n}}")
            answer = await ask(plugin)
            assert (answer.rcode, answer.flags) == (Rcode.SERVFAIL, 0)
            assert answer.error == (22, "no upstream replied in time")
            assert re.fullmatch(r"read udp 127\.0\.0\.1:\d+->127\.0\.0\.1:\d+: i/o timeout", answer.cause)
            # Twice each and no more: retries must not be an amplifier.
            assert (len(one.udp), len(two.udp)) == (2, 2)

    run(story())


def test_when_nobody_listens_the_client_learns_it(run: Run) -> None:
    async def story() -> None:
        async with upstream() as gone:
            plugin = forward(f"forward . {gone.upstream}")
        answer = await ask(plugin)
        assert answer.error == (23, "no upstream could be reached")
        assert "connection refused" in answer.cause

    run(story())


def test_all_attempts_together_have_an_end() -> None:
    async def story() -> None:
        async with upstream(silence) as fake:
            plugin = forward(f"forward . {fake.upstream} {{\n read_timeout 1m\n}}")
            started = time.monotonic()
            assert (await ask(plugin)).rcode == Rcode.SERVFAIL
            assert 3.9 < time.monotonic() - started < 7

    uvloop.run(story())


def test_attempts_are_counted(run: Run) -> None:
    async def story() -> None:
        async with upstream(silence) as fake:
            plugin = forward(f"forward . {fake.upstream} {{\n read_timeout 20ms\n max_connect_attempts 3\n}}")
            await ask(plugin)
            assert len(fake.udp) == 3
            plugin = forward(f"forward . {fake.upstream} {{\n read_timeout 20ms\n max_connect_attempts 99\n}}")
            await ask(plugin)
            assert len(fake.udp) == 3 + 10

    run(story())


@pytest.mark.parametrize(
    ("options", "transport", "expected"),
    [
        ("", "udp", "udp"),
        ("", "tcp", "tcp"),
        ("force_tcp", "udp", "tcp"),
        ("prefer_udp", "tcp", "udp"),
        ("prefer_udp\nforce_tcp", "udp", "tcp"),
    ],
)
def test_the_transport_is_the_clients_unless_told_otherwise(
    run: Run, options: str, transport: str, expected: str
) -> None:
    async def story() -> None:
        async with upstream(says(RIGHT), tcp=says(RIGHT)) as fake:
            await ask(forward(f"forward . {fake.upstream} {{\n{options}\n}}"), transport=transport)
            assert {"udp": len(fake.udp), "tcp": len(fake.tcp)} == {"udp": 0, "tcp": 0} | {expected: 1}

    run(story())


@pytest.mark.parametrize(
    ("policy", "expected"),
    [("sequential", {(30, 0)}), ("round_robin", {(15, 15)}), ("random", {(n, 30 - n) for n in range(1, 30)})],
)
def test_the_policy_says_who_is_first(run: Run, policy: str, expected: set[tuple[int, int]]) -> None:
    async def story() -> None:
        async with upstream(says(RIGHT)) as one, upstream(says(RIGHT)) as two:
            plugin = forward(f"forward . {one.upstream} {two.upstream} {{\n policy {policy}\n}}")
            for _ in range(30):
                await ask(plugin)
            assert (len(one.udp), len(two.udp)) in expected

    run(story())


def test_failover_asks_the_next_upstream_and_gives_the_last_reply_if_none_is_better(run: Run) -> None:
    async def story() -> None:
        async with upstream(says(rcode=2)) as bad, upstream(says(RIGHT)) as good, upstream(says(rcode=5)) as other:
            options = "policy sequential\n failover SERVFAIL refused"
            plugin = forward(f"forward . {bad.upstream} {good.upstream} {{\n {options}\n}}")
            assert text(await ask(plugin)) == ["www.example.org. 30 IN A 10.0.0.1"]
            plugin = forward(f"forward . {bad.upstream} {other.upstream} {{\n {options}\n}}")
            answer = await ask(plugin)
            assert (answer.rcode, answer.error) == (Rcode.REFUSED, None)
            assert (len(bad.udp), len(other.udp)) == (2, 1)

    run(story())


def test_next_asks_the_next_line_that_takes_the_name(run: Run) -> None:
    async def story() -> None:
        async with upstream(says(rcode=3), says()) as first, upstream(says(RIGHT)) as second:
            plugin = forward(
                f"forward . {first.upstream} {{\n next NXDOMAIN\n next_on_nodata\n}}",
                f"forward example.net {second.upstream}",
                f"forward example.org {second.upstream}",
            )
            for _ in ("NXDOMAIN", "no data"):
                assert text(await ask(plugin)) == ["www.example.org. 30 IN A 10.0.0.1"]
            assert len(second.udp) == 2

    run(story())


def test_next_without_a_next_line_changes_nothing(run: Run) -> None:
    async def story() -> None:
        async with upstream(says(rcode=3)) as fake:
            assert (await ask(forward(f"forward . {fake.upstream} {{\n next NXDOMAIN\n}}"))).rcode == Rcode.NXDOMAIN

    run(story())


def test_more_queries_at_once_than_allowed_are_refused_and_counted(run: Run) -> None:
    async def story() -> None:
        block = trial.block()
        async with upstream(lambda query: [0.2, reply(query, RIGHT)]) as fake:
            plugin = forward(f"forward . {fake.upstream} {{\n max_concurrent 2\n}}", block=block)
            answers = await asyncio.gather(*(ask(plugin, f"{number}.example.org. A") for number in range(5)))
            assert sorted(answer.rcode for answer in answers) == [0, 0, 5, 5, 5]
            assert answers[-1].cause == "concurrent queries exceeded maximum 2"
            assert (await ask(plugin)).rcode == 0
        exposed = block.process.metrics.render()[0].decode()
        assert f"{FORWARD_REJECTED.name} 3" in exposed
        assert f'coredns_forward_requests_total{{to="{fake.upstream}"}} 3' in exposed

    run(story())


def test_a_query_that_is_given_up_frees_its_place_and_its_socket(run: Run) -> None:
    async def story() -> None:
        async with upstream(silence) as fake:
            plugin = forward(f"forward . {fake.upstream} {{\n max_concurrent 1\n read_timeout 100ms\n}}")

            async def rest(request: object) -> Answer:
                raise AssertionError

            for turn in range(3):
                said = start(plugin.handle(trial.request("www.example.org. A"), rest), lambda outcome: None)
                assert isinstance(said, Waiter)
                if turn:
                    # Once cancelled before its task ran at all, then while it waited.
                    await asyncio.sleep(0.05)
                said.cancel()
                await asyncio.sleep(0)
            assert (await ask(plugin)).rcode == Rcode.SERVFAIL
        # A socket left open would be a ResourceWarning, and those are errors here.

    run(story())


# How


def exposed(block: Block) -> list[str]:
    return block.process.metrics.render()[0].decode().splitlines()


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with certificates of a server and of a client."""
    folder = tmp_path_factory.mktemp("certificates")
    certificates.make(folder, "server", "DNS:dns.example", "IP:127.0.0.1")
    certificates.make(folder, "client", "DNS:client.example")
    (folder / "other").write_text("nothing of that kind")
    return folder


@pytest.mark.parametrize(
    "options",
    [
        "tls {0}/server.pem",
        "tls {0}/server.pem\n tls_servername dns.example",
        "tls {0}/client.pem {0}/client.key {0}/server.pem",
    ],
)
def test_over_tls_a_connection_is_checked_used_again_and_counted(run: Run, made: Path, options: str) -> None:
    async def story() -> None:
        block = trial.block()
        clients = made / "client.pem" if "client" in options else None
        shown = certificates.server(made / "server.pem", made / "server.key", clients)
        async with upstream(says(OTHER), tcp=says(RIGHT), tls=shown) as fake:
            line = f"forward . tls://{fake.upstream} {{\n prefer_udp\n {options.format(made)}\n}}"
            plugin = forward(line, block=block)
            for number, transport in enumerate(("udp", "tcp", "udp")):
                answer = await ask(plugin, f"{number}.example.org. A", transport)
                assert text(answer) == [f"{number}.example.org. 30 IN A 10.0.0.1"]
            assert (fake.connections, len(fake.udp)) == (1, 0)
            plugin.close()
        labels = f'{{proto="tcp-tls",proxy_name="forward",to="{fake.upstream}"}}'
        lines = exposed(block)
        assert f"coredns_proxy_conn_cache_hits_total{labels} 2.0" in lines
        assert f"coredns_proxy_conn_cache_misses_total{labels} 1.0" in lines

    run(story())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("tls_servername dns.example", "failed to verify certificate: self-signed certificate"),
        ("tls {0}/server.pem\n tls_servername other.example", "failed to verify certificate: hostname mismatch"),
    ],
)
def test_a_certificate_of_somebody_else_is_no_answer(run: Run, made: Path, options: str, words: str) -> None:
    async def story() -> None:
        shown = certificates.server(made / "server.pem", made / "server.key")
        async with upstream(says(OTHER), tcp=says(OTHER), tls=shown) as fake:
            plugin = forward(f"forward . tls://{fake.upstream} {{\n {options.format(made)}\n}}")
            answer = await ask(plugin)
            assert (answer.rcode, answer.error) == (Rcode.SERVFAIL, (23, "no upstream could be reached"))
            assert words in answer.cause.lower()
            assert (fake.udp, fake.tcp) == ([], [])
            plugin.close()

    run(story())


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_over_https_one_that_fails_is_replaced_by_the_other_and_all_is_counted(
    run: Run, made: Path, method: str
) -> None:
    async def story() -> None:
        block = trial.block()
        shown = certificates.server(made / "server.pem", made / "server.key")
        shown.set_alpn_protocols(["h2", "http/1.1"])
        busy = https.response(b"busy", 503)
        async with (
            https.upstream(lambda asked: busy, tls=shown) as bad,
            https.upstream(says_https(RIGHT), tls=shown) as good,
        ):
            options = f"policy sequential\n doh_method {method}\n tls {made}/server.pem"
            names_ = "https://{}%dns.example https://{}%dns.example/q".format(
                *(f"127.0.0.1:{each.port}" for each in (bad, good))
            )
            plugin = forward(f"forward . {names_} {{\n {options}\n}}", block=block)
            for number in range(3):
                answer = await ask(plugin, f"{number}.example.org. A", "tcp" if number else "udp")
                assert text(answer) == [f"{number}.example.org. 30 IN A 10.0.0.1"]
            assert {(each.method, each.path) for each in bad.asked} == {(method, "/dns-query")}
            assert {(each.method, each.path) for each in good.asked} == {(method, "/q")}
            assert (len(bad.asked), len(good.asked), good.protocols) == (3, 3, ["http/1.1"])
            plugin.close()
            await asyncio.sleep(0.01)
        labels = f'{{proto="https",proxy_name="forward",to="127.0.0.1:{good.port}"}}'
        lines = exposed(block)
        assert f"coredns_proxy_conn_cache_hits_total{labels} 2.0" in lines
        assert f"coredns_proxy_conn_cache_misses_total{labels} 1.0" in lines

    run(story())


def test_an_upstream_over_https_is_checked_over_https(run: Run, made: Path) -> None:
    async def story() -> None:
        shown = certificates.server(made / "server.pem", made / "server.key")
        checked = asyncio.Event()

        def lives(asked: https.Asked) -> bytes | None:
            checked.set()
            return says_https(RIGHT)(asked)

        async with https.upstream(lambda asked: b"", lives, tls=shown) as fake:
            options = f"tls {made}/server.pem\n tls_servername dns.example\n max_connect_attempts 1\n health_check 20ms"
            plugin = forward(f"forward . https://127.0.0.1:{fake.port} {{\n {options}\n}}")
            feeding = asyncio.ensure_future(plugin.feed())
            answer = await ask(plugin)
            assert (answer.rcode, answer.error) == (Rcode.SERVFAIL, (23, "no upstream could be reached"))
            assert answer.cause == f'Post "https://127.0.0.1:{fake.port}/dns-query": EOF'
            await asyncio.wait_for(checked.wait(), 10)
            assert [question_of(asked.query) for asked in fake.asked[1:]] == [b"\x00\x00\x02\x00\x01"]
            feeding.cancel()
            plugin.close()
            await asyncio.sleep(0.01)

    run(story())


def test_an_upstream_over_tls_is_checked_over_tls(run: Run, made: Path) -> None:
    async def story() -> None:
        shown = certificates.server(made / "server.pem", made / "server.key")
        answers: list[Step] = [lambda query: [b""], says(RIGHT)]

        def step(query: bytes) -> Sequence[bytes | float]:
            return answers[min(len(fake.tcp), 2) - 1](query)

        async with upstream(tcp=step, tls=shown) as fake:
            options = f"tls {made}/server.pem\n max_connect_attempts 1\n health_check 20ms"
            plugin = forward(f"forward . tls://{fake.upstream} {{\n {options}\n}}")
            feeding = asyncio.ensure_future(plugin.feed())
            assert (await ask(plugin)).rcode == Rcode.SERVFAIL
            await asyncio.sleep(0.2)
            assert [question_of(packet) for packet in fake.tcp[1:]] == [b"\x00\x00\x02\x00\x01"]
            feeding.cancel()
            plugin.close()

    run(story())


def test_connections_are_kept_as_the_options_say(run: Run) -> None:
    async def story() -> None:
        for options, connections in (("", 1), ("expire 0s", 3), ("max_idle_conns 1", 1), ("expire 1s\n max_age 1s", 1)):
            async with upstream(tcp=says(RIGHT)) as fake:
                plugin = forward(f"forward . {fake.upstream} {{\n force_tcp\n {options}\n}}")
                for number in range(3):
                    assert (await ask(plugin, f"{number}.example.org. A")).rcode == 0
                assert (options, fake.connections) == (options, connections)
                plugin.close()

    run(story())


@pytest.mark.parametrize("transport", ["udp", "tcp"])
def test_upstreams_are_asked_from_the_source_address(run: Run, transport: str) -> None:
    async def story() -> None:
        async with upstream(says(RIGHT), tcp=says(RIGHT)) as fake:
            plugin = forward(f"forward . {fake.upstream} {{\n source_address 127.0.0.77\n}}")
            assert (await ask(plugin, transport=transport)).rcode == 0
            assert fake.hosts == ["127.0.0.77"]
            plugin.close()

    run(story())


def test_a_source_address_of_another_machine_is_told_by_the_log(run: Run) -> None:
    async def story() -> None:
        async with upstream(says(RIGHT)) as fake:
            plugin = forward(f"forward . {fake.upstream} {{\n source_address 192.0.2.1\n}}")
            answer = await ask(plugin)
            assert answer.cause == f"dial udp {fake.upstream}: bind: cannot assign requested address"
            assert (answer.rcode, answer.error) == (Rcode.SERVFAIL, (23, "no upstream could be reached"))

    run(story())


def test_what_a_reply_took_is_counted_under_the_names_of_today_and_of_before(run: Run) -> None:
    async def story() -> None:
        block = trial.block()
        async with upstream(says(RIGHT), says(rcode=3), silence) as fake:
            plugin = forward(f"forward . {fake.upstream} {{\n read_timeout 50ms\n}}", block=block)
            for number in range(3):
                await ask(plugin, f"{number}.example.org. A")
        lines, to = exposed(block), str(fake.upstream)
        assert [line for line in lines if to in line and "_bucket" not in line and "_sum" not in line] == [
            f'coredns_proxy_request_duration_seconds_count{{proxy_name="forward",rcode="NOERROR",to="{to}"}} 1.0',
            f'coredns_proxy_request_duration_seconds_count{{proxy_name="forward",rcode="NXDOMAIN",to="{to}"}} 1.0',
            f'coredns_forward_requests_total{{to="{to}"}} 2.0',
            f'coredns_forward_responses_total{{rcode="NOERROR",to="{to}"}} 1.0',
            f'coredns_forward_responses_total{{rcode="NXDOMAIN",to="{to}"}} 1.0',
            f'coredns_forward_request_duration_seconds_count{{rcode="NOERROR",to="{to}"}} 1.0',
            f'coredns_forward_request_duration_seconds_count{{rcode="NXDOMAIN",to="{to}"}} 1.0',
        ]

    run(story())


def test_a_check_without_reply_is_counted(run: Run) -> None:
    async def story() -> None:
        block = trial.block()
        async with upstream() as gone:
            plugin = forward(f"forward . {gone.upstream} {{\n health_check 20ms\n}}", block=block)
        feeding = asyncio.ensure_future(plugin.feed())
        with trial.log_lines():
            await ask(plugin)
            await asyncio.sleep(0.2)
        feeding.cancel()
        counts = [line.rsplit(" ", 1) for line in exposed(block) if "healthcheck_failures_total{" in line]
        assert [name for name, _ in counts] == [
            f'coredns_proxy_healthcheck_failures_total{{proxy_name="forward",to="{gone.upstream}"}}',
            f'coredns_forward_healthcheck_failures_total{{to="{gone.upstream}"}}',
        ]
        assert all(float(count) >= 2 for _, count in counts)

    run(story())


# Health


def test_an_upstream_that_fails_is_avoided_until_it_answers_a_check(run: Run) -> None:
    async def story() -> None:
        alive = False

        def step(query: bytes) -> list[bytes]:
            return [reply(query, RIGHT)] if alive else []

        async with upstream(step) as sick, upstream(says(OTHER)) as well:
            plugin = forward(
                f"forward . {sick.upstream} {well.upstream} {{\n policy sequential\n read_timeout 50ms\n"
                " max_fails 1\n health_check 50ms no_rec domain health.test\n}"
            )
            with trial.log_lines() as lines:
                for _ in range(2):
                    assert text(await ask(plugin)) == ["www.example.org. 30 IN A 10.0.0.2"]
                asked = len(sick.udp)
                assert asked == 2
                await ask(plugin)
                assert len(sick.udp) == asked
                feeding = asyncio.ensure_future(plugin.feed())
                alive = True
                async with asyncio.timeout(5):
                    while text(await ask(plugin)) != ["www.example.org. 30 IN A 10.0.0.1"]:  # noqa: ASYNC110
                        await asyncio.sleep(0.02)
                # Now that all is well, nobody is checked any more.
                await asyncio.sleep(0.2)
                checks = [packet for packet in sick.udp if b"health" in packet]
                before = len(checks)
                await asyncio.sleep(0.2)
                assert len([packet for packet in sick.udp if b"health" in packet]) == before
                assert {packet[2:4] for packet in checks} == {b"\x00\x00"}
                feeding.cancel()
            port = sick.upstream.port
            assert lines[0].startswith(
                f"[WARNING] plugin/forward: upstream 127.0.0.1:{port} is avoided after 2 failures: read udp "
            )
            assert lines[1:] == [f"[INFO] plugin/forward: upstream 127.0.0.1:{port} answers again"]

    run(story())


@pytest.mark.parametrize(("options", "asked"), [("", 3), ("failfast_all_unhealthy_upstreams", 2)])
def test_when_all_are_avoided_one_is_tried_unless_told_otherwise(run: Run, options: str, asked: int) -> None:
    async def story() -> None:
        block = trial.block()
        async with upstream(silence) as fake:
            more = f"{options}\n read_timeout 20ms\n max_fails 1\n max_connect_attempts 1"
            plugin = forward(f"forward . {fake.upstream} {{\n {more}\n}}", block=block)
            answers = [await ask(plugin) for _ in range(3)]
            assert len(fake.udp) == asked
            assert answers[2].rcode == Rcode.SERVFAIL
            assert (answers[2].cause == "no healthy proxies") is (asked == 2)
        assert f"{FORWARD_HEALTH_BROKEN.name} 1" in block.process.metrics.render()[0].decode()

    run(story())


# Its line


def upstreams(line: str) -> list[str]:
    found: list[object] = []
    directives = trial._directives(Forward, line)
    read = Forward.read(directives, found)  # type: ignore[arg-type]
    assert read is not None, found
    return [str(each) for written in read for each in written.options.to]


@pytest.mark.parametrize(
    ("to", "expected"),
    [
        ("10.0.0.10", ["10.0.0.10:53"]),
        ("10.0.0.10:5353 10.0.0.11", ["10.0.0.10:5353", "10.0.0.11:53"]),
        ("fd00::a [fd00::b] [fd00::c]:5353", ["[fd00::a]:53", "[fd00::b]:53", "[fd00::c]:5353"]),
        ("dns://10.0.0.10 dns://10.0.0.11:54 dns://[::1]:55", ["10.0.0.10:53", "10.0.0.11:54", "[::1]:55"]),
        ("fe80::1%lo", ["[fe80::1%lo]:53"]),
        ("10.0.0.10 dns://10.0.0.10:53 10.0.0.11 10.0.0.10", ["10.0.0.10:53", "10.0.0.11:53"]),
    ],
)
def test_addresses_are_read_in_every_form(to: str, expected: list[str]) -> None:
    assert upstreams(f"forward . {to}") == expected


@pytest.mark.parametrize(
    ("to", "expected"),
    [
        ("tls://9.9.9.9", Upstream("9.9.9.9", 853, True)),
        ("tls://9.9.9.9:8853", Upstream("9.9.9.9", 8853, True)),
        ("tls://2620:fe::fe", Upstream("2620:fe::fe", 853, True)),
        ("tls://[2620:fe::fe]:8853", Upstream("2620:fe::fe", 8853, True)),
        ("tls://9.9.9.9%dns.example", Upstream("9.9.9.9", 853, True, "dns.example")),
        ("tls://9.9.9.9:8853%dns.example", Upstream("9.9.9.9", 8853, True, "dns.example")),
        ("tls://9.9.9.9%dns.example:8853", Upstream("9.9.9.9", 8853, True, "dns.example")),
        ("tls://2620:fe::fe%dns.example", Upstream("2620:fe::fe", 853, True, "dns.example")),
        ("tls://2620:fe::fe%dns.example:8853", Upstream("2620:fe::fe", 8853, True, "dns.example")),
        ("tls://[2620:fe::fe%dns.example]:8853", Upstream("2620:fe::fe", 8853, True, "dns.example")),
        ("tls://[2620:fe::fe]:8853%dns.example", Upstream("2620:fe::fe", 8853, True, "dns.example")),
        ("dns.example", Upstream("dns.example")),
        ("dns.example.:5353", Upstream("dns.example.", 5353)),
        ("dns://Dns-1.Example", Upstream("Dns-1.Example")),
        ("tls://dns.example", Upstream("dns.example", 853, True, "dns.example")),
        ("tls://dns.example.:8853%other.example", Upstream("dns.example.", 8853, True, "other.example")),
        ("https://dns.example/q", Upstream("dns.example", 443, True, "dns.example", "/q")),
        ("https://9.9.9.9", Upstream("9.9.9.9", 443, True, "", "/dns-query")),
        ("https://9.9.9.9:8443/", Upstream("9.9.9.9", 8443, True, "", "/")),
        ("https://[2620:fe::fe]/a/b", Upstream("2620:fe::fe", 443, True, "", "/a/b")),
        ("https://9.9.9.9%dns.example:8443/q", Upstream("9.9.9.9", 8443, True, "dns.example", "/q")),
    ],
)
def test_an_upstream_over_tls_has_a_port_and_perhaps_a_name(to: str, expected: Upstream) -> None:
    found: list[Problem] = []
    read = Forward.read(trial._directives(Forward, f"forward . {to}"), found)
    assert read is not None, found
    assert read[0].options.to == (expected,)


def test_a_file_is_read_for_its_servers_only(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    path.write_text(
        "# a comment\nsearch lan\nnameserver 10.0.0.10\r\n nameserver\tfd00::a extra\nnameserver\nnameserver x\n"
    )
    assert upstreams(f"forward . {path} 10.0.0.12") == ["10.0.0.10:53", "[fd00::a]:53", "10.0.0.12:53"]
    assert resolv_conf("; nameserver 10.0.0.9\n#nameserver 10.0.0.8") == []
    assert resolv_conf("nameserver ::1") == [Upstream("::1")]


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("forward", "`forward` needs"),
        ("forward .", "`forward` needs TO"),
        ("forward . 10.0.0.300", "expected an address, `IP[:PORT]` or `[IPv6]:PORT`, a name, or a file"),
        ("forward . dns.example:0", "found `dns.example:0`"),
        ("forward . dns..example", "found `dns..example`"),
        (f"forward . {'a' * 64}.example", "is no name: a label has 1 to 63 bytes"),
        ("forward . dns.example {\n resolver ns.example\n}", "expected addresses, `IP[:PORT]` or `[IPv6]:PORT`, found"),
        ("forward . 10.0.0.10:0", "found `10.0.0.10:0`"),
        ("forward . 10.0.0.10:65536", "found `10.0.0.10:65536`"),
        ("forward . [10.0.0.10]:53", "found `[10.0.0.10]:53`"),
        ("forward . [::1", "found `[::1`"),
        ("forward . /no/such/file", "`/no/such/file` can't be read: no such file or directory"),
        ("forward . /dev/null", "`/dev/null` can't be read: not a regular file"),
        ("forward . grpc://10.0.0.10", "an upstream with `grpc://` isn't in kdns yet"),
        ("forward . https://10.0.0.10/dns?query", "expected a path of letters, digits and `-._~/`"),
        ("forward . https://10.0.0.10:0", "expected an address, `https://IP[:PORT]`"),
        ("forward . https://10.0.0.10 {\n doh_method PUT\n}", "`doh_method` takes `GET` or `POST`"),
        ("forward . udp://10.0.0.10", "found `udp://10.0.0.10`"),
        ("forward . tls://dns.example/path", "expected an address, `tls://IP[:PORT]`"),
        ("forward . tls://10.0.0.10%", "found `tls://10.0.0.10%`"),
        ("forward . tls://10.0.0.10:0", "found `tls://10.0.0.10:0`"),
        (
            "forward . tls://10.0.0.10%a.example {\n tls_servername b.example\n}",
            "the upstream 10.0.0.10:853 has a name of its own, `a.example`",
        ),
        ("forward . tls://10.0.0.10 {\n tls /no/such/ca\n}", "`/no/such/ca` can't be read: no such file or directory"),
        ("forward . tls://10.0.0.10 {\n tls a b c d\n}", "`tls` takes at most three files"),
        ("forward . 10.0.0.10 {\n expire 20s\n max_age 10s\n}", "must not be less than `expire`, which is 20s"),
        ("forward . 10.0.0.10 {\n max_age 9s\n}", "must not be less than `expire`, which is 10s"),
        ("forward . 10.0.0.10 {\n source_address node\n}", "expected an IP address, found `node`"),
        (
            "forward . 10.0.0.10 fd00::a {\n source_address 10.0.0.1\n}",
            "the upstream [fd00::a]:53 can't be asked from `10.0.0.1`, which is of another family",
        ),
        (
            "forward . " + " ".join(f"10.0.0.{number}" for number in range(16)),
            "more than 15 upstreams are configured: 16",
        ),
        ("forward . 10.0.0.10 {\n policy fastest\n}", "found `fastest`"),
        ("forward . 10.0.0.10 {\n max_fails -1\n}", "expected 0 or more, found `-1`"),
        ("forward . 10.0.0.10 {\n read_timeout 0s\n}", "found `0s`"),
        ("forward . 10.0.0.10 {\n failover NOERROR\n}", "NOERROR is no failure"),
        ("forward . 10.0.0.10 {\n next NXDOMIAN\n}", "expected a response code, such as NXDOMAIN"),
        ("forward . 10.0.0.10 {\n health_check 1\n}", "write `1s`"),
        ("forward . 10.0.0.10 {\n health_check 1s recursive\n}", "expected `no_rec` or `domain NAME`"),
        ("forward . 10.0.0.10 {\n health_check 1s domain\n}", "`domain` needs a name"),
        ("forward . 10.0.0.10 {\n health_check 1s domain a..b\n}", "a label has 1 to 63 bytes"),
        ("forward . 10.0.0.10 {\n polcy random\n}", "polcy"),
    ],
)
def test_what_it_does_not_take_is_told_with_its_place(line: str, part: str) -> None:
    told = trial.problems(Forward, line)
    assert part in told
    assert "Corefile:" in told
    assert "error:" in told


def test_mistakes_of_several_lines_are_told_together() -> None:
    told = trial.problems(Forward, "forward . x:\nforward . y:")
    assert "found `x:`" in told
    assert "found `y:`" in told


@pytest.mark.parametrize(
    ("files", "part"),
    [
        ("{0}/other", "`{0}/other` holds no certificate"),
        ("{0}/server.pem {0}/other", "`{0}/server.pem` and `{0}/other` are no certificate and its key"),
        ("{0}/server.pem {0}/client.key", "`{0}/server.pem` and `{0}/client.key` are no certificate and its key"),
        ("{0}/server.pem {0}/server.key {0}/other", "`{0}/other` holds no certificate"),
    ],
)
def test_files_of_tls_that_are_none_are_told(made: Path, files: str, part: str) -> None:
    told = trial.problems(Forward, f"forward . tls://10.0.0.10 {{\n tls {files.format(made)}\n}}")
    assert part.format(made) in told


@pytest.mark.parametrize(
    ("option", "with_effect", "without", "hint"),
    [
        ("tls", "tls://10.0.0.10", "10.0.0.11", "it is for upstreams with `tls://` or `https://` before them"),
        (
            "tls_servername dns.example",
            "https://10.0.0.10",
            "10.0.0.11",
            "it is for upstreams with `tls://` or `https://` before them",
        ),
        ("doh_method GET", "https://10.0.0.10", "tls://10.0.0.11", "it is for upstreams with `https://` before them"),
        (
            "max_age 1h",
            "tls://10.0.0.10",
            "https://10.0.0.11",
            "a connection of HTTPS is kept as long as `expire` says",
        ),
        ("resolver 10.0.0.1", "dns.example", "10.0.0.11", "no upstream has a name"),
        ("force_tcp", "10.0.0.10", "https://10.0.0.11", "all upstreams are asked over HTTPS"),
    ],
)
def test_options_without_effect_on_any_upstream_are_told_at_start(
    option: str, with_effect: str, without: str, hint: str
) -> None:
    assert trial.problems(Forward, f"forward . {with_effect} {without} {{\n {option}\n}}") == ""
    told = trial.problems(Forward, f"forward . {without} {{\n {option}\n}}").splitlines()
    assert (told[0], told[-1]) == (f"warning: `{option.split(maxsplit=1)[0]}` has no effect", f"hint: {hint}")


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (
            "forward 10.0.0.0/7 10.0.0.10",
            "FROM of `forward`: this is several reverse zones, and all of them are forwarded",
        ),
        (
            "forward . 10.0.0.10 {\n read_timeout 5s\n}",
            "`read_timeout`: an answer has 4s in all, and then is SERVFAIL",
        ),
        (
            "forward . 10.0.0.10 {\n max_connect_attempts 0\n}",
            "`max_connect_attempts`: upstreams are tried 10 times at most; 0 is twice for each",
        ),
        (
            "forward . 10.0.0.10 {\n max_connect_attempts 11\n}",
            "`max_connect_attempts`: upstreams are tried 10 times at most; 0 is twice for each",
        ),
        (
            "forward . tls://dns.example",
            "TO of `forward`: the certificate has to be for the name, not for its address",
        ),
        (
            "forward . 10.0.0.10 https://dns.example",
            "TO of `forward`: the certificate has to be for the name, not for its address",
        ),
    ],
)
def test_what_means_something_else_than_in_coredns_is_noted(line: str, sentence: str) -> None:
    assert trial.problems(Forward, line).splitlines()[0] == f"note: {sentence}"


@pytest.mark.parametrize(
    "line",
    [
        "forward . tls://10.0.0.10",
        "forward . dns.example",
        "forward . tls://dns.example%dns.example",
        "forward . tls://dns.example {\n tls_servername dns.example\n}",
    ],
)
def test_a_certificate_that_coredns_wants_too_is_told_nothing_of(line: str) -> None:
    assert trial.problems(Forward, line) == ""


def test_the_usual_line_of_a_cluster_is_taken_without_a_word(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    path.write_text("nameserver 10.0.0.10\n")
    assert trial.problems(Forward, f"forward . {path} {{\n max_concurrent 1000\n}}") == ""
