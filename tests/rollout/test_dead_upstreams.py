"""No upstream replies: the cluster's names are answered as ever, others fail in bounded time, and nothing piles up."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator
from pathlib import Path

import dns.edns
import dns.rcode
import pytest

from tests import started
from tests.rollout.asking import addresses, ask, page, wait
from tests.rollout.load import HOST, Rates, load, question
from tests.rollout.port import LOCAL, Port
from tests.rollout.upstreams import ADDRESS, upstream
from tests.started import Started

MOST = 200
# Each question of its own: those that are alike would be asked once.
MANY = [question(f"host-{number}.example.", ADDRESS) for number in range(3000)]


def sockets(server: Started) -> int:
    """How many sockets the process has."""
    found = 0
    for descriptor in Path(f"/proc/{server.process.pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            found += str(descriptor.readlink()).startswith("socket:")
    return found


def resident_megabytes(server: Started) -> float:
    """The most memory that the process had so far."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{server.process.pid}/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def metric(http: int, name: str) -> float:
    lines = re.findall(rf"^{name}(?:{{.*}})? (\S+)$", page(http, "/metrics")[1], re.MULTILINE)
    return sum(map(float, lines))


@contextlib.contextmanager
def before_a_dead_upstream(folder: Path, http: int) -> Iterator[tuple[Port, Started]]:
    with upstream(delay_seconds=None) as found:
        port = Port(folder, found.port, f"max_concurrent {MOST}")
        port.write(f"bind {HOST}", f"prometheus {HOST}:{http}")
        with port.serving() as server:
            yield port, server


def test_thousands_that_hang_cost_bounded_sockets_and_memory_and_no_name_of_the_cluster(tmp_path: Path) -> None:
    http = started.free_port()
    with before_a_dead_upstream(tmp_path, http) as (port, server):
        with load(port.number, [LOCAL], Rates(udp=100, kept=50)) as warm:
            warm.wait(100)
        sockets_before, megabytes_before = sockets(server), resident_megabytes(server)
        most = 0
        with (
            load(port.number, MANY, Rates(udp=600)) as hanging,
            load(port.number, [LOCAL], Rates(udp=100, kept=50, fresh=10)) as tally,
        ):
            for _ in range(5):
                tally.wait(100)
                most = max(most, sockets(server))
        assert (tally.lost, tally.wrong) == (0, [])
        # Each was refused at once, or failed after a while: who isn't answered asks again, and makes it worse.
        assert hanging.lost == 0
        rcodes = {reply[3] & 15 for reply in hanging.wrong}
        assert rcodes == {2, 5}, "SERVFAIL, and REFUSED beyond the bound"
        assert len(hanging.wrong) == hanging.answered["udp"]
        assert metric(http, "coredns_forward_max_concurrent_rejects_total") > 0
        # Two for a question at the most, the connections of those who ask, and one or another scrape.
        assert most - sockets_before <= 2 * MOST + 60
        assert resident_megabytes(server) - megabytes_before < 16


@pytest.mark.parametrize(("listens", "error"), [(True, 22), (False, 23)], ids=["silent", "gone"])
@pytest.mark.parametrize("tcp", [False, True], ids=["udp", "tcp"])
def test_a_name_that_nobody_tells_is_servfail_with_an_extended_error(
    tmp_path: Path, listens: bool, error: int, tcp: bool
) -> None:
    with upstream(delay_seconds=None) as found:
        port = Port(tmp_path, found.port if listens else started.free_port())
        port.write(f"bind {HOST}")
        with port.serving():
            reply = ask(port.number, "www.example.", tcp)
    assert dns.rcode.to_text(reply.rcode()) == "SERVFAIL"
    assert [int(option.code) for option in reply.options if option.otype == dns.edns.OptionType.EDE] == [error]


@pytest.mark.parametrize("mode", ["immediate", "verify"])
def test_what_was_known_is_told_where_serve_stale_says_so(tmp_path: Path, mode: str) -> None:
    with upstream(delay_seconds=0) as found:
        port = Port(tmp_path, found.port)
        port.write(f"bind {HOST}", f"cache {{\n success 100 1 0\n serve_stale 1h {mode}\n}}")
        with port.serving():
            assert addresses(ask(port.number, "www.example.")) == [ADDRESS]
            found.delay_seconds = None
            # From then on it is stale.
            time.sleep(1.1)
            asked = found.asked
            assert addresses(ask(port.number, "www.example.")) == [ADDRESS]
            wait(lambda: found.asked > asked)
            assert addresses(ask(port.number, "www.example.")) == [ADDRESS]
