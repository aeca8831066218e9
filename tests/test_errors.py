"""How several mistakes are drawn together, and which word a misspelt one was meant to be."""

import pytest

from kdns.errors import MOST_DRAWN, Problem, draw_all, nearest


def test_of_very_many_mistakes_the_rest_is_counted() -> None:
    drawn = draw_all([Problem(f"mistake {number}") for number in range(MOST_DRAWN + 3)]).split("\n\n")
    assert drawn[:2] == ["error: mistake 0", "error: mistake 1"]
    assert drawn[-2:] == [f"error: mistake {MOST_DRAWN - 1}", "and 3 more"]


@pytest.mark.parametrize(
    ("word", "meant"), [("forwrad", "forward"), ("FORWARD", "forward"), ("hostnetwork", "hostNetwork"), ("zzz", "")]
)
def test_a_near_word_is_found_in_any_case(word: str, meant: str) -> None:
    assert nearest(word, ["errors", "forward", "hostNetwork"]) == meant
