"""deploy/ is what a cluster takes, and kdns takes the place of kubeadm's CoreDNS: real API servers say so.

No kubelet runs a pod here. What one would run, a test starts itself: the args, the Corefile and the rights of the pod
that the controllers made, in a network of its own, where port 53 is free and the probes' ports are the pod's.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import textwrap
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple

import dns.exception
import dns.message
import dns.query
import pytest
import yaml

from kdns import __version__
from tests import started
from tests.cluster import control_plane
from tests.cluster.api import Api, ApiError, Object, eventually
from tests.cluster.control_plane import NODE, NODE_ADDRESS, ControlPlane
from tests.cluster.network import Node
from tests.cluster.serving import serving, some_address
from tests.cluster.test_services import HTTP, ZONE

# Some tests start a whole cluster.
pytestmark = pytest.mark.timeout(240)

DEPLOY = started.ROOT / "deploy"
BASE = DEPLOY / "base"
NAMESPACE = "kube-system"
MANIFESTS = {
    "base": {
        "clusterrole.rbac.authorization.k8s.io/system:coredns",
        "clusterrolebinding.rbac.authorization.k8s.io/system:coredns",
        "configmap/coredns",
        "deployment.apps/coredns",
        "poddisruptionbudget.policy/coredns",
        "service/kube-dns",
        "serviceaccount/coredns",
    },
    "kubeadm": {"deployment.apps/coredns"},
    "node-local": {
        "clusterrole.rbac.authorization.k8s.io/system:node-local-dns",
        "clusterrolebinding.rbac.authorization.k8s.io/system:node-local-dns",
        "configmap/node-local-dns",
        "daemonset.apps/node-local-dns",
        "service/node-local-dns",
        "serviceaccount/node-local-dns",
    },
    "autoscaler": {
        "clusterrole.rbac.authorization.k8s.io/system:kube-dns-autoscaler",
        "clusterrolebinding.rbac.authorization.k8s.io/system:kube-dns-autoscaler",
        "configmap/kube-dns-autoscaler",
        "deployment.apps/kube-dns-autoscaler",
        "role.rbac.authorization.k8s.io/kube-dns-autoscaler",
        "rolebinding.rbac.authorization.k8s.io/kube-dns-autoscaler",
        "serviceaccount/kube-dns-autoscaler",
    },
}
COREDNS_IMAGE = "coredns.invalid/coredns:v1.14.2"
OUR_IMAGE = "registry.example/coredns:v1.14.2"
# Longer than the start of a server on a busy machine, and shorter than pytest's patience.
START_SECONDS = 60

# What kubeadm installs of DNS: the objects of its 1.36, in its order.
KUBEADM = f"""\
apiVersion: v1
kind: ServiceAccount
metadata: {{name: coredns, namespace: kube-system}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {{name: "system:coredns"}}
rules:
- apiGroups: [""]
  resources: [endpoints, services, pods, namespaces]
  verbs: [list, watch]
- apiGroups: [discovery.k8s.io]
  resources: [endpointslices]
  verbs: [list, watch]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {{name: "system:coredns"}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: "system:coredns"}}
subjects: [{{kind: ServiceAccount, name: coredns, namespace: kube-system}}]
---
apiVersion: v1
kind: Service
metadata:
  name: kube-dns
  namespace: kube-system
  labels: {{k8s-app: kube-dns, kubernetes.io/cluster-service: "true", kubernetes.io/name: CoreDNS}}
  annotations: {{prometheus.io/port: "9153", prometheus.io/scrape: "true"}}
spec:
  clusterIP: 10.96.0.10
  ports:
  - {{name: dns, port: 53, protocol: UDP, targetPort: 53}}
  - {{name: dns-tcp, port: 53, protocol: TCP, targetPort: 53}}
  - {{name: metrics, port: 9153, protocol: TCP, targetPort: 9153}}
  selector: {{k8s-app: kube-dns}}
---
apiVersion: apps/v1
kind: Deployment
metadata:
  name: coredns
  namespace: kube-system
  labels: {{k8s-app: kube-dns}}
