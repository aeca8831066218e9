"""How long an answer waits while a large inventory is read anew and every service of it changes.

`python bench/reload.py` starts `kdns serve` with 10,000 Services and 10,000 Pods, asks one question after the other,
and meanwhile changes the port of each service. It prints the longest waits at rest and meanwhile, in milliseconds.
"""

from __future__ import annotations

import argparse
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from kdns.wire import names

PATIENCE_SECONDS = 60.0
QUIET_SECONDS = 2.0
# After the first changed answer the rest of the change is taken in.
AFTERMATH_SECONDS = 3.0


def manifests(count: int, port: int) -> str:
    """As many Services with a Pod each, all of them with this port."""
    documents = []
    for number in range(count):
        name, address = f"web-{number}", f"10.{16 + (number >> 16)}.{number >> 8 & 255}.{number & 255}"
        documents.append(
            f"apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\n  namespace: shop\nspec:\n"
            f"  selector:\n    app: {name}\n  ports:\n    - name: http\n      port: {port}\n---\n"
            f"apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  namespace: shop\n  labels:\n    app: {name}\n"
            f"status:\n  podIP: {address}\n"
        )
    return "---\n".join(documents)


def question(name: str, rtype: int) -> bytes:
    """A query as it stands in a packet."""
    header = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00"
    return header + names.from_text(name) + rtype.to_bytes(2, "big") + b"\x00\x01"


def waits(sock: socket.socket, packet: bytes, until: float, changed: bytes | None = None) -> tuple[list[float], bytes]:
    """Ask until then, or for a while after the answer is another; how long each answer took in ms, and the last."""
    taken, reply = [], b""
    while time.perf_counter() < until:
        began = time.perf_counter()
        sock.send(packet)
        reply = sock.recv(4096)
        taken.append((time.perf_counter() - began) * 1000)
        if changed is not None and reply != changed:
            changed, until = None, time.perf_counter() + AFTERMATH_SECONDS
    return taken, reply


def shown(what: str, taken: list[float]) -> str:
    longest = " ".join(f"{each:.1f}" for each in sorted(taken, reverse=True)[:5])
    return f"{what}: {len(taken)} answers, the longest waits {longest} ms, over 20 ms: {sum(t > 20 for t in taken)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--services", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, socket.socket(type=socket.SOCK_DGRAM) as sock:
        file = Path(folder, "huge.yaml")
        file.write_text(manifests(given.services, 80))
        with socket.socket(type=socket.SOCK_DGRAM) as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [str(Path(sys.executable).with_name("kdns")), "serve", "-i", folder, "-l", f"127.0.0.1:{port}"]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
            assert server.stderr is not None
            for line in server.stderr:
                if "listening" in line:
                    break
            try:
                sock.connect(("127.0.0.1", port))
                sock.settimeout(PATIENCE_SECONDS)
                # The last of all to be taken in, so that its change is the end of it.
                packet = question(f"web-{given.services // 2}.shop.svc.cluster.local.", 33)
                for number in range(given.rounds):
                    taken, reply = waits(sock, packet, time.perf_counter() + QUIET_SECONDS)
                    print(shown("at rest", taken))
                    other = Path(folder, ".next")
                    other.write_text(manifests(given.services, 81 + number))
                    other.rename(file)
                    taken, _ = waits(sock, packet, time.perf_counter() + PATIENCE_SECONDS, reply)
                    print(shown("while it changes", taken))
            finally:
                server.terminate()


if __name__ == "__main__":
    main()
