"""The whole way: a program in a pod names a service, and reaches a pod behind it.

What a cluster has stands here in earnest: the API server and its controllers, kube-proxy's rules in the node's kernel,
kdns as deploy/ deploys it, in a pod, reached at 10.96.0.10 and itself reaching the API at 10.96.0.1 through those
rules, and clients with a pod's resolv.conf and the resolvers of glibc, musl and Go. Only the kubelet is the test.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from tests import needs, started
from tests.cluster import control_plane
from tests.cluster.api import Object, eventually
from tests.cluster.control_plane import KUBERNETES_ADDRESSES, NODE, NODE_ADDRESS, ControlPlane, Namespace
from tests.cluster.network import Node, Pod

# The first test of all starts a whole cluster.
pytestmark = pytest.mark.timeout(240)

HERE = Path(__file__).parent
DEPLOY = started.ROOT / "deploy"
DNS = "10.96.0.10"
DNS_NAMESPACE = "kube-system"
# What a kubelet writes for a pod of the namespace `shop` on a node whose own search list is `corp.example`.
RESOLV_CONF = f"""\
nameserver {DNS}
search shop.svc.cluster.local svc.cluster.local cluster.local corp.example
options ndots:5
"""
# Outside of the cluster there is one name, and it is not the cluster's to know.
OUTSIDE_NAME, OUTSIDE_ADDRESS = "www.corp.example.", "198.51.100.53"
# A service's port is one that no pod listens on: who reaches a pod there came through kube-proxy's rules.
SERVICE_PORT, POD_PORT = 8888, 8080
# From a change in the API to its effect on a client. kube-proxy alone may wait a second; the rest is for slow machines.
FOLLOW_SECONDS = 45


class Reached(NamedTuple):
    """What a client got: the name that a pod gave, or an error; and whether it got past the name at all."""

    pod: str
    error: str = ""
    resolved: bool = True


class Client:
    """A pod in which programs are run that name a service."""

    def __init__(self, pod: Pod, kubectl: Path, musl: Path) -> None:
        self.pod = pod
        self._kubectl = str(kubectl)
        self._musl = str(musl)
        # `way` of a test: glibc by UDP and by TCP, musl, Go.
        self.ways: dict[str, Callable[[str, int], Reached]] = {
            "curl": self.curl,
            "curl-tcp": self._curl_tcp,
            "musl": self._fetch_musl,
            "go": self._fetch_go,
        }

    def reach(self, way: str, name: str, port: int = SERVICE_PORT) -> Reached:
        """Ask for / at a name in one of these ways."""
        return self.ways[way](name, port)

    def curl(self, name: str, port: int, *arguments: str, **variables: str) -> Reached:
        """`curl http://name:port`"""
        line = ["curl", "--silent", "--show-error", "--fail", "--connect-timeout", "5", *arguments]
        done = self.pod.run(*line, f"http://{name}:{port}", **variables)
        return Reached(done.stdout, done.stderr, done.returncode != 6)

    def _curl_tcp(self, name: str, port: int) -> Reached:
        # As `options use-vc` of resolv.conf.
        return self.curl(name, port, RES_OPTIONS="use-vc")

    def _fetch_musl(self, name: str, port: int) -> Reached:
        done = self.pod.run(self._musl, name, str(port))
        return Reached(done.stdout.partition("\n\n")[2], done.stderr, done.returncode != 6)

    def _fetch_go(self, name: str, port: int) -> Reached:
        # kubectl is a program of Go that is there already. Built without cgo, it has no resolver but Go's.
        line = [self._kubectl, f"--server=http://{name}:{port}", "--request-timeout=5s", "get", "--raw=/"]
        done = self.pod.run(*line, KUBECONFIG="/dev/null", HOME=str(self.pod.folder))
        return Reached(done.stdout, done.stderr, "lookup " not in done.stderr)

    def addresses(self, name: str) -> tuple[str, set[str]]:
        """What `getent ahosts` says: the name that the addresses are of in the end, and these."""
        lines = [line.split() for line in self.pod.run("getent", "ahosts", name).stdout.splitlines()]
        return (lines[0][2] if lines else "", {line[0] for line in lines})


class Kubelet:
    """Runs the Pods of the Node, and tells the API of them."""

    def __init__(self, plane: ControlPlane, node: Node, corefile: Path) -> None:
        self.plane = plane
        self.node = node
        self._corefile = str(corefile)
        self._running: dict[tuple[str, str], Pod] = {}

    def run(self, namespace: Namespace, name: str, label: str, **spec: Any) -> Pod:
        """Run a Pod with an HTTP server that gives the Pod's name, and have it ready."""
        pod = self.node.pod(name, RESOLV_CONF)
        serve_http(pod, POD_PORT, name)
        self._running[namespace.name, name] = pod
        namespace.pod(name, pod.addresses, {"app": label}, **spec)
        return pod

    def run_dns(self) -> Pod:
        """Run a Pod of the Deployment of kdns that doesn't run yet, and have it ready."""
        api = self.plane.api
        name = eventually(self._pending_dns, FOLLOW_SECONDS, "no pending pod of the Deployment")
        # `dnsPolicy: Default` is the node's own resolv.conf.
        pod = self.node.pod(name, f"nameserver {OUTSIDE_ADDRESS}\n")
        self._running[DNS_NAMESPACE, name] = pod
        self.plane.service_account_folder(pod.account, "coredns", DNS_NAMESPACE)
        variables = {"KUBERNETES_SERVICE_HOST": KUBERNETES_ADDRESSES[0], "KUBERNETES_SERVICE_PORT": "443"}
        ready = f"http://{pod.addresses[0]}:8181/ready"
        pod.start(name, str(started.COMMANDS / "coredns"), "-conf", self._corefile, ready=ready, **variables)
        api.bind(name, NODE, DNS_NAMESPACE)
        Namespace(api, DNS_NAMESPACE).pod_status(name, pod.addresses)
        return pod

    def _pending_dns(self) -> str:
        pods = [each["metadata"]["name"] for each in self.plane.api.list("Pod", DNS_NAMESPACE, "k8s-app=kube-dns")]
        return next((name for name in pods if (DNS_NAMESPACE, name) not in self._running), "")

    def delete(self, namespace: str, name: str) -> None:
        """Delete a Pod, and end what runs in it."""
        self.plane.api.delete("Pod", name, namespace)
        self.stop(namespace, name)

    def stop(self, namespace: str, name: str) -> None:
        """End what runs in a Pod."""
        self._running.pop((namespace, name)).end()

    def rules(self) -> str:
        """What kube-proxy has told the node's kernel; it tells nobody when it is done."""
        done = self.node.run("nft", "list", "ruleset")
        assert done.returncode == 0, done.stderr
        return done.stdout

    def dns_pods(self) -> list[Pod]:
        """The pods to which the node leads questions for 10.96.0.10: kube-proxy puts all its rules in at once."""
        rules = self.rules()
        return [pod for pod in self.node.pods if f" {pod.addresses[0]} . 53" in rules]


