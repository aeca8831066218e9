"""A real control plane on loopback: etcd, kube-apiserver, kube-controller-manager, and kube-proxy where a test asks.

No container, no kubelet and no scheduler: a test makes Pods on the Node `node-1` and says itself what their status is;
the real controllers make the EndpointSlices. All of it lives in one temporary folder and ends with its block.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import urllib3

from tests import needs
from tests.cluster import build
from tests.cluster.api import Api, ApiError, Object, eventually
from tests.cluster.authority import Authority, key_pair
from tests.kubeconfig import write_kubeconfig

# The first address of each range is that of the Service `kubernetes`; 10.96.0.10 is kubeadm's for DNS.
SERVICE_RANGES = ("10.96.0.0/16", "fd00:10:96::/112")
KUBERNETES_ADDRESSES = ("10.96.0.1", "fd00:10:96::1")
SERVER_NAMES = ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"]
# An API server doesn't announce a loopback address as an endpoint; this one is nobody's (RFC 5737).
ADVERTISED = "192.0.2.1"
NODE = "node-1"
NODE_ADDRESS = "192.0.2.10"
ADMIN_TOKEN = "kdns-tests-admin"
# Below the ports that the kernel gives to connections: while a component is down nobody takes its port.
PORTS = range(16_384, 32_000)
START_SECONDS = 45.0
TAIL_LINES = 40

# What a cluster does to what DNS reads. The rest would cost time, or clear away Pods that no kubelet reports.
CONTROLLERS = (
    "clusterrole-aggregation-controller",
    "deployment-controller",
    "endpoints-controller",
    "endpointslice-controller",
    "endpointslice-mirroring-controller",
    "garbage-collector-controller",
    "namespace-controller",
    "replicaset-controller",
    "root-ca-certificate-publisher-controller",
    "serviceaccount-controller",
    "statefulset-controller",
)


class Component:
    """One program of the control plane, at the same address through all its lives. Its log goes to one file."""

    def __init__(self, name: str, line: Sequence[str], log: Path, ready: Callable[[], bool]) -> None:
        self.name = name
        self.log = log
        # setpriv: the kernel ends it when we end without coming to our own end.
        self._line = [needs.command("setpriv"), "--pdeathsig", "KILL", *line]
        self._ready = ready
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self, wait: bool = True) -> None:
        """Start it, and wait until it serves."""
        assert not self.alive, f"{self.name} runs already"
        with self.log.open("ab") as out:
            # A session of its own: Ctrl-C is for pytest, which then ends it.
            self._process = subprocess.Popen(
                self._line, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )
        if wait:
            self.wait_ready()

    def wait_ready(self, seconds: float = START_SECONDS) -> None:
        """Wait until it serves. Shows the end of its log when it doesn't."""
        deadline = time.monotonic() + seconds
        while not self._ready():
            assert self.alive, f"{self.name} ended:\n{self.tail()}"
            assert time.monotonic() < deadline, f"{self.name} isn't ready after {seconds} s:\n{self.tail()}"
            time.sleep(0.02)

    def kill(self) -> None:
        """kill -9, running or stopped."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def terminate(self, seconds: float = 5.0) -> None:
        """SIGTERM, and after some seconds kill -9: an API server waits a minute for those who watch."""
        assert self._process is not None
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        self.kill()

    def restart(self) -> None:
        """kill -9 and a new life."""
        self.kill()
        self.start()

    def stop(self) -> None:
        """SIGSTOP: it says nothing any more, while the kernel still acknowledges what it is sent."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def cont(self) -> None:
        """SIGCONT: it goes on where it stood."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def tail(self) -> str:
        """The end of what it said."""
        if not self.log.exists():
            return ""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-TAIL_LINES:])


class ControlPlane:
    """A cluster without kubelets. `api` speaks to it as cluster-admin."""

    def __init__(
        self, folder: Path, programs: Path, address: str = "127.0.0.1", api_server_flags: Sequence[str] = ()
    ) -> None:
        self.folder = folder
        self.programs = programs
        self.address = address
        self.authority = Authority(folder / "authority")
        self.ca = self.authority.certificate
        etcd_port, peer_port, api_port = free_ports(3, address)
        self.server = f"https://{f'[{address}]' if ':' in address else address}:{api_port}"
        self.port = api_port
        self._etcd_url = f"http://127.0.0.1:{etcd_port}"
        self._issue_server_certificate()
        key_pair(folder / "accounts.key", folder / "accounts.pub")
        # Token, user, its id, groups.
        (folder / "tokens.csv").write_text(f'{ADMIN_TOKEN},admin,1,"system:masters"\n')
        self.api = self.client(ADMIN_TOKEN)
        self.etcd = self._etcd(peer_port)
        self.api_server = self._api_server(api_server_flags)
        self.controller_manager = self._controller_manager()
        self.proxies: list[Component] = []

    @property
    def components(self) -> list[Component]:
        """In the order in which they start."""
        return [self.etcd, self.api_server, self.controller_manager, *self.proxies]

    def start(self) -> None:
        """Start all and wait until it is a cluster: its controllers act, and there is a Node."""
        self.etcd.start()
        self.api_server.start()
        self.controller_manager.start(wait=False)
        self.node(NODE, NODE_ADDRESS)
        self.controller_manager.wait_ready()

    def end(self) -> None:
        """End every process, whatever state it is in."""
        self.api.close()
        for component in reversed(self.components):
            component.kill()

    # Who asks

    def client(self, token: str = "", certificate: tuple[Path, Path] | None = None) -> Api:
        """A client of the API with a token, or a certificate and its key. Whoever takes one closes it."""
        return Api(self.server, self.ca, token, certificate)

    def kubeconfig(
        self, path: Path | None = None, token: str = ADMIN_TOKEN, certificate: tuple[Path, Path] | None = None
    ) -> Path:
        """Write a kubeconfig with one context, `kdns`. It names the CA's file, so that a new CA is found there."""
        path = path or self.folder / "admin.kubeconfig"
        user: Object = {"token": token}
        if certificate:
            user = {"client-certificate": str(certificate[0]), "client-key": str(certificate[1])}
        return write_kubeconfig(path, self.server, user, {"certificate-authority": str(self.ca)})

    def service_account_folder(self, path: Path, account: str, namespace: str = "default") -> dict[str, str]:
        """Write what a kubelet mounts for a ServiceAccount; returns the variables that go with it in a pod."""
        path.mkdir(parents=True, exist_ok=True)
        self.renew_token(path, account, namespace)
        shutil.copy(self.ca, path / "ca.crt")
        (path / "namespace").write_text(namespace)
        return {"KUBERNETES_SERVICE_HOST": self.address, "KUBERNETES_SERVICE_PORT": str(self.port)}

    def renew_token(self, path: Path, account: str, namespace: str = "default") -> str:
        """Put a new token into such a folder, as a kubelet does: never half of one."""
        token = self.api.token(account, namespace)
        new = path / ".token"
        new.write_text(token)
        new.rename(path / "token")
        return token

    def client_certificate(self, user: str, *groups: str) -> tuple[Path, Path]:
        """A certificate and its key for a user."""
        paths = (self.folder / f"{user}.crt", self.folder / f"{user}.key")
        self.authority.client(*paths, user, *groups)
        return paths

    def renew_authority(self) -> None:
        """A new CA, in the file of the old one, and a new start of the API server with a certificate of it."""
        self.authority = Authority(self.folder / "authority")
        self._issue_server_certificate()
        self.api.trust_again()
        self.api_server.restart()
        self.controller_manager.restart()

    def kubectl(self, *arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
        """Run kubectl as cluster-admin."""
        return subprocess.run(
            [str(self.programs / "kubectl"), f"--kubeconfig={self.kubeconfig()}", *arguments],
            input=text,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
            # It keeps what it found of the API in its user's home otherwise.
            env={"PATH": os.environ.get("PATH", os.defpath), "KUBECACHEDIR": str(self.folder / "kubectl")},
        )

    # What there is

    def node(self, name: str, address: str, zone: str = "zone-a", family_two: str = "") -> Object:
        """Create a Node. Without one the controllers leave its Pods out."""
        labels = {"kubernetes.io/hostname": name, "topology.kubernetes.io/zone": zone}
        node = self.api.create({"kind": "Node", "metadata": {"name": name, "labels": labels}})
        addresses = [{"type": "InternalIP", "address": each} for each in (address, family_two) if each]
        ready = {
            "type": "Ready",
            "status": "True",
            "reason": "KubeletReady",
            "message": "",
            **_now("lastHeartbeatTime"),
        }
        self.api.patch_status("Node", name, {"addresses": addresses, "conditions": [ready]})
        return node

    @contextlib.contextmanager
    def namespace(self, name: str = "", labels: dict[str, str] | None = None) -> Iterator[Namespace]:
        """A namespace for as long as the block lasts. Its name is new unless given."""
        name = name or f"test-{random.randrange(16**6):06x}"
        self.api.create({"kind": "Namespace", "metadata": {"name": name, "labels": labels or {}}})
        try:
            yield Namespace(self.api, name)
        finally:
            # A test may have ended the API, or the namespace. Without a kubelet a Pod goes only where it is told to
            # go at once, and a namespace goes when its Pods are gone; nobody needs to wait for that.
            with contextlib.suppress(ApiError, urllib3.exceptions.HTTPError):
                for pod in self.api.list("Pod", name):
                    self.api.delete("Pod", pod["metadata"]["name"], name)
                self.api.delete("Namespace", name)

    # etcd

    def compact(self) -> int:
        """Forget every revision before the current one, and return that.

        The API server has the last changes in memory: only when it starts again a watch from before is 410.
        """
        revision = int(self._ask_etcd("kv/range", {"key": "AA=="})["header"]["revision"])
        self._ask_etcd("kv/compaction", {"revision": revision, "physical": True})
        return revision

    def _ask_etcd(self, method: str, body: Object) -> Object:
        request = urllib.request.Request(
            f"{self._etcd_url}/v3/{method}", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=30) as reply:
            return dict(json.load(reply))

    # The lines that start it

    def _etcd(self, peer_port: int) -> Component:
        peer = f"http://127.0.0.1:{peer_port}"
        return self._component(
            "etcd",
            [
                "--name=etcd",
                f"--data-dir={self.folder / 'etcd'}",
                # A test that kills it loses nothing: the kernel keeps what was written.
                "--unsafe-no-fsync",
                # Alone it needn't wait a second before it elects itself.
                "--heartbeat-interval=10",
                "--election-timeout=100",
                f"--listen-client-urls={self._etcd_url}",
                f"--advertise-client-urls={self._etcd_url}",
                f"--listen-peer-urls={peer}",
                f"--initial-advertise-peer-urls={peer}",
                f"--initial-cluster=etcd={peer}",
                "--log-level=warn",
            ],
            lambda: _answers(f"{self._etcd_url}/readyz"),
        )

    def _api_server(self, flags: Sequence[str]) -> Component:
        advertised = ADVERTISED if self.address in ("127.0.0.1", "::1") else self.address
        return self._component(
            "kube-apiserver",
            [
                f"--bind-address={self.address}",
                f"--advertise-address={advertised}",
                f"--secure-port={self.port}",
                f"--etcd-servers={self._etcd_url}",
                f"--tls-cert-file={self.folder / 'server.crt'}",
                f"--tls-private-key-file={self.folder / 'server.key'}",
                f"--client-ca-file={self.ca}",
                f"--token-auth-file={self.folder / 'tokens.csv'}",
                "--authorization-mode=RBAC",
                f"--service-cluster-ip-range={','.join(SERVICE_RANGES)}",
                "--service-account-issuer=https://kubernetes.default.svc",
                f"--service-account-key-file={self.folder / 'accounts.pub'}",
                f"--service-account-signing-key-file={self.folder / 'accounts.key'}",
                # A Pod would be refused until the namespace's ServiceAccount is there, and nobody mounts its token.
                "--disable-admission-plugins=ServiceAccount",
                *flags,
            ],
            self._api_is_ready,
        )

    def _controller_manager(self) -> Component:
        return self._component(
            "kube-controller-manager",
            [
                f"--kubeconfig={self.kubeconfig()}",
                f"--controllers={','.join(CONTROLLERS)}",
                "--leader-elect=false",
                f"--root-ca-file={self.ca}",
                # It serves nothing: whether it is ready shows in what it does.
                "--secure-port=0",
                # The defaults, 20 and 30, are for one change at a time.
                "--kube-api-qps=500",
                "--kube-api-burst=1000",
            ],
            self._controllers_act,
        )

    def proxy(self, prefix: Sequence[str] = (), node: str = NODE, flags: Sequence[str] = ()) -> Component:
        """A kube-proxy that isn't started yet; `prefix` starts it elsewhere: `ip netns exec NAME`."""
        # Its rules go through this command.
        needs.command("nft")
        number = len(self.proxies) + 1
        health, metrics = free_ports(2, "127.0.0.1")
        component = Component(
            f"kube-proxy-{number}",
            [
                *prefix,
                str(self.programs / "kube-proxy"),
                f"--kubeconfig={self.kubeconfig()}",
                f"--hostname-override={node}",
                "--proxy-mode=nftables",
                # What it would set for connection tracking is the machine's, not a namespace's.
                "--conntrack-max-per-core=0",
                "--conntrack-min=0",
                "--conntrack-tcp-timeout-established=0",
                "--conntrack-tcp-timeout-close-wait=0",
                f"--healthz-bind-address=127.0.0.1:{health}",
                f"--metrics-bind-address=127.0.0.1:{metrics}",
                *flags,
            ],
            self.folder / f"kube-proxy-{number}.log",
            # It may be in another network; what it did there, the test sees.
            lambda: True,
        )
        self.proxies.append(component)
        return component

    def _component(self, program: str, flags: list[str], ready: Callable[[], bool]) -> Component:
        return Component(program, [str(self.programs / program), *flags], self.folder / f"{program}.log", ready)

    def _issue_server_certificate(self) -> None:
        addresses = list(dict.fromkeys([self.address, "127.0.0.1", "::1", *KUBERNETES_ADDRESSES]))
        self.authority.server(self.folder / "server.crt", self.folder / "server.key", SERVER_NAMES, addresses)

    def _api_is_ready(self) -> bool:
        try:
            return self.api.raw("GET", "/readyz") == b"ok"
        except (ApiError, urllib3.exceptions.HTTPError):
            return False

    def _controllers_act(self) -> bool:
        try:
            return bool(self.api.get("ServiceAccount", "default") and self.api.get("Service", "kubernetes"))
        except (ApiError, urllib3.exceptions.HTTPError):
            return False


class Namespace:
    """What tests make in one namespace."""

    def __init__(self, api: Api, name: str) -> None:
        self.api = api
        self.name = name

    def create(self, kind: str, name: str, **fields: Any) -> Object:
        """Create an object of any kind that lies in a namespace."""
        metadata = {"name": name, "namespace": self.name, **fields.pop("metadata", {})}
        return self.api.create({"kind": kind, "metadata": metadata, **fields})

    def service(
        self, name: str, selector: dict[str, str] | None = None, ports: Sequence[int | Object] = (80,), **spec: Any
    ) -> Object:
        """Create a Service. A port is a number, or a dict as in the API; `clusterIP="None"` makes it headless."""
        written = [{"port": port, "name": f"port-{port}"} if isinstance(port, int) else port for port in ports]
        spec = {"selector": selector, "ports": written} | spec
        return self.create("Service", name, spec={key: value for key, value in spec.items() if value})

    def pod(
        self,
        name: str,
        addresses: str | Sequence[str] = (),
        labels: dict[str, str] | None = None,
        ready: bool = True,
        **spec: Any,
    ) -> Object:
        """Create a Pod on a Node, which runs at these addresses at once; without addresses it stays pending."""
        spec = {"nodeName": NODE, "containers": [{"name": "main", "image": "none.invalid/main"}]} | spec
        pod = self.create("Pod", name, metadata={"labels": labels or {}}, spec=spec)
        return self.pod_status(name, addresses, ready) if addresses else pod

    def pod_status(self, name: str, addresses: str | Sequence[str] = (), ready: bool = True, **status: Any) -> Object:
        """Say of a Pod what a kubelet would: its addresses, as they are unless given, and whether it is ready."""
        addresses = [addresses] if isinstance(addresses, str) else list(addresses)
        said = "True" if ready else "False"
        known: Object = {
            "phase": "Running",
            "conditions": [{"type": kind, "status": said, **_now()} for kind in ("Ready", "ContainersReady")],
        }
        if addresses:
            known |= {"podIP": addresses[0], "podIPs": [{"ip": address} for address in addresses]}
        return self.api.patch_status("Pod", name, known | status, self.name)

    def delete(self, kind: str, name: str, grace_seconds: int | None = 0) -> None:
        self.api.delete(kind, name, self.name, grace_seconds)

    def endpoints(self, service: str) -> dict[str, bool]:
        """The addresses in a service's EndpointSlices, and whether each is ready."""
        slices = self.api.list("EndpointSlice", self.name, f"kubernetes.io/service-name={service}")
        return {
            address: endpoint["conditions"].get("ready", True)
            for each in slices
            for endpoint in each["endpoints"] or ()
            for address in endpoint["addresses"]
        }

    def wait_endpoints(self, service: str, expected: dict[str, bool], seconds: float = 10.0) -> None:
        """Wait until a service's EndpointSlices have these addresses, and no other."""

        def same() -> bool:
            found = self.endpoints(service)
            assert found == expected
            return True

        eventually(same, seconds)


@contextlib.contextmanager
def running(address: str = "127.0.0.1", api_server_flags: Sequence[str] = ()) -> Iterator[ControlPlane]:
    """A control plane for as long as the block lasts."""
    programs = found_programs()
    folder = Path(tempfile.mkdtemp(prefix="kdns-cluster-"))
    plane: ControlPlane | None = None
    try:
        plane = ControlPlane(folder, programs, address, api_server_flags)
        plane.start()
        yield plane
    except BaseException as error:
        for component in plane.components if plane is not None else ():
            error.add_note(f"the end of {component.log}:\n{component.tail()}")
        raise
    finally:
        if plane is not None:
            plane.end()
        shutil.rmtree(folder, ignore_errors=True)


def found_programs() -> Path:
    """The folder of the programs, once all of them are there."""
    missing = build.missing()
    if missing:
        needs.lacking(f"no {', '.join(missing)} in {build.folder()}; `make control-plane` builds them")
    needs.command("openssl", "setpriv")
    return build.folder()


def free_ports(count: int, address: str) -> list[int]:
    """Ports that are free at this moment on loopback and on `address`."""
    with contextlib.ExitStack() as held:
        ports: list[int] = []
        for port in random.sample(PORTS, 200):
            with contextlib.suppress(OSError):
                for each in {address, "127.0.0.1"}:
                    family = socket.AF_INET6 if ":" in each else socket.AF_INET
                    held.enter_context(socket.socket(family)).bind((each, port))
                ports.append(port)
            if len(ports) == count:
                return ports
    raise AssertionError("no port is free")


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


def _now(*also: str) -> dict[str, str]:
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return dict.fromkeys(("lastTransitionTime", *also), now)
