"""YAML and JSON as kubectl reads them, and every mistake with its place."""

from __future__ import annotations

import json
import math
import time
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from kdns.errors import draw
from kdns.kubernetes import yamltext
from kdns.kubernetes.manifests import KINDS, Part, Reader, dotted, is_address, moved
from kdns.kubernetes.objects import Endpoints, EndpointSlice, Namespace, Pod, Service


def parts(text: str, is_json: bool = False) -> list[Part]:
    return Reader().read(text, is_json)


def names(text: str, is_json: bool = False) -> list[str]:
    """The objects in a text, as `Kind namespace/name`."""
    found = [manifest for _, parsed in parts(text, is_json) for manifest, _, sound in parsed.manifests if sound]
    return [f"{type(each).__name__} {each.metadata.namespace}/{each.metadata.name}" for each in found]


def told(text: str, is_json: bool = False) -> str:
    """Every problem of a text, as a user sees it."""
    return "\n".join(
        draw(moved(problem, piece, "shop.yaml"))
        for piece, parsed in parts(text, is_json)
        for problem in [*parsed.problems, *parsed.foreign]
    )


SCALARS = [
    ("yes", True), ("Off", False), ("y", True), ("N", False), ("true", True), ("tRue", "tRue"),
    ("", None), ("~", None), ("null", None), ("nULL", "nULL"),
    ("010", 8), ("08", 8), ("0o17", 15), ("0x1F", 31), ("0b101", 5), ("1_000", 1000), ("-7", -7), ("+7", 7), ("0", 0),
    ("1.20", 1.2), ("8080.0", 8080), (".5", 0.5), ("1e3", 1000), ("1.", 1), (".inf", math.inf), ("-.Inf", -math.inf),
    ("12:30", "12:30"), ("2026-01-01", "2026-01-01"), ("2026-01-01T00:00:00Z", "2026-01-01T00:00:00Z"),
    ("10.96.0.1", "10.96.0.1"), ("-", "-"), ("+", "+"), (".", "."),
    ("1.2.3", "1.2.3"), ("fd00::1", "fd00::1"), ("0x", "0x"),
    ("9" * 5000, "9" * 5000),
]  # fmt: skip


@pytest.mark.parametrize(("plain", "value"), SCALARS, ids=[plain[:20] or "nothing" for plain, _ in SCALARS])
def test_a_scalar_without_quotes_is_what_kubectl_makes_of_it(plain: str, value: object) -> None:
    found = yamltext.resolve(plain)
    if plain == "9" * 5000:
        assert isinstance(found, str | float)
        return
    assert (found, type(found)) == (value, type(value))


VALUES: list[tuple[str, str, Any]] = [
    ("quotes keep a string", "a: 'yes'\nb: \"010\"", {"a": "yes", "b": "010"}),
    ("block scalars are strings", "a: |\n  1\nb: >-\n  yes\n", {"a": "1\n", "b": "yes"}),
    ("tags decide", "a: !!str 1\nb: !!int '2'\nd: !mine x", {"a": "1", "b": 2, "d": "x"}),
    ("keys become strings", "1: a\nyes: b\n2.5: c", {"1": "a", "true": "b", "2.5": "c"}),
    (
        "aliases are what they stand for",
        "a: &x {b: 1}\nc: *x\nd: [&y 5, *y]",
        {"a": {"b": 1}, "c": {"b": 1}, "d": [5, 5]},
    ),
    (
        "merges fill in what is missing",
        "a: &x {b: 1, c: 2}\nd:\n  <<: *x\n  c: 3",
        {"a": {"b": 1, "c": 2}, "d": {"b": 1, "c": 3}},
    ),
    ("a list of merges as well", "d:\n  <<: [{a: 1}, {a: 2, b: 3}]", {"d": {"a": 1, "b": 3}}),
    ("nothing is nothing", "# only a comment\n", []),
]  # fmt: skip


@pytest.mark.parametrize(("text", "value"), [row[1:] for row in VALUES], ids=[row[0] for row in VALUES])
def test_values(text: str, value: Any) -> None:
    found = [document.value for document in yamltext.read(text)]
    assert found == ([value] if value else [])


