"""What a large cluster costs: memory, the time to the first answer, the time until a change shows, waits under a burst.

`python -m bench.scale` (as root, after `make control-plane`) fills a real control plane once, keeps that outside of the
tree, and starts `coredns` on it as a pod would start: with a ServiceAccount's folder and two variables.
`--server PATH` measures another program of the same flags, such as CoreDNS itself.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import shutil
import signal
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
from typing import Any

from bench import populated
from bench.populated import Place, Size
from kdns.wire import names
from tests.cluster.api import Api
from tests.cluster.control_plane import ADMIN_TOKEN, ControlPlane
from tests.started import free_port

COREFILE = """\
.:{port} {{
    bind 127.0.0.1
    errors
    health 127.0.0.1:{health} {{
        lameduck 5s
    }}
    ready 127.0.0.1:{ready}
    kubernetes cluster.local in-addr.arpa ip6.arpa {{
        pods {pods}
        fallthrough in-addr.arpa ip6.arpa
        ttl 30
        {options}
    }}
    prometheus 127.0.0.1:{metrics}
    forward . 127.0.0.1:9 {{
        max_concurrent 1000
    }}
    loadbalance
}}
"""
# A /var/run of its own, with nothing in it but the folder that a kubelet would have mounted.
MOUNTS = """
mount -t tmpfs -o mode=755 none "$(readlink -f /var/run)"
mkdir -p /var/run/secrets/kubernetes.io/serviceaccount
mount --bind "$1" /var/run/secrets/kubernetes.io/serviceaccount
echo ready
exec sleep infinity
"""
A, PTR = 1, 12
POLL_SECONDS = 0.005
SETTLE_SECONDS = 10.0
PATIENCE_SECONDS = 60.0
# A watch that goes on in a past without events is told of by the next audit only.
AUDIT_SECONDS = 400.0
BURST_SECONDS = 10.0
WRITERS, THREADS = 2, 4
# Changes of one transaction where they go straight to etcd.
PUTS = 10
# Of a burst, so many are looked at until all are right.
LAST = 200


class Asker:
    """A client of one DNS server, that asks one question at a time."""

    def __init__(self, port: int) -> None:
        self._sock = socket.socket(type=socket.SOCK_DGRAM)
        self._sock.connect(("127.0.0.1", port))
        self._number = 0

    def close(self) -> None:
        self._sock.close()

    def ask(self, name: str, rtype: int = A, seconds: float = 2.0) -> bytes:
        """The reply, or nothing where none comes."""
        self._number = (self._number + 1) & 0xFFFF
        header = struct.pack("!HHHHHH", self._number, 0x0100, 1, 0, 0, 0)
        self._sock.settimeout(seconds)
        try:
            self._sock.send(header + names.from_text(name) + struct.pack("!HH", rtype, 1))
            while True:
                reply = self._sock.recv(65535)
                if reply[:2] == header[:2]:
                    return reply
        except OSError:
            return b""


def holds(reply: bytes, address: str) -> bool:
    """Whether a reply is a good one and has this address."""
    return len(reply) > 12 and reply[3] & 15 == 0 and socket.inet_aton(address) in reply


class Server:
    """A server of DNS in a pod's place, for as long as the block lasts."""

    def __init__(self, pod: Pod, program: str, pods: str = "insecure", options: str = "") -> None:
        self.port, health, ready, self._metrics = (free_port() for _ in range(4))
        self._corefile = pod.folder / f"Corefile-{self.port}"
        self._corefile.write_text(
            COREFILE.format(
                port=self.port, health=health, ready=ready, metrics=self._metrics, pods=pods, options=options
            )
        )
        self._said = pod.folder / f"said-{self.port}"
        line = [*pod.enter, program, "-conf", str(self._corefile)]
        with self._said.open("wb") as out:
            self.began = time.perf_counter()
            self.process = subprocess.Popen(line, stdout=out, stderr=out, env={**os.environ, **pod.variables})
        self.pid = self.process.pid
        self.asker = Asker(self.port)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.asker.close()
        self.process.kill()
        self.process.wait()

    def first(self, name: str, address: str) -> tuple[float, float]:
        """Seconds from the start to the first right answer, and the CPU seconds used until then."""
        while not holds(self.asker.ask(name, seconds=POLL_SECONDS), address):
            taken = time.perf_counter() - self.began
            assert self.process.poll() is None, self.said
            assert taken < PATIENCE_SECONDS, self.said
            time.sleep(POLL_SECONDS)
        return time.perf_counter() - self.began, self.cpu_seconds()

    @property
    def said(self) -> str:
        return self._said.read_text(errors="replace")

    def cpu_seconds(self) -> float:
        tasks = Path(f"/proc/{self.pid}/task").glob("*/schedstat")
        return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9

    def memory(self, field: str) -> float:
        """A line of /proc/PID/status, in MB."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) / 1024
        raise LookupError(field)

    def forget_peak(self) -> None:
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    def metric(self, name: str) -> float:
        """The sum of a metric's samples."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self._metrics}/metrics", timeout=10) as reply:
            lines = reply.read().decode().splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((f"{name} ", f"{name}{{")))


