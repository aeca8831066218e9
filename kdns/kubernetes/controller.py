"""What the control plane would have done for an inventory: defaults, ClusterIPs, EndpointSlices.

Pure: manifests in, the API's objects out, and the same for the same set of manifests on every machine. Knows no files.
Law: kubernetes 1.36, `pkg/registry/core/service` (families, allocation), `pkg/controller/endpointslice` (selectors) and
`pkg/controller/endpointslicemirroring` (Endpoints).
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Literal

import msgspec

from kdns.errors import Place, Problem
from kdns.kubernetes.objects import (
    SERVICE_NAME_LABEL,
    Container,
    Endpoint,
    EndpointAddress,
    EndpointConditions,
    EndpointPort,
    Endpoints,
    EndpointSlice,
    Metadata,
    Namespace,
    Object,
    Pod,
    Service,
    ServicePort,
    TargetReference,
)

Manifest = Namespace | Service | EndpointSlice | Pod | Endpoints
Key = tuple[str, str, str]
"""An object's kind, namespace and name; the namespace of a Namespace is empty."""
Path = tuple[str | int, ...]
"""A field of an object in the API's names: `("spec", "ports", 0, "port")`."""
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# Where a manifest names no namespace, kubectl without a configuration means this one.
DEFAULT_NAMESPACE = "default"
# The endpointslice controller's own limit; one changed pod then changes one small slice.
ENDPOINTS_PER_SLICE = 100
WITH_CLUSTER_IP = ("ClusterIP", "NodePort", "LoadBalancer")
# By this label an Endpoints object asks the mirroring controller to leave it alone.
SKIP_MIRROR_LABEL = "endpointslice.kubernetes.io/skip-mirror"
# What the endpointslice controller never copies from a Service (`isReservedLabelKey`).
RESERVED_LABELS = (
    SERVICE_NAME_LABEL,
    "endpointslice.kubernetes.io/managed-by",
    "service.kubernetes.io/headless",
)


class InventoryOptions(msgspec.Struct, frozen=True):
    """What an inventory leaves open: where ClusterIPs come from, and whether there are any."""

    service_cidrs: tuple[str, ...] = ("10.96.0.0/12",)
    cluster_ips: Literal["allocate", "endpoints"] = "allocate"


class Workload(msgspec.Struct, frozen=True):
    """A manifest that would make pods, were there a cluster; known only to give a better hint."""

    kind: str
    namespace: str
    name: str
    labels: dict[str, str]


class Completed(msgspec.Struct, frozen=True):
    """The API's objects that the manifests stand for, the mistakes that prevent some, and the warnings."""

    objects: dict[Key, Object]
    problems: list[Problem]
    warnings: list[Problem]


def key_of(manifest: Manifest) -> Key:
    """The kind, namespace and name by which there is one object only."""
    metadata = manifest.metadata
    if isinstance(manifest, Namespace):
        return ("Namespace", "", metadata.name)
    return (type(manifest).__name__, metadata.namespace or DEFAULT_NAMESPACE, metadata.name)


def nowhere(key: Key, path: Path) -> Place | None:
    """For manifests that stand in no file."""
    return None


def complete(
    manifests: Iterable[Manifest],
    options: InventoryOptions,
    workloads: Sequence[Workload] = (),
    locate: Callable[[Key, Path], Place | None] = nowhere,
) -> Completed:
    """Every object that an API server would hold, had these manifests been applied; `locate` gives problems a place."""
    return _Controller(options, workloads, locate).run(manifests)


