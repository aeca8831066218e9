"""dns64: which answers are made anew, of what, and how long they hold (RFC 6147, RFC 6052)."""

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, IPv6Network

import pytest

from kdns.chain import Answer, Request, failure
from kdns.metrics import DNS64_TRANSLATED
from kdns.plugins.dns64 import Dns64, embedded
from kdns.wire import names
from kdns.wire.records import Rcode, Record, Type, address, soa, to_text
from tests.plugins import trial
from tests.plugins.packets import OVER_IPV4, OVER_IPV6

WWW = names.from_text("www.example.org")
ALIAS = names.from_text("host.example.org")
ZONE = names.from_text("example.org")


def a(owner: bytes = WWW, ttl: int = 300, text: str = "192.0.2.33") -> Record:
    return address(owner, ttl, IPv4Address(text).packed)


def aaaa(text: str = "2001:db8::1") -> Record:
    return address(WWW, 300, IPv6Address(text).packed)


def no_data(ttl: int = 60) -> Answer:
    return Answer(authority=[soa(ZONE, ttl, ZONE, ZONE, 1, 30)], flags=0)


def found(*records: Record, flags: int = 0x00A0) -> Answer:
    return Answer(answer=list(records), flags=flags, plugin="forward")


CNAME = Record(WWW, Type.CNAME, 20, ALIAS)


