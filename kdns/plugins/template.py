"""`template`: records made of the question by a Go template.

The templates themselves are `gotemplate.py`'s, records as text `wire/presentation.py`'s; here is which use of the
directive answers. Law: docs/plugins/template.md, which is CoreDNS's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import msgspec

from kdns import metrics
from kdns.chain import Answer, Block, Next, Plugin, Request, failure
from kdns.corefile import Directive, Token
from kdns.errors import Problem, nearest, note
from kdns.gotemplate import (
    ExecutionError,
    Fields,
    Method,
    Shape,
    TemplateError,
    compile_template,
)
from kdns.gotemplate import (
    Template as Text,
)
from kdns.options import (
    Options,
    RefusalError,
    SeveralError,
    WordError,
    argument,
    collected,
    custom,
    parse_each,
    repeatable,
    without_effect,
    words,
    zone_arguments,
    zones,
)
from kdns.patterns import compile_pattern
from kdns.wire import names
from kdns.wire.presentation import parse_record
from kdns.wire.query import AA, AD, CD, QR, RD, TC, Query
from kdns.wire.records import (
    CLASS_ANY,
    CLASS_CH,
    CLASS_IN,
    Rcode,
    Record,
    Type,
    class_to_text,
    rcode_to_text,
    type_from_text,
    type_to_text,
)

_CLASSES = {"IN": CLASS_IN, "CH": CLASS_CH, "HS": 4, "ANY": CLASS_ANY}
SECTIONS = ("answer", "additional", "authority")
_ALIAS_FAILS = "`answer`: where the target of the alias fails, the answer is SERVFAIL, and not the alias alone"
# In the text of a template: what decides or repeats, and what stands for a text.
_CONTROL = re.compile(r"\{\{-?\s*(?:if|else|end|range|with)\b.*?\}\}", re.DOTALL)
_ACTION = re.compile(r"\{\{.*?\}\}", re.DOTALL)

_QUESTION: Shape = {"Name": {}, "Qtype": {}, "Qclass": {}}
_HEADER: Shape = {
    "Id": {},
    "Response": {},
    "Opcode": {},
    "Authoritative": {},
    "Truncated": {},
    "RecursionDesired": {},
    "RecursionAvailable": {},
    "Zero": {},
    "AuthenticatedData": {},
    "CheckingDisabled": {},
    "Rcode": {},
}
# What a template may ask for; below an empty shape there is nothing.
SHAPE: Shape = {
    "Zone": {},
    "Name": {},
    "Class": {},
    "Type": {},
    "Match": {},
    "Group": None,
    "Message": {**_HEADER, "Question": {}},
    "Question": _QUESTION,
    "Remote": {},
    "Meta": {},
}


class Written(msgspec.Struct, frozen=True):
    """A text as it is in the Corefile, ready to be filled in."""

    text: Text


class Extended(msgspec.Struct, frozen=True):
    """An extended error (RFC 8914)."""

    code: int
    text: str = ""


# --- Reading ---


def _read_class(tokens: Sequence[Token]) -> int:
    text = tokens[0].text.upper()
    if text not in _CLASSES:
        raise RefusalError(tokens[0], "`IN`, `CH`, `HS` or `ANY`")
    return _CLASSES[text]


def _read_type(tokens: Sequence[Token]) -> int:
    try:
        return type_from_text(tokens[0].text)
    except ValueError:
        raise RefusalError(tokens[0], "a type of records, such as `A`, or `ANY`") from None


def _read_patterns(tokens: Sequence[Token]) -> tuple[Any, ...]:
    found = []
    wrong: list[ValueError] = []
    for token in tokens:
        with collected(wrong):
            found.append(compile_pattern(token))
    if wrong:
        raise SeveralError(wrong)
    return tuple(found)


def _read_texts(tokens: Sequence[Token]) -> tuple[Written, ...]:
    found = []
    wrong: list[ValueError] = []
    for token in tokens:
        with collected(wrong):
            found.append(Written(_read_text(token)))
    if wrong:
        raise SeveralError(wrong)
    return tuple(found)


def _read_text(token: Token) -> Text:
    try:
        text = compile_template(token.text, SHAPE)
    except TemplateError as error:
        part = part_of(token, error.offset, error.length)
        sentence = f"{error}; {error.hint}" if error.hint else str(error)
        raise WordError(part, sentence) from None
    if text.is_fixed:
        try:
            parse_record(text.text)
        except ValueError as error:
            raise WordError(token, f"this is no record: {error}") from None
    return text


def part_of(token: Token, offset: int, length: int) -> Token:
    """A part of a word as a word of its own, for drawing; the whole where it can't be found in the source."""
    at = token.column - 1 + token.quoted
    for character in token.text[:offset]:
        at += 2 if token.quoted and token.source[at : at + 2] == '\\"' else 1
        if character == "\n":
            return token
    part = token.text[offset : offset + length]
    if token.source[at : at + len(part)] != part:
        return token
    return msgspec.structs.replace(token, text=part, column=at + 1, length=len(part) or 1)