SPLITS = [
    ("one document", "a: 1\n", [("a: 1\n", 0)]),
    ("two", "a: 1\n---\nb: 2\n", [("a: 1\n", 0), ("---\nb: 2\n", 1)]),
    (
        "a mark with a comment",
        "--- # first\na: 1\n--- # second\nb: 2",
        [("--- # first\na: 1\n", 0), ("--- # second\nb: 2", 2)],
    ),
    ("a mark with a tag or a value", "--- !!map\na: 1\n--- {b: 2}\n", [("--- !!map\na: 1\n", 0), ("--- {b: 2}\n", 2)]),
    ("dashes that are no mark", "----: 1\n---a: 2\n ---\n", [("----: 1\n---a: 2\n ---\n", 0)]),
    ("directives belong to what follows", "%YAML 1.1\n# x\n---\na: 1\n", [("%YAML 1.1\n# x\n---\na: 1\n", 0)]),
    (
        "an end mark, then directives",
        "a: 1\n... # end\n%YAML 1.1\n---\nb: 2\n",
        [("a: 1\n... # end\n", 0), ("%YAML 1.1\n---\nb: 2\n", 2)],
    ),
    ("a mark ends a block scalar", "a: |\n  x\n---\nb: 1\n", [("a: |\n  x\n", 0), ("---\nb: 1\n", 2)]),
    ("an indented mark in a block scalar doesn't", "a: |\n  ---\n  x\n", [("a: |\n  ---\n  x\n", 0)]),
]


@pytest.mark.parametrize(("text", "pieces"), [row[1:] for row in SPLITS], ids=[row[0] for row in SPLITS])
def test_a_file_is_cut_into_documents(text: str, pieces: list[tuple[str, int]]) -> None:
    assert [(piece.text, piece.above) for piece in yamltext.split(text)] == pieces
    whole = list(yaml.safe_load_all(text))
    assert [document.value for piece in yamltext.split(text) for document in yamltext.read(piece.text)] == whole


LIST = """\
apiVersion: v1
items:
- apiVersion: v1
  kind: Pod
  metadata:
    name: a
- apiVersion: v1
  kind: Namespace
  metadata:
    name: b
kind: List
metadata:
  resourceVersion: ""
"""
SLICE = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: a}\naddressType: %s\n"
POD = "apiVersion: v1\nkind: Pod\nmetadata: {name: %s}\n"
OBJECTS = [
    ("documents", POD % "a" + "---\n" + POD % "b", ["Pod default/a", "Pod default/b"]),
    ("empty documents between them", "---\n---\n" + POD % "a" + "---\n# nothing\n---\n", ["Pod default/a"]),
    (
        "a list as kubectl prints it",
        LIST,
        ["Pod default/a", "Namespace /b"],
    ),
    (
        "a list with indented items",
        "apiVersion: v1\nkind: List\nitems:\n  - apiVersion: v1\n    kind: Pod\n    metadata: {name: a}\n",
        ["Pod default/a"],
    ),
    (
        "a list of one kind, whose items don't say it",
        "apiVersion: v1\nkind: ServiceList\nitems:\n- metadata: {name: a}\n  spec: {ports: [{port: 80}]}\n",
        ["Service default/a"],
    ),
    (
        "an EndpointSliceList",
        SLICE.replace("Slice\nmeta", "SliceList\nitems:\n- meta").replace("addr", "  addr") % "IPv4",
        ["EndpointSlice default/a"],
    ),
    ("an empty list", "apiVersion: v1\nkind: List\nitems: []\n", []),
    (
        "a list in a list",
        "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: PodList\n  items:\n  - metadata: {name: a}\n",
        ["Pod default/a"],
    ),
    ("JSON in a YAML file", '{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}}', ["Pod default/a"]),
    ("flow YAML that is no JSON", "{apiVersion: v1, kind: Pod, metadata: {name: a}}", ["Pod default/a"]),
    (
        "a namesake of another group is passed over",
        "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {name: a}\n",
        [],
    ),
    ("other kinds are passed over, whatever is in them", "apiVersion: v1\nkind: ConfigMap\ndata: {a: yes, a: 1}\n", []),
]


@pytest.mark.parametrize(("text", "expected"), [row[1:] for row in OBJECTS], ids=[row[0] for row in OBJECTS])
def test_objects_of_a_text(text: str, expected: list[str]) -> None:
    assert told(text) == ""
    assert names(text) == expected
    if "---" not in text and "{" not in text[:1] and "a: 1}" not in text:
        assert names(json.dumps(yaml.safe_load(text), indent=2), is_json=True) == expected


def test_every_kind_that_dns_reads() -> None:
    text = "\n---\n".join(
        [
            "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}",
            "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {clusterIP: None}",
            POD % "a",
            "apiVersion: v1\nkind: Endpoints\nmetadata: {name: a}\nsubsets: [{addresses: [{ip: 10.0.0.1}]}]",
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: a}\naddressType: IPv4",
        ]
    )
    found = [type(manifest) for _, parsed in parts(text) for manifest, _, sound in parsed.manifests if sound]
    assert found == [Namespace, Service, Pod, Endpoints, EndpointSlice]


