"""A control plane that is full: as many namespaces, services, endpoints and pods as a large cluster has.

Filling it takes a minute or two, so what etcd then holds is kept in a folder outside of the tree, and copied for each
run. Services and EndpointSlices are created through the API, which adds what it adds (`managedFields` and the rest).
Pods come in thousands: one is made through the API, and the others are copies of what etcd then holds of it.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from tests.cluster import control_plane
from tests.cluster.api import JSON, Object, path_of
from tests.cluster.control_plane import ControlPlane

ROOT = Path(__file__).parent.parent
THREADS = 16
START_SECONDS = 180
# What etcd takes in one transaction, by its default.
MOST_PUTS = 100
NODES = 1000
ENDPOINTS_OF_A_SLICE = 10
# Of a hundred services of a namespace: every tenth is headless, the last an ExternalName.
HEADLESS_EVERY = 10


class Size(NamedTuple):
    """How much there is. `services` and as many slices are shared out evenly among the namespaces."""

    namespaces: int = 100
    services: int = 10_000
    pods: int = 0

    @property
    def folder(self) -> str:
        return "-".join(map(str, self))


class Place(NamedTuple):
    """A service by its number."""

    namespace: str
    name: str
    number: int

    @property
    def fqdn(self) -> str:
        return f"{self.name}.{self.namespace}.svc.cluster.local."


def places(size: Size) -> list[Place]:
    """Every service, in the order of their creation."""
    each = size.services // size.namespaces
    return [
        Place(f"team-{number // each:03d}", f"checkout-{number % each:03d}", number) for number in range(size.services)
    ]


def is_headless(place: Place) -> bool:
    return place.number % HEADLESS_EVERY == 0


def is_external(place: Place, size: Size) -> bool:
    each = size.services // size.namespaces
    return place.number % each == each - 1


def service(place: Place, external: bool) -> Object:
    """A Service as a chart writes it."""
    labels = {
        "app.kubernetes.io/name": place.name,
        "app.kubernetes.io/instance": f"{place.namespace}-{place.name}",
        "app.kubernetes.io/managed-by": "Helm",
    }
    metadata = {"name": place.name, "namespace": place.namespace, "labels": labels}
    if external:
        spec: Object = {"type": "ExternalName", "externalName": "db-0.example.com"}
    else:
        port = {"name": "http", "port": 80, "targetPort": "http", "protocol": "TCP"}
        spec = {"selector": {"app.kubernetes.io/name": place.name}, "ports": [port]}
        if is_headless(place):
            spec["clusterIP"] = "None"
    return {"kind": "Service", "metadata": metadata, "spec": spec}


def slice_of(place: Place, owner_uid: str, part: int = 0) -> Object:
    """A slice as the EndpointSlice controller writes it, of a Deployment's pods."""
    first = (2 * place.number + part) * ENDPOINTS_OF_A_SLICE
    suffix = "x7k2m" if part == 0 else "q4w9z"
    labels = {
        "app.kubernetes.io/name": place.name,
        "app.kubernetes.io/instance": f"{place.namespace}-{place.name}",
        "app.kubernetes.io/managed-by": "Helm",
        "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
        "kubernetes.io/service-name": place.name,
    }
    if is_headless(place):
        labels["service.kubernetes.io/headless"] = ""
    owner = {
        "apiVersion": "v1",
        "kind": "Service",
        "name": place.name,
        "uid": owner_uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }
    metadata = {
        "name": f"{place.name}-{suffix}",
        "generateName": f"{place.name}-",
        "namespace": place.namespace,
        "labels": labels,
        "annotations": {"endpoints.kubernetes.io/last-change-trigger-time": "2026-01-01T00:00:00Z"},
        "ownerReferences": [owner],
    }
    return {
        "kind": "EndpointSlice",
        "metadata": metadata,
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": [endpoint(place, number) for number in range(first, first + ENDPOINTS_OF_A_SLICE)],
    }


