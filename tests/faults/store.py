"""What a Kubernetes API server knows: objects, the one counter of their versions, and the history that watches replay.

Pure: no sockets, no faults, no clock but that of creation. A store never lies; a `Replica` may be behind it.
Law: the API concepts of Kubernetes (resource versions, lists and watches), as kube-apiserver 1.36 behaves.
"""

from __future__ import annotations

import bisect
import re
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import msgspec

Object = dict[str, Any]
# Namespace and name; the namespace of a Namespace is empty.
Key = tuple[str, str]

CREATED = "2026-01-01T00:00:00Z"


@dataclass(frozen=True)
class Resource:
    """A kind as paths and messages name it. `blank` is what a bookmark of the kind has besides its metadata."""

    plural: str
    kind: str
    group: str
    namespaced: bool
    blank: bytes

    @property
    def api_version(self) -> str:
        return f"{self.group}/v1" if self.group else "v1"

    @property
    def title(self) -> bytes:
        """The first two fields of an object that says what it is."""
        return b'"kind":"%s","apiVersion":"%s"' % (self.kind.encode(), self.api_version.encode())


RESOURCES = {
    each.plural: each
    for each in (
        Resource("namespaces", "Namespace", "", False, b'"spec":{},"status":{}'),
        Resource("services", "Service", "", True, b'"spec":{},"status":{"loadBalancer":{}}'),
        Resource("pods", "Pod", "", True, b'"spec":{"containers":null},"status":{}'),
        Resource("endpointslices", "EndpointSlice", "discovery.k8s.io", True, b'"addressType":"","endpoints":null'),
    )
}
PARTIAL_TITLE = b'"kind":"PartialObjectMetadata","apiVersion":"meta.k8s.io/v1"'


@dataclass(frozen=True)
class Version:
    """One object at one moment. `item` is its JSON as in a list, which says neither kind nor apiVersion."""

    resource: Resource
    key: Key
    number: int
    uid: str
    labels: Mapping[str, str]
    item: bytes

    @property
    def whole(self) -> bytes:
        """Its JSON as in an event or a reply of its own."""
        return b"{" + self.resource.title + b"," + self.item[1:]

    @cached_property
    def partial(self) -> bytes:
        """Its JSON where only metadata was asked for; in lists too it says what it is."""
        metadata = msgspec.json.decode(self.item).get("metadata")
        return b"{" + PARTIAL_TITLE + b',"metadata":' + msgspec.json.encode(metadata) + b"}"


@dataclass(frozen=True)
class Change:
    """A step of the history: what was there before and what is there since; None is nothing."""

    number: int
    resource: Resource
    key: Key
    before: Version | None
    after: Version | None

    def seen_by(self, matches: Callable[[Version], bool], spell: Callable[[int], str]) -> tuple[str, Version] | None:
        """The event that a watch has of it: its type and object. What stops matching is deleted to that watch."""
        before = self.before if self.before is not None and matches(self.before) else None
        if self.after is not None and matches(self.after):
            return ("ADDED" if before is None else "MODIFIED", self.after)
        if before is None:
            return None
        # The last that was known of it, at the version of its end.
        old, new = (b'"resourceVersion":"%s"' % spell(each).encode() for each in (before.number, self.number))
        return "DELETED", replace(before, number=self.number, item=before.item.replace(old, new, 1))


