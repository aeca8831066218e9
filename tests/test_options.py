"""How a directive becomes its options: each kind of value, each mistake as it is drawn, and the reference table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdns.corefile import Directive, Token, parse
from kdns.errors import Problem, draw
from kdns.options import (
    COREDNS_DIRECTIVES,
    INSTEAD,
    Address,
    Fault,
    Options,
    RefusalError,
    Selector,
    WordError,
    address,
    argument,
    choice,
    choices,
    custom,
    describe,
    differs,
    duration,
    flag,
    fraction,
    is_number,
    lines,
    number,
    once,
    parse_duration,
    parse_each,
    parse_options,
    parse_selector,
    repeatable,
    selector,
    several,
    spell_duration,
    synopsis,
    unknown_directive,
    without_effect,
    word,
    words,
    zone,
    zone_arguments,
    zones,
)
from kdns.plugins import PLUGINS


class ClusterOptions(
    Options,
    directive="cluster",
    once=True,
    exclusive=[("namespaces", "namespace_labels")],
    removed={"resyncperiod": "delete the line"},
):
    zones: Annotated[tuple[str, ...], zone_arguments(), "zones to answer for"] = ()
    ttl: Annotated[int, number(0, 3600, unit="seconds"), "how long answers are kept"] = 5
    pods: Annotated[str, choice("disabled", "insecure", "verified"), "which pods have names"] = "disabled"
    namespaces: Annotated[tuple[str, ...], words("NAMESPACE..."), "only these"] = ()
    namespace_labels: Annotated[Selector, selector(), "only namespaces with these labels"] = Selector()
    endpoint_pod_names: Annotated[bool, flag(), "endpoints are named for their pods"] = False
    fallthrough: Annotated[tuple[str, ...] | None, zones(none=(".",)), "zones that go on"] = None
    startup_timeout: Annotated[float, duration(), "how long to wait"] = 5.0
    inventory: Annotated[tuple[str, ...], words("PATH..."), repeatable, "manifests"] = ()
    apiserver_qps: Annotated[float, fraction(0), without_effect("kdns asks rarely"), "queries per second"] = 0.0
    resolve: Annotated[bool, flag(), without_effect("delete the line", in_coredns=True), "of older versions"] = False
    labels: Annotated[Selector, selector(), differs("pods too"), "only what has these labels"] = Selector()
    burst: Annotated[int, number(0), differs("10 at most", lambda burst: burst > 10), "how many at once"] = 5
    kubeconfig: Annotated[str, word("FILE"), once, "how to reach the cluster"] = ""

    def faults(self) -> Iterable[Fault]:
        if self.endpoint_pod_names and self.pods == "verified":
            sentence = "`endpoint_pod_names` and `pods verified` don't go together"
            yield Fault("endpoint_pod_names", sentence, besides=("pods",))
        for text in self.namespaces:
            if text == "none":
                yield Fault("namespaces", f"`{text}` is no namespace", text, "leave the option out for all")


class ForwardOptions(Options, directive="forward"):
    from_: Annotated[tuple[str, ...], argument(zone("FROM")), "names in this zone"]
    to: Annotated[tuple[str, ...], argument(words("TO...", at_most=3)), "go to one of these"]
    except_: Annotated[tuple[str, ...], zones(at_least=1), repeatable, "but these don't"] = ()
    policy: Annotated[str, choice("random", "sequential"), "which comes first"] = "random"


class CacheOptions(Options, directive="cache"):
    ttl: Annotated[int, argument(number(1, unit="seconds").called("TTL"), is_number), "the longest"] = 3600
    zones: Annotated[tuple[str, ...], zone_arguments(), "what is kept"] = ()
    success: Annotated[
        tuple[int, int, int],
        several(number(0).called("CAPACITY"), number(0).called("TTL"), number(0).called("MINTTL")),
        "for good answers",
    ] = (9984, 3600, 5)
    disable: Annotated[tuple[str, ...], choices("success", "denial"), repeatable, "what isn't kept"] = ()


class BindOptions(Options, directive="bind"):
    addresses: Annotated[tuple[str, ...], argument(words("ADDRESS...")), repeatable, "where to listen"]


class HealthOptions(Options, directive="health"):
    address: Annotated[Address, argument(address()), "where /health is served"] = Address("", 8080)
    lameduck: Annotated[float, duration(0, 60), "how long to go on serving"] = 0.0


class ReadyOptions(Options, directive="ready"):
    address: Annotated[Address, argument(address(8181)), "where /ready is served"] = Address("", 8181)


def read_entry(line: Directive) -> tuple[str, ...]:
    if not line.args:
        raise ValueError(f"`{line.name.text}` has no names")
    if line.args[0].text == "wrong":
        raise WordError(line.args[0], "`wrong` is wrong")
    if line.args[0].text == "refused":
        raise RefusalError(line.args[0], "another name")
    return (line.name.text, *(arg.text for arg in line.args))


class HostsOptions(Options, directive="hosts"):
    ttl: Annotated[int, number(1, 65535, unit="seconds"), "how long"] = 3600
    entries: Annotated[tuple[tuple[str, ...], ...], lines(read_entry, syntax="ADDRESS NAME..."), "inline"] = ()


class AclOptions(Options, directive="acl"):
    rules: Annotated[
        tuple[tuple[str, ...], ...], lines(read_entry, "allow", "block", syntax="allow|block NET"), ""
    ] = ()


class NeedyOptions(Options, directive="needy"):
    key: Annotated[str, word("KEY"), "there is no default"]


class OddOptions(Options, directive="odd"):
    even: Annotated[int, custom(lambda tokens: _even(tokens[0].text), "NUMBER", "an even number"), ""] = 2


def _even(text: str) -> int:
    if int(text) % 2:
        raise ValueError(f"`{text}` isn't even")
    return int(text)


ALL: tuple[type[Options], ...] = (
    *(ClusterOptions, ForwardOptions, CacheOptions, BindOptions, HealthOptions, ReadyOptions),
    *(HostsOptions, AclOptions, NeedyOptions, OddOptions),
)
BY_NAME: Mapping[str, type[Options]] = {options.directive: options for options in ALL}


def read(text: str) -> tuple[Any, list[Problem]]:
    """The options of the one kind of directive in this body of a block, and what was wrong."""
    [block] = parse(f". {{\n{text}\n}}", "Corefile").blocks
    problems: list[Problem] = []
    return parse_options(BY_NAME[block.directives[0].name.text], block.directives, problems), problems


# --- Values ---

VALUES = {
    "nothing given is all defaults": ("cluster", ClusterOptions()),
    "zones on the line are names with final dots, networks their reverse zones": (
        "cluster Cluster.local 10.0.0.0/15 cluster.local:53",
        ClusterOptions(zones=("cluster.local.", "0.10.in-addr.arpa.", "1.10.in-addr.arpa.")),
    ),
    "a number": ("cluster {\n ttl 30\n}", ClusterOptions(ttl=30)),
    "a choice": ("cluster {\n pods insecure\n}", ClusterOptions(pods="insecure")),
    "words": ("cluster {\n namespaces a b\n}", ClusterOptions(namespaces=("a", "b"))),
    "a flag": ("cluster {\n endpoint_pod_names\n}", ClusterOptions(endpoint_pod_names=True)),
    "a duration is seconds": ("cluster {\n startup_timeout 1m30s\n}", ClusterOptions(startup_timeout=90.0)),
    "zones that may stand alone": ("cluster {\n fallthrough\n}", ClusterOptions(fallthrough=(".",))),
    "zones that don't": ("cluster {\n fallthrough A. b\n}", ClusterOptions(fallthrough=("a.", "b."))),
    "a selector of several words": (
        "cluster {\n namespace_labels tier in (web, db), !old\n}",
        ClusterOptions(namespace_labels=parse_selector("tier in (web, db), !old")),
    ),
    "a repeatable option adds up": (
        "cluster {\n inventory a b\n inventory c\n}",
        ClusterOptions(inventory=("a", "b", "c")),
    ),
    "a field's final underscore is not in the option's name": (
        "forward . 1.1.1.1 {\n except A\n except b\n}",
        ForwardOptions(from_=(".",), to=("1.1.1.1",), except_=("a.", "b.")),
    ),
    "an argument that fits": ("cache 30 a", CacheOptions(ttl=30, zones=("a.",))),
    "an argument that doesn't fit is left for the next": ("cache 30s", CacheOptions(zones=("30s.",))),
    "several values, the rest from the default": ("cache {\n success 1 2\n}", CacheOptions(success=(1, 2, 5))),
    "several choices": (
        "cache {\n disable success\n disable denial\n}",
        CacheOptions(disable=("success", "denial")),
    ),
    "a directive written twice is one": ("bind a b\nbind c", BindOptions(addresses=("a", "b", "c"))),
    "options of both uses of a directive count": (
        "cache 30\ncache {\n success 1 2 3\n}",
        CacheOptions(ttl=30, success=(1, 2, 3)),
    ),
    "an address with all hosts": ("health :9", HealthOptions(address=Address("", 9))),
    "an address with an IPv6 host": ("health [::1]:9", HealthOptions(address=Address("::1", 9))),
    "an address with a name": ("health localhost:9", HealthOptions(address=Address("localhost", 9))),
    "an address without a port, where one is known": (
        "ready 10.0.0.1",
        ReadyOptions(address=Address("10.0.0.1", 8181)),
    ),
    "lines that are no options": (
        "hosts {\n 10.0.0.1 a b\n ttl 5\n ::1 c\n}",
        HostsOptions(ttl=5, entries=(("10.0.0.1", "a", "b"), ("::1", "c"))),
    ),
    "lines of several names stay in order": (
        "acl {\n block x\n allow y\n block z\n}",
        AclOptions(rules=(("block", "x"), ("allow", "y"), ("block", "z"))),
    ),
    "an option without a default": ("needy {\n key x\n}", NeedyOptions(key="x")),
    "a kind of a plugin's own": ("odd {\n even 4\n}", OddOptions(even=4)),
}


@pytest.mark.parametrize("name", VALUES)
def test_values(name: str) -> None:
    text, options = VALUES[name]
    assert read(text) == (options, [])


def test_each_use_by_itself() -> None:
    [block] = parse(". {\n forward a 1\n forward b\n forward c 3\n}", "Corefile").blocks
    problems: list[Problem] = []
    found = parse_each(ForwardOptions, block.directives, problems)
    assert [(options.from_, options.to) for options in found] == [(("a.",), ("1",)), (("c.",), ("3",))]
    assert [problem.message for problem in problems] == ["`forward` needs TO"]


def test_options_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        CacheOptions().ttl = 5  # type: ignore[misc]


# --- Mistakes ---

MISTAKES = {
    "a number that isn't one": (
        "cluster {\n    ttl thirty\n}",
        """\
