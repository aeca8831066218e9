"""nsid: who asks which server has answered is told so, in whatever reply; nobody else is."""

import socket
from typing import Any

import dns.edns
import dns.message
import dns.rcode
import pytest

from kdns.plugins.nsid import Nsid
from tests.plugins import trial
from tests.plugins.packets import Server

ASKED: dict[str, Any] = {"use_edns": 0, "options": [dns.edns.GenericOption(dns.edns.OptionType.NSID, b"")]}


def told(reply: dns.message.Message) -> list[bytes]:
    return [option.to_wire() or b"" for option in reply.options if option.otype == dns.edns.OptionType.NSID]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        pytest.param("nsid localdns", b"localdns", id="a word"),
        pytest.param('nsid rack 7 "row  2"', b"rack 7 row  2", id="several words have a blank between them"),
        pytest.param("nsid", socket.gethostname().encode(), id="the name of the host unless given"),
    ],
)
def test_who_asks_is_told(line: str, expected: bytes) -> None:
    server = Server(f". {{\n {line}\n whoami\n}}")
    for transport in ("udp", "tcp"):
        assert told(server.ask("example.org. A", transport=transport, **ASKED)) == [expected]
    assert server.kept == 0


def test_an_error_tells_it_too() -> None:
    reply = Server(". {\n nsid me\n errors\n}").ask("example.org. A", **ASKED)
    assert (reply.rcode(), told(reply)) == (dns.rcode.REFUSED, [b"me"])


def test_nobody_else_is_told() -> None:
    server = Server(". {\n nsid me\n whoami\n}\nother {\n whoami\n}")
    assert not server.ask("example.org. A", use_edns=0).options
    assert not server.ask("example.org. A").options
    cookie = dns.edns.GenericOption(dns.edns.OptionType.COOKIE, b"12345678")
    assert not server.ask("example.org. A", use_edns=0, options=[cookie]).options
    # A block without the directive.
    assert not server.ask("www.other. A", **ASKED).options


def test_it_stands_among_other_options() -> None:
    options = [dns.edns.GenericOption(dns.edns.OptionType.COOKIE, b"12345678"), *ASKED["options"]]
    assert told(Server(". {\n nsid me\n whoami\n}").ask("a. A", use_edns=0, options=options)) == [b"me"]


def test_more_than_fits_and_a_second_use_are_mistakes() -> None:
    assert (
        trial.problems(Nsid, f"nsid {'x' * 100} {'y' * 28}").splitlines()[0]
        == "error: `nsid`: at most 128 bytes, these are 129"
    )
    assert "can only be used once" in trial.problems(Nsid, "nsid a\nnsid b")
