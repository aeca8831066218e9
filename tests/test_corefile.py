"""The Corefile's grammar: what each construct means, what each mistake looks like, and that nothing else happens.

Law: docs/corefile.md. The Corefiles below are those that Kubernetes distributions deploy.
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdns.corefile import Corefile, Directive, fingerprint, load, normalize_zone, parse, render, tokens_of
from kdns.errors import ConfigError, Problem, draw

KUBEADM = """\
.:53 {
    errors
    health {
       lameduck 5s
    }
    ready
    kubernetes cluster.local in-addr.arpa ip6.arpa {
       pods insecure
       fallthrough in-addr.arpa ip6.arpa
       ttl 30
    }
    prometheus :9153
    forward . /etc/resolv.conf {
       max_concurrent 1000
    }
    cache 30 {
       disable success cluster.local
       disable denial cluster.local
    }
    loop
    reload
    loadbalance
}
"""

DISTRIBUTIONS = {
    "kubeadm and kind": KUBEADM,
    "minikube": KUBEADM.replace("    errors\n", "    log\n    errors\n").replace(
        "    forward",
        "    hosts {\n       192.168.49.1 host.minikube.internal\n       fallthrough\n    }\n    forward",
    ),
    "coredns/deployment with a stub zone": KUBEADM.replace("       ttl 30\n", "").replace("       pods insecure\n", "")
    + "example.org:53 {\n  errors\n  cache 30\n  loop\n"
    "  forward . 10.0.0.1 10.0.0.2 {\n    max_concurrent 1000\n  }\n}\n",
    "Helm with its many blanks": (
        ".:53 {\n    errors\n    health  {\n        lameduck 10s\n    }\n    ready\n"
        "    kubernetes   cluster.local   cluster.local in-addr.arpa ip6.arpa {\n        pods insecure\n"
        "        fallthrough in-addr.arpa ip6.arpa\n        ttl 30\n    }\n    prometheus   0.0.0.0:9153\n"
        "    forward   . /etc/resolv.conf\n    cache   30\n    loop\n    reload\n    loadbalance\n}\n"
    ),
    "EKS": (
        ".:53 {\n    errors\n    health {\n        lameduck 5s\n      }\n    ready\n"
        "    kubernetes cluster.local in-addr.arpa ip6.arpa {\n      pods insecure\n"
        "      fallthrough in-addr.arpa ip6.arpa\n    }\n    prometheus :9153\n    forward . /etc/resolv.conf\n"
        "    cache 30\n    loop\n    reload\n    loadbalance\n}"
    ),
    "AKS": (
        ".:53 {\n    errors\n    ready\n    health {\n      lameduck 5s\n    }\n"
        "    kubernetes cluster.local in-addr.arpa ip6.arpa {\n      pods insecure\n"
        "      fallthrough in-addr.arpa ip6.arpa\n      ttl 30\n    }\n    prometheus :9153\n"
        "    forward . /etc/resolv.conf\n    cache 30\n    loop\n    reload\n    loadbalance\n"
        "    import custom/*.override\n    template ANY ANY internal.cloudapp.net {\n"
        '      match "^(?:[^.]+\\.){4,}internal\\.cloudapp\\.net\\.$"\n      rcode NXDOMAIN\n      fallthrough\n    }\n'
        "    template ANY ANY reddog.microsoft.com {\n      rcode NXDOMAIN\n    }\n}\nimport custom/*.server\n"
    ),
    "AKS LocalDNS": (
        "health-check.localdns.local:53 {\n    bind 169.254.10.10 169.254.10.11\n    whoami\n}\n"
        ".:53 {\n    errors\n    bind 169.254.10.10\n    forward . 168.63.129.16 {\n        force_tcp\n"
        "        policy sequential\n        max_concurrent 1000\n    }\n    ready 169.254.10.10:8181\n"
        "    cache 3600 {\n        success 9984\n        denial 9984\n        serve_stale 3600s immediate\n"
        "        servfail 0\n    }\n    loop\n    nsid localdns\n    prometheus :9253\n}\n"
        ".:53 {\n    errors\n    bind 169.254.10.11\n    ready 169.254.10.11:8181\n}\n"
    ),
    "k3s": (
        ".:53 {\n    errors\n    health\n    ready\n    kubernetes cluster.local in-addr.arpa ip6.arpa {\n"
        "      pods insecure\n      fallthrough in-addr.arpa ip6.arpa\n    }\n"
        "    hosts /etc/coredns/NodeHosts {\n      ttl 60\n      reload 15s\n      fallthrough\n    }\n"
        "    prometheus :9153\n    cache 30\n    loop\n    reload\n    loadbalance\n"
        "    import /etc/coredns/custom/*.override\n    forward . /etc/resolv.conf\n}\n"
        "import /etc/coredns/custom/*.server\n"
    ),
    "kops": KUBEADM.replace("cluster.local", "cluster.local.").replace(
        "    loop\n",
        "    hosts /rootfs/etc/hosts k8s.local {\n      ttl 30\n      fallthrough\n    }\n    dns64\n    loop\n",
    ),
    "Talos": KUBEADM.replace("    errors\n", "    errors\n    log . {\n        class error\n    }\n"),
    "kubespray with an external zone": KUBEADM.replace(
        "    loop\n", "    rewrite name suffix cluster.local example.org answer auto\n    loop\n"
    )
    + "corp.example:53 {\n    log\n    errors\n    rewrite name suffix .a. .b.\n    forward . 10.9.9.9\n"
    "    loadbalance\n    cache 5\n    reload\n}\n",
    "Gardener": (
        ".:8053 {\n    errors\n    log . {\n        class error\n    }\n"
        "    health {\n        lameduck 15s\n    }\n    ready\n"
        "    rewrite stop {\n"
        "      name regex (.*)\\.([^.]+)\\.svc\\.cluster\\.local\\.a\\.b\\. {1}.{2}.svc.cluster.local\n"
        "      answer name (.*)\\.cluster\\.local {1}.cluster.local\n"
        "      answer value (.*)\\.cluster\\.local {1}.cluster.local\n    }\n    loadbalance round_robin\n"
        "    import custom/*.override\n}\nimport custom/*.server\n"
    ),
    "OpenShift": (
        "# A comment\nexample.com:5353 {\n    prometheus 127.0.0.1:9153\n"
        "    forward . 10.0.0.1 {\n        force_tcp\n    }\n}\n"
        ".:5353 {\n    bufsize 1232\n    errors\n    log . {\n        class error\n    }\n    health {\n"
        "        lameduck 20s\n    }\n    ready\n    kubernetes cluster.local in-addr.arpa ip6.arpa {\n"
        "        pods insecure\n        fallthrough in-addr.arpa ip6.arpa\n    }\n    prometheus 127.0.0.1:9153\n"
        "    forward . /etc/resolv.conf {\n        policy sequential\n    }\n    cache 900 {\n        denial 9984 30\n"
        "    }\n    reload\n}\nhostname.bind:5353 {\n    chaos\n}\n"
    ),
    "NodeLocal DNSCache": (
        "cluster.local:53 {\n    errors\n    cache {\n"
        "            success 9984 30\n            denial 9984 5\n    }\n"
        "    reload\n    loop\n    bind 169.254.20.10 10.96.0.10\n"
        "    forward . 10.96.0.11 {\n            force_tcp\n    }\n"
        "    prometheus :9253\n    health 169.254.20.10:8080\n    }\n"
        "in-addr.arpa:53 {\n    errors\n    cache 30\n    }\nip6.arpa:53 {\n    errors\n    cache 30\n    }\n"
        ".:53 {\n    errors\n    cache 30\n    prometheus {$MY_HOST_IP}:9253\n    }\n"
    ),
}


def files(contents: Mapping[str, str]) -> Callable[[str], str]:
    """A `read` that knows these files."""

    def read(path: str) -> str:
        if path not in contents:
            raise FileNotFoundError(path)
        return contents[path]

    return read


def nothing_matches(pattern: str) -> list[str]:
    return []


def tree(text: str, **options: object) -> str:
    """The canonical text with one blank for any white space."""
    return " ".join(render(parse(text, "Corefile", **options)).split())  # type: ignore[arg-type]


def mistakes(text: str, **options: object) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(text, "Corefile", **options)  # type: ignore[arg-type]
    return str(caught.value)


# --- What constructs mean ---


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_the_corefile_of_a_distribution_parses_and_its_canonical_text_says_the_same(name: str) -> None:
    corefile = parse(DISTRIBUTIONS[name], "Corefile", environment={"MY_HOST_IP": "10.0.0.9"}, glob=nothing_matches)
    assert corefile.blocks
    assert all(block.directives for block in corefile.blocks)
    again = parse(render(corefile), "again")
    assert render(again) == render(corefile)
    assert fingerprint(again) == fingerprint(corefile)


ROWS = {
    "no text is no block": ("", ""),
    "comments alone are no block": ("# nothing\n\n  # more", ""),
    "a byte order mark is dropped": ("\ufeff. {\n errors\n}", ".:53 { errors }"),
    "a zone is lower-cased, its final dot and port may be missing": (
        "Example.ORG. example.net:1053 {\n}",
        "example.org:53 example.net:1053 { }",
    ),
    "a zone may have the scheme dns": ("dns://example.org:1053 {\n}", "example.org:1053 { }"),
    "a network of whole octets is one reverse zone": ("10.0.0.0/24 {\n}", "0.0.10.in-addr.arpa:53 { }"),
    "a network between octets is several reverse zones": (
        "10.0.0.0/23:54 {\n}",
        "0.0.10.in-addr.arpa:54 1.0.10.in-addr.arpa:54 { }",
    ),
    "keys may have commas and go on in the next line": ("a,\nb, c\n{\n}", "a:53 b:53 c:53 { }"),
    "keys without a body are a block": ("example.org", "example.org:53 { }"),
    "without braces the file is one block": (
        ".:54\nerrors\nforward . 1.1.1.1 {\n max_fails 1\n}\nlog",
        ".:54 { errors forward . 1.1.1.1 { max_fails 1 } log }",
    ),
    "the opening brace may stand on a line of its own": (
        ". \n{\n health\n {\n  lameduck 5s\n }\n}",
        ".:53 { health { lameduck 5s } }",
    ),
    "a nested block may stand on one line": (". {\n health { lameduck 5s }\n}", ".:53 { health { lameduck 5s } }"),
    "a server block may stand on one line": (". { whoami }", ".:53 { whoami }"),
    "blocks nest": (". {\n a {\n  b {\n   c d\n  }\n  e\n }\n}", ".:53 { a { b { c d } e } }"),
    "a directive written twice stays two": (". {\n forward a b\n forward c d\n}", ".:53 { forward a b forward c d }"),
    "a block without zones is ignored": ("{\n errors\n}\n. {\n log\n}", ".:53 { log }"),
    "an empty zone is no zone": ('"" . {\n log\n}', ".:53 { log }"),
    "quotes hold blanks and comments together": ('. {\n log "a b # c"\n}', '.:53 { log "a b # c" }'),
    "in quotes only a quote is escaped": (r'. { log "a \" \\ \. b" }', r'.:53 { log "a \" \\ \. b" }'),
    "an empty token stays": ('. { log "" }', '.:53 { log "" }'),
    "a quote in mid-token is itself": ('. { log a"b c"d }', '.:53 { log a"b c"d }'),
    "a quoted token ends at its quote": ('. { log "a"b }', ".:53 { log a b }"),
    "a quoted brace is text": ('. { log "{" "}" }', '.:53 { log "{" "}" }'),
    "a comment cuts a token": (". {\n log a#b\n}", ".:53 { log a }"),
    "a comment that cuts a token ends at the next blank": (". {\n log a#b c\n}", ".:53 { log a c }"),
    "a comment after a blank takes the line": (". {\n log a #b c }\n}", ".:53 { log a }"),
    "carriage returns are dropped": (". {\r\n log a\r\n\r\n}\r\n", ".:53 { log a }"),
    "a no-break space parts tokens": (".\u00a0{\n log\u2003a\n}", ".:53 { log a }"),
    "a snippet is put where it is imported": (
        "(common) {\n errors\n log {\n  class error\n }\n}\n. {\n import common\n reload\n}",
        ".:53 { errors log { class error } reload }",
    ),
    "a snippet may hold options": (
        "(o) {\n ttl 5\n}\n. { kubernetes {\n import o\n } }",
        ".:53 { kubernetes { ttl 5 } }",
    ),
    "a snippet may hold server blocks": ("(s) {\n a {\n  log\n }\n}\nimport s", "a:53 { log }"),
    "a snippet may import another": ("(a) {\n log\n}\n(b) {\n import a\n}\n. {\n import b\n}", ".:53 { log }"),
    "import is a word like others where no line begins": (". { log import }", ".:53 { log import }"),
    "import in quotes is a directive": ('. {\n "import" x\n}', '.:53 { "import" x }'),
    "a stray comma makes an odd zone, with a warning": ("a,b {\n}", "a,b:53 { }"),
}


@pytest.mark.parametrize("name", ROWS)
def test_constructs(name: str) -> None:
    text, canonical = ROWS[name]
    assert tree(text) == canonical
    assert tree(render(parse(text, "Corefile"))) == canonical


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        pytest.param("{$ZONE}:{%PORT%} {\n}", "example.org:1053 { }", id="in keys, in both spellings"),
        pytest.param(". { {$NAME} a{$NAME}b }", ".:53 { log alogb }", id="in names and in the middle of words"),
        pytest.param(". { log {$MISSING}x {$MISSING} }", '.:53 { log x "" }', id="unset is empty"),
        pytest.param(". { log {$BLANKS} }", '.:53 { log "a b" }', id="a value is not split"),
        pytest.param('. { log "{{$NAME}}" }', ".:53 { log {{$NAME}} }", id="a Go template is left alone"),
        pytest.param(". { log {$} {%%} {type} }", ".:53 { log {$} {%%} {type} }", id="without a name it is text"),
        pytest.param("{$MISSING} {\n log\n}", "", id="a key that is empty is none"),
        pytest.param(". {\n import {$NAME}.conf\n}", ".:53 { errors }", id="in the path of an import"),
    ],
)
def test_the_environment_is_put_in(text: str, canonical: str) -> None:
    environment = {"ZONE": "Example.org", "PORT": "1053", "NAME": "log", "BLANKS": "a b"}
    assert tree(text, environment=environment, read=files({"log.conf": "errors"})) == canonical


def test_without_an_environment_references_stay() -> None:
    assert tree(". { log {$NAME} }") == ".:53 { log {$NAME} }"


def test_a_token_knows_where_it_stands() -> None:
    corefile = parse('. {\n\tlog "two\nlines" after\n}', "Corefile")
    [log] = corefile.blocks[0].directives
    assert [(arg.text, arg.line, arg.column, arg.length, arg.end_line) for arg in log.args] == [
        ("two\nlines", 2, 6, 4, 3),
        ("after", 3, 8, 5, 3),
    ]
    assert log.args[0].place().text == '\tlog "two'


def test_the_default_port_is_the_callers() -> None:
    assert tree("a b:53 {\n}", default_port=1053) == "a:1053 b:53 { }"


def test_named_gives_every_use_of_a_directive() -> None:
    [block] = parse(". {\n forward a b\n log\n forward c d\n}", "Corefile").blocks
    assert [directive.args[0].text for directive in block.named("forward")] == ["a", "c"]


@pytest.mark.parametrize(
    ("text", "zones"),
    [
        (".", ["."]),
        ("Cluster.LOCAL", ["cluster.local."]),
        (r"a\.b", ["a\\.b."]),
        (r"a\.", ["a\\.."]),
        ("10.0.0.0/8", ["10.in-addr.arpa."]),
        ("10.1.2.3/24", ["2.1.10.in-addr.arpa."]),
        ("10.0.0.0/22", [f"{octet}.0.10.in-addr.arpa." for octet in range(4)]),
        ("192.0.2.1/32", ["1.2.0.192.in-addr.arpa."]),
        ("0.0.0.0/0", ["in-addr.arpa."]),
        ("2001:db8::/32", ["8.b.d.0.1.0.0.2.ip6.arpa."]),
        ("2001:db8::/31", ["8.b.d.0.1.0.0.2.ip6.arpa.", "9.b.d.0.1.0.0.2.ip6.arpa."]),
        ("::/0", ["ip6.arpa."]),
        ("0/25.2.0.192.in-addr.arpa", ["0/25.2.0.192.in-addr.arpa."]),
    ],
)
def test_zones_are_normalized(text: str, zones: list[str]) -> None:
    assert normalize_zone(text) == zones


@pytest.mark.parametrize("text", ["", "a..b", ".a", "a" * 64, "a." * 128, "a b", "a:b", 'a"', "a\\", "bücher.example"])
def test_what_is_no_zone_is_refused_in_a_sentence(text: str) -> None:
    with pytest.raises(ValueError, match=r"domain name|a zone has a name"):
        normalize_zone(text)


# --- Files ---


def test_an_import_is_relative_to_the_file_that_imports(tmp_path: Path) -> None:
    (tmp_path / "custom").mkdir()
    (tmp_path / "Corefile").write_text(". {\n import custom/one.conf\n}\nimport custom/*.server\n")
    (tmp_path / "custom" / "one.conf").write_text("errors\nimport two.conf\n")
    (tmp_path / "custom" / "two.conf").write_text("log\n")
    (tmp_path / "custom" / "b.server").write_text("b {\n whoami\n}\n")
    (tmp_path / "custom" / "a.server").write_text("# only a comment\n")
    (tmp_path / "custom" / ".hidden.server").write_text("hidden {\n}\n")
    corefile = load(str(tmp_path / "Corefile"), environment={})
    assert " ".join(render(corefile).split()) == ".:53 { errors log } hidden:53 { } b:53 { whoami }"
    names = ["Corefile", "one.conf", "two.conf", ".hidden.server", "a.server", "b.server"]
    assert [Path(file).name for file in corefile.files] == names
    assert set(corefile.text) == set(corefile.files)


def test_the_files_of_a_mounted_configmap_are_read_once_through_their_links(tmp_path: Path) -> None:
    custom = tmp_path / "custom"
    (custom / "..2026_11_21").mkdir(parents=True)
    (custom / "..data").symlink_to("..2026_11_21")
    for name, text in (("a.override", "errors\n"), ("b.override", ""), ("c.server", "b {\n whoami\n}\n")):
        (custom / "..data" / name).write_text(text)
        (custom / name).symlink_to(f"..data/{name}")
    corefile = parse(". {\n import custom/*.override\n}\nimport custom/*.server\n", str(tmp_path / "Corefile"))
    assert " ".join(render(corefile).split()) == ".:53 { errors } b:53 { whoami }"
    assert corefile.warnings == []


def test_a_snippet_of_an_imported_file_is_known_behind_the_import(tmp_path: Path) -> None:
    (tmp_path / "common").write_text("(both) {\n errors\n log\n}\n")
    corefile = parse("import common\n. {\n import both\n}\nb {\n import both\n}\n", str(tmp_path / "Corefile"))
    assert " ".join(render(corefile).split()) == ".:53 { errors log } b:53 { errors log }"


def test_a_snippet_goes_before_a_file_of_its_name(tmp_path: Path) -> None:
    (tmp_path / "common").write_text("log\n")
    corefile = parse("(common) {\n errors\n}\n. {\n import common\n}\n", str(tmp_path / "Corefile"))
    assert " ".join(render(corefile).split()) == ".:53 { errors }"


def test_a_glob_without_a_match_is_a_warning(tmp_path: Path) -> None:
    corefile = parse(". {\n import custom/*.override\n}\n", str(tmp_path / "Corefile"))
    [warning] = corefile.warnings
    assert warning.warning
    assert warning.message == "no files matching import glob pattern: `custom/*.override`"


def test_a_missing_file_is_told_as_coredns_tells_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"open {tmp_path}/none: no such file or directory"):
        load(str(tmp_path / "none"))


def test_what_is_no_regular_file_is_not_imported(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    with pytest.raises(ConfigError, match="not a regular file"):
        parse("import d", str(tmp_path / "Corefile"))


def test_bytes_that_are_not_utf8_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "Corefile").write_bytes(b". {\n log \xff\r\n}\n")
    [block] = load(str(tmp_path / "Corefile")).blocks
    assert block.directives[0].args[0].text == "\ufffd"


def test_load_takes_the_environment_of_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDNS_TEST_ZONE", "example.org")
    (tmp_path / "Corefile").write_text("{$KDNS_TEST_ZONE} {\n}\n")
    assert load(str(tmp_path / "Corefile")).blocks[0].keys[0].zone == "example.org."


# --- Mistakes ---

MISTAKES = {
    "a brace glued to a zone": (
        ".:53{\n    errors\n}\n",
        """\