error: `ttl` takes a number of seconds
  Corefile:3:9
    3 |     ttl thirty
      |         ^^^^^^
  expected 0 to 3600, found `thirty`
hint: the default is `ttl 5`""",
    ),
    "a number out of range, and one of Go's that are too long": (
        "cluster {\n    ttl 3601\n    apiserver_qps -1\n}\n",
        """\
error: `ttl` takes a number of seconds
  Corefile:3:9
    3 |     ttl 3601
      |         ^^^^
  expected 0 to 3600, found `3601`
hint: the default is `ttl 5`
error: `apiserver_qps` takes a number
  Corefile:4:19
    4 |     apiserver_qps -1
      |                   ^^
  expected 0 or more, found `-1`
hint: the default is `apiserver_qps 0`""",
    ),
    "a duration without a unit": (
        "health {\n    lameduck 30\n}",
        """\
error: `lameduck` takes a duration
  Corefile:3:14
    3 |     lameduck 30
      |              ^^
  expected a number with a unit, such as `5s`, `300ms` or `1h30m`, found `30`
hint: write `30s`""",
    ),
    "a duration out of range": (
        "health {\n    lameduck 2m\n}",
        """\
error: `lameduck` takes a duration
  Corefile:3:14
    3 |     lameduck 2m
      |              ^^
  expected 0s to 1m, found `2m`
