"""local: names of this machine, the leftovers of search paths, and three reverse zones."""

import dns.rcode
import pytest

from kdns.metrics import LOCAL_REQUESTS
from kdns.plugins.local import Local
from tests.plugins import trial
from tests.plugins.packets import Server, lines

SOA = "604800 IN SOA localhost. root.localhost. 1 0 0 0 604800"


@pytest.mark.parametrize(
    ("question", "rcode", "answer", "authority", "counted"),
    [
        ("LocalHost. A", "NOERROR", ["LocalHost. 604800 IN A 127.0.0.1"], [], 0),
        ("localhost. AAAA", "NOERROR", ["localhost. 604800 IN AAAA ::1"], [], 0),
        ("localhost. SOA", "NOERROR", [f"localhost. {SOA}"], [], 0),
        ("localhost. NS", "NOERROR", ["localhost. 604800 IN NS localhost."], [], 0),
        ("localhost. TXT", "NOERROR", [], [f"localhost. {SOA}"], 0),
        ("a.b.localhost. A", "NOERROR", ["a.b.localhost. 604800 IN A 127.0.0.1"], [], 1),
        (
            "localhost.svc.cluster.local. AAAA",
            "NOERROR",
            ["localhost.svc.cluster.local. 604800 IN AAAA ::1"],
            [],
            1,
        ),
        ("localhost.example. MX", "NOERROR", [], [f"localhost.example. {SOA}"], 1),
        ("1.0.0.127.in-addr.arpa. PTR", "NOERROR", ["1.0.0.127.in-addr.arpa. 604800 IN PTR localhost."], [], 0),
        ("1.0.0.127.in-addr.arpa. A", "NOERROR", [], [f"127.in-addr.arpa. {SOA}"], 0),
        ("0.0.127.in-addr.arpa. PTR", "NOERROR", [], [f"127.in-addr.arpa. {SOA}"], 0),
        ("2.0.0.127.in-addr.arpa. PTR", "NXDOMAIN", [], [f"127.in-addr.arpa. {SOA}"], 0),
        ("1.0.0.0.in-addr.arpa. PTR", "NXDOMAIN", [], [f"0.in-addr.arpa. {SOA}"], 0),
        ("x.1.0.0.127.in-addr.arpa. PTR", "NXDOMAIN", [], [f"127.in-addr.arpa. {SOA}"], 0),
        ("255.in-addr.arpa. SOA", "NOERROR", [f"255.in-addr.arpa. {SOA}"], [], 0),
        ("255.in-addr.arpa. A", "NOERROR", [], [f"255.in-addr.arpa. {SOA}"], 0),
    ],
)
def test_it_answers(question: str, rcode: str, answer: list[str], authority: list[str], counted: int) -> None:
    server = Server(". {\n local\n}")
    reply = server.ask(question)
    assert dns.rcode.to_text(reply.rcode()) == rcode
    assert (lines(reply.answer), lines(reply.authority)) == (answer, authority)
    assert server.process.metrics._values[LOCAL_REQUESTS] == {(): counted}


@pytest.mark.parametrize(
    "question", ["mylocalhost. A", "a.localhost.example. A", "1.0.0.10.in-addr.arpa. PTR", "in-addr.arpa. NS", ". NS"]
)
def test_other_names_go_on(question: str) -> None:
    assert Server(". {\n local\n whoami\n}").ask(question).additional


@pytest.mark.parametrize(("prefix", "answers"), [("on", 1), ("off", 0)])
def test_names_that_only_begin_with_localhost_may_go_on(prefix: str, answers: int) -> None:
    server = Server(f". {{\n local {{\n localhost_prefix {prefix}\n }}\n whoami\n}}")
    assert len(server.ask("localhost.svc.cluster.local. A").answer) == answers
    assert len(server.ask("a.localhost. A").answer) == 1


def test_class_ch_is_not_its_own() -> None:
    assert Server(". {\n local\n chaos\n}").ask("localhost. CH A").rcode() == dns.rcode.REFUSED


def test_what_is_answered_otherwise_than_in_coredns_is_told() -> None:
    notices = trial.plugin(Local, "local").notices()
    assert notices == ("`0.0.127.in-addr.arpa` and `0.127.in-addr.arpa` exist, without data",)