def endpoint(place: Place, number: int) -> Object:
    """An endpoint of its own address."""
    return {
        "addresses": [pod_address(number)],
        "conditions": {"ready": True, "serving": True, "terminating": False},
        "nodeName": f"ip-10-0-{number % NODES // 250}-{number % 250}.eu-central-1.compute.internal",
        "zone": f"eu-central-1{'abc'[number % 3]}",
        "targetRef": {
            "kind": "Pod",
            "name": pod_name(place, number),
            "namespace": place.namespace,
            "uid": _pod_uid(number),
        },
    }


def pod_name(place: Place, number: int) -> str:
    """As a Deployment names its pods."""
    return f"{place.name}-{place.number * 7919 % 16**9:09x}-{number * 31 % 16**5:05x}"


def pod_address(number: int) -> str:
    """One of millions of addresses of a cluster's pods, as text of one length."""
    return f"10.{128 + number // 156**2}.{100 + number // 156 % 156}.{100 + number % 156}"


@contextlib.contextmanager
def running(cache: Path, size: Size) -> Iterator[ControlPlane]:
    """etcd and an API server that hold all of that, for as long as the block lasts. No controller acts on it."""
    kept = cache / size.folder
    if not kept.exists():
        fill(kept, size, cache)
    with started(kept) as plane:
        yield plane


@contextlib.contextmanager
def started(kept: Path | None) -> Iterator[ControlPlane]:
    """The two with what a folder has of etcd, or with nothing."""
    programs = control_plane.found_programs()
    folder = Path(tempfile.mkdtemp(prefix="kdns-scale-", dir=_memory()))
    plane: ControlPlane | None = None
    try:
        if kept is not None:
            shutil.copytree(kept, folder / "etcd")
        plane = ControlPlane(folder, programs)
        plane.etcd.start()
        plane.api_server.start(wait=False)
        # It reads all pods before it is ready.
        plane.api_server.wait_ready(START_SECONDS)
        yield plane
    finally:
        if plane is not None:
            plane.end()
        shutil.rmtree(folder, ignore_errors=True)


def fill(kept: Path, size: Size, cache: Path) -> None:
    """Make a control plane of that size, and keep what its etcd holds in that folder."""
    smaller = size._replace(pods=0)
    if size.pods and not (cache / smaller.folder).exists():
        fill(cache / smaller.folder, smaller, cache)
    began = time.monotonic()
    with started(cache / smaller.folder if size.pods else None) as plane:
        if size.pods:
            _create_pods(plane, size)
        else:
            _create_services(plane, size)
        plane.compact()
        plane.api_server.terminate()
        plane.etcd.terminate()
        kept.parent.mkdir(parents=True, exist_ok=True)
        unfinished = kept.with_name(f".{kept.name}.{os.getpid()}")
        shutil.copytree(plane.folder / "etcd", unfinished)
        unfinished.rename(kept)
    print(f"filled in {time.monotonic() - began:.0f} s: {kept}", flush=True)