hint: the default is `lameduck 0s`""",
    ),
    "a choice that is misspelt": (
        "cluster {\n    pods insecur\n}",
        """\
error: `pods` takes `disabled`, `insecure` or `verified`
  Corefile:3:10
    3 |     pods insecur
      |          ^^^^^^^
  expected one of these, found `insecur`
hint: did you mean `insecure`?""",
    ),
    "an option that is misspelt": (
        "cluster {\n    pod insecure\n}",
        """\
error: `cluster` has no option `pod`
  Corefile:3:5
    3 |     pod insecure
      |     ^^^
hint: did you mean `pods`?""",
    ),
    "an option that nothing is near to": (
        "health {\n    xyz\n}",
        """\
error: `health` has no option `xyz`
  Corefile:3:5
    3 |     xyz
      |     ^^^
hint: it takes `lameduck`""",
    ),
    "an option of a directive without any": (
        "bind a {\n    xyz\n}",
        """\
error: `bind` has no option `xyz`
  Corefile:3:5
    3 |     xyz
      |     ^^^
hint: it has no options""",
    ),
    "options that older CoreDNS had": (
        "cluster {\n    resyncperiod 5m\n    upstream\n}",
        """\
error: `resyncperiod` was removed from CoreDNS
  Corefile:3:5
    3 |     resyncperiod 5m
      |     ^^^^^^^^^^^^
