"""A kept reply is never older than the model: what is kept, when it goes, and for whom.

`test_never_stale.py` lets all of it happen in any order.
"""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import Callable
from random import Random

import dns.message
import msgspec
import pytest
import uvloop

from kdns import corefile
from kdns.answers import Bounds
from kdns.app import build
from kdns.chain import Answer, Next, Process, Request, fold
from kdns.kubernetes.objects import Put, Synced
from kdns.metrics import Metrics
from kdns.plugins.kubernetes import Kubernetes
from kdns.responder import Responder, Site
from kdns.server.batch import serve_udp
from kdns.server.udp import open_udp
from kdns.wire import names
from kdns.wire.records import Type, address
from tests.kubernetes.test_cluster import OWN, START, delete, service, slice_

CLIENT, LOCAL = ("192.0.2.7", 4711), ("192.0.2.1", 53)
NOON = 1_700_000_000.0
OPT = b"\0\0\x29\x04\xd0\0\0\0\0\0\0"


def packet(name: bytes, rtype: int, edns: bool = False, flags: bytes = b"\1\0", id: bytes = b"\0\7") -> bytes:
    end = rtype.to_bytes(2, "big") + b"\0\1" + (OPT if edns else b"")
    return id + flags + b"\0\1\0\0\0\0" + (b"\0\1" if edns else b"\0\0") + name + end


class Kept:
    """A responder of a `kubernetes` block, and another that never kept anything, over the same model."""

    def __init__(self, options: str, more: str = "") -> None:
        text = f".:53 {{\n kubernetes cluster.local in-addr.arpa ip6.arpa {{\n endpoint http://127.0.0.1:9\n{options}\n}}\n{more}\n}}"
        self.process = Process(Metrics(), lambda: NOON)
        self.sites = build(corefile.parse(text, "Corefile"), self.process).listeners[0].sites
        self.process.addresses = OWN
        (self.plugin,) = (each for each in self.process.plugins if isinstance(each, Kubernetes))
        self.responder = Responder(self.sites, self.process, self.process.metrics)

    def ask(self, query: bytes, transport: str = "udp", fresh: bool = False) -> bytes:
        responder = self.responder
        if fresh:
            other = Process(Metrics(), lambda: NOON)
            other.addresses = OWN
            responder = Responder(self.sites, other, other.metrics)
        reply = responder.respond(query, transport, CLIENT, LOCAL, lambda data: None)
        assert isinstance(reply, bytes)
        return reply

    def found(self, query: bytes) -> bool:
        return self.responder.answers("udp", False).find(query) is not None


def without_serial(reply: bytes) -> str:
    """A reply as text, but for the serial of a negative one, which is of the moment when it was made."""
    message = dns.message.from_wire(reply)
    lines = message.to_text().splitlines()
    if message.authority:
        lines = [line.rsplit(maxsplit=5)[0] if " SOA " in line else line for line in lines]
    return "\n".join(lines)


def spelled(name: bytes, random: Random) -> bytes:
    return bytes(each ^ 0x20 if random.random() < 0.5 and chr(each).isalpha() else each for each in name)


def test_a_change_lets_go_what_it_changes_and_nothing_else() -> None:
    kept = Kept("pods verified")
    kept.plugin.apply([*START, Synced()])
    x, y = (packet(names.from_text(f"{name}.a.svc.cluster.local"), Type.A) for name in "xy")
    for query in (x, y):
        kept.ask(query)
        kept.ask(query)
        assert kept.found(query)
    kept.plugin.apply([service("10.3.0.7", name="y", where="a", team="t")])
    assert kept.found(x)
    assert not kept.found(y)


# Denials of siblings


def denied(kept: Kept, name: str, rtype: int = Type.A) -> bool:
    return kept.found(packet(names.from_text(name), rtype))


def deny(kept: Kept, name: str, edns: bool = False) -> None:
    """Ask for a name that isn't there until the answer is kept."""
    for _ in range(2):
        kept.ask(packet(names.from_text(name), Type.A, edns))