def test_what_is_passed_over_is_counted_by_kind_and_a_namesake_with_its_group() -> None:
    kinds = [("apps/v1", "Deployment"), ("serving.knative.dev/v1", "Service"), ("v1", "ServiceAccount")]
    text = "".join(f"---\napiVersion: {version}\nkind: {kind}\n" for version, kind in kinds)
    counted = [dict(parsed.passed_over) for _, parsed in parts(text)]
    assert counted == [{"Deployment": 1}, {"Service.serving.knative.dev": 1}, {"ServiceAccount": 1}]


SERVICE = "apiVersion: v1\nkind: Service\nmetadata:\n  name: web\n  namespace: shop\nspec:\n"
PORTS = "  ports: [{port: 80}]\n"

MISTAKES = [
    (
        "a port that is no number",
        SERVICE + "  ports:\n    - port: http\n",
        """\
error: `port` takes a whole number, found a string `http`
  shop.yaml:8:13
  in Service shop/web: spec.ports[0].port
    8 |     - port: http
      |             ^^^^
  expected a number from 1 to 65535""",
    ),
    (
        "a port in quotes",
        SERVICE + '  ports:\n    - port: "80"\n',
        """\
error: `port` takes a whole number, found a string `80`
  shop.yaml:8:13
  in Service shop/web: spec.ports[0].port
    8 |     - port: "80"
      |             ^^^^
  expected a number from 1 to 65535
hint: write it without quotes""",
    ),
    (
        "a port out of range",
        SERVICE + "  ports: [{port: 80, targetPort: 65536}]\n",
        """\
error: there is no port 65536
  shop.yaml:7:34
  in Service shop/web: spec.ports[0].targetPort
    7 |   ports: [{port: 80, targetPort: 65536}]
      |                                  ^^^^^
  expected a number from 1 to 65535""",
    ),
    (
        "a port that is missing",
        SERVICE + "  ports:\n    - name: http\n",
        """\
error: `port` is missing
  shop.yaml:8:7
  in Service shop/web: spec.ports[0].port
    8 |     - name: http
      |       ^
  expected a number from 1 to 65535""",
    ),
    (
        "a label that YAML takes for a boolean",
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\n  labels:\n    app.kubernetes.io/tls: yes\n",
        """\
error: `app.kubernetes.io/tls` takes a string, and `yes` without quotes is a boolean
  shop.yaml:6:28
  in Pod default/a: metadata.labels["app.kubernetes.io/tls"]
    6 |     app.kubernetes.io/tls: yes
      |                            ^^^
hint: quote it: "yes\"""",
    ),
    (
        "a selector that YAML takes for a number",
        SERVICE + "  selector: {version: 1.20}\n" + PORTS,
        """\
error: `version` takes a string, and `1.20` without quotes is a number
  shop.yaml:7:23
  in Service shop/web: spec.selector.version
    7 |   selector: {version: 1.20}
      |                       ^^^^
hint: quote it: "1.20\"""",
    ),
    (
        "an address with leading zeros",
        SERVICE + "  clusterIP: 10.96.0.010\n" + PORTS,
        """\
error: `10.96.0.010` is no IP address
  shop.yaml:7:14
  in Service shop/web: spec.clusterIP
    7 |   clusterIP: 10.96.0.010
      |              ^^^^^^^^^^^
  expected an IPv4 or IPv6 address
hint: write it without leading zeros: `10.96.0.10`""",
    ),
    (
        "a mapping where a list should be",
        SERVICE + "  ports:\n    port: 80\n",
        """\
error: `ports` takes a list, found a mapping
  shop.yaml:7:3
  in Service shop/web: spec.ports
    7 |   ports:
      |   ^^^^^
hint: begin each entry with `- `""",
    ),
    (
        "a name that can't be in DNS",
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: Web_1\nspec: {ports: [{port: 80}]}\n",
        """\
error: `Web_1` is no name for a Service
  shop.yaml:4:9
  in Service default/Web_1: metadata.name
    4 |   name: Web_1
      |         ^^^^^
  expected at most 63 lower-case letters, digits and `-`, with a letter or digit at both ends
hint: `web-1` would do""",
    ),
    (
        "no name at all",
        "apiVersion: v1\nkind: Pod\nmetadata:\n  generateName: web-\n",
        """\
error: `metadata.name` is missing
  shop.yaml:3:1
  in Pod without a name: metadata.name
    3 | metadata:
      | ^^^^^^^^
hint: an object with `generateName` gets its name from the API server; write one""",
    ),
    (
        "an unknown type of Service",
        SERVICE + "  type: Nodeport\n" + PORTS,
        """\
error: `Nodeport` is no type of Service
  shop.yaml:7:9
  in Service shop/web: spec.type
    7 |   type: Nodeport
      |         ^^^^^^^^
  expected `ClusterIP`, `NodePort`, `LoadBalancer` or `ExternalName`
hint: was `NodePort` meant?""",
    ),
    (
        "an unknown dnsPolicy of a Pod",
        POD % "a" + "spec: {dnsPolicy: clusterFirst}\n",
        """\
error: `clusterFirst` is no dnsPolicy
  shop.yaml:4:19
  in Pod default/a: spec.dnsPolicy
    4 | spec: {dnsPolicy: clusterFirst}
      |                   ^^^^^^^^^^^^
  expected `ClusterFirst`, `ClusterFirstWithHostNet`, `Default` or `None`
hint: was `ClusterFirst` meant?""",
    ),
    (
        "an ExternalName that stands for nothing",
        SERVICE + "  type: ExternalName\n",
        """\
error: a Service of type ExternalName without `externalName`
  shop.yaml:6:1
  in Service shop/web: spec.externalName
    6 | spec:
      | ^^^^
  expected the name that it stands for""",
    ),
    (
        "a label that DNS can't hold is a warning",
        SERVICE + f"  type: ExternalName\n  externalName: {'a' * 64}.example.com\n",
        f"""\
warning: `{"a" * 64}.example.com` has a label that is too long for DNS, so this name will not exist
  shop.yaml:8:17
  in Service shop/web: spec.externalName
    8 |   externalName: {"a" * 64}.example.com
      |                 {"^" * 76}
  expected labels of at most 63 characters""",
    ),
    (
        "an ExternalName that is an address is a warning",
        SERVICE + "  type: ExternalName\n  externalName: 10.0.0.1\n",
        """\
warning: `10.0.0.1` is an address, so this name will not exist
  shop.yaml:8:17
  in Service shop/web: spec.externalName
    8 |   externalName: 10.0.0.1
      |                 ^^^^^^^^
  expected a host name
hint: a CNAME can't lead to an address; give a Service without selector an EndpointSlice instead""",
    ),
    (
        "a key twice",
        SERVICE + "  type: ClusterIP\n  type: NodePort\n" + PORTS,
        """\
error: the key `type` stands twice in one mapping
  shop.yaml:8:3
  in Service shop/web
    8 |   type: NodePort
      |   ^^^^
hint: one of the two would be lost in silence""",
    ),
    (
        "a tab",
        "apiVersion: v1\nkind: Pod\nmetadata:\n\tname: a\n",
        """\
error: a tab where YAML takes spaces
  shop.yaml:4:1
    4 |  name: a
      | ^
hint: indent with spaces""",
    ),
    (
        "indentation",
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\n namespace: b\n",
        """\
error: the indentation does not fit the lines above
  shop.yaml:5:2
    5 |  namespace: b
      |  ^
  expected the keys of one mapping, and the dashes of one list, in one column""",
    ),
    (
        "a quote without an end",
        'apiVersion: v1\nkind: "Pod\nmetadata: {}\n',
        """\
error: a quote that is never closed
  shop.yaml:2:7
    2 | kind: "Pod
      |       ^""",
    ),
    (
        "a template that nobody rendered",
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {{ .Values.name }}\n",
        """\
error: a mapping as a key
  shop.yaml:4:10
    4 |   name: {{ .Values.name }}
      |          ^
hint: quote a value that begins with `{` or `[`; `{{ … }}` is a template that has to be rendered first""",
    ),
    (
        "a kind that is misspelt",
        "apiVersion: v1\nkind: service\nmetadata: {name: a}\n",
        """\
error: `v1` has no kind `service`
  shop.yaml:2:7
  in service: kind
    2 | kind: service
      |       ^^^^^^^
hint: was `Service` meant?""",
    ),
    (
        "the wrong version of a kind",
        "apiVersion: v1\nkind: EndpointSlice\nmetadata: {name: a}\n",
        """\
error: there is no EndpointSlice in `v1`
  shop.yaml:1:13
  in EndpointSlice: apiVersion
    1 | apiVersion: v1
      |             ^^
  expected `discovery.k8s.io/v1`""",
    ),
    (
        "no apiVersion",
        "kind: Pod\nmetadata: {name: a}\n",
        """\
error: an object without `apiVersion`
  shop.yaml:1:1
    1 | kind: Pod
      | ^
  expected `apiVersion: v1`""",
    ),
    (
        "an address of the wrong family in a slice",
        SLICE % "IPv6" + "endpoints:\n- addresses: [10.0.0.1]\n",
        """\
error: `10.0.0.1` in a slice of IPv6 addresses
  shop.yaml:6:15
  in EndpointSlice default/a: endpoints[0].addresses[0]
    6 | - addresses: [10.0.0.1]
      |               ^^^^^^^^
  expected an IPv6 address""",
    ),
    (
        "a mistake in an item of a list, below other documents",
        "# a comment\n---\n" + LIST.replace("kind: Namespace", "kind: Pod\n  spec: {hostname: B}"),
        """\
error: `B` is no host name
  shop.yaml:11:20
  in Pod default/b: spec.hostname
    11 |   spec: {hostname: B}
       |                    ^
  expected at most 63 lower-case letters, digits and `-`, with a letter or digit at both ends
hint: `b` would do""",
    ),
    (
        "an alias to itself",
        "a: &x [*x]\n",
        """\
error: the alias `*x` stands inside of what it stands for
  shop.yaml:1:8
    1 | a: &x [*x]
      |        ^^""",
    ),
    (
        "fields that should be indented are one mistake",
        "apiVersion: v1\nkind: Service\nmetadata:\nname: web\nnamespace: shop\nspec: {clusterIP: None}\n",
        """\
error: `name` and `namespace` should be indented under `metadata`
  shop.yaml:4:1
  in Service without a name: name
    4 | name: web
      | ^^^^""",
    ),
    (
        "no metadata is one mistake",
        "apiVersion: v1\nkind: Service\nspec: {clusterIP: None}\n",
        """\
error: `metadata` is missing
  shop.yaml:1:1
  in Service without a name: metadata
    1 | apiVersion: v1
      | ^""",
    ),
    (
        "a key that YAML takes for a boolean, with a value that it takes for a number",
        SERVICE + "  selector: {y: 1e3}\n" + PORTS,
        """\
error: `true` takes a string, and `1e3` without quotes is a number
  shop.yaml:7:17
  in Service shop/web: spec.selector.true
    7 |   selector: {y: 1e3}
      |                 ^^^
hint: quote it: "1e3"
warning: the key `y` is read as a boolean: `true`
  shop.yaml:7:14
  in Service shop/web
    7 |   selector: {y: 1e3}
      |              ^
hint: quote it: "y\"""",
    ),
    (
        "an IPv4 address that is written as IPv6",
        SERVICE + "  clusterIP: ::ffff:10.0.0.1\n" + PORTS,
        """\
error: `::ffff:10.0.0.1` is no IP address
  shop.yaml:7:14
  in Service shop/web: spec.clusterIP
    7 |   clusterIP: ::ffff:10.0.0.1
      |              ^^^^^^^^^^^^^^^
  expected an IPv4 or IPv6 address
hint: an IPv4 address is written as such: `10.0.0.1`""",
    ),
    (
        "an address of another family than the Service says",
        SERVICE + "  clusterIP: fd00::5\n  ipFamilies: [IPv4]\n" + PORTS,
        """\
error: `fd00::5` where `ipFamilies` says IPv4
  shop.yaml:7:14
  in Service shop/web: spec.clusterIP
    7 |   clusterIP: fd00::5
      |              ^^^^^^^
  expected an IPv4 address
hint: `ipFamilies` has the families of the addresses, in their order""",
    ),
    (
        "a document of another kind altogether",
        "replicas: 2\nimage: {tag: x}\n",
        """\
error: a document without `apiVersion` and `kind`
  shop.yaml:1:1
    1 | replicas: 2
      | ^
  expected a mapping with `apiVersion` and `kind`""",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), [row[1:] for row in MISTAKES], ids=[row[0] for row in MISTAKES])