class Pod:
    """A mount namespace with the ServiceAccount of deploy/, and what else a pod is given."""

    def __init__(self, plane: ControlPlane, folder: Path) -> None:
        self.folder = folder
        account = folder / "serviceaccount"
        self.variables = plane.service_account_folder(account, "coredns", "kube-system")
        line = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--propagation=private", "sh", "-euc", MOUNTS]
        self._holder = subprocess.Popen([*line, "sh", str(account)], stdout=subprocess.PIPE)
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == b"ready\n"
        # Entered, not made, at each start: what is timed is the server.
        self.enter = ["setpriv", "--pdeathsig", "KILL", "nsenter", f"--mount=/proc/{self._holder.pid}/ns/mnt"]

    def close(self) -> None:
        self._holder.kill()
        self._holder.wait()


class Bench:
    """The measurements. Each prints what it found."""

    def __init__(self, plane: ControlPlane, pod: Pod, size: Size, given: argparse.Namespace) -> None:
        self.plane = plane
        self.pod = pod
        self.size = size
        self.given = given
        places = populated.places(size)
        self.headless = [place for place in places if populated.is_headless(place)]
        self.sliced = [place for place in places if not populated.is_external(place, size)]
        self.ordinary = next(place for place in self.sliced if not populated.is_headless(place))
        self.address = plane.api.get("Service", self.ordinary.name, self.ordinary.namespace)["spec"]["clusterIP"]

    def start(self) -> None:
        """From exec to the first right answer, and what of it is the program alone."""
        program = self.given.server
        alone = [_cpu_of([*self.pod.enter, program, "-plugins"]) for _ in range(self.given.rounds)]
        print(f"start: the program alone (-plugins): {_spread([each[0] for each in alone])} s, ", end="")
        print(f"CPU {_spread([each[1] for each in alone])} s")
        walls, cpus, syncs = [], [], []
        for _ in range(self.given.rounds):
            with self._serving() as server:
                wall, cpu = server.first(self.ordinary.fqdn, self.address)
                walls.append(wall)
                cpus.append(cpu)
                with contextlib.suppress(OSError):
                    syncs.append(server.metric("kdns_kubernetes_sync_seconds"))
        print(f"start: first right answer after {_spread(walls)} s, CPU {_spread(cpus)} s, ", end="")
        print(f"of that from the first request to the last object {_spread(syncs)} s", flush=True)

    def memory(self) -> None:
        """Resident after the start, and through a list that is read again."""
        with self._serving() as server:
            server.first(self.ordinary.fqdn, self.address)
            time.sleep(SETTLE_SECONDS)
            self._show_memory(server, "steady")
            for number in range(self.given.relists):
                server.forget_peak()
                before = server.metric("kdns_kubernetes_relists_total")
                self._lose_history()
                self._wait(server, lambda: self._shows_change(server))
                time.sleep(SETTLE_SECONDS)
                relists = server.metric("kdns_kubernetes_relists_total") - before
                self._show_memory(server, f"relist {number + 1} ({relists:.0f} kinds)")

    def _show_memory(self, server: Server, when: str) -> None:
        found = {each: server.memory(each) for each in ("VmRSS", "RssAnon", "RssFile", "VmHWM")}
        shown = ", ".join(f"{name} {megabytes:.0f}" for name, megabytes in found.items())
        print(f"memory: {when}: {shown} MB", flush=True)

    def _lose_history(self) -> None:
        """The place that watches have reached is forgotten: the API server is new and remembers nothing before it."""
        self.plane.api_server.kill()
        populated.put_into_etcd(self.plane._etcd_url, {"/kdns/bench": str(time.time()).encode()})
        self.plane.api_server.start(wait=False)
        self.plane.api_server.wait_ready(populated.START_SECONDS)
        self._change()

    def _change(self) -> None:
        """Change something that `_shows_change` then looks for."""
        self._changed = f"10.250.{time.time_ns() >> 30 & 255}.{time.time_ns() >> 20 & 255}"
        path, body = _changed_slice(self.headless[0], self._changed)
        self.plane.api.raw("PUT", path, body)

    def _shows_change(self, server: Server) -> bool:
        return holds(server.asker.ask(self.headless[0].fqdn), self._changed)

    def snapshot(self) -> None:
        """A start from the last known state while the API doesn't answer, and then the API's own."""
        file = self.pod.folder / "snapshot.json"
        options = f"snapshot {file} 1s"
        with self._serving(options) as server:
            server.first(self.ordinary.fqdn, self.address)
            self._wait(server, file.exists)
            time.sleep(SETTLE_SECONDS)
            self._show_memory(server, f"with a snapshot of {file.stat().st_size / 1e6:.0f} MB")
        # Its kernel takes in connections; nobody says a word.
        self.plane.api_server.stop()
        try:
            with self._serving(options) as server:
                wall, cpu = server.first(self.ordinary.fqdn, self.address)
                time.sleep(SETTLE_SECONDS)
                print(f"snapshot: first right answer after {wall:.2f} s, CPU {cpu:.2f} s, without the API")
                self._show_memory(server, "from the snapshot")
                server.forget_peak()
                self.plane.api_server.cont()
                self._wait(server, lambda: server.metric("kdns_kubernetes_synced") == 1)
                time.sleep(SETTLE_SECONDS)
                self._show_memory(server, "once the API was read")
        finally:
            self.plane.api_server.cont()

    def setback(self) -> None:
        """etcd is restored from a backup, and all that was seen since then has never been."""
        with self._serving() as server:
            server.first(self.ordinary.fqdn, self.address)
            # What the API server itself writes at its start must not make up for it.
            for _ in range(2000):
                self._change()
            self._wait(server, lambda: self._shows_change(server))
            time.sleep(SETTLE_SECONDS)
            server.forget_peak()
            self.plane.api_server.kill()
            self.plane.etcd.terminate()
            shutil.rmtree(self.plane.folder / "etcd")
            shutil.copytree(self.given.cache / self.size.folder, self.plane.folder / "etcd")
            self.plane.etcd.start()
            self.plane.api_server.start(wait=False)
            self.plane.api_server.wait_ready(populated.START_SECONDS)
            began = time.monotonic()
            # What was changed since the backup has never been.
            self._wait(server, lambda: not self._shows_change(server), AUDIT_SECONDS)
            print(f"setback: all is as it was {time.monotonic() - began:.0f} s after the API came back")
            time.sleep(SETTLE_SECONDS)
            relists = server.metric("kdns_kubernetes_relists_total")
            self._show_memory(server, f"the slices' history set back ({relists:.0f} lists)")

    def _wait(self, server: Server, check: Callable[[], bool], seconds: float = PATIENCE_SECONDS) -> None:
        deadline = time.monotonic() + seconds
        while not check():
            assert time.monotonic() < deadline, server.said
            time.sleep(0.05)

    def change(self) -> None:
        """From the acknowledgement of a change to the answer that shows it."""
        with self._serving() as server:
            server.first(self.ordinary.fqdn, self.address)
            time.sleep(SETTLE_SECONDS / 2)
            waits, rtts = [], []
            for number in range(self.given.changes):
                place = self.headless[number % len(self.headless)]
                address = f"10.251.{number >> 8}.{number & 255}"
                path, body = _changed_slice(place, address)
                server.asker.ask(place.fqdn)
                began = time.perf_counter()
                server.asker.ask(place.fqdn)
                rtts.append(time.perf_counter() - began)
                self.plane.api.raw("PUT", path, body)
                began = time.perf_counter()
                while not holds(server.asker.ask(place.fqdn), address):
                    assert time.perf_counter() - began < PATIENCE_SECONDS, server.said
                waits.append(time.perf_counter() - began)
                time.sleep(0.01)
            print(f"change: {len(waits)} changes visible after {_percentiles(waits)} ms; ", end="")
            print(f"a question takes {_percentiles(rtts)} ms", flush=True)

    def burst(self) -> None:
        """Changes as fast as they come, while somebody asks."""
        with self._serving() as server, _echo() as echo:
            server.first(self.ordinary.fqdn, self.address)
            time.sleep(SETTLE_SECONDS / 2)
            server.forget_peak()
            cpu = server.cpu_seconds()
            with multiprocessing.Pool(WRITERS) as pool:
                parts = [self.sliced[number::WRITERS] for number in range(WRITERS)]
                rate = self.given.rate / WRITERS
                target = (self.plane.server, str(self.plane.ca), self.plane._etcd_url if self.given.past_api else "")
                writing = pool.starmap_async(write_for_a_while, [(*target, part, rate) for part in parts])
                waits, floor = [], []
                while not writing.ready():
                    waits.append(_timed(lambda: server.asker.ask(self.ordinary.fqdn)))
                    floor.append(_timed(lambda: echo.ask(self.ordinary.fqdn)))
                    time.sleep(0.001)
                written = writing.get()
            ended = max(each[1] for each in written)
            last = {name: address for each in written for name, address in each[2].items()}
            for name, address in last.items():
                while not holds(server.asker.ask(f"{address.replace('.', '-')}.{name}"), address):
                    assert time.perf_counter() - ended < PATIENCE_SECONDS, (name, address, server.said)
            print(
                f"burst: {sum(each[0] for each in written) / BURST_SECONDS:.0f} changes a second, "
                f"CPU {(server.cpu_seconds() - cpu) / BURST_SECONDS * 100:.0f} %; "
                f"waits {_percentiles(waits)} ms, longest {_longest(waits)}; "
                f"an echo's {_percentiles(floor)} ms, longest {_longest(floor)}; "
                f"all is right {(time.perf_counter() - ended) * 1000:.0f} ms after the last acknowledgement; "
                f"VmHWM {server.memory('VmHWM'):.0f} MB",
                flush=True,
            )

    def _serving(self, options: str = "") -> Server:
        return Server(self.pod, self.given.server, self.given.pods_option, options)