class Store:
    """The truth. `spell` and `unspell` turn version numbers into what clients see, which may be no number at all."""

    def __init__(
        self,
        spell: Callable[[int], str] = str,
        unspell: Callable[[str], int] = int,
        first: int = 1000,
    ) -> None:
        self.spell = spell
        self.unspell = unspell
        self.number = first
        self.compacted = 0
        self.objects: dict[str, dict[Key, Version]] = {plural: {} for plural in RESOURCES}
        self.history: list[Change] = []
        self.replicas: list[Replica] = []
        self._in_order: dict[str, tuple[object, list[Version]]] = {}

    # What changes

    def put(self, plural: str, object: Object) -> Version:
        """Create or replace an object. What is given may be any JSON that has metadata with a name."""
        metadata = object["metadata"]
        resource = RESOURCES[plural]
        key = (metadata.get("namespace", "") if resource.namespaced else "", metadata["name"])
        before = self.objects[plural].get(key)
        number = self.number + 1
        uid = before.uid if before else str(uuid.uuid4())
        told = {"uid": uid, "resourceVersion": self.spell(number), "creationTimestamp": CREATED}
        item = {**object, "metadata": {**metadata, **told}}
        item.pop("kind", None)
        item.pop("apiVersion", None)
        labels = metadata.get("labels")
        version = Version(
            resource, key, number, uid, labels if isinstance(labels, dict) else {}, msgspec.json.encode(item)
        )
        self._step(Change(number, resource, key, before, version))
        return version

    def poison(self, plural: str, key: Key, item: bytes) -> Version:
        """Put bytes in the place of an object, which no API server would: without metadata, or no JSON."""
        before = self.objects[plural].get(key)
        version = Version(RESOURCES[plural], key, self.number + 1, "", {}, item)
        self._step(Change(self.number + 1, version.resource, key, before, version))
        return version

    def delete(self, plural: str, namespace: str, name: str) -> None:
        """Remove an object that is there."""
        before = self.objects[plural][(namespace, name)]
        self._step(Change(self.number + 1, before.resource, before.key, before, None))

    def tick(self, count: int = 1) -> None:
        """Let the counter go on, as when objects change that nobody here watches."""
        self.number += count

    def compact(self, number: int | None = None) -> None:
        """Forget the history up to a version, by default all of it."""
        self.compacted = self.number if number is None else number

    def restore(self, number: int, new_uids: bool = True) -> None:
        """Go back to how things were, as a backup of etcd does: the counter too. Replicas know nothing older."""
        self.objects = {plural: self.at(plural, number) for plural in RESOURCES}
        self.history = [change for change in self.history if change.number <= number]
        self.number = self.compacted = number
        self._in_order.clear()
        for replica in self.replicas:
            replica.forget()
        if new_uids:
            for found in self.objects.values():
                for key, version in found.items():
                    uid = str(uuid.uuid4())
                    found[key] = replace(
                        version, uid=uid, item=version.item.replace(version.uid.encode(), uid.encode())
                    )

    def _step(self, change: Change) -> None:
        self.number = change.number
        self.history.append(change)
        if change.after is None:
            del self.objects[change.resource.plural][change.key]
        else:
            self.objects[change.resource.plural][change.key] = change.after
        for replica in self.replicas:
            replica.see(change)

    # What is asked

    def at(self, plural: str, number: int) -> dict[Key, Version]:
        """The objects of a kind as they were when the counter stood at a number."""
        found = dict(self.objects[plural])
        for change in reversed(self.history):
            if change.number <= number:
                break
            if change.resource.plural != plural:
                continue
            if change.before is None:
                found.pop(change.key, None)
            else:
                found[change.key] = change.before
        return found

    def in_order(self, plural: str, number: int) -> list[Version]:
        """The same by namespace and name. The pages of a list ask for one moment again and again."""
        moment = (number, len(self.history), self.history[-1].number if self.history else 0)
        held = self._in_order.get(plural)
        if held is None or held[0] != moment:
            found = [version for _, version in sorted(self.at(plural, number).items())]
            held = self._in_order[plural] = (moment, found)
        return held[1]

    def since(self, plural: str, number: int) -> list[Change]:
        """The changes of a kind after a number."""
        start = bisect.bisect_right(self.history, number, key=lambda change: change.number)
        return [change for change in self.history[start:] if change.resource.plural == plural]


@dataclass
class Replica:
    """An API server over the store. Held back it shows what was; it then tells all that it missed when it goes on.

    One that `lies` shows old state even where a client asks for the newest, which a real one would fetch from etcd.
    """

    store: Store
    lies: bool = False
    held_at: int | None = None
    listeners: dict[object, Callable[[Change], None]] = field(default_factory=dict)
    _missed: list[Change] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.store.replicas.append(self)

    @property
    def number(self) -> int:
        """The newest version that it knows of."""
        return self.store.number if self.held_at is None else min(self.held_at, self.store.number)

    def hold(self, number: int | None = None) -> None:
        """Learn nothing from now on; `number` goes back further, for watches that are yet to come."""
        self.held_at = self.store.number if number is None else number

    def go_on(self) -> None:
        """Catch up."""
        self.held_at = None
        missed, self._missed = self._missed, []
        for change in missed:
            self.see(change)

    def forget(self) -> None:
        """What it missed never was."""
        self._missed = []

    def see(self, change: Change) -> None:
        """Tell the watches of a change, now or when it goes on."""
        if self.held_at is not None:
            self._missed.append(change)
            return
        for listener in list(self.listeners.values()):
            listener(change)


# Selectors

_TERM = re.compile(
    r"""(?P<absent>!\s*)?(?P<key>[\w./-]+)\s*
        (?:(?P<operator>==?|!=)\s*(?P<value>[\w.-]*)|\s(?P<set>in|notin)\s*\((?P<values>[^)]*)\))?\s*(?:,|$)""",
    re.VERBOSE,
)
Matcher = Callable[[Version], bool]


