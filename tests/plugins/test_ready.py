"""ready: which plugins it waits for, for how long it believes them, and what it says at the end."""

import pytest

from kdns.chain import Block, Plugin
from kdns.plugins.ready import Ready
from tests.plugins import trial


class Syncing(Plugin):
    """A plugin that is ready when the test says so."""

    name = "kubernetes"

    def __init__(self, within: Block, name: str = "kubernetes", lack: str = "") -> None:
        self.name = name  # type: ignore[misc]
        self.lack = lack
        self.is_ready = False
        within.process.plugins.append(self)

    def ready(self) -> bool:
        return self.is_ready

    def missing(self) -> str:
        return self.lack


def test_the_missing_are_named_in_order_and_each_once() -> None:
    block = trial.block()
    ready = trial.plugin(Ready, "ready", block)
    others = [Syncing(block), Syncing(block), Syncing(block, "erratic")]
    with trial.log_lines() as logged:
        assert ready.respond({})[:2] == (503, b"erratic,kubernetes")
        assert ready.respond({})[:2] == (503, b"erratic,kubernetes")
        others[2].is_ready = others[0].is_ready = True
        assert ready.respond({})[:2] == (503, b"kubernetes")
        others[1].is_ready = True
        assert ready.respond({})[:2] == (200, b"OK")
    assert logged == [
        '[INFO] plugin/ready: Plugins not ready: "erratic,kubernetes"',
        '[INFO] plugin/ready: Plugins not ready: "kubernetes"',
    ], "what a probe finds is told when it changes"


def test_what_is_missing_stands_behind_the_name() -> None:
    block = trial.block()
    ready = trial.plugin(Ready, "ready", block)
    lacking = [Syncing(block, lack=lack) for lack in ("services: not allowed", "pods", "pods", "")]
    Syncing(block, "erratic")
    with trial.log_lines() as logged:
        assert ready.respond({})[:2] == (503, b"erratic,kubernetes (services: not allowed; pods)")
        lacking[0].lack = ""
        assert ready.respond({})[:2] == (503, b"erratic,kubernetes (pods)")
    assert logged == ['[INFO] plugin/ready: Plugins not ready: "erratic,kubernetes"'], "as CoreDNS logs it"


@pytest.mark.parametrize(
    ("line", "later"),
    [("ready", 200), ("ready {\n monitor until-ready\n}", 200), ("ready {\n monitor continuously\n}", 503)],
)
def test_a_plugin_that_has_been_ready_is_asked_again_only_if_told_so(line: str, later: int) -> None:
    block = trial.block()
    ready = trial.plugin(Ready, line, block)
    cluster = Syncing(block)
    cluster.is_ready = True
    assert ready.respond({})[0] == 200
    cluster.is_ready = False
    assert ready.respond({})[0] == later


def test_a_process_that_does_not_listen_yet_is_not_ready() -> None:
    block = trial.block()
    ready = trial.plugin(Ready, "ready", block)
    cluster = Syncing(block)
    block.process.starting = True
    assert ready.respond({})[:2] == (503, b"kubernetes")
    cluster.is_ready = True
    assert ready.respond({})[:2] == (503, b"Not listening yet")
    block.process.starting = False
    assert ready.respond({})[:2] == (200, b"OK")


def test_a_process_that_ends_is_ready_no_more() -> None:
    block = trial.block()
    ready = trial.plugin(Ready, "ready", block)
    block.process.stopping = True
    assert ready.respond({})[:2] == (503, b"Shutting down")


@pytest.mark.parametrize(("line", "place"), [("ready", ("", 8181)), ("ready 127.0.0.1:8182", ("127.0.0.1", 8182))])
def test_the_path_is_served_where_the_corefile_says(line: str, place: tuple[str, int]) -> None:
    (route,) = trial.plugin(Ready, line).routes()
    assert (route.address, route.port, route.path) == (*place, "/ready")


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("ready 8181", "hint: write `:8181` for all addresses"),
        ("ready {\n monitor sometimes\n}", "`monitor` takes `until-ready` or `continuously`"),
        ("ready\nready", "can only be used once"),
    ],
)
def test_what_it_does_not_take_is_told(line: str, part: str) -> None:
    assert part in trial.problems(Ready, line)
