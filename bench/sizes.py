"""Memory and the time to the first answer, by the size of the cluster: kdns beside CoreDNS on the same objects.

`python -m bench.sizes` (a part of `make bench`) starts each server several times on a stand-in for the API server,
which has all objects in memory as JSON. What a real API server adds to that, `bench/scale.py` measures.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from bench import report, servers, works
from bench.servers import Place, Server
from bench.works import Object

SIZES = (1_000, 10_000, 100_000)
# Of a hundred services of a namespace.
SERVICES, HEADLESS_EVERY = 100, 10
ROUNDS = 3
SETTLE_SECONDS = 3.0


class Footprint(NamedTuple):
    """What a server took: seconds and CPU seconds until the first right answer, MB some time after and at most."""

    seconds: float
    cpu_seconds: float
    resident: float
    peak: float


def manifests(services: int) -> Iterator[Object]:
    """So many services, a tenth of them headless, in namespaces of a hundred; each has a slice of ten endpoints."""
    for one in range(services // SERVICES):
        yield {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": works.namespace(one)}}
        for number in range(SERVICES):
            headless = number % HEADLESS_EVERY == HEADLESS_EVERY - 1
            name = works.service(number)
            address = "None" if headless else f"10.{96 + (one >> 8)}.{one & 255}.{number + 10}"
            first = (one * SERVICES + number) * works.ENDPOINTS
            yield works.service_object(one, name, address)
            yield works.slice_object(one, name, [_address(first + each) for each in range(works.ENDPOINTS)])


def _address(number: int) -> str:
    return f"10.{128 + (number >> 16)}.{number >> 8 & 255}.{number & 255}"


def measure(sizes: Sequence[int], rounds: int, coredns: str) -> dict[int, dict[str, list[Footprint]]]:
    """By size and server a footprint for each round; the servers take turns."""
    found: dict[int, dict[str, list[Footprint]]] = {}
    for size in sizes:
        with tempfile.TemporaryDirectory(prefix="kdns-bench-") as name:
            place = Place(Path(name))
            with place.manifests.open("w") as out:
                json.dump({"apiVersion": "v1", "kind": "List", "items": list(manifests(size))}, out)
            with servers.api(place) as api_port:
                for _ in range(rounds):
                    with servers.kdns(place, api_port=api_port) as server:
                        found.setdefault(size, {}).setdefault(server.name, []).append(_footprint(server))
                    if coredns:
                        with servers.coredns(place, coredns, api_port) as server:
                            found[size].setdefault(server.name, []).append(_footprint(server))
        print(f"{size} services: {found[size]}", file=sys.stderr, flush=True)
    return found


def _footprint(server: Server) -> Footprint:
    # CoreDNS opens its port after five seconds, whatever it has read by then.
    time.sleep(SETTLE_SECONDS)
    return Footprint(
        server.first_seconds, server.first_cpu_seconds, server.megabytes("VmRSS"), server.megabytes("VmHWM")
    )


def table(found: dict[int, dict[str, list[Footprint]]]) -> str:
    """Medians with the least and the most, in Markdown."""
    heads = [
        "services",
        "endpoints",
        "server",
        "first right answer, s",
        "CPU until then, s",
        "resident, MB",
        "at most, MB",
    ]

    def cells() -> Iterator[list[str]]:
        for size, of_servers in found.items():
            for name, footprints in of_servers.items():
                figures = [_spread([each[field] for each in footprints], 2 if field < 2 else 0) for field in range(4)]
                yield [f"{size:,}", f"{size * works.ENDPOINTS:,}", name, *figures]

    return "\n".join(report.rows(heads, cells()))


def _spread(values: Sequence[float], digits: int) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--coredns", default=os.environ.get("COREDNS", ""), help="the binary of CoreDNS")
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)), help="numbers of services")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--write", action="store_true", help="write the table into docs/benchmarks.md")
    given = parser.parse_args()
    with servers.ending():
        found = measure([int(each) for each in given.sizes.split(",")], given.rounds, given.coredns)
    text = table(found)
    print(text)
    if given.write:
        report.put("sizes", f"{given.rounds} starts each, {report.machine()}.\n\n{text}")


if __name__ == "__main__":
    main()
