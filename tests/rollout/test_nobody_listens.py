"""Nobody takes what the process says: it serves all the same, and ends as ever."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests import started
from tests.rollout.asking import PATIENCE_SECONDS, addresses, ask, wait
from tests.rollout.load import HOST
from tests.rollout.port import Port


@pytest.mark.parametrize("redirect", [">&-", ">&- 2>&- <&-", ">/dev/full", ">/dev/full 2>&1"])
def test_a_closed_stream_or_a_full_disk_costs_nobody_an_answer(tmp_path: Path, redirect: str) -> None:
    port = Port(tmp_path, 9)
    port.write(f"bind {HOST}", "log", "errors")
    line = [started.COMMANDS / "coredns", "-conf", tmp_path / "Corefile"]
    shell = ["sh", "-c", f'exec "$@" {redirect}', "sh", *map(str, line)]
    with subprocess.Popen(shell, cwd=tmp_path, env=started.plain_environment()) as process:
        try:
            wait(lambda: process.poll() is not None or answers(port))
            assert process.poll() is None, "it ended"
            process.terminate()
            assert process.wait(PATIENCE_SECONDS) == 0
        finally:
            process.kill()


def answers(port: Port) -> bool:
    try:
        # Over TCP, who isn't there yet says so at once.
        return addresses(ask(port.number, tcp=True)) == ["10.96.0.7"]
    except OSError:
        return False
