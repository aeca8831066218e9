"""The variables of services: what Kubernetes' own code makes of them, and of which services a kubelet tells."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import msgspec
import pytest

from kdns import environment
from kdns.errors import ConfigError
from kdns.kubernetes.objects import Metadata, Namespace, Object, Pod, PodSpec, Service
from tests.cluster.kubelet import Document, variables_of
from tests.started import run

HTTP: Document = {"port": 80, "protocol": "TCP"}


def service(name: str, address: str = "10.0.0.11", *ports: Document, space: str = "shop", **spec: object) -> Document:
    """A Service as the API shows it."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": space},
        "spec": {"clusterIP": address, "clusterIPs": [address], "ports": list(ports or (HTTP,)), **spec},
    }


KUBERNETES = service("kubernetes", "10.96.0.1", {"name": "https", "port": 443}, space="default")


def cluster(*services: Document, pods: tuple[Pod, ...] = ()) -> list[Object]:
    """A cluster with the namespaces `default` and `shop`."""
    spaces = [Namespace(Metadata(name=name)) for name in ("default", "shop")]
    return [*spaces, *(msgspec.convert(each, type=Service) for each in (KUBERNETES, *services)), *pods]


def told(*services: Document, namespace: str = "shop", pod: str = "", pods: tuple[Pod, ...] = ()) -> set[str]:
    """The addresses of services that a pod is told of."""
    found = environment.of_namespace(cluster(*services, pods=pods), namespace, pod).variables
    return {f"{name}={value}" for name, value in found.items() if name.endswith("_SERVICE_HOST")}


# What is told of a service


@pytest.mark.parametrize(
    "each",
    [
        pytest.param(service("foo-bar", "1.2.3.4", {"port": 8080, "protocol": "TCP"}), id="one unnamed port"),
        pytest.param(service("redis-master", "10.0.0.11", {"name": "redis", "port": 6379}), id="one named port"),
        pytest.param(
            service(
                "abc-123",
                "5.6.7.8",
                {"name": "u-d-p", "port": 8081, "protocol": "UDP"},
                {"name": "t-c-p", "port": 8081, "protocol": "TCP"},
                {"name": "sctp-4", "port": 9, "protocol": "SCTP"},
            ),
            id="a port of each protocol, two of one number",
        ),
        pytest.param(service("plain", "10.0.0.1", {"port": 1}), id="no protocol"),
        pytest.param(service("1st", "10.0.0.1"), id="a name that begins with a digit"),
        pytest.param(service("six", "2001:DB8::", {"port": 8084, "protocol": "UDP"}), id="IPv6, as it is written"),
        pytest.param(service("dual", "fd00::1", clusterIPs=["fd00::1", "10.0.0.1"]), id="the first family only"),
        pytest.param(service("np", "10.0.0.1", {"port": 80, "nodePort": 30080}, type="NodePort"), id="NodePort"),
        pytest.param(service("pets", "None"), id="headless"),
        pytest.param(service("away", "", type="ExternalName", externalName="example.com"), id="ExternalName"),
        pytest.param(service("soon", ""), id="no address yet"),
    ],
)
def test_a_service_gives_the_variables_that_kubernetes_makes_of_it(each: Document) -> None:
    services = environment.told([msgspec.convert(each, type=Service)], "shop", links=True)
    assert list(environment.of_services(services).variables.items()) == variables_of([each])


def test_services_give_their_variables_in_the_order_of_their_names() -> None:
    each, other = service("b", "10.0.0.2"), service("a", "10.0.0.1")
    found = environment.of_namespace(cluster(each, other), "shop")
    assert list(found.variables.items()) == variables_of([other, each, KUBERNETES])
    assert not found.warnings


def test_of_two_services_that_give_the_same_variable_the_later_holds_and_that_is_told() -> None:
    # `X_SERVICE_PORT` is the port of `x`, and what links gave of `x-service`.
    found = environment.of_namespace(cluster(service("x"), service("x-service", "10.0.0.12")), "shop")
    assert found.variables["X_SERVICE_PORT"] == "tcp://10.0.0.12:80"
    assert [each.message for each in found.warnings] == [
        "the services `x` and `x-service` both give `X_SERVICE_PORT`; here it is that of `x-service`"
    ]