class World(NamedTuple):
    """All of it. The client is a pod of `shop`."""

    plane: ControlPlane
    kubelet: Kubelet
    shop: Namespace
    other: Namespace
    client: Client


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("whole-way")


@pytest.fixture(scope="module")
def node(folder: Path) -> Iterator[Node]:
    # Asked for before anything takes time.
    needs.command("nft", "curl", "getent", "musl-gcc", "gcc")
    control_plane.found_programs()
    node = Node(folder / "node")
    yield node
    node.end()


@pytest.fixture(autouse=True)
def on_the_node(node: Node) -> Iterator[None]:
    """A test is in the node's network, from where it reaches the API and every pod."""
    with node.entered():
        yield
    # pytest shows it only where a test failed.
    for pod in node.pods:
        for component in pod.commands:
            print(f"--- the end of {component.log}\n{component.tail()}")


@pytest.fixture(scope="module")
def plane(node: Node) -> Iterator[ControlPlane]:
    """A control plane in the node's network, where pods reach it."""
    with contextlib.ExitStack() as life:
        with node.entered():
            plane = life.enter_context(control_plane.running(NODE_ADDRESS))
            done = plane.kubectl("apply", "-k", str(DEPLOY))
            assert done.returncode == 0, done.stderr
            plane.proxy(["env", f"PATH={needs.SEARCHED}"]).start()
        yield plane


