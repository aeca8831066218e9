"""A directive as a typed object: one class, one annotated field per option, every mistake told at once.

Knows the tree of `corefile.py` and no plugin. A plugin declares what it takes:

    class CacheOptions(Options, directive="cache", once=True):
        ttl: Annotated[int, argument(number(1, unit="seconds")), "no answer is kept for longer"] = 3600
        servfail: Annotated[float, duration(0, 300), "how long a SERVFAIL is kept"] = 5.0
        disable: Annotated[tuple[str, ...], choices("success", "denial"), repeatable, "what isn't kept"] = ()

and gets it with `parse_options(CacheOptions, directives, problems)`. An option is named as its field, less a final
underscore. Kinds of value stand below, then what a field may add, then the parser.
"""

from __future__ import annotations

import contextlib
import dataclasses
import ipaddress
import math
import re
import sys
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, TypeVar, cast, dataclass_transform

import msgspec

from kdns.corefile import Directive, Token, normalize_zone, split_port
from kdns.errors import Problem, nearest

# --- The directives of CoreDNS 1.14.7, in the order of its chain ---

COREDNS_DIRECTIVES: tuple[str, ...] = tuple(
    """
    root metadata geoip cancel proxyproto quic grpc_server https https3 timeouts multisocket reload nsid bufsize bind
    debug trace ready health pprof shed prometheus errors log dnstap local dns64 any chaos loadbalance tsig rewrite
    autopath acl cache header dnssec tls minimal template transfer hosts route53 azure clouddns k8s_external
    kubernetes file auto secondary etcd loop forward grpc erratic whoami on sign view nomad
    """.split()  # noqa: SIM905
)

REMOVED_DIRECTIVES: Mapping[str, str] = {
    "proxy": "`forward . ADDRESS` takes its place",
    "federation": "it has no successor: delete the line",
    "reverse": "`template` takes its place",
}

_ELSEWHERE = "`forward ZONE ADDRESS` asks a server that has the zone"
_IN_FRONT = "delete it: clients are served over UDP and TCP, and a proxy in front can speak to them in another way"

# The directives of CoreDNS 1.14.7 that kdns can't honour yet, and what their user can do without them. None is left out
# in silence: with most of them answers would be others.
INSTEAD: Mapping[str, str] = {
    "metadata": "delete it: `log` shows `-` for what it would have gathered",
    "geoip": "delete it: it only gathers metadata",
    "cancel": "delete it: what is forwarded has 5 seconds in all anyway",
    "proxyproto": "delete it, and let the load balancer keep the client's address without the PROXY protocol",
    "quic": _IN_FRONT,
    "grpc_server": _IN_FRONT,
    "https": _IN_FRONT,
    "https3": _IN_FRONT,
    "tls": _IN_FRONT,
    "timeouts": "delete it: connections have bounds of their own, which docs/design.md tells",
    "shed": "delete it: `max_concurrent` of `forward` bounds the queries that wait",
    "dnstap": "`log` tells of queries, and `prometheus` counts them",
    "tsig": "delete it: there are no transfers that it would sign",
    "autopath": "delete it: clients go through their search paths, with more queries",
    "dnssec": "`forward ZONE ADDRESS` asks a server that signs the zone",
    "transfer": "delete it: transfers are refused",
    "route53": _ELSEWHERE,
    "azure": _ELSEWHERE,
    "clouddns": _ELSEWHERE,
    "k8s_external": "external-dns gives the names of LoadBalancers to a server that has the zone",
    "file": f"{_ELSEWHERE}; `hosts` has single names",
    "auto": f"{_ELSEWHERE}; `hosts` has single names",
    "secondary": _ELSEWHERE,
    "etcd": _ELSEWHERE,
    "nomad": _ELSEWHERE,
    "sign": _ELSEWHERE,
    "grpc": "`forward` asks upstreams over UDP, TCP and TLS",
    "erratic": "delete it: it is for tests",
    "on": "run the command outside of the server, such as in an init container",
    "view": "server blocks with different `bind` addresses answer different clients",
}

# Options of CoreDNS 1.14.7 that kdns would have to honour and can't yet: to leave them out would change answers.
OPTIONS_TO_COME: Mapping[str, tuple[str, ...]] = {
    "kubernetes": ("multicluster", "zonal"),
    "forward": ("doh_method", "resolver"),
    "template": ("var",),
}

REMOVED_EVERYWHERE: Mapping[str, str] = {
    "upstream": "kdns resolves such names through itself: delete the line",
}


