"""The servers that are compared, each a process with the same records, for as long as a block lasts."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from bench import works
from kdns.wire import names

ROOT = Path(__file__).parent.parent
START_SECONDS = 120.0
POLL_SECONDS = 0.01
# Debian's daemons live where the PATH of a plain user doesn't lead.
DAEMONS = "/usr/sbin:/usr/local/sbin"

# The kdns that finds short names, beside the one that is compared with others.
SEARCHING = "kdns, search"

# kubeadm's, as far as it concerns names of the cluster; kdns and CoreDNS differ in one line, where the objects are.
COREFILE = """\
.:{port} {{
    bind {address}
    errors
    {more}
    kubernetes cluster.local in-addr.arpa ip6.arpa {{
        {source}
        pods insecure
        ttl 5
    }}
    prometheus 127.0.0.1:{metrics}
    loadbalance
}}
"""
KNOT = """\
server:
    rundir: {folder}
    listen: {address}@{port}
    udp-workers: 1
    tcp-workers: 1
    background-workers: 1
database:
    storage: {folder}
zone:
  - domain: cluster.local
    storage: {folder}
    file: zone
    zonefile-sync: -1
    journal-content: none
"""


class Server(NamedTuple):
    """A server that answers at a port of 127.0.0.1; what it took from its start to the first answer, in seconds."""

    name: str
    port: int
    pid: int
    metrics: int = 0
    first_seconds: float = 0.0
    first_cpu_seconds: float = 0.0

    def cpu_seconds(self) -> float:
        """The CPU time of all its threads so far: what /proc/PID/stat has as utime + stime, but in nanoseconds."""
        return _cpu_seconds(self.pid)

    def megabytes(self, field: str) -> float:
        """A line of /proc/PID/status: VmRSS is what is resident, VmHWM the most that ever was."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) / 1024
        raise LookupError(field)


class Place(NamedTuple):
    """Where the servers' files are: the manifests, the zone, and what each writes. `address` is what they bind."""

    folder: Path
    address: str = "127.0.0.1"

    @property
    def manifests(self) -> Path:
        return self.folder / "cluster.json"

    def of(self, name: str) -> Path:
        # A Corefile parts words at spaces.
        found = self.folder / name.replace("/", "-").replace(", ", "-")
        found.mkdir(exist_ok=True)
        return found


@contextlib.contextmanager
def floor(place: Place) -> Iterator[Server]:
    """The echo program, compiled for the occasion."""
    folder = place.of("floor")
    subprocess.run(["cc", "-O2", "-o", folder / "echo", ROOT / "bench/echo.c"], check=True)
    port = free_port()
    with _running("floor", [str(folder / "echo"), str(port)], port, folder) as server:
        yield server


@contextlib.contextmanager
def knot(place: Place) -> Iterator[Server]:
    """Knot DNS with one thread, and every record in a zone file."""
    folder, port = place.of("knot"), free_port()
    line = [sys.executable, "-c", "from kdns.cli import main; main()", "dump", "--format", "zone"]
    with (folder / "zone").open("wb") as out:
        subprocess.run([*line, "--inventory", str(place.manifests)], check=True, stdout=out, cwd=ROOT)
    file = folder / "knot.conf"
    file.write_text(KNOT.format(folder=folder, port=port, address=place.address))
    with _running("Knot", [str(found_knot()), "--config", str(file)], port, folder) as server:
        yield server


@contextlib.contextmanager
def api(place: Place) -> Iterator[int]:
    """A stand-in for the API server, and its port."""
    port = free_port()
    with _process([sys.executable, "-m", "bench.api", str(port), str(place.manifests)], place.of("api")):
        deadline = time.monotonic() + START_SECONDS
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port)).close()
                break
            if time.monotonic() > deadline:
                raise RuntimeError(f"no API server:\n{(place.of('api') / 'said').read_text()}")
            time.sleep(0.05)
        yield port


@contextlib.contextmanager
def coredns(place: Place, program: str, api_port: int) -> Iterator[Server]:
    """CoreDNS without `cache`, so always fresh as kdns is."""
    folder, port, metrics = place.of("coredns"), free_port(), free_port()
    source = f"endpoint http://127.0.0.1:{api_port}"
    line = [program, "-conf", str(_corefile(folder, place.address, port, metrics, source))]
    with _running("CoreDNS", line, port, folder, metrics=metrics) as server:
        yield server


