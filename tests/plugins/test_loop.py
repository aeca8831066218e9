"""loop: accepted, and said to be without effect."""

from kdns.plugins.loop import Loop
from tests.plugins import trial


def test_that_it_has_no_effect_is_said_in_one_line_and_it_is_not_in_the_chain() -> None:
    loop = trial.plugin(Loop, "loop")
    assert len(list(loop.notices())) == 1
    assert loop.handle is None


def test_it_takes_no_arguments() -> None:
    assert "`loop` takes no arguments" in trial.problems(Loop, "loop .")
    assert "can only be used once" in trial.problems(Loop, "loop\nloop")