class _Controller:
    def __init__(
        self,
        options: InventoryOptions,
        workloads: Sequence[Workload],
        locate: Callable[[Key, Path], Place | None],
    ) -> None:
        self.options = options
        self.locate = locate
        self.ranges: dict[str, Network] = {}
        for cidr in options.service_cidrs:
            network = ipaddress.ip_network(cidr)
            self.ranges.setdefault(f"IPv{network.version}", network)
        self.problems: list[Problem] = []
        self.warnings: list[Problem] = []
        self.workloads = workloads
        self.told_pods: set[Key] = set()
        self.unserved: dict[str, list[Key]] = defaultdict(list)

    def run(self, manifests: Iterable[Manifest]) -> Completed:
        """Gives each manifest its namespace, each service its families, addresses and slices."""
        by_kind: dict[type, dict[Key, Manifest]] = defaultdict(dict)
        for manifest in manifests:
            placed = in_namespace(manifest)
            by_kind[type(placed)][key_of(placed)] = placed
        services = {k: m for k, m in by_kind[Service].items() if isinstance(m, Service)}
        slices = {k: m for k, m in by_kind[EndpointSlice].items() if isinstance(m, EndpointSlice)}
        pods = {k: m for k, m in by_kind[Pod].items() if isinstance(m, Pod)}
        mirrored = {k: m for k, m in by_kind[Endpoints].items() if isinstance(m, Endpoints)}

        self.tell_shared_addresses(services)
        services = self.with_families(services)
        if self.options.cluster_ips == "endpoints":
            services = {key: headless(service) for key, service in services.items()}
        else:
            services = self.with_cluster_ips(services)

        objects: dict[Key, Object] = {}
        for key in [key for kind in by_kind.values() for key in kind]:
            name = key[2] if key[0] == "Namespace" else key[1]
            objects.setdefault(("Namespace", "", name), named_by_label(Namespace(Metadata(name=name))))
        objects.update({k: named_by_label(m) for k, m in by_kind[Namespace].items() if isinstance(m, Namespace)})
        objects.update(services)
        objects.update(slices)
        for made in self.slices_for(services, slices, pods, mirrored):
            objects[key_of(made)] = made
        objects.update(pods)
        return Completed(objects, self.problems, self.warnings)

    # Families: pkg/registry/core/service/storage/alloc.go, initIPFamilyFields.

    def with_families(self, services: dict[Key, Service]) -> dict[Key, Service]:
        return {key: self.with_family(service) for key, service in services.items()}

    def with_family(self, service: Service) -> Service:
        spec = service.spec
        if spec.type == "ExternalName":
            return service
        families, policy = self.families(service)
        return msgspec.structs.replace(
            service,
            spec=msgspec.structs.replace(
                spec, type=spec.type or "ClusterIP", ip_families=families, ip_family_policy=policy
            ),
        )

    def families(self, service: Service) -> tuple[list[str], str]:
        """The families in the order in which the service has them, and the policy that led there."""
        spec = service.spec
        written = [family_of(address) for address in service.addresses if address != "None"]
        configured = list(self.ranges) or ["IPv4"]
        families = list(dict.fromkeys(spec.ip_families or written))
        policy = spec.ip_family_policy
        if policy is None:
            selectorless = is_headless(service) and not spec.selector and not families
            policy = "RequireDualStack" if selectorless or len(families) == 2 else "SingleStack"
        if not families:
            families = configured[:1]
        # A headless service without selector has both families even where the cluster has one: nothing is allocated.
        other = "IPv6" if families[0] == "IPv4" else "IPv4"
        if policy == "RequireDualStack" or (policy == "PreferDualStack" and other in configured):
            families = list(dict.fromkeys([*families, other]))
        if policy == "SingleStack":
            families = families[:1]
        return families, policy

    # ClusterIPs: pkg/registry/core/service/ipallocator.

    def with_cluster_ips(self, services: dict[Key, Service]) -> dict[Key, Service]:
        """Written addresses first, wherever they lie; then one for each family without, by the order of names."""
        pools = {family: _Pool(network) for family, network in self.ranges.items()}
        for service in services.values():
            for address in service.addresses:
                if address != "None" and (pool := pools.get(family_of(address))):
                    pool.used.add(int(ipaddress.ip_address(address)))
        given: dict[Key, Service] = {}
        for key in sorted(services):
            service = services[key]
            given[key] = service if service.spec.type == "ExternalName" else self.with_cluster_ip(key, service, pools)
        for family, keys in self.unserved.items():
            self.tell_full_range(pools[family], keys)
        return {key: given[key] for key in services}

    def tell_shared_addresses(self, services: Mapping[Key, Service]) -> None:
        owners: dict[ipaddress.IPv4Address | ipaddress.IPv6Address, Key] = {}
        for key, service in services.items():
            for position, address in enumerate(service.addresses):
                if address == "None" or (owner := owners.setdefault(ipaddress.ip_address(address), key)) == key:
                    continue
                path: Path = ("spec", "clusterIPs", position) if service.spec.cluster_ips else ("spec", "clusterIP")
                self.problems.append(
                    Problem(
                        f"the ClusterIP `{address}` is taken",
                        place=self.locate(key, path),
                        subject=subject(key, f"spec.{path[1]}"),
                        expected="an address of its own",
                        hint=f"{subject(owner)} has this one; without `clusterIP` the service gets one",
                    )
                )

    def with_cluster_ip(self, key: Key, service: Service, pools: Mapping[str, _Pool]) -> Service:
        if is_headless(service):
            return headless(service)
        written = {family_of(address): address for address in service.addresses}
        for family in service.spec.ip_families or ():
            if family in written:
                continue
            if (pool := pools.get(family)) is None:
                self.tell_no_range(key, service, family)
            elif (address := pool.give(f"{key[1]}/{key[2]}")) is not None:
                written[family] = address
            else:
                self.unserved[family].append(key)
        # The first family's address leads: it is the `clusterIP` of clients that know one only.
        order = [*(service.spec.ip_families or ()), *written]
        addresses = [written[family] for family in dict.fromkeys(order) if family in written]
        spec = msgspec.structs.replace(
            service.spec, cluster_ip=addresses[0] if addresses else None, cluster_ips=addresses or None
        )
        return msgspec.structs.replace(service, spec=spec)

    def tell_no_range(self, key: Key, service: Service, family: str) -> None:
        field = "ipFamilies" if service.spec.ip_family_policy == "SingleStack" else "ipFamilyPolicy"
        self.problems.append(
            Problem(
                f"there is no {family} range to take a ClusterIP from",
                place=self.locate(key, ("spec", field)),
                subject=subject(key, f"spec.{field}"),
                expected=f"an address in `spec.clusterIPs` or a range; it is {', '.join(self.options.service_cidrs)}",
                hint=f"give `service_cidr` a second range, of {family}",
            )
        )

    def tell_full_range(self, pool: _Pool, keys: Sequence[Key]) -> None:
        services = f" for {len(keys)} services, the first of them this" if len(keys) > 1 else ""
        self.problems.append(
            Problem(
                f"the service range {pool.network} has no free ClusterIP left{services}",
                place=self.locate(keys[0], ("spec", "clusterIP")),
                subject=subject(keys[0], "spec.clusterIP"),
                expected=f"at most {pool.size - 1} services without an address of their own",
                hint="give `service_cidr` a larger range, or write `clusterIP` into the service",
            )
        )

    # Endpoints

    def slices_for(
        self,
        services: Mapping[Key, Service],
        slices: Mapping[Key, EndpointSlice],
        pods: Mapping[Key, Pod],
        mirrored: Mapping[Key, Endpoints],
    ) -> Iterator[EndpointSlice]:
        """The slices that no manifest has written: from Endpoints, or from selectors and Pods."""
        served = {(each.metadata.namespace, each.service) for each in slices.values()}
        index = _PodIndex(pods.values())
        for key, service in services.items():
            if (key[1], key[2]) in served or service.spec.type == "ExternalName":
                continue
            endpoints = mirrored.get(("Endpoints", key[1], key[2]))
            if endpoints is not None and (not service.spec.selector or not pods):
                if service.spec.selector or (endpoints.metadata.labels or {}).get(SKIP_MIRROR_LABEL) != "true":
                    yield from slices_of_endpoints(endpoints)
                continue
            if service.spec.selector:
                yield from self.slices_of_pods(key, service, index)

    def slices_of_pods(self, key: Key, service: Service, index: _PodIndex) -> Iterator[EndpointSlice]:
        selected = index.select(key[1], service.spec.selector or {})
        if not selected:
            self.warn_of_empty_selector(key, service.spec.selector or {})
            return
        reachable = [pod for pod in selected if not pod.finished and self.has_address(pod, key)]
        count = 0
        for family in service.spec.ip_families or ():
            groups: dict[tuple[tuple[str, str, int], ...], list[Endpoint]] = defaultdict(list)
            for pod in reachable:
                address = address_of_family(pod, family)
                if address is not None:
                    groups[ports_for_pod(service, pod)].append(endpoint_of_pod(service, pod, address))
                    count += 1
            for ports, endpoints in sorted(groups.items()):
                yield from cut(key, family, ports, endpoints, service.metadata.labels)
        if reachable and not count:
            self.warn_of_other_family(key, service, len(reachable))

    def has_address(self, pod: Pod, service: Key) -> bool:
        if addresses_of(pod):
            return True
        key = key_of(pod)
        # Once for a pod, however many services select it. A pod that ends soon is no news.
        if key not in self.told_pods and pod.metadata.deletion_timestamp is None:
            self.told_pods.add(key)
            self.warnings.append(
                Problem(
                    f"the pod `{pod.metadata.name}` has no address, so Service `{service[2]}` goes without it",
                    place=self.locate(key, ("status", "podIP")),
                    subject=subject(key, "status.podIP"),
                    hint="an inventory has no kubelet that gives addresses: write `status: {podIP: …}`",
                    warning=True,
                )
            )
        return False

    def warn_of_empty_selector(self, key: Key, selector: dict[str, str]) -> None:
        for workload in self.workloads:
            if workload.namespace == key[1] and selector.items() <= workload.labels.items():
                hint = (
                    f"the pods of {workload.kind} `{workload.name}` would match; "
                    f"an inventory needs the Pods themselves, e.g. from `kubectl get pods -n {key[1]} -o yaml`"
                )
                break
        else:
            hint = f"all its labels must be on a Pod of namespace `{key[1]}`; the Service answers without endpoints"
        self.warnings.append(
            Problem(
                "the selector matches no Pod of the inventory",
                place=self.locate(key, ("spec", "selector")),
                subject=subject(key, "spec.selector"),
                hint=hint,
                warning=True,
            )
        )

    def warn_of_other_family(self, key: Key, service: Service, pods: int) -> None:
        families = " or ".join(service.spec.ip_families or ())
        self.warnings.append(
            Problem(
                f"the selector matches {pods} Pod{'s' if pods > 1 else ''}, none of which has an {families} address",
                place=self.locate(key, ("spec", "selector")),
                subject=subject(key, "spec.selector"),
                hint="the service's families are in `spec.ipFamilies`; without it they are those of `service_cidr`",
                warning=True,
            )
        )