hint: delete the line
error: `upstream` was removed from CoreDNS
  Corefile:4:5
    4 |     upstream
      |     ^^^^^^^^
hint: kdns resolves such names through itself: delete the line""",
    ),
    "too few and too many values": (
        "cluster {\n    ttl\n    ttl 5 6\n    namespaces\n    endpoint_pod_names yes\n}",
        """\
error: `ttl` takes a number of seconds
  Corefile:3:5
    3 |     ttl
      |     ^^^
  expected `ttl SECONDS`, found nothing
error: `ttl` takes a number of seconds
  Corefile:4:11
    4 |     ttl 5 6
      |           ^
  expected `ttl SECONDS`, found 2 values
error: `namespaces` takes at least one word
  Corefile:5:5
    5 |     namespaces
      |     ^^^^^^^^^^
  expected `namespaces NAMESPACE...`, found nothing
error: `endpoint_pod_names` takes no value
  Corefile:6:24
    6 |     endpoint_pod_names yes
      |                        ^^^
  expected `endpoint_pod_names`, found 1 value""",
    ),
    "two options on one line": (
        "cluster { pods insecure ttl 5 }",
        """\
error: `pods` takes `disabled`, `insecure` or `verified`
  Corefile:2:25
    2 | cluster { pods insecure ttl 5 }
      |                         ^^^
  expected `pods disabled|insecure|verified`, found 3 values
hint: options stand on lines of their own""",
    ),
    "an option with a block": (
        "cluster {\n    ttl 5 {\n    }\n}",
        """\