@pytest.fixture(scope="module")
def musl(folder: Path) -> Path:
    program = folder / "fetch"
    line = [needs.command("musl-gcc"), "-static", "-Wall", "-Werror", "-o", str(program), str(HERE / "fetch.c")]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return program


@pytest.fixture(scope="module")
def world(folder: Path, node: Node, plane: ControlPlane, musl: Path) -> World:
    corefile = folder / "Corefile"
    corefile.write_text(yaml.safe_load((DEPLOY / "base" / "configmap.yaml").read_text())["data"]["Corefile"])
    kubelet = Kubelet(plane, node, corefile)
    with node.entered():
        outside = node.pod("outside", "", OUTSIDE_ADDRESS)
        # Without a way to everywhere the kernel gives up before it comes to the rules that refuse.
        node.set_up('ip route add default via "$1"', OUTSIDE_ADDRESS)
        serve_http(outside, SERVICE_PORT, "outside")
        outside.start("dns", sys.executable, str(HERE / "outside.py"), OUTSIDE_NAME, OUTSIDE_ADDRESS)
        dns = kubelet.run_dns()
        for name in ("shop", "other"):
            plane.api.create({"kind": "Namespace", "metadata": {"name": name}})
        shop, other = Namespace(plane.api, "shop"), Namespace(plane.api, "other")
        service(shop, "httpenv", "httpenv", ipFamilyPolicy="RequireDualStack")
        kubelet.run(shop, "httpenv-shop", "httpenv")
        service(other, "httpenv", "httpenv")
        kubelet.run(other, "httpenv-other", "httpenv")
        service(shop, "peers", "peers", clusterIP="None")
        for name in ("peer-0", "peer-1"):
            kubelet.run(shop, name, "peers", hostname=name, subdomain="peers")
        alias(shop, "elsewhere", "httpenv.other.svc.cluster.local")
        alias(shop, "site", OUTSIDE_NAME)
        client = Client(node.pod("client", RESOLV_CONF), plane.programs / "kubectl", musl)
        world = World(plane, kubelet, shop, other, client)
        # From here on what is there is reached at the first try.
        eventually(lambda: dns in kubelet.dns_pods(), FOLLOW_SECONDS)
        follows(world, "curl", "httpenv", "httpenv-shop")
        follows(world, "curl", "httpenv.other", "httpenv-other")
        follows(world, "curl", "peer-0.peers", "peer-0", POD_PORT)
        follows(world, "curl", "peer-1.peers", "peer-1", POD_PORT)
        follows(world, "curl", "www", "outside")
        eventually(lambda: client.curl("httpenv", SERVICE_PORT, "-6").pod, FOLLOW_SECONDS, "no IPv6")
    return world


def serve_http(pod: Pod, port: int, said: str) -> None:
    pages = pod.folder / "pages"
    pages.mkdir()
    (pages / "index.html").write_text(said)
    line = [sys.executable, "-m", "http.server", str(port), "--bind", "::", "--directory", str(pages)]
    pod.start("http", *line, ready=f"http://{pod.addresses[0]}:{port}")


def service(namespace: Namespace, name: str, label: str, **spec: Any) -> Object:
    port = {"name": "http", "port": SERVICE_PORT, "targetPort": POD_PORT}
    return namespace.service(name, {"app": label}, [port], **spec)


def alias(namespace: Namespace, name: str, target: str) -> Object:
    return namespace.service(name, ports=(), type="ExternalName", externalName=target)


def follows(world: World, way: str, name: str, pod: str, port: int = SERVICE_PORT) -> None:
    """Wait until a name leads to this pod."""

    def reached() -> bool:
        reached = world.client.reach(way, name, port)
        assert reached == Reached(pod), f"{name}:{port} by {way}: {reached}"
        return True

    eventually(reached, FOLLOW_SECONDS)