def test_a_mistake_is_told_with_its_place(text: str, expected: str) -> None:
    assert told(text) == expected


REFUSED = [
    (
        "two ports of one name",
        SERVICE + "  ports: [{name: a, port: 1}, {name: a, port: 2}]\n",
        "a second port named `a`",
    ),
    ("one port twice", SERVICE + "  ports: [{name: a, port: 1}, {name: b, port: 1}]\n", "a second port 1 of TCP"),
    (
        "a port without name among several",
        SERVICE + "  ports: [{name: a, port: 1}, {port: 2}]\n",
        "a port without `name` among several",
    ),
    ("no ports", SERVICE + "  type: NodePort\n", "a Service without `ports`"),
    ("no spec", "apiVersion: v1\nkind: Service\nmetadata: {name: a}\n", "a Service without `ports`"),
    ("one family twice", SERVICE + "  ipFamilies: [IPv4, IPv4]\n" + PORTS, "the family `IPv4` a second time"),
    (
        "two families in one",
        SERVICE + "  ipFamilies: [IPv4, IPv6]\n  ipFamilyPolicy: SingleStack\n" + PORTS,
        "`SingleStack` with two families",
    ),
    (
        "a headless NodePort",
        SERVICE + "  type: NodePort\n  clusterIP: None\n" + PORTS,
        "`None` in a Service of type NodePort",
    ),
    (
        "a podIP that is not the first of podIPs",
        POD % "a" + "status: {podIP: 10.0.0.1, podIPs: [{ip: 10.0.0.2}]}\n",
        "`podIP` is not the first of `podIPs`",
    ),
    (
        "an endpoint without addresses",
        SLICE % "IPv4" + "endpoints: [{addresses: []}]\n",
        "an endpoint without `addresses`",
    ),
    (
        "two ports of one name in a slice",
        SLICE % "IPv4" + "ports: [{name: a, port: 1}, {name: a, port: 2}]\n",
        "a second port named `a`",
    ),
    (
        "two ports without name in a slice",
        SLICE % "IPv4" + "ports: [{port: 1}, {port: 2}]\n",
        "a port without `name` among several",
    ),
    (
        "a subset without addresses",
        "apiVersion: v1\nkind: Endpoints\nmetadata: {name: a}\nsubsets: [{ports: [{port: 1}]}]\n",
        "a subset without `addresses` and `notReadyAddresses`",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_what_the_api_refuses_is_a_mistake(text: str, message: str) -> None:
    found = [problem for _, parsed in parts(text) for problem in parsed.problems]
    assert [(problem.message, problem.warning) for problem in found] == [(message.replace("{raw}", ""), False)]
    assert names(text) == []


SLIPS = [
    (
        SERVICE + "  selectors: {a: b}\n  clusterIp: None\n  port: 80\n  ports: [{port: 80, targetport: 8}]\n",
        ["selectors selector", "clusterIp clusterIP", "port ports", "targetport targetPort"],
    ),
    (SLICE % "IPv4" + "endpoint: []\n", ["endpoint endpoints"]),
    (SERVICE + "  sessionAffinity: None\n  loadBalancerIP: 10.0.0.1\n" + PORTS, []),
    (POD % "a, generateName: b, selfLink: x" + "status: {hostIPs: []}\n", []),
]


@pytest.mark.parametrize(("text", "expected"), SLIPS)
def test_a_field_that_is_all_but_one_of_the_api_is_a_warning(text: str, expected: list[str]) -> None:
    found = [problem for _, parsed in parts(text) for problem in parsed.problems]
    said = [f"{each.message.split('`')[1]} {each.hint.split('`')[1]}" for each in found]
    assert said == expected
    assert all(each.warning for each in found)
    assert names(text)


@pytest.mark.parametrize(
    "text",
    [
        SERVICE + "  externalName: a.example\n" + PORTS,
        SERVICE + "  type: ExternalName\n  externalName: a.example\n  clusterIP: 10.0.0.1\n",
        "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nlabels: {a: b}\nspec: {clusterIP: None}\n",
    ],
)
def test_what_the_api_takes_and_nobody_means_is_a_warning(text: str) -> None:
    (problem,) = [problem for _, parsed in parts(text) for problem in parsed.problems]
    assert problem.warning
    assert names(text)


def test_all_mistakes_of_an_object_are_told_at_once() -> None:
    text = (
        SERVICE
        + "  type: x\n  clusterIP: 1.2.3\n  selector: {a: 1, b: null}\n"
        + "  ports: [{name: a, port: 0}, {name: b, port: {}}, {name: c, port: 1, protocol: tcp}]\n"
    )
    subjects = [problem.subject for _, parsed in parts(text) for problem in parsed.problems]
    assert sorted(subjects) == [
        "Service shop/web: spec.clusterIP",
        "Service shop/web: spec.ports[0].port",
        "Service shop/web: spec.ports[1].port",
        "Service shop/web: spec.ports[2].protocol",
        "Service shop/web: spec.selector.a",
        "Service shop/web: spec.selector.b",
        "Service shop/web: spec.type",
    ]


def test_json_is_told_at_its_line_and_column_too() -> None:
    head = '{"apiVersion": "v1",\n "kind": "PodList", "items": [\n'
    text = head + '  {"metadata": {"name": "a"}}, {"metadata": {"name": "B"}}]}'
    assert told(text, is_json=True).splitlines()[:3] == [
        "error: `B` is no name for an object",
        "  shop.yaml:3:54",
        "  in Pod default/B: metadata.name",
    ]
    assert told('{"a": 1,\n "b": tru}', is_json=True).splitlines()[:2] == [
        "error: not JSON: invalid character",
        "  shop.yaml:2:11",
    ]
    assert told('{"a": [1,', is_json=True).splitlines()[0] == "error: not JSON: input data was truncated"


TWICE = '{"apiVersion": "v1", "kind": "Pod",\n "metadata": {"name": "a", "name": "b"}}'
JSON_LIST = '{"apiVersion": "v1", "kind": "List", "items": [\n'
TWICE_IN_JSON = [
    ("in an object", TWICE, "name", "2:28"),
    ("in an item", JSON_LIST + TWICE + "]}", "name", "3:28"),
    (
        "beside the items",
        JSON_LIST.replace('"items"', '"kind": "List", "items"') + TWICE.replace('"name": "a", ', "") + "]}",
        "kind",
        "1:38",
    ),
    (
        "with more in the one that is lost",
        TWICE.replace('"name": "a", "name"', '"labels": {"a":"b"}, "labels"'),
        "labels",
        "2:36",
    ),
    ("with a colon escaped elsewhere", TWICE.replace('"a"', '"\\u003a"'), "name", "2:33"),
]  # fmt: skip


@pytest.mark.parametrize("is_json", [True, False])
@pytest.mark.parametrize(
    ("text", "key", "place"), [row[1:] for row in TWICE_IN_JSON], ids=[row[0] for row in TWICE_IN_JSON]
)
def test_a_key_that_stands_twice_in_json_is_told(text: str, key: str, place: str, is_json: bool) -> None:
    assert f"error: the key `{key}` stands twice in one mapping\n  shop.yaml:{place}\n" in told(text, is_json)


@settings(max_examples=300, deadline=2000)
@given(
    st.recursive(
        st.text(st.sampled_from('a":\\{},é'), max_size=6) | st.integers(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(st.sampled_from('a":{'), max_size=3), inner),
    ),
    st.booleans(),
)
def test_json_without_double_keys_has_none(value: Any, ascii_only: bool) -> None:
    assert yamltext.json_duplicates(json.dumps(value, ensure_ascii=ascii_only, indent=1), value) == []


def test_of_a_long_line_the_part_around_the_mistake_is_drawn() -> None:
    text = '{"apiVersion": "v1", "kind": "Pod", "x": "' + "x" * 500 + '", "metadata": {"name": "B", "uid": "%s"}}'
    for ending in ("", "y" * 500):
        lines = told(text % ending).splitlines()
        assert lines[1] == "  shop.yaml:1:567"
        drawn, carets = lines[3], lines[4]
        assert len(drawn) < 140
        assert drawn[carets.index("^") : carets.rindex("^") + 1] == '"B"'
        assert drawn.startswith("    1 | …xxx")
        assert drawn.endswith("…") == bool(ending)


def test_of_a_long_line_that_is_an_item_of_a_list_the_part_around_the_mistake_is_drawn() -> None:
    item = '{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "B"}}'
    lines = told('{"apiVersion": "v1", "kind": "List", "items": [' + f"{item}, " * 10 + item + "]}", True).splitlines()
    drawn, carets = lines[-4:-2]
    assert drawn[carets.index("^") : carets.rindex("^") + 1] == '"B"'
    assert len(drawn) < 140


def test_null_is_as_good_as_nothing_in_a_field() -> None:
    text = POD % "a, namespace: null, labels: null" + "spec: null\nstatus: {podIP: ~}\n"
    assert told(text) == ""
    assert names(text) == ["Pod default/a"]


FINE = [
    ("a long name of a Service's port", SERVICE + "  ports: [{name: http-metrics-insecure, port: 80}]\n"),
    ("a trailing dot in externalName", SERVICE + "  type: ExternalName\n  externalName: example.com.\n"),
    ("both ClusterIPs", SERVICE + "  clusterIP: 10.0.0.1\n  clusterIPs: [10.0.0.1, 'fd00::1']\n" + PORTS),
    ("a headless Service", SERVICE + "  clusterIP: None\n  clusterIPs: [None]\n"),
    ("a target port by name", SERVICE + "  ports: [{port: 80, targetPort: http-8080}]\n"),
    ("managed fields, whatever is in them", POD % "a, managedFields: [{fieldsV1: {'f:x': {}, 1: yes}}]"),
    ("a slice of host names", SLICE % "FQDN" + "endpoints: [{addresses: [a.example.com]}]\n"),
]  # fmt: skip


@pytest.mark.parametrize("text", [row[1] for row in FINE], ids=[row[0] for row in FINE])
def test_what_the_api_takes_is_taken(text: str) -> None:
    assert told(text) == ""


@pytest.mark.parametrize("text", ["10.0.0.1", "0.0.0.0", "::", "fd00::1"])
def test_an_address(text: str) -> None:
    assert is_address(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "10.0.0",
        "10.0.0.256",
        "010.0.0.1",
        "10.0.0.1/8",
        "fe80::1%eth0",
        "::ffff:1.2.3.4",
        "[::1]",
        " 10.0.0.1",
        "1\0",
        "x",
        "10.0.0.٣",
    ],
)
def test_no_address(text: str) -> None:
    assert not is_address(text)


def test_a_path_in_words() -> None:
    assert dotted(("spec", "ports", 0, "port")) == "spec.ports[0].port"


def bomb(levels: int) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]" for level in range(1, levels)]
    return "\n".join(lines)


