"""any: all types at once get one short record, all else is the next plugin's."""

import pytest

from tests.plugins.packets import Server, lines


@pytest.mark.parametrize("name", ["example.org.", "Nowhere.Example.", "."])
def test_any_is_answered_short(name: str) -> None:
    server = Server(". {\n any\n errors\n}")
    reply = server.ask(f"{name} ANY")
    assert lines(reply.answer) == [f'{name} 8482 IN HINFO "ANY obsoleted" "See RFC 8482"']
    assert server.kept == 1


def test_other_types_go_on() -> None:
    reply = Server(". {\n any\n whoami\n}").ask("example.org. HINFO")
    assert (lines(reply.answer), len(reply.additional)) == ([], 2)


def test_class_ch_is_not_its_own() -> None:
    assert Server(". {\n any\n chaos\n}").ask("version.bind. CH ANY").rcode() == 5