WAYS = ("curl", "curl-tcp", "musl", "go")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("name", "pod"),
    [
        pytest.param("httpenv", "httpenv-shop", id="the short name is the one of the client's namespace"),
        pytest.param("httpenv.other", "httpenv-other", id="with a namespace it is that one's"),
        pytest.param("httpenv.other.svc", "httpenv-other", id="with svc too"),
        pytest.param("httpenv.other.svc.cluster.local", "httpenv-other", id="four dots: searched for first"),
        pytest.param("httpenv.other.svc.cluster.local.", "httpenv-other", id="a last dot: never searched for"),
        pytest.param("elsewhere", "httpenv-other", id="an ExternalName leads to a service"),
        pytest.param("elsewhere.shop", "httpenv-other", id="an ExternalName by its longer name"),
        pytest.param("site", "outside", id="an ExternalName leads out of the cluster"),
        pytest.param("www", "outside", id="the node's own search list comes last"),
    ],
)
def test_a_name_reaches_its_pod(world: World, way: str, name: str, pod: str) -> None:
    reached = world.client.reach(way, name)
    assert reached == Reached(pod), reached


@pytest.mark.parametrize("way", WAYS)
def test_a_pod_of_a_headless_service_has_a_name_of_its_own(world: World, way: str) -> None:
    for name in ("peer-0.peers", "peer-1.peers.shop"):
        assert world.client.reach(way, name, POD_PORT) == Reached(name.partition(".")[0])
    assert world.client.reach(way, "peers", POD_PORT).pod in ("peer-0", "peer-1")


@pytest.mark.parametrize(
    ("way", "says"),
    [
        ("curl", "Could not resolve host: nobody"),
        ("curl-tcp", "Could not resolve host: nobody"),
        ("musl", "Name does not resolve"),
        ("go", "no such host"),
    ],
)
def test_a_name_of_nobody_is_told_to_be_none(world: World, way: str, says: str) -> None:
    reached = world.client.reach(way, "nobody")
    assert (reached.pod, reached.resolved) == ("", False)
    assert says in reached.error


@pytest.mark.parametrize("family", ["-4", "-6"])
def test_a_service_of_two_families_is_reached_by_each(world: World, family: str) -> None:
    assert world.client.curl("httpenv", SERVICE_PORT, family) == Reached("httpenv-shop")


def test_glibc_is_given_all_addresses_and_the_name_that_they_are_of(world: World) -> None:
    def of(namespace: Namespace) -> set[str]:
        return set(world.plane.api.get("Service", "httpenv", namespace.name)["spec"]["clusterIPs"])

    addresses = world.client.addresses
    assert len(of(world.shop)) == 2
    assert addresses("httpenv") == ("httpenv.shop.svc.cluster.local", of(world.shop))
    assert addresses("httpenv.other") == ("httpenv.other.svc.cluster.local", of(world.other))
    assert addresses("elsewhere") == ("httpenv.other.svc.cluster.local", of(world.other))
    assert addresses("peers") == ("peers.shop.svc.cluster.local", set(world.shop.endpoints("peers")))
    assert addresses("nobody") == ("", set())


def test_an_address_has_a_name(world: World) -> None:
    found = world.plane.api.get("Service", "httpenv", "shop")["spec"]["clusterIPs"]
    found += next(pod.addresses for pod in world.kubelet.node.pods if pod.name == "peer-0")[:1]
    named = [world.client.pod.run("getent", "hosts", address).stdout.split()[1:] for address in found]
    assert named == [["httpenv.shop.svc.cluster.local"]] * 2 + [["peer-0.peers.shop.svc.cluster.local"]]


def test_a_pod_is_deleted_and_another_takes_over(world: World) -> None:
    shop, kubelet = world.shop, world.kubelet
    service(shop, "worker", "worker")
    first = kubelet.run(shop, "worker-0", "worker")
    for way in WAYS:
        follows(world, way, "worker", "worker-0")
    kubelet.delete("shop", "worker-0")
    eventually(lambda: first.addresses[0] not in kubelet.rules(), FOLLOW_SECONDS)
    # Nobody is there now. The service is, and so is its name.
    for way in WAYS:
        reached = world.client.reach(way, "worker")
        assert (reached.pod, reached.resolved) == ("", True), reached
    kubelet.run(shop, "worker-1", "worker")
    for way in WAYS:
        follows(world, way, "worker", "worker-1")


