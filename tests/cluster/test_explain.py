"""`kdns explain` on a live cluster: as a server watches it, and as it is read once."""

from __future__ import annotations

from pathlib import Path

import msgspec

from kdns.explain.report import Explanation
from tests.cluster.api import eventually
from tests.cluster.control_plane import ControlPlane, Namespace
from tests.cluster.serving import serving
from tests.started import run


def explained(*arguments: str) -> tuple[int, Explanation]:
    done = run("kdns", "explain", *arguments, "--json")
    assert done.stderr == ""
    return done.returncode, msgspec.json.decode(done.stdout, type=Explanation)


def test_a_server_and_the_api_tell_the_same_version_and_as_many_endpoints(
    cluster: ControlPlane, namespace: Namespace, tmp_path: Path
) -> None:
    service = namespace.service("web", {"app": "web"}, ports=[{"name": "http", "port": 80}])
    namespace.pod("web-0", "10.244.9.20", {"app": "web"}, dnsConfig={"options": [{"name": "ndots", "value": "2"}]})
    namespace.pod("web-1", "10.244.9.21", {"app": "web"}, ready=False)
    kubeconfig = str(cluster.kubeconfig())
    name, pod = f"web.{namespace.name}", f"{namespace.name}/web-0"
    with serving(tmp_path, f"kubeconfig {kubeconfig}\npods verified") as server:
        server.expect(f"10-244-9-20.web.{namespace.name}.svc.cluster.local.", "A", "10.244.9.20")
        place = ["--server", f"127.0.0.1:{server.port}"]

        def both_endpoints() -> Explanation:
            _, told = explained(name, "--from", pod, *place)
            endpoints = told.objects[0].endpoints
            assert endpoints is not None
            assert (endpoints.ready, endpoints.total, endpoints.counted) == (1, 2, "addresses")
            return told

        running = eventually(both_endpoints)
    code, read = explained(name, "--from", pod, "--kubeconfig", kubeconfig)
    assert code == 0
    for told in (running, read):
        assert told.summary == f"resolves to {service['spec']['clusterIP']}"
        assert told.objects[0].resource_version == service["metadata"]["resourceVersion"]
        assert told.client.address == "10.244.9.20"
    # What the API has and a server doesn't keep.
    assert (running.client.ndots, read.client.ndots) == (5, 2)
    endpoints = read.objects[0].endpoints
    assert endpoints is not None
    assert (endpoints.ready, endpoints.total, endpoints.counted) == (1, 2, "pods")
    assert [(each.name, each.why) for each in endpoints.not_ready] == [("web-1", "not ready")]


def test_a_service_without_a_ready_endpoint_is_told_by_both(
    cluster: ControlPlane, namespace: Namespace, tmp_path: Path
) -> None:
    namespace.service("pets", {"app": "pets"}, clusterIP="None")
    namespace.pod("pet-0", "10.244.9.22", {"app": "pets"}, ready=False)
    kubeconfig = str(cluster.kubeconfig())
    name = f"pets.{namespace.name}.svc.cluster.local."
    with serving(tmp_path, f"kubeconfig {kubeconfig}") as server:
        code, running = explained(name, "--server", f"127.0.0.1:{server.port}")
        assert (code, running.hints[0].code) == (1, "headless-nothing-ready")
    code, read = explained(name, "--kubeconfig", kubeconfig)
    assert (code, read.hints[0].code) == (1, "headless-nothing-ready")
