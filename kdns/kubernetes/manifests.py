"""Manifests in YAML or JSON as checked objects, with every mistake and its place.

Knows no files and no control plane: text in, objects and problems out.
Law: the API reference of core/v1 and discovery.k8s.io/v1, and the API server's validation of the fields that DNS reads
(`pkg/apis/core/validation`, `pkg/apis/discovery/validation`, kubernetes 1.36).
"""

from __future__ import annotations

import functools
import hashlib
import re
import socket
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
from msgspec import inspect

from kdns.errors import Place, Problem, nearest
from kdns.kubernetes import yamltext
from kdns.kubernetes.controller import DEFAULT_NAMESPACE, Manifest, Path, Workload, in_namespace
from kdns.kubernetes.objects import Endpoint, EndpointPort, Endpoints, EndpointSlice, Namespace, Pod, Service

KINDS: dict[tuple[str, str], type[Any]] = {
    ("v1", "Namespace"): Namespace,
    ("v1", "Service"): Service,
    ("v1", "Pod"): Pod,
    ("v1", "Endpoints"): Endpoints,
    ("discovery.k8s.io/v1", "EndpointSlice"): EndpointSlice,
}
VERSIONS = {kind: version for version, kind in KINDS}
# The core group's other kinds: not misspelt, only of no use here.
CORE_KINDS = frozenset(
    (
        "Binding",
        "ComponentStatus",
        "ConfigMap",
        "Event",
        "LimitRange",
        "Node",
        "PersistentVolume",
        "PersistentVolumeClaim",
        "PodTemplate",
        "ReplicationController",
        "ResourceQuota",
        "Secret",
        "ServiceAccount",
    )
)
WORKLOADS = frozenset(("Deployment", "StatefulSet", "DaemonSet", "ReplicaSet"))

TYPES = ("ClusterIP", "NodePort", "LoadBalancer", "ExternalName")
PROTOCOLS = ("TCP", "UDP", "SCTP")
FAMILIES = ("IPv4", "IPv6")
ADDRESS_TYPES = (*FAMILIES, "FQDN")
FAMILY_POLICIES = ("SingleStack", "PreferDualStack", "RequireDualStack")