spec:
  replicas: 2
  strategy: {{type: RollingUpdate, rollingUpdate: {{maxUnavailable: 1}}}}
  selector: {{matchLabels: {{k8s-app: kube-dns}}}}
  template:
    metadata: {{labels: {{k8s-app: kube-dns}}}}
    spec:
      priorityClassName: system-cluster-critical
      serviceAccountName: coredns
      affinity:
        podAntiAffinity:
          preferredDuringSchedulingIgnoredDuringExecution:
          - weight: 100
            podAffinityTerm:
              labelSelector: {{matchExpressions: [{{key: k8s-app, operator: In, values: [kube-dns]}}]}}
              topologyKey: kubernetes.io/hostname
      tolerations:
      - {{key: CriticalAddonsOnly, operator: Exists}}
      - {{key: node-role.kubernetes.io/control-plane, effect: NoSchedule}}
      nodeSelector: {{kubernetes.io/os: linux}}
      containers:
      - name: coredns
        image: {COREDNS_IMAGE}
        imagePullPolicy: IfNotPresent
        resources: {{limits: {{memory: 170Mi}}, requests: {{cpu: 100m, memory: 70Mi}}}}
        args: [-conf, /etc/coredns/Corefile]
        volumeMounts: [{{name: config-volume, mountPath: /etc/coredns, readOnly: true}}]
        ports:
        - {{containerPort: 53, name: dns, protocol: UDP}}
        - {{containerPort: 53, name: dns-tcp, protocol: TCP}}
        - {{containerPort: 9153, name: metrics, protocol: TCP}}
        - {{containerPort: 8080, name: liveness-probe, protocol: TCP}}
        - {{containerPort: 8181, name: readiness-probe, protocol: TCP}}
        livenessProbe:
          httpGet: {{path: /health, port: liveness-probe, scheme: HTTP}}
          initialDelaySeconds: 60
          timeoutSeconds: 5
          successThreshold: 1
          failureThreshold: 5
        readinessProbe:
          httpGet: {{path: /ready, port: readiness-probe, scheme: HTTP}}
        securityContext:
          allowPrivilegeEscalation: false
          capabilities: {{add: [NET_BIND_SERVICE], drop: [ALL]}}
          readOnlyRootFilesystem: true
      dnsPolicy: Default
      volumes:
      - name: config-volume
        configMap: {{name: coredns, items: [{{key: Corefile, path: Corefile}}]}}
"""


def install_as_kubeadm(plane: ControlPlane) -> None:
    """Make DNS's objects as kubeadm does, its Corefile among them."""
    corefile = (started.ROOT / "tests" / "corefiles" / "kubeadm" / "Corefile").read_text()
    metadata = {"name": "coredns", "namespace": NAMESPACE}
    plane.api.create({"kind": "ConfigMap", "metadata": metadata, "data": {"Corefile": corefile}})
    for manifest in yaml.safe_load_all(KUBEADM):
        plane.api.create(manifest)
    # Only what the controller has seen can be gone back to.
    wait_generation(plane.api, 1)


def wait_generation(api: Api, number: int) -> None:
    eventually(lambda: api.get("Deployment", "coredns", NAMESPACE)["status"].get("observedGeneration") == number)


def pod_template(api: Api) -> Object:
    return dict(api.get("Deployment", "coredns", NAMESPACE)["spec"]["template"])


def with_image(template: Object, image: str) -> Object:
    """The same pod with another image and nothing else."""
    [container] = template["spec"]["containers"]
    return template | {"spec": template["spec"] | {"containers": [container | {"image": image}]}}


