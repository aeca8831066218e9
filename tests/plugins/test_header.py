"""header: bits of queries and replies, in the order of the lines."""

import pytest

from kdns.chain import Answer
from kdns.plugins.header import Header
from kdns.wire.query import AA, RA, RD
from tests.plugins import trial
from tests.plugins.packets import Server


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ("response set ra", AA | RA | RD),
        ("response clear aa rd", 0),
        ("response set ra aa\nresponse clear ra", AA | RD),
        ("response clear ra\nresponse set ra", AA | RA | RD),
        ("query clear rd", AA),
        ("query clear rd\nresponse set rd", AA | RD),
        ("query set aa ra", AA | RD),
    ],
)
def test_bits_of_the_reply(rules: str, expected: int) -> None:
    # whoami's replies have AA, and RD as the query has it.
    reply = Server(f". {{\n header {{\n{rules}\n}}\n whoami\n}}").ask("example.org. A")
    assert reply.flags & (AA | RA | RD) == expected


@pytest.mark.parametrize(("rule", "sent"), [("query clear rd", 0), ("query set rd", RD), ("response clear rd", RD)])
def test_what_stands_behind_sees_the_bits_of_the_query(rule: str, sent: int) -> None:
    request = trial.request()
    seen: list[int] = []

    plugin = trial.plugin(Header, f"header {{\n{rule}\n}}")

    async def rest(inner: object) -> Answer:
        seen.append(request.query.flags & RD)
        return Answer()

    coroutine = plugin.handle(request, rest)
    with pytest.raises(StopIteration):
        coroutine.send(None)
    assert seen == [sent]
    assert request.keep


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("set ra", "`header` has no option `set`"),
        ("response ra", "`response` can't be read"),
        ("response put ra", "`response` can't be read"),
        ("response set ad", "`response` can't be read"),
    ],
)
def test_mistakes(line: str, told: str) -> None:
    assert trial.problems(Header, f"header {{\n{line}\n}}").startswith(f"error: {told}")