def subject(key: Key, field: str = "") -> str:
    """An object and one of its fields as problems name them: `Service shop/web: spec.ports[0].port`."""
    kind, namespace, name = key
    return f"{kind} {namespace}/{name}".replace(" /", " ") + (f": {field}" if field else "")


def named_by_label(namespace: Namespace) -> Namespace:
    """The namespace with the label that the API server gives to each: its own name."""
    metadata = namespace.metadata
    labels = (metadata.labels or {}) | {"kubernetes.io/metadata.name": metadata.name}
    return Namespace(msgspec.structs.replace(metadata, labels=labels))


def in_namespace(manifest: Manifest) -> Manifest:
    """The manifest with the namespace that it means: none for a Namespace, `default` for any other that names none."""
    namespace = "" if isinstance(manifest, Namespace) else manifest.metadata.namespace or DEFAULT_NAMESPACE
    if manifest.metadata.namespace == namespace:
        return manifest
    return msgspec.structs.replace(manifest, metadata=msgspec.structs.replace(manifest.metadata, namespace=namespace))


def family_of(address: str) -> str:
    """The API's word for the family of an address that has been checked."""
    return "IPv6" if ":" in address else "IPv4"


def is_headless(service: Service) -> bool:
    """A headless service has `None` for an address, and is answered by its endpoints."""
    return service.addresses[:1] == ["None"]