error: `ttl` takes no block
  Corefile:3:5
    3 |     ttl 5 {
      |     ^^^
  expected `ttl SECONDS`""",
    ),
    "a second zone that is wrong": (
        "cluster {\n    fallthrough a b..c\n}",
        """\
error: `fallthrough`: `b..c` isn't a valid domain name: it has an empty label
  Corefile:3:19
    3 |     fallthrough a b..c
      |                   ^^^^""",
    ),
    "a selector that is wrong": (
        "cluster {\n    namespace_labels a > 1\n}",
        """\
error: `namespace_labels`: `>` isn't an operator of label selectors: they are =, ==, !=, in and notin
  Corefile:3:22
    3 |     namespace_labels a > 1
      |                      ^""",
    ),
    "the second use of a directive that may stand once": (
        "cluster a\ncluster b",
        """\
error: `cluster` can only be used once in a server block
  Corefile:3:1
    3 | cluster b
      | ^^^^^^^
hint: the first is in line 2 of Corefile""",
    ),
    "the second use of an option that may stand once": (
        "cluster {\n    kubeconfig a\n    kubeconfig b\n}",
        """\
error: `kubeconfig` can only be given once
  Corefile:4:5
    4 |     kubeconfig b
      |     ^^^^^^^^^^
hint: the first is in line 3 of Corefile""",
    ),
    "two options of which one may be given": (
        "cluster {\n    namespaces a\n    namespace_labels b\n}",
        """\
error: `namespaces` and `namespace_labels` cannot both be set
  Corefile:4:5
    4 |     namespace_labels b
      |     ^^^^^^^^^^^^^^^^
hint: `namespaces` stands in line 3""",
    ),
    "what only two options together make wrong": (
        "cluster {\n    endpoint_pod_names\n    pods verified\n}",
        """\
error: `endpoint_pod_names` and `pods verified` don't go together
  Corefile:3:5
    3 |     endpoint_pod_names
      |     ^^^^^^^^^^^^^^^^^^""",
    ),
    "what an option's words make wrong, beside another option that can't be read": (
        "cluster {\n    ttl x\n    namespaces a none\n}",
        """\
error: `ttl` takes a number of seconds
  Corefile:3:9
    3 |     ttl x
      |         ^
  expected 0 to 3600, found `x`
hint: the default is `ttl 5`
error: `none` is no namespace
  Corefile:4:18
    4 |     namespaces a none
      |                  ^^^^
hint: leave the option out for all""",
    ),
    "nothing of two options together where one of them can't be read": (
        "cluster {\n    endpoint_pod_names\n    pods verified\n    pods verifed\n}",
        """\
warning: `pods` is given again, and this is what counts
  Corefile:5:5
    5 |     pods verifed
      |     ^^^^
hint: the first is in line 4 of Corefile
error: `pods` takes `disabled`, `insecure` or `verified`
  Corefile:5:10
    5 |     pods verifed
      |          ^^^^^^^
  expected one of these, found `verifed`
hint: did you mean `verified`?""",
    ),
    "arguments that are missing": (
        "forward .",
        """\
error: `forward` needs TO
  Corefile:2:1
    2 | forward .
      | ^^^^^^^
  expected `forward FROM TO...`""",
    ),
    "arguments that are too many": (
        "forward . 1 2 3 4",
        """\
error: `forward` takes no more than that
  Corefile:2:17
    2 | forward . 1 2 3 4
      |                 ^
  expected `forward FROM TO...`, found `4`""",
    ),
    "arguments of a directive that takes none": (
        "hosts ttl 5",
        """\
error: `hosts` takes no arguments
  Corefile:2:7
    2 | hosts ttl 5
      |       ^^^
  expected nothing, found `ttl`
hint: options stand in a block: `hosts { ttl … }`""",
    ),
    "an argument that is wrong": (
        "cache 0 a",
        """\
error: TTL of `cache` takes a number of seconds
  Corefile:2:7
    2 | cache 0 a
      |       ^
  expected 1 or more, found `0`
hint: the default is `3600`""",
    ),
    "an address without a colon": (
        "health 8080",
        """\
error: `health` takes an address
  Corefile:2:8
    2 | health 8080
      |        ^^^^
  expected HOST:PORT or :PORT, found `8080`
hint: write `:8080` for all addresses""",
    ),
    "an address with a port that is none": (
        "health :80800",
        """\
error: `health` takes an address
  Corefile:2:8
    2 | health :80800
      |        ^^^^^^
  expected HOST:PORT or :PORT, found `:80800`
hint: the default is `:8080`""",
    ),
    "one of several values": (
        "cache {\n    success 1 x\n}",
        """\
error: `success` takes `CAPACITY [TTL [MINTTL]]`
  Corefile:3:15
    3 |     success 1 x
      |               ^
  expected 0 or more, found `x`
hint: the default is `success 9984 3600 5`""",
    ),
    "a line that a plugin reads by itself": (
        "hosts {\n    10.0.0.1\n    10.0.0.2 wrong\n    10.0.0.3 refused\n}",
        """\
error: `10.0.0.1` has no names
  Corefile:3:5
    3 |     10.0.0.1
      |     ^^^^^^^^
error: `wrong` is wrong
  Corefile:4:14
    4 |     10.0.0.2 wrong
      |              ^^^^^
error: `10.0.0.3` can't be read
  Corefile:5:14
    5 |     10.0.0.3 refused
      |              ^^^^^^^
  expected another name, found `refused`""",
    ),
    "an option that must be given": (
        "needy",
        """\
error: `needy` needs the option `key`
  Corefile:2:1
    2 | needy
      | ^^^^^
  expected `key KEY`""",
    ),
    "a value that a plugin refuses in a sentence": (
        "odd {\n    even 3\n}",
        """\
error: `even`: `3` isn't even
  Corefile:3:10
    3 |     even 3
      |          ^
hint: the default is `even 2`""",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_drawn(name: str) -> None:
    text, drawn = MISTAKES[name]
    options, problems = read(text)
    assert "\n".join(draw(problem) for problem in problems) == drawn
    assert options is None


WARNINGS = {
    "an option without an effect says so and is read": (
        "cluster {\n    apiserver_qps 1.5\n}",
        ClusterOptions(apiserver_qps=1.5),
        """\
note: `apiserver_qps` has no effect
  Corefile:3:5
    3 |     apiserver_qps 1.5
      |     ^^^^^^^^^^^^^
hint: kdns asks rarely""",
    ),
    "one that has none in CoreDNS either is doubtful": (
        "cluster {\n    resolve\n}",
        ClusterOptions(resolve=True),
        """\
warning: `resolve` has no effect
  Corefile:3:5
    3 |     resolve
      |     ^^^^^^^
hint: delete the line""",
    ),
    "an option that means something else than in CoreDNS says so": (
        "cluster {\n    labels a=b\n}",
        ClusterOptions(labels=parse_selector("a=b")),
        """\
note: `labels`: pods too
  Corefile:3:5
    3 |     labels a=b
      |     ^^^^^^""",
    ),
    "a value that means something else says so": (
        "cluster {\n    burst 11\n}",
        ClusterOptions(burst=11),
        """\
note: `burst`: 10 at most
  Corefile:3:5
    3 |     burst 11
      |     ^^^^^""",
    ),
    "a value that means the same says nothing": ("cluster {\n    burst 10\n}", ClusterOptions(burst=10), ""),
    "the last of two counts": (
        "cluster {\n    ttl 5\n    ttl 6\n}",
        ClusterOptions(ttl=6),
        """\
warning: `ttl` is given again, and this is what counts
  Corefile:4:5
    4 |     ttl 6
      |     ^^^
hint: the first is in line 3 of Corefile""",
    ),
    "the last of two arguments counts": (
        "health :1\nhealth :2",
        HealthOptions(address=Address("", 2)),
        """\
warning: `:2` is given again, and this is what counts
  Corefile:3:8
    3 | health :2
      |        ^^
hint: the first is in line 2 of Corefile""",
    ),
}


@pytest.mark.parametrize("name", WARNINGS)
def test_warnings_are_drawn_and_the_options_are_there(name: str) -> None:
    text, expected, drawn = WARNINGS[name]
    options, problems = read(text)
    assert "\n".join(draw(problem) for problem in problems) == drawn
    assert options == expected


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("cancel", "`cancel` isn't in kdns yet", "delete it: what is forwarded has 4 seconds in all anyway"),
        ("proxy", "`proxy` was removed from CoreDNS", "`forward . ADDRESS` takes its place"),
        ("kubernets", "there is no directive `kubernets`", "did you mean `kubernetes`?"),
        ("zzz", "there is no directive `zzz`", ""),
    ],
)
def test_an_unknown_directive_is_to_come_or_removed_or_misspelt(name: str, message: str, hint: str) -> None:
    problem = unknown_directive(Token(name, "Corefile", 3, 5), ["kubernetes", "forward"])
    assert (problem.message, problem.hint) == (message, hint)
    assert problem.place is not None
    assert problem.place.line == 3


def test_whoever_uses_a_directive_that_is_not_there_is_told_what_to_do_without_it() -> None:
    missing = set(COREDNS_DIRECTIVES) - {plugin.name for plugin in PLUGINS}
    assert missing <= INSTEAD.keys() <= set(COREDNS_DIRECTIVES)


def test_the_table_of_coredns_has_each_directive_once() -> None:
    assert len(COREDNS_DIRECTIVES) == len(set(COREDNS_DIRECTIVES)) == 60


# --- The reference ---


def test_the_reference_of_a_directive() -> None:
    assert [(row.syntax, row.default, row.sentence) for row in describe(ClusterOptions)] == [
        ("[ZONES...]", "", "zones to answer for"),
        ("ttl SECONDS", "5", "how long answers are kept"),
        ("pods disabled|insecure|verified", "disabled", "which pods have names"),
        ("namespaces NAMESPACE...", "", "only these"),
        ("namespace_labels SELECTOR...", "", "only namespaces with these labels"),
        ("endpoint_pod_names", "off", "endpoints are named for their pods"),
        ("fallthrough [ZONES...]", "", "zones that go on"),
        ("startup_timeout DURATION", "5s", "how long to wait"),
        ("inventory PATH...", "", "manifests"),
        ("apiserver_qps NUMBER", "0", "queries per second (no effect: kdns asks rarely)"),
        ("resolve", "off", "of older versions (no effect: delete the line)"),
        ("labels SELECTOR...", "", "only what has these labels"),
        ("burst NUMBER", "5", "how many at once"),
        ("kubeconfig FILE", "", "how to reach the cluster"),
    ]
    assert describe(HostsOptions)[1].syntax == "ADDRESS NAME..."
    assert describe(HealthOptions)[0].default == ":8080"


@pytest.mark.parametrize(
    ("options_type", "line"),
    [
        (ClusterOptions, "cluster [ZONES...]"),
        (ForwardOptions, "forward FROM TO..."),
        (CacheOptions, "cache [TTL] [ZONES...]"),
        (HealthOptions, "health [[HOST]:PORT]"),
        (HostsOptions, "hosts"),
    ],
)
def test_the_synopsis_of_a_directive(options_type: type[Options], line: str) -> None:
    assert synopsis(options_type) == line


def test_a_field_without_a_kind_is_our_mistake() -> None:
    class Wrong(Options, directive="wrong"):
        ttl: Annotated[int, "a sentence alone"] = 5

    with pytest.raises(TypeError, match="ttl has no kind of value"):
        describe(Wrong)


# --- Durations and selectors ---


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("5s", 5), ("300ms", 0.3), ("1.5h", 5400), ("2h45m", 9900), (".5s", 0.5), ("1.s", 1), ("-1m", -60)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(Token(text)) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "5", "s", "5 s", "5sec", "1s2", "--1s", ".s", "1d", "9" * 400 + "h"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(RefusalError):
        parse_duration(Token(text))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (5.0, "5s"), (0.3, "300ms"), (90, "1m30s"), (3600, "1h"), (1.5, "1.5s"), (-2, "-2s")],
)
def test_durations_are_spelt_as_go_spells_them(seconds: float, text: str) -> None:
    assert spell_duration(seconds) == text


@given(st.integers(0, 10**9).map(lambda milliseconds: milliseconds / 1000))
def test_a_spelt_duration_reads_the_same(seconds: float) -> None:
    assert parse_duration(Token(spell_duration(seconds))) == pytest.approx(seconds)


LABELS = {"app": "web", "tier": "front", "empty": ""}


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("", True),
        ("app", True),
        ("!app", False),
        ("absent", False),
        ("! absent", True),
        ("app=web", True),
        ("app == web", True),
        ("app=db", False),
        ("app!=web", False),
        ("absent!=web", True),
        ("app in (db, web)", True),
        ("app in (db)", False),
        ("app notin (db)", True),
        ("absent notin (db)", True),
        ("absent in (db)", False),
        ("app=web,tier=front", True),
        ("app=web , tier=back", False),
        ("empty=", True),
        ("app=,tier", False),
        ("empty in (,)", True),
        ("in in (a)", False),
        ("example.com/app!=x", True),
    ],
)
def test_selectors(text: str, holds: bool) -> None:
    assert parse_selector(text).matches(LABELS) is holds


@pytest.mark.parametrize(
    "text",
    [
        *(
            ",",
            "a,",
            "a=b,",
            "a b",
            "a=b c",
            "a in",
            "a in b",
            "a in (",
            "a in ()",
            "a in (b",
            "a in (b c)",
            "a in ((b)",
        ),
        *("a>1", "=b", "!", "!!a", "!a=b", "a=-", "-a", "a/b/c", "UPPER.com/a", "a" * 64, "a=" + "b" * 64, "é=1"),
    ],
)
def test_what_is_no_selector_is_refused_in_a_sentence(text: str) -> None:
    with pytest.raises(ValueError, match="label"):
        parse_selector(text)


@given(st.text(alphabet="ab=!,() inot<>", max_size=20))
def test_a_selector_means_its_text(text: str) -> None:
    try:
        found = parse_selector(text)
    except ValueError:
        return
    assert parse_selector(str(found)) == found


# --- Whatever stands in the block ---

LINES = st.lists(
    st.lists(
        st.sampled_from(
            [
                "ttl",
                "pods",
                "5",
                "30s",
                "a.b",
                "insecure",
                "zones",
                "{",
                "}",
                "\n",
                '""',
                "fallthrough",
                "labels",
                "x=y",
            ]
        ),
        max_size=6,
    ).map(" ".join),
    max_size=6,
).map("\n".join)


@given(st.sampled_from(ALL), LINES)
def test_any_block_gives_options_or_mistakes_with_places(options_type: type[Options], text: str) -> None:
    token = Token(options_type.directive, "Corefile", 1, 1)
    words_of = [Token(each, "Corefile", 2, 1) for each in text.split()]
    body = [Directive(each, words_of[place + 1 : place + 3]) for place, each in enumerate(words_of)]
    problems: list[Problem] = []
    options = parse_options(options_type, [Directive(token, words_of[:2], body)], problems)
    assert (options is None) == any(not problem.warning for problem in problems)
    assert all(problem.place is not None and problem.message for problem in problems)
