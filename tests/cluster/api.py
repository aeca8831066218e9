"""The Kubernetes API for tests: one synchronous request for each call, dicts in and out."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlencode, urlsplit

import urllib3

Object = dict[str, Any]
T = TypeVar("T")

# Kind: apiVersion, resource, whether it lies in a namespace.
KINDS: dict[str, tuple[str, str, bool]] = {
    "ClusterRole": ("rbac.authorization.k8s.io/v1", "clusterroles", False),
    "ClusterRoleBinding": ("rbac.authorization.k8s.io/v1", "clusterrolebindings", False),
    "ConfigMap": ("v1", "configmaps", True),
    "Deployment": ("apps/v1", "deployments", True),
    "EndpointSlice": ("discovery.k8s.io/v1", "endpointslices", True),
    "Endpoints": ("v1", "endpoints", True),
    "Namespace": ("v1", "namespaces", False),
    "Node": ("v1", "nodes", False),
    "Pod": ("v1", "pods", True),
    "PodDisruptionBudget": ("policy/v1", "poddisruptionbudgets", True),
    "Role": ("rbac.authorization.k8s.io/v1", "roles", True),
    "RoleBinding": ("rbac.authorization.k8s.io/v1", "rolebindings", True),
    "Secret": ("v1", "secrets", True),
    "Service": ("v1", "services", True),
    "ServiceAccount": ("v1", "serviceaccounts", True),
    "StatefulSet": ("apps/v1", "statefulsets", True),
}
JSON = "application/json"
MERGE_PATCH = "application/merge-patch+json"
REPLY_SECONDS = 30.0


class ApiError(Exception):
    """The API server refused."""

    def __init__(self, status: int, body: bytes) -> None:
        try:
            told = json.loads(body)
            self.reason = str(told.get("reason", ""))
            self.message = str(told.get("message", ""))
        except (ValueError, AttributeError):
            self.reason, self.message = "", body.decode(errors="replace")
        super().__init__(f"{status} {self.reason}: {self.message}")
        self.status = status


class Api:
    """Requests to one API server by one user. May be used by several threads at once."""

    def __init__(self, server: str, ca: Path, token: str = "", client: tuple[Path, Path] | None = None) -> None:
        self._at = urlsplit(server)
        self._ca = ca
        self._client = client
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._pool = self._new_pool()

    def close(self) -> None:
        self._pool.close()

    def trust_again(self) -> None:
        """Read the file of the CA again."""
        self._pool.close()
        self._pool = self._new_pool()

    def _new_pool(self) -> urllib3.HTTPSConnectionPool:
        return urllib3.HTTPSConnectionPool(
            self._at.hostname or "",
            self._at.port,
            maxsize=16,
            ca_certs=str(self._ca),
            cert_file=str(self._client[0]) if self._client else None,
            key_file=str(self._client[1]) if self._client else None,
            timeout=urllib3.Timeout(REPLY_SECONDS),
            # A test that stops servers decides itself what is asked again.
            retries=False,
        )

    def request(
        self, method: str, path: str, body: Object | None = None, content_type: str = JSON, **query: str
    ) -> Object:
        """The reply to a request. Raises ApiError, or urllib3.exceptions.HTTPError where nobody answers."""
        reply = self.raw(method, path, json.dumps(body).encode() if body is not None else b"", content_type, **query)
        return dict(json.loads(reply)) if reply else {}

    def raw(self, method: str, path: str, body: bytes = b"", content_type: str = JSON, **query: str) -> bytes:
        """The same in bytes."""
        headers = {**self._headers, "Accept": JSON, "Content-Type": content_type}
        url = f"{path}?{urlencode(query)}" if query else path
        reply = self._pool.request(method, url, body=body or None, headers=headers)
        if reply.status >= 300:
            raise ApiError(reply.status, reply.data)
        return bytes(reply.data)

    def create(self, what: Object, **query: str) -> Object:
        """Create an object, whose `apiVersion` may be left out."""
        version, _, _ = KINDS[what["kind"]]
        return self.request(
            "POST", path_of(what["kind"], "", _namespace(what)), {"apiVersion": version} | what, **query
        )

    def replace(self, what: Object) -> Object:
        """Put this in the place of the object of its name; with a resourceVersion only if it is still that one."""
        version, _, _ = KINDS[what["kind"]]
        path = path_of(what["kind"], what["metadata"]["name"], _namespace(what))
        return self.request("PUT", path, {"apiVersion": version} | what)

    def patch(self, kind: str, name: str, changes: Object, namespace: str = "default") -> Object:
        """Change fields of an object: None deletes one, a list replaces the whole list."""
        return self.request("PATCH", path_of(kind, name, namespace), changes, MERGE_PATCH)

    def patch_status(self, kind: str, name: str, status: Object, namespace: str = "default") -> Object:
        """Change fields of an object's status, as the component does that reports it."""
        return self.request("PATCH", path_of(kind, name, namespace) + "/status", {"status": status}, MERGE_PATCH)

    def delete(self, kind: str, name: str, namespace: str = "default", grace_seconds: int | None = 0) -> Object:
        """Delete an object.

        At once unless told otherwise: a Pod that has a Node waits for a kubelet to say that it ended. None leaves the
        time of grace to the object, so such a Pod stays, terminating.
        """
        options: Object = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Background"}
        if grace_seconds is not None:
            options["gracePeriodSeconds"] = grace_seconds
        return self.request("DELETE", path_of(kind, name, namespace), options)

    def get(self, kind: str, name: str, namespace: str = "default") -> Object:
        """An object. Raises ApiError, of status 404 where there is none."""
        return self.request("GET", path_of(kind, name, namespace))

    def list(self, kind: str, namespace: str = "", labels: str = "") -> list[Object]:
        """The objects of a namespace, or of all."""
        version, _, _ = KINDS[kind]
        items = self.request("GET", path_of(kind, "", namespace), labelSelector=labels)["items"]
        # The items of a list don't say what they are.
        return [{"apiVersion": version, "kind": kind} | item for item in items]

    def bind(self, pod: str, node: str, namespace: str = "default") -> None:
        """Give a Pod its Node, as a scheduler does."""
        target = {"apiVersion": "v1", "kind": "Node", "name": node}
        body = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": pod}, "target": target}
        self.request("POST", path_of("Pod", pod, namespace) + "/binding", body)

    def token(self, account: str, namespace: str = "default", seconds: int = 3600) -> str:
        """A token of a ServiceAccount, for at least the ten minutes that the API server asks for."""
        path = path_of("ServiceAccount", account, namespace) + "/token"
        body = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"expirationSeconds": seconds},
        }
        return str(self.request("POST", path, body)["status"]["token"])


def path_of(kind: str, name: str = "", namespace: str = "") -> str:
    """Where the API has an object, or all of a kind."""
    version, resource, namespaced = KINDS[kind]
    parts = ["/api" if version == "v1" else "/apis", version]
    if namespaced and namespace:
        parts += ["namespaces", quote(namespace)]
    parts.append(resource)
    return "/".join([*parts, quote(name)] if name else parts)


def eventually(check: Callable[[], T], seconds: float = 10.0, what: str = "") -> T:
    """The first result of `check` that is true; it is asked again until then. An AssertionError of its own counts."""
    deadline = time.monotonic() + seconds
    while True:
        told = ""
        try:
            found = check()
            if found:
                return found
        except AssertionError as error:
            told = str(error)
        assert time.monotonic() < deadline, f"not within {seconds} s: {what or told or check}"
        time.sleep(0.02)


def _namespace(what: Object) -> str:
    return str(what.get("metadata", {}).get("namespace", "default"))