def headless(service: Service) -> Service:
    """The service without its ClusterIP, to be answered by its endpoints."""
    spec = service.spec
    if spec.type == "ExternalName":
        return service
    # The API knows headless services of type ClusterIP only.
    kind = "ClusterIP" if spec.type in WITH_CLUSTER_IP else spec.type
    changed = msgspec.structs.replace(spec, type=kind, cluster_ip="None", cluster_ips=["None"])
    return msgspec.structs.replace(service, spec=changed)


class _Pool:
    """The addresses of a range that services may get: the same service gets the same one, whatever came before it."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.first = int(network.network_address) + 1
        # IPv4 has a broadcast address at the end; the API leaves it and the network address free.
        last = int(network.broadcast_address) - (1 if network.version == 4 else 0)
        self.size = max(0, last - self.first + 1)
        # ServiceIPStaticSubrange: the lower band is for addresses that people choose.
        self.band = min(max(16, network.num_addresses // 16), 256) if network.num_addresses > 16 else 0
        self.used: set[int] = set()

    def give(self, name: str) -> str | None:
        """The free address that stands first after the name's hash; the band only when nothing else is left."""
        number = int.from_bytes(hashlib.sha256(name.encode()).digest(), "big")
        # The range's first address is `kubernetes.default`'s, even when no manifest says so.
        for start, end in ((max(1, self.band), self.size), (1, self.band)):
            found = self.probe(self.first + start, end - start, number)
            if found is not None:
                self.used.add(found)
                address = ipaddress.IPv4Address(found) if self.network.version == 4 else ipaddress.IPv6Address(found)
                return str(address)
        return None

    def probe(self, start: int, size: int, number: int) -> int | None:
        if size <= 0:
            return None
        # One more step than there are taken addresses is bound to meet a free one.
        for step in range(min(size, len(self.used) + 1)):
            candidate = start + (number + step) % size
            if candidate not in self.used:
                return candidate
        return None


