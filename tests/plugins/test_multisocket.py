"""multisocket: that a block's port may be shared, and what it says of the sockets that it doesn't open."""

import pytest

from kdns.plugins.multisocket import Multisocket
from tests.plugins import trial


@pytest.mark.parametrize(
    ("line", "notices"),
    [
        ("multisocket", ["each address has one socket here; other processes may listen beside this one"]),
        ("multisocket 4", ["each address has one socket here; other processes may listen beside this one"]),
        ("multisocket 1", []),
    ],
)
def test_a_block_that_has_it_shares_its_port(line: str, notices: list[str]) -> None:
    block = trial.block()
    assert not block.shares_port
    made = trial.plugin(Multisocket, line, block)
    assert block.shares_port
    assert list(made.notices()) == notices


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("multisocket 0", "`multisocket` takes a number"),
        ("multisocket 1025", "`multisocket` takes a number"),
        ("multisocket 1 2", "`multisocket` takes no more than that"),
    ],
)
def test_what_it_does_not_take_is_told(line: str, message: str) -> None:
    assert trial.problems(Multisocket, line).startswith(f"error: {message}")