@pytest.mark.parametrize(
    ("name", "sibling", "other"),
    [
        ("no.a.svc.cluster.local", "zz.a.svc.cluster.local", "zzz.a.svc.cluster.local"),
        ("www.no.a.svc.cluster.local", "ftp.no.a.svc.cluster.local", "ftp.on.a.svc.cluster.local"),
        ("no.svc.cluster.local", "zz.svc.cluster.local", "zz.no.svc.cluster.local"),
        ("www.example.org.cluster.local", "ftp.example.org.cluster.local", "ftp.example.com.cluster.local"),
        ("no.cluster.local", "zz.cluster.local", "zz.zz.cluster.local"),
    ],
)
@pytest.mark.parametrize("edns", [False, True])
def test_a_name_that_is_not_there_speaks_for_its_siblings_of_the_same_length(
    name: str, sibling: str, other: str, edns: bool
) -> None:
    kept = Kept("")
    kept.plugin.apply([*START, Synced()])
    deny(kept, name, edns)
    query = packet(names.from_text(sibling), Type.A, edns, id=b"\1\2")
    assert kept.found(query)
    assert kept.ask(query) == kept.ask(query, fresh=True)
    assert not kept.found(packet(names.from_text(other), Type.A, edns))
    assert not kept.found(packet(names.from_text(sibling), Type.AAAA, edns))
    assert not kept.found(packet(names.from_text(sibling), Type.A, not edns))


def test_a_sibling_is_denied_in_whatever_spelling() -> None:
    kept = Kept("")
    kept.plugin.apply([*START, Synced()])
    deny(kept, "n.a.svc.cluster.local")
    query = packet(names.from_text("Z.A.svc.cLUSTER.local"), Type.A)
    assert kept.found(query)
    assert kept.ask(query) == kept.ask(query, fresh=True)
    assert not kept.found(packet(names.from_text("X.A.svc.cLUSTER.local"), Type.A))


def test_a_sibling_that_is_there_or_comes_is_not_denied() -> None:
    kept = Kept("")
    kept.plugin.apply([*START, Synced()])
    deny(kept, "n.a.svc.cluster.local")
    assert denied(kept, "y.a.svc.cluster.local")
    assert not denied(kept, "x.a.svc.cluster.local")
    assert not denied(kept, "X.a.svc.cluster.local")
    kept.plugin.apply([service("10.3.0.7", name="y", where="a", team="t")])
    assert not denied(kept, "y.a.svc.cluster.local")
    kept.plugin.apply([delete(service("10.3.0.7", name="y", where="a", team="t"))])
    assert denied(kept, "y.a.svc.cluster.local")


@pytest.mark.parametrize("gone", [START[1:], START, START[::-1]], ids=["services", "namespace first", "namespace last"])
def test_a_namespace_that_was_emptied_and_filled_again_is_still_looked_into(gone: list[Put]) -> None:
    kept = Kept("")
    kept.plugin.apply([*START, Synced()])
    deny(kept, "n.a.svc.cluster.local")
    kept.plugin.apply([delete(each) for each in gone])
    kept.plugin.apply([START[0], service("10.3.0.7", name="y", where="a", team="t")])
    assert not denied(kept, "y.a.svc.cluster.local")


def test_a_label_made_to_be_pointed_into_speaks_for_itself_alone() -> None:
    kept = Kept("")
    kept.plugin.apply([*START, Synced()])
    # The label ends as the name of the SOA's server begins, so that a pointer could lead into it.
    crafted = packet(b"\x05w\x03dns\x07cluster\x05local\0", Type.A)
    for _ in range(3):
        kept.ask(crafted)
    assert not kept.found(packet(b"\x05abcde\x07cluster\x05local\0", Type.A))


def test_a_plugin_that_heeds_names_keeps_denials_to_their_own_name() -> None:
    kept = Kept("", "hosts {\n 192.0.2.1 y.a.svc.cluster.local\n fallthrough\n}")
    kept.plugin.apply([*START, Synced()])
    deny(kept, "n.a.svc.cluster.local")
    assert not denied(kept, "z.a.svc.cluster.local")


def test_a_block_of_its_own_below_is_not_denied() -> None:
    kept = Kept("")
    kept.plugin.apply([*START, Synced()])
    inner = msgspec.structs.replace(kept.sites[0], zone=names.from_text("y.a.svc.cluster.local"))
    kept.responder = Responder([*kept.sites, inner], kept.process, kept.process.metrics)
    deny(kept, "n.a.svc.cluster.local")
    assert not denied(kept, "z.a.svc.cluster.local")
    deny(kept, "n.svc.cluster.local")
    assert not denied(kept, "z.svc.cluster.local")


# Strangers

SCALE = 20


