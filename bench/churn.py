"""A cluster that changes: the time until a change is answered, and what clients wait for meanwhile, beside CoreDNS.

`python -m bench.churn` (a part of `make bench`) changes the endpoints of headless services through a stand-in for the
API server, which acknowledges a change once it has told all watches; `bench/scale.py` has a real one. The C program
that only echoes shows what a wait is on this machine, whoever answers.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import itertools
import json
import os
import random
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

from bench import report, servers, speed, works
from bench.api import CHANGE
from bench.report import percentile
from bench.scale import Asker, holds
from bench.servers import Place, Server
from bench.works import DOMAIN, Work

UPDATES_A_SECOND = 100
RATE = 1000
ROUNDS, SECONDS, CHANGES = 7, 10.0, 300
PATIENCE_SECONDS = 10.0
SHARES = (0.5, 0.99, 0.999)


def _questions() -> Iterator[str]:
    """Known names, half of them of the services whose endpoints change."""
    found = [each for each in works.headless_of_ten() for _ in range(10)] + list(works.names_again())
    random.Random(works.SEED).shuffle(found)
    return iter(found)


WORK = Work("churn", "names and headless", _questions, rate=RATE)


class Changes:
    """Changes of headless services' endpoints, each an update of a slice through the API."""

    def __init__(self, api_port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", api_port)
        self._numbers = itertools.count()

    def next(self) -> tuple[str, str]:
        """Make one. Returns the name whose answer is another now, and the address that is new in it."""
        number = next(self._numbers)
        one, of = number % works.NAMESPACES, number // works.NAMESPACES % works.HEADLESS
        address = f"172.{16 + (number >> 16 & 15)}.{number >> 8 & 255}.{number & 255}"
        changed = works.slice_object(one, works.headless(of), [address, *works.endpoints(one, of)[1:]])
        self._connection.request("PUT", CHANGE, json.dumps(changed))
        self._connection.getresponse().read()
        return f"{works.headless(of)}.{works.namespace(one)}.svc.{DOMAIN}.", address


@contextlib.contextmanager
def churning(api_port: int) -> Iterator[None]:
    """A hundred changes a second, as long as the block lasts."""
    ended = threading.Event()

    def change() -> None:
        changes = Changes(api_port)
        began = time.monotonic()
        for number in itertools.count(1):
            changes.next()
            if ended.wait(max(0.0, began + number / UPDATES_A_SECOND - time.monotonic())):
                return

    thread = threading.Thread(target=change)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


class Waits(NamedTuple):
    """What was measured of a server, in seconds: clients' waits of each round, and the times until changes showed."""

    rest: list[list[float]]
    churn: list[list[float]]
    visible: list[float]
    asking: list[float]


def measure(running: Sequence[tuple[Server, int]], rounds: int, seconds: float, folder: Path) -> dict[str, Waits]:
    """The waits at each server, which comes with the port of its API server. All take turns."""
    questions = works.write(WORK, folder)
    found = {server.name: Waits([], [], [], []) for server, _ in running}
    for number in range(rounds):
        for server, api_port in running[number % len(running) :] + running[: number % len(running)]:
            waits = found[server.name]
            waits.rest.append(speed.dnsperf(server, WORK, questions, seconds).latencies)
            with churning(api_port):
                waits.churn.append(speed.dnsperf(server, WORK, questions, seconds).latencies)
            if server.name != "floor":
                _changes(server, api_port, waits, CHANGES // rounds)
        print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    return found


def _changes(server: Server, api_port: int, waits: Waits, count: int) -> None:
    """Change one thing after the other, and ask for it until it shows."""
    changes = Changes(api_port)
    with contextlib.closing(Asker(server.port)) as asker:
        for _ in range(count):
            name, address = changes.next()
            began = time.perf_counter()
            while not holds(asker.ask(name), address):
                if time.perf_counter() - began > PATIENCE_SECONDS:
                    raise RuntimeError(f"{server.name} doesn't show that {name} has {address}")
            waits.visible.append(time.perf_counter() - began)
            began = time.perf_counter()
            asker.ask(name)
            waits.asking.append(time.perf_counter() - began)
            time.sleep(0.01)


def table(found: dict[str, Waits]) -> str:
    """Percentiles in ms, in Markdown, and how many times those at rest the last of them is under churn."""
    heads = ["server", "at rest", f"{UPDATES_A_SECOND} updates a second", "p99.9, of that at rest"]
    first = report.rows(heads, ([name, *_cells(waits)] for name, waits in found.items()))
    heads = ["server", "a change is answered after", "a question takes"]
    asked = {name: waits for name, waits in found.items() if waits.visible}
    second = report.rows(heads, ([name, _half_and_99(w.visible), _half_and_99(w.asking)] for name, w in asked.items()))
    what = f"Time until the reply in ms, at {RATE:,} queries a second: half, 99 % and 99.9 % of the queries"
    then = "Time from the acknowledgement of a change to the answer that shows it, in ms: half and 99 % of the changes"
    return "\n".join([what, "", *first, "", then, "", *second])


def _cells(waits: Waits) -> list[str]:
    ratios = [percentile(churn, 0.999) / percentile(rest, 0.999) for rest, churn in zip(*waits[:2], strict=True)]
    ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"
    return [*(_percentiles(list(itertools.chain(*each)), SHARES) for each in waits[:2]), ratio]


def _half_and_99(seconds: list[float]) -> str:
    return _percentiles(seconds, SHARES[:2])


def _percentiles(seconds: list[float], shares: Sequence[float]) -> str:
    ordered = sorted(seconds)
    return " / ".join(f"{percentile(ordered, share) * 1000:.2f}" for share in shares)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--coredns", default=os.environ.get("COREDNS", ""), help="the binary of CoreDNS")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="how long each round, at rest and under churn")
    parser.add_argument("--write", action="store_true", help="write the tables into docs/benchmarks.md")
    given = parser.parse_args()
    with servers.ending(), tempfile.TemporaryDirectory(prefix="kdns-bench-") as name, contextlib.ExitStack() as stack:
        place = Place(Path(name))
        works.write_manifests(place.manifests)

        def started(server: Callable[[int], AbstractContextManager[Server]]) -> tuple[Server, int]:
            # Each has an API server of its own, so that the others rest while its cluster changes.
            api_port = stack.enter_context(servers.api(place))
            return stack.enter_context(server(api_port)), api_port

        running = [started(lambda api_port: servers.kdns(place, api_port=api_port))]
        if shutil.which("cc"):
            running.append(started(lambda api_port: servers.floor(place)))
        if given.coredns:
            running.append(started(lambda api_port: servers.coredns(place, given.coredns, api_port)))
        found = measure(running, given.rounds, given.seconds, place.folder)
    text = table(found)
    print(text)
    if given.write:
        where = f"{given.rounds} rounds of {given.seconds:g} s, {report.machine()}."
        report.put("churn", f"{where}\n\n{text}")


if __name__ == "__main__":
    main()
