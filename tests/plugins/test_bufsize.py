"""bufsize: a client is taken to have room for no more than that."""

import pytest

from kdns.chain import Answer
from kdns.plugins.bufsize import Bufsize
from tests.plugins import trial
from tests.plugins.packets import Server


@pytest.mark.parametrize(
    ("line", "edns", "expected"),
    [
        pytest.param("bufsize", 4096, 1232, id="1232 unless given"),
        pytest.param("bufsize 600", 4096, 600, id="as told"),
        pytest.param("bufsize 600", 512, 512, id="a client with less room keeps it"),
        pytest.param("bufsize 4096", 4096, 4096, id="more than kdns sends"),
    ],
)
def test_the_client_has_no_more_room_than_that(line: str, edns: int, expected: int) -> None:
    request = trial.request()
    request.query.edns = True
    request.query.size = edns
    trial.answer(trial.plugin(Bufsize, line), request, Answer())
    assert request.query.size == expected
    assert request.keep


def test_a_longer_reply_is_cut_over_udp_and_whole_over_tcp() -> None:
    authors = " ".join(f'"{number} {"x" * 240}"' for number in range(4))
    server = Server(f". {{\n bufsize 512\n chaos v {authors}\n}}")
    cut = server.ask("authors.bind. CH TXT", use_edns=0, payload=1232)
    assert cut.flags & 0x0200
    assert server.size <= 512
    assert len(server.ask("authors.bind. CH TXT", use_edns=0, payload=1232, transport="tcp").answer[0]) == 4
    without = Server(f". {{\n chaos v {authors}\n}}")
    assert len(without.ask("authors.bind. CH TXT", use_edns=0, payload=1232).answer[0]) == 4


def test_more_than_kdns_sends_has_no_effect_and_is_told() -> None:
    assert list(trial.plugin(Bufsize, "bufsize 1232").notices()) == []
    assert list(trial.plugin(Bufsize, "bufsize 1233").notices()) == ["replies over UDP have at most 1232 bytes anyway"]


@pytest.mark.parametrize("size", ["511", "4097", "large", "1232 1232"])
def test_other_sizes_are_a_mistake(size: str) -> None:
    assert trial.problems(Bufsize, f"bufsize {size}")


def test_the_mistake_is_drawn_with_its_range() -> None:
    assert (
        trial.problems(Bufsize, "bufsize 511")
        == """\
error: `bufsize` takes a number of bytes
  Corefile:2:9
    2 | bufsize 511
      |         ^^^
  expected 512 to 4096, found `511`
hint: the default is `1232`"""
    )
