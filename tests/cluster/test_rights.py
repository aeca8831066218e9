"""As whom kdns asks the API: its rights are enough, one that is lost costs no answer, new keys are found."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import re
import shutil
import ssl
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from kdns.kubernetes.api import ApiSource, Wanted
from kdns.kubernetes.audit import audit
from kdns.kubernetes.changes import key_of
from kdns.kubernetes.client import Client
from kdns.kubernetes.credentials import in_cluster
from kdns.kubernetes.objects import Delete, Event, Put, Synced
from kdns.metrics import Metrics
from tests.cluster import control_plane
from tests.cluster.api import KINDS, Api, ApiError, Object, eventually, path_of
from tests.cluster.control_plane import ControlPlane, Namespace
from tests.cluster.serving import asking, environment_of, serving, some_address, way
from tests.cluster.test_services import HTTP, ZONE, reverse

# The back-off grows to 30 s, and as much by chance as it has grown.
BACK_SECONDS = 60.0
# The limit for new credentials, and what a busy machine takes for itself.
ROTATION_SECONDS = 60.0 + 10.0
# Waits that end at a limit of ours end before pytest's, so that they can say what they waited for.
pytestmark = pytest.mark.timeout(180)

RBAC = "rbac.authorization.k8s.io"
READS = ["list", "watch"]


def rule(*resources: str) -> Object:
    """The right to read these, of whichever group they are."""
    return {"apiGroups": ["", "discovery.k8s.io"], "resources": list(resources), "verbs": READS}


def allow(namespace: Namespace, account: str, of: str, *resources: str) -> None:
    """Let a ServiceAccount of a namespace `of` read these in this one."""
    namespace.create("Role", "reader", rules=[rule(*resources)])
    subject = {"kind": "ServiceAccount", "name": account, "namespace": of}
    role = {"apiGroup": RBAC, "kind": "Role", "name": "reader"}
    namespace.create("RoleBinding", "reader", roleRef=role, subjects=[subject])


@contextlib.contextmanager
def cluster_reader(cluster: ControlPlane, namespace: Namespace) -> Iterator[str]:
    """A ServiceAccount with rights in the whole cluster, by a ClusterRole of the name that is given."""
    api, name = cluster.api, f"reader-{namespace.name}"
    namespace.create("ServiceAccount", "reader")
    api.create({"kind": "ClusterRole", "metadata": {"name": name}, "rules": []})
    subject = {"kind": "ServiceAccount", "name": "reader", "namespace": namespace.name}
    role = {"apiGroup": RBAC, "kind": "ClusterRole", "name": name}
    try:
        api.create({"kind": "ClusterRoleBinding", "metadata": {"name": name}, "roleRef": role, "subjects": [subject]})
        yield name
    finally:
        for kind in ("ClusterRoleBinding", "ClusterRole"):
            with contextlib.suppress(ApiError):
                api.delete(kind, name)


def test_a_right_that_is_taken_away_freezes_what_it_was_for(
    cluster: ControlPlane, namespace: Namespace, tmp_path: Path
) -> None:
    address, later = some_address(), some_address()
    namespace.service("db", {"app": "db"}, HTTP, clusterIP="None")
    namespace.pod("db-0", address, {"app": "db"}, hostname="db-0", subdomain="db")
    name = f"db.{namespace.name}.svc.{ZONE}"
    everything = ["namespaces", "services", "endpointslices", "pods"]

    def set_rights(role: str, *resources: str) -> None:
        cluster.api.patch("ClusterRole", role, {"rules": [rule(*resources)] if resources else []})

    with cluster_reader(cluster, namespace) as role, way(cluster.address, cluster.port) as between:
        set_rights(role, *everything)
        account = tmp_path / "account"
        cluster.service_account_folder(account, "reader", namespace.name)
        with serving(
            tmp_path, "pods verified", environment=environment_of(between.port), account_folder=account
        ) as server:
            server.expect(name, "A", address)
            throughout = [(name, "A"), (f"db-0.{name}", "A"), (f"_http._tcp.{name}", "SRV"), (reverse(address), "PTR")]
            with asking(server, *throughout) as asker:
                set_rights(role, "namespaces", "services", "pods")
                # A watch that is open stays so: the rights count again when it is opened.
                between.cut()
                said = server.says("not allowed to ")
                assert re.search(r"endpointslices: not allowed to (watch|list) endpointslices: ", said)
                assert "not allowed to watch services" not in said
                # The endpoints stay as they were; all else goes on.
                namespace.pod("db-1", later, {"app": "db"}, hostname="db-1", subdomain="db")
                namespace.wait_endpoints("db", {address: True, later: True})
                made = namespace.service("new")["spec"]["clusterIP"]
                server.expect(f"new.{namespace.name}.svc.{ZONE}", "A", made, seconds=BACK_SECONDS)
                server.expect(f"{later.replace('.', '-')}.{namespace.name}.pod.{ZONE}", "A", later)
                assert server.ask(name).data == [address]
                assert server.ask(f"db-1.{name}").rcode == "NXDOMAIN"
                assert server.get("/ready") == (200, "OK")
                server.wait_metric("kdns_kubernetes_failures_total", 1, kind="EndpointSlice", status="403")
                assert server.metric("kdns_kubernetes_failures_total", kind="Service", status="403") == 0
                assert server.metric("kdns_kubernetes_connected") == 0
                asker.more()

                set_rights(role, *everything)
                server.expect(f"db-1.{name}", "A", later, seconds=BACK_SECONDS)
                server.wait_connected(True)
                # Nothing at all is allowed for a while; afterwards all is as it was, and goes on.
                set_rights(role)
                between.cut()
                server.wait_connected(False)
                asker.more()
                namespace.delete("Service", "new")
                assert server.ask(f"new.{namespace.name}.svc.{ZONE}").data == [made]
                set_rights(role, *everything)
                server.expect_nothing(f"new.{namespace.name}.svc.{ZONE}", seconds=BACK_SECONDS)
                server.wait_connected(True)


def test_without_any_right_it_says_which_are_missing_and_starts_once_they_are_there(
    cluster: ControlPlane, namespace: Namespace, tmp_path: Path
) -> None:
    with cluster_reader(cluster, namespace) as role:
        account = tmp_path / "account"
        environment = cluster.service_account_folder(account, "reader", namespace.name)
        options = "pods verified\nstartup_timeout 1s"
        with serving(tmp_path, options, environment=environment, account_folder=account) as server:
            for resource in ("namespaces", "services", "endpointslices", "pods"):
                refused = re.compile(rf"not allowed to (list|watch) {resource}\b")
                eventually(lambda refused=refused: refused.search(server.said), what=f"{resource} isn't named")
            assert server.ask(f"kubernetes.default.svc.{ZONE}").rcode == "SERVFAIL"
            assert server.get("/ready")[0] == 503
            rights = {"rules": [rule("namespaces", "services", "endpointslices", "pods")]}
            cluster.api.patch("ClusterRole", role, rights)
            server.expect(f"kubernetes.default.svc.{ZONE}", "A", "10.96.0.1", seconds=BACK_SECONDS)
            assert server.get("/ready") == (200, "OK")


def test_roles_in_its_namespaces_suffice_where_only_these_are_served(
    cluster: ControlPlane, namespace: Namespace, tmp_path: Path
) -> None:
    with cluster.namespace() as other, cluster.namespace() as hidden:
        namespace.create("ServiceAccount", "reader")
        for each in (namespace, other):
            allow(each, "reader", namespace.name, "services", "endpointslices", "pods")
        hidden.service("web")
        account = tmp_path / "account"
        environment = cluster.service_account_folder(account, "reader", namespace.name)
        options = f"namespaces {namespace.name} {other.name}\npods verified"
        with serving(tmp_path, options, environment=environment, account_folder=account) as server:
            for each in (namespace, other):
                address = some_address()
                made = each.service("web", {"app": "web"}, HTTP)["spec"]["clusterIP"]
                each.service("db", {"app": "web"}, HTTP, clusterIP="None")
                each.pod("web-0", address, {"app": "web"})
                server.expect(f"web.{each.name}.svc.{ZONE}", "A", made)
                server.expect(f"db.{each.name}.svc.{ZONE}", "A", address)
                server.expect(f"{address.replace('.', '-')}.{each.name}.pod.{ZONE}", "A", address)
                # It exists because the configuration says so: to read it would take a right in the whole cluster.
                server.expect_nothing(f"{each.name}.svc.{ZONE}", "A", "NOERROR")
                each.delete("Service", "web")
                server.expect_nothing(f"web.{each.name}.svc.{ZONE}")
            server.expect_nothing(f"web.{hidden.name}.svc.{ZONE}")
            server.expect_nothing(f"{hidden.name}.svc.{ZONE}")
            server.expect_nothing(f"kubernetes.default.svc.{ZONE}")
            assert server.get("/ready") == (200, "OK")


def test_with_the_account_of_deploy_all_works_and_nothing_else_does(
    deployed: ControlPlane, namespace: Namespace, tmp_path: Path
) -> None:
    account = tmp_path / "account"
    environment = deployed.service_account_folder(account, "coredns", "kube-system")
    with serving(tmp_path, "pods verified", environment=environment, account_folder=account) as server:
        address = some_address()
        made = namespace.service("web", {"app": "web"}, HTTP)["spec"]["clusterIP"]
        namespace.pod("web-0", address, {"app": "web"})
        name = f"web.{namespace.name}.svc.{ZONE}"
        server.expect(name, "A", made)
        server.expect(f"{address.replace('.', '-')}.{name}", "A", address)
        server.expect(f"{address.replace('.', '-')}.{namespace.name}.pod.{ZONE}", "A", address)
        server.expect(f"kube-dns.kube-system.svc.{ZONE}", "A", "10.96.0.10")
        assert server.get("/ready") == (200, "OK")
        assert server.metric("kdns_kubernetes_failures_total") == 0
        assert "not allowed" not in server.said

    client = deployed.client((account / "token").read_text())
    try:
        for kind in KINDS:
            assert _may(client, "GET", kind) == (kind in ("Service", "EndpointSlice", "Namespace", "Pod")), (
                f"list {kind}"
            )
            for method, one in (
                ("GET", "x"),
                ("POST", ""),
                ("PUT", "x"),
                ("PATCH", "x"),
                ("DELETE", "x"),
                ("DELETE", ""),
            ):
                assert not _may(client, method, kind, one, namespace.name), f"{method} {kind}"
    finally:
        client.close()


def test_an_audit_repairs_what_was_never_told_with_the_rights_of_deploy(
    deployed: ControlPlane, namespace: Namespace, tmp_path: Path
) -> None:
    environment = deployed.service_account_folder(tmp_path, "coredns", "kube-system")
    namespace.service("web")
    told = asyncio.run(_told_by_an_audit(Client(in_cluster(environment, str(tmp_path))), namespace.name))
    put, delete = sorted(told, key=lambda event: isinstance(event, Delete))
    assert isinstance(put, Put)
    assert put.object.metadata.name == "web"
    assert delete == Delete("Service", namespace.name, "ghost")


async def _told_by_an_audit(client: Client, namespace: str) -> list[Event]:
    """What an audit tells after an event of a service that came and one of a service that went were lost."""
    told: list[Event] = []
    synced = asyncio.Event()

    def tell(events: Sequence[Event], live: bool) -> None:
        told.extend(events)
        if Synced() in events:
            synced.set()

    source = ApiSource(client, Wanted(), tell, Metrics())
    running = asyncio.create_task(source.run())
    try:
        await asyncio.wait_for(synced.wait(), 20)
        watch = next(each for each in source.watches if each.resource.kind == "Service")
        told.clear()
        del watch.known[key_of(namespace, "web")]
        watch.assume(namespace, "ghost")
        await audit(watch, client, Metrics(), second_look=0.1)
        return [event for event in told if _namespace_of(event) == namespace]
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
        # TLS connections that are closed take some turns of the loop to go (aiohttp, "Graceful Shutdown").
        await asyncio.sleep(0.25)


def _namespace_of(event: Event) -> str:
    match event:
        case Put(object=found):
            return found.metadata.namespace
        case Delete(namespace=namespace):
            return namespace
    return ""


def _may(client: Api, method: str, kind: str, name: str = "", namespace: str = "") -> bool:
    """Whether a request is let in; it is told so before the object is looked for or its content is read."""
    version, _, _ = KINDS[kind]
    body: Object | None = None
    if method != "GET":
        body = {"kind": kind, "apiVersion": version, "metadata": {"name": "x"}}
    content_type = "application/merge-patch+json" if method == "PATCH" else "application/json"
    try:
        client.request(
            method, path_of(kind, name, namespace), body, content_type, **({"limit": "1"} if not name else {})
        )
    except ApiError as error:
        return error.status != 403
    return True


# Keys that are renewed


AUDIT: Object = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["ResponseStarted", "ResponseComplete"],
    "rules": [{"level": "Metadata", "users": ["kdns", "system:serviceaccount:default:kdns"]}, {"level": "None"}],
}


class Audited:
    """A cluster that keeps a record of what kdns asked for, and by which credentials."""

    def __init__(self, plane: ControlPlane, log: Path) -> None:
        self.plane = plane
        self._log = log

    def used(self) -> set[str]:
        """The ids of all credentials that kdns has come with; each token and each certificate has one."""
        whole, _, _ = self._log.read_text().rpartition("\n")
        events = [json.loads(line) for line in whole.splitlines()]
        key = "authentication.kubernetes.io/credential-id"
        return {each for event in events for each in event["user"].get("extra", {}).get(key, ())}


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Audited]:
    folder = tmp_path_factory.mktemp("audit")
    policy, log = folder / "policy.json", folder / "log"
    policy.write_text(json.dumps(AUDIT))
    log.touch()
    flags = [f"--audit-policy-file={policy}", f"--audit-log-path={log}"]
    with control_plane.running(api_server_flags=flags) as plane:
        plane.api.create({"kind": "ServiceAccount", "metadata": {"name": "kdns", "namespace": "default"}})
        rules = [rule("namespaces", "services", "endpointslices", "pods")]
        plane.api.create({"kind": "ClusterRole", "metadata": {"name": "kdns"}, "rules": rules})
        subjects = [
            {"kind": "ServiceAccount", "name": "kdns", "namespace": "default"},
            {"kind": "User", "apiGroup": RBAC, "name": "kdns"},
        ]
        role = {"apiGroup": RBAC, "kind": "ClusterRole", "name": "kdns"}
        plane.api.create(
            {"kind": "ClusterRoleBinding", "metadata": {"name": "kdns"}, "roleRef": role, "subjects": subjects}
        )
        yield Audited(plane, log)


def _token_id(token: str) -> str:
    """The id that the audit has for a token: the claim `jti` in its middle part."""
    middle = token.split(".")[1]
    return f"JTI={json.loads(base64.urlsafe_b64decode(middle + '=' * (-len(middle) % 4)))['jti']}"


def _certificate_id(path: Path) -> str:
    return f"X509SHA256={hashlib.sha256(ssl.PEM_cert_to_DER_cert(path.read_text())).hexdigest()}"


@pytest.mark.slow
def test_a_new_token_and_a_new_certificate_are_used_within_a_minute(audited: Audited, tmp_path: Path) -> None:
    """Both at once: one kdns with a ServiceAccount's folder, another with a kubeconfig that names two files."""
    plane = audited.plane
    account = tmp_path / "account"
    environment = plane.service_account_folder(account, "kdns")
    first = plane.client_certificate("kdns")
    pair = (tmp_path / "kdns.crt", tmp_path / "kdns.key")
    for source, target in zip(first, pair, strict=True):
        shutil.copy(source, target)
    kubeconfig = plane.kubeconfig(tmp_path / "kubeconfig", certificate=pair)
    name = f"kubernetes.default.svc.{ZONE}"
    with (
        serving(tmp_path, "", environment=environment, account_folder=account) as by_token,
        serving(tmp_path, f"kubeconfig {kubeconfig}") as by_certificate,
        asking(by_token, (name, "A")),
        asking(by_certificate, (name, "A")),
    ):
        old = {_token_id((account / "token").read_text()), _certificate_id(pair[0])}
        eventually(lambda: old <= audited.used(), 30, "the first credentials are not seen")
        plane.renew_token(account, "kdns")
        # As who renews them does, one after the other: for a moment the two don't belong together.
        for source, target in zip(plane.client_certificate("kdns"), pair, strict=True):
            shutil.copy(source, tmp_path / "new")
            (tmp_path / "new").rename(target)
        new = {_token_id((account / "token").read_text()), _certificate_id(pair[0])}
        assert not old & new
        began = time.monotonic()
        eventually(lambda: new <= audited.used(), ROTATION_SECONDS, "the new credentials are not used")
        assert time.monotonic() - began < ROTATION_SECONDS
        for server in (by_token, by_certificate):
            assert server.process.poll() is None
            # A quiet cluster, and nothing happened to its watches.
            assert server.metric("kdns_kubernetes_connected") == 1
            assert server.metric("kdns_kubernetes_failures_total") == 0


