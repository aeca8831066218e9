"""No test is skipped unseen: the summary names every reason, and where CI=true a skip fails the run."""

from collections import Counter

import pytest

from tests import needs


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skips = _skips(terminalreporter)
    if not skips:
        return
    terminalreporter.section("not run, and CI=true allows none" if needs.ON_CI else "not run")
    for reason, count in sorted(Counter(skips).items()):
        terminalreporter.line(f"{reason} ({count} {'test' if count == 1 else 'tests'})")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if needs.ON_CI and session.exitstatus == pytest.ExitCode.OK and reporter is not None and _skips(reporter):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _skips(reporter: pytest.TerminalReporter) -> list[str]:
    # A skip's longrepr is (file, line, "Skipped: reason").
    return [report.longrepr[2].removeprefix("Skipped: ") for report in reporter.stats.get("skipped", [])]
