"""Twice as many queries as a server can answer, for a minute: what it still answers, and what becomes of the rest.

`python -m bench.overload` (a part of `make bench`) finds the rate at which a server answers most, offers twice that
with a C program that doesn't wait for replies (`flood.c`), and meanwhile changes the cluster once a second, asks by TCP
until the change shows, and reads the metrics. It needs a second CPU for the flood.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from bench import report, servers, works
from bench.churn import Changes
from bench.scale import Asker, holds
from bench.servers import ROOT, Place, Server
from kdns.wire import names

SECONDS = 60.0
# To find the peak: the first rate, how much more the next one is, and the time for each.
FIRST_RATE, STEP, STEP_SECONDS = 10_000, 1.3, 2.0
# No more is offered than this, and the search ends where the answers no longer become more.
MOST_RATE, GROWTH = 1_500_000, 1.02
# Of the queries of an ordinary client, so long is waited for each before it is asked again: longer than a full socket
# buffer takes to be answered.
RETRY_SECONDS, PATIENCE_SECONDS = 0.5, 20.0
# After the flood: within this the server is to be as before, in which no query takes longer than that.
AFTER_SECONDS, PROMPT_SECONDS = 3.0, 0.02
TYPES = {"A": 1, "AAAA": 28}


class Load(NamedTuple):
    """What is asked: questions, and what stands behind each in its packet."""

    name: str
    text: str
    questions: Callable[[], Iterator[str]]
    tail: bytes = b""


LOADS = (
    Load("names", "names again", works.names_again),
    # A byte behind a query is ignored, and keeps its reply from being kept.
    Load("anew", "the same, each answer made anew", works.names_again, b"\0"),
)


class Second(NamedTuple):
    """What was sent and answered in one second."""

    sent: int
    answered: int


class Outcome(NamedTuple):
    """Rates a second, CPU seconds for an answer, MB, and seconds; `visible` has one for each second of the flood."""

    peak: float
    peak_cpu: float
    offered: float
    goodput: float
    least_goodput: float
    cpu: float
    before_mb: float
    after_mb: float
    visible: list[float]
    metrics: list[float]
    recovery: float


class Flood:
    """The C program, and its questions as packets."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._program = folder / "flood"
        subprocess.run(["cc", "-O2", "-o", self._program, ROOT / "bench/flood.c"], check=True)

    def run(self, server: Server, load: Load, rate: float, seconds: float) -> list[Second]:
        """Offer that many queries a second. Returns what came of it, second by second."""
        file = self._folder / f"{load.name}.packets"
        if not file.exists():
            file.write_bytes(b"".join(_framed(_packet(line) + load.tail) for line in load.questions()))
        line = [str(self._program), str(server.port), str(int(rate)), str(seconds), str(file)]
        said = subprocess.run(line, check=True, capture_output=True, text=True).stdout
        return [Second(*map(int, each.split())) for each in said.splitlines()]


def _packet(line: str) -> bytes:
    name, rtype = line.split()
    header = struct.pack("!HHHHHH", 0, 0x0100, 1, 0, 0, 0)
    return header + names.from_text(name) + struct.pack("!HH", TYPES[rtype], 1)


def _framed(packet: bytes) -> bytes:
    return len(packet).to_bytes(2, "big") + packet


def find_peak(flood: Flood, server: Server, load: Load) -> tuple[float, float]:
    """The most answers a second that any rate gets, and the CPU time of each, in seconds."""
    rate, peak, peak_cpu, poorer = float(FIRST_RATE), 0.0, 0.0, 0
    while rate < MOST_RATE and poorer < 2:
        seconds, cpu = _flooded(flood, server, load, rate, STEP_SECONDS)
        answered = statistics.median(each.answered for each in seconds)
        poorer = 0 if answered > peak * GROWTH else poorer + 1
        if answered > peak:
            peak, peak_cpu = answered, cpu
        rate *= STEP
    return peak, peak_cpu


def _flooded(flood: Flood, server: Server, load: Load, rate: float, seconds: float) -> tuple[list[Second], float]:
    """What came of a flood in each second, and the CPU time of an answer in seconds."""
    before = server.cpu_seconds()
    found = flood.run(server, load, rate, seconds)
    return found, (server.cpu_seconds() - before) / max(1, sum(each.answered for each in found))


