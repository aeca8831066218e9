"""A cluster printed: as a zone file with all its records, or as manifests with all addresses and endpoints."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator, Sequence

import msgspec
import yaml

from kdns.corefile import normalize_zone
from kdns.errors import ConfigError, Problem
from kdns.kubernetes import inventory
from kdns.kubernetes.cluster import Cluster
from kdns.kubernetes.controller import InventoryOptions
from kdns.kubernetes.objects import EndpointSlice, Object, Put, Service, Synced
from kdns.kubernetes.schema import View, reverse_records, zone_records
from kdns.kubernetes.yamltext import resolve
from kdns.wire import names, records

_DEFAULT_PRIMARY = "cluster.local."
# How long a cluster may take to be read.
READ_SECONDS = 60.0


def of_inventory(paths: Sequence[str], options: InventoryOptions) -> list[Object]:
    """What the manifests amount to. Raises ConfigError."""
    return list(inventory.load(paths, options).objects.values())


def of_cluster(kubeconfig: str, context: str) -> list[Object]:
    """What a live cluster has. Raises KdnsError if it can't be read."""
    # Three times what an inventory needs in memory and time, so not for who has one.
    from kdns.kubernetes.live import Server, read_once

    objects = asyncio.run(read_once(Server(kubeconfig, context), READ_SECONDS))
    return sorted(objects, key=lambda each: (inventory.ORDER[type(each).__name__], _name(each)))


def as_zone(objects: Iterable[Object], zone: str, ttl: int) -> Iterator[str]:
    """The lines of a zone file (RFC 1035 §5) with every record of the zone. Raises ConfigError.

    `ttl` is in seconds. A reverse zone has the PTR records that lie in it.
    """
    try:
        zones = normalize_zone(zone)
    except ValueError as error:
        raise ConfigError([Problem(f"`--zone`: {error}")]) from error
    cluster = Cluster(time.time)
    for each in objects:
        cluster.apply(Put(each))
    cluster.apply(Synced())
    for text in zones:
        apex = names.from_text(text)
        reverse = text.endswith((".in-addr.arpa.", ".ip6.arpa.")) or text in ("in-addr.arpa.", "ip6.arpa.")
        primary = names.from_text(_DEFAULT_PRIMARY) if reverse else apex
        # A zone file needs a name server, and this server is wherever the file is read.
        view = View(cluster, primary, ttl, pods="verified", own=lambda: (b"\x7f\x00\x00\x01",))
        yield f"$ORIGIN {text}"
        for record in reverse_records(view, apex) if reverse else zone_records(view, apex):
            yield records.to_text(record)


def as_yaml(objects: Iterable[Object]) -> Iterator[str]:
    """The documents of an inventory that says all of it in full."""
    return map(_document, objects)


def _name(object: Object) -> tuple[str, str]:
    return object.metadata.namespace, object.metadata.name


def _document(object: Object) -> str:
    version = "discovery.k8s.io/v1" if isinstance(object, EndpointSlice) else "v1"
    # What only this cluster at this moment has.
    plain = msgspec.structs.replace(
        object.metadata, resource_version="", uid="", annotations=None, creation_timestamp=None
    )
    full = msgspec.structs.replace(_with_protocols(object), metadata=plain)
    document = {"apiVersion": version, **msgspec.to_builtins(full)}
    return "---\n" + yaml.dump(document, Dumper=_Dumper, sort_keys=False).rstrip()


def _with_protocols(object: Object) -> Object:
    """The object with the protocols that the API puts in: who reads it without one may not know the default."""
    if isinstance(object, Service) and object.spec.ports:
        numbers = [msgspec.structs.replace(port, protocol=port.transport) for port in object.spec.ports]
        return msgspec.structs.replace(object, spec=msgspec.structs.replace(object.spec, ports=numbers))
    if isinstance(object, EndpointSlice) and object.ports:
        ports = [msgspec.structs.replace(port, protocol=port.protocol or "TCP") for port in object.ports]
        return msgspec.structs.replace(object, ports=ports)
    return object


class _Dumper(yaml.CSafeDumper):
    """Quotes what Kubernetes' YAML would read as something else than text, such as `y` and `1e3`."""


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    style = None if isinstance(resolve(text), str) else "'"
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)
