"""The last known state of a cluster on disk: one JSON List of ordinary manifests, so itself an inventory.

It holds what DNS needs and no more, is replaced as a whole, and is written a slice at a time, between queries. Read
back it is taken as it is: an object that can't be read is passed over, a file that was cut off counts as none.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from kdns.errors import KdnsError
from kdns.kubernetes.cluster import NO_PORT, Cluster, Kind, Port, Ready, ServiceModel, SliceModel, address_text
from kdns.kubernetes.objects import SERVICE_NAME_LABEL, UNREADABLE, EndpointSlice, Namespace, Object, Pod, Service
from kdns.wire import names

# Objects that are put to text between two looks at the sockets: a few milliseconds of work.
SLICE = 100

_HEAD = b'{"apiVersion": "v1", "kind": "List", "items": ['
_FOOT = b"\n]}\n"


class Snapshot(msgspec.Struct, frozen=True):
    """What a file held: its objects, how many could not be read, and when it was written (seconds since 1970)."""

    objects: list[Object]
    skipped: int
    written: float


class SnapshotError(KdnsError):
    """A snapshot that can't be read or written; why."""


class _List(msgspec.Struct):
    items: list[msgspec.Raw]


_LIST = msgspec.json.Decoder(_List)
_OBJECT: msgspec.json.Decoder[Object] = msgspec.json.Decoder(Namespace | Service | EndpointSlice | Pod)


def read(path: str) -> Snapshot:
    """The state that was written last. Raises SnapshotError if there is none, or if it was cut off."""
    try:
        content = Path(path).read_bytes()
        written = Path(path).stat().st_mtime
        items = _LIST.decode(content).items
    except (OSError, *UNREADABLE) as error:
        raise SnapshotError(f"{path}: {error}") from error
    objects: list[Object] = []
    for item in items:
        with contextlib.suppress(*UNREADABLE):
            objects.append(_OBJECT.decode(item))
    if not objects:
        raise SnapshotError(f"{path}: it has no object that can be read")
    return Snapshot(objects, len(items) - len(objects), written)


async def write(cluster: Cluster, path: str) -> None:
    """Write the model as it is now, in place of what was there. Raises SnapshotError."""
    # Beside it: only within a file system is a rename one step.
    new = Path(f"{path}.new")
    try:
        with _opened(new) as file:
            await _write(cluster, file)
            file.flush()
            await asyncio.to_thread(os.fsync, file.fileno())
        await asyncio.to_thread(new.replace, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            await asyncio.to_thread(new.unlink)
        raise SnapshotError(f"{path}: {os.strerror(error.errno or 0)}") from error


def _opened(path: Path) -> BinaryIO:
    # What is written goes to the kernel's pages; for the disk a thread waits.
    return path.open("wb")


async def _write(cluster: Cluster, file: BinaryIO) -> None:
    file.write(_HEAD)
    separator = b"\n"
    for number, manifest in enumerate(manifests(cluster), start=1):
        file.write(separator + msgspec.json.encode(manifest))
        separator = b",\n"
        if number % SLICE == 0:
            await asyncio.sleep(0)
    file.write(_FOOT)


def manifests(cluster: Cluster) -> Iterator[dict[str, Any]]:
    """The model as manifests that make the same model. It may change meanwhile: each object is as it is when told."""
    for namespace in sorted(cluster.namespaces):
        yield {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace.decode()}}
    for services in list(cluster.services.values()):
        for service in list(services.values()):
            # An alias of an address has no record, and an inventory would refuse one of nothing.
            if service.kind is not Kind.ABSENT and (service.kind is not Kind.EXTERNAL_NAME or service.external):
                yield _service(service)
            for part in list(service.slices.values()):
                yield from _slices(part)
    for (of_namespace, name), addresses in cluster.pods_by_name():
        yield {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"namespace": of_namespace, "name": name},
            "status": {"podIPs": [{"ip": address_text(address)} for address in addresses]},
        }


def _metadata(service: ServiceModel) -> dict[str, Any]:
    return {"namespace": service.namespace.decode(), "name": service.name.decode()}


def _service(service: ServiceModel) -> dict[str, Any]:
    spec: dict[str, Any] = {"ports": [_port(port) for port in service.ports]}
    if service.kind is Kind.EXTERNAL_NAME:
        spec |= {"type": "ExternalName", "externalName": names.to_text(service.external).rstrip(".")}
    elif service.kind is Kind.HEADLESS:
        spec["clusterIP"] = "None"
    elif service.addresses:
        texts = [address_text(address) for address in service.addresses]
        spec |= {"clusterIP": texts[0], "clusterIPs": texts}
    return {"apiVersion": "v1", "kind": "Service", "metadata": _metadata(service), "spec": spec}


def _slices(part: SliceModel) -> Iterator[dict[str, Any]]:
    """The slice as a manifest; one for each family where IPv4 addresses were written as IPv6 ones."""
    for size, family, suffix in ((4, "IPv4", ""), (16, "IPv6", "-ipv6")):
        ready = [each for each in part.ready if len(each.address) == size]
        if not ready:
            continue
        mixed = len(ready) < len(part.ready)
        metadata = {
            "namespace": part.namespace.decode(),
            "name": part.name + (suffix if mixed else ""),
            "labels": {SERVICE_NAME_LABEL: part.owner.decode()},
        }
        ports = [_port(port) for port in part.ports if port.protocol]
        yield {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": metadata,
            "addressType": family,
            "endpoints": [_endpoint(each) for each in ready],
            "ports": ports,
        }


def _endpoint(ready: Ready) -> dict[str, Any]:
    endpoint: dict[str, Any] = {"addresses": [address_text(ready.address)]}
    return endpoint | {"hostname": ready.label.decode()} if ready.named else endpoint


def _port(port: Port) -> dict[str, Any]:
    written: dict[str, Any] = {"protocol": port.protocol.decode().upper()}
    if port.name:
        written["name"] = port.name.decode()
    return written | {"port": port.number} if port.number != NO_PORT else written
