"""The model of a cluster: what events left behind, indexed by the names and addresses that are asked for.

`apply` takes one event and says which tags changed; a kept answer that bears one of them is old. The model doesn't know
where events come from, and holds no records: `schema` computes those when they are asked for. Names are lower-case
bytes as they stand in a packet, addresses are packed (4 or 16 bytes).
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Iterable, Iterator
from enum import Enum, auto
from functools import lru_cache

import msgspec

from kdns.addresses import pack_address
from kdns.kubernetes.clients import Clients, Standing, created_at, uses_host_network
from kdns.kubernetes.index import Some, all_of, reindex, some
from kdns.kubernetes.objects import (
    Delete,
    Endpoint,
    EndpointSlice,
    Event,
    Namespace,
    Pod,
    Put,
    Service,
    Synced,
)
from kdns.wire import names

# What an answer may depend on. The first word says what the rest names.
Tag = tuple[str, *tuple[bytes, ...]]

SERIAL: Tag = ("serial",)
NO_PORT = -1


def service_tag(namespace: bytes, name: bytes) -> Tag:
    """On whatever is answered from one service, or from there being none of that name."""
    return ("service", namespace, name)


def namespace_tag(namespace: bytes) -> Tag:
    """On whatever lies below a namespace, or is missing for want of it."""
    return ("namespace", namespace)


def pod_tag(namespace: bytes, address: bytes) -> Tag:
    """On a pod record that was verified."""
    return ("pod", namespace, address)


def reverse_tag(address: bytes) -> Tag:
    """On every PTR, and on its absence."""
    return ("reverse", address)


class Kind(Enum):
    """What DNS makes of a service; NodePort and LoadBalancer are ClusterIP services to it."""

    ABSENT = auto()  # only slices of it were seen
    CLUSTER_IP = auto()
    HEADLESS = auto()
    EXTERNAL_NAME = auto()


class Port(msgspec.Struct, frozen=True, gc=False):
    """A port of a service or slice: name and protocol in lower case, `NO_PORT` where the number is missing."""

    name: bytes
    protocol: bytes
    number: int


class Ready(msgspec.Struct, frozen=True, gc=False):
    """A ready address of a slice under its endpoint label; `named` tells a hostname from a dashed address."""

    address: bytes
    label: bytes
    named: bool


# The model of a large cluster is tens of thousands of objects that live for long; a collection that looked at them
# would hold up every query for 100 ms. So they are none of its business (gc=False), and never part of a cycle: a slice
# knows its service by name.


class SliceModel(msgspec.Struct, eq=False, gc=False):
    """What DNS needs of an EndpointSlice of the service `owner`.

    `addresses` are those that are ready. `hostnames` are the labels that they have of their own, empty where one has
    none; without any there is no tuple either: that is every slice but those of StatefulSets and their like.
    `not_ready` counts the other endpoints by what their conditions say, for who asks why: no record shows them.
    """

    name: str
    namespace: bytes
    owner: bytes
    addresses: tuple[bytes, ...]
    hostnames: tuple[bytes, ...]
    not_ready: tuple[tuple[str, int], ...]
    ports: tuple[Port, ...]

    @property
    def state(self) -> tuple[bytes, bytes, tuple[bytes, ...], tuple[bytes, ...], tuple[Port, ...]]:
        """All that a record may show."""
        return self.namespace, self.owner, self.addresses, self.hostnames, self.ports

    @property
    def ready(self) -> tuple[Ready, ...]:
        """The ready addresses under their labels, made when asked for: kept they would take 250 bytes each."""
        hostnames = self.hostnames or (b"",) * len(self.addresses)
        return tuple(
            [
                Ready(address, hostname or dashed(address), hostname != b"")
                for address, hostname in zip(self.addresses, hostnames, strict=True)
            ]
        )


class EndpointSet:
    """Some endpoints of a service as records need them: addresses by family, SRV targets, and the targets' addresses.

    `pairs` counts addresses times ports. All is in a fixed order, without doubles.
    """

    __slots__ = ("addresses", "glue", "pairs", "targets")

    def __init__(self, candidates: Iterable[tuple[Ready, Port]], wanted: tuple[bytes, ...] = ()) -> None:
        self.pairs = 0
        addresses: dict[int, dict[bytes, None]] = {4: {}, 16: {}}
        targets: dict[tuple[bytes, int], None] = {}
        glue: dict[bytes, dict[bytes, None]] = {}
        for ready, port in candidates:
            if wanted and (port.name, port.protocol) != wanted:
                continue
            self.pairs += 1
            addresses[len(ready.address)][ready.address] = None
            glue.setdefault(ready.label, {})[ready.address] = None
            if port.number != NO_PORT:
                targets[ready.label, port.number] = None
        self.addresses = {size: tuple(found) for size, found in addresses.items()}
        self.targets = tuple(targets)
        self.glue = {label: tuple(found) for label, found in glue.items()}


class ServiceModel(msgspec.Struct, eq=False, gc=False):
    """What DNS needs of a Service, and the slices that name it, which may come before it.

    `sets` and `by_label` are what was computed from the slices for those who asked.
    """

    namespace: bytes
    name: bytes
    kind: Kind = Kind.ABSENT
    addresses: tuple[bytes, ...] = ()
    ports: tuple[Port, ...] = ()
    external: bytes = b""
    slices: dict[str, SliceModel] = {}
    sets: dict[tuple[bytes, ...], EndpointSet] | None = None
    by_label: dict[bytes, list[tuple[Ready, Port]]] | None = None

    @property
    def state(self) -> tuple[Kind, tuple[bytes, ...], tuple[Port, ...], bytes]:
        return self.kind, self.addresses, self.ports, self.external

    @property
    def tag(self) -> Tag:
        return service_tag(self.namespace, self.name)

    def endpoints(self, wanted: tuple[bytes, ...] = ()) -> EndpointSet:
        """The ready endpoints, or of those the ones that have a port of this name and protocol."""
        if self.sets is None:
            self.sets = {}
        found = self.sets.get(wanted)
        if found is None:
            found = EndpointSet(self.candidates(), wanted)
            # What doesn't exist is named by strangers, and they have many names.
            if found.pairs:
                self.sets[wanted] = found
        return found

    def candidates(self) -> list[tuple[Ready, Port]]:
        """Each ready address with each port of its slice, in a fixed order: by address, then slice, then port."""
        found = [
            (ready, port) for _, part in sorted(self.slices.items()) for ready in part.ready for port in part.ports
        ]
        found.sort(key=lambda pair: (len(pair[0].address), pair[0].address))
        return found

    def at_label(self, label: bytes) -> EndpointSet:
        """The ready endpoints that have this label."""
        if self.by_label is None:
            self.by_label = {}
            for pair in self.candidates():
                self.by_label.setdefault(pair[0].label, []).append(pair)
        return EndpointSet(self.by_label.get(label, ()))

    def has_ready(self) -> bool:
        """Whether any endpoint of any family is ready."""
        return any(part.addresses for part in self.slices.values())

    def forget(self) -> None:
        """Slices changed: what was computed from them is old."""
        self.sets = None
        self.by_label = None


class Cluster:
    """The objects that one `kubernetes` directive shows. `clock` gives seconds since 1970, for the serial.

    `clients` are the pods as clients, where somebody wants to know which namespace one stands in.
    """

    def __init__(
        self, clock: Callable[[], float], endpoint_pod_names: bool = False, locates_clients: bool = False
    ) -> None:
        self._clock = clock
        self._endpoint_pod_names = endpoint_pod_names
        self.clients = Clients() if locates_clients else None
        self.synced = False
        self.serial = int(clock()) & 0xFFFFFFFF
        self.namespaces: set[bytes] = set()
        self.services: dict[bytes, dict[bytes, ServiceModel]] = {}
        # By namespace: a hundred thousand keys that are pairs would cost a tuple each.
        self._slices: dict[str, dict[str, SliceModel]] = {}
        self._pods: dict[str, dict[str, Some[bytes]]] = {}
        self._pods_at: dict[bytes, dict[bytes, int]] = {}
        self._services_at: dict[bytes, Some[ServiceModel]] = {}
        self._endpoints_at: dict[bytes, Some[SliceModel]] = {}

    # What is asked

    def service(self, namespace: bytes, name: bytes) -> ServiceModel | None:
        """The service of that name, if it exists."""
        service = self.services.get(namespace, {}).get(name)
        return None if service is None or service.kind is Kind.ABSENT else service

    def services_at(self, address: bytes) -> list[ServiceModel]:
        """The services that have this ClusterIP, in visible namespaces, lowest name first."""
        found = [service for service in all_of(self._services_at.get(address)) if service.namespace in self.namespaces]
        return sorted(found, key=lambda service: (service.namespace, service.name))

    def endpoints_at(self, address: bytes) -> list[tuple[ServiceModel, Ready]]:
        """The existing services with a ready endpoint at this address, each with the endpoint, lowest name first."""
        found = [
            (service, ready)
            for part in all_of(self._endpoints_at.get(address))
            if part.namespace in self.namespaces
            and (service := self.services[part.namespace][part.owner]).kind in (Kind.CLUSTER_IP, Kind.HEADLESS)
            for ready in part.ready
            if ready.address == address
        ]
        return sorted(found, key=lambda pair: (pair[0].namespace, pair[0].name, pair[1].label))

    def has_pod(self, namespace: bytes, address: bytes) -> bool:
        """Whether a live pod of the namespace has this address."""
        return address in self._pods_at.get(namespace, ())

    def pod_addresses(self, namespace: str, name: str) -> tuple[bytes, ...]:
        """The addresses of a live pod; none where no pod of that name is known."""
        return all_of(self._pods.get(namespace, {}).get(name))

    def all_services(self) -> Iterator[ServiceModel]:
        """Every service of a visible namespace, in the order of namespace and name."""
        for namespace in sorted(self.namespaces):
            for _, service in sorted(self.services.get(namespace, {}).items()):
                if service.kind is not Kind.ABSENT:
                    yield service

    def all_pods(self) -> list[tuple[bytes, bytes]]:
        """Namespace and address of every live pod."""
        return sorted(
            (namespace, address) for namespace in self.namespaces for address in self._pods_at.get(namespace, ())
        )

    def pods_by_name(self) -> Iterator[tuple[tuple[str, str], tuple[bytes, ...]]]:
        """Namespace, name and addresses of every live pod, hidden namespaces included; they may change meanwhile."""
        for namespace in list(self._pods):
            for name, addresses in self.pods_in(namespace):
                yield (namespace, name), addresses

    def pods_in(self, namespace: str) -> Iterator[tuple[str, tuple[bytes, ...]]]:
        """Name and addresses of every live pod of a namespace; they may change meanwhile."""
        for name, addresses in list(self._pods.get(namespace, {}).items()):
            yield name, all_of(addresses)

    def known_addresses(self) -> set[bytes]:
        """Every address that may have a PTR record."""
        return self._services_at.keys() | self._endpoints_at.keys()

    # What changes

    def apply(self, event: Event) -> set[Tag]:
        """Take in one event. Returns the tags of what changed for DNS: none when nothing that DNS shows did."""
        match event:
            case Put(object=Namespace() as object):
                changed = self._put_namespace(object)
            case Put(object=Service() as object):
                changed = self._put_service(object)
            case Put(object=EndpointSlice() as object):
                changed = self._put_slice(object)
            case Put(object=Pod() as object):
                changed = self._put_pod(object)
            case Delete(kind="Namespace", name=name):
                changed = self._delete_namespace(name.lower().encode())
            case Delete(kind="Service", namespace=namespace, name=name):
                changed = self._delete_service(*_key(namespace, name))
            case Delete(kind="EndpointSlice", namespace=namespace, name=name):
                changed = self._replace_slice((namespace, name), None)
            case Delete(kind="Pod", namespace=namespace, name=name):
                changed = self._replace_pod((namespace, name), None)
            case Synced():
                self.synced = True
                return set()
            case _:
                return set()
        if changed:
            self.serial = _next_serial(self.serial, int(self._clock()))
            changed.add(SERIAL)
        # No record changes with who stands where, so the zone's serial doesn't either.
        return changed | self._clients_changed(event) if self.clients is not None else changed

    def _clients_changed(self, event: Event) -> set[Tag]:
        assert self.clients is not None
        match event:
            case Put(object=Pod() as pod):
                key = (pod.metadata.namespace, pod.metadata.name)
                if pod.finished or uses_host_network(pod):
                    return self.clients.replace(key, None)
                addresses = some(tuple(self._packed(pod.addresses)))
                # One whose node isn't heard of may ask nevertheless, unless its address was given to another.
                leaving = pod.metadata.deletion_timestamp is not None or not pod.has_name
                return self.clients.replace(key, Standing(_key(*key)[0], addresses, leaving, created_at(pod)))
            case Delete(kind="Pod", namespace=namespace, name=name):
                return self.clients.replace((namespace, name), None)
        return set()

    def _put_namespace(self, object: Namespace) -> set[Tag]:
        name = object.metadata.name.lower().encode()
        if name in self.namespaces:
            return set()
        self.namespaces.add(name)
        return self._namespace_changed(name)

    def _delete_namespace(self, name: bytes) -> set[Tag]:
        if name not in self.namespaces:
            return set()
        self.namespaces.remove(name)
        changed = self._namespace_changed(name)
        if not self.services.get(name, True):
            del self.services[name]
        return changed

    def _namespace_changed(self, name: bytes) -> set[Tag]:
        changed: set[Tag] = {namespace_tag(name)}
        for service in self.services.get(name, {}).values():
            changed |= self._reverse_tags(service)
        return changed

    def _put_service(self, object: Service) -> set[Tag]:
        namespace, name = _key(object.metadata.namespace, object.metadata.name)
        service = self._ensure_service(namespace, name)
        before = service.state
        addresses_before = service.addresses
        spec = object.spec
        service.external = b""
        if spec.type == "ExternalName":
            service.kind, service.addresses = Kind.EXTERNAL_NAME, ()
            service.external = external_target(spec.external_name or "")
        elif object.addresses[:1] == ["None"]:
            service.kind, service.addresses = Kind.HEADLESS, ()
        else:
            service.kind = Kind.CLUSTER_IP
            service.addresses = tuple(self._packed(object.addresses))
        service.ports = tuple([_port(port.name, port.protocol, port.port) for port in spec.ports or ()])
        if service.state == before:
            return set()
        for address in set(addresses_before) ^ set(service.addresses):
            reindex(self._services_at, address, service, address in service.addresses)
        return {service.tag} | self._reverse_tags(service) | {reverse_tag(each) for each in addresses_before}

    def _delete_service(self, namespace: bytes, name: bytes) -> set[Tag]:
        service = self.service(namespace, name)
        if service is None:
            return set()
        changed = {service.tag} | self._reverse_tags(service)
        for address in service.addresses:
            reindex(self._services_at, address, service, False)
        service.kind, service.addresses, service.ports, service.external = Kind.ABSENT, (), (), b""
        self._drop_if_empty(service)
        return changed

    def _put_slice(self, object: EndpointSlice) -> set[Tag]:
        key = (object.metadata.namespace, object.metadata.name)
        owner = object.service
        # Slices without the label belong to nobody that DNS knows, and an FQDN slice has no defined meaning.
        if not owner or object.address_type == "FQDN":
            return self._replace_slice(key, None)
        service = self._ensure_service(*_key(object.metadata.namespace, owner))
        addresses: list[bytes] = []
        hostnames: list[bytes] = []
        not_ready: dict[str, int] = {}
        for endpoint in object.endpoints or ():
            if not endpoint.ready:
                why = endpoint.why_not_ready
                not_ready[why] = not_ready.get(why, 0) + 1
                continue
            hostname = self._hostname(endpoint)
            for packed in self._packed(endpoint.addresses or ()):
                addresses.append(packed)
                hostnames.append(hostname)
        ports = tuple(
            [
                _port(port.name, port.protocol, NO_PORT if port.port is None else port.port)
                for port in object.ports or ()
            ]
        )
        model = SliceModel(
            key[1],
            service.namespace,
            service.name,
            tuple(addresses),
            tuple(hostnames) if any(hostnames) else (),
            tuple(sorted(not_ready.items())),
            # A slice without ports still has addresses: one port that no SRV record shows.
            ports or (Port(b"", b"", NO_PORT),),
        )
        return self._replace_slice(key, model)

    def _replace_slice(self, key: tuple[str, str], model: SliceModel | None) -> set[Tag]:
        slices = self._slices.setdefault(key[0], {})
        old = slices.get(key[1])
        if old is not None and model is not None and old.state == model.state:
            old.not_ready = model.not_ready
            return set()
        changed: set[Tag] = set()
        if old is not None:
            changed |= self._slice_changed(old, present=False)
            del slices[key[1]]
        if model is not None:
            changed |= self._slice_changed(model, present=True)
            slices[key[1]] = model
        if old is not None:
            self._drop_if_empty(self.services[old.namespace][old.owner])
        if not slices:
            del self._slices[key[0]]
        return changed

    def _slice_changed(self, part: SliceModel, present: bool) -> set[Tag]:
        service = self.services[part.namespace][part.owner]
        service.forget()
        if present:
            service.slices[part.name] = part
        else:
            del service.slices[part.name]
        changed: set[Tag] = {service.tag}
        for address in dict.fromkeys(part.addresses):
            reindex(self._endpoints_at, address, part, present)
            changed.add(reverse_tag(address))
        return changed

    def _put_pod(self, object: Pod) -> set[Tag]:
        key = (object.metadata.namespace, object.metadata.name)
        if not object.has_name:
            return self._replace_pod(key, None)
        if object.metadata.deletion_timestamp:
            # A terminating pod keeps its name until it is gone; one first seen so never gets one.
            return set()
        return self._replace_pod(key, tuple(self._packed(object.addresses)))

    def _replace_pod(self, key: tuple[str, str], addresses: tuple[bytes, ...] | None) -> set[Tag]:
        pods = self._pods.setdefault(key[0], {})
        namespace = _key(key[0], "")[0]
        at = self._pods_at.setdefault(namespace, {})
        before, after = set(all_of(pods.pop(key[1], None))), set(addresses or ())
        if addresses is not None:
            pods[key[1]] = some(addresses)
        changed: set[Tag] = set()
        for address in after - before:
            count = at.get(address, 0)
            at[address] = count + 1
            if not count:
                changed.add(pod_tag(namespace, address))
        for address in before - after:
            count = at.pop(address) - 1
            if count:
                at[address] = count
            else:
                changed.add(pod_tag(namespace, address))
        if not pods:
            del self._pods[key[0]]
        if not at:
            del self._pods_at[namespace]
        return changed

    # Helpers

    def _ensure_service(self, namespace: bytes, name: bytes) -> ServiceModel:
        of_namespace = self.services.setdefault(namespace, {})
        service = of_namespace.get(name)
        if service is None:
            service = of_namespace[name] = ServiceModel(namespace, name)
        return service

    def _drop_if_empty(self, service: ServiceModel) -> None:
        if service.kind is Kind.ABSENT and not service.slices:
            of_namespace = self.services.get(service.namespace, {})
            if of_namespace.get(service.name) is service:
                del of_namespace[service.name]
                # While the namespace is there its dict stays the same one: a kept denial looks into it.
                if not of_namespace and service.namespace not in self.namespaces:
                    del self.services[service.namespace]

    def _reverse_tags(self, service: ServiceModel) -> set[Tag]:
        changed = {reverse_tag(address) for address in service.addresses}
        for part in service.slices.values():
            changed |= {reverse_tag(address) for address in part.addresses}
        return changed

    def _packed(self, texts: Iterable[str]) -> Iterator[bytes]:
        for text in texts:
            packed = pack_address(text)
            if packed is not None:
                yield packed

    def _hostname(self, endpoint: Endpoint) -> bytes:
        """The label that an endpoint has of its own; empty where its address is its label."""
        if endpoint.hostname and len(endpoint.hostname) <= names.LONGEST_LABEL and "." not in endpoint.hostname:
            return endpoint.hostname.lower().encode()
        target = endpoint.target_ref.name if endpoint.target_ref and self._endpoint_pod_names else ""
        # A pod's name may hold dots, which no single label can; it then falls back to the address.
        if target and len(target) <= names.LONGEST_LABEL and "." not in target:
            return target.lower().encode()
        return b""


def address_text(packed: bytes) -> str:
    """The canonical text of a packed address (RFC 5952)."""
    if len(packed) == 4:
        return socket.inet_ntop(socket.AF_INET, packed)
    return ipaddress.IPv6Address(packed).compressed


def dashed(packed: bytes) -> bytes:
    """An address as an endpoint's label: `10-1-0-7`, `fd00-17--0`."""
    if len(packed) == 4:
        return b"%d-%d-%d-%d" % tuple(packed)
    label = address_text(packed).replace(":", "-")
    return (label + "0" if label.endswith("-") else label).encode()


def external_target(text: str) -> bytes:
    """The name that an ExternalName service points to; empty when it is an address or no name, which has no record."""
    if not text or pack_address(text.rstrip(".")) is not None:
        return b""
    try:
        return names.from_text(text)
    except ValueError:
        return b""


def _key(namespace: str, name: str) -> tuple[bytes, bytes]:
    return (namespace or "default").lower().encode(), name.lower().encode()


# Thousands of services and slices have the same few ports.
@lru_cache(maxsize=1024)
def _port(name: str | None, protocol: str | None, number: int) -> Port:
    return Port((name or "").lower().encode(), (protocol or "TCP").lower().encode(), number)


def _next_serial(serial: int, now: int) -> int:
    # RFC 1982: the later of the clock and one more, in arithmetic modulo 2**32.
    following = (serial + 1) & 0xFFFFFFFF
    now &= 0xFFFFFFFF
    return now if (now - following) & 0xFFFFFFFF < 0x80000000 else following