def label_matcher(text: str) -> Matcher:
    """The objects that a `labelSelector` means. Raises ValueError."""
    terms = list(_terms(text))
    return lambda version: all(term(version.labels) for term in terms)


_FIELD_TERM = re.compile(r"(?P<name>[\w.]+)(?P<operator>==?|!=)(?P<value>.*)")
_FIELDS: dict[str, Callable[[Version], str]] = {
    "metadata.name": lambda version: version.key[1],
    "metadata.namespace": lambda version: version.key[0],
    # Of pods, and only CoreDNS asks for it.
    "status.phase": lambda version: msgspec.json.decode(version.item).get("status", {}).get("phase", ""),
}


def field_matcher(text: str) -> Matcher:
    """The objects that a `fieldSelector` means: by name, by namespace, by phase. Raises ValueError."""
    terms = [_field_term(part) for part in filter(None, text.split(","))]
    return lambda version: all(term(version) for term in terms)


def _field_term(part: str) -> Matcher:
    term = _FIELD_TERM.fullmatch(part)
    if term is None or term["name"] not in _FIELDS:
        raise ValueError(f"field label not supported: {term['name'] if term else part}")
    value_of, is_wanted = _FIELDS[term["name"]], term["operator"] != "!="
    return lambda version: (value_of(version) == term["value"]) is is_wanted


def _terms(text: str) -> Iterator[Callable[[Mapping[str, str]], bool]]:
    position = 0
    while position < len(text):
        term = _TERM.match(text, position)
        if term is None:
            raise ValueError(f"unable to parse requirement: {text[position:]}")
        yield _term(term)
        position = term.end()


def _term(term: re.Match[str]) -> Callable[[Mapping[str, str]], bool]:
    key = term["key"]
    values = {each.strip() for each in (term["values"] or term["value"] or "").split(",")}
    if term["operator"] == "!=" or term["set"] == "notin":
        return lambda labels: labels.get(key) not in values
    if term["operator"] or term["set"]:
        return lambda labels: labels.get(key) in values
    return lambda labels: (key in labels) is (term["absent"] is None)


# Objects to put


def namespace(name: str, labels: Mapping[str, str] | None = None) -> Object:
    """A Namespace."""
    metadata = {"name": name, "labels": {"kubernetes.io/metadata.name": name, **(labels or {})}}
    return {"metadata": metadata, "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}}


def service(namespace: str, name: str, address: str = "None", **more: Any) -> Object:
    """A Service with one port, `http`; headless without an address. `more` are fields of its spec, or labels."""
    labels = more.pop("labels", {"app": name})
    spec = {
        "type": "ClusterIP",
        "clusterIP": address,
        "clusterIPs": [address],
        "ports": [{"name": "http", "protocol": "TCP", "port": 80, "targetPort": 8080}],
        "selector": {"app": name},
        **more,
    }
    return {"metadata": _metadata(namespace, name, labels), "spec": spec, "status": {"loadBalancer": {}}}


def external(namespace: str, name: str, target: str) -> Object:
    """An ExternalName service."""
    spec = {"type": "ExternalName", "externalName": target}
    return {"metadata": _metadata(namespace, name, {"app": name}), "spec": spec, "status": {"loadBalancer": {}}}


def endpoint_slice(
    namespace: str, name: str, service: str, ready: Iterable[str], not_ready: Iterable[str] = ()
) -> Object:
    """An EndpointSlice of a service: addresses, all on port 8080."""
    addresses = [*((each, True) for each in ready), *((each, False) for each in not_ready)]
    return {
        "metadata": _metadata(namespace, name, {"kubernetes.io/service-name": service}),
        "addressType": "IPv6" if any(":" in each for each, _ in addresses) else "IPv4",
        "endpoints": [_endpoint(namespace, address, ready) for address, ready in addresses],
        "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
    }


def pod(namespace: str, name: str, address: str, phase: str = "Running") -> Object:
    """A Pod that has an address."""
    return {
        "metadata": _metadata(namespace, name, {"app": name}),
        "spec": {"containers": [{"name": "main", "image": "none"}]},
        "status": {"phase": phase, "podIP": address, "podIPs": [{"ip": address}]},
    }


def _endpoint(namespace: str, address: str, ready: bool) -> Object:
    pod = address.replace(".", "-").replace(":", "-")
    return {
        "addresses": [address],
        "conditions": {"ready": ready, "serving": ready, "terminating": False},
        "targetRef": {"kind": "Pod", "namespace": namespace, "name": f"pod-{pod}"},
    }


def _metadata(namespace: str, name: str, labels: Mapping[str, str]) -> Object:
    return {"name": name, "namespace": namespace, "labels": dict(labels)}
