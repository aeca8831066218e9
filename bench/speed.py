"""What a query costs: kdns beside a C program that only echoes, Knot DNS and CoreDNS, all in one run.

`python -m bench.speed` (`make bench`) runs dnsperf against each in turn, several rounds of each kind of work, and
writes docs/benchmarks.md; `--quick` (`make bench-quick`) takes under three minutes and prints only. bench/README.md
says how to read the figures.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from bench import report, servers, works
from bench.report import Figures, Sample
from bench.servers import Place, Server
from bench.works import WORKS, Work

# A pass over the questions comes before what counts: names that are to be known are then known. Sixteen passes make all
# the orders in which kdns keeps a headless service.
WARM_PASSES, WARM_SECONDS = 20, 0.7
OUTSTANDING = 100
# How far the shares of NXDOMAIN of two servers may lie apart: each is cut off somewhere in the file.
SAME_SHARE = 0.05


class Plan(NamedTuple):
    """How much is measured."""

    rounds: int
    seconds: float
    slow_seconds: float
    works: tuple[Work, ...]


QUICK = Plan(3, 0.8, 1.5, tuple(work for work in WORKS if work.quick))
FULL = Plan(7, 2.0, 5.0, WORKS)


def measure(running: Sequence[Server], plan: Plan, folder: Path) -> Figures:
    """The samples of each server at each work. The rounds of all servers take turns, so that a busy moment hits all."""
    figures: Figures = {}
    for work in plan.works:
        questions = works.write(work, folder)
        able = [server for server in running if (server.name == servers.SEARCHING) is work.searching]
        taking_part = [server for server in able if work.floor or server.name != "floor"]
        for server in taking_part:
            warm = work._replace(rate=0)
            dnsperf(server, warm, questions, WARM_SECONDS, "-n", str(WARM_PASSES))
        for number in range(plan.rounds):
            # Each begins a round as often as the others.
            turn = number % len(taking_part)
            for server in taking_part[turn:] + taking_part[:turn]:
                seconds = plan.slow_seconds if work.rate else plan.seconds
                sample = dnsperf(server, work, questions, seconds)
                figures.setdefault(work.name, {}).setdefault(server.name, []).append(sample)
        _compare_shares(work, figures[work.name])
        print(report.line(work, figures[work.name]), file=sys.stderr, flush=True)
    return figures


def dnsperf(server: Server, work: Work, questions: Path, seconds: float, *more: str) -> Sample:
    """One run of dnsperf, and what it cost the server."""
    line = ["dnsperf", "-s", "127.0.0.1", "-p", str(server.port), "-d", str(questions), "-l", str(seconds)]
    line += ["-q", str(OUTSTANDING), "-c", "10", *work.options, *more]
    if work.rate:
        # Each reply with its time: at full speed this would be dnsperf's main work.
        line += ["-Q", str(work.rate), "-v"]
    before = server.cpu_seconds()
    said = subprocess.run(line, check=True, capture_output=True, text=True).stdout
    cpu = server.cpu_seconds() - before
    completed = _number(r"Queries completed: +(\d+)", said)
    if not completed:
        raise RuntimeError(f"{server.name} answered nothing of {work.text}:\n{said[-2000:]}")
    return Sample(
        cpu_microseconds=cpu / completed * 1e6,
        rate=_number(r"Queries per second: +([\d.]+)", said),
        lost=_number(r"Queries lost: +(\d+)", said),
        nxdomain=_number(r"NXDOMAIN (\d+)", said) / completed,
        latencies=sorted(float(each) for each in re.findall(r"^> \S+ \S+ \S+ ([\d.]+)", said, re.MULTILINE)),
    )


def _number(pattern: str, text: str) -> float:
    found = re.search(pattern, text)
    return float(found[1]) if found else 0.0


def _compare_shares(work: Work, of_servers: dict[str, list[Sample]]) -> None:
    """Servers that answer otherwise can't be compared: raises RuntimeError."""
    shares = {
        name: sum(sample.nxdomain for sample in samples) / len(samples)
        for name, samples in of_servers.items()
        if name != "floor"
    }
    if max(shares.values()) - min(shares.values()) > SAME_SHARE:
        raise RuntimeError(f"{work.text}: the servers don't answer alike; shares of NXDOMAIN: {shares}")


@contextlib.contextmanager
def started(place: Place, base: str, coredns: str) -> Iterator[list[Server]]:
    """All servers that this machine has; what is missing is named."""
    with contextlib.ExitStack() as stack:
        running = []
        if shutil.which("cc"):
            running.append(stack.enter_context(servers.floor(place)))
        else:
            _say("no floor: there is no `cc` here")
        if servers.found_knot():
            running.append(stack.enter_context(servers.knot(place)))
        else:
            _say("no Knot: `apt-get install knot` brings it")
        running.append(stack.enter_context(servers.kdns(place)))
        running.append(stack.enter_context(servers.searching(place)))
        if base:
            tree = stack.enter_context(servers.tree_of(base, place.folder))
            running.append(stack.enter_context(servers.kdns(place, "base", tree)))
        if coredns:
            api_port = stack.enter_context(servers.api(place))
            running.append(stack.enter_context(servers.coredns(place, coredns, api_port)))
        else:
            _say("no CoreDNS: COREDNS=/path names a binary")
        yield running


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer works and rounds, and no file is written")
    parser.add_argument("--base", default="", help="another revision or tree of kdns, side by side with this one")
    parser.add_argument("--coredns", default=os.environ.get("COREDNS", ""), help="the binary of CoreDNS")
    parser.add_argument("--works", default="", help="only these, such as names,mix")
    parser.add_argument("--rounds", type=int, help="how often each is measured")
    parser.add_argument("--seconds", type=float, help="how long each time")
    parser.add_argument("--anywhere", action="store_true", help="servers listen at all addresses, as in a cluster")
    arguments = parser.parse_args()
    if not shutil.which("dnsperf"):
        raise SystemExit("dnsperf is missing: `apt-get install dnsperf` brings it")
    plan = QUICK if arguments.quick else FULL
    chosen = arguments.works.split(",") if arguments.works else [work.name for work in plan.works]
    plan = plan._replace(
        works=tuple(work for work in WORKS if work.name in chosen),
        rounds=arguments.rounds or plan.rounds,
        seconds=arguments.seconds or plan.seconds,
    )
    with tempfile.TemporaryDirectory(prefix="kdns-bench-") as name:
        place = Place(Path(name), "0.0.0.0" if arguments.anywhere else "127.0.0.1")
        works.write_manifests(place.manifests)
        with servers.ending(), started(place, arguments.base, arguments.coredns) as running:
            figures = measure(running, plan, place.folder)
    print(report.table(plan.works, figures))
    if not arguments.quick and not arguments.works:
        report.write(plan.works, figures, plan.rounds)


if __name__ == "__main__":
    main()