def _read_rcode(tokens: Sequence[Token]) -> int:
    text = tokens[0].text.upper()
    if text not in Rcode.__members__:
        meant = nearest(text, list(Rcode.__members__))
        hint = f"did you mean `{meant}`?" if meant else ""
        raise RefusalError(tokens[0], "a response code, such as `NXDOMAIN`", hint)
    return Rcode[text]


def _read_extended(tokens: Sequence[Token]) -> Extended:
    text = tokens[0].text
    if not (text.isascii() and text.isdecimal() and len(text) < 6 and int(text) < 65536):
        raise RefusalError(tokens[0], "a number of RFC 8914, 0 to 65535")
    return Extended(int(text), tokens[1].text if len(tokens) > 1 else "")


def _aliases(directive: Directive) -> list[Directive]:
    """The lines of one use whose records are aliases, as far as the templates show it."""
    return [
        line
        for line in directive.body or ()
        if line.name.text == "answer" and any(_is_alias(token.text) for token in line.args)
    ]


def _is_alias(text: str) -> bool:
    # Behind the owner stand a TTL and a class, in any order and neither needed, then the type.
    fields = _ACTION.sub("{}", _CONTROL.sub("", text)).upper().split()[1:4]
    kind = next((each for each in fields if each not in _CLASSES and not each[0].isdigit() and "{" not in each), "")
    return kind == "CNAME"


_texts = custom(_read_texts, "RECORD...", "records, each as one word", most=None)


class TemplateOptions(Options, directive="template"):
    class_: Annotated[int, argument(custom(_read_class, "CLASS", "a class")), "the class that is answered, or `ANY`"]
    type_: Annotated[int, argument(custom(_read_type, "TYPE", "a type")), "the type that is answered, or `ANY`"]
    zones: Annotated[
        tuple[str, ...], zone_arguments(), "names in these zones are answered; those of the block unless given"
    ] = ()
    match: Annotated[
        tuple[Any, ...],
        custom(_read_patterns, "REGEXP...", "regular expressions", most=None),
        repeatable,
        "only names with one of these patterns",
    ] = ()
    answer: Annotated[tuple[Written, ...], _texts, repeatable, "records of the answer"] = ()
    additional: Annotated[tuple[Written, ...], _texts, repeatable, "additional records"] = ()
    authority: Annotated[tuple[Written, ...], _texts, repeatable, "records of the authority section"] = ()
    rcode: Annotated[
        int,
        custom(_read_rcode, "CODE", "a response code", show=rcode_to_text),
        "the response code",
    ] = Rcode.NOERROR
    ederror: Annotated[
        Extended | None,
        custom(_read_extended, "CODE [REASON]", "a number and perhaps a reason", most=2),
        "an extended error",
    ] = None
    fallthrough: Annotated[
        tuple[str, ...],
        zones(none=(".",)),
        repeatable,
        "a name without the pattern goes on to the next `template` or directive, in these zones or all",
    ] = ()
    upstream: Annotated[
        tuple[str, ...],
        words("...", at_least=0),
        without_effect("kdns resolves such names through itself: delete the line", in_coredns=True),
        "of older versions",
    ] = ()


# --- Answering ---