def _create_services(plane: ControlPlane, size: Size) -> None:
    done = plane.kubectl("apply", "-k", str(ROOT / "deploy"))
    assert done.returncode == 0, done.stderr
    all_places = places(size)

    def create(place: Place) -> None:
        external = is_external(place, size)
        made = plane.api.create(service(place, external))
        # An ExternalName has no endpoints; a headless one of the same namespace has its share.
        parts = [0] * (not external) + [1] * (place.number % (size.services // size.namespaces) == 0)
        for part in parts:
            plane.api.create(slice_of(place, made["metadata"]["uid"], part))

    for namespace in dict.fromkeys(place.namespace for place in all_places):
        plane.api.create({"kind": "Namespace", "metadata": {"name": namespace}})
    with ThreadPoolExecutor(THREADS) as pool:
        for _ in pool.map(create, all_places):
            pass


def _create_pods(plane: ControlPlane, size: Size) -> None:
    """One pod through the API, its copies into etcd: through the API each would take two requests."""
    all_places = places(size)
    first = Place(all_places[0].namespace, "checkout-tpl", 0)
    name, address = pod_name(first, 0), "10.255.255.255"
    container = {
        "name": "main",
        "image": "registry.example.com/shop/pay:1.42.0",
        "ports": [{"name": "http", "containerPort": 8080}],
        "env": [{"name": f"SETTING_{number}", "value": "some value of it"} for number in range(8)],
        "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "256Mi"}},
    }
    namespace = control_plane.Namespace(plane.api, first.namespace)
    plane.node(control_plane.NODE, control_plane.NODE_ADDRESS)
    labels = {"app.kubernetes.io/name": first.name, "pod-template-hash": "5d4f8c7b9"}
    made = namespace.create("Pod", name, metadata={"labels": labels}, spec={"containers": [container]})
    plane.api.bind(name, control_plane.NODE, first.namespace)
    namespace.pod_status(name, address)
    template = _get_from_etcd(plane._etcd_url, _pod_key(first, name))
    namespace.delete("Pod", name)

    def copy(place: Place, number: int) -> tuple[str, bytes]:
        # What stands in etcd is protobuf, where a text may be replaced by one of the same length.
        value = template
        for old, new in (
            (name, pod_name(place, number)),
            (first.name, place.name),
            (first.namespace, place.namespace),
            (address, pod_address(number)),
            (made["metadata"]["uid"], _pod_uid(number)),
        ):
            assert len(old) == len(new)
            value = value.replace(old.encode(), new.encode())
        return _pod_key(place, pod_name(place, number)), value

    def put(start: int) -> None:
        numbers = range(start, min(start + MOST_PUTS, size.pods))
        put_into_etcd(plane._etcd_url, dict(copy(all_places[number % size.services], number) for number in numbers))

    with ThreadPoolExecutor(4) as pool:
        for _ in pool.map(put, range(0, size.pods, MOST_PUTS)):
            pass


def _pod_key(place: Place, name: str) -> str:
    return f"/registry/pods/{place.namespace}/{name}"


def _pod_uid(number: int) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_OID, str(number)))


def put_into_etcd(etcd_url: str, values: dict[str, bytes]) -> None:
    """Write into etcd past the API server, which tells of it as of the changes that another API server makes."""
    puts = [{"request_put": {"key": _text(key.encode()), "value": _text(value)}} for key, value in values.items()]
    _ask_etcd(etcd_url, "kv/txn", {"success": puts})


def _get_from_etcd(etcd_url: str, key: str) -> bytes:
    [found] = _ask_etcd(etcd_url, "kv/range", {"key": _text(key.encode())})["kvs"]
    return base64.b64decode(found["value"])


def _ask_etcd(etcd_url: str, method: str, body: Object) -> Object:
    request = urllib.request.Request(f"{etcd_url}/v3/{method}", json.dumps(body).encode(), {"Content-Type": JSON})
    with urllib.request.urlopen(request, timeout=60) as reply:
        return dict(json.load(reply))


def etcd_key(path: str) -> str:
    """Where etcd has the object of a path of the API."""
    _, _, namespace, resource, name = path.rsplit("/", 4)
    return f"/registry/{resource}/{namespace}/{name}"


def encoded(kind: str, what: Object) -> tuple[str, bytes]:
    """Where an object is put, and the body of that request."""
    metadata = what["metadata"]
    version = "discovery.k8s.io/v1" if kind == "EndpointSlice" else "v1"
    path = path_of(kind, metadata["name"], metadata["namespace"])
    return path, json.dumps({"apiVersion": version, "kind": kind} | what).encode()


def _text(value: bytes) -> str:
    return base64.b64encode(value).decode()


def _memory() -> str | None:
    """A tmpfs where there is one."""
    shared = Path("/dev/shm")
    return str(shared) if shared.is_dir() and os.access(shared, os.W_OK) else None