@pytest.mark.parametrize(
    "each",
    [
        pytest.param(service("1\nreboot"), id="a line of its own in the name"),
        pytest.param(service("x=y"), id="a sign that ends a name"),
        pytest.param(service("web", "$(reboot)"), id="a command for an address"),
        pytest.param(service("web", "10.0.0.1", {"name": "a\0b", "port": 1}), id="a zero byte in a port's name"),
        pytest.param(service("web", "10.0.0.1", {"protocol": "a;b", "port": 1}), id="another command"),
    ],
)
def test_a_service_that_kubernetes_would_not_allow_gives_no_variables_and_that_is_told(each: Document) -> None:
    found = environment.of_namespace(cluster(each, service("ok", "10.0.0.9")), "shop")
    assert list(found.variables.items()) == variables_of([KUBERNETES, service("ok", "10.0.0.9")])
    name = each["metadata"]["name"]
    told = [f"{name!r} gives no variables: Kubernetes allows no such service"]
    assert [warning.message for warning in found.warnings] == told


# Which services are told


def test_a_pod_is_told_of_its_own_namespace_and_of_the_api() -> None:
    others = service("web", "10.0.0.12"), service("other", space="default")
    assert told(*others) == {"WEB_SERVICE_HOST=10.0.0.12", "KUBERNETES_SERVICE_HOST=10.96.0.1"}


def test_a_pod_of_namespace_default_is_told_of_all_there() -> None:
    others = service("web", "10.0.0.12"), service("other", space="default")
    expected = {"OTHER_SERVICE_HOST=10.0.0.11", "KUBERNETES_SERVICE_HOST=10.96.0.1"}
    assert told(*others, namespace="default") == expected


def test_a_service_called_kubernetes_hides_that_of_the_api_from_its_namespace() -> None:
    assert told(service("kubernetes", "10.0.0.13")) == {"KUBERNETES_SERVICE_HOST=10.0.0.13"}


@pytest.mark.parametrize("spec", [PodSpec(enable_service_links=True), PodSpec(), None])
def test_a_pod_that_says_nothing_of_service_links_has_them(spec: PodSpec | None) -> None:
    pod = Pod(Metadata(name="p", namespace="shop"), spec)
    assert "WEB_SERVICE_HOST=10.0.0.11" in told(service("web"), pod="p", pods=(pod,))


def test_a_pod_without_service_links_is_told_of_the_api_alone() -> None:
    pod = Pod(Metadata(name="p", namespace="shop"), PodSpec(enable_service_links=False))
    services = service("web"), service("kubernetes", "10.0.0.13")
    assert told(*services, pod="p", pods=(pod,)) == {"KUBERNETES_SERVICE_HOST=10.96.0.1"}


def test_a_namespace_or_pod_that_isnt_there_is_a_mistake() -> None:
    pod = Pod(Metadata(name="web-0", namespace="shop"))
    with pytest.raises(ConfigError) as space:
        told(namespace="shp", pods=(pod,))
    with pytest.raises(ConfigError) as missing:
        told(pod="web-1", pods=(pod,))
    assert str(space.value) == "error: there is no namespace `shp`\nhint: did you mean `shop`?"
    assert str(missing.value) == "error: there is no pod `web-1` in `shop`\nhint: did you mean `web-0`?"


# How they are printed

VARIABLES = {"WEB_PORT": "tcp://[fd00::1]:80", "1ST_PORT": "tcp://10.0.0.1:80"}


@pytest.mark.parametrize("form", ["env", "dotenv"])
def test_env_and_dotenv_are_what_env_prints(form: str) -> None:
    assert list(environment.FORMATS[form](VARIABLES)) == [f"{name}={value}" for name, value in VARIABLES.items()]