def test_a_new_authority_is_trusted_once_its_certificate_is_there(audited: Audited, tmp_path: Path) -> None:
    plane = audited.plane
    account = tmp_path / "account"
    environment = plane.service_account_folder(account, "kdns")
    name = f"kubernetes.default.svc.{ZONE}"
    with (
        serving(tmp_path, "", environment=environment, account_folder=account) as server,
        asking(server, (name, "A")) as asker,
        plane.namespace() as namespace,
    ):
        server.wait_connected(True)
        plane.renew_authority()
        # The old one stands in its folder still, and it must not speak with whom it doesn't know.
        server.says("certificate verify failed")
        made = namespace.service("web")["spec"]["clusterIP"]
        asker.more()
        assert server.ask(f"web.{namespace.name}.svc.{ZONE}").rcode == "NXDOMAIN"
        shutil.copy(plane.ca, account / ".ca.crt")
        (account / ".ca.crt").rename(account / "ca.crt")
        began = time.monotonic()
        server.expect(f"web.{namespace.name}.svc.{ZONE}", "A", made, seconds=ROTATION_SECONDS)
        assert time.monotonic() - began < ROTATION_SECONDS
        server.wait_connected(True)


def test_a_token_that_is_refused_is_read_again(cluster: ControlPlane, namespace: Namespace, tmp_path: Path) -> None:
    with cluster_reader(cluster, namespace) as role:
        cluster.api.patch("ClusterRole", role, {"rules": [rule("namespaces", "services", "endpointslices")]})
        account = tmp_path / "account"
        environment = cluster.service_account_folder(account, "reader", namespace.name)
        (account / "token").write_text("nobody")
        with serving(tmp_path, "startup_timeout 1s", environment=environment, account_folder=account) as server:
            server.wait_metric("kdns_kubernetes_failures_total", 1, kind="Service", status="401")
            assert server.ask(f"kubernetes.default.svc.{ZONE}").rcode == "SERVFAIL"
            cluster.renew_token(account, "reader", namespace.name)
            server.expect(f"kubernetes.default.svc.{ZONE}", "A", "10.96.0.1", seconds=BACK_SECONDS)
            server.wait_connected(True)