def test_a_pod_that_is_made_anew_elsewhere_keeps_its_name(world: World) -> None:
    shop, kubelet = world.shop, world.kubelet
    service(shop, "store", "store", clusterIP="None")
    # The second has the name of the first, as in a StatefulSet, and says who it is.
    first = kubelet.run(shop, "store-0", "store", hostname="store-0", subdomain="store")
    for way in WAYS:
        follows(world, way, "store-0.store", "store-0", POD_PORT)
    kubelet.delete("shop", "store-0")
    eventually(lambda: world.client.addresses("store-0.store") == ("", set()), FOLLOW_SECONDS)
    second = kubelet.run(shop, "store-0", "store", hostname="store-0", subdomain="store")
    assert first.addresses != second.addresses
    for way in WAYS:
        follows(world, way, "store-0.store", "store-0", POD_PORT)
    assert world.client.addresses("store")[1] == {second.addresses[0]}


def test_a_service_that_is_made_anew_has_another_address_and_the_client_finds_it(world: World) -> None:
    shop = world.shop
    before = service(shop, "moved", "httpenv")["spec"]["clusterIP"]
    for way in WAYS:
        follows(world, way, "moved", "httpenv-shop")
    shop.delete("Service", "moved")
    # Its address may be given to the next one, so somebody else takes it.
    service(shop, "squatter", "nobody", clusterIP=before)
    eventually(lambda: world.client.addresses("moved") == ("", set()), FOLLOW_SECONDS)
    after = service(shop, "moved", "httpenv")["spec"]["clusterIP"]
    for way in WAYS:
        follows(world, way, "moved", "httpenv-shop")
    assert world.client.addresses("moved")[1] == {after} != {before}


def test_an_external_name_is_led_elsewhere_and_becomes_a_service(world: World) -> None:
    shop, api = world.shop, world.plane.api
    alias(shop, "choice", "httpenv.other.svc.cluster.local")
    for way in WAYS:
        follows(world, way, "choice", "httpenv-other")
    api.patch("Service", "choice", {"spec": {"externalName": OUTSIDE_NAME}}, "shop")
    for way in WAYS:
        follows(world, way, "choice", "outside")
    ports = [{"name": "http", "port": SERVICE_PORT, "targetPort": POD_PORT}]
    spec = {"type": "ClusterIP", "externalName": None, "selector": {"app": "httpenv"}, "ports": ports}
    api.patch("Service", "choice", {"spec": spec}, "shop")
    for way in WAYS:
        follows(world, way, "choice", "httpenv-shop")


def test_one_dns_server_takes_over_from_another_and_every_name_is_found(world: World) -> None:
    kubelet, client = world.kubelet, world.client

    def led_to(*pods: Pod) -> bool:
        for way in WAYS:
            reached = client.reach(way, "httpenv.other")
            assert reached == Reached("httpenv-other"), f"by {way}: {reached}"
        return kubelet.dns_pods() == list(pods)

    def turns(*pods: Pod) -> None:
        # Not `eventually`: a name that isn't found once is a failure.
        deadline = time.monotonic() + FOLLOW_SECONDS
        while not led_to(*pods):
            assert time.monotonic() < deadline, kubelet.rules()

    [first] = kubelet.dns_pods()
    second = kubelet.run_dns()
    turns(first, second)
    # As with a pod's time of grace: it serves until the nodes know that it goes.
    world.plane.api.delete("Pod", first.name, DNS_NAMESPACE)
    turns(second)
    kubelet.stop(DNS_NAMESPACE, first.name)
    assert led_to(second)


def test_nothing_is_left_of_networks_whose_test_was_killed(tmp_path: Path) -> None:
    program = f"""
from pathlib import Path
from tests.cluster.network import Node
node = Node(Path({str(tmp_path)!r}, "node"))
print(node.pid, node.pod("web", "").pid, flush=True)
input()
"""
    line = [sys.executable, "-c", program]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=started.ROOT) as process:
        try:
            assert process.stdout is not None
            held = [Path(f"/proc/{pid}/ns/net") for pid in process.stdout.readline().split()]
            assert len([each for each in held if each.exists()]) == 2
        finally:
            process.send_signal(signal.SIGKILL)
        eventually(lambda: not any(each.exists() for each in held))
