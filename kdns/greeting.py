"""What a person is told at start: what was loaded, where it is served, what to try."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from kdns.addresses import host_and_port
from kdns.app import Configuration
from kdns.kubernetes.cluster import Kind, Port, ServiceModel
from kdns.listening import Listener
from kdns.plugins.kubernetes import Kubernetes
from kdns.wire import names

_KINDS = {Kind.CLUSTER_IP: "with a ClusterIP", Kind.HEADLESS: "headless", Kind.EXTERNAL_NAME: "ExternalName"}


def start_lines(configuration: Configuration, colour: bool = False) -> Iterable[str]:
    """What a person wants to know at start: what was loaded, where it listens, what to try."""
    sources = [plugin for plugin in configuration.plugins if isinstance(plugin, Kubernetes)]
    # Blocks of several ports have the same source; once is enough.
    for source in {(each.view.primary, each.inventory_paths, each.server): each for each in sources}.values():
        where = source.server or " ".join(map(_short, source.inventory_paths))
        yield f"{_paint(names.to_text(source.view.primary)[:-1], colour)} from {where}"
        yield from (f"  {line}" for line in (_loaded(source) if source.cluster.synced else _not_loaded(source)))
    for listener in configuration.listeners:
        zones = " ".join(site.zone_text for site in listener.sites)
        yield f"listening on {_where(listener)}, UDP and TCP" + (f", for {zones}" if zones != "." else "")
    examples = list(_examples(configuration.listeners[0], sources))
    if examples:
        yield "try"
        yield from (f"  {_paint(line, colour)}" for line in examples)


def _loaded(source: Kubernetes) -> Iterable[str]:
    """What there is to ask for, counted."""
    cluster = source.cluster
    services = list(cluster.all_services())
    kinds = Counter(service.kind for service in services)
    parts = [f"{kinds[kind]} {text}" for kind, text in _KINDS.items() if kinds[kind]]
    yield f"{_count(len(services), 'service')}" + (f": {', '.join(parts)}" if parts else "")
    endpoints = {ready.address for service in services for part in service.slices.values() for ready in part.ready}
    counts = [_count(len(cluster.namespaces), "namespace")]
    counts.append(_count(len(endpoints), "address", "addresses") + " of ready endpoints")
    if source.live is None or source.view.pods == "verified":
        counts.append(_count(len(cluster.all_pods()), "address", "addresses") + " of pods")
    yield ", ".join(counts)
    if source.loaded and source.loaded.passed_over:
        yield f"passed over: {kinds_text(source.loaded.passed_over)}"
    if source.live is not None:
        if source.live.stale:
            yield "as a snapshot had it, until the API is read"
        return
    if source.inventory_options.cluster_ips == "endpoints":
        yield "every service is answered with its endpoints (cluster_ips endpoints)"
    elif kinds[Kind.CLUSTER_IP]:
        yield f"a Service without a ClusterIP gets one of {' '.join(source.inventory_options.service_cidrs)}"


def _not_loaded(source: Kubernetes) -> Iterable[str]:
    """What is still to be read before a name of the cluster has an answer."""
    yield "not read yet, so each name is SERVFAIL:"
    yield from (f"  {each}" for each in (source.live.missing if source.live else ()))


def kinds_text(counts: dict[str, int]) -> str:
    """Kinds of objects with their number: `1 ConfigMap, 3 Deployment`."""
    return ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))


def _examples(listener: Listener, sources: Sequence[Kubernetes]) -> Iterable[str]:
    """Two questions that have an answer, of a service with a named port if there is one."""
    found = [
        (source, service)
        for source in sources
        for service in source.cluster.all_services()
        if service.addresses or service.has_ready()
    ]
    if not found:
        return
    # A ClusterIP is one line that everybody knows; a named port has an SRV record with a name.
    source, service = min(
        found, key=lambda pair: (not any(port.name for port in _ports(pair[1])), not pair[1].addresses)
    )
    host = f"{service.name.decode()}.{service.namespace.decode()}.svc.{names.to_text(source.view.primary)[:-1]}"
    at = f"dig @{listener.address or '127.0.0.1'} -p {listener.port}"
    port = next((port for port in _ports(service) if port.name), None)
    yield f"{at} {host}"
    yield f"{at} _{port.name.decode()}._{port.protocol.decode()}.{host} SRV" if port else f"{at} {host} SRV"


def _ports(service: ServiceModel) -> Sequence[Port]:
    return service.ports if service.addresses else [port for _, port in service.candidates()]


def _short(path: str) -> str:
    """The path as the user would type it here."""
    here = Path.cwd()
    return str(Path(path).relative_to(here)) if Path(path).is_relative_to(here) else path


def _where(listener: Listener) -> str:
    if not listener.address:
        return f"port {listener.port} of all addresses"
    return host_and_port(listener.address, listener.port)


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"


def _paint(text: str, colour: bool) -> str:
    return f"\x1b[1m{text}\x1b[0m" if colour else text
