"""Manifests in YAML or JSON as checked objects, with every mistake and its place.

Knows no files and no control plane: text in, objects and problems out.
Law: the API reference of core/v1 and discovery.k8s.io/v1, and the API server's validation of the fields that DNS reads
(`pkg/apis/core/validation`, `pkg/apis/discovery/validation`, kubernetes 1.36).
"""

from __future__ import annotations

import difflib
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
from kdns.kubernetes.controller import DEFAULT_NAMESPACE, Manifest, Path, Workload, family_of, in_namespace
from kdns.kubernetes.objects import (
    Annotations,
    Endpoint,
    EndpointPort,
    Endpoints,
    EndpointSlice,
    Namespace,
    Pod,
    Service,
    ServicePort,
)
from kdns.wire.names import LONGEST_LABEL

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
DNS_POLICIES = ("ClusterFirst", "ClusterFirstWithHostNet", "Default", "None")
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
UNTYPED_RULE = "a mapping with `apiVersion` and `kind`"
ADDRESS_RULE = "an IPv4 or IPv6 address"

# RFC 4291 §2.5.5.2. The API takes no IPv4 address that is written as IPv6 (StrictIPCIDRValidation).
MAPPED = b"\x00" * 10 + b"\xff\xff"
# Fields that the API has, DNS doesn't read, and that look like one which it does.
TRUE_FIELDS = frozenset(("hostIPs",))
# As like as that is a slip: `selectors`, `adresses`; `generateName` is less like `name`.
SLIP_RATIO = 0.85


class Fault(NamedTuple):
    """A mistake in one field of an object; `{raw}` in its texts becomes the value as written."""

    path: Path
    message: str
    expected: str = ""
    hint: str = ""
    warning: bool = False
    of_key: bool = False


class Located(NamedTuple):
    """An object, and the way to it from the top of its text; one with a mistake in it has only its name for sure."""

    manifest: Manifest
    path: Path
    sound: bool = True


class Parsed(msgspec.Struct):
    """What one text holds; lines of places count from its own first line.

    `foreign` are documents that nobody wrote for Kubernetes, told as mistakes.
    """

    manifests: list[Located] = []
    workloads: list[Workload] = []
    passed_over: Counter[str] = msgspec.field(default_factory=Counter)
    problems: list[Problem] = []
    foreign: list[Problem] = []


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
        pieces, surroundings = [], []
        start = above = 0
        for raw in document.items:
            item = bytes(raw).decode()
            found = text.index(item, start)
            above += text.count("\n", start, found)
            pieces.append(yamltext.Piece(item, above, found - (text.rfind("\n", 0, found) + 1)))
            surroundings.append(text[start:found])
            start = found + len(item)
            above += item.count("\n")
        around = "0".join([*surroundings, text[start:]])
        if yamltext.json_duplicates(around, msgspec.json.decode(around)):
            return None
        return [Part(piece, self.keep(piece, "json", of)) for piece in pieces]

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
        if any(part.parsed.foreign or any(not each.subject for each in part.parsed.problems) for part in parts):
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
        parser.duplicates, parser.misread = document.duplicates, document.misread
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
        return Place(file, spot.line + piece.above, spot.column, spot.length, spot.text, spot.cut)
    # What stands left of the piece is not its own; where it is short, the columns are those of the file.
    short = not spot.cut and piece.left + len(spot.text) <= yamltext.DRAWN_LIMIT
    text, cut = (" " * piece.left + spot.text, 0) if short else (spot.text, spot.cut + piece.left)
    return Place(file, spot.line + piece.above, spot.column + piece.left, spot.length, text, cut)


def moved(problem: Problem, piece: yamltext.Piece, file: str) -> Problem:
    """A problem of a piece as one of its file."""
    place = problem.place
    if place is None:
        return msgspec.structs.replace(problem, place=Place(file))
    spot = yamltext.Spot(place.line, place.column, place.length, place.text, cut=place.cut)
    return msgspec.structs.replace(problem, place=in_file(spot, piece, file))


