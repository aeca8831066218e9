"""What is known of the cluster behind a `kubernetes` directive: services, their endpoints, and why some aren't ready.

Of a running server that is its model, where what isn't ready is a number by condition. Where the objects themselves
are at hand, as of an inventory, they say which and why.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import islice

from kdns.addresses import pack_address
from kdns.explain import report
from kdns.kubernetes.clients import uses_host_network
from kdns.kubernetes.cluster import NO_PORT, Kind, ServiceModel, address_text
from kdns.kubernetes.controller import address_of_family, addresses_of, is_headless
from kdns.kubernetes.objects import Endpoint, EndpointSlice, Namespace, Object, Pod, Service
from kdns.plugins.kubernetes import Kubernetes
from kdns.wire import names

CLUSTER_IP, HEADLESS, EXTERNAL_NAME = "ClusterIP", "headless", "ExternalName"
_KINDS = {Kind.CLUSTER_IP: CLUSTER_IP, Kind.HEADLESS: HEADLESS, Kind.EXTERNAL_NAME: EXTERNAL_NAME}
# More than that nobody reads at once; tools get as many.
MOST_NOT_READY = 20
# Pods of a namespace, for one to ask from: any will do.
MOST_LOOKED_AT = 100


class Objects:
    """The objects of a cluster, by what is asked for."""

    def __init__(self, objects: Iterable[Object]) -> None:
        self.namespaces: dict[str, Namespace] = {}
        self.services: dict[tuple[str, str], Service] = {}
        self.slices: dict[tuple[str, str], list[EndpointSlice]] = defaultdict(list)
        self.pods: dict[tuple[str, str], Pod] = {}
        for each in objects:
            metadata = each.metadata
            match each:
                case Namespace():
                    self.namespaces[metadata.name] = each
                case Service():
                    self.services[metadata.namespace, metadata.name] = each
                case EndpointSlice():
                    # As the model has it: one without the label is nobody's, and FQDN has no meaning in DNS.
                    if each.service and each.address_type != "FQDN":
                        self.slices[metadata.namespace, each.service].append(each)
                case Pod():
                    self.pods[metadata.namespace, metadata.name] = each

    def pods_of(self, service: Service) -> list[Pod]:
        """The pods that a service selects, in the order of their names; those that have ended are none."""
        selector = service.spec.selector
        if not selector:
            return []
        found = [
            pod
            for (namespace, _), pod in self.pods.items()
            if namespace == service.metadata.namespace
            and not pod.finished
            and selector.items() <= (pod.metadata.labels or {}).items()
        ]
        return sorted(found, key=lambda pod: pod.metadata.name)

    def pods_at(self, address: str) -> list[Pod]:
        """The live pods that have an address of their own, the newest first."""
        packed = pack_address(address)
        found = [
            pod
            for pod in self.pods.values()
            if not pod.finished and not uses_host_network(pod) and packed in map(pack_address, pod.addresses)
        ]
        return sorted(found, key=lambda pod: pod.metadata.creation_timestamp or "", reverse=True)


class Source:
    """One `kubernetes` directive and what stands behind it; without `objects` there is its model alone."""

    def __init__(self, plugin: Kubernetes, objects: Objects | None = None) -> None:
        self.plugin = plugin
        self.cluster = plugin.cluster
        self.objects = objects
        self._zones = [(names.labels_of(zone), zone) for zone in plugin.zones]

    @property
    def zone(self) -> str:
        """The cluster's zone, without a final dot."""
        return names.to_text(self.plugin.view.primary).removesuffix(".")

    @property
    def zones(self) -> list[str]:
        """All that it answers for."""
        return [names.to_text(zone) for _, zone in self._zones]

    def left_of_zone(self, labels: Sequence[bytes]) -> list[bytes] | None:
        """The labels of a name in lower case to the left of its zone; None for a name that lies in none."""
        for zone, _ in self._zones:
            if list(labels[len(labels) - len(zone) :]) == zone:
                return list(labels[: len(labels) - len(zone)])
        return None

    # What DNS shows

    @property
    def namespaces(self) -> list[str]:
        """The namespaces that DNS shows."""
        return [name.decode() for name in list(self.cluster.namespaces)]

    def has_namespace(self, namespace: str) -> bool:
        """Whether DNS shows a namespace."""
        return namespace.encode() in self.cluster.namespaces

    def service_names(self, namespace: str) -> list[str]:
        """The services of a namespace that DNS shows."""
        if not self.has_namespace(namespace):
            return []
        of_namespace = list(self.cluster.services.get(namespace.encode(), {}).values())
        return [service.name.decode() for service in of_namespace if service.kind is not Kind.ABSENT]

    def model(self, namespace: str, name: str) -> ServiceModel | None:
        """A service that DNS shows."""
        return self.cluster.service(namespace.encode(), name.encode()) if self.has_namespace(namespace) else None

    def hidden(self, namespace: str, name: str = "") -> str:
        """Why DNS doesn't show a namespace, or a service of it, that is there all the same; empty where it isn't."""
        visible = self.plugin.visible
        if visible.namespaces and namespace not in visible.namespaces:
            return f"the option `namespaces` doesn't name `{namespace}`"
        if self.objects is None:
            return ""
        labels = self.objects.namespaces[namespace].metadata.labels if namespace in self.objects.namespaces else None
        if visible.namespace_labels is not None and labels is not None and not visible.namespace_labels(labels):
            return f"the labels of namespace `{namespace}` aren't those that `namespace_labels` wants"
        service = self.objects.services.get((namespace, name))
        if visible.labels is not None and service is not None and not visible.labels(service.metadata.labels or {}):
            return f"the labels of Service `{namespace}/{name}` aren't those that `labels` wants"
        return ""

    def namespace_at(self, address: bytes) -> str:
        """The namespace of the one pod that has this address; empty where pods aren't watched or it isn't one's."""
        if self.cluster.clients is not None:
            return (self.cluster.clients.namespace_at(address) or b"").decode()
        found = [name for name in list(self.cluster.namespaces) if self.cluster.has_pod(name, address)]
        return found[0].decode() if len(found) == 1 else ""

    def address_in(self, namespace: str) -> tuple[str, str]:
        """A pod of a namespace and its own address, to ask from; empty where none is known."""
        for (of, name), pod in sorted(self.objects.pods.items()) if self.objects else ():
            if of == namespace and not pod.finished and pod.addresses and not uses_host_network(pod):
                return name, pod.addresses[0]
        # Of one on its node's network and of one that shares an address nobody knows whose it is.
        for name, addresses in islice(self.cluster.pods_in(namespace), MOST_LOOKED_AT):
            own = next((each for each in addresses if self.namespace_at(each) == namespace), None)
            if own is not None:
                return name, address_text(own)
        return "", ""

    # Objects, told

    def service(self, namespace: str, name: str) -> report.Object:
        """A service as it is; one that isn't there, or that DNS doesn't show, is told as such."""
        told = report.Object("Service", namespace, name, exists=False)
        service = self.objects.services.get((namespace, name)) if self.objects else None
        model = self.model(namespace, name)
        told.exists = service is not None or model is not None
        if model is None:
            told.hidden_by = self.hidden(namespace, name)
        if not told.exists:
            return told
        told.resource_version = self._version("Service", namespace, name, service)
        if service is not None:
            _tell_object(told, service)
            told.endpoints = self._endpoints(service) if told.kind_for_dns != EXTERNAL_NAME else None
        elif model is not None:
            _tell_model(told, model)
            told.endpoints = _count(model) if told.kind_for_dns != EXTERNAL_NAME else None
        return told

    def namespace(self, name: str) -> report.Object:
        """A namespace; one that isn't there, or that DNS doesn't show, is told as such."""
        there = self.objects is not None and name in self.objects.namespaces
        told = report.Object("Namespace", "", name, exists=there or self.has_namespace(name))
        if not self.has_namespace(name):
            told.hidden_by = self.hidden(name)
        if told.exists:
            object = self.objects.namespaces.get(name) if self.objects else None
            told.resource_version = self._version("Namespace", "", name, object)
        return told

    def _version(self, kind: str, namespace: str, name: str, object: Object | None) -> str:
        if object is not None:
            return object.metadata.resource_version
        return self.plugin.live.version(kind, namespace, name) if self.plugin.live is not None else ""

    # Endpoints

    def _endpoints(self, service: Service) -> report.Endpoints:
        assert self.objects is not None
        namespace, name = service.metadata.namespace, service.metadata.name
        # A pod of two families is in two slices, and is one endpoint all the same.
        ready: dict[str, bool] = {}
        not_ready: dict[str, report.NotReady] = {}
        by_pod = True
        for each in self.objects.slices.get((namespace, name), ()):
            for endpoint in each.endpoints or ():
                address = (endpoint.addresses or [""])[0]
                key = _pod_name(endpoint)
                by_pod = by_pod and key != ""
                pod = self.objects.pods.get((namespace, key))
                key = key or address
                ready[key] = ready.get(key, False) or endpoint.ready
                if not ready[key]:
                    not_ready[key] = report.NotReady(key, address, _why(endpoint, pod))
        for pod in self.objects.pods_of(service):
            if pod.metadata.name not in ready:
                ready[pod.metadata.name] = False
                address = next(iter(addresses_of(pod)), "")
                not_ready[pod.metadata.name] = report.NotReady(pod.metadata.name, address, _why_left_out(pod, service))
        left = [each for key, each in not_ready.items() if not ready[key]]
        counted = "pods" if by_pod and ready else "endpoints"
        return report.Endpoints(sum(ready.values()), len(ready), counted, known=True, not_ready=left[:MOST_NOT_READY])


