"""The test cluster is a cluster: what other tests take for granted of it."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import pytest

from tests import needs
from tests.cluster import control_plane
from tests.cluster.api import Api, ApiError, eventually
from tests.cluster.control_plane import ControlPlane, Namespace


def test_the_api_has_its_own_service_in_two_families(cluster: ControlPlane) -> None:
    spec = cluster.api.get("Service", "kubernetes")["spec"]
    assert spec["clusterIP"] == "10.96.0.1"
    assert {"default", "kube-system"} <= {each["metadata"]["name"] for each in cluster.api.list("Namespace")}


def test_a_pod_that_becomes_ready_becomes_an_endpoint(namespace: Namespace) -> None:
    namespace.service("web", {"app": "web"}, ipFamilyPolicy="RequireDualStack")
    namespace.pod("web-0", ["10.1.0.7", "fd00:1::7"], {"app": "web"}, ready=False)
    namespace.wait_endpoints("web", {"10.1.0.7": False, "fd00:1::7": False})
    namespace.pod_status("web-0", ready=True)
    namespace.wait_endpoints("web", {"10.1.0.7": True, "fd00:1::7": True})
    namespace.delete("Pod", "web-0")
    namespace.wait_endpoints("web", {})


def test_a_pod_with_a_time_of_grace_terminates_until_it_is_deleted_at_once(namespace: Namespace) -> None:
    namespace.service("web", {"app": "web"})
    namespace.pod("web-0", "10.1.0.7", {"app": "web"})
    namespace.wait_endpoints("web", {"10.1.0.7": True})
    namespace.delete("Pod", "web-0", grace_seconds=None)
    namespace.wait_endpoints("web", {"10.1.0.7": False})
    namespace.delete("Pod", "web-0")
    namespace.wait_endpoints("web", {})


def test_a_namespace_goes_with_all_that_is_in_it(cluster: ControlPlane) -> None:
    with cluster.namespace() as namespace:
        namespace.service("web", {"app": "web"})
        namespace.pod("web-0", "10.1.0.7", {"app": "web"})

    def gone() -> bool:
        return namespace.name not in [each["metadata"]["name"] for each in cluster.api.list("Namespace")]

    # The controller itself waits five seconds for stragglers.
    eventually(gone, 20)


def test_a_service_account_has_the_rights_that_it_is_given(cluster: ControlPlane, namespace: Namespace) -> None:
    namespace.create("ServiceAccount", "reader")
    client = cluster.client(cluster.api.token("reader", namespace.name))
    try:
        with pytest.raises(ApiError) as refused:
            client.list("Service", namespace.name)
        assert refused.value.status == 403
        namespace.create("Role", "reader", rules=[{"apiGroups": [""], "resources": ["services"], "verbs": ["list"]}])
        namespace.create(
            "RoleBinding",
            "reader",
            roleRef={"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "reader"},
            subjects=[{"kind": "ServiceAccount", "name": "reader", "namespace": namespace.name}],
        )
        eventually(lambda: _may(client, namespace.name))
    finally:
        client.close()


def _may(client: Api, namespace: str) -> bool:
    try:
        return client.list("Service", namespace) == []
    except ApiError as error:
        return error.status != 403


def test_a_client_certificate_says_who_asks(cluster: ControlPlane, namespace: Namespace) -> None:
    client = cluster.client(certificate=cluster.client_certificate("somebody", "system:masters"))
    try:
        assert client.list("Service", namespace.name) == []
    finally:
        client.close()


def test_what_a_pod_finds_of_its_account_lets_it_in(cluster: ControlPlane, tmp_path: Path) -> None:
    environment = cluster.service_account_folder(tmp_path, "default")
    assert cluster.server == "https://{KUBERNETES_SERVICE_HOST}:{KUBERNETES_SERVICE_PORT}".format(**environment)
    assert {path.name for path in tmp_path.iterdir()} == {"ca.crt", "namespace", "token"}
    before = (tmp_path / "token").read_text()
    assert cluster.renew_token(tmp_path, "default") == (tmp_path / "token").read_text() != before


def test_killed_or_stopped_it_comes_back_with_all_that_it_had(private_cluster: ControlPlane) -> None:
    plane = private_cluster
    with plane.namespace("shop") as namespace:
        kept = namespace.service("web", {"app": "web"})
        namespace.pod("web-0", "10.1.0.7", {"app": "web"})
        namespace.wait_endpoints("web", {"10.1.0.7": True})
        plane.compact()
        plane.api_server.restart()
        plane.etcd.kill()
        plane.etcd.start()
        plane.api_server.wait_ready()
        assert plane.api.get("Service", "web", "shop")["spec"] == kept["spec"]
        plane.api_server.stop()
        time.sleep(0.1)
        plane.api_server.cont()
        # The controllers found back too.
        namespace.pod("web-1", "10.1.0.8", {"app": "web"})
        namespace.wait_endpoints("web", {"10.1.0.7": True, "10.1.0.8": True}, 30)
        plane.renew_authority()
        namespace.delete("Pod", "web-1")
        namespace.wait_endpoints("web", {"10.1.0.7": True}, 30)


def test_programs_that_are_missing_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(tmp_path))
    (tmp_path / "etcd").touch(0o755)
    outcome = pytest.fail.Exception if needs.ON_CI else pytest.skip.Exception
    with pytest.raises(outcome, match=r"no kube-apiserver, .*; `make control-plane` builds them"):
        control_plane.found_programs()


def test_nothing_is_left_of_a_cluster_whose_test_failed() -> None:
    with contextlib.suppress(ZeroDivisionError), control_plane.running() as plane:
        plane.api_server.stop()
        raise ZeroDivisionError
    assert not [component.name for component in plane.components if component.alive]
    assert not plane.folder.exists()