def write_for_a_while(
    server: str, ca: str, etcd_url: str, places: Sequence[Place], rate: float
) -> tuple[int, float, dict[str, str]]:
    """Change slices at a rate, each by a request, or straight in etcd.

    Returns how many, when the last one was acknowledged, and the address that each service was given last.
    """
    count = int(rate * BURST_SECONDS)
    changes = [(places[each % len(places)], f"10.252.{each >> 8 & 255}.{each & 255}") for each in range(count)]
    at_once = PUTS if etcd_url else 1
    batches = [
        [(place.fqdn, address, *_changed_slice(place, address)) for place, address in changes[start : start + at_once]]
        for start in range(0, count, at_once)
    ]
    began = time.perf_counter()
    done: list[dict[str, str]] = []
    lock = threading.Lock()
    waiting = iter(enumerate(batches))

    def write() -> None:
        with contextlib.closing(Api(server, Path(ca), ADMIN_TOKEN)) as api:
            while time.perf_counter() - began < BURST_SECONDS:
                with lock:
                    number, batch = next(waiting, (0, []))
                if not batch:
                    return
                time.sleep(max(0.0, began + number * at_once / rate - time.perf_counter()))
                if etcd_url:
                    populated.put_into_etcd(etcd_url, {populated.etcd_key(path): body for _, _, path, body in batch})
                else:
                    api.raw("PUT", batch[0][2], batch[0][3])
                with lock:
                    done.append({fqdn: address for fqdn, address, _, _ in batch})

    threads = [threading.Thread(target=write) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    last = {fqdn: address for each in done[-LAST:] for fqdn, address in each.items()}
    return sum(map(len, done)), time.perf_counter(), last


def _changed_slice(place: Place, address: str) -> tuple[str, bytes]:
    """A slice whose first endpoint moved to this address."""
    changed = populated.slice_of(place, "00000000-0000-0000-0000-000000000000")
    changed["endpoints"][0]["addresses"] = [address]
    return populated.encoded("EndpointSlice", changed)


@contextlib.contextmanager
def _echo() -> Iterator[Asker]:
    """A server that sends back what it is sent: what a wait costs on this machine now, whoever answers."""
    ports: multiprocessing.Queue[int] = multiprocessing.Queue()
    process = multiprocessing.Process(target=_send_back, args=(ports,), daemon=True)
    process.start()
    asker = Asker(ports.get())
    try:
        yield asker
    finally:
        asker.close()
        process.kill()
        process.join()


def _send_back(ports: multiprocessing.Queue[int]) -> None:
    sock = socket.socket(type=socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    ports.put(sock.getsockname()[1])
    while True:
        data, source = sock.recvfrom(65535)
        sock.sendto(data, source)


def _cpu_of(line: list[str]) -> tuple[float, float]:
    """Wall and CPU seconds of a command."""
    before, began = os.times(), time.perf_counter()
    subprocess.run(line, stdout=subprocess.DEVNULL, check=True)
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return time.perf_counter() - began, used


def _timed(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "unknown"
    return f"{statistics.median(values):.2f} ({min(values):.2f}–{max(values):.2f})"


def _percentiles(seconds: Sequence[float]) -> str:
    ordered = sorted(each * 1000 for each in seconds)
    return f"{statistics.median(ordered):.2f} (p99 {ordered[int(len(ordered) * 0.99)]:.2f})"


def _longest(seconds: Iterable[float]) -> str:
    return " ".join(f"{each * 1000:.1f}" for each in sorted(seconds, reverse=True)[:5])


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kdns" / "scale"


def main() -> None:
    measures = ("start", "memory", "snapshot", "change", "burst", "setback")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measures", nargs="*", default=list(measures), metavar="|".join(measures))
    parser.add_argument("--server", default=str(Path(sys.executable).with_name("coredns")))
    parser.add_argument("--cache", type=Path, default=cache_folder(), help="where what etcd holds is kept")
    parser.add_argument("--namespaces", type=int, default=Size().namespaces)
    parser.add_argument("--services", type=int, default=Size().services)
    parser.add_argument("--pods", type=int, default=0, help="so many pods, with `pods verified`")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--relists", type=int, default=2)
    parser.add_argument("--changes", type=int, default=500)
    parser.add_argument("--rate", type=int, default=1000, help="changes a second of a burst")
    parser.add_argument("--past-api", action="store_true", help="a burst's changes go to etcd, as other servers' would")
    given = parser.parse_args()
    given.pods_option = "verified" if given.pods else "insecure"
    size = Size(given.namespaces, given.services, given.pods)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with populated.running(given.cache, size) as plane, tempfile.TemporaryDirectory() as folder:
        pod = Pod(plane, Path(folder))
        try:
            bench = Bench(plane, pod, size, given)
            for measure in given.measures:
                getattr(bench, measure)()
        finally:
            pod.close()


if __name__ == "__main__":
    main()