class Template(Plugin):
    """The uses of the directive in a block, in their order."""

    name: ClassVar[str] = "template"
    options: ClassVar[type[Options]] = TemplateOptions

    def __init__(self, options: Sequence[TemplateOptions], block: Block) -> None:
        self._uses = [_Use(each, block) for each in options]
        # Most questions are of no use's names or types, and that is seen here at once.
        self._ends = tuple({names.from_text(zone) for use in self._uses for zone in use.zones})
        types = {use.rtype for use in self._uses}
        self._types = None if Type.ANY in types else frozenset({*types, Type.ANY})
        # A use for all classes is asked in the others only where one is for them.
        self.classes = tuple({CLASS_IN, *(each.rclass for each in self._uses)} - {CLASS_ANY})  # type: ignore[misc]

    @classmethod
    def read(cls, directives: Sequence[Directive], problems: list[Problem]) -> list[TemplateOptions] | None:
        """Each use is a rule of its own."""
        read = parse_each(TemplateOptions, directives, problems)
        if len(read) != len(directives):
            return None
        for directive, options in zip(directives, read, strict=True):
            # An alias is followed for these types only.
            if options.type_ in (Type.A, Type.AAAA, Type.ANY) and options.rcode != Rcode.SERVFAIL:
                problems += [note(_ALIAS_FAILS, line.name.place()) for line in _aliases(directive)]
        return read

    async def handle(self, request: Request, next: Next) -> Answer:
        query = request.query
        types = self._types
        if query.qname.endswith(self._ends) and (types is None or query.rtype in types):
            answer = await self._answer(request)
            if answer is not None:
                return answer
        if query.rclass != CLASS_IN:
            # Behind this they answer for class IN.
            return failure("", rcode=Rcode.REFUSED)
        return await next(request)

    async def _answer(self, request: Request) -> Answer | None:
        """The answer of the first use that has one; None where the question goes on."""
        query = request.query
        for use in self._uses:
            zone = use.zone_of(query)
            if zone is None:
                continue
            found = use.match(query)
            if found is not None:
                return await use.answer(request, zone, found)
            if not use.fallthrough.hold(query.qname, query.labels):
                # As CoreDNS: the zone is this directive's, and it has no other answer.
                return failure("", self.name)
        return None


class Matched(msgspec.Struct, frozen=True):
    """What a pattern found in a name: the groups by place and by name."""

    groups: list[str]
    named: dict[str, str]


