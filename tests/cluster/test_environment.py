"""The variables of a live cluster's services, by the rights of a user of one namespace; and a comparison on it."""

from __future__ import annotations

from pathlib import Path

from tests.cluster.control_plane import ControlPlane, Namespace
from tests.cluster.kubelet import variables_of
from tests.cluster.serving import serving
from tests.cluster.test_rights import allow
from tests.started import run


def lines(*services: dict[str, object]) -> str:
    return "".join(f"{name}={value}\n" for name, value in variables_of(services))


def test_the_variables_are_those_that_kubernetes_makes_of_what_the_api_has(
    cluster: ControlPlane, namespace: Namespace
) -> None:
    one = namespace.service(
        "web", ports=[{"name": "http", "port": 80}, {"name": "dns-u", "port": 53, "protocol": "UDP"}]
    )
    six = namespace.service("six", ports=[443], ipFamilies=["IPv6"])
    namespace.service("pets", clusterIP="None")
    kubernetes = cluster.api.get("Service", "kubernetes")
    done = run("kdns", "env", "-n", namespace.name, "--kubeconfig", str(cluster.kubeconfig()))
    assert (done.returncode, done.stdout, done.stderr) == (0, lines(kubernetes, six, one), "")


def test_a_pod_without_service_links_is_told_of_the_api_alone(cluster: ControlPlane, namespace: Namespace) -> None:
    namespace.service("web")
    namespace.pod("alone", enableServiceLinks=False)
    done = run("kdns", "env", "-n", namespace.name, "--pod", "alone", "--kubeconfig", str(cluster.kubeconfig()))
    assert (done.returncode, done.stdout) == (0, lines(cluster.api.get("Service", "kubernetes")))


def test_a_namespace_that_the_cluster_doesnt_have_is_a_mistake(cluster: ControlPlane) -> None:
    done = run("kdns", "env", "-n", "nosuch", "--kubeconfig", str(cluster.kubeconfig()))
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "error: there is no namespace `nosuch`\n")


def test_the_rights_in_one_namespace_are_enough_for_its_services(
    cluster: ControlPlane, namespace: Namespace, tmp_path: Path
) -> None:
    web = namespace.service("web")
    namespace.create("ServiceAccount", "reader")
    allow(namespace, "reader", namespace.name, "services")
    token = cluster.api.token("reader", namespace.name)
    kubeconfig = cluster.kubeconfig(tmp_path / "kubeconfig", token)
    done = run("kdns", "env", "-n", namespace.name, "--kubeconfig", str(kubeconfig))
    assert (done.returncode, done.stdout) == (0, lines(web))
    warning = (
        "warning: the variables of `kubernetes` are missing: the cluster was not read within 5 s: services of default"
    )
    assert done.stderr.startswith(warning)


def test_a_comparison_of_kdns_with_a_kdns_on_the_same_cluster_finds_nothing(
    cluster: ControlPlane, namespace: Namespace, tmp_path: Path
) -> None:
    namespace.service("web", {"app": "web"})
    namespace.pod("web-0", "10.244.9.9", {"app": "web"})
    kubeconfig = str(cluster.kubeconfig())
    with serving(tmp_path, f"kubeconfig {kubeconfig}\npods verified") as there:
        corefile = ". {\n    kubernetes cluster.local in-addr.arpa ip6.arpa {\n        pods verified\n    }\n}\n"
        (tmp_path / "Own").write_text(corefile)
        server = ["--against", f"127.0.0.1:{there.port}", "--rate", "5000"]
        done = run("kdns", "compare", *server, "--kubeconfig", kubeconfig, "--corefile", str(tmp_path / "Own"))
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert done.stdout.endswith("no difference\n")