def unknown_directive(token: Token, known: Sequence[str]) -> Problem:
    """The problem of a directive that isn't among `known`, the ones kdns has: removed, to come, or misspelt."""
    name = token.text
    if name in REMOVED_DIRECTIVES:
        return Problem(f"`{name}` was removed from CoreDNS", token.place(), hint=REMOVED_DIRECTIVES[name])
    if name in COREDNS_DIRECTIVES:
        return Problem(f"`{name}` isn't in kdns yet", token.place(), hint=INSTEAD.get(name, ""))
    meant = nearest(name, known)
    return Problem(f"there is no directive `{name}`", token.place(), hint=f"did you mean `{meant}`?" if meant else "")


# --- Kinds of value ---


class RefusalError(ValueError):
    """A word that a kind of value doesn't take; `expected` is what it takes, for the drawing."""

    def __init__(self, token: Token, expected: str, hint: str = "") -> None:
        super().__init__(f"expected {expected}, found `{token.text}`")
        self.token = token
        self.expected = f"{expected}, found `{token.text}`"
        self.hint = hint


class WordError(ValueError):
    """A word that is wrong in a way of its own, told in a whole sentence."""

    def __init__(self, token: Token, sentence: object) -> None:
        super().__init__(str(sentence))
        self.token = token


class SeveralError(ValueError):
    """Several words of one line that are wrong, each in its own way."""

    def __init__(self, errors: Sequence[ValueError]) -> None:
        super().__init__("; ".join(map(str, errors)))
        self.errors = tuple(errors)


@contextlib.contextmanager
def collected(errors: list[ValueError]) -> Iterator[None]:
    """Note a ValueError and go on, for who reads several words and raises `SeveralError` at the end."""
    try:
        yield
    except ValueError as error:
        errors.append(error)


def _show(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


@dataclass(frozen=True)
class Kind:
    """How the words after an option become its value.

    `syntax` stands in the reference, `takes` ends the sentence "`ttl` takes …". `read` gets as many words as `least`
    and `most` allow; it raises RefusalError, WordError, or ValueError with a whole sentence. `show` spells a default.
    With `fills`, the parts of the default stand in for those that a shorter value leaves out.
    """

    syntax: str
    takes: str
    read: Callable[[Sequence[Token]], Any]
    least: int = 1
    most: int | None = 1
    show: Callable[[Any], str] = _show
    fills: bool = False

    def called(self, syntax: str) -> Kind:
        """The same kind under another name in the reference."""
        return dataclasses.replace(self, syntax=syntax)

    def usage(self) -> str:
        """Its place in a synopsis: `TTL`, `[TTL]`, `ZONES...`, `[ZONES...]`."""
        return _bracketed(self.syntax) if self.least == 0 and self.syntax else self.syntax


def _bracketed(syntax: str) -> str:
    return syntax if re.fullmatch(r"\[.*\]", syntax) else f"[{syntax}]"


def number(least: int | None = None, most: int | None = None, *, unit: str = "") -> Kind:
    """A whole number in a range; the unit is named in the error and in the reference."""

    def read(tokens: Sequence[Token]) -> int:
        text = tokens[0].text
        # 18 digits: Go's int holds no more, and int() is slow on thousands.
        value = int(text) if re.fullmatch(r"[+-]?[0-9]{1,18}", text) else None
        if value is None or not _within(value, least, most):
            raise RefusalError(tokens[0], _range(least, most) or "a whole number")
        return value

    return Kind(unit.upper() or "NUMBER", f"a number of {unit}" if unit else "a number", read)


def fraction(least: float | None = None, most: float | None = None) -> Kind:
    """A number that may have decimals, as a float."""

    def read(tokens: Sequence[Token]) -> float:
        text = tokens[0].text
        plain = re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?", text)
        value = float(text) if plain else math.nan
        if not math.isfinite(value) or not _within(value, least, most):
            raise RefusalError(tokens[0], _range(least, most) or "a number")
        return value

    return Kind("NUMBER", "a number", read, show=lambda value: f"{value:g}")


def duration(least: float = 0.0, most: float | None = None) -> Kind:
    """A duration as Go writes it, such as `300ms` or `1h30m`, in seconds; `least` and `most` too."""

    def read(tokens: Sequence[Token]) -> float:
        seconds = parse_duration(tokens[0])
        if not _within(seconds, least, most):
            raise RefusalError(tokens[0], _range(least, most, spell_duration))
        return seconds

    return Kind("DURATION", "a duration", read, show=spell_duration)


def choice(*names: str) -> Kind:
    """One of a few words."""
    return Kind("|".join(names), _one_of(names), lambda tokens: _chosen(tokens[0], names))


def choices(*names: str, at_least: int = 1) -> Kind:
    """Some of a few words, as a tuple."""

    def read(tokens: Sequence[Token]) -> tuple[str, ...]:
        return tuple(_chosen(token, names) for token in tokens)

    return Kind(f"{'|'.join(names)}...", f"{_one_of(names)}, or several of them", read, at_least, None)


def flag() -> Kind:
    """An option that is there or not: a bool."""
    return Kind("", "no value", lambda tokens: True, 0, 0, lambda value: "on" if value else "off")


def word(syntax: str = "WORD", takes: str = "one word") -> Kind:
    """Any one word, as text."""
    return Kind(syntax, takes, lambda tokens: tokens[0].text)


def words(syntax: str = "WORD...", *, at_least: int = 1, at_most: int | None = None) -> Kind:
    """Any words, as a tuple of texts."""
    takes = f"at least {_count(at_least)}" if at_least else "words"
    return Kind(syntax, takes, lambda tokens: tuple(token.text for token in tokens), at_least, at_most)


def zone(syntax: str = "ZONE") -> Kind:
    """One zone, as a tuple of names: a CIDR may need several reverse zones."""
    return dataclasses.replace(zones(at_least=1), syntax=syntax, takes="a zone", most=1)


def zones(*, at_least: int = 0, none: tuple[str, ...] = ()) -> Kind:
    """Zones as a tuple of lower-case names with final dots; `none` is the value where the option stands alone."""

    def read(tokens: Sequence[Token]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for token in tokens for name in _zone_names(token))) or none

    takes = "at least one zone" if at_least else "zones"
    return Kind("ZONES...", takes, read, at_least, None)