def kubectl(plane: ControlPlane, *arguments: str) -> str:
    done = plane.kubectl(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


# The manifests


@pytest.mark.parametrize("overlay", MANIFESTS)
def test_the_api_server_accepts_every_manifest(cluster: ControlPlane, overlay: str) -> None:
    line = ["apply", "--dry-run=server", "--validate=strict", "--output=name", "-k", str(DEPLOY / overlay)]
    done = cluster.kubectl(*line)
    # Fields that are unknown or deprecated are warnings, on stderr.
    assert (done.returncode, done.stderr) == (0, "")
    assert set(done.stdout.split()) == MANIFESTS[overlay]


def test_the_examples_of_the_docs_change_what_they_say(cluster: ControlPlane, tmp_path: Path) -> None:
    first, *patches = _examples(started.ROOT / "docs" / "deploy.md")
    assert first["resources"] == ["../deploy/base"]
    overlay = first | {"patches": [patch for each in patches for patch in each["patches"]]}
    folder = tmp_path / "mine"
    folder.mkdir()
    overlay["resources"] = [os.path.relpath(BASE, folder)]
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
    made = {each["kind"]: each for each in yaml.safe_load_all(kubectl(cluster, "kustomize", str(folder)))}
    assert made["Deployment"]["spec"]["template"]["spec"]["containers"][0]["image"] == OUR_IMAGE
    assert "replicas" not in made["Deployment"]["spec"]
    assert made["Service"]["spec"]["clusterIP"] == "10.43.0.10"


def _examples(page: Path) -> list[Object]:
    """The pieces of kustomizations in a page."""
    found = re.findall(r"^( *)```yaml\n(.*?)^ *```$", page.read_text(), re.MULTILINE | re.DOTALL)
    return [yaml.safe_load(textwrap.dedent(text)) for _, text in found]


def test_without_an_overlay_it_is_the_base(cluster: ControlPlane) -> None:
    assert kubectl(cluster, "kustomize", str(DEPLOY)) == kubectl(cluster, "kustomize", str(BASE))


@pytest.mark.parametrize("overlay", MANIFESTS)
def test_every_file_is_part_of_it(overlay: str) -> None:
    listed = yaml.safe_load((DEPLOY / overlay / "kustomization.yaml").read_text())["resources"]
    assert {path.name for path in (DEPLOY / overlay).iterdir()} == {*listed, "kustomization.yaml"}
    assert {path.name for path in DEPLOY.iterdir()} == {*MANIFESTS, "kustomization.yaml"}


@pytest.mark.parametrize(
    ("overlay", "account", "resources"),
    [
        ("base", "coredns", ["services", "pods", "namespaces", "endpointslices"]),
        ("node-local", "node-local-dns", ["services", "namespaces", "endpointslices"]),
    ],
)
def test_the_account_may_list_and_watch_what_dns_is_made_of_and_nothing_else(
    deployed: ControlPlane, overlay: str, account: str, resources: list[str]
) -> None:
    kubectl(deployed, "apply", "-k", str(DEPLOY / overlay))
    # Every account may ask who it is and which APIs there are.
    given = _rights(deployed, account) - _rights(deployed, "default")
    groups = {"endpointslices": "discovery.k8s.io"}
    assert given == {(verb, groups.get(each, ""), each) for verb in ("list", "watch") for each in resources}


def test_the_autoscaler_may_scale_the_deployment_and_do_nothing_else(deployed: ControlPlane) -> None:
    kubectl(deployed, "apply", "-k", str(DEPLOY / "autoscaler"))
    path = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/coredns/scale"
    with contextlib.closing(deployed.client(deployed.api.token("kube-dns-autoscaler", NAMESPACE))) as client:
        for replicas in (3, 2):
            eventually(lambda replicas=replicas: _scaled(client, path, replicas))
            assert deployed.api.get("Deployment", "coredns", NAMESPACE)["spec"]["replicas"] == replicas
    assert _listed(deployed, "kube-dns-autoscaler") - _listed(deployed, "default") == {
        "deployments.apps/scale [] [coredns] [get update]",
        "configmaps [] [kube-dns-autoscaler] [get]",
        "nodes [] [] [list watch]",
    }


def _scaled(client: Api, path: str, replicas: int) -> bool:
    """Whether the number could be set: not where a controller has changed the Deployment since it was read."""
    try:
        client.request("PUT", path, client.request("GET", path) | {"spec": {"replicas": replicas}})
    except ApiError as error:
        if error.status == HTTPStatus.CONFLICT:
            return False
        raise
    return True


def _listed(plane: ControlPlane, account: str) -> set[str]:
    """What an account may do, as kubectl lists it: resources, URLs, names, verbs."""
    user = f"--as=system:serviceaccount:{NAMESPACE}:{account}"
    lines = kubectl(plane, "-n", NAMESPACE, user, "auth", "can-i", "--list", "--no-headers").splitlines()
    return {" ".join(line.split()) for line in lines}


def test_the_service_finds_the_pods_of_the_deployment(deployed: ControlPlane) -> None:
    api = deployed.api
    pods = eventually(lambda: _two(api.list("Pod", NAMESPACE, "k8s-app=kube-dns")))
    for number, pod in enumerate(pods):
        name = pod["metadata"]["name"]
        # As the scheduler and a kubelet would.
        api.bind(name, NODE, NAMESPACE)
        address = f"10.244.0.{number + 2}"
        conditions = [{"type": "Ready", "status": "True"}]
        status = {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}], "conditions": conditions}
        api.patch_status("Pod", name, status, NAMESPACE)

    def served() -> bool:
        slices = api.list("EndpointSlice", NAMESPACE, "kubernetes.io/service-name=kube-dns")
        ports = {(port["name"], port["port"], port["protocol"]) for each in slices for port in each["ports"] or ()}
        addresses = {address for each in slices for one in each["endpoints"] or () for address in one["addresses"]}
        assert ports == {("dns", 53, "UDP"), ("dns-tcp", 53, "TCP"), ("metrics", 9153, "TCP")}
        assert addresses == {"10.244.0.2", "10.244.0.3"}
        return True

    eventually(served)