ATTACKS = [
    ("an alias bomb", bomb(10), "aliases that stand for more than 200000 values"),
    ("deep flow lists", "[" * 100_000, "nested more than 200 deep"),
    ("deep mappings", "".join(" " * depth + "a:\n" for depth in range(500)), "nested more than 200 deep"),
    ("deep JSON", '{"a":' * 100_000, "nested more than 200 deep"),
    ("a NUL", "a: \0", "the character U+0000, which YAML does not allow"),
    ("a list as a key", "? [a]\n: b", "a list as a key"),
    ("an alias to nothing", "a: *x", "the alias `*x` has no anchor"),
]


@pytest.mark.parametrize(("text", "message"), [row[1:] for row in ATTACKS], ids=[row[0] for row in ATTACKS])
def test_what_would_exhaust_a_reader_is_told_soon(text: str, message: str) -> None:
    began = time.process_time()
    assert told(text).startswith(f"error: {message}")
    assert time.process_time() - began < 2


def test_deep_json_in_a_json_file_is_told() -> None:
    assert "error" in told('{"a":' * 100_000, is_json=True)


def test_a_second_reading_parses_only_what_changed() -> None:
    reader = Reader()
    text = "---\n".join(POD % f"pod-{number}" for number in range(100))
    first = [parsed for _, parsed in reader.read(text)]
    reader.forget_unread()
    second = [parsed for _, parsed in reader.read(text.replace("pod-50}", "other}"))]
    assert [number for number in range(100) if first[number] is not second[number]] == [50]


