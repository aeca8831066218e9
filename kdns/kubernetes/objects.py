"""The objects of the Kubernetes API, with only the fields that somebody here reads, and the events that carry them.

DNS reads a few; the rest is for an inventory, which is completed as a control plane does it, and for `kdns explain`.

Sources (an inventory, an API server, a snapshot) yield `Put`, `Delete` and `Synced`; `cluster` applies them and does
not know where they come from. Law: the API reference of core/v1 and discovery.k8s.io/v1. Fields have the API's names
in camelCase on the wire and snake_case here.
"""

from __future__ import annotations

import msgspec

# What decoding a stranger's bytes may come to: no such object, no UTF-8, nested without end.
UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class _Api(msgspec.Struct, rename="camel", omit_defaults=True, gc=False):
    """The parent of what is read from the API: unknown fields are passed over, absent ones have the API's default."""


class Annotations(_Api):
    last_change: str | None = msgspec.field(default=None, name="endpoints.kubernetes.io/last-change-trigger-time")


class Metadata(_Api):
    name: str = ""
    namespace: str = ""
    resource_version: str = ""
    uid: str = ""
    labels: dict[str, str] | None = None
    annotations: Annotations | None = None
    deletion_timestamp: str | None = None
    creation_timestamp: str | None = None


class TargetReference(_Api):
    kind: str = ""
    name: str = ""
    namespace: str = ""


class Namespace(_Api, tag_field="kind", tag="Namespace"):
    metadata: Metadata


class ServicePort(_Api):
    port: int
    name: str | None = None
    protocol: str | None = None
    target_port: int | str | None = None
    node_port: int | None = None

    @property
    def transport(self) -> str:
        """The protocol as the API defaults it: TCP, UDP or SCTP."""
        return (self.protocol or "TCP").upper()


class LoadBalancerIngress(_Api):
    ip: str | None = None
    hostname: str | None = None


class LoadBalancerStatus(_Api):
    ingress: list[LoadBalancerIngress] | None = None


class ServiceStatus(_Api):
    load_balancer: LoadBalancerStatus | None = None


class ServiceSpec(_Api):
    type: str | None = None
    cluster_ip: str | None = msgspec.field(default=None, name="clusterIP")
    cluster_ips: list[str] | None = msgspec.field(default=None, name="clusterIPs")
    ip_families: list[str] | None = None
    ip_family_policy: str | None = None
    external_name: str | None = None
    external_ips: list[str] | None = msgspec.field(default=None, name="externalIPs")
    ports: list[ServicePort] | None = None
    selector: dict[str, str] | None = None
    publish_not_ready_addresses: bool | None = None


class Service(_Api, tag_field="kind", tag="Service"):
    metadata: Metadata
    spec: ServiceSpec = msgspec.field(default_factory=ServiceSpec)
    status: ServiceStatus | None = None

    @property
    def addresses(self) -> list[str]:
        """The ClusterIPs as written: `clusterIPs`, or the older `clusterIP` alone; `["None"]` if headless."""
        if self.spec.cluster_ips:
            return self.spec.cluster_ips
        return [self.spec.cluster_ip] if self.spec.cluster_ip else []


class EndpointConditions(_Api):
    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None


class Endpoint(_Api):
    addresses: list[str] | None = None
    conditions: EndpointConditions | None = None
    hostname: str | None = None
    node_name: str | None = None
    zone: str | None = None
    target_ref: TargetReference | None = None

    @property
    def ready(self) -> bool:
        """An absent condition counts as ready (discovery.k8s.io/v1, EndpointConditions)."""
        return self.conditions is None or self.conditions.ready is not False

    @property
    def why_not_ready(self) -> str:
        """What the conditions of one that isn't ready say about that."""
        serving = self.conditions is not None and self.conditions.serving
        if self.conditions is not None and self.conditions.terminating:
            return "terminating, still serving" if serving else "terminating"
        return "serving, yet not ready" if serving else "not ready"