def test_its_corefile_is_that_of_kubeadm() -> None:
    ours = _config("base")
    theirs = (started.ROOT / "tests" / "corefiles" / "kubeadm" / "Corefile").read_text()
    assert re.sub(r" *#.*\n", "", ours).split() == theirs.split()


@pytest.mark.parametrize("overlay", ["base", "node-local"])
def test_a_corefile_has_no_mistake(overlay: str, tmp_path: Path) -> None:
    corefile = tmp_path / "Corefile"
    (tmp_path / "resolv.conf").write_text("nameserver 192.0.2.1\n")
    corefile.write_text(_config(overlay).replace("/etc/resolv.conf", str(tmp_path / "resolv.conf")))
    done = started.run("kdns", "check", str(corefile))
    assert (done.returncode, done.stdout + done.stderr) == (0, "no mistake\n")


def test_probes_and_ports_are_those_of_the_corefile() -> None:
    text = _config("base")
    ports = {port["name"]: port["containerPort"] for port in _container("base")["ports"]}
    assert re.search(r"^\.:53 \{$", text, re.MULTILINE)
    assert re.search(r"^ +prometheus :9153$", text, re.MULTILINE)
    # `health` and `ready` without an address: 8080 and 8181.
    assert re.search(r"^ +health \{$", text, re.MULTILINE)
    assert re.search(r"^ +ready$", text, re.MULTILINE)
    assert ports == {"dns": 53, "dns-tcp": 53, "metrics": 9153, "liveness-probe": 8080, "readiness-probe": 8181}


@pytest.mark.parametrize("overlay", ["base", "kubeadm", "node-local"])
def test_the_image_is_of_this_version(overlay: str) -> None:
    assert _container(overlay)["image"] == f"kdns:{__version__}"


# In the place of CoreDNS


def test_applied_to_a_cluster_of_kubeadm_the_base_takes_the_place_of_coredns_until_undone(
    private_cluster: ControlPlane,
) -> None:
    api = private_cluster.api
    install_as_kubeadm(private_cluster)
    kubectl(private_cluster, "apply", "-k", str(DEPLOY))
    assert len(api.list("Deployment", NAMESPACE, "k8s-app=kube-dns")) == 1
    pod = pod_template(api)["spec"]
    ours = _container("base")
    assert [container["image"] for container in pod["containers"]] == [ours["image"]]
    assert pod["containers"][0]["ports"] == ours["ports"]
    assert pod["containers"][0]["volumeMounts"] == ours["volumeMounts"]
    assert [volume["name"] for volume in pod["volumes"]] == ["config-volume"]
    assert api.get("Service", "kube-dns", NAMESPACE)["spec"]["clusterIP"] == "10.96.0.10"
    wait_generation(api, 2)
    kubectl(private_cluster, "-n", NAMESPACE, "rollout", "undo", "deployment/coredns")
    assert [each["image"] for each in pod_template(api)["spec"]["containers"]] == [COREDNS_IMAGE]


