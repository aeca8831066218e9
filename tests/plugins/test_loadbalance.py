"""loadbalance: the same records each time, in an order that is fair and that no client depends on."""

from collections import Counter
from random import Random

import pytest

from kdns.chain import Answer
from kdns.plugins.loadbalance import Loadbalance, balance
from kdns.wire import names
from kdns.wire.records import Record, Type, address, txt
from tests.plugins import trial

WEB = names.from_text("web.shop.svc.cluster.local")
ALIAS = Record(names.from_text("www.shop"), Type.CNAME, 5, WEB)
ALIAS_OF_ALIAS = Record(names.from_text("w.shop"), Type.CNAME, 5, ALIAS.owner)
TEXT = txt(WEB, 5, b"x")
A = [address(WEB, 5, bytes((10, 1, 0, last))) for last in range(4)]
AAAA = [address(WEB, 5, bytes(15) + bytes((last,))) for last in range(3)]
MAIL = [Record(WEB, Type.MX, 5, bytes((0, place)) + WEB) for place in range(3)]


def test_aliases_come_first_then_all_else_then_addresses_then_mail() -> None:
    said = balance([*MAIL, *A, TEXT, ALIAS_OF_ALIAS, *AAAA, ALIAS], Random(1))
    assert said[:3] == [ALIAS_OF_ALIAS, ALIAS, TEXT]
    assert sorted(said[3:10], key=lambda record: record.data) == sorted(A + AAAA, key=lambda record: record.data)
    assert {record.rtype for record in said[10:]} == {Type.MX}


def test_every_order_of_three_is_as_likely_as_any_other() -> None:
    random = Random(2)
    seen = Counter(tuple(record.data for record in balance(AAAA, random)) for _ in range(6000))
    assert len(seen) == 6
    assert min(seen.values()) > 850


def test_records_of_one_set_stay_together_so_that_a_cut_reply_loses_whole_sets() -> None:
    other = [address(names.from_text("b.shop"), 5, bytes((10, 2, 0, last))) for last in range(3)]
    for seed in range(20):
        owners = [record.owner for record in balance([A[0], other[0], A[1], other[1], A[2], other[2]], Random(seed))]
        assert len(set(owners[:3])) == 1


@pytest.mark.parametrize(
    ("line", "first"),
    [
        ("loadbalance {\n prefer 10.1.0.2/32\n}", [bytes((10, 1, 0, 2))]),
        ("loadbalance {\n prefer 10.1.0.3/32 10.1.0.0/31\n}", [bytes((10, 1, 0, 3)), bytes((10, 1, 0))]),
        ("loadbalance {\n prefer ::1/128 10.1.0.3/32\n}", [bytes((10, 1, 0, 3))]),
    ],
)
def test_addresses_of_preferred_networks_come_first(line: str, first: list[bytes]) -> None:
    balancer = trial.plugin(Loadbalance, line)
    for _ in range(20):
        said = trial.answer(balancer, trial.request(), Answer(answer=A))
        for record, start in zip(said.answer, first, strict=False):
            assert record.data.startswith(start)


def test_each_section_of_an_answer_is_shuffled_and_none_loses_a_record() -> None:
    said = trial.answer(trial.plugin(Loadbalance, "loadbalance round_robin"), trial.request(), Answer(0, A, AAAA, MAIL))
    assert [
        sorted(record.data for record in section) for section in (said.answer, said.authority, said.additional)
    ] == [[record.data for record in section] for section in (A, AAAA, MAIL)]


def test_an_error_stays_as_it_is() -> None:
    behind = Answer(2, answer=A)
    assert trial.answer(trial.plugin(Loadbalance, "loadbalance"), trial.request(), behind).answer is A


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("loadbalance weighted /weights", "`weighted` isn't in kdns yet"),
        ("loadbalance fastest", "expected `round_robin`, found `fastest`"),
        ("loadbalance round_robin now", "nothing after `round_robin`"),
        ("loadbalance {\n prefer here\n}", "a network such as `10.0.0.0/8`, found `here`"),
        ("loadbalance {\n reload 5s\n}", "`reload` has no effect"),
    ],
)
def test_what_it_does_not_take_is_told(line: str, part: str) -> None:
    assert part in trial.problems(Loadbalance, line)
