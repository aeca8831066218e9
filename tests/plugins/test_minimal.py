"""minimal: what only accompanies data goes, what stands in place of data stays."""

import pytest

from kdns.chain import Answer, failure
from kdns.plugins.minimal import Minimal
from kdns.wire import names
from kdns.wire.records import Rcode, Record, Type, address
from tests.plugins import trial

NAME = names.from_text("www.example.org")
A = address(NAME, 30, b"\x0a\x00\x00\x01")
NS = Record(NAME, Type.NS, 30, NAME)


@pytest.mark.parametrize(
    ("behind", "left"),
    [
        pytest.param(Answer(answer=[A], authority=[NS], additional=[A]), (1, 0, 0), id="data"),
        pytest.param(Answer(additional=[A]), (0, 0, 0), id="nothing but what accompanies"),
        pytest.param(Answer(authority=[NS], additional=[A]), (0, 1, 1), id="a referral, or no data"),
        pytest.param(Answer(Rcode.NXDOMAIN, [A], [NS], [A]), (1, 1, 1), id="no such name"),
        pytest.param(failure("i/o timeout"), (0, 0, 0), id="a failure"),
    ],
)
def test_what_is_left(behind: Answer, left: tuple[int, int, int]) -> None:
    request = trial.request()
    said = trial.answer(trial.plugin(Minimal, "minimal"), request, behind)
    assert (len(said.answer), len(said.authority), len(said.additional)) == left
    assert said is behind
    assert request.keep
