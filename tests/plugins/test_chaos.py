"""chaos: what a server tells about itself in class CH, and that nobody takes such a question for one of class IN."""

import socket

import dns.flags
import dns.rcode
import pytest

import kdns
from kdns.plugins.chaos import Chaos
from tests.plugins import trial
from tests.plugins.packets import Server, lines

HOST = socket.gethostname()


@pytest.mark.parametrize(
    ("line", "question", "answer"),
    [
        pytest.param(
            "chaos", "version.bind. CH TXT", [f'version.bind. 0 CH TXT "kdns-{kdns.__version__}"'], id="our version"
        ),
        pytest.param(
            "chaos v1", "Version.Server. CH TXT", ['Version.Server. 0 CH TXT "v1"'], id="another version, in mixed case"
        ),
        pytest.param("chaos", "hostname.bind. CH TXT", [f'hostname.bind. 0 CH TXT "{HOST}"'], id="the host"),
        pytest.param("chaos", "id.server. CH TXT", [f'id.server. 0 CH TXT "{HOST}"'], id="the host by its other name"),
        pytest.param(
            "chaos", "authors.bind. CH TXT", ['authors.bind. 0 CH TXT "the authors of kdns"'], id="our authors"
        ),
        pytest.param(
            'chaos v1 "A. Author" B',
            "authors.bind. CH TXT",
            ['authors.bind. 0 CH TXT "A. Author"', 'authors.bind. 0 CH TXT "B"'],
            id="several authors, one a record",
        ),
    ],
)
def test_it_tells(line: str, question: str, answer: list[str]) -> None:
    reply = Server(f". {{\n {line}\n}}").ask(question)
    assert reply.rcode() == dns.rcode.NOERROR
    assert sorted(lines(reply.answer)) == answer
    assert not reply.flags & dns.flags.AA


@pytest.mark.parametrize(
    "question",
    [
        pytest.param("version.bind. CH A", id="another type"),
        pytest.param("uptime.bind. CH TXT", id="another name"),
        pytest.param("example.org. CH A", id="a name of class IN"),
        pytest.param("version.bind. HS TXT", id="another class"),
        pytest.param("version.bind. ANY TXT", id="any class"),
    ],
)
def test_all_else_is_refused(question: str) -> None:
    # whoami would answer any question.
    assert Server(". {\n chaos\n whoami\n}").ask(question).rcode() == dns.rcode.REFUSED


def test_class_in_goes_on() -> None:
    reply = Server(". {\n chaos\n whoami\n}").ask("version.bind. TXT")
    assert (reply.rcode(), lines(reply.answer)) == (dns.rcode.NOERROR, [])


def test_a_block_without_it_refuses_beside_one_that_has_it() -> None:
    server = Server(". {\n whoami\n}\nhostname.bind {\n chaos\n}")
    assert server.ask("hostname.bind. CH TXT").answer
    assert server.ask("version.bind. CH TXT").rcode() == dns.rcode.REFUSED
    assert Server(". {\n whoami\n}").ask("version.bind. CH TXT").rcode() == dns.rcode.REFUSED


def test_it_is_counted_and_kept_as_others_are() -> None:
    server = Server(". {\n chaos\n}")
    first, second = server.ask("version.bind. CH TXT"), server.ask("version.bind. CH TXT")
    assert first.answer == second.answer
    assert server.kept == 1


def test_a_text_that_is_too_long_is_a_mistake() -> None:
    assert "error: VERSION of `chaos`: a text in DNS has at most 255 bytes" in trial.problems(
        Chaos, f"chaos {'x' * 256}"
    )
    assert "error: AUTHORS of `chaos`: a text in DNS has at most 255 bytes" in trial.problems(
        Chaos, f"chaos v a {'x' * 256}"
    )


OWN = "kdns's own texts at {}, unless VERSION and AUTHORS are given"
OTHERS = "other names and types of class CH are REFUSED, and no other directive is asked"


@pytest.mark.parametrize(
    ("zones", "line", "notices"),
    [
        (".", "chaos", [OWN.format("`version.bind`, `version.server`, `authors.bind`"), OTHERS]),
        (".", "chaos v1", [OWN.format("`authors.bind`"), OTHERS]),
        (".", "chaos v1 author", [OTHERS]),
        ("bind", "chaos", [OWN.format("`version.bind`, `authors.bind`"), OTHERS]),
        ("version.bind", "chaos", [OWN.format("`version.bind`")]),
        ("hostname.bind id.server", "chaos", []),
    ],
)
def test_what_is_answered_otherwise_than_in_coredns_is_told(zones: str, line: str, notices: list[str]) -> None:
    (plugin,) = Server(f"{zones} {{\n {line}\n}}").plugins
    assert list(plugin.notices()) == notices