def _zone_names(token: Token) -> list[str]:
    try:
        # CoreDNS takes a port here too, and drops it.
        return normalize_zone(split_port(token.text)[0])
    except ValueError as error:
        raise WordError(token, error) from None


class Address(msgspec.Struct, frozen=True):
    """Where something listens; an empty host is all addresses."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def address(default_port: int | None = None) -> Kind:
    """`HOST:PORT`, `[IPv6]:PORT` or `:PORT`; without a port only where a default is given."""

    def read(tokens: Sequence[Token]) -> Address:
        text = tokens[0].text
        found = re.fullmatch(r"(?:\[([^\[\]]*)\]|([^:\[\]]*)):([0-9]{1,5})", text)
        if found is None and default_port is not None and text and not re.search(r"[:\[\]]", text):
            return Address(text, default_port)
        if found is None or int(found[3]) > 65535:
            hint = f"write `:{text}` for all addresses" if re.fullmatch("[0-9]{1,5}", text) else ""
            raise RefusalError(tokens[0], "HOST:PORT or :PORT", hint)
        return Address(found[1] or found[2] or "", int(found[3]))

    return Kind("[HOST]:PORT", "an address", read)


def wrong_ranges(texts: Iterable[str]) -> Iterator[tuple[str, str, str]]:
    """Those of some CIDRs from which no addresses can be given, one a family: each with a sentence and a hint."""
    first: dict[int, str] = {}
    for text in texts:
        try:
            interface = ipaddress.ip_interface(text)
        except ValueError:
            interface = None
        if interface is None or "/" not in text:
            yield text, f"`{text}` is no range of addresses", "one is written as `10.96.0.0/12` or `fd00:96::/112`"
        elif interface.ip != interface.network.network_address:
            yield text, f"`{text}` is an address within a range", f"the range is `{interface.network}`"
        elif interface.version in first:
            before = first[interface.version]
            yield text, f"`{text}` is a second range of IPv{interface.version}", f"there is one a family: `{before}`"
        else:
            first[interface.version] = text


def selector() -> Kind:
    """A label selector of Kubernetes, which may be several words."""

    def read(tokens: Sequence[Token]) -> Selector:
        return parse_selector(" ".join(token.text for token in tokens))

    return Kind("SELECTOR...", "a label selector", read, 1, None)


def several(*kinds: Kind, at_least: int = 1) -> Kind:
    """One word of each kind in turn, as a tuple; parts of the default stand for those left out at its end."""

    def read(tokens: Sequence[Token]) -> tuple[Any, ...]:
        return tuple(kind.read([token]) for kind, token in zip(kinds, tokens, strict=False))

    optional = kinds[at_least:]
    first = " ".join(kind.syntax for kind in kinds[:at_least])
    syntax = first + "".join(f" [{kind.syntax}" for kind in optional) + "]" * len(optional)
    return Kind(syntax, f"`{syntax}`", read, at_least, len(kinds), fills=True)


def custom(
    read: Callable[[Sequence[Token]], Any],
    syntax: str,
    takes: str,
    *,
    least: int = 1,
    most: int | None = 1,
    show: Callable[[Any], str] = _show,
) -> Kind:
    """A kind of a plugin's own; `read` raises RefusalError, or ValueError with a sentence."""
    return Kind(syntax, takes, read, least, most, show)