def _documents(text: str, syntax: str) -> list[yamltext.Document]:
    if syntax in ("json", "flow"):
        try:
            value = msgspec.json.decode(text)
            return [yamltext.Document(value, yamltext.json_duplicates(text, value), [])]
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
    spot = yamltext.spot_in(shown, line + 1, column + 1, 1)
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
        self.misread: list[tuple[str, yamltext.Spot]] = []
        self.marks: yamltext.Marks | None = None

    def take(self, document: object, path: Path) -> None:
        """One document or item, whatever it is."""
        if not isinstance(document, dict):
            fault = Fault((), f"{_described(document)} where an object should be", UNTYPED_RULE)
            self.parsed.foreign.append(self.located(fault, path, ""))
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
        if not any(nearest(field, list(document)) for field in ("apiVersion", "kind")):
            fault = Fault((), "a document without `apiVersion` and `kind`", UNTYPED_RULE)
            self.parsed.foreign.append(self.located(fault, path, ""))
            return
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
        misplaced = list(_misplaced(document, _FIELDS[struct]))
        # What is missing because all around it is, is told once.
        absent = {(parent,) for parent, fault in misplaced if not fault.warning}
        faults = [fault for fault in faults if fault.path not in absent]
        wrong = {fault.path for fault in faults} | absent
        faults += [fault for fault in check(manifest) if not any(fault.path[: end + 1] in wrong for end in range(9))]
        faults += [fault for _, fault in misplaced]
        faults += _slips(document, _FIELDS[struct], ())
        for fault in faults:
            self.tell(fault, path, subject)
        for key, spot in self.duplicates:
            # In a List the mapping may be any object's.
            whose = "" if path else subject
            hint = "one of the two would be lost in silence"
            self.parsed.problems.append(
                _problem(f"the key `{key}` stands twice in one mapping", spot, whose, hint=hint)
            )
        for key, spot in self.misread:
            raw = spot.text[spot.column - spot.cut - 1 :][: spot.length]
            kind = "boolean" if key in ("true", "false") else "number"
            self.parsed.problems.append(
                _problem(
                    f"the key `{raw}` is read as a {kind}: `{key}`",
                    spot,
                    "" if path else subject,
                    hint=f'quote it: "{raw}"',
                    warning=True,
                )
            )
        self.duplicates, self.misread = [], []
        sound = all(fault.warning for fault in faults)
        self.parsed.manifests.append(Located(in_namespace(manifest), path, sound))

    def tell(self, fault: Fault, path: Path, subject: str) -> None:
        self.parsed.problems.append(self.located(fault, path, subject))

    def located(self, fault: Fault, path: Path, subject: str) -> Problem:
        if self.marks is None:
            self.marks = yamltext.Marks(self.text)
        spot = self.marks.find((*path, *fault.path), fault.of_key)
        raw = spot.raw if spot else ""
        field = dotted(fault.path)
        return _problem(
            fault.message.replace("{raw}", raw),
            spot,
            f"{subject}: {field}" if subject and field else subject,
            fault.expected,
            fault.hint.replace("{raw}", raw),
            fault.warning,
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
    place = Place("", spot.line, spot.column, spot.length, spot.text, spot.cut) if spot else None
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
            return 0
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


# Names of fields: what the API passes over in silence, and somebody meant for one that it reads.


class _Fields(NamedTuple):
    """The names of the fields that are read of a mapping, and for each that holds mappings theirs."""

    names: tuple[str, ...]
    inner: dict[str, _Fields]


def _fields_of(struct: Type) -> _Fields:
    inner: dict[str, _Fields] = {}
    names: list[str] = []
    assert isinstance(struct, inspect.StructType)
    for field in struct.fields:
        names.append(field.encode_name)
        for option in _options(field.type):
            item = option.item_type if isinstance(option, inspect.ListType) else option
            if isinstance(item, inspect.StructType) and item.cls is not Annotations:
                inner[field.encode_name] = _fields_of(item)
    return _Fields(tuple(names), inner)


_FIELDS: dict[type[Any], _Fields] = {struct: _fields_of(inspect.type_info(struct)) for struct in KINDS.values()}
_TOP = ("apiVersion", "kind")


def _misplaced(document: dict[str, Any], fields: _Fields) -> Iterator[tuple[str, Fault]]:
    """Fields at the top that belong into `metadata`, `spec` or `status`, with the name of that."""
    strays = [key for key in document if key not in fields.names and key not in _TOP]
    for parent in ("metadata", "spec", "status") if strays else ():
        there, inner = document.get(parent), fields.inner.get(parent, _Fields((), {}))
        keys = [key for key in strays if key in inner.names]
        if keys and (there is None or isinstance(there, dict)):
            message = f"{' and '.join(f'`{key}`' for key in keys)} should be indented under `{parent}`"
            yield parent, Fault((keys[0],), message, warning=there is not None, of_key=True)


def _slips(value: Any, fields: _Fields, path: Path) -> Iterator[Fault]:
    """Keys that are all but a field's name."""
    if not isinstance(value, dict):
        return
    for key, each in value.items():
        if key in fields.inner:
            if isinstance(each, list):
                for position, item in enumerate(each):
                    yield from _slips(item, fields.inner[key], (*path, key, position))
            else:
                yield from _slips(each, fields.inner[key], (*path, key))
        elif key not in fields.names and key not in _TOP and (meant := _slip_of(key, fields.names)):
            hint = f"was `{meant}` meant?"
            yield Fault((*path, key), f"the API has no field `{key}` here", "", hint, warning=True, of_key=True)


@functools.lru_cache(maxsize=4096)
def _slip_of(key: str, names: tuple[str, ...]) -> str:
    """The field that was meant, or an empty string."""
    if key in TRUE_FIELDS or len(key) > 40:
        return ""
    same = [name for name in names if name.lower() == key.lower()]
    return next(iter(same or difflib.get_close_matches(key, names, n=1, cutoff=SLIP_RATIO)), "")


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
    yield from _check_families(service)
    yield from _check_cluster_ips(service)
    for position, address in enumerate(spec.external_ips or ()):
        yield from _check_address(("spec", "externalIPs", position), address)
    yield from _check_service_ports(service)
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
    elif spec.external_name:
        hint = "with `type: ExternalName` the name is an alias; without it `externalName` does nothing"
        path = ("spec", "externalName")
        yield Fault(path, "`externalName` in a Service of another type", "", hint, warning=True, of_key=True)


def _check_families(service: Service) -> Iterator[Fault]:
    spec = service.spec
    families, addresses = spec.ip_families or [], [each for each in service.addresses if each != "None"]
    yield from _check_word(("spec", "ipFamilyPolicy"), spec.ip_family_policy, FAMILY_POLICIES, "family policy")
    for position, family in enumerate(families):
        path: Path = ("spec", "ipFamilies", position)
        yield from _check_word(path, family, FAMILIES, "family")
        if family in families[:position]:
            yield Fault(path, "the family `{raw}` a second time", "each family once")
    field = "clusterIPs" if spec.cluster_ips else "clusterIP"
    for position, (address, family) in enumerate(zip(addresses, families, strict=False)):
        if is_address(address) and family in FAMILIES and family_of(address) != family:
            path = ("spec", field, position) if spec.cluster_ips else ("spec", field)
            hint = "`ipFamilies` has the families of the addresses, in their order"
            yield Fault(path, f"`{{raw}}` where `ipFamilies` says {family}", f"an {family} address", hint)
    if spec.ip_family_policy == "SingleStack" and max(len(families), len(addresses)) > 1:
        yield Fault(("spec", "ipFamilyPolicy"), "`SingleStack` with two families", "`PreferDualStack`")


def _check_service_ports(service: Service) -> Iterator[Fault]:
    ports, headless = service.spec.ports or (), service.addresses[:1] == ["None"]
    if not ports and not headless and service.spec.type != "ExternalName":
        yield Fault(("spec", "ports"), "a Service without `ports`", hint='one with `clusterIP: "None"` needs none')
    seen: set[tuple[str, int]] = set()
    for position, port in enumerate(ports):
        if port.port and (port.transport, port.port) in seen:
            message = f"a second port {port.port} of {port.transport}"
            yield Fault(("spec", "ports", position, "port"), message, "each port of a protocol once")
        seen.add((port.transport, port.port))
    yield from _check_port_names(("spec", "ports"), ports)


def _check_port_names(path: Path, ports: Sequence[ServicePort | EndpointPort], named: bool = True) -> Iterator[Fault]:
    """Each name once, and where there are several ports each with a name (`named`)."""
    names: set[str] = set()
    for position, port in enumerate(ports):
        place = (*path, position, "name")
        if port.name and port.name in names:
            yield Fault(place, "a second port named `{raw}`", "each name once")
        elif not port.name and len(ports) > 1 and (named or "" in names):
            yield Fault(place, "a port without `name` among several", "a name for each, such as `http`")
        names.add(port.name or "")


def _check_cluster_ips(service: Service) -> Iterator[Fault]:
    spec = service.spec
    listed = spec.cluster_ips or []
    field = "clusterIPs" if listed else "clusterIP"
    if spec.type == "ExternalName" and service.addresses:
        message = f"`{field}` in a Service of type ExternalName, which has no address"
        yield Fault(("spec", field), message, hint="the type decides: leave one out", warning=True, of_key=True)
    if spec.type in ("NodePort", "LoadBalancer") and service.addresses[:1] == ["None"]:
        yield Fault(("spec", field), f"`None` in a Service of type {spec.type}", "an address or nothing")
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
    elif any(len(label) > LONGEST_LABEL for label in name.split(".")):
        # The API server takes it; RFC 1035 §2.3.4 doesn't.
        text = "`{raw}` has a label that is too long for DNS, so this name will not exist"
        yield Fault(path, text, f"labels of at most {LONGEST_LABEL} characters", warning=True)


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
        if status.pod_ip and status.pod_ips and status.pod_ips[0].ip != status.pod_ip:
            yield Fault(("status", "podIP"), "`podIP` is not the first of `podIPs`", f"`{status.pod_ips[0].ip}`")
    if spec is None:
        return
    yield from _check_label(("spec", "hostname"), spec.hostname, "host")
    yield from _check_label(("spec", "subdomain"), spec.subdomain, "subdomain")
    yield from _check_word(("spec", "dnsPolicy"), spec.dns_policy, DNS_POLICIES, "dnsPolicy")
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
    yield from _check_port_names(("ports",), slice_.ports or (), named=False)


def _check_endpoint(path: Path, endpoint: Endpoint, family: str | None) -> Iterator[Fault]:
    if not endpoint.addresses:
        yield Fault((*path, "addresses"), "an endpoint without `addresses`", "at least one address")
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
        if not subset.addresses and not subset.not_ready_addresses:
            message = "a subset without `addresses` and `notReadyAddresses`"
            yield Fault(("subsets", number), message, "at least one address")
        yield from _check_endpoint_ports(("subsets", number, "ports"), subset.ports or ())
        yield from _check_port_names(("subsets", number, "ports"), subset.ports or ())


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
    if address.lower().startswith("::ffff:") and is_address(address[7:]):
        hint = f"an IPv4 address is written as such: `{address[7:]}`"
    elif len(parts) == 4 and all(part.isdecimal() and int(part) < 256 for part in parts if len(part) < 5):
        better = ".".join(str(int(part)) for part in parts) if all(part.isdecimal() for part in parts) else ""
        # `010` is 8 to some readers and 10 to others, so the API takes neither.
        hint = f"write it without leading zeros: `{better}`" if better and is_address(better) else hint
    elif "/" in address:
        hint = "an address, not a range: leave out the `/`"
    yield Fault(path, "`{raw}` is no IP address", ADDRESS_RULE, hint)


@functools.lru_cache(maxsize=65536)
def is_address(text: str) -> bool:
    """Whether this is an IP address as Kubernetes takes it: no leading zeros, zone, brackets, or IPv4 in IPv6."""
    try:
        packed = socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)
    except (OSError, ValueError):
        return False
    return not packed.startswith(MAPPED)


def _better_label(name: str) -> str:
    better = re.sub(r"[^a-z0-9]+", "-", name.lower())[:63].strip("-")
    return f"`{better}` would do" if better and LABEL.fullmatch(better) else ""


def _better_host(name: str) -> str:
    if "://" in name:
        return "a host name only, without scheme and path"
    better = name.lower().rstrip(".")
    return f"`{better}` would do" if SUBDOMAIN.fullmatch(better) else ""
