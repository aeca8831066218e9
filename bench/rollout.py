"""What a rollout costs its clients: queries lost while servers take over from one another, reload, or are killed.

`python -m bench.rollout` does all of it, in about six minutes; `python -m bench.rollout restarts` one part. The small
versions of the first three are tests/rollout/.

restarts  ten servers take over one after the other at one port
kill      one of two servers at a port is killed, ten times
reloads   a hundred reloads of one server
dead      names of the cluster, while no upstream replies, beside a server whose upstream does
"""

from __future__ import annotations

import argparse
import contextlib
import re
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.rollout.load import Rates, Tally, load, question
from tests.rollout.port import FORWARDED, LOCAL, Port
from tests.rollout.upstreams import ADDRESS, upstream

# Of twenty queries one waits for an upstream.
QUESTIONS = [FORWARDED, *[LOCAL] * 19]
RATES = Rates(udp=2400, kept=450, fresh=150)
PATIENCE_SECONDS = 2.0
RESTARTS, SECONDS_OF_A_RESTART = 10, 10.0
KILLS, SECONDS_OF_A_KILL = 10, 4.0
RELOADS, SECONDS_OF_A_RELOAD = 100, 0.6
ROUNDS, SECONDS_OF_A_ROUND = 8, 4.0
# Each lives for 4 seconds before a silent upstream, so kubeadm's bound of 1,000 is met.
HANGING = Rates(udp=300)
MANY = [question(f"host-{number}.example.", ADDRESS) for number in range(10_000)]


def restarts(folder: Path) -> None:
    """Ten servers take over one after the other at one port."""
    with upstream(delay_seconds=0.05) as found, contextlib.ExitStack() as stack:
        port = Port(folder, found.port)
        port.write("bind 127.0.0.1", "multisocket 1")
        old = stack.enter_context(port.serving())
        began = time.monotonic()
        with load(port.number, QUESTIONS, RATES, PATIENCE_SECONDS) as tally:
            for _ in range(RESTARTS):
                time.sleep(SECONDS_OF_A_RESTART / 2)
                new = stack.enter_context(port.serving())
                time.sleep(SECONDS_OF_A_RESTART / 2)
                old.end()
                old = new
            seconds = time.monotonic() - began
    report(f"{RESTARTS} servers after one another", tally, seconds)


def kill(folder: Path) -> None:
    """One of two servers at a port is killed, ten times; the loss of each time."""
    losses = []
    with upstream(delay_seconds=0.005) as found, contextlib.ExitStack() as stack:
        port = Port(folder, found.port)
        port.write("bind 127.0.0.1", "multisocket 1")
        one = stack.enter_context(port.serving())
        for _ in range(KILLS):
            other = stack.enter_context(port.serving())
            began = time.monotonic()
            with load(port.number, QUESTIONS, RATES, PATIENCE_SECONDS) as tally:
                time.sleep(SECONDS_OF_A_KILL / 2)
                one.process.kill()
                time.sleep(SECONDS_OF_A_KILL / 2)
                seconds = time.monotonic() - began
            one = other
            losses.append(tally.lost)
            report("one of two killed", tally, seconds)
    print(f"lost in {KILLS} kills: {losses}")


def reloads(folder: Path) -> None:
    """A hundred reloads of one server: some options, another address, a port that is shared or isn't."""
    ways = [
        ["bind 127.0.0.1"],
        ["bind 127.0.0.1", "loadbalance"],
        ["bind 127.0.0.1", "multisocket 1"],
        [],
        ["errors"],
    ]
    with upstream(delay_seconds=0.05) as found:
        port = Port(folder, found.port)
        port.write()
        with port.serving() as server:
            began = time.monotonic()
            with load(port.number, QUESTIONS, RATES, PATIENCE_SECONDS) as tally:
                for number in range(RELOADS):
                    port.write(*ways[number % len(ways)])
                    assert "Reloading complete" in server.reload(), server.said
                    time.sleep(SECONDS_OF_A_RELOAD)
                seconds = time.monotonic() - began
    report(f"{RELOADS} reloads", tally, seconds)


def dead(folder: Path) -> None:
    """Two servers in turns, with an upstream that replies and with one that doesn't; the waits for a cluster's name."""
    (folder / "questions").write_text("web.shop.svc.cluster.local A\n")
    rounds: dict[str, list[tuple[float, float]]] = {"replies": [], "is silent": []}
    with contextlib.ExitStack() as stack:
        ports = {}
        for name, delay in (("replies", 0.002), ("is silent", None)):
            found = stack.enter_context(upstream(delay))
            (folder / name).mkdir()
            port = ports[name] = Port(folder / name, found.port, "max_concurrent 1000")
            port.write("bind 127.0.0.1")
            stack.enter_context(port.serving())
        for number in range(ROUNDS):
            for name in sorted(ports, reverse=number % 2 == 1):
                rounds[name].append(_waits(ports[name], folder / "questions"))
    for index, what in ((0, "median"), (1, "p99")):
        alive, silent = ([taken[index] for taken in found] for found in rounds.values())
        ratios = sorted(later / before for before, later in zip(alive, silent, strict=True))
        print(
            f"{what}: {statistics.median(alive):.0f} µs while the upstream replies, {statistics.median(silent):.0f} µs "
            f"while it is silent; ratio {statistics.median(ratios):.2f}, from {ratios[0]:.2f} to {ratios[-1]:.2f}"
        )


def _waits(port: Port, questions: Path) -> tuple[float, float]:
    """Median and 99th percentile of the microseconds for a name of the cluster, while other names are forwarded."""
    with load(port.number, MANY, HANGING, PATIENCE_SECONDS):
        # Until as many hang as will.
        time.sleep(4)
        line = ["dnsperf", "-s", "127.0.0.1", "-p", str(port.number), "-d", str(questions), "-Q", "500", "-v"]
        said = subprocess.run([*line, "-l", str(SECONDS_OF_A_ROUND)], check=True, capture_output=True, text=True).stdout
    assert re.search(r"Queries lost: +0 ", said), said[-2000:]
    taken = [float(each) * 1e6 for each in re.findall(r"^> NOERROR \S+ \S+ ([\d.]+)", said, re.MULTILINE)]
    cuts = statistics.quantiles(taken, n=100)
    return cuts[49], cuts[98]


def report(what: str, tally: Tally, seconds: float) -> None:
    total = sum(tally.sent.values())
    print(f"{what}: {tally.lost} lost of {total}, {total / seconds:.0f} queries a second; {tally}", flush=True)


PARTS: dict[str, Callable[[Path], None]] = {each.__name__: each for each in (restarts, kill, reloads, dead)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="all of them unless given")
    for part in parser.parse_args().parts or PARTS:
        with tempfile.TemporaryDirectory() as folder:
            PARTS[part](Path(folder))


if __name__ == "__main__":
    main()