def _pod_name(endpoint: Endpoint) -> str:
    """The pod behind an endpoint; empty where none is."""
    target = endpoint.target_ref
    return target.name if target is not None and target.kind == "Pod" else ""


def _tell_object(told: report.Object, service: Service) -> None:
    spec = service.spec
    told.type = spec.type or "ClusterIP"
    told.kind_for_dns = (
        EXTERNAL_NAME if spec.type == EXTERNAL_NAME else HEADLESS if is_headless(service) else CLUSTER_IP
    )
    told.addresses = [] if told.kind_for_dns != CLUSTER_IP else list(service.addresses)
    told.external_name = (spec.external_name or "") if told.kind_for_dns == EXTERNAL_NAME else ""
    told.ports = [report.Port(port.name or "", port.transport, port.port) for port in spec.ports or ()]
    told.selector = ",".join(f"{key}={value}" for key, value in sorted((spec.selector or {}).items()))


def _tell_model(told: report.Object, model: ServiceModel) -> None:
    told.kind_for_dns = _KINDS.get(model.kind, "")
    told.addresses = [address_text(packed) for packed in model.addresses]
    told.external_name = names.to_text(model.external).removesuffix(".") if model.external else ""
    told.ports = [
        report.Port(port.name.decode(), port.protocol.decode().upper(), port.number)
        for port in model.ports
        if port.number != NO_PORT
    ]