class Says:
    """A server that has one answer, and notes what it is asked."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.asked: list[tuple[bytes, int]] = []

    async def resolve(self, request: Request) -> Answer:
        self.asked.append((request.query.spelled, request.query.rtype))
        request.tags.add(("tag", "of the A record"))
        return self.answer


class Case:
    """One question: what the chain says to AAAA, what the server says to A."""

    def __init__(
        self,
        behind: Answer,
        addresses: Answer,
        line: str = "dns64",
        question: str = "Www.Example.Org. AAAA",
        client: tuple[str, int] = OVER_IPV6,
        flags: int = 0x0100,
        do: bool = False,
    ) -> None:
        self.block = trial.block()
        self.server = Says(addresses)
        self.request = trial.request(question, client=client)
        self.request.server = self.server
        self.request.query.flags, self.request.query.do = flags, do
        self.behind = behind
        self.said = trial.answer(trial.plugin(Dns64, line, self.block), self.request, behind)

    @property
    def translated(self) -> float:
        return sum(self.block.process.metrics._values[DNS64_TRANSLATED].values())


def texts(records: Sequence[Record]) -> list[str]:
    return [to_text(record) for record in records]


@pytest.mark.parametrize(
    ("line", "behind", "addresses", "answer"),
    [
        pytest.param(
            "dns64",
            no_data(60),
            found(a(ttl=300), a(ttl=30, text="192.0.2.1")),
            ["www.example.org. 60 IN AAAA 64:ff9b::c000:221", "www.example.org. 30 IN AAAA 64:ff9b::c000:201"],
            id="each address, no longer than the SOA that said that there is none",
        ),
        pytest.param(
            "dns64",
            Answer(flags=0),
            found(a(ttl=3600)),
            ["www.example.org. 600 IN AAAA 64:ff9b::c000:221"],
            id="600 seconds where there is no SOA",
        ),
        pytest.param(
            "dns64",
            found(CNAME),
            found(CNAME, a(ALIAS)),
            ["www.example.org. 20 IN CNAME host.example.org.", "host.example.org. 300 IN AAAA 64:ff9b::c000:221"],
            id="an alias goes along",
        ),
        pytest.param(
            "dns64",
            Answer(Rcode.SERVFAIL, flags=0, plugin="forward"),
            found(a()),
            ["www.example.org. 300 IN AAAA 64:ff9b::c000:221"],
            id="an upstream's error is no AAAA record",
        ),
        pytest.param(
            "dns64 2001:db8:64::/96",
            no_data(),
            found(a()),
            ["www.example.org. 60 IN AAAA 2001:db8:64::c000:221"],
            id="another prefix",
        ),
        pytest.param(
            "dns64 {\n prefix 2001:db8:64::/96\n}",
            no_data(),
            found(a()),
            ["www.example.org. 60 IN AAAA 2001:db8:64::c000:221"],
            id="a prefix as an option",
        ),
        pytest.param(
            "dns64 {\n translate_all\n}",
            found(aaaa()),
            found(a()),
            ["www.example.org. 300 IN AAAA 64:ff9b::c000:221"],
            id="all, in place of what is there",
        ),
        pytest.param(
            "dns64 {\n translate_all\n}", found(aaaa()), no_data(), [], id="all, where there is no IPv4 address"
        ),
    ],
)
def test_addresses_are_translated(line: str, behind: Answer, addresses: Answer, answer: list[str]) -> None:
    case = Case(behind, addresses, line)
    assert (case.said.rcode, texts(case.said.answer), case.said.plugin) == (Rcode.NOERROR, answer, "dns64")
    # RA stays; AD would vouch for what was made here.
    assert case.said.flags == addresses.flags & 0x0080
    assert case.said.authority is addresses.authority
    assert case.server.asked == [(names.from_text("Www.Example.Org"), Type.A)]
    assert case.translated == 1
    # It holds as long as what it was made of, for all clients over IPv6.
    assert case.request.keep
    assert ("tag", "of the A record") in case.request.tags


@pytest.mark.parametrize(
    ("behind", "wishes"),
    [
        pytest.param(found(aaaa()), {}, id="there is an IPv6 address"),
        pytest.param(Answer(Rcode.NXDOMAIN), {}, id="the name doesn't exist"),
        pytest.param(failure("i/o timeout", "forward"), {}, id="it failed here"),
        pytest.param(failure("", rcode=Rcode.REFUSED), {}, id="it is nobody's name"),
        pytest.param(no_data(), {"client": OVER_IPV4}, id="the client has IPv4"),
        pytest.param(no_data(), {"question": "www.example.org. A"}, id="another type"),
        pytest.param(no_data(), {"flags": 0x0110, "do": True}, id="the client checks signatures itself"),
    ],
)
def test_these_answers_stay_as_they_are(behind: Answer, wishes: dict[str, object]) -> None:
    case = Case(behind, found(a()), **wishes)  # type: ignore[arg-type]
    assert case.said is behind
    assert case.server.asked == []
    assert case.translated == 0
    assert case.request.keep


@pytest.mark.parametrize(
    ("wishes", "client"),
    [
        pytest.param("dns64 {\n allow_ipv4\n}", OVER_IPV4, id="asked for"),
        pytest.param("dns64 {\n allow_ipv4\n}", OVER_IPV6, id="and over IPv6 as ever"),
    ],
)
def test_clients_over_ipv4_get_them_too(wishes: str, client: tuple[str, int]) -> None:
    assert Case(no_data(), found(a()), wishes, client=client).translated == 1


@pytest.mark.parametrize(
    ("behind", "addresses", "which"),
    [
        pytest.param(no_data(), no_data(), "behind", id="no data of either type"),
        pytest.param(no_data(), failure("i/o timeout", "forward"), "addresses", id="A fails: that is no absence"),
        pytest.param(
            Answer(Rcode.SERVFAIL, plugin="forward"), Answer(Rcode.SERVFAIL, plugin="forward"), "behind", id="both fail"
        ),
        pytest.param(no_data(), Answer(Rcode.NXDOMAIN, plugin="forward"), "behind", id="A knows no such name"),
    ],
)
def test_without_an_address_there_is_nothing_to_translate(behind: Answer, addresses: Answer, which: str) -> None:
    case = Case(behind, addresses)
    assert case.said is {"behind": behind, "addresses": addresses}[which]
    assert case.translated == 0


# RFC 6052 §2.4: the text representations of 192.0.2.33 under each length.
@pytest.mark.parametrize(
    ("prefix", "expected"),
    [
        ("2001:db8::/32", "2001:db8:c000:221::"),
        ("2001:db8:100::/40", "2001:db8:1c0:2:21::"),
        ("2001:db8:122::/48", "2001:db8:122:c000:2:2100::"),
        ("2001:db8:122:300::/56", "2001:db8:122:3c0:0:221::"),
        ("2001:db8:122:344::/64", "2001:db8:122:344:c0:2:2100::"),
        ("2001:db8:122:344::/96", "2001:db8:122:344::192.0.2.33"),
        ("64:ff9b::/96", "64:ff9b::192.0.2.33"),
    ],
)
def test_the_examples_of_the_rfc(prefix: str, expected: str) -> None:
    assert embedded(IPv6Network(prefix), IPv4Address("192.0.2.33").packed) == IPv6Address(expected).packed


@pytest.mark.parametrize(
    "line", ["dns64 10.0.0.0/8", "dns64 64:ff9b::/80", "dns64 here", "dns64 {\n prefix\n}", "dns64 {\n translate\n}"]
)
def test_what_is_no_prefix_or_no_option_is_a_mistake(line: str) -> None:
    assert trial.problems(Dns64, line).startswith("error")


def test_the_mistake_is_drawn() -> None:
    assert (
        trial.problems(Dns64, "dns64 {\n    prefix 64:ff9b::/80\n}")
        == """\
error: `prefix` takes a prefix
  Corefile:3:12
    3 |     prefix 64:ff9b::/80
      |            ^^^^^^^^^^^^
  expected an IPv6 network of 32, 40, 48, 56, 64 or 96 bits, such as `64:ff9b::/96`, found `64:ff9b::/80`
hint: RFC 6052 §2.2 has no other lengths"""
    )


def test_a_prefix_twice_is_told() -> None:
    assert trial.problems(Dns64, "dns64 64:ff9b::/96 {\n prefix 2001:db8::/96\n}").startswith(
        "warning: `prefix` is given again, and this is what counts"
    )


def test_what_is_done_otherwise_than_in_coredns_is_told() -> None:
    assert trial.plugin(Dns64, "dns64").notices() == (
        "SERVFAIL where the question for A fails",
        "a client that sets DO and CD gets nothing translated",
        "AA is that of the answer that is translated",
    )
