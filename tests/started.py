"""kdns as a user starts it: a process of its own, at a free port of loopback, for as long as the block lasts."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from tests import needs

ROOT = Path(__file__).parent.parent
COMMANDS = Path(sys.executable).parent
PATIENCE_SECONDS = 20


class Started:
    """A running command. What it says on stdout and stderr goes to one file, in its order."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self.process = process
        self.port = port
        self._log = log

    @property
    def said(self) -> str:
        return self._log.read_text()

    def says(self, text: str) -> str:
        """Wait until it has said something. Returns all that it said so far."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while text not in self.said:
            assert self.process.poll() is None, f"it ended with {self.process.returncode}:\n{self.said}"
            assert time.monotonic() < deadline, f"it didn't say `{text}`:\n{self.said}"
            time.sleep(0.01)
        return self.said

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and wait. Returns the exit code."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_SECONDS)

    def reload(self) -> str:
        """Have it read its Corefile again, and wait until that is done. Returns what it said of it."""
        before = len(self.said)
        self.process.send_signal(signal.SIGUSR1)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not any(end in self.said[before:] for end in ("Reloading complete\n", "reload failed")):
            assert time.monotonic() < deadline, f"it didn't reload:\n{self.said}"
            time.sleep(0.01)
        return self.said[before:]

    def dig(self, *arguments: str, at: str = "127.0.0.1") -> str:
        """What dig prints to a question to this server."""
        return dig(f"@{at}", "-p", str(self.port), *arguments)


@contextlib.contextmanager
def started(command: str, *arguments: str, cwd: Path = ROOT, stdin: TextIO | None = None) -> Iterator[Started]:
    """Start a command of ours and wait until it listens; it ends with the block. `PORT` stands for a free port."""
    port = free_port()
    line = [str(COMMANDS / command), *(each.replace("PORT", str(port)) for each in arguments)]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "said"
        with log.open("wb") as out:
            process = subprocess.Popen(
                line, stdin=stdin, stdout=out, stderr=subprocess.STDOUT, cwd=cwd, env=plain_environment()
            )
        running = Started(process, port, log)
        try:
            # The last words at start: of `kdns` what to try, of `coredns` its version.
            running.says("CoreDNS-" if command == "coredns" else "listening on")
            yield running
        finally:
            if process.poll() is None:
                process.kill()
                process.wait(PATIENCE_SECONDS)


def run(command: str, *arguments: str, cwd: Path = ROOT, text: str = "") -> subprocess.CompletedProcess[str]:
    """Run a command of ours that ends by itself."""
    return subprocess.run(
        [str(COMMANDS / command), *arguments],
        input=text,
        capture_output=True,
        text=True,
        cwd=cwd,
        env=plain_environment(),
        timeout=PATIENCE_SECONDS,
        check=False,
    )


def dig(*arguments: str) -> str:
    """What dig prints, without its retries."""
    done = subprocess.run(
        [needs.command("dig"), "+tries=1", "+time=5", *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return done.stdout


def plain_environment() -> dict[str, str]:
    """The environment without what changes how a command prints."""
    return {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS")}


def free_port() -> int:
    """A port of loopback that is free for UDP and TCP, of both families where there are two, at this moment."""
    for _ in range(100):
        with contextlib.ExitStack() as stack:
            first = stack.enter_context(socket.socket())
            first.bind(("127.0.0.1", 0))
            port = int(first.getsockname()[1])
            try:
                stack.enter_context(socket.socket(type=socket.SOCK_DGRAM)).bind(("127.0.0.1", port))
                if has_ipv6():
                    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                        stack.enter_context(socket.socket(socket.AF_INET6, kind)).bind(("::1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no port is free")


def has_ipv6() -> bool:
    """Whether loopback has an IPv6 address here."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True
