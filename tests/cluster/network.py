"""A node and the pods on it, as networks of a test's own with nothing outside of them.

Each is a network and a mount namespace that one process holds; the kernel ends that process when the tests end, in
whatever way, and takes the namespaces with it. So there are no names, and nothing can be left over.

A pod is joined to its node as the CNI plugin `ptp` does it, by a veth pair of its own, and the node routes between
pods. Over a bridge a pod's reply to its neighbour would miss the node's rules, which alone know whom it must come from.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from tests import needs
from tests.cluster.control_plane import NODE_ADDRESS, Component

# The node's end of every pod's veth pair.
GATEWAY = "10.244.0.1"
# As setns(2) has it.
CLONE_NEWNET = 0x40000000
COMMAND_SECONDS = 60

HOLD = "echo held; exec sleep infinity"

# The address lies on lo: any of a node's addresses answers on every one of its links.
NODE = """\
set -eu
ip link set lo up
ip addr add "$1/32" dev lo
echo 1 >/proc/sys/net/ipv4/ip_forward
echo 1 >/proc/sys/net/ipv6/conf/all/forwarding
"""

# On the node. The router of IPv6 has the same link-local address on every link, as GATEWAY is on every link.
LINK = """\
set -eu
ip link add "$1" type veth peer name eth0 netns "$2"
ip link set "$1" up
ip addr add "$3/32" dev "$1"
ip -6 addr add fe80::1/64 dev "$1" nodad
ip route add "$4/32" dev "$1"
ip -6 route add "$5/128" dev "$1"
"""

# In the pod. /run is emptied: through it glibc would ask the machine's own nscd or systemd-resolved.
# /etc/resolv.conf may be a link into /run, that is why its target is made there.
POD = """\
set -eu
ip link set lo up
ip link set eth0 up
ip addr add "$2/32" dev eth0
ip -6 addr add "$3/128" dev eth0 nodad
ip route add "$1" dev eth0
ip route add default via "$1"
ip -6 route add default via fe80::1 dev eth0
mount -t tmpfs none /run
for file in hosts nsswitch.conf resolv.conf; do
    target=$(readlink -m "/etc/$file")
    mkdir -p "$(dirname "$target")"
    [ -e "$target" ] || : >"$target"
    mount --bind "$4/$file" "$target"
done
account=$(readlink -m /var/run/secrets/kubernetes.io/serviceaccount)
mkdir -p "$account"
mount --bind "$4/serviceaccount" "$account"
"""


class Space:
    """A network and a mount namespace, and the processes in them. `folder` is for their files."""

    def __init__(self, folder: Path) -> None:
        needs.root()
        needs.command("ip", "nsenter", "unshare", "setpriv")
        folder.mkdir(parents=True)
        self.folder = folder
        self.commands: list[Component] = []
        line = ["setpriv", "--pdeathsig", "KILL", "unshare", "--net", "--mount", "sh", "-c", HOLD]
        self._holder = subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=environment())
        assert self._holder.stdout is not None
        with self._holder.stdout as said:
            assert said.readline() == b"held\n", "no namespace could be made"

    @property
    def pid(self) -> int:
        """Of the process that holds the namespaces."""
        return self._holder.pid

    def line(self, *command: str, **variables: str) -> list[str]:
        """The command line that runs a command in here, from wherever it is started."""
        given = [f"{name}={value}" for name, value in (environment() | variables).items()]
        enter = ["nsenter", f"--target={self.pid}", "--net", "--mount"]
        return [*enter, "env", "--ignore-environment", *given, *command]

    def run(self, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a command that ends by itself."""
        line = self.line(*command, **variables)
        return subprocess.run(
            line, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False
        )

    def set_up(self, script: str, *arguments: str) -> None:
        """Run a script of the shell, which must succeed."""
        done = self.run("sh", "-c", script, "sh", *arguments)
        assert done.returncode == 0, f"{script}{arguments}\n{done.stderr}"

    def start(self, name: str, *command: str, ready: str = "", **variables: str) -> Component:
        """Start a command that ends with the namespace, and wait until it answers 200 at this URL, if one is given."""
        log = self.folder / f"{name}.log"
        component = Component(name, self.line(*command, **variables), log, lambda: not ready or _is_ok(ready))
        self.commands.append(component)
        component.start()
        return component

    def end(self) -> None:
        """Kill all that runs in here. The namespaces go with the last process."""
        for component in self.commands:
            component.kill()
        self._holder.kill()
        self._holder.wait()


class Node(Space):
    """The network of a node, which routes between its pods."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.pods: list[Pod] = []
        # Numbers that no earlier pod had: what was made for one pod is never another's.
        self._last = 1
        try:
            self.set_up(NODE, NODE_ADDRESS)
        except BaseException:
            self.end()
            raise

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Inside the block this thread, and what it starts, is in the node's network."""
        with Path("/proc/thread-self/ns/net").open("rb") as outside, Path(f"/proc/{self.pid}/ns/net").open("rb") as net:
            _enter(net.fileno())
            try:
                yield
            finally:
                _enter(outside.fileno())

    def pod(self, name: str, resolv_conf: str, address: str = "") -> Pod:
        """Make the network of a pod, at the next address of the node's unless given."""
        self._last += 1
        number = self._last
        addresses = [address or f"10.244.0.{number}", f"fd00:10:244::{number:x}"]
        pod = Pod(self.folder / f"{number}-{name}", name, addresses)
        self.pods.append(pod)
        self.set_up(LINK, f"pod{number}", str(pod.pid), GATEWAY, *addresses)
        pod.join(resolv_conf)
        return pod

    def end(self) -> None:
        for pod in self.pods:
            pod.end()
        super().end()


class Pod(Space):
    """The network of a pod, and what a kubelet mounts into it: resolv.conf, hosts and the ServiceAccount's folder."""

    def __init__(self, folder: Path, name: str, addresses: list[str]) -> None:
        super().__init__(folder)
        self.name = name
        self.addresses = addresses
        self.account = folder / "serviceaccount"

    def join(self, resolv_conf: str) -> None:
        """Give it its addresses and its files, once it has its link."""
        self.account.mkdir()
        (self.folder / "resolv.conf").write_text(resolv_conf)
        (self.folder / "nsswitch.conf").write_text("hosts: files dns\n")
        (self.folder / "hosts").write_text(f"127.0.0.1 localhost\n::1 localhost\n{self.addresses[0]} {self.name}\n")
        self.set_up(POD, GATEWAY, *self.addresses, str(self.folder))


def environment() -> dict[str, str]:
    """All that a command in a namespace is given: no proxy, no settings of whoever runs the tests."""
    return {"PATH": needs.SEARCHED, "LC_ALL": "C"}


def _enter(net: int) -> None:
    # os.setns came with Python 3.12.
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(net, CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _is_ok(url: str) -> bool:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(url, timeout=5) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False
