"""What a watch remembers of versions: the law's table, row by row, and what follows from it."""

from __future__ import annotations

import pytest

from kdns.kubernetes.changes import Version
from kdns.kubernetes.progress import MOST_BEHIND, Progress


def at(version: Version) -> Progress:
    """A watch that has read a list."""
    progress = Progress()
    progress.listed(version)
    return progress


def places(progress: Progress) -> tuple[Version, Version, Version]:
    """Where it would go on, what is the oldest present, and what the next list is asked to be not older than."""
    return progress.resume, progress.floor, progress.not_older


def test_without_a_list_there_is_nothing_to_resume_and_anything_will_do() -> None:
    assert places(Progress()) == ("", "", "")


def test_events_and_bookmarks_move_on_and_never_back() -> None:
    progress = at(10)
    progress.event(12)
    assert places(progress) == (12, 12, 12)
    progress.event(11)
    progress.bookmark(9)
    assert places(progress) == (12, 12, 12)
    progress.bookmark(20)
    assert places(progress) == (20, 20, 20)


def test_what_an_audit_has_seen_is_not_undone_by_the_events_and_bookmarks_that_follow() -> None:
    progress = at(10)
    progress.seen_at(30)
    progress.event(20)
    assert places(progress) == (20, 30, 30)
    progress.bookmark(25)
    assert places(progress) == (25, 30, 30)
    progress.bookmark(31)
    assert places(progress) == (31, 31, 31)


def test_what_an_audit_has_seen_is_not_undone_by_a_list_that_was_begun_before() -> None:
    progress = at(10)
    progress.forgotten()
    progress.seen_at(30)
    progress.listed(25)
    assert places(progress) == (25, 30, 30)
    assert progress.is_past(29)
    assert not progress.is_past(30)


def test_an_audit_that_was_overtaken_says_nothing() -> None:
    progress = at(10)
    progress.seen_at(9)
    assert places(progress) == (10, 10, 10)


def test_what_a_list_that_is_not_whole_says_moves_nothing() -> None:
    progress = Progress()
    progress.event(12)
    progress.bookmark(13)
    assert places(progress) == ("", "", "")


def test_whatever_the_reason_a_list_that_is_wanted_comes_next() -> None:
    progress = at(10)
    progress.start_over()
    progress.event(12)
    assert places(progress) == ("", 10, 10)


def test_after_a_place_that_is_forgotten_the_next_list_is_not_older_than_what_was_seen() -> None:
    progress = at(10)
    progress.forgotten()
    assert places(progress) == ("", 10, 10)


def test_after_a_list_whose_place_is_forgotten_the_next_one_is_of_what_the_server_has_now() -> None:
    progress = at(10)
    progress.forgotten()
    progress.forgotten()
    assert places(progress) == ("", 10, "")
    progress.listed(11)
    assert places(progress) == (11, 11, 11)


def test_a_server_that_is_behind_gets_some_chances() -> None:
    progress = at(10)
    assert [progress.behind() for _ in range(MOST_BEHIND)] == [False] * (MOST_BEHIND - 1) + [True]
    assert progress.not_older == ""
    # It has caught up.
    progress.event(11)
    assert places(progress) == (11, 11, 11)
    assert not progress.behind()


def test_one_list_from_the_past_is_a_server_that_is_behind_and_two_are_a_history_that_was_set_back() -> None:
    progress = at(10)
    progress.forgotten()
    assert not progress.from_the_past(7)
    # The second look is at what the store has now.
    assert places(progress) == ("", 10, "")
    assert progress.from_the_past(7)
    assert places(progress) == ("", "", "")
    progress.listed(7)
    assert places(progress) == (7, 7, 7)


def test_a_list_of_the_present_makes_one_from_the_past_forgotten() -> None:
    progress = at(10)
    progress.from_the_past(7)
    progress.listed(12)
    assert not progress.from_the_past(7)


@pytest.mark.parametrize(
    ("version", "held", "late"),
    [
        (21, 20, False),
        (20, 20, False),
        (19, 20, True),
        # Nobody knows the object: it has gone if the server has told more since.
        (29, None, True),
        (31, None, False),
        ("x19", 20, False),
        ("x19", "x20", False),
    ],
)
def test_an_event_is_late_by_the_version_that_is_held_or_by_all_that_was_told(
    version: Version, held: Version | None, late: bool
) -> None:
    progress = at(10)
    progress.event(30)
    assert progress.is_late(version, "shop/web", held) is late


def test_a_bookmark_makes_no_event_late() -> None:
    # It promises that all before was told; a stream that loses events promises that, too.
    progress = at(10)
    progress.bookmark(30)
    assert not progress.is_late(20, "shop/web", None)


def test_what_an_audit_took_out_stays_out_until_there_is_news_of_it_or_a_list() -> None:
    progress = at(10)
    progress.taken_out("shop/web", 40)
    assert progress.is_late(39, "shop/web", None)
    assert not progress.is_late(41, "shop/web", None)
    progress.listed(50)
    assert progress.removed == {}


def test_versions_that_are_texts_are_followed_in_the_order_in_which_they_come() -> None:
    progress = at("b")
    progress.event("a")
    assert places(progress) == ("a", "a", "a")
    progress.seen_at("c")
    assert places(progress) == ("a", "a", "a")
    assert not progress.is_past("0")