class _Use:
    """One use of the directive."""

    def __init__(self, options: TemplateOptions, block: Block) -> None:
        self._options = options
        self._metrics = block.process.metrics
        self._server = block.server
        self.rclass = options.class_
        self.rtype = options.type_
        zones_ = [names.from_text(zone) for zone in options.zones] or block.zones
        # The longest zone that fits is the one that a template is told of.
        self._zones = sorted(((names.labels_of(zone), names.to_text(zone)) for zone in zones_), key=_by_length)
        self.fallthrough = names.Zones(map(names.from_text, options.fallthrough))

    @property
    def zones(self) -> list[str]:
        """Whose names it answers."""
        return [text for _, text in self._zones]

    def zone_of(self, query: Query) -> str | None:
        """The zone whose names this use answers; None for questions of other zones, types and classes."""
        if self.rtype not in (query.rtype, Type.ANY) and query.rtype != Type.ANY:
            return None
        if self.rclass not in (query.rclass, CLASS_ANY) and query.rclass != CLASS_ANY:
            return None
        labels = query.labels
        for zone, text in self._zones:
            count = len(zone)
            if not count or labels[-count:] == zone:
                return text
        return None

    def match(self, query: Query) -> Matched | None:
        """What the first pattern that fits has found."""
        name = names.to_text(query.qname)
        if not self._options.match:
            return Matched([name], {"0": name})
        for pattern in self._options.match:
            found = pattern.search(name)
            if found is not None:
                groups = [found.group(number) or "" for number in range(pattern.groups + 1)]
                named = {str(number): text for number, text in enumerate(groups)}
                named |= {group: groups[number] for group, number in pattern.groupindex.items()}
                return Matched(groups, named)
        return None

    async def answer(self, request: Request, zone: str, found: Matched) -> Answer:
        """The answer that the templates make, and what an alias in it leads to."""
        options, query = self._options, request.query
        labels = self._labels(query, zone)
        self._metrics.increase(metrics.TEMPLATE_MATCHES, *labels)
        if options.rcode == Rcode.SERVFAIL:
            return failure("", Template.name, self._error())
        data = _data_of(request, zone, found)
        sections: dict[str, list[Record]] = {}
        alias: Record | None = None
        for section in SECTIONS:
            sections[section] = []
            for written in getattr(options, section):
                try:
                    record = parse_record(written.text.execute(data))
                except ExecutionError as error:
                    return self._failed(request, metrics.TEMPLATE_FAILURES, labels, section, written, error)
                except ValueError as error:
                    return self._failed(request, metrics.TEMPLATE_RR_FAILURES, labels, section, written, error)
                if record is None:
                    continue
                sections[section].append(record)
                # A name has one alias; to follow more would multiply with each alias that leads to this one again.
                if section == "answer" and record.rtype == Type.CNAME and alias is None:
                    alias = record
                    if query.rtype in (Type.A, Type.AAAA):
                        target = await request.ask(alias.data, query.rtype)
                        if not target.unclaimed and target.rcode not in (Rcode.NOERROR, Rcode.NXDOMAIN):
                            return self._alias_failed(alias, target)
                        sections[section] += target.answer
        return Answer(
            options.rcode,
            sections["answer"],
            sections["authority"],
            sections["additional"],
            plugin=Template.name,
            error=self._error(),
        )

    def _error(self) -> tuple[int, str] | None:
        extended = self._options.ederror
        return None if extended is None else (extended.code, extended.text)

    def _failed(
        self,
        request: Request,
        metric: metrics.Metric,
        labels: tuple[str, ...],
        section: str,
        written: Written,
        error: Exception,
    ) -> Answer:
        # Each time counts, so none is answered from what is kept.
        request.keep = False
        self._metrics.increase(metric, *labels, section, written.text.text)
        return failure(f"{section} `{written.text.text}`: {error}", Template.name)

    def _alias_failed(self, alias: Record, target: Answer) -> Answer:
        code = rcode_to_text(target.rcode)
        cause = f"{names.to_text(alias.data)}, where the alias leads: {code} of `{target.plugin}`"
        return failure(target.cause or cause, Template.name, target.error)

    def _labels(self, query: Query, zone: str) -> tuple[str, ...]:
        # A client chooses the numbers, so those without a name share a label.
        rtype = metrics.TYPES.get(query.rtype, "other")
        return (self._server, zone, "", class_to_text(query.rclass), rtype)


def _by_length(zone: tuple[list[bytes], str]) -> int:
    return -len(zone[0])


def _data_of(request: Request, zone: str, found: Matched) -> Fields:
    """What a template is told. Only what it asks for is looked at: the client's address makes an answer its own."""
    query = request.query
    return Fields(
        {
            "Zone": lambda: zone,
            "Name": lambda: names.to_text(query.qname),
            "Class": lambda: class_to_text(query.rclass),
            "Type": lambda: type_to_text(query.rtype),
            "Match": lambda: found.groups,
            "Group": lambda: found.named,
            "Question": lambda: _question(request),
            "Message": lambda: _message(request),
            "Remote": lambda: request.client[0],
            # kdns has no metadata, and one that isn't there is an empty text.
            "Meta": lambda: Method(lambda label: ""),
        }
    )


def _question(request: Request) -> Fields:
    query = request.query

    def spelled() -> str:
        # Kept answers are for all spellings of a name.
        request.keep = request.keep and query.spelled == query.qname
        return names.to_text(query.spelled)

    return Fields({"Name": spelled, "Qtype": lambda: query.rtype, "Qclass": lambda: query.rclass})


def _message(request: Request) -> Fields:
    # Its header is of this query alone.
    request.keep = False
    query = request.query
    flags = {
        "Response": QR,
        "Authoritative": AA,
        "Truncated": TC,
        "RecursionDesired": RD,
        "RecursionAvailable": 0x80,
        "Zero": 0x40,
        "AuthenticatedData": AD,
        "CheckingDisabled": CD,
    }
    fields: dict[str, Any] = {name: _flag(query.flags, bit) for name, bit in flags.items()}
    fields |= {
        "Id": lambda: query.id,
        "Opcode": lambda: query.flags >> 11 & 0xF,
        "Rcode": lambda: query.flags & 0xF,
        "Question": lambda: [_question(request)],
    }
    return Fields(fields)


def _flag(flags: int, bit: int) -> Any:
    return lambda: bool(flags & bit)
