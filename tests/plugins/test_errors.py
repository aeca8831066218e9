"""errors: which failures get a line, what stands in it, and how many become one."""

import pytest

from kdns.chain import Answer, failure
from kdns.plugins.errors import Errors
from tests.plugins import trial

TIMEOUT = "read udp 10.0.0.2:53: i/o timeout"


@pytest.mark.parametrize(
    ("behind", "lines"),
    [
        pytest.param(
            failure(TIMEOUT), [f"[ERROR] plugin/errors: 2 example.org. A: {TIMEOUT}"], id="a failure with a cause"
        ),
        pytest.param(
            failure("no such view", rcode=5),
            ["[ERROR] plugin/errors: 5 example.org. A: no such view"],
            id="a refusal with a cause",
        ),
        pytest.param(failure(""), [], id="a failure that nobody explains"),
        pytest.param(Answer(3), [], id="a name that doesn't exist is no failure"),
        pytest.param(
            failure("evil\n[INFO] \x1b[2J"),
            ["[ERROR] plugin/errors: 2 example.org. A: evil\\010[INFO] \\027[2J"],
            id="what an upstream sent can't make a line of its own",
        ),
    ],
)
def test_a_failure_is_told_in_one_line(behind: Answer, lines: list[str]) -> None:
    request = trial.request("Example.ORG. A")
    with trial.log_lines() as logged:
        assert trial.answer(trial.plugin(Errors, "errors"), request, behind) is behind
    assert logged == lines
    assert request.keep is not bool(lines), "a failure that is told must be told each time"


def test_a_question_of_the_servers_own_has_no_line() -> None:
    request = trial.request()
    request.depth = 1
    with trial.log_lines() as logged:
        trial.answer(trial.plugin(Errors, "errors"), request, failure(TIMEOUT))
    assert logged == []


def fail(errors: Errors, *causes: str) -> None:
    for cause in causes:
        trial.answer(errors, trial.request("example.org. A"), failure(cause))


@pytest.mark.parametrize(
    ("options", "lines"),
    [
        pytest.param("", ["[ERROR] plugin/errors: 3 errors like '.*timeout$' occurred in last 30s"], id="as errors"),
        pytest.param(
            "warning", ["[WARNING] plugin/errors: 3 errors like '.*timeout$' occurred in last 30s"], id="as warnings"
        ),
        pytest.param(
            "info show_first",
            [
                "[INFO] plugin/errors: 2 example.org. A: a timeout",
                "[INFO] plugin/errors: 3 errors like '.*timeout$' occurred in last 30s",
            ],
            id="with the first of them",
        ),
    ],
)
def test_errors_that_are_alike_are_told_once_when_their_time_is_over(options: str, lines: list[str]) -> None:
    clock = trial.Clock()
    errors = trial.plugin(Errors, f'errors stdout {{\n consolidate 30s ".*timeout$" {options}\n}}', trial.block(clock))
    with trial.log_lines() as logged:
        fail(errors, "a timeout", "b timeout", "c timeout")
        clock.now += 29
        errors.flush()
        assert len(logged) == len(lines) - 1, "the time isn't over"
        clock.now += 1
        errors.flush()
        errors.flush()
    assert logged == lines


def test_the_first_pattern_that_matches_counts_and_others_are_told_at_once() -> None:
    errors = trial.plugin(Errors, "errors {\n consolidate 1m ^a\n consolidate 1h .*b\n}")
    with trial.log_lines() as logged:
        fail(errors, "ab", "cb", "c")
        errors.close()
    assert logged == [
        "[ERROR] plugin/errors: 2 example.org. A: c",
        "[ERROR] plugin/errors: 1 errors like '^a' occurred in last 1m",
        "[ERROR] plugin/errors: 1 errors like '.*b' occurred in last 1h",
    ]


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("errors stderr", "expected `stdout`, found `stderr`"),
        ("errors {\n consolidate 5m (a\n}", "a regular expression (missing ): (a), found `(a`"),
        ("errors {\n consolidate 5 .*\n}", "hint: write `5s`"),
        ("errors {\n consolidate 5x (a\n}", "found `5x`"),
        ("errors {\n consolidate 5x (a\n}", "a regular expression (missing ): (a), found `(a`"),
        ("errors {\n consolidate 0s .*\n}", "more than 0s"),
        ("errors {\n consolidate 5m\n}", "`consolidate DURATION REGEXP [LEVEL] [show_first]`"),
        ("errors {\n consolidate 5m .* loud\n}", "`warning`, `error`, `info` or `debug`"),
        ("errors {\n stacktrace\n}", "`stacktrace` has no effect"),
        ("errors\nerrors", "can only be used once"),
    ],
)
def test_what_it_does_not_take_is_told(line: str, part: str) -> None:
    assert part in trial.problems(Errors, line)