class _PodIndex:
    """Pods by namespace and label, so that a selector looks only at the pods that have its rarest label."""

    def __init__(self, pods: Iterable[Pod]) -> None:
        self.by_label: dict[tuple[str, str, str], list[Pod]] = defaultdict(list)
        for pod in sorted(pods, key=lambda pod: pod.metadata.name):
            for label, value in (pod.metadata.labels or {}).items():
                self.by_label[(pod.metadata.namespace, label, value)].append(pod)

    def select(self, namespace: str, selector: dict[str, str]) -> list[Pod]:
        """The pods that have all the labels, whatever others they have, in the order of their names."""
        candidates = [self.by_label.get((namespace, label, value), []) for label, value in selector.items()]
        rarest = min(candidates, key=len)
        if len(candidates) == 1:
            return rarest
        return [pod for pod in rarest if selector.items() <= (pod.metadata.labels or {}).items()]


def addresses_of(pod: Pod) -> list[str]:
    """The pod's addresses; a pod on its node's network has the node's."""
    if pod.addresses or pod.spec is None or not pod.spec.host_network or pod.status is None:
        return pod.addresses
    return [pod.status.host_ip] if pod.status.host_ip else []


def address_of_family(pod: Pod, family: str) -> str | None:
    """The one address by which a slice of this family knows the pod."""
    return next((address for address in addresses_of(pod) if family_of(address) == family), None)


def is_ready(pod: Pod) -> bool:
    """The pod's Ready condition; a pod that nobody ever judged, as in a manifest written by hand, counts as ready."""
    conditions = pod.status.conditions if pod.status else None
    if not conditions:
        return True
    return any(condition.type == "Ready" and condition.status == "True" for condition in conditions)


