"""An inventory printed: as a zone file with all its records, or as manifests with computed addresses and endpoints."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import msgspec
import yaml

from kdns.corefile import normalize_zone
from kdns.errors import ConfigError, Problem
from kdns.kubernetes import inventory
from kdns.kubernetes.cluster import Cluster
from kdns.kubernetes.controller import InventoryOptions
from kdns.kubernetes.objects import EndpointSlice, Put, Synced
from kdns.kubernetes.schema import View, reverse_records, zone_records
from kdns.wire import names, records

_DEFAULT_PRIMARY = "cluster.local."


def as_zone(paths: Sequence[str], options: InventoryOptions, zone: str, ttl: int) -> Iterator[str]:
    """The lines of a zone file (RFC 1035 §5) with every record of the zone. Raises ConfigError.

    `ttl` is in seconds. A reverse zone has the PTR records that lie in it.
    """
    try:
        zones = normalize_zone(zone)
    except ValueError as error:
        raise ConfigError([Problem(f"`--zone`: {error}")]) from error
    cluster = Cluster(time.time)
    for loaded in inventory.load(paths, options).objects.values():
        cluster.apply(Put(loaded))
    cluster.apply(Synced())
    for text in zones:
        apex = names.from_text(text)
        reverse = text.endswith((".in-addr.arpa.", ".ip6.arpa.")) or text in ("in-addr.arpa.", "ip6.arpa.")
        primary = names.from_text(_DEFAULT_PRIMARY) if reverse else apex
        # A zone file needs a name server; the address is the one that documentation has for such (RFC 5737).
        view = View(cluster, primary, ttl, pods="verified", own=lambda: (b"\x7f\x00\x00\x01",))
        yield f"$ORIGIN {text}"
        for record in reverse_records(view, apex) if reverse else zone_records(view, apex):
            yield records.to_text(record)


def as_yaml(paths: Sequence[str], options: InventoryOptions) -> Iterator[str]:
    """The documents of an inventory that says in full what this one amounts to. Raises ConfigError."""
    for loaded in inventory.load(paths, options).objects.values():
        version = "discovery.k8s.io/v1" if isinstance(loaded, EndpointSlice) else "v1"
        document = {"apiVersion": version, **msgspec.to_builtins(loaded)}
        yield "---\n" + yaml.dump(document, Dumper=yaml.CSafeDumper, sort_keys=False).rstrip()