def test_a_new_image_is_all_that_changes_and_all_that_changes_back(private_cluster: ControlPlane) -> None:
    api = private_cluster.api
    install_as_kubeadm(private_cluster)
    before = pod_template(api)
    others = {kind: api.list(kind, NAMESPACE) for kind in ("ConfigMap", "Service")}

    kubectl(private_cluster, "-n", NAMESPACE, "set", "image", "deployment/coredns", f"coredns={OUR_IMAGE}")
    assert pod_template(api) == with_image(before, OUR_IMAGE)
    wait_generation(api, 2)
    kubectl(private_cluster, "-n", NAMESPACE, "rollout", "undo", "deployment/coredns")
    assert pod_template(api) == before
    wait_generation(api, 3)

    # The overlay says the same as a manifest, and is left by the command as well.
    kubectl(private_cluster, "apply", "-k", str(DEPLOY / "kubeadm"))
    assert pod_template(api) == with_image(before, f"kdns:{__version__}")
    kubectl(private_cluster, "-n", NAMESPACE, "set", "image", "deployment/coredns", f"coredns={COREDNS_IMAGE}")
    assert pod_template(api) == before
    assert {kind: api.list(kind, NAMESPACE) for kind in others} == others
    assert api.get("Deployment", "coredns", NAMESPACE)["spec"]["replicas"] == 2


def test_the_commands_of_the_guide_do_what_it_says(private_cluster: ControlPlane, tmp_path: Path) -> None:
    install_as_kubeadm(private_cluster)
    before = pod_template(private_cluster.api)
    images = []
    for command in _commands(started.ROOT / "docs" / "migrate.md"):
        done = _shell(private_cluster, command, tmp_path)
        assert done.returncode == 0, f"$ {command}\n{done.stdout}{done.stderr}"
        generation = private_cluster.api.get("Deployment", "coredns", NAMESPACE)["metadata"]["generation"]
        wait_generation(private_cluster.api, generation)
        images.append(pod_template(private_cluster.api)["spec"]["containers"][0]["image"])
    assert list(dict.fromkeys(images)) == [COREDNS_IMAGE, OUR_IMAGE]
    # The last command is the way back.
    assert pod_template(private_cluster.api) == before
    assert (tmp_path / "Corefile").read_text().startswith(".:53 {")
    assert yaml.safe_load((tmp_path / "deployment-before.yaml").read_text())["spec"]["template"] == before


def _commands(page: Path) -> list[str]:
    """The commands of a guide, but for those that wait for a kubelet or for a server that answers."""
    blocks = re.findall(r"^ *```sh\n(.*?)^ *```$", page.read_text(), re.MULTILINE | re.DOTALL)
    lines = [line.strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if not re.search(r"rollout status| logs |^kdns compare ", line)]