def _within(value: float, least: float | None, most: float | None) -> bool:
    return (least is None or value >= least) and (most is None or value <= most)


def _spell_number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


def _range(least: float | None, most: float | None, spell: Callable[[float], str] = _spell_number) -> str:
    if least is not None and most is not None:
        return f"{spell(least)} to {spell(most)}"
    if least is not None:
        return f"{spell(least)} or more"
    return f"{spell(most)} or less" if most is not None else ""


def _one_of(names: Sequence[str]) -> str:
    quoted = [f"`{name}`" for name in names]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} or {quoted[-1]}"


def _chosen(token: Token, names: Sequence[str]) -> str:
    if token.text in names:
        return token.text
    meant = nearest(token.text, names)
    expected = "one of these" if len(names) > 1 else _one_of(names)
    raise RefusalError(token, expected, f"did you mean `{meant}`?" if meant else "")


# --- Durations ---

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)")
# As far as Go's int64 of nanoseconds goes, a little less than 293 years.
_LONGEST = 2**63 / 1e9


def parse_duration(token: Token) -> float:
    """Seconds of a duration in Go's notation: `300ms`, `1h30m`, `0`. Raises RefusalError."""
    text = token.text
    unsigned = text.lstrip("+-") if text[:2] not in ("++", "--", "+-", "-+") else ""
    if unsigned == "0":
        return 0.0
    parts = list(_PART.finditer(unsigned))
    if not parts or "".join(part[0] for part in parts) != unsigned:
        hint = f"write `{text}s`" if re.fullmatch(r"[0-9]+", text) else ""
        raise RefusalError(token, "a number with a unit, such as `5s`, `300ms` or `1h30m`", hint)
    seconds = sum(float(part[1]) * _UNITS[part[2]] for part in parts)
    if seconds >= _LONGEST:
        raise RefusalError(token, "less than 292 years")
    return -seconds if text.startswith("-") else seconds


def spell_duration(seconds: float) -> str:
    """The shortest spelling in Go's notation, to the nanosecond."""
    if seconds < 0:
        return f"-{spell_duration(-seconds)}"
    if seconds < 1:
        units = ((1e-3, "ms"), (1e-6, "us"), (1e-9, "ns"))
        size, unit = next((unit for unit in units if seconds >= unit[0]), (1.0, "s"))
        return f"{round(seconds / size, 6):g}{unit}"
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(int(minutes), 60)
    tail = f"{round(rest, 9)!r}".removesuffix(".0") + "s"
    return (f"{hours}h" if hours else "") + (f"{minutes}m" if minutes else "") + (tail if rest else "")


# --- Label selectors ---


class Requirement(msgspec.Struct, frozen=True):
    """One condition on one label; without values it asks whether the label is there."""

    key: str
    wanted: bool
    values: frozenset[str] | None = None

    def holds(self, labels: Mapping[str, str]) -> bool:
        """Whether labels meet it; a missing label meets every negative condition, as in Kubernetes."""
        if self.values is None:
            return (self.key in labels) is self.wanted
        return (self.key in labels and labels[self.key] in self.values) is self.wanted