def test_a_shell_that_evaluates_the_exports_has_the_variables_whose_names_it_can_have(tmp_path: Path) -> None:
    text = "\n".join(environment.as_export(VARIABLES))
    # A shell takes brackets without quotes for a pattern of files.
    (tmp_path / "WEB_PORT=tcp:" / "f:80").mkdir(parents=True)
    script = f'{text}\nprintf "%s\\n" "$WEB_PORT"'
    done = subprocess.run(["sh", "-euc", script], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.splitlines() == [VARIABLES["WEB_PORT"]]
    assert "# 1ST_PORT=tcp://10.0.0.1:80 is no variable of a shell" in text


def test_json_is_an_object() -> None:
    assert json.loads("\n".join(environment.as_json(VARIABLES))) == VARIABLES


# kdns env

WEB = """\
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.3.4, ports: [{port: 80}]}
---
apiVersion: v1
kind: Pod
metadata: {name: alone, namespace: shop}
spec: {enableServiceLinks: false}
"""
WEB_VARIABLES = """\
WEB_SERVICE_HOST=10.96.3.4
WEB_SERVICE_PORT=80
WEB_PORT=tcp://10.96.3.4:80
WEB_PORT_80_TCP=tcp://10.96.3.4:80
WEB_PORT_80_TCP_PROTO=tcp
WEB_PORT_80_TCP_PORT=80
WEB_PORT_80_TCP_ADDR=10.96.3.4
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "web.yaml").write_text(WEB)
    return tmp_path


@pytest.mark.parametrize(
    ("line", "code", "out", "err"),
    [
        ("-n shop -i web.yaml", 0, WEB_VARIABLES, ""),
        ("-n shop --pod alone -i web.yaml", 0, "", ""),
        ("-n shop -i web.yaml -- printenv WEB_SERVICE_PORT", 0, "80\n", ""),
        ("-n shop -i web.yaml -- printenv WEB_SERVICE_PROT", 1, "", ""),
        ("-n shop -i web.yaml sh -c exit\\ 7", 7, "", ""),
        ("-n shop -i web.yaml -- ./none", 127, "", "error: `./none`: no such file or directory\n"),
        ("-n shop -i web.yaml -- ./web.yaml", 126, "", "error: `./web.yaml`: permission denied\n"),
        ("-n shop -i web.yaml -- ", 127, "", "error: ``: no such file or directory\n"),
        ("-n shp -i web.yaml", 1, "", "error: there is no namespace `shp`\nhint: did you mean `shop`?\n"),
    ],
)
def test_env_prints_the_variables_or_runs_a_command_with_them(
    folder: Path, line: str, code: int, out: str, err: str
) -> None:
    words = [word.replace("\0", " ") for word in line.replace("\\ ", "\0").split(" ")]
    done = run("kdns", "env", *words, cwd=folder)
    assert (done.returncode, done.stdout, done.stderr) == (code, out, err)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("-n shop", "give either --inventory PATH or --kubeconfig FILE"),
        ("-n shop -i web.yaml --kubeconfig k", "give either --inventory PATH or --kubeconfig FILE"),
        ("-n shop -i web.yaml --format json true", "--format is for what is printed"),
        ("-i web.yaml", "Missing option '--namespace'"),
        ("-n shop -i web.yaml --context c", "--context is one of a --kubeconfig FILE"),
        ("-n shop --kubeconfig k --service-cidr 10.0.0.0/8", "--service-cidr is for an --inventory"),
    ],
)
def test_env_that_is_asked_wrong_says_so(folder: Path, line: str, why: str) -> None:
    done = run("kdns", "env", *line.split(), cwd=folder)
    assert (done.returncode, done.stdout) == (2, "")
    assert why in done.stderr


def test_a_command_gets_the_variables_over_those_that_are_there_and_signals_as_they_are_by_default(
    folder: Path,
) -> None:
    # A shell that inherits an ignored SIGPIPE goes on writing for ever.
    script = "kdns env -n shop -i web.yaml -- sh -c 'trap; echo $WEB_SERVICE_PORT; while :; do echo y; done' | head -2"
    environment_there = {"PATH": f"{Path(__file__).parents[1]}/.venv/bin:/usr/bin:/bin", "WEB_SERVICE_PORT": "1"}
    done = subprocess.run(
        ["sh", "-c", script], capture_output=True, text=True, timeout=20, cwd=folder, env=environment_there, check=True
    )
    assert (done.stdout, done.stderr) == ("80\ny\n", "")