LABEL = re.compile(r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?")
LABEL_RULE = "at most 63 lower-case letters, digits and `-`, with a letter or digit at both ends"
SUBDOMAIN = re.compile(r"(?=.{1,253}\Z)[a-z0-9](?:[-a-z0-9]*[a-z0-9])?(?:\.[a-z0-9](?:[-a-z0-9]*[a-z0-9])?)*")
SUBDOMAIN_RULE = "labels of lower-case letters, digits and `-`, parted by dots, at most 253 characters in all"
# RFC 6335 §5.1, IANA_SVC_NAME in the API: what container ports and named target ports are called.
PORT_NAME = re.compile(r"(?=.{1,15}\Z)(?=.*[a-z])(?!.*--)[a-z0-9](?:[-a-z0-9]*[a-z0-9])?")
PORT_NAME_RULE = "at most 15 lower-case letters, digits and single `-`, at least one of them a letter"
PORT_RULE = "a number from 1 to 65535"
PORT_FIELDS = frozenset(("port", "targetPort", "nodePort", "containerPort"))
ADDRESS_RULE = "an IPv4 or IPv6 address"


class Fault(NamedTuple):
    """A mistake in one field of an object; `{raw}` in its texts becomes the value as written."""

    path: Path
    message: str
    expected: str = ""
    hint: str = ""
    warning: bool = False


class Located(NamedTuple):
    """An object, and the way to it from the top of its text."""

    manifest: Manifest
    path: Path


class Parsed(msgspec.Struct):
    """What one text holds; lines of places count from its own first line."""

    manifests: list[Located] = []
    workloads: list[Workload] = []
    passed_over: Counter[str] = msgspec.field(default_factory=Counter)
    problems: list[Problem] = []


ListOf = tuple[str, str]
"""The apiVersion and kind that a list gives its items; the kind is empty where each says its own."""


class Part(NamedTuple):
    """A piece of a file and what it holds."""

    piece: yamltext.Piece
    parsed: Parsed


class Reader:
    """Reads files again and again, and parses of each only what it has not seen last time."""

    def __init__(self) -> None:
        self.kept: dict[tuple[bytes, str, ListOf], Parsed] = {}
        self.fresh: dict[tuple[bytes, str, ListOf], Parsed] = {}

    def read(self, text: str, is_json: bool = False) -> list[Part]:
        """The pieces of a file and what they hold."""
        if is_json or text.lstrip()[:1] in ("{", "["):
            whole = yamltext.Piece(text, 0)
            return self.read_json_list(text) or [Part(whole, self.keep(whole, "json" if is_json else "flow"))]
        parts: list[Part] = []
        for piece in yamltext.split(text):
            parts += self.read_yaml_list(piece) or [Part(piece, self.keep(piece, "yaml"))]
        return parts

    def forget_unread(self) -> None:
        """To be called after all files were read: what was in none of them goes."""
        self.kept, self.fresh = self.fresh, {}

    def read_json_list(self, text: str) -> list[Part] | None:
        """A List item by item, or nothing where this is none."""
        try:
            document = _JSON_LIST.decode(text)
        except (msgspec.MsgspecError, RecursionError):
            return None
        of = _list_of({"apiVersion": document.api_version, "kind": document.kind})
        if of is None or not document.items:
            return None
        parts = []
        start = above = 0
        for raw in document.items:
            item = bytes(raw).decode()
            found = text.index(item, start)
            above += text.count("\n", start, found)
            piece = yamltext.Piece(item, above, found - (text.rfind("\n", 0, found) + 1))
            parts.append(Part(piece, self.keep(piece, "json", of)))
            start = found
        return parts

    def read_yaml_list(self, piece: yamltext.Piece) -> list[Part] | None:
        """A List item by item, or nothing where it does not come apart."""
        cut = yamltext.split_list(piece)
        if cut is None:
            return None
        surroundings, items = cut
        try:
            documents = yamltext.read(surroundings.text)
        except yamltext.YamlError:
            return None
        if len(documents) != 1 or documents[0].duplicates or not isinstance(documents[0].value, dict):
            return None
        of = _list_of(documents[0].value)
        if of is None:
            return None
        parts = [Part(item, self.keep(item, "item", of)) for item in items]
        # A problem of no object: the cut may have gone through the middle of something.
        if any(problem.subject == "" for part in parts for problem in part.parsed.problems):
            return None
        return parts

    def keep(self, piece: yamltext.Piece, syntax: str, of: ListOf = ("", "")) -> Parsed:
        key = (hashlib.blake2b(piece.text.encode(), digest_size=16).digest(), syntax, of)
        parsed = self.fresh.get(key) or self.kept.get(key)
        if parsed is None:
            parsed = parse(piece.text, syntax, of)
        self.fresh[key] = parsed
        return parsed


class _JsonList(msgspec.Struct, rename="camel"):
    kind: str
    api_version: str
    items: list[msgspec.Raw]


_JSON_LIST = msgspec.json.Decoder(_JsonList)


def parse(text: str, syntax: str = "yaml", of: ListOf = ("", "")) -> Parsed:
    """The objects in a text: `yaml`, `json`, `flow` (YAML that may be JSON), or an `item` of a list in YAML."""
    parsed = Parsed()
    try:
        documents = _documents(text, syntax)
    except yamltext.YamlError as error:
        parsed.problems.append(_problem(error.message, error.spot, "", error.expected, error.hint))
        return parsed
    parser = _Parser(text, parsed)
    for document in documents:
        parser.duplicates = document.duplicates
        if syntax == "item":
            items = document.value if isinstance(document.value, list) else [document.value]
            for position, item in enumerate(items):
                parser.take(_typed(item, *of), (position,))
        elif document.value is not None or syntax == "json":
            parser.take(_typed(document.value, *of), ())
    return parsed


def in_file(spot: yamltext.Spot, piece: yamltext.Piece, file: str) -> Place:
    """A place in a piece as one in its file."""
    if spot.line > 1 or not piece.left:
        return Place(file, spot.line + piece.above, spot.column, spot.length, spot.text)
    text = " " * piece.left + spot.text if spot.text and piece.left < yamltext.DRAWN_LIMIT else ""
    return Place(file, spot.line + piece.above, spot.column + piece.left, spot.length, text)


def moved(problem: Problem, piece: yamltext.Piece, file: str) -> Problem:
    """A problem of a piece as one of its file."""
    place = problem.place
    if place is None:
        return msgspec.structs.replace(problem, place=Place(file))
    spot = yamltext.Spot(place.line, place.column, place.length, place.text)
    return msgspec.structs.replace(problem, place=in_file(spot, piece, file))


def _documents(text: str, syntax: str) -> list[yamltext.Document]:
    if syntax in ("json", "flow"):
        try:
            return [yamltext.Document(msgspec.json.decode(text), [])]
        except (msgspec.DecodeError, RecursionError) as error:
            if syntax == "json":
                raise _json_error(str(error), text) from None
    return yamltext.read(text)


def _json_error(complaint: str, text: str) -> yamltext.YamlError:
    if not text.strip():
        return yamltext.YamlError("an empty file", yamltext.Spot(1, 1, 1, ""), "a Kubernetes object in JSON")
    if "recursion" in complaint:
        return yamltext.YamlError(f"nested more than {yamltext.DEPTH_LIMIT} deep", yamltext.Spot(1, 1, 1, ""))
    found = re.search(r"\(byte (\d+)\)", complaint)
    before = text.encode()[: int(found[1])].decode(errors="ignore") if found else text.rstrip()
    line, column = before.count("\n"), len(before) - (before.rfind("\n") + 1)
    shown = text.split("\n")[line]
    message = complaint.removeprefix("JSON is malformed: ").split(" (byte")[0]
    spot = yamltext.Spot(line + 1, column + 1, 1, shown if len(shown) <= yamltext.DRAWN_LIMIT else "")
    return yamltext.YamlError(f"not JSON: {message[:1].lower()}{message[1:]}", spot)


def _list_of(document: dict[str, Any]) -> ListOf | None:
    """What a list's items are where they don't say so themselves: a ServiceList holds Services, a List anything."""
    kind, version = document.get("kind"), document.get("apiVersion")
    if not isinstance(kind, str) or not kind.endswith("List") or not isinstance(version, str) or " " in version + kind:
        return None
    return version, kind.removesuffix("List")


def _typed(item: object, version: str, kind: str) -> object:
    """An item of a list; a list of one kind, as the API itself gives it, doesn't repeat the kind in each."""
    return {"apiVersion": version, "kind": kind} | item if kind and isinstance(item, dict) else item


class _Parser:
    """Takes the objects out of one text; composes it with marks only when the first mistake is met."""

    def __init__(self, text: str, parsed: Parsed) -> None:
        self.text = text
        self.parsed = parsed
        self.duplicates: list[tuple[str, yamltext.Spot]] = []
        self.marks: yamltext.Marks | None = None

    def take(self, document: object, path: Path) -> None:
        """One document or item, whatever it is."""
        if not isinstance(document, dict):
            self.tell(
                Fault(
                    (), f"{_described(document)} where an object should be", "a mapping with `apiVersion` and `kind`"
                ),
                path,
                "",
            )
            return
        of = _list_of(document)
        if of is not None:
            self.take_list(document, of, path)
            return
        kind, version = document.get("kind"), document.get("apiVersion")
        if not isinstance(kind, str) or not kind or not isinstance(version, str) or not version:
            self.tell_untyped(document, path)
            return
        struct = KINDS.get((version, kind))
        if struct is not None:
            self.take_object(document, struct, path)
        elif kind in VERSIONS and version.split("/")[0] in (VERSIONS[kind].split("/")[0], "v1", "discovery.k8s.io"):
            self.tell(Fault(("apiVersion",), "there is no " + kind + " in `{raw}`", f"`{VERSIONS[kind]}`"), path, kind)
        elif version == "v1" and kind not in CORE_KINDS and (near := nearest(kind, list(VERSIONS))):
            self.tell(Fault(("kind",), "`v1` has no kind `{raw}`", hint=f"was `{near}` meant?"), path, kind)
        else:
            self.pass_over(document, kind, version)

    def take_list(self, document: dict[str, Any], of: ListOf, path: Path) -> None:
        items = document.get("items")
        if not isinstance(items, list):
            if items is not None:
                self.tell(Fault(("items",), f"`items` takes a list, found {_described(items)}"), path, of[1] + "List")
            return
        for position, item in enumerate(items):
            self.take(_typed(item, *of), (*path, "items", position))

    def tell_untyped(self, document: dict[str, Any], path: Path) -> None:
        for field, example in (("apiVersion", "`apiVersion: v1`"), ("kind", "e.g. `kind: Service`")):
            if field not in document:
                near = nearest(field, list(document))
                hint = f"`{near}` is written `{field}`" if near else ""
                self.tell(Fault((near or field,), f"an object without `{field}`", example, hint), path, "")
            elif not isinstance(document[field], str) or not document[field]:
                self.tell(
                    Fault((field,), f"`{field}` takes a string, found {_described(document[field])}", example), path, ""
                )

    def pass_over(self, document: dict[str, Any], kind: str, version: str) -> None:
        """Counts a kind that DNS has no use for, and keeps of a workload what its pods would be like."""
        group = version.rpartition("/")[0]
        # `Service.serving.knative.dev` is how kubectl tells a namesake from the real one.
        self.parsed.passed_over[f"{kind}.{group}" if kind in VERSIONS else kind] += 1
        if kind in WORKLOADS:
            try:
                workload = msgspec.convert(document, _WorkloadManifest)
            except msgspec.ValidationError:
                return
            namespace = workload.metadata.namespace or DEFAULT_NAMESPACE
            labels = workload.spec.template.metadata.labels
            self.parsed.workloads.append(Workload(kind, namespace, workload.metadata.name, labels))

    def take_object(self, document: dict[str, Any], struct: type[Any], path: Path) -> None:
        """The document as its struct, if there is no mistake in it."""
        subject = _subject(document)
        faults: list[Fault] = []
        try:
            manifest = msgspec.convert(document, struct)
        except msgspec.ValidationError:
            # msgspec stops at the first mistake; mend tells them all, and leaves something for the other checks.
            mended = mend(document, inspect.type_info(struct), (), faults)
            manifest = msgspec.convert(mended, struct)
        wrong = {fault.path for fault in faults}
        faults += [fault for fault in check(manifest) if fault.path not in wrong]
        for fault in faults:
            self.tell(fault, path, subject)
        for key, spot in self.duplicates:
            # In a List the mapping may be any object's.
            whose = "" if path else subject
            hint = "one of the two would be lost in silence"
            self.parsed.problems.append(
                _problem(f"the key `{key}` stands twice in one mapping", spot, whose, hint=hint)
            )
        self.duplicates = []
        if all(fault.warning for fault in faults):
            self.parsed.manifests.append(Located(in_namespace(manifest), path))

    def tell(self, fault: Fault, path: Path, subject: str) -> None:
        if self.marks is None:
            self.marks = yamltext.Marks(self.text)
        spot = self.marks.find((*path, *fault.path))
        raw = spot.raw if spot else ""
        field = dotted(fault.path)
        self.parsed.problems.append(
            _problem(
                fault.message.replace("{raw}", raw),
                spot,
                f"{subject}: {field}" if subject and field else subject,
                fault.expected,
                fault.hint.replace("{raw}", raw),
                fault.warning,
            )
        )


class _WorkloadMetadata(msgspec.Struct):
    name: str = ""
    namespace: str | None = None
    labels: dict[str, str] = {}


class _Template(msgspec.Struct):
    metadata: _WorkloadMetadata


class _WorkloadSpec(msgspec.Struct):
    template: _Template


class _WorkloadManifest(msgspec.Struct):
    metadata: _WorkloadMetadata
    spec: _WorkloadSpec


def _problem(
    message: str, spot: yamltext.Spot | None, subject: str, expected: str = "", hint: str = "", warning: bool = False
) -> Problem:
    place = Place("", spot.line, spot.column, spot.length, spot.text) if spot else None
    return Problem(message, place, subject, expected, hint, warning)


def _subject(document: Mapping[str, Any]) -> str:
    metadata = document.get("metadata")
    name = metadata.get("name") if isinstance(metadata, dict) else None
    namespace = metadata.get("namespace") if isinstance(metadata, dict) else None
    kind = str(document["kind"])
    if not isinstance(name, str) or not name:
        return f"{kind} without a name"
    if kind == "Namespace":
        return f"{kind} {name}"
    return f"{kind} {namespace if isinstance(namespace, str) and namespace else DEFAULT_NAMESPACE}/{name}"


def dotted(path: Path) -> str:
    """A path as people write it: `spec.ports[0].port`, `metadata.labels["app.kubernetes.io/name"]`."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        elif step.replace("-", "").replace("_", "").isalnum():
            text += f".{step}" if text else step
        else:
            text += f'["{step}"]'
    return text


# Types: every field of the wrong type, and a value of the right one in its stead, so that the checks below can go on.

Type = inspect.Type


def mend(value: Any, wanted: Type, path: Path, faults: list[Fault]) -> Any:
    """The value with all that has the wrong type replaced; each replacement is told."""
    options = _options(wanted)
    for option in options:
        if _fits(value, option):
            return _mend_inside(value, option, path, faults)
    faults.append(_wrong_type(value, options[0], path))
    return _blank(options[0])


def _options(wanted: Type) -> list[Type]:
    return list(wanted.types) if isinstance(wanted, inspect.UnionType) else [wanted]


def _fits(value: Any, wanted: Type) -> bool:
    match wanted:
        case inspect.NoneType():
            return value is None
        case inspect.BoolType():
            return isinstance(value, bool)
        case inspect.IntType():
            return isinstance(value, int) and not isinstance(value, bool)
        case inspect.StrType():
            return isinstance(value, str)
        case inspect.ListType():
            return isinstance(value, list)
        case inspect.DictType() | inspect.StructType():
            return isinstance(value, dict)
        case _:
            raise AssertionError(f"{wanted} is not among the types that objects have")


def _mend_inside(value: Any, wanted: Type, path: Path, faults: list[Fault]) -> Any:
    match wanted:
        case inspect.ListType():
            return [mend(each, wanted.item_type, (*path, position), faults) for position, each in enumerate(value)]
        case inspect.DictType():
            return {key: mend(each, wanted.value_type, (*path, key), faults) for key, each in value.items()}
        case inspect.StructType():
            return _mend_fields(value, wanted, path, faults)
        case _:
            return value


def _mend_fields(value: dict[str, Any], wanted: inspect.StructType, path: Path, faults: list[Fault]) -> dict[str, Any]:
    mended = {}
    if wanted.tag_field is not None:
        mended[wanted.tag_field] = wanted.tag
    for field in wanted.fields:
        name = field.encode_name
        # As for the API server, null is the same as nothing.
        if value.get(name) is not None:
            mended[name] = mend(value[name], field.type, (*path, name), faults)
        elif field.required:
            faults.append(Fault((*path, name), f"`{name}` is missing", PORT_RULE if name in PORT_FIELDS else ""))
            mended[name] = _blank(_options(field.type)[0])
    return mended


def _blank(wanted: Type) -> Any:
    match wanted:
        case inspect.StructType():
            blank: dict[Any, Any] = {wanted.tag_field: wanted.tag} if wanted.tag_field is not None else {}
            return blank | {
                field.encode_name: _blank(_options(field.type)[0]) for field in wanted.fields if field.required
            }
        case inspect.DictType():
            return {}
        case inspect.ListType():
            return []
        case inspect.BoolType():
            return False
        case inspect.IntType():
            return 1
        case _:
            return ""


def _wrong_type(value: Any, wanted: Type, path: Path) -> Fault:
    name = path[-1] if path and isinstance(path[-1], str) else "each entry"
    name = f"`{name}`" if name != "each entry" else name
    found = _described(value)
    match wanted:
        case inspect.StrType() if value is None:
            return Fault(path, f"{name} takes a string, and there is none", hint='write "" for an empty one')
        case inspect.StrType() if isinstance(value, bool | int | float):
            return Fault(
                path, f"{name} takes a string, and `{{raw}}` without quotes is {found}", hint='quote it: "{raw}"'
            )
        case inspect.StrType():
            return Fault(path, f"{name} takes a string, found {found}")
        case inspect.IntType():
            expected = PORT_RULE if path[-1] in PORT_FIELDS else ""
            quoted = isinstance(value, str) and value.isdecimal()
            hint = "write it without quotes" if quoted else ""
            what = f"{found} `{{raw}}`" if isinstance(value, str | bool | float) else found
            return Fault(path, f"{name} takes a whole number, found {what}", expected, hint)
        case inspect.BoolType():
            return Fault(path, f"{name} takes `true` or `false`, found {found}")
        case inspect.ListType():
            return Fault(path, f"{name} takes a list, found {found}", hint="begin each entry with `- `")
        case _:
            return Fault(path, f"{name} takes a mapping, found {found}")


def _described(value: object) -> str:
    match value:
        case None:
            return "nothing"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case list():
            return "a list"
        case _:
            return "a mapping"


# Values: what the API server would refuse, as far as DNS would be wrong about it.


def check(manifest: Manifest) -> Iterator[Fault]:
    """Every value of the object that its API would refuse."""
    yield from _check_metadata(manifest)
    match manifest:
        case Service():
            yield from _check_service(manifest)
        case Pod():
            yield from _check_pod(manifest)
        case EndpointSlice():
            yield from _check_slice(manifest)
        case Endpoints():
            yield from _check_endpoints(manifest)


def _check_metadata(manifest: Manifest) -> Iterator[Fault]:
    name, namespace = manifest.metadata.name, manifest.metadata.namespace
    if not name:
        hint = (
            "an object with `generateName` gets its name from the API server; write one"
            if isinstance(manifest, Pod)
            else ""
        )
        yield Fault(("metadata", "name"), "`metadata.name` is missing", hint=hint)
    elif isinstance(manifest, Namespace | Service):
        if not LABEL.fullmatch(name):
            kind = type(manifest).__name__
            yield Fault(("metadata", "name"), f"`{{raw}}` is no name for a {kind}", LABEL_RULE, _better_label(name))
    elif not SUBDOMAIN.fullmatch(name):
        yield Fault(("metadata", "name"), "`{raw}` is no name for an object", SUBDOMAIN_RULE, _better_label(name))
    if namespace and not LABEL.fullmatch(namespace) and not isinstance(manifest, Namespace):
        yield Fault(
            ("metadata", "namespace"), "`{raw}` is no name for a namespace", LABEL_RULE, _better_label(namespace)
        )


def _check_service(service: Service) -> Iterator[Fault]:
    spec = service.spec
    yield from _check_word(("spec", "type"), spec.type, TYPES, "type of Service")
    yield from _check_word(("spec", "ipFamilyPolicy"), spec.ip_family_policy, FAMILY_POLICIES, "family policy")
    for position, family in enumerate(spec.ip_families or ()):
        yield from _check_word(("spec", "ipFamilies", position), family, FAMILIES, "family")
    yield from _check_cluster_ips(service)
    for position, address in enumerate(spec.external_ips or ()):
        yield from _check_address(("spec", "externalIPs", position), address)
    for position, port in enumerate(spec.ports or ()):
        path: Path = ("spec", "ports", position)
        yield from _check_port((*path, "port"), port.port)
        yield from _check_protocol(path, port.protocol)
        # Not IANA's 15 characters: those bind the container's port; a Service's may be as long as a DNS label.
        yield from _check_label((*path, "name"), port.name, "port")
        if isinstance(port.target_port, str):
            yield from _check_target_port((*path, "targetPort"), port.target_port)
        elif port.target_port:
            yield from _check_port((*path, "targetPort"), port.target_port)
        if port.node_port:
            yield from _check_port((*path, "nodePort"), port.node_port)
    balancer = service.status.load_balancer if service.status else None
    for position, ingress in enumerate((balancer.ingress if balancer else None) or ()):
        if ingress.ip:
            yield from _check_address(("status", "loadBalancer", "ingress", position, "ip"), ingress.ip)
    if spec.type == "ExternalName":
        yield from _check_external_name(spec.external_name)


def _check_cluster_ips(service: Service) -> Iterator[Fault]:
    spec = service.spec
    listed = spec.cluster_ips or []
    if spec.cluster_ip not in (None, "", "None"):
        yield from _check_address(
            ("spec", "clusterIP"), spec.cluster_ip or "", hint='`clusterIP: "None"` is a headless service'
        )
    for position, address in enumerate(listed):
        if address == "None" and len(listed) > 1:
            yield Fault(("spec", "clusterIPs", position), "`None` beside an address", "`None` alone, or addresses")
        elif address != "None" and address != spec.cluster_ip:
            yield from _check_address(("spec", "clusterIPs", position), address)
    if len(listed) > 2 or (len(listed) == 2 and (":" in listed[0]) == (":" in listed[1])):
        yield Fault(
            ("spec", "clusterIPs"), "`clusterIPs` takes one address of each family", "one IPv4, one IPv6 address"
        )
    if spec.cluster_ip and listed and listed[0] != spec.cluster_ip:
        yield Fault(("spec", "clusterIP"), "`clusterIP` is not the first of `clusterIPs`", f"`{listed[0]}`")


def _check_external_name(name: str | None) -> Iterator[Fault]:
    path: Path = ("spec", "externalName")
    if not name:
        yield Fault(path, "a Service of type ExternalName without `externalName`", "the name that it stands for")
    elif is_address(name):
        hint = "a CNAME can't lead to an address; give a Service without selector an EndpointSlice instead"
        yield Fault(path, "`{raw}` is an address, so this name will not exist", "a host name", hint, warning=True)
    elif not SUBDOMAIN.fullmatch(name.removesuffix(".")):
        yield Fault(path, "`{raw}` is no host name", SUBDOMAIN_RULE, _better_host(name))


def _check_pod(pod: Pod) -> Iterator[Fault]:
    status, spec = pod.status, pod.spec
    if status is not None:
        if status.pod_ip:
            yield from _check_address(("status", "podIP"), status.pod_ip)
        if status.host_ip:
            yield from _check_address(("status", "hostIP"), status.host_ip)
        for position, each in enumerate(status.pod_ips or ()):
            if each.ip and each.ip != status.pod_ip:
                yield from _check_address(("status", "podIPs", position, "ip"), each.ip)
    if spec is None:
        return
    yield from _check_label(("spec", "hostname"), spec.hostname, "host")
    yield from _check_label(("spec", "subdomain"), spec.subdomain, "subdomain")
    for field, containers in (("containers", spec.containers), ("initContainers", spec.init_containers)):
        for position, container in enumerate(containers or ()):
            for number, port in enumerate(container.ports or ()):
                path: Path = ("spec", field, position, "ports", number)
                yield from _check_port((*path, "containerPort"), port.container_port)
                yield from _check_protocol(path, port.protocol)
                if port.name and not PORT_NAME.fullmatch(port.name):
                    yield Fault((*path, "name"), "`{raw}` is no name for a container's port", PORT_NAME_RULE)


def _check_slice(slice_: EndpointSlice) -> Iterator[Fault]:
    if not slice_.address_type:
        yield Fault(("addressType",), "`addressType` is missing", "`IPv4`, `IPv6` or `FQDN`")
    yield from _check_word(("addressType",), slice_.address_type or "IPv4", ADDRESS_TYPES, "type of address")
    for position, endpoint in enumerate(slice_.endpoints or ()):
        yield from _check_endpoint(("endpoints", position), endpoint, slice_.address_type)
    yield from _check_endpoint_ports(("ports",), slice_.ports or ())


def _check_endpoint(path: Path, endpoint: Endpoint, family: str | None) -> Iterator[Fault]:
    for position, address in enumerate(endpoint.addresses or ()):
        place = (*path, "addresses", position)
        if family == "FQDN":
            if not SUBDOMAIN.fullmatch(address.removesuffix(".")):
                yield Fault(place, "`{raw}` is no host name", SUBDOMAIN_RULE)
        elif not is_address(address):
            yield from _check_address(place, address)
        elif family in FAMILIES and (":" in address) != (family == "IPv6"):
            yield Fault(place, f"`{{raw}}` in a slice of {family} addresses", f"an {family} address")
    yield from _check_label((*path, "hostname"), endpoint.hostname, "host")


def _check_endpoint_ports(path: Path, ports: Sequence[EndpointPort]) -> Iterator[Fault]:
    for position, port in enumerate(ports):
        yield from _check_protocol((*path, position), port.protocol)
        yield from _check_label((*path, position, "name"), port.name, "port")
        if port.port is not None:
            yield from _check_port((*path, position, "port"), port.port)


def _check_endpoints(endpoints: Endpoints) -> Iterator[Fault]:
    for number, subset in enumerate(endpoints.subsets or ()):
        for field, addresses in (("addresses", subset.addresses), ("notReadyAddresses", subset.not_ready_addresses)):
            for position, address in enumerate(addresses or ()):
                path: Path = ("subsets", number, field, position)
                yield from _check_address((*path, "ip"), address.ip)
                yield from _check_label((*path, "hostname"), address.hostname, "host")
        yield from _check_endpoint_ports(("subsets", number, "ports"), subset.ports or ())


def _check_port(path: Path, number: int) -> Iterator[Fault]:
    if not 1 <= number <= 65535:
        yield Fault(path, f"there is no port {number}", PORT_RULE)


def _check_target_port(path: Path, name: str) -> Iterator[Fault]:
    if name.isdecimal():
        yield Fault(
            path, "the port `{raw}` is a string", PORT_RULE, "write it without quotes; in quotes it is a port's name"
        )
    elif name and not PORT_NAME.fullmatch(name):
        yield Fault(path, "`{raw}` is no name for a container's port", PORT_NAME_RULE)


def _check_protocol(path: Path, protocol: str | None) -> Iterator[Fault]:
    yield from _check_word((*path, "protocol"), protocol, PROTOCOLS, "protocol")


def _check_word(path: Path, word: str | None, known: Sequence[str], what: str) -> Iterator[Fault]:
    if word and word not in known:
        meant = next((each for each in known if each.lower() == word.lower()), "") or nearest(word, known)
        *others, last = known
        expected = f"{', '.join(f'`{each}`' for each in others)} or `{last}`"
        yield Fault(path, f"`{{raw}}` is no {what}", expected, f"was `{meant}` meant?" if meant else "")


def _check_label(path: Path, label: str | None, what: str) -> Iterator[Fault]:
    if label and not LABEL.fullmatch(label):
        yield Fault(path, f"`{{raw}}` is no {what} name", LABEL_RULE, _better_label(label))


def _check_address(path: Path, address: str, hint: str = "") -> Iterator[Fault]:
    if is_address(address):
        return
    parts = address.split(".")
    if len(parts) == 4 and all(part.isdecimal() and int(part) < 256 for part in parts if len(part) < 5):
        better = ".".join(str(int(part)) for part in parts) if all(part.isdecimal() for part in parts) else ""
        # `010` is 8 to some readers and 10 to others, so the API takes neither.
        hint = f"write it without leading zeros: `{better}`" if better and is_address(better) else hint
    elif "/" in address:
        hint = "an address, not a range: leave out the `/`"
    yield Fault(path, "`{raw}` is no IP address", ADDRESS_RULE, hint)


@functools.lru_cache(maxsize=65536)
def is_address(text: str) -> bool:
    """Whether this is an IP address as Kubernetes takes it: no leading zeros, no zone, no brackets."""
    try:
        socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)
    except (OSError, ValueError):
        return False
    return True


def _better_label(name: str) -> str:
    better = re.sub(r"[^a-z0-9]+", "-", name.lower())[:63].strip("-")
    return f"`{better}` would do" if better and LABEL.fullmatch(better) else ""


def _better_host(name: str) -> str:
    if "://" in name:
        return "a host name only, without scheme and path"
    better = name.lower().rstrip(".")
    return f"`{better}` would do" if SUBDOMAIN.fullmatch(better) else ""