class Selector(msgspec.Struct, frozen=True):
    """A label selector: its text as Kubernetes takes it, and what it asks for. Without conditions it matches all."""

    text: str = ""
    requirements: tuple[Requirement, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether labels meet all conditions."""
        return all(requirement.holds(labels) for requirement in self.requirements)

    def __str__(self) -> str:
        return self.text


_SELECTOR_WORD = re.compile(r"\s*(==|!=|[=!,()<>]|[^\s=!,()<>]+)")
_LABEL_VALUE = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?")
_LABEL_PREFIX = re.compile(r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]*[a-z0-9])?)*")


def parse_selector(text: str) -> Selector:
    """A selector such as `app=dns,tier in (web, db),!legacy`. Raises ValueError with a sentence.

    Law: the Kubernetes label selector, equality-based and set-based; `<` and `>` belong to node selectors.
    """
    found = _SELECTOR_WORD.findall(text.rstrip())
    if not found:
        return Selector()
    rest = iter([*found, ""])
    requirements: list[Requirement] = []
    separator = ","
    while separator == ",":
        requirement, separator = _requirement(rest)
        requirements.append(requirement)
    if separator:
        raise ValueError(f"a label selector has a comma between two conditions, not `{separator}`")
    return Selector(" ".join(text.split()), tuple(requirements))


def _requirement(rest: Iterator[str]) -> tuple[Requirement, str]:
    """The next condition, and the word after it."""
    key = next(rest)
    wanted = key != "!"
    key = _label_key(key if wanted else next(rest, ""))
    operator = next(rest, "")
    if operator in ("", ",") or not wanted:
        return Requirement(key, wanted), operator
    if operator in ("=", "==", "!="):
        value = next(rest, "")
        absent = value in ("", ",")
        requirement = Requirement(key, operator != "!=", frozenset({"" if absent else _label_value(value)}))
        return requirement, value if absent else next(rest, "")
    if operator in ("in", "notin"):
        return Requirement(key, operator == "in", _label_set(operator, rest)), next(rest, "")
    raise ValueError(f"`{operator}` isn't an operator of label selectors: they are =, ==, !=, in and notin")


def _label_set(operator: str, rest: Iterator[str]) -> frozenset[str]:
    if next(rest, "") != "(":
        raise ValueError(f"`{operator}` in a label selector is followed by values in parentheses")
    values: list[str] = []
    value = ""
    commas = 0
    for part in rest:
        if part == ")" and (value or commas):
            return frozenset([*values, value])
        if part == ",":
            values.append(value)
            value = ""
            commas += 1
        elif value or not part or part in "()=!<>" or part in ("==", "!="):
            break
        else:
            value = _label_value(part)
    raise ValueError(f"`{operator}` in a label selector takes values with commas between them, in parentheses")


def _label_key(text: str) -> str:
    prefix, slash, name = text.rpartition("/")
    good_prefix = not slash or (len(prefix) <= 253 and _LABEL_PREFIX.fullmatch(prefix))
    if not name or not _LABEL_VALUE.fullmatch(name) or not good_prefix:
        raise ValueError(f"`{text}` isn't the name of a label")
    return text


def _label_value(text: str) -> str:
    if not _LABEL_VALUE.fullmatch(text):
        raise ValueError(f"`{text}` isn't the value of a label")
    return text


# --- What a field may add to its kind ---


@dataclass(frozen=True)
class Mark:
    """What happens when an option is written twice; without a mark the last one counts and a warning says so."""

    name: str


once = Mark("once")
"""A second use is a mistake."""
repeatable = Mark("repeatable")
"""Values of all uses are put together; the field is a tuple."""


@dataclass(frozen=True)
class WithoutEffect:
    """The option is read and does nothing; a warning with the reason says so at start."""

    reason: str


@dataclass(frozen=True)
class Argument:
    """The value stands on the directive's own line, in the order of the fields.

    With `fits`, an argument that may be left out takes the next word only if that holds for it.
    """

    kind: Kind
    fits: Callable[[Token], bool] | None = None


@dataclass(frozen=True)
class Lines:
    """The lines of the block with one of these names (without any: all that are no option), in order, as a tuple.

    `read` gets the whole line as a Directive; it raises RefusalError, or ValueError with a sentence.
    """

    read: Callable[[Directive], Any]
    names: tuple[str, ...] = ()
    syntax: str = ""


def without_effect(reason: str) -> WithoutEffect:
    """An option that kdns takes from CoreDNS and doesn't honour; the reason is a sentence without a full stop."""
    return WithoutEffect(reason)


def argument(kind: Kind, fits: Callable[[Token], bool] | None = None) -> Argument:
    """The value stands on the directive's own line; see Argument."""
    return Argument(kind, fits)


def zone_arguments() -> Argument:
    """`[ZONES...]` on the directive's own line."""
    return Argument(zones())


def lines(read: Callable[[Directive], Any], *names: str, syntax: str = "") -> Lines:
    """Lines of the block that a plugin reads by itself; see Lines."""
    return Lines(read, names, syntax)


def is_number(token: Token) -> bool:
    """For `fits`: the word is a whole number."""
    return re.fullmatch(r"[+-]?[0-9]+", token.text) is not None


class Fault(NamedTuple):
    """A mistake that is seen only when the directive has been read: which option, or "", and a sentence.

    It is drawn at `value`, a word of that option. It is none where one of `besides`, the other options that it depends
    on, could not be read.
    """

    option: str
    sentence: str
    value: str = ""
    hint: str = ""
    besides: tuple[str, ...] = ()


# --- Options, and the table that they are read from ---


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(field,))
class Options:
    """The parent of every directive's options; a child becomes a frozen dataclass with fields by name only.

    `once`: a second use in a block is a mistake, else the uses are put together. `exclusive`: options of which one
    at most may be given. `removed`: options of older CoreDNS, and what to do instead.
    """

    directive: ClassVar[str] = ""
    once: ClassVar[bool] = False
    exclusive: ClassVar[tuple[tuple[str, ...], ...]] = ()
    removed: ClassVar[Mapping[str, str]] = {}

    def __init_subclass__(
        cls,
        *,
        directive: str,
        once: bool = False,
        exclusive: Iterable[tuple[str, ...]] = (),
        removed: Mapping[str, str] | None = None,
    ) -> None:
        super().__init_subclass__()
        cls.directive = directive
        cls.once = once
        cls.exclusive = tuple(exclusive)
        cls.removed = {**REMOVED_EVERYWHERE, **(removed or {})}
        dataclass(frozen=True, kw_only=True)(cls)

    def faults(self) -> Iterable[Fault]:
        """Mistakes that no single word makes. An option that could not be read has its default here."""
        return ()