def _count(model: ServiceModel) -> report.Endpoints:
    slices = list(model.slices.values())
    ready = len({address for part in slices for address in part.addresses})
    conditions: Counter[str] = Counter()
    for part in slices:
        conditions.update(dict(part.not_ready))
    total = ready + conditions.total()
    return report.Endpoints(ready, total, "addresses", known=False, conditions=dict(sorted(conditions.items())))


# Why an endpoint isn't ready


def _why(endpoint: Endpoint, pod: Pod | None) -> str:
    """From the pod, which has the kubelet's own words, else from the slice's conditions."""
    if pod is not None and (told := _why_pod(pod)):
        return told
    return endpoint.why_not_ready


def _why_pod(pod: Pod) -> str:
    if pod.metadata.deletion_timestamp:
        return f"being deleted since {pod.metadata.deletion_timestamp}"
    status = pod.status
    if status is None:
        return ""
    phase = f"{status.phase}, " if status.phase and status.phase != "Running" else ""
    for condition in status.conditions or ():
        if condition.type == "Ready" and condition.status != "True":
            said = condition.message or condition.reason
            return f"{phase}not ready" + (f": {said}" if said else "")
    if status.conditions and not any(condition.type == "Ready" for condition in status.conditions):
        return f"{phase}not ready: it has no condition `Ready` yet"
    return ""


def _why_left_out(pod: Pod, service: Service) -> str:
    """Why a pod that is selected is in no slice at all."""
    if not addresses_of(pod):
        phase = pod.status.phase if pod.status and pod.status.phase else ""
        return "has no address yet" + (f" ({phase})" if phase else "")
    families = service.spec.ip_families or []
    if families and not any(address_of_family(pod, family) for family in families):
        return f"has no address of {' or '.join(families)}, which is what the Service wants"
    return _why_pod(pod) or "is in no EndpointSlice of the Service yet"
