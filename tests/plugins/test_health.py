"""health: what the probe gets, what the pause before the end is, and that a late loop shows."""

import asyncio
import time

import pytest

from kdns.metrics import HEALTH_SECONDS
from kdns.plugins.health import Health
from tests.plugins import trial


@pytest.mark.parametrize(
    ("line", "place"),
    [
        ("health", ("", 8080, "/health")),
        ("health :8081", ("", 8081, "/health")),
        ("health 127.0.0.1:8080 {\n lameduck 5s\n}", ("127.0.0.1", 8080, "/health")),
        ("health [::1]:8080", ("::1", 8080, "/health")),
    ],
)
def test_the_path_is_served_where_the_corefile_says(line: str, place: tuple[str, int, str]) -> None:
    (route,) = trial.plugin(Health, line).routes()
    assert (route.address, route.port, route.path) == place
    assert route.respond({})[:2] == (200, b"OK")


def test_the_order_to_end_is_told_and_waits_for_the_lameduck() -> None:
    health = trial.plugin(Health, "health {\n lameduck 50ms\n}")
    started = time.monotonic()
    with trial.log_lines() as logged:
        asyncio.run(health.stopping())
    assert time.monotonic() - started >= 0.05
    assert logged == ["[INFO] plugin/health: Going into lameduck mode for 50ms"]


def test_without_lameduck_nothing_waits_and_nothing_is_told() -> None:
    with trial.log_lines() as logged:
        asyncio.run(trial.plugin(Health, "health").stopping())
    assert logged == []


def test_a_loop_that_is_late_counts_and_is_told_from_a_second_on() -> None:
    block = trial.block()
    health = trial.plugin(Health, "health", block)
    with trial.log_lines() as logged:
        health.measure(0.001)
        health.measure(1.5)
    assert logged == [
        '[WARNING] plugin/health: Local health request to "http://:8080/health" would have taken more than 1s: 1.5s'
    ]
    assert block.process.metrics._histograms[HEALTH_SECONDS][()][0] == 1.501


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("health {\n lameduck 5\n}", "hint: write `5s`"),
        ("health {\n lameduck -5s\n}", "0s or more"),
        ("health {\n patience 5s\n}", "`health` has no option `patience`"),
        ("health 8080", "hint: write `:8080` for all addresses"),
    ],
)
def test_what_it_does_not_take_is_told(line: str, part: str) -> None:
    assert part.replace("0s or more", "or more") in trial.problems(Health, line)