error: `{` must stand alone
  Corefile:1:1
    1 | .:53{
      | ^^^^^
  expected ZONE or ZONE:PORT
hint: write `.:53 {`, with a space""",
    ),
    "a brace glued to a directive": (
        ". {\n    health{\n        lameduck 5s\n    }\n    errors\n}\n",
        """\
error: `{` must stand alone
  Corefile:2:5
    2 |     health{
      |     ^^^^^^^
hint: write `health {`, with a space""",
    ),
    "a brace glued to a value": (
        ". {\n    health {\n        lameduck 5s}\n}\n",
        """\
error: this block isn't closed
  Corefile:1:3
    1 | . {
      |   ^
  expected `}` before the file ends
hint: `5s}` in line 3 ends with a brace: braces stand alone""",
    ),
    "a comma before the brace": (
        "a, {\n}\n",
        """\
error: expected another address but had `{`
  Corefile:1:4
    1 | a, {
      |    ^
hint: check for an extra comma before it""",
    ),
    "a comma before the end": (
        "a,",
        """\
error: the file ends after a comma
  Corefile:1:1
    1 | a,
      | ^^
  expected another zone""",
    ),
    "several mistakes in one run, in the order of the file": (
        "tls://. a..b x: {\n    errors\n}\n}\n",
        """\
error: `tls://` isn't in kdns yet
  Corefile:1:1
    1 | tls://. a..b x: {
      | ^^^^^^^
  expected ZONE or ZONE:PORT
hint: clients are served over UDP and TCP; a proxy in front can speak to them in another way
error: `a..b` isn't a valid domain name: it has an empty label
  Corefile:1:9
    1 | tls://. a..b x: {
      |         ^^^^
  expected ZONE or ZONE:PORT
error: expecting data after last colon: `x:`
  Corefile:1:14
    1 | tls://. a..b x: {
      |              ^^
  expected ZONE or ZONE:PORT
error: `}` has no matching opening brace
  Corefile:4:1
    4 | }
      | ^""",
    ),
    "a port without a zone": (
        ":53 {\n}\n",
        """\
error: a zone has a name, `.` is the root
  Corefile:1:1
    1 | :53 {
      | ^^^
  expected ZONE or ZONE:PORT
hint: `.:53` is the zone of all names""",
    ),
    "a zone twice in a block": (
        "a A. {\n}\n",
        """\
error: `A.` is already one of this block's zones
  Corefile:1:3
    1 | a A. {
      |   ^^""",
    ),
    "what is no port, and networks that can't be": (
        "foo_bar.example:x {\n}\n10.0.0.0/33 2001:db8::/129:53 {\n}\n",
        """\
error: `x` is no port
  Corefile:1:1
    1 | foo_bar.example:x {
      | ^^^^^^^^^^^^^^^^^
  expected ZONE or ZONE:PORT
error: `10.0.0.0/33` is no network: an address has at most 32 bits, or 128 of IPv6
  Corefile:3:1
    3 | 10.0.0.0/33 2001:db8::/129:53 {
      | ^^^^^^^^^^^
  expected ZONE or ZONE:PORT
error: `2001:db8::/129` is no network: an address has at most 32 bits, or 128 of IPv6
  Corefile:3:13
    3 | 10.0.0.0/33 2001:db8::/129:53 {
      |             ^^^^^^^^^^^^^^^^^
  expected ZONE or ZONE:PORT""",
    ),
    "a zone that a variable leaves empty, and the variable": (
        "{$NOPE}:53 {\n}\n",
        """\
error: a zone has a name, `.` is the root
  Corefile:1:1
    1 | {$NOPE}:53 {
      | ^^^^^^^^^^
  expected ZONE or ZONE:PORT
hint: `.:53` is the zone of all names
warning: `NOPE` isn't set in the environment, so `{$NOPE}` is empty
  Corefile:1:1
    1 | {$NOPE}:53 {
      | ^^^^^^^^^^""",
    ),
    "a quote that isn't closed, without a word about the braces that it swallows": (
        '. {\n    log "x\n}\n',
        """\
error: this quote isn't closed
  Corefile:2:9
    2 |     log "x
      |         ^
  expected another `"` before the file ends""",
    ),
    "a brace that no directive owns": (
        ". {\n    {\n    }\n}\n",
        """\
error: this `{` follows no directive
  Corefile:2:5
    2 |     {
      |     ^
  expected the name of a directive or option""",
    ),
    "words after a closing brace": (
        ". {\n    health {\n    } errors\n}\n",
        """\
error: nothing can follow `}` on its line
  Corefile:3:7
    3 |     } errors
      |       ^^^^^^
  expected the end of the line""",
    ),
    "imports of nothing and of too much": (
        ". {\n    import\n    import a b\n}\n",
        """\
error: `import` requires a non-empty filepath
  Corefile:2:5
    2 |     import
      |     ^^^^^^
error: `import` takes only one argument
  Corefile:3:14
    3 |     import a b
      |              ^
  expected a snippet, a file or a glob pattern""",
    ),
    "an import of what isn't there": (
        "(common) {\n}\n. {\n    import comon\n}\n",
        """\
error: file to import not found: `comon`
  Corefile:4:12
    4 |     import comon
      |            ^^^^^
hint: snippets defined before this line: `common`""",
    ),
    "too many wildcards": (
        "import */*.conf\n",
        """\
error: glob pattern may only contain one wildcard, but has others: `*/*.conf`
  Corefile:1:8
    1 | import */*.conf
      |        ^^^^^^^^""",
    ),
    "a snippet defined twice": (
        "(a) {\n}\n(a) {\n}\n",
        """\
error: redeclaration of previously declared snippet `a`
  Corefile:3:1
    3 | (a) {
      | ^^^""",
    ),
    "a snippet without a block, and one with two names": (
        "(a)\n(b) c {\n}\n",
        """\
error: a snippet needs a block
  Corefile:1:1
    1 | (a)
      | ^^^
  expected `(a) {`
error: a snippet has one name
  Corefile:2:5
    2 | (b) c {
      |     ^
  expected `(b) {`""",
    ),
    "a snippet that imports itself": (
        "(a) {\n    import a\n}\n. {\n    import a\n}\n",
        """\
error: `a` imports itself
  Corefile:2:12
    2 |     import a
      |            ^
hint: snippet a → snippet a""",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_drawn(name: str) -> None:
    text, drawn = MISTAKES[name]
    assert mistakes(text, read=files({}), environment={}) == drawn


def test_a_mistake_in_an_imported_file_stands_in_that_file() -> None:
    drawn = mistakes(". {\n import a.conf\n import a.conf\n}\n", read=files({"a.conf": "errors\n}\n"}))
    assert drawn == "error: `}` has no matching opening brace\n  a.conf:2:1\n    2 | }\n      | ^"


def test_an_unset_variable_and_an_ignored_block_are_warnings() -> None:
    corefile = parse("{$NONE} {\n log\n}\n", "Corefile", environment={})
    assert [draw(warning).splitlines()[0] for warning in corefile.warnings] == [
        "warning: `NONE` isn't set in the environment, so `{$NONE}` is empty",
        "warning: a block without a zone is ignored",
    ]


def test_files_that_import_each_other_are_told() -> None:
    assert "imports itself" in mistakes("import a", read=files({"a": "import b", "b": "import a"}))


def test_snippets_that_multiply_are_stopped() -> None:
    doubling = "(s0) {\n log\n}\n" + "".join(
        f"(s{level}) {{\n import s{level - 1}\n import s{level - 1}\n}}\n" for level in range(1, 40)
    )
    started = time.monotonic()
    assert "maximum snippet import depth (10000) exceeded" in mistakes(doubling + ". {\n import s39\n}\n")
    assert time.monotonic() - started < 10


def test_blocks_and_imports_nested_too_deep_are_told() -> None:
    assert "blocks are nested more than 64 deep" in mistakes(". {\n" + "a {\n" * 5000)
    assert "blocks are nested more than 64 deep" in mistakes(". {\n" + "{\n" * 5000)
    chain = {str(number): f"import {number + 1}" for number in range(5000)}
    assert "imports are nested more than 64 deep" in mistakes("import 0", read=files(chain))


# --- Whatever the text ---


def only_a_tree_or_mistakes(text: str, environment: Mapping[str, str] | None = None) -> None:
    """Parses; what parses says the same in its canonical text, what doesn't has a place for each mistake."""
    problems: tuple[Problem, ...] = ()
    corefile = Corefile([])
    read = files({"f": "log {\n x\n}"})
    try:
        corefile = parse(text, "Corefile", environment=environment, read=read, glob=nothing_matches)
    except ConfigError as error:
        problems = error.problems
        assert not all(problem.warning for problem in problems)
    assert all(problem.place and problem.place.line > 0 for problem in problems)
    again = parse(render(corefile), "again")
    assert plain(again) == plain(corefile)
    assert fingerprint(again) == fingerprint(corefile)
    assert render(again) == render(corefile)


def plain(corefile: Corefile) -> object:
    def lines(directives: list[Directive] | None) -> object:
        if directives is None:
            return None
        return [(line.name.text, [arg.text for arg in line.args], lines(line.body)) for line in directives]

    return [([(key.zone, key.port) for key in block.keys], lines(block.directives)) for block in corefile.blocks]


def test_the_kubeadm_corefile_cut_at_every_character() -> None:
    for cut in range(len(KUBEADM)):
        only_a_tree_or_mistakes(KUBEADM[:cut])


@pytest.mark.parametrize(
    "rubbish", ["}", "{", '"', '"}', "import", "import x", "(a) {", "a,", "\\", "\0", "{$", "#", "tls://"]
)
def test_the_kubeadm_corefile_with_rubbish_anywhere(rubbish: str) -> None:
    for place in range(0, len(KUBEADM), 3):
        only_a_tree_or_mistakes(KUBEADM[:place] + rubbish + KUBEADM[place:])


@given(st.text())
def test_any_text(text: str) -> None:
    only_a_tree_or_mistakes(text)


SPLIT_BY_BARS = (
    '{|}| |\n|\t|\r|"|\\"|\\|#|,|import|import f\n|import s\n|import *.x\n|(s)|(s) {\n a\n}\n|.|.:53|a|b.c|log|:|dns://'
    "|10.0.0.0/23|{$X}|{%Y%}|\ufeff|\u2003"
)
PIECES = tuple(SPLIT_BY_BARS.split("|"))


@given(st.lists(st.sampled_from(PIECES), max_size=60).map("".join))
def test_any_text_of_the_grammars_pieces(text: str) -> None:
    only_a_tree_or_mistakes(text)
    only_a_tree_or_mistakes(text, {"X": "x", "Y": "y.z"})


@given(st.text(alphabet='a "\\#\n\r{}', max_size=30))
def test_tokens_never_hold_what_parts_them(text: str) -> None:
    for token in tokens_of(text, "Corefile")[0]:
        assert token.quoted or not set(token.text) & set(' #\n\r"') or '"' in token.text[1:]


def test_comments_blanks_and_files_do_not_change_the_fingerprint() -> None:
    split = parse("# c\n.   {\n\n import f # d\n}", "Corefile", read=files({"f": "log {\n x\n}"}))
    assert fingerprint(split) == fingerprint(parse(".:53 { log { x } }", "other"))
    assert fingerprint(split) != fingerprint(parse(".:53 { log { y } }", "other"))
    assert fingerprint(split) != fingerprint(parse(".:53 { log }", "other"))
    assert len(fingerprint(split)) == 128


def test_a_long_corefile_takes_a_moment_only() -> None:
    entries = "".join(
        f"    10.0.{number // 250}.{number % 250} host-{number}.example.org\n" for number in range(20_000)
    )
    started = time.monotonic()
    parse(". {\n  hosts {\n" + entries + "  }\n}\n", "Corefile")
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("scheme", ["tls", "https", "https3", "grpc", "quic"])
def test_a_zone_that_is_not_served_over_udp_and_tcp_is_refused_with_what_to_do_instead(scheme: str) -> None:
    assert (
        mistakes(f".:53 {scheme}://example.org:853 {{\n    whoami\n}}\n")
        == f"""\
error: `{scheme}://` isn't in kdns yet
  Corefile:1:6
    1 | .:53 {scheme}://example.org:853 {{
      |      {"^" * (len(scheme) + 18)}
  expected ZONE or ZONE:PORT
hint: clients are served over UDP and TCP; a proxy in front can speak to them in another way"""
    )
