"""cache: every option of CoreDNS's is read and checked, and it is said that none has an effect yet."""

from typing import Any

import pytest

from kdns import corefile
from kdns.plugins.cache import Cache, Stale
from tests.plugins import trial


def options(text: str) -> Any:
    found: list[Any] = []
    read = Cache.read(corefile.parse(f". {{\n{text}\n}}", "Corefile").blocks[0].directives, found)
    assert read is not None, found
    return read


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ("cache", "ttl", 3600),
        ("cache 30", "ttl", 30),
        ("cache 30 cluster.local", "zones", ("cluster.local.",)),
        ("cache cluster.local", "ttl", 3600),
        ("cache 30s", "zones", ("30s.",)),
        ("cache {\n success 5000\n}", "success", (5000, 3600, 5)),
        ("cache {\n success 9984 30 5\n}", "success", (9984, 30, 5)),
        ("cache {\n denial 9984 5\n}", "denial", (9984, 5, 5)),
        ("cache {\n prefetch 10 1m 10%\n}", "prefetch", (10, 60.0, 10)),
        ("cache {\n serve_stale\n}", "serve_stale", Stale(3600.0)),
        ("cache {\n serve_stale 1h immediate\n}", "serve_stale", Stale(3600.0, "immediate")),
        ("cache {\n serve_stale 1h verify 1s 2s 3s\n}", "serve_stale", Stale(3600.0, "verify", 1.0, 2.0, 3.0)),
        ("cache {\n serve_stale\n serve_stale_policy prefer_positive\n}", "serve_stale_policy", "prefer_positive"),
        ("cache {\n servfail 0\n}", "servfail", 0.0),
        (
            "cache 30 {\n disable success cluster.local\n disable denial\n}",
            "disable",
            (("success", ("cluster.local.",)), ("denial", ())),
        ),
        ("cache {\n keepttl\n}", "keepttl", True),
    ],
)
def test_its_options_are_read(text: str, field: str, value: object) -> None:
    assert getattr(options(text), field) == value


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("cache 0", "expected 1 or more, found `0`"),
        ("cache\ncache", "can only be used once"),
        ("cache {\n prefetch 10 1m 5%\n}", "10% to 90%"),
        ("cache {\n servfail 6m\n}", "0s to 5m"),
        ("cache {\n disable everything\n}", "`disable` takes `success` or `denial`"),
        ("cache {\n serve_stale 1h sometimes\n}", "`immediate` or `verify`"),
        ("cache {\n serve_stale_policy prefer_positive\n}", "`serve_stale_policy` needs `serve_stale`"),
        ("cache {\n servfial 5s\n}", "did you mean `servfail`?"),
    ],
)
def test_what_it_does_not_take_is_told(text: str, part: str) -> None:
    assert part.replace("0s to 5m", "to 5m") in trial.problems(Cache, text)


def test_that_it_has_no_effect_is_said_in_one_line_and_it_is_not_in_the_chain() -> None:
    cache = trial.plugin(Cache, "cache 30")
    assert len(list(cache.notices())) == 1
    assert cache.handle is None