@dataclass(frozen=True)
class Row:
    """One field of an Options class, as the parser needs it."""

    field_name: str
    name: str
    kind: Kind
    sentence: str
    is_argument: bool = False
    fits: Callable[[Token], bool] | None = None
    lines: Lines | None = None
    mark: Mark | None = None
    without_effect: str = ""
    required: bool = False
    default: Any = None

    def usage(self) -> str:
        """How it is written."""
        return self.kind.usage() if self.is_argument else f"{self.name} {self.kind.usage()}".rstrip()

    def shown_default(self) -> str:
        """The default as it would be written, or an empty string if there is none."""
        if self.required or self.default is None or self.default in ((), ""):
            return ""
        return self.kind.show(self.default)


def table(options_type: type[Options]) -> tuple[Row, ...]:
    """The rows of an Options class in the order of its fields."""
    # The module's names alone: a field called `zones` must not hide the kind of that name from the fields after it.
    names = globals() | vars(sys.modules[options_type.__module__])
    hints = typing.get_type_hints(options_type, names, {}, include_extras=True)
    return tuple(_row(declared, hints[declared.name]) for declared in dataclasses.fields(cast(Any, options_type)))


def _row(declared: dataclasses.Field[Any], hint: Any) -> Row:
    notes = getattr(hint, "__metadata__", ())

    def note(kind: type[T]) -> T | None:
        return next((found for found in notes if isinstance(found, kind)), None)

    as_argument, as_lines, effect = note(Argument), note(Lines), note(WithoutEffect)
    name = declared.name.removesuffix("_")
    kind = as_argument.kind if as_argument else note(Kind)
    if as_lines:
        kind = Kind(as_lines.syntax, "a line", lambda tokens: None)
    if kind is None:
        raise TypeError(f"the field {declared.name} has no kind of value in its annotation")
    default = declared.default
    if declared.default_factory is not dataclasses.MISSING:
        default = declared.default_factory()
    required = default is dataclasses.MISSING
    return Row(
        field_name=declared.name,
        name=name,
        kind=kind,
        sentence=note(str) or "",
        is_argument=as_argument is not None,
        fits=as_argument.fits if as_argument else None,
        lines=as_lines,
        mark=note(Mark),
        without_effect=effect.reason if effect else "",
        required=required,
        default=None if required else default,
    )


class Described(msgspec.Struct, frozen=True):
    """A line of the reference."""

    syntax: str
    default: str
    sentence: str


def describe(options_type: type[Options]) -> list[Described]:
    """The reference of a directive: its arguments, then its options."""
    rows = sorted(table(options_type), key=lambda row: not row.is_argument)
    return [
        Described(
            row.kind.syntax if row.lines else (_optional(row) if row.is_argument else row.usage()),
            row.shown_default(),
            row.sentence + (f" (no effect: {row.without_effect})" if row.without_effect else ""),
        )
        for row in rows
    ]


def synopsis(options_type: type[Options]) -> str:
    """The directive's own line: `cache [TTL] [ZONES...]`."""
    return " ".join([options_type.directive, *(_optional(row) for row in table(options_type) if row.is_argument)])


def _optional(row: Row) -> str:
    usage = row.kind.usage()
    return usage if row.required else _bracketed(usage)


# --- Reading ---

T = TypeVar("T")
AnyOptions = TypeVar("AnyOptions", bound=Options)


def parse_options(
    options_type: type[AnyOptions], directives: Sequence[Directive], problems: list[Problem]
) -> AnyOptions | None:
    """The options of all uses of one directive in one block; None if there was a mistake.

    Every mistake and warning is added to `problems`.
    """
    reading = _Reading(options_type, directives)
    reading.read()
    problems += reading.problems
    if any(not problem.warning for problem in reading.problems):
        return None
    return cast(Callable[..., AnyOptions], options_type)(**reading.values)


def parse_each(
    options_type: type[AnyOptions], directives: Sequence[Directive], problems: list[Problem]
) -> list[AnyOptions]:
    """The options of each use by itself, for a directive whose uses are separate rules, such as `forward`."""
    found = [parse_options(options_type, [directive], problems) for directive in directives]
    return [options for options in found if options is not None]


