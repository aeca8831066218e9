"""deploy/ is what a cluster takes: a real API server and its controllers say so."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from kdns import __version__
from tests import started
from tests.cluster.api import Api, eventually
from tests.cluster.control_plane import NODE, ControlPlane

DEPLOY = started.ROOT / "deploy"
NAMESPACE = "kube-system"
MANIFESTS = {
    "clusterrole.rbac.authorization.k8s.io/system:coredns",
    "clusterrolebinding.rbac.authorization.k8s.io/system:coredns",
    "configmap/coredns",
    "deployment.apps/coredns",
    "poddisruptionbudget.policy/coredns",
    "service/kube-dns",
    "serviceaccount/coredns",
}

# What kubeadm installs, as far as another's manifests could collide with it.
KUBEADM_DEPLOYMENT: dict[str, Any] = {
    "kind": "Deployment",
    "metadata": {"name": "coredns", "namespace": NAMESPACE, "labels": {"k8s-app": "kube-dns"}},
    "spec": {
        "replicas": 2,
        "selector": {"matchLabels": {"k8s-app": "kube-dns"}},
        "template": {
            "metadata": {"labels": {"k8s-app": "kube-dns"}},
            "spec": {
                "serviceAccountName": "coredns",
                "containers": [
                    {
                        "name": "coredns",
                        "image": "coredns.invalid/coredns:v1.14.2",
                        "args": ["-conf", "/etc/coredns/Corefile"],
                        "ports": [
                            {"containerPort": 53, "name": "dns", "protocol": "UDP"},
                            {"containerPort": 53, "name": "dns-tcp", "protocol": "TCP"},
                            {"containerPort": 9153, "name": "metrics", "protocol": "TCP"},
                        ],
                        "livenessProbe": {"httpGet": {"path": "/health", "port": 8080, "scheme": "HTTP"}},
                        "readinessProbe": {"httpGet": {"path": "/ready", "port": 8181, "scheme": "HTTP"}},
                        "volumeMounts": [{"name": "config-volume", "mountPath": "/etc/coredns", "readOnly": True}],
                    }
                ],
                "volumes": [
                    {
                        "name": "config-volume",
                        "configMap": {"name": "coredns", "items": [{"key": "Corefile", "path": "Corefile"}]},
                    }
                ],
            },
        },
    },
}
KUBEADM_SERVICE: dict[str, Any] = {
    "kind": "Service",
    "metadata": {"name": "kube-dns", "namespace": NAMESPACE, "labels": {"k8s-app": "kube-dns"}},
    "spec": {
        "clusterIP": "10.96.0.10",
        "selector": {"k8s-app": "kube-dns"},
        "ports": [
            {"name": "dns", "port": 53, "protocol": "UDP", "targetPort": 53},
            {"name": "dns-tcp", "port": 53, "protocol": "TCP", "targetPort": 53},
            {"name": "metrics", "port": 9153, "protocol": "TCP", "targetPort": 9153},
        ],
    },
}


def test_the_api_server_accepts_every_manifest(cluster: ControlPlane) -> None:
    done = cluster.kubectl("apply", "--dry-run=server", "--validate=strict", "--output=name", "-k", str(DEPLOY))
    # Fields that are unknown or deprecated are warnings, on stderr.
    assert (done.returncode, done.stderr) == (0, "")
    assert set(done.stdout.split()) == MANIFESTS


def test_every_file_is_part_of_it() -> None:
    listed = yaml.safe_load((DEPLOY / "kustomization.yaml").read_text())["resources"]
    assert {path.name for path in DEPLOY.iterdir()} == {*listed, "kustomization.yaml"}


def test_the_account_may_list_and_watch_what_dns_is_made_of_and_nothing_else(deployed: ControlPlane) -> None:
    # Every account may ask who it is and which APIs there are.
    given = _rights(deployed, "coredns") - _rights(deployed, "default")
    assert given == {
        (verb, *resource)
        for verb in ("list", "watch")
        for resource in (
            ("", "services"),
            ("", "pods"),
            ("", "namespaces"),
            ("discovery.k8s.io", "endpointslices"),
        )
    }


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


def test_applied_to_a_cluster_of_kubeadm_it_takes_the_place_of_coredns_until_undone(
    private_cluster: ControlPlane,
) -> None:
    api = private_cluster.api
    api.create(KUBEADM_DEPLOYMENT)
    api.create(KUBEADM_SERVICE)
    # Only what the controller has seen can be gone back to.
    eventually(lambda: api.get("Deployment", "coredns", NAMESPACE)["status"].get("observedGeneration") == 1)
    done = private_cluster.kubectl("apply", "-k", str(DEPLOY))
    assert done.returncode == 0, done.stderr
    deployments = api.list("Deployment", NAMESPACE, "k8s-app=kube-dns")
    assert len(deployments) == 1
    pod = deployments[0]["spec"]["template"]["spec"]
    ours = yaml.safe_load((DEPLOY / "deployment.yaml").read_text())["spec"]["template"]["spec"]
    assert [container["image"] for container in pod["containers"]] == [ours["containers"][0]["image"]]
    assert pod["containers"][0]["ports"] == ours["containers"][0]["ports"]
    assert pod["containers"][0]["volumeMounts"] == ours["containers"][0]["volumeMounts"]
    assert [volume["name"] for volume in pod["volumes"]] == ["config-volume"]
    assert api.get("Service", "kube-dns", NAMESPACE)["spec"]["clusterIP"] == "10.96.0.10"
    eventually(lambda: api.get("Deployment", "coredns", NAMESPACE)["status"].get("observedGeneration") == 2)
    done = private_cluster.kubectl("-n", NAMESPACE, "rollout", "undo", "deployment/coredns")
    assert done.returncode == 0, done.stderr
    back = api.get("Deployment", "coredns", NAMESPACE)["spec"]["template"]["spec"]["containers"]
    assert [container["image"] for container in back] == ["coredns.invalid/coredns:v1.14.2"]


def test_its_corefile_has_no_mistake(tmp_path: Path) -> None:
    corefile = tmp_path / "Corefile"
    (tmp_path / "resolv.conf").write_text("nameserver 192.0.2.1\n")
    text = yaml.safe_load((DEPLOY / "configmap.yaml").read_text())["data"]["Corefile"]
    corefile.write_text(text.replace("/etc/resolv.conf", str(tmp_path / "resolv.conf")))
    done = started.run("kdns", "check", str(corefile))
    assert (done.returncode, done.stdout + done.stderr) == (0, "no mistake\n")


def test_probes_and_ports_are_those_of_the_corefile() -> None:
    text = yaml.safe_load((DEPLOY / "configmap.yaml").read_text())["data"]["Corefile"]
    container = yaml.safe_load((DEPLOY / "deployment.yaml").read_text())["spec"]["template"]["spec"]["containers"][0]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert re.search(r"^\.:53 \{$", text, re.MULTILINE)
    assert re.search(r"^ +prometheus :9153$", text, re.MULTILINE)
    # `health` and `ready` without an address: 8080 and 8181.
    assert re.search(r"^ +health \{$", text, re.MULTILINE)
    assert re.search(r"^ +ready$", text, re.MULTILINE)
    assert ports == {"dns": 53, "dns-tcp": 53, "metrics": 9153, "liveness-probe": 8080, "readiness-probe": 8181}


def test_the_image_is_of_this_version() -> None:
    container = yaml.safe_load((DEPLOY / "deployment.yaml").read_text())["spec"]["template"]["spec"]["containers"][0]
    assert container["image"] == f"kdns:{__version__}"


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