def endpoint_of_pod(service: Service, pod: Pod, address: str) -> Endpoint:
    """One pod in a slice, as `podToEndpoint` of the endpointslice controller makes it."""
    terminating = pod.metadata.deletion_timestamp is not None
    serving = is_ready(pod)
    ready = bool(service.spec.publish_not_ready_addresses) or (serving and not terminating)
    spec = pod.spec
    named = spec is not None and spec.hostname and spec.subdomain == service.metadata.name
    return Endpoint(
        addresses=[address],
        conditions=EndpointConditions(ready=ready, serving=serving, terminating=terminating),
        hostname=spec.hostname if named and spec is not None else None,
        node_name=spec.node_name if spec is not None else None,
        target_ref=TargetReference(kind="Pod", name=pod.metadata.name, namespace=pod.metadata.namespace),
    )


def ports_for_pod(service: Service, pod: Pod) -> tuple[tuple[str, str, int], ...]:
    """Name, protocol and number of each port of the service that this pod has."""
    found = []
    for port in service.spec.ports or ():
        number = target_port(port, pod)
        if number is not None:
            found.append((port.name or "", port.transport, number))
    return tuple(sorted(found))


def target_port(port: ServicePort, pod: Pod) -> int | None:
    """The number behind `targetPort`; a name is looked up among the pod's containers and may be missing."""
    if not isinstance(port.target_port, str):
        return port.target_port or port.port
    for container in containers_of(pod):
        for candidate in container.ports or ():
            if candidate.name == port.target_port and (candidate.protocol or "TCP") == port.transport:
                return candidate.container_port
    return None


def containers_of(pod: Pod) -> Iterator[Container]:
    """The containers that stay: the ordinary ones, then the sidecars among the init containers."""
    if pod.spec is not None:
        yield from pod.spec.containers or ()
        yield from (container for container in pod.spec.init_containers or () if container.restart_policy == "Always")


def slices_of_endpoints(endpoints: Endpoints) -> Iterator[EndpointSlice]:
    """An Endpoints object in slices, one for each family and set of ports, as the mirroring controller makes them."""
    groups: dict[tuple[str, tuple[tuple[str, str, int], ...]], list[Endpoint]] = defaultdict(list)
    for subset in endpoints.subsets or ():
        ports = tuple(sorted((port.name or "", port.protocol or "TCP", port.port or 0) for port in subset.ports or ()))
        for ready, addresses in ((True, subset.addresses), (False, subset.not_ready_addresses)):
            for address in addresses or ():
                groups[(family_of(address.ip), ports)].append(mirrored_endpoint(address, ready))
    key: Key = ("Service", endpoints.metadata.namespace, endpoints.metadata.name)
    for (family, ports), found in sorted(groups.items(), key=lambda group: group[0]):
        yield from cut(key, family, ports, found, endpoints.metadata.labels)


def mirrored_endpoint(address: EndpointAddress, ready: bool) -> Endpoint:
    return Endpoint(
        addresses=[address.ip],
        conditions=EndpointConditions(ready=ready),
        hostname=address.hostname,
        node_name=address.node_name,
        target_ref=address.target_ref,
    )


def cut(
    service: Key,
    family: str,
    ports: tuple[tuple[str, str, int], ...],
    endpoints: list[Endpoint],
    labels: dict[str, str] | None,
) -> Iterator[EndpointSlice]:
    """Endpoints with the same ports in slices of bounded size, named by what is in them.

    `labels` are those of what the slices were made from: both controllers copy all but those that are theirs.
    """
    copied = {label: value for label, value in (labels or {}).items() if label not in RESERVED_LABELS}
    digest = hashlib.sha256(repr((family, ports)).encode()).hexdigest()[:8]
    for number, start in enumerate(range(0, len(endpoints), ENDPOINTS_PER_SLICE)):
        name = f"{service[2]}-{family.lower()}-{digest}" + (f"-{number}" if number else "")
        yield EndpointSlice(
            metadata=Metadata(name=name, namespace=service[1], labels={**copied, SERVICE_NAME_LABEL: service[2]}),
            address_type=family,
            endpoints=endpoints[start : start + ENDPOINTS_PER_SLICE],
            ports=[EndpointPort(name=port, protocol=protocol, port=number) for port, protocol, number in ports],
        )