WORDS = ["None", "10.0.0.1", "fd00::1", "web", "IPv4", "TCP"]
SCALAR = st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from(WORDS)
FIELDS = st.sampled_from(
    """
    metadata name namespace labels spec status type clusterIP clusterIPs ports port targetPort selector externalName
    podIP podIPs ip containers conditions endpoints addresses hostname subsets notReadyAddresses loadBalancer ingress
    ipFamilies addressType hostNetwork initContainers items kind apiVersion template deletionTimestamp
    """.split()  # noqa: SIM905
)
OBJECT = st.recursive(
    SCALAR,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(FIELDS | st.text(max_size=3), inner, max_size=6),
    max_leaves=25,
)
KIND = st.sampled_from([*((version, kind) for version, kind in KINDS), ("v1", "List"), ("apps/v1", "Deployment")])


@settings(max_examples=300, deadline=2000)
@given(KIND, st.dictionaries(FIELDS, OBJECT, max_size=6), st.booleans())
def test_any_structure_is_taken_or_told(kind: tuple[str, str], fields: dict[str, Any], is_json: bool) -> None:
    document = {"apiVersion": kind[0], "kind": kind[1]} | fields
    told(json.dumps(document) if is_json else yaml.safe_dump(document, allow_unicode=True), is_json)


@settings(max_examples=500, deadline=2000)
@given(st.text(st.sampled_from("ab:-{}[]&*!|>%@`'\"#?, \n\t01.~<\0\x85\u2028é"), max_size=80))
def test_any_text_is_taken_or_told(text: str) -> None:
    told(text)
    told(text, is_json=True)