def measure(flood: Flood, server: Server, api_port: int, load: Load, seconds: float) -> Outcome:
    """Find the peak, offer twice as much, and watch."""
    peak, peak_cpu = find_peak(flood, server, load)
    changes, visible, metrics = Changes(api_port), [], []
    before = server.megabytes("VmRSS")
    results: list[tuple[list[Second], float]] = []
    thread = threading.Thread(target=lambda: results.append(_flooded(flood, server, load, 2 * peak, seconds)))
    thread.start()
    while thread.is_alive():
        began = time.monotonic()
        visible.append(_visible(server, changes))
        metrics.append(_timed(lambda: _read_metrics(server)))
        thread.join(max(0.0, began + 1 - time.monotonic()))
    recovery = _recovery(server)
    # The first second has the end of what came before.
    steady, cpu = results[0][0][1:], results[0][1]
    return Outcome(
        peak,
        peak_cpu,
        statistics.mean(each.sent for each in steady),
        statistics.mean(each.answered for each in steady),
        min(each.answered for each in steady),
        cpu,
        before,
        server.megabytes("VmRSS"),
        visible,
        metrics,
        recovery,
    )


def _visible(server: Server, changes: Changes) -> float:
    """The time from the acknowledgement of a change until a client sees it that asks by TCP, where nothing is lost."""
    name, address = changes.next()
    began = time.monotonic()
    query = _framed(_packet(f"{name} A"))
    with socket.create_connection(("127.0.0.1", server.port), PATIENCE_SECONDS) as sock, sock.makefile("rb") as replies:
        while True:
            sock.sendall(query)
            if holds(replies.read(int.from_bytes(replies.read(2), "big")), address):
                return time.monotonic() - began


def _read_metrics(server: Server) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.metrics}/metrics", timeout=PATIENCE_SECONDS) as reply:
        reply.read()


def _recovery(server: Server) -> float:
    """How long after the end of the flood the last query was lost or took long."""
    name = f"{works.service(0)}.{works.namespace(0)}.svc.{works.DOMAIN}."
    began = last = time.monotonic()
    with contextlib.closing(Asker(server.port)) as asker:
        while time.monotonic() < began + AFTER_SECONDS:
            asked = time.monotonic()
            if not asker.ask(name, seconds=RETRY_SECONDS) or time.monotonic() - asked > PROMPT_SECONDS:
                last = time.monotonic()
            time.sleep(0.002)
    return last - began


def _timed(work: Callable[[], None]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


def table(found: Sequence[tuple[Load, str, Outcome]]) -> str:
    """All of it in Markdown."""
    heads = [
        "work", "server", "peak, answers a second", "offered", "answered, of the peak", "least in a second",
        "CPU of an answer, µs: peak, then", "resident before and after, MB", "a change is seen after, ms",
        "metrics are read in, ms", "as before after, s",
    ]  # fmt: skip

    def cells() -> Iterator[list[str]]:
        for load, name, each in found:
            yield [
                load.text,
                name,
                f"{each.peak / 1000:.0f}k",
                f"{each.offered / each.peak:.1f} ×",
                f"{each.goodput / each.peak:.0%}",
                f"{each.least_goodput / each.peak:.0%}",
                f"{each.peak_cpu * 1e6:.1f}, {each.cpu * 1e6:.1f}",
                f"{each.before_mb:.0f}, {each.after_mb:.0f}",
                _half_and_most(each.visible),
                _half_and_most(each.metrics),
                f"{each.recovery:.2f}",
            ]

    return "\n".join(report.rows(heads, cells()))


def _half_and_most(seconds: Iterable[float]) -> str:
    ordered = sorted(seconds)
    return f"{statistics.median(ordered) * 1000:.0f}, at most {ordered[-1] * 1000:.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--coredns", default=os.environ.get("COREDNS", ""), help="the binary of CoreDNS")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="how long each flood lasts")
    parser.add_argument("--write", action="store_true", help="write the table into docs/benchmarks.md")
    given = parser.parse_args()
    with servers.ending(), tempfile.TemporaryDirectory(prefix="kdns-bench-") as name:
        place = Place(Path(name))
        works.write_manifests(place.manifests)
        flood = Flood(place.folder)
        found = []
        for load in LOADS:
            for coredns in ("", given.coredns) if given.coredns else ("",):
                with servers.api(place) as api_port, _server(place, api_port, coredns) as server:
                    found.append((load, server.name, measure(flood, server, api_port, load, given.seconds)))
                print(found[-1], file=sys.stderr, flush=True)
    text = table(found)
    print(text)
    if given.write:
        report.put("overload", f"{given.seconds:g} s each, {report.machine()}.\n\n{text}")


def _server(place: Place, api_port: int, coredns: str) -> contextlib.AbstractContextManager[Server]:
    return servers.coredns(place, coredns, api_port) if coredns else servers.kdns(place, api_port=api_port)


if __name__ == "__main__":
    main()