@contextlib.contextmanager
def kdns(place: Place, name: str = "kdns", tree: Path = ROOT, api_port: int = 0) -> Iterator[Server]:
    """kdns as `coredns -conf` starts it, from this tree or from another one; without an API server on the manifests."""
    folder, port, metrics = place.of(name), free_port(), free_port()
    source = f"endpoint http://127.0.0.1:{api_port}" if api_port else f"inventory {place.manifests}"
    file = _corefile(folder, place.address, port, metrics, source)
    line = [sys.executable, "-c", "from kdns.coredns import main; main()", "-conf", str(file)]
    with _running(name, line, port, folder, tree, metrics) as server:
        yield server


@contextlib.contextmanager
def searching(place: Place) -> Iterator[Server]:
    """kdns with what finds short names, and a pod of the first namespace at the address that dnsperf has."""
    folder, port, metrics = place.of(SEARCHING), free_port(), free_port()
    pod = folder / "pod.json"
    pod.write_text(json.dumps(works.pod_object(0, "asking", "127.0.0.1")))
    source = f"inventory {place.manifests} {pod}"
    more = "search\n    autopath @kubernetes"
    file = _corefile(folder, place.address, port, metrics, source, more)
    line = [sys.executable, "-c", "from kdns.coredns import main; main()", "-conf", str(file)]
    with _running(SEARCHING, line, port, folder, metrics=metrics) as server:
        yield server


@contextlib.contextmanager
def tree_of(revision: str, folder: Path) -> Iterator[Path]:
    """The tree of a revision, checked out for as long as the block lasts; a folder is its own."""
    if Path(revision, "kdns").is_dir():
        yield Path(revision).resolve()
        return
    tree = folder / "base"
    git = ["git", "-C", str(ROOT), "worktree"]
    subprocess.run([*git, "add", "--quiet", "--detach", str(tree), revision], check=True)
    try:
        yield tree
    finally:
        subprocess.run([*git, "remove", "--force", str(tree)], check=True)


@contextlib.contextmanager
def ending() -> Iterator[None]:
    """Let SIGTERM end the servers too."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def found_knot() -> str | None:
    """Debian's knotd, if it is installed."""
    return shutil.which("knotd", path=f"{os.environ.get('PATH', '')}:{DAEMONS}")


def free_port() -> int:
    """A port that nobody has at the moment, neither of UDP nor of TCP."""
    while True:
        with socket.socket() as listener, socket.socket(type=socket.SOCK_DGRAM) as sock:
            listener.bind(("127.0.0.1", 0))
            with contextlib.suppress(OSError):
                sock.bind(listener.getsockname())
                return int(sock.getsockname()[1])


def _corefile(folder: Path, address: str, port: int, metrics: int, source: str, more: str = "") -> Path:
    file = folder / "Corefile"
    # With several servers in one run each has its own port for metrics.
    file.write_text(COREFILE.format(port=port, metrics=metrics, address=address, source=source, more=more))
    return file


@contextlib.contextmanager
def _running(
    name: str, line: Sequence[str], port: int, folder: Path, tree: Path = ROOT, metrics: int = 0
) -> Iterator[Server]:
    """Start a server and wait until it knows a name of the cluster."""
    began = time.monotonic()
    with _process(line, folder, tree) as process:
        while not _answers(port):
            if process.poll() is not None or time.monotonic() > began + START_SECONDS:
                raise RuntimeError(f"{name} doesn't answer:\n{(folder / 'said').read_text()}")
        yield Server(name, port, process.pid, metrics, time.monotonic() - began, _cpu_seconds(process.pid))


def _cpu_seconds(pid: int) -> float:
    # The clock of a process, as clock_getcpuclockid(3) makes its number.
    return time.clock_gettime((~pid << 3) | 2)


@contextlib.contextmanager
def _process(line: Sequence[str], folder: Path, tree: Path = ROOT) -> Iterator[subprocess.Popen[bytes]]:
    with (folder / "said").open("wb") as out:
        # The tree's own package comes before the one that is installed.
        environment = {**os.environ, "PYTHONPATH": str(tree)}
        process = subprocess.Popen(line, cwd=tree, env=environment, stdout=out, stderr=out)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _answers(port: int) -> bool:
    name = names.from_text(f"{works.service(0)}.{works.namespace(0)}.svc.{works.DOMAIN}.")
    query = struct.pack("!HHHHHH", 7, 0x0100, 1, 0, 0, 0) + name + struct.pack("!HH", 1, 1)
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.settimeout(0.2)
        try:
            sock.connect(("127.0.0.1", port))
            sock.send(query)
            reply = sock.recv(4096)
        except OSError:
            time.sleep(POLL_SECONDS)
            return False
    # A response, and no error in it; the floor's is the query itself.
    ready = reply[:2] == query[:2] and reply[2] & 0x80 != 0 and reply[3] & 15 == 0
    if not ready:
        time.sleep(POLL_SECONDS)
    return ready
