"""The last known state of a cluster on disk: one JSON List of ordinary manifests, so itself an inventory.

It holds what DNS needs and no more, is replaced as a whole, and is written some objects at a time, between queries.
Read back it is taken as it is: an object that can't be read is passed over, a file that was cut off counts as none.

A mark at its head says what it was made for, since the same file would be wrong for other options: what they leave out
is not there, and nothing in an object tells.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from kdns.errors import KdnsError
from kdns.kubernetes.cluster import NO_PORT, Cluster, Kind, Port, Ready, ServiceModel, SliceModel, address_text
from kdns.kubernetes.objects import SERVICE_NAME_LABEL, UNREADABLE, EndpointSlice, Namespace, Object, Pod, Service
from kdns.wire import names

# Objects that are put to text between two looks at the sockets: a few milliseconds of work.
MOST_AT_ONCE = 100

# What the mark's annotations begin with. Whoever else reads a List passes over its metadata.
_MARK = "kdns/"
_FOOT = b"\n]}\n"

# What a snapshot is made for: options that decide which objects are known, by name; only those that are given.
MadeFor = Mapping[str, str]


class Snapshot(msgspec.Struct, frozen=True):
    """What a file held: its objects as their text, and when it was written (seconds since 1970).

    `made_for` is None where the file doesn't say it.
    """

    items: list[msgspec.Raw]
    written: float
    made_for: MadeFor | None

    def objects(self) -> Iterator[Object | None]:
        """Each object in turn, None for one that can't be read.

        One at a time: 10,000 services with their endpoints take 50 MB more where all of them are read at once
        (bench/scale.py snapshot, 2026-11-21), and the process keeps that.
        """
        return map(_object, self.items)


class SnapshotError(KdnsError):
    """A snapshot that can't be read or written; why."""


class _ListMetadata(msgspec.Struct, frozen=True):
    annotations: dict[str, str] = {}


class _List(msgspec.Struct):
    items: list[msgspec.Raw]
    metadata: _ListMetadata = _ListMetadata()


_LIST = msgspec.json.Decoder(_List)
_OBJECT: msgspec.json.Decoder[Object] = msgspec.json.Decoder(Namespace | Service | EndpointSlice | Pod)


def read(path: str) -> Snapshot:
    """The state that was written last. Raises SnapshotError if there is none, or if it was cut off."""
    try:
        content = Path(path).read_bytes()
        written = Path(path).stat().st_mtime
        found = _LIST.decode(content)
    except (OSError, *UNREADABLE) as error:
        raise SnapshotError(f"{path}: {error}") from error
    if not any(map(_object, found.items)):
        raise SnapshotError(f"{path}: it has no object that can be read")
    return Snapshot(found.items, written, _made_for(found.metadata.annotations))


def _object(text: msgspec.Raw) -> Object | None:
    try:
        return _OBJECT.decode(text)
    except UNREADABLE:
        return None


def _made_for(annotations: Mapping[str, str]) -> MadeFor | None:
    found = {key.removeprefix(_MARK): value for key, value in annotations.items() if key.startswith(_MARK)}
    return found or None


def differences(then: MadeFor, now: MadeFor) -> Sequence[str]:
    """In what the options that a snapshot was made for aren't those of now, for a person."""
    return [
        f"`{name}` was {_said(then, name)} and is {_said(now, name)}"
        for name in sorted({*then, *now})
        if then.get(name) != now.get(name)
    ]


def _said(options: MadeFor, name: str) -> str:
    return f"`{options[name]}`" if name in options else "not given"


async def write(cluster: Cluster, path: str, made_for: MadeFor) -> None:
    """Write the model as it is now, in place of what was there, with what it is made for. Raises SnapshotError."""
    # Beside it: only within a file system is a rename one step.
    new = Path(f"{path}.new")
    try:
        with _opened(new) as file:
            await _write(cluster, file, made_for)
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


async def _write(cluster: Cluster, file: BinaryIO, made_for: MadeFor) -> None:
    mark = msgspec.json.encode({f"{_MARK}{name}": value for name, value in made_for.items()})
    file.write(b'{"apiVersion": "v1", "kind": "List", "metadata": {"annotations": %b}, "items": [' % mark)
    separator = b"\n"
    for number, manifest in enumerate(manifests(cluster), start=1):
        file.write(separator + msgspec.json.encode(manifest))
        separator = b",\n"
        if number % MOST_AT_ONCE == 0:
            await asyncio.sleep(0)
    file.write(_FOOT)


def manifests(cluster: Cluster) -> Iterator[dict[str, Any]]:
    """The model as manifests that make the same model, without endpoints that aren't ready.

    It may change meanwhile: each object is as it is when told.
    """
    for namespace in sorted(cluster.namespaces):
        yield {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace.decode()}}
    for services in list(cluster.services.values()):
        for service in list(services.values()):
            # An alias of an address has no record, and an inventory would refuse one of nothing.
            if service.kind is not Kind.ABSENT and (service.kind is not Kind.EXTERNAL_NAME or service.external):
                yield _service(service)
            for part in list(service.slices.values()):
                yield from _slices(part)
    for key, addresses in cluster.pods_by_name():
        pod: dict[str, Any] = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"namespace": key[0], "name": key[1]},
            "status": {"podIPs": [{"ip": address_text(address)} for address in addresses]},
        }
        # Its address is that of its node, and tells nothing of who asks from there.
        if cluster.clients is not None and not cluster.clients.has(key):
            pod["spec"] = {"hostNetwork": True}
        yield pod


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