@pytest.mark.parametrize("strangers", ["x{:016x}.a.svc", "www.x{:016x}.a.svc", "{}-{}-{}-{}.a.pod"])
def test_a_million_names_of_strangers_drive_out_hardly_any_answer_in_use(strangers: str) -> None:
    """All by the same scale: room, names in use, and strangers' names, of which nine come for each name in use.

    The last kind is answered with an address, whatever it is.
    """
    random = Random(1)
    kept = Kept("pods insecure", "loadbalance")
    used = [f"s{number}.a.svc" for number in range(5000 // SCALE)]
    kept.plugin.apply(
        [
            *START,
            *(
                service(f"10.3.{number >> 8}.{number & 255}", name=f"s{number}", where="a")
                for number in range(len(used))
            ),
            Synced(),
        ]
    )
    full, answers = Bounds(), kept.responder.answers("udp", False)
    answers._bounds = Bounds(full.positive // SCALE, full.negative // SCALE)
    answers.clear()
    in_use = [packet(names.from_text(f"{name}.cluster.local"), Type.A) for name in used]
    # A search list makes such names of them.
    in_use += [packet(names.from_text(f"{name}.cluster.local.a.svc.cluster.local"), Type.A) for name in used]
    for query in in_use * 2:
        kept.ask(query)
    missed = asked = 0
    for number in range(1_000_000 // SCALE):
        name = (
            strangers.format(*random.randbytes(4)) if "pod" in strangers else strangers.format(random.getrandbits(64))
        )
        kept.ask(packet(names.from_text(f"{name}.cluster.local"), Type.A))
        if number % 9 == 0:
            query = random.choice(in_use)
            missed += not kept.found(query)
            asked += 1
            kept.ask(query)
    assert missed <= asked / 100
    assert sum(not kept.found(query) for query in in_use) <= len(in_use) / 100


def test_nothing_is_kept_before_all_was_read() -> None:
    kept = Kept("")
    query = packet(names.from_text("x.a.svc.cluster.local"), Type.A)
    kept.ask(query)
    assert not kept.found(query)
    kept.plugin.apply([*START, Synced()])
    kept.ask(query)
    assert kept.found(query)


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        (packet(names.from_text("x.a.svc.cluster.local"), Type.A, flags=b"\x29\0"), "another opcode"),
        (packet(names.from_text("x.a.svc.cluster.local"), Type.AXFR), "a transfer"),
        (packet(names.from_text("www.example.com"), Type.A)[:-2] + b"\0\3", "the class CH"),
        (packet(names.from_text("x.a.svc.cluster.local"), Type.A) + b"?", "bytes behind it"),
        (packet(names.from_text("x.a.svc.cluster.local"), Type.A, True)[:-2] + b"\0\4\0\x0a\0\0", "an option"),
    ],
)
def test_what_says_more_than_its_question_is_not_kept(query: bytes, reason: str) -> None:
    kept = Kept("")
    kept.plugin.apply([*START, Synced()])
    kept.ask(query)
    assert not kept.found(query), reason


def test_one_reply_is_kept_for_every_cookie() -> None:
    kept = Kept("")
    kept.plugin.apply([*START, Synced()])

    def ask(name: str, cookie: bytes, code: bytes = b"\0\x0a") -> bytes:
        option = code + len(cookie).to_bytes(2, "big") + cookie
        query = packet(names.from_text(name), Type.A, edns=True)[:-2] + len(option).to_bytes(2, "big") + option
        assert kept.ask(query) == kept.ask(query, fresh=True)
        return query

    first = ask("x.a.svc.cluster.local", b"12345678")
    assert kept.found(first[:-8] + b"87654321")
    assert kept.found(ask("X.a.svc.cluster.local", b"abcdefgh"))
    assert not kept.found(packet(names.from_text("x.a.svc.cluster.local"), Type.A, edns=True))
    # A server's part behind it, as no client of ours sends, and another option.
    assert not kept.found(ask("x.a.svc.cluster.local", b"12345678" + b"87654321"))
    assert not kept.found(ask("x.a.svc.cluster.local", b"12345678", b"\0\x0b"))
    ask("n.a.svc.cluster.local", b"12345678")
    assert kept.found(ask("z.a.svc.cluster.local", b"abcdefgh"))


def test_what_is_logged_is_answered_anew_and_the_rest_is_kept() -> None:
    kept = Kept("", "log . {\n class denial\n}")
    kept.plugin.apply([*START, Synced()])
    good, bad = (packet(names.from_text(f"{name}.a.svc.cluster.local"), Type.A) for name in ("x", "none"))
    for query in (good, bad):
        kept.ask(query)
    assert kept.found(good)
    assert not kept.found(bad)


def test_udp_and_tcp_keep_apart_what_fits() -> None:
    kept = Kept("", "loadbalance")
    many = [f"10.7.{number}.1" for number in range(200)]
    kept.plugin.apply([*START, slice_(*many, of="x", name="s", where="a", team="t"), Synced()])
    query = packet(names.from_text("x.a.svc.cluster.local"), Type.A)
    for _ in range(40):
        assert len(kept.ask(query)) <= 512
        assert kept.ask(query)[2] & 0x02
        assert len(dns.message.from_wire(kept.ask(query, "tcp")).answer[0]) == 200


def addresses(reply: bytes, query: bytes) -> list[bytes]:
    """The data of A records that stand at the question's name: 16 bytes each, the address at their end."""
    count = int.from_bytes(reply[6:8], "big")
    return [reply[len(query) + 16 * number + 12 : len(query) + 16 * (number + 1)] for number in range(count)]


@pytest.mark.parametrize("endpoints", [3, 1000])
def test_kept_orders_are_as_fair_as_fresh_ones(endpoints: int) -> None:
    kept = Kept("", "loadbalance")
    many = [f"10.{7 + number // 250}.{number % 250}.1" for number in range(endpoints)]
    kept.plugin.apply([*START, slice_(*many, of="x", name="s", where="a", team="t"), Synced()])
    query = packet(names.from_text("x.a.svc.cluster.local"), Type.A)
    asked, variants = 40_000, 16
    first: Counter[bytes] = Counter()
    seen: Counter[bytes] = Counter()
    # What clients see, by the short way of kept replies.
    server = serve_udp(kept.responder, open_udp("127.0.0.1", 0))
    with server.sock, socket.socket(type=socket.SOCK_DGRAM) as client:
        client.settimeout(10)
        client.connect(server.sock.getsockname())
        for _ in range(asked):
            client.send(query)
            server._readable()
            found = addresses(client.recv(65535), query)
            first[found[0]] += 1
            seen.update(found)
    assert len(seen) == endpoints
    # Each order is used some 16 times before another replaces it, so that many draws count as one.
    expected = asked / endpoints
    chi_square = sum((first[each] - expected) ** 2 / expected for each in seen) / (variants + 1)
    freedom = endpoints - 1
    # Five standard deviations of a chi-square with so many degrees of freedom.
    assert chi_square < freedom + 5 * (2 * freedom) ** 0.5
    share = sum(seen.values()) / endpoints
    assert all(share / 3 < count < 3 * share for count in seen.values())


# Answers that wait


class Slow:
    """A handler that waits, tags its answer, and says what the world was like before it waited."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.world = b"\x0a\0\0\1"

    async def handle(self, request: Request, next: Next) -> Answer:
        request.tags.add(("service", b"a", b"x"))
        seen = self.world
        await request.wait(self.go.wait())
        return Answer(answer=[address(request.query.qname, 5, seen)], plugin="slow")


@pytest.mark.parametrize("loop", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("meanwhile", [None, ("service", b"a", b"x"), ("service", b"a", b"y")])
def test_an_answer_that_waited_is_kept_only_if_nothing_of_it_has_changed(
    loop: Callable[..., None], meanwhile: tuple[object, ...] | None
) -> None:
    async def story() -> None:
        slow = Slow()
        process = Process(Metrics(), lambda: NOON)
        responder = Responder([Site(b"\0", fold([slow.handle]), "dns://:53")], process, process.metrics)
        query = packet(names.from_text("x.a.svc.cluster.local"), Type.A)
        told: list[bytes] = []
        responder.respond(query, "udp", CLIENT, LOCAL, told.append)
        await asyncio.sleep(0)
        if meanwhile is not None:
            process.forget({meanwhile})
        slow.go.set()
        await asyncio.sleep(0.01)
        assert len(told) == 1
        kept = responder.answers("udp", False).find(query)
        assert (kept is None) == (meanwhile == ("service", b"a", b"x"))

    loop(story())


def test_a_deleted_service_is_gone_with_the_next_query() -> None:
    kept = Kept("")
    put = service("10.3.0.9", name="y", where="a", team="t")
    kept.plugin.apply([*START, put, Synced()])
    query = packet(names.from_text("y.a.svc.cluster.local"), Type.A)
    for _ in range(3):
        assert dns.message.from_wire(kept.ask(query)).answer
    kept.plugin.apply([delete(put)])
    assert dns.message.from_wire(kept.ask(query)).rcode() == 3
