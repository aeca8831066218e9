"""Servers that take over from one another at one port, and reloads, under load: no query is lost.

The same at full size, with its figures, is bench/rollout.py.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from tests import started
from tests.rollout.load import HOST, Rates, load
from tests.rollout.port import FORWARDED, LOCAL, WEB, Port
from tests.rollout.upstreams import upstream

# One of ten waits for an upstream, also while its server ends.
QUESTIONS = [FORWARDED, *[LOCAL] * 9]
RATES = Rates(udp=500, kept=100, fresh=40)
# What comes while the kernel takes a killed process apart is lost: for 3 to 15 ms on a busy machine.
FEW = Rates(udp=150, kept=100, fresh=40)


@pytest.mark.parametrize("bind", ["bind 127.0.0.1", "bind 0.0.0.0"], ids=["one-address", "all-addresses"])
def test_servers_that_take_over_one_after_the_other_lose_no_query(tmp_path: Path, bind: str) -> None:
    with upstream(delay_seconds=0.05) as found, contextlib.ExitStack() as stack:
        port = Port(tmp_path, found.port)
        port.write(bind, "multisocket 1")
        old = stack.enter_context(port.serving())
        with load(port.number, QUESTIONS, RATES) as tally:
            for _ in range(3):
                new = stack.enter_context(port.serving())
                tally.wait(300)
                assert old.end() == 0
                old = new
            tally.wait(300)
    assert (tally.lost, tally.wrong) == (0, []), tally
    assert min(tally.answered.values()) > 50, tally


def test_a_server_that_is_killed_beside_another_costs_five_queries_at_most(tmp_path: Path) -> None:
    with upstream(delay_seconds=0.005) as found:
        port = Port(tmp_path, found.port)
        port.write("bind 127.0.0.1", "multisocket 1")
        with port.serving() as one, port.serving(), load(port.number, QUESTIONS, FEW, 2.0) as tally:
            tally.wait(300)
            one.process.kill()
            tally.wait(300)
    assert tally.lost <= 5, tally
    assert tally.wrong == []
    assert min(tally.answered.values()) > 50, tally


def test_reloads_that_change_where_and_how_it_listens_lose_no_query(tmp_path: Path) -> None:
    ways = [
        ["bind 127.0.0.1"],
        ["bind 127.0.0.1", "multisocket 1"],
        ["bind 0.0.0.0", "multisocket 1"],
        ["loadbalance"],
        ["bind 127.0.0.1 127.0.0.2"],
        [],
    ]
    with upstream(delay_seconds=0.05) as found:
        port = Port(tmp_path, found.port)
        port.write()
        with port.serving() as server, load(port.number, QUESTIONS, RATES) as tally:
            for lines in ways:
                port.write(*lines)
                assert "Reloading complete" in server.reload()
                tally.wait(100)
    assert (tally.lost, tally.wrong) == (0, []), tally
    assert min(tally.answered.values()) > 20, tally


def test_serve_takes_over_where_the_one_before_shares_its_port(tmp_path: Path) -> None:
    (tmp_path / "web.yaml").write_text(WEB)
    where = f"{HOST}:{started.free_port()}"
    line = ["serve", "-i", "web.yaml", "-l", where]
    with started.started("kdns", *line, "--share-port", cwd=tmp_path) as one:
        assert f"error: {where} is taken" in started.run("kdns", *line, cwd=tmp_path).stderr
        with started.started("kdns", *line, "--share-port", cwd=tmp_path) as other:
            assert one.end() == 0
            assert other.end() == 0
    done = started.run("kdns", "serve", "--corefile", "Corefile", "--share-port", cwd=tmp_path)
    assert "--share-port goes into a --corefile FILE as the directive `multisocket`" in done.stderr