def _shell(plane: ControlPlane, command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command as a user of the cluster types it."""
    path = f"{plane.programs}:{started.COMMANDS}:{os.environ['PATH']}"
    environment = started.plain_environment() | {"PATH": path, "KUBECONFIG": str(plane.kubeconfig())}
    environment["KUBECACHEDIR"] = str(folder / "kubectl")
    return subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, timeout=30, check=False
    )


def test_the_rights_that_kubeadm_gives_are_enough(private_cluster: ControlPlane, tmp_path: Path) -> None:
    install_as_kubeadm(private_cluster)
    environment = private_cluster.service_account_folder(tmp_path / "account", "coredns", NAMESPACE)
    # All that can be wanted of the API: pods are read for this option only.
    with serving(tmp_path, "pods verified", environment=environment, account_folder=tmp_path / "account") as server:
        with private_cluster.namespace() as namespace:
            address = some_address()
            made = namespace.service("web", {"app": "web"}, HTTP)["spec"]["clusterIP"]
            namespace.pod("web-0", address, {"app": "web"})
            name = f"web.{namespace.name}.svc.{ZONE}"
            server.expect(name, "A", made)
            server.expect(f"{address.replace('.', '-')}.{name}", "A", address)
            server.expect(f"{address.replace('.', '-')}.{namespace.name}.pod.{ZONE}", "A", address)
        assert server.get("/ready") == (200, "OK")
        assert server.metric("kdns_kubernetes_failures_total") == 0
        assert "not allowed" not in server.said


# As a kubelet would run it


class Cluster(NamedTuple):
    """A control plane in a node's network, from where pods reach it."""

    node: Node
    plane: ControlPlane


@pytest.fixture(scope="module")
def node_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    control_plane.found_programs()
    node = Node(tmp_path_factory.mktemp("deploy") / "node")
    try:
        with contextlib.ExitStack() as life:
            with node.entered():
                plane = life.enter_context(control_plane.running(NODE_ADDRESS))
            yield Cluster(node, plane)
    finally:
        node.end()


@pytest.fixture(autouse=True)
def on_the_node(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test of the node's cluster is in the node's network, from where it reaches the API and every pod."""
    if "node_cluster" not in request.fixturenames:
        yield
        return
    with request.getfixturevalue("node_cluster").node.entered():
        yield


def test_the_pod_that_kubeadm_has_runs_with_the_new_image_as_it_stands(node_cluster: Cluster) -> None:
    node, plane = node_cluster
    install_as_kubeadm(plane)
    kubectl(plane, "-n", NAMESPACE, "set", "image", "deployment/coredns", f"coredns={OUR_IMAGE}")
    made = eventually(lambda: _pod_of(plane.api, OUR_IMAGE))
    pod = node.pod("coredns", "nameserver 198.51.100.53\n")
    with running(node_cluster, made, pod.line(), pod.folder) as server:
        [container] = made["spec"]["containers"]
        for name in ("livenessProbe", "readinessProbe"):
            eventually(lambda name=name: probe(container, name, pod.addresses[0]) == 200, START_SECONDS)
        assert ask("kubernetes.default", pod.addresses[0]) == ["10.96.0.1"]
        assert ask("kube-dns.kube-system", pod.addresses[0]) == ["10.96.0.10"]
        port = next(each["containerPort"] for each in container["ports"] if each["name"] == "metrics")
        assert "coredns_dns_requests_total{" in _page(f"http://{pod.addresses[0]}:{port}/metrics")[1]
        server.process.terminate()
        assert server.process.wait(30) == 0


def test_a_node_has_a_server_of_its_own_that_another_takes_over_from_without_a_gap(node_cluster: Cluster) -> None:
    node, plane = node_cluster
    kubectl(plane, "apply", "-k", str(DEPLOY / "node-local"))
    made = plane.api.request("GET", f"/apis/apps/v1/namespaces/{NAMESPACE}/daemonsets/node-local-dns")
    pod = made["spec"]["template"]
    assert pod["spec"]["hostNetwork"] is True
    [container], [first] = pod["spec"]["containers"], pod["spec"]["initContainers"]
    address = container["readinessProbe"]["httpGet"]["host"]
    # A second pod on the node does it again.
    for _ in range(2):
        done = node.run(*first["command"])
        assert done.returncode == 0, done.stderr

    line = node.line("unshare", "--mount", "--propagation=private")
    with running(node_cluster, pod, line, node.folder / "old") as old, contextlib.ExitStack() as life:
        for name in ("livenessProbe", "readinessProbe"):
            eventually(lambda name=name: probe(container, name, address) == 200, START_SECONDS)
        client = node.pod("client", f"nameserver {address}\nsearch default.svc.cluster.local\n")
        assert client.run("getent", "hosts", "kubernetes").stdout.split()[0] == "10.96.0.1"
        with asking(address) as lost:
            new = life.enter_context(running(node_cluster, pod, line, node.folder / "new"))
            # Both serve now, as while a DaemonSet with a surge is rolled; and now the old one goes.
            old.process.terminate()
            assert old.process.wait(30) == 0
            assert ask("kubernetes.default", address) == ["10.96.0.1"]
            assert new.process.poll() is None
        assert lost == []


class Container(NamedTuple):
    """A process, and where its words go."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def said(self) -> str:
        return self.log.read_text()


@contextlib.contextmanager
def running(cluster: Cluster, pod: Object, line: list[str], folder: Path) -> Iterator[Container]:
    """Run the container of a Pod by a command line that leads to its network, until it listens.

    Only where its volume is mounted and its resolv.conf lies is another place.
    """
    [container] = pod["spec"]["containers"]
    [mount], [volume] = container["volumeMounts"], pod["spec"]["volumes"]
    folder.mkdir(exist_ok=True)
    (folder / "resolv.conf").write_text("nameserver 198.51.100.53\n")
    [item] = volume["configMap"]["items"]
    text = cluster.plane.api.get("ConfigMap", volume["configMap"]["name"], NAMESPACE)["data"][item["key"]]
    (folder / item["path"]).write_text(text.replace("/etc/resolv.conf", str(folder / "resolv.conf")))
    account = folder / "account"
    variables = cluster.plane.service_account_folder(account, pod["spec"]["serviceAccountName"], NAMESPACE)
    args = [each.replace(mount["mountPath"], str(folder)) for each in container["args"]]
    within = ["env", *(f"{name}={value}" for name, value in variables.items())]
    within += ["sh", "-euc", ACCOUNT, "sh", str(account), str(started.COMMANDS / "coredns"), *args]
    log = folder / "said"
    with log.open("wb") as out:
        process = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *line, *within], stdout=out, stderr=out)
    made = Container(process, log)
    try:
        eventually(lambda: "CoreDNS-" in made.said or process.poll() is not None, START_SECONDS, "it doesn't listen")
        assert process.poll() is None, made.said
        yield made
    except BaseException as error:
        error.add_note(f"what kdns said:\n{made.said}")
        raise
    finally:
        process.kill()
        process.wait()


