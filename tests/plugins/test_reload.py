"""reload: its times are read and checked. What it does is in tests/test_reload.py."""

import pytest

from kdns import corefile
from kdns.app import build
from kdns.chain import Process
from kdns.metrics import Metrics
from kdns.plugins.reload import Reload
from tests.plugins import trial


@pytest.mark.parametrize(
    ("text", "times"),
    [
        ("reload", (30.0, 15.0)),
        ("reload 10s", (10.0, 15.0)),
        ("reload 2s 1s", (2.0, 1.0)),
        ("reload 1m 0", (60.0, 0.0)),
    ],
)
def test_its_times_are_read(text: str, times: tuple[float, float]) -> None:
    read = Reload.read(corefile.parse(f". {{\n{text}\n}}", "Corefile").blocks[0].directives, [])
    assert (read.interval, read.jitter) == times


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("reload 1s", "2s or more"),
        ("reload 10", "hint: write `10s`"),
        ("reload 10s 500ms", "0 or 1s or more"),
        ("reload 10s 5s 1s", "found `1s`"),
    ],
)
def test_what_it_does_not_take_is_told(text: str, part: str) -> None:
    assert part in trial.problems(Reload, text)


def test_the_hash_of_what_is_served_is_a_metric() -> None:
    process = Process(Metrics())
    parsed = corefile.parse(". {\n whoami\n}", "Corefile")
    build(parsed, process)
    assert f'hash="sha512",value="{corefile.fingerprint(parsed)}"}} 1.0' in process.metrics.render()[0].decode()
