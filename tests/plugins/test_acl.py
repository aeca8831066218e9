"""acl: the first line that fits a question's type and its client decides."""

import dns.edns
import dns.rcode
import pytest

from kdns.metrics import ACL_ALLOWED, ACL_BLOCKED, ACL_DROPPED, ACL_FILTERED, PACKETS_DROPPED
from kdns.plugins.acl import Acl
from tests.plugins import trial
from tests.plugins.packets import NoReplyError, Server

HOME, AWAY, SIX = ("10.0.0.7", 41234), ("192.0.2.7", 41234), ("2001:db8::7", 41234)


METRICS = {ACL_ALLOWED: "allow", ACL_BLOCKED: "block", ACL_FILTERED: "filter", ACL_DROPPED: "drop"}
# By response code and extended error.
OUTCOMES: dict[tuple[int, tuple[int, ...]], str] = {
    (dns.rcode.REFUSED, (15,)): "block",
    (dns.rcode.NOERROR, (17,)): "filter",
}


def decided(server: Server, question: str, client: tuple[str, int]) -> str:
    """What became of the question, as the client sees it; the metric of it, and no other, has counted it."""
    before = counts(server)
    try:
        reply = server.ask(question, client, use_edns=0)
    except NoReplyError:
        outcome = "drop"
    else:
        errors = tuple(int(each.code) for each in reply.options if isinstance(each, dns.edns.EDEOption))
        outcome = OUTCOMES.get((reply.rcode(), errors), "allow")
    assert [name for name, count in counts(server).items() if count != before[name]] == [outcome]
    return outcome


def counts(server: Server) -> dict[str, float]:
    return {name: sum(server.process.metrics._values[metric].values()) for metric, name in METRICS.items()}


@pytest.mark.parametrize(
    ("rules", "question", "client", "expected"),
    [
        pytest.param("acl {\n block\n}", "a.example. A", HOME, "block", id="all"),
        pytest.param("acl {\n filter type AAAA\n}", "a.example. AAAA", HOME, "filter", id="a type"),
        pytest.param("acl {\n filter type AAAA\n}", "a.example. A", HOME, "allow", id="another type"),
        pytest.param("acl {\n filter type MX AAAA\n}", "a.example. AAAA", HOME, "filter", id="one of several types"),
        pytest.param("acl {\n block type *\n}", "a.example. A", HOME, "block", id="all types"),
        pytest.param("acl {\n block net 192.0.2.0/24\n}", "a.example. A", AWAY, "block", id="a network"),
        pytest.param("acl {\n block net 192.0.2.0/24\n}", "a.example. A", HOME, "allow", id="another network"),
        pytest.param("acl {\n block net 192.0.2.7\n}", "a.example. A", AWAY, "block", id="an address"),
        pytest.param("acl {\n block net *\n}", "a.example. A", SIX, "block", id="all networks, of both families"),
        pytest.param("acl {\n drop net 2001:db8::/32\n}", "a.example. A", SIX, "drop", id="silence, over IPv6"),
        pytest.param("acl {\n drop type A net 10.0.0.0/8 192.0.2.0/24\n}", "a. A", AWAY, "drop", id="type and network"),
        pytest.param("acl {\n drop net 10.0.0.0/8 type A\n}", "a. AAAA", HOME, "allow", id="the other way round"),
        pytest.param("acl {\n allow net 10.0.0.0/8\n block\n}", "a. A", HOME, "allow", id="the first line that fits"),
        pytest.param("acl {\n allow net 10.0.0.0/8\n block\n}", "a. A", AWAY, "block", id="and the one after it"),
        pytest.param("acl b.example {\n block\n}", "a.example. A", HOME, "allow", id="another zone"),
        pytest.param("acl b.example {\n block\n}", "x.B.example. A", HOME, "block", id="a zone"),
        pytest.param(
            "acl b.example {\n filter type MX\n}\nacl {\n block\n}", "b.example. A", HOME, "block", id="the next rule"
        ),
        pytest.param(
            "acl b.example {\n allow\n}\nacl {\n block\n}", "b.example. A", HOME, "allow", id="allowed for good"
        ),
    ],
)
def test_the_first_line_that_fits_decides(rules: str, question: str, client: tuple[str, int], expected: str) -> None:
    assert decided(Server(f". {{\n {rules}\n whoami\n}}"), question, client) == expected


def test_what_is_dropped_is_counted_with_its_zone() -> None:
    server = Server("example:53 {\n acl a.example example {\n drop\n}\n}")
    assert decided(server, "x.a.example. A", HOME) == "drop"
    assert server.process.metrics._values[ACL_DROPPED] == {("dns://:53", "a.example.", ""): 1}
    assert server.process.metrics._values[PACKETS_DROPPED] == {("acl",): 1}


def test_a_reply_is_kept_unless_the_client_mattered() -> None:
    text = "example {\n acl {\n block net 192.0.2.0/24\n filter type MX\n}\n any\n}"
    server = Server(text)
    server.ask("a.example. MX", HOME)
    assert server.kept == 0
    server = Server(text.replace(" block net 192.0.2.0/24\n", ""))
    # What has no records is kept from the second question on.
    server.ask("a.example. MX", HOME)
    server.ask("a.example. MX", HOME)
    assert server.kept == 1


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("deny", "`acl` has no option `deny`"),
        ("block typ A", "expected `type` or `net`, found `typ`"),
        ("block type AAAAA", "expected a record type such as `AAAA`, or `*`, found `AAAAA`"),
        ("block net 10.0.0.0/33", "expected an address, a network such as `10.0.0.0/8`, or `*`, found `10.0.0.0/33`"),
        ("block type", "expected words after `type` and `net`, found `type`"),
        ("block net type A", "expected words after `type` and `net`, found `A`"),
    ],
)
def test_mistakes(line: str, found: str) -> None:
    assert found in trial.problems(Acl, f"acl {{\n{line}\n}}")


def test_every_mistake_of_a_line_is_told() -> None:
    assert trial.problems(Acl, "acl {\n block type X net y\n}").count("error: ") == 2


def test_rcode_of_a_block() -> None:
    assert Server(". {\n acl {\n block\n}\n}").ask("a. A").rcode() == dns.rcode.REFUSED


@pytest.mark.parametrize(
    ("policy", "notices"),
    [
        ("block type ANY", ["a query without EDNS gets no extended error"]),
        ("filter net 10.0.0.0/8", ["a query without EDNS gets no extended error"]),
        ("drop type ANY", []),
        ("allow net 10.0.0.0/8", []),
    ],
)
def test_what_is_done_otherwise_than_in_coredns_is_told(policy: str, notices: list[str]) -> None:
    (plugin,) = Server(f". {{\n acl {{\n {policy}\n }}\n}}").plugins
    assert list(plugin.notices()) == notices