# A /var/run of its own, with nothing in it but the folder that a kubelet would have mounted.
ACCOUNT = """
from=$1
shift
mount -t tmpfs -o mode=755 none "$(readlink -f /var/run)"
mkdir -p /var/run/secrets/kubernetes.io/serviceaccount
mount --bind "$from" /var/run/secrets/kubernetes.io/serviceaccount
exec "$@"
"""


@contextlib.contextmanager
def asking(address: str) -> Iterator[list[str]]:
    """Ask all the time, over UDP and TCP; yields what was lost: no right answer, over TCP after one more connection."""
    lost: list[str] = []
    asked = [0, 0]
    ended = threading.Event()

    def ask_on(tcp: bool) -> None:
        while not ended.is_set():
            found: object = None
            for _ in range(2 if tcp else 1):
                try:
                    found = ask("kubernetes.default", address, tcp)
                    break
                except (OSError, EOFError, dns.exception.DNSException) as error:
                    found = error
            if found != ["10.96.0.1"]:
                lost.append(repr(found))
            asked[tcp] += 1

    threads = [threading.Thread(target=ask_on, args=(tcp,)) for tcp in (False, True)]
    for thread in threads:
        thread.start()
    try:
        eventually(lambda: min(asked) > 20)
        yield lost
        before = min(asked)
        eventually(lambda: min(asked) > before + 20)
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def ask(name: str, at: str, tcp: bool = False) -> list[str]:
    """The addresses of a service."""
    query = dns.message.make_query(f"{name}.svc.{ZONE}", "A")
    reply = (dns.query.tcp if tcp else dns.query.udp)(query, at, 5)
    return [str(data) for rrset in reply.answer for data in rrset]


def probe(container: Object, name: str, address: str) -> int:
    """The status that a kubelet gets; 0 where nobody listens."""
    get = container[name]["httpGet"]
    ports = {each["name"]: each["containerPort"] for each in container.get("ports", ())}
    with contextlib.suppress(OSError):
        return _page(f"http://{address}:{ports.get(get['port'], get['port'])}{get['path']}")[0]
    return 0


def _page(url: str) -> tuple[int, str]:
    try:
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(url, timeout=5) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def _pod_of(api: Api, image: str) -> Object | None:
    """A pod that the controllers have made with this image."""
    pods = api.list("Pod", NAMESPACE, "k8s-app=kube-dns")
    return next((pod for pod in pods if pod["spec"]["containers"][0]["image"] == image), None)


def _manifests(overlay: str) -> list[Object]:
    return [yaml.safe_load(path.read_text()) for path in (DEPLOY / overlay).iterdir()]


def _config(overlay: str) -> str:
    """The Corefile of an overlay."""
    [found] = [each["data"]["Corefile"] for each in _manifests(overlay) if each["kind"] == "ConfigMap"]
    return str(found)


def _container(overlay: str) -> Object:
    """The container of kdns in an overlay."""
    [workload] = [each for each in _manifests(overlay) if each["kind"] in ("Deployment", "DaemonSet")]
    [container] = workload["spec"]["template"]["spec"]["containers"]
    return dict(container)


def _two(pods: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return pods if len(pods) == 2 else []


def _rights(plane: ControlPlane, account: str) -> set[tuple[str, str, str]]:
    """Verb, group and resource of all that an account may do."""
    client: Api = plane.client(plane.api.token(account, NAMESPACE))
    try:
        review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview"}
        path = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews"
        status = client.request("POST", path, review | {"spec": {"namespace": NAMESPACE}})["status"]
    finally:
        client.close()
    assert not status["incomplete"]
    assert not [rule for rule in status["resourceRules"] if rule.get("resourceNames")]
    return {
        (verb, group, resource)
        for rule in status["resourceRules"]
        for verb in rule["verbs"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