class EndpointPort(_Api):
    name: str | None = None
    protocol: str | None = None
    port: int | None = None


SERVICE_NAME_LABEL = "kubernetes.io/service-name"


class EndpointSlice(_Api, tag_field="kind", tag="EndpointSlice"):
    metadata: Metadata
    address_type: str | None = None
    endpoints: list[Endpoint] | None = None
    ports: list[EndpointPort] | None = None

    @property
    def service(self) -> str | None:
        """The name of the service that the slice belongs to."""
        return (self.metadata.labels or {}).get(SERVICE_NAME_LABEL)


class EndpointAddress(_Api):
    ip: str
    hostname: str | None = None
    node_name: str | None = None
    target_ref: TargetReference | None = None


class EndpointSubset(_Api):
    addresses: list[EndpointAddress] | None = None
    not_ready_addresses: list[EndpointAddress] | None = None
    ports: list[EndpointPort] | None = None


class Endpoints(_Api, tag_field="kind", tag="Endpoints"):
    """The older form of EndpointSlice; a source turns it into slices, `cluster` never sees it."""

    metadata: Metadata
    subsets: list[EndpointSubset] | None = None


class PodIP(_Api):
    ip: str | None = None


class PodCondition(_Api):
    type: str
    status: str
    reason: str | None = None
    message: str | None = None


class ContainerPort(_Api):
    container_port: int
    name: str | None = None
    protocol: str | None = None


class Container(_Api):
    name: str = ""
    ports: list[ContainerPort] | None = None
    restart_policy: str | None = None


class PodDnsOption(_Api):
    name: str | None = None
    value: str | None = None


class PodDnsConfig(_Api):
    """What a pod's resolv.conf gets besides what `dnsPolicy` gives it."""

    nameservers: list[str] | None = None
    searches: list[str] | None = None
    options: list[PodDnsOption] | None = None


class PodSpec(_Api):
    hostname: str | None = None
    subdomain: str | None = None
    node_name: str | None = None
    host_network: bool | None = None
    dns_policy: str | None = None
    dns_config: PodDnsConfig | None = None
    enable_service_links: bool | None = None
    containers: list[Container] | None = None
    init_containers: list[Container] | None = None


class PodStatus(_Api):
    phase: str | None = None
    pod_ip: str | None = msgspec.field(default=None, name="podIP")
    pod_ips: list[PodIP] | None = msgspec.field(default=None, name="podIPs")
    host_ip: str | None = msgspec.field(default=None, name="hostIP")
    conditions: list[PodCondition] | None = None


class Pod(_Api, tag_field="kind", tag="Pod"):
    metadata: Metadata
    spec: PodSpec | None = None
    status: PodStatus | None = None

    @property
    def addresses(self) -> list[str]:
        """Every address of the pod as written, the primary one first, none twice."""
        if self.status is None:
            return []
        found = [self.status.pod_ip] if self.status.pod_ip else []
        found += [each.ip for each in self.status.pod_ips or () if each.ip]
        return list(dict.fromkeys(found))

    @property
    def has_name(self) -> bool:
        """Whether pod records may show it: not once it ended, nor while its node is not heard of."""
        return self.status is None or self.status.phase not in ("Succeeded", "Failed", "Unknown")

    @property
    def finished(self) -> bool:
        """A pod that ended has no endpoint and no name, though the API still shows its address."""
        return self.status is not None and self.status.phase in ("Succeeded", "Failed")


Object = Namespace | Service | EndpointSlice | Pod


class Put(msgspec.Struct, tag=True, frozen=True, gc=False):
    """An object that exists now, new or changed."""

    object: Object


class Delete(msgspec.Struct, tag=True, frozen=True, gc=False):
    """An object that no longer exists; `kind` is the API's."""

    kind: str
    namespace: str
    name: str


class Synced(msgspec.Struct, tag=True, frozen=True, gc=False):
    """The source has told all that existed when it began."""


Event = Put | Delete | Synced
