"""What one answer costs that nobody has kept: packet in, reply out, in one process, without sockets.

`python bench/uncached.py` prints microseconds for each kind of question, and how many times a plain dnslib loop that is
timed in the same run: the ratio holds across machines, the microseconds don't. `--profile` shows where the time goes.
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import pstats
import struct
import time
from collections.abc import Callable

import dnslib

from kdns import app, corefile
from kdns.chain import Process
from kdns.kubernetes.objects import (
    Endpoint,
    EndpointPort,
    EndpointSlice,
    Event,
    Metadata,
    Namespace,
    Pod,
    PodStatus,
    Put,
    Service,
    ServicePort,
    ServiceSpec,
    Synced,
)
from kdns.metrics import Metrics
from kdns.plugins.kubernetes import Kubernetes
from kdns.responder import Responder
from kdns.wire import names

# kubeadm's, but for `forward`, which no name of the cluster reaches.
COREFILE = """
.:53 {
    errors
    health {
        lameduck 5s
    }
    ready
    kubernetes cluster.local in-addr.arpa ip6.arpa {
        pods insecure
        fallthrough in-addr.arpa ip6.arpa
        ttl 30
    }
    prometheus :9153
    cache 30
    loop
    reload
    loadbalance
}
"""

QUESTIONS = [
    ("ClusterIP, A", "web-7.shop.svc.cluster.local.", 1),
    ("ClusterIP, AAAA: no data", "web-7.shop.svc.cluster.local.", 28),
    ("search path, NXDOMAIN", "www.example.org.shop.svc.cluster.local.", 1),
    ("headless of 10, A", "db.shop.svc.cluster.local.", 1),
    ("ClusterIP, SRV of one port", "_http._tcp.web-7.shop.svc.cluster.local.", 33),
    ("headless of 10, SRV", "db.shop.svc.cluster.local.", 33),
    ("headless of 1,000, A, truncated", "crowd.shop.svc.cluster.local.", 1),
    ("headless of 1,000, SRV, truncated", "crowd.shop.svc.cluster.local.", 33),
    ("PTR of a ClusterIP", "7.0.96.10.in-addr.arpa.", 12),
    ("pod, A", "10-1-0-7.shop.pod.cluster.local.", 1),
]

# The endpoints of each headless service, in slices of so many, as the controller of a cluster makes them.
HEADLESS = {"db": 10, "crowd": 1000}
SLICE = 100

CLIENT, LOCAL = ("10.244.0.7", 41234), ("10.96.0.10", 53)


def cluster_events() -> list[Event]:
    """A namespace with a hundred ClusterIP services, and headless ones of ten and of a thousand endpoints."""
    events: list[Event] = [Put(Namespace(Metadata("shop")))]
    for number in range(100):
        spec = ServiceSpec("ClusterIP", f"10.96.0.{number}", ports=[ServicePort(80, "http", "TCP")])
        events.append(Put(Service(Metadata(f"web-{number}", "shop"), spec)))
    for subnet, (name, count) in enumerate(HEADLESS.items()):
        spec = ServiceSpec("ClusterIP", "None", ports=[ServicePort(5432, "sql")])
        events.append(Put(Service(Metadata(name, "shop"), spec)))
        endpoints = [
            Endpoint([f"10.{subnet + 1}.{number >> 8}.{number & 255}"], hostname=f"{name}-{number}")
            for number in range(count)
        ]
        for first in range(0, count, SLICE):
            metadata = Metadata(f"{name}-{first}", "shop", labels={"kubernetes.io/service-name": name})
            some = endpoints[first : first + SLICE]
            events.append(Put(EndpointSlice(metadata, "IPv4", some, [EndpointPort("sql", "TCP", 5432)])))
    events.append(Put(Pod(Metadata("web-7-x", "shop"), status=PodStatus("Running", "10.1.0.7"))))
    events.append(Synced())
    return events


def responder() -> Responder:
    """The whole chain of a kubeadm Corefile over that cluster."""
    process = Process(Metrics())
    configuration = app.build(corefile.parse(COREFILE, "Corefile"), process)
    for plugin in configuration.plugins:
        if isinstance(plugin, Kubernetes):
            plugin.apply(cluster_events())
    return Responder(configuration.listeners[0].sites, process, process.metrics)


def query(name: str, rtype: int) -> bytes:
    """A query as a pod's resolver makes it: RD, no EDNS; and a byte behind it, so that its reply is not kept."""
    question = names.from_text(name) + struct.pack("!HH", rtype, 1)
    return struct.pack("!HHHHHH", 4711, 0x0100, 1, 0, 0, 0) + question + b"\x00"


def with_dnslib(packet: bytes) -> bytes:
    """The yardstick: read the query and make a reply of one record, with the library."""
    record = dnslib.DNSRecord.parse(packet)
    reply = record.reply()
    reply.add_answer(dnslib.RR(record.q.qname, record.q.qtype, ttl=30, rdata=dnslib.A("10.96.0.7")))
    return bytes(reply.pack())


def best_microseconds(call: Callable[[], object], rounds: int, calls: int) -> float:
    """The best of some rounds: what the code costs when nothing disturbs it."""
    best = float("inf")
    for _ in range(rounds):
        started = time.perf_counter()
        for _ in range(calls):
            call()
        best = min(best, time.perf_counter() - started)
    return best / calls * 1e6


def measure(rounds: int = 15, calls: int = 2000) -> dict[str, float]:
    """Microseconds for each kind of question, and for `dnslib`. The rounds of all are taken in turn."""
    respond = responder().respond
    packets = {what: query(name, rtype) for what, name, rtype in QUESTIONS}
    first = packets["ClusterIP, A"]
    found = dict.fromkeys(["dnslib", *packets], float("inf"))
    gc.collect()
    for _ in range(rounds):
        found["dnslib"] = min(found["dnslib"], best_microseconds(lambda: with_dnslib(first), 1, calls // 10))
        for what, packet in packets.items():
            once = best_microseconds(lambda packet=packet: respond(packet, "udp", CLIENT, LOCAL, print), 1, calls)
            found[what] = min(found[what], once)
    return found


def profile(calls: int = 50_000) -> None:
    """The profile of the first kind of question."""
    respond, packet = responder().respond, query(*QUESTIONS[0][1:])
    profiler = cProfile.Profile()
    profiler.enable()
    for _ in range(calls):
        respond(packet, "udp", CLIENT, LOCAL, print)
    profiler.disable()
    pstats.Stats(profiler).sort_stats("tottime").print_stats(25)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", action="store_true", help="a profile of the first kind of question")
    parser.add_argument("--rounds", type=int, default=15, help="rounds of which the best counts")
    arguments = parser.parse_args()
    if arguments.profile:
        profile()
        return
    found = measure(arguments.rounds)
    print(f"{'':34} {'µs':>7} {'of dnslib':>10}")
    for what, microseconds in found.items():
        print(f"{what:34} {microseconds:7.2f} {microseconds / found['dnslib']:10.3f}")


if __name__ == "__main__":
    main()