class _Reading:
    """One run over the uses of a directive."""

    def __init__(self, options_type: type[Options], directives: Sequence[Directive]) -> None:
        self.options_type = options_type
        self.directives = directives
        self.rows = table(options_type)
        self.options = {row.name: row for row in self.rows if not row.is_argument and row.lines is None}
        self.lines: dict[str, Row] = {}
        self.other_lines: Row | None = None
        for row in self.rows:
            if row.lines is not None and row.lines.names:
                self.lines |= dict.fromkeys(row.lines.names, row)
            elif row.lines is not None:
                self.other_lines = row
        self.values: dict[str, Any] = {}
        # Where each option was given last.
        self.given: dict[str, Token] = {}
        self.words: dict[str, list[Token]] = {}
        self.unread: set[str] = set()
        self.problems: list[Problem] = []

    def read(self) -> None:
        if self.options_type.once:
            for again in self.directives[1:]:
                first = self.directives[0].name
                message = f"`{again.name.text}` can only be used once in a server block"
                self._fault(again.name, message, hint=f"the first is in line {first.line} of {first.file}")
        for directive in self.directives:
            if self.options_type.once:
                self.given = {}
            self._arguments(directive)
            for line in directive.body or ():
                self._line(directive, line)
        self._together()

    # The directive's own line.

    def _arguments(self, directive: Directive) -> None:
        arguments = [row for row in self.rows if row.is_argument]
        left = list(directive.args)
        before = len(self.problems)
        for place, row in enumerate(arguments):
            owed = sum(later.kind.least for later in arguments[place + 1 :] if later.required)
            count = max(row.kind.least if row.required else 0, len(left) - owed)
            if row.kind.most is not None:
                count = min(count, row.kind.most)
            if row.fits is not None and left and not row.fits(left[0]):
                count = 0
            taken, left = left[:count], left[count:]
            if taken:
                self._argument(directive, row, taken)
            elif row.required and row.field_name not in self.values:
                message = f"`{directive.name.text}` needs {row.kind.syntax.removesuffix('...')}"
                self._fault(directive.name, message, expected=f"`{synopsis(self.options_type)}`")
        if left and len(self.problems) == before:
            self._surplus(directive, left, arguments)

    def _argument(self, directive: Directive, row: Row, taken: Sequence[Token]) -> None:
        subject = f"`{directive.name.text}`"
        if sum(row.is_argument for row in self.rows) > 1:
            subject = f"{row.kind.syntax.removesuffix('...')} of {subject}"
        if len(taken) < row.kind.least:
            expected = f"`{synopsis(self.options_type)}`"
            self.unread.add(row.name)
            self._fault(directive.name, f"{subject} takes {row.kind.takes}", expected=expected)
            return
        if not self._first_use(row, taken[0]):
            return
        default = row.shown_default()
        self._value(row, subject, taken, f"the default is `{default}`" if default else "")

    def _surplus(self, directive: Directive, left: Sequence[Token], arguments: Sequence[Row]) -> None:
        name = directive.name.text
        if arguments:
            message = f"`{name}` takes no more than that"
            self._fault(left[0], message, expected=f"`{synopsis(self.options_type)}`, found `{left[0].text}`")
            return
        known = left[0].text in self.options
        hint = f"options stand in a block: `{name} {{ {left[0].text} … }}`" if known else ""
        self._fault(left[0], f"`{name}` takes no arguments", expected=f"nothing, found `{left[0].text}`", hint=hint)

    # A line of its block.

    def _line(self, directive: Directive, line: Directive) -> None:
        name = line.name.text
        row = self.options.get(name)
        if row is not None:
            self._option(row, line)
        elif (of_plugin := self.lines.get(name, self.other_lines)) is not None:
            self._own_line(of_plugin, line)
        else:
            self._unknown(directive, line.name)

    def _option(self, row: Row, line: Directive) -> None:
        if line.body is not None:
            self._fault(line.name, f"`{row.name}` takes no block", expected=f"`{row.usage()}`")
            return
        if not self._counted(row, line):
            self.unread.add(row.name)
            return
        if not self._first_use(row, line.name):
            return
        default = row.shown_default() if row.kind.most != 0 else ""
        hint = f"the default is `{row.name} {default}`" if default else ""
        self._value(row, f"`{row.name}`", line.args or [line.name], hint, nothing=not line.args)

    def _first_use(self, row: Row, token: Token) -> bool:
        """Whether the value counts; says so where there are two."""
        before = self.given.get(row.name)
        self.given[row.name] = token
        if before is None or row.mark is repeatable:
            return True
        hint = f"the first is in line {before.line} of {before.file}"
        if row.mark is once:
            self._fault(token, f"`{token.text}` can only be given once", hint=hint)
            return False
        self._warn(token, f"`{token.text}` is given again, and this is what counts", hint=hint)
        return True

    def _counted(self, row: Row, line: Directive) -> bool:
        kind, count = row.kind, len(line.args)
        if count >= kind.least and (kind.most is None or count <= kind.most):
            return True
        surplus = line.args[kind.most] if kind.most is not None and count > kind.most else None
        hint = "options stand on lines of their own" if surplus and surplus.text in self.options else ""
        values = "nothing" if count == 0 else "1 value" if count == 1 else f"{count} values"
        expected = f"`{row.usage()}`, found {values}"
        self._fault(surplus or line.name, f"`{row.name}` takes {kind.takes}", expected=expected, hint=hint)
        return False

    def _own_line(self, row: Row, line: Directive) -> None:
        assert row.lines is not None
        try:
            value = row.lines.read(line)
        except ValueError as error:
            self.unread.add(row.name)
            self._refused(error, f"`{line.name.text}` can't be read", line.name)
        else:
            self.values[row.field_name] = (*self.values.get(row.field_name, ()), value)
        self.given[row.name] = line.name

    def _unknown(self, directive: Directive, token: Token) -> None:
        if token.text in self.options_type.removed:
            self._fault(token, f"`{token.text}` was removed from CoreDNS", hint=self.options_type.removed[token.text])
            return
        if token.text in OPTIONS_TO_COME.get(self.options_type.directive, ()):
            self._fault(token, f"`{token.text}` isn't in kdns yet")
            return
        known = [*self.options, *self.lines]
        message = f"`{directive.name.text}` has no option `{token.text}`"
        meant = nearest(token.text, known)
        if meant:
            hint = f"did you mean `{meant}`?"
        else:
            hint = f"it takes {', '.join(f'`{name}`' for name in known)}" if known else "it has no options"
        self._fault(token, message, hint=hint)

    # Values.

    def _value(self, row: Row, subject: str, tokens: Sequence[Token], hint: str, nothing: bool = False) -> None:
        self.words.setdefault(row.name, []).extend(tokens)
        try:
            value = row.kind.read([] if nothing else tokens)
        except ValueError as error:
            self.unread.add(row.name)
            self._refused(error, f"{subject} takes {row.kind.takes}", tokens[0], f"{subject}: ", hint)
        else:
            if row.without_effect:
                self._warn(self.given[row.name], f"{subject} has no effect", hint=row.without_effect)
            if row.kind.fills and isinstance(row.default, tuple):
                value += row.default[len(value) :]
            if row.mark is repeatable:
                value = (*self.values.get(row.field_name, ()), *value)
            self.values[row.field_name] = value

    def _refused(self, error: ValueError, message: str, token: Token, before: str = "", hint: str = "") -> None:
        """Tell what the reader of a value said: `message` where it only names what it expected."""
        for each in error.errors if isinstance(error, SeveralError) else (error,):
            if isinstance(each, RefusalError):
                self._fault(each.token, message, expected=each.expected, hint=each.hint or hint)
            else:
                self._fault(each.token if isinstance(each, WordError) else token, f"{before}{each}", hint=hint)

    def _together(self) -> None:
        """What can be seen only when all has been read."""
        start = self.directives[0].name if self.directives else Token(self.options_type.directive)
        for names in self.options_type.exclusive:
            both = [name for name in names if name in self.given]
            if len(both) > 1:
                message = " and ".join(f"`{name}`" for name in both) + " cannot both be set"
                hint = f"`{both[0]}` stands in line {self.given[both[0]].line}"
                self._fault(self.given[both[-1]], message, hint=hint)
        for row in self.rows:
            if row.required and not row.is_argument and row.name not in self.given:
                message = f"`{self.options_type.directive}` needs the option `{row.name}`"
                self._fault(start, message, expected=f"`{row.usage()}`")
        if any(row.required and row.field_name not in self.values for row in self.rows):
            return
        for fault in cast(Callable[..., Options], self.options_type)(**self.values).faults():
            if self.unread.isdisjoint((fault.option, *fault.besides)):
                words = self.words.get(fault.option, ())
                value = next((word for word in reversed(words) if word.text == fault.value), None)
                self._fault(value or self.given.get(fault.option, start), fault.sentence, hint=fault.hint)

    def _fault(self, token: Token, message: str, *, expected: str = "", hint: str = "") -> None:
        self.problems.append(Problem(message, token.place(), expected=expected, hint=hint))

    def _warn(self, token: Token, message: str, *, hint: str = "") -> None:
        self.problems.append(Problem(message, token.place(), hint=hint, warning=True))


def _count(number_of: int) -> str:
    return "one word" if number_of == 1 else f"{number_of} words"
