"""What CoreDNS's Corefiles may have and kdns has no use for: read, checked, and said to be without effect."""

import pytest

from kdns.chain import Plugin
from kdns.plugins.debug import Debug
from kdns.plugins.pprof import Pprof
from kdns.plugins.root import Root
from kdns.plugins.trace import Trace
from tests.plugins import trial


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (Debug, "debug"),
        (Pprof, "pprof"),
        (Pprof, "pprof :6060 {\n block\n}"),
        (Pprof, "pprof localhost:6060 {\n block 10\n}"),
        (Root, "root /etc/coredns"),
        (Trace, "trace"),
        (Trace, "trace tracer.example:9411"),
        (Trace, "trace http://tracer.example:9411/zipkin/api/v1/spans"),
        (Trace, "trace datadog localhost:8126 {\n datadog_analytics_rate 0.5\n}"),
        (Trace, "trace zipkin x:1 {\n every 100\n service dns\n client_server\n}"),
        (Trace, "trace {\n zipkin_max_backlog_size 5\n zipkin_max_batch_size 6\n zipkin_max_batch_interval 2s\n}"),
    ],
)
def test_it_is_read_and_one_line_says_that_it_has_no_effect(kind: type[Plugin], text: str) -> None:
    made = trial.plugin(kind, text)
    (notice,) = made.notices()
    assert notice.startswith("no effect: ")
    assert made.handle is None
    assert not list(made.routes())


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        (Debug, "debug on", "`debug` takes no arguments"),
        (Pprof, "pprof here", "`pprof` takes an address"),
        (Pprof, "pprof\npprof", "`pprof` can only be used once in a server block"),
        (Pprof, "pprof {\n block often\n}", "`block` takes a number"),
        (Root, "root", "`root` needs PATH"),
        (Root, "root a b", "`root` takes no more than that"),
        (Trace, "trace a b c", "`trace` takes no more than that"),
        (Trace, "trace {\n every none\n}", "`every` takes a number"),
        (Trace, "trace {\n datadog_analytics_rate 2\n}", "`datadog_analytics_rate` takes a number"),
        (Trace, "trace {\n evry 1\n}", "`trace` has no option `evry`"),
    ],
)
def test_mistakes_are_told_all_the_same(kind: type[Plugin], text: str, message: str) -> None:
    assert trial.problems(kind, text).startswith(f"error: {message}")
